//! Shards and their parents: which may be read, and what a worker's report of a shard's end adds to them.
//!
//! Invariant: a shard may be read only when the store has opened it and each of its stored parents is finished. So the
//! records of one partition key keep their order over any chain of splits and merges. A parent that is not stored is past
//! if the shard is open: the store opens a shard with an unknown parent only once a listing of the whole stream has shown
//! that there is none.
//!
//! The store keeps the same rule when it opens and grants (see [`crate::protocol`]); here it keeps the plan from asking for
//! what would be refused.

use std::collections::{BTreeMap, BTreeSet};

use millrace_common::{ids::ShardId, position::Position};

use crate::store::{NewShard, ShardPhase};

/// A child shard as Kinesis names it at the end of its parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// Its id.
    pub id: ShardId,
    /// Its parents: one, or two for a merge.
    pub parents: Vec<ShardId>,
}

/// The stored shards of one pipe.
#[derive(Debug, Clone, Default)]
pub struct Lineage {
    nodes: BTreeMap<ShardId, (Vec<ShardId>, ShardPhase)>,
}

impl Lineage {
    /// Adds a stored shard.
    pub fn insert(&mut self, id: ShardId, parents: Vec<ShardId>, phase: ShardPhase) {
        self.nodes.insert(id, (parents, phase));
    }

    /// Whether a shard may be read.
    pub fn is_readable(&self, id: &ShardId) -> bool {
        let finished = |parent: &ShardId| {
            self.nodes
                .get(parent)
                .is_none_or(|(_, phase)| *phase == ShardPhase::Finished)
        };
        self.nodes
            .get(id)
            .is_some_and(|(parents, phase)| *phase == ShardPhase::Open && parents.iter().all(finished))
    }

    /// All shards that may be read.
    pub fn readable(&self) -> BTreeSet<ShardId> {
        self.nodes.keys().filter(|id| self.is_readable(id)).cloned().collect()
    }

    /// The children that were reported at the end of `parent` and are not stored: to be read from their beginning.
    ///
    /// The parent is one of a child's parents whether the report says so or not. A child that names itself is nonsense and
    /// is left to the next listing.
    pub fn children(&self, parent: &ShardId, reported: &[Child]) -> Vec<NewShard> {
        let mut new: BTreeMap<&ShardId, BTreeSet<&ShardId>> = BTreeMap::new();
        for child in reported
            .iter()
            .filter(|child| child.id != *parent && !self.nodes.contains_key(&child.id))
        {
            new.entry(&child.id)
                .or_default()
                .extend(child.parents.iter().chain([parent]));
        }
        new.into_iter()
            .filter(|(id, parents)| !parents.contains(id))
            .map(|(id, parents)| NewShard {
                id: id.clone(),
                parents: parents.into_iter().cloned().collect(),
                start: Position::TrimHorizon,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use millrace_common::{ids::Epoch, pipe::StartPosition};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        discovery,
        protocol::{self, Ledger, Shard},
    };

    fn id(n: usize) -> ShardId {
        format!("shardId-{n:012}").parse().unwrap()
    }

    fn child(n: usize, parents: &[usize]) -> Child {
        Child {
            id: id(n),
            parents: parents.iter().map(|p| id(*p)).collect(),
        }
    }

    fn new(n: usize, parents: &[usize]) -> NewShard {
        NewShard {
            id: id(n),
            parents: parents.iter().map(|p| id(*p)).collect(),
            start: Position::TrimHorizon,
        }
    }

    #[test]
    fn a_merge_waits_for_both_parents_and_a_past_parent_for_nobody() {
        use ShardPhase::{Finished, Open, Waiting};
        let mut lineage = Lineage::default();
        lineage.insert(id(1), vec![id(0)], Open);
        lineage.insert(id(2), vec![], Open);
        lineage.insert(id(3), vec![id(1), id(2)], Open);
        lineage.insert(id(4), vec![id(9)], Waiting);
        assert_eq!(
            lineage.readable(),
            BTreeSet::from([id(1), id(2)]),
            "shard 0 is past, 9 is not known to be"
        );
        lineage.insert(id(1), vec![id(0)], Finished);
        assert_eq!(lineage.readable(), BTreeSet::from([id(2)]));
        lineage.insert(id(2), vec![], Finished);
        assert_eq!(lineage.readable(), BTreeSet::from([id(3)]));
    }

    #[test]
    fn reported_children_are_merged_and_nonsense_adds_nothing() {
        let mut lineage = Lineage::default();
        lineage.insert(id(0), vec![], ShardPhase::Open);
        lineage.insert(id(1), vec![], ShardPhase::Open);
        let reported = [
            child(4, &[]),
            child(2, &[0]),
            child(3, &[1]),
            child(2, &[0]),
            child(1, &[0]),
            child(0, &[0]),
            child(7, &[7]),
        ];
        assert_eq!(
            lineage.children(&id(0), &reported),
            [new(2, &[0]), new(3, &[0, 1]), new(4, &[0])]
        );
    }

    /// A shard of the stream.
    #[derive(Default)]
    struct Real {
        parents: Vec<usize>,
        children: Vec<usize>,
        /// Retention has ended for all of it: it is not listed any more, and cannot be read.
        expired: bool,
    }

    /// A listing as it was when it was begun.
    struct Listing {
        shards: Vec<discovery::Shard>,
        judged: BTreeSet<ShardId>,
    }

    /// The stream as Kinesis has it, and what the store knows of it.
    struct World {
        stream: Vec<Real>,
        stored: BTreeMap<ShardId, Shard>,
        finished: BTreeSet<usize>,
        /// Begun and not taken in yet.
        listing: Option<Listing>,
    }

    fn number(id: &ShardId) -> usize {
        id.as_str()[8..].parse().unwrap()
    }

    impl World {
        /// A pipe that begins at the horizon of a stream of so many shards.
        fn new(shards: usize) -> Self {
            let mut world = Self {
                stream: (0..shards).map(|_| Real::default()).collect(),
                stored: BTreeMap::new(),
                finished: BTreeSet::new(),
                listing: None,
            };
            world.begin_listing();
            world.take_in();
            world
        }

        fn is_open(&self, n: usize) -> bool {
            self.stream[n].children.is_empty()
        }

        fn reshard(&mut self, pick: prop::sample::Index, merge: bool) {
            let open: Vec<usize> = (0..self.stream.len()).filter(|n| self.is_open(*n)).collect();
            let at = pick.index(open.len());
            let (a, b) = (open[at], open[(at + 1) % open.len()]);
            let merge = merge && a != b;
            let parents = if merge { vec![a, b] } else { vec![a] };
            for _ in 0..if merge { 1 } else { 2 } {
                let n = self.stream.len();
                parents.iter().for_each(|p| self.stream[*p].children.push(n));
                self.stream.push(Real {
                    parents: parents.clone(),
                    ..Real::default()
                });
            }
        }

        /// The oldest closed shard that is still listed vanishes, as retention makes it.
        fn expire(&mut self) {
            let next = (0..self.stream.len()).find(|n| !self.stream[*n].expired);
            if let Some(n) = next.filter(|n| !self.is_open(*n)) {
                self.stream[n].expired = true;
            }
        }

        fn store(&mut self, new: Vec<(NewShard, ShardPhase)>, opened: Vec<ShardId>) {
            for (shard, phase) in new {
                let row = Shard {
                    parents: shard.parents,
                    phase,
                    epoch: Epoch(1),
                    owner: None,
                    checkpoint: shard.start,
                    committed: 0,
                };
                self.stored.insert(shard.id, row);
            }
            for id in opened {
                self.stored.get_mut(&id).unwrap().phase = ShardPhase::Open;
            }
        }

        /// Kinesis answers; the answer is taken in later, when more has happened.
        fn begin_listing(&mut self) {
            let waiting = self.stored.iter().filter(|(_, row)| row.phase == ShardPhase::Waiting);
            let judged = waiting.map(|(id, _)| id.clone()).collect();
            let listed = self.stream.iter().enumerate().filter(|(_, shard)| !shard.expired);
            let shards = listed
                .map(|(n, shard)| discovery::Shard {
                    hash_keys: None,
                    id: id(n),
                    parents: shard.parents.iter().map(|p| id(*p)).collect(),
                    open: shard.children.is_empty(),
                })
                .collect();
            self.listing = Some(Listing { shards, judged });
        }

        fn take_in(&mut self) {
            let Some(listing) = self.listing.take() else { return };
            let known: BTreeSet<ShardId> = self.stored.keys().cloned().collect();
            let new = discovery::lineage::later(StartPosition::TrimHorizon, &known, &listing.shards);
            let added = protocol::add(&self.stored, &new, &listing.judged);
            for (id, parents) in added.reparented {
                self.stored.get_mut(&id).unwrap().parents = parents;
            }
            self.store(added.new, added.opened);
        }

        fn lineage(&self) -> Lineage {
            let mut lineage = Lineage::default();
            self.stored
                .iter()
                .for_each(|(id, row)| lineage.insert(id.clone(), row.parents.clone(), row.phase));
            lineage
        }

        /// Reads one readable shard to its end, if it has one. Of one that has expired meanwhile only that is known.
        fn read(&mut self, pick: prop::sample::Index, backwards: bool) -> Result<bool, TestCaseError> {
            let lineage = self.lineage();
            let mut ended: Vec<usize> = lineage.readable().iter().map(number).collect();
            ended.retain(|n| !self.is_open(*n));
            if ended.is_empty() {
                return Ok(false);
            }
            let n = ended[pick.index(ended.len())];
            for parent in &self.stream[n].parents {
                let gone = self.stream[*parent].expired && !self.stored.contains_key(&id(*parent));
                prop_assert!(
                    self.finished.contains(parent) || gone,
                    "{n} was readable before its parent {parent} was finished"
                );
            }
            prop_assert!(self.finished.insert(n), "shard {n} was readable twice");
            let told = self.stream[n].children.iter().filter(|_| !self.stream[n].expired);
            let mut reported: Vec<Child> = told.map(|c| child(*c, &self.stream[*c].parents)).collect();
            if backwards {
                reported.reverse();
            }
            let children = lineage.children(&id(n), &reported);
            let mut ledger = Ledger {
                shards: std::mem::take(&mut self.stored),
                ..Ledger::default()
            };
            let epoch = ledger.shards[&id(n)].epoch;
            let after = protocol::finish(&ledger, &id(n), epoch, &children).unwrap();
            after.apply(&mut ledger, &id(n));
            self.stored = ledger.shards;
            Ok(true)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// A random graph of splits and merges, read in random order. Listings are begun at one time and taken in at another;
        /// the oldest shards expire. Under the rules of discovery, store and scheduler nothing is readable before each
        /// of its parents is finished or known to be past, nothing is read twice, nothing that is listed is left out, and
        /// nothing is stuck.
        #[test]
        fn children_never_start_before_their_parents(
            shards in 1..5_usize,
            steps in prop::collection::vec((0..9u8, any::<prop::sample::Index>(), any::<bool>()), 1..80),
        ) {
            let mut world = World::new(shards);
            for (step, pick, flag) in &steps {
                match step {
                    0 | 1 => world.reshard(*pick, *flag),
                    2..=4 => { world.read(*pick, *flag)?; }
                    5 | 6 => world.begin_listing(),
                    7 => world.take_in(),
                    _ => world.expire(),
                }
            }
            let (_, pick, flag) = steps[0];
            loop {
                let read = world.read(pick, flag)?;
                world.begin_listing();
                world.take_in();
                if !read && !world.read(pick, flag)? {
                    break;
                }
            }
            for n in (0..world.stream.len()).filter(|n| !world.is_open(*n)) {
                let unseen = world.stream[n].expired && !world.stored.contains_key(&id(n));
                prop_assert!(world.finished.contains(&n) || unseen, "{n} is stuck");
            }
            let open: BTreeSet<ShardId> = (0..world.stream.len()).filter(|n| world.is_open(*n)).map(id).collect();
            prop_assert_eq!(world.lineage().readable(), open);
        }
    }
}

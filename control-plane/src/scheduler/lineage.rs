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
    use millrace_common::ids::Epoch;
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{self, Ledger, Shard};

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

    /// The stream as Kinesis has it, and what the store knows of it.
    struct World {
        /// Parents and children of each shard.
        stream: Vec<(Vec<usize>, Vec<usize>)>,
        stored: BTreeMap<ShardId, Shard>,
        finished: BTreeSet<usize>,
    }

    impl World {
        fn reshard(&mut self, pick: prop::sample::Index) {
            let open: Vec<usize> = (0..self.stream.len())
                .filter(|n| self.stream[*n].1.is_empty())
                .collect();
            let (a, b) = (
                open[pick.index(open.len())],
                open[(pick.index(open.len()) + 1) % open.len()],
            );
            let merge = a != b && a % 2 == 0;
            let parents = if merge { vec![a, b] } else { vec![a] };
            for _ in 0..if merge { 1 } else { 2 } {
                let n = self.stream.len();
                parents.iter().for_each(|p| self.stream[*p].1.push(n));
                self.stream.push((parents.clone(), vec![]));
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

        fn list(&mut self) {
            let listing: Vec<NewShard> = self.stream.iter().enumerate().map(|(n, (p, _))| new(n, p)).collect();
            let added = protocol::add(&self.stored, &listing);
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

        /// Reads one readable shard to its end, if it has one.
        fn read(&mut self, pick: prop::sample::Index) -> Result<bool, TestCaseError> {
            let lineage = self.lineage();
            let number = |id: &ShardId| id.as_str()[8..].parse::<usize>().unwrap();
            let mut ended: Vec<usize> = lineage.readable().iter().map(number).collect();
            ended.retain(|n| !self.stream[*n].1.is_empty());
            if ended.is_empty() {
                return Ok(false);
            }
            let n = ended[pick.index(ended.len())];
            for parent in &self.stream[n].0 {
                prop_assert!(
                    self.finished.contains(parent),
                    "{n} was readable before its parent {parent} was finished"
                );
            }
            prop_assert!(self.finished.insert(n), "shard {n} was readable twice");
            let reported: Vec<Child> = self.stream[n].1.iter().map(|c| child(*c, &self.stream[*c].0)).collect();
            let children = lineage.children(&id(n), &reported);
            let ledger = Ledger {
                shards: self.stored.clone(),
                ..Ledger::default()
            };
            let after = protocol::finish(&ledger, &id(n), Epoch(1), &children).unwrap();
            self.stored.get_mut(&id(n)).unwrap().phase = ShardPhase::Finished;
            self.store(after.new, after.opened);
            Ok(true)
        }
    }

    proptest! {
        /// A random graph of splits and merges, read in random order and listed now and then, under the rules of the
        /// store: nothing is readable before its parents are finished, nothing twice, and the reader gets to the end.
        #[test]
        fn children_never_start_before_their_parents(
            steps in prop::collection::vec((0..5u8, any::<prop::sample::Index>()), 1..80),
        ) {
            let stream = vec![(vec![], vec![]); 3];
            let mut world = World { stream, stored: BTreeMap::new(), finished: BTreeSet::new() };
            world.list();
            for (step, pick) in &steps {
                match step {
                    0 | 1 => world.reshard(*pick),
                    2 | 3 => { world.read(*pick)?; }
                    _ => world.list(),
                }
            }
            let pick = steps[0].1;
            loop {
                let read = world.read(pick)?;
                world.list();
                if !read && !world.read(pick)? {
                    break;
                }
            }
            let ended = (0..world.stream.len()).filter(|n| !world.stream[*n].1.is_empty()).count();
            prop_assert_eq!(world.finished.len(), ended);
            let open: BTreeSet<ShardId> =
                (0..world.stream.len()).filter(|n| world.stream[*n].1.is_empty()).map(id).collect();
            prop_assert_eq!(world.lineage().readable(), open);
        }
    }
}

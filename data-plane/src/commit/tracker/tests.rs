//! The order of open batches: examples, then lists of random actions with the invariants checked after each.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn shard(n: u8) -> ShardId {
    format!("shardId-{n:012}").parse().expect("a shard id")
}

fn shards(of: &[u8]) -> BTreeSet<ShardId> {
    of.iter().map(|n| shard(*n)).collect()
}

fn built(tracker: &mut Tracker, of: &[u8]) -> BatchId {
    let id = BatchId::new();
    tracker.building(id, shards(of));
    assert!(tracker.built(id, shards(of), Admission::Prepare));
    id
}

#[test]
fn one_is_prepared_at_a_time_and_sends_of_a_shard_follow_each_other() {
    let mut tracker = Tracker::new();
    let (a, b) = (built(&mut tracker, &[0]), built(&mut tracker, &[0]));
    assert_eq!(tracker.cut_here(), 2);
    assert_eq!(tracker.next_step(), Some(Step::Prepare(a)));
    assert_eq!(tracker.next_step(), None, "b waits until a is recorded");
    assert!(tracker.done(Step::Prepare(a)));
    assert_eq!(tracker.next_step(), Some(Step::Send(a)));
    assert_eq!(tracker.next_step(), Some(Step::Prepare(b)));
    assert!(tracker.done(Step::Prepare(b)));
    assert_eq!(
        tracker.next_step(),
        None,
        "b is recorded, and waits until a is in the table"
    );
    assert!(tracker.done(Step::Send(a)));
    assert_eq!(tracker.next_step(), Some(Step::Commit(a)));
    assert_eq!(
        tracker.next_step(),
        Some(Step::Send(b)),
        "it need not wait for the commit"
    );
    assert!(tracker.done(Step::Send(b)));
    assert_eq!(tracker.next_step(), None, "b waits for a, which is older");
    assert!(tracker.done(Step::Commit(a)));
    assert_eq!(tracker.next_step(), Some(Step::Commit(b)));
    assert!(tracker.done(Step::Commit(b)));
    assert!(tracker.is_empty());
}

#[test]
fn other_shards_commit_past_a_slow_batch() {
    let mut tracker = Tracker::new();
    let (a, b) = (BatchId::new(), BatchId::new());
    for (id, of) in [(a, [0]), (b, [1])] {
        tracker.building(id, shards(&of));
        assert!(tracker.built(id, shards(&of), Admission::Unrecorded));
    }
    assert_eq!(tracker.next_step(), Some(Step::Send(a)));
    assert_eq!(tracker.next_step(), Some(Step::Send(b)));
    assert!(tracker.done(Step::Send(b)));
    assert_eq!(tracker.next_step(), Some(Step::Commit(b)));
}

#[test]
fn what_is_recorded_waits_for_what_was_not() {
    let mut tracker = Tracker::new();
    let (a, b) = (BatchId::new(), BatchId::new());
    for (id, of) in [(a, [0]), (b, [1])] {
        tracker.building(id, shards(&of));
        assert!(tracker.built(id, shards(&of), Admission::Unrecorded));
    }
    // From here on the pipe wants its batches prepared.
    let (c, d) = (built(&mut tracker, &[0]), built(&mut tracker, &[2]));
    assert_eq!(tracker.next_step(), Some(Step::Send(a)));
    assert_eq!(tracker.next_step(), Some(Step::Send(b)));
    assert_eq!(tracker.next_step(), None, "the control plane knows nothing of a");
    assert!(tracker.done(Step::Send(a)));
    assert_eq!(tracker.next_step(), Some(Step::Commit(a)));
    assert_eq!(tracker.next_step(), None);
    assert!(tracker.done(Step::Commit(a)));
    assert_eq!(tracker.next_step(), Some(Step::Prepare(c)), "b is of another shard");
    assert!(tracker.done(Step::Prepare(c)));
    assert_eq!(tracker.next_step(), Some(Step::Send(c)));
    assert_eq!(tracker.next_step(), Some(Step::Prepare(d)));
}

#[test]
fn a_lost_shard_takes_recorded_company_with_it_and_rewinds_the_rest() {
    let mut tracker = Tracker::new();
    let recorded = built(&mut tracker, &[0, 1]);
    assert_eq!(tracker.next_step(), Some(Step::Prepare(recorded)));
    let mixed = built(&mut tracker, &[1, 2]);
    let follows = built(&mut tracker, &[2, 3]);
    let apart = built(&mut tracker, &[4]);
    let dropped = tracker.drop_shards(shards(&[0]));
    assert_eq!(dropped.batches, [recorded, mixed, follows]);
    assert_eq!(dropped.lost, shards(&[0, 1]));
    assert_eq!(dropped.rewound, shards(&[2, 3]));
    assert!(
        !tracker.done(Step::Prepare(recorded)),
        "an answer that comes late changes nothing"
    );
    assert_eq!(tracker.next_step(), Some(Step::Prepare(apart)));
}

#[test]
fn a_batch_that_is_being_built_holds_back_the_next_prepare() {
    let mut tracker = Tracker::new();
    let id = BatchId::new();
    tracker.building(id, shards(&[0, 1]));
    assert!(tracker.holds(&shard(1)));
    assert_eq!(tracker.next_step(), None);
    assert!(tracker.built(id, shards(&[0]), Admission::Prepare));
    assert!(!tracker.holds(&shard(1)), "its records were left over");
    tracker.nothing_built(id);
    assert!(tracker.contains(id), "only what is being built can come to nothing");
}

#[test]
fn a_shard_is_being_built_until_its_batch_is() {
    let mut tracker = Tracker::new();
    let (a, b) = (BatchId::new(), BatchId::new());
    tracker.building(a, shards(&[0]));
    tracker.building(b, shards(&[1, 2]));
    assert!(tracker.is_building(&shard(0)) && tracker.is_building(&shard(2)) && !tracker.is_building(&shard(3)));
    // The younger is ready first: it waits for its turn, and its shards are free.
    assert!(tracker.built(b, shards(&[1]), Admission::Prepare));
    assert!(!tracker.is_building(&shard(1)) && !tracker.is_building(&shard(2)) && tracker.is_building(&shard(0)));
    assert_eq!(tracker.next_step(), None);
    tracker.nothing_built(a);
    assert_eq!(tracker.next_step(), Some(Step::Prepare(b)));
}

#[test]
fn a_replay_ties_its_shards_before_it_is_rebuilt() {
    let mut tracker = Tracker::new();
    let id = BatchId::new();
    tracker.rebuilding(id, shards(&[0, 1]));
    assert_eq!((tracker.next_step(), tracker.cut_here()), (None, 0));
    assert_eq!(tracker.drop_shards(shards(&[1])).lost, shards(&[0, 1]));
    assert!(!tracker.rebuilt(id));
}

#[test]
fn a_refused_batch_is_replaced_in_its_place() {
    let mut tracker = Tracker::new();
    let (a, b) = (built(&mut tracker, &[0, 1]), built(&mut tracker, &[1]));
    let step = |tracker: &mut Tracker, expected: Step| {
        assert_eq!(tracker.next_step(), Some(expected));
        expected
    };
    for expected in [Step::Prepare(a), Step::Send(a), Step::Prepare(b)] {
        let begun = step(&mut tracker, expected);
        if begun != Step::Send(a) {
            assert!(tracker.done(begun));
        }
    }
    assert!(tracker.refused(a));
    assert!(!tracker.done(Step::Send(a)), "it was refused");
    step(&mut tracker, Step::Replace(a));
    assert_eq!(tracker.next_step(), None, "b waits for what replaces a");
    let (first, second) = (BatchId::new(), BatchId::new());
    assert!(tracker.replaced(a, vec![(first, shards(&[0])), (second, shards(&[0, 1]))]));
    for id in [first, second, b] {
        let sending = step(&mut tracker, Step::Send(id));
        assert_eq!(tracker.next_step(), None, "the younger ones wait");
        assert!(tracker.done(sending));
        let committing = step(&mut tracker, Step::Commit(id));
        assert!(tracker.done(committing));
    }
    assert!(tracker.is_empty());
}

#[derive(Debug, Clone)]
enum Action {
    Build(BTreeSet<u8>, bool),
    Step,
    Finish(usize),
    Refuse(usize),
    Lose(u8),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (prop::collection::btree_set(0..5u8, 1..4), any::<bool>()).prop_map(|(of, open)| Action::Build(of, open)),
        4 => Just(Action::Step),
        4 => any::<usize>().prop_map(Action::Finish),
        1 => any::<usize>().prop_map(Action::Refuse),
        1 => (0..5u8).prop_map(Action::Lose),
    ]
}

/// What a control plane and a table would see.
#[derive(Default)]
struct World {
    /// Per shard, the batches that still stand, oldest first.
    chains: BTreeMap<ShardId, Vec<BatchId>>,
    recorded: BTreeSet<BatchId>,
    admitted: BTreeSet<BatchId>,
    sent: BTreeSet<BatchId>,
    of: BTreeMap<BatchId, BTreeSet<ShardId>>,
    running: Vec<Step>,
}

impl World {
    fn begin(&mut self, step: Step) -> Result<(), TestCaseError> {
        let id = step.batch();
        match step {
            Step::Prepare(_) => {
                prop_assert!(!self.running.iter().any(|other| matches!(other, Step::Prepare(_))));
                for shard in &self.of[&id] {
                    let chain = &self.chains[shard];
                    let at = chain.iter().position(|other| *other == id);
                    prop_assert!(at.is_some(), "a dropped batch was prepared");
                    let older = &chain[..at.unwrap_or_default()];
                    prop_assert!(
                        older.iter().all(|other| self.admitted.contains(other)),
                        "prepared out of order"
                    );
                }
                self.recorded.insert(id);
            }
            Step::Send(_) => {
                prop_assert!(self.admitted.contains(&id), "sent before it was prepared");
                for shard in &self.of[&id] {
                    let mut older = self.chains[shard].iter().take_while(|other| **other != id);
                    prop_assert!(older.all(|other| self.sent.contains(other)), "sent out of order");
                }
            }
            Step::Replace(_) => {
                prop_assert!(!self.running.iter().any(|other| matches!(other, Step::Replace(_))));
                prop_assert!(!self.sent.contains(&id), "replaced after it was acknowledged");
            }
            Step::Commit(_) => {
                prop_assert!(self.sent.contains(&id), "committed before it was sent");
                for shard in &self.of[&id] {
                    prop_assert_eq!(self.chains[shard].first(), Some(&id), "committed out of order");
                }
            }
        }
        self.running.push(step);
        Ok(())
    }

    /// Finishes a step.
    fn end(&mut self, tracker: &mut Tracker, step: Step) -> Result<(), TestCaseError> {
        if let Step::Replace(id) = step {
            let parts = self.replace(id);
            prop_assert!(tracker.replaced(id, parts));
        } else {
            prop_assert!(tracker.done(step));
            self.finish(step);
        }
        Ok(())
    }

    /// The first shard of a batch is cut in two, and what follows it goes with the second half.
    fn replace(&mut self, id: BatchId) -> Vec<(BatchId, BTreeSet<ShardId>)> {
        let of = self.of[&id].clone();
        let first: BTreeSet<_> = of.iter().take(1).cloned().collect();
        let parts = vec![(BatchId::new(), first), (BatchId::new(), of)];
        for (shard, chain) in &mut self.chains {
            if let Some(at) = chain.iter().position(|other| *other == id) {
                let of_shard = parts.iter().filter(|(_, of)| of.contains(shard)).map(|(id, _)| *id);
                chain.splice(at..=at, of_shard);
            }
        }
        for (id, of) in &parts {
            self.recorded.insert(*id);
            self.admitted.insert(*id);
            self.of.insert(*id, of.clone());
        }
        parts
    }

    fn finish(&mut self, step: Step) {
        let id = step.batch();
        match step {
            Step::Replace(_) => {}
            Step::Prepare(_) => drop(self.admitted.insert(id)),
            Step::Send(_) => drop(self.sent.insert(id)),
            Step::Commit(_) => self
                .chains
                .values_mut()
                .for_each(|chain| chain.retain(|other| *other != id)),
        }
    }

    fn lose(&mut self, dropped: &Dropped) -> Result<(), TestCaseError> {
        for id in &dropped.batches {
            prop_assert!(!self.recorded.contains(id) || self.of[id].is_subset(&dropped.lost));
        }
        prop_assert!(dropped.lost.is_disjoint(&dropped.rewound));
        for (shard, chain) in &mut self.chains {
            let kept: Vec<_> = chain
                .iter()
                .copied()
                .filter(|id| !dropped.batches.contains(id))
                .collect();
            prop_assert!(chain.starts_with(&kept), "what stays is a prefix");
            prop_assert!(!dropped.lost.contains(shard) || kept.is_empty());
            prop_assert!(kept.len() == chain.len() || dropped.lost.contains(shard) || dropped.rewound.contains(shard));
            *chain = kept;
        }
        self.running.retain(|step| !dropped.batches.contains(&step.batch()));
        Ok(())
    }
}

proptest! {
    #[test]
    fn invariants_hold_after_every_action(actions in prop::collection::vec(action(), 0..120)) {
        let (mut tracker, mut world) = (Tracker::new(), World::default());
        for action in actions {
            match action {
                Action::Build(of, open) => {
                    let (id, of) = (BatchId::new(), of.into_iter().map(shard).collect::<BTreeSet<_>>());
                    // A batch that is open from the start is a replay: nothing newer of its shards exists yet.
                    let open = open && of.iter().all(|shard| !tracker.holds(shard));
                    if open {
                        tracker.rebuilding(id, of.clone());
                        prop_assert!(tracker.rebuilt(id));
                    } else {
                        tracker.building(id, of.clone());
                        prop_assert!(tracker.built(id, of.clone(), Admission::Prepare));
                    }
                    for shard in &of {
                        world.chains.entry(shard.clone()).or_default().push(id);
                    }
                    if open {
                        world.recorded.insert(id);
                        world.admitted.insert(id);
                    }
                    world.of.insert(id, of);
                }
                Action::Step => {
                    if let Some(step) = tracker.next_step() {
                        world.begin(step)?;
                    }
                }
                Action::Finish(which) if !world.running.is_empty() => {
                    let step = world.running.swap_remove(which % world.running.len());
                    world.end(&mut tracker, step)?;
                }
                Action::Refuse(which) if !world.running.is_empty() => {
                    let at = which % world.running.len();
                    if let Step::Send(id) = world.running[at] {
                        world.running.swap_remove(at);
                        prop_assert!(tracker.refused(id));
                    }
                }
                Action::Finish(_) | Action::Refuse(_) => {}
                Action::Lose(n) => world.lose(&tracker.drop_shards([shard(n)].into()))?,
            }
        }
        // Nothing is stuck: left alone, all of it commits.
        while !tracker.is_empty() {
            if let Some(step) = tracker.next_step() {
                world.begin(step)?;
            } else {
                prop_assert!(!world.running.is_empty(), "nothing runs and nothing can be done");
                let step = world.running.remove(0);
                world.end(&mut tracker, step)?;
            }
        }
    }
}

//! The order of a lane's open batches. Pure: it is told what has happened and says what may be done next; whoever asks
//! does it and tells how it went.
//!
//! ```text
//!   Building -> Built -> Preparing -> Prepared -> Sending -> Sent -> Committing -> (gone)
//!                          one at a time,   ^       once the older      the oldest of each
//!                          oldest first     |       of its shards       of its shards first
//!                                           |       are sent
//!                              Rebuilding --'  (a replay: it was prepared by an earlier owner)
//!
//!   Sending -> Refused -> Replacing -> (gone, with its parts in its place, Prepared)
//!                one at a time, oldest first
//! ```
//!
//! Invariants:
//! - the batches of a shard are prepared and committed in the order in which they were built;
//! - a batch is sent only after it was prepared;
//! - a batch is prepared only after the unrecorded ones before it, which a pipe has in flight when at least once is no
//!   longer enough for it, are committed;
//! - the batches of a shard are sent one after the other, each once ClickHouse has acknowledged the one before. So the
//!   rows of a partition key come to the table in the order of their records, whatever is retried how often, and a table
//!   that keeps the last inserted row of a key keeps the right one;
//! - when a shard is lost, no batch of it stays, and for every other shard what stays is a prefix of what was there.

use std::collections::{BTreeSet, VecDeque};

use millrace_common::ids::{BatchId, ShardId};

/// Something to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Record the batch in the control plane.
    Prepare(BatchId),
    /// Insert it into ClickHouse.
    Send(BatchId),
    /// Put smaller ones in its place, because ClickHouse refuses it.
    Replace(BatchId),
    /// Move the checkpoints over it.
    Commit(BatchId),
}

impl Step {
    /// The batch that the step is about.
    pub fn batch(self) -> BatchId {
        match self {
            Step::Prepare(id) | Step::Send(id) | Step::Replace(id) | Step::Commit(id) => id,
        }
    }
}

/// How a batch becomes allowed to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It has to be prepared.
    Prepare,
    /// It never will be: at least once is enough.
    Unrecorded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Phase {
    Building,
    Built,
    Preparing,
    Rebuilding,
    Prepared,
    Sending,
    Refused,
    Replacing,
    Sent,
    Committing,
}

impl Phase {
    /// The control plane may know of the batch.
    fn may_be_recorded(self) -> bool {
        self >= Phase::Preparing
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Entry {
    id: BatchId,
    shards: BTreeSet<ShardId>,
    phase: Phase,
    replay: bool,
    /// The control plane hears of it only when it is committed.
    unrecorded: bool,
}

impl Entry {
    fn touches(&self, shards: &BTreeSet<ShardId>) -> bool {
        !self.shards.is_disjoint(shards)
    }
}

/// What has to go because shards were lost.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Batches that are no longer tracked, oldest first.
    pub batches: Vec<BatchId>,
    /// Shards that can no longer be advanced: the given ones, and all that share a recorded batch with them, because
    /// the shards of a recorded batch have one owner until it is resolved.
    pub lost: BTreeSet<ShardId>,
    /// Shards that are still held and have to be read again from the first dropped batch on.
    pub rewound: BTreeSet<ShardId>,
}

/// The open batches of a lane, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Tracker {
    entries: VecDeque<Entry>,
}

impl Tracker {
    /// None open.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether no batch is open.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of open batches that were cut here, with those that are being built. Replays do not count: there are as
    /// many as an earlier owner left.
    pub fn cut_here(&self) -> usize {
        self.entries.iter().filter(|entry| !entry.replay).count()
    }

    /// Whether a batch of this shard is open.
    pub fn holds(&self, shard: &ShardId) -> bool {
        self.entries.iter().any(|entry| entry.shards.contains(shard))
    }

    /// Whether a batch of this shard is being built, so that it is not known yet where the next one begins.
    pub fn is_building(&self, shard: &ShardId) -> bool {
        let building = |entry: &Entry| entry.phase == Phase::Building && entry.shards.contains(shard);
        self.entries.iter().any(building)
    }

    /// Whether this batch is tracked.
    pub fn contains(&self, id: BatchId) -> bool {
        self.entries.iter().any(|entry| entry.id == id)
    }

    /// A batch is being built from records of these shards.
    pub fn building(&mut self, id: BatchId, shards: BTreeSet<ShardId>) {
        self.entries.push_back(Entry {
            id,
            shards,
            phase: Phase::Building,
            replay: false,
            unrecorded: false,
        });
    }

    /// A batch that an earlier owner prepared is being rebuilt. It comes before whatever is built of its shards.
    pub fn rebuilding(&mut self, id: BatchId, shards: BTreeSet<ShardId>) {
        self.entries.push_back(Entry {
            id,
            shards,
            phase: Phase::Rebuilding,
            replay: true,
            unrecorded: false,
        });
    }

    /// The batch was rebuilt as it had been. Returns false if it was dropped meanwhile.
    pub fn rebuilt(&mut self, id: BatchId) -> bool {
        let Some(entry) = self.entry(id, Phase::Rebuilding) else {
            return false;
        };
        entry.phase = Phase::Prepared;
        true
    }

    /// The batch is built and covers these of the shards. Returns false if it was dropped meanwhile.
    pub fn built(&mut self, id: BatchId, shards: BTreeSet<ShardId>, admission: Admission) -> bool {
        let Some(entry) = self.entry(id, Phase::Building) else {
            return false;
        };
        entry.shards = shards;
        entry.unrecorded = admission == Admission::Unrecorded;
        entry.phase = match admission {
            Admission::Prepare => Phase::Built,
            Admission::Unrecorded => Phase::Prepared,
        };
        true
    }

    /// Nothing came of the batch that was being built.
    pub fn nothing_built(&mut self, id: BatchId) {
        self.entries
            .retain(|entry| entry.id != id || entry.phase != Phase::Building);
    }

    /// The next thing to do. It counts as begun. Completions come before new work.
    pub fn next_step(&mut self) -> Option<Step> {
        self.next_commit()
            .or_else(|| self.next_replace())
            .or_else(|| self.next_send())
            .or_else(|| self.next_prepare())
    }

    fn next_commit(&mut self) -> Option<Step> {
        let index = self.oldest(Phase::Sent, |_| true)?;
        self.begin(index, Phase::Committing).map(Step::Commit)
    }

    /// One at a time and the oldest first, so that the parts that are open at a time are few.
    fn next_replace(&mut self) -> Option<Step> {
        if self.entries.iter().any(|entry| entry.phase == Phase::Replacing) {
            return None;
        }
        let index = self.entries.iter().position(|entry| entry.phase == Phase::Refused)?;
        self.begin(index, Phase::Replacing).map(Step::Replace)
    }

    fn next_send(&mut self) -> Option<Step> {
        let index = self.oldest(Phase::Prepared, |phase| phase < Phase::Sent)?;
        self.begin(index, Phase::Sending).map(Step::Send)
    }

    /// The first batch of a phase that shares no shard with an older one that it has to wait for.
    fn oldest(&self, wanted: Phase, waits_for: impl Fn(Phase) -> bool) -> Option<usize> {
        let mut blocked = BTreeSet::new();
        for (index, entry) in self.entries.iter().enumerate() {
            if entry.phase == wanted && !entry.touches(&blocked) {
                return Some(index);
            }
            if waits_for(entry.phase) {
                blocked.extend(entry.shards.iter().cloned());
            }
        }
        None
    }

    fn next_prepare(&mut self) -> Option<Step> {
        if self.entries.iter().any(|entry| entry.phase == Phase::Preparing) {
            return None;
        }
        let index = self.entries.iter().position(|entry| entry.phase <= Phase::Built)?;
        let next = self.entries.get(index)?;
        let mut older = self.entries.iter().take(index);
        // Where an unrecorded one ends, the control plane learns with its commit. A batch that is recorded before that would
        // start elsewhere than at the frontier, and be refused: the shard would be read again, with all that was sent.
        if next.phase == Phase::Building || older.any(|entry| entry.unrecorded && entry.touches(&next.shards)) {
            return None;
        }
        self.begin(index, Phase::Preparing).map(Step::Prepare)
    }

    fn begin(&mut self, index: usize, phase: Phase) -> Option<BatchId> {
        let entry = self.entries.get_mut(index)?;
        entry.phase = phase;
        Some(entry.id)
    }

    /// The step was done. Returns false if the batch was dropped meanwhile.
    pub fn done(&mut self, step: Step) -> bool {
        if let Step::Replace(_) = step {
            // It ends with `replaced`.
            return false;
        }
        let (from, to) = match step {
            Step::Prepare(_) => (Phase::Preparing, Some(Phase::Prepared)),
            Step::Send(_) => (Phase::Sending, Some(Phase::Sent)),
            Step::Replace(_) | Step::Commit(_) => (Phase::Committing, None),
        };
        let id = step.batch();
        let Some(entry) = self.entry(id, from) else {
            return false;
        };
        match to {
            Some(phase) => entry.phase = phase,
            None => self.entries.retain(|entry| entry.id != id),
        }
        true
    }

    /// ClickHouse has refused a batch that was being sent, and nothing of it was ever applied. Returns false if it was
    /// dropped meanwhile.
    pub fn refused(&mut self, id: BatchId) -> bool {
        let Some(entry) = self.entry(id, Phase::Sending) else {
            return false;
        };
        entry.phase = Phase::Refused;
        true
    }

    /// A refused batch cannot be replaced yet. Returns false if it was dropped meanwhile.
    pub fn postponed(&mut self, id: BatchId) -> bool {
        let Some(entry) = self.entry(id, Phase::Replacing) else {
            return false;
        };
        entry.phase = Phase::Refused;
        true
    }

    /// A refused batch was replaced by these, which are recorded and in order. Returns false if it was dropped meanwhile.
    pub fn replaced(&mut self, id: BatchId, parts: Vec<(BatchId, BTreeSet<ShardId>)>) -> bool {
        let replacing = |entry: &Entry| entry.id == id && entry.phase == Phase::Replacing;
        let Some(index) = self.entries.iter().position(replacing) else {
            return false;
        };
        let replay = self.entries.remove(index).is_some_and(|entry| entry.replay);
        for (place, (id, shards)) in (index..).zip(parts) {
            let phase = Phase::Prepared;
            let entry = Entry {
                id,
                shards,
                phase,
                replay,
                unrecorded: false,
            };
            self.entries.insert(place, entry);
        }
        true
    }

    fn entry(&mut self, id: BatchId, phase: Phase) -> Option<&mut Entry> {
        self.entries
            .iter_mut()
            .find(|entry| entry.id == id && entry.phase == phase)
    }

    /// Shards were lost: drops their batches and says what else follows from it.
    pub fn drop_shards(&mut self, lost: BTreeSet<ShardId>) -> Dropped {
        let mut dropped = Dropped {
            lost,
            ..Dropped::default()
        };
        // Recorded batches tie their shards together, through any number of batches.
        loop {
            let before = dropped.lost.len();
            for entry in self.entries.iter().filter(|entry| entry.phase.may_be_recorded()) {
                if entry.touches(&dropped.lost) {
                    dropped.lost.extend(entry.shards.iter().cloned());
                }
            }
            if dropped.lost.len() == before {
                break;
            }
        }
        // Then, oldest first, all of these shards, and of the others what can no longer follow without a gap.
        self.entries.retain(|entry| {
            let keep = !entry.touches(&dropped.lost) && !entry.touches(&dropped.rewound);
            if !keep {
                dropped.batches.push(entry.id);
                dropped.rewound.extend(entry.shards.difference(&dropped.lost).cloned());
            }
            keep
        });
        dropped
    }
}

#[cfg(test)]
mod tests;

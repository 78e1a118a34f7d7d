//! What the lanes of a worker hold, for the reports to the control plane. Lanes write, the session reads.
//!
//! Invariant: [`Board::snapshot`] names a generation only if every lane has taken that generation up, so that a shard
//! that is missing beside it is really not held.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use millrace_common::{
    gap::DataGap,
    ids::{Epoch, Generation, PipeUid, SequenceNumber, ShardId},
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::fault::Fault;
use crate::source::ChildShard;

/// Counts assignments as this process received them. Unlike a generation it never falls, not even when a control plane
/// starts anew.
pub type Round = u64;

/// What a lane holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LaneStatus {
    /// Shards that it holds.
    pub shards: Vec<ShardStatus>,
    /// What keeps it from moving.
    pub fault: Option<Fault>,
}

/// One shard of a lane.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardStatus {
    /// The shard.
    pub shard: ShardId,
    /// Under which lease.
    pub epoch: Epoch,
    /// Last record read.
    pub read: Option<SequenceNumber>,
    /// How far behind the newest record the reader is.
    pub lag: Option<Duration>,
    /// Set when the shard was read to its end and all of it is committed.
    pub finished: Option<Vec<ChildShard>>,
    /// Payload bytes read per second.
    pub bytes_per_second: f64,
    /// All records that arrived before this are committed, as far as that is known.
    pub complete_until: Option<Timestamp>,
    /// Why the shard stands still, if that is because records may be gone.
    pub gap: Option<DataGap>,
    /// Messages of aggregates whose hash key is outside the shard's range, decoded under this lease.
    pub out_of_range: u64,
    /// How often its reader was started anew because it made no progress, under this lease.
    pub restarts: u64,
}

#[derive(Debug, Default)]
struct State {
    lanes: BTreeMap<PipeUid, (Round, LaneStatus)>,
    /// Generations that were handed to the lanes and by which round, oldest first.
    rounds: VecDeque<(Round, Generation)>,
}

/// What all lanes hold.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    urgent: Notify,
}

impl Board {
    /// No lanes.
    pub fn new() -> Self {
        Self::default()
    }

    /// A lane is about to start: it has taken up nothing yet.
    pub fn enter(&self, pipe: PipeUid) {
        self.0.state.lock().lanes.entry(pipe).or_default();
    }

    /// A lane has taken up this round, and holds this. `urgent` wakes the session.
    pub fn put(&self, pipe: PipeUid, round: Round, status: LaneStatus, urgent: bool) {
        self.0.state.lock().lanes.insert(pipe, (round, status));
        if urgent {
            self.0.urgent.notify_one();
        }
    }

    /// A lane holds nothing any more.
    pub fn leave(&self, pipe: PipeUid) {
        self.0.state.lock().lanes.remove(&pipe);
        self.0.urgent.notify_one();
    }

    /// Every lane was given this round.
    pub fn distributed(&self, round: Round, generation: Generation) {
        self.0.state.lock().rounds.push_back((round, generation));
        self.0.urgent.notify_one();
    }

    /// A new session begins: its generations have nothing to do with those before.
    pub fn forget_generations(&self) {
        self.0.state.lock().rounds.clear();
    }

    /// The generation that all lanes have taken up, and what they hold.
    pub fn snapshot(&self) -> (Generation, BTreeMap<PipeUid, LaneStatus>) {
        let mut state = self.0.state.lock();
        let everyone = state
            .lanes
            .values()
            .map(|(round, _)| *round)
            .min()
            .unwrap_or(Round::MAX);
        while state.rounds.get(1).is_some_and(|(round, _)| *round <= everyone) {
            state.rounds.pop_front();
        }
        let generation = match state.rounds.front() {
            Some((round, generation)) if *round <= everyone => *generation,
            _ => Generation::default(),
        };
        (
            generation,
            state
                .lanes
                .iter()
                .map(|(pipe, (_, status))| (*pipe, status.clone()))
                .collect(),
        )
    }

    /// Waits until something happened that the control plane should know at once. For one waiter.
    pub async fn urgent(&self) {
        self.0.urgent.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_counts_once_every_lane_has_it() {
        let (board, a, b) = (Board::new(), PipeUid::new(), PipeUid::new());
        assert_eq!(board.snapshot().0, Generation(0));
        board.enter(a);
        board.enter(b);
        board.distributed(1, Generation(70));
        assert_eq!(board.snapshot().0, Generation(0));
        board.put(a, 1, LaneStatus::default(), false);
        assert_eq!(board.snapshot().0, Generation(0));
        board.put(b, 1, LaneStatus::default(), false);
        assert_eq!(board.snapshot().0, Generation(70));
        board.distributed(2, Generation(71));
        board.put(a, 2, LaneStatus::default(), false);
        assert_eq!(board.snapshot().0, Generation(70));
        board.leave(b);
        assert_eq!(board.snapshot().0, Generation(71));
        // Another control plane counts from the beginning.
        board.forget_generations();
        assert_eq!(board.snapshot().0, Generation(0));
        board.distributed(3, Generation(2));
        assert_eq!(board.snapshot().0, Generation(0));
        board.put(a, 3, LaneStatus::default(), true);
        assert_eq!(board.snapshot().0, Generation(2));
    }
}

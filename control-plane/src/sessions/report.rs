//! What a worker says about itself, as checked data.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use millrace_common::{
    gap::DataGap,
    ids::{Epoch, Generation, PipeUid, SequenceNumber, ShardId, WorkerInstance},
};

use crate::scheduler::lineage::Child;

/// Opens a session.
#[derive(Debug, Clone, PartialEq)]
pub struct Hello {
    /// Who.
    pub worker: WorkerInstance,
    /// Oldest and newest protocol version that the worker speaks.
    pub protocol: (u32, u32),
    /// Version of the program, for people.
    pub program_version: String,
    /// What the worker can take.
    pub capacity: Capacity,
    /// What the worker holds at this moment.
    pub report: Report,
}

/// What a worker can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capacity {
    /// Processor cores.
    pub cores: u32,
    /// Bytes that the worker may hold between Kinesis and ClickHouse.
    pub memory_bytes: u64,
}

/// Everything that a worker runs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// Generation of the last set that the worker has taken up.
    pub generation: Generation,
    /// Its lanes.
    pub lanes: BTreeMap<PipeUid, LaneReport>,
}

/// One pipe on one worker.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LaneReport {
    /// Shards that the worker holds.
    pub shards: BTreeMap<ShardId, ShardReport>,
    /// What keeps the lane from moving.
    pub fault: Option<LaneFault>,
}

/// One shard on one worker.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardReport {
    /// Epoch that the worker holds it under.
    pub epoch: Epoch,
    /// Last sequence number read.
    pub read: Option<SequenceNumber>,
    /// How far behind the newest record the reader is.
    pub lag: Option<Duration>,
    /// Read to its end, and all of it committed.
    pub finished: bool,
    /// Children that Kinesis named at the end of the shard.
    pub children: Vec<Child>,
    /// Payload bytes per second read over the last seconds: finite and not negative.
    pub bytes_per_second: f64,
    /// All records that arrived before this are committed, as far as that is known.
    pub complete_until: Option<Timestamp>,
    /// Set while the shard stands still because records may be gone.
    pub gap: Option<DataGap>,
    /// Messages of aggregates whose hash key is outside the shard's range, decoded under this lease.
    pub out_of_range: u64,
    /// How often its reader was started anew because it made no progress, under this lease.
    pub restarts: u64,
}

/// What keeps a lane from moving.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneFault {
    /// Stable reason, of [`millrace_common::reason`] if the worker is of this release.
    pub reason: String,
    /// What is wrong and what to do about it, for people.
    pub message: String,
    /// A person has to act.
    pub permanent: bool,
}

impl Report {
    /// A shard, if it is held.
    pub fn shard(&self, pipe: PipeUid, shard: &ShardId) -> Option<&ShardReport> {
        self.lanes.get(&pipe)?.shards.get(shard)
    }

    /// Whether two reports differ in nothing that asks for action: only in progress.
    pub fn is_like(&self, other: &Report) -> bool {
        let shard = |(a, b): ((&ShardId, &ShardReport), (&ShardId, &ShardReport))| {
            a.0 == b.0 && a.1.epoch == b.1.epoch && a.1.finished == b.1.finished && a.1.children == b.1.children
        };
        let lane = |(a, b): ((&PipeUid, &LaneReport), (&PipeUid, &LaneReport))| {
            let (id, a, b) = (a.0 == b.0, a.1, b.1);
            id && a.fault == b.fault && a.shards.len() == b.shards.len() && a.shards.iter().zip(&b.shards).all(shard)
        };
        self.generation == other.generation
            && self.lanes.len() == other.lanes.len()
            && self.lanes.iter().zip(&other.lanes).all(lane)
    }
}

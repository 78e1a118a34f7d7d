//! What can be observed of pipes and workers: who runs what, as of the last round, with the latest reports.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use millrace_common::ids::{PipeUid, SequenceNumber, ShardId, WorkerId, WorkerInstance};

use crate::sessions::{Capacity, LaneFault, WorkerSeen};

/// What is observed of a pipe.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PipeRuntime {
    /// Its shards that are not finished.
    pub shards: BTreeMap<ShardId, ShardRuntime>,
    /// What keeps lanes of it from moving, by worker.
    pub faults: Vec<(WorkerId, LaneFault)>,
    /// What keeps it from being assigned at all, such as NO_WORKERS.
    pub blocked: Option<LaneFault>,
}

/// What is observed of a shard.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ShardRuntime {
    /// Who holds it.
    pub worker: Option<WorkerId>,
    /// The holder is asked to release it.
    pub releasing: bool,
    /// How far behind the newest record the reader is.
    pub lag: Option<Duration>,
    /// Last sequence number read.
    pub read: Option<SequenceNumber>,
    /// Payload bytes per second read.
    pub bytes_per_second: f64,
    /// Messages of aggregates whose hash key is outside the shard's range, since its worker has held it.
    pub out_of_range: u64,
    /// How often its reader was started anew because it made no progress, since its worker has held it.
    pub restarts: u64,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerInfo {
    /// The process.
    pub instance: WorkerInstance,
    /// What it can take.
    pub capacity: Capacity,
    /// Version of its program.
    pub program_version: String,
    /// When its last report arrived.
    pub last_report: Timestamp,
    /// Number of shards that it holds.
    pub shards: usize,
}

/// Who runs what, as published after a round.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct View {
    pub(super) pipes: BTreeMap<PipeUid, PipeView>,
    pub(super) workers: BTreeSet<WorkerInstance>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct PipeView {
    /// Shards that are not finished; with their holder and whether it is asked to release.
    pub(super) shards: BTreeMap<ShardId, Option<(WorkerInstance, bool)>>,
    pub(super) faults: Vec<(WorkerId, LaneFault)>,
    pub(super) blocked: Option<LaneFault>,
}

impl View {
    pub(super) fn runtime(&self, uid: PipeUid, seen: &[WorkerSeen]) -> PipeRuntime {
        let Some(pipe) = self.pipes.get(&uid) else {
            return PipeRuntime::default();
        };
        let shard = |(id, held): (&ShardId, &Option<(WorkerInstance, bool)>)| {
            let Some((holder, releasing)) = held else {
                return (id.clone(), ShardRuntime::default());
            };
            let report = seen
                .iter()
                .find(|worker| worker.instance == *holder)
                .and_then(|w| w.report.shard(uid, id));
            let runtime = ShardRuntime {
                worker: Some(holder.worker.clone()),
                releasing: *releasing,
                lag: report.and_then(|report| report.lag),
                read: report.and_then(|report| report.read.clone()),
                bytes_per_second: report.map_or(0.0, |report| report.bytes_per_second),
                out_of_range: report.map_or(0, |report| report.out_of_range),
                restarts: report.map_or(0, |report| report.restarts),
            };
            (id.clone(), runtime)
        };
        PipeRuntime {
            shards: pipe.shards.iter().map(shard).collect(),
            faults: pipe.faults.clone(),
            blocked: pipe.blocked.clone(),
        }
    }
}

/// What connected workers report of a pipe's trouble.
pub(super) fn faults(uid: PipeUid, seen: &[WorkerSeen]) -> Vec<(WorkerId, LaneFault)> {
    let fault = |worker: &WorkerSeen| {
        let fault = worker.report.lanes.get(&uid)?.fault.clone()?;
        Some((worker.instance.worker.clone(), fault))
    };
    seen.iter()
        .filter(|worker| worker.connected)
        .filter_map(fault)
        .collect()
}

pub(super) fn workers(seen: &[WorkerSeen], now: Timestamp) -> Vec<WorkerInfo> {
    let info = |worker: &WorkerSeen| WorkerInfo {
        instance: worker.instance.clone(),
        capacity: worker.capacity,
        program_version: worker.program_version.clone(),
        last_report: now.checked_sub(worker.received.elapsed()).unwrap_or(now),
        shards: worker.report.lanes.values().map(|lane| lane.shards.len()).sum(),
    };
    seen.iter()
        .filter(|worker| worker.connected && worker.leaving.is_none())
        .map(info)
        .collect()
}

//! What the leader observes, for the control planes that follow it: written by the leader, read by the others, through the
//! database.
//!
//! It is for people. Nothing is decided by it: that is what the store's own tables are for.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use millrace_common::ids::{PipeUid, SequenceNumber, ShardId, WorkerId, WorkerInstance};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until, timeout};

use super::{PipeRuntime, ShardRuntime, Shared, WorkerInfo, status};
use crate::{
    leader::Tenure,
    sessions::{Capacity, LaneFault},
    store::{Error, Store},
};

/// A subject is written at most this often: what is shown is as old as this, and a pipe costs one row per second.
const PACE: Duration = Duration::from_secs(1);
/// A database that takes longer is left alone until the next time.
const DEADLINE: Duration = Duration::from_secs(5);
/// Subject of the workers; the others are pipes.
const WORKERS: &str = "workers";
const PIPE_PREFIX: &str = "pipe/";

/// A pipe as it is stored.
#[derive(Serialize, Deserialize)]
struct Pipe {
    shards: BTreeMap<ShardId, Shard>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    faults: Vec<(WorkerId, Fault)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blocked: Option<Fault>,
}

#[derive(Serialize, Deserialize)]
struct Shard {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    worker: Option<WorkerId>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    releasing: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lag_millis: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    read: Option<SequenceNumber>,
    #[serde(default)]
    bytes_per_second: f64,
    #[serde(default, skip_serializing_if = "is_zero")]
    out_of_range: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    restarts: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[derive(Serialize, Deserialize)]
struct Fault {
    reason: String,
    message: String,
    permanent: bool,
}

#[derive(Serialize, Deserialize)]
struct Worker {
    instance: WorkerInstance,
    cores: u32,
    memory_bytes: u64,
    program_version: String,
    last_report_millis: i64,
    shards: usize,
}

/// What the leader has left to read.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Remote {
    pub(super) pipes: BTreeMap<PipeUid, PipeRuntime>,
    pub(super) workers: Vec<WorkerInfo>,
}

/// Writes what is new, for as long as the leadership lasts.
pub(super) async fn write(shared: &Shared, store: &Store, tenure: &Tenure) {
    let mut told: Option<BTreeMap<String, String>> = None;
    let mut next = Instant::now();
    while tenure.over().run_until_cancelled(sleep_until(next)).await.is_some() {
        next = Instant::now() + PACE;
        // Before the first round nothing is known, which is not the same as nothing being there.
        let Some(current) = current(shared) else { continue };
        let telling = async {
            let before = match told.take() {
                Some(told) => told,
                None => store.observed().await?.into_iter().collect(),
            };
            tell(store, &before, &current).await
        };
        match tenure.over().run_until_cancelled(timeout(DEADLINE, telling)).await {
            Some(Ok(Ok(()))) => told = Some(current),
            Some(Ok(Err(error))) => tracing::debug!(%error, "what is observed cannot be stored"),
            Some(Err(_)) => tracing::debug!("what is observed is not stored in time"),
            None => return,
        }
    }
}

fn current(shared: &Shared) -> Option<BTreeMap<String, String>> {
    let view = shared.published.read().clone()?;
    let seen = shared.registry.snapshot();
    let pipes = view.pipes.keys().map(|uid| {
        let text = serde_json::to_string(&Pipe::from(view.runtime(*uid, &seen)));
        (format!("{PIPE_PREFIX}{uid}"), text.unwrap_or_default())
    });
    let workers: Vec<Worker> = status::workers(&seen, shared.clock.now())
        .into_iter()
        .map(Worker::from)
        .collect();
    let workers = (WORKERS.to_owned(), serde_json::to_string(&workers).unwrap_or_default());
    Some(pipes.chain([workers]).collect())
}

async fn tell(
    store: &Store,
    before: &BTreeMap<String, String>,
    current: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let new = |(subject, text): &(&String, &String)| before.get(*subject) != Some(text);
    let new: Vec<_> = current
        .iter()
        .filter(new)
        .map(|(subject, text)| (subject.clone(), text.clone()))
        .collect();
    let gone: Vec<_> = before
        .keys()
        .filter(|subject| !current.contains_key(*subject))
        .cloned()
        .collect();
    if new.is_empty() && gone.is_empty() {
        return Ok(());
    }
    store.put_observed(&new, &gone).await
}

/// Reads what the leader has left. While nobody leads, how fast and how far behind is not known.
pub(super) async fn read(store: &Store, is_led: bool) -> Result<Remote, Error> {
    let mut remote = Remote::default();
    for (subject, text) in store.observed().await? {
        // A release that writes more than this one reads does no harm, and one that writes something else is not shown.
        if subject == WORKERS {
            let workers: Vec<Worker> = serde_json::from_str(&text).unwrap_or_default();
            remote.workers = workers.into_iter().map(WorkerInfo::from).collect();
        } else if let Some(uid) = subject.strip_prefix(PIPE_PREFIX).and_then(|uid| uid.parse().ok())
            && let Ok(pipe) = serde_json::from_str::<Pipe>(&text)
        {
            remote.pipes.insert(uid, pipe.into_runtime(is_led));
        }
    }
    Ok(remote)
}

impl From<PipeRuntime> for Pipe {
    fn from(runtime: PipeRuntime) -> Self {
        let shard = |shard: ShardRuntime| Shard {
            worker: shard.worker,
            releasing: shard.releasing,
            lag_millis: shard.lag.map(|lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX)),
            read: shard.read,
            bytes_per_second: shard.bytes_per_second.round(),
            out_of_range: shard.out_of_range,
            restarts: shard.restarts,
        };
        Self {
            shards: runtime.shards.into_iter().map(|(id, it)| (id, shard(it))).collect(),
            faults: runtime
                .faults
                .into_iter()
                .map(|(worker, fault)| (worker, fault.into()))
                .collect(),
            blocked: runtime.blocked.map(Fault::from),
        }
    }
}

impl Pipe {
    fn into_runtime(self, is_led: bool) -> PipeRuntime {
        let shard = |shard: Shard| ShardRuntime {
            worker: shard.worker,
            releasing: shard.releasing,
            lag: shard.lag_millis.filter(|_| is_led).map(Duration::from_millis),
            read: shard.read,
            bytes_per_second: if is_led { shard.bytes_per_second } else { 0.0 },
            out_of_range: shard.out_of_range,
            restarts: shard.restarts,
        };
        PipeRuntime {
            shards: self.shards.into_iter().map(|(id, it)| (id, shard(it))).collect(),
            faults: self
                .faults
                .into_iter()
                .map(|(worker, fault)| (worker, fault.into()))
                .collect(),
            blocked: self.blocked.map(LaneFault::from),
        }
    }
}

impl From<LaneFault> for Fault {
    fn from(fault: LaneFault) -> Self {
        let LaneFault {
            reason,
            message,
            permanent,
        } = fault;
        Self {
            reason,
            message,
            permanent,
        }
    }
}

impl From<Fault> for LaneFault {
    fn from(fault: Fault) -> Self {
        let Fault {
            reason,
            message,
            permanent,
        } = fault;
        Self {
            reason,
            message,
            permanent,
        }
    }
}

impl From<WorkerInfo> for Worker {
    fn from(info: WorkerInfo) -> Self {
        Self {
            instance: info.instance,
            cores: info.capacity.cores,
            memory_bytes: info.capacity.memory_bytes,
            program_version: info.program_version,
            last_report_millis: info.last_report.as_millisecond(),
            shards: info.shards,
        }
    }
}

impl From<Worker> for WorkerInfo {
    fn from(worker: Worker) -> Self {
        Self {
            instance: worker.instance,
            capacity: Capacity {
                cores: worker.cores,
                memory_bytes: worker.memory_bytes,
            },
            program_version: worker.program_version,
            last_report: Timestamp::from_millisecond(worker.last_report_millis).unwrap_or(Timestamp::UNIX_EPOCH),
            shards: worker.shards,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_comes_back_and_rates_only_while_somebody_leads() {
        let fault = LaneFault {
            reason: "DESTINATION_OVERLOADED".into(),
            message: "wait".into(),
            permanent: false,
        };
        let shard = ShardRuntime {
            worker: Some("w1".parse().unwrap()),
            releasing: true,
            lag: Some(Duration::from_millis(1_500)),
            read: Some(
                "49590338271490256608559692538361571095921575989136588898"
                    .parse()
                    .unwrap(),
            ),
            bytes_per_second: 1_000.0,
            out_of_range: 3,
            restarts: 2,
        };
        let runtime = PipeRuntime {
            shards: [
                ("shardId-000000000000".parse().unwrap(), shard),
                ("shardId-000000000001".parse().unwrap(), ShardRuntime::default()),
            ]
            .into(),
            faults: vec![("w1".parse().unwrap(), fault.clone())],
            blocked: Some(fault),
        };
        let text = serde_json::to_string(&Pipe::from(runtime.clone())).unwrap();
        let back = |is_led| serde_json::from_str::<Pipe>(&text).unwrap().into_runtime(is_led);
        assert_eq!(back(true), runtime);
        let unled = back(false);
        assert!(
            unled
                .shards
                .values()
                .all(|s| s.lag.is_none() && s.bytes_per_second == 0.0)
        );
        assert_eq!(unled.faults, runtime.faults);
        // A field that a later release adds is passed over.
        let later = text.replacen('{', "{\"new\":1,", 1);
        assert!(serde_json::from_str::<Pipe>(&later).is_ok());
    }
}

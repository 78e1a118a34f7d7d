//! One pipe as the coordinator knows it: as last read from the store, with its leases and the specification that workers
//! run it with. No I/O here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use millrace_common::{
    batch::OpenBatch,
    ids::{BatchId, Epoch, PipeUid, Revision, ShardId, WorkerId, WorkerInstance},
    pipe::DesiredState,
    position::Position,
    reason,
};
use millrace_proto::worker::v1;
use tokio::time::Instant;

use super::{spec::Problem, status};
use crate::{
    scheduler::{
        lease::{Ended, Lease, Stage},
        lineage::Lineage,
        plan::{LeaseView, PipeView, ShardView},
    },
    sessions::{LaneFault, convert},
    store::{PipeSnapshot, ShardPhase, StoredFault, StoredPipe, StoredShard},
};

/// What a shard is taken to carry before anybody has measured it, in bytes per second.
const DEFAULT_RATE: f64 = 256.0 * 1024.0;
/// What a shard costs however little it carries: polling, and its part of every batch.
const BASE_WEIGHT: u64 = 64 * 1024;
/// First and longest rest of a shard that its holder has dropped. Doubled each time.
const FIRST_REST: Duration = Duration::from_millis(50);
const LONGEST_REST: Duration = Duration::from_secs(30);
/// A holder that dropped a shard after this long had it in good order before.
const GOOD_RUN: Duration = Duration::from_secs(60);

/// One pipe.
pub(super) struct PipeState {
    pub(super) pipe: StoredPipe,
    pub(super) stored: BTreeMap<ShardId, StoredShard>,
    pub(super) open_batches: Vec<OpenBatch>,
    pub(super) shards: BTreeMap<ShardId, ShardState>,
    pub(super) lineage: Lineage,
    /// The current specification, once it could be read; of the revision in it.
    pub(super) spec: Option<Arc<v1::PipeSpec>>,
    /// Older ones, for replays.
    pub(super) replay_specs: BTreeMap<Revision, Arc<v1::PipeSpec>>,
    /// Why the current one cannot be given to workers.
    pub(super) problem: Option<String>,
    /// To be read again before the next plan.
    pub(super) stale: bool,
}

/// One shard.
pub(super) struct ShardState {
    pub(super) lease: Option<Lease>,
    /// Set in each round: the lease has ended.
    pub(super) ended: Option<Ended>,
    /// What the holder is to be told, read after the grant.
    pub(super) content: Option<Content>,
    pub(super) home: Option<WorkerId>,
    granted: Option<Instant>,
    pub(super) rate: f64,
    drops: u32,
    pub(super) rest_until: Option<Instant>,
}

/// What the holder of a shard is to be told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) start: Position,
    pub(super) complete_until: Option<Timestamp>,
    /// Open batches that cover the shard, by id and revision. Until the holder has reported the shard; then it knows better.
    pub(super) batches: Vec<(BatchId, Revision)>,
}

impl Default for ShardState {
    fn default() -> Self {
        Self {
            lease: None,
            ended: None,
            content: None,
            home: None,
            granted: None,
            rate: DEFAULT_RATE,
            drops: 0,
            rest_until: None,
        }
    }
}

impl PipeState {
    pub(super) fn new(pipe: StoredPipe) -> Self {
        Self {
            pipe,
            stored: BTreeMap::new(),
            open_batches: Vec::new(),
            shards: BTreeMap::new(),
            lineage: Lineage::default(),
            spec: None,
            replay_specs: BTreeMap::new(),
            problem: None,
            stale: false,
        }
    }

    pub(super) fn merge(&mut self, snapshot: PipeSnapshot, now: Instant, ttl: Duration) {
        let PipeSnapshot {
            pipe,
            shards,
            open_batches,
        } = snapshot;
        self.pipe = pipe;
        self.lineage = Lineage::default();
        self.stored.clear();
        let mut batches: BTreeMap<&ShardId, Vec<(BatchId, Revision)>> = BTreeMap::new();
        for batch in &open_batches {
            for slice in &batch.slices {
                batches
                    .entry(&slice.shard)
                    .or_default()
                    .push((batch.id, batch.revision));
            }
        }
        for stored in shards {
            self.lineage
                .insert(stored.id.clone(), stored.parents.clone(), stored.state);
            let shard = self.shards.entry(stored.id.clone()).or_default();
            shard.merge(&stored, batches.get(&stored.id).map_or(&[], Vec::as_slice), now, ttl);
            self.stored.insert(stored.id.clone(), stored);
        }
        self.shards.retain(|id, _| self.stored.contains_key(id));
        self.open_batches = open_batches;
        self.stale = false;
    }

    /// Whether it should and can run.
    pub(super) fn is_runnable(&self) -> bool {
        let halted = self.pipe.fault.as_ref().is_some_and(StoredFault::halts);
        self.pipe.desired == DesiredState::Running && !halted && self.spec.is_some()
    }

    pub(super) fn picture(&self, now: Instant, steady: bool) -> PipeView {
        let unfinished = self
            .stored
            .values()
            .filter(|stored| stored.state != ShardPhase::Finished);
        let view = |stored: &StoredShard| {
            let shard = &self.shards[&stored.id];
            let lease = shard.lease.as_ref().map(|lease| LeaseView {
                worker: lease.holder.worker.clone(),
                held: lease.stage == Stage::Held,
                releasing: lease.releasing.is_some(),
                ended: shard.ended,
            });
            let view = ShardView {
                epoch: lease_epoch(shard, stored),
                readable: self.lineage.is_readable(&stored.id),
                lease,
                home: shard.home.clone(),
                weight: shard.weight(),
                resting: shard.rest_until.is_some_and(|until| until > now),
            };
            (stored.id.clone(), view)
        };
        // Ties matter for what is free. While a shard is held its batches come and go, and it is not looked after them.
        let free = |id: &ShardId| self.shards.get(id).is_some_and(|shard| shard.lease.is_none());
        let ties = self
            .open_batches
            .iter()
            .map(|b| b.slices.iter().map(|s| s.shard.clone()).collect::<Vec<_>>());
        PipeView {
            runnable: self.is_runnable(),
            replicas: self.pipe.spec.replicas,
            protocol: self.protocol_required(),
            steady,
            shards: unfinished.map(view).collect(),
            ties: ties.filter(|tie| tie.iter().any(free)).collect(),
        }
    }

    /// The oldest protocol that a worker has to speak for what it would be given of the pipe.
    pub(super) fn protocol_required(&self) -> u32 {
        let specs = self.spec.iter().chain(self.replay_specs.values());
        specs
            .map(|spec| convert::protocol_required(spec))
            .max()
            .unwrap_or_default()
    }

    /// `newest` is the newest protocol that a worker speaks, if there is a worker.
    pub(super) fn view(&self, faults: Vec<(WorkerId, LaneFault)>, newest: Option<u32>) -> status::PipeView {
        let unfinished = self
            .stored
            .values()
            .filter(|stored| stored.state != ShardPhase::Finished);
        let held = |stored: &StoredShard| {
            let lease = self.shards[&stored.id].lease.as_ref();
            (
                stored.id.clone(),
                lease.map(|lease| (lease.holder.clone(), lease.releasing.is_some())),
            )
        };
        let fault = |reason: &str, message: String| LaneFault {
            reason: reason.into(),
            message,
            permanent: false,
        };
        let waits = || {
            self.stored
                .keys()
                .any(|id| self.lineage.is_readable(id) && self.shards[id].lease.is_none())
        };
        let blocked = if self.pipe.desired == DesiredState::Stopped {
            None
        } else if let Some(problem) = &self.problem {
            Some(fault(reason::INTERNAL, problem.clone()))
        } else if newest.is_none() && waits() {
            Some(fault(reason::NO_WORKERS, "no worker is connected: start one".into()))
        } else if newest < Some(self.protocol_required()) && waits() {
            let message = "the workers that are connected are of an older release and would pass over a part of what this pipe asks \
                           for: upgrade them";
            Some(fault(reason::WORKERS_TOO_OLD, message.into()))
        } else {
            None
        };
        status::PipeView {
            shards: unfinished.map(held).collect(),
            faults,
            blocked,
        }
    }

    /// Notes why workers cannot be told how to run the pipe; logged once.
    pub(super) fn note_problem(&mut self, uid: PipeUid, problem: &Problem) {
        let text = Some(problem.to_string());
        if self.problem != text {
            tracing::error!(pipe = %uid, error = problem as &dyn std::error::Error, "the pipe cannot be given to workers");
            self.problem = text;
        }
    }

    /// Notes a grant. What the holder is to be told is read after this.
    pub(super) fn granted(&mut self, shard: &ShardId, to: &WorkerInstance, epoch: Epoch, now: Instant, ttl: Duration) {
        let shard = self.shards.entry(shard.clone()).or_default();
        shard.lease = Some(Lease::granted(to.clone(), epoch, now, ttl));
        shard.home = Some(to.worker.clone());
        shard.granted = Some(now);
        (shard.content, shard.ended, shard.rest_until) = (None, None, None);
        self.stale = true;
    }

    /// Notes that a lease was taken back.
    pub(super) fn released(&mut self, id: &ShardId, epoch: Epoch, now: Instant) {
        let Some(shard) = self.shards.get_mut(id) else { return };
        let Some(lease) = shard.lease.take_if(|lease| lease.epoch == epoch) else {
            return;
        };
        let never_held = shard.ended == Some(Ended::Expired) && lease.stage != Stage::Held;
        if shard.ended == Some(Ended::Dropped) || never_held {
            if shard.granted.is_none_or(|at| now.duration_since(at) >= GOOD_RUN) {
                shard.drops = 0;
            }
            // The first time at once: an epoch that was lost to a race is the usual reason.
            if shard.drops > 0 {
                let rest = FIRST_REST
                    .saturating_mul(1 << (shard.drops - 1).min(16))
                    .min(LONGEST_REST);
                shard.rest_until = Some(now + rest);
            }
            shard.drops = shard.drops.saturating_add(1);
        }
        (shard.content, shard.ended) = (None, None);
        self.stale = true;
    }

    /// Revisions of open batches that holders have to be told of, other than the current one.
    pub(super) fn replay_revisions(&self) -> BTreeSet<Revision> {
        let batches = self
            .shards
            .values()
            .filter_map(|shard| shard.content.as_ref())
            .flat_map(|c| &c.batches);
        batches
            .map(|(_, revision)| *revision)
            .filter(|revision| *revision != self.pipe.revision)
            .collect()
    }
}

/// The epoch of what is granted: as the lease has it, which is newer than a picture that is stale.
fn lease_epoch(shard: &ShardState, stored: &StoredShard) -> Epoch {
    shard.lease.as_ref().map_or(stored.epoch, |lease| lease.epoch)
}

impl ShardState {
    fn merge(&mut self, stored: &StoredShard, batches: &[(BatchId, Revision)], now: Instant, ttl: Duration) {
        let known = |lease: &Lease, owner: &WorkerInstance| lease.epoch == stored.epoch && lease.holder == *owner;
        match (&stored.owner, &self.lease) {
            (Some(owner), Some(lease)) if known(lease, owner) => {}
            (Some(owner), _) => {
                self.lease = Some(Lease::found(owner.clone(), stored.epoch, now, ttl));
                self.granted = None;
                self.content = None;
                self.home.get_or_insert_with(|| owner.worker.clone());
            }
            (None, _) => {
                self.lease = None;
                self.content = None;
            }
        }
        if self.lease.is_some() && self.content.is_none() {
            self.content = Some(Content {
                start: stored.frontier.clone(),
                complete_until: stored.complete_until,
                batches: batches.to_vec(),
            });
        }
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rates are finite and not negative"
    )]
    fn weight(&self) -> u64 {
        BASE_WEIGHT.saturating_add(self.rate as u64)
    }
}

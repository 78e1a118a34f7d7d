//! One round: read what is new, observe, plan, do, and read again what was changed by that, until there is nothing to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
    time::Duration,
};

use millrace_common::{
    fail_point,
    ids::{Epoch, PipeUid, ShardId, WorkerId, WorkerInstance},
};
use tokio::time::{Instant, timeout};

use super::{
    Nudges, Options, Shared,
    gaps::Gaps,
    pipe::PipeState,
    sets::{self, Offered},
    spec,
    world::World,
};
use crate::{
    events::{NewEvent, Severity, kind},
    leader::Tenure,
    scheduler::plan::{Action, Snapshot, plan},
    sessions::WorkerSeen,
    store::{Damaged, Error, ShardEnd, Snapshots, Store},
};

/// Passes of one round. Each does all it can see; three are enough for a takeover. What is left comes with the next round.
const MAX_PASSES: usize = 8;
/// A store that does not answer for this long is as good as down. Reports are noted meanwhile, so no lease suffers. Giving up
/// a write that would have ended, such as one that finishes a thousand shards on a busy machine, would only begin it anew.
const STORE_DEADLINE: Duration = Duration::from_secs(20);

/// The reconciler with all it knows.
pub(super) struct Reconciler {
    store: Store,
    options: Options,
    shared: Arc<Shared>,
    tenure: Tenure,
    world: World,
    offered: Offered,
    balance: Balance,
    gaps: Gaps,
    refreshed: Option<Instant>,
    observed: Option<Instant>,
    /// The store does not answer; logged when it changes.
    down: bool,
    /// The store did not answer in this round: it is left alone until the next one.
    failed: bool,
}

/// When shards were last moved for balance, and for which workers and pipes.
#[derive(Default)]
struct Balance {
    of: Option<Topology>,
    at: Option<Instant>,
}

/// What balance depends on, other than rates.
#[derive(PartialEq, Eq)]
struct Topology {
    workers: BTreeMap<WorkerInstance, u32>,
    pipes: BTreeMap<PipeUid, (u32, usize)>,
}

impl Reconciler {
    pub(super) fn new(store: Store, options: Options, shared: Arc<Shared>, tenure: Tenure) -> Self {
        Self {
            store,
            options,
            shared,
            tenure,
            world: World::default(),
            offered: Offered::new(),
            balance: Balance::default(),
            gaps: Gaps::default(),
            refreshed: None,
            observed: None,
            down: false,
            failed: false,
        }
    }

    /// Forgets everything that can be read or observed again.
    pub(super) fn start_over(&mut self) {
        *self = Self::new(
            self.store.clone(),
            self.options.clone(),
            self.shared.clone(),
            self.tenure.clone(),
        );
    }

    /// One round. Says when the next one is due at the latest, if something ends before the period does.
    pub(super) async fn round(&mut self) -> Option<Instant> {
        self.note_nudges();
        self.failed = false;
        for _ in 0..MAX_PASSES {
            self.read().await;
            // A process that was frozen finds all leases run out: what it believes is no reason to do anything.
            if !self.world.loaded || self.tenure.is_over() {
                return None;
            }
            let now = Instant::now();
            let seen = by_worker(self.shared.registry.snapshot());
            let since_last = self
                .observed
                .replace(now)
                .map_or(Duration::ZERO, |at| now.duration_since(at));
            let finished = self.world.observe(&seen, now, since_last, &self.options);
            Box::pin(self.note_complete(&seen, &finished, now)).await;
            let mut changed = Box::pin(self.finish(finished)).await;
            changed |= Box::pin(self.look_at_gaps(&seen, now)).await;
            let picture = self.picture(&seen, now);
            changed |= self.execute(plan(&picture), now).await;
            if picture.rebalance && self.world.is_settled() {
                self.balance = Balance {
                    of: Some(topology(&picture)),
                    at: Some(now),
                };
            }
            if !changed || self.failed {
                break;
            }
        }
        if self.tenure.is_over() {
            return None;
        }
        self.publish();
        self.world.next_deadline(Instant::now(), &self.options)
    }

    fn note_nudges(&mut self) {
        let Nudges { all, pipes } = std::mem::take(&mut *self.shared.nudges.lock());
        let due = self.refreshed.is_none_or(|at| at.elapsed() >= self.options.refresh);
        if all || due {
            self.refreshed = None;
        }
        for uid in pipes {
            match self.world.pipes.get_mut(&uid) {
                Some(pipe) => pipe.stale = true,
                // A new one.
                None => self.refreshed = None,
            }
        }
    }

    /// Reads what is stale. After a failure the rest stays as it was, and stale.
    async fn read(&mut self) {
        let now = Instant::now();
        if self.refreshed.is_none() {
            if let Some(all) = self.ask(self.store.clone().snapshot_all()).await {
                self.merge_all(all, now).await;
            }
        } else {
            let stale = |(uid, pipe): (&PipeUid, &PipeState)| pipe.stale.then_some(*uid);
            let stale: Vec<PipeUid> = self.world.pipes.iter().filter_map(stale).collect();
            for uid in stale {
                let store = self.store.clone();
                let read = async {
                    match store.snapshot(uid).await {
                        Err(error @ Error::Corrupt { .. }) => Ok(Err(error)),
                        read => read.map(Ok),
                    }
                };
                match self.ask(read).await {
                    Some(Ok(Some(snapshot))) => self.world.merge(snapshot, now, self.options.lease_ttl),
                    Some(Ok(None)) => drop(self.world.pipes.remove(&uid)),
                    Some(Err(error)) => {
                        let Some(pipe) = self.world.pipes.get_mut(&uid) else {
                            continue;
                        };
                        // It is read again with all the others.
                        pipe.stale = false;
                        let name = pipe.pipe.name.clone();
                        self.note_damage(Damaged { uid, name, error }).await;
                    }
                    None if self.failed => return,
                    None => {}
                }
            }
        }
        self.read_specs().await;
    }

    async fn merge_all(&mut self, all: Snapshots, now: Instant) {
        let Snapshots { pipes, damaged } = all;
        let sound = pipes.iter().map(|snapshot| snapshot.pipe.uid);
        let uids: BTreeSet<PipeUid> = sound.chain(damaged.iter().map(|damaged| damaged.uid)).collect();
        self.world.pipes.retain(|uid, _| uids.contains(uid));
        self.world.damaged.retain(|uid, _| uids.contains(uid));
        for snapshot in pipes {
            self.world.merge(snapshot, now, self.options.lease_ttl);
        }
        for damaged in damaged {
            self.note_damage(damaged).await;
        }
        self.world.loaded = true;
        self.refreshed = Some(now);
    }

    /// Tells of a pipe that cannot be read, once; all others go on.
    async fn note_damage(&mut self, damaged: Damaged) {
        let message = damaged.to_string();
        if self.world.damaged.get(&damaged.uid) == Some(&message) {
            return;
        }
        tracing::error!(pipe = %damaged.name, error = &damaged.error as &dyn std::error::Error, "a pipe cannot be read");
        let event = NewEvent::new(kind::PIPE_DAMAGED, Severity::Error, message.clone());
        // What cannot be told now is told with the next look at all pipes.
        if self
            .ask(self.store.clone().append_event(damaged.uid, &event))
            .await
            .is_some()
        {
            self.world.damaged.insert(damaged.uid, message);
        }
    }

    /// Reads specifications that are missing or not of the current revision.
    async fn read_specs(&mut self) {
        for (uid, pipe) in &mut self.world.pipes {
            if pipe
                .spec
                .as_ref()
                .is_none_or(|spec| spec.revision != pipe.pipe.revision.0)
            {
                match bounded(spec::current(&self.store, &pipe.pipe)).await {
                    Ok(spec) => {
                        pipe.spec = Some(spec);
                        pipe.replay_specs.clear();
                        pipe.problem = None;
                    }
                    Err(spec::Problem::Store(_) | spec::Problem::Slow) => self.failed = true,
                    Err(problem) => pipe.note_problem(*uid, &problem),
                }
            }
            let wanted = pipe.replay_revisions();
            pipe.replay_specs.retain(|revision, _| wanted.contains(revision));
            for revision in wanted {
                if self.failed || pipe.replay_specs.contains_key(&revision) {
                    continue;
                }
                match bounded(spec::older(&self.store, &pipe.pipe, revision)).await {
                    Ok(spec) => drop(pipe.replay_specs.insert(revision, spec)),
                    Err(spec::Problem::Store(_) | spec::Problem::Slow) => self.failed = true,
                    Err(problem) => pipe.note_problem(*uid, &problem),
                }
            }
            if self.failed {
                return;
            }
        }
    }

    /// Whether shards may be moved for balance: when workers or pipes are others than last time, or that is long ago.
    fn picture(&self, seen: &BTreeMap<WorkerId, WorkerSeen>, now: Instant) -> Snapshot {
        let mut picture = self.world.picture(seen, now, &self.options, false);
        let long_ago = self
            .balance
            .at
            .is_none_or(|at| now.duration_since(at) >= self.options.rebalance_interval);
        picture.rebalance = long_ago || self.balance.of.as_ref() != Some(&topology(&picture));
        picture
    }

    /// Marks shards as finished and stores their children, all of a pipe at once. Whether anything was done.
    async fn finish(&mut self, finished: BTreeMap<PipeUid, Vec<ShardEnd>>) -> bool {
        let mut changed = false;
        let damaged = |uid: &PipeUid| self.world.damaged.contains_key(uid);
        let finished: Vec<_> = finished.into_iter().filter(|(uid, _)| !damaged(uid)).collect();
        for (pipe, ends) in finished {
            fail_point!("control.finish.before");
            let done = self
                .ask_or_refuse(Box::pin(self.store.clone().finish_shards(pipe, &ends)))
                .await;
            fail_point!("control.finish.after");
            self.set_stale(pipe);
            for (end, done) in ends.iter().zip(done.into_iter().flatten()) {
                let (shard, children) = (&end.shard, end.children.len());
                match done {
                    Ok(opened) => {
                        tracing::info!(%pipe, %shard, children, opened = opened.len(), "shard finished");
                        changed = true;
                    }
                    // Someone else has the shard, or the worker is wrong about it.
                    Err(reason) => tracing::info!(%pipe, %shard, reason = reason.code(), "not finished: {reason}"),
                }
            }
        }
        changed
    }

    /// Does what was planned. Whether anything was done.
    async fn execute(&mut self, actions: Vec<Action>, now: Instant) -> bool {
        let mut changed = false;
        for action in actions {
            changed |= match action {
                Action::Expire { pipe, shards } => self.expire(pipe, &shards, now).await,
                Action::Revoke { pipe, shard, target } => self.revoke(pipe, &shard, target, now),
                Action::Grant { pipe, to, shards } => self.grant(pipe, &to, &shards, now).await,
            };
        }
        changed
    }

    async fn expire(&mut self, uid: PipeUid, shards: &[(ShardId, Epoch)], now: Instant) -> bool {
        fail_point!("control.release.before");
        if self
            .ask_or_refuse(self.store.clone().release(uid, shards))
            .await
            .is_none()
        {
            return false;
        }
        fail_point!("control.release.after");
        let Some(pipe) = self.world.pipes.get_mut(&uid) else {
            return false;
        };
        for (id, epoch) in shards {
            if let Some((lease, ended)) = pipe.shards.get(id).and_then(|s| s.lease.as_ref().zip(s.ended)) {
                tracing::info!(pipe = %uid, shard = %id, holder = %lease.holder, epoch = epoch.0, ?ended, "lease ended");
            }
            pipe.released(id, *epoch, now);
        }
        true
    }

    fn revoke(&mut self, uid: PipeUid, id: &ShardId, target: Option<WorkerId>, now: Instant) -> bool {
        let Some(shard) = self.world.pipes.get_mut(&uid).and_then(|pipe| pipe.shards.get_mut(id)) else {
            return false;
        };
        let Some(lease) = &mut shard.lease else { return false };
        tracing::info!(pipe = %uid, shard = %id, holder = %lease.holder, target = target.as_ref().map(WorkerId::as_str), "asking for release");
        lease.ask_back(now);
        if target.is_some() {
            shard.home = target;
        }
        true
    }

    async fn grant(&mut self, uid: PipeUid, to: &WorkerInstance, shards: &[(ShardId, Epoch)], now: Instant) -> bool {
        fail_point!("control.grant.before");
        let granted = self.ask_or_refuse(self.store.clone().grant(uid, shards, to)).await;
        fail_point!("control.grant.after");
        let ttl = self.options.lease_ttl;
        let Some(pipe) = self.world.pipes.get_mut(&uid) else {
            return false;
        };
        // Someone else may have been faster, or the answer may have been lost: then the store knows.
        pipe.stale = true;
        let Some(granted) = granted else { return false };
        tracing::info!(pipe = %uid, worker = %to, shards = granted.len(), "granted");
        for (id, epoch) in granted {
            pipe.granted(&id, to, epoch, now, ttl);
        }
        true
    }

    /// Offers sets, publishes what can be observed, and forgets workers that are gone.
    fn publish(&mut self) {
        let seen = self.shared.registry.snapshot();
        if !self.failed {
            sets::offer(&mut self.world, &seen, &mut self.offered, &self.shared.registry);
        }
        let view = self.world.view(&seen);
        if self.shared.published.read().as_deref() != Some(&view) {
            *self.shared.published.write() = Some(Arc::new(view));
            self.shared.changed.send_modify(|version| *version += 1);
        }
        for worker in seen.iter().filter(|worker| !worker.connected) {
            let over = worker.departed || worker.received.elapsed() >= self.options.lease_ttl;
            if over && !self.world.leases().any(|lease| lease.holder == worker.instance) {
                tracing::info!(worker = %worker.instance, departed = worker.departed, "worker gone");
                self.shared.registry.forget(&worker.instance);
            }
        }
    }

    /// Tells of gaps that workers stand before, and goes on behind them where a pipe is to. Whether anything was done.
    async fn look_at_gaps(&mut self, seen: &BTreeMap<WorkerId, WorkerSeen>, now: Instant) -> bool {
        let mut changed = false;
        for found in self.gaps.due(&self.world, seen, now) {
            let (uid, event) = (found.pipe, found.event());
            let done = if found.resume {
                self.ask_or_refuse(Box::pin(self.store.clone().resume(uid, &found.gap, &event)))
                    .await
            } else {
                self.ask_or_refuse(self.store.clone().append_event(uid, &event)).await
            };
            if done.is_some() && !found.resume {
                self.gaps.told(&found);
            }
            if done == Some(true) {
                tracing::warn!(pipe = %uid, shard = %found.gap.shard, resumed = found.resume, "data gap: {}", event.message);
            }
            if done == Some(true) && found.resume {
                self.set_stale(uid);
                changed = true;
            }
        }
        changed
    }

    /// Stores up to when shards are complete: now and then, and before they are finished.
    async fn note_complete(
        &mut self,
        seen: &BTreeMap<WorkerId, WorkerSeen>,
        finished: &BTreeMap<PipeUid, Vec<ShardEnd>>,
        now: Instant,
    ) {
        for (uid, shards) in self.gaps.advanced(&self.world, seen, finished, now) {
            let noted = self.ask_or_refuse(self.store.clone().note_complete(uid, &shards)).await;
            let Some(pipe) = self.world.pipes.get_mut(&uid).filter(|_| noted.is_some()) else {
                continue;
            };
            for (id, _, time) in shards {
                if let Some(stored) = pipe.stored.get_mut(&id) {
                    stored.complete_until = stored.complete_until.max(Some(time));
                }
            }
        }
    }

    fn set_stale(&mut self, uid: PipeUid) {
        if let Some(pipe) = self.world.pipes.get_mut(&uid) {
            pipe.stale = true;
        }
    }

    /// Asks the store. A refusal is an answer, after which the pipe is read again.
    async fn ask_or_refuse<T>(&mut self, question: impl Future<Output = Result<T, Error>>) -> Option<T> {
        if self.failed {
            return None;
        }
        self.ask(question).await
    }

    /// Asks the store; `None` if it did not do it. Notes whether it answers at all.
    async fn ask<T>(&mut self, question: impl Future<Output = Result<T, Error>>) -> Option<T> {
        let answer = timeout(STORE_DEADLINE, question).await;
        let down = match &answer {
            Err(_) => Some("no answer in time".to_owned()),
            Ok(Err(Error::Unavailable(error))) => Some(error.to_string()),
            Ok(_) => None,
        };
        match &down {
            Some(error) if !self.down => {
                tracing::warn!(
                    error,
                    "the store does not answer: everything stays as it is until it does"
                );
            }
            None if self.down => tracing::info!("the store answers again"),
            _ => {}
        }
        self.down = down.is_some();
        self.failed |= self.down;
        match answer {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(Error::Refused { reason })) => {
                tracing::info!(reason = reason.code(), "the store refused: {reason}");
                None
            }
            Ok(Err(error @ Error::Fenced { .. })) => {
                tracing::info!(%error, "nothing is changed any more");
                self.failed = true;
                None
            }
            Ok(Err(Error::PipeNotFound { uid })) => {
                self.world.pipes.remove(&uid);
                None
            }
            Ok(Err(error)) => {
                if down.is_none() {
                    tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
                }
                None
            }
            Err(_) => None,
        }
    }
}

async fn bounded<T>(question: impl Future<Output = Result<T, spec::Problem>>) -> Result<T, spec::Problem> {
    timeout(STORE_DEADLINE, question)
        .await
        .unwrap_or(Err(spec::Problem::Slow))
}

fn by_worker(seen: Vec<WorkerSeen>) -> BTreeMap<WorkerId, WorkerSeen> {
    seen.into_iter()
        .map(|worker| (worker.instance.worker.clone(), worker))
        .collect()
}

fn topology(picture: &Snapshot) -> Topology {
    use crate::scheduler::placement::Mode;
    let active = picture.workers.values().filter(|worker| worker.mode == Mode::Active);
    let runnable = picture.pipes.iter().filter(|(_, pipe)| pipe.runnable);
    let shards = |pipe: &crate::scheduler::plan::PipeView| pipe.shards.values().filter(|shard| shard.readable).count();
    Topology {
        workers: active
            .map(|worker| (worker.instance.clone(), worker.capacity))
            .collect(),
        pipes: runnable
            .map(|(uid, pipe)| (*uid, (pipe.replicas, shards(pipe))))
            .collect(),
    }
}

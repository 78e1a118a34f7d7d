//! Batches of a lane: cutting, building, and the steps to their commit.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::future::BoxFuture;
use millrace_common::{
    batch::{OpenBatch, Terms},
    gap::DataGap,
    ids::{BatchId, Revision, ShardId},
    position::Position,
    reason,
};
use tokio::{task::AbortHandle, time::Instant};
use tracing::Instrument as _;

use super::{
    Lane,
    build::{FORMAT, Job, Outcome, build},
    fault::{Fault, Part},
    replay::{Means, Replayed, replay},
    split::{Split, split},
};
use crate::commit::{
    Built, Cause, Claim, Delivery, Prepared, Refused, Sent,
    tracker::{Admission, Step},
};

/// Built batches in flight that were cut here: one being sent, one being prepared or waiting. More would hold memory, and
/// entries of ClickHouse's deduplication window, without making anything faster. Those that are being built come on top.
const MAX_BUILT_BATCHES: usize = 2;
/// Batches of a lane that are built at a time, however many cores there are: each holds a block, and the control plane
/// takes them one after the other.
const MAX_BUILDS: usize = 8;

/// How far a batch is.
#[derive(Debug)]
enum Stage {
    /// A task has it.
    Away(Option<AbortHandle>),
    Built(Box<Built>),
    Prepared(Prepared),
    Refused(Box<Refused>),
    Sent(Sent),
}

/// A batch of this lane that is not committed.
#[derive(Debug)]
pub(super) struct Open {
    pub revision: Revision,
    /// Where its slices start.
    pub froms: BTreeMap<ShardId, Position>,
    stage: Stage,
}

impl Open {
    fn building(revision: Revision, froms: BTreeMap<ShardId, Position>) -> Self {
        Self {
            revision,
            froms,
            stage: Stage::Away(None),
        }
    }

    /// A batch of an earlier owner, or one that was put in the place of another.
    pub(super) fn replay(batch: &OpenBatch) -> Self {
        let froms = batch
            .slices
            .iter()
            .map(|slice| (slice.shard.clone(), slice.from_exclusive.clone()))
            .collect();
        Self::building(batch.revision, froms)
    }

    /// Stops its task.
    pub(super) fn abort(&self) {
        if let Stage::Away(Some(task)) = &self.stage {
            task.abort();
        }
    }
}

/// A step has ended.
#[derive(Debug)]
pub(super) struct StepDone {
    step: Step,
    ending: Ending,
}

#[derive(Debug)]
enum Ending {
    Prepared(Result<Prepared, String>),
    Sent(Delivery),
    Replaced(Result<Split, String>),
    Postponed(Box<Refused>),
    Committed(Result<(), String>),
}

impl Lane {
    /// Whether a batch could be built if there were records for it.
    pub(super) fn can_build(&self) -> bool {
        self.halted.is_none()
            && self.build.len() < MAX_BUILDS
            && self.tracker.cut_here() <= MAX_BUILT_BATCHES + self.build.len()
            && self.recipe().is_some()
    }

    /// Whether it is known where the next batch of this shard begins.
    pub(super) fn is_free(&self, shard: &ShardId) -> bool {
        self.shards.contains_key(shard) && !self.tracker.is_building(shard)
    }

    /// Cuts a batch if it is time. False: there is none to cut.
    pub(super) fn start_build(&mut self, now: Instant) -> bool {
        let queued = self.queue.queued(|shard| self.is_free(shard));
        if queued.records == 0 || !self.can_build() {
            return false;
        }
        let (Some(rules), Some(recipe)) = (self.rules.clone(), self.recipe().map(Arc::clone)) else {
            return false;
        };
        // Beside another one, only a whole batch of other shards is begun, and only on a core that nobody needs.
        let core = if self.build.is_empty() {
            if !rules.is_due(&queued, now) && !self.somebody_waits() && !self.is_short_of_memory() {
                return false;
            }
            None
        } else {
            let spare = Arc::clone(&self.context.spare_cores);
            match spare.try_acquire_owned() {
                Ok(core) if rules.is_plenty(&queued) => Some(core),
                _ => return false,
            }
        };
        let id = BatchId::new();
        let (shards, tracker) = (&self.shards, &self.tracker);
        let runs = self.queue.take(
            |shard| {
                let known = shards.get(shard).filter(|_| !tracker.is_building(shard));
                known.map(|shard| shard.next_from.clone())
            },
            |taken| rules.is_plenty(taken),
        );
        let froms: BTreeMap<_, _> = runs.iter().map(|run| (run.shard.clone(), run.from.clone())).collect();
        self.tracker.building(id, froms.keys().cloned().collect());
        self.open.insert(id, Open::building(recipe.revision(), froms));
        let job = Job {
            id,
            pipe: self.pipe,
            recipe,
            runs,
            rules: Some(rules),
            bench: self.benches.pop(),
            budget: Arc::clone(&self.budget),
            terms: Terms::of_format(FORMAT),
        };
        self.build.spawn_blocking(move || {
            let _core = core;
            build(job)
        });
        true
    }

    /// Whether records of a shard that is ending or leaving wait in the queue: then nothing is gained by more of them.
    fn somebody_waits(&self) -> bool {
        let waits = |shard: &super::shard::Shard| shard.releasing.is_some() || shard.ended.is_some();
        self.shards
            .iter()
            .any(|(id, shard)| waits(shard) && self.queue.holds(id))
    }

    /// Whether reading stands still for want of memory, and nothing is under way that would free some: a batch may be
    /// larger than what there is, and would then wait for its time.
    fn is_short_of_memory(&self) -> bool {
        self.tracker.is_empty() && self.budget.is_short()
    }

    pub(super) fn on_built(&mut self, outcome: Option<Outcome>) {
        let Some(Outcome {
            id,
            recipe,
            built,
            left,
            mut bench,
            encoded_bytes,
            out_of_range,
        }) = outcome
        else {
            return;
        };
        // Worth keeping only while there is more to do at once, and while nobody needs the memory.
        if self.budget.is_short() || (left.is_empty() && self.queue.is_empty()) {
            bench.release();
            self.benches.clear();
        }
        self.benches.push(bench);
        if !self.open.contains_key(&id) {
            // Dropped meanwhile: all of its shards are lost or will be read again, so what it has left over is of no use.
            return;
        }
        self.queue.put_back(left);
        let Some(built) = built else {
            self.tracker.nothing_built(id);
            self.open.remove(&id);
            return;
        };
        let counts = built.batch.counts;
        if let Some(rules) = &mut self.rules {
            rules.learn(counts.bytes, encoded_bytes);
        }
        tracing::debug!(
            batch = %id, rows = counts.rows, rejected = counts.rejected_records, records = counts.records,
            bytes = counts.bytes, encoded_bytes, slices = built.batch.slices.len(), "built"
        );
        for slice in &built.batch.slices {
            if let Some(shard) = self.shards.get_mut(&slice.shard) {
                shard.next_from = slice.end();
            }
        }
        for (id, count) in out_of_range {
            if let Some(shard) = self.shards.get_mut(&id) {
                if shard.out_of_range == 0 {
                    tracing::warn!(
                        shard = %id, messages = count, policy = ?recipe.spec.decoding.on_out_of_range,
                        "aggregates hold messages of other shards"
                    );
                }
                shard.out_of_range += count;
            }
        }
        let shards: BTreeSet<_> = built.batch.slices.iter().map(|slice| slice.shard.clone()).collect();
        let claim = self.claim(&built.batch);
        let (stage, admission) = match Prepared::at_least_once(claim, built, recipe.spec.delivery) {
            Ok(prepared) => (Stage::Prepared(prepared), Admission::Unrecorded),
            Err(built) => (Stage::Built(Box::new(built)), Admission::Prepare),
        };
        self.tracker.built(id, shards.clone(), admission);
        if let Some(open) = self.open.get_mut(&id) {
            open.froms.retain(|shard, _| shards.contains(shard));
            open.stage = stage;
        }
    }

    fn claim(&self, batch: &OpenBatch) -> Claim {
        let epoch = |slice: &millrace_common::position::Slice| {
            Some((slice.shard.clone(), self.shards.get(&slice.shard)?.epoch))
        };
        Claim {
            pipe: self.pipe,
            batch: batch.clone(),
            epochs: batch.slices.iter().filter_map(epoch).collect(),
        }
    }

    /// Starts a step that the tracker allows.
    pub(super) fn begin(&mut self, step: Step) {
        let id = step.batch();
        let Some(open) = self.open.get_mut(&id) else { return };
        let (revision, patience) = (open.revision, self.context.settings.probe_interval);
        let committer = self.committer.clone();
        let work: BoxFuture<'static, Ending> = match (step, std::mem::replace(&mut open.stage, Stage::Away(None))) {
            (Step::Prepare(_), Stage::Built(built)) => {
                let claim = self.claim(&built.batch);
                Box::pin(async move { Ending::Prepared(committer.prepare(claim, *built).await) })
            }
            (Step::Send(_), Stage::Prepared(prepared)) => {
                Box::pin(async move { Ending::Sent(committer.send(prepared).await) })
            }
            (Step::Replace(_), Stage::Refused(refused)) => {
                let (pipe, faults, means) = (self.pipe, self.faults.clone(), self.means());
                let recipe = match refused.cause {
                    Cause::Table => self.recipe().filter(|recipe| recipe.revision() > revision),
                    Cause::Rows | Cause::Partitions => self.recipes.get(&revision),
                };
                match recipe.map(Arc::clone) {
                    Some(recipe) => Box::pin(async move {
                        Ending::Replaced(split(pipe, recipe, *refused, committer, faults, means).await)
                    }),
                    // Its revision cannot be run just now, which is a fault of its own.
                    None => Box::pin(async move {
                        tokio::time::sleep(patience).await;
                        Ending::Postponed(refused)
                    }),
                }
            }
            (Step::Commit(_), Stage::Sent(sent)) => {
                Box::pin(async move { Ending::Committed(committer.commit(sent).await) })
            }
            // The tracker and the stages are moved together, so this is a defect; the supervisor begins anew.
            (step, stage) => panic!("{step:?} while the batch is {stage:?}"),
        };
        let task = self.steps.spawn(
            async move {
                StepDone {
                    step,
                    ending: work.await,
                }
            }
            .in_current_span(),
        );
        if let Some(open) = self.open.get_mut(&id) {
            open.stage = Stage::Away(Some(task));
        }
    }

    pub(super) fn on_step(&mut self, done: Option<StepDone>) {
        let Some(StepDone { step, ending }) = done else { return };
        let id = step.batch();
        if !self.open.contains_key(&id) {
            return;
        }
        let stage = match ending {
            Ending::Prepared(Ok(prepared)) => Stage::Prepared(prepared),
            Ending::Sent(Delivery::Sent(sent)) => Stage::Sent(sent),
            Ending::Sent(Delivery::Refused(refused)) => {
                self.tracker.refused(id);
                if let Some(open) = self.open.get_mut(&id) {
                    open.stage = Stage::Refused(Box::new(refused));
                }
                return;
            }
            Ending::Postponed(refused) => {
                self.tracker.postponed(id);
                if let Some(open) = self.open.get_mut(&id) {
                    open.stage = Stage::Refused(refused);
                }
                return;
            }
            Ending::Replaced(Ok(Split::Parts(parts))) => return self.replaced(id, parts),
            Ending::Replaced(Ok(Split::Gone(shard, gap))) => return self.unreadable(id, &shard, gap),
            Ending::Committed(Ok(())) => {
                self.tracker.done(step);
                return self.committed(id);
            }
            Ending::Prepared(Err(why)) | Ending::Replaced(Err(why)) | Ending::Committed(Err(why)) => {
                return self.refused(id, &why);
            }
        };
        self.tracker.done(step);
        if let Some(open) = self.open.get_mut(&id) {
            open.stage = stage;
        }
    }

    /// Other batches stand where a refused one stood.
    fn replaced(&mut self, id: BatchId, parts: Vec<Prepared>) {
        if self.open.remove(&id).is_none() {
            return;
        }
        let mut tracked = Vec::with_capacity(parts.len());
        for prepared in parts {
            let batch = prepared.batch();
            let (part, open) = (batch.id, Open::replay(batch));
            let shards: BTreeSet<ShardId> = open.froms.keys().cloned().collect();
            for shard in &shards {
                if let Some(shard) = self.shards.get_mut(shard)
                    && shard.replays.contains(&id)
                {
                    shard.replays.insert(part);
                }
            }
            self.open.insert(
                part,
                Open {
                    stage: Stage::Prepared(prepared),
                    ..open
                },
            );
            tracked.push((part, shards));
        }
        for shard in self.shards.values_mut() {
            shard.replays.remove(&id);
        }
        self.tracker.replaced(id, tracked);
    }

    fn committed(&mut self, id: BatchId) {
        let open = self.open.remove(&id);
        let shards = open.as_ref().map(|open| super::assign::list(open.froms.keys()));
        tracing::debug!(batch = %id, shards, "committed");
        for shard in self.shards.values_mut() {
            shard.replays.remove(&id);
        }
        self.show_soon(true);
    }

    fn refused(&mut self, id: BatchId, why: &str) {
        let shards = self
            .open
            .get(&id)
            .map(|open| open.froms.keys().cloned().collect())
            .unwrap_or_default();
        self.lose(shards, why);
    }

    /// Rebuilds the oldest batch of an earlier owner.
    pub(super) fn start_replay(&mut self) {
        if self.halted.is_some() || !self.replay.is_empty() {
            return;
        }
        // What cannot be rebuilt keeps its shards waiting, and through batches of several shards others; not the rest.
        let mut blocked = BTreeSet::new();
        let next = self.replays.iter().find(|batch| {
            let shards = || batch.slices.iter().map(|slice| &slice.shard);
            let possible = !self.unreadable.contains(&batch.id)
                && self.recipes.contains_key(&batch.revision)
                && self.knows_format(batch);
            let free = possible && shards().all(|shard| !blocked.contains(shard));
            if !free {
                blocked.extend(shards());
            }
            free
        });
        let Some(batch) = next else { return };
        let Some(recipe) = self.recipes.get(&batch.revision).map(Arc::clone) else {
            return;
        };
        self.replay_of = Some(batch.id);
        let (pipe, faults, batch) = (self.pipe, self.faults.clone(), batch.clone());
        let means = self.means();
        self.replay
            .spawn(replay(pipe, recipe, batch, faults, means).in_current_span());
    }

    /// Whether the batch can be built again by this release. If not, its shards wait: nothing of it is lost, and a worker that
    /// knows how can still finish it.
    fn knows_format(&self, batch: &OpenBatch) -> bool {
        let format = batch.terms.format;
        if format != FORMAT {
            let message = format!(
                "batch {} was prepared by a release of Millrace whose batches (format {format}) this worker cannot build again \
                 (format {FORMAT}): run a worker of that release until the batch is committed, or stop the pipe and give the \
                 batch up with ResetPosition and abandon_open_batches",
                batch.id
            );
            let fault = Fault::permanent(reason::BATCH_FORMAT_UNKNOWN, message);
            self.faults.set(Part::Replay(batch.id), fault);
        }
        format == FORMAT
    }

    pub(super) fn on_replayed(&mut self, replayed: Option<Replayed>) {
        self.replay_of = None;
        let Some(Replayed { id, built, gap }) = replayed else {
            return;
        };
        // It may have been dropped while the answer was on its way.
        let Some(at) = self.replays.iter().position(|batch| batch.id == id) else {
            return;
        };
        if let Some((shard, gap)) = gap {
            return self.unreadable(id, &shard, gap);
        }
        let Some(batch) = self.replays.remove(at) else { return };
        let prepared = match built {
            Some(built) => Prepared::replayed(self.claim(&batch), built).map_err(|diverged| diverged.to_string()),
            None => Err(format!("the slices of prepared batch {id} hold no record any more")),
        };
        match prepared {
            Ok(prepared) => {
                self.tracker.rebuilt(id);
                if let Some(open) = self.open.get_mut(&id) {
                    open.stage = Stage::Prepared(prepared);
                }
            }
            Err(message) => self.halt(id, Fault::permanent(reason::BATCH_DIVERGED, message)),
        }
    }

    /// The records of a batch are gone: until the control plane gives it up, or a person does, nothing of its shards may
    /// move.
    fn unreadable(&mut self, id: BatchId, shard: &ShardId, gap: DataGap) {
        if let Some(shard) = self.shards.get_mut(shard) {
            shard.gap = Some(gap);
        }
        self.unreadable.insert(id);
        self.show_soon(true);
    }

    /// What is needed to read records again.
    fn means(&self) -> Means {
        let known =
            |(id, shard): (&ShardId, &super::shard::Shard)| Some((id.clone(), shard.progress.complete_until()?));
        Means {
            clock: self.context.clock.clone(),
            complete_until: self.shards.iter().filter_map(known).collect(),
            budget: Arc::clone(&self.replay_budget),
        }
    }

    /// Stands still until a person has looked, and the batch is given up.
    fn halt(&mut self, batch: BatchId, fault: Fault) {
        tracing::error!(reason = fault.reason, detail = fault.message, "lane halted");
        self.halted = Some(batch);
        self.faults.set(Part::Lane, fault);
        self.stop_readers();
    }
}

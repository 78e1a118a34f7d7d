//! Taking up what the control plane wants, and giving back what it wants back.
//!
//! A shard leaves a lane in one of two ways. *Released*: its reader stops, what was read is cut, sent and committed, and
//! then it is gone. *Lost*: its lease is not what the lane believed, so all that is held of it is dropped, together with
//! every shard that shares a recorded batch with it; nothing is lost by that, because the next owner reads from the
//! frontier. A lost lease is burned: only a higher epoch brings the shard back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use millrace_common::{
    batch::OpenBatch,
    fail_point,
    ids::{BatchId, ShardId},
    position::Position,
};
use tokio::time::Instant;

use super::{
    Lane, Order,
    fault::Part,
    recipe::Recipe,
    shard::Shard,
    spec::{Assignment, Grant},
    work::Open,
};
use crate::{
    batch::cut::Rules,
    commit::{Known, Target},
};

impl Lane {
    /// Makes the lane what the order says.
    pub(super) async fn take_up(&mut self, order: Order) {
        let assignment = Arc::clone(&order.assignment);
        let moved_source = self.take_up_specs(&assignment).await;
        if moved_source {
            self.stop_readers();
        }
        self.order = Some(order);
        self.take_up_shards(&assignment);
        self.show_soon(true);
    }

    /// Makes the recipes that are new or have other credentials. Returns whether shards are to be read from elsewhere.
    async fn take_up_specs(&mut self, assignment: &Assignment) -> bool {
        let before = self.recipe().map(|recipe| recipe.spec.source.fingerprint);
        for (revision, spec) in &assignment.specs {
            let part = Part::Revision(*revision);
            let made = match spec {
                Ok(spec) if self.recipes.get(revision).is_some_and(|recipe| recipe.is_of(spec)) => continue,
                Ok(spec) => {
                    Recipe::make(
                        Arc::clone(spec),
                        self.context.settings.limits,
                        &self.context.settings.aws,
                    )
                    .await
                }
                Err(fault) => Err(fault.clone()),
            };
            match made {
                Ok(recipe) => {
                    let target = Target {
                        sink: recipe.sink.clone(),
                        table: recipe.spec.destination.table.clone(),
                        error_table: recipe.spec.destination.error_table.clone(),
                        known: Known::default(),
                    };
                    self.targets.set(*revision, Arc::new(target));
                    self.recipes.insert(*revision, Arc::new(recipe));
                    self.faults.clear(&part);
                }
                Err(fault) => {
                    self.recipes.remove(revision);
                    self.faults.set(part, fault);
                }
            }
        }
        self.forget_revisions(assignment);
        if let Some(recipe) = self.recipes.get(&assignment.current) {
            let limits = recipe.spec.limits;
            self.rules.get_or_insert_with(|| Rules::new(limits)).set_limits(limits);
        }
        let after = self
            .recipes
            .get(&assignment.current)
            .map(|recipe| recipe.spec.source.fingerprint);
        before != after
    }

    fn forget_revisions(&mut self, assignment: &Assignment) {
        let used: BTreeSet<_> = self.open.values().map(|open| open.revision).collect();
        let wanted = |revision| assignment.specs.contains_key(&revision) || used.contains(&revision);
        self.recipes.retain(|revision, _| wanted(*revision));
        self.faults
            .retain(|part| !matches!(part, Part::Revision(revision) if !wanted(*revision)));
        self.targets.retain(wanted);
    }

    fn take_up_shards(&mut self, assignment: &Assignment) {
        let now = Instant::now();
        let moved = |(id, shard): (&ShardId, &Shard)| {
            assignment
                .shards
                .get(id)
                .is_some_and(|grant| grant.epoch != shard.epoch)
                .then(|| id.clone())
        };
        let moved: BTreeSet<_> = self.shards.iter().filter_map(moved).collect();
        if !moved.is_empty() {
            self.lose(moved, "they were granted anew");
        }
        for (id, shard) in &mut self.shards {
            let wanted = assignment.shards.contains_key(id);
            if !wanted && shard.releasing.is_none() {
                tracing::info!(shard = %id, "releasing");
                shard.releasing = Some(now);
                // What it has read and not handed over yet is for the next owner.
                shard.reading = super::shard::Reading::Not;
                self.pages.remove(id);
            } else if wanted {
                shard.releasing = None;
            }
        }
        let fresh: BTreeMap<_, _> = assignment
            .shards
            .iter()
            .filter(|(id, grant)| self.is_fresh(id, grant))
            .collect();
        for (id, grant) in &fresh {
            tracing::info!(shard = %id, epoch = grant.epoch.0, start = %grant.start, "holding");
            self.shards.insert((*id).clone(), Shard::new(grant, now));
        }
        for batch in &assignment.open_batches {
            self.take_up_open_batch(batch, |id| fresh.contains_key(id));
        }
    }

    fn is_fresh(&self, id: &ShardId, grant: &Grant) -> bool {
        let mut burned = self.burned.lock();
        if burned.get(id).is_some_and(|epoch| *epoch >= grant.epoch) {
            return false;
        }
        burned.remove(id);
        !self.shards.contains_key(id)
    }

    /// A batch of an earlier owner comes with its shards. One whose shards are held already is one of this lane, as
    /// the control plane saw it some time ago.
    fn take_up_open_batch(&mut self, batch: &OpenBatch, fresh: impl Fn(&ShardId) -> bool) {
        if batch.slices.is_empty() || !batch.slices.iter().all(|slice| fresh(&slice.shard)) {
            return;
        }
        tracing::info!(batch = %batch.id, revision = batch.revision.0, slices = batch.slices.len(), rows = batch.counts.rows, "replaying");
        for slice in &batch.slices {
            if let Some(shard) = self.shards.get_mut(&slice.shard) {
                shard.replays.insert(batch.id);
            }
        }
        self.tracker
            .rebuilding(batch.id, batch.slices.iter().map(|slice| slice.shard.clone()).collect());
        self.open.insert(batch.id, Open::replay(batch));
        self.replays.push_back(batch.clone());
    }

    /// Drops shards whose lease is not what it was, and what hangs together with them.
    pub(super) fn lose(&mut self, lost: BTreeSet<ShardId>, why: &str) {
        let dropped = self.tracker.drop_shards(lost);
        tracing::warn!(
            shards = list(&dropped.lost),
            batches = list(&dropped.batches),
            rewound = list(&dropped.rewound),
            why,
            "shards lost"
        );
        let mut rewinds: BTreeMap<ShardId, Position> = BTreeMap::new();
        for id in dropped.batches {
            // The oldest batch of a shard comes first: from its start on all is read again.
            for (shard, from) in self.drop_batch(id) {
                rewinds.entry(shard).or_insert(from);
            }
        }
        for id in dropped.lost {
            self.queue.remove(&id);
            self.pages.remove(&id);
            self.faults.clear(&Self::shard_fault(&id));
            if let Some(shard) = self.shards.remove(&id) {
                self.burned.lock().insert(id, shard.epoch);
            }
        }
        for id in dropped.rewound {
            self.queue.remove(&id);
            self.pages.remove(&id);
            if let (Some(shard), Some(to)) = (self.shards.get_mut(&id), rewinds.remove(&id)) {
                shard.rewind(to);
            }
        }
        self.show_soon(true);
    }

    /// Stops working on a batch. Returns where its slices start.
    fn drop_batch(&mut self, id: BatchId) -> BTreeMap<ShardId, Position> {
        self.replays.retain(|batch| batch.id != id);
        if self.replay_of == Some(id) {
            self.replay.abort_all();
        }
        self.unreadable.remove(&id);
        if self.halted.take_if(|diverged| *diverged == id).is_some() {
            self.faults.clear(&Part::Lane);
        }
        self.faults.clear(&Part::Replay(id));
        let Some(open) = self.open.remove(&id) else {
            return BTreeMap::new();
        };
        open.abort();
        self.faults.clear(&Part::Batch(id));
        open.froms
    }

    /// Shards that could not be drained in time go as they are: their recorded batches stay open for the next owner. In a
    /// lane that waits for a person that is known at once.
    pub(super) fn give_up_slow_releases(&mut self, now: Instant) {
        let patience = if self.halted.is_some() {
            Duration::ZERO
        } else {
            self.context.settings.release_patience
        };
        let slow = |(id, shard): (&ShardId, &Shard)| {
            shard
                .releasing
                .is_some_and(|since| since + patience <= now)
                .then(|| id.clone())
        };
        let slow: BTreeSet<_> = self.shards.iter().filter_map(slow).collect();
        if !slow.is_empty() {
            self.lose(slow, "they could not be drained in time");
        }
    }

    /// Shards that are to be given back and have nothing left are gone.
    pub(super) fn finish_releases(&mut self) {
        let drained = |(id, shard): (&ShardId, &Shard)| {
            (shard.releasing.is_some() && !self.queue.holds(id) && !self.tracker.holds(id)).then(|| id.clone())
        };
        let drained: Vec<_> = self.shards.iter().filter_map(drained).collect();
        for id in drained {
            fail_point!("worker.release.drained");
            tracing::info!(shard = %id, "released");
            self.shards.remove(&id);
            self.faults.clear(&Self::shard_fault(&id));
            self.show_soon(true);
        }
    }
}

/// For logs.
pub(super) fn list<T: ToString>(ids: impl IntoIterator<Item = T>) -> String {
    ids.into_iter().map(|id| id.to_string()).collect::<Vec<_>>().join(" ")
}

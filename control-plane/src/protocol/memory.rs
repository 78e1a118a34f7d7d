//! A database in memory that carries out what the protocol decides: what the store does with SQL, done with maps. It is
//! what models run, random and exhaustive ones; nothing in production uses it.
//!
//! Besides what the store holds it keeps the whole past, so that [`invariants`](super::invariants) can look at it.

use std::collections::{BTreeMap, BTreeSet};

use millrace_common::{
    batch::OpenBatch,
    ids::{BatchId, Epoch, ShardId, WorkerInstance},
    position::Slice,
};

use super::{
    Advance, Commit, Known, Ledger, NewShard, OpenSlice, Prepare, Refusal, Replace, Replaced, Shard, ShardPhase,
};

/// Added to ordinals that have moved already; no history here is so long.
const MOVED: u64 = 1 << 32;

/// Shards with the epochs that somebody claims, believes or was given.
pub type Claims = Vec<(ShardId, Epoch)>;

/// What the store would hold of one pipe, and what has happened to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Memory {
    /// Shards and open slices.
    pub ledger: Ledger,
    /// Open batches.
    pub batches: BTreeMap<BatchId, OpenBatch>,
    /// All batches that were ever committed; the store forgets old ones.
    pub committed: BTreeSet<BatchId>,
    /// Rows, as the pipe counts them.
    pub rows: u64,
    /// All slices that were ever accepted, in their order. Of a batch that was replaced there are those of its parts.
    pub accepted: BTreeMap<ShardId, Vec<(BatchId, Slice)>>,
    /// All batches that were ever accepted.
    pub contents: BTreeMap<BatchId, OpenBatch>,
}

impl Memory {
    /// Adds what a listing of the stream shows. Whether something changed.
    pub fn add(&mut self, listing: &[NewShard]) -> bool {
        // The listing was begun after all that is stored was.
        let judged = self.ledger.shards.keys().cloned().collect();
        let added = super::add(&self.ledger.shards, listing, &judged);
        let changed = added != super::Added::default();
        self.insert_shards(added.new);
        for (id, parents) in added.reparented {
            if let Some(row) = self.ledger.shards.get_mut(&id) {
                row.parents = parents;
            }
        }
        self.open_shards(added.opened);
        changed
    }

    fn insert_shards(&mut self, new: Vec<(NewShard, ShardPhase)>) {
        for (new, phase) in new {
            let row = Shard {
                parents: new.parents,
                phase,
                epoch: Epoch(0),
                owner: None,
                checkpoint: new.start,
                committed: 0,
            };
            self.ledger.shards.insert(new.id, row);
        }
    }

    fn open_shards(&mut self, opened: Vec<ShardId>) {
        for id in opened {
            if let Some(row) = self.ledger.shards.get_mut(&id) {
                row.phase = ShardPhase::Open;
            }
        }
    }

    /// Prepares a batch. Whether something changed.
    ///
    /// # Errors
    /// Those of [`prepare`](super::prepare).
    pub fn prepare(&mut self, worker: &WorkerInstance, batch: &OpenBatch, claims: &Claims) -> Result<bool, Refusal> {
        let same = self.batches.get(&batch.id);
        let committed = self.committed.contains(&batch.id);
        match super::prepare(&self.ledger, same, committed, worker, batch, claims)? {
            Prepare::Already => Ok(false),
            Prepare::Store { ordinals } => {
                self.store(batch, &ordinals);
                Ok(true)
            }
        }
    }

    /// Stores a batch, whatever it is.
    pub fn store(&mut self, batch: &OpenBatch, ordinals: &[u64]) {
        for (slice, ordinal) in batch.slices.iter().zip(ordinals) {
            let open = OpenSlice {
                ordinal: *ordinal,
                batch: batch.id,
                slice: slice.clone(),
            };
            self.ledger.slices.entry(slice.shard.clone()).or_default().push(open);
        }
        self.batches.insert(batch.id, batch.clone());
        self.accept(batch);
    }

    fn accept(&mut self, batch: &OpenBatch) {
        for slice in &batch.slices {
            let accepted = self.accepted.entry(slice.shard.clone()).or_default();
            accepted.push((batch.id, slice.clone()));
        }
        self.contents.insert(batch.id, batch.clone());
    }

    /// Replaces an open batch. Whether something changed.
    ///
    /// # Errors
    /// Those of [`replace`](super::replace).
    pub fn replace(
        &mut self,
        worker: &WorkerInstance,
        id: BatchId,
        parts: &[OpenBatch],
        claims: &Claims,
    ) -> Result<bool, Refusal> {
        let known = Known {
            old: self.batches.get(&id),
            open: &self.batches,
            committed: &self.committed,
        };
        match super::replace(&self.ledger, known, worker, id, parts, claims)? {
            Replace::Already => Ok(false),
            Replace::Store(replaced) => {
                self.put_in_place(id, parts, &replaced);
                Ok(true)
            }
        }
    }

    /// Puts parts in the place of an open batch, whatever they are.
    pub fn put_in_place(&mut self, id: BatchId, parts: &[OpenBatch], replaced: &Replaced) {
        for queue in self.ledger.slices.values_mut() {
            queue.retain(|open| open.batch != id);
        }
        for (shard, from, to) in &replaced.moved {
            let queue = self.ledger.slices.get_mut(shard);
            let slice = queue.and_then(|queue| queue.iter_mut().find(|open| open.ordinal == *from));
            if let Some(slice) = slice {
                // Marked, so that no slice is taken for one that has moved; unmarked below.
                slice.ordinal = *to + MOVED;
            }
        }
        for queue in self.ledger.slices.values_mut() {
            for slice in queue.iter_mut().filter(|slice| slice.ordinal > MOVED) {
                slice.ordinal -= MOVED;
            }
        }
        let mut places: BTreeMap<ShardId, usize> = BTreeMap::new();
        for (shard, accepted) in &mut self.accepted {
            if let Some(place) = accepted.iter().position(|(batch, _)| *batch == id) {
                accepted.remove(place);
                places.insert(shard.clone(), place);
            }
        }
        for (part, ordinals) in parts.iter().zip(&replaced.ordinals) {
            for (slice, ordinal) in part.slices.iter().zip(ordinals) {
                let open = OpenSlice {
                    ordinal: *ordinal,
                    batch: part.id,
                    slice: slice.clone(),
                };
                self.ledger.slices.entry(slice.shard.clone()).or_default().push(open);
                let accepted = self.accepted.entry(slice.shard.clone()).or_default();
                let place = places.entry(slice.shard.clone()).or_insert(accepted.len());
                accepted.insert(*place, (part.id, slice.clone()));
                *place += 1;
            }
            self.batches.insert(part.id, part.clone());
            self.contents.insert(part.id, part.clone());
        }
        for queue in self.ledger.slices.values_mut() {
            queue.sort_by_key(|open| open.ordinal);
        }
        self.batches.remove(&id);
    }

    /// Commits a batch. Whether something changed.
    ///
    /// # Errors
    /// Those of [`commit`](super::commit).
    pub fn commit(&mut self, worker: &WorkerInstance, id: BatchId, claims: &Claims) -> Result<bool, Refusal> {
        let open = self.batches.get(&id);
        let decision = super::commit(&self.ledger, open, self.committed.contains(&id), worker, id, claims)?;
        let rows = open.map_or(0, |open| open.counts.rows);
        Ok(self.carry_out(id, decision, rows))
    }

    /// Commits a batch that was not prepared. Whether something changed.
    ///
    /// # Errors
    /// Those of [`commit_unprepared`](super::commit_unprepared).
    pub fn commit_unprepared(
        &mut self,
        worker: &WorkerInstance,
        batch: &OpenBatch,
        claims: &Claims,
    ) -> Result<bool, Refusal> {
        if self.batches.contains_key(&batch.id) {
            return Err(Refusal::OtherContent { batch: batch.id });
        }
        let committed = self.committed.contains(&batch.id);
        let decision = super::commit_unprepared(&self.ledger, committed, worker, &batch.slices, batch.counts, claims)?;
        if matches!(decision, Commit::Advance(_)) {
            self.accept(batch);
        }
        Ok(self.carry_out(batch.id, decision, batch.counts.rows))
    }

    fn carry_out(&mut self, id: BatchId, decision: Commit, rows: u64) -> bool {
        let Commit::Advance(advances) = decision else {
            return false;
        };
        self.advance(id, advances, rows);
        true
    }

    /// Moves checkpoints, whatever they are.
    pub fn advance(&mut self, id: BatchId, advances: Vec<Advance>, rows: u64) {
        for advance in advances {
            if let Some(row) = self.ledger.shards.get_mut(&advance.shard) {
                row.checkpoint = advance.checkpoint;
                row.committed = advance.ordinal;
            }
        }
        for queue in self.ledger.slices.values_mut() {
            queue.retain(|slice| slice.batch != id);
        }
        self.ledger.slices.retain(|_, queue| !queue.is_empty());
        self.batches.remove(&id);
        self.committed.insert(id);
        self.rows += rows;
    }

    /// Grants shards. Gives their new epochs.
    ///
    /// # Errors
    /// Those of [`grant`](super::grant).
    pub fn grant(&mut self, wanted: &Claims, worker: &WorkerInstance) -> Result<Claims, Refusal> {
        let granted = super::grant(&self.ledger, wanted, worker)?;
        self.give(&granted, worker);
        Ok(granted)
    }

    /// Gives shards away, whatever they are.
    pub fn give(&mut self, granted: &Claims, worker: &WorkerInstance) {
        for (shard, epoch) in granted {
            if let Some(row) = self.ledger.shards.get_mut(shard) {
                row.epoch = *epoch;
                row.owner = Some(worker.clone());
            }
        }
    }

    /// Takes shards back. Gives those that were held under just these epochs.
    pub fn release(&mut self, given: &Claims) -> Vec<ShardId> {
        let released = super::release(&self.ledger, given);
        for shard in &released {
            if let Some(row) = self.ledger.shards.get_mut(shard) {
                row.owner = None;
            }
        }
        released
    }

    /// Finishes a shard. Whether something changed.
    ///
    /// # Errors
    /// Those of [`finish`](super::finish).
    pub fn finish(&mut self, shard: &ShardId, epoch: Epoch, children: &[NewShard]) -> Result<bool, Refusal> {
        let finished = super::finish(&self.ledger, shard, epoch, children)?;
        let changed = finished.finish || !finished.new.is_empty() || !finished.opened.is_empty();
        if let Some(row) = self.ledger.shards.get_mut(shard).filter(|_| finished.finish) {
            row.phase = ShardPhase::Finished;
            row.owner = None;
        }
        self.insert_shards(finished.new);
        self.open_shards(finished.opened);
        Ok(changed)
    }
}

//! What may be prepared, committed, granted, released, added and finished: the exactly-once protocol as pure functions.
//!
//! Each takes a [`Ledger`], which holds the rows that the question touches, and gives what to write, or a [`Refusal`]. The
//! store reads those rows under lock and writes the answer in the same transaction; a model test runs the same functions
//! over a ledger in memory. No clock, no lease and no network shows here: the epoch is the only fence.
//!
//! Invariants that the functions keep:
//! - The slices of a shard, committed and open, tile it from its start without hole or overlap, in the order of their
//!   ordinals.
//! - A checkpoint only moves forward, and only over the oldest open batch of its shard.
//! - Who does not hold the current epoch of a shard changes nothing of it.
//! - All shards of an open batch can be granted to one worker only.
//! - A batch is replaced only by batches that tile its slices exactly, in its place among the batches of its shards.

use std::collections::{BTreeMap, BTreeSet};

use millrace_common::{
    batch::{Counts, OpenBatch},
    ids::{BatchId, Epoch, ShardId, WorkerInstance},
    position::{Position, Slice},
};

mod gap;
mod grants;
pub mod invariants;
mod late;
mod lineage;
pub mod memory;
mod refusal;
mod replace;
mod reset;

#[cfg(test)]
mod life;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub use gap::{Gap, Resumed, resume};
pub use grants::{grant, release};
pub use late::{Late, Open, Window, late};
pub use lineage::{Added, Finished, add, finish};
pub use refusal::Refusal;
pub use replace::{Known, MAX_PARTS, Replace, Replaced, replace};
pub use reset::{Move, Plan, Reset, Target, reset};

/// Open batches that a shard may have. A lane keeps a small fixed number open, so one that reaches this is broken; and
/// all of them travel in an assignment.
pub const MAX_OPEN_BATCHES: usize = 64;

/// What one count of a batch may be: far above any real batch, and low enough that totals never leave 63 bits.
pub const MAX_COUNT: u64 = 1 << 40;

/// Slices that a batch may have: more shards than this on one worker is not what one lane is for, and statements have a
/// bounded number of parameters.
pub const MAX_SLICES: usize = 10_000;

/// A shard to store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewShard {
    /// Kinesis shard id.
    pub id: ShardId,
    /// Its parents: none, one, or two after a merge.
    pub parents: Vec<ShardId>,
    /// Where to start reading it.
    pub start: Position,
}

/// Where a shard is in its life. It only goes forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ShardPhase {
    /// A parent is not finished yet.
    Waiting,
    /// Can be granted.
    Open,
    /// Read to its end, and all of it committed.
    Finished,
}

/// A shard, as decisions see it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shard {
    /// Parents that it waits for, or waited for.
    pub parents: Vec<ShardId>,
    /// Where it is in its life.
    pub phase: ShardPhase,
    /// How often it was granted.
    pub epoch: Epoch,
    /// Who holds it.
    pub owner: Option<WorkerInstance>,
    /// Up to where it is committed.
    pub checkpoint: Position,
    /// How many of its slices are committed: the ordinal of the last one.
    pub committed: u64,
}

/// A slice of an open batch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OpenSlice {
    /// Its place among the slices of its shard, counted from 1.
    pub ordinal: u64,
    /// The batch.
    pub batch: BatchId,
    /// The slice.
    pub slice: Slice,
}

/// The rows that a decision looks at: the shards it is about, and every open slice of these.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Ledger {
    /// Shards.
    pub shards: BTreeMap<ShardId, Shard>,
    /// Open slices of each shard, oldest first.
    pub slices: BTreeMap<ShardId, Vec<OpenSlice>>,
}

impl Ledger {
    /// Open slices of a shard, oldest first.
    pub fn open(&self, shard: &ShardId) -> &[OpenSlice] {
        self.slices.get(shard).map_or(&[], Vec::as_slice)
    }

    /// Where the next slice of a shard starts: after its last open slice, else at its checkpoint.
    pub fn frontier(&self, shard: &ShardId) -> Option<Position> {
        let row = self.shards.get(shard)?;
        Some(
            self.open(shard)
                .last()
                .map_or_else(|| row.checkpoint.clone(), |last| last.slice.end()),
        )
    }

    fn shard(&self, id: &ShardId) -> Result<&Shard, Refusal> {
        self.shards
            .get(id)
            .ok_or_else(|| Refusal::UnknownShard { shard: id.clone() })
    }

    /// That the caller holds the shard now.
    fn check_holder(
        &self,
        shard: &ShardId,
        caller: &WorkerInstance,
        claims: &BTreeMap<&ShardId, Epoch>,
    ) -> Result<&Shard, Refusal> {
        let claimed = *claims
            .get(shard)
            .ok_or_else(|| Refusal::NoEpoch { shard: shard.clone() })?;
        let row = self.shard(shard)?;
        if claimed != row.epoch {
            return Err(Refusal::StaleEpoch {
                shard: shard.clone(),
                expected: row.epoch,
                found: claimed,
            });
        }
        if row.owner.as_ref() != Some(caller) {
            return Err(Refusal::NotOwner {
                shard: shard.clone(),
                expected: row.owner.clone(),
                found: caller.clone(),
            });
        }
        if row.phase != ShardPhase::Open {
            return Err(Refusal::NotOpen {
                shard: shard.clone(),
                found: row.phase,
            });
        }
        Ok(row)
    }
}

/// Answer to Prepare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prepare {
    /// Just this batch is open already.
    Already,
    /// Store it, with these ordinals of its slices, in their order.
    Store {
        /// Ordinals.
        ordinals: Vec<u64>,
    },
}

/// Whether `caller` may prepare `batch`.
///
/// `same` is the open batch of that id, if there is one, and `committed` tells that a batch of that id was committed not
/// long ago. The ledger holds the shards of `batch` and of `same`.
///
/// # Errors
/// The reason, if not.
pub fn prepare(
    ledger: &Ledger,
    same: Option<&OpenBatch>,
    committed: bool,
    caller: &WorkerInstance,
    batch: &OpenBatch,
    claims: &[(ShardId, Epoch)],
) -> Result<Prepare, Refusal> {
    check_shape(&batch.slices, batch.counts)?;
    let claims = by_shard(claims);
    for slice in &batch.slices {
        ledger.check_holder(&slice.shard, caller, &claims)?;
    }
    if committed {
        return Err(Refusal::AlreadyCommitted { batch: batch.id });
    }
    match same {
        Some(same) if same == batch => return Ok(Prepare::Already),
        Some(_) => return Err(Refusal::OtherContent { batch: batch.id }),
        None => {}
    }
    let mut ordinals = Vec::with_capacity(batch.slices.len());
    for slice in &batch.slices {
        let open = ledger.open(&slice.shard);
        if open.len() >= MAX_OPEN_BATCHES {
            return Err(Refusal::TooManyOpen {
                shard: slice.shard.clone(),
                limit: MAX_OPEN_BATCHES,
                found: open.len(),
            });
        }
        ordinals.push(append(ledger, slice)?);
    }
    Ok(Prepare::Store { ordinals })
}

/// What a commit writes of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advance {
    /// The shard.
    pub shard: ShardId,
    /// Its new checkpoint.
    pub checkpoint: Position,
    /// Ordinal of the committed slice.
    pub ordinal: u64,
}

/// Answer to Commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Commit {
    /// It is committed already.
    Already,
    /// Advance these shards, in id order, remove the batch if it was open, and add its counts.
    Advance(Vec<Advance>),
}

/// Whether `caller` may commit the open batch `id`.
///
/// `open` is that batch, if it is open, and `committed` tells that it was committed not long ago. The ledger holds the
/// shards of `open`.
///
/// # Errors
/// The reason, if not.
pub fn commit(
    ledger: &Ledger,
    open: Option<&OpenBatch>,
    committed: bool,
    caller: &WorkerInstance,
    id: BatchId,
    claims: &[(ShardId, Epoch)],
) -> Result<Commit, Refusal> {
    let Some(batch) = open else {
        return if committed {
            Ok(Commit::Already)
        } else {
            Err(Refusal::UnknownBatch { batch: id })
        };
    };
    let claims = by_shard(claims);
    let mut advances = Vec::with_capacity(batch.slices.len());
    for slice in &batch.slices {
        ledger.check_holder(&slice.shard, caller, &claims)?;
        match ledger.open(&slice.shard).first() {
            Some(oldest) if oldest.batch == id => advances.push(Advance {
                shard: slice.shard.clone(),
                checkpoint: slice.end(),
                ordinal: oldest.ordinal,
            }),
            oldest => {
                return Err(Refusal::NotOldest {
                    shard: slice.shard.clone(),
                    expected: oldest.map(|oldest| oldest.batch),
                    found: id,
                });
            }
        }
    }
    advances.sort_by(|a, b| a.shard.cmp(&b.shard));
    Ok(Commit::Advance(advances))
}

/// Whether `caller` may move the checkpoints over slices that it sent without preparing them: at least once.
///
/// # Errors
/// The reason, if not.
pub fn commit_unprepared(
    ledger: &Ledger,
    committed: bool,
    caller: &WorkerInstance,
    slices: &[Slice],
    counts: Counts,
    claims: &[(ShardId, Epoch)],
) -> Result<Commit, Refusal> {
    if committed {
        return Ok(Commit::Already);
    }
    check_shape(slices, counts)?;
    let claims = by_shard(claims);
    let mut advances = Vec::with_capacity(slices.len());
    for slice in slices {
        ledger.check_holder(&slice.shard, caller, &claims)?;
        let open = ledger.open(&slice.shard).len();
        if open > 0 {
            return Err(Refusal::OpenBatches {
                shard: slice.shard.clone(),
                found: open,
            });
        }
        let ordinal = append(ledger, slice)?;
        advances.push(Advance {
            shard: slice.shard.clone(),
            checkpoint: slice.end(),
            ordinal,
        });
    }
    advances.sort_by(|a, b| a.shard.cmp(&b.shard));
    Ok(Commit::Advance(advances))
}

fn by_shard(claims: &[(ShardId, Epoch)]) -> BTreeMap<&ShardId, Epoch> {
    claims.iter().map(|(shard, epoch)| (shard, *epoch)).collect()
}

/// That a request names no more slices than a batch may have. To be asked before anything is read.
///
/// # Errors
/// If it does.
pub fn check_size(slices: usize) -> Result<(), Refusal> {
    if slices > MAX_SLICES {
        let (limit, found) = (MAX_SLICES as u64, slices as u64);
        return Err(Refusal::TooLarge {
            what: "slices",
            limit,
            found,
        });
    }
    Ok(())
}

/// That slices can be those of a batch at all.
fn check_shape(slices: &[Slice], counts: Counts) -> Result<(), Refusal> {
    if slices.is_empty() {
        return Err(Refusal::NoSlices);
    }
    let mut seen = BTreeSet::new();
    for slice in slices {
        if !seen.insert(&slice.shard) {
            return Err(Refusal::RepeatedShard {
                shard: slice.shard.clone(),
            });
        }
        if !slice.is_forward() {
            return Err(Refusal::Backward {
                shard: slice.shard.clone(),
                from: slice.from_exclusive.clone(),
                to: slice.to_inclusive.clone(),
            });
        }
    }
    let Counts {
        rows,
        rejected_records,
        records,
        bytes,
    } = counts;
    for (what, found) in [
        ("rows", rows),
        ("rejected records", rejected_records),
        ("records", records),
        ("bytes", bytes),
    ] {
        if found > MAX_COUNT {
            return Err(Refusal::TooLarge {
                what,
                limit: MAX_COUNT,
                found,
            });
        }
    }
    Ok(())
}

/// The ordinal of `slice` behind all slices of its shard, if it starts where they end.
fn append(ledger: &Ledger, slice: &Slice) -> Result<u64, Refusal> {
    let row = ledger.shard(&slice.shard)?;
    let last = ledger.open(&slice.shard).last();
    let frontier = last.map_or_else(|| row.checkpoint.clone(), |last| last.slice.end());
    if slice.from_exclusive != frontier {
        return Err(Refusal::NotAtFrontier {
            shard: slice.shard.clone(),
            expected: frontier,
            found: slice.from_exclusive.clone(),
        });
    }
    Ok(last.map_or(row.committed, |last| last.ordinal) + 1)
}

/// Open batches in an order in which each comes after all older ones of its shards. `slices` are all their slices. Of
/// batches that share no shard, the smaller id comes first.
///
/// # Errors
/// A batch that is in a circle of "older than", which no sequence of prepares can make.
pub fn oldest_first(slices: &BTreeMap<ShardId, Vec<OpenSlice>>) -> Result<Vec<BatchId>, BatchId> {
    let mut older: BTreeMap<BatchId, BTreeSet<BatchId>> = BTreeMap::new();
    for queue in slices.values() {
        let mut previous = None;
        for slice in queue {
            let waits_for = older.entry(slice.batch).or_default();
            waits_for.extend(previous.replace(slice.batch));
        }
    }
    let mut ordered = Vec::with_capacity(older.len());
    while let Some(stuck) = older.keys().next().copied() {
        let next = older
            .iter()
            .find(|(_, waits_for)| waits_for.is_empty())
            .map(|(id, _)| *id)
            .ok_or(stuck)?;
        older.remove(&next);
        for waits_for in older.values_mut() {
            waits_for.remove(&next);
        }
        ordered.push(next);
    }
    Ok(ordered)
}

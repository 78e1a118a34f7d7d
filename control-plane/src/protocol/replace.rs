//! Replacing an open batch that ClickHouse has refused, and of which nothing was ever applied, by smaller ones.
//!
//! The parts take the batch's place: they cover just its slices, shard by shard and in order, and the younger batches of
//! these shards move back by as many ordinals as there are more slices. So the shard stays tiled, and its frontier stays
//! where it was. That nothing of the batch was applied is not known here: the caller vouches for it.

use std::collections::{BTreeMap, BTreeSet};

use millrace_common::{
    batch::OpenBatch,
    ids::{BatchId, Epoch, ShardId, WorkerInstance},
};

use super::{Ledger, MAX_OPEN_BATCHES, Refusal, by_shard, check_shape};

/// Parts that a batch may be replaced by: halves are enough, and a few more do no harm.
pub const MAX_PARTS: usize = 16;

/// What replacing a batch writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// Ordinals of the slices of each part, in their order.
    pub ordinals: Vec<Vec<u64>>,
    /// Slices of younger batches that move: shard, ordinal, new ordinal.
    pub moved: Vec<(ShardId, u64, u64)>,
}

/// Answer to Replace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replace {
    /// Just these parts have replaced it already.
    Already,
    /// Remove the batch, move the younger slices, and store the parts.
    Store(Replaced),
}

/// What is known of the batches that a replacement names.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The batch that is to be replaced, if it is open.
    pub old: Option<&'a OpenBatch>,
    /// Open batches, among them those that have the id of a part.
    pub open: &'a BTreeMap<BatchId, OpenBatch>,
    /// Ids of batches that were committed not long ago, among them those of parts.
    pub committed: &'a BTreeSet<BatchId>,
}

/// Whether `caller` may replace the open batch `id` by `parts`. The ledger holds the shards of the batch and of the parts.
///
/// # Errors
/// The reason, if not.
pub fn replace(
    ledger: &Ledger,
    known: Known<'_>,
    caller: &WorkerInstance,
    id: BatchId,
    parts: &[OpenBatch],
    claims: &[(ShardId, Epoch)],
) -> Result<Replace, Refusal> {
    let (limit, found) = (MAX_PARTS, parts.len());
    if found == 0 || found > limit {
        let batch = id;
        return Err(Refusal::PartCount { batch, limit, found });
    }
    let claims = by_shard(claims);
    for part in parts {
        check_shape(&part.slices, part.counts)?;
        for slice in &part.slices {
            ledger.check_holder(&slice.shard, caller, &claims)?;
        }
    }
    let Some(old) = known.old else {
        return if parts.iter().all(|part| known.open.get(&part.id) == Some(part)) {
            Ok(Replace::Already)
        } else {
            Err(Refusal::UnknownBatch { batch: id })
        };
    };
    let mut ids = BTreeSet::from([id]);
    for part in parts {
        if known.committed.contains(&part.id) {
            return Err(Refusal::AlreadyCommitted { batch: part.id });
        }
        if known.open.contains_key(&part.id) || !ids.insert(part.id) {
            return Err(Refusal::OtherContent { batch: part.id });
        }
    }
    check_tiles(old, parts)?;
    let mut next: BTreeMap<&ShardId, u64> = BTreeMap::new();
    let mut moved = Vec::new();
    for slice in &old.slices {
        let shard = &slice.shard;
        ledger.check_holder(shard, caller, &claims)?;
        let open = ledger.open(shard);
        let Some(place) = open.iter().position(|open| open.batch == id) else {
            return Err(Refusal::UnknownBatch { batch: id });
        };
        let new = parts
            .iter()
            .flat_map(|part| &part.slices)
            .filter(|part| part.shard == *shard);
        let more = new.count() - 1;
        if open.len() + more > MAX_OPEN_BATCHES {
            return Err(Refusal::TooManyOpen {
                shard: shard.clone(),
                limit: MAX_OPEN_BATCHES,
                found: open.len(),
            });
        }
        next.insert(shard, open[place].ordinal);
        let younger = open[place + 1..].iter().filter(|_| more > 0);
        moved.extend(younger.map(|open| (shard.clone(), open.ordinal, open.ordinal + more as u64)));
    }
    let mut ordinals = Vec::with_capacity(parts.len());
    for part in parts {
        let mut of_part = Vec::with_capacity(part.slices.len());
        for slice in &part.slices {
            let Some(next) = next.get_mut(&slice.shard) else {
                let (batch, shard) = (id, slice.shard.clone());
                return Err(Refusal::NotTiling { batch, shard });
            };
            of_part.push(*next);
            *next += 1;
        }
        ordinals.push(of_part);
    }
    Ok(Replace::Store(Replaced { ordinals, moved }))
}

/// That the parts cover just what the batch covers, and as many records.
fn check_tiles(old: &OpenBatch, parts: &[OpenBatch]) -> Result<(), Refusal> {
    let wrong = |shard: &ShardId| {
        let (batch, shard) = (old.id, shard.clone());
        Err(Refusal::NotTiling { batch, shard })
    };
    for slice in &old.slices {
        let mut end = slice.from_exclusive.clone();
        let of_shard = parts.iter().flat_map(|part| &part.slices);
        for part in of_shard.filter(|part| part.shard == slice.shard) {
            if part.from_exclusive != end {
                return wrong(&slice.shard);
            }
            end = part.end();
        }
        if end != slice.end() {
            return wrong(&slice.shard);
        }
    }
    for slice in parts.iter().flat_map(|part| &part.slices) {
        if old.slices.iter().all(|old| old.shard != slice.shard) {
            return wrong(&slice.shard);
        }
    }
    let (expected, found) = (old.counts.records, parts.iter().map(|part| part.counts.records).sum());
    if expected != found {
        let batch = old.id;
        return Err(Refusal::OtherRecords { batch, expected, found });
    }
    Ok(())
}

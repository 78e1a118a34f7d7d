//! Who may hold which shard. Whether a lease has run out is not asked here: the caller decides that, and the epoch that it
//! expects tells whether someone else decided before it.

use std::collections::{BTreeMap, BTreeSet};

use millrace_common::ids::{BatchId, Epoch, ShardId, WorkerInstance};

use super::{Ledger, Refusal, ShardPhase};

/// Whether `worker` may be granted the shards `wanted`, each with the epoch that the caller believes current. Gives the new
/// epochs, in the order of `wanted`. All or none.
///
/// The ledger holds all shards of the pipe and all open slices.
///
/// # Errors
/// The reason, if not.
pub fn grant(
    ledger: &Ledger,
    wanted: &[(ShardId, Epoch)],
    worker: &WorkerInstance,
) -> Result<Vec<(ShardId, Epoch)>, Refusal> {
    let mut set = BTreeSet::new();
    for (id, expected) in wanted {
        if !set.insert(id) {
            return Err(Refusal::RepeatedShard { shard: id.clone() });
        }
        let row = ledger.shard(id)?;
        if row.epoch != *expected {
            return Err(Refusal::StaleEpoch {
                shard: id.clone(),
                expected: row.epoch,
                found: *expected,
            });
        }
        if row.phase != ShardPhase::Open {
            return Err(Refusal::NotOpen {
                shard: id.clone(),
                found: row.phase,
            });
        }
        let unfinished = |parent: &&ShardId| {
            ledger
                .shards
                .get(*parent)
                .is_some_and(|parent| parent.phase != ShardPhase::Finished)
        };
        if let Some(parent) = row.parents.iter().find(unfinished) {
            return Err(Refusal::ParentUnfinished {
                shard: id.clone(),
                parent: parent.clone(),
            });
        }
    }
    // A shard that stays elsewhere must not share an open batch with one that is granted here.
    let moving: BTreeMap<BatchId, &ShardId> = wanted
        .iter()
        .flat_map(|(id, _)| ledger.open(id).iter().map(move |slice| (slice.batch, id)))
        .collect();
    for (other, queue) in ledger.slices.iter().filter(|(id, _)| !set.contains(id)) {
        if ledger
            .shards
            .get(other)
            .is_some_and(|row| row.owner.as_ref() == Some(worker))
        {
            continue;
        }
        if let Some((batch, shard)) = queue.iter().find_map(|slice| moving.get_key_value(&slice.batch)) {
            return Err(Refusal::TornBatch {
                shard: (*shard).clone(),
                batch: *batch,
                other: other.clone(),
            });
        }
    }
    Ok(wanted.iter().map(|(id, epoch)| (id.clone(), epoch.next())).collect())
}

/// Which of the shards are released: those that are held, under just that epoch. A release that comes late changes nothing.
pub fn release(ledger: &Ledger, given: &[(ShardId, Epoch)]) -> Vec<ShardId> {
    let held = |(id, epoch): &&(ShardId, Epoch)| {
        ledger
            .shards
            .get(id)
            .is_some_and(|row| row.epoch == *epoch && row.owner.is_some())
    };
    let mut released: Vec<_> = given.iter().filter(held).map(|(id, _)| id.clone()).collect();
    released.sort();
    released.dedup();
    released
}

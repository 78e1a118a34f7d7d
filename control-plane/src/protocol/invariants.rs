//! The invariants of the exactly-once protocol, each a predicate with a name. The exhaustive model, the random model and
//! tests that look at a database ask the same predicates.
//!
//! | name | what |
//! |---|---|
//! | I1 tiling | the slices of a shard follow each other without hole or overlap, in the order of their ordinals |
//! | I2 write-ahead | nothing is sent that was not recorded before |
//! | I3 determinism | every attempt of a batch carries the rows that were recorded |
//! | I4 at most once | no record lands twice |
//! | I5 at least once | a checkpoint passes a record only after it has landed |
//! | I6 fence | who does not hold the current epoch changes nothing |
//! | I7 no gap | a checkpoint is where the committed slices end; children wait for their parents |
//! | I8 frontier | the frontier of a shard never goes back, whatever is replaced: nothing is accepted twice |
//!
//! I1 to I3, I5 and I7 give at least once; I1, I4 and I6 at most once.

use std::{collections::BTreeSet, fmt};

use millrace_common::{
    batch::Digest,
    ids::{BatchId, SequenceNumber, ShardId, WorkerInstance},
    position::{Position, Slice},
};

use super::{
    ShardPhase,
    memory::{Claims, Memory},
    oldest_first,
};

/// What is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {what}")]
pub struct Broken {
    /// The invariant.
    pub invariant: &'static str,
    /// Where and how.
    pub what: String,
}

fn broken<T>(invariant: &'static str, what: impl fmt::Display) -> Result<T, Broken> {
    Err(Broken {
        invariant,
        what: what.to_string(),
    })
}

fn check(holds: bool, invariant: &'static str, what: impl fmt::Display) -> Result<(), Broken> {
    if holds { Ok(()) } else { broken(invariant, what) }
}

/// I1.
pub const TILING: &str = "I1 tiling";
/// I2.
pub const WRITE_AHEAD: &str = "I2 write-ahead";
/// I3.
pub const DETERMINISM: &str = "I3 determinism";
/// I4.
pub const AT_MOST_ONCE: &str = "I4 at most once";
/// I5.
pub const AT_LEAST_ONCE: &str = "I5 at least once";
/// I6.
pub const FENCE: &str = "I6 fence";
/// I7.
pub const NO_GAP: &str = "I7 no gap";
/// I8.
pub const FRONTIER: &str = "I8 frontier";

/// I1: the accepted slices of a shard tile it from its start, and the open ones are the last of them, in order.
///
/// # Errors
/// Where not.
pub fn tiling(memory: &Memory) -> Result<(), Broken> {
    let ledger = &memory.ledger;
    for (id, row) in &ledger.shards {
        let accepted = memory.accepted.get(id).map_or(&[][..], Vec::as_slice);
        let mut end = accepted.first().map(|(_, slice)| slice.from_exclusive.clone());
        for (batch, slice) in accepted {
            let follows = end.as_ref() == Some(&slice.from_exclusive);
            check(follows, TILING, format_args!("a hole or an overlap before {slice}"))?;
            check(slice.is_forward(), TILING, format_args!("{slice} goes back"))?;
            check(
                memory.contents.contains_key(batch),
                TILING,
                format_args!("{slice} is of no batch"),
            )?;
            end = Some(slice.end());
        }
        let committed = usize::try_from(row.committed).unwrap_or(usize::MAX);
        let expected: Vec<_> = (row.committed + 1..).zip(accepted.iter().skip(committed)).collect();
        let open = ledger.open(id);
        let same = open.len() == expected.len()
            && open.iter().zip(&expected).all(|(open, (ordinal, (batch, slice)))| {
                open.ordinal == *ordinal && open.batch == *batch && open.slice == *slice
            });
        check(
            same,
            TILING,
            format_args!("the open slices of {id} are not what follows the committed ones"),
        )?;
    }
    batches(memory)
}

/// I1, of batches: the open slices are those of the open batches, which are as they were accepted, and "older than" has no
/// circle.
fn batches(memory: &Memory) -> Result<(), Broken> {
    let ledger = &memory.ledger;
    let open: BTreeSet<_> = ledger.slices.values().flatten().map(|slice| slice.batch).collect();
    let same = open.iter().eq(memory.batches.keys());
    check(same, TILING, "the open slices are not those of the open batches")?;
    for (id, batch) in &memory.batches {
        let same = memory.contents.get(id) == Some(batch);
        check(same, TILING, format_args!("open batch {id} changed"))?;
        let owners: BTreeSet<_> = batch
            .slices
            .iter()
            .filter_map(|slice| ledger.shards.get(&slice.shard)?.owner.as_ref())
            .collect();
        let whole = owners.len() <= 1;
        check(
            whole,
            TILING,
            format_args!("open batch {id} is torn between {owners:?}"),
        )?;
    }
    let Ok(order) = oldest_first(&ledger.slices) else {
        return broken(TILING, "a batch is both older and younger than another");
    };
    for (id, queue) in &ledger.slices {
        let place = |batch: BatchId| order.iter().position(|other| *other == batch);
        let sorted = queue.iter().map(|slice| place(slice.batch)).is_sorted();
        check(sorted, TILING, format_args!("the batches of {id} are out of order"))?;
    }
    Ok(())
}

/// I2: every batch of which something was sent had been recorded.
///
/// # Errors
/// The batch that was not.
pub fn write_ahead(memory: &Memory, sent: impl IntoIterator<Item = BatchId>) -> Result<(), Broken> {
    for id in sent {
        let recorded = memory.contents.contains_key(&id);
        check(recorded, WRITE_AHEAD, format_args!("batch {id} was sent, not recorded"))?;
    }
    Ok(())
}

/// I3: every attempt of a batch carried what was recorded of it.
///
/// # Errors
/// The batch of which that is not so.
pub fn determinism(memory: &Memory, attempts: impl IntoIterator<Item = (BatchId, Digest)>) -> Result<(), Broken> {
    for (id, digest) in attempts {
        let same = memory.contents.get(&id).is_none_or(|batch| batch.digest == digest);
        check(same, DETERMINISM, format_args!("batch {id} was sent with other rows"))?;
    }
    Ok(())
}

/// A record of the stream and how often it is at the destination, in the table and in the error table together.
pub type Copies<'a> = (&'a ShardId, &'a SequenceNumber, u64);

/// I4: no record is there twice.
///
/// # Errors
/// The record that is.
pub fn at_most_once<'a>(copies: impl IntoIterator<Item = Copies<'a>>) -> Result<(), Broken> {
    for (shard, number, count) in copies {
        check(
            count <= 1,
            AT_MOST_ONCE,
            format_args!("record {number} of {shard} landed {count} times"),
        )?;
    }
    Ok(())
}

/// I5: what a checkpoint has passed is there.
///
/// # Errors
/// The record that is not.
pub fn at_least_once<'a>(memory: &Memory, copies: impl IntoIterator<Item = Copies<'a>>) -> Result<(), Broken> {
    for (shard, number, count) in copies {
        let checkpoint = memory.ledger.shards.get(shard).map(|row| &row.checkpoint);
        let passed = checkpoint
            .and_then(Position::sequence_number)
            .is_some_and(|end| number <= end);
        check(
            !passed || count > 0,
            AT_LEAST_ONCE,
            format_args!("the checkpoint has passed record {number} of {shard}, which did not land"),
        )?;
    }
    Ok(())
}

/// I6: if something changed, `worker` held the current epoch of each of the shards, as it claimed.
///
/// # Errors
/// The shard that it did not hold.
pub fn fence<'a>(
    before: &Memory,
    changed: bool,
    worker: &WorkerInstance,
    claims: &Claims,
    shards: impl IntoIterator<Item = &'a ShardId>,
) -> Result<(), Broken> {
    if !changed {
        return Ok(());
    }
    for shard in shards {
        let held = before.ledger.shards.get(shard).is_some_and(|row| {
            row.owner.as_ref() == Some(worker) && claims.iter().any(|(id, epoch)| id == shard && *epoch == row.epoch)
        });
        check(held, FENCE, format_args!("{worker} changed {shard} without holding it"))?;
    }
    Ok(())
}

/// I6, of grants, releases and ends: what changed of a shard's lease or phase was asked for with its current epoch.
///
/// # Errors
/// The shard of which that is not so.
pub fn fence_lease(before: &Memory, after: &Memory, claims: &Claims) -> Result<(), Broken> {
    for (shard, row) in &before.ledger.shards {
        let same = after.ledger.shards.get(shard).is_some_and(|now| {
            (now.epoch, &now.owner) == (row.epoch, &row.owner)
                && (now.phase == row.phase || row.phase == ShardPhase::Waiting)
        });
        let asked = claims.iter().any(|(id, epoch)| id == shard && *epoch == row.epoch);
        check(same || asked, FENCE, format_args!("a stale epoch changed {shard}"))?;
    }
    Ok(())
}

/// I7: a checkpoint is where the committed slices of its shard end, children wait for their parents, and a shard is finished
/// with nothing open.
///
/// # Errors
/// Where not.
pub fn no_gap(memory: &Memory) -> Result<(), Broken> {
    let ledger = &memory.ledger;
    for (id, row) in &ledger.shards {
        let accepted = memory.accepted.get(id).map_or(&[][..], Vec::as_slice);
        let committed = usize::try_from(row.committed).unwrap_or(usize::MAX);
        let Some(done) = accepted.get(..committed) else {
            return broken(NO_GAP, format_args!("more of {id} is committed than was accepted"));
        };
        let all = done.iter().all(|(batch, _)| memory.committed.contains(batch));
        check(all, NO_GAP, format_args!("{id} counts a slice that is not committed"))?;
        let start = accepted.first().map(|(_, slice)| &slice.from_exclusive);
        let end = done.last().map(|(_, slice): &(BatchId, Slice)| slice.end());
        let expected = end.as_ref().or(start);
        check(
            expected.is_none_or(|expected| row.checkpoint == *expected),
            NO_GAP,
            format_args!("the checkpoint of {id} is not where its committed slices end"),
        )?;
        let finished = |parent: &ShardId| {
            let parent = ledger.shards.get(parent);
            parent.is_some_and(|parent| parent.phase == ShardPhase::Finished)
        };
        let ready = row.parents.iter().all(finished);
        check(
            (row.phase == ShardPhase::Waiting) != ready,
            NO_GAP,
            format_args!("{id} is {:?} and its parents are not so", row.phase),
        )?;
        check(
            row.phase != ShardPhase::Finished || (ledger.open(id).is_empty() && row.owner.is_none()),
            NO_GAP,
            format_args!("{id} is finished with something open"),
        )?;
    }
    Ok(())
}

/// That nothing of a shard ever goes back.
///
/// # Errors
/// The shard of which something does.
pub fn forward(before: &Memory, after: &Memory) -> Result<(), Broken> {
    for (id, row) in &before.ledger.shards {
        let forward = after.ledger.shards.get(id).is_some_and(|now| {
            now.committed >= row.committed && now.epoch >= row.epoch && now.phase >= row.phase && {
                let (then, now) = (row.checkpoint.sequence_number(), now.checkpoint.sequence_number());
                then <= now
            }
        });
        check(forward, NO_GAP, format_args!("{id} went back"))?;
    }
    frontier(before, after)
}

/// I8: no frontier goes back.
///
/// # Errors
/// The shard of which it does.
fn frontier(before: &Memory, after: &Memory) -> Result<(), Broken> {
    for id in before.ledger.shards.keys() {
        let (then, now) = (before.ledger.frontier(id), after.ledger.frontier(id));
        let number = |position: &Option<Position>| position.as_ref().and_then(|at| at.sequence_number().cloned());
        check(
            number(&then) <= number(&now),
            FRONTIER,
            format_args!("the frontier of {id} went back from {then:?} to {now:?}"),
        )?;
    }
    Ok(())
}

/// That the pipe's totals are those of its committed batches.
///
/// # Errors
/// If they are not.
pub fn totals(memory: &Memory) -> Result<(), Broken> {
    let rows = memory.committed.iter().filter_map(|id| memory.contents.get(id));
    let rows: u64 = rows.map(|batch| batch.counts.rows).sum();
    check(
        memory.rows == rows,
        NO_GAP,
        format_args!("{} rows are counted where {rows} were committed", memory.rows),
    )
}

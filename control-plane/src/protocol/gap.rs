//! Going on behind a data gap, where a pipe is told to. Pure.
//!
//! A worker that finds that records may have left the stream before they were read stops there and says so. A pipe that resumes
//! goes on at the oldest record there is; one that found the records of a prepared batch gone gives the batch up, because
//! it can never be built again: its rows are in the destination, or they are lost.
//!
//! Invariants:
//! - Only what the worker that holds the shard now has said is acted upon, and only at the shard's frontier: nothing that is
//!   prepared is skipped.
//! - Every shard that is moved, and every shard that shares an open batch with one, gets the next epoch and no owner.

use std::collections::{BTreeMap, BTreeSet};

use millrace_common::{
    ids::{BatchId, Epoch, ShardId},
    position::Position,
};

use super::{Advance, Ledger, Refusal, ShardPhase};

/// What a worker cannot read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The shard.
    pub shard: ShardId,
    /// The epoch that it is held under.
    pub epoch: Epoch,
    /// Where reading stopped.
    pub position: Position,
    /// The open batch that cannot be built again, if it is about one.
    pub batch: Option<BatchId>,
    /// Kinesis has no such shard any more.
    pub shard_gone: bool,
}

/// What is written to go on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resumed {
    /// The shard goes on at the oldest record.
    pub restarted: Option<ShardId>,
    /// The shard is over.
    pub finished: Option<ShardId>,
    /// Shards that can be read from now on, because it is over.
    pub opened: Vec<ShardId>,
    /// The batch that is given up: the checkpoints of its shards move over it.
    pub abandoned: Vec<Advance>,
    /// Shards that get the next epoch and no owner, in id order.
    pub fenced: Vec<ShardId>,
}

/// How to go on behind `gap`; `None` if that has to wait: what was prepared before it is not committed yet. The ledger holds
/// all shards of the pipe and all open slices.
///
/// # Errors
/// If it was not said by the holder of the shard.
pub fn resume(ledger: &Ledger, gap: &Gap) -> Result<Option<Resumed>, Refusal> {
    let row = ledger.shard(&gap.shard)?;
    if row.epoch != gap.epoch {
        return Err(Refusal::StaleEpoch {
            shard: gap.shard.clone(),
            expected: row.epoch,
            found: gap.epoch,
        });
    }
    if row.phase != ShardPhase::Open {
        return Err(Refusal::NotOpen {
            shard: gap.shard.clone(),
            found: row.phase,
        });
    }
    let mut resumed = Resumed::default();
    if let Some(batch) = gap.batch {
        if !ledger.open(&gap.shard).iter().any(|slice| slice.batch == batch) {
            return Err(Refusal::UnknownBatch { batch });
        }
        for (id, queue) in &ledger.slices {
            match queue.iter().position(|slice| slice.batch == batch) {
                None => {}
                Some(0) => resumed.abandoned.push(Advance {
                    shard: id.clone(),
                    checkpoint: queue[0].slice.end(),
                    ordinal: queue[0].ordinal,
                }),
                // Older batches can still be built and committed.
                Some(_) => return Ok(None),
            }
        }
        let shards = resumed.abandoned.iter().map(|advance| advance.shard.clone());
        resumed.fenced = connected(ledger, shards.collect());
        return Ok(Some(resumed));
    }
    if !ledger.open(&gap.shard).is_empty() || row.checkpoint != gap.position {
        return Ok(None);
    }
    resumed.fenced = vec![gap.shard.clone()];
    if gap.shard_gone {
        resumed.finished = Some(gap.shard.clone());
        let finished = |parent: &ShardId| {
            *parent == gap.shard
                || ledger
                    .shards
                    .get(parent)
                    .is_some_and(|row| row.phase == ShardPhase::Finished)
        };
        let waits = |row: &super::Shard| row.phase == ShardPhase::Waiting && row.parents.contains(&gap.shard);
        let opened = ledger
            .shards
            .iter()
            .filter(|(_, row)| waits(row) && row.parents.iter().all(finished));
        resumed.opened = opened.map(|(id, _)| id.clone()).collect();
    } else {
        resumed.restarted = Some(gap.shard.clone());
    }
    Ok(Some(resumed))
}

/// The shards, and all that hang together with them by open batches.
fn connected(ledger: &Ledger, mut set: BTreeSet<ShardId>) -> Vec<ShardId> {
    let mut by_batch: BTreeMap<BatchId, Vec<&ShardId>> = BTreeMap::new();
    for (id, queue) in &ledger.slices {
        for slice in queue {
            by_batch.entry(slice.batch).or_default().push(id);
        }
    }
    loop {
        let before = set.len();
        for shards in by_batch.values() {
            if shards.iter().any(|id| set.contains(*id)) {
                set.extend(shards.iter().map(|id| (*id).clone()));
            }
        }
        if set.len() == before {
            return set.into_iter().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use millrace_common::position::Slice;

    use super::*;
    use crate::protocol::{OpenSlice, Shard};

    fn id(number: usize) -> ShardId {
        format!("shardId-{number:012}").parse().unwrap()
    }

    fn after(number: u64) -> Position {
        Position::After(number.to_string().parse().unwrap())
    }

    fn ledger() -> Ledger {
        let row = |parents: &[usize], phase| Shard {
            parents: parents.iter().map(|parent| id(*parent)).collect(),
            phase,
            epoch: Epoch(3),
            owner: None,
            checkpoint: after(10),
            committed: 5,
        };
        let shards = [
            (id(0), row(&[], ShardPhase::Open)),
            (id(1), row(&[], ShardPhase::Open)),
            (id(2), row(&[], ShardPhase::Open)),
            (id(3), row(&[0], ShardPhase::Waiting)),
            (id(4), row(&[0, 1], ShardPhase::Waiting)),
        ];
        Ledger {
            shards: shards.into(),
            slices: BTreeMap::new(),
        }
    }

    fn open(ledger: &mut Ledger, batch: BatchId, shards: &[usize], to: u64) {
        for shard in shards {
            let from_exclusive = ledger.frontier(&id(*shard)).unwrap();
            let queue = ledger.slices.entry(id(*shard)).or_default();
            queue.push(OpenSlice {
                ordinal: 6 + queue.len() as u64,
                batch,
                slice: Slice {
                    shard: id(*shard),
                    from_exclusive,
                    to_inclusive: to.to_string().parse().unwrap(),
                },
            });
        }
    }

    fn gap(batch: Option<BatchId>) -> Gap {
        Gap {
            shard: id(0),
            epoch: Epoch(3),
            position: after(10),
            batch,
            shard_gone: false,
        }
    }

    #[test]
    fn a_shard_goes_on_at_its_oldest_record() {
        let resumed = resume(&ledger(), &gap(None)).unwrap().unwrap();
        assert_eq!((resumed.restarted, resumed.fenced), (Some(id(0)), vec![id(0)]));
        assert_eq!((resumed.abandoned.len(), resumed.finished), (0, None));
    }

    #[test]
    fn a_shard_that_is_gone_is_over() {
        let gone = Gap {
            shard_gone: true,
            ..gap(None)
        };
        let resumed = resume(&ledger(), &gone).unwrap().unwrap();
        // 4 waits for 1 as well.
        assert_eq!((resumed.finished, resumed.opened), (Some(id(0)), vec![id(3)]));
    }

    #[test]
    fn what_is_prepared_comes_first() {
        let mut ledger = ledger();
        let (first, second) = (BatchId::new(), BatchId::new());
        open(&mut ledger, first, &[0], 20);
        assert_eq!(resume(&ledger, &gap(None)).unwrap(), None);
        open(&mut ledger, second, &[0], 30);
        assert_eq!(resume(&ledger, &gap(Some(second))).unwrap(), None);
        assert!(resume(&ledger, &gap(Some(first))).unwrap().is_some());
        let ahead = Gap {
            position: after(11),
            ..gap(None)
        };
        assert_eq!(resume(&self::ledger(), &ahead).unwrap(), None);
    }

    #[test]
    fn a_batch_that_cannot_be_built_is_given_up_with_all_its_slices() {
        let mut ledger = ledger();
        let (first, second) = (BatchId::new(), BatchId::new());
        open(&mut ledger, first, &[0, 1], 20);
        open(&mut ledger, second, &[1, 2], 30);
        let resumed = resume(&ledger, &gap(Some(first))).unwrap().unwrap();
        let moved: Vec<_> = resumed
            .abandoned
            .iter()
            .map(|a| (&a.shard, &a.checkpoint, a.ordinal))
            .collect();
        assert_eq!(moved, [(&id(0), &after(20), 6), (&id(1), &after(20), 6)]);
        // 2 shares the next batch with 1, and must be granted together with it.
        assert_eq!(resumed.fenced, [id(0), id(1), id(2)]);
        let unknown = resume(&ledger, &gap(Some(second))).unwrap_err();
        assert_eq!(unknown.code(), "UNKNOWN_BATCH", "it does not cover shard 0");
    }

    #[test]
    fn only_the_holder_is_heard() {
        let stale = Gap {
            epoch: Epoch(2),
            ..gap(None)
        };
        assert_eq!(resume(&ledger(), &stale).unwrap_err().code(), "STALE_EPOCH");
        let waiting = Gap {
            shard: id(3),
            ..gap(None)
        };
        assert_eq!(resume(&ledger(), &waiting).unwrap_err().code(), "SHARD_NOT_OPEN");
    }
}

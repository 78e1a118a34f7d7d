//! Moving positions because a user says so: what may be moved, and what comes of it. Pure.
//!
//! A reset is the one way for a checkpoint to go back, and the one way for records to be read again. What is read again gets
//! new batches with new ids, so that the destination does not take them for repetitions.
//!
//! What a reset does to lineage: a shard that was finished opens again (if Kinesis still has it; only the caller can know).
//! A child that is reset together with its parent waits for the parent as it did the first time. A child that is not among the
//! shards stays where it is, whatever becomes of its parents: it was read already, or it is being read.
//!
//! Invariants:
//! - Every shard of a reset gets the next epoch and no owner, so that nobody who held it can prepare or commit any more.
//! - No batch stays open on a shard of a reset, and none is torn: the shards of a batch that is given up are all reset.

use std::collections::{BTreeMap, BTreeSet};

use millrace_common::{
    ids::{BatchId, Epoch, ShardId},
    position::Position,
};

use super::{Ledger, NewShard, Refusal, Shard, ShardPhase, lineage::fresh};

/// Where a shard is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The shard.
    pub shard: ShardId,
    /// Its new position.
    pub to: Position,
    /// Its parents, if the caller knows them anew: those that are not among the pipe's shards are past.
    pub parents: Option<Vec<ShardId>>,
}

/// What to reset.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Shards that the pipe has.
    pub targets: Vec<Target>,
    /// Shards to take in beside them: those that the pipe left out because it began behind them.
    pub new: Vec<NewShard>,
    /// All other shards are to be forgotten: they are of another stream.
    pub forget_others: bool,
    /// Give up open batches. Their rows may be in the destination or not.
    pub abandon_open_batches: bool,
}

/// What a reset writes of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The shard.
    pub shard: ShardId,
    /// Where it was.
    pub from: Position,
    /// Its new checkpoint.
    pub to: Position,
    /// Its new place in life.
    pub phase: ShardPhase,
    /// Its new parents.
    pub parents: Vec<ShardId>,
    /// Its new epoch; it has no owner.
    pub epoch: Epoch,
}

/// What a reset writes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reset {
    /// Shards that are moved, in id order.
    pub moves: Vec<Move>,
    /// Shards that are taken in.
    pub new: Vec<(NewShard, ShardPhase)>,
    /// Shards that are forgotten, in id order.
    pub forgotten: Vec<ShardId>,
    /// Open batches that are given up, in id order.
    pub abandoned: Vec<BatchId>,
}

/// What a reset does. The ledger holds all shards of the pipe and all open slices.
///
/// # Errors
/// The reason, if it may not be: a shard is not known or named twice, a batch is open and not to be given up, or giving it up
/// would concern a shard that is not reset.
pub fn reset(ledger: &Ledger, plan: &Plan) -> Result<Reset, Refusal> {
    let mut targets: BTreeMap<&ShardId, &Target> = BTreeMap::new();
    for target in &plan.targets {
        ledger.shard(&target.shard)?;
        if targets.insert(&target.shard, target).is_some() {
            return Err(Refusal::RepeatedShard {
                shard: target.shard.clone(),
            });
        }
    }
    let others = || ledger.shards.keys().filter(|id| !targets.contains_key(id));
    let forgotten: Vec<ShardId> = if plan.forget_others {
        others().cloned().collect()
    } else {
        Vec::new()
    };
    let touched: BTreeSet<&ShardId> = targets.keys().copied().chain(&forgotten).collect();
    let abandoned = abandoned(ledger, &touched, plan.abandon_open_batches)?;

    // All shards as they will be, with those of the reset neither finished nor ready yet.
    let mut after: BTreeMap<&ShardId, Shard> = ledger
        .shards
        .iter()
        .filter(|(id, _)| !forgotten.contains(id))
        .map(|(id, row)| (id, row.clone()))
        .collect();
    let new: Vec<&NewShard> = plan.new.iter().filter(|shard| !after.contains_key(&shard.id)).collect();
    for shard in &new {
        after.insert(&shard.id, fresh(shard));
    }
    for (id, target) in &targets {
        if let Some(row) = after.get_mut(*id) {
            row.phase = ShardPhase::Waiting;
            if let Some(parents) = &target.parents {
                row.parents = parents.clone();
            }
        }
    }
    let ids: BTreeSet<ShardId> = after.keys().map(|id| (*id).clone()).collect();
    for row in after.values_mut() {
        row.parents.retain(|parent| ids.contains(parent));
    }
    let phase = |row: &Shard| {
        let finished = |parent: &ShardId| after.get(parent).is_none_or(|row| row.phase == ShardPhase::Finished);
        if row.parents.iter().all(finished) {
            ShardPhase::Open
        } else {
            ShardPhase::Waiting
        }
    };
    let moves = targets.iter().filter_map(|(id, target)| {
        let (before, row) = (ledger.shards.get(*id)?, after.get(*id)?);
        Some(Move {
            shard: (*id).clone(),
            from: before.checkpoint.clone(),
            to: target.to.clone(),
            phase: phase(row),
            parents: row.parents.clone(),
            epoch: before.epoch.next(),
        })
    });
    let taken_in = new.iter().filter_map(|shard| {
        let row = after.get(&shard.id)?;
        let shard = NewShard {
            parents: row.parents.clone(),
            ..(*shard).clone()
        };
        Some((shard, phase(row)))
    });
    Ok(Reset {
        moves: moves.collect(),
        new: taken_in.collect(),
        abandoned,
        forgotten: forgotten.clone(),
    })
}

/// The open batches of the shards that are touched, if they may be given up.
fn abandoned(ledger: &Ledger, touched: &BTreeSet<&ShardId>, allowed: bool) -> Result<Vec<BatchId>, Refusal> {
    let mut batches: BTreeMap<BatchId, &ShardId> = BTreeMap::new();
    for shard in touched {
        let open = ledger.open(shard);
        if !open.is_empty() && !allowed {
            return Err(Refusal::OpenBatches {
                shard: (*shard).clone(),
                found: open.len(),
            });
        }
        for slice in open {
            batches.entry(slice.batch).or_insert(shard);
        }
    }
    for (other, queue) in ledger.slices.iter().filter(|(id, _)| !touched.contains(id)) {
        if let Some((batch, shard)) = queue.iter().find_map(|slice| batches.get_key_value(&slice.batch)) {
            return Err(Refusal::TornBatch {
                shard: (*shard).clone(),
                batch: *batch,
                other: other.clone(),
            });
        }
    }
    Ok(batches.into_keys().collect())
}

#[cfg(test)]
mod tests {
    use millrace_common::{
        ids::{Incarnation, WorkerInstance},
        position::Slice,
    };

    use super::*;
    use crate::protocol::OpenSlice;

    fn id(number: usize) -> ShardId {
        format!("shardId-{number:012}").parse().unwrap()
    }

    fn after(number: u64) -> Position {
        Position::After(number.to_string().parse().unwrap())
    }

    fn row(parents: &[usize], phase: ShardPhase, checkpoint: u64) -> Shard {
        let worker = WorkerInstance {
            worker: "w".parse().unwrap(),
            incarnation: Incarnation::new(),
        };
        Shard {
            parents: parents.iter().map(|parent| id(*parent)).collect(),
            phase,
            epoch: Epoch(4),
            owner: (phase == ShardPhase::Open).then_some(worker),
            checkpoint: after(checkpoint),
            committed: 7,
        }
    }

    /// 0 was split into 1 and 2, which are read; 3 stands alone.
    fn ledger() -> Ledger {
        let shards = [
            (id(0), row(&[], ShardPhase::Finished, 10)),
            (id(1), row(&[0], ShardPhase::Open, 20)),
            (id(2), row(&[0], ShardPhase::Open, 30)),
            (id(3), row(&[], ShardPhase::Open, 40)),
        ];
        Ledger {
            shards: shards.into(),
            slices: BTreeMap::new(),
        }
    }

    fn open(ledger: &mut Ledger, batch: BatchId, shard: usize, to: u64) {
        let from = ledger.frontier(&id(shard)).unwrap();
        let queue = ledger.slices.entry(id(shard)).or_default();
        queue.push(OpenSlice {
            ordinal: 8 + queue.len() as u64,
            batch,
            slice: Slice {
                shard: id(shard),
                from_exclusive: from,
                to_inclusive: to.to_string().parse().unwrap(),
            },
        });
    }

    fn plan(shards: &[usize]) -> Plan {
        let target = |number: &usize| Target {
            shard: id(*number),
            to: Position::TrimHorizon,
            parents: None,
        };
        Plan {
            targets: shards.iter().map(target).collect(),
            ..Plan::default()
        }
    }

    fn phases(reset: &Reset) -> Vec<(ShardId, ShardPhase)> {
        reset.moves.iter().map(|m| (m.shard.clone(), m.phase)).collect()
    }

    #[test]
    fn all_shards_are_read_again_in_order() {
        let reset = reset(&ledger(), &plan(&[3, 1, 0, 2])).unwrap();
        use ShardPhase::{Open, Waiting};
        assert_eq!(
            phases(&reset),
            [(id(0), Open), (id(1), Waiting), (id(2), Waiting), (id(3), Open)]
        );
        assert!(
            reset
                .moves
                .iter()
                .all(|m| m.epoch == Epoch(5) && m.to == Position::TrimHorizon)
        );
        assert_eq!(reset.moves[1].from, after(20));
        assert_eq!(reset.moves[1].parents, [id(0)]);
    }

    #[test]
    fn what_is_not_named_stays() {
        let child = reset(&ledger(), &plan(&[1])).unwrap();
        assert_eq!(phases(&child), [(id(1), ShardPhase::Open)]);
        let parent = reset(&ledger(), &plan(&[0])).unwrap();
        assert_eq!(phases(&parent), [(id(0), ShardPhase::Open)]);
    }

    #[test]
    fn ancestors_that_were_left_out_are_taken_in() {
        let mut plan = plan(&[3]);
        plan.targets[0].parents = Some(vec![id(8), id(9)]);
        // 9 is past: Kinesis does not have it any more.
        plan.new = vec![NewShard {
            id: id(8),
            parents: vec![id(9)],
            start: Position::TrimHorizon,
        }];
        let reset = reset(&ledger(), &plan).unwrap();
        assert_eq!(phases(&reset), [(id(3), ShardPhase::Waiting)]);
        assert_eq!(reset.moves[0].parents, [id(8)]);
        assert_eq!(reset.new.len(), 1);
        assert_eq!((reset.new[0].0.parents.len(), reset.new[0].1), (0, ShardPhase::Open));
    }

    #[test]
    fn another_stream_begins_anew() {
        let mut plan = plan(&[0, 3]);
        plan.forget_others = true;
        for target in &mut plan.targets {
            target.parents = Some(Vec::new());
        }
        let reset = reset(&ledger(), &plan).unwrap();
        assert_eq!(phases(&reset), [(id(0), ShardPhase::Open), (id(3), ShardPhase::Open)]);
        assert_eq!(reset.forgotten, [id(1), id(2)]);
    }

    #[test]
    fn open_batches_are_given_up_only_if_asked_and_never_torn() {
        let mut ledger = ledger();
        let (first, second) = (BatchId::new(), BatchId::new());
        open(&mut ledger, first, 1, 21);
        open(&mut ledger, first, 2, 31);
        open(&mut ledger, second, 2, 32);
        let refused = reset(&ledger, &plan(&[1, 2])).unwrap_err();
        assert_eq!(refused.code(), "OPEN_BATCHES");
        let give_up = |shards: &[usize]| Plan {
            abandon_open_batches: true,
            ..plan(shards)
        };
        assert_eq!(reset(&ledger, &give_up(&[1])).unwrap_err().code(), "TORN_BATCH");
        let done = reset(&ledger, &give_up(&[1, 2])).unwrap();
        assert_eq!(
            done.abandoned.iter().copied().collect::<BTreeSet<_>>(),
            BTreeSet::from([first, second])
        );
        // Shards without open batches do not care.
        assert_eq!(reset(&ledger, &plan(&[3])).unwrap().abandoned, []);
        let forget = Plan {
            forget_others: true,
            ..plan(&[3])
        };
        assert_eq!(reset(&ledger, &forget).unwrap_err().code(), "OPEN_BATCHES");
    }

    #[test]
    fn strangers_and_repetitions_are_refused() {
        assert_eq!(reset(&ledger(), &plan(&[9])).unwrap_err().code(), "UNKNOWN_SHARD");
        assert_eq!(reset(&ledger(), &plan(&[1, 1])).unwrap_err().code(), "REPEATED_SHARD");
    }
}

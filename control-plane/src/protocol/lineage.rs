//! Which shards a pipe has and when each may be read: a child after all its parents, so that records of one partition key
//! stay in order.
//!
//! A parent that is not stored is one of two things: past, because Kinesis does not hold it any more or the pipe
//! starts after it; or not learned yet. Only a whole listing can tell them apart, so [`add`] forgets unknown parents and
//! [`finish`], which knows only what one worker saw at the end of one shard, lets their children wait for the next listing.

use std::collections::{BTreeMap, BTreeSet};

use millrace_common::ids::{Epoch, ShardId};

use super::{Ledger, NewShard, Refusal, Shard, ShardPhase};

/// What a listing adds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Added {
    /// New shards, with the parents that matter, and whether they can be read at once.
    pub new: Vec<(NewShard, ShardPhase)>,
    /// Waiting shards whose unknown parents turned out to be past, with the parents that are left.
    pub reparented: Vec<(ShardId, Vec<ShardId>)>,
    /// Stored shards that can be read from now on.
    pub opened: Vec<ShardId>,
}

/// What `listing` adds to the shards of a pipe, which are all in `known`.
///
/// `judged` are the shards that were stored before the listing was begun. It tells something of their parents: one that is
/// neither stored nor listed is past. Of a shard that was stored while the listing went on, or after, it tells nothing: its
/// parent may be younger than the listing too.
pub fn add(known: &BTreeMap<ShardId, Shard>, listing: &[NewShard], judged: &BTreeSet<ShardId>) -> Added {
    let mut added = Added::default();
    let mut all = known.clone();
    for shard in listing {
        all.entry(shard.id.clone()).or_insert_with(|| fresh(shard));
    }
    let ids: Vec<ShardId> = all.keys().cloned().collect();
    for id in ids {
        let told = !known.contains_key(&id) || judged.contains(&id);
        let parents: Vec<ShardId> = all[&id]
            .parents
            .iter()
            .filter(|parent| !told || all.contains_key(*parent))
            .cloned()
            .collect();
        let finished = |parent: &ShardId| all.get(parent).is_some_and(|row| row.phase == ShardPhase::Finished);
        let ready = parents.iter().all(finished);
        let phase = if ready { ShardPhase::Open } else { ShardPhase::Waiting };
        match known.get(&id) {
            None => {
                let start = all[&id].checkpoint.clone();
                added.new.push((
                    NewShard {
                        id: id.clone(),
                        parents: parents.clone(),
                        start,
                    },
                    phase,
                ));
            }
            Some(row) if row.phase == ShardPhase::Waiting => {
                if parents != row.parents {
                    added.reparented.push((id.clone(), parents.clone()));
                }
                if ready {
                    added.opened.push(id.clone());
                }
            }
            Some(_) => {}
        }
        if let Some(row) = all.get_mut(&id) {
            row.parents = parents;
        }
    }
    added
}

/// What the end of a shard changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Finished {
    /// The shard is to be marked finished, and given up by its owner; false if it is already.
    pub finish: bool,
    /// Children that were not known, and whether they can be read at once.
    pub new: Vec<(NewShard, ShardPhase)>,
    /// Stored shards that can be read from now on.
    pub opened: Vec<ShardId>,
}

/// Whether `shard` may be finished by who holds it under `epoch`, and what follows. The ledger holds all shards of the pipe
/// and the open slices of this one. Finishing again only adds children that are missing.
///
/// # Errors
/// The reason, if not.
pub fn finish(ledger: &Ledger, shard: &ShardId, epoch: Epoch, children: &[NewShard]) -> Result<Finished, Refusal> {
    let row = ledger.shard(shard)?;
    if row.phase != ShardPhase::Finished {
        if row.epoch != epoch {
            return Err(Refusal::StaleEpoch {
                shard: shard.clone(),
                expected: row.epoch,
                found: epoch,
            });
        }
        if row.phase != ShardPhase::Open {
            return Err(Refusal::NotOpen {
                shard: shard.clone(),
                found: row.phase,
            });
        }
        let open = ledger.open(shard).len();
        if open > 0 {
            return Err(Refusal::OpenBatches {
                shard: shard.clone(),
                found: open,
            });
        }
    }
    if let Some(stranger) = children.iter().find(|child| !child.parents.contains(shard)) {
        return Err(Refusal::NotAChild {
            shard: shard.clone(),
            child: stranger.id.clone(),
        });
    }
    let finish = row.phase != ShardPhase::Finished;
    let past = |parent: &ShardId| {
        parent == shard
            || ledger
                .shards
                .get(parent)
                .is_some_and(|parent| parent.phase == ShardPhase::Finished)
    };
    let ready = |parents: &[ShardId]| parents.iter().all(past);
    let mut new: Vec<(NewShard, ShardPhase)> = Vec::new();
    for child in children {
        if !ledger.shards.contains_key(&child.id) && new.iter().all(|(other, _)| other.id != child.id) {
            let phase = if ready(&child.parents) {
                ShardPhase::Open
            } else {
                ShardPhase::Waiting
            };
            new.push((child.clone(), phase));
        }
    }
    let opened = ledger
        .shards
        .iter()
        .filter(|(_, row)| row.phase == ShardPhase::Waiting && ready(&row.parents))
        .map(|(id, _)| id.clone())
        .collect();
    Ok(Finished { finish, new, opened })
}

impl Finished {
    /// Makes the ledger what it is once this was done: for what is to be decided after it in the same transaction.
    pub fn apply(&self, ledger: &mut Ledger, shard: &ShardId) {
        if let Some(row) = ledger.shards.get_mut(shard) {
            (row.phase, row.owner) = (ShardPhase::Finished, None);
        }
        for (child, phase) in &self.new {
            let row = Shard {
                phase: *phase,
                ..fresh(child)
            };
            ledger.shards.insert(child.id.clone(), row);
        }
        for id in &self.opened {
            if let Some(row) = ledger.shards.get_mut(id) {
                row.phase = ShardPhase::Open;
            }
        }
    }
}

/// A shard of which nothing was read.
pub(super) fn fresh(shard: &NewShard) -> Shard {
    Shard {
        parents: shard.parents.clone(),
        phase: ShardPhase::Waiting,
        epoch: Epoch::default(),
        owner: None,
        checkpoint: shard.start.clone(),
        committed: 0,
    }
}

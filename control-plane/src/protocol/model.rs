//! The invariants as a property of random histories over a database in memory: two workers, a merge of two shards, lost
//! grants, stale beliefs, and messages that arrive again later. The exhaustive model, which also has workers and
//! ClickHouse, is among the integration tests.

use proptest::{prelude::*, strategy::ValueTree as _};

use super::{
    invariants,
    memory::{Claims, Memory},
    *,
};
use millrace_common::{
    batch::Terms,
    ids::{Incarnation, Revision, SequenceNumber},
};

/// What is sent to the control plane. Any of it may arrive again at any later time.
#[derive(Debug, Clone)]
enum Message {
    Prepare {
        worker: usize,
        batch: OpenBatch,
        claims: Claims,
    },
    Commit {
        worker: usize,
        id: BatchId,
        claims: Claims,
    },
    Unprepared {
        worker: usize,
        batch: OpenBatch,
        claims: Claims,
    },
    Replace {
        worker: usize,
        id: BatchId,
        parts: Vec<OpenBatch>,
        claims: Claims,
    },
    Grant {
        worker: usize,
        wanted: Claims,
    },
    Release {
        given: Claims,
    },
    Finish {
        shard: ShardId,
        epoch: Epoch,
    },
}

/// One step of a history.
#[derive(Debug, Clone, Copy)]
enum Action {
    /// The coordinator grants these shards, believing in current epochs, or in the ones before.
    Grant { worker: usize, shards: usize, behind: bool },
    /// A worker gives back these shards, under the epochs that it was last granted.
    Release { worker: usize, shards: usize },
    /// A worker prepares the next records of these shards, starting at the frontier or at the checkpoint.
    Prepare {
        worker: usize,
        shards: usize,
        length: u64,
        at_checkpoint: bool,
    },
    /// A worker commits any batch there ever was.
    Commit { worker: usize, pick: prop::sample::Index },
    /// A worker commits without having prepared.
    Unprepared { worker: usize, shards: usize, length: u64 },
    /// A worker replaces any batch there ever was by two parts, or, `swapped`, tries to in the wrong order.
    Replace {
        worker: usize,
        pick: prop::sample::Index,
        swapped: bool,
    },
    /// A worker finishes a shard.
    Finish { worker: usize, shard: usize },
    /// Any earlier message arrives again.
    Again { pick: prop::sample::Index },
    /// An earlier Prepare arrives with other content.
    Tampered { pick: prop::sample::Index },
}

const SHARDS: [&str; 3] = ["shardId-a", "shardId-b", "shardId-merged"];

fn shard_id(index: usize) -> ShardId {
    SHARDS[index].parse().unwrap()
}

fn parents() -> [NewShard; 2] {
    [0, 1].map(|index| NewShard {
        id: shard_id(index),
        parents: Vec::new(),
        start: Position::TrimHorizon,
    })
}

fn merged() -> NewShard {
    NewShard {
        id: shard_id(2),
        parents: vec![shard_id(0), shard_id(1)],
        start: Position::TrimHorizon,
    }
}

fn chosen(mask: usize) -> impl Iterator<Item = ShardId> {
    (0..SHARDS.len())
        .filter(move |index| mask & (1 << index) != 0)
        .map(shard_id)
}

/// A history: the database, what the workers believe, and everything that was sent or accepted.
struct History {
    database: Memory,
    workers: [WorkerInstance; 2],
    /// The epochs that each worker was last granted, also where it has lost them.
    beliefs: [BTreeMap<ShardId, Epoch>; 2],
    sent: Vec<Message>,
}

impl History {
    fn new() -> Self {
        let mut database = Memory::default();
        assert!(database.add(&parents()));
        let worker = |name: &str| WorkerInstance {
            worker: name.parse().unwrap(),
            incarnation: Incarnation::new(),
        };
        Self {
            database,
            workers: [worker("w1"), worker("w2")],
            beliefs: Default::default(),
            sent: Vec::new(),
        }
    }

    /// The message that an action sends, if it can be made at all.
    fn message(&self, action: Action) -> Option<Message> {
        let ledger = &self.database.ledger;
        Some(match action {
            Action::Grant { worker, shards, behind } => {
                let expected = |id: ShardId| {
                    let epoch = ledger.shards.get(&id)?.epoch;
                    Some((
                        id,
                        if behind {
                            Epoch(epoch.0.saturating_sub(1))
                        } else {
                            epoch
                        },
                    ))
                };
                Message::Grant {
                    worker,
                    wanted: chosen(shards).filter_map(expected).collect(),
                }
            }
            Action::Release { worker, shards } => Message::Release {
                given: self.claims(worker, shards),
            },
            Action::Prepare {
                worker,
                shards,
                length,
                at_checkpoint,
            } => {
                let claims = self.claims(worker, shards);
                Message::Prepare {
                    worker,
                    batch: self.batch(&claims, length, at_checkpoint)?,
                    claims,
                }
            }
            Action::Commit { worker, pick } => {
                let ids: Vec<_> = self.database.contents.keys().copied().collect();
                let id = *ids.get(pick.index(ids.len().max(1)))?;
                Message::Commit {
                    worker,
                    id,
                    claims: self.claims(worker, 7),
                }
            }
            Action::Unprepared { worker, shards, length } => {
                let claims = self.claims(worker, shards);
                Message::Unprepared {
                    worker,
                    batch: self.batch(&claims, length, true)?,
                    claims,
                }
            }
            Action::Replace { worker, pick, swapped } => {
                let ids: Vec<_> = self.database.contents.keys().copied().collect();
                let id = *ids.get(pick.index(ids.len().max(1)))?;
                let mut parts = parts(&self.database.contents[&id]);
                if swapped {
                    parts.reverse();
                }
                let claims = self.claims(worker, 7);
                Message::Replace {
                    worker,
                    id,
                    parts,
                    claims,
                }
            }
            Action::Finish { worker, shard } => {
                let shard = shard_id(shard);
                let epoch = *self.beliefs[worker].get(&shard)?;
                Message::Finish { shard, epoch }
            }
            Action::Again { pick } => self.sent.get(pick.index(self.sent.len().max(1)))?.clone(),
            Action::Tampered { pick } => match self.sent.get(pick.index(self.sent.len().max(1)))?.clone() {
                Message::Prepare {
                    worker,
                    mut batch,
                    claims,
                } => {
                    batch.digest[0] ^= 1;
                    Message::Prepare { worker, batch, claims }
                }
                _ => return None,
            },
        })
    }

    fn claims(&self, worker: usize, shards: usize) -> Claims {
        chosen(shards)
            .filter_map(|id| Some((id.clone(), *self.beliefs[worker].get(&id)?)))
            .collect()
    }

    fn batch(&self, claims: &Claims, length: u64, at_checkpoint: bool) -> Option<OpenBatch> {
        let ledger = &self.database.ledger;
        let mut slices = Vec::new();
        for (shard, _) in claims {
            let row = ledger.shards.get(shard)?;
            let from = if at_checkpoint {
                row.checkpoint.clone()
            } else {
                ledger.frontier(shard)?
            };
            let first: u64 = from.sequence_number().map_or(0, |from| from.as_str().parse().unwrap());
            let to_inclusive = (first + length).to_string().parse().unwrap();
            slices.push(Slice {
                shard: shard.clone(),
                from_exclusive: from,
                to_inclusive,
            });
        }
        let counts = Counts {
            rows: length,
            rejected_records: 0,
            records: length,
            bytes: length,
        };
        Some(OpenBatch {
            id: BatchId::new(),
            revision: Revision(1),
            slices,
            counts,
            digest: [7; 16],
            terms: Terms::default(),
        })
    }

    /// Lets a message arrive, and checks what it did.
    fn deliver(&mut self, message: &Message) {
        let before = self.database.clone();
        let changed = self.apply(message).unwrap_or(false);
        if !changed {
            assert_eq!(
                before, self.database,
                "refused or repeated, and yet changed: {message:?}"
            );
        }
        self.check_fence(&before, changed, message).unwrap();
        invariants::forward(&before, &self.database).unwrap();
        invariants::tiling(&self.database).unwrap();
        invariants::no_gap(&self.database).unwrap();
        invariants::totals(&self.database).unwrap();
    }

    /// Who changed something held the current epoch of every shard concerned.
    fn check_fence(&self, before: &Memory, changed: bool, message: &Message) -> Result<(), invariants::Broken> {
        let (worker, claims, slices) = match message {
            Message::Prepare { worker, claims, batch } | Message::Unprepared { worker, claims, batch } => {
                (worker, claims, &batch.slices)
            }
            Message::Commit { worker, claims, id } | Message::Replace { worker, claims, id, .. } => {
                (worker, claims, &before.contents[id].slices)
            }
            Message::Release { given: claims } | Message::Grant { wanted: claims, .. } => {
                return invariants::fence_lease(before, &self.database, claims);
            }
            Message::Finish { shard, epoch } => {
                let claims = vec![(shard.clone(), *epoch)];
                return invariants::fence_lease(before, &self.database, &claims);
            }
        };
        let shards = slices.iter().map(|slice| &slice.shard);
        invariants::fence(before, changed, &self.workers[*worker], claims, shards)
    }

    fn apply(&mut self, message: &Message) -> Result<bool, Refusal> {
        let database = &mut self.database;
        match message {
            Message::Prepare { worker, batch, claims } => {
                let used = database.contents.contains_key(&batch.id);
                let changed = database.prepare(&self.workers[*worker], batch, claims)?;
                assert!(!changed || !used, "a batch id was accepted twice");
                Ok(changed)
            }
            Message::Unprepared { worker, batch, claims } => {
                let used = database.contents.contains_key(&batch.id);
                let changed = database.commit_unprepared(&self.workers[*worker], batch, claims)?;
                assert!(!changed || !used, "a batch id was accepted twice");
                Ok(changed)
            }
            Message::Replace {
                worker,
                id,
                parts,
                claims,
            } => {
                let frontiers = |database: &Memory| -> Vec<_> {
                    let shards = database.ledger.shards.keys();
                    shards.map(|id| database.ledger.frontier(id)).collect()
                };
                let before = frontiers(database);
                let changed = database.replace(&self.workers[*worker], *id, parts, claims)?;
                assert_eq!(frontiers(database), before, "a replacement moved a frontier");
                Ok(changed)
            }
            Message::Commit { worker, id, claims } => database.commit(&self.workers[*worker], *id, claims),
            Message::Grant { worker, wanted } => {
                let granted = database.grant(wanted, &self.workers[*worker])?;
                self.beliefs[*worker].extend(granted);
                Ok(true)
            }
            Message::Release { given } => {
                database.release(given);
                Ok(true)
            }
            Message::Finish { shard, epoch } => {
                let children = if shard.as_str() == SHARDS[2] {
                    Vec::new()
                } else {
                    vec![merged()]
                };
                database.finish(shard, *epoch, &children)
            }
        }
    }
}

/// Two parts of a batch, cut in its first slice if there is room, else behind it; or one, if there is nothing to cut.
fn parts(batch: &OpenBatch) -> Vec<OpenBatch> {
    let (mut first, mut rest) = (batch.clone(), batch.clone());
    (first.id, rest.id) = (BatchId::new(), BatchId::new());
    first.slices.truncate(1);
    let slice = &batch.slices[0];
    let from = slice.from_exclusive.sequence_number().map_or("0", |from| from.as_str());
    let middle: SequenceNumber = (from.parse::<u64>().unwrap() + 1).to_string().parse().unwrap();
    if middle < slice.to_inclusive {
        first.slices[0].to_inclusive = middle;
        rest.slices[0].from_exclusive = first.slices[0].end();
    } else {
        rest.slices.remove(0);
    }
    if rest.slices.is_empty() {
        first.terms.condemned = Some("no".to_owned());
        return vec![first];
    }
    for counts in [&mut first.counts, &mut rest.counts] {
        (counts.rows, counts.records) = (0, 0);
    }
    (rest.counts.rows, rest.counts.records) = (batch.counts.rows, batch.counts.records);
    vec![first, rest]
}

fn actions() -> impl Strategy<Value = Action> {
    let worker = 0..2_usize;
    let shards = 1..8_usize;
    let pick = any::<prop::sample::Index>();
    prop_oneof![
        3 => (worker.clone(), shards.clone(), prop::bool::weighted(0.1))
            .prop_map(|(worker, shards, behind)| Action::Grant { worker, shards, behind }),
        1 => (worker.clone(), shards.clone()).prop_map(|(worker, shards)| Action::Release { worker, shards }),
        6 => (worker.clone(), shards.clone(), 1..4_u64, prop::bool::weighted(0.2)).prop_map(
            |(worker, shards, length, at_checkpoint)| Action::Prepare { worker, shards, length, at_checkpoint }
        ),
        6 => (worker.clone(), pick.clone()).prop_map(|(worker, pick)| Action::Commit { worker, pick }),
        1 => (worker.clone(), shards, 1..4_u64)
            .prop_map(|(worker, shards, length)| Action::Unprepared { worker, shards, length }),
        2 => (worker.clone(), pick.clone(), prop::bool::weighted(0.2))
            .prop_map(|(worker, pick, swapped)| Action::Replace { worker, pick, swapped }),
        1 => (worker, 0..3_usize).prop_map(|(worker, shard)| Action::Finish { worker, shard }),
        3 => pick.clone().prop_map(|pick| Action::Again { pick }),
        1 => pick.prop_map(|pick| Action::Tampered { pick }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_in_every_history(actions in prop::collection::vec(actions(), 1..150)) {
        let mut history = History::new();
        for action in actions {
            if let Some(message) = history.message(action) {
                history.deliver(&message);
                history.sent.push(message);
            }
        }
    }
}

/// The property above says nothing about histories in which all is refused: this one goes all the way.
#[test]
fn a_history_can_go_all_the_way() {
    let mut history = History::new();
    let mut step = |action: Action| {
        let message = history.message(action).unwrap();
        let before = history.database.clone();
        history.deliver(&message);
        history.sent.push(message);
        assert_ne!(before, history.database);
    };
    let first = || {
        any::<prop::sample::Index>()
            .new_tree(&mut Default::default())
            .unwrap()
            .current()
    };
    step(Action::Grant {
        worker: 0,
        shards: 3,
        behind: false,
    });
    step(Action::Prepare {
        worker: 0,
        shards: 3,
        length: 2,
        at_checkpoint: false,
    });
    step(Action::Grant {
        worker: 1,
        shards: 3,
        behind: false,
    });
    step(Action::Commit {
        worker: 1,
        pick: first(),
    });
    step(Action::Unprepared {
        worker: 1,
        shards: 1,
        length: 2,
    });
    step(Action::Finish { worker: 1, shard: 0 });
    step(Action::Finish { worker: 1, shard: 1 });
    step(Action::Grant {
        worker: 0,
        shards: 4,
        behind: false,
    });
    step(Action::Prepare {
        worker: 0,
        shards: 4,
        length: 2,
        at_checkpoint: false,
    });
    assert_eq!(history.database.committed.len(), 2);
    assert_eq!(history.database.batches.len(), 1);
}

//! A database in memory that runs the decisions, and the invariants that must hold after every step, as a property of
//! random histories: two workers, a merge of two shards, lost grants, stale beliefs, and messages that arrive again later.

use proptest::{prelude::*, strategy::ValueTree as _};

use super::*;
use millrace_common::ids::{Incarnation, Revision};

/// What the store would hold, and what has happened to it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Database {
    ledger: Ledger,
    batches: BTreeMap<BatchId, OpenBatch>,
    committed: BTreeSet<BatchId>,
    rows: u64,
}

impl Database {
    fn prepare(&mut self, worker: &WorkerInstance, batch: &OpenBatch, claims: &Claims) -> Result<bool, Refusal> {
        let same = self.batches.get(&batch.id);
        match prepare(
            &self.ledger,
            same,
            self.committed.contains(&batch.id),
            worker,
            batch,
            claims,
        )? {
            Prepare::Already => Ok(false),
            Prepare::Store { ordinals } => {
                for (slice, ordinal) in batch.slices.iter().zip(ordinals) {
                    let open = OpenSlice {
                        ordinal,
                        batch: batch.id,
                        slice: slice.clone(),
                    };
                    self.ledger.slices.entry(slice.shard.clone()).or_default().push(open);
                }
                self.batches.insert(batch.id, batch.clone());
                Ok(true)
            }
        }
    }

    fn commit(&mut self, worker: &WorkerInstance, id: BatchId, claims: &Claims) -> Result<bool, Refusal> {
        let open = self.batches.get(&id);
        let decision = commit(&self.ledger, open, self.committed.contains(&id), worker, id, claims)?;
        let rows = open.map_or(0, |open| open.counts.rows);
        Ok(self.advance(id, decision, rows))
    }

    fn commit_unprepared(
        &mut self,
        worker: &WorkerInstance,
        batch: &OpenBatch,
        claims: &Claims,
    ) -> Result<bool, Refusal> {
        if self.batches.contains_key(&batch.id) {
            return Err(Refusal::OtherContent { batch: batch.id });
        }
        let committed = self.committed.contains(&batch.id);
        let decision = commit_unprepared(&self.ledger, committed, worker, &batch.slices, batch.counts, claims)?;
        Ok(self.advance(batch.id, decision, batch.counts.rows))
    }

    fn advance(&mut self, id: BatchId, decision: Commit, rows: u64) -> bool {
        let Commit::Advance(advances) = decision else {
            return false;
        };
        for advance in advances {
            let row = self.ledger.shards.get_mut(&advance.shard).unwrap();
            row.checkpoint = advance.checkpoint;
            row.committed += 1;
            assert_eq!(row.committed, advance.ordinal);
        }
        for queue in self.ledger.slices.values_mut() {
            queue.retain(|slice| slice.batch != id);
        }
        self.ledger.slices.retain(|_, queue| !queue.is_empty());
        self.batches.remove(&id);
        self.committed.insert(id);
        self.rows += rows;
        true
    }

    fn grant(&mut self, wanted: &Claims, worker: &WorkerInstance) -> Result<Claims, Refusal> {
        let granted = grant(&self.ledger, wanted, worker)?;
        for (shard, epoch) in &granted {
            let row = self.ledger.shards.get_mut(shard).unwrap();
            row.epoch = *epoch;
            row.owner = Some(worker.clone());
        }
        Ok(granted)
    }

    fn release(&mut self, given: &Claims) {
        for shard in release(&self.ledger, given) {
            self.ledger.shards.get_mut(&shard).unwrap().owner = None;
        }
    }

    fn finish(&mut self, shard: &ShardId, epoch: Epoch, children: &[NewShard]) -> Result<bool, Refusal> {
        let finished = finish(&self.ledger, shard, epoch, children)?;
        if finished.finish {
            let row = self.ledger.shards.get_mut(shard).unwrap();
            row.phase = ShardPhase::Finished;
            row.owner = None;
        }
        for (new, phase) in finished.new {
            self.ledger.shards.insert(new.id.clone(), stored(&new, phase));
        }
        for id in finished.opened {
            self.ledger.shards.get_mut(&id).unwrap().phase = ShardPhase::Open;
        }
        Ok(finished.finish)
    }
}

type Claims = Vec<(ShardId, Epoch)>;

fn stored(new: &NewShard, phase: ShardPhase) -> Shard {
    Shard {
        parents: new.parents.clone(),
        phase,
        epoch: Epoch(0),
        owner: None,
        checkpoint: new.start.clone(),
        committed: 0,
    }
}

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
    database: Database,
    workers: [WorkerInstance; 2],
    /// The epochs that each worker was last granted, also where it has lost them.
    beliefs: [BTreeMap<ShardId, Epoch>; 2],
    sent: Vec<Message>,
    /// All slices that were ever accepted, in order of acceptance.
    accepted: BTreeMap<ShardId, Vec<Slice>>,
    contents: BTreeMap<BatchId, OpenBatch>,
}

impl History {
    fn new() -> Self {
        let mut database = Database::default();
        for (new, phase) in add(&BTreeMap::new(), &parents()).new {
            database.ledger.shards.insert(new.id.clone(), stored(&new, phase));
        }
        let worker = |name: &str| WorkerInstance {
            worker: name.parse().unwrap(),
            incarnation: Incarnation::new(),
        };
        Self {
            database,
            workers: [worker("w1"), worker("w2")],
            beliefs: Default::default(),
            sent: Vec::new(),
            accepted: BTreeMap::new(),
            contents: BTreeMap::new(),
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
                let ids: Vec<_> = self.contents.keys().copied().collect();
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
        if let Message::Prepare { worker, claims, batch } | Message::Unprepared { worker, claims, batch } = message {
            self.check_fence(
                &before,
                changed,
                *worker,
                claims,
                batch.slices.iter().map(|slice| &slice.shard),
            );
        }
        if let Message::Commit { worker, claims, id } = message {
            let slices = self.contents[id].slices.clone();
            self.check_fence(
                &before,
                changed,
                *worker,
                claims,
                slices.iter().map(|slice| &slice.shard),
            );
        }
        if let Message::Release { given: claims } | Message::Grant { wanted: claims, .. } = message {
            for (shard, row) in &before.ledger.shards {
                let same = self.database.ledger.shards[shard] == *row;
                assert!(
                    same || claims.contains(&(shard.clone(), row.epoch)),
                    "a stale epoch moved a lease"
                );
            }
        }
        if let Message::Finish { shard, epoch } = message {
            assert!(
                !changed || before.ledger.shards[shard].epoch == *epoch,
                "a stale epoch finished a shard"
            );
        }
        self.check_invariants(&before);
    }

    fn apply(&mut self, message: &Message) -> Result<bool, Refusal> {
        let database = &mut self.database;
        match message {
            Message::Prepare { worker, batch, claims } => {
                let changed = database.prepare(&self.workers[*worker], batch, claims)?;
                if changed {
                    self.accept(batch);
                }
                Ok(changed)
            }
            Message::Unprepared { worker, batch, claims } => {
                let changed = database.commit_unprepared(&self.workers[*worker], batch, claims)?;
                if changed {
                    self.accept(batch);
                }
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

    fn accept(&mut self, batch: &OpenBatch) {
        for slice in &batch.slices {
            self.accepted
                .entry(slice.shard.clone())
                .or_default()
                .push(slice.clone());
        }
        let other = self.contents.insert(batch.id, batch.clone());
        assert_eq!(other, None, "a batch id was accepted twice");
    }

    /// Who changed something held the current epoch of every shard concerned.
    fn check_fence<'a>(
        &self,
        before: &Database,
        changed: bool,
        worker: usize,
        claims: &Claims,
        shards: impl Iterator<Item = &'a ShardId>,
    ) {
        for shard in shards {
            let row = &before.ledger.shards[shard];
            let current = claims.contains(&(shard.clone(), row.epoch));
            let owner = row.owner.as_ref() == Some(&self.workers[worker]);
            assert!(!changed || (current && owner), "a stale epoch changed something");
        }
    }

    fn check_invariants(&self, before: &Database) {
        let ledger = &self.database.ledger;
        for (id, row) in &ledger.shards {
            let accepted = self.accepted.get(id).map_or(&[][..], Vec::as_slice);
            let mut end = Position::TrimHorizon;
            for slice in accepted {
                assert_eq!(slice.from_exclusive, end, "a hole or an overlap in {id}");
                assert!(slice.is_forward());
                end = slice.end();
            }
            let committed = usize::try_from(row.committed).unwrap();
            let checkpoint = accepted[..committed].last().map_or(Position::TrimHorizon, Slice::end);
            assert_eq!(
                row.checkpoint, checkpoint,
                "the checkpoint is not where the committed slices end"
            );
            let open: Vec<_> = ledger.open(id).iter().map(|open| open.slice.clone()).collect();
            assert_eq!(
                open,
                accepted[committed..],
                "the open slices are not what follows the committed ones"
            );
            let ordinals: Vec<_> = ledger.open(id).iter().map(|open| open.ordinal).collect();
            let expected: Vec<_> = (row.committed + 1..).take(open.len()).collect();
            assert_eq!(ordinals, expected);
            if let Some(earlier) = before.ledger.shards.get(id) {
                assert!(row.committed >= earlier.committed && row.epoch >= earlier.epoch && row.phase >= earlier.phase);
            }
            let parents = row.parents.iter().all(|parent| {
                ledger
                    .shards
                    .get(parent)
                    .is_some_and(|parent| parent.phase == ShardPhase::Finished)
            });
            assert_eq!(row.phase == ShardPhase::Waiting, !parents, "{id} and its parents");
            assert!(row.phase != ShardPhase::Finished || (open.is_empty() && row.owner.is_none()));
        }
        for (id, batch) in &self.database.batches {
            assert_eq!(batch, &self.contents[id], "an open batch changed");
            let owners: BTreeSet<_> = batch
                .slices
                .iter()
                .filter_map(|slice| ledger.shards[&slice.shard].owner.as_ref())
                .collect();
            assert!(owners.len() <= 1, "an open batch is torn between {owners:?}");
        }
        let open: BTreeSet<_> = ledger.slices.values().flatten().map(|slice| slice.batch).collect();
        assert_eq!(open, self.database.batches.keys().copied().collect());
        let rows: u64 = self
            .database
            .committed
            .iter()
            .map(|id| self.contents[id].counts.rows)
            .sum();
        assert_eq!(self.database.rows, rows, "a batch was counted twice or not at all");
        let order = oldest_first(&ledger.slices).expect("older-than has no circle");
        for queue in ledger.slices.values() {
            let places: Vec<_> = queue
                .iter()
                .map(|slice| order.iter().position(|id| *id == slice.batch).unwrap())
                .collect();
            assert!(places.is_sorted(), "oldest first");
        }
    }
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

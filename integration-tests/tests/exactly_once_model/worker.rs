//! A worker of the small world: the production tracker, and around it what a lane does with assignments and answers, without
//! records, memory and time.

use std::collections::{BTreeMap, BTreeSet};

use millrace_common::ids::ShardId;
use millrace_data_plane::commit::tracker::{Admission, Step, Tracker};

use super::{
    faulty::Fault,
    names::{self, BATCHES, Cut, Epochs, PARENT, Row},
};

/// Batches that a worker has open at a time.
const MAX_OPEN: usize = 2;

/// Something on its way to the control plane or to ClickHouse. Whoever sent it may be long gone when it arrives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Request {
    Prepare {
        from: u8,
        cut: Cut,
        epochs: Epochs,
    },
    Insert {
        from: u8,
        batch: u8,
        token: u8,
        rows: Vec<Row>,
        condemned: bool,
    },
    Replace {
        from: u8,
        batch: u8,
        parts: Vec<Cut>,
        epochs: Epochs,
    },
    Commit {
        from: u8,
        batch: u8,
        epochs: Epochs,
    },
    Finish {
        from: u8,
        shard: u8,
        epoch: u64,
    },
}

impl Request {
    pub(crate) fn from(&self) -> u8 {
        let (Self::Prepare { from, .. }
        | Self::Insert { from, .. }
        | Self::Replace { from, .. }
        | Self::Commit { from, .. }
        | Self::Finish { from, .. }) = self;
        *from
    }

    /// The step that it carries out.
    pub(crate) fn step(&self) -> Option<Step> {
        match self {
            Self::Prepare { cut, .. } => Some(Step::Prepare(names::batch(cut.id))),
            Self::Insert { batch, .. } => Some(Step::Send(names::batch(*batch))),
            Self::Replace { batch, .. } => Some(Step::Replace(names::batch(*batch))),
            Self::Commit { batch, .. } => Some(Step::Commit(names::batch(*batch))),
            Self::Finish { .. } => None,
        }
    }
}

/// A shard as a worker holds it, or believes to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Held {
    pub(crate) epoch: u64,
    /// Records before the next slice.
    pub(crate) next: u8,
}

/// A batch that is not committed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Open {
    pub(crate) cut: Cut,
    pub(crate) replay: bool,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Worker {
    pub(crate) process: u8,
    pub(crate) held: BTreeMap<u8, Held>,
    pub(crate) open: BTreeMap<u8, Open>,
    pub(crate) tracker: Tracker,
    /// Steps that wait for an answer.
    pub(crate) awaits: BTreeSet<Step>,
    /// Batches that it has made.
    pub(crate) made: u8,
}

impl Worker {
    pub(crate) fn new(process: u8) -> Self {
        Self {
            process,
            held: BTreeMap::new(),
            open: BTreeMap::new(),
            tracker: Tracker::new(),
            awaits: BTreeSet::new(),
            made: 0,
        }
    }

    /// Whether an answer to this request would be heard: it is the call that the worker waits for now. The answer to an
    /// earlier call under other leases comes to nobody.
    pub(crate) fn hears(&self, request: &Request) -> bool {
        let current =
            |id: u8, epochs: &Epochs| self.open.get(&id).is_some_and(|open| self.epochs(&open.cut) == *epochs);
        let now = match request {
            Request::Prepare { cut, epochs, .. } => current(cut.id, epochs),
            Request::Replace { batch, epochs, .. } | Request::Commit { batch, epochs, .. } => current(*batch, epochs),
            Request::Insert { .. } => true,
            Request::Finish { shard, epoch, .. } => self.held.get(shard).is_some_and(|held| held.epoch == *epoch),
        };
        let waits = request.step().is_none_or(|step| self.awaits.contains(&step));
        self.process == request.from() && waits && now
    }

    /// Whether there is nothing that a crash could take.
    pub(crate) fn is_blank(&self) -> bool {
        self.held.is_empty() && self.open.is_empty()
    }

    /// The batches that could be cut now: all that is there, and each record by itself.
    pub(crate) fn cuts(&self, records: &[u8]) -> Vec<Vec<(u8, u8, u8)>> {
        if self.tracker.cut_here() >= MAX_OPEN || self.made >= BATCHES {
            return Vec::new();
        }
        let replayed = |shard: u8| self.open.values().any(|open| open.replay && open.cut.touches(shard));
        let ready: Vec<(u8, u8, u8)> = self
            .held
            .iter()
            .filter(|(shard, held)| held.next < records[usize::from(**shard)] && !replayed(**shard))
            .map(|(shard, held)| (*shard, held.next, records[usize::from(*shard)]))
            .collect();
        let mut cuts = vec![ready.clone()];
        cuts.extend(ready.iter().map(|(shard, from, _)| vec![(*shard, *from, *from + 1)]));
        cuts.sort();
        cuts.dedup();
        cuts.retain(|cut| !cut.is_empty());
        cuts
    }

    pub(crate) fn cut(&mut self, slices: Vec<(u8, u8, u8)>) -> Cut {
        let id = self.process * BATCHES + self.made;
        self.made += 1;
        for (shard, _, to) in &slices {
            self.held.get_mut(shard).expect("a held shard").next = *to;
        }
        let condemned = false;
        let cut = Cut { id, slices, condemned };
        self.tracker.building(names::batch(id), shards(&cut));
        self.tracker.built(names::batch(id), shards(&cut), Admission::Prepare);
        self.open.insert(
            id,
            Open {
                cut: cut.clone(),
                replay: false,
            },
        );
        cut
    }

    /// Takes up shards that were granted, each with its epoch and frontier, and the open batches, oldest first.
    pub(crate) fn take_up(&mut self, granted: &[(u8, u64, u8)], batches: &[Cut]) {
        let moved = granted.iter().filter(|(shard, ..)| self.held.contains_key(shard));
        let moved: Vec<u8> = moved.map(|(shard, ..)| *shard).collect();
        self.lose(&moved);
        for (shard, epoch, next) in granted {
            let (epoch, next) = (*epoch, *next);
            self.held.insert(*shard, Held { epoch, next });
        }
        let fresh = |shard: &u8| granted.iter().any(|(other, ..)| other == shard);
        for cut in batches {
            if !cut.slices.iter().all(|(shard, ..)| fresh(shard)) {
                continue;
            }
            self.tracker.rebuilding(names::batch(cut.id), shards(cut));
            self.open.insert(
                cut.id,
                Open {
                    cut: cut.clone(),
                    replay: true,
                },
            );
        }
    }

    /// Its batch was read again and rebuilt.
    pub(crate) fn rebuilt(&mut self, id: u8) -> bool {
        self.tracker.rebuilt(names::batch(id))
    }

    /// Does what the tracker allows, and says when a shard is at its end.
    pub(crate) fn pump(&mut self, sent: &mut BTreeSet<Request>, records: &[u8], fault: Fault) {
        while let Some(step) = self.tracker.next_step() {
            let id = names::batch_number(step.batch());
            let open = self.open[&id].clone();
            let (from, epochs) = (self.process, self.epochs(&open.cut));
            self.awaits.insert(step);
            match step {
                Step::Prepare(_) => {
                    if fault == Fault::SendBeforePrepare {
                        sent.insert(self.insert(id, &open, fault));
                    }
                    let cut = open.cut;
                    sent.insert(Request::Prepare { from, cut, epochs });
                }
                Step::Send(_) => {
                    sent.insert(self.insert(id, &open, fault));
                    if fault == Fault::CommitBeforeAnswer {
                        sent.insert(Request::Commit {
                            from,
                            batch: id,
                            epochs,
                        });
                    }
                }
                Step::Replace(_) => {
                    let mut parts = open.cut.parts(self.process * BATCHES + self.made);
                    self.made += u8::try_from(parts.len()).expect("two parts");
                    assert!(self.made <= BATCHES, "more batches than there are names for");
                    if fault == Fault::ReplaceWithHole && parts.len() > 1 {
                        parts.pop();
                    }
                    sent.insert(Request::Replace {
                        from,
                        batch: id,
                        parts,
                        epochs,
                    });
                }
                Step::Commit(_) => {
                    sent.insert(Request::Commit {
                        from,
                        batch: id,
                        epochs,
                    });
                }
            }
        }
        if fault == Fault::PrepareAnywhere {
            for open in self.open.values().filter(|open| !open.replay) {
                let (from, cut, epochs) = (self.process, open.cut.clone(), self.epochs(&open.cut));
                sent.insert(Request::Prepare { from, cut, epochs });
            }
        }
        if let Some(held) = self.held.get(&PARENT)
            && held.next == records[usize::from(PARENT)]
            && (!self.tracker.holds(names::shard(PARENT)) || fault == Fault::FinishWithOpenBatches)
        {
            let (from, shard, epoch) = (self.process, PARENT, held.epoch);
            sent.insert(Request::Finish { from, shard, epoch });
        }
    }

    fn insert(&self, batch: u8, open: &Open, fault: Fault) -> Request {
        let mut rows = open.cut.rows();
        let mut token = batch;
        if open.replay && fault == Fault::NewTokenOnReplay {
            token = 128 + batch;
        }
        if open.replay && fault == Fault::OtherRowsOnReplay {
            rows.pop();
        }
        let from = self.process;
        let condemned = open.cut.condemned && !(open.replay && fault == Fault::ForgottenCondemnation);
        Request::Insert {
            from,
            batch,
            token,
            rows,
            condemned,
        }
    }

    fn epochs(&self, cut: &Cut) -> Epochs {
        let epoch = |(shard, ..): &(u8, u8, u8)| Some((*shard, self.held.get(shard)?.epoch));
        cut.slices.iter().filter_map(epoch).collect()
    }

    /// What commits a batch, whether or not its turn has come.
    pub(crate) fn commit_of(&self, batch: u8) -> Option<Request> {
        let (from, epochs) = (self.process, self.epochs(&self.open.get(&batch)?.cut));
        Some(Request::Commit { from, batch, epochs })
    }

    /// A step was answered. It waits for that; who does not, is not told.
    pub(crate) fn answered(&mut self, step: Step, accepted: bool) {
        self.awaits.remove(&step);
        let id = names::batch_number(step.batch());
        if let (Step::Send(batch), false) = (step, accepted) {
            // Nothing of it was applied: all attempts were answered so, here and, of the same table, elsewhere.
            self.tracker.refused(batch);
            return;
        }
        if !accepted {
            let shards: Vec<u8> = self.open[&id].cut.slices.iter().map(|(shard, ..)| *shard).collect();
            return self.lose(&shards);
        }
        self.tracker.done(step);
        if matches!(step, Step::Commit(_)) {
            self.open.remove(&id);
        }
    }

    /// A refused batch was replaced.
    pub(crate) fn replaced(&mut self, batch: u8, parts: &[Cut]) {
        self.awaits.remove(&Step::Replace(names::batch(batch)));
        let replay = self.open.remove(&batch).is_some_and(|open| open.replay);
        let of = |cut: &Cut| (names::batch(cut.id), shards(cut));
        self.tracker
            .replaced(names::batch(batch), parts.iter().map(of).collect());
        for cut in parts {
            let cut = cut.clone();
            self.open.insert(cut.id, Open { cut, replay });
        }
    }

    /// The leases of shards are not what the worker believed.
    pub(crate) fn lose(&mut self, lost: &[u8]) {
        if lost.is_empty() {
            return;
        }
        let dropped = self
            .tracker
            .drop_shards(lost.iter().map(|n| names::shard(*n).clone()).collect());
        let mut rewinds: BTreeMap<u8, u8> = BTreeMap::new();
        for id in dropped.batches {
            self.awaits.retain(|step| step.batch() != id);
            let open = self.open.remove(&names::batch_number(id)).expect("an open batch");
            for (shard, from, _) in open.cut.slices {
                rewinds.entry(shard).or_insert(from);
            }
        }
        for shard in &dropped.lost {
            self.held.remove(&names::shard_number(shard));
        }
        for shard in &dropped.rewound {
            let shard = names::shard_number(shard);
            if let (Some(held), Some(to)) = (self.held.get_mut(&shard), rewinds.get(&shard)) {
                held.next = *to;
            }
        }
    }
}

fn shards(cut: &Cut) -> BTreeSet<ShardId> {
    cut.slices
        .iter()
        .map(|(shard, ..)| names::shard(*shard).clone())
        .collect()
}

//! The small world as a stateright model: its state, what can happen in it, and what then comes of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use millrace_common::ids::{Epoch, ShardId};
use millrace_control_plane::protocol::{
    self, Advance, Commit, Ledger, Prepare, Refusal, ShardPhase,
    invariants::{self, Broken},
    memory::{Claims, Memory},
};
use millrace_data_plane::commit::tracker::Step;
use stateright::{Model, Property};

use super::{
    faulty::Fault,
    names::{self, Cut, Epochs, PARENT, RECORDS, Row, SHARDS, WORKERS},
    properties,
    worker::{Request, Worker},
};

/// A world: how many records there are, what may go wrong, and what is wrong with it.
#[derive(Debug, Clone)]
pub(crate) struct World {
    /// Records of each shard.
    pub(crate) records: [u8; SHARDS],
    /// What may happen, and how often.
    pub(crate) trouble: Trouble,
    pub(crate) fault: Fault,
    /// A record that the table does not take.
    pub(crate) poison: Option<Row>,
}

/// How often something may still happen that nobody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Trouble {
    /// Each worker may crash so often.
    pub(crate) crashes: [u8; WORKERS],
    /// So often all leases of a worker end while it goes on.
    pub(crate) expiries: u8,
    /// So often a drained shard is given back to be placed elsewhere.
    pub(crate) moves: u8,
}

/// What ClickHouse has.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Table {
    /// Tokens in its deduplication log.
    pub(crate) tokens: BTreeSet<u8>,
    /// How often each record is there.
    pub(crate) copies: [[u8; RECORDS + 1]; SHARDS],
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) control: Arc<Memory>,
    pub(crate) workers: [Arc<Worker>; WORKERS],
    /// All that was ever sent: it can arrive at any time, any number of times, or never.
    pub(crate) sent: Arc<BTreeSet<Request>>,
    pub(crate) table: Table,
    pub(crate) trouble: Trouble,
    /// An invariant of a single step that was broken.
    pub(crate) broken: Option<&'static str>,
}

/// Something that happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The stream is listed.
    List,
    /// Free shards are granted, with all that is tied to them.
    Grant { to: usize, shards: Vec<u8> },
    /// A worker reports what it holds: what it does not is taken back.
    Report { worker: usize },
    /// The leases of a worker end; it does not know.
    Expire { worker: usize },
    /// A drained shard is given back.
    Release { worker: usize, shard: u8 },
    /// A worker cuts a batch.
    Cut { worker: usize, slices: Vec<(u8, u8, u8)> },
    /// A worker has read a batch of an earlier owner again.
    Replay { worker: usize, batch: u8 },
    /// A worker gives up a batch whose insert was not answered: only where that is the fault.
    GiveUp { worker: usize, batch: u8 },
    /// A request arrives, and its answer too, or not.
    Arrive { request: Request, answered: bool },
    /// A worker dies and starts again, knowing nothing.
    Crash { worker: usize },
}

impl Model for World {
    type State = State;
    type Action = Event;

    fn init_states(&self) -> Vec<State> {
        let mut control = Memory::default();
        control.add(&names::stream()[..2]);
        vec![State {
            control: Arc::new(control),
            workers: [0, 1].map(|worker| Arc::new(Worker::new(names::process(worker, 0)))),
            sent: Arc::default(),
            table: Table::default(),
            trouble: self.trouble,
            broken: None,
        }]
    }

    fn actions(&self, state: &State, events: &mut Vec<Event>) {
        if state.control.ledger.shards.len() < SHARDS {
            events.push(Event::List);
        }
        for worker in 0..WORKERS {
            self.events_of(state, worker, events);
        }
        for shards in grantable(&state.control.ledger, self.fault) {
            // The workers are alike: the first grant of all goes to the first of them.
            let untouched = state.control.ledger.shards.values().all(|row| row.epoch == Epoch(0));
            for to in 0..if untouched { 1 } else { WORKERS } {
                let shards = shards.clone();
                events.push(Event::Grant { to, shards });
            }
        }
        for request in state.sent.iter() {
            let worker = &state.workers[names::worker_of(request.from())];
            let request = request.clone();
            if worker.hears(&request) {
                events.push(Event::Arrive {
                    request: request.clone(),
                    answered: true,
                });
            }
            events.push(Event::Arrive {
                request,
                answered: false,
            });
        }
    }

    fn next_state(&self, last: &State, event: Event) -> Option<State> {
        let mut next = last.clone();
        let changed = match event {
            Event::List => Arc::make_mut(&mut next.control).add(&names::stream()),
            Event::Grant { to, shards } => self.grant(&mut next, to, &shards),
            Event::Report { worker } => {
                let missing = missing(&next, worker);
                !Arc::make_mut(&mut next.control).release(&missing).is_empty()
            }
            Event::Expire { worker } => {
                next.trouble.expiries -= 1;
                let owned = owned(&next, worker);
                !Arc::make_mut(&mut next.control).release(&owned).is_empty()
            }
            Event::Release { worker, shard } => {
                next.trouble.moves -= 1;
                let held = Arc::make_mut(&mut next.workers[worker]).held.remove(&shard);
                let epoch = held.map_or(0, |held| held.epoch);
                let given = names::claims(&vec![(shard, epoch)]);
                !Arc::make_mut(&mut next.control).release(&given).is_empty()
            }
            Event::Cut { worker, slices } => {
                Arc::make_mut(&mut next.workers[worker]).cut(slices);
                true
            }
            Event::Replay { worker, batch } => Arc::make_mut(&mut next.workers[worker]).rebuilt(batch),
            Event::GiveUp { worker, batch } => {
                let worker = Arc::make_mut(&mut next.workers[worker]);
                worker.answered(Step::Send(names::batch(batch)), false);
                true
            }
            Event::Arrive { request, answered } => self.arrive(&mut next, &request, answered),
            Event::Crash { worker } => {
                next.trouble.crashes[worker] -= 1;
                let process = next.workers[worker].process + 1;
                next.workers[worker] = Arc::new(Worker::new(process));
                true
            }
        };
        if !changed {
            return None;
        }
        if let Err(Broken { invariant, .. }) = invariants::forward(&last.control, &next.control) {
            next.broken = Some(invariant);
        }
        for worker in &mut next.workers {
            let mut pumped = (**worker).clone();
            let mut sent = (*next.sent).clone();
            pumped.pump(&mut sent, &self.records, self.fault);
            if pumped != **worker {
                *worker = Arc::new(pumped);
            }
            if sent.len() != next.sent.len() {
                next.sent = Arc::new(sent);
            }
        }
        // An event that changes nothing is none: a state in which nothing else can happen is an end.
        (next != *last).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

impl World {
    fn events_of(&self, state: &State, at: usize, events: &mut Vec<Event>) {
        let worker = &state.workers[at];
        for slices in worker.cuts(&self.records) {
            events.push(Event::Cut { worker: at, slices });
        }
        for (id, open) in &worker.open {
            if open.replay {
                let (worker, batch) = (at, *id);
                events.push(Event::Replay { worker, batch });
            }
        }
        if self.fault == Fault::ReplaceInDoubt {
            let sends = worker.awaits.iter().filter(|step| matches!(step, Step::Send(_)));
            events.extend(sends.map(|step| {
                let (worker, batch) = (at, names::batch_number(step.batch()));
                Event::GiveUp { worker, batch }
            }));
        }
        if !missing(state, at).is_empty() {
            events.push(Event::Report { worker: at });
        }
        if state.trouble.expiries > 0 && !owned(state, at).is_empty() {
            events.push(Event::Expire { worker: at });
        }
        if state.trouble.crashes[at] > 0 && !worker.is_blank() {
            events.push(Event::Crash { worker: at });
        }
        if state.trouble.moves > 0 {
            for (shard, held) in &worker.held {
                let row = &state.control.ledger.shards[names::shard(*shard)];
                let current = row.epoch == Epoch(held.epoch) && row.owner.is_some();
                if current && !worker.tracker.holds(names::shard(*shard)) {
                    let (worker, shard) = (at, *shard);
                    events.push(Event::Release { worker, shard });
                }
            }
        }
    }

    fn grant(&self, next: &mut State, to: usize, shards: &[u8]) -> bool {
        let process = next.workers[to].process;
        let ledger = &next.control.ledger;
        let wanted: Claims = shards
            .iter()
            .map(|n| (names::shard(*n).clone(), ledger.shards[names::shard(*n)].epoch))
            .collect();
        let decided = match self.fault {
            Fault::TearingGrant => {
                let shards = ledger.shards.clone();
                let slices = BTreeMap::new();
                protocol::grant(&Ledger { shards, slices }, &wanted, names::instance(process))
            }
            Fault::ChildrenAtOnce => {
                let mut ledger = ledger.clone();
                ledger.shards.values_mut().for_each(|row| {
                    row.parents.clear();
                    row.phase = ShardPhase::Open;
                });
                protocol::grant(&ledger, &wanted, names::instance(process))
            }
            _ => protocol::grant(ledger, &wanted, names::instance(process)),
        };
        let Ok(granted) = decided else { return false };
        let control = Arc::make_mut(&mut next.control);
        control.give(&granted, names::instance(process));
        if self.fault == Fault::ChildrenAtOnce {
            for (shard, _) in &granted {
                control.ledger.shards.get_mut(shard).expect("a shard").phase = ShardPhase::Open;
            }
        }
        let granted: Vec<(u8, u64, u8)> = granted
            .iter()
            .map(|(shard, epoch)| {
                let frontier = control.ledger.frontier(shard).expect("a frontier");
                (names::shard_number(shard), epoch.0, names::place(&frontier))
            })
            .collect();
        let order = protocol::oldest_first(&control.ledger.slices).unwrap_or_default();
        let batches: Vec<Cut> = order.iter().map(|id| Cut::of(&control.batches[id])).collect();
        let batches = if self.fault == Fault::ForgottenBatches {
            &[]
        } else {
            batches.as_slice()
        };
        Arc::make_mut(&mut next.workers[to]).take_up(&granted, batches);
        true
    }

    /// A request arrives, and if `answered` the worker hears what came of it. Whether anything changed.
    fn arrive(&self, next: &mut State, request: &Request, answered: bool) -> bool {
        let before = Arc::clone(&next.control);
        let (changed, accepted) = match request {
            Request::Insert { rows, condemned, .. }
                if !condemned && self.poison.is_some_and(|row| rows.contains(&row)) =>
            {
                (false, false)
            }
            Request::Insert { token, rows, .. } => (self.insert(&mut next.table, *token, rows), true),
            Request::Replace {
                from,
                batch,
                parts,
                epochs,
            } => outcome(&self.replace(&mut next.control, *from, *batch, parts, epochs)),
            Request::Prepare { from, cut, epochs } => outcome(&self.prepare(&mut next.control, *from, cut, epochs)),
            Request::Commit { from, batch, epochs } => outcome(&self.commit(&mut next.control, *from, *batch, epochs)),
            Request::Finish { shard, epoch, .. } => outcome(&self.finish(&mut next.control, *shard, *epoch)),
        };
        if let Err(Broken { invariant, .. }) = fence(&before, &next.control, changed, request) {
            next.broken = Some(invariant);
        }
        if !answered {
            return changed;
        }
        let worker = Arc::make_mut(&mut next.workers[names::worker_of(request.from())]);
        match (request.step(), request) {
            (Some(_), Request::Replace { batch, parts, .. }) if accepted => worker.replaced(*batch, parts),
            (Some(step), _) => worker.answered(step, accepted),
            (None, Request::Finish { shard, epoch, .. }) => {
                // The next assignment does not name it any more.
                worker.held.retain(|held, state| held != shard || state.epoch != *epoch);
            }
            (None, _) => {}
        }
        if let (Fault::CommitInAnyOrder, Request::Insert { batch, .. }) = (self.fault, request) {
            Arc::make_mut(&mut next.sent).extend(worker.commit_of(*batch));
        }
        true
    }

    fn insert(&self, table: &mut Table, token: u8, rows: &[Row]) -> bool {
        let first = table.tokens.insert(token);
        if first || self.fault == Fault::NoDeduplication {
            for (shard, n) in rows {
                let copies = &mut table.copies[usize::from(*shard)][usize::from(*n)];
                // Two are as bad as more.
                *copies = (*copies + 1).min(2);
            }
        }
        first
            || self.fault == Fault::NoDeduplication
                && rows
                    .iter()
                    .any(|(s, n)| table.copies[usize::from(*s)][usize::from(*n)] < 2)
    }

    fn prepare(&self, control: &mut Arc<Memory>, from: u8, cut: &Cut, epochs: &Epochs) -> Result<bool, Refusal> {
        let batch = cut.open_batch();
        let mut caller = names::instance(from).clone();
        let mut claims = names::claims(epochs);
        if self.fault == Fault::PrepareOfAnybody {
            (caller, claims) = holder(&control.ledger, batch.slices.iter().map(|slice| &slice.shard), caller);
        }
        let same = control.batches.get(&batch.id);
        let committed = control.committed.contains(&batch.id);
        let decided = protocol::prepare(&control.ledger, same, committed, &caller, &batch, &claims);
        let ordinals = match decided {
            Ok(Prepare::Already) => return Ok(false),
            Ok(Prepare::Store { ordinals }) => ordinals,
            Err(Refusal::NotAtFrontier { .. })
                if self.fault == Fault::PrepareAnywhere && !control.contents.contains_key(&batch.id) =>
            {
                let ordinal = |shard: &ShardId| {
                    let open = control.ledger.open(shard).last().map(|open| open.ordinal);
                    1 + open.unwrap_or(control.ledger.shards[shard].committed)
                };
                batch.slices.iter().map(|slice| ordinal(&slice.shard)).collect()
            }
            Err(refusal) => return Err(refusal),
        };
        Arc::make_mut(control).store(&batch, &ordinals);
        Ok(true)
    }

    fn commit(&self, control: &mut Arc<Memory>, from: u8, batch: u8, epochs: &Epochs) -> Result<bool, Refusal> {
        let id = names::batch(batch);
        let open = control.batches.get(&id);
        let committed = control.committed.contains(&id);
        let mut caller = names::instance(from).clone();
        let mut claims = names::claims(epochs);
        let slices = open.map(|open| open.slices.clone()).unwrap_or_default();
        if self.fault == Fault::CommitOfAnybody {
            (caller, claims) = holder(&control.ledger, slices.iter().map(|slice| &slice.shard), caller);
        }
        let rows = open.map_or(0, |open| open.counts.rows);
        let advances = match protocol::commit(&control.ledger, open, committed, &caller, id, &claims) {
            Ok(Commit::Already) => return Ok(false),
            Ok(Commit::Advance(advances)) => advances,
            Err(Refusal::NotOldest { .. }) if self.fault == Fault::CommitInAnyOrder => slices
                .iter()
                .map(|slice| Advance {
                    shard: slice.shard.clone(),
                    checkpoint: slice.end(),
                    ordinal: control.ledger.shards[&slice.shard].committed + 1,
                })
                .collect(),
            Err(refusal) => return Err(refusal),
        };
        Arc::make_mut(control).advance(id, advances, rows);
        Ok(true)
    }

    fn replace(
        &self,
        control: &mut Arc<Memory>,
        from: u8,
        batch: u8,
        parts: &[Cut],
        epochs: &Epochs,
    ) -> Result<bool, Refusal> {
        let id = names::batch(batch);
        let parts: Vec<_> = parts.iter().map(Cut::open_batch).collect();
        let mut caller = names::instance(from).clone();
        let mut claims = names::claims(epochs);
        if self.fault == Fault::ReplaceOfAnybody {
            let shards = parts.iter().flat_map(|part| &part.slices).map(|slice| &slice.shard);
            (caller, claims) = holder(&control.ledger, shards, caller);
        }
        let known = protocol::Known {
            old: control.batches.get(&id),
            open: &control.batches,
            committed: &control.committed,
        };
        let replaced = match protocol::replace(&control.ledger, known, &caller, id, &parts, &claims) {
            Ok(protocol::Replace::Already) => return Ok(false),
            Ok(protocol::Replace::Store(replaced)) => replaced,
            Err(Refusal::NotTiling { .. } | Refusal::OtherRecords { .. }) if self.fault == Fault::ReplaceWithHole => {
                let place = |slice: &millrace_common::position::Slice| {
                    let mut open = control.ledger.open(&slice.shard).iter();
                    open.find(|open| open.batch == id).map_or(0, |open| open.ordinal)
                };
                protocol::Replaced {
                    ordinals: parts
                        .iter()
                        .map(|part| part.slices.iter().map(place).collect())
                        .collect(),
                    moved: Vec::new(),
                }
            }
            Err(refusal) => return Err(refusal),
        };
        Arc::make_mut(control).put_in_place(id, &parts, &replaced);
        Ok(true)
    }

    fn finish(&self, control: &mut Arc<Memory>, shard: u8, epoch: u64) -> Result<bool, Refusal> {
        let (shard, epoch, children) = (names::shard(shard), Epoch(epoch), names::children());
        if self.fault == Fault::FinishWithOpenBatches {
            let kept = Memory::clone(control);
            let changed = {
                let control = Arc::make_mut(control);
                control.ledger.slices.remove(shard);
                control.finish(shard, epoch, &children)
            };
            let queue = kept.ledger.slices.get(shard).cloned();
            let control = Arc::make_mut(control);
            control.ledger.slices.extend(queue.map(|queue| (shard.clone(), queue)));
            return changed;
        }
        let mut after = Memory::clone(control);
        let changed = after.finish(shard, epoch, &children)?;
        if changed {
            *control = Arc::new(after);
        }
        Ok(changed)
    }

    /// Whether all is where it belongs and nothing is open.
    pub(crate) fn is_landed(&self, state: &State) -> bool {
        let ledger = &state.control.ledger;
        ledger.shards.len() == SHARDS
            && state.control.batches.is_empty()
            && (0..SHARDS).all(|n| {
                let (shard, records) = (u8::try_from(n).expect("few shards"), self.records[n]);
                names::place(&ledger.shards[names::shard(shard)].checkpoint) == records
                    && (1..=records).all(|record| state.table.copies[n][usize::from(record)] == 1)
            })
            && ledger.shards[names::shard(PARENT)].phase == ShardPhase::Finished
    }
}

fn outcome(decided: &Result<bool, Refusal>) -> (bool, bool) {
    match decided {
        Ok(changed) => (*changed, true),
        Err(_) => (false, false),
    }
}

/// I6 of what a request did.
fn fence(before: &Memory, after: &Memory, changed: bool, request: &Request) -> Result<(), Broken> {
    let (from, epochs, shards) = match request {
        Request::Insert { .. } => return Ok(()),
        Request::Finish { shard, epoch, .. } => {
            return invariants::fence_lease(before, after, &names::claims(&vec![(*shard, *epoch)]));
        }
        Request::Replace {
            from, parts, epochs, ..
        } => {
            let slices = parts.iter().flat_map(|part| &part.slices);
            (from, epochs, slices.map(|(shard, ..)| names::shard(*shard)).collect())
        }
        Request::Prepare { from, cut, epochs } => {
            let shards: Vec<_> = cut.slices.iter().map(|(shard, ..)| names::shard(*shard)).collect();
            (from, epochs, shards)
        }
        Request::Commit { from, batch, epochs } => {
            let batch = before.contents.get(&names::batch(*batch));
            let shards = batch.map(|batch| batch.slices.iter().map(|slice| &slice.shard).collect());
            (from, epochs, shards.unwrap_or_default())
        }
    };
    let claims = names::claims(epochs);
    invariants::fence(before, changed, names::instance(*from), &claims, shards)
}

/// Who holds these shards, with their epochs: what a control plane goes by that does not ask.
fn holder<'a>(
    ledger: &Ledger,
    shards: impl Iterator<Item = &'a ShardId>,
    caller: millrace_common::ids::WorkerInstance,
) -> (millrace_common::ids::WorkerInstance, Claims) {
    let rows: Vec<_> = shards.map(|shard| (shard, &ledger.shards[shard])).collect();
    let owner = rows.iter().find_map(|(_, row)| row.owner.clone());
    let claims = rows.iter().map(|(shard, row)| ((*shard).clone(), row.epoch)).collect();
    (owner.unwrap_or(caller), claims)
}

/// Shards that the control plane believes a worker to hold.
fn owned(state: &State, worker: usize) -> Claims {
    let rows = state.control.ledger.shards.iter();
    rows.filter(|(_, row)| owner(row) == Some(worker))
        .map(|(id, row)| (id.clone(), row.epoch))
        .collect()
}

fn owner(row: &protocol::Shard) -> Option<usize> {
    let owner = row.owner.as_ref()?;
    Some(names::worker_of(names::instance_number(owner)))
}

/// Those of them that it does not hold.
fn missing(state: &State, worker: usize) -> Claims {
    let held = &state.workers[worker].held;
    let mut owned = owned(state, worker);
    owned.retain(|(id, epoch)| {
        let held = held.get(&names::shard_number(id));
        held.is_none_or(|held| Epoch(held.epoch) != *epoch)
    });
    owned
}

/// What may be granted together: all that is free, or one free shard, each time with everything that open batches tie to it.
fn grantable(ledger: &Ledger, fault: Fault) -> Vec<Vec<u8>> {
    let free = |id: &&ShardId| {
        let row = &ledger.shards[*id];
        let open = row.phase == ShardPhase::Open || fault == Fault::ChildrenAtOnce && row.phase == ShardPhase::Waiting;
        open && row.owner.is_none()
    };
    let free: Vec<&ShardId> = ledger.shards.keys().filter(free).collect();
    let tied = |from: Vec<&ShardId>| {
        let mut all: BTreeSet<&ShardId> = from.into_iter().collect();
        loop {
            let batches: BTreeSet<_> = all
                .iter()
                .flat_map(|id| ledger.open(id).iter().map(|open| open.batch))
                .collect();
            let more: BTreeSet<&ShardId> = ledger
                .slices
                .iter()
                .filter(|(_, queue)| queue.iter().any(|open| batches.contains(&open.batch)))
                .map(|(id, _)| id)
                .collect();
            let before = all.len();
            if fault != Fault::TearingGrant {
                all.extend(more);
            }
            if all.len() == before {
                break;
            }
        }
        all.into_iter().map(names::shard_number).collect::<Vec<u8>>()
    };
    let mut sets: Vec<Vec<u8>> = free.iter().map(|id| tied(vec![id])).collect();
    sets.push(tied(free));
    sets.sort();
    sets.dedup();
    // What is tied and held is granted anew along with what is free, even away from its holder: the planner is kinder.
    sets.retain(|set| !set.is_empty());
    sets
}

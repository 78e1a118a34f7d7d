//! Keeps one lane task per assigned pipe: starts it, hands it every new assignment, and starts it again when it panics.
//!
//! A panic is caught here, at the edge of its pipe: other pipes do not notice. What the lane held is burned, because with
//! the task its knowledge of open batches is gone; the control plane sees the shards missing and grants them anew, with
//! what it knows of them.
//!
//! Invariants:
//! - one task per pipe;
//! - the board names a generation only after every lane has been told of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use millrace_common::{
    ids::{Generation, PipeUid},
    retry::Backoff,
};
use tokio::{
    sync::watch,
    task::{Id, JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    lane::{
        self, Burned, Context, Order,
        fault::Fault,
        spec::Assignment,
        status::{LaneStatus, Round},
    },
    session::AssignmentSet,
};

/// Waits before a lane that panicked is started again.
const RESTART: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A lane that has run for this long without a panic begins with the shortest wait again.
const STEADY: Duration = Duration::from_secs(300);
/// When nothing is to be started.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// What a lane's task runs.
type RunLane = fn(Context, watch::Receiver<Order>, Burned) -> BoxFuture<'static, ()>;

/// Supervises the lanes of a worker.
#[derive(Debug)]
pub struct Supervisor {
    run_lane: RunLane,
    context: Context,
    desired: watch::Receiver<Option<AssignmentSet>>,
    round: Round,
    slots: BTreeMap<PipeUid, Slot>,
    tasks: JoinSet<()>,
    task_pipes: BTreeMap<Id, PipeUid>,
}

/// One pipe.
#[derive(Debug)]
struct Slot {
    orders: watch::Sender<Order>,
    burned: Burned,
    running: bool,
    started: Instant,
    backoff: Backoff,
    restart_at: Option<Instant>,
    panics: u64,
}

impl Slot {
    fn wants_shards(&self) -> bool {
        !self.orders.borrow().assignment.shards.is_empty()
    }
}

impl Supervisor {
    /// Runs what `desired` says with `context`.
    pub fn new(context: Context, desired: watch::Receiver<Option<AssignmentSet>>) -> Self {
        Self::with(
            |context, orders, burned| Box::pin(lane::run(context, orders, burned)),
            context,
            desired,
        )
    }

    fn with(run_lane: RunLane, context: Context, desired: watch::Receiver<Option<AssignmentSet>>) -> Self {
        let (slots, task_pipes) = (BTreeMap::new(), BTreeMap::new());
        Self {
            run_lane,
            context,
            desired,
            round: 0,
            slots,
            tasks: JoinSet::new(),
            task_pipes,
        }
    }

    /// Runs until `drain` is cancelled and every lane has flushed, committed and given back what it held. A lane whose
    /// destination or control plane is away gives up after its patience.
    pub async fn run(mut self, drain: CancellationToken) {
        let (mut draining, mut deaf) = (false, false);
        while !(draining && self.tasks.is_empty()) {
            let restart_at = self.slots.values().filter_map(|slot| slot.restart_at).min();
            let restart_at = restart_at.unwrap_or_else(|| Instant::now() + NEVER);
            tokio::select! {
                biased;
                Some(ended) = self.tasks.join_next_with_id() => self.on_end(&ended, draining),
                () = drain.cancelled(), if !draining => {
                    draining = true;
                    self.release_all();
                }
                changed = self.desired.changed(), if !draining && !deaf => {
                    // Without a session nothing new will be wanted; what runs goes on.
                    deaf = changed.is_err();
                    let set = self.desired.borrow_and_update().clone();
                    if let Some(set) = set.filter(|_| !deaf) {
                        self.distribute(set);
                    }
                }
                () = tokio::time::sleep_until(restart_at), if !draining => self.restart(),
            }
        }
    }

    /// Hands every lane its part.
    fn distribute(&mut self, set: AssignmentSet) {
        self.round += 1;
        let wanted: BTreeSet<_> = set.lanes.iter().map(|lane| lane.pipe).collect();
        for assignment in set.lanes {
            self.order(assignment);
        }
        for pipe in self
            .slots
            .keys()
            .copied()
            .filter(|pipe| !wanted.contains(pipe))
            .collect::<Vec<_>>()
        {
            self.release(pipe);
        }
        self.finish_round(set.generation);
    }

    fn finish_round(&mut self, generation: Generation) {
        self.context.board.distributed(self.round, generation);
    }

    fn order(&mut self, assignment: Assignment) {
        let pipe = assignment.pipe;
        let order = Order {
            round: self.round,
            assignment: Arc::new(assignment),
        };
        let slot = self.slots.entry(pipe).or_insert_with(|| Slot {
            orders: watch::Sender::new(order.clone()),
            burned: Burned::default(),
            running: false,
            started: Instant::now(),
            backoff: Backoff::new(RESTART.0, RESTART.1),
            restart_at: None,
            panics: 0,
        });
        slot.orders.send_replace(order);
        if slot.restart_at.is_some() {
            self.show_panicked(pipe);
        } else if !slot.running && slot.wants_shards() {
            self.start(pipe);
        }
    }

    fn release(&mut self, pipe: PipeUid) {
        let Some(slot) = self.slots.get_mut(&pipe) else { return };
        let emptied = Arc::new(slot.orders.borrow().assignment.emptied());
        slot.orders.send_replace(Order {
            round: self.round,
            assignment: emptied,
        });
        if !slot.running {
            self.forget(pipe);
        }
    }

    fn release_all(&mut self) {
        self.round += 1;
        for pipe in self.slots.keys().copied().collect::<Vec<_>>() {
            self.release(pipe);
        }
    }

    fn forget(&mut self, pipe: PipeUid) {
        self.slots.remove(&pipe);
        self.context.board.leave(pipe);
    }

    fn start(&mut self, pipe: PipeUid) {
        let Some(slot) = self.slots.get_mut(&pipe) else { return };
        slot.running = true;
        slot.restart_at = None;
        slot.started = Instant::now();
        let name = slot.orders.borrow().assignment.name.clone();
        self.context.board.enter(pipe);
        let lane = (self.run_lane)(self.context.clone(), slot.orders.subscribe(), Arc::clone(&slot.burned));
        let task = self
            .tasks
            .spawn(lane.instrument(tracing::info_span!("lane", pipe = name)));
        self.task_pipes.insert(task.id(), pipe);
    }

    fn restart(&mut self) {
        let now = Instant::now();
        let due = |(pipe, slot): (&PipeUid, &Slot)| slot.restart_at.is_some_and(|at| at <= now).then_some(*pipe);
        for pipe in self.slots.iter().filter_map(due).collect::<Vec<_>>() {
            self.start(pipe);
        }
    }

    fn on_end(&mut self, ended: &Result<(Id, ()), JoinError>, draining: bool) {
        let (id, panicked) = match ended {
            Ok((id, ())) => (*id, false),
            Err(error) => (error.id(), error.is_panic()),
        };
        let Some(pipe) = self.task_pipes.remove(&id) else {
            return;
        };
        let Some(slot) = self.slots.get_mut(&pipe) else { return };
        slot.running = false;
        if panicked {
            slot.panics += 1;
            if slot.started.elapsed() > STEADY {
                slot.backoff.reset();
            }
            let delay = slot.backoff.delay();
            tracing::error!(%pipe, panics = slot.panics, ?delay, "lane panicked");
            burn(slot);
            if draining {
                self.forget(pipe);
            } else {
                slot.restart_at = Some(Instant::now() + delay);
                self.show_panicked(pipe);
            }
        } else if slot.wants_shards() && !draining {
            // It had let go of everything when it was wanted again.
            self.start(pipe);
        } else {
            self.forget(pipe);
        }
    }

    /// The lane holds nothing, and says why.
    fn show_panicked(&self, pipe: PipeUid) {
        let fault = Fault::internal(
            "the lane of this pipe ended in a panic, a defect of Millrace: please report it with the worker's log. It is started again.",
        );
        let status = LaneStatus {
            shards: Vec::new(),
            fault: Some(fault),
        };
        self.context.board.put(pipe, self.round, status, true);
    }
}

/// Nothing that the lane was told may be used again.
fn burn(slot: &Slot) {
    let mut burned = slot.burned.lock();
    for (shard, grant) in &slot.orders.borrow().assignment.shards {
        burned.insert(shard.clone(), grant.epoch);
    }
}

#[cfg(test)]
mod tests;

//! A lane: one pipe on one worker. All shards of the pipe here share one batcher and one inserter.
//!
//! ```text
//!   Reader (per shard) --Page--> queue --cut--> build (decode, encode) --Built--> prepare -> send -> commit
//!                                  ^               |                                    (commit::tracker says when)
//!                                  '-- left over --'
//!   open batches of an earlier owner --> replay (read again, build) --check digest--> send -> commit --> Reader
//!   a batch that ClickHouse refuses  --> split (read again, build halves) --> replace --> send -> commit
//! ```
//!
//! A lane is one task that owns its state; readers, builds, one replay at a time, and the steps of open
//! batches are tasks beside it, whose results it awaits. It does what [`Assignment`] says and shows what it holds on the
//! [`Board`]; it never decides that it holds a lease.
//!
//! **The order of rows.** Records are queued as they came and decoded only when a batch is cut, shard after shard and each
//! shard in its own order. So the rows of a block are grouped by slice, in the order of the batch's slices, and whoever
//! has the slices can build the block again. Live batches and replays are built by the same function.
//!
//! **Cores.** Records are decoded and blocks compressed by builds, on threads that do no IO. A lane always may run one. While one
//! runs and the other shards have a whole batch waiting, it builds that beside the first, as long as the worker has a core to
//! spare ([`Context::spare_cores`]); the reading of different shards is parallel anyway. Batches of a shard are still built one after the
//! other, because each begins where the one before was full. So no block is built by two threads: its bytes depend on its slices and on
//! nothing else, replays know nothing of this, and batches are cut by the same rules as by one thread. What was
//! considered besides: decoding pages in parallel and joining partial blocks copies every column once more, renumbers dictionaries, and
//! needs the memory twice; it would gain something only for a pipe of one shard, which Kinesis holds to 2 MB/s, a
//! hundredth of what a core decodes. A lane per part of the shards would cut more and smaller batches when a pipe is slow. A third
//! thread for compression alone would leave the decoder the bound, since it takes most of a build.
//!
//! **Memory.** A page's permit goes with its records into the batch and stays until the batch is committed, although by
//! then only the compressed block is left of it. While a batch is built its records turn into columns one by one, and pay
//! for them; a block that outgrows them pays for the rest. Columns are compressed as they are written, and there is no
//! second copy. What the block keeps for the next one is paid for too, or given up. So batches in flight are bounded in
//! number and in bytes. Batches that are built again are paid for in the same way, out of a part of their own. With nothing committed the lane's part of the budget runs out, its readers wait, and it stands still
//! until ClickHouse and the control plane are back; lanes beside it have as much left as it holds.
//!
//! Invariants:
//! - the slices of a shard follow each other without a gap: each starts where the one before ended;
//! - nothing of a shard is read before the open batches that came with it are committed;
//! - a shard that leaves the board has nothing in flight that this lane could still commit.

mod assign;
mod build;
pub mod fault;
mod progress;
mod queue;
mod read;
mod recipe;
mod replay;
mod shard;
mod split;
pub mod spec;
pub mod status;
mod work;

pub(crate) use recipe::plan;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use millrace_common::{
    aws,
    batch::OpenBatch,
    clock::Clock,
    ids::{BatchId, Epoch, PipeUid, Revision, ShardId},
    position::Position,
};
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, watch},
    task::{JoinError, JoinSet},
    time::Instant,
};
use tokio_stream::{StreamExt as _, StreamMap, wrappers::ReceiverStream};

use self::{
    build::{Bench, Outcome},
    fault::{Faults, Part},
    queue::Queue,
    read::ReaderEnd,
    recipe::Recipe,
    replay::Replayed,
    shard::Shard,
    spec::Assignment,
    status::{Board, LaneStatus, Round},
    work::{Open, StepDone},
};
use crate::{
    batch::cut::Rules,
    commit::{Committer, ControlPlane, Targets, tracker::Tracker},
    source::{Budget, Page, kinesis::Limits},
};

/// How often progress is shown; what the control plane should know at once is shown at once.
const SHOW_INTERVAL: Duration = Duration::from_millis(200);
/// How often a lane with records and no open batch looks whether its readers wait for memory.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// A timer that is not needed just now.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// How patient a lane is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// A batch that waits for a person is tried again this often.
    pub probe_interval: Duration,
    /// A shard that is to be given back and cannot be drained for this long is given back as it is.
    pub release_patience: Duration,
    /// How fast a shard may be read.
    pub limits: Limits,
    /// What the operator says about AWS.
    pub aws: aws::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            probe_interval: Duration::from_secs(15),
            release_patience: Duration::from_secs(10),
            limits: Limits::default(),
            aws: aws::Settings::default(),
        }
    }
}

/// What all lanes of a worker share.
#[derive(Debug, Clone)]
pub struct Context {
    /// Prepare and commit.
    pub control: Arc<dyn ControlPlane>,
    /// Memory of the worker.
    pub budget: Arc<Budget>,
    /// Where lanes show what they hold.
    pub board: Board,
    /// How patient they are.
    pub settings: Settings,
    /// Tells how old positions are.
    pub clock: Clock,
    /// Cores of the worker for builds beyond the one that every lane may run.
    pub spare_cores: Arc<Semaphore>,
}

/// Leases that a lane may not use any more, by shard: what it knew of the shard is gone. Outlives the lane's task.
pub type Burned = Arc<Mutex<BTreeMap<ShardId, Epoch>>>;

/// An assignment and the round that brought it.
#[derive(Debug, Clone)]
pub struct Order {
    /// The round.
    pub round: Round,
    /// What to run.
    pub assignment: Arc<Assignment>,
}

/// Runs a lane until it is told to hold nothing, and holds nothing.
pub async fn run(context: Context, orders: watch::Receiver<Order>, burned: Burned) {
    let pipe = orders.borrow().assignment.pipe;
    Lane::new(context, pipe, orders, burned).run().await;
}

struct Lane {
    context: Context,
    pipe: PipeUid,
    orders: watch::Receiver<Order>,
    burned: Burned,
    /// The last order that was taken up.
    order: Option<Order>,

    recipes: BTreeMap<Revision, Arc<Recipe>>,
    targets: Targets,
    committer: Committer,
    faults: Faults,
    /// Memory of this lane: a part of the worker's.
    budget: Arc<Budget>,
    /// Memory of batches that are built again: another part.
    replay_budget: Arc<Budget>,

    shards: BTreeMap<ShardId, Shard>,
    pages: StreamMap<ShardId, ReceiverStream<Page>>,
    readers: JoinSet<ReaderEnd>,
    attempts: u64,

    queue: Queue,
    rules: Option<Rules>,
    build: JoinSet<Outcome>,
    benches: Vec<Bench>,

    tracker: Tracker,
    open: BTreeMap<BatchId, Open>,
    steps: JoinSet<StepDone>,
    replays: VecDeque<OpenBatch>,
    replay: JoinSet<Replayed>,
    /// The batch that is being rebuilt.
    replay_of: Option<BatchId>,
    /// Batches that cannot be rebuilt, because their records are gone. Nothing of their shards is rebuilt behind them.
    unreadable: BTreeSet<BatchId>,
    /// The batch because of which going on could lose or double rows: nothing moves until it is given up.
    halted: Option<BatchId>,

    show: Show,
}

/// What is to be shown on the board, and how soon.
#[derive(Debug, Default)]
struct Show {
    at: Option<Instant>,
    urgent: bool,
}

impl Lane {
    fn new(context: Context, pipe: PipeUid, orders: watch::Receiver<Order>, burned: Burned) -> Self {
        let (faults, targets) = (Faults::new(), Targets::default());
        let probe_interval = context.settings.probe_interval;
        let committer = Committer::new(context.control.clone(), targets.clone(), faults.clone(), probe_interval);
        let (budget, replay_budget) = (context.budget.part(), context.budget.part());
        Self {
            context,
            pipe,
            orders,
            burned,
            order: None,
            recipes: BTreeMap::new(),
            targets,
            committer,
            faults,
            budget,
            replay_budget,
            shards: BTreeMap::new(),
            pages: StreamMap::new(),
            readers: JoinSet::new(),
            attempts: 0,
            queue: Queue::new(),
            rules: None,
            build: JoinSet::new(),
            benches: Vec::new(),
            tracker: Tracker::new(),
            open: BTreeMap::new(),
            steps: JoinSet::new(),
            replays: VecDeque::new(),
            replay: JoinSet::new(),
            replay_of: None,
            unreadable: BTreeSet::new(),
            halted: None,
            show: Show::default(),
        }
    }

    async fn run(mut self) {
        self.orders.mark_changed();
        while self.turn().await {}
    }

    /// Does what can be done and waits for the next event. False: the lane is done.
    async fn turn(&mut self) -> bool {
        let now = Instant::now();
        self.advance(now);
        self.show(now);
        if self.is_done() {
            return false;
        }
        let (wake_at, faults) = (self.wake_at(now), self.faults.clone());
        tokio::select! {
            biased;
            changed = self.orders.changed() => {
                // Without a supervisor there is no reason to run.
                let Ok(()) = changed else { return false };
                let order = self.orders.borrow_and_update().clone();
                self.take_up(order).await;
            }
            Some(done) = self.steps.join_next() => self.on_step(finished(done)),
            Some(outcome) = self.build.join_next() => self.on_built(finished(outcome)),
            Some(replayed) = self.replay.join_next() => self.on_replayed(finished(replayed)),
            Some(end) = self.readers.join_next() => self.on_reader_end(finished(end)),
            Some((shard, page)) = self.pages.next() => self.on_page(&shard, page),
            () = faults.changed() => self.show_soon(true),
            () = tokio::time::sleep_until(wake_at) => {}
        }
        true
    }

    /// Begins everything that can begin now.
    fn advance(&mut self, now: Instant) {
        self.give_up_slow_releases(now);
        self.start_readers(now);
        self.start_replay();
        while self.start_build(now) {}
        while let Some(step) = self.tracker.next_step() {
            self.begin(step);
        }
        self.finish_releases();
    }

    fn is_done(&self) -> bool {
        let idle = |order: &Order| order.assignment.shards.is_empty();
        self.shards.is_empty() && self.order.as_ref().is_some_and(idle) && !self.orders.has_changed().unwrap_or(false)
    }

    /// When something is to be done that nothing else will wake the lane for.
    fn wake_at(&self, now: Instant) -> Instant {
        let readers = self.shards.values().filter_map(|shard| match shard.reading {
            shard::Reading::Until(then) if shard.wants_reader(then) => Some(then),
            _ => None,
        });
        let patience = self.context.settings.release_patience;
        let releases = self
            .shards
            .values()
            .filter_map(|shard| shard.releasing)
            .map(|since| since + patience);
        // Beside a build nothing is cut because of its age, and when one ends, the lane looks again.
        let cut = self
            .rules
            .as_ref()
            .filter(|_| self.build.is_empty() && self.can_build());
        let cut = cut.and_then(|rules| rules.deadline(&self.queue.queued(|shard| self.is_free(shard))));
        let cut = cut.map(|at| at.min(now + LOOK_INTERVAL));
        readers
            .chain(releases)
            .chain(cut)
            .chain(self.show.at)
            .min()
            .unwrap_or(now + NEVER)
    }

    fn show_soon(&mut self, urgent: bool) {
        if urgent {
            self.show.urgent = true;
            self.show.at = Some(Instant::now());
        } else if self.show.at.is_none() {
            self.show.at = Some(Instant::now() + SHOW_INTERVAL);
        }
    }

    /// Puts on the board what the lane holds, if it is time.
    fn show(&mut self, now: Instant) {
        let Some(order) = self.order.as_ref().filter(|_| self.show.at.is_some_and(|at| at <= now)) else {
            return;
        };
        let settled = |id: &ShardId| !self.queue.holds(id) && !self.tracker.holds(id);
        let oldest = |id: &ShardId| {
            let froms = self.open.values().filter_map(|open| open.froms.get(id));
            froms.min_by(|a, b| a.sequence_number().cmp(&b.sequence_number()))
        };
        let committed: BTreeMap<ShardId, Position> = self
            .shards
            .iter()
            .map(|(id, shard)| (id.clone(), oldest(id).unwrap_or(&shard.next_from).clone()))
            .collect();
        let shards = self
            .shards
            .iter_mut()
            .map(|(id, shard)| {
                if let Some(position) = committed.get(id) {
                    shard.progress.committed(position);
                }
                shard.status(id, settled(id), now)
            })
            .collect();
        let status = LaneStatus {
            shards,
            fault: self.faults.worst(),
        };
        self.context.board.put(self.pipe, order.round, status, self.show.urgent);
        self.show = Show::default();
    }

    fn recipe(&self) -> Option<&Arc<Recipe>> {
        let current = self.order.as_ref()?.assignment.current;
        self.recipes.get(&current)
    }

    fn shard_fault(shard: &ShardId) -> Part {
        Part::Shard(shard.clone())
    }
}

/// The result of a task of this lane. A panic in it is a panic of the lane, which its supervisor catches.
fn finished<T>(result: Result<T, JoinError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // Aborted, because nobody wants it any more.
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests;

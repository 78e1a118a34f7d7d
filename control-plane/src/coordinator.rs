//! Keeps who runs what as it should be: a reconciler over the store and the sessions.
//!
//! ```text
//!   API, discovery -- nudge --> +-----------+ <-- heard -- sessions (Registry)
//!                               | Coordinator|
//!   store <-- snapshot, grant,  |  observe   |  offer --> sessions --> workers
//!             release, finish --|  plan      |
//!                               |  execute   |-- publish --> Handle (API)
//!                               +-----------+
//! ```
//!
//! It takes no input but the state of things: each round reads what is new, asks [`plan`](crate::scheduler::plan) what to do,
//! does it, and offers each worker its set. A round happens when somebody nudges, when a worker says something that asks
//! for action, when a lease ends, and each period.
//!
//! Of several control planes only the leader's coordinates ([`Coordinator::lead`]), under a term that fences its writes. The
//! others follow ([`Coordinator::follow`]): their handles show what the leader has left in the store, and a nudge goes
//! through the store to the leader.
//!
//! Invariants:
//! - What a worker is told of a shard was read from the store after the shard was granted to it, so no earlier holder can
//!   have changed it since.
//! - No set is offered before the store was read once: an empty set would stop every worker.
//! - While the store does not answer, nothing changes hands and nobody is told anything new.
//! - Leases, their deadlines and reports live in memory; owners and epochs live in the store and are what counts.

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt as _;
use millrace_common::{clock::Clock, ids::PipeUid};
use millrace_proto::worker::v1::worker_service_server::WorkerServiceServer;
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    leader::{Seen, Tenure},
    sessions::{self, Gate, Registry},
    store::Store,
};

mod gaps;
mod pipe;
mod reconcile;
mod sets;
mod share;
mod spec;
mod status;
mod world;

#[cfg(test)]
mod tests;

pub use status::{PipeRuntime, ShardRuntime, WorkerInfo};

/// How long events are gathered before a round. What happens together is then planned together, and a storm of events
/// costs at most this many rounds per second.
const GATHER: Duration = Duration::from_millis(5);
/// How long a follower waits before it tries again to reach the store.
const RETRY: Duration = Duration::from_secs(1);

/// How to coordinate.
#[derive(Debug, Clone)]
pub struct Options {
    /// A lease ends this long after the last report that renewed it.
    pub lease_ttl: Duration,
    /// How often workers report.
    pub heartbeat_interval: Duration,
    /// A round happens at least this often.
    pub period: Duration,
    /// How often everything is read from the store anew, for what nobody nudged about.
    pub refresh: Duration,
    /// How long a worker may take to release a shard before it is taken without its consent.
    pub release_deadline: Duration,
    /// Shards are moved for balance at most this often, unless workers or pipes have changed.
    pub rebalance_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            // A dead worker's shards are to run elsewhere within 10 s.
            lease_ttl: Duration::from_secs(8),
            heartbeat_interval: Duration::from_secs(1),
            period: Duration::from_secs(1),
            refresh: Duration::from_secs(15),
            release_deadline: Duration::from_secs(60),
            rebalance_interval: Duration::from_secs(60),
        }
    }
}

/// What the coordinator and its handles share.
struct Shared {
    registry: Arc<Registry>,
    nudges: Mutex<Nudges>,
    nudged: Notify,
    gate: Gate,
    /// After the first round.
    published: RwLock<Option<Arc<status::View>>>,
    /// While another control plane leads: what it has left to read.
    remote: RwLock<Option<Arc<share::Remote>>>,
    changed: watch::Sender<u64>,
    clock: Clock,
}

/// What is to be read anew.
#[derive(Default)]
struct Nudges {
    all: bool,
    pipes: Vec<PipeUid>,
}

/// The reconciler.
pub struct Coordinator {
    store: Store,
    options: Options,
    shared: Arc<Shared>,
}

/// A way to the coordinator. Clones are cheap.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Coordinator {
    /// A coordinator that does not run yet, and a handle to it.
    pub fn new(store: Store, clock: Clock, options: Options) -> (Self, Handle) {
        let shared = Arc::new(Shared {
            registry: Arc::default(),
            nudges: Mutex::new(Nudges {
                all: true,
                pipes: Vec::new(),
            }),
            nudged: Notify::new(),
            gate: Gate::default(),
            published: RwLock::default(),
            remote: RwLock::default(),
            changed: watch::Sender::new(0),
            clock,
        });
        (
            Self {
                store,
                options,
                shared: shared.clone(),
            },
            Handle { shared },
        )
    }

    /// The service that workers dial. It takes sessions while the coordinator leads, and batches always.
    pub fn service(&self) -> WorkerServiceServer<sessions::Service> {
        let handle = Handle {
            shared: self.shared.clone(),
        };
        sessions::Service::new(
            self.store.clone(),
            self.shared.registry.clone(),
            self.options.lease_ttl,
            self.options.heartbeat_interval,
            self.shared.gate.clone(),
            move |_| handle.nudge(),
        )
        .into_server()
    }

    /// Coordinates for as long as the leadership lasts. Then all sessions have ended; leases stay as they are, for the next
    /// leader, which may be this one.
    pub async fn lead(&self, tenure: &Tenure) {
        let (shared, store) = (&self.shared, self.store.fenced(tenure.term()));
        // What was heard under another term may be old, and a worker that is there comes at once.
        shared.registry.clear();
        *shared.published.write() = None;
        *shared.remote.write() = None;
        shared.gate.open();
        if self.store.is_exclusive() {
            self.coordinate(store, tenure).await;
        } else {
            tokio::join!(
                self.coordinate(store.clone(), tenure),
                share::write(shared, &store, tenure)
            );
        }
        shared.gate.send_elsewhere(None);
        shared.registry.clear();
    }

    async fn coordinate(&self, store: Store, tenure: &Tenure) {
        let (period, shared, over) = (self.options.period, &self.shared, tenure.over());
        let mut reconciler = reconcile::Reconciler::new(store, self.options.clone(), shared.clone(), tenure.clone());
        let mut next = Instant::now();
        loop {
            let stop = tokio::select! {
                biased;
                () = over.cancelled() => true,
                () = async {
                    tokio::select! {
                        () = shared.nudged.notified() => {}
                        () = shared.registry.heard() => {}
                    }
                    sleep(GATHER).await;
                } => false,
                () = sleep_until(next) => false,
            };
            if stop {
                break;
            }
            let Some(after) = over.run_until_cancelled(guarded(Box::pin(reconciler.round()))).await else {
                break;
            };
            match after {
                Ok(deadline) => next = deadline.map_or(Instant::now() + period, |d| d.min(Instant::now() + period)),
                Err(()) => {
                    // All that matters is in the store, and in what workers report.
                    reconciler.start_over();
                    next = Instant::now() + period;
                }
            }
        }
    }

    /// Shows what the leader observes, sends workers to it, and lets it know of changes. Does not end by itself.
    pub async fn follow(&self, leader: Option<String>, mut seen: watch::Receiver<Seen>) {
        let shared = &self.shared;
        shared.gate.send_elsewhere(leader);
        let announce = async {
            loop {
                shared.nudged.notified().await;
                while let Err(error) = self.store.announce_change().await {
                    tracing::debug!(%error, "the leader cannot be told of a change: trying again");
                    sleep(RETRY).await;
                }
            }
        };
        let show = async {
            let mut shown = None;
            loop {
                let Seen { observed, is_led, .. } = *seen.borrow_and_update();
                if shown != Some((observed, is_led)) {
                    match share::read(&self.store, is_led).await {
                        Ok(remote) => {
                            shown = Some((observed, is_led));
                            *shared.remote.write() = Some(Arc::new(remote));
                            shared.changed.send_modify(|version| *version += 1);
                        }
                        Err(error) => {
                            tracing::debug!(%error, "what the leader observes cannot be read: trying again");
                            sleep(RETRY).await;
                            continue;
                        }
                    }
                }
                // Without an elector there is nothing to wait for; otherwise it looks several times a second.
                if seen.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::join!(announce, show);
    }
}

/// A round that panics is logged here and ends there.
async fn guarded<T>(round: impl Future<Output = T>) -> Result<T, ()> {
    AssertUnwindSafe(round).catch_unwind().await.map_err(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        tracing::error!(
            panic = what.unwrap_or("?"),
            "coordination panicked: starting over from the store"
        );
    })
}

impl Handle {
    /// Something was changed in the store: look at all of it. To be called after any change.
    pub fn nudge(&self) {
        self.shared.nudges.lock().all = true;
        self.shared.nudged.notify_one();
    }

    /// Something of one pipe was changed in the store.
    pub fn nudge_pipe(&self, uid: PipeUid) {
        let mut nudges = self.shared.nudges.lock();
        if !nudges.all && !nudges.pipes.contains(&uid) {
            nudges.pipes.push(uid);
        }
        drop(nudges);
        self.shared.nudged.notify_one();
    }

    /// What is observed of a pipe. Empty for one that is not known (yet).
    pub fn runtime(&self, uid: PipeUid) -> PipeRuntime {
        if let Some(remote) = &*self.shared.remote.read() {
            return remote.pipes.get(&uid).cloned().unwrap_or_default();
        }
        let view = self.shared.published.read().clone();
        view.map(|view| view.runtime(uid, &self.shared.registry.snapshot()))
            .unwrap_or_default()
    }

    /// Ticks when something that can be observed has changed: who runs what, and faults; not progress.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Workers that are connected and not leaving, in id order.
    pub fn workers(&self) -> Vec<WorkerInfo> {
        if let Some(remote) = &*self.shared.remote.read() {
            return remote.workers.clone();
        }
        status::workers(&self.shared.registry.snapshot(), self.shared.clock.now())
    }

    /// Whether worker sessions are taken here.
    pub fn takes_sessions(&self) -> bool {
        self.shared.gate.enter().is_ok()
    }

    /// Ends all sessions and opens no more, so that a server can end. Workers keep their leases and come back.
    pub fn close_sessions(&self) {
        self.shared.gate.close();
    }
}

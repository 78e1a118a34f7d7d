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
use tokio_util::sync::CancellationToken;

use crate::{
    sessions::{self, Registry},
    store::Store,
};

mod pipe;
mod reconcile;
mod sets;
mod spec;
mod status;
mod world;

#[cfg(test)]
mod tests;

pub use status::{PipeRuntime, ShardRuntime, WorkerInfo};

/// How long events are gathered before a round. What happens together is then planned together, and a storm of events
/// costs at most this many rounds per second.
const GATHER: Duration = Duration::from_millis(5);

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
    closing: CancellationToken,
    published: RwLock<Arc<status::View>>,
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
            closing: CancellationToken::new(),
            published: RwLock::default(),
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

    /// The service that workers dial. Sessions may open before [`Coordinator::run`]; they get sets once it runs.
    pub fn service(&self) -> WorkerServiceServer<sessions::Service> {
        sessions::Service::new(
            self.store.clone(),
            self.shared.registry.clone(),
            self.options.lease_ttl,
            self.options.heartbeat_interval,
            self.shared.closing.clone(),
        )
        .into_server()
    }

    /// Runs until `shutdown` is cancelled; then ends all sessions. Leases stay as they are, for the next control plane.
    pub async fn run(self, shutdown: CancellationToken) {
        let (period, shared) = (self.options.period, self.shared.clone());
        let mut reconciler = reconcile::Reconciler::new(self.store, self.options, shared.clone());
        let mut next = Instant::now();
        loop {
            let stop = tokio::select! {
                biased;
                () = shutdown.cancelled() => true,
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
            let Some(after) = shutdown
                .run_until_cancelled(guarded(Box::pin(reconciler.round())))
                .await
            else {
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
        shared.closing.cancel();
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
        let view = self.shared.published.read().clone();
        view.runtime(uid, &self.shared.registry.snapshot())
    }

    /// Ticks when something that can be observed has changed: who runs what, and faults; not progress.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Workers that are connected and not leaving, in id order.
    pub fn workers(&self) -> Vec<WorkerInfo> {
        status::workers(&self.shared.registry.snapshot(), self.shared.clock.now())
    }

    /// Ends all sessions and opens no more, so that a server can end. Workers keep their leases and come back.
    pub fn close_sessions(&self) {
        self.shared.closing.cancel();
    }
}

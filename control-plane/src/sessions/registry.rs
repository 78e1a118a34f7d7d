//! The workers as last heard of, and the set that each should have. Shared by sessions, which write what they hear, and the
//! coordinator, which reads it and offers sets. Locks are held for moments and never across an await.
//!
//! Invariants: one entry per worker id, for its newest process. A process that was replaced is never heard again. Only the
//! newest session of a process changes its entry.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use millrace_common::{
    error::ApiError,
    ids::{Generation, Incarnation, WorkerId, WorkerInstance},
};
use millrace_proto::worker::v1;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::{Capacity, Hello, Report};

/// Workers at the same time: far above any fleet, so that reaching it means that somebody makes up names.
const MAX_WORKERS: usize = 10_000;
/// Processes of one worker that are remembered as replaced. They try to come back within minutes, if at all.
const MAX_REPLACED: usize = 32;

/// The latest set of a worker; `None` before the first.
pub(super) type Assignments = watch::Receiver<Option<Arc<v1::AssignmentSet>>>;

/// All workers that were heard of lately.
#[derive(Default)]
pub struct Registry {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    workers: BTreeMap<WorkerId, Entry>,
    sessions: u64,
}

struct Entry {
    instance: WorkerInstance,
    session: u64,
    connected: bool,
    leaving: Option<Leaving>,
    departed: bool,
    capacity: Capacity,
    protocol: u32,
    program_version: String,
    report: Arc<Report>,
    received: Instant,
    generation: Generation,
    assignments: watch::Sender<Option<Arc<v1::AssignmentSet>>>,
    evict: CancellationToken,
    replaced: VecDeque<Incarnation>,
}

/// A worker as last heard of.
#[derive(Debug, Clone)]
pub struct WorkerSeen {
    /// The process.
    pub instance: WorkerInstance,
    /// It has a session.
    pub connected: bool,
    /// It has said that it wants to leave.
    pub leaving: Option<Leaving>,
    /// It has said so, and then ended its session in order.
    pub departed: bool,
    /// What it can take.
    pub capacity: Capacity,
    /// Protocol version of its session.
    pub protocol: u32,
    /// Version of its program.
    pub program_version: String,
    /// Its last report.
    pub report: Arc<Report>,
    /// When that arrived.
    pub received: Instant,
}

/// A worker is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaving {
    /// When it will have ended, come what may: what it has not given back by then is nobody's. `None` if it did not say.
    pub until: Option<Instant>,
}

/// A session in the registry. Dropping it marks the worker as not connected.
pub(super) struct Opened {
    registry: Arc<Registry>,
    worker: WorkerId,
    session: u64,
    /// Sets for the worker.
    pub(super) assignments: Assignments,
    /// Cancelled when another session takes the place of this one.
    pub(super) evicted: CancellationToken,
}

impl Registry {
    /// Waits until something was heard that asks for action.
    pub async fn heard(&self) {
        self.wake.notified().await;
    }

    /// All workers, in id order.
    pub fn snapshot(&self) -> Vec<WorkerSeen> {
        let seen = |entry: &Entry| WorkerSeen {
            instance: entry.instance.clone(),
            connected: entry.connected,
            leaving: entry.leaving,
            departed: entry.departed,
            capacity: entry.capacity,
            protocol: entry.protocol,
            program_version: entry.program_version.clone(),
            report: entry.report.clone(),
            received: entry.received,
        };
        self.state.lock().workers.values().map(seen).collect()
    }

    /// Offers a set to a process, under the next generation. `None` if that process is not there any more.
    pub fn offer(&self, instance: &WorkerInstance, lanes: Vec<v1::Lane>) -> Option<Generation> {
        let mut state = self.state.lock();
        let entry = state
            .workers
            .get_mut(&instance.worker)
            .filter(|entry| entry.instance == *instance)?;
        // The worker may have taken up sets of an earlier control plane: higher wins.
        entry.generation = entry.generation.max(entry.report.generation).next();
        let set = v1::AssignmentSet {
            generation: entry.generation.0,
            lanes,
        };
        entry.assignments.send_replace(Some(Arc::new(set)));
        Some(entry.generation)
    }

    /// Forgets a process that is not connected.
    pub fn forget(&self, instance: &WorkerInstance) {
        let mut state = self.state.lock();
        if state
            .workers
            .get(&instance.worker)
            .is_some_and(|e| e.instance == *instance && !e.connected)
        {
            state.workers.remove(&instance.worker);
        }
    }

    /// Forgets all workers. What is still said in their sessions is not heard any more.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        for entry in std::mem::take(&mut state.workers).into_values() {
            entry.evict.cancel();
        }
    }

    /// Opens a session in this protocol version: the newest of its worker.
    pub(super) fn open(self: &Arc<Self>, hello: Hello, protocol: u32, now: Instant) -> Result<Opened, ApiError> {
        let mut state = self.state.lock();
        state.sessions += 1;
        let session = state.sessions;
        let id = hello.worker.worker.clone();
        if !state.workers.contains_key(&id) && state.workers.len() >= MAX_WORKERS {
            let message = format!("there are {MAX_WORKERS} workers already");
            return Err(ApiError::new(Code::ResourceExhausted, "TOO_MANY_WORKERS", message));
        }
        let evict = CancellationToken::new();
        let mut entry = Entry {
            instance: hello.worker,
            session,
            connected: true,
            leaving: None,
            departed: false,
            capacity: hello.capacity,
            protocol,
            program_version: hello.program_version,
            generation: hello.report.generation,
            report: Arc::new(hello.report),
            received: now,
            assignments: watch::Sender::new(None),
            evict: evict.clone(),
            replaced: VecDeque::new(),
        };
        if let Some(old) = state.workers.get_mut(&id) {
            if old.replaced.contains(&entry.instance.incarnation) {
                let message = format!(
                    "another process has taken the place of this one under the worker id {id}: give each worker its own"
                );
                return Err(ApiError::new(Code::FailedPrecondition, "WORKER_REPLACED", message));
            }
            old.evict.cancel();
            entry.replaced = std::mem::take(&mut old.replaced);
            if old.instance == entry.instance {
                // The same process again: what it was offered still stands, and is sent again.
                entry.generation = entry.generation.max(old.generation);
                entry.assignments = old.assignments.clone();
                // Who is on the way out does not turn back.
                entry.leaving = old.leaving;
            } else {
                entry.replaced.push_back(old.instance.incarnation);
                if entry.replaced.len() > MAX_REPLACED {
                    entry.replaced.pop_front();
                }
            }
        }
        let mut assignments = entry.assignments.subscribe();
        if assignments.borrow().is_some() {
            assignments.mark_changed();
        }
        state.workers.insert(id.clone(), entry);
        drop(state);
        self.wake.notify_one();
        Ok(Opened {
            registry: self.clone(),
            worker: id,
            session,
            assignments,
            evicted: evict,
        })
    }
}

impl Opened {
    /// Notes a report.
    pub(super) fn report(&self, report: Report, now: Instant) {
        self.change(|entry| {
            let wake = !report.is_like(&entry.report);
            entry.report = Arc::new(report);
            entry.received = now;
            wake
        });
    }

    /// Notes that the worker wants to leave, and when it will be gone. What it said first stands.
    pub(super) fn leave(&self, until: Option<Instant>) {
        self.change(|entry| {
            let first = entry.leaving.is_none();
            entry.leaving.get_or_insert(Leaving { until });
            first
        });
    }

    /// Notes that the worker ended its side in order. Once it has said that it leaves, that is its goodbye.
    pub(super) fn ended(&self) {
        self.change(|entry| {
            entry.departed = entry.leaving.is_some();
            entry.departed
        });
    }

    /// Changes the entry, if this is still its session, and wakes the coordinator if that asks for it.
    fn change(&self, change: impl FnOnce(&mut Entry) -> bool) {
        let mut state = self.registry.state.lock();
        let entry = state
            .workers
            .get_mut(&self.worker)
            .filter(|entry| entry.session == self.session);
        let wake = entry.is_some_and(change);
        drop(state);
        if wake {
            self.registry.wake.notify_one();
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.change(|entry| {
            entry.connected = false;
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(worker: &str, incarnation: Incarnation) -> Hello {
        Hello {
            worker: WorkerInstance {
                worker: worker.parse().unwrap(),
                incarnation,
            },
            protocol: (1, 1),
            program_version: "test".into(),
            capacity: Capacity {
                cores: 2,
                memory_bytes: 1,
            },
            report: Report {
                generation: Generation(7),
                ..Report::default()
            },
        }
    }

    fn only(registry: &Registry) -> WorkerSeen {
        let [seen] = &registry.snapshot()[..] else {
            panic!("one worker")
        };
        seen.clone()
    }

    #[tokio::test]
    async fn a_reconnect_of_the_same_process_keeps_its_set_and_evicts_the_old_session() {
        let registry = Arc::new(Registry::default());
        let incarnation = Incarnation::new();
        let first = registry.open(hello("w", incarnation), 1, Instant::now()).unwrap();
        let instance = only(&registry).instance;
        // Above what the worker knows from an earlier control plane.
        assert_eq!(registry.offer(&instance, Vec::new()), Some(Generation(8)));
        let mut second = registry.open(hello("w", incarnation), 1, Instant::now()).unwrap();
        assert!(first.evicted.is_cancelled() && !second.evicted.is_cancelled());
        second.assignments.changed().await.unwrap();
        assert_eq!(second.assignments.borrow().as_ref().unwrap().generation, 8);
        // The old session is not heard any more, not even when it ends.
        first.leave(None);
        drop(first);
        let seen = only(&registry);
        assert!(seen.connected && seen.leaving.is_none());
        drop(second);
        assert!(!only(&registry).connected);
    }

    #[tokio::test]
    async fn a_replaced_process_never_comes_back() {
        let registry = Arc::new(Registry::default());
        let (old, new) = (Incarnation::new(), Incarnation::new());
        let first = registry.open(hello("w", old), 1, Instant::now()).unwrap();
        let old_instance = only(&registry).instance;
        let second = registry.open(hello("w", new), 1, Instant::now()).unwrap();
        assert!(first.evicted.is_cancelled());
        assert_eq!(registry.offer(&old_instance, Vec::new()), None);
        let refused = registry.open(hello("w", old), 1, Instant::now()).err().unwrap();
        assert_eq!(refused.reason, "WORKER_REPLACED");
        assert!(!second.evicted.is_cancelled());
        assert_eq!(only(&registry).instance.incarnation, new);
    }

    #[tokio::test]
    async fn only_what_asks_for_action_wakes() {
        let registry = Arc::new(Registry::default());
        let session = registry
            .open(hello("w", Incarnation::new()), 1, Instant::now())
            .unwrap();
        registry.heard().await;
        let woken = || futures::FutureExt::now_or_never(registry.heard()).is_some();
        let mut report = Report {
            generation: Generation(7),
            ..Report::default()
        };
        session.report(report.clone(), Instant::now());
        assert!(!woken());
        report.generation = Generation(8);
        session.report(report, Instant::now());
        assert!(woken());
        let until = Some(Instant::now());
        session.leave(until);
        assert!(woken());
        session.leave(None);
        assert!(!woken());
        assert_eq!(only(&registry).leaving, Some(Leaving { until }));
        session.ended();
        assert!(only(&registry).departed);
    }
}

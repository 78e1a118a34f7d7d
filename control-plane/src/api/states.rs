//! Notes when a pipe begins to show another state. The state itself is not stored (see [`crate::lifecycle`]): this looks at
//! it as a user would, and writes an event when it has become another.
//!
//! A pipe that flaps does not flood its events: between two of them lies [`QUIET`], and what is written then is what the pipe
//! shows by that time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use millrace_common::ids::PipeUid;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Api;
use crate::{
    events::{NewEvent, Severity, kind},
    lifecycle::{State, Status},
    store::Store,
};

/// Changes are gathered for this long before they are looked at: a state that lasts less is not told.
const GATHER: Duration = Duration::from_secs(1);
/// Without a sign of a change, pipes are looked at this often.
const PERIOD: Duration = Duration::from_secs(15);
/// Least time between two events of one pipe, after the first few.
const QUIET: Duration = Duration::from_secs(60);
/// Events that a pipe may have in quick succession, when it was quiet before.
const BURST: u32 = 6;

/// What is remembered of a pipe.
#[derive(Debug)]
struct Memory {
    shown: (State, String),
    /// Events that may be written at once.
    tokens: u32,
    refilled: Instant,
}

/// What is remembered of all.
#[derive(Debug, Default)]
struct Memories(BTreeMap<PipeUid, Memory>);

impl Memories {
    /// The event to write of a pipe that shows `status` now, if it is to be told.
    fn observe(&mut self, uid: PipeUid, status: &Status, now: Instant) -> Option<NewEvent> {
        let memory = self.0.entry(uid).or_insert_with(|| Memory {
            // A new pipe begins here; of one that is older, the first event says what it is when this process begins.
            shown: (State::Provisioning, String::new()),
            tokens: BURST,
            refilled: now,
        });
        while memory.tokens < BURST && now.duration_since(memory.refilled) >= QUIET {
            memory.tokens += 1;
            memory.refilled += QUIET;
        }
        if memory.tokens == BURST {
            memory.refilled = now;
        }
        let (from, reason) = &memory.shown;
        if (*from, reason) == (status.state, &status.reason) || memory.tokens == 0 {
            return None;
        }
        let event = event(*from, status);
        memory.tokens -= 1;
        memory.shown = (status.state, status.reason.clone());
        Some(event)
    }

    /// The event could not be written: what it tells is still to be told.
    fn take_back(&mut self, uid: PipeUid, shown: (State, String)) {
        if let Some(memory) = self.0.get_mut(&uid) {
            memory.shown = shown;
            memory.tokens += 1;
        }
    }

    /// What was told of a pipe last.
    fn shown(&self, uid: PipeUid) -> (State, String) {
        let shown = self.0.get(&uid).map(|memory| memory.shown.clone());
        shown.unwrap_or((State::Provisioning, String::new()))
    }

    fn retain(&mut self, present: &BTreeSet<PipeUid>) {
        self.0.retain(|uid, _| present.contains(uid));
    }
}

fn event(from: State, status: &Status) -> NewEvent {
    let severity = match status.state {
        State::Failed => Severity::Error,
        State::Degraded => Severity::Warning,
        State::Provisioning | State::Running | State::Stopping | State::Stopped | State::Completed => Severity::Info,
    };
    let message = if status.message.is_empty() {
        format!("the pipe is {} now", status.state.name())
    } else {
        format!("the pipe is {} now: {}", status.state.name(), status.message)
    };
    NewEvent::new(kind::STATE_CHANGED, severity, message)
        .with("from", from.name())
        .with("to", status.state.name())
        .with("reason", &status.reason)
}

impl Api {
    /// Notes changes of what pipes show in `store`, until `shutdown`.
    pub async fn note_states(self, store: Store, shutdown: CancellationToken) {
        let (mut observed, mut stored) = (self.coordinator.changed(), self.stored.ticks());
        let mut memories = Memories::default();
        let mut known = false;
        loop {
            let waiting = async {
                tokio::select! {
                    _ = observed.changed() => {}
                    _ = stored.changed() => {}
                    () = tokio::time::sleep(PERIOD) => {}
                }
                tokio::time::sleep(GATHER).await;
            };
            if shutdown.run_until_cancelled(waiting).await.is_none() {
                return;
            }
            observed.mark_unchanged();
            stored.mark_unchanged();
            if shutdown
                .run_until_cancelled(self.look_at_states(&store, &mut memories, &mut known))
                .await
                .is_none()
            {
                return;
            }
        }
    }

    async fn look_at_states(&self, store: &Store, memories: &mut Memories, known: &mut bool) {
        let pipes = match store.snapshot_all().await {
            // Those that cannot be read show no state; the coordinator tells of them.
            Ok(all) => all.pipes,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "cannot look at states");
                return;
            }
        };
        let now = Instant::now();
        memories.retain(&pipes.iter().map(|snapshot| snapshot.pipe.uid).collect());
        for snapshot in &pipes {
            let (uid, status) = (snapshot.pipe.uid, self.status(snapshot));
            let before = memories.shown(uid);
            let Some(event) = memories.observe(uid, &status, now) else {
                continue;
            };
            // After a start, what was told last may still be so.
            let told = if *known { None } else { self.last_told(uid).await };
            if told.is_some_and(|told| told == (status.state.name().to_owned(), status.reason.clone())) {
                continue;
            }
            if let Err(error) = store.append_event(uid, &event).await {
                memories.take_back(uid, before);
                tracing::warn!(pipe = %snapshot.pipe.name, error = &error as &dyn std::error::Error, "cannot note a state");
            }
        }
        *known = true;
    }

    async fn last_told(&self, uid: PipeUid) -> Option<(String, String)> {
        let last = self.store.last_event(uid, kind::STATE_CHANGED).await.ok()??;
        let detail = |key: &str| last.details.get(key).cloned().unwrap_or_default();
        Some((detail("to"), detail("reason")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: State, reason: &str) -> Status {
        Status {
            state,
            reason: reason.to_owned(),
            message: String::new(),
            reconciling: false,
        }
    }

    #[test]
    fn a_change_is_told_once() {
        let (mut memories, uid, now) = (Memories::default(), PipeUid::new(), Instant::now());
        assert!(memories.observe(uid, &status(State::Provisioning, ""), now).is_none());
        let event = memories.observe(uid, &status(State::Failed, "X"), now).unwrap();
        assert_eq!((event.kind, event.severity), (kind::STATE_CHANGED, Severity::Error));
        assert_eq!(
            (&*event.details["from"], &*event.details["to"]),
            ("PROVISIONING", "FAILED")
        );
        assert!(memories.observe(uid, &status(State::Failed, "X"), now).is_none());
        assert!(memories.observe(uid, &status(State::Failed, "Y"), now).is_some());
    }

    #[test]
    fn flapping_is_told_now_and_then() {
        let (mut memories, uid, start) = (Memories::default(), PipeUid::new(), Instant::now());
        let mut told = 0;
        for second in 0..3_600 {
            let state = if second % 2 == 0 {
                State::Degraded
            } else {
                State::Running
            };
            let now = start + Duration::from_secs(second);
            told += usize::from(memories.observe(uid, &status(state, ""), now).is_some());
        }
        assert!((60..=66).contains(&told), "{told} events in an hour");
        // What it shows in the end is told in the end.
        let later = start + Duration::from_secs(4_000);
        memories.observe(uid, &status(State::Stopped, ""), later);
        assert_eq!(memories.0[&uid].shown.0, State::Stopped);
    }
}

//! Whether a reader is alive: the watchdog of a shard.
//!
//! Every call has an end, and an idle shard is asked once a second or sends an event every five, so a reader that hears nothing for a
//! minute, although it has room, is one that nobody foresaw. It is given up, and whoever runs it starts another where the lane stands. Time for which the reader waits
//! on purpose (for its next call, for memory, for a lane that takes no page) does not count.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// A reader without a sign of life for this long is given up: twice what a call may take.
pub(super) const STUCK_AFTER: Duration = Duration::from_secs(60);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Signs of life of a reader.
#[derive(Debug, Clone)]
pub(super) struct Vitals(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// When a call ended last, whatever came of it, or a wait.
    alive: Instant,
    /// It waits on purpose.
    waits: bool,
}

impl Vitals {
    /// Of a reader that begins.
    pub(super) fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(State {
            alive: now,
            waits: false,
        })))
    }

    /// A call ended, or a wait for the next one.
    pub(super) fn alive(&self) {
        self.0.lock().alive = Instant::now();
    }

    /// Waits for its time or for room; that is no stall, however long it takes.
    pub(super) async fn waiting<T>(&self, room: impl Future<Output = T>) -> T {
        self.0.lock().waits = true;
        let room = room.await;
        let mut state = self.0.lock();
        state.waits = false;
        state.alive = Instant::now();
        room
    }

    fn is_stuck(&self, now: Instant) -> bool {
        let state = self.0.lock();
        !state.waits && now.saturating_duration_since(state.alive) >= STUCK_AFTER
    }

    /// Ends when the reader is stuck.
    pub(super) async fn watch(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if self.is_stuck(Instant::now()) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reader_is_stuck_only_if_it_could_read_and_does_nothing() {
        let vitals = Vitals::new(Instant::now());
        let started = Instant::now();
        vitals.watch().await;
        assert!(started.elapsed() >= STUCK_AFTER && started.elapsed() <= STUCK_AFTER + LOOK_EVERY);

        // Calls that fail are signs of life.
        for _ in 0..10 {
            vitals.alive();
            tokio::time::advance(STUCK_AFTER - Duration::from_secs(1)).await;
            assert!(!vitals.is_stuck(Instant::now()));
        }
        // Waiting for room is none of its faults, and the time begins anew after it.
        vitals
            .waiting(async {
                tokio::time::sleep(10 * STUCK_AFTER).await;
                assert!(!vitals.is_stuck(Instant::now()));
            })
            .await;
        assert!(!vitals.is_stuck(Instant::now()));
        tokio::time::advance(STUCK_AFTER).await;
        assert!(vitals.is_stuck(Instant::now()));
    }
}

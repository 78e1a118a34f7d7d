//! The emulator's clock: wall time plus an offset that tests may move.
//!
//! Everything with a date (arrival times, iterator and token life, retention, rate limits, stream status) asks this
//! clock and no other, so a test passes five minutes or a day by saying so. It is not monotonic: like the service's own
//! clock it may be set back, and arrival times then go back too.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;

/// A cloneable handle to one clock; all clones move together.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Milliseconds added to the base.
    offset_ms: AtomicI64,
    /// The base: milliseconds since 1970 where the clock stands still, or 0 where it follows wall time.
    frozen_at_ms: AtomicI64,
    /// Tells those who wait for a time that the clock was moved.
    moved: Notify,
}

impl Clock {
    /// A clock that follows wall time.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands at `ms` milliseconds since 1970 (which must be positive) until it is moved.
    #[must_use]
    pub fn frozen_at_ms(ms: i64) -> Self {
        let clock = Self::default();
        clock.state.frozen_at_ms.store(ms.max(1), Ordering::Relaxed);
        clock
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        let base = match self.state.frozen_at_ms.load(Ordering::Relaxed) {
            0 => wall_ms(),
            frozen => frozen,
        };
        base.saturating_add(self.state.offset_ms.load(Ordering::Relaxed))
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.state.offset_ms.fetch_add(whole_ms(by), Ordering::Relaxed);
        self.state.moved.notify_waiters();
    }

    /// Waits until the clock shows `ms`, whether time brings it there or a test does.
    pub(super) async fn sleep_until_ms(&self, ms: i64) {
        loop {
            let mut moved = std::pin::pin!(self.state.moved.notified());
            moved.as_mut().enable();
            let left = ms.saturating_sub(self.now_ms());
            let Ok(left) = u64::try_from(left) else { return };
            if left == 0 {
                return;
            }
            if self.state.frozen_at_ms.load(Ordering::Relaxed) != 0 {
                moved.await;
            } else {
                tokio::select! {
                    () = moved => {}
                    () = tokio::time::sleep(Duration::from_millis(left)) => {}
                }
            }
        }
    }

    /// Moves the clock back, as a time correction on the service's side would.
    pub fn set_back(&self, by: Duration) {
        self.state.offset_ms.fetch_sub(whole_ms(by), Ordering::Relaxed);
        self.state.moved.notify_waiters();
    }
}

fn whole_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2)
}

fn wall_ms() -> i64 {
    // A wall clock before 1970 reads as 1970: no date of the emulator is negative.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, whole_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_clock_moves_only_when_told() {
        let clock = Clock::frozen_at_ms(1_000);
        let same = clock.clone();
        clock.advance(Duration::from_millis(500));
        assert_eq!(same.now_ms(), 1_500);
        same.set_back(Duration::from_secs(1));
        assert_eq!(clock.now_ms(), 500);
    }

    #[test]
    fn the_system_clock_is_wall_time_plus_what_was_advanced() {
        let clock = Clock::system();
        let before = wall_ms();
        clock.advance(Duration::from_secs(3_600));
        assert!(clock.now_ms() >= before + 3_600_000);
    }
}

//! When a reader may subscribe. Pure: time and jitter come as arguments.
//!
//! Kinesis refuses a second subscription to a shard within five seconds of the first, and lets it take over after them. So
//! after any end nobody here subscribes again before the five seconds are over, which costs nothing where a subscription
//! lasted its five minutes. Who was taken over waits longer each time: mostly the shard is somebody else's by then, and this reader about
//! to be told; two who both believe that it is theirs must not take it from each other for ever.

use std::time::Duration;

use tokio::time::Instant;

/// Nobody else can subscribe for so long after a subscription began; and a little, for clocks.
const SAFE: Duration = Duration::from_millis(5_100);
/// Kinesis ends a subscription after five minutes; it is renewed before, at a time of its own for each shard.
const LIFE: Duration = Duration::from_secs(300);
/// The earliest and the latest part of its life at which it is renewed.
const RENEW: (f64, f64) = (0.9, 0.98);
/// Kinesis sends an event about every five seconds, even if there is nothing to say.
pub(super) const SILENCE: Duration = Duration::from_secs(30);
/// Between calls that are refused because the shard is in use: no more than a call a second is allowed.
const IN_USE: Duration = Duration::from_secs(1);
/// After being taken over, the first time and at most.
const TAKEN_OVER: Duration = Duration::from_secs(5);
const TAKEN_OVER_MOST: Duration = Duration::from_secs(60);
/// After a subscription that brought nothing, the first time and at most.
const BROKEN: Duration = Duration::from_millis(500);
const BROKEN_MOST: Duration = Duration::from_secs(10);

/// How a subscription, or an attempt at one, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// At the end of its time.
    Finished,
    /// Given up here, because its events could not be taken.
    GivenUp,
    /// The connection, the stream or an event broke.
    Broken,
    /// Another one took over.
    TakenOver,
    /// It did not begin, because somebody else has just subscribed.
    Refused,
}

/// How long a subscription is kept.
pub(super) fn renew_after(jitter: f64) -> Duration {
    LIFE.mul_f64(RENEW.0 + (RENEW.1 - RENEW.0) * jitter.clamp(0.0, 1.0))
}

/// Whose turn it is to subscribe to one shard.
#[derive(Debug, Default)]
pub(super) struct Turns {
    subscribed: Option<Instant>,
    not_before: Option<Instant>,
    taken_over: u32,
    broken: u32,
}

impl Turns {
    /// The earliest time for the next call.
    pub(super) fn not_before(&self, now: Instant) -> Instant {
        self.not_before.map_or(now, |time| time.max(now))
    }

    pub(super) fn subscribed(&mut self, now: Instant) {
        self.subscribed = Some(now);
    }

    /// An event came: nothing is wrong with the connection.
    pub(super) fn heard(&mut self) {
        self.broken = 0;
    }

    pub(super) fn ended(&mut self, end: End, now: Instant, jitter: f64) {
        let jitter = jitter.clamp(0.0, 1.0);
        let spread = |delay: Duration| delay.mul_f64(1.0 + jitter / 2.0);
        let doubled = |first: Duration, count: u32, most: Duration| {
            first.saturating_mul(1 << count.saturating_sub(1).min(16)).min(most)
        };
        if let Some(subscribed) = self.subscribed
            && end != End::TakenOver
            && now - subscribed >= TAKEN_OVER_MOST
        {
            // It was this reader's for long enough.
            self.taken_over = 0;
        }
        let wait = match end {
            End::Finished | End::GivenUp => Duration::ZERO,
            End::Broken => {
                self.broken += 1;
                spread(doubled(BROKEN, self.broken, BROKEN_MOST))
            }
            End::TakenOver => {
                self.taken_over += 1;
                spread(doubled(TAKEN_OVER, self.taken_over, TAKEN_OVER_MOST))
            }
            End::Refused => IN_USE.mul_f64(1.0 + jitter),
        };
        let own = self.subscribed.map_or(now, |subscribed| subscribed + SAFE);
        self.not_before = Some(own.max(now + wait));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_renewal_at_the_end_of_its_time_follows_at_once() {
        let start = Instant::now();
        let mut turns = Turns::default();
        assert_eq!(turns.not_before(start), start);
        turns.subscribed(start);
        let end = start + renew_after(0.0);
        turns.ended(End::Finished, end, 0.7);
        assert_eq!(turns.not_before(end), end);
        assert!(renew_after(0.0) >= s(240.0) && renew_after(1.0) < LIFE);
    }

    #[test]
    fn nobody_subscribes_twice_within_five_seconds() {
        let start = Instant::now();
        for end in [End::Finished, End::GivenUp, End::Broken, End::TakenOver] {
            let mut turns = Turns::default();
            turns.subscribed(start);
            turns.ended(end, start + s(0.1), 0.0);
            assert!(turns.not_before(start) >= start + s(5.0), "{end:?}");
        }
    }

    #[test]
    fn a_shard_in_use_is_asked_for_at_most_once_a_second_and_no_less_often_later() {
        let start = Instant::now();
        let mut turns = Turns::default();
        for attempt in 0..20 {
            let now = start + s(f64::from(attempt) * 2.0);
            turns.ended(End::Refused, now, 1.0);
            let wait = turns.not_before(now) - now;
            assert!(wait >= s(1.0) && wait <= s(2.0), "{wait:?}");
        }
    }

    #[test]
    fn two_who_take_a_shard_from_each_other_do_so_ever_more_seldom() {
        let mut now = Instant::now();
        let mut turns = Turns::default();
        let mut waits = Vec::new();
        for _ in 0..6 {
            turns.subscribed(now);
            now += s(6.0);
            turns.ended(End::TakenOver, now, 0.0);
            waits.push((turns.not_before(now) - now).as_secs());
            now = turns.not_before(now);
        }
        assert_eq!(waits, [5, 10, 20, 40, 60, 60]);
        // It is this one's again.
        turns.subscribed(now);
        now += s(270.0);
        turns.ended(End::Finished, now, 0.0);
        turns.subscribed(now);
        now += s(6.0);
        turns.ended(End::TakenOver, now, 0.0);
        assert_eq!((turns.not_before(now) - now).as_secs(), 5);
    }

    #[test]
    fn a_broken_connection_is_tried_again_with_patience_until_something_comes() {
        let start = Instant::now();
        let mut turns = Turns::default();
        let mut waits = Vec::new();
        for _ in 0..7 {
            turns.ended(End::Broken, start, 0.0);
            waits.push((turns.not_before(start) - start).as_millis());
        }
        assert_eq!(waits, [500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000]);
        turns.heard();
        turns.ended(End::Broken, start, 1.0);
        assert_eq!((turns.not_before(start) - start).as_millis(), 750);
    }
}

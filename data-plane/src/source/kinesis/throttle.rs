//! How fast one shard may be called: Kinesis' limits, an interval that doubles when throttled and shrinks step by step
//! after (AIMD), a slower one while idle, and backoff after failures. Pure: time and jitter come as arguments.

use std::time::Duration;

use millrace_common::pipe::PollingBudget;
use tokio::time::Instant;

/// GetRecords calls that Kinesis takes of one shard in a second.
const SHARD_CALLS_PER_SECOND: u32 = 5;
/// What is added to the time between two calls, because the network may deliver two calls closer together than they were sent.
const CALLS_APART: Duration = Duration::from_millis(10);
/// Longest time between two calls of a shard that is idle.
const MAX_IDLE: Duration = Duration::from_secs(1);
/// Longest interval that throttling leads to.
const MAX_INTERVAL: Duration = Duration::from_secs(2);
/// How much shorter the interval gets with each answer.
const RECOVERY_STEP: Duration = Duration::from_millis(20);
/// What Kinesis gives of one shard in a second.
const SHARD_BYTES_PER_SECOND: u64 = 2 * 1024 * 1024;

/// Backoff: first and longest wait.
#[derive(Debug, Clone, Copy)]
struct Backoff {
    first: Duration,
    longest: Duration,
}

/// Throttling lasts a second, or five after a large answer.
const THROTTLED: Backoff = Backoff {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(10),
};
/// Failures of network and service.
const FAILED: Backoff = Backoff {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(10),
};
/// What a person has to mend: asked about now and then.
const REFUSED: Backoff = Backoff {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(60),
};

impl Backoff {
    /// The wait after the `count`th failure in a row: between half and all of a doubling delay.
    fn wait(self, count: u32, jitter: f64) -> Duration {
        let doubled = self.first.saturating_mul(1 << count.saturating_sub(1).min(16));
        doubled.min(self.longest).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

/// How fast a shard may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// GetRecords calls a second: Kinesis allows five.
    pub calls_per_second: u32,
    /// Payload bytes a second; `None` for an endpoint that has no such limit.
    pub bytes_per_second: Option<u64>,
}

impl Default for Limits {
    /// What Kinesis allows.
    fn default() -> Self {
        Self {
            calls_per_second: SHARD_CALLS_PER_SECOND,
            bytes_per_second: Some(SHARD_BYTES_PER_SECOND),
        }
    }
}

impl Limits {
    /// These, and what a pipe may use of a shard that others poll, too.
    #[must_use]
    pub fn within(self, budget: PollingBudget) -> Self {
        let bytes = [self.bytes_per_second, budget.bytes_per_second];
        Self {
            calls_per_second: self
                .calls_per_second
                .min(budget.calls_per_second.unwrap_or(self.calls_per_second))
                .max(1),
            bytes_per_second: bytes.into_iter().flatten().min(),
        }
    }

    /// Shortest time between two GetRecords calls.
    fn interval(self) -> Duration {
        Duration::from_secs(1) / self.calls_per_second.clamp(1, SHARD_CALLS_PER_SECOND) + CALLS_APART
    }
}

/// The class of a failure, as far as pace is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Brake {
    /// Too many calls.
    Throttled,
    /// May pass by itself.
    Failed,
    /// A person has to act.
    Refused,
}

/// The pace of one shard.
#[derive(Debug)]
pub(super) struct Pace {
    limits: Limits,
    /// Between two GetRecords calls.
    interval: Duration,
    /// The same while nothing comes; zero while something does.
    idle: Duration,
    /// No GetRecords before this.
    records_at: Instant,
    /// No call at all before this.
    call_at: Instant,
    /// Failures in a row, and of which class the last was.
    streak: Option<(Brake, u32)>,
}

impl Pace {
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            interval: limits.interval(),
            idle: Duration::ZERO,
            records_at: now,
            call_at: now,
            streak: None,
        }
    }

    /// When the next call may start.
    pub(super) fn call_at(&self) -> Instant {
        self.call_at
    }

    /// When the next GetRecords may start.
    pub(super) fn records_at(&self) -> Instant {
        self.records_at.max(self.call_at)
    }

    /// GetRecords answered with `bytes` of payload.
    pub(super) fn answered(&mut self, started: Instant, now: Instant, bytes: u64, idle: bool) {
        self.streak = None;
        self.interval = self.interval.saturating_sub(RECOVERY_STEP).max(self.limits.interval());
        self.idle = if idle {
            (self.idle.max(self.limits.interval()) * 2).min(MAX_IDLE)
        } else {
            Duration::ZERO
        };
        self.records_at = started + self.interval.max(self.idle);
        if let Some(rate) = self.limits.bytes_per_second {
            let owed = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            // An answer of more than a second's worth blocks the shard from when it was served, which is nearer to its
            // arrival than to its request.
            let from = if bytes > rate { now } else { started };
            self.records_at = self.records_at.max(from + owed);
        }
    }

    /// A call failed.
    pub(super) fn failed(&mut self, started: Instant, now: Instant, brake: Brake, jitter: f64) {
        let count = match self.streak {
            Some((last, count)) if last == brake => count + 1,
            _ => 1,
        };
        self.streak = Some((brake, count));
        let backoff = match brake {
            Brake::Throttled => {
                self.interval = (self.interval * 2).min(MAX_INTERVAL.max(self.limits.interval()));
                THROTTLED
            }
            Brake::Failed => FAILED,
            Brake::Refused => REFUSED,
        };
        self.call_at = now + backoff.wait(count, jitter);
        self.counted(started);
    }

    /// A call was made that counts against the calls per second, whatever came of it.
    pub(super) fn counted(&mut self, started: Instant) {
        self.records_at = self.records_at.max(started + self.interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;
    const MIN_INTERVAL: Duration = Duration::from_millis(210);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn never_more_than_five_calls_in_a_second() {
        let mut now = Instant::now();
        let mut pace = Pace::new(Limits::default(), now);
        let mut starts = Vec::new();
        for _ in 0..50 {
            now = now.max(pace.records_at());
            starts.push(now);
            pace.answered(now, now + ms(5), 1_000, false);
        }
        assert!(starts.windows(6).all(|six| six[5] - six[0] >= Duration::from_secs(1)));
    }

    #[test]
    fn an_idle_shard_is_asked_once_a_second_and_at_once_again_when_it_is_not() {
        let start = Instant::now();
        let mut pace = Pace::new(Limits::default(), start);
        let gaps: Vec<_> = (0..4)
            .map(|_| {
                pace.answered(start, start, 0, true);
                pace.records_at() - start
            })
            .collect();
        assert_eq!(gaps, [ms(420), ms(840), ms(1_000), ms(1_000)]);
        pace.answered(start, start, 10, false);
        assert_eq!(pace.records_at() - start, MIN_INTERVAL);
    }

    #[test]
    fn bytes_are_paid_off() {
        let start = Instant::now();
        let mut pace = Pace::new(Limits::default(), start);
        pace.answered(start, start + ms(300), 10 * MIB, false);
        assert_eq!(pace.records_at() - start, ms(5_300));
        pace.answered(start, start + ms(300), MIB, false);
        assert_eq!(pace.records_at() - start, ms(500));
        let unlimited = Limits {
            bytes_per_second: None,
            ..Limits::default()
        };
        let mut pace = Pace::new(unlimited, start);
        pace.answered(start, start + ms(300), 10 * MIB, false);
        assert_eq!(pace.records_at() - start, MIN_INTERVAL);
    }

    #[test]
    fn a_pipe_may_use_less_than_kinesis_allows() {
        let share = |calls_per_second, bytes_per_second| {
            Limits::default().within(PollingBudget {
                calls_per_second,
                bytes_per_second,
            })
        };
        assert_eq!(share(None, None), Limits::default());
        assert_eq!(share(Some(9), Some(9 * MIB)), Limits::default(), "never more");
        let half = share(Some(2), Some(MIB));
        assert_eq!((half.calls_per_second, half.bytes_per_second), (2, Some(MIB)));
        let start = Instant::now();
        let (mut now, mut calls) = (start, 0);
        let mut pace = Pace::new(half, start);
        while now < start + Duration::from_secs(60) {
            calls += 1;
            pace.answered(now, now + ms(5), 300_000, false);
            now = pace.records_at();
        }
        assert_eq!(calls, 118, "every 510 ms");
        let (mut now, mut bytes) = (start, 0);
        let mut pace = Pace::new(half, start);
        while now < start + Duration::from_secs(60) {
            bytes += 4 * MIB;
            pace.answered(now, now + ms(5), 4 * MIB, false);
            now = pace.records_at();
        }
        assert!(bytes <= 64 * MIB, "{bytes} bytes in a minute");
        // Throttled, such a pipe is not faster than before.
        let mut slow = Pace::new(share(Some(1), None), start);
        slow.failed(start, start, Brake::Throttled, 0.0);
        assert!(slow.interval >= ms(1_010), "{:?}", slow.interval);
    }

    #[test]
    fn throttling_doubles_the_interval_and_answers_shrink_it_again() {
        let start = Instant::now();
        let mut pace = Pace::new(Limits::default(), start);
        pace.failed(start, start, Brake::Throttled, 1.0);
        assert_eq!(pace.call_at() - start, Duration::from_secs(1));
        pace.failed(start, start, Brake::Throttled, 0.0);
        assert_eq!(pace.call_at() - start, Duration::from_secs(1), "half of two seconds");
        for _ in 0..20 {
            pace.failed(start, start, Brake::Throttled, 1.0);
        }
        assert_eq!(pace.call_at() - start, THROTTLED.longest);
        assert_eq!(pace.interval, MAX_INTERVAL);
        pace.answered(start, start, 0, false);
        assert_eq!(pace.interval, MAX_INTERVAL - RECOVERY_STEP);
        for _ in 0..200 {
            pace.answered(start, start, 0, false);
        }
        assert_eq!(pace.interval, MIN_INTERVAL);
    }

    #[test]
    fn each_class_backs_off_at_its_own_speed() {
        let start = Instant::now();
        let mut pace = Pace::new(Limits::default(), start);
        pace.failed(start, start, Brake::Failed, 1.0);
        assert_eq!(pace.call_at() - start, ms(100));
        pace.failed(start, start, Brake::Refused, 1.0);
        assert_eq!(pace.call_at() - start, Duration::from_secs(1));
        for _ in 0..40 {
            pace.failed(start, start, Brake::Refused, 1.0);
        }
        assert_eq!(pace.call_at() - start, Duration::from_secs(60));
        pace.answered(start, start, 0, false);
        pace.failed(start, start, Brake::Refused, 1.0);
        assert_eq!(
            pace.call_at() - start,
            Duration::from_secs(1),
            "an answer ends the streak"
        );
    }
}

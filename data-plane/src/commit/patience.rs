//! How long an insert waits after a failed attempt, and when a person hears of it. No IO; it is told what happened and when.
//!
//! It never says to stop: whatever the answer was, the same bytes are sent again under the same token, because only an
//! acknowledgement shows that they are in the table.

use std::time::Duration;

use millrace_common::retry::Backoff;
use tokio::time::Instant;

use crate::sink::clickhouse::{Class, InsertError};

/// Waits between attempts that may soon succeed.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// Waits when ClickHouse asks for less.
const LOAD_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Failed attempts in a row before it is shown: a connection that was closed while idle is no news.
const ATTEMPTS_BEFORE_FAULT: u32 = 2;
/// How long an error that Millrace does not know may be expected to pass. After that a person has to look; the attempts
/// go on, as often as those that wait for a person.
const UNKNOWN_CAP: Duration = Duration::from_secs(10 * 60);

/// Whether a failed attempt is shown as a fault of the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    /// Not yet.
    Nothing,
    /// It should heal by itself.
    Passing,
    /// A person has to act.
    Permanent,
}

/// What follows from a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Next {
    /// How long to wait before the next attempt.
    pub delay: Duration,
    /// What to tell people.
    pub show: Show,
}

/// The failed attempts of one insert.
#[derive(Debug)]
pub(super) struct Patience {
    probe_interval: Duration,
    retry: Backoff,
    load: Backoff,
    failures: u32,
    /// Since when all attempts have failed with codes that are not in the table.
    unknown_since: Option<Instant>,
}

impl Patience {
    /// Nothing has failed yet. What waits for a person is tried again each `probe_interval`.
    pub(super) fn new(probe_interval: Duration) -> Self {
        Self {
            probe_interval,
            retry: Backoff::new(RETRY.0, RETRY.1),
            load: Backoff::new(LOAD_RETRY.0, LOAD_RETRY.1),
            failures: 0,
            unknown_since: None,
        }
    }

    /// An attempt has failed.
    pub(super) fn failed(&mut self, error: &InsertError, now: Instant) -> Next {
        self.failures = self.failures.saturating_add(1);
        let unknown_for = if error.is_known() {
            self.unknown_since = None;
            Duration::ZERO
        } else {
            now.saturating_duration_since(*self.unknown_since.get_or_insert(now))
        };
        let soon = match error.class {
            Class::Retry if unknown_for >= UNKNOWN_CAP => None,
            Class::Retry => Some(self.retry.delay()),
            Class::Load => Some(self.load.delay()),
            Class::Schema | Class::Pause | Class::Poison | Class::Bug => None,
        };
        match soon {
            Some(delay) if self.failures < ATTEMPTS_BEFORE_FAULT => Next {
                delay,
                show: Show::Nothing,
            },
            Some(delay) => Next {
                delay,
                show: Show::Passing,
            },
            None => Next {
                delay: self.probe_interval,
                show: Show::Permanent,
            },
        }
    }
}

/// Whether other inserts of the lane had better wait for the one that failed so. They need not if it is the block that is
/// wrong and not the destination.
pub(super) fn holds_others_back(class: Class) -> bool {
    match class {
        Class::Retry | Class::Load | Class::Pause => true,
        Class::Schema | Class::Poison | Class::Bug => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::clickhouse::{CODES, by_code};

    const PROBE: Duration = Duration::from_secs(15);

    fn error(class: Class, code: Option<u32>) -> InsertError {
        InsertError {
            class,
            code,
            status: code.map(|_| 500),
            message: "for the test".to_owned(),
            is_certain: code.is_some(),
        }
    }

    /// Fails again and again for this long; returns all that was said, with the time before it.
    fn run(error: &InsertError, lasts: Duration) -> Vec<(Duration, Next)> {
        let (mut patience, began) = (Patience::new(PROBE), Instant::now());
        let (mut now, mut said) = (began, Vec::new());
        while now < began + lasts {
            let next = patience.failed(error, now);
            said.push((now - began, next));
            now += next.delay;
        }
        said
    }

    #[test]
    fn an_outage_of_two_hours_is_a_few_hundred_attempts() {
        let two_hours = Duration::from_secs(2 * 3600);
        for class in [Class::Retry, Class::Load] {
            let said = run(&error(class, None), two_hours);
            assert!((200..600).contains(&said.len()), "{class:?}: {} attempts", said.len());
            assert_eq!(said[0].1.show, Show::Nothing);
            assert!(
                said[1..].iter().all(|(_, next)| next.show == Show::Passing),
                "{class:?}"
            );
            let least = if class == Class::Retry { RETRY.0 } else { LOAD_RETRY.0 } / 2;
            let within = |(_, next): &(Duration, Next)| next.delay >= least && next.delay <= RETRY.1;
            assert!(said.iter().all(within), "{class:?}");
        }
    }

    #[test]
    fn every_code_is_waited_for_as_its_class_says() {
        for (class, codes) in CODES {
            for (code, name) in codes {
                let next = Patience::new(PROBE).failed(&error(class, Some(*code)), Instant::now());
                match class {
                    Class::Retry | Class::Load => assert!(next.show == Show::Nothing && next.delay < PROBE, "{name}"),
                    _ => assert!(next.show == Show::Permanent && next.delay == PROBE, "{name}"),
                }
            }
        }
    }

    #[test]
    fn what_nobody_knows_is_retried_and_then_shown_and_never_given_up() {
        assert_eq!(by_code(49, ""), None);
        let unknown = error(Class::Retry, Some(49));
        let said = run(&unknown, Duration::from_secs(3600));
        for (at, next) in &said[1..] {
            let expected = if *at < UNKNOWN_CAP {
                Show::Passing
            } else {
                Show::Permanent
            };
            assert_eq!(next.show, expected, "after {at:?}");
        }
        let late = said.iter().filter(|(at, _)| *at >= UNKNOWN_CAP);
        assert!(late.clone().all(|(_, next)| next.delay == PROBE));
        assert!(late.count() > 100, "it is still tried");
    }

    #[test]
    fn an_error_that_is_known_ends_the_count_of_those_that_are_not() {
        let (mut patience, now) = (Patience::new(PROBE), Instant::now());
        let unknown = error(Class::Retry, Some(49));
        patience.failed(&unknown, now);
        patience.failed(&error(Class::Retry, None), now + UNKNOWN_CAP);
        let next = patience.failed(&unknown, now + UNKNOWN_CAP * 2);
        assert_eq!(next.show, Show::Passing);
        let next = patience.failed(&unknown, now + UNKNOWN_CAP * 3);
        assert_eq!(next.show, Show::Permanent);
    }
}

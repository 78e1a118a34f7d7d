//! Whether records may have left the stream before they were read. Pure.
//!
//! What is known of a position is a time: all records that arrived before it lie before the position. It is the arrival of the
//! last record before the position, or the last time at which a reader there was at the tip, whichever is later. What arrived
//! since then is still in the stream as long as the stream's retention has not passed; so a position whose sequence number
//! has left the stream is no loss where nothing can have been trimmed behind it, and one that Kinesis still accepts may be
//! one where something was.

use std::time::Duration;

use jiff::Timestamp;
use millrace_common::position::Position;

/// The shortest retention of a stream: while less than this has passed, nothing is asked.
pub(super) const SHORTEST_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// How far this machine's clock and Kinesis' may be apart. Signatures are refused beyond five minutes; arrival times are
/// approximate and may go back a little.
pub(super) const SKEW: Duration = Duration::from_secs(10 * 60);

/// What is to be believed of a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing behind it has left the stream.
    Safe,
    /// What arrived between these times may have.
    Doubtful {
        /// What arrived before it was read; not known if `None`.
        from: Option<Timestamp>,
        /// What arrived since is still there.
        to: Timestamp,
    },
}

/// Whether retention has to be known before anything is read from `position`.
pub(super) fn is_suspicious(position: &Position, complete_until: Option<Timestamp>, now: Timestamp) -> bool {
    match (position, complete_until) {
        (_, Some(time)) => judge(Some(time), SHORTEST_RETENTION, now) != Verdict::Safe,
        // Somebody has read up to here, and it is not known when.
        (Position::After(_), None) => true,
        // Read from the oldest record that there is: nothing was promised of what came before.
        (Position::TrimHorizon | Position::AtTimestamp(_), None) => false,
    }
}

/// What is to be believed of a position, given how long the stream keeps records.
pub(super) fn judge(complete_until: Option<Timestamp>, retention: Duration, now: Timestamp) -> Verdict {
    let horizon = now.checked_sub(retention).unwrap_or(Timestamp::MIN);
    let safe = |time: &Timestamp| *time >= horizon.checked_add(SKEW).unwrap_or(Timestamp::MAX);
    match complete_until {
        Some(time) if safe(&time) => Verdict::Safe,
        from => Verdict::Doubtful { from, to: horizon },
    }
}

/// Where to begin so that nothing that arrived since `complete_until` is missed.
pub(super) fn begin(complete_until: Timestamp) -> Position {
    Position::AtTimestamp(complete_until.checked_sub(SKEW).unwrap_or(Timestamp::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn now() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    fn after() -> Position {
        Position::After("17".parse().unwrap())
    }

    #[test]
    fn what_was_read_within_the_retention_is_safe() {
        for (hours, retention, safe) in [
            (0, 24, true),
            (23, 24, true),
            (24, 24, false),
            (25, 24, false),
            (25, 48, true),
            (167, 168, true),
            (169, 168, false),
        ] {
            let time = now() - HOUR * hours;
            let verdict = judge(Some(time), HOUR * retention, now());
            let expected = Verdict::Doubtful {
                from: Some(time),
                to: now() - HOUR * retention,
            };
            assert_eq!(
                verdict,
                if safe { Verdict::Safe } else { expected },
                "{hours} of {retention} h"
            );
        }
    }

    #[test]
    fn clocks_may_be_apart() {
        let close = now() - HOUR * 24 + SKEW - Duration::from_secs(1);
        assert_ne!(judge(Some(close), HOUR * 24, now()), Verdict::Safe);
        assert_eq!(
            judge(Some(close + Duration::from_secs(1)), HOUR * 24, now()),
            Verdict::Safe
        );
        // A clock that was put back.
        assert_eq!(judge(Some(now() + HOUR), HOUR * 24, now()), Verdict::Safe);
    }

    #[test]
    fn what_is_not_known_is_doubtful() {
        let to = now() - HOUR * 24;
        assert_eq!(judge(None, HOUR * 24, now()), Verdict::Doubtful { from: None, to });
        assert_eq!(
            judge(Some(Timestamp::MIN), Duration::MAX, now()),
            Verdict::Doubtful {
                from: Some(Timestamp::MIN),
                to: Timestamp::MIN
            }
        );
    }

    #[test]
    fn retention_is_asked_for_only_where_it_matters() {
        assert!(!is_suspicious(&after(), Some(now() - HOUR), now()));
        assert!(is_suspicious(&after(), Some(now() - HOUR * 24), now()));
        assert!(is_suspicious(&after(), None, now()));
        assert!(!is_suspicious(&Position::TrimHorizon, None, now()));
        assert!(!is_suspicious(&Position::AtTimestamp(now() - HOUR * 999), None, now()));
        assert!(is_suspicious(
            &Position::AtTimestamp(now() - HOUR * 25),
            Some(now() - HOUR * 25),
            now()
        ));
    }

    #[test]
    fn reading_begins_before_what_is_not_known() {
        assert_eq!(begin(now()), Position::AtTimestamp(now() - SKEW));
    }
}

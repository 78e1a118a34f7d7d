//! Up to which time a shard is complete: all records that arrived before it are committed. Pure.
//!
//! A page says up to when it is complete with all before it; that holds for the checkpoint once what was read is committed.

use std::{collections::VecDeque, time::Duration};

use jiff::Timestamp;
use millrace_common::{ids::SequenceNumber, position::Position};

/// Marks are at least this far apart: what they are for is measured in hours.
const APART: Duration = Duration::from_secs(15);

/// Marks that are kept: with as many, nothing was committed for half a day of steady reading. Then the newest are left out,
/// which only makes the answer older.
const MAX_MARKS: usize = 4_096;

/// What was read up to a place is complete up to a time.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    /// The last record read; `None` before the first.
    read: Option<SequenceNumber>,
    time: Timestamp,
}

/// Up to which time one shard is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Progress {
    complete_until: Option<Timestamp>,
    /// Not committed yet, as far as is known; oldest first.
    marks: VecDeque<Mark>,
}

impl Progress {
    pub(super) fn new(complete_until: Option<Timestamp>) -> Self {
        Self {
            complete_until,
            marks: VecDeque::new(),
        }
    }

    /// All records that arrived before this are committed.
    pub(super) fn complete_until(&self) -> Option<Timestamp> {
        self.complete_until
    }

    /// All records that arrived before `time` are read, and none behind `read` was.
    pub(super) fn read(&mut self, read: Option<SequenceNumber>, time: Timestamp) {
        let last = self.marks.back().map(|mark| mark.time).or(self.complete_until);
        let near = last
            .and_then(|last| last.checked_add(APART).ok())
            .is_some_and(|next| time < next);
        if !near && self.marks.len() < MAX_MARKS {
            self.marks.push_back(Mark { read, time });
        }
    }

    /// Everything up to this place is committed.
    pub(super) fn committed(&mut self, position: &Position) {
        let reached = |mark: &Mark| mark.read.is_none() || mark.read.as_ref() <= position.sequence_number();
        while let Some(mark) = self.marks.pop_front_if(|mark| reached(mark)) {
            self.complete_until = self.complete_until.max(Some(mark.time));
        }
    }

    /// What was read and not committed is to be read again.
    pub(super) fn rewind(&mut self) {
        self.marks.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn number(n: u64) -> Option<SequenceNumber> {
        Some(n.to_string().parse().unwrap())
    }

    fn after(n: u64) -> Position {
        Position::After(n.to_string().parse().unwrap())
    }

    #[test]
    fn what_is_read_is_complete_once_it_is_committed() {
        let mut progress = Progress::new(None);
        progress.read(number(9), time(0));
        progress.read(number(10), time(60));
        progress.committed(&Position::TrimHorizon);
        assert_eq!(progress.complete_until(), None);
        progress.committed(&after(9));
        assert_eq!(progress.complete_until(), Some(time(0)));
        // Numbers are compared as numbers.
        progress.committed(&after(10));
        assert_eq!(progress.complete_until(), Some(time(60)));
        // At the tip, and idle.
        progress.read(number(10), time(120));
        progress.committed(&after(10));
        assert_eq!(progress.complete_until(), Some(time(120)));
    }

    #[test]
    fn an_empty_shard_is_complete_at_once() {
        let mut progress = Progress::new(Some(time(0)));
        progress.read(None, time(100));
        progress.committed(&Position::AtTimestamp(time(0)));
        assert_eq!(progress.complete_until(), Some(time(100)));
    }

    #[test]
    fn what_is_read_again_counts_again() {
        let mut progress = Progress::new(Some(time(0)));
        progress.read(number(5), time(100));
        progress.rewind();
        progress.committed(&after(5));
        assert_eq!(progress.complete_until(), Some(time(0)));
    }

    #[test]
    fn marks_are_few() {
        let mut progress = Progress::new(None);
        for second in 0..1_000 {
            progress.read(number(1_000 + second), time(second.try_into().unwrap()));
        }
        assert_eq!(progress.marks.len(), 67);
        for minute in 0..10_000_i64 {
            progress.read(number(5_000), time(2_000 + minute * 60));
        }
        assert_eq!(progress.marks.len(), MAX_MARKS);
        progress.committed(&after(5_000));
        assert!(progress.marks.is_empty() && progress.complete_until() > Some(time(2_000)));
    }
}

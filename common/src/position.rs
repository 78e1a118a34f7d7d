//! Places and ranges in a shard.
//!
//! LATEST is not among them: it means another place each time it is asked for, so it is resolved once, to a time, when
//! a pipe is created.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{SequenceNumber, ShardId};

/// A place in a shard, between two records.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Position {
    /// Before the oldest record that Kinesis still holds.
    TrimHorizon,
    /// Before the first record that arrived at or after this time.
    AtTimestamp(Timestamp),
    /// Just after the record with this sequence number.
    After(SequenceNumber),
}

impl Position {
    /// The sequence number that this place is after, if it is after a known record.
    pub fn sequence_number(&self) -> Option<&SequenceNumber> {
        match self {
            Position::After(sequence_number) => Some(sequence_number),
            Position::TrimHorizon | Position::AtTimestamp(_) => None,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Position::TrimHorizon => f.write_str("TRIM_HORIZON"),
            Position::AtTimestamp(time) => write!(f, "at {time}"),
            Position::After(sequence_number) => write!(f, "after {sequence_number}"),
        }
    }
}

/// The records `(from, to]` of one shard.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Slice {
    /// The shard.
    pub shard: ShardId,
    /// The place before the first record.
    pub from_exclusive: Position,
    /// The last record.
    pub to_inclusive: SequenceNumber,
}

impl Slice {
    /// The place just after the slice: where the next one starts.
    pub fn end(&self) -> Position {
        Position::After(self.to_inclusive.clone())
    }

    /// Whether the slice can hold a record: its end is not before its start, as far as that can be told.
    pub fn is_forward(&self) -> bool {
        self.from_exclusive
            .sequence_number()
            .is_none_or(|from| *from < self.to_inclusive)
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {}]", self.shard, self.from_exclusive, self.to_inclusive)
    }
}

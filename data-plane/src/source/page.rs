//! What a reader hands on: the records of one response, in order, with the right to keep them in memory.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use millrace_common::ids::{SequenceNumber, ShardId};

use super::Permit;

/// What a record costs in memory beside its payload and key: its number, its struct, and what is kept of it while it is decoded.
pub(crate) const RECORD_OVERHEAD: usize = 256;

/// What an aggregate of the Kinesis Producer Library begins with.
pub(crate) const AGGREGATE_MAGIC: [u8; 4] = *b"\xF3\x89\x9A\xC2";

/// One Kinesis record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// When Kinesis took it, in milliseconds since the epoch; 0 where Kinesis did not say.
    pub arrival_millis: i64,
    /// Its payload, its key and the digits of its number, one after the other: a slice of what its page was read from.
    bytes: Bytes,
    /// Where the payload ends.
    payload: usize,
    /// Where the key ends.
    key: usize,
}

impl Record {
    /// A record of its own memory.
    pub fn new(sequence_number: &SequenceNumber, partition_key: &str, arrival_millis: i64, data: &[u8]) -> Self {
        let bytes = [data, partition_key.as_bytes(), sequence_number.as_bytes()].concat();
        Self::in_page(
            arrival_millis,
            bytes.into(),
            data.len(),
            data.len() + partition_key.len(),
        )
    }

    /// A record in these bytes: its payload, from `payload` on its key as UTF-8, from `key` on the digits of its number, which are
    /// [valid](SequenceNumber::is_valid).
    pub(super) fn in_page(arrival_millis: i64, bytes: Bytes, payload: usize, key: usize) -> Self {
        Self {
            arrival_millis,
            bytes,
            payload,
            key,
        }
    }

    /// Its number in the shard.
    pub fn sequence_number(&self) -> SequenceNumber {
        SequenceNumber::from_digits(self.digits()).expect("they were looked at before the record was made")
    }

    /// The digits of its number.
    pub fn digits(&self) -> &[u8] {
        &self.bytes[self.key..]
    }

    /// Its payload.
    pub fn data(&self) -> &[u8] {
        &self.bytes[..self.payload]
    }

    /// Whether it begins like an aggregate of the Kinesis Producer Library.
    pub(super) fn may_be_aggregate(&self) -> bool {
        self.data().starts_with(&AGGREGATE_MAGIC)
    }

    /// Its partition key, which is UTF-8.
    pub fn partition_key(&self) -> &[u8] {
        &self.bytes[self.payload..self.key]
    }

    /// What the record costs of a [`super::Budget`].
    pub fn cost(&self) -> usize {
        self.bytes.len() + RECORD_OVERHEAD
    }
}

/// The hash keys that belong to a shard, both ends included. Fixed for the life of the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashKeyRange {
    /// The first.
    pub first: u128,
    /// The last.
    pub last: u128,
}

impl HashKeyRange {
    /// Whether a hash key belongs to the shard.
    pub fn contains(self, key: u128) -> bool {
        (self.first..=self.last).contains(&key)
    }
}

/// The records of one response.
///
/// Invariant: `records` ascend strictly by number, all are after the last record of the page before, and `last` is the
/// number of the last of them.
#[derive(Debug)]
pub struct Page {
    /// The shard.
    pub shard: ShardId,
    /// The records, oldest first. Empty where the response held none: then the page only brings news of lag or end.
    pub records: Vec<Record>,
    /// Where the reader stands now, unless it has not seen any record yet.
    pub last: Option<SequenceNumber>,
    /// How far behind the tip of the shard the response was, where Kinesis said so.
    pub lag: Option<Duration>,
    /// Set on the last page of a shard that was split or merged, or that ends for a backfill.
    pub end: Option<ShardEnd>,
    /// All records that arrived before this are in this page or before it; `None` if that is not known.
    pub complete_until: Option<Timestamp>,
    /// The hash keys of the shard. Set if any of the records is an aggregate.
    pub hash_keys: Option<HashKeyRange>,
    /// The right to hold these bytes.
    pub permit: Permit,
}

/// The end of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardEnd {
    /// The shards that go on where it ended. Empty if it goes on itself, and only a backfill ended.
    pub children: Vec<ChildShard>,
}

/// A shard that goes on where others ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildShard {
    /// Its id.
    pub id: ShardId,
    /// What it came from: one shard after a split, two after a merge.
    pub parents: Vec<ShardId>,
}

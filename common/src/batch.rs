//! Batches as both planes speak of them: slices of one lane, inserted as one block under one token.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{BatchId, Revision, SequenceNumber, ShardId},
    position::Slice,
};

/// Digest of a batch: of the block that goes to the table and of the block that goes to the error table.
pub type Digest = [u8; 16];

/// A batch that was prepared and not yet committed. It stands for fixed slices of immutable records, so whoever
/// rebuilds it from Kinesis with the same revision gets the same block.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OpenBatch {
    /// Identity and deduplication token.
    pub id: BatchId,
    /// Revision of the pipe that it was decoded with.
    pub revision: Revision,
    /// What it covers: at most one slice of each shard.
    pub slices: Vec<Slice>,
    /// Counts.
    pub counts: Counts,
    /// What its blocks must hash to.
    pub digest: Digest,
    /// What else decides how it is built and what may be done with it.
    pub terms: Terms,
}

/// What else there is to know of a batch: recorded with it, so that every owner builds the same and judges the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Terms {
    /// Fingerprint of the table's definition, taken before the batch was recorded; empty if it could not be read.
    pub table: String,
    /// It is a part of a batch that ClickHouse had refused: its malformed records are in the error table already, under
    /// the token of that batch.
    pub part: bool,
    /// Its one record is refused by ClickHouse, with these words: it goes to the error table.
    pub condemned: Option<String>,
    /// The first record of each slice that does not begin behind a record. Such a slice begins at whatever is the oldest
    /// record when it is read, so that it is these that tell whether it is still whole.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub firsts: BTreeMap<ShardId, SequenceNumber>,
}

/// What a batch covers, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Rows of the block.
    pub rows: u64,
    /// Records that go to the error table.
    pub rejected_records: u64,
    /// Kinesis records.
    pub records: u64,
    /// Payload bytes of those records.
    pub bytes: u64,
}

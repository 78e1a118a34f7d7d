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
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Terms {
    /// How records became its bytes. A worker of another release may do that otherwise; then it cannot build the batch again.
    #[serde(skip_serializing_if = "is_first_format")]
    pub format: u32,
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

/// The format of batches that do not say which.
const FIRST_FORMAT: u32 = 1;

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_first_format(format: &u32) -> bool {
    *format == FIRST_FORMAT
}

impl Terms {
    /// Of a batch of this format that nothing else is known of.
    #[must_use]
    pub fn of_format(format: u32) -> Self {
        Self {
            format,
            table: String::new(),
            part: false,
            condemned: None,
            firsts: BTreeMap::new(),
        }
    }
}

impl Default for Terms {
    fn default() -> Self {
        Self::of_format(FIRST_FORMAT)
    }
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

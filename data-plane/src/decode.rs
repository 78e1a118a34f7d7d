//! From a record's bytes to rows of typed columns, in one pass and without anything in between.
//!
//! ```text
//!   mapping -- compile --> Plan (immutable, shared)
//!                            |
//!   record + RecordMeta --> unpack --> envelope --> documents --> Block    one more row for each document
//!                                                             `--> Refused  and the block as it was
//! ```
//!
//! The record's bytes are read where they lie and are not changed. There is no tree and no token list of the record:
//! the columns' types drive the reading, keys are predicted from the record before, and numbers keep every digit until
//! a column takes them.
//!
//! What a JSON value means for a type is what ClickHouse's `FORMAT JSONEachRow` makes of it with default settings;
//! `docs/json-semantics.md` lists where we differ.
//!
//! Invariants:
//! - No bytes make the decoder panic, recurse with the depth of the record, or take more than linear time.
//! - A document that is refused leaves the block exactly as it was.
//! - The same records give the same block, on any worker, at any time: nothing depends on the clock, on the machine's
//!   time zone or on records that were rejected.
//! - In steady state a record allocates nothing.

mod address;
mod best_effort;
mod cursor;
mod documents;
mod envelope;
mod infer;
mod json_text;
pub(crate) mod keys;
mod lanes;
mod number;
mod object;
mod plain;
mod plan;
mod reject;
mod scalar;
mod schema;
mod temporal;
mod unpack;
mod value;
mod virtual_columns;

use std::sync::Arc;

pub use cursor::MAX_DEPTH;
pub use documents::Refused;
pub use plan::{FieldSource, MappedColumn, Options, Plan, PlanError, UnknownVirtualColumn, VirtualColumn};
pub use reject::{Rejection, RejectionKind};
pub use schema::{InferredColumn, Schema};

use crate::{batch::block::Block, source::HashKeyRange};
use cursor::Cursor;
use envelope::Opener;
use keys::Pattern;
use reject::Attempt;
use unpack::Unpacker;

/// What is known of a record besides its bytes.
#[derive(Debug, Clone, Copy)]
pub struct RecordMeta<'a> {
    /// Partition key of the record, or of the message within an aggregate, as UTF-8.
    pub partition_key: &'a [u8],
    /// When Kinesis took the record, in milliseconds since 1970.
    pub arrival_millis: i64,
    /// Name of the stream.
    pub stream: &'a str,
    /// The shard.
    pub shard_id: &'a str,
    /// Sequence number of the Kinesis record, in digits.
    pub sequence_number: &'a [u8],
    /// Place within its Kinesis record, from 0, of the record's first document.
    pub sub_sequence_number: u64,
    /// Hash keys of the record's shard. Known of each record that is an aggregate.
    pub hash_keys: Option<HashKeyRange>,
}

/// What a record held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    /// Documents, of which each is a row or was refused.
    pub documents: u64,
    /// Bytes of its messages after they were unpacked.
    pub bytes: usize,
    /// Messages of an aggregate whose hash key is outside the range of the record's shard, whatever became of them.
    pub out_of_range: u64,
}

/// Decodes records one after the other into blocks of one plan.
#[derive(Debug)]
pub struct Decoder {
    plan: Arc<Plan>,
    /// The keys of the last record, in its order, and what each is for.
    predicted: Vec<(Pattern, Found)>,
    /// Records whose keys are not predicted, because those of the last ones had no order.
    unordered: u32,
    /// What each key of the plan is for.
    found: Vec<Found>,
    /// Number of the record that is being decoded; what was seen bears it.
    record: u64,
    /// The record in which each key was last seen.
    seen_keys: Vec<u64>,
    /// The record in which each column last got a value.
    seen_columns: Vec<u64>,
    /// Where the values lie that paths lead through: path and position.
    branches: Vec<(usize, usize)>,
    /// The keys that lead to where we are in a record whose objects are part of its row.
    name: Vec<u8>,
    /// The object of what no column is for.
    kept: Vec<u8>,
    unpacker: Unpacker,
    opener: Opener,
}

/// What a key is for: numbers of the plan, or [`NONE`].
#[derive(Debug, Clone, Copy)]
struct Found {
    /// The column that it is for, if it is for nothing else.
    column: u32,
    /// The key, if it is mapped.
    key: u32,
}

/// No column, or no key.
const NONE: u32 = u32::MAX;

impl Found {
    const NOTHING: Found = Found {
        column: NONE,
        key: NONE,
    };
}

impl Decoder {
    /// A decoder for this plan; its blocks must be [`Block::new`] of the same plan.
    pub fn new(plan: Arc<Plan>) -> Decoder {
        Decoder {
            predicted: Vec::new(),
            unordered: 0,
            found: (0..)
                .zip(&plan.uses)
                .map(|(key, key_use)| Found {
                    column: plan.only_column(key_use).unwrap_or(NONE),
                    key,
                })
                .collect(),
            record: 0,
            seen_keys: vec![0; plan.uses.len()],
            seen_columns: vec![0; plan.insert_columns().len()],
            branches: Vec::new(),
            name: Vec::new(),
            kept: Vec::new(),
            unpacker: Unpacker::default(),
            opener: Opener::default(),
            plan,
        }
    }

    /// Reads the documents of a record, each into one more row of the block; what is no row is reported, with the place among
    /// the record's documents that its virtual column would have had, and leaves the block as it was. A record that is packed
    /// is unpacked before. If nothing is read as JSON, each message is one row.
    #[inline(never)]
    pub fn decode(
        &mut self,
        record: &[u8],
        meta: &RecordMeta<'_>,
        block: &mut Block,
        report: &mut dyn FnMut(Refused<'_>),
    ) -> Decoded {
        if (unpack::may_be_packed(record) && !self.plan.keep_packed) || self.plan.envelope.is_some() {
            return self.packed(record, meta, block, report);
        }
        let bytes = record.len();
        if self.plan.parses_json() {
            let documents = self.documents(record, meta, block, report);
            return Decoded {
                documents,
                bytes,
                out_of_range: 0,
            };
        }
        match self.append_about(record, meta.sub_sequence_number, meta, block) {
            Ok(()) => block.finish_row(),
            Err(fail) => {
                block.truncate(block.rows());
                report(Refused {
                    rejection: fail.into_rejection(record),
                    text: record,
                    partition_key: None,
                    sub_sequence_number: meta.sub_sequence_number,
                });
            }
        }
        Decoded {
            documents: 1,
            bytes,
            out_of_range: 0,
        }
    }

    /// The same for who takes a record whole or not at all: the first refusal, and then the block as it was.
    pub fn decode_whole(&mut self, record: &[u8], meta: &RecordMeta<'_>, block: &mut Block) -> Result<(), Rejection> {
        let rows = block.rows();
        let mut first = None;
        self.decode(record, meta, block, &mut |refused| {
            first.get_or_insert(refused.rejection);
        });
        let Some(first) = first else {
            return Ok(());
        };
        block.truncate(rows);
        Err(first)
    }

    /// Appends what is not in the document's JSON.
    #[inline(always)]
    fn append_about(&self, text: &[u8], number: u64, meta: &RecordMeta<'_>, block: &mut Block) -> Attempt<()> {
        for (column, source) in &self.plan.virtuals {
            let column = &mut block.columns[*column];
            virtual_columns::append(*source, meta, number, text, &mut column.column)
                .map_err(|fail| fail.about(source.as_str()).under_key(column.name.as_bytes()))?;
        }
        for (column, json) in &self.plan.constants {
            let column = &mut block.columns[*column];
            value::append(&mut Cursor::new(json), &mut column.column)
                .map_err(|fail| fail.about("the constant").under_key(column.name.as_bytes()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

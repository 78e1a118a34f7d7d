//! From a record's bytes to a row of typed columns, in one pass and without anything in between.
//!
//! ```text
//!   mapping -- compile --> Plan (immutable, shared)
//!                            |
//!   record + RecordMeta --> Decoder ----> Block      one more row
//!                            |       `--> Rejection  and the block as it was
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
//! - A rejected record leaves the block exactly as it was.
//! - The same records give the same block, on any worker, at any time: nothing depends on the clock, on the machine's
//!   time zone or on records that were rejected.
//! - In steady state a record allocates nothing.

mod address;
mod best_effort;
mod cursor;
mod infer;
mod json_text;
pub(crate) mod keys;
mod lanes;
mod number;
mod plain;
mod plan;
mod reject;
mod scalar;
mod temporal;
mod value;
mod virtual_columns;

use std::sync::Arc;

pub use cursor::MAX_DEPTH;
pub use plan::{FieldSource, MappedColumn, Plan, PlanError, UnknownVirtualColumn, VirtualColumn};
pub use reject::{Rejection, RejectionKind};

use crate::batch::block::Block;
use crate::batch::block::column::Column;
use cursor::Cursor;
use keys::Pattern;
use reject::{Attempt, Fail};

/// Most keys of a record that are predicted; a record with more is unusual, and its rest is looked up.
const PREDICTED_KEYS: usize = 1024;

/// After a record whose keys were mostly elsewhere, so many are read without predicting any: where keys have no order, trying and
/// noting costs more than looking each up.
const UNORDERED_RECORDS: u32 = 64;

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
    /// Place of the message within its Kinesis record, from 0.
    pub sub_sequence_number: u64,
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
    /// Where the values lie that dotted paths lead through: path and position.
    branches: Vec<(usize, usize)>,
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
                    column: key_use.only_column().unwrap_or(NONE),
                    key,
                })
                .collect(),
            record: 0,
            seen_keys: vec![0; plan.uses.len()],
            seen_columns: vec![0; plan.insert_columns().len()],
            branches: Vec::new(),
            plan,
        }
    }

    /// Appends the record to the block as one row. On `Err` the block is exactly as before and the decoder can go on.
    #[inline(never)]
    pub fn decode(&mut self, payload: &[u8], meta: &RecordMeta<'_>, block: &mut Block) -> Result<(), Rejection> {
        match self.append(payload, meta, block) {
            Ok(()) => {
                block.finish_row();
                Ok(())
            }
            Err(fail) => {
                block.truncate(block.rows());
                Err(explain(fail, payload))
            }
        }
    }

    fn append(&mut self, payload: &[u8], meta: &RecordMeta<'_>, block: &mut Block) -> Attempt<()> {
        if self.plan.parses_json() {
            self.record += 1;
            let mut cursor = open(payload)?;
            self.append_object(&mut cursor, block)?;
            cursor.skip_space();
            if cursor.peek().is_some() {
                return Err(cursor.expected("expected the end of the record after its JSON object"));
            }
            self.append_branches(&mut cursor, block)?;
            self.complete(block)?;
        }
        for (column, source) in &self.plan.virtuals {
            let column = &mut block.columns[*column];
            virtual_columns::append(*source, meta, payload, &mut column.column)
                .map_err(|fail| fail.about(source.as_str()).under_key(column.name.as_bytes()))?;
        }
        Ok(())
    }

    fn append_object(&mut self, cursor: &mut Cursor<'_>, block: &mut Block) -> Attempt<()> {
        self.branches.clear();
        cursor.enter()?;
        if cursor.peek() == Some(b'}') {
            cursor.leave();
            return Ok(());
        }
        let mut surprises = 0;
        for place in 0.. {
            let start = cursor.position();
            let Found { column, key } = self.next_key(cursor, place, &mut surprises)?;
            if column != NONE {
                self.append_only(column as usize, key, start, cursor, block)?;
            } else if key != NONE {
                self.append_several(key as usize, start, cursor, block)?;
            } else {
                cursor.skip_value()?;
            }
            if !cursor.next_key_follows() && !cursor.next_item(b'}')? {
                let mostly_surprises = 2 * surprises > place;
                self.unordered = if mostly_surprises {
                    UNORDERED_RECORDS
                } else {
                    self.unordered.saturating_sub(1)
                };
                break;
            }
        }
        Ok(())
    }

    /// Reads the next key, up to its value, and finds what it is for.
    #[inline(always)]
    fn next_key(&mut self, cursor: &mut Cursor<'_>, place: usize, surprises: &mut usize) -> Attempt<Found> {
        if self.unordered > 0 {
            if let Some(key) = cursor.short_key(&self.plan.short_keys) {
                return Ok(self.found[key as usize]);
            }
            return self.look_up_key(cursor, place);
        }
        let Some((pattern, expected)) = self.predicted.get(place) else {
            return self.look_up_key(cursor, place);
        };
        if cursor.eat_key(pattern) {
            return Ok(*expected);
        }
        let expected = expected.key;
        let found = self.look_up_key(cursor, place)?;
        // It may only be written otherwise, with a space before its colon.
        *surprises += usize::from(found.key != expected);
        Ok(found)
    }

    /// The same for a key that was not expected.
    #[inline(never)]
    fn look_up_key(&mut self, cursor: &mut Cursor<'_>, place: usize) -> Attempt<Found> {
        let name = cursor.key()?;
        let key = if name.has_escapes() {
            self.plan.keys.find(&name.resolve())
        } else {
            self.plan.keys.find(name.raw())
        };
        let found = key.map_or(Found::NOTHING, |key| self.found[key as usize]);
        if self.unordered == 0 && place < PREDICTED_KEYS {
            let known = key.and_then(|key| self.plan.keys.pattern(key as usize));
            let pattern = known.copied().unwrap_or_else(|| Pattern::of(name.raw()));
            if let Some(before) = self.predicted.get_mut(place) {
                *before = (pattern, found);
            } else if place == self.predicted.len() {
                self.predicted.push((pattern, found));
            }
        }
        Ok(found)
    }

    /// Reads the value of a key that is for one column.
    #[inline(always)]
    fn append_only(
        &mut self,
        column: usize,
        key: u32,
        start: usize,
        cursor: &mut Cursor<'_>,
        block: &mut Block,
    ) -> Attempt<()> {
        let target = &mut block.columns[column].column;
        if std::mem::replace(&mut self.seen_columns[column], self.record) == self.record {
            return Err(self.duplicate(key as usize, start));
        }
        value::append_here(cursor, target).map_err(|fail| fail.under_key(self.plan.keys.name(key as usize)))
    }

    #[cold]
    fn duplicate(&self, key: usize, start: usize) -> Fail {
        let name = self.plan.keys.name(key);
        let message = format!("the key `{}` stands twice in the record", String::from_utf8_lossy(name));
        Fail::other(RejectionKind::DuplicateKey, start, message).under_key(name)
    }

    #[inline(never)]
    fn append_several(&mut self, key: usize, start: usize, cursor: &mut Cursor<'_>, block: &mut Block) -> Attempt<()> {
        let record = self.record;
        let key_use = &self.plan.uses[key];
        if std::mem::replace(&mut self.seen_keys[key], record) == record {
            return Err(self.duplicate(key, start));
        }
        let value = cursor.position();
        for path in &key_use.paths {
            self.branches.push((*path, value));
        }
        let Some((first, others)) = key_use.columns.split_first() else {
            return cursor
                .skip_value()
                .map(|_| ())
                .map_err(|fail| fail.under_key(self.plan.keys.name(key)));
        };
        self.seen_columns[*first] = record;
        value::append(cursor, &mut block.columns[*first].column)
            .map_err(|fail| fail.under_key(self.plan.keys.name(key)))?;
        for other in others {
            cursor.seek(value);
            self.seen_columns[*other] = record;
            value::append(cursor, &mut block.columns[*other].column)
                .map_err(|fail| fail.under_key(self.plan.keys.name(key)))?;
        }
        Ok(())
    }

    /// Follows the dotted paths into the values they lead through, for columns whose whole name was no key.
    fn append_branches(&mut self, cursor: &mut Cursor<'_>, block: &mut Block) -> Attempt<()> {
        for (path, position) in &self.branches {
            let path = &self.plan.paths[*path];
            if self.seen_columns[path.column] == self.record {
                continue;
            }
            cursor.seek(*position);
            cursor.set_depth(1);
            if find(cursor, &path.rest)? {
                let column = &mut block.columns[path.column];
                value::append(cursor, &mut column.column).map_err(|fail| fail.under_key(column.name.as_bytes()))?;
                self.seen_columns[path.column] = self.record;
            }
        }
        Ok(())
    }

    /// Gives the columns that have no value theirs.
    fn complete(&mut self, block: &mut Block) -> Attempt<()> {
        for index in &self.plan.json_columns {
            if self.seen_columns[*index] != self.record {
                block.columns[*index].column.push_default();
            }
        }
        for group in &self.plan.nested {
            let mut length = None;
            for index in &group.columns {
                let Column::Array(array) = &block.columns[*index].column else {
                    continue;
                };
                if *length.get_or_insert(array.last_length()) != array.last_length() {
                    let message = format!("the arrays of `{}` have different lengths in one record", group.name);
                    let fail = Fail::other(RejectionKind::NestedSizeMismatch, 0, message);
                    return Err(fail.under_key(block.columns[*index].name.as_bytes()));
                }
            }
        }
        Ok(())
    }
}

/// A cursor on the record's object, after everything was checked that needs no parsing.
fn open(payload: &[u8]) -> Attempt<Cursor<'_>> {
    if simdutf8::basic::from_utf8(payload).is_err() {
        let at = simdutf8::compat::from_utf8(payload)
            .err()
            .map_or(0, |error| error.valid_up_to());
        let message = format!("the record is not UTF-8: invalid byte at {at} of {}", payload.len());
        return Err(Fail::other(RejectionKind::InvalidUtf8, at, message));
    }
    let mut cursor = Cursor::new(payload);
    cursor.skip_space();
    match cursor.peek() {
        Some(b'{') => Ok(cursor),
        None if payload.is_empty() => Err(Fail::other(RejectionKind::EmptyRecord, 0, "the record is empty")),
        None => Err(Fail::other(
            RejectionKind::EmptyRecord,
            0,
            "the record holds only white space",
        )),
        Some(b'[') => Err(Fail::malformed(
            cursor.position(),
            "the record is a JSON array; expected one JSON object",
        )),
        Some(0xEF) if payload.starts_with("\u{feff}".as_bytes()) => Err(Fail::malformed(
            0,
            "the record starts with a byte order mark; expected one JSON object",
        )),
        Some(_) => Err(cursor.expected("expected one JSON object")),
    }
}

/// Goes to the value that these keys lead to from the object at the cursor; false if there is none.
fn find(cursor: &mut Cursor<'_>, keys: &[Box<[u8]>]) -> Attempt<bool> {
    'keys: for wanted in keys {
        if cursor.peek() != Some(b'{') {
            return Ok(false);
        }
        cursor.enter()?;
        if cursor.peek() == Some(b'}') {
            return Ok(false);
        }
        loop {
            let key = cursor.key()?;
            if *key.resolve() == **wanted {
                continue 'keys;
            }
            cursor.skip_value()?;
            if !cursor.next_item(b'}')? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// The verdict. A record that is no JSON at all is called that, wherever else it was at fault first.
#[cold]
fn explain(fail: Fail, payload: &[u8]) -> Rejection {
    let whole_record = matches!(
        fail.kind(),
        RejectionKind::EmptyRecord | RejectionKind::InvalidUtf8 | RejectionKind::MalformedJson | RejectionKind::TooDeep
    );
    if !whole_record && let Ok(mut cursor) = open(payload) {
        let checked = cursor.skip_value().map(|_| cursor.skip_space());
        if let Err(broken) = checked {
            return broken.into_rejection(payload);
        }
        if cursor.peek().is_some() {
            return cursor
                .expected("expected the end of the record after its JSON object")
                .into_rejection(payload);
        }
    }
    fail.into_rejection(payload)
}

#[cfg(test)]
mod tests;

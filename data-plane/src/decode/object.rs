//! The object that a document is, into the columns of its row: keys, the paths that lead through them, and what is missing.
//!
//! Keys are predicted from the document before; one that is not where it was expected is looked up. What no column is for is
//! skipped, kept or refused, as the plan says.

use super::{
    Decoder, Found, NONE,
    cursor::Cursor,
    envelope, json_text,
    keys::Pattern,
    plan::{Plan, Step, Unmapped},
    reject::{Attempt, Fail, RejectionKind, shortened},
    value, virtual_columns,
};
use crate::batch::block::{Block, column::Column};

/// Most keys of a record that are predicted; a record with more is unusual, and its rest is looked up.
const PREDICTED_KEYS: usize = 1024;

/// After a record whose keys were mostly elsewhere, so many are read without predicting any: where keys have no order, trying and
/// noting costs more than looking each up.
const UNORDERED_RECORDS: u32 = 64;

impl Decoder {
    /// Reads the object at the cursor into one more row, but for what is not in it: virtual columns and constants.
    pub(super) fn append_json(&mut self, cursor: &mut Cursor<'_>, block: &mut Block) -> Attempt<()> {
        self.record += 1;
        self.branches.clear();
        self.kept.clear();
        let start = cursor.position();
        if self.plan.flat.is_some() {
            self.name.clear();
            self.append_flat(cursor, block, false)?;
        } else {
            self.append_object(cursor, block)?;
        }
        let end = cursor.position();
        self.append_branches(cursor, block)?;
        cursor.seek(end);
        cursor.set_depth(0);
        self.append_kept(start, block)?;
        self.complete(block)
    }

    fn append_object(&mut self, cursor: &mut Cursor<'_>, block: &mut Block) -> Attempt<()> {
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
                self.pass(start, cursor)?;
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
        append_column(&self.plan, *first, cursor, block).map_err(|fail| fail.under_key(self.plan.keys.name(key)))?;
        for other in others {
            cursor.seek(value);
            self.seen_columns[*other] = record;
            append_column(&self.plan, *other, cursor, block)
                .map_err(|fail| fail.under_key(self.plan.keys.name(key)))?;
        }
        Ok(())
    }

    /// The same where objects inside the record are part of its row: a key's name has the keys before it. `is_around`: what is read is
    /// around the document, and no key of it.
    fn append_flat(&mut self, cursor: &mut Cursor<'_>, block: &mut Block, is_around: bool) -> Attempt<()> {
        cursor.enter()?;
        if cursor.peek() == Some(b'}') {
            cursor.leave();
            return Ok(());
        }
        let outer = self.name.len();
        // What an envelope says comes first, and a document that says such a key itself says it after that.
        let mut may_be_around = outer == 0 && self.plan.wants_about && self.plan.envelope.is_some();
        loop {
            let start = cursor.position();
            cursor.key()?.append_to(&mut self.name);
            let is_around = is_around || (std::mem::take(&mut may_be_around) && self.name == envelope::ABOUT);
            let leads_on = || self.plan.flat.as_ref().is_some_and(|flat| flat.leads_on(&self.name));
            if let Some(key) = self.plan.keys.find(&self.name) {
                self.append_several(key as usize, start, cursor, block)?;
            } else if cursor.peek() == Some(b'{') && leads_on() {
                let separator = self.plan.flat.as_ref().map(|flat| flat.separator.as_bytes());
                self.name.extend_from_slice(separator.unwrap_or_default());
                // As deep as the columns' names go, which the plan bounds.
                self.append_flat(cursor, block, is_around)?;
            } else {
                cursor.skip_value()?;
                // What no column is for and is no key of the document is neither refused nor kept.
                if !is_around {
                    self.pass(start, cursor)?;
                }
            }
            self.name.truncate(outer);
            if !cursor.next_item(b'}')? {
                return Ok(());
            }
        }
    }

    /// Notes the key that starts at `start`, which no column is for, and its value, which ends at the cursor.
    #[inline(always)]
    fn pass(&mut self, start: usize, cursor: &Cursor<'_>) -> Attempt<()> {
        match self.plan.unmapped {
            Unmapped::Skip => Ok(()),
            Unmapped::Keep => {
                self.keep(start, cursor);
                Ok(())
            }
            Unmapped::Refuse => Err(self.unknown(start, cursor)),
        }
    }

    #[inline(never)]
    fn keep(&mut self, start: usize, cursor: &Cursor<'_>) {
        self.kept.push(if self.kept.is_empty() { b'{' } else { b',' });
        let field = cursor.since(start);
        if self.name.is_empty() {
            self.kept.extend_from_slice(field);
            return;
        }
        let mut inner = Cursor::new(field);
        if inner.key().is_ok() {
            append_quoted(&self.name, &mut self.kept);
            self.kept.push(b':');
            self.kept.extend_from_slice(&field[inner.position()..]);
        }
    }

    #[cold]
    fn unknown(&self, start: usize, cursor: &Cursor<'_>) -> Fail {
        let own = Cursor::new(cursor.since(start))
            .key()
            .map(|key| key.resolve().into_owned());
        let name = if self.name.is_empty() {
            own.unwrap_or_default()
        } else {
            self.name.clone()
        };
        let message = format!(
            "the pipe has no column for the key `{}`, and refuses records with such keys",
            shortened(&name)
        );
        Fail::other(RejectionKind::UnknownField, start, message).under_key(&name)
    }

    /// Follows paths into the values they lead through, for columns whose whole name was no key.
    fn append_branches(&mut self, cursor: &mut Cursor<'_>, block: &mut Block) -> Attempt<()> {
        for (path, position) in &self.branches {
            let path = &self.plan.paths[*path];
            if self.seen_columns[path.column] == self.record {
                continue;
            }
            cursor.seek(*position);
            cursor.set_depth(1);
            if find(cursor, &path.rest)? {
                append_column(&self.plan, path.column, cursor, block)
                    .map_err(|fail| fail.under_key(block.columns[path.column].name.as_bytes()))?;
                self.seen_columns[path.column] = self.record;
            }
        }
        Ok(())
    }

    /// Gives what no column is for to the columns that take just that.
    fn append_kept(&mut self, start: usize, block: &mut Block) -> Attempt<()> {
        if self.plan.captures.is_empty() {
            return Ok(());
        }
        if self.kept.is_empty() {
            self.kept.push(b'{');
        }
        self.kept.push(b'}');
        for column in &self.plan.captures {
            let column = &mut block.columns[*column];
            append_object_text(&self.kept, &mut column.column)
                .map_err(|fail| fail.elsewhere(start).under_key(column.name.as_bytes()))?;
        }
        Ok(())
    }

    /// Gives the columns that have no value theirs.
    fn complete(&mut self, block: &mut Block) -> Attempt<()> {
        for index in &self.plan.json_columns {
            if self.seen_columns[*index] != self.record {
                if let Some(source) = &self.plan.required[*index] {
                    return Err(missing(source, 0, "is not in the record"));
                }
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

fn append_column(plan: &Plan, column: usize, cursor: &mut Cursor<'_>, block: &mut Block) -> Attempt<()> {
    if let Some(source) = &plan.required[column]
        && cursor.peek() == Some(b'n')
    {
        return Err(missing(source, cursor.position(), "is null"));
    }
    value::append(cursor, &mut block.columns[column].column)
}

#[cold]
fn missing(source: &str, position: usize, what: &str) -> Fail {
    let message = format!("`{source}` {what}, and the pipe's mapping requires it");
    Fail::other(RejectionKind::MissingRequired, position, message)
}

/// The text of an object into a column of texts, or of JSON.
fn append_object_text(text: &[u8], column: &mut Column) -> Attempt<()> {
    match column {
        Column::Json(json) => json_text::append(&mut Cursor::new(text), json),
        Column::Nullable(nullable) => {
            append_object_text(text, &mut nullable.inner)?;
            nullable.nulls.push(0);
            Ok(())
        }
        column => virtual_columns::text(text, column),
    }
}

/// Goes to the value that these steps lead to from the value at the cursor; false if there is none.
fn find(cursor: &mut Cursor<'_>, steps: &[Step]) -> Attempt<bool> {
    for step in steps {
        let found = match (cursor.peek(), step.index) {
            (Some(b'{'), _) => find_key(cursor, &step.key)?,
            (Some(b'['), Some(index)) => find_element(cursor, index)?,
            _ => false,
        };
        if !found {
            return Ok(false);
        }
    }
    Ok(true)
}

fn find_key(cursor: &mut Cursor<'_>, wanted: &[u8]) -> Attempt<bool> {
    cursor.enter()?;
    if cursor.peek() == Some(b'}') {
        return Ok(false);
    }
    loop {
        if *cursor.key()?.resolve() == *wanted {
            return Ok(true);
        }
        cursor.skip_value()?;
        if !cursor.next_item(b'}')? {
            return Ok(false);
        }
    }
}

fn find_element(cursor: &mut Cursor<'_>, index: usize) -> Attempt<bool> {
    cursor.enter()?;
    if cursor.peek() == Some(b']') {
        return Ok(false);
    }
    for _ in 0..index {
        cursor.skip_value()?;
        if !cursor.next_item(b']')? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A text as a JSON string.
fn append_quoted(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(*byte),
        }
    }
    out.push(b'"');
}

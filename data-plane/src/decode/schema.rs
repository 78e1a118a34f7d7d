//! The columns that fit documents: a type for each of their keys, how often it has no value, and what a table of them may be
//! sorted by. Pure.
//!
//! A type is what ClickHouse's schema inference finds for the same documents; `docs/discovery.md` lists where it is another one, on
//! purpose. The types are a lattice: what two documents say of a key is joined, and `String`, which the decoder fills with the text of
//! any value, is above everything.
//!
//! Invariants:
//! - The type of a column does not depend on the order of the documents.
//! - What was inferred from documents takes each of them.
//! - Memory is bounded, whatever documents hold.

use std::collections::HashSet;

use hashbrown::HashMap;
use millrace_common::{clickhouse::DataType, json_pointer::JsonPointer};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    cursor::Cursor,
    infer::{self, Shape},
    plan::VirtualColumn,
    reject::{Attempt, Rejection, RejectionKind},
};

/// Most keys that become columns: more are no schema, but data.
const MAX_COLUMNS: usize = 1_000;
/// An object with more keys than that, over all documents, is `JSON` and no `Tuple`.
const MAX_TUPLE_FIELDS: usize = 100;
/// Different values of a key that are told apart.
const MAX_DISTINCT: usize = 1_024;
/// Different values that are shown.
const MAX_EXAMPLES: usize = 3;
/// Bytes of a value that are shown.
const EXAMPLE_BYTES: usize = 100;
/// Columns that a sorting key takes which tell groups of rows apart.
const MAX_GROUPING: usize = 2;
/// A column that tells groups apart has at most one value for so many documents.
const DOCUMENTS_PER_GROUP: usize = 4;

/// What is known of documents so far.
#[derive(Debug, Default)]
pub struct Schema {
    documents: u64,
    keys: Vec<Key>,
    by_name: HashMap<Box<[u8]>, usize>,
    /// Values of keys for which there was no room.
    omitted: u64,
}

#[derive(Debug)]
struct Key {
    name: String,
    shape: Shape,
    /// Shapes came that have nothing in common.
    conflict: bool,
    /// A number came that no type of inference holds.
    too_large: bool,
    /// Documents in which it has a value.
    values: u64,
    /// Documents in which it is null.
    nulls: u64,
    /// The document in which it was seen last, from 1.
    seen: u64,
    distinct: HashSet<u64>,
    examples: Vec<String>,
}

/// A column that fits a key.
#[derive(Debug, Clone, PartialEq)]
pub struct InferredColumn {
    /// Name.
    pub name: String,
    /// Type.
    pub data_type: DataType,
    /// The key as a mapping names it.
    pub source_field: String,
    /// Share of documents in which it is null or missing.
    pub null_ratio: f64,
    /// Share of documents that do not have it.
    pub missing_ratio: f64,
    /// Values, cut.
    pub examples: Vec<String>,
    /// What to know of the type; may be empty.
    pub note: &'static str,
}

impl Schema {
    /// Looks at a document, which is one JSON object.
    ///
    /// # Errors
    /// Why it is none; then nothing is taken of it.
    pub fn add(&mut self, document: &[u8]) -> Result<(), Rejection> {
        self.read(document).map_err(|fail| fail.into_rejection(document))
    }

    fn read(&mut self, document: &[u8]) -> Attempt<()> {
        if simdutf8::basic::from_utf8(document).is_err() {
            let what = "the document is not UTF-8";
            return Err(super::reject::Fail::other(RejectionKind::InvalidUtf8, 0, what));
        }
        let mut cursor = Cursor::new(document);
        cursor.skip_space();
        if cursor.peek() != Some(b'{') {
            return Err(cursor.expected("an object"));
        }
        let start = cursor.position();
        // Well-formed as a whole, and not too deep, before anything of it counts.
        cursor.skip_value()?;
        cursor.skip_space();
        if cursor.peek().is_some() {
            return Err(cursor.expected("the end of the document"));
        }
        let mut cursor = Cursor::new(document);
        cursor.seek(start);
        self.documents += 1;
        cursor.enter()?;
        if cursor.peek() == Some(b'}') {
            return Ok(());
        }
        loop {
            let name = cursor.key()?.resolve();
            let (start, depth) = (cursor.position(), cursor.depth());
            let shape = infer::shape(&mut cursor, join_elements)?;
            // A number that is too large ends the look at its value early.
            cursor.seek(start);
            cursor.set_depth(depth);
            let text = cursor.skip_value()?;
            self.note(&name, shape.ok(), text);
            if !cursor.next_item(b'}')? {
                return Ok(());
            }
        }
    }

    /// Notes the value of a key; `None` if it holds a number that is too large.
    fn note(&mut self, name: &[u8], shape: Option<Shape>, text: &[u8]) {
        let index = match self.by_name.get(name) {
            Some(index) => *index,
            None if self.keys.len() >= MAX_COLUMNS => {
                self.omitted += 1;
                return;
            }
            None => {
                self.by_name.insert(name.into(), self.keys.len());
                self.keys.push(Key::new(String::from_utf8_lossy(name).into_owned()));
                self.keys.len() - 1
            }
        };
        self.keys[index].take(shape, text, self.documents);
    }

    /// Documents that were looked at.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// Values that were left out, because documents have more keys than a table should have columns.
    pub fn omitted(&self) -> u64 {
        self.omitted
    }

    /// A column for each key, in the order in which they first appeared.
    pub fn columns(&self) -> Vec<InferredColumn> {
        self.keys.iter().map(|key| key.column(self.documents)).collect()
    }

    /// What to sort a table of such rows by: columns that tell groups of rows apart, those with the fewest values first; then one
    /// that identifies what a row is about; then when it happened. Only columns that always have a value.
    pub fn sorting_key(&self) -> Vec<String> {
        let always = |key: &&Key| key.values == self.documents && !key.conflict && !key.too_large;
        let mut grouping: Vec<&Key> = self
            .keys
            .iter()
            .filter(always)
            .filter(|key| matches!(key.shape, Shape::String | Shape::Bool))
            .filter(|key| (2..=self.most_groups()).contains(&key.distinct.len()))
            .collect();
        grouping.sort_by_key(|key| key.distinct.len());
        grouping.truncate(MAX_GROUPING);
        let subject = self.keys.iter().filter(always).find(|key| {
            matches!(key.shape, Shape::String | Shape::Int { .. } | Shape::UInt)
                && is_identity(&key.name)
                && !grouping.iter().any(|grouping| grouping.name == key.name)
        });
        let time = self
            .keys
            .iter()
            .filter(always)
            .find(|key| matches!(key.shape, Shape::Date | Shape::DateTime | Shape::DateTime64));
        let chosen = grouping.into_iter().chain(subject).chain(time);
        chosen.map(Key::column_name).collect()
    }

    fn most_groups(&self) -> usize {
        let documents = usize::try_from(self.documents).unwrap_or(usize::MAX);
        (documents / DOCUMENTS_PER_GROUP).min(MAX_DISTINCT - 1)
    }
}

/// `id`, `user_id`, `userId`, `user-id`, `uuid`.
fn is_identity(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    ["id", "uuid", "guid"].contains(&lower.as_str())
        || lower.ends_with("_id")
        || lower.ends_with("-id")
        || name.ends_with("Id")
        || name.ends_with("ID")
}

impl Key {
    fn new(name: String) -> Key {
        Key {
            name,
            shape: Shape::Unknown,
            conflict: false,
            too_large: false,
            values: 0,
            nulls: 0,
            seen: 0,
            distinct: HashSet::new(),
            examples: Vec::new(),
        }
    }

    fn take(&mut self, shape: Option<Shape>, text: &[u8], document: u64) {
        let is_first = self.seen != document;
        self.seen = document;
        match shape {
            Some(Shape::Null) => {
                self.nulls += u64::from(is_first);
                return;
            }
            Some(shape) => {
                let known = std::mem::replace(&mut self.shape, Shape::Unknown);
                self.shape = join(known, shape, &mut self.conflict);
            }
            None => self.too_large = true,
        }
        self.values += u64::from(is_first);
        if self.distinct.len() < MAX_DISTINCT
            && self.distinct.insert(xxh3_64(text))
            && self.examples.len() < MAX_EXAMPLES
        {
            self.examples.push(cut(text));
        }
    }

    fn column(&self, documents: u64) -> InferredColumn {
        let (data_type, note) = self.data_type();
        let absent = documents.saturating_sub(self.values);
        let data_type = match data_type {
            plain if absent > 0 && plain.can_be_nullable() => DataType::nullable(plain),
            other => other,
        };
        #[allow(clippy::cast_precision_loss, reason = "a share, for people")]
        let share = |part: u64| {
            if documents == 0 {
                0.0
            } else {
                part as f64 / documents as f64
            }
        };
        InferredColumn {
            name: self.column_name(),
            data_type,
            source_field: self.source_field(),
            null_ratio: share(absent),
            missing_ratio: share(absent.saturating_sub(self.nulls)),
            examples: self.examples.clone(),
            note,
        }
    }

    /// A column must have a name.
    fn column_name(&self) -> String {
        if self.name.is_empty() {
            "empty_key".to_owned()
        } else {
            self.name.clone()
        }
    }

    /// The key as a mapping names it: what reads like a pointer or a virtual column is named by a pointer.
    fn source_field(&self) -> String {
        let is_plain =
            !self.name.is_empty() && !self.name.starts_with('/') && self.name.parse::<VirtualColumn>().is_err();
        if is_plain {
            self.name.clone()
        } else {
            JsonPointer::to_key(&self.name).to_string()
        }
    }

    fn data_type(&self) -> (DataType, &'static str) {
        const CONFLICT: &str = "values of types that have nothing in common came: a String takes the text of each";
        if self.too_large {
            return (
                DataType::String,
                "a number is too large for 64 bits: a String keeps its digits, and Int128, Int256 or Float64 are other ways",
            );
        }
        // That of a column's own is counted.
        let shape = match &self.shape {
            Shape::Nullable(inner) => inner,
            shape => shape,
        };
        match shape {
            Shape::Unknown => (DataType::String, "only null came"),
            Shape::Object(fields) if fields.len() > MAX_TUPLE_FIELDS => (
                json(),
                "an object of so many different keys is JSON: a Tuple would have an element for each",
            ),
            shape => match infer::data_type(shape) {
                Some(data_type) => (data_type, if self.conflict { CONFLICT } else { "" }),
                None => (
                    DataType::String,
                    "an object in it has an empty key, which no Tuple can have: a String keeps its text",
                ),
            },
        }
    }
}

fn json() -> DataType {
    // The plain type has no parameters, so it always parses.
    "JSON".parse().unwrap_or(DataType::String)
}

fn cut(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    if text.len() <= EXAMPLE_BYTES {
        return text.into_owned();
    }
    let end = (0..=EXAMPLE_BYTES).rev().find(|end| text.is_char_boundary(*end));
    format!("{}…", &text[..end.unwrap_or(0)])
}

/// The shape of two elements of one array: what ClickHouse finds, but an object's values are joined as a document's are.
fn join_elements(left: Shape, right: Shape) -> Shape {
    match (left, right) {
        (Shape::Object(left), Shape::Object(right)) => {
            let mut conflict = false;
            Shape::Object(join_fields(left, right, &mut conflict))
        }
        (left, right) => infer::unify(left, right).unwrap_or(Shape::Mixed),
    }
}

/// The shape of a key in two documents.
fn join(left: Shape, right: Shape, conflict: &mut bool) -> Shape {
    use Shape::{Array, Mixed, Null, Nullable, Object, String, Unknown};
    match (left, right) {
        (Unknown, other) | (other, Unknown) => other,
        (Mixed, _) | (_, Mixed) => Mixed,
        (Array(left), Array(right)) => Array(Box::new(join(*left, *right, conflict))),
        (Object(left), Object(right)) => Object(join_fields(left, right, conflict)),
        (Null, other) | (other, Null) => nullable(other),
        (Nullable(left), right) => nullable(join(*left, strip(right), conflict)),
        (left, Nullable(right)) => nullable(join(left, *right, conflict)),
        (left, right) => infer::unify(left.clone(), right.clone()).unwrap_or_else(|| {
            let holds_more = |shape: &Shape| matches!(shape, Array(_) | Object(_));
            *conflict = true;
            if holds_more(&left) || holds_more(&right) {
                // A null beside an array leaves no trace in the array's shape.
                nullable(String)
            } else {
                String
            }
        }),
    }
}

fn strip(shape: Shape) -> Shape {
    match shape {
        Shape::Nullable(inner) => *inner,
        other => other,
    }
}

fn nullable(shape: Shape) -> Shape {
    match shape {
        Shape::Null | Shape::Unknown => Shape::Null,
        container @ (Shape::Nullable(_) | Shape::Array(_) | Shape::Object(_) | Shape::Mixed) => container,
        scalar => Shape::Nullable(Box::new(scalar)),
    }
}

fn join_fields(
    mut left: Vec<(String, Shape)>,
    right: Vec<(String, Shape)>,
    conflict: &mut bool,
) -> Vec<(String, Shape)> {
    for (name, shape) in right {
        match left.binary_search_by(|(known, _)| known.cmp(&name)) {
            Ok(place) => {
                let known = std::mem::replace(&mut left[place].1, Shape::Unknown);
                left[place].1 = join(known, shape, conflict);
            }
            Err(place) => left.insert(place, (name, shape)),
        }
    }
    left
}

#[cfg(test)]
mod tests;

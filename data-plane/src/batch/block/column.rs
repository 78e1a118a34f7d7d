//! Typed columns under construction. Each holds its values in the layout of ClickHouse's Native format, so that writing
//! a block is copying.
//!
//! Columns know their layout, and do not parse: they are given values, or the text that the server will parse. Every column can be cut back to fewer rows exactly, as if the rows
//! had never been there: that is how a rejected record leaves no trace.
//!
//! Invariant: between rows all columns of a tuple, a map or a block have the same number of rows.

use std::sync::Arc;

use millrace_common::clickhouse::DataType;

use super::dictionary::Dictionary;
use super::output::{Output, put_numbers};
use super::scalar::Scalar;
use super::strings::Strings;
use super::variant::{Dynamic, Variant};
use super::zone::Zone;
use crate::decode::keys::KeyTable;

/// A `JSON` column sent as text, which the server parses.
const JSON_AS_STRING: u64 = 1;
/// Why a type cannot be a column here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ColumnError {
    UnknownZone(String),
    Unsupported { data_type: String, reason: &'static str },
}

/// A column under construction.
#[derive(Debug, Clone)]
#[repr(u8)] // Told apart by one byte, which is looked at for every value.
pub(crate) enum Column {
    Fixed(Fixed),
    String(Strings),
    Json(Json),
    Nullable(Box<Nullable>),
    LowCardinality(Box<Dictionary>),
    Array(Box<Array>),
    Map(Box<Map>),
    Tuple(Box<Tuple>),
    Variant(Box<Variant>),
    Dynamic(Box<Dynamic>),
}

/// Values of one width.
#[derive(Debug, Clone)]
pub(crate) struct Fixed {
    pub(crate) scalar: Scalar,
    width: usize,
    pub(crate) bytes: Vec<u8>,
}

/// JSON objects as text.
#[derive(Debug, Clone)]
pub(crate) struct Json {
    pub(crate) texts: Strings,
    /// Where the paths of one object are collected, to find those that stand twice.
    pub(crate) paths: PathSet,
}

/// Reusable memory for the paths of one JSON object.
#[derive(Debug, Clone, Default)]
pub(crate) struct PathSet {
    pub(crate) hashes: Vec<u64>,
    pub(crate) path: Vec<u8>,
    pub(crate) objects: u64,
}

/// Values and which of them are NULL; a NULL has a default value in its place.
#[derive(Debug, Clone)]
pub(crate) struct Nullable {
    pub(crate) nulls: Vec<u8>,
    pub(crate) inner: Column,
}

/// Elements of all rows, and where each row ends.
#[derive(Debug, Clone)]
pub(crate) struct Array {
    pub(crate) ends: Vec<u64>,
    pub(crate) elements: Column,
}

/// An array of pairs.
#[derive(Debug, Clone)]
pub(crate) struct Map {
    pub(crate) ends: Vec<u64>,
    pub(crate) keys: Column,
    pub(crate) values: Column,
}

/// Columns side by side.
#[derive(Debug, Clone)]
pub(crate) struct Tuple {
    pub(crate) elements: Vec<Column>,
    /// What the elements are called.
    pub(crate) names: Option<Arc<KeyTable>>,
    /// The object in which each element was last seen, by number; to notice what is missing or doubled.
    pub(crate) seen: Vec<u64>,
    pub(crate) objects: u64,
}

impl Column {
    /// An empty column of this type. `zone` is the one of date-times that name none.
    pub(crate) fn new(data_type: &DataType, zone: &Zone) -> Result<Column, ColumnError> {
        if let Some(scalar) = Scalar::of(data_type, zone).map_err(ColumnError::UnknownZone)? {
            return Ok(Column::Fixed(Fixed {
                width: scalar.width(),
                scalar,
                bytes: Vec::new(),
            }));
        }
        let unsupported = |reason| ColumnError::Unsupported {
            data_type: data_type.to_string(),
            reason,
        };
        Ok(match data_type.storage().as_ref() {
            DataType::String => Column::String(Strings::default()),
            DataType::Json(_) => Column::Json(Json {
                texts: Strings::default(),
                paths: PathSet::default(),
            }),
            DataType::Nullable(inner) if inner.can_be_nullable() => Column::Nullable(Box::new(Nullable {
                nulls: Vec::new(),
                inner: Column::new(inner, zone)?,
            })),
            DataType::Nullable(_) => return Err(unsupported("ClickHouse has no such Nullable type")),
            DataType::LowCardinality(inner) => {
                let (inner, nullable) = match inner.as_ref() {
                    DataType::Nullable(inner) => (inner, true),
                    _ => (inner, false),
                };
                let values = Column::new(inner, zone)?;
                if !matches!(values, Column::Fixed(_) | Column::String(_)) {
                    return Err(unsupported("ClickHouse has no such LowCardinality type"));
                }
                Column::LowCardinality(Box::new(Dictionary::new(values, nullable)))
            }
            DataType::Array(element) => Column::Array(Box::new(Array {
                ends: Vec::new(),
                elements: Column::new(element, zone)?,
            })),
            DataType::Map(key, value) => Column::Map(Box::new(Map {
                ends: Vec::new(),
                keys: Column::new(key, zone)?,
                values: Column::new(value, zone)?,
            })),
            DataType::Tuple(elements) => {
                if elements.is_empty() {
                    return Err(unsupported("a Tuple without elements holds no data"));
                }
                let columns = elements.iter().map(|element| Column::new(&element.data_type, zone));
                let named = elements.iter().map(|element| element.name.as_deref());
                let names: Option<Vec<&str>> = named.collect();
                let names = names.map(|names| {
                    let mut table = KeyTable::default();
                    names.iter().for_each(|name| {
                        table.enter(name.as_bytes());
                    });
                    Arc::new(table)
                });
                Column::Tuple(Box::new(Tuple {
                    elements: columns.collect::<Result<_, _>>()?,
                    names,
                    seen: vec![0; elements.len()],
                    objects: 0,
                }))
            }
            DataType::Variant(alternatives) => {
                let columns = alternatives.iter().map(|alternative| Column::new(alternative, zone));
                let order = super::variant_order::try_order(alternatives);
                let columns = columns.collect::<Result<_, _>>()?;
                Column::Variant(Box::new(Variant::new(columns, order.into())))
            }
            DataType::Dynamic { .. } => Column::Dynamic(Box::new(Dynamic::new(zone.clone()))),
            _ => Column::new(data_type.storage().as_ref(), zone)?,
        })
    }

    pub(crate) fn rows(&self) -> usize {
        match self {
            Column::Fixed(fixed) => fixed.bytes.len() / fixed.width,
            Column::String(strings) => strings.rows(),
            Column::Json(json) => json.texts.rows(),
            Column::Nullable(nullable) => nullable.nulls.len(),
            Column::LowCardinality(dictionary) => dictionary.rows(),
            Column::Array(array) => array.ends.len(),
            Column::Map(map) => map.ends.len(),
            Column::Tuple(tuple) => tuple.elements.first().map_or(0, Column::rows),
            Column::Variant(variant) => variant.rows(),
            Column::Dynamic(dynamic) => dynamic.rows(),
        }
    }

    /// Appends what stands for "no value": NULL where the type has one, else the type's default.
    pub(crate) fn push_default(&mut self) {
        match self {
            Column::Fixed(fixed) => fixed.scalar.append_default(&mut fixed.bytes),
            Column::String(strings) => strings.push(b""),
            Column::Json(json) => json.texts.push(b"{}"),
            Column::Nullable(nullable) => {
                nullable.nulls.push(1);
                nullable.inner.push_default();
            }
            Column::LowCardinality(dictionary) => dictionary.push_default(),
            Column::Array(array) => array.ends.push(array.elements.rows() as u64),
            Column::Map(map) => map.ends.push(map.keys.rows() as u64),
            Column::Tuple(tuple) => tuple.elements.iter_mut().for_each(Column::push_default),
            Column::Variant(variant) => variant.push_null(),
            Column::Dynamic(dynamic) => dynamic.push_null(),
        }
    }

    /// Appends what a `null` that was sent stands for. ClickHouse makes it of the column and not of its type, so that an
    /// enum takes its value 0 if it has one.
    pub(crate) fn push_null(&mut self) {
        match self {
            Column::Fixed(fixed) => fixed.scalar.append_null(&mut fixed.bytes),
            Column::Tuple(tuple) => tuple.elements.iter_mut().for_each(Column::push_null),
            other => other.push_default(),
        }
    }

    /// Cuts back to the first `rows` rows, as if the others had never been; also takes back what a failed decoding of
    /// one more row left behind.
    pub(crate) fn truncate(&mut self, rows: usize) {
        match self {
            Column::Fixed(fixed) => fixed.bytes.truncate(rows * fixed.width),
            Column::String(strings) => strings.truncate(rows),
            Column::Json(json) => json.texts.truncate(rows),
            Column::Nullable(nullable) => {
                nullable.nulls.truncate(rows);
                nullable.inner.truncate(rows);
            }
            Column::LowCardinality(dictionary) => dictionary.truncate(rows),
            Column::Array(array) => {
                array.ends.truncate(rows);
                array.elements.truncate(last(&array.ends));
            }
            Column::Map(map) => {
                map.ends.truncate(rows);
                map.keys.truncate(last(&map.ends));
                map.values.truncate(last(&map.ends));
            }
            Column::Tuple(tuple) => tuple.elements.iter_mut().for_each(|element| element.truncate(rows)),
            Column::Variant(variant) => variant.truncate(rows),
            Column::Dynamic(dynamic) => dynamic.truncate(rows),
        }
    }

    /// Empties the column and keeps its memory.
    pub(crate) fn clear(&mut self) {
        match self {
            Column::LowCardinality(dictionary) => dictionary.clear(),
            Column::Nullable(nullable) => {
                nullable.nulls.clear();
                nullable.inner.clear();
            }
            Column::Array(array) => {
                array.ends.clear();
                array.elements.clear();
            }
            Column::Map(map) => {
                map.ends.clear();
                map.keys.clear();
                map.values.clear();
            }
            Column::Tuple(tuple) => tuple.elements.iter_mut().for_each(Column::clear),
            Column::Variant(variant) => variant.clear(),
            other => other.truncate(0),
        }
    }

    /// Bytes that the column takes in a block now.
    pub(crate) fn encoded_bytes(&self) -> usize {
        match self {
            Column::Fixed(fixed) => fixed.bytes.len(),
            Column::String(strings) => strings.bytes().len(),
            Column::Json(json) => 8 + json.texts.bytes().len(),
            Column::Nullable(nullable) => nullable.nulls.len() + nullable.inner.encoded_bytes(),
            Column::LowCardinality(dictionary) => dictionary.encoded_bytes(),
            Column::Array(array) => 8 * array.ends.len() + array.elements.encoded_bytes(),
            Column::Map(map) => 8 * map.ends.len() + map.keys.encoded_bytes() + map.values.encoded_bytes(),
            Column::Tuple(tuple) => tuple.elements.iter().map(Column::encoded_bytes).sum(),
            Column::Variant(variant) => variant.encoded_bytes(),
            Column::Dynamic(dynamic) => dynamic.encoded_bytes(),
        }
    }

    /// What Native writes before the data: the versions and structures of columns that have any.
    pub(crate) fn write_prefix(&self, out: &mut dyn Output) {
        match self {
            Column::Fixed(_) | Column::String(_) => {}
            Column::Json(_) => out.put(&JSON_AS_STRING.to_le_bytes()),
            Column::Nullable(nullable) => nullable.inner.write_prefix(out),
            Column::LowCardinality(_) => Dictionary::write_prefix(out),
            Column::Array(array) => array.elements.write_prefix(out),
            Column::Map(map) => {
                map.keys.write_prefix(out);
                map.values.write_prefix(out);
            }
            Column::Tuple(tuple) => tuple.elements.iter().for_each(|element| element.write_prefix(out)),
            Column::Variant(variant) => variant.write_prefix(out),
            Column::Dynamic(dynamic) => dynamic.write_prefix(out),
        }
    }

    pub(crate) fn write_data(&self, out: &mut dyn Output) {
        match self {
            Column::Fixed(fixed) => out.put(&fixed.bytes),
            Column::String(strings) => out.put(strings.bytes()),
            Column::Json(json) => out.put(json.texts.bytes()),
            Column::Nullable(nullable) => {
                out.put(&nullable.nulls);
                nullable.inner.write_data(out);
            }
            Column::LowCardinality(dictionary) => dictionary.write_data(out),
            Column::Array(array) => {
                write_ends(&array.ends, out);
                array.elements.write_data(out);
            }
            Column::Map(map) => {
                write_ends(&map.ends, out);
                map.keys.write_data(out);
                map.values.write_data(out);
            }
            Column::Tuple(tuple) => tuple.elements.iter().for_each(|element| element.write_data(out)),
            Column::Variant(variant) => variant.write_data(out),
            Column::Dynamic(dynamic) => dynamic.write_data(out),
        }
    }

    /// The values' bytes of a column that can be a dictionary.
    #[inline]
    pub(crate) fn flat_bytes(&self) -> &[u8] {
        match self {
            Column::Fixed(fixed) => &fixed.bytes,
            Column::String(strings) => strings.bytes(),
            _ => &[],
        }
    }

    /// Takes back the last value, which was just appended, of a column that can be a dictionary.
    #[inline]
    pub(crate) fn pop_flat(&mut self) {
        match self {
            Column::Fixed(fixed) => fixed.bytes.truncate(fixed.bytes.len() - fixed.width),
            Column::String(strings) => strings.pop(),
            _ => {}
        }
    }

    /// Where value number `rows`, the last one, starts in [`flat_bytes`](Self::flat_bytes).
    #[inline]
    pub(crate) fn flat_bytes_before_last(&self, rows: usize) -> usize {
        match self {
            Column::Fixed(fixed) => rows * fixed.width,
            Column::String(strings) => strings.start_of_last(),
            _ => 0,
        }
    }
}

impl Fixed {
    /// Bytes of one value.
    pub(super) fn width(&self) -> usize {
        self.width
    }
}

impl Array {
    /// Number of elements of the last row.
    pub(crate) fn last_length(&self) -> u64 {
        let before = self.ends.len().checked_sub(2).map_or(0, |index| self.ends[index]);
        self.ends.last().map_or(0, |end| end - before)
    }
}

fn last(ends: &[u64]) -> usize {
    ends.last().map_or(0, |end| *end as usize)
}

fn write_ends(ends: &[u64], out: &mut dyn Output) {
    put_numbers(out, ends.iter().map(|end| end.to_le_bytes()));
}

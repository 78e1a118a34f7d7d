//! What to decode: from the mapping of a pipe to something that a decoder can follow without looking anything up twice.

use std::fmt;
use std::str::FromStr;

use millrace_common::clickhouse::DataType;

use crate::batch::block::zone::Zone;
use crate::batch::block::{BlockColumn, BlockError};

use super::{
    keys::{KeyTable, ShortKeys},
    virtual_columns,
};

/// A value that does not come from the record's JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VirtualColumn {
    /// `_key`: the partition key.
    Key,
    /// `_timestamp`: when the record arrived in Kinesis, milliseconds.
    Timestamp,
    /// `_stream`: the stream's name.
    Stream,
    /// `_sequence_number`: of the Kinesis record, as text.
    SequenceNumber,
    /// `_raw_message`: the record's bytes.
    RawMessage,
    /// `_shard_id`.
    ShardId,
    /// `_sub_sequence_number`: place of the message within its Kinesis record, from 0.
    SubSequenceNumber,
}

impl VirtualColumn {
    /// All of them.
    pub const ALL: [VirtualColumn; 7] = [
        VirtualColumn::Key,
        VirtualColumn::Timestamp,
        VirtualColumn::Stream,
        VirtualColumn::SequenceNumber,
        VirtualColumn::RawMessage,
        VirtualColumn::ShardId,
        VirtualColumn::SubSequenceNumber,
    ];

    /// The name that a mapping uses.
    pub fn as_str(self) -> &'static str {
        match self {
            VirtualColumn::Key => "_key",
            VirtualColumn::Timestamp => "_timestamp",
            VirtualColumn::Stream => "_stream",
            VirtualColumn::SequenceNumber => "_sequence_number",
            VirtualColumn::RawMessage => "_raw_message",
            VirtualColumn::ShardId => "_shard_id",
            VirtualColumn::SubSequenceNumber => "_sub_sequence_number",
        }
    }
}

impl fmt::Display for VirtualColumn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name is none of a virtual column.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a virtual column; there are {list}", list = VirtualColumn::ALL.map(VirtualColumn::as_str).join(", "))]
pub struct UnknownVirtualColumn(pub String);

impl FromStr for VirtualColumn {
    type Err = UnknownVirtualColumn;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let mut all = VirtualColumn::ALL.into_iter();
        all.find(|column| column.as_str() == name)
            .ok_or_else(|| UnknownVirtualColumn(name.to_owned()))
    }
}

/// Where a column's value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FieldSource {
    /// A key of the record's JSON object; where the object has no such key, the keys between its dots, one inside the
    /// other.
    Key(String),
    /// Something about the record.
    Virtual(VirtualColumn),
}

/// One column of the destination and its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedColumn {
    /// Name of the destination's column.
    pub name: String,
    /// Its type.
    pub data_type: DataType,
    /// True if the table has a DEFAULT expression for it, to be used where the record has no value.
    pub has_default: bool,
    /// Where the value comes from.
    pub source: FieldSource,
}

/// Why a mapping cannot be followed. Each is for the user to repair.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// There is nothing to insert.
    #[error("no column is mapped; map at least one column of the table")]
    NoColumns,
    /// A column has two sources.
    #[error("column `{column}` is mapped twice; keep one of the two")]
    DuplicateColumn {
        /// The column.
        column: String,
    },
    /// The zone for texts without an offset does not exist.
    #[error("there is no time zone `{zone}`")]
    UnknownZone {
        /// The zone as given.
        zone: String,
    },
    /// The type cannot be decoded into.
    #[error(transparent)]
    Type(#[from] BlockError),
    /// A virtual column cannot be converted to its destination's type.
    #[error("column `{column}` of type {data_type} cannot take {source_column}; {remedy}")]
    VirtualType {
        /// The column.
        column: String,
        /// Its type.
        data_type: String,
        /// What is mapped to it.
        source_column: VirtualColumn,
        /// What to do.
        remedy: &'static str,
    },
}

/// A compiled mapping: immutable, shared by all decoders of a lane.
#[derive(Debug)]
pub struct Plan {
    prototype: Vec<BlockColumn>,
    names: Vec<String>,
    without_row_default: Vec<String>,
    /// The keys that are looked for at the top of a record, and what each is for.
    pub(super) keys: KeyTable,
    pub(super) short_keys: ShortKeys,
    pub(super) uses: Vec<KeyUse>,
    /// The columns that come from the record's JSON.
    pub(super) json_columns: Vec<usize>,
    /// Columns by where in an object their value is, for those whose key is not at the top.
    pub(super) paths: Vec<DottedPath>,
    pub(super) virtuals: Vec<(usize, VirtualColumn)>,
    pub(super) nested: Vec<NestedGroup>,
}

/// What a key of a record's object is for.
#[derive(Debug, Default)]
pub(super) struct KeyUse {
    /// The columns that take its value as it is.
    pub(super) columns: Vec<usize>,
    /// The paths that go through it.
    pub(super) paths: Vec<usize>,
}

impl KeyUse {
    /// The one column that the key is for, if it is for nothing else.
    pub(super) fn only_column(&self) -> Option<u32> {
        match (&*self.columns, &*self.paths) {
            ([column], []) => Some(*column as u32),
            _ => None,
        }
    }
}

/// A column that is found by keys inside each other.
#[derive(Debug)]
pub(super) struct DottedPath {
    pub(super) column: usize,
    /// The keys after the first.
    pub(super) rest: Vec<Box<[u8]>>,
}

/// The columns of one flattened `Nested` structure: in one row their arrays have one length.
#[derive(Debug)]
pub(super) struct NestedGroup {
    pub(super) name: String,
    pub(super) columns: Vec<usize>,
}

impl Plan {
    /// Compiles a mapping. Texts without an offset, in columns without a time zone, are read as UTC.
    pub fn compile(columns: Vec<MappedColumn>) -> Result<Plan, PlanError> {
        Plan::compile_in_zone(columns, "UTC")
    }

    /// As [`compile`](Self::compile), with the zone of the destination server for columns that name none.
    pub fn compile_in_zone(columns: Vec<MappedColumn>, zone: &str) -> Result<Plan, PlanError> {
        if columns.is_empty() {
            return Err(PlanError::NoColumns);
        }
        let zone = Zone::named(zone).ok_or_else(|| PlanError::UnknownZone { zone: zone.to_owned() })?;
        let mut plan = Plan {
            prototype: Vec::with_capacity(columns.len()),
            names: Vec::with_capacity(columns.len()),
            without_row_default: Vec::new(),
            keys: KeyTable::default(),
            short_keys: ShortKeys::of(&KeyTable::default()),
            uses: Vec::new(),
            json_columns: Vec::new(),
            paths: Vec::new(),
            virtuals: Vec::new(),
            nested: nested_groups(&columns),
        };
        for column in columns {
            plan.add(column, &zone)?;
        }
        plan.short_keys = ShortKeys::of(&plan.keys);
        Ok(plan)
    }

    /// The columns in the order of the block, for the statement's column list.
    pub fn insert_columns(&self) -> &[String] {
        &self.names
    }

    /// Columns whose DEFAULT cannot be used for single rows, because their type has no NULL to ask for it (arrays, maps,
    /// tuples, variants) or a NULL of its own: a record without a value gets the type's default, or NULL.
    pub fn columns_without_row_default(&self) -> &[String] {
        &self.without_row_default
    }

    /// False if nothing of the record's JSON is mapped: then a record need not be JSON.
    pub fn parses_json(&self) -> bool {
        !self.json_columns.is_empty()
    }

    pub(crate) fn prototype(&self) -> &[BlockColumn] {
        &self.prototype
    }

    fn add(&mut self, column: MappedColumn, zone: &Zone) -> Result<(), PlanError> {
        if self.names.contains(&column.name) {
            return Err(PlanError::DuplicateColumn { column: column.name });
        }
        let index = self.names.len();
        let wire_type = match column.has_default.then(|| with_null(&column.data_type)) {
            Some(Some(nullable)) => nullable,
            Some(None) => {
                self.without_row_default.push(column.name.clone());
                column.data_type.clone()
            }
            None => column.data_type.clone(),
        };
        let block_column = BlockColumn::new(&column.name, &wire_type, zone)?;
        match column.source {
            FieldSource::Virtual(source) => {
                virtual_columns::check(source, &column.data_type).map_err(|remedy| PlanError::VirtualType {
                    column: column.name.clone(),
                    data_type: column.data_type.to_string(),
                    source_column: source,
                    remedy,
                })?;
                self.virtuals.push((index, source));
            }
            FieldSource::Key(key) => {
                self.json_columns.push(index);
                self.add_key(index, &key);
            }
        }
        self.prototype.push(block_column);
        self.names.push(column.name);
        Ok(())
    }

    fn add_key(&mut self, column: usize, key: &str) {
        let slot = self.slot(key);
        self.uses[slot].columns.push(column);
        let mut parts = key.split('.');
        let (Some(first), rest) = (parts.next(), parts) else {
            return;
        };
        let rest: Vec<Box<[u8]>> = rest.map(|part| part.as_bytes().into()).collect();
        if !rest.is_empty() {
            let slot = self.slot(first);
            self.uses[slot].paths.push(self.paths.len());
            self.paths.push(DottedPath { column, rest });
        }
    }

    fn slot(&mut self, key: &str) -> usize {
        let slot = self.keys.enter(key.as_bytes()) as usize;
        if slot == self.uses.len() {
            self.uses.push(KeyUse::default());
        }
        slot
    }
}

/// The type with a NULL that asks the server for the column's DEFAULT, if there is one.
fn with_null(data_type: &DataType) -> Option<DataType> {
    let storage = data_type.storage();
    match storage.as_ref() {
        DataType::LowCardinality(inner) if inner.can_be_nullable() => {
            Some(DataType::low_cardinality(DataType::nullable(inner.as_ref().clone())))
        }
        plain if plain.can_be_nullable() => Some(DataType::nullable(plain.clone())),
        _ => None,
    }
}

/// Array columns `n.a`, `n.b`, … that ClickHouse takes for one `Nested` structure.
fn nested_groups(columns: &[MappedColumn]) -> Vec<NestedGroup> {
    let mut groups: Vec<NestedGroup> = Vec::new();
    for (index, column) in columns.iter().enumerate() {
        let is_array = matches!(column.data_type.storage().as_ref(), DataType::Array(_));
        let from_json = matches!(column.source, FieldSource::Key(_));
        let Some((name, _)) = column.name.split_once('.').filter(|_| is_array && from_json) else {
            continue;
        };
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.columns.push(index),
            None => groups.push(NestedGroup {
                name: name.to_owned(),
                columns: vec![index],
            }),
        }
    }
    groups.retain(|group| group.columns.len() > 1);
    groups
}

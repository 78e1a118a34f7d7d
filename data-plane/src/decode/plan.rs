//! What to decode: from the mapping of a pipe to something that a decoder can follow without looking anything up twice.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use millrace_common::clickhouse::DataType;
use millrace_common::json_pointer::JsonPointer;
use millrace_common::pipe::{Envelope, OutOfRangePolicy, UnknownFieldPolicy};

use crate::batch::block::zone::Zone;
use crate::batch::block::{BlockColumn, BlockError};

use super::{
    cursor::Cursor,
    envelope,
    keys::{KeyTable, ShortKeys},
    value, virtual_columns,
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
    /// `_raw_message`: the record's bytes; of a record of several documents, the document's.
    RawMessage,
    /// `_shard_id`.
    ShardId,
    /// `_sub_sequence_number`: place of the document within its Kinesis record, from 0.
    SubSequenceNumber,
    /// `_unmapped`: an object of the keys that no column is for, with their values as they stand in the record.
    Unmapped,
}

impl VirtualColumn {
    /// All of them.
    pub const ALL: [VirtualColumn; 8] = [
        VirtualColumn::Key,
        VirtualColumn::Timestamp,
        VirtualColumn::Stream,
        VirtualColumn::SequenceNumber,
        VirtualColumn::RawMessage,
        VirtualColumn::ShardId,
        VirtualColumn::SubSequenceNumber,
        VirtualColumn::Unmapped,
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
            VirtualColumn::Unmapped => "_unmapped",
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
    /// The value that a JSON Pointer leads to.
    Pointer(JsonPointer),
    /// Something about the record.
    Virtual(VirtualColumn),
    /// A JSON value, the same in every row.
    Constant(String),
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
    /// Refuse documents in which the value is null or missing.
    pub required: bool,
}

/// What else decides how records become rows.
#[derive(Debug, Clone)]
pub struct Options {
    /// Time zone (IANA name) of texts without an offset, in columns that name none.
    pub time_zone: String,
    /// Keys that no column is for.
    pub on_unknown_field: UnknownFieldPolicy,
    /// Fill columns from objects inside the record, by the keys that lead to a value with this between them.
    pub flatten_separator: Option<String>,
    /// Take records as they are: neither split aggregates nor decompress.
    pub keep_packed: bool,
    /// Messages of aggregates whose hash key is outside the range of their shard.
    pub on_out_of_range: OutOfRangePolicy,
    /// What documents are wrapped in.
    pub envelope: Option<Envelope>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            time_zone: "UTC".to_owned(),
            on_unknown_field: UnknownFieldPolicy::Ignore,
            flatten_separator: None,
            keep_packed: false,
            on_out_of_range: OutOfRangePolicy::Keep,
            envelope: None,
        }
    }
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
    /// A constant does not fit its column.
    #[error("column `{column}` of type {data_type}: the constant {constant} cannot be its value: {why}")]
    Constant {
        /// The column.
        column: String,
        /// Its type.
        data_type: String,
        /// The constant.
        constant: String,
        /// What is wrong with it.
        why: String,
    },
    /// The source can have no null, or is always there.
    #[error("column `{column}`: what is always there cannot be required; leave `required` out")]
    AlwaysThere {
        /// The column.
        column: String,
    },
    /// A pointer into a record whose objects are flattened.
    #[error("column `{column}`: a JSON pointer does not go together with flattening; leave one of the two out")]
    FlatPointer {
        /// The column.
        column: String,
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
    pub(super) paths: Vec<Path>,
    pub(super) virtuals: Vec<(usize, VirtualColumn)>,
    /// Columns with one value for all rows, and its JSON.
    pub(super) constants: Vec<(usize, Box<[u8]>)>,
    /// Columns that take what no other column is for.
    pub(super) captures: Vec<usize>,
    /// What is done with that.
    pub(super) unmapped: Unmapped,
    pub(super) flat: Option<Flat>,
    pub(super) keep_packed: bool,
    pub(super) on_out_of_range: OutOfRangePolicy,
    pub(super) envelope: Option<Envelope>,
    /// Some mapping leads to what is around a document in its envelope.
    pub(super) wants_about: bool,
    /// By column: the name of its source, if it must have a value.
    pub(super) required: Vec<Option<Box<str>>>,
    pub(super) nested: Vec<NestedGroup>,
}

/// What is done with a key that no column is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unmapped {
    Skip,
    Keep,
    Refuse,
}

/// Objects in a record are part of its row.
#[derive(Debug)]
pub(super) struct Flat {
    pub(super) separator: String,
    /// The names, up to a separator, that columns' names begin with.
    prefixes: HashSet<Box<[u8]>>,
}

impl Flat {
    /// Whether a column's name goes on after this one.
    pub(super) fn leads_on(&self, name: &[u8]) -> bool {
        self.prefixes.contains(name)
    }

    fn enter(&mut self, name: &str) {
        for (end, _) in name.match_indices(&*self.separator) {
            self.prefixes.insert(name.as_bytes()[..end].into());
        }
    }
}

/// What a key of a record's object is for.
#[derive(Debug, Default)]
pub(super) struct KeyUse {
    /// The columns that take its value as it is.
    pub(super) columns: Vec<usize>,
    /// The paths that go through it.
    pub(super) paths: Vec<usize>,
}

/// A column that is found by keys inside each other.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) column: usize,
    /// The steps after the first.
    pub(super) rest: Vec<Step>,
}

/// A step into a value.
#[derive(Debug)]
pub(super) struct Step {
    /// Into an object.
    pub(super) key: Box<[u8]>,
    /// Into an array; `None`: it does not lead into one.
    pub(super) index: Option<usize>,
}

/// The columns of one flattened `Nested` structure: in one row their arrays have one length.
#[derive(Debug)]
pub(super) struct NestedGroup {
    pub(super) name: String,
    pub(super) columns: Vec<usize>,
}

impl Plan {
    /// Compiles a mapping with default [`Options`].
    pub fn compile(columns: Vec<MappedColumn>) -> Result<Plan, PlanError> {
        Plan::compile_with(columns, &Options::default())
    }

    /// Compiles a mapping.
    pub fn compile_with(columns: Vec<MappedColumn>, options: &Options) -> Result<Plan, PlanError> {
        if columns.is_empty() {
            return Err(PlanError::NoColumns);
        }
        let name = &options.time_zone;
        let zone = Zone::named(name).ok_or_else(|| PlanError::UnknownZone { zone: name.clone() })?;
        let flat = |separator: &String| Flat {
            separator: separator.clone(),
            prefixes: HashSet::new(),
        };
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
            constants: Vec::new(),
            captures: Vec::new(),
            unmapped: Unmapped::Skip,
            flat: options.flatten_separator.as_ref().map(flat),
            keep_packed: options.keep_packed,
            on_out_of_range: options.on_out_of_range,
            envelope: options.envelope,
            wants_about: false,
            required: Vec::with_capacity(columns.len()),
            nested: nested_groups(&columns),
        };
        for column in columns {
            plan.add(column, &zone)?;
        }
        plan.short_keys = ShortKeys::of(&plan.keys);
        plan.wants_about = plan.keys.find(envelope::ABOUT).is_some()
            || plan.flat.as_ref().is_some_and(|flat| flat.leads_on(envelope::ABOUT));
        plan.unmapped = match options.on_unknown_field {
            UnknownFieldPolicy::Reject => Unmapped::Refuse,
            UnknownFieldPolicy::Ignore if plan.captures.is_empty() => Unmapped::Skip,
            UnknownFieldPolicy::Ignore => Unmapped::Keep,
        };
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
        !self.json_columns.is_empty() || self.unmapped != Unmapped::Skip
    }

    /// The one column that a key is for, if it is for nothing else.
    pub(super) fn only_column(&self, key_use: &KeyUse) -> Option<u32> {
        match (&*key_use.columns, &*key_use.paths) {
            ([column], []) if self.required[*column].is_none() => Some(*column as u32),
            _ => None,
        }
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
        let is_from_json = matches!(column.source, FieldSource::Key(_) | FieldSource::Pointer(_));
        if column.required && !is_from_json {
            return Err(PlanError::AlwaysThere { column: column.name });
        }
        let name = match &column.source {
            FieldSource::Pointer(pointer) => pointer.to_string(),
            FieldSource::Key(name) => name.clone(),
            FieldSource::Virtual(_) | FieldSource::Constant(_) => String::new(),
        };
        self.required.push(column.required.then(|| name.into()));
        match &column.source {
            FieldSource::Virtual(source) => {
                virtual_columns::check(*source, &column.data_type).map_err(|remedy| PlanError::VirtualType {
                    column: column.name.clone(),
                    data_type: column.data_type.to_string(),
                    source_column: *source,
                    remedy,
                })?;
                match source {
                    VirtualColumn::Unmapped => self.captures.push(index),
                    source => self.virtuals.push((index, *source)),
                }
            }
            FieldSource::Constant(json) => {
                check_constant(&column, json, &block_column)?;
                self.constants.push((index, json.as_bytes().into()));
            }
            FieldSource::Key(key) => {
                self.json_columns.push(index);
                self.add_key(index, key);
            }
            FieldSource::Pointer(pointer) => {
                if self.flat.is_some() {
                    return Err(PlanError::FlatPointer { column: column.name });
                }
                self.json_columns.push(index);
                self.add_pointer(index, pointer);
            }
        }
        self.prototype.push(block_column);
        self.names.push(column.name);
        Ok(())
    }

    fn add_key(&mut self, column: usize, key: &str) {
        // What is around a document is no key of it: a document must not be able to say it in place of its envelope.
        let is_around = self.envelope.is_some()
            && self.flat.is_none()
            && key
                .as_bytes()
                .strip_prefix(envelope::ABOUT)
                .is_some_and(|rest| rest.starts_with(b"."));
        if !is_around {
            let slot = self.slot(key);
            self.uses[slot].columns.push(column);
        }
        if let Some(flat) = &mut self.flat {
            flat.enter(key);
            return;
        }
        let mut parts = key.split('.');
        let (Some(first), rest) = (parts.next(), parts) else {
            return;
        };
        let step = |part: &str| Step {
            key: part.as_bytes().into(),
            index: None,
        };
        self.add_path(column, first, rest.map(step).collect());
    }

    fn add_pointer(&mut self, column: usize, pointer: &JsonPointer) {
        let step = |token: &String| Step {
            key: token.as_bytes().into(),
            index: JsonPointer::index(token),
        };
        let (first, rest) = pointer.split_first();
        if rest.is_empty() {
            let slot = self.slot(first);
            self.uses[slot].columns.push(column);
        }
        self.add_path(column, first, rest.iter().map(step).collect());
    }

    fn add_path(&mut self, column: usize, first: &str, rest: Vec<Step>) {
        if !rest.is_empty() {
            let slot = self.slot(first);
            self.uses[slot].paths.push(self.paths.len());
            self.paths.push(Path { column, rest });
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

/// A constant is decoded like any other value, so it is tried once.
fn check_constant(column: &MappedColumn, json: &str, block_column: &BlockColumn) -> Result<(), PlanError> {
    let mut cursor = Cursor::new(json.as_bytes());
    let tried = value::append(&mut cursor, &mut block_column.column.clone());
    let why = match tried {
        Ok(()) if cursor.peek().is_none() => return Ok(()),
        Ok(()) => "it is more than one JSON value".to_owned(),
        Err(fail) => fail.into_rejection(json.as_bytes()).message,
    };
    Err(PlanError::Constant {
        column: column.name.clone(),
        data_type: column.data_type.to_string(),
        constant: json.to_owned(),
        why,
    })
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
        let from_json = matches!(column.source, FieldSource::Key(_) | FieldSource::Pointer(_));
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

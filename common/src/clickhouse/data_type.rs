//! The tree of a ClickHouse type. `Display` prints ClickHouse's own spelling.

use std::fmt;

use super::quote::{quote_identifier_if_needed, quote_string};

/// A ClickHouse data type, nested to any depth that [`MAX_TYPE_DEPTH`](super::MAX_TYPE_DEPTH) allows.
///
/// Only types that a column of a table can have and that a value can be inserted into are here; everything else
/// (`AggregateFunction`, `Interval…`, `Nothing`, …) does not parse, and the error names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(
    missing_docs,
    reason = "the variants are ClickHouse's own names; only what is not obvious is documented"
)]
pub enum DataType {
    UInt8,
    UInt16,
    UInt32,
    UInt64,
    UInt128,
    UInt256,
    Int8,
    Int16,
    Int32,
    Int64,
    Int128,
    Int256,
    Float32,
    Float64,
    BFloat16,
    /// `Decimal(precision, scale)`: precision 1 to 76 digits, scale not above it.
    Decimal {
        precision: u8,
        scale: u8,
    },
    Bool,
    String,
    /// `FixedString(bytes)`.
    FixedString(usize),
    Date,
    Date32,
    /// Whole seconds; the zone is only for reading and printing text.
    DateTime {
        time_zone: Option<std::string::String>,
    },
    /// Ticks of 10^-precision seconds, precision 0 to 9.
    DateTime64 {
        precision: u8,
        time_zone: Option<std::string::String>,
    },
    Time,
    /// Ticks of 10^-precision seconds, precision 0 to 9.
    Time64 {
        precision: u8,
    },
    /// Names and values in the order of the type string; ClickHouse prints them by value.
    Enum8(Vec<(std::string::String, i8)>),
    /// Names and values in the order of the type string; ClickHouse prints them by value.
    Enum16(Vec<(std::string::String, i16)>),
    Uuid,
    Ipv4,
    Ipv6,
    LowCardinality(Box<DataType>),
    Nullable(Box<DataType>),
    Array(Box<DataType>),
    Map(Box<DataType>, Box<DataType>),
    /// Either every element is named or none is.
    Tuple(Vec<TupleElement>),
    /// `Nested(name Type, …)` as one column (`flatten_nested = 0`): an array of named tuples.
    Nested(Vec<(std::string::String, DataType)>),
    Json(Box<JsonType>),
    /// The alternatives by name, as ClickHouse orders them.
    Variant(Vec<DataType>),
    Dynamic {
        max_types: Option<u32>,
    },
    /// `SimpleAggregateFunction(function, argument)`: stored and sent as its argument type.
    SimpleAggregateFunction {
        function: std::string::String,
        argument: Box<DataType>,
    },
    Point,
    Ring,
    LineString,
    MultiLineString,
    Polygon,
    MultiPolygon,
}

/// One element of a `Tuple`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TupleElement {
    /// The element's name, if the tuple is a named one.
    pub name: Option<String>,
    /// The element's type.
    pub data_type: DataType,
}

/// The arguments of a `JSON` type.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct JsonType {
    /// `max_dynamic_types`, where it is not the server's default.
    pub max_dynamic_types: Option<u32>,
    /// `max_dynamic_paths`, where it is not the server's default.
    pub max_dynamic_paths: Option<u32>,
    /// Paths (dots between keys) with a declared type.
    pub typed_paths: Vec<(String, DataType)>,
    /// Paths that are not stored.
    pub skip_paths: Vec<String>,
    /// Regular expressions of paths that are not stored.
    pub skip_regexps: Vec<String>,
}

impl DataType {
    /// The type whose values this type holds: itself, or the argument of `SimpleAggregateFunction`, or the tuples and
    /// arrays that a geo type or `Nested` stands for.
    pub fn storage(&self) -> std::borrow::Cow<'_, DataType> {
        use std::borrow::Cow;
        match self {
            DataType::SimpleAggregateFunction { argument, .. } => argument.storage(),
            DataType::Nested(columns) => Cow::Owned(DataType::Array(Box::new(DataType::Tuple(
                columns
                    .iter()
                    .map(|(name, data_type)| TupleElement {
                        name: Some(name.clone()),
                        data_type: data_type.clone(),
                    })
                    .collect(),
            )))),
            DataType::Point => {
                let coordinate = || TupleElement {
                    name: None,
                    data_type: DataType::Float64,
                };
                Cow::Owned(DataType::Tuple(vec![coordinate(), coordinate()]))
            }
            DataType::Ring | DataType::LineString => Cow::Owned(DataType::array(DataType::Point)),
            DataType::Polygon => Cow::Owned(DataType::array(DataType::Ring)),
            DataType::MultiLineString => Cow::Owned(DataType::array(DataType::LineString)),
            DataType::MultiPolygon => Cow::Owned(DataType::array(DataType::Polygon)),
            _ => Cow::Borrowed(self),
        }
    }

    /// `Array(element)`.
    pub fn array(element: DataType) -> DataType {
        DataType::Array(Box::new(element))
    }

    /// `Nullable(inner)`. Whether ClickHouse allows it says [`can_be_nullable`](Self::can_be_nullable).
    pub fn nullable(inner: DataType) -> DataType {
        DataType::Nullable(Box::new(inner))
    }

    /// `LowCardinality(inner)`.
    pub fn low_cardinality(inner: DataType) -> DataType {
        DataType::LowCardinality(Box::new(inner))
    }

    /// True for types that can stand inside `Nullable`: scalars and `JSON`, but no arrays, maps, tuples, variants,
    /// dynamics, and nothing that is already wrapped.
    pub fn can_be_nullable(&self) -> bool {
        !matches!(
            self.storage().as_ref(),
            DataType::LowCardinality(_)
                | DataType::Nullable(_)
                | DataType::Array(_)
                | DataType::Map(..)
                | DataType::Tuple(_)
                | DataType::Variant(_)
                | DataType::Dynamic { .. }
        )
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DataType::UInt8 => f.write_str("UInt8"),
            DataType::UInt16 => f.write_str("UInt16"),
            DataType::UInt32 => f.write_str("UInt32"),
            DataType::UInt64 => f.write_str("UInt64"),
            DataType::UInt128 => f.write_str("UInt128"),
            DataType::UInt256 => f.write_str("UInt256"),
            DataType::Int8 => f.write_str("Int8"),
            DataType::Int16 => f.write_str("Int16"),
            DataType::Int32 => f.write_str("Int32"),
            DataType::Int64 => f.write_str("Int64"),
            DataType::Int128 => f.write_str("Int128"),
            DataType::Int256 => f.write_str("Int256"),
            DataType::Float32 => f.write_str("Float32"),
            DataType::Float64 => f.write_str("Float64"),
            DataType::BFloat16 => f.write_str("BFloat16"),
            DataType::Decimal { precision, scale } => write!(f, "Decimal({precision}, {scale})"),
            DataType::Bool => f.write_str("Bool"),
            DataType::String => f.write_str("String"),
            DataType::FixedString(bytes) => write!(f, "FixedString({bytes})"),
            DataType::Date => f.write_str("Date"),
            DataType::Date32 => f.write_str("Date32"),
            DataType::DateTime { time_zone: None } => f.write_str("DateTime"),
            DataType::DateTime { time_zone: Some(zone) } => write!(f, "DateTime({})", quote_string(zone)),
            DataType::DateTime64 {
                precision,
                time_zone: None,
            } => write!(f, "DateTime64({precision})"),
            DataType::DateTime64 {
                precision,
                time_zone: Some(zone),
            } => {
                write!(f, "DateTime64({precision}, {})", quote_string(zone))
            }
            DataType::Time => f.write_str("Time"),
            DataType::Time64 { precision } => write!(f, "Time64({precision})"),
            DataType::Enum8(values) => write_enum(f, "Enum8", values),
            DataType::Enum16(values) => write_enum(f, "Enum16", values),
            DataType::Uuid => f.write_str("UUID"),
            DataType::Ipv4 => f.write_str("IPv4"),
            DataType::Ipv6 => f.write_str("IPv6"),
            DataType::LowCardinality(inner) => write!(f, "LowCardinality({inner})"),
            DataType::Nullable(inner) => write!(f, "Nullable({inner})"),
            DataType::Array(element) => write!(f, "Array({element})"),
            DataType::Map(key, value) => write!(f, "Map({key}, {value})"),
            DataType::Tuple(elements) => write_list(f, "Tuple", elements),
            DataType::Nested(columns) => {
                f.write_str("Nested(")?;
                for (index, (name, data_type)) in columns.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{} {data_type}", quote_identifier_if_needed(name))?;
                }
                f.write_str(")")
            }
            DataType::Json(json) => json.fmt(f),
            DataType::Variant(alternatives) => write_list(f, "Variant", alternatives),
            DataType::Dynamic { max_types: None } => f.write_str("Dynamic"),
            DataType::Dynamic { max_types: Some(max) } => write!(f, "Dynamic(max_types={max})"),
            DataType::SimpleAggregateFunction { function, argument } => {
                write!(f, "SimpleAggregateFunction({function}, {argument})")
            }
            DataType::Point => f.write_str("Point"),
            DataType::Ring => f.write_str("Ring"),
            DataType::LineString => f.write_str("LineString"),
            DataType::MultiLineString => f.write_str("MultiLineString"),
            DataType::Polygon => f.write_str("Polygon"),
            DataType::MultiPolygon => f.write_str("MultiPolygon"),
        }
    }
}

impl fmt::Display for TupleElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{} ", quote_identifier_if_needed(name))?;
        }
        self.data_type.fmt(f)
    }
}

impl fmt::Display for JsonType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut arguments = Vec::new();
        arguments.extend(self.max_dynamic_types.map(|max| format!("max_dynamic_types={max}")));
        arguments.extend(self.max_dynamic_paths.map(|max| format!("max_dynamic_paths={max}")));
        let typed = self.typed_paths.iter();
        arguments.extend(typed.map(|(path, data_type)| format!("{} {data_type}", quote_identifier_if_needed(path))));
        let skipped = self.skip_paths.iter();
        arguments.extend(skipped.map(|path| format!("SKIP {}", quote_identifier_if_needed(path))));
        arguments.extend(
            self.skip_regexps
                .iter()
                .map(|regexp| format!("SKIP REGEXP {}", quote_string(regexp))),
        );
        if arguments.is_empty() {
            f.write_str("JSON")
        } else {
            write!(f, "JSON({})", arguments.join(", "))
        }
    }
}

fn write_enum<V: fmt::Display>(f: &mut fmt::Formatter<'_>, family: &str, values: &[(String, V)]) -> fmt::Result {
    write!(f, "{family}(")?;
    for (index, (name, value)) in values.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        write!(f, "{comma}{} = {value}", quote_string(name))?;
    }
    f.write_str(")")
}

fn write_list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, family: &str, items: &[T]) -> fmt::Result {
    write!(f, "{family}(")?;
    for (index, item) in items.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        write!(f, "{comma}{item}")?;
    }
    f.write_str(")")
}

//! The types whose values all have the same width, as a column holds them: little-endian, one after the other.

use std::sync::Arc;

use hashbrown::HashMap;
use millrace_common::clickhouse::DataType;

use super::zone::Zone;

/// A fixed-width type with what is needed to read its values.
#[derive(Debug, Clone)]
#[repr(u8)] // Told apart by one byte, which is looked at for every value.
pub(crate) enum Scalar {
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
    Decimal { precision: u8, scale: u8 },
    Bool,
    FixedString(usize),
    Date,
    Date32,
    DateTime(Zone),
    DateTime64 { precision: u8, zone: Zone },
    Time,
    Time64 { precision: u8 },
    Enum8(Arc<EnumValues>),
    Enum16(Arc<EnumValues>),
    Uuid,
    Ipv4,
    Ipv6,
}

impl Scalar {
    /// The scalar of a type, if it is one. `Err` names a time zone that does not exist.
    pub(crate) fn of(data_type: &DataType, default_zone: &Zone) -> Result<Option<Scalar>, String> {
        let zone = |name: &Option<String>| match name {
            None => Ok(default_zone.clone()),
            Some(name) => Zone::named(name).ok_or_else(|| name.clone()),
        };
        Ok(Some(match data_type {
            DataType::UInt8 => Scalar::UInt8,
            DataType::UInt16 => Scalar::UInt16,
            DataType::UInt32 => Scalar::UInt32,
            DataType::UInt64 => Scalar::UInt64,
            DataType::UInt128 => Scalar::UInt128,
            DataType::UInt256 => Scalar::UInt256,
            DataType::Int8 => Scalar::Int8,
            DataType::Int16 => Scalar::Int16,
            DataType::Int32 => Scalar::Int32,
            DataType::Int64 => Scalar::Int64,
            DataType::Int128 => Scalar::Int128,
            DataType::Int256 => Scalar::Int256,
            DataType::Float32 => Scalar::Float32,
            DataType::Float64 => Scalar::Float64,
            DataType::BFloat16 => Scalar::BFloat16,
            DataType::Decimal { precision, scale } => Scalar::Decimal {
                precision: *precision,
                scale: *scale,
            },
            DataType::Bool => Scalar::Bool,
            DataType::FixedString(bytes) => Scalar::FixedString(*bytes),
            DataType::Date => Scalar::Date,
            DataType::Date32 => Scalar::Date32,
            DataType::DateTime { time_zone } => Scalar::DateTime(zone(time_zone)?),
            DataType::DateTime64 { precision, time_zone } => Scalar::DateTime64 {
                precision: *precision,
                zone: zone(time_zone)?,
            },
            DataType::Time => Scalar::Time,
            DataType::Time64 { precision } => Scalar::Time64 { precision: *precision },
            DataType::Enum8(values) => Scalar::Enum8(Arc::new(EnumValues::new(values))),
            DataType::Enum16(values) => Scalar::Enum16(Arc::new(EnumValues::new(values))),
            DataType::Uuid => Scalar::Uuid,
            DataType::Ipv4 => Scalar::Ipv4,
            DataType::Ipv6 => Scalar::Ipv6,
            _ => return Ok(None),
        }))
    }

    /// Bytes of one value.
    pub(crate) fn width(&self) -> usize {
        match self {
            Scalar::UInt8 | Scalar::Int8 | Scalar::Bool | Scalar::Enum8(_) => 1,
            Scalar::UInt16 | Scalar::Int16 | Scalar::BFloat16 | Scalar::Date | Scalar::Enum16(_) => 2,
            Scalar::UInt32
            | Scalar::Int32
            | Scalar::Float32
            | Scalar::Date32
            | Scalar::DateTime(_)
            | Scalar::Time
            | Scalar::Ipv4 => 4,
            Scalar::UInt64 | Scalar::Int64 | Scalar::Float64 | Scalar::DateTime64 { .. } | Scalar::Time64 { .. } => 8,
            Scalar::UInt128 | Scalar::Int128 | Scalar::Uuid | Scalar::Ipv6 => 16,
            Scalar::UInt256 | Scalar::Int256 => 32,
            Scalar::Decimal { precision: 0..=9, .. } => 4,
            Scalar::Decimal { precision: 10..=18, .. } => 8,
            Scalar::Decimal { precision: 19..=38, .. } => 16,
            Scalar::Decimal { .. } => 32,
            Scalar::FixedString(bytes) => *bytes,
        }
    }

    /// Appends the value that ClickHouse puts where there is none: zero, or an enum's smallest value.
    pub(crate) fn append_default(&self, out: &mut Vec<u8>) {
        match self {
            Scalar::Enum8(values) => out.push(values.default as u8),
            Scalar::Enum16(values) => out.extend_from_slice(&values.default.to_le_bytes()),
            _ => out.resize(out.len() + self.width(), 0),
        }
    }

    /// Appends the value that stands for `null`: zero, but in an enum that has none its default.
    pub(crate) fn append_null(&self, out: &mut Vec<u8>) {
        match self {
            Scalar::Enum8(values) | Scalar::Enum16(values) if values.by_value(0).is_none() => self.append_default(out),
            _ => out.resize(out.len() + self.width(), 0),
        }
    }
}

/// The names and values of an enum.
#[derive(Debug)]
pub(crate) struct EnumValues {
    by_name: HashMap<Box<[u8]>, i16>,
    sorted: Vec<i16>,
    default: i16,
}

impl EnumValues {
    fn new<V: Copy + Into<i16>>(values: &[(String, V)]) -> EnumValues {
        let by_name = values
            .iter()
            .map(|(name, value)| (name.as_bytes().into(), (*value).into()))
            .collect();
        let mut sorted: Vec<i16> = values.iter().map(|(_, value)| (*value).into()).collect();
        sorted.sort_unstable();
        let default = sorted.first().copied().unwrap_or_default();
        EnumValues {
            by_name,
            sorted,
            default,
        }
    }

    pub(crate) fn by_name(&self, name: &[u8]) -> Option<i16> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn by_value(&self, value: i64) -> Option<i16> {
        let value = i16::try_from(value).ok()?;
        self.sorted.binary_search(&value).is_ok().then_some(value)
    }
}

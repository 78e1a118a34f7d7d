//! The rows of a block as JSON texts, as `FORMAT JSONEachRow` would show them: for people who look at rows before they are inserted.
//!
//! Nothing that is inserted goes this way. Whole columns are turned into texts, so this is for small blocks.

use ethnum::{I256, U256};
use millrace_common::clickhouse::DataType;

use super::{
    Block, BlockColumn,
    column::{Column, Fixed},
    scalar::Scalar,
    strings::{Strings, read_varint},
    zone::{Zone, civil_from_days},
};

/// A value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownColumn {
    /// Name of the column.
    pub name: String,
    /// A JSON text for each row.
    pub values: Vec<String>,
}

impl Block {
    /// All values, column by column, as JSON texts.
    pub fn show(&self) -> Vec<ShownColumn> {
        self.columns.iter().map(BlockColumn::show).collect()
    }

    /// The values of a column of type String as they are; empty for any other.
    pub fn texts(&self, column: usize) -> Vec<&[u8]> {
        match self.columns.get(column).map(|column| &column.column) {
            Some(Column::String(strings)) => strings.iter().collect(),
            _ => Vec::new(),
        }
    }
}

impl BlockColumn {
    fn show(&self) -> ShownColumn {
        let data_type = self.wire_type();
        ShownColumn {
            name: self.name.to_string(),
            values: texts(&self.column, &data_type),
        }
    }

    /// The type as it stands in the header, behind the name.
    fn wire_type(&self) -> DataType {
        let (length, width) = read_varint(&self.header);
        let rest = self.header.get(width + length as usize..).unwrap_or_default();
        let (_, width) = read_varint(rest);
        let text = String::from_utf8_lossy(rest.get(width..).unwrap_or_default());
        // It was printed by the type itself.
        text.parse().unwrap_or(DataType::String)
    }
}

/// A text for each value of a column.
fn texts(column: &Column, data_type: &DataType) -> Vec<String> {
    let storage = data_type.storage();
    match (column, storage.as_ref()) {
        (Column::Fixed(fixed), data_type) => scalars(fixed, data_type),
        (Column::String(strings), _) => strings.iter().map(quoted).collect(),
        (Column::Json(json), _) => json
            .texts
            .iter()
            .map(|text| String::from_utf8_lossy(text).into_owned())
            .collect(),
        (Column::Nullable(nullable), DataType::Nullable(inner)) => texts(&nullable.inner, inner)
            .into_iter()
            .zip(&nullable.nulls)
            .map(|(text, null)| if *null == 0 { text } else { "null".to_owned() })
            .collect(),
        (Column::LowCardinality(dictionary), DataType::LowCardinality(inner)) => {
            let inner = match inner.as_ref() {
                DataType::Nullable(inner) => inner,
                inner => inner,
            };
            let mut entries = texts(dictionary.values(), inner);
            if dictionary.is_nullable()
                && let Some(null) = entries.first_mut()
            {
                *null = "null".to_owned();
            }
            let entry = |index: &u32| entries.get(*index as usize).cloned().unwrap_or_default();
            dictionary.indexes().iter().map(entry).collect()
        }
        (Column::Array(array), DataType::Array(element)) => lists(&array.ends, &texts(&array.elements, element)),
        (Column::Map(map), DataType::Map(key, value)) => {
            maps(&map.ends, &texts(&map.keys, key), &texts(&map.values, value))
        }
        (Column::Tuple(tuple), DataType::Tuple(elements)) => {
            let columns: Vec<(Option<&str>, Vec<String>)> = tuple
                .elements
                .iter()
                .zip(elements)
                .map(|(column, element)| (element.name.as_deref(), texts(column, &element.data_type)))
                .collect();
            (0..column.rows()).map(|row| tuple_text(&columns, row)).collect()
        }
        (Column::Variant(variant), DataType::Variant(alternatives)) => {
            let columns = variant.alternatives.iter().zip(alternatives);
            let mut columns: Vec<_> = columns.map(|(column, of)| texts(column, of).into_iter()).collect();
            let next = |index: &u8| match columns.get_mut(usize::from(*index)) {
                Some(column) => column.next().unwrap_or_default(),
                None => "null".to_owned(),
            };
            variant.discriminators().iter().map(next).collect()
        }
        (Column::Dynamic(dynamic), _) => {
            let mut columns: Vec<_> = dynamic
                .typed()
                .map(|(of, column)| texts(column, of).into_iter())
                .collect();
            let next = |index: &u32| match (*index as usize)
                .checked_sub(1)
                .and_then(|index| columns.get_mut(index))
            {
                Some(column) => column.next().unwrap_or_default(),
                None => "null".to_owned(),
            };
            dynamic.indexes().iter().map(next).collect()
        }
        // The column was made of the type.
        (column, _) => vec!["null".to_owned(); column.rows()],
    }
}

fn lists(ends: &[u64], elements: &[String]) -> Vec<String> {
    spans(ends)
        .map(|span| format!("[{}]", elements.get(span).unwrap_or_default().join(",")))
        .collect()
}

fn maps(ends: &[u64], keys: &[String], values: &[String]) -> Vec<String> {
    let pair = |at: usize| {
        let (key, value) = (keys.get(at)?, values.get(at)?);
        Some(if key.starts_with('"') {
            format!("{key}:{value}")
        } else {
            format!("\"{key}\":{value}")
        })
    };
    spans(ends)
        .map(|span| format!("{{{}}}", span.filter_map(pair).collect::<Vec<_>>().join(",")))
        .collect()
}

fn spans(ends: &[u64]) -> impl Iterator<Item = std::ops::Range<usize>> {
    ends.iter().scan(0, |start, end| {
        let span = *start..*end as usize;
        *start = *end as usize;
        Some(span)
    })
}

fn tuple_text(columns: &[(Option<&str>, Vec<String>)], row: usize) -> String {
    let values = columns
        .iter()
        .map(|(name, values)| (name, values.get(row).map_or("null", String::as_str)));
    if columns.iter().all(|(name, _)| name.is_some()) {
        let fields = values.map(|(name, value)| format!("{}:{value}", quoted(name.unwrap_or_default().as_bytes())));
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    } else {
        format!("[{}]", values.map(|(_, value)| value).collect::<Vec<_>>().join(","))
    }
}

fn quoted(text: &[u8]) -> String {
    serde_json::Value::String(String::from_utf8_lossy(text).into_owned()).to_string()
}

fn scalars(fixed: &Fixed, data_type: &DataType) -> Vec<String> {
    if fixed.width() == 0 {
        return Vec::new();
    }
    fixed
        .bytes
        .chunks_exact(fixed.width())
        .map(|bytes| scalar(&fixed.scalar, data_type, bytes))
        .collect()
}

/// A little-endian number of at most 8 bytes, with its sign.
fn signed(bytes: &[u8]) -> i64 {
    let mut wide = [if bytes.last().is_some_and(|byte| byte & 0x80 != 0) {
        0xFF
    } else {
        0
    }; 8];
    wide[..bytes.len().min(8)].copy_from_slice(&bytes[..bytes.len().min(8)]);
    i64::from_le_bytes(wide)
}

fn unsigned(bytes: &[u8]) -> u64 {
    let mut wide = [0; 8];
    wide[..bytes.len().min(8)].copy_from_slice(&bytes[..bytes.len().min(8)]);
    u64::from_le_bytes(wide)
}

fn wide<const WIDTH: usize>(bytes: &[u8]) -> [u8; WIDTH] {
    let mut wide = [0; WIDTH];
    let length = bytes.len().min(WIDTH);
    wide[..length].copy_from_slice(&bytes[..length]);
    wide
}

fn scalar(scalar: &Scalar, data_type: &DataType, bytes: &[u8]) -> String {
    let string = |text: String| format!("\"{text}\"");
    match scalar {
        Scalar::UInt8 | Scalar::UInt16 | Scalar::UInt32 | Scalar::UInt64 => unsigned(bytes).to_string(),
        Scalar::Int8 | Scalar::Int16 | Scalar::Int32 | Scalar::Int64 => signed(bytes).to_string(),
        Scalar::UInt128 => u128::from_le_bytes(wide(bytes)).to_string(),
        Scalar::Int128 => i128::from_le_bytes(wide(bytes)).to_string(),
        Scalar::UInt256 => U256::from_le_bytes(wide(bytes)).to_string(),
        Scalar::Int256 => I256::from_le_bytes(wide(bytes)).to_string(),
        Scalar::Float32 => float(f32::from_le_bytes(wide(bytes))),
        Scalar::Float64 => float(f64::from_le_bytes(wide(bytes))),
        Scalar::BFloat16 => float(f32::from_bits(u32::from(u16::from_le_bytes(wide(bytes))) << 16)),
        Scalar::Decimal { scale, .. } => decimal(bytes, *scale),
        Scalar::Bool => (bytes.first() != Some(&0)).to_string(),
        Scalar::FixedString(_) => quoted(bytes),
        Scalar::Date => string(date(unsigned(bytes) as i64)),
        Scalar::Date32 => string(date(signed(bytes))),
        Scalar::DateTime(zone) => string(date_time(unsigned(bytes) as i64, zone)),
        Scalar::DateTime64 { precision, zone } => {
            let (seconds, ticks) = split(signed(bytes), *precision);
            string(format!("{}{}", date_time(seconds, zone), fraction(ticks, *precision)))
        }
        Scalar::Time => string(time(signed(bytes).unsigned_abs(), signed(bytes) < 0, "")),
        Scalar::Time64 { precision } => {
            let ticks = signed(bytes);
            let (seconds, rest) = split(ticks.saturating_abs(), *precision);
            string(time(seconds.unsigned_abs(), ticks < 0, &fraction(rest, *precision)))
        }
        Scalar::Enum8(_) | Scalar::Enum16(_) => enum_name(signed(bytes), data_type),
        Scalar::Uuid => {
            let (high, low) = bytes.split_at(bytes.len() / 2);
            let value = (u128::from(unsigned(high)) << 64) | u128::from(unsigned(low));
            string(uuid::Uuid::from_u128(value).to_string())
        }
        Scalar::Ipv4 => string(std::net::Ipv4Addr::from(u32::from_le_bytes(wide(bytes))).to_string()),
        Scalar::Ipv6 => string(ipv6(wide(bytes))),
    }
}

/// What JSON has no number for is null, as ClickHouse has it.
fn float<F: Copy + Into<f64> + std::fmt::Display + std::fmt::LowerExp>(value: F) -> String {
    let magnitude = value.into().abs();
    if !magnitude.is_finite() {
        "null".to_owned()
    } else if magnitude == 0.0 || (1e-7..1e21).contains(&magnitude) {
        value.to_string()
    } else {
        format!("{value:e}")
    }
}

/// Without zeros at the end, as ClickHouse shows it.
fn decimal(bytes: &[u8], scale: u8) -> String {
    let number = match bytes.len() {
        0..=8 => signed(bytes).to_string(),
        16 => i128::from_le_bytes(wide(bytes)).to_string(),
        _ => I256::from_le_bytes(wide(bytes)).to_string(),
    };
    let (sign, digits) = number
        .strip_prefix('-')
        .map_or(("", number.as_str()), |digits| ("-", digits));
    let scale = usize::from(scale);
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, part) = digits.split_at(digits.len() - scale);
    match part.trim_end_matches('0') {
        "" => format!("{sign}{whole}"),
        part => format!("{sign}{whole}.{part}"),
    }
}

fn date(days: i64) -> String {
    match civil_from_days(days) {
        Some((year, month, day)) => format!("{year:04}-{month:02}-{day:02}"),
        None => days.to_string(),
    }
}

fn date_time(seconds: i64, zone: &Zone) -> String {
    let local = seconds + zone.offset_at(seconds);
    let (days, second) = (local.div_euclid(86_400), local.rem_euclid(86_400));
    format!(
        "{} {:02}:{:02}:{:02}",
        date(days),
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

fn time(seconds: u64, negative: bool, fraction: &str) -> String {
    let sign = if negative { "-" } else { "" };
    format!(
        "{sign}{:02}:{:02}:{:02}{fraction}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// Whole seconds, and the ticks after them.
fn split(ticks: i64, precision: u8) -> (i64, i64) {
    let unit = 10_i64.pow(u32::from(precision.min(9)));
    (ticks.div_euclid(unit), ticks.rem_euclid(unit))
}

fn fraction(ticks: i64, precision: u8) -> String {
    if precision == 0 {
        String::new()
    } else {
        format!(".{ticks:0width$}", width = usize::from(precision))
    }
}

/// With the last two groups as an IPv4 address where all before them are zero, as ClickHouse shows it.
fn ipv6(bytes: [u8; 16]) -> String {
    match bytes {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d] if (a, b) != (0, 0) => format!("::{a}.{b}.{c}.{d}"),
        _ => std::net::Ipv6Addr::from(bytes).to_string(),
    }
}

fn enum_name(value: i64, data_type: &DataType) -> String {
    let named = match data_type {
        DataType::Enum8(values) => values
            .iter()
            .find(|(_, known)| i64::from(*known) == value)
            .map(|(name, _)| name),
        DataType::Enum16(values) => values
            .iter()
            .find(|(_, known)| i64::from(*known) == value)
            .map(|(name, _)| name),
        _ => None,
    };
    named.map_or_else(|| value.to_string(), |name| quoted(name.as_bytes()))
}

impl Strings {
    /// The strings, one after the other.
    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.bytes();
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (length, width) = read_varint(rest);
            let (text, after) = rest.get(width..)?.split_at_checked(length as usize)?;
            rest = after;
            Some(text)
        })
    }
}

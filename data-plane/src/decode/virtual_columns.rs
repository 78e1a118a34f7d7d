//! Values about a record rather than in it, converted to their destination's type.

use millrace_common::clickhouse::DataType;

use super::RecordMeta;
use super::plan::VirtualColumn;
use super::reject::{Attempt, Fail};
use super::scalar;
use super::temporal;
use crate::batch::block::column::Column;
use crate::batch::block::scalar::Scalar;

/// `Err` says what to do if a column of this type cannot take the virtual column.
pub(super) fn check(source: VirtualColumn, data_type: &DataType) -> Result<(), &'static str> {
    let storage = data_type.storage();
    let inner = match storage.as_ref() {
        DataType::LowCardinality(inner) => match inner.as_ref() {
            DataType::Nullable(inner) => inner,
            inner => inner,
        },
        DataType::Nullable(inner) => inner,
        other => other,
    };
    let is_text = matches!(inner, DataType::String);
    let is_wide_integer = matches!(
        inner,
        DataType::UInt64
            | DataType::Int64
            | DataType::UInt128
            | DataType::UInt256
            | DataType::Int128
            | DataType::Int256
    );
    match source {
        VirtualColumn::Unmapped if is_text || matches!(inner, DataType::Json(_)) => Ok(()),
        VirtualColumn::Unmapped => Err("use JSON or String"),
        VirtualColumn::Stream | VirtualColumn::ShardId | VirtualColumn::RawMessage if is_text => Ok(()),
        VirtualColumn::Stream | VirtualColumn::ShardId | VirtualColumn::RawMessage => {
            Err("use String or LowCardinality(String)")
        }
        VirtualColumn::Key if is_text || is_wide_integer || matches!(inner, DataType::Uuid) => Ok(()),
        VirtualColumn::Key => Err("use String, or UUID or a 64-bit or wider integer if all keys are such"),
        VirtualColumn::SequenceNumber if is_text || matches!(inner, DataType::UInt256 | DataType::Int256) => Ok(()),
        VirtualColumn::SequenceNumber => Err("use String or UInt256; a sequence number has 56 digits and more"),
        VirtualColumn::SubSequenceNumber if is_text || is_wide_integer || matches!(inner, DataType::UInt32) => Ok(()),
        VirtualColumn::SubSequenceNumber => Err("use UInt64"),
        VirtualColumn::Timestamp
            if matches!(
                inner,
                DataType::DateTime64 { .. }
                    | DataType::DateTime { .. }
                    | DataType::Date
                    | DataType::Date32
                    | DataType::Int64
                    | DataType::UInt64
            ) =>
        {
            Ok(())
        }
        VirtualColumn::Timestamp => Err("use DateTime64(3), DateTime, Date or Int64 (milliseconds)"),
    }
}

/// Appends the value to the column, which [`check`] has allowed: of the document with this number and text.
pub(super) fn append(
    source: VirtualColumn,
    meta: &RecordMeta<'_>,
    number: u64,
    document: &[u8],
    column: &mut Column,
) -> Attempt<()> {
    match source {
        VirtualColumn::Key => text(meta.partition_key, column),
        VirtualColumn::Stream => text(meta.stream.as_bytes(), column),
        VirtualColumn::ShardId => text(meta.shard_id.as_bytes(), column),
        VirtualColumn::SequenceNumber => text(meta.sequence_number, column),
        VirtualColumn::RawMessage => text(document, column),
        VirtualColumn::SubSequenceNumber => {
            let mut digits = [0; 20];
            text(decimal(number, &mut digits), column)
        }
        VirtualColumn::Timestamp => instant(meta.arrival_millis, column),
        // The decoder has it from the record's keys.
        VirtualColumn::Unmapped => Ok(()),
    }
}

pub(super) fn text(value: &[u8], column: &mut Column) -> Attempt<()> {
    match column {
        Column::String(strings) => strings.push(value),
        Column::Nullable(nullable) => {
            text(value, &mut nullable.inner)?;
            nullable.nulls.push(0);
        }
        Column::LowCardinality(dictionary) => {
            text(value, dictionary.values_mut())?;
            dictionary.intern_last();
        }
        Column::Fixed(fixed) => scalar::append_text(value, &fixed.scalar, &mut fixed.bytes)?,
        other => other.push_default(),
    }
    Ok(())
}

fn instant(millis: i64, column: &mut Column) -> Attempt<()> {
    match column {
        Column::Nullable(nullable) => {
            instant(millis, &mut nullable.inner)?;
            nullable.nulls.push(0);
        }
        Column::LowCardinality(dictionary) => {
            instant(millis, dictionary.values_mut())?;
            dictionary.intern_last();
        }
        Column::Fixed(fixed) => {
            let bytes = instant_bytes(millis, &fixed.scalar)
                .ok_or_else(|| Fail::out_of_range(0, "arrived at a time that its column cannot hold"))?;
            fixed.bytes.extend_from_slice(&bytes[..fixed.scalar.width()]);
        }
        other => other.push_default(),
    }
    Ok(())
}

fn instant_bytes(millis: i64, scalar: &Scalar) -> Option<[u8; 8]> {
    let seconds = millis.div_euclid(1000);
    let days = seconds.div_euclid(86_400);
    let value = match scalar {
        Scalar::DateTime64 { precision, .. } => {
            let ticks = temporal::ticks_per_second(*precision);
            if *precision >= 3 {
                millis.checked_mul(ticks / 1000)?
            } else {
                millis.div_euclid(1000 / ticks)
            }
        }
        Scalar::DateTime(_) if temporal::DATE_TIME_SECONDS.contains(&seconds) => seconds,
        Scalar::Date if temporal::DATE_DAYS.contains(&days) => days,
        Scalar::Date32 if temporal::DATE32_DAYS.contains(&days) => days,
        Scalar::Int64 => millis,
        Scalar::UInt64 if millis >= 0 => millis,
        _ => return None,
    };
    Some(value.to_le_bytes())
}

fn decimal(mut value: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            return &digits[start..];
        }
    }
}

//! Plain values for blocks that are not decoded from JSON, such as the error table's.

use super::column::Column;
use super::scalar::Scalar;

/// A value of a row that is appended by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// NULL in a nullable column, else the type's default.
    Default,
    /// For `String`, `LowCardinality(String)` and the like.
    Bytes(&'a [u8]),
    /// For unsigned integers, `Date` (days) and `DateTime` (seconds).
    Unsigned(u64),
    /// For signed integers, and for `DateTime64` in ticks of the column's precision.
    Signed(i64),
}

/// Why a row of plain values does not fit a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// There are more or fewer values than columns.
    #[error("the row has {values} values, the block {columns} columns")]
    Width {
        /// Columns of the block.
        columns: usize,
        /// Values of the row.
        values: usize,
    },
    /// A value is not of its column's type, or too large for it.
    #[error("the value for column `{column}` does not fit its type")]
    Type {
        /// The column.
        column: String,
    },
}

/// True if the value fitted; else the column may hold a part of it.
pub(super) fn append(column: &mut Column, value: Value<'_>) -> bool {
    if value == Value::Default {
        column.push_default();
        return true;
    }
    match column {
        Column::String(strings) => match value {
            Value::Bytes(bytes) => {
                strings.push(bytes);
                true
            }
            _ => false,
        },
        Column::Nullable(nullable) => {
            nullable.nulls.push(0);
            append(&mut nullable.inner, value)
        }
        Column::LowCardinality(dictionary) => {
            let fits = append(dictionary.values_mut(), value);
            if fits {
                dictionary.intern_last();
            }
            fits
        }
        Column::Fixed(fixed) => append_fixed(&fixed.scalar, &mut fixed.bytes, value),
        _ => false,
    }
}

fn append_fixed(scalar: &Scalar, out: &mut Vec<u8>, value: Value<'_>) -> bool {
    let width = scalar.width();
    let signed = matches!(
        scalar,
        Scalar::Int8 | Scalar::Int16 | Scalar::Int32 | Scalar::Int64 | Scalar::Date32 | Scalar::DateTime64 { .. }
    );
    let unsigned = matches!(
        scalar,
        Scalar::UInt8 | Scalar::UInt16 | Scalar::UInt32 | Scalar::UInt64 | Scalar::Date | Scalar::DateTime(_)
    );
    let bits = 8 * width as u32;
    match value {
        Value::Unsigned(value) if unsigned && (bits == 64 || value >> bits == 0) => {
            out.extend_from_slice(&value.to_le_bytes()[..width]);
            true
        }
        Value::Signed(value) if signed && (bits == 64 || (value >> (bits - 1)) == (value >> 63)) => {
            out.extend_from_slice(&value.to_le_bytes()[..width]);
            true
        }
        Value::Bytes(bytes) if matches!(scalar, Scalar::FixedString(_)) && bytes.len() <= width => {
            out.extend_from_slice(bytes);
            out.resize(out.len() + width - bytes.len(), 0);
            true
        }
        _ => false,
    }
}

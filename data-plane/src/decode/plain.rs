//! Values as nearly all producers write them, read on the way: numbers in a few plain digits, texts without escapes that are ISO
//! times, UUIDs and the like. What is written otherwise is not refused but left where it is, for the careful reading of
//! [`scalar`](super::scalar), which gives the same for what both read.

use super::{
    address,
    cursor::{Cursor, PlainDecimal},
    temporal,
};
use crate::batch::block::scalar::Scalar;

/// Whole numbers up to this are exact in a double, and in a single.
const EXACT_F64: u64 = 1 << 53;
const EXACT_F32: u64 = 1 << 24;
/// Powers of ten that are exact in a double: a number of at most 53 bits divided by one is rounded once, so correctly.
const TENS_F64: [f64; 18] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17,
];
/// The same in a single.
const TENS_F32: [f32; 11] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10];
/// Powers of ten that 64 bits hold.
const TENS: [u64; 19] = {
    let mut tens = [1; 19];
    let mut power = 1;
    while power < tens.len() {
        tens[power] = tens[power - 1] * 10;
        power += 1;
    }
    tens
};

/// Reads the value at the cursor and appends it to `out`; or does nothing, and returns false.
#[inline(always)]
pub(super) fn append(cursor: &mut Cursor<'_>, scalar: &Scalar, out: &mut Vec<u8>) -> bool {
    let start = cursor.position();
    macro_rules! integer {
        ($type:ty) => {
            cursor
                .plain_integer()
                .and_then(|value| <$type>::try_from(value).ok())
                .map(|value| out.extend_from_slice(&value.to_le_bytes()))
        };
    }
    let done = match scalar {
        Scalar::UInt8 => integer!(u8),
        Scalar::UInt16 => integer!(u16),
        Scalar::UInt32 => integer!(u32),
        Scalar::UInt64 => integer!(u64),
        Scalar::Int8 => integer!(i8),
        Scalar::Int16 => integer!(i16),
        Scalar::Int32 => integer!(i32),
        Scalar::Int64 => integer!(i64),
        Scalar::Float64 => cursor
            .plain_decimal()
            .and_then(double)
            .map(|value| out.extend_from_slice(&value.to_le_bytes())),
        Scalar::Float32 => cursor
            .plain_decimal()
            .and_then(single)
            .map(|value| out.extend_from_slice(&value.to_le_bytes())),
        Scalar::Decimal {
            precision: precision @ 0..=18,
            scale,
        } => plain_decimal(cursor)
            .and_then(|number| decimal(number, *precision, *scale))
            .map(|value| out.extend_from_slice(&value.to_le_bytes()[..scalar.width()])),
        Scalar::Bool => boolean(cursor).map(|value| out.push(u8::from(value))),
        Scalar::DateTime64 { precision, zone } => text(cursor)
            .and_then(|text| temporal::iso_8601(text, zone))
            .and_then(|instant| temporal::to_ticks(instant, *precision))
            .map(|ticks| out.extend_from_slice(&ticks.to_le_bytes())),
        Scalar::DateTime(zone) => text(cursor)
            .and_then(|text| temporal::iso_8601(text, zone))
            .and_then(|instant| u32::try_from(instant.seconds).ok())
            .map(|seconds| out.extend_from_slice(&seconds.to_le_bytes())),
        Scalar::Uuid => text(cursor)
            .and_then(address::parse_uuid)
            .map(|halves| address::append_uuid(halves, out)),
        Scalar::Ipv4 => text(cursor)
            .and_then(address::parse_ipv4)
            .map(|address| out.extend_from_slice(&address.to_le_bytes())),
        _ => None,
    };
    if done.is_none() {
        cursor.seek(start);
    }
    done.is_some()
}

/// The string at the cursor, if it is one without escapes.
#[inline(always)]
fn text<'a>(cursor: &mut Cursor<'a>) -> Option<&'a [u8]> {
    if cursor.peek() != Some(b'"') {
        return None;
    }
    let text = cursor.string().ok().filter(|text| !text.has_escapes())?;
    Some(text.raw())
}

/// A number, in quotes or not, whose closing quote is passed.
#[inline(always)]
fn plain_decimal(cursor: &mut Cursor<'_>) -> Option<PlainDecimal> {
    if cursor.peek() == Some(b'"') {
        return cursor.quoted_plain_decimal();
    }
    cursor.plain_decimal()
}

#[inline(always)]
fn boolean(cursor: &mut Cursor<'_>) -> Option<bool> {
    match cursor.peek() {
        Some(b't') => cursor.literal("true").ok().map(|()| true),
        Some(b'f') => cursor.literal("false").ok().map(|()| false),
        _ => None,
    }
}

#[inline(always)]
fn double(number: PlainDecimal) -> Option<f64> {
    if number.magnitude > EXACT_F64 {
        return None;
    }
    #[allow(clippy::cast_precision_loss, reason = "it is exact")]
    let value = number.magnitude as f64 / TENS_F64.get(number.scale)?;
    Some(f64::from_bits(value.to_bits() | u64::from(number.negative) << 63))
}

#[inline(always)]
fn single(number: PlainDecimal) -> Option<f32> {
    if number.magnitude > EXACT_F32 {
        return None;
    }
    #[allow(clippy::cast_precision_loss, reason = "it is exact")]
    let value = number.magnitude as f32 / TENS_F32.get(number.scale)?;
    Some(f32::from_bits(value.to_bits() | u32::from(number.negative) << 31))
}

/// In units of 10^-`scale`, digits beyond cut off.
#[inline(always)]
fn decimal(number: PlainDecimal, precision: u8, scale: u8) -> Option<i64> {
    let wanted = usize::from(scale);
    let magnitude = if number.scale <= wanted {
        number.magnitude.checked_mul(*TENS.get(wanted - number.scale)?)?
    } else {
        number.magnitude / TENS.get(number.scale - wanted)?
    };
    if magnitude >= *TENS.get(usize::from(precision))? {
        return None;
    }
    let magnitude = magnitude as i64;
    Some(if number.negative { -magnitude } else { magnitude })
}

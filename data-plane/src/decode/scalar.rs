//! One JSON value into a column of fixed-width values.
//!
//! Which JSON a type takes is ClickHouse's choice: numbers may stand in quotes, an integer column takes `true`, a date
//! is text or a number of days. Where we differ is listed in `docs/json-semantics.md`.

use std::borrow::Cow;

use ethnum::{I256, U256};

use super::address;
use super::cursor::Cursor;
use super::number::{self, NumberError};
use super::plain;
use super::reject::{Attempt, Fail};
use super::temporal;
use crate::batch::block::scalar::{EnumValues, Scalar};
use crate::batch::block::zone::Zone;

/// A JSON scalar as a type may look at it. `null` never gets here.
pub(crate) enum Token<'a> {
    Number { text: &'a [u8], is_integer: bool },
    Text(Cow<'a, [u8]>),
    Bool(bool),
}

/// The scalar at the cursor; `Err` for an array or object, which no fixed-width type takes.
#[inline]
pub(crate) fn token<'a>(cursor: &mut Cursor<'a>, wanted: &'static str) -> Attempt<Token<'a>> {
    match cursor.peek() {
        Some(b'"') => Ok(Token::Text(cursor.string()?.resolve())),
        Some(b't') => cursor.literal("true").map(|()| Token::Bool(true)),
        Some(b'f') => cursor.literal("false").map(|()| Token::Bool(false)),
        Some(b'[' | b'{') => Err(Fail::mismatch(cursor.position(), wanted)),
        _ => cursor.number().map(|number| Token::Number {
            text: number.text,
            is_integer: number.is_integer,
        }),
    }
}

/// Reads the value at the cursor and appends it to `out`, or appends nothing.
#[inline(always)]
pub(crate) fn append(cursor: &mut Cursor<'_>, scalar: &Scalar, out: &mut Vec<u8>) -> Attempt<()> {
    if plain::append(cursor, scalar, out) {
        return Ok(());
    }
    append_carefully(cursor, scalar, out)
}

#[inline(never)]
fn append_carefully(cursor: &mut Cursor<'_>, scalar: &Scalar, out: &mut Vec<u8>) -> Attempt<()> {
    let at = cursor.position();
    let token = token(cursor, expectation(scalar))?;
    append_token(&token, at, cursor.is_exact(), scalar, out)
}

/// Appends a text that does not come from JSON as if it were a JSON string.
pub(crate) fn append_text(text: &[u8], scalar: &Scalar, out: &mut Vec<u8>) -> Attempt<()> {
    append_token(&Token::Text(Cow::Borrowed(text)), 0, false, scalar, out)
}

fn append_token(token: &Token<'_>, at: usize, exact: bool, scalar: &Scalar, out: &mut Vec<u8>) -> Attempt<()> {
    let mismatch = || Fail::mismatch(at, expectation(scalar));
    let out_of_range = || Fail::out_of_range(at, range(scalar));
    macro_rules! integer {
        ($type:ty) => {{
            let value = small_integer(token, exact).map_err(|error| number_fail(error, at, scalar))?;
            let value = <$type>::try_from(value).map_err(|_| out_of_range())?;
            out.extend_from_slice(&value.to_le_bytes());
        }};
    }
    match scalar {
        Scalar::UInt8 => integer!(u8),
        Scalar::UInt16 => integer!(u16),
        Scalar::UInt32 => integer!(u32),
        Scalar::UInt64 => integer!(u64),
        Scalar::Int8 => integer!(i8),
        Scalar::Int16 => integer!(i16),
        Scalar::Int32 => integer!(i32),
        Scalar::Int64 => integer!(i64),
        Scalar::UInt128 | Scalar::UInt256 | Scalar::Int128 | Scalar::Int256 => {
            let (negative, magnitude) = wide_integer(token, exact).map_err(|error| number_fail(error, at, scalar))?;
            let bytes = wide_bytes(negative, magnitude, scalar).ok_or_else(out_of_range)?;
            out.extend_from_slice(&bytes[..scalar.width()]);
        }
        Scalar::Float64 => {
            let value = float(token, number::parse_f64, f64::from).map_err(|error| number_fail(error, at, scalar))?;
            out.extend_from_slice(&value.to_le_bytes());
        }
        Scalar::Float32 => {
            let value = float(token, number::parse_f32, f32::from).map_err(|error| number_fail(error, at, scalar))?;
            out.extend_from_slice(&value.to_le_bytes());
        }
        Scalar::BFloat16 => {
            let value = float(token, number::parse_f32, f32::from).map_err(|error| number_fail(error, at, scalar))?;
            // The upper half of a Float32, as ClickHouse converts.
            out.extend_from_slice(&value.to_le_bytes()[2..]);
        }
        Scalar::Decimal { precision, scale } => {
            let value = match token {
                Token::Number { text, .. } => number::parse_decimal(text, *precision, *scale),
                Token::Text(text) if text.is_empty() => Ok(I256::ZERO),
                Token::Text(text) => number::parse_decimal(text, *precision, *scale),
                Token::Bool(_) => Err(NumberError::Syntax),
            };
            let value = value.map_err(|error| number_fail(error, at, scalar))?;
            out.extend_from_slice(&value.to_le_bytes()[..scalar.width()]);
        }
        Scalar::Bool => out.push(match token {
            Token::Bool(value) => u8::from(*value),
            Token::Number { text: b"1", .. } => 1,
            Token::Number { text: b"0", .. } => 0,
            _ => return Err(mismatch()),
        }),
        Scalar::FixedString(width) => {
            let Token::Text(text) = token else {
                return Err(mismatch());
            };
            if text.len() > *width {
                return Err(Fail::out_of_range(at, format!("is longer than {width} bytes")));
            }
            out.extend_from_slice(text);
            out.resize(out.len() + width - text.len(), 0);
        }
        Scalar::Date => {
            let days = date(token, at, scalar, temporal::DATE_DAYS)?;
            out.extend_from_slice(&(days as u16).to_le_bytes());
        }
        Scalar::Date32 => {
            let days = date(token, at, scalar, temporal::DATE32_DAYS)?;
            out.extend_from_slice(&(days as i32).to_le_bytes());
        }
        Scalar::DateTime(zone) => {
            let seconds = date_time(token, zone).ok_or_else(mismatch)?;
            if !temporal::DATE_TIME_SECONDS.contains(&seconds) {
                return Err(out_of_range());
            }
            out.extend_from_slice(&(seconds as u32).to_le_bytes());
        }
        Scalar::DateTime64 { precision, zone } => {
            let ticks = match token {
                Token::Number { text, is_integer: true } => {
                    let ticks = number::parse_i128(text, true)
                        .ok()
                        .and_then(|ticks| i64::try_from(ticks).ok());
                    ticks.filter(|ticks| temporal::ticks_in_range(*ticks, *precision))
                }
                Token::Text(text) => {
                    let instant = temporal::parse_instant(text, zone).ok_or_else(mismatch)?;
                    temporal::to_ticks(instant, *precision)
                }
                _ => return Err(mismatch()),
            };
            out.extend_from_slice(&ticks.ok_or_else(out_of_range)?.to_le_bytes());
        }
        Scalar::Time => {
            let seconds = time(token, at, scalar, 0)?;
            out.extend_from_slice(&(seconds as i32).to_le_bytes());
        }
        Scalar::Time64 { precision } => {
            let ticks = time(token, at, scalar, *precision)?;
            out.extend_from_slice(&ticks.to_le_bytes());
        }
        Scalar::Enum8(values) => {
            let value = enum_value(token, values).ok_or_else(mismatch)?;
            out.push(value as u8);
        }
        Scalar::Enum16(values) => {
            let value = enum_value(token, values).ok_or_else(mismatch)?;
            out.extend_from_slice(&value.to_le_bytes());
        }
        Scalar::Uuid => {
            let Token::Text(text) = token else {
                return Err(mismatch());
            };
            address::append_uuid(address::parse_uuid(text).ok_or_else(mismatch)?, out);
        }
        Scalar::Ipv4 => {
            let Token::Text(text) = token else {
                return Err(mismatch());
            };
            out.extend_from_slice(&address::parse_ipv4(text).ok_or_else(mismatch)?.to_le_bytes());
        }
        Scalar::Ipv6 => {
            let Token::Text(text) = token else {
                return Err(mismatch());
            };
            out.extend_from_slice(&address::parse_ipv6(text).ok_or_else(mismatch)?);
        }
    }
    Ok(())
}

/// The words that a quoted number may be instead: an empty text is zero, as in ClickHouse.
fn word(text: &[u8]) -> Option<i128> {
    match text {
        b"" | b"false" => Some(0),
        b"true" => Some(1),
        _ => None,
    }
}

#[inline]
fn small_integer(token: &Token<'_>, exact: bool) -> Result<i128, NumberError> {
    match token {
        Token::Number { text, .. } => number::parse_i128(text, exact),
        Token::Text(text) => word(text).map_or_else(|| number::parse_i128(text, exact), Ok),
        Token::Bool(value) => Ok(i128::from(*value)),
    }
}

fn wide_integer(token: &Token<'_>, exact: bool) -> Result<(bool, U256), NumberError> {
    let small = |value: i128| (false, U256::from(value.unsigned_abs()));
    match token {
        Token::Number { text, .. } => number::parse_wide(text, exact),
        Token::Text(text) => word(text).map_or_else(|| number::parse_wide(text, exact), |value| Ok(small(value))),
        Token::Bool(value) => Ok(small(i128::from(*value))),
    }
}

/// The integer's bytes, little-endian, if it is in the type's range.
fn wide_bytes(negative: bool, magnitude: U256, scalar: &Scalar) -> Option<[u8; 32]> {
    let bits = 8 * scalar.width() as u32;
    let signed = matches!(scalar, Scalar::Int128 | Scalar::Int256);
    let used = 256 - magnitude.leading_zeros();
    let fits = match (signed, negative) {
        (false, false) => used <= bits,
        (false, true) => used == 0,
        (true, false) => used < bits,
        (true, true) => used < bits || (used == bits && magnitude.trailing_zeros() == bits - 1),
    };
    let value = if negative { magnitude.wrapping_neg() } else { magnitude };
    fits.then(|| value.to_le_bytes())
}

#[inline]
fn float<F>(
    token: &Token<'_>,
    parse: fn(&[u8]) -> Result<F, NumberError>,
    from_bool: fn(u8) -> F,
) -> Result<F, NumberError> {
    match token {
        Token::Number { text, .. } => parse(text),
        Token::Text(text) => match text.as_ref() {
            b"true" => Ok(from_bool(1)),
            b"false" => Ok(from_bool(0)),
            text => parse(text),
        },
        Token::Bool(value) => Ok(from_bool(u8::from(*value))),
    }
}

fn date(token: &Token<'_>, at: usize, scalar: &Scalar, days: std::ops::RangeInclusive<i64>) -> Attempt<i64> {
    let value = match token {
        Token::Number { text, is_integer: true } => {
            let value = number::parse_i128(text, true).map_err(|error| number_fail(error, at, scalar))?;
            i64::try_from(value).unwrap_or(i64::MAX)
        }
        Token::Text(text) => temporal::parse_date(text).ok_or_else(|| Fail::mismatch(at, expectation(scalar)))?,
        _ => return Err(Fail::mismatch(at, expectation(scalar))),
    };
    if days.contains(&value) {
        Ok(value)
    } else {
        Err(Fail::out_of_range(at, range(scalar)))
    }
}

fn date_time(token: &Token<'_>, zone: &Zone) -> Option<i64> {
    match token {
        Token::Number { text, is_integer: true } => {
            let seconds = number::parse_i128(text, true).unwrap_or(i128::MAX);
            Some(i64::try_from(seconds).unwrap_or(i64::MAX))
        }
        Token::Text(text) => temporal::parse_instant(text, zone).map(|instant| instant.seconds),
        _ => None,
    }
}

fn time(token: &Token<'_>, at: usize, scalar: &Scalar, precision: u8) -> Attempt<i64> {
    let ticks = match token {
        Token::Number { text, is_integer: true } => {
            let ticks = number::parse_i128(text, true)
                .ok()
                .and_then(|ticks| i64::try_from(ticks).ok());
            ticks.unwrap_or(i64::MAX)
        }
        Token::Text(text) => {
            temporal::parse_time(text, precision).ok_or_else(|| Fail::mismatch(at, expectation(scalar)))?
        }
        _ => return Err(Fail::mismatch(at, expectation(scalar))),
    };
    let bound = (temporal::TIME_SECONDS + 1) * temporal::ticks_per_second(precision);
    if ticks.unsigned_abs() < bound.unsigned_abs() {
        Ok(ticks)
    } else {
        Err(Fail::out_of_range(at, range(scalar)))
    }
}

/// A name, or a value as a number or in quotes.
fn enum_value(token: &Token<'_>, values: &EnumValues) -> Option<i16> {
    let by_number = |text: &[u8]| {
        let value = number::parse_i128(text, true).ok()?;
        values.by_value(i64::try_from(value).ok()?)
    };
    match token {
        Token::Text(text) => values.by_name(text).or_else(|| by_number(text)),
        Token::Number { text, .. } => by_number(text),
        Token::Bool(_) => None,
    }
}

#[cold]
fn number_fail(error: NumberError, at: usize, scalar: &Scalar) -> Fail {
    match error {
        NumberError::Syntax => Fail::mismatch(at, expectation(scalar)),
        NumberError::NotWhole => Fail::mismatch(at, "is not a whole number"),
        NumberError::Range => Fail::out_of_range(at, range(scalar)),
    }
}

/// What the type takes, to follow a value that it does not take.
fn expectation(scalar: &Scalar) -> &'static str {
    match scalar {
        Scalar::UInt8
        | Scalar::UInt16
        | Scalar::UInt32
        | Scalar::UInt64
        | Scalar::UInt128
        | Scalar::UInt256
        | Scalar::Int8
        | Scalar::Int16
        | Scalar::Int32
        | Scalar::Int64
        | Scalar::Int128
        | Scalar::Int256 => "is not an integer",
        Scalar::Float32 | Scalar::Float64 | Scalar::BFloat16 => "is not a number",
        Scalar::Decimal { .. } => "is not a decimal number",
        Scalar::Bool => "is not true, false, 1 or 0",
        Scalar::FixedString(_) => "is not a string",
        Scalar::Date | Scalar::Date32 => "is not a date (YYYY-MM-DD or a number of days since 1970)",
        Scalar::DateTime(_) => "is not a date and time (such as 2024-02-29T10:11:12Z, or seconds since 1970)",
        Scalar::DateTime64 { .. } => "is not a date and time (such as 2024-02-29T10:11:12.345Z, or ticks since 1970)",
        Scalar::Time | Scalar::Time64 { .. } => "is not a time (hh:mm:ss, or a number of ticks)",
        Scalar::Enum8(_) | Scalar::Enum16(_) => "is not a name or value of the enum",
        Scalar::Uuid => "is not a UUID",
        Scalar::Ipv4 => "is not an IPv4 address",
        Scalar::Ipv6 => "is not an IPv6 address",
    }
}

/// The type's range, to follow a value outside it.
fn range(scalar: &Scalar) -> Cow<'static, str> {
    Cow::Borrowed(match scalar {
        Scalar::UInt8 => "is not between 0 and 255 (UInt8)",
        Scalar::UInt16 => "is not between 0 and 65535 (UInt16)",
        Scalar::UInt32 => "is not between 0 and 4294967295 (UInt32)",
        Scalar::UInt64 => "is not between 0 and 18446744073709551615 (UInt64)",
        Scalar::UInt128 => "is not in the range of UInt128",
        Scalar::UInt256 => "is not in the range of UInt256",
        Scalar::Int8 => "is not between -128 and 127 (Int8)",
        Scalar::Int16 => "is not between -32768 and 32767 (Int16)",
        Scalar::Int32 => "is not between -2147483648 and 2147483647 (Int32)",
        Scalar::Int64 => "is not between -9223372036854775808 and 9223372036854775807 (Int64)",
        Scalar::Int128 => "is not in the range of Int128",
        Scalar::Int256 => "is not in the range of Int256",
        Scalar::Float32 => "is too large for Float32",
        Scalar::Float64 => "is too large for Float64",
        Scalar::BFloat16 => "is too large for BFloat16",
        Scalar::Decimal { precision, scale } => {
            return Cow::Owned(format!("has too many digits for Decimal({precision}, {scale})"));
        }
        Scalar::Date => "is not between 1970-01-01 and 2149-06-06 (Date)",
        Scalar::Date32 => "is not between 1900-01-01 and 2299-12-31 (Date32)",
        Scalar::DateTime(_) => "is not between 1970-01-01 00:00:00 and 2106-02-07 06:28:15 (DateTime)",
        Scalar::DateTime64 { precision: 9, .. } => "is not in the range of DateTime64(9), which ends in 2262",
        Scalar::DateTime64 { .. } => "is not in the years 1900 to 2299 (DateTime64)",
        Scalar::Time | Scalar::Time64 { .. } => "is not between -999:59:59 and 999:59:59",
        _ => "does not fit the column",
    })
}

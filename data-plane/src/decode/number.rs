//! From the text of a number to a number: integers of any width, decimals and floats, without a detour through floating
//! point.
//!
//! Integers: a number whose value is whole and in range is taken, however it is spelled (`1e3`, `1.0`), unless the
//! reading is exact. Decimals: digits past the scale are cut off, as ClickHouse does. Floats: correctly rounded.

use ethnum::{I256, U256};

/// Why a text is not the number that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NumberError {
    /// It is no number at all.
    Syntax,
    /// It is a number with a fraction, where none can be.
    NotWhole,
    /// It is too large, or has a sign it must not have.
    Range,
}

/// The digits of a number: `±digits × 10^exponent`, where `digits` are those of `whole` followed by those of `fraction`
/// and the exponent is already that of the last digit.
struct Parts<'a> {
    negative: bool,
    whole: &'a [u8],
    fraction: &'a [u8],
    exponent: i64,
}

/// Exponents beyond this are all the same: no column holds so many digits.
const EXPONENT_BOUND: i64 = 1_000_000_000_000;

impl<'a> Parts<'a> {
    /// Reads `[+-]digits[.digits][e[+-]digits]`; leading zeros and empty halves are allowed, because quoted numbers have
    /// them. At least one digit is there.
    fn parse(text: &'a [u8]) -> Option<Parts<'a>> {
        let (negative, rest) = match text.first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let (whole, rest) = digits(rest);
        let (fraction, rest) = match rest.first() {
            Some(b'.') => digits(&rest[1..]),
            _ => (&rest[..0], rest),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let exponent = match rest {
            [] => 0,
            [b'e' | b'E', rest @ ..] => exponent(rest)?,
            _ => return None,
        };
        Some(Parts {
            negative,
            whole,
            fraction,
            exponent: exponent - fraction.len() as i64,
        })
    }

    /// All digits, the most significant first.
    fn digits(&self) -> impl Iterator<Item = u8> + '_ {
        self.whole.iter().chain(self.fraction).map(|digit| digit - b'0')
    }

    /// The number times 10^`scale`, cut off towards zero, and whether anything but zeros was cut off. `None` if it has
    /// more than `max_digits` digits or does not fit.
    fn scaled<N: Accumulate>(&self, scale: i64, max_digits: usize) -> Option<(N, bool)> {
        let shift = self.exponent + scale;
        let count = self.whole.len() + self.fraction.len();
        let kept = usize::try_from((count as i64 + shift.min(0)).max(0)).unwrap_or(0);
        let mut value = N::ZERO;
        let mut significant = 0;
        let mut digits = self.digits();
        for digit in digits.by_ref().take(kept) {
            significant += usize::from(significant > 0 || digit > 0);
            if significant > max_digits {
                return None;
            }
            value = value.append(digit)?;
        }
        let inexact = digits.any(|digit| digit > 0);
        if shift > 0 && significant > 0 {
            let zeros = usize::try_from(shift).ok()?;
            if significant + zeros > max_digits {
                return None;
            }
            for _ in 0..zeros {
                value = value.append(0)?;
            }
        }
        Some((value, inexact))
    }
}

/// An unsigned integer that takes decimal digits, as long as they fit.
trait Accumulate: Copy {
    const ZERO: Self;
    fn append(self, digit: u8) -> Option<Self>;
}

impl Accumulate for u128 {
    const ZERO: u128 = 0;

    fn append(self, digit: u8) -> Option<u128> {
        self.checked_mul(10)?.checked_add(u128::from(digit))
    }
}

impl Accumulate for U256 {
    const ZERO: U256 = U256::ZERO;

    fn append(self, digit: u8) -> Option<U256> {
        self.checked_mul(U256::from(10u8))?.checked_add(U256::from(digit))
    }
}

fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    let length = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    text.split_at(length)
}

fn exponent(text: &[u8]) -> Option<i64> {
    let (negative, rest) = match text.first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (digits, rest) = digits(rest);
    if digits.is_empty() || !rest.is_empty() {
        return None;
    }
    let push = |value: i64, digit: &u8| (value * 10 + i64::from(digit - b'0')).min(EXPONENT_BOUND);
    let magnitude = digits.iter().fold(0, push);
    Some(if negative { -magnitude } else { magnitude })
}

/// A whole number of at most 64 bits. `exact` refuses fractions and exponents even if the value is whole.
#[inline]
pub(crate) fn parse_i128(text: &[u8], exact: bool) -> Result<i128, NumberError> {
    // Nearly every number in the wild: up to 18 plain digits.
    let (negative, plain) = match text {
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    if (1..=18).contains(&plain.len()) && plain.iter().all(u8::is_ascii_digit) {
        let value = plain
            .iter()
            .fold(0i64, |value, digit| value * 10 + i64::from(digit - b'0'));
        return Ok(i128::from(if negative { -value } else { value }));
    }
    let (parts, value) = whole::<u128>(text, exact, 38)?;
    let value = i128::try_from(value).map_err(|_| NumberError::Range)?;
    Ok(if parts.negative { -value } else { value })
}

/// A whole number of at most 256 bits, with its sign.
pub(crate) fn parse_wide(text: &[u8], exact: bool) -> Result<(bool, U256), NumberError> {
    let (parts, value) = whole::<U256>(text, exact, 78)?;
    Ok((parts.negative, value))
}

fn whole<N: Accumulate>(text: &[u8], exact: bool, max_digits: usize) -> Result<(Parts<'_>, N), NumberError> {
    let parts = Parts::parse(text).ok_or(NumberError::Syntax)?;
    if exact && text.iter().any(|byte| matches!(byte, b'.' | b'e' | b'E')) {
        return Err(NumberError::NotWhole);
    }
    match parts.scaled::<N>(0, max_digits) {
        Some((_, true)) => Err(NumberError::NotWhole),
        Some((value, false)) => Ok((parts, value)),
        None => Err(NumberError::Range),
    }
}

/// A decimal of `precision` digits as an integer in units of 10^-`scale`; digits beyond are cut off.
pub(crate) fn parse_decimal(text: &[u8], precision: u8, scale: u8) -> Result<I256, NumberError> {
    let parts = Parts::parse(text).ok_or(NumberError::Syntax)?;
    let max_digits = usize::from(precision);
    let magnitude = if precision <= 38 {
        parts
            .scaled::<u128>(i64::from(scale), max_digits)
            .map(|(value, _)| U256::from(value))
    } else {
        parts
            .scaled::<U256>(i64::from(scale), max_digits)
            .map(|(value, _)| value)
    };
    let magnitude = magnitude.ok_or(NumberError::Range)?.as_i256();
    Ok(if parts.negative { -magnitude } else { magnitude })
}

/// A float. Infinity and NaN are taken by name; a number that is too large for the type is not infinity.
pub(crate) fn parse_f64(text: &[u8]) -> Result<f64, NumberError> {
    let value: f64 = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(NumberError::Syntax)?;
    finite_or_named(value.is_infinite(), text).map(|()| value)
}

/// As [`parse_f64`], rounded once.
pub(crate) fn parse_f32(text: &[u8]) -> Result<f32, NumberError> {
    let value: f32 = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(NumberError::Syntax)?;
    finite_or_named(value.is_infinite(), text).map(|()| value)
}

fn finite_or_named(infinite: bool, text: &[u8]) -> Result<(), NumberError> {
    if infinite && text.iter().any(u8::is_ascii_digit) {
        Err(NumberError::Range)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;

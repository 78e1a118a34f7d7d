//! From texts and numbers to dates, date-times and times of day.
//!
//! What cannot be represented is refused, never moved to the nearest date that can.

use super::best_effort::{self, Instant, Style};
use crate::batch::block::zone::{Zone, days_from_civil};

/// Days since 1970 that `Date` holds: 1970-01-01 to 2149-06-06.
pub(crate) const DATE_DAYS: std::ops::RangeInclusive<i64> = 0..=65_535;
/// Days since 1970 that `Date32` holds: 1900-01-01 to 2299-12-31.
pub(crate) const DATE32_DAYS: std::ops::RangeInclusive<i64> = -25_567..=120_529;
/// Seconds since 1970 that `DateTime` holds: to 2106-02-07 06:28:15.
pub(crate) const DATE_TIME_SECONDS: std::ops::RangeInclusive<i64> = 0..=4_294_967_295;
/// Seconds since 1970 of the instants that `DateTime64` takes: years 1900 to 2299, what ClickHouse documents.
pub(crate) const DATE_TIME64_SECONDS: std::ops::RangeInclusive<i64> = -2_208_988_800..=10_413_791_999;
/// Seconds that `Time` and `Time64` hold, either way: 999:59:59.
pub(crate) const TIME_SECONDS: i64 = 3_599_999;

/// 10^precision: ticks per second.
pub(crate) fn ticks_per_second(precision: u8) -> i64 {
    10i64.pow(u32::from(precision.min(9)))
}

/// Days since 1970 of `YYYY-MM-DD` with any punctuation between, one or two digits for month and day, or of `YYYYMMDD`.
pub(crate) fn parse_date(text: &[u8]) -> Option<i64> {
    let number = |digits: &[u8]| -> Option<i64> {
        let value = digits.iter().try_fold(0, |value, d| {
            Some(value * 10 + i64::from(d.is_ascii_digit().then(|| d - b'0')?))
        });
        value.filter(|_| !digits.is_empty())
    };
    let year = number(text.get(..4)?)?;
    let rest = &text[4..];
    let (month, day) = if rest.len() == 4 && rest.iter().all(u8::is_ascii_digit) {
        rest.split_at(2)
    } else {
        let punctuation =
            |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_punctuation() && !matches!(b, b'"' | b'\\'));
        let digits = |from: &[u8]| from.iter().take(2).take_while(|byte| byte.is_ascii_digit()).count();
        if !punctuation(rest.first()) {
            return None;
        }
        let (month, rest) = rest[1..].split_at(digits(&rest[1..]));
        if !punctuation(rest.first()) {
            return None;
        }
        (month, &rest[1..])
    };
    if day.len() > 2 {
        return None;
    }
    days_from_civil(year, number(month)? as u32, number(day)? as u32)
}

/// An instant from a text: ISO 8601 at full speed, anything else as [`best_effort`] reads it.
#[inline]
pub(crate) fn parse_instant(text: &[u8], zone: &Zone) -> Option<Instant> {
    iso_8601(text, zone).or_else(|| best_effort::parse(text, zone, Style::Any))
}

/// `YYYY-MM-DD hh:mm:ss[.fraction][Z]`, the T also being a space.
#[inline]
pub(crate) fn iso_8601(text: &[u8], zone: &Zone) -> Option<Instant> {
    let (fixed, rest) = text.split_first_chunk::<19>()?;
    let separators = [fixed[4], fixed[7], fixed[13], fixed[16]];
    if separators != *b"--::" || !matches!(fixed[10], b'T' | b' ') {
        return None;
    }
    let digit = |at: usize| fixed[at].wrapping_sub(b'0');
    let digits = [0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18];
    if digits.iter().fold(0, |most, at| most.max(digit(*at))) > 9 {
        return None;
    }
    let two = |at: usize| i64::from(digit(at)) * 10 + i64::from(digit(at + 1));
    let year = two(0) * 100 + two(2);
    let (hour, minute, second) = (two(11), two(14), two(17));
    if year == 0 || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days = days_from_civil(year, two(5) as u32, two(8) as u32)?;
    let (fraction, digits, rest) = match rest {
        [b'.', rest @ ..] => {
            let digits = rest.iter().take(10).take_while(|byte| byte.is_ascii_digit()).count();
            if digits > 9 {
                return None;
            }
            let fraction = rest[..digits]
                .iter()
                .fold(0, |value, digit| value * 10 + i64::from(digit - b'0'));
            (fraction, digits as u32, &rest[digits..])
        }
        rest => (0, 0, rest),
    };
    let second_of_day = hour * 3600 + minute * 60 + second;
    let seconds = match rest {
        b"Z" => days * 86_400 + second_of_day,
        b"" => zone.instant(days, second_of_day),
        _ => return None,
    };
    Some(Instant {
        seconds,
        fraction,
        digits,
    })
}

/// The instant in ticks; digits beyond the precision are cut off. `None` if it does not fit.
pub(crate) fn to_ticks(instant: Instant, precision: u8) -> Option<i64> {
    if !DATE_TIME64_SECONDS.contains(&instant.seconds) {
        return None;
    }
    let wanted = u32::from(precision);
    let fraction = if instant.digits > wanted {
        instant.fraction / 10i64.pow(instant.digits - wanted)
    } else {
        instant.fraction * 10i64.pow(wanted - instant.digits)
    };
    instant
        .seconds
        .checked_mul(ticks_per_second(precision))?
        .checked_add(fraction)
}

/// True if `DateTime64` holds the instant that is so many ticks after 1970.
pub(crate) fn ticks_in_range(ticks: i64, precision: u8) -> bool {
    DATE_TIME64_SECONDS.contains(&ticks.div_euclid(ticks_per_second(precision)))
}

/// A time of day or span in ticks: `[-]hhh:mm:ss`, `[-]mm:ss` or `[-]ss`, with a fraction where the precision has one.
/// The last parts have two digits, the first may have fewer, hours may have three.
pub(crate) fn parse_time(text: &[u8], precision: u8) -> Option<i64> {
    let (negative, rest) = match text {
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let (clock, fraction) = match rest.iter().position(|byte| *byte == b'.') {
        Some(point) if precision > 0 => (&rest[..point], &rest[point + 1..]),
        Some(_) => return None,
        None => (rest, &rest[..0]),
    };
    let mut seconds = 0;
    let parts = clock.split(|byte| *byte == b':').count();
    for (index, part) in clock.split(|byte| *byte == b':').enumerate() {
        let widths = match (index, parts) {
            (0, 3) => 1..=3,
            (0, 1 | 2) => 1..=2,
            (1 | 2, 2 | 3) => 2..=2,
            _ => return None,
        };
        if !widths.contains(&part.len()) || !part.iter().all(u8::is_ascii_digit) {
            return None;
        }
        seconds = seconds * 60 + part.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0'));
    }
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut ticks = seconds;
    for place in 0..usize::from(precision) {
        ticks = ticks * 10 + fraction.get(place).map_or(0, |digit| i64::from(digit - b'0'));
    }
    Some(if negative { -ticks } else { ticks })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dates() {
        for text in ["2024-02-29", "2024-2-29", "20240229", "2024/02/29", "2024.02.29"] {
            assert_eq!(parse_date(text.as_bytes()), Some(19_782), "{text}");
        }
        for text in [
            "",
            "2023-02-29",
            "2024-13-01",
            "0000-00-00",
            "24-01-01",
            "2024-02-29 ",
            " 2024-02-29",
            "2024-02-29T00:00:00",
            "2024",
        ] {
            assert_eq!(parse_date(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse_date(b"2149-06-06"), Some(*DATE_DAYS.end()));
        assert_eq!(parse_date(b"1900-01-01"), Some(*DATE32_DAYS.start()));
        assert_eq!(parse_date(b"2299-12-31"), Some(*DATE32_DAYS.end()));
    }

    #[test]
    fn times() {
        let time = |text: &str| parse_time(text.as_bytes(), 0);
        assert_eq!(time("10:11:12"), Some(36_672));
        assert_eq!(time("-999:59:59"), Some(-TIME_SECONDS));
        assert_eq!(time("2:33"), Some(153));
        assert_eq!(time("7"), Some(7));
        for text in [
            "",
            "-",
            "1000:00:00",
            "1:2:3",
            "100",
            "10:11:12.5",
            "a",
            "1:11:11:11",
            "é:11:11",
        ] {
            assert_eq!(time(text), None, "{text}");
        }
        assert_eq!(parse_time(b"-10:11:12.5", 3), Some(-36_672_500));
        assert_eq!(parse_time(b"10:11:12.123456789", 3), Some(36_672_123));
    }

    #[test]
    fn instants_become_ticks_or_nothing() {
        let ticks =
            |text: &str, precision| parse_instant(text.as_bytes(), &Zone::Utc).and_then(|i| to_ticks(i, precision));
        assert_eq!(ticks("2024-02-29 10:11:12.3456", 3), Some(1_709_201_472_345));
        assert_eq!(ticks("2024-02-29 10:11:12.3", 6), Some(1_709_201_472_300_000));
        assert_eq!(ticks("1969-12-31 23:59:59.5", 3), Some(-500));
        assert_eq!(ticks("2299-12-31 23:59:59", 9), None);
        assert_eq!(ticks("2300-01-01 00:00:00", 3), None);
    }

    proptest! {
        /// The fast reading and the general one agree wherever the fast one has an opinion.
        #[test]
        fn fast_and_general_agree(
            date in 1900i64..2300, month in 1u32..14, day in 1u32..33, hour in 0u32..26, minute in 0u32..62, second in 0u32..62,
            separator in "[T ]", tail in "(\\.[0-9]{0,11})?Z?",
        ) {
            let text = format!("{date:04}-{month:02}-{day:02}{separator}{hour:02}:{minute:02}:{second:02}{tail}");
            if let Some(fast) = iso_8601(text.as_bytes(), &Zone::Utc) {
                let general = best_effort::parse(text.as_bytes(), &Zone::Utc, Style::Any).map(|i| to_ticks(i, 9));
                prop_assert_eq!(Some(to_ticks(fast, 9)), general, "{}", text);
            }
        }
    }
}

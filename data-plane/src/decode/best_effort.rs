//! Reads a date and time in any of the many ways people write them, with ClickHouse's `best_effort` rules, which are
//! the default of its JSON input.
//!
//! A text without a year is refused: ClickHouse would complete it from today's date, and a record that is read again
//! tomorrow must be the same row.

use crate::batch::block::zone::{Zone, days_from_civil};

/// An instant as read: whole seconds since 1970 and the digits after the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instant {
    pub(crate) seconds: i64,
    /// The digits after the point as a number, of which there are `digits`, at most 18.
    pub(crate) fraction: i64,
    pub(crate) digits: u32,
}

/// Most digits that are looked at in one run.
const RUN: usize = 19;
/// Most digits of a fraction that are kept; the rest is cut off.
const FRACTION_DIGITS: usize = 18;

/// What was read so far; zero means not yet.
#[derive(Default)]
struct Reading {
    strict: bool,
    year: i64,
    month: u32,
    day: u32,
    hour: i64,
    minute: i64,
    second: i64,
    has_time: bool,
    fraction: Option<(i64, u32)>,
    /// Seconds east of Greenwich.
    offset: Option<i64>,
    is_am: bool,
    is_pm: bool,
    comma: bool,
}

/// How much is taken for a date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Anything that can be one: what a date-time column does.
    Any,
    /// Only what is meant as one: year, month and day are there, with separators. This decides whether a text of
    /// unknown type is a date-time.
    Strict,
}

/// Progress after a run of digits or a word.
enum Step {
    Go,
    Stop,
    Done(Instant),
}

struct Input<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn run(&mut self, most: usize, wanted: fn(&u8) -> bool) -> &'a [u8] {
        let rest = &self.text[self.at..];
        let length = rest.iter().take(most).take_while(|byte| wanted(byte)).count();
        self.at += length;
        &rest[..length]
    }

    fn digits(&mut self) -> &'a [u8] {
        self.run(RUN, u8::is_ascii_digit)
    }

    fn letters(&mut self, most: usize) -> &'a [u8] {
        self.run(most, u8::is_ascii_alphabetic)
    }

    /// One or two digits.
    fn short(&mut self) -> Option<i64> {
        let digits = self.digits();
        (1..=2).contains(&digits.len()).then(|| value(digits))
    }
}

fn value(digits: &[u8]) -> i64 {
    digits
        .iter()
        .fold(0, |value, digit| value * 10 + i64::from(digit - b'0'))
}

/// Reads the whole text. `zone` is that of a text without an offset.
pub(crate) fn parse(text: &[u8], zone: &Zone, style: Style) -> Option<Instant> {
    let mut input = Input { text, at: 0 };
    let mut reading = Reading {
        strict: style == Style::Strict,
        ..Reading::default()
    };
    while input.peek().is_some() {
        if ((reading.year != 0) != reading.has_time) && input.eat(b',') {
            reading.comma = true;
            if input.peek().is_none() {
                break;
            }
        }
        let digits = if reading.year == 0 || !reading.has_time {
            input.digits()
        } else {
            &[]
        };
        let step = if digits.is_empty() {
            reading.sign_or_word(&mut input)?
        } else {
            reading.number(digits, &mut input)?
        };
        match step {
            Step::Go => {}
            Step::Stop => break,
            Step::Done(instant) => return (input.at == text.len()).then_some(instant),
        }
    }
    if input.at < text.len() {
        return None;
    }
    reading.instant(zone)
}

impl Reading {
    fn number(&mut self, digits: &[u8], input: &mut Input<'_>) -> Option<Step> {
        let nothing_yet = self.year == 0 && !self.has_time;
        let no_year = self.year == 0;
        match digits.len() {
            6.. if self.strict => None,
            // Milliseconds or seconds since 1970.
            13 if nothing_yet => Some(Step::Done(Instant {
                seconds: value(&digits[..10]),
                fraction: value(&digits[10..]),
                digits: 3,
            })),
            9 | 10 if nothing_yet => {
                let (fraction, count) = if input.eat(b'.') {
                    fraction(input.digits())
                } else {
                    (0, 0)
                };
                Some(Step::Done(Instant {
                    seconds: value(digits),
                    fraction,
                    digits: count,
                }))
            }
            14 if nothing_yet => {
                self.set_date(&digits[..8]);
                self.set_time(&digits[8..]);
                Some(Step::Go)
            }
            8 if no_year => {
                self.set_date(digits);
                Some(Step::Go)
            }
            6 if no_year && self.month == 0 => {
                self.year = value(&digits[..4]);
                self.month = value(&digits[4..]) as u32;
                Some(Step::Go)
            }
            6 if !self.has_time => {
                self.set_time(digits);
                Some(Step::Go)
            }
            4 if no_year => self.after_year(digits, input),
            1 | 2 => self.after_short(value(digits), input),
            _ => None,
        }
    }

    fn set_date(&mut self, digits: &[u8]) {
        self.year = value(&digits[..4]);
        self.month = value(&digits[4..6]) as u32;
        self.day = value(&digits[6..8]) as u32;
    }

    fn set_time(&mut self, digits: &[u8]) {
        self.hour = value(&digits[..2]);
        self.minute = value(&digits[2..4]);
        self.second = value(&digits[4..6]);
        self.has_time = true;
    }

    /// `YYYY`, `YYYY-MM`, `YYYY-MM-DD`, with any delimiter, the same in both places.
    fn after_year(&mut self, digits: &[u8], input: &mut Input<'_>) -> Option<Step> {
        self.year = value(digits);
        let Some(delimiter) = input.peek() else {
            return Some(Step::Go);
        };
        if delimiter < 0x20 || matches!(delimiter, b',' | b';' | b'\'' | b'"') {
            return Some(Step::Stop);
        }
        if self.month != 0 {
            return Some(Step::Go);
        }
        if self.strict && !matches!(delimiter, b'-' | b'/' | b':') {
            return None;
        }
        input.at += 1;
        let month = input.digits();
        match month.len() {
            1 | 2 => self.month = value(month) as u32,
            // What follows a space may be anything else; its digits are gone, as in ClickHouse.
            _ if delimiter == b' ' => return Some(Step::Go),
            _ => return None,
        }
        if self.day == 0 && input.eat(delimiter) {
            let day = input.digits();
            match day.len() {
                1 | 2 => self.day = value(day) as u32,
                _ if delimiter == b' ' => return Some(Step::Go),
                _ => return None,
            }
        }
        Some(Step::Go)
    }

    /// One or two digits: an hour, or a day in front of a month, or a day or hour on its own.
    fn after_short(&mut self, number: i64, input: &mut Input<'_>) -> Option<Step> {
        if input.eat(b':') {
            if self.has_time {
                return None;
            }
            self.hour = number;
            self.has_time = true;
            self.minute = input.short()?;
            if input.eat(b':') {
                self.second = input.short()?;
            }
        } else if input.eat(b',') {
            if self.month != 0 && self.day == 0 {
                self.day = number as u32;
            }
        } else if self.eat_date_delimiter(input) {
            self.day_first(number, input)?;
        } else if self.day != 0 {
            if self.strict && self.hour != 0 {
                return None;
            }
            self.hour = number;
        } else {
            self.day = number as u32;
        }
        Some(Step::Go)
    }

    fn eat_date_delimiter(&self, input: &mut Input<'_>) -> bool {
        input.eat(b'/') || input.eat(b'-') || (!self.strict && input.eat(b'.'))
    }

    /// `DD/MM/YYYY` and its relatives, from after the first delimiter. A month above 12 is a day.
    fn day_first(&mut self, day: i64, input: &mut Input<'_>) -> Option<()> {
        if self.day != 0 || self.month != 0 {
            return None;
        }
        self.day = day as u32;
        let month = input.digits();
        match month.len() {
            1 | 2 => self.month = value(month) as u32,
            0 => {
                let word = input.letters(WORD);
                self.month = month_of(word)?;
                if !is_known_word(word) || input.peek().is_some_and(|byte| byte.is_ascii_alphabetic()) {
                    return None;
                }
            }
            _ => return None,
        }
        if self.month > 12 {
            std::mem::swap(&mut self.month, &mut self.day);
        }
        if self.eat_date_delimiter(input) {
            if self.year != 0 {
                return None;
            }
            let year = input.digits();
            self.year = match (year.len(), value(year)) {
                (4, year) => year,
                (2, year) if year >= 70 => 1900 + year,
                (2, year) => 2000 + year,
                _ => return None,
            };
        }
        Some(())
    }

    fn sign_or_word(&mut self, input: &mut Input<'_>) -> Option<Step> {
        match input.peek()? {
            b' ' => input.at += 1,
            b'T' if self.year != 0 && !self.has_time => input.at += 1,
            b'Z' => {
                input.at += 1;
                self.offset.get_or_insert(0);
            }
            b'.' => {
                if !self.has_time || self.fraction.is_some() {
                    return None;
                }
                input.at += 1;
                self.fraction = Some(fraction(input.digits()));
            }
            sign @ (b'+' | b'-') => {
                input.at += 1;
                self.offset_or_time(sign == b'-', input)?;
            }
            _ => return self.word(input),
        }
        Some(Step::Go)
    }

    fn offset_or_time(&mut self, negative: bool, input: &mut Input<'_>) -> Option<()> {
        let digits = input.digits();
        if digits.len() == 6 && !self.has_time && self.year != 0 && self.month != 0 && self.day != 0 {
            self.set_time(digits);
            return Some(());
        }
        let (hours, mut minutes) = match digits.len() {
            4 => (value(&digits[..2]), value(&digits[2..])),
            3 => (value(&digits[..1]), value(&digits[1..])),
            1 | 2 => (value(digits), 0),
            _ => return None,
        };
        if digits.len() < 3 && input.eat(b':') {
            minutes = input.short()?;
        }
        let east = hours * 3600 + minutes * 60;
        self.offset = Some(if negative { -east } else { east });
        Some(())
    }

    /// `AM`, `PM`, a month, a day of the week or a zone.
    fn word(&mut self, input: &mut Input<'_>) -> Option<Step> {
        let word = input.letters(WORD);
        if input.peek().is_some_and(|byte| byte.is_ascii_alphabetic()) {
            return None;
        }
        match word.len() {
            0 => return Some(Step::Stop),
            2 if word.eq_ignore_ascii_case(b"am") => self.is_am = true,
            2 if word.eq_ignore_ascii_case(b"pm") => self.is_pm = true,
            1 | 2 => return None,
            _ if !is_known_word(word) => return None,
            _ => {
                if let Some(month) = month_of(word) {
                    self.month = month;
                } else if let Some((_, hours)) = ZONES.iter().find(|(name, _)| word.eq_ignore_ascii_case(name)) {
                    let known = self.offset.unwrap_or(0) % 3600;
                    self.offset = Some(if *hours == 0 {
                        self.offset.unwrap_or(0)
                    } else {
                        hours * 3600 + known
                    });
                } else {
                    input.eat(b',');
                }
            }
        }
        Some(Step::Go)
    }

    fn instant(mut self, zone: &Zone) -> Option<Instant> {
        let incomplete = !self.has_time || self.year == 0 || self.month == 0 || self.day == 0;
        if self.year == 0 || (self.comma && incomplete) || (self.strict && (self.month == 0 || self.day == 0)) {
            return None;
        }
        let days = days_from_civil(self.year, self.month.max(1), self.day.max(1))?;
        if self.is_am && self.hour == 12 {
            self.hour = 0;
        }
        if self.is_pm && self.hour < 12 {
            self.hour += 12;
        }
        let second_of_day = self.hour * 3600 + self.minute * 60 + self.second;
        let seconds = match self.offset {
            Some(offset) => Zone::Utc.instant(days, second_of_day) - offset,
            None => zone.instant(days, second_of_day),
        };
        let (fraction, digits) = self.fraction.unwrap_or_default();
        Some(Instant {
            seconds,
            fraction,
            digits,
        })
    }
}

/// The digits after a point, as a number and their count.
fn fraction(digits: &[u8]) -> (i64, u32) {
    let kept = &digits[..digits.len().min(FRACTION_DIGITS)];
    (value(kept), kept.len() as u32)
}

/// Longest word that means something: `September`, `Wednesday`.
const WORD: usize = 9;

const MONTHS: [&[u8]; 12] = [
    b"January",
    b"February",
    b"March",
    b"April",
    b"May",
    b"June",
    b"July",
    b"August",
    b"September",
    b"October",
    b"November",
    b"December",
];

const WEEKDAYS: [&[u8]; 7] = [
    b"Monday",
    b"Tuesday",
    b"Wednesday",
    b"Thursday",
    b"Friday",
    b"Saturday",
    b"Sunday",
];

/// Zones by name and their hours east of Greenwich: the ones that ClickHouse knows.
const ZONES: [(&[u8], i64); 4] = [(b"UTC", 0), (b"GMT", 0), (b"MSK", 3), (b"MSD", 4)];

/// The month that starts with these three letters.
fn month_of(word: &[u8]) -> Option<u32> {
    let abbreviated = word.get(..3)?;
    let index = MONTHS
        .iter()
        .position(|month| month[..3].eq_ignore_ascii_case(abbreviated))?;
    Some(index as u32 + 1)
}

/// A month or day of the week, in full or as three letters, or a zone.
fn is_known_word(word: &[u8]) -> bool {
    let names = MONTHS.iter().chain(&WEEKDAYS);
    let known =
        |name: &&&[u8]| word.eq_ignore_ascii_case(name) || (word.len() == 3 && word.eq_ignore_ascii_case(&name[..3]));
    names.clone().any(|name| known(&name)) || ZONES.iter().any(|(name, _)| word.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests;

//! A reader of strict JSON (RFC 8259) over the record's own bytes.
//!
//! It hands out tokens as slices of the record and never copies or changes it, so that numbers keep every digit, the
//! text of a nested value is at hand, and a value can be read again as another type. It does not recurse: skipping a
//! value costs no stack, whatever its depth.
//!
//! Invariant: the bytes are valid UTF-8 (checked once, before). A token that was handed out is valid JSON; nothing is
//! skipped unchecked.

use std::borrow::Cow;

use super::{
    keys::{Pattern, ShortKeys},
    lanes::{first_special, leading_digits},
    reject::{Attempt, Fail, RejectionKind},
};
use crate::short::Short;

/// Deepest nesting of arrays and objects in a record, the record itself being level 1. One bit of a `u128` each.
pub const MAX_DEPTH: u32 = 128;

/// Where we are in a record.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    depth: u32,
    /// Inside a `Variant` or `Dynamic` a value takes the alternative that ClickHouse would choose, so the wider
    /// spellings that a plain column accepts are off.
    exact: bool,
}

/// A JSON string between its quotes.
#[derive(Clone, Copy)]
pub(crate) struct Text<'a> {
    /// The record from the text on: what follows it may be copied along with it, which is faster than counting.
    from: &'a [u8],
    /// Length of the text in it, escapes and all.
    end: usize,
    /// Length after the escapes are resolved; equal to the raw length if there are none.
    length: usize,
}

/// A JSON number as written.
#[derive(Clone, Copy)]
pub(crate) struct Number<'a> {
    pub(crate) text: &'a [u8],
    /// True if there is neither a fraction nor an exponent.
    pub(crate) is_integer: bool,
}

/// A number in plain digits: ±`magnitude` × 10^-`scale`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlainDecimal {
    pub(crate) negative: bool,
    /// Below 10^18.
    pub(crate) magnitude: u64,
    /// Digits after the point: at most 17.
    pub(crate) scale: usize,
}

/// Most digits of a number that is read on the way: it fits 64 bits.
const PLAIN_DIGITS: usize = 18;

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor {
            bytes,
            position: 0,
            depth: 0,
            exact: false,
        }
    }

    /// Behind the last byte.
    pub(super) fn at_end(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor {
            position: bytes.len(),
            ..Cursor::new(bytes)
        }
    }

    pub(crate) fn position(&self) -> usize {
        self.position
    }

    /// Goes back (or forward) to a place where a value starts, to read it again.
    pub(crate) fn seek(&mut self, position: usize) {
        self.position = position;
    }

    /// Goes to where another document starts, whatever became of the one before.
    pub(super) fn restart(&mut self, position: usize) {
        self.position = position;
        self.depth = 0;
        self.exact = false;
    }

    /// What stands between a place and the cursor.
    pub(super) fn since(&self, start: usize) -> &'a [u8] {
        self.bytes.get(start..self.position).unwrap_or_default()
    }

    pub(crate) fn depth(&self) -> u32 {
        self.depth
    }

    pub(crate) fn set_depth(&mut self, depth: u32) {
        self.depth = depth;
    }

    pub(crate) fn is_exact(&self) -> bool {
        self.exact
    }

    /// Switches the wider spellings off (or back) and says how it was.
    pub(crate) fn set_exact(&mut self, exact: bool) -> bool {
        std::mem::replace(&mut self.exact, exact)
    }

    #[inline]
    pub(crate) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.position).copied()
    }

    #[inline(always)]
    pub(crate) fn skip_space(&mut self) {
        // Most records have none.
        if let Some(0..=b' ') = self.peek() {
            self.skip_more_space();
        }
    }

    #[inline(never)]
    fn skip_more_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.position += 1;
        }
    }

    /// True, and past it, if the next byte is this one.
    #[inline]
    pub(crate) fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.position += usize::from(found);
        found
    }

    /// Enters an array or object: past its bracket, one level deeper, at its first item or closing bracket.
    #[inline]
    pub(crate) fn enter(&mut self) -> Attempt<()> {
        if self.depth >= MAX_DEPTH {
            return Err(self.too_deep());
        }
        self.depth += 1;
        self.position += 1;
        self.skip_space();
        Ok(())
    }

    /// After an item of an array or object: true if another one follows, false if `close` was there and we left.
    #[inline]
    pub(crate) fn next_item(&mut self, close: u8) -> Attempt<bool> {
        self.skip_space();
        match self.peek() {
            Some(b',') => {
                self.position += 1;
                self.skip_space();
                Ok(true)
            }
            Some(b) if b == close => {
                self.leave();
                Ok(false)
            }
            _ => Err(self.expected(if close == b'}' {
                "expected `,` or `}`"
            } else {
                "expected `,` or `]`"
            })),
        }
    }

    /// Past a closing bracket.
    #[inline]
    pub(crate) fn leave(&mut self) {
        self.position += 1;
        self.depth -= 1;
    }

    /// An object's key, up to the start of its value.
    #[inline]
    pub(crate) fn key(&mut self) -> Attempt<Text<'a>> {
        if self.peek() != Some(b'"') {
            return Err(self.expected("expected a key in double quotes"));
        }
        let key = self.string()?;
        self.after_key()?;
        Ok(key)
    }

    /// From the end of a key to the start of its value.
    #[inline]
    pub(crate) fn after_key(&mut self) -> Attempt<()> {
        self.skip_space();
        if !self.eat(b':') {
            return Err(self.expected("expected `:` after the key"));
        }
        self.skip_space();
        Ok(())
    }

    /// If this key stands at the cursor, goes past it and its colon, to the start of the value.
    #[inline(always)]
    pub(super) fn eat_key(&mut self, key: &Pattern) -> bool {
        let length = key.of_text(self.rest());
        if length > 0 {
            self.position += length;
            self.skip_space();
        }
        length > 0
    }

    #[inline(always)]
    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.position..).unwrap_or_default()
    }

    /// If a key of at most 15 bytes without escapes stands at the cursor, its colon after it, and it is one of these, goes past
    /// both, to the start of the value.
    #[inline(always)]
    pub(super) fn short_key(&mut self, keys: &ShortKeys) -> Option<u32> {
        let (quote, rest) = self.rest().split_first()?;
        let wide = rest.first_chunk::<32>()?;
        let length = first_special(wide);
        if *quote != b'"' || wide.get(length..length + 2)? != b"\":" {
            return None;
        }
        let key = keys.find(Short::of(length, wide.first_chunk()?)?)?;
        self.position += length + 3;
        self.skip_space();
        Some(key)
    }

    /// True, and past the comma, if another key follows without any space.
    #[inline(always)]
    pub(super) fn next_key_follows(&mut self) -> bool {
        let follows = self.rest().first_chunk() == Some(b",\"");
        self.position += usize::from(follows);
        follows
    }

    /// The string at the cursor, which stands on its opening quote.
    #[inline(always)]
    pub(crate) fn string(&mut self) -> Attempt<Text<'a>> {
        let from = self.bytes.get(self.position + 1..).unwrap_or_default();
        let end = find_special(from);
        if from.get(end) == Some(&b'"') {
            self.position += end + 2;
            return Ok(Text { from, end, length: end });
        }
        let start = self.position + 1;
        self.string_with_escapes(start, start + end)
    }

    #[inline(never)]
    fn string_with_escapes(&mut self, start: usize, mut at: usize) -> Attempt<Text<'a>> {
        let mut saved = 0;
        loop {
            match self.bytes.get(at) {
                Some(b'"') => {
                    self.position = at + 1;
                    return Ok(Text {
                        from: &self.bytes[start..],
                        end: at - start,
                        length: at - start - saved,
                    });
                }
                Some(b'\\') => {
                    let (_, width, escaped) = unescape_one(&self.bytes[at..])
                        .ok_or_else(|| Fail::malformed(at, "a string holds an invalid escape sequence"))?;
                    saved += escaped - width;
                    at += escaped;
                }
                Some(_) => return Err(Fail::malformed(at, "a string holds a control character")),
                None => return Err(Fail::malformed(start - 1, "a string is not closed")),
            }
            at += find_special(&self.bytes[at..]);
        }
    }

    /// The whole number at the cursor, if it is written in at most 18 plain digits; else it stays there. What ends it is looked
    /// at by whoever reads on.
    #[inline(always)]
    pub(crate) fn plain_integer(&mut self) -> Option<i64> {
        let (negative, digits) = signed(self.rest());
        let (value, rest) = plain_digits(digits, 0);
        let count = digits.len() - rest.len();
        let leading_zero = count > 1 && digits[0] == b'0';
        if count == 0 || count > PLAIN_DIGITS || leading_zero || !ends_plain(rest) {
            return None;
        }
        self.position += usize::from(negative) + count;
        let value = value as i64;
        Some(if negative { -value } else { value })
    }

    /// The number at the cursor, if it is written in at most 18 plain digits with or without a point among them; else it
    /// stays there.
    #[inline(always)]
    pub(crate) fn plain_decimal(&mut self) -> Option<PlainDecimal> {
        let text = self.rest();
        let (number, rest) = plain_decimal(text)?;
        if !ends_plain(rest) {
            return None;
        }
        self.position += text.len() - rest.len();
        Some(number)
    }

    /// The same between quotes.
    #[inline(always)]
    pub(crate) fn quoted_plain_decimal(&mut self) -> Option<PlainDecimal> {
        let text = self.rest();
        let (number, rest) = plain_decimal(text.get(1..)?)?;
        if rest.first() != Some(&b'"') {
            return None;
        }
        self.position += text.len() - rest.len() + 1;
        Some(number)
    }

    /// The number at the cursor.
    pub(crate) fn number(&mut self) -> Attempt<Number<'a>> {
        let start = self.position;
        let bytes = self.bytes;
        let mut at = start;
        if bytes.get(at) == Some(&b'-') {
            at += 1;
        }
        match bytes.get(at) {
            Some(b'0') => at += 1,
            Some(b'1'..=b'9') => at = skip_digits(bytes, at),
            _ => return Err(self.expected("expected a value")),
        }
        let integer_end = at;
        if bytes.get(at) == Some(&b'.') {
            let digits = at + 1;
            at = skip_digits(bytes, digits);
            if at == digits {
                return Err(Fail::malformed(at, "a number has no digits after its point"));
            }
        }
        if matches!(bytes.get(at), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
            let digits = at + 1 + sign;
            at = skip_digits(bytes, digits);
            if at == digits {
                return Err(Fail::malformed(at, "a number has no digits in its exponent"));
            }
        }
        if matches!(bytes.get(at), Some(b) if b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-' | b'_')) {
            return Err(Fail::malformed(start, "a number is not written as JSON wants it"));
        }
        self.position = at;
        Ok(Number {
            text: &bytes[start..at],
            is_integer: at == integer_end,
        })
    }

    /// The literal `true`, `false` or `null`, of which the first letter was seen.
    #[inline]
    pub(crate) fn literal(&mut self, word: &'static str) -> Attempt<()> {
        let rest = &self.bytes[self.position..];
        let next = rest.get(word.len());
        if rest.starts_with(word.as_bytes()) && !matches!(next, Some(b) if b.is_ascii_alphanumeric()) {
            self.position += word.len();
            return Ok(());
        }
        Err(self.expected("expected a value"))
    }

    /// Past the value at the cursor, whatever it is; checks that it is JSON. Returns its text.
    pub(crate) fn skip_value(&mut self) -> Attempt<&'a [u8]> {
        let start = self.position;
        let outer = self.depth;
        // One bit per open level: 1 for an object.
        let mut objects: u128 = 0;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.string()?;
                }
                Some(b't') => self.literal("true")?,
                Some(b'f') => self.literal("false")?,
                Some(b'n') => self.literal("null")?,
                Some(open @ (b'{' | b'[')) => {
                    self.enter()?;
                    let is_object = open == b'{';
                    let level = 1u128 << (self.depth - 1);
                    objects = if is_object { objects | level } else { objects & !level };
                    if self.peek() == Some(open + 2) {
                        self.leave();
                    } else {
                        if is_object {
                            self.key()?;
                        }
                        continue;
                    }
                }
                _ => {
                    self.number()?;
                }
            }
            // A value ended: close what ends with it, then go on to the next one.
            loop {
                if self.depth == outer {
                    return Ok(&self.bytes[start..self.position]);
                }
                let is_object = objects >> (self.depth - 1) & 1 == 1;
                if self.next_item(if is_object { b'}' } else { b']' })? {
                    if is_object {
                        self.key()?;
                    }
                    break;
                }
            }
        }
    }

    #[cold]
    pub(crate) fn expected(&self, what: &'static str) -> Fail {
        let found = match self
            .bytes
            .get(self.position..)
            .and_then(|rest| rest.utf8_chunks().next())
        {
            Some(chunk) if !chunk.valid().is_empty() => {
                let c = chunk.valid().chars().next().unwrap_or_default();
                if c.is_control() {
                    format!("a control character (U+{:04X})", u32::from(c))
                } else {
                    format!("`{c}`")
                }
            }
            _ => "the end of the record".to_owned(),
        };
        Fail::malformed(self.position, format!("{what}, found {found}"))
    }

    #[cold]
    fn too_deep(&self) -> Fail {
        let what = format!("arrays and objects are nested deeper than {MAX_DEPTH} levels");
        Fail::other(RejectionKind::TooDeep, self.position, what)
    }
}

impl<'a> Text<'a> {
    pub(crate) const EMPTY: Text<'static> = Text {
        from: b"",
        end: 0,
        length: 0,
    };

    /// Length in bytes after the escapes are resolved.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// The text as it stands in the record, escapes and all.
    #[inline(always)]
    pub(crate) fn raw(&self) -> &'a [u8] {
        &self.from[..self.end]
    }

    /// The length of the text as it stands in the record, and `WIDTH` bytes of the record from its start on; if it is not longer
    /// than that and there are so many.
    #[inline(always)]
    pub(crate) fn raw_and_more<const WIDTH: usize>(&self) -> Option<(usize, &'a [u8; WIDTH])> {
        let wide = self.from.first_chunk()?;
        (self.end <= WIDTH).then_some((self.end, wide))
    }

    #[inline(always)]
    pub(crate) fn has_escapes(&self) -> bool {
        self.length != self.end
    }

    /// The text with its escapes resolved; copied only if it has any.
    #[inline]
    pub(crate) fn resolve(&self) -> Cow<'a, [u8]> {
        if !self.has_escapes() {
            return Cow::Borrowed(self.raw());
        }
        let mut resolved = Vec::with_capacity(self.length);
        self.append_to(&mut resolved);
        Cow::Owned(resolved)
    }

    /// Appends the text with its escapes resolved.
    #[inline]
    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        if !self.has_escapes() {
            out.extend_from_slice(self.raw());
            return;
        }
        let mut rest = self.raw();
        while let Some(backslash) = memchr::memchr(b'\\', rest) {
            out.extend_from_slice(&rest[..backslash]);
            // The scan has already refused what does not parse here.
            let Some((c, _, escaped)) = unescape_one(&rest[backslash..]) else {
                return;
            };
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            rest = &rest[backslash + escaped..];
        }
        out.extend_from_slice(rest);
    }
}

/// The escape sequence at the start of `bytes`: its character, the character's length in UTF-8, and its own length.
/// Escapes are always longer than what they stand for. `None` if it is none; lone surrogates are none.
fn unescape_one(bytes: &[u8]) -> Option<(char, usize, usize)> {
    let simple = |c: char| Some((c, 1, 2));
    match bytes.get(1)? {
        b'"' => simple('"'),
        b'\\' => simple('\\'),
        b'/' => simple('/'),
        b'b' => simple('\u{8}'),
        b'f' => simple('\u{c}'),
        b'n' => simple('\n'),
        b'r' => simple('\r'),
        b't' => simple('\t'),
        b'u' => {
            let first = hex4(bytes.get(2..6)?)?;
            if !(0xD800..0xE000).contains(&first) {
                let c = char::from_u32(first)?;
                return Some((c, c.len_utf8(), 6));
            }
            if first >= 0xDC00 || bytes.get(6..8)? != b"\\u" {
                return None;
            }
            let second = hex4(bytes.get(8..12)?)?;
            if !(0xDC00..0xE000).contains(&second) {
                return None;
            }
            let c = char::from_u32(0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00))?;
            Some((c, c.len_utf8(), 12))
        }
        _ => None,
    }
}

fn hex4(digits: &[u8]) -> Option<u32> {
    digits
        .iter()
        .try_fold(0, |value, digit| Some(value << 4 | char::from(*digit).to_digit(16)?))
}

/// Whether there is a minus, and what follows it.
#[inline(always)]
fn signed(text: &[u8]) -> (bool, &[u8]) {
    match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    }
}

/// Goes on with a number: its value with the digits that come next, and what comes after them. The value of more digits than a
/// plain number has is no use.
#[inline(always)]
fn plain_digits(mut text: &[u8], mut value: u64) -> (u64, &[u8]) {
    const TENS: [u64; 9] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];
    while let Some(chunk) = text.first_chunk::<8>() {
        let (count, digits) = leading_digits(chunk);
        value = value.wrapping_mul(TENS[count]).wrapping_add(digits);
        text = &text[count..];
        if count < chunk.len() {
            return (value, text);
        }
    }
    plain_digits_in_tail(text, value)
}

#[inline(never)]
fn plain_digits_in_tail(mut text: &[u8], mut value: u64) -> (u64, &[u8]) {
    while let [digit @ b'0'..=b'9', rest @ ..] = text {
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        text = rest;
    }
    (value, text)
}

/// The plain number that the text begins with, and what comes after it.
#[inline(always)]
fn plain_decimal(text: &[u8]) -> Option<(PlainDecimal, &[u8])> {
    let (negative, whole) = signed(text);
    let (mut magnitude, mut rest) = plain_digits(whole, 0);
    let mut digits = whole.len() - rest.len();
    if digits == 0 || (digits > 1 && whole[0] == b'0') {
        return None;
    }
    let mut scale = 0;
    if let [b'.', fraction @ ..] = rest {
        (magnitude, rest) = plain_digits(fraction, magnitude);
        scale = fraction.len() - rest.len();
        digits += scale;
        if scale == 0 {
            return None;
        }
    }
    let number = PlainDecimal {
        negative,
        magnitude,
        scale,
    };
    (digits <= PLAIN_DIGITS).then_some((number, rest))
}

/// Whether a number ends before this text. Others are not an error yet: the number is read with more care.
#[inline(always)]
fn ends_plain(text: &[u8]) -> bool {
    matches!(text.first(), Some(b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t'))
}

#[inline]
fn skip_digits(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes.get(at), Some(b'0'..=b'9')) {
        at += 1;
    }
    at
}

/// Where the first quote, backslash or control character is; the length if there is none.
#[inline(always)]
fn find_special(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let Some((chunk, after)) = rest.split_first_chunk::<32>() {
        let found = first_special(chunk);
        if found < chunk.len() {
            return bytes.len() - rest.len() + found;
        }
        rest = after;
    }
    find_special_in_tail(bytes, rest)
}

#[inline(never)]
fn find_special_in_tail(bytes: &[u8], rest: &[u8]) -> usize {
    let found = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
    bytes.len() - rest.len() + found.unwrap_or(rest.len())
}

#[cfg(test)]
mod tests;

//! Reads an answer of GetRecords, or an event of a subscription, where it lies: one pass, payloads decoded from base64 straight into one buffer, of which
//! records are slices. The SDK's own deserialiser costs more than all the rest of a worker's reading.
//!
//! It is strict and small: it takes what Kinesis really sends, and whatever it does not know (an escape where none belongs, a
//! member twice or missing, a child shard, broken base64) it leaves to the SDK, by saying nothing. So an answer means the same
//! either way, and every error is the SDK's.

use std::borrow::Cow;

use aws_smithy_types::DateTime;
use bytes::Bytes;
use memchr::memchr2;
use millrace_common::ids::SequenceNumber;

use super::client::{Reply, millis};
use crate::source::Record;

/// Depth of values that are skipped. Kinesis nests none.
const MAX_DEPTH: usize = 16;

/// The answer in `body`, if this scan knows all that it says.
pub(super) fn scan(body: &[u8]) -> Option<Reply> {
    answer(body, b"NextShardIterator")
}

/// The same of an event of a subscription. Its iterator is the number to continue at; an event without one is the last of its shard, and
/// left to the SDK.
pub(super) fn scan_event(body: &[u8]) -> Option<Reply> {
    answer(body, b"ContinuationSequenceNumber")
        .filter(|reply| reply.next_iterator.is_some() && reply.millis_behind.is_some())
}

fn answer(body: &[u8], iterator: &[u8]) -> Option<Reply> {
    // Once for the whole body, which is faster than string by string.
    simdutf8::basic::from_utf8(body).ok()?;
    let mut scanner = Scanner { body, at: 0 };
    let mut reply = Reply::default();
    let mut seen = Seen::default();
    scanner.object(|scanner, key| {
        match key {
            b"Records" => {
                seen.first(0)?;
                reply.records = scanner.records()?;
            }
            key if key == iterator => {
                seen.first(1)?;
                let iterator = scanner.nullable(Scanner::string)?;
                reply.next_iterator = iterator.filter(|iterator| !iterator.is_empty());
            }
            b"MillisBehindLatest" => {
                seen.first(2)?;
                reply.millis_behind = scanner.nullable(Scanner::integer)?;
            }
            b"ChildShards" => {
                seen.first(3)?;
                reply.children = scanner.nullable(Scanner::empty_array)?.map(|()| Vec::new());
            }
            _ => scanner.skip(MAX_DEPTH)?,
        }
        Some(())
    })?;
    scanner.end()?;
    seen.has(0).then_some(reply)
}

/// The records of an answer of GetRecords, as a reader gets them; `None` if the SDK would have to read it.
pub fn records_of(body: &[u8]) -> Option<Vec<Record>> {
    scan(body).map(|reply| reply.records)
}

/// Which members of an object were there.
#[derive(Default)]
struct Seen(u8);

impl Seen {
    /// Notes one; nothing if it was there already.
    fn first(&mut self, member: u8) -> Option<()> {
        let bit = 1 << member;
        let first = self.0 & bit == 0;
        self.0 |= bit;
        first.then_some(())
    }

    fn has(&self, member: u8) -> bool {
        self.0 & (1 << member) != 0
    }
}

/// What is known of a record before its page is whole.
struct Head {
    arrival_millis: i64,
    /// Where its payload ends, and its key, from the record's first byte on.
    payload: usize,
    key: usize,
    /// Where it ends in the page, and the next record begins.
    end: usize,
}

struct Scanner<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.body.get(self.at) {
            self.at += 1;
        }
    }

    /// The next byte that is not space.
    fn peek(&mut self) -> Option<u8> {
        self.space();
        self.body.get(self.at).copied()
    }

    /// Takes this byte, if it comes next.
    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.space();
        self.body
            .get(self.at..)?
            .starts_with(word)
            .then(|| self.at += word.len())
    }

    /// There is nothing more.
    fn end(&mut self) -> Option<()> {
        self.peek().is_none().then_some(())
    }

    /// Members of an object: `member` is given each key and takes its value.
    fn object(&mut self, mut member: impl FnMut(&mut Self, &'a [u8]) -> Option<()>) -> Option<()> {
        self.take(b'{')?;
        if self.take(b'}').is_some() {
            return Some(());
        }
        loop {
            let key = self.plain()?;
            self.take(b':')?;
            member(self, key)?;
            if self.take(b'}').is_some() {
                return Some(());
            }
            self.take(b',')?;
        }
    }

    /// Items of an array: `item` takes each.
    fn array(&mut self, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.take(b'[')?;
        if self.take(b']').is_some() {
            return Some(());
        }
        loop {
            item(self)?;
            if self.take(b']').is_some() {
                return Some(());
            }
            self.take(b',')?;
        }
    }

    fn empty_array(&mut self) -> Option<()> {
        self.take(b'[')?;
        self.take(b']')
    }

    /// The text of a string without escapes.
    fn plain(&mut self) -> Option<&'a [u8]> {
        self.take(b'"')?;
        let rest = &self.body[self.at..];
        let length = memchr2(b'"', b'\\', rest)?;
        if rest[length] == b'\\' {
            return None;
        }
        self.at += length + 1;
        Some(&rest[..length])
    }

    fn string(&mut self) -> Option<String> {
        self.text().map(Cow::into_owned)
    }

    /// A string, escapes and all; copied only if there are any.
    fn text(&mut self) -> Option<Cow<'a, str>> {
        self.peek().filter(|byte| *byte == b'"')?;
        let from = self.at;
        if let Some(plain) = self.plain() {
            let control = plain.iter().any(|byte| *byte < 0x20);
            return (!control)
                .then(|| std::str::from_utf8(plain).ok().map(Cow::Borrowed))
                .flatten();
        }
        self.at = from + 1;
        loop {
            let rest = self.body.get(self.at..)?;
            let next = memchr2(b'"', b'\\', rest)?;
            if rest[next] == b'"' {
                self.at += next + 1;
                break;
            }
            self.at += next + 2;
        }
        serde_json::from_slice(&self.body[from..self.at]).ok().map(Cow::Owned)
    }

    /// A number as it is written.
    fn number(&mut self) -> Option<&'a str> {
        self.space();
        let rest = self.body.get(self.at..)?;
        let number = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        let length = rest.iter().position(|byte| !number(byte))?;
        self.at += length;
        // JSON's numbers are fewer than Rust's: what begins like one of those and not of these is not taken.
        let digits = rest[..length].strip_prefix(b"-").unwrap_or(&rest[..length]);
        let leads =
            digits.first()?.is_ascii_digit() && !(digits.len() > 1 && digits[0] == b'0' && digits[1].is_ascii_digit());
        let ends = digits.last()?.is_ascii_digit();
        let bare_point = digits
            .windows(2)
            .any(|pair| pair[0] == b'.' && !pair[1].is_ascii_digit());
        (leads && ends && !bare_point)
            .then(|| std::str::from_utf8(&rest[..length]).ok())
            .flatten()
    }

    fn integer(&mut self) -> Option<i64> {
        self.number()?.parse().ok()
    }

    fn nullable<T>(&mut self, value: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        if self.peek()? == b'n' {
            return self.word(b"null").map(|()| None);
        }
        value(self).map(Some)
    }

    /// A value that nobody asked for.
    fn skip(&mut self, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match self.peek()? {
            b'{' => self.object(|scanner, _| scanner.skip(depth)),
            b'[' => self.array(|scanner| scanner.skip(depth)),
            b'"' => self.string().map(|_| ()),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            _ => self.number()?.parse::<f64>().ok().map(|_| ()),
        }
    }

    fn records(&mut self) -> Option<Vec<Record>> {
        // All payloads, keys and numbers are in one buffer.
        let mut page = Vec::with_capacity((self.body.len() - self.at) / 4 * 3);
        let mut heads = Vec::new();
        self.array(|scanner| {
            heads.push(scanner.record(&mut page)?);
            Some(())
        })?;
        let page = Bytes::from(page);
        let mut from = 0;
        let record = |head: Head| {
            let bytes = page.slice(from..head.end);
            from = head.end;
            Record::in_page(head.arrival_millis, bytes, head.payload, head.key)
        };
        Some(heads.into_iter().map(record).collect())
    }

    /// A record; its payload, its key and its number are appended to `page`.
    fn record(&mut self, page: &mut Vec<u8>) -> Option<Head> {
        let mut seen = Seen::default();
        let start = page.len();
        let (mut sequence_number, mut partition_key, mut arrival_millis) = (None, None, 0);
        self.object(|scanner, key| {
            match key {
                b"SequenceNumber" => {
                    seen.first(0)?;
                    let digits = scanner.plain()?;
                    sequence_number = SequenceNumber::is_valid(digits).then_some(digits);
                }
                b"Data" => {
                    seen.first(1)?;
                    base64_simd::STANDARD.decode_append(scanner.plain()?, page).ok()?;
                }
                b"PartitionKey" => {
                    seen.first(2)?;
                    partition_key = Some(scanner.text()?);
                }
                b"ApproximateArrivalTimestamp" => {
                    seen.first(3)?;
                    let seconds = scanner
                        .number()?
                        .parse::<f64>()
                        .ok()
                        .filter(|seconds| seconds.is_finite())?;
                    // By way of the SDK's own type: the time is part of rows, which have to be the same either way.
                    arrival_millis = millis(&DateTime::from_secs_f64(seconds))?;
                }
                _ => scanner.skip(MAX_DEPTH)?,
            }
            Some(())
        })?;
        if !seen.has(1) {
            return None;
        }
        let payload = page.len() - start;
        page.extend_from_slice(partition_key?.as_bytes());
        let key = page.len() - start;
        page.extend_from_slice(sequence_number?);
        Some(Head {
            arrival_millis,
            payload,
            key,
            end: page.len(),
        })
    }
}

#[cfg(test)]
mod tests;

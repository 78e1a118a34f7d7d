//! Aggregates of the Kinesis Producer Library: magic, a protobuf message, its MD5. Its form is documented in the library's
//! `aggregation-format.md`; [`tests`](super::tests) compare this reader with one that prost makes of that schema.
//!
//! ```text
//!   F3 89 9A C2 | AggregatedRecord { 1: partition keys, 2: explicit hash keys, 3: Record { 1: key index, 2: hash key index, 3: data } } | MD5
//! ```

use md5::{Digest as _, Md5};

use super::Message;

const MAGIC: &[u8; 4] = b"\xF3\x89\x9A\xC2";
const MD5_BYTES: usize = 16;
/// Wire types of protobuf.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED32: u64 = 5;

/// Where a field's bytes are in the body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    start: usize,
    end: usize,
}

/// Why an aggregate cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damage {
    #[error("its checksum (MD5) does not fit its content")]
    Checksum,
    #[error("its protobuf message ends too early or has a field of an unknown kind")]
    Truncated,
    #[error("a message refers to a partition key that is not in it")]
    NoSuchKey,
    #[error("a message has no partition key or no data")]
    Incomplete,
    #[error("a partition key is not UTF-8")]
    Key,
}

/// What is between magic and checksum, if the record begins like an aggregate. The checksum is for [`read`].
pub(super) fn open(record: &[u8]) -> Option<&[u8]> {
    record.strip_prefix(MAGIC)
}

/// Looks at the whole aggregate, notes its partition keys and counts its messages.
///
/// # Errors
/// If any part of it cannot be read.
pub(super) fn read(body: &[u8], keys: &mut Vec<Field>) -> Result<usize, Damage> {
    let message = content(body).ok_or(Damage::Truncated)?;
    if Md5::digest(message)[..] != body[message.len()..] {
        return Err(Damage::Checksum);
    }
    keys.clear();
    let (mut count, mut fields) = (0, Fields::of(message));
    while let Some((number, field)) = fields.next()? {
        if let (1, Some(key)) = (number, field) {
            if simdutf8::basic::from_utf8(&message[key.start..key.end]).is_err() {
                return Err(Damage::Key);
            }
            keys.push(key);
        }
    }
    let mut fields = Fields::of(message);
    while let Some((number, field)) = fields.next()? {
        if let (3, Some(record)) = (number, field) {
            let (key, data) = parts(&message[record.start..record.end])?;
            let key = key.ok_or(Damage::Incomplete)?;
            if usize::try_from(key).map_or(true, |key| key >= keys.len()) {
                return Err(Damage::NoSuchKey);
            }
            data.ok_or(Damage::Incomplete)?;
            count += 1;
        }
    }
    Ok(count)
}

/// Gives the messages of an aggregate that [`read`] has found whole.
pub(super) fn messages<'a>(body: &'a [u8], keys: &[Field], mut give: impl FnMut(Message<'a>)) {
    let Some(content) = content(body) else { return };
    let mut fields = Fields::of(content);
    while let Ok(Some((number, field))) = fields.next() {
        let (3, Some(record)) = (number, field) else { continue };
        let record = &content[record.start..record.end];
        let Ok((Some(key), Some(data))) = parts(record) else {
            continue;
        };
        let key = usize::try_from(key).ok().and_then(|key| keys.get(key));
        if let Some(key) = key {
            give(Message {
                partition_key: &content[key.start..key.end],
                bytes: &record[data.start..data.end],
            });
        }
    }
}

fn content(body: &[u8]) -> Option<&[u8]> {
    body.get(..body.len().checked_sub(MD5_BYTES)?)
}

/// Index of the partition key, and the data, of a message. The last of several counts, as protobuf wants it.
fn parts(record: &[u8]) -> Result<(Option<u64>, Option<Field>), Damage> {
    let (mut key, mut data) = (None, None);
    let mut fields = Fields::of(record);
    while let Some((number, field)) = fields.next()? {
        match (number, field) {
            (1, None) => key = Some(fields.value),
            (3, Some(field)) => data = Some(field),
            _ => {}
        }
    }
    Ok((key, data))
}

/// The fields of a protobuf message, one after the other.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The last varint.
    value: u64,
}

impl<'a> Fields<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, value: 0 }
    }

    /// Number of the next field, and where its bytes are if it is length-delimited. The value of a varint is in `value`.
    fn next(&mut self) -> Result<Option<(u64, Option<Field>)>, Damage> {
        while self.at < self.bytes.len() {
            let tag = self.varint()?;
            let field = match tag & 7 {
                VARINT => {
                    self.value = self.varint()?;
                    None
                }
                LENGTH_DELIMITED => {
                    let length = usize::try_from(self.varint()?).map_err(|_| Damage::Truncated)?;
                    let start = self.at;
                    self.skip(length)?;
                    Some(Field { start, end: self.at })
                }
                FIXED64 => {
                    self.skip(8)?;
                    continue;
                }
                FIXED32 => {
                    self.skip(4)?;
                    continue;
                }
                _ => return Err(Damage::Truncated),
            };
            return Ok(Some((tag >> 3, field)));
        }
        Ok(None)
    }

    fn skip(&mut self, bytes: usize) -> Result<(), Damage> {
        let end = self.at.checked_add(bytes).filter(|end| *end <= self.bytes.len());
        self.at = end.ok_or(Damage::Truncated)?;
        Ok(())
    }

    fn varint(&mut self) -> Result<u64, Damage> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or(Damage::Truncated)?;
            self.at += 1;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Damage::Truncated)
    }
}

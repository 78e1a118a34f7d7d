//! Aggregates of the Kinesis Producer Library: magic, a protobuf message, its MD5. Its form is documented in the library's
//! `aggregation-format.md`; [`tests`](super::tests) compare this reader with one that prost makes of that schema.
//!
//! ```text
//!   F3 89 9A C2 | AggregatedRecord { 1: partition keys, 2: explicit hash keys, 3: Record { 1: key index, 2: hash key index, 3: data } } | MD5
//! ```

use md5::{Digest as _, Md5};

use super::Message;
use crate::source::{AGGREGATE_MAGIC, HashKeyRange};

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

/// Where an aggregate's keys are: partition keys, and explicit hash keys.
#[derive(Debug, Default)]
pub(super) struct Keys {
    partition: Vec<Field>,
    hash: Vec<Field>,
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
    record.strip_prefix(&AGGREGATE_MAGIC)
}

/// Looks at the whole aggregate, notes its partition keys and counts its messages.
///
/// # Errors
/// If any part of it cannot be read.
pub(super) fn read(body: &[u8], keys: &mut Keys) -> Result<usize, Damage> {
    let message = content(body).ok_or(Damage::Truncated)?;
    if Md5::digest(message)[..] != body[message.len()..] {
        return Err(Damage::Checksum);
    }
    keys.partition.clear();
    keys.hash.clear();
    let (mut count, mut fields) = (0, Fields::of(message));
    while let Some((number, field)) = fields.next()? {
        if let (1, Some(key)) = (number, field) {
            if simdutf8::basic::from_utf8(&message[key.start..key.end]).is_err() {
                return Err(Damage::Key);
            }
            keys.partition.push(key);
        } else if let (2, Some(key)) = (number, field) {
            keys.hash.push(key);
        }
    }
    let mut fields = Fields::of(message);
    while let Some((number, field)) = fields.next()? {
        if let (3, Some(record)) = (number, field) {
            let parts = parts(&message[record.start..record.end])?;
            let key = parts.key.ok_or(Damage::Incomplete)?;
            if usize::try_from(key).map_or(true, |key| key >= keys.partition.len()) {
                return Err(Damage::NoSuchKey);
            }
            parts.data.ok_or(Damage::Incomplete)?;
            count += 1;
        }
    }
    Ok(count)
}

/// Gives the messages of an aggregate that [`read`] has found whole, and the hash key of each that is not among those of the shard.
pub(super) fn messages<'a>(
    body: &'a [u8],
    keys: &Keys,
    shard: Option<HashKeyRange>,
    mut give: impl FnMut(Message<'a>, Option<u128>),
) {
    let Some(content) = content(body) else { return };
    let mut fields = Fields::of(content);
    while let Ok(Some((number, field))) = fields.next() {
        let (3, Some(record)) = (number, field) else { continue };
        let record = &content[record.start..record.end];
        let Ok(Parts {
            key: Some(key),
            hash_key,
            data: Some(data),
        }) = parts(record)
        else {
            continue;
        };
        let key = usize::try_from(key).ok().and_then(|key| keys.partition.get(key));
        if let Some(key) = key {
            let partition_key = &content[key.start..key.end];
            let explicit = || {
                let field = keys.hash.get(usize::try_from(hash_key?).ok()?)?;
                decimal(&content[field.start..field.end])
            };
            let stranger = shard.and_then(|shard| {
                let hash_key = explicit().unwrap_or_else(|| hash_of(partition_key));
                (!shard.contains(hash_key)).then_some(hash_key)
            });
            let bytes = &record[data.start..data.end];
            give(Message { partition_key, bytes }, stranger);
        }
    }
}

/// The hash key that Kinesis makes of a partition key.
pub(super) fn hash_of(partition_key: &[u8]) -> u128 {
    u128::from_be_bytes(Md5::digest(partition_key).into())
}

/// An explicit hash key, in digits. One that is none is no reason to refuse the message: the partition key decides.
fn decimal(digits: &[u8]) -> Option<u128> {
    let digits = digits.first().filter(|first| first.is_ascii_digit()).map(|_| digits)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn content(body: &[u8]) -> Option<&[u8]> {
    body.get(..body.len().checked_sub(MD5_BYTES)?)
}

/// What a message has: indexes of its partition key and its explicit hash key, and its data.
struct Parts {
    key: Option<u64>,
    hash_key: Option<u64>,
    data: Option<Field>,
}

/// The parts of a message. The last of several counts, as protobuf wants it.
fn parts(record: &[u8]) -> Result<Parts, Damage> {
    let (mut key, mut hash_key, mut data) = (None, None, None);
    let mut fields = Fields::of(record);
    while let Some((number, field)) = fields.next()? {
        match (number, field) {
            (1, None) => key = Some(fields.value),
            (2, None) => hash_key = Some(fields.value),
            (3, Some(field)) => data = Some(field),
            _ => {}
        }
    }
    Ok(Parts { key, hash_key, data })
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

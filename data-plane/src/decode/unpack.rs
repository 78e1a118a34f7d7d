//! What producers pack records into, undone: KPL aggregates, which hold many messages, and compression, of a record or of a
//! message in an aggregate. Both are recognised by their magic bytes, none of which JSON can begin with.
//!
//! ```text
//!   record --(F3 89 9A C2, MD5)--> messages --(gzip, zlib, zstd, lz4, snappy)--> bytes
//! ```
//!
//! A message of an aggregate may belong to another shard than the aggregate: its producer knew an old map of the shards. Such
//! messages are counted, and kept, dropped or refused as the pipe says.
//!
//! Invariants:
//! - An aggregate is looked at whole before its first message is given: a damaged one gives none.
//! - What a message inflates to is bounded, whatever it says of itself.

mod aggregate;
mod inflate;

use millrace_common::pipe::OutOfRangePolicy;

use super::reject::{Rejection, RejectionKind};
use crate::source::HashKeyRange;
pub(super) use inflate::MAX_INFLATED_BYTES;

/// Scratch memory that is kept for the next record.
const KEPT_BYTES: usize = 1 << 20;

/// Undoes packing, one record after the other.
#[derive(Debug, Default)]
pub(super) struct Unpacker {
    keys: aggregate::Keys,
    inflated: Vec<u8>,
}

/// A message of a record: the record itself, if it is no aggregate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    /// Its partition key, as UTF-8.
    pub(super) partition_key: &'a [u8],
    /// Its bytes.
    pub(super) bytes: &'a [u8],
}

/// How a record is unpacked.
#[derive(Debug, Clone, Copy)]
pub(super) struct How {
    /// What is no JSON may well be meant, so what only looks like a weak magic is left alone.
    pub(super) is_text: bool,
    /// The hash keys of the record's shard.
    pub(super) hash_keys: Option<HashKeyRange>,
    /// What becomes of messages whose hash key is not among them.
    pub(super) on_out_of_range: OutOfRangePolicy,
}

/// Whether the bytes may be packed. Costs a look at the first one.
#[inline(always)]
pub(super) fn may_be_packed(bytes: &[u8]) -> bool {
    matches!(bytes.first(), Some(0xF3 | 0x1F | 0x78 | 0x28 | 0x04 | 0xFF))
}

impl Unpacker {
    /// Gives each message of a record, or what is wrong with it and its bytes as they are. A record that is not packed is given
    /// as it is. Returns how many messages belong to another shard.
    pub(super) fn each(
        &mut self,
        record: Message<'_>,
        how: How,
        give: &mut dyn FnMut(Message<'_>, Option<Rejection>),
    ) -> u64 {
        let mut strangers = 0;
        let is_text = how.is_text;
        match aggregate::open(record.bytes) {
            None => self.inflate(record, is_text, give),
            Some(body) => match aggregate::read(body, &mut self.keys) {
                Err(damage) => {
                    let message = format!("the record is a damaged KPL aggregate: {damage}");
                    give(record, Some(rejection(RejectionKind::DamagedAggregate, message)));
                }
                Ok(0) => {
                    let message = "the record is a KPL aggregate without messages".to_owned();
                    give(record, Some(rejection(RejectionKind::EmptyRecord, message)));
                }
                Ok(_) => {
                    let keys = std::mem::take(&mut self.keys);
                    aggregate::messages(body, &keys, how.hash_keys, |message, stranger| {
                        strangers += u64::from(stranger.is_some());
                        match (stranger, how.on_out_of_range) {
                            (Some(_), OutOfRangePolicy::Drop) => {}
                            (Some(hash_key), OutOfRangePolicy::Reject) => {
                                let message_text = format!(
                                    "the message's hash key {hash_key} is outside the range of the shard that its aggregate is in"
                                );
                                give(message, Some(rejection(RejectionKind::OutOfHashRange, message_text)));
                            }
                            (Some(_), OutOfRangePolicy::Keep) | (None, _) => self.inflate(message, is_text, give),
                        }
                    });
                    self.keys = keys;
                }
            },
        }
        self.inflated.shrink_to(KEPT_BYTES);
        strangers
    }

    fn inflate(&mut self, message: Message<'_>, is_text: bool, give: &mut dyn FnMut(Message<'_>, Option<Rejection>)) {
        let Some(format) = inflate::Format::of(message.bytes) else {
            return give(message, None);
        };
        self.inflated.clear();
        match format.inflate(message.bytes, &mut self.inflated) {
            Ok(()) => {
                let bytes = self.inflated.as_slice();
                give(Message { bytes, ..message }, None);
            }
            Err(_) if is_text && format.is_weak() => give(message, None),
            Err(inflate::Error::Damaged(why)) => {
                let message_text = format!("the record begins like {format} but cannot be decompressed: {why}");
                give(
                    message,
                    Some(rejection(RejectionKind::DamagedCompression, message_text)),
                );
            }
            Err(inflate::Error::TooLarge) => {
                let why = format!(
                    "the record decompresses ({format}) to more than {} MiB",
                    MAX_INFLATED_BYTES >> 20
                );
                give(message, Some(rejection(RejectionKind::TooLarge, why)));
            }
        }
    }
}

fn rejection(kind: RejectionKind, message: String) -> Rejection {
    Rejection {
        kind,
        field_path: String::new(),
        message,
    }
}

#[cfg(test)]
pub(in crate::decode) mod tests;

//! Shard iterators and page tokens: what the caller holds between two calls.
//!
//! A token carries all that it means, so the emulator keeps none of them; it ends with a keyed hash, so one that was
//! made up, or comes from another emulator, is refused as the service refuses it.

use std::hash::{BuildHasher, RandomState};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Iterators and page tokens die after five minutes.
pub(super) const LIFE_MS: i64 = 300_000;
const HASH_BYTES: usize = 8;

/// What a token is for; one kind is not taken for another.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(super) enum Kind {
    ShardIterator,
    ShardList,
    StreamList,
    ConsumerList,
}

/// A shard iterator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShardIterator {
    pub(super) stream: String,
    pub(super) created_s: u64,
    pub(super) shard: u32,
    /// The next record's ordinal.
    pub(super) ordinal: u64,
    pub(super) issued_ms: i64,
}

/// A page token of ListShards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ShardList<F> {
    pub(super) stream: String,
    pub(super) created_s: u64,
    pub(super) filter: F,
    /// The last shard that was listed.
    pub(super) after: u32,
    pub(super) issued_ms: i64,
}

/// A page token of ListStreams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StreamList {
    /// The last stream that was listed.
    pub(super) after: String,
    pub(super) issued_ms: i64,
}

/// A page token of ListStreamConsumers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ConsumerList {
    pub(super) stream: String,
    pub(super) created_s: u64,
    /// The last consumer that was listed.
    pub(super) after: String,
    pub(super) issued_ms: i64,
}

/// Seals and opens the tokens of one emulator.
#[derive(Debug, Default)]
pub(super) struct Seal(RandomState);

impl Seal {
    pub(super) fn seal<T: Serialize>(&self, kind: Kind, content: &T) -> String {
        // The content types above always serialize.
        let mut bytes = serde_json::to_vec(content).unwrap_or_default();
        bytes.extend_from_slice(&self.hash(kind, &bytes));
        base64_simd::STANDARD.encode_to_string(bytes)
    }

    pub(super) fn open<T: DeserializeOwned>(&self, kind: Kind, token: &str) -> Option<T> {
        let bytes = base64_simd::STANDARD.decode_to_vec(token).ok()?;
        let (content, hash) = bytes.split_at_checked(bytes.len().checked_sub(HASH_BYTES)?)?;
        if hash != self.hash(kind, content) {
            return None;
        }
        serde_json::from_slice(content).ok()
    }

    fn hash(&self, kind: Kind, content: &[u8]) -> [u8; HASH_BYTES] {
        self.0.hash_one((kind, content)).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iterator() -> ShardIterator {
        ShardIterator {
            stream: "s".repeat(128),
            created_s: 1 << 35,
            shard: 7,
            ordinal: u64::MAX,
            issued_ms: i64::MAX,
        }
    }

    #[test]
    fn a_token_opens_only_where_it_was_sealed_and_only_as_what_it_is() {
        let seal = Seal::default();
        let token = seal.seal(Kind::ShardIterator, &iterator());
        assert!(
            token.len() <= 512,
            "the service's iterators have at most 512 characters: {}",
            token.len()
        );
        assert_eq!(seal.open(Kind::ShardIterator, &token), Some(iterator()));
        assert_eq!(seal.open::<ShardIterator>(Kind::ShardList, &token), None);
        assert_eq!(Seal::default().open::<ShardIterator>(Kind::ShardIterator, &token), None);
        for forged in ["", "AAAA", "not base64", &token[4..], &format!("AAAA{}", &token[4..])] {
            assert_eq!(
                seal.open::<ShardIterator>(Kind::ShardIterator, forged),
                None,
                "{forged}"
            );
        }
    }
}

//! Sequence numbers as the service forms them: 186 bits, written as 56 decimal digits that begin with "49".
//!
//! ```text
//!   bit 184   148        144          80         72      36       4         0
//!    | 2 | epoch | shard % 16 | index | reserved | time | shard | version |
//! ```
//!
//! `epoch` is the second in which the shard was created, `index` counts the shard's records, `time` is the second of
//! arrival. Invariants: within a shard numbers rise strictly, because `index` stands above `time` (so the clock may go
//! back); a child's numbers stand above all of its parents' numbers, because its epoch is higher; a number names its
//! shard, and its epoch tells a stream from another one that later took its name.

use std::fmt;

use ethnum::U256;

const VERSION: u128 = 2;
const LEADING: u128 = 2;
const SHARD_SHIFT: u32 = 4;
const TIME_SHIFT: u32 = 36;
const INDEX_SHIFT: u32 = 80;
const NIBBLE_SHIFT: u32 = 144;
const EPOCH_SHIFT: u32 = 148;
const LEADING_SHIFT: u32 = 184;
/// Width of `epoch` and `time`: seconds since 1970 in nine hexadecimal digits.
const SECONDS_BITS: u32 = 36;

/// The index in a closed shard's ending sequence number: above every record's.
pub(super) const END_INDEX: u64 = i64::MAX as u64;

/// The place of one record in one shard of one stream.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceNumber(U256);

/// What a sequence number is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    /// The second in which the shard was created.
    pub(super) epoch_s: u64,
    /// The shard's number in its stream.
    pub(super) shard: u32,
    /// 0 for the shard's starting sequence number, then 1 for its first record and so on.
    pub(super) index: u64,
    /// The second of arrival.
    pub(super) time_s: u64,
}

impl SequenceNumber {
    pub(super) fn new(parts: Parts) -> Self {
        let seconds = |s: u64| U256::new(u128::from(s) & ((1 << SECONDS_BITS) - 1));
        let shard = u128::from(parts.shard);
        Self(
            (U256::new(LEADING) << LEADING_SHIFT)
                | (seconds(parts.epoch_s) << EPOCH_SHIFT)
                | (U256::new(shard & 0xf) << NIBBLE_SHIFT)
                | (U256::from(parts.index) << INDEX_SHIFT)
                | (seconds(parts.time_s) << TIME_SHIFT)
                | U256::new(shard << SHARD_SHIFT)
                | U256::new(VERSION),
        )
    }

    /// Reads decimal digits; `None` for what the service never issued.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let number = Self(text.parse::<U256>().ok()?);
        let parts = number.parts();
        (Self::new(parts) == number && parts.index <= END_INDEX).then_some(number)
    }

    pub(super) fn parts(self) -> Parts {
        Parts {
            epoch_s: self.bits(EPOCH_SHIFT, SECONDS_BITS),
            shard: self.bits(SHARD_SHIFT, 32) as u32,
            index: self.bits(INDEX_SHIFT, 64),
            time_s: self.bits(TIME_SHIFT, SECONDS_BITS),
        }
    }

    /// The number of the shard that issued this sequence number.
    #[must_use]
    pub fn shard_index(self) -> u32 {
        self.parts().shard
    }

    fn bits(self, shift: u32, width: u32) -> u64 {
        ((self.0 >> shift).as_u128() & ((1 << width) - 1)) as u64
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Two 128-bit halves are formatted much faster than one 256-bit number, and this runs for every record put.
        const HALF: U256 = U256::new(10_000_000_000_000_000_000_000_000_000);
        let high = self.0 / HALF;
        let low = self.0 - high * HALF;
        write!(f, "{}{:028}", high.as_u128(), low.as_u128())
    }
}

impl fmt::Debug for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SequenceNumber({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(epoch_s: u64, shard: u32, index: u64, time_s: u64) -> Parts {
        Parts {
            epoch_s,
            shard,
            index,
            time_s,
        }
    }

    #[test]
    fn a_number_looks_like_the_services() {
        let text = SequenceNumber::new(parts(1_760_000_000, 3, 17, 1_760_000_100)).to_string();
        assert_eq!(text.len(), 56, "{text}");
        assert!(text.starts_with("49"), "{text}");
    }

    #[test]
    fn a_number_of_the_real_service_is_read() {
        // From the service's documentation of GetRecords, a record of May 2015 in a stream of November 2014.
        let number = SequenceNumber::parse("49544985256907370027570885864065577703022652638596431874");
        assert_eq!(
            number.map(SequenceNumber::parts),
            Some(parts(1_415_670_039, 0, 13_422_023_156, 1_431_623_575))
        );
    }

    #[test]
    fn what_was_never_issued_is_refused() {
        for text in ["", "0", "-1", "12x", "9", &"9".repeat(56), &"9".repeat(129)] {
            assert_eq!(SequenceNumber::parse(text), None, "{text}");
        }
    }

    #[test]
    fn children_stand_above_their_parents_end() {
        let parent_end = SequenceNumber::new(parts(1_760_000_000, 15, END_INDEX, 1_770_000_000));
        let child_start = SequenceNumber::new(parts(1_760_000_001, 16, 0, 1_760_000_001));
        assert!(child_start > parent_end);
    }

    proptest! {
        #[test]
        fn text_and_parts_survive_a_round_trip(
            epoch_s in 0u64..1 << 36, shard in 0u32..i32::MAX as u32, index in 0u64..END_INDEX, time_s in 0u64..1 << 36,
        ) {
            let number = SequenceNumber::new(parts(epoch_s, shard, index, time_s));
            prop_assert_eq!(number.parts(), parts(epoch_s, shard, index, time_s));
            prop_assert_eq!(number.to_string(), number.0.to_string());
            prop_assert_eq!(SequenceNumber::parse(&number.to_string()), Some(number));
        }

        #[test]
        fn a_later_record_has_a_higher_number_whatever_the_clock_says(
            index in 0u64..END_INDEX, earlier in 0u64..1 << 36, later in 0u64..1 << 36,
        ) {
            let first = SequenceNumber::new(parts(1_760_000_000, 7, index, earlier));
            let second = SequenceNumber::new(parts(1_760_000_000, 7, index + 1, later));
            prop_assert!(first < second);
        }
    }
}

//! The 128-bit hash key space: from partition key to hash key, and how shards divide the space.

use std::fmt;

use md5::{Digest, Md5};

/// Where a record with `partition_key` belongs when it names no explicit hash key.
#[must_use]
pub fn of_partition_key(partition_key: &str) -> u128 {
    u128::from_be_bytes(Md5::digest(partition_key.as_bytes()).into())
}

/// The hash keys of one shard, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKeyRange {
    /// The lowest hash key.
    pub start_inclusive: u128,
    /// The highest hash key.
    pub end_inclusive: u128,
}

impl HashKeyRange {
    /// The whole space.
    pub const ALL: Self = Self {
        start_inclusive: 0,
        end_inclusive: u128::MAX,
    };

    /// `count` equal ranges that cover the space, the last one taking what is left over.
    pub(super) fn uniform(count: u32) -> impl Iterator<Item = Self> {
        let width = uniform_width(count);
        (0..u128::from(count)).map(move |i| Self {
            start_inclusive: i * width,
            end_inclusive: if i + 1 == u128::from(count) {
                u128::MAX
            } else {
                (i + 1) * width - 1
            },
        })
    }

    /// The middle: where a shard is split into two equal halves.
    pub(super) fn middle(self) -> u128 {
        self.start_inclusive + (self.end_inclusive - self.start_inclusive) / 2 + 1
    }

    /// Two ranges, the second beginning at `start`; `None` where one of them would be empty.
    pub(super) fn cut_at(self, start: u128) -> Option<(Self, Self)> {
        (self.start_inclusive < start && start <= self.end_inclusive).then(|| {
            let left = Self {
                start_inclusive: self.start_inclusive,
                end_inclusive: start - 1,
            };
            (
                left,
                Self {
                    start_inclusive: start,
                    end_inclusive: self.end_inclusive,
                },
            )
        })
    }

    /// As [`Self::cut_at`] where SplitShard accepts it, which is stricter: both ranges hold at least two keys.
    pub(super) fn split_at(self, start: u128) -> Option<(Self, Self)> {
        let (left, right) = self.cut_at(start)?;
        (left.start_inclusive < left.end_inclusive && right.start_inclusive < right.end_inclusive)
            .then_some((left, right))
    }

    /// This range and the one after it as one; `None` where a key lies between them.
    pub(super) fn join(self, next: Self) -> Option<Self> {
        (self.end_inclusive.checked_add(1)? == next.start_inclusive).then_some(Self {
            start_inclusive: self.start_inclusive,
            end_inclusive: next.end_inclusive,
        })
    }
}

impl fmt::Display for HashKeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.start_inclusive, self.end_inclusive)
    }
}

/// 2^128 / count, rounded down. For one range the width does not fit 128 bits and is not used.
fn uniform_width(count: u32) -> u128 {
    let count = u128::from(count.max(1));
    let whole = u128::MAX / count;
    if u128::MAX % count == count - 1 {
        whole.wrapping_add(1)
    } else {
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_partition_key_hashes_as_md5_says() {
        assert_eq!(of_partition_key(""), 0xd41d_8cd9_8f00_b204_e980_0998_ecf8_427e);
        assert_eq!(of_partition_key("a"), 0x0cc1_75b9_c0f1_b6a8_31c3_99e2_6977_2661);
    }

    #[test]
    fn four_shards_have_the_services_bounds() {
        let starts: Vec<_> = HashKeyRange::uniform(4)
            .map(|r| r.start_inclusive.to_string())
            .collect();
        assert_eq!(
            starts,
            [
                "0",
                "85070591730234615865843651857942052864",
                "170141183460469231731687303715884105728",
                "255211775190703847597530955573826158592"
            ]
        );
    }

    proptest! {
        #[test]
        fn uniform_ranges_cover_the_space_without_holes(count in 1u32..3_000) {
            let ranges: Vec<_> = HashKeyRange::uniform(count).collect();
            prop_assert_eq!(ranges.len(), count as usize);
            let joined = ranges.iter().copied().reduce(|left, right| left.join(right).expect("adjacent"));
            prop_assert_eq!(joined, Some(HashKeyRange::ALL));
        }

        #[test]
        fn halves_join_to_the_whole(start in 0..u128::MAX - 4, len in 3u128..1 << 100) {
            let whole = HashKeyRange { start_inclusive: start, end_inclusive: start.saturating_add(len) };
            let (left, right) = whole.split_at(whole.middle()).expect("wide enough");
            prop_assert_eq!(left.join(right), Some(whole));
        }
    }
}

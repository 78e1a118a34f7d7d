//! The service's rates per shard, as pure counters over the emulator's clock.
//!
//! Reads: five calls a second; two MiB a second, where one call may take up to ten MiB and the calls after it are
//! refused until that is paid off (five seconds for ten MiB). Writes: 1,000 records and one MiB a second, in a bucket
//! that holds one second's worth.

use std::collections::VecDeque;

const SECOND_MS: i64 = 1_000;
const READ_CALLS_PER_S: usize = 5;
const READ_BYTES_PER_S: i64 = 2 << 20;
const WRITE_RECORDS_PER_S: f64 = 1_000.0;
const WRITE_BYTES_PER_S: f64 = (1 << 20) as f64;

/// The read side of one shard, shared by all its pollers.
#[derive(Debug, Default)]
pub(super) struct ReadLimit {
    /// When the calls of the last second came.
    calls_ms: VecDeque<i64>,
    /// What was read in the last second: when, and how many bytes.
    reads: VecDeque<(i64, i64)>,
    /// No byte is served before this.
    blocked_until_ms: i64,
}

impl ReadLimit {
    /// Counts a call; false where it must be refused. A refused call does not count against the next.
    pub(super) fn admit(&mut self, now_ms: i64) -> bool {
        while self.calls_ms.front().is_some_and(|at| at + SECOND_MS <= now_ms) {
            self.calls_ms.pop_front();
        }
        if now_ms < self.blocked_until_ms || self.calls_ms.len() >= READ_CALLS_PER_S {
            return false;
        }
        self.calls_ms.push_back(now_ms);
        true
    }

    /// Notes what an admitted call returned.
    pub(super) fn served(&mut self, now_ms: i64, bytes: usize) {
        while self.reads.front().is_some_and(|(at, _)| at + SECOND_MS <= now_ms) {
            self.reads.pop_front();
        }
        self.reads.push_back((now_ms, i64::try_from(bytes).unwrap_or(i64::MAX)));
        let in_last_second: i64 = self.reads.iter().map(|(_, bytes)| bytes).sum();
        if in_last_second >= READ_BYTES_PER_S {
            self.blocked_until_ms = now_ms + in_last_second * SECOND_MS / READ_BYTES_PER_S;
            self.reads.clear();
        }
    }
}

/// The write side of one shard, shared by all its producers.
#[derive(Debug)]
pub(super) struct WriteLimit {
    records: f64,
    bytes: f64,
    filled_at_ms: i64,
}

impl Default for WriteLimit {
    fn default() -> Self {
        Self {
            records: WRITE_RECORDS_PER_S,
            bytes: WRITE_BYTES_PER_S,
            filled_at_ms: 0,
        }
    }
}

impl WriteLimit {
    /// Takes one record of `bytes` from the bucket; false where it does not hold that much.
    pub(super) fn admit(&mut self, now_ms: i64, bytes: usize) -> bool {
        let seconds = (now_ms - self.filled_at_ms).clamp(0, SECOND_MS) as f64 / SECOND_MS as f64;
        self.filled_at_ms = now_ms;
        self.records = (self.records + seconds * WRITE_RECORDS_PER_S).min(WRITE_RECORDS_PER_S);
        self.bytes = (self.bytes + seconds * WRITE_BYTES_PER_S).min(WRITE_BYTES_PER_S);
        // A record above one second's worth passes when the bucket is full, and leaves a debt.
        let enough = self.bytes >= (bytes as f64).min(WRITE_BYTES_PER_S);
        if self.records < 1.0 || !enough {
            return false;
        }
        self.records -= 1.0;
        self.bytes -= bytes as f64;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn five_calls_a_second_pass_and_the_sixth_does_not() {
        let mut limit = ReadLimit::default();
        assert!((0..5).all(|i| limit.admit(10_000 + i)));
        assert!(!limit.admit(10_900));
        assert!(limit.admit(11_000), "the first call is a second old");
        assert!(!limit.admit(11_000));
    }

    #[test]
    fn ten_mib_block_a_shard_for_five_seconds() {
        let mut limit = ReadLimit::default();
        assert!(limit.admit(0));
        limit.served(0, 10 * MIB);
        assert!(!limit.admit(4_999));
        assert!(limit.admit(5_000));
    }

    #[test]
    fn two_mib_in_one_second_block_for_a_second() {
        let mut limit = ReadLimit::default();
        for at in [0, 200, 400, 600] {
            assert!(limit.admit(at));
            limit.served(at, MIB / 2);
        }
        assert!(!limit.admit(1_599));
        assert!(limit.admit(1_600));
    }

    #[test]
    fn writes_pass_up_to_a_mib_or_a_thousand_records() {
        let mut limit = WriteLimit::default();
        assert!((0..1_000).all(|_| limit.admit(5_000, 10)));
        assert!(!limit.admit(5_000, 10));
        assert!(limit.admit(5_010, 10));

        let mut limit = WriteLimit::default();
        assert!(limit.admit(5_000, MIB));
        assert!(!limit.admit(5_400, MIB / 2));
        assert!(limit.admit(5_500, MIB / 2));
    }
}

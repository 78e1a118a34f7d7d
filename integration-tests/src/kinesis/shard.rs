//! One shard: its identity, its records, its rates.
//!
//! Invariant: a record's sequence number is drawn and the record becomes visible under one lock, so no reader ever sees
//! a number before a lower one. The lock is never held across an await (nothing here is async).

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::hash_key::HashKeyRange;
use super::log::{Data, PAGE_BYTES, Page, RecordLog};
use super::sequence::{END_INDEX, Parts, SequenceNumber};
use super::throttle::{ReadLimit, WriteLimit};

/// A shard of a stream, open or closed.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) index: u32,
    pub(super) range: HashKeyRange,
    pub(super) parent: Option<u32>,
    pub(super) adjacent_parent: Option<u32>,
    /// The second that its sequence numbers carry; above that of its parents.
    pub(super) epoch_s: u64,
    /// When it was opened, on the emulator's clock.
    pub(super) opened_ms: i64,
    /// Wakes subscribers when there is something new: a record, or the end.
    pub(super) changed: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    log: RecordLog,
    closed: Option<Closed>,
    reads: ReadLimit,
    writes: WriteLimit,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Closed {
    pub(super) at_ms: i64,
    pub(super) ending: SequenceNumber,
}

/// One of the shard's rates is used up for the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RateExceeded;

/// A page and what a reader must know about the place where it ends.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) page: Page,
    pub(super) millis_behind_latest: i64,
    /// The shard is closed and the page holds its last record.
    pub(super) at_end: bool,
}

/// Where an iterator starts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    TrimHorizon,
    Latest,
    AtTimestamp(i64),
    At(SequenceNumber),
    After(SequenceNumber),
}

impl Shard {
    pub(super) fn open(
        index: u32,
        range: HashKeyRange,
        (parent, adjacent_parent): (Option<u32>, Option<u32>),
        epoch_s: u64,
        opened_ms: i64,
    ) -> Self {
        Self {
            index,
            range,
            parent,
            adjacent_parent,
            epoch_s,
            opened_ms,
            changed: Notify::new(),
            state: Mutex::default(),
        }
    }

    pub(super) fn id(&self) -> String {
        id(self.index)
    }

    pub(super) fn starting(&self) -> SequenceNumber {
        self.number(0, self.epoch_s)
    }

    pub(super) fn closed(&self) -> Option<Closed> {
        self.state.lock().closed
    }

    /// Appends a record. The caller holds the stream's lock, so the shard is open.
    pub(super) fn append(
        &self,
        now_ms: i64,
        enforce_limits: bool,
        key: &str,
        data: Data<'_>,
    ) -> Result<SequenceNumber, RateExceeded> {
        let mut state = self.state.lock();
        debug_assert!(state.closed.is_none(), "records are routed to open shards only");
        if enforce_limits && !state.writes.admit(now_ms, data.len() + key.len()) {
            return Err(RateExceeded);
        }
        let sequence = self.number(state.log.end_ordinal() + 1, seconds(now_ms));
        state.log.append(sequence, now_ms, key, data);
        drop(state);
        self.changed.notify_waiters();
        Ok(sequence)
    }

    /// No record comes after this.
    pub(super) fn close(&self, now_ms: i64) {
        let ending = self.number(END_INDEX, seconds(now_ms));
        self.state.lock().closed.get_or_insert(Closed { at_ms: now_ms, ending });
        self.changed.notify_waiters();
    }

    /// Where a reader that starts so begins. A sequence number is one of this shard's.
    pub(super) fn ordinal_of(&self, start: Start) -> u64 {
        let log = &self.state.lock().log;
        match start {
            Start::TrimHorizon => log.first_ordinal(),
            Start::Latest => log.end_ordinal(),
            Start::AtTimestamp(ms) => log.ordinal_at(ms),
            // The first record has index 1; index 0 is the shard's start, END_INDEX its end.
            Start::At(number) => number.parts().index.saturating_sub(1).min(log.end_ordinal()),
            Start::After(number) => number.parts().index.min(log.end_ordinal()),
        }
    }

    pub(super) fn read(
        &self,
        now_ms: i64,
        enforce_limits: bool,
        ordinal: u64,
        limit: usize,
    ) -> Result<Read, RateExceeded> {
        let mut state = self.state.lock();
        if enforce_limits && !state.reads.admit(now_ms) {
            return Err(RateExceeded);
        }
        let page = state.log.page(ordinal, limit, PAGE_BYTES);
        state.reads.served(now_ms, page.payload_bytes);
        Ok(state.seen(page, now_ms))
    }

    /// What a subscriber gets next: past the rates of GetRecords, because each consumer has its own.
    pub(super) fn push(&self, now_ms: i64, ordinal: u64, most_bytes: usize) -> Read {
        let state = self.state.lock();
        let page = state.log.page(ordinal, usize::MAX, most_bytes);
        state.seen(page, now_ms)
    }

    /// A number behind the records before `ordinal`, and before all that come at it: it names a place even where no record is.
    pub(super) fn continuation(&self, now_ms: i64, ordinal: u64) -> SequenceNumber {
        self.number(ordinal, seconds(now_ms))
    }

    /// Whether a number is that of a record that was held once, and is no more.
    pub(super) fn is_trimmed(&self, number: SequenceNumber) -> bool {
        let ordinal = number.parts().index.checked_sub(1);
        ordinal.is_some_and(|ordinal| ordinal < self.state.lock().log.first_ordinal())
    }

    pub(super) fn trim_before_ms(&self, horizon_ms: i64) {
        self.state.lock().log.trim_before_ms(horizon_ms);
    }

    /// Forgets all records up to and including `last`.
    pub(super) fn trim_through(&self, last: SequenceNumber) {
        self.state.lock().log.trim_before_ordinal(last.parts().index);
    }

    /// How many records are held.
    pub(super) fn len(&self) -> u64 {
        let log = &self.state.lock().log;
        log.end_ordinal() - log.first_ordinal()
    }

    fn number(&self, index: u64, time_s: u64) -> SequenceNumber {
        SequenceNumber::new(Parts {
            epoch_s: self.epoch_s,
            shard: self.index,
            index,
            time_s,
        })
    }
}

impl State {
    fn seen(&self, page: Page, now_ms: i64) -> Read {
        let caught_up = page.next_ordinal == self.log.end_ordinal();
        let millis_behind_latest = if caught_up {
            0
        } else {
            // Zero is reserved for "nothing newer", so a reader who is behind is behind by at least one.
            let reached = page.last_arrival_ms.or_else(|| self.log.arrival_ms(page.next_ordinal));
            reached.map_or(1, |arrival_ms| (now_ms - arrival_ms).max(1))
        };
        Read {
            page,
            millis_behind_latest,
            at_end: caught_up && self.closed.is_some(),
        }
    }
}

/// The name of the shard with this number.
pub(super) fn id(index: u32) -> String {
    format!("shardId-{index:012}")
}

/// The number in a shard's name; the service also takes it without its prefix.
pub(super) fn parse_id(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("shardId-").unwrap_or(text);
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

pub(super) fn seconds(ms: i64) -> u64 {
    u64::try_from(ms / 1_000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_760_000_000_000;

    fn shard() -> Shard {
        Shard::open(3, HashKeyRange::ALL, (None, None), seconds(NOW), NOW)
    }

    fn put(shard: &Shard, now_ms: i64) -> SequenceNumber {
        shard
            .append(now_ms, false, "key", Data::Raw(b"data"))
            .expect("no limits")
    }

    #[test]
    fn positions_are_before_at_and_after_records() {
        let shard = shard();
        let numbers: Vec<_> = (0..4).map(|i| put(&shard, NOW + i * 10)).collect();
        let ordinal = |start| shard.ordinal_of(start);
        assert_eq!(ordinal(Start::TrimHorizon), 0);
        assert_eq!(ordinal(Start::At(shard.starting())), 0);
        assert_eq!(ordinal(Start::After(shard.starting())), 0);
        assert_eq!(ordinal(Start::At(numbers[1])), 1);
        assert_eq!(ordinal(Start::After(numbers[1])), 2);
        assert_eq!(ordinal(Start::AtTimestamp(NOW + 11)), 2);
        assert_eq!(ordinal(Start::Latest), 4);
        shard.close(NOW + 100);
        let ending = shard.closed().expect("closed").ending;
        assert!(ending > numbers[3]);
        assert_eq!(ordinal(Start::At(ending)), 4);
        assert_eq!(ordinal(Start::After(ending)), 4);
    }

    #[test]
    fn a_reader_is_behind_by_the_age_of_the_last_record_it_got() {
        let shard = shard();
        for i in 0..4 {
            put(&shard, NOW + i * 10);
        }
        let read = |ordinal, limit| shard.read(NOW + 100, false, ordinal, limit).expect("no limits");
        assert_eq!(read(0, 1).millis_behind_latest, 100);
        assert_eq!(read(0, 3).millis_behind_latest, 80);
        assert_eq!(read(0, 4).millis_behind_latest, 0);
        assert_eq!(read(4, 4).millis_behind_latest, 0);
    }

    #[test]
    fn the_end_is_seen_only_when_closed_and_read_to_the_last_record() {
        let shard = shard();
        put(&shard, NOW);
        put(&shard, NOW);
        let at_end = |ordinal, limit| shard.read(NOW, false, ordinal, limit).expect("no limits").at_end;
        assert!(!at_end(0, 2));
        shard.close(NOW);
        assert!(!at_end(0, 1));
        assert!(at_end(0, 2));
        assert!(at_end(2, 1));
    }

    #[test]
    fn a_shard_name_is_read_with_and_without_prefix() {
        assert_eq!(parse_id("shardId-000000000012"), Some(12));
        assert_eq!(parse_id("12"), Some(12));
        for bad in ["", "shardId-", "shardId-x", "shard-1", "99999999999999"] {
            assert_eq!(parse_id(bad), None, "{bad}");
        }
    }
}

//! The records of one shard, kept as the JSON that GetRecords sends.
//!
//! ```text
//!   sealed segments (Bytes, shared with responses)         tail (Vec, copied into responses)
//!   {"SequenceNumber":…},{"SequenceNumber":…},  …  ,       {"SequenceNumber":…},
//!   ^ offset of record n, counted from the shard's first byte
//! ```
//!
//! A record is encoded once, when it is put; a page is a few slices of this text, so serving costs no base64, no
//! formatting and, for sealed segments, no copy. Invariants: a record lies in one segment; every record is followed by
//! one comma; ordinals (0 for the shard's first record) are never reused, trimming only moves `first_ordinal`.

use std::collections::VecDeque;
use std::io::Write as _;

use bytes::Bytes;

use super::sequence::SequenceNumber;

/// A tail of this size is sealed: large enough that a 10 MiB page is about 16 slices, small enough that copying the
/// tail into a response is not felt.
const SEGMENT_BYTES: usize = 1 << 20;

/// The most bytes of data and partition keys in one page. One record always fits.
pub(super) const PAGE_BYTES: usize = 10 << 20;

/// The data of a record to be put.
#[derive(Clone, Copy, Debug)]
pub(super) enum Data<'a> {
    /// As it came off the wire: valid standard base64 with padding.
    Base64(&'a str),
    /// As it is.
    Raw(&'a [u8]),
}

impl Data<'_> {
    /// How many bytes the data has when decoded.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Raw(bytes) => bytes.len(),
            Self::Base64(text) => {
                let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
                (text.len() / 4 * 3).saturating_sub(padding)
            }
        }
    }
}

#[derive(Debug)]
struct Segment {
    start: u64,
    bytes: Bytes,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Offset of the record's first byte.
    start: u64,
    arrival_ms: i64,
    /// Bytes of data and partition key, which count towards a page.
    payload: u32,
}

/// One answer's worth of records.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// The records as a JSON list's content, without brackets.
    pub(super) json: Vec<Bytes>,
    /// How many bytes of data and partition keys it holds.
    pub(super) payload_bytes: usize,
    /// The ordinal after the last record of the page.
    pub(super) next_ordinal: u64,
    /// When the last record of the page arrived.
    pub(super) last_arrival_ms: Option<i64>,
}

/// The records of one shard in order.
#[derive(Debug, Default)]
pub(super) struct RecordLog {
    sealed: VecDeque<Segment>,
    tail: Vec<u8>,
    tail_start: u64,
    entries: VecDeque<Entry>,
    first_ordinal: u64,
}

impl RecordLog {
    /// The ordinal of the oldest record that is still there.
    pub(super) fn first_ordinal(&self) -> u64 {
        self.first_ordinal
    }

    /// The ordinal that the next record gets.
    pub(super) fn end_ordinal(&self) -> u64 {
        self.first_ordinal + self.entries.len() as u64
    }

    /// Appends a record, which then has the ordinal that [`Self::end_ordinal`] named before.
    pub(super) fn append(&mut self, sequence: SequenceNumber, arrival_ms: i64, key: &str, data: Data<'_>) {
        let payload = data.len() + key.len();
        // Base64 and the longest JSON escape of the key, so that a segment is not reallocated when it is nearly full.
        let room = payload / 3 * 4 + key.len() * 6 + 256;
        if !self.tail.is_empty() && self.tail.len() + room > SEGMENT_BYTES {
            self.seal();
            self.tail.reserve_exact(SEGMENT_BYTES.max(room));
        }
        let start = self.tail_start + self.tail.len() as u64;
        encode(&mut self.tail, sequence, arrival_ms, key, data);
        self.entries.push_back(Entry {
            start,
            arrival_ms,
            payload: u32::try_from(payload).unwrap_or(u32::MAX),
        });
    }

    /// The first ordinal whose record arrived at `arrival_ms` or later. A linear search, because arrival times go back
    /// when the clock does.
    pub(super) fn ordinal_at(&self, arrival_ms: i64) -> u64 {
        let skipped = self
            .entries
            .iter()
            .take_while(|entry| entry.arrival_ms < arrival_ms)
            .count();
        self.first_ordinal + skipped as u64
    }

    /// When the record with this ordinal arrived.
    pub(super) fn arrival_ms(&self, ordinal: u64) -> Option<i64> {
        self.entry(ordinal).map(|entry| entry.arrival_ms)
    }

    /// Records from `ordinal` (or from the oldest one, where it is gone), at most `limit` and `most_bytes`.
    pub(super) fn page(&self, ordinal: u64, limit: usize, most_bytes: usize) -> Page {
        let from = ordinal.clamp(self.first_ordinal, self.end_ordinal());
        let mut page = Page {
            next_ordinal: from,
            ..Page::default()
        };
        for entry in self
            .entries
            .iter()
            .skip((from - self.first_ordinal) as usize)
            .take(limit)
        {
            let payload = entry.payload as usize;
            if page.last_arrival_ms.is_some() && page.payload_bytes + payload > most_bytes {
                break;
            }
            page.payload_bytes += payload;
            page.next_ordinal += 1;
            page.last_arrival_ms = Some(entry.arrival_ms);
        }
        if page.next_ordinal > from {
            // Without the comma after the last record.
            page.json = self.slices(self.offset(from), self.offset(page.next_ordinal) - 1);
        }
        page
    }

    /// Forgets records from the oldest on, while they arrived before `horizon_ms`.
    pub(super) fn trim_before_ms(&mut self, horizon_ms: i64) {
        while self.entries.front().is_some_and(|entry| entry.arrival_ms < horizon_ms) {
            self.entries.pop_front();
            self.first_ordinal += 1;
        }
        self.release();
    }

    /// Forgets all records below `ordinal`.
    pub(super) fn trim_before_ordinal(&mut self, ordinal: u64) {
        let gone = ordinal.clamp(self.first_ordinal, self.end_ordinal()) - self.first_ordinal;
        self.entries.drain(..gone as usize);
        self.first_ordinal += gone;
        self.release();
    }

    fn entry(&self, ordinal: u64) -> Option<&Entry> {
        let index = usize::try_from(ordinal.checked_sub(self.first_ordinal)?).ok()?;
        self.entries.get(index)
    }

    fn offset(&self, ordinal: u64) -> u64 {
        self.entry(ordinal)
            .map_or(self.tail_start + self.tail.len() as u64, |entry| entry.start)
    }

    fn seal(&mut self) {
        let bytes = Bytes::from(std::mem::take(&mut self.tail));
        let start = self.tail_start;
        self.tail_start += bytes.len() as u64;
        self.sealed.push_back(Segment { start, bytes });
    }

    /// Drops segments that hold no record any more.
    fn release(&mut self) {
        let first_offset = self.offset(self.first_ordinal);
        while self
            .sealed
            .front()
            .is_some_and(|segment| segment.start + segment.bytes.len() as u64 <= first_offset)
        {
            self.sealed.pop_front();
        }
        if self.entries.is_empty() {
            self.tail_start = first_offset;
            self.tail = Vec::new();
        }
    }

    /// The text from `from` up to `to`, sealed parts shared and the tail copied.
    fn slices(&self, from: u64, to: u64) -> Vec<Bytes> {
        let mut slices = Vec::new();
        let first = self
            .sealed
            .partition_point(|segment| segment.start + segment.bytes.len() as u64 <= from);
        for segment in self.sealed.range(first..).take_while(|segment| segment.start < to) {
            let begin = from.saturating_sub(segment.start) as usize;
            let end = ((to - segment.start) as usize).min(segment.bytes.len());
            slices.push(segment.bytes.slice(begin..end));
        }
        if to > self.tail_start {
            let begin = from.saturating_sub(self.tail_start) as usize;
            slices.push(Bytes::copy_from_slice(
                &self.tail[begin..(to - self.tail_start) as usize],
            ));
        }
        slices
    }
}

/// Writes one record as GetRecords shows it, and a comma.
fn encode(out: &mut Vec<u8>, sequence: SequenceNumber, arrival_ms: i64, key: &str, data: Data<'_>) {
    // Writing to a Vec cannot fail.
    let _ = write!(
        out,
        r#"{{"SequenceNumber":"{sequence}","ApproximateArrivalTimestamp":{}.{:03},"Data":""#,
        arrival_ms / 1_000,
        arrival_ms % 1_000
    );
    match data {
        Data::Base64(text) => out.extend_from_slice(text.as_bytes()),
        Data::Raw(bytes) => base64_simd::STANDARD.encode_append(bytes, out),
    }
    out.extend_from_slice(br#"","PartitionKey":"#);
    let _ = serde_json::to_writer(&mut *out, key);
    out.extend_from_slice(b"},");
}

#[cfg(test)]
mod tests {
    use super::super::sequence::Parts;
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn sequence(index: u64) -> SequenceNumber {
        SequenceNumber::new(Parts {
            epoch_s: 1_760_000_000,
            shard: 0,
            index,
            time_s: 1_760_000_000,
        })
    }

    fn log_of(records: impl IntoIterator<Item = usize>) -> RecordLog {
        let mut log = RecordLog::default();
        for (i, len) in records.into_iter().enumerate() {
            let data = vec![b'x'; len];
            log.append(
                sequence(i as u64 + 1),
                1_000 * i as i64,
                &format!("k{i}"),
                Data::Raw(&data),
            );
        }
        log
    }

    fn records_of(page: &Page) -> Vec<Value> {
        let text = [b"[", page.json.concat().as_slice(), b"]"].concat();
        serde_json::from_slice(&text).expect("a page is JSON")
    }

    #[test]
    fn a_record_is_stored_as_the_service_shows_it() {
        let mut log = RecordLog::default();
        log.append(sequence(1), 1_760_000_000_007, "k\"ü", Data::Base64("AAEC"));
        let records = records_of(&log.page(0, 10, PAGE_BYTES));
        assert_eq!(records[0]["SequenceNumber"], sequence(1).to_string());
        assert_eq!(records[0]["ApproximateArrivalTimestamp"], 1_760_000_000.007);
        assert_eq!(records[0]["Data"], "AAEC");
        assert_eq!(records[0]["PartitionKey"], "k\"ü");
    }

    #[test]
    fn base64_text_is_measured_as_what_it_decodes_to() {
        for len in 0..10 {
            let text = base64_simd::STANDARD.encode_to_string(vec![0; len]);
            assert_eq!(Data::Base64(&text).len(), len);
        }
    }

    #[test]
    fn a_page_ends_at_ten_mib_and_holds_at_least_one_record() {
        let log = log_of([6 << 20, 6 << 20, 11 << 20, 1]);
        assert_eq!(log.page(0, 100, PAGE_BYTES).next_ordinal, 1);
        assert_eq!(log.page(1, 100, PAGE_BYTES).next_ordinal, 2);
        assert_eq!(log.page(2, 100, PAGE_BYTES).next_ordinal, 3);
        assert_eq!(log.page(3, 100, PAGE_BYTES).next_ordinal, 4);
        assert_eq!(log.page(4, 100, PAGE_BYTES).last_arrival_ms, None);
    }

    #[test]
    fn trimming_frees_whole_segments_and_keeps_ordinals() {
        let mut log = log_of(std::iter::repeat_n(100_000, 50));
        let segments = log.sealed.len();
        log.trim_before_ms(40_000);
        assert_eq!((log.first_ordinal(), log.end_ordinal()), (40, 50));
        assert!(log.sealed.len() < segments, "{} of {segments}", log.sealed.len());
        assert_eq!(records_of(&log.page(0, 1, PAGE_BYTES))[0]["PartitionKey"], "k40");
        log.trim_before_ordinal(u64::MAX);
        assert_eq!((log.first_ordinal(), log.sealed.len(), log.tail.len()), (50, 0, 0));
        log.append(sequence(51), 60_000, "again", Data::Raw(b"x"));
        assert_eq!(records_of(&log.page(0, 10, PAGE_BYTES))[0]["PartitionKey"], "again");
    }

    #[test]
    fn a_time_finds_the_first_record_that_arrived_then_or_later() {
        let log = log_of([1, 1, 1]);
        assert_eq!(
            [-1, 0, 1, 1_000, 2_000, 2_001].map(|ms| log.ordinal_at(ms)),
            [0, 0, 1, 1, 2, 3]
        );
    }

    proptest! {
        #[test]
        fn pages_of_any_size_repeat_every_record_once(
            lens in prop::collection::vec(prop_oneof![0usize..2_000, 200_000usize..400_000], 1..40), limit in 1usize..10,
        ) {
            let log = log_of(lens.clone());
            let mut keys = Vec::new();
            let mut next = 0;
            loop {
                let page = log.page(next, limit, PAGE_BYTES);
                let records = records_of(&page);
                prop_assert!(records.len() <= limit);
                if records.is_empty() { break }
                keys.extend(records.iter().map(|r| r["PartitionKey"].as_str().unwrap_or_default().to_owned()));
                next = page.next_ordinal;
            }
            prop_assert_eq!(keys, (0..lens.len()).map(|i| format!("k{i}")).collect::<Vec<_>>());
        }
    }
}

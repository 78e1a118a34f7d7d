//! The block of records that a batch rejects, for the error table beside the destination.
//!
//! Invariant: the block is a function of the batch and its records alone, so that a replay builds the same bytes. That is
//! why `error_timestamp` is the time in the batch's id, and not now.

use millrace_common::{
    clickhouse::{ERROR_TABLE_COLUMNS, cut_note},
    ids::{BatchId, ShardId},
};
use ulid::Ulid;

/// Most bytes of a record that are kept: the row is for finding and mending a record, and a block of records of 10 MiB
/// each would not pass.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;
/// Most bytes of a message: it may quote what was found.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024;

/// Version of the LowCardinality encoding: one dictionary per block, shared by nothing.
const DICTIONARY_VERSION: u64 = 1;
/// The block brings its own keys, and they replace what was before.
const DICTIONARY_FLAGS: u64 = 0x600;

/// A record that does not become a row.
#[derive(Debug, Clone, Copy)]
pub struct Rejected<'a> {
    /// Kind of error: one of a few.
    pub error_type: &'a str,
    /// What is wrong.
    pub message: &'a str,
    /// Column or JSON path at fault; empty where there is none.
    pub field_path: &'a str,
    /// Partition key, as UTF-8.
    pub partition_key: &'a [u8],
    /// The record's bytes.
    pub value: &'a [u8],
    /// When Kinesis took it, in milliseconds since the epoch.
    pub arrival_millis: i64,
    /// Shard.
    pub shard: &'a ShardId,
    /// Sequence number, in digits.
    pub sequence_number: &'a [u8],
    /// Which of an aggregated or multi-line record.
    pub sub_sequence_number: u64,
}

/// Rejected records of one batch, as columns.
#[derive(Debug, Default)]
pub struct ErrorBlock {
    rows: u64,
    types: Dictionary,
    messages: Vec<u8>,
    keys: Vec<u8>,
    values: Vec<u8>,
    record_times: Vec<u8>,
    shards: Dictionary,
    numbers: Vec<u8>,
    sub_numbers: Vec<u8>,
    paths: Vec<u8>,
}

impl ErrorBlock {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// About how large the block is.
    pub fn encoded_bytes(&self) -> usize {
        let columns = [
            &self.messages,
            &self.keys,
            &self.values,
            &self.record_times,
            &self.numbers,
            &self.paths,
        ];
        // Beside these: the two ids, a time, a sub-sequence number and two dictionary indexes.
        columns.iter().map(|column| column.len()).sum::<usize>() + self.rows as usize * 96
    }

    /// Adds a record.
    pub fn push(&mut self, rejected: &Rejected<'_>) {
        self.rows += 1;
        self.types.push(rejected.error_type);
        put_text(&mut self.messages, &message(rejected));
        put_bytes(&mut self.keys, rejected.partition_key);
        put_bytes(
            &mut self.values,
            &rejected.value[..rejected.value.len().min(MAX_VALUE_BYTES)],
        );
        self.record_times
            .extend_from_slice(&rejected.arrival_millis.to_le_bytes());
        self.shards.push(rejected.shard.as_str());
        put_bytes(&mut self.numbers, rejected.sequence_number);
        self.sub_numbers
            .extend_from_slice(&rejected.sub_sequence_number.to_le_bytes());
        put_text(&mut self.paths, rejected.field_path);
    }

    /// Forgets all records and keeps the memory.
    pub fn clear(&mut self) {
        self.rows = 0;
        for column in [
            &mut self.messages,
            &mut self.keys,
            &mut self.values,
            &mut self.record_times,
            &mut self.numbers,
            &mut self.sub_numbers,
            &mut self.paths,
        ] {
            column.clear();
        }
        self.types.clear();
        self.shards.clear();
    }

    /// Appends the block in ClickHouse's Native format. `pipe` is what the table calls the pipe.
    pub fn write_native(&self, pipe: &str, batch: BatchId, out: &mut Vec<u8>) {
        let rows = usize::try_from(self.rows).unwrap_or(usize::MAX);
        out.reserve(self.encoded_bytes() + rows * (pipe.len() + 32));
        put_varint(out, ERROR_TABLE_COLUMNS.len() as u64);
        put_varint(out, self.rows);
        let batch_text = batch.to_string();
        let cut_at = cut_time(batch).to_le_bytes();
        for (name, data_type) in ERROR_TABLE_COLUMNS {
            put_text(out, name);
            put_text(out, data_type);
            match name {
                "error_timestamp" => (0..rows).for_each(|_| out.extend_from_slice(&cut_at)),
                "error_type" => self.types.write(out),
                "error_msg" => out.extend_from_slice(&self.messages),
                "record_key" => out.extend_from_slice(&self.keys),
                "record_value" => out.extend_from_slice(&self.values),
                "record_timestamp" => out.extend_from_slice(&self.record_times),
                "shard_id" => self.shards.write(out),
                "sequence_number" => out.extend_from_slice(&self.numbers),
                "sub_sequence_number" => out.extend_from_slice(&self.sub_numbers),
                "pipe_id" => (0..rows).for_each(|_| put_text(out, pipe)),
                "field_path" => out.extend_from_slice(&self.paths),
                _ => (0..rows).for_each(|_| put_text(out, &batch_text)),
            }
        }
    }
}

/// Milliseconds since the epoch at which the batch was named, which is when it was cut.
fn cut_time(batch: BatchId) -> i64 {
    let millis = Ulid::from_string(&batch.to_string()).map_or(0, |ulid| ulid.timestamp_ms());
    i64::try_from(millis).unwrap_or(i64::MAX)
}

/// The message, bounded, with a word on what of the record is missing.
fn message(rejected: &Rejected<'_>) -> String {
    let mut end = rejected.message.len().min(MAX_MESSAGE_BYTES);
    while !rejected.message.is_char_boundary(end) {
        end -= 1;
    }
    let mut message = rejected.message[..end].to_owned();
    if end < rejected.message.len() {
        message.push('…');
    }
    if rejected.value.len() > MAX_VALUE_BYTES {
        message.push_str(&cut_note(MAX_VALUE_BYTES, rejected.value.len()));
    }
    message
}

/// A LowCardinality(String) column of few different values.
#[derive(Debug, Default)]
struct Dictionary {
    keys: Vec<String>,
    rows: Vec<u32>,
}

impl Dictionary {
    fn push(&mut self, value: &str) {
        // A block knows a handful of kinds and shards, and neighbours are alike: looking from the end finds it at once.
        let at = self.keys.iter().rposition(|key| key == value).unwrap_or_else(|| {
            self.keys.push(value.to_owned());
            self.keys.len() - 1
        });
        self.rows.push(u32::try_from(at).unwrap_or(u32::MAX));
    }

    fn clear(&mut self) {
        self.keys.clear();
        self.rows.clear();
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&DICTIONARY_VERSION.to_le_bytes());
        if self.rows.is_empty() {
            return;
        }
        // Width of an index: 0 is one byte, 1 two, 2 four.
        let width: u64 = match self.keys.len() {
            0..=0x100 => 0,
            0x101..=0x1_0000 => 1,
            _ => 2,
        };
        out.extend_from_slice(&(DICTIONARY_FLAGS | width).to_le_bytes());
        out.extend_from_slice(&(self.keys.len() as u64).to_le_bytes());
        self.keys.iter().for_each(|key| put_text(out, key));
        out.extend_from_slice(&(self.rows.len() as u64).to_le_bytes());
        for row in &self.rows {
            out.extend_from_slice(&row.to_le_bytes()[..1 << width]);
        }
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

#[cfg(test)]
mod tests {
    use millrace_common::ids::SequenceNumber;

    use super::*;

    fn block(records: &[(&str, &[u8])]) -> ErrorBlock {
        let shard: ShardId = "shardId-000000000000".parse().unwrap();
        let number: SequenceNumber = "49590338271490256608559692538361571095921575989136588898"
            .parse()
            .unwrap();
        let mut block = ErrorBlock::new();
        for (kind, value) in records {
            block.push(&Rejected {
                error_type: kind,
                message: "bad",
                field_path: "a.b",
                partition_key: b"key",
                value,
                arrival_millis: 1_760_000_000_123,
                shard: &shard,
                sequence_number: number.as_bytes(),
                sub_sequence_number: 7,
            });
        }
        block
    }

    fn native(block: &ErrorBlock, batch: BatchId) -> Vec<u8> {
        let mut out = Vec::new();
        block.write_native("projects/p/pipes/x", batch, &mut out);
        out
    }

    #[test]
    fn a_replay_builds_the_same_bytes() {
        let batch: BatchId = "01J9Z8Q6W4W3T1V5N7X2K0ABCD".parse().unwrap();
        let records: &[(&str, &[u8])] = &[("PARSE", b"{"), ("TYPE", b"\xff\x00"), ("PARSE", b"")];
        let first = native(&block(records), batch);
        let mut again = block(&[("OTHER", b"before")]);
        again.clear();
        assert!(again.is_empty());
        for (kind, value) in records {
            let one = block(&[(kind, value)]);
            assert_eq!(one.rows(), 1);
        }
        assert_eq!(first, native(&block(records), batch));
        assert_ne!(
            first,
            native(&block(records), "01J9Z8Q6W4W3T1V5N7X2K0ABCE".parse().unwrap())
        );
        assert_eq!(first[..2], [12, 3]);
    }

    #[test]
    fn a_cleared_block_is_as_a_new_one() {
        let batch: BatchId = "01J9Z8Q6W4W3T1V5N7X2K0ABCD".parse().unwrap();
        let mut block = block(&[("A", b"x"), ("B", b"y")]);
        block.clear();
        assert_eq!(native(&block, batch), native(&ErrorBlock::new(), batch));
    }

    #[test]
    fn the_time_of_the_error_is_in_the_batch() {
        let ulid = Ulid::from_parts(1_760_000_000_456, 1);
        assert_eq!(cut_time(ulid.to_string().parse().unwrap()), 1_760_000_000_456);
    }

    #[test]
    fn values_and_messages_are_bounded_and_say_so() {
        let value = vec![b'x'; MAX_VALUE_BYTES + 1];
        let block = block(&[("SIZE", &value)]);
        assert!(block.values.len() <= MAX_VALUE_BYTES + 5);
        let said = String::from_utf8_lossy(&block.messages).into_owned();
        assert!(said.contains("first 1048576 of 1048577 bytes"), "{said}");
        let long = "ü".repeat(MAX_MESSAGE_BYTES);
        let shard: ShardId = "shardId-000000000000".parse().unwrap();
        let number: SequenceNumber = "1".parse().unwrap();
        let text = message(&Rejected {
            error_type: "T",
            message: &long,
            field_path: "",
            partition_key: b"",
            value: b"",
            arrival_millis: 0,
            shard: &shard,
            sequence_number: number.as_bytes(),
            sub_sequence_number: 0,
        });
        assert!(text.len() <= MAX_MESSAGE_BYTES + 3 && text.ends_with('…'));
    }

    #[test]
    fn a_dictionary_grows_its_index_with_its_keys() {
        let mut dictionary = Dictionary::default();
        for key in 0..300 {
            dictionary.push(&key.to_string());
        }
        dictionary.push("7");
        let mut out = Vec::new();
        dictionary.write(&mut out);
        assert_eq!(out[8..16], (DICTIONARY_FLAGS | 1).to_le_bytes());
        assert_eq!(out[16..24], 300u64.to_le_bytes());
        assert_eq!(out[out.len() - 2..], 7u16.to_le_bytes());
    }
}

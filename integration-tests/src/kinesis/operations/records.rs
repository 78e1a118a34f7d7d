//! Records: put, iterate, get.

use std::io::Write as _;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::account::Account;
use super::super::cursor::{Kind, LIFE_MS, ShardIterator};
use super::super::error::{Error, ErrorKind};
use super::super::log::Data;
use super::super::sequence::SequenceNumber;
use super::super::shard::{self, Start};
use super::super::stream::{Incoming, MAX_RECORD_KIB, Stream};
use super::super::validate::Checks;
use super::shards::describe_child;
use super::{Reply, StreamRef, Text, given, input, millis, text};

/// Most records of one PutRecords.
pub(in super::super) const MAX_BATCH_RECORDS: usize = 500;
/// Most bytes of data and partition keys of one PutRecords.
pub(in super::super) const MAX_BATCH_BYTES: usize = 10 << 20;
/// Most records of one GetRecords, and how many it gives when not asked for less.
const MAX_PAGE_RECORDS: usize = 10_000;
pub(super) const ITERATOR_TYPES: &[&str] = &[
    "AFTER_SEQUENCE_NUMBER",
    "LATEST",
    "AT_TIMESTAMP",
    "AT_SEQUENCE_NUMBER",
    "TRIM_HORIZON",
];

/// The fields of one record to be put.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    #[serde(borrow)]
    data: Option<Text<'a>>,
    #[serde(borrow)]
    partition_key: Option<Text<'a>>,
    #[serde(borrow)]
    explicit_hash_key: Option<Text<'a>>,
}

impl Entry<'_> {
    fn check(&self, checks: &mut Checks, path: &str) {
        checks.required(&format!("{path}data"), self.data.as_ref());
        checks.length(
            &format!("{path}data"),
            self.incoming_data().len(),
            0,
            (MAX_RECORD_KIB as usize) << 10,
        );
        checks.required(&format!("{path}partitionKey"), self.partition_key.as_ref());
        checks.partition_key(&format!("{path}partitionKey"), text(&self.partition_key));
        checks.hash_key(&format!("{path}explicitHashKey"), text(&self.explicit_hash_key));
    }

    fn incoming_data(&self) -> Data<'_> {
        Data::Base64(given(&self.data))
    }

    /// The record of a checked entry, if the stream takes one so large and the text is base64.
    fn incoming(&self, max_record_bytes: usize) -> Result<Incoming<'_>, Error> {
        base64_simd::STANDARD
            .check(given(&self.data).as_bytes())
            .map_err(|_| Error::new(ErrorKind::Serialization, "Data is not base64."))?;
        let record = Incoming {
            key: given(&self.partition_key),
            explicit_hash_key: text(&self.explicit_hash_key).map(explicit_hash_key).transpose()?,
            data: self.incoming_data(),
        };
        let bytes = record.data.len() + record.key.len();
        if bytes > max_record_bytes {
            return Err(Error::invalid_argument(format!(
                "Record size {bytes} exceeds the stream's maximum record size of {max_record_bytes} bytes."
            )));
        }
        Ok(record)
    }
}

fn explicit_hash_key(digits: &str) -> Result<u128, Error> {
    digits.parse().map_err(|_| {
        Error::invalid_argument(format!(
            "Invalid ExplicitHashKey. ExplicitHashKey must be in the range: [0, 2^128-1]. Specified value was {digits}"
        ))
    })
}

#[derive(Deserialize)]
struct PutOne<'a> {
    #[serde(borrow, flatten)]
    stream: StreamRef<'a>,
    #[serde(borrow, flatten)]
    record: Entry<'a>,
    #[serde(borrow, rename = "SequenceNumberForOrdering")]
    after: Option<Text<'a>>,
}

pub(super) fn put_one(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: PutOne<'_> = input(body)?;
    let mut checks = Checks::default();
    checks.name("streamName", request.stream.name());
    request.record.check(&mut checks, "");
    checks.sequence("sequenceNumberForOrdering", text(&request.after));
    checks.finish()?;
    let stream = account.readable_stream(request.stream.name(), request.stream.arn())?;
    if let Some(after) = text(&request.after).filter(|after| SequenceNumber::parse(after).is_none()) {
        return Err(Error::invalid_argument(format!(
            "ExclusiveMinimumSequenceNumber {after} used in PutRecord on {} is invalid.",
            stream.label()
        )));
    }
    let record = request.record.incoming(max_record_bytes(&stream))?;
    let mut placed = None;
    stream.put(account.now_ms(), account.options.enforce_limits, [record], |result| {
        placed = Some(result);
    });
    match placed {
        Some(Ok((index, sequence))) => {
            Ok(json!({ "ShardId": shard::id(index), "SequenceNumber": sequence.to_string() }).into())
        }
        Some(Err(throttled)) => Err(stream.rate_exceeded(throttled.shard)),
        None => Err(Error::new(ErrorKind::InternalFailure, "The record was not placed.")),
    }
}

#[derive(Deserialize)]
struct PutMany<'a> {
    #[serde(borrow, rename = "StreamName")]
    stream_name: Option<Text<'a>>,
    #[serde(borrow, rename = "StreamARN")]
    stream_arn: Option<Text<'a>>,
    #[serde(borrow, rename = "Records")]
    records: Option<Vec<Entry<'a>>>,
}

pub(super) fn put_many(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: PutMany<'_> = input(body)?;
    let mut checks = Checks::default();
    checks.name("streamName", text(&request.stream_name));
    checks.required("records", request.records.as_ref());
    let entries = request.records.unwrap_or_default();
    checks.length("records", entries.len(), 1, MAX_BATCH_RECORDS);
    for (i, entry) in entries.iter().take(MAX_BATCH_RECORDS).enumerate() {
        entry.check(&mut checks, &format!("records.{}.member.", i + 1));
    }
    checks.finish()?;

    let stream = account.readable_stream(text(&request.stream_name), text(&request.stream_arn))?;
    let limit = max_record_bytes(&stream);
    let records = entries
        .iter()
        .map(|entry| entry.incoming(limit))
        .collect::<Result<Vec<_>, _>>()?;
    if records
        .iter()
        .map(|record| record.data.len() + record.key.len())
        .sum::<usize>()
        > MAX_BATCH_BYTES
    {
        return Err(Error::invalid_argument(format!(
            "Records size exceeds {} MB limit",
            MAX_BATCH_BYTES >> 20
        )));
    }
    Ok(put_batch(account, &stream, records))
}

/// Appends and answers. The answer is written as text at once: a JSON tree of 500 results costs more than the records.
fn put_batch<'a>(account: &Account, stream: &Stream, records: Vec<Incoming<'a>>) -> Reply {
    let mut results = Vec::with_capacity(records.len() * 128);
    let mut failed = 0;
    stream.put(account.now_ms(), account.options.enforce_limits, records, |result| {
        if !results.is_empty() {
            results.push(b',');
        }
        // Writing to a Vec cannot fail.
        let _ = match result {
            Ok((index, sequence)) => {
                write!(
                    results,
                    r#"{{"SequenceNumber":"{sequence}","ShardId":"{}"}}"#,
                    shard::id(index)
                )
            }
            Err(throttled) => {
                failed += 1;
                let error = stream.rate_exceeded(throttled.shard);
                let entry = json!({ "ErrorCode": error.kind.name(), "ErrorMessage": error.message });
                write!(results, "{entry}")
            }
        };
    });
    let head = format!(r#"{{"FailedRecordCount":{failed},"Records":["#);
    Reply {
        pieces: vec![head.into(), results.into(), Bytes::from_static(b"]}")],
        ..Reply::default()
    }
}

#[derive(Deserialize)]
struct GetIterator<'a> {
    #[serde(borrow, flatten)]
    stream: StreamRef<'a>,
    #[serde(borrow, rename = "ShardId")]
    shard: Option<Text<'a>>,
    #[serde(borrow, rename = "ShardIteratorType")]
    kind: Option<Text<'a>>,
    #[serde(borrow, rename = "StartingSequenceNumber")]
    sequence: Option<Text<'a>>,
    #[serde(rename = "Timestamp")]
    timestamp: Option<f64>,
}

pub(super) fn get_iterator(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: GetIterator<'_> = input(body)?;
    let mut checks = Checks::default();
    checks.name("streamName", request.stream.name());
    checks.required("shardId", request.shard.as_ref());
    checks.name("shardId", text(&request.shard));
    checks.required("shardIteratorType", request.kind.as_ref());
    checks.one_of("shardIteratorType", text(&request.kind), ITERATOR_TYPES);
    checks.sequence("startingSequenceNumber", text(&request.sequence));
    checks.finish()?;

    let now_ms = account.now_ms();
    let stream = account.readable_stream(request.stream.name(), request.stream.arn())?;
    let index = stream.index_of(given(&request.shard))?;
    let start = start(
        given(&request.kind),
        text(&request.sequence),
        request.timestamp,
        (&stream, index),
        now_ms,
    )?;
    account.refuse_trimmed(&stream, index, start, now_ms)?;
    let iterator = ShardIterator {
        stream: stream.identity.name.clone(),
        created_s: stream.identity.created_s,
        shard: index,
        ordinal: stream.ordinal_of(index, start, now_ms)?,
        issued_ms: now_ms,
    };
    Ok(json!({ "ShardIterator": account.seal.seal(Kind::ShardIterator, &iterator) }).into())
}

/// Where an iterator or a subscription of this kind starts in a shard.
pub(super) fn start(
    kind: &str,
    sequence: Option<&str>,
    timestamp: Option<f64>,
    (stream, shard): (&Stream, u32),
    now_ms: i64,
) -> Result<Start, Error> {
    match (kind, sequence, timestamp) {
        ("TRIM_HORIZON", None, _) => Ok(Start::TrimHorizon),
        ("LATEST", None, _) => Ok(Start::Latest),
        ("AT_TIMESTAMP", None, Some(seconds)) if millis(seconds) <= now_ms => Ok(Start::AtTimestamp(millis(seconds))),
        ("AT_TIMESTAMP", None, Some(seconds)) => Err(Error::invalid_argument(format!(
            "The timestampInMillis parameter cannot be greater than the currentTimestampInMillis. timestampInMillis: \
             {}, currentTimestampInMillis: {now_ms}",
            millis(seconds)
        ))),
        ("AT_TIMESTAMP", ..) => Err(Error::invalid_argument(
            "Must specify timestamp parameter and no StartingSequenceNumber for iterator of type AT_TIMESTAMP.",
        )),
        ("AT_SEQUENCE_NUMBER", Some(digits), _) => Ok(Start::At(sequence_of(digits, stream, shard, now_ms)?)),
        ("AFTER_SEQUENCE_NUMBER", Some(digits), _) => Ok(Start::After(sequence_of(digits, stream, shard, now_ms)?)),
        (_, sequence, _) => Err(Error::invalid_argument(format!(
            "Must either specify (1) AT_SEQUENCE_NUMBER or AFTER_SEQUENCE_NUMBER and StartingSequenceNumber or (2) \
             TRIM_HORIZON or LATEST and no StartingSequenceNumber. Request specified {kind} and {} \
             StartingSequenceNumber.",
            if sequence.is_some() { "also a" } else { "no" }
        ))),
    }
}

/// Reads a sequence number that must be of this shard of this stream.
fn sequence_of(digits: &str, stream: &Stream, index: u32, now_ms: i64) -> Result<SequenceNumber, Error> {
    let used = || {
        format!(
            "StartingSequenceNumber {digits} used in GetShardIterator on shard {}",
            shard::id(index)
        )
    };
    let Some(sequence) = SequenceNumber::parse(digits) else {
        return Err(Error::invalid_argument(format!(
            "{} in {} is invalid.",
            used(),
            stream.label()
        )));
    };
    let parts = sequence.parts();
    if parts.shard != index {
        return Err(Error::invalid_argument(format!(
            "Invalid StartingSequenceNumber. It encodes {}, while it was used in a call to a shard with {}",
            shard::id(parts.shard),
            shard::id(index)
        )));
    }
    if stream.shard(index, now_ms)?.epoch_s != parts.epoch_s {
        return Err(Error::invalid_argument(format!(
            "{} in {} is invalid because it did not come from this stream.",
            used(),
            stream.label()
        )));
    }
    Ok(sequence)
}

#[derive(Deserialize)]
struct Get<'a> {
    #[serde(borrow, rename = "ShardIterator")]
    iterator: Option<Text<'a>>,
    #[serde(rename = "Limit")]
    limit: Option<i64>,
    #[serde(borrow, rename = "StreamARN")]
    stream_arn: Option<Text<'a>>,
}

pub(super) fn get(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: Get<'_> = input(body)?;
    let mut checks = Checks::default();
    checks.required("shardIterator", request.iterator.as_ref());
    checks.iterator("shardIterator", text(&request.iterator));
    checks.range("limit", request.limit, 1, MAX_PAGE_RECORDS as i64);
    checks.finish()?;

    let now_ms = account.now_ms();
    let iterator = open_iterator(account, given(&request.iterator), now_ms)?;
    let stream = account.readable_stream(Some(&iterator.stream), text(&request.stream_arn))?;
    if stream.identity.created_s != iterator.created_s {
        return Err(Error::invalid_argument(format!(
            "The shard iterator used in GetRecords on shard {} in {} is invalid because it did not come from this \
             stream.",
            shard::id(iterator.shard),
            stream.label()
        )));
    }
    let limit = request.limit.map_or(MAX_PAGE_RECORDS, |limit| limit as usize);
    let shard_read = stream.read(
        iterator.shard,
        iterator.ordinal,
        limit,
        now_ms,
        account.options.enforce_limits,
    )?;
    let read = shard_read.read;

    let mut rest = json!({ "MillisBehindLatest": read.millis_behind_latest });
    if read.at_end {
        rest["ChildShards"] = shard_read.children.iter().map(|child| describe_child(child)).collect();
        // The SDKs take a null and a missing field alike; the service sends the null.
        rest["NextShardIterator"] = Value::Null;
    } else {
        let next = ShardIterator {
            ordinal: read.page.next_ordinal,
            issued_ms: now_ms,
            ..iterator
        };
        rest["NextShardIterator"] = json!(account.seal.seal(Kind::ShardIterator, &next));
    }
    let rest = rest.to_string();
    let mut pieces = Vec::with_capacity(read.page.json.len() + 2);
    pieces.push(Bytes::from_static(br#"{"Records":["#));
    pieces.extend(read.page.json);
    pieces.push(format!("],{}", &rest[1..]).into());
    Ok(Reply {
        pieces,
        ..Reply::default()
    })
}

fn open_iterator(account: &Account, token: &str, now_ms: i64) -> Result<ShardIterator, Error> {
    let iterator: ShardIterator = account
        .seal
        .open(Kind::ShardIterator, token)
        .ok_or_else(|| Error::invalid_argument("Invalid ShardIterator."))?;
    if now_ms - iterator.issued_ms > LIFE_MS {
        return Err(Error::new(
            ErrorKind::ExpiredIterator,
            format!(
                "Iterator expired. The iterator was created at time {} while right now it is {} which is further in \
                 the future than the tolerated delay of {LIFE_MS} milliseconds.",
                date(iterator.issued_ms),
                date(now_ms)
            ),
        ));
    }
    Ok(iterator)
}

/// A date as the service's messages show it: `Thu Jan 22 01:22:02 UTC 2015`.
fn date(ms: i64) -> String {
    Timestamp::from_millisecond(ms).map_or_else(
        |_| ms.to_string(),
        |time| time.strftime("%a %b %d %H:%M:%S UTC %Y").to_string(),
    )
}

fn max_record_bytes(stream: &Stream) -> usize {
    (stream.settings().max_record_kib as usize) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_in_messages_are_the_services() {
        assert_eq!(date(1_421_889_722_000), "Thu Jan 22 01:22:02 UTC 2015");
    }
}

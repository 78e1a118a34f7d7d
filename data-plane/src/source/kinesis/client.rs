//! The three Kinesis calls of a reader, in Millrace's own types. Retries nothing: one call is one attempt.

use std::{sync::Arc, time::Duration};

use aws_sdk_kinesis::{
    operation::get_records::GetRecordsOutput,
    types::{ChildShard, ConsumerStatus, Record as SdkRecord, ShardIteratorType},
};
use aws_smithy_types::DateTime;
use jiff::Timestamp;
use millrace_common::{
    aws,
    ids::{SequenceNumber, ShardId},
    position::Position,
};

use tokio::{sync::Mutex, time::Instant};

use super::{
    failure::Failure,
    fanout::Channels,
    gap::SHORTEST_RETENTION,
    listing::Listing,
    poll::CreatedStream,
    tap::{self, Tap, tapped},
};
use crate::source::{HashKeyRange, Record};

/// A connection to Kinesis with one identity; a cheap clone.
#[derive(Debug, Clone)]
pub struct Client {
    sdk: aws_sdk_kinesis::Client,
    identity: aws::Identity,
    channels: Channels,
    described: Arc<Mutex<Option<Described>>>,
    /// The consumer that was looked up, by its name: its ARN, or nothing where it was not ready.
    consumer: Arc<Mutex<Option<LookedUp>>>,
    listing: Arc<Mutex<Listing>>,
}

/// What was found under a consumer's name, and when that was asked.
#[derive(Debug)]
struct LookedUp {
    asked: Instant,
    name: String,
    arn: Option<String>,
}

/// What a stream was described as, and when that was asked.
#[derive(Debug)]
struct Described {
    asked: Instant,
    arn: String,
    stream: CreatedStream,
}

/// What to begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// The first record behind this place.
    Position(Position),
    /// This record itself, to see whether it is still there.
    Record(SequenceNumber),
}

/// What GetRecords answered; nothing is checked yet but that numbers are numbers.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Reply {
    pub(super) records: Vec<Record>,
    pub(super) next_iterator: Option<String>,
    pub(super) millis_behind: Option<i64>,
    pub(super) children: Option<Vec<Child>>,
}

/// What GetRecords answered, and who read it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) reply: Reply,
    /// The SDK had to read it, because our scan does not know all that it says.
    pub(super) by_sdk: bool,
}

/// A child shard as Kinesis names it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Child {
    pub(super) id: String,
    pub(super) parents: Vec<String>,
}

impl From<ChildShard> for Child {
    fn from(child: ChildShard) -> Self {
        Self {
            id: child.shard_id,
            parents: child.parent_shards,
        }
    }
}

impl Client {
    /// A client for `access`. Makes no call.
    pub async fn new(access: &aws::Access) -> Self {
        // The reader's own backoff knows the shard's limits; a second one inside the SDK would break its pace.
        let access = aws::Access {
            max_attempts: 1,
            ..access.clone()
        };
        let (config, identity) = aws::connect(&access).await;
        let config = aws_sdk_kinesis::config::Builder::from(&config);
        Self {
            identity,
            sdk: aws_sdk_kinesis::Client::from_conf(config.clone().http_client(Tap::new(tap::https())).build()),
            channels: Channels::new(config),
            described: Arc::default(),
            consumer: Arc::default(),
            listing: Arc::default(),
        }
    }

    /// A call that began at `started` was refused because of who made it: the next one is made with a session that is newer,
    /// if there can be one. All who share the session may say so; it is given up once.
    pub(super) async fn renew_identity(&self, started: Instant) {
        self.identity.renew(started).await;
    }

    /// Connections for subscriptions.
    pub(super) fn channels(&self) -> Channels {
        self.channels.clone()
    }

    pub(super) async fn shard_iterator(
        &self,
        stream_arn: &str,
        shard: &ShardId,
        from: &Origin,
    ) -> Result<String, Failure> {
        const CALL: &str = "GetShardIterator";
        let call = self
            .sdk
            .get_shard_iterator()
            .stream_arn(stream_arn)
            .shard_id(shard.as_str());
        let call = match from {
            Origin::Record(number) => call
                .shard_iterator_type(ShardIteratorType::AtSequenceNumber)
                .starting_sequence_number(number.as_str()),
            Origin::Position(Position::TrimHorizon) => call.shard_iterator_type(ShardIteratorType::TrimHorizon),
            Origin::Position(Position::AtTimestamp(time)) => call
                .shard_iterator_type(ShardIteratorType::AtTimestamp)
                .timestamp(date_time(*time)),
            Origin::Position(Position::After(sequence_number)) => call
                .shard_iterator_type(ShardIteratorType::AfterSequenceNumber)
                .starting_sequence_number(sequence_number.as_str()),
        };
        let output = call.send().await.map_err(|error| Failure::of(CALL, &error))?;
        output
            .shard_iterator
            .ok_or_else(|| Failure::malformed(CALL, "an answer without an iterator"))
    }

    pub(super) async fn records(&self, stream_arn: &str, iterator: &str, limit: i32) -> Result<Answer, Failure> {
        const CALL: &str = "GetRecords";
        let call = self
            .sdk
            .get_records()
            .stream_arn(stream_arn)
            .shard_iterator(iterator)
            .limit(limit);
        // On the heap: it would be held several times over by who waits for it.
        let (output, taken) = tapped(Box::pin(call.send())).await;
        let output = output.map_err(|error| Failure::of(CALL, &error))?;
        if let Some(reply) = taken {
            return Ok(Answer { reply, by_sdk: false });
        }
        let reply =
            reply(output).map_err(|number| Failure::malformed(CALL, format!("{number:?} is not a sequence number")))?;
        Ok(Answer { reply, by_sdk: true })
    }

    /// What the stream is at some moment after this was asked. Readers of one lane that ask together share one call: there
    /// may be 20 a second in an account.
    pub(super) async fn stream(&self, stream_arn: &str) -> Result<CreatedStream, Failure> {
        let asked = Instant::now();
        let mut described = self.described.lock().await;
        if let Some(last) = &*described
            && last.asked >= asked
            && last.arn == stream_arn
        {
            return Ok(last.stream);
        }
        let asked = Instant::now();
        let stream = self.describe(stream_arn).await?;
        *described = Some(Described {
            asked,
            arn: stream_arn.to_owned(),
            stream,
        });
        Ok(stream)
    }

    /// The hash keys of a shard; `None` if Kinesis lists no such shard. Readers of one lane share one call.
    pub(super) async fn hash_keys(&self, stream_arn: &str, shard: &ShardId) -> Result<Option<HashKeyRange>, Failure> {
        let asked = Instant::now();
        let mut listing = self.listing.lock().await;
        if listing.find(shard).is_none() && !listing.is_newer_than(asked) {
            if let Some(failure) = listing.failed_since(asked) {
                return Err(failure);
            }
            listing.refresh(&self.sdk, stream_arn).await?;
        }
        Ok(listing.find(shard))
    }

    /// The ARN of the consumer of this name; `None` if it cannot be read with yet. Readers of one lane share one call: there may
    /// be 20 a second for a stream.
    pub(super) async fn consumer(&self, stream_arn: &str, name: &str) -> Result<Option<String>, Failure> {
        let asked = Instant::now();
        let mut known = self.consumer.lock().await;
        if let Some(last) = &*known
            && last.name == name
            && (last.arn.is_some() || last.asked >= asked)
        {
            return Ok(last.arn.clone());
        }
        *known = None;
        let asked = Instant::now();
        let arn = self.describe_consumer(stream_arn, name).await?;
        *known = Some(LookedUp {
            asked,
            name: name.to_owned(),
            arn: arn.clone(),
        });
        Ok(arn)
    }

    /// What was looked up is not there any more.
    pub(super) fn forget_consumer(&self) {
        // Whoever holds it is looking it up anew.
        if let Ok(mut known) = self.consumer.try_lock() {
            *known = None;
        }
    }

    async fn describe_consumer(&self, stream_arn: &str, name: &str) -> Result<Option<String>, Failure> {
        const CALL: &str = "DescribeStreamConsumer";
        let call = self
            .sdk
            .describe_stream_consumer()
            .stream_arn(stream_arn)
            .consumer_name(name);
        let output = call.send().await.map_err(|error| Failure::of(CALL, &error))?;
        let described = output
            .consumer_description
            .ok_or_else(|| Failure::malformed(CALL, "an answer without a description"))?;
        let ready = described.consumer_status == ConsumerStatus::Active;
        Ok(ready.then_some(described.consumer_arn))
    }

    async fn describe(&self, stream_arn: &str) -> Result<CreatedStream, Failure> {
        const CALL: &str = "DescribeStreamSummary";
        let call = self.sdk.describe_stream_summary().stream_arn(stream_arn);
        let output = call.send().await.map_err(|error| Failure::of(CALL, &error))?;
        output
            .stream_description_summary
            .map(|summary| {
                let created = &summary.stream_creation_timestamp;
                CreatedStream {
                    created_millis: created.to_millis().unwrap_or_default(),
                    retention: Duration::from_secs(u64::try_from(summary.retention_period_hours).unwrap_or(0) * 3600)
                        .max(SHORTEST_RETENTION),
                }
            })
            .ok_or_else(|| Failure::malformed(CALL, "an answer without a description"))
    }
}

pub(super) fn date_time(time: Timestamp) -> DateTime {
    // A `Timestamp` fits: both reach from year -9999 to 9999.
    DateTime::from_nanos(time.as_nanosecond()).unwrap_or_else(|_| DateTime::from_millis(time.as_millisecond()))
}

/// The answer in our types, or what should have been a sequence number.
pub(super) fn reply(output: GetRecordsOutput) -> Result<Reply, String> {
    let records = records(output.records)?;
    let children = output
        .child_shards
        .map(|children| children.into_iter().map(Child::from).collect());
    Ok(Reply {
        records,
        next_iterator: output.next_shard_iterator.filter(|iterator| !iterator.is_empty()),
        millis_behind: output.millis_behind_latest,
        children,
    })
}

/// Records in our type, or what should have been a sequence number.
pub(super) fn records(records: Vec<SdkRecord>) -> Result<Vec<Record>, String> {
    records.into_iter().map(record).collect()
}

/// Milliseconds since the epoch. Kinesis counts in these and writes them as seconds with a fraction, which in binary often
/// comes out a little low: so the nearest one is meant, not the last one before.
pub(super) fn millis(time: &DateTime) -> Option<i64> {
    i64::try_from((time.as_nanos() + 500_000).div_euclid(1_000_000)).ok()
}

fn record(record: SdkRecord) -> Result<Record, String> {
    let sequence_number: SequenceNumber = record.sequence_number.parse().map_err(|_| record.sequence_number)?;
    let arrival = record.approximate_arrival_timestamp.and_then(|time| millis(&time));
    let key = record.partition_key.unwrap_or_default();
    Ok(Record::new(
        &sequence_number,
        &key,
        arrival.unwrap_or_default(),
        record.data.as_ref(),
    ))
}

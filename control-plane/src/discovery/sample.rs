//! A few records of a stream, for people. No position is kept and no consumer is registered, so that no pipe notices, but for what
//! Kinesis allows of a shard, of which little is taken: calls on one shard are a quarter of a second apart.
//!
//! The newest records cannot be asked for: a shard is read forwards from a place. So reading begins a little in the past, and further
//! back where nothing is found.
//!
//! Invariant: time, calls, shards and bytes are bounded; what came until a bound was reached is given.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use aws_sdk_kinesis::{
    Client,
    error::ProvideErrorMetadata as _,
    types::{Record as KinesisRecord, ShardIteratorType},
};
use aws_smithy_types::DateTime;
use futures::StreamExt as _;
use jiff::Timestamp;
use millrace_common::{
    aws::Access,
    ids::ShardId,
    pipe::{StreamIdentity, StreamRef},
    reason,
};
use tokio::time::Instant;

use super::{DEADLINE, Error, Shard, aws};

/// Most shards of a sample: each costs calls.
pub const MAX_SHARDS: usize = 32;
/// Most records of a sample.
pub const MAX_RECORDS: u32 = 1_000;
/// Records if the request does not say.
pub const DEFAULT_RECORDS: u32 = 100;
/// Most bytes of a sample: it has to fit into an answer of gRPC, beside what is said of each record.
pub const MAX_BYTES: u64 = 2 << 20;
/// Bytes if the request does not say.
pub const DEFAULT_BYTES: u64 = 1 << 20;
/// Longest time to read.
pub const MAX_WAIT: Duration = Duration::from_secs(30);
/// Shortest time to read.
pub const MIN_WAIT: Duration = Duration::from_millis(100);
/// Time to read if the request does not say.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(10);
/// Shards that are read at the same time: a page may have 10 MiB.
const CONCURRENCY: usize = 4;
/// Between two calls on one shard, of which Kinesis allows five a second for all readers together.
const PACE: Duration = Duration::from_millis(250);
/// After Kinesis said that it is too much.
const THROTTLED_PAUSE: Duration = Duration::from_secs(1);
/// Calls to find records that are known to be there or not: on a sparse shard most answers are empty.
const CALLS: usize = 20;
/// Calls in one window of the past, for the newest records.
const CALLS_PER_WINDOW: usize = 4;
/// How far back the newest records are looked for, before the oldest are taken.
const WINDOWS: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(3_600)];
/// Records per call while the newest are looked for: most go by.
const NEWEST_PAGE: usize = 1_000;
/// Codes of Kinesis for "too many calls".
const THROTTLES: [&str; 4] = [
    "ProvisionedThroughputExceededException",
    "LimitExceededException",
    "ThrottlingException",
    "KMSThrottlingException",
];

/// Where to begin in each shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the newest records that a few calls find.
    Newest,
    /// With the oldest.
    Oldest,
    /// With the first that arrived then or later.
    At(Timestamp),
}

/// What to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Where to begin.
    pub start: Start,
    /// Only these shards; empty: all.
    pub shards: Vec<ShardId>,
    /// Most records.
    pub max_records: u32,
    /// Most bytes; one record is given whatever its size.
    pub max_bytes: u64,
    /// Longest time.
    pub max_wait: Duration,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            start: Start::Newest,
            shards: Vec::new(),
            max_records: DEFAULT_RECORDS,
            max_bytes: DEFAULT_BYTES,
            max_wait: DEFAULT_WAIT,
        }
    }
}

/// A Kinesis record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its shard; empty if it was given by a user.
    pub shard_id: String,
    /// The hash keys of its shard, if known.
    pub hash_keys: Option<(u128, u128)>,
    /// Its sequence number.
    pub sequence_number: String,
    /// Its partition key.
    pub partition_key: String,
    /// When it arrived, in milliseconds since 1970.
    pub arrival_millis: i64,
    /// Its bytes.
    pub data: Vec<u8>,
}

/// What was read of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardSample {
    /// The shard.
    pub shard: ShardId,
    /// Records that were found.
    pub found: u32,
    /// How far behind the newest record reading ended.
    pub lag: Option<Duration>,
    /// Why reading ended early.
    pub error: Option<Error>,
}

/// A few records of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The stream.
    pub stream: StreamIdentity,
    /// By shard, in the order of the shard.
    pub records: Vec<Record>,
    /// Shards that were looked at.
    pub shards: Vec<ShardSample>,
    /// Shards that were not.
    pub skipped: usize,
}

/// Reads a few records.
///
/// # Errors
/// If the stream cannot be looked at, or none of its shards can be read.
pub async fn sample(access: &Access, stream: &StreamRef, request: &Request, now: Timestamp) -> Result<Sample, Error> {
    let about = |error: Error| error.about(stream.name(), &access.region, access.endpoint.as_deref());
    let client = Client::new(&millrace_common::aws::config(access).await);
    let looking = async {
        let (identity, _) = aws::describe(&client, stream).await?;
        Ok((identity, aws::list(&client, stream).await?))
    };
    let (identity, shards) = match tokio::time::timeout(DEADLINE, looking).await {
        Ok(result) => result.map_err(about)?,
        Err(_) => return Err(late(access)),
    };
    let (chosen, skipped) = choose(shards, request).map_err(about)?;
    let until = Instant::now() + request.max_wait;
    let reader = Reader {
        client: &client,
        stream,
        request,
        now,
        until,
    };
    let read: Vec<Read> = futures::stream::iter(chosen)
        .map(|shard| reader.read(shard))
        .buffered(CONCURRENCY)
        .collect()
        .await;
    if read.iter().all(|read| read.records.is_empty())
        && let Some(error) = read.iter().find_map(|read| read.of.error.clone())
    {
        return Err(about(error));
    }
    let (records, shards) = merge(read, request);
    Ok(Sample {
        stream: identity,
        records,
        shards,
        skipped,
    })
}

fn late(access: &Access) -> Error {
    Error {
        reason: reason::SOURCE_UNREACHABLE,
        message: format!(
            "Kinesis in {} did not answer within {} s",
            access.region,
            DEADLINE.as_secs()
        ),
        field: "pipe.source.kinesis.region",
        permanent: false,
        said: String::new(),
    }
}

/// The shards to look at, and how many are left out.
fn choose(shards: Vec<Shard>, request: &Request) -> Result<(Vec<Shard>, usize), Error> {
    let all = shards.len();
    let mut wanted: Vec<Shard> = if !request.shards.is_empty() {
        let named: BTreeSet<&ShardId> = request.shards.iter().collect();
        if let Some(unknown) = named.iter().find(|id| !shards.iter().any(|shard| shard.id == ***id)) {
            return Err(Error {
                reason: reason::SOURCE_STREAM_NOT_FOUND,
                message: format!("has no shard {unknown}"),
                field: "options.shard_ids",
                permanent: true,
                said: String::new(),
            });
        }
        shards
            .iter()
            .filter(|shard| named.contains(&shard.id))
            .cloned()
            .collect()
    } else if request.start == Start::Newest && shards.iter().any(|shard| shard.open) {
        shards.into_iter().filter(|shard| shard.open).collect()
    } else {
        shards
    };
    let count = wanted.len();
    if count > MAX_SHARDS {
        let mut index = 0;
        wanted.retain(|_| {
            let (before, after) = (index * MAX_SHARDS / count, (index + 1) * MAX_SHARDS / count);
            index += 1;
            before != after
        });
    }
    let skipped = all - wanted.len();
    Ok((wanted, skipped))
}

/// What was read of a shard, in its order.
struct Read {
    of: ShardSample,
    records: VecDeque<Record>,
}

struct Reader<'a> {
    client: &'a Client,
    stream: &'a StreamRef,
    request: &'a Request,
    now: Timestamp,
    until: Instant,
}

impl Reader<'_> {
    async fn read(&self, shard: Shard) -> Read {
        let mut read = Read {
            of: ShardSample {
                shard: shard.id.clone(),
                found: 0,
                lag: None,
                error: None,
            },
            records: VecDeque::new(),
        };
        let result = match self.request.start {
            Start::Newest => self.newest(&shard, &mut read).await,
            start => self.walk(&shard, start, CALLS, &mut read).await,
        };
        read.of.error = result.err();
        read
    }

    async fn newest(&self, shard: &Shard, read: &mut Read) -> Result<(), Error> {
        for window in WINDOWS {
            let from = self.now.checked_sub(window).unwrap_or(Timestamp::UNIX_EPOCH);
            self.walk(shard, Start::At(from), CALLS_PER_WINDOW, read).await?;
            if !read.records.is_empty() {
                return Ok(());
            }
        }
        self.walk(shard, Start::Oldest, CALLS, read).await
    }

    /// Reads on from a place until there is enough, until the newest record, or until calls or time are used up.
    async fn walk(&self, shard: &Shard, start: Start, calls: usize, read: &mut Read) -> Result<(), Error> {
        let is_newest = self.request.start == Start::Newest;
        let wanted = self.request.max_records as usize;
        let mut iterator = Some(self.iterator(shard, start).await?);
        let mut throttled = None;
        for call in 0..calls {
            let Some(place) = iterator.as_deref() else { break };
            if call > 0 {
                self.pause(if throttled.is_some() { THROTTLED_PAUSE } else { PACE })
                    .await?;
            }
            let limit = if is_newest {
                NEWEST_PAGE
            } else {
                wanted - read.records.len()
            };
            let sent = self
                .client
                .get_records()
                .shard_iterator(place)
                .limit(i32::try_from(limit).unwrap_or(i32::MAX))
                .send();
            let output = match self.in_time(sent).await? {
                Ok(output) => output,
                Err(error) if error.code().is_some_and(|code| THROTTLES.contains(&code)) => {
                    throttled = Some(throttle(&shard.id));
                    continue;
                }
                Err(error) => return Err(Error::of_call("kinesis:GetRecords", &error)),
            };
            throttled = None;
            let behind = output
                .millis_behind_latest()
                .and_then(|millis| u64::try_from(millis).ok());
            read.of.lag = behind.map(Duration::from_millis);
            iterator = output.next_shard_iterator;
            for record in output.records {
                read.take(record, shard, self.request);
            }
            if behind == Some(0) || (!is_newest && read.is_full(self.request)) {
                break;
            }
        }
        throttled.map_or(Ok(()), Err)
    }

    async fn iterator(&self, shard: &Shard, start: Start) -> Result<String, Error> {
        let request = self.client.get_shard_iterator().shard_id(shard.id.as_str());
        let request = match self.stream {
            StreamRef::Name(name) => request.stream_name(name),
            StreamRef::Arn(arn) => request.stream_arn(arn),
        };
        let request = match start {
            Start::At(time) => request
                .shard_iterator_type(ShardIteratorType::AtTimestamp)
                .timestamp(DateTime::from_millis(time.as_millisecond())),
            Start::Oldest | Start::Newest => request.shard_iterator_type(ShardIteratorType::TrimHorizon),
        };
        let output = self
            .in_time(request.send())
            .await?
            .map_err(|error| Error::of_call("kinesis:GetShardIterator", &error))?;
        output
            .shard_iterator
            .ok_or_else(|| aws::odd("GetShardIterator said nothing"))
    }

    async fn pause(&self, pause: Duration) -> Result<(), Error> {
        self.in_time(tokio::time::sleep(pause)).await
    }

    async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T, Error> {
        // Boxed: the SDK's futures are large.
        tokio::time::timeout_at(self.until, Box::pin(work))
            .await
            .map_err(|_| Error {
                reason: reason::SOURCE_UNREACHABLE,
                message: format!(
                    "reading was ended after {:.1} s: a longer max_wait may find more",
                    self.request.max_wait.as_secs_f64()
                ),
                field: "options.max_wait",
                permanent: false,
                said: String::new(),
            })
    }
}

fn throttle(shard: &ShardId) -> Error {
    Error {
        reason: reason::SOURCE_THROTTLED,
        message: format!(
            "Kinesis allows no more reading of {shard} at the moment, because others read it: try again later"
        ),
        field: "pipe.source.kinesis.stream_name",
        permanent: false,
        said: String::new(),
    }
}

impl Read {
    fn bytes(&self) -> u64 {
        self.records.iter().map(|record| record.data.len() as u64).sum()
    }

    fn is_full(&self, request: &Request) -> bool {
        self.records.len() >= request.max_records as usize || self.bytes() >= request.max_bytes
    }

    /// Takes a record that stands behind those before, and keeps what is wanted: the last ones, or the first ones.
    fn take(&mut self, record: KinesisRecord, shard: &Shard, request: &Request) {
        self.of.found = self.of.found.saturating_add(1);
        let is_newest = request.start == Start::Newest;
        if !is_newest && self.is_full(request) {
            return;
        }
        self.records.push_back(Record {
            shard_id: shard.id.as_str().to_owned(),
            hash_keys: shard.hash_keys,
            sequence_number: record.sequence_number,
            partition_key: record.partition_key.unwrap_or_default(),
            arrival_millis: record
                .approximate_arrival_timestamp
                .and_then(|time| time.to_millis().ok())
                .unwrap_or(0),
            data: record.data.into_inner(),
        });
        let (most, bytes) = (request.max_records as usize, request.max_bytes);
        while is_newest && self.records.len() > 1 && (self.records.len() > most || self.bytes() > bytes) {
            self.records.pop_front();
        }
    }
}

/// As many records of each shard as fit, in turns, so that a busy shard does not leave out the others.
fn merge(mut read: Vec<Read>, request: &Request) -> (Vec<Record>, Vec<ShardSample>) {
    let is_newest = request.start == Start::Newest;
    let mut chosen: Vec<VecDeque<Record>> = read.iter().map(|_| VecDeque::new()).collect();
    let (mut count, mut bytes) = (0_u32, 0_u64);
    loop {
        let before = count;
        for (read, chosen) in read.iter_mut().zip(&mut chosen) {
            let next = if is_newest {
                read.records.back()
            } else {
                read.records.front()
            };
            let Some(size) = next.map(|record| record.data.len() as u64) else {
                continue;
            };
            let is_first = count == 0;
            if count >= request.max_records || (!is_first && bytes + size > request.max_bytes) {
                continue;
            }
            let (taken, place) = if is_newest {
                (read.records.pop_back(), 0)
            } else {
                (read.records.pop_front(), chosen.len())
            };
            if let Some(record) = taken {
                chosen.insert(place, record);
                (count, bytes) = (count + 1, bytes + size);
            }
        }
        if count == before {
            break;
        }
    }
    let shards = read.into_iter().map(|read| read.of).collect();
    (chosen.into_iter().flatten().collect(), shards)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(number: usize, open: bool) -> Shard {
        Shard {
            id: format!("shardId-{number:012}").parse().unwrap(),
            parents: Vec::new(),
            open,
            hash_keys: None,
        }
    }

    fn read(number: usize, sizes: &[usize]) -> Read {
        let record = |(index, size): (usize, &usize)| Record {
            shard_id: format!("{number}"),
            hash_keys: None,
            sequence_number: index.to_string(),
            partition_key: String::new(),
            arrival_millis: 0,
            data: vec![0; *size],
        };
        Read {
            of: ShardSample {
                shard: shard(number, true).id,
                found: sizes.len() as u32,
                lag: None,
                error: None,
            },
            records: sizes.iter().enumerate().map(record).collect(),
        }
    }

    fn merged(start: Start, max_records: u32, max_bytes: u64, read: Vec<Read>) -> Vec<(String, String)> {
        let request = Request {
            start,
            max_records,
            max_bytes,
            ..Request::default()
        };
        let (records, _) = merge(read, &request);
        records
            .into_iter()
            .map(|record| (record.shard_id, record.sequence_number))
            .collect()
    }

    fn places(places: &[(&str, &str)]) -> Vec<(String, String)> {
        places.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn a_busy_shard_does_not_leave_out_the_others() {
        let shards = || vec![read(0, &[1; 100]), read(1, &[1]), read(2, &[1, 1])];
        assert_eq!(
            merged(Start::Oldest, 5, 1_000, shards()),
            places(&[("0", "0"), ("0", "1"), ("1", "0"), ("2", "0"), ("2", "1")])
        );
        assert_eq!(
            merged(Start::Newest, 5, 1_000, shards()),
            places(&[("0", "98"), ("0", "99"), ("1", "0"), ("2", "0"), ("2", "1")])
        );
    }

    #[test]
    fn one_record_is_given_whatever_its_size() {
        assert_eq!(
            merged(Start::Oldest, 5, 10, vec![read(0, &[100, 1]), read(1, &[1])]),
            places(&[("0", "0")])
        );
        assert_eq!(
            merged(Start::Oldest, 5, 10, vec![read(0, &[8, 8]), read(1, &[1])]),
            places(&[("0", "0"), ("1", "0")])
        );
        assert!(merged(Start::Oldest, 5, 10, vec![read(0, &[])]).is_empty());
    }

    #[test]
    fn shards_are_chosen_within_bounds() {
        let shards: Vec<Shard> = (0..1_000).map(|number| shard(number, number % 2 == 0)).collect();
        let (chosen, skipped) = choose(shards.clone(), &Request::default()).unwrap();
        assert_eq!((chosen.len(), skipped), (MAX_SHARDS, 1_000 - MAX_SHARDS));
        assert!(chosen.iter().all(|shard| shard.open));
        assert!(chosen.last().unwrap().id > shards[900].id, "spread over all");
        let named = Request {
            shards: vec![shards[7].id.clone()],
            ..Request::default()
        };
        assert_eq!(
            choose(shards[..9].to_vec(), &named).unwrap(),
            (vec![shards[7].clone()], 8)
        );
        let unknown = choose(shards[..7].to_vec(), &named).unwrap_err();
        assert_eq!(unknown.field, "options.shard_ids");
        let closed: Vec<Shard> = shards.iter().filter(|shard| !shard.open).take(3).cloned().collect();
        assert_eq!(choose(closed, &Request::default()).unwrap().0.len(), 3);
    }
}

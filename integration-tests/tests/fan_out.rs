//! The reader of one shard by enhanced fan-out, against the emulator: what it lives through without losing or doubling a record.
//!
//! The emulator's clock is moved by the tests; the reader's is real, so each of its waits of five seconds is one here. What needs many of
//! them runs side by side, a shard each.

#![allow(clippy::print_stderr, reason = "how long things took is worth reading in the log")]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use millrace_common::{aws, pipe::StreamIdentity, position::Position, reason};
use millrace_data_plane::source::kinesis::{Client, Consumer, Counters, Reader, ReaderOptions, Stop};
use millrace_data_plane::source::{self, Budget, Page, Record, Trouble};
use millrace_integration_tests::kinesis::{
    Clock, Emulator, ErrorKind, Fault, Handle, HashKeyRange, Operation, Options, Put, Rule, StreamSpec,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[path = "fan_out/night.rs"]
mod night;
#[path = "fan_out/orphans.rs"]
mod orphans;
#[path = "fan_out/pipe.rs"]
mod pipe;

const STREAM: &str = "events";
const SHARD_0: &str = "shardId-000000000000";
/// Longer than anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);
const MIB: usize = 1 << 20;

struct Bed {
    kinesis: Handle,
    clock: Clock,
    client: Client,
    identity: StreamIdentity,
    consumer: String,
}

impl Bed {
    async fn new(shards: u32) -> Result<Self> {
        Self::with_clock(shards, Clock::system()).await
    }

    async fn with_clock(shards: u32, clock: Clock) -> Result<Self> {
        let kinesis = Emulator::start(Options {
            streams: vec![StreamSpec::new(STREAM, shards)],
            clock: clock.clone(),
            ..Options::default()
        })
        .await?;
        let access = aws::Access {
            region: "us-east-1".to_owned(),
            endpoint: Some(kinesis.endpoint_url()),
            credential: aws::Credential::Keys {
                access_key_id: "AKIDEXAMPLE".to_owned(),
                secret_access_key: "secret".to_owned().into(),
                session_token: None,
            },
            max_attempts: 5,
            scope: None,
            identities: None,
            settings: millrace_common::aws::Settings::default(),
        };
        let sdk = aws_sdk_kinesis::Client::new(&aws::config(&access).await);
        let summary = sdk.describe_stream_summary().stream_name(STREAM).send().await?;
        let summary = summary.stream_description_summary.context("a description")?;
        let identity = StreamIdentity {
            arn: summary.stream_arn,
            name: STREAM.to_owned(),
            created: Timestamp::from_millisecond(summary.stream_creation_timestamp.to_millis()?)?,
        };
        Ok(Self {
            consumer: kinesis.register_consumer(STREAM, "reader")?,
            client: Client::new(&access).await,
            kinesis,
            clock,
            identity,
        })
    }

    /// Puts records of `bytes` bytes with these numbers in front into the shard with this number.
    fn put(&self, shard: usize, numbers: Range<u32>, bytes: usize) -> Result<()> {
        let HashKeyRange { start_inclusive, .. } = self.kinesis.shards(STREAM)?[shard].range;
        let records: Vec<Vec<u8>> = numbers
            .map(|number| {
                let mut data = vec![b'.'; bytes.max(4)];
                data[..4].copy_from_slice(&number.to_be_bytes());
                data
            })
            .collect();
        let puts = records.iter().map(|data| Put {
            explicit_hash_key: Some(start_inclusive),
            ..Put::new("key", data)
        });
        self.kinesis.put_records_direct(STREAM, puts)?;
        Ok(())
    }

    fn read(&self, shard: &str, start: Position) -> Result<Reading> {
        self.read_with(shard, start, &self.consumer, &Budget::new(64 * MIB))
    }

    fn read_with(&self, shard: &str, start: Position, consumer: &str, budget: &Arc<Budget>) -> Result<Reading> {
        let options = ReaderOptions::new(self.identity.clone(), shard.parse()?, start);
        let reader = Reader::new(self.client.clone(), options).with_fan_out(Consumer::Arn(consumer.to_owned()));
        Ok(Reading::start(reader, Arc::clone(budget)))
    }
}

struct Reading {
    pages: mpsc::Receiver<Page>,
    trouble: watch::Receiver<Option<Trouble>>,
    counters: Arc<Counters>,
    cancel: CancellationToken,
    task: JoinHandle<Result<Stop, source::Error>>,
    last: Option<Position>,
}

impl Reading {
    fn start(reader: Reader, budget: Arc<Budget>) -> Self {
        let (out, pages) = mpsc::channel(1);
        let (trouble, counters) = (reader.trouble(), reader.counters());
        let cancel = CancellationToken::new();
        let task = tokio::spawn(reader.run(out, budget, cancel.clone()));
        Self {
            pages,
            trouble,
            counters,
            cancel,
            task,
            last: None,
        }
    }

    async fn page(&mut self) -> Result<Option<Page>> {
        let page = tokio::time::timeout(LIMIT, self.pages.recv())
            .await
            .context("no page within the limit")?;
        if let Some(last) = page.as_ref().and_then(|page| page.last.clone()) {
            self.last = Some(Position::After(last));
        }
        Ok(page)
    }

    /// Reads until `count` records have come, and no more.
    async fn records(&mut self, count: usize) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        while records.len() < count {
            let page = self.page().await?.context("the reader ended early")?;
            records.extend(page.records);
        }
        ensure!(records.len() == count, "{} records instead of {count}", records.len());
        Ok(records)
    }

    async fn shows(&mut self, wanted: Option<&str>) -> Result<Option<Trouble>> {
        let shown = self
            .trouble
            .wait_for(|trouble| trouble.as_ref().map(|trouble| trouble.reason) == wanted);
        Ok(tokio::time::timeout(LIMIT, shown)
            .await
            .context("the trouble is not shown")??
            .clone())
    }

    fn subscriptions(&self) -> u64 {
        self.counters.subscriptions.load(Ordering::Relaxed)
    }

    /// Waits for this many subscriptions: a page may come at the end of the one before.
    async fn subscribed(&self, count: u64) -> Result<()> {
        let started = Instant::now();
        while self.subscriptions() < count {
            ensure!(
                started.elapsed() < LIMIT,
                "{} subscriptions instead of {count}",
                self.subscriptions()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn stop(self) -> Result<()> {
        self.cancel.cancel();
        drop(self.pages);
        self.task.await??;
        Ok(())
    }
}

fn numbers(records: &[Record]) -> Vec<u32> {
    let number = |record: &Record| {
        let data = record.data();
        u32::from_be_bytes([data[0], data[1], data[2], data[3]])
    };
    records.iter().map(number).collect()
}

fn range(numbers: Range<u32>) -> Vec<u32> {
    numbers.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_is_read_through_renewals_to_its_end() -> Result<()> {
    let bed = Bed::new(1).await?;
    bed.put(0, 0..100, 100)?;
    let mut reading = bed.read(SHARD_0, Position::TrimHorizon)?;
    assert_eq!(numbers(&reading.records(100).await?), range(0..100));
    for round in 1..4 {
        // Kinesis ends it after five minutes, in one of three states: just read, idle, and with something unread.
        if round == 2 {
            let idle = reading.page().await?.context("a heartbeat")?;
            assert!(idle.records.is_empty() && idle.lag == Some(Duration::ZERO));
        }
        let first = round * 100;
        if round == 3 {
            bed.put(0, first..first + 50, 100)?;
        }
        bed.clock.advance(Duration::from_secs(300));
        if round != 3 {
            bed.put(0, first..first + 50, 100)?;
        }
        bed.put(0, first + 50..first + 100, 100)?;
        let started = Instant::now();
        assert_eq!(numbers(&reading.records(100).await?), range(first..first + 100));
        eprintln!("renewal {round}: read on after {} ms", started.elapsed().as_millis());
        reading.subscribed(u64::from(round) + 1).await?;
    }
    assert_eq!(reading.subscriptions(), 4);
    assert_eq!(bed.kinesis.calls(Operation::GetRecords), 0);
    assert_eq!(bed.kinesis.calls(Operation::GetShardIterator), 0);
    bed.put(0, 400..410, 100)?;
    bed.kinesis.split_shard(STREAM, SHARD_0)?;
    let mut rest = Vec::new();
    let mut children = Vec::new();
    while let Some(page) = reading.page().await? {
        rest.extend(page.records);
        children.extend(page.end.into_iter().flat_map(|end| end.children));
    }
    assert_eq!(numbers(&rest), range(400..410));
    assert_eq!(children.len(), 2);
    assert_eq!(children[0].parents[0].as_str(), SHARD_0);
    assert_eq!((&mut reading.task).await??, Stop::ShardEnd);
    assert_eq!(reading.counters.duplicates.load(Ordering::Relaxed), 0);
    // The last event of a shard, with its children, is left to the SDK.
    assert_eq!(reading.counters.read_by_sdk.load(Ordering::Relaxed), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_breaks_a_subscription_costs_no_record_and_doubles_none() -> Result<()> {
    let faults = [
        Fault::BadCrc,
        Fault::BadPreludeCrc,
        Fault::CutFrame,
        Fault::Break,
        Fault::End,
        Fault::Stall,
        Fault::StallInFrame,
        Fault::UnknownEvent,
        Fault::Repeat,
        Fault::GoAway,
        Fault::Reset,
        Fault::Error(ErrorKind::InternalFailure),
        Fault::Error(ErrorKind::KmsThrottling),
        Fault::Error(ErrorKind::ResourceInUse),
    ];
    let bed = Bed::new(faults.len() as u32).await?;
    let mut readings = Vec::new();
    let mut strikes = Vec::new();
    for (index, fault) in faults.into_iter().enumerate() {
        let shard = bed.kinesis.shards(STREAM)?[index].id.clone();
        strikes.push(
            bed.kinesis
                .script(Rule::on_event(fault).of_shard(index as u32).after(1).times(1)),
        );
        bed.put(index, 0..50, 100)?;
        readings.push(bed.read(&shard, Position::TrimHorizon)?);
    }
    for reading in &mut readings {
        assert_eq!(numbers(&reading.records(50).await?), range(0..50));
    }
    let started = Instant::now();
    for index in 0..faults.len() {
        bed.put(index, 50..100, 100)?;
    }
    let reads = readings.iter_mut().zip(faults).map(|(reading, fault)| async move {
        let records = reading.records(50).await.with_context(|| format!("{fault:?}"))?;
        // From now on nobody drains it until all others are here, so later it may be given up.
        anyhow::Ok((fault, started.elapsed(), numbers(&records), reading.subscriptions()))
    });
    for (fault, took, got, subscriptions) in futures::future::try_join_all(reads).await? {
        eprintln!("{fault:?}: went on after {} ms", took.as_millis());
        assert_eq!(got, range(50..100), "{fault:?}");
        let harmless = matches!(fault, Fault::UnknownEvent | Fault::Repeat | Fault::GoAway);
        assert_eq!(subscriptions, if harmless { 1 } else { 2 }, "{fault:?}");
    }
    for (index, reading) in readings.iter_mut().enumerate() {
        bed.put(index, 100..110, 100)?;
        assert_eq!(
            numbers(&reading.records(10).await?),
            range(100..110),
            "{:?}",
            faults[index]
        );
    }
    for (strikes, fault) in strikes.iter().zip(faults) {
        assert_eq!(strikes.count(), 1, "{fault:?}");
    }
    let count = |fault: Fault| {
        faults
            .iter()
            .position(|other| *other == fault)
            .map(|index| &readings[index])
    };
    let repeated = count(Fault::Repeat).context("it is in the list")?;
    // As many as were in the event that came twice: records may be put while the first of them are on their way.
    let duplicates = repeated.counters.duplicates.load(Ordering::Relaxed);
    assert!((1..=50).contains(&duplicates), "{duplicates}");
    let unknown = count(Fault::UnknownEvent).context("it is in the list")?;
    assert_eq!(unknown.counters.unknown_events.load(Ordering::Relaxed), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_is_calm_and_nothing_is_missed() -> Result<()> {
    let bed = Bed::new(1).await?;
    bed.put(0, 0..10, 100)?;
    let mut old = bed.read(SHARD_0, Position::TrimHorizon)?;
    assert_eq!(numbers(&old.records(10).await?), range(0..10));
    let from = old.last.clone().context("it has read")?;
    // The next owner begins at once, while the old one does not know yet.
    let started = Instant::now();
    let mut new = bed.read(SHARD_0, from)?;
    bed.put(0, 10..20, 100)?;
    assert_eq!(numbers(&new.records(10).await?), range(10..20));
    let waited = started.elapsed();
    eprintln!("the new owner read after {} ms", waited.as_millis());
    assert!(waited < Duration::from_secs(3), "it polls while it may not subscribe");
    while new.subscriptions() == 0 {
        ensure!(started.elapsed() < LIMIT, "it goes on polling");
        let idle = new.page().await?.context("the shard is open")?;
        assert!(idle.records.is_empty());
    }
    let calls = bed.kinesis.calls(Operation::SubscribeToShard);
    assert!(calls <= 10, "{calls} calls in {:?}", started.elapsed());
    // The old one is told before it may try to take the shard back.
    old.stop().await?;
    bed.put(0, 20..30, 100)?;
    assert_eq!(numbers(&new.records(10).await?), range(20..30));
    assert_eq!(bed.kinesis.subscriptions(STREAM, SHARD_0)?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_fan_out_cannot_be_used_the_shard_is_polled_and_that_is_said() -> Result<()> {
    let bed = Bed::new(2).await?;
    bed.put(0, 0..10, 100)?;
    bed.put(1, 0..10, 100)?;
    let gone = format!("{}/consumer/gone:1", bed.identity.arn);
    let budget = Budget::new(64 * MIB);
    let mut reading = bed.read_with(SHARD_0, Position::TrimHorizon, &gone, &budget)?;
    assert_eq!(numbers(&reading.records(10).await?), range(0..10));
    let trouble = reading
        .shows(Some(reason::SOURCE_FAN_OUT_UNAVAILABLE))
        .await?
        .context("shown")?;
    assert!(
        trouble.message.contains("consumer/gone") && !trouble.permanent,
        "{}",
        trouble.message
    );
    bed.put(0, 10..20, 100)?;
    assert_eq!(numbers(&reading.records(10).await?), range(10..20));
    assert!(reading.trouble.borrow().is_some(), "it is said for as long as it is so");
    assert_eq!(reading.subscriptions(), 0);

    // Denied is told with what to allow; and a stream that is gone is not taken for a consumer that is.
    let denied = Fault::Error(ErrorKind::AccessDenied);
    bed.kinesis.script(Rule::on_call(Operation::SubscribeToShard, denied));
    let mut reading = bed.read("shardId-000000000001", Position::TrimHorizon)?;
    assert_eq!(numbers(&reading.records(10).await?), range(0..10));
    let trouble = reading
        .shows(Some(reason::SOURCE_FAN_OUT_UNAVAILABLE))
        .await?
        .context("shown")?;
    assert!(
        trouble.message.contains("kinesis:SubscribeToShard"),
        "{}",
        trouble.message
    );
    bed.kinesis.delete_stream(STREAM)?;
    reading.shows(Some(reason::SOURCE_STREAM_NOT_FOUND)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_nobody_drains_holds_little_and_reads_on_later() -> Result<()> {
    let bed = Bed::new(1).await?;
    let budget = Budget::new(24 * MIB);
    bed.put(0, 0..60, 500 << 10)?;
    let mut reading = bed.read_with(SHARD_0, Position::TrimHorizon, &bed.consumer, &budget)?;
    let mut got = numbers(&reading.page().await?.context("a page")?.records);
    // Nobody takes a page for longer than a subscription may stand unread.
    tokio::time::sleep(Duration::from_secs(13)).await;
    let held = budget.held();
    eprintln!("held while nobody reads: {held} bytes of {}", budget.total());
    assert!(held < 12 * MIB, "{held}");
    assert_eq!(reading.subscriptions(), 1);
    while got.len() < 60 {
        got.extend(numbers(&reading.page().await?.context("a page")?.records));
    }
    assert_eq!(got, range(0..60));
    assert!(reading.subscriptions() >= 2, "it was given up and begun anew");
    reading.stop().await?;
    assert_eq!(budget.held(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fan_out_and_polling_take_over_from_each_other_where_they_stand() -> Result<()> {
    let bed = Bed::new(1).await?;
    let mut position = Position::TrimHorizon;
    for round in 0..4_u32 {
        let first = round * 10;
        bed.put(0, first..first + 10, 100)?;
        let mut reading = if round % 2 == 0 {
            bed.read(SHARD_0, position)?
        } else {
            let options = ReaderOptions::new(bed.identity.clone(), SHARD_0.parse()?, position);
            Reading::start(Reader::new(bed.client.clone(), options), Budget::new(64 * MIB))
        };
        assert_eq!(numbers(&reading.records(10).await?), range(first..first + 10));
        position = reading.last.clone().context("it has read")?;
        reading.stop().await?;
    }
    Ok(())
}

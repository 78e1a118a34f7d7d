//! The reader of one shard against the emulator: where it starts, where it ends, and what it lives through.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::BoxFuture;
use jiff::Timestamp;
use millrace_common::aws;
use millrace_common::ids::{SequenceNumber, ShardId};
use millrace_common::pipe::StreamIdentity;
use millrace_common::position::Position;
use millrace_common::reason;
use millrace_data_plane::source::kinesis::{Client, Counters, HashKeys, Reader, ReaderOptions, Stop};
use millrace_data_plane::source::{self, Budget, Page, Record, Trouble};
use millrace_integration_tests::kinesis::referee::Referee;
use millrace_integration_tests::kinesis::{
    Call, Clock, Emulator, Error, ErrorKind, Fault, Handle, Interceptor, Operation, Options, Placed, Put, Rule,
    StreamSpec,
};
use millrace_integration_tests::process::eventually;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const STREAM: &str = "events";
/// Longer than anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

/// An emulator with one stream, and a client of ours.
struct Bed {
    kinesis: Handle,
    client: Client,
    identity: StreamIdentity,
}

impl Bed {
    async fn new(shards: u32, options: Options) -> Result<Self> {
        let options = Options {
            streams: vec![StreamSpec::new(STREAM, shards)],
            ..options
        };
        let kinesis = Emulator::start(options).await?;
        let access = access(&kinesis.endpoint_url());
        let sdk = aws_sdk_kinesis::Client::new(&aws::config(&access).await);
        let summary = sdk.describe_stream_summary().stream_name(STREAM).send().await?;
        let summary = summary.stream_description_summary.context("a description")?;
        let identity = StreamIdentity {
            arn: summary.stream_arn,
            name: STREAM.to_owned(),
            created: Timestamp::from_millisecond(summary.stream_creation_timestamp.to_millis()?)?,
        };
        Ok(Self {
            kinesis,
            client: Client::new(&access).await,
            identity,
        })
    }

    /// Puts records of `bytes` bytes with consecutive numbers in their first bytes, all with one key.
    fn put(&self, numbers: std::ops::Range<u32>, bytes: usize) -> Result<Vec<Placed>> {
        let records: Vec<Vec<u8>> = numbers
            .map(|number| {
                let mut data = vec![b'.'; bytes.max(4)];
                data[..4].copy_from_slice(&number.to_be_bytes());
                data
            })
            .collect();
        Ok(self
            .kinesis
            .put_records_direct(STREAM, records.iter().map(|data| Put::new("key", data)))?)
    }

    fn options(&self, shard: &str, start: Position) -> Result<ReaderOptions> {
        Ok(ReaderOptions::new(self.identity.clone(), shard.parse()?, start))
    }

    fn read(&self, shard: &str, start: Position) -> Result<Reading> {
        Ok(Reading::start(
            self.client.clone(),
            self.options(shard, start)?,
            Budget::new(64 * MIB),
            4,
        ))
    }
}

fn access(endpoint: &str) -> aws::Access {
    aws::Access {
        region: "us-east-1".to_owned(),
        endpoint: Some(endpoint.to_owned()),
        credential: aws::Credential::Keys {
            access_key_id: "AKIDEXAMPLE".to_owned(),
            secret_access_key: "secret".to_owned().into(),
            session_token: None,
        },
        max_attempts: 5,
        scope: None,
        identities: None,
        settings: millrace_common::aws::Settings::default(),
    }
}

/// A running reader.
struct Reading {
    pages: mpsc::Receiver<Page>,
    trouble: watch::Receiver<Option<Trouble>>,
    counters: Arc<Counters>,
    cancel: CancellationToken,
    task: JoinHandle<Result<Stop, source::Error>>,
}

impl Reading {
    fn start(client: Client, options: ReaderOptions, budget: Arc<Budget>, room: usize) -> Self {
        let reader = Reader::new(client, options);
        let (out, pages) = mpsc::channel(room);
        let (trouble, counters) = (reader.trouble(), reader.counters());
        let cancel = CancellationToken::new();
        let task = tokio::spawn(reader.run(out, budget, cancel.clone()));
        Self {
            pages,
            trouble,
            counters,
            cancel,
            task,
        }
    }

    async fn page(&mut self) -> Result<Option<Page>> {
        tokio::time::timeout(LIMIT, self.pages.recv())
            .await
            .context("no page within the limit")
    }

    /// Reads until `count` records have come.
    async fn records(&mut self, count: usize) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        while records.len() < count {
            let page = self.page().await?.context("the reader ended early")?;
            records.extend(page.records);
        }
        ensure!(records.len() == count, "{} records instead of {count}", records.len());
        Ok(records)
    }

    /// Reads to the reader's end.
    async fn rest(&mut self) -> Result<(Vec<Page>, Result<Stop, source::Error>)> {
        let mut pages = Vec::new();
        while let Some(page) = self.page().await? {
            pages.push(page);
        }
        Ok((pages, (&mut self.task).await?))
    }

    async fn trouble(&mut self, wanted: Option<&str>) -> Result<Option<Trouble>> {
        let shown = self
            .trouble
            .wait_for(|trouble| trouble.as_ref().map(|trouble| trouble.reason) == wanted);
        Ok(tokio::time::timeout(LIMIT, shown)
            .await
            .context("the trouble is not shown")??
            .clone())
    }

    async fn stop(self) -> Result<Stop> {
        self.cancel.cancel();
        drop(self.pages);
        Ok(self.task.await??)
    }
}

fn numbers(records: &[Record]) -> Vec<u32> {
    records
        .iter()
        .map(|record| u32::from_be_bytes([record.data()[0], record.data()[1], record.data()[2], record.data()[3]]))
        .collect()
}

fn sequence(placed: &Placed) -> Result<SequenceNumber> {
    Ok(placed.sequence.to_string().parse()?)
}

fn shard_id(index: u32) -> String {
    format!("shardId-{index:012}")
}

/// Fails calls of one operation as a script says.
#[derive(Clone, Default)]
struct Script {
    faults: Arc<Mutex<VecDeque<ErrorKind>>>,
    always: Arc<Mutex<Option<ErrorKind>>>,
}

impl Interceptor for Script {
    fn before<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            if call.operation != Operation::GetRecords {
                return Ok(());
            }
            let kind = self.faults.lock().pop_front().or(*self.always.lock());
            kind.map_or(Ok(()), |kind| Err(Error::new(kind, "as the script says")))
        })
    }
}

#[tokio::test]
async fn trim_horizon_reads_all_pages_in_order() -> Result<()> {
    let bed = Bed::new(1, Options::default()).await?;
    bed.put(0..25_000, 100)?;
    let mut reading = bed.read(&shard_id(0), Position::TrimHorizon)?;
    let records = reading.records(25_000).await?;
    ensure!(numbers(&records) == (0..25_000).collect::<Vec<_>>(), "out of order");
    ensure!(
        records
            .iter()
            .all(|record| record.partition_key() == b"key" && record.arrival_millis > 0)
    );
    ensure!(
        records
            .windows(2)
            .all(|two| two[0].sequence_number() < two[1].sequence_number())
    );
    // What comes later is read as well, and the lag says when the reader is at the tip.
    bed.put(25_000..25_010, 100)?;
    ensure!(numbers(&reading.records(10).await?) == (25_000..25_010).collect::<Vec<_>>());
    let page = reading.page().await?.context("a page")?;
    ensure!(page.records.is_empty() && page.lag == Some(Duration::ZERO), "{page:?}");
    ensure!(page.last > records.last().map(Record::sequence_number));
    ensure!(
        reading.counters.read_by_sdk.load(Ordering::Relaxed) == 0,
        "a scan gave up"
    );
    ensure!(reading.stop().await? == Stop::Cancelled);
    Ok(())
}

#[tokio::test]
async fn at_timestamp_starts_with_what_arrived_then() -> Result<()> {
    let clock = Clock::frozen_at_ms(1_760_000_000_000);
    let bed = Bed::new(
        1,
        Options {
            clock: clock.clone(),
            ..Options::default()
        },
    )
    .await?;
    bed.put(0..10, 10)?;
    clock.advance(Duration::from_secs(60));
    let from = Timestamp::from_millisecond(clock.now_ms())?;
    bed.put(10..20, 10)?;
    let mut reading = bed.read(&shard_id(0), Position::AtTimestamp(from))?;
    ensure!(numbers(&reading.records(10).await?) == (10..20).collect::<Vec<_>>());
    reading.stop().await?;
    Ok(())
}

#[tokio::test]
async fn after_a_sequence_number_that_record_does_not_come_again() -> Result<()> {
    let bed = Bed::new(1, Options::default()).await?;
    let placed = bed.put(0..10, 10)?;
    let mut reading = bed.read(&shard_id(0), Position::After(sequence(&placed[3])?))?;
    ensure!(numbers(&reading.records(6).await?) == (4..10).collect::<Vec<_>>());
    reading.stop().await?;
    // After the last one there is nothing, until there is.
    let mut reading = bed.read(&shard_id(0), Position::After(sequence(&placed[9])?))?;
    let page = reading.page().await?.context("a page")?;
    ensure!(page.records.is_empty() && page.last == Some(sequence(&placed[9])?));
    bed.put(10..11, 10)?;
    ensure!(numbers(&reading.records(1).await?) == [10]);
    reading.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_split_shard_ends_with_its_children() -> Result<()> {
    let bed = Bed::new(1, Options::default()).await?;
    bed.put(0..100, 10)?;
    bed.kinesis.split_shard(STREAM, &shard_id(0))?;
    let mut reading = bed.read(&shard_id(0), Position::TrimHorizon)?;
    let (pages, end) = reading.rest().await?;
    ensure!(end == Ok(Stop::ShardEnd), "{end:?}");
    let count: usize = pages.iter().map(|page| page.records.len()).sum();
    ensure!(count == 100, "{count} records");
    let (last, before) = pages.split_last().context("pages")?;
    ensure!(before.iter().all(|page| page.end.is_none()));
    let end = last.end.clone().context("the last page says that the shard ended")?;
    let parent: ShardId = shard_id(0).parse()?;
    let children: Vec<&str> = end.children.iter().map(|child| child.id.as_str()).collect();
    ensure!(children == [shard_id(1), shard_id(2)], "{children:?}");
    ensure!(end.children.iter().all(|child| child.parents == [parent.clone()]));
    Ok(())
}

#[tokio::test]
async fn both_parents_of_a_merge_end_with_the_same_child() -> Result<()> {
    let bed = Bed::new(2, Options::default()).await?;
    bed.kinesis.merge_shards(STREAM, &shard_id(0), &shard_id(1))?;
    for index in 0..2 {
        let mut reading = bed.read(&shard_id(index), Position::TrimHorizon)?;
        let (pages, end) = reading.rest().await?;
        ensure!(end == Ok(Stop::ShardEnd), "{end:?}");
        let end = pages.last().and_then(|page| page.end.clone()).context("an end")?;
        ensure!(
            end.children.len() == 1 && end.children[0].id.as_str() == shard_id(2),
            "{end:?}"
        );
        ensure!(end.children[0].parents.len() == 2, "{end:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_reader_that_was_held_up_renews_its_iterator_and_loses_nothing() -> Result<()> {
    let bed = Bed::new(1, Options::default()).await?;
    bed.put(0..30_000, 10)?;
    let options = bed.options(&shard_id(0), Position::TrimHorizon)?;
    // Room for one page: the reader stands still until it is taken.
    let mut reading = Reading::start(bed.client.clone(), options, Budget::new(64 * MIB), 1);
    let mut records = Vec::new();
    while records.len() < 30_000 {
        records.extend(reading.page().await?.context("the reader ended early")?.records);
        bed.kinesis.clock().advance(Duration::from_secs(360));
    }
    bed.put(30_000..30_005, 10)?;
    bed.kinesis.clock().advance(Duration::from_secs(360));
    records.extend(reading.records(5).await?);
    ensure!(numbers(&records) == (0..30_005).collect::<Vec<_>>(), "lost or doubled");
    ensure!(reading.counters.renewed_iterators.load(Ordering::Relaxed) >= 1);
    ensure!(reading.trouble.borrow().is_none(), "not worth a word");
    reading.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_lone_reader_stays_within_the_limits_of_a_shard() -> Result<()> {
    let bed = Bed::new(
        1,
        Options {
            enforce_limits: true,
            ..Options::default()
        },
    )
    .await?;
    bed.put(0..80, 100_000)?;
    let mut reading = bed.read(&shard_id(0), Position::TrimHorizon)?;
    let mut records = reading.records(80).await?;
    // Eight megabytes have to be paid off before the next answer.
    bed.put(80..90, 10)?;
    let started = tokio::time::Instant::now();
    records.extend(reading.records(10).await?);
    ensure!(started.elapsed() > Duration::from_secs(2), "{:?}", started.elapsed());
    ensure!(numbers(&records) == (0..90).collect::<Vec<_>>());
    let throttled = reading.counters.throttled.load(Ordering::Relaxed);
    ensure!(throttled <= 1, "{throttled} calls were refused");
    reading.stop().await?;
    Ok(())
}

#[tokio::test]
async fn readers_that_compete_for_a_shard_all_get_everything() -> Result<()> {
    let bed = Bed::new(
        1,
        Options {
            enforce_limits: true,
            ..Options::default()
        },
    )
    .await?;
    bed.put(0..2_000, 100)?;
    let start = || bed.read(&shard_id(0), Position::TrimHorizon);
    let mut readings = [start()?, start()?, start()?];
    for round in 0..10 {
        let from = 2_000 + round * 10;
        bed.put(from..from + 10, 100)?;
        for reading in &mut readings {
            let count = if round == 0 { 2_010 } else { 10 };
            ensure!(reading.records(count).await?.len() == count);
        }
    }
    let throttled: u64 = readings
        .iter()
        .map(|reading| reading.counters.throttled.load(Ordering::Relaxed))
        .sum();
    ensure!(throttled > 0, "three readers fit into five calls a second?");
    for reading in readings {
        reading.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_replay_reads_its_slice_and_nothing_else() -> Result<()> {
    let bed = Bed::new(1, Options::default()).await?;
    let placed = bed.put(0..12_000, 10)?;
    for (from, to) in [(0, 1), (3, 17), (9_990, 11_000), (10, 11_999)] {
        let start = Position::After(sequence(&placed[from])?);
        let options = bed.options(&shard_id(0), start)?.until(sequence(&placed[to])?);
        let mut reading = Reading::start(bed.client.clone(), options, Budget::new(64 * MIB), 4);
        let (pages, end) = reading.rest().await?;
        ensure!(end == Ok(Stop::Until), "{end:?}");
        let records: Vec<Record> = pages.into_iter().flat_map(|page| page.records).collect();
        ensure!(
            numbers(&records) == (from as u32 + 1..=to as u32).collect::<Vec<_>>(),
            "({from}, {to}]"
        );
    }
    // The shard goes on elsewhere: the replay does not care.
    bed.kinesis.split_shard(STREAM, &shard_id(0))?;
    let options = bed
        .options(&shard_id(0), Position::TrimHorizon)?
        .until(sequence(&placed[11_999])?);
    let mut reading = Reading::start(bed.client.clone(), options, Budget::new(64 * MIB), 4);
    let (pages, end) = reading.rest().await?;
    ensure!(
        end == Ok(Stop::Until) && pages.iter().all(|page| page.end.is_none()),
        "{end:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_replay_whose_records_were_trimmed_says_so() -> Result<()> {
    let bed = Bed::new(1, Options::default()).await?;
    let placed = bed.put(0..100, 10)?;
    bed.kinesis.trim_through(STREAM, &placed[50])?;
    let start = Position::After(sequence(&placed[9])?);
    let options = bed.options(&shard_id(0), start)?.until(sequence(&placed[40])?);
    let mut reading = Reading::start(bed.client.clone(), options, Budget::new(64 * MIB), 4);
    let (pages, end) = reading.rest().await?;
    let Err(error) = end else { bail!("{end:?}") };
    ensure!(error.reason() == reason::SOURCE_POSITION_EXPIRED, "{error}");
    ensure!(
        pages.iter().all(|page| page.records.is_empty()),
        "records beyond the slice came out"
    );
    Ok(())
}

#[tokio::test]
async fn faults_of_the_service_lose_and_double_nothing() -> Result<()> {
    let script = Script::default();
    let bed = Bed::new(
        1,
        Options {
            interceptor: Some(Arc::new(script.clone())),
            ..Options::default()
        },
    )
    .await?;
    script.faults.lock().extend([
        ErrorKind::InternalFailure,
        ErrorKind::ServiceUnavailable,
        ErrorKind::ProvisionedThroughputExceeded,
        ErrorKind::ExpiredIterator,
        ErrorKind::InvalidArgument,
        ErrorKind::InternalFailure,
    ]);
    bed.put(0..20_000, 10)?;
    let mut reading = bed.read(&shard_id(0), Position::TrimHorizon)?;
    let mut records = Vec::new();
    while records.len() < 20_000 {
        records.extend(reading.page().await?.context("a page")?.records);
    }
    ensure!(numbers(&records) == (0..20_000).collect::<Vec<_>>());
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    ensure!(load(&reading.counters.throttled) == 1 && load(&reading.counters.failures) == 4);
    ensure!(reading.trouble.borrow().is_none(), "too short to be shown");
    reading.stop().await?;
    Ok(())
}

#[tokio::test]
async fn missing_rights_are_shown_and_heal() -> Result<()> {
    let script = Script::default();
    *script.always.lock() = Some(ErrorKind::AccessDenied);
    let bed = Bed::new(
        1,
        Options {
            interceptor: Some(Arc::new(script.clone())),
            ..Options::default()
        },
    )
    .await?;
    bed.put(0..10, 10)?;
    let mut reading = bed.read(&shard_id(0), Position::TrimHorizon)?;
    let trouble = reading
        .trouble(Some(reason::SOURCE_ACCESS_DENIED))
        .await?
        .context("shown")?;
    ensure!(
        trouble.permanent && trouble.message.contains("kinesis:GetRecords"),
        "{trouble:?}"
    );
    *script.always.lock() = Some(ErrorKind::UnrecognizedClient);
    reading.trouble(Some(reason::SOURCE_CREDENTIAL_INVALID)).await?;
    *script.always.lock() = None;
    ensure!(reading.records(10).await?.len() == 10);
    reading.trouble(None).await?;
    reading.stop().await?;
    Ok(())
}

#[tokio::test]
async fn an_aggregate_waits_for_hash_keys_only_if_they_decide_about_it() -> Result<()> {
    let bed = Bed::new(1, Options::default()).await?;
    let like_an_aggregate = [b"\xF3\x89\x9A\xC2".as_slice(), b"{}"].concat();
    bed.kinesis
        .put_records_direct(STREAM, [Put::new("key", &like_an_aggregate)])?;
    let start = |hash_keys| -> Result<Reading> {
        let mut options = bed.options(&shard_id(0), Position::TrimHorizon)?;
        options.hash_keys = hash_keys;
        Ok(Reading::start(bed.client.clone(), options, Budget::new(64 * MIB), 4))
    };
    for (kind, reason) in [
        (ErrorKind::AccessDenied, reason::SOURCE_ACCESS_DENIED),
        (ErrorKind::InvalidArgument, reason::SOURCE_UNREACHABLE),
        (ErrorKind::ExpiredNextToken, reason::SOURCE_UNREACHABLE),
        (ErrorKind::ResourceNotFound, reason::SOURCE_UNREACHABLE),
        (ErrorKind::InternalFailure, reason::SOURCE_UNREACHABLE),
    ] {
        bed.kinesis
            .script(Rule::on_call(Operation::ListShards, Fault::Error(kind)));
        let mut reading = start(HashKeys::Decide)?;
        let (pages, end) = reading.rest().await?;
        let Err(error) = end else { bail!("{kind:?}: {end:?}") };
        ensure!(
            matches!(error, source::Error::HashKeysUnknown { .. }),
            "{kind:?}: {error}"
        );
        ensure!(error.reason() == reason, "{kind:?}: {error:?}");
        ensure!(
            pages.iter().all(|page| page.records.is_empty()),
            "{kind:?}: it has gone on"
        );
        for indifferent in [HashKeys::Count, HashKeys::Unused] {
            let mut reading = start(indifferent)?;
            let page = reading.page().await?.context("a page")?;
            ensure!(page.records.len() == 1 && page.hash_keys.is_none(), "{kind:?}");
            reading.stop().await?;
        }
        bed.kinesis.clear_script();
    }
    for asking in [HashKeys::Decide, HashKeys::Count] {
        let mut reading = start(asking)?;
        let page = reading.page().await?.context("a page")?;
        ensure!(page.records.len() == 1 && page.hash_keys.is_some(), "{asking:?}");
        reading.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_ails_the_key_of_a_stream_is_shown_and_heals() -> Result<()> {
    let kinds = [
        (ErrorKind::KmsAccessDenied, Some("kms:Decrypt")),
        (ErrorKind::KmsDisabled, Some("key")),
        (ErrorKind::KmsInvalidState, Some("key")),
        (ErrorKind::KmsNotFound, Some("key")),
        (ErrorKind::KmsOptInRequired, Some("key")),
        (ErrorKind::KmsThrottling, None),
    ];
    for (kind, remedy) in kinds {
        let bed = Bed::new(1, Options::default()).await?;
        bed.put(0..10, 10)?;
        let fault = Fault::Error(kind);
        let strikes = bed.kinesis.script(Rule::on_call(Operation::GetRecords, fault).times(2));
        let mut reading = bed.read(&shard_id(0), Position::TrimHorizon)?;
        if let Some(remedy) = remedy {
            let shown = reading.trouble(Some(reason::SOURCE_ACCESS_DENIED)).await?;
            let message = shown.with_context(|| format!("{kind:?} is not shown"))?.message;
            ensure!(message.contains(remedy), "{kind:?}: {message}");
        }
        let records = reading.records(10).await?;
        ensure!(numbers(&records) == (0..10).collect::<Vec<_>>(), "{kind:?}");
        reading.trouble(None).await?;
        ensure!(strikes.count() == 2, "{kind:?}");
        reading.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_that_was_deleted_and_made_again_is_another() -> Result<()> {
    for read_before in [false, true] {
        let bed = Bed::new(1, Options::default()).await?;
        let placed = bed.put(0..10, 10)?;
        let start = if read_before {
            Position::After(sequence(&placed[9])?)
        } else {
            Position::TrimHorizon
        };
        let mut reading = bed.read(&shard_id(0), start)?;
        reading.page().await?.context("a page")?;
        bed.kinesis.delete_stream(STREAM)?;
        let trouble = reading
            .trouble(Some(reason::SOURCE_STREAM_NOT_FOUND))
            .await?
            .context("shown")?;
        ensure!(trouble.permanent, "{trouble:?}");
        bed.kinesis.create_stream(STREAM, 1)?;
        bed.put(0..10, 10)?;
        let (pages, end) = reading.rest().await?;
        let Err(error) = end else { bail!("{end:?}") };
        ensure!(error.reason() == reason::SOURCE_STREAM_RECREATED, "{error}");
        ensure!(
            pages.iter().all(|page| page.end.is_none()),
            "a missing stream is not the end of a shard"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_position_of_another_stream_is_refused() -> Result<()> {
    let other = Bed::new(
        1,
        Options {
            clock: Clock::frozen_at_ms(1_600_000_000_000),
            ..Options::default()
        },
    )
    .await?;
    let foreign = sequence(&other.put(0..1, 10)?[0])?;
    let bed = Bed::new(1, Options::default()).await?;
    let mut reading = bed.read(&shard_id(0), Position::After(foreign))?;
    let (_, end) = reading.rest().await?;
    let Err(error) = end else { bail!("{end:?}") };
    ensure!(error.reason() == reason::SOURCE_STREAM_RECREATED, "{error}");
    Ok(())
}

#[tokio::test]
async fn a_service_that_is_gone_is_shown_and_waited_for() -> Result<()> {
    let bed = Bed::new(1, Options::default()).await?;
    let Bed {
        kinesis,
        client,
        identity,
    } = bed;
    let options = ReaderOptions::new(identity, shard_id(0).parse()?, Position::TrimHorizon);
    let mut reading = Reading::start(client, options, Budget::new(64 * MIB), 4);
    reading.page().await?.context("a page")?;
    kinesis.stop().await;
    let trouble = reading
        .trouble(Some(reason::SOURCE_UNREACHABLE))
        .await?
        .context("shown")?;
    ensure!(!trouble.permanent, "{trouble:?}");
    ensure!(!reading.task.is_finished());
    ensure!(reading.stop().await? == Stop::Cancelled);
    Ok(())
}

#[tokio::test]
async fn many_shards_of_large_records_stay_within_the_budget() -> Result<()> {
    const SHARDS: u32 = 8;
    let budget = Budget::new(16 * MIB);
    let bed = Bed::new(SHARDS, Options::default()).await?;
    let data = vec![b'x'; MIB];
    let width = u128::MAX / u128::from(SHARDS);
    let puts = (0..SHARDS * 12).map(|number| Put {
        explicit_hash_key: Some(u128::from(number % SHARDS) * width + width / 2),
        ..Put::new("key", &data)
    });
    bed.kinesis.put_records_direct(STREAM, puts)?;
    let mut readings = Vec::new();
    for index in 0..SHARDS {
        let mut options = bed.options(&shard_id(index), Position::TrimHorizon)?;
        options.limits.bytes_per_second = None;
        readings.push(Reading::start(bed.client.clone(), options, Arc::clone(&budget), 4));
    }
    let (mut most, mut counts) = (0, vec![0; readings.len()]);
    while counts.iter().any(|count| *count < 12) {
        for (reading, count) in readings.iter_mut().zip(&mut counts) {
            // Others wait for the bytes of a page until it is dropped, so none may be waited for here.
            while let Ok(page) = reading.pages.try_recv() {
                most = most.max(budget.held());
                *count += page.records.len();
            }
        }
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // A page that is larger than what was reserved at the tip may run a debt of a page, and no more.
    ensure!(most <= 28 * MIB, "{most} bytes were held of {}", budget.total());
    for reading in readings {
        reading.stop().await?;
    }
    eventually("all bytes to come back", LIMIT, || async { budget.held() == 0 }).await?;
    Ok(())
}

#[tokio::test]
async fn an_emulator_that_is_not_ours_is_read_to_the_end_of_a_shard() -> Result<()> {
    let referee = Referee::start(&[StreamSpec::new(STREAM, 1)]).await?;
    let access = access(&referee.endpoint_url());
    let sdk = aws_sdk_kinesis::Client::new(&aws::config(&access).await);
    let describe = async || -> Result<_> {
        let summary = sdk.describe_stream_summary().stream_name(STREAM).send().await?;
        summary.stream_description_summary.context("a description")
    };
    let summary = describe().await?;
    let identity = StreamIdentity {
        arn: summary.stream_arn,
        name: STREAM.to_owned(),
        created: Timestamp::from_millisecond(summary.stream_creation_timestamp.to_millis()?)?,
    };
    for number in 0..20_u32 {
        let data = aws_sdk_kinesis::primitives::Blob::new(number.to_be_bytes());
        sdk.put_record()
            .stream_name(STREAM)
            .partition_key("key")
            .data(data)
            .send()
            .await?;
    }
    let client = Client::new(&access).await;
    let options = ReaderOptions::new(identity.clone(), shard_id(0).parse()?, Position::TrimHorizon);
    let mut reading = Reading::start(client.clone(), options, Budget::new(64 * MIB), 4);
    let records = reading.records(20).await?;
    ensure!(numbers(&records) == (0..20).collect::<Vec<_>>());
    ensure!(
        reading.counters.read_by_sdk.load(Ordering::Relaxed) == 0,
        "a scan gave up"
    );
    sdk.split_shard()
        .stream_name(STREAM)
        .shard_to_split(shard_id(0))
        .new_starting_hash_key((u128::MAX / 2).to_string())
        .send()
        .await?;
    let (pages, end) = reading.rest().await?;
    ensure!(end == Ok(Stop::ShardEnd), "{end:?}");
    let end = pages.last().and_then(|page| page.end.clone()).context("an end")?;
    ensure!(end.children.len() == 2, "{end:?}");

    let after = Position::After(records[4].sequence_number());
    let until = records[11].sequence_number();
    let options = ReaderOptions::new(identity, shard_id(0).parse()?, after).until(until);
    let mut reading = Reading::start(client, options, Budget::new(64 * MIB), 4);
    let (pages, end) = reading.rest().await?;
    ensure!(end == Ok(Stop::Until), "{end:?}");
    let records: Vec<Record> = pages.into_iter().flat_map(|page| page.records).collect();
    ensure!(numbers(&records) == (5..=11).collect::<Vec<_>>());
    Ok(())
}

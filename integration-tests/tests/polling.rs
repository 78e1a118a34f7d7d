//! How a shard is polled: no faster than Kinesis allows or than a pipe may, slower when throttled, not for ever when nobody answers, and
//! cheaply where nothing comes. What was measured is printed.

#![allow(clippy::print_stderr, reason = "what was measured is worth reading in the log")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use millrace_common::aws;
use millrace_common::pipe::{PollingBudget, StreamIdentity};
use millrace_common::position::Position;
use millrace_data_plane::source::kinesis::{Client, Counters, Limits, Reader, ReaderOptions, Stop};
use millrace_data_plane::source::{self, Budget, Page};
use millrace_integration_tests::clickhouse::ClickHouse;
use millrace_integration_tests::cluster::{Cluster, Options as ClusterOptions, Table, pipe_spec};
use millrace_integration_tests::kinesis::{
    Emulator, ErrorKind, Fault, Handle, Operation, Options, Put, Rule, StreamSpec,
};
use millrace_integration_tests::process::eventually;
use millrace_proto::api::v1::ShardState;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const STREAM: &str = "events";
/// Longer than anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);
const MIB: usize = 1 << 20;
/// What 64 readers with a budget of 256 MiB may add to this process, the emulator's answers included: several times what they do.
const MOST_GROWN: usize = 1_024 * MIB;
/// What 1,000 idle shards may take of a core in a build without optimisation of our own code: several times what they do.
const MOST_CORES: f64 = 1.0;
/// What a worker with 1,000 idle shards may have resident: several times what it has.
const MOST_RESIDENT: u64 = 512 * MIB as u64;

/// An emulator with one stream, and a client of ours.
struct Bed {
    kinesis: Handle,
    client: Client,
    identity: StreamIdentity,
    shards: u32,
}

impl Bed {
    async fn new(shards: u32, enforce_limits: bool) -> Result<Self> {
        let kinesis = Emulator::start(Options {
            streams: vec![StreamSpec::new(STREAM, shards)],
            enforce_limits,
            ..Options::default()
        })
        .await?;
        let keys = aws::Credential::Keys {
            access_key_id: "AKIDEXAMPLE".to_owned(),
            secret_access_key: "secret".to_owned().into(),
            session_token: None,
        };
        let access = aws::Access::new("us-east-1", Some(kinesis.endpoint_url()), keys, 1);
        let sdk = aws_sdk_kinesis::Client::new(&aws::config(&access).await);
        let summary = sdk.describe_stream_summary().stream_name(STREAM).send().await?;
        let summary = summary.stream_description_summary.context("a description")?;
        let identity = StreamIdentity {
            arn: summary.stream_arn,
            name: STREAM.to_owned(),
            created: Timestamp::from_millisecond(summary.stream_creation_timestamp.to_millis()?)?,
        };
        let client = Client::new(&access).await;
        Ok(Self {
            kinesis,
            client,
            identity,
            shards,
        })
    }

    /// Puts so many records of so many bytes into each shard.
    fn put(&self, records: u32, bytes: usize) -> Result<()> {
        let data = vec![b'x'; bytes];
        let width = u128::MAX / u128::from(self.shards);
        for shard in 0..self.shards {
            let put = Put {
                explicit_hash_key: Some(u128::from(shard) * width + width / 2),
                ..Put::new("key", &data)
            };
            let puts = std::iter::repeat_n(put, records as usize);
            self.kinesis.put_records_direct(STREAM, puts)?;
        }
        Ok(())
    }

    /// Reads a shard as a worker does.
    fn read(&self, shard: u32, limits: Limits, budget: &Arc<Budget>) -> Result<Reading> {
        let shard = format!("shardId-{shard:012}").parse()?;
        let options = ReaderOptions::new(self.identity.clone(), shard, Position::TrimHorizon);
        let reader = Reader::new(self.client.clone(), options.paced(limits, budget.total()));
        let (out, pages) = mpsc::channel(1);
        let (counters, cancel) = (reader.counters(), CancellationToken::new());
        let task = tokio::spawn(reader.run_watched(out, Arc::clone(budget), cancel.clone()));
        Ok(Reading {
            pages,
            counters,
            cancel,
            task,
        })
    }
}

/// A running reader.
struct Reading {
    pages: mpsc::Receiver<Page>,
    counters: Arc<Counters>,
    cancel: CancellationToken,
    task: JoinHandle<Result<Stop, source::Error>>,
}

impl Reading {
    /// Takes pages until so many records have come: when each page came that was not empty, and its bytes.
    async fn records(&mut self, count: usize) -> Result<Vec<(Instant, usize)>> {
        let (mut came, mut pages) = (0, Vec::new());
        while came < count {
            let page = tokio::time::timeout(LIMIT, self.pages.recv()).await?;
            let page = page.context("the reader ended")?;
            came += page.records.len();
            let bytes: usize = page.records.iter().map(|record| record.data().len()).sum();
            pages.extend((bytes > 0).then(|| (Instant::now(), bytes)));
        }
        ensure!(came == count, "{came} records of {count}");
        Ok(pages)
    }

    fn count(&self, counter: fn(&Counters) -> &AtomicU64) -> u64 {
        counter(&self.counters).load(Ordering::Relaxed)
    }

    async fn stop(mut self) -> Result<Stop> {
        self.cancel.cancel();
        self.pages.close();
        Ok(self.task.await??)
    }
}

/// Nothing else is waited for than time: what goes on meanwhile is measured.
async fn passed(time: Duration) -> Result<()> {
    let since = Instant::now();
    eventually("time to pass", LIMIT, || async { since.elapsed() >= time }).await?;
    Ok(())
}

fn share(calls_per_second: Option<u32>, bytes_per_second: Option<u64>) -> Limits {
    Limits::default().within(PollingBudget {
        calls_per_second,
        bytes_per_second,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_shard_is_called_five_times_a_second_at_most_and_loses_nothing() -> Result<()> {
    const SHARDS: u32 = 4;
    let bed = Bed::new(SHARDS, true).await?;
    bed.put(400, 1_000)?;
    let throttled = Fault::Error(ErrorKind::ProvisionedThroughputExceeded);
    let strikes = bed
        .kinesis
        .script(Rule::on_call(Operation::GetRecords, throttled).at_rate(0.3, 11));
    let (budget, began) = (Budget::new(64 * MIB), Instant::now());
    let mut readings = Vec::new();
    for shard in 0..SHARDS {
        readings.push(bed.read(shard, Limits::default(), &budget)?);
    }
    for reading in &mut readings {
        reading.records(400).await?;
    }
    // And on, so that rates show.
    let mut drained = 0;
    while began.elapsed() < Duration::from_secs(15) {
        for reading in &mut readings {
            drained += usize::from(reading.pages.try_recv().is_ok());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (seconds, calls) = (began.elapsed().as_secs_f64(), bed.kinesis.calls(Operation::GetRecords));
    let refused: u64 = readings.iter().map(|reading| reading.count(|c| &c.throttled)).sum();
    let rate = calls as f64 / seconds / f64::from(SHARDS);
    eprintln!(
        "throttling 30 %: {calls} calls in {seconds:.1} s, {rate:.2} a second and shard; {refused} refused, {} by the script",
        strikes.count()
    );
    ensure!(strikes.count() > 0 && drained > 0);
    ensure!(
        refused == strikes.count(),
        "others than the script refused calls: the pace was too fast"
    );
    ensure!(
        calls as f64 <= f64::from(SHARDS) * (5.0 * seconds + 1.0),
        "{rate:.2} calls a second"
    );
    for reading in readings {
        ensure!(reading.count(|c| &c.duplicates) == 0 && reading.stop().await? == Stop::Cancelled);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_answer_is_followed_by_what_it_costs() -> Result<()> {
    // A worker with much memory takes all that one answer may hold.
    let budget = Budget::new(1024 * MIB);
    let wrong = Limits {
        bytes_per_second: Some(20 * MIB as u64),
        ..Limits::default()
    };
    // Told a wrong rate, the reader is refused; told the right one, it is not.
    for (limits, is_refused) in [(wrong, true), (Limits::default(), false)] {
        let bed = Bed::new(1, true).await?;
        bed.put(20, MIB)?;
        let mut reading = bed.read(0, limits, &budget)?;
        let pages = reading.records(20).await?;
        let (first, last) = (pages.first().context("a page")?, pages.last().context("a page")?);
        let (took, throttled) = (last.0 - first.0, reading.count(|c| &c.throttled));
        eprintln!(
            "20 MiB in {} answers of {} MiB at most, {:.1} s from the first to the last; {throttled} calls refused",
            pages.len(),
            pages.iter().map(|page| page.1).max().unwrap_or(0) / MIB,
            took.as_secs_f64()
        );
        ensure!((throttled > 0) == is_refused, "{throttled} calls were refused");
        reading.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_that_shares_a_shard_uses_its_share() -> Result<()> {
    let bed = Bed::new(2, true).await?;
    bed.put(48, MIB / 4)?;
    let budget = Budget::new(256 * MIB);
    let mut seldom = bed.read(0, share(Some(2), None), &budget)?;
    let mut little = bed.read(1, share(None, Some(MIB as u64)), &budget)?;
    let began = Instant::now();
    // The first answer may be larger, until the reader knows how large records are; then it is paid for.
    let pages = little.records(48).await?;
    let took = (pages.last().context("a page")?.0 - began).as_secs_f64();
    seldom.records(48).await?;
    while began.elapsed() < Duration::from_secs(20) {
        let _ = tokio::time::timeout(Duration::from_millis(100), seldom.pages.recv()).await;
    }
    let (seconds, calls) = (began.elapsed().as_secs_f64(), seldom.count(|c| &c.calls));
    eprintln!("1 MiB/s: 12 MiB in {took:.1} s; 2 calls/s: {calls} calls in {seconds:.1} s");
    ensure!(took >= 8.0, "12 MiB at 1 MiB/s took {took:.1} s");
    ensure!(calls as f64 <= 2.0 * seconds + 1.0, "{calls} calls in {seconds:.1} s");
    for reading in [seldom, little] {
        ensure!(reading.count(|c| &c.throttled) == 0);
        reading.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_nobody_answers_ends_and_the_next_one_reads_on() -> Result<()> {
    let bed = Bed::new(1, false).await?;
    bed.put(10, 100)?;
    let forever = Fault::Delay(Duration::from_secs(24 * 3600));
    let strikes = bed
        .kinesis
        .script(Rule::on_call(Operation::GetRecords, forever).times(1));
    let budget = Budget::new(64 * MIB);
    let (mut reading, began) = (bed.read(0, Limits::default(), &budget)?, Instant::now());
    reading.records(10).await?;
    let took = began.elapsed().as_secs_f64();
    eprintln!("a GetRecords that hangs was given up, and its records came, after {took:.1} s");
    ensure!(strikes.count() == 1 && reading.count(|c| &c.failures) == 1);
    ensure!(took < 60.0, "{took:.1} s");
    reading.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_that_answer_with_ten_mebibytes_stay_within_the_budget() -> Result<()> {
    const SHARDS: u32 = 64;
    const RECORDS: u32 = 10;
    let bed = Bed::new(SHARDS, false).await?;
    bed.put(RECORDS, MIB)?;
    let budget = Budget::new(256 * MIB);
    let before = resident("VmRSS:")?;
    let unpaced = Limits {
        bytes_per_second: None,
        ..Limits::default()
    };
    let (began, mut readings) = (Instant::now(), Vec::new());
    for shard in 0..SHARDS {
        readings.push(bed.read(shard, unpaced, &budget)?);
    }
    let (mut largest, mut taken, mut held) = (0, vec![0; readings.len()], Vec::new());
    while taken.iter().any(|count| *count < RECORDS as usize) {
        ensure!(began.elapsed() < LIMIT, "not read within the limit");
        for (reading, count) in readings.iter_mut().zip(&mut taken) {
            if let Ok(page) = reading.pages.try_recv() {
                largest = largest.max(page.records.iter().map(|record| record.data().len()).sum());
                *count += page.records.len();
                // As a batch does that is being filled.
                held.push(page);
            }
        }
        if budget.is_short() || held.len() > 8 {
            held.clear();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let peak = resident("VmHWM:")?;
    eprintln!(
        "{SHARDS} shards with answers of up to {} MiB: {:.0} MiB of {} held at most, in {:.1} s; resident {:.0} MiB before \
         (the emulator's records included), {:.0} MiB at most",
        largest / MIB,
        budget.most_held() as f64 / MIB as f64,
        budget.total() / MIB,
        began.elapsed().as_secs_f64(),
        before as f64 / MIB as f64,
        peak as f64 / MIB as f64,
    );
    // The budget, what the calls under way have in their buffers, and what the emulator writes for them in this process.
    let grown = peak.saturating_sub(before);
    ensure!(grown <= MOST_GROWN, "{} MiB more at the peak", grown / MIB);
    ensure!(taken.iter().all(|count| *count == RECORDS as usize), "{taken:?}");
    ensure!(largest >= 8 * MIB, "the answers were small: {largest} bytes");
    ensure!(
        budget.most_held() <= budget.total(),
        "{} bytes were held",
        budget.most_held()
    );
    held.clear();
    for reading in readings {
        reading.stop().await?;
    }
    eventually("all bytes to come back", LIMIT, || async { budget.held() == 0 }).await?;
    Ok(())
}

fn resident(figure: &str) -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(figure));
    let kib = line
        .and_then(|line| line.trim().strip_suffix("kB"))
        .context("a figure")?;
    Ok(kib.trim().parse::<usize>()? * 1_024)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_a_thousand_idle_shards_costs_little() -> Result<()> {
    const SHARDS: u32 = 1_000;
    let clickhouse = ClickHouse::shared().await;
    let database = clickhouse.database().await?;
    let kinesis = Emulator::start(Options::default()).await?;
    kinesis.create_stream(STREAM, SHARDS)?;
    let cluster = Cluster::start(ClusterOptions::default(), 1).await?;
    cluster.create_credentials(clickhouse).await?;
    let table = Table {
        database: &database,
        table: "idle",
        columns: &[("id", "UInt64")],
        sorting_key: &["id"],
    };
    let created = cluster
        .create_pipe("idle", pipe_spec(&kinesis.endpoint_url(), STREAM, clickhouse, table))
        .await;
    created.map_err(|status| anyhow::anyhow!("{status}"))?;
    let reading = eventually("all shards to be read", LIMIT, || async {
        let pipe = cluster.pipe("idle").await?;
        let shards = pipe.status.unwrap_or_default().shards;
        let assigned = shards
            .iter()
            .filter(|shard| shard.state() == ShardState::Assigned && shard.lag.is_some());
        let assigned = assigned.count();
        ensure!(assigned == SHARDS as usize, "{assigned} shards are read");
        Ok::<_, anyhow::Error>(())
    });
    reading.await.with_context(|| cluster.logs())?;
    // Until they are as slow as they get.
    passed(Duration::from_secs(3)).await?;
    let worker = cluster.worker(0).context("the worker")?;
    let figures = || -> Result<_> {
        let cpu = worker.cpu_time().context("its time")?;
        Ok((Instant::now(), kinesis.calls(Operation::GetRecords), cpu))
    };
    let before = figures()?;
    passed(Duration::from_secs(15)).await?;
    let after = figures()?;
    let seconds = (after.0 - before.0).as_secs_f64();
    let calls = (after.1 - before.1) as f64 / seconds;
    let cores = (after.2 - before.2).as_secs_f64() / seconds;
    eprintln!(
        "{SHARDS} idle shards on one worker: {calls:.0} calls a second, {:.2} per shard; {:.0} % of a core (debug build), {:.0} MiB \
         resident",
        calls / f64::from(SHARDS),
        100.0 * cores,
        worker.resident_bytes().unwrap_or(0) as f64 / MIB as f64,
    );
    ensure!(cores <= MOST_CORES, "{:.0} % of a core", 100.0 * cores);
    let resident = worker.resident_bytes().context("its memory")?;
    ensure!(resident <= MOST_RESIDENT, "{} MiB resident", resident / MIB as u64);
    ensure!(calls <= 1.1 * f64::from(SHARDS), "{calls:.0} calls a second");
    ensure!(
        calls >= 0.05 * f64::from(SHARDS),
        "{calls:.0} calls a second: it does not read"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_hangs_where_nothing_is_timed_is_started_anew_where_its_shard_stands() -> Result<()> {
    let clickhouse = ClickHouse::shared().await;
    let database = clickhouse.database().await?;
    let kinesis = Emulator::start(Options::default()).await?;
    kinesis.create_stream(STREAM, 1)?;
    let options = ClusterOptions {
        fail_points: true,
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start(options, 1).await?;
    cluster.create_credentials(clickhouse).await?;
    let table = Table {
        database: &database,
        table: "hanging",
        columns: &[("id", "UInt64")],
        sorting_key: &["id"],
    };
    let created = cluster
        .create_pipe("hanging", pipe_spec(&kinesis.endpoint_url(), STREAM, clickhouse, table))
        .await;
    created.map_err(|status| anyhow::anyhow!("{status}"))?;
    let put = |ids: std::ops::Range<u32>| {
        let records: Vec<_> = ids.map(|id| format!("{{\"id\":{id}}}")).collect();
        let puts = records.iter().map(|record| Put::new("key", record.as_bytes()));
        kinesis.put_records_direct(STREAM, puts).map(drop)
    };
    put(0..100)?;
    let waited = cluster.wait_for_records("hanging", 100, LIMIT).await;
    waited.with_context(|| cluster.logs())?;
    cluster.arm("worker-0", "worker.read.hangs=error")?;
    let hangs = eventually("the reader hangs", LIMIT, || async {
        let log = cluster.log_of("worker-0");
        ensure!(log.contains("fail point worker.read.hangs"), "not yet");
        Ok::<_, anyhow::Error>(())
    });
    hangs.await.with_context(|| cluster.logs())?;
    let since = Instant::now();
    put(100..200)?;
    let waited = cluster.wait_for_records("hanging", 200, LIMIT).await;
    waited.with_context(|| cluster.logs())?;
    let took = since.elapsed().as_secs_f64();
    let shards = cluster.pipe("hanging").await?.status.unwrap_or_default().shards;
    let restarts: u64 = shards.iter().map(|shard| shard.reader_restarts).sum();
    eprintln!("the reader was given up, and its records came, after {took:.1} s; {restarts} restarts");
    // The watchdog waits for a minute.
    ensure!(
        (50.0..100.0).contains(&took) && restarts == 1,
        "{took:.1} s, {restarts} restarts"
    );
    let query = format!("SELECT count(), uniqExact(id) FROM {database}.hanging");
    let rows = clickhouse.query(&query).await?;
    ensure!(rows.trim() == "200\t200", "{rows}");
    Ok(())
}

//! ClickHouse is away for a while, under load.

#![allow(clippy::print_stderr, reason = "what was measured is worth reading in the log")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use millrace_common::reason;
use millrace_integration_tests::{
    clickhouse::{ClickHouse, Options},
    process::eventually,
};
use millrace_proto::api::v1::PipeState;

use ulid::Ulid;

use crate::bed::{Bed, Load};

/// The worker's budget: a quarter of the default, so that it is full within the outage.
const MEMORY_BYTES: u64 = 64 << 20;
/// What the process may take beside its budget: code, connections, a block being built, what the allocator keeps.
const BESIDE_BUDGET: u64 = 64 << 20;
/// Each half of the outage: frozen, then dead.
const HALF: Duration = Duration::from_secs(10);

/// The most memory that the worker had, seen every few milliseconds.
struct Watched {
    most: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Watched {
    fn start(bed: &Bed<'_>) -> Result<Self> {
        let pid = bed.cluster.worker(0).context("a worker")?.pid();
        let most = Arc::<AtomicU64>::default();
        let seen = Arc::clone(&most);
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(20));
            loop {
                ticks.tick().await;
                seen.fetch_max(resident(pid).unwrap_or_default(), Ordering::SeqCst);
            }
        });
        Ok(Self { most, task })
    }

    fn most(&self) -> u64 {
        self.most.load(Ordering::SeqCst)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Memory of a process.
pub(crate) fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

async fn lasts(began: Instant, time: Duration) -> Result<()> {
    let over = || async { began.elapsed() >= time };
    Ok(eventually("the time to pass", time * 2, over).await?)
}

/// An insert that the engine has carried out.
#[derive(Debug)]
struct Insert {
    batch: Ulid,
    began_micros: u64,
    ended_micros: u64,
}

/// What the engine has inserted since it was started, in the order in which it began.
async fn inserts(bed: &Bed<'_>) -> Result<Vec<Insert>> {
    bed.sql("SYSTEM FLUSH LOGS query_log").await?;
    let answer = bed
        .sql(
            "SELECT splitByChar('-', query_id)[2], toUnixTimestamp64Micro(query_start_time_microseconds), \
             toUnixTimestamp64Micro(event_time_microseconds) FROM system.query_log \
             WHERE type = 'QueryFinish' AND query_kind = 'Insert' AND has(tables, '{t}') AND query_id NOT LIKE '%-why' \
             ORDER BY query_start_time_microseconds",
        )
        .await?;
    let insert = |line: &str| -> Result<Insert> {
        let mut fields = line.split('\t');
        let mut next = || fields.next().with_context(|| format!("too short: {line:?}"));
        Ok(Insert {
            batch: next()?.parse()?,
            began_micros: next()?.parse()?,
            ended_micros: next()?.parse()?,
        })
    };
    answer.lines().map(insert).collect()
}

/// What was cut before the engine came back was inserted before anything newer, one after the other in its order.
async fn open_batches_went_first(bed: &Bed<'_>, restarted: jiff::Timestamp) -> Result<()> {
    let restarted = u64::try_from(restarted.as_millisecond())?;
    let inserts = inserts(bed).await?;
    let open = inserts
        .iter()
        .take_while(|insert| insert.batch.timestamp_ms() < restarted)
        .count();
    eprintln!(
        "{} inserts after the outage, the first {open} of batches that were open",
        inserts.len()
    );
    let (open, newer) = inserts.split_at(open);
    ensure!(!open.is_empty() && !newer.is_empty(), "{inserts:?}");
    ensure!(
        newer.iter().all(|insert| insert.batch.timestamp_ms() >= restarted),
        "a newer batch came before one that was open: {inserts:?}"
    );
    for pair in inserts[..=open.len()].windows(2) {
        let [before, after] = pair else { continue };
        ensure!(
            before.batch < after.batch && before.ended_micros <= after.began_micros,
            "{before:?}, and before its end {after:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_within_its_bound() -> Result<()> {
    let clickhouse = ClickHouse::start_own(Options::default()).await?;
    let mut load = Load {
        // About 20 MB/s.
        chunk: 400,
        interval: Duration::from_millis(20),
        all_columns: true,
        ..Load::default()
    };
    load.worker_args.push(format!("--memory-bytes={MEMORY_BYTES}"));
    let mut bed = Bed::start(&clickhouse, load).await?;
    let watched = Watched::start(&bed)?;
    bed.moves_on().await?;
    eprintln!("at work: {} MiB resident", watched.most() >> 20);

    let began = Instant::now();
    clickhouse.pause()?;
    lasts(began, HALF).await?;
    clickhouse.resume()?;
    clickhouse.kill().await?;
    bed.says(
        PipeState::Degraded,
        reason::DESTINATION_UNREACHABLE,
        &["Millrace keeps trying"],
    )
    .await?;
    lasts(began, HALF * 2).await?;
    let (committed, put) = (bed.committed().await?, bed.put());
    let restarted = jiff::Timestamp::now();
    clickhouse.start_again().await?;
    let outage = began.elapsed();
    eprintln!(
        "outage of {outage:?}: {} MiB resident at most, {committed} of {put} records committed",
        watched.most() >> 20
    );
    ensure!(committed < put / 2, "the outage was not felt");

    bed.is_well_again().await?;
    let records = bed.drain().await?;
    let verdict = bed.ledger(records).await?;
    open_batches_went_first(&bed, restarted).await?;
    let (most, bound) = (watched.most(), MEMORY_BYTES + BESIDE_BUDGET);
    eprintln!(
        "caught up after {:?}: {records} records, {} MiB resident at most",
        began.elapsed() - outage,
        most >> 20
    );
    ensure!(verdict.is_clean(), "{verdict:?}\n{}", bed.cluster.logs());
    ensure!(most <= bound, "{most} bytes resident, {bound} are allowed");
    Ok(())
}

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

use crate::bed::{Bed, Load};

/// The worker's budget: a quarter of the default, so that it is full within the outage.
const MEMORY_BYTES: u64 = 64 << 20;
/// What the process may take beside its budget: code, connections, a block being built, what the allocator keeps.
const BESIDE_BUDGET: u64 = 112 << 20;
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

fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

async fn lasts(began: Instant, time: Duration) -> Result<()> {
    let over = || async { began.elapsed() >= time };
    Ok(eventually("the time to pass", time * 2, over).await?)
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

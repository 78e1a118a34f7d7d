//! One worker, two pipes, two doors to ClickHouse: while one door is shut for long, the other pipe goes on as if nothing
//! were the matter.

#![allow(clippy::print_stderr, reason = "what was measured is worth reading in the log")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use millrace_common::reason;
use millrace_integration_tests::{
    clickhouse::{self, ClickHouse},
    cluster::{Cluster, Options, Table, pipe_spec},
    events::{COLUMNS, Events},
    faults::{Proxy, Script},
    kinesis::{Emulator, Handle, Options as KinesisOptions, Put},
    ledger::{self, Verdict},
    process::eventually,
};
use millrace_proto::api::v1::PipeState;
use tokio::{task::JoinHandle, time::MissedTickBehavior};

use crate::bed::LIMIT;

/// A quarter of the default, so that the pipe whose door is shut soon holds as much of it as it can get.
const MEMORY_BYTES: u64 = 64 << 20;
const SHARDS: u32 = 4;
/// About 6 MB/s for each pipe: what this path bears twice on two cores in a debug build, with an engine beside it.
const CHUNK: u64 = 120;
const INTERVAL: Duration = Duration::from_millis(20);
/// Pairs of phases; the median counts.
const ROUNDS: usize = 3;
/// A phase is measured when it has lasted this long: by then the pipe whose door is shut has read all that it can hold.
const SETTLE: Duration = Duration::from_secs(8);
const MEASURE: Duration = Duration::from_secs(8);
/// What is asserted: well below what is measured, because a build may be running beside the test.
const LEAST_RATIO: f64 = 0.8;

/// Name of a pipe, its stream and its table.
const SOUND: &str = "sound";
const SHUT: &str = "shut";

struct Bulkhead {
    cluster: Cluster,
    door: Proxy,
    events: Arc<Events>,
    put: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    putting: JoinHandle<Result<()>>,
    // The streams outlive their readers.
    _kinesis: Arc<Handle>,
}

impl Bulkhead {
    async fn start(clickhouse: &ClickHouse, database: &str) -> Result<Self> {
        let kinesis = Arc::new(Emulator::start(KinesisOptions::default()).await?);
        let mut options = Options::unpaced();
        let worker = [
            format!("--memory-bytes={MEMORY_BYTES}"),
            "--probe-interval-ms=500".to_owned(),
        ];
        options.worker_args.extend(worker);
        let cluster = Cluster::start(options, 1).await?;
        cluster.create_credentials(clickhouse).await?;
        let url = clickhouse.http_url();
        let upstream: SocketAddr = url.trim_start_matches("http://").trim_end_matches('/').parse()?;
        let door = Proxy::start(upstream).await?;
        for name in [SOUND, SHUT] {
            kinesis.create_stream(name, SHARDS)?;
            let shape = Table {
                database,
                table: name,
                columns: &COLUMNS,
                sorting_key: &["id"],
            };
            let mut pipe = pipe_spec(&kinesis.endpoint_url(), name, clickhouse, shape);
            if let (SHUT, Some(destination)) = (name, &mut pipe.destination) {
                destination.endpoint = format!("http://{}", door.addr());
            }
            pipe.settings.get_or_insert_default().max_insert_wait = Some(prost_types::Duration {
                seconds: 0,
                nanos: 300_000_000,
            });
            cluster.create_pipe(name, pipe).await?;
        }
        let (events, put, stop) = (
            Arc::new(Events::new(1, 100, false)),
            Arc::<AtomicU64>::default(),
            Arc::<AtomicBool>::default(),
        );
        let putting = put_until(
            Arc::clone(&kinesis),
            Arc::clone(&events),
            Arc::clone(&put),
            Arc::clone(&stop),
        );
        Ok(Self {
            cluster,
            door,
            events,
            put,
            stop,
            putting: tokio::spawn(putting),
            _kinesis: kinesis,
        })
    }

    async fn committed(&self, pipe: &str) -> Result<u64> {
        let status = self.cluster.pipe(pipe).await?.status.unwrap_or_default();
        Ok(status.totals.unwrap_or_default().records)
    }

    /// Records of the sound pipe per second, after the phase has settled.
    async fn phase(&self, shut: bool) -> Result<f64> {
        let wanted = if shut { PipeState::Degraded } else { PipeState::Running };
        if shut {
            self.door.set(Script::refuse());
            self.door.reset_live();
        } else {
            self.door.heal();
        }
        let pipe = self.cluster.wait_for_state(SHUT, wanted, LIMIT).await?;
        if shut {
            let status = pipe.status.unwrap_or_default();
            ensure!(status.reason == reason::DESTINATION_UNREACHABLE, "{status:?}");
        }
        let settled = Instant::now();
        lasts(settled, SETTLE).await?;
        let (began, before, other) = (
            Instant::now(),
            self.committed(SOUND).await?,
            self.committed(SHUT).await?,
        );
        lasts(began, MEASURE).await?;
        let moved = self.committed(SOUND).await? - before;
        let rate = moved as f64 / began.elapsed().as_secs_f64();
        let other = self.committed(SHUT).await? - other;
        eprintln!(
            "{}: {rate:.0} records/s through the sound pipe, {other} records through the other; {} MiB resident",
            if shut { "one door shut" } else { "both doors open" },
            self.resident()? >> 20
        );
        ensure!(shut == (other == 0), "{other} records went through the door");
        Ok(rate)
    }

    fn resident(&self) -> Result<u64> {
        let pid = self.cluster.worker(0).context("a worker")?.pid();
        crate::outage::resident(pid).context("the worker's memory")
    }

    /// Both pipes come to the end of what was put, and hold it once.
    async fn ends_clean(mut self, clickhouse: &ClickHouse, database: &str) -> Result<()> {
        self.door.heal();
        self.stop.store(true, Ordering::SeqCst);
        (&mut self.putting).await??;
        let records = self.put.load(Ordering::SeqCst);
        for table in [SOUND, SHUT] {
            self.cluster
                .wait_for_records(table, records, LIMIT)
                .await
                .with_context(|| self.cluster.logs())?;
            let errors = format!("{table}_millrace_error");
            let tables = ledger::Tables {
                database,
                table,
                errors: &errors,
            };
            let verdict: Verdict = ledger::check(clickhouse, tables, &self.events, records).await?;
            ensure!(verdict.is_clean(), "{table}: {verdict:?}\n{}", self.cluster.logs());
        }
        Ok(())
    }
}

/// Puts the same records into both streams.
async fn put_until(
    kinesis: Arc<Handle>,
    events: Arc<Events>,
    put: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> Result<()> {
    let mut ticks = tokio::time::interval(INTERVAL);
    // Late chunks are made up for: the rate is to be the same in all phases.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while !stop.load(Ordering::SeqCst) {
        ticks.tick().await;
        let start = put.load(Ordering::SeqCst);
        let chunk: Vec<_> = (start..start + CHUNK).map(|id| events.event(id)).collect();
        for stream in [SOUND, SHUT] {
            kinesis.put_records_direct(stream, chunk.iter().map(|event| Put::new(&event.key, &event.data)))?;
        }
        put.fetch_add(CHUNK, Ordering::SeqCst);
    }
    Ok(())
}

async fn lasts(began: Instant, time: Duration) -> Result<()> {
    let over = || async { began.elapsed() >= time };
    Ok(eventually("the time to pass", time * 2, over).await?)
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shut_door_leaves_the_other_pipe_alone() -> Result<()> {
    let clickhouse = ClickHouse::start_own(clickhouse::Options::default()).await?;
    let database = clickhouse.database().await?;
    let bulkhead = Bulkhead::start(&clickhouse, &database).await?;
    let (mut open, mut shut) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        open.push(bulkhead.phase(false).await?);
        shut.push(bulkhead.phase(true).await?);
    }
    let ratio = median(shut.clone()) / median(open.clone());
    let offered = CHUNK as f64 / INTERVAL.as_secs_f64();
    eprintln!(
        "with one door shut the other pipe keeps {:.1} % of its throughput (medians of {ROUNDS}; {offered:.0} records/s are put): open {open:.0?}, shut {shut:.0?}",
        100.0 * ratio
    );
    ensure!(
        ratio >= LEAST_RATIO,
        "{ratio} of its throughput is left to the other pipe\n{}",
        bulkhead.cluster.logs()
    );
    bulkhead.ends_clean(&clickhouse, &database).await
}

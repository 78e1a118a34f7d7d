//! Benchmarks: one JSON line per figure, to be read as ratios within one run.
//!
//! `source` and `decode` run on one thread, interleaved with what they are compared with, and report medians. `path` runs the
//! whole of Millrace as processes, from a full emulator to rows acknowledged by ClickHouse, and then gives ClickHouse the same
//! records as `FORMAT JSONEachRow`. Build with `--release`.

mod counting;
mod decode;
mod shapes;
mod source;

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::{Parser, ValueEnum};
use counting::{Counting, allocations};
use millrace_integration_tests::{
    clickhouse::{ClickHouse, Options as ClickHouseOptions, Request, Usage},
    cluster::{self, Cluster, Table, pipe_spec},
    events::Events,
    kinesis::{Emulator, Options as KinesisOptions, Put},
};
use serde_json::json;

/// Measures Millrace on this machine.
#[derive(Debug, Parser)]
struct Options {
    /// Records that are decoded in each round.
    #[arg(long, default_value_t = 20_000)]
    decode_records: u64,
    /// Rounds of each comparison; the median counts.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Records that go the whole path.
    #[arg(long, default_value_t = 500_000)]
    path_records: u64,
    /// Shards of the stream.
    #[arg(long, default_value_t = 8)]
    shards: u32,
    /// What to measure; everything, if nothing is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Bench>,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// Reading a shard, beside the SDK.
    Source,
    /// Records to columns, beside simd-json's bare parse.
    Decode,
    /// From an emulator to ClickHouse, beside `FORMAT JSONEachRow`.
    Path,
}

impl Options {
    fn wants(&self, bench: Bench) -> bool {
        self.only.is_empty() || self.only.contains(&bench)
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const KEYS: u64 = 5000;
/// Rows of one `FORMAT JSONEachRow` insert: as many as a batch of a pipe holds at most.
const ROWS_PER_INSERT: usize = 100_000;
const LIMIT: Duration = Duration::from_secs(900);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if options.wants(Bench::Source) {
        source::run(options.rounds).await?;
    }
    if options.wants(Bench::Decode) {
        decode::run(options.decode_records, options.rounds)?;
    }
    if options.wants(Bench::Path) {
        path(&options).await?;
    }
    Ok(())
}

fn print(line: &serde_json::Value) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// The whole path as processes, then the same records as `JSONEachRow`.
async fn path(options: &Options) -> anyhow::Result<()> {
    let clickhouse = ClickHouse::start(ClickHouseOptions::default()).await?;
    let database = clickhouse.database().await?;
    let kinesis = Emulator::start(KinesisOptions::default()).await?;
    kinesis.create_stream("bench", options.shards)?;
    let events = Events::new(1, KEYS, false);
    let mut bytes = 0;
    let mut bodies = Vec::new();
    for start in (0..options.path_records).step_by(ROWS_PER_INSERT) {
        let end = (start + ROWS_PER_INSERT as u64).min(options.path_records);
        let chunk: Vec<_> = (start..end).map(|id| events.event(id)).collect();
        kinesis.put_records_direct("bench", chunk.iter().map(|event| Put::new(&event.key, &event.data)))?;
        let mut body = Vec::new();
        for event in &chunk {
            bytes += event.data.len();
            body.extend_from_slice(&event.data);
            body.push(b'\n');
        }
        bodies.push(body);
    }
    let gigabytes = megabytes(bytes) / 1000.0;

    let cluster = Cluster::start(cluster::Options::unpaced(), 1).await?;
    cluster.create_credentials(&clickhouse).await?;
    let worker = || {
        cluster
            .worker(0)
            .and_then(|process| process.cpu_time())
            .context("CPU time of the worker")
    };
    let (worker_before, began) = (worker()?, Instant::now());
    let table = Table::of_events(&database, "events");
    cluster
        .create_pipe("bench", pipe_spec(&kinesis.endpoint_url(), "bench", &clickhouse, table))
        .await?;
    cluster
        .wait_for_records("bench", options.path_records, LIMIT)
        .await
        .with_context(|| cluster.logs())?;
    let wall = began.elapsed().as_secs_f64();
    let worker_cpu = (worker()? - worker_before).as_secs_f64();
    let pipe = inserts(&clickhouse, &format!("{database}.events")).await?;
    ensure!(
        pipe.written_rows == options.path_records,
        "the query log knows of {} rows of {}",
        pipe.written_rows,
        options.path_records
    );
    print(&json!({
        "bench": "path", "data": "clickstream", "value": rounded(megabytes(bytes) / wall), "unit": "MB of JSON/s",
        "shards": options.shards, "records": options.path_records,
        "worker_cpu_seconds_per_gb": rounded(worker_cpu / gigabytes),
        "clickhouse_cpu_seconds_per_gb": rounded(pipe.cpu_seconds / gigabytes),
        "inserts": pipe.queries,
        "worker_peak_mb": cluster.worker(0).and_then(|process| process.peak_resident_bytes()).map(|bytes| bytes / 1_000_000),
    }))?;

    // The same rows for ClickHouse's own parser, into the same kind of table. Virtual columns are not in the JSON.
    clickhouse
        .query(&format!("CREATE TABLE {database}.baseline AS {database}.events"))
        .await?;
    let sql = format!("INSERT INTO {database}.baseline FORMAT JSONEachRow");
    let began = Instant::now();
    for body in bodies {
        clickhouse
            .send(Request::insert(&sql, body).parameter("async_insert", 0))
            .await?
            .into_text()?;
    }
    let baseline_wall = began.elapsed().as_secs_f64();
    let baseline = inserts(&clickhouse, &format!("{database}.baseline")).await?;
    print(&json!({
        "bench": "server_cpu", "data": "clickstream", "value": rounded(pipe.cpu_seconds / baseline.cpu_seconds),
        "unit": "ClickHouse CPU, pipe / JSONEachRow", "against": "json_each_row",
        "json_each_row_mb_per_s": rounded(megabytes(bytes) / baseline_wall),
        "json_each_row_clickhouse_cpu_seconds_per_gb": rounded(baseline.cpu_seconds / gigabytes),
        "total_cpu_ratio": rounded((pipe.cpu_seconds + worker_cpu) / baseline.cpu_seconds),
    }))
}

/// What the inserts into a table cost, merges left out, by ClickHouse's own account.
async fn inserts(clickhouse: &ClickHouse, table: &str) -> anyhow::Result<Usage> {
    Ok(clickhouse
        .usage(&format!("query_kind = 'Insert' AND has(tables, '{table}')"))
        .await?)
}

//! Benchmarks: one JSON line per figure, to be read as ratios within one run.
//!
//! `source`, `decode` and `block` run on one thread, interleaved with what they are compared with, and report medians. `path` runs the
//! whole of Millrace as processes, from a full emulator to rows acknowledged by ClickHouse, and then gives ClickHouse the same
//! records as `FORMAT JSONEachRow`. Build with `--release`.

mod source;

use std::{
    hint::black_box,
    io::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Parser;
use millrace_data_plane::{
    batch::block::Block,
    decode::{Decoder, FieldSource, MappedColumn, Plan, RecordMeta},
    sink::clickhouse::native::compress_lz4,
};
use millrace_integration_tests::{
    clickhouse::{ClickHouse, Options as ClickHouseOptions, Request, Usage},
    cluster::{self, Cluster, Table, pipe_spec},
    events::{COLUMNS, Events},
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
    /// Leave the whole path out.
    #[arg(long)]
    skip_path: bool,
}

const KEYS: u64 = 5000;
/// Rows of one `FORMAT JSONEachRow` insert: as many as a batch of a pipe holds at most.
const ROWS_PER_INSERT: usize = 100_000;
const LIMIT: Duration = Duration::from_secs(900);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    source::run(options.rounds).await?;
    decode(&options)?;
    if !options.skip_path {
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

fn plan() -> anyhow::Result<Arc<Plan>> {
    let columns = COLUMNS
        .iter()
        .map(|(name, kind)| {
            Ok(MappedColumn {
                name: (*name).to_owned(),
                data_type: kind.parse()?,
                has_default: false,
                source: name
                    .parse()
                    .map_or_else(|_| FieldSource::Key((*name).to_owned()), FieldSource::Virtual),
            })
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Arc::new(Plan::compile(columns)?))
}

/// Decode and block, one thread, each beside simd-json's bare parse of the same records.
fn decode(options: &Options) -> anyhow::Result<()> {
    let events = Events::new(1, KEYS, false);
    let records: Vec<_> = (0..options.decode_records).map(|id| events.event(id)).collect();
    let bytes: usize = records.iter().map(|record| record.data.len()).sum();
    let plan = plan()?;
    let (mut decoder, mut block) = (Decoder::new(Arc::clone(&plan)), Block::new(&plan));
    let (mut buffers, mut tape) = (simd_json::Buffers::new(4096), None);
    let (mut native, mut frames) = (Vec::new(), Vec::new());
    let mut scratch = Vec::new();
    let (mut parse_times, mut decode_times, mut native_times, mut lz4_times) = (vec![], vec![], vec![], vec![]);
    // The first round fills the buffers and is not counted.
    for round in 0..=options.rounds {
        let began = Instant::now();
        for record in &records {
            scratch.clear();
            scratch.extend_from_slice(&record.data);
            let mut parsed: simd_json::Tape<'_> = tape.take().unwrap_or_else(|| simd_json::Tape(Vec::new())).reset();
            simd_json::fill_tape(&mut scratch, &mut buffers, &mut parsed).context("a good event parses")?;
            black_box(&parsed);
            tape = Some(parsed.reset());
        }
        let parse = began.elapsed();
        block.clear();
        let began = Instant::now();
        for record in &records {
            let meta = RecordMeta {
                partition_key: &record.key,
                arrival_millis: 1_700_000_000_000,
                stream: "bench",
                shard_id: "shardId-000000000000",
                sequence_number: "49590338271490256608559692538361571095921575989136588898",
                sub_sequence_number: 0,
            };
            decoder
                .decode(&record.data, &meta, &mut block)
                .map_err(|rejection| anyhow::anyhow!("{rejection}"))?;
        }
        let decoded = began.elapsed();
        ensure!(block.rows() == records.len(), "every event is a row");
        native.clear();
        let began = Instant::now();
        block.write_native(&mut native);
        let written = began.elapsed();
        frames.clear();
        let began = Instant::now();
        compress_lz4(&native, &mut frames);
        let compressed = began.elapsed();
        if round > 0 {
            for (times, time) in [
                (&mut parse_times, parse),
                (&mut decode_times, decoded),
                (&mut native_times, written),
                (&mut lz4_times, compressed),
            ] {
                times.push(megabytes(bytes) / time.as_secs_f64());
            }
        }
    }
    let (parse, decoded) = (median(parse_times), median(decode_times));
    let line = |bench: &str, value: f64| {
        print(&json!({
            "bench": bench, "data": "clickstream", "value": rounded(value), "unit": "MB of JSON/s per core",
            "ratio": rounded(value / parse), "against": "simd_json_parse",
        }))
    };
    line("simd_json_parse", parse)?;
    line("decode", decoded)?;
    line("block_encoding", median(native_times))?;
    line("block_lz4", median(lz4_times))?;
    print(&json!({
        "bench": "block_size", "data": "clickstream", "value": rounded(megabytes(native.len()) / megabytes(bytes)),
        "unit": "Native bytes per JSON byte", "lz4": rounded(megabytes(frames.len()) / megabytes(bytes)),
    }))
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

//! Benchmarks: one JSON line per figure, to be read as ratios within one run.
//!
//! `source` and `decode` run on one thread, `server` gives ClickHouse the same rows in two formats, and `path` runs the whole of Millrace as
//! processes. What is compared takes turns, and figures are medians. Build with `--release`.

mod counting;
mod decode;
mod latency;
mod path;
mod server;
mod shapes;
mod source;

use std::io::Write as _;

use clap::{Parser, ValueEnum, value_parser};
use counting::{Counting, allocations};

/// Measures Millrace on this machine.
#[derive(Debug, Parser)]
struct Options {
    /// Records that are decoded in each round.
    #[arg(long, default_value_t = 20_000, value_parser = value_parser!(u64).range(1..=10_000_000))]
    decode_records: u64,
    /// Rounds of each comparison; the median counts.
    #[arg(long, default_value_t = 9, value_parser = rounds)]
    rounds: usize,
    /// Rows of one insert whose cost for ClickHouse is measured.
    #[arg(long, default_value_t = 100_000, value_parser = value_parser!(u64).range(1..=1_000_000))]
    server_records: u64,
    /// Records that go the whole path.
    #[arg(long, default_value_t = 500_000, value_parser = value_parser!(u64).range(1..=100_000_000))]
    path_records: u64,
    /// Rounds of the whole path.
    #[arg(long, default_value_t = 7, value_parser = rounds)]
    path_rounds: usize,
    /// Shards of the streams that go the whole path.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 256], value_parser = value_parser!(u32).range(1..=10_000))]
    shards: Vec<u32>,
    /// Records whose way to a query is timed, in each round.
    #[arg(long, default_value_t = 400, value_parser = value_parser!(u64).range(1..=1_000_000))]
    latency_records: u64,
    /// Rounds of that.
    #[arg(long, default_value_t = 3, value_parser = rounds)]
    latency_rounds: usize,
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
    /// What ClickHouse spends, beside `FORMAT JSONEachRow`.
    Server,
    /// From an emulator to ClickHouse.
    Path,
    /// From a put to a query that finds the row.
    Latency,
}

impl Options {
    fn wants(&self, bench: Bench) -> bool {
        self.only.is_empty() || self.only.contains(&bench)
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const KEYS: u64 = 5000;
/// More would take days.
const MOST_ROUNDS: usize = 1_000;

fn rounds(text: &str) -> Result<usize, String> {
    let rounds = text.parse().map_err(|error| format!("{error}"))?;
    match rounds {
        1..=MOST_ROUNDS => Ok(rounds),
        _ => Err(format!("must be 1 to {MOST_ROUNDS}")),
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if options.wants(Bench::Source) {
        source::run(options.rounds).await?;
    }
    if options.wants(Bench::Decode) {
        decode::run(options.decode_records, options.rounds)?;
    }
    if options.wants(Bench::Server) {
        server::run(options.server_records, options.rounds).await?;
    }
    if options.wants(Bench::Path) {
        path::run(options.path_records, &options.shards, options.path_rounds).await?;
    }
    if options.wants(Bench::Latency) {
        latency::run(options.latency_records, options.latency_rounds).await?;
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

//! The whole of Millrace as processes: from a full emulator to rows acknowledged by ClickHouse, without TLS, for streams of several numbers of
//! shards. They take turns; each run has a worker of its own, so that its memory is that of the run.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use millrace_integration_tests::{
    clickhouse::{ClickHouse, Options as ClickHouseOptions},
    cluster::{self, Cluster, Table, pipe_spec},
    events::Events,
    kinesis::{Emulator, Handle, Options as KinesisOptions, Put},
};
use serde_json::json;

use super::{KEYS, median, megabytes, print, rounded};

/// Records that are put into a stream at once.
const CHUNK: u64 = 100_000;
const LIMIT: Duration = Duration::from_secs(900);

/// What one run cost.
struct Cost {
    wall: f64,
    worker_cpu: f64,
    clickhouse_cpu: f64,
    inserts: u64,
    peak_bytes: u64,
}

struct Bed {
    clickhouse: ClickHouse,
    database: String,
    kinesis: Handle,
    records: u64,
}

/// Measures each of these numbers of shards.
pub(super) async fn run(records: u64, shards: &[u32], rounds: usize) -> anyhow::Result<()> {
    let clickhouse = ClickHouse::start(ClickHouseOptions::default()).await?;
    let bed = Bed {
        database: clickhouse.database().await?,
        clickhouse,
        kinesis: Emulator::start(KinesisOptions::default()).await?,
        records,
    };
    let mut bytes = 0;
    for count in shards {
        bytes = bed.fill(*count)?;
    }
    let mut costs: Vec<Vec<Cost>> = shards.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for (count, costs) in shards.iter().zip(&mut costs) {
            let cost = bed.run(*count, round).await;
            costs.push(cost.with_context(|| format!("{count} shards, round {round}"))?);
        }
    }
    for (count, costs) in shards.iter().zip(&costs) {
        show(*count, records, bytes, costs)?;
    }
    Ok(())
}

fn show(shards: u32, records: u64, bytes: usize, costs: &[Cost]) -> anyhow::Result<()> {
    let middle = |figure: fn(&Cost) -> f64| median(costs.iter().map(figure).collect());
    let gigabytes = megabytes(bytes) / 1000.0;
    let (wall, cpu) = (middle(|cost| cost.wall), middle(|cost| cost.worker_cpu));
    print(&json!({
        "bench": "path", "data": "clickstream", "value": rounded(megabytes(bytes) / cpu),
        "unit": "MB of JSON per CPU second of the worker", "shards": shards, "records": records, "rounds": costs.len(),
        "mb_per_s": rounded(megabytes(bytes) / wall),
        "worker_cores": rounded(middle(|cost| cost.worker_cpu / cost.wall)),
        "worker_cpu_seconds_per_gb": rounded(cpu / gigabytes),
        "clickhouse_cpu_seconds_per_gb": rounded(middle(|cost| cost.clickhouse_cpu) / gigabytes),
        "inserts": costs.iter().map(|cost| cost.inserts).collect::<Vec<_>>(),
    }))?;
    let peak = costs.iter().map(|cost| cost.peak_bytes).max().unwrap_or_default();
    print(&json!({
        "bench": "memory", "data": "clickstream", "value": peak / 1_000_000, "unit": "MB of the worker at its peak, most of all rounds",
        "shards": shards,
    }))
}

impl Bed {
    /// Makes a stream and fills it. Returns the bytes of its records.
    fn fill(&self, shards: u32) -> anyhow::Result<usize> {
        let stream = format!("bench-{shards}");
        self.kinesis.create_stream(&stream, shards)?;
        let (events, mut bytes) = (Events::new(1, KEYS, false), 0);
        for start in (0..self.records).step_by(CHUNK as usize) {
            let end = (start + CHUNK).min(self.records);
            let chunk: Vec<_> = (start..end).map(|id| events.event(id)).collect();
            bytes += chunk.iter().map(|event| event.data.len()).sum::<usize>();
            let puts = chunk.iter().map(|event| Put::new(&event.key, &event.data));
            self.kinesis.put_records_direct(&stream, puts)?;
        }
        Ok(bytes)
    }

    async fn run(&self, shards: u32, round: usize) -> anyhow::Result<Cost> {
        let (stream, table) = (format!("bench-{shards}"), format!("events_{shards}_{round}"));
        let cluster = Cluster::start(cluster::Options::unpaced(), 1).await?;
        cluster.create_credentials(&self.clickhouse).await?;
        let process = || cluster.worker(0).context("a worker");
        let cpu = || process()?.cpu_time().context("CPU time of the worker");
        let (before, began) = (cpu()?, Instant::now());
        let endpoint = self.kinesis.endpoint_url();
        let spec = pipe_spec(
            &endpoint,
            &stream,
            &self.clickhouse,
            Table::of_events(&self.database, &table),
        );
        cluster.create_pipe("bench", spec).await?;
        cluster
            .wait_for_records("bench", self.records, LIMIT)
            .await
            .with_context(|| cluster.logs())?;
        let wall = began.elapsed().as_secs_f64();
        let worker_cpu = (cpu()? - before).as_secs_f64();
        let peak_bytes = process()?.peak_resident_bytes().context("memory of the worker")?;
        drop(cluster);
        let name = format!("{}.{table}", self.database);
        let filter = format!("query_kind = 'Insert' AND has(tables, '{name}')");
        let inserts = self.clickhouse.usage(&filter).await?;
        ensure!(
            inserts.written_rows == self.records,
            "the query log knows of {} rows of {}",
            inserts.written_rows,
            self.records
        );
        self.clickhouse.query(&format!("DROP TABLE {name}")).await?;
        Ok(Cost {
            wall,
            worker_cpu,
            clickhouse_cpu: inserts.cpu_seconds,
            inserts: inserts.queries,
            peak_bytes,
        })
    }
}

//! From the moment a record is put into a stream until a query finds its row, for polling and for enhanced fan-out, which take turns.
//!
//! A light load, because latency under a heavy one is that of the queue. Pending rows are asked for again and again, so what is measured
//! is an upper bound: the query's own time is in it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use millrace_integration_tests::{
    clickhouse::ClickHouse,
    cluster,
    flow::{Flow, Shape},
};
use serde_json::json;

use super::{print, rounded};

const SHARDS: u32 = 4;
/// How long rows wait for others in a batch.
const FLUSH: Duration = Duration::from_millis(200);
/// Between two records.
const PACE: Duration = Duration::from_millis(50);
/// Records before any counts: connections are made, subscriptions begin.
const WARM_UP: u64 = 60;
const LIMIT: Duration = Duration::from_secs(60);

/// Measures this many records of each way, in rounds.
pub(super) async fn run(records: u64, rounds: usize) -> anyhow::Result<()> {
    let mut polling = Vec::new();
    let mut fan_out = Vec::new();
    for _ in 0..rounds {
        for (way, all) in [(false, &mut polling), (true, &mut fan_out)] {
            all.extend(measure(way, records).await?);
        }
    }
    for (name, mut all) in [("polling", polling), ("fan_out", fan_out)] {
        all.sort_unstable();
        let at = |share: f64| -> anyhow::Result<f64> {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss
            )]
            let index = ((all.len() as f64 - 1.0) * share).round() as usize;
            Ok(rounded(all.get(index).context("a latency")?.as_secs_f64() * 1000.0))
        };
        print(&json!({
            "bench": "latency", "data": name, "value": at(0.5)?, "unit": "ms from put to queryable, median", "p90": at(0.9)?,
            "p99": at(0.99)?, "max": at(1.0)?, "records": all.len(), "rounds": rounds, "shards": SHARDS,
            "max_insert_wait_ms": u64::try_from(FLUSH.as_millis())?,
        }))?;
    }
    Ok(())
}

async fn measure(fan_out: bool, records: u64) -> anyhow::Result<Vec<Duration>> {
    let mut shape = Shape::new(SHARDS, 1);
    shape.fan_out = fan_out;
    shape.max_insert_wait = FLUSH;
    shape.options = cluster::Options::default();
    let flow = Flow::start(shape).await?;
    let clickhouse = ClickHouse::shared().await;
    let tables = flow.tables();
    let table = format!("{}.{}", tables.database, tables.table);
    // The whole of the first second is the cluster's start; wait until the pipe moves.
    flow.put(0..1)?;
    flow.committed(1).await?;
    let (mut pending, mut found) = (BTreeMap::new(), Vec::new());
    let (mut next, mut due) = (1, Instant::now());
    let last = WARM_UP + records;
    let mut heard = Instant::now();
    while next <= last || !pending.is_empty() {
        while next <= last && Instant::now() >= due {
            flow.put(next..next + 1)?;
            pending.insert(next, Instant::now());
            next += 1;
            due += PACE;
        }
        if !pending.is_empty() {
            let wanted: Vec<String> = pending.keys().map(u64::to_string).collect();
            let sql = format!("SELECT id FROM {table} WHERE id IN ({}) FORMAT TSV", wanted.join(","));
            let rows = clickhouse.query(&sql).await?;
            let now = Instant::now();
            for id in rows.lines() {
                let id = id.parse::<u64>()?;
                let put = pending.remove(&id).context("a row once")?;
                heard = now;
                if id > WARM_UP {
                    found.push(now - put);
                }
            }
            ensure!(
                heard.elapsed() < LIMIT,
                "no row for {} s: {}",
                LIMIT.as_secs(),
                flow.cluster.logs()
            );
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    ensure!(found.len() as u64 == records, "{} of {records} rows", found.len());
    Ok(found)
}

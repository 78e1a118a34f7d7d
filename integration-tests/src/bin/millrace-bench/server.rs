//! What ClickHouse spends on the same rows as a Native block in LZ4 frames and as `FORMAT JSONEachRow`, into a MergeTree whose merges stand
//! still and into Null, by its own account (`system.query_log`).
//!
//! All four inserts take turns within a round; a figure is the median of the rounds. The first round is not counted.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use millrace_data_plane::{batch::block::Block, decode::Decoder, sink::clickhouse::native::compress_lz4};
use millrace_integration_tests::clickhouse::{ClickHouse, Options, Request};
use serde_json::json;

use super::{
    decode::{META, plan},
    median, megabytes, print, rounded,
    shapes::{self, Shape},
};

/// How long an insert may take to be in the query log.
const LOG_LIMIT: Duration = Duration::from_secs(10);
/// Where rows go: what is left of the difference once they have to be sorted and written, and the parsing alone.
const ENGINES: [&str; 2] = ["MergeTree", "Null"];

/// Measures records of two shapes.
pub(super) async fn run(records: u64, rounds: usize) -> anyhow::Result<()> {
    let clickhouse = ClickHouse::start(Options::default()).await?;
    let database = clickhouse.database().await?;
    for shape in [shapes::flat(records), shapes::nested(records)] {
        measure(&clickhouse, &database, &shape, rounds)
            .await
            .with_context(|| format!("records of the shape `{}`", shape.name))?;
    }
    Ok(())
}

/// One way to give ClickHouse the rows.
struct Way {
    statement: &'static str,
    parameters: [(&'static str, u8); 2],
    body: Bytes,
}

fn native(shape: &Shape) -> anyhow::Result<Way> {
    let plan = plan(shape)?;
    let (mut decoder, mut block) = (Decoder::new(Arc::clone(&plan)), Block::new(&plan));
    for record in &shape.records {
        decoder
            .decode_whole(record, &META, &mut block)
            .map_err(|rejection| anyhow::anyhow!("{rejection}"))?;
    }
    let (mut native, mut frames) = (Vec::new(), Vec::new());
    block.write_native(&mut native);
    compress_lz4(&native, &mut frames);
    Ok(Way {
        statement: "Native",
        parameters: [("decompress", 1), ("input_format_native_allow_types_conversion", 0)],
        body: frames.into(),
    })
}

fn json_each_row(shape: &Shape) -> Way {
    Way {
        statement: "JSONEachRow",
        parameters: [("decompress", 0), ("input_format_skip_unknown_fields", 1)],
        body: shape.records.join(&b'\n').into(),
    }
}

async fn measure(clickhouse: &ClickHouse, database: &str, shape: &Shape, rounds: usize) -> anyhow::Result<()> {
    let ways = [native(shape)?, json_each_row(shape)];
    let columns: Vec<_> = shape
        .columns
        .iter()
        .map(|(name, kind)| format!("`{name}` {kind}"))
        .collect();
    let (columns, key) = (columns.join(", "), &shape.columns.first().context("a column")?.0);
    let table = |engine: &str| format!("{database}.{}_{engine}", shape.name);
    for engine in ENGINES {
        let order = if engine == "Null" {
            String::new()
        } else {
            format!("ORDER BY `{key}`")
        };
        let sql = format!("CREATE TABLE {} ({columns}) ENGINE = {engine} {order}", table(engine));
        clickhouse.query(&sql).await?;
    }
    clickhouse
        .query(&format!("SYSTEM STOP MERGES {}", table(ENGINES[0])))
        .await?;
    let mut seconds: [[Vec<f64>; 2]; 2] = Default::default();
    for round in 0..=rounds {
        for (engine, seconds) in ENGINES.iter().zip(&mut seconds) {
            for (way, seconds) in ways.iter().zip(seconds) {
                let spent = insert(clickhouse, &table(engine), way, shape.records.len()).await?;
                if round > 0 {
                    seconds.push(spent);
                }
            }
        }
        clickhouse
            .query(&format!("TRUNCATE TABLE {}", table(ENGINES[0])))
            .await?;
    }
    let gigabytes = megabytes(shape.bytes()) / 1000.0;
    for (engine, seconds) in ENGINES.into_iter().zip(seconds) {
        let [native, json] = seconds.map(median);
        print(&json!({
            "bench": "server_cpu", "data": shape.name, "into": engine, "value": rounded(native / gigabytes),
            "unit": "CPU seconds of ClickHouse per GB of JSON", "ratio": rounded(native / json), "against": "json_each_row",
            "json_each_row": rounded(json / gigabytes), "rows": shape.records.len(), "rounds": rounds,
        }))?;
    }
    Ok(())
}

/// CPU seconds of one insert.
async fn insert(clickhouse: &ClickHouse, table: &str, way: &Way, rows: usize) -> anyhow::Result<f64> {
    let id = ulid::Ulid::new().to_string();
    let sql = format!("INSERT INTO {table} FORMAT {}", way.statement);
    let request = Request::insert(&sql, way.body.clone())
        .parameter("query_id", &id)
        .parameter("async_insert", 0)
        .parameter("date_time_input_format", "best_effort");
    let request = way
        .parameters
        .into_iter()
        .fold(request, |request, (name, value)| request.parameter(name, value));
    clickhouse.send(request).await?.into_text()?;
    // The answer comes before the entry of the log.
    let deadline = Instant::now() + LOG_LIMIT;
    let usage = loop {
        let usage = clickhouse.usage(&format!("query_id = '{id}'")).await?;
        if usage.queries == 1 {
            break usage;
        }
        ensure!(Instant::now() < deadline, "the query log does not know of {id}");
    };
    ensure!(
        usage.written_rows == rows as u64,
        "{} rows of {rows} were written",
        usage.written_rows
    );
    Ok(usage.cpu_seconds)
}

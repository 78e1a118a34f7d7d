//! Every type through the whole pipe: values put into a stream leave the rows that ClickHouse itself makes of the same JSON with
//! `FORMAT JSONEachRow` in a table of the same shape, and are refused where it refuses them.
//!
//! `types.rs` tries many more spellings without a pipe; here each type goes all the way, as top-level value and nested.

#![allow(clippy::print_stderr, reason = "what was found is worth reading in the log")]

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, ensure};
use millrace_integration_tests::{
    clickhouse::{ClickHouse, Request},
    cluster::{Cluster, Options, Table, pipe_spec},
    kinesis::{Emulator, Options as KinesisOptions, Put},
    type_cases::TYPE_CASES,
};
use millrace_proto::api::v1::Settings;

const LIMIT: Duration = Duration::from_secs(120);
/// Rows of one `JSONEachRow` insert that is expected to be taken; a refused one is halved until its bad rows are alone.
const CHUNK: usize = 256;

/// Types that may not stand inside an array.
fn nestable(data_type: &str) -> bool {
    !data_type.starts_with("SimpleAggregateFunction") && !data_type.starts_with("Nested")
}

/// ClickHouse (26.7) cannot read back what it stored of a tuple that has an element `a.b` beside an element `a` with an
/// element `b`: their columns share a file name. `Dynamic` makes such tuples of such objects.
fn storable(value: &str) -> bool {
    !value.contains("\"a.b\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_through_the_pipe_is_what_clickhouse_makes_of_it() -> anyhow::Result<()> {
    let clickhouse = ClickHouse::shared().await;
    let database = clickhouse.database().await?;
    let mut columns = vec!["id UInt64".to_owned()];
    let mut records = Vec::new();
    for (index, case) in TYPE_CASES.iter().enumerate() {
        columns.push(format!("v{index} {}", case.data_type));
        let nested = nestable(case.data_type);
        if nested {
            columns.push(format!("n{index} Array(Tuple(x {}))", case.data_type));
        }
        for value in case.same.iter().filter(|value| storable(value)) {
            records.push(format!("{{\"id\": {}, \"v{index}\": {value}}}", records.len()));
            if nested {
                records.push(format!(
                    "{{\"id\": {}, \"n{index}\": [{{\"x\": {value}}}]}}",
                    records.len()
                ));
            }
        }
    }
    for table in ["theirs", "ours"] {
        let create = format!(
            "CREATE TABLE {database}.{table} ({}) ENGINE = MergeTree ORDER BY id SETTINGS non_replicated_deduplication_window = 1000, min_bytes_for_wide_part = 0",
            columns.join(", ")
        );
        let request = Request::query(&create)
            .parameter("flatten_nested", 0)
            .parameter("allow_suspicious_low_cardinality_types", 1)
            .parameter("allow_suspicious_variant_types", 1);
        clickhouse.send(request).await?.into_text().context(create)?;
    }

    let kinesis = Emulator::start(KinesisOptions::default()).await?;
    kinesis.create_stream("types", 2)?;
    kinesis.put_records_direct(
        "types",
        records.iter().map(|record| Put::new(record, record.as_bytes())),
    )?;
    let cluster = Cluster::start(Options::default(), 1).await?;
    cluster.create_credentials(clickhouse).await?;
    let table = Table {
        database: &database,
        table: "ours",
        columns: &[],
        sorting_key: &[],
    };
    let mut pipe = pipe_spec(&kinesis.endpoint_url(), "types", clickhouse, table);
    if let Some(destination) = &mut pipe.destination {
        destination.managed_table = false;
        destination.table_definition = None;
    }
    let wait = prost_types::Duration { seconds: 1, nanos: 0 };
    pipe.settings = Some(Settings {
        max_insert_wait: Some(wait),
        ..Default::default()
    });
    cluster
        .create_pipe("types", pipe)
        .await
        .map_err(|status| anyhow::anyhow!("{status}"))?;

    let refused = insert_json(clickhouse, &format!("{database}.theirs"), &records).await?;
    cluster
        .wait_for_records("types", records.len() as u64, LIMIT)
        .await
        .with_context(|| cluster.logs())?;

    let rows = |table: &str| format!("SELECT * FROM {database}.{table} ORDER BY id FORMAT JSONEachRow");
    let (theirs, ours) = (
        clickhouse.query(&rows("theirs")).await?,
        clickhouse.query(&rows("ours")).await?,
    );
    let mut different = Vec::new();
    for (theirs, ours) in theirs.lines().zip(ours.lines()).filter(|(theirs, ours)| theirs != ours) {
        let (theirs, ours): (serde_json::Value, serde_json::Value) =
            (serde_json::from_str(theirs)?, serde_json::from_str(ours)?);
        let record = ours["id"]
            .as_str()
            .and_then(|id| id.parse::<usize>().ok())
            .or_else(|| ours["id"].as_u64().and_then(|id| usize::try_from(id).ok()));
        let fields = theirs
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, value)| ours[key.as_str()] != **value);
        for (key, value) in fields {
            different.push(format!(
                "{}: {key} is {value}, not {}",
                record.map_or("?", |id| &records[id]),
                ours[key.as_str()]
            ));
        }
    }
    ensure!(
        different.is_empty(),
        "{} values differ:\n{}",
        different.len(),
        different.join("\n")
    );
    let rejected: BTreeSet<Vec<u8>> = clickhouse
        .query(&format!(
            "SELECT base64Encode(record_value) FROM {database}.ours_millrace_error"
        ))
        .await?
        .lines()
        .map(|line| Ok(base64_simd::STANDARD.decode_to_vec(line)?))
        .collect::<anyhow::Result<_>>()?;
    let refused: BTreeSet<Vec<u8>> = refused
        .into_iter()
        .map(|index| records[index].clone().into_bytes())
        .collect();
    let only = |a: &BTreeSet<Vec<u8>>, b: &BTreeSet<Vec<u8>>| {
        a.difference(b)
            .map(|record| String::from_utf8_lossy(record).into_owned())
            .collect::<Vec<_>>()
            .join("\n")
    };
    ensure!(
        rejected == refused,
        "refused by us only:\n{}\nrefused by ClickHouse only:\n{}",
        only(&rejected, &refused),
        only(&refused, &rejected)
    );
    assert_eq!(theirs.lines().count() + refused.len(), records.len());
    eprintln!(
        "{} types, {} records: {} rows, {} refused",
        TYPE_CASES.len(),
        records.len(),
        theirs.lines().count(),
        refused.len()
    );
    Ok(())
}

/// Inserts records as `JSONEachRow`, and returns the indexes of those that ClickHouse refuses one by one.
async fn insert_json(clickhouse: &ClickHouse, table: &str, records: &[String]) -> anyhow::Result<Vec<usize>> {
    let mut refused = Vec::new();
    let mut ranges: Vec<_> = (0..records.len())
        .step_by(CHUNK)
        .map(|start| start..(start + CHUNK).min(records.len()))
        .collect();
    while let Some(range) = ranges.pop() {
        let body = records[range.clone()].join("\n");
        let request =
            Request::insert(&format!("INSERT INTO {table} FORMAT JSONEachRow"), body).parameter("async_insert", 0);
        match clickhouse.send(request).await?.into_text() {
            Ok(_) => {}
            Err(_) if range.len() == 1 => refused.push(range.start),
            Err(_) => {
                let middle = range.start + range.len() / 2;
                ranges.extend([range.start..middle, middle..range.end]);
            }
        }
    }
    Ok(refused)
}

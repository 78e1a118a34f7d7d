//! The whole path against an emulator that is not ours: a record put by boto3 into kinesis-local is a row in ClickHouse.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};
use millrace_integration_tests::{
    clickhouse::ClickHouse,
    cluster::{Cluster, Options, Table, pipe_spec},
    kinesis::{StreamSpec, referee::Referee},
    process::python,
};

const LIMIT: Duration = Duration::from_secs(60);
const RECORDS: u64 = 250;

const PUT: &str = r#"
import json, sys, boto3
from botocore.config import Config
endpoint, stream, records = sys.argv[1], sys.argv[2], int(sys.argv[3])
kinesis = boto3.client("kinesis", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="x",
                       aws_secret_access_key="x", config=Config(retries={"max_attempts": 5}))
for start in range(0, records, 100):
    batch = [{"PartitionKey": f"key-{i % 7}", "Data": json.dumps({"id": i, "text": f"größe {i} 東京", "nested": {"n": i * 2}}).encode()}
             for i in range(start, min(start + 100, records))]
    answer = kinesis.put_records(StreamName=stream, Records=batch)
    assert answer["FailedRecordCount"] == 0, answer
kinesis.put_record(StreamName=stream, PartitionKey="bad", Data=b'{"id": 1, "text":')
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_record_put_by_boto3_into_an_emulator_of_others_arrives() -> anyhow::Result<()> {
    let clickhouse = ClickHouse::shared().await;
    let database = clickhouse.database().await?;
    let referee = Referee::start(&[StreamSpec::new("theirs", 3)]).await?;
    let cluster = Cluster::start(Options::default(), 1).await?;
    cluster.create_credentials(clickhouse).await?;
    let columns = [
        ("id", "UInt64"),
        ("text", "String"),
        ("nested", "Tuple(n UInt64)"),
        ("_key", "String"),
        ("_sequence_number", "String"),
    ];
    let table = Table {
        database: &database,
        table: "events",
        columns: &columns,
        sorting_key: &["id"],
    };
    let mut pipe = pipe_spec(&referee.endpoint_url(), "theirs", clickhouse, table);
    pipe.settings = Some(millrace_proto::api::v1::Settings {
        max_insert_wait: Some(prost_types::Duration {
            seconds: 0,
            nanos: 200_000_000,
        }),
        ..Default::default()
    });
    cluster.create_pipe("theirs", pipe).await?;

    let python = python().context("boto3 is installed by deploy/dev/tools.sh test")?;
    let put = tokio::process::Command::new(&python)
        .args(["-c", PUT, &referee.endpoint_url(), "theirs", &RECORDS.to_string()])
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| format!("cannot run {}", python.display()))?;
    ensure!(put.status.success(), "boto3: {}", String::from_utf8_lossy(&put.stderr));

    cluster
        .wait_for_records("theirs", RECORDS + 1, LIMIT)
        .await
        .with_context(|| cluster.logs())?;
    let query = |sql: String| async move { clickhouse.query(&sql).await.map(|text| text.trim().to_owned()) };
    assert_eq!(
        query(format!(
            "SELECT count(), uniqExact(id), sum(nested.n), uniqExact(_key) FROM {database}.events"
        ))
        .await?,
        format!("{RECORDS}\t{RECORDS}\t{}\t7", RECORDS * (RECORDS - 1))
    );
    assert_eq!(
        query(format!("SELECT text FROM {database}.events WHERE id = 42")).await?,
        "größe 42 東京"
    );
    assert_eq!(
        query(format!(
            "SELECT error_type, record_key, record_value FROM {database}.events_millrace_error"
        ))
        .await?,
        "malformed_json\tbad\t{\"id\": 1, \"text\":"
    );
    Ok(())
}

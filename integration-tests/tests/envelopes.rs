//! What AWS services wrap documents in, unwrapped by a whole pipe: one test per envelope. The records here are the examples of the
//! services' documentation, and those of `docs/mapping.md`.

use std::{io::Write as _, time::Duration};

use anyhow::Context as _;
use flate2::{Compression, write::GzEncoder};
use millrace_integration_tests::{
    clickhouse::{ClickHouse, Request},
    cluster::{Cluster, Options, Table, pipe_spec},
    kinesis::{Emulator, Handle, Options as KinesisOptions, Put},
};
use millrace_proto::api::v1::{self as api, Envelope};

const LIMIT: Duration = Duration::from_secs(60);
const STREAM: &str = "wrapped";

/// A pipe over these records into a table with these columns.
struct Bed {
    cluster: Cluster,
    kinesis: Handle,
    clickhouse: &'static ClickHouse,
    database: String,
}

impl Bed {
    /// Runs a pipe until it has read all records. The mapping is of columns by source.
    async fn run(
        envelope: Envelope,
        records: &[&[u8]],
        columns: &[(&str, &str)],
        mappings: &[(&str, &str)],
    ) -> anyhow::Result<(Bed, api::PipeTotals)> {
        let clickhouse = ClickHouse::shared().await;
        let kinesis = Emulator::start(KinesisOptions::default()).await?;
        kinesis.create_stream(STREAM, 1)?;
        kinesis.put_records_direct(STREAM, records.iter().map(|record| Put::new("key", record)))?;
        let cluster = Cluster::start(Options::default(), 1).await?;
        cluster.create_credentials(clickhouse).await?;
        let bed = Bed {
            cluster,
            kinesis,
            clickhouse,
            database: clickhouse.database().await?,
        };
        let table = Table {
            database: &bed.database,
            table: "events",
            columns,
            sorting_key: &[],
        };
        let pipe = api::Pipe {
            settings: Some(api::Settings {
                max_insert_wait: Some(prost_types::Duration {
                    seconds: 0,
                    nanos: 200_000_000,
                }),
                ..Default::default()
            }),
            decoding: Some(api::Decoding {
                envelope: envelope.into(),
                ..Default::default()
            }),
            field_mappings: mappings
                .iter()
                .map(|(source, target)| api::FieldMapping {
                    source_field: (*source).to_owned(),
                    destination_field: (*target).to_owned(),
                    ..Default::default()
                })
                .collect(),
            ..pipe_spec(&bed.kinesis.endpoint_url(), STREAM, bed.clickhouse, table)
        };
        let created = bed.cluster.create_pipe("wrapped", pipe).await;
        created.map_err(|status| anyhow::anyhow!("{status}"))?;
        let waited = bed
            .cluster
            .wait_for_records("wrapped", records.len() as u64, LIMIT)
            .await;
        let totals = waited.with_context(|| bed.cluster.logs())?;
        Ok((bed, totals))
    }

    /// What a query in this database gives, a line for each row, without spaces between values.
    async fn lines(&self, query: &str) -> anyhow::Result<Vec<String>> {
        let query = query.replace("db.", &format!("{}.", self.database));
        let request = Request::query(&query).parameter("output_format_json_quote_64bit_integers", 0);
        let text = self.clickhouse.send(request).await?.into_text().context(query)?;
        Ok(text.lines().map(|line| line.replace(", ", ",")).collect())
    }

    async fn rows(&self, order: &str) -> anyhow::Result<Vec<String>> {
        self.lines(&format!(
            "SELECT * FROM db.events ORDER BY {order} FORMAT JSONCompactEachRow"
        ))
        .await
    }

    async fn errors(&self) -> anyhow::Result<Vec<String>> {
        self.lines(
            "SELECT error_type, sub_sequence_number, record_value FROM db.events_millrace_error ORDER BY ALL \
             FORMAT JSONCompactEachRow",
        )
        .await
    }
}

fn gzip(text: &str) -> anyhow::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes())?;
    Ok(encoder.finish()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn log_events_of_cloudwatch_are_rows() -> anyhow::Result<()> {
    let head = r#""owner":"111111111111","logGroup":"/shop/orders","logStream":"web-1","subscriptionFilters":["all"]"#;
    let data = gzip(&format!(
        r#"{{"messageType":"DATA_MESSAGE",{head},"logEvents":[
            {{"id":"31953106606966983378809025079804211143289615424298221568","timestamp":1510109208016,"message":"{{\"level\":\"warn\",\"order\":7}}"}},
            {{"id":"31953106606966983378809025079804211143289615424298221569","timestamp":1510109208017,"message":"START RequestId: 1\n"}},
            {{"id":"31953106606966983378809025079804211143289615424298221570","timestamp":1510109208018,"message":"{{\"level\":\"info\",\"order\":\"x\"}}"}}]}}"#
    ))?;
    let control = gzip(
        r#"{"messageType":"CONTROL_MESSAGE","owner":"CloudwatchLogs","logGroup":"","logStream":"","subscriptionFilters":[],
            "logEvents":[{"id":"","timestamp":1510109208016,"message":"CWL CONTROL MESSAGE: Checking health of destination Kinesis stream."}]}"#,
    )?;
    let other = gzip(r#"{"level":"warn"}"#)?;
    let columns = [
        ("time", "DateTime64(3, 'UTC')"),
        ("log_group", "LowCardinality(String)"),
        ("level", "LowCardinality(String)"),
        ("order", "Nullable(UInt64)"),
        ("text", "String"),
        ("place", "UInt64"),
    ];
    let mappings = [
        ("_envelope.timestamp", "time"),
        ("_envelope.logGroup", "log_group"),
        ("level", "level"),
        ("order", "order"),
        ("message", "text"),
        ("_sub_sequence_number", "place"),
    ];
    // The record that only says that the subscription is there comes last: the position goes past it, too.
    let records = [&data[..], &other, &control];
    let (bed, totals) = Bed::run(Envelope::CloudwatchLogs, &records, &columns, &mappings).await?;
    assert_eq!((totals.records, totals.rows, totals.rejected_records), (3, 2, 2));
    assert_eq!(
        bed.rows("place").await?,
        [
            r#"["2017-11-08 02:46:48.016","\/shop\/orders","warn",7,"",0]"#,
            r#"["2017-11-08 02:46:48.017","\/shop\/orders","",null,"START RequestId: 1\n",1]"#,
        ]
    );
    let refused = r#"{\"id\":\"31953106606966983378809025079804211143289615424298221570\",\"timestamp\":1510109208018,\"message\":\"{\\\"level\\\":\\\"info\\\",\\\"order\\\":\\\"x\\\"}\"}"#;
    assert_eq!(
        bed.errors().await?,
        [
            r#"["not_in_envelope",0,"{\"level\":\"warn\"}"]"#.to_owned(),
            format!(r#"["type_mismatch",2,"{refused}"]"#),
        ]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_detail_of_an_event_of_eventbridge_is_a_row() -> anyhow::Result<()> {
    let placed = r#"{"version":"0","id":"6a7e8feb-b491-4cf7-a9f1-bf3703467718","detail-type":"Order Placed","source":"shop",
        "account":"111122223333","time":"2026-01-12T18:43:48Z","region":"eu-central-1","resources":["arn:aws:x"],
        "detail":{"order":7,"total":12345678901234567.89,"lines":[{"sku":"a"}]}}"#;
    let bare = r#"{"order":8}"#;
    let columns = [
        ("order", "UInt64"),
        ("total", "Decimal(38, 2)"),
        ("sku", "String"),
        ("kind", "String"),
        ("time", "DateTime('UTC')"),
        ("raw", "String"),
    ];
    let mappings = [
        ("order", "order"),
        ("total", "total"),
        ("/lines/0/sku", "sku"),
        ("_envelope.detail-type", "kind"),
        ("/_envelope/time", "time"),
        ("_raw_message", "raw"),
    ];
    let records = [placed.as_bytes(), bare.as_bytes()];
    let (bed, totals) = Bed::run(Envelope::Eventbridge, &records, &columns, &mappings).await?;
    assert_eq!((totals.records, totals.rows, totals.rejected_records), (2, 1, 1));
    assert_eq!(
        bed.rows("`order`").await?,
        [
            r#"[7,12345678901234567.89,"a","Order Placed","2026-01-12 18:43:48","{\"order\":7,\"total\":12345678901234567.89,\"lines\":[{\"sku\":\"a\"}]}"]"#
        ]
    );
    assert_eq!(bed.errors().await?, [r#"["not_in_envelope",0,"{\"order\":8}"]"#]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_message_of_a_notification_of_sns_is_a_row() -> anyhow::Result<()> {
    let notice = |message: &str| {
        format!(
            r#"{{"Type":"Notification","MessageId":"22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324","TopicArn":"arn:aws:sns:eu-central-1:123456789012:orders",
            "Subject":"new","Message":{message},"Timestamp":"2026-01-02T00:54:06.655Z","SignatureVersion":"1",
            "MessageAttributes":{{"kind":{{"Type":"String","Value":"order"}}}}}}"#
        )
    };
    let (json, text) = (notice(r#""{\"order\":7,\"by\":\"ann\"}""#), notice(r#""hello""#));
    let confirmation = notice("\"x\"").replace("Notification", "SubscriptionConfirmation");
    let columns = [
        ("order", "Nullable(UInt64)"),
        ("message", "String"),
        ("topic", "String"),
        ("kind", "String"),
    ];
    let mappings = [
        ("order", "order"),
        ("message", "message"),
        ("_envelope.TopicArn", "topic"),
        ("_envelope.MessageAttributes.kind.Value", "kind"),
    ];
    let records = [json.as_bytes(), text.as_bytes(), confirmation.as_bytes()];
    let (bed, totals) = Bed::run(Envelope::Sns, &records, &columns, &mappings).await?;
    assert_eq!((totals.records, totals.rows, totals.rejected_records), (3, 2, 1));
    let topic = "arn:aws:sns:eu-central-1:123456789012:orders";
    assert_eq!(
        bed.rows("`order` NULLS LAST").await?,
        [
            format!(r#"[7,"","{topic}","order"]"#),
            format!(r#"[null,"hello","{topic}","order"]"#),
        ]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_of_a_change_in_dynamodb_is_a_row() -> anyhow::Result<()> {
    let record = |name: &str, dynamodb: &str| {
        format!(
            r#"{{"awsRegion":"eu-central-1","eventID":"{name}-1","eventName":"{name}","userIdentity":null,"recordFormat":"application/json",
            "tableName":"orders","dynamodb":{{"ApproximateCreationDateTime":1700000000123,"Keys":{{"id":{{"N":"7"}}}},{dynamodb}"SizeBytes":59}},
            "eventSource":"aws:dynamodb"}}"#
        )
    };
    let inserted = record(
        "INSERT",
        r#""NewImage":{"id":{"N":"7"},"total":{"N":"12345678901234567890123456789.012345678"},"tags":{"SS":["a","b"]},"lines":{"L":[{"M":{"sku":{"S":"x"},"n":{"N":"2"}}}]},"paid":{"BOOL":true},"note":{"NULL":true}},"#,
    );
    let modified = record(
        "MODIFY",
        r#""NewImage":{"id":{"N":"7"},"total":{"N":"0"}},"OldImage":{"id":{"N":"7"},"total":{"N":"1E+2"}},"#,
    );
    let removed = record("REMOVE", r#""OldImage":{"id":{"N":"7"},"total":{"N":"0"}},"#);
    let broken = record("INSERT", r#""NewImage":{"id":{"N":"seven"}},"#);
    let columns = [
        ("event", "LowCardinality(String)"),
        ("at", "Int64"),
        ("id", "UInt64"),
        ("total", "Nullable(Decimal(38, 9))"),
        ("tags", "Array(String)"),
        ("lines", "String"),
        ("paid", "Bool"),
        ("old_total", "Nullable(Decimal(38, 9))"),
    ];
    let mappings = [
        ("_envelope.eventName", "event"),
        ("_envelope.ApproximateCreationDateTime", "at"),
        ("id", "id"),
        ("total", "total"),
        ("tags", "tags"),
        ("lines", "lines"),
        ("paid", "paid"),
        ("_envelope.OldImage.total", "old_total"),
    ];
    let records = [
        inserted.as_bytes(),
        modified.as_bytes(),
        removed.as_bytes(),
        broken.as_bytes(),
    ];
    let (bed, totals) = Bed::run(Envelope::DynamodbStream, &records, &columns, &mappings).await?;
    assert_eq!((totals.records, totals.rows, totals.rejected_records), (4, 3, 1));
    assert_eq!(
        bed.rows("event").await?,
        [
            r#"["INSERT",1700000000123,7,12345678901234567890123456789.012345678,["a","b"],"[{\"sku\":\"x\",\"n\":2}]",true,null]"#,
            r#"["MODIFY",1700000000123,7,0,[],"",false,100]"#,
            r#"["REMOVE",1700000000123,7,null,[],"",false,0]"#,
        ]
    );
    let errors = bed
        .lines("SELECT error_type, field_path FROM db.events_millrace_error FORMAT JSONCompactEachRow")
        .await?;
    assert_eq!(errors, [r#"["not_in_envelope","dynamodb.NewImage.id"]"#]);
    Ok(())
}

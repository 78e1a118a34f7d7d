//! Records that do not fit: each is one row of the error table with a message that helps, its neighbours arrive, and the worker
//! lives.

#![allow(clippy::print_stderr, reason = "what was found is worth reading in the log")]

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use millrace_integration_tests::{
    clickhouse::ClickHouse,
    cluster::{Cluster, Options, Table, pipe_spec},
    kinesis::{Emulator, Options as KinesisOptions, Put},
};
use millrace_proto::api::v1::Settings;

const LIMIT: Duration = Duration::from_secs(60);

const COLUMNS: [(&str, &str); 8] = [
    ("id", "UInt64"),
    ("small", "UInt8"),
    ("when", "DateTime64(3, 'UTC')"),
    ("price", "Decimal(9, 2)"),
    ("who", "UUID"),
    ("kind", "Enum8('a' = 1, 'b' = 2)"),
    ("inner", "Tuple(list Array(Int16), text String)"),
    ("attributes", "Map(String, UInt32)"),
];

/// A record, the error's type, the field that it names, and words of its message.
type Case = (
    &'static str,
    Vec<u8>,
    &'static str,
    &'static str,
    &'static [&'static str],
);

fn json(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn cases() -> Vec<Case> {
    let deep = |open: &str, close: &str| {
        format!(
            "{{\"id\":1,\"inner\":{}1{}}}",
            open.repeat(10_000),
            close.repeat(10_000)
        )
        .into_bytes()
    };
    vec![
        ("truncated", json(r#"{"id": 1, "small": "#), "malformed_json", "", &[]),
        (
            "broken in front of another",
            json(r#"{"id": }{"id": 2}"#),
            "malformed_json",
            "",
            &[],
        ),
        ("not json at all", json("hello, world"), "malformed_json", "", &[]),
        ("a number", json(" 12"), "malformed_json", "", &["object"]),
        ("an empty array", json("[ ]"), "empty_record", "", &["array"]),
        ("a bare word", json(r#"{"id": NaN}"#), "malformed_json", "", &[]),
        ("empty", Vec::new(), "empty_record", "", &["empty"]),
        ("only spaces", json(" \n "), "empty_record", "", &[]),
        (
            "wrong type",
            json(r#"{"id": {"a": 1}}"#),
            "type_mismatch",
            "id",
            &["integer"],
        ),
        (
            "text for a number",
            json(r#"{"id": "many"}"#),
            "type_mismatch",
            "id",
            &["many", "integer"],
        ),
        (
            "too big",
            json(r#"{"small": 300}"#),
            "out_of_range",
            "small",
            &["300", "UInt8"],
        ),
        (
            "negative",
            json(r#"{"id": -1}"#),
            "out_of_range",
            "id",
            &["-1", "UInt64"],
        ),
        (
            "a date that is none",
            json(r#"{"when": "soon"}"#),
            "type_mismatch",
            "when",
            &["soon", "date"],
        ),
        (
            "too many digits",
            json(r#"{"price": 123456789012.5}"#),
            "out_of_range",
            "price",
            &["Decimal"],
        ),
        (
            "not a uuid",
            json(r#"{"who": "me"}"#),
            "type_mismatch",
            "who",
            &["UUID"],
        ),
        (
            "not in the enum",
            json(r#"{"kind": "c"}"#),
            "type_mismatch",
            "kind",
            &["enum"],
        ),
        (
            "nested overflow",
            json(r#"{"inner": {"list": [1, 40000], "text": "x"}}"#),
            "out_of_range",
            "inner.list[1]",
            &["Int16"],
        ),
        (
            "wrong map value",
            json(r#"{"attributes": {"a": 1, "b": []}}"#),
            "type_mismatch",
            "attributes.b",
            &["integer"],
        ),
        (
            "invalid utf-8",
            [b"{\"inner\": {\"text\": \"".as_slice(), &[0xff, 0xfe], b"\"}}"].concat(),
            "invalid_utf8",
            "",
            &[],
        ),
        ("deep arrays", deep("[", "]"), "too_deep", "", &[]),
        ("deep objects", deep("{\"a\":", "}"), "too_deep", "", &[]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_record_is_one_row_of_the_error_table() -> anyhow::Result<()> {
    let clickhouse = ClickHouse::shared().await;
    let database = clickhouse.database().await?;
    let kinesis = Emulator::start(KinesisOptions::default()).await?;
    kinesis.create_stream("bad", 1)?;
    let cluster = Cluster::start(Options::default(), 1).await?;
    cluster.create_credentials(clickhouse).await?;
    let table = Table {
        database: &database,
        table: "events",
        columns: &COLUMNS,
        sorting_key: &["id"],
    };
    let mut pipe = pipe_spec(&kinesis.endpoint_url(), "bad", clickhouse, table);
    let wait = prost_types::Duration {
        seconds: 0,
        nanos: 300_000_000,
    };
    pipe.settings = Some(Settings {
        max_insert_wait: Some(wait),
        ..Default::default()
    });
    cluster.create_pipe("bad", pipe).await?;
    let worker = cluster.worker(0).context("a worker runs")?.pid();

    let cases = cases();
    let good: Vec<_> = (0..cases.len() as u64 * 3)
        .map(|id| format!("{{\"id\": {id}, \"small\": 7}}").into_bytes())
        .collect();
    let mut puts = Vec::new();
    for (index, (name, data, ..)) in cases.iter().enumerate() {
        // One good record before, two behind: neighbours on both sides, and bad ones never side by side.
        puts.push(Put::new("good", &good[index * 3]));
        puts.push(Put::new(name, data));
        puts.push(Put::new("good", &good[index * 3 + 1]));
        puts.push(Put::new("good", &good[index * 3 + 2]));
    }
    let total = puts.len() as u64;
    kinesis.put_records_direct("bad", puts)?;
    cluster
        .wait_for_records("bad", total, LIMIT)
        .await
        .with_context(|| cluster.logs())?;

    let rows = clickhouse
        .query(&format!(
            "SELECT record_key, error_type, field_path, error_msg, base64Encode(record_value), shard_id, \
             length(sequence_number), length(batch_id), pipe_id != '' \
             FROM {database}.events_millrace_error FORMAT JSONCompactEachRow"
        ))
        .await?;
    let mut rejected = BTreeMap::new();
    for line in rows.lines() {
        let row: Vec<serde_json::Value> = serde_json::from_str(line)?;
        let key = row[0].as_str().context("record_key")?.to_owned();
        assert!(rejected.insert(key.clone(), row).is_none(), "two rows for {key}");
    }
    let mut wrong = Vec::new();
    for (name, data, kind, field, words) in &cases {
        let Some(row) = rejected.remove(*name) else {
            wrong.push(format!("{name}: no row"));
            continue;
        };
        let text = |index: usize| row[index].as_str().unwrap_or_default();
        eprintln!("{name:<20} {:<16} {:<16} {}", text(1), text(2), text(3));
        let message_helps = !text(3).is_empty() && words.iter().all(|word| text(3).contains(word));
        if text(1) != *kind || (!field.is_empty() && !text(2).starts_with(field)) || !message_helps {
            wrong.push(format!("{name}: wanted {kind} {field} {words:?}, got {:?}", &row[1..4]));
        }
        assert_eq!(
            text(4),
            base64_simd::STANDARD.encode_to_string(data),
            "{name}: the original bytes"
        );
        assert!(
            text(5).starts_with("shardId-") && row[6].as_u64() > Some(50) && row[7].as_u64() == Some(26),
            "{row:?}"
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let arrived = clickhouse
        .query(&format!(
            "SELECT count(), uniqExact(id), sum(small) FROM {database}.events"
        ))
        .await?;
    assert_eq!(arrived.trim(), format!("{0}\t{0}\t{1}", good.len(), good.len() * 7));
    assert!(rejected.is_empty(), "rows that nobody put: {rejected:?}");
    let still = cluster.worker(0).context("the worker")?;
    assert!(
        still.is_running() && still.pid() == worker,
        "the worker has died\n{}",
        cluster.logs()
    );
    Ok(())
}

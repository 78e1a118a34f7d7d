//! What a pipe makes of records, all the way: fields by path and pointer, constants, what is required, flattened or asked for by
//! nobody, records of several documents, and what producers packed.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_integration_tests::{
    clickhouse::{ClickHouse, Request},
    cluster::{Cluster, Options, Table, pipe_spec},
    kinesis::{Emulator, Handle, Options as KinesisOptions, Put},
    process::{eventually, python},
};
use millrace_proto::api::v1::{self as api, OutOfRangePolicy, UnknownFieldPolicy};

const LIMIT: Duration = Duration::from_secs(60);
const STREAM: &str = "clicks";

/// Records as producers pack them, in base64, a line for each.
const PACK: &str = r#"
import base64, gzip, json, zlib
from aws_kinesis_agg.aggregator import RecordAggregator

def document(n, **more):
    return json.dumps({"id": n, "text": "x" * 50, **more}).encode()

aggregator = RecordAggregator()
for n in range(3):
    aggregator.add_user_record(f"user-{n}", document(n))
aggregator.add_user_record("user-3", gzip.compress(document(3) + b"\n" + document(4)))
aggregator.add_user_record("user-4", b"not json")
aggregator.add_user_record("user-4", document(5), "12345")
aggregate = aggregator.clear_and_get().get_contents()[2]
damaged = aggregate[:-1] + bytes([aggregate[-1] ^ 1])
records = [aggregate, gzip.compress(document(6)), zlib.compress(document(7)), damaged, gzip.compress(document(8))[:-5], document(9)]
for record in records:
    print(base64.b64encode(record).decode())
"#;

/// A pipe over these records into a table with these columns.
struct Bed {
    cluster: Cluster,
    kinesis: Handle,
    clickhouse: &'static ClickHouse,
    database: String,
}

impl Bed {
    async fn start() -> anyhow::Result<Bed> {
        let clickhouse = ClickHouse::shared().await;
        let kinesis = Emulator::start(KinesisOptions::default()).await?;
        kinesis.create_stream(STREAM, 1)?;
        let cluster = Cluster::start(Options::default(), 1).await?;
        cluster.create_credentials(clickhouse).await?;
        Ok(Bed {
            cluster,
            kinesis,
            clickhouse,
            database: clickhouse.database().await?,
        })
    }

    fn put<R: AsRef<[u8]>>(&self, records: &[R]) -> anyhow::Result<()> {
        let puts = records.iter().map(|record| Put::new("key", record.as_ref()));
        self.kinesis.put_records_direct(STREAM, puts)?;
        Ok(())
    }

    fn pipe(&self, table: &str, columns: &[(&str, &str)]) -> api::Pipe {
        let table = Table {
            database: &self.database,
            table,
            columns,
            sorting_key: &[],
        };
        api::Pipe {
            settings: Some(api::Settings {
                max_insert_wait: Some(prost_types::Duration {
                    seconds: 0,
                    nanos: 200_000_000,
                }),
                ..Default::default()
            }),
            ..pipe_spec(&self.kinesis.endpoint_url(), STREAM, self.clickhouse, table)
        }
    }

    async fn run(&self, id: &str, pipe: api::Pipe, records: usize) -> anyhow::Result<api::PipeTotals> {
        let created = self.cluster.create_pipe(id, pipe).await;
        created.map_err(|status| anyhow::anyhow!("{status}"))?;
        let waited = self.cluster.wait_for_records(id, records as u64, LIMIT).await;
        waited.with_context(|| self.cluster.logs())
    }

    /// What a query in this database gives, a line for each row, without spaces between values.
    async fn lines(&self, query: &str) -> anyhow::Result<Vec<String>> {
        let query = query.replace("db.", &format!("{}.", self.database));
        let request = Request::query(&query).parameter("output_format_json_quote_64bit_integers", 0);
        let text = self.clickhouse.send(request).await?.into_text().context(query)?;
        Ok(text.lines().map(|line| line.replace(", ", ",")).collect())
    }
}

fn mapping(source: &str, target: &str) -> api::FieldMapping {
    api::FieldMapping {
        source_field: source.to_owned(),
        destination_field: target.to_owned(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_go_where_the_mapping_says() -> anyhow::Result<()> {
    let bed = Bed::start().await?;
    let records = [
        r#"{"id":1,"user":{"name":"ann","tags":["a","b"]},"extra":{"x":1}}"#,
        "{\"id\":2,\"user\":{\"name\":\"bob\"}}\n{\"id\":\"three\",\"user\":{\"name\":\"cid\"}}\n{\"id\":4,\"user\":{}}\n{\"id\":5,\"user.name\":\"eve\"}\n",
        r#"[{"id":6,"user":{"name":"fay"}},{"id":7,"user":{"name":"gus"},"more":[1,2]}]"#,
    ];
    bed.put(&records)?;
    let columns = [
        ("id", "UInt64"),
        ("name", "String"),
        ("second_tag", "Nullable(String)"),
        ("region", "LowCardinality(String)"),
        ("rest", "JSON"),
        ("place", "UInt64"),
    ];
    let mut pipe = bed.pipe("events", &columns);
    pipe.field_mappings = vec![
        mapping("id", "id"),
        api::FieldMapping {
            required: true,
            ..mapping("user.name", "name")
        },
        mapping("/user/tags/1", "second_tag"),
        api::FieldMapping {
            constant: "\"eu\"".to_owned(),
            ..mapping("", "region")
        },
        mapping("_unmapped", "rest"),
        mapping("_sub_sequence_number", "place"),
    ];
    let totals = bed.run("mapped", pipe, records.len()).await?;
    assert_eq!((totals.records, totals.rows, totals.rejected_records), (3, 5, 2));
    assert_eq!(
        bed.lines("SELECT * FROM db.events ORDER BY id FORMAT JSONCompactEachRow")
            .await?,
        [
            r#"[1,"ann","b","eu",{"extra":{"x":1}},0]"#,
            r#"[2,"bob",null,"eu",{},0]"#,
            r#"[5,"eve",null,"eu",{},3]"#,
            r#"[6,"fay",null,"eu",{},0]"#,
            r#"[7,"gus",null,"eu",{"more":[1,2]},1]"#,
        ]
    );
    assert_eq!(
        bed.lines(
            "SELECT error_type, field_path, record_value, sub_sequence_number FROM db.events_millrace_error \
             ORDER BY sub_sequence_number FORMAT JSONCompactEachRow"
        )
        .await?,
        [
            r#"["type_mismatch","id","{\"id\":\"three\",\"user\":{\"name\":\"cid\"}}",1]"#,
            r#"["missing_required","","{\"id\":4,\"user\":{}}",2]"#,
        ]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_flattened_and_strangers_refused() -> anyhow::Result<()> {
    let bed = Bed::start().await?;
    let records = [
        r#"{"id":1,"user":{"id":7,"name":{"first":"ann"}}}"#,
        r#"{"id":2,"user_id":8}"#,
        r#"{"id":3,"user":{"age":9}}"#,
    ];
    bed.put(&records)?;
    let columns = [("id", "UInt64"), ("user_id", "UInt64"), ("user_name_first", "String")];
    let mut pipe = bed.pipe("flat", &columns);
    pipe.decoding = Some(api::Decoding {
        on_unknown_field: UnknownFieldPolicy::Reject.into(),
        flatten_separator: "_".to_owned(),
        ..Default::default()
    });
    let totals = bed.run("flat", pipe, records.len()).await?;
    assert_eq!((totals.rows, totals.rejected_records), (2, 1));
    assert_eq!(
        bed.lines("SELECT * FROM db.flat ORDER BY id FORMAT JSONCompactEachRow")
            .await?,
        [r#"[1,7,"ann"]"#, r#"[2,8,""]"#]
    );
    assert_eq!(
        bed.lines("SELECT error_type, field_path FROM db.flat_millrace_error FORMAT JSONCompactEachRow")
            .await?,
        [r#"["unknown_field","user_age"]"#]
    );

    // What was refused is a column later; the mask names what changes, and the position stays.
    let change = api::Pipe {
        decoding: Some(api::Decoding {
            on_unknown_field: UnknownFieldPolicy::Ignore.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    bed.cluster
        .update_pipe("flat", change, &["decoding.on_unknown_field"])
        .await?;
    let decoding = bed.cluster.pipe("flat").await?.decoding.unwrap_or_default();
    assert_eq!(decoding.on_unknown_field(), UnknownFieldPolicy::Ignore);
    assert_eq!(decoding.flatten_separator, "_");
    bed.put(&[r#"{"id":4,"user":{"age":9,"id":5}}"#])?;
    let totals = bed.cluster.wait_for_records("flat", 4, LIMIT).await?;
    assert_eq!((totals.rows, totals.rejected_records), (3, 1));
    Ok(())
}

/// An aggregate whose messages have these explicit hash keys, in base64.
const HALVES: &str = r#"
import base64
from aws_kinesis_agg.aggregator import RecordAggregator

aggregator = RecordAggregator()
for n, hash_key in enumerate(["0", str(2**127 - 1), str(2**127), str(2**128 - 1)]):
    aggregator.add_user_record(f"user-{n}", b'{"id":%d}' % n, hash_key)
print(base64.b64encode(aggregator.clear_and_get().get_contents()[2]).decode())
"#;

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_other_shards_are_kept_dropped_or_refused() -> anyhow::Result<()> {
    let bed = Bed::start().await?;
    let python = python().context("aws_kinesis_agg is installed by deploy/dev/tools.sh test")?;
    let packed = tokio::process::Command::new(python)
        .args(["-c", HALVES])
        .output()
        .await?;
    ensure!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    let aggregate = base64_simd::STANDARD.decode_to_vec(packed.stdout.trim_ascii())?;
    // The lower half of the hash keys is the first shard's.
    bed.kinesis.create_stream("halves", 2)?;
    let put = Put {
        explicit_hash_key: Some(5),
        ..Put::new("key", &aggregate)
    };
    bed.kinesis.put_records_direct("halves", [put])?;
    let columns = [("id", "UInt64"), ("_key", "String")];
    let mut shown = Vec::new();
    for (id, policy) in [
        ("kept", OutOfRangePolicy::Unspecified),
        ("dropped", OutOfRangePolicy::Drop),
        ("refused", OutOfRangePolicy::Reject),
    ] {
        let mut pipe = bed.pipe(id, &columns);
        let source = pipe.source.as_mut().and_then(|source| source.kind.as_mut());
        if let Some(api::source::Kind::Kinesis(kinesis)) = source {
            kinesis.stream_name = "halves".to_owned();
        }
        pipe.decoding = Some(api::Decoding {
            on_out_of_range: policy.into(),
            ..Default::default()
        });
        let totals = bed.run(id, pipe, 1).await?;
        let query = format!("SELECT groupArray(id) FROM (SELECT id FROM db.{id} ORDER BY id)");
        shown.push((totals.rows, totals.rejected_records, bed.lines(&query).await?));
        // What was found is shown beside the shard, whatever was done about it.
        let found = eventually("the count to be shown", LIMIT, || async {
            let shards = bed.cluster.pipe(id).await.ok().and_then(|pipe| pipe.status);
            shards.is_some_and(|status| {
                let counts = status.shards.iter().map(|shard| shard.out_of_range_messages);
                counts.collect::<Vec<_>>() == [2, 0]
            })
        });
        found.await.with_context(|| bed.cluster.logs())?;
    }
    let expected = [(4, 0, "[0,1,2,3]"), (2, 0, "[0,1]"), (2, 2, "[0,1]")];
    assert_eq!(
        shown,
        expected.map(|(rows, rejected, ids)| (rows, rejected, vec![ids.to_owned()]))
    );
    assert_eq!(
        bed.lines(
            "SELECT error_type, record_key, record_value FROM db.refused_millrace_error ORDER BY record_key \
             FORMAT JSONCompactEachRow"
        )
        .await?,
        [
            r#"["out_of_hash_range","user-2","{\"id\":2}"]"#,
            r#"["out_of_hash_range","user-3","{\"id\":3}"]"#,
        ]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_producers_pack_is_unpacked() -> anyhow::Result<()> {
    let bed = Bed::start().await?;
    let python = python().context("aws_kinesis_agg is installed by deploy/dev/tools.sh test")?;
    let packed = tokio::process::Command::new(python).args(["-c", PACK]).output().await?;
    ensure!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    let records = String::from_utf8(packed.stdout)?
        .lines()
        .map(|line| base64_simd::STANDARD.decode_to_vec(line))
        .collect::<Result<Vec<_>, _>>()?;
    bed.put(&records)?;
    let columns = [("id", "UInt64"), ("_key", "String"), ("_sub_sequence_number", "UInt64")];
    let totals = bed.run("packed", bed.pipe("packed", &columns), records.len()).await?;
    assert_eq!((totals.records, totals.rows, totals.rejected_records), (6, 9, 3));
    let bytes: usize = records.iter().map(Vec::len).sum();
    assert_eq!(totals.bytes, bytes as u64, "payload bytes are those that Kinesis holds");
    assert_eq!(
        bed.lines("SELECT * FROM db.packed ORDER BY id FORMAT JSONCompactEachRow")
            .await?,
        [
            r#"[0,"user-0",0]"#,
            r#"[1,"user-1",1]"#,
            r#"[2,"user-2",2]"#,
            r#"[3,"user-3",3]"#,
            r#"[4,"user-3",4]"#,
            r#"[5,"user-4",6]"#,
            r#"[6,"key",0]"#,
            r#"[7,"key",0]"#,
            r#"[9,"key",0]"#,
        ]
    );
    assert_eq!(
        bed.lines(
            "SELECT error_type, record_key, sub_sequence_number, length(record_value) FROM db.packed_millrace_error \
             ORDER BY ALL FORMAT JSONCompactEachRow"
        )
        .await?,
        [
            format!(r#"["damaged_aggregate","key",0,{}]"#, records[3].len()),
            format!(r#"["damaged_compression","key",0,{}]"#, records[4].len()),
            r#"["malformed_json","user-4",5,8]"#.to_owned(),
        ]
    );

    // The same stream as it is.
    let mut raw = bed.pipe("raw", &[("_raw_message", "String")]);
    raw.decoding = Some(api::Decoding {
        keep_packed: true,
        ..Default::default()
    });
    let totals = bed.run("raw", raw, records.len()).await?;
    assert_eq!((totals.rows, totals.rejected_records), (6, 0));
    let lengths = bed.lines("SELECT sum(length(_raw_message)) FROM db.raw").await?;
    assert_eq!(lengths, [bytes.to_string()]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_ten_mebibytes_is_a_row() -> anyhow::Result<()> {
    let bed = Bed::start().await?;
    // The largest that a stream can be set to take, in characters of two bytes, and small ones around it.
    let framing = r#"{"id":2,"text":""}"#.len();
    let text = "é".repeat(((10 << 20) - framing) / 2);
    let large = format!(r#"{{"id":2,"text":"{text}"}}"#);
    bed.put(&[r#"{"id":1,"text":"a"}"#, &large, r#"{"id":3,"text":"b"}"#])?;
    let pipe = bed.pipe("large", &[("id", "UInt64"), ("text", "String")]);
    let totals = bed.run("large", pipe, 3).await?;
    assert_eq!((totals.rows, totals.rejected_records), (3, 0));
    assert_eq!(
        bed.lines(
            "SELECT id, lengthUTF8(text), countSubstrings(text, 'é') FROM db.large ORDER BY id FORMAT JSONCompactEachRow"
        )
        .await?,
        [
            "[1,1,0]".to_owned(),
            format!("[2,{0},{0}]", text.len() / 2),
            "[3,1,0]".to_owned()
        ]
    );
    Ok(())
}

//! What a pipe makes of records by its mapping, all the way: fields by path and pointer, constants, what is required, flattened
//! or asked for by nobody, and records of several documents.

use std::time::Duration;

use anyhow::Context as _;
use millrace_integration_tests::{
    clickhouse::{ClickHouse, Request},
    cluster::{Cluster, Options, Table, pipe_spec},
    kinesis::{Emulator, Handle, Options as KinesisOptions, Put},
};
use millrace_proto::api::v1::{self as api, UnknownFieldPolicy};

const LIMIT: Duration = Duration::from_secs(60);
const STREAM: &str = "clicks";

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

    fn put(&self, records: &[&str]) -> anyhow::Result<()> {
        let puts = records.iter().map(|record| Put::new("key", record.as_bytes()));
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

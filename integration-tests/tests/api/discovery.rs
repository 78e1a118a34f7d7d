//! Creating a pipe as a conversation: streams, samples, types, tables and previews, over the API.

use std::io::Write as _;

use millrace_integration_tests::kinesis::{ErrorKind, Fault, Operation, Put, Rule};
use millrace_proto::api::v1::{
    self as proto, discovery_service_client::DiscoveryServiceClient, infer_schema_request, preview_rows_request,
    sample_records_request::Subject, sampled_document::Payload,
};
use tonic::{Code, Status, transport::Channel};

use super::bed::{Bed, DATABASE, OWNER, PARENT, READER, assert_refused, kinesis_of, name};

impl Bed {
    fn discovery(&self) -> DiscoveryServiceClient<Channel> {
        DiscoveryServiceClient::new(self.channel.clone())
    }

    fn planned(&self) -> Subject {
        let mut pipe = self.pipe("any");
        Subject::Planned(proto::PlannedSource {
            parent: PARENT.into(),
            kinesis: Some(kinesis_of(&mut pipe).clone()),
        })
    }

    fn sample(&self, options: proto::SampleOptions) -> proto::SampleRecordsRequest {
        proto::SampleRecordsRequest {
            subject: Some(self.planned()),
            decoding: None,
            options: Some(options),
        }
    }

    async fn sampled(&self, options: proto::SampleOptions) -> Result<proto::SampleRecordsResponse, Status> {
        Ok(self
            .discovery()
            .sample_records(self.sample(options))
            .await?
            .into_inner())
    }

    async fn inferred(&self, records: &[&str]) -> Result<proto::InferSchemaResponse, Status> {
        let request = proto::InferSchemaRequest {
            parent: PARENT.into(),
            input: Some(infer_schema_request::Input::Given(given(records))),
            decoding: None,
        };
        Ok(self.discovery().infer_schema(request).await?.into_inner())
    }

    async fn previewed(
        &self,
        pipe: proto::Pipe,
        input: Option<preview_rows_request::Input>,
    ) -> Result<proto::PreviewRowsResponse, Status> {
        let request = proto::PreviewRowsRequest {
            subject: Some(preview_rows_request::Subject::Planned(proto::PlannedPipe {
                parent: PARENT.into(),
                pipe: Some(pipe),
            })),
            input,
        };
        Ok(self.discovery().preview_rows(request).await?.into_inner())
    }

    fn server(&self, user: &str) -> Option<proto::ClickHouseServer> {
        Some(proto::ClickHouseServer {
            endpoint: self.engine.http_url(),
            credential: format!("{PARENT}/credentials/{user}"),
        })
    }

    fn put(&self, records: &[(&str, &[u8])]) {
        let records = records.iter().map(|(key, data)| Put::new(key, data));
        self.kinesis.put_records_direct("events", records).expect("records");
    }
}

fn given(records: &[&str]) -> proto::GivenRecords {
    proto::GivenRecords {
        records: records.iter().map(|record| (*record).to_owned()).collect(),
    }
}

fn text(document: &proto::SampledDocument) -> &str {
    match &document.payload {
        Some(Payload::Text(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn streams_are_listed_page_by_page() {
    let bed = Bed::start().await;
    for number in 0..5 {
        bed.kinesis.create_stream(&format!("s{number}"), 3).expect("a stream");
    }
    let request = proto::ListStreamsRequest {
        parent: PARENT.into(),
        credential: format!("{PARENT}/credentials/aws"),
        region: "us-east-1".into(),
        endpoint: bed.kinesis.endpoint_url(),
        count_shards: true,
        page_size: 4,
        page_token: String::new(),
    };
    let mut discovery = bed.discovery();
    let first = discovery
        .list_streams(request.clone())
        .await
        .expect("streams")
        .into_inner();
    let names: Vec<&str> = first.streams.iter().map(|stream| stream.stream_name.as_str()).collect();
    assert_eq!(names, ["events", "s0", "s1", "s2"]);
    let stream = &first.streams[1];
    assert_eq!(
        (stream.status.as_str(), stream.open_shard_count),
        ("ACTIVE", Some(3)),
        "{stream:?}"
    );
    assert!(
        stream.stream_arn.ends_with(":stream/s0") && stream.create_time.is_some(),
        "{stream:?}"
    );
    let next = proto::ListStreamsRequest {
        page_token: first.next_page_token.clone(),
        count_shards: false,
        ..request.clone()
    };
    let second = discovery
        .list_streams(next.clone())
        .await
        .expect("streams")
        .into_inner();
    let names: Vec<&str> = second
        .streams
        .iter()
        .map(|stream| stream.stream_name.as_str())
        .collect();
    assert_eq!(names, ["s3", "s4"]);
    assert_eq!(
        (second.streams[0].open_shard_count, second.next_page_token.as_str()),
        (None, "")
    );

    for (bad, field, remedy) in [
        (
            proto::ListStreamsRequest {
                region: "eu-west-1".into(),
                ..next.clone()
            },
            "page_token",
            "start again",
        ),
        (
            proto::ListStreamsRequest {
                region: "Frankfurt".into(),
                ..request.clone()
            },
            "region",
            "eu-central-1",
        ),
        (
            proto::ListStreamsRequest {
                endpoint: "http://169.254.169.254".into(),
                ..request.clone()
            },
            "endpoint",
            "never calls",
        ),
        (
            proto::ListStreamsRequest {
                credential: "projects/other/credentials/aws".into(),
                ..request.clone()
            },
            "credential",
            "own project",
        ),
    ] {
        let status = discovery.list_streams(bad).await.expect_err(field);
        let reason = if field == "page_token" {
            "INVALID_PAGE_TOKEN"
        } else {
            "INVALID_FIELD"
        };
        assert_refused(&status, Code::InvalidArgument, reason, field, remedy);
    }
    let wrong_kind = proto::ListStreamsRequest {
        credential: format!("{PARENT}/credentials/{OWNER}"),
        ..request.clone()
    };
    let status = discovery.list_streams(wrong_kind).await.expect_err("a ClickHouse user");
    assert_refused(
        &status,
        Code::FailedPrecondition,
        "CREDENTIAL_NOT_FOUND",
        "credential",
        "AWS credential",
    );
    let nowhere = proto::ListStreamsRequest {
        endpoint: "http://127.0.0.1:1".into(),
        ..request
    };
    let status = discovery.list_streams(nowhere).await.expect_err("nobody there");
    assert_refused(
        &status,
        Code::FailedPrecondition,
        "SOURCE_UNREACHABLE",
        "region",
        "check the region",
    );
}

#[tokio::test]
async fn a_sample_is_unpacked_and_comes_of_all_shards() {
    let bed = Bed::start().await;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"{\"id\":1}\n{\"id\":2}").expect("memory");
    let packed = gzip.finish().expect("memory");
    let old: Vec<(String, Vec<u8>)> = (0..40)
        .map(|number| (format!("key{number}"), format!("{{\"n\":{number}}}").into_bytes()))
        .collect();
    let old: Vec<(&str, &[u8])> = old.iter().map(|(key, data)| (key.as_str(), data.as_slice())).collect();
    bed.put(&old);
    bed.put(&[("packed", &packed), ("damaged", b"{\"id\":"), ("binary", b"\xff\xfe")]);

    let oldest = proto::SampleOptions {
        iterator_type: proto::IteratorType::TrimHorizon.into(),
        ..Default::default()
    };
    let all = bed.sampled(oldest.clone()).await.expect("a sample");
    assert_eq!(
        (all.record_count, all.omitted_document_count, all.skipped_shard_count),
        (43, 0, 0)
    );
    assert_eq!(all.documents.len(), 44, "{:?}", all.documents);
    assert_eq!(all.shards.len(), 2);
    assert!(
        all.shards
            .iter()
            .all(|shard| shard.reason.is_empty() && shard.record_count > 5),
        "{:?}",
        all.shards
    );
    let of = |key: &str| -> Vec<&proto::SampledDocument> {
        all.documents
            .iter()
            .filter(|document| document.partition_key == key)
            .collect()
    };
    let packed = of("packed");
    assert_eq!(packed.len(), 2);
    assert_eq!((text(packed[0]), text(packed[1])), ("{\"id\":1}", "{\"id\":2}"));
    assert_eq!((packed[0].sub_sequence_number, packed[1].sub_sequence_number), (0, 1));
    assert_eq!(packed[0].sequence_number, packed[1].sequence_number);
    assert!(packed[0].arrival_time.is_some() && packed[0].shard_id.starts_with("shardId-"));
    assert_eq!(of("damaged")[0].error_type, "malformed_json");
    assert_eq!(of("binary")[0].error_type, "invalid_utf8");
    assert_eq!(of("binary")[0].payload, Some(Payload::Binary(b"\xff\xfe".to_vec())));

    // Fewer: of both shards, and the first ones or the last ones.
    let few = proto::SampleOptions {
        max_records: 6,
        ..oldest.clone()
    };
    let first = bed.sampled(few).await.expect("a sample");
    let newest = bed
        .sampled(proto::SampleOptions {
            max_records: 6,
            ..Default::default()
        })
        .await
        .expect("a sample");
    for (sample, is_newest) in [(&first, false), (&newest, true)] {
        assert_eq!(sample.record_count, 6);
        for shard in &all.shards {
            let of_shard = |sample: &proto::SampleRecordsResponse| -> Vec<String> {
                let mut numbers: Vec<String> = sample
                    .documents
                    .iter()
                    .filter(|document| document.shard_id == shard.shard_id)
                    .map(|document| document.sequence_number.clone())
                    .collect();
                numbers.dedup();
                numbers
            };
            let (some, whole) = (of_shard(sample), of_shard(&all));
            assert_eq!(some.len(), 3, "of both shards alike");
            let wanted = if is_newest {
                &whole[whole.len() - 3..]
            } else {
                &whole[..3]
            };
            assert_eq!(some, wanted);
        }
    }
    let one_shard = proto::SampleOptions {
        shard_ids: vec![all.shards[1].shard_id.clone()],
        ..oldest
    };
    let one = bed.sampled(one_shard).await.expect("a sample");
    assert_eq!((one.shards.len(), one.skipped_shard_count), (1, 1));
    assert!(
        one.documents
            .iter()
            .all(|document| document.shard_id == all.shards[1].shard_id)
    );
}

#[tokio::test]
async fn a_sample_says_what_is_wrong_with_it() {
    let bed = Bed::start().await;
    for (bad, field, remedy) in [
        (
            proto::SampleOptions {
                max_records: 1_001,
                ..Default::default()
            },
            "options.max_records",
            "1000",
        ),
        (
            proto::SampleOptions {
                max_bytes: 1 << 40,
                ..Default::default()
            },
            "options.max_bytes",
            "2097152",
        ),
        (
            proto::SampleOptions {
                shard_ids: vec!["x y".into()],
                ..Default::default()
            },
            "options.shard_ids[0]",
            "",
        ),
        (
            proto::SampleOptions {
                iterator_type: 77,
                ..Default::default()
            },
            "options.iterator_type",
            "TRIM_HORIZON",
        ),
        (
            proto::SampleOptions {
                iterator_type: proto::IteratorType::AtTimestamp.into(),
                ..Default::default()
            },
            "options.timestamp",
            "is required",
        ),
        (
            proto::SampleOptions {
                max_wait: Some(prost_types::Duration {
                    seconds: 3600,
                    nanos: 0,
                }),
                ..Default::default()
            },
            "options.max_wait",
            "30 s",
        ),
    ] {
        let status = bed.sampled(bad).await.expect_err(field);
        assert_refused(&status, Code::InvalidArgument, "INVALID_FIELD", field, remedy);
    }
    let unknown = proto::SampleOptions {
        shard_ids: vec!["shardId-000000000009".into()],
        ..Default::default()
    };
    let status = bed.sampled(unknown).await.expect_err("no such shard");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("shardId-000000000009"), "{status:?}");

    // One shard that cannot be read does not hide the other.
    bed.put(&[
        ("a", b"{}"),
        ("b", b"{}"),
        ("c", b"{}"),
        ("d", b"{}"),
        ("e", b"{}"),
        ("f", b"{}"),
    ]);
    bed.kinesis.script(
        Rule::on_call(
            Operation::GetRecords,
            Fault::Error(ErrorKind::ProvisionedThroughputExceeded),
        )
        .of_stream("events")
        .of_shard(0),
    );
    let options = proto::SampleOptions {
        iterator_type: proto::IteratorType::TrimHorizon.into(),
        max_wait: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
        ..Default::default()
    };
    let half = bed.sampled(options).await.expect("half a sample");
    assert!(half.record_count > 0 && half.shards[1].reason.is_empty(), "{half:?}");
    assert!(
        !half.shards[0].reason.is_empty() && !half.shards[0].message.is_empty(),
        "{half:?}"
    );
    assert_eq!(half.shards[0].record_count, 0);
}

#[tokio::test]
async fn columns_fit_what_a_stream_holds() {
    let bed = Bed::start().await;
    let schema = bed
        .inferred(&[
            r#"{"id":1,"user":{"name":"a"},"tags":["x"],"at":"2024-01-01 10:00:00","score":1}"#,
            r#"{"id":2,"user":{"name":"b","age":7},"tags":[],"at":"2024-01-01 11:00:00","score":null}"#,
            r#"{"id":3,"tags":null,"at":"2024-01-02 10:00:00","score":0.5} {"id":4,"at":"2024-01-02 10:00:00"}"#,
            "no document",
        ])
        .await
        .expect("a schema");
    let columns: Vec<String> = schema
        .columns
        .iter()
        .map(|c| format!("{} {}", c.name, c.r#type))
        .collect();
    assert_eq!(
        columns,
        [
            "id Int64",
            "user Tuple(age Int64, name String)",
            "tags Array(String)",
            "at DateTime",
            "score Nullable(Float64)"
        ]
    );
    assert_eq!((schema.document_count, schema.refused_count), (4, 1));
    assert_eq!(schema.sorting_key, ["id", "at"]);
    let score = &schema.columns[4];
    assert!(
        (score.null_ratio - 0.5).abs() < 1e-9 && (score.missing_ratio - 0.25).abs() < 1e-9,
        "{score:?}"
    );
    assert_eq!(score.examples, ["1", "0.5"]);
    let refused = &schema.refused[0];
    assert_eq!(
        (refused.sequence_number.as_str(), refused.error_type.as_str()),
        ("3", "malformed_json")
    );

    // The table that it says can be made, and takes what it was inferred from.
    let definition: Vec<String> = schema
        .columns
        .iter()
        .map(|c| format!("`{}` {}", c.name, c.r#type))
        .collect();
    bed.sql(&format!(
        "CREATE TABLE {DATABASE}.inferred ({}) ENGINE = MergeTree ORDER BY ({})",
        definition.join(", "),
        schema.sorting_key.join(", ")
    ))
    .await;

    bed.put(&[("a", b"{\"n\":1}"), ("b", b"{\"n\":2.5}")]);
    let request = proto::InferSchemaRequest {
        parent: PARENT.into(),
        input: Some(infer_schema_request::Input::Sample(
            bed.sample(proto::SampleOptions::default()),
        )),
        decoding: None,
    };
    let schema = bed
        .discovery()
        .infer_schema(request.clone())
        .await
        .expect("a schema")
        .into_inner();
    assert_eq!(
        (schema.columns[0].r#type.as_str(), schema.document_count),
        ("Float64", 2)
    );

    let elsewhere = proto::InferSchemaRequest {
        parent: "projects/other".into(),
        ..request.clone()
    };
    let status = bed
        .discovery()
        .infer_schema(elsewhere)
        .await
        .expect_err("another project");
    assert_refused(
        &status,
        Code::InvalidArgument,
        "INVALID_FIELD",
        "planned.parent",
        "projects/other",
    );
    let twice = proto::InferSchemaRequest {
        decoding: Some(proto::Decoding::default()),
        ..request
    };
    let status = bed.discovery().infer_schema(twice).await.expect_err("said twice");
    assert_refused(
        &status,
        Code::InvalidArgument,
        "INVALID_FIELD",
        "decoding",
        "sample.decoding",
    );
    let status = bed.inferred(&[]).await.expect_err("nothing given");
    assert_refused(
        &status,
        Code::InvalidArgument,
        "INVALID_FIELD",
        "given.records",
        "at least one",
    );
}

#[tokio::test]
async fn tables_are_listed_described_and_mapped() {
    let bed = Bed::start().await;
    bed.sql(&format!(
        "CREATE TABLE {DATABASE}.`odd 'name` (user_id UInt64, `eventTime` DateTime, city String, _key String, \
         note String DEFAULT 'none' COMMENT 'free', twice UInt64 ALIAS user_id * 2, lost UInt8, \
         sums AggregateFunction(sum, UInt64)) ENGINE = MergeTree ORDER BY (user_id, eventTime) PARTITION BY toYYYYMM(eventTime)"
    ))
    .await;
    let mut discovery = bed.discovery();
    let databases = proto::ListDatabasesRequest {
        parent: PARENT.into(),
        server: bed.server(OWNER),
        ..Default::default()
    };
    let found = discovery
        .list_databases(databases)
        .await
        .expect("databases")
        .into_inner()
        .databases;
    assert!(found.iter().any(|database| database.database == DATABASE), "{found:?}");
    assert!(found.iter().all(|database| database.database != "system"), "{found:?}");

    let mut tables = Vec::new();
    let mut token = String::new();
    loop {
        let request = proto::ListTablesRequest {
            parent: PARENT.into(),
            server: bed.server(READER),
            database: DATABASE.into(),
            page_size: 1,
            page_token: token,
        };
        let page = discovery.list_tables(request).await.expect("tables").into_inner();
        assert!(page.tables.len() <= 1);
        tables.extend(page.tables);
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let odd = tables
        .iter()
        .find(|table| table.table == "odd 'name")
        .expect("the table");
    assert_eq!((odd.engine.as_str(), odd.total_rows), ("MergeTree", Some(0)));

    let request = proto::DescribeTableRequest {
        parent: PARENT.into(),
        server: bed.server(OWNER),
        database: DATABASE.into(),
        table: "odd 'name".into(),
        input: Some(proto::describe_table_request::Input::Given(given(&[
            r#"{"userId":1,"eventTime":"2024-01-01 00:00:00","address":{"city":"x"},"extra":1}"#,
            r#"{"userId":1,"city":"y"}"#,
        ]))),
        decoding: None,
    };
    let table = discovery
        .describe_table(request.clone())
        .await
        .expect("the table")
        .into_inner();
    assert_eq!(
        (
            table.engine.as_str(),
            table.sorting_key.as_str(),
            table.partition_key.as_str()
        ),
        ("MergeTree", "user_id, eventTime", "toYYYYMM(eventTime)")
    );
    let column = |name: &str| {
        table
            .columns
            .iter()
            .find(|column| column.name == name)
            .expect("the column")
    };
    assert_eq!(
        (
            column("note").default_kind.as_str(),
            column("note").default_expression.as_str(),
            column("note").comment.as_str()
        ),
        ("DEFAULT", "'none'", "free")
    );
    assert!(!column("twice").insertable && !column("sums").insertable && column("lost").insertable);
    let mapped: Vec<String> = table
        .field_mappings
        .iter()
        .map(|mapping| format!("{} <- {}", mapping.destination_field, mapping.source_field))
        .collect();
    assert_eq!(
        mapped,
        [
            "user_id <- userId",
            "eventTime <- eventTime",
            "city <- city",
            "_key <- _key"
        ]
    );
    assert_eq!(table.unmapped_fields, ["address", "extra"]);
    assert_eq!(table.unfilled_columns, ["lost"]);

    let missing = proto::DescribeTableRequest {
        table: "no such".into(),
        ..request.clone()
    };
    let status = discovery.describe_table(missing).await.expect_err("no table");
    assert_refused(
        &status,
        Code::FailedPrecondition,
        "DESTINATION_TABLE_NOT_FOUND",
        "table",
        "create it",
    );
    let elsewhere = proto::DescribeTableRequest {
        database: "no_such".into(),
        ..request.clone()
    };
    let status = discovery.describe_table(elsewhere).await.expect_err("no database");
    assert_refused(
        &status,
        Code::FailedPrecondition,
        "DESTINATION_DATABASE_NOT_FOUND",
        "database",
        "create it",
    );
    let metadata = proto::DescribeTableRequest {
        server: Some(proto::ClickHouseServer {
            endpoint: "http://169.254.169.254".into(),
            ..bed.server(OWNER).expect("a server")
        }),
        ..request
    };
    let status = discovery.describe_table(metadata).await.expect_err("never called");
    assert_refused(
        &status,
        Code::InvalidArgument,
        "INVALID_FIELD",
        "server.endpoint",
        "never calls",
    );
}

#[tokio::test]
async fn a_preview_shows_rows_and_refusals_and_inserts_nothing() {
    let bed = Bed::start().await;
    bed.create_table("previewed").await;
    bed.put(&[
        ("a", b"{\"id\":1,\"name\":\"x\"}"),
        ("a", b"{\"id\":2}"),
        ("a", b"{\"id\":-3}"),
        ("a", b"{\"id\":4,\"name\":null}{\"id\":\"five\"}"),
    ]);
    let live = bed.previewed(bed.pipe("previewed"), None).await.expect("a preview");
    let mut rows: Vec<(&str, usize)> = live
        .rows
        .iter()
        .map(|row| (row.json.as_str(), row.default_columns.len()))
        .collect();
    rows.sort_unstable();
    assert_eq!(
        rows,
        [(r#"{"id":1,"name":"x"}"#, 0), (r#"{"id":2}"#, 1), (r#"{"id":4}"#, 1)]
    );
    assert_eq!(
        live.rows.iter().filter(|row| row.default_columns == ["name"]).count(),
        2
    );
    assert_eq!((live.record_count, live.row_count, live.refused_count), (4, 3, 2));
    let mut refused: Vec<(&str, &str)> = live
        .refused
        .iter()
        .map(|refused| (refused.error_type.as_str(), refused.field_path.as_str()))
        .collect();
    refused.sort_unstable();
    assert_eq!(
        refused,
        [("out_of_range", "id"), ("type_mismatch", "id")],
        "{:?}",
        live.refused
    );
    assert!(
        live.refused
            .iter()
            .all(|refused| !refused.error_message.is_empty() && refused.shard_id.starts_with("shardId-"))
    );
    assert!(live.columns[1].has_default && live.columns[1].r#type == "String");

    // What is given, and a table that there is not yet.
    let mut pipe = bed.pipe("not_made");
    let destination = super::bed::destination_of(&mut pipe);
    destination.managed_table = true;
    let column = |name: &str, data_type: &str| proto::Column {
        name: name.into(),
        r#type: data_type.into(),
    };
    destination.columns = vec![
        column("at", "DateTime64(3, 'Europe/Berlin')"),
        column("tags", "Array(LowCardinality(String))"),
        column("_key", "String"),
    ];
    let input = preview_rows_request::Input::Given(given(&[r#"{"at":"2024-07-01 12:00:00.5","tags":["a","b","a"]}"#]));
    let planned = bed.previewed(pipe, Some(input)).await.expect("a preview");
    assert_eq!(
        planned.rows[0].json,
        r#"{"at":"2024-07-01 12:00:00.500","tags":["a","b","a"],"_key":""}"#
    );

    // Nothing was made and nothing inserted, and a pipe that there is can be tried, too.
    assert_eq!(
        bed.sql(&format!("SELECT count() FROM {DATABASE}.previewed"))
            .await
            .trim(),
        "0"
    );
    let made = bed
        .sql(&format!("SELECT count() FROM system.tables WHERE database = '{DATABASE}' AND name IN ('not_made', 'previewed_millrace_error')"))
        .await;
    assert_eq!(made.trim(), "0");
    bed.create("tried", bed.pipe("previewed")).await.expect("a pipe");
    let request = proto::PreviewRowsRequest {
        subject: Some(preview_rows_request::Subject::Pipe(name("tried"))),
        input: None,
    };
    let tried = bed
        .discovery()
        .preview_rows(request)
        .await
        .expect("a preview")
        .into_inner();
    assert_eq!(tried.row_count, 3);

    let status = bed
        .previewed(bed.pipe("no_such_table"), None)
        .await
        .expect_err("no table");
    assert_refused(
        &status,
        Code::FailedPrecondition,
        "DESTINATION_TABLE_NOT_FOUND",
        "pipe.destination.table",
        "managed_table",
    );
}

#[tokio::test]
async fn rows_that_landed_are_shown_within_bounds() {
    let bed = Bed::start().await;
    bed.create_table("landed").await;
    bed.create("landed", bed.pipe("landed")).await.expect("a pipe");
    let sample = async |pipe: &str, limit| {
        let request = proto::SampleRowsRequest {
            pipe: name(pipe),
            limit,
        };
        Ok::<_, Status>(bed.discovery().sample_rows(request).await?.into_inner())
    };
    let none = sample("landed", 0).await.expect("no rows");
    assert_eq!((none.rows.len(), none.omitted_row_count), (0, 0));
    let insert = |values: &str| format!("INSERT INTO {DATABASE}.landed (id, name) {values}");
    bed.sql(&insert("VALUES (18446744073709551615, unhex('ff'))")).await;
    let one = sample("landed", 0).await.expect("a row").rows;
    assert_eq!(one, ["{\"id\":18446744073709551615,\"name\":\"\u{fffd}\"}"]);
    bed.sql(&insert("SELECT number, repeat('x', 300000) FROM numbers(50)"))
        .await;
    let some = sample("landed", 100).await.expect("some rows");
    assert!((2..10).contains(&some.rows.len()), "{} rows of 300 kB", some.rows.len());
    bed.sql(&format!("TRUNCATE TABLE {DATABASE}.landed")).await;
    bed.sql(&insert(
        "SELECT number, concat(repeat('x', 900000), repeat('x', 900000)) FROM numbers(3)",
    ))
    .await;
    let large = sample("landed", 3).await.expect("an answer");
    assert!(
        large.rows.is_empty() && large.omitted_row_count > 0,
        "{}",
        large.omitted_row_count
    );
    let status = sample("landed", 101).await.expect_err("too many");
    assert_refused(&status, Code::InvalidArgument, "INVALID_FIELD", "limit", "100");
    let status = sample("nobody", 1).await.expect_err("no such pipe");
    assert_refused(&status, Code::NotFound, "PIPE_NOT_FOUND", "", "nobody");
}

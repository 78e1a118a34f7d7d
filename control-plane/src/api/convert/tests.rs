//! Requests that cannot be right, and specifications that come back as they went.

use std::collections::BTreeMap;

use millrace_common::ids::CredentialUid;
use millrace_common::pipe::{Compression, Delivery, PartitionBy, StartPosition, StreamRef};
use proptest::prelude::*;

use super::*;

fn context_of<'a>(project: &'a ProjectName, endpoints: &'a Policy) -> Context<'a> {
    Context {
        project,
        endpoints,
        now: "2026-11-22T12:00:00Z".parse().unwrap(),
    }
}

fn kinesis() -> proto::KinesisSource {
    proto::KinesisSource {
        stream_name: "events".into(),
        region: "eu-central-1".into(),
        iterator_type: proto::IteratorType::TrimHorizon.into(),
        credential: "projects/default/credentials/aws".into(),
        ..Default::default()
    }
}

fn pipe() -> proto::Pipe {
    proto::Pipe {
        source: Some(proto::Source {
            kind: Some(proto::source::Kind::Kinesis(kinesis())),
        }),
        destination: Some(proto::Destination {
            endpoint: "http://127.0.0.1:8123".into(),
            credential: "projects/default/credentials/ch".into(),
            table: "events".into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn managed() -> proto::Pipe {
    let mut pipe = pipe();
    let destination = pipe.destination.as_mut().unwrap();
    destination.managed_table = true;
    destination.columns = [
        ("id", "UInt64"),
        ("ts", "DateTime64(3, 'UTC')"),
        ("note", "Nullable(String)"),
    ]
    .map(|(name, data_type)| proto::Column {
        name: name.into(),
        r#type: data_type.into(),
    })
    .to_vec();
    destination.table_definition = Some(proto::TableDefinition {
        engine: None,
        sorting_key: vec!["id".into()],
        partition_by: "toYYYYMM(ts)".into(),
        ..Default::default()
    });
    pipe
}

fn convert(pipe: &proto::Pipe) -> Result<PipeSpec, ApiError> {
    let (project, endpoints) = ("projects/default".parse().unwrap(), Policy::default());
    let mut violations = Violations::new();
    let spec = spec(pipe, context_of(&project, &endpoints), &mut violations);
    violations.finish()?;
    Ok(spec.expect("no violations, so there is a specification"))
}

/// Changes a good pipe, and returns the fields that are refused.
fn refused(change: impl FnOnce(&mut proto::Pipe)) -> Vec<String> {
    let mut pipe = managed();
    change(&mut pipe);
    let error = convert(&pipe).expect_err("must be refused");
    assert_eq!(error.reason, "INVALID_FIELD");
    error.fields.into_iter().map(|field| field.field).collect()
}

fn refused_kinesis(change: impl FnOnce(&mut proto::KinesisSource)) -> Vec<String> {
    refused(|pipe| {
        let Some(proto::source::Kind::Kinesis(kinesis)) = &mut pipe.source.as_mut().unwrap().kind else {
            unreachable!()
        };
        change(kinesis);
    })
}

fn refused_destination(change: impl FnOnce(&mut proto::Destination)) -> Vec<String> {
    refused(|pipe| change(pipe.destination.as_mut().unwrap()))
}

#[test]
fn defaults_are_filled_in() {
    let spec = convert(&pipe()).unwrap();
    assert_eq!(spec.destination.database, "default");
    assert_eq!(spec.destination.error_table, "events_millrace_error");
    assert_eq!(spec.replicas, 1);
    assert_eq!(spec.settings, millrace_common::pipe::Settings::default());
    assert_eq!(spec.source.stream, StreamRef::Name("events".into()));
    assert_eq!(spec.source.start, StartPosition::TrimHorizon);
    assert!(spec.destination.managed.is_none());
}

#[test]
fn a_managed_table_is_read() {
    let spec = convert(&managed()).unwrap();
    let definition = spec.destination.managed.unwrap();
    assert_eq!(definition.sorting_key, ["id"]);
    let expected = PartitionBy {
        function: Some("toYYYYMM".into()),
        column: "ts".into(),
    };
    assert_eq!(definition.partition_by, Some(expected));
}

#[test]
fn an_arn_gives_the_region() {
    let mut pipe = pipe();
    let kinesis = proto::KinesisSource {
        stream_name: String::new(),
        stream_arn: "arn:aws:kinesis:us-east-1:000000000000:stream/events".into(),
        region: String::new(),
        ..kinesis()
    };
    pipe.source = Some(proto::Source {
        kind: Some(proto::source::Kind::Kinesis(kinesis)),
    });
    let spec = convert(&pipe).unwrap();
    assert_eq!(spec.source.region, "us-east-1");
    assert_eq!(spec.source.stream.name(), "events");
}

#[test]
fn everything_wrong_is_reported_at_once() {
    let error = convert(&proto::Pipe {
        source: Some(proto::Source {
            kind: Some(proto::source::Kind::Kinesis(proto::KinesisSource::default())),
        }),
        destination: Some(proto::Destination::default()),
        scaling: Some(proto::Scaling { replicas: 1_000_000 }),
        desired_state: 99,
        ..Default::default()
    })
    .unwrap_err();
    let fields: Vec<&str> = error.fields.iter().map(|field| field.field.as_str()).collect();
    for field in [
        "pipe.source.kinesis.stream_name",
        "pipe.source.kinesis.region",
        "pipe.source.kinesis.iterator_type",
        "pipe.source.kinesis.credential",
        "pipe.destination.endpoint",
        "pipe.destination.credential",
        "pipe.destination.table",
        "pipe.scaling.replicas",
    ] {
        assert!(fields.contains(&field), "{field} is not among {fields:?}");
    }
}

#[test]
fn bad_sources_are_refused() {
    for name in [
        "a b",
        "../x",
        "events\n",
        "é",
        &"x".repeat(129),
        &"x".repeat(65_536),
        "a\0b",
    ] {
        assert_eq!(
            refused_kinesis(|k| k.stream_name = name.into()),
            ["pipe.source.kinesis.stream_name"],
            "{name:?}"
        );
    }
    for arn in [
        "events",
        "arn:aws:kinesis:*:000000000000:stream/events",
        "arn:x:kinesis:us-east-1:1:stream/e",
    ] {
        let fields = refused_kinesis(|k| {
            k.stream_name.clear();
            k.stream_arn = arn.into();
        });
        assert_eq!(fields, ["pipe.source.kinesis.stream_arn"], "{arn:?}");
    }
    let both = refused_kinesis(|k| k.stream_arn = "arn:aws:kinesis:eu-central-1:000000000000:stream/events".into());
    assert_eq!(both, ["pipe.source.kinesis.stream_arn"]);
    assert_eq!(
        refused_kinesis(|k| k.region = "mars".into()),
        ["pipe.source.kinesis.region"]
    );
    assert_eq!(refused_kinesis(|k| k.format = 99), ["pipe.source.kinesis.format"]);
    assert_eq!(
        refused_kinesis(|k| k.iterator_type = 99),
        ["pipe.source.kinesis.iterator_type"]
    );
    let elsewhere = refused_kinesis(|k| k.credential = "projects/other/credentials/aws".into());
    assert_eq!(elsewhere, ["pipe.source.kinesis.credential"]);
    assert_eq!(
        refused_kinesis(|k| k.endpoint = "http://169.254.169.254".into()),
        ["pipe.source.kinesis.endpoint"]
    );
    assert_eq!(refused(|p| p.source = None), ["pipe.source"]);
}

#[test]
fn bad_times_are_refused() {
    for time in [
        None,
        Some((i64::MAX, 0)),
        Some((-1, 0)),
        Some((1, 1_000_000_000)),
        Some((1, -1)),
        Some((4_000_000_000, 0)),
    ] {
        let fields = refused_kinesis(|k| {
            k.iterator_type = proto::IteratorType::AtTimestamp.into();
            k.timestamp = time.map(|(seconds, nanos)| prost_types::Timestamp { seconds, nanos });
        });
        assert_eq!(fields, ["pipe.source.kinesis.timestamp"], "{time:?}");
    }
    let stray = refused_kinesis(|k| k.timestamp = Some(prost_types::Timestamp { seconds: 1, nanos: 0 }));
    assert_eq!(stray, ["pipe.source.kinesis.timestamp"]);
}

#[test]
fn bad_destinations_are_refused() {
    for endpoint in [
        "",
        "ch:8123",
        "http://x@10.0.0.1",
        "file:///etc/passwd",
        "http://[::ffff:a9fe:a9fe]",
    ] {
        assert_eq!(
            refused_destination(|d| d.endpoint = endpoint.into()),
            ["pipe.destination.endpoint"],
            "{endpoint:?}"
        );
    }
    for database in ["system", "INFORMATION_SCHEMA", "a\0b"] {
        assert_eq!(
            refused_destination(|d| d.database = database.into()),
            ["pipe.destination.database"]
        );
    }
    assert_eq!(refused_destination(|d| d.table.clear()), ["pipe.destination.table"]);
    assert_eq!(
        refused_destination(|d| d.error_table = "events".into()),
        ["pipe.destination.error_table"]
    );
    assert_eq!(
        refused_destination(|d| d.columns.clear()).first().unwrap(),
        "pipe.destination.columns"
    );
    let twice = refused_destination(|d| d.columns.push(d.columns[0].clone()));
    assert_eq!(twice, ["pipe.destination.columns[3].name"]);
    let definition = refused(|p| p.destination.as_mut().unwrap().managed_table = false);
    assert_eq!(definition, ["pipe.destination.table_definition"]);
}

#[test]
fn hostile_types_are_refused() {
    for hostile in [
        "",
        "String) ENGINE=URL('http://x')",
        "String DEFAULT url('http://x')",
        "AggregateFunction(sum, UInt64)",
        "String, b String",
        "Strin",
        "`String`",
        &"Array(".repeat(100_000),
        &format!("{}UInt8{}", "Tuple(".repeat(1_000), ")".repeat(1_000)),
        &"x".repeat(1_000_000),
    ] {
        let fields = refused_destination(|d| d.columns[2].r#type = hostile.into());
        assert_eq!(fields, ["pipe.destination.columns[2].type"], "{}", quoted(hostile));
    }
}

#[test]
fn hostile_keys_are_refused() {
    for key in ["(SELECT 1)", "missing", "id, ts", "sleep(3)", "note", ""] {
        let fields = refused_destination(|d| d.table_definition.as_mut().unwrap().sorting_key = vec![key.into()]);
        assert_eq!(fields, ["pipe.destination.table_definition.sorting_key[0]"], "{key:?}");
    }
    for partition in [
        "url('http://x')",
        "toYYYYMM(missing)",
        "note",
        "toYYYYMM((SELECT ts))",
        "dictGet('d','a',id)",
    ] {
        let fields = refused_destination(|d| d.table_definition.as_mut().unwrap().partition_by = partition.into());
        assert_eq!(
            fields,
            ["pipe.destination.table_definition.partition_by"],
            "{partition:?}"
        );
    }
}

fn refused_table(change: impl FnOnce(&mut proto::TableDefinition)) -> Vec<String> {
    let fields = refused_destination(|d| change(d.table_definition.as_mut().unwrap()));
    let prefix = "pipe.destination.table_definition.";
    fields
        .into_iter()
        .map(|field| field.strip_prefix(prefix).expect("a field of the table").to_owned())
        .collect()
}

fn engine(kind: proto::TableEngineType, version: &str, columns: &[&str]) -> Option<proto::TableEngine> {
    Some(proto::TableEngine {
        r#type: kind.into(),
        version_column_id: version.into(),
        column_ids: columns.iter().map(|column| (*column).to_owned()).collect(),
    })
}

#[test]
fn tables_that_cannot_be_are_refused() {
    use proto::TableEngineType as Type;
    for (kind, version, columns, field) in [
        (Type::MergeTree, "ts", &[][..], "engine.version_column_id"),
        (Type::SummingMergeTree, "ts", &[], "engine.version_column_id"),
        (Type::ReplacingMergeTree, "note", &[], "engine.version_column_id"),
        (
            Type::ReplicatedReplacingMergeTree,
            "missing",
            &[],
            "engine.version_column_id",
        ),
        (Type::ReplacingMergeTree, "url('x')", &[], "engine.version_column_id"),
        (Type::MergeTree, "", &["ts"], "engine.column_ids"),
        (Type::SummingMergeTree, "", &["id"], "engine.column_ids[0]"),
        (Type::SummingMergeTree, "", &["note"], "engine.column_ids[0]"),
        (Type::ReplicatedSummingMergeTree, "", &["x; y"], "engine.column_ids[0]"),
    ] {
        let fields = refused_table(|table| table.engine = engine(kind, version, columns));
        assert_eq!(fields, [field], "{kind:?} {version} {columns:?}");
    }
    let null = refused_table(|table| table.engine = engine(Type::Null, "", &[]));
    assert_eq!(null, ["sorting_key", "partition_by"]);
    let unknown = refused_table(|table| {
        table.engine = Some(proto::TableEngine {
            r#type: 99,
            ..Default::default()
        });
    });
    assert_eq!(unknown, ["engine.type"]);
    assert_eq!(
        refused_table(|table| table.primary_key = vec!["ts".into()]),
        ["primary_key"]
    );
    assert_eq!(refused_table(|table| table.cluster = "a\0b".into()), ["cluster"]);
    for (column, keep, field) in [
        ("ts", None, "ttl.keep"),
        ("ts", Some((0, 0)), "ttl.keep"),
        ("ts", Some((-1, 0)), "ttl.keep"),
        ("ts", Some((1, 500_000_000)), "ttl.keep"),
        ("ts", Some((i64::MAX, 0)), "ttl.keep"),
        ("id", Some((60, 0)), "ttl.column"),
        ("now()", Some((60, 0)), "ttl.column"),
    ] {
        let keep = keep.map(|(seconds, nanos)| prost_types::Duration { seconds, nanos });
        let ttl = proto::TableTtl {
            column: column.into(),
            keep,
        };
        assert_eq!(
            refused_table(|table| table.ttl = Some(ttl)),
            [field],
            "{column} {keep:?}"
        );
    }
    for (name, value) in [
        ("index_granularity", "8192, x = 1"),
        ("index_granularity", "+1"),
        ("index_granularity", ""),
        ("storage_policy", "a'b"),
        ("non_replicated_deduplication_window", "0"),
        ("replicated_deduplication_window_seconds", "1"),
        ("disk", "x"),
    ] {
        let fields = refused_table(|table| table.settings = BTreeMap::from([(name.to_owned(), value.to_owned())]));
        assert_eq!(fields, [format!("settings[{}]", quoted(name))], "{name} {value}");
    }
}

#[test]
fn tables_of_every_engine_are_read_back() {
    use proto::TableEngineType as Type;
    for (kind, version, columns) in [
        (Type::MergeTree, "", &[][..]),
        (Type::ReplacingMergeTree, "ts", &[]),
        (Type::SummingMergeTree, "", &["hits"]),
        (Type::Null, "", &[]),
        (Type::ReplicatedMergeTree, "", &[]),
        (Type::ReplicatedReplacingMergeTree, "", &[]),
        (Type::ReplicatedSummingMergeTree, "", &["hits"]),
    ] {
        let mut pipe = managed();
        let destination = pipe.destination.as_mut().unwrap();
        destination.columns.push(proto::Column {
            name: "hits".into(),
            r#type: "UInt64".into(),
        });
        destination.table_definition = Some(proto::TableDefinition {
            engine: engine(kind, version, columns),
            ..Default::default()
        });
        if kind != Type::Null {
            let table = destination.table_definition.as_mut().unwrap();
            table.sorting_key = vec!["id".into(), "ts".into()];
            table.primary_key = vec!["id".into()];
            table.partition_by = "toDate(ts)".into();
            table.cluster = "main".into();
            table.ttl = Some(proto::TableTtl {
                column: "ts".into(),
                keep: Some(prost_types::Duration {
                    seconds: 3_600,
                    nanos: 0,
                }),
            });
            table.settings = BTreeMap::from([("index_granularity".to_owned(), "1024".to_owned())]);
        }
        let spec = convert(&pipe).unwrap_or_else(|error| panic!("{kind:?}: {error:?}"));
        let written = output::specification(&spec);
        assert_eq!(
            written.destination.unwrap().table_definition,
            pipe.destination.unwrap().table_definition
        );
    }
}

#[test]
fn bad_settings_are_refused() {
    let settings = |change: fn(&mut proto::Settings)| {
        refused(|pipe| {
            let mut settings = proto::Settings::default();
            change(&mut settings);
            pipe.settings = Some(settings);
        })
    };
    assert_eq!(
        settings(|s| s.max_batch_rows = 1 << 63),
        ["pipe.settings.max_batch_rows"]
    );
    assert_eq!(settings(|s| s.max_batch_bytes = 1), ["pipe.settings.max_batch_bytes"]);
    assert_eq!(
        settings(|s| s.max_batch_bytes = u64::MAX),
        ["pipe.settings.max_batch_bytes"]
    );
    assert_eq!(settings(|s| s.compression = 99), ["pipe.settings.compression"]);
    assert_eq!(settings(|s| s.delivery = -1), ["pipe.settings.delivery"]);
    for (seconds, nanos) in [
        (0, 1),
        (0, 0),
        (-5, 0),
        (601, 0),
        (i64::MIN, 0),
        (5, 1_000_000_000),
        (0, 49_999_999),
    ] {
        let fields = refused(|pipe| {
            let wait = prost_types::Duration { seconds, nanos };
            pipe.settings = Some(proto::Settings {
                max_insert_wait: Some(wait),
                ..Default::default()
            });
        });
        assert_eq!(fields, ["pipe.settings.max_insert_wait"], "{seconds} {nanos}");
    }
}

#[test]
fn bad_mappings_are_refused() {
    let mapping = |source: &str, target: &str| proto::FieldMapping {
        source_field: source.into(),
        destination_field: target.into(),
        ..Default::default()
    };
    let refuse = |mappings: Vec<proto::FieldMapping>| refused(|pipe| pipe.field_mappings = mappings);
    assert_eq!(refuse(vec![mapping("", "id")]), ["pipe.field_mappings[0].source_field"]);
    assert_eq!(
        refuse(vec![mapping(&"a.".repeat(1_000), "id")]),
        ["pipe.field_mappings[0].source_field"]
    );
    assert_eq!(
        refuse(vec![mapping("a", "nowhere")]),
        ["pipe.field_mappings[0].destination_field"]
    );
    assert_eq!(
        refuse(vec![mapping("a", "id"), mapping("b", "id")]),
        ["pipe.field_mappings[1].destination_field"]
    );
    assert_eq!(refuse(vec![mapping("a", "id"); 1_000_000]), ["pipe.field_mappings"]);
    assert_eq!(
        refuse(vec![mapping("/a~2", "id")]),
        ["pipe.field_mappings[0].source_field"]
    );
    let constant = |constant: &str, source: &str, required: bool| {
        let mapping = proto::FieldMapping {
            constant: constant.into(),
            required,
            ..mapping(source, "id")
        };
        refuse(vec![mapping])
    };
    for json in ["eu", "1 2", " 1", "{", &"1".repeat(65_537)] {
        assert_eq!(
            constant(json, "", false),
            ["pipe.field_mappings[0].constant"],
            "{json:.10}"
        );
    }
    assert_eq!(constant("1", "a", false), ["pipe.field_mappings[0].source_field"]);
    assert_eq!(constant("1", "", true), ["pipe.field_mappings[0].required"]);
}

#[test]
fn bad_decoding_is_refused() {
    let refuse = |on_unknown_field: i32, separator: &str, mapped: bool| {
        refused(|pipe| {
            pipe.decoding = Some(proto::Decoding {
                on_unknown_field,
                flatten_separator: separator.into(),
                ..Default::default()
            });
            if mapped {
                pipe.field_mappings = vec![proto::FieldMapping {
                    source_field: "a".into(),
                    destination_field: "id".into(),
                    ..Default::default()
                }];
            }
        })
    };
    assert_eq!(refuse(7, "", false), ["pipe.decoding.on_unknown_field"]);
    assert_eq!(refuse(0, "\n", false), ["pipe.decoding.flatten_separator"]);
    assert_eq!(refuse(0, "123456789", false), ["pipe.decoding.flatten_separator"]);
    assert_eq!(refuse(0, "_", true), ["pipe.decoding.flatten_separator"]);
    let refuse = |on_out_of_range: i32, envelope: i32, keep_packed: bool| {
        refused(|pipe| {
            pipe.decoding = Some(proto::Decoding {
                on_out_of_range,
                envelope,
                keep_packed,
                ..Default::default()
            });
        })
    };
    assert_eq!(refuse(9, 0, false), ["pipe.decoding.on_out_of_range"]);
    assert_eq!(refuse(0, 9, false), ["pipe.decoding.envelope"]);
    assert_eq!(
        refuse(2, 1, true),
        ["pipe.decoding.on_out_of_range", "pipe.decoding.envelope"]
    );
}

#[test]
fn a_shard_is_polled_no_faster_than_kinesis_allows() {
    let refuse = |calls: u32, bytes: u64| {
        refused(|pipe| {
            let Some(proto::source::Kind::Kinesis(kinesis)) = &mut pipe.source.as_mut().unwrap().kind else {
                unreachable!()
            };
            kinesis.max_get_records_per_second = calls;
            kinesis.max_read_bytes_per_second = bytes;
        })
    };
    let (calls, bytes) = (
        "pipe.source.kinesis.max_get_records_per_second",
        "pipe.source.kinesis.max_read_bytes_per_second",
    );
    assert_eq!(refuse(6, 0), [calls]);
    assert_eq!(refuse(5, 65_535), [bytes]);
    assert_eq!(refuse(u32::MAX, 2_097_153), [calls, bytes]);
}

#[test]
fn bad_labels_and_texts_are_refused() {
    assert_eq!(refused(|p| p.display_name = "x".repeat(65_536)), ["pipe.display_name"]);
    assert_eq!(refused(|p| p.display_name = "a\r\nb".into()), ["pipe.display_name"]);
    let many = (0..1_000).map(|n| (n.to_string(), String::new())).collect();
    assert_eq!(refused(|p| p.annotations = many), ["pipe.annotations"]);
    let odd = BTreeMap::from([("a\nb".to_owned(), String::new())]);
    assert_eq!(refused(|p| p.annotations = odd), [r#"pipe.annotations["a\nb"]"#]);
}

#[test]
fn credentials_are_checked_without_being_repeated() {
    use proto::credential::Kind;
    let check = |kind: Kind| {
        let mut violations = Violations::new();
        let given = proto::Credential {
            kind: Some(kind),
            ..Default::default()
        };
        let secret = credential(&given, CredentialUid::new(), &mut violations);
        let fields: Vec<String> = violations.fields().map(str::to_owned).collect();
        let shown = format!("{violations:?} {secret:?}");
        assert!(!shown.contains("canary"), "{shown}");
        (secret.is_some(), fields)
    };
    let keys = |secret: &str| {
        Kind::AwsKeys(proto::AwsKeys {
            access_key_id: "AKIDEXAMPLE".into(),
            secret_access_key: secret.into(),
            session_token: String::new(),
        })
    };
    assert_eq!(check(keys("canary/+=")), (true, vec![]));
    for bad in [
        "",
        "canary\r\nX: y",
        "canary canary",
        "*****",
        "canaryé",
        &"canary".repeat(10_000),
    ] {
        assert_eq!(
            check(keys(bad)),
            (false, vec!["credential.aws_keys.secret_access_key".to_owned()]),
            "{bad:?}"
        );
    }
    let role = |arn: &str| {
        Kind::AwsRole(proto::AwsRole {
            role_arn: arn.into(),
            ..Default::default()
        })
    };
    assert_eq!(check(role("arn:aws:iam::123456789012:role/reader")), (true, vec![]));
    assert_eq!(
        check(role("arn:aws:iam::*:role/reader")),
        (false, vec!["credential.aws_role.role_arn".to_owned()])
    );
    let user = |name: &str, password: &str| {
        Kind::ClickhouseUser(proto::ClickHouseUser {
            username: name.into(),
            password: password.into(),
        })
    };
    assert_eq!(check(user("ingest", "")), (true, vec![]));
    assert_eq!(check(user("ingest", "canary ä'\"`\\")), (true, vec![]));
    let password = vec!["credential.clickhouse_user.password".to_owned()];
    assert_eq!(
        check(user("ingest", "canary\r\nX-ClickHouse-User: default")),
        (false, password.clone())
    );
    assert_eq!(check(user("ingest", &"canary".repeat(11_000))), (false, password));
    assert_eq!(
        check(user("a\nb", "")),
        (false, vec!["credential.clickhouse_user.username".to_owned()])
    );
    assert_eq!(
        check(user("", "")),
        (false, vec!["credential.clickhouse_user.username".to_owned()])
    );
}

prop_compose! {
    fn any_pipe()(
        managed_table in any::<bool>(),
        by_arn in any::<bool>(),
        start in 0..3,
        display_name in "[^\\p{C}]{0,20}",
        column in "[^\\p{C}]{1,20}",
        partition in any::<bool>(),
        replicas in 1..1000_u32,
        rows in 1..1_000_000_u64,
        millis in 50..600_000_u64,
        none in any::<bool>(),
        at_least_once in any::<bool>(),
        endpoint in any::<bool>(),
    ) -> proto::Pipe {
        let mut pipe = if managed_table { managed() } else { pipe() };
        pipe.display_name = display_name;
        pipe.annotations = BTreeMap::from([("team".to_owned(), column.clone())]);
        let destination = pipe.destination.as_mut().unwrap();
        destination.columns.push(proto::Column { name: column.clone(), r#type: "Date".into() });
        if let Some(definition) = &mut destination.table_definition {
            definition.sorting_key.push(column.clone());
            let partition_by = PartitionBy { function: None, column: column.clone() };
            definition.partition_by = if partition { partition_by::print(&partition_by) } else { String::new() };
        }
        pipe.field_mappings = vec![proto::FieldMapping { source_field: "a.b".into(), destination_field: column, required: none, ..Default::default() }];
        pipe.decoding = Some(proto::Decoding { on_unknown_field: if none { 2 } else { 1 }, flatten_separator: String::new(), keep_packed: at_least_once, on_out_of_range: if at_least_once { 1 } else if none { 2 } else { 3 }, envelope: if at_least_once { 0 } else if none { 4 } else { 1 } });
        pipe.scaling = Some(proto::Scaling { replicas });
        pipe.settings = Some(proto::Settings {
            max_batch_rows: rows,
            max_batch_bytes: 4_096 + rows,
            max_insert_wait: Some(output::duration(std::time::Duration::from_millis(millis))),
            compression: if none { 2 } else if partition { 3 } else { 1 },
            delivery: if at_least_once { 2 } else { 1 },
            on_data_gap: if none { 2 } else { 1 },
            max_rejected_records: 1 + rows,
        });
        let Some(proto::source::Kind::Kinesis(kinesis)) = &mut pipe.source.as_mut().unwrap().kind else {
            unreachable!()
        };
        kinesis.max_get_records_per_second = replicas % 6;
        kinesis.max_read_bytes_per_second = if none { 0 } else { 65_536 + rows };
        if by_arn {
            kinesis.stream_name.clear();
            kinesis.stream_arn = "arn:aws:kinesis:eu-central-1:000000000000:stream/events".into();
        }
        if endpoint {
            kinesis.endpoint = "http://127.0.0.1:4567".into();
        }
        kinesis.iterator_type = start + 1;
        kinesis.timestamp = (start == 2).then_some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5 });
        // After a time, or after the beginning; with LATEST there is none.
        kinesis.end_timestamp =
            (start != 1 && at_least_once).then_some(prost_types::Timestamp { seconds: 1_700_000_001, nanos: 0 });
        pipe
    }
}

#[test]
fn a_backfill_ends_after_it_begins() {
    let bounded = |start: proto::IteratorType, end: i64| {
        let mut pipe = managed();
        let Some(proto::source::Kind::Kinesis(kinesis)) = &mut pipe.source.as_mut().unwrap().kind else {
            unreachable!()
        };
        let time = |seconds| prost_types::Timestamp { seconds, nanos: 0 };
        kinesis.iterator_type = start.into();
        kinesis.timestamp = (start == proto::IteratorType::AtTimestamp).then(|| time(1_700_000_000));
        kinesis.end_timestamp = Some(time(end));
        convert(&pipe)
    };
    use proto::IteratorType::{AtTimestamp, Latest, TrimHorizon};
    let end = bounded(AtTimestamp, 1_700_000_001).unwrap().source.end;
    assert_eq!(end.map(|end| end.as_second()), Some(1_700_000_001));
    assert!(bounded(TrimHorizon, 1).is_ok());
    for (start, end) in [(AtTimestamp, 1_700_000_000), (TrimHorizon, 0), (Latest, 1_700_000_001)] {
        let error = bounded(start, end).unwrap_err();
        assert_eq!(
            error.fields[0].field, "pipe.source.kinesis.end_timestamp",
            "{start:?} {end}"
        );
    }
}

proptest! {
    #[test]
    fn what_is_read_can_be_written_back(pipe in any_pipe()) {
        // A column may happen to have the name of another; then there is nothing to read back.
        if let Ok(spec) = convert(&pipe) {
            let shown = output::specification(&spec);
            prop_assert_eq!(&convert(&shown).unwrap(), &spec);
            let expected = match spec.settings.compression {
                Compression::Lz4 => 1,
                Compression::None => 2,
                Compression::Zstd => 3,
            };
            prop_assert_eq!(expected, pipe.settings.unwrap().compression);
            prop_assert_eq!(matches!(spec.settings.delivery, Delivery::AtLeastOnce), pipe.settings.unwrap().delivery == 2);
        }
    }

    #[test]
    fn no_text_in_any_field_panics(text in any::<String>(), number in any::<i32>(), size in any::<u64>()) {
        let mut pipe = managed();
        pipe.display_name = text.clone();
        pipe.annotations = BTreeMap::from([(text.clone(), text.clone())]);
        pipe.source = Some(proto::Source { kind: Some(proto::source::Kind::Kinesis(proto::KinesisSource {
            format: number, stream_name: text.clone(), stream_arn: String::new(), region: text.clone(),
            iterator_type: number, timestamp: None, credential: text.clone(), endpoint: text.clone(),
            end_timestamp: Some(prost_types::Timestamp { seconds: size.cast_signed(), nanos: number }),
            use_enhanced_fan_out: size % 2 == 0, consumer_arn: text.clone(),
            max_get_records_per_second: number.cast_unsigned(), max_read_bytes_per_second: size,
        }))});
        let destination = pipe.destination.as_mut().unwrap();
        destination.endpoint = text.clone();
        destination.columns[0] = proto::Column { name: text.clone(), r#type: text.clone() };
        destination.table_definition.as_mut().unwrap().partition_by = text;
        pipe.settings = Some(proto::Settings { max_batch_rows: size, ..Default::default() });
        let _ = convert(&pipe);
    }
}

//! Requests that nobody sends by mistake: each is refused with the field at fault, or taken for exactly what it says, and the control
//! plane serves on. docs/hostile-requests.md lists them.

use std::time::{Duration, Instant};

use millrace_common::error;
use millrace_proto::{
    api::v1::{self as proto, credential::Kind},
    worker::v1 as worker,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, metadata::MetadataValue};

use super::{
    bed::{Bed, DATABASE, PARENT, assert_refused, clickhouse_user, destination_of, fields, kinesis_of, name},
    tables::managed,
};

/// Time in which a request is refused, however large it is.
const PROMPTLY: Duration = Duration::from_secs(5);

fn definition_of(pipe: &mut proto::Pipe) -> &mut proto::TableDefinition {
    destination_of(pipe).table_definition.as_mut().expect("managed")
}

async fn refused(bed: &Bed, what: &str, pipe: proto::Pipe, field: &str) {
    let start = Instant::now();
    let status = bed.create("hostile", pipe).await.expect_err(what);
    assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
    assert!(fields(&status).iter().any(|found| found == field), "{what}: {status:?}");
    assert!(
        status.message().len() < 4096,
        "{what}: {} bytes",
        status.message().len()
    );
    assert!(start.elapsed() < PROMPTLY, "{what}: {:?}", start.elapsed());
    assert_eq!(bed.get("hostile").await.expect_err("not stored").code(), Code::NotFound);
}

#[tokio::test]
async fn names_of_tables_are_quoted_or_refused() {
    let bed = Bed::start().await;
    bed.create_table("victim").await;
    for table in [
        "a`; DROP TABLE victim--",
        "a\\`; DROP TABLE victim--",
        "a'; DROP TABLE victim--",
        "a\"b",
        "api_tests.victim",
        "a b",
        "таблица",
        "100%",
        "{x:Identifier}",
    ] {
        let mut pipe = managed(&bed, table);
        definition_of(&mut pipe).partition_by.clear();
        let id = "quoted";
        bed.create(id, pipe)
            .await
            .unwrap_or_else(|status| panic!("{table}: {status:?}"));
        let sql = format!(
            "SELECT count() FROM system.tables WHERE database = '{DATABASE}' AND name = '{}'",
            table.replace('\\', "\\\\").replace('\'', "\\'")
        );
        assert_eq!(bed.sql(&sql).await.trim(), "1", "{table}");
        bed.delete(id, "", false).await.expect("deleted");
    }
    assert_eq!(bed.sql(&format!("EXISTS {DATABASE}.victim")).await.trim(), "1");

    let long = "a".repeat(65_536);
    for table in ["", "a\0b", "a\nb", "a\u{1b}[31m", "a\u{202e}b", "a\u{200b}b", &long] {
        let mut pipe = bed.pipe("x");
        destination_of(&mut pipe).table = table.into();
        refused(&bed, &table[..table.len().min(9)], pipe, "pipe.destination.table").await;
    }
    for database in ["system", "SYSTEM", "information_schema", "a\0b"] {
        let mut pipe = bed.pipe("users");
        destination_of(&mut pipe).database = database.into();
        refused(&bed, database, pipe, "pipe.destination.database").await;
    }
    // A database and a table in one field are the name of a table.
    let mut pipe = bed.pipe("x");
    destination_of(&mut pipe).table = "system.users".into();
    let status = bed.create("hostile", pipe).await.expect_err("no such table");
    assert_refused(
        &status,
        Code::FailedPrecondition,
        "DESTINATION_TABLE_NOT_FOUND",
        "pipe.destination.table",
        "",
    );
}

#[tokio::test]
async fn a_table_is_built_of_types_and_columns_and_nothing_else() {
    let bed = Bed::start().await;
    let deep = format!("{}UInt8{}", "Array(".repeat(1_000), ")".repeat(1_000));
    let wide = format!("Tuple({})", vec!["UInt8"; 200_000].join(", "));
    for data_type in [
        "String) ENGINE = URL('http://169.254.169.254/')",
        "String DEFAULT sleep(3)",
        "String COMMENT 'x'",
        "String CODEC(NONE)",
        "AggregateFunction(sum, UInt64)",
        "Enum8('a' = 1, 'b'",
        "FixedString(0)",
        "FixedString(99999999999)",
        "Decimal(77, 0)",
        "String -- x",
        "String/**/",
        "String;",
        "UInt8\0",
        "",
        &deep,
        &wide,
    ] {
        let mut pipe = managed(&bed, "typed");
        destination_of(&mut pipe).columns[0].r#type = data_type.into();
        let what = &data_type[..data_type.len().min(40)];
        refused(&bed, what, pipe, "pipe.destination.columns[0].type").await;
    }
    for key in [
        "sleep(3)",
        "(SELECT 1)",
        "dictGet('a', 'b', 1)",
        "id, sleep(3)",
        "id DESC",
        "tuple()",
        "",
    ] {
        let mut pipe = managed(&bed, "typed");
        definition_of(&mut pipe).sorting_key = vec![key.into()];
        refused(&bed, key, pipe, "pipe.destination.table_definition.sorting_key[0]").await;
    }
    for by in [
        "sleep(3)",
        "(SELECT 1)",
        "url('http://169.254.169.254/')",
        "dictGet('a', 'b', 1)",
        "toYYYYMM(ts) SETTINGS x = 1",
        "toYYYYMM(ts), id",
        "toYYYYMM(nothing)",
        "toYYYYMM(toDate(ts))",
        "`",
    ] {
        let mut pipe = managed(&bed, "typed");
        definition_of(&mut pipe).partition_by = by.into();
        refused(&bed, by, pipe, "pipe.destination.table_definition.partition_by").await;
    }
    for (setting, value) in [
        ("async_insert", "1"),
        ("insert_deduplication_token", "x"),
        ("deduplicate_insert", "disable"),
        ("insert_deduplicate", "0"),
        ("non_replicated_deduplication_window", "0"),
        ("replicated_deduplication_window", "0"),
        ("readonly", "1"),
        ("max_insert_block_size", "1"),
        ("disk", "disk(type = s3)"),
        ("index_granularity", "8192, disk = 's3'"),
        ("index_granularity = 1, x", "1"),
        ("index_granularity", ""),
    ] {
        let mut pipe = managed(&bed, "typed");
        definition_of(&mut pipe).settings = [(setting.to_owned(), value.to_owned())].into();
        let status = bed.create("hostile", pipe).await.expect_err(setting);
        assert_eq!(status.code(), Code::InvalidArgument, "{setting}: {status:?}");
        let field = "pipe.destination.table_definition.settings";
        assert!(
            fields(&status).iter().any(|found| found.starts_with(field)),
            "{setting}: {status:?}"
        );
    }
    assert_eq!(bed.sql(&format!("EXISTS {DATABASE}.typed")).await.trim(), "0");
}

#[tokio::test]
async fn endpoints_lead_nowhere_else() {
    let bed = Bed::start().await;
    for endpoint in [
        "http://169.254.169.254",
        "http://169.254.169.254.",
        "http://[::ffff:a9fe:a9fe]",
        "http://[fe80::1]",
        "http://2130706433",
        "http://0x7f000001",
        "http://0177.0.0.1",
        "http://127.1",
        "http://x@10.0.0.1",
        "http://x:y@10.0.0.1",
        "http://0.0.0.0",
        "http://224.0.0.1",
        "file:///etc/passwd",
        "gopher://10.0.0.1",
        "http://10.0.0.1/path",
        "http://10.0.0.1?query",
        "http://10.0.0.1#fragment",
        "http://10.0.0.1:99999",
        "http://a\r\nHost: b",
        "http:\\\\10.0.0.1",
        "10.0.0.1:8123",
        "http://",
    ] {
        let mut pipe = bed.pipe("x");
        destination_of(&mut pipe).endpoint = endpoint.into();
        refused(&bed, endpoint, pipe, "pipe.destination.endpoint").await;
        let mut pipe = bed.pipe("x");
        kinesis_of(&mut pipe).endpoint = endpoint.into();
        refused(&bed, endpoint, pipe, "pipe.source.kinesis.endpoint").await;
    }
}

/// A server that sends its callers elsewhere: nobody goes there.
#[tokio::test]
async fn nobody_follows_a_redirect() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let bed = Bed::start().await;
    let target = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let target_url = format!("http://{}", target.local_addr().expect("an address"));
    let redirector = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let redirector_url = format!("http://{}", redirector.local_addr().expect("an address"));
    let answering = tokio::spawn(async move {
        loop {
            let (mut stream, _) = redirector.accept().await.expect("a caller");
            let answer = format!(
                "HTTP/1.1 307 Temporary Redirect\r\nLocation: {target_url}/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    let mut pipe = bed.pipe("x");
    destination_of(&mut pipe).endpoint = redirector_url;
    let status = bed.create("hostile", pipe).await.expect_err("no ClickHouse");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    let followed = tokio::time::timeout(Duration::from_millis(300), target.accept()).await;
    assert!(followed.is_err(), "somebody went where the redirect leads");
    answering.abort();
}

#[tokio::test]
async fn credentials_are_what_they_look_like() {
    let bed = Bed::start().await;
    for arn in [
        "",
        "reader",
        "arn:aws:iam::123456789012:user/reader",
        "arn:aws:iam::*:role/reader",
        "arn:aws:iam::123456789012:role/*",
        "arn:aws:iam::123456789012:role/reader\n",
        "arn:aws:iam::12345:role/reader",
        "arn:evil:iam::123456789012:role/reader",
        "arn:aws:sts::123456789012:assumed-role/reader/x",
        "arn:aws:iam::123456789012:role/",
    ] {
        let role = Kind::AwsRole(proto::AwsRole {
            role_arn: arn.into(),
            ..Default::default()
        });
        let status = bed.create_credential("role", role).await.expect_err(arn);
        assert_refused(
            &status,
            Code::InvalidArgument,
            "INVALID_FIELD",
            "credential.aws_role.role_arn",
            "",
        );
    }
    let long = "canary".repeat(11_000);
    for (user, password, field) in [
        ("x\r\nX-Evil: 1", "canary", "credential.clickhouse_user.username"),
        ("", "canary", "credential.clickhouse_user.username"),
        ("x\0", "canary", "credential.clickhouse_user.username"),
        ("x", "canary\n", "credential.clickhouse_user.password"),
        ("x", "canary\0", "credential.clickhouse_user.password"),
        ("x", &long, "credential.clickhouse_user.password"),
    ] {
        let status = bed
            .create_credential("user", clickhouse_user(user, password))
            .await
            .expect_err(field);
        assert_refused(&status, Code::InvalidArgument, "INVALID_FIELD", field, "");
    }
    for (id, secret, field) in [
        ("AKID\nEXAMPLE", "canary", "credential.aws_keys.access_key_id"),
        ("", "canary", "credential.aws_keys.access_key_id"),
        ("AKIDEXAMPLE", "", "credential.aws_keys.secret_access_key"),
        ("AKIDEXAMPLE", "canary\r\n", "credential.aws_keys.secret_access_key"),
        ("AKIDEXAMPLE", &long, "credential.aws_keys.secret_access_key"),
    ] {
        let keys = Kind::AwsKeys(proto::AwsKeys {
            access_key_id: id.into(),
            secret_access_key: secret.into(),
            session_token: String::new(),
        });
        let status = bed.create_credential("keys", keys).await.expect_err(field);
        assert_refused(&status, Code::InvalidArgument, "INVALID_FIELD", field, "");
    }
}

#[tokio::test]
async fn numbers_are_within_their_bounds() {
    type Change = fn(&mut proto::Pipe);
    let bed = Bed::start().await;
    let wait = |pipe: &mut proto::Pipe, seconds, nanos| {
        pipe.settings.get_or_insert_default().max_insert_wait = Some(prost_types::Duration { seconds, nanos });
    };
    for (seconds, nanos) in [
        (0, 1),
        (-5, 0),
        (5, -1),
        (i64::MAX, 0),
        (i64::MIN, i32::MIN),
        (0, i32::MAX),
        (601, 0),
    ] {
        let mut pipe = bed.pipe("x");
        wait(&mut pipe, seconds, nanos);
        refused(
            &bed,
            &format!("{seconds} {nanos}"),
            pipe,
            "pipe.settings.max_insert_wait",
        )
        .await;
    }
    let changes: [(&str, Change); 9] = [
        ("pipe.settings.max_batch_rows", |pipe| {
            pipe.settings.get_or_insert_default().max_batch_rows = u64::MAX;
        }),
        ("pipe.settings.max_batch_bytes", |pipe| {
            pipe.settings.get_or_insert_default().max_batch_bytes = 1 << 63;
        }),
        ("pipe.settings.compression", |pipe| {
            pipe.settings.get_or_insert_default().compression = 99;
        }),
        ("pipe.scaling.replicas", |pipe| {
            pipe.scaling.get_or_insert_default().replicas = u32::MAX;
        }),
        ("pipe.desired_state", |pipe| pipe.desired_state = -1),
        ("pipe.source.kinesis.iterator_type", |pipe| {
            kinesis_of(pipe).iterator_type = 99;
        }),
        ("pipe.source.kinesis.timestamp", |pipe| {
            kinesis_of(pipe).iterator_type = proto::IteratorType::AtTimestamp.into();
            kinesis_of(pipe).timestamp = Some(prost_types::Timestamp {
                seconds: i64::MAX,
                nanos: -1,
            });
        }),
        ("pipe.source.kinesis.max_get_records_per_second", |pipe| {
            kinesis_of(pipe).max_get_records_per_second = 6;
        }),
        ("pipe.source.kinesis.max_read_bytes_per_second", |pipe| {
            kinesis_of(pipe).max_read_bytes_per_second = u64::MAX;
        }),
    ];
    for (field, change) in changes {
        let mut pipe = bed.pipe("x");
        change(&mut pipe);
        refused(&bed, field, pipe, field).await;
    }
}

#[tokio::test]
async fn large_and_unknown_messages_are_bounded() {
    let bed = Bed::start().await;
    let many = vec![proto::FieldMapping::default(); 1_000_000];
    let pipe = proto::Pipe {
        field_mappings: many,
        ..bed.pipe("x")
    };
    refused(&bed, "a million mappings", pipe, "pipe.field_mappings").await;
    let many = vec![proto::Column::default(); 1_000_000];
    let mut pipe = bed.pipe("x");
    destination_of(&mut pipe).columns = many;
    refused(&bed, "a million columns", pipe, "pipe.destination.columns").await;
    let annotations = (0..100_000).map(|n| (format!("k{n}"), String::new())).collect();
    let pipe = proto::Pipe {
        annotations,
        ..bed.pipe("x")
    };
    refused(&bed, "many annotations", pipe, "pipe.annotations").await;
    for text in ["\u{1b}[31mred", "a\nb", "\0", &"x".repeat(100_000)] {
        let pipe = proto::Pipe {
            display_name: text.into(),
            ..bed.pipe("x")
        };
        refused(&bed, "a display name", pipe, "pipe.display_name").await;
    }
}

#[tokio::test]
async fn deleting_and_changing_at_once_is_one_or_the_other() {
    let bed = Bed::start().await;
    bed.create_table("raced").await;
    for _ in 0..5 {
        let pipe = bed.create("raced", bed.pipe("raced")).await.expect("created");
        let renamed = proto::Pipe {
            display_name: "other".into(),
            ..pipe.clone()
        };
        let (one, other, changed) = tokio::join!(
            bed.delete("raced", &pipe.etag, false),
            bed.delete("raced", &pipe.etag, false),
            bed.update(renamed, &["display_name"]),
        );
        let deleted = [&one, &other].iter().filter(|result| result.is_ok()).count();
        let is_known = |status: &Status| matches!(status.code(), Code::NotFound | Code::Aborted);
        for status in [one.err(), other.err(), changed.as_ref().err().cloned()]
            .into_iter()
            .flatten()
        {
            assert!(is_known(&status), "{status:?}");
        }
        // Whoever came first made the etag of the others stale.
        assert!(
            deleted <= 1 && (deleted == 1 || changed.is_ok()),
            "{deleted} {changed:?}"
        );
        if deleted == 0 {
            bed.delete("raced", "", false).await.expect("deleted");
        }
        assert_eq!(bed.get("raced").await.expect_err("gone").code(), Code::NotFound);
    }
    let gone = proto::Pipe {
        name: name("raced"),
        ..bed.pipe("raced")
    };
    let status = bed.update(gone, &["display_name"]).await.expect_err("gone");
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
}

#[tokio::test]
async fn strange_metadata_harms_nobody() {
    let bed = Bed::start().await;
    let list = || proto::ListPipesRequest {
        parent: PARENT.into(),
        ..Default::default()
    };
    let with = async |headers: &[(String, String)]| {
        let mut request = Request::new(list());
        for (key, value) in headers {
            let key: tonic::metadata::MetadataKey<_> = key.parse().expect("a key");
            request
                .metadata_mut()
                .append(key, MetadataValue::try_from(value.as_str()).expect("a value"));
        }
        let call = async { bed.pipes.clone().list_pipes(request).await };
        tokio::time::timeout(PROMPTLY, call).await.expect("an answer in time")
    };
    let many: Vec<_> = (0..1_000).map(|n| (format!("x-{n}"), "x".repeat(100))).collect();
    let large = vec![("x-large".to_owned(), "x".repeat(1 << 20))];
    for headers in [many, large] {
        let status = with(&headers).await.expect_err("too many headers");
        assert_ne!(status.code(), Code::Ok);
        // The connection of others, and the next one of this client, go on.
        bed.pipes.clone().list_pipes(list()).await.expect("served on");
    }
    for timeout in ["garbage", "-1S", "99999999999S", "1x", "", "0n"] {
        with(&[("grpc-timeout".to_owned(), timeout.to_owned())]).await.ok();
        bed.pipes.clone().list_pipes(list()).await.expect("served on");
    }
}

#[tokio::test]
async fn a_worker_says_hello_once_and_first() {
    use worker::{session_request::Message, worker_service_client::WorkerServiceClient};

    let bed = Bed::start().await;
    let hello = |id: &str| {
        Message::Hello(worker::Hello {
            worker: Some(worker::WorkerIdentity {
                worker_id: id.into(),
                incarnation: uuid::Uuid::now_v7().to_string(),
            }),
            protocol_min: 1,
            protocol_max: 2,
            program_version: "0".into(),
            capacity: Some(worker::Capacity {
                cores: 1,
                memory_bytes: 1 << 28,
            }),
            report: None,
        })
    };
    let session = async |messages: Vec<Option<Message>>| -> Status {
        let (sender, receiver) = tokio::sync::mpsc::channel(messages.len().max(1));
        for message in messages {
            sender.send(worker::SessionRequest { message }).await.expect("room");
        }
        let mut client = WorkerServiceClient::new(bed.channel.clone());
        let talk = async {
            let mut answers = client.session(ReceiverStream::new(receiver)).await?.into_inner();
            while answers.message().await?.is_some() {}
            Ok::<_, Status>(())
        };
        // The sending side stays open: it is the control plane that ends it.
        let ended = tokio::time::timeout(PROMPTLY, talk).await.expect("an end in time");
        drop(sender);
        ended.expect_err("a refusal")
    };
    // Only a leader takes sessions.
    let leading = async || {
        let status = session(vec![None]).await;
        error::reason(&status).as_deref() != Some("NOT_LEADER")
    };
    while !leading().await {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let report = || Message::Report(worker::Report::default());
    let many: Vec<_> = std::iter::once(Some(hello("w/1")))
        .chain((0..5_000).map(|_| Some(report())))
        .collect();
    for (what, messages, code) in [
        ("nothing", vec![None], Code::InvalidArgument),
        ("a report first", vec![Some(report())], Code::InvalidArgument),
        (
            "a second hello",
            vec![Some(hello("w/1")), Some(hello("w/1"))],
            Code::InvalidArgument,
        ),
        ("no name", vec![Some(hello(""))], Code::InvalidArgument),
        (
            "a name like no other",
            vec![Some(hello("../\n"))],
            Code::InvalidArgument,
        ),
        ("too much", many, Code::ResourceExhausted),
    ] {
        let status = session(messages).await;
        assert_eq!(status.code(), code, "{what}: {status:?}");
    }
    // Batches of nobody, and of pipes that are not there.
    let mut client = WorkerServiceClient::new(bed.channel.clone());
    let identity = || {
        Some(worker::WorkerIdentity {
            worker_id: "w/1".into(),
            incarnation: uuid::Uuid::now_v7().to_string(),
        })
    };
    let status = client
        .prepare_batch(worker::PrepareBatchRequest::default())
        .await
        .expect_err("nothing");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let commit = worker::CommitBatchRequest {
        worker: identity(),
        pipe_uid: uuid::Uuid::new_v4().to_string(),
        batch_id: ulid::Ulid::new().to_string(),
        ..Default::default()
    };
    let status = client
        .commit_batch(commit)
        .await
        .expect_err("a batch that nobody prepared");
    assert!(
        matches!(
            status.code(),
            Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition
        ),
        "{status:?}"
    );
    assert!(error::reason(&status).is_some(), "{status:?}");
}

//! Pipes that cannot work are refused, with the field at fault and what to do about it, and others do not notice.

use millrace_integration_tests::kinesis::{Call, Error, ErrorKind, Interceptor, Operation};
use millrace_proto::api::v1::{self as proto, credential::Kind};
use tonic::Code;

use super::bed::{
    Bed, DATABASE, PARENT, READER, WRITER, assert_refused, clickhouse_user, destination_of, fields, kinesis_of,
};

const CREDENTIAL: &str = "pipe.destination.credential";
const TABLE: &str = "pipe.destination.table";

struct Case {
    name: &'static str,
    change: Box<dyn Fn(&mut proto::Pipe)>,
    code: Code,
    reason: &'static str,
    field: &'static str,
    remedy: &'static str,
}

fn case(
    name: &'static str,
    (code, reason): (Code, &'static str),
    field: &'static str,
    remedy: &'static str,
    change: impl Fn(&mut proto::Pipe) + 'static,
) -> Case {
    Case {
        name,
        change: Box::new(change),
        code,
        reason,
        field,
        remedy,
    }
}

#[allow(clippy::too_many_lines, reason = "a table")]
fn cases() -> Vec<Case> {
    let invalid = (Code::InvalidArgument, "INVALID_FIELD");
    let refused = |reason| (Code::FailedPrecondition, reason);
    let credential = |id: &str| format!("{PARENT}/credentials/{id}");
    let (reader, wrong, aws) = (credential(READER), credential("wrong"), credential("aws"));
    let (writer, missing) = (credential(WRITER), credential("missing"));
    let (missing2, owner) = (missing.clone(), credential("owner"));
    vec![
        case(
            "unknown table",
            refused("DESTINATION_TABLE_NOT_FOUND"),
            TABLE,
            "create it",
            |pipe| {
                destination_of(pipe).table = "nowhere".into();
            },
        ),
        case(
            "unknown database",
            refused("DESTINATION_DATABASE_NOT_FOUND"),
            "pipe.destination.database",
            "create it",
            |pipe| destination_of(pipe).database = "nowhere".into(),
        ),
        case(
            "missing grant",
            refused("DESTINATION_ACCESS_DENIED"),
            CREDENTIAL,
            "GRANT INSERT ON `api_tests`.`bad` TO `reader`",
            move |pipe| destination_of(pipe).credential.clone_from(&reader),
        ),
        case(
            "no right to make the error table",
            refused("DESTINATION_ACCESS_DENIED"),
            "pipe.destination.error_table",
            "CREATE TABLE IF NOT EXISTS `api_tests`.`bad_other_errors`",
            move |pipe| {
                destination_of(pipe).credential.clone_from(&writer);
                destination_of(pipe).error_table = "bad_other_errors".into();
            },
        ),
        case(
            "wrong password",
            refused("DESTINATION_AUTHENTICATION_FAILED"),
            CREDENTIAL,
            "store its password in a new credential",
            move |pipe| destination_of(pipe).credential.clone_from(&wrong),
        ),
        case(
            "nobody listens",
            refused("DESTINATION_UNREACHABLE"),
            "pipe.destination.endpoint",
            "check the host, the port",
            |pipe| destination_of(pipe).endpoint = "http://127.0.0.1:1".into(),
        ),
        case(
            "a name that does not resolve",
            refused("DESTINATION_UNREACHABLE"),
            "pipe.destination.endpoint",
            "check the host, the port",
            |pipe| destination_of(pipe).endpoint = "http://does-not-exist.invalid:8123".into(),
        ),
        case(
            "not ClickHouse",
            refused("DESTINATION_UNREACHABLE"),
            "pipe.destination.endpoint",
            "8123",
            |pipe| destination_of(pipe).endpoint = kinesis_of(pipe).endpoint.clone(),
        ),
        case(
            "missing stream",
            refused("SOURCE_STREAM_NOT_FOUND"),
            "pipe.source.kinesis.stream_name",
            "check its name",
            |pipe| kinesis_of(pipe).stream_name = "nowhere".into(),
        ),
        case(
            "bad ARN",
            invalid,
            "pipe.source.kinesis.stream_arn",
            "arn:aws:kinesis:REGION",
            |pipe| {
                kinesis_of(pipe).stream_name.clear();
                kinesis_of(pipe).stream_arn = "arn:aws:s3:::bucket".into();
            },
        ),
        case(
            "no Kinesis",
            refused("SOURCE_UNREACHABLE"),
            "pipe.source.kinesis.endpoint",
            "cannot reach Kinesis",
            |pipe| kinesis_of(pipe).endpoint = "http://127.0.0.1:1".into(),
        ),
        case(
            "a type that does not parse",
            invalid,
            "pipe.destination.columns[0].type",
            "is not a type that Millrace can fill",
            |pipe| {
                destination_of(pipe).columns = vec![proto::Column {
                    name: "id".into(),
                    r#type: "UInt65".into(),
                }];
            },
        ),
        case(
            "a table with a type that cannot be filled",
            refused("DESTINATION_TYPE_UNSUPPORTED"),
            TABLE,
            "AggregateFunction",
            |pipe| destination_of(pipe).table = "bad_aggregate".into(),
        ),
        case(
            "another type than the table's",
            refused("DESTINATION_SCHEMA_CHANGED"),
            "pipe.destination.columns[0].type",
            "UInt64 in the table",
            |pipe| {
                destination_of(pipe).columns = vec![proto::Column {
                    name: "id".into(),
                    r#type: "String".into(),
                }];
            },
        ),
        case(
            "an unknown column",
            refused("DESTINATION_COLUMN_NOT_FOUND"),
            "pipe.field_mappings[1].destination_field",
            "did you mean \"name\"",
            |pipe| pipe.field_mappings = mappings(&["id", "Name"]),
        ),
        case(
            "a column that cannot be inserted into",
            refused("DESTINATION_COLUMN_NOT_FOUND"),
            "pipe.field_mappings[0].destination_field",
            "MATERIALIZED",
            |pipe| pipe.field_mappings = mappings(&["size"]),
        ),
        case(
            "a constant that its column cannot take",
            refused("DESTINATION_TYPE_UNSUPPORTED"),
            "pipe.field_mappings[0].constant",
            "cannot be a value of the column",
            |pipe| {
                pipe.field_mappings = vec![proto::FieldMapping {
                    destination_field: "id".into(),
                    constant: "\"seven\"".into(),
                    ..Default::default()
                }];
            },
        ),
        case(
            "a constant that is no JSON",
            invalid,
            "pipe.field_mappings[0].constant",
            "for the text \"eu\", write",
            |pipe| {
                pipe.field_mappings = vec![proto::FieldMapping {
                    destination_field: "name".into(),
                    constant: "eu".into(),
                    ..Default::default()
                }];
            },
        ),
        case(
            "an unknown credential",
            invalid,
            "pipe.source.kinesis.credential",
            "create it first",
            move |pipe| {
                kinesis_of(pipe).credential.clone_from(&missing);
            },
        ),
        case("an unknown user", invalid, CREDENTIAL, "create it first", move |pipe| {
            destination_of(pipe).credential.clone_from(&missing2);
        }),
        case(
            "the wrong kind of credential",
            invalid,
            CREDENTIAL,
            "a ClickHouse user is needed",
            move |pipe| {
                destination_of(pipe).credential.clone_from(&aws);
            },
        ),
        case(
            "the other wrong kind",
            invalid,
            "pipe.source.kinesis.credential",
            "an AWS credential is needed",
            move |pipe| kinesis_of(pipe).credential.clone_from(&owner),
        ),
        case(
            "metadata service",
            invalid,
            "pipe.destination.endpoint",
            "never calls",
            |pipe| {
                destination_of(pipe).endpoint = "http://169.254.169.254".into();
            },
        ),
    ]
}

fn mappings(columns: &[&str]) -> Vec<proto::FieldMapping> {
    let mapping = |column: &&str| proto::FieldMapping {
        source_field: "x".into(),
        destination_field: (*column).to_owned(),
        ..Default::default()
    };
    columns.iter().map(mapping).collect()
}

#[tokio::test]
async fn every_bad_configuration_is_refused_with_field_and_remedy() {
    let bed = Bed::start().await;
    bed.create_table("bad").await;
    bed.create_table("good").await;
    bed.sql(&format!(
        "CREATE TABLE {DATABASE}.bad_aggregate (id UInt64, s AggregateFunction(sum, UInt64)) \
         ENGINE = AggregatingMergeTree ORDER BY id"
    ))
    .await;
    bed.create_credential("wrong", clickhouse_user(super::bed::OWNER, "canary-wrong"))
        .await
        .expect("a credential");
    let good = bed.create("good", bed.pipe("good")).await.expect("a good pipe");

    for case in cases() {
        let mut pipe = bed.pipe("bad");
        (case.change)(&mut pipe);
        let status = bed.create("bad", pipe).await.expect_err(case.name);
        assert_refused(&status, case.code, case.reason, case.field, case.remedy);
        assert_eq!(
            bed.get("bad").await.expect_err("not stored").code(),
            Code::NotFound,
            "{}",
            case.name
        );
    }

    let still = bed.get("good").await.expect("the good pipe");
    assert_eq!((&still.uid, &still.etag), (&good.uid, &good.etag));
    let found = bed
        .sql("SELECT count() FROM system.tables WHERE name = 'bad_other_errors'")
        .await;
    assert_eq!(found.trim(), "0");
}

#[tokio::test]
async fn both_ends_are_reported_at_once() {
    let bed = Bed::start().await;
    let mut pipe = bed.pipe("nowhere");
    kinesis_of(&mut pipe).stream_name = "nowhere".into();
    let status = bed.create("bad", pipe).await.expect_err("refused");
    assert_refused(
        &status,
        Code::FailedPrecondition,
        "SOURCE_STREAM_NOT_FOUND",
        "pipe.source.kinesis.stream_name",
        "",
    );
    assert_eq!(fields(&status), ["pipe.source.kinesis.stream_name", TABLE]);
}

#[tokio::test]
async fn names_and_requests_are_checked() {
    let bed = Bed::start().await;
    for id in [
        "",
        "UPPER",
        "../x",
        "a/b",
        "a\0",
        "-a",
        "a-",
        &"a".repeat(64),
        &"a".repeat(65_536),
        "é",
        "а",
    ] {
        let status = bed.create(id, bed.pipe("x")).await.expect_err(id);
        assert_refused(&status, Code::InvalidArgument, "INVALID_FIELD", "pipe_id", "");
    }
    let request = proto::CreatePipeRequest {
        parent: "nowhere".into(),
        pipe_id: "Bad".into(),
        pipe: None,
        validate_only: false,
        ..Default::default()
    };
    let status = bed.pipes.clone().create_pipe(request).await.expect_err("refused");
    assert_eq!(&fields(&status)[..2], ["parent", "pipe_id"]);

    let huge = proto::Pipe {
        display_name: "x".repeat(5 << 20),
        ..bed.pipe("x")
    };
    let status = bed.create("huge", huge).await.expect_err("too large");
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    // It serves on.
    assert_eq!(bed.get("x").await.expect_err("none").code(), Code::NotFound);
}

/// Refuses one operation.
struct Refuse(Operation, ErrorKind);

impl Interceptor for Refuse {
    fn before<'a>(&'a self, call: &'a Call) -> futures::future::BoxFuture<'a, Result<(), Error>> {
        let refused = call.operation == self.0;
        Box::pin(async move {
            if refused {
                Err(Error::new(self.1, "not today"))
            } else {
                Ok(())
            }
        })
    }
}

#[tokio::test]
async fn what_aws_refuses_names_the_missing_right() {
    for (operation, kind, reason, remedy) in [
        (
            Operation::ListShards,
            ErrorKind::AccessDenied,
            "SOURCE_ACCESS_DENIED",
            "kinesis:ListShards",
        ),
        (
            Operation::DescribeStreamSummary,
            ErrorKind::AccessDenied,
            "SOURCE_ACCESS_DENIED",
            "kinesis:DescribeStreamSummary",
        ),
        (
            Operation::DescribeStreamSummary,
            ErrorKind::UnrecognizedClient,
            "SOURCE_CREDENTIAL_INVALID",
            "in a new credential",
        ),
        (
            Operation::DescribeStreamSummary,
            ErrorKind::ExpiredToken,
            "SOURCE_CREDENTIAL_INVALID",
            "in a new credential",
        ),
    ] {
        let bed = Bed::start_intercepted(Refuse(operation, kind)).await;
        let table = format!("refused_{operation:?}_{kind:?}");
        bed.create_table(&table).await;
        let status = bed.create("bad", bed.pipe(&table)).await.expect_err("refused");
        assert_refused(
            &status,
            Code::FailedPrecondition,
            reason,
            "pipe.source.kinesis.credential",
            remedy,
        );
    }
}

#[tokio::test]
async fn no_identity_is_said_in_time() {
    // Nobody has said that pipes may use the identity of the process.
    let bed = Bed::start().await;
    bed.create_table("no_role").await;
    let role = proto::AwsRole {
        role_arn: "arn:aws:iam::123456789012:role/reader".into(),
        ..Default::default()
    };
    bed.create_credential("role", Kind::AwsRole(role))
        .await
        .expect("a role");
    let mut pipe = bed.pipe("no_role");
    kinesis_of(&mut pipe).credential = format!("{PARENT}/credentials/role");
    let status = bed.create("role", pipe).await.expect_err("refused");
    let reason = millrace_common::error::reason(&status).unwrap_or_default();
    assert_eq!(reason, "SOURCE_AMBIENT_NOT_ALLOWED", "{status:?}");
}

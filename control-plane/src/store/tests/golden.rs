//! The stored JSON, byte for byte. A change here is a change of what databases out there hold: the old form must still
//! be read.

use std::{collections::BTreeMap, fmt::Debug, time::Duration};

use millrace_common::{
    ids::Revision,
    pipe::{
        Column, Compression, DataGapPolicy, Decoding, Delivery, Destination, Envelope, FanOut, FieldMapping,
        KinesisSource, MappedColumn, OutOfRangePolicy, PartitionBy, PipeSpec, PollingBudget, ResolvedSpec, Settings,
        StartPosition, StreamIdentity, StreamRef, TableDefinition, TableEngine, UnknownFieldPolicy,
    },
    position::Position,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::store::{CredentialKind, Effective, StoredFault};

fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(golden: &str, value: &T) {
    let text = serde_json::to_string_pretty(value).unwrap() + "\n";
    assert_eq!(text, golden, "a new write is not what the golden file holds");
    let read: T = serde_json::from_str(golden).unwrap();
    assert_eq!(&read, value);
}

/// A specification that uses everything.
pub(super) fn spec() -> PipeSpec {
    PipeSpec {
        display_name: "Events – prod".to_owned(),
        annotations: BTreeMap::from([("team".to_owned(), "data".to_owned())]),
        source: KinesisSource {
            stream: StreamRef::Name("events".to_owned()),
            region: "eu-central-1".to_owned(),
            start: StartPosition::AtTimestamp("2026-11-22T12:00:00.123Z".parse().unwrap()),
            credential: "projects/default/credentials/aws".parse().unwrap(),
            endpoint: Some("https://kinesis.example.com".to_owned()),
            end: None,
            fan_out: None,
            polling: PollingBudget::default(),
        },
        destination: Destination {
            endpoint: "https://ch.example.com:8443".to_owned(),
            credential: "projects/default/credentials/clickhouse".parse().unwrap(),
            database: "default".to_owned(),
            table: "events".to_owned(),
            error_table: "events_millrace_error".to_owned(),
            managed: Some(TableDefinition {
                engine: TableEngine::MergeTree,
                sorting_key: vec!["time".to_owned()],
                partition_by: Some(PartitionBy {
                    function: Some("toYYYYMM".to_owned()),
                    column: "time".to_owned(),
                }),
                primary_key: Vec::new(),
                ttl: None,
                settings: BTreeMap::new(),
                replicated: false,
                cluster: None,
            }),
            columns: vec![Column {
                name: "time".to_owned(),
                data_type: "DateTime64(3, 'UTC')".to_owned(),
            }],
        },
        field_mappings: vec![FieldMapping {
            source_field: "a.b".to_owned(),
            destination_field: "time".to_owned(),
            ..FieldMapping::default()
        }],
        decoding: Decoding::default(),
        replicas: 2,
        settings: Settings {
            max_batch_rows: 50_000,
            max_batch_bytes: 10_000_000,
            max_insert_wait: Duration::from_millis(1_500),
            compression: Compression::None,
            delivery: Delivery::AtLeastOnce,
            on_data_gap: DataGapPolicy::Halt,
            max_rejected_records: 10_000_000,
        },
    }
}

/// The same resolved.
pub(super) fn resolved() -> ResolvedSpec {
    ResolvedSpec {
        revision: Revision(7),
        stream: StreamIdentity {
            arn: "arn:aws:kinesis:eu-central-1:123456789012:stream/events".to_owned(),
            name: "events".to_owned(),
            created: "2026-11-01T00:00:00Z".parse().unwrap(),
        },
        time_zone: "Europe/Berlin".to_owned(),
        columns: vec![MappedColumn {
            name: "time".to_owned(),
            data_type: "DateTime64(3, 'UTC')".to_owned(),
            has_default: true,
            source_field: "a.b".to_owned(),
            ..MappedColumn::default()
        }],
    }
}

#[test]
fn pipe_spec() {
    check(include_str!("../golden/pipe_spec.json"), &spec());
}

/// What came later is left out where it is not used, and means what was before.
#[test]
fn backfill_pipe_spec() {
    let mut backfill = spec();
    backfill.source.end = Some("2026-11-22T13:00:00Z".parse().unwrap());
    backfill.settings.on_data_gap = DataGapPolicy::Resume;
    check(include_str!("../golden/pipe_spec_backfill.json"), &backfill);
}

#[test]
fn mapped_pipe_spec() {
    let mut mapped = spec();
    mapped.field_mappings = vec![
        FieldMapping {
            source_field: "/user/id".to_owned(),
            destination_field: "user".to_owned(),
            required: true,
            ..FieldMapping::default()
        },
        FieldMapping {
            destination_field: "region".to_owned(),
            constant: Some("\"eu\"".to_owned()),
            ..FieldMapping::default()
        },
    ];
    mapped.decoding = Decoding {
        on_unknown_field: UnknownFieldPolicy::Reject,
        flatten_separator: Some("_".to_owned()),
        keep_packed: true,
        ..Decoding::default()
    };
    check(include_str!("../golden/pipe_spec_mapped.json"), &mapped);
}

#[test]
fn wrapped_pipe_spec() {
    let mut wrapped = spec();
    wrapped.field_mappings.clear();
    wrapped.decoding = Decoding {
        on_out_of_range: OutOfRangePolicy::Drop,
        envelope: Some(Envelope::CloudwatchLogs),
        ..Decoding::default()
    };
    wrapped.source.polling = PollingBudget {
        calls_per_second: Some(2),
        bytes_per_second: Some(1_048_576),
    };
    check(include_str!("../golden/pipe_spec_wrapped.json"), &wrapped);
}

#[test]
fn fan_out_pipe_spec() {
    let mut pipe = spec();
    let arn = "arn:aws:kinesis:eu-central-1:123456789012:stream/events/consumer/loader:1767323045";
    pipe.source.fan_out = Some(FanOut::Consumer(arn.to_owned()));
    check(include_str!("../golden/pipe_spec_fan_out.json"), &pipe);
    pipe.source.fan_out = Some(FanOut::Managed);
    let stored = serde_json::to_value(&pipe).unwrap();
    assert_eq!(stored["source"]["fan_out"], "managed");
}

#[test]
fn a_limit_is_stored_where_it_is_not_the_usual_one() {
    let mut limited = spec();
    assert!(
        !serde_json::to_string(&limited)
            .unwrap()
            .contains("max_rejected_records")
    );
    limited.settings.max_rejected_records = 1;
    let stored = serde_json::to_value(&limited).unwrap();
    assert_eq!(stored["settings"]["max_rejected_records"], 1);
    assert_eq!(serde_json::from_value::<PipeSpec>(stored).unwrap(), limited);
}

#[test]
fn plain_pipe_spec() {
    let mut plain = spec();
    plain.annotations.clear();
    plain.source.stream = StreamRef::Arn(resolved().stream.arn);
    plain.source.start = StartPosition::Latest;
    plain.source.endpoint = None;
    plain.destination.managed = None;
    plain.destination.columns.clear();
    plain.field_mappings.clear();
    plain.replicas = 1;
    plain.settings = Settings::default();
    check(include_str!("../golden/pipe_spec_plain.json"), &plain);
}

#[test]
fn resolved_spec() {
    check(include_str!("../golden/resolved_spec.json"), &resolved());
}

#[test]
fn positions() {
    let sequence_number = "49590338271490256608559692538361571095921575989136588898";
    check(
        include_str!("../golden/positions.json"),
        &vec![
            Position::TrimHorizon,
            Position::AtTimestamp("2026-11-22T12:00:00.123456Z".parse().unwrap()),
            Position::After(sequence_number.parse().unwrap()),
        ],
    );
}

#[test]
fn observations() {
    check(
        include_str!("../golden/effective.json"),
        &Effective {
            delivery: Delivery::ExactlyOnce,
            reason: "the table keeps 10000 tokens".to_owned(),
            window: None,
        },
    );
    check(
        include_str!("../golden/fault.json"),
        &StoredFault {
            reason: millrace_common::reason::SOURCE_ACCESS_DENIED.to_owned(),
            message: "allow kinesis:ListShards".to_owned(),
            permanent: true,
        },
    );
}

#[test]
fn credential_kinds() {
    check(
        include_str!("../golden/credential_kinds.json"),
        &vec![
            CredentialKind::AwsKeys {
                access_key_id: "AKIA".to_owned(),
            },
            CredentialKind::AwsRole {
                role_arn: "arn:aws:iam::123456789012:role/x".to_owned(),
                external_id: None,
                session_name: "millrace".to_owned(),
                source: None,
            },
            CredentialKind::AwsAmbient,
            CredentialKind::ClickHouseUser {
                username: "default".to_owned(),
            },
        ],
    );
}

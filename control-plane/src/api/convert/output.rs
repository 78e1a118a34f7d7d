//! What users see of what is stored. Secrets have no way through here: no stored type that reaches this module holds one.

use std::time::Duration;

use jiff::Timestamp;
use millrace_common::pipe::{
    Column, Compression, DataGapPolicy, Decoding, Delivery, DesiredState, Envelope, FanOut, FieldMapping,
    OutOfRangePolicy, PipeSpec, StartPosition, StreamRef, TableDefinition, TableEngine, UnknownFieldPolicy,
};
use millrace_proto::api::v1 as proto;

use super::partition_by;
use crate::{
    events::{Event, Severity},
    store::{CredentialKind, StoredCredential, Totals},
};

/// A point in time.
#[must_use]
pub fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    // Before 1970 the parts of a proto timestamp have other signs than jiff's.
    let nanos = time.as_nanosecond();
    prost_types::Timestamp {
        seconds: i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or(i64::MAX),
        nanos: i32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or(0),
    }
}

/// A span of time.
#[must_use]
pub fn duration(span: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(span.subsec_nanos()).unwrap_or(0),
    }
}

/// The fields of a pipe that make up its specification; the others are empty.
#[must_use]
pub fn specification(spec: &PipeSpec) -> proto::Pipe {
    proto::Pipe {
        display_name: spec.display_name.clone(),
        annotations: spec.annotations.clone(),
        source: Some(source(spec)),
        destination: Some(destination(spec)),
        field_mappings: spec.field_mappings.iter().map(field_mapping).collect(),
        scaling: Some(proto::Scaling {
            replicas: spec.replicas,
        }),
        settings: Some(settings(spec)),
        decoding: Some(decoding(&spec.decoding)),
        ..Default::default()
    }
}

fn source(spec: &PipeSpec) -> proto::Source {
    let source = &spec.source;
    let (stream_name, stream_arn) = match &source.stream {
        StreamRef::Name(name) => (name.clone(), String::new()),
        StreamRef::Arn(arn) => (String::new(), arn.clone()),
    };
    let (iterator_type, time) = match source.start {
        StartPosition::TrimHorizon => (proto::IteratorType::TrimHorizon, None),
        StartPosition::Latest => (proto::IteratorType::Latest, None),
        StartPosition::AtTimestamp(time) => (proto::IteratorType::AtTimestamp, Some(timestamp(time))),
    };
    let kinesis = proto::KinesisSource {
        format: proto::Format::JsonEachRow.into(),
        stream_name,
        stream_arn,
        region: source.region.clone(),
        iterator_type: iterator_type.into(),
        timestamp: time,
        credential: source.credential.to_string(),
        endpoint: source.endpoint.clone().unwrap_or_default(),
        end_timestamp: source.end.map(timestamp),
        use_enhanced_fan_out: source.fan_out.is_some(),
        max_get_records_per_second: source.polling.calls_per_second.unwrap_or_default(),
        max_read_bytes_per_second: source.polling.bytes_per_second.unwrap_or_default(),
        consumer_arn: match &source.fan_out {
            Some(FanOut::Consumer(arn)) => arn.clone(),
            Some(FanOut::Managed) | None => String::new(),
        },
    };
    proto::Source {
        kind: Some(proto::source::Kind::Kinesis(kinesis)),
    }
}

fn destination(spec: &PipeSpec) -> proto::Destination {
    let destination = &spec.destination;
    let definition = destination.managed.as_ref().map(table_definition);
    proto::Destination {
        endpoint: destination.endpoint.clone(),
        credential: destination.credential.to_string(),
        database: destination.database.clone(),
        table: destination.table.clone(),
        managed_table: definition.is_some(),
        table_definition: definition,
        columns: destination.columns.iter().map(column).collect(),
        error_table: destination.error_table.clone(),
    }
}

fn table_definition(definition: &TableDefinition) -> proto::TableDefinition {
    proto::TableDefinition {
        engine: Some(table_engine(definition)),
        sorting_key: definition.sorting_key.clone(),
        partition_by: definition
            .partition_by
            .as_ref()
            .map(partition_by::print)
            .unwrap_or_default(),
        primary_key: definition.primary_key.clone(),
        ttl: definition.ttl.as_ref().map(|ttl| proto::TableTtl {
            column: ttl.column.clone(),
            keep: Some(duration(Duration::from_secs(ttl.seconds))),
        }),
        settings: definition.settings.clone(),
        cluster: definition.cluster.clone().unwrap_or_default(),
    }
}

fn table_engine(definition: &TableDefinition) -> proto::TableEngine {
    use proto::TableEngineType as Type;
    let (kind, version, columns) = match (&definition.engine, definition.replicated) {
        (TableEngine::MergeTree, false) => (Type::MergeTree, None, None),
        (TableEngine::MergeTree, true) => (Type::ReplicatedMergeTree, None, None),
        (TableEngine::ReplacingMergeTree { version }, false) => (Type::ReplacingMergeTree, version.clone(), None),
        (TableEngine::ReplacingMergeTree { version }, true) => {
            (Type::ReplicatedReplacingMergeTree, version.clone(), None)
        }
        (TableEngine::SummingMergeTree { columns }, false) => (Type::SummingMergeTree, None, Some(columns.clone())),
        (TableEngine::SummingMergeTree { columns }, true) => {
            (Type::ReplicatedSummingMergeTree, None, Some(columns.clone()))
        }
        (TableEngine::Null, _) => (Type::Null, None, None),
    };
    proto::TableEngine {
        r#type: kind.into(),
        version_column_id: version.unwrap_or_default(),
        column_ids: columns.unwrap_or_default(),
    }
}

fn column(column: &Column) -> proto::Column {
    proto::Column {
        name: column.name.clone(),
        r#type: column.data_type.clone(),
    }
}

fn field_mapping(mapping: &FieldMapping) -> proto::FieldMapping {
    proto::FieldMapping {
        source_field: mapping.source_field.clone(),
        destination_field: mapping.destination_field.clone(),
        constant: mapping.constant.clone().unwrap_or_default(),
        required: mapping.required,
    }
}

fn decoding(decoding: &Decoding) -> proto::Decoding {
    proto::Decoding {
        on_unknown_field: match decoding.on_unknown_field {
            UnknownFieldPolicy::Ignore => proto::UnknownFieldPolicy::Ignore.into(),
            UnknownFieldPolicy::Reject => proto::UnknownFieldPolicy::Reject.into(),
        },
        flatten_separator: decoding.flatten_separator.clone().unwrap_or_default(),
        keep_packed: decoding.keep_packed,
        on_out_of_range: match decoding.on_out_of_range {
            OutOfRangePolicy::Keep => proto::OutOfRangePolicy::Keep.into(),
            OutOfRangePolicy::Drop => proto::OutOfRangePolicy::Drop.into(),
            OutOfRangePolicy::Reject => proto::OutOfRangePolicy::Reject.into(),
        },
        envelope: match decoding.envelope {
            None => proto::Envelope::Unspecified.into(),
            Some(Envelope::CloudwatchLogs) => proto::Envelope::CloudwatchLogs.into(),
            Some(Envelope::Eventbridge) => proto::Envelope::Eventbridge.into(),
            Some(Envelope::Sns) => proto::Envelope::Sns.into(),
            Some(Envelope::DynamodbStream) => proto::Envelope::DynamodbStream.into(),
        },
    }
}

fn settings(spec: &PipeSpec) -> proto::Settings {
    let settings = &spec.settings;
    let compression = match settings.compression {
        Compression::Lz4 => proto::Compression::Lz4,
        Compression::None => proto::Compression::None,
        Compression::Zstd => proto::Compression::Zstd,
    };
    proto::Settings {
        max_batch_rows: settings.max_batch_rows,
        max_batch_bytes: settings.max_batch_bytes,
        max_insert_wait: Some(duration(settings.max_insert_wait)),
        compression: compression.into(),
        delivery: delivery(settings.delivery).into(),
        on_data_gap: match settings.on_data_gap {
            DataGapPolicy::Halt => proto::DataGapPolicy::Halt.into(),
            DataGapPolicy::Resume => proto::DataGapPolicy::Resume.into(),
        },
        max_rejected_records: settings.max_rejected_records,
    }
}

/// A promise.
#[must_use]
pub fn delivery(delivery: Delivery) -> proto::Delivery {
    match delivery {
        Delivery::ExactlyOnce => proto::Delivery::ExactlyOnce,
        Delivery::AtLeastOnce => proto::Delivery::AtLeastOnce,
    }
}

/// A desired state.
#[must_use]
pub fn desired_state(desired: DesiredState) -> proto::DesiredState {
    match desired {
        DesiredState::Running => proto::DesiredState::Running,
        DesiredState::Stopped => proto::DesiredState::Stopped,
    }
}

/// Counts.
#[must_use]
pub fn totals(totals: Totals) -> proto::PipeTotals {
    proto::PipeTotals {
        rows: totals.rows,
        rejected_records: totals.rejected_records,
        records: totals.records,
        bytes: totals.bytes,
        batches: totals.batches,
    }
}

/// A credential without its secret.
#[must_use]
pub fn credential(stored: &StoredCredential) -> proto::Credential {
    use proto::credential::Kind;
    let kind = match &stored.kind {
        CredentialKind::AwsKeys { access_key_id } => Kind::AwsKeys(proto::AwsKeys {
            access_key_id: access_key_id.clone(),
            secret_access_key: String::new(),
            session_token: String::new(),
        }),
        CredentialKind::AwsRole {
            role_arn,
            external_id,
            source,
            ..
        } => Kind::AwsRole(proto::AwsRole {
            role_arn: role_arn.clone(),
            external_id: external_id.clone().unwrap_or_default(),
            source_credential: source.as_ref().map(ToString::to_string).unwrap_or_default(),
        }),
        CredentialKind::AwsAmbient => Kind::AwsAmbient(proto::AwsAmbient {}),
        CredentialKind::ClickHouseUser { username } => Kind::ClickhouseUser(proto::ClickHouseUser {
            username: username.clone(),
            password: String::new(),
        }),
    };
    proto::Credential {
        name: stored.name.to_string(),
        uid: stored.uid.to_string(),
        display_name: stored.display_name.clone(),
        kind: Some(kind),
        fingerprint: stored.fingerprint.clone(),
        create_time: Some(timestamp(stored.created)),
    }
}

/// What happened to a pipe.
#[must_use]
pub fn event(event: Event) -> proto::PipeEvent {
    let severity = match event.severity {
        Severity::Info => proto::EventSeverity::Info,
        Severity::Warning => proto::EventSeverity::Warning,
        Severity::Error => proto::EventSeverity::Error,
    };
    proto::PipeEvent {
        event_id: event.id.to_string(),
        event_time: Some(timestamp(event.time)),
        kind: event.kind,
        severity: severity.into(),
        actor: event.actor,
        shard_id: event.shard.map(|shard| shard.to_string()).unwrap_or_default(),
        message: event.message,
        details: event.details,
    }
}

//! What a worker needs to run a lane, as messages.

use jiff::Timestamp;
use millrace_common::{
    aws,
    batch::OpenBatch,
    ids::{Epoch, PipeUid, ShardId},
    pipe::{
        Compression, Delivery, Envelope, FanOut, MappedColumn, OutOfRangePolicy, PipeSpec, ResolvedSpec, Settings,
        UnknownFieldPolicy, managed_consumer,
    },
    position::{Position, Slice},
};
use millrace_proto::worker::v1;
use secrecy::{ExposeSecret as _, SecretString};

/// One revision of a pipe, with its secrets.
pub fn pipe_spec(
    pipe: PipeUid,
    spec: &PipeSpec,
    resolved: &ResolvedSpec,
    aws: &aws::Credential,
    clickhouse: (&str, &SecretString),
) -> v1::PipeSpec {
    v1::PipeSpec {
        revision: resolved.revision.0,
        kinesis: Some(v1::KinesisSource {
            stream_arn: resolved.stream.arn.clone(),
            stream_name: resolved.stream.name.clone(),
            stream_created: Some(timestamp(resolved.stream.created)),
            region: spec.source.region.clone(),
            endpoint: spec.source.endpoint.clone().unwrap_or_default(),
            end_timestamp: spec.source.end.map(timestamp),
            credential: Some(aws_credential(aws)),
            consumer_arn: match &spec.source.fan_out {
                Some(FanOut::Consumer(arn)) => arn.clone(),
                Some(FanOut::Managed) | None => String::new(),
            },
            consumer_name: match &spec.source.fan_out {
                Some(FanOut::Managed) => managed_consumer(pipe),
                Some(FanOut::Consumer(_)) | None => String::new(),
            },
            max_get_records_per_second: spec.source.polling.calls_per_second.unwrap_or_default(),
            max_read_bytes_per_second: spec.source.polling.bytes_per_second.unwrap_or_default(),
        }),
        clickhouse: Some(v1::ClickHouseDestination {
            endpoint: spec.destination.endpoint.clone(),
            username: clickhouse.0.to_owned(),
            password: clickhouse.1.expose_secret().to_owned(),
            database: spec.destination.database.clone(),
            table: spec.destination.table.clone(),
            error_table: spec.destination.error_table.clone(),
        }),
        columns: resolved.columns.iter().map(column).collect(),
        time_zone: resolved.time_zone.clone(),
        decoding: Some(v1::Decoding {
            refuse_unknown_fields: spec.decoding.on_unknown_field == UnknownFieldPolicy::Reject,
            flatten_separator: spec.decoding.flatten_separator.clone().unwrap_or_default(),
            keep_packed: spec.decoding.keep_packed,
            on_out_of_range: match spec.decoding.on_out_of_range {
                OutOfRangePolicy::Keep => v1::OutOfRangePolicy::Unspecified,
                OutOfRangePolicy::Drop => v1::OutOfRangePolicy::Drop,
                OutOfRangePolicy::Reject => v1::OutOfRangePolicy::Reject,
            }
            .into(),
            envelope: match spec.decoding.envelope {
                None => v1::Envelope::Unspecified,
                Some(Envelope::CloudwatchLogs) => v1::Envelope::CloudwatchLogs,
                Some(Envelope::Eventbridge) => v1::Envelope::Eventbridge,
                Some(Envelope::Sns) => v1::Envelope::Sns,
                Some(Envelope::DynamodbStream) => v1::Envelope::DynamodbStream,
            }
            .into(),
        }),
        batch: Some(settings(&spec.settings)),
    }
}

/// The oldest protocol in which a worker does all that a specification says: one of before passes over fields that it does not know.
///
/// Everything is named here, so that whoever adds a field has to say since when it is known.
#[must_use]
pub fn protocol_required(spec: &v1::PipeSpec) -> u32 {
    let v1::PipeSpec {
        revision: _,
        kinesis,
        clickhouse: _,
        columns: _,
        batch: _,
        time_zone: _,
        decoding,
    } = spec;
    let decoding = decoding.as_ref().is_some_and(|decoding| {
        let v1::Decoding {
            refuse_unknown_fields: _,
            flatten_separator: _,
            keep_packed: _,
            on_out_of_range,
            envelope,
        } = decoding;
        *on_out_of_range != 0 || *envelope != 0
    });
    let source = kinesis.as_ref().is_some_and(|kinesis| {
        let v1::KinesisSource {
            stream_arn: _,
            stream_name: _,
            region: _,
            endpoint: _,
            credential,
            stream_created: _,
            end_timestamp: _,
            consumer_arn: _,
            consumer_name: _,
            max_get_records_per_second,
            max_read_bytes_per_second,
        } = kinesis;
        *max_get_records_per_second != 0
            || *max_read_bytes_per_second != 0
            || credential.as_ref().is_some_and(names_its_source)
    });
    if decoding || source { 2 } else { 1 }
}

/// Whether a role says with what it is assumed.
fn names_its_source(credential: &v1::AwsCredential) -> bool {
    use v1::aws_credential::Kind;
    match &credential.kind {
        Some(Kind::Role(role)) => role.source.is_some(),
        Some(Kind::Keys(_) | Kind::Ambient(_)) | None => false,
    }
}

fn aws_credential(credential: &aws::Credential) -> v1::AwsCredential {
    use v1::aws_credential::Kind;
    let kind = match credential {
        aws::Credential::Keys {
            access_key_id,
            secret_access_key,
            session_token,
        } => Kind::Keys(v1::AwsKeys {
            access_key_id: access_key_id.clone(),
            secret_access_key: secret_access_key.expose_secret().to_owned(),
            session_token: session_token
                .as_ref()
                .map(|token| token.expose_secret().to_owned())
                .unwrap_or_default(),
        }),
        aws::Credential::Role {
            role_arn,
            external_id,
            session_name,
            source,
        } => Kind::Role(Box::new(v1::AwsRole {
            role_arn: role_arn.clone(),
            external_id: external_id.clone().unwrap_or_default(),
            session_name: session_name.clone(),
            source: Some(Box::new(aws_credential(source))),
        })),
        aws::Credential::Ambient => Kind::Ambient(v1::AwsAmbient {}),
    };
    v1::AwsCredential { kind: Some(kind) }
}

fn column(column: &MappedColumn) -> v1::MappedColumn {
    v1::MappedColumn {
        name: column.name.clone(),
        r#type: column.data_type.clone(),
        has_default: column.has_default,
        source_field: column.source_field.clone(),
        constant: column.constant.clone().unwrap_or_default(),
        required: column.required,
    }
}

fn settings(settings: &Settings) -> v1::BatchSettings {
    v1::BatchSettings {
        max_rows: settings.max_batch_rows,
        max_bytes: settings.max_batch_bytes,
        // The API keeps it far below what a protobuf duration can hold.
        max_wait: settings.max_insert_wait.try_into().ok(),
        compression: match settings.compression {
            Compression::Lz4 => v1::Compression::Lz4,
            Compression::Zstd => v1::Compression::Zstd,
            Compression::None => v1::Compression::None,
        }
        .into(),
        exactly_once: settings.delivery == Delivery::ExactlyOnce,
    }
}

/// A shard to read, from its frontier on.
pub fn assigned_shard(
    shard: &ShardId,
    epoch: Epoch,
    start: &Position,
    complete_until: Option<Timestamp>,
) -> v1::AssignedShard {
    v1::AssignedShard {
        shard_id: shard.to_string(),
        epoch: epoch.0,
        start: Some(position(start)),
        complete_until: complete_until.map(timestamp),
    }
}

/// A batch to replay.
pub fn open_batch(batch: &OpenBatch) -> v1::OpenBatch {
    v1::OpenBatch {
        batch_id: batch.id.to_string(),
        revision: batch.revision.0,
        slices: batch.slices.iter().map(slice).collect(),
        rows: batch.counts.rows,
        rejected_records: batch.counts.rejected_records,
        digest: batch.digest.to_vec(),
        format: batch.terms.format,
        table_definition: batch.terms.table.clone(),
        part: batch.terms.part,
        condemned: batch.terms.condemned.clone().unwrap_or_default(),
        records: batch.counts.records,
        bytes: batch.counts.bytes,
        first_records: batch
            .terms
            .firsts
            .iter()
            .map(|(shard, number)| (shard.to_string(), number.to_string()))
            .collect(),
    }
}

fn slice(slice: &Slice) -> v1::Slice {
    v1::Slice {
        shard_id: slice.shard.to_string(),
        epoch: 0,
        from_exclusive: Some(position(&slice.from_exclusive)),
        to_inclusive: slice.to_inclusive.to_string(),
    }
}

/// A place in a shard.
pub fn position(position: &Position) -> v1::Position {
    use v1::position::Place;
    let place = match position {
        Position::TrimHorizon => Place::TrimHorizon(v1::TrimHorizon {}),
        Position::AtTimestamp(time) => Place::AtTimestamp(timestamp(*time)),
        Position::After(sequence_number) => Place::AfterSequenceNumber(sequence_number.to_string()),
    };
    v1::Position { place: Some(place) }
}

/// Seconds rounded down and nanoseconds not negative, as a protobuf timestamp wants it; jiff rounds towards zero.
fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    let nanos = time.as_nanosecond();
    prost_types::Timestamp {
        seconds: nanos.div_euclid(1_000_000_000).try_into().unwrap_or_default(),
        nanos: nanos.rem_euclid(1_000_000_000).try_into().unwrap_or_default(),
    }
}

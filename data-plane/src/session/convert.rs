//! Between the wire and this crate. What a peer sends is checked here once; a bad message is an [`Error`], never a panic.
//!
//! An id that does not parse makes the whole message worthless. A specification that does not is the fault of one lane:
//! the others run.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use millrace_common::{
    aws::{
        self,
        policy::{Scope, Usage},
    },
    batch::{Counts, OpenBatch, Terms},
    gap::DataGap,
    ids::{BatchId, Epoch, Generation, PipeUid, Revision, SequenceNumber, ShardId, WorkerInstance},
    pipe::{
        Compression, Decoding, Delivery, Envelope, MappedColumn, OutOfRangePolicy, PollingBudget, StreamIdentity,
        UnknownFieldPolicy,
    },
    position::{Position, Slice},
};
use millrace_proto::worker::v1 as wire;
use prost::Message as _;
use secrecy::SecretString;
use xxhash_rust::xxh3::xxh3_128;

use super::AssignmentSet;
use crate::{
    batch::cut::Limits,
    lane::{
        fault::Fault,
        spec::{Assignment, Destination, Fingerprint, Grant, Source, Spec},
        status::LaneStatus,
    },
    source::kinesis::Consumer,
};

/// Attempts of one AWS call: readers have their own backoff.
const AWS_ATTEMPTS: u32 = 1;

/// Zone of texts without one, where the control plane does not say.
const DEFAULT_TIME_ZONE: &str = "UTC";

/// Why a message of the control plane cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// A field that has to be set is not.
    #[error("{0} is not set")]
    Missing(&'static str),
    /// A field holds something else than it should.
    #[error("{field}: {message}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        message: String,
    },
}

fn invalid(field: &'static str, error: &dyn std::fmt::Display) -> Error {
    Error::Invalid {
        field,
        message: error.to_string(),
    }
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(field: &'static str, text: &str) -> Result<T, Error> {
    text.parse().map_err(|error: T::Err| invalid(field, &error))
}

fn set<T>(field: &'static str, value: Option<T>) -> Result<T, Error> {
    value.ok_or(Error::Missing(field))
}

fn optional(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// A duration of the wire that must not be negative.
pub(super) fn duration(field: &'static str, value: Option<prost_types::Duration>) -> Result<Duration, Error> {
    let value = set(field, value)?;
    // Looked at here because the conversion negates the seconds, which overflows for the least of them.
    if value.seconds < 0 || value.nanos < 0 {
        return Err(invalid(field, &"must not be negative"));
    }
    Duration::try_from(value).map_err(|error| invalid(field, &error))
}

fn timestamp(field: &'static str, value: &prost_types::Timestamp) -> Result<Timestamp, Error> {
    Timestamp::new(value.seconds, value.nanos).map_err(|error| invalid(field, &error))
}

fn optional_time(field: &'static str, value: Option<&prost_types::Timestamp>) -> Result<Option<Timestamp>, Error> {
    value.map(|value| timestamp(field, value)).transpose()
}

/// The desired state of a worker.
pub(super) fn assignment_set(set: wire::AssignmentSet) -> Result<AssignmentSet, Error> {
    let lanes = set.lanes.into_iter().map(assignment).collect::<Result<Vec<_>, _>>()?;
    Ok(AssignmentSet {
        generation: Generation(set.generation),
        lanes,
    })
}

fn assignment(lane: wire::Lane) -> Result<Assignment, Error> {
    let current = set("lanes.spec", lane.spec)?;
    let current_revision = Revision(current.revision);
    let mut specs = BTreeMap::new();
    // The current one last, so that it wins.
    for spec in lane.replay_specs.into_iter().chain([current]) {
        let revision = Revision(spec.revision);
        let understood = self::spec(spec).map(Arc::new).map_err(|error| {
            Fault::internal(format!(
                "the control plane sent a specification that this worker cannot use: {error}"
            ))
        });
        specs.insert(revision, understood);
    }
    let shards = lane.shards.into_iter().map(assigned_shard).collect::<Result<_, _>>()?;
    let open_batches = lane
        .open_batches
        .into_iter()
        .map(open_batch)
        .collect::<Result<_, _>>()?;
    Ok(Assignment {
        pipe: parse::<PipeUid>("lanes.pipe_uid", &lane.pipe_uid)?,
        name: lane.pipe_name,
        current: current_revision,
        specs,
        shards,
        open_batches,
    })
}

fn assigned_shard(shard: wire::AssignedShard) -> Result<(ShardId, Grant), Error> {
    let id = parse("shards.shard_id", &shard.shard_id)?;
    let start = position(set("shards.start", shard.start)?)?;
    Ok((
        id,
        Grant {
            epoch: Epoch(shard.epoch),
            start,
            complete_until: optional_time("shards.complete_until", shard.complete_until.as_ref())?,
        },
    ))
}

fn spec(spec: wire::PipeSpec) -> Result<Spec, Error> {
    let batch = set("spec.batch", spec.batch)?;
    if batch.max_rows == 0 || batch.max_bytes == 0 {
        return Err(invalid("spec.batch", &"a batch must be allowed to hold something"));
    }
    Ok(Spec {
        revision: Revision(spec.revision),
        source: source(set("spec.kinesis", spec.kinesis)?)?,
        destination: destination(set("spec.clickhouse", spec.clickhouse)?),
        columns: spec.columns.into_iter().map(column).collect(),
        decoding: decoding(spec.decoding.unwrap_or_default())?,
        // A control plane that does not know of zones had all of its specifications made with this one.
        time_zone: optional(spec.time_zone).unwrap_or_else(|| DEFAULT_TIME_ZONE.to_owned()),
        limits: Limits {
            rows: batch.max_rows,
            bytes: batch.max_bytes,
            wait: duration("spec.batch.max_wait", batch.max_wait)?,
        },
        compression: compression(batch.compression)?,
        delivery: if batch.exactly_once {
            Delivery::ExactlyOnce
        } else {
            Delivery::AtLeastOnce
        },
    })
}

fn compression(given: i32) -> Result<Compression, Error> {
    match wire::Compression::try_from(given) {
        Ok(wire::Compression::Lz4) => Ok(Compression::Lz4),
        Ok(wire::Compression::Zstd) => Ok(Compression::Zstd),
        Ok(wire::Compression::None | wire::Compression::Unspecified) => Ok(Compression::None),
        Err(error) => Err(invalid("spec.batch.compression", &error)),
    }
}

fn decoding(decoding: wire::Decoding) -> Result<Decoding, Error> {
    let on_out_of_range = wire::OutOfRangePolicy::try_from(decoding.on_out_of_range);
    let envelope = wire::Envelope::try_from(decoding.envelope);
    Ok(Decoding {
        on_unknown_field: if decoding.refuse_unknown_fields {
            UnknownFieldPolicy::Reject
        } else {
            UnknownFieldPolicy::Ignore
        },
        flatten_separator: optional(decoding.flatten_separator),
        keep_packed: decoding.keep_packed,
        on_out_of_range: match on_out_of_range.map_err(|error| invalid("spec.decoding.on_out_of_range", &error))? {
            wire::OutOfRangePolicy::Unspecified => OutOfRangePolicy::Keep,
            wire::OutOfRangePolicy::Drop => OutOfRangePolicy::Drop,
            wire::OutOfRangePolicy::Reject => OutOfRangePolicy::Reject,
        },
        envelope: match envelope.map_err(|error| invalid("spec.decoding.envelope", &error))? {
            wire::Envelope::Unspecified => None,
            wire::Envelope::CloudwatchLogs => Some(Envelope::CloudwatchLogs),
            wire::Envelope::Eventbridge => Some(Envelope::Eventbridge),
            wire::Envelope::Sns => Some(Envelope::Sns),
            wire::Envelope::DynamodbStream => Some(Envelope::DynamodbStream),
        },
    })
}

fn column(column: wire::MappedColumn) -> MappedColumn {
    MappedColumn {
        name: column.name,
        data_type: column.r#type,
        has_default: column.has_default,
        source_field: column.source_field,
        constant: optional(column.constant),
        required: column.required,
    }
}

fn source(source: wire::KinesisSource) -> Result<Source, Error> {
    let fingerprint = Fingerprint(xxh3_128(&source.encode_to_vec()));
    let created = timestamp(
        "kinesis.stream_created",
        &set("kinesis.stream_created", source.stream_created)?,
    )?;
    let kind = set(
        "kinesis.credential",
        source.credential.and_then(|credential| credential.kind),
    )?;
    // A consumer is looked up by its name, and never registered here.
    let usage = match (source.consumer_arn.as_str(), source.consumer_name.as_str()) {
        ("", "") => Usage::Poll,
        _ => Usage::FanOut,
    };
    let scope = Scope {
        stream_arn: source.stream_arn.clone(),
        usage,
    };
    Ok(Source {
        stream: StreamIdentity {
            arn: source.stream_arn,
            name: source.stream_name,
            created,
        },
        access: aws::Access {
            scope: Some(scope),
            ..aws::Access::new(
                source.region,
                optional(source.endpoint),
                credential(kind)?,
                AWS_ATTEMPTS,
            )
        },
        end: optional_time("kinesis.end_timestamp", source.end_timestamp.as_ref())?,
        consumer: match (optional(source.consumer_arn), optional(source.consumer_name)) {
            (Some(arn), _) => Some(Consumer::Arn(arn)),
            (None, Some(name)) => Some(Consumer::Name(name)),
            (None, None) => None,
        },
        polling: PollingBudget {
            calls_per_second: Some(source.max_get_records_per_second).filter(|calls| *calls != 0),
            bytes_per_second: Some(source.max_read_bytes_per_second).filter(|bytes| *bytes != 0),
        },
        fingerprint,
    })
}

/// The credential. A role that does not say who assumes it is none: whom this worker does not know must not become itself.
fn credential(kind: wire::aws_credential::Kind) -> Result<aws::Credential, Error> {
    use wire::aws_credential::Kind;
    Ok(match kind {
        Kind::Keys(keys) => aws::Credential::Keys {
            access_key_id: keys.access_key_id,
            secret_access_key: keys.secret_access_key.into(),
            session_token: optional(keys.session_token).map(SecretString::from),
        },
        Kind::Role(role) => aws::Credential::Role {
            role_arn: role.role_arn,
            external_id: optional(role.external_id),
            session_name: role.session_name,
            source: Box::new(credential(set(
                "kinesis.credential.role.source",
                role.source.and_then(|source| source.kind),
            )?)?),
        },
        Kind::Ambient(wire::AwsAmbient {}) => aws::Credential::Ambient,
    })
}

fn destination(destination: wire::ClickHouseDestination) -> Destination {
    let fingerprint = Fingerprint(xxh3_128(&destination.encode_to_vec()));
    Destination {
        endpoint: destination.endpoint,
        username: destination.username,
        password: destination.password.into(),
        database: destination.database,
        table: destination.table,
        error_table: destination.error_table,
        fingerprint,
    }
}

fn position(position: wire::Position) -> Result<Position, Error> {
    use wire::position::Place;
    Ok(match set("position.place", position.place)? {
        Place::TrimHorizon(wire::TrimHorizon {}) => Position::TrimHorizon,
        Place::AtTimestamp(time) => Position::AtTimestamp(timestamp("position.at_timestamp", &time)?),
        Place::AfterSequenceNumber(number) => Position::After(parse("position.after_sequence_number", &number)?),
    })
}

fn open_batch(batch: wire::OpenBatch) -> Result<OpenBatch, Error> {
    let digest = batch.digest.as_slice().try_into().map_err(|_| {
        invalid(
            "open_batches.digest",
            &format!("{} bytes instead of 16", batch.digest.len()),
        )
    })?;
    Ok(OpenBatch {
        id: parse::<BatchId>("open_batches.batch_id", &batch.batch_id)?,
        revision: Revision(batch.revision),
        slices: batch.slices.into_iter().map(slice).collect::<Result<_, _>>()?,
        counts: Counts {
            rows: batch.rows,
            rejected_records: batch.rejected_records,
            records: batch.records,
            bytes: batch.bytes,
        },
        digest,
        terms: Terms {
            format: batch.format.max(1),
            table: batch.table_definition,
            part: batch.part,
            condemned: optional(batch.condemned),
            firsts: batch.first_records.iter().map(first).collect::<Result<_, _>>()?,
        },
    })
}

fn first((shard, number): (&String, &String)) -> Result<(ShardId, SequenceNumber), Error> {
    Ok((
        parse("open_batches.first_records", shard)?,
        parse("open_batches.first_records", number)?,
    ))
}

fn slice(slice: wire::Slice) -> Result<Slice, Error> {
    Ok(Slice {
        shard: parse("slices.shard_id", &slice.shard_id)?,
        from_exclusive: position(set("slices.from_exclusive", slice.from_exclusive)?)?,
        to_inclusive: parse::<SequenceNumber>("slices.to_inclusive", &slice.to_inclusive)?,
    })
}

/// A worker instance.
pub(crate) fn to_identity(worker: &WorkerInstance) -> wire::WorkerIdentity {
    wire::WorkerIdentity {
        worker_id: worker.worker.to_string(),
        incarnation: worker.incarnation.to_string(),
    }
}

fn to_position(position: &Position) -> wire::Position {
    use wire::position::Place;
    let place = match position {
        Position::TrimHorizon => Place::TrimHorizon(wire::TrimHorizon {}),
        Position::AtTimestamp(time) => Place::AtTimestamp(to_timestamp(*time)),
        Position::After(number) => Place::AfterSequenceNumber(number.to_string()),
    };
    wire::Position { place: Some(place) }
}

fn to_timestamp(time: Timestamp) -> prost_types::Timestamp {
    // The wire wants nanoseconds that count forwards, also before 1970.
    let nanos = time.as_nanosecond();
    let (seconds, nanos) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    prost_types::Timestamp {
        seconds: i64::try_from(seconds).unwrap_or_default(),
        nanos: i32::try_from(nanos).unwrap_or_default(),
    }
}

/// A duration for the wire; one beyond its range becomes the longest.
pub(super) fn to_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(duration).unwrap_or(prost_types::Duration {
        seconds: 315_576_000_000,
        nanos: 0,
    })
}

/// The slices of a batch with the epochs that they are held under.
pub(crate) fn to_slices(batch: &OpenBatch, epochs: &BTreeMap<ShardId, Epoch>) -> Vec<wire::Slice> {
    let slice = |slice: &Slice| wire::Slice {
        shard_id: slice.shard.to_string(),
        epoch: epochs.get(&slice.shard).copied().unwrap_or_default().0,
        from_exclusive: Some(to_position(&slice.from_exclusive)),
        to_inclusive: slice.to_inclusive.to_string(),
    };
    batch.slices.iter().map(slice).collect()
}

/// A batch to be prepared.
pub(crate) fn to_open_batch(batch: &OpenBatch, epochs: &BTreeMap<ShardId, Epoch>) -> wire::OpenBatch {
    wire::OpenBatch {
        batch_id: batch.id.to_string(),
        revision: batch.revision.0,
        slices: to_slices(batch, epochs),
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

/// The observed state of a worker.
pub(super) fn to_report(generation: Generation, lanes: BTreeMap<PipeUid, LaneStatus>) -> wire::Report {
    let lanes = lanes
        .into_iter()
        .map(|(pipe, status)| to_lane_report(pipe, status))
        .collect();
    wire::Report {
        generation: generation.0,
        lanes,
    }
}

fn to_lane_report(pipe: PipeUid, status: LaneStatus) -> wire::LaneReport {
    let shard = |shard: crate::lane::status::ShardStatus| wire::ShardReport {
        shard_id: shard.shard.to_string(),
        epoch: shard.epoch.0,
        read_sequence_number: shard.read.map(|number| number.to_string()).unwrap_or_default(),
        lag: shard.lag.map(to_duration),
        finished: shard.finished.is_some(),
        children: shard.finished.unwrap_or_default().iter().map(to_child).collect(),
        bytes_per_second: shard.bytes_per_second,
        complete_until: shard.complete_until.map(to_timestamp),
        gap: shard.gap.map(to_gap),
        out_of_range_messages: shard.out_of_range,
        reader_restarts: shard.restarts,
    };
    wire::LaneReport {
        pipe_uid: pipe.to_string(),
        shards: status.shards.into_iter().map(shard).collect(),
        fault: status.fault.map(|fault| wire::LaneFault {
            reason: fault.reason.to_owned(),
            message: fault.message,
            permanent: fault.permanent,
        }),
    }
}

fn to_gap(gap: DataGap) -> wire::DataGap {
    wire::DataGap {
        position: Some(to_position(&gap.position)),
        batch_id: gap.batch.map(|batch| batch.to_string()).unwrap_or_default(),
        from_time: gap.from.map(to_timestamp),
        to_time: gap.to.map(to_timestamp),
        shard_gone: gap.shard_gone,
        message: gap.message,
    }
}

fn to_child(child: &crate::source::ChildShard) -> wire::ChildShard {
    wire::ChildShard {
        shard_id: child.id.to_string(),
        parent_shard_ids: child.parents.iter().map(ToString::to_string).collect(),
    }
}

#[cfg(test)]
mod tests;

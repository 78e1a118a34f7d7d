//! Between the wire and the domain. What comes in is checked here and nowhere else; an error names the field at fault.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    str::FromStr,
    time::Duration,
};

use jiff::Timestamp;
use millrace_common::{
    batch::{Counts, OpenBatch, Terms},
    error::ApiError,
    gap::DataGap,
    ids::{BatchId, Epoch, Generation, PipeUid, Revision, SequenceNumber, ShardId, WorkerInstance},
    position::{Position, Slice},
};
use millrace_proto::worker::v1;

use super::{Capacity, Hello, LaneFault, LaneReport, Report, ShardReport};
use crate::scheduler::lineage::Child;

mod lane;

pub use lane::{assigned_shard, open_batch, pipe_spec, position, protocol_required};

/// Longest reason of a fault: as in `google.rpc.ErrorInfo`.
const MAX_REASON: usize = 63;
/// Longest message of a fault that is kept. Longer ones are cut: they are for people.
const MAX_MESSAGE: usize = 2000;
/// Longest program version that is kept.
const MAX_VERSION: usize = 100;
/// Longest fingerprint of a table's definition.
const MAX_DEFINITION: usize = 200;
/// Longest words of ClickHouse that a record is condemned with.
const MAX_CONDEMNED: usize = 8000;
/// Children of one shard in a report: Kinesis splits into two.
const MAX_CHILDREN: usize = 16;

/// A batch to prepare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepare {
    /// Who.
    pub worker: WorkerInstance,
    /// The pipe.
    pub pipe: PipeUid,
    /// The batch.
    pub batch: OpenBatch,
    /// The epochs that the caller holds its shards under.
    pub epochs: Vec<(ShardId, Epoch)>,
}

/// A batch to replace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replace {
    /// Who.
    pub worker: WorkerInstance,
    /// The pipe.
    pub pipe: PipeUid,
    /// The batch.
    pub batch: BatchId,
    /// What takes its place.
    pub parts: Vec<OpenBatch>,
    /// The epochs that the caller holds their shards under.
    pub epochs: Vec<(ShardId, Epoch)>,
}

/// A batch to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Who.
    pub worker: WorkerInstance,
    /// The pipe.
    pub pipe: PipeUid,
    /// The batch.
    pub batch: BatchId,
    /// What it covers.
    pub slices: Vec<Slice>,
    /// The epochs that the caller holds its shards under.
    pub epochs: Vec<(ShardId, Epoch)>,
    /// What it covers, in numbers.
    pub counts: Counts,
    /// The revision that it was decoded with; the current one if it was not told.
    pub revision: Option<Revision>,
}

/// Reads a Hello.
///
/// # Errors
/// INVALID_ARGUMENT with the field at fault.
pub fn hello(message: v1::Hello) -> Result<Hello, ApiError> {
    let capacity = message.capacity.unwrap_or_default();
    Ok(Hello {
        worker: worker(message.worker, "hello.worker")?,
        protocol: (message.protocol_min, message.protocol_max),
        program_version: cut(message.program_version, MAX_VERSION),
        capacity: Capacity {
            cores: capacity.cores,
            memory_bytes: capacity.memory_bytes,
        },
        report: report(message.report.unwrap_or_default(), "hello.report")?,
    })
}

/// Reads a Report that is at `path` of its message.
///
/// # Errors
/// INVALID_ARGUMENT with the field at fault.
pub fn report(message: v1::Report, path: &str) -> Result<Report, ApiError> {
    let mut lanes = BTreeMap::new();
    for (n, lane) in message.lanes.into_iter().enumerate() {
        let path = format!("{path}.lanes[{n}]");
        let pipe = parse(&lane.pipe_uid, &path, "pipe_uid")?;
        if lanes.insert(pipe, lane_report(lane, &path)?).is_some() {
            return Err(invalid(&path, "pipe_uid", "named twice"));
        }
    }
    Ok(Report {
        generation: Generation(message.generation),
        lanes,
    })
}

/// Reads a Leave: in how long the worker will have ended.
///
/// # Errors
/// INVALID_ARGUMENT with the field at fault.
pub fn leave(message: &v1::Leave) -> Result<Option<Duration>, ApiError> {
    message
        .deadline
        .map(|left| duration(left, "leave", "deadline"))
        .transpose()
}

fn lane_report(message: v1::LaneReport, path: &str) -> Result<LaneReport, ApiError> {
    let mut shards = BTreeMap::new();
    for (n, shard) in message.shards.into_iter().enumerate() {
        let path = format!("{path}.shards[{n}]");
        let id = parse(&shard.shard_id, &path, "shard_id")?;
        if shards.insert(id, shard_report(shard, &path)?).is_some() {
            return Err(invalid(&path, "shard_id", "named twice"));
        }
    }
    let fault = message
        .fault
        .map(|fault| lane_fault(fault, &format!("{path}.fault")))
        .transpose()?;
    Ok(LaneReport { shards, fault })
}

fn shard_report(message: v1::ShardReport, path: &str) -> Result<ShardReport, ApiError> {
    let rate = message.bytes_per_second;
    if !rate.is_finite() || rate < 0.0 {
        return Err(invalid(
            path,
            "bytes_per_second",
            "must be a finite number, and not negative",
        ));
    }
    if message.children.len() > MAX_CHILDREN {
        return Err(invalid(path, "children", format!("at most {MAX_CHILDREN}")));
    }
    let child = |(n, child): (usize, v1::ChildShard)| {
        let path = format!("{path}.children[{n}]");
        let parents = child.parent_shard_ids.iter().take(MAX_CHILDREN);
        Ok(Child {
            id: parse(&child.shard_id, &path, "shard_id")?,
            parents: parents
                .map(|id| parse(id, &path, "parent_shard_ids"))
                .collect::<Result<_, ApiError>>()?,
        })
    };
    let read = Some(message.read_sequence_number).filter(|text| !text.is_empty());
    Ok(ShardReport {
        epoch: Epoch(message.epoch),
        read: read
            .map(|text| parse(&text, path, "read_sequence_number"))
            .transpose()?,
        lag: message.lag.map(|lag| duration(lag, path, "lag")).transpose()?,
        finished: message.finished,
        children: message
            .children
            .into_iter()
            .enumerate()
            .map(child)
            .collect::<Result<_, ApiError>>()?,
        bytes_per_second: rate,
        complete_until: time(message.complete_until, path, "complete_until")?,
        out_of_range: message.out_of_range_messages,
        restarts: message.reader_restarts,
        gap: message
            .gap
            .map(|gap| data_gap(gap, &format!("{path}.gap")))
            .transpose()?,
    })
}

fn data_gap(message: v1::DataGap, path: &str) -> Result<DataGap, ApiError> {
    let batch = Some(message.batch_id).filter(|text| !text.is_empty());
    Ok(DataGap {
        position: position_of(message.position, path, "position")?,
        batch: batch.map(|text| parse(&text, path, "batch_id")).transpose()?,
        from: time(message.from_time, path, "from_time")?,
        to: time(message.to_time, path, "to_time")?,
        shard_gone: message.shard_gone,
        message: cut(message.message, MAX_MESSAGE),
    })
}

fn time(message: Option<prost_types::Timestamp>, path: &str, field: &str) -> Result<Option<Timestamp>, ApiError> {
    let time = |time: prost_types::Timestamp| Timestamp::new(time.seconds, time.nanos);
    message
        .map(time)
        .transpose()
        .map_err(|_| invalid(path, field, "is not a time"))
}

fn lane_fault(message: v1::LaneFault, path: &str) -> Result<LaneFault, ApiError> {
    let upper_snake = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
    let reason = message.reason;
    if reason.is_empty() || reason.len() > MAX_REASON || !reason.bytes().all(upper_snake) {
        return Err(invalid(
            path,
            "reason",
            format!("must be UPPER_SNAKE_CASE, 1 to {MAX_REASON} characters"),
        ));
    }
    Ok(LaneFault {
        reason,
        message: cut(message.message, MAX_MESSAGE),
        permanent: message.permanent,
    })
}

/// Reads a PrepareBatch request.
///
/// # Errors
/// INVALID_ARGUMENT with the field at fault.
pub fn prepare(request: v1::PrepareBatchRequest) -> Result<Prepare, ApiError> {
    let mut batch = request.batch.ok_or_else(|| invalid("batch", "", "must be set"))?;
    (batch.records, batch.bytes) = (request.records, request.bytes);
    let (batch, epochs) = open(batch, "batch")?;
    Ok(Prepare {
        worker: worker(request.worker, "worker")?,
        pipe: parse(&request.pipe_uid, "", "pipe_uid")?,
        batch,
        epochs,
    })
}

fn open(batch: v1::OpenBatch, path: &str) -> Result<(OpenBatch, Vec<(ShardId, Epoch)>), ApiError> {
    let (slices, epochs) = slices(batch.slices, &format!("{path}.slices"))?;
    let digest = batch.digest.as_slice().try_into();
    let firsts = firsts(batch.first_records, &slices, path)?;
    let open = OpenBatch {
        id: parse(&batch.batch_id, path, "batch_id")?,
        revision: Revision(batch.revision),
        slices,
        counts: Counts {
            rows: batch.rows,
            rejected_records: batch.rejected_records,
            records: batch.records,
            bytes: batch.bytes,
        },
        digest: digest.map_err(|_| invalid(path, "digest", "must be 16 bytes"))?,
        terms: Terms {
            format: batch.format.max(1),
            table: within(batch.table_definition, MAX_DEFINITION, path, "table_definition")?,
            part: batch.part,
            condemned: Some(within(batch.condemned, MAX_CONDEMNED, path, "condemned")?)
                .filter(|words| !words.is_empty()),
            firsts,
        },
    };
    Ok((open, epochs))
}

/// The first records of slices, which are of shards of the batch.
fn firsts(
    numbers: BTreeMap<String, String>,
    slices: &[Slice],
    path: &str,
) -> Result<BTreeMap<ShardId, SequenceNumber>, ApiError> {
    let shards: BTreeSet<&ShardId> = slices.iter().map(|slice| &slice.shard).collect();
    let mut firsts = BTreeMap::new();
    for (shard, number) in numbers {
        let shard: ShardId = parse(&shard, path, "first_records")?;
        if !shards.contains(&shard) {
            return Err(invalid(path, "first_records", format!("no slice of {shard}")));
        }
        firsts.insert(shard, parse(&number, path, "first_records")?);
    }
    Ok(firsts)
}

/// A text of the worker's own making, which is not cut because it decides what is built.
fn within(text: String, limit: usize, path: &str, field: &str) -> Result<String, ApiError> {
    if text.len() > limit {
        return Err(invalid(path, field, format!("at most {limit} bytes")));
    }
    Ok(text)
}

/// Reads a ReplaceBatch request.
///
/// # Errors
/// INVALID_ARGUMENT with the field at fault.
pub fn replace(request: v1::ReplaceBatchRequest) -> Result<Replace, ApiError> {
    let (mut parts, mut epochs) = (Vec::with_capacity(request.parts.len()), BTreeMap::new());
    for (n, part) in request.parts.into_iter().enumerate() {
        let (part, of_part) = open(part, &format!("parts[{n}]"))?;
        parts.push(part);
        for (shard, epoch) in of_part {
            // A shard is held under one epoch; the least that is claimed is the one that counts.
            let least = epochs.entry(shard).or_insert(epoch);
            *least = (*least).min(epoch);
        }
    }
    Ok(Replace {
        worker: worker(request.worker, "worker")?,
        pipe: parse(&request.pipe_uid, "", "pipe_uid")?,
        batch: parse(&request.batch_id, "", "batch_id")?,
        parts,
        epochs: epochs.into_iter().collect(),
    })
}

/// Reads a CommitBatch request.
///
/// # Errors
/// INVALID_ARGUMENT with the field at fault.
pub fn commit(request: v1::CommitBatchRequest) -> Result<Commit, ApiError> {
    let (slices, epochs) = slices(request.slices, "slices")?;
    Ok(Commit {
        worker: worker(request.worker, "worker")?,
        pipe: parse(&request.pipe_uid, "", "pipe_uid")?,
        batch: parse(&request.batch_id, "", "batch_id")?,
        slices,
        epochs,
        counts: Counts {
            rows: request.rows,
            rejected_records: request.rejected_records,
            records: request.records,
            bytes: request.bytes,
        },
        revision: Some(Revision(request.revision)).filter(|revision| revision.0 > 0),
    })
}

type Slices = (Vec<Slice>, Vec<(ShardId, Epoch)>);

fn slices(messages: Vec<v1::Slice>, path: &str) -> Result<Slices, ApiError> {
    let (mut slices, mut epochs) = (Vec::with_capacity(messages.len()), Vec::with_capacity(messages.len()));
    for (n, message) in messages.into_iter().enumerate() {
        let path = format!("{path}[{n}]");
        let shard: ShardId = parse(&message.shard_id, &path, "shard_id")?;
        epochs.push((shard.clone(), Epoch(message.epoch)));
        slices.push(Slice {
            shard,
            from_exclusive: position_of(message.from_exclusive, &path, "from_exclusive")?,
            to_inclusive: parse::<SequenceNumber>(&message.to_inclusive, &path, "to_inclusive")?,
        });
    }
    Ok((slices, epochs))
}

fn worker(message: Option<v1::WorkerIdentity>, path: &str) -> Result<WorkerInstance, ApiError> {
    let message = message.ok_or_else(|| invalid(path, "", "must be set"))?;
    Ok(WorkerInstance {
        worker: parse(&message.worker_id, path, "worker_id")?,
        incarnation: parse(&message.incarnation, path, "incarnation")?,
    })
}

fn position_of(message: Option<v1::Position>, path: &str, field: &str) -> Result<Position, ApiError> {
    match message.and_then(|position| position.place) {
        None => Err(invalid(path, field, "must be set")),
        Some(v1::position::Place::TrimHorizon(_)) => Ok(Position::TrimHorizon),
        Some(v1::position::Place::AtTimestamp(time)) => Timestamp::new(time.seconds, time.nanos)
            .map(Position::AtTimestamp)
            .map_err(|_| invalid(path, field, "is not a time")),
        Some(v1::position::Place::AfterSequenceNumber(text)) => Ok(Position::After(parse(&text, path, field)?)),
    }
}

fn duration(message: prost_types::Duration, path: &str, field: &str) -> Result<Duration, ApiError> {
    // Looked at here because the conversion negates the seconds, which overflows for the least of them.
    if message.seconds < 0 || message.nanos < 0 {
        return Err(invalid(path, field, "must not be negative"));
    }
    message
        .try_into()
        .map_err(|_| invalid(path, field, "is not a duration"))
}

fn parse<T: FromStr<Err: Display>>(text: &str, path: &str, field: &str) -> Result<T, ApiError> {
    text.parse()
        .map_err(|error: T::Err| invalid(path, field, error.to_string()))
}

fn invalid(path: &str, field: &str, description: impl Into<String>) -> ApiError {
    let dot = if path.is_empty() || field.is_empty() { "" } else { "." };
    ApiError::invalid_field(format!("{path}{dot}{field}"), description)
}

fn cut(mut text: String, limit: usize) -> String {
    if let Some((at, _)) = text.char_indices().nth(limit) {
        text.truncate(at);
    }
    text
}

#[cfg(test)]
mod tests;

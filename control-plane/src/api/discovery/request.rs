//! What is to be looked at, read from requests.

use std::time::Duration;

use jiff::Timestamp;
use millrace_common::{
    aws::Access,
    error::ApiError,
    ids::{Label, PipeName, ProjectName, ShardId},
    pipe::{Decoding, FanOut, KinesisSource, StreamRef},
};
use millrace_proto::api::v1::{self as proto, sample_records_request::Subject};

use super::input::Input;
use crate::{
    api::{
        Api,
        convert::{self, Violations},
        name, parent,
    },
    discovery::sample::{
        DEFAULT_BYTES, DEFAULT_RECORDS, DEFAULT_WAIT, MAX_BYTES, MAX_RECORDS, MAX_SHARDS, MAX_WAIT, MIN_WAIT, Request,
        Start,
    },
};

/// Records to look at.
pub(super) struct Wanted {
    /// These, if there is no source.
    pub(super) given: Input,
    /// Where to read them.
    pub(super) source: Option<Source>,
    /// How they are unpacked.
    pub(super) decoding: Decoding,
}

/// A stream to read a few records of.
pub(super) struct Source {
    pub(super) access: Access,
    pub(super) stream: StreamRef,
    pub(super) request: Request,
}

/// Decoding is said in one place.
pub(super) fn decoding_of_given() -> ApiError {
    ApiError::invalid_field(
        "decoding",
        "belongs to given records only: set sample.decoding in its place",
    )
}

/// The bounds of a sample. Fields are named below `options`.
pub(super) fn options(given: Option<&proto::SampleOptions>, now: Timestamp, violations: &mut Violations) -> Request {
    let Some(given) = given else {
        return Request::default();
    };
    let start = start(given, now, violations);
    let mut shards = Vec::new();
    if given.shard_ids.len() > MAX_SHARDS {
        violations.add(
            "options.shard_ids",
            format!("names {} shards; at most {MAX_SHARDS} are read", given.shard_ids.len()),
        );
    } else {
        for (index, id) in given.shard_ids.iter().enumerate() {
            match id.parse::<ShardId>() {
                Ok(id) => shards.push(id),
                Err(error) => violations.add(format!("options.shard_ids[{index}]"), error.to_string()),
            }
        }
    }
    let max_records = match given.max_records {
        0 => DEFAULT_RECORDS,
        count if count <= MAX_RECORDS => count,
        count => {
            violations.add("options.max_records", format!("{count} is more than {MAX_RECORDS}"));
            DEFAULT_RECORDS
        }
    };
    let max_bytes = match given.max_bytes {
        0 => DEFAULT_BYTES,
        bytes if bytes <= MAX_BYTES => bytes,
        bytes => {
            violations.add("options.max_bytes", format!("{bytes} is more than {MAX_BYTES}"));
            DEFAULT_BYTES
        }
    };
    let max_wait = match given.max_wait.map(convert::span) {
        None => DEFAULT_WAIT,
        Some(Some(wait)) if (MIN_WAIT..=MAX_WAIT).contains(&wait) => wait,
        Some(_) => {
            let (least, most): (Duration, Duration) = (MIN_WAIT, MAX_WAIT);
            violations.add(
                "options.max_wait",
                format!("must be between {} ms and {} s", least.as_millis(), most.as_secs()),
            );
            DEFAULT_WAIT
        }
    };
    Request {
        start,
        shards,
        max_records,
        max_bytes,
        max_wait,
    }
}

fn start(given: &proto::SampleOptions, now: Timestamp, violations: &mut Violations) -> Start {
    let known = "ITERATOR_TYPE_LATEST, ITERATOR_TYPE_TRIM_HORIZON or ITERATOR_TYPE_AT_TIMESTAMP";
    let start = match proto::IteratorType::try_from(given.iterator_type) {
        Ok(proto::IteratorType::Unspecified | proto::IteratorType::Latest) => Start::Newest,
        Ok(proto::IteratorType::TrimHorizon) => Start::Oldest,
        Ok(proto::IteratorType::AtTimestamp) => return at(given.timestamp, now, violations),
        Err(_) => {
            let value = given.iterator_type;
            violations.add(
                "options.iterator_type",
                format!("{value} is not a value that this server knows; use {known}"),
            );
            Start::Newest
        }
    };
    if given.timestamp.is_some() {
        violations.add(
            "options.timestamp",
            "belongs to ITERATOR_TYPE_AT_TIMESTAMP only: leave it out",
        );
    }
    start
}

fn at(given: Option<prost_types::Timestamp>, now: Timestamp, violations: &mut Violations) -> Start {
    let field = "options.timestamp";
    let time = given
        .filter(|given| (0..1_000_000_000).contains(&given.nanos))
        .and_then(|given| Timestamp::new(given.seconds, given.nanos).ok());
    match (given, time) {
        (None, _) => violations.add(field, "is required with ITERATOR_TYPE_AT_TIMESTAMP"),
        (Some(_), None) => violations.add(field, "is not a valid time"),
        (_, Some(time)) if time > now => violations.add(field, format!("{time} is in the future")),
        (_, Some(time)) if time < Timestamp::UNIX_EPOCH => violations.add(field, format!("{time} is before 1970")),
        (_, Some(time)) => return Start::At(time),
    }
    Start::Newest
}

/// Reading for a sample is polling, whatever the pipe does.
pub(super) fn polled(source: KinesisSource) -> KinesisSource {
    KinesisSource {
        fan_out: None::<FanOut>,
        ..source
    }
}

impl Api {
    /// What a request for a sample asks for.
    pub(super) async fn sampling(&self, request: proto::SampleRecordsRequest) -> Result<Wanted, ApiError> {
        let Some(subject) = &request.subject else {
            return Err(ApiError::invalid_field("subject", "is required: set pipe or planned"));
        };
        let project = match subject {
            Subject::Pipe(pipe) => name::<PipeName>(pipe, "pipe")?.project,
            Subject::Planned(planned) => parent(&planned.parent)?,
        };
        self.sampling_of(&project, request).await
    }

    /// The same as a part of a request that belongs to a project.
    pub(super) async fn sampling_of(
        &self,
        project: &ProjectName,
        request: proto::SampleRecordsRequest,
    ) -> Result<Wanted, ApiError> {
        let mut violations = Violations::new();
        let options = options(request.options.as_ref(), self.clock.now(), &mut violations);
        let decoding = request
            .decoding
            .as_ref()
            .map(|decoding| convert::planned_decoding(decoding, &mut violations));
        let outside = |field: &str| ApiError::invalid_field(field, format!("must belong to {project}"));
        let (source, label, decoding) = match request.subject {
            None => return Err(ApiError::invalid_field("subject", "is required: set pipe or planned")),
            Some(Subject::Pipe(pipe)) => {
                violations.finish()?;
                let pipe_name = name::<PipeName>(&pipe, "pipe")?;
                if pipe_name.project != *project {
                    return Err(outside("pipe"));
                }
                let pipe = self.pipe(&pipe_name).await?;
                let decoding = decoding.unwrap_or(pipe.spec.decoding);
                (pipe.spec.source, pipe.name.id, decoding)
            }
            Some(Subject::Planned(planned)) => {
                // One that belongs elsewhere could name credentials of another project.
                if parent(&planned.parent)? != *project {
                    return Err(outside("planned.parent"));
                }
                let mut kinesis = planned.kinesis.unwrap_or_default();
                // Where a pipe would start does not matter here.
                (kinesis.iterator_type, kinesis.timestamp, kinesis.end_timestamp) = (0, None, None);
                let source = convert::planned_source(kinesis, self.context(project), &mut violations);
                violations.finish()?;
                let Some(source) = source else {
                    // Whatever is missing was reported above.
                    return Err(ApiError::invalid_field("planned.kinesis", "is required"));
                };
                let label: Label = super::SESSION
                    .parse()
                    .map_err(|error: millrace_common::ids::Error| ApiError::internal(&error))?;
                (source, label, decoding.unwrap_or_default())
            }
        };
        self.sampling_from(source, &label, options, decoding).await
    }

    /// A sample of a source, whose endpoint is looked at before it is called.
    pub(super) async fn sampling_from(
        &self,
        source: KinesisSource,
        label: &Label,
        request: Request,
        decoding: Decoding,
    ) -> Result<Wanted, ApiError> {
        let source = polled(source);
        if let Some(endpoint) = &source.endpoint
            && let Err(error) = self.endpoints.check_resolved(endpoint).await
        {
            return Err(ApiError::invalid_field(
                "pipe.source.kinesis.endpoint",
                error.to_string(),
            ));
        }
        let access = self.access_to(&source, label).await?;
        Ok(Wanted {
            given: Input::default(),
            source: Some(Source {
                access,
                stream: source.stream,
                request,
            }),
            decoding,
        })
    }
}

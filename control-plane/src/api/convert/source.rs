//! The source of a pipe.

use jiff::Timestamp;
use millrace_common::pipe::{KinesisSource, StartPosition, StreamRef};
use millrace_proto::api::v1::{self as proto, source::Kind};

use super::{Context, Violations, credential_name, names, unknown_enum};

const KINESIS: &str = "pipe.source.kinesis";
const EXAMPLE_ENDPOINT: &str = "https://vpce-0a1b2c.kinesis.eu-central-1.vpce.amazonaws.com";

pub(super) fn source(
    source: Option<&proto::Source>,
    context: Context<'_>,
    violations: &mut Violations,
) -> Option<KinesisSource> {
    let Some(Kind::Kinesis(kinesis)) = source.and_then(|source| source.kind.as_ref()) else {
        violations.add("pipe.source", "is required: set pipe.source.kinesis");
        return None;
    };
    if proto::Format::try_from(kinesis.format).is_err() {
        unknown_enum(
            "pipe.source.kinesis.format",
            kinesis.format,
            "FORMAT_JSON_EACH_ROW",
            violations,
        );
    }
    let stream = stream(kinesis, violations);
    let region = region(kinesis, stream.as_ref(), violations);
    let start = start(kinesis, context.now, violations);
    let end = end(kinesis, start, violations);
    let credential = credential_name(
        &kinesis.credential,
        "pipe.source.kinesis.credential",
        context.project,
        violations,
    );
    let endpoint = match kinesis.endpoint.as_str() {
        "" => None,
        endpoint => match context.endpoints.parse(endpoint, EXAMPLE_ENDPOINT) {
            Ok(endpoint) => Some(endpoint),
            Err(error) => {
                violations.add("pipe.source.kinesis.endpoint", error.to_string());
                None
            }
        },
    };
    Some(KinesisSource {
        stream: stream?,
        region: region?,
        start: start?,
        credential: credential?,
        endpoint,
        end,
    })
}

fn stream(kinesis: &proto::KinesisSource, violations: &mut Violations) -> Option<StreamRef> {
    match (kinesis.stream_name.as_str(), kinesis.stream_arn.as_str()) {
        ("", "") => {
            violations.add(format!("{KINESIS}.stream_name"), "is required, or stream_arn");
            None
        }
        (name, "") => match names::stream_name(name) {
            Ok(()) => Some(StreamRef::Name(name.to_owned())),
            Err(what) => {
                violations.add(format!("{KINESIS}.stream_name"), what);
                None
            }
        },
        ("", arn) => match names::stream_arn(arn) {
            Ok(_) => Some(StreamRef::Arn(arn.to_owned())),
            Err(what) => {
                violations.add(format!("{KINESIS}.stream_arn"), what);
                None
            }
        },
        (_, _) => {
            violations.add(
                format!("{KINESIS}.stream_arn"),
                "give either stream_name or stream_arn, not both",
            );
            None
        }
    }
}

fn region(kinesis: &proto::KinesisSource, stream: Option<&StreamRef>, violations: &mut Violations) -> Option<String> {
    let field = "pipe.source.kinesis.region";
    let from_arn = match stream {
        Some(StreamRef::Arn(arn)) => names::stream_arn(arn).ok().map(|(region, _)| region),
        Some(StreamRef::Name(_)) | None => None,
    };
    match (kinesis.region.as_str(), from_arn) {
        ("", Some(region)) => Some(region.to_owned()),
        ("", None) => {
            violations.add(field, "is required, such as eu-central-1");
            None
        }
        (region, Some(of_arn)) if region != of_arn => {
            violations.add(
                field,
                format!("differs from the stream's ARN, which is in {of_arn}: leave it empty"),
            );
            None
        }
        (region, _) => match names::region(region) {
            Ok(()) => Some(region.to_owned()),
            Err(what) => {
                violations.add(field, what);
                None
            }
        },
    }
}

fn start(kinesis: &proto::KinesisSource, now: Timestamp, violations: &mut Violations) -> Option<StartPosition> {
    let field = "pipe.source.kinesis.iterator_type";
    let known = "ITERATOR_TYPE_TRIM_HORIZON, ITERATOR_TYPE_LATEST or ITERATOR_TYPE_AT_TIMESTAMP";
    let start = match proto::IteratorType::try_from(kinesis.iterator_type) {
        Ok(proto::IteratorType::TrimHorizon) => StartPosition::TrimHorizon,
        Ok(proto::IteratorType::Latest) => StartPosition::Latest,
        Ok(proto::IteratorType::AtTimestamp) => return at_timestamp(kinesis.timestamp, now, violations),
        Ok(proto::IteratorType::Unspecified) => {
            violations.add(field, format!("is required: {known}"));
            return None;
        }
        Err(_) => {
            unknown_enum(field, kinesis.iterator_type, known, violations);
            return None;
        }
    };
    if kinesis.timestamp.is_some() {
        violations.add(
            "pipe.source.kinesis.timestamp",
            "belongs to ITERATOR_TYPE_AT_TIMESTAMP only: leave it out",
        );
        return None;
    }
    Some(start)
}

fn at_timestamp(
    timestamp: Option<prost_types::Timestamp>,
    now: Timestamp,
    violations: &mut Violations,
) -> Option<StartPosition> {
    let field = "pipe.source.kinesis.timestamp";
    let Some(given) = timestamp else {
        violations.add(field, "is required with ITERATOR_TYPE_AT_TIMESTAMP");
        return None;
    };
    let parsed = Timestamp::new(given.seconds, given.nanos).ok();
    match parsed.filter(|_| (0..1_000_000_000).contains(&given.nanos)) {
        // Kinesis refuses a time that is still to come.
        Some(time) if time > now => violations.add(field, format!("{time} is in the future")),
        Some(time) if time < Timestamp::UNIX_EPOCH => violations.add(field, format!("{time} is before 1970")),
        Some(time) => return Some(StartPosition::AtTimestamp(time)),
        None => violations.add(field, "is not a valid time"),
    }
    None
}

/// The end of a backfill.
fn end(kinesis: &proto::KinesisSource, start: Option<StartPosition>, violations: &mut Violations) -> Option<Timestamp> {
    let field = "pipe.source.kinesis.end_timestamp";
    let given = kinesis.end_timestamp?;
    let parsed = Timestamp::new(given.seconds, given.nanos).ok();
    let Some(end) = parsed.filter(|_| (0..1_000_000_000).contains(&given.nanos)) else {
        violations.add(field, "is not a valid time");
        return None;
    };
    match start {
        Some(StartPosition::Latest) => violations.add(
            field,
            "belongs to ITERATOR_TYPE_TRIM_HORIZON or ITERATOR_TYPE_AT_TIMESTAMP only: choose one of them, or leave it out",
        ),
        Some(StartPosition::AtTimestamp(from)) if end <= from => {
            violations.add(field, format!("{end} is not after the start, {from}"));
        }
        Some(StartPosition::TrimHorizon) if end <= Timestamp::UNIX_EPOCH => {
            violations.add(field, format!("{end} is before all records"));
        }
        Some(_) => return Some(end),
        // What is wrong with the start was reported already.
        None => {}
    }
    None
}

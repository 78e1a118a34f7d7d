//! The source of a pipe.

use std::ops::RangeInclusive;

use jiff::Timestamp;
use millrace_common::pipe::{FanOut, KinesisSource, PollingBudget, StartPosition, StreamRef};
use millrace_proto::api::v1::{self as proto, source::Kind};

use super::{Context, Violations, credential_name, names, unknown_enum};

const KINESIS: &str = "pipe.source.kinesis";
/// Most GetRecords calls a second that Kinesis allows of one shard.
const MAX_CALLS_PER_SECOND: u32 = 5;
/// Payload bytes a second of one shard: Kinesis allows no more, and with less a record of 10 MiB would take minutes.
const READ_BYTES_PER_SECOND: RangeInclusive<u64> = 65_536..=2_097_152;
/// Most characters of a consumer's name.
const CONSUMER_NAME_CHARS: usize = 128;
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
    let fan_out = fan_out(kinesis, stream.as_ref(), violations);
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
        fan_out,
        polling: polling(kinesis, violations),
    })
}

/// How fast a shard may be polled. What Kinesis allows at most is what nothing needs to be said for.
fn polling(kinesis: &proto::KinesisSource, violations: &mut Violations) -> PollingBudget {
    let (calls, bytes) = (kinesis.max_get_records_per_second, kinesis.max_read_bytes_per_second);
    if calls > MAX_CALLS_PER_SECOND {
        violations.add(
            format!("{KINESIS}.max_get_records_per_second"),
            format!("must be between 1 and {MAX_CALLS_PER_SECOND}, which is what Kinesis allows"),
        );
    }
    if bytes != 0 && !READ_BYTES_PER_SECOND.contains(&bytes) {
        violations.add(
            format!("{KINESIS}.max_read_bytes_per_second"),
            format!(
                "must be between {} and {}, which is what Kinesis allows",
                READ_BYTES_PER_SECOND.start(),
                READ_BYTES_PER_SECOND.end()
            ),
        );
    }
    PollingBudget {
        calls_per_second: Some(calls).filter(|calls| *calls != 0),
        bytes_per_second: Some(bytes).filter(|bytes| *bytes != 0),
    }
}

/// The source of a pipe that there is not yet, of which it need not be said where it starts. Fields are named as in a pipe.
pub fn planned_source(
    mut kinesis: proto::KinesisSource,
    context: Context<'_>,
    violations: &mut Violations,
) -> Option<KinesisSource> {
    if kinesis.iterator_type() == proto::IteratorType::Unspecified {
        kinesis.set_iterator_type(proto::IteratorType::TrimHorizon);
    }
    let given = proto::Source {
        kind: Some(Kind::Kinesis(kinesis)),
    };
    source(Some(&given), context, violations)
}

/// How to read, and with whose consumer. The consumer must be one of the pipe's stream.
fn fan_out(kinesis: &proto::KinesisSource, stream: Option<&StreamRef>, violations: &mut Violations) -> Option<FanOut> {
    let field = "pipe.source.kinesis.consumer_arn";
    let arn = kinesis.consumer_arn.as_str();
    match (kinesis.use_enhanced_fan_out, arn.is_empty()) {
        (false, true) => return None,
        (true, true) => return Some(FanOut::Managed),
        (false, false) => {
            violations.add(field, "is only for pipe.source.kinesis.use_enhanced_fan_out = true");
            return None;
        }
        (true, false) => {}
    }
    let of_stream = consumer_stream(arn).is_some_and(|stream_arn| match stream {
        Some(StreamRef::Arn(arn)) => arn == stream_arn,
        Some(StreamRef::Name(name)) => stream_arn.rsplit_once('/').is_some_and(|(_, last)| last == name),
        // What is wrong with the stream is said there.
        None => true,
    });
    if !of_stream {
        violations.add(
            field,
            "is not a consumer of the pipe's stream: give one such as \
             arn:aws:kinesis:eu-central-1:000000000000:stream/orders/consumer/millrace:1767323045",
        );
        return None;
    }
    Some(FanOut::Consumer(arn.to_owned()))
}

/// The stream's part of a consumer's ARN, if it is one: `arn:…:stream/NAME/consumer/NAME:TIMESTAMP`.
fn consumer_stream(arn: &str) -> Option<&str> {
    let is_name = |text: &str| {
        !text.is_empty()
            && text.len() <= CONSUMER_NAME_CHARS
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
    };
    let (stream, consumer) = arn.split_once("/consumer/")?;
    let (name, created) = consumer.split_once(':')?;
    let well_formed = stream.starts_with("arn:")
        && stream.contains(":stream/")
        && is_name(name)
        && !created.is_empty()
        && created.bytes().all(|b| b.is_ascii_digit());
    well_formed.then_some(stream)
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

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "arn:aws:kinesis:eu-central-1:000000000000:stream/orders";

    fn read(use_enhanced_fan_out: bool, consumer_arn: &str, stream: &StreamRef) -> (Option<FanOut>, bool) {
        let kinesis = proto::KinesisSource {
            use_enhanced_fan_out,
            consumer_arn: consumer_arn.to_owned(),
            ..Default::default()
        };
        let mut violations = Violations::new();
        let fan_out = fan_out(&kinesis, Some(stream), &mut violations);
        (fan_out, violations.finish().is_ok())
    }

    #[test]
    fn a_consumer_is_one_of_the_pipes_stream_or_its_own() {
        let name = StreamRef::Name("orders".to_owned());
        let arn = StreamRef::Arn(STREAM.to_owned());
        assert_eq!(read(false, "", &name), (None, true));
        assert_eq!(read(true, "", &name), (Some(FanOut::Managed), true));
        let good = format!("{STREAM}/consumer/loader:1767323045");
        for stream in [&name, &arn] {
            assert_eq!(read(true, &good, stream), (Some(FanOut::Consumer(good.clone())), true));
        }
        assert_eq!(read(false, &good, &name), (None, false), "it would not be used");
        let bad = [
            format!("{STREAM}/consumer/loader"),
            format!("{STREAM}/consumer/:1"),
            format!("{STREAM}/consumer/a b:1"),
            format!("{STREAM}/consumer/loader:1\n"),
            STREAM.to_owned(),
            "loader".to_owned(),
            good.replace("orders", "others"),
        ];
        for bad in bad {
            assert_eq!(read(true, &bad, &name), (None, false), "{bad}");
        }
    }
}

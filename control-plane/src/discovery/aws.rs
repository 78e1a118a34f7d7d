//! The two calls that tell what a stream is: DescribeStreamSummary and ListShards.

use std::time::Duration;

use aws_sdk_kinesis::{Client, types::StreamStatus};
use jiff::Timestamp;
use millrace_common::{
    ids::ShardId,
    pipe::{StreamIdentity, StreamRef},
    reason,
};

use super::{Error, MAX_PAGES, PAGE, RESTARTS, Shard};

/// Kinesis's own code for a listing whose token is too old.
const EXPIRED_TOKEN: &str = "ExpiredNextTokenException";

pub(super) async fn describe(client: &Client, stream: &StreamRef) -> Result<(StreamIdentity, Duration), Error> {
    let request = client.describe_stream_summary();
    let request = match stream {
        StreamRef::Name(name) => request.stream_name(name),
        StreamRef::Arn(arn) => request.stream_arn(arn),
    };
    let output = request
        .send()
        .await
        .map_err(|error| Error::of_call("kinesis:DescribeStreamSummary", &error))?;
    let Some(summary) = output.stream_description_summary() else {
        return Err(odd("DescribeStreamSummary said nothing"));
    };
    if *summary.stream_status() == StreamStatus::Deleting {
        return Err(Error {
            reason: reason::SOURCE_STREAM_NOT_FOUND,
            message: "is being deleted".to_owned(),
            field: "pipe.source.kinesis.stream_name",
            permanent: true,
            said: String::new(),
        });
    }
    let created = summary.stream_creation_timestamp();
    // To the millisecond, as workers compare it: it travels as a floating-point number.
    let created = created
        .to_millis()
        .ok()
        .and_then(|millis| Timestamp::from_millisecond(millis).ok());
    let created = created.ok_or_else(|| odd("the stream's creation time is out of range"))?;
    let identity = StreamIdentity {
        arn: summary.stream_arn().to_owned(),
        name: summary.stream_name().to_owned(),
        created,
    };
    let hours = u64::try_from(summary.retention_period_hours()).unwrap_or(0);
    Ok((identity, Duration::from_secs(hours * 3600)))
}

/// All shards, closed ones too: the whole listing or an error. One whose token expires starts over.
pub(super) async fn list(client: &Client, stream: &StreamRef) -> Result<Vec<Shard>, Error> {
    for _ in 0..RESTARTS {
        if let Some(shards) = list_once(client, stream).await? {
            return Ok(shards);
        }
    }
    Err(odd("the tokens of ListShards expire before the listing is at its end"))
}

/// `None` if a token expired.
async fn list_once(client: &Client, stream: &StreamRef) -> Result<Option<Vec<Shard>>, Error> {
    let mut shards = Vec::new();
    let mut token: Option<String> = None;
    for _ in 0..MAX_PAGES {
        let request = client.list_shards();
        // A token stands for the stream; Kinesis refuses both.
        let request = match (token.take(), stream) {
            (Some(token), _) => request.next_token(token).max_results(PAGE),
            (None, StreamRef::Name(name)) => request.stream_name(name).max_results(PAGE),
            (None, StreamRef::Arn(arn)) => request.stream_arn(arn).max_results(PAGE),
        };
        let output = match request.send().await {
            Ok(output) => output,
            Err(error) if error.as_service_error().and_then(|e| e.meta().code()) == Some(EXPIRED_TOKEN) => {
                tracing::info!(stream = stream.name(), "the listing's token expired: starting over");
                return Ok(None);
            }
            Err(error) => return Err(Error::of_call("kinesis:ListShards", &error)),
        };
        for shard in output.shards() {
            shards.push(read(shard)?);
        }
        match output.next_token() {
            Some(next) if !next.is_empty() => token = Some(next.to_owned()),
            _ => return Ok(Some(shards)),
        }
    }
    Err(odd("ListShards does not come to an end"))
}

fn read(shard: &aws_sdk_kinesis::types::Shard) -> Result<Shard, Error> {
    let id = |text: &str| text.parse::<ShardId>().map_err(|error| odd(&error.to_string()));
    let parents = [shard.parent_shard_id(), shard.adjacent_parent_shard_id()];
    let ends = shard
        .sequence_number_range()
        .and_then(|range| range.ending_sequence_number());
    let hash_keys = shard.hash_key_range().and_then(|range| {
        let (first, last) = (range.starting_hash_key(), range.ending_hash_key());
        Some((first.parse().ok()?, last.parse().ok()?))
    });
    Ok(Shard {
        hash_keys,
        id: id(shard.shard_id())?,
        parents: parents.into_iter().flatten().map(id).collect::<Result<_, _>>()?,
        open: ends.is_none(),
    })
}

/// Something answered that is not quite Kinesis.
pub(super) fn odd(what: &str) -> Error {
    Error {
        reason: reason::SOURCE_UNREACHABLE,
        message: format!("the answer is not one of Kinesis: {what}"),
        field: "pipe.source.kinesis.endpoint",
        permanent: false,
        said: String::new(),
    }
}

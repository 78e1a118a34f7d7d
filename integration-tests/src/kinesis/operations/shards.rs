//! Shards: list, describe, split, merge, update the count.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::account::Account;
use super::super::cursor::{Kind, LIFE_MS, ShardList};
use super::super::error::{Error, ErrorKind};
use super::super::shard::{self, Shard};
use super::super::stream::{Mode, Stream};
use super::super::validate::Checks;
use super::{Reply, StreamRef, Text, given, input, millis, streams, text};

/// A page of ListShards has at most this many shards, whatever MaxResults says.
const MAX_SHARDS_PER_PAGE: usize = 1_000;
/// The same of DescribeStream, whatever its Limit says.
const MAX_DESCRIBED_SHARDS: usize = 100;
const FILTER_TYPES: &[&str] = &[
    "AFTER_SHARD_ID",
    "AT_TRIM_HORIZON",
    "FROM_TRIM_HORIZON",
    "AT_LATEST",
    "AT_TIMESTAMP",
    "FROM_TIMESTAMP",
];

/// Which shards ListShards shows. Times are milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Filter {
    /// All with a higher number.
    AfterShard(u32),
    /// All that hold records.
    FromTrimHorizon,
    /// Those that are open now.
    AtLatest,
    /// Those that were open at this time.
    At(i64),
    /// Those that were open at this time or later.
    From(i64),
}

impl Filter {
    fn shows(self, index: u32, opened_ms: i64, closed_ms: Option<i64>) -> bool {
        match self {
            Self::AfterShard(after) => index > after,
            Self::FromTrimHorizon => true,
            Self::AtLatest => closed_ms.is_none(),
            Self::At(ms) => opened_ms <= ms && closed_ms.is_none_or(|closed| closed >= ms),
            Self::From(ms) => closed_ms.is_none_or(|closed| closed >= ms),
        }
    }
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow, flatten)]
    stream: StreamRef<'a>,
    #[serde(borrow, rename = "NextToken")]
    next_token: Option<Text<'a>>,
    #[serde(borrow, rename = "ExclusiveStartShardId")]
    exclusive_start_shard_id: Option<Text<'a>>,
    #[serde(rename = "MaxResults")]
    max_results: Option<i64>,
    #[serde(rename = "StreamCreationTimestamp")]
    created_s: Option<f64>,
    #[serde(borrow, rename = "ShardFilter")]
    filter: Option<FilterInput<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct FilterInput<'a> {
    #[serde(borrow)]
    r#type: Option<Text<'a>>,
    #[serde(borrow)]
    shard_id: Option<Text<'a>>,
    timestamp: Option<f64>,
}

impl List<'_> {
    fn check(&self) -> Result<(), Error> {
        let mut checks = Checks::default();
        checks.name("streamName", self.stream.name());
        checks.range("maxResults", self.max_results, 1, 10_000);
        checks.name("exclusiveStartShardId", text(&self.exclusive_start_shard_id));
        if let Some(filter) = &self.filter {
            checks.required("shardFilter.type", filter.r#type.as_ref());
            checks.one_of("shardFilter.type", text(&filter.r#type), FILTER_TYPES);
            checks.name("shardFilter.shardId", text(&filter.shard_id));
        }
        checks.finish()?;
        if self.next_token.is_none() {
            return Ok(());
        }
        // A token means the whole request, so nothing may come with it that could say otherwise. An ARN may.
        let beside = [
            ("StreamName", self.stream.name.is_some()),
            ("ExclusiveStartShardId", self.exclusive_start_shard_id.is_some()),
            ("StreamCreationTimestamp", self.created_s.is_some()),
            ("ShardFilter", self.filter.is_some()),
        ];
        match beside.iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((field, _)) => Err(Error::invalid_argument(format!(
                "NextToken and {field} cannot be provided together."
            ))),
        }
    }
}

pub(super) fn list(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: List<'_> = input(body)?;
    request.check()?;
    let now_ms = account.now_ms();
    let (stream, filter, after) = match text(&request.next_token) {
        Some(token) => continue_list(account, token, now_ms)?,
        None => {
            let stream = account.stream(request.stream.name(), request.stream.arn())?;
            if request
                .created_s
                .is_some_and(|s| millis(s) / 1_000 != stream.identity.created_s as i64)
            {
                return Err(account.no_such_stream(&stream.identity.name));
            }
            let filter = request
                .filter
                .as_ref()
                .map_or(Ok(Filter::FromTrimHorizon), |f| filter_of(f, &stream, now_ms))?;
            let after = text(&request.exclusive_start_shard_id)
                .map(|id| stream.index_of(id))
                .transpose()?;
            (stream, filter, after)
        }
    };

    let limit = request
        .max_results
        .map_or(MAX_SHARDS_PER_PAGE, |max| (max as usize).min(MAX_SHARDS_PER_PAGE));
    let mut shards = stream.shards(now_ms);
    shards.retain(|shard| {
        after.is_none_or(|after| shard.index > after)
            && filter.shows(shard.index, shard.opened_ms, shard.closed().map(|closed| closed.at_ms))
    });
    let has_more = shards.len() > limit;
    shards.truncate(limit);
    let mut reply = json!({ "Shards": shards.iter().map(|shard| describe(shard)).collect::<Vec<_>>() });
    if let Some(last) = shards.last().filter(|_| has_more) {
        let page = ShardList {
            stream: stream.identity.name.clone(),
            created_s: stream.identity.created_s,
            filter,
            after: last.index,
            issued_ms: now_ms,
        };
        reply["NextToken"] = json!(account.seal.seal(Kind::ShardList, &page));
    }
    Ok(reply.into())
}

/// A listing to go on with: of what, by which filter, after which shard.
type Listing = (Arc<Stream>, Filter, Option<u32>);

fn continue_list(account: &Account, token: &str, now_ms: i64) -> Result<Listing, Error> {
    let page: ShardList<Filter> = account
        .seal
        .open(Kind::ShardList, token)
        .ok_or_else(|| Error::invalid_argument("NextToken is invalid."))?;
    if now_ms - page.issued_ms > LIFE_MS {
        return Err(Error::new(
            ErrorKind::ExpiredNextToken,
            "The pagination token has expired.",
        ));
    }
    let stream = account.stream(Some(&page.stream), None)?;
    if stream.identity.created_s != page.created_s {
        return Err(Error::invalid_argument("NextToken is of a stream that was deleted."));
    }
    Ok((stream, page.filter, Some(page.after)))
}

fn filter_of(filter: &FilterInput<'_>, stream: &Stream, now_ms: i64) -> Result<Filter, Error> {
    let kind = given(&filter.r#type);
    // A time before anything that is left means the trim horizon.
    let trim_point = stream.trim_point_ms(now_ms);
    let time = || {
        let seconds = filter.timestamp;
        seconds.map(|s| millis(s).max(trim_point)).ok_or_else(|| {
            Error::invalid_argument(format!(
                "Timestamp parameter must be set in ShardFilter when type is {kind}."
            ))
        })
    };
    Ok(match kind {
        "AFTER_SHARD_ID" => {
            let id = text(&filter.shard_id).ok_or_else(|| {
                Error::invalid_argument(format!(
                    "ShardId parameter must be set in ShardFilter when type is {kind}."
                ))
            })?;
            Filter::AfterShard(stream.index_of(id)?)
        }
        "AT_TRIM_HORIZON" => Filter::At(trim_point),
        "AT_LATEST" => Filter::AtLatest,
        "AT_TIMESTAMP" => Filter::At(time()?),
        "FROM_TIMESTAMP" => Filter::From(time()?),
        _ => Filter::FromTrimHorizon,
    })
}

fn describe(shard: &Shard) -> Value {
    let mut sequences = json!({ "StartingSequenceNumber": shard.starting().to_string() });
    if let Some(closed) = shard.closed() {
        sequences["EndingSequenceNumber"] = json!(closed.ending.to_string());
    }
    let mut described = json!({
        "ShardId": shard.id(),
        "HashKeyRange": hash_key_range(shard),
        "SequenceNumberRange": sequences,
    });
    if let Some(parent) = shard.parent {
        described["ParentShardId"] = json!(shard::id(parent));
    }
    if let Some(parent) = shard.adjacent_parent {
        described["AdjacentParentShardId"] = json!(shard::id(parent));
    }
    described
}

/// A shard as GetRecords shows it at the end of its parent.
pub(in super::super) fn describe_child(shard: &Shard) -> Value {
    let parents = [shard.parent, shard.adjacent_parent].into_iter().flatten();
    json!({
        "ShardId": shard.id(),
        "ParentShards": parents.map(shard::id).collect::<Vec<_>>(),
        "HashKeyRange": hash_key_range(shard),
    })
}

fn hash_key_range(shard: &Shard) -> Value {
    json!({
        "StartingHashKey": shard.range.start_inclusive.to_string(),
        "EndingHashKey": shard.range.end_inclusive.to_string(),
    })
}

#[derive(Deserialize)]
struct DescribeStream<'a> {
    #[serde(borrow, flatten)]
    stream: StreamRef<'a>,
    #[serde(rename = "Limit")]
    limit: Option<i64>,
    #[serde(borrow, rename = "ExclusiveStartShardId")]
    exclusive_start_shard_id: Option<Text<'a>>,
}

pub(super) fn describe_stream(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: DescribeStream<'_> = input(body)?;
    let mut checks = Checks::default();
    checks.name("streamName", request.stream.name());
    checks.range("limit", request.limit, 1, 10_000);
    checks.name("exclusiveStartShardId", text(&request.exclusive_start_shard_id));
    checks.finish()?;
    let stream = account.stream(request.stream.name(), request.stream.arn())?;
    let now_ms = account.now_ms();
    let after = text(&request.exclusive_start_shard_id)
        .map(|id| stream.index_of(id))
        .transpose()?;
    let mut shards = stream.shards(now_ms);
    shards.retain(|shard| after.is_none_or(|after| shard.index > after));
    let limit = request
        .limit
        .map_or(MAX_DESCRIBED_SHARDS, |limit| (limit as usize).min(MAX_DESCRIBED_SHARDS));
    let mut description = streams::describe(&stream, now_ms);
    description["HasMoreShards"] = json!(shards.len() > limit);
    description["Shards"] = shards.iter().take(limit).map(|shard| describe(shard)).collect();
    Ok(json!({ "StreamDescription": description }).into())
}

#[derive(Deserialize)]
struct Split<'a> {
    #[serde(borrow, flatten)]
    stream: StreamRef<'a>,
    #[serde(borrow, rename = "ShardToSplit")]
    shard: Option<Text<'a>>,
    #[serde(borrow, rename = "NewStartingHashKey")]
    at: Option<Text<'a>>,
}

pub(super) fn split(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: Split<'_> = input(body)?;
    let mut checks = Checks::default();
    checks.required("shardToSplit", request.shard.as_ref());
    checks.name("shardToSplit", text(&request.shard));
    checks.required("newStartingHashKey", request.at.as_ref());
    checks.hash_key("newStartingHashKey", text(&request.at));
    checks.finish()?;
    let stream = account.stream(request.stream.name(), request.stream.arn())?;
    let at = given(&request.at);
    let at = at
        .parse()
        .map_err(|_| Error::invalid_argument(format!("NewStartingHashKey {at} is above 2^128-1.")))?;
    account.require_shard_room(1)?;
    stream.split(stream.index_of(given(&request.shard))?, Some(at), account.now_ms())?;
    Ok(Reply::empty())
}

#[derive(Deserialize)]
struct Merge<'a> {
    #[serde(borrow, flatten)]
    stream: StreamRef<'a>,
    #[serde(borrow, rename = "ShardToMerge")]
    shard: Option<Text<'a>>,
    #[serde(borrow, rename = "AdjacentShardToMerge")]
    adjacent: Option<Text<'a>>,
}

pub(super) fn merge(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: Merge<'_> = input(body)?;
    let mut checks = Checks::default();
    checks.required("shardToMerge", request.shard.as_ref());
    checks.name("shardToMerge", text(&request.shard));
    checks.required("adjacentShardToMerge", request.adjacent.as_ref());
    checks.name("adjacentShardToMerge", text(&request.adjacent));
    checks.finish()?;
    let stream = account.stream(request.stream.name(), request.stream.arn())?;
    let shard = stream.index_of(given(&request.shard))?;
    let adjacent = stream.index_of(given(&request.adjacent))?;
    stream.merge(shard, adjacent, account.now_ms())?;
    Ok(Reply::empty())
}

#[derive(Deserialize)]
struct UpdateCount<'a> {
    #[serde(borrow, flatten)]
    stream: StreamRef<'a>,
    #[serde(rename = "TargetShardCount")]
    target: Option<i64>,
    #[serde(borrow, rename = "ScalingType")]
    scaling: Option<Text<'a>>,
}

pub(super) fn update_count(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: UpdateCount<'_> = input(body)?;
    let mut checks = Checks::default();
    checks.required("targetShardCount", request.target.as_ref());
    checks.range("targetShardCount", request.target, 1, i64::from(i32::MAX));
    checks.required("scalingType", request.scaling.as_ref());
    checks.one_of("scalingType", text(&request.scaling), &["UNIFORM_SCALING"]);
    checks.finish()?;
    let stream = account.stream(request.stream.name(), request.stream.arn())?;
    if stream.settings().mode == Mode::OnDemand {
        let message = format!(
            "UpdateShardCount is not possible: {} is in ON_DEMAND mode.",
            stream.label()
        );
        return Err(Error::new(ErrorKind::Validation, message));
    }
    let target = request.target.unwrap_or_default() as u32;
    account.require_shard_room((target as usize).saturating_sub(stream.open_shard_count()))?;
    let current = stream.resize(target, account.now_ms(), account.options.enforce_limits)?;
    Ok(json!({
        "StreamName": stream.identity.name,
        "StreamARN": stream.identity.arn,
        "CurrentShardCount": current,
        "TargetShardCount": target,
    })
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_filter_shows_the_shards_of_its_time() {
        // Shard 0 was open from 10 to 20, shard 1 from 20 to 30, shard 2 from 30 on.
        let shards = [(0, 10, Some(20)), (1, 20, Some(30)), (2, 30, None)];
        let shown = |filter: Filter| {
            let shows = |(index, opened, closed)| filter.shows(index, opened, closed).then_some(index);
            shards.into_iter().filter_map(shows).collect::<Vec<_>>()
        };
        assert_eq!(shown(Filter::AfterShard(0)), [1, 2]);
        assert_eq!(shown(Filter::FromTrimHorizon), [0, 1, 2]);
        assert_eq!(shown(Filter::AtLatest), [2]);
        assert_eq!(shown(Filter::At(15)), [0]);
        assert_eq!(shown(Filter::At(20)), [0, 1]);
        assert_eq!(shown(Filter::At(35)), [2]);
        assert_eq!(shown(Filter::From(25)), [1, 2]);
        assert_eq!(shown(Filter::From(31)), [2]);
    }
}

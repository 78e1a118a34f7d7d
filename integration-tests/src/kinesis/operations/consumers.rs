//! Consumers of enhanced fan-out: register, describe, list, deregister, subscribe.
//!
//! Follows the API reference of RegisterStreamConsumer, DescribeStreamConsumer, ListStreamConsumers,
//! DeregisterStreamConsumer and SubscribeToShard; limits on their numbers are in `super::super::consumers`.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::super::account::Account;
use super::super::consumers::Consumer;
use super::super::cursor::{ConsumerList, Kind, LIFE_MS};
use super::super::error::{Error, ErrorKind};
use super::super::stream::Stream;
use super::super::subscription::Subscription;
use super::super::validate::Checks;
use super::records::{ITERATOR_TYPES, start};
use super::{Reply, Text, given, input, millis, text};

/// "The default value is 100 if you don't specify this parameter."
const DEFAULT_CONSUMERS_PER_PAGE: usize = 100;

#[derive(Deserialize)]
struct Register<'a> {
    #[serde(borrow, rename = "StreamARN")]
    stream_arn: Option<Text<'a>>,
    #[serde(borrow, rename = "ConsumerName")]
    name: Option<Text<'a>>,
}

pub(super) fn register(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: Register<'_> = input(body)?;
    let mut checks = Checks::default();
    checks.required("streamARN", request.stream_arn.as_ref());
    checks.required("consumerName", request.name.as_ref());
    checks.name("consumerName", text(&request.name));
    checks.finish()?;
    let stream = account.readable_stream(None, text(&request.stream_arn))?;
    let now_ms = account.now_ms();
    let consumer = stream
        .consumers
        .register(&stream.identity.arn, given(&request.name), now_ms)?;
    Ok(json!({ "Consumer": describe_one(&consumer, now_ms) }).into())
}

/// A consumer by its ARN, or by its name and its stream's ARN.
#[derive(Deserialize)]
struct ConsumerRef<'a> {
    #[serde(borrow, rename = "StreamARN")]
    stream_arn: Option<Text<'a>>,
    #[serde(borrow, rename = "ConsumerName")]
    name: Option<Text<'a>>,
    #[serde(borrow, rename = "ConsumerARN")]
    arn: Option<Text<'a>>,
}

impl ConsumerRef<'_> {
    fn find(&self, account: &Account) -> Result<(Arc<Stream>, Arc<Consumer>), Error> {
        let mut checks = Checks::default();
        checks.name("consumerName", text(&self.name));
        checks.finish()?;
        match (text(&self.arn), text(&self.stream_arn), text(&self.name)) {
            (Some(arn), stream_arn, name) => {
                let (stream, consumer) = by_arn(account, arn)?;
                let same = stream_arn.is_none_or(|arn| arn == stream.identity.arn)
                    && name.is_none_or(|name| name == consumer.name);
                if !same {
                    return Err(Error::invalid_argument(
                        "ConsumerARN names another consumer than StreamARN and ConsumerName.",
                    ));
                }
                Ok((stream, consumer))
            }
            (None, Some(stream_arn), Some(name)) => {
                let stream = account.stream(None, Some(stream_arn))?;
                let consumer = stream
                    .consumers
                    .by_name(name, account.now_ms())
                    .ok_or_else(|| Error::not_found(format!("Consumer {name} under stream {stream_arn} not found.")))?;
                Ok((stream, consumer))
            }
            _ => Err(Error::invalid_argument(
                "Either ConsumerARN or both StreamARN and ConsumerName must be provided.",
            )),
        }
    }
}

fn by_arn(account: &Account, arn: &str) -> Result<(Arc<Stream>, Arc<Consumer>), Error> {
    let not_found = || Error::not_found(format!("Consumer {arn} not found."));
    let (stream_arn, _) = arn.split_once("/consumer/").ok_or_else(not_found)?;
    let stream = account.stream(None, Some(stream_arn))?;
    let consumer = stream.consumers.by_arn(arn, account.now_ms()).ok_or_else(not_found)?;
    Ok((stream, consumer))
}

pub(super) fn describe(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: ConsumerRef<'_> = input(body)?;
    let (stream, consumer) = request.find(account)?;
    let mut described = describe_one(&consumer, account.now_ms());
    described["StreamARN"] = json!(stream.identity.arn);
    Ok(json!({ "ConsumerDescription": described }).into())
}

pub(super) fn deregister(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: ConsumerRef<'_> = input(body)?;
    let (stream, consumer) = request.find(account)?;
    stream.consumers.deregister(&consumer, account.now_ms());
    Ok(Reply::empty())
}

fn describe_one(consumer: &Consumer, now_ms: i64) -> Value {
    json!({
        "ConsumerName": consumer.name,
        "ConsumerARN": consumer.arn,
        "ConsumerStatus": consumer.status(now_ms),
        "ConsumerCreationTimestamp": consumer.created_s as f64,
    })
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow, rename = "StreamARN")]
    stream_arn: Option<Text<'a>>,
    #[serde(borrow, rename = "NextToken")]
    next_token: Option<Text<'a>>,
    #[serde(rename = "MaxResults")]
    max_results: Option<i64>,
    #[serde(rename = "StreamCreationTimestamp")]
    created_s: Option<f64>,
}

pub(super) fn list(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: List<'_> = input(body)?;
    let mut checks = Checks::default();
    checks.required("streamARN", request.stream_arn.as_ref());
    checks.range("maxResults", request.max_results, 1, 10_000);
    checks.finish()?;
    let stream = account.stream(None, text(&request.stream_arn))?;
    let now_ms = account.now_ms();
    let created = |s: f64| millis(s) / 1_000 == stream.identity.created_s as i64;
    let after = match (text(&request.next_token), request.created_s) {
        (Some(_), Some(_)) => {
            return Err(Error::invalid_argument(
                "NextToken and StreamCreationTimestamp cannot be provided together.",
            ));
        }
        (None, Some(s)) if !created(s) => return Err(account.no_such_stream(&stream.identity.name)),
        (None, _) => None,
        (Some(token), None) => Some(continue_list(account, token, &stream, now_ms)?),
    };
    let mut consumers = stream.consumers.all(now_ms);
    consumers.retain(|consumer| after.as_ref().is_none_or(|after| consumer.name > *after));
    let limit = request
        .max_results
        .map_or(DEFAULT_CONSUMERS_PER_PAGE, |max| max as usize);
    let has_more = consumers.len() > limit;
    consumers.truncate(limit);
    let mut reply = json!({
        "Consumers": consumers.iter().map(|consumer| describe_one(consumer, now_ms)).collect::<Vec<_>>(),
    });
    if let Some(last) = consumers.last().filter(|_| has_more) {
        let page = ConsumerList {
            stream: stream.identity.name.clone(),
            created_s: stream.identity.created_s,
            after: last.name.clone(),
            issued_ms: now_ms,
        };
        reply["NextToken"] = json!(account.seal.seal(Kind::ConsumerList, &page));
    }
    Ok(reply.into())
}

fn continue_list(account: &Account, token: &str, stream: &Stream, now_ms: i64) -> Result<String, Error> {
    let page: ConsumerList = account
        .seal
        .open(Kind::ConsumerList, token)
        .filter(|page: &ConsumerList| {
            page.stream == stream.identity.name && page.created_s == stream.identity.created_s
        })
        .ok_or_else(|| Error::invalid_argument("NextToken is invalid."))?;
    if now_ms - page.issued_ms > LIFE_MS {
        return Err(Error::new(ErrorKind::ExpiredNextToken, "NextToken has expired."));
    }
    Ok(page.after)
}

#[derive(Deserialize)]
struct Subscribe<'a> {
    #[serde(borrow, rename = "ConsumerARN")]
    consumer_arn: Option<Text<'a>>,
    #[serde(borrow, rename = "ShardId")]
    shard: Option<Text<'a>>,
    #[serde(borrow, rename = "StartingPosition")]
    position: Option<StartingPosition<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StartingPosition<'a> {
    #[serde(borrow)]
    r#type: Option<Text<'a>>,
    #[serde(borrow)]
    sequence_number: Option<Text<'a>>,
    timestamp: Option<f64>,
}

pub(super) fn subscribe(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: Subscribe<'_> = input(body)?;
    let mut checks = Checks::default();
    checks.required("consumerARN", request.consumer_arn.as_ref());
    checks.required("shardId", request.shard.as_ref());
    checks.name("shardId", text(&request.shard));
    checks.required("startingPosition", request.position.as_ref());
    if let Some(position) = &request.position {
        checks.required("startingPosition.type", position.r#type.as_ref());
        checks.one_of("startingPosition.type", text(&position.r#type), ITERATOR_TYPES);
        checks.sequence("startingPosition.sequenceNumber", text(&position.sequence_number));
    }
    checks.finish()?;
    let now_ms = account.now_ms();
    let (stream, consumer) = by_arn(account, given(&request.consumer_arn))?;
    let stream = account.readable_stream(Some(&stream.identity.name), None)?;
    let index = stream.index_of(given(&request.shard))?;
    let position = request.position.as_ref();
    let from = start(
        position.map_or("", |position| given(&position.r#type)),
        position.and_then(|position| text(&position.sequence_number)),
        position.and_then(|position| position.timestamp),
        (&stream, index),
        now_ms,
    )?;
    account.refuse_trimmed(&stream, index, from, now_ms)?;
    let ordinal = stream.ordinal_of(index, from, now_ms)?;
    let shard = stream.shard(index, now_ms)?;
    // Last, because it ends whoever is subscribed.
    let taken_over = consumer.subscribe(index, now_ms, account.options.enforce_limits)?;
    Ok(Reply {
        subscription: Some(Box::new(Subscription::new(
            account, stream, consumer, shard, ordinal, taken_over,
        ))),
        ..Reply::empty()
    })
}

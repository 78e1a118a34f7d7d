//! Streams: create, describe, list, delete, retention and record size.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::super::account::Account;
use super::super::cursor::{Kind, LIFE_MS, StreamList};
use super::super::error::{Error, ErrorKind};
use super::super::stream::{
    MAX_RECORD_KIB, MAX_RETENTION_HOURS, MIN_RECORD_KIB, MIN_RETENTION_HOURS, Mode, Settings, Stream,
};
use super::super::validate::Checks;
use super::{Reply, StreamRef, Text, given, input, text};

/// What an on-demand stream opens with.
const ON_DEMAND_SHARDS: u32 = 4;
const DEFAULT_STREAMS_PER_PAGE: usize = 100;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create<'a> {
    #[serde(borrow)]
    stream_name: Option<Text<'a>>,
    shard_count: Option<i64>,
    #[serde(borrow)]
    stream_mode_details: Option<ModeDetails<'a>>,
    tags: Option<BTreeMap<String, String>>,
    #[serde(rename = "MaxRecordSizeInKiB")]
    max_record_kib: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModeDetails<'a> {
    #[serde(borrow)]
    stream_mode: Option<Text<'a>>,
}

/// The settings of a stream that says nothing about them.
pub(in super::super) fn new_settings() -> Settings {
    Settings {
        mode: Mode::Provisioned,
        retention_hours: MIN_RETENTION_HOURS,
        max_record_kib: MIN_RECORD_KIB,
        tags: BTreeMap::new(),
        key_arn: None,
    }
}

pub(super) fn create(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: Create<'_> = input(body)?;
    let mode = request
        .stream_mode_details
        .as_ref()
        .and_then(|details| text(&details.stream_mode));
    let mut checks = Checks::default();
    checks.required("streamName", request.stream_name.as_ref());
    checks.name("streamName", text(&request.stream_name));
    checks.range("shardCount", request.shard_count, 1, i64::from(i32::MAX));
    checks.one_of("streamModeDetails.streamMode", mode, &["PROVISIONED", "ON_DEMAND"]);
    record_size(&mut checks, request.max_record_kib);
    checks.finish()?;

    let mut settings = new_settings();
    settings.tags = request.tags.unwrap_or_default();
    settings.max_record_kib = request.max_record_kib.map_or(MIN_RECORD_KIB, |kib| kib as u32);
    let shards = match (mode, request.shard_count) {
        (Some("ON_DEMAND"), Some(_)) => {
            return Err(invalid("ShardCount must not be provided in ON_DEMAND mode."));
        }
        (Some("ON_DEMAND"), None) => {
            settings.mode = Mode::OnDemand;
            ON_DEMAND_SHARDS
        }
        (_, Some(count)) => count as u32,
        (_, None) => return Err(invalid("ShardCount must be provided in PROVISIONED mode.")),
    };
    account.create(given(&request.stream_name), shards, settings)?;
    Ok(Reply::empty())
}

#[derive(Deserialize)]
struct Delete<'a> {
    #[serde(borrow, flatten)]
    stream: StreamRef<'a>,
    #[serde(rename = "EnforceConsumerDeletion")]
    enforce: Option<bool>,
}

pub(super) fn delete(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: Delete<'_> = input(body)?;
    let stream = account.stream(request.stream.name(), request.stream.arn())?;
    let now_ms = account.now_ms();
    // "If this parameter is unset (null) or if you set it to false, and the stream has registered consumers, the call to
    // DeleteStream fails with a ResourceInUseException."
    if !request.enforce.unwrap_or(false) && !stream.consumers.all(now_ms).is_empty() {
        return Err(Error::new(
            ErrorKind::ResourceInUse,
            format!("{} has registered consumers.", stream.label()),
        ));
    }
    stream.begin_delete(now_ms);
    Ok(Reply::empty())
}

pub(super) fn describe_summary(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: StreamRef<'_> = input(body)?;
    let stream = account.stream(request.name(), request.arn())?;
    let mut summary = describe(&stream, account.now_ms());
    summary["OpenShardCount"] = json!(stream.open_shard_count());
    summary["ConsumerCount"] = json!(stream.consumers.all(account.now_ms()).len());
    summary["MaxRecordSizeInKiB"] = json!(stream.settings().max_record_kib);
    Ok(json!({ "StreamDescriptionSummary": summary }).into())
}

/// What DescribeStream and DescribeStreamSummary have in common.
pub(super) fn describe(stream: &Stream, now_ms: i64) -> Value {
    let settings = stream.settings();
    let mut description = json!({
        "StreamName": stream.identity.name,
        "StreamARN": stream.identity.arn,
        "StreamStatus": stream.status(now_ms).name(),
        "StreamModeDetails": { "StreamMode": settings.mode.name() },
        "RetentionPeriodHours": settings.retention_hours,
        "StreamCreationTimestamp": stream.identity.created_s as f64,
        "EnhancedMonitoring": [{ "ShardLevelMetrics": [] }],
        "EncryptionType": "NONE",
    });
    if let Some(key_arn) = settings.key_arn {
        description["EncryptionType"] = "KMS".into();
        description["KeyId"] = key_arn.into();
    }
    description
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct List<'a> {
    #[serde(borrow)]
    exclusive_start_stream_name: Option<Text<'a>>,
    #[serde(borrow)]
    next_token: Option<Text<'a>>,
    limit: Option<i64>,
}

pub(super) fn list(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: List<'_> = input(body)?;
    let mut checks = Checks::default();
    checks.range("limit", request.limit, 1, 10_000);
    checks.name("exclusiveStartStreamName", text(&request.exclusive_start_stream_name));
    checks.finish()?;

    let now_ms = account.now_ms();
    let after = match text(&request.next_token) {
        None => text(&request.exclusive_start_stream_name).map(str::to_owned),
        Some(token) => {
            let page: StreamList = account
                .seal
                .open(Kind::StreamList, token)
                .ok_or_else(|| Error::invalid_argument("NextToken is invalid."))?;
            if now_ms - page.issued_ms > LIFE_MS {
                return Err(Error::new(ErrorKind::ExpiredNextToken, "NextToken has expired."));
            }
            Some(page.after)
        }
    };
    let mut streams = account.streams();
    streams.retain(|stream| after.as_ref().is_none_or(|after| stream.identity.name > *after));
    let limit = request.limit.map_or(DEFAULT_STREAMS_PER_PAGE, |limit| limit as usize);
    let has_more = streams.len() > limit;
    streams.truncate(limit);

    let mut reply = json!({
        "StreamNames": streams.iter().map(|stream| &stream.identity.name).collect::<Vec<_>>(),
        "StreamSummaries": streams.iter().map(|stream| summary(stream, now_ms)).collect::<Vec<_>>(),
        "HasMoreStreams": has_more,
    });
    if let Some(last) = streams.last().filter(|_| has_more) {
        let page = StreamList {
            after: last.identity.name.clone(),
            issued_ms: now_ms,
        };
        reply["NextToken"] = json!(account.seal.seal(Kind::StreamList, &page));
    }
    Ok(reply.into())
}

fn summary(stream: &Stream, now_ms: i64) -> Value {
    json!({
        "StreamName": stream.identity.name,
        "StreamARN": stream.identity.arn,
        "StreamStatus": stream.status(now_ms).name(),
        "StreamModeDetails": { "StreamMode": stream.settings().mode.name() },
        "StreamCreationTimestamp": stream.identity.created_s as f64,
    })
}

#[derive(Deserialize)]
struct Retention<'a> {
    #[serde(borrow, flatten)]
    stream: StreamRef<'a>,
    #[serde(rename = "RetentionPeriodHours")]
    hours: Option<i64>,
}

pub(super) fn increase_retention(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    set_retention(account, body, |asked, current| {
        (asked < current)
            .then_some("Requested retention period is shorter than the current one; it cannot be increased to")
    })
}

pub(super) fn decrease_retention(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    set_retention(account, body, |asked, current| {
        (asked > current)
            .then_some("Requested retention period is longer than the current one; it cannot be decreased to")
    })
}

fn set_retention(
    account: &Account,
    body: &[u8],
    refusal: impl Fn(u32, u32) -> Option<&'static str>,
) -> Result<Reply, Error> {
    let request: Retention<'_> = input(body)?;
    let mut checks = Checks::default();
    checks.required("retentionPeriodHours", request.hours.as_ref());
    checks.finish()?;
    let hours = request.hours.unwrap_or_default();
    if hours < i64::from(MIN_RETENTION_HOURS) {
        return Err(Error::invalid_argument(format!(
            "Minimum allowed retention period is {MIN_RETENTION_HOURS} hours."
        )));
    }
    if hours > i64::from(MAX_RETENTION_HOURS) {
        return Err(Error::invalid_argument(format!(
            "Maximum allowed retention period is {MAX_RETENTION_HOURS} hours."
        )));
    }
    let stream = account.stream(request.stream.name(), request.stream.arn())?;
    stream.update(account.now_ms(), |settings| {
        match refusal(hours as u32, settings.retention_hours) {
            Some(reason) => Err(Error::invalid_argument(format!("{reason} {hours} hours."))),
            None => {
                settings.retention_hours = hours as u32;
                Ok(Reply::empty())
            }
        }
    })
}

#[derive(Deserialize)]
struct RecordSize<'a> {
    #[serde(borrow, flatten)]
    stream: StreamRef<'a>,
    #[serde(rename = "MaxRecordSizeInKiB")]
    kib: Option<i64>,
}

pub(super) fn update_max_record_size(account: &Account, body: &[u8]) -> Result<Reply, Error> {
    let request: RecordSize<'_> = input(body)?;
    let mut checks = Checks::default();
    checks.required("maxRecordSizeInKiB", request.kib.as_ref());
    record_size(&mut checks, request.kib);
    checks.finish()?;
    let stream = account.stream(request.stream.name(), request.stream.arn())?;
    stream.update(account.now_ms(), |settings| {
        settings.max_record_kib = request.kib.map_or(MIN_RECORD_KIB, |kib| kib as u32);
        Ok(Reply::empty())
    })
}

pub(super) fn describe_limits(account: &Account, _body: &[u8]) -> Result<Reply, Error> {
    let streams = account.streams();
    let on_demand = streams
        .iter()
        .filter(|stream| stream.settings().mode == Mode::OnDemand)
        .count();
    Ok(json!({
        "ShardLimit": account.options.shard_limit,
        "OpenShardCount": streams.iter().map(|stream| stream.open_shard_count()).sum::<usize>(),
        "OnDemandStreamCount": on_demand,
        "OnDemandStreamCountLimit": 50,
    })
    .into())
}

fn record_size(checks: &mut Checks, kib: Option<i64>) {
    checks.range(
        "maxRecordSizeInKiB",
        kib,
        i64::from(MIN_RECORD_KIB),
        i64::from(MAX_RECORD_KIB),
    );
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::Validation, message)
}

//! The Kinesis emulator as its clients see it: the Rust SDK here, boto3 in the conformance suite.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_kinesis::error::ProvideErrorMetadata;
use aws_sdk_kinesis::operation::get_records::GetRecordsOutput;
use aws_sdk_kinesis::primitives::{Blob, DateTime};
use aws_sdk_kinesis::types::{
    PutRecordsRequestEntry, Record, ScalingType, Shard, ShardFilter, ShardFilterType, ShardIteratorType, StreamMode,
    StreamModeDetails, StreamStatus,
};
use millrace_integration_tests::kinesis::{
    Clock, Emulator, Handle, Operation, Options, Put, SequenceNumber, StreamSpec,
};

#[path = "kinesis_emulator/streams.rs"]
mod streams;
#[path = "kinesis_emulator/records.rs"]
mod records;
#[path = "kinesis_emulator/shards.rs"]
mod shards;
#[path = "kinesis_emulator/limits.rs"]
mod limits;
#[path = "kinesis_emulator/concurrency.rs"]
mod concurrency;
#[path = "kinesis_emulator/server.rs"]
mod server;
#[path = "kinesis_emulator/fan_out.rs"]
mod fan_out;
#[path = "kinesis_emulator/sts.rs"]
mod sts;
#[path = "kinesis_emulator/script.rs"]
mod script;
#[path = "kinesis_emulator/conformance.rs"]
mod conformance;

const STREAM: &str = "events";

fn client(endpoint_url: &str) -> Client {
    let config = aws_sdk_kinesis::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::for_tests())
        .endpoint_url(endpoint_url)
        // A refusal is what these tests look for, so nothing is retried behind their back.
        .retry_config(aws_sdk_kinesis::config::retry::RetryConfig::disabled())
        .build();
    Client::from_conf(config)
}

/// An emulator with one stream.
async fn emulator(shards: u32, options: Options) -> Result<(Handle, Client)> {
    let options = Options {
        streams: vec![StreamSpec::new(STREAM, shards)],
        ..options
    };
    let handle = Emulator::start(options).await?;
    let client = client(&handle.endpoint_url());
    Ok((handle, client))
}

/// The error code of a call that must fail.
fn code<T: std::fmt::Debug, E: ProvideErrorMetadata>(result: std::result::Result<T, E>) -> String {
    match result {
        Ok(output) => format!("succeeded: {output:?}"),
        Err(error) => error.code().unwrap_or("no code").to_owned(),
    }
}

async fn shards(client: &Client) -> Result<Vec<Shard>> {
    Ok(client
        .list_shards()
        .stream_name(STREAM)
        .send()
        .await?
        .shards
        .unwrap_or_default())
}

async fn iterator(client: &Client, shard: &str, kind: ShardIteratorType) -> Result<String> {
    let output = client
        .get_shard_iterator()
        .stream_name(STREAM)
        .shard_id(shard)
        .shard_iterator_type(kind)
        .send()
        .await?;
    output.shard_iterator.context("no iterator")
}

async fn iterator_by_number(client: &Client, shard: &str, kind: ShardIteratorType, number: &str) -> Result<String> {
    let request = client
        .get_shard_iterator()
        .stream_name(STREAM)
        .shard_id(shard)
        .shard_iterator_type(kind);
    request
        .starting_sequence_number(number)
        .send()
        .await?
        .shard_iterator
        .context("no iterator")
}

async fn get(client: &Client, iterator: &str) -> Result<GetRecordsOutput> {
    Ok(client.get_records().shard_iterator(iterator).send().await?)
}

fn texts(records: &[Record]) -> Vec<String> {
    records
        .iter()
        .map(|record| String::from_utf8_lossy(record.data.as_ref()).into_owned())
        .collect()
}

/// `count` records of `bytes` bytes.
fn entries(count: usize, bytes: usize) -> Vec<PutRecordsRequestEntry> {
    let entry = |i: usize| {
        PutRecordsRequestEntry::builder()
            .partition_key(format!("k{i}"))
            .data(Blob::new(vec![b'x'; bytes]))
            .build()
    };
    (0..count)
        .map(entry)
        .collect::<std::result::Result<_, _>>()
        .expect("all fields are set")
}

const SHARD_0: &str = "shardId-000000000000";

/// Reads from `iterator` until there is nothing more for now, or the shard ends.
async fn drain(client: &Client, iterator: String) -> Result<(Vec<Record>, GetRecordsOutput)> {
    let mut records = Vec::new();
    let mut next = iterator;
    loop {
        let mut page = get(client, &next).await?;
        records.append(&mut page.records);
        match page.next_shard_iterator.clone() {
            Some(iterator) if page.millis_behind_latest != Some(0) => next = iterator,
            _ => return Ok((records, page)),
        }
    }
}

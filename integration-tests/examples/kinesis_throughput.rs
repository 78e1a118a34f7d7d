//! How fast the Kinesis emulator is, so that a measurement of something else can say what it left to the emulator.
//!
//! Prints one JSON line per measurement: records put in process, records put over HTTP, and pages read over loopback by
//! a client that throws them away. Rates are of record data, not of the base64 that carries it.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::Parser;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use millrace_integration_tests::kinesis::{Emulator, Options, Put, StreamSpec};
use serde_json::{Value, json};
use tokio::net::TcpStream;

const STREAM: &str = "events";
const MIB: f64 = (1 << 20) as f64;

/// Measures the Kinesis emulator.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many records to put
    #[arg(long, default_value_t = 200_000)]
    records: usize,
    /// Bytes of each
    #[arg(long, default_value_t = 1_000)]
    bytes: usize,
    /// Shards, and connections that read or write at the same time
    #[arg(long, default_value_t = 4)]
    shards: u32,
    /// Threads of the emulator, apart from the client's
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// How often each shard is read from its beginning
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let server = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(arguments.threads)
        .enable_all()
        .build()?;
    let streams = vec![
        StreamSpec::new(STREAM, arguments.shards),
        StreamSpec::new("over-http", arguments.shards),
    ];
    let emulator = server.block_on(Emulator::start(Options {
        streams,
        ..Options::default()
    }))?;

    let data = vec![b'x'; arguments.bytes];
    let keys: Vec<_> = (0..arguments.records).map(|i| format!("key-{i}")).collect();
    let total = (arguments.records * arguments.bytes) as f64;
    let started = Instant::now();
    emulator.put_records_direct(STREAM, keys.iter().map(|key| Put::new(key, &data)))?;
    report("put in process", arguments.records, total, started.elapsed())?;

    let client = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    client.block_on(async {
        let started = Instant::now();
        each_shard(arguments.shards, |shard| {
            write(
                emulator.addr(),
                shard,
                arguments.records / arguments.shards as usize,
                data.clone(),
            )
        })
        .await?;
        report("PutRecords over HTTP", arguments.records, total, started.elapsed())?;

        let rounds = arguments.rounds;
        let started = Instant::now();
        each_shard(arguments.shards, |shard| read(emulator.addr(), shard, rounds)).await?;
        report(
            "GetRecords over HTTP",
            arguments.records * rounds,
            total * rounds as f64,
            started.elapsed(),
        )
    })
}

/// Runs one task per shard and waits for all of them.
async fn each_shard<F: Future<Output = Result<()>> + Send + 'static>(
    shards: u32,
    task: impl Fn(u32) -> F,
) -> Result<()> {
    let tasks: Vec<_> = (0..shards).map(|shard| tokio::spawn(task(shard))).collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

fn report(what: &str, records: usize, bytes: f64, elapsed: Duration) -> Result<()> {
    let seconds = elapsed.as_secs_f64();
    let line = json!({
        "measured": what,
        "records": records,
        "seconds": (seconds * 1_000.0).round() / 1_000.0,
        "mib_per_s": (bytes / MIB / seconds).round(),
        "records_per_s": (records as f64 / seconds).round(),
    });
    writeln!(std::io::stdout(), "{line}").context("cannot print")
}

/// One connection that sends requests and does not parse what it gets.
struct Client {
    sender: http1::SendRequest<Full<Bytes>>,
    host: String,
}

impl Client {
    async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self {
            sender,
            host: address.to_string(),
        })
    }

    /// The end of the answer, which for GetRecords holds all but the records.
    async fn call(&mut self, operation: &str, body: String) -> Result<Bytes> {
        let request = Request::post("/")
            .header("host", &self.host)
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", format!("Kinesis_20131202.{operation}"))
            .body(Full::from(body))?;
        let response = self.sender.send_request(request).await?;
        ensure!(response.status().is_success(), "{operation}: {}", response.status());
        let mut body = response.into_body();
        let mut tail = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            const TAIL: usize = 4_096;
            tail.extend_from_slice(&data[data.len().saturating_sub(TAIL)..]);
            tail.drain(..tail.len().saturating_sub(TAIL));
        }
        Ok(tail.into())
    }
}

async fn write(address: SocketAddr, shard: u32, records: usize, data: Vec<u8>) -> Result<()> {
    const BATCH: usize = 500;
    let mut client = Client::connect(address).await?;
    let data = base64_simd::STANDARD.encode_to_string(data);
    let entries: Vec<_> = (0..BATCH)
        .map(|i| json!({ "Data": data, "PartitionKey": format!("key-{shard}-{i}") }))
        .collect();
    for from in (0..records).step_by(BATCH) {
        let body = json!({ "StreamName": "over-http", "Records": entries[..BATCH.min(records - from)] }).to_string();
        client.call("PutRecords", body).await?;
    }
    Ok(())
}

async fn read(address: SocketAddr, shard: u32, rounds: usize) -> Result<()> {
    let mut client = Client::connect(address).await?;
    for _ in 0..rounds {
        let start = json!({
            "StreamName": STREAM, "ShardId": format!("shardId-{shard:012}"), "ShardIteratorType": "TRIM_HORIZON",
        });
        let answer: Value = serde_json::from_slice(&client.call("GetShardIterator", start.to_string()).await?)?;
        let mut iterator = answer["ShardIterator"].as_str().context("an iterator")?.to_owned();
        loop {
            let tail = client
                .call("GetRecords", json!({ "ShardIterator": iterator }).to_string())
                .await?;
            let rest = tail
                .windows(2)
                .rposition(|pair| pair == b"],")
                .context("the end of the records")?;
            let rest: Value = serde_json::from_slice(&[b"{", &tail[rest + 2..]].concat())?;
            if rest["MillisBehindLatest"] == 0 {
                break;
            }
            iterator = rest["NextShardIterator"].as_str().context("an iterator")?.to_owned();
        }
    }
    Ok(())
}

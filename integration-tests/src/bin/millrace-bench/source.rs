//! The read side: a shard read to its tip over loopback by the SDK as it comes, and by a worker's reader. What counts is the
//! CPU time of the thread that reads, on which everything of the client runs; the emulator has threads of its own. Clients are made
//! before: reading the system's certificates takes as long as reading megabytes.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use aws_sdk_kinesis::types::ShardIteratorType;
use jiff::Timestamp;
use millrace_common::{aws, pipe::StreamIdentity, position::Position};
use millrace_data_plane::source::{
    Budget,
    kinesis::{Client, Limits, Reader, ReaderOptions},
};
use millrace_integration_tests::{
    events::Events,
    kinesis::{Emulator, Options as KinesisOptions, Put},
};
use nix::time::{ClockId, clock_gettime};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{KEYS, median, megabytes, print, rounded};

const STREAM: &str = "source";
const SHARD: &str = "shardId-000000000000";
/// Events in the shard: a dozen answers.
const RECORDS: u64 = 120_000;
/// Room for a few full answers.
const BUDGET: usize = 64 << 20;

/// Measures both, in turns.
pub(super) async fn run(rounds: usize) -> anyhow::Result<()> {
    let kinesis = Emulator::start(KinesisOptions::default()).await?;
    kinesis.create_stream(STREAM, 1)?;
    let events = Events::new(1, KEYS, false);
    let all: Vec<_> = (0..RECORDS).map(|id| events.event(id)).collect();
    kinesis.put_records_direct(STREAM, all.iter().map(|event| Put::new(&event.key, &event.data)))?;
    let bytes: usize = all.iter().map(|event| event.data.len()).sum();
    let access = aws::Access {
        region: "us-east-1".to_owned(),
        endpoint: Some(kinesis.endpoint_url()),
        credential: aws::Credential::Keys {
            access_key_id: "AKIDEXAMPLE".to_owned(),
            secret_access_key: "secret".to_owned().into(),
            session_token: None,
        },
        max_attempts: 1,
        scope: None,
        settings: millrace_common::aws::Settings::default(),
    };
    let (mut stock, mut ours) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let (sdk, reader) = (
            on_one_thread(access.clone(), by_sdk)?,
            on_one_thread(access.clone(), by_reader)?,
        );
        ensure!(
            sdk.1 == RECORDS && reader.1 == RECORDS,
            "{sdk:?} and {reader:?} instead of {RECORDS} records"
        );
        // The first round makes the threads' caches and is not counted.
        if round > 0 {
            stock.push(megabytes(bytes) / sdk.0.as_secs_f64());
            ours.push(megabytes(bytes) / reader.0.as_secs_f64());
        }
    }
    let (stock, ours) = (median(stock), median(ours));
    for (bench, value) in [("source_stock_sdk", stock), ("source", ours)] {
        print(&json!({
            "bench": bench, "data": "clickstream", "value": rounded(value), "unit": "MB of payload per CPU second",
            "ratio": rounded(value / stock), "against": "stock_sdk",
        }))?;
    }
    Ok(())
}

/// CPU time of this thread.
fn spent() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// Runs `read` on a thread and a runtime of its own; returns the CPU time since the moment that it names, and the records that it read.
fn on_one_thread<F>(
    access: aws::Access,
    read: impl FnOnce(aws::Access) -> F + Send + 'static,
) -> anyhow::Result<(Duration, u64)>
where
    F: Future<Output = anyhow::Result<(Duration, u64)>>,
{
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (before, records) = runtime.block_on(read(access))?;
        anyhow::Ok((spent()? - before, records))
    });
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("the reading thread panicked"))?
}

async fn by_sdk(access: aws::Access) -> anyhow::Result<(Duration, u64)> {
    let sdk = aws_sdk_kinesis::Client::new(&aws::config(&access).await);
    sdk.describe_stream_summary().stream_name(STREAM).send().await?;
    let before = spent()?;
    let mut iterator = sdk
        .get_shard_iterator()
        .stream_name(STREAM)
        .shard_id(SHARD)
        .shard_iterator_type(ShardIteratorType::TrimHorizon)
        .send()
        .await?
        .shard_iterator;
    let mut records = 0;
    while records < RECORDS {
        let page = sdk
            .get_records()
            .set_shard_iterator(iterator)
            .limit(10_000)
            .send()
            .await?;
        records += page.records.len() as u64;
        iterator = page.next_shard_iterator;
    }
    Ok((before, records))
}

async fn by_reader(access: aws::Access) -> anyhow::Result<(Duration, u64)> {
    let sdk = aws_sdk_kinesis::Client::new(&aws::config(&access).await);
    let summary = sdk.describe_stream_summary().stream_name(STREAM).send().await?;
    let summary = summary.stream_description_summary.context("a description")?;
    let identity = StreamIdentity {
        arn: summary.stream_arn,
        name: STREAM.to_owned(),
        created: Timestamp::from_millisecond(summary.stream_creation_timestamp.to_millis()?)?,
    };
    let mut options = ReaderOptions::new(identity, SHARD.parse()?, Position::TrimHorizon);
    options.limits = Limits {
        bytes_per_second: None,
        ..Limits::default()
    };
    let (out, mut pages) = mpsc::channel(4);
    let cancel = CancellationToken::new();
    let reader = Reader::new(Client::new(&access).await, options);
    let counters = reader.counters();
    let before = spent()?;
    let reading = Box::pin(reader.run(out, Budget::new(BUDGET), cancel.clone()));
    let taking = async {
        let mut records = 0;
        while records < RECORDS {
            records += pages.recv().await.context("the reader ended early")?.records.len() as u64;
        }
        cancel.cancel();
        anyhow::Ok(records)
    };
    let (stop, records) = tokio::join!(reading, taking);
    stop?;
    ensure!(
        counters.read_by_sdk.load(std::sync::atomic::Ordering::Relaxed) == 0,
        "the SDK read some of it"
    );
    Ok((before, records?))
}

//! The read side: a shard read to its tip over loopback by the SDK as it comes, and by a worker's reader, in both ways of reading. What counts is the
//! CPU time of the thread that reads, on which everything of the client runs; the emulator has threads of its own. Clients are made
//! before: reading the system's certificates takes as long as reading megabytes.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use aws_sdk_kinesis::types::{ShardIteratorType, StartingPosition, SubscribeToShardEventStream};
use jiff::Timestamp;
use millrace_common::{aws, pipe::StreamIdentity, position::Position};
use millrace_data_plane::source::{
    Budget,
    kinesis::{Client, Consumer, Limits, Reader, ReaderOptions},
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
    let kinesis = Emulator::start(KinesisOptions {
        // Subscriptions are pushed as fast as they are read, and follow one another at once.
        enforce_limits: false,
        ..KinesisOptions::default()
    })
    .await?;
    kinesis.create_stream(STREAM, 1)?;
    let consumer = kinesis.register_consumer(STREAM, "bench")?;
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
        identities: None,
        settings: millrace_common::aws::Settings::default(),
    };
    let mut rates: [Vec<f64>; 4] = Default::default();
    for round in 0..=rounds {
        let spent = [
            on_one_thread(access.clone(), by_sdk)?,
            on_one_thread(access.clone(), |access| by_reader(access, None))?,
            on_one_thread(access.clone(), {
                let consumer = consumer.clone();
                |access| by_subscription(access, consumer)
            })?,
            on_one_thread(access.clone(), {
                let consumer = consumer.clone();
                |access| by_reader(access, Some(consumer))
            })?,
        ];
        ensure!(
            spent.iter().all(|(_, records)| *records == RECORDS),
            "{spent:?} instead of {RECORDS} records"
        );
        // The first round makes the threads' caches and is not counted.
        if round > 0 {
            for (rates, (time, _)) in rates.iter_mut().zip(spent) {
                rates.push(megabytes(bytes) / time.as_secs_f64());
            }
        }
    }
    let [stock, ours, stock_events, our_events] = rates.map(median);
    for (bench, value, against) in [
        ("source_stock_sdk", stock, stock),
        ("source", ours, stock),
        ("source_fan_out_stock_sdk", stock_events, stock_events),
        ("source_fan_out", our_events, stock_events),
    ] {
        print(&json!({
            "bench": bench, "data": "clickstream", "value": rounded(value), "unit": "MB of payload per CPU second",
            "ratio": rounded(value / against), "against": "stock_sdk",
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

async fn by_subscription(access: aws::Access, consumer: String) -> anyhow::Result<(Duration, u64)> {
    let sdk = aws_sdk_kinesis::Client::new(&aws::config(&access).await);
    sdk.describe_stream_summary().stream_name(STREAM).send().await?;
    let position = StartingPosition::builder()
        .r#type(ShardIteratorType::TrimHorizon)
        .build()?;
    let before = spent()?;
    let call = sdk
        .subscribe_to_shard()
        .consumer_arn(consumer)
        .shard_id(SHARD)
        .starting_position(position);
    let mut events = call.send().await?.event_stream;
    let mut records = 0;
    while records < RECORDS {
        if let SubscribeToShardEventStream::SubscribeToShardEvent(event) = events.recv().await?.context("an event")? {
            records += event.records.len() as u64;
        }
    }
    Ok((before, records))
}

async fn by_reader(access: aws::Access, consumer: Option<String>) -> anyhow::Result<(Duration, u64)> {
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
    let reader = match consumer {
        Some(arn) => reader.with_fan_out(Consumer::Arn(arn)),
        None => reader,
    };
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

//! Streams with thousands of shards: they list whole over pages, whatever happens to the token, and a pipe on one gets to all of
//! them.

#![allow(clippy::print_stderr, reason = "what was measured is worth reading in the log")]

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures::{FutureExt as _, future::BoxFuture};
use millrace_common::{
    aws::{Access, Credential},
    pipe::StreamRef,
};
use millrace_control_plane::discovery;
use millrace_integration_tests::{
    clickhouse::ClickHouse,
    cluster::{Cluster, Options, Table, pipe_spec},
    kinesis::{Call, Clock, Emulator, Error, Handle, Interceptor, Operation, Options as KinesisOptions, Put},
    process::eventually,
};
use millrace_proto::api::v1::{self as api, PipeState, ShardState};

const STREAM: &str = "many";
/// Shards that the stream begins with; each is then split in two.
const BEFORE: u32 = 1250;
/// Shards that take records in the end.
const OPEN: usize = 2500;
/// All shards that are listed.
const ALL: usize = OPEN + BEFORE as usize;
/// How long it may take until all shards are assigned, on a machine that does other things as well.
const LIMIT: Duration = Duration::from_secs(240);

/// A stream of closed shards that still hold data, and of open ones.
async fn stream(interceptor: Option<Arc<dyn Interceptor>>, clock: Clock) -> anyhow::Result<Handle> {
    let options = KinesisOptions {
        interceptor,
        clock,
        ..KinesisOptions::default()
    };
    let kinesis = Emulator::start(options).await?;
    kinesis.create_stream(STREAM, BEFORE)?;
    kinesis.put_records_direct(STREAM, [Put::new("key", br#"{"id":1}"#)])?;
    for shard in kinesis.shards(STREAM)? {
        kinesis.split_shard(STREAM, &shard.id)?;
    }
    kinesis.put_records_direct(STREAM, [Put::new("key", br#"{"id":2}"#)])?;
    Ok(kinesis)
}

fn access(kinesis: &Handle) -> Access {
    Access {
        region: "us-east-1".to_owned(),
        endpoint: Some(kinesis.endpoint_url()),
        credential: Credential::Keys {
            access_key_id: "AKIDEXAMPLE".to_owned(),
            secret_access_key: "not-a-real-secret".into(),
            session_token: None,
        },
        max_attempts: 2,
        scope: None,
        identities: None,
        settings: millrace_common::aws::Settings::default(),
    }
}

/// Lets the life of a token pass before some calls of ListShards.
struct Slow {
    clock: Clock,
    calls: AtomicUsize,
    before: fn(usize) -> bool,
}

impl Interceptor for Slow {
    fn before<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, Result<(), Error>> {
        if call.operation == Operation::ListShards && (self.before)(self.calls.fetch_add(1, Ordering::Relaxed)) {
            self.clock.advance(Duration::from_secs(301));
        }
        async { Ok(()) }.boxed()
    }
}

async fn slow(before: fn(usize) -> bool) -> anyhow::Result<Handle> {
    let clock = Clock::system();
    let slow = Slow {
        clock: clock.clone(),
        calls: AtomicUsize::new(0),
        before,
    };
    stream(Some(Arc::new(slow)), clock).await
}

#[tokio::test]
async fn a_listing_is_whole_also_when_its_token_expires() -> anyhow::Result<()> {
    let named = StreamRef::Name(STREAM.to_owned());
    // Pages 1 and 2 are there, and the token of the third has expired: all begins again.
    let kinesis = slow(|call| call == 2).await?;
    let began = Instant::now();
    let found = discovery::look(&access(&kinesis), &named).await?;
    let ids: BTreeSet<_> = found.shards.iter().map(|shard| &shard.id).collect();
    let open = found.shards.iter().filter(|shard| shard.open).count();
    ensure!(
        (found.shards.len(), ids.len(), open) == (ALL, ALL, OPEN),
        "{} {} {open}",
        found.shards.len(),
        ids.len()
    );
    let calls = kinesis.calls(Operation::ListShards);
    ensure!(calls == 3 + 4, "{calls} calls");
    eprintln!("{ALL} shards listed within {} ms", began.elapsed().as_millis());

    // A token that is always too old is an error, and never a listing of what came before it.
    let kinesis = slow(|call| call % 4 == 3).await?;
    let found = discovery::look(&access(&kinesis), &named)
        .await
        .map(|stream| stream.shards.len());
    let Err(error) = found else { anyhow::bail!("{found:?}") };
    ensure!(!error.permanent && error.message.contains("ListShards"), "{error:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_reaches_thousands_of_shards() -> anyhow::Result<()> {
    let clickhouse = ClickHouse::shared().await;
    let database = clickhouse.database().await?;
    let kinesis = stream(None, Clock::system()).await?;
    let cluster = Cluster::start(Options::default(), 2).await?;
    cluster.create_credentials(clickhouse).await?;
    let table = Table {
        database: &database,
        table: "many",
        columns: &[("id", "UInt64")],
        sorting_key: &["id"],
    };
    let spec = api::Pipe {
        scaling: Some(api::Scaling { replicas: 2 }),
        ..pipe_spec(&kinesis.endpoint_url(), STREAM, clickhouse, table)
    };
    let began = Instant::now();
    cluster.create_pipe("many", spec).await?;
    let created = began.elapsed();
    cluster
        .wait_for_state("many", PipeState::Running, LIMIT)
        .await
        .with_context(|| cluster.logs())?;
    let running = began.elapsed();
    let assigned = eventually("all shards are assigned", LIMIT, || async {
        let pipe = cluster.pipe("many").await?;
        let shards = pipe.status.unwrap_or_default().shards;
        let count = |state: ShardState| shards.iter().filter(|shard| shard.state() == state).count();
        let (finished, assigned) = (count(ShardState::Finished), count(ShardState::Assigned));
        ensure!(
            (finished, assigned) == (BEFORE as usize, OPEN),
            "{finished} finished, {assigned} assigned of {}",
            shards.len()
        );
        let of = |worker: &str| shards.iter().filter(|shard| shard.worker_id == worker).count();
        Ok::<_, anyhow::Error>((of("worker-0"), of("worker-1")))
    });
    let (first, second) = assigned.await.with_context(|| cluster.logs())?;
    let took = began.elapsed();
    let used = |process: Option<&millrace_integration_tests::process::Process>| {
        process
            .and_then(|process| process.cpu_time())
            .unwrap_or_default()
            .as_secs_f64()
    };
    let cpu = used(cluster.control_plane());
    eprintln!(
        "{BEFORE} closed and {OPEN} open shards over 2 workers ({first} + {second}): created {} ms, running {} ms, all assigned {} ms; \
         control plane {cpu:.1} CPU s, workers {:.1} + {:.1}",
        created.as_millis(),
        running.as_millis(),
        took.as_millis(),
        used(cluster.worker(0)),
        used(cluster.worker(1)),
    );
    ensure!(
        first.abs_diff(second) < OPEN / 2,
        "they are not spread: {first} {second}"
    );
    cluster
        .wait_for_records("many", 2, LIMIT)
        .await
        .with_context(|| cluster.logs())?;
    let rows = clickhouse
        .query(&format!(
            "SELECT groupArray(id) FROM (SELECT id FROM {database}.many ORDER BY id)"
        ))
        .await?;
    ensure!(rows.trim() == "[1,2]", "{rows}");
    // Nothing goes on by itself: what it costs to keep them is small.
    let (cpu, since) = (used(cluster.control_plane()), Instant::now());
    let generation = cluster.pipe("many").await?.status.unwrap_or_default().shards;
    eventually("some heartbeats", LIMIT, || async {
        since.elapsed() > Duration::from_secs(5)
    })
    .await?;
    let share = (used(cluster.control_plane()) - cpu) / since.elapsed().as_secs_f64();
    let later = cluster.pipe("many").await?.status.unwrap_or_default().shards;
    let epochs = |shards: &[api::ShardStatus]| shards.iter().map(|shard| shard.epoch).sum::<u64>();
    eprintln!("keeping them costs the control plane {share:.2} of a core");
    ensure!(
        epochs(&generation) == epochs(&later),
        "shards move although nothing has changed"
    );
    ensure!(share < 0.8, "the control plane uses {share:.2} of a core for nothing");
    Ok(())
}

//! Streams that are split and merged while a pipe reads them, over several workers: every record once, and the records of a
//! partition key in the table in the order in which they were put, whichever shards and workers they went through.

#![allow(clippy::print_stderr, reason = "what was done is worth reading in the log")]

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use millrace_integration_tests::{
    clickhouse::ClickHouse,
    flow::{Flow, LIMIT, Shape},
    kinesis::ShardInfo,
    ledger::{self, Tables},
    process::eventually,
    timeline,
};
use millrace_proto::api::v1::ShardState;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use tokio::sync::Mutex;

/// Events per second.
const LOAD: u64 = 2000;
/// Events put into each generation of shards where no load runs.
const PER_GENERATION: u64 = 1500;
/// More open shards than this are merged rather than split.
const MANY_SHARDS: usize = 10;
/// Two cores are enough for one cluster at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// Leases that end sooner than by default, since workers are killed here and takeovers are timed elsewhere.
fn shape(shards: u32, workers: usize) -> Shape {
    let mut shape = Shape::new(shards, workers);
    shape
        .options
        .control_plane_args
        .extend(["--lease-ttl=2s", "--heartbeat-interval=300ms"].map(str::to_owned));
    shape
}

fn seeded() -> SmallRng {
    let seed = std::env::var("MILLRACE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    eprintln!("MILLRACE_SEED={seed}");
    SmallRng::seed_from_u64(seed)
}

#[tokio::test(flavor = "multi_thread")]
async fn resharding_under_load_keeps_the_order_of_keys_over_three_workers() -> anyhow::Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut rng = seeded();
    let mut flow = Flow::start(shape(2, 3)).await?;
    let load = flow.load(0, LOAD);
    flow.committed(1).await?;
    for step in 0..12 {
        reshard(&flow, &mut rng, step)?;
        if step == 6 {
            // In the middle of it a worker dies, and comes back as another process.
            let victim = rng.random_range(0..3);
            flow.cluster.kill_worker(victim).await?;
            reshard(&flow, &mut rng, step)?;
            flow.cluster.start_worker(victim)?;
        }
        if rng.random_bool(0.6) {
            flow.committed(load.records()).await?;
        }
    }
    let records = load.stop()?;
    eprintln!("reshards under load: {}", flow.check(records).await?);
    settled(&flow).await?;
    lineage_was_kept(&flow)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_reshards_while_stopped_is_read_in_order() -> anyhow::Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut rng = seeded();
    let flow = Flow::start(shape(3, 2)).await?;
    flow.put(0..PER_GENERATION)?;
    flow.committed(PER_GENERATION).await?;
    flow.run(false).await?;
    let mut next = PER_GENERATION;
    for step in 0..8 {
        flow.put(next..next + PER_GENERATION)?;
        next += PER_GENERATION;
        reshard(&flow, &mut rng, step)?;
    }
    flow.put(next..next + PER_GENERATION)?;
    next += PER_GENERATION;
    let before = flow.pipe().await?.status.unwrap_or_default().totals.unwrap_or_default();
    ensure!(before.records == PER_GENERATION, "a stopped pipe has moved: {before:?}");
    flow.run(true).await?;
    eprintln!("reshards while stopped: {}", flow.check(next).await?);
    settled(&flow).await?;
    lineage_was_kept(&flow)
}

/// A merge whose parents are on two workers: it waits for both, wherever they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_merge_waits_for_both_parents_across_workers() -> anyhow::Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    // Leases as by default: long enough for the other parent to end meanwhile.
    let mut flow = Flow::start(Shape::new(2, 2)).await?;
    flow.put(0..PER_GENERATION)?;
    flow.committed(PER_GENERATION).await?;
    let owners = flow.held_by(&[0, 1]).await?;
    let (slow, _) = owners.values().next().context("two shards")?.clone();
    let slow: usize = slow.trim_start_matches("worker-").parse()?;

    // One parent's worker stands still with records unread; the other parent ends.
    flow.cluster.worker(slow).context("it runs")?.pause()?;
    flow.put(PER_GENERATION..2 * PER_GENERATION)?;
    let open = open(&flow)?;
    flow.kinesis.merge_shards(flow.stream(), &open[0].id, &open[1].id)?;
    flow.put(2 * PER_GENERATION..3 * PER_GENERATION)?;
    let child = self::open(&flow)?[0].id.clone();
    eventually("the other parent is finished and the child waits", LIMIT, || async {
        let shards = flow.pipe().await?.status.unwrap_or_default().shards;
        let state = |id: &str| {
            shards
                .iter()
                .find(|shard| shard.shard_id == id)
                .map(|shard| shard.state())
        };
        let finished = shards
            .iter()
            .filter(|shard| shard.state() == ShardState::Finished)
            .count();
        ensure!(finished < 2, "both parents are finished while one is not read");
        ensure!(finished == 1, "{finished} parents are finished");
        ensure!(
            state(&child) == Some(ShardState::WaitingForParents),
            "the child is {:?}",
            state(&child)
        );
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    // Its lease ends, and the other worker reads the rest of it, and then the child.
    eprintln!("a merge over two workers: {}", flow.check(3 * PER_GENERATION).await?);
    flow.cluster.worker(slow).context("it runs")?.resume()?;
    settled(&flow).await?;
    lineage_was_kept(&flow)?;
    flow.cluster.kill_worker(slow).await?;
    Ok(())
}

/// The check of the order can fail.
#[tokio::test]
async fn a_planted_disorder_is_found() -> anyhow::Result<()> {
    let clickhouse = ClickHouse::shared().await;
    let database = clickhouse.database().await?;
    let tables = Tables {
        database: &database,
        table: "planted",
        errors: "none",
    };
    let create = format!(
        "CREATE TABLE {database}.planted (id UInt64, seq_in_key UInt64, _key String) ENGINE = MergeTree ORDER BY id"
    );
    clickhouse.query(&create).await?;
    ledger::stop_merges(clickhouse, tables).await?;
    let insert = async |rows: &str| {
        let insert = format!("INSERT INTO {database}.planted SETTINGS async_insert = 0 VALUES {rows}");
        clickhouse.query(&insert).await
    };
    insert("(0, 0, 'a'), (1, 0, 'b')").await?;
    insert("(2, 1, 'a'), (3, 2, 'a')").await?;
    insert("(4, 1, 'b'), (5, 4, 'a')").await?;
    let arrival = ledger::arrival(clickhouse, tables).await?;
    ensure!((arrival.blocks, arrival.late) == (3, 0), "{arrival:?}");
    // Number 3 of a comes after number 4 of it; c comes whole.
    insert("(6, 3, 'a'), (7, 0, 'c'), (8, 2, 'b')").await?;
    let arrival = ledger::arrival(clickhouse, tables).await?;
    ensure!(
        (arrival.blocks, arrival.late, arrival.keys.as_slice()) == (4, 1, &["a".to_owned()][..]),
        "{arrival:?}"
    );
    Ok(())
}

/// The shards that take records, by the keys that they take.
fn open(flow: &Flow) -> anyhow::Result<Vec<ShardInfo>> {
    let mut open: Vec<_> = flow
        .kinesis
        .shards(flow.stream())?
        .into_iter()
        .filter(|shard| shard.is_open)
        .collect();
    open.sort_by_key(|shard| shard.range.start_inclusive);
    Ok(open)
}

/// Splits, merges or rescales the stream.
fn reshard(flow: &Flow, rng: &mut SmallRng, step: usize) -> anyhow::Result<()> {
    let shards = open(flow)?;
    let (at, count) = (rng.random_range(0..shards.len()), shards.len());
    let kind = match step % 4 {
        0 => 0,
        1 => 1,
        _ => rng.random_range(0..3),
    };
    match kind {
        1 if count > 1 => {
            let at = at.min(count - 2);
            flow.kinesis
                .merge_shards(flow.stream(), &shards[at].id, &shards[at + 1].id)?;
        }
        2 => {
            let target = if count >= MANY_SHARDS {
                count.div_ceil(2)
            } else {
                count + 1 + rng.random_range(0..count)
            };
            flow.kinesis
                .update_shard_count(flow.stream(), u32::try_from(target.min(2 * count).max(1))?)?;
        }
        _ if count < MANY_SHARDS => flow.kinesis.split_shard(flow.stream(), &shards[at].id)?,
        _ => flow.kinesis.merge_shards(flow.stream(), &shards[0].id, &shards[1].id)?,
    }
    Ok(())
}

/// Waits until every shard that has ended is finished and every other one is held: nothing is stuck, and none is missing.
async fn settled(flow: &Flow) -> anyhow::Result<()> {
    let settled = eventually("every shard is finished or held", LIMIT, || async {
        let stream = flow.kinesis.shards(flow.stream())?;
        let known: BTreeMap<String, ShardState> = flow
            .pipe()
            .await?
            .status
            .unwrap_or_default()
            .shards
            .into_iter()
            .map(|shard| (shard.shard_id.clone(), shard.state()))
            .collect();
        for shard in &stream {
            let wanted = if shard.is_open {
                ShardState::Assigned
            } else {
                ShardState::Finished
            };
            let found = known.get(&shard.id).copied();
            ensure!(found == Some(wanted), "{} is {found:?}, not {wanted:?}", shard.id);
        }
        ensure!(
            known.len() == stream.len(),
            "the pipe knows {} shards of {}",
            known.len(),
            stream.len()
        );
        Ok::<_, anyhow::Error>(stream.len())
    });
    let shards = settled.await.with_context(|| flow.cluster.logs())?;
    eprintln!("{shards} shards in all");
    Ok(())
}

/// By the logs: no worker took up a shard before each of its parents was finished, which is after all of it was committed.
fn lineage_was_kept(flow: &Flow) -> anyhow::Result<()> {
    let lines = flow.timeline()?;
    let finished: BTreeMap<&str, Timestamp> = lines
        .iter()
        .filter(|line| line.message == "shard finished")
        .map(|line| (line.text("shard"), line.at))
        .collect();
    let moves = timeline::moves(&lines);
    let worker_of = |shard: &str| moves.iter().rev().find(|m| m.shard == shard).map(|m| m.to.as_str());
    let mut waits = Vec::new();
    let (mut merges, mut across) = (0, 0);
    for shard in flow.kinesis.shards(flow.stream())? {
        let Some(first) = moves.iter().find(|m| m.shard == shard.id) else {
            continue;
        };
        for parent in &shard.parents {
            let at = finished
                .get(parent.as_str())
                .with_context(|| format!("{parent} was never finished"))?;
            ensure!(
                first.held >= *at,
                "{} was taken up before its parent {parent} was finished",
                shard.id
            );
        }
        if let Some(last) = shard
            .parents
            .iter()
            .filter_map(|parent| finished.get(parent.as_str()))
            .max()
        {
            waits.push(timeline::since(*last, first.read.unwrap_or(first.held)));
        }
        if let [a, b] = &shard.parents[..] {
            merges += 1;
            across += u32::from(worker_of(a) != worker_of(b));
        }
    }
    let waits: timeline::Spread = waits.into_iter().collect();
    eprintln!("last parent finished -> child read {waits}; {merges} merges, {across} of them over two workers");
    ensure!(
        waits.max < Duration::from_secs(30),
        "a child waited for {:?}",
        waits.max
    );
    Ok(())
}

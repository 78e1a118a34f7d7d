//! Shards that move between workers under load, at the default settings of leases: planned moves, a dead worker, a rolling
//! restart, a worker that was frozen past its lease. How long it took is read from the logs and printed; the limits asserted
//! here are generous, because tests share the machine.

#![allow(clippy::print_stderr, reason = "what was measured is worth reading in the log")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use millrace_integration_tests::{
    flow::{Flow, LIMIT, Shape},
    process::eventually,
    timeline::{self, Move, Spread, since},
};
use tokio::sync::Mutex;

/// Events per second: a load that needs no second core.
const LOAD: u64 = 2000;
/// Shards of the stream.
const SHARDS: u32 = 8;
/// A planned move pauses a shard for less than 1 s on an idle machine.
const PLANNED_LIMIT: Duration = Duration::from_secs(5);
/// A dead worker's shards are read elsewhere within 10 s on an idle machine, of which 8 s are the lease.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(20);
/// How long a worker may take to leave; its own deadline is 25 s.
const LEAVE_LIMIT: Duration = Duration::from_secs(24);
/// What is timed is not run beside other things that are.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
async fn planned_moves_are_short_and_resend_nothing() -> anyhow::Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut flow = Flow::start(Shape {
        replicas: 1,
        ..Shape::new(SHARDS, 1)
    })
    .await?;
    let load = flow.load(0, LOAD);
    let mut steps = Steps::default();
    flow.held_by(&[0]).await?;

    // More workers change nothing while the pipe may be on one only.
    flow.cluster.add_worker()?;
    flow.cluster.add_worker()?;
    progress(&flow, load.records()).await?;
    flow.held_by(&[0]).await?;

    steps.begin("replicas 1 -> 3");
    flow.set_replicas(3).await?;
    flow.held_by(&[0, 1, 2]).await?;
    progress(&flow, load.records()).await?;

    steps.begin("replicas 3 -> 1");
    flow.set_replicas(1).await?;
    let holder = eventually("one worker holds all", LIMIT, || async {
        let owners = flow.owners().await?;
        let first = owners
            .values()
            .next()
            .map(|(worker, _)| worker.clone())
            .unwrap_or_default();
        ensure!(owners.values().all(|(worker, _)| *worker == first), "{owners:?}");
        Ok(first)
    })
    .await?;
    progress(&flow, load.records()).await?;
    flow.set_replicas(3).await?;
    flow.held_by(&[0, 1, 2]).await?;
    progress(&flow, load.records()).await?;

    steps.begin("a worker leaves");
    leave(&mut flow, 1).await?;
    flow.held_by(&[0, 2]).await?;
    progress(&flow, load.records()).await?;

    steps.begin("a worker is added");
    flow.cluster.start_worker(1)?;
    flow.held_by(&[0, 1, 2]).await?;
    progress(&flow, load.records()).await?;

    let records = load.stop()?;
    eprintln!(
        "planned moves (all were on {holder} in between): {}",
        flow.check(records).await?
    );
    steps.report(&flow, PLANNED_LIMIT)?;
    let replays = timeline::replays(&flow.timeline()?).len();
    ensure!(replays == 0, "{replays} batches were sent again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_loses_nothing_and_resends_nothing() -> anyhow::Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut flow = Flow::start(Shape::new(SHARDS, 3)).await?;
    let load = flow.load(0, LOAD);
    flow.held_by(&[0, 1, 2]).await?;
    progress(&flow, load.records()).await?;
    let mut steps = Steps::default();
    steps.begin("rolling restart of 3 workers");
    for index in 0..3 {
        leave(&mut flow, index).await?;
        flow.cluster.start_worker(index)?;
        flow.held_by(&[0, 1, 2]).await?;
        progress(&flow, load.records()).await?;
    }
    let records = load.stop()?;
    eprintln!("rolling restart: {}", flow.check(records).await?);
    steps.report(&flow, PLANNED_LIMIT)?;
    let replays = timeline::replays(&flow.timeline()?).len();
    ensure!(replays == 0, "{replays} batches were sent again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_of_a_dead_worker_and_of_a_frozen_one_are_read_elsewhere() -> anyhow::Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut flow = Flow::start(Shape::new(SHARDS, 3)).await?;
    let load = flow.load(0, LOAD);
    flow.held_by(&[0, 1, 2]).await?;
    progress(&flow, load.records()).await?;

    let died = Timestamp::now();
    flow.cluster.kill_worker(0).await?;
    flow.held_by(&[1, 2]).await?;
    progress(&flow, load.records()).await?;
    report_takeover(&flow, "a worker died", died, "worker-0")?;
    flow.cluster.start_worker(0)?;
    flow.held_by(&[0, 1, 2]).await?;
    progress(&flow, load.records()).await?;

    let frozen = Timestamp::now();
    let worker = flow.cluster.worker(1).context("worker 1 runs")?;
    worker.pause()?;
    flow.held_by(&[0, 2]).await?;
    progress(&flow, load.records()).await?;
    let woken = Timestamp::now();
    worker.resume()?;
    // It finds that nothing is its own any more, lets go, and is given shards anew.
    flow.held_by(&[0, 1, 2]).await?;
    let own = eventually("the woken worker reads under new leases", LIMIT, || async {
        let moves = timeline::moves(&flow.timeline()?);
        let anew = moves
            .iter()
            .filter(|m| m.to == "worker-1" && m.held > woken && m.read.is_some());
        Some(anew.count()).filter(|count| *count > 0).context("none")
    })
    .await?;
    ensure!(
        flow.cluster.worker(1).is_some_and(|worker| worker.is_running()),
        "it is the same process"
    );
    progress(&flow, load.records()).await?;
    report_takeover(&flow, "a worker froze", frozen, "worker-1")?;
    let records = load.stop()?;
    eprintln!(
        "a dead and a frozen worker: {}; the frozen one has {own} shards anew",
        flow.check(records).await?
    );
    Ok(())
}

/// Waits until what was put so far is committed: the pipe moves on.
async fn progress(flow: &Flow, records: u64) -> anyhow::Result<()> {
    flow.committed(records).await
}

/// SIGTERM: the worker gives back what it has, says goodbye, and ends well.
async fn leave(flow: &mut Flow, index: usize) -> anyhow::Result<()> {
    let asked = Instant::now();
    let worker = flow.cluster.worker(index).context("the worker runs")?;
    let status = worker.stop(LEAVE_LIMIT).await?;
    ensure!(
        status.success(),
        "worker {index} ended with {status}\n{}",
        worker.log_tail(40)
    );
    eprintln!("worker {index} left within {} ms", asked.elapsed().as_millis());
    flow.cluster.stop_worker(index).await
}

/// What happened, in parts.
#[derive(Default)]
struct Steps(Vec<(&'static str, Timestamp)>);

impl Steps {
    fn begin(&mut self, what: &'static str) {
        self.0.push((what, Timestamp::now()));
    }

    fn report(&self, flow: &Flow, limit: Duration) -> anyhow::Result<()> {
        let moves = timeline::moves(&flow.timeline()?);
        for (n, (what, from)) in self.0.iter().enumerate() {
            let until = self.0.get(n + 1).map_or(Timestamp::MAX, |(_, at)| *at);
            let planned: Vec<&Move> = moves
                .iter()
                .filter(|m| m.asked.is_some_and(|asked| asked >= *from && asked < until))
                .collect();
            ensure!(!planned.is_empty(), "{what}: nothing moved");
            let drained: Spread = planned
                .iter()
                .filter_map(|m| Some(since(m.asked?, m.released?)))
                .collect();
            let read: Spread = planned.iter().filter_map(|m| m.pause()).collect();
            let committed: Spread = planned
                .iter()
                .filter_map(|m| Some(since(m.asked?, m.committed?)))
                .collect();
            eprintln!(
                "{what}: asked -> drained {drained}; -> read by the next {read}; -> committed by the next {committed}"
            );
            ensure!(
                read.count == planned.len(),
                "{what}: a shard was not read again: {planned:?}"
            );
            ensure!(read.max < limit, "{what}: a shard paused for {:?}", read.max);
        }
        Ok(())
    }
}

/// How long the shards of a worker that is gone since `gone` were not read.
fn report_takeover(flow: &Flow, what: &str, gone: Timestamp, worker: &str) -> anyhow::Result<()> {
    let moves = timeline::moves(&flow.timeline()?);
    let before = |shard: &str| moves.iter().rev().find(|m| m.shard == shard && m.held < gone);
    let taken: Vec<&Move> = moves
        .iter()
        .filter(|m| m.held > gone && m.asked.is_none() && m.to != worker)
        .filter(|m| before(&m.shard).is_some_and(|before| before.to == worker))
        .collect();
    ensure!(!taken.is_empty(), "{what}: it had no shards");
    let held: Spread = taken.iter().map(|m| since(gone, m.held)).collect();
    let read: Spread = taken.iter().filter_map(|m| Some(since(gone, m.read?))).collect();
    let committed: Spread = taken.iter().filter_map(|m| Some(since(gone, m.committed?))).collect();
    let replays = timeline::replays(&flow.timeline()?)
        .iter()
        .filter(|line| line.at > gone)
        .count();
    eprintln!("{what}: taken up {held}; read {read}; committed {committed}; {replays} batches replayed");
    ensure!(read.count == taken.len(), "{what}: a shard is not read: {taken:?}");
    ensure!(
        read.max < TAKEOVER_LIMIT,
        "{what}: a shard was not read for {:?}",
        read.max
    );
    Ok(())
}

//! Whole pipes that read by enhanced fan-out: its consumer, and every record once in the table through reshards, renewals,
//! stalls, the death of a worker, and changes between fan-out and polling.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_common::reason;
use millrace_integration_tests::flow::{Flow, LIMIT, Shape};
use millrace_integration_tests::kinesis::{ErrorKind, Fault, Operation, Rule};
use millrace_integration_tests::process::eventually;
use millrace_proto::api::v1::PipeState;
use tokio::sync::Mutex;

/// Events per second.
const LOAD: u64 = 1_000;
const POLL: Duration = Duration::from_millis(100);
/// Two cores are enough for one cluster at a time.
pub(super) static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// Leases that end sooner than by default, since workers are killed here.
pub(super) fn shape(shards: u32, workers: usize) -> Shape {
    let mut shape = Shape::new(shards, workers);
    shape.fan_out = true;
    shape
        .options
        .control_plane_args
        .extend(["--lease-ttl=2s", "--heartbeat-interval=300ms"].map(str::to_owned));
    shape
}

/// Waits until all open shards are subscribed to, and so nothing is polled any more.
async fn pushed(flow: &Flow) -> Result<()> {
    let mut polled = flow.kinesis.calls(Operation::GetRecords);
    let mut since = Instant::now();
    let started = since;
    while since.elapsed() < Duration::from_secs(3) {
        ensure!(started.elapsed() < LIMIT, "it goes on polling: {}", flow.cluster.logs());
        tokio::time::sleep(POLL).await;
        let now = flow.kinesis.calls(Operation::GetRecords);
        if now != polled {
            (polled, since) = (now, Instant::now());
        }
    }
    ensure!(
        flow.kinesis.calls(Operation::SubscribeToShard) > 0,
        "nobody has subscribed"
    );
    Ok(())
}

async fn consumers(flow: &Flow, wanted: &[String]) -> Result<()> {
    eventually("the consumers", LIMIT, || async {
        let names: Vec<String> = flow
            .kinesis
            .consumers(flow.stream())?
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        ensure!(names == wanted, "{names:?}");
        Ok(())
    })
    .await
    .with_context(|| flow.cluster.logs())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_once_through_reshards_renewals_stalls_and_a_dead_worker() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut flow = Flow::start(shape(4, 2)).await?;
    let consumer = format!("millrace-{}", flow.pipe().await?.uid);
    consumers(&flow, std::slice::from_ref(&consumer)).await?;
    let load = flow.load(0, LOAD);
    pushed(&flow).await?;
    flow.committed(load.records()).await?;

    // The end of their time, for all at once.
    flow.kinesis.clock().advance(Duration::from_secs(300));
    flow.committed(load.records()).await?;
    flow.kinesis.split_shard(flow.stream(), "shardId-000000000000")?;
    flow.kinesis.script(Rule::on_event(Fault::BadCrc).of_shard(1).times(2));
    flow.kinesis.script(Rule::on_event(Fault::Break).of_shard(2).times(2));
    flow.kinesis
        .script(Rule::on_event(Fault::StallInFrame).of_shard(3).times(1));
    flow.kinesis.script(
        Rule::on_event(Fault::Error(ErrorKind::InternalFailure))
            .of_shard(4)
            .times(2),
    );
    flow.committed(load.records()).await?;
    flow.kinesis
        .merge_shards(flow.stream(), "shardId-000000000004", "shardId-000000000005")?;
    flow.cluster.kill_worker(0).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    flow.cluster.start_worker(0)?;
    flow.committed(load.records()).await?;
    let records = load.stop()?;
    eprintln!("{}", flow.check(records).await?);
    let calls = flow.kinesis.calls(Operation::SubscribeToShard);
    eprintln!("{calls} calls of SubscribeToShard");
    ensure!(calls < 200, "{calls}");

    flow.cluster.delete_pipe("flow").await?;
    consumers(&flow, &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_pipe_changes_between_polling_and_fan_out_and_keeps_its_place() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut shape = shape(3, 1);
    shape.fan_out = false;
    let flow = Flow::start(shape).await?;
    let consumer = format!("millrace-{}", flow.pipe().await?.uid);
    let load = flow.load(0, LOAD);
    flow.committed(load.records()).await?;
    consumers(&flow, &[]).await?;
    ensure!(flow.kinesis.calls(Operation::SubscribeToShard) == 0);
    for round in 0..2 {
        flow.set_fan_out(true).await?;
        consumers(&flow, std::slice::from_ref(&consumer)).await?;
        pushed(&flow).await?;
        flow.committed(load.records()).await?;
        let subscribed = flow.kinesis.calls(Operation::SubscribeToShard);
        flow.set_fan_out(false).await?;
        consumers(&flow, &[]).await?;
        flow.committed(load.records()).await?;
        eprintln!("round {round}: {subscribed} subscriptions so far");
    }
    let records = load.stop()?;
    eprintln!("{}", flow.check(records).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_worker_reads_256_shards() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let flow = Flow::start(shape(256, 1)).await?;
    let started = Instant::now();
    flow.put(0..20_000)?;
    flow.committed(20_000).await?;
    eprintln!(
        "20,000 records committed after {:.1} s",
        started.elapsed().as_secs_f64()
    );
    pushed(&flow).await?;
    eprintln!("all shards subscribed after {:.1} s", started.elapsed().as_secs_f64());
    // They all end in the same moment.
    flow.kinesis.clock().advance(Duration::from_secs(300));
    let renewed = Instant::now();
    flow.put(20_000..40_000)?;
    flow.committed(40_000).await?;
    eprintln!(
        "20,000 more {:.1} s after the end of all subscriptions",
        renewed.elapsed().as_secs_f64()
    );
    let calls = flow.kinesis.calls(Operation::SubscribeToShard);
    let worker = flow.cluster.worker(0).context("a worker")?;
    let peak = worker.peak_resident_bytes().context("memory of the worker")? / 1_000_000;
    eprintln!("{calls} calls of SubscribeToShard; {peak} MB at the peak");
    // Once each, once more each, and those that were refused within five seconds of another.
    ensure!((512..1_024).contains(&calls), "{calls}");
    eprintln!("{}", flow.check(40_000).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_it_is_http2_and_a_consumer_that_is_slow_to_come_is_waited_for() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut shape = shape(4, 1);
    shape.tls = true;
    shape.transition = Duration::from_secs(4);
    let flow = Flow::start(shape).await?;
    let load = flow.load(0, LOAD);
    // It does not wait with reading.
    flow.committed(1).await?;
    pushed(&flow).await?;
    flow.committed(load.records()).await?;
    flow.kinesis.script(Rule::on_event(Fault::GoAway).of_shard(0).times(1));
    flow.kinesis.script(Rule::on_event(Fault::Reset).of_shard(1).times(1));
    flow.committed(load.records() + LOAD).await?;
    let records = load.stop()?;
    eprintln!("{}", flow.check(records).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_with_all_its_consumers_is_polled_and_the_pipe_says_so() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut shape = shape(2, 1);
    shape.fan_out = false;
    let flow = Flow::start(shape).await?;
    for index in 0..20 {
        flow.kinesis
            .register_consumer(flow.stream(), &format!("other-{index}"))?;
    }
    flow.set_fan_out(true).await?;
    flow.put(0..1_000)?;
    flow.committed(1_000).await?;
    let said = eventually("the pipe says that it polls", LIMIT, || async {
        let status = flow.pipe().await?.status.unwrap_or_default();
        ensure!(
            status.reason == reason::SOURCE_FAN_OUT_UNAVAILABLE,
            "{} {}",
            status.reason,
            status.message
        );
        Ok(status)
    })
    .await
    .with_context(|| flow.cluster.logs())?;
    eprintln!("{} {}: {}", said.state().as_str_name(), said.reason, said.message);
    ensure!(said.state() != PipeState::Failed, "{}", said.message);
    flow.put(1_000..2_000)?;
    eprintln!("{}", flow.check(2_000).await?);
    Ok(())
}

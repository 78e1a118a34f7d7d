//! Batches that a dead worker left open: they are finished first, the oldest first, as they were recorded; and one that cannot be
//! rebuilt as it was halts its pipe until a person has acted.

#![allow(clippy::print_stderr, reason = "what was found is worth reading in the log")]

use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_integration_tests::{
    clickhouse::ClickHouse,
    cluster::{Table, pipe_spec},
    flow::{Flow, LIMIT, NAME, Shape},
    process::eventually,
    timeline::{self, Line},
};
use millrace_proto::api::v1::{self as api, PipeState};
use sqlx::Connection as _;
use tokio::sync::Mutex;

/// Events of each part.
const PART: u64 = 2000;
/// Events per second while the destination is away.
const LOAD: u64 = 2000;
/// The engine is frozen here, so one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// Freezes the destination under load until several batches are recorded, and then kills the worker. Returns the next event.
async fn leave_open_batches(flow: &mut Flow, first: u64) -> anyhow::Result<u64> {
    let clickhouse = ClickHouse::shared().await;
    clickhouse.pause()?;
    let load = flow.load(first, LOAD);
    let open = eventually("two batches of one shard are open", LIMIT, || async {
        let shards = flow.pipe().await?.status.unwrap_or_default().shards;
        let most = shards.iter().map(|shard| shard.open_batches).max().unwrap_or_default();
        ensure!(most >= 2, "{most} are");
        Ok::<_, anyhow::Error>(most)
    })
    .await;
    let next = load.stop()?;
    flow.cluster.kill_worker(0).await?;
    clickhouse.resume()?;
    eprintln!("the worker died with {} batches open", open?);
    Ok(next)
}

#[tokio::test(flavor = "multi_thread")]
async fn open_batches_come_first_and_as_they_were_recorded() -> anyhow::Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let clickhouse = ClickHouse::shared().await;
    let mut flow = Flow::start(Shape::new(3, 1)).await?;
    flow.put(0..PART)?;
    flow.committed(PART).await?;
    let next = leave_open_batches(&mut flow, PART).await?;

    // Meanwhile the pipe is given other mappings: what was recorded was decoded with the old ones.
    let mapping = |(column, field): (&str, &str)| api::FieldMapping {
        source_field: field.to_owned(),
        destination_field: column.to_owned(),
        ..Default::default()
    };
    let mappings = [
        ("id", "id"),
        ("event_type", "country"),
        ("seq_in_key", "seq_in_key"),
        ("amount", "amount"),
        ("tags", "tags"),
        ("_key", "_key"),
        ("_sequence_number", "_sequence_number"),
    ];
    let change = api::Pipe {
        field_mappings: mappings.map(mapping).to_vec(),
        ..api::Pipe::default()
    };
    flow.cluster.update_pipe(NAME, change, &["field_mappings"]).await?;
    flow.cluster.start_worker(0)?;
    flow.put(next..next + PART)?;
    let records = next + PART;
    eprintln!("recovery: {}", flow.check(records).await?);

    let lines = flow.timeline()?;
    let replays = timeline::replays(&lines);
    let ids: Vec<&str> = replays.iter().map(|line| line.text("batch")).collect();
    ensure!(ids.len() >= 2, "{ids:?} were replayed");
    ensure!(replays.iter().all(|line| line.fields["revision"] == 1), "{replays:?}");
    let started = replays[0].at;
    let after = |message: &str| {
        lines
            .iter()
            .filter(|line| line.message == message && line.at >= started)
            .collect::<Vec<&Line>>()
    };
    let committed = after("committed");
    let committed: Vec<_> = committed
        .into_iter()
        .filter(|line| ids.contains(&line.text("batch")))
        .collect();
    let order: Vec<&str> = committed.iter().map(|line| line.text("batch")).collect();
    ensure!(order == ids, "{ids:?} were replayed, but committed were {order:?}");
    // The ids of one worker's batches rise.
    ensure!(ids.is_sorted(), "{ids:?} is not the order in which they were made");
    for batch in &committed {
        let tied: Vec<&str> = batch.text("shards").split(' ').collect();
        let early = |line: &&&Line| line.at < batch.at && tied.contains(&line.text("shard"));
        let early = after("reading")
            .iter()
            .find(early)
            .map(|line| line.text("shard").to_owned());
        ensure!(
            early.is_none(),
            "{early:?} was read before its open batches were committed"
        );
    }

    // Each block is of one revision: the replayed ones of the old, everything after them of the new.
    let tables = flow.tables();
    let by_block = format!(
        "SELECT countIf(old > 0 AND new > 0), sum(old) FROM (SELECT countIf(length(event_type) = 2) AS new, count() - new AS old \
         FROM {}.{} GROUP BY _part) FORMAT TSV",
        tables.database, tables.table
    );
    let found = clickhouse.query(&by_block).await?;
    let (mixed, old) = found.trim().split_once('\t').context("two numbers")?;
    let rows: u64 = replays.iter().filter_map(|line| line.fields["rows"].as_u64()).sum();
    let before = PART - (0..PART).filter(|id| flow.events.is_malformed(*id)).count() as u64;
    ensure!(mixed == "0", "{mixed} blocks are of both revisions");
    ensure!(
        old.parse::<u64>()? == before + rows,
        "{old} rows of the old revision, {before} before and {rows} replayed"
    );
    let newer = format!(
        "SELECT count() FROM {}.{} WHERE id >= {next} AND length(event_type) != 2",
        tables.database, tables.table
    );
    let newer = clickhouse.query(&newer).await?;
    ensure!(
        newer.trim() == "0",
        "{newer} rows were put after the change and are of the old revision"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_diverged_halts_the_pipe_until_a_person_has_acted() -> anyhow::Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let clickhouse = ClickHouse::shared().await;
    let mut flow = Flow::start(Shape::new(2, 1)).await?;
    flow.put(0..PART)?;
    flow.committed(PART).await?;
    let next = leave_open_batches(&mut flow, PART).await?;

    // What was recorded of the batches is not what a replay will find.
    let spoil = "UPDATE batches SET digest = CAST(substr(digest, 9) || substr(digest, 1, 8) AS BLOB)";
    tamper(&mut flow, spoil).await?;
    flow.cluster.start_worker(0)?;
    let rows = async || -> anyhow::Result<String> {
        let tables = flow.tables();
        Ok(clickhouse
            .query(&format!("SELECT count() FROM {}.{}", tables.database, tables.table))
            .await?)
    };
    let halted = async || -> anyhow::Result<()> {
        let pipe = flow.wait_for(PipeState::Failed).await?;
        let status = pipe.status.unwrap_or_default();
        ensure!(status.reason == "BATCH_DIVERGED", "{status:?}");
        Ok(())
    };
    halted().await?;
    let before = rows().await?;
    // Neither a stop and a start nor another process makes it go away.
    flow.run(false).await?;
    flow.cluster.set_desired("flow", api::DesiredState::Running).await?;
    halted().await?;
    let first = flow.cluster.worker(0).context("the worker runs")?.pid();
    flow.cluster.kill_worker(0).await?;
    flow.cluster.start_worker(0)?;
    ensure!(
        flow.cluster.worker(0).is_some_and(|worker| worker.pid() != first),
        "another process"
    );
    eventually("the new process has found it too", LIMIT, || async {
        // The lane tells its fault with `permanent`, and then says that it stands still.
        let lines = flow.timeline()?;
        let faults = lines.iter().filter(|line| line.text("reason") == "BATCH_DIVERGED");
        let halts = faults.filter(|line| line.fields.contains_key("permanent")).count();
        ensure!(halts >= 3, "{halts} times");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    let pipe = flow.wait_for(PipeState::Failed).await?;
    ensure!(
        pipe.status.is_some_and(|status| status.reason == "BATCH_DIVERGED"),
        "it has another reason now"
    );
    let tables = flow.tables();
    let after = clickhouse
        .query(&format!("SELECT count() FROM {}.{}", tables.database, tables.table))
        .await?;
    ensure!(before == after, "{before} rows, and then {after}: something was sent");

    // A person puts it right: nothing was lost by having waited.
    tamper(&mut flow, spoil).await?;
    flow.cluster.kill_worker(0).await?;
    flow.cluster.start_worker(0)?;
    eprintln!("after a halt: {}", flow.check(next).await?);
    let pipe = flow.wait_for(PipeState::Running).await?;
    ensure!(
        pipe.status.is_some_and(|status| status.reason.is_empty()),
        "it is well again"
    );
    Ok(())
}

/// Changes the control plane's database behind its back.
async fn tamper(flow: &mut Flow, statement: &'static str) -> anyhow::Result<()> {
    flow.cluster.kill_control_plane().await?;
    let file = flow.cluster.path().join("millrace.db");
    let mut database = sqlx::SqliteConnection::connect(&format!("sqlite://{}", file.display())).await?;
    let changed = sqlx::query(statement).execute(&mut database).await?.rows_affected();
    database.close().await?;
    ensure!(changed > 0, "there are no open batches");
    tokio::time::timeout(Duration::from_secs(60), flow.cluster.start_control_plane()).await??;
    Ok(())
}

/// Records that wait while the engine is frozen: more than the batches that a lane has open.
const WAITING: u64 = 2 * LOAD;

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_that_wants_more_than_at_least_once_doubles_nothing_by_that() -> anyhow::Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let clickhouse = ClickHouse::shared().await;
    let mut shape = Shape::new(2, 1);
    shape.max_insert_wait = Duration::from_millis(50);
    let flow = Flow::start(shape).await?;
    let deliver = async |delivery: api::Delivery| {
        let settings = api::Settings {
            delivery: delivery.into(),
            ..api::Settings::default()
        };
        let change = api::Pipe {
            settings: Some(settings),
            ..api::Pipe::default()
        };
        flow.cluster.update_pipe(NAME, change, &["settings.delivery"]).await
    };
    let mut next = 0;
    for _ in 0..2 {
        deliver(api::Delivery::AtLeastOnce).await?;
        let load = flow.load(next, LOAD);
        flow.committed(next + PART).await?;
        // Several batches are on their way that nobody has prepared when the pipe begins to prepare.
        deliver(api::Delivery::ExactlyOnce).await?;
        clickhouse.pause()?;
        let put = load.records();
        let more = eventually("records wait", LIMIT, || async {
            let waiting = load.records() - put;
            ensure!(waiting >= WAITING, "{waiting} do");
            Ok::<_, anyhow::Error>(())
        })
        .await;
        clickhouse.resume()?;
        more?;
        next = load.stop()?;
        flow.committed(next).await?;
    }
    eprintln!("switched: {}", flow.check(next).await?);
    let lost = flow
        .timeline()?
        .iter()
        .filter(|line| line.message == "shards lost")
        .count();
    ensure!(lost == 0, "shards were dropped {lost} times, and read again");
    Ok(())
}

/// Pipes that have batches open when their worker dies, beside the one of the flow.
const OTHERS: usize = 5;
/// Memory of the worker that leaves them, and of the one that finds them.
const LARGE_MEMORY: u64 = 512 << 20;
const SMALL_MEMORY: u64 = 64 << 20;
/// What a process may take beside its budget.
const BESIDE_BUDGET: u64 = 64 << 20;
/// glibc keeps a large buffer that was freed, once it has seen one, and does so for each of its arenas: half as much again as
/// what is in use, here. With this it gives such buffers back, so that what is measured is what the worker holds.
const GIVE_BACK: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "1048576");
/// About 40 MB, which each of the pipes reads.
const BULK: u64 = 120_000;

/// The most memory that a process has had.
fn peak(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix("kB")).context("a peak")?;
    Ok(kilobytes.trim().parse::<u64>()? << 10)
}

#[tokio::test(flavor = "multi_thread")]
async fn replays_of_many_pipes_stay_within_the_workers_memory() -> anyhow::Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let clickhouse = ClickHouse::shared().await;
    let mut shape = Shape::new(4, 1);
    shape.options.worker_args.push(format!("--memory-bytes={LARGE_MEMORY}"));
    shape.options.worker_env.push(GIVE_BACK);
    let mut flow = Flow::start(shape).await?;
    let mut pipes = vec![NAME.to_owned()];
    for n in 0..OTHERS {
        let name = format!("other{n}");
        let table = Table::of_events(flow.tables().database, &name);
        let spec = pipe_spec(&flow.kinesis.endpoint_url(), NAME, clickhouse, table);
        flow.cluster.create_pipe(&name, spec).await?;
        pipes.push(name);
    }
    for name in &pipes {
        flow.cluster.wait_for_state(name, PipeState::Running, LIMIT).await?;
    }
    clickhouse.pause()?;
    let open = async {
        for first in (0..BULK).step_by(10_000) {
            flow.put(first..first + 10_000)?;
        }
        for name in &pipes {
            eventually("two batches are open", LIMIT, || async {
                let shards = flow.cluster.pipe(name).await?.status.unwrap_or_default().shards;
                let most = shards.iter().map(|shard| shard.open_batches).max().unwrap_or_default();
                ensure!(most >= 2, "{most} of {name} are");
                Ok::<_, anyhow::Error>(())
            })
            .await?;
        }
        let pid = flow.cluster.worker(0).context("a worker")?.pid();
        peak(pid)
    }
    .await;
    flow.cluster.kill_worker(0).await?;
    clickhouse.resume()?;
    eprintln!("the worker died with {} MiB at most", open? >> 20);

    let args = flow.cluster.worker_args_mut();
    args.retain(|arg| !arg.starts_with("--memory-bytes="));
    args.push(format!("--memory-bytes={SMALL_MEMORY}"));
    flow.cluster.start_worker(0)?;
    for name in &pipes {
        flow.cluster
            .wait_for_records(name, BULK, LIMIT)
            .await
            .with_context(|| flow.cluster.logs())?;
    }
    let most = peak(flow.cluster.worker(0).context("a worker")?.pid())?;
    let lines = flow.timeline()?;
    let rebuilt = timeline::replays(&lines).len();
    eprintln!("{rebuilt} batches replayed, {} MiB resident at most", most >> 20);
    ensure!(rebuilt > OTHERS, "{rebuilt} batches were replayed");
    let bound = SMALL_MEMORY + BESIDE_BUDGET;
    ensure!(most <= bound, "{most} bytes resident, {bound} are allowed");
    eprintln!("recovery: {}", flow.check(BULK).await?);
    Ok(())
}

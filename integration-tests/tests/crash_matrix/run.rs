//! How a row is run.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use millrace_integration_tests::{
    cluster::{CONTROL_PLANE, Options},
    faults::{Bed, LIMIT, Outcome, PIPE, Row, Setup},
    ledger::Verdict,
    postgres::Postgres,
    process::{Process, eventually},
};
use millrace_proto::api::v1 as api;

use super::{
    STOPPED_FOR,
    plan::{Case, Database, Fault, Scenario},
};

/// Records put before the fault is armed, so that the row is known to work.
const WARM_UP: u64 = 2_000;
/// Records put then.
const LOAD: u64 = 16_000;
/// Records put after the fault, so that all must still be read.
const AFTER: u64 = 2_000;
/// All of them.
pub(super) const RECORDS: u64 = WARM_UP + LOAD + AFTER;
const WORKERS: usize = 2;

/// Runs a row and asks the ledger.
pub(super) async fn run(
    bed: &std::sync::Arc<Bed>,
    number: usize,
    case: &Case,
    postgres: Option<&Postgres>,
) -> anyhow::Result<Outcome> {
    let database = match (case.database, postgres) {
        (Database::Postgres, Some(postgres)) => Some(postgres.database().await?),
        _ => None,
    };
    let setup = Setup {
        cluster: Options {
            database,
            fail_points: true,
            ..Options::default()
        },
        workers: WORKERS,
        ..Setup::default()
    };
    let mut row = bed.row(&format!("row_{number}"), setup).await?;
    row.spread(WORKERS).await?;
    row.put(WARM_UP)?;
    row.settle().await?;

    let victims = arm(&row, case).await?;
    row.put(LOAD)?;
    match case.scenario() {
        Scenario::Load | Scenario::Takeover => {}
        Scenario::Move => row.cluster.set_replicas(PIPE, 1).await?,
        Scenario::Split => row.split()?,
    }
    let victim = reached(&row, case, &victims).await?;
    let began = Instant::now();
    if case.scenario() == Scenario::Split {
        // For the children: their parent is committed already, so that only they show a recovery.
        row.put(AFTER)?;
    }
    let recovered = happen(&mut row, case, &victim, postgres, began).await?;
    row.put(RECORDS - row.records())?;
    let totals = row.settle().await?;
    let verdict = row.verdict().await?;
    if verdict.is_clean() {
        let counted = (totals.rows, totals.rejected_records, totals.records);
        let held = (verdict.rows, verdict.rejected, RECORDS);
        ensure!(
            counted == held,
            "the pipe counts {totals:?}, the tables hold {verdict:?}"
        );
    }
    Ok(Outcome {
        recovered,
        logs: if verdict.is_clean() {
            String::new()
        } else {
            row.cluster.logs()
        },
        verdict,
    })
}

/// Arms the point in every process that may come to it; returns their names.
async fn arm(row: &Row, case: &Case) -> anyhow::Result<Vec<String>> {
    let workers: Vec<String> = (0..WORKERS).map(|index| format!("worker-{index}")).collect();
    // Not at the very first batch, so that others are in flight.
    let count = match case.scenario() {
        Scenario::Load if case.point != "worker.send.errors_inserted" => "2*",
        _ => "",
    };
    let list = format!("{}={count}{}", case.point, case.fault.action());
    let victims = match case.scenario() {
        _ if !case.is_of_worker() => vec![CONTROL_PLANE.to_owned()],
        // The first dies, the second is to fail while it rebuilds what the first had prepared.
        Scenario::Takeover => {
            row.cluster.arm(&workers[0], "worker.send.rows_inserted=kill")?;
            vec![workers[1].clone()]
        }
        Scenario::Load => vec![workers[0].clone()],
        Scenario::Move | Scenario::Split => workers,
    };
    for victim in &victims {
        row.cluster.arm(victim, &list)?;
    }
    Ok(victims)
}

/// Waits until one of the victims has reached the point and the fault is there; disarms the others.
async fn reached(row: &Row, case: &Case, victims: &[String]) -> anyhow::Result<String> {
    let said = format!("fail point {}: {}", case.point, case.fault.action());
    let probe = || async {
        let victim = victims.iter().find(|victim| row.cluster.log_of(victim).contains(&said));
        let victim = victim.context("the point was not reached")?;
        let process = process(row, victim)?;
        let there = match case.fault {
            Fault::Kill => process.status().is_some(),
            Fault::Stop | Fault::DatabaseRestart => process.is_stopped(),
            Fault::Panic | Fault::Error => true,
        };
        ensure!(there, "{victim} has said so and goes on");
        Ok(victim.clone())
    };
    let victim = eventually(&said, LIMIT, probe)
        .await
        .with_context(|| row.cluster.logs())?;
    for other in victims {
        row.cluster.arm(other, "")?;
    }
    if case.fault == Fault::Kill {
        use std::os::unix::process::ExitStatusExt as _;
        let status = process(row, &victim)?.status().context("it has ended")?;
        ensure!(status.signal() == Some(9), "{victim} ended with {status}");
    }
    Ok(victim)
}

fn process<'a>(row: &'a Row, name: &str) -> anyhow::Result<&'a Process> {
    let process = match name.strip_prefix("worker-") {
        Some(index) => row.cluster.worker(index.parse()?),
        None => row.cluster.control_plane(),
    };
    process.with_context(|| format!("{name} was never started"))
}

/// What becomes of the fault. Returns how long it took until everything put before it was committed.
async fn happen(
    row: &mut Row,
    case: &Case,
    victim: &str,
    postgres: Option<&Postgres>,
    began: Instant,
) -> anyhow::Result<Duration> {
    match case.fault {
        Fault::Panic | Fault::Error => {
            row.settle().await?;
        }
        Fault::Kill if case.scenario() == Scenario::Takeover => {
            // Both workers are dead.
            row.cluster.arm("worker-0", "")?;
            for index in 0..WORKERS {
                row.cluster.start_worker(index)?;
            }
            row.settle().await?;
        }
        Fault::Kill if case.is_of_worker() => {
            // The other one takes over: nobody starts the dead one again before that.
            row.settle().await?;
        }
        Fault::Kill => {
            row.cluster.kill_control_plane().await?;
            row.cluster.start_control_plane().await?;
            row.settle().await?;
        }
        Fault::Stop if case.is_of_worker() => return stop_worker(row, victim, case, began).await,
        Fault::Stop => {
            tokio::time::sleep(STOPPED_FOR).await;
            process(row, victim)?.resume()?;
            row.settle().await?;
        }
        Fault::DatabaseRestart => {
            let postgres = postgres.context("a row on PostgreSQL has one")?;
            postgres.kill().await?;
            postgres.start_again().await?;
            process(row, victim)?.resume()?;
            row.settle().await?;
        }
    }
    Ok(began.elapsed())
}

/// The other worker takes over while this one stands still. Then it goes on, as if nothing had happened, with a batch that
/// is not its own any more.
async fn stop_worker(row: &mut Row, victim: &str, case: &Case, began: Instant) -> anyhow::Result<Duration> {
    if case.scenario() == Scenario::Takeover {
        // The first one is dead: it has to come back, or nobody could take over.
        row.cluster.arm("worker-0", "")?;
        row.cluster.start_worker(0)?;
    }
    row.settle().await?;
    let recovered = began.elapsed();
    let before = row.cluster.log_of(victim).len();
    ensure!(process(row, victim)?.is_stopped(), "{victim} goes on by itself");
    process(row, victim)?.resume()?;
    let let_go = || async {
        let log = row.cluster.log_of(victim);
        let new = log.get(before..).unwrap_or_default();
        if new.contains("shards lost") || new.contains("released") {
            return Ok(());
        }
        bail!("{victim} still believes in its leases")
    };
    eventually("the stopped worker lets go", LIMIT, let_go)
        .await
        .with_context(|| row.cluster.logs())?;
    Ok(recovered)
}

/// A worker of a pipe that promises at least once dies between insert and commit.
pub(super) async fn at_least_once(bed: &std::sync::Arc<Bed>) -> anyhow::Result<Verdict> {
    let setup = Setup {
        cluster: Options {
            fail_points: true,
            ..Options::default()
        },
        workers: 1,
        delivery: api::Delivery::AtLeastOnce,
        ..Setup::default()
    };
    let mut row = bed.row("at_least_once", setup).await?;
    row.put(WARM_UP)?;
    row.settle().await?;
    row.cluster.arm("worker-0", "worker.commit.before=2*kill")?;
    row.put(LOAD)?;
    let case = Case {
        point: "worker.commit.before",
        fault: Fault::Kill,
        database: Database::Sqlite,
    };
    reached(&row, &case, &["worker-0".to_owned()]).await?;
    row.cluster.start_worker(0)?;
    row.put(AFTER)?;
    row.settle().await?;
    row.verdict().await
}

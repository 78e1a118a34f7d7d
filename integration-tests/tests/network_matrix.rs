//! The network matrix: each connection of Millrace is slow, reset, half-open, cut in the middle of a request or of an
//! answer, or refused, and inserts arrive twice. Each row runs a load of its own and asks the ledger: lost 0, duplicated 0.
//!
//! `MILLRACE_NETWORK_MATRIX` runs only the rows whose names contain it. A row counts only if the proxy says that the fault
//! was there.

#![allow(clippy::print_stderr, reason = "the table is what the matrix is for")]

use std::{
    collections::VecDeque,
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use millrace_integration_tests::{
    cluster::Options,
    faults::{Bed, Counts, Direction, End, LEASE_TTL, LIMIT, Outcome, Proxy, Row, Script, Setup, Verdicts},
    postgres::Postgres,
    process::eventually,
};
use parking_lot::Mutex;
use tokio::task::JoinSet;

/// Rows that run at once.
const AT_ONCE: usize = 3;
/// Records put before, at, and after the fault.
const WARM_UP: u64 = 2_000;
const LOAD: u64 = 14_000;
const AFTER: u64 = 2_000;
/// How long a connection is half-open: well past the lease.
const FROZEN_FOR: Duration = LEASE_TTL.saturating_mul(3);
/// How often connections are reset.
const RESETS: u64 = 7;
/// How long connections are cut or refused again and again.
const TROUBLE_FOR: Duration = Duration::from_secs(2);
/// Delay each way. A transaction is a dozen round trips, so that nobody has a database that is far away.
const DELAY_MS: u64 = 200;
const DATABASE_DELAY_MS: u64 = 20;

/// A connection of Millrace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Control,
    ClickHouse,
    Kinesis,
    Database,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Control => "worker - control plane",
            Self::ClickHouse => "worker - ClickHouse",
            Self::Kinesis => "worker - Kinesis",
            Self::Database => "control plane - PostgreSQL",
        })
    }
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Milliseconds, each way.
    Delay(u64),
    Reset,
    Freeze,
    Cut(Direction, u64, End),
    Refuse,
    Duplicate,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delay(millis) => write!(f, "delay {millis} ms each way"),
            Self::Reset => f.write_str("reset, again and again"),
            Self::Freeze => write!(f, "half-open {} s", FROZEN_FOR.as_secs()),
            Self::Cut(Direction::Request, after, end) => write!(f, "request cut at {after} ({end:?})"),
            Self::Cut(Direction::Response, after, end) => write!(f, "answer cut at {after} ({end:?})"),
            Self::Refuse => f.write_str("refused"),
            Self::Duplicate => f.write_str("every insert twice"),
        }
    }
}

fn cases() -> Vec<(Link, Fault)> {
    use {Direction::*, Fault::*, Link::*};
    let mut cases = vec![
        (ClickHouse, Freeze),
        (Control, Freeze),
        (Kinesis, Freeze),
        (Database, Freeze),
        (ClickHouse, Duplicate),
    ];
    for link in [Control, ClickHouse, Kinesis, Database] {
        let delay = if link == Database { DATABASE_DELAY_MS } else { DELAY_MS };
        cases.extend([(link, Delay(delay)), (link, Reset), (link, Refuse)]);
    }
    cases.extend([
        (Control, Cut(Request, 2_000, End::Reset)),
        (Control, Cut(Response, 500, End::Fin)),
        (ClickHouse, Cut(Request, 400, End::Fin)),
        (ClickHouse, Cut(Request, 20_000, End::Reset)),
        // The insert is done, and nobody is told.
        (ClickHouse, Cut(Response, 0, End::Reset)),
        (ClickHouse, Cut(Response, 20, End::Fin)),
        (Kinesis, Cut(Request, 100, End::Reset)),
        (Kinesis, Cut(Response, 50_000, End::Fin)),
        (Database, Cut(Request, 3_000, End::Reset)),
        (Database, Cut(Response, 1_000, End::Reset)),
    ]);
    cases
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_fault_of_the_network_loses_or_doubles_a_record() -> anyhow::Result<()> {
    let wanted = std::env::var("MILLRACE_NETWORK_MATRIX").unwrap_or_default();
    let queue: VecDeque<_> = cases()
        .into_iter()
        .filter(|(link, fault)| format!("{fault} at {link}").contains(&wanted))
        .enumerate()
        .collect();
    ensure!(!queue.is_empty(), "no row is wanted");
    let bed = Bed::start(9, WARM_UP + LOAD + AFTER).await?;
    let postgres = Arc::new(Postgres::start().await?);
    let (queue, verdicts) = (Arc::new(Mutex::new(queue)), Arc::new(Verdicts::default()));
    let mut lanes = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (bed, postgres) = (Arc::clone(&bed), Arc::clone(&postgres));
        let (queue, verdicts) = (Arc::clone(&queue), Arc::clone(&verdicts));
        lanes.spawn(async move {
            loop {
                let next = queue.lock().pop_front();
                let Some((number, (link, fault))) = next else { return };
                let outcome = Box::pin(run(&bed, &postgres, number, link, fault)).await;
                verdicts.add(number, &fault.to_string(), &link.to_string(), outcome);
            }
        });
    }
    while let Some(ended) = lanes.join_next().await {
        ended?;
    }
    eprintln!("{verdicts}");
    verdicts.must_be_clean()
}

async fn run(bed: &Arc<Bed>, postgres: &Postgres, number: usize, link: Link, fault: Fault) -> anyhow::Result<Outcome> {
    let upstream = match link {
        // Known only when the control plane runs.
        Link::Control => SocketAddr::from(([127, 0, 0, 1], 9)),
        Link::ClickHouse => address(&bed.clickhouse.http_url())?,
        Link::Kinesis => bed.kinesis.addr(),
        Link::Database => ([127, 0, 0, 1], postgres.port()).into(),
    };
    let proxy = Proxy::start(upstream).await?;
    let url = format!("http://{}", proxy.addr());
    let mut setup = Setup {
        workers: 2,
        ..Setup::default()
    };
    match link {
        Link::Control => {
            setup.workers = 0;
            setup.cluster.worker_control_plane = Some(url);
        }
        Link::ClickHouse => setup.clickhouse_url = Some(url),
        Link::Kinesis => setup.kinesis_url = Some(url),
        Link::Database => {
            let (direct, port) = (postgres.database().await?, postgres.port());
            let through = direct.replace(&format!(":{port}/"), &format!(":{}/", proxy.addr().port()));
            ensure!(through != direct, "a URL with a port");
            setup.cluster = Options {
                database: Some(through),
                ..setup.cluster
            };
        }
    }
    let mut row = bed.row(&format!("net_{number}"), setup).await?;
    if link == Link::Control {
        proxy.set_upstream(address(&row.cluster.url())?);
        row.cluster.add_worker()?;
        row.cluster.add_worker()?;
    }
    row.spread(2).await?;
    row.put(WARM_UP)?;
    row.settle().await?;

    let (before, began) = (proxy.counts(), Instant::now());
    strike(&mut row, &proxy, fault, &before).await?;
    row.settle().await?;
    let recovered = began.elapsed();
    proxy.heal();
    row.put(AFTER)?;
    row.settle().await?;
    if fault == Fault::Duplicate {
        let counts = proxy.counts();
        let answered = counts.duplicate_answers.iter().filter(|status| **status == 200).count();
        ensure!(answered > 10, "only {answered} inserts were taken twice: {counts:?}");
    }
    let verdict = row.verdict().await?;
    let logs = if verdict.is_clean() {
        String::new()
    } else {
        row.cluster.logs()
    };
    Ok(Outcome {
        recovered,
        verdict,
        logs,
    })
}

/// Puts the load, lets the fault happen to it, and ends the fault where it is one that nothing gets through.
async fn strike(row: &mut Row, proxy: &Proxy, fault: Fault, before: &Counts) -> anyhow::Result<()> {
    match fault {
        Fault::Delay(millis) => {
            proxy.set_all(Script::pass().delay(Duration::from_millis(millis)));
            row.put(LOAD)?;
        }
        Fault::Duplicate => {
            proxy.set_all(Script::duplicate(
                "insert_deduplication_token",
                Duration::from_millis(300),
            ));
            row.put(LOAD)?;
        }
        Fault::Reset => {
            for _ in 0..RESETS {
                // Each has a part of the load under way: of all of it, a fast worker may be through before the last reset.
                let before = proxy.counts();
                row.put(LOAD / RESETS)?;
                seen(proxy, "something is under way", |counts| {
                    counts.request_bytes > before.request_bytes
                })
                .await?;
                // A connection that was under way may just have been closed.
                seen(proxy, "connections are reset", |counts| {
                    proxy.reset_live();
                    counts.resets > before.resets
                })
                .await?;
            }
        }
        Fault::Freeze => {
            row.put(LOAD)?;
            let moved = before.request_bytes;
            seen(proxy, "something is under way", |counts| counts.request_bytes > moved).await?;
            proxy.set_all(Script::freeze());
            // What had been let through already may still be on its way.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let silent = proxy.counts();
            tokio::time::sleep(FROZEN_FOR).await;
            let after = proxy.counts();
            ensure!(
                (silent.request_bytes, silent.response_bytes) == (after.request_bytes, after.response_bytes),
                "bytes pass a frozen proxy: {silent:?} {after:?}"
            );
            proxy.heal();
        }
        Fault::Cut(direction, after, end) => {
            proxy.set_all(Script::cut(direction, after, end));
            row.put(LOAD)?;
            seen(proxy, "connections are cut", |counts| counts.cuts >= before.cuts + 2).await?;
            tokio::time::sleep(TROUBLE_FOR).await;
            proxy.heal();
        }
        Fault::Refuse => {
            proxy.set_all(Script::refuse());
            proxy.reset_live();
            row.put(LOAD)?;
            seen(proxy, "all connections are gone", |counts| counts.open == 0).await?;
            tokio::time::sleep(TROUBLE_FOR).await;
            proxy.heal();
        }
    }
    Ok(())
}

async fn seen(proxy: &Proxy, what: &str, there: impl Fn(&Counts) -> bool) -> anyhow::Result<()> {
    eventually(what, LIMIT, || async {
        let counts = proxy.counts();
        if there(&counts) {
            Ok(())
        } else {
            Err(format!("{counts:?}"))
        }
    })
    .await?;
    Ok(())
}

fn address(url: &str) -> anyhow::Result<SocketAddr> {
    let bare = url.trim_start_matches("http://").trim_end_matches('/');
    bare.parse()
        .with_context(|| format!("{url} is not http://address:port"))
}

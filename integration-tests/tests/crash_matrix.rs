//! The crash matrix: at each arrow of the protocol, something dies, stops past its lease, panics, fails to answer, or loses
//! its database. Each row runs a load of its own on a real engine and asks the ledger: lost 0, duplicated 0.
//!
//! `make test` runs a choice in which every arrow and every fault occurs; `MILLRACE_CRASH_MATRIX=full` runs all rows, any
//! other value those whose names contain it. A row counts only if its fail point was really reached, and one more row
//! shows that the ledger would see a duplicate: the same death in a pipe that promises at least once.

#![allow(clippy::print_stderr, reason = "the table is what the matrix is for")]

#[path = "crash_matrix/plan.rs"]
mod plan;
#[path = "crash_matrix/run.rs"]
mod run;

use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::ensure;
use millrace_integration_tests::{
    faults::{Bed, Verdicts},
    postgres::Postgres,
};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use plan::{Case, Database, OF_CONSUMERS, OF_REFUSED_BATCHES, POINTS, all, chosen};

/// Rows that run at once: most of a row is waiting for a lease to end.
const AT_ONCE: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_crash_at_any_step_loses_or_doubles_a_record() -> anyhow::Result<()> {
    let cases = match std::env::var("MILLRACE_CRASH_MATRIX") {
        Err(_) => chosen(),
        Ok(wanted) if wanted == "full" => all(),
        Ok(wanted) => all()
            .into_iter()
            .filter(|case| case.to_string().contains(&wanted))
            .collect(),
    };
    ensure!(!cases.is_empty(), "no row is wanted");
    let bed = Bed::start(7, run::RECORDS).await?;
    let (mut on_postgres, mut others) = (VecDeque::new(), VecDeque::new());
    for (number, case) in cases.into_iter().enumerate() {
        let queue = match case.database {
            Database::Postgres => &mut on_postgres,
            Database::Sqlite => &mut others,
        };
        queue.push_back((number, case));
    }
    let verdicts = Arc::new(Verdicts::default());
    let others = Arc::new(Mutex::new(others));
    let mut lanes = JoinSet::new();
    for _ in 0..AT_ONCE {
        lanes.spawn(Box::pin(lane(
            Arc::clone(&bed),
            Arc::clone(&others),
            None,
            Arc::clone(&verdicts),
        )));
    }
    if !on_postgres.is_empty() {
        // One of its own, which is stopped in some rows: those run one after the other.
        let postgres = Some(Arc::new(Postgres::start().await?));
        let queue = Arc::new(Mutex::new(on_postgres));
        lanes.spawn(Box::pin(lane(Arc::clone(&bed), queue, postgres, Arc::clone(&verdicts))));
    }
    while let Some(ended) = lanes.join_next().await {
        ended?;
    }
    eprintln!("{verdicts}");
    verdicts.must_be_clean()
}

type Queue = Arc<Mutex<VecDeque<(usize, Case)>>>;

async fn lane(bed: Arc<Bed>, queue: Queue, postgres: Option<Arc<Postgres>>, verdicts: Arc<Verdicts>) {
    loop {
        let next = queue.lock().pop_front();
        let Some((number, case)) = next else { return };
        let outcome = Box::pin(run::run(&bed, number, &case, postgres.as_deref())).await;
        verdicts.add(number, &case.fault.to_string(), &case.place(), outcome);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_ledger_sees_what_at_least_once_doubles() -> anyhow::Result<()> {
    let bed = Bed::start(8, run::RECORDS).await?;
    let verdict = run::at_least_once(&bed).await?;
    ensure!(
        verdict.duplicated > 0 && verdict.lost == 0,
        "a worker that dies between insert and commit of an unprepared batch must double it: {verdict:?}"
    );
    eprintln!(
        "at least once, killed after the insert: {} rows doubled",
        verdict.duplicated
    );
    Ok(())
}

/// Rows are made from a list, and the code holds the points: the two must be the same.
#[test]
fn every_fail_point_has_its_rows() {
    let root = millrace_integration_tests::repository();
    let mut found = BTreeSet::new();
    for plane in ["control-plane/src", "data-plane/src"] {
        points_in(&root.join(plane), &mut found);
    }
    let listed: BTreeSet<String> = POINTS.iter().map(|point| (*point).to_owned()).collect();
    for point in OF_REFUSED_BATCHES.into_iter().chain(OF_CONSUMERS) {
        assert!(found.remove(point), "{point}");
    }
    assert_eq!(found, listed, "fail points of the code and of the matrix");
    for (what, cases) in [("chosen", chosen()), ("all", all())] {
        let covered: BTreeSet<String> = cases.iter().map(|case| case.point.to_owned()).collect();
        assert_eq!(covered, listed, "points that {what} rows reach");
        let names: BTreeSet<String> = cases.iter().map(Case::to_string).collect();
        assert_eq!(names.len(), cases.len(), "{what} rows have different names");
    }
}

fn points_in(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("a readable tree") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            points_in(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a readable source");
            let places = text.split("fail_point!(\"").skip(1);
            found.extend(places.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
        }
    }
}

/// A worker that is stopped stays so until the others must have taken over.
const STOPPED_FOR: Duration = Duration::from_secs(4);

//! What is left when a process ends in the middle: of SQLite's own process, and of PostgreSQL's.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use millrace_common::ids::{BatchId, Epoch, PipeUid, ShardId, WorkerInstance};
use millrace_common::position::Position;
use millrace_control_plane::store::{Error, Store};
use millrace_integration_tests::postgres::Postgres;
use millrace_integration_tests::process::eventually;
use sqlx::{Connection as _, SqliteConnection};
use tokio::task::JoinSet;

use crate::bed::{batch, grant, number, open, pipe, shard, slice, worker};

/// Tells the test below, run in a process of its own, to be the one that is killed.
const VICTIM: &str = "MILLRACE_TEST_STORE_VICTIM";

/// Moves batches through one shard for ever and says which were answered.
async fn be_the_victim(url: &str) {
    let store = open(url).await;
    let uid = store.all_pipes().await.unwrap()[0].uid;
    let me = worker("victim");
    let held = grant(&store, uid, &[shard(0)], &me).await;
    let snapshot = store.snapshot(uid).await.unwrap().unwrap();
    for open in &snapshot.open_batches {
        store.commit(uid, &me, open.id, &held).await.unwrap();
        say(open.id);
    }
    let mut from = snapshot.shards[0].frontier.clone();
    loop {
        let next = batch(vec![slice(&shard(0), from.clone(), number(&from) + 1)], 1);
        store.prepare(uid, &me, &next, &held).await.unwrap();
        store.commit(uid, &me, next.id, &held).await.unwrap();
        say(next.id);
        from = next.slices[0].end();
    }
}

#[allow(clippy::print_stdout, reason = "the test that started this process reads it")]
fn say(id: BatchId) {
    println!("{id}");
}

#[tokio::test]
async fn a_killed_sqlite_process_loses_nothing_that_it_answered() {
    if let Ok(url) = std::env::var(VICTIM) {
        be_the_victim(&url).await;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let url = format!("sqlite://{}", path.display());
    let store = open(&url).await;
    let uid = pipe(&store, 1).await.uid;
    store.close().await;
    drop(store);
    let mut answered: Vec<BatchId> = Vec::new();
    for round in 0..4 {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "kill::a_killed_sqlite_process_loses_nothing_that_it_answered",
                "--nocapture",
            ])
            .env(VICTIM, &url)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(victim.stdout.take().unwrap())
            .lines()
            .map(Result::unwrap);
        let target = 20 + 7 * round;
        let mut count = 0;
        while count < target {
            let line = lines.next().expect("the victim works until it is killed");
            if let Ok(id) = line.parse() {
                answered.push(id);
                count += 1;
            }
        }
        victim.kill().unwrap();
        victim.wait().unwrap();
        // What it said before it died was said.
        answered.extend(lines.filter_map(|line| line.parse::<BatchId>().ok()));

        check_integrity(&url).await;
        let store = open(&url).await;
        check_progress(&store, uid, &answered).await;
        store.close().await;
    }
    assert!(answered.len() >= 80);
}

async fn check_integrity(url: &str) {
    let mut connection = SqliteConnection::connect(url).await.unwrap();
    let answer: String = sqlx::query_scalar("PRAGMA integrity_check")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(answer, "ok");
    let foreign = sqlx::query("PRAGMA foreign_key_check")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    assert!(foreign.is_empty());
    connection.close().await.unwrap();
}

/// All that was answered is there, and at most one batch more, which was committed or prepared but not answered.
async fn check_progress(store: &Store, uid: PipeUid, answered: &[BatchId]) {
    let snapshot = store.snapshot(uid).await.unwrap().unwrap();
    let row = &snapshot.shards[0];
    let batches = snapshot.pipe.totals.batches;
    assert_eq!((batches, number(&row.checkpoint)), (row.committed_batches, batches));
    assert_eq!(snapshot.pipe.totals.rows, batches);
    let said = answered.len() as u64;
    assert!(batches >= said, "{batches} committed, {said} answered");
    assert!(snapshot.open_batches.len() <= 1);
    assert!(snapshot.open_batches.iter().all(|open| !answered.contains(&open.id)));
}

/// Counts a call that was not answered, and waits a little before it is repeated.
async fn unanswered(counts: &Counts, error: Error) {
    assert!(error.is_transient(), "{error}: {error:?}");
    counts.unanswered.fetch_add(1, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// Moves batches of one record each through a shard, until it is told to end.
async fn lane(store: Store, uid: PipeUid, held: Vec<(ShardId, Epoch)>, me: WorkerInstance, counts: Arc<Counts>) {
    let mut from = Position::TrimHorizon;
    while !counts.end.load(Ordering::SeqCst) {
        let next = batch(vec![slice(&held[0].0, from.clone(), number(&from) + 1)], 1);
        // The same call again until it is answered, as a lane does it.
        while let Err(error) = store.prepare(uid, &me, &next, &held).await {
            unanswered(&counts, error).await;
        }
        while let Err(error) = store.commit(uid, &me, next.id, &held).await {
            unanswered(&counts, error).await;
        }
        from = next.slices[0].end();
        counts.moved.fetch_add(1, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct Counts {
    moved: AtomicUsize,
    unanswered: AtomicUsize,
    end: AtomicBool,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_was_lost_is_repeated() {
    const LANES: usize = 4;
    let postgres = Postgres::start().await.unwrap();
    let url = postgres.database().await.unwrap();
    let store = open(&url).await;
    let uid = pipe(&store, LANES).await.uid;
    let counts = Arc::new(Counts::default());
    let mut lanes = JoinSet::new();
    for index in 0..LANES {
        let me = worker(&format!("w{index}"));
        let held = grant(&store, uid, &[shard(index)], &me).await;
        lanes.spawn(lane(store.clone(), uid, held, me, Arc::clone(&counts)));
    }
    let moved = async |more: usize| {
        let target = counts.moved.load(Ordering::SeqCst) + more;
        let reached = eventually("batches are moved", Duration::from_secs(60), || async {
            counts.moved.load(Ordering::SeqCst) >= target
        });
        reached.await.expect("the lanes go on");
    };
    for _ in 0..3 {
        moved(40).await;
        postgres.kill().await.unwrap();
        postgres.start_again().await.unwrap();
    }
    moved(40).await;
    counts.end.store(true, Ordering::SeqCst);
    lanes.join_all().await;

    assert!(counts.unanswered.load(Ordering::SeqCst) >= 3, "each kill was felt");
    let snapshot = store.snapshot(uid).await.unwrap().unwrap();
    let total: u64 = snapshot.shards.iter().map(|row| number(&row.checkpoint)).sum();
    let moved = counts.moved.load(Ordering::SeqCst) as u64;
    assert_eq!(
        (snapshot.pipe.totals.batches, snapshot.pipe.totals.rows),
        (moved, moved),
        "each is counted once"
    );
    assert_eq!(total, moved, "each batch covers one record");
    assert_eq!(snapshot.open_batches, []);
    postgres.stop().await.unwrap();
}

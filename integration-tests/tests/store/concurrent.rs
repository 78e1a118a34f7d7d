//! Many workers and several control planes at once: the protocol's invariants hold whatever the order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use millrace_common::batch::OpenBatch;
use millrace_common::ids::{BatchId, Epoch, PipeUid, ShardId, WorkerInstance};
use millrace_common::position::{Position, Slice};
use millrace_control_plane::store::{Error, PipeSnapshot, Store};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::bed::{Database, batch, credentials, new_pipe, number, pipe, shard, slice, worker};

const SHARDS: usize = 6;
const WORKERS: usize = 5;
const ROUNDS: usize = 30;

/// Nothing but a refusal may go wrong. Gives whether it was done.
#[track_caller]
fn done<T>(result: Result<T, Error>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(Error::Refused { .. }) => None,
        Err(error) => panic!("{error}: {error:?}"),
    }
}

/// Of a call and its repeats: the shards may be lost between one and the next, so one that was done is enough.
fn none_done(results: Vec<Result<(), Error>>) -> bool {
    results.into_iter().filter_map(done).count() == 0
}

pub(crate) async fn one_of_many_grants_wins(database: Database) {
    let uid = pipe(&database.store, 3).await.uid;
    let stores = database.control_planes(3).await;
    for round in 0..10 {
        let wanted: Vec<_> = (0..3).map(|index| (shard(index), Epoch(round))).collect();
        let mut tasks = JoinSet::new();
        for index in 0..9 {
            let (store, wanted) = (stores[index % stores.len()].clone(), wanted.clone());
            let worker = worker(&format!("w{index}"));
            tasks.spawn(async move { done(store.grant(uid, &wanted, &worker).await).map(|_| worker) });
        }
        let winners: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
        assert_eq!(winners.len(), 1, "exactly one has the epochs");
        for row in database.store.shards(uid).await.unwrap() {
            assert_eq!((row.epoch, row.owner.as_ref()), (Epoch(round + 1), winners.first()));
        }
    }
}

/// What workers were told, to be compared with what the database says in the end.
#[derive(Default)]
struct Log {
    prepared: BTreeMap<BatchId, OpenBatch>,
    committed: BTreeSet<BatchId>,
}

/// One worker: takes shards, from others too, and moves batches through them, with repeats and stale calls.
async fn work(store: Store, uid: PipeUid, me: WorkerInstance, log: Arc<Mutex<Log>>) {
    let mut stale: Vec<(ShardId, Epoch)> = Vec::new();
    for _ in 0..ROUNDS {
        let snapshot = store.snapshot(uid).await.unwrap().unwrap();
        check_snapshot(&snapshot);
        let mut set: BTreeSet<ShardId> = (0..SHARDS).filter(|_| rand::random_bool(0.4)).map(shard).collect();
        // Open batches bind their shards together.
        let mut size = 0;
        while size != set.len() {
            size = set.len();
            for open in &snapshot.open_batches {
                if open.slices.iter().any(|slice| set.contains(&slice.shard)) {
                    set.extend(open.slices.iter().map(|slice| slice.shard.clone()));
                }
            }
        }
        let wanted: Vec<_> = snapshot
            .shards
            .iter()
            .filter(|row| set.contains(&row.id))
            .map(|row| (row.id.clone(), row.epoch))
            .collect();
        let Some(held) = done(store.grant(uid, &wanted, &me).await) else {
            continue;
        };
        move_batches(&store, uid, &me, &held, &log).await;
        if !stale.is_empty() {
            let release = store.release(uid, &stale);
            release.await.unwrap();
        }
        stale = held;
    }
}

async fn move_batches(store: &Store, uid: PipeUid, me: &WorkerInstance, held: &[(ShardId, Epoch)], log: &Mutex<Log>) {
    let snapshot = store.snapshot(uid).await.unwrap().unwrap();
    let mine = |id: &ShardId| held.iter().any(|(held, _)| held == id);
    // What was left behind comes first.
    for open in snapshot
        .open_batches
        .iter()
        .filter(|open| open.slices.iter().all(|slice| mine(&slice.shard)))
    {
        if done(store.commit(uid, me, open.id, held).await).is_some() {
            log.lock().committed.insert(open.id);
        }
    }
    let mut frontiers: BTreeMap<ShardId, Position> = snapshot
        .shards
        .into_iter()
        .filter(|row| mine(&row.id))
        .map(|row| (row.id, row.frontier))
        .collect();
    let mut queue = Vec::new();
    for _ in 0..rand::random_range(1..4) {
        let mut slices: Vec<Slice> = Vec::new();
        for (id, frontier) in &frontiers {
            if rand::random_bool(0.7) {
                let to = number(frontier) + rand::random_range(1..5);
                slices.push(slice(id, frontier.clone(), to));
            }
        }
        let Some(rows) = u64::try_from(slices.len()).ok().filter(|rows| *rows > 0) else {
            continue;
        };
        let next = batch(slices, rows);
        let repeats = if rand::random_bool(0.2) { 2 } else { 1 };
        let calls = (0..repeats).map(|_| store.prepare(uid, me, &next, held));
        if none_done(futures::future::join_all(calls).await) {
            return;
        }
        log.lock().prepared.insert(next.id, next.clone());
        frontiers.extend(next.slices.iter().map(|slice| (slice.shard.clone(), slice.end())));
        queue.push(next.id);
    }
    for id in queue {
        let repeats = if rand::random_bool(0.2) { 3 } else { 1 };
        let calls = (0..repeats).map(|_| store.commit(uid, me, id, held));
        if none_done(futures::future::join_all(calls).await) {
            return;
        }
        log.lock().committed.insert(id);
        if rand::random_bool(0.1) {
            return;
        }
    }
}

/// What must hold of every moment.
fn check_snapshot(snapshot: &PipeSnapshot) {
    for row in &snapshot.shards {
        let mut end = row.checkpoint.clone();
        let mut open = 0;
        for slice in snapshot
            .open_batches
            .iter()
            .flat_map(|open| &open.slices)
            .filter(|slice| slice.shard == row.id)
        {
            assert_eq!(
                slice.from_exclusive, end,
                "open slices follow the checkpoint and each other"
            );
            end = slice.end();
            open += 1;
        }
        assert_eq!((&row.frontier, row.open_batches), (&end, open));
    }
    for open in &snapshot.open_batches {
        let of_batch = |id: &ShardId| open.slices.iter().any(|slice| slice.shard == *id);
        let owners: BTreeSet<_> = snapshot
            .shards
            .iter()
            .filter(|row| of_batch(&row.id))
            .filter_map(|row| row.owner.as_ref())
            .collect();
        assert!(owners.len() <= 1, "an open batch is torn");
    }
}

pub(crate) async fn many_workers_keep_the_slices_apart(database: Database) {
    let uid = pipe(&database.store, SHARDS).await.uid;
    let stores = database.control_planes(3).await;
    let log = Arc::new(Mutex::new(Log::default()));
    let mut tasks = JoinSet::new();
    for index in 0..WORKERS {
        let (store, log) = (stores[index % stores.len()].clone(), Arc::clone(&log));
        tasks.spawn(work(store, uid, worker(&format!("w{index}")), log));
    }
    tasks.join_all().await;

    let snapshot = database.store.snapshot(uid).await.unwrap().unwrap();
    check_snapshot(&snapshot);
    let log = log.lock();
    let open: BTreeSet<_> = snapshot.open_batches.iter().map(|open| open.id).collect();
    let prepared: BTreeSet<_> = log.prepared.keys().copied().collect();
    assert_eq!(
        &prepared - &log.committed,
        open,
        "what was prepared is either committed or open"
    );
    assert!(log.committed.is_subset(&prepared));
    assert!(
        log.committed.len() > WORKERS,
        "something was moved: {}",
        log.committed.len()
    );
    for open in &snapshot.open_batches {
        assert_eq!(log.prepared.get(&open.id), Some(open));
    }
    let mut slices: BTreeMap<&ShardId, BTreeMap<u64, &Slice>> = BTreeMap::new();
    for slice in log.prepared.values().flat_map(|batch| &batch.slices) {
        let other = slices
            .entry(&slice.shard)
            .or_default()
            .insert(number(&slice.from_exclusive), slice);
        assert_eq!(other, None, "two slices start at one place");
    }
    for row in &snapshot.shards {
        let mut end = Position::TrimHorizon;
        for slice in slices.get(&row.id).into_iter().flat_map(BTreeMap::values) {
            assert_eq!(slice.from_exclusive, end, "a hole or an overlap");
            end = slice.end();
        }
        assert_eq!(end, row.frontier);
    }
    let rows: u64 = log.committed.iter().map(|id| log.prepared[id].counts.rows).sum();
    assert_eq!(
        (snapshot.pipe.totals.rows, snapshot.pipe.totals.batches),
        (rows, log.committed.len() as u64)
    );
}

/// Deleting a pipe takes the same rows as the lanes that work on it: no deadlock reaches anybody, and nothing is left.
pub(crate) async fn creating_and_deleting_meet_working_lanes(database: Database) {
    credentials(&database.store).await;
    let stores = database.control_planes(3).await;
    for round in 0..6 {
        let ids: Vec<_> = (0..4).map(shard).collect();
        let pipe = database.store.create_pipe(new_pipe("events", &ids)).await.unwrap();
        let mut tasks = JoinSet::new();
        for index in 0..4 {
            let (store, uid) = (stores[index % stores.len()].clone(), pipe.uid);
            let me = worker(&format!("w{index}"));
            tasks.spawn(async move {
                let id = shard(index);
                let Ok(held) = store.grant(uid, &[(id.clone(), Epoch(0))], &me).await else {
                    return;
                };
                let mut from = Position::TrimHorizon;
                for to in 1..40 {
                    let next = batch(vec![slice(&id, from, to)], 1);
                    for result in [
                        store.prepare(uid, &me, &next, &held).await,
                        store.commit(uid, &me, next.id, &held).await,
                    ] {
                        match result {
                            Ok(()) => {}
                            Err(Error::PipeNotFound { .. }) => return,
                            Err(error) => panic!("{error}: {error:?}"),
                        }
                    }
                    from = next.slices[0].end();
                }
            });
        }
        let others = [0, 1].map(|index| {
            let (store, name) = (stores[index].clone(), pipe.name.clone());
            async move {
                for _ in 0..rand::random_range(0..30) {
                    tokio::task::yield_now().await;
                    store.shards(pipe.uid).await.unwrap();
                }
                store.delete_pipe(&name, None).await.unwrap()
            }
        });
        let deleted = futures::future::join_all(others).await;
        assert_eq!(deleted.iter().filter(|deleted| **deleted).count(), 1, "round {round}");
        tasks.join_all().await;
        assert_eq!(database.store.snapshot_all().await.unwrap().pipes, []);
        let id = ["aws", "clickhouse"][round % 2];
        let name = format!("projects/default/credentials/{id}").parse().unwrap();
        assert!(
            database.store.delete_credential(&name).await.unwrap(),
            "nothing refers to it any more"
        );
        crate::bed::credential(&database.store, &name.to_string()).await;
    }
}

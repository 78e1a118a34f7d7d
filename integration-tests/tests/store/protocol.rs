//! Prepare, commit, grant, finish: each through the database.

use std::collections::BTreeSet;

use millrace_common::batch::OpenBatch;
use millrace_common::ids::{BatchId, Epoch, PipeUid, Revision, ShardId};
use millrace_common::position::Position;
use millrace_control_plane::protocol::Refusal;
use millrace_control_plane::store::{Error, NewShard, ShardEnd, ShardPhase, Store, StoredShard, Totals};

use crate::bed::{Database, after, batch, grant, number, pipe, shard, slice, worker};

fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> Refusal {
    match result {
        Err(Error::Refused { reason }) => reason,
        other => panic!("expected a refusal, found {other:?}"),
    }
}

async fn row(store: &Store, uid: PipeUid, id: &ShardId) -> StoredShard {
    store
        .shards(uid)
        .await
        .unwrap()
        .into_iter()
        .find(|row| row.id == *id)
        .unwrap()
}

async fn totals(store: &Store, uid: PipeUid) -> Totals {
    store.pipe_by_uid(uid).await.unwrap().unwrap().totals
}

pub(crate) async fn a_batch_is_counted_once(database: Database) {
    let store = &database.store;
    let uid = pipe(store, 2).await.uid;
    let me = worker("w1");
    let held = grant(store, uid, &[shard(0), shard(1)], &me).await;
    assert_eq!(held, [(shard(0), Epoch(1)), (shard(1), Epoch(1))]);
    let first = batch(
        vec![
            slice(&shard(1), Position::TrimHorizon, 10),
            slice(&shard(0), Position::TrimHorizon, 7),
        ],
        17,
    );
    for _ in 0..3 {
        store.prepare(uid, &me, &first, &held).await.unwrap();
    }
    assert_eq!(totals(store, uid).await, Totals::default(), "prepared is not committed");
    let before = row(store, uid, &shard(0)).await;
    assert_eq!(
        (before.checkpoint, before.frontier, before.open_batches),
        (Position::TrimHorizon, after(7), 1)
    );

    let second = batch(vec![slice(&shard(0), after(7), 9)], 2);
    store.prepare(uid, &me, &second, &held).await.unwrap();
    let early = refused(store.commit(uid, &me, second.id, &held).await);
    assert_eq!(
        early,
        Refusal::NotOldest {
            shard: shard(0),
            expected: Some(first.id),
            found: second.id
        }
    );
    for _ in 0..3 {
        store.commit(uid, &me, first.id, &held).await.unwrap();
    }
    store.commit(uid, &me, second.id, &held).await.unwrap();
    store.commit(uid, &me, first.id, &held).await.unwrap();
    let expected = Totals {
        rows: 19,
        rejected_records: 2,
        records: 21,
        bytes: 19_000,
        batches: 2,
    };
    assert_eq!(totals(store, uid).await, expected);
    let after_all = row(store, uid, &shard(0)).await;
    assert_eq!(
        (after_all.checkpoint, after_all.frontier, after_all.open_batches),
        (after(9), after(9), 0)
    );
    assert_eq!(after_all.committed_batches, 2);
    assert_eq!(row(store, uid, &shard(1)).await.checkpoint, after(10));
    assert_eq!(store.open_batches(uid).await.unwrap(), []);

    // A batch id is used up for good.
    let mut reused = batch(vec![slice(&shard(0), after(9), 20)], 1);
    reused.id = first.id;
    assert_eq!(
        refused(store.prepare(uid, &me, &reused, &held).await),
        Refusal::AlreadyCommitted { batch: first.id }
    );
}

pub(crate) async fn a_takeover_fences_the_old_owner(database: Database) {
    let store = &database.store;
    let uid = pipe(store, 3).await.uid;
    let (old, new) = (worker("w1"), worker("w2"));
    let shards = [shard(0), shard(1), shard(2)];
    let held = grant(store, uid, &shards, &old).await;
    let both = batch(
        vec![
            slice(&shard(0), Position::TrimHorizon, 5),
            slice(&shard(1), Position::TrimHorizon, 5),
        ],
        10,
    );
    store.prepare(uid, &old, &both, &held).await.unwrap();

    let torn = refused(store.grant(uid, &held[..1], &new).await);
    assert_eq!(
        torn,
        Refusal::TornBatch {
            shard: shard(0),
            batch: both.id,
            other: shard(1)
        }
    );
    let taken = store.grant(uid, &held[..2], &new).await.unwrap();
    assert_eq!(taken, [(shard(0), Epoch(2)), (shard(1), Epoch(2))]);

    // The old owner is fenced, with its old epochs and with guessed ones; what it still holds goes on.
    let next = batch(vec![slice(&shard(0), after(5), 8)], 3);
    let stale = Refusal::StaleEpoch {
        shard: shard(0),
        expected: Epoch(2),
        found: Epoch(1),
    };
    assert_eq!(refused(store.prepare(uid, &old, &next, &held).await), stale);
    assert_eq!(refused(store.commit(uid, &old, both.id, &held).await), stale);
    assert!(matches!(
        refused(store.prepare(uid, &old, &next, &taken).await),
        Refusal::NotOwner { .. }
    ));
    let other = batch(vec![slice(&shard(2), Position::TrimHorizon, 5)], 5);
    store.prepare(uid, &old, &other, &held).await.unwrap();
    assert_eq!(
        store.release(uid, &held).await.unwrap(),
        [shard(2)],
        "late for the others"
    );
    assert_eq!(store.release(uid, &held).await.unwrap(), []);
    assert_eq!(row(store, uid, &shard(0)).await.owner, Some(new.clone()));
    let unowned = refused(store.commit(uid, &old, other.id, &held).await);
    assert_eq!(
        unowned,
        Refusal::NotOwner {
            shard: shard(2),
            expected: None,
            found: old.clone()
        }
    );

    // The new owner finds the batch, replays and commits it.
    let snapshot = store.snapshot(uid).await.unwrap().unwrap();
    assert!(snapshot.open_batches.contains(&both) && snapshot.open_batches.contains(&other));
    store.prepare(uid, &new, &both, &taken).await.unwrap();
    store.commit(uid, &new, both.id, &taken).await.unwrap();
    store.prepare(uid, &new, &next, &taken).await.unwrap();
    // The old owner's commit, arriving late, is a repeat: it changes nothing.
    store.commit(uid, &old, both.id, &held).await.unwrap();
    assert_eq!(totals(store, uid).await.batches, 1);
}

pub(crate) async fn open_batches_come_back_as_they_were_prepared(database: Database) {
    let store = &database.store;
    let uid = pipe(store, 3).await.uid;
    let me = worker("w1");
    let held = grant(store, uid, &[shard(0), shard(1), shard(2)], &me).await;
    let mut prepared: Vec<OpenBatch> = Vec::new();
    // Ids fall while ages rise: the order must come from the database, not from the ids.
    let mut ids: Vec<BatchId> = (0..12).map(|_| BatchId::new()).collect();
    ids.sort();
    for (step, id) in (1_u64..).zip(ids.into_iter().rev()) {
        let slices = match step % 3 {
            0 => vec![2, 0],
            1 => vec![0, 1],
            _ => vec![1, 2],
        };
        let mut next = Vec::new();
        for index in slices {
            let frontier = row(store, uid, &shard(index)).await.frontier;
            let to = number(&frontier) + step;
            next.push(slice(&shard(index), frontier, to));
        }
        let digest = [u8::try_from(step).unwrap(); 16];
        let next = OpenBatch {
            id,
            digest,
            ..batch(next, step)
        };
        store.prepare(uid, &me, &next, &held).await.unwrap();
        prepared.push(next);
    }
    assert_eq!(store.open_batches(uid).await.unwrap(), prepared);
    let snapshot = store.snapshot(uid).await.unwrap().unwrap();
    assert_eq!(snapshot.open_batches, prepared);
    assert_eq!(store.snapshot_all().await.unwrap().pipes, [snapshot]);
    for batch in &prepared {
        store.commit(uid, &me, batch.id, &held).await.unwrap();
    }
    assert_eq!(store.open_batches(uid).await.unwrap(), []);
}

pub(crate) async fn refusals_change_nothing(database: Database) {
    let store = &database.store;
    let uid = pipe(store, 2).await.uid;
    let me = worker("w1");
    let held = grant(store, uid, &[shard(0)], &me).await;
    let open = batch(vec![slice(&shard(0), Position::TrimHorizon, 5)], 5);
    store.prepare(uid, &me, &open, &held).await.unwrap();
    let before = store.snapshot(uid).await.unwrap();

    let mut tampered = open.clone();
    tampered.counts.rows += 1;
    let mut ahead = batch(vec![slice(&shard(0), after(5), 9)], 4);
    ahead.revision = Revision(2);
    let mut both = batch(
        vec![
            slice(&shard(0), after(5), 9),
            slice(&shard(1), Position::TrimHorizon, 9),
        ],
        4,
    );
    let prepare =
        async |batch: &OpenBatch, claims: &[(ShardId, Epoch)]| refused(store.prepare(uid, &me, batch, claims).await);
    assert_eq!(
        prepare(&tampered, &held).await,
        Refusal::OtherContent { batch: open.id }
    );
    let unknown = Refusal::UnknownRevision {
        expected: Revision(1),
        found: Revision(2),
    };
    assert_eq!(prepare(&ahead, &held).await, unknown);
    assert_eq!(prepare(&both, &held).await, Refusal::NoEpoch { shard: shard(1) });
    let claims = [held[0].clone(), (shard(1), Epoch(0))];
    assert!(matches!(prepare(&both, &claims).await, Refusal::NotOwner { .. }));
    both.slices = vec![slice(&shard(0), after(4), 9)];
    let frontier = Refusal::NotAtFrontier {
        shard: shard(0),
        expected: after(5),
        found: after(4),
    };
    assert_eq!(prepare(&both, &held).await, frontier);
    both.slices.clear();
    assert_eq!(prepare(&both, &held).await, Refusal::NoSlices);
    both.slices = (0..20_000).map(|index| slice(&shard(index), after(1), 2)).collect();
    assert!(matches!(
        prepare(&both, &held).await,
        Refusal::TooLarge { what: "slices", .. }
    ));
    let stranger = BatchId::new();
    let unknown = Refusal::UnknownBatch { batch: stranger };
    assert_eq!(refused(store.commit(uid, &me, stranger, &held).await), unknown);
    assert_eq!(
        refused(store.commit(uid, &me, open.id, &[]).await),
        Refusal::NoEpoch { shard: shard(0) }
    );
    let finish = store.finish_shard(uid, &shard(0), held[0].1, &[]).await;
    assert_eq!(
        refused(finish),
        Refusal::OpenBatches {
            shard: shard(0),
            found: 1
        }
    );
    let late = store.grant(uid, &[(shard(0), Epoch(0))], &worker("w2")).await;
    assert_eq!(
        refused(late),
        Refusal::StaleEpoch {
            shard: shard(0),
            expected: Epoch(1),
            found: Epoch(0)
        }
    );

    assert_eq!(store.snapshot(uid).await.unwrap(), before);
}

fn child(index: usize, parents: &[usize]) -> NewShard {
    NewShard {
        id: shard(index),
        parents: parents.iter().copied().map(shard).collect(),
        start: Position::TrimHorizon,
    }
}

pub(crate) async fn a_reshard_waits_for_its_parents(database: Database) {
    let store = &database.store;
    let uid = pipe(store, 2).await.uid;
    let me = worker("w1");
    let held = grant(store, uid, &[shard(0), shard(1)], &me).await;
    // 0 is split into 2 and 3; 3 and 1 are merged into 4.
    let opened = store
        .finish_shard(uid, &shard(0), held[0].1, &[child(2, &[0]), child(3, &[0])])
        .await
        .unwrap();
    assert_eq!(opened, [shard(2), shard(3)]);
    let again = store
        .finish_shard(uid, &shard(0), held[0].1, &[child(2, &[0]), child(3, &[0])])
        .await
        .unwrap();
    assert_eq!(again, []);
    let finished = row(store, uid, &shard(0)).await;
    assert_eq!((finished.state, finished.owner), (ShardPhase::Finished, None));

    assert_eq!(
        store
            .add_shards(uid, &[child(4, &[3, 1]), child(1, &[])], &BTreeSet::new())
            .await
            .unwrap(),
        [shard(4)]
    );
    assert_eq!(row(store, uid, &shard(4)).await.state, ShardPhase::Waiting);
    let waiting = store.grant(uid, &[(shard(4), Epoch(0))], &me).await;
    assert_eq!(
        refused(waiting),
        Refusal::NotOpen {
            shard: shard(4),
            found: ShardPhase::Waiting
        }
    );
    assert_eq!(
        store
            .finish_shard(uid, &shard(1), held[1].1, &[child(4, &[3, 1])])
            .await
            .unwrap(),
        []
    );
    let three = grant(store, uid, &[shard(3)], &me).await;
    assert_eq!(
        store.finish_shard(uid, &shard(3), three[0].1, &[]).await.unwrap(),
        [shard(4)]
    );
    let four = grant(store, uid, &[shard(4)], &me).await;
    assert_eq!(four, [(shard(4), Epoch(1))]);
    assert_eq!(row(store, uid, &shard(4)).await.parents, [shard(3), shard(1)]);
}

pub(crate) async fn a_listing_is_taken_in_once(database: Database) {
    let store = &database.store;
    let uid = pipe(store, 1).await.uid;
    let me = worker("w1");
    let held = grant(store, uid, &[shard(0)], &me).await;
    // 9,000 is a parent that no listing shows any more; the listing is longer than one statement may be.
    let listing: Vec<_> = (0..2_500)
        .map(|index| child(index, if index == 0 { &[] } else { &[9_000] }))
        .collect();
    assert_eq!(
        store.add_shards(uid, &listing, &BTreeSet::new()).await.unwrap().len(),
        2_499
    );
    assert_eq!(store.add_shards(uid, &listing, &BTreeSet::new()).await.unwrap(), []);
    let shards = store.shards(uid).await.unwrap();
    assert_eq!(shards.len(), 2_500);
    assert!(shards.iter().all(|row| row.state == ShardPhase::Open));
    assert_eq!(
        (&shards[0].owner, shards[0].epoch),
        (&Some(me.clone()), held[0].1),
        "what was known stays"
    );

    // A child that one worker saw waits for a parent that nobody listed yet; the next listing tells.
    assert_eq!(
        store
            .finish_shard(uid, &shard(0), held[0].1, &[child(5_000, &[0, 8_000])])
            .await
            .unwrap(),
        []
    );
    assert_eq!(row(store, uid, &shard(5_000)).await.state, ShardPhase::Waiting);
    // One that was begun before the child was known tells nothing of it.
    assert_eq!(
        store
            .add_shards(uid, &listing, &BTreeSet::from([shard(0)]))
            .await
            .unwrap(),
        []
    );
    assert_eq!(row(store, uid, &shard(5_000)).await.state, ShardPhase::Waiting);
    let judged = BTreeSet::from([shard(5_000)]);
    assert_eq!(store.add_shards(uid, &listing, &judged).await.unwrap(), []);
    let opened = row(store, uid, &shard(5_000)).await;
    assert_eq!((opened.state, opened.parents), (ShardPhase::Open, vec![shard(0)]));
}

pub(crate) async fn a_thousand_shards_end_at_once(database: Database) {
    let store = &database.store;
    let uid = pipe(store, 1_000).await.uid;
    let me = worker("w1");
    let ids: Vec<_> = (0..1_000).map(shard).collect();
    let held = grant(store, uid, &ids, &me).await;
    // Neighbours are merged. The last one has lost its lease.
    let mut ends: Vec<ShardEnd> = held
        .iter()
        .enumerate()
        .map(|(index, (id, epoch))| ShardEnd {
            shard: id.clone(),
            epoch: *epoch,
            children: vec![child(1_000 + index / 2, &[index / 2 * 2, index / 2 * 2 + 1])],
        })
        .collect();
    ends[999].epoch = Epoch(77);
    let answers = store.finish_shards(uid, &ends).await.unwrap();
    assert_eq!(answers.len(), 1_000);
    assert!(
        matches!(&answers[999], Err(Refusal::StaleEpoch { .. })),
        "{:?}",
        answers[999]
    );
    let opened: Vec<_> = answers.into_iter().take(999).flat_map(Result::unwrap).collect();
    assert_eq!(opened.len(), 499);
    let shards = store.shards(uid).await.unwrap();
    let count = |state: ShardPhase| shards.iter().filter(|row| row.state == state).count();
    assert_eq!(
        (
            count(ShardPhase::Finished),
            count(ShardPhase::Open),
            count(ShardPhase::Waiting)
        ),
        (999, 500, 1),
        "the last parent is still open, and its child waits"
    );
    ends[999].epoch = held[999].1;
    let again = store.finish_shards(uid, &ends).await.unwrap();
    let opened: Vec<_> = again.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(opened, [shard(1_499)], "what repeats is a no-op");
}

pub(crate) async fn at_least_once_moves_the_checkpoint_alone(database: Database) {
    let store = &database.store;
    let uid = pipe(store, 1).await.uid;
    let me = worker("w1");
    let held = grant(store, uid, &[shard(0)], &me).await;
    let first = batch(vec![slice(&shard(0), Position::TrimHorizon, 5)], 5);
    let commit = async |batch: &OpenBatch, claims: &[(ShardId, Epoch)]| {
        store
            .commit_unprepared(uid, &me, batch.id, &batch.slices, claims, batch.counts)
            .await
    };
    commit(&first, &held).await.unwrap();
    commit(&first, &held).await.unwrap();
    assert_eq!(totals(store, uid).await.rows, 5);
    assert_eq!(row(store, uid, &shard(0)).await.checkpoint, after(5));
    let gap = batch(vec![slice(&shard(0), after(6), 9)], 3);
    assert!(matches!(
        refused(commit(&gap, &held).await),
        Refusal::NotAtFrontier { .. }
    ));
    let second = batch(vec![slice(&shard(0), after(5), 9)], 4);
    let stale = [(shard(0), Epoch(0))];
    assert!(matches!(
        refused(commit(&second, &stale).await),
        Refusal::StaleEpoch { .. }
    ));
    // A batch that was prepared, before the pipe was changed, comes first.
    store.prepare(uid, &me, &second, &held).await.unwrap();
    let third = batch(vec![slice(&shard(0), after(9), 12)], 3);
    assert_eq!(
        refused(commit(&third, &held).await),
        Refusal::OpenBatches {
            shard: shard(0),
            found: 1
        }
    );
    assert_eq!(
        refused(commit(&second, &held).await),
        Refusal::OtherContent { batch: second.id }
    );
    store.commit(uid, &me, second.id, &held).await.unwrap();
    commit(&third, &held).await.unwrap();
    assert_eq!(totals(store, uid).await.rows, 12);
    assert_eq!(row(store, uid, &shard(0)).await.checkpoint, after(12));
}

pub(crate) async fn committed_batches_are_remembered_for_a_while(database: Database) {
    let store = &database.store;
    let uid = pipe(store, 2).await.uid;
    let me = worker("w1");
    let held = grant(store, uid, &[shard(0), shard(1)], &me).await;
    let mut ids = Vec::new();
    let mut from = Position::TrimHorizon;
    let quiet = batch(vec![slice(&shard(1), Position::TrimHorizon, 1)], 1);
    store.prepare(uid, &me, &quiet, &held).await.unwrap();
    store.commit(uid, &me, quiet.id, &held).await.unwrap();
    for step in 1..=300 {
        let next = batch(vec![slice(&shard(0), from.clone(), step)], 1);
        store
            .commit_unprepared(uid, &me, next.id, &next.slices, &held, next.counts)
            .await
            .unwrap();
        ids.push(next.id);
        from = after(step);
    }
    for id in ids.iter().rev().take(64).chain([&quiet.id]) {
        store.commit(uid, &me, *id, &held).await.unwrap();
    }
    // Not for ever: the table stays small.
    assert_eq!(
        refused(store.commit(uid, &me, ids[0], &held).await),
        Refusal::UnknownBatch { batch: ids[0] }
    );
    assert_eq!(totals(store, uid).await.batches, 301);
}

pub(crate) async fn a_wide_batch_goes_through(database: Database) {
    let store = &database.store;
    const WIDTH: usize = 2_300;
    let uid = pipe(store, WIDTH).await.uid;
    let me = worker("w1");
    let shards: Vec<_> = (0..WIDTH).map(shard).collect();
    let held = grant(store, uid, &shards, &me).await;
    let slices = (1_u64..)
        .zip(&shards)
        .map(|(step, id)| slice(id, Position::TrimHorizon, step))
        .collect();
    let wide = batch(slices, 9);
    store.prepare(uid, &me, &wide, &held).await.unwrap();
    assert_eq!(store.open_batches(uid).await.unwrap(), std::slice::from_ref(&wide));
    store.commit(uid, &me, wide.id, &held).await.unwrap();
    let rows = store.shards(uid).await.unwrap();
    for (step, row) in (1_u64..).zip(&rows) {
        assert_eq!((&row.checkpoint, row.open_batches), (&after(step), 0));
    }
    assert_eq!(store.release(uid, &held).await.unwrap().len(), WIDTH);
}

//! Positions that users move, gaps that pipes go on behind, and what is known of the age of checkpoints.

use std::collections::BTreeSet;

use millrace_common::{ids::Epoch, pipe::StreamIdentity, position::Position};
use millrace_control_plane::{
    events::{NewEvent, Severity, kind},
    protocol::{Gap, Plan, Refusal, Target},
    store::{Adopted, Error, NewShard, ShardPhase},
};

use super::bed::{Database, after, batch, grant, pipe, shard, slice, worker};

fn targets(shards: &[usize], to: &Position) -> Vec<Target> {
    let target = |number: &usize| Target {
        shard: shard(*number),
        to: to.clone(),
        parents: None,
    };
    shards.iter().map(target).collect()
}

fn told(kind: &'static str) -> NewEvent {
    NewEvent::new(kind, Severity::Info, "told")
}

pub(crate) async fn a_reset_moves_fences_and_tells(database: Database) {
    let store = &database.store;
    let pipe = pipe(store, 2).await;
    let holder = worker("a");
    let epochs = grant(store, pipe.uid, &[shard(0), shard(1)], &holder).await;
    let first = batch(
        vec![
            slice(&shard(0), Position::TrimHorizon, 5),
            slice(&shard(1), Position::TrimHorizon, 6),
        ],
        3,
    );
    store.prepare(pipe.uid, &holder, &first, &epochs).await.unwrap();
    store.commit(pipe.uid, &holder, first.id, &epochs).await.unwrap();
    let second = batch(vec![slice(&shard(0), after(5), 9)], 1);
    store.prepare(pipe.uid, &holder, &second, &epochs).await.unwrap();

    let plan = Plan {
        targets: targets(&[0, 1], &Position::TrimHorizon),
        ..Plan::default()
    };
    let event = |_: &_| told(kind::POSITION_RESET);
    let refused = store.reset_positions(pipe.uid, None, &plan, None, event).await;
    assert!(matches!(
        refused,
        Err(Error::Refused {
            reason: Refusal::OpenBatches { .. }
        })
    ));
    assert!(matches!(
        store.reset_positions(pipe.uid, Some("x"), &plan, None, event).await,
        Err(Error::EtagMismatch { .. })
    ));
    let plan = Plan {
        abandon_open_batches: true,
        ..plan
    };
    let preview = store.preview_reset(pipe.uid, &plan).await.unwrap();
    assert_eq!(
        store.open_batches(pipe.uid).await.unwrap().len(),
        1,
        "a preview changes nothing"
    );
    let done = store.reset_positions(pipe.uid, None, &plan, None, event).await.unwrap();
    assert_eq!((&done, done.abandoned.as_slice()), (&preview, &[second.id][..]));
    let shards = store.shards(pipe.uid).await.unwrap();
    for row in &shards {
        assert_eq!((row.epoch, row.owner.clone()), (Epoch(2), None));
        assert_eq!((&row.checkpoint, row.committed_batches), (&Position::TrimHorizon, 1));
    }
    // Who held them can do nothing more.
    let late = store.commit(pipe.uid, &holder, second.id, &epochs).await;
    assert!(matches!(late, Err(Error::Refused { .. })), "{late:?}");
    let again = batch(vec![slice(&shard(0), after(5), 9)], 1);
    assert!(store.prepare(pipe.uid, &holder, &again, &epochs).await.is_err());
    // The next holder begins at the new place, with new batches.
    let epochs = grant(store, pipe.uid, &[shard(0), shard(1)], &worker("b")).await;
    assert!(epochs.iter().all(|(_, epoch)| *epoch == Epoch(3)));
    let events = store.list_events(pipe.uid, None, 9).await.unwrap();
    assert_eq!(events.iter().filter(|event| event.kind == "POSITION_RESET").count(), 1);
}

pub(crate) async fn another_stream_is_taken_with_its_own_shards(database: Database) {
    let store = &database.store;
    let pipe = pipe(store, 3).await;
    // Shard 2 changes hands, so that its epoch is the highest of those that will be forgotten.
    grant(store, pipe.uid, &[shard(0), shard(1), shard(2)], &worker("a")).await;
    grant(store, pipe.uid, &[shard(2)], &worker("b")).await;
    let plan = Plan {
        targets: targets(&[0], &Position::TrimHorizon),
        new: vec![NewShard {
            id: shard(7),
            parents: Vec::new(),
            start: Position::TrimHorizon,
        }],
        forget_others: true,
        abandon_open_batches: true,
    };
    let identity = StreamIdentity {
        created: "2026-11-22T00:00:00Z".parse().unwrap(),
        ..pipe.resolved.stream.clone()
    };
    let adopted = Adopted {
        identity: identity.clone(),
    };
    store
        .reset_positions(pipe.uid, Some(&pipe.etag), &plan, Some(&adopted), |_| {
            told(kind::POSITION_RESET)
        })
        .await
        .unwrap();
    let snapshot = store.snapshot(pipe.uid).await.unwrap().unwrap();
    let ids: Vec<_> = snapshot.shards.iter().map(|row| row.id.clone()).collect();
    assert_eq!(ids, [shard(0), shard(7)]);
    assert_eq!(snapshot.pipe.resolved.stream, identity);
    assert_eq!((snapshot.pipe.revision.0, snapshot.pipe.spec), (2, pipe.spec));
    assert_ne!(snapshot.pipe.etag, pipe.etag);

    // The new stream has its own shards 1 and 2 one day. Nobody who held the old ones can speak for them.
    let again = |index| NewShard {
        id: shard(index),
        parents: Vec::new(),
        start: Position::TrimHorizon,
    };
    let listing = [again(0), again(7), again(1), again(2)];
    store.add_shards(pipe.uid, &listing, &BTreeSet::new()).await.unwrap();
    let old: Vec<_> = [(1, 1), (2, 1), (2, 2)]
        .into_iter()
        .map(|(index, epoch)| (shard(index), Epoch(epoch)))
        .collect();
    let rows = store.shards(pipe.uid).await.unwrap();
    assert!(
        rows.iter().all(|row| !old.contains(&(row.id.clone(), row.epoch))),
        "{rows:?}"
    );
    let epochs = grant(store, pipe.uid, &[shard(1), shard(2), shard(7)], &worker("a")).await;
    assert!(epochs.iter().all(|(_, epoch)| *epoch == Epoch(4)), "{epochs:?}");
}

pub(crate) async fn a_gap_is_passed_once_by_its_holder_only(database: Database) {
    let store = &database.store;
    let pipe = pipe(store, 3).await;
    let holder = worker("a");
    let epochs = grant(store, pipe.uid, &[shard(0), shard(1), shard(2)], &holder).await;
    let open = batch(
        vec![
            slice(&shard(0), Position::TrimHorizon, 5),
            slice(&shard(1), Position::TrimHorizon, 6),
        ],
        3,
    );
    store.prepare(pipe.uid, &holder, &open, &epochs).await.unwrap();
    let gap = Gap {
        shard: shard(0),
        epoch: Epoch(1),
        position: Position::TrimHorizon,
        batch: Some(open.id),
        shard_gone: false,
    };
    let event = told(kind::DATA_GAP);
    let stale = Gap {
        epoch: Epoch(0),
        ..gap.clone()
    };
    assert!(store.resume(pipe.uid, &stale, &event).await.is_err());
    let behind = Gap {
        batch: None,
        ..gap.clone()
    };
    assert!(
        !store.resume(pipe.uid, &behind, &event).await.unwrap(),
        "the batch comes first"
    );
    assert!(store.resume(pipe.uid, &gap, &event).await.unwrap());
    assert!(
        store.resume(pipe.uid, &gap, &event).await.is_err(),
        "the epoch has passed"
    );
    let rows = store.shards(pipe.uid).await.unwrap();
    let state: Vec<_> = rows
        .iter()
        .map(|row| (row.epoch.0, row.checkpoint.clone(), row.committed_batches))
        .collect();
    assert_eq!(
        state,
        [(2, after(5), 1), (2, after(6), 1), (1, Position::TrimHorizon, 0)]
    );
    assert!(store.open_batches(pipe.uid).await.unwrap().is_empty());
    assert_eq!(
        store.snapshot(pipe.uid).await.unwrap().unwrap().pipe.totals.batches,
        0,
        "it is not counted"
    );

    // A shard that is gone is over.
    let gone = Gap {
        shard: shard(2),
        epoch: Epoch(1),
        position: Position::TrimHorizon,
        batch: None,
        shard_gone: true,
    };
    assert!(store.resume(pipe.uid, &gone, &event).await.unwrap());
    assert_eq!(store.shards(pipe.uid).await.unwrap()[2].state, ShardPhase::Finished);
}

pub(crate) async fn what_is_complete_only_grows_and_is_inherited(database: Database) {
    let store = &database.store;
    let pipe = pipe(store, 2).await;
    let epochs = grant(store, pipe.uid, &[shard(0), shard(1)], &worker("a")).await;
    let time = |second: i64| jiff::Timestamp::from_second(1_800_000_000 + second).unwrap();
    let note = |seconds: [i64; 2]| {
        let notes: Vec<_> = epochs
            .iter()
            .zip(seconds)
            .map(|((shard, epoch), second)| (shard.clone(), *epoch, time(second)))
            .collect();
        async move { store.note_complete(pipe.uid, &notes).await.unwrap() }
    };
    let known = async || -> Vec<_> {
        let rows = store.shards(pipe.uid).await.unwrap();
        rows.into_iter().map(|row| row.complete_until).collect()
    };
    assert_eq!(known().await, [None, None]);
    note([10, 20]).await;
    note([30, 5]).await;
    assert_eq!(known().await, [Some(time(30)), Some(time(20))]);
    store
        .note_complete(pipe.uid, &[(shard(0), Epoch(9), time(99))])
        .await
        .unwrap();
    assert_eq!(known().await[0], Some(time(30)), "of another lease");
    let child = NewShard {
        id: shard(5),
        parents: vec![shard(0), shard(1)],
        start: Position::TrimHorizon,
    };
    for (shard, epoch) in &epochs {
        store
            .finish_shard(pipe.uid, shard, *epoch, std::slice::from_ref(&child))
            .await
            .unwrap();
    }
    assert_eq!(
        known().await[2],
        Some(time(20)),
        "a child is complete up to where its parents are"
    );
}

//! Events of pipes.

use millrace_common::{ids::PipeUid, pipe::DesiredState, position::Position};
use millrace_control_plane::{
    events::{NewEvent, Severity, kind},
    store::{MAX_EVENTS, NewShard, PipeChange, Store, StoredFault},
};

use super::bed::{Database, credentials, grant, new_pipe, shard, worker};

async fn kinds(store: &Store, uid: PipeUid) -> Vec<String> {
    let events = store.list_events(uid, None, 500).await.unwrap();
    events.into_iter().map(|event| event.kind).collect()
}

fn gap(number: usize) -> NewEvent {
    NewEvent::new(kind::DATA_GAP, Severity::Error, format!("gap {number}"))
        .of_shard(shard(1))
        .with("from_time", "2026-11-01T00:00:00Z")
}

pub(crate) async fn events_tell_what_was_done(database: Database) {
    let store = &database.store;
    credentials(store).await;
    let pipe = store.create_pipe_by(new_pipe("a", &[shard(1)]), "user").await.unwrap();
    let stop = PipeChange {
        desired: Some(DesiredState::Stopped),
        events: vec![NewEvent::new(kind::PIPE_STOPPED, Severity::Info, "stop").by("user")],
        ..PipeChange::default()
    };
    store.update_pipe(pipe.uid, None, stop.clone()).await.unwrap();
    assert!(
        store.update_pipe(pipe.uid, Some("stale"), stop).await.is_err(),
        "what was refused is not told"
    );
    let granted = grant(store, pipe.uid, &[shard(1)], &worker("w")).await;
    let child = |number| NewShard {
        id: shard(number),
        parents: vec![shard(1)],
        start: Position::TrimHorizon,
    };
    let children = [child(2), child(3)];
    for _ in 0..2 {
        store
            .finish_shard(pipe.uid, &shard(1), granted[0].1, &children)
            .await
            .unwrap();
    }
    let fault = StoredFault {
        reason: "SOURCE_STREAM_RECREATED".into(),
        message: "another one".into(),
        permanent: true,
    };
    let recreated = NewEvent::new(kind::STREAM_RECREATED, Severity::Error, "another one").once("of today");
    for _ in 0..3 {
        store
            .note_pipe_fault(pipe.uid, Some(&fault), Some(&recreated))
            .await
            .unwrap();
    }
    assert_eq!(
        kinds(store, pipe.uid).await,
        [
            "STREAM_RECREATED",
            "SHARD_ADDED",
            "SHARD_FINISHED",
            "PIPE_STOPPED",
            "PIPE_CREATED"
        ]
    );
    let events = store.list_events(pipe.uid, None, 500).await.unwrap();
    assert_eq!(events[4].actor, "user");
    assert_eq!(
        (events[2].shard.as_ref(), &events[2].details["shards"][..]),
        (Some(&shard(1)), "shardId-000000000001")
    );
    assert_eq!(
        store.last_event(pipe.uid, kind::SHARD_ADDED).await.unwrap().as_ref(),
        Some(&events[1])
    );

    // In pages.
    let page = store.list_events(pipe.uid, None, 2).await.unwrap();
    let next = store.list_events(pipe.uid, Some(page[1].id), 2).await.unwrap();
    assert_eq!(page.iter().chain(&next).cloned().collect::<Vec<_>>(), events[..4]);

    // They go with the pipe.
    assert!(store.delete_pipe(&pipe.name, None).await.unwrap());
    assert!(kinds(store, pipe.uid).await.is_empty());
    assert!(!store.append_event(pipe.uid, &gap(0)).await.unwrap());
}

pub(crate) async fn an_observation_is_told_once_and_old_events_go(database: Database) {
    let store = &database.store;
    credentials(store).await;
    let pipe = store.create_pipe(new_pipe("a", &[shard(1)])).await.unwrap();
    let other = store.create_pipe(new_pipe("b", &[shard(1)])).await.unwrap();
    let once = gap(0).once("the gap");
    assert!(store.append_event(pipe.uid, &once).await.unwrap());
    assert!(!store.append_event(pipe.uid, &once).await.unwrap());
    assert!(store.append_event(other.uid, &once).await.unwrap());
    let (one, two) = (gap(1), gap(2));
    let (left, right) = tokio::join!(store.append_event(pipe.uid, &one), store.append_event(pipe.uid, &two));
    assert!(left.unwrap() && right.unwrap());

    for number in 3..MAX_EVENTS + 20 {
        let number = usize::try_from(number).unwrap();
        assert!(store.append_event(pipe.uid, &gap(number)).await.unwrap());
    }
    let mut all = Vec::new();
    let mut before = None;
    loop {
        let page = store.list_events(pipe.uid, before, 300).await.unwrap();
        let Some(last) = page.last() else { break };
        before = Some(last.id);
        all.extend(page);
    }
    assert_eq!(all.len(), usize::try_from(MAX_EVENTS).unwrap());
    assert!(all.windows(2).all(|pair| pair[0].id > pair[1].id));
    assert_eq!(all[0].message, format!("gap {}", MAX_EVENTS + 19));
    assert_eq!(
        (all[0].shard.clone(), all[0].severity),
        (Some(shard(1)), Severity::Error)
    );
    assert_eq!(kinds(store, other.uid).await, ["DATA_GAP", "PIPE_CREATED"]);

    let long = NewEvent::new(kind::DATA_GAP, Severity::Info, "ä".repeat(10_000));
    assert!(store.append_event(other.uid, &long).await.unwrap());
    let stored = store.list_events(other.uid, None, 1).await.unwrap();
    assert_eq!(stored[0].message.len(), 2_000);
}

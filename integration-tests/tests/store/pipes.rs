//! Pipes, their revisions and their etags.

use millrace_common::ids::{PipeName, PipeUid, ProjectName, Revision};
use millrace_common::pipe::{Delivery, DesiredState, PipeSpec};
use millrace_control_plane::store::{
    Effective, Error, MAX_REVISIONS, PipeChange, ShardPhase, StoredFault, StoredRevision, Totals,
};

use crate::bed::{Database, batch, credentials, grant, new_pipe, pipe, resolved, shard, slice, spec, worker};
use millrace_common::position::Position;

fn project(name: &str) -> ProjectName {
    format!("projects/{name}").parse().unwrap()
}

pub(crate) async fn a_pipe_is_stored_as_it_was_given(database: Database) {
    let store = &database.store;
    credentials(store).await;
    let mut new = new_pipe("events", &[shard(0), shard(1)]);
    new.effective = Some(Effective {
        delivery: Delivery::ExactlyOnce,
        reason: "a window of 1000".to_owned(),
        window: None,
    });
    let stored = store.create_pipe(new.clone()).await.unwrap();
    assert_eq!(
        (&stored.name, stored.uid, &stored.spec),
        (&new.name, new.uid, &new.spec)
    );
    assert_eq!(stored.resolved.columns, new.resolved.columns);
    assert_eq!((stored.revision, stored.resolved.revision), (Revision(1), Revision(1)));
    assert_eq!(
        (stored.desired, &stored.effective),
        (DesiredState::Running, &new.effective)
    );
    assert_eq!((stored.totals, &stored.fault), (Totals::default(), &None));
    assert_eq!(stored.created, stored.updated);

    assert_eq!(store.get_pipe(&new.name).await.unwrap().as_ref(), Some(&stored));
    assert_eq!(store.pipe_by_uid(new.uid).await.unwrap().as_ref(), Some(&stored));
    assert_eq!(store.all_pipes().await.unwrap(), std::slice::from_ref(&stored));
    assert_eq!(
        store.revision(new.uid, Revision(1)).await.unwrap(),
        Some((stored.spec, stored.resolved))
    );
    for revision in [0, 2, u64::MAX] {
        assert_eq!(store.revision(new.uid, Revision(revision)).await.unwrap(), None);
    }
    let shards = store.shards(new.uid).await.unwrap();
    assert_eq!(
        shards.iter().map(|row| row.id.clone()).collect::<Vec<_>>(),
        [shard(0), shard(1)]
    );
    assert!(
        shards
            .iter()
            .all(|row| row.state == ShardPhase::Open && row.owner.is_none() && row.epoch.0 == 0)
    );
    assert!(
        shards
            .iter()
            .all(|row| row.checkpoint == Position::TrimHorizon && row.frontier == row.checkpoint)
    );

    let nobody: PipeName = "projects/default/pipes/nobody".parse().unwrap();
    assert_eq!(store.get_pipe(&nobody).await.unwrap(), None);
    assert_eq!(store.snapshot(PipeUid::new()).await.unwrap(), None);
    assert_eq!(store.shards(PipeUid::new()).await.unwrap(), []);
}

pub(crate) async fn pipes_are_listed_in_name_order(database: Database) {
    let store = &database.store;
    credentials(store).await;
    // By bytes: a collation for people would put the dash elsewhere.
    let names = ["a", "a-b", "a1", "ab", "b", "ba"];
    for name in ["b", "ab", "a-b", "ba", "a", "a1"] {
        store.create_pipe(new_pipe(name, &[])).await.unwrap();
    }
    let mut elsewhere = new_pipe("x", &[]);
    elsewhere.name.project = project("other");
    store.create_pipe(elsewhere).await.unwrap();

    let mut seen = Vec::new();
    let mut last = None;
    loop {
        let page = store.list_pipes(&project("default"), last.as_ref(), 4).await.unwrap();
        let page: Vec<_> = page.into_iter().map(Result::unwrap).collect();
        assert!(page.len() <= 4);
        let Some(pipe) = page.last() else { break };
        last = Some(pipe.name.id.clone());
        seen.extend(page.iter().map(|pipe| pipe.name.id.to_string()));
    }
    assert_eq!(seen, names);
    assert_eq!(store.list_pipes(&project("other"), None, 10).await.unwrap().len(), 1);
    assert!(store.list_pipes(&project("empty"), None, 10).await.unwrap().is_empty());
    let all = store.snapshot_all().await.unwrap();
    assert_eq!((all.pipes.len(), all.damaged.len()), (7, 0));
}

pub(crate) async fn a_name_is_taken_once(database: Database) {
    let store = &database.store;
    let first = pipe(store, 1).await;
    let second = new_pipe("events", &[shard(5)]);
    let error = store.create_pipe(second.clone()).await.unwrap_err();
    assert!(
        matches!(&error, Error::AlreadyExists { name } if *name == first.name.to_string()),
        "{error}"
    );
    assert_eq!(store.shards(second.uid).await.unwrap(), []);

    let mut unknown = new_pipe("other", &[shard(0)]);
    unknown.spec.source.credential = "projects/default/credentials/none".parse().unwrap();
    let error = store.create_pipe(unknown.clone()).await.unwrap_err();
    assert!(
        matches!(&error, Error::CredentialNotFound { name } if *name == unknown.spec.source.credential),
        "{error}"
    );
    assert_eq!(store.get_pipe(&unknown.name).await.unwrap(), None);
}

pub(crate) async fn an_update_makes_a_revision_and_an_etag(database: Database) {
    let store = &database.store;
    let first = pipe(store, 1).await;
    let change = PipeChange {
        spec: Some((spec("other"), resolved("b"))),
        ..PipeChange::default()
    };
    let second = store
        .update_pipe(first.uid, Some(&first.etag), change.clone())
        .await
        .unwrap();
    assert_eq!((second.revision, second.resolved.revision), (Revision(2), Revision(2)));
    assert_eq!(second.spec.destination.table, "other");
    assert_eq!(second.resolved.columns[0].name, "b");
    assert_ne!(second.etag, first.etag);
    let (old, old_resolved) = store.revision(first.uid, Revision(1)).await.unwrap().unwrap();
    assert_eq!((old, old_resolved), (first.spec.clone(), first.resolved.clone()));

    let error = store
        .update_pipe(first.uid, Some(&first.etag), change.clone())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::EtagMismatch { found, .. } if *found == second.etag),
        "{error}"
    );
    assert_eq!(store.pipe_by_uid(first.uid).await.unwrap().as_ref(), Some(&second));

    let stop = PipeChange {
        desired: Some(DesiredState::Stopped),
        ..PipeChange::default()
    };
    let third = store.update_pipe(first.uid, None, stop).await.unwrap();
    assert_eq!((third.desired, third.revision), (DesiredState::Stopped, Revision(2)));
    assert_ne!(third.etag, second.etag);
    let same = store
        .update_pipe(first.uid, Some(&third.etag), PipeChange::default())
        .await
        .unwrap();
    assert_eq!(same, third);
    let missing = store.update_pipe(PipeUid::new(), None, change).await.unwrap_err();
    assert!(matches!(missing, Error::PipeNotFound { .. }), "{missing}");

    let mut bad = spec("other");
    bad.destination.credential = "projects/default/credentials/none".parse().unwrap();
    let change = PipeChange {
        spec: Some((bad, resolved("b"))),
        ..PipeChange::default()
    };
    assert!(matches!(
        store.update_pipe(first.uid, None, change).await,
        Err(Error::CredentialNotFound { .. })
    ));
    assert_eq!(store.revision(first.uid, Revision(3)).await.unwrap(), None);
    assert_eq!(store.pipe_by_uid(first.uid).await.unwrap(), Some(third));
}

pub(crate) async fn observations_leave_the_etag(database: Database) {
    let store = &database.store;
    let first = pipe(store, 1).await;
    let fault = StoredFault {
        reason: millrace_common::reason::SOURCE_ACCESS_DENIED.to_owned(),
        message: "allow kinesis:ListShards".to_owned(),
        permanent: true,
    };
    let effective = Effective {
        delivery: Delivery::AtLeastOnce,
        reason: "no window".to_owned(),
        window: None,
    };
    assert!(store.set_pipe_fault(first.uid, Some(&fault)).await.unwrap());
    assert!(store.set_pipe_effective(first.uid, &effective).await.unwrap());
    let seen = store.pipe_by_uid(first.uid).await.unwrap().unwrap();
    assert_eq!((&seen.fault, &seen.effective), (&Some(fault), &Some(effective)));
    assert_eq!((&seen.etag, seen.updated), (&first.etag, first.updated));
    assert!(store.set_pipe_fault(first.uid, None).await.unwrap());
    assert_eq!(store.pipe_by_uid(first.uid).await.unwrap().unwrap().fault, None);
    assert!(!store.set_pipe_fault(PipeUid::new(), None).await.unwrap());
}

pub(crate) async fn a_deleted_pipe_is_gone(database: Database) {
    let store = &database.store;
    let first = pipe(store, 2).await;
    let me = worker("w1");
    let held = grant(store, first.uid, &[shard(0), shard(1)], &me).await;
    let open = batch(vec![slice(&shard(0), Position::TrimHorizon, 5)], 5);
    store.prepare(first.uid, &me, &open, &held).await.unwrap();
    let done = batch(vec![slice(&shard(1), Position::TrimHorizon, 5)], 5);
    store.prepare(first.uid, &me, &done, &held).await.unwrap();
    store.commit(first.uid, &me, done.id, &held).await.unwrap();

    assert!(matches!(
        store.delete_pipe(&first.name, Some("other")).await,
        Err(Error::EtagMismatch { .. })
    ));
    assert!(store.delete_pipe(&first.name, Some(&first.etag)).await.unwrap());
    assert!(!store.delete_pipe(&first.name, None).await.unwrap());
    assert_eq!(store.get_pipe(&first.name).await.unwrap(), None);
    assert_eq!(store.shards(first.uid).await.unwrap(), []);
    assert_eq!(store.open_batches(first.uid).await.unwrap(), []);
    assert_eq!(store.revision(first.uid, Revision(1)).await.unwrap(), None);
    let gone = |result: Result<(), Error>| assert!(matches!(result, Err(Error::PipeNotFound { .. })), "{result:?}");
    gone(store.prepare(first.uid, &me, &open, &held).await);
    gone(store.commit(first.uid, &me, open.id, &held).await);
    gone(store.grant(first.uid, &held, &me).await.map(|_| ()));
    gone(store.add_shards(first.uid, &[], &Default::default()).await.map(|_| ()));
    gone(
        store
            .finish_shard(first.uid, &shard(1), held[1].1, &[])
            .await
            .map(|_| ()),
    );

    let again = store.create_pipe(new_pipe("events", &[shard(0)])).await.unwrap();
    assert_ne!(again.etag, first.etag);
    assert_eq!(again.totals, Totals::default());
    assert_eq!(
        store.shards(again.uid).await.unwrap()[0].checkpoint,
        Position::TrimHorizon
    );
}

pub(crate) async fn old_revisions_go_but_for_those_of_open_batches(database: Database) {
    let store = &database.store;
    let pipe = pipe(store, 1).await;
    let me = worker("w1");
    let held = grant(store, pipe.uid, &[shard(0)], &me).await;
    let renamed = |number: u64| PipeChange {
        spec: Some((
            PipeSpec {
                display_name: format!("name {number}"),
                ..spec("events")
            },
            resolved("a"),
        )),
        ..PipeChange::default()
    };
    store.update_pipe(pipe.uid, None, renamed(2)).await.unwrap();
    let mut open = batch(vec![slice(&shard(0), Position::TrimHorizon, 5)], 5);
    open.revision = Revision(2);
    store.prepare(pipe.uid, &me, &open, &held).await.unwrap();
    for number in 3..=MAX_REVISIONS + 10 {
        store.update_pipe(pipe.uid, None, renamed(number)).await.unwrap();
    }
    let kept = |revisions: &[StoredRevision]| revisions.iter().map(|revision| revision.revision.0).collect::<Vec<_>>();
    let all = store.list_revisions(pipe.uid, None, 500).await.unwrap();
    let mut expected: Vec<u64> = (11..=MAX_REVISIONS + 10).rev().collect();
    expected.push(2);
    assert_eq!(kept(&all), expected);
    assert_eq!(all[0].spec.display_name, format!("name {}", MAX_REVISIONS + 10));
    let page = store.list_revisions(pipe.uid, Some(Revision(14)), 2).await.unwrap();
    assert_eq!(kept(&page), [13, 12]);

    store.commit(pipe.uid, &me, open.id, &held).await.unwrap();
    store.update_pipe(pipe.uid, None, renamed(0)).await.unwrap();
    let all = store.list_revisions(pipe.uid, None, 500).await.unwrap();
    assert_eq!(kept(&all).last(), Some(&12));
    assert_eq!(all.len() as u64, MAX_REVISIONS);
    assert_eq!(store.list_revisions(PipeUid::new(), None, 500).await.unwrap(), []);
}

//! What users and discovery change, and a store that goes away.

use super::*;

#[tokio::test]
async fn a_stopped_pipe_is_released_and_comes_back_to_its_worker() {
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::start(directory.path(), options()).await;
    let pipe = plane.create_pipe("events", 1, 2).await;
    let (first, second) = (Worker::connect(&plane, "w1").await, Worker::connect(&plane, "w2").await);
    let on_first = eventually("one has it", || async {
        let held = (first.shards(&pipe).len(), second.shards(&pipe).len());
        matches!(held, (2, 0) | (0, 2)).then_some(held.0 == 2)
    })
    .await;
    set_desired(&plane, pipe.uid, DesiredState::Stopped).await;
    let holder = if on_first { &first } else { &second };
    holder.holds(&pipe, 0).await;
    eventually("nobody owns it", || async {
        let shards = plane.store.shards(pipe.uid).await.unwrap();
        shards.iter().all(|shard| shard.owner.is_none()).then_some(())
    })
    .await;
    eventually("nobody is shown to hold it", || async {
        let runtime = plane.handle.runtime(pipe.uid);
        (runtime.shards.len() == 2 && runtime.shards.values().all(|s| s.worker.is_none())).then_some(())
    })
    .await;
    set_desired(&plane, pipe.uid, DesiredState::Running).await;
    let again = holder.holds(&pipe, 2).await;
    assert!(again.values().all(|epoch| *epoch == 2), "{again:?}");
}

#[tokio::test]
async fn faults_are_shown_and_a_recreated_stream_halts() {
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::start(directory.path(), options()).await;
    let pipe = plane.create_pipe("events", 1, 1).await;
    let worker = Worker::connect(&plane, "w1").await;
    worker.holds(&pipe, 1).await;
    let mut changed = plane.handle.changed();
    changed.mark_unchanged();
    let reason = reason::DESTINATION_UNREACHABLE.to_owned();
    worker.set_fault(Some(v1::LaneFault {
        reason: reason.clone(),
        message: "no answer".into(),
        permanent: false,
    }));
    worker.report().await;
    tokio::time::timeout(PATIENCE, changed.changed())
        .await
        .unwrap()
        .unwrap();
    let faults = eventually("the fault shows", || async {
        Some(plane.handle.runtime(pipe.uid).faults).filter(|faults| !faults.is_empty())
    })
    .await;
    assert_eq!(
        (faults[0].0.as_str(), faults[0].1.reason.as_str()),
        ("w1", reason.as_str())
    );
    worker.set_fault(None);
    let fault = |permanent| StoredFault {
        reason: reason::SOURCE_STREAM_RECREATED.into(),
        message: "another stream".into(),
        permanent,
    };
    plane.store.set_pipe_fault(pipe.uid, Some(&fault(true))).await.unwrap();
    plane.handle.nudge_pipe(pipe.uid);
    worker.holds(&pipe, 0).await;
    plane.store.set_pipe_fault(pipe.uid, None).await.unwrap();
    plane.handle.nudge_pipe(pipe.uid);
    worker.holds(&pipe, 1).await;
}

#[tokio::test]
async fn a_deleted_pipe_is_dropped_and_a_changed_one_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::start(directory.path(), options()).await;
    let pipe = plane.create_pipe("events", 1, 2).await;
    let worker = Worker::connect(&plane, "w1").await;
    worker.holds(&pipe, 2).await;
    let (mut client, batch) = (worker.client.clone(), BatchId::new());
    client
        .prepare_batch(prepare(&worker, &pipe, batch, vec![slice(0, 1, None, "100")]))
        .await
        .unwrap();
    let mut changed = spec(1);
    changed.destination.table = "other".into();
    let change = PipeChange {
        spec: Some((changed, resolved())),
        ..Default::default()
    };
    plane.store.update_pipe(pipe.uid, None, change).await.unwrap();
    plane.handle.nudge();
    eventually("the new revision comes", || async {
        let spec = lane(&worker, &pipe).spec.unwrap();
        (spec.revision == 2 && spec.clickhouse.unwrap().table == "other").then_some(())
    })
    .await;
    assert!(
        worker.shards(&pipe).values().all(|epoch| *epoch == 1),
        "and nothing is granted anew for it"
    );

    // A new owner gets the old revision with the batch that was made with it.
    worker.kill();
    let second = Worker::connect(&plane, "w2").await;
    second.holds(&pipe, 2).await;
    let lane = lane(&second, &pipe);
    assert_eq!((lane.open_batches.len(), lane.replay_specs.len()), (1, 1));
    let old = lane.replay_specs[0].clone();
    assert_eq!((old.revision, old.clickhouse.unwrap().table.as_str()), (1, "events"));

    assert!(plane.store.delete_pipe(&pipe.name, None).await.unwrap());
    plane.handle.nudge();
    second.holds(&pipe, 0).await;
    assert_eq!(plane.handle.runtime(pipe.uid), PipeRuntime::default());
}

#[tokio::test]
async fn an_outage_of_the_store_changes_nothing_for_workers() {
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::start(directory.path(), options()).await;
    let pipe = plane.create_pipe("events", 1, 2).await;
    let worker = Worker::connect(&plane, "w1").await;
    worker.holds(&pipe, 2).await;
    plane.store.close().await;
    plane.handle.nudge();
    let until = Instant::now() + 2 * options().lease_ttl;
    eventually("time passes", || async { (Instant::now() > until).then_some(()) }).await;
    assert!(worker.ended.borrow().is_none(), "the session lives");
    assert_eq!(worker.shards(&pipe).len(), 2);
    assert!(
        plane
            .handle
            .runtime(pipe.uid)
            .shards
            .values()
            .all(|shard| shard.worker.is_some())
    );
    let mut client = worker.client.clone();
    let request = prepare(&worker, &pipe, BatchId::new(), vec![slice(0, 1, None, "100")]);
    let status = client.prepare_batch(request).await.unwrap_err();
    assert_eq!(
        (status.code(), error::reason(&status).as_deref()),
        (Code::Unavailable, Some("STORE_UNAVAILABLE"))
    );
}

#[tokio::test]
async fn a_pipe_that_cannot_be_read_stands_still_and_all_others_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let fast = || Options {
        refresh: Duration::from_millis(300),
        ..options()
    };
    let plane = Plane::start(directory.path(), fast()).await;
    let broken = plane.create_pipe("broken", 1, 1).await;
    let sql = |fault: &str| format!("UPDATE pipes SET fault = {fault} WHERE uid = '{}'", broken.uid);
    plane.store.tamper(&sql("'no JSON'")).await;
    plane.stop().await;
    // It begins with a look at all pipes, one of which it cannot read.
    let plane = Plane::start(directory.path(), fast()).await;
    let sound = plane.create_pipe("sound", 1, 2).await;
    plane.handle.nudge();
    let worker = Worker::connect(&plane, "w1").await;
    worker.holds(&sound, 2).await;
    assert!(worker.shards(&broken).is_empty());
    let blocked = eventually("it is told", || async { plane.handle.runtime(broken.uid).blocked }).await;
    assert!(blocked.permanent && blocked.reason == reason::INTERNAL, "{blocked:?}");
    assert!(blocked.message.contains("pipes.fault"), "{blocked:?}");
    assert!(blocked.message.contains("projects/default/pipes/broken"), "{blocked:?}");
    let damaged = async || {
        let events = plane.store.list_events(broken.uid, None, 100).await.unwrap();
        events
            .into_iter()
            .filter(|event| event.kind == kind::PIPE_DAMAGED)
            .count()
    };
    // Several looks later it was told once.
    tokio::time::timeout(PATIENCE, async {
        let mut changed = plane.handle.changed();
        plane.create_pipe("third", 1, 1).await;
        plane.handle.nudge();
        changed.changed().await.unwrap();
    })
    .await
    .unwrap();
    assert_eq!(damaged().await, 1);
    // A person mends it.
    plane.store.tamper(&sql("NULL")).await;
    worker.holds(&broken, 1).await;
    eventually("it is well", || async {
        plane.handle.runtime(broken.uid).blocked.is_none().then_some(())
    })
    .await;
    // While it is held it may break as well: it stays with its worker.
    plane.store.tamper(&sql("'no JSON'")).await;
    eventually("it is told", || async { plane.handle.runtime(broken.uid).blocked }).await;
    assert_eq!(worker.shards(&broken).len(), 1);
    assert_eq!(damaged().await, 2);
}

#[tokio::test]
async fn a_worker_of_an_older_release_gets_no_pipe_that_it_would_get_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::start(directory.path(), options()).await;
    let pipe = plane.create_pipe("events", 1, 2).await;
    let other = plane.create_pipe("others", 1, 2).await;
    let older = Worker::connect_speaking(&plane, identity("old"), Held::new(), 1).await;
    older.holds(&pipe, 2).await;
    older.holds(&other, 2).await;

    // It asks for what only newer ones do: nothing of that revision is ever told to the older one, which gives back what it has.
    let mut spec = pipe.spec.clone();
    spec.decoding.on_out_of_range = OutOfRangePolicy::Drop;
    let change = PipeChange {
        spec: Some((spec, pipe.resolved.clone())),
        ..PipeChange::default()
    };
    plane.store.update_pipe(pipe.uid, None, change).await.unwrap();
    plane.handle.nudge();
    older.holds(&pipe, 0).await;
    older.holds(&other, 2).await;
    let blocked = eventually("it says so", || async { plane.handle.runtime(pipe.uid).blocked }).await;
    assert_eq!(blocked.reason, reason::WORKERS_TOO_OLD);
    assert!(!blocked.permanent && blocked.message.contains("upgrade"), "{blocked:?}");
    assert_eq!(plane.handle.runtime(other.uid).blocked, None);
    let told = older.set.borrow().clone().unwrap();
    assert!(
        told.lanes.iter().all(|lane| lane.pipe_uid == other.uid.to_string()),
        "{told:?}"
    );

    let newer = Worker::connect(&plane, "new").await;
    newer.holds(&pipe, 2).await;
    let told = newer.set.borrow().clone().unwrap();
    let lane = told
        .lanes
        .iter()
        .find(|lane| lane.pipe_uid == pipe.uid.to_string())
        .unwrap();
    assert_eq!(lane.spec.as_ref().unwrap().revision, 2);
    eventually("nothing blocks it", || async {
        plane.handle.runtime(pipe.uid).blocked.is_none().then_some(())
    })
    .await;
}

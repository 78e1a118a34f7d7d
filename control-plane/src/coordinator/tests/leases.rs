//! Who holds what, through crashes and restarts of both sides.

use super::*;

#[tokio::test]
async fn a_worker_is_granted_everything_with_all_it_needs() {
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::start(directory.path(), options()).await;
    let pipe = plane.create_pipe("events", 1, 3).await;
    let blocked = eventually("NO_WORKERS", || async { plane.handle.runtime(pipe.uid).blocked }).await;
    assert_eq!(blocked.reason, reason::NO_WORKERS);

    let worker = Worker::connect(&plane, "w1").await;
    let shards = worker.holds(&pipe, 3).await;
    assert!(shards.values().all(|epoch| *epoch == 1), "{shards:?}");
    let lane = lane(&worker, &pipe);
    assert_eq!(lane.pipe_name, "projects/default/pipes/events");
    let spec = lane.spec.unwrap();
    let kinesis = spec.kinesis.unwrap();
    assert_eq!(kinesis.stream_created.unwrap().seconds, 1_767_323_045);
    let Some(v1::aws_credential::Kind::Keys(keys)) = kinesis.credential.unwrap().kind else {
        panic!("keys")
    };
    assert_eq!(keys.secret_access_key, "canary-secret");
    assert_eq!(spec.clickhouse.unwrap().password, "canary-password");
    assert_eq!((spec.revision, spec.columns.len()), (1, 1));
    assert!(spec.batch.unwrap().exactly_once);

    let runtime = eventually("the runtime shows the holder", || async {
        Some(plane.handle.runtime(pipe.uid)).filter(|r| r.shards.values().all(|s| s.worker.is_some()))
    })
    .await;
    assert_eq!((runtime.shards.len(), runtime.blocked), (3, None));
    assert_eq!(plane.handle.workers().len(), 1);
    let owner = plane.shard(pipe.uid, 0).await.owner.unwrap();
    assert_eq!(owner.incarnation.to_string(), worker.identity.incarnation);
    plane.stop().await;
}

#[tokio::test]
async fn heartbeats_hold_leases_and_cost_no_set_and_no_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::start(directory.path(), options()).await;
    let pipe = plane.create_pipe("events", 1, 2).await;
    let worker = Worker::connect(&plane, "w1").await;
    worker.holds(&pipe, 2).await;
    let generation = worker.set.borrow().as_ref().unwrap().generation;
    // Batches come and go, somebody nudges, several TTLs pass.
    let (mut client, batch) = (worker.client.clone(), BatchId::new());
    let slices = vec![slice(0, 1, None, "100")];
    client
        .prepare_batch(prepare(&worker, &pipe, batch, slices.clone()))
        .await
        .unwrap();
    plane.handle.nudge();
    let until = Instant::now() + 2 * options().lease_ttl;
    eventually("time passes", || async { (Instant::now() > until).then_some(()) }).await;
    client
        .commit_batch(commit(&worker, &pipe, batch, slices))
        .await
        .unwrap();
    plane.handle.nudge();
    let runtime = plane.handle.runtime(pipe.uid);
    assert!(
        runtime.shards.values().all(|shard| shard.worker.is_some()),
        "{runtime:?}"
    );
    assert_eq!(worker.set.borrow().as_ref().unwrap().generation, generation);
    assert!(
        plane
            .store
            .shards(pipe.uid)
            .await
            .unwrap()
            .iter()
            .all(|shard| shard.epoch.0 == 1)
    );
}

#[tokio::test]
async fn a_dead_workers_shards_move_with_their_open_batch() {
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::start(directory.path(), options()).await;
    let pipe = plane.create_pipe("events", 1, 3).await;
    let first = Worker::connect(&plane, "w1").await;
    first.holds(&pipe, 3).await;
    let second = Worker::connect(&plane, "w2").await;
    let (mut client, batch) = (first.client.clone(), BatchId::new());
    let slices = vec![slice(0, 1, None, "100"), slice(1, 1, None, "200")];
    client
        .prepare_batch(prepare(&first, &pipe, batch, slices))
        .await
        .unwrap();
    let next = BatchId::new();
    client
        .prepare_batch(prepare(&first, &pipe, next, vec![slice(0, 1, Some("100"), "150")]))
        .await
        .unwrap();
    let zombie = commit(
        &first,
        &pipe,
        batch,
        vec![slice(0, 1, None, "100"), slice(1, 1, None, "200")],
    );
    let died = Instant::now();
    first.kill();

    let shards = second.holds(&pipe, 3).await;
    assert!(
        died.elapsed() >= options().lease_ttl / 2,
        "it took its time: {:?}",
        died.elapsed()
    );
    assert!(shards.values().all(|epoch| *epoch == 2), "{shards:?}");
    let lane = lane(&second, &pipe);
    let ids: Vec<String> = lane.open_batches.iter().map(|batch| batch.batch_id.clone()).collect();
    assert_eq!(ids, [batch.to_string(), next.to_string()], "oldest first");
    let start: BTreeMap<String, _> = lane
        .shards
        .iter()
        .map(|s| (s.shard_id.clone(), s.start.clone().unwrap()))
        .collect();
    use v1::position::Place;
    let after = |text: &str| Some(Place::AfterSequenceNumber(text.into()));
    assert_eq!(
        start[shard_id(0).as_str()].place,
        after("150"),
        "the frontier, not the checkpoint"
    );
    assert_eq!(start[shard_id(1).as_str()].place, after("200"));
    assert_eq!(
        start[shard_id(2).as_str()].place,
        Some(Place::TrimHorizon(v1::TrimHorizon {}))
    );

    // The old owner is fenced; the new one commits.
    let status = client.commit_batch(zombie).await.unwrap_err();
    assert_eq!(error::reason(&status).as_deref(), Some("STALE_EPOCH"));
    let slices = vec![slice(0, 2, None, "100"), slice(1, 2, None, "200")];
    let mut client = second.client.clone();
    client
        .commit_batch(commit(&second, &pipe, batch, slices))
        .await
        .unwrap();
    // What is open is replayed with the revision that made it; the new one serves what is read anew.
    assert!(lane.replay_specs.is_empty());
}

#[tokio::test]
async fn a_hanging_worker_loses_its_shards_though_its_connection_stays() {
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::start(directory.path(), options()).await;
    let pipe = plane.create_pipe("events", 1, 2).await;
    let first = Worker::connect(&plane, "w1").await;
    first.holds(&pipe, 2).await;
    let second = Worker::connect(&plane, "w2").await;
    first.hang();
    second.holds(&pipe, 2).await;
}

#[tokio::test]
async fn a_restarted_worker_has_its_shards_back_before_the_ttl() {
    let directory = tempfile::tempdir().unwrap();
    let long = Options {
        lease_ttl: Duration::from_secs(600),
        ..options()
    };
    let plane = Plane::start(directory.path(), long).await;
    let pipe = plane.create_pipe("events", 2, 4).await;
    let (first, second) = (Worker::connect(&plane, "w1").await, Worker::connect(&plane, "w2").await);
    first.holds(&pipe, 2).await;
    let of_second = second.holds(&pipe, 2).await;
    let (old, before) = (first.identity.clone(), first.shards(&pipe));
    first.kill();
    let again = Worker::connect(&plane, "w1").await;
    let after = again.holds(&pipe, 2).await;
    assert_eq!(
        after.keys().collect::<Vec<_>>(),
        before.keys().collect::<Vec<_>>(),
        "its own shards"
    );
    assert!(
        after.iter().all(|(id, epoch)| *epoch > before[id]),
        "{before:?} {after:?}"
    );
    assert_eq!(second.shards(&pipe), of_second, "and nothing else moved");
    // The process that was replaced does not come back.
    let mut client = plane.client();
    let hello = v1::Hello {
        worker: Some(old),
        protocol_min: 1,
        protocol_max: 1,
        ..Default::default()
    };
    let status = refused(&mut client, Message::Hello(hello)).await;
    assert_eq!(error::reason(&status).as_deref(), Some("WORKER_REPLACED"));
}

#[tokio::test]
async fn a_reconnecting_worker_keeps_what_it_holds() {
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::start(directory.path(), options()).await;
    let pipe = plane.create_pipe("events", 1, 2).await;
    let first = Worker::connect(&plane, "w1").await;
    first.holds(&pipe, 2).await;
    let (identity, held) = (first.identity.clone(), first.held());
    let second = Worker::connect_as(&plane, identity, held).await;
    let ended = eventually("the old session ends", || async { first.ended.borrow().clone() }).await;
    assert_eq!(error::reason(&ended.unwrap_err()).as_deref(), Some("SESSION_REPLACED"));
    first.kill();
    let until = Instant::now() + 2 * options().lease_ttl;
    eventually("time passes", || async { (Instant::now() > until).then_some(()) }).await;
    assert!(second.shards(&pipe).values().all(|epoch| *epoch == 1));
    assert!(
        plane
            .store
            .shards(pipe.uid)
            .await
            .unwrap()
            .iter()
            .all(|shard| shard.epoch.0 == 1)
    );
}

#[tokio::test]
async fn a_restarted_control_plane_moves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::start(directory.path(), options()).await;
    let pipe = plane.create_pipe("events", 2, 4).await;
    let (first, second) = (Worker::connect(&plane, "w1").await, Worker::connect(&plane, "w2").await);
    first.holds(&pipe, 2).await;
    second.holds(&pipe, 2).await;
    let before: Vec<_> = plane.store.shards(pipe.uid).await.unwrap();
    let (one, two) = (
        (first.identity.clone(), first.held()),
        (second.identity.clone(), second.held()),
    );
    plane.stop().await;
    first.kill();
    second.kill();

    let plane = Plane::start(directory.path(), options()).await;
    let first = Worker::connect_as(&plane, one.0, one.1).await;
    // The other one comes a little later; nobody touches what it holds.
    eventually("the first round", || async { first.set.borrow().clone() }).await;
    assert_eq!(first.shards(&pipe).len(), 2);
    let second = Worker::connect_as(&plane, two.0, two.1).await;
    let until = Instant::now() + 2 * options().lease_ttl;
    eventually("time passes", || async { (Instant::now() > until).then_some(()) }).await;
    let after: Vec<_> = plane.store.shards(pipe.uid).await.unwrap();
    assert_eq!(before, after, "same owners, same epochs");
    assert_eq!((first.shards(&pipe).len(), second.shards(&pipe).len()), (2, 2));
}

#[tokio::test]
async fn a_worker_that_does_not_come_back_after_a_restart_loses_its_shards() {
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::start(directory.path(), options()).await;
    let pipe = plane.create_pipe("events", 1, 2).await;
    let first = Worker::connect(&plane, "w1").await;
    first.holds(&pipe, 2).await;
    plane.stop().await;
    first.kill();
    let plane = Plane::start(directory.path(), options()).await;
    let second = Worker::connect(&plane, "w2").await;
    let after = second.holds(&pipe, 2).await;
    assert!(after.values().all(|epoch| *epoch == 2), "{after:?}");
}

#[tokio::test]
async fn what_a_worker_drops_is_granted_anew_but_not_in_a_tight_loop() {
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::start(directory.path(), options()).await;
    let pipe = plane.create_pipe("events", 1, 2).await;
    let worker = Worker::connect(&plane, "w1").await;
    worker.holds(&pipe, 2).await;
    let started = Instant::now();
    for epoch in 2..=6 {
        worker.drop_shard(&pipe, 0).await;
        eventually("it is back under the next epoch", || async {
            (worker.shards(&pipe).get(shard_id(0).as_str()) == Some(&epoch)).then_some(())
        })
        .await;
    }
    // The rests: none, 50, 100, 200 and 400 ms.
    assert!(
        started.elapsed() >= Duration::from_millis(750),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(
        worker.shards(&pipe)[shard_id(1).as_str()],
        1,
        "the other shard is left alone"
    );
}

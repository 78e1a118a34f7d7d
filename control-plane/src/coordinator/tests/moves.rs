//! What moves while everybody lives.

use super::*;

#[tokio::test]
async fn a_second_worker_gets_its_share_in_a_planned_move() {
    let directory = tempfile::tempdir().unwrap();
    // So long that nothing here can be a lease that ended.
    let long = Options {
        lease_ttl: Duration::from_secs(600),
        ..options()
    };
    let plane = Plane::start(directory.path(), long).await;
    let pipe = plane.create_pipe("events", 2, 4).await;
    let first = Worker::connect(&plane, "w1").await;
    first.holds(&pipe, 4).await;
    let second = Worker::connect(&plane, "w2").await;
    let moved = second.holds(&pipe, 2).await;
    let kept = first.holds(&pipe, 2).await;
    assert!(
        moved.values().all(|epoch| *epoch == 2) && kept.values().all(|epoch| *epoch == 1),
        "{moved:?} {kept:?}"
    );
    assert!(moved.keys().all(|id| !kept.contains_key(id)));
}

#[tokio::test]
async fn a_move_waits_for_the_holder_and_is_forced_after_the_deadline() {
    let directory = tempfile::tempdir().unwrap();
    let release = Duration::from_millis(700);
    let plane = Plane::start(
        directory.path(),
        Options {
            release_deadline: release,
            ..options()
        },
    )
    .await;
    let pipe = plane.create_pipe("events", 2, 2).await;
    let first = Worker::connect(&plane, "w1").await;
    first.holds(&pipe, 2).await;
    first.cling();
    let asked = Instant::now();
    let second = Worker::connect(&plane, "w2").await;
    let releasing = eventually("it is asked", || async {
        let shards = plane.handle.runtime(pipe.uid).shards;
        Some(shards.values().filter(|shard| shard.releasing).count()).filter(|count| *count > 0)
    })
    .await;
    assert_eq!(releasing, 1);
    let moved = second.holds(&pipe, 1).await;
    assert!(asked.elapsed() >= release, "{:?}", asked.elapsed());
    assert!(moved.values().all(|epoch| *epoch == 2));
}

#[tokio::test]
async fn a_leaving_worker_is_emptied_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let long = Options {
        lease_ttl: Duration::from_secs(600),
        ..options()
    };
    let plane = Plane::start(directory.path(), long).await;
    let pipe = plane.create_pipe("events", 1, 3).await;
    let first = Worker::connect(&plane, "w1").await;
    first.holds(&pipe, 3).await;
    let second = Worker::connect(&plane, "w2").await;
    first.say(Message::Leave(v1::Leave { deadline: None })).await;
    second.holds(&pipe, 3).await;
    assert_eq!(first.shards(&pipe).len(), 0);
    first.close().await;
    eventually("only one is left", || async {
        (plane.handle.workers().len() == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn goodbye_frees_what_could_not_be_flushed() {
    let directory = tempfile::tempdir().unwrap();
    let long = Options {
        lease_ttl: Duration::from_secs(600),
        ..options()
    };
    let plane = Plane::start(directory.path(), long).await;
    let pipe = plane.create_pipe("events", 1, 2).await;
    // By hand, so that both halves of the stream end in order.
    let (out, requests) = tokio::sync::mpsc::channel(8);
    let say = |message| out.try_send(v1::SessionRequest { message: Some(message) }).unwrap();
    let identity = identity("w1");
    let hello = v1::Hello {
        worker: Some(identity.clone()),
        protocol_min: 1,
        protocol_max: 1,
        ..Default::default()
    };
    say(Message::Hello(hello));
    let mut client = plane.client();
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut inbound = client.session(requests).await.unwrap().into_inner();
    eventually("it owns the shards", || async {
        plane
            .shard(pipe.uid, 0)
            .await
            .owner
            .filter(|o| o.incarnation.to_string() == identity.incarnation)
    })
    .await;
    say(Message::Leave(v1::Leave { deadline: None }));
    drop(out);
    while let Ok(Some(_)) = inbound.message().await {}
    let second = Worker::connect(&plane, "w2").await;
    second.holds(&pipe, 2).await;
}

#[tokio::test]
async fn who_has_not_left_when_it_said_it_would_has_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let long = Options {
        lease_ttl: Duration::from_secs(600),
        release_deadline: Duration::from_secs(600),
        ..options()
    };
    let plane = Plane::start(directory.path(), long).await;
    let pipe = plane.create_pipe("events", 1, 2).await;
    let first = Worker::connect(&plane, "w1").await;
    first.holds(&pipe, 2).await;
    let second = Worker::connect(&plane, "w2").await;
    // It reports its shards to the end, and beyond.
    first.cling();
    let left = Duration::from_millis(700);
    let said = Instant::now();
    let deadline = prost_types::Duration::try_from(left).unwrap();
    first
        .say(Message::Leave(v1::Leave {
            deadline: Some(deadline),
        }))
        .await;
    second.holds(&pipe, 2).await;
    assert!(said.elapsed() >= left, "{:?}", said.elapsed());
}

#[tokio::test]
async fn two_pipes_share_two_workers() {
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::start(directory.path(), options()).await;
    let one = plane.create_pipe("one", 1, 2).await;
    let two = plane.create_pipe("two", 1, 2).await;
    let (first, second) = (Worker::connect(&plane, "w1").await, Worker::connect(&plane, "w2").await);
    eventually("each has one pipe", || async {
        let counts = |worker: &Worker| (worker.shards(&one).len(), worker.shards(&two).len());
        matches!((counts(&first), counts(&second)), ((2, 0), (0, 2)) | ((0, 2), (2, 0))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn children_open_when_their_parents_are_finished() {
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::start(directory.path(), options()).await;
    let pipe = plane.create_pipe("events", 1, 2).await;
    let worker = Worker::connect(&plane, "w1").await;
    worker.holds(&pipe, 2).await;
    let child = |n: usize, parents: &[usize]| v1::ChildShard {
        shard_id: shard_id(n).to_string(),
        parent_shard_ids: parents.iter().map(|p| shard_id(*p).to_string()).collect(),
    };
    // 0 splits into 2 and 3, and 4 is a merge of 0 and 1.
    worker
        .finish(&pipe, 0, vec![child(2, &[0]), child(3, &[0]), child(4, &[0, 1])])
        .await;
    let shards = eventually("the children run", || async {
        Some(worker.shards(&pipe)).filter(|shards| shards.contains_key(shard_id(3).as_str()))
    })
    .await;
    let ids: Vec<String> = shards.keys().cloned().collect();
    assert_eq!(
        ids,
        [1, 2, 3].map(|n| shard_id(n).to_string()),
        "4 waits for 1, and 0 is done"
    );
    assert_eq!(plane.shard(pipe.uid, 0).await.state, ShardPhase::Finished);
    assert_eq!(plane.shard(pipe.uid, 4).await.state, ShardPhase::Waiting);
    worker.finish(&pipe, 1, vec![child(4, &[0, 1])]).await;
    eventually("the merge runs", || async {
        worker.shards(&pipe).contains_key(shard_id(4).as_str()).then_some(())
    })
    .await;
    assert!(
        !plane.handle.runtime(pipe.uid).shards.contains_key(&shard_id(0)),
        "finished shards are not shown"
    );
}

//! Prepare and Commit over the wire.

use super::*;

#[tokio::test]
async fn batches_are_prepared_and_committed_once_and_others_refused() {
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::start(directory.path(), options()).await;
    let pipe = plane.create_pipe("events", 1, 2).await;
    let worker = Worker::connect(&plane, "w1").await;
    worker.holds(&pipe, 2).await;
    let (mut client, batch) = (worker.client.clone(), BatchId::new());
    let slices = vec![slice(0, 1, None, "100"), slice(1, 1, None, "200")];
    for _ in 0..2 {
        client
            .prepare_batch(prepare(&worker, &pipe, batch, slices.clone()))
            .await
            .unwrap();
    }
    for _ in 0..2 {
        client
            .commit_batch(commit(&worker, &pipe, batch, slices.clone()))
            .await
            .unwrap();
    }
    let totals = plane.store.pipe_by_uid(pipe.uid).await.unwrap().unwrap().totals;
    assert_eq!((totals.rows, totals.records, totals.batches), (10, 11, 1));
    assert_eq!(
        plane
            .shard(pipe.uid, 1)
            .await
            .checkpoint
            .sequence_number()
            .unwrap()
            .as_str(),
        "200"
    );

    let cases = [
        (
            "STALE_EPOCH",
            prepare(&worker, &pipe, BatchId::new(), vec![slice(0, 9, Some("100"), "300")]),
        ),
        (
            "NOT_AT_FRONTIER",
            prepare(&worker, &pipe, BatchId::new(), vec![slice(0, 1, Some("50"), "300")]),
        ),
        ("NOT_OWNER", {
            let mut other = prepare(&worker, &pipe, BatchId::new(), vec![slice(0, 1, Some("100"), "300")]);
            other.worker = Some(identity("w2"));
            other
        }),
        (
            "UNKNOWN_SHARD",
            prepare(&worker, &pipe, BatchId::new(), vec![slice(77, 1, None, "300")]),
        ),
    ];
    for (expected, request) in cases {
        let status = client.prepare_batch(request).await.unwrap_err();
        assert_eq!(
            (status.code(), error::reason(&status).as_deref()),
            (Code::FailedPrecondition, Some(expected))
        );
    }
    let mut unknown = commit(&worker, &pipe, BatchId::new(), vec![slice(0, 1, Some("100"), "300")]);
    let status = client.commit_batch(unknown.clone()).await.unwrap_err();
    assert_eq!(
        error::reason(&status).as_deref(),
        Some("UNKNOWN_BATCH"),
        "exactly once takes no unprepared batch"
    );
    unknown.pipe_uid = PipeUid::new().to_string();
    assert_eq!(
        client.commit_batch(unknown.clone()).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    unknown.pipe_uid = "nonsense".into();
    assert_eq!(
        client.commit_batch(unknown).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn at_least_once_commits_without_preparing() {
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::start(directory.path(), options()).await;
    let pipe = plane.create_pipe("events", 1, 1).await;
    let settings = Settings {
        delivery: Delivery::AtLeastOnce,
        ..Settings::default()
    };
    let changed = PipeSpec { settings, ..spec(1) };
    let change = PipeChange {
        spec: Some((changed, resolved())),
        ..Default::default()
    };
    plane.store.update_pipe(pipe.uid, None, change).await.unwrap();
    plane.handle.nudge();
    let worker = Worker::connect(&plane, "w1").await;
    worker.holds(&pipe, 1).await;
    let spec = lane(&worker, &pipe).spec.unwrap();
    assert_eq!((spec.revision, spec.batch.unwrap().exactly_once), (2, false));
    let (mut client, batch) = (worker.client.clone(), BatchId::new());
    for _ in 0..2 {
        let slices = vec![slice(0, 1, None, "100")];
        client
            .commit_batch(commit(&worker, &pipe, batch, slices))
            .await
            .unwrap();
    }
    let totals = plane.store.pipe_by_uid(pipe.uid).await.unwrap().unwrap().totals;
    assert_eq!((totals.rows, totals.batches), (10, 1));
}

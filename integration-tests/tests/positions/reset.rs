//! ResetPosition: what is read again comes again, once.

use millrace_proto::api::v1::{self as proto, DesiredState, IteratorType, PipeState, PositionEffect};
use tonic::Code;

use super::bed::{Bed, HOUR, each};

fn to(iterator_type: IteratorType) -> proto::ResetPositionRequest {
    proto::ResetPositionRequest {
        iterator_type: iterator_type.into(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_again_comes_again_once() {
    let bed = Bed::start(2, false).await;
    bed.running("again").await;
    let worker = bed.worker("w");
    bed.put(0..500);
    bed.until_rows("again", &each(0..500, 1)).await;
    bed.advance(HOUR);
    bed.put(500..600);
    bed.until_rows("again", &each(0..600, 1)).await;

    // A preview changes nothing.
    bed.drain("again").await;
    let before = bed.get("again").await;
    let preview = proto::ResetPositionRequest {
        validate_only: true,
        ..to(IteratorType::TrimHorizon)
    };
    let preview = bed.reset("again", preview).await.expect("a preview");
    assert_eq!(preview.moves.len(), 2);
    for step in &preview.moves {
        assert!(
            step.from_position.starts_with("after ") && step.to_position == "TRIM_HORIZON",
            "{step:?}"
        );
        assert_eq!(step.effect(), PositionEffect::ReadAgain);
    }
    assert_eq!(bed.get("again").await, before);
    assert!(bed.events("again", "POSITION_RESET").await.is_empty());

    // All of it again.
    let done = bed
        .reset("again", to(IteratorType::TrimHorizon))
        .await
        .expect("a reset");
    assert_eq!((done.moves, done.abandoned_batch_ids.len()), (preview.moves, 0));
    bed.want("again", DesiredState::Running).await;
    bed.until_rows("again", &each(0..600, 2)).await;
    let events = bed.events("again", "POSITION_RESET").await;
    assert_eq!(
        (events.len(), events[0].actor.as_str(), events[0].details["to"].as_str()),
        (1, "user", "TRIM_HORIZON")
    );

    // The last hundred again, by time, without stopping: nothing is open while nothing comes.
    let by_time = proto::ResetPositionRequest {
        timestamp: Some(prost_types::Timestamp {
            seconds: bed.clock.now().as_second() - 60,
            nanos: 0,
        }),
        ..to(IteratorType::AtTimestamp)
    };
    bed.reset("again", by_time).await.expect("a reset");
    let mut wanted = each(0..500, 2);
    wanted.extend(each(500..600, 3));
    bed.until_rows("again", &wanted).await;

    // What came while it was stopped is skipped.
    bed.drain("again").await;
    bed.advance(HOUR);
    bed.put(600..700);
    bed.advance(HOUR);
    let skipped = bed.reset("again", to(IteratorType::Latest)).await.expect("a reset");
    assert!(
        skipped.moves.iter().all(|step| step.effect() == PositionEffect::Skip),
        "{skipped:?}"
    );
    bed.want("again", DesiredState::Running).await;
    bed.put(700..800);
    wanted.extend(each(700..800, 1));
    bed.until_rows("again", &wanted).await;
    worker.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_batches_are_not_passed_over_silently() {
    let bed = Bed::start(1, false).await;
    bed.running("open").await;
    let worker = bed.worker("w");
    bed.put(0..10);
    bed.until_rows("open", &each(0..10, 1)).await;
    bed.shut(true);
    bed.put(10..20);
    bed.until_state("open", PipeState::Degraded, "DESTINATION_UNREACHABLE")
        .await;
    let refused = bed
        .reset("open", to(IteratorType::Latest))
        .await
        .expect_err("a batch is open");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("abandon_open_batches"), "{refused:?}");
    assert_eq!(
        millrace_common::error::reason(&refused).as_deref(),
        Some("OPEN_BATCHES")
    );
    bed.advance(HOUR);
    let given_up = proto::ResetPositionRequest {
        abandon_open_batches: true,
        ..to(IteratorType::Latest)
    };
    let done = bed.reset("open", given_up).await.expect("a reset");
    assert_eq!(done.abandoned_batch_ids.len(), 1);
    bed.shut(false);
    bed.put(20..30);
    // The way was shut before the batch was sent, so its rows are not there.
    let wanted = each((0..10).chain(20..30), 1);
    bed.until_rows("open", &wanted).await;
    drop(worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_refused() {
    let bed = Bed::start(2, false).await;
    bed.running("sense").await;
    let refused = async |request: proto::ResetPositionRequest| bed.reset("sense", request).await.expect_err("refused");
    let fields = |status: &tonic::Status| {
        use tonic_types::StatusExt as _;
        let bad = status
            .get_details_bad_request()
            .map(|bad| bad.field_violations)
            .unwrap_or_default();
        bad.into_iter().map(|violation| violation.field).collect::<Vec<_>>()
    };
    assert_eq!(fields(&refused(Default::default()).await), ["iterator_type"]);
    let number = proto::ResetPositionRequest {
        after_sequence_number: "17".into(),
        ..Default::default()
    };
    assert_eq!(fields(&refused(number).await), ["shard_ids"]);
    let stranger = proto::ResetPositionRequest {
        shard_ids: vec!["shardId-000000000009".into()],
        ..to(IteratorType::TrimHorizon)
    };
    assert_eq!(fields(&refused(stranger).await), ["shard_ids"]);
    let later = proto::ResetPositionRequest {
        timestamp: Some(prost_types::Timestamp {
            seconds: bed.clock.now().as_second() + 60,
            nanos: 0,
        }),
        ..to(IteratorType::AtTimestamp)
    };
    assert_eq!(fields(&refused(later).await), ["timestamp"]);
    let stale = proto::ResetPositionRequest {
        etag: "x".into(),
        ..to(IteratorType::Latest)
    };
    assert_eq!(refused(stale).await.code(), Code::Aborted);
    let same = proto::ResetPositionRequest {
        adopt_stream: true,
        ..Default::default()
    };
    assert_eq!(refused(same).await.code(), Code::FailedPrecondition);
}

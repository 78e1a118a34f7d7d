//! A stream is its ARN and its creation time.

use std::time::Duration;

use millrace_proto::api::v1::{self as proto, IteratorType, PipeState};

use super::bed::{Bed, HOUR, STREAM, each};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_created_anew_halts_the_pipe_until_it_is_adopted() {
    let bed = Bed::start(2, false).await;
    bed.running("anew").await;
    let worker = bed.worker("w");
    bed.put(0..50);
    bed.until_rows("anew", &each(0..50, 1)).await;
    let checkpoints = |pipe: &proto::Pipe| -> Vec<String> {
        let shards = pipe.status.clone().expect("a status").shards;
        shards
            .into_iter()
            .map(|shard| shard.checkpoint_sequence_number)
            .collect()
    };
    let before = checkpoints(&bed.get("anew").await);

    bed.kinesis.delete_stream(STREAM).expect("deleted");
    bed.advance(Duration::from_secs(60));
    bed.kinesis.create_stream(STREAM, 3).expect("created anew");
    bed.put(50..100);
    bed.until_state("anew", PipeState::Failed, "SOURCE_STREAM_RECREATED")
        .await;
    let told = bed.until_events("anew", "STREAM_RECREATED", 1).await;
    assert!(told[0].message.contains("--adopt-stream"), "{told:?}");
    assert_eq!(checkpoints(&bed.get("anew").await), before, "checkpoints stay");
    assert_eq!(
        bed.rows("anew").await,
        each(0..50, 1),
        "nothing is skipped or read silently"
    );

    // Other resets would mean places in the old stream.
    let latest = proto::ResetPositionRequest {
        iterator_type: IteratorType::Latest.into(),
        ..Default::default()
    };
    bed.reset("anew", latest).await.expect_err("another stream");
    let adopt = proto::ResetPositionRequest {
        adopt_stream: true,
        ..Default::default()
    };
    let done = bed.reset("anew", adopt).await.expect("adopted");
    assert_eq!(done.moves.len(), 3);
    bed.until_rows("anew", &each(0..100, 1)).await;
    bed.until_state("anew", PipeState::Running, "").await;
    assert_eq!(bed.events("anew", "STREAM_RECREATED").await.len(), 1, "told once");
    assert_eq!(bed.events("anew", "POSITION_RESET").await.len(), 1);
    drop(worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipe_that_has_read_nothing_yet_does_not_read_another_stream() {
    let bed = Bed::start(1, false).await;
    bed.running("unread").await;
    bed.kinesis.delete_stream(STREAM).expect("deleted");
    bed.advance(Duration::from_secs(60));
    bed.kinesis.create_stream(STREAM, 1).expect("created anew");
    bed.put(0..10);
    let worker = bed.worker("w");
    bed.until_state("unread", PipeState::Failed, "SOURCE_STREAM_RECREATED")
        .await;
    assert!(bed.rows("unread").await.is_empty());
    drop(worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latest_is_when_the_pipe_was_created() {
    let bed = Bed::start(2, false).await;
    bed.create_table("latest").await;
    bed.put(0..10);
    bed.advance(HOUR);
    let mut pipe = bed.pipe("latest");
    let Some(proto::source::Kind::Kinesis(kinesis)) = pipe.source.as_mut().and_then(|source| source.kind.as_mut())
    else {
        panic!("no source")
    };
    kinesis.iterator_type = IteratorType::Latest.into();
    bed.create("latest", pipe).await.expect("a pipe");
    bed.put(10..20);
    // A worker that dies before anything is committed.
    bed.shut(true);
    let first = bed.worker("a");
    bed.until_state("latest", PipeState::Degraded, "DESTINATION_UNREACHABLE")
        .await;
    first.crash();
    bed.put(20..30);
    bed.shut(false);
    let second = bed.worker("b");
    bed.until_rows("latest", &each(10..30, 1)).await;
    drop(second);
}

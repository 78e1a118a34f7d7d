//! Watching a pipe.

use std::time::Duration;

use millrace_common::error;
use millrace_proto::api::v1::{self as proto, DesiredState, PipeState, WatchPipeResponse};
use tonic::{Code, Streaming};

use super::bed::{Bed, assert_refused, name, status_of};

const LIMIT: Duration = Duration::from_secs(20);

async fn next(stream: &mut Streaming<WatchPipeResponse>) -> WatchPipeResponse {
    let message = tokio::time::timeout(LIMIT, stream.message()).await.expect("in time");
    message.expect("a message").expect("not the end")
}

fn request(id: &str, seconds: i64) -> proto::WatchPipeRequest {
    proto::WatchPipeRequest {
        name: name(id),
        interval: Some(prost_types::Duration { seconds, nanos: 0 }),
    }
}

#[tokio::test]
async fn a_watcher_sees_the_pipe_at_once_its_changes_and_its_end() {
    let bed = Bed::start().await;
    bed.create_table("watched").await;
    bed.create("watched", bed.pipe("watched")).await.expect("a pipe");
    // So rarely that only changes can be what comes.
    let mut stream = bed
        .pipes
        .clone()
        .watch_pipe(request("watched", 60))
        .await
        .expect("a stream")
        .into_inner();
    let first = next(&mut stream).await;
    let pipe = first.pipe.expect("the pipe");
    assert_eq!((status_of(&pipe).shards.len(), first.deleted), (2, false));

    let stop = proto::Pipe {
        name: name("watched"),
        desired_state: DesiredState::Stopped.into(),
        ..Default::default()
    };
    bed.update(stop, &["desired_state"]).await.expect("stopped");
    let stopped = loop {
        let pipe = next(&mut stream).await.pipe.expect("the pipe");
        if pipe.desired_state() == DesiredState::Stopped {
            break pipe;
        }
    };
    assert_eq!(status_of(&stopped).state(), PipeState::Stopped);

    bed.delete("watched", "", false).await.expect("deleted");
    let last = loop {
        let message = next(&mut stream).await;
        if message.deleted {
            break message;
        }
    };
    assert_eq!(last.pipe.expect("its name").name, name("watched"));
    assert!(stream.message().await.expect("an orderly end").is_none());
}

#[tokio::test]
async fn a_watcher_hears_at_least_every_interval() {
    let bed = Bed::start().await;
    bed.create_table("quiet").await;
    bed.create("quiet", bed.pipe("quiet")).await.expect("a pipe");
    let mut request = request("quiet", 0);
    request.interval = Some(prost_types::Duration {
        seconds: 0,
        nanos: 100_000_000,
    });
    let mut stream = bed
        .pipes
        .clone()
        .watch_pipe(request)
        .await
        .expect("a stream")
        .into_inner();
    for _ in 0..5 {
        let message = next(&mut stream).await;
        assert_eq!((message.rows_per_second, message.bytes_per_second), (0.0, 0.0));
    }
}

#[tokio::test]
async fn watching_is_bounded_and_checked() {
    let bed = Bed::start().await;
    bed.create_table("crowd").await;
    bed.create("crowd", bed.pipe("crowd")).await.expect("a pipe");
    let missing = bed
        .pipes
        .clone()
        .watch_pipe(request("nowhere", 1))
        .await
        .expect_err("no such pipe");
    assert_refused(&missing, Code::NotFound, "PIPE_NOT_FOUND", "", "nowhere");
    for seconds in [-1, 0, 61, i64::MIN, i64::MAX] {
        let status = bed
            .pipes
            .clone()
            .watch_pipe(request("crowd", seconds))
            .await
            .expect_err("refused");
        assert_refused(&status, Code::InvalidArgument, "INVALID_FIELD", "interval", "100 ms");
    }
    let mut streams = Vec::new();
    let refused = loop {
        match bed.pipes.clone().watch_pipe(request("crowd", 60)).await {
            Ok(stream) => streams.push(stream.into_inner()),
            Err(status) => break status,
        }
        assert!(streams.len() < 1_000, "no bound");
    };
    assert_eq!(error::reason(&refused).as_deref(), Some("TOO_MANY_WATCHES"));
    // Others are served, and a place that becomes free is given again.
    bed.get("crowd").await.expect("the pipe");
    drop(streams);
    let freed = millrace_integration_tests::process::eventually("a free place", LIMIT, || async {
        bed.pipes
            .clone()
            .watch_pipe(request("crowd", 60))
            .await
            .map(drop)
            .map_err(|status| status.to_string())
    });
    freed.await.expect("a free place");
}

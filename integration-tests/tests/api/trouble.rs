//! Streams that come, change and go while pipes run.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use millrace_integration_tests::{
    kinesis::{self, Call, Clock, Error, ErrorKind, Interceptor, Operation},
    process::eventually,
};
use millrace_proto::api::v1::{self as proto, PipeState};

use super::bed::{Bed, kinesis_of, status_of};

const LIMIT: Duration = Duration::from_secs(20);

async fn state_is(bed: &Bed, id: &str, state: PipeState, reason: &str) -> proto::Pipe {
    eventually(&format!("{id} is {state:?} {reason}"), LIMIT, || async {
        let pipe = bed.get(id).await.map_err(|status| status.to_string())?;
        let status = status_of(&pipe);
        if (status.state(), status.reason.as_str()) == (state, reason) {
            Ok(pipe)
        } else {
            Err(format!("{:?} {} {}", status.state(), status.reason, status.message))
        }
    })
    .await
    .expect("the state")
}

#[tokio::test]
async fn a_stream_that_goes_halts_its_pipe_and_no_other() {
    let clock = Clock::system();
    let bed = Bed::start_with(kinesis::Options {
        clock: clock.clone(),
        ..Default::default()
    })
    .await;
    bed.create_table("gone").await;
    bed.kinesis.create_stream("fleeting", 1).expect("a stream");
    let mut fleeting = bed.pipe("gone");
    kinesis_of(&mut fleeting).stream_name = "fleeting".into();
    let before = bed.create("fleeting", fleeting).await.expect("a pipe");
    bed.create("steady", bed.pipe("gone")).await.expect("a pipe");

    bed.kinesis.delete_stream("fleeting").expect("deleted");
    let failed = state_is(&bed, "fleeting", PipeState::Failed, "SOURCE_STREAM_NOT_FOUND").await;
    assert!(
        status_of(&failed).message.contains("check its name"),
        "{}",
        status_of(&failed).message
    );
    assert_eq!(
        failed.etag, before.etag,
        "what is observed does not change what is stored"
    );
    assert_eq!(status_of(&failed).shards.len(), 1, "positions are held");

    clock.advance(Duration::from_secs(5));
    bed.kinesis.create_stream("fleeting", 1).expect("created again");
    let failed = state_is(&bed, "fleeting", PipeState::Failed, "SOURCE_STREAM_RECREATED").await;
    assert!(
        status_of(&failed).message.contains("create a new pipe"),
        "{}",
        status_of(&failed).message
    );
    let steady = bed.get("steady").await.expect("the other pipe");
    assert_eq!(
        (status_of(&steady).state(), status_of(&steady).reason.as_str()),
        (PipeState::Provisioning, "NO_WORKERS")
    );
}

/// Refuses ListShards while it is told to.
struct Moody(Arc<AtomicBool>);

impl Interceptor for Moody {
    fn before<'a>(&'a self, call: &'a Call) -> futures::future::BoxFuture<'a, Result<(), Error>> {
        let refuse = self.0.load(Ordering::SeqCst) && call.operation == Operation::ListShards;
        Box::pin(async move {
            if refuse {
                Err(Error::new(ErrorKind::AccessDenied, "not allowed"))
            } else {
                Ok(())
            }
        })
    }
}

#[tokio::test]
async fn trouble_that_passes_is_forgotten() {
    let moody = Arc::new(AtomicBool::new(false));
    let bed = Bed::start_intercepted(Moody(moody.clone())).await;
    bed.create_table("moody").await;
    bed.create("moody", bed.pipe("moody")).await.expect("a pipe");
    moody.store(true, Ordering::SeqCst);
    let failed = state_is(&bed, "moody", PipeState::Failed, "SOURCE_ACCESS_DENIED").await;
    assert!(
        status_of(&failed).message.contains("kinesis:ListShards"),
        "{}",
        status_of(&failed).message
    );
    moody.store(false, Ordering::SeqCst);
    state_is(&bed, "moody", PipeState::Provisioning, "NO_WORKERS").await;
}

#[tokio::test]
async fn new_shards_are_found() {
    let bed = Bed::start().await;
    bed.create_table("split").await;
    bed.create("split", bed.pipe("split")).await.expect("a pipe");
    bed.kinesis
        .split_shard("events", "shardId-000000000000")
        .expect("split");
    let pipe = eventually("four shards", LIMIT, || async {
        let pipe = bed.get("split").await.map_err(|status| status.to_string())?;
        if status_of(&pipe).shards.len() == 4 {
            Ok(pipe)
        } else {
            Err(format!("{:?}", status_of(&pipe).shards))
        }
    })
    .await
    .expect("the children");
    let child = &status_of(&pipe).shards[2];
    assert_eq!(child.parent_shard_ids, ["shardId-000000000000"]);
    assert_eq!(child.state(), proto::ShardState::WaitingForParents);
}

#[tokio::test]
async fn latest_leaves_out_what_was_closed_before() {
    let bed = Bed::start().await;
    bed.create_table("latest").await;
    bed.kinesis
        .split_shard("events", "shardId-000000000000")
        .expect("split");
    let mut pipe = bed.pipe("latest");
    kinesis_of(&mut pipe).iterator_type = proto::IteratorType::Latest.into();
    bed.create("latest", pipe).await.expect("a pipe");
    let ids = |pipe: &proto::Pipe| -> Vec<String> {
        status_of(pipe)
            .shards
            .iter()
            .map(|shard| shard.shard_id.clone())
            .collect()
    };
    let open = ["shardId-000000000001", "shardId-000000000002", "shardId-000000000003"];
    assert_eq!(ids(&bed.get("latest").await.expect("the pipe")), open);
    // Several looks at the stream later it is still so, and the next split is noticed.
    bed.kinesis
        .split_shard("events", "shardId-000000000003")
        .expect("split");
    let pipe = eventually("the next split", LIMIT, || async {
        let pipe = bed.get("latest").await.map_err(|status| status.to_string())?;
        if ids(&pipe).len() == 5 {
            Ok(pipe)
        } else {
            Err(format!("{:?}", ids(&pipe)))
        }
    })
    .await
    .expect("the children");
    assert_eq!(ids(&pipe)[..3], open);
}

//! A pipe with an end, beside one without.

use std::time::Duration;

use millrace_proto::api::v1::{self as proto, IteratorType, PipeState};
use tonic::Code;

use super::bed::{Bed, STREAM, each};

const MINUTE: Duration = Duration::from_secs(60);

impl Bed {
    fn between(&self, table: &str, from: jiff::Timestamp, end: jiff::Timestamp) -> proto::Pipe {
        let time = |time: jiff::Timestamp| prost_types::Timestamp {
            seconds: time.as_second(),
            nanos: time.subsec_nanosecond(),
        };
        let mut pipe = self.pipe(table);
        let Some(proto::source::Kind::Kinesis(kinesis)) = pipe.source.as_mut().and_then(|source| source.kind.as_mut())
        else {
            panic!("no source")
        };
        kinesis.iterator_type = IteratorType::AtTimestamp.into();
        kinesis.timestamp = Some(time(from));
        kinesis.end_timestamp = Some(time(end));
        pipe
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backfill_reads_its_window_and_completes() {
    let bed = Bed::start(2, false).await;
    bed.running("live").await;
    let worker = bed.worker("w");
    bed.put(0..40);
    bed.advance(MINUTE);
    let from = bed.clock.now();
    bed.put(40..80);
    bed.kinesis.split_shard(STREAM, "shardId-000000000000").expect("split");
    bed.advance(MINUTE);
    bed.put(80..120);
    bed.advance(MINUTE);
    let end = bed.clock.now();
    bed.put(120..160);
    // Where nothing came since, the end is known to have passed by the clock.
    bed.advance(MINUTE * 10);
    bed.create_table("window").await;
    let created = bed
        .create("window", bed.between("window", from, end))
        .await
        .expect("a backfill");
    bed.put(160..200);
    bed.until_state("window", PipeState::Completed, "").await;
    assert_eq!(bed.rows("window").await, each(40..120, 1));
    bed.until_rows("live", &each(0..200, 1)).await;
    assert_eq!(bed.rows("window").await, each(40..120, 1), "nothing comes later");

    // Into the table that the live pipe fills: its window is there twice then.
    bed.create("same", bed.between("live", from, end))
        .await
        .expect("a backfill");
    bed.until_state("same", PipeState::Completed, "").await;
    let mut wanted = each(0..200, 1);
    wanted.extend(each(40..120, 2));
    bed.until_rows("live", &wanted).await;

    // Where it ends is said once.
    let mut changed = created.clone();
    let Some(proto::source::Kind::Kinesis(kinesis)) = changed.source.as_mut().and_then(|source| source.kind.as_mut())
    else {
        panic!("no source")
    };
    kinesis.end_timestamp = None;
    let request = proto::UpdatePipeRequest {
        pipe: Some(changed),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["source.kinesis.end_timestamp".into()],
        }),
        validate_only: false,
        ..Default::default()
    };
    let refused = bed.pipes.clone().update_pipe(request).await.expect_err("immutable");
    assert_eq!(refused.code(), Code::InvalidArgument);
    let backwards = bed
        .create("backwards", bed.between("window", end, from))
        .await
        .expect_err("backwards");
    assert!(
        backwards.message().contains("end_timestamp") || backwards.code() == Code::InvalidArgument,
        "{backwards:?}"
    );
    drop(worker);
}

//! The coordinator, the sessions and the store together, as a worker sees them over a socket.

use std::{collections::BTreeMap, time::Duration};

use millrace_common::{
    error,
    ids::{BatchId, PipeUid},
    pipe::{Delivery, DesiredState, OutOfRangePolicy, PipeSpec, Settings},
    reason,
};
use millrace_proto::worker::v1::{self, session_request::Message};
use tokio::time::Instant;
use tonic::Code;

use super::{Options, PipeRuntime};
use crate::{
    events::kind,
    store::{PipeChange, ShardPhase, StoredFault, StoredPipe},
};

mod batches;
mod harness;
mod leases;
mod moves;
mod pipes;
mod wire;

use harness::{Held, PATIENCE, Plane, Worker, eventually, identity, options, resolved, shard_id, spec};

fn slice(shard: usize, epoch: u64, from: Option<&str>, to: &str) -> v1::Slice {
    use v1::position::Place;
    let place = from.map_or(Place::TrimHorizon(v1::TrimHorizon {}), |text| {
        Place::AfterSequenceNumber(text.into())
    });
    v1::Slice {
        shard_id: shard_id(shard).to_string(),
        epoch,
        from_exclusive: Some(v1::Position { place: Some(place) }),
        to_inclusive: to.into(),
    }
}

fn prepare(worker: &Worker, pipe: &StoredPipe, batch: BatchId, slices: Vec<v1::Slice>) -> v1::PrepareBatchRequest {
    v1::PrepareBatchRequest {
        worker: Some(worker.identity.clone()),
        pipe_uid: pipe.uid.to_string(),
        batch: Some(v1::OpenBatch {
            batch_id: batch.to_string(),
            revision: 1,
            slices,
            rows: 10,
            rejected_records: 1,
            digest: vec![9; 16],
            ..Default::default()
        }),
        records: 11,
        bytes: 1100,
    }
}

fn commit(worker: &Worker, pipe: &StoredPipe, batch: BatchId, slices: Vec<v1::Slice>) -> v1::CommitBatchRequest {
    v1::CommitBatchRequest {
        worker: Some(worker.identity.clone()),
        pipe_uid: pipe.uid.to_string(),
        batch_id: batch.to_string(),
        slices,
        rows: 10,
        rejected_records: 1,
        records: 11,
        bytes: 1100,
        revision: 0,
    }
}

fn lane(worker: &Worker, pipe: &StoredPipe) -> v1::Lane {
    let set = worker.set.borrow().clone().expect("a set has come");
    set.lanes
        .into_iter()
        .find(|lane| lane.pipe_uid == pipe.uid.to_string())
        .expect("the pipe is in it")
}

async fn set_desired(plane: &Plane, pipe: PipeUid, desired: DesiredState) {
    plane
        .store
        .update_pipe(
            pipe,
            None,
            PipeChange {
                desired: Some(desired),
                ..Default::default()
            },
        )
        .await
        .unwrap();
    plane.handle.nudge();
}

/// How a session ends that starts with this message.
async fn refused(
    client: &mut v1::worker_service_client::WorkerServiceClient<tonic::transport::Channel>,
    first: Message,
) -> tonic::Status {
    let (out, requests) = tokio::sync::mpsc::channel(8);
    out.send(v1::SessionRequest { message: Some(first) }).await.unwrap();
    let session = async {
        let mut inbound = client
            .session(tokio_stream::wrappers::ReceiverStream::new(requests))
            .await?
            .into_inner();
        while inbound.message().await?.is_some() {}
        Ok::<_, tonic::Status>(())
    };
    tokio::time::timeout(PATIENCE, session)
        .await
        .expect("it is refused")
        .expect_err("it is refused")
}

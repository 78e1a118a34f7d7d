//! The service that workers dial.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use millrace_common::{
    error::ApiError,
    fail_point,
    grpc::MAX_SESSION_MESSAGE_BYTES,
    ids::{PipeUid, Revision},
    pipe::Delivery,
};
use millrace_proto::worker::v1::{
    self,
    worker_service_server::{WorkerService, WorkerServiceServer},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::Instrument as _;

use super::{
    Gate, Registry, convert,
    session::{self, Context, Timing},
};
use crate::{
    protocol::Refusal,
    store::{self, Store},
};

/// Messages that wait in a session's stream. Sets are whole, so more would only be older ones.
const OUTBOUND: usize = 2;

/// `millrace.worker.v1.WorkerService`.
#[derive(Clone)]
pub struct Service {
    store: Store,
    context: Context,
    /// Called with a pipe that was halted.
    halted: Arc<dyn Fn(PipeUid) + Send + Sync>,
}

impl Service {
    /// A service that notes what workers say in `registry`, and takes sessions as long as `gate` is open. Batches are moved in
    /// `store` whatever the gate says: they are fenced by the epochs of their shards.
    pub fn new(
        store: Store,
        registry: Arc<Registry>,
        lease_ttl: Duration,
        heartbeat_interval: Duration,
        gate: Gate,
        halted: impl Fn(PipeUid) + Send + Sync + 'static,
    ) -> Self {
        Self {
            store,
            halted: Arc::new(halted),
            context: Context {
                registry,
                timing: Timing {
                    lease_ttl,
                    heartbeat_interval,
                },
                gate,
            },
        }
    }

    /// The same for a gRPC server, with its limits.
    pub fn into_server(self) -> WorkerServiceServer<Self> {
        WorkerServiceServer::new(self)
            .max_decoding_message_size(MAX_SESSION_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_SESSION_MESSAGE_BYTES)
    }

    async fn commit(&self, commit: &convert::Commit) -> Result<(), ApiError> {
        let done = self
            .store
            .commit(commit.pipe, &commit.worker, commit.batch, &commit.epochs)
            .await;
        match done {
            // Nobody prepared it: that is as it should be where records are delivered at least once, and nowhere else.
            Err(store::Error::Refused {
                reason: Refusal::UnknownBatch { .. },
            }) if self.is_at_least_once(commit.pipe, commit.revision).await? => {
                let convert::Commit {
                    worker,
                    pipe,
                    batch,
                    slices,
                    epochs,
                    counts,
                    ..
                } = commit;
                self.store
                    .commit_unprepared(*pipe, worker, *batch, slices, epochs, *counts)
                    .await
                    .map_err(refusal)
            }
            done => done.map_err(refusal),
        }
    }

    /// Halts a pipe that rejects too much. The batch is committed whatever comes of it; the next one tries again.
    async fn limit_rejected(&self, pipe: PipeUid) {
        match self.store.halt_if_too_many_rejected(pipe).await {
            Ok(false) => {}
            Ok(true) => {
                tracing::warn!(%pipe, "the pipe has rejected too many records: it halts");
                (self.halted)(pipe);
            }
            Err(error) => {
                tracing::warn!(%pipe, error = &error as &dyn std::error::Error, "what the pipe rejects cannot be limited now");
            }
        }
    }

    /// Whether batches of a revision need not be prepared. The pipe may be at another one by the time they are committed.
    async fn is_at_least_once(&self, uid: PipeUid, revision: Option<Revision>) -> Result<bool, ApiError> {
        let spec = match revision {
            Some(revision) => self
                .store
                .revision(uid, revision)
                .await
                .map(|found| found.map(|(spec, _)| spec)),
            None => self
                .store
                .pipe_by_uid(uid)
                .await
                .map(|found| found.map(|pipe| pipe.spec)),
        };
        let spec = spec.map_err(refusal)?;
        Ok(spec.is_some_and(|spec| spec.settings.delivery == Delivery::AtLeastOnce))
    }
}

#[tonic::async_trait]
impl WorkerService for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::SessionResponse, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let span = tracing::info_span!("session", peer = request.remote_addr().map(tracing::field::display));
        let over = self.context.gate.enter()?;
        let (out, outbound) = mpsc::channel(OUTBOUND);
        tokio::spawn(session::run(self.context.clone(), over, request.into_inner(), out).instrument(span));
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound))))
    }

    async fn prepare_batch(
        &self,
        request: Request<v1::PrepareBatchRequest>,
    ) -> Result<Response<v1::PrepareBatchResponse>, Status> {
        let convert::Prepare {
            worker,
            pipe,
            batch,
            epochs,
        } = convert::prepare(request.into_inner())?;
        fail_point!("control.prepare.before", Status::unavailable("fail point"));
        self.store
            .prepare(pipe, &worker, &batch, &epochs)
            .await
            .map_err(refusal)?;
        fail_point!("control.prepare.answer", Status::unavailable("fail point"));
        Ok(Response::new(v1::PrepareBatchResponse {}))
    }

    async fn commit_batch(
        &self,
        request: Request<v1::CommitBatchRequest>,
    ) -> Result<Response<v1::CommitBatchResponse>, Status> {
        fail_point!("control.commit.before", Status::unavailable("fail point"));
        let commit = convert::commit(request.into_inner())?;
        self.commit(&commit).await?;
        if commit.counts.rejected_records > 0 {
            self.limit_rejected(commit.pipe).await;
        }
        fail_point!("control.commit.answer", Status::unavailable("fail point"));
        Ok(Response::new(v1::CommitBatchResponse {}))
    }

    async fn replace_batch(
        &self,
        request: Request<v1::ReplaceBatchRequest>,
    ) -> Result<Response<v1::ReplaceBatchResponse>, Status> {
        let convert::Replace {
            worker,
            pipe,
            batch,
            parts,
            epochs,
        } = convert::replace(request.into_inner())?;
        self.store
            .replace(pipe, &worker, batch, &parts, &epochs)
            .await
            .map_err(refusal)?;
        Ok(Response::new(v1::ReplaceBatchResponse {}))
    }
}

/// What a worker is told when the store did not do it: a refusal stands, everything else is worth another try.
fn refusal(error: store::Error) -> ApiError {
    let stands = |reason: &'static str, message: String| ApiError::new(Code::FailedPrecondition, reason, message);
    match error {
        store::Error::Refused { reason } => {
            tracing::debug!(reason = reason.code(), "refused: {reason}");
            stands(reason.code(), reason.to_string())
        }
        store::Error::PipeNotFound { uid } => {
            stands("PIPE_NOT_FOUND", format!("there is no pipe {uid}")).with_metadata("pipe_uid", uid.to_string())
        }
        error => {
            if !error.is_transient() {
                tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
            }
            ApiError::unavailable(
                "STORE_UNAVAILABLE",
                "the control plane's database does not answer: try again",
            )
        }
    }
}

//! The durable calls of a worker: PrepareBatch, ReplaceBatch and CommitBatch.

use std::{fmt, time::Duration};

use futures::future::BoxFuture;
use millrace_common::{
    batch::OpenBatch,
    error,
    grpc::{self, Link},
    ids::WorkerInstance,
};
use millrace_proto::worker::v1::{self as wire, worker_service_client::WorkerServiceClient};
use tonic::{Code, Request, Status};

use super::Claim;
use crate::session::{convert, planes::ControlPlanes};

/// How long one call may take: a database transaction and a round trip.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// Why a call did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The control plane says no: the lease or the frontier is not what the caller believes. Trying again is no use.
    #[error("the control plane refuses the batch: {message}")]
    Refused {
        /// Its words.
        message: String,
    },
    /// Nothing is known: the call may have had its effect, and repeating it is harmless.
    #[error("the control plane does not answer: {message}")]
    Unavailable {
        /// What happened.
        message: String,
    },
    /// The control plane does not understand the call.
    #[error("the control plane does not understand the batch: {message}")]
    Invalid {
        /// Its words.
        message: String,
    },
}

/// What a lane needs of the control plane.
pub trait ControlPlane: fmt::Debug + Send + Sync {
    /// Records a batch before it is sent.
    fn prepare<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<(), Error>>;
    /// Puts others in the place of a batch that ClickHouse has refused.
    fn replace<'a>(&'a self, claim: &'a Claim, parts: &'a [OpenBatch]) -> BoxFuture<'a, Result<(), Error>>;
    /// Moves the checkpoints over a batch that ClickHouse has.
    fn commit<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<(), Error>>;
}

/// The control plane over gRPC: whichever of them the session has chosen, since all answer these calls.
#[derive(Debug)]
pub struct GrpcControlPlane {
    worker: WorkerInstance,
    planes: ControlPlanes,
}

impl GrpcControlPlane {
    /// Speaks for `worker`.
    pub fn new(worker: WorkerInstance, planes: ControlPlanes) -> Self {
        Self { worker, planes }
    }

    /// One call. It is given up when its control plane is found to be away, by whomever; repeating it is harmless.
    async fn call<T>(
        &self,
        call: impl AsyncFnOnce(WorkerServiceClient<Link>) -> Result<T, Status>,
    ) -> Result<(), Error> {
        let unavailable = |message: String| Error::Unavailable { message };
        let (url, channel) = self.planes.current().map_err(|error| unavailable(error.to_string()))?;
        let client = WorkerServiceClient::new(channel)
            .max_decoding_message_size(grpc::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(grpc::MAX_MESSAGE_BYTES);
        let answer = tokio::select! {
            biased;
            answer = call(client) => answer,
            () = self.planes.given_up(&url) => return Err(unavailable(format!("{url} was given up"))),
        };
        let Err(status) = answer else { return Ok(()) };
        // What a control plane says has a reason; without one nobody answered. One that is only slow, as its database may be,
        // is known by its session, which beats meanwhile or does not.
        let slow = matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded);
        if error::reason(&status).is_none() && !slow {
            self.planes.unreachable(&url);
        }
        Err(classify(&status))
    }
}

impl ControlPlane for GrpcControlPlane {
    fn prepare<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<(), Error>> {
        let request = request(wire::PrepareBatchRequest {
            worker: Some(convert::to_identity(&self.worker)),
            pipe_uid: claim.pipe.to_string(),
            batch: Some(convert::to_open_batch(&claim.batch, &claim.epochs)),
            records: claim.batch.counts.records,
            bytes: claim.batch.counts.bytes,
        });
        Box::pin(self.call(async move |mut client| client.prepare_batch(request).await))
    }

    fn replace<'a>(&'a self, claim: &'a Claim, parts: &'a [OpenBatch]) -> BoxFuture<'a, Result<(), Error>> {
        let request = request(wire::ReplaceBatchRequest {
            worker: Some(convert::to_identity(&self.worker)),
            pipe_uid: claim.pipe.to_string(),
            batch_id: claim.batch.id.to_string(),
            parts: parts
                .iter()
                .map(|part| convert::to_open_batch(part, &claim.epochs))
                .collect(),
        });
        Box::pin(self.call(async move |mut client| client.replace_batch(request).await))
    }

    fn commit<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<(), Error>> {
        let counts = claim.batch.counts;
        let request = request(wire::CommitBatchRequest {
            worker: Some(convert::to_identity(&self.worker)),
            pipe_uid: claim.pipe.to_string(),
            batch_id: claim.batch.id.to_string(),
            slices: convert::to_slices(&claim.batch, &claim.epochs),
            rows: counts.rows,
            rejected_records: counts.rejected_records,
            records: counts.records,
            bytes: counts.bytes,
            revision: claim.batch.revision.0,
        });
        Box::pin(self.call(async move |mut client| client.commit_batch(request).await))
    }
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_DEADLINE);
    request
}

fn classify(status: &Status) -> Error {
    let message = match error::reason(status) {
        Some(reason) => format!("{} ({reason})", status.message()),
        None => format!("{} ({})", status.message(), status.code()),
    };
    match status.code() {
        // NOT_FOUND: the pipe is deleted, or the worker unknown; either way the lease is gone.
        Code::FailedPrecondition | Code::NotFound | Code::PermissionDenied => Error::Refused { message },
        Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => Error::Invalid { message },
        _ => Error::Unavailable { message },
    }
}

#[cfg(test)]
mod tests {
    use millrace_common::error::ApiError;

    use super::*;

    #[test]
    fn only_a_clear_no_is_a_refusal() {
        let of = |code| classify(&ApiError::new(code, "SOME_REASON", "words").into());
        for code in [Code::FailedPrecondition, Code::NotFound] {
            assert_eq!(
                of(code),
                Error::Refused {
                    message: "words (SOME_REASON)".to_owned()
                }
            );
        }
        assert!(matches!(of(Code::InvalidArgument), Error::Invalid { .. }));
        for code in [
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::Cancelled,
            Code::Internal,
            Code::Unknown,
        ] {
            assert!(matches!(of(code), Error::Unavailable { .. }), "{code:?}");
        }
    }
}

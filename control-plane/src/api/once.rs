//! Requests that carry an id are carried out once, however often they are sent (AIP-155).
//!
//! ```text
//!   known? --no--> carry out, the id is noted in the same transaction --> keep the answer
//!      `--yes--> the answer that was kept, else what there is now
//! ```
//!
//! A control plane may end between the two: then what was done is there and its answer is not, and who asks again is shown what there
//! is. Requests that fail are not noted, and neither are those that only validate.

use std::sync::Arc;

use aws_lc_rs::digest;
use millrace_common::error::ApiError;
use prost::Message;
use tonic::Code;
use uuid::Uuid;

use super::{
    Api,
    errors::{REQUEST_ID_REUSED, REQUEST_REPEATED, of_store},
};
use crate::{
    auth,
    store::{Known, RequestMark},
};

/// The id of a request that is to be carried out; none of one that only validates.
pub(super) fn carried(id: &str, validate_only: bool) -> &str {
    if validate_only { "" } else { id }
}

impl Api {
    /// Answers `request` of `method` with what `run` returns, or with what was answered to it before. `again` says what there is where
    /// that is not known any more.
    pub(super) async fn once<Q, A, R, S>(
        &self,
        method: &'static str,
        id: &str,
        request: &Q,
        run: impl FnOnce(Api) -> R,
        again: impl FnOnce(Api) -> S,
    ) -> Result<A, ApiError>
    where
        Q: Message,
        A: Message + Default,
        R: Future<Output = Result<A, ApiError>>,
        S: Future<Output = Result<A, ApiError>>,
    {
        if id.is_empty() {
            return Box::pin(run(self.clone())).await;
        }
        let id = Uuid::try_parse(id).ok().filter(|id| !id.is_nil()).ok_or_else(|| {
            let what = "must be a UUID such as 3f2b1c9e-8d4a-4f6b-9c1d-2e3f4a5b6c7d, or empty";
            ApiError::invalid_field("request_id", what)
        })?;
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, &request.encode_to_vec()).as_ref());
        let mark = Arc::new(RequestMark::new(auth::actor(), method, id.to_string(), bytes));
        if let Some(known) = self.known(&mark).await? {
            return answered(known, || again(self.clone())).await;
        }
        let carrying = Api {
            store: self.store.carrying_out(mark.clone()),
            ..self.clone()
        };
        let error = match Box::pin(run(carrying)).await {
            Ok(answer) => {
                if let Err(error) = self.store.keep_answer(&mark, &answer.encode_to_vec()).await {
                    tracing::warn!(
                        method,
                        error = &error as &dyn std::error::Error,
                        "an answer was not kept"
                    );
                }
                return Ok(answer);
            }
            Err(error) => error,
        };
        // What was refused may have been refused because the same request came first.
        match self.known(&mark).await? {
            Some(known) => answered(known, || again(self.clone())).await,
            None => Err(error),
        }
    }

    async fn known(&self, mark: &RequestMark) -> Result<Option<Known>, ApiError> {
        let known = self.store.known_request(mark).await;
        known.map_err(|error| of_store(&error))
    }
}

async fn answered<A, S>(known: Known, again: impl FnOnce() -> S) -> Result<A, ApiError>
where
    A: Message + Default,
    S: Future<Output = Result<A, ApiError>>,
{
    match known {
        Known::Other => {
            let what = "was sent before with another request: each request needs an id of its own";
            Err(ApiError::invalid_field("request_id", what).with_reason(REQUEST_ID_REUSED))
        }
        Known::Done { answer: Some(answer) } => {
            A::decode(answer.as_slice()).map_err(|error| ApiError::internal(&error))
        }
        Known::Done { answer: None } => Box::pin(again()).await,
    }
}

/// It was carried out, and nobody can say any more what was answered.
pub(super) fn repeated(what: &str) -> ApiError {
    let message = format!("a request with this id was carried out before, and its answer was not kept: {what}");
    ApiError::new(Code::Aborted, REQUEST_REPEATED, message).with_field("request_id")
}

//! The consumer of a pipe that reads by enhanced fan-out, as the pipe is created, changed and deleted. It is registered
//! again by `discovery` where that failed here, and looked for there if it could not be deregistered.

use millrace_common::aws::policy::Usage;
use millrace_common::pipe::{FanOut, KinesisSource};

use super::Api;
use crate::{
    discovery::{self, consumer::Failure},
    store::{CredentialSecret, StoredPipe},
};

/// What is to become of a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    There,
    Gone,
}

fn is_managed(source: &KinesisSource) -> bool {
    source.fan_out == Some(FanOut::Managed)
}

impl Api {
    /// After a pipe was created, or changed from `before`. Returns at once: neither needs Kinesis to be there.
    pub(super) fn follow_consumer(&self, pipe: &StoredPipe, before: Option<&KinesisSource>) {
        match (before.is_some_and(is_managed), is_managed(&pipe.spec.source)) {
            (_, true) => self.wish(Wish::There, pipe),
            (true, false) => self.wish(Wish::Gone, pipe),
            (false, false) => {}
        }
    }

    /// After a pipe was deleted.
    pub(super) fn give_up_consumer(&self, pipe: &StoredPipe) {
        if is_managed(&pipe.spec.source) {
            self.wish(Wish::Gone, pipe);
        }
    }

    fn wish(&self, wish: Wish, pipe: &StoredPipe) {
        let (store, source) = (self.store.clone(), pipe.spec.source.clone());
        let (pipe_id, callers) = (pipe.name.id.clone(), self.aws.clone());
        let (uid, stream_arn) = (pipe.uid, pipe.resolved.stream.arn.clone());
        tokio::spawn(async move {
            let credential = match store.credential_secret(&source.credential).await {
                Ok(Some(CredentialSecret::Aws(credential))) => credential,
                Ok(_) => {
                    tracing::warn!(%stream_arn, pipe = %uid, ?wish, "the credential of its consumer is gone");
                    return;
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(%stream_arn, pipe = %uid, ?wish, error, "the credential of its consumer cannot be read");
                    return;
                }
            };
            let mut access = discovery::access(&source, credential, &pipe_id, &callers);
            // Fan-out may have been switched off by now, and that is why it is to go.
            if let Some(scope) = &mut access.scope {
                scope.usage = Usage::ManagedFanOut;
            }
            let done = match wish {
                Wish::There => discovery::consumer::ensure(&store, &access, &stream_arn, uid).await,
                Wish::Gone => discovery::consumer::remove(&access, &stream_arn, uid)
                    .await
                    .map(drop)
                    .map_err(Failure::Source),
            };
            match done {
                Ok(()) => {}
                Err(Failure::Source(error)) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(%stream_arn, pipe = %uid, ?wish, error, "the consumer is not as it should be");
                }
                Err(Failure::Store(error)) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(%stream_arn, pipe = %uid, ?wish, error, "the consumer cannot be noted: tried again");
                }
            }
        });
    }
}

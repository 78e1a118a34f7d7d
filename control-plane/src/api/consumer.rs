//! The consumer of a pipe that reads by enhanced fan-out, as the pipe is created, changed and deleted. It is registered
//! again by `discovery` where that failed here; what cannot be deregistered is named in the log.

use millrace_common::aws::policy::Usage;
use millrace_common::pipe::{FanOut, KinesisSource, managed_consumer};

use super::Api;
use crate::{
    discovery,
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
        let (pipe_id, settings) = (pipe.name.id.clone(), self.aws.clone());
        let (name, stream_arn) = (managed_consumer(pipe.uid), pipe.resolved.stream.arn.clone());
        tokio::spawn(async move {
            let credential = match store.credential_secret(&source.credential).await {
                Ok(Some(CredentialSecret::Aws(credential))) => credential,
                Ok(_) => {
                    tracing::warn!(%stream_arn, consumer = name, ?wish, "its credential is gone");
                    return;
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(%stream_arn, consumer = name, ?wish, error, "its credential cannot be read");
                    return;
                }
            };
            let mut access = discovery::access(&source, credential, &pipe_id, &settings);
            // Fan-out may have been switched off by now, and that is why it is to go.
            if let Some(scope) = &mut access.scope {
                scope.usage = Usage::ManagedFanOut;
            }
            let done = match wish {
                Wish::There => discovery::consumer::ensure(&access, &stream_arn, &name).await,
                Wish::Gone => discovery::consumer::remove(&access, &stream_arn, &name).await,
            };
            if let Err(error) = done {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(%stream_arn, consumer = name, ?wish, error, "the consumer is not as it should be");
            }
        });
    }
}

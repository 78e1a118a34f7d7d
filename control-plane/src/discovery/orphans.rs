//! Consumers that Millrace has registered and that nobody wants any more: their pipe was deleted, or reads without them, and whoever did
//! that died before they were deregistered, or was refused. The leader looks for them again and again.
//!
//! Only what the store has noted is touched: a name that begins like ours may be another installation's.
//!
//! Invariant: a consumer is forgotten only [`GRACE`] after it was deregistered first, and after it was deregistered once more: whoever was
//! about to register it when its pipe went has long ended.

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt as _;
use jiff::Timestamp;
use millrace_common::{
    aws::{self, Access, policy::Scope, policy::Usage},
    ids::PipeUid,
    pipe::managed_consumer,
};
use parking_lot::Mutex;

use super::{Callers, consumer, service::ATTEMPTS};
use crate::{
    events::{NewEvent, Severity, kind},
    store::{self, CredentialSecret, ManagedConsumer, Store},
};

/// Longer than any call about a consumer lives, with all its retries and a process that stands still for a while.
const GRACE: Duration = Duration::from_secs(600);

/// Looks for them; remembers what was told of those that stay.
#[derive(Default)]
pub(super) struct Sweeper {
    told: Mutex<BTreeMap<(PipeUid, String), String>>,
}

/// What to do about one that nobody wants.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Deregister it, and note that.
    Deregister,
    /// Nothing yet.
    Wait,
    /// Deregister it once more, and forget it.
    Forget,
}

fn step(gone: Option<Timestamp>, now: Timestamp) -> Step {
    match gone {
        None => Step::Deregister,
        // A clock that was set back makes it wait longer.
        Some(gone) if now.duration_since(gone).unsigned_abs() < GRACE || now < gone => Step::Wait,
        Some(_) => Step::Forget,
    }
}

impl Sweeper {
    /// Looks once.
    pub(super) async fn sweep(&self, store: &Store, callers: &Callers, now: Timestamp, concurrency: usize) {
        let unwanted = match Box::pin(store.unwanted_consumers()).await {
            Ok(unwanted) => unwanted,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot read which consumers there are: looking again later");
                return;
            }
        };
        let still = |key: &(PipeUid, String)| unwanted.iter().any(|c| c.pipe == key.0 && c.stream_arn == key.1);
        self.told.lock().retain(|key, _| still(key));
        let due = unwanted.iter().map(|consumer| (consumer, step(consumer.gone, now)));
        futures::stream::iter(due.filter(|(_, step)| *step != Step::Wait))
            .for_each_concurrent(concurrency, |(consumer, step)| async move {
                match Box::pin(self.remove(store, callers, consumer, &step)).await {
                    Ok(()) => drop(self.told.lock().remove(&(consumer.pipe, consumer.stream_arn.clone()))),
                    Err(why) => self.tell(consumer, &why),
                }
            })
            .await;
    }

    async fn remove(
        &self,
        store: &Store,
        callers: &Callers,
        consumer: &ManagedConsumer,
        step: &Step,
    ) -> Result<(), String> {
        let why = |error: store::Error| error.to_string();
        let secret = store.credential_secret(&consumer.credential).await.map_err(why)?;
        let Some(CredentialSecret::Aws(credential)) = secret else {
            return Err(format!("its credential {} is gone", consumer.credential));
        };
        let access = access(consumer, credential, callers);
        let removed = Box::pin(consumer::remove(&access, &consumer.stream_arn, consumer.pipe));
        let was_there = removed.await.map_err(|error| error.message)?;
        if was_there {
            let name = managed_consumer(consumer.pipe);
            let (pipe, arn) = (&consumer.pipe_name, &consumer.stream_arn);
            tracing::warn!(%pipe, stream = arn, consumer = name, "a consumer that nobody wanted was deregistered");
            let message = format!(
                "the consumer {name} of {arn} was still registered, though nothing reads with it: it was deregistered"
            );
            let event = NewEvent::new(kind::CONSUMER_DEREGISTERED, Severity::Warning, message)
                .with("consumer", &name)
                .with("stream", arn);
            // Only where the pipe is still there.
            Box::pin(store.append_event(consumer.pipe, &event)).await.map_err(why)?;
        }
        match step {
            Step::Forget if !was_there => Box::pin(store.forget_consumer(consumer)).await.map_err(why),
            Step::Forget | Step::Deregister | Step::Wait => {
                Box::pin(store.note_consumer_gone(consumer)).await.map_err(why)
            }
        }
    }

    /// Once for each thing that stands in the way.
    fn tell(&self, consumer: &ManagedConsumer, why: &str) {
        let known = self
            .told
            .lock()
            .insert((consumer.pipe, consumer.stream_arn.clone()), why.to_owned());
        if known.as_deref() == Some(why) {
            return;
        }
        let name = managed_consumer(consumer.pipe);
        tracing::warn!(
            pipe = %consumer.pipe_name, stream = consumer.stream_arn, consumer = name, why,
            "a consumer that nobody wants cannot be deregistered: tried again, or deregister it by hand"
        );
    }
}

fn access(consumer: &ManagedConsumer, credential: aws::Credential, callers: &Callers) -> Access {
    let scope = Scope {
        stream_arn: consumer.stream_arn.clone(),
        usage: Usage::ManagedFanOut,
    };
    let name = aws::session_name(consumer.pipe_name.id.as_str());
    Access {
        scope: Some(scope),
        settings: callers.settings.clone(),
        identities: Some(callers.identities.clone()),
        ..Access::new(
            consumer.region.clone(),
            consumer.endpoint.clone(),
            credential.named(&name),
            ATTEMPTS,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_forgotten_long_after_it_was_deregistered_first() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let grace = i64::try_from(GRACE.as_secs()).unwrap();
        assert_eq!(step(None, at(0)), Step::Deregister);
        assert_eq!(step(Some(at(0)), at(grace - 1)), Step::Wait);
        assert_eq!(step(Some(at(0)), at(grace)), Step::Forget);
        assert_eq!(step(Some(at(10 * grace)), at(0)), Step::Wait, "the clock was set back");
    }
}

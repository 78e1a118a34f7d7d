//! Looks at the streams of running pipes again and again: new shards are stored, trouble is noted on the pipe, and the note
//! is taken away when the trouble has passed.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::StreamExt as _;
use millrace_common::{
    aws::{
        self, Access,
        policy::{Scope, Usage},
    },
    clock::Clock,
    ids::{Label, ShardId},
    pipe::{DesiredState, FanOut, KinesisSource, StreamRef},
    reason,
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{Error, check_identity, consumer, lineage, look, orphans::Sweeper};
use crate::events::{NewEvent, Severity, kind};
use crate::store::{CredentialSecret, Error as StoreError, ShardPhase, Store, StoredFault, StoredPipe, StoredShard};

/// Attempts per call. The next round is another attempt.
pub(super) const ATTEMPTS: u32 = 2;
/// Faults that are noted here, and so taken away here.
const OWN_REASONS: [&str; 7] = [
    reason::SOURCE_AMBIENT_NOT_ALLOWED,
    reason::SOURCE_FAN_OUT_UNAVAILABLE,
    reason::SOURCE_STREAM_NOT_FOUND,
    reason::SOURCE_ACCESS_DENIED,
    reason::SOURCE_CREDENTIAL_INVALID,
    reason::SOURCE_UNREACHABLE,
    reason::SOURCE_STREAM_RECREATED,
];

/// As whom AWS is called; a cheap clone.
#[derive(Debug, Clone, Default)]
pub struct Callers {
    /// What the operator says about AWS.
    pub settings: aws::Settings,
    /// The sessions in use: one look at a stream is not the last one.
    pub identities: aws::Identities,
}

impl From<aws::Settings> for Callers {
    fn from(settings: aws::Settings) -> Self {
        Self {
            settings,
            identities: aws::Identities::default(),
        }
    }
}

/// How to look.
#[derive(Debug, Clone)]
pub struct Options {
    /// From one round to the next. Workers learn of new shards at once; this finds what they missed.
    pub interval: Duration,
    /// As whom AWS is called.
    pub aws: Callers,
    /// Pipes looked at at the same time: DescribeStreamSummary takes 20 calls per second and account.
    pub concurrency: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(30),
            aws: Callers::default(),
            concurrency: 4,
        }
    }
}

/// The reconciler of streams.
pub struct Service {
    store: Store,
    options: Options,
    clock: Clock,
    sweeper: Sweeper,
    /// Called when something changed that placement or a watcher should see.
    changed: Arc<dyn Fn() + Send + Sync>,
}

impl Service {
    /// A reconciler that calls `changed` when there is something to see.
    pub fn new(store: Store, options: Options, clock: Clock, changed: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            store,
            options,
            clock,
            sweeper: Sweeper::default(),
            changed: Arc::new(changed),
        }
    }

    /// Runs until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(self.options.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = self.round() => {}
            }
        }
    }

    async fn round(&self) {
        let pipes = match self.store.all_pipes().await {
            Ok(pipes) => pipes,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot read the pipes: looking again later"
                );
                return;
            }
        };
        let running = pipes.into_iter().filter(|pipe| pipe.desired == DesiredState::Running);
        let concurrency = self.options.concurrency.max(1);
        futures::stream::iter(running)
            .for_each_concurrent(concurrency, |pipe| self.reconcile(pipe))
            .await;
        self.sweeper
            .sweep(&self.store, &self.options.aws, self.clock.now(), concurrency)
            .await;
    }

    async fn reconcile(&self, pipe: StoredPipe) {
        let fault = match self.learn(&pipe).await {
            Ok(()) => None,
            Err(Failure::Source(error)) => Some(fault(&error)),
            Err(Failure::Store(error)) => {
                tracing::warn!(pipe = %pipe.name, error = &error as &dyn std::error::Error, "cannot note what its stream is");
                return;
            }
        };
        if !may_replace(pipe.fault.as_ref(), fault.as_ref()) {
            return;
        }
        match &fault {
            Some(fault) => tracing::warn!(pipe = %pipe.name, fault.reason, fault.message, "trouble with the stream"),
            None => tracing::info!(pipe = %pipe.name, "the trouble with the stream has passed"),
        }
        let event = fault.as_ref().and_then(|fault| recreated(&pipe, fault));
        match self
            .store
            .note_pipe_fault(pipe.uid, fault.as_ref(), event.as_ref())
            .await
        {
            Ok(_) => (self.changed)(),
            Err(error) => tracing::warn!(pipe = %pipe.name, error = &error as &dyn std::error::Error, "cannot note it"),
        }
    }

    /// Stores the shards that are new, and sees to the pipe's consumer.
    async fn learn(&self, pipe: &StoredPipe) -> Result<(), Failure> {
        let access = self.learn_shards(pipe).await?;
        if pipe.spec.source.fan_out == Some(FanOut::Managed) {
            consumer::ensure(&self.store, &access, &pipe.resolved.stream.arn, pipe.uid).await?;
        }
        Ok(())
    }

    async fn learn_shards(&self, pipe: &StoredPipe) -> Result<Access, Failure> {
        let source = &pipe.spec.source;
        let Some(CredentialSecret::Aws(credential)) = self.store.credential_secret(&source.credential).await? else {
            return Err(Failure::Source(Error {
                reason: reason::SOURCE_CREDENTIAL_INVALID,
                message: format!(
                    "there is no AWS credential {}: update the pipe with one that exists",
                    source.credential
                ),
                field: "pipe.source.kinesis.credential",
                permanent: true,
                said: String::new(),
            }));
        };
        // What is stored before the listing begins, the listing can judge: a shard may wait for a parent that the pipe
        // never had, and the store finds that out when shards are added.
        let before = self.store.shards(pipe.uid).await?.into_iter();
        let judged: BTreeSet<ShardId> = before
            .filter(|shard| shard.state == ShardPhase::Waiting)
            .map(|shard| shard.id)
            .collect();
        let access = access(source, credential, &pipe.name.id, &self.options.aws);
        let stream = look(&access, &source.stream).await?;
        check_identity(&pipe.resolved.stream, &stream.identity)?;
        let shards = self.store.shards(pipe.uid).await?;
        // A backfill that is through does not care what became of the stream since.
        let finished = |shard: &StoredShard| shard.state == ShardPhase::Finished;
        if source.end.is_some() && shards.iter().all(finished) {
            return Ok(access);
        }
        let known: BTreeSet<ShardId> = shards.into_iter().map(|shard| shard.id).collect();
        let new = lineage::later(source.start, &known, &stream.shards);
        if new.is_empty() && judged.is_empty() {
            return Ok(access);
        }
        let added = self.store.add_shards(pipe.uid, &new, &judged).await?;
        if !added.is_empty() {
            tracing::info!(pipe = %pipe.name, shards = added.len(), "new shards");
            (self.changed)();
        }
        Ok(access)
    }
}

/// How to reach the stream of a pipe.
#[must_use]
pub fn access(source: &KinesisSource, credential: aws::Credential, pipe: &Label, callers: &Callers) -> Access {
    let scope = stream_arn(source, &credential).map(|stream_arn| Scope {
        stream_arn,
        usage: usage(source),
    });
    Access {
        scope,
        settings: callers.settings.clone(),
        identities: Some(callers.identities.clone()),
        ..Access::new(
            source.region.clone(),
            source.endpoint.clone(),
            credential.named(&aws::session_name(pipe.as_str())),
            ATTEMPTS,
        )
    }
}

/// What a pipe does with its stream.
#[must_use]
pub fn usage(source: &KinesisSource) -> Usage {
    match &source.fan_out {
        None => Usage::Poll,
        Some(FanOut::Consumer(_)) => Usage::FanOut,
        Some(FanOut::Managed) => Usage::ManagedFanOut,
    }
}

/// The ARN of a stream, as far as it is known without asking: one that is named is in the account of the role.
#[must_use]
pub fn stream_arn(source: &KinesisSource, credential: &aws::Credential) -> Option<String> {
    match (&source.stream, credential) {
        (StreamRef::Arn(arn), _) => Some(arn.clone()),
        (StreamRef::Name(name), aws::Credential::Role { role_arn, .. }) => {
            named_stream_arn(role_arn, &source.region, name)
        }
        (StreamRef::Name(_), aws::Credential::Keys { .. } | aws::Credential::Ambient) => None,
    }
}

/// The ARN of a stream in the account of an identity.
#[must_use]
pub fn named_stream_arn(identity_arn: &str, region: &str, stream: &str) -> Option<String> {
    let mut parts = identity_arn.split(':');
    let (partition, account) = (parts.nth(1)?, parts.nth(2)?);
    Some(format!("arn:{partition}:kinesis:{region}:{account}:stream/{stream}"))
}

/// True for trouble that a look at the stream finds, and that the next good look takes away.
#[must_use]
pub fn is_own(fault: &StoredFault) -> bool {
    OWN_REASONS.contains(&fault.reason.as_str())
}

/// What to tell of a stream that is another one.
fn recreated(pipe: &StoredPipe, fault: &StoredFault) -> Option<NewEvent> {
    (fault.reason == reason::SOURCE_STREAM_RECREATED).then(|| {
        let identity = &pipe.resolved.stream;
        NewEvent::new(kind::STREAM_RECREATED, Severity::Error, fault.message.clone())
            .with("stream", &identity.arn)
            .with("stream_created", identity.created)
            // The message names the stream that was found.
            .once(format!("{}:{}", kind::STREAM_RECREATED, fault.message))
    })
}

fn fault(error: &Error) -> StoredFault {
    StoredFault {
        reason: error.reason.to_owned(),
        message: error.message.clone(),
        permanent: error.permanent,
    }
}

/// Whether what was noted is to be replaced. Trouble that others found is theirs.
fn may_replace(noted: Option<&StoredFault>, found: Option<&StoredFault>) -> bool {
    noted != found && noted.is_none_or(is_own)
}

enum Failure {
    Source(Error),
    Store(StoreError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Source(error)
    }
}

impl From<consumer::Failure> for Failure {
    fn from(failure: consumer::Failure) -> Self {
        match failure {
            consumer::Failure::Source(error) => Failure::Source(error),
            consumer::Failure::Store(error) => Failure::Store(error),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Failure::Store(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_without_an_arn_is_in_the_roles_account() {
        let role = "arn:aws-cn:iam::123456789012:role/a/reader";
        assert_eq!(
            named_stream_arn(role, "cn-north-1", "orders").as_deref(),
            Some("arn:aws-cn:kinesis:cn-north-1:123456789012:stream/orders")
        );
        assert_eq!(named_stream_arn("reader", "cn-north-1", "orders"), None);
    }

    #[test]
    fn only_own_faults_are_replaced() {
        let fault = |reason: &str| StoredFault {
            reason: reason.into(),
            message: String::new(),
            permanent: true,
        };
        let (own, other) = (fault(reason::SOURCE_UNREACHABLE), fault(reason::BATCH_DIVERGED));
        assert!(may_replace(None, Some(&own)));
        assert!(may_replace(Some(&own), None));
        assert!(may_replace(Some(&own), Some(&fault(reason::SOURCE_ACCESS_DENIED))));
        assert!(!may_replace(Some(&own), Some(&own)));
        assert!(!may_replace(None, None));
        assert!(!may_replace(Some(&other), None));
        assert!(!may_replace(Some(&other), Some(&own)));
    }
}

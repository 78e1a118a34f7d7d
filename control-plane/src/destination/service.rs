//! Looks at the tables of running pipes again and again, because what a pipe promises in effect depends on their settings,
//! which anybody may change: for the better, as the reason of a weak promise asks for, or for the worse.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::StreamExt as _;
use millrace_common::{
    ids::PipeUid,
    pipe::{Delivery, DesiredState},
};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{Access, Client, Mended};
use crate::{
    events::{NewEvent, Severity, kind},
    store::{CredentialSecret, Effective, Store, StoredPipe},
};

/// How to look.
#[derive(Debug, Clone)]
pub struct Options {
    /// From one round to the next. A pipe that promises less than it was asked to is looked at in every round.
    pub interval: Duration,
    /// How often a pipe that promises what it was asked to is looked at.
    pub healthy_interval: Duration,
    /// Pipes looked at at the same time.
    pub concurrency: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(30),
            healthy_interval: Duration::from_secs(60),
            concurrency: 4,
        }
    }
}

/// The reconciler of promises.
pub struct Service {
    store: Store,
    clickhouse: Client,
    options: Options,
    /// Called when a promise has changed.
    changed: Arc<dyn Fn() + Send + Sync>,
    looked: Mutex<HashMap<PipeUid, Instant>>,
}

impl Service {
    /// A reconciler that calls `changed` when there is something to see.
    pub fn new(store: Store, clickhouse: Client, options: Options, changed: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            store,
            clickhouse,
            options,
            changed: Arc::new(changed),
            looked: Mutex::default(),
        }
    }

    /// Runs until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(self.options.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let round = async {
                ticks.tick().await;
                self.round().await;
            };
            if shutdown.run_until_cancelled(round).await.is_none() {
                return;
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
        let now = Instant::now();
        let due: Vec<StoredPipe> = {
            let mut looked = self.looked.lock();
            looked.retain(|uid, _| pipes.iter().any(|pipe| pipe.uid == *uid));
            pipes
                .into_iter()
                .filter(|pipe| self.is_due(pipe, &mut looked, now))
                .collect()
        };
        futures::stream::iter(due)
            .for_each_concurrent(self.options.concurrency.max(1), |pipe| self.look(pipe))
            .await;
    }

    /// Whether it is time for a pipe; then this is noted.
    fn is_due(&self, pipe: &StoredPipe, looked: &mut HashMap<PipeUid, Instant>, now: Instant) -> bool {
        if pipe.desired != DesiredState::Running {
            return false;
        }
        let asked = pipe.spec.settings.delivery;
        let weak = pipe
            .effective
            .as_ref()
            .is_none_or(|effective| effective.delivery != asked);
        let last = looked.get(&pipe.uid).copied();
        // What was just created was just looked at.
        let due = weak || last.is_some_and(|last| now.duration_since(last) >= self.options.healthy_interval);
        if due || last.is_none() {
            looked.insert(pipe.uid, now);
        }
        due
    }

    async fn look(&self, pipe: StoredPipe) {
        let secret = self.store.credential_secret(&pipe.spec.destination.credential).await;
        let Ok(Some(CredentialSecret::ClickHouse { username, password })) = secret else {
            // Those who move records report that.
            return;
        };
        let access = Access {
            endpoint: pipe.spec.destination.endpoint.clone(),
            username,
            password,
        };
        self.mend(&pipe, &access).await;
        let effective = match Box::pin(self.clickhouse.guarantee(&pipe.spec, &access)).await {
            Ok(effective) => effective,
            Err(error) => {
                tracing::debug!(pipe = %pipe.name, %error, "cannot look at the table: its promise stays as it was seen last");
                return;
            }
        };
        if pipe.effective.as_ref() == Some(&effective) {
            return;
        }
        tracing::info!(pipe = %pipe.name, delivery = %effective.delivery, reason = effective.reason, "the promise has changed");
        let event = promise_changed(pipe.effective.as_ref(), &effective);
        let noted = self
            .store
            .note_pipe_effective(pipe.uid, &effective, event.as_ref())
            .await;
        match noted {
            Ok(_) => (self.changed)(),
            Err(error) => tracing::warn!(pipe = %pipe.name, error = &error as &dyn std::error::Error, "cannot note it"),
        }
    }

    /// Puts back what was taken away from tables that are Millrace's own. Where that is not allowed, the promise says what to
    /// run, as it does for any other table.
    async fn mend(&self, pipe: &StoredPipe, access: &Access) {
        let mended = match Box::pin(self.clickhouse.mend(&pipe.spec, access)).await {
            Ok(mended) => mended,
            Err(error) => {
                tracing::debug!(pipe = %pipe.name, %error, "cannot see to the table's deduplication window");
                return;
            }
        };
        for mended in mended {
            tracing::warn!(
                pipe = %pipe.name, table = mended.table, setting = mended.setting, from = mended.from, to = mended.to,
                "a managed table's deduplication window was put back"
            );
            match self.store.append_event(pipe.uid, &window_restored(&mended)).await {
                Ok(_) => (self.changed)(),
                Err(error) => {
                    tracing::warn!(pipe = %pipe.name, error = &error as &dyn std::error::Error, "cannot note it");
                }
            }
        }
    }
}

/// What to tell of a window that was put back.
fn window_restored(mended: &Mended) -> NewEvent {
    let Mended {
        table,
        setting,
        from,
        to,
        statement,
    } = mended;
    let message = format!(
        "somebody had set {setting} of the managed table {table} to {from}; Millrace has put it back with `{statement}`. A batch \
         whose insert was repeated in between may be there twice"
    );
    NewEvent::new(kind::WINDOW_RESTORED, Severity::Warning, message)
        .with("table", table)
        .with("setting", setting)
        .with("from", from)
        .with("to", to)
}

/// What to tell of another promise; nothing if only its reason or the size of a window has changed.
fn promise_changed(before: Option<&Effective>, after: &Effective) -> Option<NewEvent> {
    let before = before?;
    if before.delivery == after.delivery {
        return None;
    }
    let severity = match after.delivery {
        Delivery::ExactlyOnce => Severity::Info,
        Delivery::AtLeastOnce => Severity::Warning,
    };
    let message = format!("the pipe delivers {} now: {}", after.delivery, after.reason);
    let event = NewEvent::new(kind::PROMISE_CHANGED, severity, message)
        .with("from", before.delivery)
        .with("to", after.delivery)
        .with("reason", &after.reason);
    Some(event)
}

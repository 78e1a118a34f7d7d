//! What a control plane does besides answering calls: as the leader, coordinating workers and looking at streams and
//! tables; otherwise, following the leader.
//!
//! Invariant: nothing of a leadership goes on after it: its parts are gone before the next role begins.

use futures::future::BoxFuture;
use millrace_common::clock::Clock;
use tokio_util::sync::CancellationToken;
use tonic_health::server::HealthReporter;

use crate::{
    api::Api,
    coordinator::Coordinator,
    destination, discovery,
    leader::{self, Role, Tenure},
    store::Store,
};

/// Everything that depends on who leads.
pub(super) struct Duty {
    pub(super) store: Store,
    pub(super) coordinator: Coordinator,
    pub(super) clickhouse: destination::Client,
    pub(super) api: Api,
    pub(super) discovery: discovery::Options,
    pub(super) destination: destination::Options,
    pub(super) clock: Clock,
    pub(super) health: Health,
}

impl Duty {
    /// Does what the role of the moment asks for, until `ending`.
    pub(super) async fn run(self, mut election: leader::Handle, ending: CancellationToken) {
        while !ending.is_cancelled() {
            let role = election.role.borrow_and_update().clone();
            match role {
                Role::Leading(tenure) => self.lead(&tenure, &election).await,
                Role::Following { leader } => {
                    self.health.set(false).await;
                    let following = async {
                        tokio::select! {
                            changed = election.role.changed() => changed.is_err(),
                            () = self.follow(leader, election.seen.clone()) => false,
                        }
                    };
                    if ending.run_until_cancelled(following).await.unwrap_or(true) {
                        // The elector has ended: there is nothing to wait for but the end.
                        ending.cancelled().await;
                    }
                }
            }
        }
    }

    async fn lead(&self, tenure: &Tenure, election: &leader::Handle) {
        let store = self.store.fenced(tenure.term());
        let (discovered, looked) = (self.api.clone(), self.api.clone());
        let (options, clock) = (self.discovery.clone(), self.clock.clone());
        let streams = discovery::Service::new(store.clone(), options, clock, move || discovered.note_change());
        let states = store.clone();
        let tables = destination::Service::new(store, self.clickhouse.clone(), self.destination.clone(), move || {
            looked.note_change();
        });
        let changes = changes(election.seen.clone(), || self.api.note_change());
        let parts: [BoxFuture<'_, ()>; 6] = [
            Box::pin(self.coordinator.lead(tenure)),
            Box::pin(streams.run(tenure.over().clone())),
            Box::pin(tables.run(tenure.over().clone())),
            Box::pin(self.api.clone().note_states(states, tenure.over().clone())),
            Box::pin(async {
                let _ = tenure.over().run_until_cancelled(changes).await;
            }),
            Box::pin(self.health.set(true)),
        ];
        futures::future::join_all(parts).await;
        self.health.set(false).await;
    }

    async fn follow(&self, leader: Option<String>, seen: tokio::sync::watch::Receiver<leader::Seen>) {
        let changes = changes(seen.clone(), || self.api.note_remote_change());
        tokio::join!(self.coordinator.follow(leader, seen), changes);
    }
}

/// Calls `note` when a control plane that does not lead has stored something. Does not end by itself.
async fn changes(mut seen: tokio::sync::watch::Receiver<leader::Seen>, note: impl Fn()) {
    let mut known = seen.borrow_and_update().changes;
    while seen.changed().await.is_ok() {
        let changes = seen.borrow_and_update().changes;
        if std::mem::replace(&mut known, changes) != changes {
            note();
        }
    }
    std::future::pending::<()>().await;
}

/// Health of the workers' service: serving where sessions are taken.
pub(super) struct Health {
    set: Box<dyn Fn(bool) -> BoxFuture<'static, ()> + Send + Sync>,
}

impl Health {
    pub(super) fn of<W>(reporter: &HealthReporter, _workers: &W) -> Self
    where
        W: tonic::server::NamedService,
    {
        let reporter = reporter.clone();
        let set = move |leads: bool| -> BoxFuture<'static, ()> {
            let reporter = reporter.clone();
            Box::pin(async move {
                if leads {
                    reporter.set_serving::<W>().await;
                } else {
                    reporter.set_not_serving::<W>().await;
                }
            })
        };
        Self { set: Box::new(set) }
    }

    async fn set(&self, leads: bool) {
        (self.set)(leads).await;
    }
}

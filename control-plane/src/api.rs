//! What users call: pipes and credentials over gRPC. Requests are parsed (`convert`), checked against the world
//! (`preflight`), and stored; what users see is put together from what is stored and what runs (`view`).
//!
//! Invariants:
//! - every error that leaves here carries a stable reason;
//! - no method returns a secret;
//! - `validate_only` writes nothing, neither here nor in ClickHouse.

mod access;
mod consumer;
pub mod convert;
mod credentials;
mod discovery;
mod errors;
mod events;
mod filter;
mod mask;
mod once;
mod page;
mod pipes;
mod positions;
mod preflight;
mod rejected;
mod revisions;
mod states;
mod tokens;
mod update;
mod view;
mod watch;

use std::sync::Arc;

use millrace_common::{clock::Clock, crypto::Sealer, ids::ProjectName};
use millrace_proto::api::v1::{
    access_service_server::AccessServiceServer, credential_service_server::CredentialServiceServer,
    discovery_service_server::DiscoveryServiceServer, pipe_service_server::PipeServiceServer,
    rejected_record_service_server::RejectedRecordServiceServer, token_service_server::TokenServiceServer,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{coordinator, destination, discovery::Callers, endpoint::Policy, store::Store};

/// Pipes that are checked against AWS and ClickHouse at the same time. Others wait: each check holds connections.
const MAX_PREFLIGHTS: usize = 16;
/// Samples that are read or decoded at the same time. Others wait: each may hold tens of megabytes.
const MAX_SAMPLES: usize = 4;

/// What the services stand on.
#[derive(Clone)]
pub struct Api {
    store: Store,
    coordinator: coordinator::Handle,
    clickhouse: destination::Client,
    endpoints: Arc<Policy>,
    sealer: Arc<Sealer>,
    /// As whom AWS is called.
    aws: Callers,
    clock: Clock,
    preflights: Arc<Semaphore>,
    samples: Arc<Semaphore>,
    watchers: watch::Watchers,
    /// Ticks when something was stored that a watcher should see.
    stored: watch::Stored,
    shutdown: CancellationToken,
}

impl Api {
    /// Services on this store. `shutdown` ends the streams of those who watch.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "each is a part of the process, given once")]
    pub fn new(
        store: Store,
        coordinator: coordinator::Handle,
        clickhouse: destination::Client,
        endpoints: Policy,
        sealer: Arc<Sealer>,
        aws: Callers,
        clock: Clock,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            store,
            coordinator,
            clickhouse,
            endpoints: Arc::new(endpoints),
            sealer,
            aws,
            clock,
            preflights: Arc::new(Semaphore::new(MAX_PREFLIGHTS)),
            samples: Arc::new(Semaphore::new(MAX_SAMPLES)),
            watchers: watch::Watchers::default(),
            stored: watch::Stored::default(),
            shutdown,
        }
    }

    /// To be called after something about pipes was stored: placement and watchers look at it.
    pub fn note_change(&self) {
        self.stored.tick();
        self.coordinator.nudge();
    }

    /// To be called when another control plane has stored something about pipes: watchers look at it.
    pub fn note_remote_change(&self) {
        self.stored.tick();
    }

    /// The pipe service.
    #[must_use]
    pub fn pipes(&self) -> PipeServiceServer<Api> {
        PipeServiceServer::new(self.clone()).max_decoding_message_size(millrace_common::grpc::MAX_MESSAGE_BYTES)
    }

    /// The access service.
    #[must_use]
    pub fn access(&self) -> AccessServiceServer<Api> {
        AccessServiceServer::new(self.clone()).max_decoding_message_size(millrace_common::grpc::MAX_MESSAGE_BYTES)
    }

    /// The discovery service.
    #[must_use]
    pub fn discovery(&self) -> DiscoveryServiceServer<Api> {
        DiscoveryServiceServer::new(self.clone()).max_decoding_message_size(millrace_common::grpc::MAX_MESSAGE_BYTES)
    }

    /// The service of rejected records.
    #[must_use]
    pub fn rejected_records(&self) -> RejectedRecordServiceServer<Api> {
        RejectedRecordServiceServer::new(self.clone())
            .max_decoding_message_size(millrace_common::grpc::MAX_MESSAGE_BYTES)
    }

    /// The token service.
    #[must_use]
    pub fn tokens(&self) -> TokenServiceServer<Api> {
        TokenServiceServer::new(self.clone()).max_decoding_message_size(millrace_common::grpc::MAX_MESSAGE_BYTES)
    }

    /// The credential service.
    #[must_use]
    pub fn credentials(&self) -> CredentialServiceServer<Api> {
        CredentialServiceServer::new(self.clone()).max_decoding_message_size(millrace_common::grpc::MAX_MESSAGE_BYTES)
    }
}

/// A name in a request.
fn name<T>(text: &str, field: &'static str) -> Result<T, millrace_common::error::ApiError>
where
    T: std::str::FromStr<Err = millrace_common::ids::Error>,
{
    text.parse().map_err(|error: millrace_common::ids::Error| {
        millrace_common::error::ApiError::invalid_field(field, error.to_string())
    })
}

/// The parent in a request.
fn parent(text: &str) -> Result<ProjectName, millrace_common::error::ApiError> {
    name(text, "parent")
}

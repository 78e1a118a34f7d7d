//! Asking the world whether a pipe can work: the stream with its shards, the table with its columns.

use millrace_common::{
    aws,
    error::ApiError,
    ids::{CredentialName, Label, Revision},
    pipe::{PipeSpec, ResolvedSpec},
};

use super::{
    Api,
    convert::Violations,
    errors::{both, of_destination, of_discovery, of_store},
};
use crate::{
    destination::{self, Mode},
    discovery,
    store::{CredentialSecret, Effective},
};

/// What a pipe that can work was found to be.
pub(super) struct Found {
    /// The stream and its shards.
    pub(super) stream: discovery::Stream,
    /// The specification resolved; its revision is for the store to set.
    pub(super) resolved: ResolvedSpec,
    /// The promise in effect.
    pub(super) effective: Effective,
}

struct Credentials {
    source: aws::Credential,
    destination: destination::Access,
}

impl Api {
    /// Checks both ends, and only when both are good makes the tables that are the pipe's own to make.
    ///
    /// # Errors
    /// All that stands in the way, with the fields at fault.
    pub(super) async fn preflight(&self, pipe: &Label, spec: &PipeSpec, mode: Mode) -> Result<Found, ApiError> {
        let credentials = self.credentials_of(spec).await?;
        self.check_endpoints(spec).await?;
        let _permit = self.preflights.acquire().await;
        let access = discovery::access(&spec.source, credentials.source, pipe, &self.aws);
        // The SDK's futures are large.
        let looking = Box::pin(discovery::look(&access, &spec.source.stream));
        let checking = Box::pin(self.clickhouse.prepare(spec, &credentials.destination, Mode::Check));
        let (stream, checked) = tokio::join!(looking, checking);
        let (stream, checked) = match (stream, checked) {
            (Ok(stream), Ok(checked)) => (stream, checked),
            (Err(stream), Ok(_)) => return Err(of_discovery(&stream)),
            (Ok(_), Err(table)) => return Err(of_destination(&table)),
            (Err(stream), Err(table)) => return Err(both(of_discovery(&stream), of_destination(&table))),
        };
        let prepared = match mode {
            Mode::Check => checked,
            Mode::Create => Box::pin(self.clickhouse.prepare(spec, &credentials.destination, mode))
                .await
                .map_err(|error| of_destination(&error))?,
        };
        let resolved = ResolvedSpec {
            revision: Revision(1),
            stream: stream.identity.clone(),
            columns: prepared.columns,
            time_zone: prepared.time_zone,
        };
        Ok(Found {
            stream,
            resolved,
            effective: prepared.effective,
        })
    }

    async fn credentials_of(&self, spec: &PipeSpec) -> Result<Credentials, ApiError> {
        let mut violations = Violations::new();
        let (source, destination) = (&spec.source.credential, &spec.destination.credential);
        let aws = match self.secret(source).await? {
            Some(CredentialSecret::Aws(credential)) => Some(credential),
            Some(CredentialSecret::ClickHouse { .. }) => {
                violations.add(
                    "pipe.source.kinesis.credential",
                    format!("{source} is a ClickHouse user: an AWS credential is needed here"),
                );
                None
            }
            None => {
                violations.add(
                    "pipe.source.kinesis.credential",
                    format!("there is no {source}: create it first"),
                );
                None
            }
        };
        let clickhouse = match self.secret(destination).await? {
            Some(CredentialSecret::ClickHouse { username, password }) => Some(destination::Access {
                endpoint: spec.destination.endpoint.clone(),
                username,
                password,
            }),
            Some(CredentialSecret::Aws(_)) => {
                violations.add(
                    "pipe.destination.credential",
                    format!("{destination} is an AWS credential: a ClickHouse user is needed here"),
                );
                None
            }
            None => {
                violations.add(
                    "pipe.destination.credential",
                    format!("there is no {destination}: create it first"),
                );
                None
            }
        };
        violations.finish()?;
        match (aws, clickhouse) {
            (Some(source), Some(destination)) => Ok(Credentials { source, destination }),
            // Whatever is missing was reported above.
            _ => Err(ApiError::new(
                tonic::Code::Internal,
                "INTERNAL",
                "a credential got lost",
            )),
        }
    }

    pub(super) async fn secret(&self, name: &CredentialName) -> Result<Option<CredentialSecret>, ApiError> {
        self.store
            .credential_secret(name)
            .await
            .map_err(|error| of_store(&error))
    }

    /// What the endpoints' names stand for at this moment.
    async fn check_endpoints(&self, spec: &PipeSpec) -> Result<(), ApiError> {
        let mut violations = Violations::new();
        if let Err(error) = self.endpoints.check_resolved(&spec.destination.endpoint).await {
            violations.add("pipe.destination.endpoint", error.to_string());
        }
        if let Some(endpoint) = &spec.source.endpoint
            && let Err(error) = self.endpoints.check_resolved(endpoint).await
        {
            violations.add("pipe.source.kinesis.endpoint", error.to_string());
        }
        violations.finish()
    }
}

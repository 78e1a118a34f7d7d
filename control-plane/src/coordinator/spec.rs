//! The specifications that workers run pipes with: read from the store with their secrets, and kept for as long as they
//! are the current ones.

use std::sync::Arc;

use millrace_common::{
    aws,
    ids::{CredentialName, Revision},
    pipe::{PipeSpec, ResolvedSpec},
};
use millrace_proto::worker::v1;
use secrecy::SecretString;

use crate::{
    sessions::convert,
    store::{CredentialSecret, Error, Store, StoredPipe},
};

/// Why there is no specification.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("the store does not answer")]
    Store(#[source] Error),
    #[error("the store does not answer in time")]
    Slow,
    #[error("the credential {0} does not exist")]
    Missing(CredentialName),
    #[error("the credential {0} is of another kind than the pipe needs")]
    Kind(CredentialName),
    #[error("the credential {name} cannot be read: {source}")]
    Sealed { name: CredentialName, source: Error },
    #[error("revision {0} is not stored")]
    Revision(Revision),
}

/// The current revision of a pipe.
pub(super) async fn current(store: &Store, pipe: &StoredPipe) -> Result<Arc<v1::PipeSpec>, Problem> {
    load(
        store,
        pipe,
        (&pipe.spec, &pipe.resolved),
        &pipe.spec.source.credential,
        &pipe.spec.destination.credential,
    )
    .await
}

/// An older revision, for replays. It names the old table and columns; but where the stream or the server are still the
/// same they are accessed with the current credential, because the old one may have been given up.
pub(super) async fn older(store: &Store, pipe: &StoredPipe, revision: Revision) -> Result<Arc<v1::PipeSpec>, Problem> {
    let stored = store.revision(pipe.uid, revision).await.map_err(Problem::Store)?;
    let (mut spec, resolved) = stored.ok_or(Problem::Revision(revision))?;
    if resolved.stream == pipe.resolved.stream {
        spec.source = pipe.spec.source.clone();
    }
    let (old, new) = (&spec.destination, &pipe.spec.destination);
    let destination = if old.endpoint == new.endpoint {
        &new.credential
    } else {
        &old.credential
    }
    .clone();
    load(store, pipe, (&spec, &resolved), &spec.source.credential, &destination).await
}

async fn load(
    store: &Store,
    pipe: &StoredPipe,
    (spec, resolved): (&PipeSpec, &ResolvedSpec),
    source: &CredentialName,
    destination: &CredentialName,
) -> Result<Arc<v1::PipeSpec>, Problem> {
    let session = aws::session_name(pipe.name.id.as_str());
    let aws = aws_credential(store, source).await?.named(&session);
    let (username, password) = click_house_user(store, destination).await?;
    Ok(Arc::new(convert::pipe_spec(
        pipe.uid,
        spec,
        resolved,
        &aws,
        (&username, &password),
    )))
}

async fn aws_credential(store: &Store, name: &CredentialName) -> Result<aws::Credential, Problem> {
    match secret(store, name).await? {
        CredentialSecret::Aws(credential) => Ok(credential),
        CredentialSecret::ClickHouse { .. } => Err(Problem::Kind(name.clone())),
    }
}

async fn click_house_user(store: &Store, name: &CredentialName) -> Result<(String, SecretString), Problem> {
    match secret(store, name).await? {
        CredentialSecret::ClickHouse { username, password } => Ok((username, password)),
        CredentialSecret::Aws(_) => Err(Problem::Kind(name.clone())),
    }
}

async fn secret(store: &Store, name: &CredentialName) -> Result<CredentialSecret, Problem> {
    match store.credential_secret(name).await {
        Ok(secret) => secret.ok_or_else(|| Problem::Missing(name.clone())),
        Err(
            source @ (Error::Key(_)
            | Error::Corrupt { .. }
            | Error::SourceUnfit { .. }
            | Error::CredentialNotFound { .. }),
        ) => Err(Problem::Sealed {
            name: name.clone(),
            source,
        }),
        Err(error) => Err(Problem::Store(error)),
    }
}

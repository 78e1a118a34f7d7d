//! What can go wrong between the control plane and its database.
//!
//! Texts name resources, never SQL, URLs or secrets: they may reach users.

use millrace_common::{
    crypto,
    ids::{CredentialName, PipeName, PipeUid},
};
use sea_orm::DbErr;

use super::credentials::MAX_CHAIN;
use crate::{leader::Term, protocol::Refusal};

/// Why an operation of the store did not happen. Nothing was changed, except after [`Error::Unavailable`], where it is
/// unknown whether the change was made: repeat it, every operation that workers depend on can be repeated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database's URL is not usable.
    #[error("the database URL is not usable: {what}")]
    Url {
        /// What is wrong, without the URL, which may hold a password.
        what: String,
    },
    /// Another process has the SQLite file open.
    #[error(
        "the database {path} is in use by another control plane (its lock file {path}.lock is held): stop that one first; several control planes need PostgreSQL"
    )]
    Locked {
        /// Path of the database.
        path: String,
    },
    /// The database's file or its directory cannot be used.
    #[error("cannot use the database file {path}")]
    File {
        /// Path of the database.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The database was written by a newer release.
    #[error(
        "the database was written by a newer release (it has migration {migration}): run that release or a newer one"
    )]
    Newer {
        /// The migration that is not known here.
        migration: String,
    },
    /// A secret cannot be sealed or opened.
    #[error("the encryption key does not fit the database")]
    Key(#[source] crypto::Error),
    /// The name is taken.
    #[error("{name} exists already")]
    AlreadyExists {
        /// The resource name.
        name: String,
    },
    /// No such pipe, any more or at all.
    #[error("there is no pipe {uid}")]
    PipeNotFound {
        /// The pipe.
        uid: PipeUid,
    },
    /// A specification refers to a credential that is not stored.
    #[error("there is no credential {name}")]
    CredentialNotFound {
        /// The credential.
        name: CredentialName,
    },
    /// The credential that a role is to be assumed with is none that can.
    #[error("{name} is no AWS credential, or stands at the end of a chain of {MAX_CHAIN} roles")]
    SourceUnfit {
        /// The credential.
        name: CredentialName,
    },
    /// Roles are assumed with the credential.
    #[error("{name} is the source_credential of {}", credentials.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    IsSource {
        /// The credential.
        name: CredentialName,
        /// Those that refer to it, in name order.
        credentials: Vec<CredentialName>,
    },
    /// Pipes refer to the credential.
    #[error("{name} is in use by {}", pipes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    InUse {
        /// The credential.
        name: CredentialName,
        /// The pipes that refer to it, in name order.
        pipes: Vec<PipeName>,
    },
    /// The pipe was changed by someone else in between.
    #[error("the pipe was changed in the meantime: its etag is {found:?}, not {expected:?}")]
    EtagMismatch {
        /// What the caller gave.
        expected: String,
        /// What is stored.
        found: String,
    },
    /// The request was carried out before.
    #[error("a request with this id was carried out before")]
    Repeated,
    /// It was to be done under the term of a leader that another has followed.
    #[error("term {term} is over: the current one is {current}")]
    Fenced {
        /// The term.
        term: Term,
        /// The one that is stored.
        current: Term,
    },
    /// The exactly-once protocol forbids it.
    #[error("{reason}")]
    Refused {
        /// Why.
        reason: Refusal,
    },
    /// The database does not answer, or gave up on a conflict several times over.
    #[error("the database is not available")]
    Unavailable(#[source] DbErr),
    /// A stored row cannot be read.
    #[error("the database holds something unreadable in {place}: {what}")]
    Corrupt {
        /// Table and column.
        place: &'static str,
        /// What is wrong.
        what: String,
    },
    /// Anything else that the database says.
    #[error("the database refused an operation")]
    Database(#[source] DbErr),
}

impl Error {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Unavailable(_))
    }
}

impl From<Refusal> for Error {
    fn from(reason: Refusal) -> Self {
        Error::Refused { reason }
    }
}

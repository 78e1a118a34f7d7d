//! The control plane's database: SQLite or PostgreSQL through one code.
//!
//! All SQL is here and below; nobody else knows the database. What the exactly-once protocol allows is decided by the
//! pure functions of [`crate::protocol`]; here the rows that a decision needs are read under lock, and what it decides is
//! written in the same transaction.
//!
//! Invariants:
//! - Every change is one transaction. On SQLite they come one after the other; on PostgreSQL the rows that a decision
//!   rests on are locked first, so that several control planes may share a database.
//! - Nothing here reads a clock to decide anything; times are stored for people. The one exception is the leader's row,
//!   which ends by the database's own clock.
//! - No statement, and so no log and no error, ever holds a secret that is not sealed.

use std::{fmt, fs::File, sync::Arc};

use millrace_common::{clock::Clock, crypto::Sealer};
use sea_orm::DatabaseConnection;

use crate::leader::Term;

mod batches;
mod consumers;
mod convert;
mod credentials;
mod entity;
mod error;
mod events;
mod keys;
mod leader;
mod ledger;
mod migration;
mod open;
mod pipes;
mod positions;
mod rejected;
mod requests;
mod shards;
mod tokens;
mod transaction;
mod types;

#[cfg(test)]
mod tests;

pub use consumers::ManagedConsumer;
pub use error::Error;
pub use events::MAX_EVENTS;
pub use leader::Standing;
pub use pipes::MAX_REVISIONS;
pub use positions::Adopted;
pub use requests::{Known, RequestMark};
pub use shards::{Ended, ShardEnd};
pub use types::*;

/// How to reach the database.
#[derive(Clone)]
pub struct Options {
    /// `sqlite:///path/file.db`, `sqlite::memory:` or `postgres://…`.
    pub url: String,
    /// Connections for reading, and on PostgreSQL as many again for writing, and a few that are kept for leading. SQLite has
    /// one writer.
    pub max_connections: u32,
}

impl Options {
    /// Usual settings for a database.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            max_connections: 8,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("Options")
            .field("max_connections", &self.max_connections)
            .finish_non_exhaustive()
    }
}

/// The database. Clones are cheap and share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    /// What is written is written for this request.
    request: Option<Arc<RequestMark>>,
}

struct Inner {
    read: DatabaseConnection,
    write: DatabaseConnection,
    /// For what only the leader does.
    leading: DatabaseConnection,
    /// For the leader's row.
    electing: DatabaseConnection,
    /// No other process can have the database open.
    exclusive: bool,
    /// What is written is written under this term.
    fence: Option<Term>,
    sealer: Arc<Sealer>,
    clock: Clock,
    /// Declared last: given back after the connections.
    _lock: Option<Arc<File>>,
}

impl Store {
    /// Opens the database, brings its schema up to date, and checks that `sealer` has the key of its secrets.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process has the SQLite file open, [`Error::Key`] if secrets were sealed with a key that
    /// it does not have, [`Error::Newer`] if a newer release wrote it, and what else keeps a database from being opened.
    pub async fn open(options: &Options, sealer: Arc<Sealer>, clock: Clock) -> Result<Store, Error> {
        let open::Opened {
            read,
            write,
            leading,
            electing,
            exclusive,
            lock,
        } = open::open(options, &sealer).await?;
        Ok(Store {
            inner: Arc::new(Inner {
                read,
                write,
                leading,
                electing,
                exclusive,
                fence: None,
                sealer,
                clock,
                _lock: lock.map(Arc::new),
            }),
            request: None,
        })
    }

    /// Waits for what is under way and closes the database, for all clones. Without it, dropping the last clone closes it
    /// in the background.
    pub async fn close(&self) {
        let Inner {
            read,
            write,
            leading,
            electing,
            ..
        } = &*self.inner;
        for connection in [read, write, leading, electing] {
            if let Err(error) = connection.close_by_ref().await {
                tracing::debug!(%error, "closing the database failed");
            }
        }
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// The database's.
    pub async fn ping(&self) -> Result<(), Error> {
        Ok(self.inner.write.ping().await?)
    }

    fn now_millis(&self) -> i64 {
        self.inner.clock.now().as_millisecond()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

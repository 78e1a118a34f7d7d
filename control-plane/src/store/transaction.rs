//! Transactions: how they begin on each database, and how one that lost a conflict starts over.
//!
//! PostgreSQL runs writes at READ COMMITTED with row locks, taken in one order everywhere: pipe, shards by id, the rest.
//! SQLite begins writes with IMMEDIATE, so there is one at a time.

use std::time::Duration;

use sea_orm::{
    AccessMode, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, IsolationLevel, RuntimeErr,
    SqliteTransactionMode, TransactionOptions, TransactionTrait as _, sqlx,
};
use tokio::task::JoinError;

use super::Error;

/// How often a transaction that lost a conflict starts over. Conflicts end in microseconds; more losses in a row than
/// this mean that something else is wrong.
const MAX_ATTEMPTS: u32 = 10;

/// Longest wait before the first repetition; doubled up to 128 times that.
const FIRST_BACKOFF: Duration = Duration::from_millis(4);

/// Begins a transaction that writes.
pub(super) async fn begin_write(connection: &DatabaseConnection) -> Result<DatabaseTransaction, Error> {
    let mode = match connection.get_database_backend() {
        DbBackend::Sqlite => Some(SqliteTransactionMode::Immediate),
        _ => None,
    };
    let options = TransactionOptions {
        isolation_level: None,
        access_mode: None,
        sqlite_transaction_mode: mode,
    };
    begin(connection, options).await
}

/// Begins a transaction whose statements all see one moment.
pub(super) async fn begin_read(connection: &DatabaseConnection) -> Result<DatabaseTransaction, Error> {
    let options = match connection.get_database_backend() {
        DbBackend::Sqlite => TransactionOptions::default(),
        _ => TransactionOptions {
            isolation_level: Some(IsolationLevel::RepeatableRead),
            access_mode: Some(AccessMode::ReadOnly),
            sqlite_transaction_mode: None,
        },
    };
    begin(connection, options).await
}

/// Begins in a task of its own. A caller may go away at any moment, such as a worker whose deadline has passed; sqlx, dropped
/// within BEGIN, gives the connection back with a transaction open that it knows nothing of. So BEGIN always ends, and a
/// transaction that nobody waits for any more is rolled back as it is dropped.
async fn begin(connection: &DatabaseConnection, options: TransactionOptions) -> Result<DatabaseTransaction, Error> {
    let connection = connection.clone();
    let begun = tokio::spawn(async move { connection.begin_with_options(options).await }).await;
    match begun.map_err(JoinError::try_into_panic) {
        Ok(transaction) => Ok(transaction?),
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // Only a runtime that ends cancels it, and this with it.
        Err(Err(_)) => std::future::pending().await,
    }
}

/// Counts the attempts of one write.
#[derive(Default)]
pub(super) struct Attempts(u32);

impl Attempts {
    /// Ends an attempt: commits what went well, rolls back what did not. `None`: it lost a conflict and may try again.
    pub(super) async fn settle<T>(
        &mut self,
        transaction: DatabaseTransaction,
        outcome: Result<T, Error>,
    ) -> Option<Result<T, Error>> {
        let error = match outcome {
            Ok(value) => match transaction.commit().await {
                Ok(()) => return Some(Ok(value)),
                Err(error) => error.into(),
            },
            Err(error) => {
                if let Err(error) = transaction.rollback().await {
                    tracing::debug!(%error, "rollback failed; the connection is given up");
                }
                error
            }
        };
        let lost = matches!(&error, Error::Unavailable(cause) if kind(cause) == Kind::Conflict);
        self.0 += 1;
        if !lost || self.0 >= MAX_ATTEMPTS {
            return Some(Err(error));
        }
        let longest = FIRST_BACKOFF * (1 << self.0.min(7));
        tokio::time::sleep(longest.mul_f64(rand::random())).await;
        None
    }
}

/// Runs a block with `?` inside one write transaction, over again while it loses conflicts; a store that is fenced by a
/// term first checks that it is the current one, and one that writes for a request notes that. The block must not keep anything from an attempt that failed.
macro_rules! write {
    ($store:expr, |$transaction:ident| $body:block) => {{
        let mut attempts = $crate::store::transaction::Attempts::default();
        loop {
            let $transaction = $crate::store::transaction::begin_write(&$store.inner.write).await?;
            let outcome: Result<_, $crate::store::Error> = async {
                $crate::store::leader::check_fence(&$transaction, $store.inner.fence).await?;
                $store.note_request(&$transaction).await?;
                $body
            }
            .await;
            if let Some(result) = attempts.settle($transaction, outcome).await {
                break result;
            }
        }
    }};
}
pub(super) use write;

/// What an error of the database means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Another transaction was in the way: the same one may go through at once.
    Conflict,
    /// The database does not serve for now.
    Unavailable,
    /// The database forbids it.
    Other,
}

fn kind(error: &DbErr) -> Kind {
    match error {
        DbErr::ConnectionAcquire(_) => Kind::Unavailable,
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => match error.as_ref() {
            sqlx::Error::Database(error) => code_kind(error.code().as_deref().unwrap_or_default()),
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Kind::Unavailable,
            _ => Kind::Other,
        },
        DbErr::Conn(_) => Kind::Unavailable,
        _ => Kind::Other,
    }
}

/// By SQLSTATE (five characters) or SQLite's result code (a number).
fn code_kind(code: &str) -> Kind {
    match code {
        // serialization_failure, deadlock_detected, lock_not_available; SQLITE_BUSY, _BUSY_RECOVERY, _BUSY_SNAPSHOT,
        // _BUSY_TIMEOUT, SQLITE_LOCKED, _LOCKED_SHAREDCACHE.
        "40001" | "40P01" | "55P03" | "5" | "261" | "517" | "773" | "6" | "262" => Kind::Conflict,
        // query_canceled (our statement timeout), cannot_connect_now, read_only_sql_transaction (a standby, in a failover),
        // idle_in_transaction_session_timeout (this process was frozen);
        // SQLITE_IOERR, SQLITE_FULL.
        "57014" | "57P03" | "25006" | "25P03" | "10" | "13" => Kind::Unavailable,
        // connection exceptions, insufficient resources, operator intervention, system errors.
        _ if code.len() == 5 && ["08", "53", "57", "58"].contains(&&code[..2]) => Kind::Unavailable,
        // The low byte of an extended SQLite code is its primary code.
        _ if code
            .parse::<u32>()
            .is_ok_and(|code| code.to_string().len() < 5 && code & 0xff == 10) =>
        {
            Kind::Unavailable
        }
        _ => Kind::Other,
    }
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        match kind(&error) {
            Kind::Conflict | Kind::Unavailable => Error::Unavailable(error),
            Kind::Other => Error::Database(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_both_databases_are_told_apart() {
        for conflict in ["40001", "40P01", "5", "517"] {
            assert_eq!(code_kind(conflict), Kind::Conflict, "{conflict}");
        }
        for unavailable in ["08006", "25P03", "53300", "57P01", "57P03", "10", "13", "266", "1034"] {
            assert_eq!(code_kind(unavailable), Kind::Unavailable, "{unavailable}");
        }
        for other in ["23505", "23503", "42P01", "1555", "2067", "787", "275", "19", ""] {
            assert_eq!(code_kind(other), Kind::Other, "{other}");
        }
    }
}

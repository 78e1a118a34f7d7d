//! Opening a database: options, file lock, pools, schema, and a check of the encryption key.

use std::{
    fs::{File, OpenOptions, TryLockError},
    path::Path,
    str::FromStr as _,
    time::Duration,
};

use millrace_common::crypto::Sealer;
use sea_orm::{
    DatabaseConnection, SqlxPostgresConnector, SqlxSqliteConnector,
    sqlx::{
        self, ConnectOptions as _,
        postgres::{PgConnectOptions, PgPoolOptions},
        sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
    },
};

use super::{Error, Options, migration, transaction::Attempts, transaction::begin_write};

/// How long a call waits for a connection. Longer than any queue of healthy writers; shorter than what a worker waits for
/// an answer.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(8);

/// Connections for what only the leader does: one for the coordinator, the rest for those who look at streams and tables.
const LEADING_CONNECTIONS: u32 = 4;

/// Connections for the leader's row. One is used; one more for when that hangs on a network that swallows everything.
const ELECTING_CONNECTIONS: u32 = 2;

/// How long SQLite waits for another program's lock, such as a backup's.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// What our connections ask of PostgreSQL, whatever its defaults. An answered Prepare must be on disk, and on a synchronous
/// standby if there is one. Our statements take milliseconds; a connection that hangs must not hold its row locks for ever.
const POSTGRES_SETTINGS: [(&str, &str); 5] = [
    // What our row locks are made for: each statement sees what was committed before it.
    ("default_transaction_isolation", "read committed"),
    ("synchronous_commit", "on"),
    ("statement_timeout", "10s"),
    ("lock_timeout", "5s"),
    // A control plane that is frozen in the middle of a transaction holds up its successor for this long at most.
    ("idle_in_transaction_session_timeout", "5s"),
];

/// An open database.
pub(super) struct Opened {
    /// For reading.
    pub(super) read: DatabaseConnection,
    /// For writing. Apart, so that no number of readers can keep a worker's commit waiting.
    pub(super) write: DatabaseConnection,
    /// For what only the leader does: no number of API calls can keep it waiting.
    pub(super) leading: DatabaseConnection,
    /// For the leader's row, which is renewed whatever else goes on.
    pub(super) electing: DatabaseConnection,
    /// No other process can have the database open.
    pub(super) exclusive: bool,
    /// Held as long as an SQLite file is open.
    pub(super) lock: Option<File>,
}

/// Opens what the options name and brings its schema up to date.
pub(super) async fn open(options: &Options, sealer: &Sealer) -> Result<Opened, Error> {
    let scheme = options.url.split(':').next().unwrap_or_default();
    let opened = match scheme {
        "sqlite" => sqlite(options).await?,
        "postgres" | "postgresql" => postgres(options).await?,
        _ => {
            let what = "it must start with sqlite: or postgres://".to_owned();
            return Err(Error::Url { what });
        }
    };
    let mut attempts = Attempts::default();
    loop {
        let transaction = begin_write(&opened.write).await?;
        let outcome = async {
            migration::up(&transaction).await?;
            super::keys::check(&transaction, sealer).await
        };
        let outcome = outcome.await;
        if let Some(result) = attempts.settle(transaction, outcome).await {
            return result.map(|()| opened);
        }
    }
}

async fn sqlite(options: &Options) -> Result<Opened, Error> {
    let connect = SqliteConnectOptions::from_str(&options.url).map_err(|error| Error::Url {
        what: error.to_string(),
    })?;
    let connect = connect
        .create_if_missing(true)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .synchronous(SqliteSynchronous::Full)
        .disable_statement_logging();
    let one = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ACQUIRE_TIMEOUT);
    if is_memory(&options.url) {
        // The database lives as long as its one connection. A caller that goes away while the connection is tested for
        // it takes the connection along, so it is not tested.
        let pool = one
            .min_connections(1)
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(connect.shared_cache(false));
        let connection = SqlxSqliteConnector::from_sqlx_sqlite_pool(pool.await.map_err(connect_error)?);
        return Ok(Opened {
            read: connection.clone(),
            write: connection.clone(),
            leading: connection.clone(),
            electing: connection,
            exclusive: true,
            lock: None,
        });
    }
    let path = connect.get_filename().to_owned();
    let lock = lock(&path)?;
    let connect = connect.journal_mode(SqliteJournalMode::Wal);
    let write = one.connect_with(connect.clone()).await.map_err(connect_error)?;
    let read = SqlitePoolOptions::new()
        .max_connections(options.max_connections.max(1))
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_with(connect.pragma("query_only", "ON"))
        .await
        .map_err(connect_error)?;
    // One writer, whoever it is: those who wait for it are served in turn, and each takes milliseconds.
    let write = SqlxSqliteConnector::from_sqlx_sqlite_pool(write);
    Ok(Opened {
        read: SqlxSqliteConnector::from_sqlx_sqlite_pool(read),
        leading: write.clone(),
        electing: write.clone(),
        write,
        exclusive: true,
        lock: Some(lock),
    })
}

fn is_memory(url: &str) -> bool {
    url.contains(":memory:") || url.contains("mode=memory")
}

/// Takes the lock beside the database, and makes the database readable for its owner only before SQLite makes it for all.
fn lock(path: &Path) -> Result<File, Error> {
    let shown = path.display().to_string();
    let failed = |source| Error::File {
        path: shown.clone(),
        source,
    };
    let private = |path: &Path| {
        let mut options = OpenOptions::new();
        options.create(true).read(true).append(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(path)
    };
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let lock = private(Path::new(&beside)).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: shown }),
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    private(path).map_err(failed)?;
    Ok(lock)
}

async fn postgres(options: &Options) -> Result<Opened, Error> {
    // The error of a URL that does not parse may repeat it, with its password.
    let connect = PgConnectOptions::from_str(&options.url)
        .map_err(|_| Error::Url {
            what: "it is not a valid PostgreSQL URL".to_owned(),
        })?
        .application_name("millrace-control-plane")
        .options(POSTGRES_SETTINGS)
        .disable_statement_logging();
    let pool = async |connections: u32| {
        let pool = PgPoolOptions::new()
            .max_connections(connections.max(1))
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(connect.clone());
        let pool = pool.await.map_err(connect_error)?;
        Ok::<_, Error>(SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
    };
    Ok(Opened {
        read: pool(options.max_connections).await?,
        write: pool(options.max_connections).await?,
        leading: pool(LEADING_CONNECTIONS).await?,
        electing: pool(ELECTING_CONNECTIONS).await?,
        exclusive: false,
        lock: None,
    })
}

fn connect_error(error: sqlx::Error) -> Error {
    sea_orm::DbErr::Conn(sea_orm::RuntimeErr::SqlxError(error.into())).into()
}

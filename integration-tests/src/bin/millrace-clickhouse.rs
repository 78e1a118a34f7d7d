//! A real ClickHouse for development: finds an engine (see `millrace_integration_tests::clickhouse`), starts it on
//! loopback, prints where it is, and stops it on SIGTERM or SIGINT.
//!
//! It is also the program that becomes the engine when only the library is there: `millrace-clickhouse engine LIBRARY
//! clickhouse ARGUMENT…` opens `libchdb.so` and runs clickhouse-local's `main`, which can open real listeners. That is a
//! process of its own because the engine owns its process: threads, signals, exit.

use std::ffi::{CString, OsString, c_char, c_int};
use std::io::Write as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Parser;
use millrace_integration_tests::clickhouse::{ClickHouse, ENGINE_COMMAND, Engine, Options};
use tokio::signal::unix::{SignalKind, signal};

/// How often we look whether the engine still runs.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Starts a real ClickHouse on loopback and stays in front of it.
#[derive(Debug, Parser)]
#[command(name = "millrace-clickhouse", version)]
struct Arguments {
    /// Where data, configuration and logs go, and stay; without it they go to a temporary directory, and away.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// The HTTP port; a free one by default.
    #[arg(long)]
    http_port: Option<u16>,
    /// The port of the native protocol; a free one by default.
    #[arg(long)]
    tcp_port: Option<u16>,
    /// The password of the user `millrace`, who may do everything; a random one by default.
    #[arg(long, env = "MILLRACE_CLICKHOUSE_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    /// Writes the HTTP port into this file once the engine answers.
    #[arg(long)]
    port_file: Option<PathBuf>,
}

fn main() -> ExitCode {
    // The message says it all; a backtrace, which `anyhow` would add when asked to, only hides it.
    run().unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "millrace-clickhouse: {error:#}");
        ExitCode::FAILURE
    })
}

fn run() -> anyhow::Result<ExitCode> {
    let mut raw = std::env::args_os().skip(1);
    if raw.next().is_some_and(|command| command == ENGINE_COMMAND) {
        let library = raw.next().context("engine: which library?")?;
        let code = run_library(Path::new(&library), raw)?;
        return Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from));
    }
    let arguments = Arguments::parse();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(serve(arguments))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(arguments: Arguments) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let port_file = arguments.port_file;
    let options = Options {
        data_dir: arguments.data_dir,
        http_port: arguments.http_port,
        tcp_port: arguments.tcp_port,
        password: arguments.password,
        ..Options::default()
    };
    let clickhouse = tokio::select! {
        started = ClickHouse::start(options) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    announce(&clickhouse)?;
    if let Some(path) = port_file {
        write_port(&clickhouse, &path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = look.tick() => {
                let ours = !matches!(clickhouse.engine(), Engine::External(_));
                if ours && clickhouse.pid().is_none() {
                    bail!("ClickHouse ended by itself\n{}", clickhouse.log_tail(30));
                }
            }
        }
    }
    if !matches!(clickhouse.engine(), Engine::External(_)) {
        clickhouse.stop().await?;
    }
    Ok(())
}

fn announce(clickhouse: &ClickHouse) -> std::io::Result<()> {
    let (url, user, password) = (clickhouse.http_url(), clickhouse.user(), clickhouse.password());
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "ClickHouse answers at {url} (HTTP) and {} (native protocol)",
        clickhouse.tcp_addr()
    )?;
    writeln!(out, "user {user}, password {password}")?;
    writeln!(out, "try: curl -u {user}:{password} '{url}/?query=SELECT+version()'")?;
    out.flush()
}

/// Written beside and renamed, so that whoever waits for the file never reads half of it.
fn write_port(clickhouse: &ClickHouse, path: &Path) -> anyhow::Result<()> {
    let url = clickhouse.http_url();
    let port = url
        .rsplit_once(':')
        .map(|(_, port)| port)
        .context("the URL names no port")?;
    let beside = path.with_extension("partial");
    std::fs::write(&beside, format!("{port}\n"))?;
    std::fs::rename(&beside, path)?;
    Ok(())
}

/// Runs clickhouse-local's `main` out of the library; the first argument is the program's name. Returns its exit code.
#[allow(unsafe_code)]
fn run_library(library: &Path, arguments: impl Iterator<Item = OsString>) -> anyhow::Result<c_int> {
    type Main = unsafe extern "C" fn(c_int, *mut *mut c_char) -> c_int;

    let arguments: Vec<CString> = arguments
        .map(|argument| CString::new(argument.into_vec()))
        .collect::<Result<_, _>>()?;
    // `main` may write to its arguments, so each gets memory of its own, which lives until the process ends.
    let mut argv: Vec<*mut c_char> = arguments.into_iter().map(CString::into_raw).collect();
    let argc = c_int::try_from(argv.len())?;
    argv.push(std::ptr::null_mut());

    // SAFETY: the library is ClickHouse; its initialisers run as they would at the start of its own program, and this
    // process has no other thread yet.
    let loaded =
        unsafe { libloading::Library::new(library) }.with_context(|| format!("cannot open {}", library.display()))?;
    // SAFETY: the library declares it as `int chdb_query_cmdline(int argc, char ** argv)`.
    let main: libloading::Symbol<'_, Main> = unsafe { loaded.get(c"chdb_query_cmdline") }
        .with_context(|| format!("{} is not the engine", library.display()))?;
    // SAFETY: `argv` holds `argc` writable C strings and a final null, as C's `main` demands, and outlives the call.
    let code = unsafe { main(argc, argv.as_mut_ptr()) };
    // Unloading would run destructors under the feet of the engine's threads.
    std::mem::forget(loaded);
    Ok(code)
}

//! The Kinesis emulator as a process of its own.
//!
//! Prints one line, its endpoint URL, when it is ready, and runs until it gets SIGTERM or SIGINT. Nothing is kept when
//! it ends.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Parser;
use millrace_integration_tests::kinesis::{Emulator, Options, StreamSpec};
use tokio::signal::unix::{SignalKind, signal};

/// A Kinesis emulator in memory.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Streams to create, as NAME:SHARDS
    #[arg(long = "stream", value_delimiter = ',', value_name = "NAME:SHARDS")]
    streams: Vec<StreamSpec>,
    /// Hold the service's rates per shard, for reads and writes
    #[arg(long)]
    enforce_limits: bool,
    /// The region in ARNs
    #[arg(long, default_value = "us-east-1")]
    region: String,
    /// The account in ARNs
    #[arg(long, default_value = "000000000000")]
    account: String,
    /// A file to write the port to when ready
    #[arg(long, value_name = "PATH")]
    port_file: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    // Before the line is printed: whoever reads it may send a signal at once.
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;

    let emulator = Emulator::start(Options {
        listen: arguments.listen,
        region: arguments.region,
        account: arguments.account,
        streams: arguments.streams,
        enforce_limits: arguments.enforce_limits,
        ..Options::default()
    })
    .await?;
    if let Some(path) = &arguments.port_file {
        write_port(path, emulator.addr().port()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    writeln!(std::io::stdout(), "{}", emulator.endpoint_url()).context("cannot print the endpoint")?;

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    emulator.stop().await;
    Ok(())
}

/// Puts the port into place in one step, so that a reader never sees a part of it.
fn write_port(path: &Path, port: u16) -> std::io::Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, format!("{port}\n"))?;
    std::fs::rename(partial, path)
}

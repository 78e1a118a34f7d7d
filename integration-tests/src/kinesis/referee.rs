//! kinesis-local as referee: an emulator that nobody here wrote, to keep ours honest.
//!
//! It is the npm package `kinesis-local`, run by node. Its settings cannot bind it to loopback, so a preload does. It is
//! right about polling, resharding, filters and paging, and slow: use it with little data. This module starts and ends
//! it; what both emulators must agree on is in the conformance suite.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::options::StreamSpec;
use crate::process::npm_package;

/// The npm package.
const PACKAGE: &str = "kinesis-local";
const ENTRY: &str = "main.js";
/// What it shows a client on its TLS port, which we do not use but cannot turn off.
const CERTIFICATE: &str = "server.json";

/// How long it makes believe that a change takes; half a second each by default.
const DURATIONS: &[&str] = &[
    "CREATE_STREAM_DURATION",
    "DELETE_STREAM_DURATION",
    "MERGE_SHARDS_DURATION",
    "SPLIT_SHARD_DURATION",
    "UPDATE_SHARD_COUNT_DURATION",
];

/// Node needs a second or two; a loaded machine many times that.
const START_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// Another process may take a port between our finding it free and node's listening on it.
const PORT_ATTEMPTS: usize = 3;

/// Every listener of the process goes to loopback, whatever address the program asks for.
const LOOPBACK_PRELOAD: &str = r#"'use strict';
const net = require('node:net');
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (...args) {
  if (args[0] !== null && typeof args[0] === 'object') {
    args[0] = { ...args[0], host: '127.0.0.1' };
  } else if (typeof args[1] === 'string') {
    args[1] = '127.0.0.1';
  } else {
    args.splice(1, 0, '127.0.0.1');
  }
  return listen.apply(this, args);
};
"#;

/// Why the referee is not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The npm package is not where it should be.
    #[error("{PACKAGE} is not installed: run deploy/dev/tools.sh test")]
    NotInstalled,
    /// Files or processes failed.
    #[error("cannot start node")]
    Io(#[from] io::Error),
    /// It ended before it answered.
    #[error("kinesis-local ended with {status}: {output}")]
    Ended {
        /// How.
        status: ExitStatus,
        /// The end of what it printed.
        output: String,
    },
    /// It did not answer in time.
    #[error("kinesis-local does not answer after {START_LIMIT:?}")]
    Silent,
}

/// A running kinesis-local. It is killed when this is dropped.
#[derive(Debug)]
pub struct Referee {
    child: Child,
    address: SocketAddr,
    directory: TempDir,
}

impl Referee {
    /// Starts it on a free port with `streams`, and waits until it answers.
    ///
    /// # Errors
    /// If it is not installed or does not come up.
    pub async fn start(streams: &[StreamSpec]) -> Result<Self, Error> {
        let mut attempt = 1;
        loop {
            match Self::start_once(streams).await {
                Err(Error::Ended { output, .. }) if attempt < PORT_ATTEMPTS && output.contains("EADDRINUSE") => {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// What to give an AWS client as endpoint URL.
    #[must_use]
    pub fn endpoint_url(&self) -> String {
        format!("http://{}", self.address)
    }

    async fn start_once(streams: &[StreamSpec]) -> Result<Self, Error> {
        let package = npm_package(PACKAGE).ok_or(Error::NotInstalled)?;
        let directory = TempDir::new()?;
        let preload = directory.path().join("loopback.js");
        std::fs::write(&preload, LOOPBACK_PRELOAD)?;
        let output = std::fs::File::create(directory.path().join("output"))?;
        let [plain, tls] = free_ports()?;
        let initial: Vec<_> = streams
            .iter()
            .map(|spec| format!("{}:{}", spec.name, spec.shards))
            .collect();
        let mut command = Command::new("node");
        command
            .arg("-r")
            .arg(&preload)
            .arg(package.join(ENTRY))
            .current_dir(directory.path())
            .env("KINESIS_MOCK_PLAIN_PORT", plain.to_string())
            .env("KINESIS_MOCK_TLS_PORT", tls.to_string())
            .env("KINESIS_MOCK_CERT_PATH", package.join(CERTIFICATE))
            .env("SHARD_LIMIT", "1000")
            .envs(DURATIONS.iter().map(|name| (name, "50ms")))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        if !streams.is_empty() {
            command.env("INITIALIZE_STREAMS", initial.join(","));
        }
        let child = command.spawn()?;
        let mut referee = Self {
            child,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, plain)),
            directory,
        };
        referee.wait_until_it_answers().await?;
        Ok(referee)
    }

    async fn wait_until_it_answers(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + START_LIMIT;
        // It listens only after its streams exist.
        while TcpStream::connect(self.address).await.is_err() {
            if let Some(status) = self.child.try_wait()? {
                return Err(Error::Ended {
                    status,
                    output: self.output(),
                });
            }
            if Instant::now() > deadline {
                return Err(Error::Silent);
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    fn output(&self) -> String {
        const SHOWN: usize = 2_000;
        let text = std::fs::read(self.directory.path().join("output")).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(SHOWN)..]).into_owned()
    }
}

impl Drop for Referee {
    fn drop(&mut self) {
        // It may have ended by itself; and it keeps nothing, so a kill is as good as any end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two ports that were free a moment ago: held together, so that they differ.
fn free_ports() -> io::Result<[u16; 2]> {
    let listeners = [
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?,
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?,
    ];
    Ok([listeners[0].local_addr()?.port(), listeners[1].local_addr()?.port()])
}

//! `millrace standalone`: both planes in one process, on SQLite. They still speak gRPC with each other, so nothing is
//! different from a control plane and a worker on two machines.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use clap::Args;
use millrace_common::{aws, crypto::Sealer, error::chain, grpc::Access, ids::WorkerId, shutdown, telemetry};
use millrace_control_plane::{
    app as control_plane,
    auth::{Auth, own_token},
    config::{AuthOptions, read_key},
};
use millrace_data_plane::{app as worker, lane};
use secrecy::ExposeSecret as _;
use tokio_util::sync::CancellationToken;

use crate::{exit::Error, output};

/// Id of the one worker: the same at every start, so that it gets its shards back at once.
const WORKER: &str = "standalone";

/// Options of `millrace standalone`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Directory for the database and the key that seals credentials. Keep a copy of both.
    #[arg(long, env = "MILLRACE_DATA_DIR", default_value = "millrace-data", value_name = "DIR")]
    data_dir: PathBuf,
    /// Address to listen on.
    #[arg(
        long,
        env = "MILLRACE_LISTEN",
        default_value = "127.0.0.1:7400",
        value_name = "ADDRESS"
    )]
    listen: SocketAddr,
    /// Bytes that may be held between Kinesis and ClickHouse.
    #[arg(long, env = "MILLRACE_MEMORY_BYTES", default_value_t = worker::DEFAULT_MEMORY_BYTES, value_name = "BYTES")]
    memory_bytes: u64,
    #[command(flatten)]
    auth: AuthOptions,
    #[command(flatten)]
    aws: aws::Options,
    #[command(flatten)]
    telemetry: telemetry::Options,
}

/// Runs until SIGTERM or SIGINT: then the worker drains, and the control plane, which it needs for that, ends after it.
pub(crate) async fn run(options: Options) -> Result<(), Error> {
    telemetry::init(&options.telemetry).map_err(|error| Error::Local(format!("--log-level: {error}")))?;
    let asked = shutdown::on_signal().map_err(|error| Error::Local(format!("cannot listen for signals: {error}")))?;
    std::fs::create_dir_all(&options.data_dir).map_err(|error| {
        Error::Local(format!(
            "--data-dir: cannot make {}: {error}",
            options.data_dir.display()
        ))
    })?;
    let key = read_key(&options.data_dir.join("millrace.key"), true).map_err(Error::Local)?;
    let sealer = Sealer::from_hex(&key).map_err(|error| Error::Local(format!("millrace.key: {error}")))?;
    let database = format!("sqlite://{}", options.data_dir.join("millrace.db").display());
    let mut control_plane_options = control_plane::Options {
        listen: options.listen,
        ..control_plane::Options::new(database, Arc::new(sealer))
    };
    let mut errors = Vec::new();
    let aws = options.aws.settings(&mut errors);
    if !errors.is_empty() {
        return Err(Error::Local(errors.join("; ")));
    }
    control_plane_options.discovery.aws = aws.clone().into();
    let tls = options.auth.tls().map_err(Error::Local)?;
    if tls.is_some() {
        return Err(Error::Local(
            "--tls-cert-file: standalone does not serve TLS: run millrace-control-plane and millrace-worker, or put a proxy in front"
                .to_owned(),
        ));
    }
    let mut auth = options.auth.auth(Some(&options.listen)).map_err(Error::Local)?;
    let mut access = Access::default();
    // The worker of this process proves itself with a token that nobody else has.
    if let Auth::Tokens { worker, .. } = &mut auth {
        let token = match worker {
            Some(token) => token.clone(),
            None => Arc::new(own_token().map_err(|error| failed(&error))?),
        };
        access = Access::with_token(token.expose_secret())
            .map_err(|error| Error::Local(format!("--worker-token-file {error}")))?;
        *worker = Some(token);
    }
    control_plane_options.auth = auth;
    control_plane_options.browsers = options.auth.browsers().map_err(Error::Local)?;
    let end_control_plane = CancellationToken::new();
    let running = control_plane::App::start(control_plane_options, end_control_plane.clone())
        .await
        .map_err(|error| failed(&error))?;
    let url = format!("http://{}", running.addr);
    output::line(&format!("Millrace is ready at {url}"))?;

    let id: WorkerId = WORKER.parse().map_err(|error| Error::Local(format!("{error}")))?;
    let worker_options = worker::Options {
        memory_bytes: options.memory_bytes,
        access,
        lane: lane::Settings {
            aws,
            ..lane::Settings::default()
        },
        ..worker::Options::new(url, id)
    };
    let worked = Box::pin(worker::run(worker_options, asked)).await;
    end_control_plane.cancel();
    running.stopped().await.map_err(|error| failed(&error))?;
    worked.map_err(|error| failed(&error))
}

/// An error with its causes, on one line.
fn failed(error: &(dyn std::error::Error + 'static)) -> Error {
    Error::Local(chain(error))
}

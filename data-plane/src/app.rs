//! A worker put together: session, supervisor, and what they share.

use std::{io, net::SocketAddr, sync::Arc, thread::available_parallelism, time::Duration};

use millrace_common::{
    clock::Clock,
    grpc::{self, Access},
    ids::{Incarnation, WorkerId, WorkerInstance},
    shutdown::DRAIN_DEADLINE,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

use crate::{
    commit::GrpcControlPlane,
    lane::{self, status::Board},
    session::{self, Session, planes::ControlPlanes},
    source::Budget,
    supervisor::Supervisor,
};

/// Memory of a worker that nobody has said anything about.
pub const DEFAULT_MEMORY_BYTES: u64 = 256 * 1024 * 1024;

/// What a worker is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// URLs of the control planes, one at least.
    pub control_planes: Vec<String>,
    /// What to prove oneself by there.
    pub access: Access,
    /// Stable id.
    pub worker: WorkerId,
    /// Bytes that may be held between Kinesis and ClickHouse.
    pub memory_bytes: u64,
    /// Where to serve the gRPC health service.
    pub health_listen: Option<SocketAddr>,
    /// How patient lanes are.
    pub lane: lane::Settings,
    /// Wall clock.
    pub clock: Clock,
    /// Time for draining.
    pub drain_deadline: Duration,
}

impl Options {
    /// Options with defaults.
    pub fn new(control_plane: impl Into<String>, worker: WorkerId) -> Self {
        Self {
            control_planes: vec![control_plane.into()],
            access: Access::default(),
            worker,
            memory_bytes: DEFAULT_MEMORY_BYTES,
            health_listen: None,
            lane: lane::Settings::default(),
            clock: Clock::System,
            drain_deadline: DRAIN_DEADLINE,
        }
    }
}

/// Why a worker cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A control plane's URL is none.
    #[error("a control plane's URL cannot be used")]
    Url(#[source] tonic::transport::Error),
    /// A part of it ended although nothing asked it to: a defect, after which only a new process helps.
    #[error("the {0} ended early")]
    Ended(&'static str),
    /// The address for the health service cannot be had.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Runs a worker until `shutdown` is cancelled and its lanes are drained, or the drain deadline has passed.
///
/// # Errors
/// If it cannot start. A control plane that cannot be reached is no error: it is waited for.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let worker = WorkerInstance {
        worker: options.worker,
        incarnation: Incarnation::new(),
    };
    let planes = ControlPlanes::new(&options.control_planes, &options.access).map_err(Error::Url)?;
    let health = match options.health_listen {
        Some(address) => Some(serve_health(address).await?),
        None => None,
    };
    tracing::info!(%worker, control_planes = options.control_planes.join(","), memory_bytes = options.memory_bytes, "worker");

    let cores = available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX));
    let board = Board::new();
    let (desired, assignments) = watch::channel(None);
    let context = lane::Context {
        control: Arc::new(GrpcControlPlane::new(worker.clone(), planes.clone())),
        budget: Budget::new(usize::try_from(options.memory_bytes).unwrap_or(usize::MAX)),
        board: board.clone(),
        settings: options.lane,
        clock: options.clock,
        spare_cores: Arc::new(Semaphore::new(cores.saturating_sub(1) as usize)),
    };
    let session = session::Options {
        worker,
        cores,
        memory_bytes: options.memory_bytes,
    };
    let session = Session::new(session, planes, board, desired);
    let close = CancellationToken::new();
    let mut talking = tokio::spawn(session.run(shutdown.clone(), options.drain_deadline, close.clone()));
    let mut supervising = tokio::spawn(Supervisor::new(context, assignments).run(shutdown.clone()));

    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        _ = &mut talking => return Err(Error::Ended("session")),
        _ = &mut supervising => return Err(Error::Ended("supervisor")),
    }
    match timeout(options.drain_deadline, &mut supervising).await {
        Ok(Ok(())) => tracing::info!("drained"),
        Ok(Err(_)) => tracing::error!("the supervisor ended in a panic"),
        Err(_) => {
            tracing::warn!("not drained in time: prepared batches stay open for the next owner");
            supervising.abort();
        }
    }
    close.cancel();
    if talking.await.is_err() {
        tracing::error!("the session ended in a panic");
    }
    if let Some(health) = health {
        health.abort();
    }
    Ok(())
}

/// Serves grpc.health.v1: SERVING for as long as the process runs. A worker without a control plane is healthy: to
/// restart it would not help.
async fn serve_health(address: SocketAddr) -> Result<tokio::task::JoinHandle<()>, Error> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| Error::Listen { address, source })?;
    let (_, service) = tonic_health::server::health_reporter();
    Ok(tokio::spawn(async move {
        let served = grpc::server()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await;
        if let Err(error) = served {
            tracing::error!(error = &error as &dyn std::error::Error, "health service ended");
        }
    }))
}

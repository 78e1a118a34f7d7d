//! The control plane as one value: opens the database, stands for election, starts the gRPC server and, while it leads,
//! everything that only a leader does (`duty`); and ends them in order. The binary, `millrace standalone` and the tests all
//! start it here.
//!
//! Invariant: after `shutdown` is cancelled everything ends within the drain deadline, whatever clients do.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Method, header};
use millrace_common::{
    clock::Clock,
    crypto::Sealer,
    grpc::{self, ServerTls},
    shutdown,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tower_http::cors::CorsLayer;

use crate::{
    api::Api,
    auth::{self, Auth, Guard},
    coordinator::{self, Coordinator},
    destination, discovery,
    endpoint::Policy,
    leader::{self, Candidate, Elector},
    rest,
    store::{self, Store},
};

mod duty;
mod keys;

/// How long browsers go by what they were told of who may call.
const BROWSERS_REMEMBER: Duration = Duration::from_secs(600);

/// How to run a control plane.
#[derive(Clone)]
pub struct Options {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// URL under which workers reach this control plane, for the others to send them here; the address that it listens on,
    /// if `None`.
    pub advertise: Option<String>,
    /// Leading, where several control planes share a database.
    pub leader: leader::Options,
    /// Database.
    pub database: store::Options,
    /// The key of stored secrets.
    pub sealer: Arc<Sealer>,
    /// Leases and placement.
    pub coordinator: coordinator::Options,
    /// Looking at streams.
    pub discovery: discovery::Options,
    /// Looking at tables.
    pub destination: destination::Options,
    /// Which endpoints pipes may name.
    pub endpoints: Policy,
    /// How callers are known.
    pub auth: Auth,
    /// Origins, such as `https://console.example.com`, whose pages may call.
    pub browsers: Vec<HeaderValue>,
    /// TLS of the server; plain if `None`.
    pub tls: Option<ServerTls>,
    /// Wall clock.
    pub clock: Clock,
    /// How long ending may take.
    pub drain: Duration,
}

impl Options {
    /// Usual settings on this database, at a free port of the loopback interface.
    pub fn new(database: impl Into<String>, sealer: Arc<Sealer>) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            leader: leader::Options::default(),
            database: store::Options::new(database),
            sealer,
            coordinator: coordinator::Options::default(),
            discovery: discovery::Options::default(),
            destination: destination::Options::default(),
            endpoints: Policy::default(),
            auth: Auth::default(),
            browsers: Vec::new(),
            tls: None,
            clock: Clock::System,
            drain: shutdown::DRAIN_DEADLINE,
        }
    }
}

/// Why a control plane did not start or did not run on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The database cannot be used.
    #[error("cannot open the database")]
    Store(#[from] store::Error),
    /// The server ended by itself.
    #[error("the gRPC server failed")]
    Server(#[source] tonic::transport::Error),
    /// The certificate or its key cannot be used.
    #[error("the TLS certificate or its key cannot be used")]
    Tls(#[source] tonic::transport::Error),
    /// The reflection service does not take our own descriptors.
    #[error("the embedded protocol descriptors are not valid")]
    Descriptors(#[source] tonic_reflection::server::Error),
    /// The protocol does not say how all of it is called over HTTP.
    #[error("the embedded protocol has no HTTP form")]
    Rest(#[source] rest::Error),
    /// A task panicked.
    #[error("a part of the control plane panicked")]
    Panic(#[source] tokio::task::JoinError),
}

/// The control plane.
pub struct App;

/// A control plane that runs.
pub struct Running {
    /// The address that it listens on.
    pub addr: SocketAddr,
    /// Its database.
    pub store: Store,
    /// Its coordinator.
    pub coordinator: coordinator::Handle,
    task: JoinHandle<Result<(), Error>>,
    /// Whether it leads.
    pub election: leader::Handle,
}

impl Running {
    /// Waits until it has ended: after `shutdown` was cancelled, or because the server failed.
    ///
    /// # Errors
    /// If it did not end in order.
    pub async fn stopped(self) -> Result<(), Error> {
        self.task.await.map_err(Error::Panic)?
    }
}

impl App {
    /// Starts a control plane; it answers when this returns.
    ///
    /// # Errors
    /// If the database cannot be opened or the address not listened on.
    pub async fn start(options: Options, shutdown: CancellationToken) -> Result<Running, Error> {
        let server = grpc::server();
        let server = match &options.tls {
            Some(tls) => tls.apply(server).map_err(Error::Tls)?,
            None => server,
        };
        if !options.listen.ip().is_loopback() {
            if options.tls.is_none() {
                tracing::warn!(addr = %options.listen, "listening beyond this machine without TLS: secrets travel in the clear");
            }
            if matches!(options.auth, Auth::None) {
                tracing::warn!(addr = %options.listen, "listening beyond this machine without tokens: everybody may do everything");
            }
        }
        let listener = TcpListener::bind(options.listen)
            .await
            .map_err(|source| Error::Listen {
                address: options.listen,
                source,
            })?;
        let addr = listener.local_addr().map_err(|source| Error::Listen {
            address: options.listen,
            source,
        })?;
        let store = Store::open(&options.database, options.sealer.clone(), options.clock.clone()).await?;
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        let (coordinator, handle) = Coordinator::new(store.clone(), options.clock.clone(), options.coordinator.clone());
        let me = Candidate::new(options.advertise.clone().unwrap_or_else(|| dialled(scheme, addr)));
        let (elector, election) = Elector::new(store.clone(), me, options.leader.clone());
        let parts = Parts {
            listener,
            store: store.clone(),
            coordinator,
            handle: handle.clone(),
            elector,
            election: election.clone(),
            options,
            server,
            shutdown,
        };
        let task = tokio::spawn(Box::pin(parts.run()));
        tracing::info!(%addr, "the control plane listens");
        Ok(Running {
            addr,
            store,
            coordinator: handle,
            task,
            election,
        })
    }
}

/// How an address is dialled; empty if it is every address of this machine, which says nothing to others.
fn dialled(scheme: &str, addr: SocketAddr) -> String {
    if addr.ip().is_unspecified() {
        return String::new();
    }
    format!("{scheme}://{addr}")
}

struct Parts {
    listener: TcpListener,
    store: Store,
    coordinator: Coordinator,
    handle: coordinator::Handle,
    elector: Elector,
    election: leader::Handle,
    options: Options,
    server: Server,
    shutdown: CancellationToken,
}

impl Parts {
    async fn run(self) -> Result<(), Error> {
        let Parts {
            listener,
            store,
            coordinator,
            handle,
            elector,
            election,
            options,
            server,
            shutdown,
        } = self;
        // Duties end for good when this is cancelled, or when the process is asked to end.
        let ending = shutdown.child_token();
        let _ended = ending.clone().drop_guard();
        let workers = coordinator.service();
        let (closing, clickhouse) = (handle.clone(), destination::Client::new());
        let api = Api::new(
            store.clone(),
            handle,
            clickhouse.clone(),
            options.endpoints.clone(),
            options.sealer.clone(),
            options.discovery.aws.clone(),
            options.clock.clone(),
            shutdown.clone(),
        );
        let (health, health_service) = tonic_health::server::health_reporter();
        let pipes = api.pipes();
        let credentials = api.credentials();
        let (access, finding, tokens, rejected) = (api.access(), api.discovery(), api.tokens(), api.rejected_records());
        let services = [
            name_of(&pipes),
            name_of(&credentials),
            name_of(&access),
            name_of(&finding),
            name_of(&rejected),
            name_of(&tokens),
        ];
        set_serving(&health, &services).await;
        let rest = rest::Layer::new(matches!(options.auth, Auth::None)).map_err(Error::Rest)?;
        let guard = Guard::new(options.auth.clone(), store.clone(), options.clock.clone());
        let duty = duty::Duty {
            store: store.clone(),
            coordinator,
            clickhouse,
            api,
            discovery: options.discovery.clone(),
            destination: options.destination.clone(),
            clock: options.clock.clone(),
            health: duty::Health::of(&health, &workers),
        };
        let mut electing = tokio::spawn(Box::pin(elector.run(ending.clone())));
        let mut on_duty = tokio::spawn(Box::pin(duty.run(election, ending.clone())));
        tokio::spawn(keys::reseal(store.clone(), ending.clone()));
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(millrace_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(Error::Descriptors)?;
        let stop = shutdown.clone();
        let serving = server
            .accept_http1(true)
            .layer(cors(&options.browsers))
            .layer(rest)
            .layer(tonic_web::GrpcWebLayer::new())
            .layer(auth::Layer::new(guard))
            .add_service(health_service)
            .add_service(reflection)
            .add_service(pipes)
            .add_service(credentials)
            .add_service(access)
            .add_service(finding)
            .add_service(tokens)
            .add_service(rejected)
            .add_service(workers)
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async move {
                stop.cancelled().await;
                // Streams that never end by themselves would keep the server from ending.
                closing.close_sessions();
            });
        // The place is given up first and at once; workers can commit for as long as they are connected.
        let serving = shutdown::within(&shutdown, options.drain, serving);
        let (mut elected, mut done) = (None, None);
        tokio::pin!(serving);
        let served = loop {
            tokio::select! {
                biased;
                served = &mut serving => break served,
                result = &mut electing, if elected.is_none() => elected = Some(result),
                result = &mut on_duty, if done.is_none() => done = Some(result),
            }
            // Without either of them this process would hold the place and do nothing with it.
            let panicked = [&elected, &done].into_iter().flatten().any(Result::is_err);
            if panicked {
                shutdown.cancel();
            }
        };
        // Idle clients may keep a graceful shutdown waiting for ever.
        let served = served.map_or_else(
            || {
                tracing::warn!(
                    seconds = options.drain.as_secs(),
                    "clients are still connected: closing on them"
                );
                Ok(())
            },
            |served| served.map_err(Error::Server),
        );
        ending.cancel();
        let rest = async {
            if elected.is_none() {
                elected = Some(electing.await);
            }
            if done.is_none() {
                done = Some(on_duty.await);
            }
        };
        if tokio::time::timeout(options.drain, rest).await.is_err() {
            tracing::warn!("background work did not end in time: leaving it");
        }
        store.close().await;
        for result in [elected, done].into_iter().flatten() {
            result.map_err(Error::Panic)?;
        }
        tracing::info!("the control plane has ended");
        served
    }
}

/// What browsers are told of who may call: pages of these origins.
fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let gives = [header::AUTHORIZATION, header::CONTENT_TYPE]
        .into_iter()
        .chain(["x-grpc-web", "x-user-agent", "grpc-timeout"].map(HeaderName::from_static));
    let gets = ["grpc-status", "grpc-message", "grpc-status-details-bin"].map(HeaderName::from_static);
    CorsLayer::new()
        .allow_origin(origins.to_vec())
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
        .allow_headers(gives.collect::<Vec<_>>())
        .expose_headers(gets)
        .max_age(BROWSERS_REMEMBER)
}

/// Name of a service, as health is asked for.
fn name_of<S: tonic::server::NamedService>(_service: &S) -> &'static str {
    S::NAME
}

/// Health of each service that users call; that of the workers' service depends on who leads.
async fn set_serving(health: &tonic_health::server::HealthReporter, services: &[&str]) {
    for service in services {
        health
            .set_service_status(service, tonic_health::ServingStatus::Serving)
            .await;
    }
}

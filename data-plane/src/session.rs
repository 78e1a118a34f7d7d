//! The worker's conversation with the control plane: it says what it holds and learns what it should run.
//!
//! ```text
//!            connect          Hello            Welcome
//!   idle ------------> stream -----> waiting ----------> talking --- AssignmentSet --> watch --> supervisor
//!    ^                    |             |                  |    <-- Report, each heartbeat or at once -- Board
//!    '------ backoff -----'-------------'------------------'
//! ```
//!
//! It is not the lease: a broken session costs nothing until the control plane's TTL has passed, and lanes run on through
//! it. Whether a lane may still advance a shard is decided by PrepareBatch and by nothing in this process.
//!
//! Of several control planes one takes sessions: the worker tries them in turn, and goes where they send it
//! ([`planes`]). A control plane that says nothing, not even its heartbeat, is as good as gone.
//!
//! Invariants:
//! - the state goes whole, both ways; nothing depends on what was said before;
//! - within a session generations rise; another session begins anew, because its control plane may.

pub(crate) mod convert;
pub mod planes;

use std::time::Duration;

use millrace_common::{
    error::{metadata, reason},
    fail_point,
    grpc::{self, Link},
    ids::{Generation, WorkerInstance},
    reason::{LEADER_METADATA, NOT_LEADER},
    retry::Backoff,
};
use millrace_proto::worker::v1::{
    self as wire, session_request, session_response, worker_service_client::WorkerServiceClient,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use self::planes::ControlPlanes;
use crate::lane::{spec::Assignment, status::Board};

/// Oldest protocol that this worker speaks.
const PROTOCOL_MIN: u32 = 1;
/// Newest protocol that this worker speaks. It rises with each field of a pipe that a worker must not pass over: a control plane
/// gives pipes that say such a thing to nobody who does not know it.
const PROTOCOL_MAX: u32 = 2;
/// First and longest wait before connecting again: soon enough to renew the leases, and thousands of workers do not come
/// back together.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long the control plane may take to accept a session: a frozen one takes connections and says nothing.
const WELCOME_DEADLINE: Duration = Duration::from_secs(5);
/// Heartbeats that a control plane may miss before it is given up. Half of the lease is waited for in any case, so that the
/// other half is left for finding another one.
const MISSED_HEARTBEATS: u32 = 3;
/// Heartbeats are not slower or faster than this, whatever the control plane asks for.
const HEARTBEAT_RANGE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(60));
/// Reports that wait to be sent. Each is whole, so a longer queue would only hold older ones.
const OUTBOX: usize = 2;
/// A control plane that does not take a report for this long is as good as gone.
const SEND_DEADLINE: Duration = Duration::from_secs(10);
/// How long the control plane may take to end a session that this worker has ended.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);
/// Reason of a control plane that ends.
const SHUTTING_DOWN: &str = "SHUTTING_DOWN";
/// Urgent reports do not follow each other faster than this.
const URGENT_PAUSE: Duration = Duration::from_millis(10);

/// Everything that this worker should run.
#[derive(Debug, Clone)]
pub struct AssignmentSet {
    /// Its version.
    pub generation: Generation,
    /// Pipes.
    pub lanes: Vec<Assignment>,
}

/// What the control plane is told of a worker.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who.
    pub worker: WorkerInstance,
    /// Processor cores.
    pub cores: u32,
    /// Bytes between Kinesis and ClickHouse.
    pub memory_bytes: u64,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The control plane ended it or cannot be reached.
    #[error("{}: {}", .0.code(), .0.message())]
    Status(Box<Status>),
    /// The control plane closed the stream.
    #[error("the control plane closed the session")]
    Closed,
    /// It did not answer in time.
    #[error("the control plane did not {0} in time")]
    Timeout(&'static str),
    /// It sent something else than the protocol says.
    #[error("the control plane does not keep to the protocol: {0}")]
    Protocol(String),
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Error::Status(Box::new(status))
    }
}

impl Error {
    /// What it says about the control plane: whether another one is to be tried, and whether at once.
    fn note(&self, planes: &ControlPlanes, url: &str) -> bool {
        let status = match self {
            Error::Status(status) => status,
            Error::Closed | Error::Timeout(_) | Error::Protocol(_) => {
                planes.unreachable(url);
                return false;
            }
        };
        match reason(status).as_deref() {
            Some(NOT_LEADER) => planes.not_leader(url, metadata(status, LEADER_METADATA).as_deref()),
            // It is there, and has something against this worker or this session.
            Some(reason) if reason != SHUTTING_DOWN => false,
            _ => {
                planes.unreachable(url);
                false
            }
        }
    }
}

/// The worker's side of the conversation.
#[derive(Debug)]
pub struct Session {
    options: Options,
    planes: ControlPlanes,
    board: Board,
    desired: watch::Sender<Option<AssignmentSet>>,
}

impl Session {
    /// A session that is not connected yet. What the control plane wants goes to `desired`.
    pub fn new(
        options: Options,
        planes: ControlPlanes,
        board: Board,
        desired: watch::Sender<Option<AssignmentSet>>,
    ) -> Self {
        Self {
            options,
            planes,
            board,
            desired,
        }
    }

    /// Talks until `close` is cancelled, reconnecting as often as needed. Once `leave` is cancelled the control plane is
    /// told that the worker will end within `deadline`; until `close` it still hears what is released.
    pub async fn run(self, leave: CancellationToken, deadline: Duration, close: CancellationToken) {
        let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
        let mut sent_on = false;
        while !close.is_cancelled() {
            let started = Instant::now();
            let (url, outcome) = self.talk(&leave, deadline, &close).await;
            let Err(error) = outcome else {
                break;
            };
            if started.elapsed() > RECONNECT.1 {
                backoff.reset();
            }
            // Two that send to each other are not to be asked without a pause.
            sent_on = error.note(&self.planes, &url) && !sent_on;
            let delay = if sent_on { Duration::ZERO } else { backoff.delay() };
            tracing::warn!(
                control_plane = url,
                error = &error as &dyn std::error::Error,
                ?delay,
                "no session with the control plane"
            );
            close.run_until_cancelled(tokio::time::sleep(delay)).await;
        }
        tracing::debug!("session closed");
    }

    /// One connection, until it breaks or `close` is cancelled. Gives the control plane that it was with.
    async fn talk(
        &self,
        leave: &CancellationToken,
        deadline: Duration,
        close: &CancellationToken,
    ) -> (String, Result<(), Error>) {
        let (url, channel) = match self.planes.current() {
            Ok(current) => current,
            Err(error) => return (String::new(), Err(Error::Protocol(error.to_string()))),
        };
        let client = WorkerServiceClient::new(channel)
            .max_decoding_message_size(grpc::MAX_SESSION_MESSAGE_BYTES)
            .max_encoding_message_size(grpc::MAX_SESSION_MESSAGE_BYTES);
        let conversation = async {
            let Some(connection) = close.run_until_cancelled(self.connect(client)).await else {
                return Ok(());
            };
            let mut connection = connection?;
            self.planes.leads(&url);
            tracing::info!(worker = %self.options.worker, control_plane = url, heartbeat = ?connection.heartbeat, "session");
            connection.converse(self, leave, deadline, close).await?;
            connection.close(self).await;
            Ok(())
        };
        let outcome = conversation.await;
        (url, outcome)
    }

    async fn connect(&self, mut client: WorkerServiceClient<Link>) -> Result<Connection, Error> {
        self.board.forget_generations();
        let (outbox, requests) = mpsc::channel(OUTBOX);
        let hello = session_request::Message::Hello(self.hello());
        // There is room: the channel is new.
        let _ = outbox.try_send(wire::SessionRequest { message: Some(hello) });
        let accept = async {
            let mut inbox = client.session(ReceiverStream::new(requests)).await?.into_inner();
            let first = inbox.message().await?.ok_or(Error::Closed)?;
            Ok::<_, Error>((inbox, first))
        };
        let (inbox, first) = timeout(WELCOME_DEADLINE, accept)
            .await
            .map_err(|_| Error::Timeout("accept"))??;
        let (heartbeat, silence) = welcomed(&first)?;
        Ok(Connection {
            outbox,
            inbox,
            heartbeat,
            silence,
            generation: None,
        })
    }

    fn hello(&self) -> wire::Hello {
        let capacity = wire::Capacity {
            cores: self.options.cores,
            memory_bytes: self.options.memory_bytes,
        };
        wire::Hello {
            worker: Some(convert::to_identity(&self.options.worker)),
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            capacity: Some(capacity),
            report: Some(self.report()),
        }
    }

    fn report(&self) -> wire::Report {
        let (generation, lanes) = self.board.snapshot();
        convert::to_report(generation, lanes)
    }
}

/// The heartbeat that the control plane asks for, and how long it may say nothing.
fn welcomed(response: &wire::SessionResponse) -> Result<(Duration, Duration), Error> {
    let Some(session_response::Message::Welcome(welcome)) = &response.message else {
        return Err(Error::Protocol("the first message is not a Welcome".to_owned()));
    };
    if !(PROTOCOL_MIN..=PROTOCOL_MAX).contains(&welcome.protocol) {
        return Err(Error::Protocol(format!(
            "protocol {} was not offered",
            welcome.protocol
        )));
    }
    let duration = |name, value| convert::duration(name, value).map_err(|error| Error::Protocol(error.to_string()));
    let heartbeat = duration("welcome.heartbeat_interval", welcome.heartbeat_interval)?;
    let heartbeat = heartbeat.clamp(HEARTBEAT_RANGE.0, HEARTBEAT_RANGE.1);
    let lease = duration("welcome.lease_ttl", welcome.lease_ttl)?;
    Ok((heartbeat, (heartbeat * MISSED_HEARTBEATS).max(lease / 2)))
}

/// A session that was accepted.
#[derive(Debug)]
struct Connection {
    outbox: mpsc::Sender<wire::SessionRequest>,
    inbox: Streaming<wire::SessionResponse>,
    heartbeat: Duration,
    silence: Duration,
    generation: Option<Generation>,
}

impl Connection {
    /// Until it breaks, or `close` is cancelled.
    async fn converse(
        &mut self,
        session: &Session,
        leave: &CancellationToken,
        deadline: Duration,
        close: &CancellationToken,
    ) -> Result<(), Error> {
        let mut heartbeat = tokio::time::interval(self.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leaving = false;
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = close.cancelled() => return Ok(()),
                message = self.inbox.message() => {
                    heard = Instant::now();
                    self.heard(session, message)?;
                }
                () = tokio::time::sleep_until(heard + self.silence) => return Err(Error::Timeout("say anything")),
                () = leave.cancelled(), if !leaving => {
                    leaving = true;
                    self.say(session_request::Message::Leave(wire::Leave {
                        deadline: Some(convert::to_duration(deadline)),
                    })).await?;
                }
                () = session.board.urgent() => {
                    // What happens together is reported together.
                    tokio::time::sleep_until(Instant::now() + URGENT_PAUSE).await;
                    let report = session.report();
                    let finished = report.lanes.iter().flat_map(|lane| &lane.shards).any(|shard| shard.finished);
                    self.say(session_request::Message::Report(report)).await?;
                    if finished {
                        fail_point!("worker.finish.reported");
                    }
                }
                _ = heartbeat.tick() => self.say(session_request::Message::Report(session.report())).await?,
            }
        }
    }

    /// A last report, and the end of the stream, so that the control plane need not wait for the leases to end.
    async fn close(mut self, session: &Session) {
        if self
            .say(session_request::Message::Report(session.report()))
            .await
            .is_err()
        {
            return;
        }
        drop(self.outbox);
        let ended = async { while let Ok(Some(_)) = self.inbox.message().await {} };
        // The process is about to end, whatever the other side does.
        let _ = timeout(CLOSE_DEADLINE, ended).await;
    }

    async fn say(&self, message: session_request::Message) -> Result<(), Error> {
        let request = wire::SessionRequest { message: Some(message) };
        match timeout(SEND_DEADLINE, self.outbox.send(request)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(Error::Timeout("take a report")),
        }
    }

    fn heard(
        &mut self,
        session: &Session,
        message: Result<Option<wire::SessionResponse>, Status>,
    ) -> Result<(), Error> {
        let set = match message?.ok_or(Error::Closed)?.message {
            Some(session_response::Message::AssignmentSet(set)) => set,
            Some(session_response::Message::Welcome(_)) => {
                return Err(Error::Protocol("a second Welcome".to_owned()));
            }
            // And a kind of message that this version does not know.
            Some(session_response::Message::Heartbeat(_)) | None => return Ok(()),
        };
        let set = convert::assignment_set(set).map_err(|error| Error::Protocol(error.to_string()))?;
        if self.generation.is_some_and(|newest| set.generation <= newest) {
            return Ok(());
        }
        tracing::debug!(generation = set.generation.0, lanes = set.lanes.len(), "assignment");
        self.generation = Some(set.generation);
        session.desired.send_replace(Some(set));
        Ok(())
    }
}

#[cfg(test)]
mod tests;

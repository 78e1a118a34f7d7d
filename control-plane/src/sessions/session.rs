//! One session: a function for each of its states.
//!
//! ```text
//!   handshake --Hello is good--> serve --stream ends, replaced, shut down, or garbage--> closed
//! ```
//!
//! Bounds: one set waits to be sent, the latest. A worker that does not take it in time is disconnected, as is one that
//! floods with reports. Neither costs it its leases before their time. Each heartbeat interval the worker is told that this
//! side is there, so that it need not wait for the transport to find out that a control plane is frozen.

use std::{sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _};
use millrace_common::error::ApiError;
use millrace_proto::worker::v1::{self, session_request, session_response};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{
    Gate, PROTOCOL_MAX, PROTOCOL_MIN, Registry, convert,
    registry::{Assignments, Opened},
};

/// How long the first message may take.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a worker may leave a set untaken before it is disconnected.
const SLOW_READER: Duration = Duration::from_secs(20);
/// Messages per second that a worker may send: it needs one per heartbeat and one per change.
const MAX_MESSAGES_PER_SECOND: u32 = 200;

/// What workers are told in their Welcome.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    pub(super) lease_ttl: Duration,
    pub(super) heartbeat_interval: Duration,
}

/// What all sessions share.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) registry: Arc<Registry>,
    pub(super) timing: Timing,
    pub(super) gate: Gate,
}

pub(super) type Outbound = mpsc::Sender<Result<v1::SessionResponse, Status>>;

/// Runs a session until either side ends it or `over` is cancelled, and tells the worker why if it is this side.
pub(super) async fn run<S>(context: Context, over: CancellationToken, mut inbound: S, out: Outbound)
where
    S: Stream<Item = Result<v1::SessionRequest, Status>> + Send + Unpin,
{
    if let Err(error) = handshake_and_serve(&context, &over, &mut inbound, &out).await {
        tracing::info!(reason = error.reason, "session closed: {error}");
        // The worker may not be reading: then it learns it from the end of the stream.
        let _ = timeout(Duration::from_secs(1), out.send(Err(error.into()))).await;
    }
}

async fn handshake_and_serve<S>(
    context: &Context,
    over: &CancellationToken,
    inbound: &mut S,
    out: &Outbound,
) -> Result<(), ApiError>
where
    S: Stream<Item = Result<v1::SessionRequest, Status>> + Send + Unpin,
{
    let Some(opened) = handshake(context, over, inbound, out).await? else {
        return Ok(());
    };
    let outcome = serve(context, over, &opened, inbound, out).await;
    if let Ok(End::ByWorker) = outcome {
        opened.ended();
    }
    outcome.map(|_| ())
}

/// Waits for a good Hello and answers it. `None` if the worker went away before.
async fn handshake<S>(
    context: &Context,
    over: &CancellationToken,
    inbound: &mut S,
    out: &Outbound,
) -> Result<Option<Opened>, ApiError>
where
    S: Stream<Item = Result<v1::SessionRequest, Status>> + Send + Unpin,
{
    let first = tokio::select! {
        biased;
        () = over.cancelled() => return Err(context.gate.refusal()),
        first = timeout(HELLO_TIMEOUT, inbound.next()) => first,
    };
    let first =
        first.map_err(|_| ApiError::new(Code::DeadlineExceeded, "NO_HELLO", "the first message did not come"))?;
    let Some(Ok(message)) = first else { return Ok(None) };
    let Some(session_request::Message::Hello(hello)) = message.message else {
        return Err(ApiError::invalid_field("message", "the first message must be a Hello"));
    };
    let hello = convert::hello(hello)?;
    let protocol = negotiate(hello.protocol)?;
    tracing::info!(worker = %hello.worker, version = hello.program_version, protocol, "worker connected");
    let welcome = v1::Welcome {
        protocol,
        lease_ttl: context.timing.lease_ttl.try_into().ok(),
        heartbeat_interval: context.timing.heartbeat_interval.try_into().ok(),
    };
    let welcome = v1::SessionResponse {
        message: Some(session_response::Message::Welcome(welcome)),
    };
    let opened = context.registry.open(hello, protocol, Instant::now())?;
    Ok(out.send(Ok(welcome)).await.is_ok().then_some(opened))
}

/// The newest version that both sides speak.
fn negotiate((oldest, newest): (u32, u32)) -> Result<u32, ApiError> {
    if oldest > newest {
        return Err(ApiError::invalid_field(
            "hello.protocol_min",
            "must not be above protocol_max",
        ));
    }
    let common = newest.min(PROTOCOL_MAX);
    if common < oldest.max(PROTOCOL_MIN) {
        let message = format!(
            "the worker speaks protocol {oldest} to {newest}, the control plane {PROTOCOL_MIN} to {PROTOCOL_MAX}: upgrade the older one"
        );
        return Err(ApiError::new(Code::FailedPrecondition, "PROTOCOL_UNSUPPORTED", message)
            .with_metadata("protocol_min", PROTOCOL_MIN.to_string())
            .with_metadata("protocol_max", PROTOCOL_MAX.to_string()));
    }
    Ok(common)
}

/// How a session ended that did not fail.
enum End {
    /// The worker closed its side in order.
    ByWorker,
    /// The connection is gone.
    Lost,
}

/// Hears reports and sends sets.
async fn serve<S>(
    context: &Context,
    over: &CancellationToken,
    opened: &Opened,
    inbound: &mut S,
    out: &Outbound,
) -> Result<End, ApiError>
where
    S: Stream<Item = Result<v1::SessionRequest, Status>> + Send + Unpin,
{
    let mut assignments: Assignments = opened.assignments.clone();
    let mut waiting: Option<Instant> = None;
    let mut pace = Pace::new(Instant::now());
    let mut heartbeat = interval(context.timing.heartbeat_interval);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = over.cancelled() => return Err(context.gate.refusal()),
            () = opened.evicted.cancelled() => return Err(replaced()),
            permit = out.reserve(), if waiting.is_some() => {
                let Ok(permit) = permit else { return Ok(End::Lost) };
                waiting = None;
                let set = assignments.borrow_and_update().clone();
                if let Some(set) = set {
                    let message = session_response::Message::AssignmentSet((*set).clone());
                    permit.send(Ok(v1::SessionResponse { message: Some(message) }));
                }
            }
            () = sleep_until(waiting.unwrap_or_else(Instant::now) + SLOW_READER), if waiting.is_some() => {
                let message = "the worker does not take what it is sent";
                return Err(ApiError::new(Code::ResourceExhausted, "SLOW_READER", message));
            }
            changed = assignments.changed(), if waiting.is_none() => match changed {
                Ok(()) => waiting = Some(Instant::now()),
                Err(_) => return Err(replaced()),
            },
            () = out.closed() => return Ok(End::Lost),
            // A worker that has not taken the last ones needs no other.
            _ = heartbeat.tick() => drop(out.try_send(Ok(v1::SessionResponse {
                message: Some(session_response::Message::Heartbeat(v1::Heartbeat {})),
            }))),
            message = inbound.next() => {
                let now = Instant::now();
                match message {
                    None => return Ok(End::ByWorker),
                    Some(Err(status)) => {
                        tracing::debug!(code = ?status.code(), "session lost");
                        return Ok(End::Lost);
                    }
                    Some(Ok(message)) => {
                        pace.count(now)?;
                        hear(opened, message, now)?;
                    }
                }
            }
        }
    }
}

fn hear(opened: &Opened, message: v1::SessionRequest, now: Instant) -> Result<(), ApiError> {
    match message.message {
        Some(session_request::Message::Report(report)) => opened.report(convert::report(report, "report")?, now),
        Some(session_request::Message::Leave(leave)) => {
            opened.leave(convert::leave(&leave)?.and_then(|left| now.checked_add(left)));
        }
        Some(session_request::Message::Hello(_)) => {
            return Err(ApiError::invalid_field(
                "hello",
                "only the first message of a session is a Hello",
            ));
        }
        None => return Err(ApiError::invalid_field("message", "must be set")),
    }
    Ok(())
}

/// Counts messages per second.
struct Pace {
    since: Instant,
    messages: u32,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            messages: 0,
        }
    }

    fn count(&mut self, now: Instant) -> Result<(), ApiError> {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self::new(now);
        }
        self.messages += 1;
        if self.messages > MAX_MESSAGES_PER_SECOND {
            let message = format!("more than {MAX_MESSAGES_PER_SECOND} messages in a second");
            return Err(ApiError::new(Code::ResourceExhausted, "TOO_MANY_MESSAGES", message));
        }
        Ok(())
    }
}

fn replaced() -> ApiError {
    ApiError::new(
        Code::Aborted,
        "SESSION_REPLACED",
        "another session of this worker has taken the place of this one",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_spoken() {
        assert_eq!(negotiate((PROTOCOL_MIN, PROTOCOL_MAX + 5)).unwrap(), PROTOCOL_MAX);
        assert_eq!(negotiate((0, PROTOCOL_MIN)).unwrap(), PROTOCOL_MIN);
        for (range, reason) in [
            ((PROTOCOL_MAX + 1, PROTOCOL_MAX + 2), "PROTOCOL_UNSUPPORTED"),
            ((0, 0), "PROTOCOL_UNSUPPORTED"),
            ((3, 2), "INVALID_FIELD"),
        ] {
            assert_eq!(negotiate(range).unwrap_err().reason, reason, "{range:?}");
        }
    }

    #[test]
    fn a_flood_is_stopped_and_a_busy_worker_is_not() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for n in 0..10 * MAX_MESSAGES_PER_SECOND {
            pace.count(start + Duration::from_secs(1) * n / (MAX_MESSAGES_PER_SECOND - 1))
                .unwrap();
        }
        let mut pace = Pace::new(start);
        assert!(
            (0..=MAX_MESSAGES_PER_SECOND)
                .map(|_| pace.count(start))
                .any(|counted| counted.is_err())
        );
    }
}

//! One SubscribeToShard connection: what is sent, and when it ends.
//!
//! Follows the API reference of SubscribeToShard ("pushes data ... over HTTP/2", "the connection lasts for up to 5 minutes",
//! "the previous connection expires or fails with a ResourceInUseException") and of SubscribeToShardEvent (continuation
//! numbers that go on "even when no data is written to the shard", child shards "only when the end of the current shard is
//! reached"). Not documented, but seen of the service: an event without records about every five seconds while a shard is idle.
//!
//! Invariants: nothing is read from the shard before the event before it was taken, so a slow reader holds one event here;
//! everything with a time asks the emulator's clock.

use std::sync::Arc;

use bytes::Bytes;
use futures::Stream as Events;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::account::Account;
use super::clock::Clock;
use super::connection::Connection;
use super::consumers::Consumer;
use super::error::ErrorKind;
use super::frame;
use super::operations::describe_child;
use super::script::{Fault, Script};
use super::shard::Shard;
use super::stream::{ShardRead, Status, Stream};

/// An idle shard says so this often.
const HEARTBEAT_MS: i64 = 5_000;
/// Most data and keys of one event, unless a single record has more.
const EVENT_BYTES: usize = 2 << 20;
/// "Each consumer registered ... receives up to 2 MiB per second per shard."
const BYTES_PER_S: i64 = 2 << 20;

/// The connection is to break off: HTTP/2 resets the stream, HTTP/1.1 closes it in the middle of the body.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the connection breaks off here")]
pub(super) struct Broken;

/// One subscription that has begun.
#[derive(Debug)]
pub(super) struct Subscription {
    clock: Clock,
    script: Arc<Script>,
    enforce_limits: bool,
    stream: Arc<Stream>,
    consumer: Arc<Consumer>,
    shard: Arc<Shard>,
    ordinal: u64,
    taken_over: CancellationToken,
    ends_ms: i64,
    /// When the last event was sent; none was, if this is `None`.
    sent_ms: Option<i64>,
    free_ms: i64,
    stage: Stage,
    /// Sent once more.
    again: Option<Bytes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Begin,
    Open,
    Stalled,
    Break,
    Over,
}

impl Subscription {
    pub(super) fn new(
        account: &Account,
        stream: Arc<Stream>,
        consumer: Arc<Consumer>,
        shard: Arc<Shard>,
        ordinal: u64,
        taken_over: CancellationToken,
    ) -> Self {
        let now_ms = account.now_ms();
        let life_ms = i64::try_from(account.options.subscription_life.as_millis()).unwrap_or(i64::MAX);
        Self {
            clock: account.options.clock.clone(),
            script: Arc::clone(&account.script),
            enforce_limits: account.options.enforce_limits,
            stream,
            consumer,
            shard,
            ordinal,
            taken_over,
            ends_ms: now_ms.saturating_add(life_ms),
            sent_ms: None,
            free_ms: now_ms,
            stage: Stage::Begin,
            again: None,
        }
    }

    /// The body of the response.
    pub(super) fn into_events(
        self,
        connection: Arc<Connection>,
    ) -> impl Events<Item = Result<Bytes, Broken>> + Send + 'static {
        futures::stream::unfold((self, connection), |(mut subscription, connection)| async move {
            let item = tokio::select! {
                biased;
                () = connection.stopped() => None,
                item = subscription.next(&connection) => item,
            };
            item.map(|item| (item, (subscription, connection)))
        })
    }

    async fn next(&mut self, connection: &Connection) -> Option<Result<Bytes, Broken>> {
        if let Some(again) = self.again.take() {
            return Some(Ok(again));
        }
        match self.stage {
            Stage::Begin => {
                self.stage = Stage::Open;
                return Some(Ok(frame::initial_response()));
            }
            Stage::Open => {}
            Stage::Stalled => std::future::pending().await,
            Stage::Break => {
                self.stage = Stage::Over;
                return Some(Err(Broken));
            }
            Stage::Over => return None,
        }
        // Not a borrow of `self`, which changes below.
        let shard = Arc::clone(&self.shard);
        loop {
            let mut changed = std::pin::pin!(shard.changed.notified());
            changed.as_mut().enable();
            let now_ms = self.clock.now_ms();
            if let Some((kind, message)) = self.refusal(now_ms) {
                return self.fail(kind, &message);
            }
            if now_ms >= self.ends_ms {
                self.stage = Stage::Over;
                return None;
            }
            if let Some(event) = self.event(now_ms) {
                return self.tampered(event, connection);
            }
            let wake_ms = if self.free_ms > now_ms {
                self.free_ms
            } else {
                self.sent_ms.map_or(now_ms, |sent| sent + HEARTBEAT_MS)
            };
            tokio::select! {
                () = changed, if self.free_ms <= now_ms => {}
                () = self.clock.sleep_until_ms(wake_ms.min(self.ends_ms)) => {}
                () = self.taken_over.cancelled() => {}
                () = self.consumer.ended.cancelled() => {}
            }
        }
    }

    /// Why nothing more is sent, if that is so.
    fn refusal(&self, now_ms: i64) -> Option<(ErrorKind, String)> {
        if self.taken_over.is_cancelled() {
            let message = format!("Another subscription took over for consumer {}.", self.consumer.arn);
            return Some((ErrorKind::ResourceInUse, message));
        }
        if matches!(self.stream.status(now_ms), Status::Deleting | Status::Gone) {
            let message = format!("S{} not found.", &self.stream.label()[1..]);
            return Some((ErrorKind::ResourceNotFound, message));
        }
        let gone = self.consumer.ended.is_cancelled();
        gone.then(|| {
            let message = format!("Consumer {} not found.", self.consumer.arn);
            (ErrorKind::ResourceNotFound, message)
        })
    }

    /// What there is to say now, if there is.
    fn event(&mut self, now_ms: i64) -> Option<Bytes> {
        if self.free_ms > now_ms {
            return None;
        }
        let Some(ShardRead { read, children }) = self.stream.push(self.shard.index, self.ordinal, EVENT_BYTES, now_ms)
        else {
            return self
                .fail(ErrorKind::ResourceNotFound, "The shard has left the stream.")?
                .ok();
        };
        let idle = read.page.next_ordinal == self.ordinal && !read.at_end;
        if idle && self.sent_ms.is_some_and(|sent| now_ms < sent + HEARTBEAT_MS) {
            return None;
        }
        self.ordinal = read.page.next_ordinal.max(self.ordinal);
        self.sent_ms = Some(now_ms);
        if self.enforce_limits {
            let bytes = i64::try_from(read.page.payload_bytes).unwrap_or(i64::MAX / 1_000);
            self.free_ms = now_ms + bytes * 1_000 / BYTES_PER_S;
        }
        let mut rest = json!({ "MillisBehindLatest": read.millis_behind_latest });
        if read.at_end {
            rest["ChildShards"] = children.iter().map(|child| describe_child(child)).collect();
            rest["ContinuationSequenceNumber"] = Value::Null;
            self.stage = Stage::Over;
        } else {
            let continuation = self.shard.continuation(now_ms, self.ordinal);
            rest["ContinuationSequenceNumber"] = json!(continuation.to_string());
        }
        let mut payload = vec![Bytes::from_static(br#"{"Records":["#)];
        payload.extend(read.page.json);
        payload.push(format!("],{}", &rest.to_string()[1..]).into());
        Some(frame::event("SubscribeToShardEvent", &payload))
    }

    /// The last message.
    fn fail(&mut self, kind: ErrorKind, message: &str) -> Option<Result<Bytes, Broken>> {
        self.stage = Stage::Over;
        Some(Ok(frame::exception(kind.event_name(), message)))
    }

    /// What is sent in place of an event, or beside it, by the script.
    fn tampered(&mut self, event: Bytes, connection: &Connection) -> Option<Result<Bytes, Broken>> {
        let Some(fault) = self.script.on_event(&self.stream.identity.name, self.shard.index) else {
            return Some(Ok(event));
        };
        match fault {
            Fault::Error(kind) => self.fail(kind, "scripted"),
            Fault::BadPreludeCrc => {
                self.stage = Stage::Stalled;
                Some(Ok(flipped(&event, 8)))
            }
            Fault::BadCrc => {
                self.stage = Stage::Stalled;
                Some(Ok(flipped(&event, event.len() - 1)))
            }
            Fault::CutFrame => {
                self.stage = Stage::Over;
                Some(Ok(event.slice(..event.len() / 2)))
            }
            Fault::Break => {
                self.stage = Stage::Break;
                Some(Ok(event.slice(..event.len() / 2)))
            }
            Fault::StallInFrame => {
                self.stage = Stage::Stalled;
                Some(Ok(event.slice(..event.len() / 2)))
            }
            Fault::Stall => {
                self.stage = Stage::Stalled;
                Some(Ok(Bytes::new()))
            }
            Fault::End => {
                self.stage = Stage::Over;
                None
            }
            Fault::UnknownEvent => {
                self.again = Some(event);
                Some(Ok(frame::event("NobodyKnowsThis", &[Bytes::from_static(b"{}")])))
            }
            Fault::Repeat => {
                self.again = Some(event.clone());
                Some(Ok(event))
            }
            Fault::GoAway => {
                connection.go_away();
                Some(Ok(event))
            }
            Fault::Reset | Fault::Status(_) | Fault::Delay(_) => {
                connection.reset();
                self.stage = Stage::Stalled;
                Some(Ok(Bytes::new()))
            }
        }
    }
}

/// A message with one bit that is wrong.
fn flipped(message: &Bytes, at: usize) -> Bytes {
    let mut bytes = message.to_vec();
    bytes[at] ^= 1;
    bytes.into()
}

//! Reading one shard by enhanced fan-out: the subscription of a reader, and what comes of it.
//!
//! ```text
//!   Machine: GetIterator --> begins here --> GetRecords: the next event, which is an answer like any other
//!                               |
//!             Turns: when to subscribe, when to renew, when to believe that nothing comes any more
//! ```
//!
//! What an event means is decided by [`super::poll::Machine`], as for an answer of GetRecords: positions, gaps, duplicates, the end
//! of the shard. A subscription that ends, however it does, sends the machine back to where it asks for an iterator, so a place that has
//! become too old meanwhile is found there.
//!
//! Invariants:
//! - A continuation number is where the next subscription begins and nothing else; it is never a position.
//! - Nothing is read from a subscription before there is memory for it; one that is not read for long is given up.

mod channel;
mod turns;

use std::time::Duration;

use aws_sdk_kinesis::{
    error::SdkError,
    types::{
        ShardIteratorType, StartingPosition, SubscribeToShardEvent, SubscribeToShardEventStream as Event,
        error::SubscribeToShardEventStreamError as StreamError,
    },
};
use millrace_common::{
    error::chain,
    ids::{SequenceNumber, ShardId},
    position::Position,
};
use tokio::time::Instant;

pub(super) use self::channel::Channels;
use self::{
    channel::Channel,
    turns::{End, Turns},
};
use super::{
    bounded,
    client::{self, Answer, Child, Client, Origin, Reply},
    failure::{Failure, Kind, describe_sdk},
    tap::{Taken, subscribing},
};

const CALL: &str = "SubscribeToShard";
/// What the machine holds in place of an iterator.
const ITERATOR: &str = "subscription";
/// After so long without it, fan-out is tried again.
const FALLBACK: Duration = Duration::from_secs(60);
/// The same where it is about to be there: a consumer becomes active within seconds.
const FALLBACK_SOON: Duration = Duration::from_secs(3);
/// A subscription whose events are not taken for so long is given up: what Kinesis sends meanwhile would only wait in buffers.
pub(super) const BACK_PRESSURE: Duration = Duration::from_secs(10);

type Events = aws_sdk_kinesis::primitives::event_stream::EventReceiver<Event, StreamError>;

/// What a stream is read with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Consumer {
    /// The consumer of this ARN.
    Arn(String),
    /// The consumer of this name, whichever is registered under it now.
    Name(String),
}

impl std::fmt::Display for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Consumer::Arn(text) | Consumer::Name(text) => f.write_str(text),
        }
    }
}

/// What came of waiting for an event.
#[derive(Debug)]
pub(super) enum Outcome {
    /// An event, of a subscription that began at this time.
    Event { answer: Answer, subscribed: Instant },
    /// The subscription is over, as it should be; another one is to follow.
    Over,
    /// It could not be had, or broke.
    Failed(Failure),
    /// Fan-out cannot be used for now; the shard can be read by polling.
    Unavailable {
        /// Why.
        why: String,
        /// It is about to be there.
        soon: bool,
    },
}

/// A subscription that is there.
#[derive(Debug)]
struct Live {
    events: Events,
    /// What was in the events that come empty.
    taken: Taken,
    /// Its connection.
    channel: Channel,
    subscribed: Instant,
    heard: Instant,
    renew: Instant,
    any: bool,
}

/// The place that a subscription is to begin at.
#[derive(Debug, Clone)]
struct Start {
    /// As the machine asked for it.
    position: Position,
    /// Where the last subscription was when it stood there.
    continuation: Option<SequenceNumber>,
}

/// The fan-out side of a reader.
#[derive(Debug)]
pub(super) struct FanOut {
    client: Client,
    stream_arn: String,
    consumer: Consumer,
    turns: Turns,
    live: Option<Live>,
    start: Option<Start>,
    /// The last event's, and the machine's position after that event.
    continuation: Option<(Option<Position>, SequenceNumber)>,
    /// Polling until then.
    fallback: Option<Instant>,
    /// Subscriptions that began.
    pub(super) subscriptions: u64,
    /// Events of a type that this version does not know.
    pub(super) unknown_events: u64,
}

impl FanOut {
    pub(super) fn new(client: Client, stream_arn: String, consumer: Consumer) -> Self {
        Self {
            client,
            stream_arn,
            consumer,
            turns: Turns::default(),
            live: None,
            start: None,
            continuation: None,
            fallback: None,
            subscriptions: 0,
            unknown_events: 0,
        }
    }

    /// Whether to read from this place by a subscription. To see whether a record is still there, it is polled for: an event may be
    /// empty for no reason that is documented.
    pub(super) fn takes(&self, from: &Origin, now: Instant) -> bool {
        matches!(from, Origin::Position(_)) && self.fallback.is_none_or(|until| until <= now)
    }

    /// Whether polling goes on because fan-out cannot be used.
    pub(super) fn falls_back(&self, now: Instant) -> bool {
        self.fallback.is_some_and(|until| now < until)
    }

    /// Reads by polling for a while.
    pub(super) fn fall_back(&mut self, soon: bool, now: Instant) {
        self.give_up();
        self.fallback = Some(now + if soon { FALLBACK_SOON } else { FALLBACK });
    }

    /// The next subscription begins here. Returns what stands for an iterator.
    pub(super) fn begin(&mut self, from: &Origin) -> String {
        self.give_up();
        if let Origin::Position(position) = from {
            let continuation = match &self.continuation {
                Some((Some(at), number)) if at == position => Some(number.clone()),
                _ => None,
            };
            self.start = Some(Start {
                position: position.clone(),
                continuation,
            });
        }
        ITERATOR.to_owned()
    }

    /// The event that brought this continuation was taken, and the machine stands here now.
    pub(super) fn accepted(&mut self, position: &Position) {
        if let Some((at, _)) = &mut self.continuation {
            *at = Some(position.clone());
        }
        self.fallback = None;
    }

    /// Until it is time to subscribe, if that is to be done.
    pub(super) async fn turn(&self) {
        if self.live.is_none() {
            tokio::time::sleep_until(self.turns.not_before(Instant::now())).await;
        }
    }

    /// Whether a subscription is there.
    pub(super) fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Gives the subscription up, because its events cannot be taken.
    pub(super) fn give_up(&mut self) {
        if self.live.take().is_some() {
            self.turns.ended(End::GivenUp, Instant::now(), rand::random());
        }
    }

    /// The next event. Subscribes before, if need be.
    pub(super) async fn next(&mut self, shard: &ShardId) -> Outcome {
        if self.live.is_none()
            && let Err(outcome) = self.subscribe(shard).await
        {
            return outcome;
        }
        if let Some(live) = &mut self.live {
            // Only what is waited for can be missing.
            live.heard = Instant::now();
        }
        loop {
            let Some(live) = &mut self.live else {
                return Outcome::Over;
            };
            let silent = live.heard + turns::SILENCE;
            let event = tokio::select! {
                biased;
                () = tokio::time::sleep_until(live.renew) => {
                    self.ended(End::Finished);
                    return Outcome::Over;
                }
                event = live.events.recv() => event,
                () = tokio::time::sleep_until(silent) => {
                    live.channel.poison();
                    self.ended(End::Broken);
                    let message = format!("no event for {} s", turns::SILENCE.as_secs());
                    return Outcome::Failed(Failure::transient(CALL, message));
                }
            };
            live.heard = Instant::now();
            match event {
                Ok(Some(Event::SubscribeToShardEvent(event))) => {
                    live.any = true;
                    let subscribed = live.subscribed;
                    let taken = live.taken.claim(&event.continuation_sequence_number);
                    self.turns.heard();
                    return match self.read(event, taken) {
                        Ok(answer) => Outcome::Event { answer, subscribed },
                        Err(failure) => Outcome::Failed(failure),
                    };
                }
                Ok(Some(_)) => self.unknown_events += 1,
                Ok(None) => {
                    let any = live.any;
                    self.ended(if any { End::Finished } else { End::Broken });
                    return match any {
                        true => Outcome::Over,
                        false => Outcome::Failed(Failure::transient(CALL, "it ended before its first event")),
                    };
                }
                Err(error) => return self.broke(&error),
            }
        }
    }

    async fn subscribe(&mut self, shard: &ShardId) -> Result<(), Outcome> {
        let Some(start) = self.start.clone() else {
            return Err(Outcome::Over);
        };
        let position = starting_position(&start).map_err(Outcome::Failed)?;
        let consumer_arn = self.consumer_arn().await?;
        let channel = self.client.channels().take();
        let call = channel
            .sdk()
            .subscribe_to_shard()
            .consumer_arn(&consumer_arn)
            .shard_id(shard.as_str())
            .starting_position(position);
        let (sent, taken) = subscribing(bounded(async {
            let call = Box::pin(call.send());
            call.await.map_err(|error| Failure::of(CALL, &error))
        }))
        .await;
        let now = Instant::now();
        match sent {
            Ok(output) => {
                self.subscriptions += 1;
                self.turns.subscribed(now);
                self.live = Some(Live {
                    events: output.event_stream,
                    taken,
                    channel,
                    subscribed: now,
                    heard: now,
                    renew: now + turns::renew_after(rand::random()),
                    any: false,
                });
                tracing::debug!(%shard, consumer = consumer_arn, "subscribed");
                Ok(())
            }
            Err(failure) => Err(self.refused(failure, &start, now)),
        }
    }

    /// The ARN of the consumer, if it can be read with.
    async fn consumer_arn(&mut self) -> Result<String, Outcome> {
        let name = match &self.consumer {
            Consumer::Arn(arn) => return Ok(arn.clone()),
            Consumer::Name(name) => name,
        };
        match bounded(self.client.consumer(&self.stream_arn, name)).await {
            Ok(Some(arn)) => Ok(arn),
            Ok(None) => Err(Outcome::Unavailable {
                why: format!("the consumer {name} is not ready yet"),
                soon: true,
            }),
            Err(failure) => Err(match failure.kind {
                Kind::NotFound => Outcome::Unavailable {
                    why: format!("the consumer {name} is not registered"),
                    soon: true,
                },
                Kind::Denied => unavailable(format!(
                    "{}; allow kinesis:DescribeStreamConsumer on the stream's consumers",
                    failure.message
                )),
                _ => Outcome::Failed(failure),
            }),
        }
    }

    fn refused(&mut self, failure: Failure, start: &Start, now: Instant) -> Outcome {
        match failure.kind {
            // Within five seconds of somebody else's: the shard has just moved here. It is polled meanwhile, so that nobody waits.
            Kind::InUse => {
                self.turns.ended(End::Refused, now, rand::random());
                Outcome::Unavailable {
                    why: format!(
                        "{}; another reader may hold the consumer {}",
                        failure.message, self.consumer
                    ),
                    soon: true,
                }
            }
            // Perhaps it is only the continuation that is too old. What the position is worth is seen without it.
            Kind::InvalidArgument if start.continuation.is_some() => {
                self.continuation = None;
                Outcome::Over
            }
            Kind::NotFound => self.not_found(&failure),
            Kind::Denied => unavailable(format!(
                "{}; allow kinesis:SubscribeToShard on the consumer {}",
                failure.message, self.consumer
            )),
            _ => Outcome::Failed(failure),
        }
    }

    fn broke(&mut self, error: &SdkError<StreamError, aws_smithy_types::event_stream::RawMessage>) -> Outcome {
        let (kind, message) = match error {
            SdkError::ServiceError(service) => (kind_of(service.err()), describe_sdk(service.err())),
            SdkError::ResponseError(_) => (Kind::Malformed, chain(error)),
            _ => (Kind::Transient, chain(error)),
        };
        self.ended(match kind {
            Kind::InUse => End::TakenOver,
            _ => End::Broken,
        });
        let failure = Failure {
            call: CALL,
            kind,
            message,
        };
        match kind {
            Kind::NotFound => self.not_found(&failure),
            _ => Outcome::Failed(failure),
        }
    }

    /// The stream, the shard or the consumer is gone: polling finds out whether it is one of the former.
    fn not_found(&self, failure: &Failure) -> Outcome {
        self.client.forget_consumer();
        unavailable(format!(
            "{}; check that the consumer {} is registered",
            failure.message, self.consumer
        ))
    }

    fn ended(&mut self, end: End) {
        self.live = None;
        self.turns.ended(end, Instant::now(), rand::random());
    }

    /// What an event says; `taken` is what was in it, if it was taken out on the way.
    fn read(&mut self, event: SubscribeToShardEvent, taken: Option<Reply>) -> Result<Answer, Failure> {
        let malformed = |what: &str, text: &str| {
            let message = format!("an event with {text:?}, which is not a sequence number, as {what}");
            Failure::malformed(CALL, message)
        };
        let by_sdk = taken.is_none();
        let mut reply = match taken {
            Some(reply) => reply,
            None => Reply {
                records: client::records(event.records).map_err(|number| malformed("a record's", &number))?,
                next_iterator: Some(event.continuation_sequence_number).filter(|number| !number.is_empty()),
                millis_behind: Some(event.millis_behind_latest),
                children: event
                    .child_shards
                    .map(|children| children.into_iter().map(Child::from).collect()),
            },
        };
        self.continuation = match reply.next_iterator {
            None => None,
            Some(text) => Some((None, text.parse().map_err(|_| malformed("its continuation", &text))?)),
        };
        reply.next_iterator = self.continuation.is_some().then(|| ITERATOR.to_owned());
        Ok(Answer { reply, by_sdk })
    }
}

fn unavailable(why: String) -> Outcome {
    Outcome::Unavailable { why, soon: false }
}

/// The class of an error that came as an event.
fn kind_of(error: &StreamError) -> Kind {
    match error {
        StreamError::ResourceInUseException(_) => Kind::InUse,
        StreamError::ResourceNotFoundException(_) => Kind::NotFound,
        StreamError::KmsThrottlingException(_) => Kind::Throttled,
        StreamError::KmsAccessDeniedException(_)
        | StreamError::KmsDisabledException(_)
        | StreamError::KmsInvalidStateException(_)
        | StreamError::KmsNotFoundException(_)
        | StreamError::KmsOptInRequired(_) => Kind::Denied,
        // InternalFailure, and what comes to be.
        _ => Kind::Transient,
    }
}

fn starting_position(start: &Start) -> Result<StartingPosition, Failure> {
    let builder = StartingPosition::builder();
    let builder = match (&start.continuation, &start.position) {
        (Some(number), _) | (None, Position::After(number)) => builder
            .r#type(ShardIteratorType::AfterSequenceNumber)
            .sequence_number(number.as_str()),
        (None, Position::TrimHorizon) => builder.r#type(ShardIteratorType::TrimHorizon),
        (None, Position::AtTimestamp(time)) => builder
            .r#type(ShardIteratorType::AtTimestamp)
            .timestamp(client::date_time(*time)),
    };
    builder.build().map_err(|error| Failure {
        call: CALL,
        kind: Kind::Refused,
        message: error.to_string(),
    })
}

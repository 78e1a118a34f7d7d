//! Reading one Kinesis shard: by polling, or by the events of subscriptions (enhanced fan-out).
//!
//! ```text
//!             next(now) -> Action                     on_…(now, …)
//!   Machine ------------------------> Reader (shell) --------------> Machine
//!                                      |  Client: GetShardIterator, GetRecords, DescribeStreamSummary
//!                                      |  FanOut: SubscribeToShard
//!                                      `-> Page
//! ```
//!
//! All decisions are in [`poll`], which does no IO: when to call, from where, what an answer means. The shell here
//! carries them out and bounds every wait.
//!
//! Invariants:
//! - A position is only ever taken from the records of a response, and never moves back.
//! - Only a response without a next iterator *and* with well-formed children ends a shard.
//! - At most one call per shard is in flight.

mod check;
mod client;
mod failure;
mod fanout;
mod gap;
mod listing;
mod poll;
mod scan;
mod tap;
mod throttle;
mod vitals;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use millrace_common::{
    clock::Clock,
    hang_point,
    ids::{SequenceNumber, ShardId},
    pipe::StreamIdentity,
    position::Position,
    reason,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub use self::client::Client;
pub use self::fanout::Consumer;
pub use self::scan::records_of;
pub use self::throttle::Limits;
use self::{
    client::{Answer, Origin},
    failure::{Failure, Kind},
    fanout::{FanOut, Outcome},
    poll::{Action, Machine},
    vitals::Vitals,
};
use super::{Budget, Error, HashKeyRange, Page, Permit, Record, ShardEnd, Trouble};

/// The most that one GetRecords call may take, beyond the SDK's own timeouts: a call that none of them ends must not
/// stop a shard for ever.
const CALL_DEADLINE: Duration = Duration::from_secs(90);

/// Where messages of other shards are only counted, a lookup that failed is not repeated before that.
const COUNT_AGAIN: Duration = Duration::from_secs(60);

/// A consumer that is not ready is not worth a word before that has lasted this long.
const SHOW_UNREADY_AFTER: Duration = Duration::from_secs(30);

/// What to read.
#[derive(Debug, Clone)]
pub struct ReaderOptions {
    /// The stream.
    pub stream: StreamIdentity,
    /// The shard.
    pub shard: ShardId,
    /// Where to start.
    pub start: Position,
    /// The last record to read, for a replay of a prepared batch.
    pub until: Option<SequenceNumber>,
    /// The first record to read, for a replay whose start is no record: if it is gone, so is a part of the batch.
    pub first: Option<SequenceNumber>,
    /// How fast the shard may be read.
    pub limits: Limits,
    /// Payload bytes to ask for at a time, about.
    pub page_bytes: usize,
    /// Payload of a record, as far as that is known before any is read.
    pub record_bytes: Option<usize>,
    /// All records that arrived before this lie before `start`, as far as that is known.
    pub complete_until: Option<Timestamp>,
    /// Records that arrived then or later are not read: the end of a backfill.
    pub end: Option<Timestamp>,
    /// What the shard's hash keys are looked up for.
    pub hash_keys: HashKeys,
    /// Tells how old a position is.
    pub clock: Clock,
}

/// What the hash keys of a shard are for, where a record is an aggregate of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashKeys {
    /// Nobody asks for them.
    Unused,
    /// Messages of other shards are counted and nothing else: reading does not wait for it.
    Count,
    /// They decide what becomes of messages, so no aggregate goes on without them.
    Decide,
}

impl ReaderOptions {
    /// Reads a shard from `start` to its end.
    pub fn new(stream: StreamIdentity, shard: ShardId, start: Position) -> Self {
        Self {
            stream,
            shard,
            start,
            until: None,
            first: None,
            limits: Limits::default(),
            page_bytes: poll::FULL_BYTES,
            record_bytes: None,
            complete_until: None,
            end: None,
            hash_keys: HashKeys::Unused,
            clock: Clock::System,
        }
    }

    /// Reads as fast as `limits` allow, in pages that suit a worker with so much memory.
    #[must_use]
    pub fn paced(mut self, limits: Limits, memory_bytes: usize) -> Self {
        self.limits = limits;
        self.page_bytes = poll::page_bytes(memory_bytes, limits);
        self
    }

    /// Asks for no more at a time than so many records, which have so much payload.
    #[must_use]
    pub fn no_more_than(mut self, records: u64, bytes: u64) -> Self {
        let size = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        self.page_bytes = self.page_bytes.min(size(bytes).max(poll::LEAST_BYTES));
        self.record_bytes = bytes.checked_div(records).map(size);
        self
    }

    /// What it takes from the budget before a call that may bring a whole page.
    pub fn reserve(&self) -> usize {
        poll::reserve(self.page_bytes, poll::limit(self.page_bytes, self.first_record_bytes()))
    }

    fn first_record_bytes(&self) -> usize {
        self.record_bytes.unwrap_or(self.page_bytes / poll::FIRST_LIMIT)
    }

    /// Reads to this record and not beyond.
    #[must_use]
    pub fn until(mut self, last: SequenceNumber) -> Self {
        self.until = Some(last);
        self
    }
}

/// Why a reader ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The shard ended; the last page said so.
    ShardEnd,
    /// The record asked for as the last was read.
    Until,
    /// All records were read that arrived before the end of the backfill; the last page said so.
    Time,
    /// It was cancelled, or nobody takes its pages any more.
    Cancelled,
    /// It did nothing for a while, although there was something to read: another is to be started where its pages end.
    Stuck,
}

/// What a reader has counted so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// GetRecords calls.
    pub calls: AtomicU64,
    /// Calls that Kinesis refused because there were too many.
    pub throttled: AtomicU64,
    /// Iterators that were given up for a new one.
    pub renewed_iterators: AtomicU64,
    /// Calls that failed in any other way.
    pub failures: AtomicU64,
    /// Records that came a second time and were dropped.
    pub duplicates: AtomicU64,
    /// Subscriptions that began.
    pub subscriptions: AtomicU64,
    /// Events of a subscription of a type that is not known here.
    pub unknown_events: AtomicU64,
    /// Answers of GetRecords that the SDK had to read, which is slow: those that name child shards, and what Kinesis was
    /// never seen to send.
    pub read_by_sdk: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// What a reader can do next.
enum Ready {
    /// Call GetRecords.
    Call {
        iterator: String,
        limit: i32,
        reserve: usize,
    },
    /// Nothing.
    Over(Stop),
}

/// Reads one shard.
#[derive(Debug)]
pub struct Reader {
    client: Client,
    stream_arn: String,
    machine: Machine,
    trouble: watch::Sender<Option<Trouble>>,
    /// Something was read.
    answered: bool,
    /// The iterator is one of the right stream. A sequence number means nothing in another one, and Kinesis says so. A time, or
    /// the oldest record, are in any: an iterator for one of them is used only after the stream was seen to be the right one.
    identified: bool,
    /// Reads by subscriptions where it can.
    fan_out: Option<FanOut>,
    /// Shown while fan-out cannot be used.
    unavailable: Option<Trouble>,
    /// When it began to poll because fan-out could not be used.
    polling_since: Option<Instant>,
    counters: Arc<Counters>,
    /// Hash keys of the shard, once they were needed.
    hash_keys: Option<HashKeyRange>,
    wants_hash_keys: HashKeys,
    /// They could not be had, and are not asked for again before this.
    no_hash_keys_until: Option<Instant>,
    vitals: Vitals,
}

impl Reader {
    /// A reader that has not called yet.
    pub fn new(client: Client, options: ReaderOptions) -> Self {
        Self {
            client,
            stream_arn: options.stream.arn.clone(),
            wants_hash_keys: options.hash_keys,
            no_hash_keys_until: None,
            machine: Machine::new(options, Instant::now()),
            trouble: watch::Sender::new(None),
            answered: false,
            identified: false,
            fan_out: None,
            unavailable: None,
            polling_since: None,
            counters: Arc::default(),
            hash_keys: None,
            vitals: Vitals::new(Instant::now()),
        }
    }

    /// Reads by enhanced fan-out with this consumer, and by polling only while that cannot be.
    #[must_use]
    pub fn with_fan_out(mut self, consumer: Consumer) -> Self {
        self.fan_out = Some(FanOut::new(self.client.clone(), self.stream_arn.clone(), consumer));
        self
    }

    /// What keeps it from reading, if anything; that there is nothing is said with the first answer as well, for who still
    /// shows what kept an earlier reader. Subscribe before [`Self::run`]; closed once the reader has ended.
    pub fn trouble(&self) -> watch::Receiver<Option<Trouble>> {
        self.trouble.subscribe()
    }

    /// What it counts.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Reads until the shard or the replay ends, or until it is cancelled.
    ///
    /// Cancelling drops what was read and not yet sent; nothing is lost by it, because only who takes a page may move
    /// the checkpoint.
    ///
    /// # Errors
    /// When reading on would be wrong or useless. Everything that may pass is retried and shown in [`Self::trouble`].
    pub async fn run(
        mut self,
        out: mpsc::Sender<Page>,
        budget: Arc<Budget>,
        cancel: CancellationToken,
    ) -> Result<Stop, Error> {
        match cancel.run_until_cancelled(self.drive(&out, &budget)).await {
            Some(result) => result,
            None => Ok(Stop::Cancelled),
        }
    }

    /// The same with a watchdog: a reader that is stuck ends as [`Stop::Stuck`].
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn run_watched(
        self,
        out: mpsc::Sender<Page>,
        budget: Arc<Budget>,
        cancel: CancellationToken,
    ) -> Result<Stop, Error> {
        let (shard, vitals) = (self.machine.shard().clone(), self.vitals.clone());
        vitals.alive();
        tokio::select! {
            result = self.run(out, budget, cancel) => result,
            () = vitals.watch() => {
                tracing::warn!(%shard, "the reader is stuck: starting it anew");
                Ok(Stop::Stuck)
            }
        }
    }

    /// Does all that comes before the first call that brings records, and so before memory is needed.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn begin(&mut self) -> Result<(), Error> {
        self.until_ready().await.map(drop)
    }

    /// Until there is a call to make that brings records, or nothing to read.
    async fn until_ready(&mut self) -> Result<Ready, Error> {
        loop {
            match self.machine.next(Instant::now()) {
                Action::Wait(until) => self.vitals.waiting(tokio::time::sleep_until(until)).await,
                Action::VerifyStream => {
                    self.verify_stream().await?;
                }
                Action::GetIterator(from) => {
                    self.identified = matches!(from, Origin::Record(_) | Origin::Position(Position::After(_)));
                    self.start(&from).await?;
                }
                Action::Finish(stop) => return Ok(Ready::Over(stop)),
                Action::GiveUp => return Err(self.machine.doubtful()),
                Action::GetRecords { .. } if !self.identified => {
                    self.identified = self.verify_stream().await?;
                }
                Action::GetRecords {
                    iterator,
                    limit,
                    reserve,
                } => {
                    return Ok(Ready::Call {
                        iterator,
                        limit,
                        reserve,
                    });
                }
            }
        }
    }

    async fn drive(&mut self, out: &mpsc::Sender<Page>, budget: &Arc<Budget>) -> Result<Stop, Error> {
        loop {
            let (iterator, limit, reserve) = match self.until_ready().await? {
                Ready::Over(stop) => return Ok(stop),
                Ready::Call {
                    iterator,
                    limit,
                    reserve,
                } => (iterator, limit, reserve),
            };
            let Some((accepted, mut permit)) = self.fetch(&iterator, limit, reserve, budget).await? else {
                continue;
            };
            permit.resize(accepted.cost);
            let stop = accepted.stop();
            if self.hash_keys.is_none() && accepted.records.iter().any(Record::may_be_aggregate) {
                // On the heap, as it is rarely needed.
                Box::pin(self.look_up_hash_keys()).await?;
            }
            let page = Page {
                shard: self.machine.shard().clone(),
                records: accepted.records,
                last: accepted.last,
                lag: accepted.lag,
                end: match stop {
                    Some(Stop::Time) => Some(ShardEnd { children: Vec::new() }),
                    _ => accepted.end,
                },
                complete_until: accepted.complete_until,
                hash_keys: self.hash_keys,
                permit,
            };
            let vitals = self.vitals.clone();
            match vitals.waiting(self.patiently(out.reserve())).await {
                Ok(slot) => slot.send(page),
                Err(_) => return Ok(Stop::Cancelled),
            }
            if let Some(stop) = stop {
                return Ok(stop);
            }
        }
    }

    /// Whether messages of an aggregate belong to the shard is decided by its hash keys. If something depends on that, no aggregate
    /// goes on without them: what becomes of a record must not depend on when it is read. The reader ends then, and with it
    /// what it holds of memory and connections; the page is read again.
    async fn look_up_hash_keys(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        match self.wants_hash_keys {
            HashKeys::Unused => return Ok(()),
            HashKeys::Count if self.no_hash_keys_until.is_some_and(|until| now < until) => return Ok(()),
            HashKeys::Count | HashKeys::Decide => {}
        }
        // Others may be asking, and all wait for one listing.
        let call = bounded(self.client.hash_keys(&self.stream_arn, self.machine.shard()));
        let failure = match self.vitals.waiting(call).await {
            Ok(Some(range)) => {
                // A stream that was created anew has shards of the same names.
                if self.wants_hash_keys == HashKeys::Count || self.verify_stream().await? {
                    self.hash_keys = Some(range);
                    return Ok(());
                }
                Failure::transient("DescribeStreamSummary", "the stream cannot be looked at just now")
            }
            Ok(None) => Failure::transient("ListShards", "the shard is not listed"),
            Err(failure) => failure,
        };
        Counters::add(&self.counters.failures, 1);
        if self.wants_hash_keys == HashKeys::Count {
            tracing::warn!(
                shard = %self.machine.shard(), detail = failure.message,
                "messages of other shards are not counted for now: the hash keys of the shard are not known"
            );
            self.no_hash_keys_until = Some(now + COUNT_AGAIN);
            return Ok(());
        }
        Err(Error::HashKeysUnknown {
            shard: self.machine.shard().clone(),
            message: format!("{}: {}", failure.call, failure.message),
            // Other classes say something of positions and streams, which ListShards has no word on here.
            reason: match failure.kind {
                kind @ (Kind::Throttled | Kind::Denied | Kind::Credential | Kind::Nobody(_)) => kind.reason(),
                _ => reason::SOURCE_UNREACHABLE,
            },
        })
    }

    /// Asks for an iterator, or begins a subscription in its place.
    async fn start(&mut self, from: &Origin) -> Result<(), Error> {
        let now = Instant::now();
        match self.fan_out.as_mut().filter(|fan_out| fan_out.takes(from, now)) {
            Some(fan_out) => {
                let iterator = fan_out.begin(from);
                self.machine.set_pushed(true);
                self.machine.on_iterator(from, iterator);
                Ok(())
            }
            None => {
                self.machine.set_pushed(false);
                self.get_iterator(from).await
            }
        }
    }

    /// Memory, and then what a call or an event brings.
    async fn fetch(
        &mut self,
        iterator: &str,
        limit: i32,
        reserve: usize,
        budget: &Arc<Budget>,
    ) -> Result<Option<(poll::Accepted, Permit)>, Error> {
        if !self.machine.is_pushed() {
            let permit = self.vitals.waiting(budget.acquire(reserve)).await;
            hang_point!("worker.read.hangs");
            let accepted = self.get_records(iterator, limit).await?;
            self.perhaps_subscribe();
            return Ok(accepted.map(|accepted| (accepted, permit)));
        }
        if let Some(fan_out) = &self.fan_out {
            self.vitals.waiting(fan_out.turn()).await;
        }
        let was_live = self.is_live();
        let vitals = self.vitals.clone();
        let permit = vitals.waiting(self.patiently(budget.acquire(reserve))).await;
        if was_live && !self.is_live() {
            // It was given up meanwhile. Whether its place is still good is asked before there is another one.
            return Ok(None);
        }
        hang_point!("worker.read.hangs");
        let accepted = self.next_event().await?;
        Ok(accepted.map(|accepted| (accepted, permit)))
    }

    fn is_live(&self) -> bool {
        self.fan_out.as_ref().is_some_and(FanOut::is_live)
    }

    /// Waits for room. A subscription that is not read for long is given up meanwhile.
    async fn patiently<T>(&mut self, room: impl Future<Output = T>) -> T {
        let mut room = std::pin::pin!(room);
        if let Some(fan_out) = self.fan_out.as_mut().filter(|fan_out| fan_out.is_live()) {
            if let Ok(room) = tokio::time::timeout(fanout::BACK_PRESSURE, room.as_mut()).await {
                return room;
            }
            fan_out.give_up();
            self.machine.renew();
        }
        room.await
    }

    /// Polling has shown what it was for, or fan-out is worth another try.
    fn perhaps_subscribe(&mut self) {
        let now = Instant::now();
        if self.fan_out.as_ref().is_some_and(|fan_out| !fan_out.falls_back(now)) && !self.machine.is_proving() {
            self.machine.renew();
        }
    }

    async fn next_event(&mut self) -> Result<Option<poll::Accepted>, Error> {
        let Some(fan_out) = self.fan_out.as_mut() else {
            return Ok(None);
        };
        let started = Instant::now();
        let (subscriptions, unknown) = (fan_out.subscriptions, fan_out.unknown_events);
        // On the heap: the SDK's futures are tens of kilobytes, and there is one per shard.
        let outcome = Box::pin(fan_out.next(self.machine.shard())).await;
        Counters::add(&self.counters.subscriptions, fan_out.subscriptions - subscriptions);
        Counters::add(&self.counters.unknown_events, fan_out.unknown_events - unknown);
        match outcome {
            // How long it waited on the way is not known, but not since before its subscription began.
            Outcome::Event { answer, subscribed } => {
                let Answer { reply, by_sdk } = answer;
                Counters::add(&self.counters.read_by_sdk, u64::from(by_sdk));
                match self.machine.on_records(subscribed, Instant::now(), reply)? {
                    Ok(accepted) => {
                        fan_out.accepted(self.machine.position());
                        self.unavailable = None;
                        self.polling_since = None;
                        self.accepted(&accepted);
                        return Ok(Some(accepted));
                    }
                    Err(failure) => {
                        fan_out.give_up();
                        self.failed(started, &failure).await?;
                    }
                }
            }
            Outcome::Over => self.machine.renew(),
            Outcome::Failed(failure) => {
                self.machine.renew();
                self.failed(started, &failure).await?;
            }
            Outcome::Unavailable { why, soon } => {
                let now = Instant::now();
                let lasted = now - *self.polling_since.get_or_insert(now);
                if !soon || lasted >= SHOW_UNREADY_AFTER {
                    self.unavailable = Some(Trouble {
                        reason: reason::SOURCE_FAN_OUT_UNAVAILABLE,
                        message: format!("reading by polling, because enhanced fan-out cannot be used: {why}"),
                        permanent: false,
                    });
                }
                fan_out.fall_back(soon, now);
                self.machine.renew();
                self.show_trouble();
            }
        }
        Ok(None)
    }

    /// Whether the stream was seen to be the right one.
    async fn verify_stream(&mut self) -> Result<bool, Error> {
        let started = Instant::now();
        match bounded(self.client.stream(&self.stream_arn)).await {
            Ok(stream) => self.machine.on_stream(stream).map(|()| true),
            Err(failure) => self.failed(started, &failure).await.map(|()| false),
        }
    }

    async fn get_iterator(&mut self, from: &Origin) -> Result<(), Error> {
        let started = Instant::now();
        let iterator = bounded(self.client.shard_iterator(&self.stream_arn, self.machine.shard(), from)).await;
        match iterator {
            Ok(iterator) => {
                self.machine.on_iterator(from, iterator);
                Ok(())
            }
            Err(failure) => self.failed(started, &failure).await,
        }
    }

    async fn get_records(&mut self, iterator: &str, limit: i32) -> Result<Option<poll::Accepted>, Error> {
        let started = Instant::now();
        Counters::add(&self.counters.calls, 1);
        let reply = bounded(self.client.records(&self.stream_arn, iterator, limit)).await;
        let outcome = match reply {
            Ok(Answer { reply, by_sdk }) => {
                Counters::add(&self.counters.read_by_sdk, u64::from(by_sdk));
                self.machine.on_records(started, Instant::now(), reply)?
            }
            Err(failure) => Err(failure),
        };
        match outcome {
            Ok(accepted) => {
                self.accepted(&accepted);
                Ok(Some(accepted))
            }
            Err(failure) => {
                self.failed(started, &failure).await?;
                Ok(None)
            }
        }
    }

    fn accepted(&mut self, accepted: &poll::Accepted) {
        Counters::add(&self.counters.duplicates, accepted.duplicates);
        if accepted.stalled {
            Counters::add(&self.counters.renewed_iterators, 1);
            tracing::warn!(shard = %self.machine.shard(), "an iterator brought nothing for a minute: taking a new one");
        }
        self.vitals.alive();
        self.show_trouble();
        if !std::mem::replace(&mut self.answered, true) {
            self.trouble.send_modify(|_| {});
        }
    }

    async fn failed(&mut self, started: Instant, failure: &Failure) -> Result<(), Error> {
        let counter = match failure.kind {
            Kind::Throttled => &self.counters.throttled,
            Kind::ExpiredIterator => &self.counters.renewed_iterators,
            _ => &self.counters.failures,
        };
        Counters::add(counter, 1);
        self.vitals.alive();
        tracing::debug!(
            shard = %self.machine.shard(), call = failure.call, kind = ?failure.kind, message = failure.message,
            "Kinesis call failed"
        );
        // Where there is nobody to call as, no session was refused.
        if failure.kind == Kind::Credential {
            self.client.renew_identity(started).await;
        }
        self.machine
            .on_failure(started, Instant::now(), failure, rand::random())?;
        self.show_trouble();
        Ok(())
    }

    fn show_trouble(&self) {
        let (shard, trouble) = (
            self.machine.shard(),
            self.machine.trouble().or(self.unavailable.as_ref()),
        );
        self.trouble.send_if_modified(|shown| {
            if shown.as_ref() == trouble {
                return false;
            }
            match trouble {
                Some(trouble) => {
                    tracing::warn!(%shard, reason = trouble.reason, detail = trouble.message, "cannot read");
                }
                None => tracing::info!(%shard, "reading again"),
            }
            *shown = trouble.cloned();
            true
        });
    }
}

/// A call with an end.
async fn bounded<T>(call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    // On the heap: the SDK's futures are tens of kilobytes, and there is one per shard.
    match tokio::time::timeout(CALL_DEADLINE, Box::pin(call)).await {
        Ok(result) => result,
        Err(_) => Err(Failure::transient(
            "call",
            format!("no answer within {} s", CALL_DEADLINE.as_secs()),
        )),
    }
}

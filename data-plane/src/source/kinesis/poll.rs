//! The life of a polling reader as a machine without IO: [`Machine::next`] says what to do at a time, the `on_…`
//! functions take what came of it. The shell around it is [`super::Reader`].
//!
//! ```text
//!              +--> VerifyStream (after "not found") --+
//!   start -----+                                       +--> GetIterator --> GetRecords --> … --> end of shard or replay
//!              ^          expired, malformed, refused: the iterator is dropped      |
//!              +--------------------------------------------------------------------+
//! ```
//!
//! An iterator is always asked for with the machine's position, so one that is lost costs nothing but a call.

use std::time::Duration;

use jiff::Timestamp;
use millrace_common::{
    ids::{SequenceNumber, ShardId},
    position::Position,
};
use tokio::time::Instant;

use super::{
    ReaderOptions, Stop, check,
    client::{Origin, Reply},
    failure::{Failure, Kind},
    gap::{self, Verdict},
    throttle::{Brake, Limits, Pace},
};
use crate::source::{Error, RECORD_OVERHEAD, Record, ShardEnd, Trouble};

/// Most records of one call: Kinesis' own bound.
const FULL_LIMIT: i32 = 10_000;
/// Records of the first call after a failure: it asks whether Kinesis is there, and should not hold much of the budget
/// while nobody answers.
const PROBE_LIMIT: i32 = 100;
/// Most payload of one answer: Kinesis' own bound.
pub(super) const FULL_BYTES: usize = 10 * 1024 * 1024;
/// Least payload that is asked for at a time: two seconds' worth of a shard, so that calls are not what limits reading.
const MIN_PAGE_BYTES: usize = 4 * 1024 * 1024;
/// A page is to be no more than this part of the worker's memory: several readers, batches and blocks share it.
const PAGE_PART: usize = 32;
/// Records of a reader's first call: it learns from the answer how large they are.
pub(super) const FIRST_LIMIT: usize = 1_000;
/// Least payload that a replay asks for at a time, however small its batch.
pub(super) const LEAST_BYTES: usize = 64 * 1024;
/// What an answer costs while it is taken apart, in quarters of its payload: its body is a third longer, and there twice,
/// as it came and in one piece.
const RESERVE_QUARTERS: usize = 11;
/// What an answer costs where little is expected: at the tip of a shard, which takes 1 MiB a second, or of a probe.
const SMALL_RESERVE: usize = 1024 * 1024;

/// Failures that may pass are not worth a word before they have lasted this long.
const SHOW_FAILURE_AFTER: Duration = Duration::from_secs(5);
/// The same for throttling, which every shared stream sees now and then.
const SHOW_THROTTLING_AFTER: Duration = Duration::from_secs(30);
/// And for a shard that somebody else is subscribed to: at a hand-over that lasts some seconds.
const SHOW_IN_USE_AFTER: Duration = Duration::from_secs(30);
/// Most payload of one event of a subscription, unless it is one record.
const EVENT_BYTES: usize = 2 * 1024 * 1024;
/// What is held while nothing but a little is expected. What comes then takes what it costs, before anything follows it.
const WAIT_RESERVE: usize = 64 * 1024;
/// An iterator that brings nothing for this long, although there is something, is given up for a new one.
const STALL: Duration = Duration::from_secs(60);
/// Empty answers at the tip after which a replay's missing record is believed to be gone.
const EMPTY_AT_TIP: u32 = 5;
/// A reader at the tip believes that a backfill's end has come when it is this long past: further apart than this no
/// two clocks are whose signatures Kinesis accepts.
const END_GRACE: Duration = Duration::from_secs(5 * 60);
/// "Not found" for the shard, while its stream is there, after which the shard is believed to be gone.
const SHARD_NOT_FOUND: u32 = 3;

/// How much payload to ask for at a time, for a worker with so much memory and a shard that may be read so fast.
pub(super) fn page_bytes(memory_bytes: usize, limits: Limits) -> usize {
    let page = (memory_bytes / PAGE_PART).clamp(MIN_PAGE_BYTES, FULL_BYTES);
    match limits.bytes_per_second {
        // More than a second's worth blocks the shard for as long as it is worth.
        Some(rate) => page.min(usize::try_from(rate).unwrap_or(usize::MAX)).max(SMALL_RESERVE),
        None => page,
    }
}

/// What to reserve for an answer of so much payload in so many records.
pub(super) fn reserve(page_bytes: usize, limit: i32) -> usize {
    page_bytes / 4 * RESERVE_QUARTERS + usize::try_from(limit).unwrap_or(0) * RECORD_OVERHEAD
}

/// As many records of this size as a page should hold.
pub(super) fn limit(page_bytes: usize, record_bytes: usize) -> i32 {
    let records = page_bytes / record_bytes.max(1);
    i32::try_from(records).unwrap_or(FULL_LIMIT).clamp(1, FULL_LIMIT)
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing until then.
    Wait(Instant),
    /// Ask when the stream was created.
    VerifyStream,
    /// Ask for an iterator at this place.
    GetIterator(Origin),
    /// Read.
    GetRecords {
        /// From here.
        iterator: String,
        /// At most so many records.
        limit: i32,
        /// Bytes to take from the budget before the call.
        reserve: usize,
    },
    /// There is nothing to read.
    Finish(Stop),
    /// Records may be gone: end with [`Machine::doubtful`].
    GiveUp,
}

/// A stream as Kinesis describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CreatedStream {
    /// When it was created.
    pub(super) created_millis: i64,
    /// How long it keeps records.
    pub(super) retention: Duration,
}

/// What came of an answer.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) records: Vec<Record>,
    /// What the records cost of the budget.
    pub(super) cost: usize,
    pub(super) last: Option<SequenceNumber>,
    pub(super) lag: Option<Duration>,
    pub(super) end: Option<ShardEnd>,
    pub(super) duplicates: u64,
    /// The iterator was given up because it brought nothing.
    pub(super) stalled: bool,
    /// All records that arrived before this are in this answer or before it.
    pub(super) complete_until: Option<Timestamp>,
    reached_until: bool,
    reached_time: bool,
}

impl Accepted {
    /// Whether the reader is through.
    pub(super) fn stop(&self) -> Option<Stop> {
        if self.reached_until {
            Some(Stop::Until)
        } else if self.reached_time {
            Some(Stop::Time)
        } else {
            self.end.as_ref().map(|_| Stop::ShardEnd)
        }
    }
}

/// Time since which an iterator has brought nothing, and the lag at that time.
#[derive(Debug, Clone, Copy)]
struct Stall {
    since: Instant,
    lag: Duration,
}

/// How the iterator was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// At the position.
    Plainly,
    /// At the record that the position is after, or at the first record of a replay: if it comes first, nothing behind it was
    /// trimmed.
    ForProof,
}

/// The state of a polling reader.
#[derive(Debug)]
pub(super) struct Machine {
    options: ReaderOptions,
    /// After the last record that was accepted.
    position: Position,
    iterator: Option<String>,
    pace: Pace,
    /// The last answer was at the tip.
    at_tip: bool,
    /// Nothing has answered since the last failure.
    probing: bool,
    failing_since: Option<Instant>,
    trouble: Option<Trouble>,
    /// The stream was not found, so it may be another when it is found again.
    verify_stream: bool,
    shard_not_found: u32,
    invalid_arguments: u32,
    expired_iterators: u32,
    /// The identity was not accepted, and nothing has answered since: a new session does not help.
    identity_renewed: bool,
    stall: Option<Stall>,
    empty_at_tip: u32,
    /// All records that arrived before this lie before the position.
    complete_until: Option<Timestamp>,
    /// When the last answer was asked for, if it was at the tip of a shard that is open.
    tip: Option<Timestamp>,
    /// How long the stream keeps records, if that was asked since the last answer.
    retention: Option<Duration>,
    /// Retention is to be asked for.
    ask_retention: bool,
    /// Payload bytes of a record, as they have been lately.
    record_bytes: usize,
    /// The next iterator is asked for by time: the position's sequence number has left the stream, and no record has.
    by_time: bool,
    asked: Asked,
    /// What stands for an iterator is a subscription: its events are not calls, and come at their own pace.
    pushed: bool,
}

impl Machine {
    pub(super) fn new(options: ReaderOptions, now: Instant) -> Self {
        Self {
            position: options.start.clone(),
            complete_until: options.complete_until,
            tip: None,
            retention: None,
            ask_retention: false,
            by_time: false,
            asked: Asked::Plainly,
            pushed: false,
            record_bytes: options.first_record_bytes(),
            pace: Pace::new(options.limits, now),
            options,
            iterator: None,
            at_tip: false,
            probing: false,
            failing_since: None,
            trouble: None,
            verify_stream: false,
            shard_not_found: 0,
            invalid_arguments: 0,
            expired_iterators: 0,
            identity_renewed: false,
            stall: None,
            empty_at_tip: 0,
        }
    }

    /// What keeps it from reading.
    pub(super) fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// What to do now.
    pub(super) fn next(&self, now: Instant) -> Action {
        if let (Some(until), Some(position)) = (&self.options.until, self.position.sequence_number())
            && position >= until
        {
            return Action::Finish(Stop::Until);
        }
        if now < self.pace.call_at() {
            return Action::Wait(self.pace.call_at());
        }
        if self.verify_stream || self.ask_retention {
            return Action::VerifyStream;
        }
        let Some(iterator) = &self.iterator else {
            return self.want_iterator();
        };
        if self.pushed {
            return self.await_event(iterator.clone());
        }
        if now < self.pace.records_at() {
            return Action::Wait(self.pace.records_at());
        }
        let limit = if self.probing {
            PROBE_LIMIT
        } else {
            limit(self.options.page_bytes, self.record_bytes)
        };
        let reserve = if self.probing || self.at_tip {
            SMALL_RESERVE
        } else {
            reserve(self.options.page_bytes, limit)
        };
        Action::GetRecords {
            iterator: iterator.clone(),
            limit,
            reserve,
        }
    }

    /// Reading the next event of a subscription.
    fn await_event(&self, iterator: String) -> Action {
        let limit = limit(EVENT_BYTES, self.record_bytes);
        let reserve = if self.probing || self.at_tip {
            WAIT_RESERVE
        } else {
            reserve(EVENT_BYTES, limit)
        };
        Action::GetRecords {
            iterator,
            limit,
            reserve,
        }
    }

    /// Whether what stands for an iterator is a subscription.
    pub(super) fn set_pushed(&mut self, pushed: bool) {
        self.pushed = pushed;
    }

    /// Whether it reads the events of a subscription.
    pub(super) fn is_pushed(&self) -> bool {
        self.pushed
    }

    /// Asks for another iterator, at the position.
    pub(super) fn renew(&mut self) {
        self.iterator = None;
    }

    /// Whether the next answer has to prove that nothing is missing before it.
    pub(super) fn is_proving(&self) -> bool {
        self.asked == Asked::ForProof
    }

    /// After the last record that was accepted.
    pub(super) fn position(&self) -> &Position {
        &self.position
    }

    /// The first record, if it is given and not read yet. It proves by itself that nothing behind it was trimmed.
    fn first(&self) -> Option<&SequenceNumber> {
        match self.position {
            Position::After(_) => None,
            Position::TrimHorizon | Position::AtTimestamp(_) => self.options.first.as_ref(),
        }
    }

    /// Asks for an iterator, if that is known to bring all that comes behind the position.
    fn want_iterator(&self) -> Action {
        if let Some(first) = self.first() {
            return Action::GetIterator(Origin::Record(first.clone()));
        }
        if self.by_time
            && let Some(time) = self.complete_until
        {
            return Action::GetIterator(Origin::Position(gap::begin(time)));
        }
        if !gap::is_suspicious(&self.position, self.complete_until, self.options.clock.now()) {
            return Action::GetIterator(Origin::Position(self.position.clone()));
        }
        let Some(verdict) = self.verdict() else {
            return Action::VerifyStream;
        };
        match (&self.position, verdict) {
            (Position::After(number), Verdict::Doubtful { .. }) => Action::GetIterator(Origin::Record(number.clone())),
            (_, Verdict::Doubtful { .. }) => Action::GiveUp,
            (position, Verdict::Safe) => Action::GetIterator(Origin::Position(position.clone())),
        }
    }

    /// What is to be believed of the position; `None` if the stream's retention is not known.
    fn verdict(&self) -> Option<Verdict> {
        let now = self.options.clock.now();
        Some(gap::judge(self.complete_until, self.retention?, now))
    }

    /// The position may be one behind which records are missing, and nothing can prove that none are.
    pub(super) fn doubtful(&self) -> Error {
        self.expired(
            "what comes next in the stream is not known to be the next record",
            None,
            false,
        )
    }

    fn expired(&self, message: &str, first: Option<Timestamp>, shard_gone: bool) -> Error {
        let (from, to) = match self.verdict() {
            Some(Verdict::Doubtful { from, to }) => (from, Some(to)),
            _ => (self.complete_until, None),
        };
        Error::PositionExpired {
            shard: self.options.shard.clone(),
            position: Box::new(self.position.clone()),
            message: message.to_owned(),
            from,
            to: first.or(to),
            shard_gone,
        }
    }

    /// The stream was described.
    pub(super) fn on_stream(&mut self, stream: CreatedStream) -> Result<(), Error> {
        let expected = self.options.stream.created.as_millisecond();
        if stream.created_millis != expected {
            let message = format!(
                "it was created at {} ms, and the pipe was made for the one of {expected} ms",
                stream.created_millis
            );
            return Err(Error::StreamRecreated { message });
        }
        self.verify_stream = false;
        self.ask_retention = false;
        self.retention = Some(stream.retention);
        Ok(())
    }

    /// An iterator for `from` was given.
    pub(super) fn on_iterator(&mut self, from: &Origin, iterator: String) {
        self.asked = match from {
            Origin::Record(_) => Asked::ForProof,
            Origin::Position(_) => Asked::Plainly,
        };
        self.by_time = false;
        self.iterator = Some(iterator);
    }

    /// GetRecords answered. The inner error is an answer that cannot be one: give it to [`Self::on_failure`].
    pub(super) fn on_records(
        &mut self,
        started: Instant,
        now: Instant,
        reply: Reply,
    ) -> Result<Result<Accepted, Failure>, Error> {
        let malformed = |message| {
            Ok(Err(Failure::malformed(
                "GetRecords",
                format!("an answer with {message}"),
            )))
        };
        self.prove(&reply)?;
        let shard = &self.options.shard;
        let bytes: u64 = reply.records.iter().map(|record| record.data().len() as u64).sum();
        if !reply.records.is_empty() {
            // Large records have a say at once, small ones bit by bit.
            let mean = usize::try_from(bytes).unwrap_or(usize::MAX) / reply.records.len();
            self.record_bytes = mean.max((mean + self.record_bytes) / 2);
        }
        let end = match check::end(shard, reply.next_iterator.as_deref(), reply.children.as_deref()) {
            Ok(end) => end,
            Err(message) => return malformed(message),
        };
        let fresh = match check::fresh(
            reply.records,
            self.position.sequence_number(),
            self.options.until.as_ref(),
        ) {
            Ok(fresh) => fresh,
            Err(check::Problem::Disorder { record, after }) => {
                return malformed(format!("record {record} after record {after}"));
            }
            Err(check::Problem::Beyond(number)) => return Err(self.missing(format!("record {number} came instead"))),
        };
        let lag = reply
            .millis_behind
            .map(|millis| Duration::from_millis(u64::try_from(millis).unwrap_or(0)));
        let at_tip = lag.is_none_or(|lag| lag.is_zero());
        let (fresh, reached_time) = self.cut_at_end(fresh, at_tip && lag.is_some() && end.is_none());
        let nothing = fresh.records.is_empty();

        self.pace.answered(started, now, bytes, nothing && at_tip);
        self.recovered();
        self.at_tip = at_tip;
        self.iterator = reply.next_iterator;
        if self.asked == Asked::Plainly {
            // It may be shortened while the reader is at work: the next doubt asks again.
            self.retention = None;
        }
        if let Some(last) = fresh.records.last() {
            self.position = Position::After(last.sequence_number());
            if let Some(arrival) = arrival(last) {
                self.complete_until = self.complete_until.max(Some(arrival));
            }
        }
        let tip = if lag.is_some_and(|lag| lag.is_zero()) && !reached_time && end.is_none() {
            // As of when the call began.
            let waited = jiff::SignedDuration::try_from(now - started).unwrap_or_default();
            self.options.clock.now().checked_sub(waited).ok()
        } else {
            None
        };
        // A shard that was closed long ago is at its tip too, until the next answer says that it has ended. So that nothing
        // came until then is believed only once an answer after it is at the tip of an open shard.
        if tip.is_some() {
            self.complete_until = self.complete_until.max(self.tip);
        }
        self.tip = tip;
        self.empty_at_tip = if nothing && at_tip { self.empty_at_tip + 1 } else { 0 };
        if self.options.until.is_some() && !fresh.reached_until {
            if end.is_some() {
                return Err(self.missing("the shard ended before it".to_owned()));
            }
            if self.empty_at_tip >= EMPTY_AT_TIP {
                return Err(self.missing("the shard holds nothing after the records before it".to_owned()));
            }
        }
        let stalled = self.watch(now, nothing, lag);
        Ok(Ok(Accepted {
            cost: fresh.records.iter().map(Record::cost).sum(),
            records: fresh.records,
            last: self.position.sequence_number().cloned(),
            lag,
            // A replay ends at its last record; the end of the shard is for who reads on from there.
            end: end.filter(|_| self.options.until.is_none()),
            duplicates: fresh.duplicates,
            stalled,
            complete_until: self.complete_until,
            reached_until: fresh.reached_until,
            reached_time,
        }))
    }

    /// Whether the first answer shows the record that the position is after. If it shows another one, or the tip, what was
    /// in between is not known.
    fn prove(&mut self, reply: &Reply) -> Result<(), Error> {
        if self.asked == Asked::Plainly {
            return Ok(());
        }
        let first = reply.records.first();
        let behind = reply.millis_behind.is_some_and(|millis| millis > 0);
        match (first, self.first().or(self.position.sequence_number())) {
            (Some(first), Some(number)) if first.sequence_number() <= *number => {
                self.asked = Asked::Plainly;
                Ok(())
            }
            (Some(first), _) => {
                let message = format!(
                    "record {} comes next, and others may have come before it",
                    first.sequence_number()
                );
                Err(self.expired(&message, arrival(first), false))
            }
            // Empty answers on the way to the first record are usual.
            (None, _) if behind && reply.next_iterator.is_some() => Ok(()),
            // A replay that finds nothing for long enough is told so where its last record is missed.
            (None, _) if self.first().is_some() => Ok(()),
            (None, _) => Err(self.doubtful()),
        }
    }

    /// Cuts off what arrived at the end of a backfill or later. At the tip, the end has come once it is well past.
    fn cut_at_end(&self, mut fresh: check::Fresh, at_tip: bool) -> (check::Fresh, bool) {
        let Some(end) = self.options.end.filter(|_| self.options.until.is_none()) else {
            return (fresh, false);
        };
        if let Some(at) = fresh
            .records
            .iter()
            .position(|record| arrival(record).is_some_and(|time| time >= end))
        {
            fresh.records.truncate(at);
            return (fresh, true);
        }
        let past = end
            .checked_add(END_GRACE)
            .is_ok_and(|past| self.options.clock.now() >= past);
        (fresh, at_tip && past)
    }

    fn missing(&self, found: String) -> Error {
        let shard = self.options.shard.clone();
        match self.options.until.clone() {
            Some(until) => Error::RecordMissing { shard, until, found },
            None => self.expired(&found, None, false),
        }
    }

    fn recovered(&mut self) {
        self.probing = false;
        self.failing_since = None;
        self.trouble = None;
        self.shard_not_found = 0;
        self.invalid_arguments = 0;
        self.expired_iterators = 0;
        self.identity_renewed = false;
    }

    /// Gives up an iterator that brings nothing although the shard holds something. Many empty answers in a row are
    /// normal as long as the lag falls.
    fn watch(&mut self, now: Instant, nothing: bool, lag: Option<Duration>) -> bool {
        let Some(lag) = lag.filter(|lag| nothing && !lag.is_zero()) else {
            self.stall = None;
            return false;
        };
        match self.stall {
            Some(stall) if lag >= stall.lag && now - stall.since >= STALL => {
                self.iterator = None;
                self.stall = None;
                // A sequence number that has left the stream may bring nothing for ever; its time does.
                self.by_time = matches!(self.position, Position::After(_))
                    && gap::judge(self.complete_until, gap::SHORTEST_RETENTION, self.options.clock.now())
                        == Verdict::Safe;
                true
            }
            Some(stall) if lag >= stall.lag => false,
            _ => {
                self.stall = Some(Stall { since: now, lag });
                false
            }
        }
    }

    /// A call failed that was started at `started`.
    pub(super) fn on_failure(
        &mut self,
        started: Instant,
        now: Instant,
        failure: &Failure,
        jitter: f64,
    ) -> Result<(), Error> {
        let failing_since = *self.failing_since.get_or_insert(started);
        let lasted = now - failing_since;
        let (brake, shown) = match failure.kind {
            Kind::Throttled => (Some(Brake::Throttled), lasted >= SHOW_THROTTLING_AFTER),
            Kind::ExpiredIterator => {
                self.iterator = None;
                self.expired_iterators += 1;
                // A new one that is expired as well is not a matter of age.
                (
                    (self.expired_iterators > 1).then_some(Brake::Failed),
                    lasted >= SHOW_FAILURE_AFTER,
                )
            }
            // When to ask again is known better where subscriptions are counted.
            Kind::InUse if self.pushed => (None, lasted >= SHOW_IN_USE_AFTER),
            Kind::Transient | Kind::InUse => {
                self.probing = true;
                (Some(Brake::Failed), lasted >= SHOW_FAILURE_AFTER)
            }
            Kind::Malformed => {
                self.iterator = None;
                (Some(Brake::Failed), lasted >= SHOW_FAILURE_AFTER)
            }
            Kind::NotFound => {
                self.not_found(failure)?;
                (Some(Brake::Refused), true)
            }
            Kind::InvalidArgument => self.invalid_argument(failure, lasted)?,
            // A session may have come to its end: the next call is made with a new one.
            Kind::Credential | Kind::Nobody(_) if !std::mem::replace(&mut self.identity_renewed, true) => {
                self.iterator = None;
                (Some(Brake::Failed), false)
            }
            Kind::Denied | Kind::Credential | Kind::Nobody(_) => {
                self.iterator = None;
                (Some(Brake::Refused), true)
            }
            Kind::Refused => {
                return Err(Error::Refused {
                    message: describe(failure),
                });
            }
        };
        match brake {
            Some(brake) => self.pace.failed(started, now, brake, jitter),
            None => self.pace.counted(started),
        }
        if shown {
            let permanent = matches!(brake, Some(Brake::Refused));
            let message = format!("{}; {}", describe(failure), failure.remedy());
            self.trouble = Some(Trouble {
                reason: failure.kind.reason(),
                message,
                permanent,
            });
        }
        Ok(())
    }

    /// Not found is never the end of a shard: either the stream is gone, or the shard has left its retention.
    fn not_found(&mut self, failure: &Failure) -> Result<(), Error> {
        self.iterator = None;
        // While `verify_stream` is set it was the description that was not found, so this says nothing of the shard.
        if !self.verify_stream {
            self.shard_not_found += 1;
            if self.shard_not_found >= SHARD_NOT_FOUND {
                return Err(self.expired(&describe(failure), None, true));
            }
        }
        self.verify_stream = true;
        Ok(())
    }

    fn invalid_argument(&mut self, failure: &Failure, lasted: Duration) -> Result<(Option<Brake>, bool), Error> {
        let was_reading = self.iterator.take().is_some();
        let message = failure.message.to_ascii_lowercase();
        if message.contains("did not come from this stream") || message.contains("not from this stream") {
            return Err(Error::StreamRecreated {
                message: describe(failure),
            });
        }
        if message.contains("used in a call to a shard") || message.contains("encodes shard") {
            return Err(Error::Refused {
                message: describe(failure),
            });
        }
        if was_reading {
            self.invalid_arguments += 1;
            // The first time, a new iterator may be all that is needed.
            return Ok(match self.invalid_arguments {
                1 => (None, false),
                _ => (Some(Brake::Refused), true),
            });
        }
        match self.position {
            Position::After(_) => match self.verdict() {
                None => {
                    self.ask_retention = true;
                    Ok((None, false))
                }
                // Its record has left the stream, but none behind it has.
                Some(Verdict::Safe) if !self.by_time => {
                    self.by_time = true;
                    Ok((None, false))
                }
                Some(_) => Err(self.expired(&describe(failure), None, false)),
            },
            // The number of the first record is what is refused: it has left the stream.
            _ if self.options.first.is_some() => Err(self.expired(&describe(failure), None, false)),
            // A time in the future, where Kinesis' clock is behind: it will come.
            Position::AtTimestamp(_) => Ok((Some(Brake::Failed), lasted >= SHOW_FAILURE_AFTER)),
            Position::TrimHorizon => Err(Error::Refused {
                message: describe(failure),
            }),
        }
    }

    /// The shard that is read.
    pub(super) fn shard(&self) -> &ShardId {
        &self.options.shard
    }
}

/// When a record arrived, if Kinesis said so.
fn arrival(record: &Record) -> Option<Timestamp> {
    (record.arrival_millis > 0)
        .then(|| Timestamp::from_millisecond(record.arrival_millis).ok())
        .flatten()
}

fn describe(failure: &Failure) -> String {
    format!("{}: {}", failure.call, failure.message)
}

#[cfg(test)]
mod tests;

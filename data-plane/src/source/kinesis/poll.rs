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

use millrace_common::{
    ids::{SequenceNumber, ShardId},
    position::Position,
};
use tokio::time::Instant;

use super::{
    ReaderOptions, Stop, check,
    client::Reply,
    failure::{Failure, Kind},
    throttle::{Brake, Pace},
};
use crate::source::{Error, Record, ShardEnd, Trouble};

/// Most records of one call: Kinesis' own bound.
const FULL_LIMIT: i32 = 10_000;
/// Records of the first call after a failure: it asks whether Kinesis is there, and should not hold much of the budget
/// while nobody answers.
const PROBE_LIMIT: i32 = 100;
/// What a full answer may cost: 10 MiB of payload, and what 10,000 records cost beside it.
const FULL_RESERVE: usize = 10 * 1024 * 1024 + 10_000 * 256;
/// What an answer costs where little is expected: at the tip of a shard, which takes 1 MiB a second, or of a probe.
const SMALL_RESERVE: usize = 1024 * 1024;

/// Failures that may pass are not worth a word before they have lasted this long.
const SHOW_FAILURE_AFTER: Duration = Duration::from_secs(5);
/// The same for throttling, which every shared stream sees now and then.
const SHOW_THROTTLING_AFTER: Duration = Duration::from_secs(30);
/// An iterator that brings nothing for this long, although there is something, is given up for a new one.
const STALL: Duration = Duration::from_secs(60);
/// Empty answers at the tip after which a replay's missing record is believed to be gone.
const EMPTY_AT_TIP: u32 = 5;
/// "Not found" for the shard, while its stream is there, after which the shard is believed to be gone.
const SHARD_NOT_FOUND: u32 = 3;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing until then.
    Wait(Instant),
    /// Ask when the stream was created.
    VerifyStream,
    /// Ask for an iterator at this position.
    GetIterator(Position),
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
}

/// A stream as Kinesis describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CreatedStream {
    /// When it was created.
    pub(super) created_millis: i64,
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
    reached_until: bool,
}

impl Accepted {
    /// Whether the reader is through.
    pub(super) fn stop(&self) -> Option<Stop> {
        if self.reached_until {
            Some(Stop::Until)
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
    stall: Option<Stall>,
    empty_at_tip: u32,
}

impl Machine {
    pub(super) fn new(options: ReaderOptions, now: Instant) -> Self {
        Self {
            position: options.start.clone(),
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
        if self.verify_stream {
            return Action::VerifyStream;
        }
        let Some(iterator) = &self.iterator else {
            return Action::GetIterator(self.position.clone());
        };
        if now < self.pace.records_at() {
            return Action::Wait(self.pace.records_at());
        }
        let limit = if self.probing { PROBE_LIMIT } else { FULL_LIMIT };
        let reserve = if self.probing || self.at_tip {
            SMALL_RESERVE
        } else {
            FULL_RESERVE
        };
        Action::GetRecords {
            iterator: iterator.clone(),
            limit,
            reserve,
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
        Ok(())
    }

    /// An iterator was given.
    pub(super) fn on_iterator(&mut self, iterator: String) {
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
        let shard = &self.options.shard;
        let bytes = reply.records.iter().map(|record| record.data.len() as u64).sum();
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
        let nothing = fresh.records.is_empty();

        self.pace.answered(started, now, bytes, nothing && at_tip);
        self.recovered();
        self.at_tip = at_tip;
        self.iterator = reply.next_iterator;
        if let Some(last) = fresh.records.last() {
            self.position = Position::After(last.sequence_number.clone());
        }
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
            reached_until: fresh.reached_until,
        }))
    }

    fn missing(&self, found: String) -> Error {
        let shard = self.options.shard.clone();
        match self.options.until.clone() {
            Some(until) => Error::RecordMissing { shard, until, found },
            None => Error::PositionExpired {
                shard,
                position: self.position.clone(),
                message: found,
            },
        }
    }

    fn recovered(&mut self) {
        self.probing = false;
        self.failing_since = None;
        self.trouble = None;
        self.shard_not_found = 0;
        self.invalid_arguments = 0;
        self.expired_iterators = 0;
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
            Kind::Transient => {
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
            Kind::Denied | Kind::Credential => {
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
            let message = format!("{}; {}", describe(failure), failure.kind.remedy());
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
                return Err(self.gone(failure));
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
            Position::After(_) => Err(self.gone(failure)),
            // A time in the future, where Kinesis' clock is behind: it will come.
            Position::AtTimestamp(_) => Ok((Some(Brake::Failed), lasted >= SHOW_FAILURE_AFTER)),
            Position::TrimHorizon => Err(Error::Refused {
                message: describe(failure),
            }),
        }
    }

    fn gone(&self, failure: &Failure) -> Error {
        Error::PositionExpired {
            shard: self.options.shard.clone(),
            position: self.position.clone(),
            message: describe(failure),
        }
    }

    /// The shard that is read.
    pub(super) fn shard(&self) -> &ShardId {
        &self.options.shard
    }
}

fn describe(failure: &Failure) -> String {
    format!("{}: {}", failure.call, failure.message)
}

#[cfg(test)]
mod tests;

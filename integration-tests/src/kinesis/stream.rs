//! One stream: its state, its settings, and the rules by which its shards are written, read and replaced.
//!
//! Invariant: a shard that was replaced is closed before its children take a record, because both happen under this
//! stream's lock. A put holds the lock for reading, a reshard for writing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;

use super::consumers::Consumers;
use super::error::{Error, ErrorKind};
use super::hash_key;
use super::log::Data;
use super::sequence::SequenceNumber;
use super::shard::{self, Read, Shard, Start};

mod topology;

use topology::Topology;

/// Retention of a new stream, and the least there is.
pub(super) const MIN_RETENTION_HOURS: u32 = 24;
/// A year.
pub(super) const MAX_RETENTION_HOURS: u32 = 8_760;
/// The largest record of a new stream, and the least such limit.
pub(super) const MIN_RECORD_KIB: u32 = 1_024;
/// The largest that the limit can be set to.
pub(super) const MAX_RECORD_KIB: u32 = 10_240;
/// UpdateShardCount passes this often in any 24 hours.
const RESIZES_PER_DAY: usize = 10;
const HOUR_MS: i64 = 3_600_000;

/// Who pays for capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Provisioned,
    OnDemand,
}

impl Mode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Provisioned => "PROVISIONED",
            Self::OnDemand => "ON_DEMAND",
        }
    }
}

/// What a stream is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Creating,
    Active,
    Updating,
    Deleting,
    /// Deleted; its name is free.
    Gone,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Creating => "CREATING",
            Self::Active => "ACTIVE",
            Self::Updating => "UPDATING",
            Self::Deleting | Self::Gone => "DELETING",
        }
    }
}

/// A status that gives way to another one when its time has come.
#[derive(Clone, Copy, Debug)]
struct Transition {
    during: Status,
    until_ms: i64,
    then: Status,
}

/// What a stream is and stays.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) arn: String,
    pub(super) account: String,
    /// With the ARN, what tells a stream from another one of the same name.
    pub(super) created_s: u64,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) identity: Identity,
    opened_ms: i64,
    transition_time: Duration,
    /// Its registered consumers.
    pub(super) consumers: Consumers,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    topology: Topology,
    transition: Transition,
    settings: Settings,
    resized_ms: VecDeque<i64>,
}

/// What may be changed about a stream.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) mode: Mode,
    pub(super) retention_hours: u32,
    pub(super) max_record_kib: u32,
    pub(super) tags: BTreeMap<String, String>,
    /// ARN of the KMS key that records are encrypted with, if they are.
    pub(super) key_arn: Option<String>,
}

/// A record on its way in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming<'a> {
    pub(super) key: &'a str,
    pub(super) explicit_hash_key: Option<u128>,
    pub(super) data: Data<'a>,
}

/// The shard takes no more for the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Throttled {
    pub(super) shard: u32,
}

/// A page of a shard, with the shards that come after it when it has ended.
#[derive(Debug)]
pub(super) struct ShardRead {
    pub(super) read: Read,
    pub(super) children: Vec<Arc<Shard>>,
}

impl Stream {
    pub(super) fn create(
        identity: Identity,
        shards: u32,
        settings: Settings,
        now_ms: i64,
        transition_time: Duration,
    ) -> Self {
        let state = State {
            topology: Topology::uniform(shards, identity.created_s, now_ms),
            transition: Transition {
                during: Status::Creating,
                until_ms: i64::MIN,
                then: Status::Active,
            },
            settings,
            resized_ms: VecDeque::new(),
        };
        let stream = Self {
            identity,
            opened_ms: now_ms,
            transition_time,
            consumers: Consumers::new(transition_time),
            state: RwLock::new(state),
        };
        stream.enter(&mut stream.state.write(), now_ms, Status::Creating, Status::Active);
        stream
    }

    pub(super) fn status(&self, now_ms: i64) -> Status {
        self.state.read().status(now_ms)
    }

    pub(super) fn settings(&self) -> Settings {
        self.state.read().settings.clone()
    }

    pub(super) fn open_shard_count(&self) -> usize {
        self.state.read().topology.open().len()
    }

    /// The highest second in any of the stream's sequence numbers: a successor of its name must start above it.
    pub(super) fn last_epoch_s(&self) -> u64 {
        self.state
            .read()
            .topology
            .all()
            .iter()
            .map(|shard| shard.epoch_s)
            .max()
            .unwrap_or(self.identity.created_s)
    }

    /// Records that arrived before this are gone.
    pub(super) fn horizon_ms(&self, now_ms: i64) -> i64 {
        horizon_ms(now_ms, self.state.read().settings.retention_hours)
    }

    /// When the oldest shards were opened that anyone may still see.
    pub(super) fn trim_point_ms(&self, now_ms: i64) -> i64 {
        self.horizon_ms(now_ms).max(self.opened_ms)
    }

    /// All shards that hold, or may still get, records.
    pub(super) fn shards(&self, now_ms: i64) -> Vec<Arc<Shard>> {
        let state = self.state.read();
        let horizon = horizon_ms(now_ms, state.settings.retention_hours);
        state
            .topology
            .all()
            .iter()
            .filter(|shard| !is_expired(shard, horizon))
            .cloned()
            .collect()
    }

    /// One shard, unless it was closed so long ago that all its records are gone.
    pub(super) fn shard(&self, index: u32, now_ms: i64) -> Result<Arc<Shard>, Error> {
        self.state
            .read()
            .visible(index, now_ms)
            .cloned()
            .ok_or_else(|| self.no_such_shard(index))
    }

    /// The number of the shard that a request names; whether there is such a shard is asked later.
    pub(super) fn index_of(&self, shard_id: &str) -> Result<u32, Error> {
        shard::parse_id(shard_id).ok_or_else(|| self.could_not_find(shard_id))
    }

    pub(super) fn begin_delete(&self, now_ms: i64) {
        self.consumers.deregister_all(now_ms);
        self.enter(&mut self.state.write(), now_ms, Status::Deleting, Status::Gone);
    }

    /// Appends records in order. One whose shard takes no more does not keep back the others.
    pub(super) fn put<'a>(
        &self,
        now_ms: i64,
        enforce_limits: bool,
        records: impl IntoIterator<Item = Incoming<'a>>,
        mut placed: impl FnMut(Result<(u32, SequenceNumber), Throttled>),
    ) {
        let state = self.state.read();
        for record in records {
            let hash = record
                .explicit_hash_key
                .unwrap_or_else(|| hash_key::of_partition_key(record.key));
            let shard = state.topology.route(hash);
            placed(match shard.append(now_ms, enforce_limits, record.key, record.data) {
                Ok(sequence) => Ok((shard.index, sequence)),
                Err(shard::RateExceeded) => Err(Throttled { shard: shard.index }),
            });
        }
    }

    /// Where an iterator that starts so begins.
    pub(super) fn ordinal_of(&self, index: u32, start: Start, now_ms: i64) -> Result<u64, Error> {
        let horizon = self.horizon_ms(now_ms);
        let shard = self.shard(index, now_ms)?;
        shard.trim_before_ms(horizon);
        Ok(shard.ordinal_of(start))
    }

    /// Whether a number is that of a record that was held once, and is no more.
    pub(super) fn is_trimmed(&self, index: u32, number: SequenceNumber, now_ms: i64) -> Result<bool, Error> {
        let horizon = self.horizon_ms(now_ms);
        let shard = self.shard(index, now_ms)?;
        shard.trim_before_ms(horizon);
        Ok(shard.is_trimmed(number))
    }

    pub(super) fn read(
        &self,
        index: u32,
        ordinal: u64,
        limit: usize,
        now_ms: i64,
        enforce_limits: bool,
    ) -> Result<ShardRead, Error> {
        // Held throughout, so that a page that ends a shard and the list of its children belong together.
        let state = self.state.read();
        let shard = state.visible(index, now_ms).ok_or_else(|| self.no_such_shard(index))?;
        shard.trim_before_ms(horizon_ms(now_ms, state.settings.retention_hours));
        let read = shard
            .read(now_ms, enforce_limits, ordinal, limit)
            .map_err(|shard::RateExceeded| self.rate_exceeded(index))?;
        let children = if read.at_end {
            state.topology.children(index)
        } else {
            Vec::new()
        };
        Ok(ShardRead { read, children })
    }

    /// What a subscriber to a shard gets next; `None` if the shard has left the stream.
    pub(super) fn push(&self, index: u32, ordinal: u64, most_bytes: usize, now_ms: i64) -> Option<ShardRead> {
        let state = self.state.read();
        let shard = state.visible(index, now_ms)?;
        shard.trim_before_ms(horizon_ms(now_ms, state.settings.retention_hours));
        let read = shard.push(now_ms, ordinal, most_bytes);
        let children = if read.at_end {
            state.topology.children(index)
        } else {
            Vec::new()
        };
        Some(ShardRead { read, children })
    }

    /// Splits a shard in two, at `at` or in the middle.
    pub(super) fn split(&self, index: u32, at: Option<u128>, now_ms: i64) -> Result<(), Error> {
        let mut state = self.state.write();
        self.require_active(&state, now_ms)?;
        let shard = self.require_open(&state, index)?;
        let at = at.unwrap_or_else(|| shard.range.middle());
        let Some((left, right)) = shard.range.split_at(at) else {
            return Err(Error::invalid_argument(format!(
                "NewStartingHashKey {at} used in SplitShard() on shard {} in {} is not both greater than one plus the \
                 shard's StartingHashKey {} and less than the shard's EndingHashKey {}.",
                shard.id(),
                self.label(),
                shard.range.start_inclusive,
                shard.range.end_inclusive
            )));
        };
        state.topology.replace(&[index], &[left, right], now_ms);
        self.enter(&mut state, now_ms, Status::Updating, Status::Active);
        Ok(())
    }

    /// Merges a shard with the one whose hash keys follow (or precede) its own.
    pub(super) fn merge(&self, index: u32, adjacent: u32, now_ms: i64) -> Result<(), Error> {
        let mut state = self.state.write();
        self.require_active(&state, now_ms)?;
        let (first, second) = (self.require_open(&state, index)?, self.require_open(&state, adjacent)?);
        let Some(range) = first
            .range
            .join(second.range)
            .or_else(|| second.range.join(first.range))
        else {
            return Err(Error::invalid_argument(format!(
                "Shards {} and {} in {} are not an adjacent pair of shards eligible for merging",
                first.id(),
                second.id(),
                self.label()
            )));
        };
        state.topology.replace(&[index, adjacent], &[range], now_ms);
        self.enter(&mut state, now_ms, Status::Updating, Status::Active);
        Ok(())
    }

    /// Splits and merges until there are `target` open shards of equal width; returns how many there were.
    pub(super) fn resize(&self, target: u32, now_ms: i64, enforce_limits: bool) -> Result<usize, Error> {
        let mut state = self.state.write();
        self.require_active(&state, now_ms)?;
        let current = state.topology.open().len();
        let exceeded = |message: String| {
            Err(Error::new(
                ErrorKind::LimitExceeded,
                format!("{message} Current open shard count: {current}, Target shard count: {target}"),
            ))
        };
        if target as usize > current * 2 {
            return exceeded("UpdateShardCount cannot scale up over double your current open shard count.".to_owned());
        }
        if (target as usize) * 2 < current {
            return exceeded("UpdateShardCount cannot scale down below half your current open shard count.".to_owned());
        }
        if enforce_limits && !state.may_resize(now_ms) {
            return exceeded(format!("UpdateShardCount passes {RESIZES_PER_DAY} times in 24 hours."));
        }
        state.topology.make_uniform(target, now_ms);
        self.enter(&mut state, now_ms, Status::Updating, Status::Active);
        Ok(current)
    }

    /// Changes settings by `change`, which may refuse.
    pub(super) fn update<T>(
        &self,
        now_ms: i64,
        change: impl FnOnce(&mut Settings) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut state = self.state.write();
        self.require_active(&state, now_ms)?;
        change(&mut state.settings)
    }

    /// "stream x under account y", as the service's messages have it.
    pub(super) fn label(&self) -> String {
        format!("stream {} under account {}", self.identity.name, self.identity.account)
    }

    pub(super) fn no_such_shard(&self, index: u32) -> Error {
        Error::not_found(format!("Shard {} in {} does not exist", shard::id(index), self.label()))
    }

    pub(super) fn rate_exceeded(&self, index: u32) -> Error {
        Error::new(
            ErrorKind::ProvisionedThroughputExceeded,
            format!("Rate exceeded for shard {} in {}.", shard::id(index), self.label()),
        )
    }

    fn could_not_find(&self, shard_id: &str) -> Error {
        Error::not_found(format!("Could not find shard {shard_id} in {}.", self.label()))
    }

    fn require_active(&self, state: &State, now_ms: i64) -> Result<(), Error> {
        let status = state.status(now_ms);
        if status == Status::Active {
            return Ok(());
        }
        let label = self.label();
        Err(Error::new(
            ErrorKind::ResourceInUse,
            format!("S{} not ACTIVE, instead in state {}", &label[1..], status.name()),
        ))
    }

    fn require_open(&self, state: &State, index: u32) -> Result<Arc<Shard>, Error> {
        let shard = state
            .topology
            .get(index)
            .ok_or_else(|| self.could_not_find(&shard::id(index)))?;
        match shard.closed() {
            None => Ok(Arc::clone(shard)),
            Some(_) => Err(Error::invalid_argument(format!(
                "Shard {} in {} has already been merged or split, and thus is not eligible for merging or splitting.",
                shard.id(),
                self.label()
            ))),
        }
    }

    fn enter(&self, state: &mut State, now_ms: i64, during: Status, then: Status) {
        let wait_ms = i64::try_from(self.transition_time.as_millis()).unwrap_or(i64::MAX);
        state.transition = Transition {
            during,
            until_ms: now_ms.saturating_add(wait_ms),
            then,
        };
    }
}

impl State {
    fn status(&self, now_ms: i64) -> Status {
        let Transition { during, until_ms, then } = self.transition;
        if now_ms < until_ms { during } else { then }
    }

    fn visible(&self, index: u32, now_ms: i64) -> Option<&Arc<Shard>> {
        let horizon = horizon_ms(now_ms, self.settings.retention_hours);
        self.topology.get(index).filter(|shard| !is_expired(shard, horizon))
    }

    fn may_resize(&mut self, now_ms: i64) -> bool {
        while self.resized_ms.front().is_some_and(|at| at + 24 * HOUR_MS <= now_ms) {
            self.resized_ms.pop_front();
        }
        let may = self.resized_ms.len() < RESIZES_PER_DAY;
        if may {
            self.resized_ms.push_back(now_ms);
        }
        may
    }
}

fn horizon_ms(now_ms: i64, retention_hours: u32) -> i64 {
    now_ms - i64::from(retention_hours) * HOUR_MS
}

fn is_expired(shard: &Shard, horizon_ms: i64) -> bool {
    shard.closed().is_some_and(|closed| closed.at_ms < horizon_ms)
}

#[cfg(test)]
mod tests;

//! All streams of one account in one region: the root of the emulator's state.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::cursor::Seal;
use super::error::{Error, ErrorKind};
use super::iam::Sessions;
use super::operations::Operation;
use super::options::Options;
use super::script::Script;
use super::shard::{self, Start};
use super::stream::{Identity, Settings, Status, Stream};

/// The state that all connections and the tests share.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) options: Options,
    pub(super) seal: Seal,
    pub(super) script: Arc<Script>,
    pub(super) sessions: Sessions,
    streams: RwLock<Streams>,
    calls: [AtomicU64; Operation::ALL.len()],
}

#[derive(Debug, Default)]
struct Streams {
    by_name: BTreeMap<String, Arc<Stream>>,
    /// The last second that sequence numbers of a deleted stream carry: a later stream of its name starts above it, so
    /// that no number of the old one is taken for one of the new one.
    last_epoch_s: HashMap<String, u64>,
}

impl Account {
    pub(super) fn new(options: Options) -> Self {
        let roles = options.iam.as_ref().map(|iam| iam.roles.clone()).unwrap_or_default();
        Self {
            options,
            seal: Seal::default(),
            script: Arc::default(),
            sessions: Sessions::new(roles),
            streams: RwLock::default(),
            calls: std::array::from_fn(|_| 0.into()),
        }
    }

    pub(super) fn now_ms(&self) -> i64 {
        self.options.clock.now_ms()
    }

    /// Refuses a number whose record was trimmed, where this emulator does that.
    pub(super) fn refuse_trimmed(&self, stream: &Stream, shard: u32, start: Start, now_ms: i64) -> Result<(), Error> {
        if self.options.refuse_trimmed_numbers
            && let Start::At(number) | Start::After(number) = start
            && stream.is_trimmed(shard, number, now_ms)?
        {
            return Err(Error::invalid_argument(format!(
                "StartingSequenceNumber {number} used in GetShardIterator on shard {} in {} is invalid.",
                shard::id(shard),
                stream.label()
            )));
        }
        Ok(())
    }

    pub(super) fn count_call(&self, operation: Operation) {
        self.calls[operation as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn calls(&self, operation: Operation) -> u64 {
        self.calls[operation as usize].load(Ordering::Relaxed)
    }

    pub(super) fn create(&self, name: &str, shards: u32, settings: Settings) -> Result<(), Error> {
        self.require_shard_room(shards as usize)?;
        let now_ms = self.now_ms();
        let mut streams = self.streams.write();
        if streams.live(name, now_ms).is_some() {
            let account = &self.options.account;
            return Err(Error::new(
                ErrorKind::ResourceInUse,
                format!("Stream {name} under account {account} already exists."),
            ));
        }
        streams.bury(name);
        let first_free_s = streams.last_epoch_s.get(name).map_or(0, |last| last + 1);
        let identity = Identity {
            name: name.to_owned(),
            arn: self.arn(name),
            account: self.options.account.clone(),
            created_s: shard::seconds(now_ms).max(first_free_s),
        };
        let stream = Stream::create(identity, shards, settings, now_ms, self.options.transition);
        streams.by_name.insert(name.to_owned(), Arc::new(stream));
        Ok(())
    }

    /// A stream in any state, by name, by ARN, or by both.
    pub(super) fn stream(&self, name: Option<&str>, arn: Option<&str>) -> Result<Arc<Stream>, Error> {
        let name = self.resolve(name, arn)?;
        self.streams
            .read()
            .live(name, self.now_ms())
            .cloned()
            .ok_or_else(|| self.no_such_stream(name))
    }

    /// A stream that takes and gives records.
    pub(super) fn readable_stream(&self, name: Option<&str>, arn: Option<&str>) -> Result<Arc<Stream>, Error> {
        let stream = self.stream(name, arn)?;
        match stream.status(self.now_ms()) {
            Status::Active | Status::Updating => Ok(stream),
            Status::Creating | Status::Deleting | Status::Gone => Err(self.no_such_stream(&stream.identity.name)),
        }
    }

    /// All streams in the order of their names.
    pub(super) fn streams(&self) -> Vec<Arc<Stream>> {
        let now_ms = self.now_ms();
        let streams = self.streams.read();
        streams
            .by_name
            .values()
            .filter(|stream| stream.status(now_ms) != Status::Gone)
            .cloned()
            .collect()
    }

    /// Refuses where `more` open shards would pass the account's limit.
    pub(super) fn require_shard_room(&self, more: usize) -> Result<(), Error> {
        let Options {
            shard_limit,
            account,
            region,
            ..
        } = &self.options;
        let current: usize = self.streams().iter().map(|stream| stream.open_shard_count()).sum();
        if current + more <= *shard_limit {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::LimitExceeded,
            format!(
                "This request would exceed the shard limit for the account {account} in {region}. Current shard count \
                 for the account: {current}. Limit: {shard_limit}. Number of additional shards that would have \
                 resulted from this request: {more}."
            ),
        ))
    }

    pub(super) fn no_such_stream(&self, name: &str) -> Error {
        Error::not_found(format!(
            "Stream {name} under account {} not found.",
            self.options.account
        ))
    }

    pub(super) fn arn(&self, name: &str) -> String {
        format!(
            "arn:aws:kinesis:{}:{}:stream/{name}",
            self.options.region, self.options.account
        )
    }

    fn resolve<'a>(&self, name: Option<&'a str>, arn: Option<&'a str>) -> Result<&'a str, Error> {
        let of_arn = match arn {
            None => None,
            Some(arn) => {
                let name = arn.rsplit_once(":stream/").map(|(_, name)| name).unwrap_or_default();
                if self.arn(name) != arn {
                    return Err(Error::not_found(format!("Stream {arn} not found.")));
                }
                Some(name)
            }
        };
        match (name, of_arn) {
            (Some(name), Some(of_arn)) if name != of_arn => Err(Error::invalid_argument(format!(
                "StreamName {name} and StreamARN {} name different streams.",
                self.arn(of_arn)
            ))),
            (Some(name), _) | (None, Some(name)) => Ok(name),
            (None, None) => Err(Error::invalid_argument(
                "Either StreamName or StreamARN must be provided.",
            )),
        }
    }
}

impl Streams {
    fn live(&self, name: &str, now_ms: i64) -> Option<&Arc<Stream>> {
        self.by_name
            .get(name)
            .filter(|stream| stream.status(now_ms) != Status::Gone)
    }

    /// Forgets a deleted stream but for what its successor must know.
    fn bury(&mut self, name: &str) {
        if let Some(stream) = self.by_name.remove(name) {
            self.last_epoch_s.insert(name.to_owned(), stream.last_epoch_s());
        }
    }
}

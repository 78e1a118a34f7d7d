//! What happens to a pipe, for people: who changed it, what it met, what was decided for it.
//!
//! An event is written in the transaction that makes what it tells of, where there is one. Nothing is decided by events:
//! they are pruned. What a pipe *is* is its status, not its last event.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use millrace_common::ids::{EventId, ShardId};

/// Kinds of events. They are part of the API: once published, a kind keeps its meaning.
pub mod kind {
    macro_rules! kinds {
        ($($(#[$doc:meta])* $name:ident;)*) => {
            $($(#[$doc])* pub const $name: &str = stringify!($name);)*
            /// All of them.
            pub const ALL: &[&str] = &[$($name),*];
        };
    }

    kinds! {
        /// A user created the pipe.
        PIPE_CREATED;
        /// A user changed the pipe; `fields` names what.
        PIPE_UPDATED;
        /// A user asked for the pipe to run.
        PIPE_STARTED;
        /// A user asked for the pipe to stop.
        PIPE_STOPPED;
        /// The state that the pipe shows became another one; `from`, `to` and `reason`.
        STATE_CHANGED;
        /// Something that is stored of the pipe cannot be read, so it stands still; the message names the column.
        PIPE_DAMAGED;
        /// A shard of the stream was taken in.
        SHARD_ADDED;
        /// A shard was read to its end, and all of it is committed.
        SHARD_FINISHED;
        /// Records may have left the stream before they were read; `position`, `from_time` and `to_time` say which.
        DATA_GAP;
        /// The stream was deleted and created again under its name.
        STREAM_RECREATED;
        /// A user moved positions; `from` and `to`.
        POSITION_RESET;
        /// A batch was committed so late that its deduplication token may have left ClickHouse's window meanwhile; `batch`,
        /// `open_seconds` and the size of the window.
        REPLAY_LATE;
        /// What the pipe promises in effect became another promise; `from`, `to` and `reason`.
        PROMISE_CHANGED;
        /// Somebody had made the deduplication window of a managed table smaller, and Millrace has put it back; `table`,
        /// `setting`, `from` and `to`.
        WINDOW_RESTORED;
        /// A consumer that Millrace had registered for the pipe, and that it does not read with any more, was found and deregistered;
        /// `consumer` and `stream`.
        CONSUMER_DEREGISTERED;
        /// A user had rejected records deleted from the error table; `records`, `table`, and what
        /// they had in common: `error_type`, `shard_id`, `from_time`, `to_time`.
        REJECTED_DISCARDED;
        /// So many records were rejected that the pipe halts until a person looks; `records` and `limit`.
        REJECTED_LIMIT_REACHED;
    }
}

/// The actor of what Millrace does by itself.
pub const SYSTEM: &str = "system";
/// The actor of what comes through the API.
pub const USER: &str = "user";

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Info,
    /// Worth a look.
    Warning,
    /// Data or work is in question: a person has to look.
    Error,
}

/// An event to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// One of [`kind`].
    pub kind: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// Who did it: [`USER`], [`SYSTEM`] or `worker/{id}`.
    pub actor: String,
    /// The shard that it is about, if it is about one.
    pub shard: Option<ShardId>,
    /// What happened and, if something is to be done, what; for people.
    pub message: String,
    /// The same for machines.
    pub details: BTreeMap<String, String>,
    /// Names what was observed: of all observations of one name a pipe gets one event.
    pub once: Option<String>,
}

impl NewEvent {
    /// An event of the system, of no shard.
    pub fn new(kind: &'static str, severity: Severity, message: impl Into<String>) -> Self {
        Self {
            kind,
            severity,
            actor: SYSTEM.to_owned(),
            shard: None,
            message: message.into(),
            details: BTreeMap::new(),
            once: None,
        }
    }

    /// Done by somebody else.
    #[must_use]
    pub fn by(mut self, actor: impl Into<String>) -> Self {
        self.actor = actor.into();
        self
    }

    /// About a shard.
    #[must_use]
    pub fn of_shard(mut self, shard: ShardId) -> Self {
        self.shard = Some(shard);
        self
    }

    /// With a detail.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.details.insert(key.to_owned(), value.to_string());
        self
    }

    /// Not again for an observation of the same name.
    #[must_use]
    pub fn once(mut self, name: impl Into<String>) -> Self {
        self.once = Some(name.into());
        self
    }
}

/// An event as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Identity; rises.
    pub id: EventId,
    /// When it was written.
    pub time: Timestamp,
    /// One of [`kind`], or one that a newer release wrote.
    pub kind: String,
    /// How much it matters.
    pub severity: Severity,
    /// Who did it.
    pub actor: String,
    /// The shard that it is about.
    pub shard: Option<ShardId>,
    /// For people.
    pub message: String,
    /// For machines.
    pub details: BTreeMap<String, String>,
}

//! What ends a reader, and what it lives through.
//!
//! An [`Error`] ends it: reading on from the same place would be wrong or useless. Everything else is a [`Trouble`]: the
//! reader retries for as long as it lives and says meanwhile what is the matter.

use std::time::Duration;

use jiff::Timestamp;
use millrace_common::{
    error::{Fault, Retry},
    ids::{SequenceNumber, ShardId},
    position::Position,
    reason,
};

/// How long to wait before a reader that ended is worth another try: a person has to do something first.
const PROBE: Duration = Duration::from_secs(60);

/// The same for what may pass by itself.
const SOON: Duration = Duration::from_secs(10);

/// Why a reader ended before its shard did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The position belongs to another stream of that name.
    #[error("the stream was deleted and created again under its name: {message}")]
    StreamRecreated {
        /// What says so.
        message: String,
    },
    /// Records behind the position may have left the stream before they were read.
    #[error("records of {shard} {position} may have left the stream before they were read: {message}")]
    PositionExpired {
        /// The shard.
        shard: ShardId,
        /// The position.
        position: Box<Position>,
        /// What Kinesis answered.
        message: String,
        /// What arrived before this was read, if it is known.
        from: Option<Timestamp>,
        /// What arrived since this is still there, if it is known.
        to: Option<Timestamp>,
        /// Kinesis has no such shard any more.
        shard_gone: bool,
    },
    /// A replay went past its last record, or came to the end, without seeing it.
    #[error("record {until} of {shard}, the last of a prepared batch, is not in the stream any more: {found}")]
    RecordMissing {
        /// The shard.
        shard: ShardId,
        /// The record.
        until: SequenceNumber,
        /// What was found instead.
        found: String,
    },
    /// Records are there, and what is to become of messages in them is not known yet: no position is at fault.
    #[error(
        "the hash keys of {shard}, which tell its own messages of an aggregate from others, are not known: {message}"
    )]
    HashKeysUnknown {
        /// The shard.
        shard: ShardId,
        /// What Kinesis answered, and what to do.
        message: String,
        /// Stable reason.
        reason: &'static str,
    },
    /// Kinesis calls a request malformed, so it would be every time.
    #[error("Kinesis refuses a request as invalid: {message}")]
    Refused {
        /// What it answered.
        message: String,
    },
}

impl Error {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Error::StreamRecreated { .. } | Error::PositionExpired { .. } | Error::RecordMissing { .. } => Fault::User,
            Error::HashKeysUnknown { .. } => Fault::External,
            Error::Refused { .. } => Fault::Internal,
        }
    }

    /// Whether to start a reader again with the same position.
    pub fn retry(&self) -> Retry {
        match self {
            Error::StreamRecreated { .. } | Error::PositionExpired { .. } | Error::RecordMissing { .. } => Retry::Never,
            Error::HashKeysUnknown { .. } => Retry::After(SOON),
            Error::Refused { .. } => Retry::After(PROBE),
        }
    }

    /// The stable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Error::StreamRecreated { .. } => reason::SOURCE_STREAM_RECREATED,
            Error::PositionExpired { .. } | Error::RecordMissing { .. } => reason::SOURCE_POSITION_EXPIRED,
            Error::HashKeysUnknown { reason, .. } => reason,
            Error::Refused { .. } => reason::INTERNAL,
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Error::StreamRecreated { .. } => {
                "take the new stream with `millrace pipe reset-position PIPE --adopt-stream`, or create a new pipe for it"
            }
            Error::PositionExpired { .. } => {
                "go on at the oldest record with `millrace pipe reset-position PIPE --to trim-horizon`, or set \
                 settings.on_data_gap to RESUME; and give the stream a longer retention"
            }
            Error::RecordMissing { .. } => {
                "its rows may be in the table or not; give it up and go on with `millrace pipe reset-position PIPE --to \
                 trim-horizon --abandon-open-batches`, or set settings.on_data_gap to RESUME"
            }
            Error::HashKeysUnknown { .. } => {
                "see that kinesis:ListShards is allowed on the stream; nothing is lost, and Millrace tries again by itself"
            }
            Error::Refused { .. } => "this is a defect of Millrace: please report it with the worker's log",
        }
    }
}

/// What keeps a reader from reading just now. It goes away by itself once the cause does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Stable reason.
    pub reason: &'static str,
    /// What is wrong and what to do about it.
    pub message: String,
    /// A person has to act first; otherwise waiting may be enough.
    pub permanent: bool,
}

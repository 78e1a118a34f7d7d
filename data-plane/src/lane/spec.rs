//! What a lane is to run, as the control plane says, in words of this crate. Plain data.

use std::{collections::BTreeMap, fmt, sync::Arc};

use jiff::Timestamp;
use millrace_common::{
    aws,
    batch::OpenBatch,
    ids::{Epoch, PipeUid, Revision, ShardId},
    pipe::{Compression, Decoding, Delivery, MappedColumn, PollingBudget, StreamIdentity},
    position::Position,
};
use secrecy::SecretString;

use super::fault::Fault;
use crate::{batch::cut::Limits, source::kinesis::Consumer};

/// The whole desired state of a lane.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// The pipe.
    pub pipe: PipeUid,
    /// Its resource name, for logs.
    pub name: String,
    /// The revision that new batches are made with.
    pub current: Revision,
    /// That revision, and older ones that open batches were made with. One that cannot be understood is a fault of the
    /// lane and of nobody else.
    pub specs: BTreeMap<Revision, Result<Arc<Spec>, Fault>>,
    /// Shards to read.
    pub shards: BTreeMap<ShardId, Grant>,
    /// Prepared batches to finish first, oldest first.
    pub open_batches: Vec<OpenBatch>,
}

impl Assignment {
    /// The same lane with nothing left to do: what it holds is to be flushed, committed and released.
    #[must_use]
    pub fn emptied(&self) -> Self {
        Self {
            shards: BTreeMap::new(),
            open_batches: Vec::new(),
            ..self.clone()
        }
    }
}

/// The lease of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Its epoch.
    pub epoch: Epoch,
    /// Where to read on once the open batches are committed.
    pub start: Position,
    /// All records that arrived before this lie before the checkpoint, as far as that is known.
    pub complete_until: Option<Timestamp>,
}

/// One revision of a pipe.
#[derive(Debug)]
pub struct Spec {
    /// Revision.
    pub revision: Revision,
    /// Where records come from.
    pub source: Source,
    /// Where rows go.
    pub destination: Destination,
    /// Columns to fill, in the order of the block.
    pub columns: Vec<MappedColumn>,
    /// Time zone of columns whose type names none.
    pub time_zone: String,
    /// How records become rows.
    pub decoding: Decoding,
    /// When to close a batch.
    pub limits: Limits,
    /// How blocks travel.
    pub compression: Compression,
    /// What is promised.
    pub delivery: Delivery,
}

/// Tells whether two settings with secrets in them are the same. Not for storing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub u128);

/// Access to a stream.
#[derive(Debug)]
pub struct Source {
    /// The stream.
    pub stream: StreamIdentity,
    /// Where and as whom to call AWS.
    pub access: aws::Access,
    /// Records that arrived then or later are not read.
    pub end: Option<Timestamp>,
    /// What to read with by enhanced fan-out; it is polled where there is none.
    pub consumer: Option<Consumer>,
    /// How fast a shard may be polled.
    pub polling: PollingBudget,
    /// Of all of this.
    pub fingerprint: Fingerprint,
}

/// Access to the tables.
pub struct Destination {
    /// HTTP endpoint.
    pub endpoint: String,
    /// User.
    pub username: String,
    /// Password.
    pub password: SecretString,
    /// Database.
    pub database: String,
    /// Table.
    pub table: String,
    /// Error table, in the same database.
    pub error_table: String,
    /// Of all of this.
    pub fingerprint: Fingerprint,
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Destination")
            .field("endpoint", &self.endpoint)
            .field("username", &self.username)
            .field("database", &self.database)
            .field("table", &self.table)
            .field("error_table", &self.error_table)
            .finish_non_exhaustive()
    }
}

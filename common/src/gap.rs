//! Records that a reader could not find: what a worker reports, and what the control plane decides on.

use jiff::Timestamp;

use crate::{ids::BatchId, position::Position};

/// Records that may have left the stream before they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataGap {
    /// After this they are missing.
    pub position: Position,
    /// The open batch that needs them, if it is one that cannot be built again.
    pub batch: Option<BatchId>,
    /// What arrived before this is safe, as far as that is known.
    pub from: Option<Timestamp>,
    /// What arrived since this is still there, as far as that is known.
    pub to: Option<Timestamp>,
    /// Kinesis has no such shard any more.
    pub shard_gone: bool,
    /// What was found, for people.
    pub message: String,
}

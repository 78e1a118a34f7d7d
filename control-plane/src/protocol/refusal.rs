//! Why the protocol forbids something: what was expected, what was found, and of which shard.

use std::fmt;

use millrace_common::{
    ids::{BatchId, Epoch, Revision, SequenceNumber, ShardId, WorkerInstance},
    position::Position,
};

use super::ShardPhase;

/// Why the protocol forbids something. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The pipe has no such shard.
    #[error("shard {shard}: not a shard of this pipe")]
    UnknownShard {
        /// The shard.
        shard: ShardId,
    },
    /// The caller did not say under which epoch it holds a shard.
    #[error("shard {shard}: no epoch was given for it")]
    NoEpoch {
        /// The shard.
        shard: ShardId,
    },
    /// The shard was granted again in the meantime, or never under that epoch.
    #[error("shard {shard}: its epoch is {expected}, not {found}")]
    StaleEpoch {
        /// The shard.
        shard: ShardId,
        /// The current epoch.
        expected: Epoch,
        /// What the caller gave.
        found: Epoch,
    },
    /// Another worker holds the shard, or nobody does.
    #[error("shard {shard}: it is held by {}, not by {found}", Holder(expected.as_ref()))]
    NotOwner {
        /// The shard.
        shard: ShardId,
        /// Who holds it.
        expected: Option<WorkerInstance>,
        /// The caller.
        found: WorkerInstance,
    },
    /// The shard waits for its parents, or is finished.
    #[error("shard {shard}: it is {}, not open", phase(*found))]
    NotOpen {
        /// The shard.
        shard: ShardId,
        /// Where it is in its life.
        found: ShardPhase,
    },
    /// A parent is not finished.
    #[error("shard {shard}: its parent {parent} is not finished")]
    ParentUnfinished {
        /// The shard.
        shard: ShardId,
        /// The parent.
        parent: ShardId,
    },
    /// A batch without slices.
    #[error("a batch needs at least one slice, found none")]
    NoSlices,
    /// A shard is named twice.
    #[error("shard {shard}: named more than once, expected once")]
    RepeatedShard {
        /// The shard.
        shard: ShardId,
    },
    /// A slice that ends before it starts.
    #[error("shard {shard}: a slice from {from} cannot end with {to}")]
    Backward {
        /// The shard.
        shard: ShardId,
        /// Where the slice starts.
        from: Position,
        /// Where it ends.
        to: SequenceNumber,
    },
    /// A slice that does not start where the last one ended.
    #[error("shard {shard}: the next slice starts {expected}, not {found}")]
    NotAtFrontier {
        /// The shard.
        shard: ShardId,
        /// The shard's frontier.
        expected: Position,
        /// Where the slice starts.
        found: Position,
    },
    /// The pipe has no such revision, or has it no more.
    #[error("the pipe has no revision {found}; the current one is {expected}")]
    UnknownRevision {
        /// The current revision.
        expected: Revision,
        /// What the caller gave.
        found: Revision,
    },
    /// The same batch id stands for something else.
    #[error("batch {batch}: it is open with other content than was given")]
    OtherContent {
        /// The batch.
        batch: BatchId,
    },
    /// The batch id was used up.
    #[error("batch {batch}: it is committed already and cannot be prepared again")]
    AlreadyCommitted {
        /// The batch.
        batch: BatchId,
    },
    /// No such batch.
    #[error("batch {batch}: neither open nor committed lately")]
    UnknownBatch {
        /// The batch.
        batch: BatchId,
    },
    /// An older batch of the shard has to be committed first.
    #[error("shard {shard}: its oldest open batch is {}, not {found}", Oldest(*expected))]
    NotOldest {
        /// The shard.
        shard: ShardId,
        /// Its oldest open batch.
        expected: Option<BatchId>,
        /// What the caller gave.
        found: BatchId,
    },
    /// Batches of the shard are open where none may be.
    #[error("shard {shard}: {found} open batches, expected none")]
    OpenBatches {
        /// The shard.
        shard: ShardId,
        /// How many.
        found: usize,
    },
    /// Too many open batches.
    #[error("shard {shard}: {found} open batches, at most {limit} may be")]
    TooManyOpen {
        /// The shard.
        shard: ShardId,
        /// The bound.
        limit: usize,
        /// How many.
        found: usize,
    },
    /// A count that cannot be.
    #[error("a batch has at most {limit} {what}, found {found}")]
    TooLarge {
        /// What is counted.
        what: &'static str,
        /// The bound.
        limit: u64,
        /// The count.
        found: u64,
    },
    /// A grant that would tear an open batch apart.
    #[error(
        "shard {shard}: its open batch {batch} also covers {other}, which must be granted with it to the same worker"
    )]
    TornBatch {
        /// A shard of the grant.
        shard: ShardId,
        /// The open batch.
        batch: BatchId,
        /// A shard that is missing in the grant.
        other: ShardId,
    },
    /// Parts that do not cover just what the batch covers.
    #[error("batch {batch}: the parts that are to replace it do not tile its slice of {shard}")]
    NotTiling {
        /// The batch.
        batch: BatchId,
        /// The shard.
        shard: ShardId,
    },
    /// Parts that do not count just the records that the batch counts.
    #[error("batch {batch}: it has {expected} records, the parts that are to replace it have {found}")]
    OtherRecords {
        /// The batch.
        batch: BatchId,
        /// Its records.
        expected: u64,
        /// Records of the parts.
        found: u64,
    },
    /// A batch cannot be replaced by nothing.
    #[error("batch {batch}: it is to be replaced by {found} parts, expected 1 to {limit}")]
    PartCount {
        /// The batch.
        batch: BatchId,
        /// The bound.
        limit: usize,
        /// Parts that were given.
        found: usize,
    },
    /// What was given as a child of a shard does not name it as its parent.
    #[error("shard {child}: given as a child of {shard}, which is not among its parents")]
    NotAChild {
        /// The parent.
        shard: ShardId,
        /// The shard that is not its child.
        child: ShardId,
    },
}

impl Refusal {
    /// Stable UPPER_SNAKE_CASE name of the reason.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::UnknownShard { .. } => "UNKNOWN_SHARD",
            Refusal::NoEpoch { .. } => "NO_EPOCH",
            Refusal::StaleEpoch { .. } => "STALE_EPOCH",
            Refusal::NotOwner { .. } => "NOT_OWNER",
            Refusal::NotOpen { .. } => "SHARD_NOT_OPEN",
            Refusal::ParentUnfinished { .. } => "PARENT_UNFINISHED",
            Refusal::NoSlices => "NO_SLICES",
            Refusal::RepeatedShard { .. } => "REPEATED_SHARD",
            Refusal::Backward { .. } => "BACKWARD_SLICE",
            Refusal::NotAtFrontier { .. } => "NOT_AT_FRONTIER",
            Refusal::UnknownRevision { .. } => "UNKNOWN_REVISION",
            Refusal::OtherContent { .. } => "OTHER_CONTENT",
            Refusal::AlreadyCommitted { .. } => "ALREADY_COMMITTED",
            Refusal::UnknownBatch { .. } => "UNKNOWN_BATCH",
            Refusal::NotOldest { .. } => "NOT_OLDEST",
            Refusal::OpenBatches { .. } => "OPEN_BATCHES",
            Refusal::TooManyOpen { .. } => "TOO_MANY_OPEN",
            Refusal::TooLarge { .. } => "TOO_LARGE",
            Refusal::TornBatch { .. } => "TORN_BATCH",
            Refusal::NotTiling { .. } => "NOT_TILING",
            Refusal::OtherRecords { .. } => "OTHER_RECORDS",
            Refusal::PartCount { .. } => "PART_COUNT",
            Refusal::NotAChild { .. } => "NOT_A_CHILD",
        }
    }
}

fn phase(phase: ShardPhase) -> &'static str {
    match phase {
        ShardPhase::Waiting => "waiting for its parents",
        ShardPhase::Open => "open",
        ShardPhase::Finished => "finished",
    }
}

struct Holder<'a>(Option<&'a WorkerInstance>);

impl fmt::Display for Holder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(holder) => holder.fmt(f),
            None => f.write_str("nobody"),
        }
    }
}

struct Oldest(Option<BatchId>);

impl fmt::Display for Oldest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(batch) => batch.fmt(f),
            None => f.write_str("none"),
        }
    }
}

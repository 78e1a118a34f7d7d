//! Ways to get the protocol wrong. Each leaves out one thing that the proof needs.

/// What is wrong with a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// Prepare does not look at the epoch or at who holds the shard.
    PrepareOfAnybody,
    /// Prepare does not look at where a slice starts, and workers do not wait with it for the batch before.
    PrepareAnywhere,
    /// Commit takes batches in any order, and workers commit what ClickHouse has acknowledged at once.
    CommitInAnyOrder,
    /// Commit does not look at the epoch or at who holds the shard.
    CommitOfAnybody,
    /// A shard is granted although it shares an open batch with one that another worker holds.
    TearingGrant,
    /// Children may be read before their parents are finished.
    ChildrenAtOnce,
    /// A shard is finished with open batches.
    FinishWithOpenBatches,
    /// A new owner is not given the open batches.
    ForgottenBatches,
    /// A worker sends before it prepares.
    SendBeforePrepare,
    /// A worker commits before ClickHouse has answered.
    CommitBeforeAnswer,
    /// A replay has another token.
    NewTokenOnReplay,
    /// A replay has other rows.
    OtherRowsOnReplay,
    /// Replace does not look at the epoch or at who holds the shards.
    ReplaceOfAnybody,
    /// Replace does not look at what the parts cover, and one of them is missing.
    ReplaceWithHole,
    /// A worker replaces a batch of which it does not know that nothing was applied.
    ReplaceInDoubt,
    /// A replay of a condemned record puts it into the table.
    ForgottenCondemnation,
    /// ClickHouse does not deduplicate.
    NoDeduplication,
}

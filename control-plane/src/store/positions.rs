//! Positions that are not moved by commits: resets that users ask for, going on behind gaps, and what is known of the age
//! of checkpoints.

use jiff::Timestamp;
use millrace_common::{
    ids::{Epoch, PipeUid, Revision, ShardId},
    pipe::StreamIdentity,
};
use sea_orm::{
    ColumnTrait as _, DatabaseTransaction, EntityTrait, QueryFilter as _, QuerySelect as _,
    sea_query::{CaseStatement, Expr, ExprTrait as _, LockType},
};

use super::{
    Error, ShardPhase, Store,
    convert::{from_number, to_json, to_number},
    entity::{batch, committed, pipe, shard, slice},
    events::append,
    ledger::{Scope, ledger, load_shards, load_slices, phase_text},
    pipes::{check_etag, find_pipe, insert_revision},
    shards::{ROWS_PER_INSERT, expect_rows, insert_shards, lock_pipe, open_shards},
    transaction::{begin_read, write},
};
use crate::{
    events::NewEvent,
    protocol::{self, Advance, Gap, Ledger, Move, Plan, Reset, Resumed},
};

/// A stream that a pipe takes instead of the one that it was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// Which stream.
    pub identity: StreamIdentity,
}

impl Store {
    /// What a reset would do.
    ///
    /// # Errors
    /// [`Error::Refused`] if it may not be, or the database's.
    pub async fn preview_reset(&self, uid: PipeUid, plan: &Plan) -> Result<Reset, Error> {
        let transaction = begin_read(&self.inner.read).await?;
        let ledger = load(&transaction, &uid.to_string(), false).await?;
        transaction.commit().await?;
        Ok(protocol::reset(&ledger, plan)?)
    }

    /// Moves positions, fences who held the shards, and tells of it, all at once.
    ///
    /// # Errors
    /// [`Error::PipeNotFound`], [`Error::EtagMismatch`], [`Error::Refused`] if it may not be, or the database's.
    pub async fn reset_positions(
        &self,
        uid: PipeUid,
        expected_etag: Option<&str>,
        plan: &Plan,
        adopted: Option<&Adopted>,
        event: impl Fn(&Reset) -> NewEvent,
    ) -> Result<Reset, Error> {
        let (id, now) = (uid.to_string(), self.now_millis());
        write!(self, |transaction| {
            let row = pipe::Entity::find_by_id(id.clone())
                .lock(LockType::NoKeyUpdate)
                .one(&transaction)
                .await?
                .ok_or(Error::PipeNotFound { uid })?;
            check_etag(&row, expected_etag)?;
            let ledger = load(&transaction, &id, true).await?;
            let reset = protocol::reset(&ledger, plan)?;
            for batch in &reset.abandoned {
                forget_batch(&transaction, &id, &batch.to_string()).await?;
            }
            forget_shards(&transaction, &row, &ledger, &reset.forgotten).await?;
            for step in &reset.moves {
                move_shard(&transaction, &id, step, now).await?;
            }
            insert_shards(&transaction, &id, &reset.new, now).await?;
            if let Some(adopted) = adopted {
                adopt(&transaction, uid, &row, adopted, now).await?;
            }
            append(&transaction, &id, now, &event(&reset)).await?;
            Ok(reset)
        })
    }

    /// Goes on behind a gap, fences who held the shards, and tells of it, all at once. False if that has to wait.
    ///
    /// # Errors
    /// [`Error::PipeNotFound`], [`Error::Refused`] if the gap is not of the shard's holder, or the database's.
    pub async fn resume(&self, uid: PipeUid, gap: &Gap, event: &NewEvent) -> Result<bool, Error> {
        let (id, now) = (uid.to_string(), self.now_millis());
        write!(self, |transaction| {
            lock_pipe(&transaction, uid).await?;
            let ledger = load(&transaction, &id, true).await?;
            let Some(resumed) = protocol::resume(&ledger, gap)? else {
                return Ok(false);
            };
            go_on(&transaction, &id, &resumed).await?;
            if let Some(batch) = gap.batch {
                for advance in &resumed.abandoned {
                    skip(&transaction, &id, advance).await?;
                }
                forget_batch(&transaction, &id, &batch.to_string()).await?;
            }
            append(&transaction, &id, now, event).await?;
            Ok(true)
        })
    }

    /// Notes up to when shards are complete, of those that are still held under these epochs. It never goes back.
    ///
    /// # Errors
    /// The database's.
    pub async fn note_complete(&self, uid: PipeUid, shards: &[(ShardId, Epoch, Timestamp)]) -> Result<(), Error> {
        let id = uid.to_string();
        write!(self, |transaction| {
            for chunk in shards.chunks(ROWS_PER_INSERT / 2) {
                let ids: Vec<&ShardId> = chunk.iter().map(|(shard, ..)| shard).collect();
                let rows = load_shards(&transaction, &id, Scope::Of(&ids), true).await?;
                let held = |(shard, epoch, _): &&(ShardId, Epoch, Timestamp)| {
                    rows.get(shard).is_some_and(|row| row.epoch == *epoch)
                };
                let held: Vec<_> = chunk.iter().filter(held).collect();
                if held.is_empty() {
                    continue;
                }
                let mut time = CaseStatement::new();
                for (shard, _, complete) in &held {
                    let newer = Expr::col(shard::Column::CompleteMillis)
                        .is_null()
                        .or(Expr::col(shard::Column::CompleteMillis).lt(complete.as_millisecond()));
                    let this = shard::Column::ShardId.eq(shard.as_str());
                    time = time.case(this.and(newer), Expr::value(complete.as_millisecond()));
                }
                let time = time.finally(Expr::col(shard::Column::CompleteMillis));
                shard::Entity::update_many()
                    .col_expr(shard::Column::CompleteMillis, time.into())
                    .filter(shard::Column::PipeUid.eq(id.as_str()))
                    .filter(shard::Column::ShardId.is_in(held.iter().map(|(shard, ..)| shard.as_str())))
                    .exec(&transaction)
                    .await?;
            }
            Ok(())
        })
    }
}

async fn load(transaction: &DatabaseTransaction, uid: &str, lock: bool) -> Result<Ledger, Error> {
    let shards = load_shards(transaction, uid, Scope::All, lock).await?;
    let slices = load_slices(transaction, uid, Scope::All, None).await?;
    ledger(shards, &slices)
}

async fn move_shard(transaction: &DatabaseTransaction, uid: &str, step: &Move, now: i64) -> Result<(), Error> {
    let promised = super::shards::promised(&step.to, now);
    let update = shard::Entity::update_many()
        .col_expr(
            shard::Column::Checkpoint,
            Expr::value(to_json("shards.checkpoint", &step.to)?),
        )
        .col_expr(shard::Column::CompleteMillis, Expr::value(promised))
        .col_expr(shard::Column::Phase, Expr::value(phase_text(step.phase)))
        .col_expr(
            shard::Column::Parents,
            Expr::value(to_json("shards.parents", &step.parents)?),
        )
        .col_expr(
            shard::Column::Epoch,
            Expr::value(to_number("shards.epoch", step.epoch.0)?),
        )
        .col_expr(shard::Column::OwnerWorker, Expr::value(None::<String>))
        .col_expr(shard::Column::OwnerIncarnation, Expr::value(None::<String>))
        .filter(shard::Column::PipeUid.eq(uid))
        .filter(shard::Column::ShardId.eq(step.shard.as_str()));
    expect_rows(1, update.exec(transaction).await?.rows_affected)
}

/// Fences shards, and moves the one that goes on or is over.
async fn go_on(transaction: &DatabaseTransaction, uid: &str, resumed: &Resumed) -> Result<(), Error> {
    for chunk in resumed.fenced.chunks(ROWS_PER_INSERT) {
        let update = shard::Entity::update_many()
            .col_expr(shard::Column::Epoch, Expr::col(shard::Column::Epoch).add(1))
            .col_expr(shard::Column::OwnerWorker, Expr::value(None::<String>))
            .col_expr(shard::Column::OwnerIncarnation, Expr::value(None::<String>))
            .filter(shard::Column::PipeUid.eq(uid))
            .filter(shard::Column::ShardId.is_in(chunk.iter().map(ShardId::as_str)));
        expect_rows(chunk.len(), update.exec(transaction).await?.rows_affected)?;
    }
    if let Some(shard) = &resumed.restarted {
        let oldest = to_json("shards.checkpoint", &millrace_common::position::Position::TrimHorizon)?;
        let update = shard::Entity::update_many()
            .col_expr(shard::Column::Checkpoint, Expr::value(oldest))
            .col_expr(shard::Column::CompleteMillis, Expr::value(None::<i64>))
            .filter(shard::Column::PipeUid.eq(uid))
            .filter(shard::Column::ShardId.eq(shard.as_str()));
        expect_rows(1, update.exec(transaction).await?.rows_affected)?;
    }
    if let Some(shard) = &resumed.finished {
        let update = shard::Entity::update_many()
            .col_expr(shard::Column::Phase, Expr::value(phase_text(ShardPhase::Finished)))
            .filter(shard::Column::PipeUid.eq(uid))
            .filter(shard::Column::ShardId.eq(shard.as_str()));
        expect_rows(1, update.exec(transaction).await?.rows_affected)?;
    }
    open_shards(transaction, uid, &resumed.opened).await
}

/// Moves a checkpoint over a slice that is given up.
async fn skip(transaction: &DatabaseTransaction, uid: &str, advance: &Advance) -> Result<(), Error> {
    let update = shard::Entity::update_many()
        .col_expr(
            shard::Column::Checkpoint,
            Expr::value(to_json("shards.checkpoint", &advance.checkpoint)?),
        )
        .col_expr(
            shard::Column::CommittedOrdinal,
            Expr::value(to_number("shards.committed_ordinal", advance.ordinal)?),
        )
        .filter(shard::Column::PipeUid.eq(uid))
        .filter(shard::Column::ShardId.eq(advance.shard.as_str()));
    expect_rows(1, update.exec(transaction).await?.rows_affected)
}

async fn forget_batch(transaction: &DatabaseTransaction, uid: &str, batch: &str) -> Result<(), Error> {
    slice::Entity::delete_many()
        .filter(slice::Column::PipeUid.eq(uid))
        .filter(slice::Column::BatchId.eq(batch))
        .exec(transaction)
        .await?;
    let row = batch::Entity::delete_by_id((uid.to_owned(), batch.to_owned()));
    expect_rows(1, row.exec(transaction).await?.rows_affected)
}

/// Forgets shards, and keeps the epoch after their highest: requests of who held them must not be good for shards that are given
/// these names later, as those of a recreated stream are.
async fn forget_shards(
    transaction: &DatabaseTransaction,
    pipe: &pipe::Model,
    ledger: &Ledger,
    shards: &[ShardId],
) -> Result<(), Error> {
    for shard in shards {
        forget_shard(transaction, &pipe.uid, shard).await?;
    }
    let epochs = shards.iter().filter_map(|shard| ledger.shards.get(shard));
    let Some(highest) = epochs.map(|row| row.epoch).max() else {
        return Ok(());
    };
    let floor = Ord::max(to_number("pipes.epoch_floor", highest.next().0)?, pipe.epoch_floor);
    let update = pipe::Entity::update_many()
        .col_expr(pipe::Column::EpochFloor, Expr::value(floor))
        .filter(pipe::Column::Uid.eq(pipe.uid.as_str()));
    expect_rows(1, update.exec(transaction).await?.rows_affected)
}

async fn forget_shard(transaction: &DatabaseTransaction, uid: &str, id: &ShardId) -> Result<(), Error> {
    committed::Entity::delete_many()
        .filter(committed::Column::PipeUid.eq(uid))
        .filter(committed::Column::ShardId.eq(id.as_str()))
        .exec(transaction)
        .await?;
    let row = shard::Entity::delete_by_id((uid.to_owned(), id.to_string()));
    expect_rows(1, row.exec(transaction).await?.rows_affected)
}

/// A new revision of the pipe, which reads the other stream; the trouble with the old one is over.
async fn adopt(
    transaction: &DatabaseTransaction,
    uid: PipeUid,
    row: &pipe::Model,
    adopted: &Adopted,
    now: i64,
) -> Result<(), Error> {
    let stored = find_pipe(transaction, uid).await?.ok_or(Error::PipeNotFound { uid })?;
    let next = Revision(from_number("pipes.revision", row.revision)?).next();
    let resolved = millrace_common::pipe::ResolvedSpec {
        stream: adopted.identity.clone(),
        ..stored.resolved
    };
    insert_revision(transaction, &row.uid, next, &stored.spec, &resolved, now).await?;
    let update = pipe::Entity::update_many()
        .col_expr(
            pipe::Column::Revision,
            Expr::value(to_number("pipes.revision", next.0)?),
        )
        .col_expr(pipe::Column::Version, Expr::value(row.version + 1))
        .col_expr(pipe::Column::UpdatedMillis, Expr::value(now))
        .col_expr(pipe::Column::Fault, Expr::value(None::<String>))
        .filter(pipe::Column::Uid.eq(row.uid.as_str()));
    expect_rows(1, update.exec(transaction).await?.rows_affected)
}

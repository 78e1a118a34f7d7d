//! Shards: which there are, who holds them, and snapshots of them with their open batches.

use std::collections::BTreeMap;

use millrace_common::{
    batch::OpenBatch,
    ids::{Epoch, PipeUid, ShardId, WorkerInstance},
};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter as _, QueryOrder as _,
    QuerySelect as _,
    sea_query::{Expr, ExprTrait as _, LockType},
};

use super::{
    Error, NewShard, PipeSnapshot, ShardPhase, Store, StoredShard,
    convert::to_json,
    entity::{batch, pipe, shard, slice},
    ledger::{Scope, ledger, load_shards, load_slices, phase_text, progress, shard_row},
    pipes::{find_pipe, load_pipes},
    transaction::{begin_read, write},
};
use crate::protocol;

/// Rows per INSERT: both databases bound the parameters of a statement (SQLite 32,766).
pub(super) const ROWS_PER_INSERT: usize = 1_000;

impl Store {
    /// The shards of a pipe, in id order; none if there is no such pipe.
    ///
    /// # Errors
    /// The database's.
    pub async fn shards(&self, uid: PipeUid) -> Result<Vec<StoredShard>, Error> {
        let transaction = begin_read(&self.inner.read).await?;
        let (shards, _) = load_progress(&transaction, &uid.to_string()).await?;
        transaction.commit().await?;
        Ok(shards)
    }

    /// The open batches of a pipe, oldest first: each comes after all older ones of its shards.
    ///
    /// # Errors
    /// The database's.
    pub async fn open_batches(&self, uid: PipeUid) -> Result<Vec<OpenBatch>, Error> {
        let transaction = begin_read(&self.inner.read).await?;
        let (_, batches) = load_progress(&transaction, &uid.to_string()).await?;
        transaction.commit().await?;
        Ok(batches)
    }

    /// A pipe with its shards and open batches, all read at one moment.
    ///
    /// # Errors
    /// The database's.
    pub async fn snapshot(&self, uid: PipeUid) -> Result<Option<PipeSnapshot>, Error> {
        let transaction = begin_read(&self.inner.read).await?;
        let snapshot = match find_pipe(&transaction, uid).await? {
            Some(pipe) => {
                let (shards, open_batches) = load_progress(&transaction, &uid.to_string()).await?;
                Some(PipeSnapshot {
                    pipe,
                    shards,
                    open_batches,
                })
            }
            None => None,
        };
        transaction.commit().await?;
        Ok(snapshot)
    }

    /// All pipes with their shards and open batches, all read at one moment, in uid order.
    ///
    /// # Errors
    /// The database's.
    pub async fn snapshot_all(&self) -> Result<Vec<PipeSnapshot>, Error> {
        let transaction = begin_read(&self.inner.read).await?;
        let pipes = load_pipes(&transaction).await?;
        let mut shards: BTreeMap<String, BTreeMap<_, _>> = BTreeMap::new();
        for row in shard::Entity::find().all(&transaction).await? {
            let (id, shard) = shard_row(&row)?;
            shards.entry(row.pipe_uid).or_default().insert(id, shard);
        }
        let mut batches: BTreeMap<String, Vec<batch::Model>> = BTreeMap::new();
        for row in batch::Entity::find().all(&transaction).await? {
            batches.entry(row.pipe_uid.clone()).or_default().push(row);
        }
        let mut slices: BTreeMap<String, Vec<slice::Model>> = BTreeMap::new();
        let in_order = slice::Entity::find()
            .order_by_asc(slice::Column::ShardId)
            .order_by_asc(slice::Column::Ordinal);
        for row in in_order.all(&transaction).await? {
            slices.entry(row.pipe_uid.clone()).or_default().push(row);
        }
        transaction.commit().await?;
        let snapshot = |pipe: super::StoredPipe| {
            let uid = pipe.uid.to_string();
            let rows = |rows: &BTreeMap<String, Vec<_>>| rows.get(&uid).cloned().unwrap_or_default();
            let slices = slices.get(&uid).cloned().unwrap_or_default();
            let (shards, open_batches) = progress(shards.remove(&uid).unwrap_or_default(), &rows(&batches), &slices)?;
            Ok(PipeSnapshot {
                pipe,
                shards,
                open_batches,
            })
        };
        pipes.into_iter().map(snapshot).collect()
    }

    /// Takes in a whole listing of a stream's shards: stores those that are new, and opens what waits for parents that
    /// turn out to be past. A parent that is neither stored nor in the listing is past. Gives the new ids. Repeating is a
    /// no-op.
    ///
    /// # Errors
    /// [`Error::PipeNotFound`], or the database's.
    pub async fn add_shards(&self, uid: PipeUid, listing: &[NewShard]) -> Result<Vec<ShardId>, Error> {
        let id = uid.to_string();
        write!(self, |transaction| {
            lock_pipe(&transaction, uid).await?;
            let known = load_shards(&transaction, &id, Scope::All, true).await?;
            let added = protocol::add(&known, listing);
            insert_shards(&transaction, &id, &added.new).await?;
            for (shard, parents) in &added.reparented {
                let text = to_json("shards.parents", parents)?;
                let update = shard::Entity::update_many()
                    .col_expr(shard::Column::Parents, Expr::value(text))
                    .filter(shard::Column::PipeUid.eq(id.as_str()))
                    .filter(shard::Column::ShardId.eq(shard.as_str()));
                expect_rows(1, update.exec(&transaction).await?.rows_affected)?;
            }
            open_shards(&transaction, &id, &added.opened).await?;
            Ok(added.new.into_iter().map(|(shard, _)| shard.id).collect())
        })
    }

    /// Marks a shard as read to its end and committed, takes in the children that Kinesis named there, and opens what waited
    /// for it. Gives the shards that can be granted from now on. Repeating only adds what is missing.
    ///
    /// # Errors
    /// [`Error::PipeNotFound`], [`Error::Refused`] if `epoch` is not current or a batch is open, or the database's.
    pub async fn finish_shard(
        &self,
        uid: PipeUid,
        shard: &ShardId,
        epoch: Epoch,
        children: &[NewShard],
    ) -> Result<Vec<ShardId>, Error> {
        let id = uid.to_string();
        write!(self, |transaction| {
            lock_pipe(&transaction, uid).await?;
            let shards = load_shards(&transaction, &id, Scope::All, true).await?;
            let slices = load_slices(&transaction, &id, Scope::Of(&[shard]), None).await?;
            let finished = protocol::finish(&ledger(shards, &slices)?, shard, epoch, children)?;
            if finished.finish {
                let update = shard::Entity::update_many()
                    .col_expr(shard::Column::Phase, Expr::value(phase_text(ShardPhase::Finished)))
                    .col_expr(shard::Column::OwnerWorker, Expr::value(None::<String>))
                    .col_expr(shard::Column::OwnerIncarnation, Expr::value(None::<String>))
                    .filter(shard::Column::PipeUid.eq(id.as_str()))
                    .filter(shard::Column::ShardId.eq(shard.as_str()));
                expect_rows(1, update.exec(&transaction).await?.rows_affected)?;
            }
            insert_shards(&transaction, &id, &finished.new).await?;
            open_shards(&transaction, &id, &finished.opened).await?;
            let new = finished.new.into_iter().filter(|(_, phase)| *phase == ShardPhase::Open);
            Ok(finished
                .opened
                .into_iter()
                .chain(new.map(|(shard, _)| shard.id))
                .collect())
        })
    }

    /// Grants shards to a worker, all or none: each gets the next epoch, which fences whoever held it. Takes the epochs that
    /// the caller believes current and gives the new ones, in the same order.
    ///
    /// # Errors
    /// [`Error::PipeNotFound`], [`Error::Refused`] if someone else was faster, a shard is not open, or an open batch would
    /// be torn apart; or the database's. After [`Error::Unavailable`] it may have happened: look at the shards again.
    pub async fn grant(
        &self,
        uid: PipeUid,
        shards: &[(ShardId, Epoch)],
        worker: &WorkerInstance,
    ) -> Result<Vec<(ShardId, Epoch)>, Error> {
        let id = uid.to_string();
        write!(self, |transaction| {
            lock_pipe(&transaction, uid).await?;
            let rows = load_shards(&transaction, &id, Scope::All, true).await?;
            let slices = load_slices(&transaction, &id, Scope::All, None).await?;
            let granted = protocol::grant(&ledger(rows, &slices)?, shards, worker)?;
            for chunk in granted.chunks(ROWS_PER_INSERT) {
                let update = shard::Entity::update_many()
                    .col_expr(shard::Column::Epoch, Expr::col(shard::Column::Epoch).add(1))
                    .col_expr(shard::Column::OwnerWorker, Expr::value(worker.worker.to_string()))
                    .col_expr(
                        shard::Column::OwnerIncarnation,
                        Expr::value(worker.incarnation.to_string()),
                    )
                    .filter(shard::Column::PipeUid.eq(id.as_str()))
                    .filter(shard::Column::ShardId.is_in(chunk.iter().map(|(shard, _)| shard.as_str())));
                expect_rows(chunk.len(), update.exec(&transaction).await?.rows_affected)?;
            }
            Ok(granted)
        })
    }

    /// Takes shards back from whoever holds them under just these epochs; what was granted again in between stays. Gives
    /// those that this call released.
    ///
    /// # Errors
    /// The database's.
    pub async fn release(&self, uid: PipeUid, shards: &[(ShardId, Epoch)]) -> Result<Vec<ShardId>, Error> {
        let id = uid.to_string();
        write!(self, |transaction| {
            let rows = load_shards(&transaction, &id, Scope::All, true).await?;
            let released = protocol::release(&ledger(rows, &[])?, shards);
            for chunk in released.chunks(ROWS_PER_INSERT) {
                let update = shard::Entity::update_many()
                    .col_expr(shard::Column::OwnerWorker, Expr::value(None::<String>))
                    .col_expr(shard::Column::OwnerIncarnation, Expr::value(None::<String>))
                    .filter(shard::Column::PipeUid.eq(id.as_str()))
                    .filter(shard::Column::ShardId.is_in(chunk.iter().map(ShardId::as_str)));
                expect_rows(chunk.len(), update.exec(&transaction).await?.rows_affected)?;
            }
            Ok(released)
        })
    }
}

/// Shards and open batches of one pipe.
async fn load_progress(
    connection: &impl ConnectionTrait,
    uid: &str,
) -> Result<(Vec<StoredShard>, Vec<OpenBatch>), Error> {
    let shards = load_shards(connection, uid, Scope::All, false).await?;
    let batches = batch::Entity::find()
        .filter(batch::Column::PipeUid.eq(uid))
        .all(connection)
        .await?;
    let slices = load_slices(connection, uid, Scope::All, None).await?;
    progress(shards, &batches, &slices)
}

/// Keeps everybody else from changing which shards a pipe has and who holds them; Prepare and Commit go on.
async fn lock_pipe(transaction: &DatabaseTransaction, uid: PipeUid) -> Result<(), Error> {
    let row = pipe::Entity::find_by_id(uid.to_string())
        .lock(LockType::NoKeyUpdate)
        .one(transaction)
        .await?;
    row.map(|_| ()).ok_or(Error::PipeNotFound { uid })
}

async fn open_shards(transaction: &DatabaseTransaction, uid: &str, shards: &[ShardId]) -> Result<(), Error> {
    for chunk in shards.chunks(ROWS_PER_INSERT) {
        let update = shard::Entity::update_many()
            .col_expr(shard::Column::Phase, Expr::value(phase_text(ShardPhase::Open)))
            .filter(shard::Column::PipeUid.eq(uid))
            .filter(shard::Column::ShardId.is_in(chunk.iter().map(ShardId::as_str)));
        expect_rows(chunk.len(), update.exec(transaction).await?.rows_affected)?;
    }
    Ok(())
}

/// Stores new shards.
pub(super) async fn insert_shards(
    transaction: &DatabaseTransaction,
    uid: &str,
    shards: &[(NewShard, ShardPhase)],
) -> Result<(), Error> {
    for chunk in shards.chunks(ROWS_PER_INSERT) {
        let mut rows = Vec::with_capacity(chunk.len());
        for (shard, phase) in chunk {
            rows.push(shard::ActiveModel {
                pipe_uid: Set(uid.to_owned()),
                shard_id: Set(shard.id.to_string()),
                parents: Set(to_json("shards.parents", &shard.parents)?),
                phase: Set(phase_text(*phase).to_owned()),
                epoch: Set(0),
                owner_worker: Set(None),
                owner_incarnation: Set(None),
                checkpoint: Set(to_json("shards.checkpoint", &shard.start)?),
                committed_ordinal: Set(0),
            });
        }
        shard::Entity::insert_many(rows)
            .exec_without_returning(transaction)
            .await?;
    }
    Ok(())
}

/// That a statement changed the rows that were read under lock before it. If not, the transaction must not commit.
pub(super) fn expect_rows(expected: usize, found: u64) -> Result<(), Error> {
    if u64::try_from(expected) == Ok(found) {
        return Ok(());
    }
    Err(Error::Corrupt {
        place: "shards",
        what: format!("{found} rows changed where {expected} were locked"),
    })
}

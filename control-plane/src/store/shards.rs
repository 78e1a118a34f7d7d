//! Shards: which there are, who holds them, and snapshots of them with their open batches.

use std::collections::{BTreeMap, BTreeSet};

use millrace_common::{
    batch::OpenBatch,
    fail_point,
    ids::{Epoch, PipeUid, ShardId, WorkerInstance},
    position::Position,
};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter as _, QueryOrder as _,
    QuerySelect as _,
    sea_query::{Expr, ExprTrait as _, LockType},
};

use super::{
    Damaged, Error, NewShard, PipeSnapshot, ShardPhase, Snapshots, Store, StoredShard,
    convert::{from_millis, to_json},
    entity::{batch, pipe, shard, slice},
    events::append,
    ledger::{Complete, Scope, ledger, load_complete, load_shards, load_slices, phase_text, progress, shard_row},
    pipes::{find_pipe, load_pipes},
    transaction::{begin_read, write},
};
use crate::{
    events::{NewEvent, Severity, kind},
    protocol::{self, Refusal},
};

/// Rows per INSERT: both databases bound the parameters of a statement (SQLite 32,766).
pub(super) const ROWS_PER_INSERT: usize = 1_000;

/// A shard that was read to its end and committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardEnd {
    /// The shard.
    pub shard: ShardId,
    /// Epoch that its reader holds it under.
    pub epoch: Epoch,
    /// Children that Kinesis named there.
    pub children: Vec<NewShard>,
}

/// What came of the end of a shard: the shards that can be granted from now on, or why it is none.
pub type Ended = Result<Vec<ShardId>, Refusal>;

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

    /// All pipes with their shards and open batches, all read at one moment, in uid order. What cannot be read of one pipe
    /// says nothing of the others.
    ///
    /// # Errors
    /// The database's.
    pub async fn snapshot_all(&self) -> Result<Snapshots, Error> {
        let transaction = begin_read(&self.inner.read).await?;
        let pipes = load_pipes(&transaction).await?;
        let mut shards: BTreeMap<String, Vec<shard::Model>> = BTreeMap::new();
        for row in shard::Entity::find().all(&transaction).await? {
            shards.entry(row.pipe_uid.clone()).or_default().push(row);
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
        let mut all = Snapshots::default();
        for pipe in pipes {
            let pipe = match pipe {
                Ok(pipe) => pipe,
                Err(damaged) => {
                    all.damaged.push(damaged);
                    continue;
                }
            };
            let uid = pipe.uid.to_string();
            let read = read_progress(
                &shards.remove(&uid).unwrap_or_default(),
                &batches.remove(&uid).unwrap_or_default(),
                &slices.remove(&uid).unwrap_or_default(),
            );
            match read {
                Ok((shards, open_batches)) => all.pipes.push(PipeSnapshot {
                    pipe,
                    shards,
                    open_batches,
                }),
                Err(error) => all.damaged.push(Damaged {
                    uid: pipe.uid,
                    name: pipe.name,
                    error,
                }),
            }
        }
        Ok(all)
    }

    /// Takes in a whole listing of a stream's shards: stores those that are new, and opens what waits for parents that
    /// turn out to be past: of shards that were stored before the listing was begun, which are `judged`, a parent that is
    /// neither stored nor in the listing is past. Gives the new ids. Repeating is a no-op.
    ///
    /// # Errors
    /// [`Error::PipeNotFound`], or the database's.
    pub async fn add_shards(
        &self,
        uid: PipeUid,
        listing: &[NewShard],
        judged: &BTreeSet<ShardId>,
    ) -> Result<Vec<ShardId>, Error> {
        let (id, now) = (uid.to_string(), self.now_millis());
        write!(self, |transaction| {
            lock_pipe(&transaction, uid).await?;
            let known = load_shards(&transaction, &id, Scope::All, true).await?;
            let added = protocol::add(&known, listing, judged);
            insert_shards(&transaction, &id, &added.new, now).await?;
            inherit(&transaction, &id, &added.opened, &added.new).await?;
            for (shard, parents) in &added.reparented {
                let text = to_json("shards.parents", parents)?;
                let update = shard::Entity::update_many()
                    .col_expr(shard::Column::Parents, Expr::value(text))
                    .filter(shard::Column::PipeUid.eq(id.as_str()))
                    .filter(shard::Column::ShardId.eq(shard.as_str()));
                expect_rows(1, update.exec(&transaction).await?.rows_affected)?;
            }
            open_shards(&transaction, &id, &added.opened).await?;
            if let Some(event) = added_event(&added.new) {
                append(&transaction, &id, now, &event).await?;
            }
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
        let end = ShardEnd {
            shard: shard.clone(),
            epoch,
            children: children.to_vec(),
        };
        let mut ended = self.finish_shards(uid, &[end]).await?;
        match ended.pop() {
            Some(Ok(opened)) => Ok(opened),
            Some(Err(reason)) => Err(Error::Refused { reason }),
            None => Ok(Vec::new()),
        }
    }

    /// The same for many shards in one transaction, each for itself: the answers are in the order of `ends`. A stream that
    /// is rescaled ends a thousand shards at a time.
    ///
    /// # Errors
    /// [`Error::PipeNotFound`], or the database's.
    pub async fn finish_shards(&self, uid: PipeUid, ends: &[ShardEnd]) -> Result<Vec<Ended>, Error> {
        let (id, now) = (uid.to_string(), self.now_millis());
        write!(self, |transaction| {
            lock_pipe(&transaction, uid).await?;
            let shards = load_shards(&transaction, &id, Scope::All, true).await?;
            let slices = load_slices(&transaction, &id, Scope::All, None).await?;
            let mut ledger = ledger(shards, &slices)?;
            let (mut finished, mut new, mut opened) = (Vec::new(), Vec::new(), Vec::new());
            let mut answers = Vec::with_capacity(ends.len());
            for end in ends {
                let done = protocol::finish(&ledger, &end.shard, end.epoch, &end.children);
                answers.push(done.map(|done| {
                    done.apply(&mut ledger, &end.shard);
                    let protocol::Finished {
                        finish,
                        new: children,
                        opened: waited,
                    } = done;
                    finished.extend(finish.then(|| end.shard.clone()));
                    let readable = children.iter().filter(|(_, phase)| *phase == ShardPhase::Open);
                    let answer = waited
                        .iter()
                        .chain(readable.map(|(child, _)| &child.id))
                        .cloned()
                        .collect();
                    opened.extend(waited);
                    new.extend(children);
                    answer
                }));
            }
            for chunk in finished.chunks(ROWS_PER_INSERT) {
                let update = shard::Entity::update_many()
                    .col_expr(shard::Column::Phase, Expr::value(phase_text(ShardPhase::Finished)))
                    .col_expr(shard::Column::OwnerWorker, Expr::value(None::<String>))
                    .col_expr(shard::Column::OwnerIncarnation, Expr::value(None::<String>))
                    .filter(shard::Column::PipeUid.eq(id.as_str()))
                    .filter(shard::Column::ShardId.is_in(chunk.iter().map(ShardId::as_str)));
                expect_rows(chunk.len(), update.exec(&transaction).await?.rows_affected)?;
            }
            // A child that one end has named and a later one has opened is in both lists.
            insert_shards(&transaction, &id, &new, now).await?;
            inherit(&transaction, &id, &opened, &new).await?;
            open_shards(&transaction, &id, &opened).await?;
            for event in [finished_event(&finished), added_event(&new)].into_iter().flatten() {
                append(&transaction, &id, now, &event).await?;
            }
            fail_point!("control.finish.in_transaction");
            Ok(answers)
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
            fail_point!("control.grant.in_transaction");
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
            let ids: Vec<&ShardId> = shards.iter().map(|(shard, _)| shard).collect();
            let mut rows = BTreeMap::new();
            for chunk in ids.chunks(ROWS_PER_INSERT) {
                rows.extend(load_shards(&transaction, &id, Scope::Of(chunk), true).await?);
            }
            let released = protocol::release(&ledger(rows, &[])?, shards);
            for chunk in released.chunks(ROWS_PER_INSERT) {
                let update = shard::Entity::update_many()
                    .col_expr(shard::Column::OwnerWorker, Expr::value(None::<String>))
                    .col_expr(shard::Column::OwnerIncarnation, Expr::value(None::<String>))
                    .filter(shard::Column::PipeUid.eq(id.as_str()))
                    .filter(shard::Column::ShardId.is_in(chunk.iter().map(ShardId::as_str)));
                expect_rows(chunk.len(), update.exec(&transaction).await?.rows_affected)?;
            }
            fail_point!("control.release.in_transaction");
            Ok(released)
        })
    }
}

/// Shards and open batches of one pipe, out of all its rows.
fn read_progress(
    rows: &[shard::Model],
    batches: &[batch::Model],
    slices: &[slice::Model],
) -> Result<(Vec<StoredShard>, Vec<OpenBatch>), Error> {
    let (mut shards, mut complete) = (BTreeMap::new(), Complete::default());
    for row in rows {
        let (id, shard) = shard_row(row)?;
        if let Some(millis) = row.complete_millis {
            complete.insert(id.clone(), from_millis("shards.complete_millis", millis)?);
        }
        shards.insert(id, shard);
    }
    progress(shards, batches, slices, &complete)
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
    progress(shards, &batches, &slices, &load_complete(connection, uid).await?)
}

/// Keeps everybody else from changing which shards a pipe has and who holds them; Prepare and Commit go on.
pub(super) async fn lock_pipe(transaction: &DatabaseTransaction, uid: PipeUid) -> Result<(), Error> {
    let row = pipe::Entity::find_by_id(uid.to_string())
        .lock(LockType::NoKeyUpdate)
        .one(transaction)
        .await?;
    row.map(|_| ()).ok_or(Error::PipeNotFound { uid })
}

pub(super) async fn open_shards(transaction: &DatabaseTransaction, uid: &str, shards: &[ShardId]) -> Result<(), Error> {
    for chunk in shards.chunks(ROWS_PER_INSERT) {
        let update = shard::Entity::update_many()
            .col_expr(shard::Column::Phase, Expr::value(phase_text(ShardPhase::Open)))
            .filter(shard::Column::PipeUid.eq(uid))
            .filter(shard::Column::ShardId.is_in(chunk.iter().map(ShardId::as_str)));
        expect_rows(chunk.len(), update.exec(transaction).await?.rows_affected)?;
    }
    Ok(())
}

/// Stores new shards, with epochs above those of any that the pipe forgot.
pub(super) async fn insert_shards(
    transaction: &DatabaseTransaction,
    uid: &str,
    shards: &[(NewShard, ShardPhase)],
    now: i64,
) -> Result<(), Error> {
    if shards.is_empty() {
        return Ok(());
    }
    let floor = pipe::Entity::find_by_id(uid)
        .select_only()
        .column(pipe::Column::EpochFloor)
        .into_tuple::<i64>()
        .one(transaction)
        .await?
        .unwrap_or_default();
    for chunk in shards.chunks(ROWS_PER_INSERT) {
        let mut rows = Vec::with_capacity(chunk.len());
        for (shard, phase) in chunk {
            rows.push(shard::ActiveModel {
                pipe_uid: Set(uid.to_owned()),
                shard_id: Set(shard.id.to_string()),
                parents: Set(to_json("shards.parents", &shard.parents)?),
                phase: Set(phase_text(*phase).to_owned()),
                epoch: Set(floor),
                owner_worker: Set(None),
                owner_incarnation: Set(None),
                checkpoint: Set(to_json("shards.checkpoint", &shard.start)?),
                committed_ordinal: Set(0),
                complete_millis: Set(promised(&shard.start, now)),
            });
        }
        shard::Entity::insert_many(rows)
            .exec_without_returning(transaction)
            .await?;
    }
    Ok(())
}

/// The shortest retention of a stream.
const SHORTEST_RETENTION_MILLIS: i64 = 24 * 3_600_000;

/// A shard that starts at a time is complete up to it: what came before is not asked for. Of a time that may have left the
/// stream already, nothing can be promised.
pub(super) fn promised(start: &Position, now: i64) -> Option<i64> {
    match start {
        Position::AtTimestamp(time) => {
            Some(time.as_millisecond()).filter(|time| *time >= now - SHORTEST_RETENTION_MILLIS)
        }
        Position::TrimHorizon | Position::After(_) => None,
    }
}

/// Children that can be read from now on began when their parents ended, so they are complete up to where those are.
async fn inherit(
    transaction: &DatabaseTransaction,
    uid: &str,
    opened: &[ShardId],
    new: &[(NewShard, ShardPhase)],
) -> Result<(), Error> {
    let new = new.iter().filter(|(_, phase)| *phase == ShardPhase::Open);
    let ids: Vec<&ShardId> = opened.iter().chain(new.map(|(shard, _)| &shard.id)).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let complete = load_complete(transaction, uid).await?;
    for (id, row) in load_shards(transaction, uid, Scope::Of(&ids), false).await? {
        let of_parents: Option<Vec<_>> = row.parents.iter().map(|parent| complete.get(parent)).collect();
        let Some(time) = of_parents.and_then(|times| times.into_iter().min().copied()) else {
            continue;
        };
        shard::Entity::update_many()
            .col_expr(shard::Column::CompleteMillis, Expr::value(time.as_millisecond()))
            .filter(shard::Column::PipeUid.eq(uid))
            .filter(shard::Column::ShardId.eq(id.as_str()))
            .filter(shard::Column::CompleteMillis.is_null())
            .exec(transaction)
            .await?;
    }
    Ok(())
}

/// Shards that are named in an event: enough for a reshard by hand. A listing may bring thousands.
const NAMED_SHARDS: usize = 20;

pub(super) fn names<'a>(shards: impl ExactSizeIterator<Item = &'a ShardId>) -> String {
    let more = shards.len().saturating_sub(NAMED_SHARDS);
    let mut text = shards
        .take(NAMED_SHARDS)
        .map(ShardId::as_str)
        .collect::<Vec<_>>()
        .join(",");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

fn added_event(new: &[(NewShard, ShardPhase)]) -> Option<NewEvent> {
    let (first, _) = new.first()?;
    let message = match new.len() {
        1 => format!("shard {} was taken in", first.id),
        count => format!("{count} shards were taken in"),
    };
    let event = NewEvent::new(kind::SHARD_ADDED, Severity::Info, message)
        .with("shards", names(new.iter().map(|(shard, _)| &shard.id)));
    Some(if new.len() == 1 {
        event.of_shard(first.id.clone())
    } else {
        event
    })
}

fn finished_event(finished: &[ShardId]) -> Option<NewEvent> {
    let first = finished.first()?;
    let message = match finished.len() {
        1 => format!("shard {first} was read to its end"),
        count => format!("{count} shards were read to their end"),
    };
    let event = NewEvent::new(kind::SHARD_FINISHED, Severity::Info, message).with("shards", names(finished.iter()));
    Some(if finished.len() == 1 {
        event.of_shard(first.clone())
    } else {
        event
    })
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

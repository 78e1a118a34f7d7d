//! Prepare, replace and commit.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use millrace_common::{
    batch::{Counts, OpenBatch},
    fail_point,
    ids::{BatchId, Epoch, PipeUid, Revision, ShardId, WorkerInstance},
    position::Slice,
};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, DatabaseTransaction, EntityTrait, QueryFilter as _, QuerySelect as _,
    sea_query::{CaseStatement, Expr, ExprTrait as _, LockType},
};

use super::{
    Effective, Error, Store,
    convert::{from_json, from_number, from_text, to_json, to_number},
    entity::{batch, committed, pipe, revision, shard, slice, totals},
    events::append,
    ledger::{Scope, assemble, ledger, load_shards, load_slices},
    shards::{ROWS_PER_INSERT, expect_rows},
    transaction::write,
};
use crate::{
    events::{NewEvent, Severity, kind},
    protocol::{self, Advance, Commit, Known, Late, Ledger, Prepare, Refusal, Replace},
};

/// Committed batches that are remembered per shard, so that a commit that repeats is known as one. A commit repeats
/// when its answer was lost, and by then its lane has committed at most the other batches that it had open.
const REMEMBERED: u64 = 4 * protocol::MAX_OPEN_BATCHES as u64;

impl Store {
    /// Records a batch before it is sent. Repeating is a no-op.
    ///
    /// # Errors
    /// [`Error::PipeNotFound`], [`Error::Refused`] if an epoch is not current or a slice does not start at its shard's
    /// frontier, or the database's.
    pub async fn prepare(
        &self,
        uid: PipeUid,
        worker: &WorkerInstance,
        batch: &OpenBatch,
        epochs: &[(ShardId, Epoch)],
    ) -> Result<(), Error> {
        let (id, now) = (uid.to_string(), self.now_millis());
        protocol::check_size(batch.slices.len())?;
        let shards: Vec<&ShardId> = batch.slices.iter().map(|slice| &slice.shard).collect();
        write!(self, |transaction| {
            check_revision(&transaction, uid, batch.revision).await?;
            let rows = read(&transaction, &id, &shards, batch.id).await?;
            let Rows {
                ledger,
                open,
                committed,
                ..
            } = rows;
            match protocol::prepare(&ledger, open.as_ref(), committed, worker, batch, epochs)? {
                Prepare::Already => Ok(()),
                Prepare::Store { ordinals } => insert_batch(&transaction, &id, batch, &ordinals, now).await,
            }
        })
    }

    /// Replaces an open batch, of which nothing was ever applied, by batches that tile its slices. Repeating is a no-op.
    ///
    /// # Errors
    /// [`Error::PipeNotFound`], [`Error::Refused`] if an epoch is not current, the batch is not open, or the parts do not tile
    /// it; or the database's.
    pub async fn replace(
        &self,
        uid: PipeUid,
        worker: &WorkerInstance,
        batch: BatchId,
        parts: &[OpenBatch],
        epochs: &[(ShardId, Epoch)],
    ) -> Result<(), Error> {
        let (id, now) = (uid.to_string(), self.now_millis());
        protocol::check_size(epochs.len())?;
        for part in parts {
            protocol::check_size(part.slices.len())?;
        }
        let shards: Vec<&ShardId> = epochs.iter().map(|(shard, _)| shard).collect();
        write!(self, |transaction| {
            for part in parts {
                check_revision(&transaction, uid, part.revision).await?;
            }
            let Rows { ledger, open, .. } = read(&transaction, &id, &shards, batch).await?;
            let (same, committed) = known(&transaction, &id, parts).await?;
            let known = Known {
                old: open.as_ref(),
                open: &same,
                committed: &committed,
            };
            match protocol::replace(&ledger, known, worker, batch, parts, epochs)? {
                Replace::Already => Ok(()),
                Replace::Store(replaced) => {
                    let slices = open.map_or(0, |open| open.slices.len());
                    remove(&transaction, &id, batch, slices).await?;
                    move_slices(&transaction, &id, &replaced.moved).await?;
                    for (part, ordinals) in parts.iter().zip(&replaced.ordinals) {
                        insert_batch(&transaction, &id, part, ordinals, now).await?;
                    }
                    fail_point!("control.replace.in_transaction");
                    Ok(())
                }
            }
        })
    }

    /// Moves the checkpoints over a batch that was inserted, and adds its counts to the pipe's totals: exactly once.
    /// Repeating is a no-op.
    ///
    /// # Errors
    /// [`Error::PipeNotFound`], [`Error::Refused`] if an epoch is not current, an older batch is open, or the batch is not
    /// known; or the database's.
    pub async fn commit(
        &self,
        uid: PipeUid,
        worker: &WorkerInstance,
        batch: BatchId,
        epochs: &[(ShardId, Epoch)],
    ) -> Result<(), Error> {
        let (id, now) = (uid.to_string(), self.now_millis());
        protocol::check_size(epochs.len())?;
        let shards: Vec<&ShardId> = epochs.iter().map(|(shard, _)| shard).collect();
        write!(self, |transaction| {
            let Rows {
                ledger,
                open,
                committed,
                prepared,
            } = read(&transaction, &id, &shards, batch).await?;
            if ledger.shards.is_empty() {
                check_exists(&transaction, uid).await?;
            }
            match protocol::commit(&ledger, open.as_ref(), committed, worker, batch, epochs)? {
                Commit::Already => Ok(()),
                Commit::Advance(advances) => {
                    let counts = open.map(|open| open.counts).unwrap_or_default();
                    advance(&transaction, &id, batch, &advances, counts).await?;
                    fail_point!("control.commit.in_transaction");
                    remove(&transaction, &id, batch, advances.len()).await?;
                    match prepared {
                        Some(prepared) => flag_if_late(&transaction, &id, worker, batch, prepared, now).await,
                        None => Ok(()),
                    }
                }
            }
        })
    }

    /// Moves the checkpoints over slices that were inserted without being prepared: at least once. Repeating is a no-op.
    ///
    /// # Errors
    /// [`Error::PipeNotFound`], [`Error::Refused`] if an epoch is not current, a slice does not start at its shard's
    /// checkpoint, or a prepared batch is open; or the database's.
    pub async fn commit_unprepared(
        &self,
        uid: PipeUid,
        worker: &WorkerInstance,
        batch: BatchId,
        slices: &[Slice],
        epochs: &[(ShardId, Epoch)],
        counts: Counts,
    ) -> Result<(), Error> {
        let id = uid.to_string();
        protocol::check_size(slices.len())?;
        let shards: Vec<&ShardId> = slices.iter().map(|slice| &slice.shard).collect();
        write!(self, |transaction| {
            let Rows {
                ledger,
                open,
                committed,
                ..
            } = read(&transaction, &id, &shards, batch).await?;
            if ledger.shards.is_empty() {
                check_exists(&transaction, uid).await?;
            }
            if open.is_some() {
                return Err(Refusal::OtherContent { batch }.into());
            }
            match protocol::commit_unprepared(&ledger, committed, worker, slices, counts, epochs)? {
                Commit::Already => Ok(()),
                Commit::Advance(advances) => advance(&transaction, &id, batch, &advances, counts).await,
            }
        })
    }
}

/// What decisions about a batch look at.
struct Rows {
    ledger: Ledger,
    open: Option<OpenBatch>,
    committed: bool,
    prepared: Option<PreparedAt>,
}

/// When a batch was prepared.
struct PreparedAt {
    millis: i64,
    /// Batches that its pipe had committed by then.
    batches: Option<u64>,
}

/// Locks the shards, then reads what is open of them and what is known of the batch.
async fn read(
    transaction: &DatabaseTransaction,
    uid: &str,
    shards: &[&ShardId],
    batch: BatchId,
) -> Result<Rows, Error> {
    let id = batch.to_string();
    let unique: Vec<&ShardId> = shards.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    let rows = load_shards(transaction, uid, Scope::Of(&unique), true).await?;
    let slices = load_slices(transaction, uid, Scope::Of(&unique), Some(&id)).await?;
    let (mut open, mut prepared) = (None, None);
    let mut committed = false;
    if slices.iter().any(|slice| slice.batch_id == id) {
        let row = batch::Entity::find_by_id((uid.to_owned(), id)).one(transaction).await?;
        open = row.as_ref().map(|row| assemble(row, &slices)).transpose()?;
        prepared = row.map(|row| PreparedAt {
            millis: row.prepared_millis,
            batches: row.prepared_batches.and_then(|count| u64::try_from(count).ok()),
        });
    } else {
        committed = committed::Entity::find_by_id((uid.to_owned(), id))
            .one(transaction)
            .await?
            .is_some();
    }
    Ok(Rows {
        ledger: ledger(rows, &slices)?,
        open,
        committed,
        prepared,
    })
}

/// Of the batches with the ids of these: those that are open, and the ids of those that were committed not long ago.
async fn known(
    transaction: &DatabaseTransaction,
    uid: &str,
    parts: &[OpenBatch],
) -> Result<(BTreeMap<BatchId, OpenBatch>, BTreeSet<BatchId>), Error> {
    let ids: Vec<String> = parts.iter().map(|part| part.id.to_string()).collect();
    let rows = batch::Entity::find()
        .filter(batch::Column::PipeUid.eq(uid))
        .filter(batch::Column::BatchId.is_in(ids.clone()))
        .all(transaction)
        .await?;
    let mut open = BTreeMap::new();
    for row in rows {
        let slices = load_slices(transaction, uid, Scope::Of(&[]), Some(&row.batch_id)).await?;
        let batch = assemble(&row, &slices)?;
        open.insert(batch.id, batch);
    }
    let rows = committed::Entity::find()
        .filter(committed::Column::PipeUid.eq(uid))
        .filter(committed::Column::BatchId.is_in(ids))
        .all(transaction)
        .await?;
    let ids = rows
        .iter()
        .map(|row| from_text("committed_batches.batch_id", &row.batch_id));
    Ok((open, ids.collect::<Result<_, _>>()?))
}

/// Removes an open batch that has so many slices.
async fn remove(transaction: &DatabaseTransaction, uid: &str, batch: BatchId, slices: usize) -> Result<(), Error> {
    let rows = slice::Entity::delete_many()
        .filter(slice::Column::PipeUid.eq(uid))
        .filter(slice::Column::BatchId.eq(batch.to_string()));
    expect_rows(slices, rows.exec(transaction).await?.rows_affected)?;
    let row = batch::Entity::delete_by_id((uid.to_owned(), batch.to_string()));
    expect_rows(1, row.exec(transaction).await?.rows_affected)
}

/// Gives open slices other ordinals. The last goes first, so that no two ever have the same.
async fn move_slices(transaction: &DatabaseTransaction, uid: &str, moved: &[(ShardId, u64, u64)]) -> Result<(), Error> {
    let mut moved: Vec<_> = moved.iter().collect();
    moved.sort_by_key(|(_, from, _)| std::cmp::Reverse(*from));
    for (shard, from, to) in moved {
        let update = slice::Entity::update_many()
            .col_expr(
                slice::Column::Ordinal,
                Expr::value(to_number("batch_slices.ordinal", *to)?),
            )
            .filter(slice::Column::PipeUid.eq(uid))
            .filter(slice::Column::ShardId.eq(shard.as_str()))
            .filter(slice::Column::Ordinal.eq(to_number("batch_slices.ordinal", *from)?));
        expect_rows(1, update.exec(transaction).await?.rows_affected)?;
    }
    Ok(())
}

/// That the pipe exists and has the revision; it is kept from being deleted meanwhile.
async fn check_revision(transaction: &DatabaseTransaction, uid: PipeUid, given: Revision) -> Result<(), Error> {
    let id = uid.to_string();
    let row = pipe::Entity::find_by_id(id.clone())
        .lock(LockType::KeyShare)
        .one(transaction)
        .await?;
    let current = Revision(from_number(
        "pipes.revision",
        row.ok_or(Error::PipeNotFound { uid })?.revision,
    )?);
    if given == current {
        return Ok(());
    }
    let number = i64::try_from(given.0).unwrap_or(i64::MAX);
    match revision::Entity::find_by_id((id, number)).one(transaction).await? {
        Some(_) => Ok(()),
        None => Err(Refusal::UnknownRevision {
            expected: current,
            found: given,
        }
        .into()),
    }
}

async fn check_exists(transaction: &DatabaseTransaction, uid: PipeUid) -> Result<(), Error> {
    let row = pipe::Entity::find_by_id(uid.to_string()).one(transaction).await?;
    row.map(|_| ()).ok_or(Error::PipeNotFound { uid })
}

async fn insert_batch(
    transaction: &DatabaseTransaction,
    uid: &str,
    batch: &OpenBatch,
    ordinals: &[u64],
    now: i64,
) -> Result<(), Error> {
    let counts = batch.counts;
    let prepared_batches = committed_batches(transaction, uid).await?;
    let row = batch::ActiveModel {
        pipe_uid: Set(uid.to_owned()),
        batch_id: Set(batch.id.to_string()),
        revision: Set(to_number("batches.revision", batch.revision.0)?),
        rows: Set(to_number("batches.rows", counts.rows)?),
        rejected_records: Set(to_number("batches.rejected_records", counts.rejected_records)?),
        records: Set(to_number("batches.records", counts.records)?),
        bytes: Set(to_number("batches.bytes", counts.bytes)?),
        digest: Set(batch.digest.to_vec()),
        prepared_millis: Set(now),
        prepared_batches: Set(prepared_batches),
        terms: Set(Some(to_json("batches.terms", &batch.terms)?)),
    };
    batch::Entity::insert(row).exec_without_returning(transaction).await?;
    let mut rows = Vec::with_capacity(batch.slices.len());
    for (index, (slice, ordinal)) in (0_i64..).zip(batch.slices.iter().zip(ordinals)) {
        rows.push(slice::ActiveModel {
            pipe_uid: Set(uid.to_owned()),
            shard_id: Set(slice.shard.to_string()),
            ordinal: Set(to_number("batch_slices.ordinal", *ordinal)?),
            batch_id: Set(batch.id.to_string()),
            slice_index: Set(index),
            from_exclusive: Set(to_json("batch_slices.from_exclusive", &slice.from_exclusive)?),
            to_inclusive: Set(slice.to_inclusive.to_string()),
        });
    }
    for chunk in rows.chunks(ROWS_PER_INSERT) {
        slice::Entity::insert_many(chunk.to_vec())
            .exec_without_returning(transaction)
            .await?;
    }
    fail_point!("control.prepare.in_transaction");
    Ok(())
}

/// Writes what a commit changes of its shards and of the pipe's totals, and remembers the batch.
async fn advance(
    transaction: &DatabaseTransaction,
    uid: &str,
    batch: BatchId,
    advances: &[Advance],
    counts: Counts,
) -> Result<(), Error> {
    for chunk in advances.chunks(ROWS_PER_INSERT) {
        let mut checkpoint = CaseStatement::new();
        for advance in chunk {
            let text = to_json("shards.checkpoint", &advance.checkpoint)?;
            checkpoint = checkpoint.case(shard::Column::ShardId.eq(advance.shard.as_str()), Expr::value(text));
        }
        let checkpoint = checkpoint.finally(Expr::col(shard::Column::Checkpoint));
        let update = shard::Entity::update_many()
            .col_expr(shard::Column::Checkpoint, checkpoint.into())
            .col_expr(
                shard::Column::CommittedOrdinal,
                Expr::col(shard::Column::CommittedOrdinal).add(1),
            )
            .filter(shard::Column::PipeUid.eq(uid))
            .filter(shard::Column::ShardId.is_in(chunk.iter().map(|advance| advance.shard.as_str())));
        expect_rows(chunk.len(), update.exec(transaction).await?.rows_affected)?;
    }
    if let Some(first) = advances.first() {
        remember(transaction, uid, batch, first).await?;
    }
    // Last, because all commits of a pipe meet here.
    let plus = |column: totals::Column, count: u64| -> Result<_, Error> {
        Ok((column, Expr::col(column).add(to_number("pipe_totals", count)?)))
    };
    let mut update = totals::Entity::update_many().filter(totals::Column::PipeUid.eq(uid));
    for (column, sum) in [
        plus(totals::Column::Rows, counts.rows)?,
        plus(totals::Column::RejectedRecords, counts.rejected_records)?,
        plus(totals::Column::Records, counts.records)?,
        plus(totals::Column::Bytes, counts.bytes)?,
        plus(totals::Column::Batches, 1)?,
    ] {
        update = update.col_expr(column, sum);
    }
    expect_rows(1, update.exec(transaction).await?.rows_affected)
}

/// Batches that a pipe has committed.
async fn committed_batches(transaction: &DatabaseTransaction, uid: &str) -> Result<Option<i64>, Error> {
    let batches = totals::Entity::find_by_id(uid.to_owned())
        .select_only()
        .column(totals::Column::Batches)
        .into_tuple::<i64>();
    Ok(batches.one(transaction).await?)
}

/// Notes it as an event of the pipe if a batch, which counts as committed by now, was open for so long that its token may
/// have left ClickHouse's memory.
async fn flag_if_late(
    transaction: &DatabaseTransaction,
    uid: &str,
    worker: &WorkerInstance,
    batch: BatchId,
    prepared: PreparedAt,
    now: i64,
) -> Result<(), Error> {
    let effective = pipe::Entity::find_by_id(uid.to_owned())
        .select_only()
        .column(pipe::Column::Effective)
        .into_tuple::<Option<String>>()
        .one(transaction)
        .await?
        .flatten();
    let effective: Option<Effective> = effective.map(|text| from_json("pipes.effective", &text)).transpose()?;
    let Some(window) = effective.and_then(|effective| effective.window) else {
        return Ok(());
    };
    let committed = committed_batches(transaction, uid).await?;
    let committed = committed.and_then(|count| u64::try_from(count).ok());
    let open = protocol::Open {
        time: Duration::from_millis(u64::try_from(now.saturating_sub(prepared.millis)).unwrap_or_default()),
        // Itself does not count.
        batches: committed
            .zip(prepared.batches)
            .map(|(now, then)| now.saturating_sub(then).saturating_sub(1)),
    };
    let Some(late) = protocol::late(window, open) else {
        return Ok(());
    };
    append(transaction, uid, now, &replay_late(batch, worker, open, late)).await?;
    Ok(())
}

fn replay_late(batch: BatchId, worker: &WorkerInstance, open: protocol::Open, late: Late) -> NewEvent {
    let why = match late {
        Late::Seconds { open, window } => {
            format!("it was open for {open} s, and ClickHouse remembers its token for {window} s after newer inserts")
        }
        Late::Blocks { written, window } => format!(
            "its pipe has written about {written} blocks meanwhile, and ClickHouse remembers the tokens of the last {window}"
        ),
    };
    let message = format!(
        "batch {batch} was committed late: {why}. If an attempt to insert it was carried out long before the last one, its rows may be there twice: compare count() and uniqExact(_shard_id, _sequence_number, _sub_sequence_number) around that time, if the table has these columns"
    );
    let event = NewEvent::new(kind::REPLAY_LATE, Severity::Warning, message)
        .by(format!("worker/{}", worker.worker))
        .with("batch", batch)
        .with("open_seconds", open.time.as_secs())
        .once(format!("late {batch}"));
    let event = match open.batches {
        Some(batches) => event.with("batches_committed_meanwhile", batches),
        None => event,
    };
    match late {
        Late::Seconds { window, .. } => event.with("window_seconds", window),
        Late::Blocks { written, window } => event.with("blocks_written", written).with("window_blocks", window),
    }
}

/// Remembers a committed batch under one of its shards, and forgets one that is long past there.
async fn remember(transaction: &DatabaseTransaction, uid: &str, batch: BatchId, first: &Advance) -> Result<(), Error> {
    let row = committed::ActiveModel {
        pipe_uid: Set(uid.to_owned()),
        batch_id: Set(batch.to_string()),
        shard_id: Set(first.shard.to_string()),
        ordinal: Set(to_number("committed_batches.ordinal", first.ordinal)?),
    };
    committed::Entity::insert(row)
        .exec_without_returning(transaction)
        .await?;
    let past = to_number("committed_batches.ordinal", first.ordinal.saturating_sub(REMEMBERED))?;
    committed::Entity::delete_many()
        .filter(committed::Column::PipeUid.eq(uid))
        .filter(committed::Column::ShardId.eq(first.shard.as_str()))
        .filter(committed::Column::Ordinal.lte(past))
        .exec(transaction)
        .await?;
    Ok(())
}

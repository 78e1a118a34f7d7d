//! Reads the rows that decisions of the protocol look at, and turns rows into shards and batches.

use std::collections::BTreeMap;

use jiff::Timestamp;
use millrace_common::{
    batch::{Counts, OpenBatch, Terms},
    ids::{Epoch, Revision, ShardId, WorkerInstance},
    position::Slice,
};
use sea_orm::{
    ColumnTrait as _, Condition, ConnectionTrait, EntityTrait, QueryFilter as _, QueryOrder as _, QuerySelect as _,
};

use super::{
    Error, StoredShard,
    convert::{from_json, from_millis, from_number, from_text},
    entity::{batch, shard, slice},
};
use crate::protocol::{self, Ledger, OpenSlice, Shard, ShardPhase};

/// Which shards of a pipe.
#[derive(Clone, Copy)]
pub(super) enum Scope<'a> {
    /// All.
    All,
    /// These.
    Of(&'a [&'a ShardId]),
}

/// Shards of a pipe. With `lock`, nobody else changes them, or appends to them, before the transaction ends. They are
/// locked in id order, as everywhere.
pub(super) async fn load_shards(
    connection: &impl ConnectionTrait,
    uid: &str,
    scope: Scope<'_>,
    lock: bool,
) -> Result<BTreeMap<ShardId, Shard>, Error> {
    let mut select = shard::Entity::find().filter(shard::Column::PipeUid.eq(uid));
    if let Scope::Of(ids) = scope {
        select = select.filter(shard::Column::ShardId.is_in(ids.iter().map(|id| id.as_str())));
    }
    let mut select = select.order_by_asc(shard::Column::ShardId);
    if lock {
        select = select.lock_exclusive();
    }
    select.all(connection).await?.iter().map(shard_row).collect()
}

/// Rows of open slices, in shard and ordinal order: those of `scope`, and those of the batch `also`.
pub(super) async fn load_slices(
    connection: &impl ConnectionTrait,
    uid: &str,
    scope: Scope<'_>,
    also: Option<&str>,
) -> Result<Vec<slice::Model>, Error> {
    let mut select = slice::Entity::find().filter(slice::Column::PipeUid.eq(uid));
    if let Scope::Of(ids) = scope {
        let of_shards = slice::Column::ShardId.is_in(ids.iter().map(|id| id.as_str()));
        let of_batch = also.map(|batch| slice::Column::BatchId.eq(batch));
        select = select.filter(Condition::any().add(of_shards).add_option(of_batch));
    }
    let select = select
        .order_by_asc(slice::Column::ShardId)
        .order_by_asc(slice::Column::Ordinal);
    Ok(select.all(connection).await?)
}

/// A ledger of shards and the slices among `rows` that are theirs.
pub(super) fn ledger(shards: BTreeMap<ShardId, Shard>, rows: &[slice::Model]) -> Result<Ledger, Error> {
    let mut slices: BTreeMap<ShardId, Vec<OpenSlice>> = BTreeMap::new();
    for row in rows {
        let slice = slice_of(row)?;
        if shards.contains_key(&slice.shard) {
            let ordinal = from_number("batch_slices.ordinal", row.ordinal)?;
            let batch = from_text("batch_slices.batch_id", &row.batch_id)?;
            slices
                .entry(slice.shard.clone())
                .or_default()
                .push(OpenSlice { ordinal, batch, slice });
        }
    }
    Ok(Ledger { shards, slices })
}

/// A batch of its row and, among others, the rows of its slices.
pub(super) fn assemble(row: &batch::Model, slices: &[slice::Model]) -> Result<OpenBatch, Error> {
    let mut own: Vec<_> = slices.iter().filter(|slice| slice.batch_id == row.batch_id).collect();
    own.sort_by_key(|slice| slice.slice_index);
    let digest = row.digest.as_slice().try_into();
    Ok(OpenBatch {
        id: from_text("batches.batch_id", &row.batch_id)?,
        revision: Revision(from_number("batches.revision", row.revision)?),
        slices: own.into_iter().map(slice_of).collect::<Result<_, _>>()?,
        counts: Counts {
            rows: from_number("batches.rows", row.rows)?,
            rejected_records: from_number("batches.rejected_records", row.rejected_records)?,
            records: from_number("batches.records", row.records)?,
            bytes: from_number("batches.bytes", row.bytes)?,
        },
        digest: digest.map_err(|_| Error::Corrupt {
            place: "batches.digest",
            what: format!("{} bytes", row.digest.len()),
        })?,
        terms: match &row.terms {
            Some(terms) => from_json("batches.terms", terms)?,
            None => Terms::default(),
        },
    })
}

/// Shards and open batches of a pipe, out of all its rows.
pub(super) fn progress(
    shards: BTreeMap<ShardId, Shard>,
    batches: &[batch::Model],
    slices: &[slice::Model],
    complete: &Complete,
) -> Result<(Vec<StoredShard>, Vec<OpenBatch>), Error> {
    let ledger = ledger(shards, slices)?;
    let mut by_batch: BTreeMap<&str, Vec<slice::Model>> = BTreeMap::new();
    for slice in slices {
        by_batch.entry(slice.batch_id.as_str()).or_default().push(slice.clone());
    }
    let mut open = BTreeMap::new();
    for row in batches {
        let batch = assemble(row, by_batch.get(row.batch_id.as_str()).map_or(&[], Vec::as_slice))?;
        open.insert(batch.id, batch);
    }
    let order = protocol::oldest_first(&ledger.slices).map_err(|batch| Error::Corrupt {
        place: "batch_slices.ordinal",
        what: format!("batch {batch} is both older and younger than another"),
    })?;
    let ordered = order.into_iter().filter_map(|id| open.remove(&id)).collect();
    let stored = ledger
        .shards
        .iter()
        .map(|(id, row)| StoredShard {
            complete_until: complete.get(id).copied(),
            ..stored_shard(&ledger, id, row)
        })
        .collect();
    Ok((stored, ordered))
}

fn stored_shard(ledger: &Ledger, id: &ShardId, row: &Shard) -> StoredShard {
    StoredShard {
        id: id.clone(),
        parents: row.parents.clone(),
        state: row.phase,
        epoch: row.epoch,
        owner: row.owner.clone(),
        checkpoint: row.checkpoint.clone(),
        frontier: ledger.frontier(id).unwrap_or_else(|| row.checkpoint.clone()),
        open_batches: u32::try_from(ledger.open(id).len()).unwrap_or(u32::MAX),
        committed_batches: row.committed,
        complete_until: None,
    }
}

/// Up to when shards are complete.
pub(super) type Complete = BTreeMap<ShardId, Timestamp>;

/// Up to when shards of a pipe are complete, where that is known.
pub(super) async fn load_complete(connection: &impl ConnectionTrait, uid: &str) -> Result<Complete, Error> {
    let rows = shard::Entity::find()
        .select_only()
        .columns([shard::Column::ShardId, shard::Column::CompleteMillis])
        .filter(shard::Column::PipeUid.eq(uid))
        .filter(shard::Column::CompleteMillis.is_not_null())
        .into_tuple::<(String, i64)>()
        .all(connection)
        .await?;
    rows.into_iter()
        .map(|(id, millis)| {
            Ok((
                from_text("shards.shard_id", &id)?,
                from_millis("shards.complete_millis", millis)?,
            ))
        })
        .collect()
}

fn slice_of(row: &slice::Model) -> Result<Slice, Error> {
    Ok(Slice {
        shard: from_text("batch_slices.shard_id", &row.shard_id)?,
        from_exclusive: from_json("batch_slices.from_exclusive", &row.from_exclusive)?,
        to_inclusive: from_text("batch_slices.to_inclusive", &row.to_inclusive)?,
    })
}

/// Text of a phase.
pub(super) fn phase_text(phase: ShardPhase) -> &'static str {
    match phase {
        ShardPhase::Waiting => "waiting",
        ShardPhase::Open => "open",
        ShardPhase::Finished => "finished",
    }
}

/// A shard out of its row.
pub(super) fn shard_row(row: &shard::Model) -> Result<(ShardId, Shard), Error> {
    let phase = match row.phase.as_str() {
        "waiting" => ShardPhase::Waiting,
        "open" => ShardPhase::Open,
        "finished" => ShardPhase::Finished,
        other => {
            return Err(Error::Corrupt {
                place: "shards.phase",
                what: format!("{other:?}"),
            });
        }
    };
    let owner = match (&row.owner_worker, &row.owner_incarnation) {
        (Some(worker), Some(incarnation)) => Some(WorkerInstance {
            worker: from_text("shards.owner_worker", worker)?,
            incarnation: from_text("shards.owner_incarnation", incarnation)?,
        }),
        _ => None,
    };
    let shard = Shard {
        parents: from_json("shards.parents", &row.parents)?,
        phase,
        epoch: Epoch(from_number("shards.epoch", row.epoch)?),
        owner,
        checkpoint: from_json("shards.checkpoint", &row.checkpoint)?,
        committed: from_number("shards.committed_ordinal", row.committed_ordinal)?,
    };
    Ok((from_text("shards.shard_id", &row.shard_id)?, shard))
}

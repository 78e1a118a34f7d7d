//! How many records a pipe may reject before a person has to look.

use millrace_common::{ids::PipeUid, reason};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter as _, QuerySelect as _,
    sea_query::{Expr, LockType},
};

use super::{
    Error, Store, StoredFault,
    convert::{from_number, to_json},
    entity::{pipe, totals},
    events::append,
    pipes::find_pipe,
    transaction::write,
};
use crate::events::{NewEvent, Severity, kind};

impl Store {
    /// Halts a pipe if it has rejected more records than it may until a person looks. Whether it was halted now.
    ///
    /// # Errors
    /// The database's.
    pub async fn halt_if_too_many_rejected(&self, uid: PipeUid) -> Result<bool, Error> {
        // Nearly always it has not, and nothing is locked to find that out.
        if excess(&self.inner.read, uid).await?.is_none() {
            return Ok(false);
        }
        let (id, now) = (uid.to_string(), self.now_millis());
        write!(self, |transaction| {
            pipe::Entity::find_by_id(id.clone())
                .lock(LockType::NoKeyUpdate)
                .one(&transaction)
                .await?;
            let Some(Excess { records, limit }) = excess(&transaction, uid).await? else {
                return Ok(false);
            };
            let fault = StoredFault {
                reason: reason::REJECTED_LIMIT_REACHED.to_owned(),
                message: format!(
                    "{records} records were rejected, of at most {limit} (settings.max_rejected_records): `millrace rejected count` \
                     says why. Change the pipe so that they fit, or discard them all, or stop and start it: then it goes on"
                ),
                permanent: true,
            };
            pipe::Entity::update_many()
                .col_expr(pipe::Column::Fault, Expr::value(to_json("pipes.fault", &fault)?))
                .filter(pipe::Column::Uid.eq(id.as_str()))
                .exec(&transaction)
                .await?;
            let event = NewEvent::new(kind::REJECTED_LIMIT_REACHED, Severity::Error, fault.message)
                .with("records", records)
                .with("limit", limit);
            append(&transaction, &id, now, &event).await?;
            Ok(true)
        })
    }

    /// Notes that a person has seen to all that a pipe has rejected until now, and what is to be told of it.
    ///
    /// # Errors
    /// The database's.
    pub async fn note_rejected_seen(&self, uid: PipeUid, event: &NewEvent) -> Result<(), Error> {
        let (id, now) = (uid.to_string(), self.now_millis());
        write!(self, |transaction| {
            let select = pipe::Entity::find_by_id(id.clone()).lock(LockType::NoKeyUpdate);
            if select.one(&transaction).await?.is_some() {
                see_rejected(&transaction, &id).await?;
                append(&transaction, &id, now, event).await?;
            }
            Ok(())
        })
    }
}

/// More were rejected than may be.
struct Excess {
    records: u64,
    limit: u64,
}

/// None also of a pipe that has halted for it, or for what it cannot go on with either.
async fn excess(connection: &impl ConnectionTrait, uid: PipeUid) -> Result<Option<Excess>, Error> {
    let counts = totals::Entity::find_by_id(uid.to_string()).one(connection).await?;
    let Some(counts) = counts else { return Ok(None) };
    let records: u64 = from_number(
        "pipe_totals.rejected_seen",
        counts.rejected_records.saturating_sub(counts.rejected_seen),
    )?;
    let Some(pipe) = find_pipe(connection, uid).await? else {
        return Ok(None);
    };
    let limit = pipe.spec.settings.max_rejected_records;
    let halted = pipe.fault.is_some_and(|fault| fault.halts());
    Ok((records >= limit && !halted).then_some(Excess { records, limit }))
}

/// Notes that a person has seen to what was rejected: if the pipe has halted for it, it goes on.
pub(super) async fn see_rejected(transaction: &DatabaseTransaction, uid: &str) -> Result<(), Error> {
    totals::Entity::update_many()
        .col_expr(totals::Column::RejectedSeen, Expr::col(totals::Column::RejectedRecords))
        .filter(totals::Column::PipeUid.eq(uid))
        .exec(transaction)
        .await?;
    pipe::Entity::update_many()
        .col_expr(pipe::Column::Fault, Expr::value(None::<String>))
        .filter(pipe::Column::Uid.eq(uid))
        // As it is written above; other trouble is not taken away by looking.
        .filter(pipe::Column::Fault.contains(format!("\"{}\"", reason::REJECTED_LIMIT_REACHED)))
        .exec(transaction)
        .await?;
    Ok(())
}

//! Events of pipes: appended in the transaction of what they tell of, or alone; the newest are kept.

use millrace_common::ids::{EventId, PipeUid};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, DatabaseTransaction, EntityTrait, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    sea_query::{LockType, OnConflict},
};

use super::{
    Error, Store,
    convert::{from_json, from_millis, from_text, to_json},
    entity::{event, pipe},
    transaction::write,
};
use crate::events::{Event, NewEvent, Severity};

/// Events that are kept of a pipe: weeks of an ordinary one, and a bounded few hundred kilobytes of a restless one.
pub const MAX_EVENTS: u64 = 1_000;

/// Longest message that is stored, in bytes. Messages quote what peers say.
const MAX_MESSAGE_BYTES: usize = 2_000;

/// Ids that are tried for one event: each that is taken was taken by another control plane in the same millisecond.
const MAX_ATTEMPTS: u32 = 16;

impl Store {
    /// Appends an event to a pipe, unless it is to be one for all observations of its name and there is one. Whether it
    /// was appended; false also if there is no such pipe.
    ///
    /// # Errors
    /// The database's.
    pub async fn append_event(&self, uid: PipeUid, new: &NewEvent) -> Result<bool, Error> {
        let now = self.now_millis();
        write!(self, |transaction| {
            let exists = pipe::Entity::find_by_id(uid.to_string())
                .lock(LockType::KeyShare)
                .one(&transaction)
                .await?
                .is_some();
            if !exists {
                return Ok(false);
            }
            append(&transaction, &uid.to_string(), now, new).await
        })
    }

    /// Events of a pipe, newest first, at most `limit`, those before `before`.
    ///
    /// # Errors
    /// The database's.
    pub async fn list_events(&self, uid: PipeUid, before: Option<EventId>, limit: u32) -> Result<Vec<Event>, Error> {
        let mut select = event::Entity::find().filter(event::Column::PipeUid.eq(uid.to_string()));
        if let Some(before) = before {
            select = select.filter(event::Column::EventId.lt(before.to_string()));
        }
        let select = select.order_by_desc(event::Column::EventId).limit(u64::from(limit));
        select.all(&self.inner.read).await?.into_iter().map(parse).collect()
    }

    /// The newest event of a kind.
    ///
    /// # Errors
    /// The database's.
    pub async fn last_event(&self, uid: PipeUid, kind: &str) -> Result<Option<Event>, Error> {
        let select = event::Entity::find()
            .filter(event::Column::PipeUid.eq(uid.to_string()))
            .filter(event::Column::Kind.eq(kind))
            .order_by_desc(event::Column::EventId);
        select.one(&self.inner.read).await?.map(parse).transpose()
    }
}

/// Appends an event inside a transaction that keeps the pipe from being deleted. Whether it was appended.
pub(super) async fn append(
    transaction: &DatabaseTransaction,
    uid: &str,
    now: i64,
    new: &NewEvent,
) -> Result<bool, Error> {
    let mut last = newest(transaction, uid).await?;
    // Another transaction may have taken the same id, where the clock stands still.
    for _ in 0..MAX_ATTEMPTS {
        let id = EventId::after(last, now);
        let inserted = event::Entity::insert(row(uid, id, now, new)?)
            .on_conflict(OnConflict::new().do_nothing().to_owned())
            .try_insert()
            .exec_without_returning(transaction)
            .await?;
        if matches!(inserted, sea_orm::TryInsertResult::Inserted(1..)) {
            prune(transaction, uid).await?;
            return Ok(true);
        }
        if let Some(name) = &new.once
            && is_known(transaction, uid, name).await?
        {
            return Ok(false);
        }
        last = Some(id);
    }
    Err(Error::Corrupt {
        place: "pipe_events.event_id",
        what: format!("{MAX_ATTEMPTS} ids in a row are taken"),
    })
}

async fn newest(transaction: &DatabaseTransaction, uid: &str) -> Result<Option<EventId>, Error> {
    let last = event::Entity::find()
        .select_only()
        .column(event::Column::EventId)
        .filter(event::Column::PipeUid.eq(uid))
        .order_by_desc(event::Column::EventId)
        .into_tuple::<String>()
        .one(transaction)
        .await?;
    last.map(|id| from_text("pipe_events.event_id", &id)).transpose()
}

async fn is_known(transaction: &DatabaseTransaction, uid: &str, name: &str) -> Result<bool, Error> {
    let found = event::Entity::find()
        .filter(event::Column::PipeUid.eq(uid))
        .filter(event::Column::DedupKey.eq(name))
        .one(transaction)
        .await?;
    Ok(found.is_some())
}

fn row(uid: &str, id: EventId, now: i64, new: &NewEvent) -> Result<event::ActiveModel, Error> {
    let severity = match new.severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    Ok(event::ActiveModel {
        pipe_uid: Set(uid.to_owned()),
        event_id: Set(id.to_string()),
        created_millis: Set(now),
        kind: Set(new.kind.to_owned()),
        severity: Set(severity.to_owned()),
        actor: Set(new.actor.clone()),
        shard_id: Set(new.shard.as_ref().map(ToString::to_string)),
        message: Set(cut(&new.message).to_owned()),
        details: Set(to_json("pipe_events.details", &new.details)?),
        dedup_key: Set(new.once.clone()),
    })
}

/// Removes what is older than the newest [`MAX_EVENTS`].
async fn prune(transaction: &DatabaseTransaction, uid: &str) -> Result<(), Error> {
    let first_past = event::Entity::find()
        .select_only()
        .column(event::Column::EventId)
        .filter(event::Column::PipeUid.eq(uid))
        .order_by_desc(event::Column::EventId)
        .offset(MAX_EVENTS)
        .limit(1)
        .into_tuple::<String>()
        .one(transaction)
        .await?;
    if let Some(past) = first_past {
        event::Entity::delete_many()
            .filter(event::Column::PipeUid.eq(uid))
            .filter(event::Column::EventId.lte(past))
            .exec(transaction)
            .await?;
    }
    Ok(())
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_MESSAGE_BYTES)]
}

fn parse(row: event::Model) -> Result<Event, Error> {
    let severity = match row.severity.as_str() {
        "info" => Severity::Info,
        "warning" => Severity::Warning,
        "error" => Severity::Error,
        other => {
            return Err(Error::Corrupt {
                place: "pipe_events.severity",
                what: format!("{other:?}"),
            });
        }
    };
    Ok(Event {
        id: from_text("pipe_events.event_id", &row.event_id)?,
        time: from_millis("pipe_events.created_millis", row.created_millis)?,
        kind: row.kind,
        severity,
        actor: row.actor,
        shard: row
            .shard_id
            .as_deref()
            .map(|id| from_text("pipe_events.shard_id", id))
            .transpose()?,
        message: row.message,
        details: from_json("pipe_events.details", &row.details)?,
    })
}

//! Pipes and their revisions.

use millrace_common::{
    ids::{Label, PipeName, PipeUid, ProjectName, Revision},
    pipe::{DesiredState, PipeSpec, ResolvedSpec},
};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, ConnectionTrait, DatabaseTransaction, EntityTrait, FromQueryResult, Iterable as _, JoinType,
    QueryFilter as _, QueryOrder as _, QuerySelect as _, RelationDef, Select,
    sea_query::{Expr, LockType, OnConflict},
};

use super::{
    Damaged, Effective, Error, NewPipe, PipeChange, Store, StoredFault, StoredPipe, StoredRevision, Totals,
    convert::{from_json, from_millis, from_number, from_text, to_json, to_number},
    entity::{batch, committed, credential, credential_use, event, pipe, revision, shard, slice, totals},
    events::append,
    rejected::see_rejected,
    shards::insert_shards,
    transaction::write,
};
use crate::{
    events::{NewEvent, SYSTEM, Severity, kind},
    protocol,
};

/// Revisions that are kept of a pipe, the current one among them.
pub const MAX_REVISIONS: u64 = 100;

impl Store {
    /// Stores a pipe with its first revision and its shards.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], [`Error::CredentialNotFound`], or the database's.
    pub async fn create_pipe(&self, new: NewPipe) -> Result<StoredPipe, Error> {
        self.create_pipe_by(new, SYSTEM).await
    }

    /// The same, and notes who did it.
    ///
    /// # Errors
    /// As [`Store::create_pipe`].
    pub async fn create_pipe_by(&self, new: NewPipe, actor: &str) -> Result<StoredPipe, Error> {
        let created = NewEvent::new(kind::PIPE_CREATED, Severity::Info, "the pipe was created")
            .by(actor)
            .with("shards", new.shards.len())
            .with("stream", &new.resolved.stream.arn)
            .with("stream_created", new.resolved.stream.created);
        let now = self.now_millis();
        let shards = protocol::add(&Default::default(), &new.shards, &Default::default()).new;
        write!(self, |transaction| {
            let uid = new.uid.to_string();
            let row = pipe::ActiveModel {
                uid: Set(uid.clone()),
                project: Set(new.name.project.0.to_string()),
                pipe_id: Set(new.name.id.to_string()),
                desired: Set(desired_text(new.desired).to_owned()),
                revision: Set(1),
                version: Set(1),
                fault: Set(None),
                effective: Set(optional_json("pipes.effective", new.effective.as_ref())?),
                created_millis: Set(now),
                updated_millis: Set(now),
                epoch_floor: Set(0),
            };
            let inserted = pipe::Entity::insert(row)
                .on_conflict(OnConflict::new().do_nothing().to_owned())
                .try_insert()
                .exec_without_returning(&transaction)
                .await?;
            if !matches!(inserted, sea_orm::TryInsertResult::Inserted(1..)) {
                return Err(Error::AlreadyExists {
                    name: new.name.to_string(),
                });
            }
            insert_revision(&transaction, &uid, Revision(1), &new.spec, &new.resolved, now).await?;
            let counts = totals::ActiveModel {
                pipe_uid: Set(uid.clone()),
                rows: Set(0),
                rejected_records: Set(0),
                records: Set(0),
                bytes: Set(0),
                batches: Set(0),
                rejected_seen: Set(0),
            };
            totals::Entity::insert(counts)
                .exec_without_returning(&transaction)
                .await?;
            insert_shards(&transaction, &uid, &shards, now).await?;
            append(&transaction, &uid, now, &created).await?;
            reread(&transaction, new.uid).await
        })
    }

    /// The pipe of that name.
    ///
    /// # Errors
    /// The database's, and [`Error::Corrupt`] if it cannot be read.
    pub async fn get_pipe(&self, name: &PipeName) -> Result<Option<StoredPipe>, Error> {
        let found = self.find_pipe(name).await?;
        found.transpose().map_err(|damaged| damaged.error)
    }

    /// The pipe of that name, or why it cannot be read.
    ///
    /// # Errors
    /// The database's.
    pub async fn find_pipe(&self, name: &PipeName) -> Result<Option<Result<StoredPipe, Damaged>>, Error> {
        let select = select_pipes()
            .filter(pipe::Column::Project.eq(name.project.0.as_str()))
            .filter(pipe::Column::PipeId.eq(name.id.as_str()));
        let row = select.into_model::<PipeRow>().one(&self.inner.read).await?;
        Ok(row.and_then(stored))
    }

    /// The pipe of that identity.
    ///
    /// # Errors
    /// The database's.
    pub async fn pipe_by_uid(&self, uid: PipeUid) -> Result<Option<StoredPipe>, Error> {
        find_pipe(&self.inner.read, uid).await
    }

    /// Pipes of a project in name order, at most `limit`, those behind `after`. One that cannot be read hides no other.
    ///
    /// # Errors
    /// The database's.
    pub async fn list_pipes(
        &self,
        project: &ProjectName,
        after: Option<&Label>,
        limit: u32,
    ) -> Result<Vec<Result<StoredPipe, Damaged>>, Error> {
        let mut select = select_pipes().filter(pipe::Column::Project.eq(project.0.as_str()));
        if let Some(after) = after {
            select = select.filter(pipe::Column::PipeId.gt(after.as_str()));
        }
        let select = select.order_by_asc(pipe::Column::PipeId).limit(u64::from(limit));
        let rows = select.into_model::<PipeRow>().all(&self.inner.read).await?;
        Ok(rows.into_iter().filter_map(stored).collect())
    }

    /// All pipes that can be read, in uid order. [`Self::snapshot_all`] tells of the others.
    ///
    /// # Errors
    /// The database's.
    pub async fn all_pipes(&self) -> Result<Vec<StoredPipe>, Error> {
        let pipes = load_pipes(&self.inner.read).await?;
        Ok(pipes.into_iter().filter_map(Result::ok).collect())
    }

    /// Changes a pipe. A new specification becomes a new revision. A change of nothing changes nothing.
    ///
    /// # Errors
    /// [`Error::PipeNotFound`], [`Error::EtagMismatch`] if the etag is not `expected_etag`, [`Error::CredentialNotFound`], or
    /// the database's.
    pub async fn update_pipe(
        &self,
        uid: PipeUid,
        expected_etag: Option<&str>,
        change: PipeChange,
    ) -> Result<StoredPipe, Error> {
        let now = self.now_millis();
        write!(self, |transaction| {
            let id = uid.to_string();
            let row = pipe::Entity::find_by_id(id.clone())
                .lock(LockType::NoKeyUpdate)
                .one(&transaction)
                .await?;
            let row = row.ok_or(Error::PipeNotFound { uid })?;
            check_etag(&row, expected_etag)?;
            let mut update = pipe::Entity::update_many().filter(pipe::Column::Uid.eq(id.as_str()));
            let PipeChange {
                spec,
                desired,
                effective,
                events,
            } = &change;
            if spec.is_none() && desired.is_none() && effective.is_none() {
                return reread(&transaction, uid).await;
            }
            if let Some((spec, resolved)) = spec {
                let next = Revision(from_number("pipes.revision", row.revision)?).next();
                insert_revision(&transaction, &id, next, spec, resolved, now).await?;
                forget_revisions(&transaction, &id, next).await?;
                update = update.col_expr(
                    pipe::Column::Revision,
                    Expr::value(to_number("pipes.revision", next.0)?),
                );
            }
            if let Some(desired) = desired {
                update = update.col_expr(pipe::Column::Desired, Expr::value(desired_text(*desired)));
            }
            if let Some(effective) = effective {
                let text = to_json("pipes.effective", effective)?;
                update = update.col_expr(pipe::Column::Effective, Expr::value(text));
            }
            let update = update
                .col_expr(pipe::Column::Version, Expr::value(row.version + 1))
                .col_expr(pipe::Column::UpdatedMillis, Expr::value(now));
            update.exec(&transaction).await?;
            // Whoever changes a pipe, or starts it, has looked at it.
            if spec.is_some() || *desired == Some(DesiredState::Running) {
                see_rejected(&transaction, &id).await?;
            }
            for event in events {
                append(&transaction, &id, now, event).await?;
            }
            reread(&transaction, uid).await
        })
    }

    /// Notes trouble of a pipe, or that there is none any more. Observed, not wanted: the etag stays. False if there is no
    /// such pipe.
    ///
    /// # Errors
    /// The database's.
    pub async fn set_pipe_fault(&self, uid: PipeUid, fault: Option<&StoredFault>) -> Result<bool, Error> {
        self.note_pipe_fault(uid, fault, None).await
    }

    /// The same, with what to tell of it.
    ///
    /// # Errors
    /// The database's.
    pub async fn note_pipe_fault(
        &self,
        uid: PipeUid,
        fault: Option<&StoredFault>,
        event: Option<&NewEvent>,
    ) -> Result<bool, Error> {
        let text = optional_json("pipes.fault", fault)?;
        self.observe(uid, pipe::Column::Fault, text, event).await
    }

    /// Notes what is promised in effect. Observed, not wanted: the etag stays. False if there is no such pipe.
    ///
    /// # Errors
    /// The database's.
    pub async fn set_pipe_effective(&self, uid: PipeUid, effective: &Effective) -> Result<bool, Error> {
        self.note_pipe_effective(uid, effective, None).await
    }

    /// The same, with what to tell of it.
    ///
    /// # Errors
    /// The database's.
    pub async fn note_pipe_effective(
        &self,
        uid: PipeUid,
        effective: &Effective,
        event: Option<&NewEvent>,
    ) -> Result<bool, Error> {
        let text = to_json("pipes.effective", effective)?;
        self.observe(uid, pipe::Column::Effective, Some(text), event).await
    }

    async fn observe(
        &self,
        uid: PipeUid,
        column: pipe::Column,
        value: Option<String>,
        event: Option<&NewEvent>,
    ) -> Result<bool, Error> {
        let now = self.now_millis();
        write!(self, |transaction| {
            let update = pipe::Entity::update_many()
                .col_expr(column, Expr::value(value.clone()))
                .filter(pipe::Column::Uid.eq(uid.to_string()));
            let found = update.exec(&transaction).await?.rows_affected > 0;
            if let Some(event) = event.filter(|_| found) {
                append(&transaction, &uid.to_string(), now, event).await?;
            }
            Ok(found)
        })
    }

    /// Removes a pipe with its shards, batches and revisions. False if there is none of that name.
    ///
    /// # Errors
    /// [`Error::EtagMismatch`], or the database's.
    pub async fn delete_pipe(&self, name: &PipeName, expected_etag: Option<&str>) -> Result<bool, Error> {
        write!(self, |transaction| {
            let row = pipe::Entity::find()
                .filter(pipe::Column::Project.eq(name.project.0.as_str()))
                .filter(pipe::Column::PipeId.eq(name.id.as_str()))
                .lock(LockType::Update)
                .one(&transaction)
                .await?;
            let Some(row) = row else { return Ok(false) };
            check_etag(&row, expected_etag)?;
            let uid = row.uid.as_str();
            // Shards are locked first and in order, as Prepare and Commit do it.
            super::ledger::load_shards(&transaction, uid, super::ledger::Scope::All, true).await?;
            slice::Entity::delete_many()
                .filter(slice::Column::PipeUid.eq(uid))
                .exec(&transaction)
                .await?;
            batch::Entity::delete_many()
                .filter(batch::Column::PipeUid.eq(uid))
                .exec(&transaction)
                .await?;
            committed::Entity::delete_many()
                .filter(committed::Column::PipeUid.eq(uid))
                .exec(&transaction)
                .await?;
            shard::Entity::delete_many()
                .filter(shard::Column::PipeUid.eq(uid))
                .exec(&transaction)
                .await?;
            totals::Entity::delete_many()
                .filter(totals::Column::PipeUid.eq(uid))
                .exec(&transaction)
                .await?;
            event::Entity::delete_many()
                .filter(event::Column::PipeUid.eq(uid))
                .exec(&transaction)
                .await?;
            let uses = credential_use::Entity::delete_many().filter(credential_use::Column::PipeUid.eq(uid));
            uses.exec(&transaction).await?;
            revision::Entity::delete_many()
                .filter(revision::Column::PipeUid.eq(uid))
                .exec(&transaction)
                .await?;
            pipe::Entity::delete_many()
                .filter(pipe::Column::Uid.eq(uid))
                .exec(&transaction)
                .await?;
            Ok(true)
        })
    }

    /// Revisions of a pipe, newest first, at most `limit`, those before `before`.
    ///
    /// # Errors
    /// The database's, and [`Error::Corrupt`] if one cannot be read.
    pub async fn list_revisions(
        &self,
        uid: PipeUid,
        before: Option<Revision>,
        limit: u32,
    ) -> Result<Vec<StoredRevision>, Error> {
        let mut select = revision::Entity::find().filter(revision::Column::PipeUid.eq(uid.to_string()));
        if let Some(before) = before {
            let before = to_number("pipe_revisions.revision", before.0)?;
            select = select.filter(revision::Column::Revision.lt(before));
        }
        let select = select.order_by_desc(revision::Column::Revision).limit(u64::from(limit));
        let rows = select.all(&self.inner.read).await?;
        let parse = |row: revision::Model| {
            Ok(StoredRevision {
                revision: Revision(from_number("pipe_revisions.revision", row.revision)?),
                spec: from_json("pipe_revisions.spec", &row.spec)?,
                created: from_millis("pipe_revisions.created_millis", row.created_millis)?,
            })
        };
        rows.into_iter().map(parse).collect()
    }

    /// A revision of a pipe. Of old ones, [`MAX_REVISIONS`] are kept, and as long as it is open those that a batch was made with.
    ///
    /// # Errors
    /// The database's.
    pub async fn revision(&self, uid: PipeUid, revision: Revision) -> Result<Option<(PipeSpec, ResolvedSpec)>, Error> {
        let Ok(number) = i64::try_from(revision.0) else {
            return Ok(None);
        };
        let row = revision::Entity::find_by_id((uid.to_string(), number))
            .one(&self.inner.read)
            .await?;
        let parse = |row: revision::Model| {
            Ok((
                from_json("pipe_revisions.spec", &row.spec)?,
                from_json("pipe_revisions.resolved", &row.resolved)?,
            ))
        };
        row.map(parse).transpose()
    }
}

/// A pipe with what is stored beside it.
#[derive(FromQueryResult)]
struct PipeRow {
    uid: String,
    project: String,
    pipe_id: String,
    desired: String,
    revision: i64,
    version: i64,
    fault: Option<String>,
    effective: Option<String>,
    created_millis: i64,
    updated_millis: i64,
    spec: String,
    resolved: String,
    rows: i64,
    rejected_records: i64,
    records: i64,
    bytes: i64,
    batches: i64,
}

fn select_pipes() -> Select<pipe::Entity> {
    let current: RelationDef = pipe::Entity::belongs_to(revision::Entity)
        .from((pipe::Column::Uid, pipe::Column::Revision))
        .to((revision::Column::PipeUid, revision::Column::Revision))
        .into();
    let counts: RelationDef = pipe::Entity::belongs_to(totals::Entity)
        .from(pipe::Column::Uid)
        .to(totals::Column::PipeUid)
        .into();
    pipe::Entity::find()
        .select_only()
        .columns(pipe::Column::iter())
        .columns([revision::Column::Spec, revision::Column::Resolved])
        .columns(totals::Column::iter().filter(|column| !matches!(column, totals::Column::PipeUid)))
        .join(JoinType::InnerJoin, current)
        .join(JoinType::InnerJoin, counts)
}

/// All pipes, in uid order.
pub(super) async fn load_pipes(connection: &impl ConnectionTrait) -> Result<Vec<Result<StoredPipe, Damaged>>, Error> {
    let rows = select_pipes()
        .order_by_asc(pipe::Column::Uid)
        .into_model::<PipeRow>()
        .all(connection)
        .await?;
    Ok(rows.into_iter().filter_map(stored).collect())
}

/// A pipe of its row. One of which not even the name can be read cannot be spoken of: it is logged and left out.
fn stored(row: PipeRow) -> Option<Result<StoredPipe, Damaged>> {
    let (uid, name) = (
        row.uid.clone(),
        format!("projects/{}/pipes/{}", row.project, row.pipe_id),
    );
    let error = match StoredPipe::try_from(row) {
        Ok(pipe) => return Some(Ok(pipe)),
        Err(error) => error,
    };
    match (uid.parse(), name.parse()) {
        (Ok(uid), Ok(name)) => Some(Err(Damaged { uid, name, error })),
        _ => {
            tracing::error!(
                uid,
                name,
                error = &error as &dyn std::error::Error,
                "a stored pipe has no readable name"
            );
            None
        }
    }
}

/// One pipe.
pub(super) async fn find_pipe(connection: &impl ConnectionTrait, uid: PipeUid) -> Result<Option<StoredPipe>, Error> {
    let select = select_pipes().filter(pipe::Column::Uid.eq(uid.to_string()));
    let row = select.into_model::<PipeRow>().one(connection).await?;
    row.map(StoredPipe::try_from).transpose()
}

/// A pipe that was just written.
async fn reread(transaction: &DatabaseTransaction, uid: PipeUid) -> Result<StoredPipe, Error> {
    find_pipe(transaction, uid).await?.ok_or(Error::PipeNotFound { uid })
}

pub(super) async fn insert_revision(
    transaction: &DatabaseTransaction,
    uid: &str,
    number: Revision,
    spec: &PipeSpec,
    resolved: &ResolvedSpec,
    now: i64,
) -> Result<(), Error> {
    let resolved = ResolvedSpec {
        revision: number,
        ..resolved.clone()
    };
    let number = to_number("pipe_revisions.revision", number.0)?;
    let row = revision::ActiveModel {
        pipe_uid: Set(uid.to_owned()),
        revision: Set(number),
        spec: Set(to_json("pipe_revisions.spec", spec)?),
        resolved: Set(to_json("pipe_revisions.resolved", &resolved)?),
        created_millis: Set(now),
    };
    revision::Entity::insert(row)
        .exec_without_returning(transaction)
        .await?;
    let mut names = vec![&spec.source.credential, &spec.destination.credential];
    names.sort();
    names.dedup();
    for name in names {
        // Locked against deletion until the reference to it is committed.
        let row = credential::Entity::find()
            .filter(credential::Column::Project.eq(name.project.0.as_str()))
            .filter(credential::Column::CredentialId.eq(name.id.as_str()))
            .lock(LockType::KeyShare)
            .one(transaction)
            .await?
            .ok_or_else(|| Error::CredentialNotFound { name: name.clone() })?;
        let used = credential_use::ActiveModel {
            pipe_uid: Set(uid.to_owned()),
            revision: Set(number),
            credential_uid: Set(row.uid),
        };
        credential_use::Entity::insert(used)
            .exec_without_returning(transaction)
            .await?;
    }
    Ok(())
}

/// Deletes the revisions that are too old to keep, but for those that open batches were made with. A worker that makes a batch with
/// one at that moment is refused, as it is after the deletion: it takes the current one then.
async fn forget_revisions(transaction: &DatabaseTransaction, uid: &str, current: Revision) -> Result<(), Error> {
    let Some(last) = current.0.checked_sub(MAX_REVISIONS).filter(|last| *last > 0) else {
        return Ok(());
    };
    let last = to_number("pipe_revisions.revision", last)?;
    let open: Vec<i64> = batch::Entity::find()
        .select_only()
        .column(batch::Column::Revision)
        .filter(batch::Column::PipeUid.eq(uid))
        .filter(batch::Column::Revision.lte(last))
        .distinct()
        .into_tuple()
        .all(transaction)
        .await?;
    credential_use::Entity::delete_many()
        .filter(credential_use::Column::PipeUid.eq(uid))
        .filter(credential_use::Column::Revision.lte(last))
        .filter(credential_use::Column::Revision.is_not_in(open.iter().copied()))
        .exec(transaction)
        .await?;
    revision::Entity::delete_many()
        .filter(revision::Column::PipeUid.eq(uid))
        .filter(revision::Column::Revision.lte(last))
        .filter(revision::Column::Revision.is_not_in(open))
        .exec(transaction)
        .await?;
    Ok(())
}

/// The uid is in it because a pipe that is deleted and made again starts over at version 1.
fn etag(uid: &str, version: i64) -> String {
    format!("{}-{version}", uid.get(..8).unwrap_or(uid))
}

pub(super) fn check_etag(row: &pipe::Model, expected: Option<&str>) -> Result<(), Error> {
    let found = etag(&row.uid, row.version);
    match expected {
        Some(expected) if expected != found => Err(Error::EtagMismatch {
            expected: expected.to_owned(),
            found,
        }),
        _ => Ok(()),
    }
}

fn desired_text(desired: DesiredState) -> &'static str {
    match desired {
        DesiredState::Running => "running",
        DesiredState::Stopped => "stopped",
    }
}

fn optional_json(place: &'static str, value: Option<&impl serde::Serialize>) -> Result<Option<String>, Error> {
    value.map(|value| to_json(place, value)).transpose()
}

impl TryFrom<PipeRow> for StoredPipe {
    type Error = Error;

    fn try_from(row: PipeRow) -> Result<Self, Error> {
        let desired = match row.desired.as_str() {
            "running" => DesiredState::Running,
            "stopped" => DesiredState::Stopped,
            other => {
                return Err(Error::Corrupt {
                    place: "pipes.desired",
                    what: format!("{other:?}"),
                });
            }
        };
        Ok(StoredPipe {
            uid: from_text("pipes.uid", &row.uid)?,
            name: PipeName {
                project: ProjectName(from_text("pipes.project", &row.project)?),
                id: from_text("pipes.pipe_id", &row.pipe_id)?,
            },
            spec: from_json("pipe_revisions.spec", &row.spec)?,
            resolved: from_json("pipe_revisions.resolved", &row.resolved)?,
            desired,
            revision: Revision(from_number("pipes.revision", row.revision)?),
            etag: etag(&row.uid, row.version),
            fault: row
                .fault
                .as_deref()
                .map(|text| from_json("pipes.fault", text))
                .transpose()?,
            effective: row
                .effective
                .as_deref()
                .map(|text| from_json("pipes.effective", text))
                .transpose()?,
            totals: Totals {
                rows: from_number("pipe_totals.rows", row.rows)?,
                rejected_records: from_number("pipe_totals.rejected_records", row.rejected_records)?,
                records: from_number("pipe_totals.records", row.records)?,
                bytes: from_number("pipe_totals.bytes", row.bytes)?,
                batches: from_number("pipe_totals.batches", row.batches)?,
            },
            created: from_millis("pipes.created_millis", row.created_millis)?,
            updated: from_millis("pipes.updated_millis", row.updated_millis)?,
        })
    }
}

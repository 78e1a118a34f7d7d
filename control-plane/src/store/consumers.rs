//! The consumers that Millrace registers for pipes. One is noted here before it is registered and until it is known to be gone, whatever
//! becomes of its pipe meanwhile: the name of a consumer does not say whose it is, these rows do.

use jiff::Timestamp;
use millrace_common::{
    ids::{CredentialName, PipeName, PipeUid, ProjectName},
    pipe::FanOut,
};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, EntityTrait, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    sea_query::{Expr, LockType, OnConflict},
};

use super::{
    Error, Store, StoredPipe,
    convert::{from_millis, from_text},
    entity::{consumer, pipe},
    pipes::{find_pipe, load_pipes},
    transaction::{begin_read, write},
};

/// A consumer that Millrace has registered, or is about to, and what it takes to deregister it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagedConsumer {
    /// Of which pipe; its name comes from that.
    pub pipe: PipeUid,
    /// The pipe's name, which may be another pipe's by now.
    pub pipe_name: PipeName,
    /// Of which stream.
    pub stream_arn: String,
    /// Region of the stream.
    pub region: String,
    /// Endpoint override.
    pub endpoint: Option<String>,
    /// With whose identity it was registered; may be gone.
    pub credential: CredentialName,
    /// When it was deregistered first since nobody wants it.
    pub gone: Option<Timestamp>,
}

impl Store {
    /// Notes the consumer of a pipe, to be registered after that. False if the pipe is gone, or is not to have one (any more): then
    /// none is to be registered.
    ///
    /// # Errors
    /// The database's.
    pub async fn note_consumer(&self, uid: PipeUid) -> Result<bool, Error> {
        let now = self.now_millis();
        if let Some(pipe) = find_pipe(&self.inner.read, uid).await?
            && is_managed(&pipe)
        {
            let known = consumer::Entity::find_by_id((uid.to_string(), pipe.resolved.stream.arn.clone()));
            let (known, row) = (known.one(&self.inner.read).await?, row(&pipe, now));
            // Mostly it is: nothing is written at each look.
            if known.is_some_and(|known| {
                known
                    == consumer::Model {
                        created_millis: known.created_millis,
                        ..row
                    }
            }) {
                return Ok(true);
            }
        }
        write!(self, |transaction| {
            // Whoever deletes or changes the pipe comes before or after all of this.
            let locked = pipe::Entity::find_by_id(uid.to_string()).lock(LockType::NoKeyUpdate);
            if locked.one(&transaction).await?.is_none() {
                return Ok(false);
            }
            let Some(pipe) = find_pipe(&transaction, uid).await?.filter(is_managed) else {
                return Ok(false);
            };
            use consumer::Column;
            let mut known = OnConflict::columns([Column::PipeUid, Column::StreamArn]);
            known.update_columns([
                Column::Project,
                Column::PipeId,
                Column::Credential,
                Column::Region,
                Column::Endpoint,
                Column::GoneMillis,
            ]);
            let row = row(&pipe, now);
            let row = consumer::ActiveModel {
                pipe_uid: Set(row.pipe_uid),
                stream_arn: Set(row.stream_arn),
                project: Set(row.project),
                pipe_id: Set(row.pipe_id),
                credential: Set(row.credential),
                region: Set(row.region),
                endpoint: Set(row.endpoint),
                created_millis: Set(row.created_millis),
                gone_millis: Set(row.gone_millis),
            };
            consumer::Entity::insert(row)
                .on_conflict(known)
                .exec_without_returning(&transaction)
                .await?;
            Ok(true)
        })
    }

    /// Consumers that nobody wants: their pipe is gone, or reads without them. What a pipe wants that cannot be read is not known, so
    /// its consumer stays.
    ///
    /// # Errors
    /// The database's.
    pub async fn unwanted_consumers(&self) -> Result<Vec<ManagedConsumer>, Error> {
        let transaction = begin_read(&self.inner.read).await?;
        let rows = consumer::Entity::find()
            .order_by_asc(consumer::Column::PipeUid)
            .all(&transaction)
            .await?;
        if rows.is_empty() {
            transaction.commit().await?;
            return Ok(Vec::new());
        }
        let there: Vec<String> = pipe::Entity::find()
            .select_only()
            .column(pipe::Column::Uid)
            .into_tuple()
            .all(&transaction)
            .await?;
        let pipes = load_pipes(&transaction).await?;
        transaction.commit().await?;
        let sound: Vec<(String, StoredPipe)> = pipes
            .into_iter()
            .filter_map(Result::ok)
            .map(|pipe| (pipe.uid.to_string(), pipe))
            .collect();
        let is_wanted = |row: &consumer::Model| match sound.iter().find(|(uid, _)| *uid == row.pipe_uid) {
            Some((_, pipe)) => is_managed(pipe) && pipe.resolved.stream.arn == row.stream_arn,
            None => there.contains(&row.pipe_uid),
        };
        let unwanted = rows.into_iter().filter(|row| !is_wanted(row));
        Ok(unwanted
            .filter_map(|row| {
                let (uid, arn) = (row.pipe_uid.clone(), row.stream_arn.clone());
                ManagedConsumer::try_from(row)
                    .inspect_err(
                        |error| tracing::error!(uid, arn, %error, "a consumer that nobody wants cannot be read"),
                    )
                    .ok()
            })
            .collect())
    }

    /// Notes that a consumer was deregistered, unless its pipe wants it again. The time of the first such note stays.
    ///
    /// # Errors
    /// The database's.
    pub async fn note_consumer_gone(&self, consumer: &ManagedConsumer) -> Result<(), Error> {
        let now = self.now_millis();
        write!(self, |transaction| {
            consumer::Entity::update_many()
                .col_expr(consumer::Column::GoneMillis, Expr::value(now))
                .filter(consumer::Column::PipeUid.eq(consumer.pipe.to_string()))
                .filter(consumer::Column::StreamArn.eq(consumer.stream_arn.as_str()))
                .filter(consumer::Column::GoneMillis.is_null())
                .exec(&transaction)
                .await?;
            Ok(())
        })
    }

    /// Forgets a consumer that was gone, unless its pipe wants it again.
    ///
    /// # Errors
    /// The database's.
    pub async fn forget_consumer(&self, consumer: &ManagedConsumer) -> Result<(), Error> {
        write!(self, |transaction| {
            consumer::Entity::delete_many()
                .filter(consumer::Column::PipeUid.eq(consumer.pipe.to_string()))
                .filter(consumer::Column::StreamArn.eq(consumer.stream_arn.as_str()))
                .filter(consumer::Column::GoneMillis.is_not_null())
                .exec(&transaction)
                .await?;
            Ok(())
        })
    }
}

fn is_managed(pipe: &StoredPipe) -> bool {
    pipe.spec.source.fan_out == Some(FanOut::Managed)
}

fn row(pipe: &StoredPipe, now: i64) -> consumer::Model {
    consumer::Model {
        pipe_uid: pipe.uid.to_string(),
        stream_arn: pipe.resolved.stream.arn.clone(),
        project: pipe.name.project.0.to_string(),
        pipe_id: pipe.name.id.to_string(),
        credential: pipe.spec.source.credential.to_string(),
        region: pipe.spec.source.region.clone(),
        endpoint: pipe.spec.source.endpoint.clone(),
        created_millis: now,
        gone_millis: None,
    }
}

impl TryFrom<consumer::Model> for ManagedConsumer {
    type Error = Error;

    fn try_from(row: consumer::Model) -> Result<Self, Error> {
        let gone = row
            .gone_millis
            .map(|millis| from_millis("consumers.gone_millis", millis));
        Ok(Self {
            pipe: from_text("consumers.pipe_uid", &row.pipe_uid)?,
            pipe_name: PipeName {
                project: ProjectName(from_text("consumers.project", &row.project)?),
                id: from_text("consumers.pipe_id", &row.pipe_id)?,
            },
            stream_arn: row.stream_arn,
            region: row.region,
            endpoint: row.endpoint,
            credential: from_text("consumers.credential", &row.credential)?,
            gone: gone.transpose()?,
        })
    }
}

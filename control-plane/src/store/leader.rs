//! The leader's row, the fence around what a leader writes, and what it leaves for the others to read.
//!
//! On PostgreSQL a write under a term holds the row FOR KEY SHARE until it commits. Renewing, and counting changes, do not
//! conflict with that; taking the place does (FOR UPDATE), so it waits for writes that are under way, and after it no
//! write under an older term finds its term. A frozen process cannot hold that up for longer than PostgreSQL lets a
//! transaction idle.

use std::{sync::Arc, time::Duration};

use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, EntityTrait,
    FromQueryResult, QueryFilter as _, QuerySelect as _, UpdateMany,
    sea_query::{Expr, ExprTrait as _, LockType, OnConflict},
};

use super::{
    Error, Inner, Store,
    convert::{from_number, to_number},
    entity::{leader, observed},
    shards::ROWS_PER_INSERT,
    transaction::{Attempts, begin_write, write},
};
use crate::leader::{Candidate, Row, Step, Term, step};

/// Key of the one row.
const ONLY: i64 = 1;

/// What came of a look at the leader's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// What was done.
    pub step: Step,
    /// The row, as it was before.
    pub row: Row,
    /// Counts what was stored by control planes that do not lead.
    pub changes: u64,
    /// Counts what the leader has stored of what it observes.
    pub observed: u64,
}

impl Store {
    /// Whether no other process can have the database open.
    #[must_use]
    pub fn is_exclusive(&self) -> bool {
        self.inner.exclusive
    }

    /// The same database for what is done under a term: no write of the returned store happens once a higher term was
    /// given. It has connections of its own, so that no number of API calls keeps a leader from its work.
    #[must_use]
    pub fn fenced(&self, term: Term) -> Store {
        let inner = &self.inner;
        // On SQLite readers are in nobody's way, and the one connection for writing is not for reading.
        let read = if inner.exclusive { &inner.read } else { &inner.leading };
        Store {
            inner: Arc::new(Inner {
                read: read.clone(),
                write: inner.leading.clone(),
                leading: inner.leading.clone(),
                electing: inner.electing.clone(),
                exclusive: inner.exclusive,
                fence: Some(term),
                sealer: inner.sealer.clone(),
                clock: inner.clock.clone(),
                _lock: inner._lock.clone(),
            }),
            request: None,
        }
    }

    /// Stands for election: renews the leadership under `held`, takes the place if it is free, or finds out who leads. A
    /// leadership that is taken or renewed lasts for `ttl`, by the clock of the database.
    ///
    /// # Errors
    /// The database's.
    pub async fn campaign(&self, me: &Candidate, held: Option<Term>, ttl: Duration) -> Result<Standing, Error> {
        let connection = &self.inner.electing;
        let (row, changes, observed) = find(connection).await?;
        let standing = |step, row| Standing {
            step,
            row,
            changes,
            observed,
        };
        match step(&me.id, held, &row, self.is_exclusive()) {
            Step::Renew(term) => {
                let renewed = renew(connection, me, term, ttl).await?;
                let step = if renewed { Step::Renew(term) } else { Step::Lost };
                Ok(standing(step, row))
            }
            Step::Acquire(_) => {
                let (step, row) = self.acquire(me, ttl).await?;
                Ok(standing(step, row))
            }
            step => Ok(standing(step, row)),
        }
    }

    /// Takes the place, unless someone was faster.
    async fn acquire(&self, me: &Candidate, ttl: Duration) -> Result<(Step, Row), Error> {
        let mut attempts = Attempts::default();
        loop {
            let transaction = begin_write(&self.inner.electing).await?;
            let outcome: Result<_, Error> = async {
                let lock = leader::Entity::find_by_id(ONLY).lock(LockType::Update);
                lock.one(&transaction).await?;
                // The clock is read once the lock is there.
                let (row, ..) = find(&transaction).await?;
                let step = step(&me.id, None, &row, self.is_exclusive());
                if let Step::Acquire(term) = step {
                    let update = only()
                        .col_expr(leader::Column::Holder, Expr::value(me.id.clone()))
                        .col_expr(leader::Column::Address, Expr::value(me.address.clone()))
                        .col_expr(leader::Column::Term, Expr::value(to_number("leader.term", term.0)?))
                        .col_expr(leader::Column::ExpiresMillis, expiry(&transaction, ttl)?);
                    update.exec(&transaction).await?;
                }
                Ok((step, row))
            }
            .await;
            if let Some(result) = attempts.settle(transaction, outcome).await {
                return result;
            }
        }
    }

    /// Gives the place up at once.
    ///
    /// # Errors
    /// The database's.
    pub async fn resign(&self, me: &Candidate, term: Term) -> Result<(), Error> {
        let update = only()
            .col_expr(leader::Column::Holder, Expr::value(""))
            .col_expr(leader::Column::ExpiresMillis, Expr::value(0_i64))
            .filter(leader::Column::Holder.eq(me.id.as_str()))
            .filter(leader::Column::Term.eq(to_number("leader.term", term.0)?));
        update.exec(&self.inner.electing).await?;
        Ok(())
    }

    /// Lets the leader know that something was stored which it has to look at.
    ///
    /// # Errors
    /// The database's.
    pub async fn announce_change(&self) -> Result<(), Error> {
        let update = only().col_expr(leader::Column::Changes, Expr::col(leader::Column::Changes).add(1));
        update.exec(&self.inner.electing).await?;
        Ok(())
    }

    /// Leaves what the leader observes for the others to read: what is new of it, and which subjects are gone.
    ///
    /// # Errors
    /// [`Error::Fenced`], or the database's.
    pub async fn put_observed(&self, new: &[(String, String)], gone: &[String]) -> Result<(), Error> {
        write!(self, |transaction| {
            for chunk in new.chunks(ROWS_PER_INSERT) {
                let rows = chunk.iter().map(|(subject, status)| observed::ActiveModel {
                    subject: Set(subject.clone()),
                    status: Set(status.clone()),
                });
                let replace = OnConflict::column(observed::Column::Subject)
                    .update_column(observed::Column::Status)
                    .to_owned();
                observed::Entity::insert_many(rows)
                    .on_conflict(replace)
                    .exec_without_returning(&transaction)
                    .await?;
            }
            for chunk in gone.chunks(ROWS_PER_INSERT) {
                let delete = observed::Entity::delete_many()
                    .filter(observed::Column::Subject.is_in(chunk.iter().map(String::as_str)));
                delete.exec(&transaction).await?;
            }
            let count = only().col_expr(leader::Column::Observed, Expr::col(leader::Column::Observed).add(1));
            count.exec(&transaction).await?;
            Ok(())
        })
    }

    /// What the leader has left to read, by subject.
    ///
    /// # Errors
    /// The database's.
    pub async fn observed(&self) -> Result<Vec<(String, String)>, Error> {
        let rows = observed::Entity::find().all(&self.inner.read).await?;
        Ok(rows.into_iter().map(|row| (row.subject, row.status)).collect())
    }
}

/// That the term of a store is the current one, until the transaction ends.
pub(super) async fn check_fence(transaction: &DatabaseTransaction, fence: Option<Term>) -> Result<(), Error> {
    let Some(term) = fence else { return Ok(()) };
    let row = leader::Entity::find_by_id(ONLY)
        .lock(LockType::KeyShare)
        .one(transaction)
        .await?;
    let current = Term(from_number("leader.term", row.ok_or_else(missing)?.term)?);
    if current == term {
        return Ok(());
    }
    Err(Error::Fenced { term, current })
}

#[derive(FromQueryResult)]
struct LeaderRow {
    holder: String,
    term: i64,
    address: String,
    expires_millis: i64,
    changes: i64,
    observed: i64,
    now_millis: i64,
}

async fn find(connection: &impl ConnectionTrait) -> Result<(Row, u64, u64), Error> {
    let row = leader::Entity::find_by_id(ONLY)
        .expr_as(now(connection.get_database_backend()), "now_millis")
        .into_model::<LeaderRow>()
        .one(connection)
        .await?
        .ok_or_else(missing)?;
    let left = u64::try_from(row.expires_millis.saturating_sub(row.now_millis)).unwrap_or(0);
    let found = Row {
        holder: row.holder,
        term: Term(from_number("leader.term", row.term)?),
        address: row.address,
        left: Duration::from_millis(left),
    };
    Ok((
        found,
        from_number("leader.changes", row.changes)?,
        from_number("leader.observed", row.observed)?,
    ))
}

async fn renew(connection: &DatabaseConnection, me: &Candidate, term: Term, ttl: Duration) -> Result<bool, Error> {
    let update = only()
        .col_expr(leader::Column::ExpiresMillis, expiry(connection, ttl)?)
        .filter(leader::Column::Holder.eq(me.id.as_str()))
        .filter(leader::Column::Term.eq(to_number("leader.term", term.0)?));
    Ok(update.exec(connection).await?.rows_affected == 1)
}

fn only() -> UpdateMany<leader::Entity> {
    leader::Entity::update_many().filter(leader::Column::Id.eq(ONLY))
}

/// Milliseconds since the epoch by the clock of the database, at this moment and not at the beginning of the transaction.
fn now(backend: DbBackend) -> Expr {
    Expr::cust(match backend {
        DbBackend::Sqlite => "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
        _ => "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
    })
}

fn expiry(connection: &impl ConnectionTrait, ttl: Duration) -> Result<Expr, Error> {
    let millis = to_number(
        "leader.expires_millis",
        u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
    )?;
    Ok(now(connection.get_database_backend()).add(millis))
}

fn missing() -> Error {
    Error::Corrupt {
        place: "leader",
        what: "no row".to_owned(),
    }
}

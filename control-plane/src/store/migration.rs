//! The schema, as a list of steps. A step that was released never changes; a new one is added behind it, and must leave
//! the database usable for the release before (expand first, contract a release later).

use sea_orm::{ConnectionTrait as _, DatabaseTransaction, DbBackend};
use sea_orm_migration::prelude::*;

use super::Error;

mod m0001_initial;
mod m0003_events;
mod m0004_leader;
mod m0005_late_replays;
mod m0006_complete_until;
mod m0007_batch_terms;
mod m0008_epoch_floor;
mod m0009_consumers;
mod m0010_tokens;
mod m0011_requests;
mod m0012_rejected_seen;

/// Key of the lock under which one control plane at a time brings a PostgreSQL schema up to date: "millrace" in ASCII.
const POSTGRES_LOCK: i64 = 0x6d69_6c6c_7261_6365;

struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_initial::Step),
            Box::new(m0003_events::Step),
            Box::new(m0004_leader::Step),
            Box::new(m0005_late_replays::Step),
            Box::new(m0006_complete_until::Step),
            Box::new(m0007_batch_terms::Step),
            Box::new(m0008_epoch_floor::Step),
            Box::new(m0009_consumers::Step),
            Box::new(m0010_tokens::Step),
            Box::new(m0011_requests::Step),
            Box::new(m0012_rejected_seen::Step),
        ]
    }
}

/// Brings the schema up to date, inside a transaction: all steps or none.
pub(super) async fn up(transaction: &DatabaseTransaction) -> Result<(), Error> {
    if transaction.get_database_backend() == DbBackend::Postgres {
        transaction
            .execute_unprepared(&format!("SELECT pg_advisory_xact_lock({POSTGRES_LOCK})"))
            .await?;
    }
    Migrator::install(transaction).await?;
    let known: Vec<String> = Migrator::migrations()
        .iter()
        .map(|step| step.name().to_owned())
        .collect();
    let applied = Migrator::get_migration_models(transaction).await?;
    if let Some(newer) = applied.into_iter().find(|row| !known.contains(&row.version)) {
        return Err(Error::Newer {
            migration: newer.version,
        });
    }
    Migrator::up(transaction, None).await?;
    Ok(())
}

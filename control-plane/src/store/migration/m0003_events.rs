//! What happened to pipes.

use sea_orm::DbBackend;
use sea_orm_migration::prelude::*;

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &str {
        "m0003_events"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let ordered = manager.get_database_backend() == DbBackend::Postgres;
        // Ordered by bytes on both databases: SQLite does so by itself.
        let text = |name: &'static str| {
            let mut column = ColumnDef::new(name);
            column.text().not_null();
            if ordered {
                column.extra("COLLATE \"C\"");
            }
            column
        };
        let mut severity = text("severity");
        severity.check(Expr::col("severity").is_in(["info", "warning", "error"]));
        let mut table = Table::create();
        table
            .table("pipe_events")
            .col(text("pipe_uid"))
            .col(text("event_id"))
            .col(ColumnDef::new("created_millis").big_integer().not_null())
            .col(text("kind"))
            .col(severity)
            .col(text("actor"))
            .col(ColumnDef::new("shard_id").text().null())
            .col(text("message"))
            .col(text("details"))
            .col(ColumnDef::new("dedup_key").text().null())
            .primary_key(Index::create().col("pipe_uid").col("event_id"))
            .foreign_key(
                ForeignKey::create()
                    .name("pipe_events_to_pipes")
                    .from("pipe_events", "pipe_uid")
                    .to("pipes", "uid"),
            );
        manager.create_table(table.take()).await?;
        // Keys that are NULL differ from each other on both databases.
        let mut once = Index::create();
        once.name("pipe_events_once")
            .table("pipe_events")
            .col("pipe_uid")
            .col("dedup_key")
            .unique();
        manager.create_index(once.take()).await
    }

    async fn down(&self, _: &SchemaManager) -> Result<(), DbErr> {
        Err(DbErr::Migration(
            "events cannot be taken back: restore a copy of the database instead".to_owned(),
        ))
    }
}

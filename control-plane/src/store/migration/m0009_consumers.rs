//! Consumers for enhanced fan-out that Millrace registers, noted before it does. They outlive their pipe: there is no foreign key, and what
//! it takes to deregister one is all here.

use sea_orm::DbBackend;
use sea_orm_migration::prelude::*;

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &str {
        "m0009_consumers"
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
        let mut table = Table::create();
        table
            .table("consumers")
            .col(text("pipe_uid"))
            .col(text("stream_arn"))
            .col(text("project"))
            .col(text("pipe_id"))
            .col(text("credential"))
            .col(text("region"))
            .col(ColumnDef::new("endpoint").text().null())
            .col(ColumnDef::new("created_millis").big_integer().not_null())
            .col(ColumnDef::new("gone_millis").big_integer().null())
            .primary_key(Index::create().col("pipe_uid").col("stream_arn"));
        manager.create_table(table.take()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("consumers").take()).await
    }
}

//! Requests that carry an id: which were carried out lately, and what was answered.

use sea_orm::DbBackend;
use sea_orm_migration::prelude::*;

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &str {
        "m0011_requests"
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
            .table("requests")
            .col(text("caller"))
            .col(text("method"))
            .col(text("request_id"))
            .col(text("attempt"))
            .col(ColumnDef::new("sealed").blob().not_null())
            .col(ColumnDef::new("created_millis").big_integer().not_null())
            .primary_key(Index::create().col("caller").col("method").col("request_id"));
        manager.create_table(table.take()).await?;
        let mut index = Index::create();
        index.name("requests_created").table("requests").col("created_millis");
        manager.create_index(index.take()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("requests").take()).await
    }
}

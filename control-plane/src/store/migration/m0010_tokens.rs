//! Tokens that callers prove themselves with: a hash of each, who made it, and when it ends.

use sea_orm::DbBackend;
use sea_orm_migration::prelude::*;

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &str {
        "m0010_tokens"
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
        let time = |name: &'static str| ColumnDef::new(name).big_integer().take();
        let mut table = Table::create();
        table
            .table("tokens")
            .col(text("token_id").primary_key())
            .col(text("display_name"))
            .col(text("role"))
            .col(text("hash"))
            .col(text("creator"))
            .col(time("created_millis").not_null())
            .col(time("expires_millis").null())
            .col(time("revoked_millis").null())
            .col(time("used_millis").null());
        manager.create_table(table.take()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("tokens").take()).await
    }
}

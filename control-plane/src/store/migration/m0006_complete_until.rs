//! Up to when shards are complete.

use sea_orm_migration::prelude::*;

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &str {
        "m0006_complete_until"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut table = Table::alter();
        table
            .table("shards")
            .add_column(ColumnDef::new("complete_millis").big_integer().null());
        manager.alter_table(table.take()).await
    }

    async fn down(&self, _: &SchemaManager) -> Result<(), DbErr> {
        Err(DbErr::Migration(
            "what is known of shards cannot be taken back: restore a copy of the database instead".to_owned(),
        ))
    }
}

//! How many batches its pipe had committed when a batch was prepared: what is needed to tell that one was replayed late.

use sea_orm_migration::prelude::*;

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &str {
        "m0005_late_replays"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // NULL: prepared by a release that did not note it.
        let mut table = Table::alter();
        table
            .table("batches")
            .add_column(ColumnDef::new("prepared_batches").big_integer().null());
        manager.alter_table(table.take()).await
    }

    async fn down(&self, _: &SchemaManager) -> Result<(), DbErr> {
        Err(DbErr::Migration(
            "the note cannot be taken back: restore a copy of the database instead".to_owned(),
        ))
    }
}

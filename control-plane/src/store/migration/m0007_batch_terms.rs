//! What else decides how a batch is built: whether it is a part of a refused one, and what its record is condemned for.
//!
//! The column may be empty, so that the release before can go on writing batches.

use sea_orm_migration::prelude::*;

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &str {
        "m0007_batch_terms"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut terms = ColumnDef::new("terms");
        terms.text().null();
        let mut alter = Table::alter().table("batches").add_column(&mut terms).take();
        manager.alter_table(alter.take()).await
    }

    async fn down(&self, _: &SchemaManager) -> Result<(), DbErr> {
        Err(DbErr::Migration(
            "parts of batches cannot be told from batches without it".to_owned(),
        ))
    }
}

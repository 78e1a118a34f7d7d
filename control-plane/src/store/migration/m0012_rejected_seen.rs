//! How many of the records that a pipe has rejected a person has seen to: those behind them count towards its limit.
//!
//! The column has a default, so that the release before can go on making pipes.

use sea_orm_migration::prelude::*;

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &str {
        "m0012_rejected_seen"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut seen = ColumnDef::new("rejected_seen");
        seen.big_integer().not_null().default(0);
        let mut alter = Table::alter().table("pipe_totals").add_column(&mut seen).take();
        manager.alter_table(alter.take()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut alter = Table::alter().table("pipe_totals").drop_column("rejected_seen").take();
        manager.alter_table(alter.take()).await
    }
}

//! An epoch above those of all shards that a pipe forgot: a shard of such a name that comes back starts there.
//!
//! The column has a default, so that the release before can go on making pipes.

use sea_orm_migration::prelude::*;

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &str {
        "m0008_epoch_floor"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut floor = ColumnDef::new("epoch_floor");
        floor.big_integer().not_null().default(0);
        let mut alter = Table::alter().table("pipes").add_column(&mut floor).take();
        manager.alter_table(alter.take()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut alter = Table::alter().table("pipes").drop_column("epoch_floor").take();
        manager.alter_table(alter.take()).await
    }
}

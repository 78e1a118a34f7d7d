//! The leader among several control planes, and what it leaves for the others to read.
//!
//! A release without it ignores both tables. `observed` refers to nothing, so that such a release can delete pipes.

use sea_orm::DbBackend;
use sea_orm_migration::prelude::*;

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &str {
        "m0004_leader"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let number = |name: &'static str| ColumnDef::new(name).big_integer().not_null().take();
        let text = |name: &'static str| ColumnDef::new(name).text().not_null().take();
        // One row: there is one leader at most.
        let mut id = ColumnDef::new("id");
        id.big_integer().not_null().primary_key().check(Expr::col("id").eq(1));
        let mut leader = Table::create().table("leader").col(id).take();
        for mut column in [
            text("holder"),
            number("term"),
            text("address"),
            number("expires_millis"),
        ] {
            leader.col(column.take());
        }
        leader.col(number("changes")).col(number("observed"));
        manager.create_table(leader).await?;
        let columns = [
            "id",
            "holder",
            "term",
            "address",
            "expires_millis",
            "changes",
            "observed",
        ];
        let values = [1.into(), "".into(), 0.into(), "".into(), 0.into(), 0.into(), 0.into()];
        let row = Query::insert()
            .into_table("leader")
            .columns(columns)
            .values_panic(values)
            .to_owned();
        manager.exec_stmt(row).await?;

        let mut subject = text("subject");
        if manager.get_database_backend() == DbBackend::Postgres {
            subject.extra("COLLATE \"C\"");
        }
        let observed = Table::create()
            .table("observed")
            .col(subject.primary_key())
            .col(text("status"))
            .take();
        manager.create_table(observed).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["observed", "leader"] {
            manager.drop_table(Table::drop().table(table).take()).await?;
        }
        Ok(())
    }
}

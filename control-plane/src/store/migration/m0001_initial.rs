//! The first schema.
//!
//! What the exactly-once protocol rests on is also said to the database: a shard has one slice of each ordinal, a batch one
//! slice of each shard, and nothing open refers to what is gone.

use sea_orm::DbBackend;
use sea_orm_migration::prelude::*;

pub(super) struct Step;

impl MigrationName for Step {
    fn name(&self) -> &str {
        "m0001_initial"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let columns = Columns {
            backend: manager.get_database_backend(),
        };
        for mut table in [
            settings(&columns),
            credentials(&columns),
            pipes(&columns),
            pipe_revisions(&columns),
            pipe_credentials(&columns),
            pipe_totals(&columns),
            shards(&columns),
            batches(&columns),
            batch_slices(&columns),
            committed_batches(&columns),
        ] {
            manager.create_table(table.take()).await?;
        }
        for mut index in [
            Index::create()
                .name("pipes_by_name")
                .table("pipes")
                .col("project")
                .col("pipe_id")
                .unique()
                .take(),
            Index::create()
                .name("credentials_by_name")
                .table("credentials")
                .col("project")
                .col("credential_id")
                .unique()
                .take(),
            Index::create()
                .name("pipe_credentials_by_credential")
                .table("pipe_credentials")
                .col("credential_uid")
                .take(),
            Index::create()
                .name("batches_by_revision")
                .table("batches")
                .col("pipe_uid")
                .col("revision")
                .take(),
            Index::create()
                .name("batch_slices_by_batch")
                .table("batch_slices")
                .col("pipe_uid")
                .col("batch_id")
                .col("shard_id")
                .unique()
                .take(),
            Index::create()
                .name("committed_batches_by_shard")
                .table("committed_batches")
                .col("pipe_uid")
                .col("shard_id")
                .col("ordinal")
                .unique()
                .take(),
        ] {
            manager.create_index(index.take()).await?;
        }
        Ok(())
    }

    async fn down(&self, _: &SchemaManager) -> Result<(), DbErr> {
        Err(DbErr::Migration(
            "the first schema cannot be taken back: drop the database instead".to_owned(),
        ))
    }
}

/// Makes columns that hold and order the same values on both databases.
struct Columns {
    backend: DbBackend,
}

impl Columns {
    /// Text, ordered by bytes: SQLite does so by itself, PostgreSQL by the collation "C".
    fn text(&self, name: &'static str) -> ColumnDef {
        let mut column = ColumnDef::new(name);
        column.text().not_null();
        if self.backend == DbBackend::Postgres {
            column.extra("COLLATE \"C\"");
        }
        column
    }

    fn optional_text(&self, name: &'static str) -> ColumnDef {
        let mut column = ColumnDef::new(name);
        column.text().null();
        column
    }

    fn number(&self, name: &'static str) -> ColumnDef {
        ColumnDef::new(name)
            .big_integer()
            .not_null()
            .check(Expr::col(name).gte(0))
            .take()
    }

    fn bytes(&self, name: &'static str) -> ColumnDef {
        ColumnDef::new(name).blob().not_null().take()
    }

    fn optional_bytes(&self, name: &'static str) -> ColumnDef {
        ColumnDef::new(name).blob().null().take()
    }

    /// Text out of a few words.
    fn word(&self, name: &'static str, words: &[&str]) -> ColumnDef {
        let mut column = self.text(name);
        column.check(Expr::col(name).is_in(words.iter().copied()));
        column
    }

    fn counts(&self, table: &mut TableCreateStatement) {
        for count in ["rows", "rejected_records", "records", "bytes"] {
            table.col(self.number(count));
        }
    }
}

fn table(name: &'static str, columns: impl IntoIterator<Item = ColumnDef>) -> TableCreateStatement {
    let mut table = Table::create();
    table.table(name);
    for column in columns {
        table.col(column);
    }
    table
}

fn key(columns: &[&'static str]) -> IndexCreateStatement {
    let mut key = Index::create();
    for column in columns {
        key.col(*column);
    }
    key
}

fn reference(from: (&'static str, &[&'static str]), to: (&'static str, &[&'static str])) -> ForeignKeyCreateStatement {
    let mut reference = ForeignKey::create();
    reference.name(format!("{}_to_{}", from.0, to.0));
    for column in from.1 {
        reference.from(from.0, *column);
    }
    for column in to.1 {
        reference.to(to.0, *column);
    }
    reference
}

fn settings(c: &Columns) -> TableCreateStatement {
    table("settings", [c.text("name"), c.bytes("value")])
        .primary_key(&mut key(&["name"]))
        .take()
}

fn credentials(c: &Columns) -> TableCreateStatement {
    let columns = [
        c.text("uid"),
        c.text("project"),
        c.text("credential_id"),
        c.text("display_name"),
        c.text("kind"),
        c.text("fingerprint"),
        c.optional_bytes("sealed_secret"),
        c.optional_bytes("sealed_token"),
        ColumnDef::new("created_millis").big_integer().not_null().take(),
    ];
    table("credentials", columns).primary_key(&mut key(&["uid"])).take()
}

fn pipes(c: &Columns) -> TableCreateStatement {
    let columns = [
        c.text("uid"),
        c.text("project"),
        c.text("pipe_id"),
        c.word("desired", &["running", "stopped"]),
        c.number("revision"),
        c.number("version"),
        c.optional_text("fault"),
        c.optional_text("effective"),
        ColumnDef::new("created_millis").big_integer().not_null().take(),
        ColumnDef::new("updated_millis").big_integer().not_null().take(),
    ];
    table("pipes", columns).primary_key(&mut key(&["uid"])).take()
}

fn pipe_revisions(c: &Columns) -> TableCreateStatement {
    let columns = [
        c.text("pipe_uid"),
        c.number("revision"),
        c.text("spec"),
        c.text("resolved"),
        ColumnDef::new("created_millis").big_integer().not_null().take(),
    ];
    table("pipe_revisions", columns)
        .primary_key(&mut key(&["pipe_uid", "revision"]))
        .foreign_key(&mut reference(("pipe_revisions", &["pipe_uid"]), ("pipes", &["uid"])))
        .take()
}

fn pipe_credentials(c: &Columns) -> TableCreateStatement {
    table(
        "pipe_credentials",
        [c.text("pipe_uid"), c.number("revision"), c.text("credential_uid")],
    )
    .primary_key(&mut key(&["pipe_uid", "revision", "credential_uid"]))
    .foreign_key(&mut reference(
        ("pipe_credentials", &["pipe_uid", "revision"]),
        ("pipe_revisions", &["pipe_uid", "revision"]),
    ))
    .foreign_key(&mut reference(
        ("pipe_credentials", &["credential_uid"]),
        ("credentials", &["uid"]),
    ))
    .take()
}

fn pipe_totals(c: &Columns) -> TableCreateStatement {
    let mut table = table("pipe_totals", [c.text("pipe_uid")]);
    c.counts(&mut table);
    table
        .col(c.number("batches"))
        .primary_key(&mut key(&["pipe_uid"]))
        .foreign_key(&mut reference(("pipe_totals", &["pipe_uid"]), ("pipes", &["uid"])))
        .take()
}

fn shards(c: &Columns) -> TableCreateStatement {
    let columns = [
        c.text("pipe_uid"),
        c.text("shard_id"),
        c.text("parents"),
        c.word("phase", &["waiting", "open", "finished"]),
        c.number("epoch"),
        c.optional_text("owner_worker"),
        c.optional_text("owner_incarnation"),
        c.text("checkpoint"),
        c.number("committed_ordinal"),
    ];
    table("shards", columns)
        .check(
            Expr::col("owner_worker")
                .is_null()
                .eq(Expr::col("owner_incarnation").is_null()),
        )
        .primary_key(&mut key(&["pipe_uid", "shard_id"]))
        .foreign_key(&mut reference(("shards", &["pipe_uid"]), ("pipes", &["uid"])))
        .take()
}

fn batches(c: &Columns) -> TableCreateStatement {
    let mut table = table(
        "batches",
        [c.text("pipe_uid"), c.text("batch_id"), c.number("revision")],
    );
    c.counts(&mut table);
    table
        .col(c.bytes("digest"))
        .col(ColumnDef::new("prepared_millis").big_integer().not_null())
        .primary_key(&mut key(&["pipe_uid", "batch_id"]))
        .foreign_key(&mut reference(
            ("batches", &["pipe_uid", "revision"]),
            ("pipe_revisions", &["pipe_uid", "revision"]),
        ))
        .take()
}

fn batch_slices(c: &Columns) -> TableCreateStatement {
    let columns = [
        c.text("pipe_uid"),
        c.text("shard_id"),
        c.number("ordinal"),
        c.text("batch_id"),
        c.number("slice_index"),
        c.text("from_exclusive"),
        c.text("to_inclusive"),
    ];
    table("batch_slices", columns)
        .primary_key(&mut key(&["pipe_uid", "shard_id", "ordinal"]))
        .foreign_key(&mut reference(
            ("batch_slices", &["pipe_uid", "batch_id"]),
            ("batches", &["pipe_uid", "batch_id"]),
        ))
        .foreign_key(&mut reference(
            ("batch_slices", &["pipe_uid", "shard_id"]),
            ("shards", &["pipe_uid", "shard_id"]),
        ))
        .take()
}

fn committed_batches(c: &Columns) -> TableCreateStatement {
    let columns = [
        c.text("pipe_uid"),
        c.text("batch_id"),
        c.text("shard_id"),
        c.number("ordinal"),
    ];
    table("committed_batches", columns)
        .primary_key(&mut key(&["pipe_uid", "batch_id"]))
        .foreign_key(&mut reference(
            ("committed_batches", &["pipe_uid", "shard_id"]),
            ("shards", &["pipe_uid", "shard_id"]),
        ))
        .take()
}

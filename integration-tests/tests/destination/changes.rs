//! The table changes while records are on their way to it.

use anyhow::{Context as _, Result, ensure};
use millrace_common::reason;
use millrace_integration_tests::clickhouse::{ClickHouse, Options, User};
use millrace_proto::api::v1::{self as api, PipeState};

use crate::bed::{Bed, Load, PIPE, TABLE};

async fn bed() -> Result<Bed<'static>> {
    Bed::start(ClickHouse::shared().await, Load::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_more_is_no_trouble() -> Result<()> {
    let bed = bed().await?;
    bed.sql("ALTER TABLE {t} ADD COLUMN noted DateTime DEFAULT now()")
        .await?;
    bed.moves_on().await?;
    bed.sql("ALTER TABLE {t} ADD COLUMN amount_twice Decimal(12, 2) MATERIALIZED amount * 2")
        .await?;
    bed.moves_on().await?;
    bed.says(PipeState::Running, "", &[]).await?;
    bed.ends_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_dropped_and_comes_back() -> Result<()> {
    let bed = bed().await?;
    bed.sql("ALTER TABLE {t} DROP COLUMN tags").await?;
    // Which column, in which table, and what to do.
    let words = ["tags", TABLE, "undo the change of the table, or update the pipe"];
    bed.says(PipeState::Failed, reason::DESTINATION_COLUMN_NOT_FOUND, &words)
        .await?;
    bed.sql("ALTER TABLE {t} ADD COLUMN tags Array(String)").await?;
    bed.is_well_again().await?;
    bed.ends_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_whose_type_changes_and_changes_back() -> Result<()> {
    let bed = bed().await?;
    bed.sql("ALTER TABLE {t} MODIFY COLUMN amount String").await?;
    let words = ["Decimal", "String", "undo the change of the table"];
    bed.says(PipeState::Failed, reason::DESTINATION_SCHEMA_CHANGED, &words)
        .await?;
    bed.sql("ALTER TABLE {t} MODIFY COLUMN amount Decimal(12, 2)").await?;
    bed.is_well_again().await?;
    // Nothing was bent on its way there and back.
    let bent = bed
        .sql("SELECT countIf(amount < 0 OR amount > 100000) FROM {t}")
        .await?;
    ensure!(bent == "0", "{bent} amounts");
    bed.ends_clean().await
}

/// Changes the columns of the pipe as its owner would.
async fn update_columns(bed: &Bed<'_>, change: impl FnOnce(&mut Vec<api::Column>)) -> Result<()> {
    let mut pipe = bed.cluster.pipe(PIPE).await?;
    change(&mut pipe.destination.as_mut().context("a destination")?.columns);
    bed.cluster.update_pipe(PIPE, pipe, &["destination.columns"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_column_that_is_gone_goes_on_when_the_pipe_is_updated() -> Result<()> {
    let bed = bed().await?;
    bed.sql("ALTER TABLE {t} DROP COLUMN tags").await?;
    bed.says(PipeState::Failed, reason::DESTINATION_COLUMN_NOT_FOUND, &["tags"])
        .await?;
    update_columns(&bed, |columns| columns.retain(|column| column.name != "tags")).await?;
    bed.is_well_again().await?;
    bed.ends_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_encoded_for_another_type_goes_on_when_the_pipe_is_updated() -> Result<()> {
    let bed = bed().await?;
    bed.sql("ALTER TABLE {t} MODIFY COLUMN amount String").await?;
    bed.says(
        PipeState::Failed,
        reason::DESTINATION_SCHEMA_CHANGED,
        &["Decimal", "String"],
    )
    .await?;
    update_columns(&bed, |columns| {
        for column in columns.iter_mut().filter(|column| column.name == "amount") {
            "String".clone_into(&mut column.r#type);
        }
    })
    .await?;
    bed.is_well_again().await?;
    bed.ends_clean().await
}

/// A dropped table takes its rows with it; every record that was not committed by then arrives in the new one, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_and_made_again() -> Result<()> {
    let mut bed = bed().await?;
    let create = bed.sql("SHOW CREATE TABLE {t} FORMAT TSVRaw").await?;
    let committed_before = bed.committed().await?;
    bed.sql("DROP TABLE {t} SYNC").await?;
    let words = [TABLE, "create the table again; Millrace goes on by itself"];
    bed.says(PipeState::Failed, reason::DESTINATION_TABLE_NOT_FOUND, &words)
        .await?;
    let committed_at_drop = bed.committed().await?;
    bed.sql(&create).await?;
    bed.is_well_again().await?;
    let records = bed.drain().await?;
    let verdict = bed.ledger(records).await?;
    ensure!(
        (verdict.duplicated, verdict.disordered, verdict.misplaced) == (0, 0, 0),
        "{verdict:?}"
    );
    // Lost is what was committed into the table that was dropped, and nothing else. A batch that was in it and not yet
    // committed was sent again, so it is in the new table.
    ensure!(
        (committed_before..=committed_at_drop).contains(&verdict.lost) && verdict.rows + verdict.lost == records,
        "{verdict:?}: {committed_before} to {committed_at_drop} were committed when the table was dropped"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_renamed_and_comes_back() -> Result<()> {
    let bed = bed().await?;
    bed.sql("RENAME TABLE {t} TO {db}.elsewhere").await?;
    bed.says(PipeState::Failed, reason::DESTINATION_TABLE_NOT_FOUND, &[TABLE])
        .await?;
    bed.sql("RENAME TABLE {db}.elsewhere TO {t}").await?;
    bed.is_well_again().await?;
    bed.ends_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_throws_and_is_dropped() -> Result<()> {
    let bed = bed().await?;
    bed.sql(
        "CREATE TABLE {db}.target (id UInt64) ENGINE = MergeTree ORDER BY id \
         SETTINGS non_replicated_deduplication_window = 1000",
    )
    .await?;
    bed.sql("CREATE TABLE {db}.switch (broken UInt8) ENGINE = Memory")
        .await?;
    bed.sql("INSERT INTO {db}.switch VALUES (0)").await?;
    bed.sql(
        "CREATE MATERIALIZED VIEW {db}.broken_view TO {db}.target AS SELECT id FROM {t} \
         WHERE throwIf((SELECT max(broken) FROM {db}.switch) = 1) = 0",
    )
    .await?;
    bed.moves_on().await?;
    bed.sql("INSERT INTO {db}.switch VALUES (1)").await?;
    let words = ["broken_view", "materialized view", "mend or drop it"];
    bed.says(PipeState::Failed, reason::DESTINATION_INSERT_FAILED, &words)
        .await?;
    bed.sql("TRUNCATE TABLE {db}.switch").await?;
    bed.sql("INSERT INTO {db}.switch VALUES (0)").await?;
    bed.is_well_again().await?;
    // The view has what the table has since it was made, each row once, although the table had committed rows of inserts in
    // which the view threw.
    let found = bed.sql("SELECT count() = uniqExact(id) FROM {db}.target").await?;
    ensure!(found == "1", "rows of the view are doubled");
    let missing = bed
        .sql("SELECT count() FROM {t} WHERE id > (SELECT min(id) + 1000 FROM {db}.target) AND id < (SELECT max(id) FROM {db}.target) - 1000 AND id NOT IN (SELECT id FROM {db}.target)")
        .await?;
    ensure!(missing == "0", "{missing} rows are not in the view");
    bed.sql("INSERT INTO {db}.switch VALUES (1)").await?;
    bed.says(PipeState::Failed, reason::DESTINATION_INSERT_FAILED, &words)
        .await?;
    bed.sql("DROP TABLE {db}.broken_view SYNC").await?;
    bed.is_well_again().await?;
    bed.ends_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_taken_and_given_back() -> Result<()> {
    let all = ["GRANT ALL ON *.*"];
    let options = Options::default().user("writer", "w", &all);
    let clickhouse = ClickHouse::start_own(options).await?;
    let load = Load {
        user: Some(("writer", "w")),
        ..Load::default()
    };
    let bed = Bed::start(&clickhouse, load).await?;
    // Users of a file are read when the engine starts.
    let restart_with = async |grants: &[&str]| -> Result<()> {
        clickhouse.kill().await?;
        clickhouse.write_users(&[User::new("writer", "w", grants)])?;
        clickhouse.start_again().await?;
        Ok(())
    };
    restart_with(&["GRANT SELECT ON *.*"]).await?;
    let words = ["INSERT", "writer", "GRANT INSERT on the table"];
    bed.says(PipeState::Failed, reason::DESTINATION_ACCESS_DENIED, &words)
        .await?;
    restart_with(&all).await?;
    bed.is_well_again().await?;
    bed.ends_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_parts_are_waited_out() -> Result<()> {
    let bed = bed().await?;
    bed.sql("SYSTEM STOP MERGES {t}").await?;
    bed.sql("ALTER TABLE {t} MODIFY SETTING parts_to_delay_insert = 1, parts_to_throw_insert = 2")
        .await?;
    let words = ["Too many parts", "Millrace slows down and keeps trying"];
    bed.says(PipeState::Degraded, reason::DESTINATION_OVERLOADED, &words)
        .await?;
    bed.sql("ALTER TABLE {t} MODIFY SETTING parts_to_delay_insert = 1000, parts_to_throw_insert = 3000")
        .await?;
    bed.sql("SYSTEM START MERGES {t}").await?;
    bed.is_well_again().await?;
    bed.ends_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_set_read_only_for_a_while() -> Result<()> {
    let bed = bed().await?;
    bed.sql("ALTER TABLE {t} MODIFY SETTING table_readonly = 1").await?;
    bed.says(
        PipeState::Failed,
        reason::DESTINATION_INSERT_FAILED,
        &["table_readonly = 0"],
    )
    .await?;
    bed.sql("ALTER TABLE {t} MODIFY SETTING table_readonly = 0").await?;
    bed.is_well_again().await?;
    bed.ends_clean().await
}

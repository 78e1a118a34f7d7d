//! What the real engine refuses, and that the batch is in the table once when it no longer does.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use millrace_common::reason;
use millrace_data_plane::sink::clickhouse::{Access, Class, InsertError, Sink};
use millrace_integration_tests::{
    clickhouse::{ClickHouse, Options},
    native::{Bed, COLUMNS, access, block, insert},
    process::eventually,
};
use tokio::sync::OnceCell;

const LIMIT: Duration = Duration::from_secs(60);
const PASSWORD: &str = "p";

/// The engine of this file, with users that may do little.
async fn engine() -> &'static ClickHouse {
    static ENGINE: OnceCell<ClickHouse> = OnceCell::const_new();
    ENGINE
        .get_or_init(|| async {
            let all = ["GRANT INSERT, SELECT ON *.*"];
            let options = Options::default()
                .user("small", PASSWORD, &all)
                .user_setting("max_memory_usage", 100_000)
                .user_setting("max_untracked_memory", 0)
                .user("hasty", PASSWORD, &all)
                .user_setting("max_execution_time", 1)
                .user("lonely", PASSWORD, &all)
                .user_setting("max_concurrent_queries_for_user", 1)
                .user("reader", PASSWORD, &all)
                .user_setting("readonly", 1)
                .user("nobody", PASSWORD, &[]);
            ClickHouse::start(options).await.expect("an engine")
        })
        .await
}

async fn bed() -> Result<Bed<'static>> {
    Bed::on(engine().await).await
}

fn sink_of(bed: &Bed<'_>, user: &str) -> Result<Sink> {
    let access = Access {
        username: user.to_owned(),
        password: PASSWORD.to_owned().into(),
        ..access(bed.clickhouse, &bed.database)
    };
    Ok(Sink::new(&access)?)
}

async fn refused(sink: &Sink, body: Vec<u8>) -> Result<InsertError> {
    insert(sink, "t", &COLUMNS.map(str::to_owned), body, "a")
        .await
        .err()
        .context("it was taken")
}

fn is(error: &InsertError, class: Class, code: u32, reason: &str) -> Result<()> {
    ensure!(
        (error.class, error.code, error.reason()) == (class, Some(code), reason),
        "{error:?} {}",
        error.reason()
    );
    Ok(())
}

/// The same insert, repeated until it is taken, leaves its rows once.
async fn heals(bed: &Bed<'_>, rows: std::ops::Range<u64>) -> Result<()> {
    for _ in 0..2 {
        eventually("the insert is taken", LIMIT, || async {
            bed.insert(block(rows.clone(), 1), "a").await
        })
        .await?;
    }
    let count = rows.end - rows.start;
    let found = bed.one("SELECT count(), uniqExact(n) FROM {db}.t").await?;
    ensure!(found == format!("{count}\t{count}"), "{found}");
    Ok(())
}

#[tokio::test]
async fn too_many_parts_is_load() -> Result<()> {
    let bed = bed().await?;
    bed.table_with(100, "", ", parts_to_delay_insert = 1, parts_to_throw_insert = 1")
        .await?;
    bed.one("SYSTEM STOP MERGES {db}.t").await?;
    bed.one("INSERT INTO {db}.t SELECT 0, 0, 'first'").await?;
    let error = refused(&bed.sink, block(1..11, 1)).await?;
    is(&error, Class::Load, 252, reason::DESTINATION_OVERLOADED)?;
    bed.one("ALTER TABLE {db}.t MODIFY SETTING parts_to_throw_insert = 1000, parts_to_delay_insert = 1000")
        .await?;
    bed.one("SYSTEM START MERGES {db}.t").await?;
    bed.one("ALTER TABLE {db}.t DELETE WHERE s = 'first' SETTINGS mutations_sync = 2")
        .await?;
    heals(&bed, 1..11).await
}

#[tokio::test]
async fn a_memory_limit_is_load() -> Result<()> {
    let bed = bed().await?;
    bed.table(100).await?;
    let error = refused(&sink_of(&bed, "small")?, block(0..20_000, 1)).await?;
    is(&error, Class::Load, 241, reason::DESTINATION_OVERLOADED)?;
    ensure!(bed.count().await? == 0);
    heals(&bed, 0..20_000).await
}

#[tokio::test]
async fn a_full_disk_is_load() -> Result<()> {
    let bed = bed().await?;
    bed.table_with(100, "", ", min_free_disk_bytes_to_perform_insert = 1000000000000000")
        .await?;
    is(
        &refused(&bed.sink, block(0..10, 1)).await?,
        Class::Load,
        243,
        reason::DESTINATION_OVERLOADED,
    )?;
    bed.one("ALTER TABLE {db}.t MODIFY SETTING min_free_disk_bytes_to_perform_insert = 0")
        .await?;
    heals(&bed, 0..10).await
}

#[tokio::test]
async fn a_timeout_is_load_and_may_have_written() -> Result<()> {
    let bed = bed().await?;
    bed.table(100).await?;
    bed.one(
        "CREATE MATERIALIZED VIEW {db}.v ENGINE = MergeTree ORDER BY n AS \
         SELECT n FROM {db}.t WHERE sleepEachRow(0.1) = 0",
    )
    .await?;
    let error = refused(&sink_of(&bed, "hasty")?, block(0..20, 1)).await?;
    is(&error, Class::Load, 159, reason::DESTINATION_OVERLOADED)?;
    ensure!(bed.count().await? == 20, "the view was too slow, not the table");
    bed.one("DROP TABLE {db}.v").await?;
    heals(&bed, 0..20).await
}

#[tokio::test]
async fn too_many_queries_at_once_is_load() -> Result<()> {
    let bed = bed().await?;
    bed.table(100).await?;
    let slow = async {
        loop {
            let query = bed
                .clickhouse
                .query_as("lonely", PASSWORD, "SELECT sleep(3) FORMAT Null");
            // Which of the two is refused depends on which came first.
            match query.await {
                Err(error) if error.code() != Some(202) => return error,
                _ => {}
            }
        }
    };
    let sink = sink_of(&bed, "lonely")?;
    let meanwhile = eventually("a refusal", LIMIT, || async {
        let error = refused(&sink, block(0..10, 1)).await?;
        is(&error, Class::Load, 202, reason::DESTINATION_OVERLOADED)
    });
    tokio::select! {
        found = meanwhile => found?,
        error = slow => bail!("the slow query: {error}"),
    }
    heals(&bed, 0..10).await
}

#[tokio::test]
async fn a_table_that_is_read_only_waits_for_a_person() -> Result<()> {
    let bed = bed().await?;
    bed.table_with(100, "", ", table_readonly = 1").await?;
    let error = refused(&bed.sink, block(0..10, 1)).await?;
    is(&error, Class::Pause, 774, reason::DESTINATION_INSERT_FAILED)?;
    ensure!(error.remedy().contains("table_readonly"), "{}", error.remedy());
    bed.one("ALTER TABLE {db}.t MODIFY SETTING table_readonly = 0").await?;
    heals(&bed, 0..10).await
}

#[tokio::test]
async fn missing_rights_wait_for_a_person() -> Result<()> {
    let bed = bed().await?;
    bed.table(100).await?;
    for (user, code, reason) in [
        ("nobody", 497, reason::DESTINATION_ACCESS_DENIED),
        ("reader", 164, reason::DESTINATION_ACCESS_DENIED),
        ("stranger", 516, reason::DESTINATION_AUTHENTICATION_FAILED),
    ] {
        is(
            &refused(&sink_of(&bed, user)?, block(0..10, 1)).await?,
            Class::Pause,
            code,
            reason,
        )?;
    }
    heals(&bed, 0..10).await
}

#[tokio::test]
async fn too_many_partitions_in_a_block_is_not_load() -> Result<()> {
    let bed = bed().await?;
    bed.table(1_000).await?;
    let error = refused(&bed.sink, block(0..150, 150)).await?;
    ensure!(error.code == Some(252) && error.class != Class::Load, "{error:?}");
    ensure!(bed.count().await? == 0);
    Ok(())
}

#[tokio::test]
async fn a_row_that_breaks_a_constraint_is_poison() -> Result<()> {
    let bed = bed().await?;
    bed.table(100).await?;
    bed.one("ALTER TABLE {db}.t ADD CONSTRAINT small CHECK n < 5").await?;
    let error = refused(&bed.sink, block(0..10, 1)).await?;
    is(&error, Class::Poison, 469, reason::DESTINATION_INSERT_FAILED)?;
    ensure!(bed.count().await? == 0);
    bed.one("ALTER TABLE {db}.t DROP CONSTRAINT small").await?;
    heals(&bed, 0..10).await
}

#[tokio::test]
async fn a_table_that_no_longer_fits_is_schema() -> Result<()> {
    let bed = bed().await?;
    bed.table(100).await?;
    bed.one("ALTER TABLE {db}.t DROP COLUMN s").await?;
    is(
        &refused(&bed.sink, block(0..10, 1)).await?,
        Class::Schema,
        16,
        reason::DESTINATION_COLUMN_NOT_FOUND,
    )?;
    bed.one("ALTER TABLE {db}.t ADD COLUMN s UInt8").await?;
    is(
        &refused(&bed.sink, block(0..10, 1)).await?,
        Class::Schema,
        53,
        reason::DESTINATION_SCHEMA_CHANGED,
    )?;
    bed.one("ALTER TABLE {db}.t DROP COLUMN s").await?;
    bed.one("ALTER TABLE {db}.t ADD COLUMN s String MATERIALIZED 'x'")
        .await?;
    is(
        &refused(&bed.sink, block(0..10, 1)).await?,
        Class::Schema,
        44,
        reason::DESTINATION_SCHEMA_CHANGED,
    )?;
    bed.one("ALTER TABLE {db}.t DROP COLUMN s").await?;
    bed.one("ALTER TABLE {db}.t ADD COLUMN s String").await?;
    heals(&bed, 0..10).await
}

/// A server that refuses the statement does not read the block. Its answer must not be lost in the reset that follows.
#[tokio::test]
async fn a_refusal_before_a_large_block_is_read_is_told() -> Result<()> {
    let bed = bed().await?;
    bed.table(100).await?;
    let columns = COLUMNS.map(str::to_owned);
    let body = block(0..1_500_000, 1);
    for _ in 0..5 {
        let error = insert(&bed.sink, "nope", &columns, body.clone(), "a")
            .await
            .err()
            .context("it was taken")?;
        is(&error, Class::Pause, 60, reason::DESTINATION_TABLE_NOT_FOUND)?;
        let error = refused(&sink_of(&bed, "nobody")?, body.clone()).await?;
        is(&error, Class::Pause, 497, reason::DESTINATION_ACCESS_DENIED)?;
    }
    heals(&bed, 0..1_500_000).await
}

//! What the engine does that exactly once rests on. Each test states one measured fact by its name and fails when an upgrade
//! of the engine changes it; then design and code have to be looked at before the test is changed. Facts about replicated
//! tables are not here: they need a Keeper.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millrace_data_plane::sink::clickhouse::{CODES, Class};
use millrace_integration_tests::{
    clickhouse::{ClickHouse, Options, Request},
    native::{Bed, COLUMNS, block, blocks, cell, insert, put_text},
    process::eventually,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const LIMIT: Duration = Duration::from_secs(60);
/// Settings that let a body keep its blocks as they are.
const KEEP_CUT: [(&str, &str); 2] = [
    ("min_insert_block_size_rows", "0"),
    ("min_insert_block_size_bytes", "0"),
];

#[tokio::test]
async fn a_plain_table_has_no_window_and_then_a_token_is_ignored() -> Result<()> {
    let bed = Bed::new().await?;
    let default = "SELECT value FROM system.merge_tree_settings WHERE name = 'non_replicated_deduplication_window'";
    ensure!(bed.one(default).await? == "0");
    bed.one("CREATE TABLE {db}.t (part UInt8, n UInt64, s String) ENGINE = MergeTree ORDER BY n")
        .await?;
    for _ in 0..2 {
        bed.insert(block(0..10, 1), "a").await?;
    }
    ensure!(bed.count().await? == 20);
    Ok(())
}

#[tokio::test]
async fn a_token_counts_once_within_the_window() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(100).await?;
    for _ in 0..3 {
        bed.insert(block(0..10, 1), "a").await?;
    }
    ensure!(bed.count().await? == 10);
    // Equal rows under another token are other rows.
    bed.insert(block(0..10, 1), "b").await?;
    ensure!(bed.count().await? == 20);
    Ok(())
}

#[tokio::test]
async fn a_token_that_is_used_for_other_rows_loses_them_silently() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(100).await?;
    bed.insert(block(0..10, 1), "a").await?;
    bed.insert(block(10..20, 1), "a").await?;
    ensure!(bed.one("SELECT count(), max(n) FROM {db}.t").await? == "10\t9");
    Ok(())
}

#[tokio::test]
async fn equal_blocks_without_a_token_are_taken_for_one() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(100).await?;
    for _ in 0..2 {
        let answer = bed.insert_raw(block(0..10, 1), "", &[]).await?;
        ensure!(answer.status == 200, "{}", answer.text());
    }
    ensure!(bed.count().await? == 10);
    // So the sink refuses to send none.
    let error = bed.insert(block(0..10, 1), "").await.expect_err("no token");
    ensure!(error.class == Class::Bug);
    Ok(())
}

#[tokio::test]
async fn a_token_is_checked_per_partition_so_a_repeat_fills_what_is_missing() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(100).await?;
    bed.insert(block(0..20, 2), "a").await?;
    bed.insert(block(0..30, 3), "a").await?;
    let parts = "SELECT part, count() FROM {db}.t GROUP BY part ORDER BY part FORMAT TSV";
    ensure!(bed.one(parts).await? == "0\t10\n1\t10\n2\t10");
    Ok(())
}

#[tokio::test]
async fn the_window_counts_one_entry_per_partition_written() -> Result<()> {
    for (window, rows_after_repeat) in [(3, 20), (5, 10)] {
        let bed = Bed::new().await?;
        bed.table(window).await?;
        for _ in 0..2 {
            bed.insert(block(0..10, 5), "a").await?;
        }
        ensure!(
            bed.count().await? == rows_after_repeat,
            "five partitions, window {window}: {}",
            bed.count().await?
        );
    }
    Ok(())
}

#[tokio::test]
async fn the_same_token_with_another_cut_doubles_rows() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table_with(100, "", "").await?;
    for (size, rows) in [(25, 100), (10, 160)] {
        let answer = bed.insert_raw(blocks(0..100, size), "a", &KEEP_CUT).await?;
        ensure!(answer.status == 200, "{}", answer.text());
        ensure!(bed.count().await? == rows, "blocks of {size}: {}", bed.count().await?);
    }
    // Two blocks that the server makes one of the first time, and not the second.
    let bed = Bed::new().await?;
    bed.table_with(100, "", "").await?;
    bed.insert_raw(blocks(0..20, 10), "a", &[]).await?;
    bed.insert_raw(blocks(0..20, 10), "a", &KEEP_CUT).await?;
    ensure!(bed.count().await? == 30, "{}", bed.count().await?);
    Ok(())
}

#[tokio::test]
async fn an_insert_of_many_blocks_that_fails_leaves_some_of_them_and_its_repeat_fills_up() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table_with(100, "", "").await?;
    let whole = blocks(0..100, 20);
    let answer = bed
        .insert_raw(whole[..whole.len() - 20].to_vec(), "a", &KEEP_CUT)
        .await?;
    ensure!(answer.exception_code() == Some(33), "{}", answer.text());
    let left = bed.count().await?;
    ensure!(left > 0 && left < 100, "{left} rows");
    let answer = bed.insert_raw(whole, "a", &KEEP_CUT).await?;
    ensure!(answer.status == 200 && bed.count().await? == 100);
    Ok(())
}

#[tokio::test]
async fn a_body_cut_inside_a_block_is_refused_as_a_whole() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(100).await?;
    let whole = block(0..1_000, 1);
    for cut in [whole.len() - 1, whole.len() / 2, 20] {
        let error = bed.insert(whole[..cut].to_vec(), "cut").await.expect_err("a cut block");
        ensure!(
            matches!(error.class, Class::Schema | Class::Retry),
            "cut at {cut}: {error:?}"
        );
        ensure!(bed.count().await? == 0, "cut at {cut}");
    }
    bed.insert(whole, "cut").await?;
    ensure!(
        bed.count().await? == 1_000,
        "a refused insert has not used up its token"
    );
    Ok(())
}

#[tokio::test]
async fn a_body_cut_between_two_blocks_is_a_success_with_half_the_rows() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(100).await?;
    let two = blocks(0..1_000, 500);
    let first = block(0..500, 1).len();
    ensure!(bed.insert(two[..first].to_vec(), "two").await.is_ok());
    ensure!(bed.count().await? == 500);
    ensure!(bed.insert(two, "two").await.is_ok());
    ensure!(bed.count().await? == 1_500, "{}", bed.count().await?);
    Ok(())
}

#[tokio::test]
async fn one_block_stays_one_block_however_large() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(100).await?;
    // More rows than any of the server's default block sizes.
    for (rows, token) in [(100_000, "a"), (2_500_000, "b")] {
        bed.one("TRUNCATE TABLE {db}.t").await?;
        let body = block(0..rows, 1);
        bed.insert(body.clone(), token).await?;
        ensure!(bed.count().await? == rows);
        let parts = "SELECT count() FROM system.parts WHERE database = '{db}' AND table = 't' AND active";
        ensure!(bed.one(parts).await? == "1", "{rows} rows were cut");
        bed.insert(body, token).await?;
        ensure!(bed.count().await? == rows, "the repeat of {rows} rows doubled some");
    }
    Ok(())
}

#[tokio::test]
async fn by_default_values_are_bent_and_columns_dropped_silently() -> Result<()> {
    let bed = Bed::new().await?;
    let far = 10_413_792_000_i64.to_le_bytes();
    // What the table says, what is sent, and what is left of it.
    let cases: [(&str, Vec<u8>, &str); 5] = [
        ("UInt8", cell("v", "Int64", &300_i64.to_le_bytes()), "44"),
        ("UInt8", cell("v", "String", b"\x03300"), "44"),
        ("UInt8", cell("v", "Nullable(UInt8)", &[1, 0]), "0"),
        (
            "DateTime('UTC')",
            cell("v", "DateTime64(0, 'UTC')", &far),
            "2106-02-07 06:28:15",
        ),
        ("UInt8", cell("unknown", "UInt8", &[1]), "0"),
    ];
    for (data_type, body, left) in cases {
        bed.one(&format!(
            "CREATE OR REPLACE TABLE {{db}}.u (v {data_type}, w String) ENGINE = MergeTree ORDER BY v"
        ))
        .await?;
        // Without a column list, as a client that leaves all to the server.
        let sql = format!("INSERT INTO {}.u FORMAT Native", bed.database);
        let answer = bed.clickhouse.insert(&sql, body).await?;
        ensure!(answer.status == 200, "{data_type}: {}", answer.text());
        let found = bed.one("SELECT v FROM {db}.u").await?;
        ensure!(found == left, "{data_type}: {found:?} instead of {left:?}");
    }
    Ok(())
}

#[tokio::test]
async fn with_our_settings_values_are_refused_and_not_bent() -> Result<()> {
    let bed = Bed::new().await?;
    bed.one("CREATE TABLE {db}.u (v UInt8, w String) ENGINE = MergeTree ORDER BY v")
        .await?;
    let (v, unknown) = (["v".to_owned()], ["x".to_owned()]);
    let cases: [(&[String], Vec<u8>, u32); 4] = [
        (&v, cell("v", "Int64", &300_i64.to_le_bytes()), 53),
        (&v, cell("v", "String", b"\x03300"), 53),
        // A column that the table does not have, named and not named.
        (&unknown, cell("x", "UInt8", &[1]), 16),
        (&v, cell("w", "String", b"\x01x"), 117),
    ];
    for (columns, body, code) in cases {
        let error = insert(&bed.sink, "u", columns, body, &code.to_string())
            .await
            .expect_err("it does not fit");
        ensure!((error.class, error.code) == (Class::Schema, Some(code)), "{error:?}");
    }
    ensure!(bed.rows("u").await? == 0);
    insert(&bed.sink, "u", &v, cell("v", "UInt8", &[44]), "d").await?;
    ensure!(bed.one("SELECT v FROM {db}.u").await? == "44");
    Ok(())
}

#[tokio::test]
async fn null_takes_the_default_of_its_column_row_by_row() -> Result<()> {
    let bed = Bed::new().await?;
    bed.one("CREATE TABLE {db}.u (k UInt8, v UInt64 DEFAULT k + 41) ENGINE = MergeTree ORDER BY k")
        .await?;
    let mut body = vec![2, 2];
    put_text(&mut body, "k");
    put_text(&mut body, "UInt8");
    body.extend_from_slice(&[1, 2]);
    put_text(&mut body, "v");
    put_text(&mut body, "Nullable(UInt64)");
    body.extend_from_slice(&[1, 0]);
    body.extend_from_slice(&0_u64.to_le_bytes());
    body.extend_from_slice(&7_u64.to_le_bytes());
    insert(&bed.sink, "u", &["k".to_owned(), "v".to_owned()], body, "a").await?;
    ensure!(bed.one("SELECT v FROM {db}.u ORDER BY k").await? == "42\n7");
    Ok(())
}

#[tokio::test]
async fn code_252_means_wait_and_never() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(1_000).await?;
    let answer = bed.insert_raw(block(0..101, 101), "a", &[]).await?;
    ensure!(answer.exception_code() == Some(252), "{}", answer.text());
    ensure!(answer.text().contains("Too many partitions"), "{}", answer.text());
    ensure!(bed.count().await? == 0);
    ensure!(bed.insert(block(0..100, 100), "b").await.is_ok(), "the limit is 100");

    let bed = Bed::new().await?;
    bed.table_with(100, "", ", parts_to_delay_insert = 1, parts_to_throw_insert = 2")
        .await?;
    bed.one("SYSTEM STOP MERGES {db}.t").await?;
    for number in 0..2 {
        bed.insert(block(number..number + 1, 1), &number.to_string()).await?;
    }
    let answer = bed.insert_raw(block(2..3, 1), "2", &[]).await?;
    ensure!(answer.exception_code() == Some(252), "{}", answer.text());
    ensure!(answer.text().contains("Too many parts"), "{}", answer.text());
    // It passes.
    bed.one("SYSTEM START MERGES {db}.t").await?;
    bed.one("OPTIMIZE TABLE {db}.t FINAL").await?;
    eventually("the insert is taken", LIMIT, || async {
        bed.insert(block(2..3, 1), "2").await
    })
    .await?;
    ensure!(bed.count().await? == 3);
    Ok(())
}

#[tokio::test]
async fn when_a_view_throws_its_source_has_the_rows_already() -> Result<()> {
    // What a repeat leaves in the view's target depends on the target's own window.
    for (window, after_two_repeats) in [(0, 20), (100, 10)] {
        let bed = Bed::new().await?;
        bed.table(100).await?;
        for sql in [
            &format!(
                "CREATE TABLE {{db}}.target (n UInt64) ENGINE = MergeTree ORDER BY n \
                 SETTINGS non_replicated_deduplication_window = {window}"
            ),
            "CREATE TABLE {db}.switch (broken UInt8) ENGINE = Memory",
            "INSERT INTO {db}.switch VALUES (1)",
            "CREATE MATERIALIZED VIEW {db}.v TO {db}.target AS SELECT n FROM {db}.t \
             WHERE throwIf((SELECT max(broken) FROM {db}.switch) = 1) = 0",
        ] {
            bed.one(sql).await?;
        }
        let error = bed.insert(block(0..10, 1), "a").await.expect_err("the view throws");
        ensure!((error.class, error.code) == (Class::Pause, Some(395)), "{error:?}");
        ensure!((bed.count().await?, bed.rows("target").await?) == (10, 0));
        bed.one("TRUNCATE TABLE {db}.switch").await?;
        bed.one("INSERT INTO {db}.switch VALUES (0)").await?;
        for _ in 0..2 {
            bed.insert(block(0..10, 1), "a").await?;
        }
        let found = (bed.count().await?, bed.rows("target").await?);
        ensure!(found == (10, after_two_repeats), "window {window}: {found:?}");
    }
    Ok(())
}

#[tokio::test]
async fn tokens_survive_renames_merges_and_changes_of_columns_and_rows() -> Result<()> {
    let deeds: [(&str, &[&str]); 7] = [
        ("rename", &["RENAME TABLE {t} TO {t}_x", "RENAME TABLE {t}_x TO {t}"]),
        ("column", &["ALTER TABLE {t} ADD COLUMN z UInt8 DEFAULT 7"]),
        ("merge", &["OPTIMIZE TABLE {t} FINAL"]),
        (
            "mutation",
            &["ALTER TABLE {t} DELETE WHERE n < 5 SETTINGS mutations_sync = 2"],
        ),
        ("delete", &["DELETE FROM {t} WHERE n < 5"]),
        ("detach", &["DETACH TABLE {t} SYNC", "ATTACH TABLE {t}"]),
        (
            "larger",
            &["ALTER TABLE {t} MODIFY SETTING non_replicated_deduplication_window = 1000"],
        ),
    ];
    for (name, statements) in deeds {
        let (before, after) = repeated_after(statements).await?;
        ensure!(before == after, "{name}: {before} rows became {after}");
    }
    Ok(())
}

#[tokio::test]
async fn tokens_are_forgotten_when_rows_are_dropped_wholesale_or_the_window_is_set_to_0() -> Result<()> {
    let window = "ALTER TABLE {t} MODIFY SETTING non_replicated_deduplication_window";
    let create = "(part UInt8, n UInt64, s String) ENGINE = MergeTree PARTITION BY part ORDER BY n \
                  SETTINGS non_replicated_deduplication_window = 100";
    let replace = format!("CREATE OR REPLACE TABLE {{t}} {create}");
    let deeds: [(&str, Vec<String>); 6] = [
        ("truncate", vec!["TRUNCATE TABLE {t}".to_owned()]),
        ("drop partition", vec!["ALTER TABLE {t} DROP PARTITION 0".to_owned()]),
        (
            "detach partition",
            vec!["ALTER TABLE {t} DETACH PARTITION 0".to_owned()],
        ),
        ("replace", vec![replace]),
        (
            "drop and create",
            vec!["DROP TABLE {t} SYNC".to_owned(), format!("CREATE TABLE {{t}} {create}")],
        ),
        ("window 0", vec![format!("{window} = 0"), format!("{window} = 100")]),
    ];
    for (name, statements) in deeds {
        let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
        let (before, after) = repeated_after(&statements).await?;
        ensure!(after == before + 10, "{name}: {before} rows became {after}");
    }
    Ok(())
}

/// Inserts under two tokens, carries out the statements, repeats the first insert. Returns the rows before and after the
/// repeat.
async fn repeated_after(statements: &[&str]) -> Result<(u64, u64)> {
    let bed = Bed::new().await?;
    bed.table(100).await?;
    bed.insert(block(0..10, 1), "a").await?;
    bed.insert(block(10..20, 1), "b").await?;
    for statement in statements {
        bed.one(&statement.replace("{t}", "{db}.t")).await?;
    }
    let before = bed.count().await?;
    bed.insert(block(0..10, 1), "a").await?;
    Ok((before, bed.count().await?))
}

#[tokio::test]
async fn tokens_survive_kill_9() -> Result<()> {
    let clickhouse = ClickHouse::start_own(Options::default()).await?;
    let bed = Bed::on(&clickhouse).await?;
    bed.table(100).await?;
    bed.insert(block(0..10, 2), "a").await?;
    clickhouse.kill().await?;
    clickhouse.start_again().await?;
    eventually("the insert is taken", LIMIT, || async {
        bed.insert(block(0..10, 2), "a").await
    })
    .await?;
    ensure!(bed.count().await? == 10);
    Ok(())
}

#[tokio::test]
async fn one_token_sent_sixteen_times_at_once_counts_once() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(1_000).await?;
    let body = block(0..100_000, 4);
    let inserts = (0..16).map(|_| bed.insert(body.clone(), "a"));
    for inserted in futures::future::join_all(inserts).await {
        inserted?;
    }
    ensure!(bed.one("SELECT count(), uniqExact(n) FROM {db}.t").await? == "100000\t100000");
    Ok(())
}

#[tokio::test]
async fn a_slow_insert_that_its_repeat_has_overtaken_adds_nothing() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(1_000).await?;
    let body = block(0..100_000, 4);
    let target = {
        let mut url = url::Url::parse(&bed.clickhouse.http_url())?;
        url.query_pairs_mut()
            .append_pair("query", &format!("INSERT INTO {}.t FORMAT Native", bed.database))
            .append_pair("insert_deduplication_token", "a")
            .append_pair("async_insert", "0");
        url[url::Position::BeforePath..].to_owned()
    };
    let mut slow = connect(bed.clickhouse, &target, body.len()).await?;
    slow.write_all(&body[..body.len() / 2]).await?;
    slow.flush().await?;
    bed.insert(body.clone(), "a").await?;
    ensure!(bed.count().await? == 100_000);
    slow.write_all(&body[body.len() / 2..]).await?;
    let mut answer = Vec::new();
    slow.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    ensure!(bed.count().await? == 100_000, "{}", bed.count().await?);
    Ok(())
}

/// Opens a connection and sends the head of a POST with a body of this length.
async fn connect(clickhouse: &ClickHouse, target: &str, length: usize) -> Result<TcpStream> {
    let address = clickhouse.http_url();
    let address = address.strip_prefix("http://").context("an http URL")?;
    let mut stream = TcpStream::connect(address).await?;
    let head = format!(
        "POST {target} HTTP/1.1\r\nHost: {address}\r\nX-ClickHouse-User: {}\r\nX-ClickHouse-Key: {}\r\n\
         Connection: close\r\nContent-Length: {length}\r\n\r\n",
        clickhouse.user(),
        clickhouse.password()
    );
    stream.write_all(head.as_bytes()).await?;
    Ok(stream)
}

#[tokio::test]
async fn http_200_can_carry_an_exception_in_its_body() -> Result<()> {
    let clickhouse = ClickHouse::shared().await;
    let sql = "SELECT number, throwIf(number = 3000000) FROM numbers(5000000) FORMAT TSV";
    let mut stream = connect(clickhouse, "/?wait_end_of_query=0", sql.len()).await?;
    stream.write_all(sql.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let (start, end) = (
        String::from_utf8_lossy(&answer[..answer.len().min(2_000)]).into_owned(),
        String::from_utf8_lossy(&answer[answer.len().saturating_sub(2_000)..]).into_owned(),
    );
    ensure!(start.starts_with("HTTP/1.1 200 OK"), "{start}");
    ensure!(
        !start.to_lowercase().contains("x-clickhouse-exception-code:"),
        "{start}"
    );
    ensure!(end.contains("__exception__") && end.contains("Code: 395. "), "{end}");
    Ok(())
}

#[tokio::test]
async fn an_insert_without_rows_writes_nothing_and_meets_the_same_refusals() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(100).await?;
    bed.insert(Vec::new(), "a").await?;
    let parts = "SELECT count() FROM system.parts WHERE database = '{db}' AND table = 't'";
    ensure!(bed.one(parts).await? == "0");
    // It has not used up its token.
    bed.insert(block(0..10, 1), "a").await?;
    ensure!(bed.count().await? == 10);
    let columns = COLUMNS.map(str::to_owned);
    let error = insert(&bed.sink, "nope", &columns, Vec::new(), "b")
        .await
        .expect_err("no table");
    ensure!(error.code == Some(60), "{error:?}");
    bed.one("ALTER TABLE {db}.t DROP COLUMN s").await?;
    let error = bed.insert(Vec::new(), "c").await.expect_err("no column");
    ensure!(error.code == Some(16), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn inserts_are_asynchronous_and_tokens_count_by_default_since_26_2() -> Result<()> {
    let bed = Bed::new().await?;
    let changes = "SELECT version, arrayJoin(changes) AS c, c.1, c.3 FROM system.settings_changes WHERE c.1 IN \
                   ('async_insert', 'deduplicate_insert', 'deduplicate_blocks_in_dependent_materialized_views') \
                   AND version = '26.2' ORDER BY c.1";
    let found = bed
        .one(&format!("SELECT concat(c.1, ' ', c.3) FROM ({changes})"))
        .await?;
    let expected = [
        "async_insert 1",
        "deduplicate_blocks_in_dependent_materialized_views 1",
        "deduplicate_insert enable",
    ];
    ensure!(found == expected.join("\n"), "{found}");
    for (setting, value) in [
        ("async_insert", "1"),
        ("deduplicate_insert", "enable"),
        ("deduplicate_blocks_in_dependent_materialized_views", "1"),
    ] {
        let sql = format!("SELECT default FROM system.settings WHERE name = '{setting}'");
        ensure!(bed.one(&sql).await? == value, "{setting}");
    }
    Ok(())
}

#[tokio::test]
async fn the_windows_of_replicated_tables_are_10000_blocks_and_3600_seconds_by_default() -> Result<()> {
    let bed = Bed::new().await?;
    for (setting, value) in [
        ("replicated_deduplication_window", "10000"),
        ("replicated_deduplication_window_seconds", "3600"),
    ] {
        let sql = format!("SELECT value FROM system.merge_tree_settings WHERE name = '{setting}'");
        ensure!(bed.one(&sql).await? == value, "{setting}");
    }
    Ok(())
}

#[tokio::test]
async fn insert_deduplicate_decides_nothing_any_more_and_deduplicate_insert_does() -> Result<()> {
    for (settings, rows) in [
        (&[("insert_deduplicate", "0")], 10),
        (&[("deduplicate_insert", "disable")], 20),
    ] {
        let bed = Bed::new().await?;
        bed.table(100).await?;
        for _ in 0..2 {
            let answer = bed.insert_raw(block(0..10, 1), "a", settings).await?;
            ensure!(answer.status == 200, "{}", answer.text());
        }
        ensure!(bed.count().await? == rows, "{settings:?}: {}", bed.count().await?);
    }
    Ok(())
}

#[tokio::test]
async fn a_setting_that_a_version_does_not_have_is_refused_with_115() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(100).await?;
    let answer = bed
        .insert_raw(block(0..10, 1), "a", &[("no_such_setting", "1")])
        .await?;
    ensure!(answer.exception_code() == Some(115), "{}", answer.text());
    ensure!(bed.count().await? == 0);
    Ok(())
}

#[tokio::test]
async fn engines_without_memory_take_a_token_and_double_rows() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(100).await?;
    let buffer = format!("Buffer({}, t, 1, 100, 100, 1000, 1000, 100000, 100000)", bed.database);
    for engine in ["Memory", "Log", "StripeLog", "TinyLog", "Null", &buffer] {
        bed.one(&format!(
            "CREATE OR REPLACE TABLE {{db}}.u (part UInt8, n UInt64, s String) ENGINE = {engine}"
        ))
        .await?;
        for _ in 0..2 {
            insert(&bed.sink, "u", &COLUMNS.map(str::to_owned), block(0..10, 1), engine).await?;
        }
        let expected = if engine == "Null" { 0 } else { 20 };
        ensure!(bed.rows("u").await? == expected, "{engine}: {}", bed.rows("u").await?);
    }
    Ok(())
}

#[tokio::test]
async fn the_numbers_of_errors_mean_what_our_table_says() -> Result<()> {
    let clickhouse = ClickHouse::shared().await;
    let all = clickhouse
        .send(Request::query(
            "SELECT number, errorCodeToName(number) FROM numbers(2000) FORMAT TSV",
        ))
        .await?
        .into_text()?;
    let names: std::collections::BTreeMap<u32, &str> = all
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .filter_map(|(code, name)| Some((code.parse().ok()?, name)))
        .collect();
    let ours = CODES.iter().flat_map(|(_, codes)| codes.iter());
    for (code, name) in ours.chain(&[(389, "INSERT_WAS_DEDUPLICATED")]) {
        let theirs = names.get(code).copied().unwrap_or_default();
        // An older engine may not have it yet.
        ensure!(theirs.is_empty() || theirs == *name, "{code} is {theirs}, not {name}");
    }
    Ok(())
}

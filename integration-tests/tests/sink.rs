//! The insert path against a real engine, and the engine's facts that exactly-once rests on: a test fails when an
//! upgrade of the engine changes one.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use millrace_common::ids::{BatchId, SequenceNumber, ShardId};
use millrace_common::reason;
use millrace_data_plane::sink::clickhouse::errors_table::{self, ErrorBlock, Rejected};
use millrace_data_plane::sink::clickhouse::{Access, Class, Insert, InsertError, Inserted, Sink, native};
use millrace_integration_tests::clickhouse::{ClickHouse, Options};
use millrace_integration_tests::process::eventually;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const LIMIT: Duration = Duration::from_secs(60);

/// A database of one's own and a sink into it.
struct Bed {
    clickhouse: &'static ClickHouse,
    database: String,
    sink: Sink,
}

impl Bed {
    async fn new() -> Result<Self> {
        let clickhouse = ClickHouse::shared().await;
        let database = clickhouse.database().await?;
        let sink = Sink::new(&access(clickhouse, &database))?;
        Ok(Self {
            clickhouse,
            database,
            sink,
        })
    }

    /// A table `t (part UInt8, n UInt64, s String)` with a deduplication window.
    async fn table(&self, window: u32) -> Result<()> {
        let sql = format!(
            "CREATE TABLE {}.t (part UInt8, n UInt64, s String) ENGINE = MergeTree PARTITION BY part ORDER BY n \
             SETTINGS non_replicated_deduplication_window = {window}",
            self.database
        );
        self.clickhouse.query(&sql).await?;
        Ok(())
    }

    async fn insert(&self, body: Vec<u8>, token: &str) -> std::result::Result<Inserted, InsertError> {
        let columns = ["part", "n", "s"].map(str::to_owned);
        insert(&self.sink, "t", &columns, body, token).await
    }

    async fn one(&self, sql: &str) -> Result<String> {
        let sql = sql.replace("{db}", &self.database);
        Ok(self.clickhouse.query(&sql).await?.trim().to_owned())
    }

    async fn count(&self) -> Result<u64> {
        Ok(self.one("SELECT count() FROM {db}.t").await?.parse()?)
    }
}

fn access(clickhouse: &ClickHouse, database: &str) -> Access {
    Access {
        endpoint: clickhouse.http_url(),
        username: clickhouse.user().to_owned(),
        password: clickhouse.password().to_owned().into(),
        database: database.to_owned(),
    }
}

async fn insert(
    sink: &Sink,
    table: &str,
    columns: &[String],
    body: Vec<u8>,
    token: &str,
) -> std::result::Result<Inserted, InsertError> {
    let query_id = ulid::Ulid::new().to_string();
    sink.insert(Insert {
        table,
        columns,
        body: Bytes::from(body),
        lz4: false,
        token,
        query_id: &query_id,
    })
    .await
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Rows `numbers` of `t`, as one Native block; row `n` goes to partition `n % partitions`.
fn block(numbers: std::ops::Range<u64>, partitions: u64) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, 3);
    put_varint(&mut out, numbers.end - numbers.start);
    put_text(&mut out, "part");
    put_text(&mut out, "UInt8");
    out.extend(numbers.clone().map(|n| (n % partitions) as u8));
    put_text(&mut out, "n");
    put_text(&mut out, "UInt64");
    numbers.clone().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
    put_text(&mut out, "s");
    put_text(&mut out, "String");
    numbers.for_each(|_| put_text(&mut out, "text"));
    out
}

/// One column of one row.
fn cell(name: &str, data_type: &str, value: &[u8]) -> Vec<u8> {
    let mut out = vec![1, 1];
    put_text(&mut out, name);
    put_text(&mut out, data_type);
    out.extend_from_slice(value);
    out
}

#[tokio::test]
async fn plain_and_compressed_blocks_arrive() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(100).await?;
    let inserted = bed.insert(block(0..1_000, 1), "plain").await?;
    ensure!(inserted.written_rows == 1_000, "{inserted:?}");

    let mut frames = Vec::new();
    native::compress_lz4(&block(1_000..101_000, 1), &mut frames);
    let columns = ["part", "n", "s"].map(str::to_owned);
    let insert = Insert {
        table: "t",
        columns: &columns,
        body: frames.into(),
        lz4: true,
        token: "lz4",
        query_id: "a-query-of-ours",
    };
    ensure!(bed.sink.insert(insert).await?.written_rows == 100_000);
    ensure!(
        bed.one("SELECT count(), uniqExact(n), sum(n), any(s) FROM {db}.t")
            .await?
            == "101000\t101000\t5100449500\ttext"
    );
    Ok(())
}

#[tokio::test]
async fn a_token_counts_once_within_a_window_and_not_without_one() -> Result<()> {
    // M1: the default window of a plain MergeTree is none, and then the token is accepted and ignored.
    let bed = Bed::new().await?;
    bed.table(0).await?;
    bed.insert(block(0..10, 1), "a").await?;
    bed.insert(block(0..10, 1), "a").await?;
    ensure!(bed.count().await? == 20);
    let default = "SELECT value FROM system.merge_tree_settings WHERE name = 'non_replicated_deduplication_window'";
    ensure!(bed.one(default).await? == "0");

    let bed = Bed::new().await?;
    bed.table(100).await?;
    for _ in 0..3 {
        bed.insert(block(0..10, 1), "a").await?;
    }
    ensure!(bed.count().await? == 10);
    // M2: the token decides, not the rows. Other rows under it vanish without an error.
    ensure!(bed.insert(block(10..20, 1), "a").await.is_ok());
    ensure!(bed.count().await? == 10);
    // And equal rows under another token are other rows.
    bed.insert(block(0..10, 1), "b").await?;
    ensure!(bed.count().await? == 20);
    Ok(())
}

#[tokio::test]
async fn a_token_is_checked_per_partition() -> Result<()> {
    // M4: so a retry after a part of the partitions was written fills exactly what is missing.
    let bed = Bed::new().await?;
    bed.table(100).await?;
    bed.insert(block(0..20, 2), "a").await?;
    bed.insert(block(0..30, 3), "a").await?;
    ensure!(
        bed.one("SELECT part, count() FROM {db}.t GROUP BY part ORDER BY part FORMAT TSV")
            .await?
            == "0\t10\n1\t10\n2\t10"
    );
    Ok(())
}

#[tokio::test]
async fn the_window_counts_partitions_and_equal_blocks_need_tokens() -> Result<()> {
    // M5: one insert into five partitions does not fit into a window of three, so its repeat doubles rows.
    let bed = Bed::new().await?;
    bed.table(3).await?;
    for _ in 0..2 {
        bed.insert(block(0..10, 5), "a").await?;
    }
    ensure!(bed.count().await? > 10, "the window counts in another way now");

    // M3: with a window and without a token, two inserts of equal rows leave one. The sink refuses to send none.
    let bed = Bed::new().await?;
    bed.table(100).await?;
    for _ in 0..2 {
        let sql = format!("INSERT INTO {}.t SETTINGS async_insert = 0 FORMAT Native", bed.database);
        let answer = bed.clickhouse.insert(&sql, block(0..10, 1)).await?;
        ensure!(answer.status == 200, "{}", answer.text());
    }
    ensure!(bed.count().await? == 10);
    let error = bed.insert(block(0..10, 1), "").await.expect_err("no token");
    ensure!(error.class == Class::Bug);
    Ok(())
}

#[tokio::test]
async fn a_cut_block_is_refused_as_a_whole_and_two_blocks_are_not() -> Result<()> {
    // M8: why a request carries one block and its length.
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
    let two = [block(0..500, 1), block(500..1_000, 1)];
    ensure!(
        bed.insert(two[0].clone(), "two").await.is_ok(),
        "the first half alone is a success"
    );
    ensure!(bed.insert(two.concat(), "two").await.is_ok());
    ensure!(
        bed.count().await? != 1_000,
        "one token for two blocks has become safe: the engine changed"
    );
    Ok(())
}

#[tokio::test]
async fn a_large_block_stays_one_block() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(100).await?;
    // More rows than any of the server's default block sizes.
    for (rows, token) in [(100_000, "a"), (1_000_000, "b"), (2_500_000, "c")] {
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
async fn values_are_refused_and_not_bent() -> Result<()> {
    // M9: with the server's defaults 300 becomes 44.
    let bed = Bed::new().await?;
    bed.one("CREATE TABLE {db}.u (v UInt8, w String) ENGINE = MergeTree ORDER BY v")
        .await?;
    let v = ["v".to_owned()];
    let error = insert(&bed.sink, "u", &v, cell("v", "Int64", &300_i64.to_le_bytes()), "a")
        .await
        .expect_err("300");
    ensure!((error.class, error.code) == (Class::Schema, Some(53)), "{error:?}");
    ensure!(error.reason() == reason::DESTINATION_SCHEMA_CHANGED);
    // A column that the table does not have.
    let unknown = ["x".to_owned()];
    let error = insert(&bed.sink, "u", &unknown, cell("x", "UInt8", &[1]), "b")
        .await
        .expect_err("no such column");
    ensure!((error.class, error.code) == (Class::Schema, Some(16)), "{error:?}");
    ensure!(error.reason() == reason::DESTINATION_COLUMN_NOT_FOUND);
    // A column in the block that the statement does not name.
    let error = insert(&bed.sink, "u", &v, cell("w", "String", b"\x01x"), "c")
        .await
        .expect_err("an unknown column");
    ensure!((error.class, error.code) == (Class::Schema, Some(117)), "{error:?}");
    ensure!(bed.one("SELECT count() FROM {db}.u").await? == "0");
    let sent = cell("v", "UInt8", &[44]);
    insert(&bed.sink, "u", &v, sent, "d").await?;
    ensure!(bed.one("SELECT v FROM {db}.u").await? == "44");
    Ok(())
}

#[tokio::test]
async fn null_takes_the_default_of_the_column() -> Result<()> {
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
async fn missing_things_pause_with_their_reason() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(100).await?;
    let columns = ["part", "n", "s"].map(str::to_owned);

    let error = insert(&bed.sink, "nope", &columns, block(0..1, 1), "a")
        .await
        .expect_err("no table");
    ensure!((error.class, error.code, error.reason()) == (Class::Pause, Some(60), reason::DESTINATION_TABLE_NOT_FOUND));
    ensure!(error.is_permanent() && error.message.contains("nope"), "{error}");

    let sink = Sink::new(&Access {
        database: "nope".to_owned(),
        ..access(bed.clickhouse, "")
    })?;
    let error = insert(&sink, "t", &columns, block(0..1, 1), "a")
        .await
        .expect_err("no database");
    ensure!(
        (error.class, error.code, error.reason()) == (Class::Pause, Some(81), reason::DESTINATION_DATABASE_NOT_FOUND),
        "{error:?}"
    );

    let wrong = Access {
        password: "wrong".to_owned().into(),
        ..access(bed.clickhouse, &bed.database)
    };
    let error = insert(&Sink::new(&wrong)?, "t", &columns, block(0..1, 1), "a")
        .await
        .expect_err("wrong password");
    ensure!(
        (error.class, error.code, error.reason())
            == (Class::Pause, Some(516), reason::DESTINATION_AUTHENTICATION_FAILED),
        "{error:?}"
    );
    ensure!(!format!("{error:?}").contains("wrong\""));
    Ok(())
}

#[tokio::test]
async fn a_user_with_insert_alone_can_insert_and_only_there() -> Result<()> {
    let grants = ["GRANT INSERT ON d.t", "GRANT INSERT ON d.empty"];
    let clickhouse = ClickHouse::start(Options::default().user("writer", "pa ss:wörd", &grants)).await?;
    for sql in [
        "CREATE DATABASE IF NOT EXISTS d",
        "CREATE TABLE d.t (part UInt8, n UInt64, s String) ENGINE = MergeTree ORDER BY n",
        "CREATE TABLE d.other (part UInt8, n UInt64, s String) ENGINE = MergeTree ORDER BY n",
    ] {
        clickhouse.query(sql).await?;
    }
    let access = Access {
        username: "writer".to_owned(),
        password: "pa ss:wörd".to_owned().into(),
        ..access(&clickhouse, "d")
    };
    let sink = Sink::new(&access)?;
    let columns = ["part", "n", "s"].map(str::to_owned);
    insert(&sink, "t", &columns, block(0..10, 1), "a").await?;
    let error = insert(&sink, "other", &columns, block(0..10, 1), "a")
        .await
        .expect_err("no grant");
    ensure!(
        (error.class, error.code, error.reason()) == (Class::Pause, Some(497), reason::DESTINATION_ACCESS_DENIED),
        "{error:?}"
    );
    ensure!(clickhouse.query("SELECT count() FROM d.t").await?.trim() == "10");
    Ok(())
}

#[tokio::test]
async fn load_and_partitions_are_told_apart() -> Result<()> {
    // M10: code 252 means "wait" and "never".
    let bed = Bed::new().await?;
    bed.table(1_000).await?;
    let error = bed.insert(block(0..150, 150), "a").await.expect_err("150 partitions");
    ensure!((error.class, error.code) == (Class::Pause, Some(252)), "{error:?}");
    ensure!(bed.count().await? == 0);

    let bed = Bed::new().await?;
    bed.one(
        "CREATE TABLE {db}.t (part UInt8, n UInt64, s String) ENGINE = MergeTree ORDER BY n \
         SETTINGS parts_to_delay_insert = 1, parts_to_throw_insert = 2, non_replicated_deduplication_window = 100",
    )
    .await?;
    bed.one("SYSTEM STOP MERGES {db}.t").await?;
    let mut refused = None;
    for number in 0..5 {
        if let Err(error) = bed.insert(block(number..number + 1, 1), &number.to_string()).await {
            refused = Some(error);
            break;
        }
    }
    let error = refused.context("too many parts are refused")?;
    ensure!((error.class, error.code, error.reason()) == (Class::Load, Some(252), reason::DESTINATION_OVERLOADED));
    Ok(())
}

#[tokio::test]
async fn a_view_that_throws_is_retried_under_the_token() -> Result<()> {
    // M11: the source table has the rows by then; the retry fills the view and doubles nothing.
    let bed = Bed::new().await?;
    bed.table(100).await?;
    bed.one(
        "CREATE TABLE {db}.target (n UInt64) ENGINE = MergeTree ORDER BY n \
         SETTINGS non_replicated_deduplication_window = 100",
    )
    .await?;
    bed.one("CREATE TABLE {db}.switch (broken UInt8) ENGINE = Memory")
        .await?;
    bed.one("INSERT INTO {db}.switch VALUES (1)").await?;
    bed.one(
        "CREATE MATERIALIZED VIEW {db}.v TO {db}.target AS SELECT n FROM {db}.t \
         WHERE throwIf((SELECT max(broken) FROM {db}.switch) = 1) = 0",
    )
    .await?;
    let body = block(0..10, 1);
    let error = bed.insert(body.clone(), "a").await.expect_err("the view throws");
    ensure!((error.class, error.code) == (Class::Pause, Some(395)), "{error:?}");
    bed.one("TRUNCATE TABLE {db}.switch").await?;
    bed.one("INSERT INTO {db}.switch VALUES (0)").await?;
    bed.insert(body.clone(), "a").await?;
    bed.insert(body, "a").await?;
    ensure!(bed.count().await? == 10);
    ensure!(bed.one("SELECT count() FROM {db}.target").await? == "10");
    Ok(())
}

#[tokio::test]
async fn every_insert_states_its_settings() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(100).await?;
    let columns = ["part", "n", "s"].map(str::to_owned);
    let query_id = format!("settings-{}", ulid::Ulid::new());
    let insert = Insert {
        table: "t",
        columns: &columns,
        body: block(0..3, 1).into(),
        lz4: false,
        token: "a-token",
        query_id: &query_id,
    };
    bed.sink.insert(insert).await?;
    bed.one("SYSTEM FLUSH LOGS").await?;
    let log = bed
        .one(&format!(
            "SELECT query, Settings['insert_deduplication_token'], Settings['async_insert'], \
             Settings['input_format_native_allow_types_conversion'], written_rows \
             FROM system.query_log WHERE query_id = '{query_id}' AND type = 'QueryFinish'"
        ))
        .await?;
    let fields: Vec<&str> = log.split('\t').collect();
    ensure!(fields[0].contains(".`t` (`part`,`n`,`s`) FORMAT Native"), "{log}");
    ensure!(fields[1..] == ["a-token", "0", "0", "3"], "{log}");
    Ok(())
}

#[tokio::test]
async fn rejected_records_arrive_in_the_error_table() -> Result<()> {
    let bed = Bed::new().await?;
    let columns = errors_table::COLUMNS
        .map(|(name, data_type)| format!("{name} {data_type}"))
        .join(", ");
    bed.one(&format!(
        "CREATE TABLE {{db}}.t_millrace_error ({columns}) ENGINE = MergeTree ORDER BY error_timestamp \
         SETTINGS non_replicated_deduplication_window = 100"
    ))
    .await?;
    let batch: BatchId = ulid::Ulid::from_parts(1_760_000_000_456, 7).to_string().parse()?;
    let number: SequenceNumber = "49590338271490256608559692538361571095921575989136588898".parse()?;
    let mut rejected = ErrorBlock::new();
    let large = vec![0xff; errors_table::MAX_VALUE_BYTES + 10];
    let values: [&[u8]; 3] = [b"{\"a\":", b"\xff\x00\xfe", &large];
    for (at, value) in values.into_iter().enumerate() {
        let shard: ShardId = format!("shardId-{at:012}").parse()?;
        rejected.push(&Rejected {
            error_type: if at == 0 { "MALFORMED_JSON" } else { "INVALID_UTF8" },
            message: "unexpected end",
            field_path: "a.b",
            partition_key: "clé",
            value,
            arrival_millis: 1_760_000_000_123,
            shard: &shard,
            sequence_number: &number,
            sub_sequence_number: at as u64,
        });
    }
    let mut body = Vec::new();
    rejected.write_native("projects/p/pipes/x", batch, &mut body);
    let token = format!("{batch}:errors");
    for _ in 0..2 {
        insert(
            &bed.sink,
            "t_millrace_error",
            &errors_table::column_names(),
            body.clone(),
            &token,
        )
        .await?;
    }
    let rows = bed
        .one(
            "SELECT error_timestamp, error_type, error_msg, record_key, hex(substring(record_value, 1, 5)), \
             length(record_value), record_timestamp, shard_id, sequence_number, sub_sequence_number, pipe_id, \
             field_path, batch_id FROM {db}.t_millrace_error ORDER BY sub_sequence_number FORMAT TSV",
        )
        .await?;
    let rows: Vec<Vec<&str>> = rows.lines().map(|line| line.split('\t').collect()).collect();
    let batch = batch.to_string();
    ensure!(rows.len() == 3, "{rows:?}");
    let first = [
        "2025-10-09 08:53:20.456",
        "MALFORMED_JSON",
        "unexpected end",
        "clé",
        "7B2261223A",
        "5",
        "2025-10-09 08:53:20.123",
        "shardId-000000000000",
        number.as_str(),
        "0",
        "projects/p/pipes/x",
        "a.b",
        &batch,
    ];
    ensure!(rows[0] == first, "{:?}", rows[0]);
    ensure!(
        (rows[1][1], rows[1][4], rows[1][7]) == ("INVALID_UTF8", "FF00FE", "shardId-000000000001"),
        "{rows:?}"
    );
    ensure!(
        rows[2][5] == "1048576" && rows[2][2].contains("of 1048586 bytes"),
        "{rows:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_down_is_retried_and_comes_back() -> Result<()> {
    let clickhouse = ClickHouse::start(Options::default()).await?;
    clickhouse.query("CREATE DATABASE d").await?;
    clickhouse
        .query(
            "CREATE TABLE d.t (part UInt8, n UInt64, s String) ENGINE = MergeTree ORDER BY n \
             SETTINGS non_replicated_deduplication_window = 100",
        )
        .await?;
    let sink = Sink::with_timeout(&access(&clickhouse, "d"), Duration::from_secs(3))?;
    let columns = ["part", "n", "s"].map(str::to_owned);
    let send = async |token: &str| insert(&sink, "t", &columns, block(0..10, 1), token).await;
    send("a").await?;

    clickhouse.kill().await?;
    let error = send("a").await.expect_err("nobody is there");
    ensure!(
        (error.class, error.code, error.status) == (Class::Retry, None, None),
        "{error:?}"
    );
    ensure!(error.reason() == reason::DESTINATION_UNREACHABLE);
    clickhouse.start_again().await?;
    // The token outlives the kill.
    eventually("the insert to be acknowledged", LIMIT, || async { send("a").await }).await?;
    ensure!(clickhouse.query("SELECT count() FROM d.t").await?.trim() == "10");

    // A server that accepts and never answers.
    clickhouse.pause()?;
    let error = send("b").await.expect_err("frozen");
    ensure!(
        error.class == Class::Retry && error.message.contains("no answer within 3"),
        "{error:?}"
    );
    clickhouse.resume()?;
    eventually("the insert to be acknowledged", LIMIT, || async { send("b").await }).await?;
    ensure!(clickhouse.query("SELECT count() FROM d.t").await?.trim() == "20");
    Ok(())
}

#[tokio::test]
async fn connections_are_kept() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(1_000).await?;
    let upstream = bed.clickhouse.http_url().trim_start_matches("http://").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let connections = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&connections);
    let proxy = tokio::spawn(async move {
        while let Ok((mut down, _)) = listener.accept().await {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let upstream = upstream.clone();
            tokio::spawn(async move {
                let mut up = TcpStream::connect(upstream).await?;
                tokio::io::copy_bidirectional(&mut down, &mut up).await
            });
        }
    });
    let endpoint = format!("http://{address}");
    let sink = Sink::new(&Access {
        endpoint,
        ..access(bed.clickhouse, &bed.database)
    })?;
    let columns = ["part", "n", "s"].map(str::to_owned);
    for number in 0..20 {
        insert(&sink, "t", &columns, block(number..number + 1, 1), &number.to_string()).await?;
    }
    ensure!(bed.count().await? == 20);
    // One of the question that comes first, one of the inserts.
    let connections = connections.load(std::sync::atomic::Ordering::Relaxed);
    ensure!(connections <= 2, "{connections} connections for 20 inserts");
    proxy.abort();
    Ok(())
}

/// A server that answers every request with these bytes and closes.
async fn canned(answers: Vec<Vec<u8>>) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        for answer in answers {
            let Ok((mut stream, _)) = listener.accept().await else {
                return;
            };
            let mut request = Vec::new();
            let mut chunk = [0; 4096];
            // To the end of the headers, and of a body as short as those here.
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut chunk).await {
                    Ok(count) if count > 0 => request.extend_from_slice(&chunk[..count]),
                    _ => break,
                }
            }
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
        }
    });
    Ok(endpoint)
}

#[tokio::test]
async fn only_a_whole_and_empty_answer_is_an_acknowledgement() -> Result<()> {
    let ok = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_vec();
    let answers: [(&[u8], Option<u32>, Class); 6] = [
        (
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 10\r\n\r\n",
            None,
            Class::Retry,
        ),
        (
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxx",
            None,
            Class::Retry,
        ),
        (
            b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n__exception__\r\nx\r\nCode: 241. DB::Exception: no memory",
            Some(241),
            Class::Load,
        ),
        (
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nX-ClickHouse-Exception-Code: 60\r\n\r\n",
            Some(60),
            Class::Pause,
        ),
        (
            b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            None,
            Class::Load,
        ),
        (b"", None, Class::Retry),
    ];
    for (answer, code, class) in answers {
        let endpoint = canned(vec![ok.clone(), answer.to_vec()]).await?;
        let access = Access {
            endpoint,
            username: "u".to_owned(),
            password: "p".to_owned().into(),
            database: "d".to_owned(),
        };
        let sink = Sink::with_timeout(&access, Duration::from_secs(10))?;
        let error = match insert(&sink, "t", &["a".to_owned()], vec![1], "t").await {
            Ok(inserted) => bail!("{inserted:?} for {}", String::from_utf8_lossy(answer)),
            Err(error) => error,
        };
        ensure!(
            (error.class, error.code) == (class, code),
            "{error:?} for {}",
            String::from_utf8_lossy(answer)
        );
    }
    let endpoint = canned(vec![ok.clone(), ok]).await?;
    let access = Access {
        endpoint,
        username: "u".to_owned(),
        password: "p".to_owned().into(),
        database: "d".to_owned(),
    };
    insert(&Sink::new(&access)?, "t", &["a".to_owned()], vec![1], "t").await?;
    Ok(())
}

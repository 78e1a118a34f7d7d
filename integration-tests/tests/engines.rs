//! The launchers start real engines, and stop them in every way that a fault test needs.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use millrace_integration_tests::clickhouse::{self, ADMIN, ClickHouse, Engine, Options, Request};
use millrace_integration_tests::postgres::{self, Postgres};
use millrace_integration_tests::process::{Process, Scratch, Signal, Spawn, TimedOut, eventually};
use sqlx::{Connection as _, PgConnection};

const LIMIT: Duration = Duration::from_secs(30);
/// ClickHouse: not enough privileges.
const ACCESS_DENIED: u32 = 497;
/// ClickHouse: wrong password or no such user.
const AUTHENTICATION_FAILED: u32 = 516;
/// ClickHouse: no such table.
const UNKNOWN_TABLE: u32 = 60;

#[tokio::test]
async fn the_shared_engine_answers() -> Result<()> {
    let clickhouse = ClickHouse::shared().await;
    let (one, other) = (clickhouse.database().await?, clickhouse.database().await?);
    assert_ne!(one, other);
    clickhouse
        .query(&format!(
            "CREATE TABLE {one}.t (a UInt32) ENGINE = MergeTree ORDER BY a"
        ))
        .await?;

    let answer = clickhouse
        .insert(&format!("INSERT INTO {one}.t FORMAT JSONEachRow"), "{\"a\":1}{\"a\":2}")
        .await?;
    assert_eq!((answer.status, answer.exception_code()), (200, None));
    let total: u64 = clickhouse
        .client()
        .query(&format!("SELECT sum(a) FROM {one}.t"))
        .fetch_one()
        .await?;
    assert_eq!(total, 3);

    let error = clickhouse
        .query(&format!("SELECT * FROM {other}.t"))
        .await
        .expect_err("it is another database");
    assert_eq!(error.code(), Some(UNKNOWN_TABLE), "{error}");
    let late = clickhouse
        .query("SELECT throwIf(number = 100000) FROM numbers(200000)")
        .await;
    assert!(
        late.is_err_and(|error| error.code().is_some()),
        "an exception after the first rows is an error too"
    );
    Ok(())
}

#[tokio::test]
async fn deduplication_and_logs_are_real() -> Result<()> {
    let clickhouse = ClickHouse::shared().await;
    let table = format!("{}.t", clickhouse.database().await?);
    clickhouse
        .query(&format!(
            "CREATE TABLE {table} (a UInt32) ENGINE = MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 100"
        ))
        .await?;
    let insert = |token: &str| {
        Request::insert(&format!("INSERT INTO {table} FORMAT JSONEachRow"), "{\"a\":7}")
            .parameter("insert_deduplication_token", token)
            .parameter("async_insert", 0)
    };
    for token in ["one", "one", "two"] {
        clickhouse.send(insert(token)).await?.into_text()?;
    }
    assert_eq!(clickhouse.query(&format!("SELECT count() FROM {table}")).await?, "2\n");

    let usage = clickhouse
        .usage(&format!("query_kind = 'Insert' AND has(tables, '{table}')"))
        .await?;
    assert_eq!(usage.queries, 3);
    assert!(usage.cpu_seconds > 0.0 && usage.written_rows >= 2, "{usage:?}");
    Ok(())
}

#[tokio::test]
async fn users_may_do_what_they_are_granted() -> Result<()> {
    let options = Options::default()
        .user("reader", "r<&>'\"", &["GRANT SELECT ON *.*"])
        .user(
            "writer",
            "w",
            &["GRANT SELECT, INSERT ON d.only", "GRANT SELECT ON system.*"],
        )
        .user("nobody", "n", &[])
        .setting("max_threads", 1);
    let clickhouse = ClickHouse::start_own(options).await?;
    clickhouse.query("CREATE DATABASE d").await?;
    for table in ["only", "other"] {
        clickhouse
            .query(&format!(
                "CREATE TABLE d.{table} (a UInt8) ENGINE = MergeTree ORDER BY a"
            ))
            .await?;
    }
    let code = |user: &'static str, password: &'static str, sql: &'static str| {
        let clickhouse = &clickhouse;
        async move {
            clickhouse
                .query_as(user, password, sql)
                .await
                .err()
                .and_then(|error| error.code())
        }
    };
    assert_eq!(code("reader", "r<&>'\"", "SELECT * FROM d.other").await, None);
    assert_eq!(
        code("reader", "r<&>'\"", "INSERT INTO d.other VALUES (1)").await,
        Some(ACCESS_DENIED)
    );
    assert_eq!(code("writer", "w", "INSERT INTO d.only VALUES (1)").await, None);
    assert_eq!(
        code("writer", "w", "INSERT INTO d.other VALUES (1)").await,
        Some(ACCESS_DENIED)
    );
    assert_eq!(
        code("writer", "w", "CREATE TABLE d.t (a UInt8) ENGINE = Memory").await,
        Some(ACCESS_DENIED)
    );
    assert_eq!(code("nobody", "n", "SELECT * FROM d.only").await, Some(ACCESS_DENIED));
    assert_eq!(code("writer", "wrong", "SELECT 1").await, Some(AUTHENTICATION_FAILED));
    assert_eq!(clickhouse.query("SELECT getSetting('max_threads')").await?, "1\n");
    Ok(())
}

#[tokio::test]
async fn clickhouse_comes_back_with_its_data() -> Result<()> {
    let clickhouse = ClickHouse::start_own(Options::default()).await?;
    let database = clickhouse.database().await?;
    clickhouse
        .query(&format!(
            "CREATE TABLE {database}.t (a UInt64) ENGINE = MergeTree ORDER BY a"
        ))
        .await?;
    let url = clickhouse.http_url();
    assert!(matches!(
        clickhouse.start_again().await,
        Err(clickhouse::Error::State(_))
    ));

    for (round, kill) in [true, false].into_iter().enumerate() {
        clickhouse
            .query(&format!("INSERT INTO {database}.t SELECT number FROM numbers(1000)"))
            .await?;
        if kill {
            clickhouse.kill().await?;
        } else {
            clickhouse.stop().await?;
        }
        assert_eq!(clickhouse.pid(), None);
        assert!(matches!(
            clickhouse.query("SELECT 1").await,
            Err(clickhouse::Error::Http(_))
        ));
        clickhouse.start_again().await?;
        assert_eq!(clickhouse.http_url(), url);
        let rows = clickhouse.query(&format!("SELECT count() FROM {database}.t")).await?;
        assert_eq!(rows, format!("{}\n", (round + 1) * 1000));
    }

    clickhouse.pause()?;
    // The signal reaches the engine's threads one by one: an answer or two may still come.
    let mut frozen = false;
    for _ in 0..50 {
        let answer = tokio::time::timeout(Duration::from_millis(200), clickhouse.query("SELECT 1")).await;
        frozen = answer.is_err();
        if frozen {
            break;
        }
    }
    assert!(frozen, "a frozen engine does not answer");
    clickhouse.resume()?;
    assert_eq!(clickhouse.query("SELECT 1").await?, "1\n");
    Ok(())
}

#[tokio::test]
async fn a_failed_start_shows_the_log() -> Result<()> {
    let Engine::Library { launcher, .. } = Engine::find_own()? else {
        return Ok(());
    };
    let broken = Engine::Library {
        launcher,
        library: "/no/such/library.so".into(),
    };
    let began = Instant::now();
    let error = ClickHouse::start_engine(broken, Options::default())
        .await
        .expect_err("there is no such library");
    let message = error.to_string();
    assert!(message.contains("/no/such/library.so"), "{message}");
    assert!(
        began.elapsed() < LIMIT,
        "a dead engine is noticed at once, not at the limit"
    );
    Ok(())
}

#[tokio::test]
async fn the_command_serves_until_it_is_told_to_stop() -> Result<()> {
    let scratch = Scratch::new("command")?;
    let (log, port_file) = (scratch.path().join("log"), scratch.path().join("port"));
    let command = Spawn::new(env!("CARGO_BIN_EXE_millrace-clickhouse"))
        .arg("--data-dir")
        .arg(scratch.path().join("data"))
        .env_remove("MILLRACE_CLICKHOUSE_URL")
        .arg("--port-file")
        .arg(&port_file)
        .env("MILLRACE_CLICKHOUSE_PASSWORD", "secret")
        .log(&log)
        .spawn()?;
    let port = wait_for_port(&command, &port_file).await?;
    let client = ::clickhouse::Client::default()
        .with_url(format!("http://127.0.0.1:{port}"))
        .with_user(ADMIN)
        .with_password("secret");
    let one: u8 = client.query("SELECT 1").fetch_one().await?;
    assert_eq!(one, 1);
    let status = command.stop(LIMIT).await?;
    assert_eq!(status.code(), Some(0), "SIGTERM is an orderly end");
    let gone = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
    assert!(gone.is_err(), "the engine ends with the command");
    Ok(())
}

#[tokio::test]
async fn the_engine_dies_with_a_killed_parent() -> Result<()> {
    let scratch = Scratch::new("orphan")?;
    let port_file = scratch.path().join("port");
    let command = Spawn::new(env!("CARGO_BIN_EXE_millrace-clickhouse"))
        .arg("--data-dir")
        .arg(scratch.path().join("data"))
        .env_remove("MILLRACE_CLICKHOUSE_URL")
        .arg("--port-file")
        .arg(&port_file)
        .log(scratch.path().join("log"))
        .spawn()?;
    let port = wait_for_port(&command, &port_file).await?;
    command.signal(Signal::SIGKILL)?;
    command.wait(LIMIT).await?;
    eventually("the engine to be gone", LIMIT, || async {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err()
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn postgres_gives_each_test_a_database() -> Result<()> {
    let postgres = Postgres::shared().await;
    let (one, other) = (postgres.database().await?, postgres.database().await?);
    let mut connection = PgConnection::connect(&one).await?;
    sqlx::query("CREATE TABLE t (a INT)").execute(&mut connection).await?;
    let mut elsewhere = PgConnection::connect(&other).await?;
    let missing = sqlx::query("SELECT * FROM t").execute(&mut elsewhere).await;
    assert!(missing.is_err(), "it is another database");
    let wrong = one.replacen("millrace:", "millrace:x", 1);
    assert!(PgConnection::connect(&wrong).await.is_err(), "a password is asked for");
    Ok(())
}

#[tokio::test]
async fn postgres_comes_back_with_its_data() -> Result<()> {
    let postgres = Postgres::start().await?;
    let url = postgres.database().await?;
    let mut connection = PgConnection::connect(&url).await?;
    sqlx::query("CREATE TABLE t (a INT)").execute(&mut connection).await?;
    assert!(matches!(postgres.start_again().await, Err(postgres::Error::State(_))));

    for (round, kill) in [true, false].into_iter().enumerate() {
        let mut connection = PgConnection::connect(&url).await?;
        sqlx::query("INSERT INTO t VALUES (1)").execute(&mut connection).await?;
        // What was committed may still be in the server's memory: it is asked to write before it is killed.
        sqlx::query("CHECKPOINT").execute(&mut connection).await?;
        if kill {
            postgres.kill().await?;
        } else {
            postgres.stop().await?;
        }
        assert_eq!(postgres.pid(), None);
        assert!(
            sqlx::query("SELECT 1").execute(&mut connection).await.is_err(),
            "the backend is gone too"
        );
        postgres.start_again().await?;
        let mut connection = PgConnection::connect(&url).await?;
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM t")
            .fetch_one(&mut connection)
            .await?;
        assert_eq!(rows, i64::try_from(round + 1)?);
    }

    let mut connection = PgConnection::connect(&url).await?;
    postgres.pause()?;
    let frozen = tokio::time::timeout(
        Duration::from_millis(200),
        sqlx::query("SELECT 1").execute(&mut connection),
    )
    .await;
    assert!(frozen.is_err(), "a frozen backend does not answer");
    postgres.resume()?;
    let mut connection = PgConnection::connect(&url).await?;
    sqlx::query("SELECT 1").execute(&mut connection).await?;
    Ok(())
}

#[tokio::test]
async fn a_killed_process_leaves_nothing_behind() -> Result<()> {
    let scratch = Scratch::new("temp")?;
    let temp = scratch.path().join("tmp");
    std::fs::create_dir(&temp)?;
    let port_file = scratch.path().join("port");
    let command = Spawn::new(env!("CARGO_BIN_EXE_millrace-clickhouse"))
        .env_remove("MILLRACE_CLICKHOUSE_URL")
        .arg("--port-file")
        .arg(&port_file)
        .env("TMPDIR", &temp)
        .log(scratch.path().join("log"))
        .spawn()?;
    wait_for_port(&command, &port_file).await?;
    let left = || std::fs::read_dir(&temp).map(Iterator::count);
    ensure!(left()? == 1, "its data are where TMPDIR says");
    command.signal(Signal::SIGKILL)?;
    command.wait(LIMIT).await?;
    eventually("an empty directory", LIMIT, || async {
        left().is_ok_and(|left| left == 0)
    })
    .await?;
    Ok(())
}

async fn wait_for_port(command: &Process, port_file: &Path) -> Result<u16, TimedOut> {
    eventually("the port file", LIMIT, || async {
        ensure!(command.is_running(), "it ended: {}", command.log_tail(20));
        Ok(std::fs::read_to_string(port_file)?.trim().parse()?)
    })
    .await
}

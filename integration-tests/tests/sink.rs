//! The insert path against a real engine. What the engine itself does is in `clickhouse_facts.rs`, what becomes of attempts
//! that fail in `clickhouse_outcomes.rs`.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use millrace_common::{
    clickhouse::{ERROR_TABLE_COLUMNS, error_table_column_names},
    ids::{BatchId, SequenceNumber, ShardId},
    reason,
};
use millrace_data_plane::batch::block::Output as _;
use millrace_data_plane::sink::clickhouse::{
    Access, Class, Insert, Sink,
    errors_table::{self, ErrorBlock, Rejected},
    native,
};
use millrace_integration_tests::{
    clickhouse::{ClickHouse, Options},
    native::{Bed, COLUMNS, access, block, insert},
    process::eventually,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn plain_and_compressed_blocks_arrive() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(100).await?;
    let inserted = bed.insert(block(0..1_000, 1), "plain").await?;
    ensure!(inserted.written_rows == 1_000, "{inserted:?}");

    let columns = COLUMNS.map(str::to_owned);
    let plain = block(1_000..101_000, 1);
    let mut sizes = vec![plain.len()];
    for (method, token) in [(native::Method::Lz4, "lz4"), (native::Method::Zstd, "zstd")] {
        let mut frames = native::Frames::new(method);
        frames.put(&plain);
        let frames = frames.finish();
        sizes.push(frames.len());
        let insert = Insert {
            table: "t",
            columns: &columns,
            body: frames.into(),
            compressed: true,
            token,
            query_id: &format!("a-query-of-ours-{token}"),
            any_partitions: false,
        };
        ensure!(bed.sink.insert(insert).await?.written_rows == 100_000, "{token}");
    }
    ensure!(sizes.is_sorted_by(|larger, smaller| larger > smaller), "{sizes:?}");
    ensure!(
        bed.one("SELECT count(), uniqExact(n), sum(n), any(s) FROM {db}.t")
            .await?
            == "201000\t101000\t10200399500\ttext"
    );
    // The same rows thrice, whichever way they came.
    bed.insert(plain, "as-it-is").await?;
    ensure!(bed.one("SELECT uniqExact(c), min(c) FROM (SELECT n, s, part, count() AS c FROM {db}.t WHERE n >= 1000 GROUP BY ALL)").await? == "1\t3");
    Ok(())
}

#[tokio::test]
async fn missing_things_pause_with_their_reason() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(100).await?;
    let columns = COLUMNS.map(str::to_owned);

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
    let columns = COLUMNS.map(str::to_owned);
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
async fn every_insert_states_its_settings() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(100).await?;
    let columns = COLUMNS.map(str::to_owned);
    let query_id = format!("settings-{}", ulid::Ulid::new());
    let insert = Insert {
        table: "t",
        columns: &columns,
        body: block(0..3, 1).into(),
        compressed: false,
        token: "a-token",
        query_id: &query_id,
        any_partitions: false,
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
    let columns = ERROR_TABLE_COLUMNS
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
            partition_key: "clé".as_bytes(),
            value,
            arrival_millis: 1_760_000_000_123,
            shard: &shard,
            sequence_number: number.as_bytes(),
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
            &error_table_column_names().map(str::to_owned),
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
    let columns = COLUMNS.map(str::to_owned);
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
    let columns = COLUMNS.map(str::to_owned);
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
    let ok = b"HTTP/1.1 200 OK\r\nConnection: close\r\nX-ClickHouse-Query-Id: q\r\nContent-Length: 0\r\n\r\n".to_vec();
    let answers: [(&[u8], Option<u32>, Class); 7] = [
        (
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            None,
            Class::Retry,
        ),
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

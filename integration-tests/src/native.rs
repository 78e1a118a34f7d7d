//! Native blocks made by hand, and a database to insert them into: for tests of the insert path and of the engine, which
//! need blocks that the worker would never build.

use std::ops::Range;

use anyhow::Result;
use bytes::Bytes;
use millrace_data_plane::sink::clickhouse::{Access, Insert, InsertError, Inserted, Sink};

use crate::clickhouse::{ClickHouse, Request, Response};

/// Columns of [`block`].
pub const COLUMNS: [&str; 3] = ["part", "n", "s"];

/// The settings that the worker states with every insert, where they decide over rows. For tests that have to change one.
const SETTINGS: [(&str, &str); 8] = [
    ("insert_deduplicate", "1"),
    ("deduplicate_insert", "enable"),
    ("deduplicate_blocks_in_dependent_materialized_views", "1"),
    ("async_insert", "0"),
    ("wait_end_of_query", "1"),
    ("input_format_native_allow_types_conversion", "0"),
    ("input_format_skip_unknown_fields", "0"),
    ("max_insert_block_size", "4294967296"),
];

/// Appends a number as Native writes counts and lengths.
#[allow(clippy::cast_possible_truncation, reason = "seven bits at a time")]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a string with its length.
pub fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Rows `numbers` as one block of `part UInt8, n UInt64, s String`; row `n` goes to partition `n % partitions`.
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "there are at most 256 partitions")]
pub fn block(numbers: Range<u64>, partitions: u64) -> Vec<u8> {
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

/// Rows `numbers` of one partition as blocks of `size` rows each, behind each other.
#[must_use]
pub fn blocks(numbers: Range<u64>, size: u64) -> Vec<u8> {
    let starts = (numbers.start..numbers.end).step_by(usize::try_from(size).unwrap_or(usize::MAX));
    starts
        .flat_map(|start| block(start..(start + size).min(numbers.end), 1))
        .collect()
}

/// One column of one row.
#[must_use]
pub fn cell(name: &str, data_type: &str, value: &[u8]) -> Vec<u8> {
    let mut out = vec![1, 1];
    put_text(&mut out, name);
    put_text(&mut out, data_type);
    out.extend_from_slice(value);
    out
}

/// Access to a database as the engine's administrator.
#[must_use]
pub fn access(clickhouse: &ClickHouse, database: &str) -> Access {
    Access {
        endpoint: clickhouse.http_url(),
        username: clickhouse.user().to_owned(),
        password: clickhouse.password().to_owned().into(),
        database: database.to_owned(),
    }
}

/// Inserts through a sink, once.
///
/// # Errors
/// The sink's.
pub async fn insert(
    sink: &Sink,
    table: &str,
    columns: &[String],
    body: Vec<u8>,
    token: &str,
) -> Result<Inserted, InsertError> {
    let query_id = ulid::Ulid::new().to_string();
    sink.insert(Insert {
        table,
        columns,
        body: Bytes::from(body),
        compressed: false,
        token,
        query_id: &query_id,
        any_partitions: false,
    })
    .await
}

/// A database of one's own and a sink into it.
#[derive(Debug)]
pub struct Bed<'a> {
    /// The engine.
    pub clickhouse: &'a ClickHouse,
    /// The database.
    pub database: String,
    /// A sink into it.
    pub sink: Sink,
}

impl Bed<'static> {
    /// On the engine that a test binary shares.
    ///
    /// # Errors
    /// If the engine refuses.
    pub async fn new() -> Result<Self> {
        Self::on(ClickHouse::shared().await).await
    }
}

impl<'a> Bed<'a> {
    /// On this engine.
    ///
    /// # Errors
    /// If the engine refuses.
    pub async fn on(clickhouse: &'a ClickHouse) -> Result<Self> {
        let database = clickhouse.database().await?;
        let sink = Sink::new(&access(clickhouse, &database))?;
        Ok(Self {
            clickhouse,
            database,
            sink,
        })
    }

    /// A table `t` for [`block`], by partition, with a deduplication window.
    ///
    /// # Errors
    /// If the engine refuses.
    pub async fn table(&self, window: u32) -> Result<()> {
        self.table_with(window, "PARTITION BY part", "").await
    }

    /// The same with another partition key, or none, and more settings (`, name = value`).
    ///
    /// # Errors
    /// If the engine refuses.
    pub async fn table_with(&self, window: u32, partition_by: &str, settings: &str) -> Result<()> {
        self.one(&format!(
            "CREATE TABLE {{db}}.t (part UInt8, n UInt64, s String) ENGINE = MergeTree {partition_by} ORDER BY n \
             SETTINGS non_replicated_deduplication_window = {window}{settings}"
        ))
        .await?;
        Ok(())
    }

    /// Inserts a [`block`] into `t` through the sink, once.
    ///
    /// # Errors
    /// The sink's.
    pub async fn insert(&self, body: Vec<u8>, token: &str) -> Result<Inserted, InsertError> {
        insert(&self.sink, "t", &COLUMNS.map(str::to_owned), body, token).await
    }

    /// Inserts into `t` with the worker's settings, but for those given.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn insert_raw(&self, body: Vec<u8>, token: &str, settings: &[(&str, &str)]) -> Result<Response> {
        let sql = format!("INSERT INTO {}.t ({}) FORMAT Native", self.database, COLUMNS.join(", "));
        let mut request = Request::insert(&sql, body);
        if !token.is_empty() {
            request = request.parameter("insert_deduplication_token", token);
        }
        for (name, value) in SETTINGS {
            if !settings.iter().any(|(other, _)| *other == name) {
                request = request.parameter(name, value);
            }
        }
        for (name, value) in settings {
            request = request.parameter(name, value);
        }
        Ok(self.clickhouse.send(request).await?)
    }

    /// Runs a statement in which `{db}` stands for the database, and returns its output.
    ///
    /// # Errors
    /// The engine's.
    pub async fn one(&self, sql: &str) -> Result<String> {
        let sql = sql.replace("{db}", &self.database);
        Ok(self.clickhouse.query(&sql).await?.trim().to_owned())
    }

    /// Rows of a table.
    ///
    /// # Errors
    /// The engine's.
    pub async fn rows(&self, table: &str) -> Result<u64> {
        Ok(self
            .one(&format!("SELECT count() FROM {{db}}.`{table}`"))
            .await?
            .parse()?)
    }

    /// Rows of `t`.
    ///
    /// # Errors
    /// The engine's.
    pub async fn count(&self) -> Result<u64> {
        self.rows("t").await
    }
}

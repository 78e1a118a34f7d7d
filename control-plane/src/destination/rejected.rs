//! What a pipe rejected, read and deleted in its error table. The table may be of several pipes: only rows of the one are touched.
//!
//! Invariants: values are bound, never spliced; text that is not UTF-8 never breaks an answer.

use std::{fmt, str::FromStr, time::Duration};

use base64_simd::STANDARD;
use millrace_common::{clickhouse::cut_from, ids::PipeUid, pipe::Destination, reason};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    Access, Client, Error,
    client::{Server, ServerError},
    ddl, schema, within_deadline,
};

/// Bytes of payloads and messages after which a page ends: with what is around them, below the 4 MiB that clients take.
const MAX_PAGE_BYTES: u64 = 2 * 1024 * 1024;
/// Most classes of errors that are counted. Millrace has some twenty.
const MAX_CLASSES: u32 = 1_000;
/// What rows are ordered by: a total order of records. Sequence numbers are compared as numbers.
const KEY: &str = "(toUnixTimestamp64Milli(error_timestamp), toString(shard_id), length(sequence_number), sequence_number, \
                   sub_sequence_number, batch_id)";

/// Which rejected records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only of this class.
    pub error_type: Option<String>,
    /// Only of this shard.
    pub shard_id: Option<String>,
    /// Only from this time on, in milliseconds since the epoch.
    pub from_inclusive: Option<i64>,
    /// Only before this time, in milliseconds since the epoch.
    pub to_exclusive: Option<i64>,
}

/// Which of two orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The latest first.
    NewestFirst,
    /// The earliest first.
    OldestFirst,
}

/// A record's place in the order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    error_millis: i64,
    shard_id: String,
    sequence_number: String,
    sub_sequence_number: u64,
    batch_id: String,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for Cursor {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text)
    }
}

/// A rejected record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// When its batch was cut, in milliseconds since the epoch.
    pub error_millis: i64,
    /// Class.
    pub error_type: String,
    /// What is wrong.
    pub message: String,
    /// Where.
    pub field_path: String,
    /// Shard.
    pub shard_id: String,
    /// Sequence number.
    pub sequence_number: String,
    /// Place within its Kinesis record.
    pub sub_sequence_number: u64,
    /// Partition key.
    pub partition_key: String,
    /// When it arrived, in milliseconds since the epoch.
    pub arrival_millis: i64,
    /// Batch.
    pub batch_id: String,
    /// Bytes as the table holds them.
    pub payload: Vec<u8>,
    /// The record's bytes, if the table holds only the first of them.
    pub cut_from_bytes: Option<u64>,
}

impl Record {
    /// Its place in the order.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor {
            error_millis: self.error_millis,
            shard_id: self.shard_id.clone(),
            sequence_number: self.sequence_number.clone(),
            sub_sequence_number: self.sub_sequence_number,
            batch_id: self.batch_id.clone(),
        }
    }
}

/// Rejected records of one class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// Class.
    pub error_type: String,
    /// How many.
    pub records: u64,
    /// The earliest, in milliseconds since the epoch.
    pub first_millis: i64,
    /// The latest, in milliseconds since the epoch.
    pub last_millis: i64,
    /// What is wrong with one of the latest.
    pub example: String,
}

/// A condition with the values of its placeholders.
struct Condition {
    sql: String,
    values: Vec<String>,
}

impl Condition {
    fn new(pipe: PipeUid, filter: &Filter) -> Self {
        let mut condition = Self {
            sql: "pipe_id = ?".to_owned(),
            values: vec![pipe.to_string()],
        };
        let (from, to) = (filter.from_inclusive, filter.to_exclusive);
        let parts = [
            (" AND error_type = ?", filter.error_type.clone()),
            (" AND shard_id = ?", filter.shard_id.clone()),
            (
                " AND toUnixTimestamp64Milli(error_timestamp) >= toInt64(?)",
                from.map(|millis| millis.to_string()),
            ),
            (
                " AND toUnixTimestamp64Milli(error_timestamp) < toInt64(?)",
                to.map(|millis| millis.to_string()),
            ),
        ];
        for (sql, value) in parts {
            if let Some(value) = value {
                condition.sql.push_str(sql);
                condition.values.push(value);
            }
        }
        condition
    }

    fn after(mut self, order: Order, cursor: Option<&Cursor>) -> Self {
        let Some(cursor) = cursor else {
            return self;
        };
        let sign = match order {
            Order::NewestFirst => "<",
            Order::OldestFirst => ">",
        };
        self.sql.push_str(&format!(
            " AND {KEY} {sign} (toInt64(?), ?, toUInt64(?), ?, toUInt64(?), ?)"
        ));
        self.values.extend([
            cursor.error_millis.to_string(),
            cursor.shard_id.clone(),
            cursor.sequence_number.len().to_string(),
            cursor.sequence_number.clone(),
            cursor.sub_sequence_number.to_string(),
            cursor.batch_id.clone(),
        ]);
        self
    }

    fn values(&self) -> Vec<&str> {
        self.values.iter().map(String::as_str).collect()
    }
}

/// The error table, quoted. In a statement with placeholders a question mark of a name is written twice.
fn table(destination: &Destination) -> String {
    ddl::qualified(&destination.database, &destination.error_table).replace('?', "??")
}

fn misshapen() -> Error {
    let message =
        "the error table holds what Millrace did not write: name another, which is made with the right columns";
    Error::new(reason::DESTINATION_SCHEMA_CHANGED, message).field("pipe.destination.error_table")
}

async fn check_table(server: &Server, destination: &Destination) -> Result<(), Error> {
    let found = schema::read_table(server, &destination.database, &destination.error_table).await?;
    match found {
        Some(table) => schema::check_error_table(destination, &table),
        None => {
            let message = format!(
                "there is no table {} that this user can see: it is made when the pipe is created or changed",
                ddl::qualified(&destination.database, &destination.error_table)
            );
            Err(Error::new(reason::DESTINATION_TABLE_NOT_FOUND, message).field("pipe.destination.error_table"))
        }
    }
}

impl Client {
    /// At most `limit` rejected records after `after`, and whether there are more. Fewer come if they are large, but always one.
    ///
    /// # Errors
    /// If the error table cannot be read.
    pub async fn rejected(
        &self,
        access: &Access,
        (destination, pipe): (&Destination, PipeUid),
        filter: &Filter,
        order: Order,
        (after, limit): (Option<&Cursor>, u32),
    ) -> Result<(Vec<Record>, bool), Error> {
        let server = self.server(access);
        let looking = async {
            check_table(&server, destination).await?;
            let condition = Condition::new(pipe, filter).after(order, after);
            let direction = match order {
                Order::NewestFirst => "DESC",
                Order::OldestFirst => "ASC",
            };
            let rest = format!(
                "FROM {} WHERE {} ORDER BY {KEY} {direction} LIMIT",
                table(destination),
                condition.sql
            );
            page(&server, &rest, &condition.values(), limit).await
        };
        within_deadline(access, looking).await
    }

    /// Rejected records by class, most frequent first.
    ///
    /// # Errors
    /// If the error table cannot be read.
    pub async fn count_rejected(
        &self,
        access: &Access,
        (destination, pipe): (&Destination, PipeUid),
        filter: &Filter,
    ) -> Result<Vec<Count>, Error> {
        #[derive(Deserialize)]
        struct Row {
            class: String,
            records: String,
            first: String,
            last: String,
            example: String,
        }
        let server = self.server(access);
        let looking = async {
            check_table(&server, destination).await?;
            let condition = Condition::new(pipe, filter);
            let sql = format!(
                "SELECT toValidUTF8(toString(error_type)) AS class, toString(count()) AS records, \
                 toString(min(toUnixTimestamp64Milli(error_timestamp))) AS first, \
                 toString(max(toUnixTimestamp64Milli(error_timestamp))) AS last, \
                 toValidUTF8(argMax(error_msg, error_timestamp)) AS example \
                 FROM {} WHERE {} GROUP BY error_type ORDER BY count() DESC, class LIMIT {MAX_CLASSES}",
                table(destination),
                condition.sql
            );
            let rows: Vec<Row> = server
                .rows(&sql, &condition.values())
                .await
                .map_err(|error| Error::of_connection(&error, &server))?;
            let count = |row: Row| {
                Some(Count {
                    error_type: row.class,
                    records: row.records.parse().ok()?,
                    first_millis: row.first.parse().ok()?,
                    last_millis: row.last.parse().ok()?,
                    example: row.example,
                })
            };
            rows.into_iter().map(|row| count(row).ok_or_else(misshapen)).collect()
        };
        within_deadline(access, looking).await
    }
}

/// What became of rejected records that are to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Discarded {
    /// How many there were.
    pub records: u64,
    /// ClickHouse has not got to all of them yet.
    pub pending: bool,
}

/// How long to wait for ClickHouse to get to the rows that are to be deleted, and how often to look.
const DELETE_WAIT: Duration = Duration::from_secs(10);
const DELETE_LOOK: Duration = Duration::from_millis(100);
/// ACCESS_DENIED.
const ACCESS_DENIED: u32 = 497;

impl Client {
    /// Deletes rejected records, or only counts them. `filter` has an upper bound of time, so that those that come meanwhile stay.
    ///
    /// # Errors
    /// If the error table cannot be read, or its rows not deleted.
    pub async fn discard_rejected(
        &self,
        access: &Access,
        (destination, pipe): (&Destination, PipeUid),
        filter: &Filter,
        only_count: bool,
    ) -> Result<Discarded, Error> {
        let server = self.server(access);
        let condition = Condition::new(pipe, filter);
        let begin = async {
            check_table(&server, destination).await?;
            let records = matching(&server, destination, &condition).await?;
            if records > 0 && !only_count {
                let sql = format!("DELETE FROM {} WHERE {}", table(destination), condition.sql);
                let begun = server.delete(&sql, &condition.values()).await;
                begun.map_err(|error| not_deleted(&error, &server, destination))?;
            }
            Ok(records)
        };
        let records = within_deadline(access, begin).await?;
        if records == 0 || only_count {
            return Ok(Discarded {
                records,
                pending: false,
            });
        }
        let end = Instant::now() + DELETE_WAIT;
        loop {
            let left = within_deadline(access, matching(&server, destination, &condition)).await?;
            if left == 0 || Instant::now() >= end {
                return Ok(Discarded {
                    records,
                    pending: left > 0,
                });
            }
            tokio::time::sleep(DELETE_LOOK).await;
        }
    }
}

/// How many rows a condition matches.
async fn matching(server: &Server, destination: &Destination, condition: &Condition) -> Result<u64, Error> {
    #[derive(Deserialize)]
    struct Row {
        records: String,
    }
    let sql = format!(
        "SELECT toString(count()) AS records FROM {} WHERE {}",
        table(destination),
        condition.sql
    );
    let rows: Vec<Row> = server
        .rows(&sql, &condition.values())
        .await
        .map_err(|error| Error::of_connection(&error, server))?;
    let records = rows.first().and_then(|row| row.records.parse().ok());
    records.ok_or_else(misshapen)
}

fn not_deleted(error: &ServerError, server: &Server, destination: &Destination) -> Error {
    if error.code() != Some(ACCESS_DENIED) {
        return Error::of_connection(error, server);
    }
    let table = ddl::qualified(&destination.database, &destination.error_table);
    let user = &server.username;
    let grant = ddl::grant("ALTER DELETE", &destination.database, &destination.error_table, user);
    let message = format!("the user {user:?} may not delete from {table}: run `{grant}`");
    Error::new(reason::DESTINATION_ACCESS_DENIED, message).field("pipe.destination.credential")
}

/// Two looks: at how large the rows are, and at those that fit.
async fn page(server: &Server, rest: &str, values: &[&str], limit: u32) -> Result<(Vec<Record>, bool), Error> {
    #[derive(Deserialize)]
    struct Size {
        bytes: String,
    }
    let failed = |error| Error::of_connection(&error, server);
    let sql = format!(
        "SELECT toString(length(record_value) + length(error_msg)) AS bytes {rest} {}",
        limit.saturating_add(1)
    );
    let sizes: Vec<Size> = server.rows(&sql, values).await.map_err(failed)?;
    let (mut bytes, mut fitting) = (0u64, 0u32);
    for size in sizes.iter().take(limit as usize) {
        bytes = bytes.saturating_add(size.bytes.parse().map_err(|_| misshapen())?);
        if fitting > 0 && bytes > MAX_PAGE_BYTES {
            break;
        }
        fitting += 1;
    }
    if fitting == 0 {
        return Ok((Vec::new(), false));
    }
    let sql = format!(
        "SELECT toString(toUnixTimestamp64Milli(error_timestamp)) AS error_millis, \
         toValidUTF8(toString(error_type)) AS class, toValidUTF8(error_msg) AS message, \
         toValidUTF8(field_path) AS path, toValidUTF8(toString(shard_id)) AS shard, \
         toValidUTF8(sequence_number) AS number, toString(sub_sequence_number) AS sub_number, \
         toValidUTF8(record_key) AS key, toString(toUnixTimestamp64Milli(record_timestamp)) AS arrival_millis, \
         toValidUTF8(batch_id) AS batch, base64Encode(record_value) AS payload {rest} {fitting}"
    );
    let rows: Vec<Row> = server.rows(&sql, values).await.map_err(failed)?;
    let records: Vec<Record> = rows
        .into_iter()
        .map(|row| row.record().ok_or_else(misshapen))
        .collect::<Result<_, _>>()?;
    Ok((records, sizes.len() > fitting as usize))
}

#[derive(Deserialize)]
struct Row {
    error_millis: String,
    class: String,
    message: String,
    path: String,
    shard: String,
    number: String,
    sub_number: String,
    key: String,
    arrival_millis: String,
    batch: String,
    payload: String,
}

impl Row {
    fn record(self) -> Option<Record> {
        let payload = STANDARD.decode_to_vec(&self.payload).ok()?;
        Some(Record {
            error_millis: self.error_millis.parse().ok()?,
            error_type: self.class,
            cut_from_bytes: cut_from(&self.message, payload.len()),
            message: self.message,
            field_path: self.path,
            shard_id: self.shard,
            sequence_number: self.number,
            sub_sequence_number: self.sub_number.parse().ok()?,
            partition_key: self.key,
            arrival_millis: self.arrival_millis.parse().ok()?,
            batch_id: self.batch,
            payload,
        })
    }
}

//! What a ClickHouse user can see: databases, tables, columns. For people who choose where a pipe writes; a pipe itself looks with
//! `schema`.
//!
//! Invariant: names of users are bound as values, never spliced.

use millrace_common::{clickhouse::DataType, reason};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Access, Client, Error, ddl, schema, within_deadline};

/// Databases of ClickHouse itself, which no pipe writes to.
const SYSTEM_DATABASES: &str = "('system', 'information_schema', 'INFORMATION_SCHEMA')";

/// A database.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Database {
    /// Name.
    pub name: String,
    /// Engine.
    pub engine: String,
    /// What its owner says of it.
    pub comment: String,
}

/// A table or a view.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TableSummary {
    /// Name.
    pub name: String,
    /// Engine.
    pub engine: String,
    /// Rows in digits, if the engine knows them.
    pub rows: Option<String>,
    /// Bytes in digits, if the engine knows them.
    pub bytes: Option<String>,
    /// What its owner says of it.
    pub comment: String,
}

/// Bytes of rows after which a sample ends, and most of one row: together below the 4 MiB that clients take.
const MAX_SAMPLE_BYTES: usize = 1024 * 1024;
const MAX_ROW_BYTES: usize = 1024 * 1024;

/// Some rows of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampledRows {
    /// JSON objects, as ClickHouse writes them.
    pub rows: Vec<String>,
    /// Rows that are left out because they are too large.
    pub omitted: u32,
}

/// A table with its columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Engine.
    pub engine: String,
    /// Expression of ORDER BY.
    pub sorting_key: String,
    /// Expression of PARTITION BY.
    pub partition_key: String,
    /// In the order of the table.
    pub columns: Vec<Column>,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Column {
    /// Name.
    pub name: String,
    /// Type.
    #[serde(rename = "type")]
    pub data_type: String,
    /// Empty, `DEFAULT`, `MATERIALIZED`, `ALIAS` or `EPHEMERAL`.
    pub default_kind: String,
    /// The expression.
    pub default_expression: String,
    /// What its owner says of it.
    pub comment: String,
}

impl Column {
    /// Whether a pipe can fill it.
    ///
    /// # Errors
    /// Why not.
    pub fn insertable(&self) -> Result<(), String> {
        if matches!(self.default_kind.as_str(), "MATERIALIZED" | "ALIAS") {
            return Err(format!("is {}: ClickHouse computes it", self.default_kind));
        }
        match self.data_type.parse::<DataType>() {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("has a type that Millrace cannot fill: {error}")),
        }
    }
}

impl Client {
    /// At most `limit` databases whose names come after `after`, in name order.
    ///
    /// # Errors
    /// If they cannot be looked at.
    pub async fn databases(&self, access: &Access, after: &str, limit: u32) -> Result<Vec<Database>, Error> {
        let server = self.server(access);
        let looking = async {
            schema::connect(&server).await?;
            let sql = format!(
                "SELECT name, engine, comment FROM system.databases WHERE name > ? AND name NOT IN {SYSTEM_DATABASES} \
                 ORDER BY name LIMIT {limit}"
            );
            server
                .rows(&sql, &[after])
                .await
                .map_err(|error| Error::of_connection(&error, &server))
        };
        within_deadline(access, looking).await
    }

    /// At most `limit` tables of a database whose names come after `after`, in name order.
    ///
    /// # Errors
    /// If they cannot be looked at, or there is no such database.
    pub async fn tables(
        &self,
        access: &Access,
        database: &str,
        after: &str,
        limit: u32,
    ) -> Result<Vec<TableSummary>, Error> {
        let server = self.server(access);
        let looking = async {
            schema::connect(&server).await?;
            schema::check_database(&server, database).await?;
            let sql = format!(
                "SELECT name, engine, toString(total_rows) AS rows, toString(total_bytes) AS bytes, comment \
                 FROM system.tables WHERE database = ? AND name > ? AND NOT is_temporary ORDER BY name LIMIT {limit}"
            );
            server
                .rows(&sql, &[database, after])
                .await
                .map_err(|error| Error::of_connection(&error, &server))
        };
        within_deadline(access, looking).await
    }

    /// At most `limit` rows of a table, in no order that means anything.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn sample_rows(
        &self,
        access: &Access,
        database: &str,
        table: &str,
        limit: u32,
    ) -> Result<SampledRows, Error> {
        let server = self.server(access);
        let looking = async {
            // Row by row, so that many large ones end the answer and not the memory that it takes.
            let sql = format!(
                "SELECT * FROM {} LIMIT {limit} SETTINGS max_block_size = 1, max_threads = 1, \
                 max_result_bytes = {MAX_SAMPLE_BYTES}, result_overflow_mode = 'break', \
                 output_format_json_validate_utf8 = 1, output_format_json_quote_64bit_integers = 0",
                ddl::qualified(database, table).replace('?', "??")
            );
            server
                .rows::<Box<RawValue>>(&sql, &[])
                .await
                .map_err(|error| Error::of_connection(&error, &server))
        };
        let rows = within_deadline(access, looking).await?;
        let found = rows.len();
        let rows: Vec<String> = rows
            .into_iter()
            .map(|row| String::from(Box::<str>::from(row)))
            .filter(|row| row.len() <= MAX_ROW_BYTES)
            .collect();
        Ok(SampledRows {
            omitted: u32::try_from(found - rows.len()).unwrap_or(u32::MAX),
            rows,
        })
    }

    /// A table with its columns.
    ///
    /// # Errors
    /// If it cannot be looked at, or there is no such table.
    pub async fn describe(&self, access: &Access, database: &str, table: &str) -> Result<Described, Error> {
        #[derive(Deserialize)]
        struct Row {
            engine: String,
            sorting_key: String,
            partition_key: String,
        }
        let server = self.server(access);
        let looking = async {
            let failed = |error| Error::of_connection(&error, &server);
            schema::connect(&server).await?;
            schema::check_database(&server, database).await?;
            let tables = "SELECT engine, sorting_key, partition_key FROM system.tables WHERE database = ? AND name = ?";
            let rows: Vec<Row> = server.rows(tables, &[database, table]).await.map_err(failed)?;
            let Some(row) = rows.into_iter().next() else {
                let message = format!(
                    "there is no table {} that this user can see: create it, grant INSERT on it, or choose another",
                    ddl::qualified(database, table)
                );
                return Err(Error::new(reason::DESTINATION_TABLE_NOT_FOUND, message).field("pipe.destination.table"));
            };
            let columns = "SELECT name, type, default_kind, default_expression, comment FROM system.columns \
                           WHERE database = ? AND table = ? ORDER BY position";
            let columns = server.rows(columns, &[database, table]).await.map_err(failed)?;
            Ok(Described {
                engine: row.engine,
                sorting_key: row.sorting_key,
                partition_key: row.partition_key,
                columns,
            })
        };
        within_deadline(access, looking).await
    }
}

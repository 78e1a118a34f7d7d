//! What is there: connection, database, tables, columns, rights. Reads `system.databases`, `system.tables` and
//! `system.columns`, which every user may read as far as its grants reach.

use millrace_common::{
    clickhouse::{DataType, ERROR_TABLE_COLUMNS, quote_identifier},
    error::FieldViolation,
    pipe::{Destination, TableDefinition},
    reason,
};
use serde::Deserialize;

use super::{Error, client::Server, client::ServerError, ddl};

/// ACCESS_DENIED.
const ACCESS_DENIED: u32 = 497;
/// Longest statement that an error repeats; a wide table's would not fit into an answer's trailers.
const SHOWN_STATEMENT_BYTES: usize = 1_200;

/// A table as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) database: String,
    pub(super) name: String,
    /// False for one that a dry run would make.
    pub(super) exists: bool,
    pub(super) engine: String,
    /// Engine with its arguments, keys and settings.
    pub(super) engine_full: String,
    /// Expression by which it is partitioned; empty if it is not.
    pub(super) partition_key: String,
    /// Expressions by which it is ordered; empty if it is not.
    pub(super) sorting_key: String,
    /// Materialized views that read what is inserted, as (database, name).
    pub(super) views: Vec<(String, String)>,
    pub(super) columns: Vec<TableColumn>,
}

/// A column as it is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct TableColumn {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) data_type: String,
    /// Empty, `DEFAULT`, `MATERIALIZED`, `ALIAS` or `EPHEMERAL`.
    pub(super) default_kind: String,
}

impl Table {
    /// The table that a dry run would make.
    pub(super) fn planned(destination: &Destination) -> Self {
        let managed = destination.managed.as_ref();
        let engine = managed.map_or_else(|| "MergeTree".to_owned(), ddl::engine);
        let replicated = managed.is_some_and(|definition| definition.replicated);
        let spelled = |text: &str| {
            text.parse::<DataType>()
                .map_or_else(|_| text.to_owned(), |parsed| parsed.to_string())
        };
        let columns = destination.columns.iter().map(|column| TableColumn {
            name: column.name.clone(),
            data_type: spelled(&column.data_type),
            default_kind: String::new(),
        });
        Table {
            database: destination.database.clone(),
            name: destination.table.clone(),
            exists: false,
            engine_full: format!("{engine} SETTINGS {}", ddl::windows(replicated)),
            engine: engine.split('(').next().unwrap_or_default().to_owned(),
            partition_key: destination
                .managed
                .as_ref()
                .and_then(|definition| definition.partition_by.as_ref())
                .map(|by| by.column.clone())
                .unwrap_or_default(),
            sorting_key: managed
                .map(|definition| definition.sorting_key.join(", "))
                .unwrap_or_default(),
            views: Vec::new(),
            columns: columns.collect(),
        }
    }
}

/// Checks that the server answers this user, and returns its time zone.
pub(super) async fn connect(server: &Server) -> Result<String, Error> {
    #[derive(Deserialize)]
    struct Zone {
        zone: String,
    }
    let rows: Vec<Zone> = server
        .rows("SELECT serverTimezone() AS zone", &[])
        .await
        .map_err(|error| Error::of_connection(&error, server))?;
    match rows.into_iter().next() {
        Some(Zone { zone }) => Ok(zone),
        None => Err(Error::of_connection(
            &ServerError::Foreign("an empty answer".to_owned()),
            server,
        )),
    }
}

pub(super) async fn check_database(server: &Server, database: &str) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Row {
        #[allow(dead_code, reason = "that it is there is all that counts")]
        name: String,
    }
    let rows: Vec<Row> = server
        .rows("SELECT name FROM system.databases WHERE name = ?", &[database])
        .await
        .map_err(|error| Error::of_connection(&error, server))?;
    if rows.is_empty() {
        return Err(Error::new(
            reason::DESTINATION_DATABASE_NOT_FOUND,
            format!(
                "there is no database {:?}, or the user {:?} has no right on anything in it: create it, or grant INSERT on the table",
                database, server.username
            ),
        )
        .field("pipe.destination.database"));
    }
    Ok(())
}

pub(super) async fn read_table(server: &Server, database: &str, name: &str) -> Result<Option<Table>, Error> {
    #[derive(Deserialize)]
    struct Row {
        engine: String,
        engine_full: String,
        partition_key: String,
        sorting_key: String,
        dependencies_database: Vec<String>,
        dependencies_table: Vec<String>,
    }
    let failed = |error| Error::of_connection(&error, server);
    let tables = "SELECT engine, engine_full, partition_key, sorting_key, dependencies_database, dependencies_table \
                  FROM system.tables WHERE database = ? AND name = ?";
    let rows: Vec<Row> = server.rows(tables, &[database, name]).await.map_err(failed)?;
    let Some(row) = rows.into_iter().next() else {
        return Ok(None);
    };
    let columns =
        "SELECT name, type, default_kind FROM system.columns WHERE database = ? AND table = ? ORDER BY position";
    let columns: Vec<TableColumn> = server.rows(columns, &[database, name]).await.map_err(failed)?;
    Ok(Some(Table {
        database: database.to_owned(),
        name: name.to_owned(),
        exists: true,
        engine: row.engine,
        engine_full: row.engine_full,
        partition_key: row.partition_key,
        sorting_key: row.sorting_key,
        views: row
            .dependencies_database
            .into_iter()
            .zip(row.dependencies_table)
            .collect(),
        columns,
    }))
}

pub(super) fn table_not_found(destination: &Destination) -> Error {
    Error::new(
        reason::DESTINATION_TABLE_NOT_FOUND,
        format!(
            "there is no table {} that this user can see: create it, grant INSERT on it, or set managed_table to have it created",
            ddl::qualified(&destination.database, &destination.table)
        ),
    )
    .field("pipe.destination.table")
}

/// A managed table that exists already must be the one that the pipe describes.
pub(super) fn check_managed(destination: &Destination, table: &Table) -> Result<(), Error> {
    let mut fields = Vec::new();
    for (index, column) in destination.columns.iter().enumerate() {
        let path = format!("pipe.destination.columns[{index}]");
        match table.columns.iter().find(|found| found.name == column.name) {
            None => fields.push(violation(
                path,
                format!("{:?} is not in the table that exists", column.name),
            )),
            Some(found) if !same_type(&found.data_type, &column.data_type) => {
                let what = format!(
                    "{:?} is {} in the table that exists, not {}",
                    column.name, found.data_type, column.data_type
                );
                fields.push(violation(path, what));
            }
            Some(_) => {}
        }
    }
    if let Some(definition) = &destination.managed {
        fields.extend(other_shape(definition, table));
    }
    if fields.is_empty() {
        return Ok(());
    }
    let name = ddl::qualified(&destination.database, &destination.table);
    Err(Error {
        fields,
        ..Error::new(
            reason::DESTINATION_SCHEMA_CHANGED,
            format!(
                "the table {name} exists with another shape: name another table, change this one, or set managed_table to false"
            ),
        )
    })
}

/// What an existing table is instead of what was asked for: rows would be kept, replaced or added up in another way.
fn other_shape(definition: &TableDefinition, table: &Table) -> Vec<FieldViolation> {
    let mut fields = Vec::new();
    let field = |name: &str| format!("pipe.destination.table_definition.{name}");
    let (wanted, found) = (bare(&ddl::engine(definition)), engine_of(&table.engine_full));
    // Some servers and databases make a Replicated or Shared table of every one.
    let wanted = wanted.strip_prefix("Replicated").unwrap_or(&wanted);
    if !table.engine_full.is_empty() && found != wanted {
        let what = format!("the table that exists is {found}, not {wanted}");
        fields.push(violation(field("engine"), what));
    }
    let (wanted, found) = (bare(&definition.sorting_key.join(",")), key_of(&table.sorting_key));
    if found != wanted {
        let what = format!("the table that exists is ordered by ({found}), not ({wanted})");
        fields.push(violation(field("sorting_key"), what));
    }
    fields
}

/// The engine with its arguments, without what makes it a Replicated or Shared one.
fn engine_of(engine_full: &str) -> String {
    let end = [" PARTITION BY ", " PRIMARY KEY ", " ORDER BY ", " TTL ", " SETTINGS "]
        .iter()
        .filter_map(|clause| engine_full.find(clause))
        .min();
    let engine = &engine_full[..end.unwrap_or(engine_full.len())];
    let Some(plain) = engine
        .strip_prefix("Replicated")
        .or_else(|| engine.strip_prefix("Shared"))
    else {
        return bare(engine);
    };
    let Some((name, arguments)) = plain.split_once('(') else {
        return bare(plain);
    };
    // Path and replica are strings, and the first two arguments.
    let mut rest = arguments.strip_suffix(')').unwrap_or(arguments);
    while let Some(text) = rest.strip_prefix('\'') {
        rest = text
            .split_once('\'')
            .map_or("", |(_, rest)| rest)
            .trim_start_matches([',', ' ']);
    }
    bare(&if rest.is_empty() {
        name.to_owned()
    } else {
        format!("{name}({rest})")
    })
}

/// A sorting key without the brackets that ClickHouse keeps around a single column.
fn key_of(sorting_key: &str) -> String {
    let key = bare(sorting_key);
    match key.strip_prefix('(').and_then(|key| key.strip_suffix(')')) {
        Some(inner) => inner.to_owned(),
        None if key == "tuple()" => String::new(),
        None => key,
    }
}

/// As it is without quotes and spaces: ClickHouse quotes where it has to, and writes a list of one without its brackets.
fn bare(text: &str) -> String {
    let text: String = text.chars().filter(|c| !matches!(c, '`' | ' ' | '\\')).collect();
    match text.split_once("((") {
        Some((name, rest)) if !rest.contains(',') => format!("{name}({}", rest.replacen("))", ")", 1)),
        _ => text,
    }
}

/// An error table that exists already must take what the worker writes there.
pub(super) fn check_error_table(destination: &Destination, table: &Table) -> Result<(), Error> {
    let wrong = |(name, data_type): &(&str, &str)| {
        let found = table.columns.iter().find(|column| column.name == *name);
        match found {
            None => Some(format!("{name} {data_type} is missing")),
            Some(found) if !same_type(&found.data_type, data_type) => {
                Some(format!("{name} is {}, not {data_type}", found.data_type))
            }
            Some(found) if matches!(found.default_kind.as_str(), "MATERIALIZED" | "ALIAS") => {
                Some(format!("{name} cannot be inserted into"))
            }
            Some(_) => None,
        }
    };
    let wrong: Vec<String> = ERROR_TABLE_COLUMNS.iter().filter_map(wrong).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    let name = ddl::qualified(&destination.database, &destination.error_table);
    Err(Error::new(
        reason::DESTINATION_SCHEMA_CHANGED,
        format!(
            "the error table {name} does not fit: {}; rename it, or name another one",
            wrong.join(", ")
        ),
    )
    .field("pipe.destination.error_table"))
}

/// Asks ClickHouse whether the user may insert, by an INSERT without rows: it is checked like any other and writes
/// nothing, on every version.
pub(super) async fn check_insert(
    server: &Server,
    destination: &Destination,
    table: &str,
    columns: &[&str],
) -> Result<(), Error> {
    let names: Vec<String> = columns.iter().map(|name| quote_identifier(name)).collect();
    let qualified = ddl::qualified(&destination.database, table);
    let statement = format!("INSERT INTO {qualified} ({}) FORMAT JSONEachRow\n", names.join(", "));
    let Err(error) = server.insert_nothing(&statement).await else {
        return Ok(());
    };
    if error.code() != Some(ACCESS_DENIED) {
        return Err(Error::of_connection(&error, server));
    }
    let grant = ddl::grant("INSERT", &destination.database, table, &server.username);
    Err(Error {
        code: error.code(),
        ..Error::new(
            reason::DESTINATION_ACCESS_DENIED,
            format!(
                "the user {:?} may not insert into {qualified}: run `{grant}`",
                server.username
            ),
        )
        .field("pipe.destination.credential")
    })
}

/// Why a table could not be made, and what a person can run instead.
pub(super) fn create_failed(
    error: &ServerError,
    server: &Server,
    qualified: &str,
    field: &str,
    statement: &str,
) -> Error {
    match error {
        ServerError::Exception {
            code: ACCESS_DENIED,
            message,
        } => {
            let statement = if statement.len() <= SHOWN_STATEMENT_BYTES {
                format!(", or run this yourself: {statement}")
            } else {
                ", or create it yourself".to_owned()
            };
            let message = format!(
                "the user {:?} may not create the table {qualified} ({message}): grant it that{statement}",
                server.username
            );
            let mut denied = Error::new(reason::DESTINATION_ACCESS_DENIED, message).field(field);
            denied.code = Some(ACCESS_DENIED);
            denied
        }
        ServerError::Exception { code, message } => {
            let general = Error::of_exception(*code, message, server);
            if general.reason != reason::DESTINATION_INSERT_FAILED {
                return general;
            }
            // What ClickHouse itself has against the definition: a type it does not know, a key it does not allow.
            let message = format!("ClickHouse does not create the table {qualified} (code {code}): {message}");
            Error {
                code: Some(*code),
                ..Error::new(reason::DESTINATION_TYPE_UNSUPPORTED, message).field(field)
            }
        }
        other => Error::of_connection(other, server),
    }
}

pub(super) fn violation(field: impl Into<String>, description: impl Into<String>) -> FieldViolation {
    FieldViolation {
        field: field.into(),
        description: description.into(),
    }
}

/// Whether two spellings mean one type: ClickHouse orders the values of enums and prints defaults in its own way.
pub(super) fn same_type(a: &str, b: &str) -> bool {
    fn normal(data_type: DataType) -> DataType {
        let inner = |inner: Box<DataType>| Box::new(normal(*inner));
        match data_type {
            DataType::Enum8(mut values) => {
                values.sort_by_key(|(_, value)| *value);
                DataType::Enum8(values)
            }
            DataType::Enum16(mut values) => {
                values.sort_by_key(|(_, value)| *value);
                DataType::Enum16(values)
            }
            DataType::Nullable(of) => DataType::Nullable(inner(of)),
            DataType::LowCardinality(of) => DataType::LowCardinality(inner(of)),
            DataType::Array(of) => DataType::Array(inner(of)),
            DataType::Map(key, value) => DataType::Map(inner(key), inner(value)),
            other => other,
        }
    }
    match (a.parse::<DataType>(), b.parse::<DataType>()) {
        (Ok(a), Ok(b)) => normal(a) == normal(b),
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_told_apart_however_they_are_printed() {
        for (full, engine) in [
            ("MergeTree ORDER BY id SETTINGS index_granularity = 8192", "MergeTree"),
            (
                "ReplacingMergeTree(ts) PARTITION BY d ORDER BY id",
                "ReplacingMergeTree(ts)",
            ),
            (
                "ReplicatedReplacingMergeTree('/clickhouse/tables/{uuid}/{shard}', '{replica}', `t s`) ORDER BY id",
                "ReplacingMergeTree(ts)",
            ),
            (
                "SharedMergeTree('/clickhouse/tables/{uuid}/{shard}', '{replica}') ORDER BY id",
                "MergeTree",
            ),
            ("SummingMergeTree((a, b)) ORDER BY id", "SummingMergeTree((a,b))"),
            ("SummingMergeTree(a) ORDER BY id", "SummingMergeTree(a)"),
            ("Null", "Null"),
        ] {
            assert_eq!(engine_of(full), engine, "{full}");
        }
        assert_eq!(bare("SummingMergeTree((`a`))"), "SummingMergeTree(a)");
        for (printed, key) in [
            ("(id)", "id"),
            ("id, `t s`", "id,ts"),
            ("tuple()", ""),
            ("", ""),
            ("id", "id"),
        ] {
            assert_eq!(key_of(printed), key, "{printed}");
        }
    }

    #[test]
    fn spellings_of_one_type() {
        assert!(same_type("Decimal(18, 3)", "Decimal64(3)"));
        assert!(same_type(
            "Array(Enum8('a' = 1, 'b' = 2))",
            "Array(Enum8('b' = 2, 'a' = 1))"
        ));
        assert!(same_type("DateTime64(3, 'UTC')", "DateTime64(3,'UTC')"));
        assert!(!same_type("DateTime64(3, 'UTC')", "DateTime64(3)"));
        assert!(!same_type("UInt8", "UInt16"));
    }
}

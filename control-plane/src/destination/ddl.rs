//! Statements that make tables. Types come from the parsed tree, names are quoted, expressions are of a closed grammar.

use std::fmt::Write as _;

use millrace_common::{
    clickhouse::{DataType, ERROR_TABLE_COLUMNS, quote_identifier},
    pipe::{Destination, TableDefinition, TableEngine},
    reason,
};

use super::Error;

/// Tokens of so many inserts are remembered per table, one for each partition that an insert touches. An insert is
/// repeated within seconds or, after an outage, before any other one, so ten thousand leave a wide margin; each costs
/// some tens of bytes.
pub(super) const DEDUPLICATION_WINDOW: u32 = 10_000;
/// How long rejected records are kept.
const ERROR_TABLE_TTL_DAYS: u32 = 7;

/// `database`.`table`, quoted.
pub(super) fn qualified(database: &str, table: &str) -> String {
    format!("{}.{}", quote_identifier(database), quote_identifier(table))
}

/// CREATE TABLE of a managed table.
pub(super) fn create_table(destination: &Destination, definition: &TableDefinition) -> Result<String, Error> {
    let mut columns = Vec::with_capacity(destination.columns.len());
    for (index, column) in destination.columns.iter().enumerate() {
        let data_type: DataType = column.data_type.parse().map_err(|error| {
            Error::new(
                reason::DESTINATION_TYPE_UNSUPPORTED,
                format!("the type of {:?} {error}", column.name),
            )
            .field(format!("pipe.destination.columns[{index}].type"))
        })?;
        columns.push(format!("{} {data_type}", quote_identifier(&column.name)));
    }
    let engine = match definition.engine {
        TableEngine::MergeTree => "MergeTree",
    };
    let partition = definition.partition_by.as_ref().map(|by| {
        let column = quote_identifier(&by.column);
        match &by.function {
            Some(function) => format!(" PARTITION BY {function}({column})"),
            None => format!(" PARTITION BY {column}"),
        }
    });
    let order = match definition.sorting_key.as_slice() {
        [] => "tuple()".to_owned(),
        key => format!(
            "({})",
            key.iter()
                .map(|column| quote_identifier(column))
                .collect::<Vec<_>>()
                .join(", ")
        ),
    };
    Ok(format!(
        "CREATE TABLE IF NOT EXISTS {} ({}) ENGINE = {engine}{} ORDER BY {order} SETTINGS \
         non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}",
        qualified(&destination.database, &destination.table),
        columns.join(", "),
        partition.unwrap_or_default(),
    ))
}

/// CREATE TABLE of the error table. What is kept for how long counts from when a row was written, which the server notes
/// itself: the times in the rows are the records' own, and a replayed record may be older than the table keeps anything.
pub(super) fn create_error_table(destination: &Destination) -> String {
    let mut columns = String::new();
    for (index, (name, data_type)) in ERROR_TABLE_COLUMNS.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(columns, "{comma}{} {data_type}", quote_identifier(name));
    }
    format!(
        "CREATE TABLE IF NOT EXISTS {} ({columns}, `inserted_at` DateTime DEFAULT now()) ENGINE = MergeTree \
         ORDER BY error_timestamp TTL inserted_at + INTERVAL {ERROR_TABLE_TTL_DAYS} DAY SETTINGS \
         non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}",
        qualified(&destination.database, &destination.error_table),
    )
}

/// The ALTER that gives a table a deduplication window of at least so many blocks.
pub(super) fn set_window(database: &str, table: &str, setting: &str, least: u64) -> String {
    format!(
        "ALTER TABLE {} MODIFY SETTING {setting} = {}",
        qualified(database, table),
        least.max(u64::from(DEDUPLICATION_WINDOW))
    )
}

/// The GRANT that lets a user insert.
pub(super) fn grant_insert(database: &str, table: &str, user: &str) -> String {
    format!(
        "GRANT INSERT ON {} TO {}",
        qualified(database, table),
        quote_identifier(user)
    )
}

//! The destination of a pipe.

use std::collections::{BTreeMap, BTreeSet};

use millrace_common::{
    clickhouse::DataType,
    pipe::{Column, Destination, TableDefinition, TableEngine},
};
use millrace_proto::api::v1 as proto;

use super::{
    Context, Violations, credential_name,
    names::{self, MAX_IDENTIFIER_BYTES},
    partition_by, quoted, unknown_enum,
};

/// Most columns. A ClickHouse table of more than a few thousand columns does not work well either.
pub(super) const MAX_COLUMNS: usize = 4_096;
/// Most columns of a sorting key.
const MAX_SORTING_KEY: usize = 64;
/// Longest type that a user writes. The longest sensible ones are enums.
const MAX_TYPE_BYTES: usize = 65_536;
/// What follows the table's name in the default name of its error table.
const ERROR_TABLE_SUFFIX: &str = "_millrace_error";
const EXAMPLE_ENDPOINT: &str = "https://clickhouse.example.com:8443";

pub(super) fn destination(
    destination: Option<&proto::Destination>,
    context: Context<'_>,
    violations: &mut Violations,
) -> Option<Destination> {
    let Some(given) = destination else {
        violations.add("pipe.destination", "is required");
        return None;
    };
    let endpoint = match context.endpoints.parse(&given.endpoint, EXAMPLE_ENDPOINT) {
        Ok(endpoint) => Some(endpoint),
        Err(error) => {
            violations.add("pipe.destination.endpoint", error.to_string());
            None
        }
    };
    let credential = credential_name(
        &given.credential,
        "pipe.destination.credential",
        context.project,
        violations,
    );
    let database = if given.database.is_empty() {
        "default"
    } else {
        given.database.as_str()
    };
    check(names::database(database), "pipe.destination.database", violations);
    check(names::identifier(&given.table), "pipe.destination.table", violations);
    let error_table = error_table(given, violations);
    let columns = columns(given, violations);
    let managed = managed(given, &columns, violations);
    Some(Destination {
        endpoint: endpoint?,
        credential: credential?,
        database: database.to_owned(),
        table: given.table.clone(),
        error_table,
        managed,
        columns,
    })
}

pub(super) fn check(result: Result<(), String>, field: &str, violations: &mut Violations) {
    if let Err(what) = result {
        violations.add(field, what);
    }
}

fn error_table(given: &proto::Destination, violations: &mut Violations) -> String {
    let field = "pipe.destination.error_table";
    if given.error_table.is_empty() {
        let name = format!("{}{ERROR_TABLE_SUFFIX}", given.table);
        if name.len() > MAX_IDENTIFIER_BYTES && given.table.len() <= MAX_IDENTIFIER_BYTES {
            violations.add(field, "the default name would be too long: give one");
        }
        return name;
    }
    check(names::identifier(&given.error_table), field, violations);
    if given.error_table == given.table {
        violations.add(field, "must not be the destination table itself");
    }
    given.error_table.clone()
}

fn columns(given: &proto::Destination, violations: &mut Violations) -> Vec<Column> {
    if given.columns.len() > MAX_COLUMNS {
        violations.add(
            "pipe.destination.columns",
            format!("has {} entries; at most {MAX_COLUMNS} are allowed", given.columns.len()),
        );
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    for (index, column) in given.columns.iter().enumerate() {
        check(
            names::identifier(&column.name),
            &format!("pipe.destination.columns[{index}].name"),
            violations,
        );
        if !seen.insert(column.name.as_str()) {
            let what = format!("{} is named twice", quoted(&column.name));
            violations.add(format!("pipe.destination.columns[{index}].name"), what);
        }
        let field = || format!("pipe.destination.columns[{index}].type");
        match column.r#type.as_str() {
            "" if given.managed_table => violations.add(field(), "is required for a managed table"),
            "" => {}
            text => {
                if let Err(what) = data_type(text) {
                    violations.add(field(), what);
                }
            }
        }
    }
    let column = |column: &proto::Column| Column {
        name: column.name.clone(),
        data_type: column.r#type.clone(),
    };
    given.columns.iter().map(column).collect()
}

/// Parses the type that a user gives to a column.
fn data_type(text: &str) -> Result<DataType, String> {
    if text.len() > MAX_TYPE_BYTES {
        return Err(format!(
            "is {} bytes long; at most {MAX_TYPE_BYTES} are allowed",
            text.len()
        ));
    }
    text.parse()
        .map_err(|error| format!("{} is not a type that Millrace can fill: {error}", quoted(text)))
}

fn managed(given: &proto::Destination, columns: &[Column], violations: &mut Violations) -> Option<TableDefinition> {
    let field = "pipe.destination.table_definition";
    if !given.managed_table {
        if given.table_definition.is_some() {
            violations.add(
                field,
                "belongs to managed tables only: leave it out, or set managed_table",
            );
        }
        return None;
    }
    if columns.is_empty() && given.columns.is_empty() {
        violations.add("pipe.destination.columns", "a managed table needs its columns");
    }
    let definition = given.table_definition.clone().unwrap_or_default();
    let engine = definition.engine.unwrap_or_default();
    if proto::TableEngineType::try_from(engine.r#type).is_err() {
        unknown_enum(
            &format!("{field}.engine.type"),
            engine.r#type,
            "TABLE_ENGINE_TYPE_MERGE_TREE",
            violations,
        );
    }
    let types: BTreeMap<&str, Option<DataType>> = columns
        .iter()
        .map(|column| (column.name.as_str(), column.data_type.parse().ok()))
        .collect();
    sorting_key(&definition.sorting_key, &types, violations);
    let partition_by = match partition_by::parse(&definition.partition_by) {
        Ok(partition_by) => {
            if let Some(parsed) = &partition_by {
                check_key_column(&parsed.column, &types, &format!("{field}.partition_by"), violations);
            }
            partition_by
        }
        Err(what) => {
            violations.add(format!("{field}.partition_by"), what);
            None
        }
    };
    Some(TableDefinition {
        engine: TableEngine::MergeTree,
        sorting_key: definition.sorting_key,
        partition_by,
    })
}

fn sorting_key(key: &[String], types: &BTreeMap<&str, Option<DataType>>, violations: &mut Violations) {
    let field = "pipe.destination.table_definition.sorting_key";
    if key.len() > MAX_SORTING_KEY {
        violations.add(
            field,
            format!("has {} columns; at most {MAX_SORTING_KEY} are allowed", key.len()),
        );
        return;
    }
    let mut seen = BTreeSet::new();
    for (index, column) in key.iter().enumerate() {
        let field = format!("{field}[{index}]");
        if !seen.insert(column) {
            violations.add(&field, format!("{} is named twice", quoted(column)));
        }
        check_key_column(column, types, &field, violations);
    }
}

/// A key is made of the table's own columns, and not of those that may be NULL.
fn check_key_column(column: &str, types: &BTreeMap<&str, Option<DataType>>, field: &str, violations: &mut Violations) {
    let nullable = |data_type: &DataType| match data_type {
        DataType::Nullable(_) => true,
        DataType::LowCardinality(inner) => matches!(**inner, DataType::Nullable(_)),
        _ => false,
    };
    match types.get(column) {
        None => violations.add(
            field,
            format!(
                "{} is not a column in pipe.destination.columns; expressions are not supported",
                quoted(column)
            ),
        ),
        Some(Some(data_type)) if nullable(data_type) => {
            violations.add(
                field,
                format!(
                    "{} is Nullable, which ClickHouse does not allow in a key",
                    quoted(column)
                ),
            );
        }
        Some(_) => {}
    }
}

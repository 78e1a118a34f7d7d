//! The destination of a pipe.

use std::collections::BTreeSet;

use millrace_common::{
    clickhouse::DataType,
    pipe::{Column, Destination},
};
use millrace_proto::api::v1 as proto;

use super::{
    Context, Violations, credential_name,
    names::{self, MAX_IDENTIFIER_BYTES},
    quoted, table,
};

/// Most columns. A ClickHouse table of more than a few thousand columns does not work well either.
pub(super) const MAX_COLUMNS: usize = 4_096;
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
    let managed = table::managed(given, &columns, violations);
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

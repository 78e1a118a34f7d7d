//! Statements that make tables. Types come from the parsed tree, names are quoted, expressions are of a closed grammar.

use std::fmt::Write as _;

use millrace_common::{
    clickhouse::{DataType, ERROR_TABLE_COLUMNS, quote_identifier, quote_string},
    pipe::{Destination, TableDefinition, TableEngine},
    reason,
};

use super::Error;

/// Tokens of so many inserts are remembered per table, one for each partition that an insert touches. An insert is
/// repeated within seconds or, after an outage, before any other one, so ten thousand leave a wide margin; each costs
/// some tens of bytes.
pub(super) const DEDUPLICATION_WINDOW: u32 = 10_000;
/// How long a replicated table remembers them: a week. The default of an hour is less than an outage may take.
const DEDUPLICATION_SECONDS: u32 = 604_800;
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
    let (name, cluster) = (
        qualified(&destination.database, &destination.table),
        on_cluster(definition),
    );
    let (columns, engine) = (columns.join(", "), engine(definition));
    if definition.engine == TableEngine::Null {
        return Ok(format!(
            "CREATE TABLE IF NOT EXISTS {name}{cluster} ({columns}) ENGINE = {engine}"
        ));
    }
    let partition = definition.partition_by.as_ref().map(|by| {
        let column = quote_identifier(&by.column);
        match &by.function {
            Some(function) => format!(" PARTITION BY {function}({column})"),
            None => format!(" PARTITION BY {column}"),
        }
    });
    let primary = match definition.primary_key.as_slice() {
        [] => String::new(),
        key => format!(" PRIMARY KEY ({})", quoted_list(key)),
    };
    let order = match definition.sorting_key.as_slice() {
        [] => "tuple()".to_owned(),
        key => format!("({})", quoted_list(key)),
    };
    // A DateTime whatever the column is: older servers take no other type.
    let ttl = definition.ttl.as_ref().map(|ttl| {
        let column = quote_identifier(&ttl.column);
        format!(" TTL toDateTime({column}) + INTERVAL {} SECOND", ttl.seconds)
    });
    let settings = definition.settings.iter().map(|(name, value)| {
        let value = value
            .parse::<u64>()
            .map_or_else(|_| quote_string(value), |number| number.to_string());
        format!(", {name} = {value}")
    });
    Ok(format!(
        "CREATE TABLE IF NOT EXISTS {name}{cluster} ({columns}) ENGINE = {engine}{}{primary} ORDER BY {order}{} SETTINGS {}{}",
        partition.unwrap_or_default(),
        ttl.unwrap_or_default(),
        windows(definition.replicated),
        settings.collect::<String>(),
    ))
}

fn quoted_list(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| quote_identifier(name)).collect();
    names.join(", ")
}

fn on_cluster(definition: &TableDefinition) -> String {
    let cluster = definition.cluster.as_deref().map(quote_identifier);
    cluster
        .map(|cluster| format!(" ON CLUSTER {cluster}"))
        .unwrap_or_default()
}

/// The engine of a managed table with its arguments. Replicated forms have the server's default path and replica.
pub(super) fn engine(definition: &TableDefinition) -> String {
    let replicated = if definition.replicated { "Replicated" } else { "" };
    match &definition.engine {
        TableEngine::MergeTree => format!("{replicated}MergeTree"),
        TableEngine::ReplacingMergeTree { version: None } => format!("{replicated}ReplacingMergeTree"),
        TableEngine::ReplacingMergeTree { version: Some(version) } => {
            format!("{replicated}ReplacingMergeTree({})", quote_identifier(version))
        }
        TableEngine::SummingMergeTree { columns } if columns.is_empty() => format!("{replicated}SummingMergeTree"),
        TableEngine::SummingMergeTree { columns } if columns.len() == 1 => {
            format!("{replicated}SummingMergeTree({})", quoted_list(columns))
        }
        TableEngine::SummingMergeTree { columns } => {
            format!("{replicated}SummingMergeTree(({}))", quoted_list(columns))
        }
        TableEngine::Null => "Null".to_owned(),
    }
}

/// The settings that make an engine remember inserts.
pub(super) fn windows(replicated: bool) -> String {
    if replicated {
        format!(
            "replicated_deduplication_window = {DEDUPLICATION_WINDOW}, \
             replicated_deduplication_window_seconds = {DEDUPLICATION_SECONDS}"
        )
    } else {
        format!("non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}")
    }
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
    // Where the table is replicated, an insert that is repeated may reach another replica, which has to know of it.
    let managed = destination.managed.as_ref();
    let replicated = managed.is_some_and(|definition| definition.replicated);
    format!(
        "CREATE TABLE IF NOT EXISTS {}{} ({columns}, `inserted_at` DateTime DEFAULT now()) ENGINE = {}MergeTree \
         ORDER BY error_timestamp TTL inserted_at + INTERVAL {ERROR_TABLE_TTL_DAYS} DAY SETTINGS {}",
        qualified(&destination.database, &destination.error_table),
        managed.map(on_cluster).unwrap_or_default(),
        if replicated { "Replicated" } else { "" },
        windows(replicated),
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

/// The GRANT that lets a user do something, such as `INSERT`, to a table.
pub(super) fn grant(right: &str, database: &str, table: &str, user: &str) -> String {
    format!(
        "GRANT {right} ON {} TO {}",
        qualified(database, table),
        quote_identifier(user)
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use millrace_common::pipe::{Column, PartitionBy, TableTtl};

    use super::*;

    fn destination(managed: Option<TableDefinition>) -> Destination {
        Destination {
            endpoint: "http://localhost".to_owned(),
            credential: "projects/p/credentials/c".parse().unwrap(),
            database: "d`b".to_owned(),
            table: "t".to_owned(),
            error_table: "t_errors".to_owned(),
            managed,
            columns: vec![Column {
                name: "at".to_owned(),
                data_type: "DateTime64(3,'UTC')".to_owned(),
            }],
        }
    }

    fn definition(engine: TableEngine) -> TableDefinition {
        TableDefinition {
            engine,
            sorting_key: vec!["a`b".to_owned(), "at".to_owned()],
            partition_by: None,
            primary_key: Vec::new(),
            ttl: None,
            settings: BTreeMap::new(),
            replicated: false,
            cluster: None,
        }
    }

    /// Replicated tables cannot be made without a Keeper, so what would be run is compared with what was run by hand.
    #[test]
    fn statements_of_replicated_tables() {
        let mut made = definition(TableEngine::ReplacingMergeTree {
            version: Some("at".to_owned()),
        });
        made.replicated = true;
        made.cluster = Some("c`1".to_owned());
        made.primary_key = vec!["a`b".to_owned()];
        made.partition_by = Some(PartitionBy {
            function: Some("toYYYYMM".to_owned()),
            column: "at".to_owned(),
        });
        made.ttl = Some(TableTtl {
            column: "at".to_owned(),
            seconds: 86_400,
        });
        made.settings = BTreeMap::from([
            ("index_granularity".to_owned(), "1024".to_owned()),
            ("storage_policy".to_owned(), "hot_cold".to_owned()),
        ]);
        let destination = destination(Some(made.clone()));
        assert_eq!(
            create_table(&destination, &made).unwrap(),
            r"CREATE TABLE IF NOT EXISTS `d\`b`.`t` ON CLUSTER `c\`1` (`at` DateTime64(3, 'UTC')) ENGINE = ReplicatedReplacingMergeTree(`at`) PARTITION BY toYYYYMM(`at`) PRIMARY KEY (`a\`b`) ORDER BY (`a\`b`, `at`) TTL toDateTime(`at`) + INTERVAL 86400 SECOND SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800, index_granularity = 1024, storage_policy = 'hot_cold'"
        );
        let errors = create_error_table(&destination);
        assert!(
            errors.contains("ON CLUSTER `c\\`1`") && errors.contains("ENGINE = ReplicatedMergeTree ORDER BY"),
            "{errors}"
        );
        assert!(errors.ends_with(&windows(true)), "{errors}");
    }

    #[test]
    fn engines_have_their_arguments() {
        let columns = vec!["a".to_owned(), "b)".to_owned()];
        for (kind, text) in [
            (TableEngine::MergeTree, "MergeTree"),
            (TableEngine::ReplacingMergeTree { version: None }, "ReplacingMergeTree"),
            (
                TableEngine::SummingMergeTree { columns: Vec::new() },
                "SummingMergeTree",
            ),
            (
                TableEngine::SummingMergeTree { columns },
                "SummingMergeTree((`a`, `b)`))",
            ),
            (TableEngine::Null, "Null"),
        ] {
            assert_eq!(engine(&definition(kind)), text);
        }
    }
}

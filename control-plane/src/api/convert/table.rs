//! The shape of a managed table: engine, keys, TTL and settings.

use std::collections::{BTreeMap, BTreeSet};

use millrace_common::{
    clickhouse::DataType,
    pipe::{Column, TableDefinition, TableEngine, TableTtl},
};
use millrace_proto::api::v1 as proto;

use super::{Violations, names, partition_by, quoted, span, unknown_enum};

const FIELD: &str = "pipe.destination.table_definition";
/// Most columns of a sorting key.
const MAX_SORTING_KEY: usize = 64;
/// Longest TTL: what is kept for longer is kept.
const MAX_TTL_SECONDS: u64 = 100 * 366 * 86_400;
/// Settings that a user may give, and that are numbers.
const NUMBERS: [&str; 12] = [
    "index_granularity",
    "index_granularity_bytes",
    "max_parts_in_total",
    "merge_max_block_size",
    "merge_with_ttl_timeout",
    "min_age_to_force_merge_seconds",
    "min_bytes_for_wide_part",
    "min_rows_for_wide_part",
    "old_parts_lifetime",
    "parts_to_delay_insert",
    "parts_to_throw_insert",
    "ttl_only_drop_parts",
];
/// The one that is a name.
const STORAGE_POLICY: &str = "storage_policy";
/// Longest name of a storage policy.
const MAX_POLICY_BYTES: usize = 64;

type Types<'a> = BTreeMap<&'a str, Option<DataType>>;

/// The definition; `None` of a table that exists.
pub(super) fn managed(
    given: &proto::Destination,
    columns: &[Column],
    violations: &mut Violations,
) -> Option<TableDefinition> {
    if !given.managed_table {
        if given.table_definition.is_some() {
            violations.add(
                FIELD,
                "belongs to managed tables only: leave it out, or set managed_table",
            );
        }
        return None;
    }
    if columns.is_empty() && given.columns.is_empty() {
        violations.add("pipe.destination.columns", "a managed table needs its columns");
    }
    let definition = given.table_definition.clone().unwrap_or_default();
    let types: Types<'_> = columns
        .iter()
        .map(|column| (column.name.as_str(), column.data_type.parse().ok()))
        .collect();
    let (engine, replicated) = engine(&definition, &types, violations);
    if engine == TableEngine::Null {
        nothing_to_sort(&definition, violations);
    }
    sorting_key(&definition.sorting_key, &types, violations);
    if !definition.sorting_key.starts_with(&definition.primary_key) {
        let what = "must be the first columns of sorting_key, in its order";
        violations.add(format!("{FIELD}.primary_key"), what);
    }
    let partition_by = match partition_by::parse(&definition.partition_by) {
        Ok(partition_by) => {
            if let Some(parsed) = &partition_by {
                check_key_column(&parsed.column, &types, &format!("{FIELD}.partition_by"), violations);
            }
            partition_by
        }
        Err(what) => {
            violations.add(format!("{FIELD}.partition_by"), what);
            None
        }
    };
    if !definition.cluster.is_empty()
        && let Err(what) = names::identifier(&definition.cluster)
    {
        violations.add(format!("{FIELD}.cluster"), what);
    }
    Some(TableDefinition {
        engine,
        replicated,
        partition_by,
        ttl: ttl(definition.ttl.as_ref(), &types, violations),
        settings: settings(&definition.settings, violations),
        cluster: Some(definition.cluster).filter(|cluster| !cluster.is_empty()),
        sorting_key: definition.sorting_key,
        primary_key: definition.primary_key,
    })
}

/// The engine, and whether it is a Replicated form.
fn engine(definition: &proto::TableDefinition, types: &Types<'_>, violations: &mut Violations) -> (TableEngine, bool) {
    use proto::TableEngineType as Type;
    let given = definition.engine.clone().unwrap_or_default();
    let field = |name: &str| format!("{FIELD}.engine.{name}");
    let Ok(kind) = Type::try_from(given.r#type) else {
        unknown_enum(&field("type"), given.r#type, "TABLE_ENGINE_TYPE_MERGE_TREE", violations);
        return (TableEngine::MergeTree, false);
    };
    let replacing = matches!(kind, Type::ReplacingMergeTree | Type::ReplicatedReplacingMergeTree);
    let summing = matches!(kind, Type::SummingMergeTree | Type::ReplicatedSummingMergeTree);
    let version = given.version_column_id;
    if !version.is_empty() && !replacing {
        violations.add(
            field("version_column_id"),
            "belongs to the ReplacingMergeTree engines only",
        );
    } else if !version.is_empty() {
        check_version(&version, types, &field("version_column_id"), violations);
    }
    if !given.column_ids.is_empty() && !summing {
        violations.add(field("column_ids"), "belongs to the SummingMergeTree engines only");
    } else {
        check_summed(&given.column_ids, definition, types, violations);
    }
    let replicated = matches!(
        kind,
        Type::ReplicatedMergeTree | Type::ReplicatedReplacingMergeTree | Type::ReplicatedSummingMergeTree
    );
    let engine = match kind {
        Type::Unspecified | Type::MergeTree | Type::ReplicatedMergeTree => TableEngine::MergeTree,
        Type::ReplacingMergeTree | Type::ReplicatedReplacingMergeTree => TableEngine::ReplacingMergeTree {
            version: Some(version).filter(|version| !version.is_empty()),
        },
        Type::SummingMergeTree | Type::ReplicatedSummingMergeTree => TableEngine::SummingMergeTree {
            columns: given.column_ids,
        },
        Type::Null => TableEngine::Null,
    };
    (engine, replicated)
}

/// What a table that keeps nothing cannot have.
fn nothing_to_sort(definition: &proto::TableDefinition, violations: &mut Violations) {
    for (name, given) in [
        ("sorting_key", !definition.sorting_key.is_empty()),
        ("primary_key", !definition.primary_key.is_empty()),
        ("partition_by", !definition.partition_by.is_empty()),
        ("ttl", definition.ttl.is_some()),
        ("settings", !definition.settings.is_empty()),
    ] {
        if given {
            violations.add(format!("{FIELD}.{name}"), "the engine Null keeps no rows: leave it out");
        }
    }
}

fn check_version(column: &str, types: &Types<'_>, field: &str, violations: &mut Violations) {
    match types.get(column) {
        None => violations.add(field, not_a_column(column)),
        Some(Some(data_type)) if !is_version(data_type) => {
            let what = format!(
                "{} is {data_type}; a version is an unsigned integer, Date, DateTime or DateTime64",
                quoted(column)
            );
            violations.add(field, what);
        }
        Some(_) => {}
    }
}

fn check_summed(
    columns: &[String],
    definition: &proto::TableDefinition,
    types: &Types<'_>,
    violations: &mut Violations,
) {
    let mut seen = BTreeSet::new();
    for (index, column) in columns.iter().enumerate() {
        let field = format!("{FIELD}.engine.column_ids[{index}]");
        if !seen.insert(column) {
            violations.add(&field, format!("{} is named twice", quoted(column)));
        }
        match types.get(column.as_str()) {
            None => violations.add(field, not_a_column(column)),
            Some(_) if definition.sorting_key.contains(column) => {
                violations.add(field, format!("{} is in the sorting key", quoted(column)));
            }
            Some(Some(data_type)) if !is_summed(data_type) => {
                let what = format!("{} is {data_type}, which is not added up", quoted(column));
                violations.add(field, what);
            }
            Some(_) => {}
        }
    }
}

fn is_version(data_type: &DataType) -> bool {
    use DataType as T;
    let time = matches!(
        data_type,
        T::Date | T::Date32 | T::DateTime { .. } | T::DateTime64 { .. }
    );
    time || matches!(
        data_type,
        T::UInt8 | T::UInt16 | T::UInt32 | T::UInt64 | T::UInt128 | T::UInt256
    )
}

fn is_summed(data_type: &DataType) -> bool {
    use DataType as T;
    match data_type {
        T::Nullable(inner) => is_summed(inner),
        T::UInt8 | T::UInt16 | T::UInt32 | T::UInt64 | T::UInt128 | T::UInt256 => true,
        T::Int8 | T::Int16 | T::Int32 | T::Int64 | T::Int128 | T::Int256 => true,
        T::Float32 | T::Float64 | T::BFloat16 | T::Decimal { .. } | T::Map(..) => true,
        // A nested table whose name ends in Map is added up by its first column.
        T::Nested(..) | T::Array(_) => true,
        _ => false,
    }
}

fn ttl(given: Option<&proto::TableTtl>, types: &Types<'_>, violations: &mut Violations) -> Option<TableTtl> {
    let given = given?;
    let field = format!("{FIELD}.ttl.column");
    match types.get(given.column.as_str()) {
        None => violations.add(field, not_a_column(&given.column)),
        Some(
            Some(DataType::Date | DataType::Date32 | DataType::DateTime { .. } | DataType::DateTime64 { .. }) | None,
        ) => {}
        Some(Some(data_type)) => {
            let what = format!(
                "{} is {data_type}; a TTL counts from a Date, Date32, DateTime or DateTime64",
                quoted(&given.column)
            );
            violations.add(field, what);
        }
    }
    let seconds = given.keep.and_then(span).filter(|keep| keep.subsec_nanos() == 0);
    match seconds.map(|keep| keep.as_secs()) {
        Some(seconds @ 1..=MAX_TTL_SECONDS) => Some(TableTtl {
            column: given.column.clone(),
            seconds,
        }),
        _ => {
            let what = format!("must be whole seconds, 1 to {MAX_TTL_SECONDS}");
            violations.add(format!("{FIELD}.ttl.keep"), what);
            None
        }
    }
}

fn settings(given: &BTreeMap<String, String>, violations: &mut Violations) -> BTreeMap<String, String> {
    for (name, value) in given {
        let field = format!("{FIELD}.settings[{}]", quoted(name));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if name == STORAGE_POLICY {
            if value.is_empty() || value.len() > MAX_POLICY_BYTES || !value.bytes().all(plain) {
                violations.add(
                    field,
                    "must be the name of a storage policy: letters, digits, `_` and `-`",
                );
            }
        } else if NUMBERS.contains(&name.as_str()) {
            // As ClickHouse prints it, so that there is one way to write it.
            let number = value.parse::<u64>().ok();
            if number.is_none_or(|number| number.to_string() != *value) {
                violations.add(field, format!("{} is not a whole number", quoted(value)));
            }
        } else if name.ends_with("deduplication_window") || name.ends_with("deduplication_window_seconds") {
            let what = "is set by Millrace: exactly-once delivery depends on it";
            violations.add(field, what);
        } else {
            let what = format!(
                "is not a setting that may be given: {STORAGE_POLICY}, {}",
                NUMBERS.join(", ")
            );
            violations.add(field, what);
        }
    }
    given.clone()
}

fn sorting_key(key: &[String], types: &Types<'_>, violations: &mut Violations) {
    let field = format!("{FIELD}.sorting_key");
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
fn check_key_column(column: &str, types: &Types<'_>, field: &str, violations: &mut Violations) {
    let nullable = |data_type: &DataType| match data_type {
        DataType::Nullable(_) => true,
        DataType::LowCardinality(inner) => matches!(**inner, DataType::Nullable(_)),
        _ => false,
    };
    match types.get(column) {
        None => violations.add(
            field,
            format!("{}; expressions are not supported", not_a_column(column)),
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

fn not_a_column(column: &str) -> String {
    format!("{} is not a column in pipe.destination.columns", quoted(column))
}

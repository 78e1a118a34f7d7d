//! The error table of a pipe: the control plane creates and checks it, the worker writes it.

/// Names and types of its columns, in the order in which the worker writes them. The table may have more.
pub const ERROR_TABLE_COLUMNS: [(&str, &str); 12] = [
    ("error_timestamp", "DateTime64(3, 'UTC')"),
    ("error_type", "LowCardinality(String)"),
    ("error_msg", "String"),
    ("record_key", "String"),
    ("record_value", "String"),
    ("record_timestamp", "DateTime64(3, 'UTC')"),
    ("shard_id", "LowCardinality(String)"),
    ("sequence_number", "String"),
    ("sub_sequence_number", "UInt64"),
    ("pipe_id", "String"),
    ("field_path", "String"),
    ("batch_id", "String"),
];

/// The names among [`ERROR_TABLE_COLUMNS`].
pub fn error_table_column_names() -> [&'static str; ERROR_TABLE_COLUMNS.len()] {
    ERROR_TABLE_COLUMNS.map(|(name, _)| name)
}

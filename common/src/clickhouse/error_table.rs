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

/// What the message of a record says whose `record_value` holds only its first `kept` of `whole` bytes.
pub fn cut_note(kept: usize, whole: usize) -> String {
    format!(" (record_value holds the first {kept} of {whole} bytes)")
}

/// How many bytes a record has of which the table holds only the first `kept`, as its message says; `None` if it holds all.
pub fn cut_from(message: &str, kept: usize) -> Option<u64> {
    let (_, note) = message.rsplit_once(" (record_value holds the first ")?;
    let (first, whole) = note.strip_suffix(" bytes)")?.split_once(" of ")?;
    let whole: u64 = whole.parse().ok()?;
    (first.parse() == Ok(kept) && whole > kept as u64).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_is_written() {
        let message = format!("bad{}", cut_note(1_048_576, 1_048_577));
        assert_eq!(cut_from(&message, 1_048_576), Some(1_048_577));
        // A message may quote what somebody put into a record.
        assert_eq!(cut_from(&message, 40), None);
        assert_eq!(cut_from(&format!("{message} more"), 1_048_576), None);
        assert_eq!(cut_from("bad", 3), None);
    }
}

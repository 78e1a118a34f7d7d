//! PARTITION BY of a managed table: a column, or one function of a fixed list of one column. Whatever else ClickHouse
//! could evaluate there (sub-queries, `url()`, `sleep()`) does not parse.

use millrace_common::pipe::PartitionBy;

use super::violations::quoted;

/// Functions that cut time into partitions.
const FUNCTIONS: [&str; 12] = [
    "toDate",
    "toMonday",
    "toMonth",
    "toStartOfDay",
    "toStartOfHour",
    "toStartOfMonth",
    "toStartOfQuarter",
    "toStartOfWeek",
    "toStartOfYear",
    "toYYYYMM",
    "toYYYYMMDD",
    "toYear",
];

/// Parses `column`, `` `column` ``, `function(column)` or `` function(`column`) ``; `None` of an empty text.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Option<PartitionBy>, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    if let Some(column) = column(text) {
        return Ok(Some(PartitionBy { function: None, column }));
    }
    let call = text.strip_suffix(')').and_then(|text| text.split_once('('));
    let parsed = call.and_then(|(function, argument)| Some((function.trim(), column(argument.trim())?)));
    match parsed {
        Some((function, column)) if FUNCTIONS.contains(&function) => Ok(Some(PartitionBy {
            function: Some(function.to_owned()),
            column,
        })),
        Some((function, _)) => Err(format!(
            "the function {} is not allowed; use one of {}",
            quoted(function),
            FUNCTIONS.join(", ")
        )),
        None => Err(format!(
            "{} is neither a column nor a function of a column, such as toYYYYMM(event_time)",
            quoted(text)
        )),
    }
}

/// The text that [`parse`] reads back.
#[must_use]
pub fn print(partition_by: &PartitionBy) -> String {
    let column = &partition_by.column;
    let column = if is_plain(column) {
        column.clone()
    } else {
        millrace_common::clickhouse::quote_identifier(column)
    };
    match &partition_by.function {
        Some(function) => format!("{function}({column})"),
        None => column,
    }
}

fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// A bare or back-quoted column name, all of the text.
fn column(text: &str) -> Option<String> {
    if is_plain(text) {
        return Some(text.to_owned());
    }
    let inner = text.strip_prefix('`')?.strip_suffix('`')?;
    let mut name = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '`' => return None,
            '\\' => match chars.next()? {
                escaped @ ('`' | '\\') => name.push(escaped),
                _ => return None,
            },
            c if c.is_control() => return None,
            c => name.push(c),
        }
    }
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_prints() {
        for (text, function, column) in [
            ("day", None, "day"),
            ("toYYYYMM(event_time)", Some("toYYYYMM"), "event_time"),
            ("toDate( ts )", Some("toDate"), "ts"),
            ("`my day`", None, "my day"),
            (r"toMonday(`a\`b\\c`)", Some("toMonday"), r"a`b\c"),
        ] {
            let parsed = parse(text).unwrap().unwrap();
            assert_eq!(
                (parsed.function.as_deref(), parsed.column.as_str()),
                (function, column),
                "{text}"
            );
            assert_eq!(parse(&print(&parsed)).unwrap().unwrap(), parsed, "{text}");
        }
        assert_eq!(parse("  "), Ok(None));
    }

    #[test]
    fn nothing_else_parses() {
        for bad in [
            "(SELECT 1)",
            "url('http://x')",
            "sleep(3)",
            "dictGet('d', 'a', k)",
            "toYYYYMM(toDate(x))",
            "toYYYYMM(a, b)",
            "toYYYYMM(a) SETTINGS x = 1",
            "a, b",
            "a b",
            "a; DROP TABLE x",
            "`a` `b`",
            "`a`; DROP TABLE `b`",
            "`a",
            "`a\\",
            "toYYYYMM(`a`b`)",
            "toYYYYMM",
            "toyyyymm(a)",
            "'x'",
            "1",
            "tuple()",
        ] {
            // A function's name alone is a column like any other.
            let parsed = parse(bad);
            assert!(parsed.is_err() || bad == "toYYYYMM", "{bad:?} gave {parsed:?}");
        }
    }
}

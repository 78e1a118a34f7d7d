//! Printing results: a table for people, JSON or YAML in the proto JSON mapping for programs.

use std::io::Write as _;

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

use crate::exit::{Error, printable};

/// How to print results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// Prints a line to standard output. A closed pipe ends the program quietly, as `head` expects.
pub(crate) fn line(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.map_err(|error| Error::Local(format!("cannot write: {error}"))),
    }
}

/// Says something beside the result, on standard error.
pub(crate) fn note(text: &str) {
    // Standard error may be closed; the result does not depend on it.
    let _ = writeln!(std::io::stderr(), "# {}", printable(text));
}

/// Prints a JSON value as JSON or YAML.
pub(crate) fn document(value: &Value, format: Format) -> Result<(), Error> {
    let text = match format {
        Format::Yaml => serde_yaml_ng::to_string(value).map_err(|error| Error::Local(error.to_string()))?,
        Format::Json | Format::Table => {
            serde_json::to_string_pretty(value).map_err(|error| Error::Local(error.to_string()))?
        }
    };
    line(text.trim_end())
}

/// Prints a table without borders. An empty cell is shown as `-`.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> Result<(), Error> {
    line(&render(header, rows))
}

/// A table as text.
pub(crate) fn render(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    for row in rows {
        table.add_row(row.into_iter().map(|cell| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                printable(&cell)
            }
        }));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The last segment of a resource name.
pub(crate) fn short(name: &str) -> String {
    name.rsplit('/').next().unwrap_or(name).to_owned()
}

/// An enum value's name without its prefix.
pub(crate) fn short_enum(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix) {
        Some("UNSPECIFIED") | None => String::new(),
        Some(rest) => rest.to_owned(),
    }
}

/// A count with thousands separated.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A duration in the largest unit that shows it well.
pub(crate) fn duration(duration: Option<&prost_types::Duration>) -> String {
    let Some(duration) = duration else { return String::new() };
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    let seconds = duration.seconds as f64 + f64::from(duration.nanos) / 1e9;
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// A document as a cell of a table.
pub(crate) fn one_line(text: &str) -> String {
    /// Longer ones are for `--output json`.
    const SHOWN_CHARS: usize = 200;
    let flat = text.replace(['\n', '\r', '\t'], " ");
    if flat.chars().count() <= SHOWN_CHARS {
        return flat;
    }
    flat.chars().take(SHOWN_CHARS).chain("…".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_durations_for_people() {
        assert_eq!(count(0), "0");
        assert_eq!(count(1_234_567), "1,234,567");
        let lag = |seconds, nanos| duration(Some(&prost_types::Duration { seconds, nanos }));
        assert_eq!(
            (lag(0, 5_000_000), lag(61, 0), lag(600, 0), lag(9000, 0)),
            ("5 ms".into(), "61.0 s".into(), "10 min".into(), "2.5 h".into())
        );
        assert_eq!(duration(None), "");
    }

    #[test]
    fn a_cell_cannot_steer_the_terminal() {
        let text = render(&["NAME"], vec![vec!["a\u{1b}[2Jb".into()], vec![String::new()]]);
        assert!(!text.contains('\u{1b}') && text.ends_with('-'), "{text:?}");
    }
}

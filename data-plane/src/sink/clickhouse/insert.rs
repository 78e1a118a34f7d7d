//! One insert: its statement, its settings, and what its answer means. No IO.
//!
//! Every setting that decides whether rows are doubled, dropped or changed is named in each request, whatever the
//! server's defaults and the user's profile say.

use bytes::Bytes;
use millrace_common::{clickhouse::quote_identifier, error::Retry};
use url::form_urlencoded::Serializer;

use super::{
    classify::{self, Class, code},
    http::Answer,
    server::Optional,
};

/// How much of the server's text an error keeps.
const MESSAGE_BYTES: usize = 2_000;
/// How long to wait before a destination that a person has to mend is asked again.
const PROBE: std::time::Duration = std::time::Duration::from_secs(60);

pub(super) const EXCEPTION_CODE: &str = "x-clickhouse-exception-code";
/// How the names of ClickHouse's own headers begin: each of its answers has some.
const HEADERS: &str = "x-clickhouse-";

/// A block to insert.
#[derive(Debug, Clone)]
pub struct Insert<'a> {
    /// Table, in the sink's database.
    pub table: &'a str,
    /// Columns of the block, in its order.
    pub columns: &'a [String],
    /// One Native block; if `compressed`, as ClickHouse's compressed frames.
    pub body: Bytes,
    /// The body is compressed.
    pub compressed: bool,
    /// Deduplication token: the same for the same bytes, and for nothing else.
    pub token: &'a str,
    /// Name of the attempt in `system.query_log`.
    pub query_id: &'a str,
    /// The block may belong to any number of partitions.
    pub any_partitions: bool,
}

/// A block that is in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inserted {
    /// Rows that the server says it wrote, also where they were there before, and including those that materialized
    /// views wrote.
    pub written_rows: u64,
}

/// A block of which it is not known that it is in the table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InsertError {
    /// What to do.
    pub class: Class,
    /// ClickHouse's error code, if it gave one.
    pub code: Option<u32>,
    /// HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// What was said.
    pub message: String,
    /// ClickHouse itself has said it of this attempt, in an answer that it gave to nothing else. Where it is not so, the
    /// attempt may have been carried out.
    pub is_certain: bool,
}

impl InsertError {
    /// No answer: whether the rows are there is open.
    pub(super) fn unreachable(message: String) -> Self {
        Self {
            class: Class::Retry,
            code: None,
            status: None,
            message,
            is_certain: false,
        }
    }

    /// The stable reason.
    pub fn reason(&self) -> &'static str {
        classify::reason(self.class, self.code)
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        classify::remedy(self.class, self.code)
    }

    /// When to send the same bytes under the same token again.
    pub fn retry(&self) -> Retry {
        match self.class {
            Class::Retry | Class::Load => Retry::Backoff,
            Class::Schema | Class::Pause | Class::Poison | Class::Bug => Retry::After(PROBE),
        }
    }

    /// A person has to act before it can work.
    pub fn is_permanent(&self) -> bool {
        !matches!(self.class, Class::Retry | Class::Load)
    }

    /// Whether the code is one of the table; one that is not is retried, but should not be for ever without a word.
    pub fn is_known(&self) -> bool {
        self.code
            .is_none_or(|code| classify::by_code(code, &self.message).is_some())
    }
}

/// The settings of every insert.
const SETTINGS: &[(&str, &str)] = &[
    // The token counts, and an acknowledgement means that the rows are in the table.
    ("insert_deduplicate", "1"),
    ("deduplicate_blocks_in_dependent_materialized_views", "1"),
    ("async_insert", "0"),
    ("wait_for_async_insert", "1"),
    ("wait_end_of_query", "1"),
    // A block that does not fit the table is refused, not bent.
    ("input_format_native_allow_types_conversion", "0"),
    ("input_format_skip_unknown_fields", "0"),
    // NULL where a row brings no value of a column with DEFAULT: the server evaluates the expression.
    ("input_format_null_as_default", "1"),
    // One Native block stays one block, at every attempt: a token stands for the cut as well. The two lower bounds are
    // the server's defaults, pinned because they decide how the blocks of materialized views are cut.
    ("max_insert_block_size", "4294967296"),
    ("min_insert_block_size_rows", "1048449"),
    ("min_insert_block_size_bytes", "268402944"),
    // A sender that was frozen in the middle must not come back with the rest much later.
    ("http_receive_timeout", "30"),
    ("http_send_timeout", "30"),
];

/// The URL query of an insert.
pub(super) fn url_query(database: &str, insert: &Insert<'_>, optional: Optional) -> Result<String, InsertError> {
    let statement = statement(database, insert)?;
    let mut query = Serializer::new(String::with_capacity(statement.len() * 3 / 2 + 800));
    query.append_pair("query", &statement);
    query.append_pair("query_id", insert.query_id);
    query.append_pair("insert_deduplication_token", insert.token);
    query.extend_pairs(SETTINGS);
    query.extend_pairs(optional.settings());
    if insert.any_partitions {
        query.append_pair("max_partitions_per_insert_block", "0");
    }
    if insert.compressed {
        query.append_pair("decompress", "1");
    }
    Ok(query.finish())
}

fn statement(database: &str, insert: &Insert<'_>) -> Result<String, InsertError> {
    let quote = |name: &str| quote_identifier(name);
    let columns: Vec<_> = insert.columns.iter().map(|name| quote(name)).collect();
    if columns.is_empty() || insert.token.is_empty() {
        // Without columns the server takes them from the block and drops what it does not know; without a token equal
        // blocks are taken for one.
        let message = "an insert without columns or without a token".to_owned();
        return Err(InsertError {
            class: Class::Bug,
            code: None,
            status: None,
            message,
            is_certain: false,
        });
    }
    Ok(format!(
        "INSERT INTO {}.{} ({}) FORMAT Native",
        quote(database),
        quote(insert.table),
        columns.join(",")
    ))
}

/// The body of an answer to a question.
pub(super) fn text_of(answer: &Answer) -> Result<&[u8], InsertError> {
    let exception = answer.headers.contains_key(EXCEPTION_CODE);
    if answer.status.as_u16() == 200 && !exception && classify::code_in(&answer.body).is_none() {
        return Ok(&answer.body);
    }
    Err(refusal(answer))
}

/// What an answer says of the insert.
pub(super) fn outcome(answer: &Answer) -> Result<Inserted, InsertError> {
    if code_of(answer) == Some(code::INSERT_WAS_DEDUPLICATED) {
        return Ok(Inserted { written_rows: 0 });
    }
    let blank = answer.body.iter().all(u8::is_ascii_whitespace);
    let exception = answer.headers.contains_key(EXCEPTION_CODE);
    // An empty page of whatever else may stand at this address acknowledges nothing.
    let of_clickhouse = answer.headers.keys().any(|name| name.as_str().starts_with(HEADERS));
    if answer.status.as_u16() == 200 && blank && !exception && of_clickhouse {
        let summary = header(answer, "x-clickhouse-summary").unwrap_or_default();
        return Ok(Inserted {
            written_rows: number_of(summary, "written_rows").unwrap_or(0),
        });
    }
    Err(refusal(answer))
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.get(name).and_then(|value| value.to_str().ok())
}

/// The code of an exception: of the header, else of the body.
fn code_of(answer: &Answer) -> Option<u32> {
    header(answer, EXCEPTION_CODE)
        .and_then(|code| code.trim().parse().ok())
        .or_else(|| classify::code_in(&answer.body))
        .filter(|code| *code != 0)
}

/// What an answer says that is not an acknowledgement.
pub(super) fn refusal(answer: &Answer) -> InsertError {
    let (status, code, text) = (answer.status.as_u16(), code_of(answer), text(&answer.body));
    let class = match code {
        // A code that is not in the table, and a success with a body that has no business there: not an
        // acknowledgement, so the same again.
        Some(code) => classify::by_code(code, &text).unwrap_or(Class::Retry),
        None if status == 200 => Class::Retry,
        None => classify::by_status(status),
    };
    let message = match (code, text.as_str()) {
        (Some(code), "") => format!("HTTP {status}, code {code}"),
        (Some(_), _) => text,
        (None, "") => format!("HTTP {status} without an explanation"),
        (None, text) => format!("HTTP {status}, not as ClickHouse answers an insert: {text}"),
    };
    InsertError {
        class,
        code,
        status: Some(status),
        message,
        // An exception behind the head of a success came late: who knows what went before.
        is_certain: code.is_some() && status != 200,
    }
}

/// The start of a body as one line of text.
fn text(body: &[u8]) -> String {
    let cut = &body[..body.len().min(MESSAGE_BYTES)];
    let text = String::from_utf8_lossy(cut);
    let from = text.find("Code: ").unwrap_or(0);
    text[from..].split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A number of the summary header, which is flat JSON with numbers as strings.
fn number_of(summary: &str, name: &str) -> Option<u64> {
    let at = summary.find(&format!("\"{name}\":"))? + name.len() + 3;
    let rest = summary[at..].trim_start().trim_start_matches('"');
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    rest[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, StatusCode};

    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> Answer {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_static(value));
        }
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: map,
            body: body.as_bytes().to_vec(),
        }
    }

    const SUMMARY: (&str, &str) = (
        "x-clickhouse-summary",
        r#"{"read_rows":"7","written_rows":"42","elapsed_ns":"1"}"#,
    );

    #[test]
    fn an_acknowledgement_is_200_without_exception_and_with_an_empty_body() {
        assert_eq!(outcome(&answer(200, &[SUMMARY], "")), Ok(Inserted { written_rows: 42 }));
        let id = ("x-clickhouse-query-id", "q");
        assert_eq!(outcome(&answer(200, &[id], "\n")), Ok(Inserted { written_rows: 0 }));
        // Not of ClickHouse: of whatever else may stand at its address.
        let error = outcome(&answer(200, &[("content-type", "text/html")], "")).unwrap_err();
        assert_eq!((error.class, error.code), (Class::Retry, None));
    }

    #[test]
    fn a_200_can_be_an_error() {
        let framed = "\r\n__exception__\r\ntag\r\nCode: 395. DB::Exception: boom: while pushing to view d.v\n44 tag\r\n__exception__\r\n";
        let error = outcome(&answer(200, &[SUMMARY], framed)).unwrap_err();
        assert_eq!((error.class, error.code), (Class::Pause, Some(395)));
        assert!(error.message.starts_with("Code: 395."), "{}", error.message);

        let error = outcome(&answer(200, &[SUMMARY, ("x-clickhouse-exception-code", "241")], "")).unwrap_err();
        assert_eq!((error.class, error.code), (Class::Load, Some(241)));

        let error = outcome(&answer(200, &[("x-clickhouse-exception-code", "what")], "")).unwrap_err();
        assert_eq!((error.class, error.code), (Class::Retry, None));

        let error = outcome(&answer(200, &[], "<html>a captive portal</html>")).unwrap_err();
        assert_eq!((error.class, error.code), (Class::Retry, None));
        let cut = outcome(&answer(200, &[], "__exception__")).unwrap_err();
        assert_eq!(cut.class, Class::Retry);
    }

    #[test]
    fn the_header_code_wins_and_the_body_stands_in() {
        let body = "Code: 60. DB::Exception: Table d.t does not exist. (UNKNOWN_TABLE)\n";
        let error = outcome(&answer(404, &[("x-clickhouse-exception-code", "60")], body)).unwrap_err();
        assert_eq!(
            (error.class, error.code, error.status),
            (Class::Pause, Some(60), Some(404))
        );
        assert_eq!(error.reason(), millrace_common::reason::DESTINATION_TABLE_NOT_FOUND);
        let error = outcome(&answer(500, &[], "Code: 530. DB::Exception: x")).unwrap_err();
        assert_eq!(
            (error.class, error.code, error.is_known()),
            (Class::Retry, Some(530), false)
        );
    }

    #[test]
    fn a_proxy_answers_without_code() {
        let error = outcome(&answer(502, &[], "<html>bad gateway</html>")).unwrap_err();
        assert_eq!((error.class, error.code), (Class::Retry, None));
        assert_eq!(outcome(&answer(413, &[], "")).unwrap_err().class, Class::Pause);
        assert_eq!(outcome(&answer(302, &[], "")).unwrap_err().class, Class::Pause);
        assert_eq!(outcome(&answer(204, &[], "")).unwrap_err().class, Class::Retry);
    }

    #[test]
    fn deduplicated_is_an_acknowledgement() {
        let answer = answer(
            500,
            &[("x-clickhouse-exception-code", "389")],
            "Code: 389. DB::Exception: x",
        );
        assert!(outcome(&answer).is_ok());
    }

    #[test]
    fn names_are_quoted_and_settings_are_named() {
        let columns = ["a`b".to_owned(), "c,d".to_owned()];
        let insert = Insert {
            table: "t; DROP TABLE x",
            columns: &columns,
            body: Bytes::new(),
            compressed: true,
            token: "01J&insert_deduplicate=0",
            query_id: "q",
            any_partitions: false,
        };
        let query = url_query("my db", &insert, Optional::default()).unwrap();
        let pairs: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let get = |name: &str| {
            pairs
                .iter()
                .filter(|(key, _)| key == name)
                .map(|(_, value)| value.as_str())
                .collect::<Vec<_>>()
        };
        let statement = format!(
            "INSERT INTO {}.{} ({},{}) FORMAT Native",
            quote_identifier("my db"),
            quote_identifier(insert.table),
            quote_identifier("a`b"),
            quote_identifier("c,d")
        );
        assert_eq!(get("query"), [statement]);
        assert_eq!(get("insert_deduplication_token"), ["01J&insert_deduplicate=0"]);
        assert_eq!(get("insert_deduplicate"), ["1"]);
        assert_eq!(get("async_insert"), ["0"]);
        assert_eq!(get("decompress"), ["1"]);
        assert!(get("deduplicate_insert").is_empty());
        let query = url_query(
            "d",
            &insert,
            Optional {
                deduplicate_insert: true,
                ..Optional::default()
            },
        )
        .unwrap();
        assert!(query.contains("&deduplicate_insert=enable"));
    }

    #[test]
    fn neither_columns_nor_token_can_be_left_out() {
        let columns = ["a".to_owned()];
        let insert = Insert {
            table: "t",
            columns: &[],
            body: Bytes::new(),
            compressed: false,
            token: "x",
            query_id: "q",
            any_partitions: false,
        };
        assert_eq!(
            url_query("d", &insert, Optional::default()).unwrap_err().class,
            Class::Bug
        );
        let insert = Insert {
            columns: &columns,
            token: "",
            ..insert
        };
        assert_eq!(
            url_query("d", &insert, Optional::default()).unwrap_err().class,
            Class::Bug
        );
    }
}

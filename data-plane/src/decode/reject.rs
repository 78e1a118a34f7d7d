//! Why a record is not a row: the verdict that goes to the error table, and the cheap form it has on its way there.

use std::borrow::Cow;
use std::fmt;

use super::cursor::Cursor;

/// Most characters of a record that a message repeats.
const SNIPPET_CHARS: usize = 64;

/// Most bytes of a field path that a verdict carries: a hostile record must not choose the size of its error row.
const PATH_BYTES: usize = 512;

/// The class of a rejection. The names are stable: they are the error table's `error_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectionKind {
    /// The record holds no bytes, or only white space.
    EmptyRecord,
    /// The record is not UTF-8.
    InvalidUtf8,
    /// The record is not one JSON object.
    MalformedJson,
    /// Arrays and objects are nested deeper than [`MAX_DEPTH`](super::MAX_DEPTH).
    TooDeep,
    /// A mapped key stands twice in one object.
    DuplicateKey,
    /// A value's kind or spelling does not fit the column.
    TypeMismatch,
    /// A value is of the right kind but cannot be represented in the column.
    OutOfRange,
    /// The arrays of one `Nested` structure have different lengths in one record.
    NestedSizeMismatch,
    /// A value that the mapping requires is null, or not in the record.
    MissingRequired,
    /// The record has a key that no column is for, and the pipe refuses such.
    UnknownField,
    /// A record holds more documents that are refused, or that become more bytes, than one record may.
    TooManyDocuments,
    /// The record begins like an aggregate of the Kinesis Producer Library, but is none.
    DamagedAggregate,
    /// The record begins like compressed data, but cannot be decompressed.
    DamagedCompression,
    /// The record decompresses to more bytes than one may.
    TooLarge,
    /// The record is not in the envelope that the pipe unwraps.
    NotInEnvelope,
    /// A message of an aggregate belongs to another shard, and the pipe refuses such.
    OutOfHashRange,
}

impl RejectionKind {
    /// The stable name of the class.
    pub fn as_str(self) -> &'static str {
        match self {
            RejectionKind::EmptyRecord => "empty_record",
            RejectionKind::InvalidUtf8 => "invalid_utf8",
            RejectionKind::MalformedJson => "malformed_json",
            RejectionKind::TooDeep => "too_deep",
            RejectionKind::DuplicateKey => "duplicate_key",
            RejectionKind::TypeMismatch => "type_mismatch",
            RejectionKind::OutOfRange => "out_of_range",
            RejectionKind::NestedSizeMismatch => "nested_size_mismatch",
            RejectionKind::MissingRequired => "missing_required",
            RejectionKind::UnknownField => "unknown_field",
            RejectionKind::TooManyDocuments => "too_many_documents",
            RejectionKind::DamagedAggregate => "damaged_aggregate",
            RejectionKind::DamagedCompression => "damaged_compression",
            RejectionKind::TooLarge => "too_large",
            RejectionKind::NotInEnvelope => "not_in_envelope",
            RejectionKind::OutOfHashRange => "out_of_hash_range",
        }
    }
}

impl fmt::Display for RejectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A record's verdict when it is not a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The class.
    pub kind: RejectionKind,
    /// Where in the record, as keys with dots and indexes in brackets (`user.tags[3]`); empty for the whole record.
    pub field_path: String,
    /// What is wrong, in a sentence for the person who reads the error table.
    pub message: String,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field_path.is_empty() {
            write!(f, "{}: {}", self.kind, self.message)
        } else {
            write!(f, "{} at {}: {}", self.kind, self.field_path, self.message)
        }
    }
}

impl std::error::Error for Rejection {}

/// A failure on its way up: boxed, so that the success path moves one pointer, and without formatted text, because
/// trying the alternatives of a `Variant` fails often and on purpose.
#[derive(Debug)]
pub(crate) struct Fail(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: RejectionKind,
    /// Byte offset in the record of the value at fault.
    position: usize,
    /// What is wrong; for a value at fault it follows the value's text.
    what: Cow<'static, str>,
    /// True if `what` is a predicate of the value at `position`.
    about_value: bool,
    /// From the innermost outwards.
    path: Vec<Segment>,
}

#[derive(Debug)]
enum Segment {
    Key(String),
    Index(usize),
}

pub(crate) type Attempt<T> = Result<T, Fail>;

impl Fail {
    /// The JSON text itself is broken at `position`.
    #[cold]
    pub(crate) fn malformed(position: usize, what: impl Into<Cow<'static, str>>) -> Fail {
        Fail::new(RejectionKind::MalformedJson, position, what, false)
    }

    /// The value that starts at `position` is of the wrong kind; `what` continues the sentence "`value` …".
    #[cold]
    pub(crate) fn mismatch(position: usize, what: impl Into<Cow<'static, str>>) -> Fail {
        Fail::new(RejectionKind::TypeMismatch, position, what, true)
    }

    /// The value that starts at `position` does not fit; `what` continues the sentence "`value` …".
    #[cold]
    pub(crate) fn out_of_range(position: usize, what: impl Into<Cow<'static, str>>) -> Fail {
        Fail::new(RejectionKind::OutOfRange, position, what, true)
    }

    /// Any other class, with a whole sentence.
    #[cold]
    pub(crate) fn other(kind: RejectionKind, position: usize, what: impl Into<Cow<'static, str>>) -> Fail {
        Fail::new(kind, position, what, false)
    }

    #[cold]
    fn new(kind: RejectionKind, position: usize, what: impl Into<Cow<'static, str>>, about_value: bool) -> Fail {
        Fail(Box::new(Inner {
            kind,
            position,
            what: what.into(),
            about_value,
            path: Vec::new(),
        }))
    }

    pub(crate) fn kind(&self) -> RejectionKind {
        self.0.kind
    }

    /// Says that the value at fault is not in the record's JSON but is this.
    #[cold]
    pub(crate) fn about(mut self, subject: &str) -> Fail {
        self.0.what = format!("{subject} {}", self.0.what).into();
        self.0.about_value = false;
        self
    }

    /// Says that the value at fault is not where it was read, but in what stands at `position`.
    #[cold]
    pub(crate) fn elsewhere(mut self, position: usize) -> Fail {
        self.0.position = position;
        if self.0.about_value {
            return self.about("a value of it");
        }
        self
    }

    /// Notes that the failure is below this key.
    #[cold]
    pub(crate) fn under_key(mut self, key: &[u8]) -> Fail {
        let shown = &key[..key.len().min(PATH_BYTES)];
        self.0
            .path
            .push(Segment::Key(String::from_utf8_lossy(shown).into_owned()));
        self
    }

    /// Notes that the failure is below this element of an array.
    #[cold]
    pub(crate) fn under_index(mut self, index: usize) -> Fail {
        self.0.path.push(Segment::Index(index));
        self
    }

    /// The verdict, with what the record holds at the place at fault.
    #[cold]
    pub(crate) fn into_rejection(self, record: &[u8]) -> Rejection {
        let inner = *self.0;
        let mut message = if inner.about_value {
            format!(
                "{} {}",
                snippet(&record[inner.position.min(record.len())..]),
                inner.what
            )
        } else {
            inner.what.into_owned()
        };
        if inner.kind == RejectionKind::MalformedJson {
            message.push_str(&format!(" (byte {} of {})", inner.position, record.len()));
        }
        Rejection {
            kind: inner.kind,
            field_path: path(&inner.path),
            message,
        }
    }
}

/// A key as a message shows it.
#[cold]
pub(super) fn shortened(key: &[u8]) -> String {
    let mut shown: String = String::from_utf8_lossy(key).chars().take(SNIPPET_CHARS).collect();
    if shown.len() < key.len() {
        shown.push('…');
    }
    shown
}

fn path(segments: &[Segment]) -> String {
    let mut path = String::new();
    for segment in segments.iter().rev() {
        match segment {
            Segment::Key(key) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
            }
            Segment::Index(index) => path.push_str(&format!("[{index}]")),
        }
        if path.len() > PATH_BYTES {
            let end = (0..=PATH_BYTES)
                .rev()
                .find(|end| path.is_char_boundary(*end))
                .unwrap_or(0);
            path.truncate(end);
            path.push('…');
            break;
        }
    }
    path
}

/// The value that `rest` begins with, or its first token if that is no value; shortened.
fn snippet(rest: &[u8]) -> String {
    let rest = Cursor::new(rest).skip_value().unwrap_or(rest);
    let text = String::from_utf8_lossy(&rest[..rest.len().min(4 * SNIPPET_CHARS)]).into_owned();
    let quoted = text.starts_with('"');
    let container = text.starts_with(['{', '[']);
    let mut shown = String::new();
    let mut escaped = false;
    for (index, c) in text.chars().enumerate() {
        if index == SNIPPET_CHARS {
            shown.push('…');
            break;
        }
        if index > 0 && !quoted && !container && (c.is_ascii_whitespace() || matches!(c, ',' | ']' | '}')) {
            break;
        }
        shown.push(if c.is_control() { '\u{fffd}' } else { c });
        if index > 0 && quoted && c == '"' && !escaped {
            break;
        }
        escaped = c == '\\' && !escaped;
    }
    if shown.is_empty() {
        "the end of the record".to_owned()
    } else {
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_name_the_place_and_the_value() {
        let record = br#"{"user":{"age":["x\"y",300]}}"#;
        let at = record.windows(3).position(|w| w == b"300").unwrap();
        let fail = Fail::out_of_range(at, "is not between 0 and 255")
            .under_index(1)
            .under_key(b"age")
            .under_key(b"user");
        let rejection = fail.into_rejection(record);
        assert_eq!(rejection.field_path, "user.age[1]");
        assert_eq!(rejection.message, "300 is not between 0 and 255");
        assert_eq!(rejection.kind.as_str(), "out_of_range");
        assert_eq!(snippet(br#""x\"y",300"#), r#""x\"y""#);
    }

    #[test]
    fn long_values_and_paths_are_shortened() {
        let long = "é".repeat(1000);
        let fail = Fail::mismatch(0, "is not a number")
            .under_key(long.as_bytes())
            .under_key(b"a");
        let rejection = fail.into_rejection(long.as_bytes());
        assert!(rejection.field_path.len() < PATH_BYTES + 10);
        assert!(rejection.message.chars().count() < SNIPPET_CHARS + 30);
    }
}

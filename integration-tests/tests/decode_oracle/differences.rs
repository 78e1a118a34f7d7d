//! The differences that `docs/json-semantics.md` states, as predicates on a type and a value. Each is named after its line
//! there; what no predicate knows is a failure.

use millrace_common::clickhouse::DataType;
use millrace_data_plane::decode::{MAX_DEPTH, Rejection, RejectionKind};
use serde::de::IgnoredAny;

use super::nodes::{self, Node};
use super::records::Record;
use super::table::Column;
use super::value::{Json, unquoted};

/// ClickHouse takes the record and Millrace refuses it: the line of "Stricter than ClickHouse".
pub(crate) fn stricter(record: &Record, columns: &[Column], rejection: &Rejection) -> Option<&'static str> {
    let text = &record.text;
    match rejection.kind {
        RejectionKind::InvalidUtf8 => std::str::from_utf8(text).is_err().then_some("invalid UTF-8"),
        RejectionKind::EmptyRecord => text.trim_ascii().is_empty().then_some("an empty record"),
        RejectionKind::TooDeep => (depth(text) > MAX_DEPTH as usize).then_some("deeper than 128 levels"),
        RejectionKind::MalformedJson => malformed(text),
        RejectionKind::DuplicateKey if repeats_a_key(record) => Some("a mapped key that stands twice in the record"),
        _ if has_key_in_other_case(record, columns) => Some("a key that is a column's name but for case"),
        _ => {
            let nodes = nodes::of(record, columns);
            let about = |node: &&Node<'_>| {
                let rest = rejection.field_path.strip_prefix(&node.path);
                !node.maybe && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            };
            let plain = nodes
                .iter()
                .filter(about)
                .find_map(|node| stricter_value(node, rejection.kind));
            plain.or_else(|| {
                let inside = |node: &&Node<'_>| node.maybe && rejection.field_path.starts_with(&node.path);
                nodes.iter().filter(inside).find_map(in_a_variant)
            })
        }
    }
}

/// What is stricter in a column of its own is no alternative of a `Variant` either: another one takes it, or none does.
fn in_a_variant(node: &Node<'_>) -> Option<&'static str> {
    let kinds = [RejectionKind::OutOfRange, RejectionKind::TypeMismatch];
    let any = node.maybe && kinds.into_iter().any(|kind| stricter_value(node, kind).is_some());
    any.then_some("what a plain column refuses, in a `Variant`")
}

/// Where it tries several types, ClickHouse reads some decimals within containers and not others, whatever their digits.
fn decimal_or_negative_zero(node: &Node<'_>) -> Option<&'static str> {
    match &node.data_type {
        DataType::Decimal { .. } => Some("a decimal in a container of a `Variant`"),
        // The odd values are texts, whose parts are no nodes.
        DataType::Variant(_)
            if node.text().starts_with(['[', '{']) && node.data_type.to_string().contains("Decimal") =>
        {
            Some("a decimal in a container of a `Variant`")
        }
        data_type if is_integer(data_type) && node.bare() == "-0" => Some("`-0` in an unsigned integer of a `Variant`"),
        _ => None,
    }
}

fn repeats_a_key(record: &Record) -> bool {
    let keys = keys(record);
    keys.iter().enumerate().any(|(index, key)| keys[..index].contains(key))
}

fn has_key_in_other_case(record: &Record, columns: &[Column]) -> bool {
    let folded =
        |key: &String, column: &Column| *key != column.name && key.to_lowercase() == column.name.to_lowercase();
    keys(record)
        .iter()
        .any(|key| columns.iter().any(|column| folded(key, column)))
}

/// The keys of the record's object, without escapes.
fn keys(record: &Record) -> Vec<String> {
    let Json::Object(fields) = &record.tree else {
        return Vec::new();
    };
    let plain = |key: &String| unquoted(&format!("\"{key}\""));
    fields.iter().filter_map(|(key, _)| plain(key)).collect()
}

fn malformed(text: &[u8]) -> Option<&'static str> {
    if serde_json::from_slice::<IgnoredAny>(text).is_err() {
        let bare = text.strip_prefix("\u{feff}".as_bytes());
        let several = serde_json::Deserializer::from_slice(text).into_iter::<IgnoredAny>();
        return Some(match bare {
            Some(_) => "a byte order mark",
            None if several.take(2).filter_map(Result::ok).count() == 2 => "several documents in a record",
            None => "text that is not JSON by RFC 8259",
        });
    }
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Some("a record that is an array");
    }
    let text = String::from_utf8_lossy(text).to_ascii_lowercase();
    let low = ["\\udc", "\\udd", "\\ude", "\\udf", "\\ud8", "\\ud9", "\\uda", "\\udb"];
    low.iter().any(|low| text.contains(low)).then_some("a lone surrogate")
}

fn stricter_value(node: &Node<'_>, kind: RejectionKind) -> Option<&'static str> {
    let bare = node.bare();
    match (kind, &node.data_type) {
        (RejectionKind::OutOfRange, DataType::Dynamic { .. }) => {
            let infinite = |part: &str| part.starts_with(['-', '1']) && part.parse::<f64>().is_ok_and(f64::is_infinite);
            let mut parts = bare.split([',', '[', ']', '{', '}', ':', ' ']);
            parts.any(infinite).then_some("a float too large for its type")
        }
        (RejectionKind::OutOfRange, data_type) => out_of_range(data_type, &bare),
        (RejectionKind::TypeMismatch, DataType::Date | DataType::Date32) => {
            if matches!(bare.as_str(), "true" | "false") {
                return Some("`true` or `false` in a `Date`");
            }
            no_such_date(&bare).then_some("a date that does not exist")
        }
        (RejectionKind::TypeMismatch, DataType::DateTime { .. } | DataType::DateTime64 { .. }) => {
            if no_such_date(&bare) {
                return Some("a date that does not exist");
            }
            year(&bare)
                .is_none()
                .then_some("a time without a year or without a date")
        }
        (RejectionKind::TypeMismatch, DataType::Enum8(_)) => {
            wraps(&bare, 8).then_some("an enum value that wraps around")
        }
        (RejectionKind::TypeMismatch, DataType::Enum16(_)) => {
            wraps(&bare, 16).then_some("an enum value that wraps around")
        }
        (RejectionKind::TypeMismatch, DataType::Decimal { .. }) => {
            let no_number = !bare.chars().any(|c| c.is_ascii_digit())
                || bare.ends_with(['e', 'E', '+', '-'])
                || bare.matches('.').count() > 1;
            (node.is_string() && no_number).then_some("`\".\"` or `\"1e\"` in a decimal")
        }
        (RejectionKind::TypeMismatch, DataType::Ipv6) => {
            leading_zeros(&bare).then_some("leading zeros inside an IPv6 address")
        }
        (RejectionKind::DuplicateKey, DataType::Json(_)) => {
            Some("the same key as a value and as an object in a `JSON` column")
                .filter(|_| bare.matches(':').count() > 1)
        }
        _ => None,
    }
}

fn out_of_range(data_type: &DataType, bare: &str) -> Option<&'static str> {
    let integer = |bits: u32, signed: bool| {
        let digits = bare.trim_start_matches(['-', '+']).trim_start_matches('0');
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let magnitude_bits = if signed { bits - 1 } else { bits };
        // 10^d has d * log2(10) bits: what is close is compared exactly.
        let largest = if magnitude_bits >= 128 {
            None
        } else {
            Some((1u128 << magnitude_bits) - 1)
        };
        let largest = largest.map(|largest| {
            if bare.starts_with('-') && signed {
                largest + 1
            } else {
                largest
            }
        });
        let past = match (largest, digits.parse::<u128>()) {
            (Some(largest), Ok(value)) => value > largest,
            (Some(_), Err(_)) => true,
            (None, _) => digits.len() >= 39,
        };
        past.then_some("an integer outside its type")
    };
    let years = |from: i64, to: i64| {
        let outside = match year(bare) {
            Some(year) => year < from || year > to,
            None => bare.parse::<f64>().is_ok(),
        };
        outside.then_some("a date or date-time outside its type")
    };
    match data_type {
        DataType::UInt8 => integer(8, false),
        DataType::UInt16 => integer(16, false),
        DataType::UInt32 => integer(32, false),
        DataType::UInt64 => integer(64, false),
        DataType::UInt128 => integer(128, false),
        DataType::UInt256 => integer(256, false),
        DataType::Int8 => integer(8, true),
        DataType::Int16 => integer(16, true),
        DataType::Int32 => integer(32, true),
        DataType::Int64 => integer(64, true),
        DataType::Int128 => integer(128, true),
        DataType::Int256 => integer(256, true),
        DataType::Float64 => bare
            .parse::<f64>()
            .ok()?
            .is_infinite()
            .then_some("a float too large for its type"),
        DataType::Float32 | DataType::BFloat16 => bare
            .parse::<f32>()
            .ok()?
            .is_infinite()
            .then_some("a float too large for its type"),
        // The borders are days and seconds within these years.
        DataType::Date => years(1970 + 1, 2149 - 1),
        DataType::Date32 => years(1900 + 1, 2299 - 1),
        DataType::DateTime { .. } => years(1970 + 1, 2106 - 1),
        DataType::DateTime64 { precision: 9, .. } => years(1900 + 1, 2262 - 1),
        DataType::DateTime64 { .. } => years(1900 + 1, 2299 - 1),
        DataType::Time | DataType::Time64 { .. } => Some("a time past 999:59:59"),
        _ => None,
    }
}

/// ClickHouse refuses the record and Millrace takes it: the line of "Wider than ClickHouse" that says why.
pub(crate) fn wider(record: &Record, columns: &[Column]) -> Option<&'static str> {
    if has_key_in_other_case(record, columns) {
        return Some("a key that is a column's name but for case");
    }
    nodes::of(record, columns).iter().find_map(|node| {
        let (text, bare) = (node.text(), node.bare());
        if node.maybe {
            // There is no wider spelling where ClickHouse's choice of type counts, but for this.
            return decimal_or_negative_zero(node);
        }
        let is_number = bare.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '+');
        match &node.data_type {
            DataType::String | DataType::Array(_) | DataType::Map(..) | DataType::Tuple(_) => None,
            DataType::Variant(_) if decimal_or_negative_zero(node).is_some() => decimal_or_negative_zero(node),
            DataType::Date | DataType::Date32 if bare == "-0" => {
                Some("a whole number with a fraction or exponent in an integer")
            }
            DataType::Dynamic { .. } if text.contains("{}") && text.contains('[') => {
                Some("an empty object among other things in `Dynamic`")
            }
            DataType::Dynamic { .. } | DataType::Json(_) | DataType::Variant(_) => text
                .contains("\\u")
                .then_some("escapes inside a quoted number, date or UUID"),
            _ if node.is_string() && text.contains('\\') => Some("escapes inside a quoted number, date or UUID"),
            data_type
                if is_integer(data_type) && is_number && (bare.contains(['.', 'e', 'E']) || bare.starts_with('-')) =>
            {
                Some("a whole number with a fraction or exponent in an integer")
            }
            DataType::DateTime { .. } if node.is_string() && bare.contains('.') && bare.parse::<f64>().is_ok() => {
                Some("seconds with a fraction in quotes in a `DateTime`")
            }
            DataType::Ipv6 if leading_zeros(&bare) => Some("leading zeros in an IPv4 address in an `IPv6` column"),
            _ => None,
        }
    })
}

/// Both take the record and `column` is not the same: the line of "Different rows" that says why.
pub(crate) fn different(record: &Record, columns: &[Column], column: usize) -> Option<&'static str> {
    if has_key_in_other_case(record, columns) {
        return Some("a key that is a column's name but for case");
    }
    let nodes = nodes::of(record, columns);
    let mut here = nodes.iter().filter(|node| node.column == column).peekable();
    if here.peek().is_none() || here.peek().is_some_and(|node| node.text() == "null") {
        let without_null = columns[column].has_default && !columns[column].data_type.can_be_nullable();
        if without_null {
            return Some("a DEFAULT that a row cannot ask for");
        }
    }
    here.find_map(|node| match &node.data_type {
        _ if node.maybe && in_a_variant(node).is_some() => in_a_variant(node),
        _ if node.maybe && decimal_or_negative_zero(node).is_some() => decimal_or_negative_zero(node),
        DataType::Variant(_) if decimal_or_negative_zero(node).is_some() => decimal_or_negative_zero(node),
        DataType::Enum8(values) if no_value(node) && values.iter().all(|(_, value)| *value != 0) => {
            Some("`null` in an enum without the value 0")
        }
        DataType::Enum16(values) if no_value(node) && values.iter().all(|(_, value)| *value != 0) => {
            Some("`null` in an enum without the value 0")
        }
        DataType::Tuple(_) if has_escaped_key(node.value) => Some("an escaped key of a named tuple"),
        DataType::LowCardinality(_) if is_negative_zero(&node.bare()) => {
            Some("a negative zero in `LowCardinality` of a float")
        }
        DataType::Dynamic { .. } => {
            let text = node.text();
            if text.contains("{}") && text.contains('[') {
                return Some("an empty object among other things in `Dynamic`");
            }
            let parts = || text.split(['"', ',', '[', ']', '{', '}', ':', ' ']);
            if parts().any(|part| no_such_date(part) || year(part).is_some_and(|year| !(1970..=2105).contains(&year))) {
                return Some("dates that do not exist in `Dynamic`");
            }
            let large = |part: &str| {
                part.trim_start_matches('-').len() >= 19
                    && part.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit())
            };
            parts().any(large).then_some("an integer past 64 bits in `Dynamic`")
        }
        _ => None,
    })
}

fn is_negative_zero(text: &str) -> bool {
    text.parse::<f64>()
        .is_ok_and(|value| value == 0.0 && value.is_sign_negative())
}

fn no_value(node: &Node<'_>) -> bool {
    node.value.is_none() && node.key.is_none() || node.text() == "null"
}

fn has_escaped_key(value: Option<&Json>) -> bool {
    matches!(value, Some(Json::Object(fields)) if fields.iter().any(|(key, _)| key.contains("\\u")))
}

fn is_integer(data_type: &DataType) -> bool {
    use DataType::{Int8, Int16, Int32, Int64, Int128, Int256, UInt8, UInt16, UInt32, UInt64, UInt128, UInt256};
    matches!(
        data_type,
        UInt8 | UInt16 | UInt32 | UInt64 | UInt128 | UInt256 | Int8 | Int16 | Int32 | Int64 | Int128 | Int256
    )
}

/// The year that the text begins with.
fn year(text: &str) -> Option<i64> {
    let (digits, rest) = text.split_at_checked(4)?;
    (rest.starts_with(['-', '/', '.'])).then(|| digits.parse().ok())?
}

/// True for `YYYY-MM-DD…` that is no day of the calendar.
fn no_such_date(text: &str) -> bool {
    let mut parts = text.splitn(3, ['-', '/', '.']);
    let (Some(year), Some(month), Some(day)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let day: String = day.chars().take_while(char::is_ascii_digit).take(2).collect();
    let (Ok(year), Ok(month), Ok(day)) = (year.parse::<i16>(), month.parse::<i8>(), day.parse::<i8>()) else {
        return false;
    };
    jiff::civil::Date::new(year, month, day).is_err() || year == 0
}

fn wraps(bare: &str, bits: u32) -> bool {
    bare.parse::<i128>()
        .is_ok_and(|value| value >= 1 << (bits - 1) || value < -(1 << (bits - 1)))
}

fn leading_zeros(address: &str) -> bool {
    let quads = address.rsplit(':').next().unwrap_or_default();
    quads.split('.').count() == 4 && quads.split('.').any(|part| part.len() > 1 && part.starts_with('0'))
}

/// Brackets that are open at once, at most; those in strings are counted too, which no record here has many of.
fn depth(text: &[u8]) -> usize {
    let mut open = 0usize;
    text.iter().fold(0, |deepest, byte| {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        deepest.max(open)
    })
}

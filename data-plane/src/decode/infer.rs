//! The type that a JSON value has by itself, for `Dynamic` columns: ClickHouse's schema inference with its default
//! settings.

use millrace_common::clickhouse::{DataType, TupleElement};

use super::best_effort::{self, Style};
use super::cursor::Cursor;
use super::number;
use super::reject::{Attempt, Fail};
use super::temporal::{self, DATE_DAYS, DATE_TIME_SECONDS};
use crate::batch::block::zone::Zone;

/// What is known of a type so far.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shape {
    /// Nothing: the element of an empty array.
    Unknown,
    Null,
    Bool,
    /// Whole; `negative` if a value below zero was among them.
    Int {
        negative: bool,
    },
    /// Whole and above the range of Int64.
    UInt,
    Float,
    Date,
    DateTime,
    DateTime64,
    String,
    Nullable(Box<Shape>),
    Array(Box<Shape>),
    Object(Vec<(String, Shape)>),
    /// Different things in one array.
    Mixed,
}

/// A number that no type of inference holds: the whole value becomes text.
pub(super) struct TooLarge;

/// The one type of two elements of an array.
type Join = fn(Shape, Shape) -> Shape;

/// Finds the type of the value at the cursor and goes past it.
pub(crate) fn infer(cursor: &mut Cursor<'_>) -> Attempt<DataType> {
    let start = cursor.position();
    // Bounds the depth, so that what follows may recurse.
    cursor.skip_value()?;
    let end = cursor.position();
    cursor.seek(start);
    let depth = cursor.depth();
    let shape = shape(cursor, |left, right| unify(left, right).unwrap_or(Shape::Mixed))?;
    cursor.seek(end);
    cursor.set_depth(depth);
    match shape {
        Ok(shape) => data_type(&shape)
            .ok_or_else(|| Fail::mismatch(start, "has an empty key, which a Dynamic column cannot hold")),
        Err(TooLarge) => Ok(DataType::String),
    }
}

/// The shape of the value at the cursor, whose depth was looked at before.
pub(super) fn shape(cursor: &mut Cursor<'_>, join: Join) -> Attempt<Result<Shape, TooLarge>> {
    Ok(Ok(match cursor.peek() {
        Some(b'n') => cursor.literal("null").map(|()| Shape::Null)?,
        Some(b't') => cursor.literal("true").map(|()| Shape::Bool)?,
        Some(b'f') => cursor.literal("false").map(|()| Shape::Bool)?,
        Some(b'"') => {
            let text = cursor.string()?;
            if text.has_escapes() {
                Shape::String
            } else {
                text_shape(text.raw())
            }
        }
        Some(b'[') => return array_shape(cursor, join),
        Some(b'{') => return object_shape(cursor, join),
        _ => {
            let number = cursor.number()?;
            if !number.is_integer {
                return Ok(Ok(Shape::Float));
            }
            match number::parse_i128(number.text, true) {
                Ok(value) if i64::try_from(value).is_ok() => Shape::Int { negative: value < 0 },
                Ok(value) if u64::try_from(value).is_ok() => Shape::UInt,
                _ => return Ok(Err(TooLarge)),
            }
        }
    }))
}

fn array_shape(cursor: &mut Cursor<'_>, join: Join) -> Attempt<Result<Shape, TooLarge>> {
    cursor.enter()?;
    let mut element = Shape::Unknown;
    if cursor.peek() == Some(b']') {
        cursor.leave();
        return Ok(Ok(Shape::Array(Box::new(element))));
    }
    loop {
        let Ok(next) = shape(cursor, join)? else {
            return Ok(Err(TooLarge));
        };
        element = join(element, next);
        if !cursor.next_item(b']')? {
            return Ok(Ok(Shape::Array(Box::new(element))));
        }
    }
}

fn object_shape(cursor: &mut Cursor<'_>, join: Join) -> Attempt<Result<Shape, TooLarge>> {
    cursor.enter()?;
    let mut fields: Vec<(String, Shape)> = Vec::new();
    if cursor.peek() == Some(b'}') {
        cursor.leave();
        return Ok(Ok(Shape::Object(fields)));
    }
    loop {
        let key = String::from_utf8_lossy(&cursor.key()?.resolve()).into_owned();
        let Ok(field) = shape(cursor, join)? else {
            return Ok(Err(TooLarge));
        };
        fields.push((key, field));
        if !cursor.next_item(b'}')? {
            // A key that stands twice is refused when the value is read into its type.
            fields.sort_by(|(left, _), (right, _)| left.cmp(right));
            fields.dedup_by(|(later, _), (first, _)| later == first);
            return Ok(Ok(Shape::Object(fields)));
        }
    }
}

/// The one type that holds both; `None` if there is none.
pub(super) fn unify(left: Shape, right: Shape) -> Option<Shape> {
    use Shape::{
        Array, Bool, Date, DateTime, DateTime64, Float, Int, Mixed, Null, Nullable, Object, String, UInt, Unknown,
    };
    Some(match (left, right) {
        (left, right) if left == right => left,
        (Unknown, other) | (other, Unknown) => other,
        // Null in a mixed array is one more thing in it.
        (Null, Mixed) | (Mixed, _) | (_, Mixed) => Mixed,
        (Null, other @ (Nullable(_) | Array(_) | Object(_))) | (other @ (Nullable(_) | Array(_) | Object(_)), Null) => {
            other
        }
        (Null, other) | (other, Null) => Nullable(Box::new(other)),
        (Nullable(left), Nullable(right)) => Nullable(Box::new(unify(*left, *right)?)),
        (Nullable(left), right) | (right, Nullable(left)) => match unify(*left, right)? {
            container @ (Array(_) | Object(_)) => container,
            scalar => Nullable(Box::new(scalar)),
        },
        (Int { negative: left }, Int { negative: right }) => Int {
            negative: left || right,
        },
        (Int { negative: false }, UInt) | (UInt, Int { negative: false }) => UInt,
        (Int { .. } | UInt | Float, Float) | (Float, Int { .. } | UInt) => Float,
        (Bool, number @ (Int { .. } | UInt | Float)) | (number @ (Int { .. } | UInt | Float), Bool) => number,
        (Bool, String | Date | DateTime | DateTime64) | (String | Date | DateTime | DateTime64, Bool) => String,
        (Date, DateTime) | (DateTime, Date) => DateTime,
        (Date | DateTime, DateTime64) | (DateTime64, Date | DateTime) => DateTime64,
        (Date | DateTime | DateTime64, String) | (String, Date | DateTime | DateTime64) => String,
        (Array(left), Array(right)) => Array(Box::new(unify(*left, *right)?)),
        (Object(left), Object(right)) => Object(unify_fields(left, right)),
        _ => return None,
    })
}

fn unify_fields(mut left: Vec<(String, Shape)>, right: Vec<(String, Shape)>) -> Vec<(String, Shape)> {
    for (name, shape) in right {
        match left.binary_search_by(|(known, _)| known.cmp(&name)) {
            Ok(place) => {
                // Where the types of one key have nothing in common the first one stands, and the value is refused when
                // it is read: so does ClickHouse.
                let known = std::mem::replace(&mut left[place].1, Shape::Unknown);
                left[place].1 = unify(known.clone(), shape).unwrap_or(known);
            }
            Err(place) => left.insert(place, (name, shape)),
        }
    }
    left
}

/// `None` if there is an empty key.
pub(super) fn data_type(shape: &Shape) -> Option<DataType> {
    Some(match shape {
        Shape::Null => DataType::nullable(DataType::String),
        Shape::Bool => DataType::Bool,
        Shape::Int { .. } => DataType::Int64,
        Shape::UInt => DataType::UInt64,
        Shape::Float => DataType::Float64,
        Shape::Date => DataType::Date,
        Shape::DateTime => DataType::DateTime { time_zone: None },
        Shape::DateTime64 => DataType::DateTime64 {
            precision: 9,
            time_zone: None,
        },
        Shape::Unknown | Shape::String => DataType::String,
        Shape::Nullable(inner) => DataType::nullable(data_type(inner)?),
        Shape::Array(element) => DataType::array(data_type(element)?),
        Shape::Object(fields) if fields.is_empty() => DataType::String,
        Shape::Object(fields) => {
            let element = |(name, shape): &(String, Shape)| {
                let name = (!name.is_empty()).then(|| name.clone())?;
                Some(TupleElement {
                    name: Some(name),
                    data_type: data_type(shape)?,
                })
            };
            DataType::Tuple(fields.iter().map(element).collect::<Option<_>>()?)
        }
        Shape::Mixed => DataType::Dynamic { max_types: None },
    })
}

/// A date, a date-time, or just text.
fn text_shape(text: &[u8]) -> Shape {
    let digits = text.iter().filter(|byte| byte.is_ascii_digit()).count();
    if digits < 4 || text.len() < 8 {
        return Shape::String;
    }
    // `YYYY-MM-DD` or `YYYY/MM/DD`.
    let dashed = matches!(text.get(4), Some(b'-' | b'/'));
    if dashed && text.len() <= 10 && temporal::parse_date(text).is_some_and(|days| DATE_DAYS.contains(&days)) {
        return Shape::Date;
    }
    if number::parse_f64(text).is_ok() {
        return Shape::String;
    }
    // Which zone does not matter for what kind of text it is.
    match best_effort::parse(text, &Zone::Utc, Style::Strict) {
        Some(instant) if instant.digits == 0 && DATE_TIME_SECONDS.contains(&instant.seconds) => Shape::DateTime,
        Some(instant) if temporal::to_ticks(instant, 9).is_some() => Shape::DateTime64,
        _ => Shape::String,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inferred(json: &str) -> String {
        infer(&mut Cursor::new(json.as_bytes())).map_or_else(|fail| fail.kind().to_string(), |t| t.to_string())
    }

    #[test]
    fn types_are_those_that_clickhouse_infers() {
        for (json, wanted) in [
            ("1", "Int64"),
            ("18446744073709551615", "UInt64"),
            ("99999999999999999999", "String"),
            ("1e3", "Float64"),
            ("true", "Bool"),
            (r#""abc""#, "String"),
            (r#""2024-01-01""#, "Date"),
            (r#""2024.01.01""#, "String"),
            (r#""20240101""#, "String"),
            (r#""2024-01-01T10:00:00Z""#, "DateTime"),
            (r#""2024-01-01 10:00:00.123""#, "DateTime64(9)"),
            (r#""Jan 1 2024""#, "DateTime"),
            (r#""12:00""#, "String"),
            ("[]", "Array(String)"),
            ("[null]", "Array(Nullable(String))"),
            ("[1,null]", "Array(Nullable(Int64))"),
            ("[1,2.5,true]", "Array(Float64)"),
            ("[1,18446744073709551615]", "Array(UInt64)"),
            ("[-1,18446744073709551615]", "Array(Dynamic)"),
            (r#"[1,"a"]"#, "Array(Dynamic)"),
            (r#"[[1],["a"]]"#, "Array(Dynamic)"),
            (r#"[false,"2024-01-01"]"#, "Array(String)"),
            (r#"["2024-01-01 10:00:00",null,true]"#, "Array(Nullable(String))"),
            (r#"[1,"2024-01-01",false]"#, "Array(Dynamic)"),
            ("[[],[1]]", "Array(Array(Int64))"),
            ("[[1],null]", "Array(Array(Int64))"),
            ("{}", "String"),
            (
                r#"{"b":1,"a":{"c":null}}"#,
                "Tuple(a Tuple(c Nullable(String)), b Int64)",
            ),
            (r#"[{"b":1},{"a":"2024-01-01"},{}]"#, "Array(Tuple(a Date, b Int64))"),
            ("[1,99999999999999999999]", "String"),
            (r#"{"":1}"#, "type_mismatch"),
        ] {
            assert_eq!(inferred(json), wanted, "{json}");
        }
    }
}

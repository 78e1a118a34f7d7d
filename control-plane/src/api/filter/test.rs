//! One comparison of a field with a value.

use std::cmp::Ordering;

use jiff::{SignedDuration, Timestamp};
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage as _, Value,
};

/// A comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Equal,
    NotEqual,
    Less,
    AtMost,
    More,
    AtLeast,
    /// Is set, holds, or contains.
    Has,
}

impl Op {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Op::Equal | Op::Has => order.is_eq(),
            Op::NotEqual => order.is_ne(),
            Op::Less => order.is_lt(),
            Op::AtMost => order.is_le(),
            Op::More => order.is_gt(),
            Op::AtLeast => order.is_ge(),
        }
    }
}

/// A step from a value to one inside it.
#[derive(Debug)]
pub(super) enum Step {
    Field(FieldDescriptor),
    Key(String),
}

/// What a path leads to.
#[derive(Debug)]
pub(super) enum Last {
    /// One value of a kind.
    One(Kind),
    /// Several of a kind.
    Many(Kind),
    /// A map of text.
    Map,
}

/// What a value is compared with.
#[derive(Debug)]
enum Operand {
    /// Nothing: it has to be there.
    Present,
    Bool(bool),
    Number(f64),
    Integer(i128),
    Text(Pattern),
    /// The number of a value of an enum.
    Enum(i32),
    Time(Timestamp),
    Span(SignedDuration),
    /// A key of a map.
    Key(String),
}

/// Text, or the parts of it around each `*`.
#[derive(Debug)]
enum Pattern {
    Whole(String),
    Parts(Vec<String>),
    /// Anywhere inside.
    Inside(String),
}

/// One comparison.
#[derive(Debug)]
pub(super) struct Test {
    path: Vec<Step>,
    op: Op,
    operand: Operand,
}

impl Test {
    /// The steps that a path takes through a message, and where it ends.
    pub(super) fn path(of: &MessageDescriptor, text: &str) -> Result<(Vec<Step>, Last), String> {
        let (mut steps, mut last) = (Vec::new(), Last::One(Kind::Message(of.clone())));
        let mut names = text.split('.');
        while let Some(name) = names.next() {
            match &last {
                Last::One(Kind::Message(message)) if !is_well_known(message) => {
                    let field = message
                        .fields()
                        .find(|field| field.name() == name || field.json_name() == name)
                        .ok_or_else(|| unknown(message, name))?;
                    last = if field.is_map() {
                        Last::Map
                    } else if field.is_list() {
                        Last::Many(field.kind())
                    } else {
                        Last::One(field.kind())
                    };
                    steps.push(Step::Field(field));
                }
                Last::Map => {
                    // Keys may have dots themselves.
                    let rest: Vec<&str> = std::iter::once(name).chain(names.by_ref()).collect();
                    steps.push(Step::Key(rest.join(".")));
                    last = Last::One(Kind::String);
                }
                Last::Many(_) => return Err(format!("{name:?} is inside of a list: compare lists by `:`")),
                Last::One(_) => return Err(format!("there is no field {name:?} in a value")),
            }
        }
        Ok((steps, last))
    }

    /// A comparison, if it is one that can be made.
    pub(super) fn new(path: Vec<Step>, last: &Last, op: Op, value: &str, quoted: bool) -> Result<Self, String> {
        let operand = match (last, op) {
            (_, Op::Has) if value == "*" && !quoted => Operand::Present,
            (Last::Map, Op::Has) => Operand::Key(value.to_owned()),
            (Last::Map, _) => {
                return Err("a map is compared by its keys: annotations.team = \"a\", annotations:team".to_owned());
            }
            (Last::Many(kind), Op::Has) => operand(kind, Op::Equal, value)?,
            (Last::Many(_), _) => return Err("a list is compared by `:`, which asks what is in it".to_owned()),
            (Last::One(kind), op) => operand(kind, op, value)?,
        };
        Ok(Self { path, op, operand })
    }

    /// Whether it holds of a message.
    pub(super) fn holds(&self, message: &DynamicMessage) -> bool {
        let mut at = Value::Message(message.clone());
        for step in &self.path {
            let next = match (step, &at) {
                (Step::Field(field), Value::Message(message)) if message.has_field(field) => {
                    message.get_field(field).into_owned()
                }
                // Without a value of its own it is what it is if nothing is said, where that cannot be told from being absent.
                (Step::Field(field), Value::Message(message))
                    if !field.supports_presence() && !field.is_list() && !field.is_map() =>
                {
                    if matches!(self.operand, Operand::Present) {
                        return false;
                    }
                    message.get_field(field).into_owned()
                }
                (Step::Key(key), Value::Map(map)) => match map.get(&MapKey::String(key.clone())) {
                    Some(value) => value.clone(),
                    None => return false,
                },
                _ => return false,
            };
            at = next;
        }
        match (&self.operand, &at) {
            (Operand::Key(key), Value::Map(map)) => map.contains_key(&MapKey::String(key.clone())),
            (_, Value::List(values)) if !matches!(self.operand, Operand::Present) => {
                values.iter().any(|value| self.compare(value))
            }
            _ => self.compare(&at),
        }
    }

    fn compare(&self, value: &Value) -> bool {
        let order = match (&self.operand, value) {
            (Operand::Present, Value::List(values)) => return !values.is_empty(),
            (Operand::Present, Value::Map(values)) => return !values.is_empty(),
            (Operand::Present, _) => return true,
            (Operand::Bool(wanted), Value::Bool(found)) => Some(found.cmp(wanted)),
            (Operand::Enum(wanted), Value::EnumNumber(found)) => Some(found.cmp(wanted)),
            (Operand::Integer(wanted), value) => integer(value).map(|found| found.cmp(wanted)),
            (Operand::Number(wanted), Value::F64(found)) => found.partial_cmp(wanted),
            (Operand::Number(wanted), Value::F32(found)) => f64::from(*found).partial_cmp(wanted),
            (Operand::Text(pattern), Value::String(found)) => return self.text(pattern, found),
            (Operand::Time(wanted), Value::Message(message)) => parts(message)
                .and_then(|(s, n)| Timestamp::new(s, n).ok())
                .map(|found| found.cmp(wanted)),
            (Operand::Span(wanted), Value::Message(message)) => {
                parts(message).map(|(s, n)| SignedDuration::new(s, n).cmp(wanted))
            }
            _ => None,
        };
        order.is_some_and(|order| self.op.holds(order))
    }

    fn text(&self, pattern: &Pattern, found: &str) -> bool {
        match pattern {
            Pattern::Inside(part) => found.contains(part),
            Pattern::Parts(parts) => matches(parts, found) == (self.op == Op::Equal),
            Pattern::Whole(whole) => self.op.holds(found.cmp(whole)),
        }
    }
}

fn unknown(message: &MessageDescriptor, name: &str) -> String {
    let names: Vec<String> = message.fields().map(|field| field.name().to_owned()).collect();
    format!("{} has no field {name:?}; it has {}", message.name(), names.join(", "))
}

fn is_well_known(message: &MessageDescriptor) -> bool {
    message.full_name().starts_with("google.protobuf.")
}

fn operand(kind: &Kind, op: Op, value: &str) -> Result<Operand, String> {
    let only_equal = |what: &str| match op {
        Op::Equal | Op::NotEqual => Ok(()),
        _ => Err(format!("{what} are compared by = and != only")),
    };
    match kind {
        Kind::String => Ok(Operand::Text(pattern(op, value))),
        Kind::Bool => {
            only_equal("true and false")?;
            value
                .parse()
                .map(Operand::Bool)
                .map_err(|_| format!("{value:?} is neither true nor false"))
        }
        Kind::Enum(of) => {
            only_equal("names of values")?;
            named(of, value).map(Operand::Enum)
        }
        _ if op == Op::Has => {
            Err("`:` asks for text in text, for a key of a map, or with * whether a field is set".to_owned())
        }
        Kind::Double | Kind::Float => value
            .parse()
            .map(Operand::Number)
            .map_err(|_| format!("{value:?} is no number")),
        Kind::Message(of) => match of.full_name() {
            "google.protobuf.Timestamp" => value
                .parse()
                .map(Operand::Time)
                .map_err(|_| format!("{value:?} is no time such as \"2026-01-31T12:00:00Z\"")),
            "google.protobuf.Duration" => span(value).map(Operand::Span),
            _ => {
                let first = of
                    .fields()
                    .next()
                    .map(|field| field.name().to_owned())
                    .unwrap_or_default();
                Err(format!(
                    "a {} is not compared as a whole, but by its fields, such as `.{first}`",
                    of.name()
                ))
            }
        },
        Kind::Bytes => Err("bytes are not compared".to_owned()),
        _ => value
            .parse()
            .map(Operand::Integer)
            .map_err(|_| format!("{value:?} is no whole number")),
    }
}

/// `*` is a wildcard in quotes, too.
fn pattern(op: Op, value: &str) -> Pattern {
    match op {
        Op::Has => Pattern::Inside(value.to_owned()),
        Op::Equal | Op::NotEqual if value.contains('*') => {
            Pattern::Parts(value.split('*').map(str::to_owned).collect())
        }
        _ => Pattern::Whole(value.to_owned()),
    }
}

/// Whether a text begins with the first part, ends with the last, and has the others between them, in order.
fn matches(parts: &[String], found: &str) -> bool {
    let [first, middle @ .., last] = parts else {
        return false;
    };
    let Some(rest) = found.strip_prefix(first.as_str()) else {
        return false;
    };
    let Some(mut rest) = rest.strip_suffix(last.as_str()) else {
        return false;
    };
    for part in middle {
        let Some(at) = rest.find(part.as_str()) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    true
}

/// A value by its name, or by what of it is not the prefix of all of them.
fn named(of: &EnumDescriptor, value: &str) -> Result<i32, String> {
    let zero = of.default_value();
    let prefix = zero.name().trim_end_matches("UNSPECIFIED").to_owned();
    let found = of
        .values()
        .find(|known| known.name() == value || known.name().strip_prefix(&prefix) == Some(value));
    found.map(|known| known.number()).ok_or_else(|| {
        let names: Vec<String> = of
            .values()
            .filter(|known| known.number() != 0)
            .map(|known| known.name().trim_start_matches(&prefix).to_owned())
            .collect();
        format!("{value:?} is none of {}", names.join(", "))
    })
}

/// Seconds with a fraction, as protobuf writes durations in JSON: `90s`, `0.5s`.
fn span(value: &str) -> Result<SignedDuration, String> {
    let seconds = value.strip_suffix('s').and_then(|seconds| seconds.parse::<f64>().ok());
    seconds
        .and_then(|seconds| SignedDuration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| format!("{value:?} is no duration in seconds such as \"90s\""))
}

fn integer(value: &Value) -> Option<i128> {
    match value {
        Value::I32(found) => Some((*found).into()),
        Value::I64(found) => Some((*found).into()),
        Value::U32(found) => Some((*found).into()),
        Value::U64(found) => Some((*found).into()),
        _ => None,
    }
}

/// Seconds and nanoseconds of a time or a duration.
fn parts(message: &DynamicMessage) -> Option<(i64, i32)> {
    let descriptor = message.descriptor();
    let part = |name| integer(&message.get_field(&descriptor.get_field_by_name(name)?));
    Some((part("seconds")?.try_into().ok()?, part("nanos")?.try_into().ok()?))
}

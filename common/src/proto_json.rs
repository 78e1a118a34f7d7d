//! Messages as JSON in the proto JSON mapping, made friendlier in three ways. Field names may be `snake_case` or
//! `lowerCamelCase`, also in field masks; enum values may leave their prefix out (`TRIM_HORIZON`); and what is wrong is named by its
//! path, with the fields that would be right.

use std::fmt;

use prost_reflect::{DynamicMessage, EnumDescriptor, Kind, MessageDescriptor, SerializeOptions};
use serde_json::Value;

/// What is wrong with a value, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Path of the field, as it was written; empty for the whole value.
    pub path: String,
    /// What is wrong, and what would be right.
    pub what: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            return f.write_str(&self.what);
        }
        write!(f, "{}: {}", self.path, self.what)
    }
}

impl std::error::Error for Error {}

impl Error {
    fn new(path: &str, what: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            what: what.into(),
        }
    }
}

/// A message of a JSON value.
///
/// # Errors
/// The first field that is not as its message has it.
pub fn read(mut value: Value, descriptor: &MessageDescriptor) -> Result<DynamicMessage, Error> {
    if !value.is_object() {
        return Err(Error::new(
            "",
            format!("must be a {}, as a JSON object", descriptor.name()),
        ));
    }
    normalize(&mut value, descriptor, "")?;
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    DynamicMessage::deserialize(descriptor.clone(), tracked).map_err(|error| {
        let path = track.path().to_string();
        Error::new(if path == "." { "" } else { &path }, error.to_string())
    })
}

/// The JSON value of a message. Fields with their default value are left out.
///
/// # Errors
/// If the message has something that JSON has no form for.
pub fn write(message: &DynamicMessage) -> Result<Value, serde_json::Error> {
    message.serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new())
}

/// Checks field names against the descriptor, and writes enum values out in full.
fn normalize(value: &mut Value, message: &MessageDescriptor, path: &str) -> Result<(), Error> {
    // Well-known types have a JSON form of their own (a string), which is checked when it is parsed.
    let Value::Object(fields) = value else { return Ok(()) };
    for (key, value) in fields.iter_mut() {
        let at = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        let Some(field) = message.fields().find(|f| f.name() == key || f.json_name() == key) else {
            let known: Vec<_> = message.fields().map(|f| f.name().to_owned()).collect();
            return Err(Error::new(
                &at,
                format!("no such field; there are: {}", known.join(", ")),
            ));
        };
        let kind = if field.is_map() {
            match field.kind() {
                Kind::Message(entry) => entry.map_entry_value_field().kind(),
                other => other,
            }
        } else {
            field.kind()
        };
        match value {
            Value::Array(items) if field.is_list() => {
                for (index, item) in items.iter_mut().enumerate() {
                    normalize_value(item, &kind, &format!("{at}[{index}]"))?;
                }
            }
            Value::Object(entries) if field.is_map() => {
                for (key, item) in entries.iter_mut() {
                    normalize_value(item, &kind, &format!("{at}[{key}]"))?;
                }
            }
            other => normalize_value(other, &kind, &at)?,
        }
    }
    Ok(())
}

fn normalize_value(value: &mut Value, kind: &Kind, path: &str) -> Result<(), Error> {
    match kind {
        Kind::Message(message) if message.full_name() == "google.protobuf.FieldMask" => {
            if let Value::String(mask) = value {
                *mask = lower_camel(mask);
            }
            Ok(())
        }
        Kind::Message(message) => normalize(value, message, path),
        Kind::Enum(kind) => normalize_enum(value, kind, path),
        _ => Ok(()),
    }
}

fn normalize_enum(value: &mut Value, kind: &EnumDescriptor, path: &str) -> Result<(), Error> {
    let Value::String(given) = value else { return Ok(()) };
    let wanted = given.to_ascii_uppercase();
    let prefix = enum_prefix(kind);
    if let Some(found) = kind
        .values()
        .find(|known| known.name() == wanted || known.name().strip_prefix(&prefix) == Some(&wanted))
    {
        *given = found.name().to_owned();
        return Ok(());
    }
    let known: Vec<_> = kind
        .values()
        .filter(|value| value.number() != 0)
        .map(|value| value.name().trim_start_matches(&prefix).to_owned())
        .collect();
    Err(Error::new(
        path,
        format!("{given:?} is not one of {}", known.join(", ")),
    ))
}

/// What the names of an enum's values begin with: of `…_UNSPECIFIED`, all before that word.
fn enum_prefix(kind: &EnumDescriptor) -> String {
    kind.default_value().name().trim_end_matches("UNSPECIFIED").to_owned()
}

/// The names of a field mask as its JSON form has them.
fn lower_camel(mask: &str) -> String {
    let mut camel = String::with_capacity(mask.len());
    let mut upper = false;
    for c in mask.chars() {
        match c {
            '_' => upper = true,
            _ if upper => {
                camel.extend(c.to_uppercase());
                upper = false;
            }
            _ => camel.push(c),
        }
    }
    camel
}

//! `millrace explain`: what the fields of a file are, in the words of the protocol. Asks nobody.

use millrace_proto::{DESCRIPTOR_POOL, comments};
use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};

use crate::{exit::Error, output};

/// The package of the API.
const PACKAGE: &str = "millrace.api.v1";
/// Widest line of text.
const WIDTH: usize = 100;

/// Prints what is at a path such as `pipe.source.kinesis`; without one, what there is to explain.
pub(crate) fn run(path: Option<&str>) -> Result<(), Error> {
    output::line(explain(path.unwrap_or("pipe"))?.trim_end())
}

fn explain(path: &str) -> Result<String, Error> {
    let mut parts = path.split('.');
    let first = parts.next().unwrap_or_default();
    let mut message = root(first)?;
    let mut walked = first.to_owned();
    let mut field: Option<FieldDescriptor> = None;
    for part in parts {
        if let Some(field) = &field {
            message = inside(field).ok_or_else(|| Error::Local(format!("{walked} has no fields")))?;
        }
        let next = message
            .fields()
            .find(|field| field.name() == part || field.json_name() == part);
        let next = next.ok_or_else(|| {
            let known: Vec<_> = message.fields().map(|field| field.name().to_owned()).collect();
            Error::Local(format!(
                "{walked} has no field {part:?}; there are: {}",
                known.join(", ")
            ))
        })?;
        walked.push('.');
        walked.push_str(next.name());
        field = Some(next);
    }
    let Some(field) = field else {
        let mut text = format!("{walked}\n{}", paragraph(&comments::of_message(&message), 0));
        fields(&message, &mut text);
        return Ok(text);
    };
    let mut text = format!(
        "{walked}: {}\n{}",
        type_of(&field),
        paragraph(&comments::of_field(&field), 0)
    );
    if let Some(message) = inside(&field) {
        fields(&message, &mut text);
    } else if let Kind::Enum(values) = field.kind() {
        list_values(&values, &mut text);
    }
    Ok(text)
}

/// A message that files hold, by the name of its kind.
fn root(name: &str) -> Result<MessageDescriptor, Error> {
    let wanted = |name: &str| {
        let message = DESCRIPTOR_POOL.get_message_by_name(&format!("{PACKAGE}.{name}"));
        message.filter(|message| !message.is_map_entry())
    };
    let capital = name.chars().next().map(|first| {
        let rest = &name[first.len_utf8()..];
        format!("{}{rest}", first.to_uppercase())
    });
    wanted(name).or_else(|| wanted(&capital?)).ok_or_else(|| {
        Error::Local(format!(
            "{name:?} is not explained; begin with pipe or credential, such as pipe.source.kinesis"
        ))
    })
}

/// The message that a field holds, if its fields can be written one by one.
fn inside(field: &FieldDescriptor) -> Option<MessageDescriptor> {
    match field.kind() {
        Kind::Message(message) if !field.is_map() && message.package_name() == PACKAGE => Some(message),
        _ => None,
    }
}

fn fields(message: &MessageDescriptor, text: &mut String) {
    for field in message.fields() {
        text.push_str(&format!("\n  {}: {}\n", field.name(), type_of(&field)));
        text.push_str(&paragraph(&comments::of_field(&field), 6));
    }
}

fn list_values(values: &EnumDescriptor, text: &mut String) {
    let prefix = values.default_value().name().trim_end_matches("UNSPECIFIED").to_owned();
    for value in values.values().filter(|value| value.number() != 0) {
        let short = value.name().strip_prefix(&prefix).unwrap_or(value.name());
        text.push_str(&format!("\n  {short}\n{}", paragraph(&comments::of_value(&value), 6)));
    }
}

/// A field's type, as people write it in a file.
fn type_of(field: &FieldDescriptor) -> String {
    if field.is_map() {
        return "map of text to text".to_owned();
    }
    let one = match field.kind() {
        Kind::Bool => "true or false".to_owned(),
        Kind::String => "text".to_owned(),
        Kind::Bytes => "base64".to_owned(),
        Kind::Float | Kind::Double => "number".to_owned(),
        Kind::Enum(values) => values.name().to_owned(),
        Kind::Message(message) => match message.full_name() {
            "google.protobuf.Timestamp" => "time, such as 2026-11-22T12:00:00Z".to_owned(),
            "google.protobuf.Duration" => "duration, such as 2.5s".to_owned(),
            _ => message.name().to_owned(),
        },
        _ => "whole number".to_owned(),
    };
    if field.is_list() { format!("list of {one}") } else { one }
}

/// Text in lines that fit, each with this many spaces before it.
fn paragraph(text: &str, indent: usize) -> String {
    let mut lines = String::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && indent + line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push_str(&format!("{:indent$}{line}\n", ""));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        lines.push_str(&format!("{:indent$}{line}\n", ""));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_explained_by_their_paths() {
        let text = explain("pipe.source.kinesis").unwrap();
        assert!(
            text.starts_with("pipe.source.kinesis: KinesisSource\nAmazon Kinesis Data Streams.\n"),
            "{text}"
        );
        assert!(
            text.contains("\n  stream_arn: text\n      ARN of the stream;"),
            "{text}"
        );
        let text = explain("pipe.settings.maxInsertWait").unwrap();
        assert!(
            text.starts_with("pipe.settings.max_insert_wait: duration, such as 2.5s\n"),
            "{text}"
        );
        let text = explain("pipe.desired_state").unwrap();
        assert!(
            text.contains("\n  STOPPED\n      Flush, commit and hold the position.\n"),
            "{text}"
        );
        assert!(explain("Credential").unwrap().contains("aws_role: AwsRole"));
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    }

    #[test]
    fn what_is_not_there_is_said_with_what_is() {
        let refused = |path: &str| match explain(path) {
            Err(Error::Local(message)) => message,
            other => panic!("{other:?}"),
        };
        assert!(refused("pipe.sauce").contains("there are: name, uid,"));
        assert_eq!(refused("pipe.name.x"), "pipe.name has no fields");
        assert!(refused("").contains("begin with pipe"));
        assert!(refused("pype").contains("pype"));
    }
}

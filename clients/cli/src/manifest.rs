//! Resources as files: YAML or JSON in the proto JSON mapping, as friendly as [`proto_json`] reads it.

use std::{io::Read as _, path::Path};

use millrace_common::proto_json;
use millrace_proto::DESCRIPTOR_POOL;
use prost::Message;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use serde::Deserialize as _;
use serde_json::Value;

use crate::exit::Error;

/// Largest file that is read; a pipe is a few kilobytes.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Reads a file, or standard input for `-`.
pub(crate) fn read(path: &Path) -> Result<String, Error> {
    let mut text = String::new();
    let result = if path == Path::new("-") {
        std::io::stdin().take(MAX_FILE_BYTES).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text))
    };
    result.map_err(|error| Error::Local(format!("cannot read {}: {error}", path.display())))?;
    Ok(text)
}

/// Parses a resource of the message type `full_name`. A `kind` key, if there is one, must be the type's short name.
pub(crate) fn parse<M: Message + Default>(text: &str, full_name: &str) -> Result<M, Error> {
    // YAML is a superset of JSON.
    let value: Value = serde_yaml_ng::from_str(text)
        .map_err(|error| Error::Local(format!("the file is neither YAML nor JSON: {error}")))?;
    message(value, full_name)
}

/// A file as it is.
pub(crate) fn value(text: &str) -> Result<Value, Error> {
    serde_yaml_ng::from_str(text).map_err(|error| Error::Local(error.to_string()))
}

/// Parses the resources of a file with any number of YAML documents. Empty documents are left out.
pub(crate) fn parse_all<M: Message + Default>(text: &str, full_name: &str) -> Result<Vec<M>, Error> {
    let mut all = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = Value::deserialize(document)
            .map_err(|error| Error::Local(format!("the file is neither YAML nor JSON: {error}")))?;
        if !value.is_null() {
            all.push(value);
        }
    }
    let single = all.len() == 1;
    let all = all.into_iter().enumerate().map(|(index, value)| {
        message(value, full_name).map_err(|error| match error {
            Error::Local(what) if !single => Error::Local(format!("document {}: {what}", index + 1)),
            error => error,
        })
    });
    let all = all.collect::<Result<Vec<_>, _>>()?;
    if all.is_empty() {
        return Err(Error::Local("the file is empty".to_owned()));
    }
    Ok(all)
}

fn message<M: Message + Default>(mut value: Value, full_name: &str) -> Result<M, Error> {
    let descriptor = descriptor(full_name)?;
    let Value::Object(fields) = &mut value else {
        return Err(Error::Local(format!(
            "the file must hold one {}, as a mapping",
            descriptor.name()
        )));
    };
    if let Some(kind) = fields.remove("kind")
        && kind.as_str() != Some(descriptor.name())
    {
        return Err(Error::Local(format!("kind: must be {}, not {kind}", descriptor.name())));
    }
    let dynamic = proto_json::read(value, &descriptor).map_err(|error| Error::Local(error.to_string()))?;
    dynamic
        .transcode_to()
        .map_err(|error| Error::Local(format!("the file does not fit: {error}")))
}

/// A message in the proto JSON mapping.
pub(crate) fn to_json<M: Message>(message: &M, full_name: &str) -> Result<Value, Error> {
    let dynamic = DynamicMessage::decode(descriptor(full_name)?, message.encode_to_vec().as_slice())
        .map_err(|error| Error::Local(format!("the answer does not decode: {error}")))?;
    proto_json::write(&dynamic).map_err(|error| Error::Local(format!("the answer does not print: {error}")))
}

fn descriptor(full_name: &str) -> Result<MessageDescriptor, Error> {
    DESCRIPTOR_POOL
        .get_message_by_name(full_name)
        .ok_or_else(|| Error::Local(format!("{full_name} is not in the protocol")))
}

#[cfg(test)]
mod tests {
    use millrace_proto::api::v1::{DesiredState, IteratorType, Pipe, source};

    use super::*;

    const PIPE: &str = "millrace.api.v1.Pipe";

    fn refused(text: &str) -> String {
        match parse::<Pipe>(text, PIPE) {
            Err(Error::Local(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn both_spellings_and_short_enum_values() {
        for text in [
            "kind: Pipe\ndesired_state: stopped\nsource:\n  kinesis:\n    stream_name: s\n    iterator_type: LATEST\nsettings: {max_insert_wait: 0.5s}\n",
            r#"{"desiredState":"DESIRED_STATE_STOPPED","source":{"kinesis":{"streamName":"s","iteratorType":"ITERATOR_TYPE_LATEST"}},"settings":{"maxInsertWait":"0.500s"}}"#,
        ] {
            let pipe: Pipe = parse(text, PIPE).unwrap();
            assert_eq!(pipe.desired_state(), DesiredState::Stopped);
            assert_eq!(pipe.settings.unwrap().max_insert_wait.unwrap().nanos, 500_000_000);
            let Some(source::Kind::Kinesis(kinesis)) = pipe.source.unwrap().kind else {
                panic!()
            };
            assert_eq!(
                (kinesis.stream_name.as_str(), kinesis.iterator_type()),
                ("s", IteratorType::Latest)
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        assert!(
            refused("source: {kinesis: {streem: x}}")
                .starts_with("source.kinesis.streem: no such field; there are: format,")
        );
        assert_eq!(
            refused("source: {kinesis: {iterator_type: NEWEST}}"),
            "source.kinesis.iterator_type: \"NEWEST\" is not one of TRIM_HORIZON, LATEST, AT_TIMESTAMP"
        );
        assert!(refused("settings: {max_insert_wait: soon}").starts_with("settings.max_insert_wait:"));
        assert_eq!(refused("kind: Credential"), "kind: must be Pipe, not \"Credential\"");
        assert!(refused("[1]").contains("must hold one Pipe"));
        assert!(refused("a: [").contains("neither YAML nor JSON"));
        assert!(refused("destination: {columns: [{name: a, type: 1}]}").starts_with("destination.columns[0].type:"));
    }

    #[test]
    fn a_file_may_hold_several() {
        let names = |text| {
            let pipes: Vec<Pipe> = parse_all(text, PIPE).unwrap();
            pipes.into_iter().map(|pipe| pipe.name).collect::<Vec<_>>()
        };
        assert_eq!(names("name: a"), ["a"]);
        assert_eq!(names("---\nkind: Pipe\nname: a\n---\n---\nname: b\n"), ["a", "b"]);
        let wrong = |text| match parse_all::<Pipe>(text, PIPE) {
            Err(Error::Local(message)) => message,
            other => panic!("{other:?}"),
        };
        assert!(wrong("name: a\n---\nnome: b\n").starts_with("document 2: nome: no such field"));
        assert!(wrong("nome: b\n").starts_with("nome: no such field"));
        assert_eq!(wrong("---\n"), "the file is empty");
    }

    #[test]
    fn what_is_printed_can_be_read_back() {
        let text = "name: projects/default/pipes/a\nannotations: {team: x}\nsettings: {max_batch_rows: 7}\n";
        let pipe: Pipe = parse(text, PIPE).unwrap();
        let json = to_json(&pipe, PIPE).unwrap();
        assert_eq!(parse::<Pipe>(&json.to_string(), PIPE).unwrap(), pipe);
    }
}

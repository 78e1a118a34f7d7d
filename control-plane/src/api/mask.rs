//! Field masks: which fields of a stored pipe an update replaces.
//!
//! A mask names fields by dotted paths; a named field that the update does not set goes back to its default. `*` replaces
//! everything that can be written. Without a mask, what is set in the update replaces what is stored, field by field.
//! What only the server writes is ignored, as AIP-203 asks.

use millrace_common::error::ApiError;
use millrace_proto::{DESCRIPTOR_POOL, api::v1 as proto};
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, ReflectMessage as _, Value};
use prost_types::FieldMask;

use super::convert::quoted;

/// Fields of a pipe that users write.
const WRITABLE: [&str; 9] = [
    "display_name",
    "annotations",
    "source",
    "destination",
    "field_mappings",
    "decoding",
    "scaling",
    "settings",
    "desired_state",
];
/// Fields that identify a pipe, or that only the server writes.
const IGNORED: [&str; 8] = [
    "name",
    "uid",
    "status",
    "revision",
    "etag",
    "reconciling",
    "create_time",
    "update_time",
];
/// Most paths of a mask: a pipe has some fifty fields.
const MAX_PATHS: usize = 200;
const FIELD: &str = "update_mask";

/// The stored pipe with the masked fields of `update`. Of the stored pipe, only what users write is read and returned.
pub(super) fn apply(
    stored: &proto::Pipe,
    update: &proto::Pipe,
    mask: Option<&FieldMask>,
) -> Result<proto::Pipe, ApiError> {
    let descriptor = pipe_descriptor()?;
    let mut target = dynamic(&descriptor, stored)?;
    let source = dynamic(&descriptor, update)?;
    let paths = mask.map(|mask| mask.paths.as_slice()).unwrap_or_default();
    match paths {
        [] => merge_writable(&mut target, &source),
        [all] if all == "*" => {
            for root in WRITABLE {
                copy(&mut target, Some(&source), root, root)?;
            }
        }
        paths if paths.len() > MAX_PATHS => {
            return Err(ApiError::invalid_field(
                FIELD,
                format!("has more than {MAX_PATHS} paths"),
            ));
        }
        paths => {
            for path in paths {
                named(&mut target, &source, path)?;
            }
        }
    }
    target.transcode_to().map_err(|error| ApiError::internal(&error))
}

/// A mask of all that makes up a revision: what users write, but for whether the pipe is to run.
pub(super) fn specification() -> FieldMask {
    let roots = WRITABLE.iter().filter(|root| **root != "desired_state");
    FieldMask {
        paths: roots.map(|root| (*root).to_owned()).collect(),
    }
}

/// Paths of the fields that users write and that differ, as a mask would name them.
pub(super) fn changed(before: &proto::Pipe, after: &proto::Pipe) -> Result<Vec<String>, ApiError> {
    let descriptor = pipe_descriptor()?;
    let (before, after) = (dynamic(&descriptor, before)?, dynamic(&descriptor, after)?);
    let mut paths = Vec::new();
    for root in WRITABLE {
        if let Some(field) = descriptor.get_field_by_name(root) {
            differences(&before, &after, &field, "", &mut paths);
        }
    }
    Ok(paths)
}

fn differences(
    before: &DynamicMessage,
    after: &DynamicMessage,
    field: &prost_reflect::FieldDescriptor,
    prefix: &str,
    paths: &mut Vec<String>,
) {
    let (old, new) = (before.get_field(field), after.get_field(field));
    if old == new && before.has_field(field) == after.has_field(field) {
        return;
    }
    let path = format!("{prefix}{}", field.name());
    let descend = !field.is_list() && !field.is_map() && is_own_message(&field.kind());
    if let (true, Some(old), Some(new)) = (descend, old.as_message(), new.as_message()) {
        let prefix = format!("{path}.");
        for field in old.descriptor().fields() {
            differences(old, new, &field, &prefix, paths);
        }
        return;
    }
    paths.push(path);
}

fn pipe_descriptor() -> Result<MessageDescriptor, ApiError> {
    DESCRIPTOR_POOL
        .get_message_by_name("millrace.api.v1.Pipe")
        .ok_or_else(|| ApiError::new(tonic::Code::Internal, "INTERNAL", "the pipe message is not described"))
}

fn dynamic(descriptor: &MessageDescriptor, pipe: &proto::Pipe) -> Result<DynamicMessage, ApiError> {
    let mut message = DynamicMessage::new(descriptor.clone());
    message
        .transcode_from(pipe)
        .map_err(|error| ApiError::internal(&error))?;
    Ok(message)
}

fn named(target: &mut DynamicMessage, source: &DynamicMessage, path: &str) -> Result<(), ApiError> {
    let root = path.split('.').next().unwrap_or_default();
    if IGNORED.contains(&root) {
        return Ok(());
    }
    if path == "*" {
        return Err(ApiError::invalid_field(FIELD, "\"*\" stands alone or not at all"));
    }
    if !WRITABLE.contains(&root) {
        return Err(unknown(path));
    }
    copy(target, Some(source), path, path)
}

fn unknown(path: &str) -> ApiError {
    let what = format!(
        "{} is not a field of a pipe that can be set; the fields are {}",
        quoted(path),
        WRITABLE.join(", ")
    );
    ApiError::invalid_field(FIELD, what)
}

/// Sets the field at `path` to what it is in `source`, or clears it if it is not set there. `whole` is for messages.
fn copy(target: &mut DynamicMessage, source: Option<&DynamicMessage>, path: &str, whole: &str) -> Result<(), ApiError> {
    let (first, rest) = match path.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (path, None),
    };
    let field = target
        .descriptor()
        .get_field_by_name(first)
        .ok_or_else(|| unknown(whole))?;
    let given = source
        .filter(|source| source.has_field(&field))
        .map(|source| source.get_field(&field));
    let Some(rest) = rest else {
        match given {
            Some(value) => target.set_field(&field, value.into_owned()),
            None => target.clear_field(&field),
        }
        return Ok(());
    };
    let singular = !field.is_list() && !field.is_map() && is_own_message(&field.kind());
    let Value::Message(inner) = target.get_field_mut(&field) else {
        return Err(not_inside(whole, first));
    };
    if !singular {
        return Err(not_inside(whole, first));
    }
    let given = given.as_deref().and_then(Value::as_message);
    copy(inner, given, rest, whole)
}

fn not_inside(path: &str, at: &str) -> ApiError {
    ApiError::invalid_field(FIELD, format!("{}: {at} can be set as a whole only", quoted(path)))
}

fn merge_writable(target: &mut DynamicMessage, source: &DynamicMessage) {
    for root in WRITABLE {
        if let Some(field) = source.descriptor().get_field_by_name(root)
            && source.has_field(&field)
        {
            merge_field(target, &field, &source.get_field(&field));
        }
    }
}

fn merge_field(target: &mut DynamicMessage, field: &prost_reflect::FieldDescriptor, value: &Value) {
    let descend = !field.is_list() && !field.is_map() && is_own_message(&field.kind());
    if let (true, Some(given)) = (descend, value.as_message())
        && let Value::Message(inner) = target.get_field_mut(field)
    {
        for (field, value) in given.fields() {
            merge_field(inner, &field, value);
        }
        return;
    }
    target.set_field(field, value.clone());
}

/// Messages of ours have fields that can be set one by one; a time or a span is one value.
fn is_own_message(kind: &Kind) -> bool {
    matches!(kind, Kind::Message(message) if message.package_name() == "millrace.api.v1")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn stored() -> proto::Pipe {
        proto::Pipe {
            display_name: "old".into(),
            annotations: BTreeMap::from([("a".to_owned(), "1".to_owned())]),
            source: Some(proto::Source {
                kind: Some(proto::source::Kind::Kinesis(proto::KinesisSource {
                    stream_name: "events".into(),
                    region: "eu-central-1".into(),
                    ..Default::default()
                })),
            }),
            destination: Some(proto::Destination {
                table: "events".into(),
                managed_table: true,
                columns: vec![proto::Column {
                    name: "id".into(),
                    r#type: "UInt64".into(),
                }],
                ..Default::default()
            }),
            settings: Some(proto::Settings {
                max_batch_rows: 7,
                max_insert_wait: Some(prost_types::Duration { seconds: 5, nanos: 6 }),
                ..Default::default()
            }),
            desired_state: 1,
            ..Default::default()
        }
    }

    fn update() -> proto::Pipe {
        proto::Pipe {
            name: "projects/p/pipes/x".into(),
            revision: 99,
            display_name: "new".into(),
            settings: Some(proto::Settings {
                max_batch_bytes: 9,
                max_insert_wait: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn mask(paths: &[&str]) -> Option<FieldMask> {
        Some(FieldMask {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        })
    }

    #[test]
    fn named_fields_are_replaced_and_no_others() {
        let merged = apply(&stored(), &update(), mask(&["settings.max_batch_bytes"]).as_ref()).unwrap();
        let mut expected = stored();
        expected.settings.as_mut().unwrap().max_batch_bytes = 9;
        assert_eq!(merged, expected);
    }

    #[test]
    fn a_named_field_that_is_not_set_is_cleared() {
        let merged = apply(
            &stored(),
            &proto::Pipe::default(),
            mask(&["annotations", "settings.max_batch_rows"]).as_ref(),
        );
        let mut expected = stored();
        expected.annotations.clear();
        expected.settings.as_mut().unwrap().max_batch_rows = 0;
        assert_eq!(merged.unwrap(), expected);
    }

    #[test]
    fn without_a_mask_what_is_set_is_merged() {
        for mask in [None, mask(&[])] {
            let merged = apply(&stored(), &update(), mask.as_ref()).unwrap();
            let mut expected = stored();
            expected.display_name = "new".into();
            let settings = expected.settings.as_mut().unwrap();
            settings.max_batch_bytes = 9;
            settings.max_insert_wait = Some(prost_types::Duration { seconds: 1, nanos: 0 });
            assert_eq!(merged, expected);
        }
    }

    #[test]
    fn a_star_replaces_all_that_users_write() {
        let merged = apply(&stored(), &update(), mask(&["*"]).as_ref()).unwrap();
        let expected = proto::Pipe {
            name: String::new(),
            revision: 0,
            ..update()
        };
        assert_eq!(merged, expected);
    }

    #[test]
    fn what_the_server_writes_is_ignored() {
        let merged = apply(
            &stored(),
            &update(),
            mask(&["name", "uid", "revision", "status.state", "etag"]).as_ref(),
        );
        assert_eq!(merged.unwrap(), stored());
    }

    #[test]
    fn differences_are_named_as_a_mask_would() {
        assert_eq!(changed(&stored(), &stored()).unwrap(), Vec::<String>::new());
        let mut after = stored();
        after.display_name = "new".into();
        after.annotations.insert("b".into(), "2".into());
        after.settings.as_mut().unwrap().max_insert_wait = None;
        after.destination.as_mut().unwrap().columns.clear();
        after.desired_state = 2;
        after.revision = 9;
        let expected = [
            "display_name",
            "annotations",
            "destination.columns",
            "settings.max_insert_wait",
            "desired_state",
        ];
        assert_eq!(changed(&stored(), &after).unwrap(), expected);
    }

    #[test]
    fn other_paths_are_refused() {
        for path in [
            "",
            "nope",
            "settings.nope",
            "settings.max_insert_wait.seconds",
            "annotations.a",
            "destination.columns[0]",
            "destination.columns.name",
            "display_name.x",
            "settings..max_batch_rows",
            "display_name,settings",
        ] {
            let error = apply(&stored(), &update(), mask(&[path]).as_ref()).unwrap_err();
            assert_eq!(error.fields[0].field, "update_mask", "{path}");
        }
        assert!(apply(&stored(), &update(), mask(&["*", "settings"]).as_ref()).is_err());
        let many = vec!["display_name"; 1_000_000];
        assert!(apply(&stored(), &update(), mask(&many).as_ref()).is_err());
    }
}

//! What the protocol says of its parts, in the words of its files: one line of text each, empty where there is none.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, PoisonError},
};

use prost_reflect::{
    EnumDescriptor, EnumValueDescriptor, FieldDescriptor, FileDescriptor, MessageDescriptor, MethodDescriptor,
    ServiceDescriptor,
};

// Numbers of the fields of descriptors that lead to comments (google/protobuf/descriptor.proto).
const FILE_MESSAGE: i32 = 4;
const FILE_ENUM: i32 = 5;
const FILE_SERVICE: i32 = 6;
const MESSAGE_FIELD: i32 = 2;
const ENUM_VALUE: i32 = 2;
const SERVICE_METHOD: i32 = 2;

/// Comments of a file by what they are about.
type Comments = HashMap<Vec<i32>, String>;

/// What a message is.
#[must_use]
pub fn of_message(message: &MessageDescriptor) -> String {
    place(message).map_or_else(String::new, |at| comment(&message.parent_file(), &at))
}

/// What a field of a message is.
#[must_use]
pub fn of_field(field: &FieldDescriptor) -> String {
    let message = field.parent_message();
    // Descriptors have fields in the order of their numbers; comments are counted as the file has them.
    let mut declared = message.descriptor_proto().field.iter();
    let nth = declared.position(|other| other.name() == field.name());
    let (Some(mut at), Some(nth)) = (place(message), nth) else {
        return String::new();
    };
    at.extend([MESSAGE_FIELD, count(nth)]);
    comment(&message.parent_file(), &at)
}

/// What an enum is.
#[must_use]
pub fn of_enum(values: &EnumDescriptor) -> String {
    enum_place(values).map_or_else(String::new, |at| comment(&values.parent_file(), &at))
}

/// What a value of an enum is.
#[must_use]
pub fn of_value(value: &EnumValueDescriptor) -> String {
    let values = value.parent_enum();
    let mut declared = values.enum_descriptor_proto().value.iter();
    let nth = declared.position(|other| other.name() == value.name());
    let (Some(mut at), Some(nth)) = (enum_place(values), nth) else {
        return String::new();
    };
    at.extend([ENUM_VALUE, count(nth)]);
    comment(&values.parent_file(), &at)
}

/// What a service is.
#[must_use]
pub fn of_service(service: &ServiceDescriptor) -> String {
    service_place(service).map_or_else(String::new, |at| comment(&service.parent_file(), &at))
}

/// What a method does.
#[must_use]
pub fn of_method(method: &MethodDescriptor) -> String {
    let service = method.parent_service();
    let nth = service.methods().position(|other| other == *method);
    let (Some(mut at), Some(nth)) = (service_place(service), nth) else {
        return String::new();
    };
    at.extend([SERVICE_METHOD, count(nth)]);
    comment(&service.parent_file(), &at)
}

/// Where a message stands in its file; ours are in no other message.
fn place(message: &MessageDescriptor) -> Option<Vec<i32>> {
    let nth = message.parent_file().messages().position(|other| other == *message)?;
    Some(vec![FILE_MESSAGE, count(nth)])
}

fn enum_place(values: &EnumDescriptor) -> Option<Vec<i32>> {
    let nth = values.parent_file().enums().position(|other| other == *values)?;
    Some(vec![FILE_ENUM, count(nth)])
}

fn service_place(service: &ServiceDescriptor) -> Option<Vec<i32>> {
    let nth = service.parent_file().services().position(|other| other == *service)?;
    Some(vec![FILE_SERVICE, count(nth)])
}

/// A place as descriptors count it; nothing is at one that does not fit.
fn count(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(-1)
}

fn comment(file: &FileDescriptor, at: &[i32]) -> String {
    static FILES: LazyLock<Mutex<HashMap<String, Comments>>> = LazyLock::new(Mutex::default);
    let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let comments = files.entry(file.name().to_owned()).or_insert_with(|| read(file));
    comments.get(at).cloned().unwrap_or_default()
}

fn read(file: &FileDescriptor) -> Comments {
    let descriptor = file.file_descriptor_proto();
    let locations = descriptor
        .source_code_info
        .as_ref()
        .map(|info| info.location.as_slice());
    let of = |location: &prost_types::source_code_info::Location| {
        let text = location.leading_comments.as_ref()?;
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        Some((location.path.clone(), lines.join(" ").trim().to_owned()))
    };
    locations.unwrap_or_default().iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DESCRIPTOR_POOL;

    #[test]
    fn each_part_of_the_api_says_what_it_is() {
        let mut silent = Vec::new();
        let mut note = |name: &str, text: String| {
            if text.is_empty() {
                silent.push(name.to_owned());
            }
        };
        let ours = |package: &str| package == "millrace.api.v1";
        for message in DESCRIPTOR_POOL.all_messages().filter(|one| ours(one.package_name())) {
            if message.is_map_entry() {
                continue;
            }
            note(message.full_name(), of_message(&message));
            for field in message.fields() {
                note(field.full_name(), of_field(&field));
            }
        }
        for values in DESCRIPTOR_POOL.all_enums().filter(|one| ours(one.package_name())) {
            note(values.full_name(), of_enum(&values));
            for value in values.values() {
                note(value.full_name(), of_value(&value));
            }
        }
        for service in DESCRIPTOR_POOL.services().filter(|one| ours(one.package_name())) {
            note(service.full_name(), of_service(&service));
            for method in service.methods() {
                note(method.full_name(), of_method(&method));
            }
        }
        assert!(silent.is_empty(), "{silent:?}");
        let pipe = DESCRIPTOR_POOL.get_message_by_name("millrace.api.v1.Pipe").unwrap();
        let decoding = pipe.get_field_by_name("decoding").unwrap();
        assert_eq!(of_field(&decoding), "How records become rows.");
    }
}

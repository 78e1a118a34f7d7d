//! What of a record goes into which column, and what becomes of the rest.

use std::collections::BTreeSet;

use millrace_common::{
    json_pointer::JsonPointer,
    pipe::{Decoding, Destination, Envelope, FieldMapping, OutOfRangePolicy, UnknownFieldPolicy},
};
use millrace_proto::api::v1 as proto;
use serde::de::IgnoredAny;

use super::{
    Violations,
    destination::{MAX_COLUMNS, check},
    names, quoted, unknown_enum,
};

/// Longest path of a source field.
const MAX_SOURCE_FIELD_BYTES: usize = 1_024;
/// Longest constant: it is written into every row.
const MAX_CONSTANT_BYTES: usize = 65_536;
/// Longest separator of flattened names.
const MAX_SEPARATOR_BYTES: usize = 8;
const SEPARATOR: &str = "pipe.decoding.flatten_separator";

pub(super) fn field_mappings(
    given: &[proto::FieldMapping],
    destination: Option<&Destination>,
    violations: &mut Violations,
) -> Vec<FieldMapping> {
    if given.len() > MAX_COLUMNS {
        let what = format!("has {} entries; at most {MAX_COLUMNS} are allowed", given.len());
        violations.add("pipe.field_mappings", what);
        return Vec::new();
    }
    let columns: Option<BTreeSet<&str>> = destination
        .map(|destination| destination.columns.iter().map(|column| column.name.as_str()).collect())
        .filter(|columns: &BTreeSet<&str>| !columns.is_empty());
    let mut seen = BTreeSet::new();
    for (index, mapping) in given.iter().enumerate() {
        let field = |name: &str| format!("pipe.field_mappings[{index}].{name}");
        if mapping.constant.is_empty() {
            source_field(&mapping.source_field, &field("source_field"), violations);
        } else {
            constant(mapping, field, violations);
        }
        let target = field("destination_field");
        check(names::identifier(&mapping.destination_field), &target, violations);
        if !seen.insert(mapping.destination_field.as_str()) {
            violations.add(
                &target,
                format!("{} is filled twice", quoted(&mapping.destination_field)),
            );
        }
        if columns
            .as_ref()
            .is_some_and(|columns| !columns.contains(mapping.destination_field.as_str()))
        {
            let what = format!(
                "{} is not in pipe.destination.columns: add it there",
                quoted(&mapping.destination_field)
            );
            violations.add(&target, what);
        }
    }
    let mapping = |mapping: &proto::FieldMapping| FieldMapping {
        source_field: mapping.source_field.clone(),
        destination_field: mapping.destination_field.clone(),
        constant: Some(mapping.constant.clone()).filter(|constant| !constant.is_empty()),
        required: mapping.required,
    };
    given.iter().map(mapping).collect()
}

fn source_field(given: &str, field: &str, violations: &mut Violations) {
    if given.is_empty() {
        let what = "is required: a JSON key, a dotted path, a JSON pointer such as /user/id or a virtual column such as \
                    _key; or give a constant";
        violations.add(field, what);
    } else if given.len() > MAX_SOURCE_FIELD_BYTES {
        violations.add(field, format!("is longer than {MAX_SOURCE_FIELD_BYTES} bytes"));
    } else if given.contains('\0') {
        violations.add(field, "must not contain a NUL character");
    } else if given.starts_with('/')
        && let Err(error) = given.parse::<JsonPointer>()
    {
        violations.add(field, error.to_string());
    }
}

fn constant(mapping: &proto::FieldMapping, field: impl Fn(&str) -> String, violations: &mut Violations) {
    let constant = &mapping.constant;
    if constant.len() > MAX_CONSTANT_BYTES {
        violations.add(field("constant"), format!("is longer than {MAX_CONSTANT_BYTES} bytes"));
    } else if let Err(error) = serde_json::from_str::<IgnoredAny>(constant) {
        let as_text = serde_json::Value::from(constant.as_str());
        let what = format!(
            "is not a JSON value ({error}): for the text {}, write {}",
            quoted(constant),
            quoted(&as_text.to_string())
        );
        violations.add(field("constant"), what);
    } else if constant.trim() != constant {
        violations.add(field("constant"), "must not begin or end with white space");
    }
    if !mapping.source_field.is_empty() {
        violations.add(field("source_field"), "must be empty where there is a constant");
    }
    if mapping.required {
        violations.add(
            field("required"),
            "must not be set for a constant, which is always there",
        );
    }
}

/// How records are unpacked that no pipe is for yet. Fields are named as in a pipe.
pub fn planned_decoding(given: &proto::Decoding, violations: &mut Violations) -> Decoding {
    decoding(given, false, violations)
}

pub(super) fn decoding(given: &proto::Decoding, has_mappings: bool, violations: &mut Violations) -> Decoding {
    let separator = given.flatten_separator.as_str();
    if separator.len() > MAX_SEPARATOR_BYTES {
        violations.add(SEPARATOR, format!("is longer than {MAX_SEPARATOR_BYTES} bytes"));
    } else if separator.chars().any(char::is_control) {
        violations.add(SEPARATOR, "must not contain control characters");
    } else if has_mappings && !separator.is_empty() {
        let what =
            "goes only without pipe.field_mappings: there, name a value inside an object by its path, such as user.id";
        violations.add(SEPARATOR, what);
    }
    Decoding {
        on_unknown_field: on_unknown_field(given.on_unknown_field, violations),
        flatten_separator: Some(separator.to_owned()).filter(|separator| !separator.is_empty()),
        keep_packed: given.keep_packed,
        on_out_of_range: on_out_of_range(given, violations),
        envelope: envelope(given, violations),
    }
}

fn on_out_of_range(given: &proto::Decoding, violations: &mut Violations) -> OutOfRangePolicy {
    let field = "pipe.decoding.on_out_of_range";
    let policy = match proto::OutOfRangePolicy::try_from(given.on_out_of_range) {
        Ok(proto::OutOfRangePolicy::Unspecified | proto::OutOfRangePolicy::Keep) => OutOfRangePolicy::Keep,
        Ok(proto::OutOfRangePolicy::Drop) => OutOfRangePolicy::Drop,
        Ok(proto::OutOfRangePolicy::Reject) => OutOfRangePolicy::Reject,
        Err(_) => {
            let known = "OUT_OF_RANGE_POLICY_KEEP, OUT_OF_RANGE_POLICY_DROP or OUT_OF_RANGE_POLICY_REJECT";
            unknown_enum(field, given.on_out_of_range, known, violations);
            OutOfRangePolicy::Keep
        }
    };
    if given.keep_packed && policy != OutOfRangePolicy::Keep {
        violations.add(
            field,
            "does not go together with pipe.decoding.keep_packed, with which aggregates are not split",
        );
    }
    policy
}

fn envelope(given: &proto::Decoding, violations: &mut Violations) -> Option<Envelope> {
    let field = "pipe.decoding.envelope";
    let envelope = match proto::Envelope::try_from(given.envelope) {
        Ok(proto::Envelope::Unspecified) => None,
        Ok(proto::Envelope::CloudwatchLogs) => Some(Envelope::CloudwatchLogs),
        Ok(proto::Envelope::Eventbridge) => Some(Envelope::Eventbridge),
        Ok(proto::Envelope::Sns) => Some(Envelope::Sns),
        Ok(proto::Envelope::DynamodbStream) => Some(Envelope::DynamodbStream),
        Err(_) => {
            let known = "ENVELOPE_CLOUDWATCH_LOGS, ENVELOPE_EVENTBRIDGE, ENVELOPE_SNS or ENVELOPE_DYNAMODB_STREAM";
            unknown_enum(field, given.envelope, known, violations);
            None
        }
    };
    if given.keep_packed && envelope.is_some() {
        violations.add(
            field,
            "does not go together with pipe.decoding.keep_packed, with which records are taken as they are",
        );
    }
    envelope
}

fn on_unknown_field(given: i32, violations: &mut Violations) -> UnknownFieldPolicy {
    match proto::UnknownFieldPolicy::try_from(given) {
        Ok(proto::UnknownFieldPolicy::Unspecified | proto::UnknownFieldPolicy::Ignore) => UnknownFieldPolicy::Ignore,
        Ok(proto::UnknownFieldPolicy::Reject) => UnknownFieldPolicy::Reject,
        Err(_) => {
            let known = "UNKNOWN_FIELD_POLICY_IGNORE or UNKNOWN_FIELD_POLICY_REJECT";
            unknown_enum("pipe.decoding.on_unknown_field", given, known, violations);
            UnknownFieldPolicy::Ignore
        }
    }
}

//! Between the API's messages and what the control plane speaks of. Here, and only here, a request becomes a [`PipeSpec`]:
//! every field is checked, and everything that is wrong is reported at once, by field path and with what to do.
//!
//! Not here: anything that asks AWS or ClickHouse. A specification that passes is well-formed, not yet known to work.
//!
//! Invariant: `spec(output::specification(spec)) == spec`, so that what a user reads can be written back.

mod destination;
mod mapping;
pub mod names;
pub mod output;
pub mod partition_by;
mod secret;
mod settings;
mod source;
mod table;
pub mod violations;

use jiff::Timestamp;
#[cfg(test)]
use millrace_common::error::ApiError;
use millrace_common::{
    ids::{CredentialName, ProjectName},
    pipe::{DesiredState, PipeSpec},
};
use millrace_proto::api::v1 as proto;

use crate::endpoint::Policy;

pub use mapping::planned_decoding;
pub use secret::{credential, source_credential};
pub use settings::span;
pub use source::planned_source;
pub use violations::{Violations, quoted};

/// Longest display name.
const MAX_DISPLAY_NAME_CHARS: usize = 200;
/// Most annotations.
const MAX_ANNOTATIONS: usize = 64;
/// Longest key of an annotation.
const MAX_ANNOTATION_KEY_BYTES: usize = 128;
/// Longest value of an annotation.
const MAX_ANNOTATION_VALUE_BYTES: usize = 4096;
/// Most workers that one pipe may spread over.
const MAX_REPLICAS: u32 = 1000;

/// What a request is judged by beside itself.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The project that the pipe belongs to, and all it refers to.
    pub project: &'a ProjectName,
    /// Which endpoints may be called.
    pub endpoints: &'a Policy,
    /// Now.
    pub now: Timestamp,
}

/// The specification in a pipe message. What is output only is ignored; `None` exactly if violations were added.
pub fn spec(pipe: &proto::Pipe, context: Context<'_>, violations: &mut Violations) -> Option<PipeSpec> {
    let before = violations.is_empty();
    display_name(&pipe.display_name, "pipe.display_name", violations);
    annotations(pipe, violations);
    let source = source::source(pipe.source.as_ref(), context, violations);
    let destination = destination::destination(pipe.destination.as_ref(), context, violations);
    let field_mappings = mapping::field_mappings(&pipe.field_mappings, destination.as_ref(), violations);
    let replicas = replicas(pipe.scaling.unwrap_or_default().replicas, violations);
    let settings = settings::settings(pipe.settings.unwrap_or_default(), violations);
    let decoding = pipe.decoding.clone().unwrap_or_default();
    let decoding = mapping::decoding(&decoding, !pipe.field_mappings.is_empty(), violations);
    if !before || !violations.is_empty() {
        return None;
    }
    Some(PipeSpec {
        display_name: pipe.display_name.clone(),
        annotations: pipe.annotations.clone(),
        source: source?,
        destination: destination?,
        field_mappings,
        decoding,
        replicas,
        settings,
    })
}

/// The desired state in a pipe message; `default` if it is not given.
pub fn desired_state(value: i32, default: DesiredState, violations: &mut Violations) -> DesiredState {
    match proto::DesiredState::try_from(value) {
        Ok(proto::DesiredState::Unspecified) => default,
        Ok(proto::DesiredState::Running) => DesiredState::Running,
        Ok(proto::DesiredState::Stopped) => DesiredState::Stopped,
        Err(_) => {
            unknown_enum(
                "pipe.desired_state",
                value,
                "DESIRED_STATE_RUNNING or DESIRED_STATE_STOPPED",
                violations,
            );
            default
        }
    }
}

fn display_name(text: &str, field: &str, violations: &mut Violations) {
    if text.chars().count() > MAX_DISPLAY_NAME_CHARS {
        violations.add(field, format!("is longer than {MAX_DISPLAY_NAME_CHARS} characters"));
    } else if text.chars().any(char::is_control) {
        violations.add(field, "must not contain control characters");
    }
}

fn annotations(pipe: &proto::Pipe, violations: &mut Violations) {
    if pipe.annotations.len() > MAX_ANNOTATIONS {
        violations.add("pipe.annotations", format!("has more than {MAX_ANNOTATIONS} entries"));
        return;
    }
    for (key, value) in &pipe.annotations {
        let field = || format!("pipe.annotations[{}]", quoted(key));
        let key_valid = (1..=MAX_ANNOTATION_KEY_BYTES).contains(&key.len())
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
        if !key_valid {
            violations.add(
                field(),
                format!("keys are 1 to {MAX_ANNOTATION_KEY_BYTES} of a-z, A-Z, 0-9, '-_./'"),
            );
        }
        if value.len() > MAX_ANNOTATION_VALUE_BYTES {
            violations.add(field(), format!("is longer than {MAX_ANNOTATION_VALUE_BYTES} bytes"));
        }
    }
}

fn replicas(value: u32, violations: &mut Violations) -> u32 {
    if value > MAX_REPLICAS {
        violations.add(
            "pipe.scaling.replicas",
            format!("is {value}; choose 1 to {MAX_REPLICAS}"),
        );
    }
    value.max(1)
}

/// Reports an enum value that this server does not know.
/// A credential that a request refers to: in its own project.
pub fn planned_credential(
    text: &str,
    field: &str,
    project: &ProjectName,
    violations: &mut Violations,
) -> Option<CredentialName> {
    credential_name(text, field, project, violations)
}

fn unknown_enum(field: &str, value: i32, known: &str, violations: &mut Violations) {
    violations.add(
        field,
        format!("{value} is not a value that this server knows; use {known}"),
    );
}

/// A credential that a pipe refers to: in the pipe's own project.
fn credential_name(
    text: &str,
    field: &str,
    project: &ProjectName,
    violations: &mut Violations,
) -> Option<CredentialName> {
    if text.is_empty() {
        violations.add(field, format!("is required: {project}/credentials/{{credential}}"));
        return None;
    }
    match text.parse::<CredentialName>() {
        Ok(name) if name.project == *project => Some(name),
        Ok(_) => {
            violations.add(
                field,
                format!("must be a credential of the pipe's own project, {project}"),
            );
            None
        }
        Err(error) => {
            violations.add(field, error.to_string());
            None
        }
    }
}

#[cfg(test)]
mod tests;

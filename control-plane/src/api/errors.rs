//! Errors of the parts below as errors of the API.

use millrace_common::error::{ApiError, Retry};
use tonic::Code;

use crate::{destination, discovery, protocol::Refusal, store};

/// The name is taken.
pub(super) const ALREADY_EXISTS: &str = "ALREADY_EXISTS";
/// No pipe of that name.
pub(super) const PIPE_NOT_FOUND: &str = "PIPE_NOT_FOUND";
/// No revision of that number.
pub(super) const REVISION_NOT_FOUND: &str = "REVISION_NOT_FOUND";
/// No token of that name.
pub(super) const TOKEN_NOT_FOUND: &str = "TOKEN_NOT_FOUND";
/// No credential of that name.
pub(super) const CREDENTIAL_NOT_FOUND: &str = "CREDENTIAL_NOT_FOUND";
/// Pipes refer to the credential.
const CREDENTIAL_IN_USE: &str = "CREDENTIAL_IN_USE";
/// Someone else changed the pipe in between.
pub(super) const ETAG_MISMATCH: &str = "ETAG_MISMATCH";
/// The field cannot be changed.
pub(super) const IMMUTABLE_FIELD: &str = "IMMUTABLE_FIELD";
/// The page token is not one of this listing.
pub(super) const INVALID_PAGE_TOKEN: &str = "INVALID_PAGE_TOKEN";
/// Another request was sent with this id.
pub(super) const REQUEST_ID_REUSED: &str = "REQUEST_ID_REUSED";
/// It was carried out before, and what was answered is not known any more.
pub(super) const REQUEST_REPEATED: &str = "REQUEST_REPEATED";
/// Too many streams at once.
pub(super) const TOO_MANY_WATCHES: &str = "TOO_MANY_WATCHES";
/// The server ends.
pub(super) const SHUTTING_DOWN: &str = "SHUTTING_DOWN";
/// The database does not answer.
const STORE_UNAVAILABLE: &str = "STORE_UNAVAILABLE";
/// The server runs with a key that did not seal the secrets.
const ENCRYPTION_KEY_MISMATCH: &str = "ENCRYPTION_KEY_MISMATCH";

/// Why the store did not do it.
pub(super) fn of_store(error: &store::Error) -> ApiError {
    use store::Error;
    match error {
        Error::AlreadyExists { name } => {
            ApiError::new(Code::AlreadyExists, ALREADY_EXISTS, error.to_string()).with_metadata("name", name)
        }
        Error::PipeNotFound { uid } => {
            ApiError::new(Code::NotFound, PIPE_NOT_FOUND, error.to_string()).with_metadata("uid", uid.to_string())
        }
        Error::CredentialNotFound { name } => {
            ApiError::new(Code::FailedPrecondition, CREDENTIAL_NOT_FOUND, error.to_string())
                .with_metadata("name", name.to_string())
        }
        Error::InUse { name, pipes } => in_use(name, pipes),
        Error::IsSource { name, credentials } => {
            let names: Vec<String> = credentials.iter().map(ToString::to_string).collect();
            ApiError::new(Code::FailedPrecondition, CREDENTIAL_IN_USE, error.to_string())
                .with_metadata("name", name.to_string())
                .with_metadata("credentials", names.join(","))
        }
        Error::SourceUnfit { .. } => {
            ApiError::invalid_field("credential.aws_role.source_credential", error.to_string())
        }
        Error::EtagMismatch { .. } => etag_mismatch(),
        // Seldom seen: whoever carries an id asks first.
        Error::Repeated => ApiError::new(Code::Aborted, REQUEST_REPEATED, error.to_string()).with_field("request_id"),
        Error::Refused { reason } => refused(reason),
        Error::Unavailable(_) => {
            tracing::warn!(error = error as &dyn std::error::Error, "the database is not available");
            ApiError::unavailable(STORE_UNAVAILABLE, "the database is not available: try again")
        }
        Error::Key(_) => {
            tracing::error!(error = error as &dyn std::error::Error, "cannot open a secret");
            let message = "the server runs with another encryption key than the one that sealed this secret: its operator has \
                           to start it with that one";
            ApiError::new(Code::FailedPrecondition, ENCRYPTION_KEY_MISMATCH, message)
        }
        _ => ApiError::internal(error),
    }
}

/// Why positions cannot be moved.
fn refused(refusal: &Refusal) -> ApiError {
    let message = match refusal {
        Refusal::OpenBatches { .. } => format!(
            "{refusal}: stop the pipe, wait until it is STOPPED, and try again; or set abandon_open_batches, after which \
             their rows may be in the table or not, and may come again"
        ),
        Refusal::TornBatch { batch, other, .. } => {
            format!("the open batch {batch} also covers {other}: reset that shard as well, or stop the pipe first")
        }
        _ => refusal.to_string(),
    };
    ApiError::new(Code::FailedPrecondition, refusal.code(), message)
}

fn in_use(name: &millrace_common::ids::CredentialName, pipes: &[millrace_common::ids::PipeName]) -> ApiError {
    /// So many names fit into an answer.
    const SHOWN: usize = 10;
    let shown: Vec<String> = pipes.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = if pipes.len() > SHOWN {
        format!(" and {} more", pipes.len() - SHOWN)
    } else {
        String::new()
    };
    let message = format!(
        "{name} is in use by {}{more}: delete them, or give them another credential",
        shown.join(", ")
    );
    ApiError::new(Code::FailedPrecondition, CREDENTIAL_IN_USE, message)
        .with_metadata("name", name.to_string())
        .with_metadata("pipes", shown.join(","))
}

/// The etag is not the stored one.
pub(super) fn etag_mismatch() -> ApiError {
    let message = "the pipe was changed in the meantime: read it again, and apply the change to what it is now";
    ApiError::new(Code::Aborted, ETAG_MISMATCH, message)
}

/// No such pipe.
pub(super) fn pipe_not_found(name: &impl ToString) -> ApiError {
    let name = name.to_string();
    ApiError::new(Code::NotFound, PIPE_NOT_FOUND, format!("there is no {name}")).with_metadata("name", name)
}

/// No such credential.
pub(super) fn credential_not_found(name: &impl ToString) -> ApiError {
    let name = name.to_string();
    ApiError::new(Code::NotFound, CREDENTIAL_NOT_FOUND, format!("there is no {name}")).with_metadata("name", name)
}

/// Why the stream cannot be read.
pub(super) fn of_discovery(error: &discovery::Error) -> ApiError {
    ApiError::new(Code::FailedPrecondition, error.reason, error.message.clone())
        .with_field(error.field)
        .with_retry(if error.permanent { Retry::Never } else { Retry::Backoff })
}

/// Why the table cannot be written.
pub(super) fn of_destination(error: &destination::Error) -> ApiError {
    let mut violations = super::convert::Violations::new();
    for field in &error.fields {
        violations.add(field.field.clone(), field.description.clone());
    }
    // The same bounds as for any other violations.
    let fields = violations
        .finish()
        .err()
        .map(|bounded| bounded.fields)
        .unwrap_or_default();
    let code = if error.transient {
        Code::Unavailable
    } else {
        Code::FailedPrecondition
    };
    let retry = if error.transient { Retry::Backoff } else { Retry::Never };
    let api = ApiError {
        fields,
        ..ApiError::new(code, error.reason, error.message.clone()).with_retry(retry)
    };
    match error.code {
        Some(code) => api.with_metadata("clickhouse_code", code.to_string()),
        None => api,
    }
}

/// Two things wrong at once: the first gives code and reason.
pub(super) fn both(first: ApiError, second: ApiError) -> ApiError {
    ApiError {
        message: format!("{}; {}", first.message, second.message),
        fields: first.fields.into_iter().chain(second.fields).collect(),
        metadata: first
            .metadata
            .into_iter()
            .chain(second.metadata)
            .chain([("other_reason", second.reason.to_owned())])
            .collect(),
        ..ApiError::new(first.code, first.reason, String::new()).with_retry(first.retry)
    }
}

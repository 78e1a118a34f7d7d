//! Errors that cross the wire.
//!
//! Two axes decide everything about an error: whose fault it is and whether to try again. Each module has its own
//! error enum; at the API and session edges they become an [`ApiError`], which carries a stable reason, and that becomes
//! a gRPC status with `google.rpc.ErrorInfo`.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The `domain` of every `ErrorInfo` of Millrace.
pub const DOMAIN: &str = "millrace.dev";

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The caller has to change something.
    User,
    /// AWS, ClickHouse, the network or the database.
    External,
    /// Ours.
    Internal,
}

/// Whether to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It will not help.
    Never,
    /// With backoff.
    Backoff,
    /// Not before this long.
    After(Duration),
}

/// A field of a request and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// Path of the field as in the proto, such as `pipe.source.kinesis.stream_name`.
    pub field: String,
    /// What is wrong and what to do about it.
    pub description: String,
}

/// An error at the edge of a service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// gRPC code.
    pub code: Code,
    /// Stable UPPER_SNAKE_CASE reason, at most 63 characters.
    pub reason: &'static str,
    /// What is wrong and what to do about it.
    pub message: String,
    /// What varies in the message, by name.
    pub metadata: Vec<(&'static str, String)>,
    /// Fields at fault.
    pub fields: Vec<FieldViolation>,
    /// When to try again.
    pub retry: Retry,
}

impl ApiError {
    /// An error without fields.
    pub fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            metadata: Vec::new(),
            fields: Vec::new(),
            retry: Retry::Never,
        }
    }

    /// INVALID_ARGUMENT about one field.
    pub fn invalid_field(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::invalid_fields(vec![FieldViolation {
            field: field.into(),
            description: description.into(),
        }])
    }

    /// INVALID_ARGUMENT about several fields. The message repeats each of them.
    pub fn invalid_fields(fields: Vec<FieldViolation>) -> Self {
        let message = fields
            .iter()
            .map(|f| format!("{}: {}", f.field, f.description))
            .collect::<Vec<_>>()
            .join("; ");
        Self {
            fields,
            ..Self::new(Code::InvalidArgument, "INVALID_FIELD", message)
        }
    }

    /// The same error with another reason.
    #[must_use]
    pub fn with_reason(mut self, reason: &'static str) -> Self {
        self.reason = reason;
        self
    }

    /// The same error about a field.
    #[must_use]
    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.fields.push(FieldViolation {
            field: field.into(),
            description: self.message.clone(),
        });
        self
    }

    /// The same error with a variable of its message named.
    #[must_use]
    pub fn with_metadata(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.metadata.push((key, value.into()));
        self
    }

    /// The same error with advice on when to try again.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// INTERNAL. The cause is for our logs, not for the caller.
    pub fn internal(cause: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = cause, "internal error");
        Self::new(
            Code::Internal,
            "INTERNAL",
            "internal error; the server's log has the cause",
        )
    }

    /// UNAVAILABLE: try again.
    pub fn unavailable(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            retry: Retry::Backoff,
            ..Self::new(Code::Unavailable, reason, message)
        }
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Status {
        let metadata: HashMap<String, String> = error
            .metadata
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        let mut details = ErrorDetails::with_error_info(error.reason, DOMAIN, metadata);
        for field in error.fields {
            details.add_bad_request_violation(field.field, field.description);
        }
        if let Retry::After(delay) = error.retry {
            details.set_retry_info(Some(delay));
        }
        Status::with_error_details(error.code, error.message, details)
    }
}

/// An error and its causes, outermost first, without what they repeat.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// The reason in a status that a Millrace service made.
pub fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

/// What a status that a Millrace service made says under this name.
pub fn metadata(status: &Status, key: &str) -> Option<String> {
    status.get_details_error_info()?.metadata.remove(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_carries_reason_and_fields() {
        let status: Status = ApiError::invalid_field("pipe.source.kinesis.region", "must not be empty")
            .with_metadata("x", "y")
            .into();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(reason(&status).as_deref(), Some("INVALID_FIELD"));
        assert_eq!(metadata(&status, "x").as_deref(), Some("y"));
        assert_eq!(metadata(&status, "y"), None);
        let bad = status.get_details_bad_request().unwrap();
        assert_eq!(bad.field_violations[0].field, "pipe.source.kinesis.region");
        assert!(status.message().contains("must not be empty"));
    }
}

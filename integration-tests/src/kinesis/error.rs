//! Errors as the service words them: a type, an HTTP status and a message.

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;

/// The `__type` of an error body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller may not do this.
    AccessDenied,
    /// The iterator is older than five minutes.
    ExpiredIterator,
    /// The page token is older than five minutes.
    ExpiredNextToken,
    /// The credentials have run out.
    ExpiredToken,
    /// The service failed.
    InternalFailure,
    /// The signature is not of this key and request.
    InvalidSignature,
    /// Nobody signed.
    MissingAuthenticationToken,
    /// An argument is well-formed and cannot be used.
    InvalidArgument,
    /// The caller may not use the stream's key.
    KmsAccessDenied,
    /// The stream's key is disabled.
    KmsDisabled,
    /// The stream's key is in a state in which it cannot be used.
    KmsInvalidState,
    /// The stream's key does not exist.
    KmsNotFound,
    /// The caller's account has no KMS.
    KmsOptInRequired,
    /// KMS is asked too often.
    KmsThrottling,
    /// An account limit would be passed.
    LimitExceeded,
    /// A rate per shard is passed.
    ProvisionedThroughputExceeded,
    /// The stream is not in a state that allows this, or exists already.
    ResourceInUse,
    /// No such stream or shard.
    ResourceNotFound,
    /// The body is not JSON of the right shape.
    Serialization,
    /// The service is down for the moment.
    ServiceUnavailable,
    /// No such operation.
    UnknownOperation,
    /// The credentials are not known.
    UnrecognizedClient,
    /// A field breaks its constraint.
    Validation,
}

impl ErrorKind {
    /// The name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AccessDenied => "AccessDeniedException",
            Self::ExpiredIterator => "ExpiredIteratorException",
            Self::ExpiredNextToken => "ExpiredNextTokenException",
            Self::ExpiredToken => "ExpiredTokenException",
            Self::InternalFailure => "InternalFailure",
            Self::InvalidSignature => "InvalidSignatureException",
            Self::MissingAuthenticationToken => "MissingAuthenticationTokenException",
            Self::InvalidArgument => "InvalidArgumentException",
            Self::KmsAccessDenied => "KMSAccessDeniedException",
            Self::KmsDisabled => "KMSDisabledException",
            Self::KmsInvalidState => "KMSInvalidStateException",
            Self::KmsNotFound => "KMSNotFoundException",
            Self::KmsOptInRequired => "KMSOptInRequired",
            Self::KmsThrottling => "KMSThrottlingException",
            Self::LimitExceeded => "LimitExceededException",
            Self::ProvisionedThroughputExceeded => "ProvisionedThroughputExceededException",
            Self::ResourceInUse => "ResourceInUseException",
            Self::ResourceNotFound => "ResourceNotFoundException",
            Self::Serialization => "SerializationException",
            Self::ServiceUnavailable => "ServiceUnavailable",
            Self::UnknownOperation => "UnknownOperationException",
            Self::UnrecognizedClient => "UnrecognizedClientException",
            Self::Validation => "ValidationException",
        }
    }

    /// The name as the last event of a subscription.
    #[must_use]
    pub fn event_name(self) -> &'static str {
        match self {
            Self::InternalFailure => "InternalFailureException",
            other => other.name(),
        }
    }

    /// The HTTP status it travels with.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::InternalFailure => StatusCode::INTERNAL_SERVER_ERROR,
            Self::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// A refusal, ready for the wire.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{}: {message}", kind.name())]
pub struct Error {
    /// What kind.
    pub kind: ErrorKind,
    /// What the service says to the caller.
    pub message: String,
}

impl Error {
    /// An error of `kind`.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    pub(super) fn invalid_argument(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::ResourceNotFound, message)
    }

    pub(super) fn body(&self) -> Bytes {
        json!({ "__type": self.kind.name(), "message": self.message })
            .to_string()
            .into()
    }
}

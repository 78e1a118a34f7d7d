//! What a failed Kinesis call means: one function from the SDK's errors to a [`Kind`], by error code and, where there
//! is none, by HTTP status. What to do about it is decided in [`super::poll`].

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kinesis::{
    config::http::HttpResponse,
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
};
use millrace_common::{
    aws::{identity_error, policy},
    error::chain,
    reason,
};

/// How much of a peer's message is shown.
const MESSAGE_CHARS: usize = 600;

/// The class of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Too many calls or bytes.
    Throttled,
    /// The iterator is older than five minutes.
    ExpiredIterator,
    /// The service, the network or a timeout.
    Transient,
    /// Somebody else is subscribed to the shard, or the stream is being created or deleted.
    InUse,
    /// An answer that cannot be one.
    Malformed,
    /// No such stream or shard.
    NotFound,
    /// Kinesis does not accept an argument: of an iterator, mostly a position that is gone.
    InvalidArgument,
    /// The identity may not do that, to the stream or to its key.
    Denied,
    /// The identity itself is not accepted.
    Credential,
    /// There is no identity to call with: no role, or none that may be used. With its stable reason.
    Nobody(&'static str),
    /// The request is malformed.
    Refused,
}

impl Kind {
    /// The stable reason to show.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Kind::Throttled => reason::SOURCE_THROTTLED,
            Kind::ExpiredIterator | Kind::Transient | Kind::InUse | Kind::Malformed => reason::SOURCE_UNREACHABLE,
            Kind::NotFound => reason::SOURCE_STREAM_NOT_FOUND,
            Kind::InvalidArgument => reason::SOURCE_POSITION_EXPIRED,
            Kind::Denied => reason::SOURCE_ACCESS_DENIED,
            Kind::Credential => reason::SOURCE_CREDENTIAL_INVALID,
            Kind::Nobody(reason) => reason,
            Kind::Refused => reason::INTERNAL,
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Kind::Throttled => "other readers use up the shard's limits: read with fewer of them, or split the shard",
            Kind::ExpiredIterator | Kind::Transient | Kind::Malformed => {
                "check the endpoint and the network; Millrace keeps trying"
            }
            Kind::InUse => "see that nobody else reads with the pipe's consumer; Millrace keeps trying",
            Kind::NotFound => "check the stream's name, region and account; the position is kept",
            Kind::InvalidArgument => {
                "the position is kept; check that the stream is the one that the pipe was made for"
            }
            Kind::Denied => "allow it",
            Kind::Credential => "correct the credential; where a role is assumed, check its trust policy",
            Kind::Nobody(_) => "Millrace keeps trying",
            Kind::Refused => "this is a defect of Millrace: please report it",
        }
    }
}

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// The API call.
    pub(super) call: &'static str,
    /// Its class.
    pub(super) kind: Kind,
    /// What the peer or the network said.
    pub(super) message: String,
}

impl Failure {
    /// What to do about it. What is missing is named as IAM names it.
    pub(super) fn remedy(&self) -> String {
        match self.kind {
            Kind::Denied if self.message.starts_with("KMS") => format!(
                "allow {} on the stream's key, and see that the key is enabled; Millrace keeps trying",
                policy::DECRYPT
            ),
            Kind::Denied => format!("allow kinesis:{} on the stream; Millrace keeps trying", self.call),
            kind => kind.remedy().to_owned(),
        }
    }

    pub(super) fn transient(call: &'static str, message: impl Into<String>) -> Self {
        Self {
            call,
            kind: Kind::Transient,
            message: message.into(),
        }
    }

    pub(super) fn malformed(call: &'static str, message: impl Into<String>) -> Self {
        Self {
            call,
            kind: Kind::Malformed,
            message: message.into(),
        }
    }

    /// Classifies an SDK error.
    pub(super) fn of<E>(call: &'static str, error: &SdkError<E, HttpResponse>) -> Self
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
    {
        if let Some(nobody) = identity_error(error) {
            let kind = if nobody.is_transient() {
                Kind::Transient
            } else {
                Kind::Nobody(nobody.reason())
            };
            return Self {
                call,
                kind,
                message: nobody.to_string(),
            };
        }
        let (kind, message) = match error {
            SdkError::ServiceError(service) => {
                let (status, error) = (service.raw().status().as_u16(), service.err());
                let kind = by_code(error.code(), status);
                let code = error.code().map_or_else(|| format!("HTTP {status}"), str::to_owned);
                (
                    kind,
                    error
                        .message()
                        .map_or(code.clone(), |message| format!("{code}: {message}")),
                )
            }
            SdkError::ResponseError(response) => {
                let status = response.raw().status().as_u16();
                // A success that does not parse is a damaged answer; anything else is what its status says.
                let kind = if status < 300 {
                    Kind::Malformed
                } else {
                    by_code(None, status)
                };
                (kind, format!("HTTP {status}: {}", chain(error)))
            }
            SdkError::TimeoutError(_) => (Kind::Transient, "no answer in time".to_owned()),
            SdkError::ConstructionFailure(_) if !is_credential(error) => (Kind::Refused, chain(error)),
            // Dispatch failures, and whatever the SDK adds: the request did not get an answer.
            _ if is_credential(error) => (Kind::Credential, chain(error)),
            _ => (Kind::Transient, chain(error)),
        };
        Self {
            call,
            kind,
            message: message.chars().take(MESSAGE_CHARS).collect(),
        }
    }
}

/// What an error of the service says, as far as it is shown.
pub(super) fn describe_sdk<E: std::error::Error>(error: &E) -> String {
    DisplayErrorContext(error)
        .to_string()
        .chars()
        .take(MESSAGE_CHARS)
        .collect()
}

/// Whether no credentials could be had: a wrong role, an empty environment.
fn is_credential(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| {
        error
            .downcast_ref::<CredentialsError>()
            .is_some_and(|error| !matches!(error, CredentialsError::ProviderTimedOut(_)))
    })
}

/// The class of an error code as AWS writes it, or of a bare HTTP status.
pub(super) fn by_code(code: Option<&str>, status: u16) -> Kind {
    match code.unwrap_or_default() {
        "ProvisionedThroughputExceededException"
        | "LimitExceededException"
        | "KMSThrottlingException"
        | "ThrottlingException"
        | "ThrottledException"
        | "Throttling"
        | "TooManyRequestsException"
        | "RequestLimitExceeded"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "SlowDown" => Kind::Throttled,
        "ExpiredIteratorException" => Kind::ExpiredIterator,
        "ResourceNotFoundException" => Kind::NotFound,
        "ResourceInUseException" => Kind::InUse,
        "InvalidArgumentException" => Kind::InvalidArgument,
        "AccessDeniedException"
        | "AccessDenied"
        | "KMSAccessDeniedException"
        | "KMSDisabledException"
        | "KMSInvalidStateException"
        | "KMSNotFoundException"
        | "KMSOptInRequired"
        | "NotAuthorized"
        | "OptInRequired" => Kind::Denied,
        "ExpiredToken"
        | "ExpiredTokenException"
        | "RequestExpired"
        | "RequestTimeTooSkewed"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidAccessKeyId"
        | "InvalidToken"
        | "AuthFailure"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException" => Kind::Credential,
        "InternalFailure"
        | "InternalFailureException"
        | "InternalServerError"
        | "InternalServiceError"
        | "ServiceUnavailable"
        | "ServiceUnavailableException"
        | "RequestTimeout"
        | "RequestTimeoutException" => Kind::Transient,
        "ValidationException" | "SerializationException" | "UnknownOperationException" | "InvalidAction" => {
            Kind::Refused
        }
        _ => by_status(status),
    }
}

fn by_status(status: u16) -> Kind {
    match status {
        429 => Kind::Throttled,
        401 => Kind::Credential,
        403 => Kind::Denied,
        // 404 without a code is not Kinesis speaking: a proxy, or another service under that address.
        404 | 408 | 500.. => Kind::Transient,
        400..500 => Kind::Refused,
        _ => Kind::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_decide_before_statuses() {
        let cases = [
            (Some("ProvisionedThroughputExceededException"), 400, Kind::Throttled),
            (Some("KMSThrottlingException"), 400, Kind::Throttled),
            (Some("LimitExceededException"), 400, Kind::Throttled),
            (Some("ExpiredIteratorException"), 400, Kind::ExpiredIterator),
            (Some("InternalFailure"), 500, Kind::Transient),
            (Some("ServiceUnavailable"), 503, Kind::Transient),
            (Some("ResourceNotFoundException"), 400, Kind::NotFound),
            (Some("InvalidArgumentException"), 400, Kind::InvalidArgument),
            (Some("KMSDisabledException"), 400, Kind::Denied),
            (Some("AccessDeniedException"), 400, Kind::Denied),
            (Some("UnrecognizedClientException"), 400, Kind::Credential),
            (Some("ExpiredTokenException"), 400, Kind::Credential),
            (Some("InvalidSignatureException"), 400, Kind::Credential),
            (Some("ValidationException"), 400, Kind::Refused),
            (Some("SomethingNew"), 400, Kind::Refused),
            (Some("SomethingNew"), 500, Kind::Transient),
            (None, 403, Kind::Denied),
            (None, 429, Kind::Throttled),
            (None, 404, Kind::Transient),
            (None, 502, Kind::Transient),
            (None, 302, Kind::Malformed),
        ];
        for (code, status, kind) in cases {
            assert_eq!(by_code(code, status), kind, "{code:?} {status}");
        }
    }

    #[test]
    fn a_credential_failure_is_found_below_the_transport() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] CredentialsError);
        assert!(is_credential(&Outer(CredentialsError::not_loaded("none"))));
        assert!(!is_credential(&Outer(CredentialsError::provider_timed_out(
            std::time::Duration::from_secs(5)
        ))));
        assert!(!is_credential(&std::io::Error::other("x")));
    }
}

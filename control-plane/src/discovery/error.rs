//! Why a stream could not be looked at, sorted by AWS's own error codes.

use std::error::Error as StdError;

use aws_sdk_kinesis::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};
use millrace_common::{
    aws::{IdentityError, identity_error},
    reason,
};

const STREAM: &str = "pipe.source.kinesis.stream_name";
const CREDENTIAL: &str = "pipe.source.kinesis.credential";
const ENDPOINT: &str = "pipe.source.kinesis.endpoint";
const REGION: &str = "pipe.source.kinesis.region";
/// What of AWS's own text is repeated.
const SHOWN_CHARS: usize = 400;

/// Why a stream could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Stable reason, of [`millrace_common::reason`].
    pub reason: &'static str,
    /// What is wrong and what to do about it.
    pub message: String,
    /// The field of the pipe at fault.
    pub field: &'static str,
    /// A person has to act. Otherwise it may pass by itself.
    pub permanent: bool,
    /// What the peer says of it. Shown only of AWS's own endpoints: others are named by users, and may be anything.
    pub(super) said: String,
}

impl Error {
    /// Without what the peer says.
    pub(super) fn untold(mut self) -> Self {
        self.said.clear();
        self
    }

    /// The error of a call that needs the right `action`.
    pub(super) fn of_call<E>(action: &str, error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + StdError + 'static,
    {
        if let SdkError::ServiceError(service) = error {
            let (code, text) = (service.err().code(), service.err().message().unwrap_or_default());
            return Self::of_code(action, code.unwrap_or_default(), text, service.raw().status().as_u16());
        }
        Self::without_answer(error)
    }

    fn of_code(action: &str, code: &str, text: &str, status: u16) -> Self {
        let said = text.chars().take(SHOWN_CHARS).collect();
        match code {
            "ResourceNotFoundException" => Self {
                reason: reason::SOURCE_STREAM_NOT_FOUND,
                message: "is not found".to_owned(),
                field: STREAM,
                permanent: true,
                said: String::new(),
            },
            "AccessDeniedException" | "AccessDenied" | "NotAuthorized" | "OptInRequired" => Self {
                reason: reason::SOURCE_ACCESS_DENIED,
                message: format!("the AWS identity may not call {action}: allow it for the stream"),
                field: CREDENTIAL,
                permanent: true,
                said,
            },
            "UnrecognizedClientException"
            | "InvalidSignatureException"
            | "SignatureDoesNotMatch"
            | "IncompleteSignature"
            | "IncompleteSignatureException"
            | "MissingAuthenticationTokenException"
            | "MissingAuthenticationToken"
            | "InvalidClientTokenId"
            | "InvalidAccessKeyId"
            | "ExpiredTokenException"
            | "ExpiredToken"
            | "RequestExpired" => Self {
                reason: reason::SOURCE_CREDENTIAL_INVALID,
                message: format!(
                    "AWS does not accept the keys of the credential ({code}): store valid ones in a new credential, and check \
                     the clock of this machine"
                ),
                field: CREDENTIAL,
                permanent: true,
                said,
            },
            "LimitExceededException"
            | "ThrottlingException"
            | "Throttling"
            | "RequestLimitExceeded"
            | "ProvisionedThroughputExceededException"
            | "ResourceInUseException" => Self {
                reason: reason::SOURCE_UNREACHABLE,
                message: format!("Kinesis asks for fewer calls of {action} ({code}): tried again later"),
                field: STREAM,
                permanent: false,
                said: String::new(),
            },
            "InvalidArgumentException" | "ValidationException" => Self {
                reason: reason::SOURCE_STREAM_NOT_FOUND,
                message: "is not one that Kinesis knows how to look up".to_owned(),
                field: STREAM,
                permanent: true,
                said: String::new(),
            },
            // Some gateways answer with a bare status.
            _ if status == 403 || status == 401 => Self {
                reason: reason::SOURCE_ACCESS_DENIED,
                message: format!(
                    "the AWS identity is refused at {action} (HTTP {status}): check its keys and its policy"
                ),
                field: CREDENTIAL,
                permanent: true,
                said: String::new(),
            },
            _ => Self {
                reason: reason::SOURCE_UNREACHABLE,
                message: format!("{action} failed with HTTP {status}: tried again later"),
                field: ENDPOINT,
                permanent: false,
                said: String::new(),
            },
        }
    }

    /// No answer of Kinesis: no credentials to sign with, no connection, or no time.
    fn without_answer<E>(error: &SdkError<E, HttpResponse>) -> Self
    where
        E: StdError + 'static,
    {
        if let Some(nobody) = identity_error(error) {
            return Self::of_identity(nobody);
        }
        let causes = causes(error);
        let innermost = causes.last().map_or_else(|| error.to_string(), ToString::to_string);
        Self {
            reason: reason::SOURCE_UNREACHABLE,
            message: format!("cannot reach Kinesis: {innermost}; check the region, the endpoint and the network"),
            field: REGION,
            permanent: false,
            said: String::new(),
        }
    }

    /// Nobody to call as.
    pub(super) fn of_identity(error: &IdentityError) -> Self {
        Self {
            reason: error.reason(),
            message: error.to_string(),
            field: CREDENTIAL,
            permanent: !error.is_transient() && !matches!(error, IdentityError::NoAmbient { .. }),
            said: String::new(),
        }
    }

    /// Names the stream and where it was looked for.
    pub(super) fn about(mut self, stream: &str, region: &str, endpoint: Option<&str>) -> Self {
        let place = match endpoint {
            Some(endpoint) => format!("{region} at {endpoint}"),
            None => region.to_owned(),
        };
        self.message = if self.reason == reason::SOURCE_STREAM_NOT_FOUND {
            format!(
                "the stream {stream} in {place} {}: check its name, its region and the credential's account",
                self.message
            )
        } else {
            format!("the stream {stream} in {place}: {}", self.message)
        };
        if endpoint.is_none() && !self.said.is_empty() {
            self.message = format!("{}. AWS says: {}", self.message, self.said);
        }
        if self.field == REGION && endpoint.is_some() {
            self.field = ENDPOINT;
        }
        self.untold()
    }
}

fn causes<'a>(error: &'a (dyn StdError + 'static)) -> Vec<&'a (dyn StdError + 'static)> {
    /// Deeper chains exist only in cycles.
    const MAX_DEPTH: usize = 32;
    std::iter::successors(Some(error), |&error| error.source())
        .take(MAX_DEPTH)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_reasons_and_remedies() {
        for (code, status, reason, permanent, remedy) in [
            (
                "ResourceNotFoundException",
                400,
                reason::SOURCE_STREAM_NOT_FOUND,
                true,
                "check its name",
            ),
            (
                "AccessDeniedException",
                400,
                reason::SOURCE_ACCESS_DENIED,
                true,
                "kinesis:ListShards",
            ),
            (
                "UnrecognizedClientException",
                400,
                reason::SOURCE_CREDENTIAL_INVALID,
                true,
                "new credential",
            ),
            (
                "ExpiredTokenException",
                400,
                reason::SOURCE_CREDENTIAL_INVALID,
                true,
                "new credential",
            ),
            (
                "LimitExceededException",
                400,
                reason::SOURCE_UNREACHABLE,
                false,
                "again later",
            ),
            ("InternalFailure", 500, reason::SOURCE_UNREACHABLE, false, "again later"),
            ("", 403, reason::SOURCE_ACCESS_DENIED, true, "policy"),
        ] {
            let error =
                Error::of_code("kinesis:ListShards", code, "text", status).about("events", "eu-central-1", None);
            assert_eq!((error.reason, error.permanent), (reason, permanent), "{code}");
            assert!(
                error.message.contains(remedy) && error.message.contains("events"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_a_peer_says_is_repeated_only_of_aws() {
        for (code, status) in [
            ("AccessDeniedException", 400),
            ("AccessDeniedException", 503),
            ("ExpiredTokenException", 400),
        ] {
            let error = |endpoint| {
                Error::of_code("kinesis:ListShards", code, "canary", status).about("events", "eu-central-1", endpoint)
            };
            assert!(error(None).message.contains("AWS says: canary"), "{}", error(None));
            let other = error(Some("http://10.0.0.1"));
            assert!(!format!("{other:?}").contains("canary"), "{other:?}");
            let untold = Error::of_code("kinesis:ListShards", code, "canary", status).untold();
            assert!(!format!("{untold:?}").contains("canary"), "{untold:?}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_unreachable() {
        let access = millrace_common::aws::Access {
            region: "us-east-1".into(),
            endpoint: Some("http://127.0.0.1:1".into()),
            credential: millrace_common::aws::Credential::Keys {
                access_key_id: "AKIDEXAMPLE".into(),
                secret_access_key: "canary".into(),
                session_token: None,
            },
            max_attempts: 1,
            scope: None,
            settings: millrace_common::aws::Settings::default(),
            identities: None,
        };
        let stream = millrace_common::pipe::StreamRef::Name("events".into());
        let error = super::super::look(&access, &stream).await.unwrap_err();
        assert_eq!(
            (error.reason, error.field),
            (reason::SOURCE_UNREACHABLE, ENDPOINT),
            "{error}"
        );
        assert!(
            error.message.contains("127.0.0.1:1") && !format!("{error:?}").contains("canary"),
            "{error}"
        );
    }
}

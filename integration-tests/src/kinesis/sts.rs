//! STS beside Kinesis: AssumeRole and GetCallerIdentity in the Query protocol, and who signed a request.
//!
//! Follows the AWS STS API reference of AssumeRole (900 s to the role's maximum; one hour where a role assumes a role; a session policy
//! of at most 2,048 characters; AccessDenied, MalformedPolicyDocument, PackedPolicyTooLarge, ExpiredToken, ValidationError) and "Common errors".
//! Dates of signatures are not looked at: the emulator's clock may be anywhere.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use jiff::Timestamp;
use uuid::Uuid;

use super::account::Account;
use super::iam::{DEFAULT_SESSION, Iam, Key, MAX_SESSION, MIN_SESSION, Policy};
use super::sigv4::Authorization;

/// Most characters of a session policy.
const POLICY_CHARS: usize = 2_048;
const XMLNS: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

/// Why it is not known who signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    /// Nobody did.
    Missing,
    /// The key is not known, or its token is another.
    Client,
    /// The signature is not of this key and request.
    Signature,
    /// The session has ended.
    Expired,
}

/// Who signed a request to a service.
pub(super) fn who(account: &Account, iam: &Iam, service: &str, parts: &Parts, body: &[u8]) -> Result<Key, Unknown> {
    let authorization = Authorization::of(parts).ok_or(Unknown::Missing)?;
    let key = account
        .sessions
        .find(iam, authorization.access_key_id)
        .ok_or(Unknown::Client)?;
    let token = parts
        .headers
        .get("x-amz-security-token")
        .and_then(|token| token.to_str().ok());
    match &key {
        Key::User(_) if token.is_some() => return Err(Unknown::Client),
        Key::Session(session) if token != Some(session.token.as_str()) => return Err(Unknown::Client),
        Key::Session(session) if account.now_ms() >= session.expires_ms => return Err(Unknown::Expired),
        _ => {}
    }
    if !authorization.is_of(key.secret(), service, parts, body) {
        return Err(Unknown::Signature);
    }
    Ok(key)
}

/// A refusal of STS.
struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

fn refusal(status: StatusCode, code: &'static str, message: impl Into<String>) -> Refusal {
    Refusal {
        status,
        code,
        message: message.into(),
    }
}

impl From<Unknown> for Refusal {
    fn from(unknown: Unknown) -> Self {
        let (code, message) = match unknown {
            Unknown::Missing => ("MissingAuthenticationToken", "Request is missing Authentication Token"),
            Unknown::Client => (
                "InvalidClientTokenId",
                "The security token included in the request is invalid.",
            ),
            Unknown::Signature => (
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided.",
            ),
            Unknown::Expired => ("ExpiredToken", "The security token included in the request is expired"),
        };
        refusal(StatusCode::FORBIDDEN, code, message)
    }
}

/// Answers one request: a status and XML.
pub(super) fn answer(account: &Account, parts: &Parts, body: &[u8]) -> (StatusCode, Bytes) {
    let request_id = Uuid::new_v4();
    let xml = match execute(account, parts, body) {
        Ok((action, result)) => {
            return (
                StatusCode::OK,
                format!(
                    r#"<{action}Response xmlns="{XMLNS}"><{action}Result>{result}</{action}Result><ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{action}Response>"#
                )
                .into(),
            );
        }
        Err(refusal) => (
            refusal.status,
            format!(
                r#"<ErrorResponse xmlns="{XMLNS}"><Error><Type>Sender</Type><Code>{}</Code><Message>{}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>"#,
                refusal.code,
                escaped(&refusal.message)
            ),
        ),
    };
    (xml.0, xml.1.into())
}

fn execute(account: &Account, parts: &Parts, body: &[u8]) -> Result<(&'static str, String), Refusal> {
    let fields: HashMap<String, String> = url::form_urlencoded::parse(body).into_owned().collect();
    let Some(iam) = &account.options.iam else {
        let message = "This emulator has no users and no roles.";
        return Err(refusal(StatusCode::FORBIDDEN, "AccessDenied", message));
    };
    let caller = who(account, iam, "sts", parts, body)?;
    match fields.get("Action").map(String::as_str) {
        Some("GetCallerIdentity") => Ok((
            "GetCallerIdentity",
            format!(
                "<Arn>{}</Arn><UserId>AIDA</UserId><Account>{}</Account>",
                escaped(caller.arn()),
                account.options.account
            ),
        )),
        Some("AssumeRole") => assume(account, &caller, &fields).map(|result| ("AssumeRole", result)),
        other => Err(refusal(
            StatusCode::BAD_REQUEST,
            "InvalidAction",
            format!(
                "Could not find operation {} for version 2011-06-15",
                other.unwrap_or_default()
            ),
        )),
    }
}

fn assume(account: &Account, caller: &Key, fields: &HashMap<String, String>) -> Result<String, Refusal> {
    let invalid = |message: String| refusal(StatusCode::BAD_REQUEST, "ValidationError", message);
    let field = |name: &str| fields.get(name).map(String::as_str);
    let role_arn = field("RoleArn").ok_or_else(|| invalid("RoleArn must not be null".to_owned()))?;
    let name = field("RoleSessionName")
        .filter(|name| {
            (2..=64).contains(&name.len())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b))
        })
        .ok_or_else(|| invalid("RoleSessionName must satisfy [\\w+=,.@-]{2,64}".to_owned()))?;
    let duration = match field("DurationSeconds") {
        None => DEFAULT_SESSION,
        Some(text) => Duration::from_secs(
            text.parse()
                .map_err(|_| invalid("DurationSeconds is not a number".to_owned()))?,
        ),
    };
    let most = if caller.is_session() {
        DEFAULT_SESSION
    } else {
        MAX_SESSION
    };
    if duration < MIN_SESSION || duration > most {
        return Err(invalid(format!(
            "DurationSeconds must be between {} and {} here",
            MIN_SESSION.as_secs(),
            most.as_secs()
        )));
    }
    let policy = match field("Policy") {
        None => None,
        Some(text) if text.chars().count() > POLICY_CHARS => {
            let message = format!("Policy has more than {POLICY_CHARS} characters");
            return Err(refusal(StatusCode::BAD_REQUEST, "PackedPolicyTooLarge", message));
        }
        Some(text) => Some(
            Policy::parse(text)
                .map_err(|error| refusal(StatusCode::BAD_REQUEST, "MalformedPolicyDocument", error.to_string()))?,
        ),
    };
    let lives_ms = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    let expires_ms = account.now_ms().saturating_add(lives_ms);
    let role = account.sessions.role(role_arn);
    // A user needs a policy that allows it; so does a role that assumes another. A missing role looks the same.
    let session = role
        .filter(|role| caller.may("sts:AssumeRole", &role.arn))
        .and_then(|role| {
            account
                .sessions
                .assume(&role, caller, field("ExternalId"), (name, policy), expires_ms)
        })
        .ok_or_else(|| {
            let message = format!(
                "User: {} is not authorized to perform: sts:AssumeRole on resource: {role_arn}",
                caller.arn()
            );
            refusal(StatusCode::FORBIDDEN, "AccessDenied", message)
        })?;
    let expiration = Timestamp::from_millisecond(session.expires_ms)
        .map_err(|_| invalid("DurationSeconds is out of range".to_owned()))?;
    Ok(format!(
        "<AssumedRoleUser><AssumedRoleId>AROA:{name}</AssumedRoleId><Arn>{}</Arn></AssumedRoleUser><Credentials>\
         <AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken>\
         <Expiration>{expiration}</Expiration></Credentials>",
        escaped(&session.arn),
        session.access_key_id,
        session.secret_access_key,
        session.token,
    ))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

//! Callers that an OpenID Connect issuer vouches for: JSON Web Tokens, signed with keys that the issuer publishes.
//!
//! ```text
//!   JWT --> header: algorithm of the list, key id --> key of the issuer's set --> signature, iss, aud, exp, nbf --> sub, roles --> Caller
//! ```
//!
//! Invariants:
//! - a token says nothing about itself that is believed before its signature is checked, but which key that is to be checked with;
//! - only asymmetric algorithms: a published key is never taken for a shared secret;
//! - a role comes of the operator's map, or is named as ours are; `worker` is none that an issuer can give.

mod keys;

use std::time::Duration;

use jsonwebtoken::{Algorithm, Validation, errors::ErrorKind};
use millrace_common::error::ApiError;
use serde_json::Value;
use tonic::Code;
use url::Url;

use self::keys::Keys;
use super::{Caller, Role};

/// Longest token that is looked at, in bytes.
const MAX_TOKEN_BYTES: usize = 16 << 10;
/// Longest name of a key.
const MAX_KEY_ID_BYTES: usize = 256;
/// Longest `sub` or `email`.
const MAX_NAME_CHARS: usize = 200;
/// Signatures that are accepted.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// The issuer cannot be asked for its keys.
const OIDC_UNAVAILABLE: &str = "OIDC_UNAVAILABLE";
/// The token is good, and gives no role.
const NO_ROLE: &str = "NO_ROLE";

/// Whom tokens may be of.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who makes them: `iss`, and where its configuration is.
    pub issuer: Url,
    /// For whom they are made: `aud`.
    pub audience: String,
    /// Claim with the roles: its name, or a path with dots. A string, or a list of them.
    pub role_claim: String,
    /// Which value of the claim gives which role. Empty: `viewer`, `operator` and `admin` give the roles of these names.
    pub roles: Vec<(Role, String)>,
    /// Keys are asked for again at most this often, for a key that is not known.
    pub refresh: Duration,
}

impl Options {
    /// Usual settings.
    #[must_use]
    pub fn new(issuer: Url, audience: impl Into<String>) -> Self {
        Self {
            issuer,
            audience: audience.into(),
            role_claim: "roles".to_owned(),
            roles: Vec::new(),
            refresh: Duration::from_secs(10),
        }
    }

    /// The issuer as it names itself: without the slash that a URL gets by being parsed, if it has no path.
    fn issuer_text(&self) -> &str {
        match self.issuer.path() {
            "/" => self.issuer.as_str().trim_end_matches('/'),
            _ => self.issuer.as_str(),
        }
    }
}

/// Knows callers by their JSON Web Tokens.
pub(super) struct Oidc {
    options: Options,
    keys: Keys,
}

/// Whether a token may be one of an issuer's.
pub(super) fn is_jwt(token: &str) -> bool {
    token.starts_with("ey") && token.bytes().filter(|byte| *byte == b'.').count() == 2
}

impl Oidc {
    pub(super) fn new(options: Options) -> Self {
        Self {
            keys: Keys::new(options.issuer_text(), options.refresh),
            options,
        }
    }

    /// Whom the issuer vouches for.
    pub(super) async fn caller(&self, token: &str) -> Result<Caller, ApiError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(refused(&format!("is longer than {MAX_TOKEN_BYTES} bytes")));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|error| refused(why(&error)))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(refused("is signed with an algorithm that is not accepted"));
        }
        let id = header
            .kid
            .filter(|id| !id.is_empty() && id.len() <= MAX_KEY_ID_BYTES)
            .ok_or_else(|| refused("does not name the key that it is signed with (`kid`)"))?;
        let key = self.keys.get(&id).await.map_err(|what| {
            tracing::warn!(
                issuer = self.options.issuer_text(),
                what,
                "the keys of the issuer cannot be had"
            );
            ApiError::unavailable(
                OIDC_UNAVAILABLE,
                "the issuer of the token cannot be asked for its keys: try again",
            )
        })?;
        let key = key.ok_or_else(|| refused("is signed with a key that its issuer does not have"))?;
        if key.algorithm.is_some_and(|algorithm| algorithm != header.alg) {
            return Err(refused("is signed with another algorithm than its key is for"));
        }
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[self.options.issuer_text()]);
        validation.set_audience(&[&self.options.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = 0;
        let claims = jsonwebtoken::decode::<Value>(token, &key.key, &validation)
            .map_err(|error| refused(why(&error)))?
            .claims;
        let actor = actor(&claims).ok_or_else(|| refused("has no `sub` that could be shown"))?;
        match self.role(&claims) {
            Some(role) => Ok(Caller { actor, role }),
            None => {
                let claim = &self.options.role_claim;
                let message =
                    format!("the token gives no role: its claim {claim:?} has none that this control plane knows");
                Err(ApiError::new(Code::PermissionDenied, NO_ROLE, message).with_metadata("claim", claim))
            }
        }
    }

    /// The highest role that the claim gives.
    fn role(&self, claims: &Value) -> Option<Role> {
        // A name with dots may be one name: claims of some issuers are URLs.
        let claim = claims.get(&self.options.role_claim).or_else(|| {
            let mut names = self.options.role_claim.split('.');
            names.try_fold(claims, |at, name| at.get(name))
        })?;
        let values: Vec<&str> = match claim {
            Value::String(value) => value.split_whitespace().collect(),
            Value::Array(values) => values.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let given = |role: Role| {
            if self.options.roles.is_empty() {
                return values.contains(&role.as_str());
            }
            let mut of_role = self.options.roles.iter().filter(|(mapped, _)| *mapped == role);
            of_role.any(|(_, value)| values.contains(&value.as_str()))
        };
        [Role::Admin, Role::Operator, Role::Viewer]
            .into_iter()
            .find(|role| given(*role))
    }
}

/// As events and audit lines name the caller.
fn actor(claims: &Value) -> Option<String> {
    let shown = |name: &str| {
        let text = claims.get(name)?.as_str()?;
        let fine = !text.is_empty() && text.chars().count() <= MAX_NAME_CHARS && !text.chars().any(char::is_control);
        fine.then_some(text)
    };
    let sub = shown("sub")?;
    Some(match shown("email").or_else(|| shown("name")) {
        Some(name) => format!("oidc/{sub} ({name})"),
        None => format!("oidc/{sub}"),
    })
}

fn refused(what: &str) -> ApiError {
    super::guard::unauthenticated(&format!("the JSON Web Token {what}"))
}

fn why(error: &jsonwebtoken::errors::Error) -> &'static str {
    match error.kind() {
        ErrorKind::ExpiredSignature => "has ended: get another one",
        ErrorKind::ImmatureSignature => "is not good yet",
        ErrorKind::InvalidAudience => "is made for somebody else (`aud`)",
        ErrorKind::InvalidIssuer => "is of another issuer (`iss`)",
        ErrorKind::MissingRequiredClaim(_) => "lacks a claim: `exp`, `iss`, `aud` and `sub` are needed",
        ErrorKind::InvalidSignature => "is not signed by its issuer",
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName | ErrorKind::MissingAlgorithm => {
            "is signed with an algorithm that is not accepted"
        }
        _ => "cannot be read",
    }
}

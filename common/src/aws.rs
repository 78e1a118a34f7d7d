//! AWS access: from a credential to an SDK configuration. A pipe's own credential is the only one that is tried; the
//! process's ambient identity is used only where the credential says so *and* the operator allows it.
//!
//! Roles are assumed here ([`Identity`]) with a session policy that is narrowed to one stream ([`policy`]).

mod identities;
mod identity;
mod options;
pub mod policy;

use std::{fmt, time::Duration};

use aws_config::{
    BehaviorVersion, Region, SdkConfig, default_provider::credentials::DefaultCredentialsChain,
    identity::IdentityCache, retry::RetryConfig, timeout::TimeoutConfig,
};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use futures::future::BoxFuture;
use secrecy::{ExposeSecret as _, SecretString};

pub use self::identities::Identities;
pub use self::identity::{Identity, IdentityError, identity_error};
pub use self::options::{Options, Settings};
use self::{
    identities::Key,
    identity::{Ask, Origin},
    policy::Scope,
};

/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One attempt of a call: a `GetRecords` answer may be 10 MiB.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// A call with its retries. Without it, a call on a half-open connection never ends.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(60);
/// One attempt of a call of STS, whose answers are small.
const STS_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// A call of STS with its retries: shorter than what waits for it.
const STS_OPERATION_TIMEOUT: Duration = Duration::from_secs(12);

/// How to authenticate.
#[derive(Clone)]
pub enum Credential {
    /// A key pair.
    Keys {
        /// Access key id.
        access_key_id: String,
        /// Secret access key.
        secret_access_key: SecretString,
        /// Session token of temporary keys.
        session_token: Option<SecretString>,
    },
    /// A role.
    Role {
        /// Role ARN.
        role_arn: String,
        /// External id.
        external_id: Option<String>,
        /// Session name, as CloudTrail shows it.
        session_name: String,
        /// With whose identity it is assumed; another role makes a chain.
        source: Box<Credential>,
    },
    /// The process's own identity.
    Ambient,
}

impl Credential {
    /// The same with a session of this name, if it is a role.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        if let Credential::Role { session_name, .. } = &mut self {
            name.clone_into(session_name);
        }
        self
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credential::Keys { access_key_id, .. } => f
                .debug_struct("Keys")
                .field("access_key_id", access_key_id)
                .finish_non_exhaustive(),
            Credential::Role { role_arn, source, .. } => f
                .debug_struct("Role")
                .field("role_arn", role_arn)
                .field("source", source)
                .finish_non_exhaustive(),
            Credential::Ambient => f.write_str("Ambient"),
        }
    }
}

/// Where and as whom to call AWS.
#[derive(Debug, Clone)]
pub struct Access {
    /// Region.
    pub region: String,
    /// Endpoint override.
    pub endpoint: Option<String>,
    /// As whom.
    pub credential: Credential,
    /// Attempts per call, at least 1. Readers have their own backoff and take 1.
    pub max_attempts: u32,
    /// What a role's session is narrowed to; `None`: to nothing.
    pub scope: Option<Scope>,
    /// What the operator allows.
    pub settings: Settings,
    /// Where sessions are shared with those who call in the same name; `None`: they are this caller's own.
    pub identities: Option<Identities>,
}

impl Access {
    /// Access with usual settings, to whatever the credential may do.
    #[must_use]
    pub fn new(region: impl Into<String>, endpoint: Option<String>, credential: Credential, max_attempts: u32) -> Self {
        Self {
            region: region.into(),
            endpoint,
            credential,
            max_attempts,
            scope: None,
            settings: Settings::default(),
            identities: None,
        }
    }
}

/// The name of a pipe's sessions, as CloudTrail shows it.
#[must_use]
pub fn session_name(pipe: &str) -> String {
    /// Most that AWS takes.
    const MAX_CHARS: usize = 64;
    format!("millrace-{pipe}").chars().take(MAX_CHARS).collect()
}

/// An SDK configuration for `access`. Makes no call: wrong keys show at the first use.
pub async fn config(access: &Access) -> SdkConfig {
    connect(access).await.0
}

/// An SDK configuration for `access`, and the identity in it, to have it renewed. Makes no call.
pub async fn connect(access: &Access) -> (SdkConfig, Identity) {
    let base = base(access).await;
    let identity = identity(&access.credential, access.scope.as_ref(), access, &base).await;
    let retries = RetryConfig::standard().with_max_attempts(access.max_attempts.max(1));
    let mut config = base
        .into_builder()
        .retry_config(retries)
        .credentials_provider(SharedCredentialsProvider::new(identity.clone()))
        // The identity knows better when it is to be renewed, and is asked for it at each call.
        .identity_cache(IdentityCache::no_cache());
    config.set_endpoint_url(access.endpoint.clone());
    (config.build(), identity)
}

/// Who calls AWS with this access, as STS says: an ARN.
///
/// # Errors
/// Why there is nobody, or that STS does not say.
pub async fn caller(access: &Access) -> Result<String, IdentityError> {
    let base = base(access).await;
    let identity = identity(&access.credential, access.scope.as_ref(), access, &base).await;
    let answer = sts(&base, &access.settings, identity)
        .get_caller_identity()
        .send()
        .await;
    match answer {
        Ok(output) => output.arn.ok_or_else(|| IdentityError::Unavailable {
            message: "an answer without an ARN".to_owned(),
        }),
        Err(error) => Err(IdentityError::of_sts(&error)),
    }
}

/// What all clients have in common: neither an identity nor an endpoint.
async fn base(access: &Access) -> SdkConfig {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .operation_timeout(OPERATION_TIMEOUT)
        .build();
    aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(access.region.clone()))
        .timeout_config(timeouts)
        .no_credentials()
        .load()
        .await
}

fn sts(base: &SdkConfig, settings: &Settings, identity: Identity) -> aws_sdk_sts::Client {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(STS_ATTEMPT_TIMEOUT)
        .operation_timeout(STS_OPERATION_TIMEOUT)
        .build();
    let mut config = aws_sdk_sts::config::Builder::from(base)
        .timeout_config(timeouts)
        .retry_config(RetryConfig::standard())
        .identity_cache(IdentityCache::no_cache())
        .credentials_provider(SharedCredentialsProvider::new(identity));
    if let Some(endpoint) = &settings.sts_endpoint {
        config = config.endpoint_url(endpoint);
    }
    aws_sdk_sts::Client::from_conf(config.build())
}

/// The identity of a credential, which others may use as well. Keys are at hand, and so never shared.
async fn identity(credential: &Credential, scope: Option<&Scope>, access: &Access, base: &SdkConfig) -> Identity {
    let shared = access.identities.as_ref();
    let Some(identities) = shared.filter(|_| !matches!(credential, Credential::Keys { .. })) else {
        return new_identity(credential, scope, access, base).await;
    };
    let key = Key::of(credential, scope, access);
    if let Some(identity) = identities.find(key) {
        return identity;
    }
    let identity = new_identity(credential, scope, access, base).await;
    identities.keep(key, access, identity)
}

/// Only the last role of a chain is narrowed: those before it have to assume it.
fn new_identity<'a>(
    credential: &'a Credential,
    scope: Option<&'a Scope>,
    access: &'a Access,
    base: &'a SdkConfig,
) -> BoxFuture<'a, Identity> {
    Box::pin(async move {
        Identity::new(match credential {
            Credential::Keys {
                access_key_id,
                secret_access_key,
                session_token,
            } => Origin::Fixed(Credentials::new(
                access_key_id,
                secret_access_key.expose_secret(),
                session_token.as_ref().map(|token| token.expose_secret().to_owned()),
                None,
                "millrace",
            )),
            Credential::Ambient if !access.settings.allow_ambient => Origin::Refused,
            Credential::Ambient => {
                let chain = DefaultCredentialsChain::builder().region(Region::new(access.region.clone()));
                Origin::Ambient(SharedCredentialsProvider::new(chain.build().await))
            }
            Credential::Role {
                role_arn,
                external_id,
                session_name,
                source,
            } => {
                let source = identity(source, None, access, base).await;
                Origin::Role {
                    sts: sts(base, &access.settings, source.clone()),
                    source,
                    ask: Ask {
                        role_arn: role_arn.clone(),
                        external_id: external_id.clone(),
                        session_name: session_name.clone(),
                        policy: scope.map(Scope::session_policy),
                        life: access.settings.session,
                    },
                }
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(source: Credential) -> Credential {
        Credential::Role {
            role_arn: "arn:aws:iam::123456789012:role/reader".to_owned(),
            external_id: None,
            session_name: "x".to_owned(),
            source: Box::new(source),
        }
    }

    #[tokio::test]
    async fn the_ambient_identity_needs_the_operators_word_also_below_a_role() {
        for credential in [
            Credential::Ambient,
            role(Credential::Ambient),
            role(role(Credential::Ambient)),
        ] {
            let access = Access::new("us-east-1", None, credential, 1);
            let error = caller(&access).await.expect_err("refused");
            assert_eq!(error, IdentityError::AmbientNotAllowed);
            assert!(error.to_string().contains("--allow-ambient-aws"), "{error}");
        }
    }

    #[tokio::test]
    async fn an_sts_that_is_not_there_is_no_fault_of_the_credential() {
        let keys = Credential::Keys {
            access_key_id: "AKIDEXAMPLE".to_owned(),
            secret_access_key: "canary".into(),
            session_token: None,
        };
        let mut access = Access::new("us-east-1", None, role(keys), 1);
        access.settings.sts_endpoint = Some("http://127.0.0.1:1".to_owned());
        let error = caller(&access).await.expect_err("nobody there");
        assert!(matches!(error, IdentityError::Unavailable { .. }), "{error:?}");
        assert!(!format!("{error} {error:?} {access:?}").contains("canary"));
    }

    #[test]
    fn session_names_fit() {
        assert_eq!(session_name("orders"), "millrace-orders");
        assert_eq!(session_name(&"x".repeat(63)).len(), 64);
        let Credential::Role { session_name, .. } = role(Credential::Ambient).named("millrace-orders") else {
            panic!("a role")
        };
        assert_eq!(session_name, "millrace-orders");
    }
}

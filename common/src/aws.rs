//! AWS access: from a credential to an SDK configuration. A pipe's own credential is the only one that is tried; the
//! process's ambient identity is used only where the credential says so.

use std::{fmt, time::Duration};

use aws_config::{
    BehaviorVersion, Region, SdkConfig, retry::RetryConfig, sts::AssumeRoleProvider, timeout::TimeoutConfig,
};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use secrecy::{ExposeSecret as _, SecretString};

/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One attempt of a call: a `GetRecords` answer may be 10 MiB.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// A call with its retries. Without it, a call on a half-open connection never ends.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(60);

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
    /// A role, assumed with the process's own identity.
    Role {
        /// Role ARN.
        role_arn: String,
        /// External id.
        external_id: Option<String>,
        /// Session name, as CloudTrail shows it.
        session_name: String,
    },
    /// The process's own identity.
    Ambient,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credential::Keys { access_key_id, .. } => f
                .debug_struct("Keys")
                .field("access_key_id", access_key_id)
                .finish_non_exhaustive(),
            Credential::Role { role_arn, .. } => f
                .debug_struct("Role")
                .field("role_arn", role_arn)
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
}

/// An SDK configuration for `access`. Makes no call: wrong keys show at the first use.
pub async fn config(access: &Access) -> SdkConfig {
    let region = Region::new(access.region.clone());
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .operation_timeout(OPERATION_TIMEOUT)
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(region.clone())
        .timeout_config(timeouts.clone())
        .retry_config(RetryConfig::standard().with_max_attempts(access.max_attempts.max(1)));
    if let Some(endpoint) = &access.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    match &access.credential {
        Credential::Keys {
            access_key_id,
            secret_access_key,
            session_token,
        } => {
            let credentials = Credentials::new(
                access_key_id,
                secret_access_key.expose_secret(),
                session_token.as_ref().map(|token| token.expose_secret().to_owned()),
                None,
                "millrace",
            );
            loader = loader.credentials_provider(SharedCredentialsProvider::new(credentials));
        }
        Credential::Role {
            role_arn,
            external_id,
            session_name,
        } => {
            // STS is called with timeouts as well: without them, a role on a half-open connection is never assumed.
            let own = aws_config::defaults(BehaviorVersion::latest())
                .region(region.clone())
                .timeout_config(timeouts)
                .load()
                .await;
            let mut role = AssumeRoleProvider::builder(role_arn)
                .configure(&own)
                .region(region)
                .session_name(session_name);
            if let Some(external_id) = external_id {
                role = role.external_id(external_id);
            }
            loader = loader.credentials_provider(SharedCredentialsProvider::new(role.build().await));
        }
        Credential::Ambient => {}
    }
    loader.load().await
}

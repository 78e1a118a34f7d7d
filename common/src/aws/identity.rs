//! An identity that is renewed in time: keys, the process's own, or a role that is assumed with another identity.
//!
//! ```text
//!   obtained                 80 %                  end
//!      |------- used ---------|--- used, and --------|--- callers wait for a new one
//!                               renewed behind
//! ```
//!
//! Invariants:
//! - Ages are counted from when a session was asked for, on the monotonic clock: neither clock has to be right.
//! - Those who ask together share one answer, a refusal too.
//! - A session that AWS no longer takes is given up by who was told so ([`Identity::renew`]), once however many were told, and not
//!   before it is [`YOUNG`] no more: where AWS takes none at all, STS is not asked for each call.
//! - What a role is assumed with is given up only if STS does not take it: a role that may not be assumed says nothing of it.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use aws_credential_types::{
    Credentials,
    provider::{self, ProvideCredentials, SharedCredentialsProvider, error::CredentialsError, future},
};
use aws_sdk_sts::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};
use futures::future::BoxFuture;
use tokio::{sync::Mutex, time::Instant};

use crate::{error::chain, reason};

/// A session is renewed when this much of its life is over.
const RENEW_PERCENT: u32 = 80;
/// A session this young is not given up: another one would be taken no better, and AWS needs a moment to know what is new.
const YOUNG: Duration = Duration::from_secs(10);
/// From one attempt to renew a session that is still good to the next.
const RENEW_AGAIN: Duration = Duration::from_secs(30);
/// The process's own identity is looked at anew after so long, where nobody says how long it lives.
const AMBIENT_LIFE: Duration = Duration::from_secs(15 * 60);
/// What is shown of a peer's message.
const SHOWN_CHARS: usize = 300;

/// Why there is nobody to call as. It can be cloned, for all who asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The operator does not allow it.
    #[error(
        "pipes may not use the AWS identity that Millrace itself runs under: use a credential with keys, or a role with a \
         source_credential; or have the operator start control planes and workers with --allow-ambient-aws \
         (MILLRACE_ALLOW_AMBIENT_AWS=true)"
    )]
    AmbientNotAllowed,
    /// The process has none.
    #[error("Millrace itself has no AWS identity to call with: {message}")]
    NoAmbient {
        /// What the SDK says.
        message: String,
    },
    /// STS refuses.
    #[error("the role {role_arn} cannot be assumed ({code}): {}", remedy(code))]
    Refused {
        /// The role.
        role_arn: String,
        /// AWS's error code.
        code: String,
    },
    /// STS refuses who asks, whatever is asked.
    #[error("AWS does not accept the identity that calls STS ({code}): store valid keys in a new credential")]
    Unknown {
        /// AWS's error code.
        code: String,
    },
    /// STS does not answer, or asks for patience.
    #[error("STS does not answer: {message}; check the network and the STS endpoint")]
    Unavailable {
        /// What happened.
        message: String,
    },
}

fn remedy(code: &str) -> &'static str {
    match code {
        "AccessDenied" | "AccessDeniedException" => {
            "allow sts:AssumeRole on it to the identity that assumes it, and name that identity and the credential's external \
             id in the role's trust policy"
        }
        "RegionDisabledException" => "activate STS in the stream's region",
        "ValidationError" => "check that the role's maximum session duration allows --aws-session-seconds",
        _ => "check the role and its trust policy",
    }
}

impl IdentityError {
    /// It may pass by itself.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, IdentityError::Unavailable { .. })
    }

    /// The stable reason to show.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            IdentityError::AmbientNotAllowed => reason::SOURCE_AMBIENT_NOT_ALLOWED,
            IdentityError::Unavailable { .. } => reason::SOURCE_UNREACHABLE,
            IdentityError::Refused { code, .. } if code.starts_with("AccessDenied") => reason::SOURCE_ACCESS_DENIED,
            IdentityError::Refused { .. } | IdentityError::Unknown { .. } | IdentityError::NoAmbient { .. } => {
                reason::SOURCE_CREDENTIAL_INVALID
            }
        }
    }

    /// What a failed call of STS means to who made it for himself.
    pub(super) fn of_sts<E>(error: &SdkError<E, HttpResponse>) -> Self
    where
        E: StdError + ProvideErrorMetadata + 'static,
    {
        Self::of_call(error, |code| IdentityError::Unknown { code })
    }

    fn of_call<E>(error: &SdkError<E, HttpResponse>, refused: impl FnOnce(String) -> Self) -> Self
    where
        E: StdError + ProvideErrorMetadata + 'static,
    {
        // Of the identity that the call was to be signed with.
        if let Some(known) = identity_error(error) {
            return known.clone();
        }
        let shown = |text: String| text.chars().take(SHOWN_CHARS).collect::<String>();
        match error {
            SdkError::ServiceError(service) => {
                let (status, code) = (service.raw().status().as_u16(), service.err().code());
                match code {
                    Some(
                        code
                        @ ("Throttling" | "ThrottlingException" | "RequestLimitExceeded" | "IDPCommunicationError"),
                    ) => IdentityError::Unavailable {
                        message: code.to_owned(),
                    },
                    _ if status >= 500 => IdentityError::Unavailable {
                        message: format!("HTTP {status}"),
                    },
                    code => refused(shown(code.map_or_else(|| format!("HTTP {status}"), str::to_owned))),
                }
            }
            _ => IdentityError::Unavailable {
                message: shown(chain(error)),
            },
        }
    }
}

/// The reason for which a call had nobody to sign it, if that is why it failed.
#[must_use]
pub fn identity_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a IdentityError> {
    /// Deeper chains exist only in cycles.
    const MAX_DEPTH: usize = 32;
    std::iter::successors(Some(error), |&error| error.source())
        .take(MAX_DEPTH)
        .find_map(|error| error.downcast_ref())
}

/// Whether a code says that the session which signed is not good any more, while another one may be.
pub(super) fn is_stale(code: &str) -> bool {
    matches!(
        code,
        "ExpiredToken"
            | "ExpiredTokenException"
            | "RequestExpired"
            | "InvalidClientTokenId"
            | "UnrecognizedClientException"
            | "InvalidSignatureException"
            | "SignatureDoesNotMatch"
    )
}

/// What is asked of STS.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) role_arn: String,
    pub(super) external_id: Option<String>,
    pub(super) session_name: String,
    /// What the session is narrowed to.
    pub(super) policy: Option<String>,
    pub(super) life: Duration,
}

/// Where an identity comes from.
pub(super) enum Origin {
    /// Keys.
    Fixed(Credentials),
    /// The process's own, which the operator does not allow.
    Refused,
    /// The process's own.
    Ambient(SharedCredentialsProvider),
    /// A role.
    Role {
        sts: aws_sdk_sts::Client,
        source: Identity,
        ask: Ask,
    },
}

/// An identity to call AWS with; a cheap clone.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    origin: Origin,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    session: Option<Session>,
    /// When somebody was last told that there is nobody, and why.
    failed: Option<(Instant, IdentityError)>,
    /// When a session that is still good may be tried to be renewed again.
    renew_again: Option<Instant>,
}

#[derive(Clone)]
struct Session {
    credentials: Credentials,
    /// When it was asked for.
    obtained: Instant,
    life: Duration,
}

/// What to do with a session.
#[derive(Debug, PartialEq, Eq)]
enum Age {
    Good,
    Due,
    Over,
}

fn age(obtained: Instant, life: Duration, now: Instant) -> Age {
    if now >= obtained + life {
        Age::Over
    } else if now >= obtained + life * RENEW_PERCENT / 100 {
        Age::Due
    } else {
        Age::Good
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.origin {
            Origin::Fixed(credentials) => f.debug_tuple("Keys").field(&credentials.access_key_id()).finish(),
            Origin::Refused | Origin::Ambient(_) => f.write_str("Ambient"),
            Origin::Role { ask, source, .. } => f.debug_tuple("Role").field(&ask.role_arn).field(source).finish(),
        }
    }
}

impl ProvideCredentials for Identity {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async move {
            let current: provider::Result = self.current().await.map_err(CredentialsError::provider_error);
            current
        })
    }
}

impl Identity {
    pub(super) fn new(origin: Origin) -> Self {
        Self(Arc::new(Inner {
            origin,
            held: Mutex::default(),
        }))
    }

    /// Whom to call as, now.
    ///
    /// # Errors
    /// Why there is nobody.
    pub async fn current(&self) -> Result<Credentials, IdentityError> {
        match &self.0.origin {
            Origin::Fixed(credentials) => return Ok(credentials.clone()),
            Origin::Refused => return Err(IdentityError::AmbientNotAllowed),
            Origin::Ambient(_) | Origin::Role { .. } => {}
        }
        let asked = Instant::now();
        // Held across the call: whoever waits wants its answer.
        let mut held = self.0.held.lock().await;
        let now = Instant::now();
        if let Some(session) = &held.session {
            let credentials = session.credentials.clone();
            match age(session.obtained, session.life, now) {
                Age::Good => return Ok(credentials),
                Age::Due => {
                    if held.renew_again.is_none_or(|again| again <= now) {
                        held.renew_again = Some(now + RENEW_AGAIN);
                        tokio::spawn(self.clone().renew_behind());
                    }
                    return Ok(credentials);
                }
                Age::Over => held.session = None,
            }
        }
        if let Some((failed, error)) = &held.failed
            && *failed >= asked
        {
            return Err(error.clone());
        }
        match self.obtain().await {
            Ok(session) => {
                let credentials = session.credentials.clone();
                *held = Held {
                    session: Some(session),
                    ..Held::default()
                };
                Ok(credentials)
            }
            Err(error) => {
                held.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Gives up the session that was in use at that moment, because AWS did not take it; what is newer stays, and so does what is
    /// too young to be out of date. True if the next caller gets another one than was used.
    pub async fn renew(&self, used: Instant) -> bool {
        let mut held = self.0.held.lock().await;
        let Some(session) = &held.session else {
            // Somebody else was told the same, or there never was one.
            return matches!(self.0.origin, Origin::Ambient(_) | Origin::Role { .. });
        };
        if session.obtained > used {
            return true;
        }
        if session.obtained.elapsed() < YOUNG {
            return false;
        }
        held.session = None;
        true
    }

    async fn renew_behind(self) {
        match self.obtain().await {
            Ok(session) => {
                *self.0.held.lock().await = Held {
                    session: Some(session),
                    ..Held::default()
                };
                tracing::debug!(identity = ?self, "session renewed");
            }
            Err(error) => tracing::warn!(
                identity = ?self, error = &error as &dyn StdError,
                "a session cannot be renewed: used on, and tried again until it ends"
            ),
        }
    }

    fn obtain(&self) -> BoxFuture<'_, Result<Session, IdentityError>> {
        Box::pin(async move {
            let obtained = Instant::now();
            let (credentials, life) = match &self.0.origin {
                Origin::Fixed(credentials) => (credentials.clone(), AMBIENT_LIFE),
                Origin::Refused => return Err(IdentityError::AmbientNotAllowed),
                Origin::Ambient(provider) => {
                    let credentials = provider.provide_credentials().await.map_err(|error| match error {
                        CredentialsError::ProviderTimedOut(_) => IdentityError::Unavailable {
                            message: "the process's own identity was not given in time".to_owned(),
                        },
                        error => IdentityError::NoAmbient {
                            message: chain(&error).chars().take(SHOWN_CHARS).collect(),
                        },
                    })?;
                    let life = credentials
                        .expiry()
                        .map(|expiry| expiry.duration_since(std::time::SystemTime::now()).unwrap_or_default());
                    (credentials, life.unwrap_or(AMBIENT_LIFE))
                }
                Origin::Role { sts, source, ask } => (assume(sts, source, ask).await?, ask.life),
            };
            Ok(Session {
                credentials,
                obtained,
                life,
            })
        })
    }
}

/// Assumes a role; once more if the session that asks is what STS does not take.
async fn assume(sts: &aws_sdk_sts::Client, source: &Identity, ask: &Ask) -> Result<Credentials, IdentityError> {
    let started = Instant::now();
    match assume_once(sts, ask).await {
        Err(IdentityError::Refused { code, .. }) if is_stale(&code) => {
            // The first answer stands if nobody else can ask.
            if !source.renew(started).await {
                return Err(IdentityError::Unknown { code });
            }
            match assume_once(sts, ask).await {
                Err(IdentityError::Refused { code, .. }) if is_stale(&code) => Err(IdentityError::Unknown { code }),
                result => result,
            }
        }
        result => result,
    }
}

async fn assume_once(sts: &aws_sdk_sts::Client, ask: &Ask) -> Result<Credentials, IdentityError> {
    let seconds = i32::try_from(ask.life.as_secs()).unwrap_or(i32::MAX);
    let assumed = sts
        .assume_role()
        .role_arn(&ask.role_arn)
        .set_external_id(ask.external_id.clone())
        .role_session_name(&ask.session_name)
        .set_policy(ask.policy.clone())
        .duration_seconds(seconds)
        .send()
        .await
        .map_err(|error| {
            IdentityError::of_call(&error, |code| IdentityError::Refused {
                role_arn: ask.role_arn.clone(),
                code,
            })
        })?;
    let Some(given) = assumed.credentials else {
        return Err(IdentityError::Unavailable {
            message: "an answer without credentials".to_owned(),
        });
    };
    tracing::debug!(role = ask.role_arn, session = ask.session_name, "role assumed");
    Ok(Credentials::new(
        given.access_key_id,
        given.secret_access_key,
        Some(given.session_token),
        None,
        "millrace",
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use super::*;

    /// Gives a new key each time, which lives for so long; fails while told so.
    #[derive(Debug, Clone, Default)]
    struct Source {
        given: Arc<AtomicU32>,
        fails: Arc<AtomicBool>,
    }

    impl ProvideCredentials for Source {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let number = self.given.fetch_add(1, Ordering::SeqCst);
            future::ProvideCredentials::ready(if self.fails.load(Ordering::SeqCst) {
                Err(CredentialsError::not_loaded("told to"))
            } else {
                Ok(Credentials::new(format!("KEY{number}"), "secret", None, None, "test"))
            })
        }
    }

    fn identity() -> (Source, Identity) {
        let source = Source::default();
        let shared = SharedCredentialsProvider::new(source.clone());
        (source, Identity::new(Origin::Ambient(shared)))
    }

    async fn key(identity: &Identity) -> String {
        let current = identity.current().await.expect("an identity");
        current.access_key_id().to_owned()
    }

    #[test]
    fn a_session_is_due_at_four_fifths_of_its_life() {
        let start = Instant::now();
        let life = Duration::from_secs(3_600);
        let at = |seconds| age(start, life, start + Duration::from_secs(seconds));
        assert_eq!((at(0), at(2_879)), (Age::Good, Age::Good));
        assert_eq!((at(2_880), at(3_599)), (Age::Due, Age::Due));
        assert_eq!(at(3_600), Age::Over);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_renewed_behind_its_users_and_survives_a_refusal_until_it_ends() {
        let (source, identity) = identity();
        assert_eq!(key(&identity).await, "KEY0");
        tokio::time::advance(AMBIENT_LIFE * 79 / 100).await;
        assert_eq!(key(&identity).await, "KEY0");
        assert_eq!(source.given.load(Ordering::SeqCst), 1);

        source.fails.store(true, Ordering::SeqCst);
        tokio::time::advance(AMBIENT_LIFE / 50).await;
        for _ in 0..3 {
            assert_eq!(key(&identity).await, "KEY0", "still good");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(source.given.load(Ordering::SeqCst), 2, "one attempt for all of them");

        source.fails.store(false, Ordering::SeqCst);
        tokio::time::sleep(RENEW_AGAIN).await;
        assert_eq!(key(&identity).await, "KEY0", "nobody waits");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(key(&identity).await, "KEY2");

        source.fails.store(true, Ordering::SeqCst);
        tokio::time::advance(AMBIENT_LIFE).await;
        let error = identity.current().await.expect_err("over, and nobody gives another");
        assert!(matches!(error, IdentityError::NoAmbient { .. }), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_aws_does_not_take_is_given_up_once_and_not_while_it_is_young() {
        let (source, identity) = identity();
        assert_eq!(key(&identity).await, "KEY0");
        tokio::time::advance(YOUNG / 2).await;
        let used = Instant::now();
        assert!(!identity.renew(used).await, "another one would be taken no better");
        assert_eq!(key(&identity).await, "KEY0");
        tokio::time::advance(YOUNG / 2).await;
        assert!(identity.renew(used).await);
        assert_eq!(key(&identity).await, "KEY1");
        // Another one was told the same of the same session.
        assert!(identity.renew(used).await);
        assert_eq!(key(&identity).await, "KEY1");
        // However often it is said, the source is asked once in so long.
        for _ in 0..100 {
            identity.renew(Instant::now()).await;
            key(&identity).await;
            tokio::time::advance(YOUNG / 10).await;
        }
        let given = source.given.load(Ordering::SeqCst);
        assert!((11..=12).contains(&given), "{given}");
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_never_given_up() {
        let keys = Credentials::new("KEY", "secret", None, None, "test");
        let identity = Identity::new(Origin::Fixed(keys));
        tokio::time::advance(YOUNG * 2).await;
        assert!(!identity.renew(Instant::now()).await);
        assert_eq!(key(&identity).await, "KEY");
    }
}

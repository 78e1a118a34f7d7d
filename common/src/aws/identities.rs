//! The identities that a process has in use, so that one session of a role serves whoever calls in the same name for as long as it lives.
//!
//! An identity is found by all that makes it: the whole credential with what it is assumed with, what it is narrowed to, region and
//! endpoint. So a credential that is deleted and made anew under its name is another one.
//!
//! Invariants:
//! - What it is found by is a digest: no secret is held a second time.
//! - What nobody has asked for during a session's life is forgotten; there are never more than [`MAX_HELD`].

use std::{collections::HashMap, fmt, sync::Arc};

use aws_lc_rs::digest::{Context, SHA256};
use parking_lot::Mutex;
use secrecy::ExposeSecret as _;
use tokio::time::Instant;

use super::{Access, Credential, Identity, policy::Scope};

/// Most identities that are held: one for each pipe and each role of a chain, and a pipe's other scope while its fan-out is switched.
const MAX_HELD: usize = 20_000;

/// Identities in use; a cheap clone.
#[derive(Clone, Default)]
pub struct Identities(Arc<Mutex<HashMap<Key, Held>>>);

struct Held {
    identity: Identity,
    asked: Instant,
}

/// What an identity is found by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identities").field(&self.0.lock().len()).finish()
    }
}

impl Identities {
    /// The identity of this key, if it is in use.
    pub(super) fn find(&self, key: Key) -> Option<Identity> {
        let mut held = self.0.lock();
        let found = held.get_mut(&key)?;
        found.asked = Instant::now();
        Some(found.identity.clone())
    }

    /// Keeps an identity; the one that is kept, if somebody else was faster.
    pub(super) fn keep(&self, key: Key, access: &Access, identity: Identity) -> Identity {
        let (mut held, now) = (self.0.lock(), Instant::now());
        // Its session is over by now, whatever it was.
        held.retain(|_, held| now.duration_since(held.asked) < access.settings.session);
        if held.len() >= MAX_HELD
            && let Some(oldest) = held.iter().min_by_key(|(_, held)| held.asked).map(|(key, _)| *key)
        {
            held.remove(&oldest);
        }
        let kept = held.entry(key).or_insert(Held { identity, asked: now });
        kept.identity.clone()
    }
}

impl Key {
    pub(super) fn of(credential: &Credential, scope: Option<&Scope>, access: &Access) -> Self {
        let mut digest = Context::new(&SHA256);
        put(&mut digest, Some(&access.region));
        put(&mut digest, access.endpoint.as_deref());
        put(&mut digest, access.settings.sts_endpoint.as_deref());
        digest.update(&access.settings.session.as_millis().to_be_bytes());
        digest.update(&[u8::from(access.settings.allow_ambient)]);
        put(&mut digest, scope.map(Scope::session_policy).as_deref());
        let mut next = Some(credential);
        while let Some(credential) = next {
            next = put_credential(&mut digest, credential);
        }
        let mut key = [0; 32];
        key.copy_from_slice(digest.finish().as_ref());
        Self(key)
    }
}

/// Puts one link of a chain; returns what it is assumed with.
fn put_credential<'a>(digest: &mut Context, credential: &'a Credential) -> Option<&'a Credential> {
    match credential {
        Credential::Keys {
            access_key_id,
            secret_access_key,
            session_token,
        } => {
            put(digest, Some("keys"));
            put(digest, Some(access_key_id));
            put(digest, Some(secret_access_key.expose_secret()));
            put(digest, session_token.as_ref().map(|token| token.expose_secret()));
            None
        }
        Credential::Ambient => {
            put(digest, Some("ambient"));
            None
        }
        Credential::Role {
            role_arn,
            external_id,
            session_name,
            source,
        } => {
            put(digest, Some("role"));
            put(digest, Some(role_arn));
            put(digest, external_id.as_deref());
            put(digest, Some(session_name));
            Some(source)
        }
    }
}

/// With its length before it, so that no two lists of texts are the same bytes.
fn put(digest: &mut Context, text: Option<&str>) {
    digest.update(&[u8::from(text.is_some())]);
    let text = text.unwrap_or_default();
    digest.update(&(text.len() as u64).to_be_bytes());
    digest.update(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::aws::policy::Usage;

    fn keys(id: &str, secret: &str) -> Credential {
        Credential::Keys {
            access_key_id: id.to_owned(),
            secret_access_key: secret.into(),
            session_token: None,
        }
    }

    fn role(external_id: Option<&str>, name: &str, source: Credential) -> Credential {
        Credential::Role {
            role_arn: "arn:aws:iam::123456789012:role/reader".to_owned(),
            external_id: external_id.map(str::to_owned),
            session_name: name.to_owned(),
            source: Box::new(source),
        }
    }

    fn access(credential: &Credential) -> Access {
        Access::new("eu-west-1", None, credential.clone(), 1)
    }

    #[test]
    fn whatever_makes_an_identity_is_part_of_its_key() {
        let scope = |usage| Scope {
            stream_arn: "arn:aws:kinesis:eu-west-1:123456789012:stream/orders".to_owned(),
            usage,
        };
        let plain = role(None, "a", keys("AK", "secret"));
        let mut keys_of = Vec::new();
        let mut note = |credential: &Credential, scope: Option<Scope>, change: &dyn Fn(&mut Access)| {
            let mut access = access(credential);
            change(&mut access);
            assert!(Key::of(credential, scope.as_ref(), &access) == Key::of(credential, scope.as_ref(), &access));
            keys_of.push(Key::of(credential, scope.as_ref(), &access));
        };
        for credential in [
            plain.clone(),
            role(Some("a"), "a", keys("AK", "secret")),
            role(Some(""), "a", keys("AK", "secret")),
            role(None, "b", keys("AK", "secret")),
            role(None, "a", keys("AK", "another")),
            role(None, "a", keys("AKs", "ecret")),
            role(None, "a", Credential::Ambient),
            role(None, "a", role(None, "a", keys("AK", "secret"))),
            keys("AK", "secret"),
            Credential::Ambient,
        ] {
            note(&credential, None, &|_| {});
        }
        for usage in [Usage::Poll, Usage::FanOut, Usage::ManagedFanOut] {
            note(&plain, Some(scope(usage)), &|_| {});
        }
        note(&plain, None, &|access| access.region = "eu-west-2".to_owned());
        note(&plain, None, &|access| access.endpoint = Some("http://a".to_owned()));
        note(&plain, None, &|access| {
            access.settings.sts_endpoint = Some("http://a".to_owned());
        });
        note(&plain, None, &|access| {
            access.settings.session = Duration::from_secs(900);
        });
        note(&plain, None, &|access| access.settings.allow_ambient = true);
        let all = keys_of.len();
        let different: std::collections::HashSet<Key> = keys_of.into_iter().collect();
        assert_eq!(different.len(), all);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_asks_for_is_forgotten_and_what_is_asked_for_is_one() {
        let identities = Identities::default();
        let (first, second) = (keys("A", "x"), keys("B", "x"));
        let of = |credential: &Credential| {
            let mut access = access(credential);
            access.identities = Some(identities.clone());
            access
        };
        let held = || identities.0.lock().len();
        let (access, key) = (of(&first), Key::of(&first, None, &of(&first)));
        super::super::connect(&access).await;
        assert!(identities.find(key).is_none(), "keys are no session");

        let role = |source| role(None, "a", source);
        for _ in 0..3 {
            super::super::connect(&of(&role(first.clone()))).await;
        }
        assert_eq!(held(), 1);
        super::super::connect(&of(&role(role(first.clone())))).await;
        assert_eq!(held(), 2, "what it is assumed with is the first one, which both share");
        tokio::time::advance(access.settings.session / 2).await;
        super::super::connect(&of(&role(first.clone()))).await;
        tokio::time::advance(access.settings.session / 2).await;
        super::super::connect(&of(&role(second))).await;
        assert_eq!(held(), 2, "the chain is forgotten, and one came");
    }
}

//! What a token looks like: `mlr_{id}_{secret}`. The id finds what is stored of it; the secret has 256 random bits, so that a plain hash
//! of it is enough.

use aws_lc_rs::{constant_time, digest, rand};
use base64_simd::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret as _, SecretString};
use ulid::Ulid;

const PREFIX: &str = "mlr";
const SECRET_BYTES: usize = 32;
/// Longest token that is looked at; ours have 74 characters, an operator's own may have others.
const MAX_CHARS: usize = 512;

/// A token that was just made.
pub(crate) struct Minted {
    /// Its id.
    pub(crate) id: String,
    /// What the caller sends.
    pub(crate) token: SecretString,
    /// What is stored.
    pub(crate) hash: String,
}

impl Minted {
    /// A new token.
    ///
    /// # Errors
    /// If the system has no random bytes.
    pub(crate) fn new() -> Result<Self, aws_lc_rs::error::Unspecified> {
        let mut secret = [0; SECRET_BYTES];
        rand::fill(&mut secret)?;
        let id = Ulid::new().to_string().to_ascii_lowercase();
        let token = SecretString::from(format!("{PREFIX}_{id}_{}", URL_SAFE_NO_PAD.encode_to_string(secret)));
        let hash = hash(token.expose_secret());
        Ok(Self { id, token, hash })
    }
}

/// The id in a token, if it may be one of ours.
pub(super) fn id_of(token: &str) -> Option<&str> {
    let (prefix, rest) = token.split_once('_')?;
    let (id, secret) = rest.split_once('_')?;
    let ours = prefix == PREFIX && !secret.is_empty() && token.len() <= MAX_CHARS;
    (ours && Ulid::from_string(id).is_ok()).then_some(id)
}

/// What is stored of a token: SHA-256, as hexadecimal digits.
pub(super) fn hash(token: &str) -> String {
    let digest = digest::digest(&digest::SHA256, token.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether this is the token of that hash, in a time that does not tell how much of it is right.
pub(super) fn matches(token: &str, stored: &str) -> bool {
    token.len() <= MAX_CHARS
        && constant_time::verify_slices_are_equal(hash(token).as_bytes(), stored.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_by_its_id_and_known_by_its_hash() {
        let (minted, other) = (Minted::new().unwrap(), Minted::new().unwrap());
        let token = minted.token.expose_secret();
        assert_eq!(id_of(token), Some(minted.id.as_str()));
        assert!(matches(token, &minted.hash));
        assert!(!matches(token, &other.hash));
        assert!(!minted.hash.contains(&token[token.len() - 10..]));
        // Every character counts.
        for at in 0..token.len() {
            let mut changed = token.as_bytes().to_vec();
            changed[at] = if changed[at] == b'x' { b'y' } else { b'x' };
            assert!(!matches(std::str::from_utf8(&changed).unwrap(), &minted.hash), "{at}");
        }
        for odd in [
            "",
            "mlr",
            "mlr__",
            "mlr_1_2",
            &format!("mlr_{}_", minted.id),
            &format!("xyz_{}_a", minted.id),
        ] {
            assert_eq!(id_of(odd), None, "{odd}");
        }
        assert_eq!(id_of(&format!("mlr_{}_{}", minted.id, "a".repeat(1_000))), None);
    }
}

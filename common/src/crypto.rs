//! Sealing secrets at rest: AES-256-GCM with a random nonce, bound to where the secret is stored.
//!
//! The sealed form is `version (1) | key id (4) | nonce (12) | ciphertext and tag`. The additional data binds it to its
//! row and field, so that a ciphertext moved to another row does not open.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest, hmac, rand,
};
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

const VERSION: u8 = 1;
const KEY_ID_LEN: usize = 4;
const HEADER_LEN: usize = 1 + KEY_ID_LEN + NONCE_LEN;

/// Bytes of a key.
pub const KEY_LEN: usize = 32;

/// Why something cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key is not 32 bytes of hexadecimal text.
    #[error("the encryption key must be {} hexadecimal digits ({KEY_LEN} bytes)", KEY_LEN * 2)]
    Key,
    /// Sealed by another key.
    #[error("sealed with key {sealed_with}, but this process has key {have}: start it with the key that sealed it")]
    OtherKey {
        /// Id of the key that sealed it.
        sealed_with: String,
        /// Id of the key at hand.
        have: String,
    },
    /// Damaged, or not where it was sealed for.
    #[error("does not open: damaged, or moved from where it was sealed for")]
    Damaged,
    /// The system's random source failed.
    #[error("no randomness available")]
    Random,
}

/// Seals and opens secrets with one key.
pub struct Sealer {
    key: LessSafeKey,
    mac: hmac::Key,
    id: [u8; KEY_ID_LEN],
}

impl Sealer {
    /// From a 32-byte key.
    ///
    /// # Errors
    /// If the key does not fit the algorithm.
    pub fn new(key: &[u8; KEY_LEN]) -> Result<Self, Error> {
        let unbound = UnboundKey::new(&AES_256_GCM, key).map_err(|_| Error::Key)?;
        let hash = digest::digest(&digest::SHA256, &[b"millrace key id".as_slice(), key].concat());
        let mut id = [0; KEY_ID_LEN];
        id.copy_from_slice(&hash.as_ref()[..KEY_ID_LEN]);
        Ok(Self {
            key: LessSafeKey::new(unbound),
            mac: hmac::Key::new(hmac::HMAC_SHA256, key),
            id,
        })
    }

    /// From 64 hexadecimal digits, surrounding white space ignored.
    ///
    /// # Errors
    /// If the text is not that.
    pub fn from_hex(text: &SecretString) -> Result<Self, Error> {
        let text = text.expose_secret().trim();
        let mut key = Zeroizing::new([0u8; KEY_LEN]);
        if text.len() != KEY_LEN * 2 || !text.is_ascii() {
            return Err(Error::Key);
        }
        for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| Error::Key)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| Error::Key)?;
        }
        Self::new(&key)
    }

    /// A new random key as hexadecimal text.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn generate_hex() -> Result<SecretString, Error> {
        let mut key = Zeroizing::new([0u8; KEY_LEN]);
        rand::fill(key.as_mut_slice()).map_err(|_| Error::Random)?;
        Ok(SecretString::from(hex(key.as_slice())))
    }

    /// Id of the key: the first bytes of a hash of it.
    pub fn key_id(&self) -> String {
        hex(&self.id)
    }

    /// Seals `plain` for the place `context`, such as `credential/<uid>/secret`.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn seal(&self, context: &str, plain: &[u8]) -> Result<Vec<u8>, Error> {
        let mut nonce = [0u8; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| Error::Random)?;
        let mut sealed = Vec::with_capacity(HEADER_LEN + plain.len() + AES_256_GCM.tag_len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&self.id);
        sealed.extend_from_slice(&nonce);
        let mut body = plain.to_vec();
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), &mut body)
            .map_err(|_| Error::Damaged)?;
        sealed.append(&mut body);
        Ok(sealed)
    }

    /// Opens what was sealed for the place `context`.
    ///
    /// # Errors
    /// If it was sealed with another key, for another place, or is damaged.
    pub fn open(&self, context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let (header, body) = sealed.split_at_checked(HEADER_LEN).ok_or(Error::Damaged)?;
        if header[0] != VERSION {
            return Err(Error::Damaged);
        }
        let sealed_with = &header[1..=KEY_ID_LEN];
        if sealed_with != self.id {
            return Err(Error::OtherKey {
                sealed_with: hex(sealed_with),
                have: self.key_id(),
            });
        }
        let nonce = Nonce::try_assume_unique_for_key(&header[1 + KEY_ID_LEN..]).map_err(|_| Error::Damaged)?;
        let mut body = Zeroizing::new(body.to_vec());
        let length = self
            .key
            .open_in_place(nonce, Aad::from(context), body.as_mut_slice())
            .map_err(|_| Error::Damaged)?
            .len();
        body.truncate(length);
        Ok(body)
    }

    /// Keyed hash of a secret, 8 hexadecimal digits: equal for equal secrets, and tells nothing else.
    pub fn fingerprint(&self, secret: &[u8]) -> String {
        hex(&hmac::sign(&self.mac, secret).as_ref()[..4])
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_where_it_was_sealed_for() {
        let sealer = Sealer::new(&[7; KEY_LEN]).unwrap();
        let sealed = sealer.seal("credential/a/secret", b"hunter2").unwrap();
        assert_eq!(
            sealer.open("credential/a/secret", &sealed).unwrap().as_slice(),
            b"hunter2"
        );
        assert!(matches!(
            sealer.open("credential/b/secret", &sealed),
            Err(Error::Damaged)
        ));
        assert!(!sealed.windows(7).any(|w| w == b"hunter2"));
        let mut flipped = sealed.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(matches!(
            sealer.open("credential/a/secret", &flipped),
            Err(Error::Damaged)
        ));
        assert!(matches!(
            sealer.open("credential/a/secret", &sealed[..5]),
            Err(Error::Damaged)
        ));
    }

    #[test]
    fn another_key_is_named() {
        let sealed = Sealer::new(&[7; KEY_LEN]).unwrap().seal("x", b"").unwrap();
        let error = Sealer::new(&[8; KEY_LEN]).unwrap().open("x", &sealed).unwrap_err();
        assert!(matches!(error, Error::OtherKey { .. }), "{error}");
    }

    #[test]
    fn keys_are_64_hexadecimal_digits() {
        let key = Sealer::generate_hex().unwrap();
        assert!(Sealer::from_hex(&key).is_ok());
        for bad in ["", "ab", &"g".repeat(64), &"é".repeat(32)] {
            assert!(Sealer::from_hex(&SecretString::from(bad)).is_err());
        }
    }
}

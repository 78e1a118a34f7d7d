//! Sealing secrets at rest: each with a key of its own (AES-256-GCM), which is sealed with a key of the ring and kept beside it. Both are
//! bound to where the secret is stored.
//!
//! ```text
//!   version (1) | id of the ring's key (4) | nonce (12) | sealed key (48) | commitment (16) | nonce (12) | ciphertext and tag
//! ```
//!
//! The ring's first key seals; the others open what they have sealed before. The commitment is a keyed hash: GCM alone would let a
//! ciphertext be made that opens, to different things, under two keys. Version 1 had no key of its own for each secret
//! (`1 | id | nonce | ciphertext and tag`), and still opens.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    constant_time, digest, hmac, rand,
};
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

const DIRECT: u8 = 1;
const ENVELOPE: u8 = 2;
const KEY_ID_LEN: usize = 4;
const TAG_LEN: usize = 16;
const COMMITMENT_LEN: usize = 16;

/// Bytes of a key.
pub const KEY_LEN: usize = 32;

/// Why something cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key is not 32 bytes of hexadecimal text.
    #[error("an encryption key must be {} hexadecimal digits ({KEY_LEN} bytes); of several, one a line, the first one seals", KEY_LEN * 2)]
    Key,
    /// Sealed by another key.
    #[error("sealed with key {sealed_with}, but this process has {have}: start it with the key that sealed it, too")]
    OtherKey {
        /// Id of the key that sealed it.
        sealed_with: String,
        /// Ids of the keys at hand.
        have: String,
    },
    /// Damaged, or not where it was sealed for.
    #[error("does not open: damaged, or moved from where it was sealed for")]
    Damaged,
    /// The system's random source failed.
    #[error("no randomness available")]
    Random,
}

/// One key of a ring.
struct Key {
    aead: LessSafeKey,
    mac: hmac::Key,
    id: [u8; KEY_ID_LEN],
}

impl Key {
    fn new(key: &[u8; KEY_LEN]) -> Result<Self, Error> {
        let hash = digest::digest(&digest::SHA256, &[b"millrace key id".as_slice(), key].concat());
        let mut id = [0; KEY_ID_LEN];
        id.copy_from_slice(&hash.as_ref()[..KEY_ID_LEN]);
        Ok(Self {
            aead: aead(key)?,
            mac: hmac::Key::new(hmac::HMAC_SHA256, key),
            id,
        })
    }
}

fn aead(key: &[u8]) -> Result<LessSafeKey, Error> {
    let unbound = UnboundKey::new(&AES_256_GCM, key).map_err(|_| Error::Key)?;
    Ok(LessSafeKey::new(unbound))
}

/// Seals and opens secrets with a ring of keys.
pub struct Sealer {
    current: Key,
    older: Vec<Key>,
}

impl Sealer {
    /// Of one key.
    ///
    /// # Errors
    /// If the key does not fit the algorithm.
    pub fn new(key: &[u8; KEY_LEN]) -> Result<Self, Error> {
        Ok(Self {
            current: Key::new(key)?,
            older: Vec::new(),
        })
    }

    /// The same, and opens what was sealed with another key.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn and_opens(mut self, key: &[u8; KEY_LEN]) -> Result<Self, Error> {
        let key = Key::new(key)?;
        if self.keys().all(|known| known.id != key.id) {
            self.older.push(key);
        }
        Ok(self)
    }

    /// From keys of 64 hexadecimal digits, with white space between and around them. The first one seals.
    ///
    /// # Errors
    /// If the text is not that.
    pub fn from_hex(text: &SecretString) -> Result<Self, Error> {
        let mut keys = text.expose_secret().split_whitespace();
        let first = Self::new(&*bytes(keys.next().unwrap_or_default())?)?;
        keys.try_fold(first, |ring, key| ring.and_opens(&*bytes(key)?))
    }

    fn keys(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.current).chain(&self.older)
    }

    /// The key that something was sealed with.
    fn key_of(&self, id: &[u8]) -> Result<&Key, Error> {
        self.keys().find(|key| key.id == id).ok_or_else(|| Error::OtherKey {
            sealed_with: hex(id),
            have: self.keys().map(|key| hex(&key.id)).collect::<Vec<_>>().join(", "),
        })
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

    /// Id of the key that seals: the first bytes of a hash of it.
    pub fn key_id(&self) -> String {
        hex(&self.current.id)
    }

    /// Whether there are keys that only open.
    pub fn has_older(&self) -> bool {
        !self.older.is_empty()
    }

    /// Seals `plain` for the place `context`, such as `credential/<uid>/secret`.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn seal(&self, context: &str, plain: &[u8]) -> Result<Vec<u8>, Error> {
        let mut own = Zeroizing::new([0u8; KEY_LEN]);
        rand::fill(own.as_mut_slice()).map_err(|_| Error::Random)?;
        let mut sealed = Vec::with_capacity(MIN_ENVELOPE + plain.len());
        sealed.push(ENVELOPE);
        sealed.extend_from_slice(&self.current.id);
        put(&mut sealed, &self.current.aead, context, own.as_slice())?;
        sealed.extend_from_slice(&commitment(own.as_slice()));
        put(&mut sealed, &aead(own.as_slice())?, context, plain)?;
        Ok(sealed)
    }

    /// Opens what was sealed for the place `context`.
    ///
    /// # Errors
    /// If it was sealed with another key, for another place, or is damaged.
    pub fn open(&self, context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let (header, rest) = sealed.split_at_checked(1 + KEY_ID_LEN).ok_or(Error::Damaged)?;
        match header[0] {
            DIRECT => take(&self.key_of(&header[1..])?.aead, context, rest),
            ENVELOPE => {
                let key = self.key_of(&header[1..])?;
                let (wrapped, rest) = rest
                    .split_at_checked(NONCE_LEN + KEY_LEN + TAG_LEN)
                    .ok_or(Error::Damaged)?;
                let (committed, body) = rest.split_at_checked(COMMITMENT_LEN).ok_or(Error::Damaged)?;
                let own = take(&key.aead, context, wrapped)?;
                constant_time::verify_slices_are_equal(committed, &commitment(&own)).map_err(|_| Error::Damaged)?;
                take(&aead(&own)?, context, body)
            }
            _ => Err(Error::Damaged),
        }
    }

    /// Whether something is sealed as [`Self::seal`] would seal it now: with the ring's first key, in the newest form.
    pub fn is_current(&self, sealed: &[u8]) -> bool {
        sealed.first() == Some(&ENVELOPE) && sealed.get(1..=KEY_ID_LEN) == Some(&self.current.id)
    }

    /// Checks that the key that sealed something is in the ring, without opening it.
    ///
    /// # Errors
    /// [`Error::OtherKey`] if it is not, [`Error::Damaged`] if there is nothing that says which it is.
    pub fn knows(&self, sealed: &[u8]) -> Result<(), Error> {
        let id = sealed.get(1..=KEY_ID_LEN).ok_or(Error::Damaged)?;
        self.key_of(id).map(drop)
    }

    /// Keyed hash of a secret, 8 hexadecimal digits: equal for equal secrets, and tells nothing else. It changes with the key that seals.
    pub fn fingerprint(&self, secret: &[u8]) -> String {
        hex(&hmac::sign(&self.current.mac, secret).as_ref()[..4])
    }
}

/// Bytes of an empty secret in its envelope.
const MIN_ENVELOPE: usize = 1 + KEY_ID_LEN + NONCE_LEN + KEY_LEN + TAG_LEN + COMMITMENT_LEN + NONCE_LEN + TAG_LEN;

/// Appends a nonce, and `plain` sealed with it.
fn put(sealed: &mut Vec<u8>, key: &LessSafeKey, context: &str, plain: &[u8]) -> Result<(), Error> {
    let mut nonce = [0u8; NONCE_LEN];
    rand::fill(&mut nonce).map_err(|_| Error::Random)?;
    sealed.extend_from_slice(&nonce);
    // Sealed where it stands, so that nothing plain is left behind by a buffer that grows.
    let mut body = Vec::with_capacity(plain.len() + TAG_LEN);
    body.extend_from_slice(plain);
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), &mut body)
        .map_err(|_| Error::Damaged)?;
    sealed.append(&mut body);
    Ok(())
}

/// Opens what [`put`] has appended.
fn take(key: &LessSafeKey, context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or(Error::Damaged)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Error::Damaged)?;
    let mut body = Zeroizing::new(body.to_vec());
    let length = key
        .open_in_place(nonce, Aad::from(context), body.as_mut_slice())
        .map_err(|_| Error::Damaged)?
        .len();
    body.truncate(length);
    Ok(body)
}

/// What a key is told by without being told.
fn commitment(key: &[u8]) -> [u8; COMMITMENT_LEN] {
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), b"millrace commitment");
    let mut commitment = [0; COMMITMENT_LEN];
    commitment.copy_from_slice(&mac.as_ref()[..COMMITMENT_LEN]);
    commitment
}

/// A key of 64 hexadecimal digits.
fn bytes(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, Error> {
    let mut key = Zeroizing::new([0u8; KEY_LEN]);
    if text.len() != KEY_LEN * 2 || !text.is_ascii() {
        return Err(Error::Key);
    }
    for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| Error::Key)?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| Error::Key)?;
    }
    Ok(key)
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
    fn a_ring_opens_what_its_older_keys_sealed() {
        let (old, new) = (Sealer::new(&[1; KEY_LEN]).unwrap(), Sealer::new(&[2; KEY_LEN]).unwrap());
        let sealed = old.seal("x", b"secret").unwrap();
        let ring = Sealer::new(&[2; KEY_LEN]).unwrap().and_opens(&[1; KEY_LEN]).unwrap();
        assert_eq!(ring.open("x", &sealed).unwrap().as_slice(), b"secret");
        assert!(!ring.is_current(&sealed) && ring.knows(&sealed).is_ok() && ring.has_older());
        let again = ring.seal("x", b"secret").unwrap();
        assert!(ring.is_current(&again) && new.is_current(&again));
        assert_eq!(new.open("x", &again).unwrap().as_slice(), b"secret");
        assert!(matches!(new.knows(&sealed), Err(Error::OtherKey { .. })));
        let text = format!("  {}\n{}\n", "02".repeat(KEY_LEN), "01".repeat(KEY_LEN));
        let read = Sealer::from_hex(&SecretString::from(text)).unwrap();
        assert_eq!((read.key_id(), read.has_older()), (new.key_id(), true));
        assert!(read.open("x", &sealed).is_ok());
    }

    #[test]
    fn what_was_sealed_without_an_envelope_opens() {
        let key = Key::new(&[7; KEY_LEN]).unwrap();
        let mut sealed = vec![DIRECT];
        sealed.extend_from_slice(&key.id);
        put(&mut sealed, &key.aead, "x", b"secret").unwrap();
        let sealer = Sealer::new(&[7; KEY_LEN]).unwrap();
        assert_eq!(sealer.open("x", &sealed).unwrap().as_slice(), b"secret");
        assert!(!sealer.is_current(&sealed));
    }

    /// Every byte of the form is under some check.
    #[test]
    fn no_byte_can_be_changed() {
        let sealer = Sealer::new(&[7; KEY_LEN]).unwrap();
        let sealed = sealer.seal("x", b"secret").unwrap();
        assert_eq!(sealed.len(), MIN_ENVELOPE + 6);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 0x40;
            assert!(sealer.open("x", &changed).is_err(), "byte {at}");
            assert!(sealer.open("x", &sealed[..at]).is_err(), "cut at {at}");
        }
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

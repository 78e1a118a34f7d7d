//! TLS with ALPN, for clients that speak HTTP/2 only so: a certificate made at the start, which its clients must be told to
//! trust.
//!
//! The certificate is its own root: version 3, P-256, for `localhost` and 127.0.0.1. Its few fields are written here as DER
//! (X.690, RFC 5280), because that is less than a library for all of X.509 would be.

use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No key could be made, or nothing signed with it.
    #[error("cannot make a key or a signature")]
    Key,
    /// rustls does not take what was made.
    #[error("cannot set up TLS")]
    Config(#[from] rustls::Error),
}

/// A certificate and what serves with it.
#[derive(Clone)]
pub(super) struct Tls {
    pub(super) acceptor: TlsAcceptor,
    /// What clients are to trust.
    pub(super) certificate_pem: String,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    pub(super) fn new() -> Result<Self, TlsError> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| TlsError::Key)?;
        let certificate = certificate(&key)?;
        let document = key.to_pkcs8v1().map_err(|_| TlsError::Key)?;
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(document.as_ref().to_vec()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![CertificateDer::from(certificate.clone())], private)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            certificate_pem: pem(&certificate),
        })
    }
}

fn pem(der: &[u8]) -> String {
    let base64 = base64_simd::STANDARD.encode_to_string(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in base64.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const UTF8: u8 = 0x0c;
const UTC_TIME: u8 = 0x17;
/// Object identifiers, encoded.
const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

fn tlv(tag: u8, content: &[&[u8]]) -> Vec<u8> {
    let length: usize = content.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    match length {
        0..0x80 => out.push(length as u8),
        0x80..0x100 => out.extend([0x81, length as u8]),
        _ => out.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    for part in content {
        out.extend_from_slice(part);
    }
    out
}

fn certificate(key: &EcdsaKeyPair) -> Result<Vec<u8>, TlsError> {
    let algorithm = tlv(SEQUENCE, &[&tlv(OID, &[ECDSA_WITH_SHA256])]);
    let name = tlv(
        SEQUENCE,
        &[&tlv(
            SET,
            &[&tlv(
                SEQUENCE,
                &[&tlv(OID, &[COMMON_NAME]), &tlv(UTF8, &[b"Kinesis emulator"])],
            )],
        )],
    );
    let validity = tlv(
        SEQUENCE,
        &[&tlv(UTC_TIME, &[b"200101000000Z"]), &tlv(UTC_TIME, &[b"491231235959Z"])],
    );
    let public = tlv(
        SEQUENCE,
        &[
            &tlv(SEQUENCE, &[&tlv(OID, &[EC_PUBLIC_KEY]), &tlv(OID, &[P256])]),
            &tlv(BIT_STRING, &[&[0], key.public_key().as_ref()]),
        ],
    );
    let names = tlv(SEQUENCE, &[&tlv(0x82, &[b"localhost"]), &tlv(0x87, &[&[127, 0, 0, 1]])]);
    let extension = tlv(
        SEQUENCE,
        &[&tlv(OID, &[SUBJECT_ALT_NAME]), &tlv(OCTET_STRING, &[&names])],
    );
    let signed = tlv(
        SEQUENCE,
        &[
            &tlv(0xa0, &[&tlv(INTEGER, &[&[2]])]),
            &tlv(INTEGER, &[&[1]]),
            &algorithm,
            &name,
            &validity,
            &name,
            &public,
            &tlv(0xa3, &[&tlv(SEQUENCE, &[&extension])]),
        ],
    );
    let signature = key.sign(&SystemRandom::new(), &signed).map_err(|_| TlsError::Key)?;
    Ok(tlv(
        SEQUENCE,
        &[&signed, &algorithm, &tlv(BIT_STRING, &[&[0], signature.as_ref()])],
    ))
}

//! Checks a signature: "AWS Signature Version 4 for API requests" in the IAM User Guide, with the body hashed here and not
//! believed.

use aws_lc_rs::{digest, hmac};
use http::request::Parts;

/// What an `Authorization` header says.
pub(super) struct Authorization<'a> {
    pub(super) access_key_id: &'a str,
    /// Date, region, service and `aws4_request`.
    scope: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
}

impl<'a> Authorization<'a> {
    /// Reads the header; `None` if it is of another form.
    pub(super) fn of(parts: &'a Parts) -> Option<Self> {
        let text = parts.headers.get("authorization")?.to_str().ok()?;
        let fields = text.strip_prefix("AWS4-HMAC-SHA256 ")?;
        let field = |name: &str| {
            fields
                .split(',')
                .find_map(|field| field.trim().strip_prefix(name)?.strip_prefix('='))
        };
        let (access_key_id, scope) = field("Credential")?.split_once('/')?;
        Some(Self {
            access_key_id,
            scope,
            signed_headers: field("SignedHeaders")?,
            signature: field("Signature")?,
        })
    }

    /// Whether it was made with this secret, for this request, for this service.
    pub(super) fn is_of(&self, secret: &str, service: &str, parts: &Parts, body: &[u8]) -> bool {
        self.scope.split('/').nth(2) == Some(service)
            && self
                .expected(secret, parts, body)
                .is_some_and(|expected| expected == self.signature)
    }

    fn expected(&self, secret: &str, parts: &Parts, body: &[u8]) -> Option<String> {
        let mut canonical = format!(
            "{}\n{}\n{}\n",
            parts.method,
            parts.uri.path(),
            parts.uri.query().unwrap_or_default()
        );
        for name in self.signed_headers.split(';') {
            let value = match (name, parts.headers.get(name)) {
                (_, Some(value)) => value.to_str().ok()?.to_owned(),
                // In HTTP/2 it is a part of the address.
                ("host", None) => parts.uri.authority()?.to_string(),
                (_, None) => return None,
            };
            let words: Vec<&str> = value.split_whitespace().collect();
            canonical.push_str(&format!("{name}:{}\n", words.join(" ")));
        }
        canonical.push_str(&format!("\n{}\n{}", self.signed_headers, hash(body)));
        let date = parts.headers.get("x-amz-date")?.to_str().ok()?;
        let to_sign = format!(
            "AWS4-HMAC-SHA256\n{date}\n{}\n{}",
            self.scope,
            hash(canonical.as_bytes())
        );
        let mut key = format!("AWS4{secret}").into_bytes();
        for part in self.scope.split('/') {
            key = sign(&key, part.as_bytes());
        }
        Some(hex(&sign(&key, to_sign.as_bytes())))
    }
}

fn sign(key: &[u8], text: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, text).as_ref().to_vec()
}

fn hash(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

//! The keys that an issuer publishes: fetched when one is asked for that is not known, and now and then.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{Jwk, JwkSet, PublicKeyUse},
};
use serde::Deserialize;
use tokio::{sync::Mutex, time::Instant};

/// One answer of the issuer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const MAX_BYTES: usize = 1 << 20;
/// Most keys that are kept of an issuer.
const MAX_KEYS: usize = 100;
/// Keys older than this are asked for again, so that one that was withdrawn ends.
const STALE: Duration = Duration::from_secs(60);
/// Keys are good for this long while the issuer does not answer.
const GOOD: Duration = Duration::from_secs(24 * 3_600);

/// A key, and what it is for.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) key: DecodingKey,
    pub(super) algorithm: Option<Algorithm>,
}

/// The keys of one issuer.
pub(super) struct Keys {
    issuer: String,
    refresh: Duration,
    http: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    /// One asks, the others wait for what it hears.
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    keys: Arc<HashMap<String, Key>>,
    /// When they were had.
    since: Option<Instant>,
    /// When they were asked for last, and what came of it.
    asked: Option<(Instant, Result<(), String>)>,
}

#[derive(Deserialize)]
struct Configuration {
    issuer: String,
    jwks_uri: String,
}

impl Keys {
    pub(super) fn new(issuer: &str, refresh: Duration) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(TIMEOUT));
        tcp.enforce_http(false);
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(crate::tls::client())
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Self {
            issuer: issuer.to_owned(),
            refresh,
            http: Client::builder(TokioExecutor::new()).build(https),
            known: Mutex::default(),
        }
    }

    /// The key of this id, if the issuer has one.
    ///
    /// # Errors
    /// Why the issuer's keys are not known.
    pub(super) async fn get(&self, id: &str) -> Result<Option<Key>, String> {
        let mut known = self.known.lock().await;
        let found = known.keys.get(id).cloned();
        let old = known.since.is_none_or(|since| since.elapsed() > STALE);
        let may_ask = known.asked.as_ref().is_none_or(|(at, _)| at.elapsed() >= self.refresh);
        if (found.is_none() || old) && may_ask {
            let heard = self.fetch().await;
            let now = Instant::now();
            known.asked = Some((now, heard.as_ref().map(drop).map_err(Clone::clone)));
            match heard {
                Ok(keys) => {
                    known.keys = Arc::new(keys);
                    known.since = Some(now);
                }
                Err(what) if known.since.is_some_and(|since| since.elapsed() < GOOD) => {
                    tracing::warn!(issuer = self.issuer, what, "going on with the keys that are known");
                }
                Err(what) => {
                    *known = Known {
                        asked: known.asked.take(),
                        ..Known::default()
                    };
                    return Err(what);
                }
            }
        }
        match (known.since, &known.asked) {
            (None, Some((_, Err(what)))) => Err(what.clone()),
            _ => Ok(known.keys.get(id).cloned()),
        }
    }

    async fn fetch(&self) -> Result<HashMap<String, Key>, String> {
        let configuration: Configuration = self
            .json(&format!(
                "{}/.well-known/openid-configuration",
                self.issuer.trim_end_matches('/')
            ))
            .await?;
        if configuration.issuer != self.issuer {
            return Err(format!("the issuer calls itself {:?}", configuration.issuer));
        }
        if self.issuer.starts_with("https:") && !configuration.jwks_uri.starts_with("https:") {
            return Err("jwks_uri is not https".to_owned());
        }
        let set: JwkSet = self.json(&configuration.jwks_uri).await?;
        Ok(set.keys.iter().take(MAX_KEYS).filter_map(key).collect())
    }

    async fn json<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<T, String> {
        let request = Request::get(url)
            .header(http::header::ACCEPT, "application/json")
            .body(Empty::new())
            .map_err(|error| format!("{url}: {error}"))?;
        let ask = async {
            let response = self.http.request(request).await.map_err(|error| error.to_string())?;
            // A redirect is not followed either.
            if response.status() != StatusCode::OK {
                return Err(format!("answered {}", response.status()));
            }
            let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
            let body = body.map_err(|error| error.to_string())?.to_bytes();
            serde_json::from_slice(&body).map_err(|error| error.to_string())
        };
        let heard = tokio::time::timeout(TIMEOUT, ask).await;
        heard
            .unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())))
            .map_err(|what| format!("{url}: {what}"))
    }
}

/// A key that signatures can be checked with.
fn key(jwk: &Jwk) -> Option<(String, Key)> {
    let id = jwk.common.key_id.clone()?;
    let signs = jwk
        .common
        .public_key_use
        .as_ref()
        .is_none_or(|of| *of == PublicKeyUse::Signature);
    let key = DecodingKey::from_jwk(jwk).ok().filter(|_| signs)?;
    let algorithm = jwk
        .common
        .key_algorithm
        .and_then(|algorithm| algorithm.to_string().parse().ok());
    Some((id, Key { key, algorithm }))
}

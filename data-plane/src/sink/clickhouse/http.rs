//! HTTP to one ClickHouse endpoint: a pool of kept connections, one request, one whole answer. It knows nothing of what
//! is sent.
//!
//! Every wait is bounded. An answer counts only when it was read to its end: its status line proves nothing.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use millrace_common::error::chain;
use rustls::{ClientConfig, RootCertStore};

/// Time to connect, without TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// TCP keep-alive: finds a dead peer behind a connection that waits for an answer.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);
/// Kept connections. A lane has a few inserts in flight, and a destination a few lanes.
const POOL_SIZE: usize = 16;
/// What of an answer's body is kept. An insert's is empty, and an exception's text is a few kilobytes.
const MAX_BODY: usize = 256 * 1024;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct NoAnswer {
    pub(super) how: Broken,
    pub(super) message: String,
}

/// Where an exchange broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// There was no connection.
    Connecting,
    /// The connection broke while the request was sent or the answer was awaited.
    Sending,
    /// The answer broke off.
    Answering,
    /// Nothing came in time.
    Waiting,
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Its first bytes.
    pub(super) body: Vec<u8>,
}

/// Connections to one endpoint.
#[derive(Clone)]
pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    headers: HeaderMap,
    timeout: Duration,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http")
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// How TLS is set up: once, because it reads the system's certificates.
///
/// # Errors
/// If there are no certificates to trust.
pub(super) fn tls(https: bool) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = if https {
        builder
            .with_native_roots()
            .map_err(|error| format!("cannot read the system's certificates: {error}"))?
    } else {
        builder.with_root_certificates(RootCertStore::empty())
    };
    Ok(builder.with_no_client_auth())
}

impl Http {
    /// Connections that send `headers` with each request and are closed when idle for `idle`.
    pub(super) fn new(tls: ClientConfig, headers: HeaderMap, idle: Duration, timeout: Duration) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_keepalive(Some(TCP_KEEPALIVE));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(idle)
            .pool_max_idle_per_host(POOL_SIZE)
            .build(connector);
        Self {
            client,
            headers,
            timeout,
        }
    }

    /// Posts `body` with its length, and reads the answer to its end.
    pub(super) async fn post(&self, uri: Uri, body: Bytes) -> Result<Answer, NoAnswer> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        let length = HeaderValue::from(hyper::body::Body::size_hint(request.body()).lower());
        request.headers_mut().insert(header::CONTENT_LENGTH, length);
        // On the heap: this future is held across everything a lane awaits.
        match tokio::time::timeout(self.timeout, Box::pin(self.exchange(request))).await {
            Ok(answer) => answer,
            Err(_) => Err(NoAnswer {
                how: Broken::Waiting,
                message: format!("no answer within {} s", self.timeout.as_secs_f32()),
            }),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, NoAnswer> {
        let response = self.client.request(request).await.map_err(|error| NoAnswer {
            how: if error.is_connect() {
                Broken::Connecting
            } else {
                Broken::Sending
            },
            message: chain(&error),
        })?;
        let (parts, body) = response.into_parts();
        let body = read(body).await?;
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        })
    }
}

/// Reads a body to its end and keeps the start.
async fn read(mut body: Incoming) -> Result<Vec<u8>, NoAnswer> {
    let mut kept = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| NoAnswer {
            how: Broken::Answering,
            message: format!("the answer broke off: {}", chain(&error)),
        })?;
        if let Some(data) = frame.data_ref() {
            let room = MAX_BODY.saturating_sub(kept.len()).min(data.len());
            kept.extend_from_slice(&data[..room]);
        }
    }
    Ok(kept)
}

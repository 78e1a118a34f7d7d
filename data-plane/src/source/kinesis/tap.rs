//! Takes the records out of an answer of GetRecords before the SDK looks at it, and out of the events of a subscription ([`events`]).
//!
//! The SDK signs, connects, retries, and reads errors and every other answer. Of a GetRecords that succeeds it is given an answer
//! without records, and the records are handed around it, to the task that asked. An answer that [`scan`] does not know
//! goes to the SDK as it came.

mod events;

use std::cell::Cell;

use aws_smithy_http_client::{Builder, ConnectorBuilder, proxy::ProxyConfig, tls};
use aws_smithy_runtime_api::client::{
    http::{
        HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
    },
    orchestrator::{HttpRequest, HttpResponse},
    result::ConnectorError,
    runtime_components::RuntimeComponents,
};
use aws_smithy_types::{body::SdkBody, byte_stream::ByteStream};
use parking_lot::Mutex;

use self::events::Sieve;
pub(super) use self::events::Taken;
use super::{client::Reply, scan::scan};

/// Names the operation of a request.
const TARGET: &str = "x-amz-target";
/// How it ends for those that are tapped.
const GET_RECORDS: &str = ".GetRecords";
const SUBSCRIBE: &str = ".SubscribeToShard";
/// What the SDK gets to see of an answer that was taken.
const TAKEN: &str = r#"{"Records":[]}"#;

/// Buffers that are kept, and of which size: some tens of megabytes at most, beside what readers may hold.
const MOST_SPARE_BODIES: usize = 2;
const LEAST_SPARE_BODY: usize = 256 << 10;
const LARGEST_SPARE_BODY: usize = 16 << 20;

/// Buffers of bodies and of events that were scanned. One is in use only while it is filled and scanned, so a few serve all readers.
static SPARE_BODIES: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

tokio::task_local! {
    /// Where the answer of the call that this task makes is put.
    static ANSWER: Cell<Option<Reply>>;
    /// Where the events of the subscription that this task asks for are put.
    static EVENTS: Taken;
}

/// Asks for a subscription with the tap open. Gives what the call gave, and where its events will be.
pub(super) async fn subscribing<T>(call: impl Future<Output = T>) -> (T, Taken) {
    let taken = Taken::default();
    (EVENTS.scope(taken.clone(), call).await, taken)
}

/// Runs one call with the tap open. Gives what it gave, and the answer if that was taken.
pub(super) async fn tapped<T>(call: impl Future<Output = T>) -> (T, Option<Reply>) {
    ANSWER
        .scope(Cell::new(None), async {
            let output = call.await;
            (output, ANSWER.with(Cell::take))
        })
        .await
}

/// The HTTPS client that the SDK makes for itself where it is given none.
pub(super) fn https() -> SharedHttpClient {
    Builder::new().build_with_connector_fn(|settings, components| {
        let provider = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc);
        let mut connector = ConnectorBuilder::default().tls_provider(provider);
        connector.set_connector_settings(settings.cloned());
        if let Some(components) = components {
            connector.set_sleep_impl(components.sleep_impl());
        }
        connector.set_proxy_config(Some(ProxyConfig::from_env()));
        connector.build()
    })
}

/// An HTTP client whose answers can be taken.
#[derive(Debug)]
pub(super) struct Tap {
    inner: SharedHttpClient,
}

impl Tap {
    pub(super) fn new(inner: SharedHttpClient) -> Self {
        Self { inner }
    }
}

impl HttpClient for Tap {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        let inner = self.inner.http_connector(settings, components);
        SharedHttpConnector::new(Connector { inner })
    }
}

#[derive(Debug)]
struct Connector {
    inner: SharedHttpConnector,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get(TARGET).unwrap_or_default();
        let (records, events) = (target.ends_with(GET_RECORDS), target.ends_with(SUBSCRIBE));
        let answer = self.inner.call(request);
        match (records, events) {
            (true, _) => HttpConnectorFuture::new(async move { take(answer.await?).await }),
            (_, true) => HttpConnectorFuture::new(async move { Ok(sieved(answer.await?)) }),
            _ => answer,
        }
    }
}

/// The subscription without the records of its events.
fn sieved(mut response: HttpResponse) -> HttpResponse {
    if response.status().as_u16() == 200
        && let Ok(taken) = EVENTS.try_with(Taken::clone)
    {
        let body = response.take_body();
        *response.body_mut() = SdkBody::from_body_1_x(Sieve::new(body, taken));
    }
    response
}

/// The answer without what was taken from it.
async fn take(mut response: HttpResponse) -> Result<HttpResponse, ConnectorError> {
    let asked = ANSWER.try_with(|_| ()).is_ok();
    if response.status().as_u16() != 200 || !asked {
        return Ok(response);
    }
    // Each frame is copied while it is still in the cache, and its buffer is free for the next one.
    let mut frames = ByteStream::new(response.take_body());
    let mut body = spare_body();
    body.reserve_exact(announced(&response));
    while let Some(frame) = frames.next().await {
        body.extend_from_slice(&frame.map_err(|error| ConnectorError::io(error.into()))?);
    }
    *response.body_mut() = match scan(&body) {
        Some(reply) => {
            ANSWER.with(|answer| answer.set(Some(reply)));
            // The SDK compares it with the body that it sees.
            response.headers_mut().remove("content-length");
            keep_body(body);
            SdkBody::from(TAKEN)
        }
        None => SdkBody::from(body),
    };
    Ok(response)
}

/// How long the body is going to be, as far as that is believed.
fn announced(response: &HttpResponse) -> usize {
    let length = response
        .headers()
        .get("content-length")
        .and_then(|length| length.parse().ok());
    length.unwrap_or(0).min(LARGEST_SPARE_BODY)
}

/// An empty buffer, if possible one that was used before: to ask the system for new pages costs as much as to read into them.
fn spare_body() -> Vec<u8> {
    SPARE_BODIES.lock().pop().unwrap_or_default()
}

fn keep_body(mut body: Vec<u8>) {
    body.clear();
    let mut spare = SPARE_BODIES.lock();
    if spare.len() < MOST_SPARE_BODIES && (LEAST_SPARE_BODY..=LARGEST_SPARE_BODY).contains(&body.capacity()) {
        spare.push(body);
    }
}

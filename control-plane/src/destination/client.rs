//! Statements to one ClickHouse server over HTTP. Every answer is read to its end within a deadline; nothing is retried.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use clickhouse::Compression;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::{
        Client as HyperClient,
        connect::{
            HttpConnector,
            dns::{GaiResolver, Name},
        },
    },
    rt::{TokioExecutor, TokioTimer},
};
use secrecy::ExposeSecret as _;
use serde::de::DeserializeOwned;

use super::Access;
use crate::endpoint;

/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One statement: looking at metadata, or making a table.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// ClickHouse closes idle connections after 3 s by default, so ours go first.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// Rows that one look at metadata may return. A table has at most a few thousand columns.
const MAX_ROWS: &str = "20000";

/// Calls ClickHouse servers. Clones are cheap and share their connections.
#[derive(Clone)]
pub struct Client {
    http: clickhouse::Client,
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    /// A client that trusts the system's certificate authorities. Without any, `https` endpoints do not connect.
    #[must_use]
    pub fn new() -> Self {
        let mut tcp = HttpConnector::new_with_resolver(Resolver {
            inner: GaiResolver::new(),
        });
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(crate::tls::client())
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let http = HyperClient::builder(TokioExecutor::new())
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(https);
        let http = clickhouse::Client::with_http_client(http)
            .with_compression(Compression::None)
            .with_product_info("millrace-control-plane", env!("CARGO_PKG_VERSION"));
        Self { http }
    }

    /// One server, as one user.
    pub(super) fn server(&self, access: &Access) -> Server {
        Server {
            client: self
                .http
                .clone()
                .with_url(&access.endpoint)
                .with_user(&access.username)
                .with_password(access.password.expose_secret()),
            endpoint: access.endpoint.clone(),
            username: access.username.clone(),
        }
    }
}

/// The system's resolver, without the addresses that are never called: a name that changes its mind between the check
/// of an endpoint and the call gets nowhere.
#[derive(Clone)]
struct Resolver {
    inner: GaiResolver,
}

impl tower::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let resolving = self.inner.call(name);
        Box::pin(async move {
            let callable: Vec<SocketAddr> = resolving
                .await?
                .filter(|address| endpoint::is_callable(address.ip()))
                .collect();
            if callable.is_empty() {
                return Err(io::Error::other("the name has no address that may be called"));
            }
            Ok(callable.into_iter())
        })
    }
}

/// One server, as one user.
pub(super) struct Server {
    client: clickhouse::Client,
    pub(super) endpoint: String,
    pub(super) username: String,
}

/// Why a statement gave no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServerError {
    /// ClickHouse said no.
    #[error("code {code}: {message}")]
    Exception {
        /// Its number.
        code: u32,
        /// Its text, without version and stack.
        message: String,
    },
    /// Something answered that is not ClickHouse's HTTP interface.
    #[error("{0}")]
    Foreign(String),
    /// Nothing answered.
    #[error("{0}")]
    Network(String),
}

impl ServerError {
    /// ClickHouse's own number, if it is ClickHouse that said no.
    pub(super) fn code(&self) -> Option<u32> {
        match self {
            ServerError::Exception { code, .. } => Some(*code),
            ServerError::Foreign(_) | ServerError::Network(_) => None,
        }
    }
}

impl Server {
    /// Rows of a SELECT; each `?` stands for the next of `values`, as a string.
    pub(super) async fn rows<T: DeserializeOwned>(&self, sql: &str, values: &[&str]) -> Result<Vec<T>, ServerError> {
        let query = values
            .iter()
            .fold(self.client.query(sql), |query, value| query.bind(*value));
        let query = query
            .with_setting("max_result_rows", MAX_ROWS)
            .with_setting("result_overflow_mode", "throw");
        let reading = async {
            let mut cursor = query.fetch_bytes("JSONEachRow")?;
            cursor.collect().await
        };
        let body = within(reading).await?;
        body.split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(serde_json::from_slice)
            .collect::<Result<_, _>>()
            .map_err(|_| ServerError::Foreign("an answer of another shape".to_owned()))
    }

    /// A CREATE TABLE. `Nested` stays one column, as the pipe that asks for it knows it.
    pub(super) async fn create(&self, sql: &str) -> Result<(), ServerError> {
        within(self.client.query_raw(sql).with_setting("flatten_nested", "0").execute()).await
    }

    /// An ALTER of a table's settings.
    pub(super) async fn alter(&self, sql: &str) -> Result<(), ServerError> {
        within(self.client.query_raw(sql).execute()).await
    }

    /// Begins a DELETE; each `?` stands for the next of `values`, as a string. ClickHouse gets to the rows by itself.
    pub(super) async fn delete(&self, sql: &str, values: &[&str]) -> Result<(), ServerError> {
        let query = values
            .iter()
            .fold(self.client.query(sql), |query, value| query.bind(*value));
        within(query.with_setting("lightweight_deletes_sync", "0").execute()).await
    }

    /// An INSERT without rows.
    pub(super) async fn insert_nothing(&self, sql: &str) -> Result<(), ServerError> {
        within(self.client.query_raw(sql).with_setting("async_insert", "0").execute()).await
    }
}

async fn within<T>(work: impl Future<Output = clickhouse::error::Result<T>>) -> Result<T, ServerError> {
    match tokio::time::timeout(STATEMENT_TIMEOUT, work).await {
        Ok(result) => result.map_err(|error| classify(&error)),
        Err(_) => Err(ServerError::Network(format!(
            "no answer within {} s",
            STATEMENT_TIMEOUT.as_secs()
        ))),
    }
}

fn classify(error: &clickhouse::error::Error) -> ServerError {
    match error {
        clickhouse::error::Error::BadResponse(text) => match exception(text) {
            Some((code, message)) => ServerError::Exception { code, message },
            None => {
                // Whoever answers there may be none of the user's business.
                tracing::debug!(answer = text, "not an answer of ClickHouse");
                ServerError::Foreign("an answer of another kind".to_owned())
            }
        },
        other => ServerError::Network(causes(other)),
    }
}

/// The innermost cause says what happened; the outer ones say that something did.
fn causes(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// `Code: 60. DB::Exception: Table x does not exist. (UNKNOWN_TABLE) (version 26.7.3.1)`: the number, and the text.
fn exception(text: &str) -> Option<(u32, String)> {
    let rest = text.strip_prefix("Code: ")?;
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let code = rest[..digits].parse().ok()?;
    let message = rest[digits..].trim_start_matches(['.', ' ']);
    let message = message.strip_prefix("DB::Exception: ").unwrap_or(message);
    let message = message.split(" (version ").next().unwrap_or(message);
    Some((code, message.trim().chars().take(1_000).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_read_by_number() {
        let text =
            "Code: 60. DB::Exception: Table a.b does not exist. (UNKNOWN_TABLE) (version 26.7.3.1 (official build))\n";
        assert_eq!(
            exception(text),
            Some((60, "Table a.b does not exist. (UNKNOWN_TABLE)".to_owned()))
        );
        assert_eq!(exception("Code: 516"), Some((516, String::new())));
        assert_eq!(exception("404 Not Found"), None);
        assert_eq!(exception("Code: x"), None);
    }

    #[tokio::test]
    async fn nobody_there_is_a_network_error() {
        let access = Access {
            endpoint: "http://127.0.0.1:1".into(),
            username: "u".into(),
            password: "canary".into(),
        };
        let error = Client::new()
            .server(&access)
            .insert_nothing("SELECT 1")
            .await
            .unwrap_err();
        assert!(matches!(error, ServerError::Network(_)), "{error:?}");
        assert!(!format!("{error:?} {access:?}").contains("canary"));
    }
}

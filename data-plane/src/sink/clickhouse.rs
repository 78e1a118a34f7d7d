//! Inserting blocks into ClickHouse over HTTP.
//!
//! ```text
//!   Insert --> insert (statement, settings) --> http (pool, one POST, whole answer) --> insert (outcome) --> classify
//! ```
//!
//! One call is one attempt: retrying, and with what, is the lane's decision, because only it knows what was promised
//! for the batch. The `clickhouse` crate is not used here: it does not give the server's summary, code and status.
//!
//! Invariants:
//! - One request carries one Native block and its Content-Length, so a cut request is refused as a whole.
//! - An insert names its columns, its token and every setting that decides over its rows.
//! - Only an answer that was read to its end and holds no exception is an acknowledgement.

mod classify;
pub mod errors_table;
mod http;
mod insert;
pub mod native;
mod server;
mod table;

use std::{fmt, sync::Arc, time::Duration};

use ::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use bytes::Bytes;
use millrace_common::clickhouse::quote_string;
use parking_lot::Mutex;
use rustls::ClientConfig;
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use self::{
    classify::code,
    http::{Broken, Http, NoAnswer},
    server::Optional,
};
pub use self::{
    classify::{CODES, Class, by_code, by_status},
    insert::{Insert, InsertError, Inserted},
    table::Definition,
};

/// Time for one attempt. The server may still be at it when it has passed; the token makes the next attempt harmless.
const INSERT_TIMEOUT: Duration = Duration::from_secs(120);

/// Where and as whom to insert.
#[derive(Debug, Clone)]
pub struct Access {
    /// HTTP interface, such as `https://host:8443`.
    pub endpoint: String,
    /// User.
    pub username: String,
    /// Password; empty for none.
    pub password: SecretString,
    /// Database.
    pub database: String,
}

/// Why a sink cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// Not an endpoint.
    #[error("{endpoint:?} is not a ClickHouse endpoint: {problem}")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A user name or password that cannot be sent.
    #[error("the {field} holds a character that cannot be sent, such as a line break")]
    Credential {
        /// Which of them.
        field: &'static str,
    },
    /// No TLS.
    #[error("cannot set up TLS: {message}")]
    Tls {
        /// Why.
        message: String,
    },
}

/// A server as it was found.
#[derive(Debug, Clone)]
struct Server {
    http: Http,
    optional: Optional,
}

/// Inserts into the tables of one database as one user; a cheap clone.
#[derive(Clone)]
pub struct Sink {
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: Url,
    database: String,
    headers: HeaderMap,
    tls: ClientConfig,
    timeout: Duration,
    /// What is known of the server; `None` before the first insert and when it has to be asked again.
    server: Mutex<Option<Server>>,
    /// One probe at a time.
    probing: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = &self.shared;
        f.debug_struct("Sink")
            .field("endpoint", &shared.endpoint.as_str())
            .field("database", &shared.database)
            .finish()
    }
}

impl Sink {
    /// A sink that has not connected yet.
    ///
    /// # Errors
    /// If the endpoint is not one, or the user or password cannot be sent.
    pub fn new(access: &Access) -> Result<Self, AccessError> {
        Self::with_timeout(access, INSERT_TIMEOUT)
    }

    /// The same with another time for one attempt.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_timeout(access: &Access, timeout: Duration) -> Result<Self, AccessError> {
        let endpoint = endpoint(&access.endpoint)?;
        let tls = http::tls(endpoint.scheme() == "https").map_err(|message| AccessError::Tls { message })?;
        let shared = Shared {
            headers: headers(access)?,
            endpoint,
            database: access.database.clone(),
            tls,
            timeout,
            server: Mutex::new(None),
            probing: tokio::sync::Mutex::new(()),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Sends one block, once.
    ///
    /// # Errors
    /// Whenever it is not certain that the rows are in the table. The same insert, with the same token and bytes, may
    /// be sent again at any time.
    pub async fn insert(&self, insert: Insert<'_>) -> Result<Inserted, InsertError> {
        let server = self.server().await?;
        let query = insert::url_query(&self.shared.database, &insert, server.optional)?;
        let uri = self.uri(&query)?;
        let result = match server.http.post(uri, insert.body.clone()).await {
            Ok(answer) => insert::outcome(&answer),
            Err(no_answer) => Err(self.cause(&server, insert, no_answer).await),
        };
        if let Err(error) = &result
            && (error.status.is_none() || error.code == Some(code::UNKNOWN_SETTING))
        {
            // Another server, or another version of it, may answer next time.
            *self.shared.server.lock() = None;
        }
        result
    }

    /// Why an attempt has no answer. A server that refuses the statement does not read the block: it answers, closes, and
    /// the answer is lost in the reset that the rest of the block meets. So the same statement is sent again without
    /// rows, which writes nothing, and its refusal, if it has one, is the cause.
    async fn cause(&self, server: &Server, insert: Insert<'_>, no_answer: NoAnswer) -> InsertError {
        let unknown = InsertError::unreachable(no_answer.message);
        if no_answer.how != Broken::Sending {
            return unknown;
        }
        let query_id = format!("{}-why", insert.query_id);
        let without_rows = Insert {
            body: Bytes::new(),
            compressed: false,
            query_id: &query_id,
            ..insert
        };
        let asked =
            insert::url_query(&self.shared.database, &without_rows, server.optional).and_then(|query| self.uri(&query));
        let Ok(uri) = asked else { return unknown };
        match server
            .http
            .post(uri, Bytes::new())
            .await
            .map(|answer| insert::outcome(&answer))
        {
            // Without a code it may be anybody's answer. It is an answer to another attempt, and of this one nothing is known.
            Ok(Err(refused)) if refused.code.is_some() => InsertError {
                is_certain: false,
                ..refused
            },
            Ok(_) | Err(_) => unknown,
        }
    }

    /// What the server says of a table now; `None` if it shows no such table to this user.
    ///
    /// # Errors
    /// Whatever keeps the server from saying it.
    pub async fn definition(&self, name: &str) -> Result<Option<Definition>, InsertError> {
        let server = self.server().await?;
        let statement = format!(
            "SELECT {} FROM system.tables WHERE database = {} AND name = {} FORMAT TSV",
            table::COLUMNS,
            quote_string(&self.shared.database),
            quote_string(name)
        );
        let uri = self.uri("wait_end_of_query=1")?;
        let answer = server.http.post(uri, Bytes::from(statement)).await;
        let answer = answer.map_err(|no_answer| InsertError::unreachable(no_answer.message))?;
        if answer.status.as_u16() != 200 || answer.headers.contains_key(insert::EXCEPTION_CODE) {
            return Err(insert::refusal(&answer));
        }
        // Not looked at for "Code: …" as other answers are: a definition may hold any text.
        Ok(table::Definition::parse(&answer.body))
    }

    async fn server(&self) -> Result<Server, InsertError> {
        let _one_at_a_time = self.shared.probing.lock().await;
        if let Some(server) = self.shared.server.lock().clone() {
            return Ok(server);
        }
        let shared = &self.shared;
        let http = |idle| Http::new(shared.tls.clone(), shared.headers.clone(), idle, shared.timeout);
        let mut probing = http(server::FIRST_IDLE);
        let uri = self.uri("wait_end_of_query=1")?;
        let answer = probing
            .post(uri, Bytes::from_static(server::PROBE.as_bytes()))
            .await
            .map_err(|no_answer| InsertError::unreachable(no_answer.message))?;
        let optional = insert::text_of(&answer).map(Optional::parse)?;
        let idle = server::idle(&answer);
        if idle != server::FIRST_IDLE {
            probing = http(idle);
        }
        let server = Server {
            http: probing,
            optional,
        };
        *shared.server.lock() = Some(server.clone());
        Ok(server)
    }

    fn uri(&self, query: &str) -> Result<Uri, InsertError> {
        let mut url = self.shared.endpoint.clone();
        url.set_query(Some(query));
        url.as_str().parse().map_err(|error| InsertError {
            class: Class::Pause,
            code: None,
            status: None,
            is_certain: false,
            message: format!("the request's URL cannot be sent: {error}"),
        })
    }
}

fn endpoint(text: &str) -> Result<Url, AccessError> {
    let wrong = |problem: String| AccessError::Endpoint {
        endpoint: text.chars().take(200).collect(),
        problem,
    };
    let url: Url = text
        .parse()
        .map_err(|error: url::ParseError| wrong(error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("use http:// or https://".to_owned()));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(wrong("it names no host".to_owned()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        // It is not repeated: it may hold a password.
        return Err(AccessError::Endpoint {
            endpoint: url.host_str().unwrap_or_default().to_owned(),
            problem: "leave user and password to the credential".to_owned(),
        });
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong(
            "leave out what follows the path: settings are Millrace's".to_owned(),
        ));
    }
    Ok(url)
}

fn headers(access: &Access) -> Result<HeaderMap, AccessError> {
    let value = |text: &str, field| {
        let mut value = HeaderValue::from_bytes(text.as_bytes()).map_err(|_| AccessError::Credential { field })?;
        value.set_sensitive(true);
        Ok(value)
    };
    let mut headers = HeaderMap::new();
    headers.insert(
        HeaderName::from_static("x-clickhouse-user"),
        value(&access.username, "user name")?,
    );
    headers.insert(
        HeaderName::from_static("x-clickhouse-key"),
        value(access.password.expose_secret(), "password")?,
    );
    headers.insert(
        ::http::header::USER_AGENT,
        HeaderValue::from_static(concat!("millrace/", env!("CARGO_PKG_VERSION"))),
    );
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(endpoint: &str, username: &str, password: &str) -> Access {
        Access {
            endpoint: endpoint.to_owned(),
            username: username.to_owned(),
            password: SecretString::from(password),
            database: "d".to_owned(),
        }
    }

    #[test]
    fn endpoints() {
        for good in [
            "http://localhost:8123",
            "https://h.example:8443/",
            "http://[::1]:8123",
            "https://h/clickhouse",
        ] {
            assert!(
                Sink::new(&access(good, "u", "p")).is_ok() || good.starts_with("https"),
                "{good}"
            );
            assert!(endpoint(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "localhost:8123",
            "ftp://h",
            "http://",
            "http://u:secret@h",
            "http://h?async_insert=1",
            "http://h#x",
        ] {
            let error = endpoint(bad).expect_err(bad);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn credentials_cannot_smuggle_headers() {
        let error = Sink::new(&access("http://h", "u", "p\r\nX-ClickHouse-Quota: y")).expect_err("a line break");
        assert_eq!(error, AccessError::Credential { field: "password" });
        assert!(Sink::new(&access("http://h", "jürgen", "pässwörd")).is_ok());
        let sink = Sink::new(&access("http://h", "u", "hunter2")).expect("a sink");
        assert!(!format!("{sink:?}{:?}", sink.shared.headers).contains("hunter2"));
    }
}

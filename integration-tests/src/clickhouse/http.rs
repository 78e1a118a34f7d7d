//! One request, one connection, one answer.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{ClickHouse, Error};

const USER: HeaderName = HeaderName::from_static("x-clickhouse-user");
const KEY: HeaderName = HeaderName::from_static("x-clickhouse-key");
const EXCEPTION_CODE: &str = "x-clickhouse-exception-code";

/// A request to the HTTP interface, to be sent as it is.
#[derive(Debug, Clone, Default)]
pub struct Request {
    user: Option<(String, String)>,
    parameters: Vec<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
}

impl Request {
    /// An empty request as the admin.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A query in the body.
    #[must_use]
    pub fn query(sql: &str) -> Self {
        Self {
            body: Bytes::copy_from_slice(sql.as_bytes()),
            ..Self::default()
        }
    }

    /// A query in the URL, with its data (`INSERT INTO t FORMAT Native`) in the body.
    #[must_use]
    pub fn insert(sql: &str, data: impl Into<Bytes>) -> Self {
        Self {
            body: data.into(),
            ..Self::default()
        }
        .parameter("query", sql)
    }

    /// Sends it as another user.
    #[must_use]
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.user = Some((name.to_owned(), password.to_owned()));
        self
    }

    /// Adds a URL parameter: a setting, `database`, `query_id`, `param_x`.
    #[must_use]
    #[allow(
        clippy::needless_pass_by_value,
        reason = "callers write 1 and \"x\", not &1 and &\"x\""
    )]
    pub fn parameter(mut self, name: &str, value: impl ToString) -> Self {
        self.parameters.push((name.to_owned(), value.to_string()));
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }
}

/// What the server answered, whatever that was.
#[derive(Debug, Clone)]
pub struct Response {
    /// The HTTP status. 200 may still carry an exception in the body.
    pub status: u16,
    /// All headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Response {
    /// The body as text; bytes that are no UTF-8 are replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// ClickHouse's error number from the header, or 0 when the status alone says that it failed.
    #[must_use]
    pub fn exception_code(&self) -> Option<u32> {
        let header = self
            .headers
            .get(EXCEPTION_CODE)
            .and_then(|code| code.to_str().ok()?.trim().parse().ok());
        header.or((self.status != 200).then_some(0))
    }

    /// The body, or the exception.
    ///
    /// # Errors
    /// [`Error::Exception`].
    pub fn into_text(self) -> Result<String, Error> {
        match self.exception_code() {
            Some(code) => Err(Error::Exception {
                code,
                message: self.text().trim().to_owned(),
            }),
            None => Ok(self.text()),
        }
    }
}

impl ClickHouse {
    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// [`Error::Http`] when there is no answer. An exception of ClickHouse's is an answer.
    pub async fn send(&self, request: Request) -> Result<Response, Error> {
        let fail = |error: &dyn std::error::Error| Error::Http(error.to_string());
        let host = self.url.host_str().unwrap_or_default();
        let port = self.url.port_or_known_default().unwrap_or_default();

        let stream = TcpStream::connect((host, port)).await.map_err(|error| fail(&error))?;
        stream.set_nodelay(true).map_err(|error| fail(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| fail(&error))?;
        let connection = tokio::spawn(connection);

        let request = self.to_http(request, &format!("{host}:{port}"))?;
        let response = sender.send_request(request).await.map_err(|error| fail(&error))?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| fail(&error))?.to_bytes();
        connection.abort();
        Ok(Response {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        })
    }

    fn to_http(&self, request: Request, host: &str) -> Result<hyper::Request<Full<Bytes>>, Error> {
        let value = |text: &str| HeaderValue::from_str(text).map_err(|error| Error::Http(error.to_string()));
        let mut url = self.url.clone();
        if !request.parameters.is_empty() {
            url.query_pairs_mut().extend_pairs(&request.parameters);
        }
        let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
        let (user, password) = request
            .user
            .unwrap_or_else(|| (self.user.clone(), self.password.clone()));
        let mut http = hyper::Request::post(target)
            .header(HOST, value(host)?)
            .header(USER, value(&user)?)
            .header(KEY, value(&password)?)
            .header(CONTENT_LENGTH, request.body.len())
            .body(Full::new(request.body))
            .map_err(|error| Error::Http(error.to_string()))?;
        http.headers_mut().extend(request.headers);
        Ok(http)
    }

    /// Runs a query as the admin and returns its output as text (`FORMAT` as the query says, else tab-separated).
    ///
    /// # Errors
    /// [`Error::Exception`] with ClickHouse's number, also for an exception after the first rows.
    pub async fn query(&self, sql: &str) -> Result<String, Error> {
        // The server buffers the answer, so that an exception always comes with its status and header.
        self.send(Request::query(sql).parameter("wait_end_of_query", 1))
            .await?
            .into_text()
    }

    /// As [`ClickHouse::query`], as another user.
    ///
    /// # Errors
    /// As [`ClickHouse::query`].
    pub async fn query_as(&self, user: &str, password: &str, sql: &str) -> Result<String, Error> {
        self.send(
            Request::query(sql)
                .user(user, password)
                .parameter("wait_end_of_query", 1),
        )
        .await?
        .into_text()
    }

    /// Sends `data` for an INSERT statement (`INSERT INTO db.t FORMAT JSONEachRow`) and returns the bare answer.
    ///
    /// # Errors
    /// [`Error::Http`] when there is no answer.
    pub async fn insert(&self, sql: &str, data: impl Into<Bytes>) -> Result<Response, Error> {
        self.send(Request::insert(sql, data)).await
    }
}

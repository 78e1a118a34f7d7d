//! The API as JSON over HTTP, on the port of gRPC: a layer in front of the services that makes gRPC calls of requests by the
//! `google.api.http` options of the protocol, and JSON of the answers. What guards a gRPC call guards these, too.
//!
//! Browsers reach a control plane from pages of others. Such a page cannot send the content type that is asked for here without
//! being allowed to (CORS); and where callers are not known by tokens, the host that a request names has to be this machine's, so
//! that a name of somebody else's that leads here (DNS rebinding) is of no use.

use std::{
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request::Parts};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use millrace_common::{error::ApiError, grpc::MAX_MESSAGE_BYTES};
use millrace_proto::DESCRIPTOR_POOL;
use prost::Message as _;
use prost_reflect::DynamicMessage;
use tonic::{Code, Status, body::Body};

use self::binding::Binding;

mod binding;
mod openapi;
mod request;
mod response;
mod template;

/// Where the description of the HTTP form is.
const DESCRIPTION: &str = "/openapi.json";
/// Paths of the HTTP form begin with this.
const VERSION: &str = "/v1/";

/// No method is called at this path.
const PATH_NOT_FOUND: &str = "PATH_NOT_FOUND";
/// The path is another verb's.
const VERB_NOT_ALLOWED: &str = "VERB_NOT_ALLOWED";
/// The body is not said to be JSON.
const CONTENT_TYPE_NOT_JSON: &str = "CONTENT_TYPE_NOT_JSON";
/// The body is longer than any message may be.
const BODY_TOO_LARGE: &str = "BODY_TOO_LARGE";
/// The request names a host that is not this machine.
const HOST_NOT_LOCAL: &str = "HOST_NOT_LOCAL";

/// Why there is no HTTP form: a mistake in the protocol.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP form of the protocol: {0}")]
pub struct Error(String);

/// Puts the HTTP form in front of gRPC services.
#[derive(Clone)]
pub struct Layer(Arc<Http>);

/// The HTTP form.
struct Http {
    bindings: Vec<Binding>,
    description: serde_json::Value,
    /// Callers prove nothing, so that what a browser can be made to do matters.
    open: bool,
}

impl Layer {
    /// Of the protocol; `open` if callers need not prove who they are.
    ///
    /// # Errors
    /// If the protocol does not say of each method how it is called.
    pub fn new(open: bool) -> Result<Self, Error> {
        let bindings = binding::bindings(&DESCRIPTOR_POOL).map_err(Error)?;
        let description = openapi::describe(&bindings);
        Ok(Self(Arc::new(Http {
            bindings,
            description,
            open,
        })))
    }
}

impl<S> tower::Layer<S> for Layer {
    type Service = Rest<S>;

    fn layer(&self, inner: S) -> Rest<S> {
        Rest {
            http: self.0.clone(),
            inner,
        }
    }
}

/// gRPC services that speak JSON, too.
#[derive(Clone)]
pub struct Rest<S> {
    http: Arc<Http>,
    inner: S,
}

impl<S> tower::Service<Request<Body>> for Rest<S>
where
    S: tower::Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The one that is ready is the one that is called.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let content = content_type(request.headers());
        // No browser sends this: gRPC needs what they do not have.
        if content == "application/grpc" || content.starts_with("application/grpc+") {
            return Box::pin(inner.call(request));
        }
        if self.http.open && !names_this_machine(&request) {
            let message = "this control plane knows no tokens, so it answers requests that browsers can make only to a host that is an \
                           address, or localhost: use one, or give the control plane --admin-token-file";
            let error = ApiError::new(Code::PermissionDenied, HOST_NOT_LOCAL, message);
            return Box::pin(async move { Ok(response::of_status(&error.into())) });
        }
        if content.starts_with("application/grpc-web") {
            return Box::pin(inner.call(request));
        }
        let http = self.http.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            if parts.uri.path() == DESCRIPTION && parts.method == Method::GET {
                return Ok(response::reply(StatusCode::OK, &http.description));
            }
            let (binding, message) = match http.read(&parts, body).await {
                Ok(read) => read,
                Err(refused) => return Ok(refused.answer()),
            };
            match call(parts, binding, &message) {
                Ok(request) => Ok(response::of_grpc(inner.call(request).await?, binding).await),
                Err(error) => Ok(response::of_status(&ApiError::internal(&error).into())),
            }
        })
    }
}

/// Why a request is not one of a method.
struct Refused {
    error: ApiError,
    /// The code of HTTP, where that of gRPC does not say it.
    code: Option<StatusCode>,
    /// Verbs that the path has.
    allow: Vec<String>,
}

impl Refused {
    fn new(code: StatusCode, grpc: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            error: ApiError::new(grpc, reason, message),
            code: Some(code),
            allow: Vec::new(),
        }
    }

    fn answer(self) -> Response<Body> {
        let mut response = response::of_status(&Status::from(self.error));
        if let Some(code) = self.code {
            *response.status_mut() = code;
        }
        if let Ok(allow) = HeaderValue::from_str(&self.allow.join(", "))
            && !self.allow.is_empty()
        {
            response.headers_mut().insert(header::ALLOW, allow);
        }
        response
    }
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self {
            error,
            code: None,
            allow: Vec::new(),
        }
    }
}

impl Http {
    /// The method that a request calls, and with what.
    async fn read(&self, parts: &Parts, body: Body) -> Result<(&Binding, DynamicMessage), Refused> {
        let path = parts.uri.path();
        let matching = || {
            self.bindings
                .iter()
                .filter_map(move |binding| Some((binding, binding.template.matches(path)?)))
        };
        let Some((binding, captured)) = matching().find(|(binding, _)| binding.verb == parts.method) else {
            let allow: Vec<String> = matching().map(|(binding, _)| binding.verb.to_string()).collect();
            if allow.is_empty() {
                let message = format!(
                    "there is nothing at this path: paths begin with {VERSION}, and {DESCRIPTION} describes them"
                );
                return Err(Refused::new(
                    StatusCode::NOT_FOUND,
                    Code::NotFound,
                    PATH_NOT_FOUND,
                    message,
                ));
            }
            let message = format!("this path is called with {}", allow.join(", "));
            let refused = Refused::new(
                StatusCode::METHOD_NOT_ALLOWED,
                Code::Unimplemented,
                VERB_NOT_ALLOWED,
                message,
            );
            return Err(Refused { allow, ..refused });
        };
        // Also where the body is empty: a form on somebody's page can send that.
        let changes = matches!(parts.method, Method::POST | Method::PATCH | Method::PUT);
        if changes && content_type(&parts.headers) != "application/json" {
            return Err(Refused::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                Code::InvalidArgument,
                CONTENT_TYPE_NOT_JSON,
                "send the header `content-type: application/json`",
            ));
        }
        let body = Limited::new(body, MAX_MESSAGE_BYTES).collect().await.map_err(|error| {
            if error.downcast_ref::<LengthLimitError>().is_some() {
                let message = format!("the body is longer than {MAX_MESSAGE_BYTES} bytes");
                Refused::new(StatusCode::PAYLOAD_TOO_LARGE, Code::OutOfRange, BODY_TOO_LARGE, message)
            } else {
                ApiError::invalid_field("body", "did not come whole").into()
            }
        })?;
        let query = parts.uri.query().unwrap_or_default();
        let message = request::message(binding, captured, query, &body.to_bytes())?;
        Ok((binding, message))
    }
}

/// The gRPC call that a request stands for: of the same caller, on the same connection.
fn call(parts: Parts, binding: &Binding, message: &DynamicMessage) -> Result<Request<Body>, http::Error> {
    let message = message.encode_to_vec();
    let mut body = BytesMut::with_capacity(message.len() + 5);
    body.put_u8(0);
    // A body of JSON is at most as long as a message may be, and the message in it is shorter.
    body.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    body.put_slice(&message);
    let mut request = Request::new(Body::new(Full::<Bytes>::new(body.freeze())));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::builder().path_and_query(binding.grpc_path()).build()?;
    *request.extensions_mut() = parts.extensions;
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    for token in parts.headers.get_all(header::AUTHORIZATION) {
        headers.append(header::AUTHORIZATION, token.clone());
    }
    Ok(request)
}

/// The media type of a body, without its parameters.
fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media = value.and_then(|value| value.split(';').next()).unwrap_or_default();
    media.trim().to_ascii_lowercase()
}

/// Whether a request is for a host that nobody else can have made lead here.
fn names_this_machine<B>(request: &Request<B>) -> bool {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let Some(host) = request.uri().authority().map(http::uri::Authority::as_str).or(host) else {
        return false;
    };
    let Ok(authority) = host.parse::<http::uri::Authority>() else {
        return false;
    };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_leads_here_is_not_this_machine() {
        let host = |host: &str| {
            let request = Request::builder()
                .uri("/v1/tokens")
                .header(header::HOST, host)
                .body(())
                .unwrap();
            names_this_machine(&request)
        };
        for name in [
            "localhost",
            "localhost:7400",
            "127.0.0.1:7400",
            "[::1]:7400",
            "10.1.2.3",
        ] {
            assert!(host(name), "{name}");
        }
        for name in [
            "evil.example",
            "evil.example:7400",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "",
            "a b",
        ] {
            assert!(!host(name), "{name}");
        }
        assert!(!names_this_machine(&Request::new(())));
    }
}

//! From the answer of a gRPC service to JSON, line by line where it is a stream.

use std::sync::LazyLock;

use bytes::{Buf as _, Bytes, BytesMut};
use futures::stream;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use millrace_common::proto_json;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor};
use serde_json::{Value, json};
use tonic::{Code, Status, body::Body};
use tonic_types::StatusExt as _;

use super::binding::Binding;

const JSON: &str = "application/json";
/// One JSON value in each line.
const LINES: &str = "application/x-ndjson";
/// What is before each message of a gRPC body: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// Status codes for those who call it off.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Descriptors of what errors carry.
static DETAILS: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(tonic_types::pb::FILE_DESCRIPTOR_SET).expect("the descriptors of google.rpc are valid")
});

/// The answer to one request.
pub(super) async fn of_grpc(response: Response<Body>, binding: &Binding) -> Response<Body> {
    let (parts, body) = response.into_parts();
    if let Some(status) = failure(&parts.headers) {
        return of_status(&status);
    }
    if binding.method.is_server_streaming() {
        return lines(body, binding);
    }
    let collected = match body.collect().await {
        Ok(collected) => collected,
        Err(status) => return of_status(&status),
    };
    if let Some(status) = collected.trailers().and_then(failure) {
        return of_status(&status);
    }
    let mut buffer = BytesMut::from(&*collected.to_bytes());
    let message = take(&mut buffer).ok_or_else(|| Status::internal("the answer has no message"));
    match message.and_then(|message| json_of(binding, &message)) {
        Ok(value) => reply(StatusCode::OK, &value),
        Err(status) => of_status(&status),
    }
}

/// An error as JSON: `{"error": {code, status, message, details}}`, as Google's APIs have it.
pub(super) fn of_status(status: &Status) -> Response<Body> {
    let code = http_code(status.code());
    let mut response = reply(code, &error_json(status));
    let headers = response.headers_mut();
    if code == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
    if let Some(delay) = delay {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(delay.as_secs().max(1)));
    }
    response
}

/// A value as an answer.
pub(super) fn reply(code: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(Bytes::from(format!("{value}\n")))));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    // Answers are for this caller, and are what their type says.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A stream of messages, each in a line of its own; an error is the last line.
fn lines(body: Body, binding: &Binding) -> Response<Body> {
    let state = Lines {
        body,
        buffer: BytesMut::new(),
        method: binding.method.output(),
        field: binding.response.clone(),
        ended: false,
    };
    let frames = stream::unfold(state, |mut state| async move {
        let line = state.next().await?;
        let frame = Frame::data(Bytes::from(format!("{line}\n")));
        Some((Ok::<_, Status>(frame), state))
    });
    let mut response = Response::new(Body::new(StreamBody::new(Box::pin(frames))));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(LINES));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

struct Lines {
    body: Body,
    buffer: BytesMut,
    method: prost_reflect::MessageDescriptor,
    field: Option<FieldDescriptor>,
    ended: bool,
}

impl Lines {
    async fn next(&mut self) -> Option<Value> {
        while !self.ended {
            if let Some(message) = take(&mut self.buffer) {
                let value = json(&self.method, self.field.as_ref(), &message);
                return Some(value.unwrap_or_else(|status| self.fail(&status)));
            }
            match self.body.frame().await {
                None => self.ended = true,
                Some(Err(status)) => return Some(self.fail(&status)),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    Err(frame) => {
                        self.ended = true;
                        let status = frame.trailers_ref().and_then(failure);
                        return status.map(|status| error_json(&status));
                    }
                },
            }
        }
        None
    }

    fn fail(&mut self, status: &Status) -> Value {
        self.ended = true;
        error_json(status)
    }
}

/// The next whole message of a gRPC body.
fn take(buffer: &mut BytesMut) -> Option<Bytes> {
    let length = buffer.get(1..PREFIX)?.get_u32() as usize;
    if buffer.len() < PREFIX + length {
        return None;
    }
    buffer.advance(PREFIX);
    Some(buffer.split_to(length).freeze())
}

fn json_of(binding: &Binding, message: &[u8]) -> Result<Value, Status> {
    json(&binding.method.output(), binding.response.as_ref(), message)
}

fn json(
    descriptor: &prost_reflect::MessageDescriptor,
    field: Option<&FieldDescriptor>,
    message: &[u8],
) -> Result<Value, Status> {
    let internal = |error: &dyn std::error::Error| {
        tracing::error!(%error, message = descriptor.full_name(), "an answer has no JSON form");
        Status::internal("internal error; the server's log has the cause")
    };
    let message = DynamicMessage::decode(descriptor.clone(), message).map_err(|error| internal(&error))?;
    let mut value = proto_json::write(&message).map_err(|error| internal(&error))?;
    Ok(match field {
        Some(field) => value
            .as_object_mut()
            .and_then(|fields| fields.remove(field.json_name()))
            .unwrap_or_else(|| json!({})),
        None => value,
    })
}

/// The status of an answer that failed.
fn failure(headers: &HeaderMap) -> Option<Status> {
    Status::from_header_map(headers).filter(|status| status.code() != Code::Ok)
}

fn error_json(status: &Status) -> Value {
    let code = http_code(status.code()).as_u16();
    let mut error = json!({ "code": code, "status": name(status.code()), "message": status.message() });
    let details = details(status);
    if !details.is_empty() {
        error["details"] = Value::Array(details);
    }
    json!({ "error": error })
}

/// What an error carries, each by its type; nothing of what is no message that we know.
fn details(status: &Status) -> Vec<Value> {
    let Ok(carried) = tonic_types::pb::Status::decode(status.details()) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for detail in carried.details {
        let full_name = detail.type_url.rsplit('/').next().unwrap_or_default();
        let Some(descriptor) = DETAILS.get_message_by_name(full_name) else {
            continue;
        };
        let message = DynamicMessage::decode(descriptor, detail.value.as_slice());
        if let Some(Value::Object(mut fields)) = message.ok().and_then(|message| proto_json::write(&message).ok()) {
            fields.insert("@type".to_owned(), Value::String(detail.type_url));
            all.push(Value::Object(fields));
        }
    }
    all
}

/// The code of HTTP for one of gRPC, as google.rpc.Code has it.
fn http_code(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or(StatusCode::BAD_REQUEST),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The name of a code in google.rpc.Code.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use millrace_common::error::{ApiError, Retry};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn an_error_keeps_all_that_it_says() {
        let error = ApiError::invalid_field("pipe.scaling.replicas", "must be at most 1000")
            .with_metadata("limit", "1000")
            .with_retry(Retry::After(Duration::from_secs(7)));
        let response = of_status(&error.into());
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(response.headers()[header::RETRY_AFTER], "7");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let value: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (&value["error"]["code"], &value["error"]["status"]),
            (&json!(400), &json!("INVALID_ARGUMENT"))
        );
        let details = value["error"]["details"].as_array().unwrap();
        let of = |name: &str| {
            details
                .iter()
                .find(|detail| detail["@type"].as_str().unwrap().ends_with(name))
                .unwrap()
        };
        assert_eq!(of("ErrorInfo")["reason"], "INVALID_FIELD");
        assert_eq!(of("ErrorInfo")["metadata"]["limit"], "1000");
        assert_eq!(of("BadRequest")["fieldViolations"][0]["field"], "pipe.scaling.replicas");
        assert_eq!(of("RetryInfo")["retryDelay"], "7s");
    }

    #[test]
    fn messages_come_whole() {
        let mut buffer = BytesMut::from(&[0, 0, 0, 0, 2, 8][..]);
        assert_eq!(take(&mut buffer), None);
        buffer.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(take(&mut buffer).as_deref(), Some(&[8, 1][..]));
        assert_eq!(take(&mut buffer).as_deref(), Some(&[][..]));
        assert_eq!(take(&mut buffer), None);
    }
}

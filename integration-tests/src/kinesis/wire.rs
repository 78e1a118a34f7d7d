//! AWS JSON 1.1 over HTTP: from request to operation, from answer or error to response.
//!
//! Any SigV4 header is taken as it is; whoever wants it checked has the interceptor.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use uuid::Uuid;

use super::account::Account;
use super::error::{Error, ErrorKind};
use super::intercept::Call;
use super::operations::{MAX_BATCH_BYTES, MAX_BATCH_RECORDS, Operation, Reply};

const CONTENT_TYPE_JSON: &str = "application/x-amz-json-1.1";
const TARGET_PREFIX: &str = "Kinesis_20131202.";
/// The largest legal body: a full PutRecords in base64, and per record the field names, a hash key and a partition key
/// in which every character is escaped.
const MAX_BODY_BYTES: usize = MAX_BATCH_BYTES / 3 * 4 + MAX_BATCH_RECORDS * 4_096;

/// A response body of known length, sent piece by piece without being joined.
#[derive(Debug)]
pub(super) struct Pieces {
    pieces: VecDeque<Bytes>,
    left: u64,
}

impl From<Vec<Bytes>> for Pieces {
    fn from(mut pieces: Vec<Bytes>) -> Self {
        pieces.retain(|piece| !piece.is_empty());
        Self {
            left: pieces.iter().map(|piece| piece.len() as u64).sum(),
            pieces: pieces.into(),
        }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.pieces.pop_front();
        self.left -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Answers one HTTP request.
pub(super) async fn respond(account: &Account, request: Request<Incoming>) -> Response<Pieces> {
    let (parts, body) = request.into_parts();
    let answer = match read_body(body).await {
        Ok(body) => answer(account, &parts.method, parts.headers, body).await,
        // Not an error of the protocol: the client is told by the status alone.
        Err(status) => return plain(status),
    };
    match answer {
        Ok(reply) => json(StatusCode::OK, reply.pieces),
        Err(error) => json(error.kind.status(), vec![error.body()]),
    }
}

async fn answer(account: &Account, method: &Method, headers: HeaderMap, body: Bytes) -> Result<Reply, Error> {
    let operation = operation_of(method, &headers)?;
    account.count_call(operation);
    match &account.options.interceptor {
        None => operation.execute(account, &body),
        Some(interceptor) => {
            let call = Call {
                operation,
                headers,
                body,
            };
            interceptor.before(&call).await?;
            operation.execute(account, &call.body)
        }
    }
}

fn operation_of(method: &Method, headers: &HeaderMap) -> Result<Operation, Error> {
    let header = |name| {
        headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
            .unwrap_or_default()
    };
    if method != Method::POST {
        let message = "Unable to determine service/operation name to be authorized";
        return Err(Error::new(ErrorKind::AccessDenied, message));
    }
    let content_type = header("content-type").split(';').next().unwrap_or_default().trim();
    if content_type != CONTENT_TYPE_JSON {
        let message = format!("Content type {content_type:?} is not {CONTENT_TYPE_JSON}.");
        return Err(Error::new(ErrorKind::UnknownOperation, message));
    }
    let target = header("x-amz-target");
    target
        .strip_prefix(TARGET_PREFIX)
        .and_then(|name| name.parse().ok())
        .ok_or_else(|| Error::new(ErrorKind::UnknownOperation, format!("{target:?} is not an operation.")))
}

async fn read_body(body: Incoming) -> Result<Bytes, StatusCode> {
    match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => Err(StatusCode::BAD_REQUEST),
    }
}

fn json(status: StatusCode, pieces: Vec<Bytes>) -> Response<Pieces> {
    let mut response = plain(status);
    *response.body_mut() = pieces.into();
    let length = response.body().left;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE_JSON));
    headers.insert(CONTENT_LENGTH, length.into());
    response
}

fn plain(status: StatusCode) -> Response<Pieces> {
    let mut response = Response::new(Pieces::from(Vec::new()));
    *response.status_mut() = status;
    let request_id = Uuid::new_v4().to_string();
    if let Ok(value) = HeaderValue::try_from(request_id) {
        response.headers_mut().insert("x-amzn-requestid", value.clone());
        response.headers_mut().insert("x-amz-id-2", value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(content_type: &'static str, target: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static(content_type));
        headers.insert("x-amz-target", HeaderValue::from_static(target));
        headers
    }

    #[test]
    fn the_target_names_the_operation() {
        let found = operation_of(
            &Method::POST,
            &headers(CONTENT_TYPE_JSON, "Kinesis_20131202.GetRecords"),
        );
        assert_eq!(found, Ok(Operation::GetRecords));
        let found = operation_of(
            &Method::POST,
            &headers(
                "application/x-amz-json-1.1; charset=utf-8",
                "Kinesis_20131202.PutRecord",
            ),
        );
        assert_eq!(found, Ok(Operation::PutRecord));
    }

    #[test]
    fn anything_else_is_refused() {
        for (method, content_type, target) in [
            (Method::GET, CONTENT_TYPE_JSON, "Kinesis_20131202.GetRecords"),
            (
                Method::POST,
                "application/x-amz-cbor-1.1",
                "Kinesis_20131202.GetRecords",
            ),
            (Method::POST, CONTENT_TYPE_JSON, "Kinesis_20131202.Dance"),
            (Method::POST, CONTENT_TYPE_JSON, "DynamoDB_20120810.GetItem"),
            (Method::POST, CONTENT_TYPE_JSON, ""),
        ] {
            assert!(
                operation_of(&method, &headers(content_type, target)).is_err(),
                "{target}"
            );
        }
    }

    #[tokio::test]
    async fn pieces_are_sent_in_order_with_their_length() {
        let body = Pieces::from(vec![Bytes::from_static(b"ab"), Bytes::new(), Bytes::from_static(b"c")]);
        assert_eq!(body.size_hint().exact(), Some(3));
        assert_eq!(
            body.collect().await.map(|body| body.to_bytes()),
            Ok(Bytes::from_static(b"abc"))
        );
    }
}

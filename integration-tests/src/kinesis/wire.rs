//! AWS JSON 1.1 over HTTP: from request to operation, from answer or error to response.
//!
//! Where there are users and roles, who signed is found out and judged here, before anything is executed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::StreamExt as _;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, LengthLimitError, Limited, StreamBody};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use serde::Deserialize;
use uuid::Uuid;

use super::account::Account;
use super::connection::Connection;
use super::cursor::{Kind, ShardIterator};
use super::error::{Error, ErrorKind};
use super::iam::{Iam, Key};
use super::intercept::Call;
use super::operations::{MAX_BATCH_BYTES, MAX_BATCH_RECORDS, Operation, Reply};
use super::script::Fault;
use super::shard;
use super::sts::{self, Unknown};
use super::subscription::{Broken, Subscription};

const CONTENT_TYPE_JSON: &str = "application/x-amz-json-1.1";
const CONTENT_TYPE_XML: &str = "text/xml";
const CONTENT_TYPE_EVENTS: &str = "application/vnd.amazon.eventstream";
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

/// The body of any response.
pub(super) type Answer = UnsyncBoxBody<Bytes, Broken>;

/// Why a request does not get the answer of its operation.
#[derive(Debug)]
enum Refusal {
    Error(Error),
    /// A status and no body.
    Status(StatusCode),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Answers one HTTP request.
pub(super) async fn respond(
    account: &Account,
    connection: &Arc<Connection>,
    request: Request<Incoming>,
) -> Response<Answer> {
    let (parts, body) = request.into_parts();
    let answer = match read_body(body).await {
        Ok(body) if is_form(&parts.headers) => {
            let (status, xml) = sts::answer(account, &parts, &body);
            return with_body(status, CONTENT_TYPE_XML, vec![xml]);
        }
        Ok(body) => answer(account, connection, parts, body).await,
        // Not an error of the protocol: the client is told by the status alone.
        Err(status) => Err(Refusal::Status(status)),
    };
    match answer {
        Ok(Reply {
            subscription: Some(subscription),
            ..
        }) => events(*subscription, connection),
        Ok(reply) => json(StatusCode::OK, reply.pieces),
        Err(Refusal::Error(error)) => json(error.kind.status(), vec![error.body()]),
        Err(Refusal::Status(status)) => plain(status),
    }
}

async fn answer(account: &Account, connection: &Connection, parts: Parts, body: Bytes) -> Result<Reply, Refusal> {
    let operation = operation_of(&parts.method, &parts.headers)?;
    account.count_call(operation);
    if let Some(iam) = &account.options.iam {
        authorize(account, iam, operation, &parts, &body)?;
    }
    if !account.script.is_empty() {
        let (stream, shard, _) = place(account, &body);
        if let Some(fault) = account.script.on_call(operation, stream.as_deref(), shard) {
            strike(fault, connection).await?;
        }
    }
    match &account.options.interceptor {
        None => Ok(operation.execute(account, &body)?),
        Some(interceptor) => {
            let call = Call {
                operation,
                headers: parts.headers,
                body,
            };
            interceptor.before(&call).await?;
            Ok(operation.execute(account, &call.body)?)
        }
    }
}

/// Whether who signed may do that, as the "Actions, resources, and condition keys for Amazon Kinesis Data Streams" name it.
fn authorize(account: &Account, iam: &Iam, operation: Operation, parts: &Parts, body: &[u8]) -> Result<(), Error> {
    let key = sts::who(account, iam, "kinesis", parts, body).map_err(|unknown| match unknown {
        Unknown::Missing => Error::new(ErrorKind::MissingAuthenticationToken, "Missing Authentication Token"),
        Unknown::Client => Error::new(
            ErrorKind::UnrecognizedClient,
            "The security token included in the request is invalid.",
        ),
        Unknown::Signature => Error::new(
            ErrorKind::InvalidSignature,
            "The request signature we calculated does not match the signature you provided.",
        ),
        Unknown::Expired => Error::new(
            ErrorKind::ExpiredToken,
            "The security token included in the request is expired",
        ),
    })?;
    let (stream, _, consumer) = place(account, body);
    let resource = match (consumer, stream.as_deref()) {
        (Some(consumer), _) => consumer,
        (None, Some(stream)) => account.arn(stream),
        (None, None) => "*".to_owned(),
    };
    let action = format!("kinesis:{}", operation.name());
    if key.may(&action, &resource) {
        return may_decrypt(account, &key, operation, stream.as_deref());
    }
    let message = format!(
        "User: {} is not authorized to perform: {action} on resource: {resource} because no identity-based policy allows \
         the {action} action",
        key.arn()
    );
    Err(Error::new(ErrorKind::AccessDenied, message))
}

/// "Permissions to use user-generated KMS keys" in the developer guide: consumers need kms:Decrypt on the stream's key.
fn may_decrypt(account: &Account, key: &Key, operation: Operation, stream: Option<&str>) -> Result<(), Error> {
    if !matches!(operation, Operation::GetRecords | Operation::SubscribeToShard) {
        return Ok(());
    }
    let Some(key_arn) = stream
        .and_then(|stream| account.stream(Some(stream), None).ok())
        .and_then(|stream| stream.settings().key_arn)
    else {
        return Ok(());
    };
    let service = format!("kinesis.{}.amazonaws.com", account.options.region);
    if key.may_via(&service, "kms:Decrypt", &key_arn) {
        return Ok(());
    }
    let message = format!("User {} is not authorized to decrypt with {key_arn}", key.arn());
    Err(Error::new(ErrorKind::KmsAccessDenied, message))
}

/// STS speaks the Query protocol, in forms.
fn is_form(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|text| text.starts_with("application/x-www-form-urlencoded"))
}

/// Does to a call what the script says.
async fn strike(fault: Fault, connection: &Connection) -> Result<(), Refusal> {
    match fault {
        Fault::Error(kind) => Err(Error::new(kind, "scripted").into()),
        Fault::Status(status) => Err(Refusal::Status(status)),
        Fault::Delay(by) => {
            tokio::time::sleep(by).await;
            Ok(())
        }
        Fault::GoAway => {
            connection.go_away();
            Ok(())
        }
        Fault::Stall | Fault::StallInFrame => std::future::pending().await,
        // What is left says how a connection ends; before the answer there is one way only.
        _ => {
            connection.reset();
            std::future::pending().await
        }
    }
}

/// What a request says of its stream and shard.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Place {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    #[serde(rename = "ConsumerARN")]
    consumer_arn: Option<String>,
    shard_id: Option<String>,
    shard_iterator: Option<String>,
}

/// Of which stream, shard and consumer a call is, as far as it says so.
fn place(account: &Account, body: &[u8]) -> (Option<String>, Option<u32>, Option<String>) {
    let Ok(place) = serde_json::from_slice::<Place>(body) else {
        return (None, None, None);
    };
    let iterator = place
        .shard_iterator
        .and_then(|token| account.seal.open::<ShardIterator>(Kind::ShardIterator, &token));
    if let Some(iterator) = iterator {
        return (Some(iterator.stream), Some(iterator.shard), None);
    }
    let of_arn = place.stream_arn.or_else(|| place.consumer_arn.clone()).and_then(|arn| {
        let (_, path) = arn.split_once(":stream/")?;
        path.split('/').next().map(str::to_owned)
    });
    let shard = place.shard_id.as_deref().and_then(shard::parse_id);
    (place.stream_name.or(of_arn), shard, place.consumer_arn)
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

fn json(status: StatusCode, pieces: Vec<Bytes>) -> Response<Answer> {
    with_body(status, CONTENT_TYPE_JSON, pieces)
}

fn with_body(status: StatusCode, content_type: &'static str, pieces: Vec<Bytes>) -> Response<Answer> {
    let body = Pieces::from(pieces);
    let length = body.left;
    let mut response = plain(status);
    *response.body_mut() = whole(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CONTENT_LENGTH, length.into());
    response
}

fn events(subscription: Subscription, connection: &Arc<Connection>) -> Response<Answer> {
    let frames = subscription
        .into_events(Arc::clone(connection))
        .map(|item| item.map(Frame::data));
    let mut response = plain(StatusCode::OK);
    *response.body_mut() = StreamBody::new(frames).boxed_unsync();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE_EVENTS));
    response
}

fn whole(body: Pieces) -> Answer {
    body.map_err(|never| match never {}).boxed_unsync()
}

fn plain(status: StatusCode) -> Response<Answer> {
    let mut response = Response::new(whole(Pieces::from(Vec::new())));
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

//! The sieve against the SDK: what is taken means what the SDK would have made of it, and everything else reaches the SDK as it came.

use aws_sdk_kinesis::{
    Client, Config,
    config::{BehaviorVersion, Region},
    types::{StartingPosition, SubscribeToShardEventStream as Event},
};
use aws_smithy_runtime_api::{
    client::{
        http::{HttpConnector, HttpConnectorFuture, http_client_fn},
        orchestrator::{HttpRequest, HttpResponse},
    },
    http::StatusCode,
    shared::IntoShared as _,
};
use base64_simd::STANDARD;
use proptest::prelude::*;

use super::*;
use crate::source::kinesis::client::{Child, records};

const NUMBER: &str = "49590338271490256608559692538361571095921575989136588898";

fn header(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(name.len()).unwrap()];
    bytes.extend_from_slice(name.as_bytes());
    bytes.push(TEXT);
    bytes.extend_from_slice(&u16::try_from(value.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(value.as_bytes());
    bytes
}

fn frame(message: &str, kind: &str, name: &str, payload: &str) -> Vec<u8> {
    let headers = [
        header(":message-type", message),
        header(kind, name),
        header(":content-type", "application/x-amz-json-1.1"),
    ];
    framed(&headers.concat(), payload.as_bytes()).unwrap().to_vec()
}

fn event(payload: &str) -> Vec<u8> {
    frame("event", ":event-type", "SubscribeToShardEvent", payload)
}

fn of_records(data: &[&[u8]]) -> String {
    let records: Vec<_> = data
        .iter()
        .map(|data| {
            serde_json::json!({
                "ApproximateArrivalTimestamp": 1_700_000_000.125, "Data": STANDARD.encode_to_string(data),
                "PartitionKey": "key", "SequenceNumber": NUMBER,
            })
        })
        .collect();
    serde_json::json!({ "Records": records, "ContinuationSequenceNumber": NUMBER, "MillisBehindLatest": 7 }).to_string()
}

/// Answers with these pieces of a body.
#[derive(Debug, Clone)]
struct Pieces {
    pieces: Vec<Bytes>,
    taken: Option<Taken>,
}

impl HttpConnector for Pieces {
    fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
        let frames = self
            .pieces
            .clone()
            .into_iter()
            .map(|piece| Ok::<_, Error>(Frame::data(piece)));
        let body = SdkBody::from_body_1_x(http_body_util::StreamBody::new(futures::stream::iter(frames)));
        let body = match &self.taken {
            Some(taken) => SdkBody::from_body_1_x(Sieve::new(body, taken.clone())),
            None => body,
        };
        let mut response = HttpResponse::new(StatusCode::try_from(200).unwrap(), body);
        let headers = response.headers_mut();
        headers.insert("content-type", "application/vnd.amazon.eventstream");
        HttpConnectorFuture::ready(Ok(response))
    }
}

/// What comes of a body that arrives in these pieces: events as replies, and how it ended.
async fn read(pieces: Vec<Bytes>, sieve: bool) -> (Vec<Reply>, usize, String) {
    let taken = sieve.then(Taken::default);
    let connector = Pieces {
        pieces,
        taken: taken.clone(),
    };
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("us-east-1"))
        .credentials_provider(aws_credential_types::Credentials::for_tests())
        .http_client(http_client_fn(move |_, _| connector.clone().into_shared()))
        .build();
    let position = StartingPosition::builder()
        .r#type(aws_sdk_kinesis::types::ShardIteratorType::TrimHorizon)
        .build()
        .unwrap();
    let call = Client::from_conf(config)
        .subscribe_to_shard()
        .consumer_arn("arn:aws:kinesis:us-east-1:000000000000:stream/s/consumer/c:1")
        .shard_id("shardId-000000000000")
        .starting_position(position);
    let mut events = match call.send().await {
        Ok(output) => output.event_stream,
        Err(error) => return (Vec::new(), 0, format!("{error:?}").chars().take(40).collect()),
    };
    let (mut replies, mut claimed) = (Vec::new(), 0);
    loop {
        match events.recv().await {
            Ok(Some(Event::SubscribeToShardEvent(event))) => {
                let ours = taken
                    .as_ref()
                    .and_then(|taken| taken.claim(&event.continuation_sequence_number));
                claimed += usize::from(ours.is_some());
                replies.push(ours.unwrap_or_else(|| {
                    Reply {
                        records: records(event.records).unwrap(),
                        next_iterator: Some(event.continuation_sequence_number).filter(|number| !number.is_empty()),
                        millis_behind: Some(event.millis_behind_latest),
                        children: event
                            .child_shards
                            .map(|children| children.into_iter().map(Child::from).collect()),
                    }
                }));
            }
            Ok(Some(_)) => replies.push(Reply::default()),
            Ok(None) => return (replies, claimed, "ended".to_owned()),
            Err(error) => {
                return (replies, claimed, error.into_service_error().to_string());
            }
        }
    }
}

async fn both(pieces: Vec<Bytes>) -> (Vec<Reply>, usize, String) {
    let theirs = read(pieces.clone(), false).await;
    let ours = read(pieces, true).await;
    assert_eq!((&ours.0, &ours.2), (&theirs.0, &theirs.2));
    ours
}

#[tokio::test]
async fn events_are_taken_and_the_rest_is_left() {
    let closed = r#"{"Records":[],"MillisBehindLatest":0,"ChildShards":[{"ShardId":"shardId-000000000001","ParentShards":["shardId-000000000000"],"HashKeyRange":{"StartingHashKey":"0","EndingHashKey":"1"}}]}"#;
    let body = [
        frame("event", ":event-type", "initial-response", "{}"),
        event(&of_records(&[b"one", b"two"])),
        frame("event", ":event-type", "SomethingNew", "{}"),
        event(&of_records(&[])),
        event(closed),
        frame(
            "exception",
            ":exception-type",
            "InternalFailureException",
            r#"{"message":"no"}"#,
        ),
    ]
    .concat();
    for size in [1, 7, 100, body.len()] {
        let pieces = body.chunks(size).map(Bytes::copy_from_slice).collect();
        let (replies, claimed, end) = both(pieces).await;
        assert_eq!((replies.len(), claimed), (4, 2), "{end}");
        assert_eq!(replies[0].records.len(), 2);
        assert_eq!(replies[3].children.as_ref().map(Vec::len), Some(1));
        assert!(end.contains("no"), "{end}");
    }
}

/// A body that breaks is read up to there, and the SDK has the last word.
#[tokio::test]
async fn a_broken_frame_is_the_sdks_to_name() {
    let body = [event(&of_records(&[b"one"])), event(&of_records(&[b"two"]))].concat();
    let second = body.len() / 2;
    for at in second..body.len() {
        let mut broken = body.clone();
        broken[at] ^= 0x10;
        let (replies, claimed, end) = both(vec![broken.into()]).await;
        assert_eq!((replies.len(), claimed), (1, 1), "{at}: {end}");
        assert_ne!(end, "ended", "{at}");
    }
    for length in [second, second + 5, second + 100, body.len() - 1] {
        let (replies, claimed, _) = both(vec![Bytes::copy_from_slice(&body[..length])]).await;
        assert_eq!((replies.len(), claimed), (1, 1), "{length}");
    }
}

/// A mark without what it marks is not a sequence number, so nothing is passed over in silence.
#[test]
fn a_mark_is_claimed_once_and_in_order() {
    let taken = Taken::default();
    for count in 1..=2 {
        taken.0.lock().push_back((format!("{MARK}{count}"), Reply::default()));
    }
    assert!(taken.claim("taken/2").is_none());
    assert!(taken.claim("taken/1").is_some());
    assert!(taken.claim("taken/1").is_none());
    assert!(taken.claim("taken/2").is_some());
    assert!("taken/1".parse::<millrace_common::ids::SequenceNumber>().is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn events_mean_what_the_sdk_makes_of_them(
        events in proptest::collection::vec(proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..5), 1..5),
        size in 1usize..3_000,
    ) {
        let body: Vec<u8> = events
            .iter()
            .flat_map(|data| event(&of_records(&data.iter().map(Vec::as_slice).collect::<Vec<_>>())))
            .collect();
        let pieces = body.chunks(size).map(Bytes::copy_from_slice).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (replies, claimed, _) = runtime.block_on(both(pieces));
        prop_assert_eq!((replies.len(), claimed), (events.len(), events.len()));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut sieve = Sieve::new(SdkBody::empty(), Taken::default());
        sieve.waiting.extend_from_slice(&framed(&bytes[..bytes.len() / 2], &bytes[bytes.len() / 2..]).unwrap());
        sieve.waiting.extend_from_slice(&bytes);
        while sieve.sift().is_some() {}
    }
}

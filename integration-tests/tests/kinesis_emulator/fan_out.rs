//! Consumers and SubscribeToShard, as the Rust SDK sees them over HTTP/2 and TLS.

use aws_sdk_kinesis::operation::subscribe_to_shard::SubscribeToShardOutput;
use aws_sdk_kinesis::types::error::SubscribeToShardEventStreamError as Error;
use aws_sdk_kinesis::types::{
    ConsumerStatus, StartingPosition, SubscribeToShardEvent, SubscribeToShardEventStream as Events,
};
use aws_smithy_http_client::{Builder, tls};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use millrace_integration_tests::kinesis::{ErrorKind, Fault, Rule};
use tokio::net::TcpStream;

use super::*;

/// An answer of a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);
const NOW: i64 = 1_760_000_000_000;

/// A client that trusts the emulator's certificate, and so speaks HTTP/2.
fn client_over_tls(handle: &Handle) -> Client {
    let trust = tls::TrustStore::empty().with_pem_certificate(handle.certificate_pem().expect("TLS is on"));
    let context = tls::TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .expect("a certificate is all that it is told");
    let http = Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
        .tls_context(context)
        .build_https();
    let config = aws_sdk_kinesis::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::for_tests())
        .endpoint_url(handle.endpoint_url())
        .http_client(http)
        .retry_config(aws_sdk_kinesis::config::retry::RetryConfig::disabled())
        .build();
    Client::from_conf(config)
}

/// An emulator on a clock that stands still, with one stream and an active consumer.
struct Bed {
    clock: Clock,
    handle: Handle,
    client: Client,
    consumer: String,
}

impl Bed {
    async fn start(shards: u32) -> Result<Self> {
        Self::start_with(shards, Options::default()).await
    }

    async fn start_with(shards: u32, options: Options) -> Result<Self> {
        let clock = Clock::frozen_at_ms(NOW);
        let options = Options {
            clock: clock.clone(),
            tls: true,
            streams: vec![StreamSpec::new(STREAM, shards)],
            ..options
        };
        let handle = Emulator::start(options).await?;
        let client = client_over_tls(&handle);
        let consumer = handle.register_consumer(STREAM, "reader")?;
        Ok(Self {
            clock,
            handle,
            client,
            consumer,
        })
    }

    fn put(&self, texts: &[&str]) -> Result<Vec<SequenceNumber>> {
        let placed = self
            .handle
            .put_records_direct(STREAM, texts.iter().map(|text| Put::new("k", text.as_bytes())))?;
        Ok(placed.iter().map(|placed| placed.sequence).collect())
    }

    async fn subscribe(&self, position: StartingPosition) -> Result<SubscribeToShardOutput, String> {
        let call = self.client.subscribe_to_shard().consumer_arn(&self.consumer);
        let sent = call.shard_id(SHARD_0).starting_position(position).send().await;
        sent.map_err(|error| error.code().unwrap_or("no code").to_owned())
    }

    async fn subscribed(&self, position: StartingPosition) -> Result<SubscribeToShardOutput> {
        self.subscribe(position).await.map_err(anyhow::Error::msg)
    }
}

fn position(kind: ShardIteratorType) -> StartingPosition {
    StartingPosition::builder().r#type(kind).build().expect("a type")
}

fn at_number(kind: ShardIteratorType, number: &str) -> StartingPosition {
    StartingPosition::builder()
        .r#type(kind)
        .sequence_number(number)
        .build()
        .expect("a type")
}

/// The service says in a header what an error of the stream is, so the SDK has no code for it.
fn name_of(error: &Error) -> String {
    match error {
        Error::ResourceNotFoundException(_) => "ResourceNotFoundException",
        Error::ResourceInUseException(_) => "ResourceInUseException",
        Error::KmsDisabledException(_) => "KMSDisabledException",
        Error::KmsInvalidStateException(_) => "KMSInvalidStateException",
        Error::KmsAccessDeniedException(_) => "KMSAccessDeniedException",
        Error::KmsNotFoundException(_) => "KMSNotFoundException",
        Error::KmsOptInRequired(_) => "KMSOptInRequired",
        Error::KmsThrottlingException(_) => "KMSThrottlingException",
        Error::InternalFailureException(_) => "InternalFailureException",
        other => return format!("{other:?}"),
    }
    .to_owned()
}

/// The next event; `None` at the end; or the code of what ended it.
async fn next(output: &mut SubscribeToShardOutput) -> Result<Option<SubscribeToShardEvent>, String> {
    match tokio::time::timeout(PATIENCE, output.event_stream.recv()).await {
        Err(_) => Err("silent".to_owned()),
        Ok(Ok(None)) => Ok(None),
        Ok(Ok(Some(Events::SubscribeToShardEvent(event)))) => Ok(Some(event)),
        Ok(Ok(Some(_))) => Err("unknown event".to_owned()),
        Ok(Err(error)) => Err(match error.as_service_error() {
            Some(service) => name_of(service),
            None => "broken".to_owned(),
        }),
    }
}

async fn event(output: &mut SubscribeToShardOutput) -> Result<SubscribeToShardEvent> {
    next(output).await.map_err(anyhow::Error::msg)?.context("an event")
}

#[tokio::test]
async fn records_are_pushed_as_they_come_and_idleness_is_told_every_five_seconds() -> Result<()> {
    let bed = Bed::start(1).await?;
    let numbers = bed.put(&["a", "b"])?;
    let mut output = bed.subscribed(position(ShardIteratorType::TrimHorizon)).await?;
    let first = event(&mut output).await?;
    assert_eq!(texts(first.records()), ["a", "b"]);
    assert_eq!(first.records()[0].sequence_number(), numbers[0].to_string());
    assert_eq!(first.continuation_sequence_number(), numbers[1].to_string());
    assert_eq!(first.millis_behind_latest(), 0);
    assert!(first.child_shards().is_empty());

    bed.clock.advance(Duration::from_millis(4_999));
    let quiet = tokio::time::timeout(Duration::from_millis(300), output.event_stream.recv()).await;
    assert!(quiet.is_err(), "nothing before five seconds: {quiet:?}");
    bed.clock.advance(Duration::from_millis(1));
    let idle = event(&mut output).await?;
    assert!(idle.records().is_empty());
    assert!(
        idle.continuation_sequence_number() > first.continuation_sequence_number(),
        "it goes on while nothing is written"
    );
    bed.put(&["c"])?;
    assert_eq!(texts(event(&mut output).await?.records()), ["c"]);

    // The continuation of an idle event leads to what came behind it, and to nothing else.
    bed.clock.advance(Duration::from_secs(5));
    let number = idle.continuation_sequence_number();
    let mut again = bed
        .subscribed(at_number(ShardIteratorType::AfterSequenceNumber, number))
        .await?;
    assert_eq!(texts(event(&mut again).await?.records()), ["c"]);
    Ok(())
}

#[tokio::test]
async fn a_subscription_starts_at_any_of_the_five_positions() -> Result<()> {
    let bed = Bed::start(1).await?;
    let mut numbers = Vec::new();
    for text in ["a", "b", "c"] {
        numbers.extend(bed.put(&[text])?);
        bed.clock.advance(Duration::from_secs(1));
    }
    let number = numbers[1].to_string();
    let timestamp = StartingPosition::builder()
        .r#type(ShardIteratorType::AtTimestamp)
        .timestamp(DateTime::from_millis(NOW + 1_000))
        .build()?;
    for (start, expected) in [
        (position(ShardIteratorType::TrimHorizon), vec!["a", "b", "c"]),
        (position(ShardIteratorType::Latest), vec![]),
        (at_number(ShardIteratorType::AtSequenceNumber, &number), vec!["b", "c"]),
        (at_number(ShardIteratorType::AfterSequenceNumber, &number), vec!["c"]),
        (timestamp, vec!["b", "c"]),
    ] {
        bed.clock.advance(Duration::from_secs(5));
        let mut output = bed.subscribed(start.clone()).await?;
        assert_eq!(texts(event(&mut output).await?.records()), expected, "{start:?}");
    }
    bed.clock.advance(Duration::from_secs(5));
    let foreign = at_number(ShardIteratorType::AfterSequenceNumber, "17");
    assert_eq!(
        bed.subscribe(foreign).await.err().as_deref(),
        Some("InvalidArgumentException")
    );
    Ok(())
}

#[tokio::test]
async fn a_subscription_ends_after_five_minutes_and_goes_on_without_a_hole() -> Result<()> {
    let bed = Bed::start(1).await?;
    bed.put(&["a"])?;
    let mut output = bed.subscribed(position(ShardIteratorType::TrimHorizon)).await?;
    let first = event(&mut output).await?;
    bed.clock.advance(Duration::from_secs(300));
    // What is put at its end may still come, or not: never twice.
    assert!(next(&mut output).await.map_err(anyhow::Error::msg)?.is_none());
    bed.put(&["b"])?;
    let number = first.continuation_sequence_number();
    let mut again = bed
        .subscribed(at_number(ShardIteratorType::AfterSequenceNumber, number))
        .await?;
    assert_eq!(texts(event(&mut again).await?.records()), ["b"]);
    assert_eq!(bed.handle.subscriptions(STREAM, SHARD_0)?, 2);
    Ok(())
}

#[tokio::test]
async fn a_second_subscriber_waits_five_seconds_and_then_takes_over() -> Result<()> {
    let bed = Bed::start(1).await?;
    let mut first = bed.subscribed(position(ShardIteratorType::TrimHorizon)).await?;
    event(&mut first).await?;
    bed.clock.advance(Duration::from_millis(4_999));
    let refused = bed.subscribe(position(ShardIteratorType::TrimHorizon)).await;
    assert_eq!(refused.err().as_deref(), Some("ResourceInUseException"));
    bed.clock.advance(Duration::from_millis(1));
    let mut second = bed.subscribed(position(ShardIteratorType::TrimHorizon)).await?;
    // The heartbeat of the fifth second may come first.
    let end = match next(&mut first).await {
        Ok(Some(_)) => next(&mut first).await,
        other => other,
    };
    assert_eq!(end.err().as_deref(), Some("ResourceInUseException"));
    bed.put(&["a"])?;
    let mut got = Vec::new();
    while got.is_empty() {
        got = texts(event(&mut second).await?.records());
    }
    assert_eq!(got, ["a"]);
    Ok(())
}

#[tokio::test]
async fn the_end_of_a_shard_names_its_children_once() -> Result<()> {
    let bed = Bed::start(1).await?;
    bed.put(&["a"])?;
    let mut output = bed.subscribed(position(ShardIteratorType::TrimHorizon)).await?;
    assert_eq!(texts(event(&mut output).await?.records()), ["a"]);
    bed.put(&["b"])?;
    assert_eq!(texts(event(&mut output).await?.records()), ["b"]);
    bed.handle.split_shard(STREAM, SHARD_0)?;
    let end = event(&mut output).await?;
    let children: Vec<_> = end.child_shards().iter().map(|child| child.shard_id()).collect();
    assert_eq!(children, ["shardId-000000000001", "shardId-000000000002"]);
    assert_eq!(end.child_shards()[0].parent_shards(), [SHARD_0]);
    assert_eq!(end.continuation_sequence_number(), "");
    assert!(next(&mut output).await.map_err(anyhow::Error::msg)?.is_none());
    Ok(())
}

#[tokio::test]
async fn large_records_come_in_events_of_their_own_and_at_two_mib_a_second() -> Result<()> {
    let options = Options {
        enforce_limits: true,
        ..Options::default()
    };
    let bed = Bed::start_with(1, options).await?;
    let large = vec![b'x'; 9 << 20];
    let small = vec![b'y'; 700 << 10];
    bed.handle.put_records_direct(
        STREAM,
        [&small, &small, &small, &large, &small].map(|data| Put::new("k", data)),
    )?;
    let mut output = bed.subscribed(position(ShardIteratorType::TrimHorizon)).await?;
    let sizes = |event: &SubscribeToShardEvent| -> Vec<usize> {
        event
            .records()
            .iter()
            .map(|record| record.data().as_ref().len() >> 10)
            .collect()
    };
    let first = event(&mut output).await?;
    assert_eq!(sizes(&first), [700, 700]);
    assert!(first.millis_behind_latest() > 0);
    let quiet = tokio::time::timeout(Duration::from_millis(200), output.event_stream.recv()).await;
    assert!(quiet.is_err(), "the second's worth was sent");
    bed.clock.advance(Duration::from_secs(1));
    assert_eq!(sizes(&event(&mut output).await?), [700]);
    bed.clock.advance(Duration::from_secs(1));
    assert_eq!(sizes(&event(&mut output).await?), [9 << 10]);
    bed.clock.advance(Duration::from_secs(4));
    let quiet = tokio::time::timeout(Duration::from_millis(200), output.event_stream.recv()).await;
    assert!(quiet.is_err(), "nine MiB are paid off in four and a half seconds");
    bed.clock.advance(Duration::from_millis(500));
    assert_eq!(sizes(&event(&mut output).await?), [700]);
    Ok(())
}

#[tokio::test]
async fn errors_come_in_the_stream() -> Result<()> {
    let bed = Bed::start(1).await?;
    for (kind, code) in [
        (ErrorKind::InternalFailure, "InternalFailureException"),
        (ErrorKind::KmsAccessDenied, "KMSAccessDeniedException"),
        (ErrorKind::KmsDisabled, "KMSDisabledException"),
        (ErrorKind::KmsInvalidState, "KMSInvalidStateException"),
        (ErrorKind::KmsNotFound, "KMSNotFoundException"),
        (ErrorKind::KmsOptInRequired, "KMSOptInRequired"),
        (ErrorKind::KmsThrottling, "KMSThrottlingException"),
        (ErrorKind::ResourceInUse, "ResourceInUseException"),
        (ErrorKind::ResourceNotFound, "ResourceNotFoundException"),
    ] {
        bed.clock.advance(Duration::from_secs(5));
        let strikes = bed
            .handle
            .script(Rule::on_event(Fault::Error(kind)).of_shard(0).after(1).times(1));
        let mut output = bed.subscribed(position(ShardIteratorType::TrimHorizon)).await?;
        event(&mut output).await?;
        bed.put(&["x"])?;
        assert_eq!(next(&mut output).await.err().as_deref(), Some(code));
        assert_eq!(strikes.count(), 1);
        bed.handle.clear_script();
    }
    // A stream that is deleted, and a consumer that is.
    bed.clock.advance(Duration::from_secs(5));
    let mut output = bed.subscribed(position(ShardIteratorType::Latest)).await?;
    event(&mut output).await?;
    bed.client
        .deregister_stream_consumer()
        .consumer_arn(&bed.consumer)
        .send()
        .await?;
    assert_eq!(
        next(&mut output).await.err().as_deref(),
        Some("ResourceNotFoundException")
    );
    Ok(())
}

#[tokio::test]
async fn frames_are_damaged_by_script() -> Result<()> {
    let bed = Bed::start(1).await?;
    bed.put(&["a"])?;
    for (fault, expected) in [
        (Fault::BadCrc, "broken"),
        (Fault::BadPreludeCrc, "broken"),
        (Fault::CutFrame, "end or broken"),
        (Fault::Break, "broken"),
        (Fault::Stall, "silent"),
        (Fault::StallInFrame, "silent"),
        (Fault::End, "end or broken"),
        (Fault::UnknownEvent, "unknown event"),
        (Fault::Reset, "broken"),
    ] {
        bed.clock.advance(Duration::from_secs(5));
        bed.handle.script(Rule::on_event(fault).times(1));
        // A reset may overtake the beginning of the answer; where it ended the connection, a new one is made.
        let mut output = match bed.subscribe(position(ShardIteratorType::TrimHorizon)).await {
            Ok(output) => output,
            Err(code) => {
                assert!(
                    matches!(fault, Fault::Reset | Fault::Break) && code == "no code",
                    "{fault:?} {code}"
                );
                continue;
            }
        };
        let limit = if expected == "silent" {
            Duration::from_millis(300)
        } else {
            PATIENCE
        };
        let got = match tokio::time::timeout(limit, next(&mut output)).await {
            Err(_) => "silent".to_owned(),
            Ok(Err(what)) => what,
            Ok(Ok(None)) => "end".to_owned(),
            Ok(Ok(Some(event))) => format!("{event:?}"),
        };
        assert!(
            !got.is_empty() && expected.contains(&got),
            "{fault:?}: {got}, not {expected}"
        );
        if fault == Fault::UnknownEvent {
            assert_eq!(texts(event(&mut output).await?.records()), ["a"]);
        }
        bed.handle.clear_script();
    }

    bed.clock.advance(Duration::from_secs(5));
    bed.handle.script(Rule::on_event(Fault::Repeat).times(1));
    let mut output = bed.subscribed(position(ShardIteratorType::TrimHorizon)).await?;
    assert_eq!(texts(event(&mut output).await?.records()), ["a"]);
    assert_eq!(texts(event(&mut output).await?.records()), ["a"]);

    // After GOAWAY the subscription goes on, and new calls find a new connection.
    bed.clock.advance(Duration::from_secs(5));
    bed.handle.script(Rule::on_event(Fault::GoAway).times(1));
    let mut output = bed.subscribed(position(ShardIteratorType::TrimHorizon)).await?;
    assert_eq!(texts(event(&mut output).await?.records()), ["a"]);
    bed.client.list_streams().send().await?;
    bed.put(&["b"])?;
    assert_eq!(texts(event(&mut output).await?.records()), ["b"]);
    Ok(())
}

#[tokio::test]
async fn consumers_are_registered_described_listed_and_deregistered() -> Result<()> {
    let clock = Clock::frozen_at_ms(NOW);
    let options = Options {
        clock: clock.clone(),
        transition: Duration::from_secs(10),
        ..Options::default()
    };
    let (handle, client) = emulator(1, options).await?;
    clock.advance(Duration::from_secs(10));
    let stream = handle.stream_arn(STREAM)?;
    let register = |name: &str| {
        client
            .register_stream_consumer()
            .stream_arn(&stream)
            .consumer_name(name)
            .send()
    };
    let first = register("b").await?.consumer.context("a consumer")?;
    assert_eq!(first.consumer_status(), &ConsumerStatus::Creating);
    assert_eq!(
        first.consumer_arn(),
        format!("{stream}/consumer/b:{}", NOW / 1_000 + 10)
    );
    assert_eq!(first.consumer_creation_timestamp().secs(), NOW / 1_000 + 10);
    assert_eq!(code(register("b").await), "ResourceInUseException");
    assert_eq!(code(register("not a name").await), "ValidationException");
    let start = position(ShardIteratorType::Latest);
    let early = client.subscribe_to_shard().consumer_arn(first.consumer_arn());
    let early = early.shard_id(SHARD_0).starting_position(start).send().await;
    assert_eq!(code(early), "ResourceInUseException");
    for name in ["a", "c", "d", "e"] {
        register(name).await?;
    }
    assert_eq!(code(register("f").await), "LimitExceededException");
    clock.advance(Duration::from_secs(10));

    let by_arn = client
        .describe_stream_consumer()
        .consumer_arn(first.consumer_arn())
        .send()
        .await?;
    let by_name = client
        .describe_stream_consumer()
        .stream_arn(&stream)
        .consumer_name("b")
        .send()
        .await?;
    assert_eq!(by_arn.consumer_description, by_name.consumer_description);
    let described = by_arn.consumer_description.context("a description")?;
    assert_eq!(described.consumer_status(), &ConsumerStatus::Active);
    assert_eq!(described.stream_arn(), stream);
    assert_eq!(
        code(client.describe_stream_consumer().consumer_name("b").send().await),
        "InvalidArgumentException"
    );
    let missing = client
        .describe_stream_consumer()
        .stream_arn(&stream)
        .consumer_name("z")
        .send()
        .await;
    assert_eq!(code(missing), "ResourceNotFoundException");

    let mut names = Vec::new();
    let mut token: Option<String> = None;
    loop {
        let page = client.list_stream_consumers().stream_arn(&stream).max_results(2);
        let page = page.set_next_token(token).send().await?;
        names.extend(
            page.consumers()
                .iter()
                .map(|consumer| consumer.consumer_name().to_owned()),
        );
        token = page.next_token;
        if token.is_none() {
            break;
        }
    }
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    let page = client
        .list_stream_consumers()
        .stream_arn(&stream)
        .max_results(2)
        .send()
        .await?;
    clock.advance(Duration::from_secs(301));
    let late = client
        .list_stream_consumers()
        .stream_arn(&stream)
        .set_next_token(page.next_token);
    assert_eq!(code(late.send().await), "ExpiredNextTokenException");

    let summary = client.describe_stream_summary().stream_name(STREAM).send().await?;
    let summary = summary.stream_description_summary.context("a summary")?;
    assert_eq!(summary.consumer_count(), Some(5));
    assert_eq!(
        code(client.delete_stream().stream_name(STREAM).send().await),
        "ResourceInUseException"
    );
    client
        .deregister_stream_consumer()
        .stream_arn(&stream)
        .consumer_name("b")
        .send()
        .await?;
    let leaving = client
        .describe_stream_consumer()
        .consumer_arn(first.consumer_arn())
        .send()
        .await?;
    let leaving = leaving.consumer_description.context("a description")?;
    assert_eq!(leaving.consumer_status(), &ConsumerStatus::Deleting);
    clock.advance(Duration::from_secs(10));
    assert_eq!(
        code(
            client
                .describe_stream_consumer()
                .consumer_arn(first.consumer_arn())
                .send()
                .await
        ),
        "ResourceNotFoundException"
    );
    let again = register("b").await?.consumer.context("a consumer")?;
    assert_ne!(
        again.consumer_arn(),
        first.consumer_arn(),
        "the same name is another consumer"
    );
    client
        .delete_stream()
        .stream_name(STREAM)
        .enforce_consumer_deletion(true)
        .send()
        .await?;
    Ok(())
}

#[tokio::test]
async fn events_come_over_http2_with_tls_and_without() -> Result<()> {
    let bed = Bed::start(1).await?;
    let (plain, _) = emulator(1, Options::default()).await?;
    plain.put_records_direct(STREAM, [Put::new("k", b"a")])?;
    let consumer = plain.register_consumer(STREAM, "c")?;
    let stream = TcpStream::connect(plain.addr()).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let body = serde_json::json!({
        "ConsumerARN": consumer, "ShardId": SHARD_0, "StartingPosition": {"Type": "TRIM_HORIZON"},
    });
    let request = hyper::Request::post(plain.endpoint_url())
        .header("content-type", "application/x-amz-json-1.1")
        .header("x-amz-target", "Kinesis_20131202.SubscribeToShard")
        .body(Full::<bytes::Bytes>::from(body.to_string()))?;
    let response = sender.send_request(request).await?;
    assert_eq!(response.version(), hyper::Version::HTTP_2);
    assert_eq!(response.headers()["content-type"], "application/vnd.amazon.eventstream");
    let mut body = response.into_body();
    let first = body.frame().await.context("a frame")??.into_data().expect("data");
    assert!(String::from_utf8_lossy(&first).contains("initial-response"));
    let second = body.frame().await.context("a frame")??.into_data().expect("data");
    let text = String::from_utf8_lossy(&second).into_owned();
    assert!(
        text.contains("SubscribeToShardEvent") && text.contains(r#""Data":"YQ==""#),
        "{text}"
    );

    // The SDK negotiates HTTP/2 by ALPN: both subscriptions of one client are on one connection, which a reset shows.
    bed.handle.update_shard_count(STREAM, 2)?;
    let other = bed
        .client
        .subscribe_to_shard()
        .consumer_arn(&bed.consumer)
        .shard_id("shardId-000000000001");
    let mut other = other
        .starting_position(position(ShardIteratorType::TrimHorizon))
        .send()
        .await?;
    event(&mut other).await?;
    let mut output = bed.subscribed(position(ShardIteratorType::TrimHorizon)).await?;
    assert!(!event(&mut output).await?.child_shards().is_empty(), "it was split");
    bed.handle.script(Rule::on_event(Fault::Reset).of_shard(2).times(1));
    let second = bed
        .client
        .subscribe_to_shard()
        .consumer_arn(&bed.consumer)
        .shard_id("shardId-000000000002");
    let second = second
        .starting_position(position(ShardIteratorType::TrimHorizon))
        .send()
        .await;
    if let Ok(mut second) = second {
        assert_eq!(next(&mut second).await.err().as_deref(), Some("broken"));
    }
    assert_eq!(next(&mut other).await.err().as_deref(), Some("broken"));
    Ok(())
}

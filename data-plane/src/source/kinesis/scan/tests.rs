//! What is taken means what the SDK makes of it, and everything else is left alone.

use aws_sdk_kinesis::Client as SdkClient;
use aws_smithy_types::body::SdkBody;
use base64_simd::STANDARD;
use proptest::prelude::*;

use super::*;

fn record(extra: &str) -> String {
    format!(
        r#"{{"SequenceNumber":"49590338271490256608559692538361571095921575989136588898","Data":"{}","PartitionKey":"k","ApproximateArrivalTimestamp":1.760000000123E9{extra}}}"#,
        STANDARD.encode_to_string(b"{\"a\":1}")
    )
}

fn answer(records: &str) -> String {
    format!(r#"{{"Records":[{records}],"NextShardIterator":"AAA","MillisBehindLatest":7}}"#)
}

#[test]
fn an_answer_of_kinesis_is_taken() {
    let reply = scan(answer(&format!("{},{}", record(""), record(r#","EncryptionType":"KMS""#))).as_bytes()).unwrap();
    assert_eq!(reply.records.len(), 2);
    for record in &reply.records {
        assert_eq!(record.data(), br#"{"a":1}"#.as_slice());
        assert_eq!(
            (record.partition_key(), record.arrival_millis),
            (b"k".as_slice(), 1_760_000_000_123)
        );
    }
    assert_eq!(
        (reply.next_iterator.as_deref(), reply.millis_behind),
        (Some("AAA"), Some(7))
    );
    assert!(reply.children.is_none());
}

#[test]
fn space_other_orders_and_unknown_members_do_no_harm() {
    let text = answer(&record(r#", "Later" : {"a":[1,true,null,-0.5e1,"\u00e9"],"b":{}}"#));
    let spaced = text.replace(':', " :\n").replace(',', "\t,\r ");
    for text in [text, spaced] {
        assert_eq!(scan(text.as_bytes()).unwrap().records.len(), 1, "{text}");
    }
    let empty = scan(br#"{"NextShardIterator":null,"ChildShards":[],"Records":[],"Other":[[]]}"#).unwrap();
    assert!(empty.records.is_empty() && empty.next_iterator.is_none());
}

#[test]
fn keys_keep_their_escapes() {
    let text = answer(&record("")).replace(r#""k""#, r#""a\"\\\u00e9\ud83d\ude00""#);
    assert_eq!(
        scan(text.as_bytes()).unwrap().records[0].partition_key(),
        "a\"\\é😀".as_bytes()
    );
}

#[test]
fn what_is_not_known_is_left_to_the_sdk() {
    let good = answer(&record(""));
    assert!(scan(good.as_bytes()).is_some());
    let broken = [
        String::new(),
        "[]".to_owned(),
        r#"{"NextShardIterator":"A"}"#.to_owned(),
        format!("{good}x"),
        good[..good.len() - 1].to_owned(),
        good.replace(r#""Data":""#, r#""Data":"*"#),
        good.replace(r#""Data":""#, r#""Data":"\u0041"#),
        good.replace(r#""Data":"#, r#""Datum":"#),
        good.replace(r#""PartitionKey":"k""#, r#""PartitionKey":null"#),
        good.replace(r#""SequenceNumber":"4"#, r#""SequenceNumber":"x"#),
        good.replace("1.760000000123E9", "NaN"),
        good.replace("1.760000000123E9", "01"),
        good.replace("1.760000000123E9", "1."),
        good.replace(r#""k""#, "\"a\u{1}\""),
        good.replace(r#""k""#, r#""\ud800""#),
        good.replace(r#""MillisBehindLatest":7"#, r#""MillisBehindLatest":7.5"#),
        good.replace(r#""MillisBehindLatest":7"#, r#""ChildShards":[{"ShardId":"a"}]"#),
        answer(&record(r#","Data":"""#)),
        answer(&record(&format!(r#","x":{}{}"#, "[".repeat(40), "]".repeat(40)))),
    ];
    for text in broken {
        assert!(scan(text.as_bytes()).is_none(), "{text}");
    }
    let mut invalid = good.into_bytes();
    let key = invalid.windows(3).position(|bytes| bytes == b"\"k\"").unwrap();
    invalid[key + 1] = 0xff;
    assert!(scan(&invalid).is_none());
}

/// What the SDK makes of an answer.
async fn by_sdk(body: &str) -> Option<Reply> {
    let body = body.to_owned();
    let client = aws_smithy_runtime_api::client::http::http_client_fn(move |_, _| {
        let body = body.clone();
        aws_smithy_runtime_api::shared::IntoShared::into_shared(Fixed(body))
    });
    let config = aws_sdk_kinesis::Config::builder()
        .behavior_version(aws_sdk_kinesis::config::BehaviorVersion::latest())
        .region(aws_sdk_kinesis::config::Region::from_static("us-east-1"))
        .credentials_provider(aws_credential_types::Credentials::for_tests())
        .http_client(client)
        .build();
    let call = SdkClient::from_conf(config)
        .get_records()
        .shard_iterator("A")
        .stream_arn("arn:aws:kinesis:us-east-1:000000000000:stream/s");
    super::super::client::reply(call.send().await.ok()?).ok()
}

/// Answers every request alike.
#[derive(Debug)]
struct Fixed(String);

impl aws_smithy_runtime_api::client::http::HttpConnector for Fixed {
    fn call(
        &self,
        _: aws_smithy_runtime_api::client::orchestrator::HttpRequest,
    ) -> aws_smithy_runtime_api::client::http::HttpConnectorFuture {
        let status = aws_smithy_runtime_api::http::StatusCode::try_from(200).unwrap();
        let response =
            aws_smithy_runtime_api::client::orchestrator::HttpResponse::new(status, SdkBody::from(self.0.clone()));
        aws_smithy_runtime_api::client::http::HttpConnectorFuture::ready(Ok(response))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn records_mean_what_the_sdk_makes_of_them(
        data in proptest::collection::vec(any::<u8>(), 0..300),
        key in "\\PC{1,40}",
        millis in 0i64..4_102_444_800_000,
        zoom in 0u8..4,
        behind in proptest::option::of(0i64..1_000_000),
    ) {
        let seconds = millis as f64 / 1000.0;
        let time = match zoom {
            0 => format!("{seconds}"),
            1 => format!("{seconds:E}"),
            2 => format!("{seconds:.6}"),
            _ => (millis / 1000).to_string(),
        };
        let text = serde_json::json!({
            "Records": [{
                "ApproximateArrivalTimestamp": "TIME",
                "Data": STANDARD.encode_to_string(&data),
                "PartitionKey": key,
                "SequenceNumber": "49590338271490256608559692538361571095921575989136588898",
            }],
            "MillisBehindLatest": behind,
            "NextShardIterator": "AAA",
        });
        let text = text.to_string().replace("\"TIME\"", &time);
        let ours = scan(text.as_bytes()).expect("an answer of Kinesis");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let theirs = runtime.block_on(by_sdk(&text)).expect("the SDK takes it");
        prop_assert_eq!(ours, theirs);
    }

    #[test]
    fn nothing_panics(text in "[\\[\\]{}\",:\\\\a-zA-Z0-9.+ -]{0,80}") {
        let _ = scan(text.as_bytes());
        let _ = scan(format!(r#"{{"Records":[{{{text}"#).as_bytes());
    }
}

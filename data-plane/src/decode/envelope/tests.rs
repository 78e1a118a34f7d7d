//! What is unwrapped, what is not in an envelope, and envelopes that nobody means well.

use std::sync::Arc;

use millrace_common::pipe::Envelope;
use proptest::prelude::*;

use super::*;
use crate::{
    batch::block::Block,
    decode::{Decoder, FieldSource, MappedColumn, Options, Plan, RecordMeta},
};

const LOGS: &str = r#"{"messageType":"DATA_MESSAGE","owner":"111","logGroup":"g","logStream":"s","subscriptionFilters":["f"],
 "logEvents":[{"id":"e1","timestamp":1510109208016,"message":"{\"a\":1,\"b\":\"x\\ny\"}"},
 {"id":"e2","timestamp":2,"message":"plain \"text\"\n","extractedFields":{"ip":"::1"}}, {"message":" {} "}]}"#;
const EVENT: &str = r#"{"version":"0","id":"i","detail-type":"Order Placed","source":"shop","account":"1","time":"2026-01-01T00:00:00Z",
 "region":"eu-central-1","resources":[],"detail":{"a": 12345678901234567890123.10, "b":{}}}"#;
const NOTICE: &str =
    r#"{"Type":"Notification","MessageId":"m","TopicArn":"arn","Message":"{\"a\":1}","Timestamp":"t"}"#;
const CHANGE: &str = r#"{"awsRegion":"us-east-1","eventID":"1","eventName":"MODIFY","tableName":"t","dynamodb":{
 "ApproximateCreationDateTime":1700000000123,"Keys":{"id":{"N":"7"}},
 "NewImage":{"id":{"N":"7"},"n":{"N":"12345678901234567890123456789012345678"},"f":{"N":"-0.10"},"s":{"S":"a\"b"},"b":{"B":"AAE="},
  "t":{"BOOL":true},"z":{"NULL":true},"m":{"M":{"x":{"L":[{"S":"1"},{"M":{}},{"L":[]}]}}},"ss":{"SS":["a","b"]},"ns":{"NS":["1","2.5"]},"bs":{"BS":[]}},
 "OldImage":{"id":{"N":"7"}},"SizeBytes":50},"eventSource":"aws:dynamodb"}"#;

/// Rows and raw texts of a message, or its class and words.
fn open(envelope: Envelope, message: &str, about: bool) -> Result<Vec<(String, String)>, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut documents = Vec::new();
    let opened = Opener::default().open(envelope, message.as_bytes(), about, &mut |document| {
        assert!(serde_json::from_slice::<serde_json::Value>(document.row).is_ok());
        assert!(message.as_bytes().ends_with(document.rest) || document.rest == message.as_bytes());
        assert!(document.rest.starts_with(document.text));
        documents.push((text(document.row), text(document.raw)));
        true
    });
    match opened {
        Ok(()) => Ok(documents),
        Err(fail) => {
            assert!(documents.is_empty(), "what is refused gives nothing");
            let rejection = fail.into_rejection(message.as_bytes());
            Err(format!("{}: {}", rejection.kind, rejection.message))
        }
    }
}

fn rows(envelope: Envelope, message: &str, about: bool) -> Vec<String> {
    let documents = open(envelope, message, about).unwrap();
    documents.into_iter().map(|(row, _)| row).collect()
}

#[test]
fn log_events_are_rows_of_their_message_or_its_text() {
    let documents = open(Envelope::CloudwatchLogs, LOGS, false).unwrap();
    let expected = [
        (r#"{"a":1,"b":"x\ny"}"#, r#"{"a":1,"b":"x\ny"}"#),
        (r#"{"message":"plain \"text\"\n"}"#, "plain \"text\"\n"),
        ("{}", " {} "),
    ];
    assert_eq!(documents, expected.map(|(row, raw)| (row.to_owned(), raw.to_owned())));
    let around =
        r#""owner":"111","logGroup":"g","logStream":"s","subscriptionFilters":["f"],"messageType":"DATA_MESSAGE""#;
    assert_eq!(
        rows(Envelope::CloudwatchLogs, LOGS, true),
        [
            format!(r#"{{"_envelope":{{{around},"id":"e1","timestamp":1510109208016}},"a":1,"b":"x\ny"}}"#),
            format!(
                r#"{{"_envelope":{{{around},"id":"e2","timestamp":2,"extractedFields":{{"ip":"::1"}}}},"message":"plain \"text\"\n"}}"#
            ),
            format!(r#"{{"_envelope":{{{around}}}}}"#),
        ]
    );
    let control = LOGS.replace("DATA_MESSAGE", "CONTROL_MESSAGE");
    assert_eq!(open(Envelope::CloudwatchLogs, &control, true), Ok(Vec::new()));
    // What only looks like an object is a text.
    for text in [r#"{\"a\":1"#, r#"{\"a\":1} {}"#, r#"{\"a\":\"\u0000\"}"#, "[1]", ""] {
        let message = format!(r#"{{"messageType":"DATA_MESSAGE","logEvents":[{{"message":"{text}"}}]}}"#);
        let expected = format!(r#"{{"message":"{text}"}}"#);
        assert_eq!(rows(Envelope::CloudwatchLogs, &message, false), [expected], "{text}");
    }
}

#[test]
fn events_are_rows_of_their_detail() {
    let detail = r#"{"a": 12345678901234567890123.10, "b":{}}"#;
    assert_eq!(
        open(Envelope::Eventbridge, EVENT, false),
        Ok(vec![(detail.to_owned(), detail.to_owned())])
    );
    let row = &rows(Envelope::Eventbridge, EVENT, true)[0];
    assert!(row.contains(r#""detail-type":"Order Placed","source":"shop"},"a": 12345678901234567890123.10"#));
    assert!(
        row.starts_with(r#"{"_envelope":{"version":"0","id":"i","account":"1","#),
        "{row}"
    );
}

#[test]
fn notifications_are_rows_of_their_message() {
    assert_eq!(
        open(Envelope::Sns, NOTICE, false),
        Ok(vec![(r#"{"a":1}"#.to_owned(), r#"{"a":1}"#.to_owned())])
    );
    assert_eq!(
        rows(Envelope::Sns, NOTICE, true),
        [r#"{"_envelope":{"MessageId":"m","Timestamp":"t","Type":"Notification","TopicArn":"arn"},"a":1}"#]
    );
    let plain = NOTICE.replace(r#"{\"a\":1}"#, "hello");
    assert_eq!(rows(Envelope::Sns, &plain, false), [r#"{"message":"hello"}"#]);
}

#[test]
fn changes_are_rows_of_plain_values() {
    let image = concat!(
        r#"{"id":7,"n":12345678901234567890123456789012345678,"f":-0.10,"s":"a\"b","b":"AAE=","t":true,"z":null,"#,
        r#""m":{"x":["1",{},[]]},"ss":["a","b"],"ns":[1,2.5],"bs":[]}"#
    );
    assert_eq!(
        open(Envelope::DynamodbStream, CHANGE, false),
        Ok(vec![(image.to_owned(), CHANGE.to_owned())])
    );
    let around = concat!(
        r#"{"_envelope":{"awsRegion":"us-east-1","eventID":"1","tableName":"t","eventSource":"aws:dynamodb","eventName":"MODIFY","#,
        r#""ApproximateCreationDateTime":1700000000123,"SizeBytes":50,"Keys":{"id":7},"OldImage":{"id":7}},"#
    );
    assert_eq!(
        rows(Envelope::DynamodbStream, CHANGE, true),
        [format!("{around}{}", &image[1..])]
    );
    // What was removed has no new image.
    let removed =
        r#"{"eventName":"REMOVE","dynamodb":{"Keys":{"id":{"S":"x"}},"OldImage":{"id":{"S":"x"},"v":{"N":"1"}}}}"#;
    assert_eq!(
        rows(Envelope::DynamodbStream, removed, true),
        [r#"{"_envelope":{"eventName":"REMOVE","Keys":{"id":"x"},"OldImage":{"id":"x","v":1}},"id":"x"}"#]
    );
}

#[test]
fn what_is_in_no_such_envelope_is_refused_whole() {
    use Envelope::{CloudwatchLogs, DynamodbStream, Eventbridge, Sns};
    let with = |message: &str, from: &str, to: &str| {
        assert!(message.contains(from), "{from}");
        message.replacen(from, to, 1)
    };
    let not_in = [
        (CloudwatchLogs, EVENT.to_owned(), "no `messageType`"),
        (
            CloudwatchLogs,
            with(LOGS, "DATA_MESSAGE", "OTHER"),
            "neither DATA_MESSAGE",
        ),
        (CloudwatchLogs, with(LOGS, "logEvents", "events"), "no `logEvents`"),
        (
            CloudwatchLogs,
            with(LOGS, r#"{"message":" {} "}"#, "7"),
            "not an object",
        ),
        (
            CloudwatchLogs,
            with(LOGS, r#"" {} ""#, "{}"),
            "no `message` that is a text",
        ),
        (
            CloudwatchLogs,
            r#"{"messageType":"DATA_MESSAGE","logEvents":{}}"#.to_owned(),
            "not an array",
        ),
        (Eventbridge, LOGS.to_owned(), "no `detail-type`"),
        (Eventbridge, with(EVENT, "\"source\"", "\"origin\""), "no `source`"),
        (Eventbridge, with(EVENT, "\"id\":", "\"detail\":"), "`detail` twice"),
        (
            Eventbridge,
            r#"{"detail-type":"a","source":"b","detail":"{}"}"#.to_owned(),
            "`detail` is not an object",
        ),
        (Eventbridge, format!("{EVENT} {EVENT}"), "something follows it"),
        (Eventbridge, "[1]".to_owned(), "not an object"),
        (
            Sns,
            with(NOTICE, "Notification", "SubscriptionConfirmation"),
            "not Notification",
        ),
        (Sns, with(NOTICE, r#""{\"a\":1}""#, "{}"), "not a text"),
        (DynamodbStream, NOTICE.to_owned(), "no `eventName`"),
        (DynamodbStream, with(CHANGE, "\"Keys\"", "\"K\""), "no `Keys`"),
        (
            DynamodbStream,
            with(CHANGE, r#"{"N":"-0.10"}"#, r#"{"N":"0x1"}"#),
            "is not a number",
        ),
        (
            DynamodbStream,
            with(CHANGE, r#"{"N":"-0.10"}"#, r#"{"N":1}"#),
            "is not a number",
        ),
        (DynamodbStream, with(CHANGE, r#"{"N":"-0.10"}"#, "{}"), "has no type"),
        (
            DynamodbStream,
            with(CHANGE, r#"{"N":"-0.10"}"#, "1"),
            "is not an attribute value",
        ),
        (
            DynamodbStream,
            with(CHANGE, r#"{"N":"-0.10"}"#, r#"{"X":"1"}"#),
            "a type that DynamoDB",
        ),
        (
            DynamodbStream,
            with(CHANGE, r#"{"N":"-0.10"}"#, r#"{"N":"1","S":"1"}"#),
            "several types",
        ),
        (
            DynamodbStream,
            with(CHANGE, r#"["1","2.5"]"#, r#"["1","NaN"]"#),
            "is not a number",
        ),
        (
            DynamodbStream,
            with(CHANGE, r#""OldImage":{"id":{"N":"7"}}"#, r#""OldImage":[]"#),
            "object of attributes",
        ),
    ];
    for (envelope, message, why) in not_in {
        let refused = open(envelope, &message, false).unwrap_err();
        assert!(refused.starts_with("not_in_envelope: the record is not a"), "{refused}");
        assert!(refused.contains(why), "{refused}");
        // Whether somebody wants what is around makes no difference.
        assert_eq!(open(envelope, &message, true).unwrap_err(), refused);
    }
    for envelope in [CloudwatchLogs, Eventbridge, Sns, DynamodbStream] {
        for broken in ["", "{", "{\"a\"", "nul", "{\"a\":1}}"] {
            let refused = open(envelope, broken, true).unwrap_err();
            let kind = if broken.ends_with("}}") {
                "not_in_envelope"
            } else {
                "malformed_json"
            };
            assert!(refused.starts_with(kind), "{broken}: {refused}");
        }
    }
    let empty = r#"{"messageType":"DATA_MESSAGE","logEvents":[]}"#;
    assert!(
        open(CloudwatchLogs, empty, true)
            .unwrap_err()
            .starts_with("empty_record")
    );
}

#[test]
fn depth_is_bounded() {
    let nested = |levels: usize| {
        let (open, close) = (r#"{"L":["#.repeat(levels), "]}".repeat(levels));
        format!(r#"{{"eventName":"INSERT","dynamodb":{{"Keys":{{}},"NewImage":{{"a":{open}{close}}}}}}}"#)
    };
    assert!(open(Envelope::DynamodbStream, &nested(32), true).is_ok());
    let refused = open(Envelope::DynamodbStream, &nested(100_000), true).unwrap_err();
    assert!(refused.starts_with("too_deep"), "{refused}");
}

fn column((name, source): &(&str, &str)) -> MappedColumn {
    MappedColumn {
        name: (*name).to_owned(),
        data_type: "String".parse().unwrap(),
        has_default: false,
        source: source
            .parse()
            .map_or_else(|_| FieldSource::Key((*source).to_owned()), FieldSource::Virtual),
        required: false,
    }
}

fn plan(columns: &[(&str, &str)], envelope: Envelope) -> Arc<Plan> {
    let options = Options {
        envelope: Some(envelope),
        ..Options::default()
    };
    Arc::new(Plan::compile_with(columns.iter().map(column).collect(), &options).unwrap())
}

const META: RecordMeta<'static> = RecordMeta {
    partition_key: b"key",
    arrival_millis: 0,
    stream: "s",
    shard_id: "shardId-0",
    sequence_number: b"1",
    sub_sequence_number: 0,
    hash_keys: None,
};

/// Documents, rows, refused classes and the bytes of what was refused.
fn decode(plan: &Arc<Plan>, record: &[u8]) -> (u64, usize, Vec<&'static str>, usize) {
    let (mut kinds, mut refused_bytes) = (Vec::new(), 0);
    let mut block = Block::new(plan);
    let decoded = Decoder::new(Arc::clone(plan)).decode(record, &META, &mut block, &mut |refused| {
        kinds.push(refused.rejection.kind.as_str());
        refused_bytes += refused.text.len();
    });
    assert_eq!(decoded.documents as usize, block.rows() + kinds.len());
    (decoded.documents, block.rows(), kinds, refused_bytes)
}

#[test]
fn a_document_cannot_say_what_is_around_it() {
    let message = r#"{\"_envelope.logGroup\":\"forged\",\"a\":1}"#;
    let record =
        format!(r#"{{"messageType":"DATA_MESSAGE","logGroup":"real","logEvents":[{{"message":"{message}"}}]}}"#);
    let plan = plan(&[("g", "_envelope.logGroup")], Envelope::CloudwatchLogs);
    let mut block = Block::new(&plan);
    Decoder::new(Arc::clone(&plan)).decode(record.as_bytes(), &META, &mut block, &mut |refused| {
        panic!("{}", refused.rejection)
    });
    let mut native = Vec::new();
    block.write_native(&mut native);
    let holds = |text: &str| native.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("real") && !holds("forged"));
}

#[test]
fn what_is_around_a_document_is_no_unknown_field_of_it() {
    let event = |more: &str| {
        format!(
            r#"{{"version":"0","detail-type":"t","source":"s","x":{{"y":1,"z":2}},"detail":{{"a":{{"b":1}}{more}}}}}"#
        )
    };
    let refusing = |flatten_separator: Option<&str>, columns: &[(&str, &str)]| {
        let options = Options {
            envelope: Some(Envelope::Eventbridge),
            on_unknown_field: millrace_common::pipe::UnknownFieldPolicy::Reject,
            flatten_separator: flatten_separator.map(str::to_owned),
            ..Options::default()
        };
        Arc::new(Plan::compile_with(columns.iter().map(column).collect(), &options).unwrap())
    };
    for plan in [
        refusing(None, &[("a", "a"), ("s", "_envelope.source")]),
        refusing(Some("."), &[("b", "a.b"), ("s", "_envelope.source")]),
        refusing(
            Some("_"),
            &[("b", "a_b"), ("s", "_envelope_source"), ("y", "_envelope_x_y")],
        ),
        refusing(Some("."), &[("b", "a.b")]),
    ] {
        assert_eq!(decode(&plan, event("").as_bytes()), (1, 1, vec![], 0));
        // What the document itself says is one, also under that name.
        assert_eq!(decode(&plan, event(r#","c":1"#).as_bytes()).2, ["unknown_field"]);
        let own = decode(&plan, event(r#","_envelope":{"other":1}"#).as_bytes());
        assert_eq!(own.1, 0, "{own:?}");
    }
}

#[test]
fn what_is_around_a_document_is_not_kept_as_unmapped() {
    let record =
        r#"{"version":"0","detail-type":"t","source":"s","account":"around","detail":{"a":{"b":1},"c":"within"}}"#;
    for separator in [None, Some(".")] {
        let options = Options {
            envelope: Some(Envelope::Eventbridge),
            flatten_separator: separator.map(str::to_owned),
            ..Options::default()
        };
        let columns = [("b", "a.b"), ("s", "_envelope.source"), ("u", "_unmapped")];
        let plan = Arc::new(Plan::compile_with(columns.iter().map(column).collect(), &options).unwrap());
        let mut block = Block::new(&plan);
        Decoder::new(Arc::clone(&plan)).decode(record.as_bytes(), &META, &mut block, &mut |refused| {
            panic!("{}", refused.rejection)
        });
        let mut native = Vec::new();
        block.write_native(&mut native);
        let holds = |text: &str| native.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(holds("within") && !holds("around"), "{separator:?}");
    }
}

#[test]
fn many_events_under_a_large_head_are_bounded() {
    // Half of the record is around its events, and they want all of it, each.
    let count = 20_000;
    let head = "x".repeat(14 * count);
    let events = vec![r#"{"message":""}"#; count].join(",");
    let record = format!(r#"{{"messageType":"DATA_MESSAGE","logGroup":"{head}","logEvents":[{events}]}}"#);
    for columns in [
        &[("m", "message"), ("g", "_envelope.logGroup")][..],
        &[("m", "message"), ("g", "_envelope.other")],
    ] {
        let plan = plan(columns, Envelope::CloudwatchLogs);
        let (_, rows, kinds, refused) = decode(&plan, record.as_bytes());
        assert_eq!(kinds, ["too_many_documents"]);
        assert!(rows > 10 && rows < 1_000 && refused < record.len(), "{rows} {refused}");
    }
    // Who does not ask for it gets all events.
    let plan = plan(&[("m", "message")], Envelope::CloudwatchLogs);
    assert_eq!(decode(&plan, record.as_bytes()), (count as u64, count, vec![], 0));
}

#[test]
fn real_events_are_far_from_the_bound() {
    // Names as long as they may be, and messages as short.
    let event = format!(
        r#"{{"id":"{}","timestamp":1510109208016,"message":"x"}}"#,
        "3".repeat(56)
    );
    let head = format!(
        r#""owner":"123456789012","logGroup":"{0}","logStream":"{0}","subscriptionFilters":["{0}","{0}"]"#,
        "n".repeat(512)
    );
    let events = vec![event; 20_000].join(",");
    let record = format!(r#"{{"messageType":"DATA_MESSAGE",{head},"logEvents":[{events}]}}"#);
    let plan = plan(&[("i", "_envelope.id"), ("m", "message")], Envelope::CloudwatchLogs);
    assert_eq!(decode(&plan, record.as_bytes()).1, 20_000);
}

#[test]
fn refused_events_are_refused_alone_and_boundedly() {
    let events: Vec<_> = (0..3_000)
        .map(|n| format!(r#"{{"id":"{n}","message":"{{\"n\":{n},\"n\":1}}"}}"#))
        .collect();
    let record = format!(
        r#"{{"messageType":"DATA_MESSAGE","logEvents":[{{"message":"{{\"n\":\"ok\"}}"}},{}]}}"#,
        events.join(",")
    );
    let plan = plan(&[("n", "n")], Envelope::CloudwatchLogs);
    let (documents, rows, kinds, refused) = decode(&plan, record.as_bytes());
    assert_eq!((documents, rows, kinds.len()), (1_002, 1, 1_001));
    assert_eq!((kinds[0], kinds[1_000]), ("duplicate_key", "too_many_documents"));
    assert!(refused <= record.len());
}

#[test]
fn aggregates_and_compressed_records_are_unpacked_before() {
    use std::io::Write as _;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(LOGS.as_bytes()).unwrap();
    let record = gzip.finish().unwrap();
    // No column is of the JSON: the messages are what is wrapped all the same.
    let plan = plan(&[("raw", "_raw_message")], Envelope::CloudwatchLogs);
    assert_eq!(decode(&plan, &record), (3, 3, vec![], 0));
    assert_eq!(decode(&plan, b"{}").2, ["not_in_envelope"]);
    assert_eq!(decode(&plan, b"{\"a\":\"\xff\"}").2, ["invalid_utf8"]);
    assert_eq!(decode(&plan, b"").2, ["malformed_json"]);
}

proptest! {
    #[test]
    fn any_bytes_are_rows_or_refused(
        message in prop_oneof![Just(LOGS), Just(EVENT), Just(NOTICE), Just(CHANGE)],
        envelope in prop_oneof![
            Just(Envelope::CloudwatchLogs), Just(Envelope::Eventbridge), Just(Envelope::Sns), Just(Envelope::DynamodbStream)
        ],
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let mut record = message.as_bytes().to_vec();
        let at = at.index(record.len());
        if cut {
            record.truncate(at);
        } else {
            record[at] = byte;
        }
        let plan = plan(&[("a", "a"), ("m", "message"), ("e", "_envelope")], envelope);
        let (documents, _, _, refused) = decode(&plan, &record);
        prop_assert!(documents <= 3 && refused <= 2 * record.len());
    }

    #[test]
    fn plain_values_come_back_from_their_typed_ones(value in plain(), about in any::<bool>()) {
        let record = serde_json::json!({"eventName": "INSERT", "dynamodb": {"Keys": {}, "NewImage": {"v": typed(&value)}}});
        let row = &rows(Envelope::DynamodbStream, &record.to_string(), about)[0];
        let row: serde_json::Value = serde_json::from_str(row).unwrap();
        prop_assert_eq!(&row["v"], &value);
    }
}

fn plain() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        ".*".prop_map(serde_json::Value::from),
    ];
    leaf.prop_recursive(4, 20, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            prop::collection::btree_map(".{0,6}", inner, 0..4)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

fn typed(value: &serde_json::Value) -> serde_json::Value {
    use serde_json::{Value, json};
    match value {
        Value::Null => json!({"NULL": true}),
        Value::Bool(value) => json!({"BOOL": value}),
        Value::Number(number) => json!({"N": number.to_string()}),
        Value::String(text) => json!({"S": text}),
        Value::Array(items) => json!({"L": items.iter().map(typed).collect::<Vec<_>>()}),
        Value::Object(members) => {
            json!({"M": members.iter().map(|(key, value)| (key.clone(), typed(value))).collect::<serde_json::Map<_, _>>()})
        }
    }
}

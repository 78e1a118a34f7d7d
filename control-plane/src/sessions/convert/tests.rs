//! Round trips, and garbage: an error with the path of the field, never a panic.

use proptest::prelude::*;

use super::*;

const UID: &str = "00000000-0000-4000-8000-000000000001";

fn identity() -> v1::WorkerIdentity {
    v1::WorkerIdentity {
        worker_id: "worker-1".into(),
        incarnation: UID.into(),
    }
}

fn place(place: v1::position::Place) -> Option<v1::Position> {
    Some(v1::Position { place: Some(place) })
}

fn slice() -> v1::Slice {
    v1::Slice {
        shard_id: "shardId-000000000000".into(),
        epoch: 3,
        from_exclusive: place(v1::position::Place::TrimHorizon(v1::TrimHorizon {})),
        to_inclusive: "495".into(),
    }
}

fn prepare_request() -> v1::PrepareBatchRequest {
    let batch = v1::OpenBatch {
        batch_id: "01ARZ3NDEKTSV4RRFFQ69G5FAV".into(),
        revision: 2,
        slices: vec![slice()],
        rows: 10,
        rejected_records: 1,
        digest: vec![7; 16],
        ..Default::default()
    };
    v1::PrepareBatchRequest {
        worker: Some(identity()),
        pipe_uid: UID.into(),
        batch: Some(batch),
        records: 11,
        bytes: 1000,
    }
}

fn shard_report() -> v1::ShardReport {
    v1::ShardReport {
        shard_id: "shardId-000000000000".into(),
        epoch: 1,
        ..Default::default()
    }
}

fn report_of(shards: Vec<v1::ShardReport>, fault: Option<v1::LaneFault>) -> v1::Report {
    v1::Report {
        generation: 4,
        lanes: vec![v1::LaneReport {
            pipe_uid: UID.into(),
            shards,
            fault,
        }],
    }
}

#[test]
fn a_prepared_batch_comes_back_as_an_open_one() {
    let request = prepare_request();
    let read = prepare(request.clone()).unwrap();
    assert_eq!(read.epochs, [("shardId-000000000000".parse().unwrap(), Epoch(3))]);
    assert_eq!(
        read.batch.counts,
        Counts {
            rows: 10,
            rejected_records: 1,
            records: 11,
            bytes: 1000
        }
    );
    let mut expected = request.batch.unwrap();
    expected.slices[0].epoch = 0;
    (expected.records, expected.bytes) = (request.records, request.bytes);
    // Who does not say means the first.
    expected.format = 1;
    assert_eq!(open_batch(&read.batch), expected);
}

#[test]
fn every_broken_field_is_named() {
    type Break = (&'static str, fn(&mut v1::PrepareBatchRequest));
    let cases: [Break; 12] = [
        ("worker", |r| r.worker = None),
        ("worker.worker_id", |r| {
            r.worker.as_mut().unwrap().worker_id = "a b".into();
        }),
        ("worker.incarnation", |r| r.worker.as_mut().unwrap().incarnation.clear()),
        ("pipe_uid", |r| r.pipe_uid = "no".into()),
        ("batch", |r| r.batch = None),
        ("batch.batch_id", |r| r.batch.as_mut().unwrap().batch_id = "no".into()),
        ("batch.digest", |r| r.batch.as_mut().unwrap().digest = vec![0; 15]),
        ("batch.slices[0].shard_id", |r| {
            r.batch.as_mut().unwrap().slices[0].shard_id = "../x".into();
        }),
        ("batch.slices[0].to_inclusive", |r| {
            r.batch.as_mut().unwrap().slices[0].to_inclusive = "-1".into();
        }),
        ("batch.slices[0].from_exclusive", |r| {
            r.batch.as_mut().unwrap().slices[0].from_exclusive = None;
        }),
        ("batch.slices[0].from_exclusive", |r| {
            r.batch.as_mut().unwrap().slices[0].from_exclusive = Some(v1::Position { place: None });
        }),
        ("batch.slices[0].from_exclusive", |r| {
            let time = prost_types::Timestamp {
                seconds: i64::MAX,
                nanos: -1,
            };
            r.batch.as_mut().unwrap().slices[0].from_exclusive = place(v1::position::Place::AtTimestamp(time));
        }),
    ];
    for (field, break_it) in cases {
        let mut request = prepare_request();
        break_it(&mut request);
        let error = prepare(request).unwrap_err();
        assert_eq!(
            (error.code, error.fields[0].field.as_str()),
            (tonic::Code::InvalidArgument, field)
        );
    }
}

#[test]
fn reports_are_read_and_checked() {
    let fault = v1::LaneFault {
        reason: "DESTINATION_UNREACHABLE".into(),
        message: "x".repeat(5000),
        permanent: false,
    };
    let mut shard = shard_report();
    shard.read_sequence_number = "00123".into();
    shard.lag = Some(prost_types::Duration {
        seconds: 1,
        nanos: 500_000_000,
    });
    let read = report(report_of(vec![shard], Some(fault.clone())), "report").unwrap();
    let lane = &read.lanes[&UID.parse().unwrap()];
    assert_eq!(lane.fault.as_ref().unwrap().message.len(), MAX_MESSAGE);
    let shard = lane.shards.values().next().unwrap();
    assert_eq!(shard.lag, Some(Duration::from_millis(1500)));
    assert_eq!(shard.read.as_ref().unwrap().as_str(), "00123");

    let broken = |shard: v1::ShardReport| {
        report(report_of(vec![shard], None), "report").unwrap_err().fields[0]
            .field
            .clone()
    };
    assert_eq!(
        broken(v1::ShardReport {
            bytes_per_second: f64::NAN,
            ..shard_report()
        }),
        "report.lanes[0].shards[0].bytes_per_second"
    );
    let negative = Some(prost_types::Duration {
        seconds: i64::MIN,
        nanos: 0,
    });
    assert_eq!(
        broken(v1::ShardReport {
            lag: negative,
            ..shard_report()
        }),
        "report.lanes[0].shards[0].lag"
    );
    let twice = report(report_of(vec![shard_report(), shard_report()], None), "report").unwrap_err();
    assert_eq!(twice.fields[0].field, "report.lanes[0].shards[1].shard_id");
    let shouting = v1::LaneFault {
        reason: "not snake".into(),
        ..fault
    };
    assert!(report(report_of(vec![], Some(shouting)), "report").is_err());
}

proptest! {
    #[test]
    fn positions_round_trip(nanos in -62_000_000_000_000_000_000i128..250_000_000_000_000_000_000) {
        let at = Position::AtTimestamp(Timestamp::from_nanosecond(nanos).unwrap());
        prop_assert_eq!(position_of(Some(position(&at)), "", "").unwrap(), at);
    }

    #[test]
    fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,40}", n in any::<i64>()) {
        use prost::Message as _;
        if let Ok(message) = v1::Hello::decode(bytes.as_slice()) {
            let _ = hello(message);
        }
        let mut request = prepare_request();
        let batch = request.batch.as_mut().unwrap();
        batch.batch_id.clone_from(&text);
        batch.slices[0].shard_id.clone_from(&text);
        batch.slices[0].to_inclusive.clone_from(&text);
        let time = prost_types::Timestamp { seconds: n, nanos: (n >> 20) as i32 };
        batch.slices[0].from_exclusive = place(v1::position::Place::AtTimestamp(time));
        let _ = prepare(request);
    }
}

#[test]
fn first_records_are_of_the_slices() {
    let with = |shard: &str, number: &str| {
        let mut request = prepare_request();
        let batch = request.batch.as_mut().expect("a batch");
        batch.first_records.insert(shard.to_owned(), number.to_owned());
        prepare(request)
    };
    let shard = prepare_request().batch.expect("a batch").slices[0].shard_id.clone();
    let read = with(&shard, "17").expect("good");
    let firsts = &read.batch.terms.firsts;
    assert_eq!(firsts.len(), 1);
    assert_eq!(open_batch(&read.batch).first_records[&shard], "17");
    assert!(with("shardId-000000009999", "17").is_err(), "no slice of it");
    assert!(with(&shard, "no number").is_err());
}

#[test]
fn a_replacement_claims_each_shard_once() {
    let part = |id: &str, condemned: &str| v1::OpenBatch {
        batch_id: id.into(),
        condemned: condemned.into(),
        part: true,
        records: 4,
        ..prepare_request().batch.unwrap_or_default()
    };
    let request = |condemned: &str| v1::ReplaceBatchRequest {
        worker: Some(identity()),
        pipe_uid: UID.into(),
        batch_id: "01ARZ3NDEKTSV4RRFFQ69G5FAV".into(),
        parts: vec![
            part("01ARZ3NDEKTSV4RRFFQ69G5FAW", ""),
            part("01ARZ3NDEKTSV4RRFFQ69G5FAX", condemned),
        ],
    };
    let read = replace(request("no")).expect("a replacement");
    assert_eq!(read.epochs.len(), 1);
    let condemned: Vec<_> = read.parts.iter().map(|part| part.terms.condemned.as_deref()).collect();
    assert_eq!(condemned, [None, Some("no")]);
    assert!(
        read.parts
            .iter()
            .all(|part| part.terms.part && part.counts.records == 4)
    );
    let long = replace(request(&"x".repeat(MAX_CONDEMNED + 1)));
    assert!(long.is_err(), "it decides what is built, so it is not cut");
    let mut bad = request("");
    bad.parts[1].digest.clear();
    assert!(replace(bad).is_err());
}

#[test]
fn what_an_older_worker_would_pass_over_asks_for_a_newer_one() {
    use v1::aws_credential::Kind;
    let spec = |change: &dyn Fn(&mut v1::KinesisSource, &mut v1::Decoding)| {
        let (mut kinesis, mut decoding) = (v1::KinesisSource::default(), v1::Decoding::default());
        change(&mut kinesis, &mut decoding);
        protocol_required(&v1::PipeSpec {
            kinesis: Some(kinesis),
            decoding: Some(decoding),
            ..Default::default()
        })
    };
    let role = |source: Option<Box<v1::AwsCredential>>| {
        let role = v1::AwsRole {
            source,
            ..Default::default()
        };
        Some(v1::AwsCredential {
            kind: Some(Kind::Role(Box::new(role))),
        })
    };
    assert_eq!(protocol_required(&v1::PipeSpec::default()), 1);
    assert_eq!(spec(&|_, _| {}), 1);
    assert_eq!(spec(&|_, decoding| decoding.refuse_unknown_fields = true), 1);
    assert_eq!(spec(&|kinesis, _| kinesis.credential = role(None)), 1);
    assert_eq!(spec(&|_, decoding| decoding.set_envelope(v1::Envelope::Sns)), 2);
    assert_eq!(
        spec(&|_, decoding| decoding.set_on_out_of_range(v1::OutOfRangePolicy::Drop)),
        2
    );
    assert_eq!(spec(&|kinesis, _| kinesis.max_get_records_per_second = 1), 2);
    assert_eq!(spec(&|kinesis, _| kinesis.max_read_bytes_per_second = 1), 2);
    assert_eq!(spec(&|kinesis, _| kinesis.credential = role(Some(Box::default()))), 2);
    assert!(protocol_required(&v1::PipeSpec::default()) >= crate::sessions::PROTOCOL_MIN);
    assert!(spec(&|_, decoding| decoding.set_envelope(v1::Envelope::Sns)) <= crate::sessions::PROTOCOL_MAX);
}

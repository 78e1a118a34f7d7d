//! What the control plane may send, and what it may not.

use super::*;

fn wire_spec(revision: u64) -> wire::PipeSpec {
    wire::PipeSpec {
        revision,
        kinesis: Some(wire::KinesisSource {
            stream_arn: "arn:aws:kinesis:us-east-1:000000000000:stream/events".into(),
            stream_name: "events".into(),
            region: "us-east-1".into(),
            endpoint: String::new(),
            credential: Some(wire::AwsCredential {
                kind: Some(wire::aws_credential::Kind::Keys(wire::AwsKeys {
                    access_key_id: "AKIDEXAMPLE".into(),
                    secret_access_key: "canary-secret".into(),
                    session_token: String::new(),
                })),
            }),
            stream_created: Some(prost_types::Timestamp {
                seconds: 1_700_000_000,
                nanos: 0,
            }),
            end_timestamp: None,
            consumer_arn: String::new(),
            max_get_records_per_second: 2,
            max_read_bytes_per_second: 0,
            consumer_name: String::new(),
        }),
        clickhouse: Some(wire::ClickHouseDestination {
            endpoint: "http://127.0.0.1:8123".into(),
            username: "default".into(),
            password: "canary-password".into(),
            database: "default".into(),
            table: "events".into(),
            error_table: "events_millrace_error".into(),
        }),
        time_zone: "UTC".to_owned(),
        columns: vec![wire::MappedColumn {
            name: "id".into(),
            r#type: "UInt64".into(),
            has_default: false,
            source_field: "id".into(),
            constant: "7".into(),
            required: true,
        }],
        decoding: Some(wire::Decoding {
            refuse_unknown_fields: true,
            flatten_separator: "_".into(),
            keep_packed: true,
            on_out_of_range: wire::OutOfRangePolicy::Drop.into(),
            envelope: wire::Envelope::Sns.into(),
        }),
        batch: Some(wire::BatchSettings {
            max_rows: 10,
            max_bytes: 20,
            max_wait: Some(prost_types::Duration { seconds: 5, nanos: 0 }),
            compression: wire::Compression::Lz4.into(),
            exactly_once: true,
        }),
    }
}

fn wire_lane() -> wire::Lane {
    let after = |number: &str| {
        Some(wire::Position {
            place: Some(wire::position::Place::AfterSequenceNumber(number.into())),
        })
    };
    wire::Lane {
        pipe_uid: PipeUid::new().to_string(),
        pipe_name: "projects/default/pipes/events".into(),
        spec: Some(wire_spec(2)),
        replay_specs: vec![wire_spec(1)],
        shards: vec![wire::AssignedShard {
            shard_id: "shardId-0".into(),
            epoch: 7,
            start: after("20"),
            complete_until: Some(prost_types::Timestamp { seconds: 9, nanos: 0 }),
        }],
        open_batches: vec![wire::OpenBatch {
            batch_id: BatchId::new().to_string(),
            revision: 1,
            slices: vec![wire::Slice {
                shard_id: "shardId-0".into(),
                epoch: 0,
                from_exclusive: after("10"),
                to_inclusive: "20".into(),
            }],
            rows: 3,
            rejected_records: 1,
            digest: vec![9; 16],
            first_records: [("shardId-0".to_owned(), "11".to_owned())].into(),
            format: 2,
            ..Default::default()
        }],
    }
}

fn convert(lane: wire::Lane) -> Result<Assignment, Error> {
    assignment_set(wire::AssignmentSet {
        generation: 4,
        lanes: vec![lane],
    })
    .map(|mut set| set.lanes.remove(0))
}

#[test]
fn a_lane_comes_through_whole() {
    let lane = convert(wire_lane()).expect("a good lane");
    assert_eq!(lane.current, Revision(2));
    assert_eq!(lane.specs.len(), 2);
    let spec = lane.specs[&Revision(2)].as_ref().expect("a good specification");
    assert_eq!(
        spec.limits,
        Limits {
            rows: 10,
            bytes: 20,
            wait: Duration::from_secs(5)
        }
    );
    assert_eq!(
        (spec.compression, spec.delivery),
        (Compression::Lz4, Delivery::ExactlyOnce)
    );
    assert_eq!(spec.source.access.endpoint, None);
    let column = &spec.columns[0];
    assert_eq!((column.constant.as_deref(), column.required), (Some("7"), true));
    assert_eq!(
        spec.source.polling,
        PollingBudget {
            calls_per_second: Some(2),
            bytes_per_second: None,
        }
    );
    assert_eq!(
        spec.decoding,
        Decoding {
            on_unknown_field: UnknownFieldPolicy::Reject,
            flatten_separator: Some("_".to_owned()),
            keep_packed: true,
            on_out_of_range: OutOfRangePolicy::Drop,
            envelope: Some(Envelope::Sns),
        }
    );
    let shard: ShardId = "shardId-0".parse().expect("a shard id");
    assert_eq!(lane.shards[&shard].epoch, Epoch(7));
    let batch = &lane.open_batches[0];
    assert_eq!(
        (batch.digest, batch.counts.rows, batch.counts.rejected_records),
        ([9; 16], 3, 1)
    );
    assert_eq!(batch.slices[0].to_string(), "shardId-0 (after 10, 20]");
    assert!(!format!("{lane:?}").contains("canary"), "secrets are not printed");
}

#[test]
fn blocks_travel_as_the_control_plane_says() {
    let given = |number: i32| {
        let mut lane = wire_lane();
        if let Some(batch) = lane.spec.as_mut().and_then(|spec| spec.batch.as_mut()) {
            batch.compression = number;
        }
        let lane = convert(lane).expect("a good lane");
        let spec = lane.specs[&Revision(2)].clone();
        spec.map(|spec| spec.compression)
    };
    let known = [
        Compression::None,
        Compression::Lz4,
        Compression::Zstd,
        Compression::None,
    ];
    for (number, expected) in (0..).zip(known) {
        assert_eq!(given(number), Ok(expected), "{number}");
    }
    let fault = given(4).expect_err("a way that this worker does not know");
    assert!(fault.message.contains("spec.batch.compression"), "{fault:?}");
}

#[test]
fn an_open_batch_goes_back_as_it_came_but_with_epochs() {
    let wire = wire_lane();
    let lane = convert(wire.clone()).expect("a good lane");
    let epochs = lane
        .shards
        .iter()
        .map(|(shard, grant)| (shard.clone(), grant.epoch))
        .collect();
    let mut expected = wire.open_batches[0].clone();
    expected.slices[0].epoch = 7;
    assert_eq!(to_open_batch(&lane.open_batches[0], &epochs), expected);
}

#[test]
fn a_bad_specification_is_a_fault_of_its_lane() {
    type Spoil = fn(&mut wire::PipeSpec);
    let spoils: [Spoil; 5] = [
        |spec| spec.batch = None,
        |spec| spec.kinesis = None,
        |spec| spec.clickhouse = None,
        |spec| spec.kinesis.as_mut().expect("set").credential = None,
        |spec| spec.batch.as_mut().expect("set").max_wait = Some(prost_types::Duration { seconds: -1, nanos: 0 }),
    ];
    for spoil in spoils {
        let mut lane = wire_lane();
        spoil(lane.spec.as_mut().expect("set"));
        let lane = convert(lane).expect("the ids are good");
        assert!(lane.specs[&Revision(2)].as_ref().is_err_and(|fault| fault.permanent));
        assert!(lane.specs[&Revision(1)].is_ok());
    }
}

#[test]
fn a_control_plane_without_time_zones_means_utc() {
    let mut lane = wire_lane();
    lane.spec.as_mut().expect("set").time_zone.clear();
    let lane = convert(lane).expect("a good lane");
    assert_eq!(
        lane.specs[&Revision(2)]
            .as_ref()
            .expect("a good specification")
            .time_zone,
        "UTC"
    );
}

#[test]
fn bad_ids_refuse_the_message() {
    type Spoil = fn(&mut wire::Lane);
    let spoils: [Spoil; 8] = [
        |lane| lane.pipe_uid = "x".into(),
        |lane| lane.spec = None,
        |lane| lane.shards[0].shard_id = "../x".into(),
        |lane| lane.shards[0].start = None,
        |lane| lane.open_batches[0].batch_id = String::new(),
        |lane| lane.open_batches[0].digest.truncate(15),
        |lane| lane.open_batches[0].slices[0].to_inclusive = "-1".into(),
        |lane| lane.open_batches[0].slices[0].from_exclusive = Some(wire::Position { place: None }),
    ];
    for spoil in spoils {
        let mut lane = wire_lane();
        spoil(&mut lane);
        assert!(convert(lane).is_err());
    }
}

#[test]
fn times_round_trip() {
    for nanos in [0_i128, -1, 1, 1_700_000_000_123_456_789, -1_500_000_000] {
        let position = Position::AtTimestamp(Timestamp::from_nanosecond(nanos).expect("in range"));
        assert_eq!(self::position(to_position(&position)), Ok(position));
    }
}

#[test]
fn a_stream_is_read_with_the_consumer_that_is_named_or_polled() {
    let read = |arn: &str, name: &str| {
        let mut kinesis = wire_spec(1).kinesis.unwrap();
        kinesis.consumer_arn = arn.to_owned();
        kinesis.consumer_name = name.to_owned();
        source(kinesis).unwrap()
    };
    let polled = read("", "");
    assert_eq!(polled.consumer, None);
    let named = read("", "millrace-1");
    assert_eq!(named.consumer, Some(Consumer::Name("millrace-1".to_owned())));
    assert_eq!(read("arn", "").consumer, Some(Consumer::Arn("arn".to_owned())));
    assert_ne!(polled.fingerprint, named.fingerprint, "readers are to begin anew");
}

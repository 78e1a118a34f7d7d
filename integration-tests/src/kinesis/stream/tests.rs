//! Resharding keeps the hash key space whole and the lineage honest.

use super::super::hash_key::HashKeyRange;
use super::*;
use proptest::prelude::*;

const NOW: i64 = 1_760_000_000_000;

fn stream(shards: u32) -> Stream {
    let identity = Identity {
        name: "s".to_owned(),
        arn: "arn:aws:kinesis:us-east-1:000000000000:stream/s".to_owned(),
        account: "000000000000".to_owned(),
        created_s: shard::seconds(NOW),
    };
    let settings = Settings {
        mode: Mode::Provisioned,
        retention_hours: MIN_RETENTION_HOURS,
        max_record_kib: MIN_RECORD_KIB,
        tags: BTreeMap::new(),
        key_arn: None,
    };
    Stream::create(identity, shards, settings, NOW, Duration::ZERO)
}

/// The invariants of the topology and of sequence numbers.
fn check(stream: &Stream) {
    let state = stream.state.read();
    let whole = state
        .topology
        .open()
        .iter()
        .map(|shard| shard.range)
        .reduce(|left, right| left.join(right).expect("a hole"));
    assert_eq!(whole, Some(HashKeyRange::ALL));
    for shard in state.topology.all() {
        let is_open = state.topology.open().iter().any(|open| open.index == shard.index);
        assert_eq!(is_open, shard.closed().is_none(), "{}", shard.id());
        for parent in [shard.parent, shard.adjacent_parent].into_iter().flatten() {
            let ending = state.topology.all()[parent as usize]
                .closed()
                .expect("a parent is closed")
                .ending;
            assert!(
                shard.starting() > ending,
                "{} starts above its parent's end",
                shard.id()
            );
        }
    }
}

fn put(stream: &Stream, hash: u128) -> (u32, SequenceNumber) {
    let mut placed = None;
    let record = Incoming {
        key: "k",
        explicit_hash_key: Some(hash),
        data: Data::Raw(b"d"),
    };
    stream.put(NOW, false, [record], |result| placed = result.ok());
    placed.expect("no limits")
}

#[test]
fn a_record_goes_to_the_shard_of_its_hash_key() {
    let stream = stream(4);
    assert_eq!(
        [0, u128::MAX / 4, u128::MAX / 4 + 1, u128::MAX].map(|hash| put(&stream, hash).0),
        [0, 0, 1, 3]
    );
}

#[test]
fn a_split_sends_records_to_the_children_and_the_parent_ends() {
    let stream = stream(1);
    let before = put(&stream, 7);
    stream.split(0, None, NOW).expect("splits");
    let after = put(&stream, 7);
    assert_eq!((before.0, after.0), (0, 1));
    assert!(before.1 < after.1);
    let end = stream.read(0, 0, 100, NOW, false).expect("reads");
    assert!(end.read.at_end);
    assert_eq!(end.children.iter().map(|child| child.index).collect::<Vec<_>>(), [1, 2]);
    assert!(stream.split(0, None, NOW).is_err(), "a closed shard is not split");
    check(&stream);
}

#[test]
fn only_neighbours_merge() {
    let stream = stream(4);
    assert!(stream.merge(0, 2, NOW).is_err());
    stream.merge(0, 1, NOW).expect("merges");
    stream.merge(3, 2, NOW).expect("merges, whichever is named first");
    assert_eq!(stream.open_shard_count(), 2);
    check(&stream);
}

#[test]
fn a_stream_grows_to_double_and_shrinks_to_half_at_most() {
    let stream = stream(4);
    for refused in [1, 9] {
        let error = stream.resize(refused, NOW, false).expect_err("out of bounds");
        assert_eq!(error.kind, ErrorKind::LimitExceeded);
    }
    assert_eq!(stream.resize(8, NOW, false), Ok(4));
    assert_eq!(stream.resize(5, NOW, false), Ok(8));
    assert_eq!(stream.open_shard_count(), 5);
    check(&stream);
}

#[test]
fn a_closed_shard_is_forgotten_when_its_records_are_too_old() {
    let stream = stream(1);
    put(&stream, 1);
    stream.split(0, None, NOW).expect("splits");
    let later = NOW + 24 * HOUR_MS;
    assert_eq!(stream.shards(later).len(), 3);
    assert_eq!(stream.shards(later + 1).len(), 2);
    assert_eq!(
        stream.shard(0, later + 1).expect_err("gone").kind,
        ErrorKind::ResourceNotFound
    );
}

#[derive(Clone, Debug)]
enum Step {
    Split(prop::sample::Index, u128),
    Merge(prop::sample::Index),
    Resize(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (any::<prop::sample::Index>(), any::<u128>()).prop_map(|(shard, at)| Step::Split(shard, at)),
        any::<prop::sample::Index>().prop_map(Step::Merge),
        (1u32..12).prop_map(Step::Resize),
    ]
}

proptest! {
    #[test]
    fn any_history_of_reshards_keeps_the_invariants(start in 1u32..6, steps in prop::collection::vec(step(), 1..12)) {
        let stream = stream(start);
        for step in steps {
            let open: Vec<_> = stream.state.read().topology.open().iter().map(|shard| (shard.index, shard.range)).collect();
            // Steps that the service would refuse are refused here too and change nothing.
            match step {
                Step::Split(which, at) => {
                    let (index, range) = open[which.index(open.len())];
                    let width = range.end_inclusive - range.start_inclusive;
                    drop(stream.split(index, Some(range.start_inclusive + at % width.max(1)), NOW));
                }
                Step::Merge(which) => {
                    let at = which.index(open.len());
                    if let [left, right, ..] = &open[at..] {
                        drop(stream.merge(left.0, right.0, NOW));
                    }
                }
                Step::Resize(target) => {
                    if stream.resize(target, NOW, false).is_ok() {
                        let state = stream.state.read();
                        let now: Vec<_> = state.topology.open().iter().map(|shard| shard.range).collect();
                        prop_assert_eq!(now, HashKeyRange::uniform(target).collect::<Vec<_>>());
                    }
                }
            }
            check(&stream);
        }
    }
}

//! What others pack is unpacked, and what is damaged, hostile or only looks packed is told from it. Aggregates are made with prost
//! here, from the schema that the Kinesis Producer Library documents, and by a library of AWS in the integration tests.

use std::io::Write as _;

use md5::{Digest as _, Md5};
use proptest::prelude::*;
use prost::Message as _;

use super::*;

#[derive(Clone, PartialEq, prost::Message)]
struct AggregatedRecord {
    #[prost(string, repeated, tag = "1")]
    partition_key_table: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    explicit_hash_key_table: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    records: Vec<UserRecord>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UserRecord {
    #[prost(uint64, required, tag = "1")]
    partition_key_index: u64,
    #[prost(uint64, optional, tag = "2")]
    explicit_hash_key_index: Option<u64>,
    #[prost(bytes, required, tag = "3")]
    data: Vec<u8>,
    #[prost(message, repeated, tag = "4")]
    tags: Vec<Tag>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Tag {
    #[prost(string, required, tag = "1")]
    key: String,
    #[prost(string, optional, tag = "2")]
    value: Option<String>,
}

fn aggregate(messages: &[(&str, &[u8])]) -> AggregatedRecord {
    AggregatedRecord {
        partition_key_table: messages.iter().map(|(key, _)| (*key).to_owned()).collect(),
        explicit_hash_key_table: vec!["0".to_owned()],
        records: (0..)
            .zip(messages)
            .map(|(index, (_, data))| UserRecord {
                partition_key_index: index,
                explicit_hash_key_index: (index % 2 == 0).then_some(0),
                data: data.to_vec(),
                tags: vec![Tag {
                    key: "k".to_owned(),
                    value: None,
                }],
            })
            .collect(),
    }
}

fn signed(body: &[u8]) -> Vec<u8> {
    [b"\xF3\x89\x9A\xC2", body, &Md5::digest(body)[..]].concat()
}

/// An aggregate of so many messages `{"a":1}`, of which each says that its hash key is this.
pub(in crate::decode) fn packed_with_hash_keys(keys: &[u128]) -> Vec<u8> {
    let mut record = aggregate(&vec![("k", b"{\"a\":1}".as_slice()); keys.len()]);
    record.partition_key_table.truncate(1);
    record.explicit_hash_key_table = keys.iter().map(u128::to_string).collect();
    for (index, message) in (0..).zip(&mut record.records) {
        message.partition_key_index = 0;
        message.explicit_hash_key_index = Some(index);
        message.tags.clear();
    }
    signed(&record.encode_to_vec())
}

/// An aggregate of these messages, as a producer sends it.
pub(in crate::decode) fn packed(messages: &[(&str, &[u8])]) -> Vec<u8> {
    signed(&aggregate(messages).encode_to_vec())
}

/// Messages, and the classes of what is wrong.
fn unpack(record: &[u8], is_text: bool) -> (Vec<(String, Vec<u8>)>, Vec<&'static str>) {
    let (mut messages, mut wrong) = (Vec::new(), Vec::new());
    let whole = Message {
        partition_key: b"own",
        bytes: record,
    };
    Unpacker::default().each(whole, how(is_text), &mut |message, rejection| match rejection {
        Some(rejection) => {
            assert_eq!(
                std::str::from_utf8(message.partition_key).ok().map(str::is_empty),
                Some(false)
            );
            wrong.push(rejection.kind.as_str());
        }
        None => {
            let key = String::from_utf8(message.partition_key.to_vec()).unwrap();
            messages.push((key, message.bytes.to_vec()));
        }
    });
    (messages, wrong)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn snappy(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = snap::write::FrameEncoder::new(Vec::new());
    encoder.write_all(bytes).unwrap();
    encoder.into_inner().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

fn own(bytes: &[u8]) -> (Vec<(String, Vec<u8>)>, Vec<&'static str>) {
    (vec![("own".to_owned(), bytes.to_vec())], vec![])
}

#[test]
fn what_is_compressed_is_decompressed() {
    let text = br#"{"a":1,"b":"some text, some text, some text"}"#.repeat(100);
    for packed in [
        gzip(&text),
        zlib(&text, 1),
        zlib(&text, 6),
        zlib(&text, 9),
        zstd(&text),
        lz4(&text),
        snappy(&text),
    ] {
        assert!(may_be_packed(&packed));
        assert_eq!(unpack(&packed, false), own(&text));
        // Some write several after each other.
        if packed[0] != 0x78 {
            assert_eq!(
                unpack(&packed.repeat(2), false),
                own(&text.repeat(2)),
                "{:x?}",
                &packed[..4]
            );
        }
        // The last bytes are a checksum, or were needed.
        let cut = &packed[..packed.len() - 9];
        assert_eq!(unpack(cut, false).1, ["damaged_compression"], "{:x?}", &packed[..4]);
        let longer = [&packed[..], b"{}"].concat();
        assert_eq!(unpack(&longer, false).1, ["damaged_compression"], "{:x?}", &packed[..4]);
        // What is compressed twice was meant so.
        assert_eq!(unpack(&gzip(&packed), false), own(&packed));
    }
}

#[test]
fn text_is_left_alone() {
    for text in [
        &b""[..],
        b"{}",
        b"x^2 + y^2",
        b"\x04\x22",
        b"(\xb5/",
        b"\x1f\x8b\x00",
        b"\xff\x06\x00\x00sNaPpX",
    ] {
        assert_eq!(unpack(text, true), own(text));
    }
    assert_eq!(unpack(b"x^2 + y^2", false).1, ["damaged_compression"]);
}

#[test]
fn what_inflates_too_much_is_refused() {
    let zeros = vec![b' '; MAX_INFLATED_BYTES + 1];
    let limit = &zeros[..MAX_INFLATED_BYTES];
    for packed in [gzip(&zeros), zlib(&zeros, 6), zstd(&zeros), lz4(&zeros)] {
        assert!(packed.len() < 2 << 20, "{}", packed.len());
        assert_eq!(unpack(&packed, false).1, ["too_large"]);
    }
    assert_eq!(unpack(&gzip(limit), false).0[0].1.len(), MAX_INFLATED_BYTES);
    // A frame that wants a window of 2 GiB gets none.
    let huge = b"\x28\xB5\x2F\xFD\x00\xA8\x01\x00\x00";
    assert_eq!(unpack(huge, false).1, ["damaged_compression"]);
}

#[test]
fn aggregates_are_split() {
    let gzipped = gzip(b"{\"c\":3}");
    let body = aggregate(&[("k1", b"{\"a\":1}"), ("k2", b""), ("k3", &gzipped)]).encode_to_vec();
    let wanted: Vec<(String, Vec<u8>)> = [("k1", &b"{\"a\":1}"[..]), ("k2", b""), ("k3", b"{\"c\":3}")]
        .map(|(key, data)| (key.to_owned(), data.to_vec()))
        .to_vec();
    assert_eq!(unpack(&signed(&body), false), (wanted.clone(), vec![]));
    // Fields in any order, and fields that nobody knows, of every wire type.
    let parts = aggregate(&[("k1", b"{\"a\":1}"), ("k2", b""), ("k3", &gzipped)]);
    let records = AggregatedRecord {
        partition_key_table: vec![],
        ..parts.clone()
    };
    let keys = AggregatedRecord {
        records: vec![],
        explicit_hash_key_table: vec![],
        ..parts
    };
    let unknown = [
        &b"\x78\x05"[..],
        b"\x7d\x01\x02\x03\x04",
        b"\x79\x01\x02\x03\x04\x05\x06\x07\x08",
        b"\x7a\x02ab",
    ]
    .concat();
    let body = [&unknown[..], &records.encode_to_vec(), &unknown, &keys.encode_to_vec()].concat();
    assert_eq!(unpack(&signed(&body), false), (wanted, vec![]));
    assert_eq!(unpack(&signed(b""), false).1, ["empty_record"]);
}

#[test]
fn damaged_aggregates_are_refused_whole() {
    let good = aggregate(&[("k1", b"{\"a\":1}"), ("k2", b"{\"a\":2}")]);
    let body = good.encode_to_vec();
    let record = signed(&body);
    for at in 4..record.len() {
        let mut damaged = record.clone();
        damaged[at] ^= 1;
        assert_eq!(unpack(&damaged, false), (vec![], vec!["damaged_aggregate"]), "{at}");
        assert_eq!(
            unpack(&record[..at], false),
            (vec![], vec!["damaged_aggregate"]),
            "{at}"
        );
    }
    let no_key = AggregatedRecord {
        partition_key_table: vec!["k1".to_owned()],
        ..good
    };
    // A message without data, a group, a length past the end, a number without an end, a key that is not UTF-8.
    for body in [
        no_key.encode_to_vec(),
        b"\x0a\x01k\x1a\x02\x08\x00".to_vec(),
        b"\x0b".to_vec(),
        b"\x0a\x7f".to_vec(),
        [0xFF; 20].to_vec(),
        b"\x0a\x01\xff\x1a\x04\x08\x00\x1a\x00".to_vec(),
        b"\x0d\x00".to_vec(),
    ] {
        assert_eq!(
            unpack(&signed(&body), false),
            (vec![], vec!["damaged_aggregate"]),
            "{body:x?}"
        );
    }
    // Many fields cost no stack.
    let many = b"\x7d\x01\x02\x03\x04".repeat(1 << 20);
    assert_eq!(unpack(&signed(&many), false).1, ["empty_record"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn aggregates_are_what_prost_makes_of_them(messages in prop::collection::vec((".{1,20}", prop::collection::vec(any::<u8>().prop_filter("packed", |byte| !may_be_packed(&[*byte])), 0..50)), 1..10)) {
        let messages: Vec<(&str, &[u8])> = messages.iter().map(|(key, data)| (key.as_str(), data.as_slice())).collect();
        let record = signed(&aggregate(&messages).encode_to_vec());
        let wanted: Vec<(String, Vec<u8>)> = messages.iter().map(|(key, data)| ((*key).to_owned(), data.to_vec())).collect();
        prop_assert_eq!(unpack(&record, false), (wanted, vec![]));
    }

    #[test]
    fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..200), magic in 0usize..7) {
        let magics: [&[u8]; 7] = [b"\xF3\x89\x9A\xC2", b"\x1f\x8b\x08", b"\x78\x9c", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"\xff\x06\x00\x00sNaPpY", b""];
        unpack(&[magics[magic], &body].concat(), false);
        unpack(&signed(&body), true);
    }
}

fn how(is_text: bool) -> How {
    How {
        is_text,
        hash_keys: None,
        on_out_of_range: OutOfRangePolicy::Keep,
    }
}

#[test]
fn messages_of_other_shards_are_kept_dropped_or_refused_and_counted() {
    let md5 = |key: &str| u128::from_be_bytes(Md5::digest(key).into());
    let mut record = aggregate(&[("a", b"1"), ("b", b"2"), ("c", b"3"), ("d", b"4")]);
    // An explicit key, one that is none, one that is not in the table, and none.
    record.explicit_hash_key_table = vec!["7".to_owned(), "seven".to_owned()];
    for (message, index) in record.records.iter_mut().zip([Some(0), Some(1), Some(9), None]) {
        message.explicit_hash_key_index = index;
    }
    let record = signed(&record.encode_to_vec());
    let unpack = |hash_keys: Option<HashKeyRange>, on_out_of_range| {
        let (mut given, mut refused) = (Vec::new(), Vec::new());
        let whole = Message {
            partition_key: b"own",
            bytes: &record,
        };
        let how = How {
            is_text: false,
            hash_keys,
            on_out_of_range,
        };
        let strangers = Unpacker::default().each(whole, how, &mut |message, rejection| {
            let key = String::from_utf8(message.partition_key.to_vec()).unwrap();
            match rejection {
                None => given.push(key),
                Some(rejection) => refused.push((key, rejection.kind.as_str(), rejection.message)),
            }
        });
        (strangers, given.concat(), refused)
    };
    let range = |first, last| Some(HashKeyRange { first, last });
    use OutOfRangePolicy::{Drop, Keep, Reject};
    for policy in [Keep, Drop, Reject] {
        assert_eq!(unpack(None, policy).1, "abcd", "nothing is known of the shard");
        assert_eq!(unpack(range(0, u128::MAX), policy).1, "abcd");
        let own = range(7, 7);
        let (strangers, given, refused) = unpack(own, policy);
        assert_eq!(strangers, 3);
        match policy {
            Keep => assert_eq!((given.as_str(), refused.len()), ("abcd", 0)),
            Drop => assert_eq!((given.as_str(), refused.len()), ("a", 0)),
            Reject => {
                assert_eq!((given.as_str(), refused.len()), ("a", 3));
                assert_eq!((refused[0].0.as_str(), refused[0].1), ("b", "out_of_hash_range"));
                assert!(refused[0].2.contains(&md5("b").to_string()), "{}", refused[0].2);
            }
        }
        // Both ends belong to the shard.
        let [low, high] = [md5("b").min(md5("c")), md5("b").max(md5("c"))];
        let given = unpack(range(low, high), policy).1;
        assert!(given.contains('b') && given.contains('c'));
        assert!(
            !unpack(range(low + 1, high), Drop).1.contains('b') || !unpack(range(low, high - 1), Drop).1.contains('b')
        );
    }
    // One that is not split belongs to nobody else.
    assert_eq!(aggregate::hash_of(b"a"), md5("a"));
}

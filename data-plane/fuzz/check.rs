//! What must hold of the decoder for any bytes. The fuzz target and the test over its corpus both call [`check`].
//!
//! An input is one byte that chooses a table, and up to four records with the byte 0x1E (the record separator, which no
//! JSON text can hold) between them.

use std::sync::{Arc, OnceLock};

use millrace_common::clickhouse::DataType;
use millrace_common::pipe::Envelope;
use millrace_data_plane::batch::block::Block;
use millrace_data_plane::decode::{
    Decoder, FieldSource, MappedColumn, Options, Plan, RecordMeta, Rejection, RejectionKind,
};

/// Between two records of an input.
const SEPARATOR: u8 = 0x1e;
/// Records past these are left out, so that an input's cost is bounded by its length.
const MAX_RECORDS: usize = 4;

/// The tables, as (name, type) of their columns; a name that ends with `=` has a DEFAULT. Together they hold every type.
const TABLES: &[&[(&str, &str)]] = &[
    &[
        ("a", "UInt8"),
        ("b", "Int16"),
        ("c", "UInt32"),
        ("d", "Int64"),
        ("e=", "UInt64"),
        ("f", "Int8"),
    ],
    &[
        ("a", "UInt128"),
        ("b", "Int128"),
        ("c", "UInt256"),
        ("d=", "Int256"),
        ("e", "UInt16"),
        ("f", "Int32"),
    ],
    &[
        ("a", "Float64"),
        ("b", "Float32"),
        ("c", "BFloat16"),
        ("d", "Bool"),
        ("e=", "Nullable(Float64)"),
    ],
    &[
        ("a", "Decimal(9, 2)"),
        ("b", "Decimal(18, 18)"),
        ("c", "Decimal(38, 10)"),
        ("d=", "Decimal(76, 20)"),
    ],
    &[
        ("a", "String"),
        ("b=", "String"),
        ("c", "FixedString(3)"),
        ("d", "LowCardinality(String)"),
        ("e", "Nullable(String)"),
    ],
    &[
        ("a", "Date"),
        ("b", "Date32"),
        ("c", "Time"),
        ("d", "Time64(3)"),
        ("e=", "Date"),
    ],
    &[
        ("a", "DateTime('UTC')"),
        ("b", "DateTime"),
        ("c", "DateTime64(3, 'America/New_York')"),
        ("d", "DateTime64(9, 'UTC')"),
        ("e=", "DateTime64(0)"),
    ],
    &[
        ("a", "Enum8('a' = 1, 'b' = -2, 'c d' = 3)"),
        ("b", "Enum16('x' = 1000, 'y' = 0)"),
        ("c", "UUID"),
        ("d", "IPv4"),
        ("e=", "IPv6"),
    ],
    &[
        ("a", "LowCardinality(Nullable(String))"),
        ("b=", "LowCardinality(FixedString(2))"),
        ("c", "LowCardinality(UInt64)"),
        ("d", "Nullable(DateTime64(3, 'UTC'))"),
    ],
    &[
        ("a", "Array(UInt8)"),
        ("b", "Array(Array(LowCardinality(String)))"),
        ("c", "Array(Nullable(Float64))"),
        ("d.a", "Array(UInt8)"),
        ("d.b", "Array(String)"),
    ],
    &[
        ("a", "Tuple(UInt8, String)"),
        ("b", "Tuple(a UInt8, `b c` Tuple(d Nullable(Int8), e Array(String)))"),
        ("c", "Nested(a UInt8, b Nested(c LowCardinality(String), d Date))"),
    ],
    &[
        ("a", "Map(String, UInt8)"),
        ("b", "Map(LowCardinality(String), Array(Nullable(Float64)))"),
        ("c", "Map(UUID, Map(Enum8('a' = 0), Tuple(x Date, y Bool)))"),
    ],
    &[
        ("a", "JSON"),
        ("b", "Array(JSON)"),
        ("c=", "JSON"),
        ("d", "Nullable(JSON)"),
    ],
    &[
        ("a", "Variant(Array(UInt8), Bool, DateTime, Float64, String, UInt64)"),
        ("b", "Variant(Int8, UUID)"),
        (
            "c",
            "Array(Variant(Int8, LowCardinality(String), Tuple(a UInt8), UInt64))",
        ),
    ],
    &[("a", "Dynamic"), ("b", "Array(Dynamic)"), ("c", "Map(String, Dynamic)")],
    &[
        ("a", "SimpleAggregateFunction(sum, UInt64)"),
        ("b", "Point"),
        ("c", "Polygon"),
        ("d", "MultiPolygon"),
        ("e", "SimpleAggregateFunction(groupArrayArray, Array(String))"),
    ],
    &[
        ("a.b", "UInt8"),
        ("a.c.d", "String"),
        ("a", "String"),
        ("b.a", "Array(UInt8)"),
        ("b.b", "Array(UInt8)"),
    ],
];

/// What records are wrapped in, and tables for what is inside. They come after [`TABLES`].
const WRAPPED: &[(Envelope, &[(&str, &str)])] = &[
    (
        Envelope::CloudwatchLogs,
        &[
            ("a", "UInt8"),
            ("message", "String"),
            ("_envelope.id", "String"),
            ("_envelope.logGroup", "LowCardinality(String)"),
            ("_envelope.timestamp", "DateTime64(3)"),
        ],
    ),
    (
        Envelope::Eventbridge,
        &[
            ("a", "Array(Int32)"),
            ("b", "JSON"),
            ("_envelope.detail-type", "String"),
        ],
    ),
    (Envelope::Sns, &[("a", "Nullable(String)"), ("message", "String")]),
    (
        Envelope::DynamodbStream,
        &[
            ("id", "UInt64"),
            ("d", "Decimal(76, 20)"),
            ("m", "Map(String, String)"),
            ("l", "Array(String)"),
            ("j", "JSON"),
            ("_envelope", "JSON"),
        ],
    ),
];

/// Panics if one of the decoder's promises is broken by this input.
pub(crate) fn check(data: &[u8]) {
    let Some((table, records)) = data.split_first() else {
        return;
    };
    let number = usize::from(*table) % (TABLES.len() + WRAPPED.len());
    let plan = &plans()[number];
    let records: Vec<&[u8]> = records.split(|byte| *byte == SEPARATOR).take(MAX_RECORDS).collect();
    let mut bench = Bench::new(plan);
    bench.is_wrapped = number >= TABLES.len();
    // Twice, so that each record is read by a decoder that predicts its keys, too.
    for record in records.iter().chain(&records) {
        bench.decode(record);
    }
    bench.same_without_the_rejected();
}

struct Bench<'a> {
    plan: &'a Arc<Plan>,
    decoder: Decoder,
    block: Block,
    accepted: Vec<&'a [u8]>,
    /// What is in the records is no row by itself.
    is_wrapped: bool,
}

impl<'a> Bench<'a> {
    fn new(plan: &'a Arc<Plan>) -> Bench<'a> {
        Bench {
            plan,
            decoder: Decoder::new(plan.clone()),
            block: Block::new(plan),
            accepted: Vec::new(),
            is_wrapped: false,
        }
    }

    fn decode(&mut self, record: &'a [u8]) {
        let (before, rows) = (native(&self.block), self.block.rows());
        let refused = decode(&mut self.decoder, record, &mut self.block);
        let after = native(&self.block);
        assert_eq!(after.len(), self.block.encoded_bytes(), "the size was foretold wrongly");
        if refused.is_empty() {
            self.accepted.push(record);
        } else {
            self.block.truncate(rows);
            assert!(
                before == native(&self.block),
                "a refused document left a trace: {refused:?}"
            );
        }
        let mut fresh = Block::new(self.plan);
        let again = decode(&mut Decoder::new(self.plan.clone()), record, &mut fresh);
        assert_eq!(refused, again, "the verdict depends on the records before");
        if !self.is_wrapped {
            grammar(record, &refused);
        }
    }

    /// A block is a function of the records that are its rows.
    fn same_without_the_rejected(&self) {
        let mut block = Block::new(self.plan);
        let mut decoder = Decoder::new(self.plan.clone());
        for record in &self.accepted {
            let refused = decode(&mut decoder, record, &mut block);
            assert_eq!(refused, [], "the verdict depends on the records before");
        }
        assert!(
            native(&block) == native(&self.block),
            "the rows depend on records that were rejected"
        );
    }
}

/// What is refused of a record: rejection, text, and place. Every document is a row or in it, and nothing is in it twice.
fn decode(decoder: &mut Decoder, record: &[u8], block: &mut Block) -> Vec<(Rejection, Vec<u8>, u64)> {
    let (mut refused, rows) = (Vec::new(), block.rows());
    let documents = decoder.decode(record, &META, block, &mut |part| {
        refused.push((part.rejection, part.text.to_vec(), part.sub_sequence_number));
    });
    assert_eq!(
        block.rows() - rows + refused.len(),
        documents.documents as usize,
        "documents got lost"
    );
    let bytes: usize = refused.iter().map(|(_, text, _)| text.len()).sum();
    assert!(
        bytes <= 2 * documents.bytes.max(record.len()),
        "more is refused than was there"
    );
    refused
}

/// What two other parsers say to the record must agree with the verdict.
fn grammar(record: &[u8], refused: &[(Rejection, Vec<u8>, u64)]) {
    // What begins like something packed may be it, and is no JSON otherwise.
    if matches!(record.first(), Some(0xF3 | 0x1F | 0x78 | 0x28 | 0x04 | 0xFF)) {
        return;
    }
    let is_object = serde_json::from_slice::<serde::de::IgnoredAny>(record).is_ok()
        && record.trim_ascii_start().first() == Some(&b'{');
    let mut is_json = true;
    for (rejection, text, _) in refused {
        match rejection.kind {
            RejectionKind::MalformedJson => assert!(
                !is_object || may_have_lone_surrogate(record),
                "a JSON object was called malformed: {rejection:?}"
            ),
            RejectionKind::EmptyRecord => {
                let is_space = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'[' | b']');
                assert!(text.iter().all(is_space), "not empty: {rejection:?}");
            }
            RejectionKind::InvalidUtf8 => assert!(std::str::from_utf8(record).is_err(), "UTF-8: {rejection:?}"),
            RejectionKind::TooDeep => assert!(
                record.iter().filter(|byte| matches!(byte, b'[' | b'{')).count() > MAX_DEPTH,
                "not deep: {rejection:?}"
            ),
            // The rest was not read.
            RejectionKind::TooManyDocuments => {}
            _ => continue,
        }
        is_json = false;
    }
    if !is_json {
        return;
    }
    assert!(
        std::str::from_utf8(record).is_ok(),
        "bytes that are not UTF-8 were taken"
    );
    let documents = documents(record);
    assert!(
        documents.is_some(),
        "serde_json refuses what the decoder takes for JSON: {refused:?}"
    );
    for document in documents.unwrap_or_default() {
        if !has_large_number(document) && !may_have_lone_surrogate(document) {
            let parsed = simd_json::to_tape(&mut document.to_vec()).map(|_| ());
            assert!(
                parsed.is_ok(),
                "simd-json refuses what the decoder takes for JSON: {parsed:?}"
            );
        }
    }
}

/// The documents of a record as serde_json finds them; `None` if there is something else in it.
fn documents(record: &[u8]) -> Option<Vec<&[u8]>> {
    let (mut documents, mut rest, mut in_array) = (Vec::new(), record.trim_ascii_start(), false);
    while let Some(first) = rest.first() {
        match first {
            b'{' => {
                let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<serde::de::IgnoredAny>();
                values.next()?.ok()?;
                let (document, after) = rest.split_at(values.byte_offset());
                documents.push(document);
                rest = after.trim_ascii_start();
                rest = rest.strip_prefix(b",").unwrap_or(rest);
            }
            b'[' if !in_array => {
                in_array = true;
                rest = &rest[1..];
            }
            b']' if in_array => {
                in_array = false;
                rest = &rest[1..];
            }
            _ => return None,
        }
        rest = rest.trim_ascii_start();
    }
    Some(documents)
}

/// Levels of nesting that the decoder takes.
const MAX_DEPTH: usize = millrace_data_plane::decode::MAX_DEPTH as usize;

/// serde_json passes over surrogates where it keeps no string.
fn may_have_lone_surrogate(record: &[u8]) -> bool {
    let mut windows = record.windows(3);
    windows.any(|window| window[0] == b'u' && matches!(window[1], b'd' | b'D') && window[2].is_ascii_alphanumeric())
}

/// simd-json refuses numbers that neither 64 bits nor a double can hold; a column may be wider than that, and an unknown key
/// need not be a number at all.
fn has_large_number(record: &[u8]) -> bool {
    let mut digits = 0;
    record.windows(2).any(|window| {
        digits = if window[0].is_ascii_digit() { digits + 1 } else { 0 };
        digits >= 18
            || (matches!(window[0], b'e' | b'E') && (window[1].is_ascii_digit() || matches!(window[1], b'+' | b'-')))
    })
}

const META: RecordMeta<'static> = RecordMeta {
    partition_key: b"key",
    arrival_millis: 1_700_000_000_123,
    stream: "events",
    shard_id: "shardId-000000000000",
    sequence_number: b"49590338271490256608559692538361571095921575989136588898",
    sub_sequence_number: 0,
    hash_keys: None,
};

fn native(block: &Block) -> Vec<u8> {
    let mut native = Vec::new();
    block.write_native(&mut native);
    native
}

fn plans() -> &'static [Arc<Plan>] {
    static PLANS: OnceLock<Vec<Arc<Plan>>> = OnceLock::new();
    PLANS.get_or_init(|| {
        let plain = TABLES.iter().map(|table| plan(table, None));
        let wrapped = WRAPPED.iter().map(|(envelope, table)| plan(table, Some(*envelope)));
        plain.chain(wrapped).map(Arc::new).collect()
    })
}

#[allow(clippy::expect_used, reason = "the tables are constants")]
fn plan(table: &[(&str, &str)], envelope: Option<Envelope>) -> Plan {
    let columns = table.iter().map(|(name, data_type)| MappedColumn {
        name: name.trim_end_matches('=').to_owned(),
        data_type: data_type.parse::<DataType>().expect("a type of the list"),
        has_default: name.ends_with('='),
        source: FieldSource::Key(name.trim_end_matches('=').to_owned()),
        required: false,
    });
    let options = Options {
        envelope,
        ..Options::default()
    };
    Plan::compile_with(columns.collect(), &options).expect("a table of the list")
}

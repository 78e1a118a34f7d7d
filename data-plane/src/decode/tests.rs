//! Records in, rows or verdicts out. What each type makes of each value is compared with ClickHouse itself in the
//! integration tests; here it is about records, keys, taking back, and bytes that nobody meant.

use proptest::prelude::*;

use super::*;

mod documents;
mod mapping;
use crate::batch::block::Value;

const META: RecordMeta<'static> = RecordMeta {
    partition_key: b"key-1",
    arrival_millis: 1_700_000_000_123,
    stream: "events",
    shard_id: "shardId-000000000000",
    sequence_number: b"49590338271490256608559692538361571095921575989136588898",
    sub_sequence_number: 0,
    hash_keys: None,
};

/// A plan of columns given as name, type and source; a virtual column's name is its source.
fn plan(columns: &[(&str, &str, &str)]) -> Arc<Plan> {
    let column = |(name, data_type, source): &(&str, &str, &str)| MappedColumn {
        name: (*name).to_owned(),
        data_type: data_type.parse().unwrap(),
        has_default: false,
        source: source
            .parse()
            .map_or_else(|_| FieldSource::Key((*source).to_owned()), FieldSource::Virtual),
        required: false,
    };
    Arc::new(Plan::compile(columns.iter().map(column).collect()).unwrap())
}

/// One column of every kind that has to be cut back in its own way.
fn wide_plan() -> Arc<Plan> {
    plan(&[
        ("a", "Int32", "a"),
        ("b", "String", "b"),
        ("c", "LowCardinality(String)", "c"),
        ("d", "Array(LowCardinality(Nullable(String)))", "d"),
        ("e", "Map(String, Nullable(UInt8))", "e"),
        ("f", "Tuple(x UInt8, y Array(Tuple(z String)))", "f"),
        ("g", "Variant(UInt8, String, Array(UInt8))", "g"),
        ("h", "Dynamic", "h"),
        ("i", "JSON", "i"),
        ("j", "Nullable(DateTime64(3))", "j"),
        ("k", "Array(Dynamic)", "k"),
        ("l", "UInt8", "l"),
        ("m", "UUID", "deep.er.m"),
    ])
}

struct Bench {
    decoder: Decoder,
    block: Block,
}

impl Bench {
    fn new(plan: &Arc<Plan>) -> Bench {
        Bench {
            decoder: Decoder::new(plan.clone()),
            block: Block::new(plan),
        }
    }

    fn decode(&mut self, record: &[u8]) -> Result<(), Rejection> {
        let rows = self.block.rows();
        let verdict = self.decoder.decode_whole(record, &META, &mut self.block);
        assert_eq!(self.block.rows(), rows + usize::from(verdict.is_ok()));
        verdict
    }

    fn native(&self) -> Vec<u8> {
        let mut native = Vec::new();
        self.block.write_native(&mut native);
        assert_eq!(native.len(), self.block.encoded_bytes());
        native
    }
}

fn verdict(plan: &Arc<Plan>, record: &[u8]) -> (RejectionKind, String, String) {
    let mut bench = Bench::new(plan);
    let rejection = bench.decode(record).expect_err("the record should be refused");
    assert_eq!(bench.native(), Bench::new(plan).native());
    (rejection.kind, rejection.field_path, rejection.message)
}

#[test]
fn keys_are_found_in_any_order_and_unknown_ones_ignored() {
    let plan = plan(&[("a", "UInt8", "a"), ("b", "String", "b"), ("c", "UInt8", "c.d")]);
    let mut bench = Bench::new(&plan);
    let records = [
        r#"{"a":1,"b":"x","c":{"d":3}}"#,
        r#"{"a":1,"b":"x","c":{"d":3}}"#,
        r#" { "b" : "x" , "a" : 1 , "unknown" : [ { "a" : null } ] , "c" : { "e":{}, "d" : 3 } } "#,
        r#"{"unknown":{"a":9},"c.d":3,"c":{"d":4},"\u0061":1,"b":"x"}"#,
        r#"{"a-key-that-is-much-longer-than-any-that-is-predicted":0,"c":{"d":3},"b":"x","a":1}"#,
    ];
    for record in records {
        bench.decode(record.as_bytes()).unwrap();
    }
    let mut wanted = Block::new(&plan);
    for _ in records {
        wanted
            .append_row(&[Value::Unsigned(1), Value::Bytes(b"x"), Value::Unsigned(3)])
            .unwrap();
    }
    assert_eq!(bench.block.digest(), wanted.digest());
}

#[test]
fn paths_lead_nowhere_quietly() {
    let plan = plan(&[
        ("a", "Nullable(UInt8)", "x.y.z"),
        ("b", "String", "x.y"),
        ("c", "String", "x"),
    ]);
    let mut bench = Bench::new(&plan);
    for record in [
        "{}",
        r#"{"x":null}"#,
        r#"{"x":[]}"#,
        r#"{"x":{"y":7}}"#,
        r#"{"x":{"y":{"z":8}}}"#,
        r#"{"x":{}}"#,
    ] {
        bench.decode(record.as_bytes()).unwrap();
    }
    let mut wanted = Block::new(&plan);
    let row = |z: Option<u64>, y: &'static str, x: &'static str| {
        [
            z.map_or(Value::Default, Value::Unsigned),
            Value::Bytes(y.as_bytes()),
            Value::Bytes(x.as_bytes()),
        ]
    };
    wanted.append_row(&row(None, "", "")).unwrap();
    wanted.append_row(&row(None, "", "")).unwrap();
    wanted.append_row(&row(None, "", "[]")).unwrap();
    wanted.append_row(&row(None, "7", r#"{"y":7}"#)).unwrap();
    wanted
        .append_row(&row(Some(8), r#"{"z":8}"#, r#"{"y":{"z":8}}"#))
        .unwrap();
    wanted.append_row(&row(None, "", "{}")).unwrap();
    assert_eq!(bench.block.digest(), wanted.digest());
}

#[test]
fn one_key_can_fill_several_columns() {
    let plan = plan(&[("n", "UInt64", "id"), ("t", "String", "id")]);
    let mut bench = Bench::new(&plan);
    bench.decode(br#"{"id":18446744073709551615}"#).unwrap();
    let mut wanted = Block::new(&plan);
    wanted
        .append_row(&[Value::Unsigned(u64::MAX), Value::Bytes(b"18446744073709551615")])
        .unwrap();
    assert_eq!(bench.block.digest(), wanted.digest());
}

#[test]
fn verdicts_are_useful() {
    use RejectionKind::{DuplicateKey, EmptyRecord, InvalidUtf8, MalformedJson, OutOfRange, TooDeep, TypeMismatch};
    let deep = format!("{{\"unknown\":{}}}", "[".repeat(10_000));
    let cases: &[(&[u8], RejectionKind, &str, &str)] = &[
        (b"", EmptyRecord, "", "the record is empty"),
        (b" \n\t", EmptyRecord, "", "the record holds only white space"),
        (
            b"{\"a\":1,\"b\":\"\xff\"}",
            InvalidUtf8,
            "",
            "the record is not UTF-8: invalid byte at 12 of 15",
        ),
        (b"\xef\xbb\xbf{}", MalformedJson, "", "byte order mark"),
        (b"[]", EmptyRecord, "", "the record is an empty array"),
        (
            b"[{}",
            MalformedJson,
            "",
            "the array of the record's documents is not closed (byte 3 of 3)",
        ),
        (
            b"7",
            MalformedJson,
            "",
            "expected a JSON object, found `7` (byte 0 of 1)",
        ),
        (
            b"{}{}}",
            MalformedJson,
            "",
            "expected a JSON object, found `}` (byte 4 of 5)",
        ),
        (
            b"{\"a\":1",
            MalformedJson,
            "",
            "expected `,` or `}`, found the end of the record (byte 6 of 6)",
        ),
        (b"{\"a\":}", MalformedJson, "a", "expected a value, found `}`"),
        (
            b"{\"a\":01}",
            MalformedJson,
            "a",
            "a number is not written as JSON wants it",
        ),
        (b"{\"zz\":[1,}]}", MalformedJson, "", "expected a value, found `}`"),
        (
            deep.as_bytes(),
            TooDeep,
            "",
            "arrays and objects are nested deeper than 128 levels",
        ),
        (br#"{"a":"x"}"#, TypeMismatch, "a", r#""x" is not an integer"#),
        (br#"{"a":1.5}"#, TypeMismatch, "a", "1.5 is not a whole number"),
        (
            br#"{"a":2147483648}"#,
            OutOfRange,
            "a",
            "2147483648 is not between -2147483648 and 2147483647 (Int32)",
        ),
        (
            br#"{"l":1,"l":1}"#,
            DuplicateKey,
            "l",
            "the key `l` stands twice in the record",
        ),
        (
            br#"{"d":["x",{"y":1},3],"e":{"k":"v"}}"#,
            TypeMismatch,
            "e.k",
            r#""v" is not an integer"#,
        ),
        (
            br#"{"f":{"y":[{"z":1},{"z":2,"z":3}]}}"#,
            DuplicateKey,
            "f.y[1]",
            "the key `z` stands twice in one object",
        ),
        (br#"{"f":{"x":[1]}}"#, TypeMismatch, "f.x", "[1] is not an integer"),
        (
            br#"{"f":[1]}"#,
            TypeMismatch,
            "f",
            "[1] is not an object (of the tuple's elements)",
        ),
        (br#"{"d":"x"}"#, TypeMismatch, "d", r#""x" is not an array"#),
        (
            br#"{"i":{"a":1e400}}"#,
            OutOfRange,
            "i",
            "1e400 is too large for a number in a JSON column",
        ),
        (
            br#"{"i":{"a.b":1,"a":{"b":2}}}"#,
            DuplicateKey,
            "i",
            "a path stands twice in one object of a JSON column",
        ),
        (br#"{"i":[]}"#, TypeMismatch, "i", "[] is not an object"),
        (br#"{"k":[{"":1}]}"#, TypeMismatch, "k[0]", "has an empty key"),
        (
            br#"{"deep":{"er":{"m":"nope"}}}"#,
            TypeMismatch,
            "m",
            r#""nope" is not a UUID"#,
        ),
        // What is broken further on makes the record no JSON at all.
        (
            br#"{"a":"x","b":nope}"#,
            MalformedJson,
            "",
            "expected a value, found `n`",
        ),
    ];
    let plan = wide_plan();
    for (record, kind, path, message) in cases {
        let shown = String::from_utf8_lossy(&record[..record.len().min(60)]).into_owned();
        let (found_kind, found_path, found_message) = verdict(&plan, record);
        assert_eq!(
            (found_kind, found_path.as_str()),
            (*kind, *path),
            "{shown}: {found_message}"
        );
        assert!(found_message.contains(message), "{shown}: {found_message}");
    }
}

#[test]
fn depth_costs_no_stack_wherever_it_is() {
    let plan = wide_plan();
    for key in ["b", "c", "d", "e", "f", "g", "h", "i", "k", "deep", "unknown"] {
        for open in ["[", "{\"a\":", "[{\"x\":"] {
            let record = format!("{{\"{key}\":{}", open.repeat(100_000));
            let (kind, ..) = verdict(&plan, record.as_bytes());
            assert!(
                matches!(kind, RejectionKind::TooDeep | RejectionKind::TypeMismatch),
                "{key} {open} {kind}"
            );
        }
    }
    let nested = |depth: usize| format!("{{\"b\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    assert!(
        Bench::new(&plan)
            .decode(nested(MAX_DEPTH as usize - 1).as_bytes())
            .is_ok()
    );
    assert_eq!(
        verdict(&plan, nested(MAX_DEPTH as usize).as_bytes()).0,
        RejectionKind::TooDeep
    );
}

#[test]
fn large_records_are_rows() {
    let plan = wide_plan();
    let mut bench = Bench::new(&plan);
    let keys: String = (0..100_000).map(|n| format!("\"key{n}\":{n},")).collect();
    bench.decode(format!("{{{keys}\"a\":1}}").as_bytes()).unwrap();
    let long = "é".repeat(5 << 20);
    bench.decode(format!("{{\"b\":\"{long}\"}}").as_bytes()).unwrap();
    assert!(bench.block.encoded_bytes() > 10 << 20);
    let (kind, ..) = verdict(&plan, format!("{{\"a\":{}}}", "9".repeat(1 << 20)).as_bytes());
    assert_eq!(kind, RejectionKind::OutOfRange);
}

#[test]
fn many_names_take_linear_time_in_a_dynamic_column() {
    const MOST_SECONDS: u64 = 20;
    let plan = plan(&[("d", "Dynamic", "d")]);
    let mut bench = Bench::new(&plan);
    // Names that only differ in the middle, in falling order: what a record brings is not chosen by who wrote the mapping.
    let names = |n: u32| format!("\"aaaaaaaaaa{n:06}bbbbbbbbbb\":1");
    let keys: Vec<String> = (0..20_000).rev().map(names).collect();
    let began = std::time::Instant::now();
    bench
        .decode(format!("{{\"d\":{{{}}}}}", keys.join(",")).as_bytes())
        .unwrap();
    let took = began.elapsed();
    assert!(took.as_secs() < MOST_SECONDS, "{took:?}");
}

#[test]
fn only_virtual_columns_need_no_json() {
    let plan = plan(&[
        ("raw", "String", "_raw_message"),
        ("key", "LowCardinality(String)", "_key"),
        ("t", "DateTime64(3)", "_timestamp"),
    ]);
    assert!(!plan.parses_json());
    let mut bench = Bench::new(&plan);
    let mut wanted = Block::new(&plan);
    for record in [&b"not \xff json"[..], b"", b"{}"] {
        bench.decode(record).unwrap();
        wanted
            .append_row(&[
                Value::Bytes(record),
                Value::Bytes(b"key-1"),
                Value::Signed(META.arrival_millis),
            ])
            .unwrap();
    }
    assert_eq!(bench.block.digest(), wanted.digest());
}

#[test]
fn the_raw_message_is_the_record_byte_by_byte() {
    let plan = plan(&[("raw", "String", "_raw_message"), ("b", "String", "b")]);
    let mut bench = Bench::new(&plan);
    let record = br#" {"b" : "\u0041\n"} "#;
    bench.decode(record).unwrap();
    let mut wanted = Block::new(&plan);
    wanted
        .append_row(&[Value::Bytes(record), Value::Bytes(b"A\n")])
        .unwrap();
    assert_eq!(bench.block.digest(), wanted.digest());
}

#[test]
fn keys_that_a_column_cannot_hold_are_named() {
    let plan = plan(&[("k", "UInt64", "_key"), ("a", "UInt8", "a")]);
    let (kind, path, message) = verdict(&plan, br#"{"a":1}"#);
    assert_eq!(
        (kind, path.as_str(), message.as_str()),
        (RejectionKind::TypeMismatch, "k", "_key is not an integer")
    );
}

#[test]
fn mappings_that_cannot_work_are_refused() {
    let compile = |columns: &[(&str, &str, &str)], has_default: bool| {
        let column = |(name, data_type, source): &(&str, &str, &str)| MappedColumn {
            name: (*name).to_owned(),
            data_type: data_type.parse().unwrap(),
            has_default,
            source: source
                .parse()
                .map_or_else(|_| FieldSource::Key((*source).to_owned()), FieldSource::Virtual),
            required: false,
        };
        Plan::compile(columns.iter().map(column).collect())
    };
    let error = |columns| compile(columns, false).unwrap_err().to_string();
    assert_eq!(error(&[]), "no column is mapped; map at least one column of the table");
    assert_eq!(
        error(&[("a", "UInt8", "a"), ("a", "UInt8", "b")]),
        "column `a` is mapped twice; keep one of the two"
    );
    assert_eq!(
        error(&[("a", "DateTime('Mars/Olympus')", "a")]),
        "column `a`: there is no time zone `Mars/Olympus`"
    );
    assert_eq!(
        error(&[("a", "Date", "_stream")]),
        "column `a` of type Date cannot take _stream; use String or LowCardinality(String)"
    );
    assert!(error(&[("a", "Array(Nullable(Array(UInt8)))", "a")]).contains("no such Nullable type"));
    assert!(error(&[("a", "LowCardinality(Array(UInt8))", "a")]).contains("no such LowCardinality type"));

    let columns = [
        ("a", "UInt8", "a"),
        ("b", "Array(UInt8)", "b"),
        ("c", "Nullable(UInt8)", "c"),
        ("d", "LowCardinality(String)", "d"),
    ];
    let plan = compile(&columns, true).unwrap();
    assert_eq!(plan.insert_columns(), ["a", "b", "c", "d"]);
    assert_eq!(plan.columns_without_row_default(), ["b", "c"]);
}

#[test]
fn columns_with_a_default_travel_as_nullable() {
    let columns = vec![
        MappedColumn {
            name: "a".into(),
            data_type: "UInt8".parse().unwrap(),
            has_default: true,
            source: FieldSource::Key("a".into()),
            required: false,
        },
        MappedColumn {
            name: "b".into(),
            data_type: "LowCardinality(String)".parse().unwrap(),
            has_default: true,
            source: FieldSource::Key("b".into()),
            required: false,
        },
    ];
    let mut bench = Bench::new(&Arc::new(Plan::compile(columns).unwrap()));
    for record in [&br#"{"a":1,"b":"x"}"#[..], b"{}", br#"{"a":null,"b":null}"#] {
        bench.decode(record).unwrap();
    }
    let columns = [
        ("a", "Nullable(UInt8)".parse().unwrap()),
        ("b", "LowCardinality(Nullable(String))".parse().unwrap()),
    ];
    let mut wanted = Block::with_columns(&columns).unwrap();
    wanted.append_row(&[Value::Unsigned(1), Value::Bytes(b"x")]).unwrap();
    wanted.append_row(&[Value::Default, Value::Default]).unwrap();
    wanted.append_row(&[Value::Default, Value::Default]).unwrap();
    assert_eq!(bench.native(), {
        let mut native = Vec::new();
        wanted.write_native(&mut native);
        native
    });
}

/// A JSON value of the kinds that the wide plan's columns take, and of some that they do not.
fn any_value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<u8>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| serde_json::to_string(&n).unwrap()),
        "[a-c]{0,2}".prop_map(|text| serde_json::to_string(&text).unwrap()),
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("\"2024-02-29T10:11:12Z\"".to_owned()),
        Just("\"61f0c404-5cb3-11e7-907b-a6006ad3dba0\"".to_owned()),
        Just("1e400".to_owned()),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec(("[xyz]", inner), 0..3).prop_map(|fields| {
                let fields: Vec<String> = fields.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    })
}

fn any_record() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        "[a-m]".boxed(),
        Just("deep".to_owned()).boxed(),
        Just("deep.er.m".to_owned()).boxed()
    ];
    prop::collection::vec((key, any_value()), 0..6).prop_map(|fields| {
        let fields: Vec<String> = fields.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
        format!("{{{}}}", fields.join(","))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Records that are refused leave nothing behind: the block is that of the good ones alone, byte by byte, decoded
    /// by anyone. Cutting back at any row gives the block of the rows before.
    #[test]
    fn the_block_is_a_function_of_its_rows(records in prop::collection::vec(any_record(), 1..20), cut in any::<prop::sample::Index>()) {
        let plan = wide_plan();
        let mut bench = Bench::new(&plan);
        let mut good = Vec::new();
        for record in &records {
            if bench.decode(record.as_bytes()).is_ok() {
                good.push(record);
            }
        }
        let mut again = Bench::new(&plan);
        let mut natives = vec![again.native()];
        for record in &good {
            prop_assert!(again.decode(record.as_bytes()).is_ok());
            natives.push(again.native());
        }
        prop_assert_eq!(bench.native(), again.native());

        let rows = cut.index(natives.len());
        bench.block.truncate(rows);
        prop_assert_eq!(&bench.native(), &natives[rows]);
        for record in &good[rows..] {
            prop_assert!(bench.decode(record.as_bytes()).is_ok());
        }
        prop_assert_eq!(&bench.native(), natives.last().unwrap());
        bench.block.clear();
        prop_assert_eq!(bench.block.rows(), 0);
        for record in &good {
            prop_assert!(bench.decode(record.as_bytes()).is_ok());
        }
        prop_assert_eq!(&bench.native(), natives.last().unwrap());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let plan = wide_plan();
        let mut bench = Bench::new(&plan);
        let _ = bench.decode(&bytes);
        let mut as_value = b"{\"h\":".to_vec();
        as_value.extend(&bytes);
        as_value.push(b'}');
        let _ = bench.decode(&as_value);
    }

    /// A record that was damaged somewhere is a row or a verdict, and the next record is a row.
    #[test]
    fn damage_is_contained(record in any_record(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let plan = wide_plan();
        let mut bytes = record.into_bytes();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let mut bench = Bench::new(&plan);
        let taken = bench.decode(&bytes).is_ok();
        if taken {
            let text = bytes.trim_ascii_end();
            let text = text.strip_suffix(b",").unwrap_or(text);
            let is_one = serde_json::from_slice::<Box<serde_json::value::RawValue>>(text).is_ok();
            prop_assert!(is_one || bench.block.rows() > 1);
        }
        bench.decode(b"{\"a\":1}").unwrap();
    }

    /// Numbers and texts are what another parser says they are.
    #[test]
    fn agrees_with_serde_json(n in any::<i64>(), f in prop::num::f64::NORMAL | prop::num::f64::ZERO, text in any::<String>(), flag in any::<bool>()) {
        let plan = plan(&[("n", "Int64", "n"), ("f", "Float64", "f"), ("t", "String", "t"), ("b", "Bool", "b")]);
        let record = serde_json::json!({ "n": n, "f": f, "t": text, "b": flag }).to_string();
        let mut bench = Bench::new(&plan);
        bench.decode(record.as_bytes()).unwrap();
        let native = bench.native();
        let mut tail = Vec::new();
        tail.extend_from_slice(b"\x01f\x07Float64");
        tail.extend_from_slice(&f.to_le_bytes());
        prop_assert!(native.windows(tail.len()).any(|window| window == tail));
        let mut wanted = Block::with_columns(&[("n", "Int64".parse().unwrap()), ("t", "String".parse().unwrap())]).unwrap();
        wanted.append_row(&[Value::Signed(n), Value::Bytes(text.as_bytes())]).unwrap();
        let mut bench = Bench::new(&self::plan(&[("n", "Int64", "n"), ("t", "String", "t")]));
        bench.decode(record.as_bytes()).unwrap();
        prop_assert_eq!(bench.block.digest(), wanted.digest());
    }
}

//! Types of documents, and that their order does not matter.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    batch::block::Block,
    decode::{Decoder, FieldSource, MappedColumn, Plan, RecordMeta},
};

fn schema(documents: &[&str]) -> Schema {
    let mut schema = Schema::default();
    for document in documents {
        schema.add(document.as_bytes()).unwrap();
    }
    schema
}

fn types(documents: &[&str]) -> String {
    let columns = schema(documents).columns();
    let shown: Vec<String> = columns.iter().map(|c| format!("{} {}", c.name, c.data_type)).collect();
    shown.join(", ")
}

#[test]
fn types_are_joined_over_documents() {
    for (documents, wanted) in [
        (vec![r#"{"a":1}"#, r#"{"a":2.5}"#], "a Float64"),
        (vec![r#"{"a":1}"#, r#"{"a":null}"#], "a Nullable(Int64)"),
        (vec![r#"{"a":1}"#, r#"{}"#], "a Nullable(Int64)"),
        (vec![r#"{"a":null}"#], "a Nullable(String)"),
        (vec![r#"{"a":[]}"#, r#"{"a":[1]}"#, "{}"], "a Array(Int64)"),
        (vec![r#"{"a":1}"#, r#"{"a":"x"}"#], "a String"),
        (vec![r#"{"a":1}"#, r#"{"a":[1]}"#], "a String"),
        (
            vec![r#"{"a":{"x":1}}"#, r#"{"a":{"y":"z"}}"#],
            "a Tuple(x Int64, y String)",
        ),
        (vec![r#"{"a":{"x":1}}"#, r#"{"a":{"x":"z"}}"#], "a Tuple(x String)"),
        (
            vec![r#"{"a":"2024-01-01"}"#, r#"{"a":"2024-01-01 10:00:00"}"#],
            "a DateTime",
        ),
        (vec![r#"{"a":"2024-01-01"}"#, r#"{"a":"soon"}"#], "a String"),
        (vec![r#"{"a":true}"#], "a Bool"),
        (vec![r#"{"b":1,"a":18446744073709551615}"#], "b Int64, a UInt64"),
        (vec![r#"{"a":99999999999999999999}"#], "a String"),
        (vec![r#"{"a":{"":1}}"#], "a String"),
    ] {
        assert_eq!(types(&documents), wanted, "{documents:?}");
    }
}

#[test]
fn what_is_known_of_a_column() {
    let schema = schema(&[
        r#"{"a":1,"/b":"x"}"#,
        r#"{"a":null,"_key":2}"#,
        r#"{"a":3}"#,
        r#"{"":5}"#,
    ]);
    let columns = schema.columns();
    let shown: Vec<(&str, &str, f64, f64)> = columns
        .iter()
        .map(|c| (c.name.as_str(), c.source_field.as_str(), c.null_ratio, c.missing_ratio))
        .collect();
    assert_eq!(
        shown,
        [
            ("a", "a", 0.5, 0.25),
            ("/b", "/~1b", 0.75, 0.75),
            ("_key", "/_key", 0.75, 0.75),
            ("empty_key", "/", 0.75, 0.75),
        ]
    );
    assert_eq!(columns[0].examples, ["1", "3"]);
    assert_eq!(schema.documents(), 4);
}

#[test]
fn what_is_no_document_counts_for_nothing() {
    let mut schema = Schema::default();
    for bad in ["", "1", "[1]", r#"{"a":1"#, r#"{"a":1} {"a":2}"#, r#"{"a":tru}"#] {
        assert!(schema.add(bad.as_bytes()).is_err(), "{bad}");
    }
    assert!(schema.add(b"{\"a\":\"\xff\"}").is_err());
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(schema.add(deep.as_bytes()).unwrap_err().kind, RejectionKind::TooDeep);
    assert_eq!((schema.documents(), schema.columns().len()), (0, 0));
}

#[test]
fn keys_that_are_data_are_bounded() {
    let mut schema = Schema::default();
    for number in 0..MAX_COLUMNS + 7 {
        let document = format!("{{\"k{number}\":1,\"o\":{{\"k{number}\":1}}}}");
        schema.add(document.as_bytes()).unwrap();
    }
    assert_eq!(schema.columns().len(), MAX_COLUMNS);
    assert_eq!(schema.omitted(), 8);
    assert_eq!(schema.columns()[1].data_type.to_string(), "JSON");
}

#[test]
fn a_sorting_key_groups_then_identifies_then_tells_the_time() {
    let mut schema = Schema::default();
    for number in 0..100 {
        let document = format!(
            r#"{{"event_time":"2024-01-01 10:00:{:02}","user_id":{number},"text":"t{number}","country":"c{}","ok":{},"maybe":null}}"#,
            number % 60,
            number % 7,
            number % 2 == 0
        );
        schema.add(document.as_bytes()).unwrap();
    }
    assert_eq!(schema.sorting_key(), ["ok", "country", "user_id", "event_time"]);
    assert!(Schema::default().sorting_key().is_empty());
}

/// JSON values of every kind that inference tells apart.
fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        (-3i64..3).prop_map(|n| n.to_string()),
        Just(u64::MAX.to_string()),
        Just("1.5".to_owned()),
        Just("\"text\"".to_owned()),
        Just("\"2024-01-01\"".to_owned()),
        Just("\"2024-01-01 10:00:00\"".to_owned()),
        Just("\"2024-01-01 10:00:00.5\"".to_owned()),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let key = prop_oneof![Just("x"), Just("y"), Just("z")];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(|items| format!("[{}]", items.join(","))),
            proptest::collection::btree_map(key, inner, 0..3).prop_map(|fields| {
                let fields: Vec<String> = fields.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    })
}

fn document() -> impl Strategy<Value = String> {
    let key = prop_oneof![Just("a"), Just("b")];
    proptest::collection::btree_map(key, value(), 0..3).prop_map(|fields| {
        let fields: Vec<String> = fields.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
        format!("{{{}}}", fields.join(","))
    })
}

fn sorted_types(documents: &[String]) -> Vec<String> {
    let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
    let columns = schema(&documents).columns();
    let mut shown: Vec<String> = columns.iter().map(|c| format!("{} {}", c.name, c.data_type)).collect();
    shown.sort();
    shown
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_documents_does_not_matter(
        (documents, shuffled) in proptest::collection::vec(document(), 1..6)
            .prop_flat_map(|documents| (Just(documents.clone()), Just(documents).prop_shuffle()))
    ) {
        prop_assert_eq!(sorted_types(&documents), sorted_types(&shuffled));
    }

    #[test]
    fn a_document_twice_says_no_more_than_once(documents in proptest::collection::vec(document(), 1..5)) {
        let twice: Vec<String> = documents.iter().chain(&documents).cloned().collect();
        prop_assert_eq!(sorted_types(&documents), sorted_types(&twice));
    }

    #[test]
    fn what_was_inferred_takes_each_document(documents in proptest::collection::vec(document(), 1..5)) {
        let texts: Vec<&str> = documents.iter().map(String::as_str).collect();
        let columns = schema(&texts).columns();
        prop_assume!(!columns.is_empty());
        let mapped = columns.iter().map(|column| MappedColumn {
            name: column.name.clone(),
            data_type: column.data_type.clone(),
            has_default: false,
            source: FieldSource::Key(column.name.clone()),
            required: false,
        });
        let plan = Arc::new(Plan::compile(mapped.collect()).unwrap());
        let mut block = Block::new(&plan);
        let mut decoder = Decoder::new(plan);
        let meta = RecordMeta {
            partition_key: b"k",
            arrival_millis: 0,
            stream: "s",
            shard_id: "shardId-000000000000",
            sequence_number: b"1",
            sub_sequence_number: 0,
            hash_keys: None,
        };
        for document in &documents {
            let refused = decoder.decode_whole(document.as_bytes(), &meta, &mut block);
            prop_assert!(refused.is_ok(), "{document}: {refused:?}; {:?}", columns);
        }
    }
}

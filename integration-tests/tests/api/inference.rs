//! ClickHouse as the oracle of what is inferred, and of how rows are shown. Where Millrace differs on purpose, `docs/discovery.md` says
//! so; what it says there is asserted here.

#![allow(clippy::print_stderr, reason = "what was compared is worth reading in the log")]

use millrace_common::{
    clickhouse::quote_string,
    pipe::{Decoding, MappedColumn},
};
use millrace_data_plane::sample::{Preview, RecordMeta, Schema};
use millrace_integration_tests::type_cases::TYPE_CASES;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

use super::bed::engine;

/// Lists of documents that nobody picked.
const CASES: usize = 150;
const SEED: u64 = 20_261_123;
/// Types that ClickHouse would rather not have, and numbers without quotes.
const SETTINGS: &str = "output_format_json_quote_64bit_integers = 0, allow_suspicious_low_cardinality_types = 1, \
                        allow_suspicious_variant_types = 1, allow_experimental_time_time64_type = 1";

/// What ClickHouse infers, with NULL where it saw one, and in `name type` lines; or its refusal.
async fn described(documents: &[String]) -> Result<Vec<(String, String)>, String> {
    let statement = format!(
        "DESCRIBE TABLE format(JSONEachRow, {}) SETTINGS schema_inference_make_columns_nullable = 'auto', \
         describe_compact_output = 1, print_pretty_type_names = 0 FORMAT TSVRaw",
        quote_string(&documents.join("\n"))
    );
    let answer = engine()
        .await
        .query(&statement)
        .await
        .map_err(|error| error.to_string())?;
    let pair = |line: &str| {
        let (name, data_type) = line.split_once('\t').expect("two fields");
        (name.to_owned(), data_type.to_owned())
    };
    Ok(answer.lines().map(pair).collect())
}

fn inferred(documents: &[String]) -> Vec<(String, String)> {
    let mut schema = Schema::default();
    for document in documents {
        schema.add(document.as_bytes()).expect("a document");
    }
    let columns = schema.columns().into_iter();
    columns
        .map(|column| (column.name, column.data_type.to_string()))
        .collect()
}

/// Without NULL at the top: Millrace also counts keys that are missing.
fn plain(data_type: &str) -> &str {
    data_type
        .strip_prefix("Nullable(")
        .and_then(|rest| rest.strip_suffix(')'))
        .unwrap_or(data_type)
}

#[tokio::test]
async fn types_are_those_of_clickhouse() {
    let mut differences = Vec::new();
    for documents in [
        vec![r#"{"a":1}"#],
        vec![r#"{"a":1}"#, r#"{"a":2.5}"#],
        vec![r#"{"a":-1}"#, r#"{"a":null}"#],
        vec![r#"{"a":18446744073709551615}"#],
        vec![r#"{"a":1}"#, r#"{"a":18446744073709551615}"#],
        vec![r#"{"a":true}"#, r#"{"a":1}"#],
        vec![r#"{"a":true}"#, r#"{"a":"x"}"#],
        vec![r#"{"a":"x"}"#, r#"{"a":1}"#],
        vec![r#"{"a":"2024-01-01"}"#],
        vec![r#"{"a":"2024-01-01"}"#, r#"{"a":"2024-01-01 10:00:00"}"#],
        vec![r#"{"a":"2024-01-01 10:00:00.123"}"#, r#"{"a":"2024-01-01 10:00:00"}"#],
        vec![r#"{"a":"2024-01-01T10:00:00Z"}"#],
        vec![r#"{"a":"2024-01-01"}"#, r#"{"a":"later"}"#],
        vec![r#"{"a":[1,2]}"#, r#"{"a":[]}"#],
        vec![r#"{"a":[]}"#],
        vec![r#"{"a":[1,null]}"#],
        vec![r#"{"a":[1,"x"]}"#],
        vec![r#"{"a":{"x":1}}"#, r#"{"a":{"y":"z"}}"#],
        vec![r#"{"a":{"x":{"y":[{"z":1}]}}}"#],
        vec![r#"{"a":[{"x":1},{"y":"z"}]}"#],
        vec![r#"{"b":1,"a":2}"#, r#"{"c":3,"a":4}"#],
        vec![r#"{"a":null}"#],
        vec![r#"{"a":{}}"#],
        vec![r#"{"a":"2024-01-01"}"#, r#"{"a":null}"#],
        vec![r#"{"a":[[1],[2.5]]}"#],
    ] {
        let documents: Vec<String> = documents.into_iter().map(str::to_owned).collect();
        let wanted = match described(&documents).await {
            Ok(wanted) => wanted,
            Err(error) => {
                differences.push(format!("{documents:?}: {error}"));
                continue;
            }
        };
        let found = inferred(&documents);
        assert_eq!(found.len(), wanted.len(), "{documents:?}");
        for ((name, found), (wanted_name, wanted)) in found.iter().zip(&wanted) {
            if (name, plain(found)) != (wanted_name, plain(wanted)) {
                differences.push(format!(
                    "{documents:?}: {name} {found}, and ClickHouse {wanted_name} {wanted}"
                ));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// The table of `docs/discovery.md`: documents, what ClickHouse says, what Millrace says.
#[tokio::test]
async fn types_that_differ_on_purpose() {
    let mut differences = Vec::new();
    for (documents, clickhouse, millrace) in [
        // Digits are kept.
        (vec![r#"{"a":99999999999999999999}"#], None, "String"),
        // Types that have nothing in common are text, and no error.
        (vec![r#"{"a":1}"#, r#"{"a":[1]}"#], None, "String"),
        (vec![r#"{"a":{"x":1}}"#, r#"{"a":[1]}"#], None, "String"),
        // A key that is missing is like one that is null.
        (vec![r#"{"a":1}"#, r#"{"b":1}"#], Some("Int64"), "Nullable(Int64)"),
    ] {
        let documents: Vec<String> = documents.into_iter().map(str::to_owned).collect();
        let theirs = described(&documents).await.ok().map(|columns| columns[0].1.clone());
        let ours = inferred(&documents)[0].1.clone();
        if (theirs.as_deref(), ours.as_str()) != (clickhouse, millrace) {
            differences.push(format!("{documents:?}: {ours}, and ClickHouse {theirs:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// A value of those that inference tells apart.
fn value(random: &mut SmallRng, depth: u32) -> String {
    match random.random_range(0..if depth == 0 { 8 } else { 10 }) {
        0 => "null".to_owned(),
        1 => "true".to_owned(),
        2 => random.random_range(-100..100).to_string(),
        3 => "2.5".to_owned(),
        4 => "\"text\"".to_owned(),
        5 => "\"2024-01-01\"".to_owned(),
        6 => "\"2024-01-01 10:00:00\"".to_owned(),
        7 => "7".to_owned(),
        8 => {
            let items: Vec<String> = (0..random.random_range(0..3))
                .map(|_| value(random, depth - 1))
                .collect();
            format!("[{}]", items.join(","))
        }
        _ => {
            let keys: Vec<&str> = ["x", "y"].into_iter().filter(|_| random.random_bool(0.6)).collect();
            let fields: Vec<String> = keys
                .iter()
                .map(|key| format!("\"{key}\":{}", value(random, depth - 1)))
                .collect();
            format!("{{{}}}", fields.join(","))
        }
    }
}

/// Whatever the documents are: where ClickHouse has a type without a conflict, so has Millrace; and the types of Millrace take
/// every document, which those of ClickHouse must, too.
#[tokio::test]
async fn a_table_of_the_inferred_types_takes_the_documents() {
    let mut random = SmallRng::seed_from_u64(SEED);
    let (mut same, mut differ, mut refused) = (0, 0, 0);
    for _ in 0..CASES {
        let documents: Vec<String> = (0..random.random_range(1..4))
            .map(|_| format!("{{\"a\":{},\"b\":{}}}", value(&mut random, 2), value(&mut random, 1)))
            .collect();
        let found = inferred(&documents);
        match described(&documents).await {
            Ok(wanted) => {
                let alike = found
                    .iter()
                    .zip(&wanted)
                    .all(|(found, wanted)| plain(&found.1) == plain(&wanted.1));
                if alike {
                    same += 1;
                } else {
                    differ += 1;
                    eprintln!("{documents:?}: {found:?}, and ClickHouse {wanted:?}");
                }
            }
            Err(_) => refused += 1,
        }
        let structure: Vec<String> = found
            .iter()
            .map(|(name, data_type)| format!("{name} {data_type}"))
            .collect();
        let statement = format!(
            "SELECT count() FROM format(JSONEachRow, {}, {})",
            quote_string(&structure.join(", ")),
            quote_string(&documents.join("\n"))
        );
        let count = engine().await.query(&statement).await;
        let count = count.unwrap_or_else(|error| panic!("{structure:?} of {documents:?}: {error}"));
        assert_eq!(count.trim(), documents.len().to_string(), "{structure:?}");
    }
    eprintln!("inferred alike {same}, otherwise {differ}, refused by ClickHouse {refused}");
    assert_eq!(differ, 0, "types that are in no table of docs/discovery.md");
    assert!(
        same * 2 > CASES,
        "alike {same}, otherwise {differ}, refused by ClickHouse {refused}"
    );
}

/// Whether both show one value. A JSON text has many spellings, and so has a number of 32 bits.
fn is_same(left: &str, right: &str) -> bool {
    let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).map(|row| row["v"].clone());
    let (Ok(left), Ok(right)) = (parse(left), parse(right)) else {
        return false;
    };
    let narrow = |value: &serde_json::Value| value.as_f64().map(|value| value as f32);
    left == right || (left.is_f64() && right.is_f64() && narrow(&left) == narrow(&right))
}

/// A text that the server parses is shown as it is sent; `format` makes columns of what `Nested` holds; and a number that is too
/// large is text in a Dynamic of Millrace.
fn is_shown_otherwise(data_type: &str, line: &str) -> bool {
    data_type.starts_with("JSON")
        || data_type.starts_with("Nested")
        || data_type == "Dynamic"
            && ["99999999999999999999", "-9223372036854775809"]
                .iter()
                .any(|large| line.contains(large))
}

/// What a preview shows of a row is what ClickHouse shows of it.
#[tokio::test]
async fn rows_are_shown_as_clickhouse_shows_them() {
    let meta = RecordMeta {
        partition_key: b"key",
        arrival_millis: 0,
        stream: "events",
        shard_id: "shardId-000000000000",
        sequence_number: b"1",
        sub_sequence_number: 0,
        hash_keys: None,
    };
    let zone = engine().await.query("SELECT serverTimezone()").await.expect("a zone");
    let (mut compared, mut differences) = (0, Vec::new());
    for case in TYPE_CASES {
        let column = MappedColumn {
            name: "v".into(),
            data_type: case.data_type.into(),
            source_field: "v".into(),
            ..MappedColumn::default()
        };
        let mut preview = Preview::new(&[column], &Decoding::default(), zone.trim()).expect(case.data_type);
        let (mut lines, mut shown) = (Vec::new(), Vec::new());
        for value in case.same {
            let line = format!("{{\"v\":{value}}}");
            let decoded = preview.decode(line.as_bytes(), &meta);
            if let ([row], []) = (decoded.rows.as_slice(), decoded.refused.as_slice()) {
                lines.push(line);
                shown.push(row.json.clone());
            }
        }
        let statement = format!(
            "SELECT v FROM format(JSONEachRow, {}, {}) SETTINGS {SETTINGS} FORMAT JSONEachRow",
            quote_string(&format!("v {}", case.data_type)),
            quote_string(&lines.join("\n"))
        );
        let answer = match engine().await.query(&statement).await {
            Ok(answer) => answer,
            Err(error) => {
                differences.push(format!("{}: {error}", case.data_type));
                continue;
            }
        };
        let wanted: Vec<&str> = answer.lines().collect();
        if wanted.len() != shown.len() {
            differences.push(format!(
                "{}: {} rows, and ClickHouse {}",
                case.data_type,
                shown.len(),
                wanted.len()
            ));
        }
        for ((line, shown), wanted) in lines.iter().zip(&shown).zip(wanted) {
            compared += 1;
            if !is_same(shown, wanted) && !is_shown_otherwise(case.data_type, line) {
                differences.push(format!(
                    "{} of {line}: {shown}, and ClickHouse {wanted}",
                    case.data_type
                ));
            }
        }
    }
    eprintln!("{compared} rows compared");
    assert!(compared > 300, "{compared} rows were compared");
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences.join("\n")
    );
}

//! Every type: what Millrace makes of a JSON value is what ClickHouse makes of it.
//!
//! The same values go into two tables of one shape, as `FORMAT JSONEachRow` parsed by ClickHouse, and as a Native block
//! that our decoder built, with the settings of real inserts. Verdicts and rows must be equal but for the differences
//! that are listed.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use millrace_common::clickhouse::DataType;
use millrace_data_plane::batch::block::Block;
use millrace_data_plane::decode::{Decoder, FieldSource, MappedColumn, Options, Plan, RecordMeta, VirtualColumn};
use millrace_data_plane::sink::clickhouse::native::compress_lz4;
use millrace_integration_tests::clickhouse::{ClickHouse, Request};
use millrace_integration_tests::type_cases::{MALFORMED, TYPE_CASES, TypeCase};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

const SEQUENCE_NUMBER: &str = "49590338271490256608559692538361571095921575989136588898";

const META: RecordMeta<'static> = RecordMeta {
    partition_key: "key \"é\"".as_bytes(),
    arrival_millis: 1_700_000_000_123,
    stream: "events",
    shard_id: "shardId-000000000000",
    sequence_number: SEQUENCE_NUMBER.as_bytes(),
    sub_sequence_number: 3,
    hash_keys: None,
};

/// Two tables of one shape and a decoder for the second.
struct Bench<'a> {
    clickhouse: &'a ClickHouse,
    database: String,
    plan: Arc<Plan>,
    decoder: Decoder,
    block: Block,
}

impl<'a> Bench<'a> {
    /// Makes tables `a` and `b` of these columns (name, type, DEFAULT) anew.
    async fn new(clickhouse: &'a ClickHouse, columns: &[(&str, &str, Option<&str>)]) -> Result<Bench<'a>> {
        let database = clickhouse.database().await?;
        let declared: Vec<String> = columns
            .iter()
            .map(|(name, data_type, default)| {
                let default = default
                    .map(|expression| format!(" DEFAULT {expression}"))
                    .unwrap_or_default();
                format!("`{name}` {data_type}{default}")
            })
            .collect();
        for table in ["a", "b"] {
            let create = format!(
                "CREATE TABLE {database}.{table} ({}) ENGINE = Memory",
                declared.join(", ")
            );
            let request = Request::query(&create)
                .parameter("flatten_nested", 0)
                .parameter("allow_suspicious_low_cardinality_types", 1)
                .parameter("allow_suspicious_variant_types", 1);
            clickhouse
                .send(request)
                .await?
                .into_text()
                .with_context(|| create.clone())?;
        }
        // The types as the server prints them: that is what a pipe gets to see.
        let listed = format!(
            "SELECT name, type, default_kind FROM system.columns WHERE database = '{database}' AND table = 'b' ORDER BY position FORMAT JSONCompactEachRow"
        );
        let listed = clickhouse.query(&listed).await?;
        let columns = listed.lines().map(|line| {
            let (name, data_type, default_kind): (String, String, String) = serde_json::from_str(line)?;
            let data_type: DataType = data_type.parse().with_context(|| data_type.clone())?;
            let source = name
                .parse::<VirtualColumn>()
                .map_or(FieldSource::Key(name.clone()), FieldSource::Virtual);
            Ok(MappedColumn {
                name,
                data_type,
                has_default: default_kind == "DEFAULT",
                source,
                required: false,
            })
        });
        let zone = clickhouse.query("SELECT serverTimezone()").await?;
        let options = Options {
            time_zone: zone.trim().to_owned(),
            ..Options::default()
        };
        let plan = Arc::new(Plan::compile_with(columns.collect::<Result<_>>()?, &options)?);
        Ok(Bench {
            clickhouse,
            database,
            decoder: Decoder::new(plan.clone()),
            block: Block::new(&plan),
            plan,
        })
    }

    /// What ClickHouse says to one record: nothing, or its error.
    async fn insert_json(&self, record: &str) -> Result<Option<String>> {
        let request = Request::insert(
            &format!("INSERT INTO {}.a FORMAT JSONEachRow", self.database),
            record.to_owned(),
        )
        .parameter("async_insert", 0);
        Ok(self
            .clickhouse
            .send(request)
            .await?
            .into_text()
            .err()
            .map(|error| error.to_string()))
    }

    /// What we say to one record.
    fn decode(&mut self, record: &str) -> Option<String> {
        self.decoder
            .decode_whole(record.as_bytes(), &META, &mut self.block)
            .err()
            .map(|rejection| rejection.to_string())
    }

    /// Inserts what was decoded, as a real insert does.
    async fn insert_block(&self) -> Result<()> {
        let columns: Vec<String> = self
            .plan
            .insert_columns()
            .iter()
            .map(|name| format!("`{name}`"))
            .collect();
        let mut native = Vec::new();
        self.block.write_native(&mut native);
        ensure!(
            native.len() == self.block.encoded_bytes(),
            "the size of the block was foretold wrongly"
        );
        let mut frames = Vec::new();
        compress_lz4(&native, &mut frames);
        let statement = format!("INSERT INTO {}.b ({}) FORMAT Native", self.database, columns.join(", "));
        let request = Request::insert(&statement, frames)
            .parameter("decompress", 1)
            .parameter("async_insert", 0)
            .parameter("input_format_native_allow_types_conversion", 0)
            .parameter("input_format_skip_unknown_fields", 0)
            .parameter("input_format_null_as_default", 1);
        self.clickhouse.send(request).await?.into_text()?;
        Ok(())
    }

    /// The rows of a table by id.
    async fn rows(&self, table: &str, expressions: &str) -> Result<BTreeMap<u32, String>> {
        let query = format!(
            "SELECT id, {expressions} FROM {}.{table} ORDER BY id FORMAT JSONCompactEachRow",
            self.database
        );
        let request = Request::query(&query)
            .parameter("output_format_json_quote_denormals", 1)
            .parameter("output_format_json_quote_decimals", 1);
        let text = self.clickhouse.send(request).await?.into_text()?;
        let row = |line: &str| {
            let (id, row) = line.trim_start_matches('[').split_once(',')?;
            Some((id.trim().trim_matches('"').parse().ok()?, row.to_owned()))
        };
        text.lines()
            .map(|line| row(line).with_context(|| line.to_owned()))
            .collect()
    }
}

/// What a value is expected to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Same,
    Stricter,
    Wider,
    Differs,
}

fn record(id: usize, value: &str) -> String {
    format!("{{\"id\":{id},\"v\":{value}}}")
}

/// Puts every value into both tables and returns what is not as expected.
async fn compare(
    clickhouse: &ClickHouse,
    data_type: &str,
    also: Option<&str>,
    values: &[(String, Expected)],
) -> Result<Vec<String>> {
    let mut bench = Bench::new(clickhouse, &[("id", "UInt32", None), ("v", data_type, None)]).await?;
    let mut failures = Vec::new();
    let mut taken = Vec::new();
    for (id, (value, expected)) in values.iter().enumerate() {
        let record = record(id, value);
        let theirs = bench.insert_json(&record).await?;
        let ours = bench.decode(&record);
        let as_expected = match (theirs.is_none(), ours.is_none()) {
            (true, false) => *expected == Expected::Stricter,
            (false, true) => *expected == Expected::Wider,
            (true, true) => {
                taken.push(id as u32);
                matches!(expected, Expected::Same | Expected::Differs)
            }
            (false, false) => *expected == Expected::Same,
        };
        if !as_expected {
            failures.push(format!(
                "{data_type}: {value} expected {expected:?}; ClickHouse: {theirs:?}; Millrace: {ours:?}"
            ));
        }
    }
    if data_type.contains("JSON") {
        // In one block the type of a path depends on the rows before: then both tables must get one block.
        bench
            .clickhouse
            .query(&format!("TRUNCATE TABLE {}.a", bench.database))
            .await?;
        let records: String = taken
            .iter()
            .map(|id| record(*id as usize, &values[*id as usize].0))
            .collect();
        let refused = bench.insert_json(&records).await?;
        ensure!(refused.is_none(), "{data_type}: {refused:?}");
    }
    bench.insert_block().await.with_context(|| data_type.to_owned())?;
    let expressions = also.map_or("v".to_owned(), |also| format!("v, {also}"));
    // ClickHouse can leave a value that it cannot print; such a row is different from any.
    let theirs = match bench.rows("a", &expressions).await {
        Ok(rows) => rows,
        Err(_) => {
            let differs = values
                .iter()
                .zip(0..)
                .filter(|((_, expected), _)| *expected == Expected::Differs);
            let differs: Vec<String> = differs.map(|(_, id): (_, u32)| id.to_string()).collect();
            let delete = format!(
                "ALTER TABLE {}.a DELETE WHERE id IN ({})",
                bench.database,
                differs.join(", ")
            );
            let request = Request::query(&delete).parameter("mutations_sync", 1);
            clickhouse
                .send(request)
                .await?
                .into_text()
                .with_context(|| data_type.to_owned())?;
            bench
                .rows("a", &expressions)
                .await
                .with_context(|| data_type.to_owned())?
        }
    };
    let ours = bench.rows("b", &expressions).await?;
    for id in taken {
        let (value, expected) = &values[id as usize];
        let equal = theirs.get(&id) == ours.get(&id);
        if equal != (*expected == Expected::Same) {
            failures.push(format!(
                "{data_type}: {value} expected {expected:?}; ClickHouse has {:?}, Millrace {:?}",
                theirs.get(&id),
                ours.get(&id)
            ));
        }
    }
    Ok(failures)
}

fn values(case: &TypeCase, wrap: impl Fn(&str) -> String) -> Vec<(String, Expected)> {
    let lists = [
        (case.same, Expected::Same),
        (case.stricter, Expected::Stricter),
        (case.wider, Expected::Wider),
        (case.differs, Expected::Differs),
    ];
    lists
        .iter()
        .flat_map(|(list, expected)| list.iter().map(|value| (wrap(value), *expected)))
        .collect()
}

fn report(failures: &[String]) -> Result<()> {
    ensure!(
        failures.is_empty(),
        "{} differences:\n{}",
        failures.len(),
        failures.join("\n")
    );
    Ok(())
}

#[tokio::test]
async fn every_type_at_the_top() -> Result<()> {
    let clickhouse = ClickHouse::shared().await;
    let mut failures = Vec::new();
    for case in TYPE_CASES {
        failures.extend(compare(clickhouse, case.data_type, case.also, &values(case, str::to_owned)).await?);
    }
    report(&failures)
}

/// The same values one level down, in each kind of container that the type can stand in.
#[tokio::test]
async fn every_type_nested() -> Result<()> {
    let clickhouse = ClickHouse::shared().await;
    let mut failures = Vec::new();
    for case in TYPE_CASES {
        // Where ClickHouse leaves what it cannot read again, there is nothing to compare.
        let values = |wrap: &dyn Fn(&str) -> String| {
            let mut values = values(case, wrap);
            values.retain(|(_, expected)| *expected == Expected::Same);
            values
        };
        let t = case.data_type;
        // These stand only at the top.
        if t.starts_with("SimpleAggregateFunction") || t.starts_with("Nested") {
            continue;
        }
        let data_type: DataType = t.parse()?;
        let array = format!("Array({t})");
        failures.extend(compare(clickhouse, &array, None, &values(&|v| format!("[{v},{v}]"))).await?);
        let map = format!("Map(String, {t})");
        failures.extend(compare(clickhouse, &map, None, &values(&|v| format!("{{\"k\":{v},\"l\":{v}}}"))).await?);
        // An enum that is missing in a tuple is 0 for ClickHouse, which need not be one of its values.
        let empty = if case.differs.contains(&"null") { "" } else { ",{}" };
        let tuple = format!("Array(Tuple(x {t}, y Array({t})))");
        let wrapped = values(&|v| format!("[{{\"y\":[{v}],\"x\":{v}}}{empty}]"));
        failures.extend(compare(clickhouse, &tuple, None, &wrapped).await?);
        if data_type.can_be_nullable() {
            let nullable = format!("Nullable({t})");
            failures.extend(compare(clickhouse, &nullable, None, &values(&str::to_owned)).await?);
        }
    }
    report(&failures)
}

#[tokio::test]
async fn what_is_not_json_is_refused() -> Result<()> {
    let clickhouse = ClickHouse::shared().await;
    for case in TYPE_CASES {
        let mut bench = Bench::new(clickhouse, &[("id", "UInt32", None), ("v", case.data_type, None)]).await?;
        for value in MALFORMED {
            let record = format!("{{\"id\":1,\"v\":{value}}}");
            let verdict = bench
                .decode(&record)
                .with_context(|| format!("{}: {record} was taken", case.data_type))?;
            ensure!(
                verdict.starts_with("malformed_json"),
                "{}: {record}: {verdict}",
                case.data_type
            );
        }
        ensure!(bench.block.rows() == 0);
    }
    Ok(())
}

/// A missing key and a null, row by row, in columns with a DEFAULT expression and without.
#[tokio::test]
async fn defaults_are_the_servers_row_by_row() -> Result<()> {
    let clickhouse = ClickHouse::shared().await;
    let mut failures = Vec::new();
    for case in TYPE_CASES {
        for default in [None, case.default] {
            let mut bench = Bench::new(clickhouse, &[("id", "UInt32", None), ("v", case.data_type, default)]).await?;
            ensure!(default.is_none() || bench.plan.columns_without_row_default().is_empty());
            let records = [
                "{\"id\":0}".to_owned(),
                format!("{{\"id\":1,\"v\":{}}}", case.same[0]),
                "{\"id\":2,\"v\":null}".to_owned(),
                "{\"id\":3}".to_owned(),
            ];
            let null_differs = default.is_none() && case.differs.contains(&"null");
            for record in records {
                if null_differs && record.contains("null") {
                    continue;
                }
                let (theirs, ours) = (bench.insert_json(&record).await?, bench.decode(&record));
                if theirs.is_some() || ours.is_some() {
                    failures.push(format!(
                        "{}: {record}: ClickHouse {theirs:?}, Millrace {ours:?}",
                        case.data_type
                    ));
                }
            }
            bench.insert_block().await.with_context(|| case.data_type)?;
            let (theirs, ours) = (bench.rows("a", "v").await?, bench.rows("b", "v").await?);
            if theirs != ours {
                failures.push(format!(
                    "{} DEFAULT {default:?}: ClickHouse {theirs:?}, Millrace {ours:?}",
                    case.data_type
                ));
            }
        }
    }
    report(&failures)
}

/// `Dynamic` has no bound on types on the wire; the width of its indexes changes at 256 of them.
#[tokio::test]
async fn dynamic_holds_any_number_of_types() -> Result<()> {
    let clickhouse = ClickHouse::shared().await;
    for types in [255, 256, 257, 258, 600] {
        let mut bench = Bench::new(clickhouse, &[("id", "UInt32", None), ("v", "Dynamic", None)]).await?;
        for id in 0..types {
            let value = if id == 7 {
                "null".to_owned()
            } else {
                format!("{{\"k{id}\":{id}}}")
            };
            let verdict = bench.decode(&record(id, &value));
            ensure!(verdict.is_none(), "{verdict:?}");
        }
        bench.insert_block().await.with_context(|| format!("{types} types"))?;
        let rows = bench.rows("b", "dynamicType(v), toString(v)").await?;
        for id in 0..types {
            let wanted = if id == 7 {
                " \"None\", \"\"]".to_owned()
            } else {
                format!(" \"Tuple(k{id} Int64)\", \"({id})\"]")
            };
            ensure!(
                rows[&(id as u32)] == wanted,
                "{types} types: {:?} is not {wanted}",
                rows[&(id as u32)]
            );
        }
    }
    Ok(())
}

/// `Nested` as ClickHouse flattens it: arrays side by side, of one length in a row.
#[tokio::test]
async fn flattened_nested_columns_keep_one_length() -> Result<()> {
    let clickhouse = ClickHouse::shared().await;
    let columns = [
        ("id", "UInt32", None),
        ("n.a", "Array(UInt8)", None),
        ("n.b", "Array(String)", None),
    ];
    let mut bench = Bench::new(clickhouse, &columns).await?;
    let records = [
        "{\"id\":0,\"n.a\":[1,2],\"n.b\":[\"x\",\"y\"]}",
        "{\"id\":1,\"n.a\":[1,2]}",
        "{\"id\":2}",
        "{\"id\":3,\"n.a\":[1],\"n.b\":[]}",
        "{\"id\":4,\"n.b\":[\"z\"]}",
        "{\"id\":5,\"n.a\":null,\"n.b\":[]}",
    ];
    let mut verdicts = Vec::new();
    for record in records {
        verdicts.push((
            record,
            bench.insert_json(record).await?.is_none(),
            bench.decode(record).is_none(),
        ));
    }
    for (record, theirs, ours) in &verdicts {
        ensure!(theirs == ours, "{record}: ClickHouse {theirs}, Millrace {ours}");
    }
    bench.insert_block().await?;
    let expressions = "`n.a`, `n.b`";
    assert_eq!(bench.rows("b", expressions).await?, bench.rows("a", expressions).await?);
    Ok(())
}

/// What `FORMAT JSONEachRow` takes for several rows is several documents, and what it refuses is not a row of each of them.
#[tokio::test]
async fn documents_are_the_rows_that_clickhouse_finds() -> Result<()> {
    let clickhouse = ClickHouse::shared().await;
    let mut bench = Bench::new(clickhouse, &[("id", "UInt32", None), ("a", "String", None)]).await?;
    let between = ["", "\n", ",", " , ", "\r\n\r\n", ",,", ";", ":"];
    let around = [
        ("", ""),
        ("[", "]"),
        (" [ ", " ] "),
        ("[", ""),
        ("", "]"),
        ("", ","),
        ("[", ",]"),
        (",", ""),
    ];
    let mut id = 0;
    for separator in between {
        for (open, close) in around {
            let documents: Vec<String> = (id..id + 3).map(|id| format!("{{\"id\":{id},\"a\":\"x\"}}")).collect();
            id += 3;
            let record = format!("{open}{}{close}", documents.join(separator));
            let theirs = bench.insert_json(&record).await?;
            let ours = bench.decode(&record);
            ensure!(
                theirs.is_none() == ours.is_none(),
                "{record}\n  ClickHouse: {theirs:?}\n  Millrace: {ours:?}"
            );
        }
    }
    bench.insert_block().await?;
    assert_eq!(bench.rows("b", "a").await?, bench.rows("a", "a").await?);
    Ok(())
}

#[tokio::test]
async fn virtual_columns_arrive_in_every_type_they_may_have() -> Result<()> {
    let clickhouse = ClickHouse::shared().await;
    let cases = [
        ("_key", "String", "key \"é\""),
        ("_key", "LowCardinality(Nullable(String))", "key \"é\""),
        ("_timestamp", "DateTime64(3, 'UTC')", "2023-11-14 22:13:20.123"),
        ("_timestamp", "DateTime64(6, 'UTC')", "2023-11-14 22:13:20.123000"),
        ("_timestamp", "DateTime('UTC')", "2023-11-14 22:13:20"),
        ("_timestamp", "Nullable(Int64)", "1700000000123"),
        ("_timestamp", "Date", "2023-11-14"),
        ("_stream", "LowCardinality(String)", "events"),
        ("_sequence_number", "String", SEQUENCE_NUMBER),
        ("_sequence_number", "UInt256", SEQUENCE_NUMBER),
        ("_raw_message", "String", "{\"id\" : 1,\"x\":\"\\u0041\"}"),
        ("_shard_id", "String", META.shard_id),
        ("_sub_sequence_number", "UInt64", "3"),
    ];
    for (name, data_type, wanted) in cases {
        let mut bench = Bench::new(clickhouse, &[("id", "UInt32", None), (name, data_type, None)]).await?;
        assert_eq!(bench.decode("{\"id\" : 1,\"x\":\"\\u0041\"}"), None);
        bench
            .insert_block()
            .await
            .with_context(|| format!("{name} {data_type}"))?;
        let arrived = bench.rows("b", &format!("toString(`{name}`)")).await?;
        let arrived: String = serde_json::from_str(arrived[&1].trim_end_matches(']'))?;
        assert_eq!(arrived, wanted, "{name} {data_type}");
    }
    Ok(())
}

/// Thousands of values that nobody picked, in one insert each: rounding, digits, and the clocks of many zones.
#[tokio::test]
async fn arbitrary_numbers_and_times_agree() -> Result<()> {
    const VALUES: usize = 3000;
    let clickhouse = ClickHouse::shared().await;
    let mut random = SmallRng::seed_from_u64(0x6d69_6c6c_7261_6365);
    let zones = [
        "UTC",
        "America/New_York",
        "Europe/London",
        "Asia/Kolkata",
        "Australia/Lord_Howe",
        "America/Sao_Paulo",
        "Pacific/Apia",
    ];
    let mut columns: Vec<String> = [
        "Float64",
        "Float32",
        "BFloat16",
        "Decimal(38, 10)",
        "Decimal(76, 30)",
        "Int64",
        "String",
        "Date32",
    ]
    .map(str::to_owned)
    .into();
    columns.extend(zones.map(|zone| format!("DateTime64(3, '{zone}')")));
    columns.extend(zones.map(|zone| format!("DateTime('{zone}')")));
    for data_type in columns {
        let mut bench = Bench::new(clickhouse, &[("id", "UInt32", None), ("v", &data_type, None)]).await?;
        let mut records = String::new();
        for id in 0..VALUES {
            let value = arbitrary(&data_type, &mut random);
            let record = record(id, &value);
            let verdict = bench.decode(&record);
            ensure!(verdict.is_none(), "{data_type}: {record}: {verdict:?}");
            records.push_str(&record);
        }
        let refused = bench.insert_json(&records).await?;
        ensure!(refused.is_none(), "{data_type}: {refused:?}");
        bench.insert_block().await?;
        let (theirs, ours) = (bench.rows("a", "v").await?, bench.rows("b", "v").await?);
        ensure!(
            theirs.len() == VALUES && ours.len() == VALUES,
            "{data_type}: rows are missing"
        );
        let different = theirs.iter().find(|(id, row)| ours.get(id) != Some(row));
        if let Some((id, row)) = different {
            let record = records.split_inclusive('}').nth(*id as usize);
            anyhow::bail!(
                "{data_type}: {record:?}: ClickHouse has {row}, Millrace {:?}",
                ours.get(id)
            );
        }
    }
    Ok(())
}

/// Every night of half a century in zones whose clocks jump at different hours, by half an hour, or over a whole day:
/// readings that do not exist or exist twice are resolved alike.
#[tokio::test]
async fn clocks_that_jump_agree() -> Result<()> {
    let clickhouse = ClickHouse::shared().await;
    for zone in [
        "America/New_York",
        "Australia/Lord_Howe",
        "America/Sao_Paulo",
        "Pacific/Apia",
    ] {
        let data_type = format!("DateTime64(3, '{zone}')");
        let mut bench = Bench::new(clickhouse, &[("id", "UInt32", None), ("v", &data_type, None)]).await?;
        let mut records = String::new();
        let days =
            (1975..2025).flat_map(|year| (1..=12).flat_map(move |month| (1..=28).map(move |day| (year, month, day))));
        for (id, ((year, month, day), hour)) in days.flat_map(|day| (0..4).map(move |hour| (day, hour))).enumerate() {
            let record = record(id, &format!("\"{year}-{month:02}-{day:02} {hour:02}:30:00\""));
            let verdict = bench.decode(&record);
            ensure!(verdict.is_none(), "{data_type}: {record}: {verdict:?}");
            records.push_str(&record);
        }
        let refused = bench.insert_json(&records).await?;
        ensure!(refused.is_none(), "{data_type}: {refused:?}");
        bench.insert_block().await?;
        let (theirs, ours) = (bench.rows("a", "v").await?, bench.rows("b", "v").await?);
        ensure!(
            theirs.len() == bench.block.rows() && ours.len() == theirs.len(),
            "{data_type}: rows are missing"
        );
        let different: Vec<_> = theirs
            .iter()
            .filter(|(id, row)| ours.get(id) != Some(row))
            .take(10)
            .collect();
        ensure!(different.is_empty(), "{data_type}: ClickHouse has {different:?}");
    }
    Ok(())
}

/// A value in the type's range, with a spelling that both sides take.
fn arbitrary(data_type: &str, random: &mut SmallRng) -> String {
    if data_type.starts_with("DateTime") {
        // Years in which both types have all their zones' rules, at any second of the day.
        let (year, month, day) = (
            random.random_range(1971..2105),
            random.random_range(1..=12),
            random.random_range(1..=28),
        );
        let (hour, minute, second) = (
            random.random_range(0..24),
            random.random_range(0..60),
            random.random_range(0..60),
        );
        return format!("\"{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}\"");
    }
    match data_type {
        "Int64" => random.random::<i64>().to_string(),
        "Date32" => random.random_range(-25_567..=120_529).to_string(),
        "String" => f64::from_bits(random.random()).abs().min(1e300).to_string(),
        "Float64" => {
            finite(f64::from_bits(random.random())).map_or_else(|| "0".to_owned(), |value| format!("{value:e}"))
        }
        "Float32" | "BFloat16" => {
            let value = f64::from(f32::from_bits(random.random())) * random.random_range(0.5..0.999);
            finite(value).map_or_else(|| "0".to_owned(), |value| format!("{value:e}"))
        }
        // A decimal: any digits, up to the precision before the point and past the scale after it.
        _ => {
            let (whole, fraction): (u64, u128) = (random.random(), random.random());
            format!("{}{whole}.{fraction}", if random.random() { "-" } else { "" })
        }
    }
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

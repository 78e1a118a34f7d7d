//! Arbitrary tables: every type, nested to depth 4, with DEFAULT, MATERIALIZED and ALIAS columns.

use std::fmt::Write as _;

use millrace_common::clickhouse::{DataType, quote_identifier};
use millrace_integration_tests::type_cases::TYPE_CASES;
use rand::{Rng as _, rngs::SmallRng, seq::IndexedRandom as _};

/// Deepest nesting of types.
const DEPTH: u32 = 4;

/// A table, as it is created.
#[derive(Debug)]
pub(crate) struct Table {
    /// Name, type, and what follows it (`DEFAULT …`).
    columns: Vec<(String, String, String)>,
    pub(crate) flatten_nested: bool,
}

impl Table {
    /// What stands between the brackets of CREATE TABLE.
    pub(crate) fn declaration(&self) -> String {
        let mut out = String::from("id UInt32");
        for (name, data_type, more) in &self.columns {
            let _ = write!(out, ", {} {data_type} {more}", quote_identifier(name));
        }
        out
    }
}

pub(crate) fn arbitrary(random: &mut SmallRng) -> Table {
    let mut columns = Vec::new();
    let flatten_nested = random.random_bool(0.5);
    for number in 0..random.random_range(2..=7) {
        let name = match random.random_range(0..8) {
            0 => format!("Ключ {number}"),
            1 => format!("long_name_of_a_column_that_is_not_predicted_{number}"),
            _ => format!("c{number}"),
        };
        if random.random_bool(0.06) {
            columns.push((name, nested(random, 1).to_string(), String::new()));
            continue;
        }
        let data_type = top(random);
        let default = default(&data_type, random).filter(|_| random.random_bool(0.4));
        let more = default
            .map(|expression| format!("DEFAULT {expression}"))
            .unwrap_or_default();
        columns.push((name, data_type, more));
    }
    // What the server makes of the row must be the same, too.
    if random.random_bool(0.5) {
        let from = columns[0].0.clone();
        let expression = if columns[0].1.starts_with("Nested") {
            "id".to_owned()
        } else {
            format!("toString({})", quote_identifier(&from))
        };
        let is_plain = SCALARS.contains(&columns[0].1.as_str());
        let expression = if is_plain {
            expression
        } else {
            "toString(id)".to_owned()
        };
        columns.push((
            "m".to_owned(),
            "String".to_owned(),
            format!("MATERIALIZED {expression}"),
        ));
        columns.push((
            "al".to_owned(),
            "String".to_owned(),
            "ALIAS concat(toString(id), 'x')".to_owned(),
        ));
    }
    Table {
        columns,
        flatten_nested,
    }
}

/// A DEFAULT for the type, where there is one to try.
fn default(data_type: &str, random: &mut SmallRng) -> Option<String> {
    let case = TYPE_CASES
        .iter()
        .find(|case| case.data_type == data_type)
        .and_then(|case| case.default);
    match (case, data_type) {
        // In the table of types the column is always alone beside its id.
        (Some(expression), _) => Some(expression.to_owned()),
        (None, "Array(String)") => Some("['d', toString(id)]".to_owned()),
        (None, "Nullable(String)") => Some("toString(id)".to_owned()),
        (None, "Int32" | "Int64" | "Nullable(UInt8)") => Some(["id * 2 - 1", "-7"].choose(random)?.to_string()),
        _ => None,
    }
}

const SCALARS: &[&str] = &[
    "UInt8",
    "UInt16",
    "UInt32",
    "UInt64",
    "UInt128",
    "UInt256",
    "Int8",
    "Int16",
    "Int32",
    "Int64",
    "Int128",
    "Int256",
    "Float64",
    "Float32",
    "BFloat16",
    "Decimal(9, 2)",
    "Decimal(18, 18)",
    "Decimal(38, 10)",
    "Decimal(76, 20)",
    "Bool",
    "String",
    "String",
    "String",
    "FixedString(3)",
    "Date",
    "Date32",
    "DateTime('UTC')",
    "DateTime('America/New_York')",
    "DateTime",
    "DateTime64(3, 'UTC')",
    "DateTime64(6, 'Asia/Kolkata')",
    "DateTime64(0, 'UTC')",
    "DateTime64(9, 'UTC')",
    "Time",
    "Time64(3)",
    "Enum8('zero' = 0, 'a' = 1, 'b' = -2)",
    "Enum16('x' = 1000, 'y' = 0)",
    "UUID",
    "IPv4",
    "IPv6",
];

const IN_DICTIONARY: &[&str] = &[
    "String",
    "FixedString(2)",
    "UInt64",
    "Int16",
    "Float64",
    "Date",
    "DateTime",
    "UUID",
    "IPv4",
    "Nullable(String)",
    "Nullable(UInt32)",
    "Nullable(Date)",
];

const KEYS: &[&str] = &[
    "String",
    "String",
    "LowCardinality(String)",
    "UInt8",
    "Int64",
    "UUID",
    "Date",
    "FixedString(3)",
    "IPv4",
    "Enum8('zero' = 0, 'a' = 1)",
    "DateTime('UTC')",
    "UInt256",
];

/// What stands only at the top.
const TOP: &[&str] = &[
    "SimpleAggregateFunction(sum, UInt64)",
    "SimpleAggregateFunction(anyLast, Nullable(String))",
    "SimpleAggregateFunction(groupArrayArray, Array(String))",
    "Point",
    "Ring",
    "LineString",
    "MultiLineString",
    "Polygon",
    "MultiPolygon",
    "Enum8('a' = 1, 'b' = -2, 'c d' = 3, '5' = 7)",
    "Array(String)",
    "JSON",
    "JSON(max_dynamic_paths=2)",
    "Dynamic(max_types=2)",
    "Array(Nullable(String))",
];

fn top(random: &mut SmallRng) -> String {
    match random.random_range(0..10) {
        0 => pick(TOP, random),
        1..=3 => scalar(random),
        _ => any(random, DEPTH),
    }
}

fn any(random: &mut SmallRng, depth: u32) -> String {
    if depth <= 1 {
        return scalar(random);
    }
    let depth = depth - 1;
    match random.random_range(0..17) {
        0..=2 => format!("Array({})", any(random, depth)),
        3..=4 => format!("Map({}, {})", pick(KEYS, random), any(random, depth)),
        5..=8 => tuple(random, depth),
        9 => format!("LowCardinality({})", pick(IN_DICTIONARY, random)),
        10..=11 => format!("Nullable({})", scalar(random)),
        12 => variant(random, depth),
        13 => "Dynamic".to_owned(),
        14 => "JSON".to_owned(),
        _ => scalar(random),
    }
}

fn tuple(random: &mut SmallRng, depth: u32) -> String {
    let named = random.random_bool(0.7);
    let names = ["a", "b c", "long element name of a tuple", "ё", "x.y"];
    let elements: Vec<String> = names[..random.random_range(1..=names.len())]
        .iter()
        .map(|name| {
            let data_type = any(random, depth);
            if named {
                format!("{} {data_type}", quote_identifier(name))
            } else {
                data_type
            }
        })
        .collect();
    format!("Tuple({})", elements.join(", "))
}

fn nested(random: &mut SmallRng, depth: u32) -> String {
    let columns: Vec<String> = ["a", "b"]
        .iter()
        .map(|name| format!("{name} {}", any(random, depth + 1)))
        .collect();
    format!("Nested({})", columns.join(", "))
}

fn variant(random: &mut SmallRng, depth: u32) -> String {
    let mut alternatives: Vec<String> = Vec::new();
    for _ in 0..random.random_range(2..=4) {
        let alternative = match random.random_range(0..6) {
            0 => format!("Array({})", scalar(random)),
            1 if depth > 1 => format!("Tuple(a {}, b {})", scalar(random), scalar(random)),
            2 => format!("Map(String, {})", scalar(random)),
            _ => scalar(random),
        };
        // Types that differ in their arguments alone are one alternative for some texts; one of a family is enough.
        let family = |name: &str| {
            name.split('(')
                .next()
                .unwrap_or_default()
                .trim_end_matches(char::is_numeric)
                .to_owned()
        };
        if alternatives.iter().all(|other| family(other) != family(&alternative)) {
            alternatives.push(alternative);
        }
    }
    format!("Variant({})", alternatives.join(", "))
}

fn scalar(random: &mut SmallRng) -> String {
    pick(SCALARS, random)
}

fn pick(list: &[&str], random: &mut SmallRng) -> String {
    list[random.random_range(0..list.len())].to_owned()
}

/// A column that records may have values for.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) data_type: DataType,
    pub(crate) has_default: bool,
}

//! Made-up records in the shapes that producers send, and the columns that they go into. The same number gives the same record.

use std::fmt::Write as _;

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng, seq::SliceRandom as _};

/// Column name and ClickHouse type; the key is the name.
pub(crate) type Columns = Vec<(String, String)>;

/// Records of one shape.
pub(crate) struct Shape {
    /// What figures call it.
    pub(crate) name: &'static str,
    /// Where its values go.
    pub(crate) columns: Columns,
    /// JSON objects.
    pub(crate) records: Vec<Vec<u8>>,
}

impl Shape {
    /// Bytes of all records.
    pub(crate) fn bytes(&self) -> usize {
        self.records.iter().map(Vec::len).sum()
    }
}

/// An event of 20 fields and about 600 bytes.
pub(crate) fn flat(records: u64) -> Shape {
    shape("flat", records, flat_columns(), |rng, id| {
        Object::of(flat_members(rng, id))
    })
}

/// The same, its keys in another order in every record.
pub(crate) fn shuffled(records: u64) -> Shape {
    shape("flat_shuffled", records, flat_columns(), |rng, id| {
        let mut members = flat_members(rng, id);
        members.shuffle(rng);
        Object::of(members)
    })
}

/// A flat event with arrays, a map, a tuple and tuples in an array: about 1.2 KB.
pub(crate) fn nested(records: u64) -> Shape {
    let mut columns = flat_columns();
    for (name, kind) in [
        ("tags", "Array(String)"),
        ("properties", "Map(String, String)"),
        ("samples", "Array(Float64)"),
        ("geo", "Tuple(lat Float64, lon Float64, city String)"),
        ("items", "Array(Tuple(sku String, quantity UInt16, price Float64))"),
    ] {
        columns.push((name.to_owned(), kind.to_owned()));
    }
    shape("nested", records, columns, |rng, id| {
        let mut members = flat_members(rng, id);
        members.extend(nested_members(rng));
        Object::of(members)
    })
}

/// A row of a database: 85 keys with short values.
pub(crate) fn wide(records: u64) -> Shape {
    let columns = (0..85)
        .map(|index| {
            let kind = match index % 5 {
                0 => "Int64",
                1 => "Float64",
                2 => "LowCardinality(String)",
                3 => "String",
                _ => "Nullable(Int32)",
            };
            (format!("column_{index:02}"), kind.to_owned())
        })
        .collect();
    shape("wide", records, columns, |rng, _| {
        Object::of((0..85).map(|index| {
            let value = match index % 5 {
                0 => rng.random_range(-1_000_000_000i64..1_000_000_000).to_string(),
                1 => format!("{:.3}", rng.random::<f64>() * 1000.0),
                2 => quoted(pick(rng, &WORDS)),
                3 => format!("\"{:x}\"", rng.random::<u64>()),
                _ if rng.random_range(0..3) == 0 => "null".to_owned(),
                _ => rng.random_range(0..100_000).to_string(),
            };
            (format!("column_{index:02}"), value)
        }))
    })
}

/// A reading of a sensor: 9 keys, about 200 bytes.
pub(crate) fn small(records: u64) -> Shape {
    let columns = [
        ("ts", "DateTime64(3, 'UTC')"),
        ("device", "LowCardinality(String)"),
        ("site", "LowCardinality(String)"),
        ("metric", "LowCardinality(String)"),
        ("value", "Float64"),
        ("unit", "LowCardinality(String)"),
        ("seq", "UInt64"),
        ("ok", "Bool"),
        ("firmware", "LowCardinality(String)"),
    ]
    .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
    .to_vec();
    shape("small", records, columns, |rng, id| {
        let mut out = String::from("{");
        let _ = write!(
            out,
            r#""ts":"{}","device":"device-{:04}","site":"{}-{}","metric":"{}","value":{:.3},"unit":"celsius","#,
            instant(id),
            rng.random_range(0..2000),
            pick(rng, &WORDS),
            rng.random_range(1..10),
            pick(rng, &["temperature", "humidity", "pressure"]),
            rng.random::<f64>() * 100.0,
        );
        let _ = write!(out, r#""seq":{id},"ok":{},"firmware":"2.14.3"}}"#, rng.random::<bool>());
        out
    })
}

fn shape(
    name: &'static str,
    records: u64,
    columns: Columns,
    mut record: impl FnMut(&mut SmallRng, u64) -> String,
) -> Shape {
    let records = (0..records)
        .map(|id| record(&mut SmallRng::seed_from_u64(id), id).into_bytes())
        .collect();
    Shape { name, columns, records }
}

const WORDS: [&str; 12] = [
    "alpha", "breeze", "cobalt", "delta", "ember", "fjord", "grove", "harbor", "iris", "jade", "kite", "lumen",
];
const AGENTS: [&str; 3] = [
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 Version/17.5 Safari/605.1.15",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148",
];

fn flat_columns() -> Columns {
    [
        ("event_id", "UUID"),
        ("user_id", "UUID"),
        ("event_time", "DateTime64(3, 'UTC')"),
        ("event_type", "LowCardinality(String)"),
        ("country", "LowCardinality(String)"),
        ("device", "LowCardinality(String)"),
        ("browser", "LowCardinality(String)"),
        ("os", "LowCardinality(String)"),
        ("campaign", "LowCardinality(String)"),
        ("url", "String"),
        ("referrer", "Nullable(String)"),
        ("user_agent", "String"),
        ("session", "String"),
        ("city", "String"),
        ("sequence", "UInt64"),
        ("width", "UInt16"),
        ("height", "UInt16"),
        ("duration", "Float64"),
        ("revenue", "Nullable(Float64)"),
        ("is_new", "Bool"),
    ]
    .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
    .to_vec()
}

fn flat_members(rng: &mut SmallRng, id: u64) -> Vec<(String, String)> {
    let member = |key: &str, value: String| (key.to_owned(), value);
    vec![
        member("event_id", uuid(rng)),
        member("user_id", uuid(rng)),
        member("event_time", quoted(&instant(id))),
        member(
            "event_type",
            quoted(pick(rng, &["page_view", "click", "add_to_cart", "purchase"])),
        ),
        member("country", quoted(pick(rng, &["DE", "FR", "US", "BR", "JP", "IN"]))),
        member("device", quoted(pick(rng, &["desktop", "mobile", "tablet"]))),
        member("browser", quoted(pick(rng, &["Chrome", "Safari", "Firefox", "Edge"]))),
        member(
            "os",
            quoted(pick(rng, &["Linux", "macOS", "Windows", "iOS", "Android"])),
        ),
        member(
            "campaign",
            quoted(&format!("{}-{}", pick(rng, &WORDS), rng.random_range(1..20))),
        ),
        member(
            "url",
            quoted(&format!(
                "https://shop.example.com/{}/{}?page={}",
                pick(rng, &WORDS),
                pick(rng, &WORDS),
                rng.random_range(1..500)
            )),
        ),
        member(
            "referrer",
            match rng.random_range(0..3) {
                0 => "null".to_owned(),
                _ => quoted(&format!("https://{}.example.net/", pick(rng, &WORDS))),
            },
        ),
        member("user_agent", quoted(pick(rng, &AGENTS))),
        member("session", format!("\"{:016x}\"", rng.random::<u64>())),
        member(
            "city",
            quoted(pick(rng, &["München", "Paris", "New York", "São Paulo", "Nairobi"])),
        ),
        member("sequence", id.to_string()),
        member("width", pick(rng, &["1920", "1440", "390", "820"]).to_owned()),
        member("height", pick(rng, &["1080", "900", "844", "1180"]).to_owned()),
        member("duration", format!("{:.3}", rng.random::<f64>() * 300.0)),
        member(
            "revenue",
            match rng.random_range(0..4) {
                0 => format!("{:.2}", rng.random::<f64>() * 500.0),
                _ => "null".to_owned(),
            },
        ),
        member("is_new", rng.random::<bool>().to_string()),
    ]
}

fn nested_members(rng: &mut SmallRng) -> Vec<(String, String)> {
    let list = |items: Vec<String>| format!("[{}]", items.join(","));
    let tags = (0..rng.random_range(1..6)).map(|_| quoted(pick(rng, &WORDS))).collect();
    let theme = match rng.random_range(0..20) {
        0 => r#""dark\/\"high contrast\"""#.to_owned(),
        _ => quoted("dark"),
    };
    let properties = Object::of([
        ("browser".to_owned(), quoted(pick(rng, &WORDS))),
        ("theme".to_owned(), theme),
        ("build".to_owned(), format!("\"{}\"", rng.random::<u32>())),
    ]);
    let samples = (0..8).map(|_| format!("{:.4}", rng.random::<f64>() * 10.0)).collect();
    let geo = Object::of([
        ("lat".to_owned(), format!("{:.5}", rng.random::<f64>() * 180.0 - 90.0)),
        ("lon".to_owned(), format!("{:.5}", rng.random::<f64>() * 360.0 - 180.0)),
        ("city".to_owned(), quoted(pick(rng, &["München", "Paris", "Nairobi"]))),
    ]);
    let items = (0..rng.random_range(1..4))
        .map(|_| {
            Object::of([
                (
                    "sku".to_owned(),
                    format!("\"SKU-{:06}\"", rng.random_range(0..1_000_000)),
                ),
                ("quantity".to_owned(), rng.random_range(1..20).to_string()),
                ("price".to_owned(), format!("{:.2}", rng.random::<f64>() * 500.0)),
            ])
        })
        .collect();
    vec![
        ("tags".to_owned(), list(tags)),
        ("properties".to_owned(), properties),
        ("samples".to_owned(), list(samples)),
        ("geo".to_owned(), geo),
        ("items".to_owned(), list(items)),
    ]
}

/// JSON objects from members whose values are JSON already.
struct Object;

impl Object {
    fn of(members: impl IntoIterator<Item = (String, String)>) -> String {
        let members: Vec<_> = members
            .into_iter()
            .map(|(key, value)| format!("\"{key}\":{value}"))
            .collect();
        format!("{{{}}}", members.join(","))
    }
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

fn pick<'a>(rng: &mut SmallRng, from: &[&'a str]) -> &'a str {
    from[rng.random_range(0..from.len())]
}

fn instant(id: u64) -> String {
    let (minute, second, millis) = (id / 60_000 % 60, id / 1000 % 60, id % 1000);
    format!("2026-03-14T15:{minute:02}:{second:02}.{millis:03}Z")
}

fn uuid(rng: &mut SmallRng) -> String {
    format!(
        "\"{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}\"",
        rng.random::<u32>(),
        rng.random::<u16>(),
        rng.random_range(0..0x1000),
        rng.random_range(0..0x1000),
        rng.random_range(0..1u64 << 48)
    )
}

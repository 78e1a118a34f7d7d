//! Arbitrary records for a table: valid, odd, and damaged.

use millrace_common::clickhouse::DataType;
use millrace_integration_tests::type_cases::TYPE_CASES;
use rand::{Rng as _, rngs::SmallRng};

use super::table::Column;
use super::value::{Json, escaped, quoted};

/// A record and what it was made of.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) id: usize,
    pub(crate) tree: Json,
    pub(crate) text: Vec<u8>,
    /// True if it may spoil its neighbours when it is one line among others.
    pub(crate) alone: bool,
}

/// Values that some producer somewhere sends for anything.
const ODD: &[&str] = &[
    "null",
    "null",
    "null",
    "\"\"",
    "true",
    "false",
    "0",
    "-0",
    "1",
    "-1",
    "1.0",
    "1e2",
    "1.5",
    "-1.5",
    "0.1",
    "\"12\"",
    "\" 12\"",
    "\"abc\"",
    "[]",
    "{}",
    "[null]",
    "[1]",
    "{\"a\":1}",
    "255",
    "256",
    "65536",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e400",
    "1e-400",
    "123456789012345678901234567890",
    "\"true\"",
    "\"null\"",
    "\"2024-02-29\"",
    "\"2023-02-29\"",
    "\"1969-12-31\"",
    "\"1970-01-01 00:00:00\"",
    "\"2106-02-07 06:28:16\"",
    "\"2149-06-07\"",
    "\"2299-12-31 23:59:59\"",
    "\"1900-01-01\"",
    "\"2024-02-29T10:11:12.345Z\"",
    "\"12:34:56\"",
    "1700000000",
    "\"1700000000.5\"",
    "1700000000123",
    "\"0\"",
    "\"\\u0031\"",
    "\"1\\n\"",
    "\"a\\u0000b\"",
    "\"::1\"",
    "\"1.2.3.4\"",
    "\"\\ud83d\\ude00\"",
];

const PIECES: &[&str] = &[
    "a",
    "b",
    "Z",
    "0",
    " ",
    "é",
    "€",
    "😀",
    "\u{2028}",
    "\u{202e}",
    "\\n",
    "\\t",
    "\\\"",
    "\\\\",
    "\\/",
    "\\u0041",
    "\\u00e9",
    "\\ud83d\\ude00",
    "\\u0000",
    "some longer text that fills a vector register, and then some more of it",
];

/// A record that is one JSON object.
pub(crate) fn arbitrary(columns: &[Column], id: usize, random: &mut SmallRng) -> Record {
    let mut fields = vec![("id".to_owned(), Json::text(id.to_string()))];
    // Most records of a stream are plain, and an odd one is odd in one place.
    let odd_column = random.random_bool(0.6).then(|| random.random_range(0..columns.len()));
    let mut nested_length = None;
    for (index, column) in columns.iter().enumerate() {
        if column.name == "id" || random.random_bool(0.12) {
            continue;
        }
        let mut maker = Maker {
            oddities: usize::from(odd_column == Some(index)),
            random,
        };
        let value = maker.value(&column.data_type);
        let value = if column.name.contains('.') && random.random_bool(0.8) {
            same_length(value, &mut nested_length)
        } else {
            value
        };
        let key = quoted(&column.name).trim_matches('"').to_owned();
        let key = if random.random_bool(0.03) { escaped(&key) } else { key };
        fields.push((key, value));
    }
    if random.random_bool(0.2) {
        let mut maker = Maker { oddities: 0, random };
        let unknown = maker.json(3);
        let key = ["unknown", "", "C0", "c0 ", "m", "al", "\\u0063x"][random.random_range(0..7)];
        fields.push((key.to_owned(), unknown));
    }
    if random.random_bool(0.03) && fields.len() > 1 {
        let again = fields[random.random_range(1..fields.len())].clone();
        fields.push(again);
    }
    if random.random_bool(0.3) {
        for index in (1..fields.len()).rev() {
            fields.swap(index, random.random_range(0..=index));
        }
    }
    let tree = Json::Object(fields);
    let text = if random.random_bool(0.15) {
        tree.spaced(random)
    } else {
        tree.compact()
    };
    let alone = text.contains('\n');
    Record {
        id,
        tree,
        text: text.into_bytes(),
        alone,
    }
}

/// Arrays of one row's `Nested` columns have one length.
fn same_length(value: Json, length: &mut Option<usize>) -> Json {
    let Json::Array(mut items) = value else {
        return value;
    };
    let wanted = *length.get_or_insert(items.len());
    if items.is_empty() && wanted > 0 {
        items.push(Json::text("null"));
    }
    let mut at = 0;
    while items.len() < wanted {
        items.push(items[at].clone());
        at += 1;
    }
    items.truncate(wanted);
    Json::Array(items)
}

struct Maker<'a> {
    /// How many odd values are still to be put in.
    oddities: usize,
    random: &'a mut SmallRng,
}

impl Maker<'_> {
    fn value(&mut self, data_type: &DataType) -> Json {
        // The deeper in, the likelier: half of the oddities are inside of a container.
        if self.oddities > 0
            && self
                .random
                .random_bool(if is_container(data_type) { 0.25 } else { 0.8 })
        {
            self.oddities -= 1;
            return self.odd(data_type);
        }
        let storage = data_type.storage();
        match storage.as_ref() {
            DataType::Nullable(inner) if self.random.random_bool(0.8) => self.value(inner),
            DataType::Nullable(_) => Json::text("null"),
            DataType::LowCardinality(inner) => self.value(inner),
            DataType::Array(inner) => {
                let length = self.length();
                Json::Array((0..length).map(|_| self.value(inner)).collect())
            }
            DataType::Map(key, inner) => {
                let length = self.length();
                let fields = (0..length).map(|_| (self.key(key), self.value(inner)));
                Json::Object(fields.collect())
            }
            DataType::Tuple(elements) if elements.iter().all(|element| element.name.is_none()) => {
                Json::Array(elements.iter().map(|element| self.value(&element.data_type)).collect())
            }
            DataType::Tuple(elements) => {
                let mut fields = Vec::new();
                for element in elements {
                    if !self.random.random_bool(0.1) {
                        let name = quoted(element.name.as_deref().unwrap_or_default());
                        fields.push((name.trim_matches('"').to_owned(), self.value(&element.data_type)));
                    }
                }
                if self.random.random_bool(0.1) {
                    fields.push(("other".to_owned(), self.json(2)));
                }
                if self.random.random_bool(0.2) {
                    fields.reverse();
                }
                Json::Object(fields)
            }
            DataType::Variant(alternatives) => {
                let chosen = self.random.random_range(0..alternatives.len());
                self.value(&alternatives[chosen])
            }
            DataType::Dynamic { .. } => self.json(2),
            DataType::Json(_) => self.object(3),
            scalar => Json::Text(self.scalar(scalar)),
        }
    }

    fn length(&mut self) -> usize {
        match self.random.random_range(0..12) {
            0..=1 => 0,
            11 => 9,
            length => length / 3,
        }
    }

    /// Something that somebody may send where this type stands.
    fn odd(&mut self, data_type: &DataType) -> Json {
        let name = data_type.storage().to_string();
        let case = TYPE_CASES.iter().find(|case| case.data_type == name);
        match (self.random.random_range(0..4), case) {
            (0..=1, Some(case)) => {
                let all: Vec<&str> = [case.same, case.stricter, case.wider, case.differs]
                    .into_iter()
                    .flatten()
                    .copied()
                    .collect();
                let text = all[self.random.random_range(0..all.len())];
                if text.contains('\n') {
                    Json::text("null")
                } else {
                    Json::text(text)
                }
            }
            (2, _) => self.json(2),
            _ => Json::text(ODD[self.random.random_range(0..ODD.len())]),
        }
    }

    fn key(&mut self, data_type: &DataType) -> String {
        match data_type {
            DataType::LowCardinality(inner) => self.key(inner),
            DataType::String => self.text(),
            scalar => {
                let text = self.scalar(scalar);
                text.trim_matches('"').to_owned()
            }
        }
    }

    fn text(&mut self) -> String {
        let pieces = self.random.random_range(0..5);
        (0..pieces)
            .map(|_| PIECES[self.random.random_range(0..PIECES.len())])
            .collect()
    }

    fn object(&mut self, depth: u32) -> Json {
        let names = ["a", "b", "c", "long key of an object", "é"];
        let count = self.random.random_range(0..=names.len());
        Json::Object(
            names[..count]
                .iter()
                .map(|name| ((*name).to_owned(), self.json(depth - 1)))
                .collect(),
        )
    }

    /// Any JSON.
    fn json(&mut self, depth: u32) -> Json {
        match self.random.random_range(0..if depth == 0 { 7 } else { 10 }) {
            0 => Json::text("null"),
            1 => Json::text(if self.random.random() { "true" } else { "false" }),
            2 => Json::text(self.random.random_range(-1000..1000).to_string()),
            3 => Json::text(self.random.random::<i64>().to_string()),
            4 => Json::text(format!(
                "{:?}",
                f64::from(self.random.random_range(-100_000..100_000)) / 64.0
            )),
            5 => Json::Text(format!("\"{}\"", self.text())),
            6 => Json::text(
                ["\"2024-01-01\"", "\"2024-01-01 10:00:00\"", "\"x\"", "\"12\""][self.random.random_range(0..4)],
            ),
            7..=8 => self.object(depth),
            _ => {
                let length = self.length();
                Json::Array((0..length).map(|_| self.json(depth - 1)).collect())
            }
        }
    }

    /// A valid value of the type, at its borders more often than not.
    fn scalar(&mut self, data_type: &DataType) -> String {
        let random = &mut *self.random;
        macro_rules! integer {
            ($type:ty) => {{
                let value: $type = match random.random_range(0..5) {
                    0 => <$type>::MIN,
                    1 => <$type>::MAX,
                    2 => 1,
                    _ => random.random(),
                };
                if random.random_bool(0.1) {
                    format!("\"{value}\"")
                } else {
                    value.to_string()
                }
            }};
        }
        match data_type {
            DataType::UInt8 => integer!(u8),
            DataType::UInt16 => integer!(u16),
            DataType::UInt32 => integer!(u32),
            DataType::UInt64 => integer!(u64),
            DataType::UInt128 | DataType::UInt256 => integer!(u128),
            DataType::Int8 => integer!(i8),
            DataType::Int16 => integer!(i16),
            DataType::Int32 => integer!(i32),
            DataType::Int64 => integer!(i64),
            DataType::Int128 | DataType::Int256 => integer!(i128),
            DataType::Float64 => {
                let value = f64::from_bits(random.random());
                if value.is_finite() {
                    format!("{value:e}")
                } else {
                    "-0.0".to_owned()
                }
            }
            DataType::Float32 | DataType::BFloat16 => {
                let value = f32::from_bits(random.random());
                if value.is_finite() {
                    format!("{:e}", f64::from(value) * 0.75)
                } else {
                    "1.5".to_owned()
                }
            }
            DataType::Decimal { precision, scale } => {
                let whole = usize::from(precision - scale);
                let digits: String = (0..whole.saturating_sub(1))
                    .map(|_| char::from(b'0' + random.random_range(0..10u8)))
                    .collect();
                let digits = digits.trim_start_matches('0');
                let sign = if random.random() { "-" } else { "" };
                let fraction: u64 = random.random();
                format!("{sign}{}.{fraction}", if digits.is_empty() { "0" } else { digits })
            }
            DataType::Bool => ["true", "false", "1", "0"][random.random_range(0..4)].to_owned(),
            DataType::String => {
                let text = self.text();
                format!("\"{text}\"")
            }
            DataType::FixedString(width) => format!("\"{}\"", &"xyzé"[..(*width).min(random.random_range(0..=3))]),
            DataType::Date => date(random, 1970, 2149),
            DataType::Date32 => date(random, 1900, 2300),
            DataType::DateTime { .. } if random.random_bool(0.2) => random.random::<u32>().to_string(),
            DataType::DateTime { .. } => date_time(random, 1971, 2105),
            DataType::DateTime64 { precision: 9, .. } => date_time(random, 1901, 2261),
            DataType::DateTime64 { .. } => date_time(random, 1901, 2298),
            DataType::Time | DataType::Time64 { .. } => {
                let (hour, minute, second) = (
                    random.random_range(0..999),
                    random.random_range(0..60),
                    random.random_range(0..60),
                );
                format!("\"{hour:02}:{minute:02}:{second:02}\"")
            }
            DataType::Enum8(values) => enum_name(&values[random.random_range(0..values.len())].0),
            DataType::Enum16(values) => enum_name(&values[random.random_range(0..values.len())].0),
            DataType::Uuid => format!("\"{}\"", uuid::Uuid::from_u128(random.random())),
            DataType::Ipv4 => format!("\"{}\"", std::net::Ipv4Addr::from(random.random::<u32>())),
            DataType::Ipv6 => format!("\"{}\"", std::net::Ipv6Addr::from(random.random::<u128>())),
            _ => "null".to_owned(),
        }
    }
}

fn enum_name(name: &str) -> String {
    quoted(name)
}

fn date(random: &mut SmallRng, from: i32, before: i32) -> String {
    let (year, month, day) = (
        random.random_range(from..before),
        random.random_range(1..=12),
        random.random_range(1..=28),
    );
    format!("\"{year}-{month:02}-{day:02}\"")
}

fn date_time(random: &mut SmallRng, from: i32, before: i32) -> String {
    let date = date(random, from, before);
    let (hour, minute, second) = (
        random.random_range(0..24),
        random.random_range(0..60),
        random.random_range(0..60),
    );
    let more = ["", "", ".5", ".123456789", "Z", "+02:00", ".25Z"][random.random_range(0..7)];
    let between = if random.random() { " " } else { "T" };
    format!(
        "{}{between}{hour:02}:{minute:02}:{second:02}{more}\"",
        date.trim_end_matches('"')
    )
}

fn is_container(data_type: &DataType) -> bool {
    matches!(
        data_type.storage().as_ref(),
        DataType::Array(_) | DataType::Map(..) | DataType::Tuple(_)
    )
}

/// The record as a faulty producer, a cut connection or an attacker would send it.
pub(crate) fn damaged(record: Record, random: &mut SmallRng) -> Record {
    let mut text = record.text.clone();
    let at = random.random_range(0..text.len());
    match random.random_range(0..21) {
        0 => text.truncate(at),
        1 => drop(text.remove(at)),
        2 => text.insert(at, b",:{}[]\"\\ \t\x00\x1f0-.e"[random.random_range(0..16)]),
        3 => text[at] = [0xff, 0xc0, 0xed, 0xf4, 0x80, b'"'][random.random_range(0..6)],
        4 => text.extend_from_slice(b" garbage"),
        5 => text.extend_from_slice(&record.text),
        6 => text.extend_from_slice(b","),
        7 => text.splice(0..0, *b"\xef\xbb\xbf").for_each(drop),
        8 => text = [b"[".as_slice(), &text, b"]"].concat(),
        9 => text = [b"[".as_slice(), &text, b",", &record.text, b"]"].concat(),
        10 => text = b"null".to_vec(),
        11 => text = b"17".to_vec(),
        12 => text.clear(),
        13 => text = b" \r\n\t ".to_vec(),
        14 => unknown(&mut text, "[]"),
        15 => {
            let depth = [126, 127, 128, 600][random.random_range(0..4)];
            unknown(&mut text, &["[".repeat(depth), "]".repeat(depth)].concat());
        }
        16 => unknown(
            &mut text,
            [
                "\"\\ud83d\"",
                "\"\\udc00\"",
                "\"\\ude00\\ud83d\"",
                "\"\\u12\"",
                "\"\\x\"",
            ][random.random_range(0..5)],
        ),
        17 => unknown(
            &mut text,
            ["01", "+1", "1.", ".5", "1e", "NaN", "-Infinity", "0x1", "1e400", "-"][random.random_range(0..10)],
        ),
        18 => unknown(
            &mut text,
            [
                "'a'",
                "[1,]",
                "{\"a\":1,}",
                "{a:1}",
                "/* c */ 1",
                "tru",
                "\"a\tb\"",
                "\"a\nb\"",
            ][random.random_range(0..8)],
        ),
        19 => text.splice(0..0, *b"{}").for_each(drop),
        _ => text.extend_from_slice(b"\n\r\n"),
    }
    Record {
        text,
        alone: true,
        ..record
    }
}

/// Puts a value under a key that no table has.
fn unknown(text: &mut Vec<u8>, value: &str) {
    text.splice(0..1, format!("{{\"unknown\":{value},").into_bytes())
        .for_each(drop);
}

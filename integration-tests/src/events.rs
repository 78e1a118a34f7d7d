//! Made-up clickstream events of about 1 KB: nested objects, arrays, maps, unicode, and here and there one that is broken.
//! The same seed and number give the same event.

use std::fmt::Write as _;

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

/// Columns of a table that holds the events: name and ClickHouse type.
pub const COLUMNS: [(&str, &str); 20] = [
    ("id", "UInt64"),
    ("event_time", "DateTime64(3, 'UTC')"),
    ("event_type", "LowCardinality(String)"),
    ("user_id", "UUID"),
    ("session", "String"),
    ("seq_in_key", "UInt64"),
    ("country", "LowCardinality(String)"),
    ("ip", "IPv4"),
    ("url", "String"),
    ("referrer", "Nullable(String)"),
    ("title", "String"),
    ("amount", "Decimal(12, 2)"),
    ("score", "Float64"),
    ("tags", "Array(String)"),
    ("properties", "Map(String, String)"),
    ("geo", "Tuple(lat Float64, lon Float64, city String)"),
    (
        "items",
        "Array(Tuple(sku String, quantity UInt16, price Decimal(10, 2)))",
    ),
    ("flags", "Array(Bool)"),
    ("_key", "String"),
    ("_sequence_number", "String"),
];

/// The columns that a ledger needs: identity, order, what malformed events are malformed in, and one of each kind that costs
/// something. A million full events would make a test one of the disk.
pub fn ledger_columns() -> Vec<(&'static str, &'static str)> {
    let wanted = [
        "id",
        "event_type",
        "seq_in_key",
        "amount",
        "tags",
        "_key",
        "_sequence_number",
    ];
    COLUMNS.into_iter().filter(|(name, _)| wanted.contains(name)).collect()
}

const TYPES: [&str; 6] = ["page_view", "click", "add_to_cart", "purchase", "search", "login"];
const COUNTRIES: [&str; 8] = ["DE", "FR", "US", "BR", "JP", "IN", "KE", "AU"];
const CITIES: [&str; 8] = [
    "München",
    "Paris",
    "New York",
    "São Paulo",
    "東京",
    "मुंबई",
    "Nairobi",
    "Sydney",
];
const TITLES: [&str; 5] = [
    "Sommerschlussverkauf – bis zu 50 %",
    "Nouvelle collection « été »",
    "新着商品",
    "Checkout \\\"express\\\"",
    "Plants & pots 🌱",
];
const WORDS: [&str; 12] = [
    "alpha", "breeze", "cobalt", "delta", "ember", "fjord", "grove", "harbor", "iris", "jade", "kite", "lumen",
];
/// One event in this many is broken.
const MALFORMED_EVERY: u64 = 1000;

/// An event: what goes into the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Partition key.
    pub key: String,
    /// JSON text, or what should have been.
    pub data: Vec<u8>,
    /// Whether it must end up in the error table.
    pub malformed: bool,
}

/// Makes events, numbered from 0.
#[derive(Debug)]
pub struct Events {
    seed: u64,
    keys: u64,
    malformed: bool,
}

impl Events {
    /// Events over `keys` partition keys; some malformed ones among them if wanted.
    #[must_use]
    pub fn new(seed: u64, keys: u64, malformed: bool) -> Self {
        Self {
            seed,
            keys: keys.max(1),
            malformed,
        }
    }

    /// Whether event `id` is malformed.
    #[must_use]
    pub fn is_malformed(&self, id: u64) -> bool {
        self.malformed && id % MALFORMED_EVERY == MALFORMED_EVERY / 2
    }

    /// Number of the partition key of event `id`.
    #[must_use]
    pub fn key_number(&self, id: u64) -> u64 {
        id % self.keys
    }

    /// Partition key of event `id`.
    #[must_use]
    pub fn key(&self, id: u64) -> String {
        format!("user-{}", self.key_number(id))
    }

    /// Event `id`. Its `seq_in_key` counts the events of its key.
    #[must_use]
    pub fn event(&self, id: u64) -> Event {
        let mut rng = SmallRng::seed_from_u64(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ id);
        let mut data = String::with_capacity(1200);
        write(&mut data, &mut rng, id, id / self.keys);
        let malformed = self.is_malformed(id);
        let data = if malformed { spoil(data, id) } else { data.into_bytes() };
        Event {
            key: self.key(id),
            data,
            malformed,
        }
    }
}

/// Breaks an event in one of the ways in which producers do.
fn spoil(data: String, id: u64) -> Vec<u8> {
    match id / MALFORMED_EVERY % 5 {
        0 => data.as_bytes()[..data.len() / 2].to_vec(),
        1 => data.replacen("\"score\":", "\"score\":oops", 1).into_bytes(),
        2 => data.replacen("\"amount\":", "\"amount\":[],\"was\":", 1).into_bytes(),
        3 => {
            let mut bytes = data.into_bytes();
            if let Some(at) = bytes.windows(7).position(|w| w == b"\"title\"") {
                bytes[at + 10] = 0xff;
            }
            bytes
        }
        _ => Vec::new(),
    }
}

fn pick<'a>(rng: &mut SmallRng, from: &[&'a str]) -> &'a str {
    from[rng.random_range(0..from.len())]
}

fn write(out: &mut String, rng: &mut SmallRng, id: u64, seq_in_key: u64) {
    // Writing to a String cannot fail.
    let _ = try_write(out, rng, id, seq_in_key);
}

fn try_write(out: &mut String, rng: &mut SmallRng, id: u64, seq_in_key: u64) -> std::fmt::Result {
    let (millis, place) = (id % 1000, rng.random_range(0..CITIES.len()));
    let (minute, second) = (id / 60_000 % 60, id / 1000 % 60);
    write!(
        out,
        r#"{{"id":{id},"event_time":"2026-03-14 15:{minute:02}:{second:02}.{millis:03}","#
    )?;
    write!(out, r#""event_type":"{}","#, pick(rng, &TYPES))?;
    write!(
        out,
        r#""user_id":"{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}","#,
        rng.random::<u32>(),
        rng.random::<u16>(),
        rng.random_range(0..0x1000),
        rng.random_range(0..0x1000),
        rng.random_range(0..1u64 << 48)
    )?;
    write!(
        out,
        r#""session":"{:032x}","seq_in_key":{seq_in_key},"#,
        rng.random::<u128>()
    )?;
    write!(
        out,
        r#""country":"{}","ip":"{}","#,
        COUNTRIES[place],
        std::net::Ipv4Addr::from(rng.random::<u32>())
    )?;
    write!(
        out,
        r#""url":"https:\/\/shop.example.com\/{}\/{}?utm_source={}&page={}","#,
        pick(rng, &WORDS),
        pick(rng, &WORDS),
        pick(rng, &WORDS),
        rng.random_range(1..500)
    )?;
    if rng.random_range(0..3) == 0 {
        out.push_str(r#""referrer":null,"#);
    } else {
        write!(out, r#""referrer":"https:\/\/{}.example.net\/","#, pick(rng, &WORDS))?;
    }
    write!(
        out,
        r#""title":"{}","amount":"{}.{:02}","score":{:.6},"#,
        pick(rng, &TITLES),
        rng.random_range(0..100_000),
        rng.random_range(0..100),
        rng.random::<f64>() * 100.0
    )?;
    out.push_str(r#""tags":["#);
    for index in 0..rng.random_range(1..6) {
        write!(out, r#"{}"{}""#, if index == 0 { "" } else { "," }, pick(rng, &WORDS))?;
    }
    write!(
        out,
        r#"],"properties":{{"browser":"{}","theme":"dark\/\"{}\"","build":"{}"}},"#,
        pick(rng, &WORDS),
        pick(rng, &WORDS),
        rng.random::<u32>()
    )?;
    write!(
        out,
        r#""geo":{{"lat":{:.5},"lon":{:.5},"city":"{}"}},"items":["#,
        rng.random::<f64>() * 180.0 - 90.0,
        rng.random::<f64>() * 360.0 - 180.0,
        CITIES[place]
    )?;
    for index in 0..rng.random_range(1..4) {
        write!(
            out,
            r#"{}{{"sku":"SKU-{:06}","quantity":{},"price":{}.{:02}}}"#,
            if index == 0 { "" } else { "," },
            rng.random_range(0..1_000_000),
            rng.random_range(1..20),
            rng.random_range(1..500),
            rng.random_range(0..100)
        )?;
    }
    write!(out, r#"],"flags":[{},true],"note":""#, rng.random::<bool>())?;
    // An unmapped key, which readers skip; it brings the event to about a kilobyte.
    while out.len() < 960 {
        write!(out, "{} ", pick(rng, &WORDS))?;
    }
    out.push_str("\"}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_events_are_json_and_bad_ones_are_not_what_the_table_takes() {
        let events = Events::new(1, 100, true);
        let mut malformed = 0;
        for id in 0..5000 {
            let event = events.event(id);
            assert_eq!(event, events.event(id));
            match serde_json::from_slice::<serde_json::Value>(&event.data) {
                Ok(value) if !event.malformed => {
                    assert_eq!(
                        (value["id"].as_u64(), value["seq_in_key"].as_u64()),
                        (Some(id), Some(id / 100))
                    );
                    assert!((900..1300).contains(&event.data.len()), "{}", event.data.len());
                }
                Ok(value) => assert!(value["amount"].is_array(), "{value}"),
                Err(_) => assert!(event.malformed, "{}", String::from_utf8_lossy(&event.data)),
            }
            malformed += u64::from(event.malformed);
        }
        assert_eq!(malformed, 5);
    }
}

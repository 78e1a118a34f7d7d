//! The keys of a record: which column each belongs to, guessed from its place and otherwise looked up.
//!
//! Producers write the keys of their records in one order. So the key that stood at a place before is compared first, quotes and
//! colon and all, sixteen bytes at a time; only what is something else is searched for.

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

use super::lanes::{LANES, Lanes};
use crate::short::Short;

/// Longest key, with its quotes and colon, that is predicted; longer ones are looked up.
const PATTERN_BYTES: usize = 3 * LANES;

/// A key as it usually stands in a record: `"key":`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pattern {
    /// Its first bytes, and the others.
    head: [u8; LANES],
    tail: [[u8; LANES]; 2],
    /// 0: no text is it.
    length: u8,
    /// How many of them are in `head`.
    in_head: u8,
}

impl Pattern {
    /// The pattern of a key without escapes. One that is too long is never found.
    pub(super) fn of(key: &[u8]) -> Pattern {
        let length = key.len() + 3;
        let plain = !key.iter().any(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
        let mut bytes = [0; PATTERN_BYTES];
        let mut known = 0;
        if length <= PATTERN_BYTES && plain {
            bytes[0] = b'"';
            bytes[1..=key.len()].copy_from_slice(key);
            bytes[key.len() + 1..length].copy_from_slice(b"\":");
            known = length;
        }
        let (lanes, _) = bytes.as_chunks::<LANES>();
        Pattern {
            head: lanes[0],
            tail: [lanes[1], lanes[2]],
            length: known as u8,
            in_head: known.min(LANES) as u8,
        }
    }

    /// The length of the pattern, if the text begins with it; else 0.
    #[inline(always)]
    pub(super) fn of_text(&self, text: &[u8]) -> usize {
        let Some(head) = text.first_chunk() else {
            return self.of_short_text(text);
        };
        let difference = Lanes::load(head).first_difference(Lanes::load(&self.head));
        if difference < usize::from(self.in_head) {
            return 0;
        }
        if usize::from(self.length) <= LANES {
            return usize::from(self.length);
        }
        self.tail_of_text(text)
    }

    /// The same close to the end of a record.
    #[inline(never)]
    fn of_short_text(&self, text: &[u8]) -> usize {
        let length = usize::from(self.length);
        let found = length <= LANES && text.starts_with(&self.head[..length]);
        if found { length } else { 0 }
    }

    /// The same for the bytes after the first.
    fn tail_of_text(&self, text: &[u8]) -> usize {
        let length = usize::from(self.length);
        let mut compared = LANES;
        for tail in &self.tail {
            let Some(lanes) = text.get(compared..).and_then(<[u8]>::first_chunk) else {
                return 0;
            };
            let difference = Lanes::load(lanes).first_difference(Lanes::load(tail));
            if difference < LANES.min(length - compared) {
                return 0;
            }
            compared += LANES;
            if compared >= length {
                return length;
            }
        }
        0
    }
}

/// Keys with a meaning, by their names and by number, from 0 in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct KeyTable {
    names: Vec<Box<[u8]>>,
    patterns: Vec<Pattern>,
    table: HashTable<u32>,
}

/// The short ones among the keys of a mapping, to be found at once.
#[derive(Debug)]
pub(crate) struct ShortKeys {
    /// Each name at or after its place; at least three of four places are empty.
    places: Vec<(Short, u32)>,
}

impl KeyTable {
    /// The number of this key; a new one if it is new.
    pub(crate) fn enter(&mut self, name: &[u8]) -> u32 {
        if let Some(known) = self.find(name) {
            return known;
        }
        let number = self.names.len() as u32;
        self.names.push(name.into());
        self.patterns.push(Pattern::of(name));
        let names = &self.names;
        self.table
            .insert_unique(hash(name), number, |number| hash(&names[*number as usize]));
        number
    }

    /// The number of this key, if there is one.
    #[inline]
    pub(crate) fn find(&self, name: &[u8]) -> Option<u32> {
        let names = &self.names;
        self.table
            .find(hash(name), |number| *names[*number as usize] == *name)
            .copied()
    }

    /// The name of a key.
    pub(super) fn name(&self, number: usize) -> &[u8] {
        &self.names[number]
    }

    /// What a key looks like in a record; `None` past the last one.
    #[inline]
    pub(super) fn pattern(&self, number: usize) -> Option<&Pattern> {
        self.patterns.get(number)
    }
}

impl ShortKeys {
    /// Those of these keys.
    pub(super) fn of(keys: &KeyTable) -> ShortKeys {
        let places = 4 * keys.names.len().next_power_of_two();
        let mut short_keys = ShortKeys {
            places: vec![(Short::NONE, 0); places],
        };
        for (name, number) in keys.names.iter().zip(0..) {
            if let Some(short) = Short::of_text(name) {
                short_keys.enter(short, number);
            }
        }
        short_keys
    }

    fn enter(&mut self, name: Short, number: u32) {
        let mask = self.places.len() - 1;
        let mut place = name.hash() & mask;
        while self.places[place].0 != Short::NONE {
            place = (place + 1) & mask;
        }
        self.places[place] = (name, number);
    }

    /// The number of this key, if there is one.
    #[inline(always)]
    pub(super) fn find(&self, name: Short) -> Option<u32> {
        let mask = self.places.len().wrapping_sub(1);
        let mut place = name.hash();
        loop {
            let (known, number) = self.places.get(place & mask)?;
            if *known == name {
                return Some(*number);
            }
            if *known == Short::NONE {
                return None;
            }
            place += 1;
        }
    }
}

/// Two words tell most names apart; of longer ones all counts, because in a `Dynamic` column it is the record that names them.
#[inline]
fn hash(name: &[u8]) -> u64 {
    if name.len() > LANES {
        return xxh3_64(name);
    }
    let (head, tail) = match (name.first_chunk::<8>(), name.last_chunk::<8>()) {
        (Some(head), Some(tail)) => (u64::from_le_bytes(*head), u64::from_le_bytes(*tail)),
        _ => {
            let short = name.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
            (short, 0)
        }
    };
    let product = u128::from(head ^ 0x9E37_79B9_7F4A_7C15) * u128::from(tail.rotate_left(23) ^ 0xD6E8_FEB8_6659_FD93);
    let mixed = (product >> 64) as u64 ^ product as u64 ^ name.len() as u64;
    mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_found_where_it_stands_and_nowhere_else() {
        for length in 0..60 {
            let key = "k".repeat(length);
            let pattern = Pattern::of(key.as_bytes());
            let text = format!("{{\"{key}\":1,\"after\":\"                                                  \"}}");
            let wanted = if length + 3 <= PATTERN_BYTES { length + 3 } else { 0 };
            assert_eq!(pattern.of_text(&text.as_bytes()[1..]), wanted, "{text}");
            for other in [format!("{key}x"), format!("{key} "), format!("x{key}")] {
                let text = text.replacen(&format!("\"{key}\""), &format!("\"{other}\""), 1);
                assert_eq!(pattern.of_text(&text.as_bytes()[1..]), 0, "{text}");
            }
            assert_eq!(pattern.of_text(format!("\"{key}\"").as_bytes()), 0);
            let short = format!("\"{key}\":1}}");
            let wanted = if length + 3 <= LANES { length + 3 } else { 0 };
            assert!(
                [wanted, length + 3].contains(&pattern.of_text(short.as_bytes())),
                "{short}"
            );
        }
        assert_eq!(Pattern::of(b"a\"b").of_text(b"\"a\"b\":                        "), 0);
    }

    #[test]
    fn keys_are_numbered_and_found() {
        let mut table = KeyTable::default();
        let names: Vec<String> = (0..500).map(|n| "key".repeat(n % 7) + &n.to_string()).collect();
        for (number, name) in names.iter().enumerate() {
            assert_eq!(table.find(name.as_bytes()), None);
            assert_eq!(table.enter(name.as_bytes()), number as u32);
            assert_eq!(table.enter(name.as_bytes()), number as u32);
        }
        let short_keys = ShortKeys::of(&table);
        for (number, name) in names.iter().enumerate() {
            assert_eq!(table.find(name.as_bytes()), Some(number as u32));
            let mut wide = [b'x'; 16];
            if name.len() < wide.len() {
                wide[..name.len()].copy_from_slice(name.as_bytes());
                let short = Short::of(name.len(), &wide).unwrap();
                assert_eq!(short_keys.find(short), Some(number as u32));
                wide[..name.len()].fill(b'-');
                let unknown = Short::of(name.len(), &wide).unwrap();
                assert_eq!(short_keys.find(unknown), None);
            }
        }
    }
}

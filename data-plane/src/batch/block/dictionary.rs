//! A `LowCardinality` column: each distinct value once, in order of appearance, and an index per row.
//!
//! Invariant: the dictionary holds exactly its fixed first entries and the values that rows refer to, in the order in
//! which rows first referred to them; so cutting rows off leaves the bytes that would be there without them.

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

use super::column::Column;
use super::output::{Output, put_numbers};
use crate::short::Short;

/// The serialization with one dictionary per block.
const KEYS_WITH_ADDITIONAL: u64 = 1;
/// Flags of that serialization: additional keys follow, and they are all the keys there are.
const HAS_ADDITIONAL_KEYS: u64 = 0x600;

/// Short texts of the last rows and their entries, so that most rows need not search the dictionary. Only a memory: whatever is
/// in it is in the dictionary too.
#[derive(Debug, Clone, Default)]
struct Recent {
    /// As many as a power of two; a text has one of two places.
    places: Vec<(Short, u32)>,
}

impl Recent {
    /// Most places: with more they would crowd what else is in the processor's cache.
    const MOST: usize = 4096;

    /// Where a text may be: here, or beside it.
    #[inline(always)]
    fn place(&self, short: Short) -> usize {
        short.hash() & self.places.len().wrapping_sub(1)
    }

    #[inline(always)]
    fn find(&self, short: Short) -> Option<u32> {
        let place = self.place(short);
        let (known, index) = self.places.get(place)?;
        if *known == short {
            return Some(*index);
        }
        let (known, index) = self.places.get(place ^ 1)?;
        (*known == short).then_some(*index)
    }

    /// Notes an entry of a dictionary of so many; the places grow with it.
    fn note(&mut self, short: Short, index: u32, entries: usize) {
        let wanted = (4 * entries).next_power_of_two().clamp(16, Self::MOST);
        if self.places.len() < wanted {
            self.places.clear();
            self.places.resize(wanted, (Short::NONE, 0));
        }
        let place = self.place(short);
        self.places[place ^ 1] = std::mem::replace(&mut self.places[place], (short, index));
    }

    /// Forgets a text, given as a column writes it: its length, one byte where it is short, and itself.
    fn remove(&mut self, written: &[u8]) {
        let Some(short) = written.get(1..).and_then(Short::of_text) else {
            return;
        };
        let place = self.place(short);
        for place in [place, place ^ 1] {
            if let Some(known) = self.places.get_mut(place).filter(|(known, _)| *known == short) {
                *known = (Short::NONE, 0);
            }
        }
    }

    fn forget(&mut self) {
        self.places.fill((Short::NONE, 0));
    }
}

/// A dictionary and the rows that refer to it.
#[derive(Debug, Clone)]
pub(crate) struct Dictionary {
    /// Entry 0 is NULL if the column is nullable, else the default; both are written as the default value.
    values: Column,
    /// Where each entry starts in the values' bytes.
    starts: Vec<usize>,
    /// The row that brought each entry in.
    first_rows: Vec<usize>,
    indexes: Vec<u32>,
    nullable: bool,
    table: HashTable<u32>,
    recent: Recent,
}

impl Dictionary {
    pub(crate) fn new(mut values: Column, nullable: bool) -> Dictionary {
        values.push_default();
        let mut dictionary = Dictionary {
            values,
            starts: vec![0],
            first_rows: vec![0],
            indexes: Vec::new(),
            nullable,
            table: HashTable::new(),
            recent: Recent::default(),
        };
        if !nullable {
            dictionary.enter(0);
        }
        dictionary
    }

    pub(crate) fn rows(&self) -> usize {
        self.indexes.len()
    }

    /// Each distinct value once.
    pub(super) fn values(&self) -> &Column {
        &self.values
    }

    /// The entry of each row.
    pub(super) fn indexes(&self) -> &[u32] {
        &self.indexes
    }

    /// Whether entry 0 is NULL.
    pub(super) fn is_nullable(&self) -> bool {
        self.nullable
    }

    pub(crate) fn values_mut(&mut self) -> &mut Column {
        &mut self.values
    }

    /// NULL, or the default value: both are entry 0.
    pub(crate) fn push_default(&mut self) {
        self.indexes.push(0);
    }

    /// Whether [`push_text`](Self::push_text) may be used.
    #[inline]
    pub(crate) fn holds_strings(&self) -> bool {
        matches!(self.values, Column::String(_))
    }

    /// Appends a row with this text; `short` is the same, where it is short.
    #[inline(always)]
    pub(crate) fn push_text(&mut self, text: &[u8], short: Option<Short>) {
        if let Some(index) = short.and_then(|short| self.recent.find(short)) {
            self.indexes.push(index);
            return;
        }
        self.push_new_text(text, short);
    }

    #[inline(never)]
    fn push_new_text(&mut self, text: &[u8], short: Option<Short>) {
        if let Column::String(strings) = &mut self.values {
            strings.push(text);
        }
        self.intern_last();
        if let (Some(short), Some(index)) = (short, self.indexes.last()) {
            self.recent.note(short, *index, self.starts.len());
        }
    }

    /// Ends a row whose value was just appended to the values.
    #[inline]
    pub(crate) fn intern_last(&mut self) {
        let entries = self.starts.len();
        let start = self.values.flat_bytes_before_last(entries);
        let bytes = &self.values.flat_bytes()[start..];
        let hash = xxh3_64(bytes);
        let (all, starts) = (self.values.flat_bytes(), &self.starts);
        let known = self.table.find(hash, |index| {
            let index = *index as usize;
            let end = starts.get(index + 1).copied().unwrap_or(start);
            &all[starts[index]..end] == bytes
        });
        if let Some(index) = known {
            self.indexes.push(*index);
            self.values.pop_flat();
            return;
        }
        self.starts.push(start);
        self.first_rows.push(self.indexes.len());
        self.indexes.push(entries as u32);
        self.enter(entries as u32);
    }

    fn enter(&mut self, index: u32) {
        let (all, starts) = (self.values.flat_bytes(), &self.starts);
        let hash_of = |index: &u32| {
            let index = *index as usize;
            xxh3_64(&all[starts[index]..starts.get(index + 1).copied().unwrap_or(all.len())])
        };
        let hash = hash_of(&index);
        self.table.insert_unique(hash, index, hash_of);
    }

    pub(crate) fn truncate(&mut self, rows: usize) {
        // A decoding that failed may have left a value without its row.
        self.values.truncate(self.starts.len());
        self.indexes.truncate(rows);
        while self.starts.len() > 1 && self.first_rows.last().is_some_and(|first| *first >= rows) {
            let index = (self.starts.len() - 1) as u32;
            let start = self.starts[index as usize];
            let hash = xxh3_64(&self.values.flat_bytes()[start..]);
            if let Ok(entry) = self.table.find_entry(hash, |candidate| *candidate == index) {
                entry.remove();
            }
            self.recent.remove(&self.values.flat_bytes()[start..]);
            self.starts.pop();
            self.first_rows.pop();
            self.values.truncate(self.starts.len());
        }
    }

    pub(crate) fn clear(&mut self) {
        // Faster than taking entries out one by one.
        self.indexes.clear();
        self.table.clear();
        self.recent.forget();
        self.starts.truncate(1);
        self.first_rows.truncate(1);
        self.values.truncate(1);
        if !self.nullable {
            self.enter(0);
        }
    }

    fn index_width(&self) -> usize {
        match self.starts.len() {
            0..=0x100 => 1,
            0x101..=0x1_0000 => 2,
            _ => 4,
        }
    }

    pub(crate) fn encoded_bytes(&self) -> usize {
        if self.indexes.is_empty() {
            return 8;
        }
        8 + 24 + self.values.encoded_bytes() + self.indexes.len() * self.index_width()
    }

    pub(crate) fn write_prefix(out: &mut dyn Output) {
        out.put(&KEYS_WITH_ADDITIONAL.to_le_bytes());
    }

    pub(crate) fn write_data(&self, out: &mut dyn Output) {
        if self.indexes.is_empty() {
            return;
        }
        let width = self.index_width();
        let width_code = width.trailing_zeros() as u64;
        out.put(&(HAS_ADDITIONAL_KEYS | width_code).to_le_bytes());
        out.put(&(self.starts.len() as u64).to_le_bytes());
        out.put(self.values.flat_bytes());
        out.put(&(self.indexes.len() as u64).to_le_bytes());
        let indexes = self.indexes.iter();
        match width {
            1 => put_numbers(out, indexes.map(|index| [*index as u8])),
            2 => put_numbers(out, indexes.map(|index| (*index as u16).to_le_bytes())),
            _ => put_numbers(out, indexes.map(|index| index.to_le_bytes())),
        }
    }
}

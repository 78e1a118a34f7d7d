//! A column of strings as Native wants it: each with its length before it, one after the other.

/// Rows between two noted offsets: going back walks over fewer than this many strings.
const MARK_EVERY: usize = 64;

/// Strings in wire layout, which can be cut back to fewer rows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Strings {
    bytes: Vec<u8>,
    rows: usize,
    /// Where every 64th string starts.
    marks: Vec<usize>,
    /// Where the string that was appended last starts.
    last_start: usize,
}

impl Strings {
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The whole column on the wire.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    #[inline]
    pub(crate) fn push(&mut self, value: &[u8]) {
        self.push_with(value.len(), |out| out.extend_from_slice(value));
    }

    /// Appends a string of `length` bytes, which `write` appends.
    #[inline]
    pub(crate) fn push_with(&mut self, length: usize, write: impl FnOnce(&mut Vec<u8>)) {
        self.begin();
        append_varint(&mut self.bytes, length as u64);
        let start = self.bytes.len();
        write(&mut self.bytes);
        debug_assert_eq!(self.bytes.len() - start, length);
    }

    /// Appends the first `length` bytes of `wide`, of which there are less than 128: copying a fixed number of bytes and taking
    /// some back is faster than copying as many as there are.
    #[inline(always)]
    pub(crate) fn push_head<const WIDTH: usize>(&mut self, length: usize, wide: &[u8; WIDTH]) {
        const { assert!(WIDTH < 0x80, "the length is one byte") };
        self.begin();
        self.bytes.reserve(1 + WIDTH);
        self.bytes.push(length as u8);
        self.bytes.extend_from_slice(wide);
        self.bytes.truncate(self.last_start + 1 + length);
    }

    #[inline(always)]
    fn begin(&mut self) {
        self.last_start = self.bytes.len();
        if self.rows.is_multiple_of(MARK_EVERY) {
            self.marks.push(self.last_start);
        }
        self.rows += 1;
    }

    /// Where the string that was just appended starts.
    pub(crate) fn start_of_last(&self) -> usize {
        self.last_start
    }

    /// Takes back the string that was just appended.
    pub(crate) fn pop(&mut self) {
        self.bytes.truncate(self.last_start);
        self.rows -= 1;
        self.marks.truncate(self.rows.div_ceil(MARK_EVERY));
    }

    pub(crate) fn truncate(&mut self, rows: usize) {
        if rows >= self.rows {
            return;
        }
        let mark = rows / MARK_EVERY;
        let mut at = self.marks[mark];
        for _ in 0..rows % MARK_EVERY {
            let (length, width) = read_varint(&self.bytes[at..]);
            at += width + length as usize;
        }
        self.bytes.truncate(at);
        self.marks.truncate(rows.div_ceil(MARK_EVERY));
        self.rows = rows;
    }
}

/// A length or count as ClickHouse writes it: seven bits a byte, lowest first.
#[inline]
pub(crate) fn append_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A string with its length before it.
pub(crate) fn append_string(out: &mut Vec<u8>, value: &[u8]) {
    append_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// Bytes that `append_varint` takes for this value.
pub(crate) fn varint_width(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// A length or count, and the bytes that it takes.
pub(super) fn read_varint(bytes: &[u8]) -> (u64, usize) {
    let mut value = 0;
    for (index, byte) in bytes.iter().enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if *byte < 0x80 {
            return (value, index + 1);
        }
    }
    (value, bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cutting_back_is_exact_at_every_row() {
        let values: Vec<Vec<u8>> = (0..300).map(|i| vec![b'x'; i % 200]).collect();
        let mut prefixes = vec![Strings::default()];
        let mut strings = Strings::default();
        for value in &values {
            strings.push(value);
            prefixes.push(strings.clone());
        }
        for value in values.iter().take(130) {
            strings.push(value);
            strings.pop();
            assert_eq!(
                (&strings.bytes, &strings.marks),
                (&prefixes[300].bytes, &prefixes[300].marks)
            );
        }
        for rows in (0..=300).rev() {
            strings.truncate(rows);
            assert_eq!(strings.bytes, prefixes[rows].bytes);
            assert_eq!(strings.marks, prefixes[rows].marks);
            assert_eq!(strings.rows(), rows);
        }
    }

    #[test]
    fn varints_round_trip() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = Vec::new();
            append_varint(&mut bytes, value);
            assert_eq!(read_varint(&bytes), (value, bytes.len()));
            assert_eq!(varint_width(value), bytes.len());
        }
    }
}

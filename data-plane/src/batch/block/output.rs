//! Where a block writes itself: a buffer, or a stage that passes the bytes on, so that a block is never in memory twice.

/// Bytes of numbers that are collected before they are passed on.
const PIECE_BYTES: usize = 4 * 1024;

/// Takes the bytes of a block, in order.
pub trait Output {
    /// Takes the next bytes.
    fn put(&mut self, bytes: &[u8]);
}

impl Output for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Puts a length or count as ClickHouse writes it: seven bits a byte, lowest first.
pub(crate) fn put_varint(out: &mut dyn Output, mut value: u64) {
    let (mut bytes, mut length) = ([0; 10], 0);
    while value >= 0x80 {
        bytes[length] = value as u8 | 0x80;
        value >>= 7;
        length += 1;
    }
    bytes[length] = value as u8;
    out.put(&bytes[..=length]);
}

/// Puts a string with its length before it.
pub(crate) fn put_string(out: &mut dyn Output, value: &[u8]) {
    put_varint(out, value.len() as u64);
    out.put(value);
}

/// Puts fixed-width numbers, a few thousand bytes at a time.
pub(crate) fn put_numbers<const WIDTH: usize>(out: &mut dyn Output, numbers: impl Iterator<Item = [u8; WIDTH]>) {
    let mut piece = [0; PIECE_BYTES];
    let mut length = 0;
    for number in numbers {
        if length + WIDTH > PIECE_BYTES {
            out.put(&piece[..length]);
            length = 0;
        }
        piece[length..length + WIDTH].copy_from_slice(&number);
        length += WIDTH;
    }
    out.put(&piece[..length]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::block::strings::append_varint;

    #[test]
    fn numbers_are_put_whole_and_in_order() {
        for count in [0_u64, 1, 511, 512, 513, 5_000] {
            let mut out = Vec::new();
            put_numbers(&mut out, (0..count).map(u64::to_le_bytes));
            let wanted: Vec<u8> = (0..count).flat_map(u64::to_le_bytes).collect();
            assert!(out == wanted, "{count}");
        }
    }

    #[test]
    fn varints_are_those_of_strings() {
        for value in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, u64::from(u32::MAX), u64::MAX] {
            let (mut put, mut appended) = (Vec::new(), Vec::new());
            put_varint(&mut put, value);
            append_varint(&mut appended, value);
            assert_eq!(put, appended);
        }
    }
}

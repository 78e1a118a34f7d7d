//! Texts of a few bytes as two words, so that they are compared and hashed without a loop.

/// A text of at most 15 bytes with its length, in two words: equal exactly if the texts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Short(u64, u64);

impl Short {
    /// No text: its length would be 255.
    pub(crate) const NONE: Short = Short(u64::MAX, u64::MAX);

    /// The first `length` bytes of `wide`, if that is short.
    #[inline(always)]
    pub(crate) fn of(length: usize, wide: &[u8; 16]) -> Option<Short> {
        if length >= wide.len() {
            return None;
        }
        let text = u128::from_le_bytes(*wide) & ((1 << (8 * length)) - 1);
        Some(Short(text as u64, (text >> 64) as u64 | (length as u64) << 56))
    }

    /// This text, if it is short.
    pub(crate) fn of_text(text: &[u8]) -> Option<Short> {
        let mut wide = [0; 16];
        wide.get_mut(..text.len())?.copy_from_slice(text);
        Short::of(text.len(), &wide)
    }

    /// A number whose lower bits differ for texts that differ, more often than not. Whoever chooses the texts gains no more than
    /// a full table could cost: tables of them are bounded.
    #[inline(always)]
    pub(crate) fn hash(self) -> usize {
        let mixed = (self.0 ^ self.1.rotate_left(29)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed >> 40) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn texts_are_equal_or_not() {
        let mut wide = *b"abcdefghijklmnop";
        let shorts: Vec<Short> = (0..16).filter_map(|length| Short::of(length, &wide)).collect();
        assert_eq!(shorts.len(), 16);
        assert_eq!(Short::of(16, &wide), None);
        assert_eq!(Short::of_text(&wide), None);
        for (length, short) in shorts.iter().enumerate() {
            wide[length..].fill(0);
            assert_eq!(Short::of(length, &wide), Some(*short), "what follows does not matter");
            assert_eq!(Short::of_text(&wide[..length]), Some(*short));
            wide = *b"abcdefghijklmnop";
        }
        let distinct: HashSet<(u64, u64)> = shorts.iter().map(|short| (short.0, short.1)).collect();
        assert_eq!(distinct.len(), 16);
        assert_ne!(Short::of(1, b"\0aaaaaaaaaaaaaaa"), Short::of(0, b"\0aaaaaaaaaaaaaaa"));
    }
}

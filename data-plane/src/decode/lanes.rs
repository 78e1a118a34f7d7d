//! Sixteen bytes of a record looked at at once: with vector instructions where every processor of the architecture has them
//! (SSE2 on x86-64), in two words elsewhere. Nothing has to be found out at run time, so that all of it is inlined where it is used.
//!
//! The words are tested everywhere, and the vectors beside them.

/// Bytes in [`Lanes`].
pub(crate) const LANES: usize = 16;

#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
pub(crate) use sse2::Lanes;
#[cfg(not(all(target_arch = "x86_64", target_feature = "sse2")))]
pub(crate) use words::Lanes;

#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
#[allow(unsafe_code, reason = "the only way to vector instructions")]
mod sse2 {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi8, _mm_and_si128, _mm_cmpeq_epi8, _mm_cvtsi128_si64, _mm_loadu_si128, _mm_min_epu8,
        _mm_movemask_epi8, _mm_or_si128, _mm_packus_epi16, _mm_set1_epi8, _mm_set1_epi16, _mm_slli_epi16,
        _mm_srli_epi16, _mm_sub_epi8,
    };

    use super::LANES;

    /// Sixteen bytes.
    #[derive(Clone, Copy)]
    pub(crate) struct Lanes(__m128i);

    impl Lanes {
        #[inline(always)]
        pub(crate) fn load(bytes: &[u8; LANES]) -> Lanes {
            // SAFETY: this module is compiled only for processors with SSE2; the load reads the 16 bytes that are borrowed and
            // wants no alignment.
            Lanes(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
        }

        /// One bit per byte, the first one lowest: the lowest that is set is the first quote, backslash or control character.
        #[inline(always)]
        pub(crate) fn special(self) -> u32 {
            // SAFETY: as above.
            unsafe {
                let quotes = _mm_cmpeq_epi8(self.0, _mm_set1_epi8(b'"' as i8));
                let backslashes = _mm_cmpeq_epi8(self.0, _mm_set1_epi8(b'\\' as i8));
                let controls = _mm_cmpeq_epi8(_mm_min_epu8(self.0, _mm_set1_epi8(0x1F)), self.0);
                _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(quotes, backslashes), controls)) as u32
            }
        }

        /// Where the first byte is that `other` has otherwise; `LANES` if there is none.
        #[inline(always)]
        pub(crate) fn first_difference(self, other: Lanes) -> usize {
            // SAFETY: as above.
            let equal = unsafe { _mm_movemask_epi8(_mm_cmpeq_epi8(self.0, other.0)) };
            (!equal).trailing_zeros() as usize
        }

        /// The number that sixteen hexadecimal digits are.
        #[inline(always)]
        pub(crate) fn hexadecimal(self) -> Option<u64> {
            // SAFETY: as above.
            unsafe {
                let digits = _mm_sub_epi8(self.0, _mm_set1_epi8(b'0' as i8));
                let are_digits = _mm_cmpeq_epi8(_mm_min_epu8(digits, _mm_set1_epi8(9)), digits);
                let lower = _mm_or_si128(self.0, _mm_set1_epi8(0x20));
                let letters = _mm_sub_epi8(lower, _mm_set1_epi8(b'a' as i8));
                let are_letters = _mm_cmpeq_epi8(_mm_min_epu8(letters, _mm_set1_epi8(5)), letters);
                if _mm_movemask_epi8(_mm_or_si128(are_digits, are_letters)) != 0xFFFF {
                    return None;
                }
                let letters = _mm_add_epi8(letters, _mm_set1_epi8(10));
                let values = _mm_or_si128(_mm_and_si128(digits, are_digits), _mm_and_si128(letters, are_letters));
                // The first digit of a pair is the low byte of two.
                let pairs = _mm_or_si128(_mm_slli_epi16::<4>(values), _mm_srli_epi16::<8>(values));
                let pairs = _mm_and_si128(pairs, _mm_set1_epi16(0xFF));
                Some((_mm_cvtsi128_si64(_mm_packus_epi16(pairs, pairs)) as u64).swap_bytes())
            }
        }
    }
}

#[cfg(any(test, not(all(target_arch = "x86_64", target_feature = "sse2"))))]
mod words {
    use super::LANES;

    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;

    /// Sixteen bytes.
    #[derive(Clone, Copy)]
    pub(crate) struct Lanes(u64, u64);

    impl Lanes {
        #[inline]
        pub(crate) fn load(bytes: &[u8; LANES]) -> Lanes {
            let bytes = u128::from_le_bytes(*bytes);
            Lanes(bytes as u64, (bytes >> 64) as u64)
        }

        /// One bit per byte, the first one lowest: the lowest that is set is the first quote, backslash or control character.
        #[inline]
        pub(crate) fn special(self) -> u32 {
            special(self.0) | special(self.1) << 8
        }

        /// Where the first byte is that `other` has otherwise; `LANES` if there is none.
        #[inline]
        pub(crate) fn first_difference(self, other: Lanes) -> usize {
            first(self.0 ^ other.0, self.1 ^ other.1)
        }

        /// The number that sixteen hexadecimal digits are.
        #[inline]
        pub(crate) fn hexadecimal(self) -> Option<u64> {
            Some(u64::from(hexadecimal(self.0)?) << 32 | u64::from(hexadecimal(self.1)?))
        }
    }

    /// The number that eight hexadecimal digits are.
    #[inline]
    fn hexadecimal(digits: u64) -> Option<u32> {
        let text = digits.swap_bytes();
        let letters = (text >> 6) & ONES;
        let values = (text & (ONES * 0x0F)) + letters * 9;
        // Written again they must be what they were, but for the case of letters.
        let above_nine = ((values + ONES * 6) >> 4) & ONES;
        let written = values + ONES * u64::from(b'0') + above_nine * 0x27;
        if written != text | letters << 5 || values & (ONES * 0xF0) != 0 {
            return None;
        }
        let pairs = (values | values >> 4) & 0x00FF_00FF_00FF_00FF;
        let fours = (pairs | pairs >> 8) & 0x0000_FFFF_0000_FFFF;
        Some((fours | fours >> 16) as u32)
    }

    /// One bit per byte: those of special bytes, and perhaps of some after one, which does not matter.
    #[inline]
    fn special(word: u64) -> u32 {
        let zeros = |word: u64| word.wrapping_sub(ONES) & !word;
        let quotes = zeros(word ^ (ONES * b'"' as u64));
        let backslashes = zeros(word ^ (ONES * b'\\' as u64));
        let controls = word.wrapping_sub(ONES * 0x20) & !word;
        let high_bits = (quotes | backslashes | controls) & HIGHS;
        ((high_bits >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u32
    }

    /// The first byte of two words that is not zero.
    #[inline]
    fn first(low: u64, high: u64) -> usize {
        if low != 0 {
            low.trailing_zeros() as usize / 8
        } else {
            8 + high.trailing_zeros() as usize / 8
        }
    }
}

/// Where the first quote, backslash or control character of 32 bytes is; 32 if there is none.
#[inline(always)]
pub(crate) fn first_special(bytes: &[u8; 2 * LANES]) -> usize {
    let (lanes, _) = bytes.as_chunks::<LANES>();
    let found = Lanes::load(&lanes[0]).special() | Lanes::load(&lanes[1]).special() << LANES;
    found.trailing_zeros() as usize
}

/// How many of eight bytes are decimal digits before the first that is none, and the number that those are.
#[inline(always)]
pub(crate) fn leading_digits(bytes: &[u8; 8]) -> (usize, u64) {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let values = u64::from_le_bytes(*bytes) ^ (ONES * b'0' as u64);
    let above_nine = ((values & (ONES * 0x7F)) + ONES * 0x76) | values;
    let count = (above_nine & (ONES * 0x80)).trailing_zeros() as usize / 8;
    // With zeros before them they are eight.
    let eight = if count == 0 { 0 } else { values << (8 * (8 - count)) };
    let pairs = eight.wrapping_mul(10).wrapping_add(eight >> 8);
    let low = (pairs & 0x0000_00FF_0000_00FF).wrapping_mul(0x000F_4240_0000_0064);
    let high = (pairs >> 16 & 0x0000_00FF_0000_00FF).wrapping_mul(0x0000_2710_0000_0001);
    (count, low.wrapping_add(high) >> 32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn hexadecimal_is_what_the_standard_library_reads(
            digits in "[0-9a-fA-F]{16}", place in 0..LANES, byte in any::<u8>(),
        ) {
            let mut bytes: [u8; LANES] = digits.as_bytes().try_into().unwrap();
            let value = u64::from_str_radix(&digits, 16).ok();
            prop_assert_eq!(Lanes::load(&bytes).hexadecimal(), value);
            prop_assert_eq!(words::Lanes::load(&bytes).hexadecimal(), value);
            bytes[place] = byte;
            let value = bytes.iter().try_fold(0, |value, byte| {
                Some(value << 4 | u64::from(char::from(*byte).to_digit(16)?))
            });
            prop_assert_eq!(Lanes::load(&bytes).hexadecimal(), value);
            prop_assert_eq!(words::Lanes::load(&bytes).hexadecimal(), value);
        }

        #[test]
        fn digits_are_what_the_standard_library_reads(digits in "[0-9]{0,8}", end in any::<u8>()) {
            let mut bytes = [end; 8];
            bytes[..digits.len()].copy_from_slice(digits.as_bytes());
            if end.is_ascii_digit() {
                bytes[digits.len()..].fill(b'.');
            }
            prop_assert_eq!(leading_digits(&bytes), (digits.len(), digits.parse().unwrap_or(0)));
        }

        #[test]
        fn both_ways_find_what_a_loop_finds(
            bytes in proptest::array::uniform16(prop_oneof![Just(b'a'), Just(0x7F), Just(0x80), Just(0xFF), any::<u8>()]),
            place in 0..LANES, byte in any::<u8>(),
        ) {
            let special = bytes.iter().position(|b| matches!(b, b'"' | b'\\' | 0..0x20)).unwrap_or(LANES);
            let first = |found: u32| (found | 1 << LANES).trailing_zeros() as usize;
            prop_assert_eq!(first(Lanes::load(&bytes).special()), special);
            prop_assert_eq!(first(words::Lanes::load(&bytes).special()), special);
            let mut other = bytes;
            other[place] = byte;
            let difference = if byte == bytes[place] { LANES } else { place };
            prop_assert_eq!(Lanes::load(&bytes).first_difference(Lanes::load(&other)), difference);
            prop_assert_eq!(words::Lanes::load(&bytes).first_difference(words::Lanes::load(&other)), difference);
        }
    }
}

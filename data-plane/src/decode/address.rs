//! Fixed texts that are neither numbers nor times: UUID and IP addresses.

use std::net::Ipv6Addr;

use super::lanes::{LANES, Lanes};

/// A UUID of 32 hexadecimal digits, with dashes in the four usual places or none, as its two halves.
#[inline]
pub(crate) fn parse_uuid(text: &[u8]) -> Option<[u64; 2]> {
    let digits: [u8; 32] = match (<&[u8; 36]>::try_from(text), <&[u8; 32]>::try_from(text)) {
        (Ok(text), _) => {
            if [text[8], text[13], text[18], text[23]] != *b"----" {
                return None;
            }
            let mut digits = [0; 32];
            digits[..8].copy_from_slice(&text[..8]);
            digits[8..12].copy_from_slice(&text[9..13]);
            digits[12..16].copy_from_slice(&text[14..18]);
            digits[16..20].copy_from_slice(&text[19..23]);
            digits[20..].copy_from_slice(&text[24..]);
            digits
        }
        (_, Ok(text)) => *text,
        _ => return None,
    };
    let (halves, _) = digits.as_chunks::<LANES>();
    Some([
        Lanes::load(&halves[0]).hexadecimal()?,
        Lanes::load(&halves[1]).hexadecimal()?,
    ])
}

/// A UUID in ClickHouse's byte order: each half is a little-endian integer.
#[inline]
pub(crate) fn append_uuid(halves: [u64; 2], out: &mut Vec<u8>) {
    for half in halves {
        out.extend_from_slice(&half.to_le_bytes());
    }
}

/// Four decimal numbers up to 255 with points between; leading zeros are decimal too, as in ClickHouse.
pub(crate) fn parse_ipv4(text: &[u8]) -> Option<u32> {
    let mut address: u32 = 0;
    let mut parts = 0;
    for part in text.split(|byte| *byte == b'.') {
        if part.is_empty() || parts == 4 {
            return None;
        }
        let value = part.iter().try_fold(0u32, |value, digit| {
            let value = value * 10 + u32::from(digit.is_ascii_digit().then(|| digit - b'0')?);
            (value <= 255).then_some(value)
        })?;
        address = address << 8 | value;
        parts += 1;
    }
    (parts == 4).then_some(address)
}

/// An IPv6 address, or an IPv4 address as the mapped one.
pub(crate) fn parse_ipv6(text: &[u8]) -> Option<[u8; 16]> {
    if !text.contains(&b':') {
        let mapped = std::net::Ipv4Addr::from(parse_ipv4(text)?).to_ipv6_mapped();
        return Some(mapped.octets());
    }
    let address: Ipv6Addr = std::str::from_utf8(text).ok()?.parse().ok()?;
    Some(address.octets())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids() {
        let wanted = [
            0xe7, 0x11, 0xb3, 0x5c, 0x04, 0xc4, 0xf0, 0x61, 0xa0, 0xdb, 0xd3, 0x6a, 0x00, 0xa6, 0x7b, 0x90,
        ];
        for text in [
            "61f0c404-5cb3-11e7-907b-a6006ad3dba0",
            "61F0C4045CB311E7907BA6006AD3DBA0",
        ] {
            let mut bytes = Vec::new();
            append_uuid(parse_uuid(text.as_bytes()).unwrap(), &mut bytes);
            assert_eq!(bytes, wanted, "{text}");
        }
        for text in [
            "",
            "61f0c404",
            "{61f0c404-5cb3-11e7-907b-a6006ad3dba0}",
            "61f0c404-5cb3-11e7-907b-a6006ad3dbag",
        ] {
            assert_eq!(parse_uuid(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse_uuid("é".repeat(16).as_bytes()), None);
    }

    #[test]
    fn addresses() {
        assert_eq!(parse_ipv4(b"1.2.3.04"), Some(0x0102_0304));
        for text in [
            "",
            "1.2.3",
            "1.2.3.4.5",
            "256.1.1.1",
            "1..2.3",
            " 1.2.3.4",
            "::1",
            "99999999999.1.1.1",
        ] {
            assert_eq!(parse_ipv4(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse_ipv6(b"1.2.3.4"), parse_ipv6(b"::ffff:1.2.3.4"));
        assert_eq!(parse_ipv6(b"::1").unwrap()[15], 1);
        assert_eq!(parse_ipv6(b"fe80::1%eth0"), None);
    }
}

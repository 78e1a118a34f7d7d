//! Messages of `application/vnd.amazon.eventstream`: how SubscribeToShard's events travel.
//!
//! ```text
//!   total length u32 | headers length u32 | CRC32 of these 8 bytes | headers | payload | CRC32 of all before
//!   header: name length u8 | name | type u8 (7: text) | value length u16 | value
//! ```
//!
//! Follows "Amazon Kinesis Data Streams API Reference, SubscribeToShard" and the event stream encoding that AWS documents
//! for it (Amazon Transcribe Developer Guide, "Event stream encoding"). Only what the service sends is written here; nothing is read.

use bytes::{BufMut as _, Bytes, BytesMut};

/// A header whose value is text.
const TEXT: u8 = 7;
/// Prelude, its CRC and the CRC of the message.
const OVERHEAD: usize = 16;
const CONTENT_TYPE: &str = "application/x-amz-json-1.1";

/// An event of the stream's shape.
pub(super) fn event(name: &str, payload: &[Bytes]) -> Bytes {
    message(
        &[
            (":message-type", "event"),
            (":event-type", name),
            (":content-type", CONTENT_TYPE),
        ],
        payload,
    )
}

/// The event that comes before all others and says nothing.
pub(super) fn initial_response() -> Bytes {
    event("initial-response", &[Bytes::from_static(b"{}")])
}

/// An error that the API reference names for the stream; it is the last message.
pub(super) fn exception(name: &str, message_text: &str) -> Bytes {
    let payload = serde_json::json!({ "message": message_text }).to_string();
    message(
        &[
            (":message-type", "exception"),
            (":exception-type", name),
            (":content-type", CONTENT_TYPE),
        ],
        &[payload.into()],
    )
}

fn message(headers: &[(&str, &str)], payload: &[Bytes]) -> Bytes {
    let mut head = BytesMut::with_capacity(128);
    for (name, value) in headers {
        // Names and values are constants of this program, and far shorter than the lengths allow.
        head.put_u8(name.len() as u8);
        head.put_slice(name.as_bytes());
        head.put_u8(TEXT);
        head.put_u16(value.len() as u16);
        head.put_slice(value.as_bytes());
    }
    let payload_bytes: usize = payload.iter().map(Bytes::len).sum();
    let total = OVERHEAD + head.len() + payload_bytes;
    let mut out = BytesMut::with_capacity(total);
    out.put_u32(total as u32);
    out.put_u32(head.len() as u32);
    out.put_u32(crc32fast::hash(&out));
    out.put_slice(&head);
    for piece in payload {
        out.put_slice(piece);
    }
    out.put_u32(crc32fast::hash(&out));
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_its_lengths_and_checksums() {
        let message = event("Some", &[Bytes::from_static(b"ab"), Bytes::from_static(b"c")]);
        let word = |at: usize| u32::from_be_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]]);
        assert_eq!(word(0) as usize, message.len());
        assert_eq!(word(8), crc32fast::hash(&message[..8]));
        let end = message.len() - 4;
        assert_eq!(word(end), crc32fast::hash(&message[..end]));
        assert_eq!(&message[end - 3..end], b"abc");
        assert_eq!(word(4) as usize, end - 3 - 12);
        // CRC32 as everybody computes it.
        assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926);
    }
}

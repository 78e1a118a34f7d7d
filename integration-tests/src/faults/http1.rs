//! Where HTTP/1.1 messages begin and end in a stream of bytes. It knows lengths and chunks, and nothing else of HTTP.
//!
//! Invariant: what it cannot follow it gives up on, for good, and says nothing more; it never guesses.

use memchr::memmem;

/// Longest head. No server of ours takes a longer one.
const MAX_HEAD: usize = 256 * 1024;
/// Longest message that is kept to be sent again.
const MAX_MESSAGE: usize = 64 << 20;

/// A whole message, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) bytes: Vec<u8>,
    head: usize,
}

impl Message {
    /// First line and headers.
    pub(super) fn head(&self) -> &[u8] {
        &self.bytes[..self.head]
    }

    /// The status of a response.
    pub(super) fn status(&self) -> Option<u16> {
        let line = self.bytes.split(|byte| *byte == b'\r').next()?;
        let mut words = line.split(|byte| *byte == b' ');
        words.next().filter(|word| word.starts_with(b"HTTP/1."))?;
        std::str::from_utf8(words.next()?).ok()?.parse().ok()
    }
}

/// Cuts a stream into messages.
#[derive(Debug, Default)]
pub(super) struct Messages {
    buffer: Vec<u8>,
    lost: bool,
}

impl Messages {
    /// Takes in bytes and gives the messages that they complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<Message> {
        let mut complete = Vec::new();
        if self.lost {
            return complete;
        }
        self.buffer.extend_from_slice(bytes);
        loop {
            match extent(&self.buffer) {
                Extent::Whole { head, message } => {
                    let rest = self.buffer.split_off(message);
                    let bytes = std::mem::replace(&mut self.buffer, rest);
                    complete.push(Message { bytes, head });
                }
                Extent::Unfinished if self.buffer.len() <= MAX_MESSAGE => return complete,
                Extent::Unfinished | Extent::Other => {
                    self.lost = true;
                    self.buffer = Vec::new();
                    return complete;
                }
            }
        }
    }
}

enum Extent {
    /// The head and the whole message end here.
    Whole { head: usize, message: usize },
    /// More bytes are needed.
    Unfinished,
    /// This is no HTTP/1.1 message.
    Other,
}

fn extent(bytes: &[u8]) -> Extent {
    let Some(head) = memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4) else {
        return if bytes.len() > MAX_HEAD {
            Extent::Other
        } else {
            Extent::Unfinished
        };
    };
    let Ok(text) = std::str::from_utf8(&bytes[..head]) else {
        return Extent::Other;
    };
    let mut lines = text.split("\r\n");
    if !lines.next().is_some_and(|line| line.contains("HTTP/1.")) {
        return Extent::Other;
    }
    let header = |wanted: &str| {
        lines.clone().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(wanted).then(|| value.trim())
        })
    };
    let chunked = header("transfer-encoding").is_some_and(|value| value.to_ascii_lowercase().ends_with("chunked"));
    let end = if chunked {
        chunks_end(bytes, head)
    } else {
        match header("content-length").map(str::parse::<usize>) {
            None => Ok(Some(head)),
            Some(Ok(length)) => Ok(head.checked_add(length)),
            Some(Err(_)) => Err(()),
        }
    };
    match end {
        Ok(Some(message)) if message <= bytes.len() => Extent::Whole { head, message },
        Ok(_) => Extent::Unfinished,
        Err(()) => Extent::Other,
    }
}

/// Where a chunked body that begins at `at` ends.
fn chunks_end(bytes: &[u8], mut at: usize) -> Result<Option<usize>, ()> {
    loop {
        let Some(line) = memmem::find(&bytes[at..], b"\r\n") else {
            return Ok(None);
        };
        let size = std::str::from_utf8(&bytes[at..at + line]).map_err(drop)?;
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).map_err(drop)?;
        // The chunk, or after the last one no trailer, and a line end.
        at = at
            .checked_add(line + 2)
            .and_then(|at| at.checked_add(size))
            .and_then(|at| at.checked_add(2))
            .ok_or(())?;
        if at > bytes.len() {
            return Ok(None);
        }
        if &bytes[at - 2..at] != b"\r\n" {
            return Err(());
        }
        if size == 0 {
            return Ok(Some(at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &[u8] = b"POST /?query=x HTTP/1.1\r\nHost: a\r\ncontent-LENGTH: 5\r\n\r\nhello";
    const CHUNKED: &[u8] =
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n";
    const BARE: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

    #[test]
    fn messages_are_found_however_the_bytes_are_cut() {
        let stream = [PLAIN, BARE, CHUNKED, PLAIN].concat();
        for step in [1, 2, 7, stream.len()] {
            let mut messages = Messages::default();
            let found: Vec<Vec<u8>> = stream
                .chunks(step)
                .flat_map(|chunk| messages.push(chunk))
                .map(|message| message.bytes)
                .collect();
            assert_eq!(found, [PLAIN, BARE, CHUNKED, PLAIN], "in steps of {step}");
        }
    }

    #[test]
    fn what_is_not_http_1_is_let_be() {
        let others: [&[u8]; 4] = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"\x00\x00\x00\x08\x04\xd2\x16\x2f\r\n\r\n\xff",
        ];
        for other in others {
            let mut messages = Messages::default();
            assert_eq!(messages.push(other), []);
            assert_eq!(messages.push(PLAIN), [], "it does not begin again: {other:?}");
        }
    }

    #[test]
    fn a_response_has_a_status() {
        let mut messages = Messages::default();
        let found = messages.push(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(found[0].status(), Some(200));
        assert_eq!(found[0].head(), found[0].bytes);
    }
}

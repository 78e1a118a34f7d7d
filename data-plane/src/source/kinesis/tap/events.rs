//! Takes the records out of the events of a subscription before the SDK looks at them, as the rest of the tap does with the answers
//! of GetRecords.
//!
//! ```text
//!   connection --> Sieve --> the SDK: frames, errors and all other events; of an event that was taken, an empty one with a mark
//!                    |                                                                    |
//!                    +--> Taken: what was in it, until its mark comes back  <-------------+
//! ```
//!
//! A frame is `total length u32 | headers length u32 | CRC32 of these | headers | payload | CRC32 of all before`. One that is broken,
//! and one that the scan does not know, goes to the SDK as it came: every error is the SDK's. The mark stands where the number to
//! continue at was, and is no sequence number, so an event that lost what was taken from it cannot pass for one without records.

use std::{
    collections::VecDeque,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use aws_smithy_types::body::{Error, SdkBody};
use bytes::{BufMut as _, Bytes, BytesMut};
use http_body::{Body, Frame};
use parking_lot::Mutex;

use super::{
    super::{client::Reply, scan::scan_event},
    LEAST_SPARE_BODY, keep_body, spare_body,
};

/// Lengths, and the CRC of these.
const PRELUDE: usize = 12;
const CRC: usize = 4;
/// The encoding allows 16 MiB of payload and 128 KiB of headers.
const LARGEST_FRAME: usize = (16 << 20) + (128 << 10) + PRELUDE + CRC;
/// The type of a header whose value is text.
const TEXT: u8 = 7;
/// What stands in the place of a sequence number, before a count.
const MARK: &str = "taken/";

/// What was taken out of one subscription's events and has not been claimed, oldest first.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Taken(Arc<Mutex<VecDeque<(String, Reply)>>>);

impl Taken {
    /// What was in the event that has this mark now. Its `next_iterator` is where to continue.
    pub(in super::super) fn claim(&self, mark: &str) -> Option<Reply> {
        let mut taken = self.0.lock();
        // In order, and none is left out: the SDK gives events as they come.
        taken.pop_front_if(|(of, _)| of == mark).map(|(_, reply)| reply)
    }
}

/// A body of events, without the records that were taken from it.
pub(super) struct Sieve {
    inner: SdkBody,
    /// Of the next frame, as far as it has come. A large buffer is held by no subscription between two events: there are many.
    waiting: Vec<u8>,
    /// It is no stream of frames, or a broken one: the SDK is to say so.
    raw: bool,
    taken: Taken,
    count: u64,
}

impl Sieve {
    pub(super) fn new(inner: SdkBody, taken: Taken) -> Self {
        Self {
            inner,
            waiting: Vec::new(),
            raw: false,
            taken,
            count: 0,
        }
    }

    /// The next bytes for the SDK, if they are there.
    fn sift(&mut self) -> Option<Bytes> {
        let length = if self.raw { None } else { self.frame_length()? };
        let Some(length) = length else {
            self.raw = true;
            return Some(Bytes::from(mem::take(&mut self.waiting))).filter(|bytes| !bytes.is_empty());
        };
        if self.waiting.len() < length {
            if self.waiting.capacity() < length {
                let mut body = match length {
                    LEAST_SPARE_BODY.. => spare_body(),
                    _ => Vec::new(),
                };
                body.reserve_exact(length);
                body.extend_from_slice(&self.waiting);
                self.waiting = body;
            }
            return None;
        }
        let begun = self.waiting.split_off(length);
        let frame = mem::replace(&mut self.waiting, begun);
        Some(match self.without_records(&frame) {
            Some(empty) => {
                keep_body(frame);
                empty
            }
            None => Bytes::from(frame),
        })
    }

    /// How long the next frame is, as soon as that is known; the inner one is none if it cannot be a frame.
    fn frame_length(&self) -> Option<Option<usize>> {
        let prelude = self.waiting.get(..PRELUDE)?;
        let length = word(prelude, 0).and_then(|length| usize::try_from(length).ok());
        let sound = word(prelude, 8) == Some(crc32fast::hash(&prelude[..8]));
        Some(length.filter(|length| sound && (PRELUDE + CRC..=LARGEST_FRAME).contains(length)))
    }

    /// The same frame with an empty event, if the scan knows all that was in it.
    fn without_records(&mut self, frame: &[u8]) -> Option<Bytes> {
        let (rest, crc) = frame.split_at(frame.len() - CRC);
        let headers_end = PRELUDE.checked_add(usize::try_from(word(frame, 4)?).ok()?)?;
        let headers = rest.get(PRELUDE..headers_end)?;
        if !is_event_of_records(headers)? || word(crc, 0)? != crc32fast::hash(rest) {
            return None;
        }
        let reply = scan_event(&rest[headers_end..])?;
        self.count += 1;
        let mark = format!("{MARK}{}", self.count);
        let empty = format!(r#"{{"Records":[],"ContinuationSequenceNumber":"{mark}","MillisBehindLatest":0}}"#);
        self.taken.0.lock().push_back((mark, reply));
        framed(headers, empty.as_bytes())
    }
}

impl Body for Sieve {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            if let Some(bytes) = self.sift() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            match ready!(Pin::new(&mut self.inner).poll_frame(context)) {
                Some(Ok(frame)) => {
                    // There are no trailers that the SDK would read.
                    if let Ok(data) = frame.into_data() {
                        self.waiting.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                // Less than a frame: what to think of it is the SDK's business.
                None if !self.waiting.is_empty() => self.raw = true,
                None => return Poll::Ready(None),
            }
        }
    }
}

/// The big-endian number at this place.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// Whether these are the headers of an event that may hold records; `None` if they are not understood.
fn is_event_of_records(mut headers: &[u8]) -> Option<bool> {
    let (mut message, mut event) = (None, None);
    while let Some((length, rest)) = headers.split_first() {
        let (name, rest) = rest.split_at_checked(usize::from(*length))?;
        let (kind, rest) = rest.split_first()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        if *kind != TEXT {
            return None;
        }
        match name {
            b":message-type" => message = Some(value),
            b":event-type" => event = Some(value),
            _ => {}
        }
        headers = rest;
    }
    Some(message == Some(b"event") && event == Some(b"SubscribeToShardEvent"))
}

/// A frame of these headers and this payload.
fn framed(headers: &[u8], payload: &[u8]) -> Option<Bytes> {
    let length = PRELUDE + headers.len() + payload.len() + CRC;
    let mut frame = BytesMut::with_capacity(length);
    frame.put_u32(u32::try_from(length).ok()?);
    frame.put_u32(u32::try_from(headers.len()).ok()?);
    frame.put_u32(crc32fast::hash(&frame));
    frame.put_slice(headers);
    frame.put_slice(payload);
    frame.put_u32(crc32fast::hash(&frame));
    Some(frame.freeze())
}

#[cfg(test)]
mod tests;

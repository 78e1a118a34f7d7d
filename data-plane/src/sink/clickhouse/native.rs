//! ClickHouse's compressed frames, for bodies that are sent with `decompress=1`.
//!
//! ```text
//!   CityHash128 of the rest (16) | method (1) | size of this frame without the hash (4) | plain size (4) | LZ4 block, or Zstandard frame
//! ```
//!
//! All numbers are little-endian. The hash is the version of CityHash that ClickHouse froze.

use std::fmt;

use cityhash_rs::cityhash_102_128;
use lz4_flex::block::{compress_into, get_maximum_output_size};
use zstd::{bulk::Compressor, zstd_safe::compress_bound};

use crate::batch::block::Output;

/// Most plain bytes in a frame: what ClickHouse itself writes, and what it buffers per frame when it reads.
const FRAME_BYTES: usize = 1 << 20;
/// Zstandard beyond this level is several times the work for some percent fewer bytes.
const ZSTD_LEVEL: i32 = 1;
/// Method and the two sizes.
const HEADER_BYTES: usize = 9;
const CHECKSUM_BYTES: usize = 16;

/// How frames are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// LZ4.
    Lz4,
    /// Zstandard, level 1.
    Zstd,
}

impl Method {
    /// The byte that says so in a frame.
    fn byte(self) -> u8 {
        match self {
            Method::Lz4 => 0x82,
            Method::Zstd => 0x90,
        }
    }
}

/// Appends the bytes of a block as compressed frames.
pub fn compress(native: &[u8], method: Method, out: &mut Vec<u8>) {
    let mut coder = Coder::new(method);
    for plain in native.chunks(FRAME_BYTES) {
        coder.append_frame(plain, out);
    }
}

/// Compresses what is put into it as it comes: of the plain bytes there is never more than a frame in memory.
#[derive(Debug)]
pub struct Frames {
    coder: Coder,
    plain: Vec<u8>,
    frames: Vec<u8>,
}

impl Frames {
    /// No frames yet.
    #[must_use]
    pub fn new(method: Method) -> Self {
        Self {
            coder: Coder::new(method),
            plain: Vec::new(),
            frames: Vec::new(),
        }
    }

    /// The frames, the same as [`compress`] makes of all bytes at once.
    pub fn finish(mut self) -> Vec<u8> {
        if !self.plain.is_empty() {
            self.coder.append_frame(&self.plain, &mut self.frames);
        }
        self.frames.shrink_to_fit();
        self.frames
    }
}

impl Output for Frames {
    fn put(&mut self, mut bytes: &[u8]) {
        while self.plain.len() + bytes.len() >= FRAME_BYTES {
            let (head, rest) = bytes.split_at(FRAME_BYTES - self.plain.len());
            if self.plain.is_empty() {
                self.coder.append_frame(head, &mut self.frames);
            } else {
                self.plain.extend_from_slice(head);
                self.coder.append_frame(&self.plain, &mut self.frames);
                self.plain.clear();
            }
            bytes = rest;
        }
        self.plain.extend_from_slice(bytes);
    }
}

/// Compresses frame by frame.
struct Coder {
    method: Method,
    /// The state of Zstandard; without it, bytes are compressed with LZ4.
    zstd: Option<Compressor<'static>>,
}

impl fmt::Debug for Coder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Coder").field(&self.method).finish()
    }
}

impl Coder {
    fn new(method: Method) -> Self {
        let zstd = match method {
            Method::Lz4 => None,
            // It fails only where there is no memory for its state: ClickHouse takes LZ4 just as well.
            Method::Zstd => Compressor::new(ZSTD_LEVEL).ok(),
        };
        let method = if zstd.is_some() { method } else { Method::Lz4 };
        Self { method, zstd }
    }

    fn append_frame(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        let body = start + CHECKSUM_BYTES + HEADER_BYTES;
        let room = get_maximum_output_size(plain.len()).max(compress_bound(plain.len()));
        out.resize(body + room, 0);
        // The output is as large as it can get, so compression cannot fail.
        let compressed = match &mut self.zstd {
            Some(zstd) => zstd.compress_to_buffer(plain, &mut out[body..]).unwrap_or_default(),
            None => compress_into(plain, &mut out[body..]).unwrap_or_default(),
        };
        out.truncate(body + compressed);
        let header = &mut out[start + CHECKSUM_BYTES..];
        header[0] = self.method.byte();
        header[1..5].copy_from_slice(&((HEADER_BYTES + compressed) as u32).to_le_bytes());
        header[5..9].copy_from_slice(&(plain.len() as u32).to_le_bytes());
        let checksum = cityhash_102_128(&out[start + CHECKSUM_BYTES..]);
        // The first half of the hash is the high one here and comes first on the wire.
        out[start..start + 8].copy_from_slice(&((checksum >> 64) as u64).to_le_bytes());
        out[start + 8..start + CHECKSUM_BYTES].copy_from_slice(&(checksum as u64).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decompress(mut frames: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        while !frames.is_empty() {
            let size = u32::from_le_bytes(frames[17..21].try_into().unwrap()) as usize;
            let plain_size = u32::from_le_bytes(frames[21..25].try_into().unwrap()) as usize;
            assert!(plain_size <= FRAME_BYTES);
            let body = &frames[CHECKSUM_BYTES + HEADER_BYTES..CHECKSUM_BYTES + size];
            plain.extend(match frames[CHECKSUM_BYTES] {
                0x82 => lz4_flex::block::decompress(body, plain_size).unwrap(),
                0x90 => zstd::bulk::decompress(body, plain_size).unwrap(),
                other => panic!("method {other:x}"),
            });
            frames = &frames[CHECKSUM_BYTES + size..];
        }
        plain
    }

    #[test]
    fn frames_round_trip() {
        for size in [
            0,
            1,
            100,
            FRAME_BYTES - 1,
            FRAME_BYTES,
            FRAME_BYTES + 1,
            3 * FRAME_BYTES + 7,
        ] {
            let native: Vec<u8> = (0..size).map(|i| (i * i % 251) as u8).collect();
            for method in [Method::Lz4, Method::Zstd] {
                let mut frames = vec![0xAA; 3];
                compress(&native, method, &mut frames);
                assert_eq!(frames[..3], [0xAA; 3]);
                assert!(decompress(&frames[3..]) == native, "{size}");
                assert!(frames.len() == 3 || frames[3 + CHECKSUM_BYTES] == method.byte());
                for piece in [1 + size / 3, FRAME_BYTES / 2, FRAME_BYTES, 3 * FRAME_BYTES] {
                    let mut in_pieces = Frames::new(method);
                    native.chunks(piece).for_each(|bytes| in_pieces.put(bytes));
                    assert!(in_pieces.finish() == frames[3..], "{size} in pieces of {piece}");
                }
            }
        }
    }
}

//! ClickHouse's compressed frames, for bodies that are sent with `decompress=1`.
//!
//! ```text
//!   CityHash128 of the rest (16) | method (1) | size of this frame without the hash (4) | plain size (4) | compressed bytes
//! ```
//!
//! All numbers are little-endian. The hash is the version of CityHash that ClickHouse froze. The method is 0x82 for an LZ4 block and 0x90 for
//! a ZSTD frame; each frame names its own, so one body may mix them.
//!
//! Compressing takes milliseconds per frame: not for threads that do IO.

use cityhash_rs::cityhash_102_128;
use lz4_flex::block::{compress_into, get_maximum_output_size};

use zstd::bulk::Compressor;

use crate::batch::block::Output;

/// Most plain bytes in a frame: what ClickHouse itself writes, and what it buffers per frame when it reads.
const FRAME_BYTES: usize = 1 << 20;
/// The method byte of LZ4.
const LZ4: u8 = 0x82;
/// The method byte of ZSTD.
const ZSTD: u8 = 0x90;
/// Level of ZSTD, the one that ClickHouse itself compresses with: the next ones take half as much time again for a few percent.
const ZSTD_LEVEL: i32 = 1;
/// Method and the two sizes.
const HEADER_BYTES: usize = 9;
const CHECKSUM_BYTES: usize = 16;

/// How to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Fast.
    Lz4,
    /// Smaller, for twice the time and more.
    Zstd,
}

/// Appends the bytes of a block as LZ4 frames.
pub fn compress_lz4(native: &[u8], out: &mut Vec<u8>) {
    for plain in native.chunks(FRAME_BYTES) {
        append_frame(plain, &mut None, out);
    }
}

/// Compresses what is put into it as it comes: of the plain bytes there is never more than a frame in memory.
pub struct Frames {
    plain: Vec<u8>,
    frames: Vec<u8>,
    /// ZSTD's memory between frames, about a megabyte; without it frames are LZ4.
    zstd: Option<Compressor<'static>>,
}

impl std::fmt::Debug for Frames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frames")
            .field("bytes", &self.frames.len())
            .field("zstd", &self.zstd.is_some())
            .finish_non_exhaustive()
    }
}

impl Frames {
    /// No frame yet.
    pub fn new(method: Method) -> Self {
        let zstd = match method {
            Method::Lz4 => None,
            // It fails only where there is no memory for it; the server takes LZ4 as well.
            Method::Zstd => Compressor::new(ZSTD_LEVEL).ok(),
        };
        Self {
            plain: Vec::new(),
            frames: Vec::new(),
            zstd,
        }
    }

    /// The frames; as LZ4 the same as [`compress_lz4`] makes of all bytes at once.
    pub fn finish(mut self) -> Vec<u8> {
        if !self.plain.is_empty() {
            append_frame(&self.plain, &mut self.zstd, &mut self.frames);
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
                append_frame(head, &mut self.zstd, &mut self.frames);
            } else {
                self.plain.extend_from_slice(head);
                append_frame(&self.plain, &mut self.zstd, &mut self.frames);
                self.plain.clear();
            }
            bytes = rest;
        }
        self.plain.extend_from_slice(bytes);
    }
}

fn append_frame(plain: &[u8], zstd: &mut Option<Compressor<'static>>, out: &mut Vec<u8>) {
    let start = out.len();
    let body = start + CHECKSUM_BYTES + HEADER_BYTES;
    let most = get_maximum_output_size(plain.len()).max(zstd::zstd_safe::compress_bound(plain.len()));
    out.resize(body + most, 0);
    // The output is as large as it can get, so compression cannot fail, but ZSTD's for want of memory: LZ4 needs next to none.
    let smaller = zstd
        .as_mut()
        .and_then(|zstd| zstd.compress_to_buffer(plain, &mut out[body..]).ok());
    let (method, compressed) = match smaller {
        Some(compressed) => (ZSTD, compressed),
        None => (LZ4, compress_into(plain, &mut out[body..]).unwrap_or_default()),
    };
    out.truncate(body + compressed);
    let header = &mut out[start + CHECKSUM_BYTES..];
    header[0] = method;
    header[1..5].copy_from_slice(&((HEADER_BYTES + compressed) as u32).to_le_bytes());
    header[5..9].copy_from_slice(&(plain.len() as u32).to_le_bytes());
    let checksum = cityhash_102_128(&out[start + CHECKSUM_BYTES..]);
    // The first half of the hash is the high one here and comes first on the wire.
    out[start..start + 8].copy_from_slice(&((checksum >> 64) as u64).to_le_bytes());
    out[start + 8..start + CHECKSUM_BYTES].copy_from_slice(&(checksum as u64).to_le_bytes());
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
                LZ4 => lz4_flex::block::decompress(body, plain_size).unwrap(),
                ZSTD => zstd::bulk::decompress(body, plain_size).unwrap(),
                method => panic!("method {method:#x}"),
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
            let mut frames = vec![0xAA; 3];
            compress_lz4(&native, &mut frames);
            assert_eq!(frames[..3], [0xAA; 3]);
            assert!(decompress(&frames[3..]) == native, "{size}");
            for piece in [1 + size / 3, FRAME_BYTES / 2, FRAME_BYTES, 3 * FRAME_BYTES] {
                let mut in_pieces = Frames::new(Method::Lz4);
                native.chunks(piece).for_each(|bytes| in_pieces.put(bytes));
                assert!(in_pieces.finish() == frames[3..], "{size} in pieces of {piece}");
                let mut in_pieces = Frames::new(Method::Zstd);
                native.chunks(piece).for_each(|bytes| in_pieces.put(bytes));
                let smaller = in_pieces.finish();
                assert!(size == 0 || smaller[CHECKSUM_BYTES] == ZSTD);
                assert!(decompress(&smaller) == native, "{size} in pieces of {piece}, as ZSTD");
            }
        }
    }
}

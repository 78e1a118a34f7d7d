//! Compression by its magic bytes. The libraries do the work; here it is bounded.

use std::{
    fmt,
    io::{self, Read},
};

use flate2::bufread::{MultiGzDecoder, ZlibDecoder};
use lz4_flex::frame::FrameDecoder as Lz4Decoder;
use snap::read::FrameDecoder as SnappyDecoder;

/// Most bytes that a message may inflate to. A Kinesis record has at most 10 MiB, and what a worker holds is bounded.
pub(crate) const MAX_INFLATED_BYTES: usize = 64 << 20;

/// The largest window of zstd that is taken, 2^26 bytes: its decoder holds so much beside what it gives.
const ZSTD_WINDOW_LOG: u32 = 26;

/// How a message is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Gzip,
    Zlib,
    Zstd,
    Lz4,
    Snappy,
}

/// Why a message cannot be inflated.
#[derive(Debug)]
pub(super) enum Error {
    Damaged(String),
    TooLarge,
}

impl Format {
    /// What the magic bytes say.
    pub(super) fn of(bytes: &[u8]) -> Option<Format> {
        match bytes {
            [0x1F, 0x8B, 0x08, ..] => Some(Format::Gzip),
            // Two bytes are a number that 31 divides; the second says how hard the compressor tried.
            [0x78, 0x01 | 0x5E | 0x9C | 0xDA, ..] => Some(Format::Zlib),
            [0x28, 0xB5, 0x2F, 0xFD, ..] => Some(Format::Zstd),
            [0x04, 0x22, 0x4D, 0x18, ..] => Some(Format::Lz4),
            [0xFF, 0x06, 0x00, 0x00, b's', b'N', b'a', b'P', b'p', b'Y', ..] => Some(Format::Snappy),
            _ => None,
        }
    }

    /// True if text may begin so.
    pub(super) fn is_weak(self) -> bool {
        self == Format::Zlib
    }

    /// Appends what the bytes are when they are not compressed.
    pub(super) fn inflate(self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let mut rest = bytes;
        let read = match self {
            Format::Gzip => read(MultiGzDecoder::new(&mut rest), out),
            Format::Zlib => read(ZlibDecoder::new(&mut rest), out),
            Format::Zstd => zstd(&mut rest).and_then(|decoder| read(decoder, out)),
            Format::Lz4 => lz4(&mut rest, out),
            Format::Snappy => read(SnappyDecoder::new(&mut rest), out),
        };
        match read {
            Ok(()) if out.len() > MAX_INFLATED_BYTES => Err(Error::TooLarge),
            // What nobody looked at must not get lost.
            Ok(()) if !rest.is_empty() => Err(Error::Damaged(format!("{} bytes follow its end", rest.len()))),
            Ok(()) => Ok(()),
            Err(error) => Err(Error::Damaged(error.to_string())),
        }
    }
}

fn zstd<'a, 'b>(rest: &'a mut &'b [u8]) -> io::Result<zstd::Decoder<'static, &'a mut &'b [u8]>> {
    let mut decoder = zstd::Decoder::with_buffer(rest)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG)?;
    Ok(decoder)
}

/// One frame may follow the other.
fn lz4(rest: &mut &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    while !rest.is_empty() && out.len() <= MAX_INFLATED_BYTES {
        read(Lz4Decoder::new(&mut *rest), out)?;
    }
    Ok(())
}

fn read(decoder: impl Read, out: &mut Vec<u8>) -> io::Result<()> {
    decoder.take(MAX_INFLATED_BYTES as u64 + 1).read_to_end(out).map(drop)
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Gzip => "gzip",
            Format::Zlib => "zlib",
            Format::Zstd => "zstd",
            Format::Lz4 => "an LZ4 frame",
            Format::Snappy => "a Snappy frame",
        })
    }
}

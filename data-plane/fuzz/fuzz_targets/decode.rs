//! Arbitrary bytes through the decoder. What must hold is in `check.rs`, which `cargo test` runs over the corpus.
#![no_main]

#[path = "../check.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));

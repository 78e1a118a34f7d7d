//! The corpus of the fuzz target `decode`, through the same checks: what was hostile once is tried at every `make test`.

#[path = "../fuzz/check.rs"]
mod check;

use std::fs;
use std::path::Path;

use anyhow::Context;

/// The seeds cover each table and each hostile class; fewer files would mean that they were not found.
const SEEDS: usize = 40;

#[test]
fn the_corpus_keeps_the_decoders_promises() -> anyhow::Result<()> {
    // Cargo's word when it runs the test, and not when it was built: a build may serve several clones.
    let package = std::env::var("CARGO_MANIFEST_DIR").context("cargo test sets it")?;
    let corpus = Path::new(&package).join("fuzz/corpus/decode");
    let mut inputs = 0;
    for entry in fs::read_dir(&corpus)? {
        let input = fs::read(entry?.path())?;
        check::check(&input);
        // Every seed cut short, and for every table: cheap, and hostile enough.
        for end in 0..input.len().min(256) {
            check::check(&input[..end]);
        }
        if let Some((_, records)) = input.split_first() {
            for table in 0..32 {
                check::check(&[&[table], records].concat());
            }
        }
        inputs += 1;
    }
    assert!(inputs >= SEEDS, "only {inputs} inputs in {}", corpus.display());
    Ok(())
}

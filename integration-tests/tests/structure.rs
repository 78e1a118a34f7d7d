//! Who may know whom: reads the source tree and checks the invariants of ARCHITECTURE.md.

use std::{
    fs,
    path::{Path, PathBuf},
};

use millrace_integration_tests::repository;

/// What may appear only below the given paths.
const RULES: [(&str, &[&str]); 7] = [
    ("sea_orm", &["control-plane/src/store"]),
    ("sqlx", &["control-plane/src/store"]),
    (
        "aws_sdk_kinesis",
        &["data-plane/src/source", "control-plane/src/discovery"],
    ),
    // What a user asks to see is decoded by the workers' own code, and nothing else of it is known.
    (
        "millrace_data_plane",
        &[
            "data-plane/src",
            "control-plane/src/sample",
            "clients/cli/src/standalone",
            // Only the name, as a target of log lines.
            "common/src/telemetry",
        ],
    ),
    ("clickhouse::Client", &["control-plane/src/destination"]),
    (
        "millrace_proto::api",
        &["control-plane/src/api", "control-plane/src/app", "clients/cli/src"],
    ),
    (
        "millrace_proto::worker",
        &[
            "control-plane/src/sessions",
            "control-plane/src/coordinator",
            "data-plane/src/session",
            "data-plane/src/commit",
        ],
    ),
];
/// What is held to the rules.
const ROOTS: [&str; 4] = ["common/src", "control-plane/src", "data-plane/src", "clients/cli/src"];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory)
        .expect("readable tree")
        .map(|entry| entry.expect("readable entry").path())
    {
        if entry.is_dir() {
            sources(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
}

fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn layers_know_only_what_they_may() {
    let root = repository();
    let mut files = Vec::new();
    ROOTS
        .iter()
        .for_each(|directory| sources(&root.join(directory), &mut files));
    assert!(files.len() > 50, "the tree was not found: {} files", files.len());
    let mut broken = Vec::new();
    let mut seen = [false; RULES.len()];
    for file in files {
        let relative = file
            .strip_prefix(&root)
            .expect("below the root")
            .to_string_lossy()
            .into_owned();
        let text = fs::read_to_string(&file).expect("readable source");
        for (index, (word, allowed)) in RULES.iter().enumerate() {
            for (number, line) in code_lines(&text).filter(|(_, line)| line.contains(word)) {
                // `path` allows `path.rs` and everything in `path/`.
                let ok = allowed.iter().any(|path| {
                    relative
                        .strip_prefix(path)
                        .is_some_and(|rest| rest.starts_with(".rs") || rest.starts_with('/'))
                });
                seen[index] |= ok;
                if !ok {
                    broken.push(format!("{relative}:{}: {}", number + 1, line.trim()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "not allowed here:\n{}", broken.join("\n"));
    for (rule, seen) in RULES.iter().zip(seen) {
        assert!(seen, "{} is used nowhere: the rule checks nothing", rule.0);
    }
}

#[test]
fn every_file_says_what_it_is() {
    let root = repository();
    let mut files = Vec::new();
    for directory in ROOTS
        .iter()
        .chain(&["proto/src", "integration-tests/src", "integration-tests/tests"])
    {
        sources(&root.join(directory), &mut files);
    }
    let silent: Vec<_> = files
        .iter()
        .filter(|file| !fs::read_to_string(file).expect("readable source").starts_with("//!"))
        .map(|file| file.display().to_string())
        .collect();
    assert!(silent.is_empty(), "files without a header:\n{}", silent.join("\n"));
}

/// The tests that documents of promises name are there, so that a promise does not outlive its proof.
#[test]
fn promises_name_tests_that_exist() {
    let root = repository();
    let mut files = Vec::new();
    for directory in [
        "integration-tests/tests",
        "data-plane/src",
        "control-plane/src",
        "clients/cli/src",
    ] {
        sources(&root.join(directory), &mut files);
    }
    let code: String = files
        .iter()
        .map(|file| fs::read_to_string(file).expect("readable source"))
        .collect();
    // Names of tests are sentences; names of files and settings are not.
    let is_test = |word: &&str| {
        word.matches('_').count() >= 3
            && word
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte.is_ascii_digit())
    };
    for (document, least) in [("docs/faults.md", 30), ("docs/hostile-requests.md", 15)] {
        let text = fs::read_to_string(root.join(document)).expect("the document");
        let named: Vec<&str> = text.split('`').filter(is_test).collect();
        assert!(named.len() > least, "{document}: {named:?}");
        let missing: Vec<_> = named
            .iter()
            .filter(|name| !code.contains(&format!("fn {name}(")))
            .collect();
        assert!(
            missing.is_empty(),
            "{document} names tests that are not there: {missing:?}"
        );
    }
}

/// What kinds of events there are is part of the API, and clients read of it in the contract.
#[test]
fn the_contract_names_every_kind_of_event() {
    let contract = fs::read_to_string(repository().join("proto/millrace/api/v1/pipe.proto")).expect("the contract");
    let missing: Vec<_> = millrace_control_plane::events::kind::ALL
        .iter()
        .filter(|kind| !contract.contains(**kind))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

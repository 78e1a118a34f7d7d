//! ClickHouse's own `FORMAT JSONEachRow` as the oracle of the decoder, on tables and records that nobody picked.
//!
//! Each case is a table of arbitrary columns and some dozens of records for it: valid, odd, and hostile. What Millrace
//! decodes goes into one table as a Native block, the same records go into its twin as JSON, and verdicts and rows must be
//! equal, record by record, but for the classes of `docs/json-semantics.md`, which are predicates in
//! `decode_oracle/differences.rs`.
//!
//! `MILLRACE_ORACLE_CASES` is the number of tables; `MILLRACE_ORACLE_SEED` the seed of the first, the next one has the next.
//! A failure prints the seed of its table, so that `MILLRACE_ORACLE_CASES=1` with that seed repeats it.

#![allow(clippy::print_stderr, reason = "what was compared is worth reading in the log")]

mod decode_oracle {
    pub(crate) mod differences;
    pub(crate) mod nodes;
    pub(crate) mod records;
    pub(crate) mod table;
    pub(crate) mod twins;
    pub(crate) mod value;
}

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use millrace_integration_tests::clickhouse::ClickHouse;
use rand::{SeedableRng as _, rngs::SmallRng};

use decode_oracle::records::{self, Record};
use decode_oracle::table;
use decode_oracle::twins::{Outcome, Twins};

/// Tables without `MILLRACE_ORACLE_CASES`: about a minute in a development build on two loaded cores.
const CASES: u64 = 80;
/// The seed without `MILLRACE_ORACLE_SEED`.
const SEED: u64 = 20_260_101;
/// Records that are JSON objects, for each table.
const RECORDS: usize = 64;
/// Records that are damaged, for each table; each costs an insert of its own.
const HOSTILE: usize = 8;
/// Failures that are shown; the first is enough to begin with.
const SHOWN: usize = 20;

fn setting(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text} is no number")),
        Err(_) => Ok(default),
    }
}

#[tokio::test]
async fn millrace_leaves_what_clickhouse_leaves() -> Result<()> {
    let (cases, seed) = (
        setting("MILLRACE_ORACLE_CASES", CASES)?,
        setting("MILLRACE_ORACLE_SEED", SEED)?,
    );
    let clickhouse = ClickHouse::shared().await;
    let mut tally = BTreeMap::new();
    let mut failures = Vec::new();
    for seed in seed..seed + cases {
        failures.extend(
            case(clickhouse, seed, &mut tally)
                .await
                .with_context(|| format!("seed {seed}"))?,
        );
        if failures.len() >= SHOWN {
            break;
        }
    }
    eprintln!("{tally:#?}");
    ensure!(
        failures.is_empty(),
        "{} differences:\n{}",
        failures.len(),
        failures[..failures.len().min(SHOWN)].join("\n")
    );
    let both = |what: &str| tally.get(what).copied().unwrap_or_default();
    // A test that compares next to nothing proves nothing.
    ensure!(both("rows of both") * 4 > both("records"), "too few records are rows");
    ensure!(
        both("refused by both") * 50 > both("records"),
        "too few records are refused"
    );
    Ok(())
}

async fn case(clickhouse: &ClickHouse, seed: u64, tally: &mut BTreeMap<String, usize>) -> Result<Vec<String>> {
    let mut random = SmallRng::seed_from_u64(seed);
    let table = table::arbitrary(&mut random);
    let mut twins = Twins::new(clickhouse, &table)
        .await
        .with_context(|| table.declaration())?;
    let records: Vec<Record> = (1..=RECORDS + HOSTILE)
        .map(|id| {
            let record = records::arbitrary(&twins.columns, id, &mut random);
            if id > RECORDS {
                records::damaged(record, &mut random)
            } else {
                record
            }
        })
        .collect();
    let outcomes = twins.compare(&records).await.with_context(|| table.declaration())?;
    let mut failures = Vec::new();
    for (record, outcome) in records.iter().zip(outcomes) {
        *tally.entry("records".to_owned()).or_default() += 1;
        let what = match outcome {
            Outcome::Rows => "rows of both".to_owned(),
            Outcome::Refused => "refused by both".to_owned(),
            Outcome::Documented(class) => format!("documented: {class}"),
            Outcome::Different(how) => {
                let text = String::from_utf8_lossy(&record.text);
                failures.push(format!("seed {seed}\n  {}\n  {text}\n  {how}", table.declaration()));
                "different".to_owned()
            }
        };
        *tally.entry(what).or_default() += 1;
    }
    twins.drop().await?;
    Ok(failures)
}

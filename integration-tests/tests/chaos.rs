//! Chaos for a short time, with two seeds that do not change: the control plane on PostgreSQL and on SQLite.
//! `make chaos SECONDS=600 SEED=7` runs it for longer.

#![allow(
    clippy::print_stderr,
    reason = "the verdict, and what led to it, is worth reading in the log"
)]

use std::time::Duration;

use anyhow::ensure;
use millrace_integration_tests::chaos::{self, Options};

/// Long enough for a dozen faults.
const TIME: Duration = Duration::from_secs(25);
/// Fewer would mean that something kept faults from taking hold.
const LEAST_FAULTS: u64 = 5;

async fn survive(seed: u64) -> anyhow::Result<()> {
    let options = Options {
        // Two runs share the machine with other tests.
        records_per_second: 1_000,
        say: |text| eprintln!("{text}"),
        ..Options::new(TIME, seed)
    };
    let report = Box::pin(chaos::run(options)).await?;
    eprintln!("{}", serde_json::to_string(&report)?);
    ensure!(report.is_clean(), "seed {seed}: {report:?}\n{}", report.trouble);
    ensure!(report.faults >= LEAST_FAULTS, "only {} faults took hold", report.faults);
    ensure!(report.records > 10_000, "only {} records were put", report.records);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn random_faults_on_postgresql_lose_and_double_nothing() -> anyhow::Result<()> {
    survive(20_260).await
}

#[tokio::test(flavor = "multi_thread")]
async fn random_faults_on_sqlite_lose_and_double_nothing() -> anyhow::Result<()> {
    survive(20_261).await
}

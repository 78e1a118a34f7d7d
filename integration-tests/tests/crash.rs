//! Kill -9 the worker, then the control plane, in the middle of a million records over 8 shards; a ledger counts. Three times, at
//! random moments.

#![allow(clippy::print_stderr, reason = "what was found is worth reading in the log")]

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use millrace_integration_tests::{
    clickhouse::ClickHouse,
    cluster::{Cluster, Options, Table, pipe_spec},
    events::{Events, ledger_columns},
    kinesis::{Emulator, Options as KinesisOptions, Put},
    ledger,
};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

const RECORDS: u64 = 1_000_000;
const SHARDS: u32 = 8;
const KEYS: u64 = 4000;
const ROUNDS: u64 = 3;
const LIMIT: Duration = Duration::from_secs(300);
/// Events made and put at a time.
const CHUNK: u64 = 2000;

#[tokio::test(flavor = "multi_thread")]
async fn killing_either_plane_loses_nothing_and_doubles_nothing() -> anyhow::Result<()> {
    let seed = std::env::var("MILLRACE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    eprintln!("MILLRACE_SEED={seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let clickhouse = ClickHouse::start(millrace_integration_tests::clickhouse::Options::default()).await?;
    let database = clickhouse.database().await?;
    let events = Arc::new(Events::new(seed, KEYS, true));
    let columns = ledger_columns();
    for round in 0..ROUNDS {
        // Moments as shares of all records: the worker dies early or late in its work, the control plane after it.
        let worker_dies = rng.random_range(RECORDS / 20..RECORDS / 2);
        let control_plane_dies = rng.random_range(worker_dies + RECORDS / 20..RECORDS * 9 / 10);
        eprintln!("round {round}: worker dies at {worker_dies} records, control plane at {control_plane_dies}");
        let table = format!("round_{round}");
        let kinesis = Emulator::start(KinesisOptions::default()).await?;
        kinesis.create_stream("ledger", SHARDS)?;
        let mut cluster = Cluster::start(Options::unpaced(), 1).await?;
        cluster.create_credentials(&clickhouse).await?;
        let shape = Table {
            database: &database,
            table: &table,
            columns: &columns,
            sorting_key: &["id"],
        };
        cluster
            .create_pipe(
                "ledger",
                pipe_spec(&kinesis.endpoint_url(), "ledger", &clickhouse, shape),
            )
            .await?;
        let kinesis = Arc::new(kinesis);
        let putting = {
            let (kinesis, events) = (Arc::clone(&kinesis), Arc::clone(&events));
            tokio::task::spawn_blocking(move || put(&kinesis, &events))
        };

        cluster
            .wait_for_records("ledger", worker_dies, LIMIT)
            .await
            .with_context(|| cluster.logs())?;
        cluster.kill_worker(0).await?;
        cluster.start_worker(0)?;
        cluster
            .wait_for_records("ledger", control_plane_dies, LIMIT)
            .await
            .with_context(|| cluster.logs())?;
        cluster.kill_control_plane().await?;
        cluster.start_control_plane().await?;
        putting.await??;
        let totals = cluster
            .wait_for_records("ledger", RECORDS, LIMIT)
            .await
            .with_context(|| cluster.logs())?;

        let errors = format!("{table}_millrace_error");
        let tables = ledger::Tables {
            database: &database,
            table: &table,
            errors: &errors,
        };
        let verdict = ledger::check(&clickhouse, tables, &events, RECORDS).await?;
        eprintln!("round {round}: {}", serde_json::to_string(&verdict)?);
        ensure!(
            verdict.is_clean(),
            "MILLRACE_SEED={seed}: {verdict:?}\n{}",
            cluster.logs()
        );
        ensure!(
            (totals.rows, totals.rejected_records, totals.records) == (verdict.rows, verdict.rejected, RECORDS),
            "the pipe counts {totals:?}, the tables hold {verdict:?}"
        );
        clickhouse.query(&format!("DROP TABLE {database}.{table}")).await?;
    }
    Ok(())
}

fn put(kinesis: &millrace_integration_tests::kinesis::Handle, events: &Events) -> anyhow::Result<()> {
    for start in (0..RECORDS).step_by(usize::try_from(CHUNK)?) {
        let chunk: Vec<_> = (start..(start + CHUNK).min(RECORDS))
            .map(|id| events.event(id))
            .collect();
        kinesis.put_records_direct("ledger", chunk.iter().map(|event| Put::new(&event.key, &event.data)))?;
    }
    Ok(())
}

//! Records that only ClickHouse can refuse: a batch that it refuses as a whole is made smaller until what is refused is
//! single records, and those go to the error table with the server's words. Where it is not certain that nothing of the batch
//! was applied, nothing is made smaller: the pipe waits and says why.

#![allow(clippy::print_stderr, reason = "what was found is worth reading in the log")]

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use millrace_integration_tests::{
    clickhouse::ClickHouse,
    cluster::{Cluster, Options, Table, pipe_spec},
    kinesis::{Emulator, Handle, Options as KinesisOptions, Put},
    process::eventually,
};
use millrace_proto::api::v1::Settings;

const LIMIT: Duration = Duration::from_secs(120);
const RECORDS: u64 = 2000;
const STREAM: &str = "poison";
const COLUMNS: [(&str, &str); 4] = [
    ("id", "UInt64"),
    ("value", "Int32"),
    ("_key", "String"),
    ("_sequence_number", "String"),
];
/// What a worker logs when it has made a batch smaller.
const SPLIT: &str = "cut into smaller ones";

struct Bed {
    clickhouse: &'static ClickHouse,
    database: String,
    kinesis: Handle,
    cluster: Cluster,
}

impl Bed {
    /// A running pipe with nothing in its stream yet. All records that are put at once go into one batch.
    async fn new(partition_by: &str, shards: u32) -> anyhow::Result<Self> {
        Self::with(partition_by, shards, &COLUMNS).await
    }

    async fn with(partition_by: &str, shards: u32, columns: &[(&str, &str)]) -> anyhow::Result<Self> {
        let clickhouse = ClickHouse::shared().await;
        let database = clickhouse.database().await?;
        let kinesis = Emulator::start(KinesisOptions::default()).await?;
        kinesis.create_stream(STREAM, shards)?;
        let options = Options {
            fail_points: true,
            ..Options::unpaced()
        };
        let cluster = Cluster::start(options, 1).await?;
        cluster.create_credentials(clickhouse).await?;
        let table = Table {
            database: &database,
            table: "t",
            columns,
            sorting_key: &["id"],
        };
        let mut pipe = pipe_spec(&kinesis.endpoint_url(), STREAM, clickhouse, table);
        if let Some(table) = pipe.destination.as_mut().and_then(|d| d.table_definition.as_mut()) {
            table.partition_by = partition_by.to_owned();
        }
        pipe.settings = Some(Settings {
            max_insert_wait: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
            ..Default::default()
        });
        cluster.create_pipe(STREAM, pipe).await?;
        Ok(Self {
            clickhouse,
            database,
            kinesis,
            cluster,
        })
    }

    async fn query(&self, query: &str) -> anyhow::Result<String> {
        let query = query.replace("{db}", &self.database);
        Ok(self.clickhouse.query(&query).await?.trim().to_owned())
    }

    fn put(&self, value: impl Fn(u64) -> i64) -> anyhow::Result<()> {
        let data: Vec<_> = (0..RECORDS)
            .map(|id| format!("{{\"id\":{id},\"value\":{}}}", value(id)).into_bytes())
            .collect();
        let keys: Vec<_> = (0..RECORDS).map(|id| format!("key-{}", id % 37)).collect();
        let puts = keys.iter().zip(&data).map(|(key, data)| Put::new(key, data));
        self.kinesis.put_records_direct(STREAM, puts)?;
        Ok(())
    }

    fn put_documents(&self, document: impl Fn(u64) -> String) -> anyhow::Result<()> {
        let data: Vec<_> = (0..RECORDS)
            .map(|id| format!("{{\"id\":{id},\"part\":{},\"doc\":{}}}", id % 3, document(id)).into_bytes())
            .collect();
        self.kinesis
            .put_records_direct(STREAM, data.iter().map(|data| Put::new("key", data)))?;
        Ok(())
    }

    async fn wait(&self) -> anyhow::Result<()> {
        let totals = self
            .cluster
            .wait_for_records(STREAM, RECORDS, LIMIT)
            .await
            .with_context(|| self.cluster.logs())?;
        ensure!(totals.records == RECORDS, "{totals:?}");
        Ok(())
    }

    /// Rows, and ids: those of the table once each, those of the error table once each, and nothing in both.
    async fn check(&self, refused: &[u64]) -> anyhow::Result<()> {
        let good = RECORDS - refused.len() as u64;
        let rows = self.query("SELECT count(), uniqExact(id) FROM {db}.t").await?;
        ensure!(
            rows == format!("{good}\t{good}"),
            "rows and ids: {rows}, expected {good}"
        );
        let errors = "SELECT toUInt64(JSONExtractUInt(record_value, 'id')) AS id, error_type, error_msg LIKE '%violated%', \
                      count() FROM {db}.t_millrace_error GROUP BY ALL ORDER BY id FORMAT TSV";
        let errors = self.query(errors).await?;
        let expected: Vec<_> = refused.iter().map(|id| format!("{id}\tserver_refused\t1\t1")).collect();
        ensure!(errors == expected.join("\n"), "the error table holds\n{errors}");
        Ok(())
    }

    fn splits(&self) -> anyhow::Result<usize> {
        let log = std::fs::read_to_string(self.cluster.path().join("worker-0.log"))?;
        Ok(log.matches(SPLIT).count())
    }
}

fn is_poison(id: u64) -> bool {
    [17, 1003, 1004].contains(&id)
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_break_a_constraint_go_to_the_error_table_alone() -> anyhow::Result<()> {
    let bed = Bed::new("", 2).await?;
    bed.query("ALTER TABLE {db}.t ADD CONSTRAINT positive CHECK value > 0")
        .await?;
    bed.put(|id| if is_poison(id) { -1 } else { 1 })?;
    bed.wait().await?;
    bed.check(&[17, 1003, 1004]).await?;
    let message = bed.query("SELECT any(error_msg) FROM {db}.t_millrace_error").await?;
    eprintln!("{} splits; {message}", bed.splits()?);
    ensure!(message.contains("positive"), "the server's words: {message}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_of_too_many_partitions_lands_without_a_person() -> anyhow::Result<()> {
    let bed = Bed::new("value", 1).await?;
    bed.put(|id| i64::try_from(id % 300).unwrap_or_default())?;
    bed.wait().await?;
    bed.check(&[]).await?;
    let partitions = bed.query("SELECT uniqExact(value) FROM {db}.t").await?;
    eprintln!("{} splits, {partitions} partitions", bed.splits()?);
    ensure!(bed.splits()? > 0, "the block was to be refused at first");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_while_it_makes_a_batch_smaller_leaves_nothing_behind() -> anyhow::Result<()> {
    let mut bed = Bed::new("", 2).await?;
    bed.query("ALTER TABLE {db}.t ADD CONSTRAINT positive CHECK value > 0")
        .await?;
    bed.put(|id| if is_poison(id) { -1 } else { 1 })?;
    for round in 1..=3 {
        let before = bed.splits()?;
        let split = eventually("a batch is made smaller", LIMIT, || async {
            let now = bed.splits()?;
            if now >= before + round {
                return Ok(());
            }
            bail!("{now} splits, {before} before")
        });
        split.await.with_context(|| bed.cluster.logs())?;
        bed.cluster.kill_worker(0).await?;
        eprintln!("round {round}: killed after {} splits", bed.splits()?);
        bed.cluster.start_worker(0)?;
    }
    bed.wait().await?;
    bed.check(&[17, 1003, 1004]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_at_any_step_of_a_replacement_leaves_nothing_behind() -> anyhow::Result<()> {
    let mut bed = Bed::new("", 2).await?;
    bed.query("ALTER TABLE {db}.t ADD CONSTRAINT positive CHECK value > 0")
        .await?;
    let points = [
        ("worker-0", "worker.replace.before"),
        ("worker-0", "worker.replace.after"),
        ("control-plane", "control.replace.in_transaction"),
        ("worker-0", "worker.replace.after"),
    ];
    for (at, (process, point)) in points.into_iter().enumerate() {
        bed.cluster.arm(process, &format!("{point}=kill"))?;
        if at == 0 {
            bed.put(|id| if is_poison(id) { -1 } else { 1 })?;
        } else {
            bed.cluster.start_worker(0)?;
        }
        let said = format!("fail point {point}: kill");
        let died = eventually(&said, LIMIT, || async {
            let log = bed.cluster.log_of(process);
            ensure!(
                log.matches(&said).count() > points[..at].iter().filter(|other| other.1 == point).count(),
                "not yet"
            );
            let process = match process {
                "worker-0" => bed.cluster.worker(0),
                _ => bed.cluster.control_plane(),
            };
            ensure!(
                process.is_none_or(|process| process.status().is_some()),
                "it still runs"
            );
            Ok(())
        });
        died.await.with_context(|| bed.cluster.logs())?;
        bed.cluster.arm(process, "")?;
        if process == "worker-0" {
            bed.cluster.kill_worker(0).await?;
        } else {
            bed.cluster.kill_control_plane().await?;
            bed.cluster.start_control_plane().await?;
            bed.cluster.kill_worker(0).await?;
        }
        eprintln!("killed at {point}");
    }
    bed.cluster.start_worker(0)?;
    bed.wait().await?;
    bed.check(&[17, 1003, 1004]).await
}

/// Its rows are in the table, its answer is lost with the worker, and then the table is altered so that it would refuse it: a
/// constraint is looked at before the token. Made smaller, its good rows would be there twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_a_dead_worker_may_have_inserted_is_not_made_smaller() -> anyhow::Result<()> {
    let mut bed = Bed::new("", 1).await?;
    bed.cluster.arm("worker-0", "worker.send.rows_inserted=kill")?;
    bed.put(|id| if is_poison(id) { -1 } else { 1 })?;
    let died = eventually("the worker dies behind its insert", LIMIT, || async {
        let worker = bed.cluster.worker(0).context("it was started")?;
        ensure!(worker.status().is_some(), "it still runs");
        Ok(())
    });
    died.await.with_context(|| bed.cluster.logs())?;
    bed.cluster.arm("worker-0", "")?;
    bed.cluster.kill_worker(0).await?;
    bed.query("ALTER TABLE {db}.t ADD CONSTRAINT positive CHECK value > 0")
        .await?;
    bed.cluster.start_worker(0)?;
    let said = eventually("the pipe says why it waits", LIMIT, || async {
        let status = bed.cluster.pipe(STREAM).await?.status.unwrap_or_default();
        if status.message.contains("an earlier worker may have sent it") {
            return Ok(format!("{} {}", status.reason, status.message));
        }
        bail!("{} {}", status.reason, status.message)
    });
    eprintln!("{}", said.await.with_context(|| bed.cluster.logs())?);
    ensure!(bed.splits()? == 0, "it was made smaller\n{}", bed.cluster.logs());
    bed.query("ALTER TABLE {db}.t DROP CONSTRAINT positive").await?;
    bed.wait().await?;
    bed.check(&[]).await
}

/// A document with a path of another type than the column wants: code 117, as for a block that does not fit the table.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_document_for_a_json_column_goes_to_the_error_table_alone() -> anyhow::Result<()> {
    let columns = [
        ("id", "UInt64"),
        ("doc", "JSON(a UInt32)"),
        ("part", "UInt8"),
        ("_sequence_number", "String"),
    ];
    let bed = Bed::with("part", 1, &columns).await?;
    bed.put_documents(|id| match is_poison(id) {
        true => r#"{"a":"none"}"#.to_owned(),
        false => format!("{{\"a\":{id}}}"),
    })?;
    bed.wait().await?;
    let rows = bed.query("SELECT count(), uniqExact(id) FROM {db}.t").await?;
    ensure!(rows == format!("{0}\t{0}", RECORDS - 3), "{rows}");
    let errors = bed
        .query("SELECT count(), uniqExact(JSONExtractUInt(record_value, 'id')), any(error_type), any(error_msg) FROM {db}.t_millrace_error")
        .await?;
    eprintln!("{} splits; {errors}", bed.splits()?);
    ensure!(errors.starts_with("3\t3\tserver_refused\t"), "{errors}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_materialized_view_the_pipe_waits_and_says_why() -> anyhow::Result<()> {
    let bed = Bed::new("", 1).await?;
    bed.query("ALTER TABLE {db}.t ADD CONSTRAINT positive CHECK value > 0")
        .await?;
    bed.query("CREATE MATERIALIZED VIEW {db}.v ENGINE = MergeTree ORDER BY id AS SELECT id FROM {db}.t")
        .await?;
    bed.put(|id| if is_poison(id) { -1 } else { 1 })?;
    let said = eventually("the pipe says why it waits", LIMIT, || async {
        let status = bed.cluster.pipe(STREAM).await?.status.unwrap_or_default();
        if status.message.contains("materialized view") {
            return Ok(format!("{} {}", status.reason, status.message));
        }
        bail!("{} {}", status.reason, status.message)
    });
    eprintln!("{}", said.await.with_context(|| bed.cluster.logs())?);
    ensure!(bed.splits()? == 0, "it was made smaller\n{}", bed.cluster.logs());
    let rows = bed.query("SELECT count() FROM {db}.t").await?;
    ensure!(rows == "0", "{rows} rows");
    // A person mends it: the same batch, whole.
    bed.query("ALTER TABLE {db}.t DROP CONSTRAINT positive").await?;
    bed.wait().await?;
    bed.check(&[]).await
}

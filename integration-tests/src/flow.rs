//! One pipe under way: a stream of the emulator, a cluster whose logs can be read, a table whose merges are stopped, and the
//! ledger at the end. What the tests of moves, reshards and recovery have in common.

use std::{collections::BTreeMap, io::Write as _, ops::Range, sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use millrace_proto::api::v1::{self as api, PipeState, ShardState};
use tempfile::NamedTempFile;

use crate::{
    clickhouse::ClickHouse,
    cluster::{self, Cluster, Options, Table, pipe_spec},
    events::{Events, ledger_columns},
    kinesis::{Emulator, Handle, Options as KinesisOptions, Put},
    ledger::{self, Tables},
    load::Load,
    process::eventually,
    timeline::{self, Line},
};

/// Name of the stream, of the pipe and of the table.
pub const NAME: &str = "flow";
/// How long things may take on a machine that does other things as well.
pub const LIMIT: Duration = Duration::from_secs(120);
/// Partition keys: enough for every shard to have many, few enough for each to have a long history.
const KEYS: u64 = 300;

/// What to start.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Shards of the stream.
    pub shards: u32,
    /// Workers.
    pub workers: usize,
    /// `scaling.replicas` of the pipe.
    pub replicas: u32,
    /// Batches are closed after so long at the latest: short, so that many are made.
    pub max_insert_wait: Duration,
    /// The pipe reads by enhanced fan-out, with a consumer of its own. As [`cluster::fan_out`] says, if not said otherwise.
    pub fan_out: bool,
    /// Kinesis speaks TLS, and so HTTP/2.
    pub tls: bool,
    /// How long changes of streams and consumers take.
    pub transition: Duration,
    /// Of the cluster.
    pub options: Options,
}

impl Shape {
    /// A stream of `shards` shards over `workers` workers.
    #[must_use]
    pub fn new(shards: u32, workers: usize) -> Self {
        Self {
            shards,
            workers,
            replicas: u32::try_from(workers).unwrap_or(u32::MAX).max(1),
            max_insert_wait: Duration::from_millis(300),
            fan_out: cluster::fan_out(),
            tls: false,
            transition: Duration::ZERO,
            options: timeline::options(),
        }
    }
}

fn certificate(pem: &str) -> std::io::Result<NamedTempFile> {
    let mut file = NamedTempFile::new()?;
    file.write_all(pem.as_bytes())?;
    Ok(file)
}

/// A pipe under way.
#[derive(Debug)]
pub struct Flow {
    /// The stream's account.
    pub kinesis: Arc<Handle>,
    /// The processes.
    pub cluster: Cluster,
    /// What is put into the stream.
    pub events: Arc<Events>,
    clickhouse: &'static ClickHouse,
    database: String,
    /// What the processes trust.
    _certificate: Option<NamedTempFile>,
}

impl Flow {
    /// Starts everything but the load.
    ///
    /// # Errors
    /// If something does not start.
    pub async fn start(shape: Shape) -> anyhow::Result<Self> {
        Self::start_on(ClickHouse::shared().await, shape).await
    }

    /// The same with an engine of one's own.
    ///
    /// # Errors
    /// As [`Flow::start`].
    pub async fn start_on(clickhouse: &'static ClickHouse, mut shape: Shape) -> anyhow::Result<Self> {
        let database = clickhouse.database().await?;
        let kinesis = Emulator::start(KinesisOptions {
            tls: shape.tls,
            transition: shape.transition,
            ..KinesisOptions::default()
        })
        .await?;
        kinesis.create_stream(NAME, shape.shards)?;
        kinesis.clock().advance(shape.transition);
        let certificate = kinesis.certificate_pem().map(certificate).transpose()?;
        if let Some(file) = &certificate {
            let path = file.path().to_string_lossy().into_owned();
            shape.options.env.push(("SSL_CERT_FILE", path));
        }
        let cluster = Cluster::start(shape.options, shape.workers).await?;
        let flow = Self {
            kinesis: Arc::new(kinesis),
            cluster,
            events: Arc::new(Events::new(1, KEYS, true)),
            clickhouse,
            database,
            _certificate: certificate,
        };
        flow.cluster.create_credentials(clickhouse).await?;
        let mut spec = flow.spec();
        if let Some(api::source::Kind::Kinesis(source)) = spec.source.as_mut().and_then(|source| source.kind.as_mut()) {
            source.use_enhanced_fan_out = shape.fan_out;
        }
        let spec = api::Pipe {
            scaling: Some(api::Scaling {
                replicas: shape.replicas,
            }),
            settings: Some(api::Settings {
                max_insert_wait: shape.max_insert_wait.try_into().ok(),
                ..api::Settings::default()
            }),
            ..spec
        };
        flow.cluster.create_pipe(NAME, spec).await?;
        ledger::stop_merges(clickhouse, flow.tables()).await?;
        Ok(flow)
    }

    fn spec(&self) -> api::Pipe {
        let columns = ledger_columns();
        let table = Table {
            database: &self.database,
            table: NAME,
            columns: &columns,
            sorting_key: &["id"],
        };
        pipe_spec(&self.kinesis.endpoint_url(), NAME, self.clickhouse, table)
    }

    /// The name of the stream.
    #[must_use]
    pub fn stream(&self) -> &str {
        NAME
    }

    /// The tables.
    #[must_use]
    pub fn tables(&self) -> Tables<'_> {
        Tables {
            database: &self.database,
            table: NAME,
            errors: "flow_millrace_error",
        }
    }

    /// Starts to put events from number `first` on.
    #[must_use]
    pub fn load(&self, first: u64, per_second: u64) -> Load {
        Load::start(
            Arc::clone(&self.kinesis),
            NAME,
            Arc::clone(&self.events),
            first,
            per_second,
        )
    }

    /// Puts events, past the network.
    ///
    /// # Errors
    /// If there is no stream.
    pub fn put(&self, ids: Range<u64>) -> anyhow::Result<()> {
        let chunk: Vec<_> = ids.map(|id| self.events.event(id)).collect();
        self.kinesis
            .put_records_direct(NAME, chunk.iter().map(|event| Put::new(&event.key, &event.data)))?;
        Ok(())
    }

    /// The pipe with its shards.
    ///
    /// # Errors
    /// What the control plane says.
    pub async fn pipe(&self) -> anyhow::Result<api::Pipe> {
        self.cluster.pipe(NAME).await
    }

    /// Changes `scaling.replicas`.
    ///
    /// # Errors
    /// What the control plane says.
    pub async fn set_replicas(&self, replicas: u32) -> anyhow::Result<()> {
        self.cluster.set_replicas(NAME, replicas).await
    }

    /// Has the pipe read by enhanced fan-out, or by polling.
    ///
    /// # Errors
    /// What the control plane says.
    pub async fn set_fan_out(&self, fan_out: bool) -> anyhow::Result<()> {
        let source = api::KinesisSource {
            use_enhanced_fan_out: fan_out,
            ..Default::default()
        };
        let change = api::Pipe {
            source: Some(api::Source {
                kind: Some(api::source::Kind::Kinesis(source)),
            }),
            ..Default::default()
        };
        let fields = ["source.kinesis.use_enhanced_fan_out"];
        self.cluster.update_pipe(NAME, change, &fields).await
    }

    /// Stops the pipe, or lets it run.
    ///
    /// # Errors
    /// If it does not come to that.
    pub async fn run(&self, running: bool) -> anyhow::Result<()> {
        let (desired, state) = if running {
            (api::DesiredState::Running, PipeState::Running)
        } else {
            (api::DesiredState::Stopped, PipeState::Stopped)
        };
        self.cluster.set_desired(NAME, desired).await?;
        self.cluster
            .wait_for_state(NAME, state, LIMIT)
            .await
            .with_context(|| self.cluster.logs())?;
        Ok(())
    }

    /// Waits until the pipe is in a state.
    ///
    /// # Errors
    /// If it does not come to that.
    pub async fn wait_for(&self, state: PipeState) -> anyhow::Result<api::Pipe> {
        self.cluster
            .wait_for_state(NAME, state, LIMIT)
            .await
            .with_context(|| self.cluster.logs())
    }

    /// Waits until so many records are committed.
    ///
    /// # Errors
    /// If they are not in time.
    pub async fn committed(&self, records: u64) -> anyhow::Result<()> {
        self.cluster
            .wait_for_records(NAME, records, LIMIT)
            .await
            .with_context(|| self.cluster.logs())?;
        Ok(())
    }

    /// The worker and epoch of each shard that can be read; an error while one has none.
    ///
    /// # Errors
    /// If a shard is not held, or the control plane does not answer.
    pub async fn owners(&self) -> anyhow::Result<BTreeMap<String, (String, u64)>> {
        let mut owners = BTreeMap::new();
        for shard in self.pipe().await?.status.unwrap_or_default().shards {
            match shard.state() {
                ShardState::Finished => {}
                ShardState::Assigned => drop(owners.insert(shard.shard_id, (shard.worker_id, shard.epoch))),
                other => bail!("{} is {}", shard.shard_id, other.as_str_name()),
            }
        }
        ensure!(!owners.is_empty(), "there are no shards");
        Ok(owners)
    }

    /// Waits until all shards are held, by just these workers.
    ///
    /// # Errors
    /// If that does not come to be.
    pub async fn held_by(&self, workers: &[usize]) -> anyhow::Result<BTreeMap<String, (String, u64)>> {
        let wanted: Vec<String> = workers.iter().map(|index| format!("worker-{index}")).collect();
        let what = format!("{wanted:?} hold the shards");
        let held = eventually(&what, LIMIT, || async {
            let owners = self.owners().await?;
            let mut by: Vec<String> = owners.values().map(|(worker, _)| worker.clone()).collect();
            by.sort();
            by.dedup();
            ensure!(by == wanted, "they are held by {by:?}");
            Ok(owners)
        });
        held.await.with_context(|| self.cluster.logs())
    }

    /// All that was logged so far.
    ///
    /// # Errors
    /// If a log cannot be read.
    pub fn timeline(&self) -> anyhow::Result<Vec<Line>> {
        timeline::read(self.cluster.path())
    }

    /// Waits for the first `records` events, and has the ledger look at them: none lost, none twice, and the events of
    /// each key in the table in the order in which they were put.
    ///
    /// # Errors
    /// If anything is not as it should be.
    pub async fn check(&self, records: u64) -> anyhow::Result<String> {
        self.committed(records).await?;
        let verdict = ledger::check(self.clickhouse, self.tables(), &self.events, records).await?;
        let arrival = ledger::arrival(self.clickhouse, self.tables()).await?;
        let totals = self.pipe().await?.status.unwrap_or_default().totals.unwrap_or_default();
        ensure!(verdict.is_clean(), "{verdict:?}\n{}", self.cluster.logs());
        ensure!(arrival.late == 0, "{arrival:?}\n{}", self.cluster.logs());
        ensure!(
            (totals.rows, totals.rejected_records, totals.records) == (verdict.rows, verdict.rejected, records),
            "the pipe counts {totals:?}, the tables hold {verdict:?}"
        );
        Ok(format!(
            "{records} records in {} blocks: lost {}, duplicated {}, late {}",
            arrival.blocks, verdict.lost, verdict.duplicated, arrival.late
        ))
    }
}

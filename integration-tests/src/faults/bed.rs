//! What a row of a fault matrix needs: an engine and an emulator for all rows, and for each a cluster, a stream and a table
//! of its own, with small batches and short leases, so that a row is over in seconds.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use millrace_proto::api::v1 as api;

use crate::{
    clickhouse::{self, ClickHouse},
    cluster::{Cluster, Options, Table, pipe_spec},
    events::{Event, Events, ledger_columns},
    kinesis::{self, Emulator, Put},
    ledger::{self, Verdict},
    process::eventually,
};

/// Id of a row's pipe, and name of its stream's prefix.
pub const PIPE: &str = "pipe";
/// How long a worker holds its shards after its last report: as short as a loaded machine bears.
pub const LEASE_TTL: Duration = Duration::from_secs(2);
/// Rows of a batch. Small, so that there are many.
const BATCH_ROWS: u64 = 1000;
/// How long the first row of a batch waits.
const BATCH_WAIT: Duration = Duration::from_millis(300);
/// Partition keys. Prime to the distance of malformed events, so that those come in all shards.
const KEYS: u64 = 211;
/// How long anything may take that is not measured.
pub const LIMIT: Duration = Duration::from_secs(90);

/// What all rows share.
#[derive(Debug)]
pub struct Bed {
    /// The engine.
    pub clickhouse: ClickHouse,
    /// The emulator.
    pub kinesis: kinesis::Handle,
    database: String,
    events: Events,
    made: Vec<Event>,
}

/// What is special about a row.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// How its cluster is started; leases are short whatever it says.
    pub cluster: Options,
    /// Workers.
    pub workers: usize,
    /// What the pipe promises.
    pub delivery: api::Delivery,
    /// Endpoint of Kinesis, if not the emulator itself.
    pub kinesis_url: Option<String>,
    /// Endpoint of ClickHouse, if not the engine itself.
    pub clickhouse_url: Option<String>,
}

impl Bed {
    /// Starts engine and emulator and makes `records` events, which is as many as a row can put.
    ///
    /// # Errors
    /// If either does not start.
    pub async fn start(seed: u64, records: u64) -> anyhow::Result<Arc<Self>> {
        let clickhouse = ClickHouse::start_own(clickhouse::Options::default()).await?;
        let database = clickhouse.database().await?;
        let kinesis = Emulator::start(kinesis::Options::default()).await?;
        let events = Events::new(seed, KEYS, true);
        let made = (0..records).map(|id| events.event(id)).collect();
        Ok(Arc::new(Self {
            clickhouse,
            kinesis,
            database,
            events,
            made,
        }))
    }

    /// Starts a cluster and a pipe of its own for row `name`, over four shards.
    ///
    /// # Errors
    /// If any of it does not work.
    pub async fn row(self: &Arc<Self>, name: &str, setup: Setup) -> anyhow::Result<Row> {
        let mut options = setup.cluster;
        let leases = [
            format!("--lease-ttl={}ms", LEASE_TTL.as_millis()),
            "--heartbeat-interval=250ms".to_owned(),
            "--discovery-interval=1s".to_owned(),
        ];
        options.control_plane_args.extend(leases);
        let patience = ["--shard-bytes-per-second=0", "--probe-interval-ms=500"];
        options.worker_args.extend(patience.map(str::to_owned));
        self.kinesis.create_stream(name, 4)?;
        let cluster = Cluster::start(options, setup.workers).await?;
        cluster.create_credentials(&self.clickhouse).await?;
        let shape = Table {
            database: &self.database,
            table: name,
            columns: &ledger_columns(),
            sorting_key: &["id"],
        };
        let kinesis_url = setup.kinesis_url.unwrap_or_else(|| self.kinesis.endpoint_url());
        let mut pipe = pipe_spec(&kinesis_url, name, &self.clickhouse, shape);
        if let (Some(url), Some(destination)) = (setup.clickhouse_url, &mut pipe.destination) {
            destination.endpoint = url;
        }
        pipe.scaling = Some(api::Scaling { replicas: 2 });
        pipe.settings = Some(api::Settings {
            max_batch_rows: BATCH_ROWS,
            max_insert_wait: Some(prost_types::Duration::try_from(BATCH_WAIT)?),
            delivery: setup.delivery.into(),
            ..Default::default()
        });
        cluster.create_pipe(PIPE, pipe).await.context("the pipe is created")?;
        Ok(Row {
            bed: Arc::clone(self),
            cluster,
            name: name.to_owned(),
            put: 0,
        })
    }
}

/// A running row.
#[derive(Debug)]
pub struct Row {
    bed: Arc<Bed>,
    /// Its processes.
    pub cluster: Cluster,
    name: String,
    put: u64,
}

impl Row {
    /// Puts this many more records.
    ///
    /// # Errors
    /// If the stream is gone, or there are not so many events.
    pub fn put(&mut self, records: u64) -> anyhow::Result<()> {
        let range = usize::try_from(self.put)?..usize::try_from(self.put + records)?;
        let events = self.bed.made.get(range).context("not so many events were made")?;
        let puts = events.iter().map(|event| Put::new(&event.key, &event.data));
        self.bed.kinesis.put_records_direct(&self.name, puts)?;
        self.put += records;
        Ok(())
    }

    /// Records put so far.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.put
    }

    /// Name of its stream and of its table.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until all that was put is committed.
    ///
    /// # Errors
    /// If it is not in time; the message has the ends of all logs.
    pub async fn settle(&self) -> anyhow::Result<api::PipeTotals> {
        self.cluster
            .wait_for_records(PIPE, self.put, LIMIT)
            .await
            .with_context(|| self.cluster.logs())
    }

    /// Waits until each of the pipe's shards has been given to a worker, and the workers are as many as given.
    ///
    /// # Errors
    /// If that is not so in time.
    pub async fn spread(&self, workers: usize) -> anyhow::Result<()> {
        let probe = || async {
            let shards = self.cluster.pipe(PIPE).await?.status.unwrap_or_default().shards;
            let owners: std::collections::BTreeSet<_> = shards
                .iter()
                .map(|shard| shard.worker_id.clone())
                .filter(|worker| !worker.is_empty())
                .collect();
            ensure!(owners.len() == workers, "{} workers: {owners:?}", owners.len());
            Ok(())
        };
        eventually("the shards are spread", LIMIT, probe)
            .await
            .with_context(|| self.cluster.logs())
    }

    /// Splits one open shard of its stream.
    ///
    /// # Errors
    /// If there is none.
    pub fn split(&self) -> anyhow::Result<()> {
        let shards = self.bed.kinesis.shards(&self.name)?;
        let open = shards.iter().find(|shard| shard.is_open).context("no shard is open")?;
        Ok(self.bed.kinesis.split_shard(&self.name, &open.id)?)
    }

    /// Compares what was put with what arrived, and with what the pipe says.
    ///
    /// # Errors
    /// If it cannot be seen.
    pub async fn verdict(&self) -> anyhow::Result<Verdict> {
        let errors = format!("{}_millrace_error", self.name);
        let tables = ledger::Tables {
            database: &self.bed.database,
            table: &self.name,
            errors: &errors,
        };
        ledger::check(&self.bed.clickhouse, tables, &self.bed.events, self.put).await
    }
}

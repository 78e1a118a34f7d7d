//! A pipe under load: records are put all the time until the test has seen enough.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use millrace_integration_tests::{
    clickhouse::ClickHouse,
    cluster::{CLICKHOUSE, Cluster, Options, Table, pipe_spec},
    events::{COLUMNS, Events},
    kinesis::{Emulator, Handle, Options as KinesisOptions, Put},
    ledger::{self, Verdict},
    process::eventually,
};
use millrace_proto::api::v1::{self as api, ClickHouseUser, PipeState, credential::Kind};
use tokio::{task::JoinHandle, time::MissedTickBehavior};

/// Generous: the machine may be busy with a build.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// The pipe's name.
pub(crate) const PIPE: &str = "load";
/// The table's name.
pub(crate) const TABLE: &str = "events";
const STREAM: &str = "load";
const SHARDS: u32 = 2;
const KEYS: u64 = 100;

/// How a test wants its load.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// More arguments of the worker.
    pub(crate) worker_args: Vec<String>,
    /// Records put at a time.
    pub(crate) chunk: u64,
    /// How often.
    pub(crate) interval: Duration,
    /// Whether the whole events are stored, or what the ledger needs and two columns to quarrel about.
    pub(crate) all_columns: bool,
    /// The ClickHouse user of the pipe, if it is not the administrator.
    pub(crate) user: Option<(&'static str, &'static str)>,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            // What waits for a person is tried again at once, so that healing is seen without waiting.
            worker_args: vec!["--probe-interval-ms=200".to_owned()],
            chunk: 50,
            interval: Duration::from_millis(20),
            all_columns: false,
            user: None,
        }
    }
}

/// A pipe under load.
#[derive(Debug)]
pub(crate) struct Bed<'a> {
    pub(crate) clickhouse: &'a ClickHouse,
    pub(crate) database: String,
    pub(crate) cluster: Cluster,
    events: Arc<Events>,
    put: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    putting: JoinHandle<Result<()>>,
    // The stream outlives its readers.
    _kinesis: Arc<Handle>,
}

impl<'a> Bed<'a> {
    /// Starts everything and waits until records move.
    pub(crate) async fn start(clickhouse: &'a ClickHouse, load: Load) -> Result<Self> {
        let database = clickhouse.database().await?;
        let kinesis = Arc::new(Emulator::start(KinesisOptions::default()).await?);
        kinesis.create_stream(STREAM, SHARDS)?;
        let mut options = Options::unpaced();
        options.worker_args.extend(load.worker_args.iter().cloned());
        let cluster = Cluster::start(options, 1).await?;
        cluster.create_credentials(clickhouse).await?;
        let wanted = ["id", "seq_in_key", "amount", "tags", "_key", "_sequence_number"];
        let columns: Vec<_> = COLUMNS
            .into_iter()
            .filter(|(name, _)| load.all_columns || wanted.contains(name))
            .collect();
        let shape = Table {
            database: &database,
            table: TABLE,
            columns: &columns,
            sorting_key: &["id"],
        };
        let mut pipe = pipe_spec(&kinesis.endpoint_url(), STREAM, clickhouse, shape);
        if let Some((username, password)) = load.user {
            let user = ClickHouseUser {
                username: username.to_owned(),
                password: password.to_owned(),
            };
            cluster.create_credential("writer", Kind::ClickhouseUser(user)).await?;
            if let Some(destination) = &mut pipe.destination {
                destination.credential = destination.credential.replace(CLICKHOUSE, "writer");
            }
        }
        let settings = pipe.settings.get_or_insert_default();
        settings.max_insert_wait = Some(prost_types::Duration {
            seconds: 0,
            nanos: 100_000_000,
        });
        cluster.create_pipe(PIPE, pipe).await?;
        let (events, put, stop) = (
            Arc::new(Events::new(1, KEYS, false)),
            Arc::<AtomicU64>::default(),
            Arc::<AtomicBool>::default(),
        );
        let putting = tokio::spawn(put_until(
            Arc::clone(&kinesis),
            Arc::clone(&events),
            load,
            Arc::clone(&put),
            Arc::clone(&stop),
        ));
        let bed = Self {
            clickhouse,
            database,
            cluster,
            events,
            put,
            stop,
            putting,
            _kinesis: kinesis,
        };
        bed.moves_on().await?;
        Ok(bed)
    }

    /// Runs a statement in which `{db}` stands for the database and `{t}` for the table.
    pub(crate) async fn sql(&self, sql: &str) -> Result<String> {
        let sql = sql
            .replace("{db}", &self.database)
            .replace("{t}", &format!("{}.{TABLE}", self.database));
        let answer = self.clickhouse.query(&sql).await.with_context(|| sql.clone())?;
        Ok(answer.trim().to_owned())
    }

    /// Records put so far.
    pub(crate) fn put(&self) -> u64 {
        self.put.load(Ordering::SeqCst)
    }

    /// Records committed so far.
    pub(crate) async fn committed(&self) -> Result<u64> {
        let status = self.cluster.pipe(PIPE).await?.status.unwrap_or_default();
        Ok(status.totals.unwrap_or_default().records)
    }

    /// Waits until all is committed that had been put when it was called: records move, now.
    pub(crate) async fn moves_on(&self) -> Result<()> {
        let put = self.put() + 1;
        self.cluster
            .wait_for_records(PIPE, put, LIMIT)
            .await
            .with_context(|| self.cluster.logs())?;
        Ok(())
    }

    /// Waits until the pipe says this of itself.
    pub(crate) async fn says(&self, state: PipeState, reason: &str, words: &[&str]) -> Result<api::PipeStatus> {
        let what = format!("the pipe is {} {reason}", state.as_str_name());
        let status = eventually(&what, LIMIT, || async {
            let status = self.cluster.pipe(PIPE).await?.status.unwrap_or_default();
            ensure!(
                status.state() == state && status.reason == reason,
                "it is {} {:?} {:?}",
                status.state().as_str_name(),
                status.reason,
                status.message
            );
            Ok(status)
        })
        .await
        .with_context(|| self.cluster.logs())?;
        for word in words {
            ensure!(status.message.contains(word), "{word:?} is not in {:?}", status.message);
        }
        Ok(status)
    }

    /// Waits until the pipe is well, without anybody having restarted it, and records move.
    pub(crate) async fn is_well_again(&self) -> Result<()> {
        self.says(PipeState::Running, "", &[]).await?;
        self.moves_on().await
    }

    /// Stops putting and waits until everything is committed. Returns how many records there are.
    pub(crate) async fn drain(&mut self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        (&mut self.putting).await??;
        let records = self.put();
        let totals = self
            .cluster
            .wait_for_records(PIPE, records, LIMIT)
            .await
            .with_context(|| self.cluster.logs())?;
        ensure!(totals.records == records, "{totals:?} of {records} records");
        Ok(records)
    }

    /// Compares what was put with what is there.
    pub(crate) async fn ledger(&self, records: u64) -> Result<Verdict> {
        let errors = format!("{TABLE}_millrace_error");
        let tables = ledger::Tables {
            database: &self.database,
            table: TABLE,
            errors: &errors,
        };
        ledger::check(self.clickhouse, tables, &self.events, records).await
    }

    /// Ends the load: everything that was put is there, once and in order.
    pub(crate) async fn ends_clean(mut self) -> Result<()> {
        let records = self.drain().await?;
        let verdict = self.ledger(records).await?;
        ensure!(verdict.is_clean(), "{verdict:?}\n{}", self.cluster.logs());
        Ok(())
    }
}

async fn put_until(
    kinesis: Arc<Handle>,
    events: Arc<Events>,
    load: Load,
    put: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> Result<()> {
    let mut ticks = tokio::time::interval(load.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !stop.load(Ordering::SeqCst) {
        ticks.tick().await;
        let start = put.load(Ordering::SeqCst);
        let chunk: Vec<_> = (start..start + load.chunk).map(|id| events.event(id)).collect();
        kinesis.put_records_direct(STREAM, chunk.iter().map(|event| Put::new(&event.key, &event.data)))?;
        put.fetch_add(load.chunk, Ordering::SeqCst);
    }
    Ok(())
}

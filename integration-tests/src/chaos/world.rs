//! Everything that a chaos run breaks, and how it is broken and mended.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use millrace_proto::api::v1::{self as api, DesiredState};
use tokio::time::timeout;

use super::{
    Options,
    fault::{Fault, Link, Wire},
    load::{Load, Moods},
};
use crate::{
    clickhouse::{self, ClickHouse},
    cluster::{self, Cluster, Table, pipe_spec},
    events::{Events, ledger_columns},
    faults::{Proxy, Script},
    kinesis::{self, Emulator, ShardInfo},
    ledger::{self, Verdict},
    postgres::Postgres,
};

const PIPE: &str = "chaos";
const STREAM: &str = "chaos";
const TABLE: &str = "chaos";
const ERRORS: &str = "chaos_millrace_error";
/// Partition keys. Prime to the distance of malformed events, so that those come in all shards.
const KEYS: u64 = 499;
/// Open shards, least and most.
const SHARDS: (usize, usize) = (2, 10);
/// How long a call of the API may take while things are broken.
const CALL_LIMIT: Duration = Duration::from_secs(3);
/// What every insert has in the head of its request.
const INSERT: &str = "insert_deduplication_token";

/// A proxy for each link.
#[derive(Debug)]
struct Proxies {
    control: Proxy,
    clickhouse: Proxy,
    kinesis: Proxy,
    database: Option<Proxy>,
}

/// The world.
#[derive(Debug)]
pub(super) struct World {
    // In the order in which it is to be dropped.
    cluster: Cluster,
    load: Option<Load>,
    proxies: Proxies,
    moods: Arc<Moods>,
    kinesis: Arc<kinesis::Handle>,
    clickhouse: ClickHouse,
    postgres: Option<Postgres>,
    events: Arc<Events>,
    database: String,
}

impl World {
    /// Starts everything, with a control plane on PostgreSQL if the seed is even and on SQLite if it is odd.
    pub(super) async fn start(options: &Options) -> anyhow::Result<Self> {
        let clickhouse = ClickHouse::start_own(clickhouse::Options::default()).await?;
        let database = clickhouse.database().await?;
        let moods = Arc::new(Moods::default());
        let kinesis = Emulator::start(kinesis::Options {
            interceptor: Some(Arc::clone(&moods) as Arc<dyn kinesis::Interceptor>),
            ..kinesis::Options::default()
        })
        .await?;
        kinesis.create_stream(STREAM, options.shards)?;
        let postgres = match options.seed % 2 {
            0 => Some(Postgres::start().await?),
            _ => None,
        };
        let (mut url, mut behind) = (None, None);
        if let Some(postgres) = &postgres {
            let proxy = Proxy::start(([127, 0, 0, 1], postgres.port()).into()).await?;
            let direct = postgres.database().await?;
            let here = format!(":{}/", postgres.port());
            ensure!(direct.contains(&here), "a URL with a port");
            url = Some(direct.replace(&here, &format!(":{}/", proxy.addr().port())));
            behind = Some(proxy);
        }
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
        let proxies = Proxies {
            control: Proxy::start(nowhere).await?,
            clickhouse: Proxy::start(address(&clickhouse.http_url())?).await?,
            kinesis: Proxy::start(kinesis.addr()).await?,
            database: behind,
        };
        let arguments = [
            "--lease-ttl=2s",
            "--heartbeat-interval=250ms",
            "--discovery-interval=1s",
        ];
        let patience = [
            "--shard-bytes-per-second=0",
            "--probe-interval-ms=500",
            "--release-patience-ms=3000",
        ];
        let mut cluster = Cluster::start(
            cluster::Options {
                database: url,
                control_plane_args: arguments.map(str::to_owned).to_vec(),
                worker_args: patience.map(str::to_owned).to_vec(),
                worker_control_plane: Some(format!("http://{}", proxies.control.addr())),
                ..cluster::Options::default()
            },
            0,
        )
        .await?;
        proxies.control.set_upstream(address(&cluster.url())?);
        for _ in 0..options.workers {
            cluster.add_worker()?;
        }
        let events = Arc::new(Events::new(options.seed, KEYS, true));
        let kinesis = Arc::new(kinesis);
        let mut world = Self {
            cluster,
            load: None,
            proxies,
            moods,
            kinesis,
            clickhouse,
            postgres,
            events,
            database,
        };
        world.create_pipe().await?;
        world.load = Some(Load::start(
            Arc::clone(&world.kinesis),
            STREAM,
            Arc::clone(&world.events),
            options.records_per_second,
        ));
        Ok(world)
    }

    async fn create_pipe(&self) -> anyhow::Result<()> {
        self.cluster.create_credentials(&self.clickhouse).await?;
        let columns = ledger_columns();
        let shape = Table {
            database: &self.database,
            table: TABLE,
            columns: &columns,
            sorting_key: &["id"],
        };
        let kinesis = format!("http://{}", self.proxies.kinesis.addr());
        let mut pipe = pipe_spec(&kinesis, STREAM, &self.clickhouse, shape);
        if let Some(destination) = &mut pipe.destination {
            destination.endpoint = format!("http://{}", self.proxies.clickhouse.addr());
        }
        pipe.scaling = Some(api::Scaling { replicas: 2 });
        pipe.settings = Some(api::Settings {
            max_batch_rows: 1000,
            max_insert_wait: Some(prost_types::Duration {
                seconds: 0,
                nanos: 200_000_000,
            }),
            ..Default::default()
        });
        self.cluster.create_pipe(PIPE, pipe).await.context("the pipe")?;
        Ok(())
    }

    pub(super) fn database_name(&self) -> &'static str {
        if self.postgres.is_some() {
            "PostgreSQL"
        } else {
            "SQLite"
        }
    }

    pub(super) fn logs(&self) -> String {
        self.cluster.logs()
    }

    /// Begins a fault.
    pub(super) async fn begin(&mut self, fault: Fault) -> anyhow::Result<()> {
        match fault {
            Fault::KillWorker(index) => self.cluster.kill_worker(index).await?,
            Fault::StopWorker(index) => self.cluster.worker(index).context("it is dead")?.pause()?,
            Fault::RestartWorker(index) => self.cluster.worker(index).context("it is dead")?.terminate()?,
            Fault::KillControlPlane => self.cluster.kill_control_plane().await?,
            Fault::StopControlPlane => self.cluster.control_plane().context("it is dead")?.pause()?,
            Fault::StopClickHouse => self.clickhouse.pause()?,
            Fault::KillClickHouse => self.clickhouse.kill().await?,
            Fault::KillDatabase => self.postgres.as_ref().context("it is a file")?.kill().await?,
            Fault::StopDatabase => self.postgres.as_ref().context("it is a file")?.pause()?,
            Fault::Wire(link, wire) => break_wire(self.proxy(link).context("it is a file")?, wire),
            Fault::ThrottleKinesis { per_mille } => self.moods.throttled.store(per_mille, Ordering::Relaxed),
            Fault::ExpireIterators => self.moods.expired.store(200, Ordering::Relaxed),
            Fault::Split { choice } => self.split(choice)?,
            Fault::Merge { choice } => self.merge(choice)?,
            Fault::PausePipe => {
                timeout(CALL_LIMIT, self.cluster.set_desired(PIPE, DesiredState::Stopped)).await??;
            }
            Fault::Replicas(replicas) => timeout(CALL_LIMIT, self.cluster.set_replicas(PIPE, replicas)).await??,
        }
        Ok(())
    }

    /// Ends a fault, even one that did not take hold.
    pub(super) async fn end(&mut self, fault: Fault) -> anyhow::Result<()> {
        match fault {
            Fault::KillWorker(index) | Fault::RestartWorker(index) => self.cluster.start_worker(index)?,
            Fault::StopWorker(index) => self.cluster.worker(index).context("it is dead")?.resume()?,
            Fault::KillControlPlane => self.cluster.start_control_plane().await?,
            Fault::StopControlPlane => self.cluster.control_plane().context("it is dead")?.resume()?,
            Fault::StopClickHouse => self.clickhouse.resume()?,
            Fault::KillClickHouse => self.clickhouse.start_again().await?,
            Fault::KillDatabase => {
                if let Some(postgres) = &self.postgres {
                    postgres.start_again().await?;
                }
            }
            Fault::StopDatabase => {
                if let Some(postgres) = &self.postgres {
                    postgres.resume()?;
                }
            }
            Fault::Wire(link, _) => {
                if let Some(proxy) = self.proxy(link) {
                    proxy.heal();
                }
            }
            Fault::ThrottleKinesis { .. } => self.moods.throttled.store(0, Ordering::Relaxed),
            Fault::ExpireIterators => self.moods.expired.store(0, Ordering::Relaxed),
            Fault::Split { .. } | Fault::Merge { .. } | Fault::Replicas(_) => {}
            Fault::PausePipe => {
                timeout(CALL_LIMIT, self.cluster.set_desired(PIPE, DesiredState::Running)).await??;
            }
        }
        Ok(())
    }

    fn proxy(&self, link: Link) -> Option<&Proxy> {
        match link {
            Link::Control => Some(&self.proxies.control),
            Link::ClickHouse => Some(&self.proxies.clickhouse),
            Link::Kinesis => Some(&self.proxies.kinesis),
            Link::Database => self.proxies.database.as_ref(),
        }
    }

    fn open_shards(&self) -> anyhow::Result<Vec<ShardInfo>> {
        let mut shards = self.kinesis.shards(STREAM)?;
        shards.retain(|shard| shard.is_open);
        shards.sort_by_key(|shard| shard.range.start_inclusive);
        Ok(shards)
    }

    fn split(&self, choice: u64) -> anyhow::Result<()> {
        let open = self.open_shards()?;
        ensure!(open.len() < SHARDS.1, "there are {} shards", open.len());
        let shard = &open[usize::try_from(choice % open.len() as u64)?];
        Ok(self.kinesis.split_shard(STREAM, &shard.id)?)
    }

    fn merge(&self, choice: u64) -> anyhow::Result<()> {
        let open = self.open_shards()?;
        ensure!(open.len() > SHARDS.0, "there are {} shards", open.len());
        let first = usize::try_from(choice % (open.len() as u64 - 1))?;
        Ok(self
            .kinesis
            .merge_shards(STREAM, &open[first].id, &open[first + 1].id)?)
    }

    /// Stops putting records; returns how many there are.
    pub(super) async fn stop_load(&mut self) -> anyhow::Result<u64> {
        self.load.take().context("the load was stopped before")?.stop().await
    }

    /// Waits until all of `records` are committed.
    pub(super) async fn drain(&self, records: u64, limit: Duration) -> anyhow::Result<api::PipeTotals> {
        self.cluster.wait_for_records(PIPE, records, limit).await
    }

    pub(super) async fn verdict(&self, records: u64) -> anyhow::Result<Verdict> {
        let tables = ledger::Tables {
            database: &self.database,
            table: TABLE,
            errors: ERRORS,
        };
        ledger::check(&self.clickhouse, tables, &self.events, records).await
    }
}

fn break_wire(proxy: &Proxy, wire: Wire) {
    match wire {
        Wire::Freeze => proxy.set_all(Script::freeze()),
        Wire::Reset => proxy.set_all(Script::reset()),
        Wire::Refuse => {
            proxy.set_all(Script::refuse());
            proxy.reset_live();
        }
        Wire::Delay { millis } => proxy.set_all(Script::pass().delay(Duration::from_millis(millis))),
        Wire::Throttle { bytes_per_second } => proxy.set_all(Script::pass().throttle(bytes_per_second)),
        Wire::Cut { direction, after, end } => proxy.set_all(Script::cut(direction, after, end)),
        Wire::Duplicate { after_millis } => {
            proxy.set_all(Script::duplicate(INSERT, Duration::from_millis(after_millis)));
        }
    }
}

fn address(url: &str) -> anyhow::Result<SocketAddr> {
    let bare = url.trim_start_matches("http://").trim_end_matches('/');
    bare.parse()
        .with_context(|| format!("{url} is not http://address:port"))
}

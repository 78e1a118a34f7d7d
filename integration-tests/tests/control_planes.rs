//! Two control planes on one PostgreSQL under load, and everything that may happen to them and to it; and one on SQLite,
//! killed again and again. A ledger counts every record at the end.

#![allow(clippy::print_stderr, reason = "what was measured is worth reading in the log")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use millrace_integration_tests::{
    clickhouse::ClickHouse,
    cluster::{AWS, CLICKHOUSE, Cluster, Options, PARENT, Table, WORKER_SERVICE, pipe_spec},
    events::{Events, ledger_columns},
    kinesis::{Emulator, Handle, Options as KinesisOptions, Put},
    ledger,
    postgres::Postgres,
    process::eventually,
};
use millrace_proto::api::v1::{self as api, PipeState, ShardState};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use sqlx::Connection as _;
use tokio::{
    sync::Mutex,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep},
};
use tonic_health::pb::health_check_response::ServingStatus;

const PIPE: &str = "ledger";
const SHARDS: u32 = 4;
const KEYS: u64 = 500;
/// Records each second, in so many puts.
const RATE: u64 = 2_000;
const PUTS_PER_SECOND: u64 = 10;
/// The longest that anything may take; what it took is printed.
const LIMIT: Duration = Duration::from_secs(60);
/// How long PostgreSQL is frozen.
const FREEZE: Duration = Duration::from_secs(10);
const KILLS: usize = 10;

/// Both tests measure, so they take turns.
static TURN: Mutex<()> = Mutex::const_new(());

/// A stream that is filled at a steady rate.
struct Load {
    produced: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Load {
    fn start(kinesis: Arc<Handle>, events: Arc<Events>) -> Self {
        let (produced, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (produced.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_millis(1_000 / PUTS_PER_SECOND));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while !stopped.load(Ordering::Relaxed) {
                ticks.tick().await;
                let from = count.load(Ordering::Relaxed);
                let chunk: Vec<_> = (from..from + RATE / PUTS_PER_SECOND)
                    .map(|id| events.event(id))
                    .collect();
                kinesis.put_records_direct(PIPE, chunk.iter().map(|event| Put::new(&event.key, &event.data)))?;
                count.store(from + RATE / PUTS_PER_SECOND, Ordering::Relaxed);
            }
            Ok(())
        });
        Self { produced, stop, task }
    }

    fn produced(&self) -> u64 {
        self.produced.load(Ordering::Relaxed)
    }

    async fn end(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await??;
        Ok(self.produced.load(Ordering::Relaxed))
    }
}

/// A cluster under load, with its stream and its table.
struct Bed {
    clickhouse: &'static ClickHouse,
    database: String,
    events: Arc<Events>,
    load: Load,
    kinesis: Arc<Handle>,
    cluster: Cluster,
}

impl Bed {
    async fn start(options: Options, workers: usize) -> anyhow::Result<Self> {
        let clickhouse = ClickHouse::shared().await;
        let database = clickhouse.database().await?;
        let events = Arc::new(Events::new(1, KEYS, true));
        let kinesis = Arc::new(Emulator::start(KinesisOptions::default()).await?);
        kinesis.create_stream(PIPE, SHARDS)?;
        let cluster = Cluster::start(options, workers).await?;
        let load = Load::start(kinesis.clone(), events.clone());
        Ok(Self {
            clickhouse,
            database,
            events,
            load,
            kinesis,
            cluster,
        })
    }

    /// The pipe, with short batches: what is measured is the control planes, not the batches.
    fn pipe(&self) -> api::Pipe {
        let columns = ledger_columns();
        let table = Table {
            database: &self.database,
            table: PIPE,
            columns: &columns,
            sorting_key: &["id"],
        };
        api::Pipe {
            scaling: Some(api::Scaling { replicas: 2 }),
            settings: Some(api::Settings {
                max_insert_wait: Some(prost_types::Duration {
                    seconds: 0,
                    nanos: 200_000_000,
                }),
                ..Default::default()
            }),
            ..pipe_spec(&self.kinesis.endpoint_url(), PIPE, self.clickhouse, table)
        }
    }

    /// Seconds from `since` until a record that was put after this call is in the table.
    async fn flows(&self, what: &str, since: Instant) -> anyhow::Result<()> {
        let first = self.load.produced();
        let query = format!("SELECT max(id) FROM {}.{PIPE}", self.database);
        eventually("records flow again", LIMIT, || async {
            let newest: u64 = self.clickhouse.query(&query).await?.trim().parse()?;
            ensure!(newest >= first, "{newest} is the newest id, {first} was put since");
            anyhow::Ok(())
        })
        .await
        .with_context(|| format!("{what}\n{}", self.cluster.logs()))?;
        eprintln!(
            "{what}: records flow again after {:.1} s",
            since.elapsed().as_secs_f64()
        );
        Ok(())
    }

    /// Who holds which shard under which epoch, once all are held and read, as the control plane `index` says.
    async fn holders(&self, index: usize) -> anyhow::Result<BTreeMap<String, (String, u64)>> {
        eventually("all shards are held and read", LIMIT, || async {
            let pipe = self.cluster.pipe_at(index, PIPE).await?;
            let status = pipe.status.context("a status")?;
            let state = status.state();
            ensure!(
                state == PipeState::Running,
                "{state:?} {} {}",
                status.reason,
                status.message
            );
            ensure!(status.shards.len() == SHARDS as usize, "{} shards", status.shards.len());
            let mut holders = BTreeMap::new();
            for shard in status.shards {
                ensure!(
                    shard.state() == ShardState::Assigned && shard.lag.is_some(),
                    "{shard:?}"
                );
                holders.insert(shard.shard_id, (shard.worker_id, shard.epoch));
            }
            anyhow::Ok(holders)
        })
        .await
        .with_context(|| self.cluster.logs())
    }

    /// Stops the load, waits until all of it has been committed, and counts.
    async fn settle(self) -> anyhow::Result<()> {
        let records = self.load.end().await?;
        self.cluster
            .wait_for_records(PIPE, records, LIMIT)
            .await
            .with_context(|| self.cluster.logs())?;
        let tables = ledger::Tables {
            database: &self.database,
            table: PIPE,
            errors: "ledger_millrace_error",
        };
        let verdict = ledger::check(self.clickhouse, tables, &self.events, records).await?;
        eprintln!("{}", serde_json::to_string(&verdict)?);
        ensure!(verdict.is_clean(), "{verdict:?}\n{}", self.cluster.logs());
        Ok(())
    }
}

/// Everything below happens to one cluster, in turn: that is what a bad week looks like, and one ledger covers it all.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_two_control_planes_nothing_is_lost_or_doubled() -> anyhow::Result<()> {
    let _turn = TURN.lock().await;
    let postgres = Postgres::start().await?;
    let options = Options {
        database: Some(postgres.database().await?),
        control_planes: 2,
        ..Options::unpaced()
    };
    let mut bed = Bed::start(options, 2).await?;
    a_follower_serves_the_api(&bed).await?;
    the_leader_is_killed(&mut bed).await?;
    the_leader_is_frozen(&mut bed).await?;
    both_are_restarted_in_turn(&mut bed).await?;
    postgres_is_restarted(&bed, &postgres).await?;
    postgres_is_frozen(&bed, &postgres).await?;
    bed.settle().await
}

async fn a_follower_serves_the_api(bed: &Bed) -> anyhow::Result<()> {
    let cluster = &bed.cluster;
    let leader = cluster.wait_for_leader(LIMIT).await?;
    let follower = 1 - leader;
    ensure!(cluster.health(follower, WORKER_SERVICE).await? == ServingStatus::NotServing);
    for service in ["", "millrace.api.v1.PipeService", "millrace.api.v1.CredentialService"] {
        ensure!(
            cluster.health(follower, service).await? == ServingStatus::Serving,
            "{service:?}"
        );
    }
    cluster.create_credentials(bed.clickhouse).await?;
    let mut pipes = cluster.pipes_at(follower)?;
    let began = Instant::now();
    let request = api::CreatePipeRequest {
        parent: PARENT.to_owned(),
        pipe_id: PIPE.to_owned(),
        pipe: Some(bed.pipe()),
        validate_only: false,
        ..Default::default()
    };
    pipes.create_pipe(request).await?;
    bed.flows("created through the follower", began).await?;
    // Both say the same, and it is true: two workers, two shards each.
    let said = bed.holders(follower).await?;
    ensure!(said == bed.holders(leader).await?, "{said:?}");
    for worker in ["worker-0", "worker-1"] {
        ensure!(
            said.values().filter(|(holder, _)| holder == worker).count() == 2,
            "{said:?}"
        );
    }
    // A change through the follower reaches the leader without waiting for its next full look.
    for (desired, state) in [
        (api::DesiredState::Stopped, PipeState::Stopped),
        (api::DesiredState::Running, PipeState::Running),
    ] {
        let began = Instant::now();
        let pipe = api::Pipe {
            name: format!("{PARENT}/pipes/{PIPE}"),
            desired_state: desired.into(),
            ..Default::default()
        };
        let update_mask = Some(prost_types::FieldMask {
            paths: vec!["desired_state".to_owned()],
        });
        let request = api::UpdatePipeRequest {
            pipe: Some(pipe),
            update_mask,
            validate_only: false,
            ..Default::default()
        };
        pipes.update_pipe(request).await?;
        eventually("the pipe does what the follower was asked for", LIMIT, || async {
            let status = cluster.pipe_at(follower, PIPE).await?.status.context("a status")?;
            let all_held = status.shards.iter().all(|shard| shard.state() == ShardState::Assigned);
            ensure!(status.state() == state, "{:?}", status.state());
            ensure!(state == PipeState::Stopped || all_held, "{:?}", status.shards);
            anyhow::Ok(())
        })
        .await?;
        eprintln!(
            "{state:?} through the follower after {:.1} s",
            began.elapsed().as_secs_f64()
        );
    }
    // A credential, too, and what it is good for is refused as everywhere.
    for id in [AWS, CLICKHOUSE] {
        let name = format!("{PARENT}/credentials/{id}");
        let request = api::DeleteCredentialRequest {
            name,
            ..Default::default()
        };
        let mut credentials = cluster.credentials_at(follower)?;
        let refused = credentials
            .delete_credential(request)
            .await
            .err()
            .context("it is in use")?;
        ensure!(refused.code() == tonic::Code::FailedPrecondition, "{refused}");
    }
    Ok(())
}

async fn the_leader_is_killed(bed: &mut Bed) -> anyhow::Result<()> {
    let leader = bed.cluster.wait_for_leader(LIMIT).await?;
    let before = bed.holders(leader).await?;
    bed.cluster.kill_control_plane_at(leader).await?;
    let began = Instant::now();
    bed.flows("kill -9 of the leader", began).await?;
    let next = bed.cluster.wait_for_leader(LIMIT).await?;
    eprintln!(
        "kill -9 of the leader: another leads after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    ensure!(next != leader);
    let after = bed.holders(next).await?;
    eprintln!(
        "kill -9 of the leader: all workers are back after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    ensure!(
        after == before,
        "leases were not honoured: {before:?} became {after:?}\n{}",
        bed.cluster.logs()
    );
    bed.cluster.start_control_plane_at(leader).await
}

async fn the_leader_is_frozen(bed: &mut Bed) -> anyhow::Result<()> {
    let leader = bed.cluster.wait_for_leader(LIMIT).await?;
    let before = bed.holders(leader).await?;
    bed.cluster.pause_control_plane_at(leader)?;
    let began = Instant::now();
    bed.flows("SIGSTOP of the leader", began).await?;
    let next = bed.cluster.wait_for_leader(LIMIT).await?;
    eprintln!(
        "SIGSTOP of the leader: another leads after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let after = bed.holders(next).await?;
    eprintln!(
        "SIGSTOP of the leader: all workers are back after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    ensure!(
        after == before,
        "leases were not honoured: {before:?} became {after:?}\n{}",
        bed.cluster.logs()
    );
    bed.cluster.resume_control_plane_at(leader)?;
    // It wakes up in the belief that it leads and that all its leases have run out.
    eventually("the one that was frozen steps down", LIMIT, || async {
        ensure!(
            bed.cluster.health(leader, WORKER_SERVICE).await? == ServingStatus::NotServing,
            "it takes sessions"
        );
        let log = bed.cluster.control_plane_log(leader)?;
        ensure!(log.contains("stepping down"), "it does not say so");
        anyhow::Ok(())
    })
    .await?;
    bed.flows("SIGCONT of the one that led", Instant::now()).await?;
    ensure!(bed.cluster.wait_for_leader(LIMIT).await? == next);
    let after = bed.holders(leader).await?;
    ensure!(
        after == before,
        "it changed something: {before:?} became {after:?}\n{}",
        bed.cluster.logs()
    );
    Ok(())
}

async fn both_are_restarted_in_turn(bed: &mut Bed) -> anyhow::Result<()> {
    let first = bed.cluster.wait_for_leader(LIMIT).await?;
    let before = bed.holders(first).await?;
    for index in [first, 1 - first] {
        let began = Instant::now();
        bed.cluster.stop_control_plane_at(index).await?;
        let ended = began.elapsed();
        let next = bed.cluster.wait_for_leader(LIMIT).await?;
        eprintln!(
            "SIGTERM of the leader: it has ended after {:.1} s, another leads after {:.1} s",
            ended.as_secs_f64(),
            began.elapsed().as_secs_f64()
        );
        ensure!(next == 1 - index);
        bed.flows("SIGTERM of the leader", began).await?;
        let after = bed.holders(next).await?;
        ensure!(
            after == before,
            "leases were not honoured: {before:?} became {after:?}\n{}",
            bed.cluster.logs()
        );
        bed.cluster.start_control_plane_at(index).await?;
    }
    Ok(())
}

async fn postgres_is_restarted(bed: &Bed, postgres: &Postgres) -> anyhow::Result<()> {
    let began = Instant::now();
    postgres.stop().await?;
    postgres.start_again().await?;
    eprintln!(
        "restart of PostgreSQL: it answers after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    bed.flows("restart of PostgreSQL", began).await?;
    let leader = bed.cluster.wait_for_leader(LIMIT).await?;
    bed.holders(leader).await.map(drop)
}

async fn postgres_is_frozen(bed: &Bed, postgres: &Postgres) -> anyhow::Result<()> {
    let leader = bed.cluster.wait_for_leader(LIMIT).await?;
    let before = bed.holders(leader).await?;
    postgres.pause()?;
    let frozen = Instant::now();
    // What is bounded here is the fault itself, not a wait for something.
    sleep(FREEZE).await;
    postgres.resume()?;
    let began = Instant::now();
    bed.flows("PostgreSQL after 10 s of SIGSTOP", began).await?;
    let leader = bed.cluster.wait_for_leader(LIMIT).await?;
    let after = bed.holders(leader).await?;
    eprintln!(
        "freeze of PostgreSQL: all workers are back {:.1} s after it began",
        frozen.elapsed().as_secs_f64()
    );
    ensure!(
        after == before,
        "leases were not honoured: {before:?} became {after:?}\n{}",
        bed.cluster.logs()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_on_sqlite_is_killed_again_and_again() -> anyhow::Result<()> {
    let _turn = TURN.lock().await;
    let seed = std::env::var("MILLRACE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    eprintln!("MILLRACE_SEED={seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut bed = Bed::start(Options::unpaced(), 1).await?;
    bed.cluster.create_credentials(bed.clickhouse).await?;
    bed.cluster.create_pipe(PIPE, bed.pipe()).await?;
    bed.flows("created", Instant::now()).await?;
    let file = bed.cluster.path().join("millrace.db");
    for kill in 1..=KILLS {
        // At any moment of its work: what it does in between takes milliseconds.
        sleep(Duration::from_millis(rng.random_range(50..600))).await;
        bed.cluster.kill_control_plane().await?;
        check_integrity(&file).await?;
        let began = Instant::now();
        bed.cluster.start_control_plane().await?;
        bed.flows(&format!("kill {kill}"), began).await?;
    }
    bed.settle().await
}

async fn check_integrity(file: &std::path::Path) -> anyhow::Result<()> {
    let mut connection = sqlx::SqliteConnection::connect(&format!("sqlite://{}", file.display())).await?;
    let answer: String = sqlx::query_scalar("PRAGMA integrity_check")
        .fetch_one(&mut connection)
        .await?;
    connection.close().await?;
    if answer != "ok" {
        bail!("{}: {answer}", file.display());
    }
    Ok(())
}

//! What these tests stand on.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use millrace_common::{
    clock::Clock,
    crypto::{KEY_LEN, Sealer},
    error, grpc,
};
use millrace_control_plane::app::{self, App};
use millrace_integration_tests::{
    clickhouse::{self, ClickHouse},
    kinesis::{self, Emulator, Put},
    process::{eventually, log_errors},
};
use millrace_proto::api::v1::{
    self as proto, PipeState, credential::Kind, credential_service_client::CredentialServiceClient,
    pipe_service_client::PipeServiceClient,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::OnceCell,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Status, transport::Channel};

const PARENT: &str = "projects/default";
const USER: &str = "owner";
const PASSWORD: &str = "secret";
/// Longer than anything here takes on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const STREAM: &str = "events";

/// The engine of this test binary; each test has tables of its own.
async fn engine() -> &'static ClickHouse {
    static ENGINE: OnceCell<ClickHouse> = OnceCell::const_new();
    ENGINE
        .get_or_init(|| async {
            let options = clickhouse::Options::default().user(
                USER,
                PASSWORD,
                &["GRANT ALL ON default.*", "GRANT TABLE ENGINE ON MergeTree"],
            );
            ClickHouse::start(options).await.expect("an engine")
        })
        .await
}

/// A control plane, an emulator, and a door to the engine that can be shut.
pub(crate) struct Bed {
    pub(crate) kinesis: kinesis::Handle,
    pub(crate) clock: Clock,
    pub(crate) pipes: PipeServiceClient<Channel>,
    engine: &'static ClickHouse,
    door: Door,
    control_plane: String,
    _running: app::Running,
    _stop: DropGuard,
}

/// A worker in a runtime of its own, so that it can be ended as a crash ends it.
pub(crate) struct Worker {
    runtime: Option<Runtime>,
    leave: CancellationToken,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Worker {
    /// Ends it between two instructions.
    pub(crate) fn crash(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Ends it in order.
    pub(crate) async fn leave(mut self) {
        self.leave.cancel();
        if let Some(task) = self.task.take() {
            tokio::time::timeout(LIMIT, task)
                .await
                .expect("in time")
                .expect("no panic");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Bed {
    pub(crate) async fn start(shards: u32, refuse_trimmed_numbers: bool) -> Self {
        log_errors();
        let engine = engine().await;
        let start = Timestamp::now();
        let kinesis = Emulator::start(kinesis::Options {
            clock: kinesis::Clock::frozen_at_ms(start.as_millisecond()),
            refuse_trimmed_numbers,
            ..Default::default()
        })
        .await
        .expect("an emulator");
        kinesis.create_stream(STREAM, shards).expect("a stream");
        let clock = Clock::manual(start);
        let sealer = Arc::new(Sealer::new(&[7; KEY_LEN]).expect("a key"));
        let mut options = app::Options::new("sqlite::memory:", sealer);
        options.discovery.interval = Duration::from_millis(300);
        options.coordinator.period = Duration::from_millis(200);
        options.coordinator.heartbeat_interval = Duration::from_millis(200);
        options.coordinator.lease_ttl = Duration::from_secs(3);
        options.drain = Duration::from_secs(5);
        options.clock = clock.clone();
        let shutdown = CancellationToken::new();
        let running = App::start(options, shutdown.clone()).await.expect("a control plane");
        let control_plane = format!("http://{}", running.addr);
        let channel = grpc::channel(&control_plane).expect("a channel");
        let mut credentials = CredentialServiceClient::new(channel.clone());
        let keys = Kind::AwsKeys(proto::AwsKeys {
            access_key_id: "AKIDEXAMPLE".into(),
            secret_access_key: "secret".into(),
            session_token: String::new(),
        });
        let user = Kind::ClickhouseUser(proto::ClickHouseUser {
            username: USER.into(),
            password: PASSWORD.into(),
        });
        for (id, kind) in [("aws", keys), ("clickhouse", user)] {
            let request = proto::CreateCredentialRequest {
                parent: PARENT.into(),
                credential_id: id.into(),
                credential: Some(proto::Credential {
                    kind: Some(kind),
                    ..Default::default()
                }),
                ..Default::default()
            };
            credentials.create_credential(request).await.expect("a credential");
        }
        Self {
            kinesis,
            clock,
            pipes: PipeServiceClient::new(channel),
            door: Door::open(engine).await,
            engine,
            control_plane,
            _running: running,
            _stop: shutdown.drop_guard(),
        }
    }

    /// Time passes, for everybody.
    pub(crate) fn advance(&self, by: Duration) {
        self.kinesis.clock().advance(by);
        self.clock.advance(by);
    }

    pub(crate) fn worker(&self, id: &str) -> Worker {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let mut options =
            millrace_data_plane::app::Options::new(self.control_plane.clone(), id.parse().expect("an id"));
        options.clock = self.clock.clone();
        options.drain_deadline = Duration::from_secs(10);
        let leave = CancellationToken::new();
        let stop = leave.clone();
        let task = runtime.spawn(async move {
            millrace_data_plane::app::run(options, stop).await.expect("a worker");
        });
        Worker {
            runtime: Some(runtime),
            leave,
            task: Some(task),
        }
    }

    /// Puts records with these ids; each has a key of its own.
    pub(crate) fn put(&self, ids: std::ops::Range<u64>) {
        let records: Vec<(String, String)> = ids
            .map(|id| (format!("key-{id}"), format!(r#"{{"id":{id}}}"#)))
            .collect();
        let puts = records.iter().map(|(key, data)| Put::new(key, data.as_bytes()));
        self.kinesis.put_records_direct(STREAM, puts).expect("records");
    }

    pub(crate) async fn create_table(&self, table: &str) {
        let statement = format!(
            "CREATE TABLE default.`{table}` (id UInt64) ENGINE = MergeTree ORDER BY id \
             SETTINGS non_replicated_deduplication_window = 1000"
        );
        self.engine.query(&statement).await.expect("a table");
    }

    /// A pipe into a table of its name, from the oldest record.
    pub(crate) fn pipe(&self, table: &str) -> proto::Pipe {
        proto::Pipe {
            source: Some(proto::Source {
                kind: Some(proto::source::Kind::Kinesis(proto::KinesisSource {
                    stream_name: STREAM.into(),
                    region: "us-east-1".into(),
                    iterator_type: proto::IteratorType::TrimHorizon.into(),
                    credential: format!("{PARENT}/credentials/aws"),
                    endpoint: self.kinesis.endpoint_url(),
                    ..Default::default()
                })),
            }),
            destination: Some(proto::Destination {
                endpoint: self.door.url.clone(),
                credential: format!("{PARENT}/credentials/clickhouse"),
                database: "default".into(),
                table: table.into(),
                ..Default::default()
            }),
            settings: Some(proto::Settings {
                max_insert_wait: Some(prost_types::Duration {
                    seconds: 0,
                    nanos: 100_000_000,
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub(crate) async fn create(&self, id: &str, pipe: proto::Pipe) -> Result<proto::Pipe, Status> {
        let request = proto::CreatePipeRequest {
            parent: PARENT.into(),
            pipe_id: id.into(),
            pipe: Some(pipe),
            validate_only: false,
            ..Default::default()
        };
        let response = self.pipes.clone().create_pipe(request).await?.into_inner();
        Ok(response.pipe.expect("a pipe"))
    }

    /// A table and a pipe into it.
    pub(crate) async fn running(&self, id: &str) {
        self.create_table(id).await;
        self.create(id, self.pipe(id)).await.expect("a pipe");
    }

    pub(crate) async fn get(&self, id: &str) -> proto::Pipe {
        let request = proto::GetPipeRequest {
            name: name(id),
            view: proto::PipeView::Full.into(),
        };
        let response = self.pipes.clone().get_pipe(request).await.expect("an answer");
        response.into_inner().pipe.expect("a pipe")
    }

    pub(crate) async fn update(&self, id: &str, path: &str, pipe: proto::Pipe) {
        let request = proto::UpdatePipeRequest {
            pipe: Some(proto::Pipe { name: name(id), ..pipe }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec![path.to_owned()],
            }),
            validate_only: false,
            ..Default::default()
        };
        self.pipes.clone().update_pipe(request).await.expect("an update");
    }

    pub(crate) async fn want(&self, id: &str, desired: proto::DesiredState) {
        let pipe = proto::Pipe {
            desired_state: desired.into(),
            ..Default::default()
        };
        self.update(id, "desired_state", pipe).await;
    }

    pub(crate) async fn on_data_gap(&self, id: &str, policy: proto::DataGapPolicy) {
        let pipe = proto::Pipe {
            settings: Some(proto::Settings {
                on_data_gap: policy.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.update(id, "settings.on_data_gap", pipe).await;
    }

    pub(crate) async fn until_state(&self, id: &str, state: PipeState, reason: &str) {
        eventually(&format!("{id} is {state:?} {reason}"), LIMIT, || async {
            let status = self.get(id).await.status.expect("a status");
            let shown = (status.state(), status.reason.clone());
            if shown == (state, reason.to_owned()) {
                Ok(())
            } else {
                Err(anyhow::anyhow!("{shown:?}: {}", status.message))
            }
        })
        .await
        .expect("in time");
    }

    /// How often each id is in a table.
    pub(crate) async fn rows(&self, table: &str) -> BTreeMap<u64, u64> {
        let statement = format!("SELECT id, count() FROM default.`{table}` GROUP BY id ORDER BY id FORMAT TSV");
        let text = self.engine.query(&statement).await.expect("rows");
        let row = |line: &str| {
            let (id, count) = line.split_once('\t').expect("two columns");
            (id.parse().expect("an id"), count.parse().expect("a count"))
        };
        text.lines().map(row).collect()
    }

    /// Waits until a table holds just these ids, each so often, and the pipe of its name has committed them: rows are there a
    /// moment before that.
    pub(crate) async fn until_rows(&self, table: &str, wanted: &BTreeMap<u64, u64>) {
        eventually(&format!("rows of {table}"), LIMIT, || async {
            let found = self.rows(table).await;
            if found == *wanted {
                Ok(())
            } else {
                let (sum, want) = (found.values().sum::<u64>(), wanted.values().sum::<u64>());
                Err(anyhow::anyhow!(
                    "{} ids in {sum} rows, not {} in {want}",
                    found.len(),
                    wanted.len()
                ))
            }
        })
        .await
        .expect("in time");
        let preview = || proto::ResetPositionRequest {
            iterator_type: proto::IteratorType::Latest.into(),
            validate_only: true,
            ..Default::default()
        };
        eventually(&format!("commits of {table}"), LIMIT, || async {
            let refused = self.reset(table, preview()).await.err();
            match refused.filter(|refused| error::reason(refused).as_deref() == Some("OPEN_BATCHES")) {
                Some(open) => Err(anyhow::anyhow!("{open}")),
                None => Ok(()),
            }
        })
        .await
        .expect("in time");
    }

    pub(crate) async fn events(&self, id: &str, kind: &str) -> Vec<proto::PipeEvent> {
        let request = proto::ListPipeEventsRequest {
            parent: name(id),
            page_size: 500,
            page_token: String::new(),
            ..Default::default()
        };
        let page = self
            .pipes
            .clone()
            .list_pipe_events(request)
            .await
            .expect("events")
            .into_inner();
        page.events.into_iter().filter(|event| event.kind == kind).collect()
    }

    pub(crate) async fn until_events(&self, id: &str, kind: &str, count: usize) -> Vec<proto::PipeEvent> {
        eventually(&format!("{count} events {kind} of {id}"), LIMIT, || async {
            let events = self.events(id, kind).await;
            if events.len() >= count {
                Ok(events)
            } else {
                Err(anyhow::anyhow!("{events:?}"))
            }
        })
        .await
        .expect("in time")
    }

    pub(crate) async fn reset(
        &self,
        id: &str,
        request: proto::ResetPositionRequest,
    ) -> Result<proto::ResetPositionResponse, Status> {
        let request = proto::ResetPositionRequest {
            name: name(id),
            ..request
        };
        Ok(self.pipes.clone().reset_position(request).await?.into_inner())
    }

    /// Stops a pipe and waits until nothing of it is open.
    pub(crate) async fn drain(&self, id: &str) {
        self.want(id, proto::DesiredState::Stopped).await;
        self.until_state(id, PipeState::Stopped, "").await;
    }

    /// Shuts the way to ClickHouse, or opens it again.
    pub(crate) fn shut(&self, shut: bool) {
        self.door.shut.store(shut, Ordering::SeqCst);
    }
}

pub(crate) fn name(id: &str) -> String {
    format!("{PARENT}/pipes/{id}")
}

/// These ids, each so often.
pub(crate) fn each(ids: impl IntoIterator<Item = u64>, count: u64) -> BTreeMap<u64, u64> {
    ids.into_iter().map(|id| (id, count)).collect()
}

/// A way to the engine that can be shut: new connections end at once, and so do old ones.
struct Door {
    url: String,
    shut: Arc<AtomicBool>,
}

impl Door {
    async fn open(engine: &'static ClickHouse) -> Self {
        let behind = engine.http_url();
        let behind = behind.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let shut = Arc::new(AtomicBool::new(false));
        let closed = shut.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (closed, behind) = (closed.clone(), behind.clone());
                tokio::spawn(async move {
                    if closed.load(Ordering::SeqCst) {
                        return;
                    }
                    let Ok(mut server) = TcpStream::connect(&behind).await else {
                        return;
                    };
                    let until_shut = async {
                        while !closed.load(Ordering::SeqCst) {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        () = until_shut => {}
                    }
                });
            }
        });
        Self { url, shut }
    }
}

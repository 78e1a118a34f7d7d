//! A control plane without its API on a loopback port, over a real SQLite store; and workers that are only their protocol.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use millrace_common::{
    aws,
    clock::Clock,
    crypto::{KEY_LEN, Sealer},
    grpc,
    ids::{CredentialUid, Incarnation, PipeUid, Revision, ShardId},
    pipe::{
        DesiredState, Destination, KinesisSource, MappedColumn, PipeSpec, PollingBudget, ResolvedSpec, Settings,
        StartPosition, StreamIdentity, StreamRef,
    },
    position::Position,
};
use millrace_proto::worker::v1::{
    self, session_request::Message, session_response, worker_service_client::WorkerServiceClient,
};
use parking_lot::Mutex;
use secrecy::SecretString;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};

use crate::{
    coordinator::{Coordinator, Handle, Options},
    leader::{self, Candidate, Elector, Role},
    sessions::PROTOCOL_MAX,
    store::{self, CredentialSecret, NewCredential, NewPipe, NewShard, Store, StoredPipe, StoredShard},
};

/// How long a condition may take. Far above what any of them takes, so that a slow machine fails nothing.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn options() -> Options {
    Options {
        // Long enough for a busy machine to be heard in time.
        lease_ttl: Duration::from_secs(3),
        heartbeat_interval: Duration::from_millis(100),
        period: Duration::from_millis(200),
        ..Options::default()
    }
}

/// Polls a condition until it gives a value.
pub(super) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(super) fn shard_id(n: usize) -> ShardId {
    format!("shardId-{n:012}").parse().unwrap()
}

/// A control plane that runs.
pub(super) struct Plane {
    pub(super) store: Store,
    pub(super) handle: Handle,
    pub(super) addr: SocketAddr,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Plane {
    /// Starts on the database in `directory`.
    pub(super) async fn start(directory: &std::path::Path, options: Options) -> Plane {
        let url = format!("sqlite://{}", directory.join("store.db").display());
        let sealer = Arc::new(Sealer::new(&[7; KEY_LEN]).unwrap());
        let database = store::Options::new(url);
        let open = || Store::open(&database, sealer.clone(), Clock::System);
        let store = eventually("the database opens", || async { open().await.ok() }).await;
        let (coordinator, handle) = Coordinator::new(store.clone(), Clock::System, options);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let server = grpc::server()
            .add_service(coordinator.service())
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped);
        let (elector, mut election) = Elector::new(store.clone(), Candidate::new(""), leader::Options::default());
        let electing = tokio::spawn(elector.run(stop.clone()));
        let role = election.role.wait_for(|role| matches!(role, Role::Leading(_))).await;
        let Role::Leading(tenure) = role.unwrap().clone() else {
            unreachable!("waited for")
        };
        let tasks = vec![
            electing,
            tokio::spawn(async move { server.await.unwrap() }),
            tokio::spawn(Box::pin(async move { coordinator.lead(&tenure).await })),
        ];
        eventually("it takes sessions", || async { handle.takes_sessions().then_some(()) }).await;
        Plane {
            store,
            handle,
            addr,
            stop,
            tasks,
        }
    }

    /// Stops and closes the database, so that it can be opened again.
    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        for task in std::mem::take(&mut self.tasks) {
            tokio::time::timeout(PATIENCE, task)
                .await
                .expect("the control plane ends")
                .unwrap();
        }
        self.store.close().await;
    }

    /// Stores a running pipe of open shards, with its credentials.
    pub(super) async fn create_pipe(&self, name: &str, replicas: u32, shards: usize) -> StoredPipe {
        let secrets = [
            ("aws", CredentialSecret::Aws(aws_keys())),
            ("clickhouse", click_house("canary-password")),
        ];
        for (id, secret) in secrets {
            let new = NewCredential {
                name: format!("projects/default/credentials/{id}").parse().unwrap(),
                uid: CredentialUid::new(),
                display_name: String::new(),
                secret,
                source: None,
            };
            // The second pipe finds them there.
            let _ = self.store.create_credential(new).await;
        }
        let shard = |n| NewShard {
            id: shard_id(n),
            parents: Vec::new(),
            start: Position::TrimHorizon,
        };
        let new = NewPipe {
            name: format!("projects/default/pipes/{name}").parse().unwrap(),
            uid: PipeUid::new(),
            spec: spec(replicas),
            resolved: resolved(),
            desired: DesiredState::Running,
            effective: None,
            shards: (0..shards).map(shard).collect(),
        };
        let pipe = self.store.create_pipe(new).await.unwrap();
        self.handle.nudge();
        pipe
    }

    pub(super) async fn shard(&self, pipe: PipeUid, n: usize) -> StoredShard {
        let shards = self.store.shards(pipe).await.unwrap();
        shards.into_iter().find(|shard| shard.id == shard_id(n)).unwrap()
    }

    pub(super) fn client(&self) -> WorkerServiceClient<Channel> {
        WorkerServiceClient::new(grpc::channel(&format!("http://{}", self.addr)).unwrap())
            .max_decoding_message_size(grpc::MAX_SESSION_MESSAGE_BYTES)
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn aws_keys() -> aws::Credential {
    aws::Credential::Keys {
        access_key_id: "AKIDEXAMPLE".into(),
        secret_access_key: SecretString::from("canary-secret".to_owned()),
        session_token: None,
    }
}

pub(super) fn click_house(password: &str) -> CredentialSecret {
    CredentialSecret::ClickHouse {
        username: "writer".into(),
        password: SecretString::from(password.to_owned()),
    }
}

pub(super) fn spec(replicas: u32) -> PipeSpec {
    PipeSpec {
        display_name: String::new(),
        annotations: BTreeMap::new(),
        source: KinesisSource {
            stream: StreamRef::Name("events".into()),
            region: "eu-west-1".into(),
            start: StartPosition::TrimHorizon,
            credential: "projects/default/credentials/aws".parse().unwrap(),
            endpoint: None,
            end: None,
            fan_out: None,
            polling: PollingBudget::default(),
        },
        destination: Destination {
            endpoint: "http://127.0.0.1:8123".into(),
            credential: "projects/default/credentials/clickhouse".parse().unwrap(),
            database: "default".into(),
            table: "events".into(),
            error_table: "events_millrace_error".into(),
            managed: None,
            columns: Vec::new(),
        },
        field_mappings: Vec::new(),
        decoding: Default::default(),
        replicas,
        settings: Settings::default(),
    }
}

pub(super) fn resolved() -> ResolvedSpec {
    ResolvedSpec {
        revision: Revision(1),
        stream: StreamIdentity {
            arn: "arn:aws:kinesis:eu-west-1:123456789012:stream/events".into(),
            name: "events".into(),
            created: "2026-01-02T03:04:05Z".parse().unwrap(),
        },
        time_zone: "UTC".to_owned(),
        columns: vec![MappedColumn {
            name: "id".into(),
            data_type: "UInt64".into(),
            has_default: false,
            source_field: "id".into(),
            ..MappedColumn::default()
        }],
    }
}

/// What a worker holds: by pipe and shard, the epoch and whether it was read to its end.
pub(super) type Held = BTreeMap<(String, String), v1::ShardReport>;

#[derive(Default)]
struct State {
    held: Held,
    generation: u64,
    fault: Option<v1::LaneFault>,
    /// Shards that it does not give back when asked.
    clings: bool,
}

/// A worker that takes up each set at once and reports it.
pub(super) struct Worker {
    pub(super) identity: v1::WorkerIdentity,
    pub(super) client: WorkerServiceClient<Channel>,
    pub(super) set: watch::Receiver<Option<v1::AssignmentSet>>,
    /// How the session ended.
    pub(super) ended: watch::Receiver<Option<Result<(), Status>>>,
    out: mpsc::Sender<v1::SessionRequest>,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
    beat: JoinHandle<()>,
}

impl Worker {
    pub(super) async fn connect(plane: &Plane, id: &str) -> Worker {
        Self::connect_as(plane, identity(id), Held::new()).await
    }

    pub(super) async fn connect_as(plane: &Plane, identity: v1::WorkerIdentity, held: Held) -> Worker {
        Self::connect_speaking(plane, identity, held, PROTOCOL_MAX).await
    }

    /// One that knows of no newer protocol than this.
    pub(super) async fn connect_speaking(
        plane: &Plane,
        identity: v1::WorkerIdentity,
        held: Held,
        newest: u32,
    ) -> Worker {
        let state = Arc::new(Mutex::new(State {
            held,
            ..State::default()
        }));
        let (out, requests) = mpsc::channel(16);
        let hello = v1::Hello {
            worker: Some(identity.clone()),
            protocol_min: 1,
            protocol_max: newest,
            program_version: "test".into(),
            capacity: Some(v1::Capacity {
                cores: 2,
                memory_bytes: 1 << 30,
            }),
            report: Some(report(&state.lock())),
        };
        out.send(v1::SessionRequest {
            message: Some(Message::Hello(hello)),
        })
        .await
        .unwrap();
        let mut client = plane.client();
        let mut inbound = client
            .session(ReceiverStream::new(requests))
            .await
            .unwrap()
            .into_inner();
        let welcome = inbound.message().await.unwrap().unwrap().message.unwrap();
        let session_response::Message::Welcome(welcome) = welcome else {
            panic!("the first message is a Welcome")
        };
        assert_eq!(welcome.protocol, newest);
        let heartbeat = Duration::try_from(welcome.heartbeat_interval.unwrap()).unwrap();

        let (sets, set) = watch::channel(None);
        let (end, ended) = watch::channel(None);
        let (of_task, reports) = (state.clone(), out.clone());
        let task = tokio::spawn(async move {
            loop {
                match inbound.message().await {
                    Ok(Some(message)) => {
                        let new = match message.message {
                            Some(session_response::Message::AssignmentSet(new)) => new,
                            Some(session_response::Message::Heartbeat(_)) => continue,
                            _ => panic!("only sets and heartbeats follow a Welcome"),
                        };
                        let report = take_up(&mut of_task.lock(), &new);
                        sets.send_replace(Some(new));
                        let _ = reports.send(report).await;
                    }
                    Ok(None) => return drop(end.send_replace(Some(Ok(())))),
                    Err(status) => return drop(end.send_replace(Some(Err(status)))),
                }
            }
        });
        let (of_beat, beats) = (state.clone(), out.clone());
        let beat = tokio::spawn(async move {
            let mut interval = tokio::time::interval(heartbeat);
            loop {
                interval.tick().await;
                let message = Message::Report(report(&of_beat.lock()));
                if beats.send(v1::SessionRequest { message: Some(message) }).await.is_err() {
                    return;
                }
            }
        });
        Worker {
            identity,
            client,
            set,
            ended,
            out,
            state,
            task,
            beat,
        }
    }

    /// Shards of a pipe that it holds, with their epochs.
    pub(super) fn shards(&self, pipe: &StoredPipe) -> BTreeMap<String, u64> {
        let uid = pipe.uid.to_string();
        let state = self.state.lock();
        state
            .held
            .iter()
            .filter(|((p, _), _)| *p == uid)
            .map(|((_, id), s)| (id.clone(), s.epoch))
            .collect()
    }

    /// Waits until it holds so many shards of a pipe.
    pub(super) async fn holds(&self, pipe: &StoredPipe, count: usize) -> BTreeMap<String, u64> {
        eventually(&format!("{} holds {count} shards", self.identity.worker_id), || async {
            Some(self.shards(pipe)).filter(|shards| shards.len() == count)
        })
        .await
    }

    pub(super) async fn say(&self, message: Message) {
        self.out
            .send(v1::SessionRequest { message: Some(message) })
            .await
            .unwrap();
    }

    /// The same, for one that may have been closed.
    pub(super) async fn try_say(&self, message: Message) -> Result<(), ()> {
        self.out
            .send(v1::SessionRequest { message: Some(message) })
            .await
            .map_err(|_| ())
    }

    pub(super) async fn report(&self) {
        let message = Message::Report(report(&self.state.lock()));
        self.say(message).await;
    }

    /// Reports a shard as read to its end.
    pub(super) async fn finish(&self, pipe: &StoredPipe, shard: usize, children: Vec<v1::ChildShard>) {
        let key = (pipe.uid.to_string(), shard_id(shard).to_string());
        {
            let mut state = self.state.lock();
            let held = state.held.get_mut(&key).expect("it holds the shard");
            (held.finished, held.children) = (true, children);
        }
        self.report().await;
    }

    /// Drops a shard that nobody has asked for.
    pub(super) async fn drop_shard(&self, pipe: &StoredPipe, shard: usize) {
        let key = (pipe.uid.to_string(), shard_id(shard).to_string());
        self.state.lock().held.remove(&key).expect("it holds the shard");
        self.report().await;
    }

    pub(super) fn set_fault(&self, fault: Option<v1::LaneFault>) {
        self.state.lock().fault = fault;
    }

    /// From now on it gives nothing back.
    pub(super) fn cling(&self) {
        self.state.lock().clings = true;
    }

    /// Stops reporting, while its connection stays.
    pub(super) fn hang(&self) {
        self.beat.abort();
    }

    /// What it holds, for a session that comes after this one.
    pub(super) fn held(&self) -> Held {
        self.state.lock().held.clone()
    }

    /// Dies: nothing is said, the connection breaks.
    pub(super) fn kill(self) {
        self.task.abort();
        self.beat.abort();
    }

    /// Ends its side of the stream in order.
    pub(super) async fn close(self) {
        self.beat.abort();
        let _ = self.beat.await;
        drop(self.out);
        // The reader holds the other sender until the control plane has ended its side, so it goes with it.
        self.task.abort();
    }
}

pub(super) fn identity(worker: &str) -> v1::WorkerIdentity {
    v1::WorkerIdentity {
        worker_id: worker.into(),
        incarnation: Incarnation::new().to_string(),
    }
}

fn take_up(state: &mut State, set: &v1::AssignmentSet) -> v1::SessionRequest {
    let mut wanted = BTreeSet::new();
    for lane in &set.lanes {
        for shard in &lane.shards {
            let key = (lane.pipe_uid.clone(), shard.shard_id.clone());
            let known = state.held.get(&key).is_some_and(|held| held.epoch == shard.epoch);
            if !known {
                let (shard_id, epoch) = (shard.shard_id.clone(), shard.epoch);
                state.held.insert(
                    key.clone(),
                    v1::ShardReport {
                        shard_id,
                        epoch,
                        ..Default::default()
                    },
                );
            }
            wanted.insert(key);
        }
    }
    if !state.clings {
        state.held.retain(|key, _| wanted.contains(key));
    }
    state.generation = set.generation;
    v1::SessionRequest {
        message: Some(Message::Report(report(state))),
    }
}

fn report(state: &State) -> v1::Report {
    let mut lanes: BTreeMap<String, v1::LaneReport> = BTreeMap::new();
    for ((pipe, _), shard) in &state.held {
        let lane = lanes.entry(pipe.clone()).or_insert_with(|| v1::LaneReport {
            pipe_uid: pipe.clone(),
            shards: Vec::new(),
            fault: state.fault.clone(),
        });
        lane.shards.push(shard.clone());
    }
    v1::Report {
        generation: state.generation,
        lanes: lanes.into_values().collect(),
    }
}

//! What the tests of the API stand on: one engine with users of different rights, an emulator and a control plane each.

use std::{sync::Arc, time::Duration};

use millrace_common::{
    crypto::{KEY_LEN, Sealer},
    error, grpc,
};
use millrace_control_plane::app::{App, Options, Running};
use millrace_integration_tests::{
    clickhouse::{self, ClickHouse},
    kinesis::{self, Emulator, Interceptor},
    process::log_errors,
};
use millrace_proto::api::v1::{
    self as proto, credential::Kind, credential_service_client::CredentialServiceClient,
    pipe_service_client::PipeServiceClient,
};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

pub(crate) const PARENT: &str = "projects/default";
/// Database that all tests share; each has its own tables in it, because rights are granted by name.
pub(crate) const DATABASE: &str = "api_tests";
/// May do everything in [`DATABASE`].
pub(crate) const OWNER: &str = "owner";
/// May insert into [`DATABASE`], and nothing else.
pub(crate) const WRITER: &str = "writer";
/// May read [`DATABASE`], and nothing else.
pub(crate) const READER: &str = "reader";
/// Password of all three.
pub(crate) const PASSWORD: &str = "canary-password";
/// Access key of the AWS credential.
pub(crate) const ACCESS_KEY: &str = "AKIDEXAMPLE";
/// Secret of the AWS credential.
pub(crate) const SECRET_KEY: &str = "canary-secret-key";

/// The engine of this test binary.
pub(crate) async fn engine() -> &'static ClickHouse {
    static ENGINE: OnceCell<ClickHouse> = OnceCell::const_new();
    ENGINE
        .get_or_init(|| async {
            let grant = |rights: &str| format!("GRANT {rights} ON {DATABASE}.*");
            let engines = [
                "MergeTree",
                "ReplacingMergeTree",
                "SummingMergeTree",
                "Null",
                "ReplicatedMergeTree",
            ]
            .map(|engine| format!("GRANT TABLE ENGINE ON {engine}"));
            let all = grant("ALL");
            let rights: Vec<&str> = [&all].into_iter().chain(&engines).map(String::as_str).collect();
            let options = clickhouse::Options::default()
                .user(OWNER, PASSWORD, &rights)
                .user(WRITER, PASSWORD, &[&grant("INSERT")])
                .user(READER, PASSWORD, &[&grant("SELECT")]);
            let engine = ClickHouse::start(options).await.expect("an engine");
            engine
                .query(&format!("CREATE DATABASE IF NOT EXISTS {DATABASE}"))
                .await
                .expect("a database");
            engine
        })
        .await
}

/// A control plane with an emulator that has the stream `events` of two shards.
pub(crate) struct Bed {
    pub(crate) engine: &'static ClickHouse,
    pub(crate) kinesis: kinesis::Handle,
    pub(crate) pipes: PipeServiceClient<Channel>,
    pub(crate) credentials: CredentialServiceClient<Channel>,
    pub(crate) channel: Channel,
    pub(crate) running: Running,
    pub(crate) shutdown: CancellationToken,
    /// Stops everything at the end of the test.
    _stop: tokio_util::sync::DropGuard,
}

impl Bed {
    /// With usual settings, and credentials for AWS (`aws`) and the three users.
    pub(crate) async fn start() -> Self {
        Self::start_with(kinesis::Options::default()).await
    }

    /// With something between the control plane and the emulator.
    pub(crate) async fn start_intercepted(interceptor: impl Interceptor) -> Self {
        Self::start_with(kinesis::Options {
            interceptor: Some(Arc::new(interceptor)),
            ..Default::default()
        })
        .await
    }

    pub(crate) async fn start_with(options: kinesis::Options) -> Self {
        log_errors();
        let engine = engine().await;
        let kinesis = Emulator::start(options).await.expect("an emulator");
        kinesis.create_stream("events", 2).expect("a stream");
        let sealer = Arc::new(Sealer::new(&[7; KEY_LEN]).expect("a key"));
        let mut options = Options::new("sqlite::memory:", sealer);
        options.discovery.interval = Duration::from_millis(200);
        options.destination.interval = Duration::from_millis(200);
        options.destination.healthy_interval = Duration::from_millis(200);
        options.drain = Duration::from_secs(5);
        let shutdown = CancellationToken::new();
        let running = App::start(options, shutdown.clone()).await.expect("a control plane");
        let channel = grpc::channel(&format!("http://{}", running.addr)).expect("a channel");
        let bed = Self {
            engine,
            kinesis,
            pipes: PipeServiceClient::new(channel.clone()),
            credentials: CredentialServiceClient::new(channel.clone()),
            channel,
            running,
            _stop: shutdown.clone().drop_guard(),
            shutdown,
        };
        let keys = proto::AwsKeys {
            access_key_id: ACCESS_KEY.into(),
            secret_access_key: SECRET_KEY.into(),
            session_token: String::new(),
        };
        bed.create_credential("aws", Kind::AwsKeys(keys))
            .await
            .expect("AWS keys");
        for user in [OWNER, WRITER, READER] {
            bed.create_credential(user, clickhouse_user(user, PASSWORD))
                .await
                .expect("a ClickHouse user");
        }
        bed
    }

    pub(crate) async fn create_credential(&self, id: &str, kind: Kind) -> Result<proto::Credential, Status> {
        let request = proto::CreateCredentialRequest {
            parent: PARENT.into(),
            credential_id: id.into(),
            credential: Some(proto::Credential {
                kind: Some(kind),
                ..Default::default()
            }),
            ..Default::default()
        };
        let response = self.credentials.clone().create_credential(request).await?.into_inner();
        Ok(response.credential.expect("a credential"))
    }

    /// Runs a statement as the engine's administrator.
    pub(crate) async fn sql(&self, statement: &str) -> String {
        self.engine.query(statement).await.expect(statement)
    }

    /// A table with a deduplication window.
    pub(crate) async fn create_table(&self, name: &str) {
        self.sql(&format!(
            "CREATE TABLE {DATABASE}.`{name}` (id UInt64, name String DEFAULT 'nobody', size UInt32 MATERIALIZED 1) \
             ENGINE = MergeTree ORDER BY id SETTINGS non_replicated_deduplication_window = 100"
        ))
        .await;
    }

    /// A pipe from the stream `events` into a table that exists, as the owner of the database.
    pub(crate) fn pipe(&self, table: &str) -> proto::Pipe {
        proto::Pipe {
            display_name: "Events".into(),
            source: Some(proto::Source {
                kind: Some(proto::source::Kind::Kinesis(proto::KinesisSource {
                    stream_name: "events".into(),
                    region: "us-east-1".into(),
                    iterator_type: proto::IteratorType::TrimHorizon.into(),
                    credential: format!("{PARENT}/credentials/aws"),
                    endpoint: self.kinesis.endpoint_url(),
                    ..Default::default()
                })),
            }),
            destination: Some(proto::Destination {
                endpoint: self.engine.http_url(),
                credential: format!("{PARENT}/credentials/{OWNER}"),
                database: DATABASE.into(),
                table: table.into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub(crate) async fn create(&self, id: &str, pipe: proto::Pipe) -> Result<proto::Pipe, Status> {
        self.create_or_check(id, pipe, false).await
    }

    pub(crate) async fn create_or_check(
        &self,
        id: &str,
        pipe: proto::Pipe,
        validate_only: bool,
    ) -> Result<proto::Pipe, Status> {
        let request = proto::CreatePipeRequest {
            parent: PARENT.into(),
            pipe_id: id.into(),
            pipe: Some(pipe),
            validate_only,
            ..Default::default()
        };
        Ok(self
            .pipes
            .clone()
            .create_pipe(request)
            .await?
            .into_inner()
            .pipe
            .expect("a pipe"))
    }

    pub(crate) async fn get(&self, id: &str) -> Result<proto::Pipe, Status> {
        let request = proto::GetPipeRequest {
            name: name(id),
            view: 0,
        };
        Ok(self
            .pipes
            .clone()
            .get_pipe(request)
            .await?
            .into_inner()
            .pipe
            .expect("a pipe"))
    }

    pub(crate) async fn update(&self, pipe: proto::Pipe, paths: &[&str]) -> Result<proto::Pipe, Status> {
        let mask = prost_types::FieldMask {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        };
        let request = proto::UpdatePipeRequest {
            pipe: Some(pipe),
            update_mask: (!paths.is_empty()).then_some(mask),
            validate_only: false,
            ..Default::default()
        };
        Ok(self
            .pipes
            .clone()
            .update_pipe(request)
            .await?
            .into_inner()
            .pipe
            .expect("a pipe"))
    }

    pub(crate) async fn delete(&self, id: &str, etag: &str, allow_missing: bool) -> Result<(), Status> {
        let request = proto::DeletePipeRequest {
            name: name(id),
            etag: etag.into(),
            allow_missing,
            ..Default::default()
        };
        self.pipes.clone().delete_pipe(request).await.map(drop)
    }
}

pub(crate) fn name(id: &str) -> String {
    format!("{PARENT}/pipes/{id}")
}

pub(crate) fn clickhouse_user(username: &str, password: &str) -> Kind {
    Kind::ClickhouseUser(proto::ClickHouseUser {
        username: username.into(),
        password: password.into(),
    })
}

pub(crate) fn kinesis_of(pipe: &mut proto::Pipe) -> &mut proto::KinesisSource {
    match pipe.source.as_mut().and_then(|source| source.kind.as_mut()) {
        Some(proto::source::Kind::Kinesis(kinesis)) => kinesis,
        None => panic!("the pipe has no source"),
    }
}

pub(crate) fn destination_of(pipe: &mut proto::Pipe) -> &mut proto::Destination {
    pipe.destination.as_mut().expect("a destination")
}

pub(crate) fn status_of(pipe: &proto::Pipe) -> &proto::PipeStatus {
    pipe.status.as_ref().expect("a status")
}

/// The fields that an error names.
pub(crate) fn fields(status: &Status) -> Vec<String> {
    let violations = status
        .get_details_bad_request()
        .map(|bad| bad.field_violations)
        .unwrap_or_default();
    violations.into_iter().map(|violation| violation.field).collect()
}

/// Checks code, reason and the first field at fault, and that no secret is told.
#[track_caller]
pub(crate) fn assert_refused(status: &Status, code: Code, reason: &str, field: &str, remedy: &str) {
    let found = error::reason(status);
    assert_eq!((status.code(), found.as_deref()), (code, Some(reason)), "{status:?}");
    if !field.is_empty() {
        assert_eq!(fields(status).first().map(String::as_str), Some(field), "{status:?}");
    }
    assert!(
        status.message().contains(remedy),
        "{remedy:?} is not in {:?}",
        status.message()
    );
    let all = format!("{status:?} {:?}", status.get_error_details());
    assert!(!all.contains("canary"), "a secret is told: {all}");
}

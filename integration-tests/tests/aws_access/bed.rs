//! An emulator that checks who calls and what he may do, a cluster that has its STS there, and tables.

use std::{
    sync::{Arc, Mutex as StdMutex},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures::future::BoxFuture;
use millrace_integration_tests::{
    clickhouse::{ClickHouse, Request},
    cluster::{CLICKHOUSE, Cluster, Options, PARENT, Table, pipe_spec},
    kinesis::{
        Call, Emulator, Error, Handle, Iam, Interceptor, Options as KinesisOptions, Policy, Put, Role, StreamSpec, User,
    },
    process::eventually,
};
use millrace_proto::api::v1::{self as api, credential::Kind};
use tokio::sync::{Mutex, MutexGuard};

/// How long things may take on a machine that does other things as well.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);
pub(crate) const STREAM: &str = "orders";
pub(crate) const REGION: &str = "eu-west-1";
const ACCOUNT: &str = "111122223333";
/// Whose keys Millrace is given. He may assume roles.
pub(crate) const LOADER: &str = "arn:aws:iam::000000000000:user/loader";
const KEY: &str = "AKIAIOSFODNN7EXAMPLE";
/// In each record, and nowhere else.
pub(crate) const PAYLOAD: &str = "canary of a payload, canary of a payload";
pub(crate) const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
/// What polling takes.
pub(crate) const READ: [&str; 4] = [
    "kinesis:DescribeStreamSummary",
    "kinesis:ListShards",
    "kinesis:GetShardIterator",
    "kinesis:GetRecords",
];
/// Two cores are enough for one cluster at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

pub(crate) fn role_arn(name: &str) -> String {
    format!("arn:aws:iam::{ACCOUNT}:role/{name}")
}

pub(crate) fn stream_arn() -> String {
    format!("arn:aws:kinesis:{REGION}:{ACCOUNT}:stream/{STREAM}")
}

/// A role that reads the stream, or does less than that.
pub(crate) fn role(name: &str, trusts: &str, external_id: &str, actions: &[&str]) -> Role {
    Role {
        arn: role_arn(name),
        trusts: vec![trusts.to_owned()],
        external_id: Some(external_id.to_owned()),
        policy: Policy::allow(actions, &["*"]),
    }
}

/// Whose environment has keys, and whether pipes may use them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ambient {
    /// There are keys, and nobody said that they may be used.
    Silent,
    /// There are keys that may be used.
    Allowed,
}

/// Region and stream of each call, as they came.
#[derive(Default)]
pub(crate) struct Seen(StdMutex<Vec<(String, Option<String>)>>);

impl Interceptor for Seen {
    fn before<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, Result<(), Error>> {
        let authorization = call.headers.get("authorization").and_then(|value| value.to_str().ok());
        let scope = authorization.and_then(|text| text.split("Credential=").nth(1));
        let region = scope.and_then(|scope| scope.split('/').nth(2)).unwrap_or_default();
        let body: serde_json::Value = serde_json::from_slice(&call.body).unwrap_or_default();
        let arn = body.get("StreamARN").and_then(|arn| arn.as_str()).map(str::to_owned);
        self.0.lock().expect("no panic").push((region.to_owned(), arn));
        Box::pin(async { Ok(()) })
    }
}

pub(crate) struct Bed {
    pub(crate) cluster: Cluster,
    pub(crate) kinesis: Handle,
    pub(crate) seen: Arc<Seen>,
    clickhouse: &'static ClickHouse,
    database: String,
    _alone: MutexGuard<'static, ()>,
}

impl Bed {
    pub(crate) async fn start(ambient: Ambient) -> Result<Bed> {
        Self::start_with(ambient, None).await
    }

    /// The same with another log filter.
    pub(crate) async fn start_with(ambient: Ambient, log: Option<&str>) -> Result<Bed> {
        let alone = ONE_AT_A_TIME.lock().await;
        let clickhouse = ClickHouse::shared().await;
        let seen = Arc::new(Seen::default());
        let loader = User {
            arn: LOADER.to_owned(),
            access_key_id: KEY.to_owned(),
            secret_access_key: SECRET.to_owned(),
            policy: Policy::allow(&["sts:AssumeRole"], &["*"]),
        };
        let owner = User {
            arn: format!("arn:aws:iam::{ACCOUNT}:user/owner"),
            access_key_id: "AKIAOWNER".to_owned(),
            secret_access_key: SECRET.to_owned(),
            policy: Policy::allow(&["kinesis:*"], &["*"]),
        };
        let kinesis = Emulator::start(KinesisOptions {
            region: REGION.to_owned(),
            account: ACCOUNT.to_owned(),
            streams: vec![StreamSpec::new(STREAM, 2)],
            iam: Some(Iam {
                users: vec![loader, owner],
                roles: Vec::new(),
            }),
            interceptor: Some(Arc::clone(&seen) as Arc<dyn Interceptor>),
            ..KinesisOptions::default()
        })
        .await?;
        let mut options = Options {
            control_plane_args: vec!["--discovery-interval=1s".to_owned()],
            log: log.map(str::to_owned),
            env: vec![
                ("MILLRACE_STS_ENDPOINT", kinesis.endpoint_url()),
                ("AWS_ACCESS_KEY_ID", KEY.to_owned()),
                ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
                ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ],
            ..Options::default()
        };
        if ambient == Ambient::Allowed {
            options.env.push(("MILLRACE_ALLOW_AMBIENT_AWS", "true".to_owned()));
        }
        let cluster = Cluster::start(options, 1).await?;
        let bed = Bed {
            cluster,
            kinesis,
            seen,
            clickhouse,
            database: clickhouse.database().await?,
            _alone: alone,
        };
        let user = api::ClickHouseUser {
            username: clickhouse.user().to_owned(),
            password: clickhouse.password().to_owned(),
        };
        bed.cluster
            .create_credential(CLICKHOUSE, Kind::ClickhouseUser(user))
            .await?;
        for (id, key) in [("loader", KEY), ("owner", "AKIAOWNER")] {
            let keys = api::AwsKeys {
                access_key_id: key.to_owned(),
                secret_access_key: SECRET.to_owned(),
                session_token: String::new(),
            };
            bed.cluster.create_credential(id, Kind::AwsKeys(keys)).await?;
        }
        Ok(bed)
    }

    /// Stores a role that is assumed with another credential, or with the ambient identity; returns its external id.
    pub(crate) async fn role_credential(&self, id: &str, role: &str, source: Option<&str>) -> Result<String> {
        let role = api::AwsRole {
            role_arn: role_arn(role),
            source_credential: source.map(credential).unwrap_or_default(),
            ..Default::default()
        };
        self.cluster.create_credential(id, Kind::AwsRole(role)).await?;
        let request = api::GetCredentialRequest { name: credential(id) };
        let got = self.cluster.credentials()?.get_credential(request).await?.into_inner();
        match got.credential.and_then(|credential| credential.kind) {
            Some(Kind::AwsRole(role)) => Ok(role.external_id),
            other => anyhow::bail!("{other:?}"),
        }
    }

    /// A pipe with this credential, into a table of its own name.
    pub(crate) fn spec(&self, id: &str, aws: &str) -> api::Pipe {
        let table = Table {
            database: &self.database,
            table: id,
            columns: &[("id", "UInt64")],
            sorting_key: &["id"],
        };
        let mut pipe = pipe_spec(&self.kinesis.endpoint_url(), STREAM, self.clickhouse, table);
        if let Some(api::source::Kind::Kinesis(source)) = pipe.source.as_mut().and_then(|source| source.kind.as_mut()) {
            source.stream_name.clear();
            source.region.clear();
            source.stream_arn = stream_arn();
            source.credential = credential(aws);
        }
        pipe.settings = Some(api::Settings {
            max_insert_wait: Some(prost_types::Duration {
                seconds: 0,
                nanos: 200_000_000,
            }),
            ..Default::default()
        });
        pipe
    }

    /// The same, read by enhanced fan-out with a consumer of its own.
    pub(crate) fn fan_out_spec(&self, id: &str, aws: &str) -> api::Pipe {
        let mut pipe = self.spec(id, aws);
        if let Some(api::source::Kind::Kinesis(source)) = pipe.source.as_mut().and_then(|source| source.kind.as_mut()) {
            source.use_enhanced_fan_out = true;
        }
        pipe
    }

    /// How many sessions of a role there were.
    pub(crate) fn sessions(&self, role: &str) -> usize {
        let of_role = format!(":assumed-role/{role}/");
        let sessions = self.kinesis.sessions();
        sessions.iter().filter(|(arn, _)| arn.contains(&of_role)).count()
    }

    /// Waits until no session is so young that it would not be given up, and ends all of them.
    pub(crate) async fn end_sessions(&self, life: Duration) -> Result<()> {
        let old = eventually("all sessions to be older", LIMIT, || async {
            let youngest = self.kinesis.sessions().into_iter().map(|(_, age)| age).min();
            ensure!(youngest.is_none_or(|age| age > Duration::from_secs(11)), "{youngest:?}");
            Ok(())
        });
        old.await?;
        self.kinesis.clock().advance(life);
        Ok(())
    }

    pub(crate) async fn create(&self, id: &str, aws: &str) -> Result<api::Pipe, tonic::Status> {
        self.cluster.create_pipe(id, self.spec(id, aws)).await
    }

    pub(crate) fn put(&self, ids: std::ops::Range<u64>) -> Result<()> {
        let record = |id: u64| (id.to_string(), format!(r#"{{"id":{id},"payload":"{PAYLOAD}"}}"#));
        let records: Vec<_> = ids.map(record).collect();
        let puts = records.iter().map(|(key, data)| Put::new(key, data.as_bytes()));
        self.kinesis.put_records_direct(STREAM, puts)?;
        Ok(())
    }

    /// Waits until so many records are committed, and sees that each is in the table once.
    pub(crate) async fn holds(&self, id: &str, records: u64) -> Result<()> {
        let waited = self.cluster.wait_for_records(id, records, LIMIT).await;
        waited.with_context(|| self.cluster.logs())?;
        let query = format!(
            "SELECT count(), uniqExact(id), max(id) FROM {}.{id} FORMAT TSV",
            self.database
        );
        let text = self.clickhouse.send(Request::query(&query)).await?.into_text()?;
        let expected = format!("{records}\t{records}\t{}", records - 1);
        ensure!(text.trim() == expected, "{id}: {text:?}, not {expected:?}");
        Ok(())
    }

    /// Waits until a pipe says this.
    pub(crate) async fn says(&self, id: &str, reason: &str) -> Result<api::PipeStatus> {
        let what = format!("{id} says {reason:?}");
        let said = eventually(&what, LIMIT, || async {
            let status = self.cluster.pipe(id).await?.status.unwrap_or_default();
            ensure!(status.reason == reason, "{} {}", status.reason, status.message);
            Ok(status)
        });
        said.await.with_context(|| self.cluster.logs())
    }

    /// Sees that every call was made in the stream's region, and with its ARN.
    pub(crate) fn all_by_arn(&self) -> Result<usize> {
        let (seen, wanted) = (self.seen.0.lock().expect("no panic"), stream_arn());
        for (region, arn) in seen.iter() {
            ensure!(region == REGION, "a call in {region}");
            ensure!(arn.as_ref() == Some(&wanted), "a call with {arn:?}");
        }
        Ok(seen.len())
    }
}

/// Full name of a credential.
pub(crate) fn credential(id: &str) -> String {
    format!("{PARENT}/credentials/{id}")
}

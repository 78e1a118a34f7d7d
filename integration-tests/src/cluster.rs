//! A running Millrace: control planes and workers as processes of their own, as a team would run them, plus what a test
//! needs to talk to them and to kill them.
//!
//! With several control planes, which need a PostgreSQL, calls go to the first one that runs and is not paused, unless a
//! method names another by its index.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use millrace_common::grpc;
use millrace_proto::api::v1::{
    self as api, PipeState, access_service_client::AccessServiceClient, credential::Kind,
    credential_service_client::CredentialServiceClient, pipe_service_client::PipeServiceClient,
};
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::{
    clickhouse::ClickHouse,
    events,
    process::{Process, Scratch, Spawn, eventually, find_program, free_port},
};

/// How long a process may take until it serves. Generous: tests share two cores with a build.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a process may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(40);
/// How long a health check may take.
const HEALTH_LIMIT: Duration = Duration::from_secs(2);
/// The service that only the leader among the control planes offers.
pub const WORKER_SERVICE: &str = "millrace.worker.v1.WorkerService";
/// Name of the control plane's log, and of its fail points.
pub const CONTROL_PLANE: &str = "control-plane";
/// Parent of everything that tests create.
pub const PARENT: &str = "projects/default";
/// Id of the AWS credential that [`Cluster::create_credentials`] makes.
pub const AWS: &str = "aws";
/// Id of the ClickHouse credential that [`Cluster::create_credentials`] makes.
pub const CLICKHOUSE: &str = "clickhouse";

/// How to start a cluster.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Database of the control planes; a SQLite file if `None`.
    pub database: Option<String>,
    /// Number of control planes; one if 0. More than one need a PostgreSQL in `database`.
    pub control_planes: usize,
    /// More arguments of each control plane.
    pub control_plane_args: Vec<String>,
    /// More arguments of each worker.
    pub worker_args: Vec<String>,
    /// More of the workers' environment.
    pub worker_env: Vec<(&'static str, &'static str)>,
    /// More of the environment of all processes.
    pub env: Vec<(&'static str, String)>,
    /// Log filter of all processes; `info` if `None`.
    pub log: Option<String>,
    /// Whether [`Cluster::arm`] is going to be used.
    pub fail_points: bool,
    /// Where workers find the control plane, if not where it listens: a proxy in between.
    pub worker_control_plane: Option<String>,
}

impl Options {
    /// Workers that read as fast as a shard gives: the emulator, unless told otherwise, has no limit of 2 MiB/s.
    #[must_use]
    pub fn unpaced() -> Self {
        Self {
            worker_args: vec!["--shard-bytes-per-second=0".to_owned()],
            ..Self::default()
        }
    }
}

/// One control plane.
#[derive(Debug)]
struct ControlPlane {
    port: u16,
    process: Option<Process>,
    paused: bool,
}

/// Control planes and their workers.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    control_planes: Vec<ControlPlane>,
    workers: Vec<(String, Option<Process>)>,
    // After the processes: they are gone before their files are.
    scratch: Scratch,
}

impl Cluster {
    /// Starts the control planes, waits until they serve, and starts `workers` workers.
    ///
    /// # Errors
    /// If a program is not built, or does not serve in time (with the end of its log).
    pub async fn start(options: Options, workers: usize) -> anyhow::Result<Self> {
        let scratch = Scratch::new("cluster")?;
        let count = options.control_planes.max(1);
        if count > 1 && options.database.is_none() {
            bail!("several control planes need a PostgreSQL");
        }
        let mut cluster = Self {
            options,
            control_planes: Vec::new(),
            workers: Vec::new(),
            scratch,
        };
        for index in 0..count {
            cluster.control_planes.push(ControlPlane {
                port: free_port()?,
                process: None,
                paused: false,
            });
            cluster.start_control_plane_at(index).await?;
        }
        for index in 0..workers {
            cluster.workers.push((format!("worker-{index}"), None));
            cluster.start_worker(index)?;
        }
        Ok(cluster)
    }

    /// Starts the first control plane on its port and database, again if it was killed.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn start_control_plane(&mut self) -> anyhow::Result<()> {
        self.start_control_plane_at(0).await
    }

    /// Starts control plane `index` on its port and database, again if it was killed.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn start_control_plane_at(&mut self, index: usize) -> anyhow::Result<()> {
        let database = match &self.options.database {
            Some(url) => url.clone(),
            None => format!("sqlite://{}", self.scratch.path().join("millrace.db").display()),
        };
        let port = self.control_planes[index].port;
        let process = Spawn::new(program("millrace-control-plane")?)
            .args(["--listen", &format!("127.0.0.1:{port}"), "--database", &database])
            .arg("--encryption-key-file")
            .arg(self.scratch.path().join("encryption.key"))
            .arg("--generate-key")
            .args(&self.options.control_plane_args)
            .envs([self.fail_point_variable(CONTROL_PLANE)])
            .env("RUST_LOG", self.options.log.as_deref().unwrap_or("info"))
            .envs(self.options.env.iter().map(|(name, value)| (name, value)))
            .log(self.log_path(&control_plane_name(index)))
            .spawn()?;
        let ready = eventually("the control plane serves", START_LIMIT, || async {
            if !process.is_running() {
                bail!("it has ended");
            }
            match self.health(index, "").await? {
                ServingStatus::Serving => Ok(()),
                other => bail!("health is {other:?}"),
            }
        })
        .await;
        if let Err(error) = ready {
            bail!("{error}\n{}", process.log_tail(40));
        }
        let plane = &mut self.control_planes[index];
        (plane.process, plane.paused) = (Some(process), false);
        Ok(())
    }

    /// What the health service of control plane `index` says of a gRPC service; of the process, if the name is empty.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn health(&self, index: usize, service: &str) -> anyhow::Result<ServingStatus> {
        let mut health = HealthClient::new(self.channel_at(index)?);
        let mut request = tonic::Request::new(HealthCheckRequest {
            service: service.to_owned(),
        });
        request.set_timeout(HEALTH_LIMIT);
        Ok(health.check(request).await?.into_inner().status())
    }

    /// The control plane that takes worker sessions; `None` while there is none. Those that are paused are not asked.
    ///
    /// # Errors
    /// If there are two.
    pub async fn leader(&self) -> anyhow::Result<Option<usize>> {
        let mut leader = None;
        for (index, plane) in self.control_planes.iter().enumerate() {
            if plane.process.is_none() || plane.paused {
                continue;
            }
            let serves = self.health(index, WORKER_SERVICE).await;
            if matches!(serves, Ok(ServingStatus::Serving)) {
                if let Some(other) = leader {
                    bail!("control planes {other} and {index} both take worker sessions");
                }
                leader = Some(index);
            }
        }
        Ok(leader)
    }

    /// Waits until a control plane takes worker sessions, and returns its index.
    ///
    /// # Errors
    /// If none does in time.
    pub async fn wait_for_leader(&self, limit: Duration) -> anyhow::Result<usize> {
        Ok(eventually("a control plane leads", limit, || async {
            self.leader().await?.context("none of them")
        })
        .await?)
    }

    /// Starts worker `index`, again if it was killed: same id, new incarnation.
    ///
    /// # Errors
    /// If the program is not built or does not start.
    pub fn start_worker(&mut self, index: usize) -> anyhow::Result<()> {
        let id = self.workers[index].0.clone();
        let process = Spawn::new(program("millrace-worker")?)
            .args([
                "--control-plane",
                self.options.worker_control_plane.as_ref().unwrap_or(&self.urls()),
            ])
            .args(["--worker-id", &id])
            .args(&self.options.worker_args)
            .envs([self.fail_point_variable(&id)])
            .envs(self.options.worker_env.iter().copied())
            .env("RUST_LOG", self.options.log.as_deref().unwrap_or("info"))
            .envs(self.options.env.iter().map(|(name, value)| (name, value)))
            .log(self.log_path(&id))
            .spawn()?;
        self.workers[index].1 = Some(process);
        Ok(())
    }

    /// Arguments of the workers that are started from now on.
    pub fn worker_args_mut(&mut self) -> &mut Vec<String> {
        &mut self.options.worker_args
    }

    /// Adds a worker and starts it; returns its index.
    ///
    /// # Errors
    /// As [`Cluster::start_worker`].
    pub fn add_worker(&mut self) -> anyhow::Result<usize> {
        let index = self.workers.len();
        self.workers.push((format!("worker-{index}"), None));
        self.start_worker(index)?;
        Ok(index)
    }

    /// Kills the first control plane (SIGKILL).
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn kill_control_plane(&mut self) -> anyhow::Result<()> {
        self.kill_control_plane_at(0).await
    }

    /// Kills control plane `index` (SIGKILL).
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn kill_control_plane_at(&mut self, index: usize) -> anyhow::Result<()> {
        if let Some(process) = self.control_planes[index].process.take() {
            process.kill().await?;
        }
        Ok(())
    }

    /// Asks control plane `index` to end (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// If it does not end in time.
    pub async fn stop_control_plane_at(&mut self, index: usize) -> anyhow::Result<()> {
        if let Some(process) = self.control_planes[index].process.take() {
            let status = process.stop(STOP_LIMIT).await?;
            if !status.success() {
                bail!("control plane {index} ended with {status}\n{}", process.log_tail(40));
            }
        }
        Ok(())
    }

    /// Freezes control plane `index` (SIGSTOP): its connections stay open and it answers nothing.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub fn pause_control_plane_at(&mut self, index: usize) -> anyhow::Result<()> {
        let plane = &mut self.control_planes[index];
        plane.process.as_ref().context("it does not run")?.pause()?;
        plane.paused = true;
        Ok(())
    }

    /// Lets control plane `index` go on (SIGCONT).
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub fn resume_control_plane_at(&mut self, index: usize) -> anyhow::Result<()> {
        let plane = &mut self.control_planes[index];
        plane.process.as_ref().context("it does not run")?.resume()?;
        plane.paused = false;
        Ok(())
    }

    /// Kills worker `index` (SIGKILL).
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub async fn kill_worker(&mut self, index: usize) -> anyhow::Result<()> {
        if let Some(process) = self.workers[index].1.take() {
            process.kill().await?;
        }
        Ok(())
    }

    /// Asks worker `index` to leave (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// If it does not end in time.
    pub async fn stop_worker(&mut self, index: usize) -> anyhow::Result<()> {
        if let Some(process) = self.workers[index].1.take() {
            process.stop(STOP_LIMIT).await?;
        }
        Ok(())
    }

    /// The process of worker `index`, if it was started and not killed.
    #[must_use]
    pub fn worker(&self, index: usize) -> Option<&Process> {
        self.workers.get(index).and_then(|(_, process)| process.as_ref())
    }

    /// The process of the first control plane, if it was not killed.
    #[must_use]
    pub fn control_plane(&self) -> Option<&Process> {
        self.control_plane_at(0)
    }

    /// The process of control plane `index`, if it was not killed.
    #[must_use]
    pub fn control_plane_at(&self, index: usize) -> Option<&Process> {
        self.control_planes.get(index).and_then(|plane| plane.process.as_ref())
    }

    /// URL of the control plane that calls go to.
    #[must_use]
    pub fn url(&self) -> String {
        let answers = |plane: &ControlPlane| plane.process.is_some() && !plane.paused;
        self.url_at(self.control_planes.iter().position(answers).unwrap_or(0))
    }

    /// URL of control plane `index`.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn url_at(&self, index: usize) -> String {
        format!("http://127.0.0.1:{}", self.control_planes[index].port)
    }

    /// URLs of all control planes, comma-separated, as workers take them.
    #[must_use]
    pub fn urls(&self) -> String {
        let urls: Vec<String> = (0..self.control_planes.len()).map(|index| self.url_at(index)).collect();
        urls.join(",")
    }

    /// The end of every log, for the message of a failed test.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let control_planes = (0..self.control_planes.len()).map(control_plane_name);
        for name in control_planes.chain(self.workers.iter().map(|(id, _)| id.clone())) {
            text.push_str(&format!(
                "--- {name}\n{}\n",
                crate::process::tail(&self.log_path(&name), 40)
            ));
        }
        text
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(format!("{name}.log"))
    }

    /// All that a process has logged: [`CONTROL_PLANE`], or `worker-` and an index. Empty if there is no such log.
    #[must_use]
    pub fn log_of(&self, name: &str) -> String {
        std::fs::read(self.log_path(name))
            .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Arms fail points of a process, which may be running, instead of those armed before. An empty list disarms.
    ///
    /// # Errors
    /// If the cluster was not started for it, or the list cannot be written.
    pub fn arm(&self, name: &str, list: &str) -> anyhow::Result<()> {
        if !self.options.fail_points {
            bail!("the cluster was started without fail points");
        }
        let path = self.fail_point_path(name);
        let partial = path.with_extension("partial");
        std::fs::write(&partial, list)?;
        // In one step: the process never reads a part of it.
        Ok(std::fs::rename(partial, path)?)
    }

    fn fail_point_path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(format!("{name}.failpoints"))
    }

    /// What tells a process of its fail points; a variable that says nothing where they are not wanted.
    fn fail_point_variable(&self, name: &str) -> (&'static str, OsString) {
        if self.options.fail_points {
            ("MILLRACE_FAIL_POINTS_FILE", self.fail_point_path(name).into())
        } else {
            ("MILLRACE_FAIL_POINTS", OsString::new())
        }
    }

    /// The scratch directory: logs, database, key.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// All that control plane `index` has logged.
    ///
    /// # Errors
    /// If there is no log.
    pub fn control_plane_log(&self, index: usize) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.log_path(&control_plane_name(index)))?)
    }

    fn channel(&self) -> anyhow::Result<Channel> {
        Ok(grpc::channel(&self.url())?)
    }

    fn channel_at(&self, index: usize) -> anyhow::Result<Channel> {
        Ok(grpc::channel(&self.url_at(index))?)
    }

    /// Client of the pipe service of control plane `index`.
    ///
    /// # Errors
    /// Never: the URL is ours.
    pub fn pipes_at(&self, index: usize) -> anyhow::Result<PipeServiceClient<Channel>> {
        Ok(PipeServiceClient::new(self.channel_at(index)?))
    }

    /// Client of the credential service of control plane `index`.
    ///
    /// # Errors
    /// Never: the URL is ours.
    pub fn credentials_at(&self, index: usize) -> anyhow::Result<CredentialServiceClient<Channel>> {
        Ok(CredentialServiceClient::new(self.channel_at(index)?))
    }

    /// Client of the pipe service.
    ///
    /// # Errors
    /// Never: the URL is ours.
    pub fn pipes(&self) -> anyhow::Result<PipeServiceClient<Channel>> {
        Ok(PipeServiceClient::new(self.channel()?))
    }

    /// Client of the credential service.
    ///
    /// # Errors
    /// Never: the URL is ours.
    pub fn credentials(&self) -> anyhow::Result<CredentialServiceClient<Channel>> {
        Ok(CredentialServiceClient::new(self.channel()?))
    }

    /// Client of the access service.
    ///
    /// # Errors
    /// Never: the URL is ours.
    pub fn access(&self) -> anyhow::Result<AccessServiceClient<Channel>> {
        Ok(AccessServiceClient::new(self.channel()?))
    }

    /// Stores [`AWS`] keys, which emulators take whatever they are, and the [`CLICKHOUSE`] user of the engine.
    ///
    /// # Errors
    /// If the control plane refuses them.
    pub async fn create_credentials(&self, clickhouse: &ClickHouse) -> anyhow::Result<()> {
        let keys = api::AwsKeys {
            access_key_id: "AKIDEXAMPLE".to_owned(),
            secret_access_key: "not-a-real-secret".to_owned(),
            session_token: String::new(),
        };
        let user = api::ClickHouseUser {
            username: clickhouse.user().to_owned(),
            password: clickhouse.password().to_owned(),
        };
        self.create_credential(AWS, Kind::AwsKeys(keys)).await?;
        self.create_credential(CLICKHOUSE, Kind::ClickhouseUser(user)).await
    }

    /// Stores one credential.
    ///
    /// # Errors
    /// If the control plane refuses it.
    pub async fn create_credential(&self, id: &str, kind: Kind) -> anyhow::Result<()> {
        let request = api::CreateCredentialRequest {
            parent: PARENT.to_owned(),
            credential_id: id.to_owned(),
            credential: Some(api::Credential {
                kind: Some(kind),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.credentials()?.create_credential(request).await?;
        Ok(())
    }

    /// Creates a pipe.
    ///
    /// # Errors
    /// What the control plane says.
    pub async fn create_pipe(&self, id: &str, pipe: api::Pipe) -> Result<api::Pipe, tonic::Status> {
        let request = api::CreatePipeRequest {
            parent: PARENT.to_owned(),
            pipe_id: id.to_owned(),
            pipe: Some(pipe),
            validate_only: false,
            ..Default::default()
        };
        let mut client = self
            .pipes()
            .map_err(|error| tonic::Status::internal(error.to_string()))?;
        Ok(client.create_pipe(request).await?.into_inner().pipe.unwrap_or_default())
    }

    /// Returns a pipe with its shards.
    ///
    /// # Errors
    /// What the control plane says.
    pub async fn pipe(&self, id: &str) -> anyhow::Result<api::Pipe> {
        get_pipe(self.pipes()?, id).await
    }

    /// Returns a pipe with its shards, as control plane `index` knows it.
    ///
    /// # Errors
    /// What the control plane says.
    pub async fn pipe_at(&self, index: usize, id: &str) -> anyhow::Result<api::Pipe> {
        get_pipe(self.pipes_at(index)?, id).await
    }

    /// Changes some fields of a pipe.
    ///
    /// # Errors
    /// What the control plane says.
    pub async fn update_pipe(&self, id: &str, change: api::Pipe, fields: &[&str]) -> anyhow::Result<()> {
        let pipe = api::Pipe {
            name: format!("{PARENT}/pipes/{id}"),
            ..change
        };
        let request = api::UpdatePipeRequest {
            pipe: Some(pipe),
            update_mask: Some(prost_types::FieldMask {
                paths: fields.iter().map(|field| (*field).to_owned()).collect(),
            }),
            validate_only: false,
            ..Default::default()
        };
        self.pipes()?.update_pipe(request).await?;
        Ok(())
    }

    /// Sets what is wanted of a pipe.
    ///
    /// # Errors
    /// What the control plane says.
    pub async fn set_desired(&self, id: &str, desired: api::DesiredState) -> anyhow::Result<()> {
        let change = api::Pipe {
            desired_state: desired.into(),
            ..Default::default()
        };
        self.update_pipe(id, change, &["desired_state"]).await
    }

    /// Sets the number of workers that a pipe may use.
    ///
    /// # Errors
    /// What the control plane says.
    pub async fn set_replicas(&self, id: &str, replicas: u32) -> anyhow::Result<()> {
        let change = api::Pipe {
            scaling: Some(api::Scaling { replicas }),
            ..Default::default()
        };
        self.update_pipe(id, change, &["scaling.replicas"]).await
    }

    /// Deletes a pipe.
    ///
    /// # Errors
    /// What the control plane says.
    pub async fn delete_pipe(&self, id: &str) -> anyhow::Result<()> {
        let request = api::DeletePipeRequest {
            name: format!("{PARENT}/pipes/{id}"),
            ..Default::default()
        };
        self.pipes()?.delete_pipe(request).await?;
        Ok(())
    }

    /// Waits until a pipe is in a state.
    ///
    /// # Errors
    /// If it is not in time; the message has the state it is in.
    pub async fn wait_for_state(&self, id: &str, wanted: PipeState, limit: Duration) -> anyhow::Result<api::Pipe> {
        let what = format!("pipe {id} is {}", wanted.as_str_name());
        Ok(eventually(&what, limit, || async {
            let pipe = self.pipe(id).await?;
            let status = pipe.status.clone().unwrap_or_default();
            if status.state() == wanted {
                return Ok(pipe);
            }
            bail!(
                "it is {} {} {}",
                status.state().as_str_name(),
                status.reason,
                status.message
            )
        })
        .await?)
    }

    /// Waits until a pipe has committed this many records, rows and rejected ones.
    ///
    /// # Errors
    /// If it has not in time.
    pub async fn wait_for_records(&self, id: &str, records: u64, limit: Duration) -> anyhow::Result<api::PipeTotals> {
        let what = format!("pipe {id} has committed {records} records");
        Ok(eventually(&what, limit, || async {
            let status = self.pipe(id).await?.status.unwrap_or_default();
            let totals = status.totals.unwrap_or_default();
            if totals.rows + totals.rejected_records >= records {
                return Ok(totals);
            }
            bail!(
                "{totals:?}, {} {} {}",
                status.state().as_str_name(),
                status.reason,
                status.message
            )
        })
        .await?)
    }
}

async fn get_pipe(mut pipes: PipeServiceClient<Channel>, id: &str) -> anyhow::Result<api::Pipe> {
    let request = api::GetPipeRequest {
        name: format!("{PARENT}/pipes/{id}"),
        view: api::PipeView::Full.into(),
    };
    let answer = pipes.get_pipe(request).await?.into_inner();
    answer.pipe.context("the answer has no pipe")
}

/// Name of a control plane's log. The first has none of the others' numbers: most clusters have one.
fn control_plane_name(index: usize) -> String {
    match index {
        0 => "control-plane".to_owned(),
        _ => format!("control-plane-{index}"),
    }
}

/// How pipes read: by polling, or with `MILLRACE_TEST_READING=fan-out` by enhanced fan-out, so that one suite proves both.
///
/// # Panics
/// If it is something else.
#[must_use]
pub fn fan_out() -> bool {
    match std::env::var("MILLRACE_TEST_READING").as_deref() {
        Err(_) | Ok("" | "polling") => false,
        Ok("fan-out") => true,
        Ok(other) => panic!("MILLRACE_TEST_READING is {other:?}, and must be polling or fan-out"),
    }
}

/// A pipe from a stream of an emulator into a managed table with these columns.
#[must_use]
pub fn pipe_spec(kinesis_url: &str, stream: &str, clickhouse: &ClickHouse, destination: Table<'_>) -> api::Pipe {
    let columns = destination
        .columns
        .iter()
        .map(|(name, kind)| api::Column {
            name: (*name).to_owned(),
            r#type: (*kind).to_owned(),
        })
        .collect();
    api::Pipe {
        source: Some(api::Source {
            kind: Some(api::source::Kind::Kinesis(api::KinesisSource {
                stream_name: stream.to_owned(),
                region: "us-east-1".to_owned(),
                iterator_type: api::IteratorType::TrimHorizon.into(),
                credential: format!("{PARENT}/credentials/{AWS}"),
                endpoint: kinesis_url.to_owned(),
                use_enhanced_fan_out: fan_out(),
                ..Default::default()
            })),
        }),
        destination: Some(api::Destination {
            endpoint: clickhouse.http_url(),
            credential: format!("{PARENT}/credentials/{CLICKHOUSE}"),
            database: destination.database.to_owned(),
            table: destination.table.to_owned(),
            managed_table: true,
            table_definition: Some(api::TableDefinition {
                sorting_key: destination
                    .sorting_key
                    .iter()
                    .map(|column| (*column).to_owned())
                    .collect(),
                ..Default::default()
            }),
            columns,
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A table that [`pipe_spec`] asks for.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    /// Database, which must exist.
    pub database: &'a str,
    /// Table.
    pub table: &'a str,
    /// Name and ClickHouse type of each column.
    pub columns: &'a [(&'a str, &'a str)],
    /// Columns of ORDER BY.
    pub sorting_key: &'a [&'a str],
}

impl<'a> Table<'a> {
    /// A table for [`events`].
    #[must_use]
    pub fn of_events(database: &'a str, table: &'a str) -> Self {
        Self {
            database,
            table,
            columns: &events::COLUMNS,
            sorting_key: &["event_type", "id"],
        }
    }
}

/// A program of this repository: beside this very one (`target/debug`), or one up from it (`target/debug/deps`).
///
/// # Errors
/// If it is not built.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let exe = env::current_exe()?;
    exe.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find_map(find_program)
        .with_context(|| format!("{name} is not built: run `cargo build --workspace --bins` first"))
}

//! A Millrace of one process, a stream with orders, and a shell in which `millrace` is a command.

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use millrace_integration_tests::{
    clickhouse::ClickHouse,
    cluster,
    kinesis::{self, Emulator, Put},
    process::{Process, Scratch, Spawn, eventually, free_port},
};

/// Orders in the stream.
pub(crate) const ORDERS: u64 = 200;
const LIMIT: Duration = Duration::from_secs(60);

/// The operator's own.
pub(crate) const ADMIN_TOKEN: &str = "an-operators-own-token-0123456789abcdef";

pub(crate) struct Bed {
    pub(crate) clickhouse: ClickHouse,
    pub(crate) kinesis: kinesis::Handle,
    /// Where commands run.
    pub(crate) directory: Scratch,
    endpoint: String,
    guarded: bool,
    standalone: Process,
}

impl Bed {
    /// With the stream `orders` of two shards.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        Self::start_as(false, "info").await
    }

    /// The same, where callers need tokens; commands have the operator's own.
    pub(crate) async fn start_guarded() -> anyhow::Result<Self> {
        Self::start_as(true, "info").await
    }

    /// The same, and Millrace logs all that it can be made to.
    pub(crate) async fn start_talkative() -> anyhow::Result<Self> {
        Self::start_as(true, "trace").await
    }

    async fn start_as(guarded: bool, log: &str) -> anyhow::Result<Self> {
        let clickhouse = ClickHouse::start(Default::default()).await?;
        let kinesis = Emulator::start(Default::default()).await?;
        kinesis.create_stream("orders", 2)?;
        let orders: Vec<String> = (0..ORDERS).map(order).collect();
        let puts = orders.iter().map(|order| Put {
            partition_key: "customer-7",
            explicit_hash_key: None,
            data: order.as_bytes(),
        });
        kinesis.put_records_direct("orders", puts)?;
        let directory = Scratch::new("cli")?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        let own = guarded.then_some(("MILLRACE_ADMIN_TOKEN", ADMIN_TOKEN));
        let standalone = Spawn::new(cluster::program("millrace")?)
            .envs(own)
            .args(["standalone", "--listen", &listen])
            .env("RUST_LOG", log)
            .env("MILLRACE_DATA_DIR", directory.path().join("data"))
            .env("MILLRACE_STS_ENDPOINT", kinesis.endpoint_url())
            .log(directory.path().join("standalone.log"))
            .spawn()?;
        let bed = Self {
            clickhouse,
            kinesis,
            directory,
            endpoint: format!("http://{listen}"),
            guarded,
            standalone,
        };
        eventually("Millrace answers", LIMIT, || async {
            let output = bed.shell("millrace pipe list").await?;
            ensure!(output.status.success(), "{}", bed.log());
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        Ok(bed)
    }

    /// The environment of a command: where everything is, and the secrets.
    pub(crate) fn environment(&self) -> anyhow::Result<Vec<(&'static str, String)>> {
        let millrace = cluster::program("millrace")?;
        let directory = millrace.parent().context("a directory")?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut environment = vec![
            ("PATH", format!("{}:{path}", directory.display())),
            ("MILLRACE_ENDPOINT", self.endpoint.clone()),
            (
                "MILLRACE_CONFIG",
                self.directory.path().join("config/profiles.toml").display().to_string(),
            ),
            ("MILLRACE_KINESIS_ENDPOINT", self.kinesis.endpoint_url()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "canary-secret-key".to_owned()),
            ("CLICKHOUSE_PASSWORD", self.clickhouse.password().to_owned()),
        ];
        if self.guarded {
            environment.push(("MILLRACE_TOKEN", ADMIN_TOKEN.to_owned()));
        }
        Ok(environment)
    }

    /// Runs a line of shell.
    pub(crate) async fn shell(&self, line: &str) -> anyhow::Result<Output> {
        Ok(tokio::process::Command::new("sh")
            .args(["-c", line])
            .envs(self.environment()?)
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await?)
    }

    /// The same of a line that has to succeed; what it printed.
    pub(crate) async fn run(&self, line: &str) -> anyhow::Result<String> {
        let (code, out, error) = self.code(line).await?;
        ensure!(code == 0, "{line}\n{out}{error}\n{}", self.log());
        Ok(out)
    }

    /// Exit code, standard output and standard error.
    pub(crate) async fn code(&self, line: &str) -> anyhow::Result<(i32, String, String)> {
        let output = self.shell(line).await?;
        let code = output.status.code().with_context(|| format!("{line} was killed"))?;
        Ok((
            code,
            String::from_utf8(output.stdout)?,
            String::from_utf8(output.stderr)?,
        ))
    }

    /// Stores both credentials.
    pub(crate) async fn credentials(&self) -> anyhow::Result<()> {
        self.run("millrace credential create aws aws-keys").await?;
        let user = self.clickhouse.user();
        self.run(&format!(
            "millrace credential create clickhouse clickhouse-user --username {user}"
        ))
        .await?;
        Ok(())
    }

    /// Writes the file of a pipe of this id.
    pub(crate) async fn draft(&self, id: &str) -> anyhow::Result<()> {
        let server = self.clickhouse.http_url();
        self.run(&format!(
            "millrace pipe draft {id} --stream orders --credential aws --server {server} --clickhouse-credential clickhouse \
             > {id}.yaml"
        ))
        .await?;
        Ok(())
    }

    /// What Millrace logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("standalone.log")).unwrap_or_default()
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        self.endpoint.trim_start_matches("http://")
    }

    /// Ends Millrace in order.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.standalone.stop(LIMIT).await?;
        Ok(())
    }
}

fn order(number: u64) -> String {
    format!(
        r#"{{"order_id":{number},"customer":"customer-{}","amount":{}.25,"paid":{},"ordered_at":"2026-11-22 12:00:{:02}"}}"#,
        number % 7,
        number * 3,
        number.is_multiple_of(2),
        number % 60
    )
}

//! The demo: a real ClickHouse, a Kinesis emulator, a control plane and a worker on free ports; a stream and a pipe made
//! through the public API; events put by an ordinary AWS client; live progress; some queries; and a ledger.
//!
//! The last line of output is one JSON object. The exit code is 0 only if nothing was lost and nothing doubled.

use std::{
    io::Write as _,
    path::Path,
    process::{ExitCode, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Parser;
use millrace_integration_tests::{
    clickhouse::{ClickHouse, Options as ClickHouseOptions},
    cluster::{self, Cluster},
    events::{COLUMNS, Events},
    kinesis::{Emulator, Options as KinesisOptions},
    ledger,
    producer::{self, Producer},
};
use serde::Serialize;

/// Shows Millrace at work, and checks its promise.
#[derive(Debug, Parser)]
struct Options {
    /// Events to put.
    #[arg(long, default_value_t = 300_000)]
    records: u64,
    /// Shards of the stream.
    #[arg(long, default_value_t = 4)]
    shards: i32,
    /// Stay up afterwards.
    #[arg(long)]
    keep: bool,
    /// Seed of the events.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// The last line of output.
#[derive(Debug, Serialize)]
struct Summary {
    records: u64,
    rows: u64,
    rejected: u64,
    lost: u64,
    duplicated: u64,
    seconds: f64,
    mb_per_s: f64,
}

const DATABASE: &str = "demo";
const TABLE: &str = "events";
const ERRORS: &str = "events_millrace_error";
const STREAM: &str = "clickstream";
const PIPE: &str = "clickstream";
const KEYS: u64 = 5000;
const WRITERS: u64 = 4;
/// Rows that are not there this long after the last put are lost.
const LIMIT: Duration = Duration::from_secs(600);

const QUERIES: [(&str, &str); 4] = [
    (
        "events by type",
        "SELECT event_type, count() AS events, round(avg(amount), 2) AS average, uniq(user_id) AS users \
         FROM demo.events GROUP BY event_type ORDER BY events DESC FORMAT PrettyCompactMonoBlock",
    ),
    (
        "unicode, nested objects, arrays and maps",
        "SELECT geo.city AS city, count() AS events, sum(arraySum(items.quantity)) AS pieces, \
         any(properties['browser']) AS a_browser, any(title) AS a_title \
         FROM demo.events GROUP BY city ORDER BY events DESC LIMIT 5 FORMAT PrettyCompactMonoBlock",
    ),
    (
        "events by country",
        "SELECT country, count() AS events, min(event_time) AS first, max(event_time) AS last \
         FROM demo.events GROUP BY country ORDER BY events DESC LIMIT 3 FORMAT PrettyCompactMonoBlock",
    ),
    (
        "rejected records",
        "SELECT error_type, count() AS records, any(field_path) AS field, any(error_msg) AS message \
         FROM demo.events_millrace_error GROUP BY error_type ORDER BY records DESC FORMAT PrettyCompactMonoBlock",
    ),
];

#[tokio::main]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("\ndemo failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> anyhow::Result<bool> {
    say("Starting ClickHouse, a Kinesis emulator, the control plane and a worker on free ports …");
    let clickhouse = ClickHouse::start(ClickHouseOptions::default()).await?;
    clickhouse.query(&format!("CREATE DATABASE {DATABASE}")).await?;
    let kinesis = Emulator::start(KinesisOptions::default()).await?;
    let cluster = Cluster::start(cluster::Options::unpaced(), 1).await?;
    say(&format!("  ClickHouse     {}", clickhouse.http_url()));
    say(&format!("  Kinesis        {}", kinesis.endpoint_url()));
    say(&format!("  control plane  {}", cluster.url()));

    let client = producer::client(&kinesis.endpoint_url());
    client
        .create_stream()
        .stream_name(STREAM)
        .shard_count(options.shards)
        .send()
        .await
        .context("CreateStream")?;

    let cli = Cli {
        endpoint: cluster.url(),
    };
    let secrets = [
        ("AWS_SECRET_ACCESS_KEY", "demo-secret"),
        ("CLICKHOUSE_PASSWORD", clickhouse.password()),
    ];
    cli.run(
        &["credential", "create", "aws", "aws-keys", "--access-key-id", "AKIDDEMO"],
        &secrets,
    )?;
    cli.run(
        &[
            "credential",
            "create",
            "clickhouse",
            "clickhouse-user",
            "--username",
            clickhouse.user(),
        ],
        &secrets,
    )?;
    let manifest = cluster.path().join("pipe.yaml");
    std::fs::write(&manifest, pipe_yaml(&kinesis.endpoint_url(), &clickhouse.http_url()))?;
    cli.run(&["pipe", "create", "-f", &manifest.display().to_string()], &[])?;

    say(&format!(
        "\nPutting {} events of about 1 KB into {} shards …",
        options.records, options.shards
    ));
    let events = Arc::new(Events::new(options.seed, KEYS, true));
    let producer = Producer::new(client, STREAM, Arc::clone(&events));
    let began = Instant::now();
    let putting = {
        let (producer, records) = (producer.clone(), options.records);
        tokio::spawn(async move { producer.put(0..records, WRITERS).await })
    };
    let mut watch = cli.start(&["pipe", "watch", PIPE, "--until-records", &options.records.to_string()])?;
    putting.await??;
    let watched = tokio::time::timeout(LIMIT, watch.wait()).await;
    let seconds = began.elapsed().as_secs_f64();
    match watched {
        Ok(status) => ensure!(status?.success(), "`millrace pipe watch` failed\n{}", cluster.logs()),
        // The ledger will say what is missing.
        Err(_) => say(&format!(
            "not everything arrived within {} s\n{}",
            LIMIT.as_secs(),
            cluster.logs()
        )),
    }

    for (title, query) in QUERIES {
        say(&format!("\n{title}"));
        say(clickhouse.query(query).await?.trim_end());
    }
    cli.run(&["pipe", "get", PIPE], &[])?;

    let tables = ledger::Tables {
        database: DATABASE,
        table: TABLE,
        errors: ERRORS,
    };
    let verdict = ledger::check(&clickhouse, tables, &events, options.records).await?;
    if !verdict.is_clean() {
        say(&format!("\nthe ledger found: {}", serde_json::to_string(&verdict)?));
    }
    if options.keep {
        stay(&clickhouse, &cluster, &kinesis.endpoint_url()).await?;
    }
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    let megabytes = producer.bytes() as f64 / 1e6;
    let summary = Summary {
        records: options.records,
        rows: verdict.rows,
        rejected: verdict.rejected,
        lost: verdict.lost,
        duplicated: verdict.duplicated,
        seconds: rounded(seconds),
        mb_per_s: rounded(megabytes / seconds),
    };
    say(&serde_json::to_string(&summary)?);
    Ok(verdict.is_clean())
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

async fn stay(clickhouse: &ClickHouse, cluster: &Cluster, kinesis: &str) -> anyhow::Result<()> {
    let millrace = cluster::program("millrace")?;
    say(&format!(
        "\nStaying up. In another terminal:\n\
         \n  export MILLRACE_ENDPOINT={}\
         \n  {} pipe watch {PIPE}\
         \n  {} pipe get {PIPE} -o yaml\
         \n\
         \n  curl '{}/' --user '{}:{}' --data 'SELECT count() FROM {DATABASE}.{TABLE}'\
         \n\
         \n  AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x aws --endpoint-url {kinesis} --region us-east-1 kinesis put-record \\\
         \n    --stream-name {STREAM} --partition-key me --cli-binary-format raw-in-base64-out --data '{{\"id\":1000000000,\"title\":\"mine\"}}'\
         \n\
         \n  logs: {}\
         \n\nCtrl-C ends it and removes everything.",
        cluster.url(),
        millrace.display(),
        millrace.display(),
        clickhouse.http_url(),
        clickhouse.user(),
        clickhouse.password(),
        cluster.path().display(),
    ));
    Ok(tokio::signal::ctrl_c().await?)
}

fn pipe_yaml(kinesis: &str, clickhouse: &str) -> String {
    let columns: String = COLUMNS
        .iter()
        .map(|(name, kind)| format!("    - {{name: {name}, type: \"{kind}\"}}\n"))
        .collect();
    format!(
        "kind: Pipe\nname: {PIPE}\nsource:\n  kinesis:\n    stream_name: {STREAM}\n    region: us-east-1\n    \
         iterator_type: TRIM_HORIZON\n    credential: projects/default/credentials/aws\n    endpoint: {kinesis}\n\
         destination:\n  endpoint: {clickhouse}\n  credential: projects/default/credentials/clickhouse\n  \
         database: {DATABASE}\n  table: {TABLE}\n  managed_table: true\n  table_definition:\n    \
         sorting_key: [event_type, id]\n  columns:\n{columns}settings:\n  max_insert_wait: 1s\n"
    )
}

/// Runs `millrace`, and shows what is run.
struct Cli {
    endpoint: String,
}

impl Cli {
    fn run(&self, args: &[&str], env: &[(&str, &str)]) -> anyhow::Result<()> {
        let output = std::process::Command::new(self.announce(args)?)
            .args(args)
            .env("MILLRACE_ENDPOINT", &self.endpoint)
            .envs(env.iter().copied())
            .output()?;
        say(String::from_utf8_lossy(&output.stdout).trim_end());
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        Ok(())
    }

    fn start(&self, args: &[&str]) -> anyhow::Result<tokio::process::Child> {
        Ok(tokio::process::Command::new(self.announce(args)?)
            .args(args)
            .env("MILLRACE_ENDPOINT", &self.endpoint)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()?)
    }

    fn announce(&self, args: &[&str]) -> anyhow::Result<std::path::PathBuf> {
        let shown: Vec<_> = args
            .iter()
            .map(|arg| {
                Path::new(arg)
                    .file_name()
                    .filter(|_| arg.starts_with('/'))
                    .map_or(*arg, |n| n.to_str().unwrap_or(arg))
            })
            .collect();
        say(&format!("\n$ millrace {}", shown.join(" ")));
        cluster::program("millrace")
    }
}

fn say(text: &str) {
    // A reader that has gone is no reason to fail.
    let _ = writeln!(std::io::stdout(), "{text}");
}

//! Command line and environment of the control plane. Everything that is wrong is named at once.

mod auth;

use std::{
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use millrace_common::{aws, clock::Clock, crypto::Sealer, shutdown::DRAIN_DEADLINE, telemetry};
use secrecy::{ExposeSecret as _, SecretString};

use crate::{app, coordinator, destination, discovery, endpoint::Policy, leader, store};

pub use self::auth::{AuthMode, AuthOptions};

/// The key as 64 hexadecimal digits, where a file is not wanted. Not an option: command lines are there for all to see.
const KEY_VARIABLE: &str = "MILLRACE_ENCRYPTION_KEY";
/// Leases must outlast a few heartbeats, or a moment's delay moves shards.
const MIN_HEARTBEATS_PER_LEASE: u32 = 3;

/// The control plane of Millrace: stores pipes and credentials, discovers shards and assigns them to workers.
#[derive(Debug, Parser)]
#[command(name = "millrace-control-plane", version)]
pub struct Args {
    /// Address to listen on: API, workers, health and reflection.
    #[arg(long, env = "MILLRACE_LISTEN", default_value = "127.0.0.1:7400")]
    pub listen: String,
    /// URL under which workers reach this control plane, such as http://cp-1:7400. Control planes that share a PostgreSQL
    /// send workers to the leader by it. Default: the address that is listened on.
    #[arg(long, env = "MILLRACE_ADVERTISE")]
    pub advertise: Option<String>,
    /// How long the leader among several control planes keeps its place without renewing it, such as 5s: a leader that dies
    /// is followed by another after this long.
    #[arg(long, env = "MILLRACE_LEADER_TTL", default_value = "5s")]
    pub leader_ttl: String,
    /// Database: an SQLite file (sqlite://path/to/file.db) or PostgreSQL (postgres://user@host/db).
    #[arg(
        long,
        env = "MILLRACE_DATABASE",
        default_value = "sqlite://millrace.db",
        hide_env_values = true
    )]
    pub database: String,
    /// Connections to the database for reading, and as many for writing.
    #[arg(long, env = "MILLRACE_DATABASE_CONNECTIONS", default_value = "8")]
    pub database_connections: String,
    /// File with the key that seals credentials: 64 hexadecimal digits; on further lines, older keys that only open. Beside an SQLite
    /// file: its path with `.key`.
    #[arg(long, env = "MILLRACE_ENCRYPTION_KEY_FILE")]
    pub encryption_key_file: Option<PathBuf>,
    /// Make the key file if it is missing, readable by its owner only. Keep a copy: without it credentials are lost.
    #[arg(long, env = "MILLRACE_GENERATE_KEY")]
    pub generate_key: bool,
    /// How long a worker holds its shards after its last heartbeat, such as 8s.
    #[arg(long, env = "MILLRACE_LEASE_TTL", default_value = "8s")]
    pub lease_ttl: String,
    /// How often workers report, such as 1s.
    #[arg(long, env = "MILLRACE_HEARTBEAT_INTERVAL", default_value = "1s")]
    pub heartbeat_interval: String,
    /// How often streams are looked at for new shards, such as 30s.
    #[arg(long, env = "MILLRACE_DISCOVERY_INTERVAL", default_value = "30s")]
    pub discovery_interval: String,
    /// Hosts that pipes may name as endpoints, comma-separated; `.example.com` allows all below. Without: any host.
    #[arg(long, env = "MILLRACE_ENDPOINT_HOSTS", value_delimiter = ',')]
    pub endpoint_hosts: Vec<String>,
    /// Who may call.
    #[command(flatten)]
    pub auth: AuthOptions,
    /// File to write the address to once it is listened on.
    #[arg(long, env = "MILLRACE_PORT_FILE")]
    pub port_file: Option<PathBuf>,
    /// AWS.
    #[command(flatten)]
    pub aws: aws::Options,
    /// Logs.
    #[command(flatten)]
    pub telemetry: telemetry::Options,
}

impl Args {
    /// What the arguments mean, or everything that is wrong with them.
    ///
    /// # Errors
    /// One line for each wrong argument.
    pub fn options(&self) -> Result<app::Options, Vec<String>> {
        let mut errors = Vec::new();
        let mut keep = |result: Result<(), String>| errors.extend(result.err());
        let listen = parsed::<SocketAddr>("--listen", &self.listen, "an address such as 127.0.0.1:7400");
        let connections = parsed::<u32>(
            "--database-connections",
            &self.database_connections,
            "a number of 1 to 1000",
        )
        .and_then(|n| {
            if (1..=1_000).contains(&n) {
                Ok(n)
            } else {
                Err("--database-connections must be 1 to 1000".into())
            }
        });
        let second = Duration::from_secs(1);
        let ttl = span("--lease-ttl", &self.lease_ttl, second..=second * 600);
        let heartbeat = span(
            "--heartbeat-interval",
            &self.heartbeat_interval,
            second / 20..=second * 60,
        );
        let discovery = span(
            "--discovery-interval",
            &self.discovery_interval,
            second / 10..=second * 3_600,
        );
        let leader = span("--leader-ttl", &self.leader_ttl, second..=second * 60);
        if let Some(url) = &self.advertise
            && !url::Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        {
            keep(Err(format!(
                "--advertise must be an http:// or https:// URL, not {url:?}"
            )));
        }
        if let (Ok(ttl), Ok(heartbeat)) = (&ttl, &heartbeat)
            && *ttl < *heartbeat * MIN_HEARTBEATS_PER_LEASE
        {
            keep(Err(format!(
                "--lease-ttl must be at least {MIN_HEARTBEATS_PER_LEASE} times --heartbeat-interval"
            )));
        }
        let scheme = self.database.split(':').next().unwrap_or_default();
        if !matches!(scheme, "sqlite" | "postgres" | "postgresql") {
            keep(Err("--database must start with sqlite: or postgres://".to_owned()));
        }
        let sealer = self.sealer();
        keep(listen.as_ref().map(drop).map_err(Clone::clone));
        keep(connections.as_ref().map(drop).map_err(Clone::clone));
        keep(ttl.as_ref().map(drop).map_err(Clone::clone));
        keep(heartbeat.as_ref().map(drop).map_err(Clone::clone));
        keep(discovery.as_ref().map(drop).map_err(Clone::clone));
        keep(sealer.as_ref().map(drop).map_err(Clone::clone));
        keep(leader.as_ref().map(drop).map_err(Clone::clone));
        let auth = self.auth.auth(listen.as_ref().ok());
        let tls = self.auth.tls();
        keep(auth.as_ref().map(drop).map_err(Clone::clone));
        keep(tls.as_ref().map(drop).map_err(Clone::clone));
        let browsers = self.auth.browsers();
        keep(browsers.as_ref().map(drop).map_err(Clone::clone));
        let aws = self.aws.settings(&mut errors);
        let leader = leader.map(|ttl| leader::Options { ttl }).unwrap_or_default();
        match (listen, connections, ttl, heartbeat, discovery, sealer) {
            (Ok(listen), Ok(connections), Ok(ttl), Ok(heartbeat), Ok(discovery), Ok(sealer)) if errors.is_empty() => {
                Ok(app::Options {
                    listen,
                    advertise: self.advertise.clone(),
                    leader,
                    database: store::Options {
                        max_connections: connections,
                        ..store::Options::new(&self.database)
                    },
                    sealer: Arc::new(sealer),
                    coordinator: coordinator::Options {
                        lease_ttl: ttl,
                        heartbeat_interval: heartbeat,
                        ..coordinator::Options::default()
                    },
                    discovery: discovery::Options {
                        interval: discovery,
                        aws: aws.into(),
                        ..discovery::Options::default()
                    },
                    destination: destination::Options::default(),
                    endpoints: Policy::new(self.endpoint_hosts.iter().cloned()),
                    auth: auth.unwrap_or_default(),
                    browsers: browsers.unwrap_or_default(),
                    tls: tls.unwrap_or_default(),
                    clock: Clock::System,
                    drain: DRAIN_DEADLINE,
                })
            }
            _ => Err(errors),
        }
    }

    fn sealer(&self) -> Result<Sealer, String> {
        let from_environment = std::env::var(KEY_VARIABLE)
            .ok()
            .filter(|key| !key.is_empty())
            .map(SecretString::from);
        let file = self.encryption_key_file.clone().or_else(|| key_beside(&self.database));
        let (key, origin) = match (from_environment, file) {
            (Some(_), Some(_)) if self.encryption_key_file.is_some() => {
                return Err(format!("give --encryption-key-file or {KEY_VARIABLE}, not both"));
            }
            (Some(key), _) => (key, KEY_VARIABLE.to_owned()),
            (None, Some(path)) => (read_key(&path, self.generate_key)?, path.display().to_string()),
            (None, None) => {
                return Err(format!(
                    "--encryption-key-file is required: a file with 64 hexadecimal digits (or set {KEY_VARIABLE}); \
                     `openssl rand -hex 32` makes a key"
                ));
            }
        };
        Sealer::from_hex(&key).map_err(|error| format!("{origin}: {error}"))
    }
}

/// Where the key of an SQLite file is, if nothing is said: beside it.
fn key_beside(database: &str) -> Option<PathBuf> {
    let path = database
        .strip_prefix("sqlite:")?
        .trim_start_matches("//")
        .split('?')
        .next()?;
    let memory = path.is_empty() || path.contains(":memory:") || database.contains("mode=memory");
    (!memory).then(|| PathBuf::from(format!("{path}.key")))
}

/// Reads a key file; makes it first if it is missing and that is wanted.
///
/// # Errors
/// What is wrong, and what to do.
pub fn read_key(path: &Path, generate: bool) -> Result<SecretString, String> {
    let shown = path.display();
    match std::fs::read_to_string(path) {
        Ok(key) => Ok(SecretString::from(key)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && generate => {
            make_key(path).map_err(|error| format!("cannot make the key file {shown}: {error}"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(format!(
            "there is no key file {shown}: give the one that seals this database, or --generate-key for a new one"
        )),
        Err(error) => Err(format!("cannot read the key file {shown}: {error}")),
    }
}

fn make_key(path: &Path) -> std::io::Result<SecretString> {
    let key = Sealer::generate_hex().map_err(std::io::Error::other)?;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = match options.open(path) {
        Ok(file) => file,
        // Another process was faster: its key is the key.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return std::fs::read_to_string(path).map(SecretString::from);
        }
        Err(error) => return Err(error),
    };
    file.write_all(format!("{}\n", key.expose_secret()).as_bytes())?;
    file.sync_all()?;
    tracing::info!(path = %path.display(), "made a new encryption key: keep a copy of it");
    Ok(key)
}

fn parsed<T: std::str::FromStr>(option: &str, text: &str, expected: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("{option} must be {expected}, not {text:?}"))
}

/// `250ms`, `8s`, `2m` or `1h`.
fn span(option: &str, text: &str, range: std::ops::RangeInclusive<Duration>) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number = digits.parse::<u32>().ok();
    let span = match (&text[digits.len()..], number) {
        ("ms", Some(number)) => Some(Duration::from_millis(number.into())),
        ("s", Some(number)) => Some(Duration::from_secs(number.into())),
        ("m", Some(number)) => Some(Duration::from_secs(u64::from(number) * 60)),
        ("h", Some(number)) => Some(Duration::from_secs(u64::from(number) * 3_600)),
        _ => None,
    };
    match span {
        None => Err(format!("{option} must be a time such as 500ms, 8s or 2m, not {text:?}")),
        Some(span) if !range.contains(&span) => Err(format!(
            "{option} must be {:?} to {:?}, not {text}",
            range.start(),
            range.end()
        )),
        Some(span) => Ok(span),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(given: &[&str]) -> Args {
        Args::try_parse_from([&["millrace-control-plane"], given].concat()).unwrap()
    }

    #[test]
    fn everything_wrong_is_named_at_once() {
        let errors = args(&[
            "--listen",
            "nowhere",
            "--database",
            "mysql://x",
            "--database-connections",
            "0",
            "--lease-ttl",
            "soon",
            "--heartbeat-interval",
            "1h",
            "--discovery-interval=-1s",
            "--advertise",
            "cp-1:7400",
            "--leader-ttl",
            "1d",
        ])
        .options()
        .err()
        .unwrap();
        for option in [
            "--listen",
            "--database ",
            "--database-connections",
            "--lease-ttl",
            "--heartbeat-interval",
            "--discovery-interval",
            "--encryption-key-file",
            "--advertise",
            "--leader-ttl",
        ] {
            assert!(
                errors.iter().any(|error| error.contains(option)),
                "{option} is not in {errors:#?}"
            );
        }
    }

    #[test]
    fn a_lease_outlasts_heartbeats() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        let key = key.to_str().unwrap();
        let common = [
            "--generate-key",
            "--encryption-key-file",
            key,
            "--heartbeat-interval",
            "1s",
            "--lease-ttl",
        ];
        assert!(args(&[&common[..], &["3s"]].concat()).options().is_ok());
        assert!(args(&[&common[..], &["2s"]].concat()).options().is_err());
    }

    #[test]
    fn a_key_is_made_once_and_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        assert!(read_key(&path, false).unwrap_err().contains("--generate-key"));
        let made = read_key(&path, true).unwrap();
        assert!(Sealer::from_hex(&made).is_ok());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let read = read_key(&path, true).unwrap();
        assert_eq!(read.expose_secret().trim(), made.expose_secret().trim());
    }

    #[test]
    fn the_key_is_beside_the_database() {
        assert_eq!(key_beside("sqlite://millrace.db"), Some("millrace.db.key".into()));
        assert_eq!(
            key_beside("sqlite:///var/lib/millrace.db?mode=rwc"),
            Some("/var/lib/millrace.db.key".into())
        );
        assert_eq!(key_beside("sqlite::memory:"), None);
        assert_eq!(key_beside("postgres://db/millrace"), None);
    }
}

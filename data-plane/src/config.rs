//! Options of `millrace-worker`: command line and environment, checked as a whole.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{CommandFactory as _, Parser, error::ErrorKind};
use millrace_common::{aws, clock::Clock, config::EXIT_USAGE, grpc::AccessOptions, ids::WorkerId, telemetry};

use crate::{app, lane, source::kinesis::Limits};

/// Least memory that a worker can do its work with: one page of 10 MiB per read, and a batch.
const MIN_MEMORY_BYTES: u64 = 32 * 1024 * 1024;
/// Bounds of the durations that may be set.
const DURATION_RANGE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(3600));

/// Millrace worker: reads Kinesis, decodes JSON, inserts into ClickHouse. It stores nothing.
#[derive(Debug, Parser)]
#[command(name = "millrace-worker", version)]
pub struct Config {
    /// URL of the control plane. With several control planes: all of them, comma-separated.
    #[arg(
        long,
        env = "MILLRACE_CONTROL_PLANE",
        default_value = "http://127.0.0.1:7400",
        value_delimiter = ','
    )]
    pub control_plane: Vec<String>,
    /// Stable id of this worker, such as the name of its pod. Default: the host's name.
    #[arg(long, env = "MILLRACE_WORKER_ID")]
    pub worker_id: Option<String>,
    /// Bytes that may be held between Kinesis and ClickHouse.
    #[arg(long, env = "MILLRACE_MEMORY_BYTES", default_value_t = app::DEFAULT_MEMORY_BYTES)]
    pub memory_bytes: u64,
    /// Serve the gRPC health service here.
    #[arg(long, env = "MILLRACE_HEALTH_LISTEN")]
    pub health_listen: Option<String>,
    /// Milliseconds between attempts of a batch that waits for a person to mend something.
    #[arg(long, env = "MILLRACE_PROBE_INTERVAL_MS", default_value_t = 15_000)]
    pub probe_interval_ms: u64,
    /// Milliseconds after which a shard that is to be given back, and cannot be drained, is given back as it is.
    #[arg(long, env = "MILLRACE_RELEASE_PATIENCE_MS", default_value_t = 10_000)]
    pub release_patience_ms: u64,
    /// Payload bytes that are read from a shard each second, at most; 0: as many as it gives. Kinesis gives 2 MiB/s to all
    /// readers of a shard together.
    #[arg(long, env = "MILLRACE_SHARD_BYTES_PER_SECOND", default_value_t = 2 * 1024 * 1024)]
    pub shard_bytes_per_second: u64,
    /// Milliseconds for finishing after SIGTERM.
    #[arg(long, env = "MILLRACE_DRAIN_DEADLINE_MS", default_value_t = 25_000)]
    pub drain_deadline_ms: u64,
    /// What to prove oneself by.
    #[command(flatten)]
    pub access: AccessOptions,
    /// AWS.
    #[command(flatten)]
    pub aws: aws::Options,
    /// Logs.
    #[command(flatten)]
    pub telemetry: telemetry::Options,
}

impl Config {
    /// The options to run with, or everything that is wrong.
    pub fn options(&self) -> Result<app::Options, Vec<String>> {
        let mut errors = Vec::new();
        let mut control_planes: Vec<String> = Vec::new();
        for url in self.control_plane.iter().map(|url| url.trim()) {
            let parsed = url::Url::parse(url);
            if !parsed.is_ok_and(|url| ["http", "https"].contains(&url.scheme()) && url.has_host()) {
                errors.push(format!("--control-plane: {url:?} is not an http:// or https:// URL"));
            }
            if !control_planes.iter().any(|known| known == url) {
                control_planes.push(url.to_owned());
            }
        }
        let access = self
            .access
            .access()
            .map_err(|error| errors.push(error))
            .unwrap_or_default();
        let worker = self.worker().map_err(|error| errors.push(error)).ok();
        if self.memory_bytes < MIN_MEMORY_BYTES {
            errors.push(format!(
                "--memory-bytes: {} is too little: at least {MIN_MEMORY_BYTES}",
                self.memory_bytes
            ));
        }
        let health_listen = self.health_listen.as_deref().and_then(|listen| {
            let parsed = listen.parse::<SocketAddr>();
            parsed
                .map_err(|error| errors.push(format!("--health-listen: {listen:?}: {error}, such as 127.0.0.1:7401")))
                .ok()
        });
        let mut aws_errors = Vec::new();
        let mut duration = |name: &str, millis: u64| {
            let (duration, (least, most)) = (Duration::from_millis(millis), DURATION_RANGE);
            if duration < least || duration > most {
                errors.push(format!(
                    "--{name}: {millis} is not between {} and {}",
                    least.as_millis(),
                    most.as_millis()
                ));
            }
            duration
        };
        let aws = self.aws.settings(&mut aws_errors);
        let lane = lane::Settings {
            aws,
            probe_interval: duration("probe-interval-ms", self.probe_interval_ms),
            release_patience: duration("release-patience-ms", self.release_patience_ms),
            limits: Limits {
                bytes_per_second: Some(self.shard_bytes_per_second).filter(|bytes| *bytes > 0),
                ..Limits::default()
            },
        };
        let drain_deadline = duration("drain-deadline-ms", self.drain_deadline_ms);
        errors.extend(aws_errors);
        match worker {
            Some(worker) if errors.is_empty() => Ok(app::Options {
                clock: Clock::System,
                control_planes,
                access,
                worker,
                memory_bytes: self.memory_bytes,
                health_listen,
                lane,
                drain_deadline,
            }),
            _ => Err(errors),
        }
    }

    /// The options to run with; if they are wrong, says all that is and ends the process.
    pub fn options_or_exit(&self) -> app::Options {
        self.options().unwrap_or_else(|errors| {
            let told = Self::command().error(ErrorKind::ValueValidation, errors.join("\n"));
            // Nothing is left to do if the terminal is gone.
            let _ = told.print();
            std::process::exit(EXIT_USAGE)
        })
    }

    fn worker(&self) -> Result<WorkerId, String> {
        let id = match &self.worker_id {
            Some(id) => id.clone(),
            None => host_name().ok_or("--worker-id: the host has no name to take instead; set it")?,
        };
        id.parse()
            .map_err(|error| format!("--worker-id: {error}: use 1 to 128 visible ASCII characters"))
    }
}

fn host_name() -> Option<String> {
    let file = PathBuf::from("/proc/sys/kernel/hostname");
    let name = std::fs::read_to_string(file)
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arguments: &[&str]) -> Config {
        Config::try_parse_from(["millrace-worker"].iter().chain(arguments)).expect("arguments that parse")
    }

    #[test]
    fn defaults_and_settings() {
        let options = config(&["--worker-id", "w-1", "--health-listen", "127.0.0.1:0"])
            .options()
            .expect("good options");
        assert_eq!(options.worker.as_str(), "w-1");
        assert_eq!(options.memory_bytes, 256 * 1024 * 1024);
        assert_eq!(options.lane, lane::Settings::default());
        assert!(options.health_listen.is_some());
        assert_eq!(options.control_planes, ["http://127.0.0.1:7400"]);
        let several = ["--worker-id=w", "--control-plane=http://a:1, http://b:1,http://a:1"];
        let several = config(&several).options().expect("good options");
        assert_eq!(several.control_planes, ["http://a:1", "http://b:1"]);
    }

    #[test]
    fn all_errors_are_told_at_once() {
        let config = config(&[
            "--control-plane=localhost:7400",
            "--worker-id=",
            "--memory-bytes=1",
            "--health-listen=x",
            "--probe-interval-ms=0",
            "--drain-deadline-ms=999999999",
        ]);
        let errors = config.options().expect_err("bad options");
        let named = [
            "control-plane",
            "worker-id",
            "memory-bytes",
            "health-listen",
            "probe-interval-ms",
            "drain-deadline-ms",
        ];
        assert_eq!(errors.len(), named.len(), "{errors:?}");
        for name in named {
            assert!(
                errors.iter().any(|error| error.starts_with(&format!("--{name}: "))),
                "{name}: {errors:?}"
            );
        }
    }
}

//! Logs of a process: fields, not formatted text; levels by `RUST_LOG` or `--log-level`; to standard error, so that
//! standard output stays for results.

use clap::{Args, ValueEnum};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// How to log.
#[derive(Debug, Clone, Args)]
// Without a group of its own: the commands that take these options have options of that name too.
#[group(skip)]
pub struct Options {
    /// Filter such as `info` or `millrace_data_plane=debug,info`.
    #[arg(long, env = "RUST_LOG", default_value = "info", global = true)]
    pub log_level: String,
    /// Shape of a log line.
    #[arg(long, env = "MILLRACE_LOG_FORMAT", default_value = "text", value_enum, global = true)]
    pub log_format: Format,
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging. A second call does nothing, so tests may each call it.
///
/// # Errors
/// If the filter does not parse.
pub fn init(options: &Options) -> Result<(), tracing_subscriber::filter::ParseError> {
    // The AWS SDK and hyper log requests with headers below `info`; those are never wanted by a bare level.
    let filter = EnvFilter::try_new(&options.log_level)?;
    let registry = tracing_subscriber::registry().with(filter);
    let started = match options.log_format {
        Format::Text => registry
            .with(fmt::layer().with_writer(std::io::stderr).with_target(true))
            .try_init(),
        Format::Json => registry
            .with(fmt::layer().json().with_writer(std::io::stderr))
            .try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging had been started before");
    }
    Ok(())
}

//! The process: telemetry, configuration, run, drain.

use std::process::ExitCode;

use anyhow::Context as _;
use millrace_common::{config, shutdown, telemetry};
use millrace_control_plane::{app::App, config::Args};

#[tokio::main]
async fn main() -> ExitCode {
    let args: Args = config::parse();
    match run(&args).await {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the control plane ends");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let telemetry = telemetry::init(&args.telemetry).map_err(|error| format!("--log-level: {error}"));
    let options = match (telemetry, args.options()) {
        (Ok(()), Ok(options)) => options,
        (telemetry, options) => {
            return Ok(usage(
                telemetry.err().into_iter().chain(options.err().into_iter().flatten()),
            ));
        }
    };
    let shutdown = shutdown::on_signal().context("cannot listen for signals")?;
    let running = Box::pin(App::start(options, shutdown)).await?;
    if let Some(path) = &args.port_file {
        std::fs::write(path, format!("{}\n", running.addr))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    running.stopped().await?;
    Ok(ExitCode::SUCCESS)
}

#[allow(
    clippy::print_stderr,
    reason = "wrong usage is said to whoever typed it, whatever the log level"
)]
fn usage(errors: impl Iterator<Item = String>) -> ExitCode {
    for error in errors {
        eprintln!("error: {error}");
    }
    ExitCode::from(u8::try_from(config::EXIT_USAGE).unwrap_or(1))
}

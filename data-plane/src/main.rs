//! `millrace-worker`: the data plane as a process.

use std::time::Duration;

use anyhow::Context as _;
use millrace_common::{config, shutdown, telemetry};
use millrace_data_plane::{app, config::Config};

/// What still runs at the end, such as a build, is waited for this long: its result is of no use.
const LINGER: Duration = Duration::from_secs(2);

fn main() -> anyhow::Result<()> {
    let config: Config = config::parse();
    telemetry::init(&config.telemetry).context("--log-level")?;
    let options = config.options_or_exit();
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        let shutdown = shutdown::on_signal().context("cannot listen for signals")?;
        app::run(options, shutdown).await.context("the worker cannot run")
    });
    runtime.shutdown_timeout(LINGER);
    result
}

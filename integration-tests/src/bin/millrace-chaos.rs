//! Random faults under load: prints what it does on standard error, and one JSON line with the verdict on standard output.
//! Ends with 0 only if nothing was lost, doubled or disordered.

use std::{io::Write as _, process::ExitCode, time::Duration};

use clap::Parser;
use millrace_integration_tests::chaos::{self, Options};

/// Breaks Millrace at random for a while and counts every record.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// For how long faults come
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// What the faults follow from; a random one if it is not given
    #[arg(long)]
    seed: Option<u64>,
    /// Records put each second
    #[arg(long, default_value_t = 1_500)]
    rate: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let options = Options {
        records_per_second: arguments.rate,
        say,
        ..Options::new(Duration::from_secs(arguments.seconds), seed)
    };
    say(&format!("chaos for {} s with seed {seed}", arguments.seconds));
    let report = Box::pin(chaos::run(options)).await?;
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?)?;
    if report.is_clean() {
        return Ok(ExitCode::SUCCESS);
    }
    say(&report.trouble);
    Ok(ExitCode::FAILURE)
}

#[allow(clippy::print_stderr, reason = "standard output is for the verdict")]
fn say(text: &str) {
    eprintln!("{text}");
}

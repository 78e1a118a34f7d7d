//! `millrace`: the command line. Results go to standard output, everything else to standard error; the exit code says what
//! kind of trouble there was (see [`exit`]).

mod access;
mod apply;
mod args;
mod client;
mod credential;
mod discovery;
mod doctor;
mod draft;
mod events;
mod exit;
mod explain;
mod list;
mod manifest;
mod output;
mod pipe;
mod profile;
mod rejected;
mod reset;
mod revisions;
mod standalone;
mod token;
mod top;
mod wait;
mod watch;
mod wizard;

use std::process::ExitCode;

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    let cli = match profile::parse() {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(exit::report(&error)),
    };
    // Scripts take 1 for an answer of `diff`.
    let least = if matches!(cli.command, Command::Diff { .. }) {
        2
    } else {
        1
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let error = exit::Error::Local(format!("cannot start the runtime: {error}"));
            return ExitCode::from(exit::report(&error).max(least));
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(code) => code,
        Err(error) => ExitCode::from(exit::report(&error).max(least)),
    }
}

async fn run(cli: Cli) -> Result<ExitCode, exit::Error> {
    match cli.command {
        Command::Pipe(command) => pipe::run(&cli.connection, command).await,
        Command::Profile(command) => profile::run(&cli.connection, command),
        Command::Access(command) => access::run(&cli.connection, command).await,
        Command::Credential(command) => credential::run(&cli.connection, command).await,
        Command::Token(command) => token::run(&cli.connection, command).await,
        Command::Stream(command) => discovery::stream(&cli.connection, command).await,
        Command::Schema(command) => discovery::schema(&cli.connection, command).await,
        Command::Table(command) => discovery::table(&cli.connection, command).await,
        Command::Apply { file, dry_run } => apply::run(&cli.connection, &file, dry_run).await,
        Command::Diff { file } => {
            let differs = apply::diff(&cli.connection, &file).await?;
            return Ok(ExitCode::from(u8::from(differs)));
        }
        Command::Explain { path } => explain::run(path.as_deref()),
        Command::Doctor { pipe } => {
            let well = doctor::run(&cli.connection, pipe.as_deref()).await?;
            return Ok(ExitCode::from(u8::from(!well)));
        }
        Command::Top(options) => top::run(&cli.connection, &options).await,
        Command::Completion { shell } => args::complete(shell),
        Command::Rejected(command) => rejected::run(&cli.connection, command).await,
        Command::Standalone(options) => standalone::run(*options).await,
    }?;
    Ok(ExitCode::SUCCESS)
}

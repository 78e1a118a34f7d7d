//! `millrace`: the command line. Results go to standard output, everything else to standard error; the exit code says what
//! kind of trouble there was (see [`exit`]).

mod access;
mod args;
mod client;
mod credential;
mod discovery;
mod events;
mod exit;
mod list;
mod manifest;
mod output;
mod pipe;
mod reset;
mod standalone;
mod watch;

use clap::Parser as _;

use crate::args::{Cli, Command};

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(&exit::Error::Local(format!("cannot start the runtime: {error}"))),
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => exit::report(&error),
    }
}

async fn run(cli: Cli) -> Result<(), exit::Error> {
    match cli.command {
        Command::Pipe(command) => pipe::run(&cli.connection, command).await,
        Command::Access(command) => access::run(&cli.connection, command).await,
        Command::Credential(command) => credential::run(&cli.connection, command).await,
        Command::Stream(command) => discovery::stream(&cli.connection, command).await,
        Command::Schema(command) => discovery::schema(&cli.connection, command).await,
        Command::Table(command) => discovery::table(&cli.connection, command).await,
        Command::Standalone(options) => standalone::run(*options).await,
    }
}

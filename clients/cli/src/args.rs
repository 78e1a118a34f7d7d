//! The commands and their options.

pub(crate) mod discovery;
pub(crate) mod rejected;

use std::{path::PathBuf, time::Duration};

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use millrace_common::grpc::AccessOptions;

use crate::{
    exit::Error,
    output::{self, Format},
    standalone, top, wait,
};

/// Move Kinesis streams into ClickHouse: pipes, credentials, and a single-machine Millrace.
#[derive(Debug, Parser)]
#[command(name = "millrace", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where Millrace is, and how to print.
#[derive(Debug, Args)]
pub(crate) struct Connection {
    /// Control plane.
    #[arg(
        long,
        global = true,
        env = "MILLRACE_ENDPOINT",
        default_value = "http://127.0.0.1:7400",
        value_name = "URL"
    )]
    pub(crate) endpoint: String,
    /// Project that names without `projects/…` belong to.
    #[arg(
        long,
        global = true,
        env = "MILLRACE_PROJECT",
        default_value = "default",
        value_name = "ID"
    )]
    pub(crate) project: String,
    #[command(flatten)]
    pub(crate) access: AccessOptions,
    /// How to print results.
    #[arg(short, long, global = true, default_value = "table", value_enum)]
    pub(crate) output: Format,
    /// Profile that says what is not said otherwise. Without: the one of `millrace profile use`, if any.
    #[arg(long, global = true, env = "MILLRACE_PROFILE", value_name = "NAME")]
    pub(crate) profile: Option<String>,
}

impl Connection {
    /// `projects/{project}`.
    pub(crate) fn parent(&self) -> String {
        format!("projects/{}", self.project)
    }

    /// Full name of a resource that was given as an id or as a full name.
    pub(crate) fn name(&self, collection: &str, given: &str) -> String {
        if given.contains('/') {
            given.to_owned()
        } else {
            format!("projects/{}/{collection}/{given}", self.project)
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create, look at and steer pipes.
    #[command(subcommand)]
    Pipe(Pipe),
    /// Store, list and delete credentials.
    #[command(subcommand)]
    Credential(Credential),
    /// Make, list and revoke the tokens that callers prove themselves with.
    #[command(subcommand)]
    Token(Token),
    /// Keep what is said to which Millrace under a name.
    #[command(subcommand)]
    Profile(Profile),
    /// What a pipe needs in AWS, and whether it has it.
    #[command(subcommand)]
    Access(Access),
    /// List streams, and show records of them.
    #[command(subcommand)]
    Stream(discovery::Stream),
    /// Find the columns that fit records.
    #[command(subcommand)]
    Schema(discovery::Schema),
    /// List databases and tables, and describe a table.
    #[command(subcommand)]
    Table(discovery::Table),
    /// Create and change pipes, so that they are as a file says. What the file leaves out goes back to its default; whether a pipe
    /// runs stays as it is.
    Apply {
        /// YAML or JSON file with pipes (YAML: any number of documents); `-` reads standard input.
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Check everything, store nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Show what `apply` would change. The exit code is 0 if that is nothing, 1 if it is something, and higher if it would be refused.
    Diff {
        /// YAML or JSON file with pipes (YAML: any number of documents); `-` reads standard input.
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Say what the fields of a file are.
    Explain {
        /// A path, such as `pipe.source.kinesis` or `credential`. Without it: `pipe`.
        #[arg(value_name = "PATH")]
        path: Option<String>,
    },
    /// Say what is wrong with a pipe, and what to do: its state, its rights, its lag, whether records of its stream become rows. The
    /// exit code is 1 if something is wrong. Changes nothing.
    Doctor {
        /// Pipe id or full name. Without it: all pipes of the project.
        pipe: Option<String>,
    },
    /// Show all pipes of the project and how they get on, those that lag most first.
    Top(top::Options),
    /// Print a script that completes these commands in a shell.
    Completion {
        /// The shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Look at what a pipe could not map.
    #[command(subcommand)]
    Rejected(rejected::Rejected),
    /// Run both planes in this process, on SQLite: all of Millrace for a single machine.
    Standalone(Box<standalone::Options>),
}

/// Commands about profiles.
#[derive(Debug, Subcommand)]
pub(crate) enum Profile {
    /// List the profiles.
    List,
    /// Keep --endpoint, --project, --token-file and the files for TLS of this command, as they are given or by default.
    Save {
        /// Name of the profile.
        name: String,
    },
    /// Use a profile wherever no other is named.
    Use {
        /// Name of the profile.
        name: String,
    },
    /// Forget a profile.
    Delete {
        /// Name of the profile.
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Pipe {
    /// Create a pipe from a file, or, without one, from answers on the terminal. What cannot work is refused, with the field at fault
    /// and what to do.
    Create {
        /// YAML or JSON file with the pipe in the API's own field names; `-` reads standard input.
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Check everything, store nothing.
        #[arg(long)]
        dry_run: bool,
        /// Without a file: endpoint of Kinesis to use instead of the region's own.
        #[arg(
            long,
            env = "MILLRACE_KINESIS_ENDPOINT",
            default_value = "",
            hide_default_value = true,
            value_name = "URL"
        )]
        kinesis_endpoint: String,
    },
    /// Print the file of a pipe, with the columns that fit the records of its stream. Stores nothing.
    Draft(Box<discovery::Draft>),
    /// Change a pipe, running or not, to what a file says. It goes on where it is.
    Update {
        /// YAML or JSON file with the pipe's name and the fields to change; `-` reads standard input.
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Change only this field, such as `settings.compression`; one that is not in the file goes back to its default. May be
        /// given more than once. Without it: all fields that are in the file.
        #[arg(long, value_name = "PATH")]
        field: Vec<String>,
        /// Check everything, store nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Show the rows that a pipe would make of records of its stream, and what it would refuse. Inserts nothing.
    Preview(discovery::Preview),
    /// Show some rows of a pipe's table, as JSON lines. Which rows is ClickHouse's choice.
    Rows {
        /// Pipe id or full name.
        pipe: String,
        /// At most this many, up to 100.
        #[arg(long, default_value_t = 10, value_name = "COUNT")]
        limit: u32,
    },
    /// Show one pipe.
    Get {
        /// Pipe id or full name.
        pipe: String,
    },
    /// List the pipes of the project.
    List {
        /// Only those of which this holds, such as 'status.state = FAILED OR annotations.team = shop'.
        #[arg(long, default_value = "", hide_default_value = true, value_name = "FILTER")]
        filter: String,
    },
    /// Follow a pipe's progress: rows, MB/s, and the lag of each shard.
    Watch {
        /// Pipe id or full name.
        pipe: String,
        /// Seconds between two updates.
        #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
        interval: f64,
        /// End once this many records (rows and rejected ones) are committed.
        #[arg(long, value_name = "COUNT")]
        until_records: Option<u64>,
    },
    /// Show what happened to a pipe, newest first.
    Events {
        /// Pipe id or full name.
        pipe: String,
        /// At most this many.
        #[arg(long, default_value_t = 50, value_name = "COUNT")]
        limit: usize,
        /// Only those of which this holds, such as 'severity = ERROR' or 'kind = POSITION_RESET'.
        #[arg(long, default_value = "", hide_default_value = true, value_name = "FILTER")]
        filter: String,
    },
    /// List the specifications that a pipe has had, newest first.
    Revisions {
        /// Pipe id or full name.
        pipe: String,
        /// At most this many.
        #[arg(long, default_value_t = 50, value_name = "COUNT")]
        limit: usize,
    },
    /// Give a pipe the specification of an earlier revision again. It goes on where it is.
    Rollback {
        /// Pipe id or full name.
        pipe: String,
        /// The revision, of `pipe revisions`.
        #[arg(long, value_name = "REVISION")]
        to: i64,
        /// Check everything, store nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Wait until a pipe is where it is to be. The exit code is 6 if that takes too long.
    Wait {
        /// Pipe id or full name.
        pipe: String,
        /// What to wait for.
        #[arg(long = "for", value_enum, value_name = "GOAL")]
        goal: wait::Goal,
        /// With `--for caught-up`: how far behind counts as caught up, such as 10s.
        #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = duration)]
        lag: Duration,
        /// How long to wait at most, such as 5m.
        #[arg(long, default_value = "5m", value_name = "DURATION", value_parser = duration)]
        timeout: Duration,
    },
    /// Move positions: read again, or skip. Stop the pipe first, or give up its open batches.
    ResetPosition(Reset),
    /// Let a pipe move records.
    Start {
        /// Pipe id or full name.
        pipe: String,
    },
    /// Flush a pipe and hold its position.
    Stop {
        /// Pipe id or full name.
        pipe: String,
    },
    /// Stop a pipe and remove it with its position. Tables stay.
    Delete {
        /// Pipe id or full name.
        pipe: String,
        /// Succeed if there is no such pipe.
        #[arg(long)]
        allow_missing: bool,
    },
}

/// Where to move which positions.
#[derive(Debug, Args)]
pub(crate) struct Reset {
    /// Pipe id or full name.
    pub(crate) pipe: String,
    /// `trim-horizon`, `latest`, a time such as 2026-11-22T12:00:00Z, or the sequence number to go on after.
    #[arg(long, value_name = "PLACE", required_unless_present = "adopt_stream")]
    pub(crate) to: Option<String>,
    /// A shard to move; may be given more than once. Without it: all that Kinesis still has.
    #[arg(long, value_name = "ID")]
    pub(crate) shard: Vec<String>,
    /// Show what would happen, change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Give up open batches: their rows may be in the table or not, and may come again.
    #[arg(long)]
    pub(crate) abandon_open_batches: bool,
    /// Take the stream that was created anew under the name, from its oldest record.
    #[arg(long, conflicts_with_all = ["to", "shard"])]
    pub(crate) adopt_stream: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Credential {
    /// Store a credential. Secrets are read from a file, standard input or the environment, never from arguments.
    Create {
        /// Id of the new credential.
        credential: String,
        /// Free text for people.
        #[arg(long, default_value = "")]
        display_name: String,
        #[command(subcommand)]
        kind: CredentialKind,
    },
    /// List the credentials of the project. Secrets are never shown.
    List,
    /// Delete a credential that no pipe uses.
    Delete {
        /// Credential id or full name.
        credential: String,
        /// Succeed if there is no such credential.
        #[arg(long)]
        allow_missing: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token, and print it: it is not shown again.
    Create {
        /// Free text for people; the actor of what is done with the token.
        display_name: String,
        /// What may be called with it: viewer, operator, admin, or worker.
        #[arg(long, value_enum)]
        role: TokenRole,
        /// How long it is good, such as 12h or 90d. Without it: until it is revoked.
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        ttl: Option<Duration>,
    },
    /// List tokens, also those that have ended.
    List,
    /// End a token, within seconds on all control planes.
    Revoke {
        /// Id or full name of the token.
        token: String,
    },
}

/// What may be called with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TokenRole {
    /// Look at pipes and credentials; no records, no secrets.
    Viewer,
    /// Steer pipes with the credentials that there are, and see records.
    Operator,
    /// Everything: credentials and tokens, too.
    Admin,
    /// A worker's work, and nothing else.
    Worker,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Access {
    /// Make the calls that a pipe would make, and say for each action whether it is allowed. Changes nothing.
    Check(AccessSubject),
    /// Print the trust policy and the smallest permission policy, for AWS.
    Policies {
        #[command(flatten)]
        subject: AccessSubject,
        /// ARN of the KMS key that the stream is encrypted with, if it is one of your own.
        #[arg(long, default_value = "", value_name = "ARN")]
        kms_key_arn: String,
    },
}

/// A pipe that there is, or one that a file describes.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct AccessSubject {
    /// Pipe id or full name.
    pub(crate) pipe: Option<String>,
    /// YAML or JSON file with a pipe, of which the source is looked at; `-` reads standard input.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CredentialKind {
    /// An AWS access key pair.
    AwsKeys {
        /// Access key id.
        #[arg(long, env = "AWS_ACCESS_KEY_ID")]
        access_key_id: String,
        /// File with the secret access key; `-` reads standard input. Without it: `AWS_SECRET_ACCESS_KEY`.
        #[arg(long, value_name = "FILE")]
        secret_access_key_file: Option<PathBuf>,
        /// File with the session token of temporary keys. Without it: `AWS_SESSION_TOKEN`, if set.
        #[arg(long, value_name = "FILE")]
        session_token_file: Option<PathBuf>,
    },
    /// An AWS role to assume.
    AwsRole {
        /// ARN of the role.
        #[arg(long)]
        role_arn: String,
        /// AWS credential to assume the role with: keys, or again a role. Without it: the identity that Millrace runs under.
        #[arg(long, value_name = "CREDENTIAL")]
        source_credential: Option<String>,
    },
    /// The AWS identity that the Millrace processes run under.
    AwsAmbient,
    /// A ClickHouse user.
    ClickhouseUser {
        /// User name.
        #[arg(long, env = "CLICKHOUSE_USER")]
        username: String,
        /// File with the password; `-` reads standard input. Without it: `CLICKHOUSE_PASSWORD`.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
}

/// A span such as `10s`, `5m` or `1h30m`.
fn duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text
        .parse()
        .map_err(|_| "give a number with a unit, such as 10s, 5m or 1h30m".to_owned())?;
    Duration::try_from(span).map_err(|_| "must not be negative".to_owned())
}

/// Prints the completion script of a shell.
pub(crate) fn complete(shell: clap_complete::Shell) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "millrace", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_fit_together() {
        Cli::command().debug_assert();
    }
}

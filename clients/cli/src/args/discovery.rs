//! The commands that look before there is a pipe: streams, types, tables, previews.

use std::{path::PathBuf, str::FromStr};

use clap::{Args, Subcommand};
use jiff::Timestamp;

#[derive(Debug, Subcommand)]
pub(crate) enum Stream {
    /// List the streams that a credential can see.
    List {
        #[command(flatten)]
        aws: Aws,
        /// Count the open shards of each stream, too: one call more for each.
        #[arg(long)]
        shards: bool,
        /// At most this many.
        #[arg(long, default_value_t = 500, value_name = "COUNT")]
        limit: usize,
    },
    /// Show a few records of a stream, unpacked, with their virtual columns. No pipe notices.
    Sample(Subject),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Schema {
    /// Find the columns that fit the records of a stream, or of a file.
    Infer(Subject),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Table {
    /// List the databases that a ClickHouse user can see, or the tables of one of them.
    List {
        #[command(flatten)]
        server: Server,
        /// The database of which to list the tables. Without it: the databases.
        #[arg(long, value_name = "NAME")]
        database: Option<String>,
        /// At most this many.
        #[arg(long, default_value_t = 500, value_name = "COUNT")]
        limit: usize,
    },
    /// Show the columns of a table, and what of a stream or of a file could fill them.
    Describe {
        /// The table.
        table: String,
        #[command(flatten)]
        server: Server,
        /// Its database.
        #[arg(long, default_value = "default", value_name = "NAME")]
        database: String,
        #[command(flatten)]
        subject: Box<Subject>,
    },
}

/// Where streams are, and as whom to look at them.
#[derive(Debug, Clone, Args)]
pub(crate) struct Aws {
    /// AWS region.
    #[arg(
        long,
        env = "AWS_REGION",
        default_value = "",
        hide_default_value = true,
        value_name = "REGION"
    )]
    pub(crate) region: String,
    /// AWS credential, by id or full name.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "CREDENTIAL")]
    pub(crate) credential: String,
    /// Endpoint of Kinesis to use instead of the region's own.
    #[arg(
        long,
        env = "MILLRACE_KINESIS_ENDPOINT",
        default_value = "",
        hide_default_value = true,
        value_name = "URL"
    )]
    pub(crate) kinesis_endpoint: String,
}

/// Records: of a stream, of a pipe's stream, or of a file.
#[derive(Debug, Args)]
pub(crate) struct Subject {
    /// Name or ARN of a stream.
    #[arg(long, value_name = "STREAM", conflicts_with_all = ["pipe", "file"])]
    pub(crate) stream: Option<String>,
    #[command(flatten)]
    pub(crate) aws: Aws,
    /// The stream of this pipe, by id or full name, unpacked as the pipe does.
    #[arg(long, value_name = "PIPE", conflicts_with = "file")]
    pub(crate) pipe: Option<String>,
    /// File with records, one in each line; `-` reads standard input.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// What documents are wrapped in: cloudwatch_logs, eventbridge, sns or dynamodb_stream.
    #[arg(long, value_name = "ENVELOPE")]
    pub(crate) envelope: Option<String>,
    #[command(flatten)]
    pub(crate) sampling: Sampling,
}

/// Which records of a stream to look at.
#[derive(Debug, Clone, Args)]
pub(crate) struct Sampling {
    /// `latest`, `trim-horizon`, or a time such as 2026-11-22T12:00:00Z.
    #[arg(long, default_value = "latest", value_name = "PLACE")]
    pub(crate) from: String,
    /// Most Kinesis records.
    #[arg(long, default_value_t = 100, value_name = "COUNT")]
    pub(crate) max_records: u32,
    /// A shard to look at; may be given more than once. Without it: all.
    #[arg(long, value_name = "ID")]
    pub(crate) shard: Vec<String>,
}

/// A ClickHouse server, and as whom to look at it.
#[derive(Debug, Args)]
pub(crate) struct Server {
    /// HTTP interface of ClickHouse, such as https://ch.example.com:8443.
    #[arg(long, value_name = "URL")]
    pub(crate) server: String,
    /// ClickHouse credential, by id or full name.
    #[arg(long, value_name = "CREDENTIAL")]
    pub(crate) clickhouse_credential: String,
}

/// A pipe that there is, or one that a file describes, and what to decode for it.
#[derive(Debug, Args)]
pub(crate) struct Preview {
    /// Pipe id or full name.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub(crate) pipe: Option<String>,
    /// YAML or JSON file with a pipe; `-` reads standard input.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// File with records in place of the pipe's stream, one in each line.
    #[arg(long, value_name = "FILE")]
    pub(crate) records: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) sampling: Sampling,
}

/// A stream and a table, for the file of a pipe.
#[derive(Debug, Args)]
pub(crate) struct Draft {
    /// Id of the pipe.
    pub(crate) pipe: String,
    /// Name or ARN of the stream.
    #[arg(long, value_name = "STREAM")]
    pub(crate) stream: String,
    #[command(flatten)]
    pub(crate) aws: Aws,
    #[command(flatten)]
    pub(crate) server: Server,
    /// Database of the table.
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub(crate) database: String,
    /// The table: one that exists, or that is to be made. Without it: the id of the pipe.
    #[arg(long, value_name = "NAME")]
    pub(crate) table: Option<String>,
    /// Where the pipe is to begin: `trim-horizon`, `latest`, or a time such as 2026-11-22T12:00:00Z.
    #[arg(long, default_value = "trim-horizon", value_name = "PLACE")]
    pub(crate) start: Start,
    /// What documents are wrapped in: cloudwatch_logs, eventbridge, sns or dynamodb_stream.
    #[arg(long, value_name = "ENVELOPE")]
    pub(crate) envelope: Option<String>,
    #[command(flatten)]
    pub(crate) sampling: Sampling,
}

impl Draft {
    /// The records to take columns from.
    pub(crate) fn subject(&self) -> Subject {
        Subject {
            stream: Some(self.stream.clone()),
            aws: self.aws.clone(),
            pipe: None,
            file: None,
            envelope: self.envelope.clone(),
            sampling: self.sampling.clone(),
        }
    }
}

/// Where a pipe begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Start {
    /// At the oldest record.
    TrimHorizon,
    /// After the newest record.
    Latest,
    /// At this time, as it was given.
    At(String),
}

impl FromStr for Start {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().replace('_', "-").as_str() {
            "trim-horizon" => Ok(Self::TrimHorizon),
            "latest" => Ok(Self::Latest),
            _ => match text.parse::<Timestamp>() {
                Ok(_) => Ok(Self::At(text.to_owned())),
                Err(_) => Err("give trim-horizon, latest, or a time such as 2026-11-22T12:00:00Z".to_owned()),
            },
        }
    }
}

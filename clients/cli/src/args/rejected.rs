//! The commands about what a pipe could not map.

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum Rejected {
    /// List rejected records with what is wrong with them.
    List {
        /// Pipe id or full name.
        pipe: String,
        #[command(flatten)]
        filter: Filter,
        /// The earliest first. Without it: the latest.
        #[arg(long)]
        oldest_first: bool,
        /// At most this many.
        #[arg(long, default_value_t = 50, value_name = "COUNT")]
        limit: usize,
    },
    /// Count rejected records by class of error.
    Count {
        /// Pipe id or full name.
        pipe: String,
        #[command(flatten)]
        filter: Filter,
    },
    /// Delete rejected records from the error table, of those that are there now. There is no way back.
    Discard {
        /// Pipe id or full name.
        pipe: String,
        #[command(flatten)]
        filter: Filter,
        /// All of the pipe; without it, an option has to say which.
        #[arg(long, conflicts_with_all = ["error_type", "shard", "from", "to"], required_unless_present_any = ["error_type", "shard", "from", "to"])]
        all: bool,
        /// Count them, delete nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Which rejected records.
#[derive(Debug, Args)]
pub(crate) struct Filter {
    /// Only of this class of error, such as type_mismatch.
    #[arg(long, value_name = "CLASS")]
    pub(crate) error_type: Option<String>,
    /// Only of this shard.
    #[arg(long, value_name = "ID")]
    pub(crate) shard: Option<String>,
    /// Only those rejected at this time or later, such as 2026-11-22T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(crate) from: Option<String>,
    /// Only those rejected before this time.
    #[arg(long, value_name = "TIME")]
    pub(crate) to: Option<String>,
}

//! What the control plane knows of the ClickHouse side: whether a pipe can write there, into which columns, and what that
//! promises. It makes managed tables and error tables. It never inserts a row.
//!
//! ```text
//!   connect -> database -> table (made, if managed) -> columns -> mapping -> error table -> rights -> engine
//! ```
//!
//! Invariants:
//! - statements are built from typed parts with quoted names (`ddl`); no text of a user is spliced into one;
//! - user and password travel in headers, never in a URL, a statement or a log line;
//! - errors of ClickHouse are told apart by their number.

pub mod browse;
mod client;
mod constants;
mod ddl;
mod error;
mod guarantee;
mod mapping;
mod mend;
pub mod propose;
pub mod rejected;
mod schema;
mod service;

use std::{fmt, time::Duration};

use millrace_common::{
    clickhouse::error_table_column_names,
    pipe::{Destination, MappedColumn, PipeSpec},
    reason,
};
use secrecy::SecretString;

pub use client::Client;
use client::Server;
pub use error::Error;
pub use mend::Mended;
use schema::Table;
pub use service::{Options, Service};

use crate::store::Effective;

/// How long all of it may take. Nothing here reads data, so a server that needs longer is not well.
const DEADLINE: Duration = Duration::from_secs(25);

/// Where and as whom to call ClickHouse.
#[derive(Clone)]
pub struct Access {
    /// HTTP interface.
    pub endpoint: String,
    /// User.
    pub username: String,
    /// Password.
    pub password: SecretString,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("endpoint", &self.endpoint)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Whether tables that are missing may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Make what is missing.
    Create,
    /// Change nothing: a dry run.
    Check,
}

/// What a pipe will write, and what that promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Columns to fill, in the order of the block.
    pub columns: Vec<MappedColumn>,
    /// Time zone of the server: that of columns whose type names none.
    pub time_zone: String,
    /// The promise in effect.
    pub effective: Effective,
}

impl Client {
    /// What the pipe promises in effect, as its tables are now.
    ///
    /// # Errors
    /// If they cannot be looked at.
    pub async fn guarantee(&self, spec: &PipeSpec, access: &Access) -> Result<Effective, Error> {
        let server = self.server(access);
        let destination = &spec.destination;
        let looking = async {
            let table = schema::read_table(&server, &destination.database, &destination.table).await?;
            let table = table.ok_or_else(|| schema::table_not_found(destination))?;
            guarantee::effective(&server, spec, &table).await
        };
        within_deadline(access, looking).await
    }

    /// Puts the deduplication windows of a managed pipe's tables back, if somebody has made them smaller.
    ///
    /// # Errors
    /// If the tables cannot be looked at, or not be changed.
    pub async fn mend(&self, spec: &PipeSpec, access: &Access) -> Result<Vec<Mended>, Error> {
        let server = self.server(access);
        within_deadline(access, mend::mend(&server, spec)).await
    }

    /// Checks that the pipe can write to its destination, makes the tables that are its own to make, and resolves the
    /// columns.
    ///
    /// # Errors
    /// The first thing that stands in the way, with the fields at fault and what to do.
    pub async fn prepare(&self, spec: &PipeSpec, access: &Access, mode: Mode) -> Result<Prepared, Error> {
        let server = self.server(access);
        within_deadline(access, prepare(&server, spec, mode)).await
    }
}

async fn within_deadline<T>(access: &Access, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(result) => result,
        Err(_) => {
            let message = format!(
                "ClickHouse at {} did not answer within {} s",
                access.endpoint,
                DEADLINE.as_secs()
            );
            Err(Error::new(reason::DESTINATION_UNREACHABLE, message).field("pipe.destination.endpoint"))
        }
    }
}

async fn prepare(server: &Server, spec: &PipeSpec, mode: Mode) -> Result<Prepared, Error> {
    let destination = &spec.destination;
    let time_zone = schema::connect(server).await?;
    schema::check_database(server, &destination.database).await?;
    let table = table(server, destination, mode).await?;
    let columns = mapping::resolve(spec, &table.columns)?;
    constants::check(server, spec, &columns).await?;
    let error_table = error_table(server, destination, mode).await?;
    if table.exists {
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        schema::check_insert(server, destination, &destination.table, &names).await?;
    }
    if error_table {
        schema::check_insert(
            server,
            destination,
            &destination.error_table,
            &error_table_column_names(),
        )
        .await?;
    }
    let effective = guarantee::effective(server, spec, &table).await?;
    Ok(Prepared {
        columns,
        time_zone,
        effective,
    })
}

/// The table as it is, or as it will be in a dry run.
async fn table(server: &Server, destination: &Destination, mode: Mode) -> Result<Table, Error> {
    if let Some(table) = schema::read_table(server, &destination.database, &destination.table).await? {
        if destination.managed.is_some() {
            schema::check_managed(destination, &table)?;
        }
        return Ok(table);
    }
    let Some(definition) = &destination.managed else {
        return Err(schema::table_not_found(destination));
    };
    let statement = ddl::create_table(destination, definition)?;
    if mode == Mode::Check {
        return Ok(Table::planned(destination));
    }
    server.create(&statement).await.map_err(|error| {
        let name = ddl::qualified(&destination.database, &destination.table);
        schema::create_failed(&error, server, &name, "pipe.destination.table", &statement)
    })?;
    schema::read_table(server, &destination.database, &destination.table)
        .await?
        .ok_or_else(|| schema::table_not_found(destination))
}

/// Sees to the error table; false if it is missing and this is a dry run.
async fn error_table(server: &Server, destination: &Destination, mode: Mode) -> Result<bool, Error> {
    let found = schema::read_table(server, &destination.database, &destination.error_table).await?;
    let table = match found {
        Some(table) => table,
        None if mode == Mode::Check => return Ok(false),
        None => {
            let statement = ddl::create_error_table(destination);
            server.create(&statement).await.map_err(|error| {
                let name = ddl::qualified(&destination.database, &destination.error_table);
                schema::create_failed(&error, server, &name, "pipe.destination.error_table", &statement)
            })?;
            return Ok(true);
        }
    };
    schema::check_error_table(destination, &table)?;
    Ok(true)
}

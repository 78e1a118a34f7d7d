//! `millrace pipe watch`: live progress. On a terminal the picture is redrawn; elsewhere each update is a line.

use std::{io::IsTerminal as _, time::Duration};

use futures::StreamExt as _;
use millrace_proto::api::v1::{self as api, ShardState};

use crate::{
    args::Connection,
    client,
    exit::{Error, printable},
    manifest,
    output::{self, Format},
    pipe,
};

const RESPONSE: &str = "millrace.api.v1.WatchPipeResponse";
/// Shards that a redrawn picture shows; the rest is counted.
const MAX_SHARD_ROWS: usize = 20;
/// How long to wait before a broken stream is opened again.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// Follows a pipe until it is deleted, until `until_records` are committed, or for ever.
pub(crate) async fn run(
    connection: &Connection,
    pipe: &str,
    interval: f64,
    until_records: Option<u64>,
) -> Result<(), Error> {
    let interval = Duration::try_from_secs_f64(interval)
        .map_err(|_| Error::Local(format!("--interval {interval}: give a number of seconds, such as 0.5")))?;
    let request = api::WatchPipeRequest {
        name: connection.name("pipes", pipe),
        interval: Some(prost_types::Duration {
            seconds: i64::try_from(interval.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(interval.subsec_nanos()).unwrap_or(0),
        }),
    };
    let mut screen = Screen {
        live: std::io::stdout().is_terminal(),
        drawn_lines: 0,
    };
    let mut seen = false;
    loop {
        match follow(connection, &request, until_records, &mut screen, &mut seen).await {
            // A control plane that restarts is not the end of a watch that had begun.
            Err(Error::Unreachable { .. }) if seen => tokio::time::sleep(RECONNECT_DELAY).await,
            Ok(false) => tokio::time::sleep(RECONNECT_DELAY).await,
            Ok(true) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// True if the watch is over, false if the stream ended early.
async fn follow(
    connection: &Connection,
    request: &api::WatchPipeRequest,
    until_records: Option<u64>,
    screen: &mut Screen,
    seen: &mut bool,
) -> Result<bool, Error> {
    let failed = client::failed(connection);
    let mut stream = client::pipes(connection)?
        .watch_pipe(request.clone())
        .await
        .map_err(&failed)?
        .into_inner();
    while let Some(update) = stream.next().await {
        let update = update.map_err(&failed)?;
        *seen = true;
        match connection.output {
            Format::Table => screen.draw(&update)?,
            // One document per line, so that a program can read the stream.
            Format::Json => output::line(&manifest::to_json(&update, RESPONSE)?.to_string())?,
            Format::Yaml => {
                output::line("---")?;
                output::document(&manifest::to_json(&update, RESPONSE)?, Format::Yaml)?;
            }
        }
        let done = until_records.is_some_and(|wanted| {
            let totals = totals(&update);
            totals.rows + totals.rejected_records >= wanted
        });
        if update.deleted || done {
            return Ok(true);
        }
    }
    Ok(false)
}

fn totals(update: &api::WatchPipeResponse) -> api::PipeTotals {
    update
        .pipe
        .as_ref()
        .and_then(|pipe| pipe.status.as_ref())
        .and_then(|status| status.totals)
        .unwrap_or_default()
}

struct Screen {
    live: bool,
    drawn_lines: usize,
}

impl Screen {
    fn draw(&mut self, update: &api::WatchPipeResponse) -> Result<(), Error> {
        let status = update
            .pipe
            .as_ref()
            .and_then(|pipe| pipe.status.clone())
            .unwrap_or_default();
        if !self.live {
            return output::line(&summary(update, &status));
        }
        let mut text = summary(update, &status);
        if !status.message.is_empty() {
            text.push_str(&format!("\n{}", printable(&status.message)));
        }
        let open: Vec<_> = status
            .shards
            .iter()
            .filter(|s| s.state != ShardState::Finished as i32)
            .collect();
        let rows = open
            .iter()
            .take(MAX_SHARD_ROWS)
            .map(|shard| pipe::shard_row(shard))
            .collect();
        text.push_str(&format!("\n\n{}", output::render(&pipe::SHARD_HEADER, rows)));
        if open.len() > MAX_SHARD_ROWS {
            text.push_str(&format!("\n… and {} more", open.len() - MAX_SHARD_ROWS));
        }
        // Up over what was drawn last, and clear to the end of the screen.
        let up = if self.drawn_lines > 0 {
            format!("\x1b[{}A\x1b[J", self.drawn_lines)
        } else {
            String::new()
        };
        self.drawn_lines = text.lines().count();
        output::line(&format!("{up}{text}"))
    }
}

fn summary(update: &api::WatchPipeResponse, status: &api::PipeStatus) -> String {
    if update.deleted {
        return "deleted".to_owned();
    }
    let totals = status.totals.unwrap_or_default();
    let lag = status
        .shards
        .iter()
        .filter_map(|shard| shard.lag.as_ref())
        .max_by_key(|lag| (lag.seconds, lag.nanos))
        .map_or_else(|| "-".to_owned(), |lag| output::duration(Some(lag)));
    let mut text = format!(
        "{:<12} {:>14} rows  {:>8.1} MB/s  {:>10} rows/s  {:>8} rejected  lag {lag}",
        pipe::state(status),
        output::count(totals.rows),
        update.bytes_per_second / 1e6,
        output::count(rounded(update.rows_per_second)),
        output::count(totals.rejected_records),
    );
    if !status.reason.is_empty() {
        text.push_str(&format!("  {}", printable(&status.reason)));
    }
    text
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate for people, clamped to the range"
)]
fn rounded(rate: f64) -> u64 {
    rate.clamp(0.0, 1e15).round() as u64
}

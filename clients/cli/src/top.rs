//! `millrace top`: all pipes of the project and how they get on, the ones that lag most first. On a terminal the picture is redrawn;
//! elsewhere each update is a table of its own.

use std::{collections::HashMap, io::IsTerminal as _, time::Duration};

use millrace_proto::api::v1 as api;
use tokio::time::Instant;

use crate::{
    args::Connection,
    doctor,
    exit::Error,
    output::{self, Format},
    pipe,
};

const HEADER: [&str; 9] = [
    "PIPE", "STATE", "ROWS", "ROWS/S", "MB/S", "REJECTED", "LAG", "SHARDS", "REASON",
];
/// Options of `millrace top`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Seconds between two updates.
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    interval: f64,
    /// End after this many updates; rates come with the second one.
    #[arg(long, value_name = "COUNT")]
    count: Option<u64>,
}

/// What a pipe had done when it was looked at.
struct Seen {
    at: Instant,
    rows: u64,
    bytes: u64,
}

/// Shows pipes until it is interrupted, or `count` times.
pub(crate) async fn run(connection: &Connection, options: &Options) -> Result<(), Error> {
    let interval = Duration::try_from_secs_f64(options.interval)
        .ok()
        .filter(|interval| *interval >= Duration::from_millis(100))
        .ok_or_else(|| Error::Local(format!("--interval {}: give at least 0.1 seconds", options.interval)))?;
    if connection.output != Format::Table {
        return Err(Error::Local(
            "top is for people: programs take `pipe list -o json`".to_owned(),
        ));
    }
    let live = std::io::stdout().is_terminal();
    let mut seen = HashMap::new();
    let mut shown = 0;
    loop {
        let pipes = doctor::all(connection).await?;
        let table = output::render(&HEADER, rows(&pipes, &mut seen, Instant::now()));
        // On a terminal: to its upper left, clear what was there.
        output::line(&if live {
            format!("\x1b[H\x1b[2J{table}")
        } else {
            format!("{table}\n")
        })?;
        shown += 1;
        if options.count.is_some_and(|count| shown >= count) {
            return Ok(());
        }
        tokio::time::sleep(interval).await;
    }
}

/// A row for each pipe, and what is remembered for the next time.
fn rows(pipes: &[api::Pipe], seen: &mut HashMap<String, Seen>, now: Instant) -> Vec<Vec<String>> {
    let mut all = Vec::with_capacity(pipes.len());
    let mut next = HashMap::with_capacity(pipes.len());
    for one in pipes {
        let status = one.status.clone().unwrap_or_default();
        let totals = status.totals.unwrap_or_default();
        let lag = status
            .shards
            .iter()
            .filter_map(|shard| shard.lag)
            .max_by_key(|lag| (lag.seconds, lag.nanos));
        // Of a pipe that was made anew under its name nothing is known yet.
        let before = seen.get(&one.uid);
        let rate = |then: fn(&Seen) -> u64, count: u64| {
            let before = before?;
            let seconds = now.duration_since(before.at).as_secs_f64();
            #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
            let rate = count.saturating_sub(then(before)) as f64 / seconds;
            (seconds > 0.0).then_some(rate)
        };
        let open = status
            .shards
            .iter()
            .filter(|shard| shard.state != i32::from(api::ShardState::Finished))
            .count();
        let row = vec![
            output::short(&one.name),
            pipe::state(&status).to_string(),
            output::count(totals.rows),
            rate(|seen| seen.rows, totals.rows).map_or_else(String::new, |rate| format!("{rate:.0}")),
            rate(|seen| seen.bytes, totals.bytes).map_or_else(String::new, |rate| format!("{:.1}", rate / 1e6)),
            output::count(totals.rejected_records),
            output::duration(lag.as_ref()),
            open.to_string(),
            status.reason.clone(),
        ];
        all.push((lag.map_or((-1, 0), |lag| (lag.seconds, lag.nanos)), row));
        let now_seen = Seen {
            at: now,
            rows: totals.rows,
            bytes: totals.bytes,
        };
        next.insert(one.uid.clone(), now_seen);
    }
    *seen = next;
    all.sort_by(|(one, row), (other, other_row)| other.cmp(one).then_with(|| row[0].cmp(&other_row[0])));
    all.into_iter().map(|(_, row)| row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe(id: &str, rows: u64, lag: Option<i64>) -> api::Pipe {
        let shard = api::ShardStatus {
            lag: lag.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
            ..Default::default()
        };
        api::Pipe {
            name: format!("projects/default/pipes/{id}"),
            uid: id.to_owned(),
            status: Some(api::PipeStatus {
                state: api::PipeState::Running.into(),
                totals: Some(api::PipeTotals {
                    rows,
                    bytes: rows * 1_000_000,
                    ..Default::default()
                }),
                shards: vec![shard],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let (mut seen, start) = (HashMap::new(), Instant::now());
        let first = rows(
            &[pipe("a", 10, Some(1)), pipe("b", 0, Some(60)), pipe("c", 0, None)],
            &mut seen,
            start,
        );
        let names: Vec<_> = first.iter().map(|row| row[0].as_str()).collect();
        assert_eq!(names, ["b", "a", "c"], "who lags most comes first");
        assert_eq!(first[1][3..5], ["", ""], "nothing to compare with");
        let later = start + Duration::from_secs(2);
        let second = rows(&[pipe("a", 30, Some(1)), pipe("d", 5, None)], &mut seen, later);
        assert_eq!(second[0][..5], ["a", "RUNNING", "30", "10", "10.0"]);
        assert_eq!(second[1][3], "", "a pipe that is new has no rate");
        // Positions that were moved back do not count backwards.
        let third = rows(&[pipe("a", 0, None)], &mut seen, later + Duration::from_secs(2));
        assert_eq!(third[0][3], "0");
    }
}

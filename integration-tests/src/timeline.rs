//! What the processes of a cluster have logged, put together: which shard was asked for, given back, taken up and read, and
//! when. The processes must log as JSON (`--log-format=json`), and workers the commits of their lanes
//! ([`WORKER_LOG`]).

use std::{collections::BTreeMap, fmt, fs, path::Path, time::Duration};

use anyhow::Context as _;
use jiff::Timestamp;
use serde::Deserialize;

use crate::cluster;

/// A log filter under which workers tell all that is read here.
pub const WORKER_LOG: &str = "info,millrace_data_plane::lane=debug";

/// A line of a log.
#[derive(Debug, Clone)]
pub struct Line {
    /// The process: `control-plane`, `worker-0`, …
    pub process: String,
    /// When.
    pub at: Timestamp,
    /// What.
    pub message: String,
    /// The rest.
    pub fields: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct Raw {
    timestamp: Timestamp,
    fields: BTreeMap<String, serde_json::Value>,
}

impl Line {
    /// A field as text; empty if it is not there.
    #[must_use]
    pub fn text(&self, field: &str) -> &str {
        self.fields
            .get(field)
            .and_then(|value| value.as_str())
            .unwrap_or_default()
    }

    fn number(&self, field: &str) -> Option<u64> {
        self.fields.get(field)?.as_u64()
    }

    fn is_of_worker(&self) -> bool {
        self.process.starts_with("worker")
    }
}

/// Options of a cluster whose logs can be read here.
#[must_use]
pub fn options() -> cluster::Options {
    cluster::Options {
        control_plane_args: vec!["--log-format=json".to_owned()],
        worker_args: vec!["--log-format=json".to_owned(), "--shard-bytes-per-second=0".to_owned()],
        log: Some(WORKER_LOG.to_owned()),
        ..cluster::Options::default()
    }
}

/// All lines of all logs in a directory, by time.
///
/// # Errors
/// If a log cannot be read.
pub fn read(directory: &Path) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(directory).context("the directory of the logs")? {
        let path = entry?.path();
        let Some(process) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".log")) else {
            continue;
        };
        for text in fs::read_to_string(&path)?.lines() {
            // Panics and the last line of a killed process are not JSON.
            let Ok(Raw { timestamp, mut fields }) = serde_json::from_str::<Raw>(text) else {
                continue;
            };
            let message = fields.remove("message");
            lines.push(Line {
                process: process.to_owned(),
                at: timestamp,
                message: message.and_then(|m| m.as_str().map(str::to_owned)).unwrap_or_default(),
                fields,
            });
        }
    }
    lines.sort_by_key(|line| line.at);
    Ok(lines)
}

/// How a shard came to a worker, under one lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The shard.
    pub shard: String,
    /// Epoch of the lease.
    pub epoch: u64,
    /// The worker.
    pub to: String,
    /// When the holder before was asked for it, or began to give it back by itself; `None` if it was taken, or new.
    pub asked: Option<Timestamp>,
    /// When the holder before had nothing of it left.
    pub released: Option<Timestamp>,
    /// When the worker took it up.
    pub held: Timestamp,
    /// When Kinesis first answered.
    pub read: Option<Timestamp>,
    /// When something of it was first committed.
    pub committed: Option<Timestamp>,
}

impl Move {
    /// For how long nobody read the shard, if it was a planned move.
    #[must_use]
    pub fn pause(&self) -> Option<Duration> {
        Some(since(self.asked?, self.read?))
    }
}

/// Time from one moment to a later one.
#[must_use]
pub fn since(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// All leases that workers took up, by when they did.
#[must_use]
pub fn moves(lines: &[Line]) -> Vec<Move> {
    let mut moves: Vec<Move> = Vec::new();
    // Per shard, when it was asked for and when it was given back since it was taken up last.
    let mut asked: BTreeMap<&str, Timestamp> = BTreeMap::new();
    let mut released: BTreeMap<&str, Timestamp> = BTreeMap::new();
    for line in lines {
        let shard = line.text("shard");
        match line.message.as_str() {
            "asking for release" | "releasing" => drop(asked.entry(shard).or_insert(line.at)),
            "released" if line.is_of_worker() => drop(released.insert(shard, line.at)),
            "holding" => moves.push(Move {
                shard: shard.to_owned(),
                epoch: line.number("epoch").unwrap_or_default(),
                to: line.process.clone(),
                asked: asked.remove(shard),
                released: released.remove(shard),
                held: line.at,
                read: None,
                committed: None,
            }),
            "reading" => {
                if let Some(found) = latest(&mut moves, &line.process, shard) {
                    found.read.get_or_insert(line.at);
                }
            }
            "committed" => {
                for shard in line.text("shards").split_whitespace() {
                    if let Some(found) = latest(&mut moves, &line.process, shard) {
                        found.committed.get_or_insert(line.at);
                    }
                }
            }
            _ => {}
        }
    }
    moves
}

fn latest<'a>(moves: &'a mut [Move], process: &str, shard: &str) -> Option<&'a mut Move> {
    moves
        .iter_mut()
        .rev()
        .find(|found| found.to == process && found.shard == shard)
}

/// Batches that were replayed.
#[must_use]
pub fn replays(lines: &[Line]) -> Vec<&Line> {
    lines.iter().filter(|line| line.message == "replaying").collect()
}

/// Least, middle and greatest of some durations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spread {
    /// How many.
    pub count: usize,
    /// The least.
    pub min: Duration,
    /// The middle one.
    pub median: Duration,
    /// The greatest.
    pub max: Duration,
}

impl FromIterator<Duration> for Spread {
    fn from_iter<I: IntoIterator<Item = Duration>>(durations: I) -> Self {
        let mut sorted: Vec<Duration> = durations.into_iter().collect();
        sorted.sort_unstable();
        Self {
            count: sorted.len(),
            min: sorted.first().copied().unwrap_or_default(),
            median: sorted.get(sorted.len() / 2).copied().unwrap_or_default(),
            max: sorted.last().copied().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = |duration: Duration| duration.as_millis();
        write!(
            f,
            "{} times, {}/{}/{} ms (min/median/max)",
            self.count,
            millis(self.min),
            millis(self.median),
            millis(self.max)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(process: &str, millis: i64, message: &str, fields: &[(&str, serde_json::Value)]) -> Line {
        Line {
            process: process.to_owned(),
            at: Timestamp::from_millisecond(millis).expect("a time"),
            message: message.to_owned(),
            fields: fields
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
        }
    }

    #[test]
    fn a_planned_move_is_told_from_a_takeover() {
        let lines = [
            line("worker-0", 0, "holding", &[("shard", "a".into()), ("epoch", 1.into())]),
            line("worker-0", 10, "reading", &[("shard", "a".into())]),
            line("control-plane", 100, "asking for release", &[("shard", "a".into())]),
            line("worker-0", 110, "releasing", &[("shard", "a".into())]),
            line("worker-0", 200, "released", &[("shard", "a".into())]),
            line(
                "worker-1",
                250,
                "holding",
                &[("shard", "a".into()), ("epoch", 2.into())],
            ),
            line("worker-1", 300, "reading", &[("shard", "a".into())]),
            line("worker-1", 400, "committed", &[("shards", "b a".into())]),
            line(
                "worker-2",
                9_000,
                "holding",
                &[("shard", "a".into()), ("epoch", 3.into())],
            ),
        ];
        let moves = moves(&lines);
        assert_eq!(
            moves.iter().map(|m| (m.epoch, m.to.as_str())).collect::<Vec<_>>(),
            [(1, "worker-0"), (2, "worker-1"), (3, "worker-2")]
        );
        assert_eq!(moves[1].pause(), Some(Duration::from_millis(200)));
        assert_eq!(moves[1].committed.map(Timestamp::as_millisecond), Some(400));
        assert_eq!((moves[0].pause(), moves[2].pause(), moves[2].read), (None, None, None));
    }

    #[test]
    fn spread_of_nothing_and_of_some() {
        assert_eq!(Spread::from_iter([]), Spread::default());
        let spread: Spread = [3, 1, 2].map(Duration::from_secs).into_iter().collect();
        assert_eq!(
            (spread.min.as_secs(), spread.median.as_secs(), spread.max.as_secs()),
            (1, 2, 3)
        );
    }
}

//! `millrace pipe wait`: returns when a pipe is where it is to be.

use std::time::Duration;

use clap::ValueEnum;
use futures::StreamExt as _;
use millrace_proto::api::v1::{self as api, PipeState, ShardState};

use crate::{args::Connection, client, exit::Error, output, pipe};

/// How long to wait before a broken stream is opened again.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Goal {
    /// It moves records.
    Running,
    /// It has flushed, and holds its positions.
    Stopped,
    /// A backfill has come to its end.
    Completed,
    /// It moves records, and what it reads is younger than `--lag` on every shard.
    CaughtUp,
    /// It is gone.
    Deleted,
}

impl Goal {
    /// Whether the pipe is there; an error if it cannot come there by itself.
    fn reached(self, pipe: &api::Pipe, most_lag: Duration) -> Result<bool, Error> {
        let status = pipe.status.clone().unwrap_or_default();
        let state = status.state();
        let halted = matches!(state, PipeState::Failed) && self != Goal::Deleted && self != Goal::Stopped;
        if halted || (self != Goal::Completed && self != Goal::Deleted && matches!(state, PipeState::Completed)) {
            return Err(Error::Local(format!(
                "{} is {}{}{}",
                pipe.name,
                pipe::state(&status),
                if status.message.is_empty() { "" } else { ": " },
                crate::exit::printable(&status.message)
            )));
        }
        Ok(match self {
            Goal::Running => state == PipeState::Running,
            Goal::Stopped => state == PipeState::Stopped,
            Goal::Completed => state == PipeState::Completed,
            Goal::Deleted => false,
            Goal::CaughtUp => {
                state == PipeState::Running && status.shards.iter().all(|shard| is_caught_up(shard, most_lag))
            }
        })
    }
}

fn is_caught_up(shard: &api::ShardStatus, most: Duration) -> bool {
    match shard.state() {
        ShardState::Finished => true,
        ShardState::Assigned => shard
            .lag
            .and_then(|lag| Duration::try_from(lag).ok())
            .is_some_and(|lag| lag <= most),
        _ => false,
    }
}

/// Waits until `goal` is reached; [`Error::Timeout`] if that takes longer than `timeout`.
pub(crate) async fn run(
    connection: &Connection,
    pipe: &str,
    goal: Goal,
    most_lag: Duration,
    timeout: Duration,
) -> Result<(), Error> {
    let name = connection.name("pipes", pipe);
    let mut last = String::new();
    let waited = tokio::time::timeout(timeout, until(connection, &name, goal, most_lag, &mut last)).await;
    match waited {
        Ok(result) => result?,
        Err(_) => {
            let last = if last.is_empty() { "unknown" } else { &last };
            return Err(Error::Timeout(format!(
                "{name} was {last} after {} s: look at `millrace pipe get`, or give more time with --timeout",
                timeout.as_secs()
            )));
        }
    }
    let word = goal.to_possible_value().map(|value| value.get_name().to_owned());
    output::line(&format!("{name} {}", word.unwrap_or_default()))
}

async fn until(
    connection: &Connection,
    name: &str,
    goal: Goal,
    most_lag: Duration,
    last: &mut String,
) -> Result<(), Error> {
    let failed = client::failed(connection);
    let mut seen = false;
    loop {
        let request = api::WatchPipeRequest {
            name: name.to_owned(),
            interval: None,
        };
        let mut stream = match client::pipes(connection)?.watch_pipe(request).await.map_err(&failed) {
            Ok(response) => response.into_inner(),
            Err(Error::Remote(status)) if goal == Goal::Deleted && status.code() == tonic::Code::NotFound => {
                return Ok(());
            }
            // A control plane that restarts is not the end of a wait that had begun.
            Err(Error::Unreachable { .. }) if seen => {
                tokio::time::sleep(RECONNECT_DELAY).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        while let Some(Ok(update)) = stream.next().await {
            seen = true;
            if update.deleted {
                return match goal {
                    Goal::Deleted => Ok(()),
                    _ => Err(Error::Local(format!("{name} was deleted"))),
                };
            }
            let pipe = update.pipe.unwrap_or_default();
            *last = pipe::state(&pipe.status.clone().unwrap_or_default());
            if goal.reached(&pipe, most_lag)? {
                return Ok(());
            }
        }
        tokio::time::sleep(RECONNECT_DELAY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe(state: PipeState, lags: &[Option<i64>]) -> api::Pipe {
        let shard = |lag: &Option<i64>| api::ShardStatus {
            state: ShardState::Assigned.into(),
            lag: lag.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
            ..Default::default()
        };
        api::Pipe {
            status: Some(api::PipeStatus {
                state: state.into(),
                message: "why".to_owned(),
                shards: lags.iter().map(shard).collect(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_goal_is_reached_not_yet_or_never() {
        let lag = Duration::from_secs(10);
        let reached = |goal: Goal, state, lags: &[Option<i64>]| goal.reached(&pipe(state, lags), lag).ok();
        assert_eq!(reached(Goal::Running, PipeState::Running, &[]), Some(true));
        assert_eq!(reached(Goal::Running, PipeState::Provisioning, &[]), Some(false));
        assert_eq!(reached(Goal::Running, PipeState::Failed, &[]), None);
        assert_eq!(reached(Goal::Running, PipeState::Completed, &[]), None);
        assert_eq!(reached(Goal::Stopped, PipeState::Stopping, &[]), Some(false));
        assert_eq!(reached(Goal::Completed, PipeState::Completed, &[]), Some(true));
        assert_eq!(
            reached(Goal::CaughtUp, PipeState::Running, &[Some(3), Some(10)]),
            Some(true)
        );
        assert_eq!(
            reached(Goal::CaughtUp, PipeState::Running, &[Some(3), Some(11)]),
            Some(false)
        );
        assert_eq!(
            reached(Goal::CaughtUp, PipeState::Running, &[Some(3), None]),
            Some(false)
        );
        assert_eq!(reached(Goal::CaughtUp, PipeState::Degraded, &[Some(3)]), Some(false));
    }
}

//! What a pipe is doing, as one pure function of what is wanted and what is observed.
//!
//! The state is not stored: it follows from the desired state, the shards and the trouble that was noted, each of which has
//! one owner, so it cannot contradict them.

use millrace_common::{pipe::DesiredState, reason};

/// State of a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Shards are being placed for the first time.
    Provisioning,
    /// Records move.
    Running,
    /// Records move with trouble, or wait for something that heals by itself.
    Degraded,
    /// Flushing before it stops.
    Stopping,
    /// Positions are held.
    Stopped,
    /// Halted until a person changes something.
    Failed,
    /// A backfill has come to its end.
    Completed,
}

impl State {
    /// Its name in the API, without the prefix of the enum.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Provisioning => "PROVISIONING",
            State::Running => "RUNNING",
            State::Degraded => "DEGRADED",
            State::Stopping => "STOPPING",
            State::Stopped => "STOPPED",
            State::Failed => "FAILED",
            State::Completed => "COMPLETED",
        }
    }
}

/// Trouble that someone has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Stable reason.
    pub reason: String,
    /// What is wrong and what to do about it.
    pub message: String,
    /// A person has to act.
    pub permanent: bool,
}

/// What is observed of a pipe.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Trouble of the pipe as a whole.
    pub fault: Option<Trouble>,
    /// Trouble of single workers with the pipe.
    pub lane_faults: Vec<Trouble>,
    /// Workers that hold a shard of the pipe.
    pub holders: usize,
    /// Shards that can be read: all parents are finished.
    pub readable: usize,
    /// Those of them that a worker holds.
    pub held: usize,
    /// Shards that were given to a worker at least once.
    pub ever_held: usize,
    /// Workers that are connected.
    pub workers: usize,
    /// All was read up to the pipe's end.
    pub completed: bool,
}

/// What a pipe is doing, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// State.
    pub state: State,
    /// Reason; empty if the state needs none.
    pub reason: String,
    /// What is wrong and what to do about it; empty if nothing is.
    pub message: String,
    /// The observed state has not reached the desired one.
    pub reconciling: bool,
}

impl Status {
    fn plain(state: State, reconciling: bool) -> Self {
        Self {
            state,
            reason: String::new(),
            message: String::new(),
            reconciling,
        }
    }

    fn trouble(state: State, trouble: &Trouble) -> Self {
        // A person has to act: waiting will not bring the pipe nearer to what is wanted.
        let reconciling = !trouble.permanent;
        Self {
            state,
            reason: trouble.reason.clone(),
            message: trouble.message.clone(),
            reconciling,
        }
    }
}

/// What a pipe is doing.
#[must_use]
pub fn status(desired: DesiredState, observed: &Observed) -> Status {
    match desired {
        DesiredState::Stopped if observed.held > 0 => Status::plain(State::Stopping, true),
        DesiredState::Stopped => Status::plain(State::Stopped, false),
        DesiredState::Running => running(observed),
    }
}

fn running(observed: &Observed) -> Status {
    if observed.completed {
        return Status::plain(State::Completed, false);
    }
    if let Some(fault) = observed.fault.as_ref().filter(|fault| fault.permanent) {
        return Status::trouble(State::Failed, fault);
    }
    let permanent: Vec<&Trouble> = observed.lane_faults.iter().filter(|fault| fault.permanent).collect();
    if let Some(first) = permanent.first() {
        // As long as one worker has no permanent trouble, records move there.
        let state = if permanent.len() >= observed.holders {
            State::Failed
        } else {
            State::Degraded
        };
        return Status::trouble(state, first);
    }
    let begun = observed.ever_held > 0;
    if observed.workers == 0 && observed.readable > 0 {
        let message = "no worker is connected to the control plane: start one with `millrace-worker`";
        let trouble = Trouble {
            reason: reason::NO_WORKERS.to_owned(),
            message: message.to_owned(),
            permanent: false,
        };
        return Status::trouble(if begun { State::Degraded } else { State::Provisioning }, &trouble);
    }
    if let Some(trouble) = observed.fault.as_ref().or(observed.lane_faults.first()) {
        return Status::trouble(State::Degraded, trouble);
    }
    let missing = observed.readable > observed.held;
    if missing && observed.held == 0 && !begun {
        return Status::plain(State::Provisioning, true);
    }
    Status::plain(State::Running, missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(reason: &str, permanent: bool) -> Trouble {
        Trouble {
            reason: reason.to_owned(),
            message: format!("{reason}: do this"),
            permanent,
        }
    }

    /// Two shards, both held by one of one worker.
    fn healthy() -> Observed {
        Observed {
            holders: 1,
            readable: 2,
            held: 2,
            ever_held: 2,
            workers: 1,
            ..Observed::default()
        }
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn every_case_of_the_table() {
        use DesiredState::{Running, Stopped};
        let (soft, hard) = (
            trouble("SOURCE_UNREACHABLE", false),
            trouble("SOURCE_STREAM_NOT_FOUND", true),
        );
        let (lane_soft, lane_hard) = (
            trouble("DESTINATION_OVERLOADED", false),
            trouble("BATCH_DIVERGED", true),
        );
        let fresh = Observed {
            holders: 0,
            held: 0,
            ever_held: 0,
            ..healthy()
        };
        let cases = [
            ("healthy", Running, healthy(), State::Running, "", false),
            ("not placed yet", Running, fresh.clone(), State::Provisioning, "", true),
            (
                "no workers yet",
                Running,
                Observed { workers: 0, ..fresh },
                State::Provisioning,
                "NO_WORKERS",
                true,
            ),
            (
                "workers gone",
                Running,
                Observed {
                    workers: 0,
                    holders: 0,
                    held: 0,
                    ..healthy()
                },
                State::Degraded,
                "NO_WORKERS",
                true,
            ),
            (
                "one shard moves",
                Running,
                Observed { held: 1, ..healthy() },
                State::Running,
                "",
                true,
            ),
            (
                "all shards move",
                Running,
                Observed {
                    held: 0,
                    holders: 0,
                    ..healthy()
                },
                State::Running,
                "",
                true,
            ),
            (
                "all shards finished, no workers",
                Running,
                Observed {
                    readable: 0,
                    held: 0,
                    holders: 0,
                    workers: 0,
                    ..healthy()
                },
                State::Running,
                "",
                false,
            ),
            (
                "a backfill is through",
                Running,
                Observed {
                    fault: Some(hard.clone()),
                    readable: 0,
                    held: 0,
                    workers: 0,
                    completed: true,
                    ..healthy()
                },
                State::Completed,
                "",
                false,
            ),
            (
                "the source has a cold",
                Running,
                Observed {
                    fault: Some(soft.clone()),
                    ..healthy()
                },
                State::Degraded,
                "SOURCE_UNREACHABLE",
                true,
            ),
            (
                "the stream is gone",
                Running,
                Observed {
                    fault: Some(hard.clone()),
                    ..healthy()
                },
                State::Failed,
                "SOURCE_STREAM_NOT_FOUND",
                false,
            ),
            (
                "the stream is gone and so are the workers",
                Running,
                Observed {
                    fault: Some(hard.clone()),
                    workers: 0,
                    ..healthy()
                },
                State::Failed,
                "SOURCE_STREAM_NOT_FOUND",
                false,
            ),
            (
                "a worker waits",
                Running,
                Observed {
                    lane_faults: vec![lane_soft.clone()],
                    ..healthy()
                },
                State::Degraded,
                "DESTINATION_OVERLOADED",
                true,
            ),
            (
                "the only worker halts",
                Running,
                Observed {
                    lane_faults: vec![lane_soft.clone(), lane_hard.clone()],
                    ..healthy()
                },
                State::Failed,
                "BATCH_DIVERGED",
                false,
            ),
            (
                "one of two workers halts",
                Running,
                Observed {
                    lane_faults: vec![lane_hard],
                    holders: 2,
                    ..healthy()
                },
                State::Degraded,
                "BATCH_DIVERGED",
                false,
            ),
            (
                "a fault of the pipe comes before one of a worker",
                Running,
                Observed {
                    fault: Some(soft),
                    lane_faults: vec![lane_soft],
                    ..healthy()
                },
                State::Degraded,
                "SOURCE_UNREACHABLE",
                true,
            ),
            ("stopping", Stopped, healthy(), State::Stopping, "", true),
            (
                "stopped",
                Stopped,
                Observed {
                    held: 0,
                    holders: 0,
                    ..healthy()
                },
                State::Stopped,
                "",
                false,
            ),
            (
                "stopped is stopped, whatever the trouble",
                Stopped,
                Observed {
                    fault: Some(hard),
                    held: 0,
                    workers: 0,
                    ..healthy()
                },
                State::Stopped,
                "",
                false,
            ),
        ];
        for (name, desired, observed, state, reason, reconciling) in cases {
            let status = status(desired, &observed);
            let found = (status.state, status.reason.as_str(), status.reconciling);
            assert_eq!(found, (state, reason, reconciling), "{name}");
            assert_eq!(
                status.message.is_empty(),
                reason.is_empty(),
                "{name}: a reason comes with a message"
            );
        }
    }
}

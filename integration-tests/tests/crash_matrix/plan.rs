//! Which rows there are.

use std::fmt;

/// Every arrow of the protocol, in its order.
pub(super) const POINTS: [&str; 25] = [
    "worker.prepare.before",
    "control.prepare.before",
    "control.prepare.in_transaction",
    "control.prepare.answer",
    "worker.prepare.after",
    "worker.send.before",
    "worker.send.errors_inserted",
    "worker.send.rows_inserted",
    "worker.commit.before",
    "control.commit.before",
    "control.commit.in_transaction",
    "control.commit.answer",
    "worker.commit.after",
    "worker.release.drained",
    "control.release.before",
    "control.release.in_transaction",
    "control.release.after",
    "control.grant.before",
    "control.grant.in_transaction",
    "control.grant.after",
    "worker.replay.read",
    "worker.finish.reported",
    "control.finish.before",
    "control.finish.in_transaction",
    "control.finish.after",
];

/// Points that only a batch that ClickHouse refuses comes to: `poison.rs` kills at each of them.
pub(super) const OF_REFUSED_BATCHES: [&str; 3] = [
    "worker.replace.before",
    "control.replace.in_transaction",
    "worker.replace.after",
];

/// Points around a pipe's consumer for enhanced fan-out: `fan_out/orphans.rs` kills at each of them.
pub(super) const OF_CONSUMERS: [&str; 3] = [
    "control.consumer.noted",
    "control.consumer.registered",
    "control.consumer.deregister",
];

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// SIGKILL.
    Kill,
    /// SIGSTOP for longer than the lease, then SIGCONT.
    Stop,
    /// A panic.
    Panic,
    /// The call fails: its effect, if it had any, stays unknown to the caller.
    Error,
    /// The process stands still at the point while its database is killed and started again.
    DatabaseRestart,
}

impl Fault {
    /// As the fail point has to do it.
    pub(super) fn action(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop | Self::DatabaseRestart => "stop",
            Self::Panic => "panic",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "SIGKILL",
            Self::Stop => "SIGSTOP past lease",
            Self::Panic => "panic",
            Self::Error => "error",
            Self::DatabaseRestart => "database restart",
        })
    }
}

/// The control plane's database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Database {
    Sqlite,
    Postgres,
}

/// What brings the load to the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scenario {
    /// Records suffice.
    Load,
    /// Shards are moved from one worker to the other.
    Move,
    /// A shard is split.
    Split,
    /// A worker dies with open batches first.
    Takeover,
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) point: &'static str,
    pub(super) fault: Fault,
    pub(super) database: Database,
}

impl Case {
    pub(super) fn scenario(&self) -> Scenario {
        match self.point {
            "worker.replay.read" => Scenario::Takeover,
            point if point.contains(".release.") || point.contains(".grant.") => Scenario::Move,
            point if point.contains(".finish.") => Scenario::Split,
            _ => Scenario::Load,
        }
    }

    pub(super) fn is_of_worker(&self) -> bool {
        self.point.starts_with("worker.")
    }

    /// Where it happens, for the table.
    pub(super) fn place(&self) -> String {
        match self.database {
            Database::Sqlite => self.point.to_owned(),
            Database::Postgres => format!("{} (PostgreSQL)", self.point),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.fault, self.place())
    }
}

fn case(point: &'static str, fault: Fault, database: Database) -> Case {
    Case { point, fault, database }
}

/// Points at which a caller is told that the call failed.
fn can_fail(point: &str) -> bool {
    [
        "control.prepare.before",
        "control.prepare.answer",
        "control.commit.before",
        "control.commit.answer",
    ]
    .contains(&point)
}

/// Every row that there can be.
pub(super) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for point in POINTS {
        for fault in [Fault::Kill, Fault::Stop, Fault::Panic] {
            cases.push(case(point, fault, Database::Sqlite));
        }
        if can_fail(point) {
            cases.push(case(point, Fault::Error, Database::Sqlite));
        }
        cases.push(case(point, Fault::DatabaseRestart, Database::Postgres));
        if point.ends_with(".in_transaction") {
            cases.push(case(point, Fault::Kill, Database::Postgres));
        }
    }
    cases
}

/// Rows for every day: each point is killed or stopped, each fault occurs in each phase that it can matter in.
pub(super) fn chosen() -> Vec<Case> {
    use {Database::*, Fault::*};
    vec![
        // The long ones first, so that the last lane does not wait for one of them alone.
        case("worker.prepare.before", Stop, Sqlite),
        case("worker.send.before", Stop, Sqlite),
        case("worker.commit.before", Stop, Sqlite),
        case("worker.send.rows_inserted", Stop, Sqlite),
        case("control.commit.in_transaction", Stop, Sqlite),
        case("worker.release.drained", Stop, Sqlite),
        case("worker.replay.read", Kill, Sqlite),
        case("worker.prepare.after", Kill, Sqlite),
        case("worker.send.errors_inserted", Kill, Sqlite),
        case("worker.send.rows_inserted", Kill, Sqlite),
        case("worker.commit.before", Kill, Sqlite),
        case("worker.commit.after", Kill, Sqlite),
        case("worker.finish.reported", Kill, Sqlite),
        case("worker.send.before", Panic, Sqlite),
        case("control.prepare.before", Kill, Sqlite),
        case("control.prepare.answer", Error, Sqlite),
        case("control.prepare.answer", Kill, Sqlite),
        case("control.prepare.in_transaction", Kill, Sqlite),
        case("control.commit.before", Panic, Sqlite),
        case("control.commit.answer", Error, Sqlite),
        case("control.commit.in_transaction", Kill, Sqlite),
        case("control.release.before", Kill, Sqlite),
        case("control.release.in_transaction", Panic, Sqlite),
        case("control.release.after", Kill, Sqlite),
        case("control.grant.before", Panic, Sqlite),
        case("control.grant.after", Kill, Sqlite),
        case("control.finish.before", Kill, Sqlite),
        case("control.finish.after", Panic, Sqlite),
        case("control.prepare.in_transaction", DatabaseRestart, Postgres),
        case("control.commit.in_transaction", DatabaseRestart, Postgres),
        case("control.grant.in_transaction", DatabaseRestart, Postgres),
        case("control.finish.in_transaction", DatabaseRestart, Postgres),
        case("worker.commit.before", DatabaseRestart, Postgres),
        case("control.commit.in_transaction", Kill, Postgres),
    ]
}

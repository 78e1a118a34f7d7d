//! The faults, and which of them comes next. Pure: what they do is `world`'s.

use std::{fmt, time::Duration};

use rand::{Rng as _, rngs::SmallRng, seq::IndexedRandom as _};

use crate::faults::{Direction, End};

/// A connection with a proxy in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// Workers to control plane.
    Control,
    /// Workers and control plane to ClickHouse.
    ClickHouse,
    /// Workers and control plane to Kinesis.
    Kinesis,
    /// Control plane to its PostgreSQL.
    Database,
}

impl Link {
    pub(super) const ALL: [Self; 4] = [Self::Control, Self::ClickHouse, Self::Kinesis, Self::Database];
}

/// What a proxy does to its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Freeze,
    Reset,
    Refuse,
    Delay { millis: u64 },
    Throttle { bytes_per_second: u64 },
    Cut { direction: Direction, after: u64, end: End },
    Duplicate { after_millis: u64 },
}

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    KillWorker(usize),
    StopWorker(usize),
    /// SIGTERM, and a new process later.
    RestartWorker(usize),
    KillControlPlane,
    StopControlPlane,
    StopClickHouse,
    KillClickHouse,
    KillDatabase,
    StopDatabase,
    Wire(Link, Wire),
    /// Kinesis refuses this many calls in a thousand.
    ThrottleKinesis {
        per_mille: u32,
    },
    /// One in a few iterators is expired.
    ExpireIterators,
    Split {
        choice: u64,
    },
    Merge {
        choice: u64,
    },
    PausePipe,
    Replicas(u32),
}

/// What a fault is about. There is one fault of a part at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Worker(usize),
    /// The control plane with its database: each is needed to start the other again.
    ControlPlane,
    ClickHouse,
    Link(Link),
    Kinesis,
    Shards,
    Pipe,
}

impl Fault {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::KillWorker(_) => "kill worker",
            Self::StopWorker(_) => "stop worker",
            Self::RestartWorker(_) => "restart worker",
            Self::KillControlPlane => "kill control plane",
            Self::StopControlPlane => "stop control plane",
            Self::StopClickHouse => "stop ClickHouse",
            Self::KillClickHouse => "kill ClickHouse",
            Self::KillDatabase => "kill database",
            Self::StopDatabase => "stop database",
            Self::Wire(_, Wire::Freeze) => "freeze",
            Self::Wire(_, Wire::Reset) => "reset",
            Self::Wire(_, Wire::Refuse) => "refuse",
            Self::Wire(_, Wire::Delay { .. }) => "delay",
            Self::Wire(_, Wire::Throttle { .. }) => "throttle",
            Self::Wire(_, Wire::Cut { .. }) => "cut",
            Self::Wire(_, Wire::Duplicate { .. }) => "duplicate",
            Self::ThrottleKinesis { .. } => "throttle Kinesis",
            Self::ExpireIterators => "expire iterators",
            Self::Split { .. } => "split",
            Self::Merge { .. } => "merge",
            Self::PausePipe => "pause pipe",
            Self::Replicas(_) => "replicas",
        }
    }

    pub(super) fn part(&self) -> Part {
        match self {
            Self::KillWorker(index) | Self::StopWorker(index) | Self::RestartWorker(index) => Part::Worker(*index),
            Self::KillControlPlane | Self::StopControlPlane | Self::KillDatabase | Self::StopDatabase => {
                Part::ControlPlane
            }
            Self::StopClickHouse | Self::KillClickHouse => Part::ClickHouse,
            Self::Wire(Link::Database, _) => Part::ControlPlane,
            Self::Wire(link, _) => Part::Link(*link),
            Self::ThrottleKinesis { .. } | Self::ExpireIterators => Part::Kinesis,
            Self::Split { .. } | Self::Merge { .. } => Part::Shards,
            Self::PausePipe | Self::Replicas(_) => Part::Pipe,
        }
    }

    /// Whether it cannot be begun while `part` has a fault.
    pub(super) fn needs(&self, part: Part) -> bool {
        matches!(self, Self::PausePipe | Self::Replicas(_)) && part == Part::ControlPlane
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillWorker(index) | Self::StopWorker(index) | Self::RestartWorker(index) => {
                write!(f, "{} {index}", self.name())
            }
            Self::Wire(link, wire) => write!(f, "{link:?}: {wire:?}"),
            Self::ThrottleKinesis { per_mille } => write!(f, "{} {per_mille}/1000", self.name()),
            Self::Replicas(replicas) => write!(f, "{} {replicas}", self.name()),
            _ => f.write_str(self.name()),
        }
    }
}

/// The next fault and how long it lasts. Some outlast a lease.
pub(super) fn choose(rng: &mut SmallRng, workers: usize) -> (Fault, Duration) {
    let worker = rng.random_range(0..workers);
    let fault = match rng.random_range(0..100) {
        0..8 => Fault::KillWorker(worker),
        8..16 => Fault::StopWorker(worker),
        16..20 => Fault::RestartWorker(worker),
        20..27 => Fault::KillControlPlane,
        27..32 => Fault::StopControlPlane,
        32..36 => Fault::StopClickHouse,
        36..40 => Fault::KillClickHouse,
        40..43 => Fault::KillDatabase,
        43..45 => Fault::StopDatabase,
        45..75 => wire(rng),
        75..78 => Fault::ThrottleKinesis {
            per_mille: rng.random_range(100..900),
        },
        78..80 => Fault::ExpireIterators,
        80..86 => Fault::Split { choice: rng.random() },
        86..92 => Fault::Merge { choice: rng.random() },
        92..95 => Fault::PausePipe,
        _ => {
            let most = u32::try_from(workers).unwrap_or(u32::MAX);
            Fault::Replicas(rng.random_range(1..=most))
        }
    };
    (fault, Duration::from_millis(rng.random_range(100..4_000)))
}

fn wire(rng: &mut SmallRng) -> Fault {
    let link = Link::ALL.choose(rng).copied().unwrap_or(Link::Control);
    let wire = match rng.random_range(0..13) {
        0..2 => Wire::Freeze,
        2..4 => Wire::Reset,
        4 => Wire::Refuse,
        5 => Wire::Delay {
            millis: rng.random_range(5..400),
        },
        6 => Wire::Throttle {
            bytes_per_second: rng.random_range(20_000..500_000),
        },
        7..11 => Wire::Cut {
            direction: if rng.random() {
                Direction::Request
            } else {
                Direction::Response
            },
            after: rng.random_range(0..40_000),
            end: [End::Fin, End::Reset, End::Freeze]
                .choose(rng)
                .copied()
                .unwrap_or(End::Reset),
        },
        _ => Wire::Duplicate {
            after_millis: rng.random_range(0..2_000),
        },
    };
    match wire {
        // Requests are seen only in HTTP/1.1, and only an insert is the same when it is sent twice.
        Wire::Duplicate { .. } => Fault::Wire(Link::ClickHouse, wire),
        _ => Fault::Wire(link, wire),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_and_all_kinds_come() {
        let list = |seed| {
            let mut rng = SmallRng::seed_from_u64(seed);
            (0..2_000).map(|_| choose(&mut rng, 3)).collect::<Vec<_>>()
        };
        assert_eq!(list(1), list(1));
        assert_ne!(list(1), list(2));
        let names: BTreeSet<_> = list(1).iter().map(|(fault, _)| fault.name()).collect();
        assert_eq!(names.len(), 22, "{names:?}");
        for link in Link::ALL {
            let has = |(fault, _): &(Fault, Duration)| matches!(fault, Fault::Wire(of, _) if *of == link);
            assert!(list(1).iter().any(has), "{link:?}");
        }
    }
}

//! One lease: the right of one worker process to advance one shard, as the control plane sees it. Pure.
//!
//! ```text
//!   granted --> Pending --set pushed--> Sent(generation) --reported--> Held --asked--> Held, releasing
//!   found in the database at start --> Found --reported--> Held                           |
//!        |            |             |                       |                             |
//!        |            +-- asked --> ended: nobody was told  |                             |
//!        +------------+------ deadline passed, or a report that had to name it and did not +--> ended
//! ```
//!
//! Invariants: a lease ends at its deadline whatever its stage. A report renews exactly the leases that it names with their
//! current epoch. A lease that was asked back is never un-asked: it ends, and the shard is granted afresh, so that a
//! worker never sees an epoch twice.

use std::time::Duration;

use millrace_common::ids::{Epoch, Generation, WorkerInstance};
use tokio::time::Instant;

/// How far the holder is known to have taken up its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Read from the database: an earlier control plane granted it, or a grant whose answer was lost.
    Found,
    /// Granted, and in no set yet.
    Pending,
    /// In the sets since this generation.
    Sent(Generation),
    /// Named by a report.
    Held,
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Who holds it.
    pub holder: WorkerInstance,
    /// Epoch that it was granted under.
    pub epoch: Epoch,
    /// When it ends unless a report renews it.
    pub deadline: Instant,
    /// How far the holder has taken it up.
    pub stage: Stage,
    /// Since when it is asked back.
    pub releasing: Option<Instant>,
}

/// What the last report of the holder says about a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// Generation that the worker had taken up.
    pub generation: Generation,
    /// Epoch that it holds the shard under; `None` if it does not hold it.
    pub epoch: Option<Epoch>,
    /// When the report arrived.
    pub at: Instant,
}

/// Why a lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The worker was asked to release it and did.
    Released,
    /// The worker dropped it by itself.
    Dropped,
    /// The deadline passed without a report.
    Expired,
    /// The worker said goodbye.
    Departed,
    /// Another process has taken the place of the holder under the same worker id.
    Replaced,
    /// The worker was asked to release it and did not in time.
    Overdue,
}

impl Lease {
    /// A lease that was just granted.
    pub fn granted(holder: WorkerInstance, epoch: Epoch, now: Instant, ttl: Duration) -> Self {
        Self {
            holder,
            epoch,
            deadline: now + ttl,
            stage: Stage::Pending,
            releasing: None,
        }
    }

    /// A lease that the database knows of and this process does not: it gets a whole TTL, because its holder may be
    /// working, and only has to find this control plane.
    pub fn found(holder: WorkerInstance, epoch: Epoch, now: Instant, ttl: Duration) -> Self {
        Self {
            stage: Stage::Found,
            ..Self::granted(holder, epoch, now, ttl)
        }
    }

    /// Takes in a report of the holder. `Some` if the holder does not hold it (any more).
    pub fn observe(&mut self, seen: Sighting, ttl: Duration) -> Option<Ended> {
        if seen.epoch == Some(self.epoch) {
            self.deadline = self.deadline.max(seen.at + ttl);
            self.stage = Stage::Held;
            return None;
        }
        let must_know = match self.stage {
            Stage::Found | Stage::Held => true,
            Stage::Sent(generation) => seen.generation >= generation,
            Stage::Pending => false,
        };
        must_know.then_some(if self.releasing.is_some() {
            Ended::Released
        } else {
            Ended::Dropped
        })
    }

    /// Takes in the passing of time.
    pub fn tick(&self, now: Instant, release_deadline: Duration) -> Option<Ended> {
        if self.deadline <= now {
            return Some(Ended::Expired);
        }
        let since = self.releasing?;
        // Nobody was told of it, so nobody has to give it back.
        if self.stage == Stage::Pending {
            return Some(Ended::Released);
        }
        (since + release_deadline <= now).then_some(Ended::Overdue)
    }

    /// Asks it back.
    pub fn ask_back(&mut self, now: Instant) {
        self.releasing.get_or_insert(now);
    }

    /// Notes the first set that names it.
    pub fn sent(&mut self, generation: Generation) {
        if self.stage == Stage::Pending {
            self.stage = Stage::Sent(generation);
        }
    }
}

#[cfg(test)]
mod tests {
    use millrace_common::ids::Incarnation;

    use super::*;

    const TTL: Duration = Duration::from_secs(8);
    const RELEASE: Duration = Duration::from_secs(60);

    fn holder() -> WorkerInstance {
        WorkerInstance {
            worker: "w".parse().unwrap(),
            incarnation: Incarnation::new(),
        }
    }

    fn seen(generation: u64, epoch: Option<u64>, at: Instant) -> Sighting {
        Sighting {
            generation: Generation(generation),
            epoch: epoch.map(Epoch),
            at,
        }
    }

    #[test]
    fn every_stage_meets_every_sighting() {
        let now = Instant::now();
        let named = Some(3);
        // stage, generation of the report, epoch in it, what comes of it
        let cases = [
            (Stage::Found, 0, named, None),
            (Stage::Found, 0, None, Some(Ended::Dropped)),
            (Stage::Found, 0, Some(2), Some(Ended::Dropped)),
            (Stage::Pending, 9, None, None),
            (Stage::Pending, 9, Some(2), None),
            (Stage::Sent(Generation(5)), 4, None, None),
            (Stage::Sent(Generation(5)), 4, Some(2), None),
            (Stage::Sent(Generation(5)), 5, None, Some(Ended::Dropped)),
            (Stage::Sent(Generation(5)), 4, named, None),
            (Stage::Held, 0, named, None),
            (Stage::Held, 0, None, Some(Ended::Dropped)),
            (Stage::Held, 0, Some(4), Some(Ended::Dropped)),
        ];
        for (stage, generation, epoch, expected) in cases {
            for releasing in [None, Some(now)] {
                let mut lease = Lease::granted(holder(), Epoch(3), now, TTL);
                (lease.stage, lease.releasing) = (stage, releasing);
                let expected = match expected {
                    Some(_) if releasing.is_some() => Some(Ended::Released),
                    other => other,
                };
                let later = now + Duration::from_secs(1);
                assert_eq!(
                    lease.observe(seen(generation, epoch, later), TTL),
                    expected,
                    "{stage:?} {generation} {epoch:?}"
                );
                let renewed = epoch == named;
                assert_eq!(lease.deadline, if renewed { later + TTL } else { now + TTL });
                assert_eq!(lease.stage == Stage::Held, renewed || stage == Stage::Held);
                assert_eq!(lease.releasing, releasing, "a report never un-asks");
            }
        }
    }

    #[test]
    fn an_old_report_never_shortens_a_lease() {
        let now = Instant::now();
        let mut lease = Lease::granted(holder(), Epoch(1), now + TTL, TTL);
        let deadline = lease.deadline;
        lease.observe(seen(0, Some(1), now), TTL);
        assert_eq!(lease.deadline, deadline);
    }

    #[test]
    fn every_stage_has_a_deadline() {
        let now = Instant::now();
        for stage in [Stage::Found, Stage::Pending, Stage::Sent(Generation(1)), Stage::Held] {
            let mut lease = Lease::granted(holder(), Epoch(1), now, TTL);
            lease.stage = stage;
            assert_eq!(lease.tick(now, RELEASE), None);
            assert_eq!(lease.tick(now + TTL, RELEASE), Some(Ended::Expired));
            lease.ask_back(now);
            lease.ask_back(now + RELEASE);
            lease.deadline = now + 2 * RELEASE;
            if stage == Stage::Pending {
                assert_eq!(lease.tick(now, RELEASE), Some(Ended::Released), "nobody was told");
                continue;
            }
            assert_eq!(lease.tick(now + TTL, RELEASE), None);
            assert_eq!(
                lease.tick(now + RELEASE, RELEASE),
                Some(Ended::Overdue),
                "asked once, counted from then"
            );
        }
    }
}

//! What keeps a lane from moving, and who says so.
//!
//! Each part of a lane (a reader, a batch, ...) sets and clears its own fault; the worst of them is what the lane reports.

use std::{collections::BTreeMap, sync::Arc};

use millrace_common::{
    ids::{BatchId, Revision, ShardId},
    reason,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// What keeps a lane from moving.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Stable reason of [`millrace_common::reason`].
    pub reason: &'static str,
    /// What is wrong and what to do about it.
    pub message: String,
    /// A person has to act.
    pub permanent: bool,
}

impl Fault {
    /// A fault that a person has to end.
    pub fn permanent(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            permanent: true,
        }
    }

    /// A fault that is expected to heal.
    pub fn passing(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            permanent: false,
        }
    }

    /// A defect of Millrace.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::permanent(reason::INTERNAL, message)
    }
}

/// The part of a lane that a fault is in. The order is that of importance among equals.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The whole lane stands still.
    Lane,
    /// A revision cannot be run.
    Revision(Revision),
    /// An open batch cannot be rebuilt.
    Replay(BatchId),
    /// A batch cannot be delivered.
    Batch(BatchId),
    /// A shard cannot be read.
    Shard(ShardId),
}

/// The faults of a lane.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    faults: Mutex<BTreeMap<Part, Fault>>,
    changed: Notify,
}

impl Faults {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// A part is at fault. Logged once, when it changes.
    pub fn set(&self, part: Part, fault: Fault) {
        {
            let mut faults = self.0.faults.lock();
            if faults.get(&part) == Some(&fault) {
                return;
            }
            let Fault {
                reason,
                message,
                permanent,
            } = &fault;
            tracing::warn!(reason, detail = message, permanent, "the lane cannot move");
            faults.insert(part, fault);
        }
        self.0.changed.notify_one();
    }

    /// A part is well again, or gone.
    pub fn clear(&self, part: &Part) {
        if self.0.faults.lock().remove(part).is_some() {
            self.0.changed.notify_one();
        }
    }

    /// Parts of which this does not hold are gone.
    pub fn retain(&self, keep: impl Fn(&Part) -> bool) {
        let mut faults = self.0.faults.lock();
        let before = faults.len();
        faults.retain(|part, _| keep(part));
        if faults.len() != before {
            self.0.changed.notify_one();
        }
    }

    /// The worst: a permanent one before a passing one.
    pub fn worst(&self) -> Option<Fault> {
        let faults = self.0.faults.lock();
        faults
            .values()
            .find(|fault| fault.permanent)
            .or_else(|| faults.values().next())
            .cloned()
    }

    /// Waits for a change after the last wait. For one waiter.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn the_worst_is_shown_until_it_heals() {
        let faults = Faults::new();
        assert_eq!(faults.worst(), None);
        let shard = Part::Shard("shardId-0".parse().expect("a shard id"));
        faults.set(
            Part::Batch(BatchId::new()),
            Fault::passing(reason::DESTINATION_UNREACHABLE, "refused"),
        );
        faults.set(shard.clone(), Fault::permanent(reason::SOURCE_ACCESS_DENIED, "no"));
        assert!(faults.changed().now_or_never().is_some());
        assert_eq!(
            faults.worst().map(|fault| fault.reason),
            Some(reason::SOURCE_ACCESS_DENIED)
        );
        faults.set(shard.clone(), Fault::permanent(reason::SOURCE_ACCESS_DENIED, "no"));
        assert!(faults.changed().now_or_never().is_none(), "the same again is no change");
        faults.clear(&shard);
        assert_eq!(
            faults.worst().map(|fault| fault.reason),
            Some(reason::DESTINATION_UNREACHABLE)
        );
    }
}

//! What workers say of the age of what they read: gaps before which they stand, and up to when shards are complete. No I/O
//! here.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use millrace_common::{
    gap::DataGap,
    ids::{BatchId, Epoch, PipeUid, ShardId, WorkerId},
    pipe::DataGapPolicy,
    position::Position,
};
use tokio::time::Instant;

use super::{pipe::PipeState, world::World};
use crate::{
    events::{NewEvent, Severity, kind},
    protocol::Gap,
    sessions::{ShardReport, WorkerSeen},
    store::ShardEnd,
};

/// What may have to wait is asked again this often.
const AGAIN: Duration = Duration::from_secs(1);
/// What is stored of a shard may be this much older than what is known: it is compared with hours.
const STEP: Duration = Duration::from_secs(60);

/// Slices of a batch that an event names.
const SHOWN_SLICES: usize = 20;

/// A gap that is told again is another one only under another epoch.
type Key = (PipeUid, ShardId, Epoch);

/// Shards, the epochs that they are held under, and up to when they are complete.
pub(super) type Advanced = Vec<(ShardId, Epoch, Timestamp)>;

/// What was done about gaps, and when.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    told: BTreeSet<Key>,
    tried: BTreeMap<Key, Instant>,
    noted: Option<Instant>,
}

/// A gap to act upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) pipe: PipeUid,
    pub(super) gap: Gap,
    /// Go on behind it. Otherwise only tell of it.
    pub(super) resume: bool,
    worker: WorkerId,
    report: DataGap,
    /// What the batch holds.
    content: Option<String>,
}

impl Gaps {
    /// Gaps to act upon now.
    pub(super) fn due(&mut self, world: &World, seen: &BTreeMap<WorkerId, WorkerSeen>, now: Instant) -> Vec<Found> {
        let mut due = Vec::new();
        let mut present = BTreeSet::new();
        for (uid, pipe) in world.sound() {
            let resume = pipe.pipe.spec.settings.on_data_gap == DataGapPolicy::Resume;
            for (shard, epoch, worker, report) in held(*uid, pipe, seen) {
                let Some(gap) = &report.gap else { continue };
                let key = (*uid, shard.clone(), epoch);
                let wait = if resume {
                    self.tried.get(&key).is_some_and(|at| *at + AGAIN > now)
                } else {
                    self.told.contains(&key)
                };
                if !wait {
                    if resume {
                        self.tried.insert(key.clone(), now);
                    }
                    due.push(Found {
                        pipe: *uid,
                        gap: Gap {
                            shard: shard.clone(),
                            epoch,
                            position: gap.position.clone(),
                            batch: gap.batch,
                            shard_gone: gap.shard_gone,
                        },
                        resume,
                        worker: worker.clone(),
                        report: gap.clone(),
                        content: gap.batch.and_then(|batch| content(pipe, batch)),
                    });
                }
                present.insert(key);
            }
        }
        self.told.retain(|key| present.contains(key));
        self.tried.retain(|key, _| present.contains(key));
        due
    }

    /// It was told.
    pub(super) fn told(&mut self, found: &Found) {
        self.told.insert((found.pipe, found.gap.shard.clone(), found.gap.epoch));
    }

    /// Shards that are complete up to well after what is stored of them, now and then; and of shards that are about to be
    /// finished all that is known, because their children begin with it.
    pub(super) fn advanced(
        &mut self,
        world: &World,
        seen: &BTreeMap<WorkerId, WorkerSeen>,
        finished: &BTreeMap<PipeUid, Vec<ShardEnd>>,
        now: Instant,
    ) -> Vec<(PipeUid, Advanced)> {
        let due = self.noted.is_none_or(|at| at + AGAIN <= now);
        if due {
            self.noted = Some(now);
        } else if finished.is_empty() {
            return Vec::new();
        }
        let mut all = Vec::new();
        for (uid, pipe) in world.sound() {
            let ends = finished.get(uid).map(Vec::as_slice).unwrap_or_default();
            let advanced = held(*uid, pipe, seen).filter_map(|(shard, epoch, _, report)| {
                let time = report.complete_until?;
                let stored = pipe.stored.get(shard)?.complete_until;
                let far = stored.is_none_or(|stored| stored.checked_add(STEP).is_ok_and(|next| next <= time));
                let ends = ends.iter().any(|end| end.shard == *shard) && stored < Some(time);
                (due && far || ends).then(|| (shard.clone(), epoch, time))
            });
            let advanced: Vec<_> = advanced.collect();
            if !advanced.is_empty() {
                all.push((*uid, advanced));
            }
        }
        all
    }
}

/// Rows and slices of an open batch, for people.
fn content(pipe: &PipeState, id: BatchId) -> Option<String> {
    let batch = pipe.open_batches.iter().find(|batch| batch.id == id)?;
    let slices: Vec<String> = batch
        .slices
        .iter()
        .take(SHOWN_SLICES)
        .map(ToString::to_string)
        .collect();
    let more = batch.slices.len().saturating_sub(SHOWN_SLICES);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    Some(format!("{} rows of {}{more}", batch.counts.rows, slices.join(", ")))
}

/// Shards of a pipe with what their holders report of them.
fn held<'a>(
    uid: PipeUid,
    pipe: &'a PipeState,
    seen: &'a BTreeMap<WorkerId, WorkerSeen>,
) -> impl Iterator<Item = (&'a ShardId, Epoch, &'a WorkerId, &'a ShardReport)> {
    pipe.shards.iter().filter_map(move |(id, shard)| {
        let lease = shard.lease.as_ref()?;
        let worker = seen.get(&lease.holder.worker)?;
        let report = worker.report.shard(uid, id)?;
        let current = worker.instance == lease.holder && report.epoch == lease.epoch;
        current.then_some((id, lease.epoch, &lease.holder.worker, report))
    })
}

impl Found {
    /// What to tell of it.
    pub(super) fn event(&self) -> NewEvent {
        let Found { gap, report, .. } = self;
        let shown = |time: Option<Timestamp>| {
            time.map_or_else(|| "a time that is not known".to_owned(), |time| time.to_string())
        };
        let (from, to) = (shown(report.from), shown(report.to));
        let lost =
            format!("records that arrived between {from} and {to} may have left the stream before they were read");
        let then = match (self.resume, gap.batch, gap.shard_gone) {
            (true, Some(_), _) => {
                "its batch cannot be built again and was given up; its rows may be in the table or not: compare the table with \
                 the slices in the details"
            }
            (true, None, true) => "the shard is gone, and the pipe goes on with its children",
            (true, None, false) => "the pipe goes on at the oldest record of the shard",
            (false, Some(_), _) => {
                "the shard stands still; reset its position with --abandon-open-batches, or set settings.on_data_gap to RESUME"
            }
            (false, None, _) => "the shard stands still; reset its position, or set settings.on_data_gap to RESUME",
        };
        let mut event = NewEvent::new(
            kind::DATA_GAP,
            Severity::Error,
            format!("{}, {}: {lost} ({}); {then}", gap.shard, gap.position, report.message),
        )
        .by(format!("worker/{}", self.worker))
        .of_shard(gap.shard.clone())
        .with("position", &gap.position)
        .with("policy", if self.resume { "RESUME" } else { "HALT" })
        .with("shard_gone", gap.shard_gone);
        if let Position::After(number) = &gap.position {
            event = event.with("after_sequence_number", number);
        }
        for (key, time) in [("from_time", report.from), ("to_time", report.to)] {
            if let Some(time) = time {
                event = event.with(key, time);
            }
        }
        if let Some(batch) = gap.batch {
            event = event.with("batch", batch);
        }
        if let Some(content) = &self.content {
            event = event.with("batch_content", content);
        }
        // A worker that starts anew finds the same gap again.
        let batch = gap.batch.map(|batch| batch.to_string()).unwrap_or_default();
        let policy = if self.resume { "resumed" } else { "halted" };
        event.once(format!(
            "{}:{}:{}:{batch}:{policy}",
            kind::DATA_GAP,
            gap.shard,
            gap.position
        ))
    }
}

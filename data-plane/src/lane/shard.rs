//! What a lane knows of a shard that it holds.

use std::{collections::BTreeSet, time::Duration};

use millrace_common::{
    gap::DataGap,
    ids::{BatchId, Epoch, ShardId},
    position::Position,
};
use tokio::time::Instant;
use tokio_util::sync::DropGuard;

use super::{progress::Progress, spec::Grant, status::ShardStatus};
use crate::source::ChildShard;

/// Time over which the rate of a shard is averaged.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// Bytes per second, averaged with weights that fade.
#[derive(Debug)]
struct Meter {
    rate: f64,
    at: Instant,
}

impl Meter {
    fn add(&mut self, bytes: u64, now: Instant) {
        self.rate = self.read(now) + bytes as f64 / RATE_WINDOW.as_secs_f64();
        self.at = now;
    }

    fn read(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.rate * (-elapsed / RATE_WINDOW.as_secs_f64()).exp()
    }
}

/// What reads a shard.
#[derive(Debug)]
pub(super) enum Reading {
    /// Nothing yet.
    Not,
    /// A reader. The number tells it from earlier ones.
    By {
        attempt: u64,
        /// Stops the reader when dropped.
        _stop: DropGuard,
    },
    /// Nothing until then.
    Until(Instant),
    /// Nothing any more, for this lease: the shard has ended, or it cannot be read.
    Over,
}

/// A shard that the lane holds.
#[derive(Debug)]
pub(super) struct Shard {
    /// Under which lease.
    pub epoch: Epoch,
    /// Where the next slice starts.
    pub next_from: Position,
    /// Where a new reader would start: after everything that is queued.
    pub read_to: Position,
    /// Batches of an earlier owner that are to be committed before anything is read.
    pub replays: BTreeSet<BatchId>,
    /// Since when it is to be given back.
    pub releasing: Option<Instant>,
    /// Its children, once it was read to its end.
    pub ended: Option<Vec<ChildShard>>,
    /// How far behind the newest record the reader is.
    pub lag: Option<Duration>,
    /// Up to when it is complete.
    pub progress: Progress,
    /// Why it stands still, if that is because records may be gone.
    pub gap: Option<DataGap>,
    pub reading: Reading,
    /// Kinesis has answered under this lease.
    pub heard: bool,
    /// Messages of aggregates whose hash key is outside the shard's range.
    pub out_of_range: u64,
    /// How often its reader was started anew because it made no progress.
    pub restarts: u64,
    meter: Meter,
}

impl Shard {
    pub(super) fn new(grant: &Grant, now: Instant) -> Self {
        Self {
            epoch: grant.epoch,
            next_from: grant.start.clone(),
            read_to: grant.start.clone(),
            replays: BTreeSet::new(),
            releasing: None,
            ended: None,
            lag: None,
            progress: Progress::new(grant.complete_until),
            gap: None,
            reading: Reading::Not,
            heard: false,
            out_of_range: 0,
            restarts: 0,
            meter: Meter { rate: 0.0, at: now },
        }
    }

    /// A page came.
    pub(super) fn count(&mut self, bytes: u64, now: Instant) {
        self.meter.add(bytes, now);
    }

    /// Everything after this place is to be read again.
    pub(super) fn rewind(&mut self, to: Position) {
        self.next_from = to.clone();
        self.read_to = to;
        self.ended = None;
        self.gap = None;
        self.progress.rewind();
        self.reading = Reading::Not;
    }

    /// Whether a reader is to be started now.
    pub(super) fn wants_reader(&self, now: Instant) -> bool {
        let ready = match self.reading {
            Reading::Not => true,
            Reading::Until(then) => then <= now,
            Reading::By { .. } | Reading::Over => false,
        };
        ready && self.replays.is_empty() && self.releasing.is_none() && self.ended.is_none()
    }

    /// For the report. `settled`: all that was read is committed.
    pub(super) fn status(&self, shard: &ShardId, settled: bool, now: Instant) -> ShardStatus {
        ShardStatus {
            shard: shard.clone(),
            epoch: self.epoch,
            read: self.read_to.sequence_number().cloned(),
            lag: self.lag,
            finished: self.ended.clone().filter(|_| settled),
            bytes_per_second: self.meter.read(now),
            complete_until: self.progress.complete_until(),
            gap: self.gap.clone(),
            out_of_range: self.out_of_range,
            restarts: self.restarts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_steady_shard_shows_its_rate() {
        let start = Instant::now();
        let mut meter = Meter { rate: 0.0, at: start };
        for second in 1..=60 {
            meter.add(1_000, start + Duration::from_secs(second));
        }
        let rate = meter.read(start + Duration::from_secs(60));
        assert!((900.0..1_300.0).contains(&rate), "{rate}");
        let idle = meter.read(start + Duration::from_secs(120));
        assert!(idle < 1.0, "{idle}");
    }
}

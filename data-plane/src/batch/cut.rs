//! When to close a batch. Pure: it is given what is queued, and the time.
//!
//! Records are queued as Kinesis gave them and decoded when a batch is cut, so what is known of a batch beforehand is its
//! number of records and their payload bytes; the size of the encoded block is predicted from the last blocks. The
//! prediction only decides when to begin: the block itself is closed by [`Rules::is_full`], on what it really holds, after
//! a whole record. What is then left over is the beginning of the next batch.

use std::time::Duration;

use tokio::time::Instant;

/// Weight of the newest block in the prediction.
const LEARNING_RATE: f64 = 0.3;
/// Bounds of the predicted ratio of encoded to payload bytes: one odd block must not make batches of one record, or of
/// the whole memory.
const RATIO_RANGE: (f64, f64) = (0.02, 8.0);
/// Prediction before the first block: columns are seldom larger than the JSON that they came from.
const FIRST_RATIO: f64 = 1.0;

/// Where a batch is to be whole, this part of it is taken beyond its predicted size.
const SPARE_PART: u64 = 4;

/// What waits to be put into a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Queued {
    /// Kinesis records.
    pub records: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// When the oldest of the records came; `None` if there is no record.
    pub since: Option<Instant>,
}

/// Bounds of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Rows, with rejected records.
    pub rows: u64,
    /// Bytes of encoded block.
    pub bytes: u64,
    /// Time since the first record.
    pub wait: Duration,
}

/// When to close a batch.
#[derive(Debug, Clone)]
pub struct Rules {
    limits: Limits,
    ratio: f64,
}

impl Rules {
    /// Rules with these bounds.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ratio: FIRST_RATIO,
        }
    }

    /// The bounds change; what was learnt of the records stays.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The bounds.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether to cut a batch now.
    pub fn is_due(&self, queued: &Queued, now: Instant) -> bool {
        queued.records >= self.limits.rows
            || self.predicted(queued.bytes) >= self.limits.bytes
            || self.deadline(queued).is_some_and(|deadline| deadline <= now)
    }

    /// Whether this surely makes a whole batch, though the prediction be somewhat wrong.
    pub fn is_plenty(&self, queued: &Queued) -> bool {
        let spare = (self.limits.bytes / SPARE_PART).saturating_add(self.limits.bytes);
        queued.records >= self.limits.rows || self.predicted(queued.bytes) >= spare
    }

    /// When a batch will be cut if nothing else comes.
    pub fn deadline(&self, queued: &Queued) -> Option<Instant> {
        queued.since.map(|since| since + self.limits.wait)
    }

    /// Whether what is in the block already makes a whole batch.
    pub fn is_full(&self, rows: u64, encoded_bytes: u64) -> bool {
        rows >= self.limits.rows || encoded_bytes >= self.limits.bytes
    }

    /// A block came out of so many payload bytes.
    pub fn learn(&mut self, payload_bytes: u64, encoded_bytes: u64) {
        if payload_bytes == 0 {
            return;
        }
        let measured = encoded_bytes as f64 / payload_bytes as f64;
        let (least, most) = RATIO_RANGE;
        self.ratio = (self.ratio + LEARNING_RATE * (measured - self.ratio)).clamp(least, most);
    }

    fn predicted(&self, payload_bytes: u64) -> u64 {
        (payload_bytes as f64 * self.ratio) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        rows: 100,
        bytes: 1_000,
        wait: Duration::from_secs(5),
    };

    fn queued(records: u64, bytes: u64, since: Option<Instant>) -> Queued {
        Queued { records, bytes, since }
    }

    #[tokio::test(start_paused = true)]
    async fn each_bound_alone_closes_a_batch() {
        let rules = Rules::new(LIMITS);
        let now = Instant::now();
        assert!(!rules.is_due(&queued(99, 999, Some(now)), now));
        assert!(rules.is_due(&queued(100, 100, Some(now)), now), "rows");
        assert!(rules.is_due(&queued(1, 1_000, Some(now)), now), "bytes");
        assert!(!rules.is_due(&queued(1, 1, Some(now)), now + Duration::from_millis(4_999)));
        assert!(rules.is_due(&queued(1, 1, Some(now)), now + LIMITS.wait), "wait");
        assert_eq!(rules.deadline(&queued(1, 1, Some(now))), Some(now + LIMITS.wait));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_queued_never_makes_a_batch() {
        let rules = Rules::new(LIMITS);
        assert!(!rules.is_due(&Queued::default(), Instant::now() + Duration::from_secs(3600)));
        assert_eq!(rules.deadline(&Queued::default()), None);
    }

    #[test]
    fn plenty_is_more_than_a_batch_by_its_prediction() {
        let rules = Rules::new(LIMITS);
        assert!(!rules.is_plenty(&queued(99, 1_249, None)));
        assert!(rules.is_plenty(&queued(100, 1, None)) && rules.is_plenty(&queued(1, 1_250, None)));
        assert!(
            !Rules::new(Limits {
                bytes: u64::MAX,
                ..LIMITS
            })
            .is_plenty(&queued(99, 1 << 40, None))
        );
    }

    #[test]
    fn the_block_is_closed_on_what_it_holds() {
        let rules = Rules::new(LIMITS);
        assert!(!rules.is_full(99, 999));
        assert!(rules.is_full(100, 0));
        assert!(rules.is_full(0, 1_000));
    }

    #[tokio::test(start_paused = true)]
    async fn the_prediction_follows_the_blocks() {
        let (mut rules, now) = (Rules::new(LIMITS), Instant::now());
        for _ in 0..20 {
            rules.learn(1_000, 100);
        }
        assert!(!rules.is_due(&queued(1, 9_000, Some(now)), now));
        assert!(rules.is_due(&queued(1, 11_000, Some(now)), now));
        for _ in 0..100 {
            rules.learn(1, u64::MAX);
        }
        assert!(
            !rules.is_due(&queued(1, 100, Some(now)), now),
            "an odd block cannot make batches of one record"
        );
        rules.learn(0, 5);
    }
}

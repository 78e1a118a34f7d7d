//! Records that were read and are not yet in a batch, by shard, in order.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    vec,
};

use millrace_common::{
    ids::{SequenceNumber, ShardId},
    position::Position,
};
use tokio::time::Instant;

use crate::{
    batch::cut::Queued,
    source::{Page, Permit, Record},
};

/// What is left of a page.
#[derive(Debug)]
pub(super) struct Pending {
    /// Records that are not yet in a batch.
    pub records: vec::IntoIter<Record>,
    /// Where the page ends: where its slice ends once all of its records are in a batch.
    pub last: SequenceNumber,
    /// Memory of the page; a part of it may be in a batch already.
    pub permit: Arc<Permit>,
    /// When it came.
    pub came: Instant,
}

impl Pending {
    fn bytes(&self) -> u64 {
        self.records
            .as_slice()
            .iter()
            .map(|record| record.data().len() as u64)
            .sum()
    }
}

/// Consecutive pages of one shard.
#[derive(Debug)]
pub(super) struct Run {
    /// The shard.
    pub shard: ShardId,
    /// The place before the first record.
    pub from: Position,
    /// The pages.
    pub pages: VecDeque<Pending>,
}

/// What waits to be put into a batch.
#[derive(Debug, Default)]
pub(super) struct Queue {
    shards: BTreeMap<ShardId, VecDeque<Pending>>,
    records: u64,
    bytes: u64,
}

impl Queue {
    /// Nothing.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Puts a page behind what is there of its shard. A page without records is nothing to put into a batch.
    pub(super) fn push(&mut self, page: Page, came: Instant) {
        let Some(last) = page.last.filter(|_| !page.records.is_empty()) else {
            return;
        };
        let records = page.records.into_iter();
        self.append(
            page.shard,
            Pending {
                records,
                last,
                permit: Arc::new(page.permit),
                came,
            },
        );
    }

    fn append(&mut self, shard: ShardId, page: Pending) {
        self.records += page.records.len() as u64;
        self.bytes += page.bytes();
        self.shards.entry(shard).or_default().push_back(page);
    }

    /// Puts what a batch has left over before what is there of its shards.
    pub(super) fn put_back(&mut self, runs: Vec<Run>) {
        for run in runs {
            let newer = self.shards.remove(&run.shard).unwrap_or_default();
            self.records += run.pages.iter().map(|page| page.records.len() as u64).sum::<u64>();
            self.bytes += run.pages.iter().map(Pending::bytes).sum::<u64>();
            let mut pages = run.pages;
            pages.extend(newer);
            if !pages.is_empty() {
                self.shards.insert(run.shard, pages);
            }
        }
    }

    /// Takes everything, the shard that has waited longest first. `from` tells where each shard stands.
    pub(super) fn take(&mut self, from: impl Fn(&ShardId) -> Option<Position>) -> Vec<Run> {
        (self.records, self.bytes) = (0, 0);
        let shards = std::mem::take(&mut self.shards).into_iter();
        let mut runs: Vec<_> = shards
            .filter_map(|(shard, pages)| {
                Some(Run {
                    from: from(&shard)?,
                    shard,
                    pages,
                })
            })
            .collect();
        runs.sort_by_key(|run| run.pages.front().map(|page| page.came));
        runs
    }

    /// Drops what is there of a shard.
    pub(super) fn remove(&mut self, shard: &ShardId) {
        for page in self.shards.remove(shard).unwrap_or_default() {
            self.records -= page.records.len() as u64;
            self.bytes -= page.bytes();
        }
    }

    /// Whether there is something of this shard.
    pub(super) fn holds(&self, shard: &ShardId) -> bool {
        self.shards.contains_key(shard)
    }

    /// How much there is.
    pub(super) fn queued(&self) -> Queued {
        let since = self
            .shards
            .values()
            .filter_map(|pages| pages.front())
            .map(|page| page.came)
            .min();
        Queued {
            records: self.records,
            bytes: self.bytes,
            since,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;

    use super::*;
    use crate::source::Budget;

    fn shard(n: u8) -> ShardId {
        format!("shardId-{n}").parse().expect("a shard id")
    }

    fn number(n: u64) -> SequenceNumber {
        n.to_string().parse().expect("a sequence number")
    }

    fn page(budget: &Arc<Budget>, of: u8, numbers: &[u64]) -> Page {
        let record = |n: &u64| Record::new(&number(*n), "k", 0, &[b'x'; 10]);
        let permit = budget
            .acquire(numbers.len() * 10)
            .now_or_never()
            .expect("a large budget");
        Page {
            shard: shard(of),
            records: numbers.iter().map(record).collect(),
            last: numbers.last().map(|n| number(*n)),
            lag: None,
            end: None,
            complete_until: None,
            permit,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_over_comes_first_again() {
        let (budget, now) = (Budget::new(1_000), Instant::now());
        let mut queue = Queue::new();
        queue.push(page(&budget, 1, &[1, 2]), now + Duration::from_secs(1));
        queue.push(page(&budget, 0, &[5, 6]), now + Duration::from_secs(2));
        assert_eq!(
            queue.queued(),
            Queued {
                records: 4,
                bytes: 40,
                since: Some(now + Duration::from_secs(1))
            }
        );

        let mut runs = queue.take(|_| Some(Position::TrimHorizon));
        assert_eq!(
            runs.iter().map(|run| run.shard.clone()).collect::<Vec<_>>(),
            [shard(1), shard(0)]
        );
        assert_eq!(queue.queued(), Queued::default());
        // One record goes into a batch; another page comes meanwhile.
        runs[0].pages[0].records.next();
        queue.push(page(&budget, 1, &[3]), now + Duration::from_secs(3));
        queue.put_back(runs);
        assert_eq!(
            queue.queued(),
            Queued {
                records: 4,
                bytes: 40,
                since: Some(now + Duration::from_secs(1))
            }
        );
        let runs = queue.take(|_| Some(Position::TrimHorizon));
        let numbers = |run: &Run| -> Vec<String> {
            let records = run.pages.iter().flat_map(|page| page.records.as_slice());
            records.map(|record| record.sequence_number().to_string()).collect()
        };
        assert_eq!(
            (numbers(&runs[0]), numbers(&runs[1])),
            (vec!["2".into(), "3".into()], vec!["5".into(), "6".into()])
        );
        drop(runs);
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_a_shard_gives_its_memory_back() {
        let (budget, now) = (Budget::new(1_000), Instant::now());
        let mut queue = Queue::new();
        queue.push(page(&budget, 0, &[1]), now);
        queue.push(page(&budget, 1, &[1, 2, 3]), now);
        queue.push(page(&budget, 2, &[]), now);
        assert!(queue.holds(&shard(1)) && !queue.holds(&shard(2)));
        queue.remove(&shard(1));
        assert_eq!(
            (queue.queued().records, queue.queued().bytes, budget.held()),
            (1, 10, 10)
        );
    }
}

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
    source::{HashKeyRange, Page, Permit, Record},
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
    /// Hash keys of its shard. Set if any of the records is an aggregate.
    pub hash_keys: Option<HashKeyRange>,
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

/// What waits of one shard.
#[derive(Debug, Default)]
struct Waiting {
    pages: VecDeque<Pending>,
    records: u64,
    bytes: u64,
}

impl Waiting {
    fn push(&mut self, page: Pending) {
        self.records += page.records.len() as u64;
        self.bytes += page.bytes();
        self.pages.push_back(page);
    }

    fn since(&self) -> Option<Instant> {
        self.pages.front().map(|page| page.came)
    }
}

/// What waits to be put into a batch.
#[derive(Debug, Default)]
pub(super) struct Queue {
    shards: BTreeMap<ShardId, Waiting>,
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
        self.shards.entry(page.shard).or_default().push(Pending {
            records,
            last,
            permit: Arc::new(page.permit),
            hash_keys: page.hash_keys,
            came,
        });
    }

    /// Puts what a batch has left over before what is there of its shards.
    pub(super) fn put_back(&mut self, runs: Vec<Run>) {
        for run in runs {
            let newer = self.shards.remove(&run.shard).unwrap_or_default();
            let mut waiting = Waiting::default();
            run.pages.into_iter().for_each(|page| waiting.push(page));
            waiting.records += newer.records;
            waiting.bytes += newer.bytes;
            waiting.pages.extend(newer.pages);
            if !waiting.pages.is_empty() {
                self.shards.insert(run.shard, waiting);
            }
        }
    }

    /// Takes all of a shard, shard after shard, the one that has waited longest first, until what was taken is enough.
    /// `from` tells where a shard stands; one without a place is left where it is.
    pub(super) fn take(
        &mut self,
        from: impl Fn(&ShardId) -> Option<Position>,
        is_enough: impl Fn(&Queued) -> bool,
    ) -> Vec<Run> {
        let places = self.shards.iter().filter_map(|(shard, waiting)| {
            let from = from(shard)?;
            Some((waiting.since(), shard.clone(), from))
        });
        let mut places: Vec<_> = places.collect();
        // Stable, so that of shards that have waited equally long the first by name comes first.
        places.sort_by_key(|(since, ..)| *since);
        let (mut taken, mut runs) = (Queued::default(), Vec::new());
        for (since, shard, from) in places {
            if !runs.is_empty() && is_enough(&taken) {
                break;
            }
            let waiting = self.shards.remove(&shard).unwrap_or_default();
            taken.records += waiting.records;
            taken.bytes += waiting.bytes;
            taken.since = taken.since.or(since);
            let pages = waiting.pages;
            runs.push(Run { shard, from, pages });
        }
        runs
    }

    /// Drops what is there of a shard.
    pub(super) fn remove(&mut self, shard: &ShardId) {
        self.shards.remove(shard);
    }

    /// Whether there is something of this shard.
    pub(super) fn holds(&self, shard: &ShardId) -> bool {
        self.shards.contains_key(shard)
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }

    /// How much there is of these shards.
    pub(super) fn queued(&self, of: impl Fn(&ShardId) -> bool) -> Queued {
        let shards = self.shards.iter().filter(|(shard, _)| of(shard));
        shards.fold(Queued::default(), |sum, (_, waiting)| Queued {
            records: sum.records + waiting.records,
            bytes: sum.bytes + waiting.bytes,
            since: [sum.since, waiting.since()].into_iter().flatten().min(),
        })
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
            hash_keys: None,
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
            queue.queued(|_| true),
            Queued {
                records: 4,
                bytes: 40,
                since: Some(now + Duration::from_secs(1))
            }
        );

        let mut runs = queue.take(|_| Some(Position::TrimHorizon), |_| false);
        assert_eq!(
            runs.iter().map(|run| run.shard.clone()).collect::<Vec<_>>(),
            [shard(1), shard(0)]
        );
        assert_eq!(queue.queued(|_| true), Queued::default());
        // One record goes into a batch; another page comes meanwhile.
        runs[0].pages[0].records.next();
        queue.push(page(&budget, 1, &[3]), now + Duration::from_secs(3));
        queue.put_back(runs);
        assert_eq!(
            queue.queued(|_| true),
            Queued {
                records: 4,
                bytes: 40,
                since: Some(now + Duration::from_secs(1))
            }
        );
        let runs = queue.take(|_| Some(Position::TrimHorizon), |_| false);
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
    async fn no_more_is_taken_than_is_enough_and_nothing_of_a_shard_without_a_place() {
        let (budget, now) = (Budget::new(1_000), Instant::now());
        let mut queue = Queue::new();
        for (of, wait) in [(0, 4), (1, 3), (2, 2), (3, 1)] {
            queue.push(page(&budget, of, &[1, 2]), now + Duration::from_secs(wait));
        }
        let place = |id: &ShardId| (*id != shard(3)).then_some(Position::TrimHorizon);
        let runs = queue.take(place, |taken| taken.records >= 3 && taken.bytes >= 30);
        let shards: Vec<_> = runs.iter().map(|run| run.shard.clone()).collect();
        assert_eq!(shards, [shard(2), shard(1)]);
        let left = queue.queued(|id| *id == shard(0));
        assert_eq!(
            (left.records, left.bytes, left.since),
            (2, 20, Some(now + Duration::from_secs(4)))
        );
        assert_eq!(queue.queued(|_| true).records, 4);
        // However much one shard has, it is taken whole.
        assert_eq!(queue.take(place, |_| true).len(), 1);
        assert!(queue.holds(&shard(3)) && !queue.holds(&shard(0)));
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
            (
                queue.queued(|_| true).records,
                queue.queued(|_| true).bytes,
                budget.held()
            ),
            (1, 10, 10)
        );
    }
}

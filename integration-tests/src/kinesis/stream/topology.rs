//! The shards of a stream: which hash keys each takes, and which descends from which.
//!
//! Invariants: the open shards cover the hash key space without hole or overlap; a shard has at most two parents, all
//! closed; a child's numbers stand above its parents'. Not here: whether a change is allowed, and when.

use std::sync::Arc;

use super::super::hash_key::HashKeyRange;
use super::super::shard::{self, Shard};

/// All shards there ever were, and the open ones.
#[derive(Debug)]
pub(in super::super) struct Topology {
    /// By number.
    shards: Vec<Arc<Shard>>,
    /// By hash key.
    open: Vec<Arc<Shard>>,
}

impl Topology {
    /// `count` shards of equal width. `epoch_s` is the second that their sequence numbers carry.
    pub(super) fn uniform(count: u32, epoch_s: u64, now_ms: i64) -> Self {
        let mut topology = Self {
            shards: Vec::new(),
            open: Vec::new(),
        };
        for range in HashKeyRange::uniform(count) {
            topology.open_shard(range, (None, None), epoch_s, now_ms);
        }
        topology
    }

    /// All shards in the order of their numbers.
    pub(super) fn all(&self) -> &[Arc<Shard>] {
        &self.shards
    }

    /// The open shards in the order of their hash keys.
    pub(super) fn open(&self) -> &[Arc<Shard>] {
        &self.open
    }

    pub(super) fn get(&self, index: u32) -> Option<&Arc<Shard>> {
        self.shards.get(index as usize)
    }

    /// The open shard whose range holds `hash`: there always is one.
    pub(super) fn route(&self, hash: u128) -> &Shard {
        let after = self.open.partition_point(|shard| shard.range.start_inclusive <= hash);
        &self.open[after.saturating_sub(1)]
    }

    pub(super) fn children(&self, index: u32) -> Vec<Arc<Shard>> {
        let is_child = |shard: &&Arc<Shard>| shard.parent == Some(index) || shard.adjacent_parent == Some(index);
        self.shards.iter().filter(is_child).cloned().collect()
    }

    /// Closes `parents` (one or two, open) and opens their children over `ranges`, which cover the same hash keys.
    pub(super) fn replace(&mut self, parents: &[u32], ranges: &[HashKeyRange], now_ms: i64) {
        let mut epoch_s = shard::seconds(now_ms);
        for &parent in parents {
            let shard = &self.shards[parent as usize];
            shard.close(now_ms);
            epoch_s = epoch_s.max(shard.epoch_s + 1);
        }
        self.open.retain(|shard| !parents.contains(&shard.index));
        let lineage = (parents.first().copied(), parents.get(1).copied());
        for &range in ranges {
            self.open_shard(range, lineage, epoch_s, now_ms);
        }
    }

    /// Splits and merges until there are `count` open shards of equal width.
    ///
    /// A shard has at most two parents, so this is a chain: first a cut wherever a new range begins, then merges until
    /// each new range is one shard. The shards between are opened and closed at once.
    pub(super) fn make_uniform(&mut self, count: u32, now_ms: i64) {
        let ranges: Vec<_> = HashKeyRange::uniform(count).collect();
        for range in &ranges {
            let shard = self.route(range.start_inclusive);
            let index = shard.index;
            if let Some((left, right)) = shard.range.cut_at(range.start_inclusive) {
                self.replace(&[index], &[left, right], now_ms);
            }
        }
        for range in &ranges {
            while let Some((parents, joined)) = self.first_pair_within(*range) {
                self.replace(&parents, &[joined], now_ms);
            }
        }
    }

    /// The first two open shards of `range`, and what they cover together; `None` where it is one shard.
    fn first_pair_within(&self, range: HashKeyRange) -> Option<([u32; 2], HashKeyRange)> {
        let first = self
            .open
            .partition_point(|shard| shard.range.start_inclusive < range.start_inclusive);
        let [left, right, ..] = &self.open[first..] else {
            return None;
        };
        let joined = left.range.join(right.range)?;
        (joined.end_inclusive <= range.end_inclusive).then_some(([left.index, right.index], joined))
    }

    fn open_shard(&mut self, range: HashKeyRange, parents: (Option<u32>, Option<u32>), epoch_s: u64, now_ms: i64) {
        let index = self.shards.len() as u32;
        let shard = Arc::new(Shard::open(index, range, parents, epoch_s, now_ms));
        let place = self
            .open
            .partition_point(|other| other.range.start_inclusive < range.start_inclusive);
        self.open.insert(place, Arc::clone(&shard));
        self.shards.push(shard);
    }
}

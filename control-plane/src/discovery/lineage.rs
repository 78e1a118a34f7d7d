//! Which shards a pipe starts with, and which of a later listing are new to it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use millrace_common::{ids::ShardId, pipe::StartPosition, position::Position};

use super::Shard;
use crate::store::NewShard;

/// The shards that a new pipe starts with. LATEST becomes a time here, once: asked for again it would mean another place.
/// Parents that are not among the pipe's shards are past and hold up nothing.
#[must_use]
pub fn first(start: StartPosition, listing: &[Shard], now: Timestamp) -> Vec<NewShard> {
    let (taken, position): (Vec<&Shard>, Position) = match start {
        StartPosition::TrimHorizon => (listing.iter().collect(), Position::TrimHorizon),
        StartPosition::AtTimestamp(time) => (listing.iter().collect(), Position::AtTimestamp(time)),
        StartPosition::Latest => (
            listing.iter().filter(|shard| shard.open).collect(),
            Position::AtTimestamp(now),
        ),
    };
    let ids: BTreeSet<&ShardId> = taken.iter().map(|shard| &shard.id).collect();
    let new = |shard: &&Shard| NewShard {
        id: shard.id.clone(),
        parents: shard
            .parents
            .iter()
            .filter(|parent| ids.contains(parent))
            .cloned()
            .collect(),
        start: position.clone(),
    };
    taken.iter().map(new).collect()
}

/// The shards of a later listing that the pipe does not know yet. They are read from their beginning, because they began
/// after the pipe did.
///
/// For a pipe that began at LATEST a listing also holds shards from before its start, which left closed ones out. Those are
/// the ancestors of the ones it knows that do not descend from one it knows themselves: whatever else is unknown has come
/// since. (Of a shard that was split, one half may be known through a merge that it took part in, while the other half is
/// not known yet.) Any other pipe has taken all that was listed when it began, so that whatever it does not know is new.
#[must_use]
pub fn later(start: StartPosition, known: &BTreeSet<ShardId>, listing: &[Shard]) -> Vec<NewShard> {
    let listed: BTreeMap<&ShardId, &Shard> = listing.iter().map(|shard| (&shard.id, shard)).collect();
    let mut past: BTreeSet<&ShardId> = BTreeSet::new();
    let mut queue: Vec<&Shard> = known.iter().filter_map(|id| listed.get(id).copied()).collect();
    if start != StartPosition::Latest {
        queue.clear();
    }
    while let Some(shard) = queue.pop() {
        for parent in &shard.parents {
            if !known.contains(parent) && past.insert(parent) {
                queue.extend(listed.get(parent).copied());
            }
        }
    }
    past.retain(|id| !descends_from(known, id, &listed));
    let new: Vec<&Shard> = listing
        .iter()
        .filter(|shard| !known.contains(&shard.id) && !past.contains(&shard.id))
        .collect();
    let ids: BTreeSet<&ShardId> = new.iter().map(|shard| &shard.id).collect();
    new.iter()
        .map(|shard| NewShard {
            id: shard.id.clone(),
            parents: shard
                .parents
                .iter()
                .filter(|parent| known.contains(*parent) || ids.contains(parent))
                .cloned()
                .collect(),
            start: Position::TrimHorizon,
        })
        .collect()
}

/// Whether one of the ancestors that the listing names is known.
fn descends_from(known: &BTreeSet<ShardId>, id: &ShardId, listed: &BTreeMap<&ShardId, &Shard>) -> bool {
    let mut seen: BTreeSet<&ShardId> = BTreeSet::new();
    let mut queue: Vec<&Shard> = listed.get(id).copied().into_iter().collect();
    while let Some(shard) = queue.pop() {
        for parent in &shard.parents {
            if known.contains(parent) {
                return true;
            }
            if seen.insert(parent) {
                queue.extend(listed.get(parent).copied());
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> ShardId {
        format!("shardId-{number:012}").parse().unwrap()
    }

    fn shard(number: usize, parents: &[usize], open: bool) -> Shard {
        Shard {
            hash_keys: None,
            id: id(number),
            parents: parents.iter().map(|parent| id(*parent)).collect(),
            open,
        }
    }

    /// 0 was split into 1 and 2; 1 and 2 were merged into 3; 3 was split into 4 and 5.
    fn listing() -> Vec<Shard> {
        vec![
            shard(0, &[], false),
            shard(1, &[0], false),
            shard(2, &[0], false),
            shard(3, &[1, 2], false),
            shard(4, &[3], true),
            shard(5, &[3], true),
        ]
    }

    fn ids(shards: &[NewShard]) -> Vec<ShardId> {
        shards.iter().map(|shard| shard.id.clone()).collect()
    }

    fn known(numbers: &[usize]) -> BTreeSet<ShardId> {
        numbers.iter().map(|number| id(*number)).collect()
    }

    #[test]
    fn trim_horizon_and_a_time_take_all() {
        let now = Timestamp::from_second(1_000).unwrap();
        let all = first(StartPosition::TrimHorizon, &listing(), now);
        assert_eq!(all.len(), 6);
        assert_eq!(all[3].parents, [id(1), id(2)]);
        assert!(all.iter().all(|shard| shard.start == Position::TrimHorizon));
        let time = Timestamp::from_second(5).unwrap();
        let all = first(StartPosition::AtTimestamp(time), &listing(), now);
        assert!(all.len() == 6 && all.iter().all(|shard| shard.start == Position::AtTimestamp(time)));
    }

    #[test]
    fn latest_takes_the_open_ones_from_now_on() {
        let now = Timestamp::from_second(1_000).unwrap();
        let open = first(StartPosition::Latest, &listing(), now);
        assert_eq!(ids(&open), [id(4), id(5)]);
        assert!(
            open.iter()
                .all(|shard| shard.start == Position::AtTimestamp(now) && shard.parents.is_empty())
        );
    }

    #[test]
    fn what_was_before_latest_stays_out() {
        assert_eq!(later(StartPosition::Latest, &known(&[4, 5]), &listing()), []);
    }

    #[test]
    fn what_came_since_is_read_from_its_beginning() {
        // The pipe began at LATEST when only 1 and 2 were open.
        let new = later(StartPosition::Latest, &known(&[1, 2]), &listing());
        assert_eq!(ids(&new), [id(3), id(4), id(5)]);
        assert_eq!(new[0].parents, [id(1), id(2)]);
        assert!(new.iter().all(|shard| shard.start == Position::TrimHorizon));
    }

    #[test]
    fn the_other_half_of_a_split_is_not_past() {
        // 0 is still read. It was split into 1 and 2; 2 was merged with 3 into 4, which the end of 3 told of.
        let listing = vec![
            shard(0, &[], false),
            shard(1, &[0], true),
            shard(2, &[0], false),
            shard(3, &[], false),
            shard(4, &[2, 3], true),
        ];
        let new = later(StartPosition::Latest, &known(&[0, 3, 4]), &listing);
        assert_eq!(ids(&new), [id(1), id(2)]);
    }

    #[test]
    fn a_gap_in_the_lineage_is_bridged() {
        // The pipe knew 1 and 2, and was away until they and 3 had expired.
        let listing = vec![shard(4, &[3], true), shard(5, &[3], true)];
        let new = later(StartPosition::Latest, &known(&[1, 2]), &listing);
        assert_eq!(ids(&new), [id(4), id(5)]);
        assert!(new.iter().all(|shard| shard.parents.is_empty()));
    }

    #[test]
    fn a_pipe_that_began_at_the_horizon_has_left_nothing_out() {
        // While the pipe was stopped 0 was split into 1, then 1 into 2, and 0 and 1 have expired; 2 was merged with 3 into
        // 4, which the end of 3 told of. Nothing that is listed leads from 2 back to what is known.
        let listing = vec![shard(2, &[1], false), shard(3, &[], false), shard(4, &[2, 3], true)];
        let new = later(StartPosition::TrimHorizon, &known(&[0, 3, 4]), &listing);
        assert_eq!(ids(&new), [id(2)]);
    }

    #[test]
    fn nothing_new_is_nothing() {
        assert_eq!(
            later(StartPosition::Latest, &known(&[0, 1, 2, 3, 4, 5]), &listing()),
            []
        );
        assert_eq!(later(StartPosition::Latest, &known(&[0]), &[]), []);
    }
}

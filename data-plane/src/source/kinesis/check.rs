//! Whether an answer of GetRecords can be one: its order, what of it is new, where it ends. Pure.

use millrace_common::ids::{SequenceNumber, ShardId};

use super::client::Child;
use crate::source::{ChildShard, Record, ShardEnd};

/// Records of an answer that are new.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fresh {
    /// Strictly ascending, and after the position.
    pub(super) records: Vec<Record>,
    /// Records that were there twice, or at or before the position.
    pub(super) duplicates: u64,
    /// The last record of the replay is among them; what followed was cut off.
    pub(super) reached_until: bool,
}

/// Why records cannot be taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// Not in order: taking some and going on would lose the others.
    Disorder {
        /// The record.
        record: SequenceNumber,
        /// It came after this one.
        after: SequenceNumber,
    },
    /// The last record of the replay should have come before this one.
    Beyond(SequenceNumber),
}

/// Picks what is new out of `records`.
pub(super) fn fresh(
    records: Vec<Record>,
    position: Option<&SequenceNumber>,
    until: Option<&SequenceNumber>,
) -> Result<Fresh, Problem> {
    let mut fresh = Fresh {
        records: Vec::with_capacity(records.len()),
        duplicates: 0,
        reached_until: false,
    };
    for record in records {
        let number = record.digits();
        let compare = |other: &SequenceNumber| SequenceNumber::compare(number, other.as_bytes());
        if position.is_some_and(|position| compare(position).is_le()) {
            fresh.duplicates += 1;
            continue;
        }
        if let Some(last) = fresh.records.last()
            && SequenceNumber::compare(number, last.digits()).is_le()
        {
            if fresh
                .records
                .binary_search_by(|kept: &Record| SequenceNumber::compare(kept.digits(), number))
                .is_ok()
            {
                fresh.duplicates += 1;
                continue;
            }
            return Err(Problem::Disorder {
                record: record.sequence_number(),
                after: last.sequence_number(),
            });
        }
        if until.is_some_and(|until| compare(until).is_gt()) {
            return Err(Problem::Beyond(record.sequence_number()));
        }
        fresh.reached_until = until.is_some_and(|until| until.as_bytes() == number);
        fresh.records.push(record);
        if fresh.reached_until {
            break;
        }
    }
    Ok(fresh)
}

/// The end of the shard, if the answer is one.
///
/// # Errors
/// If the answer says both that the shard goes on and that it ended, or neither.
pub(super) fn end(
    shard: &ShardId,
    next_iterator: Option<&str>,
    children: Option<&[Child]>,
) -> Result<Option<ShardEnd>, String> {
    let children = children.unwrap_or_default();
    match (next_iterator, children) {
        (Some(_), []) => Ok(None),
        (Some(_), _) => Err("children although the shard goes on".to_owned()),
        (None, []) => Err("neither a next iterator nor children".to_owned()),
        (None, children) => {
            let children = children
                .iter()
                .map(|child| well_formed(shard, child))
                .collect::<Result<_, _>>()?;
            Ok(Some(ShardEnd { children }))
        }
    }
}

fn well_formed(shard: &ShardId, child: &Child) -> Result<ChildShard, String> {
    let parse = |text: &String| {
        text.parse::<ShardId>()
            .map_err(|error| format!("a child of the shard: {error}"))
    };
    let id = parse(&child.id)?;
    let parents = child.parents.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    if id == *shard || parents.contains(&id) {
        return Err(format!("{id} as its own parent"));
    }
    if !parents.contains(shard) {
        return Err(format!("a child, {id}, of other shards"));
    }
    Ok(ChildShard { id, parents })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> SequenceNumber {
        text.parse().unwrap()
    }

    fn records(numbers: &[&str]) -> Vec<Record> {
        let record = |text: &&str| Record::new(&number(text), "k", 0, b"");
        numbers.iter().map(record).collect()
    }

    fn picked(
        numbers: &[&str],
        position: Option<&str>,
        until: Option<&str>,
    ) -> Result<(Vec<String>, u64, bool), Problem> {
        let (position, until) = (position.map(number), until.map(number));
        let fresh = fresh(records(numbers), position.as_ref(), until.as_ref())?;
        let numbers = fresh
            .records
            .iter()
            .map(|record| record.sequence_number().to_string())
            .collect();
        Ok((numbers, fresh.duplicates, fresh.reached_until))
    }

    fn taken(numbers: &[&str], duplicates: u64, reached: bool) -> Result<(Vec<String>, u64, bool), Problem> {
        Ok((
            numbers.iter().map(|text| (*text).to_owned()).collect(),
            duplicates,
            reached,
        ))
    }

    #[test]
    fn order_is_numeric() {
        assert_eq!(
            picked(&["9", "10", "11"], None, None),
            taken(&["9", "10", "11"], 0, false)
        );
    }

    #[test]
    fn records_at_or_before_the_position_are_dropped() {
        assert_eq!(picked(&["8", "9", "10"], Some("9"), None), taken(&["10"], 2, false));
    }

    #[test]
    fn repeated_records_are_dropped_and_disorder_is_refused() {
        assert_eq!(
            picked(&["1", "2", "2", "1", "3"], None, None),
            taken(&["1", "2", "3"], 2, false)
        );
        let disorder = Problem::Disorder {
            record: number("2"),
            after: number("3"),
        };
        assert_eq!(picked(&["1", "3", "2"], None, None), Err(disorder));
    }

    #[test]
    fn a_replay_stops_exactly_at_its_last_record() {
        assert_eq!(picked(&["1", "2", "3"], None, Some("2")), taken(&["1", "2"], 0, true));
        assert_eq!(picked(&["1", "2"], None, Some("3")), taken(&["1", "2"], 0, false));
        assert_eq!(picked(&["1", "4"], None, Some("3")), Err(Problem::Beyond(number("4"))));
        assert_eq!(picked(&[], None, Some("3")), taken(&[], 0, false));
    }

    fn child(id: &str, parents: &[&str]) -> Child {
        Child {
            id: id.to_owned(),
            parents: parents.iter().map(|id| (*id).to_owned()).collect(),
        }
    }

    #[test]
    fn a_shard_ends_only_without_iterator_and_with_children() {
        let shard: ShardId = "shardId-000000000001".parse().unwrap();
        let (me, other) = (shard.as_str(), "shardId-000000000000");
        let split = [
            child("shardId-000000000002", &[me]),
            child("shardId-000000000003", &[me]),
        ];
        let merge = [child("shardId-000000000002", &[other, me])];
        assert_eq!(end(&shard, Some("it"), None), Ok(None));
        assert_eq!(end(&shard, Some("it"), Some(&[])), Ok(None));
        assert_eq!(end(&shard, None, Some(&split)).unwrap().unwrap().children.len(), 2);
        assert_eq!(
            end(&shard, None, Some(&merge)).unwrap().unwrap().children[0]
                .parents
                .len(),
            2
        );
        assert!(end(&shard, None, None).is_err());
        assert!(end(&shard, None, Some(&[])).is_err());
        assert!(end(&shard, Some("it"), Some(&split)).is_err());
        assert!(end(&shard, None, Some(&[child("not a shard", &[me])])).is_err());
        assert!(end(&shard, None, Some(&[child("shardId-000000000002", &[])])).is_err());
        assert!(end(&shard, None, Some(&[child("shardId-000000000002", &[other])])).is_err());
        assert!(end(&shard, None, Some(&[child(me, &[me])])).is_err());
    }
}

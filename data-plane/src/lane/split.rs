//! Making a batch that ClickHouse refuses smaller: two halves, cut between two records, or, of a single record that the server
//! does not take, one batch that puts it into the error table.
//!
//! The records are read again, exactly the slices, as for a replay. Halving goes on until what is refused is single
//! records: so one bad record among n costs about 2 log2(n) inserts, and what is good lands on the way.
//!
//! A batch that was made for a table as it is no more is not made smaller: one batch of the same records takes its place,
//! encoded for a newer revision of the pipe.
//!
//! Records that are read again take the place of the blocks that were refused, whose memory pays for them until the last part is committed.

use std::{collections::VecDeque, sync::Arc};

use millrace_common::{
    batch::Terms,
    gap::DataGap,
    ids::{BatchId, PipeUid, ShardId},
    position::Position,
};
use tokio::task;

use super::{
    build::{FORMAT, Job, build},
    fault::Faults,
    queue::{Pending, Run},
    recipe::Recipe,
    replay::{Means, Pay, read_again},
};
use crate::commit::{Built, Cause, Committer, Prepared, Refused};

/// Most of ClickHouse's words that go with a condemned record.
const MAX_WORDS: usize = 1_000;

/// What came of it.
#[derive(Debug)]
pub(super) enum Split {
    /// These are recorded in its place, in this order.
    Parts(Vec<Prepared>),
    /// Its records are gone from this shard.
    Gone(ShardId, DataGap),
}

/// Puts smaller batches in the place of a refused one. Does not return while its records cannot be read, unless they are
/// gone.
///
/// # Errors
/// Why it cannot be done: the lease is gone, or the records are not what they were.
pub(super) async fn split(
    pipe: PipeUid,
    recipe: Arc<Recipe>,
    mut refused: Refused,
    committer: Committer,
    faults: Faults,
    means: Means,
) -> Result<Split, String> {
    let batch = refused.claim().batch.clone();
    refused.forget_blocks();
    let mut runs = match read_again(&recipe, &batch, &faults, &means, Pay::WithTheBatch).await {
        Ok((runs, _)) => runs,
        Err((shard, gap)) => return Ok(Split::Gone(shard, gap)),
    };
    let records: usize = runs.iter().map(records).sum();
    if records as u64 != batch.counts.records {
        let counted = batch.counts.records;
        return Err(format!(
            "the slices of batch {} hold {records} records, not {counted}",
            batch.id
        ));
    }
    for (run, slice) in runs.iter_mut().zip(&batch.slices) {
        // What a slice has behind its last record belongs to its last part.
        if let Some(page) = run.pages.back_mut() {
            page.last = slice.to_inclusive.clone();
        }
    }
    let terms = Terms {
        part: true,
        ..Terms::of_format(FORMAT)
    };
    let jobs: Vec<(Vec<Run>, Terms)> = if refused.cause == Cause::Table {
        // None of its records is in the error table, so those that the newer revision rejects are to go there.
        vec![(runs, Terms::of_format(FORMAT))]
    } else if records == 1 && refused.cause == Cause::Rows {
        let condemned = Some(refused.message.chars().take(MAX_WORDS).collect());
        vec![(runs, Terms { condemned, ..terms })]
    } else {
        let (first, second) = halve(runs, records.div_ceil(2));
        vec![(first, terms.clone()), (second, terms)]
    };
    let recipe_revision = recipe.revision();
    let build = move || -> Option<Vec<Built>> {
        let part = |(runs, terms)| {
            let job = Job {
                id: BatchId::new(),
                pipe,
                recipe: Arc::clone(&recipe),
                runs,
                rules: None,
                bench: None,
                budget: Arc::clone(&means.budget),
                terms,
            };
            build(job).built
        };
        jobs.into_iter().map(part).collect()
    };
    let parts = match task::spawn_blocking(build).await {
        Ok(parts) => parts,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => None,
    };
    let parts = parts.ok_or_else(|| format!("batch {} could not be cut into parts with records", batch.id))?;
    let sizes: Vec<u64> = parts.iter().map(|part| part.batch.counts.records).collect();
    if refused.cause == Cause::Table {
        let revision = recipe_revision.0;
        tracing::info!(batch = %batch.id, revision, ?sizes, "encoded anew for a newer revision");
    } else {
        tracing::info!(batch = %batch.id, cause = ?refused.cause, ?sizes, "cut into smaller ones");
    }
    committer.replace(refused, parts).await.map(Split::Parts)
}

fn records(run: &Run) -> usize {
    run.pages.iter().map(|page| page.records.len()).sum()
}

/// The first `count` records, and the rest.
fn halve(runs: Vec<Run>, mut count: usize) -> (Vec<Run>, Vec<Run>) {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for run in runs {
        let Run { shard, from, mut pages } = run;
        let (mut taken, mut end) = (VecDeque::new(), None);
        while let Some(page) = pages.pop_front() {
            let here = page.records.len();
            if here <= count {
                count -= here;
                end = Some(page.last.clone());
                taken.push_back(page);
                continue;
            }
            let Pending {
                mut records,
                last,
                permit,
                hash_keys,
                came,
            } = page;
            let head: Vec<_> = records.by_ref().take(count).collect();
            count = 0;
            if let Some(cut) = head.last().map(|record| record.sequence_number()) {
                end = Some(cut.clone());
                taken.push_back(Pending {
                    records: head.into_iter(),
                    last: cut,
                    permit: Arc::clone(&permit),
                    hash_keys,
                    came,
                });
            }
            pages.push_front(Pending {
                records,
                last,
                permit,
                hash_keys,
                came,
            });
            break;
        }
        let rest = end.map_or_else(|| from.clone(), Position::After);
        if !taken.is_empty() {
            let (shard, pages) = (shard.clone(), taken);
            first.push(Run { shard, from, pages });
        }
        if !pages.is_empty() {
            second.push(Run {
                shard,
                from: rest,
                pages,
            });
        }
    }
    (first, second)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::*;
    use crate::source::{Budget, Record};

    fn run(shard: u8, pages: &[u64], budget: &Arc<Budget>) -> Run {
        let mut next = 0_u64;
        let mut page = |records: u64| {
            let numbers = next + 1..=next + records;
            next += records;
            let record = |n: u64| Record::new(&n.to_string().parse().expect("a number"), "", 0, b"");
            Pending {
                records: numbers.map(record).collect::<Vec<_>>().into_iter(),
                last: next.to_string().parse().expect("a number"),
                permit: Arc::new(budget.acquire(1).now_or_never().expect("a large budget")),
                hash_keys: None,
                came: Instant::now(),
            }
        };
        Run {
            shard: format!("shardId-{shard}").parse().expect("a shard id"),
            from: Position::TrimHorizon,
            pages: pages.iter().map(|records| page(*records)).collect(),
        }
    }

    proptest! {
        #[test]
        fn halves_tile_what_was_there(shards in prop::collection::vec(prop::collection::vec(1..5_u64, 1..4), 1..4), at in 0..100_usize) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let _entered = runtime.enter();
            let budget = Budget::new(1 << 20);
            let runs: Vec<Run> = (0..).zip(&shards).map(|(n, pages)| run(n, pages, &budget)).collect();
            let total: usize = runs.iter().map(records).sum();
            let at = 1 + at % total.max(2).saturating_sub(1);
            let (first, second) = halve(runs, at.min(total));
            prop_assert_eq!(first.iter().map(records).sum::<usize>(), at.min(total));
            prop_assert_eq!(second.iter().map(records).sum::<usize>(), total - at.min(total));
            for (n, pages) in (0_u8..).zip(&shards) {
                let id = format!("shardId-{n}");
                let mut end = Position::TrimHorizon;
                let mut seen = 0;
                for run in first.iter().chain(&second).filter(|run| run.shard.as_str() == id) {
                    prop_assert_eq!(&run.from, &end);
                    for record in run.pages.iter().flat_map(|page| page.records.as_slice()) {
                        seen += 1;
                        prop_assert_eq!(record.sequence_number().to_string(), seen.to_string());
                    }
                    end = Position::After(run.pages.back().expect("a page").last.clone());
                }
                prop_assert_eq!(seen, pages.iter().sum::<u64>());
                prop_assert_eq!(end, Position::After(seen.to_string().parse().expect("a number")));
            }
        }
    }
}

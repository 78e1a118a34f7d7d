//! Building again, from the stream, a batch that an earlier owner had prepared.
//!
//! Its slices are read exactly, side by side, and then built in their recorded order by the function that built them the
//! first time. Whether it is the same batch is not judged here but by [`Prepared::replayed`](crate::commit::Prepared).

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use futures::future::try_join_all;
use jiff::Timestamp;
use millrace_common::{
    batch::OpenBatch,
    clock::Clock,
    error::Retry,
    fail_point,
    gap::DataGap,
    ids::{BatchId, PipeUid, ShardId},
    position::Slice,
};
use tokio::{sync::mpsc, task, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    build::{Job, build},
    fault::{Faults, Part},
    queue::{Pending, Run},
    read::{data_gap, show_trouble, source_fault},
    recipe::Recipe,
};
use crate::{
    commit::Built,
    source::{
        self, Budget, Page,
        kinesis::{Reader, ReaderOptions},
    },
};

/// Pages that a reader may be ahead.
const PAGES_AHEAD: usize = 1;

/// A batch was built again; or there is no record in its slices: neither `built` nor `gap`; or they are gone.
#[derive(Debug)]
pub(super) struct Replayed {
    pub id: BatchId,
    pub built: Option<Built>,
    /// The shard whose records are gone, and what is known of that.
    pub gap: Option<(ShardId, DataGap)>,
}

/// What tells how old positions are, and how large pages may be.
#[derive(Debug, Clone)]
pub(super) struct Ages {
    pub clock: Clock,
    pub complete_until: BTreeMap<ShardId, Timestamp>,
    /// Memory of the worker.
    pub memory_bytes: usize,
}

/// Reads the batch's slices and builds it. Does not return while its records cannot be read, unless they are gone.
pub(super) async fn replay(
    pipe: PipeUid,
    recipe: Arc<Recipe>,
    batch: OpenBatch,
    faults: Faults,
    ages: Ages,
) -> Replayed {
    let runs = match read_again(&recipe, &batch, &faults, &ages).await {
        Ok(runs) => runs,
        Err(gap) => {
            return Replayed {
                id: batch.id,
                built: None,
                gap: Some(gap),
            };
        }
    };
    fail_point!("worker.replay.read");
    let job = Job {
        id: batch.id,
        pipe,
        recipe,
        runs,
        rules: None,
        bench: None,
        budget: Budget::new(usize::MAX),
        terms: batch.terms,
    };
    match task::spawn_blocking(|| build(job)).await {
        Ok(outcome) => Replayed {
            id: batch.id,
            built: outcome.built,
            gap: None,
        },
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Replayed {
            id: batch.id,
            built: None,
            gap: None,
        },
    }
}

/// The records of a batch's slices. Does not return while they cannot be read, unless they are gone.
///
/// # Errors
/// The shard whose records are gone, and what is known of that.
pub(super) async fn read_again(
    recipe: &Recipe,
    batch: &OpenBatch,
    faults: &Faults,
    ages: &Ages,
) -> Result<Vec<Run>, (ShardId, DataGap)> {
    let part = Part::Replay(batch.id);
    let runs = loop {
        let part = &part;
        let reads = batch.slices.iter().map(|slice| async move {
            let run = read(recipe, slice, faults, part, ages).await;
            run.map_err(|error| (slice, error))
        });
        match try_join_all(reads).await {
            Ok(runs) => break runs,
            Err((slice, error)) => {
                faults.set(part.clone(), source_fault(&error));
                if let Some(gap) = data_gap(&error, &slice.from_exclusive, Some(batch.id)) {
                    return Err((slice.shard.clone(), gap));
                }
                match error.retry() {
                    Retry::After(delay) => tokio::time::sleep(delay).await,
                    // Its records are gone: until a person acts, nothing of its shards may move.
                    Retry::Never | Retry::Backoff => std::future::pending().await,
                }
            }
        }
    };
    faults.clear(&part);
    Ok(runs)
}

/// The records of one slice.
async fn read(recipe: &Recipe, slice: &Slice, faults: &Faults, part: &Part, ages: &Ages) -> Result<Run, source::Error> {
    let stream = recipe.spec.source.stream.clone();
    let mut options = ReaderOptions::new(stream, slice.shard.clone(), slice.from_exclusive.clone())
        .until(slice.to_inclusive.clone())
        .paced(recipe.limits, ages.memory_bytes);
    options.complete_until = ages.complete_until.get(&slice.shard).copied();
    options.clock = ages.clock.clone();
    let reader = Reader::new(recipe.client.clone(), options);
    let trouble = reader.trouble();
    let (out, mut pages) = mpsc::channel::<Page>(PAGES_AHEAD);
    // A budget of its own: the batch has to be in memory whole, and waiting for live batches to drain, which may be
    // waiting for this one, could be for ever. One batch per lane at a time is bound enough.
    let budget = Budget::new(usize::MAX);
    let collect = async {
        let mut run = Run {
            shard: slice.shard.clone(),
            from: slice.from_exclusive.clone(),
            pages: VecDeque::new(),
        };
        while let Some(page) = pages.recv().await {
            let Some(last) = page.last.filter(|_| !page.records.is_empty()) else {
                continue;
            };
            let (records, permit) = (page.records.into_iter(), Arc::new(page.permit));
            run.pages.push_back(Pending {
                records,
                last,
                permit,
                came: Instant::now(),
            });
        }
        run
    };
    let read = async { tokio::join!(reader.run(out, budget, CancellationToken::new()), collect) };
    tokio::select! {
        (stop, run) = read => stop.map(|_| run),
        never = show_trouble(trouble, faults, part.clone()) => match never {},
    }
}

//! Building again, from the stream, a batch that an earlier owner had prepared.
//!
//! Its slices are read exactly, side by side, and then built in their recorded order by the function that built them the
//! first time. Whether it is the same batch is not judged here but by [`Prepared::replayed`](crate::commit::Prepared).
//!
//! **Memory.** A lane has a part of the worker's budget for batches that are built again, apart from that of its readers:
//! replays neither wait for what these hold nor hold them up. A batch is read once there is room for all of it, and for one
//! answer of Kinesis beside it; and it is read while earlier ones wait for ClickHouse only if the budget has room for both.

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
        self, Budget, Page, Permit, RECORD_OVERHEAD, Record,
        kinesis::{Reader, ReaderOptions},
    },
};

/// Pages that a reader may be ahead.
const PAGES_AHEAD: usize = 1;
/// A page of a batch that is built again is to be no more than this part of the worker's memory: what is reserved for it
/// comes on top of all that the batch takes.
const PAGE_PART: usize = 32;
/// But calls cost as well.
const LEAST_PAGE_BYTES: usize = 64 * 1024;
/// Payload of a page for which no memory is reserved.
const SMALL_PAGE_BYTES: usize = 4 * 1024 * 1024;

/// A batch was built again; or there is no record in its slices: neither `built` nor `gap`; or they are gone.
#[derive(Debug)]
pub(super) struct Replayed {
    pub id: BatchId,
    pub built: Option<Built>,
    /// The shard whose records are gone, and what is known of that.
    pub gap: Option<(ShardId, DataGap)>,
}

/// What reading again needs of the lane.
#[derive(Debug, Clone)]
pub(super) struct Means {
    pub clock: Clock,
    pub complete_until: BTreeMap<ShardId, Timestamp>,
    /// Memory for records that are read again.
    pub budget: Arc<Budget>,
}

/// Reads the batch's slices and builds it. Does not return while its records cannot be read, unless they are gone.
pub(super) async fn replay(
    pipe: PipeUid,
    recipe: Arc<Recipe>,
    batch: OpenBatch,
    faults: Faults,
    means: Means,
) -> Replayed {
    let (runs, spare) = match read_again(&recipe, &batch, &faults, &means, Pay::Anew).await {
        Ok(read) => read,
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
        budget: means.budget,
        terms: batch.terms,
    };
    let built = task::spawn_blocking(|| build(job)).await;
    drop(spare);
    match built {
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

/// Who pays for the memory of records that are read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pay {
    /// They do: all of it is taken before the first of them is read, because half of a batch in memory helps nobody, and two
    /// halves may wait for each other for ever.
    Anew,
    /// The permits that the batch holds already. They are read in smaller pages, because nothing is reserved for these.
    WithTheBatch,
}

/// The records of a batch's slices; and the memory that was for answers of Kinesis, which the block may need while it grows
/// beside records that are not in it yet. Does not return while they cannot be read, unless they are gone.
///
/// # Errors
/// The shard whose records are gone, and what is known of that.
pub(super) async fn read_again(
    recipe: &Recipe,
    batch: &OpenBatch,
    faults: &Faults,
    means: &Means,
    pay: Pay,
) -> Result<(Vec<Run>, Option<Permit>), (ShardId, DataGap)> {
    let part = Part::Replay(batch.id);
    let read = loop {
        match read_all(recipe, batch, faults, means, pay).await {
            Ok(read) => break read,
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
    Ok(read)
}

/// One attempt. No memory is taken before Kinesis has answered for every slice.
async fn read_all<'a>(
    recipe: &Recipe,
    batch: &'a OpenBatch,
    faults: &Faults,
    means: &Means,
    pay: Pay,
) -> Result<(Vec<Run>, Option<Permit>), (&'a Slice, source::Error)> {
    let part = &Part::Replay(batch.id);
    let options: Vec<ReaderOptions> = batch
        .slices
        .iter()
        .map(|slice| options(recipe, batch, slice, means, pay))
        .collect();
    // The slices take turns: the answers of many side by side would be many times the batch.
    let reserve = options.iter().map(ReaderOptions::reserve).max().unwrap_or_default();
    let begun = batch.slices.iter().zip(options).map(|(slice, options)| async move {
        let mut reader = Reader::new(recipe.client.clone(), options);
        let trouble = reader.trouble();
        tokio::select! {
            begun = reader.begin() => begun.map(|()| (slice, reader)).map_err(|error| (slice, error)),
            never = show_trouble(trouble, faults, part.clone()) => match never {},
        }
    });
    let readers = try_join_all(begun).await?;
    let memory = match pay {
        Pay::Anew => Some(means.budget.acquire(cost(batch).saturating_add(reserve)).await),
        Pay::WithTheBatch => None,
    };
    let turns = &Budget::new(reserve);
    let reads = readers.into_iter().map(|(slice, reader)| async move {
        let run = Box::pin(read(reader, slice, turns, &means.budget, faults, part)).await;
        run.map_err(|error| (slice, error))
    });
    let mut runs = try_join_all(reads).await?;
    let spare = memory.map(|memory| share(memory, &mut runs));
    Ok((runs, spare))
}

/// What the records of a batch cost while they are in memory.
fn cost(batch: &OpenBatch) -> usize {
    let size = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    size(batch.counts.bytes).saturating_add(size(batch.counts.records).saturating_mul(RECORD_OVERHEAD))
}

/// Each page gets what it costs. Returns what is left.
fn share(mut memory: Permit, runs: &mut [Run]) -> Permit {
    let cost = |page: &Pending| page.records.as_slice().iter().map(Record::cost).sum::<usize>();
    let all = runs.iter().flat_map(|run| &run.pages).map(cost).sum();
    memory.resize(memory.bytes().max(all));
    for page in runs.iter_mut().flat_map(|run| &mut run.pages) {
        page.permit = Arc::new(memory.split(cost(page)));
    }
    memory
}

fn options(recipe: &Recipe, batch: &OpenBatch, slice: &Slice, means: &Means, pay: Pay) -> ReaderOptions {
    let stream = recipe.spec.source.stream.clone();
    let mut options = ReaderOptions::new(stream, slice.shard.clone(), slice.from_exclusive.clone())
        .until(slice.to_inclusive.clone())
        .paced(recipe.limits, means.budget.total())
        .no_more_than(batch.counts.records, batch.counts.bytes);
    let most = match pay {
        Pay::Anew => means.budget.total() / PAGE_PART,
        Pay::WithTheBatch => SMALL_PAGE_BYTES,
    };
    options.page_bytes = options.page_bytes.min(most).max(LEAST_PAGE_BYTES);
    options.first = batch.terms.firsts.get(&slice.shard).cloned();
    options.complete_until = means.complete_until.get(&slice.shard).copied();
    options.clock = means.clock.clone();
    options.hash_keys = recipe.hash_keys_of_a_replay();
    options
}

/// The records of one slice.
async fn read(
    reader: Reader,
    slice: &Slice,
    turns: &Arc<Budget>,
    memory: &Arc<Budget>,
    faults: &Faults,
    part: &Part,
) -> Result<Run, source::Error> {
    let trouble = reader.trouble();
    let (out, mut pages) = mpsc::channel::<Page>(PAGES_AHEAD);
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
            // Its turn is over; what it costs is paid for beside.
            run.pages.push_back(Pending {
                records: page.records.into_iter(),
                last,
                permit: Arc::new(memory.empty()),
                hash_keys: page.hash_keys,
                came: Instant::now(),
            });
        }
        run
    };
    let read = async { tokio::join!(reader.run(out, Arc::clone(turns), CancellationToken::new()), collect) };
    tokio::select! {
        (stop, run) = read => stop.map(|_| run),
        never = show_trouble(trouble, faults, part.clone()) => match never {},
    }
}

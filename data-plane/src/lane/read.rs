//! Readers of a lane: starting them, taking their pages, and what their end means.

use std::sync::Arc;

use millrace_common::{
    error::Retry,
    gap::DataGap,
    ids::{BatchId, ShardId},
    position::Position,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{
    Lane,
    fault::{Fault, Faults, Part},
    shard::Reading,
};
use crate::source::{
    self, Page, Trouble,
    kinesis::{Reader, ReaderOptions, Stop},
};

/// Pages that a reader may be ahead of its lane: one to take while the next is fetched. More would only hold memory.
const PAGES_AHEAD: usize = 1;

/// A reader has ended.
#[derive(Debug)]
pub(super) struct ReaderEnd {
    shard: ShardId,
    attempt: u64,
    result: Result<Stop, source::Error>,
}

#[cfg(test)]
impl ReaderEnd {
    /// The end of a reader that its watchdog has given up.
    pub(super) fn stuck(shard: ShardId, attempt: u64) -> Self {
        let result = Ok(Stop::Stuck);
        Self { shard, attempt, result }
    }
}

impl Lane {
    pub(super) fn start_readers(&mut self, now: Instant) {
        if self.halted.is_some() {
            return;
        }
        let Some(recipe) = self.recipe().map(Arc::clone) else {
            return;
        };
        for (id, shard) in self.shards.iter_mut().filter(|(_, shard)| shard.wants_reader(now)) {
            self.attempts += 1;
            let (attempt, stop) = (self.attempts, CancellationToken::new());
            let mut options = ReaderOptions::new(recipe.spec.source.stream.clone(), id.clone(), shard.read_to.clone())
                .paced(recipe.limits, self.budget.total());
            options.complete_until = shard.progress.complete_until();
            options.end = recipe.spec.source.end;
            options.hash_keys = recipe.hash_keys();
            options.clock = self.context.clock.clone();
            let mut reader = Reader::new(recipe.client.clone(), options);
            if let Some(consumer) = &recipe.spec.source.consumer {
                reader = reader.with_fan_out(consumer.clone());
            }
            let (out, pages) = mpsc::channel(PAGES_AHEAD);
            self.pages.insert(id.clone(), ReceiverStream::new(pages));
            shard.gap = None;
            shard.reading = Reading::By {
                attempt,
                _stop: stop.clone().drop_guard(),
            };
            let (id, faults, budget) = (id.clone(), self.faults.clone(), Arc::clone(&self.budget));
            let read = async move {
                let shown = show_trouble(reader.trouble(), &faults, Part::Shard(id.clone()));
                let result = tokio::select! {
                    result = reader.run_watched(out, budget, stop) => result,
                    never = shown => match never {},
                };
                ReaderEnd {
                    shard: id,
                    attempt,
                    result,
                }
            };
            self.readers.spawn(read.in_current_span());
        }
    }

    /// Stops all readers; they start again where they were.
    pub(super) fn stop_readers(&mut self) {
        for (id, shard) in &mut self.shards {
            if !matches!(shard.reading, Reading::Not) {
                shard.reading = Reading::Not;
                self.pages.remove(id);
                self.faults.clear(&Part::Shard(id.clone()));
            }
        }
    }

    pub(super) fn on_page(&mut self, id: &ShardId, page: Page) {
        let Some(shard) = self.shards.get_mut(id) else { return };
        let now = Instant::now();
        if !std::mem::replace(&mut shard.heard, true) {
            tracing::info!(shard = %id, epoch = shard.epoch.0, records = page.records.len(), "reading");
        }
        shard.count(page.records.iter().map(|record| record.data().len() as u64).sum(), now);
        if let Some(last) = &page.last {
            shard.read_to = Position::After(last.clone());
        }
        shard.lag = page.lag.or(shard.lag);
        if let Some(time) = page.complete_until {
            shard.progress.read(page.last.clone(), time);
        }
        let ended = page.end.is_some();
        if let Some(end) = &page.end {
            tracing::info!(shard = %id, children = end.children.len(), "end of shard");
            shard.ended = Some(end.children.clone());
        }
        self.queue.push(page, now);
        self.show_soon(ended);
    }

    pub(super) fn on_reader_end(&mut self, end: Option<ReaderEnd>) {
        let Some(ReaderEnd {
            shard: id,
            attempt,
            result,
        }) = end
        else {
            return;
        };
        let Some(shard) = self.shards.get_mut(&id) else { return };
        if !matches!(shard.reading, Reading::By { attempt: current, .. } if current == attempt) {
            return;
        }
        match result {
            Ok(Stop::Stuck) => {
                shard.restarts += 1;
                shard.reading = Reading::Not;
                self.pages.remove(&id);
                self.faults.clear(&Part::Shard(id));
            }
            Ok(stop) => {
                // Its last page may still be on the way.
                tracing::debug!(shard = %id, ?stop, "reader ended");
                shard.reading = Reading::Over;
                self.faults.clear(&Part::Shard(id));
            }
            Err(error) => {
                shard.gap = data_gap(&error, &shard.read_to, None);
                shard.reading = match error.retry() {
                    Retry::Never => Reading::Over,
                    Retry::Backoff => Reading::Until(Instant::now() + self.context.settings.probe_interval),
                    Retry::After(delay) => Reading::Until(Instant::now() + delay),
                };
                self.faults.set(Part::Shard(id), source_fault(&error));
            }
        }
    }
}

/// The gap that a reader found, if it is one.
pub(super) fn data_gap(error: &source::Error, position: &Position, batch: Option<BatchId>) -> Option<DataGap> {
    match error {
        source::Error::PositionExpired {
            message,
            from,
            to,
            shard_gone,
            ..
        } => Some(DataGap {
            position: position.clone(),
            batch,
            from: *from,
            to: *to,
            shard_gone: *shard_gone,
            message: message.clone(),
        }),
        source::Error::RecordMissing { .. } => Some(DataGap {
            position: position.clone(),
            batch,
            from: None,
            to: None,
            shard_gone: false,
            message: error.to_string(),
        }),
        source::Error::StreamRecreated { .. }
        | source::Error::HashKeysUnknown { .. }
        | source::Error::Refused { .. } => None,
    }
}

/// What a reader's end means for the lane.
pub(super) fn source_fault(error: &source::Error) -> Fault {
    Fault::permanent(error.reason(), format!("{error}: {}", error.remedy()))
}

/// Shows what keeps a reader from reading, for as long as it is polled.
pub(super) async fn show_trouble(
    mut trouble: watch::Receiver<Option<Trouble>>,
    faults: &Faults,
    part: Part,
) -> std::convert::Infallible {
    loop {
        let Ok(()) = trouble.changed().await else {
            std::future::pending().await
        };
        match trouble.borrow_and_update().clone() {
            Some(Trouble {
                reason,
                message,
                permanent,
            }) => {
                faults.set(
                    part.clone(),
                    Fault {
                        reason,
                        message,
                        permanent,
                    },
                );
            }
            None => faults.clear(&part),
        }
    }
}

//! Watching a pipe: a stream of what it is, at every change and at least every interval. Nothing is computed ahead: a
//! client that does not read costs its place and nothing else.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures::Stream;
use millrace_common::{
    error::ApiError,
    ids::{PipeName, PipeUid},
};
use millrace_proto::api::v1::{Pipe, WatchPipeResponse};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};
use tonic::{Code, Status};

use super::{
    Api,
    convert::span,
    errors::{SHUTTING_DOWN, TOO_MANY_WATCHES, of_store},
    view::View,
};
use crate::store::Totals;

/// Shortest and longest interval that a client may ask for, and what it gets if it does not.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
const MAX_INTERVAL: Duration = Duration::from_secs(60);
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);
/// Changes that come closer than this travel in one message.
const MIN_SPACING: Duration = Duration::from_millis(100);
/// Rates are averages over so long. Batches close after 5 s by default, so a shorter span would jump up and down.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// Streams of all clients, and of one address. A console or a Terraform run watches a handful.
const MAX_STREAMS: usize = 1_000;
const MAX_STREAMS_PER_CLIENT: usize = 64;

/// The stream of one watcher.
pub(super) type Updates = Pin<Box<dyn Stream<Item = Result<WatchPipeResponse, Status>> + Send>>;

/// Counts what was stored.
#[derive(Clone)]
pub(super) struct Stored(watch::Sender<u64>);

impl Default for Stored {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Stored {
    /// One more.
    pub(super) fn tick(&self) {
        self.0.send_modify(|count| *count += 1);
    }

    /// Ticks from now on.
    pub(super) fn ticks(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

/// The interval in a request.
pub(super) fn interval(given: Option<prost_types::Duration>) -> Result<Duration, ApiError> {
    let Some(given) = given else {
        return Ok(DEFAULT_INTERVAL);
    };
    span(given)
        .filter(|interval| (MIN_INTERVAL..=MAX_INTERVAL).contains(interval))
        .ok_or_else(|| ApiError::invalid_field("interval", "must be 100 ms to 1 min"))
}

/// Who watches, counted.
#[derive(Clone, Default)]
pub(super) struct Watchers {
    counts: Arc<Mutex<Counts>>,
}

#[derive(Default)]
struct Counts {
    all: usize,
    by_client: HashMap<Option<IpAddr>, usize>,
}

/// A place among the watchers, given back when it is dropped.
pub(super) struct Place {
    watchers: Watchers,
    client: Option<IpAddr>,
}

impl Watchers {
    /// Takes a place for a client, as long as there is one.
    pub(super) fn admit(&self, client: Option<IpAddr>) -> Result<Place, ApiError> {
        let mut counts = self.counts.lock();
        let own = counts.by_client.get(&client).copied().unwrap_or_default();
        if counts.all >= MAX_STREAMS || own >= MAX_STREAMS_PER_CLIENT {
            let message = format!("too many streams: at most {MAX_STREAMS_PER_CLIENT} per client; close some");
            return Err(ApiError::new(Code::ResourceExhausted, TOO_MANY_WATCHES, message));
        }
        counts.all += 1;
        counts.by_client.insert(client, own + 1);
        Ok(Place {
            watchers: self.clone(),
            client,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.watchers.counts.lock();
        counts.all -= 1;
        if let Some(own) = counts.by_client.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                counts.by_client.remove(&self.client);
            }
        }
    }
}

struct Watcher {
    api: Api,
    name: PipeName,
    uid: PipeUid,
    interval: Duration,
    changed: watch::Receiver<u64>,
    stored: watch::Receiver<u64>,
    rates: Rates,
    sent: Option<Instant>,
    ended: bool,
    _place: Place,
}

/// What a watcher of the pipe gets.
pub(super) fn updates(api: Api, name: PipeName, uid: PipeUid, interval: Duration, place: Place) -> Updates {
    let (changed, stored) = (api.coordinator.changed(), api.stored.0.subscribe());
    let watcher = Watcher {
        api,
        name,
        uid,
        interval,
        changed,
        stored,
        rates: Rates::default(),
        sent: None,
        ended: false,
        _place: place,
    };
    Box::pin(futures::stream::unfold(watcher, |mut watcher| async move {
        let update = watcher.next().await?;
        watcher.ended |= update.as_ref().map_or(true, |update| update.deleted);
        Some((update, watcher))
    }))
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<WatchPipeResponse, Status>> {
        if self.ended {
            return None;
        }
        if let Some(sent) = self.sent
            && !self.wait(sent).await
        {
            let message = "the server is shutting down: watch again";
            return Some(Err(ApiError::unavailable(SHUTTING_DOWN, message).into()));
        }
        let now = Instant::now();
        self.sent = Some(now);
        self.changed.mark_unchanged();
        self.stored.mark_unchanged();
        Some(self.look(now).await.map_err(Status::from))
    }

    /// Waits for a change, at most for the interval; false if the server ends.
    async fn wait(&mut self, sent: Instant) -> bool {
        let due = sent + self.interval;
        let change = async {
            tokio::time::sleep_until(sent + MIN_SPACING).await;
            let gone = tokio::select! {
                changed = self.changed.changed() => changed.is_err(),
                stored = self.stored.changed() => stored.is_err(),
            };
            if gone {
                // The coordinator is gone; the interval goes on.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = self.api.shutdown.cancelled() => return false,
            () = change => {}
            () = tokio::time::sleep_until(due) => {}
        }
        true
    }

    async fn look(&mut self, now: Instant) -> Result<WatchPipeResponse, ApiError> {
        let snapshot = self
            .api
            .store
            .snapshot(self.uid)
            .await
            .map_err(|error| of_store(&error))?;
        let Some(snapshot) = snapshot else {
            let pipe = Pipe {
                name: self.name.to_string(),
                uid: self.uid.to_string(),
                ..Pipe::default()
            };
            return Ok(WatchPipeResponse {
                pipe: Some(pipe),
                deleted: true,
                ..WatchPipeResponse::default()
            });
        };
        let (rows_per_second, bytes_per_second) = self.rates.add(now, snapshot.pipe.totals);
        let pipe = Some(self.api.show(&snapshot, View::Full));
        Ok(WatchPipeResponse {
            pipe,
            rows_per_second,
            bytes_per_second,
            deleted: false,
        })
    }
}

/// Rates from totals seen over the last seconds.
#[derive(Default)]
struct Rates {
    seen: VecDeque<(Instant, u64, u64)>,
}

impl Rates {
    /// Rows and bytes per second since the oldest totals within the window.
    fn add(&mut self, now: Instant, totals: Totals) -> (f64, f64) {
        // The oldest kept is the last from before the window, so that the window is full once there was time for it.
        while self
            .seen
            .get(1)
            .is_some_and(|(at, ..)| now.duration_since(*at) >= RATE_WINDOW)
        {
            self.seen.pop_front();
        }
        self.seen.push_back((now, totals.rows, totals.bytes));
        let Some((at, rows, bytes)) = self.seen.front().copied() else {
            return (0.0, 0.0);
        };
        let seconds = now.duration_since(at).as_secs_f64();
        if seconds <= 0.0 {
            return (0.0, 0.0);
        }
        #[allow(clippy::cast_precision_loss, reason = "a rate is shown with a few digits")]
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        (rate(totals.rows, rows), rate(totals.bytes, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_bounded() {
        let given = |seconds, nanos| interval(Some(prost_types::Duration { seconds, nanos }));
        assert_eq!(interval(None), Ok(DEFAULT_INTERVAL));
        assert_eq!(given(0, 100_000_000), Ok(MIN_INTERVAL));
        assert_eq!(given(60, 0), Ok(MAX_INTERVAL));
        for (seconds, nanos) in [
            (0, 1),
            (0, 0),
            (-1, 0),
            (61, 0),
            (i64::MIN, i32::MIN),
            (i64::MAX, i32::MAX),
        ] {
            assert_eq!(given(seconds, nanos).unwrap_err().fields[0].field, "interval");
        }
    }

    #[test]
    fn one_client_cannot_take_all_places() {
        let watchers = Watchers::default();
        let (greedy, other) = (Some(IpAddr::from([10, 0, 0, 1])), Some(IpAddr::from([10, 0, 0, 2])));
        let places: Vec<Place> = (0..MAX_STREAMS_PER_CLIENT)
            .map(|_| watchers.admit(greedy).unwrap())
            .collect();
        assert_eq!(
            watchers.admit(greedy).err().map(|error| error.reason),
            Some(TOO_MANY_WATCHES)
        );
        assert!(watchers.admit(other).is_ok());
        drop(places);
        assert!(watchers.admit(greedy).is_ok());
        assert_eq!(watchers.counts.lock().all, 0);
        assert!(watchers.counts.lock().by_client.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn rates_are_averages_of_the_last_seconds() {
        let mut rates = Rates::default();
        let start = Instant::now();
        let totals = |rows| Totals {
            rows,
            bytes: rows * 10,
            ..Totals::default()
        };
        assert_eq!(rates.add(start, totals(1_000)), (0.0, 0.0));
        assert_eq!(
            rates.add(start + Duration::from_secs(2), totals(1_200)),
            (100.0, 1_000.0)
        );
        for second in 3..=60 {
            rates.add(start + Duration::from_secs(second), totals(1_200));
        }
        assert_eq!(rates.add(start + Duration::from_secs(61), totals(1_200)), (0.0, 0.0));
        assert!(rates.seen.len() <= 13, "{}", rates.seen.len());
    }
}

//! The load of a chaos run: a thread that puts records at a rate until it is told to stop, and a Kinesis that refuses.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use rand::Rng as _;
use tokio::task::JoinHandle;

use crate::{
    events::Events,
    kinesis::{self, Call, Error, ErrorKind, Interceptor, Operation, Put},
};

/// How often records are put.
const STEP: Duration = Duration::from_millis(50);

/// Puts records until it is stopped.
#[derive(Debug)]
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<anyhow::Result<u64>>,
}

impl Load {
    pub(super) fn start(kinesis: Arc<kinesis::Handle>, stream: &str, events: Arc<Events>, per_second: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, stream) = (Arc::clone(&stop), stream.to_owned());
        let task = tokio::task::spawn_blocking(move || put(&kinesis, &stream, &events, per_second, &stopped));
        Self { stop, task }
    }

    /// How many records were put: those with the ids below that.
    pub(super) async fn stop(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

fn put(
    kinesis: &kinesis::Handle,
    stream: &str,
    events: &Events,
    per_second: u64,
    stop: &AtomicBool,
) -> anyhow::Result<u64> {
    let (began, mut done) = (Instant::now(), 0);
    while !stop.load(Ordering::Relaxed) {
        let due = (began.elapsed().as_secs_f64() * per_second as f64) as u64;
        let made: Vec<_> = (done..due).map(|id| events.event(id)).collect();
        kinesis.put_records_direct(stream, made.iter().map(|event| Put::new(&event.key, &event.data)))?;
        done = done.max(due);
        std::thread::sleep(STEP);
    }
    Ok(done)
}

/// What is wrong with Kinesis at the moment.
#[derive(Debug, Default)]
pub(super) struct Moods {
    /// Calls in a thousand that are refused because of their rate.
    pub(super) throttled: AtomicU32,
    /// Calls in a thousand whose iterator is expired.
    pub(super) expired: AtomicU32,
}

impl Interceptor for Moods {
    fn before<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, Result<(), Error>> {
        let hit = |rate: &AtomicU32| rand::rng().random_range(0..1_000) < rate.load(Ordering::Relaxed);
        let answer = match call.operation {
            Operation::GetRecords if hit(&self.expired) => {
                Err(Error::new(ErrorKind::ExpiredIterator, "Iterator expired."))
            }
            Operation::GetRecords | Operation::GetShardIterator if hit(&self.throttled) => Err(Error::new(
                ErrorKind::ProvisionedThroughputExceeded,
                "Rate exceeded for shard.",
            )),
            Operation::ListShards if hit(&self.throttled) => {
                Err(Error::new(ErrorKind::LimitExceeded, "Rate exceeded for stream."))
            }
            _ => Ok(()),
        };
        Box::pin(std::future::ready(answer))
    }
}

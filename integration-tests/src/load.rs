//! A steady load on an emulator: events put in order, so many a second, until told to stop. It goes past the network, so that
//! what is measured beside it is not the producer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::anyhow;

use crate::{
    events::Events,
    kinesis::{Handle, Put},
};

/// From one put to the next: a fraction of the time between two reads of a shard.
const TICK: Duration = Duration::from_millis(20);

/// A running load. Dropping it stops it.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    records: AtomicU64,
}

impl Load {
    /// Puts events from `first` on into a stream, about `per_second` of them.
    #[must_use]
    pub fn start(kinesis: Arc<Handle>, stream: &str, events: Arc<Events>, first: u64, per_second: u64) -> Self {
        let shared = Arc::new(Shared::default());
        shared.records.store(first, Ordering::Relaxed);
        let (of_thread, stream) = (Arc::clone(&shared), stream.to_owned());
        let thread = thread::spawn(move || run(&of_thread, &kinesis, &stream, &events, per_second));
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// The next event: all before it were put.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.shared.records.load(Ordering::Acquire)
    }

    /// Stops it. Returns the next event.
    ///
    /// # Errors
    /// If a record could not be put.
    pub fn stop(mut self) -> anyhow::Result<u64> {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the load panicked"))??;
        }
        Ok(self.records())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn run(shared: &Shared, kinesis: &Handle, stream: &str, events: &Events, per_second: u64) -> anyhow::Result<()> {
    let (began, first) = (Instant::now(), shared.records.load(Ordering::Relaxed));
    let mut next = first;
    while !shared.stop.load(Ordering::Relaxed) {
        let due = first + u64::try_from(began.elapsed().as_millis())? * per_second / 1000;
        let chunk: Vec<_> = (next..due).map(|id| events.event(id)).collect();
        kinesis.put_records_direct(stream, chunk.iter().map(|event| Put::new(&event.key, &event.data)))?;
        next = next.max(due);
        shared.records.store(next, Ordering::Release);
        thread::sleep(TICK);
    }
    Ok(())
}

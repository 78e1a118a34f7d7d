//! A night of renewals. The emulator's clock and the reader's are led by hand, in step, so that eight hours take seconds, and every
//! timer of the reader, the renewal before the five minutes are over among them, is that of production.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use millrace_common::position::Position;
use millrace_integration_tests::kinesis::{Clock, Operation};

use super::{Bed, Reading, numbers, range};

const NIGHT: Duration = Duration::from_secs(8 * 3_600);
/// Short beside the five seconds between heartbeats.
const STEP: Duration = Duration::from_secs(2);
/// A record in each step; in every thirtieth; none but at dusk and dawn. The last has its hash range to itself.
const EVERY: [u32; 3] = [1, 30, u32::MAX];
/// How long a step may take of real time before the clocks go on: what comes then is late.
const PATIENCE: Duration = Duration::from_millis(500);
/// A subscription is kept between 270 and 294 seconds.
const RENEWALS: std::ops::RangeInclusive<u64> = 97..=108;

struct Shard {
    reading: Reading,
    put: u32,
    seen: Vec<u32>,
}

impl Shard {
    /// Takes what has come.
    fn take(&mut self) -> Result<()> {
        while let Ok(page) = self.reading.pages.try_recv() {
            ensure!(page.end.is_none(), "the shard is still open");
            self.seen.extend(numbers(&page.records));
        }
        Ok(())
    }

    fn is_behind(&self) -> bool {
        self.seen.len() < self.put as usize
    }
}

#[tokio::test]
async fn a_night_of_renewals_loses_and_doubles_nothing() -> Result<()> {
    let clock = Clock::frozen_at_ms(Timestamp::now().as_millisecond());
    let bed = Bed::with_clock(EVERY.len() as u32, clock).await?;
    // A clock of tokio that stands still goes on by itself when nobody has anything to do, but not while a thread is busy.
    let (dawn, night) = std::sync::mpsc::channel::<()>();
    let busy = tokio::task::spawn_blocking(move || night.recv().is_err());
    tokio::time::pause();

    let mut shards = Vec::new();
    for index in 0..EVERY.len() {
        let name = format!("shardId-{index:012}");
        let reading = bed.read(&name, Position::TrimHorizon)?;
        shards.push(Shard {
            reading,
            put: 0,
            seen: Vec::new(),
        });
    }
    let started = Instant::now();
    let steps = u32::try_from(NIGHT.as_secs() / STEP.as_secs())?;
    let mut late_steps = 0_u32;
    for step in 0..=steps {
        for (index, shard) in shards.iter_mut().enumerate() {
            if step % EVERY[index] == 0 || step == steps {
                bed.put(index, shard.put..shard.put + 1, 100)?;
                shard.put += 1;
            }
        }
        let began = Instant::now();
        let mut turns = 0;
        // The thread serves everybody by turns: a few more, once all is there, let heartbeats through.
        while turns < 20 && began.elapsed() < PATIENCE {
            tokio::task::yield_now().await;
            let mut behind = false;
            for shard in &mut shards {
                shard.take()?;
                behind |= shard.is_behind();
            }
            turns = if behind { 0 } else { turns + 1 };
        }
        late_steps += u32::from(shards.iter().any(Shard::is_behind));
        bed.clock.advance(STEP);
        tokio::time::advance(STEP).await;
    }
    tokio::time::resume();
    drop(dawn);
    ensure!(busy.await.context("the busy thread")?, "it waits for the end only");

    for (index, mut shard) in shards.into_iter().enumerate() {
        let missing = (shard.put as usize).saturating_sub(shard.seen.len());
        shard.seen.extend(numbers(&shard.reading.records(missing).await?));
        assert_eq!(shard.seen, range(0..shard.put), "shard {index}");
        let subscriptions = shard.reading.subscriptions();
        eprintln!("shard {index}: {} records, {subscriptions} subscriptions", shard.put);
        ensure!(RENEWALS.contains(&subscriptions), "{subscriptions} subscriptions");
        shard.reading.stop().await?;
    }
    assert_eq!(bed.kinesis.calls(Operation::GetRecords), 0);
    let steps = f64::from(late_steps) / f64::from(steps);
    eprintln!(
        "a night in {:.1} s; something was late in {:.2} % of its steps",
        started.elapsed().as_secs_f64(),
        steps * 100.0
    );
    Ok(())
}

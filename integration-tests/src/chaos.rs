//! Chaos: random faults under continuous load, and a ledger at the end.
//!
//! ```text
//!   load -> emulator (throttled at times) -> [proxy] -> workers -> [proxy] -> ClickHouse (stopped, killed)
//!                                               |
//!                                            [proxy] -> control plane (stopped, killed) -> [proxy] -> PostgreSQL (killed)
//! ```
//!
//! Which faults come, when, and for how long follows from the seed; what they meet follows from the machine. At the end all
//! faults are undone, the pipe drains, and every record is counted.
//!
//! Invariant: a run is clean only if the pipe drained and the ledger found nothing.

mod fault;
mod load;
mod world;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use serde::Serialize;

use fault::Fault;
use world::World;

/// Faults that are there at a time, at most: with more, nothing ever moves.
const AT_ONCE: usize = 3;
/// Shortest and longest pause between two faults.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(2_000));
/// How long the pipe may take to drain at the end.
const DRAIN_LIMIT: Duration = Duration::from_secs(180);

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// For how long faults come.
    pub time: Duration,
    /// What they follow from.
    pub seed: u64,
    /// Records put each second.
    pub records_per_second: u64,
    /// Shards that the stream begins with.
    pub shards: u32,
    /// Workers.
    pub workers: usize,
    /// Called with each fault and each undoing, for people.
    pub say: fn(&str),
}

impl Options {
    /// A run of `time` with `seed`.
    #[must_use]
    pub fn new(time: Duration, seed: u64) -> Self {
        Self {
            time,
            seed,
            // Three quarters of what two slow cores move beside everything else: it catches up after a fault.
            records_per_second: 1_500,
            shards: 4,
            workers: 3,
            say: |_| {},
        }
    }
}

/// What a run found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// How long faults came.
    pub seconds: u64,
    /// The seed.
    pub seed: u64,
    /// Database of the control plane.
    pub database: &'static str,
    /// Faults that took hold.
    pub faults: u64,
    /// Those by name.
    pub faults_by_name: BTreeMap<String, u64>,
    /// Records put.
    pub records: u64,
    /// Rows of the table.
    pub rows: u64,
    /// Rows of the error table.
    pub rejected: u64,
    /// Records that are in neither.
    pub lost: u64,
    /// Rows too many.
    pub duplicated: u64,
    /// Rows out of the order of their key.
    pub disordered: u64,
    /// Good records in the error table, and malformed ones in the table.
    pub misplaced: u64,
    /// Whether the pipe says that all is committed, and says the numbers that the tables hold.
    pub drained: bool,
    /// How long that took after the last fault.
    pub drain_seconds: f64,
    /// What was wrong, with the ends of all logs; empty if nothing was.
    #[serde(skip)]
    pub trouble: String,
}

impl Report {
    /// Whether everything arrived where it belongs, once and in order.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.drained && (self.lost, self.duplicated, self.disordered, self.misplaced) == (0, 0, 0, 0)
    }
}

/// Runs.
///
/// # Errors
/// If the test bed itself does not work.
pub async fn run(options: Options) -> anyhow::Result<Report> {
    let mut world = Box::pin(World::start(&options)).await.context("the world")?;
    let mut rng = SmallRng::seed_from_u64(options.seed);
    let began = Instant::now();
    let mut active: Vec<(Instant, Fault)> = Vec::new();
    let mut by_name: BTreeMap<String, u64> = BTreeMap::new();
    let mut next = began;
    while began.elapsed() < options.time {
        let now = Instant::now();
        if now >= next && active.len() < AT_ONCE {
            next = now + rng.random_range(PAUSE.0..PAUSE.1);
            let (fault, time) = fault::choose(&mut rng, options.workers);
            let free = !active
                .iter()
                .any(|(_, other)| other.part() == fault.part() || fault.needs(other.part()));
            if free {
                let at = began.elapsed().as_secs_f64();
                match Box::pin(world.begin(fault)).await {
                    Ok(()) => {
                        (options.say)(&format!("{at:7.2} {fault} for {:.1} s", time.as_secs_f64()));
                        *by_name.entry(fault.name().to_owned()).or_default() += 1;
                        active.push((now + time, fault));
                    }
                    // A call that meets another fault; what it did or did not do is undone all the same.
                    Err(error) => {
                        (options.say)(&format!("{at:7.2} {fault} did not take hold: {error:#}"));
                        active.push((now, fault));
                    }
                }
            }
        }
        undo(&mut world, &mut active, &options, began, |until| {
            until <= Instant::now()
        })
        .await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ended = Instant::now();
    let records = world.stop_load().await?;
    while !active.is_empty() && ended.elapsed() < DRAIN_LIMIT {
        undo(&mut world, &mut active, &options, began, |_| true).await;
    }
    (options.say)(&format!(
        "{:7.2} draining {records} records",
        began.elapsed().as_secs_f64()
    ));
    let drained = world.drain(records, DRAIN_LIMIT).await;
    let drain_seconds = ended.elapsed().as_secs_f64();
    let verdict = world.verdict(records).await?;
    let (drained, trouble) = match drained {
        Ok(totals)
            if (totals.rows, totals.rejected_records, totals.records) == (verdict.rows, verdict.rejected, records) =>
        {
            (true, String::new())
        }
        Ok(totals) => (false, format!("the pipe counts {totals:?}")),
        Err(error) => (false, format!("{error:#}")),
    };
    let mut report = Report {
        seconds: options.time.as_secs(),
        seed: options.seed,
        database: world.database_name(),
        faults: by_name.values().sum(),
        faults_by_name: by_name,
        records,
        rows: verdict.rows,
        rejected: verdict.rejected,
        lost: verdict.lost,
        duplicated: verdict.duplicated,
        disordered: verdict.disordered,
        misplaced: verdict.misplaced,
        drained,
        drain_seconds,
        trouble,
    };
    if !report.is_clean() {
        report.trouble = format!("{}\n{verdict:?}\n{}", report.trouble, world.logs());
    }
    Ok(report)
}

/// Ends the faults that are due. One that cannot be ended yet, because of another, stays.
async fn undo(
    world: &mut World,
    active: &mut Vec<(Instant, Fault)>,
    options: &Options,
    began: Instant,
    due: impl Fn(Instant) -> bool,
) {
    let mut kept = Vec::new();
    for (until, fault) in active.drain(..) {
        if !due(until) {
            kept.push((until, fault));
            continue;
        }
        let ended = Box::pin(world.end(fault)).await;
        let at = began.elapsed().as_secs_f64();
        match ended {
            Ok(()) => (options.say)(&format!("{at:7.2} end of {fault}")),
            Err(error) => {
                (options.say)(&format!("{at:7.2} {fault} cannot be ended yet: {error:#}"));
                kept.push((Instant::now() + Duration::from_secs(1), fault));
            }
        }
    }
    *active = kept;
}

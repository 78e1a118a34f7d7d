//! Two hours without ClickHouse, on a clock that stands still while anything is to be done and then jumps.

#![allow(clippy::print_stderr, reason = "what was measured is worth reading in the log")]

use std::collections::BTreeMap;

use super::*;

/// Bytes that a page here counts for: 64 of them fill the lane's half of the budget.
const PAGE_BYTES: usize = 8 * 1024;
/// Records of a page, so that each fills a batch.
const PAGE_RECORDS: u64 = 10;
const OUTAGE: Duration = Duration::from_secs(2 * 3600);
/// The lane is looked at this often although nothing happens in it.
const LOOK: Duration = Duration::from_secs(60);

impl World {
    /// Puts in pages as readers would: as long as there is memory. Returns the number of the next record.
    fn read(&mut self, mut next: u64) -> u64 {
        while let Some(permit) = self.lane.budget.acquire(PAGE_BYTES).now_or_never() {
            let mut page = self.page(0, next..=next + PAGE_RECORDS - 1, false);
            page.permit = permit;
            self.lane.on_page(&shard(0), page);
            next += PAGE_RECORDS;
        }
        next
    }

    /// Lets the lane run for this long. Returns the number of its turns.
    async fn pass(&mut self, time: Duration) -> usize {
        let (end, mut turns) = (Instant::now() + time, 0);
        while let Some(left) = end
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
        {
            // Dropping a turn drops a wait and nothing else, as long as no order comes.
            let _nothing_happened = tokio::time::timeout(LOOK.min(left), self.lane.turn()).await;
            turns += 1;
        }
        turns
    }

    /// Inserts that came, by token in the order of first arrival.
    fn attempts(&self) -> Vec<(String, Vec<Seen>)> {
        let mut order = Vec::new();
        let mut by_token: BTreeMap<String, Vec<Seen>> = BTreeMap::new();
        for seen in self.clickhouse.seen.lock().iter() {
            if !by_token.contains_key(&seen.token) {
                order.push(seen.token.clone());
            }
            by_token.entry(seen.token.clone()).or_default().push(seen.clone());
        }
        order
            .into_iter()
            .map(|token| {
                let attempts = by_token.remove(&token).unwrap_or_default();
                (token, attempts)
            })
            .collect()
    }
}

async fn two_hours_of(mood: Mood, oldest_attempts: std::ops::Range<usize>) {
    let mut world = World::new(Delivery::ExactlyOnce, &[(0, 1)]).await;
    world.until("taken up", |world| !world.held().is_empty()).await;
    *world.clickhouse.mood.lock() = mood;
    let mut next = world.read(1);
    let mut turns = 0;
    for _ in 0..24 {
        turns += world.pass(OUTAGE / 24).await;
        next = world.read(next);
        // What was read and not committed is paid for, and nothing more is read.
        assert!(world.lane.budget.held() <= world.lane.budget.total());
        assert!(world.budget.held() <= world.budget.total());
        assert!(world.lane.budget.acquire(PAGE_BYTES).now_or_never().is_none());
    }
    let read = next - 1;
    let attempts = world.attempts();
    let counts: Vec<usize> = attempts.iter().map(|(_, attempts)| attempts.len()).collect();
    eprintln!("{mood:?}: {turns} turns, attempts {counts:?}, {read} records held");
    // One batch asks and the others wait; each attempt is the same bytes.
    assert!(oldest_attempts.contains(&counts[0]), "{counts:?}");
    assert!(counts[1..].iter().all(|count| *count <= 2), "{counts:?}");
    assert!((1..=3).contains(&attempts.len()), "{counts:?}");
    for (token, attempts) in &attempts {
        assert!(attempts.iter().all(|seen| *seen == attempts[0]), "{token}");
    }
    assert!(turns < 2_000, "a busy loop: {turns} turns");
    assert!(world.committed().is_empty());
    let prepared: Vec<String> = world
        .control
        .calls("prepare")
        .iter()
        .map(|claim| claim.batch.id.to_string())
        .collect();
    assert!(prepared.len() <= 3, "{prepared:?}");

    // It comes back: what was open goes first and in its order, and then all the rest.
    let before = world.clickhouse.seen.lock().len();
    *world.clickhouse.mood.lock() = Mood::Well;
    let end = Instant::now() + Duration::from_secs(600);
    while world.committed().last().map(|slice| slice.to_inclusive.clone()) != Some(number(read)) {
        assert!(Instant::now() < end, "not caught up: {:?}", world.board.snapshot());
        world.pass(Duration::from_secs(1)).await;
    }
    let after: Vec<String> = world.clickhouse.seen.lock()[before..]
        .iter()
        .map(|seen| seen.token.clone())
        .collect();
    assert_eq!(after[..prepared.len()], prepared[..], "open batches go first");
    let committed: u64 = world
        .control
        .calls("commit")
        .iter()
        .map(|claim| claim.batch.counts.rows)
        .sum();
    assert_eq!(committed, read);
    assert_eq!(world.budget.held(), 0);
    // From one slice to the next without a gap.
    let slices = world.committed();
    for pair in slices.windows(2) {
        assert_eq!(pair[1].from_exclusive, Position::After(pair[0].to_inclusive.clone()));
    }
}

#[tokio::test(start_paused = true)]
async fn connections_that_break() {
    two_hours_of(Mood::Broken, 200..700).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_overloaded() {
    two_hours_of(Mood::Refusing(241), 200..700).await;
}

#[tokio::test(start_paused = true)]
async fn a_table_that_is_gone() {
    // Asked each probe interval, which is 20 ms here: of two hours that would be too much for a test.
    let mut world = World::new(Delivery::ExactlyOnce, &[(0, 1)]).await;
    world.until("taken up", |world| !world.held().is_empty()).await;
    *world.clickhouse.mood.lock() = Mood::Refusing(60);
    world.read(1);
    world.pass(Duration::from_secs(2)).await;
    let counts: Vec<usize> = world.attempts().iter().map(|(_, attempts)| attempts.len()).collect();
    assert!((80..=110).contains(&counts[0]) && counts.len() <= 3, "{counts:?}");
    assert_eq!(world.fault(), Some(reason::DESTINATION_TABLE_NOT_FOUND));
    *world.clickhouse.mood.lock() = Mood::Well;
    world.until("committed", |world| !world.committed().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs() {
    // Each attempt ends after two minutes.
    two_hours_of(Mood::Silent, 40..62).await;
}

#[tokio::test(start_paused = true)]
async fn an_error_that_nobody_knows_becomes_a_persons_after_ten_minutes() {
    let mut world = World::new(Delivery::ExactlyOnce, &[(0, 1)]).await;
    world.until("taken up", |world| !world.held().is_empty()).await;
    *world.clickhouse.mood.lock() = Mood::Refusing(49);
    world.read(1);
    let permanent = |world: &World| world.lane.faults.worst().map(|fault| (fault.reason, fault.permanent));
    world.pass(Duration::from_secs(9 * 60)).await;
    assert_eq!(permanent(&world), Some((reason::DESTINATION_INSERT_FAILED, false)));
    world.pass(Duration::from_secs(2 * 60)).await;
    assert_eq!(permanent(&world), Some((reason::DESTINATION_INSERT_FAILED, true)));
    *world.clickhouse.mood.lock() = Mood::Well;
    world.until("committed", |world| !world.committed().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_takes_nothing_is_shown_while_it_does_not() {
    let mut world = World::new(Delivery::ExactlyOnce, &[(0, 1)]).await;
    world.until("taken up", |world| !world.held().is_empty()).await;
    let away = || commit::Error::Unavailable {
        message: "the database is read-only".to_owned(),
    };
    world.control.answers.lock().extend((0..1_000).map(|_| away()));
    let began = Instant::now();
    world.feed(0, 1..=3);
    world.pass(Duration::from_secs(8)).await;
    // Of its source, which nobody answers at, the lane says so as well.
    let shown = |world: &World| world.fault() == Some(reason::CONTROL_PLANE_UNAVAILABLE);
    assert!(!shown(&world), "it may be a take-over");
    while !shown(&world) {
        assert!(began.elapsed() < Duration::from_secs(30), "not shown");
        world.pass(Duration::from_secs(1)).await;
    }
    let (_, lanes) = world.board.snapshot();
    let fault = lanes.into_values().find_map(|lane| lane.fault).expect("a fault");
    assert!(
        !fault.permanent && fault.message.contains("the database is read-only"),
        "{fault:?}"
    );
    eprintln!("shown after {:?}", began.elapsed());
    world.control.answers.lock().clear();
    while world.committed().is_empty() || shown(&world) {
        assert!(
            began.elapsed() < Duration::from_secs(120),
            "{:?}",
            world.board.snapshot()
        );
        world.pass(Duration::from_secs(1)).await;
    }
}

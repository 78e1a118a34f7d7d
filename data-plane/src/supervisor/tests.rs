//! Lanes come, go, panic and come again.

use std::sync::atomic::{AtomicU64, Ordering};

use futures::{FutureExt as _, future::BoxFuture};
use millrace_common::{
    batch::OpenBatch,
    ids::{Epoch, Revision, ShardId},
    position::Position,
};

use super::*;
use crate::{
    commit::{self, Claim, ControlPlane},
    lane::{
        Settings,
        spec::Grant,
        status::{Board, ShardStatus},
    },
    source::Budget,
};

#[derive(Debug)]
struct NoControl;

impl ControlPlane for NoControl {
    fn prepare<'a>(&'a self, _: &'a Claim) -> BoxFuture<'a, Result<(), commit::Error>> {
        std::future::pending().boxed()
    }

    fn replace<'a>(&'a self, _: &'a Claim, _: &'a [OpenBatch]) -> BoxFuture<'a, Result<(), commit::Error>> {
        std::future::pending().boxed()
    }

    fn commit<'a>(&'a self, _: &'a Claim) -> BoxFuture<'a, Result<(), commit::Error>> {
        std::future::pending().boxed()
    }
}

/// Holds what it is told to hold, unless burned; panics at epoch 13.
fn obedient(context: Context, mut orders: watch::Receiver<Order>, burned: Burned) -> BoxFuture<'static, ()> {
    async move {
        loop {
            let order = orders.borrow_and_update().clone();
            let granted = &order.assignment.shards;
            assert!(
                granted
                    .values()
                    .all(|grant| grant.epoch != Epoch(13) || is_burned(&burned)),
                "for the test"
            );
            let fresh =
                |shard: &ShardId, grant: &Grant| burned.lock().get(shard).is_none_or(|epoch| *epoch < grant.epoch);
            let held = granted.iter().filter(|(shard, grant)| fresh(shard, grant));
            let status = |(shard, grant): (&ShardId, &Grant)| ShardStatus {
                shard: shard.clone(),
                epoch: grant.epoch,
                read: None,
                lag: None,
                finished: None,
                bytes_per_second: 0.0,
                complete_until: None,
                gap: None,
                out_of_range: 0,
                restarts: 0,
            };
            let status = LaneStatus {
                shards: held.map(status).collect(),
                fault: None,
            };
            context.board.put(order.assignment.pipe, order.round, status, true);
            if granted.is_empty() {
                return;
            }
            if orders.changed().await.is_err() {
                return;
            }
        }
    }
    .boxed()
}

fn is_burned(burned: &Burned) -> bool {
    !burned.lock().is_empty()
}

fn shard(n: u8) -> ShardId {
    format!("shardId-{n}").parse().expect("a shard id")
}

fn lane(pipe: PipeUid, shards: &[(u8, u64)]) -> Assignment {
    let grant = |epoch: u64| Grant {
        epoch: Epoch(epoch),
        start: Position::TrimHorizon,
        complete_until: None,
    };
    Assignment {
        pipe,
        name: "projects/default/pipes/events".to_owned(),
        current: Revision(1),
        specs: BTreeMap::new(),
        shards: shards.iter().map(|(n, epoch)| (shard(*n), grant(*epoch))).collect(),
        open_batches: Vec::new(),
    }
}

struct World {
    board: Board,
    desired: watch::Sender<Option<AssignmentSet>>,
    drain: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

static GENERATION: AtomicU64 = AtomicU64::new(1);

impl World {
    fn new() -> Self {
        let (board, (desired, receiver), drain) = (Board::new(), watch::channel(None), CancellationToken::new());
        let context = Context {
            control: Arc::new(NoControl),
            budget: Budget::new(1),
            board: board.clone(),
            settings: Settings::default(),
            clock: millrace_common::clock::Clock::System,
            spare_cores: Arc::new(tokio::sync::Semaphore::new(0)),
        };
        let running = tokio::spawn(Supervisor::with(obedient, context, receiver).run(drain.clone()));
        Self {
            board,
            desired,
            drain,
            running,
        }
    }

    /// Wants these lanes, and waits until the board says that they have been taken up.
    async fn want(&self, lanes: Vec<Assignment>) -> BTreeMap<PipeUid, LaneStatus> {
        let generation = Generation(GENERATION.fetch_add(1, Ordering::SeqCst));
        self.desired.send_replace(Some(AssignmentSet { generation, lanes }));
        self.board_until(|at, _| at == generation).await
    }

    async fn board_until(
        &self,
        condition: impl Fn(Generation, &BTreeMap<PipeUid, LaneStatus>) -> bool,
    ) -> BTreeMap<PipeUid, LaneStatus> {
        let wait = async {
            loop {
                let (generation, lanes) = self.board.snapshot();
                if condition(generation, &lanes) {
                    return lanes;
                }
                self.board.urgent().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(200), wait)
            .await
            .expect("in time")
    }
}

fn held(status: &LaneStatus) -> Vec<(ShardId, u64)> {
    status
        .shards
        .iter()
        .map(|shard| (shard.shard.clone(), shard.epoch.0))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn lanes_follow_the_assignment() {
    let (world, a, b) = (World::new(), PipeUid::new(), PipeUid::new());
    let lanes = world.want(vec![lane(a, &[(0, 1)]), lane(b, &[(1, 1)])]).await;
    assert_eq!(
        (held(&lanes[&a]), held(&lanes[&b])),
        (vec![(shard(0), 1)], vec![(shard(1), 1)])
    );
    let lanes = world.want(vec![lane(a, &[(0, 1), (2, 5)])]).await;
    assert_eq!(held(&lanes[&a]), [(shard(0), 1), (shard(2), 5)]);
    let lanes = world.board_until(|_, lanes| lanes.len() == 1).await;
    assert!(lanes.contains_key(&a));
    // A pipe without shards here, and then with some again.
    world.want(vec![lane(a, &[])]).await;
    world.board_until(|_, lanes| lanes.is_empty()).await;
    let lanes = world.want(vec![lane(a, &[(0, 2)])]).await;
    assert_eq!(held(&lanes[&a]), [(shard(0), 2)]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_costs_its_lane_its_leases_and_no_other() {
    let (world, bad, good) = (World::new(), PipeUid::new(), PipeUid::new());
    world.want(vec![lane(bad, &[(0, 13)]), lane(good, &[(1, 1)])]).await;
    let lanes = world
        .board_until(|_, lanes| lanes.get(&bad).is_some_and(|lane| lane.fault.is_some()))
        .await;
    assert_eq!((held(&lanes[&bad]), held(&lanes[&good])), (vec![], vec![(shard(1), 1)]));
    // Started again, it does not touch what it was told before the panic.
    let lanes = world
        .board_until(|_, lanes| lanes.get(&bad).is_some_and(|lane| lane.fault.is_none()))
        .await;
    assert_eq!(held(&lanes[&bad]), []);
    let lanes = world.want(vec![lane(bad, &[(0, 14)]), lane(good, &[(1, 1)])]).await;
    assert_eq!(held(&lanes[&bad]), [(shard(0), 14)]);
}

#[tokio::test(start_paused = true)]
async fn draining_ends_all_lanes_and_the_supervisor() {
    let (world, pipe) = (World::new(), PipeUid::new());
    world.want(vec![lane(pipe, &[(0, 1)])]).await;
    world.drain.cancel();
    tokio::time::timeout(Duration::from_secs(20), world.running)
        .await
        .expect("in time")
        .expect("no panic");
    assert!(world.board.snapshot().1.is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_a_session_the_lanes_run_on() {
    let (mut world, pipe) = (World::new(), PipeUid::new());
    world.want(vec![lane(pipe, &[(0, 1)])]).await;
    world.desired = watch::channel(None).0;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(held(&world.board.snapshot().1[&pipe]), [(shard(0), 1)]);
    world.drain.cancel();
    tokio::time::timeout(Duration::from_secs(20), world.running)
        .await
        .expect("in time")
        .expect("no panic");
}

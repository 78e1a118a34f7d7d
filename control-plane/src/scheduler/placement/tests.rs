//! Examples, and the invariants of placement over random worlds.

use proptest::prelude::*;

use super::*;

fn worker_id(n: usize) -> WorkerId {
    format!("worker-{n:03}").parse().unwrap()
}

fn shard_id(n: usize) -> ShardId {
    format!("shardId-{n:012}").parse().unwrap()
}

/// Uids in ascending order, so that pipe 0 of a test is pipe 0 of the input.
fn uid(n: usize) -> PipeUid {
    format!("00000000-0000-4000-8000-{n:012}").parse().unwrap()
}

const ACTIVE: Worker = Worker {
    mode: Mode::Active,
    capacity: 2,
    protocol: 2,
};

fn world(workers: usize, pipes: &[(u32, usize)]) -> Input {
    let unit = |n: usize| Unit {
        shards: vec![shard_id(n)],
        weight: 1000,
        place: Place::Nowhere,
        movable: true,
    };
    Input {
        workers: (0..workers).map(|n| (worker_id(n), ACTIVE)).collect(),
        pipes: pipes
            .iter()
            .enumerate()
            .map(|(n, (replicas, units))| {
                (
                    uid(n),
                    Pipe {
                        replicas: *replicas,
                        protocol: 1,
                        units: (0..*units).map(unit).collect(),
                    },
                )
            })
            .collect(),
        rebalance: true,
    }
}

/// The world after the placement was carried out.
fn settled(mut input: Input, placement: &Placement) -> Input {
    for (uid, pipe) in &mut input.pipes {
        for (unit, worker) in pipe.units.iter_mut().zip(&placement[uid]) {
            unit.place = worker.clone().map_or(Place::Nowhere, Place::Runs);
        }
    }
    input
}

/// Units per worker, over all pipes.
fn counts(placement: &Placement) -> BTreeMap<WorkerId, usize> {
    let mut counts = BTreeMap::new();
    for worker in placement.values().flatten().flatten() {
        *counts.entry(worker.clone()).or_default() += 1;
    }
    counts
}

fn moved(a: &Placement, b: &Placement) -> usize {
    a.values()
        .flatten()
        .zip(b.values().flatten())
        .filter(|(a, b)| a != b)
        .count()
}

fn join(input: &mut Input, n: usize) {
    input.workers.insert(worker_id(n), ACTIVE);
}

#[test]
fn one_replica_is_one_worker() {
    let placement = place(&world(3, &[(1, 8)]));
    assert_eq!(counts(&placement).into_values().collect::<Vec<_>>(), [8]);
}

#[test]
fn replicas_spread_evenly_and_a_new_worker_gets_its_share() {
    let mut input = world(1, &[(2, 4)]);
    let first = place(&input);
    assert_eq!(counts(&first), BTreeMap::from([(worker_id(0), 4)]));
    input = settled(input, &first);
    join(&mut input, 1);
    let second = place(&input);
    assert_eq!(counts(&second), BTreeMap::from([(worker_id(0), 2), (worker_id(1), 2)]));
    // A third one is more than the pipe may have.
    input = settled(input, &second);
    join(&mut input, 2);
    assert_eq!(place(&input), second);
}

#[test]
fn pipes_of_one_replica_move_whole_to_a_new_worker() {
    let mut input = world(1, &[(1, 4), (1, 4), (1, 4)]);
    let placement = place(&input);
    input = settled(input, &placement);
    join(&mut input, 1);
    let after = place(&input);
    assert_eq!(moved(&placement, &after), 4);
    for pipe in after.values() {
        assert!(pipe.iter().all(|w| *w == pipe[0]), "{pipe:?}");
    }
}

#[test]
fn nothing_moves_for_balance_unless_asked() {
    let mut input = world(1, &[(2, 4)]);
    let placement = place(&input);
    input = settled(input, &placement);
    join(&mut input, 1);
    input.rebalance = false;
    assert_eq!(place(&input), placement);
}

#[test]
fn a_pipe_goes_only_to_workers_that_understand_it() {
    let mut input = world(2, &[(2, 4), (2, 4)]);
    input.workers.get_mut(&worker_id(0)).unwrap().protocol = 1;
    input.pipes.get_mut(&uid(1)).unwrap().protocol = 2;
    let placement = place(&input);
    assert!(placement[&uid(1)].iter().all(|at| *at == Some(worker_id(1))));
    // The other one, which both understand, makes up for it.
    assert!(placement[&uid(0)].iter().all(|at| *at == Some(worker_id(0))));
    // It begins to ask for more than its worker knows, and there is no other.
    let mut input = settled(input, &placement);
    input.pipes.get_mut(&uid(0)).unwrap().protocol = 2;
    input.workers.remove(&worker_id(1));
    assert!(place(&input).values().flatten().all(Option::is_none));
    join(&mut input, 1);
    assert!(place(&input).values().flatten().all(|at| *at == Some(worker_id(1))));
    // Balance does not bring it back, however unequal the loads are.
    let input = settled(input.clone(), &place(&input));
    assert!(place(&input).values().flatten().all(|at| *at == Some(worker_id(1))));
}

#[test]
fn what_may_not_move_stays_and_the_rest_makes_room() {
    let mut input = world(1, &[(2, 4)]);
    let placement = place(&input);
    input = settled(input, &placement);
    join(&mut input, 1);
    let units = &mut input.pipes.get_mut(&uid(0)).unwrap().units;
    units[0].movable = false;
    units[1].movable = false;
    let after = place(&input);
    assert_eq!(after[&uid(0)][..2], [Some(worker_id(0)), Some(worker_id(0))]);
    assert_eq!(counts(&after)[&worker_id(1)], 2);
}

#[test]
fn a_silent_worker_keeps_what_runs_and_gets_nothing_new() {
    let mut input = world(2, &[(2, 4)]);
    input = settled(input.clone(), &place(&input));
    input.workers.get_mut(&worker_id(1)).unwrap().mode = Mode::Silent;
    let before = place(&input);
    assert_eq!(counts(&before)[&worker_id(1)], 2);
    let units = &mut input.pipes.get_mut(&uid(0)).unwrap().units;
    units.push(Unit {
        shards: vec![shard_id(9)],
        weight: 1,
        place: Place::Home(worker_id(1)),
        movable: true,
    });
    assert_eq!(place(&input)[&uid(0)][4], Some(worker_id(0)));
}

#[test]
fn a_restarted_worker_gets_its_own_back() {
    let mut input = world(2, &[(2, 4)]);
    let placement = place(&input);
    input = settled(input, &placement);
    for unit in &mut input.pipes.get_mut(&uid(0)).unwrap().units {
        if unit.place == Place::Runs(worker_id(0)) {
            unit.place = Place::Home(worker_id(0));
        }
    }
    assert_eq!(place(&input), placement);
}

#[test]
fn heavy_shards_count_for_more() {
    let mut input = world(2, &[(2, 5)]);
    input.pipes.get_mut(&uid(0)).unwrap().units[0].weight = 4000;
    let placement = place(&input);
    let heavy = placement[&uid(0)][0].clone().unwrap();
    assert_eq!(counts(&placement)[&heavy], 1, "{placement:?}");
}

#[test]
fn a_large_worker_gets_more() {
    let mut input = world(2, &[(2, 8)]);
    input.workers.get_mut(&worker_id(1)).unwrap().capacity = 6;
    assert_eq!(
        counts(&place(&input)),
        BTreeMap::from([(worker_id(0), 2), (worker_id(1), 6)])
    );
}

#[test]
fn a_move_goes_all_the_way() {
    // Three idle workers: the best of them is not the one that is tried first.
    let mut input = world(4, &[(2, 1)]);
    for (n, capacity) in [1, 5, 2, 3].into_iter().enumerate() {
        input.workers.get_mut(&worker_id(n)).unwrap().capacity = capacity;
    }
    input.pipes.get_mut(&uid(0)).unwrap().units[0].place = Place::Runs(worker_id(0));
    input.rebalance = true;
    let placement = place(&input);
    assert_eq!(placement[&uid(0)], vec![Some(worker_id(1))]);
    assert_eq!(place(&settled(input, &placement)), placement);
}

#[test]
fn ten_thousand_shards_are_placed_within_a_period() {
    let mut input = world(40, &[(100, 2500); 4]);
    let placement = place(&input);
    input = settled(input, &placement);
    join(&mut input, 40);
    let started = std::time::Instant::now();
    let after = place(&input);
    assert!(
        started.elapsed() < std::time::Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    // One of 41 has its share; no more moved than that.
    assert!(
        (200..=250).contains(&moved(&placement, &after)),
        "{}",
        moved(&placement, &after)
    );
}

fn any_protocol() -> impl Strategy<Value = u32> {
    prop_oneof![1 => Just(1), 3 => Just(2)]
}

fn any_mode() -> impl Strategy<Value = Mode> {
    prop_oneof![4 => Just(Mode::Active), 1 => Just(Mode::Silent), 1 => Just(Mode::Leaving)]
}

prop_compose! {
    fn any_unit(workers: usize)(
        place in 0..3u8,
        at in 0..=workers,
        weight in 1..10_000_000u64,
        size in 1..4usize,
        movable in prop::bool::weighted(0.8),
    ) -> (u8, usize, u64, usize, bool) {
        (place, at, weight, size, movable)
    }
}

prop_compose! {
    fn any_world()(workers in 1..6usize)(
        modes in prop::collection::vec((any_mode(), 1..9u32, any_protocol()), workers),
        pipes in prop::collection::vec((0..5u32, any_protocol(), prop::collection::vec(any_unit(workers), 0..12)), 0..6),
        rebalance in any::<bool>(),
    ) -> Input {
        let mut input = Input { rebalance, ..Input::default() };
        for (n, (mode, capacity, protocol)) in modes.into_iter().enumerate() {
            input.workers.insert(worker_id(n), Worker { mode, capacity, protocol });
        }
        for (n, (replicas, protocol, units)) in pipes.into_iter().enumerate() {
            let mut next = 0;
            let units = units.into_iter().map(|(place, at, weight, size, movable)| {
                let shards = (next..next + size).map(shard_id).collect();
                next += size;
                // One of the workers of the picture, or one that is gone.
                let place = match place {
                    0 => Place::Nowhere,
                    1 => Place::Runs(worker_id(at)),
                    _ => Place::Home(worker_id(at)),
                };
                Unit { shards, weight, place, movable }
            }).collect();
            input.pipes.insert(uid(n), Pipe { replicas, protocol, units });
        }
        input
    }
}

fn mode(input: &Input, worker: &WorkerId) -> Option<Mode> {
    input.workers.get(worker).map(|w| w.mode)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Who may have what, in any world.
    #[test]
    fn the_rules_hold(input in any_world()) {
        let placement = place(&input);
        for (uid, pipe) in &input.pipes {
            let able = |w: &Worker| w.mode == Mode::Active && w.protocol >= pipe.protocol;
            let active = input.workers.values().filter(|w| able(w)).count();
            let at = &placement[uid];
            prop_assert_eq!(at.len(), pipe.units.len());
            let stuck: BTreeSet<&WorkerId> =
                at.iter().flatten().filter(|w| mode(&input, w) == Some(Mode::Silent)).collect();
            let used: BTreeSet<&WorkerId> = at.iter().flatten().collect();
            prop_assert!(used.iter().all(|w| input.workers[*w].protocol >= pipe.protocol));
            let replicas = usize::try_from(pipe.replicas.max(1)).unwrap();
            prop_assert!(used.len() <= replicas.max(stuck.len()), "{:?} on {:?}", pipe.replicas, used);
            for (unit, worker) in pipe.units.iter().zip(at) {
                match worker.as_ref().map(|w| (w, mode(&input, w))) {
                    Some((_, Some(Mode::Active))) => {}
                    Some((w, Some(Mode::Silent))) => prop_assert_eq!(&unit.place, &Place::Runs(w.clone())),
                    Some((w, other)) => prop_assert!(false, "{w} is {other:?} and got something"),
                    None => prop_assert!(active == 0 || stuck.len() >= replicas, "left out though there is room"),
                }
            }
        }
    }

    /// The same twice is the same; and what was carried out once is left alone.
    #[test]
    fn a_settled_world_stays(input in any_world()) {
        let placement = place(&input);
        prop_assert_eq!(&place(&input), &placement);
        let settled = settled(input, &placement);
        prop_assert_eq!(&place(&settled), &placement);
    }

    /// Whatever may stay, stays, unless balance or the number of replicas asks for it.
    #[test]
    fn what_runs_stays(mut input in any_world()) {
        input.rebalance = false;
        for pipe in input.pipes.values_mut() {
            pipe.replicas = 100;
        }
        let placement = place(&input);
        for (uid, pipe) in &input.pipes {
            for (unit, worker) in pipe.units.iter().zip(&placement[uid]) {
                if let Place::Runs(at) = &unit.place
                    && matches!(mode(&input, at), Some(Mode::Active | Mode::Silent))
                    && input.workers[at].protocol >= pipe.protocol
                {
                    prop_assert_eq!(Some(at), worker.as_ref());
                }
            }
        }
    }

    /// Balance never moves what may not move.
    #[test]
    fn the_unmovable_stays(mut input in any_world()) {
        input.rebalance = false;
        let before = place(&input);
        input.rebalance = true;
        let after = place(&input);
        for (uid, pipe) in &input.pipes {
            for (n, unit) in pipe.units.iter().enumerate() {
                prop_assert!(unit.movable || before[uid][n] == after[uid][n]);
            }
        }
    }

    /// A worker that joins gets its share, only it gets anything, and no more moves than that.
    #[test]
    fn joining_moves_a_share(workers in 1..8usize, pipes in prop::collection::vec(1..16usize, 1..5)) {
        let pipes: Vec<(u32, usize)> = pipes.into_iter().map(|units| (100, units)).collect();
        let units: usize = pipes.iter().map(|(_, n)| n).sum();
        let mut input = world(workers, &pipes);
        let before = place(&input);
        input = settled(input, &before);
        join(&mut input, workers);
        let after = place(&input);
        for (b, a) in before.values().flatten().zip(after.values().flatten()) {
            prop_assert!(a == b || *a == Some(worker_id(workers)));
        }
        prop_assert!(moved(&before, &after) <= units.div_ceil(workers + 1));
        let counts = counts(&after);
        let most = counts.values().max().copied().unwrap_or(0);
        let least = input.workers.keys().map(|w| counts.get(w).copied().unwrap_or(0)).min().unwrap_or(0);
        let mean = units / (workers + 1);
        prop_assert!(most - least <= 1 + mean / 4, "{counts:?}");
    }

    /// When a worker leaves or dies, only what it had moves, and the rest stays balanced.
    #[test]
    fn leaving_moves_only_what_it_had(
        workers in 2..8usize,
        pipes in prop::collection::vec(1..16usize, 1..5),
        dies in any::<bool>(),
    ) {
        let pipes: Vec<(u32, usize)> = pipes.into_iter().map(|units| (100, units)).collect();
        let mut input = world(workers, &pipes);
        let before = place(&input);
        input = settled(input, &before);
        if dies {
            input.workers.remove(&worker_id(0));
        } else {
            input.workers.get_mut(&worker_id(0)).unwrap().mode = Mode::Leaving;
        }
        let after = place(&input);
        for (b, a) in before.values().flatten().zip(after.values().flatten()) {
            prop_assert!(a.is_some() && *a != Some(worker_id(0)));
            prop_assert!(a == b || *b == Some(worker_id(0)));
        }
        let counts = counts(&after);
        let spread = (1..workers).map(|n| counts.get(&worker_id(n)).copied().unwrap_or(0));
        prop_assert!(spread.clone().max().unwrap() - spread.min().unwrap() <= 1);
    }
}

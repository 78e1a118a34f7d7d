//! Examples, and a small world of workers and a store in which plans are carried out.

use millrace_common::ids::Incarnation;
use proptest::prelude::*;

use super::*;

fn worker_id(n: usize) -> WorkerId {
    format!("worker-{n}").parse().unwrap()
}

fn shard_id(n: usize) -> ShardId {
    format!("shardId-{n:012}").parse().unwrap()
}

fn uid(n: usize) -> PipeUid {
    format!("00000000-0000-4000-8000-{n:012}").parse().unwrap()
}

fn shard() -> ShardView {
    ShardView {
        epoch: Epoch(0),
        readable: true,
        lease: None,
        home: None,
        weight: 1000,
        resting: false,
    }
}

fn held_by(n: usize) -> ShardView {
    let lease = LeaseView {
        worker: worker_id(n),
        held: true,
        releasing: false,
        ended: None,
    };
    ShardView {
        epoch: Epoch(1),
        lease: Some(lease),
        home: Some(worker_id(n)),
        ..shard()
    }
}

fn world(workers: usize, replicas: u32, shards: Vec<ShardView>) -> Snapshot {
    let worker = |n: usize| WorkerView {
        instance: WorkerInstance {
            worker: worker_id(n),
            incarnation: Incarnation::new(),
        },
        mode: Mode::Active,
        capacity: 2,
        protocol: 2,
    };
    let shards = shards
        .into_iter()
        .enumerate()
        .map(|(n, shard)| (shard_id(n), shard))
        .collect();
    let pipe = PipeView {
        runnable: true,
        replicas,
        protocol: 1,
        steady: true,
        shards,
        ties: Vec::new(),
    };
    Snapshot {
        workers: (0..workers).map(|n| (worker_id(n), worker(n))).collect(),
        pipes: BTreeMap::from([(uid(0), pipe)]),
        rebalance: true,
    }
}

fn pipe(world: &mut Snapshot) -> &mut PipeView {
    world.pipes.get_mut(&uid(0)).unwrap()
}

fn lease(world: &mut Snapshot, n: usize) -> &mut LeaseView {
    pipe(world)
        .shards
        .get_mut(&shard_id(n))
        .unwrap()
        .lease
        .as_mut()
        .unwrap()
}

/// Which worker is granted which shards.
fn grants(actions: &[Action]) -> Vec<(WorkerId, Vec<ShardId>)> {
    let shards = |of: &[(ShardId, Epoch)]| of.iter().map(|(id, _)| id.clone()).collect();
    let grant = |a: &Action| match a {
        Action::Grant { to, shards: s, .. } => Some((to.worker.clone(), shards(s))),
        _ => None,
    };
    actions.iter().filter_map(grant).collect()
}

fn revoked(actions: &[Action]) -> Vec<(ShardId, Option<WorkerId>)> {
    let revoke = |a: &Action| match a {
        Action::Revoke { shard, target, .. } => Some((shard.clone(), target.clone())),
        _ => None,
    };
    actions.iter().filter_map(revoke).collect()
}

#[test]
fn free_shards_are_granted_and_held_ones_left_alone() {
    let world = world(1, 1, vec![shard(), held_by(0), shard()]);
    let actions = plan(&world);
    assert_eq!(grants(&actions), [(worker_id(0), vec![shard_id(0), shard_id(2)])]);
    assert_eq!(actions.len(), 1);
}

#[test]
fn what_waits_for_parents_rests_or_has_no_worker_is_not_granted() {
    let mut waiting = world(1, 1, vec![shard(), shard()]);
    pipe(&mut waiting).shards.get_mut(&shard_id(0)).unwrap().readable = false;
    pipe(&mut waiting).shards.get_mut(&shard_id(1)).unwrap().resting = true;
    assert_eq!(plan(&waiting), []);
    assert_eq!(plan(&world(0, 1, vec![shard()])), []);
}

#[test]
fn a_planned_move_asks_first_and_grants_when_released() {
    let mut world = world(2, 2, vec![held_by(0), held_by(0)]);
    let actions = plan(&world);
    let [(moved, target)] = &revoked(&actions)[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(target, &Some(worker_id(1)));
    assert_eq!(actions.len(), 1, "nothing is granted while it is held");
    // Asked and not released yet: nothing more to do, with or without balancing.
    let asked = pipe(&mut world).shards.get_mut(moved).unwrap();
    asked.lease.as_mut().unwrap().releasing = true;
    asked.home = target.clone();
    assert_eq!(plan(&world), []);
    world.rebalance = false;
    assert_eq!(plan(&world), []);
    pipe(&mut world).shards.get_mut(moved).unwrap().lease = None;
    assert_eq!(grants(&plan(&world)), [(worker_id(1), vec![moved.clone()])]);
}

#[test]
fn a_stopped_pipe_is_asked_for_once() {
    let mut world = world(1, 1, vec![held_by(0), held_by(0), shard()]);
    pipe(&mut world).runnable = false;
    lease(&mut world, 0).releasing = true;
    assert_eq!(
        plan(&world),
        [Action::Revoke {
            pipe: uid(0),
            shard: shard_id(1),
            target: None
        }]
    );
}

#[test]
fn an_ended_lease_is_taken_back_before_anything_is_granted() {
    let mut world = world(2, 2, vec![held_by(0), held_by(1)]);
    lease(&mut world, 0).ended = Some(Ended::Expired);
    assert_eq!(
        plan(&world),
        [Action::Expire {
            pipe: uid(0),
            shards: vec![(shard_id(0), Epoch(1))]
        }]
    );
}

#[test]
fn a_restart_moves_nothing_of_the_others() {
    // All leases of worker 0 have ended because it restarted: worker 1 must not be emptied to fill it.
    let mut world = world(2, 2, vec![held_by(0), held_by(0), held_by(1), held_by(1)]);
    lease(&mut world, 0).ended = Some(Ended::Replaced);
    lease(&mut world, 1).ended = Some(Ended::Replaced);
    assert_eq!(plan(&world).len(), 1);
}

#[test]
fn open_batches_keep_their_shards_together() {
    let mut world = world(3, 3, (0..6).map(|_| shard()).collect());
    pipe(&mut world).ties = vec![
        vec![shard_id(0), shard_id(4)],
        vec![shard_id(4), shard_id(5), shard_id(99)],
    ];
    let granted = grants(&plan(&world));
    assert_eq!(granted.len(), 3);
    assert!(
        granted
            .iter()
            .any(|(_, s)| *s == [shard_id(0), shard_id(4), shard_id(5)]),
        "{granted:?}"
    );
}

#[test]
fn a_free_shard_that_is_tied_to_a_held_one_goes_there_with_it_or_waits() {
    let mut world = world(2, 2, vec![shard(), held_by(1)]);
    pipe(&mut world).ties = vec![vec![shard_id(0), shard_id(1)]];
    assert_eq!(grants(&plan(&world)), [(worker_id(1), vec![shard_id(0), shard_id(1)])]);
    lease(&mut world, 1).releasing = true;
    assert_eq!(plan(&world), []);
    lease(&mut world, 1).releasing = false;
    world.workers.get_mut(&worker_id(1)).unwrap().mode = Mode::Silent;
    assert_eq!(plan(&world), []);
}

#[test]
fn a_leaving_worker_is_asked_for_everything_even_if_it_is_the_only_one() {
    let mut world = world(1, 1, vec![held_by(0), held_by(0)]);
    world.workers.get_mut(&worker_id(0)).unwrap().mode = Mode::Leaving;
    assert_eq!(revoked(&plan(&world)), [(shard_id(0), None), (shard_id(1), None)]);
}

#[test]
fn a_pipe_in_trouble_is_not_moved_for_balance() {
    let mut world = world(2, 2, vec![held_by(0), held_by(0)]);
    pipe(&mut world).steady = false;
    assert_eq!(plan(&world), []);
}

#[derive(Debug, Clone)]
enum Event {
    Join(usize),
    Die(usize),
    Restart(usize),
    Leave(usize),
    Report(usize),
    Stop(usize),
    Start(usize),
    Replicas(usize, u32),
    Split(usize, usize),
    Balance(bool),
}

fn any_event() -> impl Strategy<Value = Event> {
    let (w, p) = (0..4usize, 0..2usize);
    prop_oneof![
        3 => w.clone().prop_map(Event::Join),
        1 => w.clone().prop_map(Event::Die),
        1 => w.clone().prop_map(Event::Restart),
        1 => w.clone().prop_map(Event::Leave),
        6 => w.prop_map(Event::Report),
        1 => p.clone().prop_map(Event::Stop),
        2 => p.clone().prop_map(Event::Start),
        1 => (p.clone(), 0..4u32).prop_map(|(p, n)| Event::Replicas(p, n)),
        1 => (p, 0..20usize).prop_map(|(p, n)| Event::Split(p, n)),
        1 => any::<bool>().prop_map(Event::Balance),
    ]
}

fn apply(world: &mut Snapshot, event: &Event) {
    match event {
        Event::Join(n) => {
            let instance = WorkerInstance {
                worker: worker_id(*n),
                incarnation: Incarnation::new(),
            };
            let view = WorkerView {
                instance,
                mode: Mode::Active,
                capacity: 2,
                protocol: 2,
            };
            world.workers.entry(worker_id(*n)).or_insert(view);
        }
        Event::Die(n) => {
            world.workers.remove(&worker_id(*n));
            end(world, *n, Ended::Expired);
        }
        Event::Restart(n) => {
            if let Some(worker) = world.workers.get_mut(&worker_id(*n)) {
                worker.instance.incarnation = Incarnation::new();
                worker.mode = Mode::Active;
                end(world, *n, Ended::Replaced);
            }
        }
        Event::Leave(n) => {
            if let Some(worker) = world.workers.get_mut(&worker_id(*n)) {
                worker.mode = Mode::Leaving;
            }
        }
        Event::Report(n) => report(world, *n),
        Event::Stop(n) => world.pipes.get_mut(&uid(*n)).unwrap().runnable = false,
        Event::Start(n) => world.pipes.get_mut(&uid(*n)).unwrap().runnable = true,
        Event::Replicas(n, replicas) => world.pipes.get_mut(&uid(*n)).unwrap().replicas = *replicas,
        Event::Split(n, shards) => {
            let next = world.pipes[&uid(*n)].shards.len();
            let pipe = world.pipes.get_mut(&uid(*n)).unwrap();
            pipe.shards.entry(shard_id(shards % (next + 1))).or_insert_with(shard);
        }
        Event::Balance(yes) => world.rebalance = *yes,
    }
}

fn end(world: &mut Snapshot, n: usize, why: Ended) {
    for shard in world.pipes.values_mut().flat_map(|pipe| pipe.shards.values_mut()) {
        if let Some(lease) = shard.lease.as_mut().filter(|lease| lease.worker == worker_id(n)) {
            lease.ended = Some(why);
        }
    }
}

/// The worker has taken up its set: it holds what it was granted, and of what it was asked for it has committed the open
/// batches and let go.
fn report(world: &mut Snapshot, n: usize) {
    for pipe in world.pipes.values_mut() {
        for (id, shard) in &mut pipe.shards {
            let Some(lease) = shard.lease.as_mut().filter(|lease| lease.worker == worker_id(n)) else {
                continue;
            };
            if !lease.releasing {
                lease.held = true;
            } else if lease.ended.is_none() {
                lease.ended = Some(Ended::Released);
                pipe.ties.retain(|tie| !tie.contains(id));
            }
        }
    }
}

/// Carries out a plan as the coordinator and the store would, and checks that they may.
fn execute(world: &mut Snapshot, actions: &[Action]) -> Result<(), TestCaseError> {
    for action in actions {
        match action {
            Action::Expire { pipe, shards } => {
                for (id, epoch) in shards {
                    let shard = world.pipes.get_mut(pipe).unwrap().shards.get_mut(id).unwrap();
                    prop_assert_eq!(shard.epoch, *epoch);
                    let lease = shard.lease.take().unwrap();
                    prop_assert!(lease.ended.is_some());
                }
            }
            Action::Revoke { pipe, shard, target } => {
                let shard = world.pipes.get_mut(pipe).unwrap().shards.get_mut(shard).unwrap();
                let lease = shard.lease.as_mut().unwrap();
                prop_assert!(!lease.releasing && lease.ended.is_none());
                lease.releasing = true;
                shard.home.clone_from(target);
            }
            Action::Grant { pipe, to, shards } => {
                prop_assert_eq!(&world.workers[&to.worker].instance, to);
                prop_assert_eq!(world.workers[&to.worker].mode, Mode::Active);
                let pipe = world.pipes.get_mut(pipe).unwrap();
                let given: BTreeSet<&ShardId> = shards.iter().map(|(id, _)| id).collect();
                prop_assert_eq!(given.len(), shards.len());
                for tie in &pipe.ties {
                    let part = tie.iter().filter(|id| given.contains(id)).count();
                    prop_assert!(part == 0 || part == tie.len(), "an open batch is torn apart");
                }
                for (id, epoch) in shards {
                    let shard = pipe.shards.get_mut(id).unwrap();
                    prop_assert!(shard.readable && shard.epoch == *epoch);
                    let free = shard.lease.as_ref().is_none_or(|lease| lease.worker == to.worker);
                    prop_assert!(free, "granted twice");
                    shard.epoch = epoch.next();
                    shard.home = Some(to.worker.clone());
                    shard.lease = Some(LeaseView {
                        worker: to.worker.clone(),
                        held: false,
                        releasing: false,
                        ended: None,
                    });
                }
            }
        }
    }
    Ok(())
}

/// After the events stop and everybody answers: all that should run runs, on few enough workers, and stays there.
fn settle(world: &mut Snapshot) -> Result<(), TestCaseError> {
    for _ in 0..30 {
        let actions = plan(world);
        execute(world, &actions)?;
        (0..4).for_each(|n| report(world, n));
    }
    prop_assert_eq!(plan(world), []);
    let active: BTreeSet<&WorkerId> = world
        .workers
        .iter()
        .filter(|(_, w)| w.mode == Mode::Active)
        .map(|(id, _)| id)
        .collect();
    for pipe in world.pipes.values() {
        let holders: BTreeSet<&WorkerId> = pipe
            .shards
            .values()
            .filter_map(|s| s.lease.as_ref())
            .map(|l| &l.worker)
            .collect();
        if !pipe.runnable || active.is_empty() {
            prop_assert!(holders.is_empty(), "held though it should not run");
            continue;
        }
        prop_assert!(pipe.shards.values().all(|s| s.lease.is_some()), "left lying");
        prop_assert!(holders.is_subset(&active) && holders.len() <= pipe.replicas.max(1) as usize);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_history_ends_with_everything_in_its_place(
        events in prop::collection::vec(any_event(), 0..60),
        ties in prop::collection::vec(prop::collection::btree_set(0..5usize, 1..4), 0..3),
    ) {
        let mut world = world(2, 2, (0..5).map(|_| shard()).collect());
        let shards = (0..3).map(|n| (shard_id(n), shard())).collect();
        world.pipes.insert(uid(1), PipeView { runnable: true, replicas: 1, protocol: 1, steady: true, shards, ties: vec![] });
        pipe(&mut world).ties = ties.into_iter().map(|tie| tie.into_iter().map(shard_id).collect()).collect();
        for event in events {
            apply(&mut world, &event);
            let actions = plan(&world);
            execute(&mut world, &actions)?;
        }
        settle(&mut world)?;
    }
}

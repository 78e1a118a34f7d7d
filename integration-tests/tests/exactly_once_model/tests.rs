//! The runs.

use std::time::Instant;

use millrace_control_plane::protocol::invariants;
use stateright::{Checker, HasDiscoveries, Model};

use super::{
    faulty::Fault,
    properties,
    world::{Trouble, World},
};

/// Nothing goes wrong, but for what is lost, late and repeated.
const NOTHING: Trouble = Trouble {
    crashes: [0, 0],
    expiries: 0,
    moves: 0,
};
/// A worker dies.
const CRASH: Trouble = Trouble {
    crashes: [1, 0],
    ..NOTHING
};

/// A worker dies, and the leases of one end while it goes on.
const EXPIRY: Trouble = Trouble { expiries: 1, ..CRASH };

/// Threads of one run.
const THREADS: usize = 2;
/// States that a run may have. A world with more is not explored to its end, and a fault has to show before that.
const MAX_STATES: usize = 2_000_000;
/// The same for worlds that are only explored when asked for.
const MAX_STATES_OF_LARGER: usize = 100_000_000;

fn world(records: [u8; 4], trouble: Trouble) -> World {
    World {
        records,
        trouble,
        fault: Fault::None,
        poison: None,
    }
}

/// Explores a world to its end, as `explore_up_to`.
fn explore(name: &str, world: World, possible: &[&'static str]) {
    explore_up_to(MAX_STATES, name, world, possible);
}

/// Explores a world to its end. Every property must hold, and each of `possible` must be found.
fn explore_up_to(states: usize, name: &str, world: World, possible: &[&'static str]) {
    let begun = Instant::now();
    let checker = world
        .checker()
        .threads(THREADS)
        .target_state_count(states)
        .spawn_bfs()
        .join();
    eprintln!(
        "{name}: {} states, {} transitions, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed().as_secs_f64()
    );
    assert!(checker.state_count() < states, "{name} is too large to be explored");
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        match property.expectation {
            stateright::Expectation::Always | stateright::Expectation::Eventually => {
                assert!(found.is_none(), "{name}: {} is broken: {found:?}", property.name);
            }
            stateright::Expectation::Sometimes => {
                assert!(
                    found.is_some() || !possible.contains(&property.name),
                    "{name}: {} was never seen",
                    property.name
                );
            }
        }
    }
}

/// Explores a world with something wrong in it until a property is broken, which must be one of `expected`.
fn must_break(fault: Fault, expected: &[&'static str]) {
    // What never happens shows only at the end of a history, so there the world has to be small.
    let poison = refused::poison(fault);
    let (records, trouble) = match fault {
        Fault::ForgottenBatches => ([1, 1, 0, 0], CRASH),
        Fault::ForgottenCondemnation => ([1, 0, 0, 0], CRASH),
        Fault::ReplaceWithHole | Fault::ReplaceInDoubt => ([2, 0, 0, 0], NOTHING),
        Fault::ReplaceOfAnybody => ([2, 0, 0, 0], EXPIRY),
        // What matters is the order of two batches of a shard, so nothing else is in the way.
        Fault::PrepareAnywhere | Fault::CommitInAnyOrder => ([2, 0, 0, 0], NOTHING),
        _ => (
            [2, 1, 1, 0],
            Trouble {
                expiries: 1,
                moves: 1,
                ..CRASH
            },
        ),
    };
    let world = World {
        records,
        trouble,
        fault,
        poison,
    };
    let checker = world
        .checker()
        .threads(THREADS)
        .target_state_count(MAX_STATES)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let failures: Vec<_> = checker
        .discoveries()
        .into_iter()
        .filter(|(name, _)| {
            let property = checker.model().properties().into_iter().find(|p| p.name == *name);
            property.is_some_and(|property| property.expectation != stateright::Expectation::Sometimes)
        })
        .map(|(name, path)| (name, path.into_actions()))
        .collect();
    for (name, events) in &failures {
        eprintln!(
            "{fault:?}: {name} after {} events, {} states",
            events.len(),
            checker.unique_state_count()
        );
        for event in events {
            eprintln!("    {event:?}");
        }
    }
    assert!(!failures.is_empty(), "{fault:?} was not found");
    assert!(
        failures.iter().any(|(name, _)| expected.contains(name)),
        "{fault:?} broke {:?}, not {expected:?}",
        failures.iter().map(|(name, _)| name).collect::<Vec<_>>()
    );
}

#[test]
fn every_history_with_a_crash_delivers_each_record_once() {
    let possible = [properties::PIPELINED, properties::REPLAYED];
    explore(
        "two batches of a shard, and a child",
        world([2, 0, 1, 0], CRASH),
        &possible,
    );
}

#[test]
fn every_history_with_a_move_delivers_each_record_once() {
    let trouble = Trouble { moves: 1, ..CRASH };
    explore(
        "a move and a crash",
        world([1, 0, 1, 0], trouble),
        &[properties::REPLAYED],
    );
}

#[test]
fn every_history_of_a_shared_batch_delivers_each_record_once() {
    explore(
        "a batch of two shards, and a crash",
        world([1, 1, 0, 0], CRASH),
        &[properties::SHARED, properties::REPLAYED],
    );
}

#[test]
fn every_history_with_a_worker_that_lost_its_leases_delivers_each_record_once() {
    explore(
        "a crash, and leases that end",
        world([1, 0, 0, 0], EXPIRY),
        &[properties::REPLAYED, properties::ZOMBIE],
    );
}

#[test]
fn every_history_of_three_batches_of_two_shards_and_a_child_delivers_each_record_once() {
    explore(
        "three batches, a split and a crash",
        world([1, 1, 1, 0], CRASH),
        &[properties::SHARED, properties::REPLAYED],
    );
}

/// Worlds that take minutes and gigabytes; `MILLRACE_MODEL=full` explores them.
#[test]
fn every_history_of_larger_worlds_delivers_each_record_once() {
    if std::env::var("MILLRACE_MODEL").as_deref() != Ok("full") {
        eprintln!("larger worlds are left out: MILLRACE_MODEL=full explores them");
        return;
    }
    for (name, records) in [
        ("a child, a crash, and leases that end", [1, 0, 1, 0]),
        ("a batch of two shards, a crash, and leases that end", [1, 1, 0, 0]),
    ] {
        explore_up_to(
            MAX_STATES_OF_LARGER,
            name,
            world(records, EXPIRY),
            &[properties::REPLAYED, properties::ZOMBIE],
        );
    }
}

/// A record that the table does not take: its batch is replaced by halves, and it goes to the error table.
mod refused {
    use super::{CRASH, Fault, NOTHING, World, explore, properties, world};

    /// The record that shows a fault, where it takes one.
    pub(super) fn poison(fault: Fault) -> Option<(u8, u8)> {
        match fault {
            Fault::ForgottenCondemnation => Some((0, 1)),
            Fault::ReplaceWithHole | Fault::ReplaceOfAnybody => Some((0, 2)),
            _ => None,
        }
    }

    #[test]
    fn every_history_of_a_refused_batch_delivers_each_record_once() {
        let poison = Some((0, 2));
        explore(
            "a record that the table does not take",
            World {
                poison,
                ..world([2, 0, 1, 0], NOTHING)
            },
            &[properties::PIPELINED, properties::REPLACED],
        );
    }

    #[test]
    fn every_history_of_a_refused_batch_and_a_crash_delivers_each_record_once() {
        let poison = Some((0, 2));
        explore(
            "a record that the table does not take, and a crash",
            World {
                poison,
                ..world([2, 0, 0, 0], CRASH)
            },
            &[properties::REPLAYED, properties::REPLACED],
        );
    }
}

macro_rules! must_break {
    ($($name:ident: $fault:ident => $($expected:expr),+;)*) => {$(
        #[test]
        fn $name() {
            must_break(Fault::$fault, &[$($expected),+]);
        }
    )*};
}

must_break! {
    without_the_epoch_a_stale_worker_prepares: PrepareOfAnybody => invariants::FENCE;
    without_the_frontier_slices_overlap: PrepareAnywhere => invariants::TILING;
    out_of_order_commits_leave_a_gap: CommitInAnyOrder => invariants::TILING, invariants::NO_GAP, invariants::AT_LEAST_ONCE;
    without_the_epoch_a_stale_worker_commits: CommitOfAnybody => invariants::FENCE;
    a_tearing_grant_tears_a_batch: TearingGrant => invariants::TILING;
    children_at_once_overtake_their_parent: ChildrenAtOnce => invariants::NO_GAP, properties::ORDER;
    a_shard_finished_with_open_batches_is_no_end: FinishWithOpenBatches => invariants::NO_GAP, properties::ORDER;
    forgotten_batches_never_land: ForgottenBatches => properties::LANDS;
    what_is_sent_before_it_is_prepared_is_not_recorded: SendBeforePrepare => invariants::WRITE_AHEAD;
    what_is_committed_before_the_answer_may_be_missing: CommitBeforeAnswer => invariants::AT_LEAST_ONCE;
    a_new_token_on_a_replay_doubles: NewTokenOnReplay => invariants::AT_MOST_ONCE;
    other_rows_on_a_replay_are_seen: OtherRowsOnReplay => invariants::DETERMINISM;
    without_the_epoch_a_stale_worker_replaces: ReplaceOfAnybody => invariants::FENCE;
    parts_with_a_hole_between_them_lose: ReplaceWithHole => invariants::TILING, invariants::NO_GAP, properties::LANDS;
    what_is_replaced_in_doubt_may_land_twice: ReplaceInDoubt => invariants::AT_MOST_ONCE;
    a_forgotten_condemnation_is_seen: ForgottenCondemnation => invariants::DETERMINISM;
    without_deduplication_a_repeated_insert_doubles: NoDeduplication => invariants::AT_MOST_ONCE;
}

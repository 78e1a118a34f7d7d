//! Moves running units from loaded workers to idle ones.
//!
//! A move costs a flush and a pause, so a difference must be worth it before anything moves; once something does, the
//! difference is made smaller than that, so that the next small change of a rate does not start it again. Each move lowers
//! the higher load of a pair of workers, so the search ends.

use super::State;

/// Nothing moves while the loads of any two workers differ by less than this part of the mean load.
const START_ABOVE: f64 = 0.25;
/// Once something moves, it goes on until the loads differ by less than this part of the mean load.
const STOP_BELOW: f64 = 0.10;
/// A gain below this part of the mean load is noise of the arithmetic.
const NOISE: f64 = 1e-9;

/// Units of one pipe that go from one worker to another together.
struct Move {
    pipe: usize,
    units: Vec<usize>,
    to: usize,
    /// By how much the higher of the two loads falls.
    gain: f64,
}

pub(super) fn run(state: &mut State<'_>) {
    let Some(mean) = mean(state) else { return };
    let units: usize = state.pipes.iter().map(|pipe| pipe.units.len()).sum();
    let mut bar = START_ABOVE;
    // The bound is for the arithmetic only. A unit may pass through several workers before it rests: stopping it on the
    // way would leave a move for the next round, so that a settled world would not stay.
    for _ in 0..units.saturating_mul(state.workers.len()) {
        let Some(next) = best_move(state, mean * bar, mean * NOISE) else {
            return;
        };
        let pipe = &mut state.pipes[next.pipe];
        for unit in next.units {
            pipe.take(&mut state.workers, unit);
            pipe.put(&mut state.workers, unit, next.to);
        }
        bar = STOP_BELOW;
    }
}

#[allow(clippy::cast_precision_loss, reason = "thresholds are rough")]
fn mean(state: &State<'_>) -> Option<f64> {
    let active = || state.workers.iter().filter(|w| w.active);
    let capacity: u64 = active().map(|w| w.capacity).sum();
    let load: u64 = active().map(|w| w.load).fold(0, u64::saturating_add);
    (active().count() > 1 && load > 0).then(|| load as f64 / capacity as f64)
}

/// The best move between the two workers that are furthest apart and have one.
fn best_move(state: &State<'_>, bar: f64, noise: f64) -> Option<Move> {
    let order = state.by_load();
    for (rank, from) in order.iter().copied().enumerate() {
        for to in order[rank + 1..].iter().rev().copied() {
            let gap = state.workers[from].relative(0) - state.workers[to].relative(0);
            if gap <= bar {
                break;
            }
            let best = moves(state, from, to)
                .filter(|m| m.gain > noise)
                // Of equal gains the one that moves less, and then the first, so that the answer is always the same.
                .reduce(|best, next| {
                    let (better, same) = (next.gain > best.gain + noise, next.gain >= best.gain - noise);
                    if better || (same && shards(state, &next) < shards(state, &best)) {
                        next
                    } else {
                        best
                    }
                });
            if best.is_some() {
                return best;
            }
        }
    }
    None
}

fn shards(state: &State<'_>, candidate: &Move) -> usize {
    candidate
        .units
        .iter()
        .map(|n| state.pipes[candidate.pipe].units[*n].shards.len())
        .sum()
}

/// All moves of one unit, or of all units of a pipe, from one worker to another.
fn moves<'a>(state: &'a State<'_>, from: usize, to: usize) -> impl Iterator<Item = Move> + 'a {
    state
        .pipes
        .iter()
        .enumerate()
        .filter(move |(_, pipe)| pipe.on.contains_key(&from) && state.workers[to].protocol >= pipe.protocol)
        .flat_map(move |(p, pipe)| {
            let here: Vec<usize> = (0..pipe.at.len()).filter(|n| pipe.at[*n] == Some(from)).collect();
            let has_room = pipe.on.contains_key(&to) || pipe.on.len() < pipe.replicas;
            // A pipe that is on as many workers as it may can only leave one wholly for another.
            let all = (here.len() == 1 || !has_room) && here.iter().all(|n| pipe.units[*n].movable);
            let whole = (all && pipe.on.len() <= pipe.replicas).then(|| here.clone());
            let single = here
                .into_iter()
                .filter(move |n| has_room && pipe.units[*n].movable)
                .map(|n| vec![n]);
            whole.into_iter().chain(single).map(move |units| {
                let weight: i128 = units.iter().map(|n| i128::from(pipe.units[*n].weight)).sum();
                let (a, b) = (&state.workers[from], &state.workers[to]);
                let gain = a.relative(0) - a.relative(-weight).max(b.relative(weight));
                Move {
                    pipe: p,
                    units,
                    to,
                    gain,
                }
            })
        })
}

//! Which worker should have which shards. Pure and deterministic: the same input gives the same answer, in any process.
//!
//! In order of precedence:
//! 1. A worker that is leaving gets nothing and loses what it has. A silent one keeps what it has and gets nothing more. One that does
//!    not understand a pipe gets nothing of it and loses what it has of it.
//! 2. A pipe's shards are on at most `replicas` workers.
//! 3. What runs stays where it runs.
//! 4. What runs nowhere goes where the load is lowest.
//! 5. When asked to, running shards move from loaded workers to idle ones: only if the difference is worth it, and no more
//!    than it takes.
//!
//! Load is bytes per second over capacity, summed over all pipes. The unit of placement is a [`Unit`]: a shard, or
//! several shards that are tied by an open batch and go together.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use millrace_common::ids::{PipeUid, ShardId, WorkerId};

mod balance;

/// What can be expected of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Connected and reporting.
    Active,
    /// Not heard of lately, but its leases have not ended: it keeps what it runs.
    Silent,
    /// On its way out.
    Leaving,
}

/// A worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worker {
    /// What can be expected of it.
    pub mode: Mode,
    /// How much it can take, relative to others: its cores. 0 counts as 1.
    pub capacity: u32,
    /// The protocol that it speaks.
    pub protocol: u32,
}

/// Where a unit is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A worker has it.
    Runs(WorkerId),
    /// Nobody has it, but it was on this worker, or is on its way there.
    Home(WorkerId),
    /// Nobody ever had it.
    Nowhere,
}

impl Place {
    fn worker(&self) -> Option<&WorkerId> {
        match self {
            Place::Runs(worker) | Place::Home(worker) => Some(worker),
            Place::Nowhere => None,
        }
    }
}

/// What is placed as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its shards: at least one.
    pub shards: Vec<ShardId>,
    /// Bytes per second, more than 0.
    pub weight: u64,
    /// Where it is.
    pub place: Place,
    /// Whether it may be moved for balance.
    pub movable: bool,
}

/// A pipe that should run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pipe {
    /// Number of workers that its shards may spread over. 0 counts as 1.
    pub replicas: u32,
    /// The oldest protocol that its workers have to speak.
    pub protocol: u32,
    /// Its units.
    pub units: Vec<Unit>,
}

/// All that placement depends on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Input {
    /// Workers.
    pub workers: BTreeMap<WorkerId, Worker>,
    /// Pipes that should run.
    pub pipes: BTreeMap<PipeUid, Pipe>,
    /// Whether running units may be moved for balance now.
    pub rebalance: bool,
}

/// For each pipe, a worker for each of its units, in their order; `None` where nobody may have it.
pub type Placement = BTreeMap<PipeUid, Vec<Option<WorkerId>>>;

/// Says where everything should be.
pub fn place(input: &Input) -> Placement {
    let mut state = State::new(input);
    for pipe in 0..state.pipes.len() {
        state.keep_to_replicas(pipe);
    }
    state.place_homeless();
    if input.rebalance {
        balance::run(&mut state);
    }
    state.finish(input)
}

/// The work in progress, by index: workers and pipes in the order of their ids.
struct State<'a> {
    workers: Vec<Load>,
    pipes: Vec<PipeState<'a>>,
}

struct Load {
    active: bool,
    protocol: u32,
    capacity: u64,
    load: u64,
}

impl Load {
    /// Load over capacity, if `more` were added. Made of whole numbers each time, so that it does not depend on the
    /// order in which things were added.
    #[allow(clippy::cast_precision_loss, reason = "a difference of 2^-53 decides nothing")]
    fn relative(&self, more: i128) -> f64 {
        (i128::from(self.load) + more) as f64 / self.capacity as f64
    }
}

struct PipeState<'a> {
    replicas: usize,
    protocol: u32,
    units: &'a [Unit],
    at: Vec<Option<usize>>,
    /// Number and weight of this pipe's units, by worker.
    on: BTreeMap<usize, (usize, u64)>,
}

impl State<'_> {
    fn new(input: &Input) -> State<'_> {
        let ids: BTreeMap<&WorkerId, usize> = input.workers.keys().enumerate().map(|(n, id)| (id, n)).collect();
        let mut workers: Vec<Load> = input
            .workers
            .values()
            .map(|w| Load {
                active: w.mode == Mode::Active,
                protocol: w.protocol,
                capacity: u64::from(w.capacity.max(1)),
                load: 0,
            })
            .collect();
        let mut pipes = Vec::with_capacity(input.pipes.len());
        for pipe in input.pipes.values() {
            let mut state = PipeState {
                replicas: usize::try_from(pipe.replicas.max(1)).unwrap_or(usize::MAX),
                protocol: pipe.protocol,
                units: &pipe.units,
                at: vec![None; pipe.units.len()],
                on: BTreeMap::new(),
            };
            for (n, unit) in pipe.units.iter().enumerate() {
                let Some(worker) = unit.place.worker() else { continue };
                let able = input.workers.get(worker).filter(|w| w.protocol >= pipe.protocol);
                let keeps = match able.map(|w| w.mode) {
                    Some(Mode::Active) => true,
                    Some(Mode::Silent) => matches!(unit.place, Place::Runs(_)),
                    Some(Mode::Leaving) | None => false,
                };
                if let (true, Some(worker)) = (keeps, ids.get(worker)) {
                    state.put(&mut workers, n, *worker);
                }
            }
            pipes.push(state);
        }
        State { workers, pipes }
    }

    /// Takes a pipe off the workers that are too many for it: those with the least of it.
    fn keep_to_replicas(&mut self, pipe: usize) {
        let pipe = &mut self.pipes[pipe];
        if pipe.on.len() <= pipe.replicas {
            return;
        }
        let workers = &self.workers;
        let mut by_share: Vec<(usize, u64)> = pipe.on.iter().map(|(w, (_, weight))| (*w, *weight)).collect();
        // A silent worker cannot be asked for anything, so it counts first.
        by_share.sort_by_key(|(w, weight)| (workers[*w].active, std::cmp::Reverse(*weight), *w));
        let lose: BTreeSet<usize> = by_share
            .split_off(pipe.replicas)
            .into_iter()
            .map(|(w, _)| w)
            .filter(|w| workers[*w].active)
            .collect();
        for n in 0..pipe.at.len() {
            if pipe.at[n].is_some_and(|w| lose.contains(&w)) {
                pipe.take(&mut self.workers, n);
            }
        }
    }

    /// Gives every unit that is nowhere to the worker that then has the least to do: large ones first.
    fn place_homeless(&mut self) {
        let mut homeless: Vec<(std::cmp::Reverse<u64>, usize, usize)> = Vec::new();
        for (p, pipe) in self.pipes.iter().enumerate() {
            let units = pipe.units.iter().enumerate().filter(|(n, _)| pipe.at[*n].is_none());
            homeless.extend(units.map(|(n, unit)| (std::cmp::Reverse(unit.weight), p, n)));
        }
        homeless.sort_unstable();
        for (weight, p, n) in homeless {
            let pipe = &mut self.pipes[p];
            let full = pipe.on.len() >= pipe.replicas;
            let best = (0..self.workers.len())
                .filter(|w| self.workers[*w].active && self.workers[*w].protocol >= pipe.protocol)
                .filter(|w| !full || pipe.on.contains_key(w))
                .min_by(|a, b| {
                    let after = |w: usize| self.workers[w].relative(i128::from(weight.0));
                    let share = |w: usize| pipe.on.get(&w).map_or(0, |(_, weight)| *weight);
                    after(*a)
                        .total_cmp(&after(*b))
                        .then_with(|| share(*a).cmp(&share(*b)))
                        .then(a.cmp(b))
                });
            if let Some(worker) = best {
                pipe.put(&mut self.workers, n, worker);
            }
        }
    }

    fn finish(self, input: &Input) -> Placement {
        let ids: Vec<&WorkerId> = input.workers.keys().collect();
        let named = |at: Vec<Option<usize>>| at.into_iter().map(|w| w.map(|w| ids[w].clone())).collect();
        input
            .pipes
            .keys()
            .copied()
            .zip(self.pipes.into_iter().map(|pipe| named(pipe.at)))
            .collect()
    }

    /// Active workers, the most loaded first.
    fn by_load(&self) -> Vec<usize> {
        let mut active: Vec<usize> = (0..self.workers.len()).filter(|w| self.workers[*w].active).collect();
        active.sort_by(
            |a, b| match self.workers[*b].relative(0).total_cmp(&self.workers[*a].relative(0)) {
                Ordering::Equal => a.cmp(b),
                other => other,
            },
        );
        active
    }
}

impl PipeState<'_> {
    fn put(&mut self, workers: &mut [Load], unit: usize, worker: usize) {
        let weight = self.units[unit].weight;
        self.at[unit] = Some(worker);
        let on = self.on.entry(worker).or_default();
        *on = (on.0 + 1, on.1.saturating_add(weight));
        workers[worker].load = workers[worker].load.saturating_add(weight);
    }

    fn take(&mut self, workers: &mut [Load], unit: usize) {
        let Some(worker) = self.at[unit].take() else { return };
        let weight = self.units[unit].weight;
        workers[worker].load = workers[worker].load.saturating_sub(weight);
        if let Some(on) = self.on.get_mut(&worker) {
            *on = (on.0 - 1, on.1.saturating_sub(weight));
            if on.0 == 0 {
                self.on.remove(&worker);
            }
        }
    }
}

#[cfg(test)]
mod tests;

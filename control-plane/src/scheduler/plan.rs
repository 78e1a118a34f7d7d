//! From a picture of the world to what should be done about it. Pure.
//!
//! Invariants:
//! - A shard is granted only while nobody holds it, except to the very worker that holds what it is tied to.
//! - Free shards that are tied by an open batch are granted in one action.
//! - What is running is asked back and waited for, never taken, unless its lease has ended.

use std::collections::{BTreeMap, BTreeSet};

use millrace_common::ids::{Epoch, PipeUid, ShardId, WorkerId, WorkerInstance};

use super::{
    lease::Ended,
    placement::{self, Input, Mode, Place, Unit},
};

/// The world at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Workers that are connected, or hold leases that have not ended.
    pub workers: BTreeMap<WorkerId, WorkerView>,
    /// Pipes.
    pub pipes: BTreeMap<PipeUid, PipeView>,
    /// Whether shards may be moved for balance now.
    pub rebalance: bool,
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerView {
    /// The process.
    pub instance: WorkerInstance,
    /// What can be expected of it.
    pub mode: Mode,
    /// Cores.
    pub capacity: u32,
    /// The protocol that it speaks.
    pub protocol: u32,
}

/// A pipe.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PipeView {
    /// Whether it should and can run. If not, everything is asked back.
    pub runnable: bool,
    /// Number of workers that its shards may spread over.
    pub replicas: u32,
    /// The oldest protocol that its workers have to speak.
    pub protocol: u32,
    /// Whether it runs without trouble. Moving a lane that cannot drain would only stop it for longer.
    pub steady: bool,
    /// Its shards that are not finished.
    pub shards: BTreeMap<ShardId, ShardView>,
    /// The shards of each open batch.
    pub ties: Vec<Vec<ShardId>>,
}

/// A shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardView {
    /// Epoch in the store.
    pub epoch: Epoch,
    /// Whether it may be read.
    pub readable: bool,
    /// Who holds it.
    pub lease: Option<LeaseView>,
    /// Where it was, or is on its way to.
    pub home: Option<WorkerId>,
    /// Bytes per second, more than 0.
    pub weight: u64,
    /// It was dropped a moment ago: not to be granted yet.
    pub resting: bool,
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseView {
    /// Its holder.
    pub worker: WorkerId,
    /// The holder has reported it.
    pub held: bool,
    /// It is asked back.
    pub releasing: bool,
    /// It has ended.
    pub ended: Option<Ended>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Take back leases that have ended. What is free then is granted by the next plan, with a fresh picture.
    Expire {
        /// The pipe.
        pipe: PipeUid,
        /// Shards, with the epochs that ended.
        shards: Vec<(ShardId, Epoch)>,
    },
    /// Ask for a shard: leave it out of the holder's next set.
    Revoke {
        /// The pipe.
        pipe: PipeUid,
        /// The shard.
        shard: ShardId,
        /// Where it is to go once it is released.
        target: Option<WorkerId>,
    },
    /// Grant shards.
    Grant {
        /// The pipe.
        pipe: PipeUid,
        /// The process to grant them to.
        to: WorkerInstance,
        /// Shards, with the epochs that are current.
        shards: Vec<(ShardId, Epoch)>,
    },
}

/// What to do with a unit of placement.
enum Duty {
    /// A lease: it stays, or is asked back.
    Keep,
    /// Free: it is granted.
    Grant,
    /// Free, but tied to what this worker holds: granted along with all of that, to that worker only.
    Join(WorkerId, Vec<ShardId>),
    /// Only here to be counted as load.
    Count,
}

/// Says what to do. Expiries first, then what is asked back, then grants.
pub fn plan(snapshot: &Snapshot) -> Vec<Action> {
    let mut input = Input {
        workers: snapshot
            .workers
            .iter()
            .map(|(id, w)| {
                (
                    id.clone(),
                    placement::Worker {
                        mode: w.mode,
                        capacity: w.capacity,
                        protocol: w.protocol,
                    },
                )
            })
            .collect(),
        pipes: BTreeMap::new(),
        rebalance: snapshot.rebalance,
    };
    let mut duties = BTreeMap::new();
    for (uid, pipe) in snapshot.pipes.iter().filter(|(_, pipe)| pipe.runnable) {
        let (units, of_pipe) = units(pipe, &snapshot.workers);
        input.pipes.insert(
            *uid,
            placement::Pipe {
                replicas: pipe.replicas,
                protocol: pipe.protocol,
                units,
            },
        );
        duties.insert(*uid, of_pipe);
    }
    let placed = placement::place(&input);

    let mut actions: Vec<Action> = snapshot
        .pipes
        .iter()
        .filter_map(|(uid, pipe)| expire(*uid, pipe))
        .collect();
    actions.extend(snapshot.pipes.iter().flat_map(|(uid, pipe)| unwanted(*uid, pipe)));
    let mut grants = Vec::new();
    for (uid, duties) in &duties {
        let (pipe, units, places) = (&snapshot.pipes[uid], &input.pipes[uid].units, &placed[uid]);
        let mut to_grant: BTreeMap<&WorkerId, BTreeSet<ShardId>> = BTreeMap::new();
        for ((unit, duty), place) in units.iter().zip(duties).zip(places) {
            match (duty, place) {
                (Duty::Keep, place) if place.as_ref() != holder(pipe, &unit.shards[0]) => {
                    let (shard, target) = (unit.shards[0].clone(), place.clone());
                    actions.push(Action::Revoke {
                        pipe: *uid,
                        shard,
                        target,
                    });
                }
                (Duty::Grant, Some(worker)) => to_grant.entry(worker).or_default().extend(unit.shards.iter().cloned()),
                (Duty::Join(only, all), Some(worker)) if only == worker => {
                    to_grant.entry(worker).or_default().extend(all.iter().cloned());
                }
                _ => {}
            }
        }
        for (worker, shards) in to_grant {
            // Placement gives nothing new to a worker that is not in the picture.
            let Some(worker) = snapshot.workers.get(worker) else {
                continue;
            };
            let shards = shards
                .into_iter()
                .filter_map(|id| Some((pipe.shards.get(&id)?.epoch, id)));
            let shards = shards.map(|(epoch, id)| (id, epoch)).collect();
            grants.push(Action::Grant {
                pipe: *uid,
                to: worker.instance.clone(),
                shards,
            });
        }
    }
    // A worker that was asked for part of what is tied is not given more of it at the same time.
    actions.extend(grants);
    actions
}

fn holder<'a>(pipe: &'a PipeView, shard: &ShardId) -> Option<&'a WorkerId> {
    pipe.shards.get(shard)?.lease.as_ref().map(|lease| &lease.worker)
}

fn expire(uid: PipeUid, pipe: &PipeView) -> Option<Action> {
    let ended = |shard: &ShardView| shard.lease.as_ref().is_some_and(|lease| lease.ended.is_some());
    let shards: Vec<_> = pipe
        .shards
        .iter()
        .filter(|(_, s)| ended(s))
        .map(|(id, shard)| (id.clone(), shard.epoch))
        .collect();
    (!shards.is_empty()).then_some(Action::Expire { pipe: uid, shards })
}

/// Asks back what should not be read at all.
fn unwanted(uid: PipeUid, pipe: &PipeView) -> impl Iterator<Item = Action> + '_ {
    pipe.shards
        .iter()
        .filter(|(_, shard)| !pipe.runnable || !shard.readable)
        .filter_map(move |(id, shard)| {
            let lease = shard.lease.as_ref()?;
            let ask = lease.ended.is_none() && !lease.releasing;
            ask.then(|| Action::Revoke {
                pipe: uid,
                shard: id.clone(),
                target: None,
            })
        })
}

/// The units of a pipe that should run, and what to do with each once it has a place.
fn units(pipe: &PipeView, workers: &BTreeMap<WorkerId, WorkerView>) -> (Vec<Unit>, Vec<Duty>) {
    let mut out = (Vec::new(), Vec::new());
    let mut add = |shards: Vec<ShardId>, place: Place, movable: bool, duty: Duty| {
        let weight = shards
            .iter()
            .map(|id| pipe.shards[id].weight)
            .fold(0, u64::saturating_add)
            .max(1);
        out.0.push(Unit {
            shards,
            weight,
            place,
            movable,
        });
        out.1.push(duty);
    };
    for group in groups(pipe) {
        let leases: Vec<&LeaseView> = group.iter().filter_map(|id| pipe.shards[id].lease.as_ref()).collect();
        if leases.is_empty() {
            let home = group.iter().find_map(|id| pipe.shards[id].home.clone());
            let ready = group.iter().all(|id| !pipe.shards[id].resting);
            let duty = if ready { Duty::Grant } else { Duty::Count };
            add(group, home.map_or(Place::Nowhere, Place::Home), ready, duty);
            continue;
        }
        // What is free is tied to what is held: it can only go to the holder, and only if that is not changing.
        let firm = leases.iter().all(|lease| {
            let active = workers.get(&lease.worker).is_some_and(|w| w.mode == Mode::Active);
            active && lease.ended.is_none() && !lease.releasing && lease.worker == leases[0].worker
        });
        let mixed = leases.len() < group.len();
        for id in &group {
            let shard = &pipe.shards[id];
            let Some(lease) = &shard.lease else {
                let duty = if firm && !shard.resting {
                    Duty::Join(leases[0].worker.clone(), group.clone())
                } else {
                    Duty::Count
                };
                add(vec![id.clone()], Place::Runs(leases[0].worker.clone()), false, duty);
                continue;
            };
            let home = || shard.home.clone().map_or(Place::Nowhere, Place::Home);
            match lease.ended {
                Some(_) => add(vec![id.clone()], home(), false, Duty::Count),
                None if lease.releasing => add(vec![id.clone()], home(), false, Duty::Count),
                None => {
                    let movable = pipe.steady && lease.held && !mixed;
                    add(vec![id.clone()], Place::Runs(lease.worker.clone()), movable, Duty::Keep);
                }
            }
        }
    }
    out
}

/// The readable shards, in groups that open batches tie together. Every shard is in exactly one.
fn groups(pipe: &PipeView) -> Vec<Vec<ShardId>> {
    let ids: Vec<&ShardId> = pipe
        .shards
        .iter()
        .filter(|(_, shard)| shard.readable)
        .map(|(id, _)| id)
        .collect();
    let index: BTreeMap<&ShardId, usize> = ids.iter().enumerate().map(|(n, id)| (*id, n)).collect();
    let mut root: Vec<usize> = (0..ids.len()).collect();
    for tie in &pipe.ties {
        let mut members = tie.iter().filter_map(|id| index.get(id).copied());
        let Some(first) = members.next() else { continue };
        for other in members {
            let (a, b) = (find(&mut root, first), find(&mut root, other));
            root[a.max(b)] = a.min(b);
        }
    }
    let mut groups: BTreeMap<usize, Vec<ShardId>> = BTreeMap::new();
    for (n, id) in ids.into_iter().enumerate() {
        groups.entry(find(&mut root, n)).or_default().push(id.clone());
    }
    groups.into_values().collect()
}

fn find(root: &mut [usize], mut n: usize) -> usize {
    while root[n] != n {
        root[n] = root[root[n]];
        n = root[n];
    }
    n
}

#[cfg(test)]
mod tests;

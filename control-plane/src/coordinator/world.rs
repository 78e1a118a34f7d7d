//! What the coordinator knows: pipes as last read from the store, with their leases, and what was observed of them. No I/O
//! here.

use std::{collections::BTreeMap, time::Duration};

use millrace_common::{
    ids::{PipeUid, ShardId, WorkerId},
    reason,
};
use tokio::time::Instant;

use super::{Options, pipe::PipeState, status};
use crate::{
    scheduler::{
        lease::{Ended, Lease, Sighting, Stage},
        placement::Mode,
        plan::{Snapshot, WorkerView},
    },
    sessions::{LaneFault, PROTOCOL_MAX, WorkerSeen},
    store::{PipeSnapshot, ShardEnd},
};

/// Time over which measured rates are averaged: placement is not to follow every burst.
const RATE_WINDOW: Duration = Duration::from_secs(60);
/// All pipes.
#[derive(Default)]
pub(super) struct World {
    /// The store has been read at least once.
    pub(super) loaded: bool,
    pub(super) pipes: BTreeMap<PipeUid, PipeState>,
    /// Pipes of which something that is stored cannot be read, and what. One that was read before stays as it was then.
    pub(super) damaged: BTreeMap<PipeUid, String>,
}

impl World {
    /// Takes in a pipe as the store has it.
    pub(super) fn merge(&mut self, snapshot: PipeSnapshot, now: Instant, ttl: Duration) {
        let uid = snapshot.pipe.uid;
        if self.damaged.remove(&uid).is_some() {
            tracing::info!(pipe = %snapshot.pipe.name, "the pipe can be read again");
        }
        let mut state = self
            .pipes
            .remove(&uid)
            .unwrap_or_else(|| PipeState::new(snapshot.pipe.clone()));
        state.merge(snapshot, now, ttl);
        self.pipes.insert(uid, state);
    }

    /// Pipes that can be read. Of others nothing is moved: what is known of them may be old.
    pub(super) fn sound(&self) -> impl Iterator<Item = (&PipeUid, &PipeState)> {
        self.pipes.iter().filter(|(uid, _)| !self.damaged.contains_key(uid))
    }

    /// Takes in reports and the time. Gives shards that were read to their end.
    pub(super) fn observe(
        &mut self,
        seen: &BTreeMap<WorkerId, WorkerSeen>,
        now: Instant,
        since_last: Duration,
        options: &Options,
    ) -> BTreeMap<PipeUid, Vec<ShardEnd>> {
        let mut finished: BTreeMap<PipeUid, Vec<ShardEnd>> = BTreeMap::new();
        let share = 1.0 - (-since_last.as_secs_f64() / RATE_WINDOW.as_secs_f64()).exp();
        for (uid, pipe) in &mut self.pipes {
            for (id, shard) in &mut pipe.shards {
                let Some(lease) = &mut shard.lease else { continue };
                let worker = seen.get(&lease.holder.worker);
                shard.ended = judge(lease, worker, *uid, id, now, options.lease_ttl)
                    .or_else(|| lease.tick(now, options.release_deadline));
                let held = lease.stage == Stage::Held;
                if let (true, Some(content)) = (held, &mut shard.content) {
                    content.batches.clear();
                }
                let report = worker
                    .filter(|w| w.instance == lease.holder)
                    .and_then(|w| w.report.shard(*uid, id));
                let Some(report) = report.filter(|report| report.epoch == lease.epoch) else {
                    continue;
                };
                shard.rate += (report.bytes_per_second - shard.rate) * share;
                if report.finished && shard.ended.is_none() {
                    let children = pipe.lineage.children(id, &report.children);
                    finished.entry(*uid).or_default().push(ShardEnd {
                        shard: id.clone(),
                        epoch: lease.epoch,
                        children,
                    });
                }
            }
        }
        finished
    }

    /// The picture to plan from.
    pub(super) fn picture(
        &self,
        seen: &BTreeMap<WorkerId, WorkerSeen>,
        now: Instant,
        options: &Options,
        rebalance: bool,
    ) -> Snapshot {
        let silent_after = (options.lease_ttl / 2)
            .max(2 * options.heartbeat_interval)
            .min(options.lease_ttl);
        let mut workers: BTreeMap<WorkerId, WorkerView> = BTreeMap::new();
        for worker in seen.values().filter(|worker| !worker.departed) {
            let mode = match worker {
                w if w.leaving.is_some() => Mode::Leaving,
                w if w.connected && w.received + silent_after > now => Mode::Active,
                _ => Mode::Silent,
            };
            let (instance, capacity) = (worker.instance.clone(), worker.capacity.cores);
            let protocol = worker.protocol;
            workers.insert(
                instance.worker.clone(),
                WorkerView {
                    instance,
                    mode,
                    capacity,
                    protocol,
                },
            );
        }
        // Who holds a lease from before this control plane, and has not come back yet.
        for lease in self
            .pipes
            .values()
            .flat_map(|pipe| pipe.shards.values())
            .filter_map(|s| s.lease.as_ref())
        {
            let silent = || WorkerView {
                instance: lease.holder.clone(),
                mode: Mode::Silent,
                capacity: 1,
                // What it has, it was given because it understands it.
                protocol: PROTOCOL_MAX,
            };
            workers.entry(lease.holder.worker.clone()).or_insert_with(silent);
        }
        let troubled = |uid: &PipeUid| {
            seen.values()
                .any(|w| w.report.lanes.get(uid).is_some_and(|l| l.fault.is_some()))
        };
        let pipes = self
            .sound()
            .map(|(uid, pipe)| (*uid, pipe.picture(now, !troubled(uid))))
            .collect();
        Snapshot {
            workers,
            pipes,
            rebalance,
        }
    }

    /// Whether every lease has been taken up and none is asked back: the workers' loads are what they seem.
    pub(super) fn is_settled(&self) -> bool {
        let settled = |lease: &Lease| lease.releasing.is_none() && lease.stage == Stage::Held;
        self.leases().all(settled)
    }

    pub(super) fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.pipes
            .values()
            .flat_map(|pipe| pipe.shards.values())
            .filter_map(|shard| shard.lease.as_ref())
    }

    /// When something ends next, after `now`.
    pub(super) fn next_deadline(&self, now: Instant, options: &Options) -> Option<Instant> {
        let of_lease = |lease: &Lease| {
            [
                Some(lease.deadline),
                lease.releasing.map(|at| at + options.release_deadline),
            ]
        };
        let leases = self.leases().flat_map(of_lease).flatten();
        let rests = self
            .pipes
            .values()
            .flat_map(|pipe| pipe.shards.values())
            .filter_map(|shard| shard.rest_until);
        leases.chain(rests).filter(|at| *at > now).min()
    }

    pub(super) fn view(&self, seen: &[WorkerSeen]) -> status::View {
        let there = seen
            .iter()
            .filter(|worker| worker.connected && worker.leaving.is_none());
        let newest = there.map(|worker| worker.protocol).max();
        let pipes = self
            .pipes
            .iter()
            .map(|(uid, pipe)| (*uid, pipe.view(status::faults(*uid, seen), newest)));
        let mut pipes: BTreeMap<_, _> = pipes.collect();
        for (uid, message) in &self.damaged {
            pipes.entry(*uid).or_default().blocked = Some(LaneFault {
                reason: reason::INTERNAL.to_owned(),
                message: message.clone(),
                permanent: true,
            });
        }
        let connected = seen.iter().filter(|worker| worker.connected);
        status::View {
            pipes,
            workers: connected.map(|worker| worker.instance.clone()).collect(),
        }
    }
}

/// What is known of a lease from what was heard of its holder.
fn judge(
    lease: &mut Lease,
    worker: Option<&WorkerSeen>,
    pipe: PipeUid,
    shard: &ShardId,
    now: Instant,
    ttl: Duration,
) -> Option<Ended> {
    let worker = worker?;
    if worker.instance != lease.holder {
        return Some(Ended::Replaced);
    }
    let gone = worker
        .leaving
        .and_then(|leaving| leaving.until)
        .is_some_and(|until| until <= now);
    if worker.departed || gone {
        return Some(Ended::Departed);
    }
    let epoch = worker.report.shard(pipe, shard).map(|report| report.epoch);
    let ended = lease.observe(
        Sighting {
            generation: worker.report.generation,
            epoch,
            at: worker.received,
        },
        ttl,
    )?;
    // A worker that leaves gives back without being asked.
    Some(if worker.leaving.is_some() {
        Ended::Released
    } else {
        ended
    })
}

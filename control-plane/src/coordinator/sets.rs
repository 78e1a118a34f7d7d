//! The set that each worker should have: what it holds and is not asked back.
//!
//! A set is offered when the pipes, revisions, shards or epochs in it change. Where a shard starts and what is to be
//! replayed never change under one epoch, as far as its holder has to be told.

use std::collections::{BTreeMap, BTreeSet};

use millrace_common::ids::{BatchId, Epoch, PipeUid, ShardId, WorkerInstance};
use millrace_proto::worker::v1;

use super::{
    pipe::{Content, PipeState},
    world::World,
};
use crate::{
    scheduler::lease::Lease,
    sessions::{Registry, WorkerSeen, convert},
};

/// What tells one set from another: for each pipe the revision, and for each shard the epoch.
pub(super) type Key = BTreeMap<PipeUid, (u64, BTreeMap<ShardId, Epoch>)>;

/// The last set of each process.
pub(super) type Offered = BTreeMap<WorkerInstance, Key>;

/// Offers every worker its set, if it is another than the last one.
pub(super) fn offer(world: &mut World, seen: &[WorkerSeen], offered: &mut Offered, registry: &Registry) {
    let present: BTreeSet<&WorkerInstance> = seen.iter().map(|worker| &worker.instance).collect();
    offered.retain(|instance, _| present.contains(instance));
    for worker in seen {
        let key = key(world, worker);
        if offered.get(&worker.instance) == Some(&key) {
            continue;
        }
        let lanes = key
            .iter()
            .filter_map(|(uid, (_, shards))| Some(lane(world.pipes.get(uid)?, shards)))
            .collect();
        let Some(generation) = registry.offer(&worker.instance, lanes) else {
            continue;
        };
        tracing::debug!(worker = %worker.instance, generation = generation.0, lanes = key.len(), "set offered");
        for (uid, (_, shards)) in &key {
            let Some(pipe) = world.pipes.get_mut(uid) else { continue };
            for id in shards.keys() {
                if let Some(lease) = pipe.shards.get_mut(id).and_then(|shard| shard.lease.as_mut()) {
                    lease.sent(generation);
                }
            }
        }
        offered.insert(worker.instance.clone(), key);
    }
}

fn key(world: &World, worker: &WorkerSeen) -> Key {
    let mut key = Key::new();
    if worker.leaving.is_some() {
        return key;
    }
    for (uid, pipe) in &world.pipes {
        let Some(spec) = &pipe.spec else { continue };
        // It would pass over what it does not know. Placement asks for what it has; until then it has to give it back anyway.
        if worker.protocol < pipe.protocol_required() {
            continue;
        }
        let shards: BTreeMap<ShardId, Epoch> = pipe
            .shards
            .iter()
            .filter_map(|(id, shard)| Some((id, shard.lease.as_ref()?, shard.content.as_ref()?)))
            .filter(|(_, lease, content)| is_to_run(lease, worker) && is_ready(pipe, content))
            .map(|(id, lease, _)| (id.clone(), lease.epoch))
            .collect();
        if !shards.is_empty() {
            key.insert(*uid, (spec.revision, shards));
        }
    }
    key
}

fn is_to_run(lease: &Lease, worker: &WorkerSeen) -> bool {
    lease.holder == worker.instance && lease.releasing.is_none()
}

/// Whether the specifications of all its open batches are there.
fn is_ready(pipe: &PipeState, content: &Content) -> bool {
    let current = pipe.spec.as_ref().map(|spec| spec.revision);
    content
        .batches
        .iter()
        .all(|(_, revision)| current == Some(revision.0) || pipe.replay_specs.contains_key(revision))
}

fn lane(pipe: &PipeState, shards: &BTreeMap<ShardId, Epoch>) -> v1::Lane {
    let contents: Vec<(&ShardId, Epoch, &Content)> = shards
        .iter()
        .filter_map(|(id, epoch)| Some((id, *epoch, pipe.shards.get(id)?.content.as_ref()?)))
        .collect();
    let wanted: BTreeSet<BatchId> = contents
        .iter()
        .flat_map(|(_, _, c)| c.batches.iter().map(|(id, _)| *id))
        .collect();
    // In the order of the store: oldest first.
    let open: Vec<_> = pipe
        .open_batches
        .iter()
        .filter(|batch| wanted.contains(&batch.id))
        .collect();
    let current = pipe.spec.as_ref().map(|spec| spec.revision);
    let older: BTreeSet<_> = open
        .iter()
        .map(|b| b.revision)
        .filter(|revision| current != Some(revision.0))
        .collect();
    v1::Lane {
        pipe_uid: pipe.pipe.uid.to_string(),
        pipe_name: pipe.pipe.name.to_string(),
        spec: pipe.spec.as_ref().map(|spec| (**spec).clone()),
        replay_specs: older
            .iter()
            .filter_map(|r| pipe.replay_specs.get(r))
            .map(|spec| (**spec).clone())
            .collect(),
        shards: contents
            .iter()
            .map(|(id, epoch, c)| convert::assigned_shard(id, *epoch, &c.start, c.complete_until))
            .collect(),
        open_batches: open.into_iter().map(convert::open_batch).collect(),
    }
}

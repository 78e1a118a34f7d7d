//! A pipe as users see it: what is stored, and what runs.

use std::collections::BTreeSet;

use millrace_common::{error::ApiError, pipe::Delivery, reason};
use millrace_proto::api::v1 as proto;

use super::{Api, convert::output};
use crate::{
    coordinator::{PipeRuntime, ShardRuntime},
    lifecycle::{self, Observed, State, Status, Trouble},
    store::{PipeSnapshot, ShardPhase, StoredPipe, StoredShard},
};

/// How much of a pipe to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// Without shards.
    Basic,
    /// With shards.
    Full,
}

/// The view in a request.
pub(super) fn requested(value: i32, default: View) -> Result<View, ApiError> {
    match proto::PipeView::try_from(value) {
        Ok(proto::PipeView::Unspecified) => Ok(default),
        Ok(proto::PipeView::Basic) => Ok(View::Basic),
        Ok(proto::PipeView::Full) => Ok(View::Full),
        Err(_) => Err(ApiError::invalid_field(
            "view",
            format!("{value} is not a view that this server knows; use PIPE_VIEW_BASIC or PIPE_VIEW_FULL"),
        )),
    }
}

impl Api {
    /// A stored pipe with what is known of it now.
    pub(super) fn show(&self, snapshot: &PipeSnapshot, view: View) -> proto::Pipe {
        let runtime = self.coordinator.runtime(snapshot.pipe.uid);
        pipe(snapshot, &runtime, self.coordinator.workers().len(), view)
    }

    /// What a stored pipe is doing now.
    pub(super) fn status(&self, snapshot: &PipeSnapshot) -> Status {
        let runtime = self.coordinator.runtime(snapshot.pipe.uid);
        let workers = self.coordinator.workers().len();
        lifecycle::status(snapshot.pipe.desired, &observed(snapshot, &runtime, workers))
    }
}

/// A pipe that is stored, or would be.
pub(super) fn pipe(snapshot: &PipeSnapshot, runtime: &PipeRuntime, workers: usize, view: View) -> proto::Pipe {
    let stored = &snapshot.pipe;
    let status = lifecycle::status(stored.desired, &observed(snapshot, runtime, workers));
    proto::Pipe {
        name: stored.name.to_string(),
        uid: stored.uid.to_string(),
        desired_state: output::desired_state(stored.desired).into(),
        reconciling: status.reconciling,
        status: Some(pipe_status(snapshot, runtime, status, view)),
        revision: i64::try_from(stored.revision.0).unwrap_or(i64::MAX),
        etag: stored.etag.clone(),
        create_time: Some(output::timestamp(stored.created)),
        update_time: Some(output::timestamp(stored.updated)),
        ..output::specification(&stored.spec)
    }
}

fn observed(snapshot: &PipeSnapshot, runtime: &PipeRuntime, workers: usize) -> Observed {
    let readable = || snapshot.shards.iter().filter(|shard| shard.state == ShardPhase::Open);
    let holders: BTreeSet<_> = readable().filter_map(|shard| shard.owner.as_ref()).collect();
    let noted = snapshot.pipe.fault.as_ref().map(|fault| Trouble {
        reason: fault.reason.clone(),
        message: fault.message.clone(),
        permanent: fault.permanent,
    });
    // That there is no worker follows from their number.
    let blocked = runtime
        .blocked
        .as_ref()
        .filter(|blocked| blocked.reason != reason::NO_WORKERS)
        .map(|blocked| Trouble {
            reason: blocked.reason.clone(),
            message: blocked.message.clone(),
            permanent: blocked.permanent,
        });
    Observed {
        fault: noted.or(blocked),
        lane_faults: runtime
            .faults
            .iter()
            .map(|(worker, fault)| Trouble {
                reason: fault.reason.clone(),
                message: format!("{} (worker {worker})", fault.message),
                permanent: fault.permanent,
            })
            .collect(),
        holders: holders.len(),
        readable: readable().count(),
        held: readable().filter(|shard| shard.owner.is_some()).count(),
        ever_held: snapshot.shards.iter().filter(|shard| shard.epoch.0 > 0).count(),
        workers,
        completed: snapshot.pipe.spec.source.end.is_some()
            && snapshot.shards.iter().all(|shard| shard.state == ShardPhase::Finished),
    }
}

fn pipe_status(snapshot: &PipeSnapshot, runtime: &PipeRuntime, status: Status, view: View) -> proto::PipeStatus {
    let (delivery, delivery_reason) = effective(&snapshot.pipe);
    let shard = |stored: &StoredShard| shard(stored, runtime.shards.get(&stored.id));
    proto::PipeStatus {
        state: state(status.state).into(),
        reason: status.reason,
        message: status.message,
        effective_delivery: delivery.into(),
        effective_delivery_reason: delivery_reason,
        totals: Some(output::totals(snapshot.pipe.totals)),
        shards: match view {
            View::Basic => Vec::new(),
            View::Full => snapshot.shards.iter().map(shard).collect(),
        },
    }
}

fn effective(pipe: &StoredPipe) -> (proto::Delivery, String) {
    match &pipe.effective {
        Some(effective) => (output::delivery(effective.delivery), effective.reason.clone()),
        None => (
            output::delivery(Delivery::AtLeastOnce),
            "the destination has not been looked at yet".to_owned(),
        ),
    }
}

fn state(state: State) -> proto::PipeState {
    match state {
        State::Provisioning => proto::PipeState::Provisioning,
        State::Running => proto::PipeState::Running,
        State::Degraded => proto::PipeState::Degraded,
        State::Stopping => proto::PipeState::Stopping,
        State::Stopped => proto::PipeState::Stopped,
        State::Failed => proto::PipeState::Failed,
        State::Completed => proto::PipeState::Completed,
    }
}

fn shard(stored: &StoredShard, runtime: Option<&ShardRuntime>) -> proto::ShardStatus {
    let state = match (stored.state, &stored.owner) {
        (ShardPhase::Finished, _) => proto::ShardState::Finished,
        (ShardPhase::Waiting, _) => proto::ShardState::WaitingForParents,
        (ShardPhase::Open, None) => proto::ShardState::Unassigned,
        (ShardPhase::Open, Some(_)) if runtime.is_some_and(|runtime| runtime.releasing) => proto::ShardState::Releasing,
        (ShardPhase::Open, Some(_)) => proto::ShardState::Assigned,
    };
    let held = stored.owner.as_ref().filter(|_| stored.state == ShardPhase::Open);
    proto::ShardStatus {
        shard_id: stored.id.to_string(),
        state: state.into(),
        checkpoint_sequence_number: stored
            .checkpoint
            .sequence_number()
            .map(ToString::to_string)
            .unwrap_or_default(),
        worker_id: held.map(|owner| owner.worker.to_string()).unwrap_or_default(),
        epoch: stored.epoch.0,
        lag: held.and(runtime).and_then(|runtime| runtime.lag).map(output::duration),
        open_batches: stored.open_batches,
        parent_shard_ids: stored.parents.iter().map(ToString::to_string).collect(),
        complete_until_time: stored.complete_until.map(output::timestamp),
        out_of_range_messages: held.and(runtime).map_or(0, |runtime| runtime.out_of_range),
        reader_restarts: held.and(runtime).map_or(0, |runtime| runtime.restarts),
    }
}

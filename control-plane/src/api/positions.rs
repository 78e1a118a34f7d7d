//! ResetPosition: what a user wants of positions, checked against the stream as it is now.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use millrace_common::{
    error::ApiError,
    ids::{Label, PipeName, SequenceNumber, ShardId},
    position::Position,
};
use millrace_proto::api::v1 as proto;
use tonic::Code;

use super::{
    Api,
    convert::{Violations, output},
    errors::{etag_mismatch, of_discovery, of_store},
    view::View,
};
use crate::{
    auth, discovery,
    events::{NewEvent, Severity, kind},
    protocol::{Plan, Reset, Target},
    store::{Adopted, CredentialSecret, NewShard, PipeSnapshot, ShardPhase, StoredShard},
};

/// There is nothing to adopt: the stream is the one that the pipe was made for.
const STREAM_NOT_RECREATED: &str = "STREAM_NOT_RECREATED";
/// Shards whose moves are told in the event.
const TOLD_SHARDS: usize = 20;

/// Where to, as the user says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Goal {
    TrimHorizon,
    Latest,
    Time(Timestamp),
    After(SequenceNumber),
}

impl Goal {
    fn position(&self, now: Timestamp) -> Position {
        match self {
            Goal::TrimHorizon => Position::TrimHorizon,
            // Resolved once: asked for again it would mean another place.
            Goal::Latest => Position::AtTimestamp(now),
            Goal::Time(time) => Position::AtTimestamp(*time),
            Goal::After(number) => Position::After(number.clone()),
        }
    }
}

impl Api {
    /// Moves positions, or says what that would do.
    pub(super) async fn reset(
        &self,
        request: &proto::ResetPositionRequest,
    ) -> Result<proto::ResetPositionResponse, ApiError> {
        let name: PipeName = super::name(&request.name, "name")?;
        let (goal, shards) = parse(request, self.clock.now())?;
        let pipe = self.pipe(&name).await?;
        if !request.etag.is_empty() && request.etag != pipe.etag {
            return Err(etag_mismatch());
        }
        let stream = self.look(&name.id, &pipe.spec.source).await?;
        // After the listing: whatever is put into a shard before it was closed comes before this moment.
        let now = self.clock.now();
        let snapshot = self.snapshot(pipe.uid, &name).await?;
        let (plan, adopted) = if request.adopt_stream {
            if stream.identity == pipe.resolved.stream {
                let message = "the stream is the one that the pipe was made for: leave adopt_stream out";
                return Err(
                    ApiError::new(Code::FailedPrecondition, STREAM_NOT_RECREATED, message).with_field("adopt_stream")
                );
            }
            if stream.identity.arn != pipe.resolved.stream.arn {
                discovery::check_identity(&pipe.resolved.stream, &stream.identity)
                    .map_err(|error| of_discovery(&error))?;
            }
            let adopted = Adopted {
                identity: stream.identity.clone(),
            };
            (adoption(&snapshot, &stream), Some(adopted))
        } else {
            discovery::check_identity(&pipe.resolved.stream, &stream.identity).map_err(|error| of_discovery(&error))?;
            let mut plan = plan(&snapshot, &stream, &goal, &shards, now)?;
            plan.abandon_open_batches = request.abandon_open_batches;
            (plan, None)
        };
        let reset = if request.validate_only {
            self.store.preview_reset(pipe.uid, &plan).await
        } else {
            let tell = |reset: &Reset| event(reset, adopted.as_ref(), &goal);
            let etag = Some(request.etag.as_str()).filter(|etag| !etag.is_empty());
            self.store
                .reset_positions(pipe.uid, etag, &plan, adopted.as_ref(), tell)
                .await
        };
        let reset = reset.map_err(|error| of_store(&error))?;
        if !request.validate_only {
            tracing::info!(pipe = %name, shards = reset.moves.len(), abandoned = reset.abandoned.len(), "positions reset");
            self.note_change();
        }
        let horizon = now.checked_sub(stream.retention).unwrap_or(Timestamp::MIN);
        let horizon = horizon.max(stream.identity.created);
        let after = self.snapshot(pipe.uid, &name).await?;
        Ok(proto::ResetPositionResponse {
            pipe: Some(self.show(&after, View::Full)),
            moves: moves(&snapshot, &reset, horizon),
            abandoned_batch_ids: reset.abandoned.iter().map(ToString::to_string).collect(),
        })
    }

    async fn look(
        &self,
        pipe: &Label,
        source: &millrace_common::pipe::KinesisSource,
    ) -> Result<discovery::Stream, ApiError> {
        let name = &source.credential;
        let Some(CredentialSecret::Aws(credential)) = self.secret(name).await? else {
            let message = format!("there is no AWS credential {name}: update the pipe with one that exists");
            return Err(ApiError::new(
                Code::FailedPrecondition,
                super::errors::CREDENTIAL_NOT_FOUND,
                message,
            ));
        };
        let access = discovery::access(source, credential, pipe, &self.aws);
        Box::pin(discovery::look(&access, &source.stream))
            .await
            .map_err(|error| of_discovery(&error))
    }
}

fn parse(request: &proto::ResetPositionRequest, now: Timestamp) -> Result<(Goal, BTreeSet<ShardId>), ApiError> {
    let mut violations = Violations::new();
    let mut shards = BTreeSet::new();
    for (index, id) in request.shard_ids.iter().enumerate() {
        match id.parse() {
            Ok(id) => drop(shards.insert(id)),
            Err(error) => {
                let error: millrace_common::ids::Error = error;
                violations.add(format!("shard_ids[{index}]"), error.to_string());
            }
        }
    }
    let goal = goal(request, now, shards.len(), &mut violations);
    violations.finish()?;
    let goal = goal.ok_or_else(|| ApiError::new(Code::Internal, "INTERNAL", "a position got lost"))?;
    Ok((goal, shards))
}

fn goal(
    request: &proto::ResetPositionRequest,
    now: Timestamp,
    shards: usize,
    violations: &mut Violations,
) -> Option<Goal> {
    let (number, kind) = (request.after_sequence_number.as_str(), request.iterator_type());
    if request.adopt_stream {
        if shards > 0 || !number.is_empty() || request.iterator_type != 0 {
            let what = "begins at the oldest record of all shards: leave iterator_type, after_sequence_number and shard_ids out";
            violations.add("adopt_stream", what);
        }
        return Some(Goal::TrimHorizon);
    }
    if request.timestamp.is_some() && kind != proto::IteratorType::AtTimestamp {
        violations.add("timestamp", "belongs to ITERATOR_TYPE_AT_TIMESTAMP only: leave it out");
    }
    if !number.is_empty() {
        if request.iterator_type != 0 {
            violations.add("after_sequence_number", "stands without iterator_type");
        }
        if shards != 1 {
            violations.add("shard_ids", "a sequence number is of one shard: name that one");
        }
        return match number.parse() {
            Ok(number) => Some(Goal::After(number)),
            Err(error) => {
                let error: millrace_common::ids::Error = error;
                violations.add("after_sequence_number", error.to_string());
                None
            }
        };
    }
    match kind {
        proto::IteratorType::TrimHorizon => Some(Goal::TrimHorizon),
        proto::IteratorType::Latest => Some(Goal::Latest),
        proto::IteratorType::AtTimestamp => {
            let given = request.timestamp.unwrap_or_default();
            match Timestamp::new(given.seconds, given.nanos).ok() {
                Some(time) if request.timestamp.is_some() && time <= now => return Some(Goal::Time(time)),
                Some(_) if request.timestamp.is_some() => violations.add("timestamp", "is in the future"),
                _ => violations.add(
                    "timestamp",
                    "is required with ITERATOR_TYPE_AT_TIMESTAMP, and must be a valid time",
                ),
            }
            None
        }
        proto::IteratorType::Unspecified => {
            let known = "ITERATOR_TYPE_TRIM_HORIZON, ITERATOR_TYPE_LATEST or ITERATOR_TYPE_AT_TIMESTAMP";
            violations.add(
                "iterator_type",
                format!("is required, or after_sequence_number: {known}"),
            );
            None
        }
    }
}

/// The shards to move, of those that Kinesis still has.
fn plan(
    snapshot: &PipeSnapshot,
    stream: &discovery::Stream,
    goal: &Goal,
    wanted: &BTreeSet<ShardId>,
    now: Timestamp,
) -> Result<Plan, ApiError> {
    let listed: BTreeMap<&ShardId, &discovery::Shard> = stream.shards.iter().map(|shard| (&shard.id, shard)).collect();
    let known: BTreeMap<&ShardId, &StoredShard> = snapshot.shards.iter().map(|shard| (&shard.id, shard)).collect();
    let mut violations = Violations::new();
    for id in wanted {
        let what = match (known.get(id), listed.get(id)) {
            (None, _) => "is not a shard of this pipe",
            (Some(_), None) => "has left the stream with all its records",
            (Some(_), Some(_)) => continue,
        };
        violations.add("shard_ids", format!("{id} {what}"));
    }
    violations.finish()?;
    let position = goal.position(now);
    // Behind the newest record a finished shard has nothing.
    let worth = |shard: &StoredShard| *goal != Goal::Latest || shard.state != ShardPhase::Finished;
    let chosen = known
        .values()
        .filter(|shard| listed.contains_key(&shard.id) && (wanted.is_empty() || wanted.contains(&shard.id)))
        .filter(|shard| worth(shard));
    let targets = chosen.map(|shard| Target {
        shard: shard.id.clone(),
        to: position.clone(),
        // What the pipe left out because it began behind it comes before its children again.
        parents: (wanted.is_empty() && *goal != Goal::Latest).then(|| listed[&shard.id].parents.clone()),
    });
    let targets: Vec<Target> = targets.collect();
    let left_out = stream
        .shards
        .iter()
        .filter(|shard| wanted.is_empty() && *goal != Goal::Latest && !known.contains_key(&shard.id));
    let new = left_out.map(|shard| NewShard {
        id: shard.id.clone(),
        parents: shard.parents.clone(),
        start: position.clone(),
    });
    Ok(Plan {
        new: new.collect(),
        targets,
        forget_others: false,
        abandon_open_batches: false,
    })
}

/// All shards of another stream, from their beginning.
fn adoption(snapshot: &PipeSnapshot, stream: &discovery::Stream) -> Plan {
    let known: BTreeSet<&ShardId> = snapshot.shards.iter().map(|shard| &shard.id).collect();
    let (same, new): (Vec<_>, Vec<_>) = stream.shards.iter().partition(|shard| known.contains(&shard.id));
    Plan {
        targets: same
            .into_iter()
            .map(|shard| Target {
                shard: shard.id.clone(),
                to: Position::TrimHorizon,
                parents: Some(shard.parents.clone()),
            })
            .collect(),
        new: new
            .into_iter()
            .map(|shard| NewShard {
                id: shard.id.clone(),
                parents: shard.parents.clone(),
                start: Position::TrimHorizon,
            })
            .collect(),
        forget_others: true,
        // They can never be built again.
        abandon_open_batches: true,
    }
}

fn event(reset: &Reset, adopted: Option<&Adopted>, goal: &Goal) -> NewEvent {
    let goal = match goal {
        Goal::TrimHorizon => "TRIM_HORIZON".to_owned(),
        Goal::Latest => "LATEST".to_owned(),
        Goal::Time(time) => time.to_string(),
        Goal::After(number) => format!("after {number}"),
    };
    let shards = reset.moves.len() + reset.new.len();
    let mut message = format!("positions of {shards} shards were moved to {goal}");
    if !reset.abandoned.is_empty() {
        message.push_str("; open batches were given up, whose rows may be in the table or not");
    }
    let severity = if reset.abandoned.is_empty() {
        Severity::Info
    } else {
        Severity::Warning
    };
    if adopted.is_some() {
        message.insert_str(0, "the stream that was created anew was taken: ");
    }
    let mut event = NewEvent::new(kind::POSITION_RESET, severity, message)
        .by(auth::actor())
        .with("to", goal)
        .with("shards", shards);
    for step in reset.moves.iter().take(TOLD_SHARDS) {
        event = event.with(&format!("move.{}", step.shard), format!("{} -> {}", step.from, step.to));
    }
    if !reset.abandoned.is_empty() {
        let ids: Vec<String> = reset.abandoned.iter().map(ToString::to_string).collect();
        event = event.with("abandoned_batches", ids.join(","));
    }
    match adopted {
        Some(adopted) => event.with("stream_created", adopted.identity.created),
        None => event,
    }
}

/// What was done, or would be, with times where they are known.
fn moves(before: &PipeSnapshot, reset: &Reset, horizon: Timestamp) -> Vec<proto::PositionMove> {
    let known: BTreeMap<&ShardId, &StoredShard> = before.shards.iter().map(|shard| (&shard.id, shard)).collect();
    let time_of = |position: &Position| match position {
        Position::TrimHorizon => Some(horizon),
        Position::AtTimestamp(time) => Some((*time).max(horizon)),
        Position::After(_) => None,
    };
    let moved = reset.moves.iter().map(|step| {
        let complete = known.get(&step.shard).and_then(|shard| shard.complete_until);
        let (from, to) = (complete.or_else(|| time_of(&step.from)), time_of(&step.to));
        proto::PositionMove {
            shard_id: step.shard.to_string(),
            from_position: step.from.to_string(),
            to_position: step.to.to_string(),
            from_time: from.map(output::timestamp),
            to_time: to.map(output::timestamp),
            effect: effect(&step.from, &step.to, from.zip(to)).into(),
        }
    });
    let first = reset.new.iter().map(|(shard, _)| proto::PositionMove {
        shard_id: shard.id.to_string(),
        from_position: String::new(),
        to_position: shard.start.to_string(),
        from_time: None,
        to_time: time_of(&shard.start).map(output::timestamp),
        effect: proto::PositionEffect::ReadFirst.into(),
    });
    moved.chain(first).collect()
}

fn effect(from: &Position, to: &Position, times: Option<(Timestamp, Timestamp)>) -> proto::PositionEffect {
    use proto::PositionEffect::{ReadAgain, Skip, Unspecified};
    if let (Position::After(from), Position::After(to)) = (from, to) {
        return if to <= from { ReadAgain } else { Skip };
    }
    match times {
        // Whatever it was: the oldest record comes before it.
        _ if *to == Position::TrimHorizon => ReadAgain,
        Some((from, to)) if to <= from => ReadAgain,
        Some(_) => Skip,
        None => Unspecified,
    }
}

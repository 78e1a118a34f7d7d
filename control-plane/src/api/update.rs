//! Updates: what of a pipe may change, what has to be checked again for it, and what it becomes.

use millrace_common::{
    error::ApiError,
    ids::Revision,
    pipe::{DesiredState, PipeSpec, ResolvedSpec, StartPosition, StreamRef},
};
use millrace_proto::api::v1 as proto;

use super::{
    Api,
    convert::{self, Violations, output},
    errors::{IMMUTABLE_FIELD, etag_mismatch, of_discovery, of_store},
    mask,
};
use crate::{
    auth,
    destination::Mode,
    discovery,
    events::{NewEvent, Severity, kind},
    store::{self, PipeChange, PipeSnapshot, StoredPipe},
};

/// How often an update that gave no etag starts again because someone else came first.
const ATTEMPTS: usize = 5;

impl Api {
    /// Applies an update and returns the pipe as it is then, or as it would be.
    pub(super) async fn update(&self, request: &proto::UpdatePipeRequest) -> Result<PipeSnapshot, ApiError> {
        Box::pin(self.change(request, None)).await
    }

    /// The same; `back_to` is the revision that the update goes back to, if it does.
    pub(super) async fn change(
        &self,
        request: &proto::UpdatePipeRequest,
        back_to: Option<Revision>,
    ) -> Result<PipeSnapshot, ApiError> {
        let given = request
            .pipe
            .as_ref()
            .ok_or_else(|| ApiError::invalid_field("pipe", "is required"))?;
        let name: millrace_common::ids::PipeName = super::name(&given.name, "pipe.name")?;
        for _ in 0..ATTEMPTS {
            let stored = self.pipe(&name).await?;
            if !given.uid.is_empty() && given.uid != stored.uid.to_string() {
                let what = "cannot be changed, and this pipe has another one: it was deleted and created again";
                return Err(ApiError::invalid_field("pipe.uid", what).with_reason(IMMUTABLE_FIELD));
            }
            if !given.etag.is_empty() && given.etag != stored.etag {
                return Err(etag_mismatch());
            }
            match self.apply(request, given, &stored, back_to).await? {
                Applied::Unchanged => return self.snapshot(stored.uid, &name).await,
                Applied::Planned(pipe) => {
                    let snapshot = self.snapshot(stored.uid, &name).await?;
                    return Ok(PipeSnapshot {
                        pipe: *pipe,
                        ..snapshot
                    });
                }
                Applied::Stored => {
                    self.note_change();
                    return self.snapshot(stored.uid, &name).await;
                }
                // Without an etag the caller does not care what came first, but it must not be lost either.
                Applied::Outrun if given.etag.is_empty() => {}
                Applied::Outrun => return Err(etag_mismatch()),
            }
        }
        Err(etag_mismatch())
    }

    async fn apply(
        &self,
        request: &proto::UpdatePipeRequest,
        given: &proto::Pipe,
        stored: &StoredPipe,
        back_to: Option<Revision>,
    ) -> Result<Applied, ApiError> {
        let before = proto::Pipe {
            desired_state: output::desired_state(stored.desired).into(),
            ..output::specification(&stored.spec)
        };
        let merged = mask::apply(&before, given, request.update_mask.as_ref())?;
        let mut violations = Violations::new();
        let desired = convert::desired_state(merged.desired_state, stored.desired, &mut violations);
        let spec = convert::spec(&merged, self.context(&stored.name.project), &mut violations);
        violations.finish()?;
        let spec = spec.ok_or_else(|| ApiError::new(tonic::Code::Internal, "INTERNAL", "a specification got lost"))?;
        check_immutable(stored, &spec)?;

        let changed = spec != stored.spec;
        let mut change = PipeChange {
            desired: (desired != stored.desired).then_some(desired),
            ..PipeChange::default()
        };
        let mut stream_is_well = false;
        if changed && must_look(&stored.spec, &spec) {
            let mode = if request.validate_only {
                Mode::Check
            } else {
                Mode::Create
            };
            let found = Box::pin(self.preflight(&stored.name.id, &spec, mode)).await?;
            discovery::check_identity(&stored.resolved.stream, &found.stream.identity)
                .map_err(|error| of_discovery(&error))?;
            stream_is_well = true;
            change.effective = Some(found.effective);
            change.spec = Some((spec, found.resolved));
        } else if changed {
            change.spec = Some((
                spec,
                ResolvedSpec {
                    ..stored.resolved.clone()
                },
            ));
        }
        if change.spec.is_none() && change.desired.is_none() {
            return Ok(Applied::Unchanged);
        }
        if request.validate_only {
            return Ok(Applied::Planned(Box::new(planned(stored, change))));
        }
        change.events = events(stored, &change, back_to)?;
        let after = change.spec.as_ref().map(|(spec, _)| StoredPipe {
            spec: spec.clone(),
            ..stored.clone()
        });
        match self.store.update_pipe(stored.uid, Some(&stored.etag), change).await {
            Ok(_) => {}
            Err(store::Error::EtagMismatch { .. }) => return Ok(Applied::Outrun),
            Err(error) => return Err(of_store(&error)),
        }
        if let Some(after) = after {
            self.follow_consumer(&after, Some(&stored.spec.source));
        }
        if stream_is_well && stored.fault.as_ref().is_some_and(discovery::is_own) {
            self.store
                .set_pipe_fault(stored.uid, None)
                .await
                .map_err(|error| of_store(&error))?;
        }
        Ok(Applied::Stored)
    }
}

enum Applied {
    Unchanged,
    Planned(Box<StoredPipe>),
    Stored,
    Outrun,
}

/// The pipe as it would be.
fn planned(stored: &StoredPipe, change: PipeChange) -> StoredPipe {
    let mut pipe = stored.clone();
    if let Some((spec, resolved)) = change.spec {
        pipe.revision = stored.revision.next();
        pipe.spec = spec;
        pipe.resolved = resolved;
    }
    pipe.desired = change.desired.unwrap_or(pipe.desired);
    pipe.effective = change.effective.or(pipe.effective);
    pipe
}

/// What to tell of a change.
fn events(stored: &StoredPipe, change: &PipeChange, back_to: Option<Revision>) -> Result<Vec<NewEvent>, ApiError> {
    let mut events = Vec::new();
    if let Some((spec, _)) = &change.spec {
        let fields = mask::changed(&output::specification(&stored.spec), &output::specification(spec))?;
        let fields = fields.join(",");
        let message = match back_to {
            None => format!("changed: {fields}"),
            Some(revision) => format!("back to revision {revision}; changed: {fields}"),
        };
        let event = NewEvent::new(kind::PIPE_UPDATED, Severity::Info, message)
            .by(auth::actor())
            .with("fields", &fields)
            .with("revision", stored.revision.next());
        events.push(match back_to {
            None => event,
            Some(revision) => event.with("back_to", revision),
        });
    }
    let desired = change.desired.map(|desired| match desired {
        DesiredState::Running => (kind::PIPE_STARTED, "the pipe is to run"),
        DesiredState::Stopped => (kind::PIPE_STOPPED, "the pipe is to stop"),
    });
    events.extend(desired.map(|(kind, message)| NewEvent::new(kind, Severity::Info, message).by(auth::actor())));
    Ok(events)
}

/// Positions are places in one stream, counted from one start: with another of either they would mean nothing.
fn check_immutable(stored: &StoredPipe, new: &PipeSpec) -> Result<(), ApiError> {
    let mut violations = Violations::new();
    let (old, new) = (&stored.spec.source, &new.source);
    let why = "cannot be changed: the pipe's positions are places in that stream; create a new pipe";
    let stream = &stored.resolved.stream;
    let same_stream = match &new.stream {
        StreamRef::Name(name) => *name == stream.name,
        StreamRef::Arn(arn) => *arn == stream.arn,
    };
    if !same_stream {
        let field = match &new.stream {
            StreamRef::Name(_) => "pipe.source.kinesis.stream_name",
            StreamRef::Arn(_) => "pipe.source.kinesis.stream_arn",
        };
        violations.add(field, why);
    }
    if new.region != old.region {
        violations.add("pipe.source.kinesis.region", why);
    }
    if new.start != old.start {
        let field = match (old.start, new.start) {
            (StartPosition::AtTimestamp(_), StartPosition::AtTimestamp(_)) => "pipe.source.kinesis.timestamp",
            _ => "pipe.source.kinesis.iterator_type",
        };
        violations.add(
            field,
            "cannot be changed: the pipe has begun where it said; create a new pipe to begin elsewhere",
        );
    }
    if new.end != old.end {
        violations.add(
            "pipe.source.kinesis.end_timestamp",
            "cannot be changed: shards may have ended there already; create a new pipe to end elsewhere",
        );
    }
    violations.finish().map_err(|error| error.with_reason(IMMUTABLE_FIELD))
}

/// Whether the change needs another look at the stream and the table. Names, labels, batching and scaling do not, so
/// that they can be changed while either is away.
fn must_look(old: &PipeSpec, new: &PipeSpec) -> bool {
    old.source != new.source
        || old.destination != new.destination
        || old.field_mappings != new.field_mappings
        || old.decoding != new.decoding
        || old.settings.delivery != new.settings.delivery
}

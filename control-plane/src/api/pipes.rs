//! The pipe service.

use millrace_common::{
    error::ApiError,
    ids::{Label, PipeName, PipeUid, ProjectName},
    pipe::DesiredState,
    reason,
};
use millrace_proto::api::v1::{
    CreatePipeRequest, CreatePipeResponse, DeletePipeRequest, DeletePipeResponse, GetPipeRequest, GetPipeResponse,
    ListPipeEventsRequest, ListPipeEventsResponse, ListPipeRevisionsRequest, ListPipeRevisionsResponse,
    ListPipesRequest, ListPipesResponse, Pipe, PipeState, PipeStatus, ResetPositionRequest, ResetPositionResponse,
    RollbackPipeRequest, RollbackPipeResponse, UpdatePipeRequest, UpdatePipeResponse, WatchPipeRequest,
    pipe_service_server::PipeService,
};
use tonic::{Request, Response, Status};

use super::{
    Api,
    convert::{self, Context, Violations},
    errors::{ALREADY_EXISTS, etag_mismatch, of_store, pipe_not_found},
    name, page, parent,
    view::{self, View},
    watch,
};
use crate::{
    auth,
    destination::Mode,
    discovery::lineage,
    store::{self, Damaged, NewPipe, PipeSnapshot, ShardPhase, StoredPipe, StoredShard, Totals},
};

/// A pipe that cannot be read: its name, and why there is nothing else. It hides no other pipe of a listing.
fn show_damaged(damaged: &Damaged) -> Pipe {
    Pipe {
        name: damaged.name.to_string(),
        uid: damaged.uid.to_string(),
        status: Some(PipeStatus {
            state: PipeState::Failed.into(),
            reason: reason::INTERNAL.to_owned(),
            message: damaged.to_string(),
            ..PipeStatus::default()
        }),
        ..Pipe::default()
    }
}

/// What page tokens of this listing belong to.
const LISTING: &str = "pipes";

#[tonic::async_trait]
impl PipeService for Api {
    async fn create_pipe(&self, request: Request<CreatePipeRequest>) -> Result<Response<CreatePipeResponse>, Status> {
        let request = request.into_inner();
        let snapshot = Box::pin(self.create(&request)).await?;
        Ok(Response::new(CreatePipeResponse {
            pipe: Some(self.show(&snapshot, View::Full)),
        }))
    }

    async fn get_pipe(&self, request: Request<GetPipeRequest>) -> Result<Response<GetPipeResponse>, Status> {
        let request = request.into_inner();
        let name: PipeName = name(&request.name, "name")?;
        let view = view::requested(request.view, View::Full)?;
        let found = self.store.find_pipe(&name).await.map_err(|error| of_store(&error))?;
        let shown = match found {
            Some(pipe) => self.shown(pipe, view).await?,
            None => None,
        };
        let pipe = Some(shown.ok_or_else(|| pipe_not_found(&name))?);
        Ok(Response::new(GetPipeResponse { pipe }))
    }

    async fn list_pipes(&self, request: Request<ListPipesRequest>) -> Result<Response<ListPipesResponse>, Status> {
        let request = request.into_inner();
        let parent = parent(&request.parent)?;
        let view = view::requested(request.view, View::Basic)?;
        let page = page::parse(&self.sealer, LISTING, &parent, request.page_size, &request.page_token)?;
        // One more than asked for tells whether there is a next page.
        let mut pipes = self
            .store
            .list_pipes(&parent, page.after.as_ref(), page.size + 1)
            .await
            .map_err(|error| of_store(&error))?;
        let more = pipes.len() > page.size as usize;
        pipes.truncate(page.size as usize);
        let next_page_token = match pipes.last() {
            Some(last) if more => {
                let name = last.as_ref().map_or_else(|damaged| &damaged.name, |pipe| &pipe.name);
                page::token(&self.sealer, LISTING, &parent, &name.id)?
            }
            _ => String::new(),
        };
        let mut shown = Vec::with_capacity(pipes.len());
        for pipe in pipes {
            shown.extend(self.shown(pipe, view).await?);
        }
        Ok(Response::new(ListPipesResponse {
            pipes: shown,
            next_page_token,
        }))
    }

    async fn update_pipe(&self, request: Request<UpdatePipeRequest>) -> Result<Response<UpdatePipeResponse>, Status> {
        let snapshot = Box::pin(self.update(request.get_ref())).await?;
        Ok(Response::new(UpdatePipeResponse {
            pipe: Some(self.show(&snapshot, View::Full)),
        }))
    }

    async fn delete_pipe(&self, request: Request<DeletePipeRequest>) -> Result<Response<DeletePipeResponse>, Status> {
        let request = request.into_inner();
        let name: PipeName = name(&request.name, "name")?;
        let etag = Some(request.etag.as_str()).filter(|etag| !etag.is_empty());
        // Read before, because afterwards nobody knows what it had. One that cannot be read can be deleted all the same.
        let known = self.store.get_pipe(&name).await.ok().flatten();
        let deleted = match self.store.delete_pipe(&name, etag).await {
            Ok(deleted) => deleted,
            Err(crate::store::Error::EtagMismatch { .. }) => return Err(etag_mismatch().into()),
            Err(error) => return Err(of_store(&error).into()),
        };
        if !deleted && !request.allow_missing {
            return Err(pipe_not_found(&name).into());
        }
        if deleted {
            tracing::info!(pipe = %name, "pipe deleted");
            if let Some(pipe) = known {
                self.give_up_consumer(&pipe);
            }
            self.note_change();
        }
        Ok(Response::new(DeletePipeResponse {}))
    }

    type WatchPipeStream = watch::Updates;

    async fn watch_pipe(&self, request: Request<WatchPipeRequest>) -> Result<Response<Self::WatchPipeStream>, Status> {
        let client = request.remote_addr().map(|address| address.ip());
        let request = request.into_inner();
        let name: PipeName = name(&request.name, "name")?;
        let interval = watch::interval(request.interval)?;
        let permit = self.watchers.admit(client)?;
        let pipe = self.pipe(&name).await?;
        Ok(Response::new(watch::updates(
            self.clone(),
            name,
            pipe.uid,
            interval,
            permit,
        )))
    }

    async fn list_pipe_events(
        &self,
        request: Request<ListPipeEventsRequest>,
    ) -> Result<Response<ListPipeEventsResponse>, Status> {
        Ok(Response::new(self.events(request.get_ref()).await?))
    }

    async fn reset_position(
        &self,
        request: Request<ResetPositionRequest>,
    ) -> Result<Response<ResetPositionResponse>, Status> {
        Ok(Response::new(Box::pin(self.reset(request.get_ref())).await?))
    }

    async fn list_pipe_revisions(
        &self,
        request: Request<ListPipeRevisionsRequest>,
    ) -> Result<Response<ListPipeRevisionsResponse>, Status> {
        Ok(Response::new(self.revisions(request.get_ref()).await?))
    }

    async fn rollback_pipe(
        &self,
        request: Request<RollbackPipeRequest>,
    ) -> Result<Response<RollbackPipeResponse>, Status> {
        let snapshot = Box::pin(self.rollback(request.get_ref())).await?;
        Ok(Response::new(RollbackPipeResponse {
            pipe: Some(self.show(&snapshot, View::Full)),
        }))
    }
}

impl Api {
    /// What requests about pipes of a project are judged by.
    pub(super) fn context<'a>(&'a self, project: &'a ProjectName) -> Context<'a> {
        Context {
            project,
            endpoints: &self.endpoints,
            now: self.clock.now(),
        }
    }

    /// The stored pipe.
    pub(super) async fn pipe(&self, name: &PipeName) -> Result<StoredPipe, ApiError> {
        let pipe = self.store.get_pipe(name).await.map_err(|error| of_store(&error))?;
        pipe.ok_or_else(|| pipe_not_found(name))
    }

    /// A pipe as it is shown, also one that cannot be read; none that is deleted meanwhile.
    async fn shown(&self, pipe: Result<StoredPipe, Damaged>, view: View) -> Result<Option<Pipe>, ApiError> {
        let pipe = match pipe {
            Ok(pipe) => pipe,
            Err(damaged) => return Ok(Some(show_damaged(&damaged))),
        };
        match self.store.snapshot(pipe.uid).await {
            Ok(snapshot) => Ok(snapshot.map(|snapshot| self.show(&snapshot, view))),
            Err(error @ store::Error::Corrupt { .. }) => Ok(Some(show_damaged(&Damaged {
                uid: pipe.uid,
                name: pipe.name,
                error,
            }))),
            Err(error) => Err(of_store(&error)),
        }
    }

    /// The stored pipe with its shards.
    pub(super) async fn snapshot(&self, uid: PipeUid, name: &PipeName) -> Result<PipeSnapshot, ApiError> {
        let snapshot = self.store.snapshot(uid).await.map_err(|error| of_store(&error))?;
        snapshot.ok_or_else(|| pipe_not_found(name))
    }

    async fn create(&self, request: &CreatePipeRequest) -> Result<PipeSnapshot, ApiError> {
        let mut violations = Violations::new();
        let project = parent(&request.parent)
            .inspect_err(|error| violations.add("parent", error.message.trim_start_matches("parent: ")))
            .ok();
        let id = request
            .pipe_id
            .parse::<Label>()
            .inspect_err(|error| violations.add("pipe_id", error.to_string()))
            .ok();
        let given = request.pipe.clone().unwrap_or_default();
        let desired = convert::desired_state(given.desired_state, DesiredState::Running, &mut violations);
        // Without a project nothing can be said of names in it.
        let spec = project
            .as_ref()
            .and_then(|project| convert::spec(&given, self.context(project), &mut violations));
        violations.finish()?;
        let (Some(project), Some(id), Some(spec)) = (project, id, spec) else {
            // Whatever is missing was reported above.
            return Err(ApiError::new(
                tonic::Code::Internal,
                "INTERNAL",
                "a specification got lost",
            ));
        };
        let name = PipeName { project, id };
        // Before anything is made for it.
        if self
            .store
            .get_pipe(&name)
            .await
            .map_err(|error| of_store(&error))?
            .is_some()
        {
            let message = format!("{name} exists already");
            return Err(ApiError::new(tonic::Code::AlreadyExists, ALREADY_EXISTS, message)
                .with_metadata("name", name.to_string()));
        }
        let mode = if request.validate_only {
            Mode::Check
        } else {
            Mode::Create
        };
        let found = Box::pin(self.preflight(&name.id, &spec, mode)).await?;
        // After the listing: whatever is put into a shard before it was closed comes before this moment.
        let now = self.clock.now();
        let new = NewPipe {
            name,
            uid: PipeUid::new(),
            shards: lineage::first(spec.source.start, &found.stream.shards, now),
            spec,
            resolved: found.resolved,
            desired,
            effective: Some(found.effective),
        };
        if request.validate_only {
            return Ok(planned(new, now));
        }
        let stored = self
            .store
            .create_pipe_by(new, &auth::actor())
            .await
            .map_err(|error| of_store(&error))?;
        tracing::info!(pipe = %stored.name, uid = %stored.uid, "pipe created");
        self.follow_consumer(&stored, None);
        self.note_change();
        self.snapshot(stored.uid, &stored.name).await
    }
}

/// The pipe as it would be.
fn planned(new: NewPipe, now: jiff::Timestamp) -> PipeSnapshot {
    let shards = new.shards.into_iter().map(|shard| StoredShard {
        state: if shard.parents.is_empty() {
            ShardPhase::Open
        } else {
            ShardPhase::Waiting
        },
        id: shard.id,
        parents: shard.parents,
        epoch: millrace_common::ids::Epoch(0),
        owner: None,
        checkpoint: shard.start.clone(),
        frontier: shard.start,
        open_batches: 0,
        committed_batches: 0,
        complete_until: None,
    });
    PipeSnapshot {
        shards: shards.collect(),
        open_batches: Vec::new(),
        pipe: StoredPipe {
            uid: new.uid,
            name: new.name,
            spec: new.spec,
            revision: new.resolved.revision,
            resolved: new.resolved,
            desired: new.desired,
            etag: String::new(),
            fault: None,
            effective: new.effective,
            totals: Totals::default(),
            created: now,
            updated: now,
        },
    }
}

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
    errors::{ALREADY_EXISTS, of_store, pipe_not_found},
    filter::Filter,
    name,
    once::carried,
    page, parent,
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
/// Pipes that a filter is tried on for one page. Each is put together as it would be shown.
const MAX_FILTERED: u32 = 500;

#[tonic::async_trait]
impl PipeService for Api {
    async fn create_pipe(&self, request: Request<CreatePipeRequest>) -> Result<Response<CreatePipeResponse>, Status> {
        let request = request.into_inner();
        let id = carried(&request.request_id, request.validate_only);
        let name = format!("{}/pipes/{}", request.parent, request.pipe_id);
        let answer = |pipe| CreatePipeResponse { pipe: Some(pipe) };
        let run = async |api: Api| Ok(answer(api.show(&api.create(&request).await?, View::Full)));
        let again = async |api: Api| Ok(answer(api.current(&name).await?));
        let answer = self.once("CreatePipe", id, &request, run, again).await?;
        Ok(Response::new(answer))
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
        Ok(Response::new(Box::pin(self.list(request.into_inner())).await?))
    }

    async fn update_pipe(&self, request: Request<UpdatePipeRequest>) -> Result<Response<UpdatePipeResponse>, Status> {
        let request = request.into_inner();
        let id = carried(&request.request_id, request.validate_only);
        let name = request.pipe.as_ref().map(|pipe| pipe.name.as_str()).unwrap_or_default();
        let answer = |pipe| UpdatePipeResponse { pipe: Some(pipe) };
        let run = async |api: Api| Ok(answer(api.show(&api.update(&request).await?, View::Full)));
        let again = async |api: Api| Ok(answer(api.current(name).await?));
        let answer = self.once("UpdatePipe", id, &request, run, again).await?;
        Ok(Response::new(answer))
    }

    async fn delete_pipe(&self, request: Request<DeletePipeRequest>) -> Result<Response<DeletePipeResponse>, Status> {
        let request = request.into_inner();
        let run = async |api: Api| api.delete(&request).await;
        let again = async |_: Api| Ok(DeletePipeResponse {});
        let answer = self
            .once("DeletePipe", &request.request_id, &request, run, again)
            .await?;
        Ok(Response::new(answer))
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
        let request = request.into_inner();
        let id = carried(&request.request_id, request.validate_only);
        let run = async |api: Api| api.reset(&request).await;
        // What was moved, the event says.
        let again = async |api: Api| {
            Ok(ResetPositionResponse {
                pipe: Some(api.current(&request.name).await?),
                ..ResetPositionResponse::default()
            })
        };
        let answer = self.once("ResetPosition", id, &request, run, again).await?;
        Ok(Response::new(answer))
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
        let request = request.into_inner();
        let id = carried(&request.request_id, request.validate_only);
        let answer = |pipe| RollbackPipeResponse { pipe: Some(pipe) };
        let run = async |api: Api| Ok(answer(api.show(&api.rollback(&request).await?, View::Full)));
        let again = async |api: Api| Ok(answer(api.current(&request.name).await?));
        let answer = self.once("RollbackPipe", id, &request, run, again).await?;
        Ok(Response::new(answer))
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

    async fn list(&self, request: ListPipesRequest) -> Result<ListPipesResponse, ApiError> {
        let parent = parent(&request.parent)?;
        let view = view::requested(request.view, View::Basic)?;
        let filter = Filter::parse(&request.filter, "Pipe")?;
        // A token leads on under its own filter only.
        let listing = format!("{LISTING}/{}", request.filter);
        let page = page::parse(&self.sealer, &listing, &parent, request.page_size, &request.page_token)?;
        let size = if filter.is_empty() { page.size } else { MAX_FILTERED };
        // One more than is looked at tells whether there is a next page.
        let found = self.store.list_pipes(&parent, page.after.as_ref(), size + 1).await;
        let found = found.map_err(|error| of_store(&error))?;
        let (count, mut last) = (found.len(), None);
        let mut pipes = Vec::new();
        for (at, pipe) in found.into_iter().take(size as usize).enumerate() {
            let id = pipe
                .as_ref()
                .map_or_else(|damaged| &damaged.name, |pipe| &pipe.name)
                .id
                .clone();
            last = Some((at + 1, id));
            if let Some(shown) = self.shown(pipe, view).await?
                && filter.lets_through(&shown)?
            {
                pipes.push(shown);
            }
            if pipes.len() == page.size as usize {
                break;
            }
        }
        let next_page_token = match last {
            Some((seen, id)) if seen < count => page::token(&self.sealer, &listing, &parent, &id)?,
            _ => String::new(),
        };
        Ok(ListPipesResponse { pipes, next_page_token })
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

    /// A pipe as it is now, in full.
    async fn current(&self, text: &str) -> Result<Pipe, ApiError> {
        let name: PipeName = name(text, "name")?;
        let pipe = self.pipe(&name).await?;
        Ok(self.show(&self.snapshot(pipe.uid, &name).await?, View::Full))
    }

    async fn delete(&self, request: &DeletePipeRequest) -> Result<DeletePipeResponse, ApiError> {
        let name: PipeName = name(&request.name, "name")?;
        let etag = Some(request.etag.as_str()).filter(|etag| !etag.is_empty());
        // Read before, because afterwards nobody knows what it had. One that cannot be read can be deleted all the same.
        let known = self.store.find_pipe(&name).await.map_err(|error| of_store(&error))?;
        let deleted = match known {
            Some(_) => self
                .store
                .delete_pipe(&name, etag)
                .await
                .map_err(|error| of_store(&error))?,
            None => false,
        };
        if !deleted && !request.allow_missing {
            return Err(pipe_not_found(&name));
        }
        if deleted {
            tracing::info!(pipe = %name, "pipe deleted");
            if let Some(Ok(pipe)) = known {
                self.give_up_consumer(&pipe);
            }
            self.note_change();
        }
        Ok(DeletePipeResponse {})
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

//! The specifications that a pipe has had: listing them, and going back to one.

use millrace_common::{
    error::ApiError,
    ids::{PipeName, Revision},
};
use millrace_proto::api::v1 as proto;
use tonic::Code;

use super::{
    Api,
    convert::output,
    errors::{REVISION_NOT_FOUND, of_store},
    mask, page,
};
use crate::store::{PipeSnapshot, StoredRevision};

/// What page tokens of this listing belong to.
const LISTING: &str = "pipe-revisions";

impl Api {
    /// One page of the revisions of a pipe.
    pub(super) async fn revisions(
        &self,
        request: &proto::ListPipeRevisionsRequest,
    ) -> Result<proto::ListPipeRevisionsResponse, ApiError> {
        let name: PipeName = super::name(&request.parent, "parent")?;
        let pipe = self.pipe(&name).await?;
        let page = page::parse::<u64>(&self.sealer, LISTING, &pipe.uid, request.page_size, &request.page_token)?;
        // One more than asked for is what the last one is compared with.
        let found = self
            .store
            .list_revisions(pipe.uid, page.after.map(Revision), page.size + 1)
            .await
            .map_err(|error| of_store(&error))?;
        let shown = &found[..found.len().min(page.size as usize)];
        let mut revisions = Vec::with_capacity(shown.len());
        for (at, revision) in shown.iter().enumerate() {
            revisions.push(show(revision, found.get(at + 1), pipe.revision)?);
        }
        let next_page_token = match shown.last() {
            Some(last) if found.len() > shown.len() => page::token(&self.sealer, LISTING, &pipe.uid, &last.revision.0)?,
            _ => String::new(),
        };
        Ok(proto::ListPipeRevisionsResponse {
            revisions,
            next_page_token,
        })
    }

    /// Applies the specification of an earlier revision as an update, and returns the pipe as it is then, or as it would be.
    pub(super) async fn rollback(&self, request: &proto::RollbackPipeRequest) -> Result<PipeSnapshot, ApiError> {
        let name: PipeName = super::name(&request.name, "name")?;
        let number = u64::try_from(request.revision).ok().filter(|number| *number > 0);
        let revision = Revision(number.ok_or_else(|| {
            let what = "must be the number of a revision, 1 or more: ListPipeRevisions says which there are";
            ApiError::invalid_field("revision", what)
        })?);
        let pipe = self.pipe(&name).await?;
        let found = self
            .store
            .revision(pipe.uid, revision)
            .await
            .map_err(|error| of_store(&error))?;
        let (spec, _) = found.ok_or_else(|| {
            let message =
                format!("{name} has no revision {revision}, or not any more: ListPipeRevisions says which it has");
            ApiError::new(Code::NotFound, REVISION_NOT_FOUND, message)
                .with_field("revision")
                .with_metadata("name", name.to_string())
                .with_metadata("revision", revision.to_string())
        })?;
        let update = proto::UpdatePipeRequest {
            pipe: Some(proto::Pipe {
                name: request.name.clone(),
                uid: pipe.uid.to_string(),
                etag: request.etag.clone(),
                ..output::specification(&spec)
            }),
            update_mask: Some(mask::specification()),
            validate_only: request.validate_only,
            // It is the one of the whole request.
            request_id: String::new(),
        };
        Box::pin(self.change(&update, Some(revision))).await
    }
}

fn show(
    revision: &StoredRevision,
    before: Option<&StoredRevision>,
    current: Revision,
) -> Result<proto::PipeRevision, ApiError> {
    let pipe = output::specification(&revision.spec);
    // Only the one before says what was changed: of others between them, this one does not tell.
    let before = before.filter(|before| before.revision.next() == revision.revision);
    let changed_fields = match before {
        Some(before) => mask::changed(&output::specification(&before.spec), &pipe)?,
        None => Vec::new(),
    };
    Ok(proto::PipeRevision {
        revision: i64::try_from(revision.revision.0).unwrap_or(i64::MAX),
        create_time: Some(output::timestamp(revision.created)),
        current: revision.revision == current,
        changed_fields,
        pipe: Some(pipe),
    })
}

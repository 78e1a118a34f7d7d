//! Listing what happened to a pipe.

use millrace_common::{
    error::ApiError,
    ids::{EventId, PipeName},
};
use millrace_proto::api::v1::{ListPipeEventsRequest, ListPipeEventsResponse};

use super::{Api, convert::output, errors::of_store, page};

/// What page tokens of this listing belong to.
const LISTING: &str = "pipe-events";

impl Api {
    /// One page of the events of a pipe.
    pub(super) async fn events(&self, request: &ListPipeEventsRequest) -> Result<ListPipeEventsResponse, ApiError> {
        let name: PipeName = super::name(&request.parent, "parent")?;
        let pipe = self.pipe(&name).await?;
        // Of another pipe under the same name there is nothing to go on with.
        let page = page::parse::<EventId>(&self.sealer, LISTING, &pipe.uid, request.page_size, &request.page_token)?;
        let mut events = self
            .store
            .list_events(pipe.uid, page.after, page.size + 1)
            .await
            .map_err(|error| of_store(&error))?;
        let more = events.len() > page.size as usize;
        events.truncate(page.size as usize);
        let next_page_token = match events.last() {
            Some(last) if more => page::token(&self.sealer, LISTING, &pipe.uid, &last.id)?,
            _ => String::new(),
        };
        Ok(ListPipeEventsResponse {
            events: events.into_iter().map(output::event).collect(),
            next_page_token,
        })
    }
}

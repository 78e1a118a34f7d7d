//! Listing what happened to a pipe.

use millrace_common::{
    error::ApiError,
    ids::{EventId, PipeName},
};
use millrace_proto::api::v1::{ListPipeEventsRequest, ListPipeEventsResponse};

use super::{Api, convert::output, errors::of_store, filter::Filter, page};

/// What page tokens of this listing belong to.
const LISTING: &str = "pipe-events";

impl Api {
    /// One page of the events of a pipe.
    pub(super) async fn events(&self, request: &ListPipeEventsRequest) -> Result<ListPipeEventsResponse, ApiError> {
        let name: PipeName = super::name(&request.parent, "parent")?;
        let pipe = self.pipe(&name).await?;
        let filter = Filter::parse(&request.filter, "PipeEvent")?;
        let listing = format!("{LISTING}/{}", request.filter);
        // Of another pipe under the same name there is nothing to go on with.
        let page = page::parse::<EventId>(
            &self.sealer,
            &listing,
            &pipe.uid,
            request.page_size,
            &request.page_token,
        )?;
        // All that are kept of a pipe are few enough to look through.
        let limit = if filter.is_empty() { page.size + 1 } else { u32::MAX };
        let found = self.store.list_events(pipe.uid, page.after, limit).await;
        let found = found.map_err(|error| of_store(&error))?;
        let mut events = Vec::new();
        for event in found {
            let (id, shown) = (event.id, output::event(event));
            if filter.lets_through(&shown)? {
                events.push((id, shown));
            }
        }
        let more = events.len() > page.size as usize;
        events.truncate(page.size as usize);
        let next_page_token = match events.last() {
            Some((last, _)) if more => page::token(&self.sealer, &listing, &pipe.uid, last)?,
            _ => String::new(),
        };
        Ok(ListPipeEventsResponse {
            events: events.into_iter().map(|(_, event)| event).collect(),
            next_page_token,
        })
    }
}

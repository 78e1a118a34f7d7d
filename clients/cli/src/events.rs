//! `millrace pipe events`.

use millrace_proto::api::v1 as api;

use crate::{args::Connection, client, exit::Error, list, output};

const EVENT: &str = "millrace.api.v1.PipeEvent";
const HEADER: [&str; 6] = ["TIME", "SEVERITY", "KIND", "ACTOR", "SHARD", "MESSAGE"];

/// Prints the newest events of a pipe.
pub(crate) async fn run(connection: &Connection, pipe: &str, limit: usize, filter: &str) -> Result<(), Error> {
    let mut client = client::pipes(connection)?;
    let all = list::all(limit, async |page_size, page_token| {
        let request = api::ListPipeEventsRequest {
            parent: connection.name("pipes", pipe),
            page_size,
            page_token,
            filter: filter.to_owned(),
        };
        let page = client
            .list_pipe_events(request)
            .await
            .map_err(client::failed(connection))?
            .into_inner();
        Ok((page.events, page.next_page_token))
    })
    .await?;
    list::show(connection, &all, EVENT, &HEADER, row)
}

fn row(event: &api::PipeEvent) -> Vec<String> {
    vec![
        event.event_time.as_ref().map(time).unwrap_or_default(),
        output::short_enum(event.severity().as_str_name(), "EVENT_SEVERITY_"),
        event.kind.clone(),
        event.actor.clone(),
        event.shard_id.clone(),
        event.message.clone(),
    ]
}

/// A time to the second.
pub(crate) fn time(time: &prost_types::Timestamp) -> String {
    // As the proto JSON mapping writes it, which is RFC 3339.
    let whole = prost_types::Timestamp { nanos: 0, ..*time };
    whole.to_string()
}

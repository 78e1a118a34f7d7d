//! `millrace pipe events`.

use millrace_proto::api::v1 as api;

use crate::{
    args::Connection,
    client,
    exit::Error,
    manifest,
    output::{self, Format},
};

const EVENT: &str = "millrace.api.v1.PipeEvent";
const PAGE_SIZE: usize = 500;
const HEADER: [&str; 6] = ["TIME", "SEVERITY", "KIND", "ACTOR", "SHARD", "MESSAGE"];

/// Prints the newest events of a pipe.
pub(crate) async fn run(connection: &Connection, pipe: &str, limit: usize) -> Result<(), Error> {
    let mut client = client::pipes(connection)?;
    let mut all = Vec::new();
    let mut page_token = String::new();
    while all.len() < limit {
        let request = api::ListPipeEventsRequest {
            parent: connection.name("pipes", pipe),
            page_size: i32::try_from((limit - all.len()).min(PAGE_SIZE)).unwrap_or(i32::MAX),
            page_token,
        };
        let page = client
            .list_pipe_events(request)
            .await
            .map_err(client::failed(connection))?
            .into_inner();
        all.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if connection.output == Format::Table {
        return output::table(&HEADER, all.iter().map(row).collect());
    }
    let values = all
        .iter()
        .map(|event| manifest::to_json(event, EVENT))
        .collect::<Result<Vec<_>, _>>()?;
    output::document(&values.into(), connection.output)
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

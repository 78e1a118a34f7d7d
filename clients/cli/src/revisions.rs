//! `millrace pipe revisions` and `millrace pipe rollback`.

use millrace_proto::api::v1 as api;

use crate::{args::Connection, client, events, exit::Error, list, pipe};

const REVISION: &str = "millrace.api.v1.PipeRevision";
const HEADER: [&str; 4] = ["REVISION", "TIME", "CURRENT", "CHANGED"];

/// Prints the newest revisions of a pipe.
pub(crate) async fn list(connection: &Connection, pipe: &str, limit: usize) -> Result<(), Error> {
    let mut client = client::pipes(connection)?;
    let all = list::all(limit, async |page_size, page_token| {
        let request = api::ListPipeRevisionsRequest {
            parent: connection.name("pipes", pipe),
            page_size,
            page_token,
        };
        let page = client
            .list_pipe_revisions(request)
            .await
            .map_err(client::failed(connection))?
            .into_inner();
        Ok((page.revisions, page.next_page_token))
    })
    .await?;
    list::show(connection, &all, REVISION, &HEADER, row)
}

/// Gives a pipe the specification of an earlier revision again.
pub(crate) async fn rollback(
    connection: &Connection,
    pipe: &str,
    revision: i64,
    validate_only: bool,
) -> Result<(), Error> {
    let request = api::RollbackPipeRequest {
        name: connection.name("pipes", pipe),
        revision,
        etag: String::new(),
        validate_only,
        request_id: client::request_id(),
    };
    let mut client = client::pipes(connection)?;
    let response = client::insist(async || client.rollback_pipe(request.clone()).await).await;
    let response = response.map_err(client::failed(connection))?;
    pipe::show(connection, &response.pipe.unwrap_or_default())
}

fn row(revision: &api::PipeRevision) -> Vec<String> {
    vec![
        revision.revision.to_string(),
        revision.create_time.as_ref().map(events::time).unwrap_or_default(),
        if revision.current { "yes" } else { "" }.to_owned(),
        revision.changed_fields.join(", "),
    ]
}

//! `millrace pipe …`.

use std::path::Path;

use millrace_proto::api::v1::{self as api, DesiredState, PipeState, PipeView, ShardState};

use crate::{
    args::{Connection, Pipe},
    client, discovery, draft, events,
    exit::Error,
    list, manifest,
    output::{self, Format},
    reset, revisions, wait, watch, wizard,
};

/// Full name of the message.
pub(crate) const PIPE: &str = "millrace.api.v1.Pipe";

/// Runs one command.
pub(crate) async fn run(connection: &Connection, command: Pipe) -> Result<(), Error> {
    match command {
        Pipe::Create {
            file: Some(file),
            dry_run,
            ..
        } => create(connection, manifest::parse(&manifest::read(&file)?, PIPE)?, dry_run).await,
        Pipe::Create {
            file: None,
            dry_run,
            kinesis_endpoint,
        } => Box::pin(wizard::run(connection, kinesis_endpoint, dry_run)).await,
        Pipe::Draft(given) => Box::pin(draft::run(connection, &given)).await,
        Pipe::Update { file, field, dry_run } => update(connection, &file, field, dry_run).await,
        Pipe::Preview(given) => discovery::preview(connection, &given).await,
        Pipe::Rows { pipe, limit } => discovery::rows(connection, &pipe, limit).await,
        Pipe::Get { pipe } => get(connection, &pipe).await,
        Pipe::List { filter } => list_all(connection, &filter).await,
        Pipe::Watch {
            pipe,
            interval,
            until_records,
        } => watch::run(connection, &pipe, interval, until_records).await,
        Pipe::Events { pipe, limit, filter } => events::run(connection, &pipe, limit, &filter).await,
        Pipe::Revisions { pipe, limit } => revisions::list(connection, &pipe, limit).await,
        Pipe::Rollback { pipe, to, dry_run } => revisions::rollback(connection, &pipe, to, dry_run).await,
        Pipe::Wait {
            pipe,
            goal,
            lag,
            timeout,
        } => wait::run(connection, &pipe, goal, lag, timeout).await,
        Pipe::ResetPosition(given) => reset::run(connection, given).await,
        Pipe::Start { pipe } => set_desired(connection, &pipe, DesiredState::Running).await,
        Pipe::Stop { pipe } => set_desired(connection, &pipe, DesiredState::Stopped).await,
        Pipe::Delete { pipe, allow_missing } => delete(connection, &pipe, allow_missing).await,
    }
}

/// Creates a pipe, and prints it.
pub(crate) async fn create(connection: &Connection, pipe: api::Pipe, validate_only: bool) -> Result<(), Error> {
    let name = connection.name("pipes", &pipe.name);
    let request = creation(api::Pipe { name, ..pipe }, validate_only)?;
    let mut client = client::pipes(connection)?;
    let response = client::insist(async || client.create_pipe(request.clone()).await).await;
    let response = response.map_err(client::failed(connection))?;
    show(connection, &response.pipe.unwrap_or_default())
}

/// The request that creates a pipe of a full name: the API takes parent and id.
pub(crate) fn creation(mut pipe: api::Pipe, validate_only: bool) -> Result<api::CreatePipeRequest, Error> {
    let name = std::mem::take(&mut pipe.name);
    let Some((parent, pipe_id)) = name.split_once("/pipes/").filter(|(_, id)| !id.is_empty()) else {
        return Err(Error::Local(
            "name: give the pipe an id, such as `name: clicks`".to_owned(),
        ));
    };
    Ok(api::CreatePipeRequest {
        parent: parent.to_owned(),
        pipe_id: pipe_id.to_owned(),
        pipe: Some(pipe),
        validate_only,
        request_id: client::request_id(),
    })
}

async fn update(connection: &Connection, file: &Path, paths: Vec<String>, validate_only: bool) -> Result<(), Error> {
    let pipe: api::Pipe = manifest::parse(&manifest::read(file)?, PIPE)?;
    if pipe.name.is_empty() {
        return Err(Error::Local("name: say which pipe, such as `name: clicks`".to_owned()));
    }
    let request = api::UpdatePipeRequest {
        pipe: Some(api::Pipe {
            name: connection.name("pipes", &pipe.name),
            ..pipe
        }),
        update_mask: (!paths.is_empty()).then_some(prost_types::FieldMask { paths }),
        validate_only,
        request_id: client::request_id(),
    };
    let mut client = client::pipes(connection)?;
    let response = client::insist(async || client.update_pipe(request.clone()).await).await;
    let response = response.map_err(client::failed(connection))?;
    show(connection, &response.pipe.unwrap_or_default())
}

async fn get(connection: &Connection, pipe: &str) -> Result<(), Error> {
    let request = api::GetPipeRequest {
        name: connection.name("pipes", pipe),
        view: PipeView::Full.into(),
    };
    let response = client::pipes(connection)?
        .get_pipe(request)
        .await
        .map_err(client::failed(connection))?
        .into_inner();
    show(connection, &response.pipe.unwrap_or_default())
}

async fn list_all(connection: &Connection, filter: &str) -> Result<(), Error> {
    let mut client = client::pipes(connection)?;
    let all = list::all(usize::MAX, async |page_size, page_token| {
        let request = api::ListPipesRequest {
            parent: connection.parent(),
            page_size,
            page_token,
            view: PipeView::Basic.into(),
            filter: filter.to_owned(),
        };
        let page = client
            .list_pipes(request)
            .await
            .map_err(client::failed(connection))?
            .into_inner();
        Ok((page.pipes, page.next_page_token))
    })
    .await?;
    list::show(connection, &all, PIPE, &HEADER, row)
}

async fn set_desired(connection: &Connection, pipe: &str, desired: DesiredState) -> Result<(), Error> {
    let request = api::UpdatePipeRequest {
        pipe: Some(api::Pipe {
            name: connection.name("pipes", pipe),
            desired_state: desired.into(),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["desired_state".to_owned()],
        }),
        validate_only: false,
        request_id: client::request_id(),
    };
    let mut client = client::pipes(connection)?;
    let response = client::insist(async || client.update_pipe(request.clone()).await).await;
    let response = response.map_err(client::failed(connection))?;
    show(connection, &response.pipe.unwrap_or_default())
}

async fn delete(connection: &Connection, pipe: &str, allow_missing: bool) -> Result<(), Error> {
    let name = connection.name("pipes", pipe);
    let request = api::DeletePipeRequest {
        name: name.clone(),
        etag: String::new(),
        allow_missing,
        request_id: client::request_id(),
    };
    let mut client = client::pipes(connection)?;
    let deleted = client::insist(async || client.delete_pipe(request.clone()).await).await;
    deleted.map_err(client::failed(connection))?;
    output::line(&format!("{name} deleted"))
}

const HEADER: [&str; 8] = [
    "NAME", "STATE", "STREAM", "TABLE", "ROWS", "REJECTED", "DELIVERY", "REASON",
];

fn row(pipe: &api::Pipe) -> Vec<String> {
    let status = pipe.status.clone().unwrap_or_default();
    let totals = status.totals.unwrap_or_default();
    let stream = match pipe.source.as_ref().and_then(|source| source.kind.as_ref()) {
        Some(api::source::Kind::Kinesis(kinesis)) if kinesis.stream_name.is_empty() => {
            output::short(&kinesis.stream_arn)
        }
        Some(api::source::Kind::Kinesis(kinesis)) => kinesis.stream_name.clone(),
        None => String::new(),
    };
    let table = pipe
        .destination
        .as_ref()
        .map(|d| format!("{}.{}", d.database, d.table))
        .unwrap_or_default();
    vec![
        output::short(&pipe.name),
        state(&status),
        stream,
        table,
        output::count(totals.rows),
        output::count(totals.rejected_records),
        output::short_enum(status.effective_delivery().as_str_name(), "DELIVERY_"),
        status.reason,
    ]
}

/// A pipe's state in one word.
pub(crate) fn state(status: &api::PipeStatus) -> String {
    output::short_enum(
        PipeState::try_from(status.state).unwrap_or_default().as_str_name(),
        "PIPE_STATE_",
    )
}

/// Prints one pipe.
pub(crate) fn show(connection: &Connection, pipe: &api::Pipe) -> Result<(), Error> {
    if connection.output != Format::Table {
        return output::document(&manifest::to_json(pipe, PIPE)?, connection.output);
    }
    output::table(&HEADER, vec![row(pipe)])?;
    let Some(status) = &pipe.status else { return Ok(()) };
    if !status.message.is_empty() {
        output::line(&format!("\n{}", crate::exit::printable(&status.message)))?;
    }
    if status.effective_delivery != api::Delivery::ExactlyOnce as i32 && !status.effective_delivery_reason.is_empty() {
        output::line(&format!(
            "\ndelivery: {}",
            crate::exit::printable(&status.effective_delivery_reason)
        ))?;
    }
    if status.shards.is_empty() {
        return Ok(());
    }
    output::line("")?;
    output::table(&SHARD_HEADER, status.shards.iter().map(shard_row).collect())
}

/// Columns of a shard table.
pub(crate) const SHARD_HEADER: [&str; 5] = ["SHARD", "STATE", "LAG", "WORKER", "CHECKPOINT"];

/// One row of a shard table.
pub(crate) fn shard_row(shard: &api::ShardStatus) -> Vec<String> {
    vec![
        shard.shard_id.clone(),
        output::short_enum(
            ShardState::try_from(shard.state).unwrap_or_default().as_str_name(),
            "SHARD_STATE_",
        ),
        output::duration(shard.lag.as_ref()),
        shard.worker_id.clone(),
        shard.checkpoint_sequence_number.clone(),
    ]
}

//! `millrace apply` and `millrace diff`: pipes as files say them. A file states the whole specification, so what it does not name
//! goes back to its default; only whether a pipe runs is left as it is if the file does not say.

use std::path::Path;

use millrace_proto::api::v1::{self as api, DesiredState, PipeView};
use serde_json::Value;
use similar::{ChangeTag, TextDiff};
use tonic::Code;

use crate::{
    args::Connection,
    client,
    exit::Error,
    manifest,
    output::{self, Format},
    pipe::PIPE,
};

/// What users write of a pipe, but for `desired_state`.
const SPECIFICATION: [&str; 8] = [
    "display_name",
    "annotations",
    "source",
    "destination",
    "field_mappings",
    "decoding",
    "scaling",
    "settings",
];
const DESIRED_STATE: &str = "desired_state";
/// What only the server writes. A file may have it, because it was printed from a pipe.
const OBSERVED: [&str; 7] = [
    "uid",
    "status",
    "revision",
    "etag",
    "reconciling",
    "createTime",
    "updateTime",
];
/// Unchanged lines around a change.
const CONTEXT: usize = 3;

/// What became of one pipe of a file, or would.
struct Applied {
    before: Option<api::Pipe>,
    after: api::Pipe,
}

/// Creates and changes the pipes of a file.
pub(crate) async fn run(connection: &Connection, file: &Path, validate_only: bool) -> Result<(), Error> {
    let pipes = pipes_of(connection, file)?;
    let mut results = Vec::new();
    for pipe in pipes {
        let Applied { before, after } = apply(connection, pipe, validate_only).await?;
        let action = match &before {
            None => "created",
            Some(before) if fields_of(before)? == fields_of(&after)? => "unchanged",
            Some(_) => "configured",
        };
        if connection.output == Format::Table {
            let dry = if validate_only { " (dry run)" } else { "" };
            output::line(&format!("{} {action}{dry}", after.name))?;
        } else {
            results.push(serde_json::json!({
                "action": action,
                "pipe": manifest::to_json(&after, PIPE)?,
            }));
        }
    }
    if connection.output == Format::Table {
        return Ok(());
    }
    output::document(&Value::Array(results), connection.output)
}

/// Shows what applying a file would change, checked by the control plane. Whether it would change anything.
pub(crate) async fn diff(connection: &Connection, file: &Path) -> Result<bool, Error> {
    let mut differs = false;
    let mut results = Vec::new();
    for pipe in pipes_of(connection, file)? {
        let Applied { before, after } = apply(connection, pipe, true).await?;
        let (old, new) = (before.as_ref().map(fields_of).transpose()?, fields_of(&after)?);
        let same = old.as_ref() == Some(&new);
        differs |= !same;
        if connection.output == Format::Table {
            let old = old.as_ref().map(yaml).transpose()?.unwrap_or_default();
            print(&after.name, before.is_some(), &old, &yaml(&new)?)?;
        } else {
            results.push(serde_json::json!({"name": after.name, "differs": !same, "before": old, "after": new}));
        }
    }
    if connection.output != Format::Table {
        output::document(&Value::Array(results), connection.output)?;
    }
    Ok(differs)
}

fn pipes_of(connection: &Connection, file: &Path) -> Result<Vec<api::Pipe>, Error> {
    let mut pipes: Vec<api::Pipe> = manifest::parse_all(&manifest::read(file)?, PIPE)?;
    for pipe in &mut pipes {
        if pipe.name.is_empty() {
            return Err(Error::Local(
                "name: give each pipe one, such as `name: clicks`".to_owned(),
            ));
        }
        pipe.name = connection.name("pipes", &pipe.name);
    }
    Ok(pipes)
}

async fn apply(connection: &Connection, pipe: api::Pipe, validate_only: bool) -> Result<Applied, Error> {
    let mut client = client::pipes(connection)?;
    let request = api::GetPipeRequest {
        name: pipe.name.clone(),
        view: PipeView::Basic.into(),
    };
    let before = match client.get_pipe(request).await {
        Ok(response) => response.into_inner().pipe,
        Err(status) if status.code() == Code::NotFound => None,
        Err(status) => return Err(client::failed(connection)(status)),
    };
    let after = match &before {
        None => {
            let request = crate::pipe::creation(pipe.clone(), validate_only)?;
            let response = client::insist(async || client.create_pipe(request.clone()).await).await;
            let created = response.map_err(client::failed(connection))?.pipe.unwrap_or_default();
            // A plan has no name yet that it could be found by.
            api::Pipe {
                name: pipe.name,
                ..created
            }
        }
        Some(_) => {
            let mut paths: Vec<String> = SPECIFICATION.map(str::to_owned).into();
            if pipe.desired_state() != DesiredState::Unspecified {
                paths.push(DESIRED_STATE.to_owned());
            }
            let request = api::UpdatePipeRequest {
                pipe: Some(pipe),
                update_mask: Some(prost_types::FieldMask { paths }),
                validate_only,
                request_id: client::request_id(),
            };
            let response = client::insist(async || client.update_pipe(request.clone()).await).await;
            response.map_err(client::failed(connection))?.pipe.unwrap_or_default()
        }
    };
    Ok(Applied { before, after })
}

/// What users write of a pipe.
fn fields_of(pipe: &api::Pipe) -> Result<Value, Error> {
    let mut value = manifest::to_json(pipe, PIPE)?;
    if let Value::Object(fields) = &mut value {
        fields.retain(|name, _| !OBSERVED.contains(&name.as_str()));
    }
    Ok(value)
}

fn yaml(value: &Value) -> Result<String, Error> {
    serde_yaml_ng::to_string(value).map_err(|error| Error::Local(error.to_string()))
}

/// Prints a unified diff.
fn print(name: &str, exists: bool, old: &str, new: &str) -> Result<(), Error> {
    let text = TextDiff::from_lines(old, new);
    let groups = text.grouped_ops(CONTEXT);
    if groups.is_empty() {
        return Ok(());
    }
    let before = if exists { name } else { "/dev/null" };
    output::line(&format!("--- {before}\n+++ {name}"))?;
    for group in groups {
        let (Some(first), Some(last)) = (group.first(), group.last()) else {
            continue;
        };
        let (old, new) = (
            first.old_range().start..last.old_range().end,
            first.new_range().start..last.new_range().end,
        );
        output::line(&format!(
            "@@ -{},{} +{},{} @@",
            old.start + usize::from(!old.is_empty()),
            old.len(),
            new.start + usize::from(!new.is_empty()),
            new.len()
        ))?;
        for change in group.iter().flat_map(|op| text.iter_changes(op)) {
            let sign = match change.tag() {
                ChangeTag::Delete => '-',
                ChangeTag::Insert => '+',
                ChangeTag::Equal => ' ',
            };
            let line = crate::exit::printable(change.value().trim_end_matches('\n'));
            output::line(&format!("{sign}{line}"))?;
        }
    }
    Ok(())
}

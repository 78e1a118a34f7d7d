//! `millrace pipe reset-position`.

use millrace_proto::api::v1::{self as api, IteratorType, PositionEffect};

use crate::{
    args::{Connection, Reset},
    client, events,
    exit::Error,
    manifest,
    output::{self, Format},
};

const RESPONSE: &str = "millrace.api.v1.ResetPositionResponse";
const HEADER: [&str; 6] = ["SHARD", "FROM", "TO", "EFFECT", "BETWEEN", "AND"];

/// Moves positions, or shows what that would do.
pub(crate) async fn run(connection: &Connection, given: Reset) -> Result<(), Error> {
    let mut request = api::ResetPositionRequest {
        name: connection.name("pipes", &given.pipe),
        shard_ids: given.shard,
        abandon_open_batches: given.abandon_open_batches,
        adopt_stream: given.adopt_stream,
        validate_only: given.dry_run,
        request_id: client::request_id(),
        ..Default::default()
    };
    if let Some(to) = &given.to {
        goal(to, &mut request)?;
    }
    let mut client = client::pipes(connection)?;
    let response = client::insist(async || client.reset_position(request.clone()).await).await;
    let response = response.map_err(client::failed(connection))?;
    if connection.output != Format::Table {
        return output::document(&manifest::to_json(&response, RESPONSE)?, connection.output);
    }
    output::table(&HEADER, response.moves.iter().map(row).collect())?;
    if !response.abandoned_batch_ids.is_empty() {
        let ids = response.abandoned_batch_ids.join(", ");
        output::line(&format!(
            "\nopen batches given up, whose rows may be in the table or not: {ids}"
        ))?;
    }
    if given.dry_run {
        output::line("\nnothing was changed")?;
    }
    Ok(())
}

/// `trim-horizon`, `latest`, a time, or a sequence number.
fn goal(to: &str, request: &mut api::ResetPositionRequest) -> Result<(), Error> {
    let word = to.to_ascii_lowercase().replace('_', "-");
    if word == "trim-horizon" {
        request.set_iterator_type(IteratorType::TrimHorizon);
    } else if word == "latest" {
        request.set_iterator_type(IteratorType::Latest);
    } else if !to.is_empty() && to.bytes().all(|byte| byte.is_ascii_digit()) {
        to.clone_into(&mut request.after_sequence_number);
    } else {
        let time: prost_types::Timestamp = to.parse().map_err(|_| {
            Error::Local(format!(
                "--to {to}: give trim-horizon, latest, a time such as 2026-11-22T12:00:00Z, or a sequence number"
            ))
        })?;
        request.set_iterator_type(IteratorType::AtTimestamp);
        request.timestamp = Some(time);
    }
    Ok(())
}

fn row(step: &api::PositionMove) -> Vec<String> {
    let (from, to) = (
        step.from_time.as_ref().map(events::time),
        step.to_time.as_ref().map(events::time),
    );
    let (from, to) = (from.unwrap_or_default(), to.unwrap_or_default());
    let (between, and) = match step.effect() {
        PositionEffect::ReadAgain => (to, from),
        _ => (from, to),
    };
    vec![
        step.shard_id.clone(),
        step.from_position.clone(),
        step.to_position.clone(),
        output::short_enum(step.effect().as_str_name(), "POSITION_EFFECT_"),
        between,
        and,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_a_word_a_time_or_a_number() {
        let parse = |to: &str| {
            let mut request = api::ResetPositionRequest::default();
            goal(to, &mut request).map(|()| request)
        };
        assert_eq!(
            parse("trim-horizon").unwrap().iterator_type(),
            IteratorType::TrimHorizon
        );
        assert_eq!(
            parse("TRIM_HORIZON").unwrap().iterator_type(),
            IteratorType::TrimHorizon
        );
        assert_eq!(parse("latest").unwrap().iterator_type(), IteratorType::Latest);
        let time = parse("2026-11-22T12:00:00Z").unwrap();
        assert_eq!(time.timestamp.map(|time| time.seconds), Some(1_795_348_800));
        assert_eq!(parse("4959033827149").unwrap().after_sequence_number, "4959033827149");
        assert!(parse("yesterday").is_err() && parse("").is_err());
    }
}

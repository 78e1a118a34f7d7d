//! `millrace rejected …`: what a pipe could not map.

use millrace_proto::api::v1::{self as api, rejected_record::Payload};

use crate::{
    args::{
        Connection,
        rejected::{Filter, Rejected},
    },
    client, events,
    exit::Error,
    list, manifest,
    output::{self, Format},
};

const RECORD: &str = "millrace.api.v1.RejectedRecord";
const DISCARDED: &str = "millrace.api.v1.DiscardRejectedRecordsResponse";
const COUNTS: &str = "millrace.api.v1.CountRejectedRecordsResponse";

const RECORD_HEADER: [&str; 6] = ["TIME", "SHARD", "SEQUENCE NUMBER", "ERROR", "WHY", "DOCUMENT"];
const COUNT_HEADER: [&str; 5] = ["ERROR", "RECORDS", "FIRST", "LAST", "EXAMPLE"];

/// Runs a command about rejected records.
pub(crate) async fn run(connection: &Connection, command: Rejected) -> Result<(), Error> {
    match command {
        Rejected::List {
            pipe,
            filter,
            oldest_first,
            limit,
        } => list(connection, &pipe, &filter, oldest_first, limit).await,
        Rejected::Count { pipe, filter } => count(connection, &pipe, &filter).await,
        Rejected::Discard {
            pipe,
            filter: given,
            all,
            dry_run,
        } => {
            let request = api::DiscardRejectedRecordsRequest {
                parent: connection.name("pipes", &pipe),
                filter: filter(&given)?,
                all,
                validate_only: dry_run,
            };
            discard(connection, request).await
        }
    }
}

fn filter(given: &Filter) -> Result<Option<api::RejectedRecordFilter>, Error> {
    let time = |option: &str, text: Option<&String>| {
        let Some(text) = text else {
            return Ok(None);
        };
        text.parse()
            .map(Some)
            .map_err(|_| Error::Local(format!("{option} {text:?} is not a time such as 2026-11-22T12:00:00Z")))
    };
    Ok(Some(api::RejectedRecordFilter {
        error_type: given.error_type.clone().unwrap_or_default(),
        shard_id: given.shard.clone().unwrap_or_default(),
        start_time: time("--from", given.from.as_ref())?,
        end_time: time("--to", given.to.as_ref())?,
    }))
}

async fn list(
    connection: &Connection,
    pipe: &str,
    given: &Filter,
    oldest_first: bool,
    limit: usize,
) -> Result<(), Error> {
    let mut client = client::rejected_records(connection)?;
    let filter = filter(given)?;
    let order_by = if oldest_first { "error_time" } else { "error_time desc" };
    let all = list::all(limit, async |page_size, page_token| {
        let request = api::ListRejectedRecordsRequest {
            parent: connection.name("pipes", pipe),
            page_size,
            page_token,
            filter: filter.clone(),
            order_by: order_by.to_owned(),
        };
        let page = client
            .list_rejected_records(request)
            .await
            .map_err(client::failed(connection))?
            .into_inner();
        Ok((page.rejected_records, page.next_page_token))
    })
    .await?;
    list::show(connection, &all, RECORD, &RECORD_HEADER, |record| {
        let payload = match &record.payload {
            Some(Payload::Text(text)) => text.clone(),
            Some(Payload::Binary(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
            None => String::new(),
        };
        vec![
            record.error_time.as_ref().map(events::time).unwrap_or_default(),
            record.shard_id.clone(),
            match record.sub_sequence_number {
                0 => record.sequence_number.clone(),
                sub => format!("{}/{sub}", record.sequence_number),
            },
            record.error_type.clone(),
            output::one_line(&record.error_message),
            output::one_line(&payload),
        ]
    })
}

async fn discard(connection: &Connection, request: api::DiscardRejectedRecordsRequest) -> Result<(), Error> {
    let dry_run = request.validate_only;
    let answer = client::rejected_records(connection)?
        .discard_rejected_records(request)
        .await
        .map_err(client::failed(connection))?
        .into_inner();
    if connection.output != Format::Table {
        return output::document(&manifest::to_json(&answer, DISCARDED)?, connection.output);
    }
    let records = output::count(answer.record_count);
    if dry_run {
        return output::line(&format!("{records} rejected records would be deleted"));
    }
    if answer.pending {
        output::note("ClickHouse has not got to all of them yet: they go by themselves");
    }
    output::line(&format!("{records} rejected records deleted"))
}

async fn count(connection: &Connection, pipe: &str, given: &Filter) -> Result<(), Error> {
    let request = api::CountRejectedRecordsRequest {
        parent: connection.name("pipes", pipe),
        filter: filter(given)?,
    };
    let answer = client::rejected_records(connection)?
        .count_rejected_records(request)
        .await
        .map_err(client::failed(connection))?
        .into_inner();
    if connection.output != Format::Table {
        return output::document(&manifest::to_json(&answer, COUNTS)?, connection.output);
    }
    let row = |count: &api::RejectedRecordCount| {
        vec![
            count.error_type.clone(),
            output::count(count.record_count),
            count.first_error_time.as_ref().map(events::time).unwrap_or_default(),
            count.last_error_time.as_ref().map(events::time).unwrap_or_default(),
            output::one_line(&count.example_message),
        ]
    };
    output::table(&COUNT_HEADER, answer.counts.iter().map(row).collect())
}

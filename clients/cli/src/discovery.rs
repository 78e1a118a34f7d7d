//! `millrace stream …`, `schema …`, `table …` and `pipe preview`: what there is, before there is a pipe.

use std::path::Path;

use millrace_proto::api::v1::{
    self as api, IteratorType, describe_table_request, infer_schema_request, preview_rows_request,
    sample_records_request, sampled_document::Payload,
};

use crate::{
    args::{
        Connection,
        discovery::{Aws, Preview, Sampling, Schema, Server, Stream, Subject, Table},
    },
    client, events,
    exit::Error,
    list, manifest,
    output::{self, Format},
    pipe::PIPE,
};

const STREAM: &str = "millrace.api.v1.StreamSummary";
const SAMPLE: &str = "millrace.api.v1.SampleRecordsResponse";
const SCHEMA: &str = "millrace.api.v1.InferSchemaResponse";
const DATABASE: &str = "millrace.api.v1.DatabaseSummary";
const TABLE: &str = "millrace.api.v1.TableSummary";
const DESCRIPTION: &str = "millrace.api.v1.DescribeTableResponse";
const ROWS: &str = "millrace.api.v1.SampleRowsResponse";
const PREVIEW: &str = "millrace.api.v1.PreviewRowsResponse";
const DECODING: &str = "millrace.api.v1.Decoding";

const STREAM_HEADER: [&str; 5] = ["STREAM", "STATUS", "MODE", "OPEN SHARDS", "CREATED"];
const SAMPLE_HEADER: [&str; 5] = ["SHARD", "SEQUENCE NUMBER", "KEY", "ARRIVED", "DOCUMENT"];
const SHARD_HEADER: [&str; 4] = ["SHARD", "RECORDS", "LAG", "TROUBLE"];
const SCHEMA_HEADER: [&str; 5] = ["COLUMN", "TYPE", "NULL", "EXAMPLES", "NOTE"];
const DATABASE_HEADER: [&str; 3] = ["DATABASE", "ENGINE", "COMMENT"];
const TABLE_HEADER: [&str; 4] = ["TABLE", "ENGINE", "ROWS", "COMMENT"];
const COLUMN_HEADER: [&str; 5] = ["COLUMN", "TYPE", "DEFAULT", "FROM", "NOTE"];
const REFUSED_HEADER: [&str; 4] = ["RECORD", "FIELD", "ERROR", "WHY"];

/// Runs a command about streams.
pub(crate) async fn stream(connection: &Connection, command: Stream) -> Result<(), Error> {
    match command {
        Stream::List { aws, shards, limit } => list_streams(connection, &aws, shards, limit).await,
        Stream::Sample(subject) => sample(connection, &subject).await,
    }
}

/// Runs a command about types.
pub(crate) async fn schema(connection: &Connection, command: Schema) -> Result<(), Error> {
    match command {
        Schema::Infer(subject) => infer(connection, &subject).await,
    }
}

/// Runs a command about tables.
pub(crate) async fn table(connection: &Connection, command: Table) -> Result<(), Error> {
    match command {
        Table::List {
            server,
            database: None,
            limit,
        } => list_databases(connection, &server, limit).await,
        Table::List {
            server,
            database: Some(database),
            limit,
        } => list_tables(connection, &server, &database, limit).await,
        Table::Describe {
            table,
            server,
            database,
            subject,
        } => describe(connection, &server, database, table, &subject).await,
    }
}

async fn list_streams(connection: &Connection, aws: &Aws, count_shards: bool, limit: usize) -> Result<(), Error> {
    let all = streams(connection, aws, count_shards, limit).await?;
    list::show(connection, &all, STREAM, &STREAM_HEADER, |stream| {
        vec![
            stream.stream_name.clone(),
            stream.status.clone(),
            stream.mode.clone(),
            match stream.open_shard_count {
                Some(count) => count.to_string(),
                None => stream.message.clone(),
            },
            stream.create_time.as_ref().map(events::time).unwrap_or_default(),
        ]
    })
}

/// The streams that a credential can see.
pub(crate) async fn streams(
    connection: &Connection,
    aws: &Aws,
    count_shards: bool,
    limit: usize,
) -> Result<Vec<api::StreamSummary>, Error> {
    let mut client = client::discovery(connection)?;
    list::all(limit, async |page_size, page_token| {
        let request = api::ListStreamsRequest {
            parent: connection.parent(),
            credential: credential(connection, &aws.credential),
            region: aws.region.clone(),
            endpoint: aws.kinesis_endpoint.clone(),
            count_shards,
            page_size,
            page_token,
        };
        let page = client
            .list_streams(request)
            .await
            .map_err(client::failed(connection))?
            .into_inner();
        Ok((page.streams, page.next_page_token))
    })
    .await
}

/// The full name of a credential; nothing stays nothing, which the server says something about.
pub(crate) fn credential(connection: &Connection, given: &str) -> String {
    if given.is_empty() {
        String::new()
    } else {
        connection.name("credentials", given)
    }
}

/// What to read of a stream.
fn options(sampling: &Sampling) -> Result<api::SampleOptions, Error> {
    let mut options = api::SampleOptions {
        shard_ids: sampling.shard.clone(),
        max_records: sampling.max_records,
        ..Default::default()
    };
    match sampling.from.to_ascii_lowercase().replace('_', "-").as_str() {
        "latest" => options.set_iterator_type(IteratorType::Latest),
        "trim-horizon" => options.set_iterator_type(IteratorType::TrimHorizon),
        _ => {
            let time = sampling.from.parse().map_err(|_| {
                Error::Local(format!(
                    "--from {:?} is neither latest, trim-horizon, nor a time such as 2026-11-22T12:00:00Z",
                    sampling.from
                ))
            })?;
            options.set_iterator_type(IteratorType::AtTimestamp);
            options.timestamp = Some(time);
        }
    }
    Ok(options)
}

fn decoding(envelope: Option<&String>) -> Result<Option<api::Decoding>, Error> {
    let parse = |envelope| manifest::parse(&serde_json::json!({ "envelope": envelope }).to_string(), DECODING);
    envelope.map(parse).transpose()
}

/// The stream to sample; `None` if none is named.
pub(crate) fn sampling(connection: &Connection, subject: &Subject) -> Result<Option<api::SampleRecordsRequest>, Error> {
    use sample_records_request::Subject as Of;
    let of = match (&subject.stream, &subject.pipe) {
        (None, None) => return Ok(None),
        (_, Some(pipe)) => Of::Pipe(connection.name("pipes", pipe)),
        (Some(stream), None) => {
            let (stream_name, stream_arn) = if stream.starts_with("arn:") {
                (String::new(), stream.clone())
            } else {
                (stream.clone(), String::new())
            };
            Of::Planned(api::PlannedSource {
                parent: connection.parent(),
                kinesis: Some(api::KinesisSource {
                    stream_name,
                    // That of an ARN is in it.
                    region: if stream_arn.is_empty() {
                        subject.aws.region.clone()
                    } else {
                        String::new()
                    },
                    stream_arn,
                    credential: credential(connection, &subject.aws.credential),
                    endpoint: subject.aws.kinesis_endpoint.clone(),
                    ..Default::default()
                }),
            })
        }
    };
    Ok(Some(api::SampleRecordsRequest {
        subject: Some(of),
        decoding: decoding(subject.envelope.as_ref())?,
        options: Some(options(&subject.sampling)?),
    }))
}

/// One record for each line that holds something.
fn records(file: &Path) -> Result<api::GivenRecords, Error> {
    let text = manifest::read(file)?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    Ok(api::GivenRecords {
        records: lines.map(str::to_owned).collect(),
    })
}

fn nothing_named() -> Error {
    Error::Local("name records: --stream with --region and --credential, --pipe, or --file".to_owned())
}

async fn sample(connection: &Connection, subject: &Subject) -> Result<(), Error> {
    let Some(request) = sampling(connection, subject)? else {
        return Err(Error::Local(
            "name a stream: --stream with --region and --credential, or --pipe".to_owned(),
        ));
    };
    let answer = client::discovery(connection)?
        .sample_records(request)
        .await
        .map_err(client::failed(connection))?
        .into_inner();
    if connection.output != Format::Table {
        return output::document(&manifest::to_json(&answer, SAMPLE)?, connection.output);
    }
    output::table(&SAMPLE_HEADER, answer.documents.iter().map(document).collect())?;
    shards(&answer.shards)?;
    let records = output::count(answer.record_count.into());
    output::line(&format!("\n{records} records"))?;
    if answer.omitted_document_count > 0 {
        let more = output::count(answer.omitted_document_count.into());
        output::line(&format!("{more} documents more are not shown"))?;
    }
    Ok(())
}

/// What was read of shards, if there was trouble with any.
fn shards(shards: &[api::ShardSample]) -> Result<(), Error> {
    if shards.iter().all(|shard| shard.reason.is_empty()) {
        return Ok(());
    }
    output::line("")?;
    let row = |shard: &api::ShardSample| {
        vec![
            shard.shard_id.clone(),
            shard.record_count.to_string(),
            output::duration(shard.lag.as_ref()),
            shard.message.clone(),
        ]
    };
    output::table(&SHARD_HEADER, shards.iter().map(row).collect())
}

fn document(document: &api::SampledDocument) -> Vec<String> {
    let payload = match &document.payload {
        Some(Payload::Text(text)) => text.clone(),
        Some(Payload::Binary(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        None => String::new(),
    };
    vec![
        document.shard_id.clone(),
        match document.sub_sequence_number {
            0 => document.sequence_number.clone(),
            sub => format!("{}/{sub}", document.sequence_number),
        },
        document.partition_key.clone(),
        document.arrival_time.as_ref().map(events::time).unwrap_or_default(),
        if document.error_type.is_empty() {
            output::one_line(&payload)
        } else {
            format!(
                "{} ({}: {})",
                output::one_line(&payload),
                document.error_type,
                document.error_message
            )
        },
    ]
}

async fn infer(connection: &Connection, subject: &Subject) -> Result<(), Error> {
    use infer_schema_request::Input;
    let (input, decoding) = match (&subject.file, sampling(connection, subject)?) {
        (Some(file), _) => (Input::Given(records(file)?), decoding(subject.envelope.as_ref())?),
        (None, Some(sample)) => (Input::Sample(sample), None),
        (None, None) => return Err(nothing_named()),
    };
    let request = api::InferSchemaRequest {
        parent: connection.parent(),
        input: Some(input),
        decoding,
    };
    let answer = client::discovery(connection)?
        .infer_schema(request)
        .await
        .map_err(client::failed(connection))?
        .into_inner();
    if connection.output != Format::Table {
        return output::document(&manifest::to_json(&answer, SCHEMA)?, connection.output);
    }
    let row = |column: &api::InferredColumn| {
        vec![
            column.name.clone(),
            column.r#type.clone(),
            format!("{:.0} %", column.null_ratio * 100.0),
            output::one_line(&column.examples.join(", ")),
            column.note.clone(),
        ]
    };
    output::table(&SCHEMA_HEADER, answer.columns.iter().map(row).collect())?;
    output::line(&format!(
        "\n{} documents; ORDER BY {}",
        output::count(answer.document_count),
        if answer.sorting_key.is_empty() {
            "tuple()".to_owned()
        } else {
            format!("({})", answer.sorting_key.join(", "))
        }
    ))?;
    refused(&answer.refused, answer.refused_count)
}

fn refused(refused: &[api::RefusedDocument], count: u64) -> Result<(), Error> {
    if count == 0 {
        return Ok(());
    }
    output::line(&format!("\n{} documents are refused:", output::count(count)))?;
    let row = |refused: &api::RefusedDocument| {
        vec![
            format!("{} {}", refused.shard_id, refused.sequence_number)
                .trim()
                .to_owned(),
            refused.field_path.clone(),
            refused.error_type.clone(),
            output::one_line(&refused.error_message),
        ]
    };
    output::table(&REFUSED_HEADER, refused.iter().map(row).collect())
}

/// The server that is named.
pub(crate) fn server(connection: &Connection, server: &Server) -> Option<api::ClickHouseServer> {
    Some(api::ClickHouseServer {
        endpoint: server.server.clone(),
        credential: credential(connection, &server.clickhouse_credential),
    })
}

async fn list_databases(connection: &Connection, given: &Server, limit: usize) -> Result<(), Error> {
    let mut client = client::discovery(connection)?;
    let all = list::all(limit, async |page_size, page_token| {
        let request = api::ListDatabasesRequest {
            parent: connection.parent(),
            server: server(connection, given),
            page_size,
            page_token,
        };
        let page = client
            .list_databases(request)
            .await
            .map_err(client::failed(connection))?
            .into_inner();
        Ok((page.databases, page.next_page_token))
    })
    .await?;
    list::show(connection, &all, DATABASE, &DATABASE_HEADER, |database| {
        vec![
            database.database.clone(),
            database.engine.clone(),
            database.comment.clone(),
        ]
    })
}

async fn list_tables(connection: &Connection, given: &Server, database: &str, limit: usize) -> Result<(), Error> {
    let mut client = client::discovery(connection)?;
    let all = list::all(limit, async |page_size, page_token| {
        let request = api::ListTablesRequest {
            parent: connection.parent(),
            server: server(connection, given),
            database: database.to_owned(),
            page_size,
            page_token,
        };
        let page = client
            .list_tables(request)
            .await
            .map_err(client::failed(connection))?
            .into_inner();
        Ok((page.tables, page.next_page_token))
    })
    .await?;
    list::show(connection, &all, TABLE, &TABLE_HEADER, |table| {
        vec![
            table.table.clone(),
            table.engine.clone(),
            table.total_rows.map(output::count).unwrap_or_default(),
            table.comment.clone(),
        ]
    })
}

async fn describe(
    connection: &Connection,
    given: &Server,
    database: String,
    table: String,
    subject: &Subject,
) -> Result<(), Error> {
    use describe_table_request::Input;
    let (input, decoding) = match (&subject.file, sampling(connection, subject)?) {
        (Some(file), _) => (Some(Input::Given(records(file)?)), decoding(subject.envelope.as_ref())?),
        (None, sample) => (sample.map(Input::Sample), None),
    };
    let request = api::DescribeTableRequest {
        parent: connection.parent(),
        server: server(connection, given),
        database,
        table,
        input,
        decoding,
    };
    let answer = client::discovery(connection)?
        .describe_table(request)
        .await
        .map_err(client::failed(connection))?
        .into_inner();
    if connection.output != Format::Table {
        return output::document(&manifest::to_json(&answer, DESCRIPTION)?, connection.output);
    }
    let row = |column: &api::TableColumn| {
        let from = answer
            .field_mappings
            .iter()
            .find(|mapping| mapping.destination_field == column.name);
        vec![
            column.name.clone(),
            column.r#type.clone(),
            format!("{} {}", column.default_kind, column.default_expression)
                .trim()
                .to_owned(),
            from.map(|mapping| mapping.source_field.clone()).unwrap_or_default(),
            column.message.clone(),
        ]
    };
    output::table(&COLUMN_HEADER, answer.columns.iter().map(row).collect())?;
    for (what, names) in [
        ("no column is for", &answer.unmapped_fields),
        ("nothing fills", &answer.unfilled_columns),
    ] {
        if !names.is_empty() {
            output::line(&format!("\n{what}: {}", names.join(", ")))?;
        }
    }
    Ok(())
}

/// Shows the rows that a pipe would make.
pub(crate) async fn preview(connection: &Connection, given: &Preview) -> Result<(), Error> {
    use preview_rows_request::{Input, Subject as Of};
    let subject = match (&given.pipe, &given.file) {
        (Some(pipe), _) => Some(Of::Pipe(connection.name("pipes", pipe))),
        (None, Some(file)) => Some(Of::Planned(api::PlannedPipe {
            parent: connection.parent(),
            pipe: Some(api::Pipe {
                name: String::new(),
                ..manifest::parse(&manifest::read(file)?, PIPE)?
            }),
        })),
        (None, None) => None,
    };
    let input = match &given.records {
        Some(file) => Input::Given(records(file)?),
        None => Input::Sample(options(&given.sampling)?),
    };
    let answer = client::discovery(connection)?
        .preview_rows(api::PreviewRowsRequest {
            subject,
            input: Some(input),
        })
        .await
        .map_err(client::failed(connection))?
        .into_inner();
    if connection.output != Format::Table {
        return output::document(&manifest::to_json(&answer, PREVIEW)?, connection.output);
    }
    for row in &answer.rows {
        output::line(&crate::exit::printable(&row.json))?;
    }
    shards(&answer.shards)?;
    output::line(&format!(
        "\n{} records become {} rows; nothing was inserted",
        output::count(answer.record_count.into()),
        output::count(answer.row_count)
    ))?;
    refused(&answer.refused, answer.refused_count)
}

/// Rows of a pipe's table.
pub(crate) async fn rows(connection: &Connection, pipe: &str, limit: u32) -> Result<(), Error> {
    let request = api::SampleRowsRequest {
        pipe: connection.name("pipes", pipe),
        limit,
    };
    let answer = client::discovery(connection)?
        .sample_rows(request)
        .await
        .map_err(client::failed(connection))?
        .into_inner();
    if connection.output != Format::Table {
        return output::document(&manifest::to_json(&answer, ROWS)?, connection.output);
    }
    for row in &answer.rows {
        output::line(&crate::exit::printable(row))?;
    }
    match answer.omitted_row_count {
        0 => {}
        omitted => output::note(&format!("{omitted} rows of more than 1 MiB are left out")),
    }
    Ok(())
}

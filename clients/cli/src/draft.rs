//! `millrace pipe draft`: the file of a pipe, with the columns that fit the records of its stream.

use millrace_common::reason;
use millrace_proto::api::v1::{
    self as api, IteratorType, describe_table_request, infer_schema_request, sample_records_request,
};
use serde::Serialize;

use crate::{
    args::{
        Connection,
        discovery::{Draft, Start},
    },
    client, discovery,
    exit::Error,
    output,
};

/// A pipe as a file says it, in the order in which people read it.
#[derive(Debug, Serialize)]
struct File {
    kind: &'static str,
    name: String,
    source: Source,
    destination: Destination,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    field_mappings: Vec<Mapping>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decoding: Option<Decoding>,
}

#[derive(Debug, Serialize)]
struct Source {
    kinesis: Kinesis,
}

#[derive(Debug, Serialize)]
struct Kinesis {
    #[serde(skip_serializing_if = "String::is_empty")]
    stream_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    stream_arn: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    region: String,
    iterator_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<String>,
    credential: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    endpoint: String,
}

#[derive(Debug, Serialize)]
struct Destination {
    endpoint: String,
    credential: String,
    database: String,
    table: String,
    managed_table: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    table_definition: Option<TableDefinition>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    columns: Vec<Column>,
}

#[derive(Debug, Serialize)]
struct TableDefinition {
    sorting_key: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Column {
    name: String,
    r#type: String,
}

#[derive(Debug, Serialize)]
struct Mapping {
    source_field: String,
    destination_field: String,
}

#[derive(Debug, Serialize)]
struct Decoding {
    envelope: String,
}

/// A draft, and what to know of it.
pub(crate) struct Drafted {
    /// The file, as YAML.
    pub(crate) yaml: String,
    /// One line each.
    pub(crate) notes: Vec<String>,
}

/// Prints the file of a pipe. What to know of it goes to standard error.
pub(crate) async fn run(connection: &Connection, given: &Draft) -> Result<(), Error> {
    let Drafted { yaml, notes } = make(connection, given).await?;
    for note in notes {
        output::note(&note);
    }
    output::line(yaml.trim_end())
}

/// Looks at the stream and at the table, and writes a pipe for them.
pub(crate) async fn make(connection: &Connection, given: &Draft) -> Result<Drafted, Error> {
    let sample = discovery::sampling(connection, &given.subject())?
        .ok_or_else(|| Error::Local("--stream: name the stream".to_owned()))?;
    let mut notes = Vec::new();
    let table = match &given.table {
        Some(table) => table.clone(),
        None => short(&given.pipe).replace('-', "_"),
    };
    let credential = discovery::credential(connection, &given.server.clickhouse_credential);
    let mut destination = Destination {
        endpoint: given.server.server.clone(),
        credential: credential.clone(),
        database: given.database.clone(),
        table: table.clone(),
        managed_table: true,
        table_definition: None,
        columns: Vec::new(),
    };
    let field_mappings = match existing(connection, given, &table, sample.clone()).await? {
        Some(description) => {
            destination.managed_table = false;
            notes.push(format!("{}.{table} exists: the pipe is to fill it", given.database));
            if !description.unmapped_fields.is_empty() {
                notes.push(format!("no column is for {}", description.unmapped_fields.join(", ")));
            }
            if !description.unfilled_columns.is_empty() {
                notes.push(format!("nothing fills {}", description.unfilled_columns.join(", ")));
            }
            if description.field_mappings.is_empty() {
                return Err(Error::Local(format!(
                    "nothing in the records of the stream fits a column of {}.{table}: choose another table with --table",
                    given.database
                )));
            }
            let mapping = |mapping: api::FieldMapping| Mapping {
                source_field: mapping.source_field,
                destination_field: mapping.destination_field,
            };
            description.field_mappings.into_iter().map(mapping).collect()
        }
        None => {
            let inferred = infer(connection, sample.clone()).await?;
            let mappings = columns(&inferred, &mut destination, &mut notes)?;
            notes.push(format!(
                "columns of {} documents",
                output::count(inferred.document_count)
            ));
            mappings
        }
    };
    let file = File {
        kind: "Pipe",
        name: short(&given.pipe),
        source: source(&sample, &given.start)?,
        destination,
        field_mappings,
        decoding: given.envelope.as_ref().map(|envelope| Decoding {
            envelope: envelope.to_ascii_uppercase(),
        }),
    };
    let yaml = serde_yaml_ng::to_string(&file).map_err(|error| Error::Local(error.to_string()))?;
    Ok(Drafted { yaml, notes })
}

/// The table, if there is one, with the mapping that is proposed for it.
async fn existing(
    connection: &Connection,
    given: &Draft,
    table: &str,
    sample: api::SampleRecordsRequest,
) -> Result<Option<api::DescribeTableResponse>, Error> {
    let request = api::DescribeTableRequest {
        parent: connection.parent(),
        server: discovery::server(connection, &given.server),
        database: given.database.clone(),
        table: table.to_owned(),
        input: Some(describe_table_request::Input::Sample(sample)),
        decoding: None,
    };
    match client::discovery(connection)?.describe_table(request).await {
        Ok(response) => Ok(Some(response.into_inner())),
        Err(status)
            if millrace_common::error::reason(&status).as_deref() == Some(reason::DESTINATION_TABLE_NOT_FOUND) =>
        {
            Ok(None)
        }
        Err(status) => Err(client::failed(connection)(status)),
    }
}

async fn infer(connection: &Connection, sample: api::SampleRecordsRequest) -> Result<api::InferSchemaResponse, Error> {
    let request = api::InferSchemaRequest {
        parent: connection.parent(),
        input: Some(infer_schema_request::Input::Sample(sample)),
        decoding: None,
    };
    let response = client::discovery(connection)?.infer_schema(request).await;
    Ok(response.map_err(client::failed(connection))?.into_inner())
}

/// Fills in the columns that were inferred. Mappings are needed only where a column does not have the name of its key.
fn columns(
    inferred: &api::InferSchemaResponse,
    destination: &mut Destination,
    notes: &mut Vec<String>,
) -> Result<Vec<Mapping>, Error> {
    if inferred.columns.is_empty() {
        return Err(Error::Local(
            "the stream has no documents to take columns from: put some into it, or look further back with \
             `--from trim-horizon`"
                .to_owned(),
        ));
    }
    let mut mappings = Vec::new();
    for column in &inferred.columns {
        destination.columns.push(Column {
            name: column.name.clone(),
            r#type: column.r#type.clone(),
        });
        mappings.push(Mapping {
            source_field: column.source_field.clone(),
            destination_field: column.name.clone(),
        });
        if !column.note.is_empty() {
            notes.push(format!("{}: {}", column.name, column.note));
        }
    }
    if inferred.refused_count > 0 {
        notes.push(format!(
            "{} documents could not be read, and would be rejected: `millrace schema infer` says why",
            output::count(inferred.refused_count)
        ));
    }
    if !inferred.sorting_key.is_empty() {
        destination.table_definition = Some(TableDefinition {
            sorting_key: inferred.sorting_key.clone(),
        });
    }
    if mappings
        .iter()
        .all(|mapping| mapping.source_field == mapping.destination_field)
    {
        mappings.clear();
    }
    Ok(mappings)
}

fn source(sample: &api::SampleRecordsRequest, start: &Start) -> Result<Source, Error> {
    let Some(sample_records_request::Subject::Planned(api::PlannedSource {
        kinesis: Some(kinesis), ..
    })) = &sample.subject
    else {
        return Err(Error::Local("--stream: name the stream".to_owned()));
    };
    let (iterator_type, timestamp) = match start {
        Start::TrimHorizon => (IteratorType::TrimHorizon, None),
        Start::Latest => (IteratorType::Latest, None),
        Start::At(time) => (IteratorType::AtTimestamp, Some(time.clone())),
    };
    let iterator_type = iterator_type.as_str_name();
    Ok(Source {
        kinesis: Kinesis {
            stream_name: kinesis.stream_name.clone(),
            stream_arn: kinesis.stream_arn.clone(),
            region: kinesis.region.clone(),
            iterator_type: iterator_type.strip_prefix("ITERATOR_TYPE_").unwrap_or(iterator_type),
            timestamp,
            credential: kinesis.credential.clone(),
            endpoint: kinesis.endpoint.clone(),
        },
    })
}

fn short(name: &str) -> String {
    output::short(name)
}

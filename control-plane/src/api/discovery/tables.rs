//! The ClickHouse side: databases, tables, columns, and what may fill them.

use millrace_common::{
    error::{ApiError, FieldViolation},
    ids::ProjectName,
};
use millrace_proto::api::v1::{
    self as proto, DescribeTableRequest, DescribeTableResponse, ListDatabasesRequest, ListDatabasesResponse,
    ListTablesRequest, ListTablesResponse, describe_table_request::Input as Given,
};
use tonic::Code;

use super::{blocking, input, request};
use crate::{
    api::{
        Api,
        convert::{self, Violations, names},
        errors::{CREDENTIAL_NOT_FOUND, of_destination},
        page, parent,
    },
    destination::{
        self, Access,
        browse::{Column, Described},
        propose::{self, Field, Proposal},
    },
    sample,
    store::CredentialSecret,
};

/// What an endpoint of ClickHouse looks like.
const EXAMPLE_ENDPOINT: &str = "https://clickhouse.example.com:8443";

/// Fields of a pipe as these requests name them.
fn of_browsing(error: &destination::Error) -> ApiError {
    let api = of_destination(error);
    let named = |violation: FieldViolation| FieldViolation {
        field: match violation.field.as_str() {
            "pipe.destination.endpoint" => "server.endpoint".to_owned(),
            "pipe.destination.credential" => "server.credential".to_owned(),
            other => other.rsplit('.').next().unwrap_or(other).to_owned(),
        },
        ..violation
    };
    ApiError {
        fields: api.fields.into_iter().map(named).collect(),
        ..api
    }
}

/// `default` if none is given.
fn database_or_default(database: String) -> Result<String, ApiError> {
    if database.is_empty() {
        return Ok("default".to_owned());
    }
    match names::identifier(&database) {
        Ok(()) => Ok(database),
        Err(what) => Err(ApiError::invalid_field("database", what)),
    }
}

impl Api {
    pub(super) async fn databases(&self, request: ListDatabasesRequest) -> Result<ListDatabasesResponse, ApiError> {
        let project: ProjectName = parent(&request.parent)?;
        let access = self.server(&project, request.server.as_ref()).await?;
        let listing = format!("databases/{}/{}", access.endpoint, access.username);
        let page = page::parse::<String>(&self.sealer, &listing, &project, request.page_size, &request.page_token)?;
        let _permit = self.preflights.acquire().await;
        let after = page.after.unwrap_or_default();
        let mut found = self
            .clickhouse
            .databases(&access, &after, page.size + 1)
            .await
            .map_err(|error| of_browsing(&error))?;
        let more = found.len() > page.size as usize;
        found.truncate(page.size as usize);
        let next_page_token = match found.last() {
            Some(last) if more => page::token(&self.sealer, &listing, &project, &last.name)?,
            _ => String::new(),
        };
        let databases = found.into_iter().map(|database| proto::DatabaseSummary {
            database: database.name,
            engine: database.engine,
            comment: database.comment,
        });
        Ok(ListDatabasesResponse {
            databases: databases.collect(),
            next_page_token,
        })
    }

    pub(super) async fn tables(&self, request: ListTablesRequest) -> Result<ListTablesResponse, ApiError> {
        let project: ProjectName = parent(&request.parent)?;
        let access = self.server(&project, request.server.as_ref()).await?;
        let database = database_or_default(request.database)?;
        let listing = format!("tables/{}/{}/{database}", access.endpoint, access.username);
        let page = page::parse::<String>(&self.sealer, &listing, &project, request.page_size, &request.page_token)?;
        let _permit = self.preflights.acquire().await;
        let after = page.after.unwrap_or_default();
        let mut found = self
            .clickhouse
            .tables(&access, &database, &after, page.size + 1)
            .await
            .map_err(|error| of_browsing(&error))?;
        let more = found.len() > page.size as usize;
        found.truncate(page.size as usize);
        let next_page_token = match found.last() {
            Some(last) if more => page::token(&self.sealer, &listing, &project, &last.name)?,
            _ => String::new(),
        };
        let tables = found.into_iter().map(|table| proto::TableSummary {
            table: table.name,
            engine: table.engine,
            total_rows: table.rows.and_then(|rows| rows.parse().ok()),
            total_bytes: table.bytes.and_then(|bytes| bytes.parse().ok()),
            comment: table.comment,
        });
        Ok(ListTablesResponse {
            tables: tables.collect(),
            next_page_token,
        })
    }

    pub(super) async fn described(&self, request: DescribeTableRequest) -> Result<DescribeTableResponse, ApiError> {
        let project: ProjectName = parent(&request.parent)?;
        let database = database_or_default(request.database)?;
        if let Err(what) = names::identifier(&request.table) {
            return Err(ApiError::invalid_field("table", what));
        }
        let wanted = match (request.input, request.decoding) {
            (Some(Given::Given(given)), decoding) => Some(input::given(given, decoding.as_ref(), "given")?),
            (Some(Given::Sample(_)) | None, Some(_)) => return Err(request::decoding_of_given()),
            (Some(Given::Sample(sample)), None) => Some(self.sampling_of(&project, sample).await?),
            (None, None) => None,
        };
        let access = self.server(&project, request.server.as_ref()).await?;
        let described = {
            let _permit = self.preflights.acquire().await;
            self.clickhouse
                .describe(&access, &database, &request.table)
                .await
                .map_err(|error| of_browsing(&error))?
        };
        let proposal = match wanted {
            Some(wanted) => Some(self.proposed(wanted, &described).await?),
            None => None,
        };
        Ok(answer(described, proposal))
    }

    async fn proposed(&self, wanted: request::Wanted, table: &Described) -> Result<Proposal, ApiError> {
        let _permit = self.samples.acquire().await;
        let (_, opened) = self.opened(wanted).await?;
        let columns = blocking(move || sample::infer(&opened).0.columns()).await?;
        let fields: Vec<Field> = columns
            .into_iter()
            .map(|column| Field {
                key: column.name,
                source_field: column.source_field,
                data_type: column.data_type,
            })
            .collect();
        let fillable = table.columns.iter().filter(|column| column.insertable().is_ok());
        Ok(propose::propose(fillable.map(|column| column.name.as_str()), &fields))
    }

    /// A server that a request names, as its user.
    async fn server(
        &self,
        project: &ProjectName,
        server: Option<&proto::ClickHouseServer>,
    ) -> Result<Access, ApiError> {
        let Some(server) = server else {
            return Err(ApiError::invalid_field(
                "server",
                "is required: set endpoint and credential",
            ));
        };
        let mut violations = Violations::new();
        let field = "server.credential";
        let credential = convert::planned_credential(&server.credential, field, project, &mut violations);
        let endpoint = match self.endpoints.parse(&server.endpoint, EXAMPLE_ENDPOINT) {
            Ok(endpoint) => Some(endpoint),
            Err(error) => {
                violations.add("server.endpoint", error.to_string());
                None
            }
        };
        violations.finish()?;
        let (Some(credential), Some(endpoint)) = (credential, endpoint) else {
            // Whatever is missing was reported above.
            return Err(ApiError::invalid_field("server", "is required"));
        };
        if let Err(error) = self.endpoints.check_resolved(&endpoint).await {
            return Err(ApiError::invalid_field("server.endpoint", error.to_string()));
        }
        let missing =
            |what: String| ApiError::new(Code::FailedPrecondition, CREDENTIAL_NOT_FOUND, what).with_field(field);
        match self.secret(&credential).await? {
            Some(CredentialSecret::ClickHouse { username, password }) => Ok(Access {
                endpoint,
                username,
                password,
            }),
            Some(CredentialSecret::Aws(_)) => Err(missing(format!(
                "{credential} is an AWS credential: a ClickHouse user is needed here"
            ))),
            None => Err(missing(format!("there is no {credential}: create it first"))),
        }
    }
}

fn answer(table: Described, proposal: Option<Proposal>) -> DescribeTableResponse {
    let has_default: Vec<String> = table
        .columns
        .iter()
        .filter(|column| !column.default_kind.is_empty())
        .map(|column| column.name.clone())
        .collect();
    let proposal = proposal.unwrap_or_default();
    let mappings = proposal.mappings.into_iter().map(|mapping| proto::FieldMapping {
        source_field: mapping.source_field,
        destination_field: mapping.destination_field,
        ..Default::default()
    });
    DescribeTableResponse {
        engine: table.engine,
        sorting_key: table.sorting_key,
        partition_key: table.partition_key,
        columns: table.columns.into_iter().map(column).collect(),
        field_mappings: mappings.collect(),
        unmapped_fields: proposal.unmapped,
        unfilled_columns: proposal
            .unfilled
            .into_iter()
            .filter(|column| !has_default.contains(column))
            .collect(),
    }
}

fn column(column: Column) -> proto::TableColumn {
    let insertable = column.insertable();
    proto::TableColumn {
        name: column.name,
        r#type: column.data_type,
        default_kind: column.default_kind,
        default_expression: column.default_expression,
        comment: column.comment,
        insertable: insertable.is_ok(),
        message: insertable.err().unwrap_or_default(),
    }
}

//! The discovery service: what there is to make a pipe of. Requests are read in `discovery/request.rs`, answers written in
//! `discovery/output.rs`, both within bounds.
//!
//! Invariants: nothing here writes, neither into the store nor into AWS or ClickHouse; a record that is seen here is not kept.

mod input;
mod output;
mod preview;
mod request;
mod rows;
mod tables;

use millrace_common::{
    aws::{self, Access},
    error::ApiError,
    ids::{CredentialName, ProjectName},
    reason,
};
use millrace_proto::api::v1::{
    DescribeTableRequest, DescribeTableResponse, InferSchemaRequest, InferSchemaResponse, ListDatabasesRequest,
    ListDatabasesResponse, ListStreamsRequest, ListStreamsResponse, ListTablesRequest, ListTablesResponse,
    PreviewRowsRequest, PreviewRowsResponse, SampleRecordsRequest, SampleRecordsResponse, SampleRowsRequest,
    SampleRowsResponse, discovery_service_server::DiscoveryService, infer_schema_request,
};
use tonic::{Code, Request, Response, Status};

use super::{
    Api,
    convert::{self, Violations, names},
    errors::{CREDENTIAL_NOT_FOUND, of_discovery},
    page, parent,
};
use crate::{
    discovery::{self, streams},
    sample::Fault,
    store::CredentialSecret,
};
use input::Input;

/// Attempts per call.
const ATTEMPTS: u32 = 2;
/// What CloudTrail shows for a look that is of no pipe.
const SESSION: &str = "discovery";
/// What an endpoint of Kinesis looks like.
const EXAMPLE_ENDPOINT: &str = "https://vpce-0a1b2c.kinesis.eu-central-1.vpce.amazonaws.com";

#[tonic::async_trait]
impl DiscoveryService for Api {
    async fn list_streams(
        &self,
        request: Request<ListStreamsRequest>,
    ) -> Result<Response<ListStreamsResponse>, Status> {
        Ok(Response::new(self.streams(request.into_inner()).await?))
    }

    async fn sample_records(
        &self,
        request: Request<SampleRecordsRequest>,
    ) -> Result<Response<SampleRecordsResponse>, Status> {
        let request = self.sampling(request.into_inner()).await?;
        let _permit = self.samples.acquire().await;
        let (input, opened) = self.opened(request).await?;
        Ok(Response::new(output::sample(input, opened)))
    }

    async fn infer_schema(
        &self,
        request: Request<InferSchemaRequest>,
    ) -> Result<Response<InferSchemaResponse>, Status> {
        use infer_schema_request::Input as Given;
        let request = request.into_inner();
        let project: ProjectName = parent(&request.parent)?;
        let wanted = match (request.input, request.decoding) {
            (Some(Given::Given(given)), decoding) => input::given(given, decoding.as_ref(), "given")?,
            (Some(Given::Sample(_)), Some(_)) => return Err(request::decoding_of_given().into()),
            (Some(Given::Sample(sample)), None) => self.sampling_of(&project, sample).await?,
            (None, _) => return Err(ApiError::invalid_field("input", "is required: set given or sample").into()),
        };
        let _permit = self.samples.acquire().await;
        let (input, opened) = self.opened(wanted).await?;
        let inferred = blocking(move || {
            let (schema, refused) = crate::sample::infer(&opened);
            output::schema(&schema, &refused, &input)
        });
        Ok(Response::new(inferred.await?))
    }

    async fn list_databases(
        &self,
        request: Request<ListDatabasesRequest>,
    ) -> Result<Response<ListDatabasesResponse>, Status> {
        Ok(Response::new(self.databases(request.into_inner()).await?))
    }

    async fn list_tables(&self, request: Request<ListTablesRequest>) -> Result<Response<ListTablesResponse>, Status> {
        Ok(Response::new(self.tables(request.into_inner()).await?))
    }

    async fn describe_table(
        &self,
        request: Request<DescribeTableRequest>,
    ) -> Result<Response<DescribeTableResponse>, Status> {
        Ok(Response::new(self.described(request.into_inner()).await?))
    }

    async fn preview_rows(
        &self,
        request: Request<PreviewRowsRequest>,
    ) -> Result<Response<PreviewRowsResponse>, Status> {
        Ok(Response::new(self.previewed(request.into_inner()).await?))
    }

    async fn sample_rows(&self, request: Request<SampleRowsRequest>) -> Result<Response<SampleRowsResponse>, Status> {
        Ok(Response::new(self.rows_of(request.into_inner()).await?))
    }
}

/// Work that may take a while without waiting for anything.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ApiError::internal(&error))
}

/// Why there can be no such pipe.
fn of_fault(fault: &Fault) -> ApiError {
    ApiError::new(Code::FailedPrecondition, fault.reason, fault.message.clone())
}

impl Api {
    async fn streams(&self, request: ListStreamsRequest) -> Result<ListStreamsResponse, ApiError> {
        let project: ProjectName = parent(&request.parent)?;
        let mut violations = Violations::new();
        let credential = convert::planned_credential(&request.credential, "credential", &project, &mut violations);
        if let Err(what) = names::region(&request.region) {
            violations.add("region", format!("{what}; give one such as eu-central-1"));
        }
        let endpoint = match request.endpoint.as_str() {
            "" => None,
            text => match self.endpoints.parse(text, EXAMPLE_ENDPOINT) {
                Ok(endpoint) => Some(endpoint),
                Err(error) => {
                    violations.add("endpoint", error.to_string());
                    None
                }
            },
        };
        violations.finish()?;
        if let Some(endpoint) = &endpoint
            && let Err(error) = self.endpoints.check_resolved(endpoint).await
        {
            return Err(ApiError::invalid_field("endpoint", error.to_string()));
        }
        let listing = format!("{}/{}", request.region, request.endpoint);
        let page = page::parse::<String>(
            &self.sealer,
            &format!("streams/{listing}"),
            &request.credential,
            request.page_size,
            &request.page_token,
        )?;
        let Some(credential) = credential else {
            // Reported above.
            return Err(ApiError::invalid_field("credential", "is required"));
        };
        let access = Access::new(
            request.region,
            endpoint,
            self.aws_credential(&credential, "credential").await?,
            ATTEMPTS,
        );
        let access = Access {
            settings: self.aws.settings.clone(),
            identities: Some(self.aws.identities.clone()),
            ..access
        };
        let _permit = self.preflights.acquire().await;
        let listed = Box::pin(streams::list(
            &access,
            page.after.as_deref(),
            page.size,
            request.count_shards,
        ));
        let listed = listed.await.map_err(|error| {
            let field = error.field.rsplit('.').next().unwrap_or(error.field);
            ApiError {
                fields: Vec::new(),
                ..of_discovery(&error)
            }
            .with_field(match field {
                "stream_name" => "credential",
                field => field,
            })
        })?;
        let next_page_token = match listed.streams.last() {
            Some(last) if listed.more => page::token(
                &self.sealer,
                &format!("streams/{listing}"),
                &request.credential,
                &last.name,
            )?,
            _ => String::new(),
        };
        Ok(ListStreamsResponse {
            streams: listed.streams.into_iter().map(output::stream).collect(),
            next_page_token,
        })
    }

    /// The secret of an AWS credential that a request names in `field`.
    async fn aws_credential(&self, name: &CredentialName, field: &'static str) -> Result<aws::Credential, ApiError> {
        let missing =
            |what: String| ApiError::new(Code::FailedPrecondition, CREDENTIAL_NOT_FOUND, what).with_field(field);
        match self.secret(name).await? {
            Some(CredentialSecret::Aws(credential)) => Ok(credential.named(&aws::session_name(SESSION))),
            Some(CredentialSecret::ClickHouse { .. }) => Err(missing(format!(
                "{name} is a ClickHouse user: an AWS credential is needed here"
            ))),
            None => Err(missing(format!("there is no {name}: create it first"))),
        }
    }

    /// Reads what is wanted, and takes its records apart.
    async fn opened(&self, wanted: request::Wanted) -> Result<(Input, crate::sample::Opened), ApiError> {
        let decoding = wanted.decoding.clone();
        let input = self.read(wanted).await?;
        let work = blocking(move || {
            let opened = crate::sample::open(&input.records, &input.stream, &decoding);
            (input, opened)
        });
        let (input, opened) = work.await?;
        Ok((input, opened.map_err(|fault| of_fault(&fault))?))
    }

    /// Reads records, if they are not given.
    async fn read(&self, wanted: request::Wanted) -> Result<Input, ApiError> {
        let Some(source) = wanted.source else {
            return Ok(wanted.given);
        };
        let reading = discovery::sample::sample(&source.access, &source.stream, &source.request, self.clock.now());
        let sample = Box::pin(reading).await.map_err(|error| {
            let about_options = error.field.starts_with("options.");
            match of_discovery(&error) {
                // What the request says, and not what the stream is.
                error if about_options && error.reason == reason::SOURCE_STREAM_NOT_FOUND => ApiError {
                    code: Code::InvalidArgument,
                    ..error
                },
                error => error,
            }
        })?;
        Ok(Input::of_sample(sample))
    }
}

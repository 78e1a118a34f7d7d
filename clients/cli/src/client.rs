//! Clients of the control plane's API.

use std::time::Duration;

use millrace_common::grpc::Link;
use millrace_proto::api::v1::{
    access_service_client::AccessServiceClient, credential_service_client::CredentialServiceClient,
    discovery_service_client::DiscoveryServiceClient, pipe_service_client::PipeServiceClient,
    rejected_record_service_client::RejectedRecordServiceClient, token_service_client::TokenServiceClient,
};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::{args::Connection, exit::Error};

fn channel(connection: &Connection) -> Result<Link, Error> {
    let access = connection.access.access().map_err(Error::Local)?;
    access.link(&connection.endpoint).map_err(|error| {
        Error::Local(format!(
            "--endpoint {:?} is not a URL such as http://127.0.0.1:7400: {error}",
            connection.endpoint
        ))
    })
}

/// Client of the pipe service.
pub(crate) fn pipes(connection: &Connection) -> Result<PipeServiceClient<Link>, Error> {
    channel(connection).map(PipeServiceClient::new)
}

/// Client of the access service.
pub(crate) fn access(connection: &Connection) -> Result<AccessServiceClient<Link>, Error> {
    channel(connection).map(AccessServiceClient::new)
}

/// Client of the discovery service.
pub(crate) fn discovery(connection: &Connection) -> Result<DiscoveryServiceClient<Link>, Error> {
    channel(connection).map(DiscoveryServiceClient::new)
}

/// Client of the token service.
pub(crate) fn tokens(connection: &Connection) -> Result<TokenServiceClient<Link>, Error> {
    channel(connection).map(TokenServiceClient::new)
}

/// Client of the service of rejected records.
pub(crate) fn rejected_records(connection: &Connection) -> Result<RejectedRecordServiceClient<Link>, Error> {
    channel(connection).map(RejectedRecordServiceClient::new)
}

/// Client of the credential service.
pub(crate) fn credentials(connection: &Connection) -> Result<CredentialServiceClient<Link>, Error> {
    channel(connection).map(CredentialServiceClient::new)
}

/// How long to wait before a request is sent again, each time.
const WAITS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];

/// An identity for a request: it is carried out once, however often it is sent.
pub(crate) fn request_id() -> String {
    Uuid::new_v4().to_string()
}

/// Sends a request that carries an identity, and again if the control plane could not be reached or its answer was lost.
pub(crate) async fn insist<T>(mut send: impl AsyncFnMut() -> Result<tonic::Response<T>, Status>) -> Result<T, Status> {
    for wait in WAITS {
        match send().await {
            Err(status) if status.code() == Code::Unavailable => tokio::time::sleep(wait).await,
            answer => return answer.map(tonic::Response::into_inner),
        }
    }
    send().await.map(tonic::Response::into_inner)
}

/// Turns a status of a call into this program's error.
pub(crate) fn failed(connection: &Connection) -> impl Fn(Status) -> Error + '_ {
    |status| Error::from_status(&connection.endpoint, status)
}

//! The credential service. Secrets come in here and go straight to the store, which seals them.

use millrace_common::{
    error::ApiError,
    ids::{CredentialName, CredentialUid, Label},
};
use millrace_proto::api::v1::{
    CreateCredentialRequest, CreateCredentialResponse, DeleteCredentialRequest, DeleteCredentialResponse,
    GetCredentialRequest, GetCredentialResponse, ListCredentialsRequest, ListCredentialsResponse,
    credential_service_server::CredentialService,
};
use tonic::{Request, Response, Status};

use super::{
    Api,
    convert::{self, Violations, output},
    errors::{credential_not_found, of_store},
    name, page, parent,
};
use crate::store::{NewCredential, StoredCredential};

/// What page tokens of this listing belong to.
const LISTING: &str = "credentials";

#[tonic::async_trait]
impl CredentialService for Api {
    async fn create_credential(
        &self,
        request: Request<CreateCredentialRequest>,
    ) -> Result<Response<CreateCredentialResponse>, Status> {
        let request = request.into_inner();
        let answer = |stored: &StoredCredential| CreateCredentialResponse {
            credential: Some(output::credential(stored)),
        };
        let name = format!("{}/credentials/{}", request.parent, request.credential_id);
        let run = async |api: Api| Ok(answer(&api.store_credential(&request).await?));
        let again = async |api: Api| Ok(answer(&api.credential(&name).await?));
        let answer = self
            .once("CreateCredential", &request.request_id, &request, run, again)
            .await?;
        Ok(Response::new(answer))
    }

    async fn get_credential(
        &self,
        request: Request<GetCredentialRequest>,
    ) -> Result<Response<GetCredentialResponse>, Status> {
        let stored = self.credential(&request.get_ref().name).await?;
        Ok(Response::new(GetCredentialResponse {
            credential: Some(output::credential(&stored)),
        }))
    }

    async fn list_credentials(
        &self,
        request: Request<ListCredentialsRequest>,
    ) -> Result<Response<ListCredentialsResponse>, Status> {
        let request = request.into_inner();
        let parent = parent(&request.parent)?;
        let page = page::parse(&self.sealer, LISTING, &parent, request.page_size, &request.page_token)?;
        let mut credentials = self
            .store
            .list_credentials(&parent, page.after.as_ref(), page.size + 1)
            .await
            .map_err(|error| of_store(&error))?;
        let more = credentials.len() > page.size as usize;
        credentials.truncate(page.size as usize);
        let next_page_token = match credentials.last() {
            Some(last) if more => page::token(&self.sealer, LISTING, &parent, &last.name.id)?,
            _ => String::new(),
        };
        let credentials = credentials.iter().map(output::credential).collect();
        Ok(Response::new(ListCredentialsResponse {
            credentials,
            next_page_token,
        }))
    }

    async fn delete_credential(
        &self,
        request: Request<DeleteCredentialRequest>,
    ) -> Result<Response<DeleteCredentialResponse>, Status> {
        let request = request.into_inner();
        let run = async |api: Api| api.remove_credential(&request).await;
        let again = async |_: Api| Ok(DeleteCredentialResponse {});
        let answer = self
            .once("DeleteCredential", &request.request_id, &request, run, again)
            .await?;
        Ok(Response::new(answer))
    }
}

impl Api {
    async fn credential(&self, text: &str) -> Result<StoredCredential, ApiError> {
        let name: CredentialName = name(text, "name")?;
        let stored = self
            .store
            .get_credential(&name)
            .await
            .map_err(|error| of_store(&error))?;
        stored.ok_or_else(|| credential_not_found(&name))
    }

    async fn remove_credential(&self, request: &DeleteCredentialRequest) -> Result<DeleteCredentialResponse, ApiError> {
        let name: CredentialName = name(&request.name, "name")?;
        let there = self.store.get_credential(&name).await;
        // One that cannot be read can be deleted all the same.
        let deleted = match there {
            Ok(None) => false,
            _ => self
                .store
                .delete_credential(&name)
                .await
                .map_err(|error| of_store(&error))?,
        };
        if !deleted && !request.allow_missing {
            return Err(credential_not_found(&name));
        }
        if deleted {
            tracing::info!(credential = %name, "credential deleted");
        }
        Ok(DeleteCredentialResponse {})
    }

    async fn store_credential(&self, request: &CreateCredentialRequest) -> Result<StoredCredential, ApiError> {
        let mut violations = Violations::new();
        let project = parent(&request.parent)
            .inspect_err(|error| violations.add("parent", error.message.trim_start_matches("parent: ")))
            .ok();
        let id = request
            .credential_id
            .parse::<Label>()
            .inspect_err(|error| violations.add("credential_id", error.to_string()))
            .ok();
        let given = request.credential.clone().unwrap_or_default();
        let uid = CredentialUid::new();
        let secret = convert::credential(&given, uid, &mut violations);
        // Without a project nothing can be said of names in it.
        let source = project
            .as_ref()
            .and_then(|project| convert::source_credential(&given, project, &mut violations));
        violations.finish()?;
        let (Some(project), Some(id), Some(secret)) = (project, id, secret) else {
            // Whatever is missing was reported above.
            return Err(ApiError::new(
                tonic::Code::Internal,
                "INTERNAL",
                "a credential got lost",
            ));
        };
        let new = NewCredential {
            name: CredentialName { project, id },
            uid,
            display_name: given.display_name,
            secret,
            source,
        };
        let stored = self
            .store
            .create_credential(new)
            .await
            .map_err(|error| of_store(&error))?;
        tracing::info!(credential = %stored.name, "credential created");
        Ok(stored)
    }
}

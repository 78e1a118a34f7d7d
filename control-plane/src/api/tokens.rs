//! The token service. A token is told once, in the answer that makes it.

use std::time::Duration;

use jiff::SignedDuration;
use millrace_common::error::ApiError;
use millrace_proto::api::v1::{
    self as proto, CreateTokenRequest, CreateTokenResponse, GetTokenRequest, GetTokenResponse, ListTokensRequest,
    ListTokensResponse, RevokeTokenRequest, RevokeTokenResponse, TokenRole, token_service_server::TokenService,
};
use secrecy::ExposeSecret as _;
use tonic::{Code, Request, Response, Status};

use super::{
    Api,
    convert::{Violations, output},
    errors::{TOKEN_NOT_FOUND, of_store},
    once::repeated,
    page,
};
use crate::{
    auth::{self, Minted, Role},
    store::StoredToken,
};

/// What page tokens of this listing belong to.
const LISTING: &str = "tokens";
/// Longest name for people; it is the actor of events.
const MAX_NAME_CHARS: usize = 100;
/// How long a token may be good.
const TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(3_650 * 24 * 3_600);

#[tonic::async_trait]
impl TokenService for Api {
    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let request = request.into_inner();
        let run = async |api: Api| api.mint(&request).await;
        let again = async |_: Api| {
            Err(repeated(
                "list the tokens, revoke the one that it made, and ask under another id",
            ))
        };
        let answer = self
            .once("CreateToken", &request.request_id, &request, run, again)
            .await?;
        Ok(Response::new(answer))
    }

    async fn get_token(&self, request: Request<GetTokenRequest>) -> Result<Response<GetTokenResponse>, Status> {
        let token = self.token(&request.get_ref().name).await?;
        Ok(Response::new(GetTokenResponse {
            token: Some(show(&token)),
        }))
    }

    async fn list_tokens(&self, request: Request<ListTokensRequest>) -> Result<Response<ListTokensResponse>, Status> {
        let request = request.into_inner();
        let page = page::parse::<String>(&self.sealer, LISTING, &"all", request.page_size, &request.page_token)?;
        let mut tokens = self
            .store
            .list_tokens(page.after.as_deref(), page.size + 1)
            .await
            .map_err(|error| of_store(&error))?;
        let more = tokens.len() > page.size as usize;
        tokens.truncate(page.size as usize);
        let next_page_token = match tokens.last() {
            Some(last) if more => page::token(&self.sealer, LISTING, &"all", &last.id)?,
            _ => String::new(),
        };
        Ok(Response::new(ListTokensResponse {
            tokens: tokens.iter().map(show).collect(),
            next_page_token,
        }))
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        let name = &request.get_ref().name;
        let id = id_of(name)?;
        let found = self.store.revoke_token(id).await.map_err(|error| of_store(&error))?;
        if !found {
            return Err(not_found(name).into());
        }
        let token = self.token(name).await?;
        tracing::info!(token = token.id, name = token.display_name, "token revoked");
        Ok(Response::new(RevokeTokenResponse {
            token: Some(show(&token)),
        }))
    }
}

impl Api {
    async fn mint(&self, request: &CreateTokenRequest) -> Result<CreateTokenResponse, ApiError> {
        let given = request.token.clone().unwrap_or_default();
        let mut violations = Violations::new();
        let name = given.display_name.trim();
        if name.is_empty() {
            violations.add(
                "token.display_name",
                "is required: it names the actor of what is done with the token",
            );
        } else if name.chars().count() > MAX_NAME_CHARS || name.chars().any(char::is_control) {
            let what = format!("must be at most {MAX_NAME_CHARS} characters, none of them a control character");
            violations.add("token.display_name", what);
        }
        let role = match given.role() {
            TokenRole::Viewer => Some(Role::Viewer),
            TokenRole::Operator => Some(Role::Operator),
            TokenRole::Admin => Some(Role::Admin),
            TokenRole::Worker => Some(Role::Worker),
            TokenRole::Unspecified => {
                violations.add("token.role", "must be VIEWER, OPERATOR, ADMIN or WORKER");
                None
            }
        };
        let ttl = request
            .ttl
            .map(|ttl| Duration::try_from(ttl).ok().filter(|ttl| TTL.contains(ttl)));
        if ttl == Some(None) {
            violations.add("ttl", "must be from 1 minute to 10 years, or absent");
        }
        violations.finish()?;
        let Some(role) = role else {
            return Err(ApiError::new(Code::Internal, "INTERNAL", "a role got lost"));
        };
        let created = self.clock.now();
        let expires = ttl
            .flatten()
            .map(|ttl| SignedDuration::try_from(ttl).and_then(|ttl| created.checked_add(ttl)))
            .transpose()
            .map_err(|error| ApiError::internal(&error))?;
        let minted = Minted::new().map_err(|error| ApiError::internal(&error))?;
        let token = StoredToken {
            id: minted.id,
            display_name: name.to_owned(),
            role,
            hash: minted.hash,
            creator: auth::actor(),
            created,
            expires,
            revoked: None,
            used: None,
        };
        self.store
            .create_token(&token)
            .await
            .map_err(|error| of_store(&error))?;
        tracing::info!(
            token = token.id,
            name = token.display_name,
            role = role.as_str(),
            "token created"
        );
        Ok(CreateTokenResponse {
            // As it is stored, so that it is the same whenever it is read.
            token: Some(show(&self.token(&format!("tokens/{}", token.id)).await?)),
            secret: minted.token.expose_secret().to_owned(),
        })
    }

    async fn token(&self, name: &str) -> Result<StoredToken, ApiError> {
        let found = self
            .store
            .get_token(id_of(name)?)
            .await
            .map_err(|error| of_store(&error))?;
        found.ok_or_else(|| not_found(name))
    }
}

fn id_of(name: &str) -> Result<&str, ApiError> {
    let id = name
        .strip_prefix("tokens/")
        .filter(|id| !id.is_empty() && !id.contains('/') && id.len() <= 64);
    id.ok_or_else(|| ApiError::invalid_field("name", "must be the name of a token, such as `tokens/{token}`"))
}

fn not_found(name: &str) -> ApiError {
    ApiError::new(Code::NotFound, TOKEN_NOT_FOUND, format!("there is no {name}")).with_metadata("name", name)
}

fn show(token: &StoredToken) -> proto::Token {
    let role = match token.role {
        Role::Viewer => TokenRole::Viewer,
        Role::Operator => TokenRole::Operator,
        Role::Admin => TokenRole::Admin,
        Role::Worker => TokenRole::Worker,
    };
    proto::Token {
        name: format!("tokens/{}", token.id),
        display_name: token.display_name.clone(),
        role: role.into(),
        create_time: Some(output::timestamp(token.created)),
        expire_time: token.expires.map(output::timestamp),
        revoke_time: token.revoked.map(output::timestamp),
        last_use_time: token.used.map(output::timestamp),
        creator: token.creator.clone(),
    }
}

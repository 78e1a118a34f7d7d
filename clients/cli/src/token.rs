//! `millrace token …`.

use std::time::Duration;

use millrace_proto::api::v1 as api;

use crate::{
    args::{Connection, Token, TokenRole},
    client, events,
    exit::Error,
    list, manifest,
    output::{self, Format},
};

const TOKEN: &str = "millrace.api.v1.Token";
const CREATED: &str = "millrace.api.v1.CreateTokenResponse";
const HEADER: [&str; 7] = ["TOKEN", "NAME", "ROLE", "CREATED", "ENDS", "LAST USED", "CREATOR"];

/// Runs one command.
pub(crate) async fn run(connection: &Connection, command: Token) -> Result<(), Error> {
    match command {
        Token::Create {
            display_name,
            role,
            ttl,
        } => create(connection, display_name, role, ttl).await,
        Token::List => list_all(connection).await,
        Token::Revoke { token } => revoke(connection, &token).await,
    }
}

async fn create(
    connection: &Connection,
    display_name: String,
    role: TokenRole,
    ttl: Option<Duration>,
) -> Result<(), Error> {
    let role = match role {
        TokenRole::Viewer => api::TokenRole::Viewer,
        TokenRole::Operator => api::TokenRole::Operator,
        TokenRole::Admin => api::TokenRole::Admin,
        TokenRole::Worker => api::TokenRole::Worker,
    };
    let ttl = ttl.map(prost_types::Duration::try_from).transpose();
    let request = api::CreateTokenRequest {
        token: Some(api::Token {
            display_name,
            role: role.into(),
            ..Default::default()
        }),
        ttl: ttl.map_err(|error| Error::Local(format!("--ttl: {error}")))?,
        request_id: client::request_id(),
    };
    let mut client = client::tokens(connection)?;
    let created = client::insist(async || client.create_token(request.clone()).await).await;
    let created = created.map_err(client::failed(connection))?;
    if connection.output != Format::Table {
        return output::document(&manifest::to_json(&created, CREATED)?, connection.output);
    }
    // The token alone, so that it can be put into a file.
    let token = created.token.unwrap_or_default();
    output::note(&format!(
        "{} {}: keep it, it is not shown again",
        output::short(&token.name),
        token.display_name
    ));
    output::line(&created.secret)
}

async fn list_all(connection: &Connection) -> Result<(), Error> {
    let mut client = client::tokens(connection)?;
    let all = list::all(usize::MAX, async |page_size, page_token| {
        let request = api::ListTokensRequest { page_size, page_token };
        let page = client
            .list_tokens(request)
            .await
            .map_err(client::failed(connection))?
            .into_inner();
        Ok((page.tokens, page.next_page_token))
    })
    .await?;
    list::show(connection, &all, TOKEN, &HEADER, row)
}

async fn revoke(connection: &Connection, token: &str) -> Result<(), Error> {
    let name = if token.contains('/') {
        token.to_owned()
    } else {
        format!("tokens/{token}")
    };
    let request = api::RevokeTokenRequest { name };
    let revoked = client::tokens(connection)?
        .revoke_token(request)
        .await
        .map_err(client::failed(connection))?
        .into_inner();
    list::show(connection, &[revoked.token.unwrap_or_default()], TOKEN, &HEADER, row)
}

fn row(token: &api::Token) -> Vec<String> {
    let time = |time: &Option<prost_types::Timestamp>| time.as_ref().map(events::time).unwrap_or_default();
    vec![
        output::short(&token.name),
        token.display_name.clone(),
        output::short_enum(token.role().as_str_name(), "TOKEN_ROLE_"),
        time(&token.create_time),
        match &token.revoke_time {
            Some(revoked) => format!("revoked {}", events::time(revoked)),
            None => time(&token.expire_time),
        },
        time(&token.last_use_time),
        token.creator.clone(),
    ]
}

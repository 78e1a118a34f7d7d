//! `millrace credential …`.

use std::path::Path;

use millrace_proto::api::v1::{self as api, credential::Kind};

use crate::{
    args::{Connection, Credential, CredentialKind},
    client,
    exit::Error,
    manifest,
    output::{self, Format},
};

const CREDENTIAL: &str = "millrace.api.v1.Credential";
const PAGE_SIZE: i32 = 500;

/// Runs one command.
pub(crate) async fn run(connection: &Connection, command: Credential) -> Result<(), Error> {
    match command {
        Credential::Create {
            credential,
            display_name,
            kind,
        } => create(connection, credential, display_name, kind).await,
        Credential::List => list(connection).await,
        Credential::Delete {
            credential,
            allow_missing,
        } => delete(connection, &credential, allow_missing).await,
    }
}

async fn create(
    connection: &Connection,
    credential_id: String,
    display_name: String,
    kind: CredentialKind,
) -> Result<(), Error> {
    let kind = match kind {
        CredentialKind::AwsKeys {
            access_key_id,
            secret_access_key_file,
            session_token_file,
        } => Kind::AwsKeys(api::AwsKeys {
            access_key_id,
            secret_access_key: secret(
                secret_access_key_file.as_deref(),
                "AWS_SECRET_ACCESS_KEY",
                "--secret-access-key-file",
            )?,
            session_token: match session_token_file {
                Some(path) => secret_file(&path)?,
                None => std::env::var("AWS_SESSION_TOKEN").unwrap_or_default(),
            },
        }),
        CredentialKind::AwsRole { role_arn, external_id } => Kind::AwsRole(api::AwsRole { role_arn, external_id }),
        CredentialKind::AwsAmbient => Kind::AwsAmbient(api::AwsAmbient {}),
        CredentialKind::ClickhouseUser {
            username,
            password_file,
        } => Kind::ClickhouseUser(api::ClickHouseUser {
            username,
            password: secret(password_file.as_deref(), "CLICKHOUSE_PASSWORD", "--password-file")?,
        }),
    };
    let request = api::CreateCredentialRequest {
        parent: connection.parent(),
        credential_id,
        credential: Some(api::Credential {
            display_name,
            kind: Some(kind),
            ..Default::default()
        }),
    };
    let response = client::credentials(connection)?
        .create_credential(request)
        .await
        .map_err(client::failed(connection))?
        .into_inner();
    let created = response.credential.unwrap_or_default();
    show(connection, std::slice::from_ref(&created), true)
}

async fn list(connection: &Connection) -> Result<(), Error> {
    let mut client = client::credentials(connection)?;
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = api::ListCredentialsRequest {
            parent: connection.parent(),
            page_size: PAGE_SIZE,
            page_token,
        };
        let page = client
            .list_credentials(request)
            .await
            .map_err(client::failed(connection))?
            .into_inner();
        all.extend(page.credentials);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return show(connection, &all, false);
        }
    }
}

async fn delete(connection: &Connection, credential: &str, allow_missing: bool) -> Result<(), Error> {
    let name = connection.name("credentials", credential);
    let request = api::DeleteCredentialRequest {
        name: name.clone(),
        allow_missing,
    };
    client::credentials(connection)?
        .delete_credential(request)
        .await
        .map_err(client::failed(connection))?;
    output::line(&format!("{name} deleted"))
}

fn show(connection: &Connection, credentials: &[api::Credential], single: bool) -> Result<(), Error> {
    if connection.output != Format::Table {
        let mut values = credentials
            .iter()
            .map(|c| manifest::to_json(c, CREDENTIAL))
            .collect::<Result<Vec<_>, _>>()?;
        let value = if single {
            values.pop().unwrap_or_default()
        } else {
            values.into()
        };
        return output::document(&value, connection.output);
    }
    let rows = credentials
        .iter()
        .map(|credential| {
            let (kind, identity) = match &credential.kind {
                Some(Kind::AwsKeys(keys)) => ("aws-keys", keys.access_key_id.clone()),
                Some(Kind::AwsRole(role)) => ("aws-role", role.role_arn.clone()),
                Some(Kind::AwsAmbient(_)) => ("aws-ambient", String::new()),
                Some(Kind::ClickhouseUser(user)) => ("clickhouse-user", user.username.clone()),
                None => ("", String::new()),
            };
            vec![
                output::short(&credential.name),
                kind.to_owned(),
                identity,
                credential.fingerprint.clone(),
                credential.display_name.clone(),
            ]
        })
        .collect();
    output::table(&["NAME", "KIND", "IDENTITY", "FINGERPRINT", "DISPLAY NAME"], rows)
}

fn secret(file: Option<&Path>, variable: &str, option: &str) -> Result<String, Error> {
    match file {
        Some(path) => secret_file(path),
        None => std::env::var(variable).map_err(|_| {
            Error::Local(format!(
                "no secret: give {option} FILE (`-` for standard input) or set {variable}"
            ))
        }),
    }
}

/// A secret without the line end that editors and `echo` put behind it.
fn secret_file(path: &Path) -> Result<String, Error> {
    Ok(manifest::read(path)?.trim_end_matches(['\r', '\n']).to_owned())
}

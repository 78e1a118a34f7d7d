//! `millrace credential …`.

use std::path::Path;

use millrace_proto::api::v1::{self as api, credential::Kind};

use crate::{
    args::{Connection, Credential, CredentialKind},
    client,
    exit::Error,
    list, manifest,
    output::{self, Format},
};

const CREDENTIAL: &str = "millrace.api.v1.Credential";
const HEADER: [&str; 5] = ["NAME", "KIND", "IDENTITY", "FINGERPRINT", "DISPLAY NAME"];

/// Runs one command.
pub(crate) async fn run(connection: &Connection, command: Credential) -> Result<(), Error> {
    match command {
        Credential::Create {
            credential,
            display_name,
            kind,
        } => create(connection, credential, display_name, kind).await,
        Credential::List => list_all(connection).await,
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
        CredentialKind::AwsRole {
            role_arn,
            source_credential,
        } => Kind::AwsRole(api::AwsRole {
            role_arn,
            source_credential: source_credential
                .map(|credential| connection.name("credentials", &credential))
                .unwrap_or_default(),
            ..Default::default()
        }),
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
        request_id: client::request_id(),
    };
    let mut client = client::credentials(connection)?;
    let response = client::insist(async || client.create_credential(request.clone()).await).await;
    let response = response.map_err(client::failed(connection))?;
    let created = response.credential.unwrap_or_default();
    show(connection, &created)
}

async fn list_all(connection: &Connection) -> Result<(), Error> {
    list::show(connection, &all(connection).await?, CREDENTIAL, &HEADER, row)
}

/// The credentials of the project.
pub(crate) async fn all(connection: &Connection) -> Result<Vec<api::Credential>, Error> {
    let mut client = client::credentials(connection)?;
    list::all(usize::MAX, async |page_size, page_token| {
        let request = api::ListCredentialsRequest {
            parent: connection.parent(),
            page_size,
            page_token,
        };
        let page = client
            .list_credentials(request)
            .await
            .map_err(client::failed(connection))?
            .into_inner();
        Ok((page.credentials, page.next_page_token))
    })
    .await
}

async fn delete(connection: &Connection, credential: &str, allow_missing: bool) -> Result<(), Error> {
    let name = connection.name("credentials", credential);
    let request = api::DeleteCredentialRequest {
        name: name.clone(),
        allow_missing,
        request_id: client::request_id(),
    };
    let mut client = client::credentials(connection)?;
    let deleted = client::insist(async || client.delete_credential(request.clone()).await).await;
    deleted.map_err(client::failed(connection))?;
    output::line(&format!("{name} deleted"))
}

fn show(connection: &Connection, credential: &api::Credential) -> Result<(), Error> {
    if connection.output == Format::Table {
        return output::table(&HEADER, vec![row(credential)]);
    }
    output::document(&manifest::to_json(credential, CREDENTIAL)?, connection.output)
}

fn row(credential: &api::Credential) -> Vec<String> {
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

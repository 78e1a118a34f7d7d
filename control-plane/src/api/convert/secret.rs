//! Credentials on their way in. What is wrong with a secret is said without repeating it.

use millrace_common::{
    aws,
    ids::{CredentialName, CredentialUid, ProjectName},
};
use millrace_proto::api::v1::{self as proto, credential::Kind};
use secrecy::SecretString;

use super::{Violations, credential_name, display_name, names};
use crate::store::CredentialSecret;

/// Longest access key id. AWS ends at 128.
const MAX_ACCESS_KEY_ID: usize = 128;
/// Longest secret access key or password.
const MAX_SECRET_BYTES: usize = 1_024;
/// Longest session token. AWS gives no limit; those seen are under 3 KB.
const MAX_SESSION_TOKEN_BYTES: usize = 16_384;
/// Longest user name of ClickHouse.
const MAX_USERNAME_BYTES: usize = 200;

/// The secret in a credential message that is to be stored under `uid`; `None` exactly if violations were added.
pub fn credential(
    given: &proto::Credential,
    uid: CredentialUid,
    violations: &mut Violations,
) -> Option<CredentialSecret> {
    display_name(&given.display_name, "credential.display_name", violations);
    let secret = match &given.kind {
        None => {
            violations.add(
                "credential.kind",
                "is required: set one of aws_keys, aws_role, aws_ambient and clickhouse_user",
            );
            None
        }
        Some(Kind::AwsKeys(keys)) => Some(aws_keys(keys, violations)),
        Some(Kind::AwsRole(role)) => Some(aws_role(role, uid, violations)),
        Some(Kind::AwsAmbient(proto::AwsAmbient {})) => Some(CredentialSecret::Aws(aws::Credential::Ambient)),
        Some(Kind::ClickhouseUser(user)) => Some(clickhouse_user(user, violations)),
    };
    secret.filter(|_| violations.is_empty())
}

fn aws_keys(keys: &proto::AwsKeys, violations: &mut Violations) -> CredentialSecret {
    let field = |name: &str| format!("credential.aws_keys.{name}");
    let id_valid = (1..=MAX_ACCESS_KEY_ID).contains(&keys.access_key_id.len())
        && keys
            .access_key_id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !id_valid {
        violations.add(
            field("access_key_id"),
            "must be 1 to 128 letters, digits and '_', such as AKIAIOSFODNN7EXAMPLE",
        );
    }
    header_text(
        &keys.secret_access_key,
        MAX_SECRET_BYTES,
        &field("secret_access_key"),
        violations,
    );
    if keys.secret_access_key.is_empty() {
        violations.add(field("secret_access_key"), "is required");
    }
    header_text(
        &keys.session_token,
        MAX_SESSION_TOKEN_BYTES,
        &field("session_token"),
        violations,
    );
    let token = Some(keys.session_token.clone()).filter(|token| !token.is_empty());
    CredentialSecret::Aws(aws::Credential::Keys {
        access_key_id: keys.access_key_id.clone(),
        secret_access_key: SecretString::from(keys.secret_access_key.clone()),
        session_token: token.map(SecretString::from),
    })
}

/// Keys travel in headers, and a mask that some client shows in place of a secret is no secret.
fn header_text(text: &str, max: usize, field: &str, violations: &mut Violations) {
    if text.len() > max {
        violations.add(field, format!("is longer than {max} bytes"));
    } else if !text.bytes().all(|b| b.is_ascii_graphic()) {
        violations.add(field, "must be visible ASCII characters without spaces or line ends");
    } else if is_mask(text) {
        violations.add(field, "is a mask, not a secret");
    }
}

fn is_mask(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| matches!(c, '*' | '•' | '●'))
}

/// With the external id that is this credential's alone. One that users could choose would be one that others know.
fn aws_role(role: &proto::AwsRole, uid: CredentialUid, violations: &mut Violations) -> CredentialSecret {
    if let Err(what) = names::role_arn(&role.role_arn) {
        violations.add("credential.aws_role.role_arn", what);
    }
    if !role.external_id.is_empty() {
        violations.add(
            "credential.aws_role.external_id",
            "is made by the server: leave it out, and put the one of the created credential into the role's trust policy",
        );
    }
    CredentialSecret::Aws(aws::Credential::Role {
        role_arn: role.role_arn.clone(),
        external_id: Some(external_id()),
        // Of the role as the source of others; a pipe's sessions have the pipe's name.
        session_name: aws::session_name(&uid.to_string()),
        source: Box::new(aws::Credential::Ambient),
    })
}

/// 160 random bits.
fn external_id() -> String {
    let random: [u8; 20] = rand::random();
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("millrace-{digits}")
}

/// The credential that a role is to be assumed with.
pub fn source_credential(
    given: &proto::Credential,
    project: &ProjectName,
    violations: &mut Violations,
) -> Option<CredentialName> {
    match &given.kind {
        Some(Kind::AwsRole(role)) if !role.source_credential.is_empty() => credential_name(
            &role.source_credential,
            "credential.aws_role.source_credential",
            project,
            violations,
        ),
        _ => None,
    }
}

fn clickhouse_user(user: &proto::ClickHouseUser, violations: &mut Violations) -> CredentialSecret {
    let header_safe = |text: &str| !text.chars().any(char::is_control);
    let field = "credential.clickhouse_user.username";
    if user.username.is_empty() {
        violations.add(field, "is required");
    } else if user.username.len() > MAX_USERNAME_BYTES {
        violations.add(field, format!("is longer than {MAX_USERNAME_BYTES} bytes"));
    } else if !header_safe(&user.username) {
        violations.add(
            field,
            "must not contain control characters: it travels in an HTTP header",
        );
    }
    let field = "credential.clickhouse_user.password";
    if user.password.len() > MAX_SECRET_BYTES {
        violations.add(field, format!("is longer than {MAX_SECRET_BYTES} bytes"));
    } else if !header_safe(&user.password) || user.password.trim() != user.password {
        violations.add(
            field,
            "must not contain control characters, nor start or end with a space: it travels in an HTTP header",
        );
    } else if is_mask(&user.password) {
        violations.add(field, "is a mask, not a password");
    }
    CredentialSecret::ClickHouse {
        username: user.username.clone(),
        password: SecretString::from(user.password.clone()),
    }
}

//! Credentials: stored, shown without their secrets, and kept while pipes need them.

use millrace_proto::api::v1::{self as proto, credential::Kind};
use tonic::Code;

use super::bed::{ACCESS_KEY, Bed, OWNER, PARENT, PASSWORD, assert_refused, clickhouse_user, fields};

async fn delete(bed: &Bed, id: &str, allow_missing: bool) -> Result<(), tonic::Status> {
    let name = format!("{PARENT}/credentials/{id}");
    let request = proto::DeleteCredentialRequest {
        name,
        allow_missing,
        ..Default::default()
    };
    bed.credentials.clone().delete_credential(request).await.map(drop)
}

#[tokio::test]
async fn secrets_go_in_and_never_come_out() {
    let bed = Bed::start().await;
    let role = proto::AwsRole {
        role_arn: "arn:aws:iam::123456789012:role/reader".into(),
        ..Default::default()
    };
    bed.create_credential("role", Kind::AwsRole(role.clone()))
        .await
        .expect("a role");
    bed.create_credential("ambient", Kind::AwsAmbient(proto::AwsAmbient {}))
        .await
        .expect("ambient");
    let twin = bed
        .create_credential("twin", clickhouse_user("someone", PASSWORD))
        .await
        .expect("a user");

    let request = proto::ListCredentialsRequest {
        parent: PARENT.into(),
        page_size: 0,
        page_token: String::new(),
    };
    let listed = bed
        .credentials
        .clone()
        .list_credentials(request)
        .await
        .expect("a list")
        .into_inner()
        .credentials;
    let ids: Vec<&str> = listed
        .iter()
        .filter_map(|credential| credential.name.rsplit('/').next())
        .collect();
    assert_eq!(ids, ["ambient", "aws", OWNER, "reader", "role", "twin", "writer"]);
    for credential in &listed {
        let request = proto::GetCredentialRequest {
            name: credential.name.clone(),
        };
        let got = bed
            .credentials
            .clone()
            .get_credential(request)
            .await
            .expect("it")
            .into_inner();
        assert_eq!(got.credential.as_ref(), Some(credential));
        match credential.kind.as_ref().expect("a kind") {
            Kind::AwsKeys(keys) => {
                let shown = (
                    keys.access_key_id.as_str(),
                    keys.secret_access_key.as_str(),
                    keys.session_token.as_str(),
                );
                assert_eq!(shown, (ACCESS_KEY, "", ""));
            }
            Kind::AwsRole(shown) => {
                let (made, shown) = (
                    &shown.external_id,
                    proto::AwsRole {
                        external_id: String::new(),
                        ..shown.clone()
                    },
                );
                assert_eq!(shown, role);
                assert!(made.starts_with("millrace-") && made.len() == 49, "{made}");
            }
            Kind::AwsAmbient(_) => assert_eq!(credential.fingerprint, ""),
            Kind::ClickhouseUser(user) => {
                assert_eq!(user.password, "");
                assert_eq!(credential.fingerprint.len(), 8);
                assert_eq!(
                    credential.fingerprint, twin.fingerprint,
                    "equal secrets, equal fingerprints"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_credential_in_use_stays() {
    let bed = Bed::start().await;
    bed.create_table("uses").await;
    bed.create("uses", bed.pipe("uses")).await.expect("a pipe");
    for id in ["aws", OWNER] {
        let status = delete(&bed, id, false).await.expect_err("in use");
        assert_refused(
            &status,
            Code::FailedPrecondition,
            "CREDENTIAL_IN_USE",
            "",
            "projects/default/pipes/uses",
        );
    }
    bed.delete("uses", "", false).await.expect("deleted");
    delete(&bed, "aws", false).await.expect("free now");
    let status = delete(&bed, "aws", false).await.expect_err("gone");
    assert_refused(&status, Code::NotFound, "CREDENTIAL_NOT_FOUND", "", "aws");
    delete(&bed, "aws", true).await.expect("allowed to be missing");
}

#[tokio::test]
async fn bad_credentials_are_refused_without_being_repeated() {
    let bed = Bed::start().await;
    let taken = bed
        .create_credential("aws", Kind::AwsAmbient(proto::AwsAmbient {}))
        .await
        .expect_err("taken");
    assert_refused(&taken, Code::AlreadyExists, "ALREADY_EXISTS", "", "aws");
    let injected = bed
        .create_credential("bad", clickhouse_user("x", "canary\r\nX-Evil: 1"))
        .await
        .expect_err("refused");
    let field = "credential.clickhouse_user.password";
    assert_refused(&injected, Code::InvalidArgument, "INVALID_FIELD", field, "HTTP header");
    let request = proto::CreateCredentialRequest {
        parent: "projects/Nope".into(),
        credential_id: "No".into(),
        credential: None,
        ..Default::default()
    };
    let status = bed
        .credentials
        .clone()
        .create_credential(request)
        .await
        .expect_err("refused");
    assert_eq!(fields(&status), ["parent", "credential_id", "credential.kind"]);
}

#[tokio::test]
async fn external_ids_are_made_here_and_never_the_same() {
    let bed = Bed::start().await;
    let role = |external_id: &str, source: &str| {
        Kind::AwsRole(proto::AwsRole {
            role_arn: "arn:aws:iam::123456789012:role/reader".into(),
            external_id: external_id.into(),
            source_credential: source.into(),
        })
    };
    let made = async |id: &str| match bed.create_credential(id, role("", "")).await.expect("a role").kind {
        Some(Kind::AwsRole(role)) => role.external_id,
        other => panic!("{other:?}"),
    };
    assert_ne!(made("one").await, made("two").await, "for the same role");
    let status = bed
        .create_credential("three", role("mine", ""))
        .await
        .expect_err("refused");
    let field = "credential.aws_role.external_id";
    assert_refused(
        &status,
        Code::InvalidArgument,
        "INVALID_FIELD",
        field,
        "made by the server",
    );
}

#[tokio::test]
async fn a_chain_of_roles_is_checked_and_kept_together() {
    let bed = Bed::start().await;
    let role = |source: &str| {
        Kind::AwsRole(proto::AwsRole {
            role_arn: "arn:aws:iam::123456789012:role/reader".into(),
            source_credential: format!("{PARENT}/credentials/{source}"),
            ..Default::default()
        })
    };
    let field = "credential.aws_role.source_credential";
    let status = bed.create_credential("r", role("missing")).await.expect_err("refused");
    assert_refused(&status, Code::FailedPrecondition, "CREDENTIAL_NOT_FOUND", "", "missing");
    let status = bed
        .create_credential("r", role(OWNER))
        .await
        .expect_err("a user of ClickHouse");
    assert_refused(
        &status,
        Code::InvalidArgument,
        "INVALID_FIELD",
        field,
        "no AWS credential",
    );
    bed.create_credential("r1", role("aws"))
        .await
        .expect("a role with keys");
    bed.create_credential("r2", role("r1")).await.expect("a chain");
    bed.create_credential("r3", role("r2")).await.expect("a longer chain");
    bed.create_credential("r4", role("r3")).await.expect("the longest");
    let status = bed.create_credential("r5", role("r4")).await.expect_err("too long");
    assert_refused(&status, Code::InvalidArgument, "INVALID_FIELD", field, "chain");
    for kept in ["aws", "r1"] {
        let status = delete(&bed, kept, false).await.expect_err("in use");
        assert_refused(
            &status,
            Code::FailedPrecondition,
            "CREDENTIAL_IN_USE",
            "",
            "source_credential",
        );
    }
    for id in ["r4", "r3", "r2", "r1"] {
        delete(&bed, id, false).await.expect(id);
    }
}

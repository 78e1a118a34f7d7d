//! Credentials: stored, shown without their secrets, and kept while pipes need them.

use millrace_proto::api::v1::{self as proto, credential::Kind};
use tonic::Code;

use super::bed::{ACCESS_KEY, Bed, OWNER, PARENT, PASSWORD, assert_refused, clickhouse_user, fields};

async fn delete(bed: &Bed, id: &str, allow_missing: bool) -> Result<(), tonic::Status> {
    let name = format!("{PARENT}/credentials/{id}");
    let request = proto::DeleteCredentialRequest { name, allow_missing };
    bed.credentials.clone().delete_credential(request).await.map(drop)
}

#[tokio::test]
async fn secrets_go_in_and_never_come_out() {
    let bed = Bed::start().await;
    let role = proto::AwsRole {
        role_arn: "arn:aws:iam::123456789012:role/reader".into(),
        external_id: "shared".into(),
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
            Kind::AwsRole(shown) => assert_eq!(*shown, role),
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
    };
    let status = bed
        .credentials
        .clone()
        .create_credential(request)
        .await
        .expect_err("refused");
    assert_eq!(fields(&status), ["parent", "credential_id", "credential.kind"]);
}

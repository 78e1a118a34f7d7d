//! Credentials: what comes back, and what keeps one from being deleted.

use millrace_common::aws;
use millrace_common::ids::{CredentialName, CredentialUid, Revision};
use millrace_common::position::Position;
use millrace_control_plane::protocol::Refusal;
use millrace_control_plane::store::{CredentialKind, CredentialSecret, Error, NewCredential, PipeChange, Store};
use secrecy::{ExposeSecret as _, SecretString};

use crate::bed::{Database, batch, credential, grant, pipe, resolved, shard, slice, spec, worker};

async fn store_as(store: &Store, id: &str, secret: CredentialSecret) -> String {
    let new = NewCredential {
        name: name(id),
        uid: CredentialUid::new(),
        display_name: format!("the {id}"),
        secret,
        source: None,
    };
    let stored = store.create_credential(new.clone()).await.unwrap();
    assert_eq!(
        (&stored.name, stored.uid, &stored.display_name),
        (&new.name, new.uid, &new.display_name)
    );
    assert_eq!(store.get_credential(&new.name).await.unwrap(), Some(stored.clone()));
    stored.fingerprint
}

fn name(id: &str) -> CredentialName {
    format!("projects/default/credentials/{id}").parse().unwrap()
}

pub(crate) async fn secrets_come_back_as_they_went(database: Database) {
    let store = &database.store;
    let keys = |token: Option<&str>| {
        CredentialSecret::Aws(aws::Credential::Keys {
            access_key_id: "AKIA".to_owned(),
            secret_access_key: SecretString::from("kéy"),
            session_token: token.map(SecretString::from),
        })
    };
    let role = aws::Credential::Role {
        role_arn: "arn:aws:iam::123456789012:role/x".to_owned(),
        external_id: Some("external".to_owned()),
        session_name: "millrace".to_owned(),
        source: Box::new(aws::Credential::Ambient),
    };
    let user = |password: &str| CredentialSecret::ClickHouse {
        username: "u".to_owned(),
        password: SecretString::from(password),
    };
    let one = store_as(store, "keys", keys(None)).await;
    let two = store_as(store, "keys-token", keys(Some("token"))).await;
    assert_eq!(store_as(store, "role", CredentialSecret::Aws(role)).await, "");
    assert_eq!(
        store_as(store, "ambient", CredentialSecret::Aws(aws::Credential::Ambient)).await,
        ""
    );
    let three = store_as(store, "user", user("pw")).await;
    store_as(store, "user-empty", user("")).await;
    assert_eq!(one, two, "the same key has the same fingerprint");
    assert_ne!(one, three);

    match store.credential_secret(&name("keys-token")).await.unwrap().unwrap() {
        CredentialSecret::Aws(aws::Credential::Keys {
            access_key_id,
            secret_access_key,
            session_token,
        }) => {
            assert_eq!(
                (access_key_id.as_str(), secret_access_key.expose_secret()),
                ("AKIA", "kéy")
            );
            assert_eq!(session_token.unwrap().expose_secret(), "token");
        }
        other => panic!("{other:?}"),
    }
    match store.credential_secret(&name("role")).await.unwrap().unwrap() {
        CredentialSecret::Aws(aws::Credential::Role {
            role_arn,
            external_id,
            session_name,
            ..
        }) => {
            assert_eq!(role_arn, "arn:aws:iam::123456789012:role/x");
            assert_eq!(
                (external_id.as_deref(), session_name.as_str()),
                (Some("external"), "millrace")
            );
        }
        other => panic!("{other:?}"),
    }
    let ambient = store.credential_secret(&name("ambient")).await.unwrap().unwrap();
    assert!(matches!(ambient, CredentialSecret::Aws(aws::Credential::Ambient)));
    for (id, expected) in [("user", "pw"), ("user-empty", "")] {
        match store.credential_secret(&name(id)).await.unwrap().unwrap() {
            CredentialSecret::ClickHouse { username, password } => {
                assert_eq!((username.as_str(), password.expose_secret()), ("u", expected));
            }
            other @ CredentialSecret::Aws(_) => panic!("{other:?}"),
        }
    }
    assert!(store.credential_secret(&name("none")).await.unwrap().is_none());

    let project = "projects/default".parse().unwrap();
    let first = store.list_credentials(&project, None, 3).await.unwrap();
    let rest = store
        .list_credentials(&project, Some(&first[2].name.id), 10)
        .await
        .unwrap();
    let ids: Vec<_> = first.iter().chain(&rest).map(|row| row.name.id.as_str()).collect();
    assert_eq!(ids, ["ambient", "keys", "keys-token", "role", "user", "user-empty"]);
    assert_eq!(
        first[1].kind,
        CredentialKind::AwsKeys {
            access_key_id: "AKIA".to_owned()
        }
    );

    let again = NewCredential {
        name: name("user"),
        uid: CredentialUid::new(),
        display_name: String::new(),
        secret: user("other"),
        source: None,
    };
    assert!(matches!(
        store.create_credential(again).await,
        Err(Error::AlreadyExists { .. })
    ));
    assert!(store.delete_credential(&name("user")).await.unwrap());
    assert!(!store.delete_credential(&name("user")).await.unwrap());
    assert_eq!(store.get_credential(&name("user")).await.unwrap(), None);
}

pub(crate) async fn a_credential_in_use_stays(database: Database) {
    let store = &database.store;
    let pipe = pipe(store, 1).await;
    for id in ["aws", "clickhouse"] {
        let error = store.delete_credential(&name(id)).await.unwrap_err();
        assert!(
            matches!(&error, Error::InUse { pipes, .. } if *pipes == [pipe.name.clone()]),
            "{error}"
        );
    }
    assert!(store.delete_pipe(&pipe.name, None).await.unwrap());
    assert!(store.delete_credential(&name("aws")).await.unwrap());
}

pub(crate) async fn an_old_revision_goes_with_its_credential(database: Database) {
    let store = &database.store;
    let pipe = pipe(store, 1).await;
    let me = worker("w1");
    let held = grant(store, pipe.uid, &[shard(0)], &me).await;
    let old = batch(vec![slice(&shard(0), Position::TrimHorizon, 5)], 5);
    store.prepare(pipe.uid, &me, &old, &held).await.unwrap();

    credential(store, "projects/default/credentials/aws-2").await;
    let mut moved = spec("events");
    moved.source.credential = name("aws-2");
    let change = PipeChange {
        spec: Some((moved, resolved("a"))),
        ..PipeChange::default()
    };
    store.update_pipe(pipe.uid, None, change).await.unwrap();
    let error = store.delete_credential(&name("aws")).await.unwrap_err();
    assert!(
        matches!(error, Error::InUse { .. }),
        "an open batch still needs revision 1: {error}"
    );

    store.commit(pipe.uid, &me, old.id, &held).await.unwrap();
    assert!(store.delete_credential(&name("aws")).await.unwrap());
    assert_eq!(store.revision(pipe.uid, Revision(1)).await.unwrap(), None);
    assert!(store.revision(pipe.uid, Revision(2)).await.unwrap().is_some());
    let end = old.slices[0].end();
    let mut late = batch(vec![slice(&shard(0), end, 9)], 4);
    let error = store.prepare(pipe.uid, &me, &late, &held).await.unwrap_err();
    let expected = Refusal::UnknownRevision {
        expected: Revision(2),
        found: Revision(1),
    };
    assert!(
        matches!(&error, Error::Refused { reason } if *reason == expected),
        "{error}"
    );
    late.revision = Revision(2);
    store.prepare(pipe.uid, &me, &late, &held).await.unwrap();
    // The other credential of the old revision is still in use by the new one.
    assert!(matches!(
        store.delete_credential(&name("clickhouse")).await,
        Err(Error::InUse { .. })
    ));
}

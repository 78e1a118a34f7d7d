//! Changing the key that secrets are sealed with.

use std::sync::Arc;

use millrace_common::{
    clock::Clock,
    crypto::{KEY_LEN, Sealer},
    ids::{CredentialName, CredentialUid},
};
use millrace_control_plane::store::{CredentialSecret, Error, NewCredential, Options, Store};
use secrecy::{ExposeSecret as _, SecretString};

use crate::bed::Database;

const OLD: u8 = 7;
const NEW: u8 = 8;

async fn open(url: &str, keys: &[u8]) -> Result<Store, Error> {
    let first = Sealer::new(&[keys[0]; KEY_LEN]).unwrap();
    let ring = keys[1..]
        .iter()
        .try_fold(first, |ring, key| ring.and_opens(&[*key; KEY_LEN]))
        .unwrap();
    Store::open(&Options::new(url), Arc::new(ring), Clock::System).await
}

fn name(id: &str) -> CredentialName {
    format!("projects/default/credentials/{id}").parse().unwrap()
}

async fn put(store: &Store, id: &str) -> String {
    let new = NewCredential {
        name: name(id),
        uid: CredentialUid::new(),
        display_name: String::new(),
        secret: CredentialSecret::ClickHouse {
            username: "u".to_owned(),
            password: SecretString::from("the same"),
        },
        source: None,
    };
    store.create_credential(new).await.unwrap().fingerprint
}

async fn password(store: &Store, id: &str) -> String {
    match store.credential_secret(&name(id)).await.unwrap() {
        Some(CredentialSecret::ClickHouse { password, .. }) => password.expose_secret().to_owned(),
        _ => panic!("no such credential"),
    }
}

/// Also its lock is given back.
async fn close(store: Store) {
    store.close().await;
    drop(store);
}

async fn refused(url: &str, keys: &[u8]) {
    match open(url, keys).await {
        Err(Error::Key(_)) => {}
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("opened with {keys:?}"),
    }
}

async fn a_key_is_changed(database: Database) {
    for id in ["a", "b", "c"] {
        put(&database.store, id).await;
    }
    let (url, _directory) = database.close().await;
    refused(&url, &[NEW]).await;

    // The new key opens only, then it seals.
    let store = open(&url, &[OLD, NEW]).await.unwrap();
    put(&store, "d").await;
    assert_eq!(store.reseal().await.unwrap(), 0);
    close(store).await;
    let store = open(&url, &[NEW, OLD]).await.unwrap();
    let fingerprint = put(&store, "e").await;
    close(store).await;
    // Interrupted now, neither key is enough.
    refused(&url, &[OLD]).await;
    refused(&url, &[NEW]).await;

    let store = open(&url, &[NEW, OLD]).await.unwrap();
    assert_eq!(store.reseal().await.unwrap(), 4);
    assert_eq!(store.reseal().await.unwrap(), 0, "nothing is left");
    close(store).await;
    refused(&url, &[OLD]).await;
    let store = open(&url, &[NEW]).await.unwrap();
    for id in ["a", "b", "c", "d", "e"] {
        assert_eq!(password(&store, id).await, "the same");
        let stored = store.get_credential(&name(id)).await.unwrap().unwrap();
        assert_eq!(stored.fingerprint, fingerprint, "equal secrets, equal fingerprints");
    }
    close(store).await;
}

#[tokio::test]
async fn a_key_is_changed_on_sqlite() {
    a_key_is_changed(Database::file().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_changed_on_postgres() {
    a_key_is_changed(Database::postgres().await).await;
}

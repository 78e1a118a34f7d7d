//! Requests that carry an id: noted with what they do, and for a day.

use std::{sync::Arc, time::Duration};

use millrace_common::ids::CredentialUid;
use millrace_control_plane::store::{CredentialSecret, Error, Known, NewCredential, RequestMark};
use secrecy::SecretString;

use crate::bed::Database;

const ID: &str = "3f2b1c9e-8d4a-4f6b-9c1d-2e3f4a5b6c7d";

fn mark(digest: u8) -> Arc<RequestMark> {
    Arc::new(RequestMark::new(
        "ann".to_owned(),
        "Create",
        ID.to_owned(),
        [digest; 32],
    ))
}

fn credential(id: &str) -> NewCredential {
    NewCredential {
        name: format!("projects/default/credentials/{id}").parse().unwrap(),
        uid: CredentialUid::new(),
        display_name: String::new(),
        secret: CredentialSecret::ClickHouse {
            username: "u".to_owned(),
            password: SecretString::from("secret"),
        },
        source: None,
    }
}

pub(crate) async fn a_request_is_noted_with_what_it_does(database: Database) {
    let store = &database.store;
    let (first, second, other) = (mark(1), mark(1), mark(2));
    let carrying = store.carrying_out(first.clone());
    carrying.create_credential(credential("one")).await.unwrap();
    // In several transactions, if need be.
    carrying.create_credential(credential("two")).await.unwrap();
    assert_eq!(
        store.known_request(&first).await.unwrap(),
        None,
        "it is this very attempt"
    );
    assert_eq!(
        store.known_request(&second).await.unwrap(),
        Some(Known::Done { answer: None })
    );
    assert_eq!(store.known_request(&other).await.unwrap(), Some(Known::Other));
    let again = store.carrying_out(second.clone());
    let error = again.create_credential(credential("three")).await.unwrap_err();
    assert!(matches!(error, Error::Repeated), "{error}");
    let three = credential("three").name;
    assert_eq!(store.get_credential(&three).await.unwrap(), None);

    for answer in [b"".as_slice(), b"an answer"] {
        store.keep_answer(&first, answer).await.unwrap();
        let known = store.known_request(&second).await.unwrap();
        assert_eq!(
            known,
            Some(Known::Done {
                answer: Some(answer.to_vec())
            })
        );
    }
    // Only the attempt that did it knows what it answered.
    store.keep_answer(&second, b"made up").await.unwrap();
    store.keep_answer(&first, &vec![0; 1 << 20]).await.unwrap();
    let known = store.known_request(&second).await.unwrap();
    assert_eq!(
        known,
        Some(Known::Done {
            answer: Some(b"an answer".to_vec())
        })
    );
    let bob = RequestMark::new("bob".to_owned(), "Create", ID.to_owned(), [1; 32]);
    assert_eq!(store.known_request(&bob).await.unwrap(), None);

    // What fails is not noted.
    let failed = Arc::new(RequestMark::new("bob".to_owned(), "Create", ID.to_owned(), [1; 32]));
    let taken = store.carrying_out(failed).create_credential(credential("one")).await;
    assert!(matches!(taken, Err(Error::AlreadyExists { .. })));
    assert_eq!(store.known_request(&bob).await.unwrap(), None);

    database.clock.advance(Duration::from_secs(24 * 3_600 + 1));
    assert_eq!(store.known_request(&second).await.unwrap(), None);
    again.create_credential(credential("three")).await.unwrap();
}

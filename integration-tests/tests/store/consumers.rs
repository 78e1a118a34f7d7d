//! Consumers that Millrace registers: noted before, wanted or not, and forgotten when they are gone.

use millrace_common::ids::PipeUid;
use millrace_common::pipe::FanOut;
use millrace_control_plane::store::{ManagedConsumer, PipeChange, Store};

use crate::bed::{Database, credentials, new_pipe, resolved, shard, spec};

async fn set_fan_out(store: &Store, uid: PipeUid, fan_out: Option<FanOut>) {
    let mut spec = spec("events");
    spec.source.fan_out = fan_out;
    let change = PipeChange {
        spec: Some((spec, resolved("a"))),
        ..PipeChange::default()
    };
    store.update_pipe(uid, None, change).await.unwrap();
}

async fn unwanted(store: &Store) -> Vec<ManagedConsumer> {
    store.unwanted_consumers().await.unwrap()
}

pub(crate) async fn a_consumer_is_noted_until_it_is_known_to_be_gone(database: Database) {
    let store = &database.store;
    credentials(store).await;
    let mut new = new_pipe("events", &[shard(0)]);
    new.spec.source.fan_out = Some(FanOut::Managed);
    new.spec.source.endpoint = Some("http://127.0.0.1:4567".to_owned());
    let pipe = store.create_pipe(new).await.unwrap();
    assert_eq!(unwanted(store).await, []);
    // However often it is noted, it is one.
    for _ in 0..3 {
        assert!(store.note_consumer(pipe.uid).await.unwrap());
    }
    assert_eq!(unwanted(store).await, [], "its pipe wants it");

    assert!(store.delete_pipe(&pipe.name, None).await.unwrap());
    let found = unwanted(store).await;
    let expected = ManagedConsumer {
        pipe: pipe.uid,
        pipe_name: pipe.name.clone(),
        stream_arn: pipe.resolved.stream.arn.clone(),
        region: "eu-central-1".to_owned(),
        endpoint: Some("http://127.0.0.1:4567".to_owned()),
        credential: pipe.spec.source.credential.clone(),
        gone: None,
    };
    let only = std::slice::from_ref(&expected);
    assert_eq!(found, only);
    // Nobody registers it any more.
    assert!(!store.note_consumer(pipe.uid).await.unwrap());
    // One of a pipe of the same name is another one.
    let mut again = new_pipe("events", &[shard(0)]);
    again.spec.source.fan_out = Some(FanOut::Managed);
    let again = store.create_pipe(again).await.unwrap();
    assert!(store.note_consumer(again.uid).await.unwrap());
    assert_eq!(unwanted(store).await, only);

    // It stays until it was deregistered, and for as long after that as is wanted.
    store.forget_consumer(&expected).await.unwrap();
    assert_eq!(unwanted(store).await, only);
    store.note_consumer_gone(&expected).await.unwrap();
    let first = unwanted(store).await[0].gone.expect("noted");
    store.note_consumer_gone(&expected).await.unwrap();
    assert_eq!(unwanted(store).await[0].gone, Some(first));
    store.forget_consumer(&expected).await.unwrap();
    assert_eq!(unwanted(store).await, []);
}

pub(crate) async fn only_what_a_pipe_wants_is_noted(database: Database) {
    let store = &database.store;
    credentials(store).await;
    let pipe = store.create_pipe(new_pipe("events", &[shard(0)])).await.unwrap();
    assert!(!store.note_consumer(pipe.uid).await.unwrap(), "it polls");
    assert!(
        !store.note_consumer(PipeUid::new()).await.unwrap(),
        "there is no such pipe"
    );
    set_fan_out(store, pipe.uid, Some(FanOut::Consumer("arn:x".to_owned()))).await;
    assert!(
        !store.note_consumer(pipe.uid).await.unwrap(),
        "it has one of the user's"
    );
    assert_eq!(unwanted(store).await, []);

    set_fan_out(store, pipe.uid, Some(FanOut::Managed)).await;
    assert!(store.note_consumer(pipe.uid).await.unwrap());
    set_fan_out(store, pipe.uid, None).await;
    let found = unwanted(store).await;
    assert_eq!((found.len(), found[0].pipe), (1, pipe.uid));
    store.note_consumer_gone(&found[0]).await.unwrap();
    // It wants it again before it is forgotten: what was to be done about the old wish is not done.
    set_fan_out(store, pipe.uid, Some(FanOut::Managed)).await;
    assert!(store.note_consumer(pipe.uid).await.unwrap());
    store.forget_consumer(&found[0]).await.unwrap();
    set_fan_out(store, pipe.uid, None).await;
    let found = unwanted(store).await;
    assert_eq!((found.len(), found[0].gone), (1, None));
}

//! Peers that do not keep to the protocol.

use super::*;

#[tokio::test]
async fn garbage_closes_its_own_stream_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::start(directory.path(), options()).await;
    let pipe = plane.create_pipe("events", 1, 2).await;
    let worker = Worker::connect(&plane, "w1").await;
    worker.holds(&pipe, 2).await;
    let mut client = plane.client();
    let hello = || v1::Hello {
        worker: Some(identity("w9")),
        protocol_min: 1,
        protocol_max: 1,
        ..Default::default()
    };
    let cases = [
        (
            Message::Report(v1::Report::default()),
            Code::InvalidArgument,
            "INVALID_FIELD",
        ),
        (
            Message::Leave(v1::Leave::default()),
            Code::InvalidArgument,
            "INVALID_FIELD",
        ),
        (
            Message::Hello(v1::Hello::default()),
            Code::InvalidArgument,
            "INVALID_FIELD",
        ),
        (
            Message::Hello(v1::Hello {
                protocol_min: 7,
                protocol_max: 9,
                ..hello()
            }),
            Code::FailedPrecondition,
            "PROTOCOL_UNSUPPORTED",
        ),
        (
            Message::Hello(v1::Hello {
                worker: Some(identity("no good")),
                ..hello()
            }),
            Code::InvalidArgument,
            "INVALID_FIELD",
        ),
    ];
    for (message, code, reason) in cases {
        let status = refused(&mut client, message).await;
        assert_eq!(
            (status.code(), error::reason(&status).as_deref()),
            (code, Some(reason)),
            "{status}"
        );
    }
    // In the middle of a good session.
    let other = Worker::connect(&plane, "w2").await;
    other.say(Message::Hello(hello())).await;
    let ended = eventually("it is closed", || async { other.ended.borrow().clone() }).await;
    assert_eq!(ended.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(worker.shards(&pipe).len(), 2);
    assert!(worker.ended.borrow().is_none());
}

#[tokio::test]
async fn a_flood_of_reports_ends_the_session() {
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::start(directory.path(), options()).await;
    let worker = Worker::connect(&plane, "w1").await;
    let flood = async {
        while worker.ended.borrow().is_none() {
            let message = Message::Report(v1::Report::default());
            if worker.try_say(message).await.is_err() {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, flood).await.unwrap();
    let ended = eventually("it is closed", || async { worker.ended.borrow().clone() }).await;
    assert_eq!(ended.unwrap_err().code(), Code::ResourceExhausted);
}

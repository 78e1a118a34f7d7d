//! Requests that carry an id are carried out once.

use std::collections::BTreeSet;

use millrace_proto::api::v1::{self as proto, token_service_client::TokenServiceClient};
use tonic::Code;
use uuid::Uuid;

use super::bed::{Bed, PARENT, assert_refused, name};

fn id() -> String {
    Uuid::new_v4().to_string()
}

fn creation(bed: &Bed, pipe: &str, id: &str) -> proto::CreatePipeRequest {
    proto::CreatePipeRequest {
        parent: PARENT.to_owned(),
        pipe_id: pipe.to_owned(),
        pipe: Some(bed.pipe(pipe)),
        request_id: id.to_owned(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_request_that_is_sent_again_is_answered_and_not_carried_out_again() {
    let bed = Bed::start().await;
    bed.create_table("once").await;
    let (id, mut pipes) = (id(), bed.pipes.clone());
    let request = creation(&bed, "once", &id);
    let first = pipes.create_pipe(request.clone()).await.expect("a pipe").into_inner();
    let again = pipes.create_pipe(request.clone()).await.expect("the same").into_inner();
    assert_eq!(first, again);
    // In another form it is the same UUID.
    let shouted = proto::CreatePipeRequest {
        request_id: id.to_uppercase(),
        ..request.clone()
    };
    let other = pipes
        .create_pipe(shouted)
        .await
        .expect_err("another request, by its bytes");
    assert_refused(
        &other,
        Code::InvalidArgument,
        "REQUEST_ID_REUSED",
        "request_id",
        "id of its own",
    );
    let mut changed = request.clone();
    changed.pipe_id = "twice".into();
    let other = pipes.create_pipe(changed).await.expect_err("another request");
    assert_refused(
        &other,
        Code::InvalidArgument,
        "REQUEST_ID_REUSED",
        "request_id",
        "id of its own",
    );

    // What was refused may be tried again under the same id.
    let update = |display_name: &str, id: &str| proto::UpdatePipeRequest {
        pipe: Some(proto::Pipe {
            name: name("once"),
            display_name: display_name.into(),
            ..Default::default()
        }),
        request_id: id.to_owned(),
        ..Default::default()
    };
    let refused = id_of_refused(&bed, update("x".repeat(10_000).as_str(), "")).await;
    let request = update("One", &refused);
    let one = pipes.update_pipe(request.clone()).await.expect("updated").into_inner();
    pipes.update_pipe(update("Two", &self::id())).await.expect("updated");
    // As it was answered, and not as it is now.
    let again = pipes.update_pipe(request).await.expect("the same").into_inner();
    assert_eq!(again, one);
    assert_eq!(bed.get("once").await.expect("the pipe").display_name, "Two");

    let reset = proto::ResetPositionRequest {
        name: name("once"),
        iterator_type: proto::IteratorType::TrimHorizon.into(),
        request_id: self::id(),
        ..Default::default()
    };
    let moved = pipes.reset_position(reset.clone()).await.expect("moved").into_inner();
    assert_eq!(pipes.reset_position(reset).await.expect("the same").into_inner(), moved);
    let back = proto::RollbackPipeRequest {
        name: name("once"),
        revision: 1,
        request_id: self::id(),
        ..Default::default()
    };
    let first = pipes.rollback_pipe(back.clone()).await.expect("back").into_inner();
    assert_eq!(pipes.rollback_pipe(back).await.expect("the same").into_inner(), first);
    let filter = |filter: &str| proto::ListPipeEventsRequest {
        parent: name("once"),
        filter: filter.to_owned(),
        ..Default::default()
    };
    for (kind, count) in [("POSITION_RESET", 1), ("PIPE_UPDATED", 3), ("PIPE_CREATED", 1)] {
        let events = pipes
            .list_pipe_events(filter(&format!("kind = {kind}")))
            .await
            .expect("events");
        assert_eq!(events.into_inner().events.len(), count, "{kind}");
    }

    let delete = proto::DeletePipeRequest {
        name: name("once"),
        request_id: self::id(),
        ..Default::default()
    };
    pipes.delete_pipe(delete.clone()).await.expect("deleted");
    pipes.delete_pipe(delete.clone()).await.expect("the same");
    let other = proto::DeletePipeRequest {
        request_id: self::id(),
        ..delete
    };
    let gone = pipes.delete_pipe(other.clone()).await.expect_err("gone");
    assert_refused(&gone, Code::NotFound, "PIPE_NOT_FOUND", "", "once");
    let gone = pipes.delete_pipe(other).await.expect_err("still gone");
    assert_refused(&gone, Code::NotFound, "PIPE_NOT_FOUND", "", "once");
}

/// An id under which an update was refused.
async fn id_of_refused(bed: &Bed, mut request: proto::UpdatePipeRequest) -> String {
    request.request_id = id();
    let refused = bed
        .pipes
        .clone()
        .update_pipe(request.clone())
        .await
        .expect_err("too long");
    assert_eq!(refused.code(), Code::InvalidArgument);
    request.request_id
}

#[tokio::test]
async fn of_many_at_once_one_is_carried_out() {
    let bed = Bed::start().await;
    bed.create_table("rush").await;
    let request = creation(&bed, "rush", &id());
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (mut pipes, request) = (bed.pipes.clone(), request.clone());
            tokio::spawn(async move { pipes.create_pipe(request).await })
        })
        .collect();
    let mut uids = BTreeSet::new();
    for task in tasks {
        let answer = task.await.expect("no panic").expect("the pipe").into_inner();
        uids.insert(answer.pipe.expect("a pipe").uid);
    }
    assert_eq!(uids.len(), 1, "{uids:?}");
}

#[tokio::test]
async fn credentials_and_tokens_are_made_once() {
    let bed = Bed::start().await;
    let mut credentials = bed.credentials.clone();
    let request = proto::CreateCredentialRequest {
        parent: PARENT.to_owned(),
        credential_id: "once".into(),
        credential: Some(proto::Credential {
            kind: Some(proto::credential::Kind::ClickhouseUser(proto::ClickHouseUser {
                username: "u".into(),
                password: "canary-of-once".into(),
            })),
            ..Default::default()
        }),
        request_id: id(),
    };
    let first = credentials
        .create_credential(request.clone())
        .await
        .expect("made")
        .into_inner();
    let again = credentials
        .create_credential(request.clone())
        .await
        .expect("the same")
        .into_inner();
    assert_eq!(first, again);
    let mut other = request.clone();
    if let Some(proto::credential::Kind::ClickhouseUser(user)) =
        other.credential.as_mut().and_then(|it| it.kind.as_mut())
    {
        user.password = "another".into();
    }
    let other = credentials.create_credential(other).await.expect_err("another secret");
    assert_refused(
        &other,
        Code::InvalidArgument,
        "REQUEST_ID_REUSED",
        "request_id",
        "id of its own",
    );
    let delete = proto::DeleteCredentialRequest {
        name: format!("{PARENT}/credentials/once"),
        request_id: id(),
        ..Default::default()
    };
    credentials.delete_credential(delete.clone()).await.expect("deleted");
    credentials.delete_credential(delete).await.expect("the same");

    let mut tokens = TokenServiceClient::new(bed.channel.clone());
    let request = proto::CreateTokenRequest {
        token: Some(proto::Token {
            display_name: "once".into(),
            role: proto::TokenRole::Viewer.into(),
            ..Default::default()
        }),
        request_id: id(),
        ..Default::default()
    };
    let first = tokens.create_token(request.clone()).await.expect("made").into_inner();
    let again = tokens.create_token(request).await.expect("the same").into_inner();
    assert_eq!((first.secret == again.secret, first.token), (true, again.token));
    let all = tokens
        .list_tokens(proto::ListTokensRequest::default())
        .await
        .expect("tokens");
    assert_eq!(all.into_inner().tokens.len(), 1);
}

#[tokio::test]
async fn an_id_is_a_uuid() {
    let bed = Bed::start().await;
    bed.create_table("ids").await;
    for wrong in [
        "1",
        "00000000-0000-0000-0000-000000000000",
        "' OR 1=1",
        &"f".repeat(100_000),
    ] {
        let refused = bed
            .pipes
            .clone()
            .create_pipe(creation(&bed, "ids", wrong))
            .await
            .expect_err("no UUID");
        assert_refused(
            &refused,
            Code::InvalidArgument,
            "INVALID_FIELD",
            "request_id",
            "must be a UUID",
        );
    }
    // Who only asks has not done anything.
    let mut request = creation(&bed, "ids", &id());
    request.validate_only = true;
    bed.pipes.clone().create_pipe(request.clone()).await.expect("a plan");
    request.validate_only = false;
    bed.pipes.clone().create_pipe(request).await.expect("a pipe");
}

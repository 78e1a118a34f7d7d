//! What happened to a pipe, as users read it.

use std::time::Duration;

use millrace_integration_tests::process::eventually;
use millrace_proto::api::v1::{self as proto, DesiredState};
use tonic::{Code, Status};

use super::bed::{Bed, assert_refused, name};

impl Bed {
    async fn events(&self, id: &str, page_size: i32, token: &str) -> Result<proto::ListPipeEventsResponse, Status> {
        let request = proto::ListPipeEventsRequest {
            parent: name(id),
            page_size,
            page_token: token.into(),
            ..Default::default()
        };
        Ok(self.pipes.clone().list_pipe_events(request).await?.into_inner())
    }
}

#[tokio::test]
async fn what_users_do_is_told_in_order() {
    let bed = Bed::start().await;
    bed.create_table("told").await;
    let created = bed.create("told", bed.pipe("told")).await.expect("a pipe");
    let renamed = proto::Pipe {
        display_name: "Renamed".into(),
        desired_state: DesiredState::Stopped.into(),
        ..created.clone()
    };
    bed.update(renamed, &["display_name", "desired_state"])
        .await
        .expect("renamed");
    let started = proto::Pipe {
        desired_state: DesiredState::Running.into(),
        ..created.clone()
    };
    let started = proto::Pipe {
        etag: String::new(),
        ..started
    };
    bed.update(started, &["desired_state"]).await.expect("started");
    let own = |events: &[proto::PipeEvent]| -> Vec<String> {
        let users = events.iter().filter(|event| event.actor == "user");
        users.map(|event| event.kind.clone()).collect()
    };
    let all = bed.events("told", 0, "").await.expect("events").events;
    assert_eq!(
        own(&all),
        ["PIPE_STARTED", "PIPE_STOPPED", "PIPE_UPDATED", "PIPE_CREATED"]
    );
    let updated = all
        .iter()
        .find(|event| event.kind == "PIPE_UPDATED")
        .expect("an update");
    assert_eq!(updated.details["fields"], "display_name");
    assert_eq!(updated.severity(), proto::EventSeverity::Info);
    assert!(
        updated.event_time.is_some() && updated.event_id.len() == 26,
        "{updated:?}"
    );

    // The state that it shows is told as well, once.
    let told = eventually("the state to be told", Duration::from_secs(20), || async {
        let events = bed.events("told", 0, "").await.expect("events").events;
        events
            .into_iter()
            .find(|event| event.details.get("reason").is_some_and(|reason| reason == "NO_WORKERS"))
    })
    .await
    .expect("told");
    assert_eq!((told.kind.as_str(), told.actor.as_str()), ("STATE_CHANGED", "system"));

    // In pages, whose tokens belong to this pipe.
    let first = bed.events("told", 2, "").await.expect("a page");
    let second = bed.events("told", 500, &first.next_page_token).await.expect("a page");
    let ids: Vec<_> = first
        .events
        .iter()
        .chain(&second.events)
        .map(|event| &event.event_id)
        .collect();
    assert!(first.events.len() == 2 && second.next_page_token.is_empty());
    assert!(ids.is_sorted_by(|a, b| a > b), "{ids:?}");
    bed.create_table("other").await;
    bed.create("other", bed.pipe("other")).await.expect("a pipe");
    let foreign = bed
        .events("other", 2, &first.next_page_token)
        .await
        .expect_err("foreign");
    assert_refused(
        &foreign,
        Code::InvalidArgument,
        "INVALID_PAGE_TOKEN",
        "page_token",
        "start again",
    );
    let missing = bed.events("missing", 0, "").await.expect_err("no pipe");
    assert_refused(&missing, Code::NotFound, "PIPE_NOT_FOUND", "", "missing");
}

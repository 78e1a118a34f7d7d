//! The specifications that a pipe has had, and going back to one.

use millrace_proto::api::v1::{self as proto, DesiredState};
use tonic::{Code, Status};

use super::bed::{Bed, DATABASE, assert_refused, name};

impl Bed {
    async fn revisions(
        &self,
        id: &str,
        page_size: i32,
        token: &str,
    ) -> Result<proto::ListPipeRevisionsResponse, Status> {
        let request = proto::ListPipeRevisionsRequest {
            parent: name(id),
            page_size,
            page_token: token.into(),
        };
        Ok(self.pipes.clone().list_pipe_revisions(request).await?.into_inner())
    }

    async fn rollback(&self, id: &str, revision: i64, etag: &str, validate_only: bool) -> Result<proto::Pipe, Status> {
        let request = proto::RollbackPipeRequest {
            name: name(id),
            revision,
            etag: etag.into(),
            validate_only,
            ..Default::default()
        };
        let response = self.pipes.clone().rollback_pipe(request).await?.into_inner();
        Ok(response.pipe.expect("a pipe"))
    }

    /// A pipe with three revisions, as it is after the first and after the last of them.
    async fn changed_twice(&self, id: &str) -> (proto::Pipe, proto::Pipe) {
        self.create_table(id).await;
        let created = self.create(id, self.pipe(id)).await.expect("a pipe");
        let renamed = proto::Pipe {
            name: name(id),
            display_name: "Renamed".into(),
            ..Default::default()
        };
        self.update(renamed, &["display_name"]).await.expect("renamed");
        let batched = proto::Pipe {
            name: name(id),
            settings: Some(proto::Settings {
                max_batch_rows: 7,
                ..Default::default()
            }),
            desired_state: DesiredState::Stopped.into(),
            ..Default::default()
        };
        let paths = ["settings.max_batch_rows", "desired_state"];
        (created, self.update(batched, &paths).await.expect("batched"))
    }
}

#[tokio::test]
async fn revisions_are_listed_with_what_changed() {
    let bed = Bed::start().await;
    let (created, _) = bed.changed_twice("listed").await;
    let all = bed.revisions("listed", 0, "").await.expect("revisions").revisions;
    let told: Vec<(i64, bool, String)> = all
        .iter()
        .map(|revision| (revision.revision, revision.current, revision.changed_fields.join(",")))
        .collect();
    assert_eq!(
        told,
        [
            (3, true, "settings.max_batch_rows".to_owned()),
            (2, false, "display_name".to_owned()),
            (1, false, String::new()),
        ]
    );
    let first = all[2].pipe.as_ref().expect("a specification");
    assert_eq!(
        (&first.source, &first.destination, first.display_name.as_str()),
        (&created.source, &created.destination, "Events")
    );
    assert!(all.iter().all(|revision| revision.create_time.is_some()));

    let (mut token, mut paged) = (String::new(), Vec::new());
    loop {
        let page = bed.revisions("listed", 1, &token).await.expect("a page");
        assert_eq!(page.revisions.len(), 1);
        paged.extend(page.revisions);
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(paged, all);
    let other = bed.revisions("nobody", 0, "").await.expect_err("no such pipe");
    assert_refused(&other, Code::NotFound, "PIPE_NOT_FOUND", "", "nobody");
    let token = bed.revisions("listed", -1, "").await.expect_err("a negative size");
    assert_refused(&token, Code::InvalidArgument, "INVALID_FIELD", "page_size", "negative");
}

#[tokio::test]
async fn going_back_is_a_change_like_any_other() {
    let bed = Bed::start().await;
    let (created, changed) = bed.changed_twice("back").await;
    let planned = bed.rollback("back", 1, "", true).await.expect("a plan");
    assert_eq!((planned.revision, planned.display_name.as_str()), (4, "Events"));
    assert_eq!(
        bed.get("back").await.expect("the pipe"),
        changed,
        "a plan stores nothing"
    );

    let stale = bed.rollback("back", 1, &created.etag, false).await.expect_err("stale");
    assert_refused(&stale, Code::Aborted, "ETAG_MISMATCH", "", "read it again");
    let back = bed.rollback("back", 1, &changed.etag, false).await.expect("gone back");
    assert_eq!(
        (back.revision, &back.display_name, &back.settings),
        (4, &created.display_name, &created.settings)
    );
    assert_eq!(
        back.desired_state(),
        DesiredState::Stopped,
        "whether it runs is left alone"
    );
    let again = bed.rollback("back", 4, "", false).await.expect("nothing to do");
    assert_eq!((again.revision, &again.etag), (4, &back.etag));

    let request = proto::ListPipeEventsRequest {
        parent: name("back"),
        ..Default::default()
    };
    let events = bed.pipes.clone().list_pipe_events(request).await.expect("events");
    let updated = events.into_inner().events;
    let updated = updated
        .iter()
        .find(|event| event.kind == "PIPE_UPDATED")
        .expect("an update");
    assert_eq!(
        (
            updated.details["back_to"].as_str(),
            updated.details["revision"].as_str()
        ),
        ("1", "4")
    );
    assert_eq!(updated.details["fields"], "display_name,settings.max_batch_rows");

    for revision in [0, -1, i64::MIN] {
        let refused = bed.rollback("back", revision, "", false).await.expect_err("no number");
        assert_refused(
            &refused,
            Code::InvalidArgument,
            "INVALID_FIELD",
            "revision",
            "ListPipeRevisions",
        );
    }
    let missing = bed.rollback("back", 5, "", false).await.expect_err("no such revision");
    assert_refused(
        &missing,
        Code::NotFound,
        "REVISION_NOT_FOUND",
        "revision",
        "ListPipeRevisions",
    );
    let missing = bed.rollback("nobody", 1, "", false).await.expect_err("no such pipe");
    assert_refused(&missing, Code::NotFound, "PIPE_NOT_FOUND", "", "nobody");
}

#[tokio::test]
async fn a_revision_that_does_not_fit_any_more_is_refused() {
    let bed = Bed::start().await;
    bed.create_table("unfit").await;
    let mapping = |column: &str| proto::FieldMapping {
        source_field: "id".into(),
        destination_field: column.into(),
        ..Default::default()
    };
    let mut pipe = bed.pipe("unfit");
    pipe.field_mappings = vec![mapping("id"), mapping("name")];
    bed.create("unfit", pipe).await.expect("a pipe");
    let narrower = proto::Pipe {
        name: name("unfit"),
        field_mappings: vec![mapping("id")],
        ..Default::default()
    };
    let narrower = bed.update(narrower, &["field_mappings"]).await.expect("narrower");
    bed.sql(&format!("ALTER TABLE {DATABASE}.unfit DROP COLUMN name")).await;
    let refused = bed
        .rollback("unfit", 1, "", false)
        .await
        .expect_err("the column is gone");
    let field = "pipe.field_mappings[1].destination_field";
    assert_refused(
        &refused,
        Code::FailedPrecondition,
        "DESTINATION_COLUMN_NOT_FOUND",
        field,
        "name",
    );
    assert_eq!(bed.get("unfit").await.expect("the pipe").revision, narrower.revision);
}

//! A pipe from its creation to its end.

use std::time::Duration;

use millrace_integration_tests::process::eventually;
use millrace_proto::api::v1::{self as proto, DesiredState, PipeState};
use tonic::Code;

use super::bed::{Bed, PARENT, assert_refused, destination_of, kinesis_of, name, status_of};

#[tokio::test]
async fn a_pipe_is_created_read_changed_and_deleted() {
    let bed = Bed::start().await;
    bed.create_table("life").await;
    let created = bed.create("life", bed.pipe("life")).await.expect("a pipe");
    assert_eq!(created.name, name("life"));
    assert_eq!((created.revision, created.uid.len()), (1, 36));
    assert_eq!(destination_of(&mut created.clone()).error_table, "life_millrace_error");
    assert_eq!(
        created.settings.as_ref().map(|settings| settings.max_batch_rows),
        Some(100_000)
    );
    let status = status_of(&created);
    assert_eq!(
        (status.state(), status.reason.as_str()),
        (PipeState::Provisioning, "NO_WORKERS")
    );
    assert_eq!(
        status.effective_delivery(),
        proto::Delivery::ExactlyOnce,
        "{}",
        status.effective_delivery_reason
    );
    let shards: Vec<&str> = status.shards.iter().map(|shard| shard.shard_id.as_str()).collect();
    assert_eq!(shards, ["shardId-000000000000", "shardId-000000000001"]);
    assert!(created.reconciling);

    let again = bed.create("life", bed.pipe("life")).await.expect_err("taken");
    assert_refused(&again, Code::AlreadyExists, "ALREADY_EXISTS", "", "life");
    assert_eq!(bed.get("life").await.expect("the pipe"), created);

    // What was read can be written back, and changes nothing.
    let same = bed.update(created.clone(), &["*"]).await.expect("no change");
    assert_eq!((same.revision, &same.etag), (1, &created.etag));

    let renamed = proto::Pipe {
        display_name: "Renamed".into(),
        ..created.clone()
    };
    let renamed = bed.update(renamed, &["display_name"]).await.expect("a new name");
    assert_eq!((renamed.revision, renamed.display_name.as_str()), (2, "Renamed"));
    assert_ne!(renamed.etag, created.etag);

    let stale = bed.update(created.clone(), &["display_name"]).await.expect_err("stale");
    assert_refused(&stale, Code::Aborted, "ETAG_MISMATCH", "", "read it again");
    let stale = bed.delete("life", &created.etag, false).await.expect_err("stale");
    assert_refused(&stale, Code::Aborted, "ETAG_MISMATCH", "", "read it again");

    bed.delete("life", &renamed.etag, false).await.expect("deleted");
    assert_refused(
        &bed.get("life").await.expect_err("gone"),
        Code::NotFound,
        "PIPE_NOT_FOUND",
        "",
        "life",
    );
    let gone = bed.delete("life", "", false).await.expect_err("gone");
    assert_refused(&gone, Code::NotFound, "PIPE_NOT_FOUND", "", "life");
    bed.delete("life", "", true).await.expect("allowed to be missing");
    let gone = bed.update(renamed, &["display_name"]).await.expect_err("gone");
    assert_refused(&gone, Code::NotFound, "PIPE_NOT_FOUND", "", "life");
    assert_eq!(
        bed.sql("SELECT count() FROM api_tests.life").await.trim(),
        "0",
        "tables stay"
    );
}

#[tokio::test]
async fn a_pipe_stops_and_starts() {
    let bed = Bed::start().await;
    bed.create_table("stops").await;
    let mut pipe = bed.pipe("stops");
    pipe.desired_state = DesiredState::Stopped.into();
    let created = bed.create("stops", pipe).await.expect("a stopped pipe");
    assert_eq!(
        (status_of(&created).state(), created.reconciling),
        (PipeState::Stopped, false)
    );

    let want = |state: DesiredState| proto::Pipe {
        name: name("stops"),
        desired_state: state.into(),
        ..Default::default()
    };
    let started = bed
        .update(want(DesiredState::Running), &["desired_state"])
        .await
        .expect("started");
    assert_eq!((started.desired_state(), started.revision), (DesiredState::Running, 1));
    assert_eq!(status_of(&started).state(), PipeState::Provisioning);
    // Without a mask, what is set counts.
    let stopped = bed.update(want(DesiredState::Stopped), &[]).await.expect("stopped");
    assert_eq!(status_of(&stopped).state(), PipeState::Stopped);
    assert_eq!(stopped.display_name, "Events");
}

#[tokio::test]
async fn what_gives_positions_their_meaning_cannot_change() {
    let bed = Bed::start().await;
    bed.create_table("fixed").await;
    let created = bed.create("fixed", bed.pipe("fixed")).await.expect("a pipe");
    bed.kinesis.create_stream("other", 1).expect("another stream");

    type Change = fn(&mut proto::Pipe);
    let changes: [(Change, &str, &str); 3] = [
        (
            |pipe| kinesis_of(pipe).stream_name = "other".into(),
            "source",
            "pipe.source.kinesis.stream_name",
        ),
        (
            |pipe| kinesis_of(pipe).region = "eu-central-1".into(),
            "source.kinesis.region",
            "pipe.source.kinesis.region",
        ),
        (
            |pipe| kinesis_of(pipe).iterator_type = proto::IteratorType::Latest.into(),
            "source.kinesis.iterator_type",
            "pipe.source.kinesis.iterator_type",
        ),
    ];
    for (change, path, field) in changes {
        let mut pipe = created.clone();
        change(&mut pipe);
        let status = bed.update(pipe, &[path]).await.expect_err(path);
        assert_refused(
            &status,
            Code::InvalidArgument,
            "IMMUTABLE_FIELD",
            field,
            "create a new pipe",
        );
    }
    let mut other = created.clone();
    other.uid = "00000000-0000-4000-8000-000000000000".into();
    let status = bed.update(other, &["display_name"]).await.expect_err("another pipe");
    assert_refused(
        &status,
        Code::InvalidArgument,
        "IMMUTABLE_FIELD",
        "pipe.uid",
        "deleted and created again",
    );
    let status = bed
        .update(created.clone(), &["status"])
        .await
        .expect("output only is ignored");
    assert_eq!(status.etag, created.etag);
    let status = bed.update(created, &["nope"]).await.expect_err("no such field");
    assert_refused(
        &status,
        Code::InvalidArgument,
        "INVALID_FIELD",
        "update_mask",
        "settings",
    );
}

#[tokio::test]
async fn a_new_table_is_checked_before_it_is_taken() {
    let bed = Bed::start().await;
    bed.create_table("first").await;
    bed.create_table("second").await;
    let created = bed.create("moves", bed.pipe("first")).await.expect("a pipe");

    let mut bad = created.clone();
    destination_of(&mut bad).table = "nowhere".into();
    let status = bed
        .update(bad, &["destination.table"])
        .await
        .expect_err("no such table");
    assert_refused(
        &status,
        Code::FailedPrecondition,
        "DESTINATION_TABLE_NOT_FOUND",
        "pipe.destination.table",
        "",
    );
    assert_eq!(bed.get("moves").await.expect("the pipe").etag, created.etag);

    let mut good = created.clone();
    destination_of(&mut good).table = "second".into();
    destination_of(&mut good).error_table = String::new();
    let request = proto::UpdatePipeRequest {
        pipe: Some(good.clone()),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["destination.table".into(), "destination.error_table".into()],
        }),
        validate_only: true,
        ..Default::default()
    };
    let planned = bed
        .pipes
        .clone()
        .update_pipe(request)
        .await
        .expect("checked")
        .into_inner()
        .pipe
        .expect("a pipe");
    assert_eq!(planned.revision, 2);
    assert_eq!(
        bed.get("moves").await.expect("the pipe"),
        created,
        "checking changes nothing"
    );
    let missing = "SELECT count() FROM system.tables WHERE name = 'second_millrace_error'";
    assert_eq!(bed.sql(missing).await.trim(), "0");

    let moved = bed
        .update(good, &["destination.table", "destination.error_table"])
        .await
        .expect("moved");
    assert_eq!(
        (moved.revision, destination_of(&mut moved.clone()).table.as_str()),
        (2, "second")
    );
    assert_eq!(bed.sql(missing).await.trim(), "1");
}

#[tokio::test]
async fn updates_without_an_etag_lose_nothing() {
    let bed = Bed::start().await;
    bed.create_table("busy").await;
    bed.create("busy", bed.pipe("busy")).await.expect("a pipe");
    let updates = (0..4_u32).flat_map(|n| {
        let name = proto::Pipe {
            name: name("busy"),
            display_name: format!("n{n}"),
            ..Default::default()
        };
        let scaling = Some(proto::Scaling { replicas: n + 2 });
        let scaled = proto::Pipe {
            name: self::name("busy"),
            scaling,
            ..Default::default()
        };
        [(name, "display_name"), (scaled, "scaling")]
    });
    let updates: Vec<_> = updates.collect();
    let results = futures::future::join_all(updates.into_iter().map(|(pipe, path)| {
        let bed = &bed;
        async move { bed.update(pipe, &[path]).await }
    }))
    .await;
    let done = results.iter().filter(|result| result.is_ok()).count();
    for result in results {
        if let Err(status) = result {
            assert_refused(&status, Code::Aborted, "ETAG_MISMATCH", "", "");
        }
    }
    let pipe = bed.get("busy").await.expect("the pipe");
    assert_eq!(pipe.revision, 1 + i64::try_from(done).expect("few"));
    assert!(
        pipe.display_name.starts_with('n') && pipe.scaling.expect("scaling").replicas >= 2,
        "both kinds arrived"
    );
}

#[tokio::test]
async fn pages_come_in_name_order_and_tokens_cannot_be_forged() {
    let bed = Bed::start().await;
    bed.create_table("pages").await;
    for id in ["c", "a", "e", "b", "d"] {
        bed.create(id, bed.pipe("pages")).await.expect("a pipe");
    }
    let list = |page_size: i32, page_token: String| {
        let mut client = bed.pipes.clone();
        let request = proto::ListPipesRequest {
            parent: PARENT.into(),
            page_size,
            page_token,
            view: 0,
            ..Default::default()
        };
        async move { client.list_pipes(request).await.map(tonic::Response::into_inner) }
    };
    let mut names = Vec::new();
    let mut token = String::new();
    loop {
        let page = list(2, token).await.expect("a page");
        assert!(
            page.pipes.iter().all(|pipe| status_of(pipe).shards.is_empty()),
            "lists are brief"
        );
        names.extend(page.pipes.into_iter().map(|pipe| pipe.name));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["a", "b", "c", "d", "e"].map(name));
    assert_eq!(list(0, String::new()).await.expect("a page").pipes.len(), 5);

    let status = list(-1, String::new()).await.expect_err("negative");
    assert_refused(&status, Code::InvalidArgument, "INVALID_FIELD", "page_size", "");
    let status = list(2, "Zm9yZ2Vk".into()).await.expect_err("forged");
    assert_refused(
        &status,
        Code::InvalidArgument,
        "INVALID_PAGE_TOKEN",
        "page_token",
        "start again",
    );
    let real = list(2, String::new()).await.expect("a page").next_page_token;
    let elsewhere = proto::ListCredentialsRequest {
        parent: PARENT.into(),
        page_size: 2,
        page_token: real.clone(),
    };
    let status = bed
        .credentials
        .clone()
        .list_credentials(elsewhere)
        .await
        .expect_err("another listing");
    assert_refused(&status, Code::InvalidArgument, "INVALID_PAGE_TOKEN", "page_token", "");
    let elsewhere = proto::ListPipesRequest {
        parent: "projects/other".into(),
        page_size: 2,
        page_token: real,
        view: 0,
        ..Default::default()
    };
    let status = bed
        .pipes
        .clone()
        .list_pipes(elsewhere)
        .await
        .expect_err("another project");
    assert_refused(&status, Code::InvalidArgument, "INVALID_PAGE_TOKEN", "page_token", "");
}

#[tokio::test]
async fn health_and_reflection_are_served_and_the_end_is_orderly() {
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
    let bed = Bed::start().await;
    let mut health = HealthClient::new(bed.channel.clone());
    for service in [
        "",
        "millrace.api.v1.PipeService",
        "millrace.api.v1.CredentialService",
        "millrace.worker.v1.WorkerService",
    ] {
        let answer = health
            .check(HealthCheckRequest {
                service: service.into(),
            })
            .await
            .expect(service);
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service}");
    }
    // A watcher must not hold up the end.
    bed.create_table("watched_end").await;
    bed.create("end", bed.pipe("watched_end")).await.expect("a pipe");
    let request = proto::WatchPipeRequest {
        name: name("end"),
        interval: None,
    };
    let mut watch = bed
        .pipes
        .clone()
        .watch_pipe(request)
        .await
        .expect("a stream")
        .into_inner();
    watch.message().await.expect("a message").expect("the first");
    bed.shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(20), bed.running.stopped()).await;
    ended.expect("ends in time").expect("ends in order");
    let last = eventually("the stream ends", Duration::from_secs(5), || async {
        let mut client = proto::pipe_service_client::PipeServiceClient::new(bed.channel.clone());
        client
            .get_pipe(proto::GetPipeRequest {
                name: name("end"),
                view: 0,
            })
            .await
            .is_err()
    });
    last.await.expect("nobody answers any more");
}

//! Listings with filters.

use millrace_proto::api::v1 as proto;
use tonic::Code;

use super::bed::{Bed, PARENT, assert_refused, name};

async fn list(bed: &Bed, filter: &str, size: i32) -> Result<Vec<String>, tonic::Status> {
    let (mut token, mut names) = (String::new(), Vec::new());
    loop {
        let request = proto::ListPipesRequest {
            parent: PARENT.to_owned(),
            page_size: size,
            page_token: token,
            filter: filter.to_owned(),
            ..Default::default()
        };
        let page = bed.pipes.clone().list_pipes(request).await?.into_inner();
        assert!(page.pipes.len() <= usize::try_from(size).expect("a size"));
        names.extend(
            page.pipes
                .into_iter()
                .map(|pipe| pipe.name.rsplit('/').next().unwrap_or_default().to_owned()),
        );
        token = page.next_page_token;
        if token.is_empty() {
            return Ok(names);
        }
    }
}

#[tokio::test]
async fn pipes_are_listed_by_what_they_are() {
    let bed = Bed::start().await;
    for (at, id) in ["filter-a", "filter-b", "filter-c", "filter-d", "filter-e"]
        .into_iter()
        .enumerate()
    {
        let table = id.replace('-', "_");
        bed.create_table(&table).await;
        let mut pipe = bed.pipe(&table);
        pipe.annotations.insert("place".into(), at.to_string());
        if at % 2 == 0 {
            pipe.desired_state = proto::DesiredState::Stopped.into();
        }
        bed.create(id, pipe).await.expect("a pipe");
    }
    for size in [1, 2, 50] {
        let listed = list(&bed, "desired_state = STOPPED", size).await.expect("pipes");
        assert_eq!(listed, ["filter-a", "filter-c", "filter-e"]);
        let listed = list(&bed, "status.state = STOPPED annotations.place != 2", size)
            .await
            .expect("pipes");
        assert_eq!(listed, ["filter-a", "filter-e"]);
        let listed = list(&bed, "destination.table = filter_b OR name = */filter-d", size)
            .await
            .expect("pipes");
        assert_eq!(listed, ["filter-b", "filter-d"]);
        assert!(list(&bed, "annotations:nothing", size).await.expect("none").is_empty());
    }
    let refused = list(&bed, "colour = red", 50).await.expect_err("no such field");
    assert_refused(
        &refused,
        Code::InvalidArgument,
        "INVALID_FILTER",
        "filter",
        "at character 1",
    );

    // A token leads on under its own filter only.
    let request = |filter: &str, token: &str| proto::ListPipesRequest {
        parent: PARENT.to_owned(),
        page_size: 1,
        page_token: token.to_owned(),
        filter: filter.to_owned(),
        ..Default::default()
    };
    let page = bed
        .pipes
        .clone()
        .list_pipes(request("desired_state = STOPPED", ""))
        .await
        .expect("a page");
    let token = page.into_inner().next_page_token;
    let refused = bed
        .pipes
        .clone()
        .list_pipes(request("", &token))
        .await
        .expect_err("another listing");
    assert_refused(
        &refused,
        Code::InvalidArgument,
        "INVALID_PAGE_TOKEN",
        "page_token",
        "of this listing",
    );

    let events = |filter: &str| proto::ListPipeEventsRequest {
        parent: name("filter-a"),
        filter: filter.to_owned(),
        ..Default::default()
    };
    let found = bed
        .pipes
        .clone()
        .list_pipe_events(events("kind = PIPE_* AND severity = INFO"))
        .await
        .expect("events");
    assert_eq!(found.into_inner().events.len(), 1);
    let found = bed
        .pipes
        .clone()
        .list_pipe_events(events("severity = ERROR"))
        .await
        .expect("none");
    assert!(found.into_inner().events.is_empty());
}

//! What a pipe rejected, listed and counted from a real error table that other pipes share.

use millrace_proto::api::v1::{
    self as proto, rejected_record::Payload, rejected_record_service_client::RejectedRecordServiceClient,
};
use tonic::{Code, Status};

use super::bed::{Bed, DATABASE, assert_refused, destination_of, name};

/// A large payload: the engine's `repeat` makes less.
const MEBIBYTE: &str = "concat(repeat('x', 524288), repeat('x', 524288))";

/// A name that would end a statement, or stand for a value, if it were not quoted.
const ERRORS: &str = "errors of `it`? '; DROP TABLE x--";

struct Errors {
    bed: Bed,
    uid: String,
}

impl Errors {
    async fn start(id: &str) -> Self {
        let bed = Bed::start().await;
        bed.create_table(id).await;
        let mut pipe = bed.pipe(id);
        destination_of(&mut pipe).error_table = format!("{id} {ERRORS}");
        let uid = bed.create(id, pipe).await.expect("created").uid;
        Self { bed, uid }
    }

    /// Adds rows: time in milliseconds, class, an expression for the payload, sequence number.
    async fn add(&self, id: &str, pipe: &str, rows: &[(i64, &str, &str, &str)]) {
        let table = format!("{id} {ERRORS}").replace('`', "\\`");
        let values: Vec<String> = rows
            .iter()
            .map(|(millis, class, payload, number)| {
                let class = class.replace('\'', "''");
                format!(
                    "(fromUnixTimestamp64Milli({millis}), '{class}', 'it''s \"bad\"', 'k', {payload}, \
                     fromUnixTimestamp64Milli({millis}), 'shardId-000000000000', '{number}', 0, '{pipe}', 'a.b', 'B')"
                )
            })
            .collect();
        let columns = "error_timestamp, error_type, error_msg, record_key, record_value, record_timestamp, shard_id, \
                       sequence_number, sub_sequence_number, pipe_id, field_path, batch_id";
        let values = values.join(", ");
        self.bed
            .sql(&format!("INSERT INTO {DATABASE}.`{table}` ({columns}) VALUES {values}"))
            .await;
    }

    async fn list(
        &self,
        request: proto::ListRejectedRecordsRequest,
    ) -> Result<proto::ListRejectedRecordsResponse, Status> {
        let mut client = RejectedRecordServiceClient::new(self.bed.channel.clone());
        Ok(client.list_rejected_records(request).await?.into_inner())
    }

    async fn all(&self, mut request: proto::ListRejectedRecordsRequest) -> Vec<proto::RejectedRecord> {
        let mut all = Vec::new();
        loop {
            let page = self.list(request.clone()).await.expect("a page");
            assert!(request.page_size == 0 || page.rejected_records.len() <= request.page_size as usize);
            all.extend(page.rejected_records);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return all;
            }
        }
    }
}

fn of(id: &str) -> proto::ListRejectedRecordsRequest {
    proto::ListRejectedRecordsRequest {
        parent: name(id),
        ..Default::default()
    }
}

fn numbers(records: &[proto::RejectedRecord]) -> Vec<&str> {
    records.iter().map(|record| record.sequence_number.as_str()).collect()
}

/// Some time: how long the table keeps a row counts from when it was written.
const NOW: i64 = 1_790_000_000_000;

#[tokio::test]
async fn rejected_records_are_listed_in_order_page_by_page() {
    let errors = Errors::start("rejected").await;
    let rows = [
        (NOW, "it's", "unhex('ff00')", "9"),
        (NOW, "too_deep", "'{\"a\":1}'", "10"),
        (NOW + 1, "too_deep", MEBIBYTE, "11"),
        (NOW + 2, "too_deep", MEBIBYTE, "12"),
        (NOW + 3, "too_deep", MEBIBYTE, "13"),
    ];
    errors.add("rejected", &errors.uid, &rows).await;
    errors
        .add("rejected", "another pipe", &[(NOW, "too_deep", "'no'", "14")])
        .await;

    let newest = errors.all(of("rejected")).await;
    assert_eq!(numbers(&newest), ["13", "12", "11", "10", "9"]);
    assert_eq!(newest[4].payload, Some(Payload::Binary(vec![0xff, 0])));
    assert_eq!(newest[3].payload, Some(Payload::Text("{\"a\":1}".into())));
    assert_eq!(newest[3].error_message, "it's \"bad\"");
    let oldest = proto::ListRejectedRecordsRequest {
        order_by: "error_time".into(),
        page_size: 1,
        ..of("rejected")
    };
    assert_eq!(numbers(&errors.all(oldest).await), ["9", "10", "11", "12", "13"]);

    let narrow = |filter| proto::ListRejectedRecordsRequest {
        filter: Some(filter),
        ..of("rejected")
    };
    let class = proto::RejectedRecordFilter {
        error_type: "it's".into(),
        ..Default::default()
    };
    assert_eq!(numbers(&errors.all(narrow(class)).await), ["9"]);
    let at = |millis: i64| {
        Some(prost_types::Timestamp {
            seconds: millis / 1000,
            nanos: (millis % 1000) as i32 * 1_000_000,
        })
    };
    let between = proto::RejectedRecordFilter {
        start_time: at(NOW + 1),
        end_time: at(NOW + 3),
        ..Default::default()
    };
    assert_eq!(numbers(&errors.all(narrow(between)).await), ["12", "11"]);

    let request = proto::CountRejectedRecordsRequest {
        parent: name("rejected"),
        filter: None,
    };
    let mut client = RejectedRecordServiceClient::new(errors.bed.channel.clone());
    let counted = client
        .count_rejected_records(request)
        .await
        .expect("counted")
        .into_inner();
    assert_eq!(counted.total_count, 5);
    let counts: Vec<_> = counted
        .counts
        .iter()
        .map(|count| (count.error_type.as_str(), count.record_count))
        .collect();
    assert_eq!(counts, [("too_deep", 4), ("it's", 1)]);
    assert_eq!(
        (counted.counts[0].first_error_time, counted.counts[0].last_error_time),
        (at(NOW), at(NOW + 3))
    );
}

#[tokio::test]
async fn what_cannot_be_listed_is_refused() {
    let errors = Errors::start("refusing").await;
    let (invalid, reason) = (Code::InvalidArgument, "INVALID_FIELD");
    let request = proto::ListRejectedRecordsRequest {
        page_size: -1,
        ..of("refusing")
    };
    let status = errors.list(request).await.expect_err("negative");
    assert_refused(&status, invalid, reason, "page_size", "must not be negative");
    let request = proto::ListRejectedRecordsRequest {
        order_by: "1; DROP TABLE x".into(),
        ..of("refusing")
    };
    let status = errors.list(request).await.expect_err("no such order");
    assert_refused(&status, invalid, reason, "order_by", "error_time");
    let status = errors.list(of("nobody")).await.expect_err("no such pipe");
    assert_refused(&status, Code::NotFound, "PIPE_NOT_FOUND", "", "there is no");
    let request = proto::ListRejectedRecordsRequest {
        page_token: "x".into(),
        ..of("refusing")
    };
    let status = errors.list(request).await.expect_err("no such token");
    assert_refused(&status, invalid, "INVALID_PAGE_TOKEN", "page_token", "start again");
    let empty = errors.list(of("refusing")).await.expect("an empty list");
    assert_eq!((empty.rejected_records.len(), empty.next_page_token.as_str()), (0, ""));
}

#[tokio::test]
async fn what_is_discarded_is_gone_and_nothing_else() {
    let errors = Errors::start("discarding").await;
    let rows = [
        (NOW, "it's", "'a'", "1"),
        (NOW + 1, "too_deep", "'b'", "2"),
        (NOW + 2, "too_deep", "'c'", "3"),
        (NOW + 3, "too_deep", "'d'", "4"),
    ];
    errors.add("discarding", &errors.uid, &rows).await;
    errors
        .add("discarding", "another pipe", &[(NOW, "too_deep", "'no'", "5")])
        .await;
    // Rejected after it is called, as the clock of a worker may have it.
    let later = jiff::Timestamp::now().as_millisecond() + 3_600_000;
    errors
        .add("discarding", &errors.uid, &[(later, "it's", "'e'", "6")])
        .await;
    let discard = async |request: proto::DiscardRejectedRecordsRequest| {
        let mut client = RejectedRecordServiceClient::new(errors.bed.channel.clone());
        let request = proto::DiscardRejectedRecordsRequest {
            parent: name("discarding"),
            ..request
        };
        Ok::<_, Status>(client.discard_rejected_records(request).await?.into_inner())
    };
    let class = |class: &str| {
        Some(proto::RejectedRecordFilter {
            error_type: class.into(),
            ..Default::default()
        })
    };
    for (filter, all) in [
        (None, false),
        (Some(proto::RejectedRecordFilter::default()), false),
        (class("it's"), true),
    ] {
        let request = proto::DiscardRejectedRecordsRequest {
            filter,
            all,
            ..Default::default()
        };
        let status = discard(request).await.expect_err("which?");
        assert_refused(&status, Code::InvalidArgument, "INVALID_FIELD", "all", "filter");
    }
    let of_class = proto::DiscardRejectedRecordsRequest {
        filter: class("too_deep"),
        validate_only: true,
        ..Default::default()
    };
    let counted = discard(of_class.clone()).await.expect("a count");
    assert_eq!((counted.record_count, counted.pending), (3, false));
    assert_eq!(numbers(&errors.all(of("discarding")).await), ["6", "4", "3", "2", "1"]);
    let discarded = discard(proto::DiscardRejectedRecordsRequest {
        validate_only: false,
        ..of_class
    })
    .await
    .expect("deleted");
    assert_eq!((discarded.record_count, discarded.pending), (3, false));
    assert_eq!(numbers(&errors.all(of("discarding")).await), ["6", "1"]);
    let all = proto::DiscardRejectedRecordsRequest {
        all: true,
        ..Default::default()
    };
    assert_eq!(discard(all.clone()).await.expect("deleted").record_count, 1);
    assert_eq!(discard(all).await.expect("nothing").record_count, 0);
    assert_eq!(numbers(&errors.all(of("discarding")).await), ["6"]);
    let table = format!("discarding {ERRORS}").replace('`', "\\`");
    let others = format!("SELECT count() FROM {DATABASE}.`{table}` WHERE pipe_id = 'another pipe'");
    assert_eq!(errors.bed.sql(&others).await.trim(), "1");

    let request = proto::ListPipeEventsRequest {
        parent: name("discarding"),
        ..Default::default()
    };
    let events = errors
        .bed
        .pipes
        .clone()
        .list_pipe_events(request)
        .await
        .expect("events");
    let told: Vec<_> = events
        .into_inner()
        .events
        .into_iter()
        .filter(|event| event.kind == "REJECTED_DISCARDED")
        .map(|event| (event.actor, event.details["records"].clone()))
        .collect();
    let of_user = |records: &str| ("user".to_owned(), records.to_owned());
    assert_eq!(told, [of_user("1"), of_user("3")]);
}

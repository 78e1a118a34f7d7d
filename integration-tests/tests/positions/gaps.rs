//! Positions that are older than what the stream holds: never silent, and no false alarm.

use std::time::Duration;

use millrace_integration_tests::process::eventually;
use millrace_proto::api::v1::{self as proto, DataGapPolicy, PipeState};

use super::bed::{Bed, HOUR, LIMIT, STREAM, each};

impl Bed {
    /// Waits until all shards are known to be complete up to now.
    async fn until_complete(&self, id: &str) {
        eventually("complete", LIMIT, || async {
            let shards = self.get(id).await.status.expect("a status").shards;
            let now = self.clock.now().as_second();
            let late =
                |shard: &&proto::ShardStatus| shard.complete_until_time.is_none_or(|time| time.seconds < now - 120);
            match shards.iter().find(late) {
                None => Ok(()),
                Some(late) => Err(anyhow::anyhow!("{late:?}")),
            }
        })
        .await
        .expect("in time");
    }
}

async fn a_checkpoint_that_is_too_old(table: &str, refuse: bool) {
    let bed = Bed::start(1, refuse).await;
    bed.running(table).await;
    let worker = bed.worker("a");
    bed.put(0..10);
    bed.until_rows(table, &each(0..10, 1)).await;
    bed.until_complete(table).await;
    worker.crash();
    bed.advance(HOUR);
    bed.put(10..20);
    bed.advance(HOUR * 30);
    bed.put(20..30);
    let worker = bed.worker("b");
    bed.until_state(table, PipeState::Failed, "SOURCE_POSITION_EXPIRED")
        .await;
    let told = bed.until_events(table, "DATA_GAP", 1).await;
    assert_eq!(told.len(), 1, "{told:?}");
    let details = &told[0].details;
    assert_eq!(told[0].shard_id, "shardId-000000000000");
    assert_eq!(details["policy"], "HALT");
    assert!(
        details["after_sequence_number"].len() > 20
            && details.contains_key("from_time")
            && details.contains_key("to_time"),
        "{details:?}"
    );
    assert_eq!(bed.rows(table).await, each(0..10, 1), "it stands still");

    bed.on_data_gap(table, DataGapPolicy::Resume).await;
    bed.until_rows(table, &each((0..10).chain(20..30), 1)).await;
    bed.until_state(table, PipeState::Running, "").await;
    let told = bed.events(table, "DATA_GAP").await;
    assert_eq!(
        (told.len(), told[0].details["policy"].as_str()),
        (2, "RESUME"),
        "{told:?}"
    );
    drop(worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_kinesis_refuses_is_a_gap() {
    a_checkpoint_that_is_too_old("refused", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_behind_which_kinesis_silently_goes_on_is_a_gap() {
    a_checkpoint_that_is_too_old("silent", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_gone_is_a_gap_and_its_children_go_on() {
    let bed = Bed::start(1, true).await;
    bed.running("gone").await;
    bed.on_data_gap("gone", DataGapPolicy::Resume).await;
    let worker = bed.worker("a");
    bed.put(0..10);
    bed.until_rows("gone", &each(0..10, 1)).await;
    worker.crash();
    bed.put(10..20);
    bed.kinesis.split_shard(STREAM, "shardId-000000000000").expect("split");
    bed.advance(HOUR * 30);
    bed.put(20..40);
    let worker = bed.worker("b");
    bed.until_rows("gone", &each((0..10).chain(20..40), 1)).await;
    let told = bed.until_events("gone", "DATA_GAP", 1).await;
    assert!(
        told.iter().any(|event| event.shard_id == "shardId-000000000000"),
        "{told:?}"
    );
    drop(worker);
}

async fn a_shard_that_was_idle_for_longer(table: &str, refuse: bool) {
    let bed = Bed::start(2, refuse).await;
    bed.running(table).await;
    let worker = bed.worker("a");
    bed.put(0..20);
    bed.until_rows(table, &each(0..20, 1)).await;
    // In two steps, in each of which the reader is seen at the tip: a jump would be a reader that was away.
    bed.advance(HOUR * 12);
    bed.until_complete(table).await;
    bed.advance(HOUR * 13);
    bed.until_complete(table).await;
    worker.crash();
    bed.put(20..40);
    let worker = bed.worker("b");
    bed.until_rows(table, &each(0..40, 1)).await;
    bed.until_state(table, PipeState::Running, "").await;
    assert!(bed.events(table, "DATA_GAP").await.is_empty(), "no false alarm");
    drop(worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_shard_outlives_retention_where_its_number_is_refused() {
    a_shard_that_was_idle_for_longer("idlerefused", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_shard_outlives_retention_where_kinesis_goes_on() {
    a_shard_that_was_idle_for_longer("idlesilent", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_batch_whose_records_are_gone_is_given_up_only_if_asked() {
    let bed = Bed::start(2, true).await;
    bed.running("batch").await;
    let worker = bed.worker("a");
    bed.put(0..20);
    bed.until_rows("batch", &each(0..20, 1)).await;
    bed.until_complete("batch").await;
    bed.shut(true);
    bed.put(20..40);
    bed.until_state("batch", PipeState::Degraded, "DESTINATION_UNREACHABLE")
        .await;
    worker.crash();
    bed.advance(HOUR * 30);
    bed.put(40..60);
    bed.shut(false);
    let worker = bed.worker("b");
    bed.until_state("batch", PipeState::Failed, "SOURCE_POSITION_EXPIRED")
        .await;
    let told = bed.until_events("batch", "DATA_GAP", 1).await;
    assert!(told[0].details.contains_key("batch"), "{told:?}");
    assert!(told[0].details["batch_content"].starts_with("20 rows of "), "{told:?}");
    assert_eq!(bed.rows("batch").await, each(0..20, 1), "it stands still");

    bed.on_data_gap("batch", DataGapPolicy::Resume).await;
    // The way was shut before the batch was sent, so its rows are not there.
    bed.until_rows("batch", &each((0..20).chain(40..60), 1)).await;
    bed.until_state("batch", PipeState::Running, "").await;
    let told = bed.events("batch", "DATA_GAP").await;
    let given_up = told
        .iter()
        .find(|event| event.details["policy"] == "RESUME" && event.details.contains_key("batch"));
    assert!(
        given_up.is_some_and(|event| event.message.contains("may be in the table or not")),
        "{told:?}"
    );
    drop(worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn iterators_that_expire_cost_nothing() {
    let bed = Bed::start(2, false).await;
    bed.running("expiry").await;
    let worker = bed.worker("a");
    for round in 0..6 {
        bed.put(round * 50..(round + 1) * 50);
        // Wherever the readers are: before an iterator, before a read, with pages on the way.
        bed.advance(Duration::from_secs(6 * 60));
        bed.until_rows("expiry", &each(0..(round + 1) * 50, 1)).await;
    }
    bed.until_state("expiry", PipeState::Running, "").await;
    assert!(bed.events("expiry", "DATA_GAP").await.is_empty());
    drop(worker);
}

/// An open batch that begins at the oldest record there was when it was read, half of which is gone when it is replayed.
async fn an_open_batch_that_has_lost_its_first_records(table: &str, refuse: bool) {
    let bed = Bed::start(1, refuse).await;
    bed.put(0..10);
    bed.advance(HOUR * 20);
    bed.put(10..20);
    bed.running(table).await;
    bed.shut(true);
    let worker = bed.worker("a");
    bed.until_state(table, PipeState::Degraded, "DESTINATION_UNREACHABLE")
        .await;
    worker.crash();
    bed.advance(HOUR * 6);
    bed.put(20..30);
    bed.shut(false);
    let worker = bed.worker("b");
    bed.until_state(table, PipeState::Failed, "SOURCE_POSITION_EXPIRED")
        .await;
    let told = bed.until_events(table, "DATA_GAP", 1).await;
    assert_eq!(told[0].shard_id, "shardId-000000000000");
    assert!(told[0].details.contains_key("batch"), "{told:?}");
    assert!(bed.rows(table).await.is_empty(), "it stands still");

    bed.on_data_gap(table, DataGapPolicy::Resume).await;
    bed.until_rows(table, &each(20..30, 1)).await;
    bed.until_state(table, PipeState::Running, "").await;
    drop(worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_batch_whose_first_records_are_refused_is_a_gap() {
    an_open_batch_that_has_lost_its_first_records("firstrefused", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_batch_whose_first_records_are_silently_passed_over_is_a_gap() {
    an_open_batch_that_has_lost_its_first_records("firstsilent", false).await;
}

//! Tables that Millrace makes, and what it says of tables that it did not make.

use std::time::Duration;

use millrace_integration_tests::process::eventually;
use millrace_proto::api::v1 as proto;
use tonic::Code;

use super::bed::{Bed, DATABASE, PARENT, WRITER, assert_refused, destination_of, status_of};

pub(super) fn managed(bed: &Bed, table: &str) -> proto::Pipe {
    let mut pipe = bed.pipe(table);
    let destination = destination_of(&mut pipe);
    destination.managed_table = true;
    destination.columns = [
        ("id", "UInt64"),
        ("ts", "DateTime64(3, 'UTC')"),
        ("od`d", "LowCardinality(Nullable(String))"),
        ("n", "Nested(a UInt8, b String)"),
    ]
    .map(|(name, data_type)| proto::Column {
        name: name.into(),
        r#type: data_type.into(),
    })
    .to_vec();
    destination.table_definition = Some(proto::TableDefinition {
        engine: None,
        sorting_key: vec!["id".into()],
        partition_by: "toYYYYMM(ts)".into(),
        ..Default::default()
    });
    pipe
}

#[tokio::test]
async fn a_managed_table_is_made_with_a_window_and_so_is_the_error_table() {
    let bed = Bed::start().await;
    let table = "made `here`; DROP TABLE x--";
    let tables = format!(
        "SELECT name, engine_full FROM system.tables WHERE database = '{DATABASE}' AND startsWith(name, 'made ') ORDER BY name"
    );
    bed.create_or_check("made", managed(&bed, table), true)
        .await
        .expect("checked");
    assert_eq!(bed.sql(&tables).await, "", "checking makes nothing");

    let made = bed.create("made", managed(&bed, table)).await.expect("made");
    assert_eq!(status_of(&made).effective_delivery(), proto::Delivery::ExactlyOnce);
    let found = bed.sql(&tables).await;
    let lines: Vec<&str> = found.lines().collect();
    assert_eq!(lines.len(), 2, "{found}");
    assert!(
        lines[0].starts_with(table) && lines[0].contains("PARTITION BY toYYYYMM(ts) ORDER BY (id)"),
        "{found}"
    );
    assert!(
        lines
            .iter()
            .all(|line| line.contains("non_replicated_deduplication_window = 10000")),
        "{found}"
    );
    assert!(
        lines[1].contains("_millrace_error") && lines[1].contains("TTL inserted_at + toIntervalDay(7)"),
        "{found}"
    );
    let columns = format!(
        "SELECT name, type FROM system.columns WHERE database = '{DATABASE}' AND table = 'made `here`; DROP TABLE x--'"
    );
    let columns = bed.sql(&columns).await;
    assert!(columns.contains("od`d\tLowCardinality(Nullable(String))"), "{columns}");
    assert!(columns.contains("n\tNested(a UInt8, b String)"), "{columns}");

    // The same again, under another name: the tables are taken as they are.
    bed.create("again", managed(&bed, table)).await.expect("taken over");
    let mut other = managed(&bed, table);
    destination_of(&mut other).columns[0].r#type = "String".into();
    let status = bed.create("other", other).await.expect_err("does not fit");
    let (code, reason) = (Code::FailedPrecondition, "DESTINATION_SCHEMA_CHANGED");
    assert_refused(
        &status,
        code,
        reason,
        "pipe.destination.columns[0]",
        "name another table",
    );
}

fn with_engine(bed: &Bed, table: &str, kind: proto::TableEngineType, version: &str, columns: &[&str]) -> proto::Pipe {
    let mut pipe = managed(bed, table);
    let destination = destination_of(&mut pipe);
    destination.columns.push(proto::Column {
        name: "hits".into(),
        r#type: "UInt32".into(),
    });
    let definition = destination.table_definition.as_mut().expect("managed");
    definition.engine = Some(proto::TableEngine {
        r#type: kind.into(),
        version_column_id: version.into(),
        column_ids: columns.iter().map(|column| (*column).to_owned()).collect(),
    });
    if kind == proto::TableEngineType::Null {
        definition.sorting_key.clear();
        definition.partition_by.clear();
    }
    pipe
}

#[tokio::test]
async fn managed_tables_have_the_engine_that_was_asked_for() {
    use proto::TableEngineType as Type;
    let bed = Bed::start().await;
    let engine_full = async |table: &str| {
        let sql = format!("SELECT engine_full FROM system.tables WHERE database = '{DATABASE}' AND name = '{table}'");
        bed.sql(&sql).await
    };
    let mut pipe = with_engine(&bed, "replacing", Type::ReplacingMergeTree, "ts", &[]);
    let definition = destination_of(&mut pipe).table_definition.as_mut().expect("managed");
    definition.sorting_key = vec!["id".into(), "ts".into()];
    definition.primary_key = vec!["id".into()];
    definition.ttl = Some(proto::TableTtl {
        column: "ts".into(),
        keep: Some(prost_types::Duration {
            seconds: 86_400,
            nanos: 0,
        }),
    });
    definition.settings = [("index_granularity".to_owned(), "1024".to_owned())].into();
    let created = bed.create("replacing", pipe.clone()).await.expect("a pipe");
    assert_eq!(status_of(&created).effective_delivery(), proto::Delivery::ExactlyOnce);
    let full = engine_full("replacing").await;
    for part in [
        "ReplacingMergeTree(ts) PARTITION BY toYYYYMM(ts) PRIMARY KEY (id) ORDER BY (id, ts)",
        "TTL toDateTime(ts) + toIntervalSecond(86400)",
        "non_replicated_deduplication_window = 10000",
        "index_granularity = 1024",
    ] {
        assert!(full.contains(part), "{full}");
    }
    assert_eq!(
        created.destination.expect("a destination").table_definition,
        pipe.destination.clone().expect("a destination").table_definition
    );
    // The same again takes the table over; another shape does not.
    bed.create("taken-over", pipe.clone()).await.expect("the same table");
    type Change = fn(&mut proto::TableDefinition);
    let changes: [(&str, Change); 3] = [
        ("engine", |definition| {
            definition.engine.as_mut().expect("given").version_column_id.clear();
        }),
        ("engine", |definition| definition.engine = None),
        ("sorting_key", |definition| definition.sorting_key.reverse()),
    ];
    for (field, change) in changes {
        let mut other = pipe.clone();
        let definition = destination_of(&mut other).table_definition.as_mut().expect("managed");
        definition.primary_key.clear();
        change(definition);
        let status = bed.create("other", other).await.expect_err("another shape");
        let field = format!("pipe.destination.table_definition.{field}");
        let (code, reason) = (Code::FailedPrecondition, "DESTINATION_SCHEMA_CHANGED");
        assert_refused(&status, code, reason, &field, "name another table");
    }

    let summing = with_engine(&bed, "summing", Type::SummingMergeTree, "", &["hits"]);
    let created = bed.create("summing", summing.clone()).await.expect("a pipe");
    assert_eq!(status_of(&created).effective_delivery(), proto::Delivery::ExactlyOnce);
    let full = engine_full("summing").await;
    assert!(full.starts_with("SummingMergeTree(hits) "), "{full}");
    bed.create("summing-again", summing).await.expect("the same table");

    let null = with_engine(&bed, "null", Type::Null, "", &[]);
    let created = bed.create("null", null.clone()).await.expect("a pipe");
    let status = status_of(&created);
    assert_eq!(status.effective_delivery(), proto::Delivery::AtLeastOnce);
    assert!(
        status.effective_delivery_reason.contains("Null"),
        "{}",
        status.effective_delivery_reason
    );
    assert_eq!(engine_full("null").await.trim().trim_matches('`'), "Null");
    bed.create("null-again", null).await.expect("the same table");

    // There is no cluster here; what ClickHouse misses, it says in its own words.
    let replicated = with_engine(&bed, "replicated", Type::ReplicatedMergeTree, "", &[]);
    let status = bed.create("replicated", replicated).await.expect_err("no cluster");
    let (code, reason) = (Code::FailedPrecondition, "DESTINATION_TYPE_UNSUPPORTED");
    assert_refused(&status, code, reason, "pipe.destination.table", "ON CLUSTER");
}

#[tokio::test]
async fn what_clickhouse_has_against_a_table_is_passed_on() {
    let bed = Bed::start().await;
    let mut pipe = managed(&bed, "zone");
    destination_of(&mut pipe).columns[1].r#type = "DateTime64(3, 'Nowhere/Land')".into();
    let status = bed.create("zone", pipe).await.expect_err("no such zone");
    assert_refused(
        &status,
        Code::FailedPrecondition,
        "DESTINATION_TYPE_UNSUPPORTED",
        "pipe.destination.table",
        "Nowhere",
    );
}

#[tokio::test]
async fn the_least_rights_are_enough() {
    let bed = Bed::start().await;
    bed.create_table("least").await;
    // Someone with more rights made the error table once.
    bed.create("first", bed.pipe("least"))
        .await
        .expect("a pipe of the owner");
    let mut pipe = bed.pipe("least");
    destination_of(&mut pipe).credential = format!("{PARENT}/credentials/{WRITER}");
    let created = bed.create("least", pipe).await.expect("INSERT is enough");
    assert_eq!(status_of(&created).effective_delivery(), proto::Delivery::ExactlyOnce);
}

#[tokio::test]
async fn the_promise_in_effect_comes_with_its_remedy() {
    let bed = Bed::start().await;
    bed.sql(&format!(
        "CREATE TABLE {DATABASE}.plain (id UInt64) ENGINE = MergeTree ORDER BY id"
    ))
    .await;
    let created = bed.create("plain", bed.pipe("plain")).await.expect("a pipe");
    let status = status_of(&created);
    assert_eq!(status.effective_delivery(), proto::Delivery::AtLeastOnce);
    let remedy = status.effective_delivery_reason.split('`').collect::<Vec<_>>();
    assert!(status.effective_delivery_reason.contains("ALTER TABLE"), "{remedy:?}");
    let statement = status
        .effective_delivery_reason
        .split_once("run `")
        .expect("a statement")
        .1
        .trim_end_matches('`');
    bed.sql(statement).await;
    promise_is(&bed, "plain", proto::Delivery::ExactlyOnce).await;
    bed.sql(&format!(
        "ALTER TABLE {DATABASE}.plain MODIFY SETTING non_replicated_deduplication_window = 0"
    ))
    .await;
    promise_is(&bed, "plain", proto::Delivery::AtLeastOnce).await;
    bed.sql(statement).await;

    // Views: one that keeps its own rows, and one that writes to a table without a window.
    bed.sql(&format!(
        "CREATE TABLE {DATABASE}.sums (id UInt64) ENGINE = MergeTree ORDER BY id"
    ))
    .await;
    bed.sql(&format!(
        "CREATE MATERIALIZED VIEW {DATABASE}.to_sums TO {DATABASE}.sums AS SELECT id FROM {DATABASE}.plain"
    ))
    .await;
    bed.sql(&format!(
        "CREATE MATERIALIZED VIEW {DATABASE}.inner_view ENGINE = MergeTree ORDER BY id AS SELECT id FROM {DATABASE}.plain"
    ))
    .await;
    let created = bed.create("behind", bed.pipe("plain")).await.expect("a pipe");
    let reason = &status_of(&created).effective_delivery_reason;
    assert_eq!(
        status_of(&created).effective_delivery(),
        proto::Delivery::AtLeastOnce,
        "{reason}"
    );
    assert!(
        reason.contains("`sums` has no deduplication window") && reason.contains("`inner_view`"),
        "{reason}"
    );

    bed.sql(&format!("DROP TABLE {DATABASE}.inner_view")).await;
    bed.sql(&format!(
        "ALTER TABLE {DATABASE}.sums MODIFY SETTING non_replicated_deduplication_window = 100"
    ))
    .await;
    let created = bed.create("healed", bed.pipe("plain")).await.expect("a pipe");
    let status = status_of(&created);
    assert_eq!(
        status.effective_delivery(),
        proto::Delivery::ExactlyOnce,
        "{}",
        status.effective_delivery_reason
    );

    bed.sql(&format!("CREATE TABLE {DATABASE}.memory (id UInt64) ENGINE = Memory"))
        .await;
    let created = bed.create("memory", bed.pipe("memory")).await.expect("a pipe");
    let status = status_of(&created);
    assert_eq!(status.effective_delivery(), proto::Delivery::AtLeastOnce);
    assert!(
        status.effective_delivery_reason.contains("Memory"),
        "{}",
        status.effective_delivery_reason
    );
}

/// Waits until a change of the tables is noticed.
async fn promise_is(bed: &Bed, id: &str, delivery: proto::Delivery) {
    let noticed = eventually("the promise follows the table", Duration::from_secs(20), || async {
        let pipe = bed.get(id).await.map_err(|status| status.to_string())?;
        let status = status_of(&pipe);
        if status.effective_delivery() == delivery {
            Ok(())
        } else {
            Err(status.effective_delivery_reason.clone())
        }
    });
    noticed.await.expect("the promise");
}

/// Waits until the reason of the promise says this.
async fn promise_reason(bed: &Bed, id: &str, words: &str) {
    let noticed = eventually("the reason follows the table", Duration::from_secs(20), || async {
        let pipe = bed.get(id).await.map_err(|status| status.to_string())?;
        let reason = status_of(&pipe).effective_delivery_reason.clone();
        if reason.contains(words) { Ok(()) } else { Err(reason) }
    });
    noticed.await.expect("the reason");
}

/// What the pipe would promise, and why, without making anything.
async fn promise_of(bed: &Bed, table: &str) -> (proto::Delivery, String) {
    let checked = bed
        .create_or_check("checked", bed.pipe(table), true)
        .await
        .expect("checked");
    let status = status_of(&checked);
    (status.effective_delivery(), status.effective_delivery_reason.clone())
}

#[tokio::test]
async fn a_window_has_to_hold_the_batches_in_flight_in_all_their_partitions() {
    let bed = Bed::start().await;
    bed.sql(&format!(
        "CREATE TABLE {DATABASE}.small (id UInt64) ENGINE = MergeTree PARTITION BY id % 50 ORDER BY id \
         SETTINGS non_replicated_deduplication_window = 100"
    ))
    .await;
    // Nobody knows how many partitions an insert into an empty table will touch.
    let (delivery, reason) = promise_of(&bed, "small").await;
    assert_eq!(delivery, proto::Delivery::AtLeastOnce);
    assert!(
        reason.contains("only 100 inserted blocks") && reason.contains("may need 1200"),
        "{reason}"
    );
    bed.sql(&format!("INSERT INTO {DATABASE}.small SELECT number FROM numbers(3)"))
        .await;
    let (delivery, reason) = promise_of(&bed, "small").await;
    assert_eq!(delivery, proto::Delivery::ExactlyOnce, "{reason}");
    assert_eq!(reason, "MergeTree deduplicates the last 100 blocks by insert token");
    bed.sql(&format!("INSERT INTO {DATABASE}.small SELECT number FROM numbers(50)"))
        .await;
    let (delivery, reason) = promise_of(&bed, "small").await;
    assert_eq!(delivery, proto::Delivery::AtLeastOnce);
    // 51 partitions; a few more where only parts can be counted.
    assert!(reason.contains("may need 6"), "{reason}");
    let statement = reason.split_once("run `").expect("a statement").1.trim_end_matches('`');
    bed.sql(statement).await;
    assert_eq!(promise_of(&bed, "small").await.0, proto::Delivery::ExactlyOnce);
}

#[tokio::test]
async fn engines_that_do_not_deduplicate_say_what_to_use() {
    let bed = Bed::start().await;
    bed.create_table("behind_a_buffer").await;
    for (engine, advice) in [
        ("Memory", "use a MergeTree table"),
        ("Log", "use a MergeTree table"),
        ("Null", "give the materialized views behind it a MergeTree table"),
        (
            &format!("Buffer({DATABASE}, behind_a_buffer, 1, 10, 100, 10000, 1000000, 10000000, 100000000)"),
            "let the pipe write to the table behind it",
        ),
    ] {
        bed.sql(&format!(
            "CREATE OR REPLACE TABLE {DATABASE}.odd (id UInt64) ENGINE = {engine}"
        ))
        .await;
        let (delivery, reason) = promise_of(&bed, "odd").await;
        assert_eq!(delivery, proto::Delivery::AtLeastOnce, "{engine}");
        assert!(
            reason.contains("does not deduplicate inserts") && reason.contains(advice),
            "{reason}"
        );
    }
}

#[tokio::test]
async fn tables_behind_views_behind_views_count() {
    let bed = Bed::start().await;
    bed.create_table("chain").await;
    let table = |name: &str, window: u32| {
        format!(
            "CREATE TABLE {DATABASE}.{name} (id UInt64) ENGINE = MergeTree ORDER BY id \
             SETTINGS non_replicated_deduplication_window = {window}"
        )
    };
    bed.sql(&table("chain_1", 100)).await;
    bed.sql(&table("chain_2", 0)).await;
    for (from, to) in [("chain", "chain_1"), ("chain_1", "chain_2")] {
        bed.sql(&format!(
            "CREATE MATERIALIZED VIEW {DATABASE}.to_{to} TO {DATABASE}.{to} AS SELECT id FROM {DATABASE}.{from}"
        ))
        .await;
    }
    let (delivery, reason) = promise_of(&bed, "chain").await;
    assert_eq!(delivery, proto::Delivery::AtLeastOnce);
    assert!(reason.contains("`chain_2` has no deduplication window"), "{reason}");
    bed.sql(&format!(
        "ALTER TABLE {DATABASE}.chain_2 MODIFY SETTING non_replicated_deduplication_window = 100"
    ))
    .await;
    assert_eq!(promise_of(&bed, "chain").await.0, proto::Delivery::ExactlyOnce);
    // A view with a table of its own, and one that reads from that.
    bed.sql(&format!(
        "CREATE MATERIALIZED VIEW {DATABASE}.chain_inner ENGINE = MergeTree ORDER BY id \
         SETTINGS non_replicated_deduplication_window = 100 AS SELECT id FROM {DATABASE}.chain_2"
    ))
    .await;
    assert_eq!(promise_of(&bed, "chain").await.0, proto::Delivery::ExactlyOnce);
    bed.sql(&table("chain_3", 0)).await;
    bed.sql(&format!(
        "CREATE MATERIALIZED VIEW {DATABASE}.to_chain_3 TO {DATABASE}.chain_3 AS SELECT id FROM {DATABASE}.chain_inner"
    ))
    .await;
    let (delivery, reason) = promise_of(&bed, "chain").await;
    assert_eq!(delivery, proto::Delivery::AtLeastOnce, "{reason}");
    assert!(reason.contains("`chain_3` has no deduplication window"), "{reason}");
}

/// Rejected records are rows too.
#[tokio::test]
async fn the_error_table_counts() {
    let bed = Bed::start().await;
    bed.create_table("errors_count").await;
    bed.create("errors-count", bed.pipe("errors_count"))
        .await
        .expect("a pipe");
    promise_is(&bed, "errors-count", proto::Delivery::ExactlyOnce).await;
    bed.sql(&format!(
        "ALTER TABLE {DATABASE}.errors_count_millrace_error MODIFY SETTING non_replicated_deduplication_window = 0"
    ))
    .await;
    promise_is(&bed, "errors-count", proto::Delivery::AtLeastOnce).await;
}

/// The window of a table; `None` if it is not set for it.
async fn window_of(bed: &Bed, table: &str) -> Option<u64> {
    let engine = bed
        .sql(&format!(
            "SELECT engine_full FROM system.tables WHERE database = '{DATABASE}' AND name = '{table}'"
        ))
        .await;
    let (_, rest) = engine.split_once("non_replicated_deduplication_window = ")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

async fn events_of(bed: &Bed, id: &str, kind: &str) -> Vec<proto::PipeEvent> {
    let request = proto::ListPipeEventsRequest {
        parent: super::bed::name(id),
        ..Default::default()
    };
    let events = bed.pipes.clone().list_pipe_events(request).await.expect("events");
    let mut events = events.into_inner().events;
    events.retain(|event| event.kind == kind);
    events
}

#[tokio::test]
async fn a_managed_table_gets_its_window_back() {
    let bed = Bed::start().await;
    let made = bed.create("taken", managed(&bed, "taken")).await.expect("made");
    assert_eq!(status_of(&made).effective_delivery(), proto::Delivery::ExactlyOnce);
    for (table, window) in [("taken", 0), ("taken", 9_999), ("taken_millrace_error", 0)] {
        bed.sql(&format!(
            "ALTER TABLE {DATABASE}.{table} MODIFY SETTING non_replicated_deduplication_window = {window}"
        ))
        .await;
        let restored = eventually("the window is put back", Duration::from_secs(20), || async {
            match window_of(&bed, table).await {
                Some(10_000) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        restored.await.expect("put back");
        let told = eventually("it is told", Duration::from_secs(20), || async {
            let events = events_of(&bed, "taken", "WINDOW_RESTORED").await;
            let of_table = format!("`{DATABASE}`.`{table}`");
            let told = events
                .into_iter()
                .find(|event| event.details["table"] == of_table && event.details["from"] == window.to_string());
            told.ok_or("nothing is told")
        });
        let told = told.await.expect("an event");
        assert_eq!(told.severity(), proto::EventSeverity::Warning);
        assert_eq!(told.details["to"], "10000");
        let alter =
            format!("ALTER TABLE `{DATABASE}`.`{table}` MODIFY SETTING non_replicated_deduplication_window = 10000");
        assert!(told.message.contains(&alter), "{}", told.message);
        promise_is(&bed, "taken", proto::Delivery::ExactlyOnce).await;
    }
    // A larger one is nobody's business.
    bed.sql(&format!(
        "ALTER TABLE {DATABASE}.taken MODIFY SETTING non_replicated_deduplication_window = 50000"
    ))
    .await;
    promise_reason(&bed, "taken", "the last 50000 blocks").await;
    assert_eq!(events_of(&bed, "taken", "WINDOW_RESTORED").await.len(), 3);
}

#[tokio::test]
async fn a_table_that_is_not_managed_keeps_its_window_and_says_what_to_run() {
    let bed = Bed::start().await;
    bed.create_table("kept").await;
    bed.create("kept", bed.pipe("kept")).await.expect("a pipe");
    promise_is(&bed, "kept", proto::Delivery::ExactlyOnce).await;
    let alter =
        |window| format!("ALTER TABLE {DATABASE}.kept MODIFY SETTING non_replicated_deduplication_window = {window}");
    bed.sql(&alter(0)).await;
    promise_is(&bed, "kept", proto::Delivery::AtLeastOnce).await;
    let told = events_of(&bed, "kept", "PROMISE_CHANGED").await;
    let told = told.first().expect("told");
    assert_eq!(told.severity(), proto::EventSeverity::Warning);
    let run = format!("ALTER TABLE `{DATABASE}`.`kept` MODIFY SETTING non_replicated_deduplication_window = 10000");
    assert!(told.message.contains(&run), "{}", told.message);
    assert_eq!(window_of(&bed, "kept").await, Some(0));
    assert!(events_of(&bed, "kept", "WINDOW_RESTORED").await.is_empty());
    // What it says to run is what mends it.
    bed.sql(&run).await;
    promise_is(&bed, "kept", proto::Delivery::ExactlyOnce).await;
}

#[tokio::test]
async fn an_error_table_that_does_not_fit_is_refused() {
    let bed = Bed::start().await;
    bed.create_table("misfit").await;
    bed.sql(&format!(
        "CREATE TABLE {DATABASE}.misfit_millrace_error (error_msg UInt8) ENGINE = MergeTree ORDER BY tuple()"
    ))
    .await;
    let status = bed
        .create("misfit", bed.pipe("misfit"))
        .await
        .expect_err("does not fit");
    let field = "pipe.destination.error_table";
    let remedy = "error_msg is UInt8, not String";
    assert_refused(
        &status,
        Code::FailedPrecondition,
        "DESTINATION_SCHEMA_CHANGED",
        field,
        remedy,
    );
}

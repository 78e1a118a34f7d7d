//! A batch that is built again from its slices is the same batch, however its records came.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
    vec,
};

use futures::FutureExt as _;
use millrace_common::{
    aws,
    batch::OpenBatch,
    ids::Epoch,
    pipe::{Delivery, MappedColumn},
    position::Position,
};
use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::{
    batch::cut::Limits,
    commit::{Claim, Prepared},
    lane::{queue::Pending, recipe::Recipe, spec::Spec, tests::spec},
    source::{Budget, Record, kinesis},
};

const LIMITS: Limits = Limits {
    rows: 1_000,
    bytes: 1 << 30,
    wait: Duration::from_secs(5),
};

fn recipe() -> Arc<Recipe> {
    recipe_for(Compression::Lz4)
}

fn recipe_for(compression: Compression) -> Arc<Recipe> {
    let columns = [
        ("id", "UInt64"),
        ("name", "LowCardinality(String)"),
        ("tags", "Array(String)"),
    ];
    let column = |(name, data_type): (&str, &str)| MappedColumn {
        name: name.to_owned(),
        data_type: data_type.to_owned(),
        has_default: false,
        source_field: name.to_owned(),
        ..MappedColumn::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let columns = columns.map(column).to_vec();
    let spec = Spec {
        compression,
        ..spec(Delivery::ExactlyOnce, "http://127.0.0.1:1", columns)
    };
    Arc::new(
        runtime
            .block_on(Recipe::make(
                Arc::new(spec),
                kinesis::Limits::default(),
                &aws::Settings::default(),
            ))
            .expect("a good specification"),
    )
}

fn shard(n: u8) -> ShardId {
    format!("shardId-{n:012}").parse().expect("a shard id")
}

fn number(n: usize) -> SequenceNumber {
    n.to_string().parse().expect("a sequence number")
}

/// The record of this number; every seventh is malformed, each in its own way.
fn record(shard: u8, n: usize) -> Record {
    let data = match n % 7 {
        3 if n.is_multiple_of(2) => format!(r#"{{"id":{n},"name"#),
        3 => format!(r#"{{"id":"x{n}","name":"n"}}"#),
        _ => format!(
            r#"{{"id":{n},"name":"name-{}","tags":["\u00fc","{shard}"],"other":[1,2]}}"#,
            n % 5
        ),
    };
    Record::new(
        &number(n),
        &format!("key-{n}"),
        1_700_000_000_000 + n as i64,
        data.as_bytes(),
    )
}

/// Records `1..=count` of a shard from one number on, in pages of these sizes.
fn run(of: u8, from: usize, to: usize, page_size: usize) -> Run {
    let budget = Budget::new(usize::MAX);
    let numbers: Vec<_> = (from + 1..=to).collect();
    let page = |numbers: &[usize]| Pending {
        records: numbers.iter().map(|n| record(of, *n)).collect::<Vec<_>>().into_iter(),
        last: number(*numbers.last().expect("a chunk is not empty")),
        permit: Arc::new(budget.acquire(0).now_or_never().expect("nothing is asked for")),
        hash_keys: None,
        came: Instant::now(),
    };
    let from = if from == 0 {
        Position::TrimHorizon
    } else {
        Position::After(number(from))
    };
    Run {
        shard: shard(of),
        from,
        pages: numbers.chunks(page_size).map(page).collect::<VecDeque<_>>(),
    }
}

fn job(recipe: &Arc<Recipe>, id: BatchId, pipe: PipeUid, runs: Vec<Run>, limits: Option<Limits>) -> Job {
    Job {
        id,
        pipe,
        recipe: Arc::clone(recipe),
        runs,
        rules: limits.map(Rules::new),
        bench: None,
        budget: Budget::new(1 << 30),
        terms: Terms::default(),
    }
}

fn bytes(body: &Option<Body>) -> Option<&Bytes> {
    body.as_ref().map(|body| &body.bytes)
}

fn at(position: &Position) -> usize {
    position
        .sequence_number()
        .map_or(0, |number| number.as_str().parse().expect("a small number"))
}

fn claim(pipe: PipeUid, batch: &OpenBatch) -> Claim {
    let epochs = batch
        .slices
        .iter()
        .map(|slice| (slice.shard.clone(), Epoch(1)))
        .collect();
    Claim {
        pipe,
        batch: batch.clone(),
        epochs,
    }
}

/// Builds a batch again from nothing but what the control plane stores of it.
fn rebuild(recipe: &Arc<Recipe>, pipe: PipeUid, batch: &OpenBatch, page_size: usize) -> Built {
    let runs = batch.slices.iter().map(|slice| {
        let of = slice
            .shard
            .as_str()
            .rsplit('-')
            .next()
            .and_then(|n| n.parse().ok())
            .expect("a shard of this test");
        run(of, at(&slice.from_exclusive), at(&slice.end()), page_size)
    });
    build(job(recipe, batch.id, pipe, runs.collect(), None))
        .built
        .expect("its records are there")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_replay_is_the_live_batch(
        counts in prop::collection::vec(0usize..60, 1..5),
        rows in 1u64..80,
        live_page in 1usize..40,
        replay_page in 1usize..40,
    ) {
        let (recipe, pipe) = (recipe(), PipeUid::new());
        let limits = Limits { rows, ..LIMITS };
        let runs = counts.iter().enumerate().filter(|(_, count)| **count > 0);
        let mut left: Vec<_> = runs.map(|(of, count)| run(of as u8, 0, *count, live_page)).collect();
        let mut reached: BTreeMap<ShardId, usize> = BTreeMap::new();
        let mut bench = None;
        while !left.is_empty() {
            let mut job = job(&recipe, BatchId::new(), pipe, left, Some(limits));
            job.bench = bench.take();
            let outcome = build(job);
            let built = outcome.built.expect("there were records");
            let batch = &built.batch;
            prop_assert!(batch.counts.rows + batch.counts.rejected_records <= rows);
            prop_assert!(outcome.left.is_empty() || batch.counts.records == rows, "left over although there was room");
            for slice in &batch.slices {
                let reached = reached.entry(slice.shard.clone()).or_default();
                prop_assert_eq!(at(&slice.from_exclusive), *reached, "slices follow each other");
                prop_assert!(slice.is_forward());
                *reached = at(&slice.end());
            }
            let again = rebuild(&recipe, pipe, batch, replay_page);
            prop_assert_eq!(bytes(&again.rows), bytes(&built.rows));
            prop_assert_eq!(bytes(&again.errors), bytes(&built.errors));
            prop_assert_eq!(again.batch.counts, batch.counts);
            prop_assert!(Prepared::replayed(claim(pipe, batch), again).is_ok());
            bench = Some(outcome.bench);
            left = outcome.left;
            for run in &mut left {
                run.from = match reached.get(&run.shard) {
                    Some(n) if *n > 0 => Position::After(number(*n)),
                    _ => Position::TrimHorizon,
                };
            }
        }
        for (of, count) in counts.iter().enumerate() {
            prop_assert_eq!(reached.get(&shard(of as u8)).copied().unwrap_or(0), *count, "nothing is left out");
        }
    }
}

#[test]
fn rows_are_grouped_by_slice_in_the_order_of_the_slices() {
    let (recipe, pipe) = (recipe(), PipeUid::new());
    let one = build(job(
        &recipe,
        BatchId::new(),
        pipe,
        vec![run(0, 0, 2, 1), run(1, 0, 2, 1)],
        Some(LIMITS),
    ));
    let other = build(job(
        &recipe,
        BatchId::new(),
        pipe,
        vec![run(1, 0, 2, 2), run(0, 0, 2, 2)],
        Some(LIMITS),
    ));
    let (one, other) = (one.built.expect("rows"), other.built.expect("rows"));
    assert_eq!((one.batch.counts.rows, other.batch.counts.rows), (4, 4));
    assert_ne!(
        one.batch.digest, other.batch.digest,
        "the order of slices is the order of rows"
    );
}

#[test]
fn rejected_records_are_counted_and_sent_apart() {
    let (recipe, pipe) = (recipe(), PipeUid::new());
    let built = build(job(
        &recipe,
        BatchId::new(),
        pipe,
        vec![run(0, 0, 10, 10)],
        Some(LIMITS),
    ))
    .built
    .expect("rows");
    let counts = built.batch.counts;
    assert_eq!((counts.rows, counts.rejected_records, counts.records), (8, 2, 10));
    assert_eq!(built.rows.expect("rows").columns.len(), 3);
    assert!(built.errors.is_some());
    let good = build(job(&recipe, BatchId::new(), pipe, vec![run(0, 3, 9, 10)], Some(LIMITS)))
        .built
        .expect("rows");
    assert!(good.errors.is_none());
    let bad = build(job(&recipe, BatchId::new(), pipe, vec![run(0, 2, 3, 10)], Some(LIMITS)))
        .built
        .expect("rows");
    assert!(bad.rows.is_none() && bad.errors.is_some());
}

#[test]
fn the_size_of_the_block_closes_a_batch() {
    let (recipe, pipe) = (recipe(), PipeUid::new());
    let limits = Limits {
        rows: 1 << 40,
        bytes: 100_000,
        ..LIMITS
    };
    let outcome = build(job(
        &recipe,
        BatchId::new(),
        pipe,
        vec![run(0, 0, 50_000, 1_000)],
        Some(limits),
    ));
    let built = outcome.built.expect("rows");
    assert!(!outcome.left.is_empty());
    // It is measured now and then, and the size of rejected records is an estimate.
    assert!(
        (90_000..100_000 + MEASURE_AFTER_BYTES as u64).contains(&outcome.encoded_bytes),
        "{}",
        outcome.encoded_bytes
    );
    assert!(built.batch.counts.records < 50_000);
}

#[test]
fn another_batch_is_not_taken_for_the_prepared_one() {
    let (recipe, pipe) = (recipe(), PipeUid::new());
    let build = |to| {
        build(job(&recipe, BatchId::new(), pipe, vec![run(0, 0, to, 5)], Some(LIMITS)))
            .built
            .expect("rows")
    };
    let prepared = build(20).batch;
    assert!(Prepared::replayed(claim(pipe, &prepared), rebuild(&recipe, pipe, &prepared, 3)).is_ok());
    let shorter = OpenBatch {
        id: prepared.id,
        ..build(19).batch
    };
    assert!(Prepared::replayed(claim(pipe, &prepared), rebuild(&recipe, pipe, &shorter, 3)).is_err());
    let mut other_digest = prepared.clone();
    other_digest.digest[0] ^= 1;
    let error =
        Prepared::replayed(claim(pipe, &other_digest), rebuild(&recipe, pipe, &prepared, 3)).expect_err("diverged");
    assert!(error.to_string().contains(&prepared.id.to_string()), "{error}");
}

#[test]
fn a_part_does_not_send_malformed_records_again_and_a_condemned_record_is_no_row() {
    let (recipe, pipe, id) = (recipe(), PipeUid::new(), BatchId::new());
    let build_with = |to, terms: &Terms| {
        let mut job = job(&recipe, id, pipe, vec![run(0, 0, to, 5)], None);
        job.terms = terms.clone();
        build(job).built.expect("records")
    };
    let whole = build_with(20, &Terms::default());
    let mut terms = Terms {
        part: true,
        ..Terms::default()
    };
    let part = build_with(20, &terms);
    assert_eq!(part.batch.counts, whole.batch.counts, "they are counted with the part");
    assert_eq!(bytes(&part.rows), bytes(&whole.rows));
    assert!(part.errors.is_none(), "they are in the error table already");
    terms.condemned = Some("no".to_owned());
    let condemned = build_with(1, &terms);
    assert_eq!(
        (condemned.batch.counts.rows, condemned.batch.counts.rejected_records),
        (0, 1)
    );
    assert!(condemned.rows.is_none() && condemned.errors.is_some());
    assert_eq!(condemned.batch.digest, build_with(1, &terms).batch.digest);
    terms.condemned = Some("other words".to_owned());
    assert_ne!(condemned.batch.digest, build_with(1, &terms).batch.digest);
}

#[test]
fn the_digest_covers_both_blocks() {
    assert_ne!(digest([1; 16], [2; 16]), digest([2; 16], [1; 16]));
    // Stored with open batches: a change would make every one of them diverge.
    assert_eq!(u128::from_be_bytes(digest([0; 16], [0; 16])), xxh3_128(&[0; 32]));
}

#[test]
fn what_a_block_keeps_is_paid_for_or_given_up() {
    let (recipe, pipe, id) = (recipe(), PipeUid::new(), BatchId::new());
    let build = |budget: &Arc<Budget>| {
        let runs = vec![run(0, 0, 20_000, 1_000)];
        let rules = Limits {
            rows: 1 << 40,
            ..LIMITS
        };
        let mut job = job(&recipe, id, pipe, runs, Some(rules));
        job.budget = Arc::clone(budget);
        build(job)
    };
    let (large, small) = (Budget::new(1 << 30), Budget::new(SMALL_BLOCK_BYTES));
    let (mut kept, given_up) = (build(&large), build(&small));
    assert!(kept.encoded_bytes > SMALL_BLOCK_BYTES as u64, "{}", kept.encoded_bytes);
    let (one, other) = (kept.built.take().expect("rows"), given_up.built.expect("rows"));
    assert_eq!(one.batch, other.batch, "the bytes are the same");
    assert_eq!(bytes(&one.rows), bytes(&other.rows));
    drop((one, other));
    let held = large.held() as u64;
    assert!(held > SMALL_BLOCK_BYTES as u64 && held <= kept.encoded_bytes, "{held}");
    assert_eq!(small.held(), 0);
    kept.bench.release();
    assert_eq!(large.held(), 0);
}

#[test]
fn the_digest_is_that_of_the_plain_block_however_it_travels() {
    let (pipe, id) = (PipeUid::new(), BatchId::new());
    let built = [Compression::None, Compression::Lz4, Compression::Zstd].map(|compression| {
        let recipe = recipe_for(compression);
        let outcome = build(job(&recipe, id, pipe, vec![run(1, 0, 2_000, 100)], None));
        outcome.built.expect("a batch")
    });
    let digests = built.each_ref().map(|built| built.batch.digest);
    assert_eq!(digests, [digests[0]; 3]);
    let sizes = built.each_ref().map(|built| bytes(&built.rows).expect("rows").len());
    assert!(sizes.is_sorted_by(|larger, smaller| larger > smaller), "{sizes:?}");
    let compressed = built.map(|built| built.rows.expect("rows").compressed);
    assert_eq!(compressed, [false, true, true]);
}

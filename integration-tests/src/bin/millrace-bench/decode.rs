//! From JSON to columns on one thread, for records of several shapes, beside what others do with the same bytes: a copy, simd-json's
//! bare parse (which makes a tape of tokens and no values), and serde_json's tree. `pipeline` is everything that a worker does between
//! the body of an answer of Kinesis and the body of an insert.
//!
//! All take turns within a round; a figure is the median of the rounds, by the CPU time of the thread.

use std::{hint::black_box, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use millrace_data_plane::{
    batch::block::Block,
    decode::{Decoder, FieldSource, MappedColumn, Plan, RecordMeta},
    sink::clickhouse::native::{Frames, Method, compress_lz4},
    source::kinesis::records_of,
};
use millrace_integration_tests::events::{COLUMNS, Events};
use nix::time::{ClockId, clock_gettime};
use serde_json::json;

use super::{
    KEYS, allocations, median, megabytes, print, rounded,
    shapes::{self, Shape},
};

/// Additions that depend on each other, one per cycle of the clock.
const CLOCK_STEPS: u64 = 20_000_000;

/// Records of one answer: as many as Kinesis gives.
const RECORDS_PER_ANSWER: usize = 10_000;
const SEQUENCE_NUMBER: &str = "49590338271490256608559692538361571095921575989136588898";
const KEY: &str = "user-1";
/// What every record comes with.
pub(super) const META: RecordMeta<'static> = RecordMeta {
    partition_key: KEY.as_bytes(),
    arrival_millis: 1_700_000_000_000,
    stream: "bench",
    shard_id: "shardId-000000000000",
    sequence_number: SEQUENCE_NUMBER.as_bytes(),
    sub_sequence_number: 0,
    hash_keys: None,
};

/// Measures all shapes.
pub(super) fn run(records: u64, rounds: usize) -> anyhow::Result<()> {
    for shape in [
        shapes::flat(records),
        shapes::shuffled(records),
        shapes::nested(records),
        shapes::wide(records),
        shapes::small(records),
        clickstream(records),
    ] {
        measure(&shape, rounds).with_context(|| format!("records of the shape `{}`", shape.name))?;
    }
    Ok(())
}

/// What `make demo` and the whole path move.
fn clickstream(records: u64) -> Shape {
    let events = Events::new(1, KEYS, false);
    Shape {
        name: "clickstream",
        columns: COLUMNS.map(|(name, kind)| (name.to_owned(), kind.to_owned())).to_vec(),
        records: (0..records).map(|id| events.event(id).data).collect(),
    }
}

/// CPU time of this thread.
pub(super) fn cpu_time() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

pub(super) fn timed<T>(work: impl FnOnce() -> T) -> anyhow::Result<(f64, T)> {
    let before = cpu_time()?;
    let output = work();
    Ok(((cpu_time()? - before).as_secs_f64(), output))
}

/// Cycles of the clock in a second, as far as this process gets them.
#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
fn clock() -> anyhow::Result<f64> {
    let (seconds, _) = timed(|| (0..CLOCK_STEPS).fold(0u64, |sum, step| black_box(sum.wrapping_add(step))))?;
    Ok(CLOCK_STEPS as f64 / seconds)
}

pub(super) fn plan(shape: &Shape) -> anyhow::Result<Arc<Plan>> {
    let column = |(name, kind): &(String, String)| {
        Ok(MappedColumn {
            name: name.clone(),
            data_type: kind.parse()?,
            has_default: false,
            source: name
                .parse()
                .map_or_else(|_| FieldSource::Key(name.clone()), FieldSource::Virtual),
            required: false,
        })
    };
    let columns = shape.columns.iter().map(column).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Arc::new(Plan::compile(columns)?))
}

/// An answer of GetRecords with these payloads.
fn answer(payloads: &[Vec<u8>]) -> String {
    let record = |payload: &Vec<u8>| {
        json!({
            "ApproximateArrivalTimestamp": 1_700_000_000.123, "Data": base64_simd::STANDARD.encode_to_string(payload),
            "PartitionKey": KEY, "SequenceNumber": SEQUENCE_NUMBER,
        })
    };
    let records: Vec<_> = payloads.iter().map(record).collect();
    json!({"MillisBehindLatest": 0, "NextShardIterator": "AAAA", "Records": records}).to_string()
}

fn measure(shape: &Shape, rounds: usize) -> anyhow::Result<()> {
    let plan = plan(shape)?;
    let (mut decoder, mut block) = (Decoder::new(Arc::clone(&plan)), Block::new(&plan));
    let (mut buffers, mut tape) = (simd_json::Buffers::new(4096), None);
    let (mut scratch, mut native, mut frames) = (Vec::new(), Vec::new(), Vec::new());
    let bodies: Vec<String> = shape.records.chunks(RECORDS_PER_ANSWER).map(answer).collect();
    let mut times: [Vec<f64>; 7] = Default::default();
    let (mut clocks, mut allocated) = (Vec::new(), 0);
    // The first round fills the buffers and is not counted.
    for round in 0..=rounds {
        let clock = clock()?;
        let copied = timed(|| {
            for record in &shape.records {
                scratch.clear();
                scratch.extend_from_slice(record);
                black_box(&scratch);
            }
        })?;
        let parsed = timed(|| {
            for record in &shape.records {
                scratch.clear();
                scratch.extend_from_slice(record);
                let mut parsed: simd_json::Tape<'_> =
                    tape.take().unwrap_or_else(|| simd_json::Tape(Vec::new())).reset();
                simd_json::fill_tape(&mut scratch, &mut buffers, &mut parsed)?;
                black_box(&parsed);
                tape = Some(parsed.reset());
            }
            anyhow::Ok(())
        })?;
        parsed.1?;
        let value = timed(|| {
            for record in &shape.records {
                black_box(serde_json::from_slice::<serde_json::Value>(record)?);
            }
            anyhow::Ok(())
        })?;
        value.1?;
        block.clear();
        let before = allocations();
        let decoded = timed(|| {
            shape
                .records
                .iter()
                .try_for_each(|record| decoder.decode_whole(record, &META, &mut block))
        })?;
        allocated = allocations() - before;
        decoded.1.map_err(|rejection| anyhow::anyhow!("{rejection}"))?;
        ensure!(block.rows() == shape.records.len(), "every record is a row");
        native.clear();
        let written = timed(|| block.write_native(&mut native))?;
        frames.clear();
        let compressed = timed(|| compress_lz4(&native, &mut frames))?;
        block.clear();
        let whole = timed(|| {
            for body in &bodies {
                for record in records_of(body.as_bytes()).context("an answer that is read without the SDK")? {
                    let meta = RecordMeta {
                        partition_key: record.partition_key(),
                        arrival_millis: record.arrival_millis,
                        sequence_number: record.digits(),
                        ..META
                    };
                    decoder
                        .decode_whole(record.data(), &meta, &mut block)
                        .map_err(|rejection| anyhow::anyhow!("{rejection}"))?;
                }
            }
            let mut frames = Frames::new(Method::Lz4);
            block.write_native(&mut frames);
            black_box(frames.finish());
            anyhow::Ok(())
        })?;
        whole.1?;
        if round > 0 {
            clocks.push(clock);
            let seconds = [copied.0, parsed.0, value.0, decoded.0, written.0, compressed.0, whole.0];
            times.iter_mut().zip(seconds).for_each(|(times, time)| times.push(time));
        }
    }
    let (bytes, clock) = (shape.bytes(), median(clocks));
    let [copy, parse, value, decode, encode, lz4, pipeline] = times.map(median);
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    let cycles = decode * clock / bytes as f64;
    for (bench, seconds) in [
        ("memcpy", copy),
        ("simd_json_parse", parse),
        ("serde_json_value", value),
        ("block_encoding", encode),
        ("block_lz4", lz4),
        ("pipeline", pipeline),
    ] {
        print(&json!({
            "bench": bench, "data": shape.name, "value": rounded(megabytes(bytes) / seconds), "unit": "MB/s per core",
            "ratio": rounded(parse / seconds), "against": "simd_json_parse",
        }))?;
    }
    print(&json!({
        "bench": "decode", "data": shape.name, "value": rounded(megabytes(bytes) / decode), "unit": "MB/s per core",
        "ratio": rounded(parse / decode), "against": "simd_json_parse",
        "serde_json_value_ratio": rounded(value / decode), "cycles_per_byte": rounded(cycles),
        "bytes_per_record": bytes / shape.records.len(),
    }))?;
    print(&json!({
        "bench": "block_size", "data": shape.name, "value": rounded(megabytes(native.len()) / megabytes(bytes)),
        "unit": "Native bytes per JSON byte", "lz4": rounded(megabytes(frames.len()) / megabytes(bytes)),
    }))?;
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    let per_record = allocated as f64 / shape.records.len() as f64;
    print(&json!({
        "bench": "allocs", "data": shape.name, "value": rounded(per_record), "unit": "heap allocations per record",
    }))
}

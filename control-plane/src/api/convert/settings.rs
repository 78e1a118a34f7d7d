//! Batching and delivery of a pipe.

use std::{ops::RangeInclusive, time::Duration};

use millrace_common::pipe::{Compression, DataGapPolicy, Delivery, Settings};
use millrace_proto::api::v1 as proto;

use super::{Violations, unknown_enum};

/// One row per batch is slow but works; ten million rows of one byte still fit the largest batch.
const BATCH_ROWS: RangeInclusive<u64> = 1..=10_000_000;
/// Below 4 KB a batch holds hardly a record; above 256 MB it no longer fits a worker's memory beside its neighbours.
const BATCH_BYTES: RangeInclusive<u64> = 4_096..=256_000_000;
/// As the proto says.
const INSERT_WAIT: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(600);

pub(super) fn settings(given: proto::Settings, violations: &mut Violations) -> Settings {
    let default = Settings::default();
    Settings {
        max_batch_rows: number(
            given.max_batch_rows,
            default.max_batch_rows,
            &BATCH_ROWS,
            "pipe.settings.max_batch_rows",
            violations,
        ),
        max_batch_bytes: number(
            given.max_batch_bytes,
            default.max_batch_bytes,
            &BATCH_BYTES,
            "pipe.settings.max_batch_bytes",
            violations,
        ),
        max_insert_wait: wait(given.max_insert_wait, default.max_insert_wait, violations),
        compression: compression(given.compression, default.compression, violations),
        delivery: delivery(given.delivery, default.delivery, violations),
        on_data_gap: on_data_gap(given.on_data_gap, default.on_data_gap, violations),
        max_rejected_records: match given.max_rejected_records {
            0 => default.max_rejected_records,
            // The database counts in signed numbers; there is nothing to count up to that.
            most => most.min(i64::MAX.unsigned_abs()),
        },
    }
}

fn number(given: u64, default: u64, range: &RangeInclusive<u64>, field: &str, violations: &mut Violations) -> u64 {
    if given == 0 {
        return default;
    }
    if !range.contains(&given) {
        violations.add(
            field,
            format!("is {given}; choose {} to {}", range.start(), range.end()),
        );
    }
    given
}

fn wait(given: Option<prost_types::Duration>, default: Duration, violations: &mut Violations) -> Duration {
    let Some(given) = given else {
        return default;
    };
    match span(given) {
        Some(wait) if INSERT_WAIT.contains(&wait) => wait,
        _ => {
            violations.add("pipe.settings.max_insert_wait", "must be 50 ms to 10 min");
            default
        }
    }
}

/// A span of time that is not negative. (`TryFrom` of prost's own type overflows on the smallest number of seconds.)
pub fn span(given: prost_types::Duration) -> Option<Duration> {
    let nanos = u32::try_from(given.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(u64::try_from(given.seconds).ok()?, nanos))
}

fn compression(given: i32, default: Compression, violations: &mut Violations) -> Compression {
    match proto::Compression::try_from(given) {
        Ok(proto::Compression::Unspecified) => default,
        Ok(proto::Compression::Lz4) => Compression::Lz4,
        Ok(proto::Compression::None) => Compression::None,
        Ok(proto::Compression::Zstd) => Compression::Zstd,
        Err(_) => {
            unknown_enum(
                "pipe.settings.compression",
                given,
                "COMPRESSION_LZ4, COMPRESSION_ZSTD or COMPRESSION_NONE",
                violations,
            );
            default
        }
    }
}

fn delivery(given: i32, default: Delivery, violations: &mut Violations) -> Delivery {
    match proto::Delivery::try_from(given) {
        Ok(proto::Delivery::Unspecified) => default,
        Ok(proto::Delivery::ExactlyOnce) => Delivery::ExactlyOnce,
        Ok(proto::Delivery::AtLeastOnce) => Delivery::AtLeastOnce,
        Err(_) => {
            let known = "DELIVERY_EXACTLY_ONCE or DELIVERY_AT_LEAST_ONCE";
            unknown_enum("pipe.settings.delivery", given, known, violations);
            default
        }
    }
}

fn on_data_gap(given: i32, default: DataGapPolicy, violations: &mut Violations) -> DataGapPolicy {
    match proto::DataGapPolicy::try_from(given) {
        Ok(proto::DataGapPolicy::Unspecified) => default,
        Ok(proto::DataGapPolicy::Halt) => DataGapPolicy::Halt,
        Ok(proto::DataGapPolicy::Resume) => DataGapPolicy::Resume,
        Err(_) => {
            let known = "DATA_GAP_POLICY_HALT or DATA_GAP_POLICY_RESUME";
            unknown_enum("pipe.settings.on_data_gap", given, known, violations);
            default
        }
    }
}

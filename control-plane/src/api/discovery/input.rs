//! Records to look at: given by a user, or read from a stream.

use millrace_common::error::ApiError;
use millrace_proto::api::v1 as proto;

use super::request::Wanted;
use crate::{
    api::convert::{self, Violations},
    discovery::sample::{MAX_RECORDS, Record, Sample, ShardSample},
};

/// The stream and partition key of records that were given.
const NOWHERE: &str = "";

/// Records, and where they are from.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// Name of the stream.
    pub(super) stream: String,
    /// By shard, in the order of the shard.
    pub(super) records: Vec<Record>,
    /// What was read of each shard.
    pub(super) shards: Vec<ShardSample>,
    /// Shards that were not looked at.
    pub(super) skipped: usize,
}

impl Input {
    pub(super) fn of_sample(sample: Sample) -> Input {
        Input {
            stream: sample.stream.name,
            records: sample.records,
            shards: sample.shards,
            skipped: sample.skipped,
        }
    }
}

/// Records as somebody has them at hand. Their number stands for a sequence number.
pub(super) fn given(
    given: proto::GivenRecords,
    decoding: Option<&proto::Decoding>,
    field: &str,
) -> Result<Wanted, ApiError> {
    let mut violations = Violations::new();
    if given.records.is_empty() {
        violations.add(format!("{field}.records"), "is required: give at least one record");
    }
    if given.records.len() > MAX_RECORDS as usize {
        violations.add(
            format!("{field}.records"),
            format!("has {} records; at most {MAX_RECORDS} are taken", given.records.len()),
        );
    }
    let decoding = convert::planned_decoding(&decoding.cloned().unwrap_or_default(), &mut violations);
    violations.finish()?;
    let record = |(number, text): (usize, String)| Record {
        shard_id: NOWHERE.to_owned(),
        hash_keys: None,
        sequence_number: number.to_string(),
        partition_key: NOWHERE.to_owned(),
        arrival_millis: 0,
        data: text.into_bytes(),
    };
    Ok(Wanted {
        given: Input {
            records: given.records.into_iter().enumerate().map(record).collect(),
            ..Input::default()
        },
        source: None,
        decoding,
    })
}

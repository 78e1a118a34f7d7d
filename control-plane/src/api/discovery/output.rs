//! What was found, as messages of the API. Everything that holds a user's data is cut to what fits into one message.

use jiff::Timestamp;
use millrace_proto::api::v1::{self as proto, sampled_document::Payload};

use super::input::Input;
use crate::{
    api::convert::output::{duration, timestamp},
    discovery::{
        sample::{Record, ShardSample},
        streams::Listed,
    },
    sample::{Opened, Refusal, Schema},
};

/// Most documents or rows of an answer.
pub(super) const MAX_SHOWN: usize = 1_000;
/// Most bytes of documents or rows of an answer: a client takes four megabytes, with all that stands beside them.
pub(super) const MAX_SHOWN_BYTES: usize = 2 << 20;
/// Most bytes of one document.
const MAX_DOCUMENT_BYTES: usize = 64 << 10;
/// Most refused documents of an inference.
const MAX_REFUSED: usize = 20;
/// Most bytes of a refused document.
const REFUSED_BYTES: usize = 1_024;

/// A stream as it is listed.
pub(super) fn stream(listed: Listed) -> proto::StreamSummary {
    let (open_shard_count, message) = match listed.open_shards {
        None => (None, String::new()),
        Some(Ok(count)) => (Some(count), String::new()),
        Some(Err(error)) => (None, error.message),
    };
    proto::StreamSummary {
        stream_name: listed.name,
        stream_arn: listed.arn,
        status: listed.status,
        mode: listed.mode,
        create_time: listed.created.map(timestamp),
        open_shard_count,
        message,
    }
}

/// What was read of a shard.
pub(super) fn shard(sample: ShardSample) -> proto::ShardSample {
    let (reason, message) = match sample.error {
        Some(error) => (error.reason.to_owned(), error.message),
        None => (String::new(), String::new()),
    };
    proto::ShardSample {
        shard_id: sample.shard.as_str().to_owned(),
        record_count: sample.found,
        lag: sample.lag.map(duration),
        reason,
        message,
    }
}

/// Documents of a sample.
pub(super) fn sample(input: Input, opened: Opened) -> proto::SampleRecordsResponse {
    let mut answer = proto::SampleRecordsResponse {
        record_count: count(input.records.len()),
        skipped_shard_count: count(input.skipped),
        omitted_document_count: count(opened.unread),
        shards: input.shards.into_iter().map(shard).collect(),
        documents: Vec::new(),
    };
    let mut bytes = 0;
    for (number, document) in opened.documents {
        let Some(record) = input.records.get(number) else {
            continue;
        };
        let length = document.text.len();
        let shown = length.min(MAX_DOCUMENT_BYTES);
        if answer.documents.len() >= MAX_SHOWN || bytes + shown > MAX_SHOWN_BYTES {
            answer.omitted_document_count = answer.omitted_document_count.saturating_add(1);
            continue;
        }
        bytes += shown;
        let (error_type, error_message) = match document.object {
            Ok(_) => (String::new(), String::new()),
            Err(rejection) => (rejection.kind.to_string(), rejection.message),
        };
        answer.documents.push(proto::SampledDocument {
            shard_id: record.shard_id.clone(),
            sequence_number: record.sequence_number.clone(),
            sub_sequence_number: document.sub_sequence_number,
            partition_key: String::from_utf8_lossy(&document.partition_key).into_owned(),
            arrival_time: Timestamp::from_millisecond(record.arrival_millis).ok().map(timestamp),
            payload: Some(payload(document.text, shown)),
            cut_from_bytes: if shown < length { length as u64 } else { 0 },
            error_type,
            error_message,
        });
    }
    answer
}

/// The first bytes of a document: as text, if that is what they are.
fn payload(bytes: Vec<u8>, shown: usize) -> Payload {
    match String::from_utf8(bytes) {
        Ok(text) => Payload::Text(cut(text, shown)),
        Err(error) => {
            let mut bytes = error.into_bytes();
            bytes.truncate(shown);
            Payload::Binary(bytes)
        }
    }
}

/// At most so many bytes of a text, in whole characters.
fn cut(mut text: String, bytes: usize) -> String {
    let end = (0..=bytes.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or(0));
    text
}

/// The columns that fit documents.
pub(super) fn schema(schema: &Schema, refused: &[(usize, Refusal)], input: &Input) -> proto::InferSchemaResponse {
    let columns = schema.columns().into_iter().map(|column| proto::InferredColumn {
        name: column.name,
        r#type: column.data_type.to_string(),
        source_field: column.source_field,
        null_ratio: column.null_ratio,
        missing_ratio: column.missing_ratio,
        examples: column.examples,
        note: column.note.to_owned(),
    });
    proto::InferSchemaResponse {
        columns: columns.collect(),
        sorting_key: schema.sorting_key(),
        document_count: schema.documents(),
        refused: refused
            .iter()
            .take(MAX_REFUSED)
            .filter_map(|(number, refusal)| Some(refused_document(input.records.get(*number)?, refusal)))
            .collect(),
        refused_count: refused.len() as u64,
        omitted_value_count: schema.omitted(),
    }
}

/// A document that is no row.
pub(super) fn refused_document(record: &Record, refusal: &Refusal) -> proto::RefusedDocument {
    let head = &refusal.text[..refusal.text.len().min(REFUSED_BYTES)];
    proto::RefusedDocument {
        shard_id: record.shard_id.clone(),
        sequence_number: record.sequence_number.clone(),
        sub_sequence_number: refusal.sub_sequence_number,
        error_type: refusal.rejection.kind.to_string(),
        field_path: refusal.rejection.field_path.clone(),
        error_message: refusal.rejection.message.clone(),
        text: String::from_utf8_lossy(head).into_owned(),
    }
}

/// A count that fits.
pub(super) fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

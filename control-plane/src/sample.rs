//! Records that a user asks to see, taken apart and decoded by the workers' own code. This is the one place where the control plane
//! touches record data, and the one place where it knows the data plane; nothing that is seen here is kept.
//!
//! Invariant: what records unpack to is bounded, whatever they hold.

use millrace_common::pipe::{Decoding, MappedColumn};
use millrace_data_plane::sample::{HashKeyRange, Opener, Preview, RecordMeta};

use crate::discovery::sample::Record;

pub use millrace_data_plane::{
    lane::fault::Fault,
    sample::{Document, InferredColumn, Refusal, Rejection, Row, Schema},
};

/// Bytes that records are unpacked to before the rest is left out: a few kilobytes may hold gigabytes.
const MAX_UNPACKED_BYTES: usize = 32 << 20;

/// What is left of each record: its number, and what came of it.
#[derive(Debug)]
pub struct Opened {
    /// Documents, each with the number of its record.
    pub documents: Vec<(usize, Document)>,
    /// Records that were not taken apart, because those before became too much.
    pub unread: usize,
}

/// Rows and refusals, each with the number of its record.
#[derive(Debug, Default)]
pub struct Previewed {
    /// Rows.
    pub rows: Vec<(usize, Row)>,
    /// What would go to the error table.
    pub refused: Vec<(usize, Refusal)>,
    /// Records that were decoded.
    pub decoded: usize,
}

/// Takes records apart.
///
/// # Errors
/// None that is expected.
pub fn open(records: &[Record], stream: &str, decoding: &Decoding) -> Result<Opened, Fault> {
    let mut opener = Opener::new(decoding)?;
    let mut opened = Opened {
        documents: Vec::new(),
        unread: 0,
    };
    let mut bytes = 0;
    for (number, record) in records.iter().enumerate() {
        if bytes > MAX_UNPACKED_BYTES {
            opened.unread += 1;
            continue;
        }
        for document in opener.open(&record.data, &meta(record, stream)) {
            bytes += document.text.len() + document.object.as_ref().map_or(0, Vec::len);
            opened.documents.push((number, document));
        }
    }
    Ok(opened)
}

/// Finds the columns that fit documents; what is none is given with why, as a refusal.
#[must_use]
pub fn infer(opened: &Opened) -> (Schema, Vec<(usize, Refusal)>) {
    let (mut schema, mut refused) = (Schema::default(), Vec::new());
    for (number, document) in &opened.documents {
        let read = match &document.object {
            Ok(object) => schema.add(object),
            Err(rejection) => Err(rejection.clone()),
        };
        if let Err(rejection) = read {
            refused.push((
                *number,
                Refusal {
                    rejection,
                    text: document.text.clone(),
                    sub_sequence_number: document.sub_sequence_number,
                },
            ));
        }
    }
    (schema, refused)
}

/// Decodes records as a pipe with these columns would.
///
/// # Errors
/// If there can be no such pipe.
pub fn preview(
    records: &[Record],
    stream: &str,
    columns: &[MappedColumn],
    decoding: &Decoding,
    time_zone: &str,
) -> Result<Previewed, Fault> {
    let mut preview = Preview::new(columns, decoding, time_zone)?;
    let mut previewed = Previewed::default();
    let mut bytes = 0;
    for (number, record) in records.iter().enumerate() {
        if bytes > MAX_UNPACKED_BYTES {
            break;
        }
        let decoded = preview.decode(&record.data, &meta(record, stream));
        bytes += decoded.rows.iter().map(|row| row.json.len()).sum::<usize>();
        bytes += decoded.refused.iter().map(|refusal| refusal.text.len()).sum::<usize>();
        previewed.rows.extend(decoded.rows.into_iter().map(|row| (number, row)));
        previewed
            .refused
            .extend(decoded.refused.into_iter().map(|refusal| (number, refusal)));
        previewed.decoded += 1;
    }
    Ok(previewed)
}

fn meta<'a>(record: &'a Record, stream: &'a str) -> RecordMeta<'a> {
    RecordMeta {
        partition_key: record.partition_key.as_bytes(),
        arrival_millis: record.arrival_millis,
        stream,
        shard_id: &record.shard_id,
        sequence_number: record.sequence_number.as_bytes(),
        sub_sequence_number: 0,
        hash_keys: record.hash_keys.map(|(first, last)| HashKeyRange { first, last }),
    }
}

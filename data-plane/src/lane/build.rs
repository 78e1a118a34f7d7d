//! From records to a batch: decode, encode, digest. Processor work without IO, done off the lane's task.
//!
//! Invariant: slices, revision, terms, pipe and batch id decide every byte and the digest. Nothing else goes in: no clock, no
//! order of arrival, no state of an earlier batch.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use millrace_common::{
    batch::{Counts, Digest, OpenBatch, Terms},
    clickhouse::error_table_column_names,
    ids::{BatchId, PipeUid, SequenceNumber, ShardId},
    pipe::Compression,
    position::{Position, Slice},
};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::{queue::Run, recipe::Recipe};
use crate::{
    batch::{
        block::{Block, Output},
        cut::Rules,
    },
    commit::{Body, Built},
    decode::{Decoder, Plan, RecordMeta, Rejection},
    sink::clickhouse::{
        errors_table::{ErrorBlock, Rejected},
        native::{Frames, Method},
    },
    source::{Budget, HashKeyRange, Permit, Record},
};

/// How records become the bytes of a batch: decoding, the words and classes of rejections, the encoding of blocks, their order.
/// A batch that is open when a worker is replaced is built again by the next one and must come out the same to the byte, so
/// whatever changes what any record becomes raises this number. Then workers of both releases must run until no batch of
/// the old format is open: this one says so and leaves such a batch alone.
pub(super) const FORMAT: u32 = 1;
/// Payload bytes between two looks at the size of the block, which visit every column. A block may be larger than its
/// bound by what they become.
const MEASURE_AFTER_BYTES: usize = 64 * 1024;
/// A block of this size keeps its memory for the next one without paying for it.
const SMALL_BLOCK_BYTES: usize = 256 * 1024;
/// `error_type` of a record that ClickHouse itself refused.
const SERVER_REFUSED: &str = "server_refused";
/// The first of a record's documents, or the record as a whole.
const WHOLE_RECORD: u64 = 0;

/// What to make a batch of.
#[derive(Debug)]
pub(super) struct Job {
    pub id: BatchId,
    pub pipe: PipeUid,
    pub recipe: Arc<Recipe>,
    pub runs: Vec<Run>,
    /// When the batch is full; `None`: never, because its slices are given.
    pub rules: Option<Rules>,
    /// Buffers of an earlier batch.
    pub bench: Option<Bench>,
    /// Memory of the lane, which pays for what the records' own permits do not.
    pub budget: Arc<Budget>,
    /// What else decides over its content.
    pub terms: Terms,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Outcome {
    pub id: BatchId,
    pub recipe: Arc<Recipe>,
    /// The batch; `None` if there was no record.
    pub built: Option<Built>,
    /// What the batch had no room for.
    pub left: Vec<Run>,
    /// Buffers for the next batch.
    pub bench: Bench,
    /// Bytes that went into the encoded blocks.
    pub encoded_bytes: u64,
    /// Messages of aggregates whose hash key is outside the range of their shard, by shard.
    pub out_of_range: BTreeMap<ShardId, u64>,
}

/// A decoder and buffers, kept between batches of one plan.
#[derive(Debug)]
pub(super) struct Bench {
    plan: Arc<Plan>,
    decoder: Decoder,
    rows: Block,
    errors: ErrorBlock,
    /// Pays for the memory that the empty block keeps, unless that is little.
    kept: Option<Permit>,
    /// Documents that are not rows, also those that are in the error table already.
    rejected: u64,
    /// Messages of aggregates whose hash key is outside the range of their shard.
    out_of_range: u64,
}

impl Bench {
    fn new(plan: &Arc<Plan>) -> Self {
        Self {
            plan: Arc::clone(plan),
            decoder: Decoder::new(Arc::clone(plan)),
            rows: Block::new(plan),
            errors: ErrorBlock::new(),
            kept: None,
            rejected: 0,
            out_of_range: 0,
        }
    }

    /// Gives up the memory that is kept for the next batch, if it is worth mentioning.
    pub(super) fn release(&mut self) {
        if self.kept.take().is_some() {
            self.rows = Block::new(&self.plan);
        }
    }

    /// Writes the rows and empties their block, which keeps its memory if that is little or can be paid for.
    fn write_rows(&mut self, budget: &Arc<Budget>, out: &mut Encoder) {
        let bytes = self.rows.encoded_bytes();
        if bytes > SMALL_BLOCK_BYTES {
            self.kept = budget.try_acquire(bytes);
            if self.kept.is_none() {
                let rows = std::mem::replace(&mut self.rows, Block::new(&self.plan));
                return rows.into_native(out);
            }
        }
        self.rows.write_native(out);
        self.rows.clear();
    }

    fn clear(&mut self) {
        self.rows.clear();
        self.errors.clear();
        self.rejected = 0;
        self.out_of_range = 0;
    }

    /// Moves a record into the blocks. Returns how many bytes were read: those that it was unpacked to.
    fn take(
        &mut self,
        stream: &str,
        (shard, hash_keys): (&ShardId, Option<HashKeyRange>),
        record: &Record,
        terms: &Terms,
    ) -> usize {
        if let Some(words) = &terms.condemned {
            self.condemn(shard, record, words);
            return record.data().len();
        }
        let meta = RecordMeta {
            partition_key: record.partition_key(),
            arrival_millis: record.arrival_millis,
            stream,
            shard_id: shard.as_str(),
            sequence_number: record.digits(),
            sub_sequence_number: WHOLE_RECORD,
            hash_keys,
        };
        let Self {
            decoder,
            rows,
            errors,
            rejected,
            ..
        } = self;
        let decoded = decoder.decode(record.data(), &meta, rows, &mut |refused| {
            *rejected += 1;
            if !terms.part {
                let Rejection {
                    kind,
                    message,
                    field_path,
                } = &refused.rejection;
                let part = Part {
                    partition_key: refused.partition_key.unwrap_or(record.partition_key()),
                    value: refused.text,
                    sub_sequence_number: refused.sub_sequence_number,
                };
                errors.push(&rejection(shard, record, part, (kind.as_str(), message, field_path)));
            }
        });
        self.out_of_range += decoded.out_of_range;
        decoded.bytes
    }

    fn condemn(&mut self, shard: &ShardId, record: &Record, words: &str) {
        self.rejected += 1;
        let whole = Part {
            partition_key: record.partition_key(),
            value: record.data(),
            sub_sequence_number: WHOLE_RECORD,
        };
        self.errors
            .push(&rejection(shard, record, whole, (SERVER_REFUSED, words, "")));
    }

    fn encoded_bytes(&self) -> u64 {
        self.rows.encoded_bytes() as u64
            + if self.errors.is_empty() {
                0
            } else {
                self.errors.encoded_bytes() as u64
            }
    }
}

/// A part of a record that is refused.
#[derive(Clone, Copy)]
struct Part<'a> {
    partition_key: &'a [u8],
    value: &'a [u8],
    sub_sequence_number: u64,
}

/// A row of the error table: about a part of a record, with class, words and path.
fn rejection<'a>(
    shard: &'a ShardId,
    record: &'a Record,
    part: Part<'a>,
    (error_type, message, field_path): (&'a str, &'a str, &'a str),
) -> Rejected<'a> {
    Rejected {
        error_type,
        message,
        field_path,
        partition_key: part.partition_key,
        value: part.value,
        arrival_millis: record.arrival_millis,
        shard,
        sequence_number: record.digits(),
        sub_sequence_number: part.sub_sequence_number,
    }
}

/// A batch that is being filled.
struct Filling {
    recipe: Arc<Recipe>,
    rules: Option<Rules>,
    bench: Bench,
    counts: Counts,
    permits: Vec<Arc<Permit>>,
    /// Pays for what the block takes beyond the records that it was made from.
    beyond: Permit,
    unmeasured_bytes: usize,
    is_full: bool,
    terms: Terms,
}

impl Filling {
    /// Moves records of a run into the blocks until the batch is full. Returns the last of them.
    fn fill(&mut self, run: &mut Run) -> Option<SequenceNumber> {
        let mut to = None;
        while let Some(page) = run.pages.front_mut().filter(|_| !self.is_full) {
            let mut taken = None;
            let origin = (&run.shard, page.hash_keys);
            self.permits.push(Arc::clone(&page.permit));
            while !self.is_full
                && let Some(record) = page.records.next()
            {
                let stream = &self.recipe.spec.source.stream.name;
                let read_bytes = self.bench.take(stream, origin, &record, &self.terms);
                self.count(record.data().len(), read_bytes);
                taken = Some(record);
            }
            to = taken.map(|record| record.sequence_number()).or(to);
            if page.records.len() == 0 {
                to = Some(page.last.clone());
                run.pages.pop_front();
            }
        }
        to
    }

    fn count(&mut self, payload_bytes: usize, read_bytes: usize) {
        self.counts.records += 1;
        self.counts.bytes += payload_bytes as u64;
        self.counts.rows = self.bench.rows.rows() as u64;
        self.counts.rejected_records = self.bench.rejected;
        self.unmeasured_bytes += read_bytes;
        let mut encoded_bytes = 0;
        if self.unmeasured_bytes >= MEASURE_AFTER_BYTES {
            self.unmeasured_bytes = 0;
            encoded_bytes = self.bench.encoded_bytes();
            let beyond = encoded_bytes.saturating_sub(self.counts.bytes);
            self.beyond.resize(usize::try_from(beyond).unwrap_or(usize::MAX));
        }
        if let Some(rules) = &self.rules {
            self.is_full = rules.is_full(self.counts.rows + self.counts.rejected_records, encoded_bytes);
        }
    }
}

/// The first record of a run, if nothing else says where it begins.
fn first(run: &Run) -> Option<SequenceNumber> {
    if let Position::After(_) = run.from {
        return None;
    }
    let mut records = run.pages.iter().flat_map(|page| page.records.as_slice());
    records.next().map(Record::sequence_number)
}

/// Makes one batch.
pub(super) fn build(job: Job) -> Outcome {
    let Job {
        id,
        pipe,
        recipe,
        runs,
        rules,
        bench,
        budget,
        terms,
    } = job;
    let reusable = bench.filter(|bench| Arc::ptr_eq(&bench.plan, &recipe.plan));
    let mut bench = reusable.unwrap_or_else(|| Bench::new(&recipe.plan));
    // From here on the records pay, as they move into the block.
    bench.kept = None;
    bench.clear();
    let mut filling = Filling {
        recipe,
        rules,
        bench,
        counts: Counts::default(),
        permits: Vec::new(),
        beyond: budget.empty(),
        unmeasured_bytes: 0,
        is_full: false,
        terms,
    };
    let (mut slices, mut left) = (Vec::new(), Vec::new());
    let mut firsts = BTreeMap::new();
    let mut out_of_range = BTreeMap::new();
    for mut run in runs {
        let first = first(&run);
        let before = filling.bench.out_of_range;
        if let Some(to_inclusive) = filling.fill(&mut run) {
            firsts.extend(first.map(|number| (run.shard.clone(), number)));
            let strangers = filling.bench.out_of_range - before;
            out_of_range.extend((strangers > 0).then(|| (run.shard.clone(), strangers)));
            slices.push(Slice {
                shard: run.shard.clone(),
                from_exclusive: run.from.clone(),
                to_inclusive,
            });
        }
        if !run.pages.is_empty() {
            left.push(run);
        }
    }
    let Filling {
        recipe,
        mut bench,
        counts,
        mut permits,
        beyond,
        terms,
        ..
    } = filling;
    if slices.is_empty() {
        return Outcome {
            id,
            recipe,
            built: None,
            left,
            bench,
            encoded_bytes: 0,
            out_of_range,
        };
    }
    let mut encoder = Encoder::new(recipe.spec.compression);
    bench.write_rows(&budget, &mut encoder);
    let (rows, rows_bytes, rows_digest) = encoder.finish();
    let mut encoder = Encoder::new(recipe.spec.compression);
    let mut native = Vec::new();
    bench.errors.write_native(&pipe.to_string(), id, &mut native);
    let any_errors = !bench.errors.is_empty();
    // Rejected records are seldom many: what held them is not kept.
    bench.errors = ErrorBlock::new();
    encoder.put(&native);
    let (errors, errors_bytes, errors_digest) = encoder.finish();
    permits.push(Arc::new(beyond));
    let digest = digest(rows_digest, errors_digest);
    let batch = OpenBatch {
        id,
        revision: recipe.revision(),
        slices,
        counts,
        digest,
        terms: Terms { firsts, ..terms },
    };
    let rows = (counts.rows > 0).then(|| Body {
        columns: Arc::clone(&recipe.columns),
        ..rows
    });
    let errors = any_errors.then(|| Body {
        columns: error_table_column_names().map(str::to_owned).into(),
        ..errors
    });
    let built = Built {
        batch,
        rows,
        errors,
        permits,
    };
    Outcome {
        id,
        recipe,
        built: Some(built),
        left,
        bench,
        encoded_bytes: rows_bytes + errors_bytes,
        out_of_range,
    }
}

/// Takes a block as it is written, and makes of it what will be sent: its digest is that of its plain bytes.
struct Encoder {
    digest: Xxh3,
    bytes: u64,
    body: Encoding,
}

enum Encoding {
    Frames(Frames),
    Plain(Vec<u8>),
}

impl Encoder {
    fn new(compression: Compression) -> Self {
        Self {
            digest: Xxh3::new(),
            bytes: 0,
            body: match compression {
                Compression::Lz4 => Encoding::Frames(Frames::new(Method::Lz4)),
                Compression::Zstd => Encoding::Frames(Frames::new(Method::Zstd)),
                Compression::None => Encoding::Plain(Vec::new()),
            },
        }
    }

    /// The block as it will be sent, but for its columns; its plain bytes, and their digest.
    fn finish(self) -> (Body, u64, Digest) {
        let (bytes, compressed) = match self.body {
            Encoding::Frames(frames) => (frames.finish(), true),
            Encoding::Plain(mut native) => {
                native.shrink_to_fit();
                (native, false)
            }
        };
        let body = Body {
            columns: Arc::default(),
            bytes: Bytes::from(bytes),
            compressed,
        };
        (body, self.bytes, self.digest.digest128().to_be_bytes())
    }
}

impl Output for Encoder {
    fn put(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        match &mut self.body {
            Encoding::Frames(frames) => frames.put(bytes),
            Encoding::Plain(native) => native.put(bytes),
        }
    }
}

/// The digest of a batch. It is stored with the batch and compared at a replay, so it must never change.
fn digest(rows: Digest, errors: Digest) -> Digest {
    let mut both = [0; 32];
    both[..16].copy_from_slice(&rows);
    both[16..].copy_from_slice(&errors);
    xxh3_128(&both).to_be_bytes()
}

#[cfg(test)]
mod tests;

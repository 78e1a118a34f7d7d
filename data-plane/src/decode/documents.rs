//! A record's documents: one JSON object, several one after the other, or arrays of them. Each is a row of its own.
//!
//! What `FORMAT JSONEachRow` takes for several rows is several documents: objects with white space, a comma or nothing between
//! them, or in one array; and, beyond it, several such arrays. A document that does not fit the table is refused alone. After text
//! that is no JSON, reading goes on at the next line that begins with an object, so that one damaged line does not cost the
//! others; if there is none, the rest of the record is refused as it is.
//!
//! Invariants:
//! - Every byte of a record that is not white space or punctuation between documents is in a row or in a refused text.
//! - However a record is made, the work is linear in its length, and so is what is refused; its rows are bounded, too.

use millrace_common::pipe::Envelope;

use super::{
    Decoded, Decoder, RecordMeta,
    cursor::Cursor,
    envelope::Document,
    reject::{Attempt, Fail, Rejection, RejectionKind},
    unpack::{How, Message},
};
use crate::batch::block::Block;

/// Most documents of one record that are refused one by one: a record of broken documents would make as many error rows.
const MAX_REFUSED: usize = 1000;
/// Most messages of other shards that one record is refused one by one: they are no fault of what is in them, so they are not counted
/// among the refused. As many messages as fit into an aggregate of a mebibyte; of a larger one the rest is refused in one piece.
const MAX_STRANGERS: usize = 100_000;
/// Most bytes of rows that one record may become, if it holds several documents: a batch is cut between records only, and empty
/// objects are rows as well.
const MAX_ROW_BYTES: usize = 32 << 20;
/// Documents between two looks at how many bytes they have become, which visit every column.
const MEASURE_AFTER_DOCUMENTS: u64 = 256;
/// So many times the length of what came so far, all messages of an aggregate together, is read in vain before the rest is refused.
const MAX_VAIN_READINGS: usize = 4;
/// So many times the length of what came so far is written for the rows of the documents in it, and [`LEAST_WRITTEN_BYTES`], before
/// the rest is refused: what is around them is in each row. A log event with the longest names that there are needs 22.
const MAX_WRITTEN: usize = 32;
/// A small record is not worth counting.
const LEAST_WRITTEN_BYTES: usize = 1 << 20;

/// A part of a record that is no row.
#[derive(Debug)]
pub struct Refused<'a> {
    /// Why.
    pub rejection: Rejection,
    /// The document as it stands in the record, or in what that was unpacked to; all of it if nothing else is in it.
    pub text: &'a [u8],
    /// Partition key of the message in an aggregate; `None`: the record's own.
    pub partition_key: Option<&'a [u8]>,
    /// Place of the document among the record's, as the virtual column says it.
    pub sub_sequence_number: u64,
}

/// What is told of each part of a record that is no row.
pub(super) type Report<'r> = &'r mut dyn FnMut(Refused<'_>);

/// How far we are in a record.
#[derive(Default)]
struct Progress {
    /// Number of the message's first document.
    first: u64,
    /// Number of the next one.
    number: u64,
    refused: usize,
    /// Bytes that were given to be read.
    given: usize,
    /// Bytes that were read and then refused.
    vain: usize,
    /// Bytes of rows that were written out of envelopes.
    written: usize,
    /// Size of the block when it was first looked at.
    row_bytes: Option<usize>,
    /// What is around the documents of a message was written too often.
    wrote_too_much: bool,
    /// Inside an array of documents.
    in_array: bool,
    /// A document came, and no comma since.
    comma_may_follow: bool,
    /// A comma came, and no document since.
    comma_came: bool,
    /// A bound was reached: the rest is refused as it is.
    is_exhausted: bool,
}

/// What became of a document.
enum Verdict {
    /// It is a row.
    Row,
    /// It is none, and ends at the cursor.
    Refused(Fail),
    /// It is none, and where it ends is not known.
    Broken(Fail),
}

impl Decoder {
    /// Reads the documents of a record, each into one more row or into a report. Most records are one document.
    #[inline(always)]
    pub(super) fn documents(
        &mut self,
        record: &[u8],
        meta: &RecordMeta<'_>,
        block: &mut Block,
        report: Report<'_>,
    ) -> u64 {
        if simdutf8::basic::from_utf8(record).is_err() {
            let mut progress = Progress::at(meta.sub_sequence_number, record.len());
            self.read_damaged(record, meta, block, &mut progress, report);
            return progress.number - progress.first;
        }
        let mut cursor = Cursor::new(record);
        cursor.skip_space();
        let start = cursor.position();
        if cursor.peek() == Some(b'{') {
            let appended = self.append_first(&mut cursor, start, record, meta, block);
            if appended.is_ok() && cursor.peek().is_none() {
                return 1;
            }
            return self.read_after_first(appended, &mut cursor, start, record, meta, block, report);
        }
        let mut progress = Progress::at(meta.sub_sequence_number, record.len());
        self.read_on(&mut cursor, record, meta, block, &mut progress, report);
        progress.number - progress.first
    }

    /// Reads the record's first document into one more row, and goes past the space after it.
    #[inline(always)]
    fn append_first(
        &mut self,
        cursor: &mut Cursor<'_>,
        start: usize,
        record: &[u8],
        meta: &RecordMeta<'_>,
        block: &mut Block,
    ) -> Attempt<()> {
        self.append_json(cursor, block)?;
        let end = cursor.position();
        cursor.skip_space();
        let raw = if cursor.peek().is_none() {
            record
        } else {
            &record[start..end]
        };
        self.append_about(raw, meta.sub_sequence_number, meta, block)?;
        block.finish_row();
        Ok(())
    }

    /// The rest of a record whose first document is no row, or not the only one.
    #[inline(never)]
    #[allow(
        clippy::too_many_arguments,
        reason = "the cold half of a function that was cut in two"
    )]
    fn read_after_first<'a>(
        &mut self,
        first: Attempt<()>,
        cursor: &mut Cursor<'a>,
        start: usize,
        record: &'a [u8],
        meta: &RecordMeta<'_>,
        block: &mut Block,
        report: Report<'_>,
    ) -> u64 {
        let mut progress = Progress::at(meta.sub_sequence_number, record.len());
        let verdict = verdict(first, cursor, start, block);
        if progress.take(verdict, start, record, cursor, block, report) {
            self.read_on(cursor, record, meta, block, &mut progress, report);
        }
        progress.number - progress.first
    }

    /// The messages of a record that may be packed, and their documents.
    #[inline(never)]
    pub(super) fn packed(
        &mut self,
        record: &[u8],
        meta: &RecordMeta<'_>,
        block: &mut Block,
        report: Report<'_>,
    ) -> Decoded {
        let whole = Message {
            partition_key: meta.partition_key,
            bytes: record,
        };
        let mut unpacker = std::mem::take(&mut self.unpacker);
        let mut progress = Progress::at(meta.sub_sequence_number, 0);
        let (mut bytes, mut passed_over, mut strangers) = (0, 0, 0);
        let how = How {
            is_text: !self.plan.parses_json() && self.plan.envelope.is_none(),
            hash_keys: meta.hash_keys,
            on_out_of_range: self.plan.on_out_of_range,
        };
        let out_of_range = unpacker.each(whole, how, &mut |message, rejection| {
            if progress.is_exhausted {
                passed_over += 1;
                return;
            }
            if rejection
                .as_ref()
                .is_some_and(|rejection| rejection.kind == RejectionKind::OutOfHashRange)
            {
                strangers += 1;
                if strangers > MAX_STRANGERS {
                    return;
                }
            }
            bytes += message.bytes.len();
            progress.message_comes(message.bytes.len());
            let mut report = |refused: Refused<'_>| {
                report(Refused {
                    partition_key: Some(message.partition_key),
                    ..refused
                });
            };
            let meta = RecordMeta {
                partition_key: message.partition_key,
                ..*meta
            };
            match rejection {
                Some(rejection) => progress.refuse_message(rejection, message.bytes, &mut report),
                None => self.message(message.bytes, &meta, block, &mut progress, &mut report),
            }
            progress.is_exhausted |= progress.refused >= MAX_REFUSED;
        });
        self.unpacker = unpacker;
        if passed_over > 0 {
            let message = format!(
                "{passed_over} messages of this aggregate were not read, because too much was refused, or made of, those before"
            );
            let fail = Fail::other(RejectionKind::TooManyDocuments, 0, message);
            progress.refuse(fail.into_rejection(record), record, report);
        } else if strangers > MAX_STRANGERS {
            let message = format!(
                "{} more messages of this aggregate belong to other shards",
                strangers - MAX_STRANGERS
            );
            let fail = Fail::other(RejectionKind::OutOfHashRange, 0, message);
            progress.refuse(fail.into_rejection(record), record, report);
        }
        Decoded {
            documents: progress.number - meta.sub_sequence_number,
            bytes,
            out_of_range,
        }
    }

    /// The documents of a message.
    fn message(
        &mut self,
        message: &[u8],
        meta: &RecordMeta<'_>,
        block: &mut Block,
        progress: &mut Progress,
        report: Report<'_>,
    ) {
        if let Some(envelope) = self.plan.envelope {
            return self.wrapped(envelope, message, meta, block, progress, report);
        }
        if !self.plan.parses_json() {
            let appended = self.append_about(message, progress.number, meta, block);
            let verdict = match appended {
                Ok(()) => {
                    block.finish_row();
                    Verdict::Row
                }
                Err(fail) => {
                    block.truncate(block.rows());
                    Verdict::Refused(fail)
                }
            };
            progress.take(verdict, 0, message, &mut Cursor::at_end(message), block, report);
        } else if simdutf8::basic::from_utf8(message).is_ok() {
            self.read_on(&mut Cursor::new(message), message, meta, block, progress, report);
        } else {
            self.read_damaged(message, meta, block, progress, report);
        }
    }

    /// The documents that a message wraps.
    fn wrapped(
        &mut self,
        envelope: Envelope,
        message: &[u8],
        meta: &RecordMeta<'_>,
        block: &mut Block,
        progress: &mut Progress,
        report: Report<'_>,
    ) {
        if let Err(invalid) = simdutf8::compat::from_utf8(message) {
            let at = invalid.valid_up_to();
            let words = format!("the record is not UTF-8: invalid byte at {at} of {}", message.len());
            let fail = Fail::other(RejectionKind::InvalidUtf8, at, words);
            return progress.refuse(fail.into_rejection(message), message, report);
        }
        let mut opener = std::mem::take(&mut self.opener);
        let opened = opener.open(envelope, message, self.plan.wants_about, &mut |document| {
            if progress.is_exhausted {
                progress.refuse_rest(document.rest, 0, report);
                return false;
            }
            match self.append_unwrapped(&document, progress.number, meta, block) {
                Ok(()) => progress.number += 1,
                Err(fail) => {
                    block.truncate(block.rows());
                    progress.refuse(fail.into_rejection(document.row), document.text, report);
                }
            }
            progress.written += document.row.len();
            progress.wrote_too_much = progress.written > MAX_WRITTEN * progress.given + LEAST_WRITTEN_BYTES;
            progress.is_exhausted =
                progress.wrote_too_much || progress.refused >= MAX_REFUSED || progress.has_become_too_much(block);
            true
        });
        self.opener = opener;
        if let Err(fail) = opened {
            progress.refuse(fail.into_rejection(message), message, report);
        }
    }

    fn append_unwrapped(
        &mut self,
        document: &Document<'_>,
        number: u64,
        meta: &RecordMeta<'_>,
        block: &mut Block,
    ) -> Attempt<()> {
        if self.plan.parses_json() {
            self.append_json(&mut Cursor::new(document.row), block)?;
        }
        self.append_about(document.raw, number, meta, block)?;
        block.finish_row();
        Ok(())
    }

    /// The same for a record that is not UTF-8: what is wrong in one line does not concern the others.
    #[cold]
    fn read_damaged(
        &mut self,
        record: &[u8],
        meta: &RecordMeta<'_>,
        block: &mut Block,
        progress: &mut Progress,
        report: Report<'_>,
    ) {
        let mut start = 0;
        while start < record.len() && !progress.is_exhausted {
            let end = next_line(record, start).unwrap_or(record.len());
            let piece = &record[start..end];
            if let Err(invalid) = simdutf8::compat::from_utf8(piece) {
                let at = start + invalid.valid_up_to();
                let message = format!("the record is not UTF-8: invalid byte at {at} of {}", record.len());
                let fail = Fail::other(RejectionKind::InvalidUtf8, at, message);
                progress.document_came();
                progress.is_exhausted = progress.refused + 1 >= MAX_REFUSED;
                progress.refuse(fail.into_rejection(record), piece, report);
            } else {
                self.read_on(&mut Cursor::new(piece), piece, meta, block, progress, report);
            }
            start = end;
        }
        if start < record.len() {
            progress.refuse_rest(record, start, report);
        }
    }

    /// Reads the documents of a text from the cursor on.
    #[inline(never)]
    fn read_on<'a>(
        &mut self,
        cursor: &mut Cursor<'a>,
        text: &'a [u8],
        meta: &RecordMeta<'_>,
        block: &mut Block,
        progress: &mut Progress,
        report: Report<'_>,
    ) {
        loop {
            cursor.skip_space();
            let start = cursor.position();
            let found = match cursor.peek() {
                Some(b'{') => {
                    let appended = self.append_next(cursor, start, text, meta, block, progress);
                    verdict(appended, cursor, start, block)
                }
                None => return progress.end(text, report),
                Some(byte) => {
                    if progress.punctuation(byte, text, cursor, report) {
                        continue;
                    }
                    no_object(cursor, start, text)
                }
            };
            if !progress.take(found, start, text, cursor, block, report) {
                return;
            }
        }
    }

    /// Reads the object at the cursor into one more row.
    fn append_next(
        &mut self,
        cursor: &mut Cursor<'_>,
        start: usize,
        text: &[u8],
        meta: &RecordMeta<'_>,
        block: &mut Block,
        progress: &Progress,
    ) -> Attempt<()> {
        self.append_json(cursor, block)?;
        let raw = progress.alone(text, start, cursor.position());
        self.append_about(raw, progress.number, meta, block)?;
        block.finish_row();
        Ok(())
    }
}

/// What became of a document. If it is no row, the block is as it was before.
fn verdict(appended: Attempt<()>, cursor: &mut Cursor<'_>, start: usize, block: &mut Block) -> Verdict {
    match appended {
        Ok(()) => Verdict::Row,
        Err(fail) => {
            block.truncate(block.rows());
            explain(fail, cursor, start)
        }
    }
}

impl Progress {
    /// What stands between two places of a text; the whole text if nothing else is in it.
    fn alone<'a>(&self, text: &'a [u8], start: usize, end: usize) -> &'a [u8] {
        let is_alone = self.number == self.first
            && text[..start].trim_ascii_start().is_empty()
            && text[end..].trim_ascii_start().is_empty();
        if is_alone { text } else { &text[start..end] }
    }

    fn at(first: u64, given: usize) -> Progress {
        Progress {
            first,
            number: first,
            given,
            ..Progress::default()
        }
    }

    fn message_comes(&mut self, length: usize) {
        self.given += length;
        self.first = self.number;
        self.in_array = false;
        self.comma_may_follow = false;
        self.comma_came = false;
    }

    fn document_came(&mut self) {
        self.comma_may_follow = true;
        self.comma_came = false;
    }

    /// Notes what became of a document, and goes past it; false if nothing of the text is left to be read.
    fn take<'a>(
        &mut self,
        verdict: Verdict,
        start: usize,
        text: &'a [u8],
        cursor: &mut Cursor<'a>,
        block: &Block,
        report: Report<'_>,
    ) -> bool {
        self.document_came();
        match verdict {
            Verdict::Row => self.number += 1,
            verdict => {
                if !self.pass(verdict, start, text, cursor, report) {
                    return false;
                }
            }
        }
        if self.has_become_too_much(block) {
            self.is_exhausted = true;
            self.refuse_rest(text, cursor.position(), report);
        }
        !self.is_exhausted
    }

    /// Goes past what may stand between documents; false if this may not.
    #[cold]
    fn punctuation<'a>(&mut self, byte: u8, text: &'a [u8], cursor: &mut Cursor<'a>, report: Report<'_>) -> bool {
        let start = cursor.position();
        match byte {
            b',' if self.comma_may_follow => self.comma_came = true,
            b'[' if !self.in_array && !self.comma_came => self.in_array = true,
            b']' if self.in_array && !self.comma_came => self.in_array = false,
            _ => return false,
        }
        cursor.restart(start + 1);
        if byte == b'[' {
            cursor.skip_space();
            if cursor.peek() == Some(b']') {
                self.in_array = false;
                cursor.restart(cursor.position() + 1);
                let empty = Fail::other(RejectionKind::EmptyRecord, start, "the record is an empty array");
                let alone = self.alone(text, start, cursor.position());
                self.refuse(empty.into_rejection(text), alone, report);
            }
        }
        self.comma_may_follow = false;
        true
    }

    /// Reports a document that is no row and goes past it; false if the rest of the text was refused with it.
    #[cold]
    fn pass<'a>(
        &mut self,
        verdict: Verdict,
        start: usize,
        text: &'a [u8],
        cursor: &mut Cursor<'a>,
        report: Report<'_>,
    ) -> bool {
        let end = cursor.position();
        self.vain += end.saturating_sub(start);
        let (fail, next) = match verdict {
            Verdict::Row => return true,
            Verdict::Refused(fail) => (fail, Some(end)),
            Verdict::Broken(fail) => (fail, next_line(text, start)),
        };
        let end = next.unwrap_or(text.len());
        self.refuse(fail.into_rejection(text), self.alone(text, start, end), report);
        cursor.restart(end);
        self.is_exhausted = self.refused >= MAX_REFUSED || self.vain > MAX_VAIN_READINGS * self.given;
        if self.is_exhausted {
            self.refuse_rest(text, end, report);
        }
        next.is_some() && !self.is_exhausted
    }

    /// Refuses a message that was not looked into. One of another shard is not counted as refused.
    #[cold]
    fn refuse_message(&mut self, rejection: Rejection, message: &[u8], report: Report<'_>) {
        let is_stranger = rejection.kind == RejectionKind::OutOfHashRange;
        self.refuse(rejection, message, report);
        self.refused -= usize::from(is_stranger);
    }

    #[cold]
    fn refuse(&mut self, rejection: Rejection, text: &[u8], report: Report<'_>) {
        report(Refused {
            rejection,
            text,
            partition_key: None,
            sub_sequence_number: self.number,
        });
        self.refused += 1;
        self.number += 1;
    }

    /// Reports what stands from `start` on without having read it.
    #[cold]
    fn refuse_rest(&mut self, text: &[u8], start: usize, report: Report<'_>) {
        let rest = &text[start..];
        if rest.trim_ascii_start().is_empty() {
            return;
        }
        let why = if self.refused >= MAX_REFUSED {
            format!("{MAX_REFUSED} documents of this record were refused before")
        } else if self.wrote_too_much {
            "what is around its documents was written too often".to_owned()
        } else if self.vain > MAX_VAIN_READINGS * self.given {
            "what was refused before was read too often".to_owned()
        } else {
            format!("its documents before became {} MiB of rows", MAX_ROW_BYTES >> 20)
        };
        let message = format!("the rest of the record was not read: {why}; put fewer documents into a record");
        let fail = Fail::other(RejectionKind::TooManyDocuments, start, message);
        self.refuse(fail.into_rejection(text), rest, report);
    }

    /// Reports what is missing where a text ends.
    fn end(&mut self, text: &[u8], report: Report<'_>) {
        if self.in_array || self.number == self.first {
            self.end_too_early(text, report);
        }
    }

    #[cold]
    fn end_too_early(&mut self, text: &[u8], report: Report<'_>) {
        let fail = if std::mem::take(&mut self.in_array) {
            Fail::malformed(text.len(), "the array of the record's documents is not closed")
        } else if text.is_empty() {
            Fail::other(RejectionKind::EmptyRecord, 0, "the record is empty")
        } else {
            Fail::other(RejectionKind::EmptyRecord, 0, "the record holds only white space")
        };
        self.refuse(fail.into_rejection(text), text, report);
    }

    /// Whether the rows of this record are too large.
    fn has_become_too_much(&mut self, block: &Block) -> bool {
        if !self.number.is_multiple_of(MEASURE_AFTER_DOCUMENTS) {
            return false;
        }
        let bytes = block.encoded_bytes();
        bytes.saturating_sub(*self.row_bytes.get_or_insert(bytes)) > MAX_ROW_BYTES
    }
}

/// What becomes of a document that is no row: one that is no JSON is called that, wherever else it was at fault first.
#[cold]
fn explain(fail: Fail, cursor: &mut Cursor<'_>, start: usize) -> Verdict {
    if matches!(fail.kind(), RejectionKind::MalformedJson | RejectionKind::TooDeep) {
        return Verdict::Broken(fail);
    }
    cursor.restart(start);
    match cursor.skip_value() {
        Ok(_) => Verdict::Refused(fail),
        Err(broken) => Verdict::Broken(broken),
    }
}

/// The verdict on something else than an object.
#[cold]
fn no_object(cursor: &mut Cursor<'_>, start: usize, text: &[u8]) -> Verdict {
    if start == 0 && text.starts_with("\u{feff}".as_bytes()) {
        let what = "the record starts with a byte order mark; expected a JSON object";
        return Verdict::Broken(Fail::malformed(0, what));
    }
    let fail = cursor.expected("expected a JSON object");
    match cursor.skip_value() {
        Ok(_) => Verdict::Refused(fail),
        Err(_) => Verdict::Broken(fail),
    }
}

/// Where the next line begins that starts with an object.
fn next_line(text: &[u8], after: usize) -> Option<usize> {
    let rest = text.get(after + 1..)?;
    memchr::memmem::find(rest, b"\n{").map(|newline| after + 1 + newline + 1)
}

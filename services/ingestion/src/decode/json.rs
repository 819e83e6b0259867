//! JSON messages → rows, through arrow-json's tape.
//!
//! The invariant: a message never lends bytes to the next. Input is fed line by line and checked for an unfinished
//! record at each line's end, so a truncated line cannot swallow its neighbour; an object that spans lines is taken
//! only where its end is found by a strict parse.
//!
//! arrow-json is lenient about commas between members; what it takes is taken here, in a run as alone.

mod segments;

use std::sync::Arc;

use arrow::{
    datatypes::{FieldRef, Schema},
    error::ArrowError,
    json::{ReaderBuilder, reader::Decoder as TapeDecoder},
};
use topics::Message;

use super::{
    BATCH_ROWS, Decoded, Fault, NARROW_ROWS, Part, RowText, Shape, Verdict, WIDE_ROWS,
    exact_numbers::{ExactNumbers, has_outermost},
    guarded, too_many_rows,
};
use segments::{Segment, line_length, nested_too_deeply, segments, strict_end_after};

pub(super) struct JsonDecoder {
    shape: Shape,
    exact: ExactNumbers,
    wide: Option<TapeDecoder>,
    narrow: Option<TapeDecoder>,
}

#[derive(Clone, Copy)]
enum Width {
    Wide,
    Narrow,
}

impl JsonDecoder {
    pub(super) fn new(shape: Shape) -> Self {
        Self { exact: ExactNumbers::new(&shape.schema), shape, wide: None, narrow: None }
    }

    pub(super) fn decode(&mut self, run: &[Message], lines: bool, output: &mut Decoded) {
        if self.attempt(Width::Wide, run, lines, output) {
            return;
        }
        for group in run.chunks(NARROW_ROWS) {
            // A run of one group has just failed as a whole.
            if group.len() < run.len() && self.attempt(Width::Narrow, group, lines, output) {
                continue;
            }
            for message in group {
                let alone = run.len() > 1 && self.attempt(Width::Narrow, std::slice::from_ref(message), lines, output);
                if !alone {
                    self.decode_rows(message, lines, output);
                }
            }
        }
    }

    /// Decodes a run as one; on any fault leaves `output` as it was and says so.
    fn attempt(&mut self, width: Width, run: &[Message], lines: bool, output: &mut Decoded) -> bool {
        if run.iter().any(|message| self.exact.are_in_doubt(&message.payload)) {
            return false;
        }
        let decoder = self.take(width);
        let attempted = guarded(|| {
            let mut feeder = Feeder::new(decoder?, &self.shape);
            run.iter().all(|message| feeder.feed_message(message, lines)).then_some(())?;
            feeder.finish()
        });
        let Some((decoder, decoded)) = attempted else { return false };
        self.put_back(width, decoder);
        output.append(decoded);
        true
    }

    /// The slow path: one message, row by row.
    fn decode_rows(&mut self, message: &Message, lines: bool, output: &mut Decoded) {
        let segments = segments(&message.payload, lines);
        if segments.len() > self.shape.max_rows {
            let verdict = too_many_rows(segments.len(), self.shape.max_rows);
            return output.reject(message, 0, None, verdict, message.payload.clone());
        }
        for (index, group) in segments.chunks(NARROW_ROWS).enumerate() {
            if !self.attempt_segments(message, group, output) {
                for (place, segment) in group.iter().enumerate() {
                    self.decode_segment(message, index * NARROW_ROWS + place, segment, output);
                }
            }
        }
    }

    /// Decodes rows of one message together, if all of them are good.
    fn attempt_segments(&mut self, message: &Message, group: &[Segment], output: &mut Decoded) -> bool {
        let doubtful = |segment: &Segment| {
            segment.verdict.is_some() || self.exact.are_in_doubt(&message.payload[segment.bytes.clone()])
        };
        if group.iter().any(doubtful) {
            return false;
        }
        let decoder = self.take(Width::Narrow);
        let attempted = guarded(|| {
            let mut feeder = Feeder::new(decoder?, &self.shape);
            let whole =
                group.iter().all(|segment| feeder.feed_row(&message.payload[segment.bytes.clone()], message.offset));
            whole.then_some(())?;
            feeder.finish()
        });
        let Some((decoder, decoded)) = attempted else { return false };
        self.put_back(Width::Narrow, decoder);
        output.append(decoded);
        true
    }

    fn decode_segment(&mut self, message: &Message, row: usize, segment: &Segment, output: &mut Decoded) {
        let verdict = match &segment.verdict {
            Some(verdict) => verdict.clone(),
            None => match self.decode_alone(&message.payload[segment.bytes.clone()], message.offset) {
                Ok(part) => return output.parts.push(part),
                Err(verdict) => verdict,
            },
        };
        let bytes = message.payload.slice(segment.bytes.clone());
        output.reject(message, row, Some(segment.line), verdict, bytes);
    }

    fn decode_alone(&mut self, row: &[u8], offset: u64) -> Result<Part, Verdict> {
        if self.exact.are_in_doubt(row)
            && let Some(verdict) = self.exact.judge(row)
        {
            return Err(verdict);
        }
        let mut decoder = self.take(Width::Narrow).ok_or_else(unparsable)?;
        let alone = guarded(|| {
            let fed = feed_whole_row(&mut decoder, row);
            let flushed = fed
                .map_err(|error| syntax(&error))
                .and_then(|()| decoder.flush().map_err(|error| self.name_column(self.judge(&error), row)));
            Some((flushed, decoder))
        });
        let (flushed, decoder) = alone.ok_or_else(unparsable)?;
        match flushed? {
            Some(batch) if batch.num_rows() == 1 => {
                self.put_back(Width::Narrow, decoder);
                if has_outermost(&batch)
                    && let Some(verdict) = self.exact.judge(row)
                {
                    return Err(verdict);
                }
                let batch = self.shape.zoned(&batch).ok_or_else(unparsable)?;
                Ok(Part { batch, offsets: vec![offset as i64] })
            }
            _ => Err(Verdict::new(Fault::Syntax, "the row is not one JSON object")),
        }
    }

    fn take(&mut self, width: Width) -> Option<TapeDecoder> {
        let (kept, rows) = match width {
            Width::Wide => (&mut self.wide, WIDE_ROWS),
            Width::Narrow => (&mut self.narrow, NARROW_ROWS),
        };
        kept.take().or_else(|| {
            ReaderBuilder::new(Arc::clone(&self.shape.reading))
                .with_batch_size(rows)
                .with_strict_mode(self.shape.reject_unknown)
                .build_decoder()
                .ok()
        })
    }

    /// Only a decoder that has just flushed is clean; any other is dropped.
    fn put_back(&mut self, width: Width, decoder: TapeDecoder) {
        match width {
            Width::Wide => self.wide = Some(decoder),
            Width::Narrow => self.narrow = Some(decoder),
        }
    }

    /// Turns arrow-json's error about one row into column and reason.
    fn judge(&self, error: &ArrowError) -> Verdict {
        let text = match error {
            ArrowError::JsonError(text) | ArrowError::ParseError(text) => text.clone(),
            other => other.to_string(),
        };
        if let Some(column) = quoted_after(&text, "column '", "' missing from schema") {
            return Verdict::unknown(column);
        }
        let names = || self.shape.schema.fields().iter().map(|field| field.name().as_str());
        for name in names() {
            let Some(inner) = text.strip_prefix("whilst decoding field '").and_then(|rest| rest.strip_prefix(name))
            else {
                continue;
            };
            if let Some(inner) = inner.strip_prefix("': ") {
                return judge_column(name, inner);
            }
        }
        if text.contains("unmasked nulls")
            && let Some(column) = self.column_without_value(&text)
        {
            return Verdict::missing(&column);
        }
        if text.contains("UTF-8") {
            return Verdict::new(Fault::Unreadable, "the row is not valid UTF-8");
        }
        if let Some(found) = text.strip_prefix("expected { got ") {
            return Verdict::new(Fault::Syntax, format!("expected an object, found {found}"));
        }
        // A decimal that does not fit comes without its column.
        Verdict::new(Fault::Value, text)
    }

    /// Finds the column of a value that does not fit, where the error did not name it, by trying each column alone.
    fn name_column(&self, verdict: Verdict, row: &[u8]) -> Verdict {
        if verdict.column.is_some() || verdict.fault != Fault::Value {
            return verdict;
        }
        let fields = self.shape.reading.fields();
        let at_fault = fields.iter().find(|field| column_fails(field, row));
        match at_fault {
            Some(field) => judge_column(field.name(), &verdict.reason),
            None => verdict,
        }
    }

    /// The text ends with the field as arrow shows it; the declared field that shows the same is the one.
    fn column_without_value(&self, text: &str) -> Option<String> {
        let fields = self.shape.reading.fields();
        let shown = fields.iter().find(|field| !field.is_nullable() && text.ends_with(&field.to_string()));
        shown.map(|field| field.name().clone())
    }
}

/// Where the rows of a message stand, good and bad.
pub(super) fn rows_of(payload: &[u8], lines: bool) -> Vec<RowText> {
    let row = |segment: Segment| RowText { bytes: segment.bytes, line: segment.line };
    segments(payload, lines).into_iter().map(row).collect()
}

fn column_fails(field: &FieldRef, row: &[u8]) -> bool {
    let schema = Arc::new(Schema::new(vec![Arc::clone(field)]));
    let Ok(mut decoder) = ReaderBuilder::new(schema).with_batch_size(1).build_decoder() else { return true };
    feed_whole_row(&mut decoder, row).is_err() || decoder.flush().is_err()
}

fn judge_column(name: &str, inner: &str) -> Verdict {
    if inner.contains("unmasked nulls") {
        return Verdict::of_column(Fault::Null, name, format!("a NOT NULL part of column `{name}` has no value"));
    }
    if let Some(unknown) = quoted_after(inner, "column '", "' missing from schema") {
        return Verdict::unknown(&format!("{name}.{unknown}"));
    }
    Verdict::of_column(Fault::Value, name, format!("column `{name}`: {inner}"))
}

fn quoted_after<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.strip_prefix(before)?.strip_suffix(after)
}

fn syntax(error: &ArrowError) -> Verdict {
    let text = match error {
        ArrowError::JsonError(text) => text.clone(),
        other => other.to_string(),
    };
    Verdict::new(Fault::Syntax, text)
}

/// Feeds messages to a decoder and keeps account of which rows came from where.
struct Feeder<'a> {
    shape: &'a Shape,
    decoder: TapeDecoder,
    /// One offset for each row on the tape that is accounted for.
    offsets: Vec<i64>,
    flushed_rows: usize,
    /// Rows of messages before the one at hand.
    earlier_rows: usize,
    decoded: Decoded,
}

impl<'a> Feeder<'a> {
    fn new(decoder: TapeDecoder, shape: &'a Shape) -> Self {
        Self { shape, decoder, offsets: Vec::new(), flushed_rows: 0, earlier_rows: 0, decoded: Decoded::default() }
    }

    /// Rows seen so far, on the tape or built.
    fn rows(&self) -> usize {
        self.flushed_rows + self.decoder.len()
    }

    /// Whether the message at hand holds more rows than are taken.
    fn too_many_rows(&self) -> bool {
        self.rows() - self.earlier_rows > self.shape.max_rows
    }

    fn feed_message(&mut self, message: &Message, lines: bool) -> bool {
        self.earlier_rows = self.rows();
        if !self.feed_lines(&message.payload, message.offset, lines) {
            return false;
        }
        self.offsets.resize(self.decoder.len(), message.offset as i64);
        if self.rows() == self.earlier_rows {
            self.decoded.reject_message(message, Fault::Unreadable, "the message is empty");
        }
        !self.too_many_rows() && (self.decoder.len() < BATCH_ROWS || self.flush())
    }

    fn feed_lines(&mut self, payload: &[u8], offset: u64, lines: bool) -> bool {
        let mut at = 0;
        while at < payload.len() {
            // A row begins at `at`, so brackets before it do not count. Looked at before feeding, which may build a batch.
            let line_end = at + line_length(&payload[at..]);
            if nested_too_deeply(&payload[at..line_end]) || !self.feed(&payload[at..line_end], offset) {
                return false;
            }
            at = match self.decoder.has_partial_record() {
                false => line_end,
                true if lines => return false,
                true => match self.feed_spanning(payload, at, line_end, offset) {
                    Some(end) => end,
                    None => return false,
                },
            };
        }
        true
    }

    /// Feeds the rest of an object that does not end with its line. Returns where it ends.
    fn feed_spanning(&mut self, payload: &[u8], line_start: usize, line_end: usize, offset: u64) -> Option<usize> {
        let end = strict_end_after(payload, line_start, line_end)?;
        if nested_too_deeply(&payload[line_start..end]) {
            return None;
        }
        let whole = self.feed(&payload[line_end..end], offset) && !self.decoder.has_partial_record();
        whole.then_some(end)
    }

    fn feed_row(&mut self, row: &[u8], offset: u64) -> bool {
        let before = self.rows();
        let fed = self.feed(row, offset) && self.feed(b"\n", offset);
        self.offsets.resize(self.decoder.len(), offset as i64);
        fed && !self.decoder.has_partial_record() && self.rows() == before + 1
    }

    /// Feeds all of `bytes`, building a batch whenever the decoder is full.
    fn feed(&mut self, mut bytes: &[u8], offset: u64) -> bool {
        loop {
            let Ok(taken) = self.decoder.decode(bytes) else { return false };
            bytes = &bytes[taken..];
            if bytes.is_empty() {
                return true;
            }
            self.offsets.resize(self.decoder.len(), offset as i64);
            if self.decoder.has_partial_record() || self.too_many_rows() || !self.flush() {
                return false;
            }
        }
    }

    fn flush(&mut self) -> bool {
        match self.decoder.flush() {
            Ok(None) => true,
            Ok(Some(batch)) if has_outermost(&batch) => false,
            Ok(Some(batch)) => {
                let Some(batch) = self.shape.zoned(&batch) else { return false };
                self.flushed_rows += batch.num_rows();
                self.decoded.parts.push(Part { batch, offsets: std::mem::take(&mut self.offsets) });
                true
            }
            Err(_) => false,
        }
    }

    fn finish(mut self) -> Option<(TapeDecoder, Decoded)> {
        self.flush().then_some((self.decoder, self.decoded))
    }
}

fn feed_whole_row(decoder: &mut TapeDecoder, row: &[u8]) -> Result<(), ArrowError> {
    // The line break ends a bare number, which could otherwise go on.
    for bytes in [row, b"\n"] {
        if decoder.decode(bytes)? < bytes.len() {
            return Err(ArrowError::JsonError("more than one value".to_owned()));
        }
    }
    Ok(())
}

fn unparsable() -> Verdict {
    Verdict::new(Fault::Unreadable, "the row cannot be parsed")
}

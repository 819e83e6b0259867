//! Where the rows of a JSON message begin and end, and how deep they are nested.
//!
//! The invariant: nothing of a message is left out but blanks, so what does not parse is kept as a row with a verdict.
//! Deliberately absent: columns. A row's end is where arrow-json sees it, found without building any.

use std::{ops::Range, sync::Arc};

use arrow::{
    datatypes::Schema,
    json::{ReaderBuilder, reader::Decoder as TapeDecoder},
};
use memchr::memchr;
use serde::de::IgnoredAny;

use super::{
    super::{Fault, Verdict, guarded},
    syntax, unparsable,
};

/// Deeper rows are rejected: arrow-json renders a value it cannot take by recursion, which would end the process.
const MAX_DEPTH: usize = 64;

/// One row of a message taken apart.
pub(super) struct Segment {
    pub(super) bytes: Range<usize>,
    /// Of the message, from 1.
    pub(super) line: u32,
    /// What is wrong with it, where that is known already.
    pub(super) verdict: Option<Verdict>,
}

/// The length of the first line, with its line break.
pub(super) fn line_length(bytes: &[u8]) -> usize {
    memchr(b'\n', bytes).map_or(bytes.len(), |line_break| line_break + 1)
}

/// Where the value that is open at `line_end` ends, if strict JSON says that it ends at all.
pub(super) fn strict_end_after(payload: &[u8], line_start: usize, line_end: usize) -> Option<usize> {
    let mut values = serde_json::Deserializer::from_slice(&payload[line_start..]).into_iter::<IgnoredAny>();
    while let Some(Ok(_)) = values.next() {
        let end = line_start + values.byte_offset();
        if end > line_end {
            return Some(end);
        }
    }
    None
}

/// Takes a message apart into rows. What does not parse is a segment with a verdict; nothing is left out but blanks.
pub(super) fn segments(payload: &[u8], lines: bool) -> Vec<Segment> {
    let mut found = Vec::new();
    let mut scanner = Scanner::new();
    let (mut at, mut line) = (0, 1);
    while at < payload.len() {
        if payload[at].is_ascii_whitespace() {
            line += u32::from(payload[at] == b'\n');
            at += 1;
            continue;
        }
        let line_end = at + line_length(&payload[at..]);
        let (end, verdict) = match scanner.row_end(&payload[at..line_end]) {
            Scan::Row(length) => (at + length, None),
            Scan::Bad(verdict) => (line_end, Some(verdict)),
            Scan::Open if lines => (line_end, Some(unfinished())),
            Scan::Open => match strict_end_after(payload, at, at) {
                Some(end) => (end, None),
                None => (next_row_start(payload, at, line_end), Some(unfinished())),
            },
        };
        let end = at + payload[at..end].trim_ascii_end().len();
        let verdict = verdict.or_else(|| nested_too_deeply(&payload[at..end]).then(too_deep));
        found.push(Segment { bytes: at..end, line, verdict });
        line += newlines(&payload[at..end]);
        at = end;
    }
    if found.is_empty() {
        let verdict = Some(Verdict::new(Fault::Unreadable, "the message is empty"));
        found.push(Segment { bytes: 0..payload.len(), line: 1, verdict });
    }
    found
}

fn newlines(bytes: &[u8]) -> u32 {
    bytes.iter().map(|&byte| u32::from(byte == b'\n')).sum()
}

fn unfinished() -> Verdict {
    Verdict::new(Fault::Syntax, "the row is unfinished")
}

fn too_deep() -> Verdict {
    Verdict::new(Fault::TooLarge, format!("the row is nested deeper than {MAX_DEPTH} levels"))
}

/// After an unfinished row: the next line that begins an object and is indented no deeper than the row's own line, so
/// that the inside of a broken pretty-printed object is not taken for rows.
fn next_row_start(payload: &[u8], row_start: usize, line_end: usize) -> usize {
    let line_start = payload[..row_start].iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
    let own_indent = indent(&payload[line_start..]);
    let mut at = line_end;
    while at < payload.len() {
        let indent = indent(&payload[at..]);
        if indent <= own_indent && payload.get(at + indent) == Some(&b'{') {
            return at;
        }
        at += line_length(&payload[at..]);
    }
    payload.len()
}

fn indent(line: &[u8]) -> usize {
    line.iter().take_while(|&&byte| byte == b' ' || byte == b'\t').count()
}

/// Finds where a row ends in the very way arrow-json would, without building columns.
struct Scanner {
    decoder: Option<TapeDecoder>,
}

enum Scan {
    Row(usize),
    Open,
    Bad(Verdict),
}

impl Scanner {
    fn new() -> Self {
        Self { decoder: None }
    }

    /// The end of the row `line` begins with.
    fn row_end(&mut self, line: &[u8]) -> Scan {
        let Some(mut decoder) = self.decoder.take().or_else(Self::build) else { return Scan::Open };
        let scanned = guarded(|| {
            Some(match decoder.decode(line) {
                Err(error) => Scan::Bad(syntax(&error)),
                Ok(taken) if !decoder.has_partial_record() => Scan::Row(taken),
                Ok(taken) => match (line.ends_with(b"\n"), decoder.decode(b"\n")) {
                    (false, Ok(_)) if !decoder.has_partial_record() => Scan::Row(taken),
                    _ => Scan::Open,
                },
            })
        });
        let scanned = scanned.unwrap_or_else(|| Scan::Bad(unparsable()));
        if let Scan::Row(taken) = scanned {
            // Only flushing empties the tape, and flushing is not safe for deep rows.
            let flushed = !nested_too_deeply(&line[..taken]) && matches!(decoder.flush(), Ok(Some(_)));
            self.decoder = flushed.then_some(decoder);
        }
        scanned
    }

    fn build() -> Option<TapeDecoder> {
        ReaderBuilder::new(Arc::new(Schema::empty())).with_batch_size(1).build_decoder().ok()
    }
}

/// Whether any value in `bytes` is nested deeper than [`MAX_DEPTH`].
///
/// The number of opening brackets bounds the depth and is counted many bytes at a time; only where it is large is the
/// text walked.
pub(super) fn nested_too_deeply(bytes: &[u8]) -> bool {
    // Both brackets are the same byte but for one bit. A chunk of fewer than 256 bytes is counted in a byte, so that
    // many bytes fit a vector register.
    let opening =
        |chunk: &[u8]| chunk.iter().fold(0u8, |count, byte| count.wrapping_add(u8::from(byte | 0x20 == b'{')));
    let brackets: usize = bytes.chunks(192).map(|chunk| usize::from(opening(chunk))).sum();
    brackets > MAX_DEPTH && walk_depth(bytes)
}

fn walk_depth(bytes: &[u8]) -> bool {
    let (mut depth, mut at) = (0usize, 0);
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'"' => at = string_end(bytes, at),
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return true;
        }
    }
    false
}

/// The place after the closing quote of the string whose first character is at `at`.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

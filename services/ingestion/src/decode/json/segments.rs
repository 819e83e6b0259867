//! Where the rows of a JSON message begin and end, and how deep they are nested.
//!
//! The invariant: nothing of a message is left out but blanks, so what does not parse is kept as a row with a verdict.
//! No message costs more than a few passes over it. Deliberately absent: columns. A row's end is where arrow-json sees
//! it, found without building any.

use std::{ops::Range, sync::Arc};

use arrow::{
    datatypes::Schema,
    json::{ReaderBuilder, reader::Decoder as TapeDecoder},
};
use memchr::{memchr, memchr_iter};
use serde::de::IgnoredAny;

use super::{
    super::{Fault, Verdict, guarded},
    syntax, unparsable,
};

/// Deeper rows are rejected: arrow-json renders a value it cannot take by recursion, which would end the process.
const MAX_DEPTH: usize = 64;
/// How many times a message's length may be looked over for the ends of rows that turn out to have none: once for each
/// level of a row cut short whose lists of objects are not indented.
const LOOKS_IN_VAIN: usize = 8;
/// Bytes that may be looked over in vain however short the message is.
const LOOKED_OVER_ANYWAY: usize = 64 << 10;

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
    let (mut scanner, mut search) = (Scanner::new(), EndSearch::new(payload));
    let (mut at, mut line, mut line_end) = (0, 1, 0);
    while at < payload.len() {
        if payload[at].is_ascii_whitespace() {
            line += u32::from(payload[at] == b'\n');
            at += 1;
            continue;
        }
        // The rows of a line share its end: looked for from each of them, it would cost the line's length each time.
        if at >= line_end {
            line_end = at + line_length(&payload[at..]);
        }
        let (end, verdict) = match scanner.row_end(&payload[at..line_end]) {
            Scan::Row(length) => (at + length, None),
            Scan::Bad(verdict) => (line_end, Some(verdict)),
            Scan::Open if lines => (line_end, Some(unfinished())),
            Scan::Open => search.row_end(at, line_end),
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

fn not_looked_for() -> Verdict {
    let reason =
        "the row does not end with its line, and rows before it do not end at all: too many to look for its end";
    Verdict::new(Fault::Syntax, reason)
}

fn too_deep() -> Verdict {
    Verdict::new(Fault::TooLarge, format!("the row is nested deeper than {MAX_DEPTH} levels"))
}

/// Finds the ends of rows that go on after their lines, until too much has been looked over in vain.
///
/// A row may be open up to the message's end, and so may every row after it: to look for the end of each of them costs
/// the square of the message's length.
struct EndSearch<'a> {
    payload: &'a [u8],
    /// Bytes that may still be looked over in vain.
    left: usize,
}

impl<'a> EndSearch<'a> {
    fn new(payload: &'a [u8]) -> Self {
        Self { payload, left: LOOKS_IN_VAIN * payload.len() + LOOKED_OVER_ANYWAY }
    }

    /// Where the row at `start` ends; with a verdict where it does not, or where that is no longer looked for.
    fn row_end(&mut self, start: usize, line_end: usize) -> (usize, Option<Verdict>) {
        let verdict = if self.left == 0 {
            not_looked_for()
        } else {
            match strict_length(&self.payload[start..]) {
                Ok(length) => return (start + length, None),
                Err(looked_over) => {
                    self.left = self.left.saturating_sub(looked_over);
                    unfinished()
                }
            }
        };
        (next_row_start(self.payload, start, line_end), Some(verdict))
    }
}

/// The length of the value `bytes` begin with, if strict JSON says that it ends; if not, how many bytes that took.
fn strict_length(bytes: &[u8]) -> Result<usize, usize> {
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => Ok(values.byte_offset()),
        Some(Err(error)) => Err(place_of(&error, bytes)),
        None => Err(bytes.len()),
    }
}

/// Where parsing stopped, which the parser says in lines and columns.
fn place_of(error: &serde_json::Error, bytes: &[u8]) -> usize {
    let line_break = error.line().checked_sub(2).and_then(|breaks| memchr_iter(b'\n', bytes).nth(breaks));
    line_break.map_or(0, |line_break| line_break + 1) + error.column()
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    /// A segment's bytes, line and verdict.
    type Shown = (Range<usize>, u32, Option<String>);

    fn shown(segment: Segment) -> Shown {
        (segment.bytes, segment.line, segment.verdict.map(|verdict| verdict.reason))
    }

    /// What taking apart means, whatever that costs.
    fn plainly(payload: &[u8]) -> Vec<Shown> {
        let (mut found, mut scanner) = (Vec::new(), Scanner::new());
        let mut at = 0;
        while at < payload.len() {
            if payload[at].is_ascii_whitespace() {
                at += 1;
                continue;
            }
            let line_end = at + line_length(&payload[at..]);
            let (end, verdict) = match scanner.row_end(&payload[at..line_end]) {
                Scan::Row(length) => (at + length, None),
                Scan::Bad(verdict) => (line_end, Some(verdict)),
                Scan::Open => match strict_end_after(payload, at, at) {
                    Some(end) => (end, None),
                    None => (next_row_start(payload, at, line_end), Some(unfinished())),
                },
            };
            let end = at + payload[at..end].trim_ascii_end().len();
            let verdict = verdict.or_else(|| nested_too_deeply(&payload[at..end]).then(too_deep));
            let line = 1 + newlines(&payload[..at]);
            found.push(shown(Segment { bytes: at..end, line, verdict }));
            at = end;
        }
        found
    }

    #[test]
    fn rows_are_found_as_if_the_end_of_each_open_one_were_looked_for() {
        let pieces = "{\"a\":[|{\"a\":|{|{}|}|]}|]}\n|]|[|,|,\n|:|\"b\"|\"b\":1,|1|1]}|{\"id\":1}|{\"a\":\"x\",|\"open|é\
                      | |  |\n|\n|\n|\r\n|\t{|\n{\n|{\"a\":[\n1\n]}\n|{\n\"b\":\n1}|{\n}\n";
        let pieces: Vec<_> = pieces.split('|').collect();
        let (mut spanning, mut unfinished) = (0, 0);
        for seed in 0..2_000 {
            let mut random = StdRng::seed_from_u64(seed);
            let count = random.random_range(1..100);
            let text: String = (0..count).map(|_| pieces[random.random_range(0..pieces.len())]).collect();
            let expected = plainly(text.as_bytes());
            if expected.is_empty() {
                continue;
            }
            let found: Vec<_> = segments(text.as_bytes(), false).into_iter().map(shown).collect();
            assert_eq!(found, expected, "seed {seed}: {text:?}");
            for (bytes, _, verdict) in &found {
                spanning += usize::from(verdict.is_none() && text.as_bytes()[bytes.clone()].contains(&b'\n'));
                unfinished += usize::from(verdict.as_ref().is_some_and(|reason| reason.contains("unfinished")));
            }
        }
        assert!(spanning > 100 && unfinished > 100, "{spanning} rows over several lines, {unfinished} unfinished");
    }

    #[test]
    fn rows_that_all_stay_open_cost_no_more_than_a_few_passes() {
        const ROWS: usize = 100_000;
        for (row, end) in [("{\"a\":[\n", ""), ("{\"a\":[\n", "x"), ("{\"a\":\n", "\"open"), ("{\"a\":\"b\",\n", "")] {
            let text = format!("{}{end}\n{{\"id\":1}}\n", row.repeat(ROWS));
            let found = segments(text.as_bytes(), false);
            assert_eq!(found.len(), ROWS + 1, "{row}");
            let (last, open) = found.split_last().unwrap();
            assert!(open.iter().all(|segment| segment.verdict.is_some()), "{row}");
            assert!(last.verdict.is_none(), "what ends with its line is still found: {row}");
            assert_eq!(&text.as_bytes()[last.bytes.clone()], b"{\"id\":1}");
        }
    }

    #[test]
    fn objects_within_lists_that_are_not_indented_are_found_however_a_message_is_cut_short() {
        let objects = "{\n\"id\": 1\n},\n".repeat(20_000);
        let cut_short = "{\"a\": [\n".repeat(LOOKS_IN_VAIN) + &objects;
        let found = segments(cut_short.as_bytes(), false);
        let whole = found.iter().filter(|segment| segment.verdict.is_none()).count();
        assert_eq!(whole, 20_000);
    }

    #[test]
    fn many_rows_on_one_line_cost_no_more_than_its_length() {
        let found = segments("{}".repeat(500_000).as_bytes(), false);
        assert_eq!(found.len(), 500_000);
        assert!(found.iter().all(|segment| segment.verdict.is_none()));
    }
}

//! Where the records of a CSV text begin and end.
//!
//! The invariant: records are walked exactly as arrow-csv's own parser walks them, so a cut between two of them changes
//! neither. HTTP cuts bodies here. Deliberately absent: the values of fields; only how many there are is told.

use std::ops::Range;

/// One record of a CSV text.
pub(crate) struct Record {
    /// Its bytes, with the line break that ends it.
    pub(crate) bytes: Range<usize>,
    /// Whether all its quotes are closed.
    pub(crate) closed: bool,
}

/// Walks the records of a CSV text; blank lines are no records.
///
/// After a quote that never closes, only the line it stands on is lost: the rest is walked line by line, so that no
/// text costs more than two passes.
pub(crate) struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
    delimiter: u8,
    line_by_line: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    FieldStart,
    Bare,
    Quoted,
    QuoteInQuoted,
}

impl State {
    /// The state after a byte that ends no record.
    fn after(self, byte: u8, delimiter: u8) -> Self {
        match (self, byte) {
            (Self::Quoted, b'"') => Self::QuoteInQuoted,
            (Self::Quoted, _) => Self::Quoted,
            (Self::QuoteInQuoted | Self::FieldStart, b'"') => Self::Quoted,
            (_, byte) if byte == delimiter => Self::FieldStart,
            _ => Self::Bare,
        }
    }
}

/// How many fields a record has.
pub(super) fn field_count(record: &[u8], delimiter: u8) -> usize {
    let (mut state, mut delimiters) = (State::FieldStart, 0);
    for &byte in record {
        state = state.after(byte, delimiter);
        delimiters += usize::from(state == State::FieldStart);
    }
    delimiters + 1
}

impl<'a> Records<'a> {
    pub(crate) fn new(bytes: &'a [u8], at: usize, delimiter: u8) -> Self {
        Self { bytes, at, delimiter, line_by_line: false }
    }

    /// Where the record at `start` ends, and whether its quotes are closed there.
    fn record_end(&self, start: usize) -> (usize, bool) {
        let mut state = State::FieldStart;
        for (place, &byte) in self.bytes.iter().enumerate().skip(start) {
            let line_break = byte == b'\n' || byte == b'\r';
            if line_break && (state != State::Quoted || self.line_by_line) {
                return (place + 1, state != State::Quoted);
            }
            state = state.after(byte, self.delimiter);
        }
        (self.bytes.len(), state != State::Quoted)
    }
}

impl Iterator for Records<'_> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        let blanks = self.bytes.get(self.at..)?.iter().take_while(|&&byte| byte == b'\n' || byte == b'\r').count();
        let start = self.at + blanks;
        if start >= self.bytes.len() {
            return None;
        }
        let (mut end, mut closed) = self.record_end(start);
        if !closed && !self.line_by_line {
            self.line_by_line = true;
            (end, _) = self.record_end(start);
            closed = false;
        }
        self.at = end;
        Some(Record { bytes: start..end, closed })
    }
}

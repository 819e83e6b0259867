//! Where the records of a CSV text begin and end.
//!
//! The invariant: records are walked exactly as arrow-csv's own parser walks them, so a cut between two of them changes
//! neither. HTTP cuts bodies here. Deliberately absent: fields and their values.

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
            state = match (state, byte) {
                (State::Quoted, b'"') => State::QuoteInQuoted,
                (State::Quoted, _) => State::Quoted,
                (State::QuoteInQuoted | State::FieldStart, b'"') => State::Quoted,
                (_, byte) if byte == self.delimiter => State::FieldStart,
                _ => State::Bare,
            };
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

//! Rows that cannot be used, on their way to a rejected channel: kept whole, with place and reason.
//!
//! Bytes too long for one row of a message continue in following rows (`part` 1, 2, …), so nothing is cut off.

use std::{borrow::Cow, sync::Arc};

use arrow::{
    array::{
        ArrayRef, AsArray as _, BinaryBuilder, Int32Builder, Int64Array, Int64Builder, RecordBatch, StringBuilder,
        TimestampMicrosecondBuilder,
    },
    datatypes::Int32Type,
    error::ArrowError,
};
use bytes::Bytes;

use crate::channel_writer::Rows;

/// Longest stretch of bytes in one row: two fit a message with room for the rest.
const MAX_PART_BYTES: usize = 400 << 10;

/// Longest reason, and longest name of a column: they are repeated in every row of a letter, a library may quote the
/// whole value in a reason, and a column that is not declared is named by whoever sent it.
const MAX_WORDS_BYTES: usize = 1 << 10;

/// One row (or message) that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Where it was read.
    pub topic: String,
    /// See `topic`.
    pub partition: u32,
    /// The message it was in.
    pub offset: u64,
    /// Its line (or row) in the message, from 1; absent when the message as a whole is meant.
    pub line: Option<u32>,
    /// The column at fault, where one is.
    pub column: Option<String>,
    /// What is wrong, in words.
    pub reason: String,
    /// The original bytes.
    pub bytes: Bytes,
    /// When the message was appended, milliseconds UTC: the log's time, so that a repeat says the same.
    pub produced_at_ms: i64,
}

/// How many letters begin in rows of a rejected channel: a long one goes on in the rows behind its first.
pub(crate) fn letters_in(rows: &RecordBatch) -> u64 {
    let parts = rows.column_by_name("part").and_then(|parts| parts.as_primitive_opt::<Int32Type>());
    parts.map_or(0, |parts| parts.values().iter().filter(|&&part| part == 0).count() as u64)
}

/// The first `max_bytes` of a text and `…`, or all of a text that is not longer. Cuts between characters.
pub fn shortened(text: &str, max_bytes: usize) -> Cow<'_, str> {
    if text.len() <= max_bytes {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}…", &text[..text.floor_char_boundary(max_bytes)]))
}

/// Builds rows of a rejected channel.
#[derive(Default)]
pub struct DeadLetters {
    topic: StringBuilder,
    partition: Int32Builder,
    offset: Int64Builder,
    line: Int32Builder,
    column: StringBuilder,
    reason: StringBuilder,
    bytes: BinaryBuilder,
    part: Int32Builder,
    produced_at: Option<TimestampMicrosecondBuilder>,
}

impl DeadLetters {
    /// The letters as rows of [`pipeline::rejected_schema`], in order; `None` when there are none.
    ///
    /// # Errors
    /// When the builders disagree with the schema: a defect.
    pub fn rows(letters: &[DeadLetter]) -> Result<Option<Rows>, ArrowError> {
        if letters.is_empty() {
            return Ok(None);
        }
        let mut builder = Self::default();
        for letter in letters {
            builder.push(letter);
        }
        builder.finish().map(Some)
    }

    fn push(&mut self, letter: &DeadLetter) {
        let mut rest = letter.bytes.as_ref();
        let mut part = 0;
        loop {
            let (piece, after) = rest.split_at(rest.len().min(MAX_PART_BYTES));
            self.push_part(letter, piece, part);
            rest = after;
            part += 1;
            if rest.is_empty() {
                return;
            }
        }
    }

    fn push_part(&mut self, letter: &DeadLetter, bytes: &[u8], part: i32) {
        self.topic.append_value(&letter.topic);
        self.partition.append_value(i32::try_from(letter.partition).unwrap_or(i32::MAX));
        self.offset.append_value(i64::try_from(letter.offset).unwrap_or(i64::MAX));
        self.line.append_option(letter.line.and_then(|line| i32::try_from(line).ok()));
        self.column.append_option(letter.column.as_deref().map(|column| shortened(column, MAX_WORDS_BYTES)));
        self.reason.append_value(shortened(&letter.reason, MAX_WORDS_BYTES));
        self.bytes.append_value(bytes);
        self.part.append_value(part);
        let produced_at = self.produced_at.get_or_insert_default();
        produced_at.append_value(letter.produced_at_ms.saturating_mul(1000));
    }

    fn finish(mut self) -> Result<Rows, ArrowError> {
        let offsets: Int64Array = self.offset.finish();
        let produced_at = self.produced_at.take().unwrap_or_default().finish().with_timezone("UTC");
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.topic.finish()),
            Arc::new(self.partition.finish()),
            Arc::new(offsets.clone()),
            Arc::new(self.line.finish()),
            Arc::new(self.column.finish()),
            Arc::new(self.reason.finish()),
            Arc::new(self.bytes.finish()),
            Arc::new(self.part.finish()),
            Arc::new(produced_at),
        ];
        Ok(Rows { batch: RecordBatch::try_new(pipeline::rejected_schema(), columns)?, offsets })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use arrow::array::AsArray as _;

    use super::*;

    #[test]
    fn a_text_is_shortened_between_characters_and_says_so() {
        assert_eq!(shortened("whole", 5), "whole");
        assert_eq!(shortened("whole", 4), "whol…");
        assert_eq!(shortened("aéé", 4), "aé…");
        assert_eq!(shortened("é", 0), "…");
    }

    #[test]
    fn words_of_any_length_leave_a_letter_smaller_than_a_message() {
        let letter = DeadLetter {
            topic: "t".into(),
            partition: 0,
            offset: 0,
            line: None,
            column: Some("é".repeat(300_000)),
            reason: "x".repeat(600_000),
            bytes: vec![0; MAX_PART_BYTES].into(),
            produced_at_ms: 0,
        };
        let rows = DeadLetters::rows(&[letter]).unwrap().unwrap();
        let encoded = batch::encode_stream(&rows.batch, batch::Compression::None).unwrap();
        assert!(encoded.len() < MAX_PART_BYTES + (16 << 10), "{} bytes", encoded.len());
        let column = rows.batch.column_by_name("column").unwrap().as_string::<i32>();
        assert!(column.value(0).starts_with('é') && column.value(0).ends_with('…'));
    }

    #[test]
    fn bytes_too_long_for_a_row_continue_in_the_next() {
        let bytes: Vec<u8> = (0..MAX_PART_BYTES * 2 + 5).map(|index| index as u8).collect();
        let letter = DeadLetter {
            topic: "t".into(),
            partition: 1,
            offset: 7,
            line: None,
            column: None,
            reason: "too odd".into(),
            bytes: bytes.clone().into(),
            produced_at_ms: 3,
        };
        let rows = DeadLetters::rows(&[letter]).unwrap().unwrap();
        assert_eq!(rows.batch.num_rows(), 3);
        assert_eq!(rows.offsets.values().as_ref(), [7, 7, 7]);
        let column = rows.batch.column_by_name("bytes").unwrap();
        let joined: Vec<u8> = column.as_binary::<i32>().iter().flatten().flatten().copied().collect();
        assert_eq!(joined, bytes, "nothing is cut off");
    }
}

//! Cuts a request body into messages: at row boundaries, in order, every byte of every row kept.
//!
//! Pure. Rows are not judged here: what is wrong with a row is said by the decoder behind the topic, to everybody alike.
//! Only a body whose framing cannot be followed at all (a broken array, a broken Arrow stream) is refused.

use std::{fmt, ops::Range};

use batch::{Compression, Limits, SplitError, decode_stream, encode_to_fit};
use bytes::{Bytes, BytesMut};
use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::{
    decode::{Encoding, Records},
    keys::{Stretch, Unit},
};

/// Parts are at most this large, unless one row is.
pub(super) const PART_BYTES: usize = 512 << 10;
/// The largest row taken: with its headers it stays below the 1 MiB that logs accept.
pub(super) const MAX_ROW_BYTES: usize = 1_000_000;

/// A body as messages.
#[derive(Debug)]
pub(super) struct Parts {
    /// What each payload is.
    pub(super) content_type: &'static str,
    /// What the stretches count.
    unit: Unit,
    parts: Vec<Part>,
    /// Where the last stretch ends.
    total: u64,
}

/// One message, and the stretch of the body it holds.
#[derive(Debug)]
struct Part {
    payload: Bytes,
    range: Range<u64>,
}

impl Parts {
    /// Payloads of parts that touch, each as long as its stretch once `header` bytes are left out.
    fn of_bytes(content_type: &'static str, header: usize, payloads: Vec<Bytes>) -> Self {
        let mut total = 0;
        let part = |payload: Bytes| {
            let from = total;
            total += payload.len().saturating_sub(header) as u64;
            Part { range: from..total, payload }
        };
        let parts = payloads.into_iter().map(part).collect();
        Self { content_type, unit: Unit::Bytes, parts, total }
    }

    /// The messages, each with the stretch of the body it holds. The same body gives the same total, and stretches that
    /// count from the same beginning, however it is cut.
    pub(super) fn into_messages(self) -> impl ExactSizeIterator<Item = (Bytes, Stretch)> {
        let (unit, total) = (self.unit, self.total);
        self.parts.into_iter().map(move |part| (part.payload, Stretch { unit, range: part.range, total }))
    }
}

/// How many times its length a body takes while it is cut.
pub(super) fn memory_factor(encoding: Encoding) -> usize {
    match encoding {
        Encoding::Json { lines: true } | Encoding::Csv { header: false } => 1,
        // An array and a CSV text with a header line are copied.
        Encoding::Json { lines: false } | Encoding::Csv { header: true } => 2,
        Encoding::Arrow => 3,
    }
}

/// Why a body cannot be cut.
#[derive(Debug, thiserror::Error)]
pub(super) enum PartError {
    #[error("the body is empty")]
    Empty,
    #[error("the body is not {what}: {reason}")]
    Malformed { what: &'static str, reason: String },
    #[error("a row of {bytes} bytes is larger than the {MAX_ROW_BYTES} bytes a message takes")]
    RowTooLarge { bytes: usize },
}

/// Cuts `body`, which is of `encoding`.
pub(super) fn split(body: &Bytes, encoding: Encoding, delimiter: u8) -> Result<Parts, PartError> {
    if body.trim_ascii().is_empty() {
        return Err(PartError::Empty);
    }
    let whole = |content_type, payloads| Parts::of_bytes(content_type, 0, payloads);
    Ok(match encoding {
        Encoding::Json { lines: true } => whole("application/x-ndjson", split_contiguous(body, line_ends(body, 0))?),
        Encoding::Json { lines: false } => whole("application/json", split_json(body)?),
        Encoding::Csv { header: true } => {
            let (header, payloads) = split_headed_csv(body, delimiter)?;
            Parts::of_bytes("text/csv; header=present", header, payloads)
        }
        Encoding::Csv { header: false } => {
            let ends = Records::new(body, 0, delimiter).map(|record| record.bytes.end);
            whole("text/csv; header=absent", split_contiguous(body, ends)?)
        }
        Encoding::Arrow => split_arrow(body)?,
    })
}

/// Slices of the body: nothing is copied.
fn split_contiguous(body: &Bytes, ends: impl Iterator<Item = usize>) -> Result<Vec<Bytes>, PartError> {
    Ok(pack(body.len(), 0, PART_BYTES, ends)?.into_iter().map(|part| body.slice(part)).collect())
}

/// Packs neighbouring rows into stretches of at most `max_bytes`; what follows the last row end goes with the last.
fn pack(
    length: usize,
    start: usize,
    max_bytes: usize,
    ends: impl Iterator<Item = usize>,
) -> Result<Vec<Range<usize>>, PartError> {
    let mut parts = Vec::new();
    let (mut from, mut row_start) = (start, start);
    for end in ends.chain([length]) {
        if end - row_start > MAX_ROW_BYTES {
            return Err(PartError::RowTooLarge { bytes: end - row_start });
        }
        if end - from > max_bytes && row_start > from {
            parts.push(from..row_start);
            from = row_start;
        }
        row_start = end;
    }
    if length > from {
        parts.push(from..length);
    }
    Ok(parts)
}

fn line_ends(body: &[u8], from: usize) -> impl Iterator<Item = usize> + '_ {
    let newline = |(place, byte): (usize, &u8)| (*byte == b'\n').then_some(place + 1);
    body.iter().enumerate().skip(from).filter_map(newline)
}

fn split_json(body: &Bytes) -> Result<Vec<Bytes>, PartError> {
    if body.trim_ascii_start().starts_with(b"[") {
        return split_array(body);
    }
    if body.len() <= PART_BYTES {
        return Ok(vec![body.clone()]);
    }
    split_contiguous(body, value_ends(body).into_iter())
}

/// Where values end; after a syntax error, the lines that begin an object.
fn value_ends(body: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut values = serde_json::Deserializer::from_slice(body).into_iter::<IgnoredAny>();
    while let Some(value) = values.next() {
        if value.is_err() {
            let parsed = ends.last().copied().unwrap_or(0);
            ends.extend(line_ends(body, parsed).filter(|&end| body.get(end) == Some(&b'{')));
            break;
        }
        ends.push(values.byte_offset());
    }
    ends
}

/// Elements of a top-level array, one a line, as they stand.
fn split_array(body: &[u8]) -> Result<Vec<Bytes>, PartError> {
    let mut elements = Elements { parts: Vec::new(), part: BytesMut::new(), too_large: None };
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let read = deserializer.deserialize_seq(&mut elements).and_then(|()| deserializer.end());
    if let Some(bytes) = elements.too_large {
        return Err(PartError::RowTooLarge { bytes });
    }
    let malformed = |error: serde_json::Error| PartError::Malformed { what: "a JSON array", reason: error.to_string() };
    read.map_err(malformed)?;
    elements.finish_part();
    if elements.parts.is_empty() { Err(PartError::Empty) } else { Ok(elements.parts) }
}

struct Elements {
    parts: Vec<Bytes>,
    part: BytesMut,
    too_large: Option<usize>,
}

impl Elements {
    fn push(&mut self, element: &str) {
        if element.len() > MAX_ROW_BYTES {
            self.too_large = self.too_large.or(Some(element.len()));
        }
        if self.part.len() + element.len() >= PART_BYTES {
            self.finish_part();
        }
        self.part.extend_from_slice(element.as_bytes());
        self.part.extend_from_slice(b"\n");
    }

    fn finish_part(&mut self) {
        if !self.part.is_empty() {
            self.parts.push(self.part.split().freeze());
        }
    }
}

impl<'de> Visitor<'de> for &mut Elements {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while let Some(element) = elements.next_element_seed(Raw)? {
            self.push(element.get());
        }
        Ok(())
    }
}

/// Borrows an element's text instead of copying it.
struct Raw;

impl<'de> DeserializeSeed<'de> for Raw {
    type Value = &'de RawValue;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<&'de RawValue, D::Error> {
        serde::Deserialize::deserialize(deserializer)
    }
}

/// Each part repeats the header line. How long that is comes with them.
fn split_headed_csv(body: &Bytes, delimiter: u8) -> Result<(usize, Vec<Bytes>), PartError> {
    let mut records = Records::new(body, 0, delimiter);
    let Some(header) = records.next() else { return Err(PartError::Empty) };
    let header = header.bytes.end;
    if body.len() <= PART_BYTES {
        return Ok((header, vec![body.clone()]));
    }
    if header > MAX_ROW_BYTES / 2 {
        return Err(PartError::RowTooLarge { bytes: header });
    }
    let room = PART_BYTES.saturating_sub(header);
    let parts = pack(body.len(), header, room, records.map(|record| record.bytes.end))?;
    let with_header = |part: Range<usize>| Bytes::from([&body[..header], &body[part]].concat());
    Ok((header, parts.into_iter().map(with_header).collect()))
}

/// One batch a part; large batches are cut.
fn split_arrow(body: &Bytes) -> Result<Parts, PartError> {
    let what = "a readable Arrow IPC stream";
    let limits = Limits { max_rows: usize::MAX, max_bytes: 4 * body.len().max(16 << 20) };
    let batches =
        decode_stream(body, &limits).map_err(|error| PartError::Malformed { what, reason: error.to_string() })?;
    let (mut cut, mut total) = (Vec::new(), 0);
    for batch in batches.iter().filter(|batch| batch.num_rows() > 0) {
        let parts = encode_to_fit(batch, PART_BYTES, Compression::None).or_else(|error| match error {
            // A row over the usual size of a part may still fit a message.
            SplitError::RowTooLarge { .. } => encode_to_fit(batch, MAX_ROW_BYTES, Compression::None),
            other => Err(other),
        });
        let parts = parts.map_err(|error| match error {
            SplitError::RowTooLarge { encoded_bytes, .. } => PartError::RowTooLarge { bytes: encoded_bytes },
            SplitError::Codec(error) => PartError::Malformed { what, reason: error.to_string() },
        })?;
        for part in parts {
            let from = total;
            total += part.batch.num_rows() as u64;
            cut.push(Part { payload: part.payload, range: from..total });
        }
    }
    if cut.is_empty() {
        return Err(PartError::Empty);
    }
    Ok(Parts { content_type: "application/vnd.apache.arrow.stream", unit: Unit::Rows, parts: cut, total })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use arrow::{array::Int64Array, record_batch::RecordBatch};

    use super::*;

    const JSON: Encoding = Encoding::Json { lines: false };
    const NDJSON: Encoding = Encoding::Json { lines: true };

    fn parts(body: impl Into<Bytes>, encoding: Encoding) -> Vec<Bytes> {
        split(&body.into(), encoding, b',').unwrap().into_messages().map(|(payload, _)| payload).collect()
    }

    fn rows(count: usize) -> String {
        (0..count).map(|row| format!("{{\"id\":{row},\"note\":\"a line of some length\"}}\n")).collect()
    }

    #[test]
    fn large_bodies_are_cut_between_rows_and_nothing_is_lost() {
        for (body, encoding) in [
            (rows(40_000), NDJSON),
            (rows(40_000), JSON),
            (rows(40_000).replace('\n', " "), JSON),
            (rows(40_000).replace('{', "\"a\nb\",").replace('\n', "\r\n"), Encoding::Csv { header: false }),
        ] {
            let parts = parts(body.clone(), encoding);
            assert!(parts.len() > 2);
            assert!(parts.iter().all(|part| part.len() <= PART_BYTES));
            assert_eq!(parts.concat(), body.as_bytes());
            for part in &parts[1..] {
                assert!(part.trim_ascii_start().starts_with(&body.as_bytes()[..4]), "{:?}", &part[..20]);
            }
        }
    }

    #[test]
    fn a_broken_row_in_a_large_body_does_not_stop_the_cutting() {
        let body = format!("{}{{\"id\":\n{}", rows(20_000), rows(20_000));
        let parts = parts(body.clone(), JSON);
        assert!(parts.iter().all(|part| part.len() <= PART_BYTES));
        assert_eq!(parts.concat(), body.as_bytes());
    }

    #[test]
    fn an_array_becomes_its_elements_one_a_line() {
        let one = parts(" [{\"id\":1}, {\"id\" :\n2} ,3]", JSON);
        assert_eq!(one, ["{\"id\":1}\n{\"id\" :\n2}\n3\n"]);
        let many = format!("[{}]", rows(40_000).trim_end().replace('\n', ","));
        let many = parts(many, JSON);
        assert!(many.len() > 2 && many.iter().all(|part| part.len() <= PART_BYTES));
        assert_eq!(many.concat(), rows(40_000).as_bytes());
        for broken in ["[{\"id\":1}", "[{\"id\":1}] x", "[{\"id\":1},]", "[1 2]"] {
            let error = split(&Bytes::from(broken), JSON, b',').unwrap_err();
            assert!(matches!(error, PartError::Malformed { .. }), "{broken}: {error}");
        }
        assert!(matches!(split(&Bytes::from("[]"), JSON, b','), Err(PartError::Empty)));
    }

    #[test]
    fn every_part_of_a_csv_body_repeats_the_header() {
        let body: String = (0..60_000).map(|row| format!("{row},\"text {row}\nmore\"\n")).collect();
        let parts = parts(format!("id,note\n{body}"), Encoding::Csv { header: true });
        assert!(parts.len() > 2 && parts.iter().all(|part| part.len() <= PART_BYTES));
        let rows: Vec<&[u8]> = parts.iter().map(|part| part.strip_prefix(b"id,note\n").unwrap()).collect();
        assert_eq!(rows.concat(), body.as_bytes());
    }

    #[test]
    fn an_arrow_body_is_one_batch_a_part() {
        let numbers = Int64Array::from_iter_values(0..200_000);
        let batch = RecordBatch::try_from_iter([("id", Arc::new(numbers) as _)]).unwrap();
        let body = batch::encode_stream(&batch, Compression::None).unwrap();
        let parts = parts(body, Encoding::Arrow);
        assert!(parts.len() > 2 && parts.iter().all(|part| part.len() <= PART_BYTES));
        let decode = |part: &Bytes| batch::decode_batch(part, &Limits::default()).unwrap().num_rows();
        assert_eq!(parts.iter().map(decode).sum::<usize>(), 200_000);
        assert!(matches!(split(&Bytes::from("no stream"), Encoding::Arrow, b','), Err(PartError::Malformed { .. })));
    }

    #[test]
    fn a_row_larger_than_a_part_travels_alone_and_one_larger_than_a_message_is_refused() {
        let row = |bytes: usize| format!("{{\"note\":\"{}\"}}\n", "x".repeat(bytes));
        let body = format!("{}{}{}", rows(3), row(700_000), rows(3));
        for encoding in [JSON, NDJSON] {
            assert_eq!(parts(body.clone(), encoding).concat(), body.as_bytes());
            let large = Bytes::from(row(MAX_ROW_BYTES));
            assert!(matches!(split(&large, encoding, b','), Err(PartError::RowTooLarge { .. })), "{encoding:?}");
        }
        let array = format!("[{}]", row(MAX_ROW_BYTES));
        assert!(matches!(split(&Bytes::from(array), JSON, b','), Err(PartError::RowTooLarge { .. })));
    }

    #[test]
    fn an_empty_body_is_said_to_be_empty() {
        for encoding in [JSON, NDJSON, Encoding::Csv { header: true }, Encoding::Arrow] {
            assert!(matches!(split(&Bytes::from(" \n "), encoding, b','), Err(PartError::Empty)));
        }
    }
}

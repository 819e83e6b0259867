//! Cuts a request body into messages: at row boundaries, in order, every byte of every row kept.
//!
//! Pure. Rows are not judged here: what is wrong with a row is said by the decoder behind the topic, to everybody alike.
//! Only a body whose framing cannot be followed at all (a broken array, a broken Arrow stream) is refused, and one that
//! would come to many times its size, since every message of it repeats dictionaries.

use std::{fmt, ops::Range, sync::Arc};

use arrow::{
    array::{ArrayRef, AsArray, RecordBatch},
    compute::take,
    datatypes::{FieldRef, Schema},
    error::ArrowError,
};
use batch::{CodecError, Compression, Limits, SplitError, decode_stream, encode_stream, encode_to_fit_within};
use bytes::{Bytes, BytesMut};
use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::{
    decode::{Encoding, Records, unfolded_bytes},
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
    #[error("each message would repeat {bytes} bytes of dictionaries")]
    Repeats { bytes: usize },
    #[error("as messages, each with the schema and its dictionaries, the body takes more than {max_bytes} bytes")]
    TooManyParts { max_bytes: usize },
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
    split_contiguous(body, value_ends(body))
}

/// Where values end; after a syntax error, the lines that begin an object. One by one: there may be one for every two
/// bytes.
fn value_ends(body: &[u8]) -> impl Iterator<Item = usize> {
    let mut values = serde_json::Deserializer::from_slice(body).into_iter::<IgnoredAny>();
    let (mut parsed, mut lines) = (0, None);
    std::iter::from_fn(move || {
        if lines.is_none() {
            if values.next()?.is_ok() {
                parsed = values.byte_offset();
                return Some(parsed);
            }
            lines = Some(line_ends(body, parsed).filter(move |&end| body.get(end) == Some(&b'{')));
        }
        lines.as_mut()?.next()
    })
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
    let limits = Limits { max_rows: usize::MAX, max_bytes: 4 * body.len().max(16 << 20) };
    let batches = decode_stream(body, &limits)?;
    // Twice what may come in: what parts repeat is no more than half of each, where batches are not tiny.
    let max_bytes = 2 * limits.max_bytes;
    let (mut cut, mut total, mut room) = (Vec::new(), 0, max_bytes);
    for batch in batches.iter().filter(|batch| batch.num_rows() > 0) {
        let (batch, usual) = with_small_dictionaries(batch, &limits)?;
        for part in parts_of(&batch, usual, room)?.ok_or(PartError::TooManyParts { max_bytes })? {
            room -= part.payload.len();
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

/// Cuts a batch into parts of the usual size; `None` where they take more than `room`.
fn parts_of(batch: &RecordBatch, usual: usize, room: usize) -> Result<Option<Vec<batch::Part>>, PartError> {
    let cut = |max_bytes| encode_to_fit_within(batch, max_bytes, room, Compression::None);
    let parts = cut(usual).or_else(|error| match error {
        // A row over the usual size of a part may still fit a message.
        SplitError::RowTooLarge { .. } => cut(MAX_ROW_BYTES),
        other => Err(other),
    });
    parts.map_err(|error| match error {
        SplitError::RowTooLarge { encoded_bytes, .. } => PartError::RowTooLarge { bytes: encoded_bytes },
        SplitError::Codec(error) => error.into(),
    })
}

/// A batch, and how large its parts are to be, so that dictionaries are no more than half of each: the place of larger
/// ones is taken by their values.
fn with_small_dictionaries(batch: &RecordBatch, limits: &Limits) -> Result<(RecordBatch, usize), PartError> {
    let bytes = dictionary_bytes(batch)?;
    if bytes <= PART_BYTES / 2 {
        return Ok((batch.clone(), PART_BYTES));
    }
    match without_dictionaries(batch, limits) {
        Some(plain) => Ok((plain, PART_BYTES)),
        // They stand for too much.
        None if bytes <= MAX_ROW_BYTES / 2 => Ok((batch.clone(), MAX_ROW_BYTES)),
        None => Err(PartError::Repeats { bytes }),
    }
}

/// What a part without rows would take for the dictionaries of its columns.
fn dictionary_bytes(batch: &RecordBatch) -> Result<usize, CodecError> {
    let keyed = |column: &usize| batch.column(*column).as_any_dictionary_opt().is_some();
    let keyed: Vec<usize> = (0..batch.num_columns()).filter(keyed).collect();
    if keyed.is_empty() {
        return Ok(0);
    }
    let keyed = batch.project(&keyed).map_err(CodecError::Encode)?;
    Ok(encode_stream(&keyed.slice(0, 0), Compression::None)?.len())
}

/// A batch with the values of its columns in the place of their dictionaries; `None` where those take too much.
fn without_dictionaries(batch: &RecordBatch, limits: &Limits) -> Option<RecordBatch> {
    let keyed = batch.columns().iter().filter(|column| column.as_any_dictionary_opt().is_some());
    let bytes = keyed.map(|column| unfolded_bytes(column.as_ref())).fold(0, usize::saturating_add);
    if bytes > limits.max_bytes {
        return None;
    }
    let columns = batch.columns().iter().map(unfolded).collect::<Result<Vec<_>, _>>().ok()?;
    // A dictionary may hold a NULL that no key tells of.
    let field = |(field, column): (&FieldRef, &ArrayRef)| match field.data_type() == column.data_type() {
        true => FieldRef::clone(field),
        false => Arc::new(field.as_ref().clone().with_data_type(column.data_type().clone()).with_nullable(true)),
    };
    let schema = batch.schema();
    let fields: Vec<FieldRef> = schema.fields().iter().zip(&columns).map(field).collect();
    RecordBatch::try_new(Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone())), columns).ok()
}

fn unfolded(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    match column.as_any_dictionary_opt() {
        Some(dictionary) => take(dictionary.values(), dictionary.keys(), None),
        None => Ok(Arc::clone(column)),
    }
}

impl From<CodecError> for PartError {
    fn from(error: CodecError) -> Self {
        Self::Malformed { what: "a readable Arrow IPC stream", reason: error.to_string() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use arrow::{
        array::{DictionaryArray, Int32Array, Int64Array, ListArray, StringArray},
        buffer::OffsetBuffer,
        datatypes::{DataType, Field, Int32Type},
        ipc::writer::StreamWriter,
    };

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
        let body = encode_stream(&batch, Compression::None).unwrap();
        let parts = parts(body, Encoding::Arrow);
        assert!(parts.len() > 2 && parts.iter().all(|part| part.len() <= PART_BYTES));
        let decode = |part: &Bytes| batch::decode_batch(part, &Limits::default()).unwrap().num_rows();
        assert_eq!(parts.iter().map(decode).sum::<usize>(), 200_000);
        assert!(matches!(split(&Bytes::from("no stream"), Encoding::Arrow, b','), Err(PartError::Malformed { .. })));
    }

    #[test]
    fn a_large_body_of_tiny_values_is_cut_like_any_other() {
        let body = "{}".repeat(600_000);
        let cut = parts(body.clone(), JSON);
        assert!(cut.len() > 2 && cut.iter().all(|part| part.len() <= PART_BYTES));
        assert_eq!(cut.concat(), body.as_bytes());
    }

    /// Texts of 100 bytes, so many in a dictionary and so many in rows.
    fn keyed(values: usize, rows: usize) -> ArrayRef {
        let texts = StringArray::from_iter_values((0..values).map(|value| format!("{value:0100}")));
        let keys = Int32Array::from_iter_values((0..rows).map(|row| (row % values) as i32));
        Arc::new(DictionaryArray::<Int32Type>::new(keys, Arc::new(texts)))
    }

    fn stream(batches: &[RecordBatch]) -> Bytes {
        let mut writer = StreamWriter::try_new(Vec::<u8>::new(), &batches[0].schema()).unwrap();
        batches.iter().for_each(|batch| writer.write(batch).unwrap());
        Bytes::from(writer.into_inner().unwrap())
    }

    fn refused(body: &Bytes) -> String {
        split(body, Encoding::Arrow, b',').unwrap_err().to_string()
    }

    #[test]
    fn a_dictionary_is_not_repeated_where_it_would_fill_the_parts() {
        for (values, is_kept) in [(1_000, true), (4_500, false), (30_000, false)] {
            let batch = RecordBatch::try_from_iter([("note", keyed(values, 40_000))]).unwrap();
            let parts = parts(stream(std::slice::from_ref(&batch)), Encoding::Arrow);
            assert!(parts.iter().all(|part| part.len() <= PART_BYTES));
            assert!(parts.iter().map(Bytes::len).sum::<usize>() < 6 << 20, "{values}");
            let decode = |part: &Bytes| batch::decode_batch(part, &Limits::default()).unwrap();
            let parts: Vec<RecordBatch> = parts.iter().map(decode).collect();
            let is_dictionary = |part: &RecordBatch| matches!(part.column(0).data_type(), DataType::Dictionary(_, _));
            assert!(parts.iter().all(|part| is_dictionary(part) == is_kept), "{values}");
            let sent = unfolded(batch.column(0)).unwrap();
            let texts: Vec<_> = parts.iter().map(|part| unfolded(part.column(0)).unwrap()).collect();
            let found = texts.iter().flat_map(|texts| texts.as_string::<i32>());
            assert!(found.eq(sent.as_string::<i32>()), "{values}: the same rows in the same order");
        }
    }

    #[test]
    fn dictionaries_that_stand_for_too_much_are_refused_before_they_are_repeated() {
        let note = |values, rows| RecordBatch::try_from_iter([("note", keyed(values, rows))]).unwrap();
        let far = parts(stream(&[note(4_500, 1_000_000)]), Encoding::Arrow);
        assert!(far.iter().map(Bytes::len).sum::<usize>() < 16 << 20, "half of each part are rows");
        assert!(refused(&stream(&[note(9_000, 1_000_000)])).starts_with("each message would repeat 9"));

        // What stands inside lists is not unfolded; it leaves no room for rows.
        let items = keyed(5_000, 300_000);
        let item = Arc::new(Field::new("item", items.data_type().clone(), true));
        let lists = ListArray::new(item, OffsetBuffer::from_lengths(vec![1; 300_000]), items, None);
        let nested = RecordBatch::try_from_iter([("notes", Arc::new(lists) as ArrayRef)]).unwrap();
        assert!(refused(&stream(&[nested])).contains("takes more than"));

        let shared = note(2_000, 2_000);
        let batches: Vec<_> = (0..2_000).map(|row| shared.slice(row, 1)).collect();
        assert!(refused(&stream(&batches)).contains("takes more than"));
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

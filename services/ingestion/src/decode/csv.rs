//! CSV messages → rows, through arrow-csv.
//!
//! The invariant: a message never lends bytes to the next. A message whose last quote is open, or that is not UTF-8,
//! does not reach arrow-csv in a run: there it would take the following message's bytes, or make texts that are not
//! texts. An empty field is NULL, in every type.
//!
//! The parser sets memory aside for every field of every row of a batch before it reads the first, so how many rows are
//! parsed together depends on how many fields they have, and a message with too many fields is rejected.
//!
//! A number beyond what its column of floats holds is read as infinite, so rows with infinite floats are looked at one by
//! one: only their texts tell whether they say so themselves.

mod records;

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{Array as _, ArrayRef, RecordBatch, new_null_array},
    csv::{ReaderBuilder, reader::Decoder as RecordDecoder},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use bytes::Bytes;
use topics::Message;

use super::{
    BATCH_ROWS, Decoded, Fault, NARROW_ROWS, Part, RowText, Shape, Verdict, WIDE_ROWS, decimals,
    exact_numbers::{float_fault, has_outermost},
    guarded, too_many_rows, with_zone,
};

pub(crate) use records::Records;
use records::{Record, field_count};

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A header of more fields rejects its message.
const MAX_FIELDS: usize = 10_000;
/// What a parser sets aside for one field of one row, and for all of a batch.
const FIELD_BYTES: usize = 16;
const PARSER_BYTES: usize = 8 << 20;

pub(super) struct CsvDecoder {
    shape: Shape,
    /// The layout of the last header seen: a source's messages mostly share one.
    known: Option<(Bytes, Arc<Layout>)>,
    /// The layout without a header: the declared columns in order.
    declared: Result<Arc<Layout>, Verdict>,
    wide: Option<(Arc<Layout>, RecordDecoder)>,
}

/// How a message's fields become the source's columns.
struct Layout {
    /// Every field of a record, in order; unknown ones and decimals as text.
    fields: SchemaRef,
    /// The fields that are declared columns.
    projection: Vec<usize>,
    /// For each declared column, its place in `projection`; `None` where the message has no such field.
    columns: Vec<Option<usize>>,
    schema: SchemaRef,
    delimiter: u8,
    /// Rows that a message may hold.
    max_rows: usize,
}

/// A stretch of a message that holds whole records, and how to read it.
struct Body<'a> {
    message: &'a Message,
    bytes: Range<usize>,
    layout: Arc<Layout>,
}

impl CsvDecoder {
    pub(super) fn new(shape: Shape) -> Self {
        let names: Vec<_> = shape.schema.fields().iter().map(|field| field.name().as_str()).collect();
        let declared = Layout::new(&shape, &names).map(Arc::new);
        Self { shape, known: None, declared, wide: None }
    }

    pub(super) fn decode(&mut self, run: &[Message], header: bool, output: &mut Decoded) {
        let mut bodies: Vec<Body<'_>> = Vec::with_capacity(run.len());
        for message in run {
            match self.body(message, header) {
                Ok(body) => bodies.push(body),
                Err(verdict) => {
                    // What came before goes first: rejected rows stay in input order.
                    self.decode_bodies(&std::mem::take(&mut bodies), output);
                    output.reject(message, 0, None, verdict, message.payload.clone());
                }
            }
        }
        self.decode_bodies(&bodies, output);
    }

    /// Decodes neighbours of one layout together.
    fn decode_bodies(&mut self, bodies: &[Body<'_>], output: &mut Decoded) {
        for group in bodies.chunk_by(|one, next| Arc::ptr_eq(&one.layout, &next.layout)) {
            if !self.attempt_wide(group, output) {
                decode_narrowly(group, output);
            }
        }
    }

    fn attempt_wide(&mut self, group: &[Body<'_>], output: &mut Decoded) -> bool {
        let Some(layout) = group.first().map(|body| &body.layout) else { return true };
        let kept = self.wide.take().filter(|(of, _)| Arc::ptr_eq(of, layout)).map(|(_, decoder)| decoder);
        let decoder = kept.or_else(|| layout.decoder(WIDE_ROWS));
        let Some((decoder, decoded)) = attempt(decoder, group) else { return false };
        self.wide = Some((Arc::clone(layout), decoder));
        append_undoubted(decoded, output)
    }

    /// Finds the rows of a message and how to read them.
    fn body<'a>(&mut self, message: &'a Message, header: bool) -> Result<Body<'a>, Verdict> {
        let payload = &message.payload;
        if payload.trim_ascii().is_empty() {
            return Err(Verdict::new(Fault::Unreadable, "the message is empty"));
        }
        if !self.shape.delimiter.is_ascii() {
            return Err(Verdict::new(Fault::Unreadable, "the source's delimiter is not an ASCII character"));
        }
        let start = text_start(payload);
        if !header {
            let layout = self.declared.clone()?;
            return Ok(Body { message, bytes: start..payload.len(), layout });
        }
        let Some(record) = Records::new(payload, start, self.shape.delimiter).next() else {
            return Err(Verdict::new(Fault::Columns, "the message has no header line"));
        };
        let layout = self.layout_of(&payload[record.bytes.clone()])?;
        Ok(Body { message, bytes: record.bytes.end..payload.len(), layout })
    }

    /// Where the rows of a message stand, good and bad.
    pub(super) fn rows_of(&self, payload: &[u8], header: bool) -> Vec<RowText> {
        let (mut start, delimiter) = (text_start(payload), self.shape.delimiter);
        if header {
            start = Records::new(payload, start, delimiter).next().map_or(payload.len(), |header| header.bytes.end);
        }
        let mut lines = LineCounter::new(payload);
        let row = |record: Record| RowText { line: lines.at(record.bytes.start), bytes: record.bytes };
        Records::new(payload, start, delimiter).map(row).collect()
    }

    fn layout_of(&mut self, header: &[u8]) -> Result<Arc<Layout>, Verdict> {
        if let Some((known, layout)) = &self.known
            && known == header
        {
            return Ok(Arc::clone(layout));
        }
        let found = field_count(header, self.shape.delimiter);
        if found > MAX_FIELDS {
            let reason = format!("the header has {found} fields, at most {MAX_FIELDS} are taken");
            return Err(Verdict::new(Fault::Columns, reason));
        }
        let names = std::str::from_utf8(header).ok().and_then(|_| fields_of(header, self.shape.delimiter));
        let names = names.ok_or_else(|| Verdict::new(Fault::Unreadable, "the header line is not readable"))?;
        let names: Vec<_> = names.iter().map(|name| name.trim()).collect();
        let layout = Arc::new(Layout::new(&self.shape, &names)?);
        // A copy: the header must not keep its whole message alive.
        self.known = Some((Bytes::copy_from_slice(header), Arc::clone(&layout)));
        Ok(layout)
    }
}

impl Layout {
    fn new(shape: &Shape, names: &[&str]) -> Result<Self, Verdict> {
        let mut fields: Vec<Arc<Field>> = Vec::with_capacity(names.len());
        let mut projection = Vec::new();
        let mut columns = vec![None; shape.schema.fields().len()];
        // One for all: a short header may have thousands of them.
        let unknown = Arc::new(Field::new("", DataType::Utf8, true));
        for (place, &name) in names.iter().enumerate() {
            let Some((column, field)) = shape.reading.fields().find(name) else {
                if shape.reject_unknown {
                    return Err(Verdict::unknown(name));
                }
                fields.push(Arc::clone(&unknown));
                continue;
            };
            if columns[column].is_some() {
                let reason = format!("the header names column `{name}` twice");
                return Err(Verdict::of_column(Fault::Columns, name, reason));
            }
            columns[column] = Some(projection.len());
            projection.push(place);
            fields.push(match field.data_type() {
                DataType::Decimal128(_, _) => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8)),
                _ => Arc::clone(field),
            });
        }
        if projection.is_empty() {
            let line = names.join(&char::from(shape.delimiter).to_string());
            let reason = format!("the header names no column of the source; is it a row: `{line}`?");
            return Err(Verdict::new(Fault::Columns, reason));
        }
        let fields = Arc::new(Schema::new(fields));
        let schema = Arc::clone(&shape.schema);
        let (delimiter, max_rows) = (shape.delimiter, shape.max_rows);
        let layout = Self { fields, projection, columns, schema, delimiter, max_rows };
        layout.check().map(|()| layout)
    }

    /// Every declared column can be had: read from text, or left NULL.
    fn check(&self) -> Result<(), Verdict> {
        for (field, place) in self.schema.fields().iter().zip(&self.columns) {
            let name = field.name();
            if place.is_none() && !field.is_nullable() {
                let reason = format!("column `{name}` is NOT NULL and the header does not name it");
                return Err(Verdict::of_column(Fault::Columns, name, reason));
            }
            if place.is_some() && !readable_from_text(field.data_type()) {
                let data_type = field.data_type();
                let reason = format!("column `{name}` of type {data_type} cannot be read from CSV; send JSON or Arrow");
                return Err(Verdict::of_column(Fault::Columns, name, reason));
            }
        }
        Ok(())
    }

    /// A parser of at most so many rows in a batch, fewer where they have many fields.
    fn decoder(&self, most_rows: usize) -> Option<RecordDecoder> {
        let mut decoder = ReaderBuilder::new(Arc::clone(&self.fields))
            .with_delimiter(self.delimiter)
            .with_batch_size(rows_at_once(self.fields.fields().len(), most_rows))
            .with_projection(self.projection.clone())
            .build_decoder();
        // The parser drops a byte order mark from the first bytes it sees; messages must not differ by being first.
        decoder.decode(b"\n").ok()?;
        Some(decoder)
    }

    /// The projected fields in the order of the declared columns, with NULLs where there is no field.
    fn arrange(&self, projected: &RecordBatch) -> Option<RecordBatch> {
        let column = |(field, place): (&Arc<Field>, &Option<usize>)| match place {
            Some(place) => finished(projected.column(*place), field.data_type()),
            None => Some(new_null_array(field.data_type(), projected.num_rows())),
        };
        let columns = self.schema.fields().iter().zip(&self.columns).map(column).collect::<Option<_>>()?;
        RecordBatch::try_new(Arc::clone(&self.schema), columns).ok()
    }

    /// Says why a record is bad.
    fn judge(&self, record: &[u8]) -> Verdict {
        if std::str::from_utf8(record).is_err() {
            return Verdict::new(Fault::Unreadable, "the row is not valid UTF-8");
        }
        // Counted before they are taken apart: a row may have millions of fields.
        let (found, expected) = (field_count(record, self.delimiter), self.fields.fields().len());
        if found != expected {
            return Verdict::new(Fault::Columns, format!("expected {expected} fields, found {found}"));
        }
        let values = fields_of(record, self.delimiter).filter(|values| values.len() == expected);
        let Some(values) = values else {
            return Verdict::new(Fault::Syntax, "the row is not readable as CSV");
        };
        for &place in &self.projection {
            let (field, value) = (self.fields.field(place), &values[place]);
            if value.is_empty() && !field.is_nullable() {
                return Verdict::missing(field.name());
            }
            let fault = self.decimal_fault(field.name(), value).or_else(|| float_fault(value, field.data_type()));
            if let Some(fault) = fault {
                return Verdict::of_column(Fault::Value, field.name(), format!("column `{}`: {fault}", field.name()));
            }
            if self.column_fails(place, record) {
                let reason = format!("column `{}`: cannot read `{value}` as {}", field.name(), field.data_type());
                return Verdict::of_column(Fault::Value, field.name(), reason);
            }
        }
        Verdict::new(Fault::Value, "the row cannot be decoded")
    }

    /// Says what is wrong with a record that was read, but with infinite floats; `None` if it says so itself.
    fn judge_floats(&self, record: &[u8]) -> Option<Verdict> {
        let Some(values) = fields_of(record, self.delimiter) else { return Some(self.judge(record)) };
        let beyond = |&place: &usize| float_fault(values.get(place)?, self.fields.field(place).data_type());
        self.projection.iter().any(|place| beyond(place).is_some()).then(|| self.judge(record))
    }

    fn decimal_fault(&self, name: &str, value: &str) -> Option<String> {
        match self.schema.field_with_name(name).ok()?.data_type() {
            DataType::Decimal128(precision, scale) if !value.is_empty() => decimals::fault(value, *precision, *scale),
            _ => None,
        }
    }

    fn column_fails(&self, place: usize, record: &[u8]) -> bool {
        let builder = ReaderBuilder::new(Arc::clone(&self.fields)).with_delimiter(self.delimiter).with_batch_size(1);
        let mut decoder = builder.with_projection(vec![place]).build_decoder();
        let decoded = guarded(|| {
            decoder.decode(record).ok()?;
            decoder.decode(b"\n").ok()?;
            decoder.flush().ok()?
        });
        decoded.is_none()
    }
}

/// Where the text begins, behind a byte order mark.
fn text_start(payload: &[u8]) -> usize {
    if payload.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 }
}

/// A column as it was read, in its declared type; `None` where a text is no decimal of it.
fn finished(column: &ArrayRef, data_type: &DataType) -> Option<ArrayRef> {
    let DataType::Decimal128(precision, scale) = data_type else { return Some(with_zone(column, data_type)) };
    let decimals = decimals::from_texts(column, *precision, *scale)?;
    (decimals.null_count() == column.null_count()).then(|| Arc::new(decimals) as ArrayRef)
}

/// How many rows of so many fields are parsed together.
fn rows_at_once(fields: usize, most: usize) -> usize {
    (PARSER_BYTES / (FIELD_BYTES * fields.max(1))).clamp(1, most)
}

fn readable_from_text(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Boolean
            | DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::Float32
            | DataType::Float64
            | DataType::Decimal128(_, _)
            | DataType::Utf8
            | DataType::Date32
            | DataType::Timestamp(_, _)
    )
}

/// Decodes messages of one layout in small groups, then one by one, then record by record.
fn decode_narrowly(group: &[Body<'_>], output: &mut Decoded) {
    for few in group.chunks(NARROW_ROWS) {
        if few.len() < group.len() && attempt_narrow(few, output) {
            continue;
        }
        for body in few {
            if group.len() == 1 || !attempt_narrow(std::slice::from_ref(body), output) {
                decode_records(body, output);
            }
        }
    }
}

fn attempt_narrow(group: &[Body<'_>], output: &mut Decoded) -> bool {
    let Some(layout) = group.first().map(|body| &body.layout) else { return true };
    let Some((_, decoded)) = attempt(layout.decoder(NARROW_ROWS), group) else { return false };
    append_undoubted(decoded, output)
}

/// Rows are taken together if none of them has an infinite float.
fn append_undoubted(decoded: Decoded, output: &mut Decoded) -> bool {
    if has_infinite(&decoded) {
        return false;
    }
    output.append(decoded);
    true
}

fn has_infinite(decoded: &Decoded) -> bool {
    decoded.parts.iter().any(|part| has_outermost(&part.batch))
}

/// Decodes a single record.
fn decode_record(body: &Body<'_>) -> Result<Decoded, Verdict> {
    let (layout, record) = (&body.layout, &body.message.payload[body.bytes.clone()]);
    let Some((_, decoded)) = attempt(layout.decoder(1), std::slice::from_ref(body)) else {
        return Err(layout.judge(record));
    };
    match has_infinite(&decoded).then(|| layout.judge_floats(record)).flatten() {
        Some(verdict) => Err(verdict),
        None => Ok(decoded),
    }
}

/// Decodes messages of one layout as one; `None` on any fault.
fn attempt(decoder: Option<RecordDecoder>, group: &[Body<'_>]) -> Option<(RecordDecoder, Decoded)> {
    let layout = Arc::clone(&group.first()?.layout);
    guarded(|| {
        let (decoder, decoded) = (decoder?, Decoded::default());
        // It is new or has just been flushed, so this is all it holds.
        let capacity = decoder.capacity();
        let (offsets, flushed_rows, earlier_rows) = (Vec::new(), 0, 0);
        let mut feeder = Feeder { decoder, layout, capacity, offsets, flushed_rows, earlier_rows, decoded };
        group.iter().all(|body| feeder.feed_body(body)).then_some(())?;
        feeder.finish()
    })
}

/// The slow path: one message, record by record.
fn decode_records(body: &Body<'_>, output: &mut Decoded) {
    let message = body.message;
    let records: Vec<_> = Records::new(&message.payload, body.bytes.start, body.layout.delimiter).collect();
    if records.len() > body.layout.max_rows {
        let verdict = too_many_rows(records.len(), body.layout.max_rows);
        return output.reject(message, 0, None, verdict, message.payload.clone());
    }
    let mut line = LineCounter::new(&message.payload);
    for (index, group) in records.chunks(NARROW_ROWS).enumerate() {
        let bodies: Vec<_> = group.iter().map(|record| body.part(record)).collect();
        if group.iter().all(|record| record.closed) && attempt_narrow(&bodies, output) {
            continue;
        }
        for (place, (record, alone)) in group.iter().zip(&bodies).enumerate() {
            let decoded = match record.closed {
                true => decode_record(alone),
                false => Err(Verdict::new(Fault::Syntax, "a quote is opened and never closed")),
            };
            match decoded {
                Ok(decoded) => output.append(decoded),
                Err(verdict) => {
                    let row = index * NARROW_ROWS + place;
                    let bytes = message.payload.slice(record.bytes.clone());
                    output.reject(message, row, Some(line.at(record.bytes.start)), verdict, bytes);
                }
            }
        }
    }
}

impl<'a> Body<'a> {
    fn part(&self, record: &Record) -> Body<'a> {
        Body { message: self.message, bytes: record.bytes.clone(), layout: Arc::clone(&self.layout) }
    }
}

/// Counts lines once, however many places are asked for in order.
struct LineCounter<'a> {
    payload: &'a [u8],
    counted: usize,
    line: u32,
}

impl<'a> LineCounter<'a> {
    fn new(payload: &'a [u8]) -> Self {
        Self { payload, counted: 0, line: 1 }
    }

    fn at(&mut self, place: usize) -> u32 {
        self.line += self.payload[self.counted..place].iter().map(|&byte| u32::from(byte == b'\n')).sum::<u32>();
        self.counted = place;
        self.line
    }
}

/// Feeds messages to a decoder and keeps account of which rows came from where.
struct Feeder {
    decoder: RecordDecoder,
    layout: Arc<Layout>,
    /// Rows that the decoder holds at most.
    capacity: usize,
    /// One offset for each row in the decoder that is accounted for.
    offsets: Vec<i64>,
    flushed_rows: usize,
    /// Rows of messages before the one at hand.
    earlier_rows: usize,
    decoded: Decoded,
}

impl Feeder {
    fn waiting_rows(&self) -> usize {
        self.capacity - self.decoder.capacity()
    }

    /// Rows seen so far, in the decoder or built.
    fn rows(&self) -> usize {
        self.flushed_rows + self.waiting_rows()
    }

    /// Whether the message at hand holds more rows than are taken.
    fn too_many_rows(&self) -> bool {
        self.rows() - self.earlier_rows > self.layout.max_rows
    }

    fn feed_body(&mut self, body: &Body<'_>) -> bool {
        let bytes = &body.message.payload[body.bytes.clone()];
        self.earlier_rows = self.rows();
        if !self_contained(bytes, self.layout.delimiter) || self.feed(bytes, body.message.offset).is_none() {
            return false;
        }
        if !bytes.ends_with(b"\n") && self.feed(b"\n", body.message.offset).is_none() {
            return false;
        }
        self.offsets.resize(self.waiting_rows(), body.message.offset as i64);
        !self.too_many_rows() && (self.waiting_rows() < BATCH_ROWS || self.flush().is_some())
    }

    /// Feeds all of `bytes`, building a batch whenever the decoder is full.
    fn feed(&mut self, mut bytes: &[u8], offset: u64) -> Option<()> {
        while !bytes.is_empty() {
            if self.decoder.capacity() == 0 {
                self.offsets.resize(self.waiting_rows(), offset as i64);
                if self.too_many_rows() {
                    return None;
                }
                self.flush()?;
            }
            let taken = self.decoder.decode(bytes).ok().filter(|&taken| taken > 0)?;
            bytes = &bytes[taken..];
        }
        Some(())
    }

    fn flush(&mut self) -> Option<()> {
        let Some(projected) = self.decoder.flush().ok()? else { return Some(()) };
        let batch = self.layout.arrange(&projected)?;
        self.flushed_rows += batch.num_rows();
        self.decoded.parts.push(Part { batch, offsets: std::mem::take(&mut self.offsets) });
        Some(())
    }

    fn finish(mut self) -> Option<(RecordDecoder, Decoded)> {
        self.flush()?;
        Some((self.decoder, self.decoded))
    }
}

/// Whether the bytes are text whose records all end within them. Without quotes, every line break ends a record.
fn self_contained(bytes: &[u8], delimiter: u8) -> bool {
    std::str::from_utf8(bytes).is_ok()
        && (!bytes.contains(&b'"') || Records::new(bytes, 0, delimiter).all(|record| record.closed))
}

/// The values of one record, unquoted; `None` if it is not exactly one record of text.
fn fields_of(record: &[u8], delimiter: u8) -> Option<Vec<String>> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .buffer_capacity(record.len().clamp(64, 8192))
        .from_reader(record);
    let fields = reader.records().next()?.ok()?;
    Some(fields.iter().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_parsed_together_take_the_same_memory_however_many_fields_they_have() {
        assert_eq!(rows_at_once(0, WIDE_ROWS), WIDE_ROWS);
        assert_eq!(rows_at_once(16, WIDE_ROWS), WIDE_ROWS);
        assert_eq!(rows_at_once(100, WIDE_ROWS), 5242);
        assert_eq!(rows_at_once(MAX_FIELDS, WIDE_ROWS), 52);
        assert_eq!(rows_at_once(MAX_FIELDS, NARROW_ROWS), 52);
        assert_eq!(rows_at_once(MAX_FIELDS, 1), 1);
        assert_eq!(rows_at_once(usize::MAX / FIELD_BYTES, WIDE_ROWS), 1, "a row of any width can be parsed");
    }
}

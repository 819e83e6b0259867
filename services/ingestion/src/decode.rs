//! Bytes of user messages → typed rows: the hot path of ingestion.
//!
//! The invariant: the verdict on a row depends on that row alone. A run of messages is decoded in one go; only when
//! that fails is it taken apart, down to single rows, so that a bad row never stops, loses or changes its neighbours,
//! however messages were batched. Whatever the bytes are, decoding ends with rows or with rejected rows, never with an
//! error and never with a panic.
//!
//! Pure: no I/O, no clock. Deliberately absent: positions and totals (`batcher`), and what becomes of rejected rows
//! (`reject`).
//!
//! Integers in a TIMESTAMP column of JSON are microseconds since 1970; texts without an offset are UTC.

mod arrow_stream;
mod csv;
mod decimals;
mod exact_numbers;
mod json;
mod unstorable;

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, AsArray},
    compute::concat_batches,
    datatypes::{DataType, FieldRef, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType},
    record_batch::RecordBatch,
};
use bytes::Bytes;
use pipeline::{Format, SourceStage, UnknownColumns};
use runtime::{dead_letters::shortened, row_limits::RowLimits};
use topics::Message;

use self::{arrow_stream::ArrowDecoder, csv::CsvDecoder, json::JsonDecoder};

pub(crate) use self::{arrow_stream::unfolded_bytes, csv::Records};

/// The message header that says what a payload is, where it is not the source's own format.
pub const CONTENT_TYPE: &str = "content-type";

/// Rows after which a decoder builds a batch, between messages.
const BATCH_ROWS: usize = 8192;
/// Rows after which a decoder builds a batch even inside a message.
const WIDE_ROWS: usize = 4 * BATCH_ROWS;
/// A larger message is rejected as it stands: to decode it would take several times its size at once.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// What is kept of such a message; the whole of it is in its topic.
const KEPT_BYTES: usize = 1 << 20;
/// What the rows of one message may take where each has a value in every column, as it has when it is decoded.
const MAX_ROWS_BYTES: usize = 256 << 20;
/// Messages (or rows) tried together once a run has failed.
const NARROW_ROWS: usize = 64;
/// A reason, like the name of a column, is for people; it does not repeat a whole row.
const MAX_WORDS_BYTES: usize = 400;

/// What a run of messages came to.
#[derive(Debug, Default)]
pub struct Decoded {
    /// The good rows, in input order.
    pub parts: Vec<Part>,
    /// The bad rows, in input order.
    pub rejected: Vec<RejectedRow>,
}

/// Consecutive good rows. **Shapes**: the source's columns, and one offset a row, never falling.
#[derive(Debug)]
pub struct Part {
    /// The user's columns.
    pub batch: RecordBatch,
    /// The input offset each row came from.
    pub offsets: Vec<i64>,
}

/// A row that is not of the source's shape, with its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedRow {
    /// Offset of the message it came in.
    pub offset: u64,
    /// Its place among all rows, good and bad, of the message.
    pub row: u32,
    /// When the message was produced, milliseconds since 1970.
    pub produced_at_ms: i64,
    /// The line of the message it begins on, from 1; its row where the format has no lines.
    pub line: Option<u32>,
    /// The column at fault, if it is one column.
    pub column: Option<String>,
    /// The kind of fault, a closed set.
    pub fault: Fault,
    /// What is wrong, for people.
    pub reason: String,
    /// The row as it came.
    pub bytes: Bytes,
}

/// Why a row was rejected: the closed set behind metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The bytes are not of the format at all.
    Unreadable,
    /// The row breaks the format's syntax.
    Syntax,
    /// A value does not fit its column's type.
    Value,
    /// A column that is NOT NULL has no value.
    Null,
    /// Columns are unknown, missing, too few or too many.
    Columns,
    /// The row, or the message, is larger than may be passed on.
    TooLarge,
    /// Whether the message repeats another cannot be told by its idempotency key.
    Key,
}

impl Fault {
    /// The word used in metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Syntax => "syntax",
            Self::Value => "value",
            Self::Null => "null",
            Self::Columns => "columns",
            Self::TooLarge => "too_large",
            Self::Key => "key",
        }
    }
}

/// What a payload is: the source's format, or what the message says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Any number of objects; `lines`: an object never spans lines.
    Json {
        /// Whether each line stands alone (NDJSON).
        lines: bool,
    },
    /// Comma-separated; `header`: the first record names the columns.
    Csv {
        /// Whether the first record names the columns.
        header: bool,
    },
    /// An Arrow IPC stream.
    Arrow,
}

impl Encoding {
    /// Reads a content type. `None` for one that is not a format of ours.
    ///
    /// `csv_header` is what holds where `text/csv` does not say whether it has a header.
    pub fn from_content_type(text: &str, csv_header: bool) -> Option<Self> {
        let mut pieces = text.split(';').map(str::trim);
        match pieces.next()?.to_ascii_lowercase().as_str() {
            "application/json" => Some(Self::Json { lines: false }),
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Some(Self::Json { lines: true }),
            "application/vnd.apache.arrow.stream" => Some(Self::Arrow),
            "text/csv" => Some(Self::Csv { header: header_parameter(pieces).unwrap_or(csv_header) }),
            _ => None,
        }
    }
}

/// `header=present` or `header=absent` (RFC 4180).
fn header_parameter<'a>(parameters: impl Iterator<Item = &'a str>) -> Option<bool> {
    parameters.filter_map(|parameter| parameter.split_once('=')).find_map(|(name, value)| {
        let present = value.trim().eq_ignore_ascii_case("present");
        let known = present || value.trim().eq_ignore_ascii_case("absent");
        (name.trim().eq_ignore_ascii_case("header") && known).then_some(present)
    })
}

/// What decoding needs to know of a source.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    schema: SchemaRef,
    /// What texts are parsed into: the schema with timestamps that name no zone. A text without an offset is UTC either
    /// way, and no zone has to be looked up for each value.
    reading: SchemaRef,
    reject_unknown: bool,
    delimiter: u8,
    /// Rows that a message may hold.
    max_rows: usize,
}

/// Decodes the messages of one source. Keeps parsers, not rows, between calls.
pub struct Decoder {
    usual: Encoding,
    csv_header: bool,
    schema: SchemaRef,
    row_bytes: usize,
    limits: RowLimits,
    json: JsonDecoder,
    csv: CsvDecoder,
    arrow: ArrowDecoder,
}

impl Decoder {
    /// A decoder for `source`. A row that alone would not fit a channel's message of `max_message_bytes`, or that
    /// has no place among the partitions of the table, is rejected.
    pub fn new(source: &SourceStage, max_message_bytes: usize) -> Self {
        let options = &source.spec.options;
        let row_bytes = row_bytes(&source.schema);
        let shape = Shape {
            schema: Arc::clone(&source.schema),
            reading: reading_schema(&source.schema),
            reject_unknown: options.unknown_columns == UnknownColumns::Reject,
            delimiter: options.csv_delimiter,
            max_rows: max_rows(row_bytes),
        };
        let usual = match source.spec.format {
            Format::Json => Encoding::Json { lines: false },
            Format::Csv => Encoding::Csv { header: options.csv_header },
            Format::Arrow => Encoding::Arrow,
        };
        Self {
            usual,
            csv_header: options.csv_header,
            schema: Arc::clone(&source.schema),
            row_bytes,
            limits: RowLimits::new(max_message_bytes, &options.partition_by),
            json: JsonDecoder::new(shape.clone()),
            csv: CsvDecoder::new(shape.clone()),
            arrow: ArrowDecoder::new(shape),
        }
    }

    /// Bytes that a row takes at least, however little of it was sent.
    pub(crate) fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Decodes a run of messages, in order.
    ///
    /// **Shapes**: parts and rejected rows in input order; no empty parts. CPU only: call it off the async pool.
    pub fn decode(&mut self, run: &[Message]) -> Decoded {
        let mut output = Decoded::default();
        let mut rest = run;
        while let Some(first) = rest.first() {
            if is_huge(first) {
                output.reject_huge(first);
                rest = &rest[1..];
                continue;
            }
            let encoding = self.encoding_of(first);
            let alike = |message: &&Message| !is_huge(message) && self.encoding_of(message) == encoding;
            let alike = rest.iter().take_while(alike).count();
            let (group, after) = rest.split_at(alike);
            self.decode_alike(encoding, group, &mut output);
            rest = after;
        }
        unstorable::reject(&mut output, run, &self.limits, &|message: &Message| self.rows_of(message));
        output.parts = merge_small(&self.schema, output.parts);
        output
    }

    fn decode_alike(&mut self, encoding: Encoding, group: &[Message], output: &mut Decoded) {
        match encoding {
            Encoding::Json { lines } => self.json.decode(group, lines, output),
            Encoding::Csv { header } => self.csv.decode(group, header, output),
            Encoding::Arrow => self.arrow.decode(group, output),
        }
    }

    /// Where the rows of a message stand, good and bad; `None` for one that is no text.
    fn rows_of(&self, message: &Message) -> Option<Vec<RowText>> {
        match self.encoding_of(message) {
            Encoding::Json { lines } => Some(json::rows_of(&message.payload, lines)),
            Encoding::Csv { header } => Some(self.csv.rows_of(&message.payload, header)),
            Encoding::Arrow => None,
        }
    }

    /// A content type that is not ours belongs to the user's own programs and changes nothing.
    fn encoding_of(&self, message: &Message) -> Encoding {
        let content_type = message.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(CONTENT_TYPE));
        content_type
            .and_then(|(_, value)| std::str::from_utf8(value).ok())
            .and_then(|text| Encoding::from_content_type(text, self.csv_header))
            .unwrap_or(self.usual)
    }
}

impl Decoded {
    fn append(&mut self, mut other: Self) {
        self.parts.append(&mut other.parts);
        self.rejected.append(&mut other.rejected);
    }

    fn reject_message(&mut self, message: &Message, fault: Fault, reason: impl Into<String>) {
        self.reject(message, 0, None, Verdict::new(fault, reason), message.payload.clone());
    }

    fn reject_huge(&mut self, message: &Message) {
        let bytes = message.payload.len();
        let reason = format!(
            "the message has {bytes} bytes, at most {MAX_MESSAGE_BYTES} are taken: send smaller ones; its first \
             {KEPT_BYTES} bytes are kept here, all of it is in its topic"
        );
        // A copy, which does not keep the whole message in memory.
        let kept = Bytes::copy_from_slice(&message.payload[..KEPT_BYTES]);
        self.reject(message, 0, None, Verdict::new(Fault::TooLarge, reason), kept);
    }

    fn reject(&mut self, message: &Message, row: usize, line: Option<u32>, verdict: Verdict, bytes: Bytes) {
        self.rejected.push(RejectedRow {
            offset: message.offset,
            row: u32::try_from(row).unwrap_or(u32::MAX),
            produced_at_ms: message.timestamp_ms,
            line,
            column: verdict.column,
            fault: verdict.fault,
            reason: verdict.reason,
            bytes,
        });
    }
}

/// Where a row stands in a message of text.
struct RowText {
    bytes: Range<usize>,
    /// The line it begins on, from 1.
    line: u32,
}

/// Why a row is bad.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    fault: Fault,
    column: Option<String>,
    reason: String,
}

impl Verdict {
    fn new(fault: Fault, reason: impl Into<String>) -> Self {
        let reason: String = reason.into();
        Self { fault, column: None, reason: in_short(&reason) }
    }

    fn of_column(fault: Fault, column: &str, reason: impl Into<String>) -> Self {
        Self { column: Some(in_short(column)), ..Self::new(fault, reason) }
    }

    fn missing(column: &str) -> Self {
        Self::of_column(Fault::Null, column, format!("column `{column}` is NOT NULL and has no value"))
    }

    fn unknown(column: &str) -> Self {
        let reason = format!("column `{column}` is not declared, and the source has unknown_columns = 'reject'");
        Self::of_column(Fault::Columns, column, reason)
    }

    /// A row that is no text is kept as a stream of its own, which repeats the schema, and all of its dictionaries.
    fn too_much_rejected() -> Self {
        let reason = "so many rows are rejected that one by one they would take too many bytes; send smaller messages";
        Self::new(Fault::TooLarge, reason)
    }
}

impl Shape {
    /// A batch of the reading schema in the source's own.
    fn zoned(&self, batch: &RecordBatch) -> Option<RecordBatch> {
        let fields = self.schema.fields().iter();
        let columns = fields.zip(batch.columns()).map(|(field, column)| with_zone(column, field.data_type())).collect();
        RecordBatch::try_new(Arc::clone(&self.schema), columns).ok()
    }
}

fn reading_schema(schema: &Schema) -> SchemaRef {
    let reading = |field: &FieldRef| match field.data_type() {
        DataType::Timestamp(unit, Some(_)) => {
            Arc::new(field.as_ref().clone().with_data_type(DataType::Timestamp(*unit, None)))
        }
        _ => Arc::clone(field),
    };
    Arc::new(Schema::new(schema.fields().iter().map(reading).collect::<Vec<_>>()))
}

/// Puts the zone back on a column that was read without one. Copies nothing.
fn with_zone(column: &ArrayRef, wanted: &DataType) -> ArrayRef {
    match (wanted, column.as_primitive_opt::<TimestampMicrosecondType>()) {
        (DataType::Timestamp(TimeUnit::Microsecond, zone), Some(times)) => {
            Arc::new(times.clone().with_timezone_opt(zone.clone()))
        }
        _ => Arc::clone(column),
    }
}

fn in_short(words: &str) -> String {
    shortened(words, MAX_WORDS_BYTES).into_owned()
}

fn is_huge(message: &Message) -> bool {
    message.payload.len() > MAX_MESSAGE_BYTES
}

/// Rows of so many bytes that a message may hold; beyond the first bound its positions could not be told apart, beyond
/// the second a few kilobytes of empty rows would become gigabytes.
fn max_rows(row_bytes: usize) -> usize {
    (delivery::MAX_ROWS_PER_UNIT as usize).min(MAX_ROWS_BYTES / row_bytes)
}

fn too_many_rows(rows: usize, max_rows: usize) -> Verdict {
    let reason = format!("the message holds {rows} rows, at most {max_rows} are taken; send smaller messages");
    Verdict::new(Fault::TooLarge, reason)
}

/// What a row takes, texts, lists and their like empty; never nothing.
fn row_bytes(schema: &Schema) -> usize {
    schema.fields().iter().map(|field| value_bytes(field.data_type())).sum::<usize>().max(1)
}

fn value_bytes(data_type: &DataType) -> usize {
    match data_type {
        DataType::Struct(fields) => fields.iter().map(|field| value_bytes(field.data_type())).sum(),
        other => other.primitive_width().unwrap_or(size_of::<i32>()),
    }
}

/// Runs third-party parsing on bytes from outside: a panic there is a verdict on the bytes, not the end of the task.
fn guarded<T>(parse: impl FnOnce() -> Option<T>) -> Option<T> {
    catch_unwind(AssertUnwindSafe(parse)).unwrap_or_default()
}

/// Joins neighbouring small parts, which only a run with bad rows leaves. Copies those; a clean run is passed through.
fn merge_small(schema: &SchemaRef, parts: Vec<Part>) -> Vec<Part> {
    let mut merged = Vec::with_capacity(parts.len());
    let mut waiting: Vec<Part> = Vec::new();
    let mut waiting_rows = 0;
    for part in parts {
        let rows = part.batch.num_rows();
        if waiting_rows + rows > BATCH_ROWS {
            merged.extend(join(schema, std::mem::take(&mut waiting)));
            waiting_rows = 0;
        }
        waiting_rows += rows;
        waiting.push(part);
    }
    merged.extend(join(schema, waiting));
    merged
}

fn join(schema: &SchemaRef, mut parts: Vec<Part>) -> Vec<Part> {
    if parts.len() < 2 {
        return parts;
    }
    match concat_batches(schema, parts.iter().map(|part| &part.batch)) {
        Ok(batch) => vec![Part { batch, offsets: parts.drain(..).flat_map(|part| part.offsets).collect() }],
        // Parts of one source have one schema, so this is out of reach; apart they are right all the same.
        Err(_) => parts,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

//! Answers as bytes: JSON, NDJSON, CSV, Arrow IPC and a table of text, batch by batch.
//!
//! The invariant: an answer that ends early can be told from a complete one in every format. JSON is one document
//! with an `error` member; NDJSON and the text table end with the error and then break the transfer; CSV and Arrow,
//! which have no place for an error, just break it. Deliberately absent: buffering beyond one batch, and compression.
//!
//! JSON: `{"columns":[{"name","type"}],"rows":[[…],…],"row_count":n}`. Decimals are numbers with all their digits,
//! timestamps ISO 8601 text, bytes hexadecimal text.

use std::{fmt::Write as _, str::FromStr, sync::Arc};

use arrow::{
    array::{Array, RecordBatch},
    csv,
    datatypes::{Schema, SchemaRef},
    error::ArrowError,
    ipc::writer::StreamWriter,
    json::writer::{EncoderOptions, make_encoder},
    util::display::{ArrayFormatter, FormatOptions},
};
use bytes::Bytes;

use crate::error::{ErrorKind, QueryError};

/// Widths of a text table are taken from its first batch; a column is no wider than this unless it has to be.
const WIDEST_COLUMN: usize = 60;

/// What an answer is written as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One document.
    #[default]
    Json,
    /// One object a row.
    Ndjson,
    /// With a header line.
    Csv,
    /// An IPC stream.
    Arrow,
    /// For people.
    Table,
}

const NAMES: [(&str, Format); 5] = [
    ("json", Format::Json),
    ("ndjson", Format::Ndjson),
    ("csv", Format::Csv),
    ("arrow", Format::Arrow),
    ("table", Format::Table),
];

impl FromStr for Format {
    type Err = QueryError;

    fn from_str(wanted: &str) -> Result<Self, QueryError> {
        let found = NAMES.iter().find(|(name, _)| *name == wanted).map(|(_, format)| *format);
        found.ok_or_else(|| {
            let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
            QueryError::new(ErrorKind::Invalid, format!("format `{wanted}` is not known"))
                .with_hint(format!("formats are {}", names.join(", ")))
        })
    }
}

impl Format {
    /// The format an `Accept` header asks for; the default when it leaves the choice.
    pub fn from_accept(accept: &str) -> Self {
        let wanted = accept.split(',').map(|part| part.split(';').next().unwrap_or(part).trim());
        wanted.into_iter().find_map(Self::from_media_type).unwrap_or_default()
    }

    fn from_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            "application/json" => Some(Self::Json),
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Some(Self::Ndjson),
            "text/csv" => Some(Self::Csv),
            "application/vnd.apache.arrow.stream" => Some(Self::Arrow),
            "text/plain" => Some(Self::Table),
            _ => None,
        }
    }

    /// The `Content-Type`.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Table => "text/plain; charset=utf-8",
        }
    }

    /// Whether an answer that fails on its way can only be broken off.
    pub(crate) fn has_no_place_for_errors(self) -> bool {
        matches!(self, Self::Csv | Self::Arrow)
    }
}

/// How a failed answer ends.
#[derive(Debug, PartialEq, Eq)]
pub struct Ending {
    /// What is still sent.
    pub last: Bytes,
    /// Whether the transfer is broken off after it.
    pub broken: bool,
}

/// Writes one answer.
pub struct Encoder {
    kind: Kind,
    schema: SchemaRef,
    rows: u64,
}

enum Kind {
    Json,
    Ndjson,
    Csv,
    Arrow(Box<StreamWriter<Vec<u8>>>),
    Table { widths: Option<Vec<usize>> },
}

impl Encoder {
    /// An encoder of answers with this schema.
    ///
    /// # Errors
    /// When the schema does not fit the format.
    pub fn new(format: Format, schema: SchemaRef) -> Result<Self, ArrowError> {
        let kind = match format {
            Format::Json => Kind::Json,
            Format::Ndjson => Kind::Ndjson,
            Format::Csv => {
                check_flat(&schema)?;
                Kind::Csv
            }
            Format::Arrow => Kind::Arrow(Box::new(StreamWriter::try_new(Vec::new(), &schema)?)),
            Format::Table => Kind::Table { widths: None },
        };
        Ok(Self { kind, schema, rows: 0 })
    }

    /// What comes before the first row.
    ///
    /// # Errors
    /// As [`batch`](Self::batch).
    pub fn start(&mut self) -> Result<Bytes, ArrowError> {
        match &mut self.kind {
            Kind::Json => Ok(json_start(&self.schema)),
            Kind::Csv => {
                let mut bytes = Vec::new();
                csv::Writer::new(&mut bytes).write(&RecordBatch::new_empty(Arc::clone(&self.schema)))?;
                Ok(bytes.into())
            }
            Kind::Arrow(writer) => Ok(std::mem::take(writer.get_mut()).into()),
            Kind::Ndjson | Kind::Table { .. } => Ok(Bytes::new()),
        }
    }

    /// The next rows.
    ///
    /// # Errors
    /// When a type has no text in this format.
    pub fn batch(&mut self, batch: &RecordBatch) -> Result<Bytes, ArrowError> {
        let after_rows = self.rows > 0;
        self.rows += batch.num_rows() as u64;
        match &mut self.kind {
            Kind::Json => json_rows(batch, after_rows),
            Kind::Ndjson => ndjson_rows(batch),
            Kind::Csv => {
                let mut bytes = Vec::new();
                csv::WriterBuilder::new().with_header(false).build(&mut bytes).write(batch)?;
                Ok(bytes.into())
            }
            Kind::Arrow(writer) => {
                writer.write(batch)?;
                Ok(std::mem::take(writer.get_mut()).into())
            }
            Kind::Table { widths } => table_rows(&self.schema, batch, widths),
        }
    }

    /// What comes after the last row.
    ///
    /// # Errors
    /// As [`batch`](Self::batch).
    pub fn finish(mut self) -> Result<Bytes, ArrowError> {
        match &mut self.kind {
            Kind::Json => Ok(format!("],\"row_count\":{}}}\n", self.rows).into()),
            Kind::Ndjson | Kind::Csv => Ok(Bytes::new()),
            Kind::Arrow(writer) => {
                writer.finish()?;
                Ok(std::mem::take(writer.get_mut()).into())
            }
            Kind::Table { widths } => {
                let mut text = match widths {
                    Some(_) => String::new(),
                    None => table_head(&self.schema, &header_widths(&self.schema)),
                };
                let noun = if self.rows == 1 { "row" } else { "rows" };
                let _infallible = writeln!(text, "({} {noun})", self.rows);
                Ok(text.into())
            }
        }
    }

    /// What comes after the rows of an answer that failed.
    pub fn fail(&self, error: &QueryError) -> Ending {
        match &self.kind {
            Kind::Json => {
                let last = format!("],\"row_count\":{},\"error\":{}}}\n", self.rows, error.to_json());
                Ending { last: last.into(), broken: false }
            }
            Kind::Ndjson => Ending { last: format!("{}\n", error.to_json()).into(), broken: true },
            Kind::Table { .. } => Ending { last: format!("error: {error}\n").into(), broken: true },
            Kind::Csv | Kind::Arrow(_) => Ending { last: Bytes::new(), broken: true },
        }
    }
}

/// A cell has no place for lists and structs. Said at once: the writer says so when it meets the first row.
fn check_flat(schema: &Schema) -> Result<(), ArrowError> {
    match schema.fields().iter().find(|field| field.data_type().is_nested()) {
        None => Ok(()),
        Some(field) => Err(ArrowError::CsvError(format!("column `{}` is a {}", field.name(), field.data_type()))),
    }
}

fn json_start(schema: &Schema) -> Bytes {
    let column = |field: &arrow::datatypes::FieldRef| serde_json::json!({"name": field.name(), "type": field.data_type().to_string()});
    let columns: Vec<serde_json::Value> = schema.fields().iter().map(column).collect();
    format!("{{\"columns\":{},\"rows\":[", serde_json::Value::from(columns)).into()
}

fn json_rows(batch: &RecordBatch, after_rows: bool) -> Result<Bytes, ArrowError> {
    let mut bytes = Vec::new();
    write_rows(batch, &mut bytes, |bytes, row, encoders| {
        bytes.extend_from_slice(if row > 0 || after_rows { b",\n[" } else { b"\n[" });
        for (index, encoder) in encoders.iter_mut().enumerate() {
            if index > 0 {
                bytes.push(b',');
            }
            encoder.write(row, bytes);
        }
        bytes.push(b']');
    })?;
    Ok(bytes.into())
}

/// Rows as one object a line, nulls included.
pub(crate) fn ndjson_rows(batch: &RecordBatch) -> Result<Bytes, ArrowError> {
    let names: Vec<String> = batch
        .schema()
        .fields()
        .iter()
        .map(|field| serde_json::Value::from(field.name().as_str()).to_string())
        .collect();
    let mut bytes = Vec::new();
    write_rows(batch, &mut bytes, |bytes, row, encoders| {
        bytes.push(b'{');
        for (index, encoder) in encoders.iter_mut().enumerate() {
            if index > 0 {
                bytes.push(b',');
            }
            bytes.extend_from_slice(names[index].as_bytes());
            bytes.push(b':');
            encoder.write(row, bytes);
        }
        bytes.extend_from_slice(b"}\n");
    })?;
    Ok(bytes.into())
}

/// A column that writes its values as JSON.
struct ColumnEncoder<'a>(arrow::json::writer::NullableEncoder<'a>);

impl ColumnEncoder<'_> {
    fn write(&mut self, row: usize, bytes: &mut Vec<u8>) {
        if self.0.is_null(row) {
            bytes.extend_from_slice(b"null");
        } else {
            self.0.encode(row, bytes);
        }
    }
}

fn write_rows(
    batch: &RecordBatch,
    bytes: &mut Vec<u8>,
    mut write: impl FnMut(&mut Vec<u8>, usize, &mut [ColumnEncoder<'_>]),
) -> Result<(), ArrowError> {
    let options = EncoderOptions::default().with_explicit_nulls(true);
    let schema = batch.schema();
    let encoder = |(field, column)| make_encoder(field, column, &options).map(ColumnEncoder);
    let columns = batch.columns().iter().map(|column| column.as_ref() as &dyn Array);
    let mut encoders = schema.fields().iter().zip(columns).map(encoder).collect::<Result<Vec<_>, _>>()?;
    for row in 0..batch.num_rows() {
        write(bytes, row, &mut encoders);
    }
    Ok(())
}

fn header_widths(schema: &Schema) -> Vec<usize> {
    schema.fields().iter().map(|field| field.name().chars().count()).collect()
}

fn table_rows(schema: &Schema, batch: &RecordBatch, widths: &mut Option<Vec<usize>>) -> Result<Bytes, ArrowError> {
    let cells = cells_of(batch)?;
    let mut text = String::new();
    let widths = match widths {
        Some(widths) => widths,
        None => {
            let measured = widths.insert(measure(schema, &cells));
            text.push_str(&table_head(schema, measured));
            measured
        }
    };
    for row in 0..batch.num_rows() {
        let line: Vec<&str> = cells.iter().map(|column| column[row].as_str()).collect();
        push_line(&mut text, &line, widths);
    }
    Ok(text.into())
}

fn cells_of(batch: &RecordBatch) -> Result<Vec<Vec<String>>, ArrowError> {
    let options = FormatOptions::default().with_display_error(true);
    batch
        .columns()
        .iter()
        .map(|column| {
            let formatter = ArrayFormatter::try_new(column.as_ref(), &options)?;
            Ok((0..column.len()).map(|row| formatter.value(row).to_string()).collect())
        })
        .collect()
}

fn measure(schema: &Schema, cells: &[Vec<String>]) -> Vec<usize> {
    let longest = |column: &Vec<String>| column.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths = header_widths(schema);
    widths.into_iter().zip(cells).map(|(header, column)| header.max(longest(column).min(WIDEST_COLUMN))).collect()
}

fn table_head(schema: &Schema, widths: &[usize]) -> String {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let mut text = String::new();
    push_line(&mut text, &names, widths);
    let rules: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
    text.push_str(&rules.join("+"));
    text.push('\n');
    text
}

fn push_line(text: &mut String, cells: &[&str], widths: &[usize]) {
    let padded: Vec<String> =
        cells.iter().zip(widths).map(|(cell, width)| format!(" {cell:<width$} ", width = *width)).collect();
    text.push_str(padded.join("|").trim_end());
    text.push('\n');
}

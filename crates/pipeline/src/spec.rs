//! Definitions as types: what one statement of a pipeline says, after every check that needs no other statement.
//!
//! Invariant: a value of these types came out of the parser, so names are lower case and legal in topic names and
//! folders, options name columns that exist, and `Statement::sql` parses back to an equal statement.
//! Deliberately absent: anything about how a process runs, and anything that depends on other definitions
//! (whether an input exists, what a view's columns are): that is `change` and `graph`.

use std::fmt;
use std::time::Duration;

use arrow::datatypes::DataType;

use crate::lex::Origin;

/// One file of a pipeline folder, as the user wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceText {
    /// What problems call the file, for example `shop/orders.sql`.
    pub file: String,
    pub text: String,
}

/// One checked statement.
///
/// Two statements are equal when their canonical text is: comments, white space and the case of keywords do not count.
#[derive(Debug, Clone)]
pub struct Statement {
    pub name: String,
    pub spec: Spec,
    /// Canonical text of this one statement, without a semicolon. This is what the catalog keeps.
    pub sql: String,
    pub(crate) origin: Origin,
}

impl Statement {
    /// The file the statement was read from.
    pub fn file(&self) -> &str {
        self.origin.file()
    }

    /// Line of the defined name, counted from 1.
    pub fn line(&self) -> u64 {
        self.origin.name_span.start.line
    }
}

impl PartialEq for Statement {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.sql == other.sql
    }
}

impl Eq for Statement {}

/// What a statement defines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    Source(SourceSpec),
    View(ViewSpec),
    Sink(SinkSpec),
}

impl Spec {
    /// The word users know this kind of definition by.
    pub fn kind(&self) -> &'static str {
        match self {
            Spec::Source(_) => "source",
            Spec::View(_) => "view",
            Spec::Sink(_) => "sink",
        }
    }

    /// Whether the definition has rows of its own, so that it becomes a table and views can read it.
    pub fn has_rows(&self) -> bool {
        !matches!(self, Spec::Sink(_))
    }
}

/// `CREATE SOURCE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceSpec {
    pub name: String,
    pub columns: Vec<Column>,
    pub watermark: Option<Watermark>,
    /// The user's topic; `None` means the source has a landing topic of its own.
    pub topic: Option<String>,
    pub format: Format,
    pub options: SourceOptions,
}

/// A declared column. Types are wire types: strings are `Utf8`, timestamps count microseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub data_type: DataType,
    pub nullable: bool,
}

/// `WATERMARK FOR column AS column - INTERVAL delay`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watermark {
    pub column: String,
    pub delay: Duration,
}

/// How the bytes of a message are read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Json,
    Csv,
    Arrow,
}

impl Format {
    pub(crate) const NAMES: [&'static str; 3] = ["json", "csv", "arrow"];

    pub(crate) fn from_name(name: &str) -> Option<Format> {
        match name {
            "json" => Some(Format::Json),
            "csv" => Some(Format::Csv),
            "arrow" => Some(Format::Arrow),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Format::Json => "json",
            Format::Csv => "csv",
            Format::Arrow => "arrow",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What to do with fields of a message that the source does not declare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownColumns {
    #[default]
    Ignore,
    Reject,
}

/// `WITH (…)` of a source, less `topic` and `format`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceOptions {
    pub unknown_columns: UnknownColumns,
    /// Whether every CSV message starts with a line of column names.
    pub csv_header: bool,
    pub csv_delimiter: u8,
    /// Columns whose minimum and maximum the table keeps per file. Empty: the store's own choice.
    pub statistics: Vec<String>,
    /// Columns whose minimum and maximum travel in the envelope of every message.
    pub bounds: Vec<String>,
    pub partition_by: Vec<String>,
    /// Partitions of a topic that Tailwater creates for this source.
    pub partitions: Option<u32>,
}

impl Default for SourceOptions {
    fn default() -> Self {
        SourceOptions {
            unknown_columns: UnknownColumns::Ignore,
            csv_header: false,
            csv_delimiter: b',',
            statistics: Vec::new(),
            bounds: Vec::new(),
            partition_by: Vec::new(),
            partitions: None,
        }
    }
}

/// `CREATE MATERIALIZED VIEW`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewSpec {
    pub name: String,
    /// Canonical text of the query.
    pub query: String,
    pub options: ViewOptions,
}

/// `WITH (…)` of a view; the lists mean what they mean for a source.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ViewOptions {
    pub statistics: Vec<String>,
    pub partition_by: Vec<String>,
    pub bounds: Vec<String>,
}

/// `CREATE SINK`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkSpec {
    pub name: String,
    /// The view or source whose rows are published.
    pub from: String,
    pub topic: String,
    pub format: Format,
}

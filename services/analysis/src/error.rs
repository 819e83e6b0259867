//! Why a query has no (complete) answer, in the user's words: what, where in the SQL, and what to do about it.
//!
//! The invariant: every failure of DataFusion passes through [`QueryError::from_datafusion`], so that no backtrace,
//! internal name or "please file a bug report" reaches a client. Deliberately absent: HTTP statuses beyond a number,
//! and logging.

use std::error::Error as _;

use datafusion::{
    common::{DataFusionError, SchemaError},
    sql::sqlparser::parser::ParserError,
};

use pipeline::depth::TooDeep;

use crate::{
    catalog::Tables,
    memory::{MemoryScope, Refusal},
    nearest::nearest,
    snapshots::PinError,
};

/// What kind of failure it is; decides status, outcome label and whether trying again helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The SQL, a parameter or an option is wrong.
    Invalid,
    /// The statement would change something.
    ReadOnly,
    /// No such table.
    NotFound,
    /// The request or the answer is over a limit of its own.
    TooLarge,
    /// The deadline passed.
    Timeout,
    /// Too many are waiting already.
    TooMany,
    /// No room right now, or the store does not answer: try again.
    Unavailable,
    /// A defect or a damaged table.
    Internal,
}

impl ErrorKind {
    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::Invalid | Self::ReadOnly => 400,
            Self::NotFound => 404,
            Self::Timeout => 408,
            Self::TooLarge => 413,
            Self::TooMany => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
        }
    }

    /// The outcome label of metrics.
    pub(crate) fn outcome(self) -> &'static str {
        match self {
            Self::Invalid | Self::NotFound => "invalid",
            Self::ReadOnly => "read_only",
            Self::TooLarge => "over_limit",
            Self::Timeout => "timeout",
            Self::TooMany | Self::Unavailable => "unavailable",
            Self::Internal => "error",
        }
    }
}

/// A place in the SQL text, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line.
    pub line: u64,
    /// Column, in characters.
    pub column: u64,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct QueryError {
    /// What kind.
    pub kind: ErrorKind,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Where in the SQL.
    pub place: Option<Place>,
}

impl From<TooDeep> for QueryError {
    fn from(excess: TooDeep) -> Self {
        let place = excess.place.map(|span| Place { line: span.start.line, column: span.start.column });
        Self::new(ErrorKind::Invalid, excess.message).with_hint(excess.help).at(place)
    }
}

impl QueryError {
    /// An error without hint and place.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, place: None }
    }

    /// Adds what to do about it.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn at(mut self, place: Option<Place>) -> Self {
        self.place = place;
        self
    }

    /// The JSON form: `{error, hint?, line?, column?}`.
    pub fn to_json(&self) -> serde_json::Value {
        let mut object = serde_json::Map::new();
        object.insert("error".to_owned(), self.message.clone().into());
        if let Some(hint) = &self.hint {
            object.insert("hint".to_owned(), hint.clone().into());
        }
        if let Some(place) = self.place {
            object.insert("line".to_owned(), place.line.into());
            object.insert("column".to_owned(), place.column.into());
        }
        object.into()
    }

    /// A query that needs more memory than it may have.
    pub(crate) fn from_refusal(refusal: Refusal) -> Self {
        match refusal.scope {
            MemoryScope::Query => Self::new(ErrorKind::TooLarge, refusal.message).with_hint(
                "raise `analysis.query_memory`, or have the query keep less: filter earlier, group by fewer keys, \
                 order with a LIMIT",
            ),
            MemoryScope::Process => Self::new(ErrorKind::Unavailable, refusal.message)
                .with_hint("try again when fewer queries run, or raise `analysis.memory`"),
        }
    }

    /// A table that could not be pinned.
    pub(crate) fn from_pin(error: &PinError) -> Self {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        let kind = match error {
            PinError::Lake { .. } => ErrorKind::Unavailable,
            PinError::Layout { .. } => ErrorKind::Internal,
        };
        Self::new(kind, format!("{error}{cause}"))
    }

    /// Puts an error of DataFusion into the user's words.
    pub(crate) fn from_datafusion(error: &DataFusionError, refusal: Option<Refusal>, tables: &Tables) -> Self {
        let place = error
            .diagnostic()
            .and_then(|diagnostic| diagnostic.span)
            .map(|span| Place { line: span.start.line, column: span.start.column });
        let hints = error.diagnostic().into_iter().flat_map(|diagnostic| &diagnostic.helps);
        let hints: Vec<&str> = hints.map(|help| help.message.as_str()).collect();
        let mut found = Self::from_root(error.find_root(), refusal, tables);
        found.place = place.or(found.place);
        if found.hint.is_none() && !hints.is_empty() {
            found.hint = Some(hints.join("; "));
        }
        found
    }

    fn from_root(root: &DataFusionError, refusal: Option<Refusal>, tables: &Tables) -> Self {
        match root {
            DataFusionError::SQL(parser, _) => Self::from_parser(parser),
            DataFusionError::SchemaError(schema, _) => Self::from_schema(schema),
            DataFusionError::ResourcesExhausted(text) => match refusal {
                Some(refusal) => Self::from_refusal(refusal),
                None => Self::new(ErrorKind::TooLarge, sentence(text))
                    .with_hint("raise `analysis.query_memory`, or have the query keep less"),
            },
            DataFusionError::Plan(text) => Self::from_plan(text, tables),
            DataFusionError::NotImplemented(text) => {
                Self::new(ErrorKind::Invalid, format!("not supported: {}", sentence(text)))
            }
            DataFusionError::Execution(text) => Self::new(ErrorKind::Invalid, sentence(text)),
            DataFusionError::Configuration(text) => Self::new(ErrorKind::Invalid, sentence(text)),
            DataFusionError::ArrowError(arrow, _) => Self::new(ErrorKind::Invalid, sentence(&arrow.to_string())),
            DataFusionError::ObjectStore(store) => {
                Self::new(ErrorKind::Unavailable, format!("the table store did not answer: {store}"))
            }
            DataFusionError::External(other) => match other.downcast_ref::<PinError>() {
                Some(pin) => Self::from_pin(pin),
                None => Self::new(ErrorKind::Internal, sentence(&other.to_string())),
            },
            DataFusionError::Internal(text) => {
                Self::new(ErrorKind::Internal, format!("the query engine has a defect: {}", sentence(text)))
            }
            other => Self::new(ErrorKind::Internal, sentence(&other.strip_backtrace())),
        }
    }

    fn from_parser(error: &ParserError) -> Self {
        let text = match error {
            ParserError::TokenizerError(text) | ParserError::ParserError(text) => text.as_str(),
            ParserError::RecursionLimitExceeded => "the SQL nests too deeply",
        };
        let (message, place) = split_place(text);
        Self::new(ErrorKind::Invalid, sentence(message)).at(place)
    }

    fn from_schema(error: &SchemaError) -> Self {
        let SchemaError::FieldNotFound { field, valid_fields } = error else {
            return Self::new(ErrorKind::Invalid, sentence(&error.to_string()));
        };
        let message = format!("column `{}` is not there", field.flat_name());
        let names: Vec<&str> = valid_fields.iter().map(|column| column.name()).collect();
        let hint = match nearest(field.name(), names.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if names.is_empty() => "no column can be named here".to_owned(),
            None => format!("columns that are there: {}", names.join(", ")),
        };
        Self::new(ErrorKind::Invalid, message).with_hint(hint)
    }

    fn from_plan(text: &str, tables: &Tables) -> Self {
        let missing = text.strip_prefix("table '").and_then(|rest| rest.split_once("' not found"));
        match missing {
            Some((name, _)) => {
                let shown = name
                    .rsplit_once('.')
                    .map_or(name, |(schema, bare)| if schema.ends_with(tables.default_schema()) { bare } else { name });
                let shown = shown.strip_prefix("tailwater.").unwrap_or(shown);
                Self::new(ErrorKind::Invalid, format!("table `{shown}` is not there")).with_hint(tables.hint_for(shown))
            }
            None => Self::new(ErrorKind::Invalid, sentence(text)),
        }
    }
}

/// DataFusion's text as ours: no backtrace, no full stop at the end, lower case at the start.
fn sentence(text: &str) -> String {
    let text = text.split("\n\nbacktrace:").next().unwrap_or(text).trim().trim_end_matches('.');
    let mut characters = text.chars();
    match characters.next() {
        Some(first) if !characters.as_str().starts_with(char::is_uppercase) => {
            first.to_lowercase().chain(characters).collect()
        }
        _ => text.to_owned(),
    }
}

/// Takes ` at Line: 1, Column: 8` off a parser's message.
fn split_place(text: &str) -> (&str, Option<Place>) {
    let Some((message, place)) = text.rsplit_once(" at Line: ") else { return (text, None) };
    let mut numbers = place.split(|character: char| !character.is_ascii_digit()).filter(|part| !part.is_empty());
    let (line, column) = (numbers.next(), numbers.next());
    match (line.and_then(|line| line.parse().ok()), column.and_then(|column| column.parse().ok())) {
        (Some(line), Some(column)) => (message, Some(Place { line, column })),
        _ => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_taken_off_a_parsers_message() {
        let (message, place) = split_place("Expected: an expression, found: FROM at Line: 2, Column: 17");
        assert_eq!(message, "Expected: an expression, found: FROM");
        assert_eq!(place, Some(Place { line: 2, column: 17 }));
        assert_eq!(split_place("no place"), ("no place", None));
    }

    #[test]
    fn sentences_lose_backtraces_and_capitals_but_keep_acronyms() {
        assert_eq!(sentence("Divide by zero error.\n\nbacktrace: 1: x"), "divide by zero error");
        assert_eq!(sentence("DDL not supported"), "DDL not supported");
    }
}

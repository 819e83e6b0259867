//! `WITH (key = 'value', …)`.
//!
//! Invariant: every option that was given is either taken by name or reported; none is ignored.
//! Deliberately absent: defaults, which belong to the types in `spec`.

use datafusion::sql::sqlparser::tokenizer::{Span, Token};

use crate::lex::{Cursor, SourceFile, describe};
use crate::near::{did_you_mean_or_list, nearest};
use crate::problem::Problem;
use crate::spec::{Format, UnknownColumns};

const MAX_PARTITIONS: u32 = 10_000;

/// Options as given, in order.
#[derive(Default)]
pub(super) struct Given(Vec<GivenOption>);

struct GivenOption {
    key: String,
    key_span: Span,
    value: String,
    value_span: Span,
}

/// Reads `WITH (…)` if it is there. A fault inside one option does not hide the others.
pub(super) fn read(cursor: &mut Cursor<'_>, problems: &mut Vec<Problem>) -> Result<Given, Problem> {
    let mut given = Given::default();
    if !cursor.take_keyword("WITH") {
        return Ok(given);
    }
    cursor.expect(&Token::LParen)?;
    if cursor.take(&Token::RParen) {
        return Ok(given);
    }
    loop {
        match read_one(cursor) {
            Ok(option) => given.0.push(option),
            Err(problem) => {
                problems.push(problem);
                cursor.skip_list_item();
            }
        }
        if !cursor.take(&Token::Comma) {
            break;
        }
    }
    cursor.expect(&Token::RParen)?;
    Ok(given)
}

fn read_one(cursor: &mut Cursor<'_>) -> Result<GivenOption, Problem> {
    let key_span = cursor.span();
    let key = match cursor.peek().map(|token| &token.token) {
        Some(Token::Word(word)) => word.value.to_lowercase(),
        Some(Token::SingleQuotedString(text)) => text.to_lowercase(),
        _ => return Err(cursor.expected("the name of an option", &[])),
    };
    cursor.next();
    cursor.expect(&Token::Eq)?;
    let value_span = cursor.span();
    let value = read_value(cursor)?;
    Ok(GivenOption { key, key_span, value, value_span })
}

fn read_value(cursor: &mut Cursor<'_>) -> Result<String, Problem> {
    let value = match cursor.peek().map(|token| &token.token) {
        Some(Token::SingleQuotedString(text)) => text.clone(),
        Some(Token::Number(digits, _)) => digits.clone(),
        Some(Token::Word(word)) if ["true", "false"].contains(&word.value.as_str()) => word.value.clone(),
        Some(Token::Word(word)) => {
            let message = format!("expected a value in single quotes, found {}", describe(cursor.peek()));
            let help = format!("write '{}'", word.value);
            return Err(cursor.problem(cursor.span(), message).with_help(help));
        }
        _ => return Err(cursor.expected("a value in single quotes", &[])),
    };
    cursor.next();
    Ok(value)
}

/// Takes typed options out of what was given and collects what is wrong with them.
pub(super) struct Taker<'a> {
    source: &'a SourceFile,
    given: Vec<GivenOption>,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Taker<'a> {
    /// Reports options that are unknown or given twice; `owner` is for example `a source`.
    pub(super) fn new(
        source: &'a SourceFile,
        given: Given,
        owner: &str,
        known: &[&str],
        problems: &'a mut Vec<Problem>,
    ) -> Taker<'a> {
        let mut kept: Vec<GivenOption> = Vec::new();
        for option in given.0 {
            if !known.contains(&option.key.as_str()) {
                let message = format!("unknown option `{}` of {owner}", option.key);
                let help = did_you_mean_or_list(&option.key, known);
                problems.push(source.problem(option.key_span, message).with_help(help));
            } else if kept.iter().any(|other| other.key == option.key) {
                problems.push(source.problem(option.key_span, format!("option `{}` is there twice", option.key)));
            } else {
                kept.push(option);
            }
        }
        Taker { source, given: kept, problems }
    }

    /// Places of the values, for faults found later.
    pub(super) fn spans(&self) -> Vec<(String, Span)> {
        self.given.iter().map(|option| (option.key.clone(), option.value_span)).collect()
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.given.iter().any(|option| option.key == key)
    }

    fn report(&mut self, span: Span, message: String, help: Option<String>) {
        self.problems.push(self.source.problem(span, message).with_optional_help(help));
    }

    fn value(&self, key: &str) -> Option<(String, Span)> {
        self.given.iter().find(|option| option.key == key).map(|option| (option.value.clone(), option.value_span))
    }

    pub(super) fn topic(&mut self) -> Option<String> {
        let (topic, span) = self.value("topic")?;
        if let Some(fault) = crate::names::fault_of_topic(&topic) {
            self.report(span, format!("topic `{topic}` {fault}"), None);
        }
        Some(topic)
    }

    pub(super) fn format(&mut self) -> Option<Format> {
        let chosen = self.one_of("format", &Format::NAMES)?;
        Format::from_name(chosen)
    }

    pub(super) fn unknown_columns(&mut self) -> Option<UnknownColumns> {
        match self.one_of("unknown_columns", &["ignore", "reject"])? {
            "reject" => Some(UnknownColumns::Reject),
            _ => Some(UnknownColumns::Ignore),
        }
    }

    pub(super) fn boolean(&mut self, key: &str) -> Option<bool> {
        self.one_of(key, &["true", "false"]).map(|chosen| chosen == "true")
    }

    fn one_of<'k>(&mut self, key: &str, known: &[&'k str]) -> Option<&'k str> {
        let (value, span) = self.value(key)?;
        let lower = value.to_lowercase();
        let chosen = known.iter().find(|candidate| **candidate == lower);
        if chosen.is_none() {
            let near = nearest(&value, known.iter().copied());
            let help = near.map(|near| format!("did you mean '{near}'?"));
            let help = help.unwrap_or_else(|| format!("known are: {}", known.join(", ")));
            self.report(span, format!("unknown value '{value}' of option `{key}`"), Some(help));
        }
        chosen.copied()
    }

    pub(super) fn delimiter(&mut self) -> Option<u8> {
        let (value, span) = self.value("delimiter")?;
        let delimiter = match value.as_str() {
            "\\t" | "tab" => Some(b'\t'),
            other => single_byte(other),
        };
        if delimiter.is_none() {
            let help = "write one ASCII character that is no quote and no line end, or '\\t' for a tab";
            self.report(span, "the delimiter is not one character".to_owned(), Some(help.to_owned()));
        }
        delimiter
    }

    pub(super) fn partitions(&mut self) -> Option<u32> {
        let (value, span) = self.value("partitions")?;
        let partitions = value.parse().ok().filter(|count| (1..=MAX_PARTITIONS).contains(count));
        if partitions.is_none() {
            let message = format!("`partitions` is '{value}'; expected a number from 1 to {MAX_PARTITIONS}");
            self.report(span, message, None);
        }
        partitions
    }

    /// A list of column names; whether they exist is checked where the columns are known.
    pub(super) fn columns(&mut self, key: &str) -> Vec<String> {
        let Some((value, span)) = self.value(key) else { return Vec::new() };
        let names: Vec<String> = value.split(',').map(|name| name.trim().to_owned()).collect();
        if names.iter().any(String::is_empty) {
            let help = Some("write column names with commas between them".to_owned());
            self.report(span, format!("option `{key}` has an empty name in it"), help);
            return Vec::new();
        }
        names
    }

    /// Reports an option that makes sense only with another setting.
    pub(super) fn refuse_given(&mut self, key: &str, why: &str) {
        if let Some((_, span)) = self.value(key) {
            self.report(span, format!("option `{key}` {why}"), None);
        }
    }
}

fn single_byte(text: &str) -> Option<u8> {
    match text.as_bytes() {
        [byte] if byte.is_ascii() && !byte.is_ascii_control() && !b"\"'".contains(byte) => Some(*byte),
        _ => None,
    }
}

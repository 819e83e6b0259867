//! The query of a view: sqlparser's tree, its faults as problems, and its canonical text.
//!
//! Invariant: a query that passes is shallow enough to print, visit, plan and drop on any thread, and its canonical
//! text parses back to an equal tree.
//! Deliberately absent: what the query may say (`inspect`), and how deep it may be (`depth`).

use datafusion::sql::sqlparser::ast::Query;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan};

use crate::depth::{self, TooDeep};
use crate::inspect::{ROW_BY_ROW, TIME_WINDOWS};
use crate::lex::{Cursor, QueryText, SourceFile, describe, lower_first, split_statements};
use crate::near::did_you_mean;
use crate::problem::Problem;

/// Words that a misspelt keyword may have meant.
const KEYWORDS: &[&str] =
    &["SELECT", "FROM", "WHERE", "UNION", "WHEN", "THEN", "ELSE", "BETWEEN", "LIKE", "CAST", "WITH"];

/// Reads the rest of the statement as one query.
pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<QueryText, Problem> {
    let end = cursor.problem(cursor.span(), "expected a query, found the end of the statement");
    let tokens = cursor.take_rest();
    if tokens.is_empty() {
        return Err(end);
    }
    depth::check_tokens(tokens).map_err(|excess| too_deep(cursor.source, tokens, excess))?;
    let tree = parse_query(tokens).map_err(|error| problem_of(cursor.source, tokens, &error))?;
    depth::check_tree(&tree).map_err(|excess| too_deep(cursor.source, tokens, excess))?;
    Ok(QueryText { tree, tokens: tokens.to_vec() })
}

fn parse_query(tokens: &[TokenWithSpan]) -> Result<Box<Query>, ParserError> {
    let dialect = GenericDialect {};
    let mut parser = Parser::new(&dialect).with_tokens_with_locations(tokens.to_vec());
    let query = parser.parse_query()?;
    match parser.peek_token().token {
        Token::EOF => Ok(query),
        _ => parser.expected("the end of the statement", parser.peek_token()),
    }
}

fn too_deep(source: &SourceFile, tokens: &[TokenWithSpan], excess: TooDeep) -> Problem {
    let first = || tokens.first().map_or_else(Span::empty, |token| token.span);
    source.problem(excess.place.unwrap_or_else(first), excess.message).with_help(excess.help)
}

/// Puts a fault of the library's parser at its place, and looks for a misspelt keyword there or just before.
fn problem_of(source: &SourceFile, tokens: &[TokenWithSpan], error: &ParserError) -> Problem {
    let text = match error {
        ParserError::ParserError(text) | ParserError::TokenizerError(text) => text.as_str(),
        ParserError::RecursionLimitExceeded => {
            let span = tokens.first().map_or_else(Span::empty, |token| token.span);
            return source.problem(span, "the query is nested too deeply");
        }
    };
    let (message, place) = split_place(text);
    let at = place.and_then(|place| tokens.iter().position(|token| token.span.start == place));
    let found = at.and_then(|at| tokens.get(at));
    let span = match (found, tokens.last()) {
        (Some(token), _) => token.span,
        (None, Some(last)) => Span::new(last.span.end, last.span.end),
        (None, None) => Span::empty(),
    };
    if let Some(problem) = time_window_before(source, tokens, span) {
        return problem;
    }
    let message = match message.split_once(", found: ") {
        Some((expected, _)) => {
            let expected = quote_sign(expected.trim_start_matches("Expected: "));
            format!("expected {expected}, found {}", describe(found))
        }
        None => lower_first(message.trim_start_matches("sql parser error: ")),
    };
    let before = at.and_then(|at| at.checked_sub(1)).and_then(|at| tokens.get(at));
    let help = misspelt_keyword(found).or_else(|| misspelt_keyword(before));
    source.problem(span, message).with_optional_help(help)
}

/// Windows of time have a syntax of their own (`TABLE orders`, `DESCRIPTOR(…)`), which the parser trips over.
fn time_window_before(source: &SourceFile, tokens: &[TokenWithSpan], place: Span) -> Option<Problem> {
    let call = tokens.windows(2).find_map(|pair| match (&pair[0].token, &pair[1].token) {
        (Token::Word(word), Token::LParen) if TIME_WINDOWS.contains(&word.value.as_str()) => Some((word, pair[0].span)),
        _ => None,
    });
    let (word, span) = call.filter(|(_, span)| span.start <= place.start)?;
    let message = format!("not supported yet: windows of time ({})", word.value.to_uppercase());
    Some(source.problem(span, message).with_help(ROW_BY_ROW))
}

/// Signs get quotes in messages; descriptions such as `an expression` do not.
fn quote_sign(expected: &str) -> String {
    match expected.chars().any(char::is_alphanumeric) {
        true => expected.to_owned(),
        false => format!("`{expected}`"),
    }
}

fn misspelt_keyword(token: Option<&TokenWithSpan>) -> Option<String> {
    match token.map(|token| &token.token) {
        Some(Token::Word(word)) if word.quote_style.is_none() => {
            let is_keyword = KEYWORDS.iter().any(|keyword| keyword.eq_ignore_ascii_case(&word.value));
            (!is_keyword).then(|| did_you_mean(&word.value, KEYWORDS.iter().copied())).flatten()
        }
        _ => None,
    }
}

/// The library appends ` at Line: 3, Column: 7` to its messages.
fn split_place(text: &str) -> (&str, Option<Location>) {
    let Some((message, place)) = text.rsplit_once(" at Line: ") else { return (text, None) };
    let location = place
        .split_once(", Column: ")
        .and_then(|(line, column)| Some(Location::new(line.parse().ok()?, column.parse().ok()?)));
    match location {
        Some(location) => (message, Some(location)),
        None => (text, None),
    }
}

/// The text that the catalog keeps.
///
/// The library's printer loses what some literals said (a string with `''` in it, for one), so its text is taken
/// only if it reads back as the same tree; otherwise the tokens are kept as they were written.
pub(super) fn canonical(source: &SourceFile, query: &QueryText) -> Result<String, Problem> {
    let printed = query.tree.to_string();
    if reads_back(&printed, &query.tree) {
        return Ok(printed);
    }
    let raw = source.raw_tokens(&query.tokens);
    let spelt = raw.iter().zip(&query.tokens).map(|(raw, token)| spelling(raw, &token.token));
    let joined = spelt.collect::<Vec<_>>().join(" ");
    if reads_back(&joined, &query.tree) {
        return Ok(joined);
    }
    Err(source.problem(query.start(), "the query cannot be written down so that it reads back the same"))
}

fn spelling(raw: &str, token: &Token) -> String {
    match token {
        Token::Word(word) if word.quote_style.is_none() => word.value.clone(),
        _ => raw.to_owned(),
    }
}

fn reads_back(text: &str, tree: &Query) -> bool {
    let source = SourceFile::new("", text);
    let mut problems = Vec::new();
    let statements = split_statements(&source, &mut problems);
    match statements.as_slice() {
        [tokens] if problems.is_empty() => parse_query(tokens).is_ok_and(|again| *again == *tree),
        _ => false,
    }
}

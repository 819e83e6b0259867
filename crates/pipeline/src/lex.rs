//! From text to tokens with places, and the cursor our own productions read them with.
//!
//! Invariant: tokens are sqlparser's, unquoted words are folded to lower case (so every later comparison and print
//! sees one spelling), comments and white space are gone, and every place refers to the file as the user wrote it.
//! Deliberately absent: any knowledge of statements beyond the semicolon.

use std::fmt;
use std::sync::Arc;

use datafusion::sql::sqlparser::ast::Query;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan, Tokenizer, Word};

use crate::names::is_same_name;
use crate::near::did_you_mean;
use crate::problem::Problem;

/// Bytes one file may have. Definitions travel in catalog records, which must fit one message.
const MAX_FILE_BYTES: usize = 512 * 1024;

/// A file being read; cheap to clone.
#[derive(Clone)]
pub(crate) struct SourceFile {
    pub(crate) file: Arc<str>,
    pub(crate) text: Arc<str>,
    /// Whether it was accepted before and comes out of the catalog. Checks that came later are for what comes new:
    /// a definition whose rows are there is not taken from whoever reads them.
    pub(crate) is_stored: bool,
}

impl SourceFile {
    pub(crate) fn new(file: &str, text: &str) -> SourceFile {
        SourceFile { file: file.into(), text: text.into(), is_stored: false }
    }

    pub(crate) fn stored(file: &str, text: &str) -> SourceFile {
        SourceFile { is_stored: true, ..SourceFile::new(file, text) }
    }

    /// Whether tables take two names, of columns or of fields of a struct, for one. Only ASCII was compared once.
    pub(crate) fn is_same_name(&self, one: &str, other: &str) -> bool {
        one.eq_ignore_ascii_case(other) || (!self.is_stored && is_same_name(one, other))
    }

    pub(crate) fn problem(&self, span: Span, message: impl Into<String>) -> Problem {
        Problem::at(&self.file, &self.text, span, message)
    }

    /// The tokens exactly as written, in one pass over the text; `tokens` must be in order.
    pub(crate) fn raw_tokens(&self, tokens: &[TokenWithSpan]) -> Vec<&str> {
        let mut places = PlaceWalk::new(&self.text);
        tokens
            .iter()
            .map(|token| {
                let start = places.byte_of(token.span.start);
                let end = places.byte_of(token.span.end);
                &self.text[start..end]
            })
            .collect()
    }
}

/// Turns ascending places into byte offsets.
struct PlaceWalk<'a> {
    characters: std::str::CharIndices<'a>,
    here: Location,
    byte: usize,
}

impl<'a> PlaceWalk<'a> {
    fn new(text: &'a str) -> PlaceWalk<'a> {
        PlaceWalk { characters: text.char_indices(), here: Location::new(1, 1), byte: 0 }
    }

    fn byte_of(&mut self, place: Location) -> usize {
        while self.here < place {
            let Some((byte, character)) = self.characters.next() else { break };
            self.byte = byte + character.len_utf8();
            self.here = match character {
                '\n' => Location::new(self.here.line + 1, 1),
                _ => Location::new(self.here.line, self.here.column + 1),
            };
        }
        self.byte
    }
}

impl fmt::Debug for SourceFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)
    }
}

/// Where a statement came from, kept so that faults found later can still show the place.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) source: SourceFile,
    pub(crate) name_span: Span,
    /// Name after `FROM` of a sink.
    pub(crate) from_span: Span,
    /// Value of each option that was given.
    pub(crate) option_spans: Vec<(String, Span)>,
    pub(crate) query: Option<Arc<QueryText>>,
}

impl Origin {
    pub(crate) fn file(&self) -> &str {
        &self.source.file
    }

    pub(crate) fn problem(&self, span: Span, message: impl Into<String>) -> Problem {
        self.source.problem(span, message)
    }

    /// Place of an option's value, or of the name where the option was not written.
    pub(crate) fn option_span(&self, option: &str) -> Span {
        self.option_spans.iter().find(|(name, _)| name == option).map_or(self.name_span, |(_, span)| *span)
    }
}

/// A parsed query with the tokens it was parsed from, since the tree alone does not know where its keywords are.
pub(crate) struct QueryText {
    pub(crate) tree: Box<Query>,
    pub(crate) tokens: Vec<TokenWithSpan>,
}

impl QueryText {
    /// Place of the query's first token.
    pub(crate) fn start(&self) -> Span {
        self.tokens.first().map_or_else(Span::empty, |token| token.span)
    }

    /// Place of the nearest `keyword` before `place`; of the first one anywhere if `place` is unknown.
    pub(crate) fn keyword_before(&self, keywords: &[&str], place: Span) -> Span {
        let named = |token: &&TokenWithSpan| is_one_of(&token.token, keywords);
        let found = if place == Span::empty() {
            self.tokens.iter().find(named)
        } else {
            self.tokens.iter().rev().filter(|token| token.span.start < place.start).find(named)
        };
        found.map_or_else(|| self.or_start(place), |token| token.span)
    }

    /// Place of the nearest `keyword` after `place`.
    pub(crate) fn keyword_after(&self, keywords: &[&str], place: Span) -> Span {
        let found = self
            .tokens
            .iter()
            .filter(|token| token.span.start >= place.end)
            .find(|token| is_one_of(&token.token, keywords));
        found.map_or_else(|| self.or_start(place), |token| token.span)
    }

    /// `place`, or the start of the query where the tree does not know the place.
    pub(crate) fn or_start(&self, place: Span) -> Span {
        if place == Span::empty() { self.start() } else { place }
    }
}

impl fmt::Debug for QueryText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.tree)
    }
}

fn is_one_of(token: &Token, keywords: &[&str]) -> bool {
    match token {
        Token::Word(word) if word.quote_style.is_none() => {
            keywords.iter().any(|keyword| word.value.eq_ignore_ascii_case(keyword))
        }
        _ => false,
    }
}

/// Splits a file into the tokens of its statements. Statements before a fault of the tokenizer are still returned.
pub(crate) fn split_statements(source: &SourceFile, problems: &mut Vec<Problem>) -> Vec<Vec<TokenWithSpan>> {
    if source.text.len() > MAX_FILE_BYTES {
        let message = format!("the file has {} bytes, more than {MAX_FILE_BYTES}", source.text.len());
        problems.push(Problem::without_place(&source.file, message));
        return Vec::new();
    }
    let mut tokens = Vec::new();
    let dialect = GenericDialect {};
    let outcome = Tokenizer::new(&dialect, &source.text).tokenize_with_location_into_buf(&mut tokens);
    let mut statements = group_by_semicolon(tokens);
    if let Err(error) = outcome {
        // The last statement is cut off, so anything said about it would be noise.
        statements.pop();
        let span = Span::new(error.location, error.location);
        problems.push(source.problem(span, lower_first(&error.message)));
    }
    statements.retain(|statement| !statement.is_empty());
    statements
}

fn group_by_semicolon(tokens: Vec<TokenWithSpan>) -> Vec<Vec<TokenWithSpan>> {
    let mut statements = vec![Vec::new()];
    for mut token in tokens {
        match &mut token.token {
            Token::Whitespace(_) | Token::EOF => continue,
            Token::SemiColon => {
                statements.push(Vec::new());
                continue;
            }
            Token::Word(word) if word.quote_style.is_none() => word.value.make_ascii_lowercase(),
            _ => {}
        }
        if let Some(current) = statements.last_mut() {
            current.push(token);
        }
    }
    statements
}

/// Makes the first letter small, unless the first word is all capitals and so a name.
pub(crate) fn lower_first(message: &str) -> String {
    let mut characters = message.chars();
    let first = characters.next();
    let is_name = characters.clone().next().is_some_and(char::is_uppercase);
    match first {
        Some(first) if !is_name => first.to_lowercase().chain(characters).collect(),
        _ => message.to_owned(),
    }
}

/// How a token is called in a message.
pub(crate) fn describe(token: Option<&TokenWithSpan>) -> String {
    match token.map(|token| &token.token) {
        None => "the end of the statement".to_owned(),
        Some(Token::SingleQuotedString(_)) => "a string".to_owned(),
        Some(token) => format!("`{token}`"),
    }
}

/// Reads the tokens of one statement from left to right.
pub(crate) struct Cursor<'a> {
    pub(crate) source: &'a SourceFile,
    tokens: &'a [TokenWithSpan],
    at: usize,
    /// Set after the first half of a `>>` that closes two types was taken.
    half_taken: bool,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(source: &'a SourceFile, tokens: &'a [TokenWithSpan]) -> Cursor<'a> {
        Cursor { source, tokens, at: 0, half_taken: false }
    }

    pub(crate) fn peek(&self) -> Option<&'a TokenWithSpan> {
        self.tokens.get(self.at)
    }

    pub(crate) fn peek_second(&self) -> Option<&'a TokenWithSpan> {
        self.tokens.get(self.at + 1)
    }

    pub(crate) fn next(&mut self) -> Option<&'a TokenWithSpan> {
        let token = self.tokens.get(self.at);
        if token.is_some() {
            self.at += 1;
        }
        token
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.at >= self.tokens.len()
    }

    /// The tokens not read yet; the cursor moves to the end.
    pub(crate) fn take_rest(&mut self) -> &'a [TokenWithSpan] {
        let rest = &self.tokens[self.at..];
        self.at = self.tokens.len();
        rest
    }

    /// Place of the next token, or just behind the last one.
    pub(crate) fn span(&self) -> Span {
        match (self.peek(), self.tokens.last()) {
            (Some(token), _) => token.span,
            (None, Some(last)) => Span::new(last.span.end, last.span.end),
            (None, None) => Span::empty(),
        }
    }

    /// Place of the token read last.
    pub(crate) fn previous_span(&self) -> Span {
        self.at.checked_sub(1).and_then(|at| self.tokens.get(at)).map_or_else(|| self.span(), |token| token.span)
    }

    pub(crate) fn problem(&self, span: Span, message: impl Into<String>) -> Problem {
        self.source.problem(span, message)
    }

    /// `expected X, found Y` at the next token, with the near match when the token is a misspelling of a candidate.
    pub(crate) fn expected(&self, what: &str, candidates: &[&str]) -> Problem {
        let found = self.peek();
        let message = format!("expected {what}, found {}", describe(found));
        let help = match found.map(|token| &token.token) {
            Some(Token::Word(word)) => did_you_mean(&word.value, candidates.iter().copied()),
            _ => None,
        };
        self.problem(self.span(), message).with_optional_help(help)
    }

    pub(crate) fn peek_word(&self) -> Option<&'a Word> {
        match self.peek().map(|token| &token.token) {
            Some(Token::Word(word)) => Some(word),
            _ => None,
        }
    }

    pub(crate) fn peek_is_keyword(&self, keyword: &str) -> bool {
        self.peek().is_some_and(|token| is_one_of(&token.token, &[keyword]))
    }

    pub(crate) fn second_is_keyword(&self, keyword: &str) -> bool {
        self.peek_second().is_some_and(|token| is_one_of(&token.token, &[keyword]))
    }

    pub(crate) fn take_keyword(&mut self, keyword: &str) -> bool {
        let taken = self.peek_is_keyword(keyword);
        if taken {
            self.at += 1;
        }
        taken
    }

    pub(crate) fn expect_keyword(&mut self, keyword: &str) -> Result<(), Problem> {
        if self.take_keyword(keyword) {
            return Ok(());
        }
        Err(self.expected(&format!("`{keyword}`"), &[keyword]))
    }

    pub(crate) fn peek_is(&self, token: &Token) -> bool {
        self.peek().is_some_and(|found| found.token == *token)
    }

    pub(crate) fn take(&mut self, token: &Token) -> bool {
        let taken = self.peek_is(token);
        if taken {
            self.at += 1;
        }
        taken
    }

    pub(crate) fn expect(&mut self, token: &Token) -> Result<(), Problem> {
        if self.take(token) {
            return Ok(());
        }
        Err(self.expected(&format!("`{token}`"), &[]))
    }

    /// A `>`, also when the tokenizer saw it as half of `>>`.
    pub(crate) fn expect_closing_angle(&mut self) -> Result<(), Problem> {
        if self.peek_is(&Token::ShiftRight) {
            if self.half_taken {
                self.at += 1;
            }
            self.half_taken = !self.half_taken;
            return Ok(());
        }
        self.expect(&Token::Gt)
    }

    /// Moves to the next comma or closing parenthesis of the list the cursor is in, to go on after a fault.
    pub(crate) fn skip_list_item(&mut self) {
        self.half_taken = false;
        let mut depth = 0_usize;
        while let Some(token) = self.peek() {
            match token.token {
                Token::Comma if depth == 0 => return,
                Token::RParen if depth == 0 => return,
                Token::LParen => depth += 1,
                Token::RParen => depth -= 1,
                _ => {}
            }
            self.at += 1;
        }
    }
}

//! What is wrong with what the user wrote, and where.
//!
//! Invariant: a problem names a file, a line and a column (counted from 1, in characters), says what is wrong in
//! one sentence, and shows the line with a caret under the place. A place that is not known is 0:0 and shows no line.
//! Deliberately absent: severity. Everything here stops an apply; there are no warnings to get used to.

use std::fmt;

use datafusion::sql::sqlparser::tokenizer::Span;
use delivery::ErrorClass;

/// Characters of a source line to show; a longer line is cut around the caret.
const SHOWN_CHARACTERS: usize = 120;

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub file: String,
    pub line: u64,
    pub column: u64,
    pub message: String,
    pub help: Option<String>,
    /// Boxed to keep results small: problems travel as errors all through the parser.
    excerpt: Option<Box<Excerpt>>,
}

/// The part of the source line to show, ready to print.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Excerpt {
    text: String,
    caret_at: usize,
    caret_width: usize,
}

impl Problem {
    /// A fault at a place in `text`.
    pub(crate) fn at(file: &str, text: &str, span: Span, message: impl Into<String>) -> Problem {
        Problem {
            file: file.to_owned(),
            line: span.start.line,
            column: span.start.column,
            message: message.into(),
            help: None,
            excerpt: excerpt(text, span).map(Box::new),
        }
    }

    /// A fault that has no place in a file, such as a pipeline name that is not legal.
    pub(crate) fn without_place(file: &str, message: impl Into<String>) -> Problem {
        Problem { file: file.to_owned(), line: 0, column: 0, message: message.into(), help: None, excerpt: None }
    }

    pub(crate) fn with_help(mut self, help: impl Into<String>) -> Problem {
        self.help = Some(help.into());
        self
    }

    pub(crate) fn with_optional_help(mut self, help: Option<String>) -> Problem {
        self.help = help.or(self.help);
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.line.to_string();
        let gutter = " ".repeat(number.len());
        write!(f, "error: {}", self.message)?;
        if self.line == 0 {
            write!(f, "\n {gutter}--> {}", self.file)?;
        } else {
            write!(f, "\n {gutter}--> {}:{}:{}", self.file, self.line, self.column)?;
        }
        if let Some(excerpt) = &self.excerpt {
            let indent = " ".repeat(excerpt.caret_at);
            let caret = "^".repeat(excerpt.caret_width);
            write!(f, "\n {gutter} |")?;
            write!(f, "\n {number} | {}", excerpt.text)?;
            write!(f, "\n {gutter} | {indent}{caret}")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n {gutter} = help: {help}")?;
        }
        Ok(())
    }
}

/// Every fault found, in the order of the files. Never empty when it is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Sorts by place and drops repeats; `Ok` when there is nothing to say.
    pub(crate) fn check(mut problems: Vec<Problem>) -> Result<(), Problems> {
        if problems.is_empty() {
            return Ok(());
        }
        problems.sort_by(|a, b| (&a.file, a.line, a.column, &a.message).cmp(&(&b.file, b.line, b.column, &b.message)));
        problems.dedup();
        Err(Problems(problems))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Always `Stop`: only the author can help.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Stop
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl IntoIterator for Problems {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

fn excerpt(text: &str, span: Span) -> Option<Excerpt> {
    let line_index = usize::try_from(span.start.line).ok()?.checked_sub(1)?;
    let column = usize::try_from(span.start.column).ok()?.checked_sub(1)?;
    // The tokenizer counts lines by `\n` alone, so this must too.
    let line = text.split('\n').nth(line_index)?.trim_end_matches('\r');
    let characters: Vec<char> = line.chars().map(printable).collect();
    let column = column.min(characters.len());
    let first = first_shown(column, characters.len());
    let end = characters.len().min(first + SHOWN_CHARACTERS);
    let caret_at = column - first;
    Some(Excerpt { text: cut(&characters, first, end), caret_at, caret_width: caret_width(span, column, end - column) })
}

/// The shown part of a line, with `…` where something is missing.
fn cut(line: &[char], first: usize, end: usize) -> String {
    let mut shown = line[first..end].to_vec();
    if first > 0
        && let Some(left) = shown.first_mut()
    {
        *left = '…';
    }
    if end < line.len()
        && let Some(right) = shown.last_mut()
    {
        *right = '…';
    }
    shown.into_iter().collect::<String>().trim_end().to_owned()
}

/// Tabs become one space so that the caret stays under its character whatever the terminal's tab width.
fn printable(character: char) -> char {
    if character.is_control() { ' ' } else { character }
}

fn first_shown(column: usize, length: usize) -> usize {
    if length <= SHOWN_CHARACTERS {
        return 0;
    }
    column.saturating_sub(SHOWN_CHARACTERS / 2).min(length - SHOWN_CHARACTERS / 2)
}

fn caret_width(span: Span, column: usize, room: usize) -> usize {
    let wanted = if span.end.line == span.start.line {
        usize::try_from(span.end.column).unwrap_or(0).saturating_sub(column + 1)
    } else {
        room
    };
    wanted.min(room).max(1)
}

#[cfg(test)]
mod tests;

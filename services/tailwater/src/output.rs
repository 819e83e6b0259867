//! What goes to standard output and standard error. Data goes to the one, everything else to the other.
//!
//! The invariant: nothing here panics where nobody reads, as `println!` does. Data that cannot be written is a failure,
//! a note that cannot be is none: work that was begun is brought to its end.

use std::{
    fmt::Display,
    io::{ErrorKind, IsTerminal as _, Write as _},
};

use anyhow::Context as _;
use serde::Serialize;

use crate::arguments::Format;

/// Whether somebody goes on reading standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    There,
    /// It has had enough, as `| head` has.
    Gone,
}

/// Prints one line of data.
pub(crate) fn line(text: impl Display) -> anyhow::Result<()> {
    raw(format!("{text}\n").as_bytes()).map(|_| ())
}

/// Writes data as it is. A reader that went away is no failure.
pub(crate) fn raw(bytes: &[u8]) -> anyhow::Result<Reader> {
    let mut out = std::io::stdout().lock();
    reader_after(out.write_all(bytes).and_then(|()| out.flush()))
}

/// Only a broken pipe says that nobody wants more; after anything else, a full disk for one, data is missing.
fn reader_after(written: std::io::Result<()>) -> anyhow::Result<Reader> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        written => written.map(|()| Reader::There).context("standard output"),
    }
}

/// Tells the person at the terminal something that is not data.
pub(crate) fn note(text: impl Display) {
    let _unread = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints an error once, with its causes.
pub(crate) fn error(error: &anyhow::Error) {
    let styled = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let label = if styled { "\u{1b}[1;31merror\u{1b}[0m" } else { "error" };
    note(format!("{label}: {}", runtime::exit::report(error.as_ref())));
}

/// A listing: the same rows for people and for programs.
#[derive(Debug)]
pub(crate) struct Listing<T> {
    pub(crate) columns: &'static [&'static str],
    pub(crate) rows: Vec<T>,
}

impl<T: Serialize> Listing<T> {
    /// Prints the rows. `cells` makes the text of one row, in the order of `columns`.
    pub(crate) fn print(&self, format: Format, cells: impl Fn(&T) -> Vec<String>) -> anyhow::Result<()> {
        match format {
            Format::Table => line(self.table(cells)),
            Format::Json => line(serde_json::to_string_pretty(&self.rows)?),
            Format::Ndjson => self.rows.iter().try_for_each(|row| line(serde_json::to_string(row)?)),
            Format::Csv => {
                line(self.columns.join(","))?;
                self.rows.iter().try_for_each(|row| line(cells(row).join(",")))
            }
        }
    }

    /// Columns as wide as their widest cell; numbers to the right.
    pub(crate) fn table(&self, cells: impl Fn(&T) -> Vec<String>) -> String {
        let rows: Vec<Vec<String>> = self.rows.iter().map(cells).collect();
        let width = |index: usize| {
            let widest = rows.iter().map(|row| row[index].chars().count()).max().unwrap_or(0);
            widest.max(self.columns[index].len())
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let header: Vec<String> = self.columns.iter().map(|&name| name.to_owned()).collect();
        let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
        let numeric = |index: usize| rows.iter().all(|row| is_number(&row[index]));
        let right: Vec<bool> = (0..self.columns.len()).map(numeric).collect();
        let lines = [&header, &rule].into_iter().chain(&rows).map(|row| align(row, &widths, &right));
        lines.collect::<Vec<_>>().join("\n")
    }
}

fn is_number(cell: &str) -> bool {
    cell == "-" || cell.chars().next().is_some_and(|first| first.is_ascii_digit())
}

fn align(row: &[String], widths: &[usize], right: &[bool]) -> String {
    let cells = row
        .iter()
        .zip(widths)
        .zip(right)
        .map(|((cell, &width), &right)| if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") });
    cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reader_that_went_away_is_no_failure() {
        let after = |kind: ErrorKind| reader_after(Err(kind.into())).map_err(|error| error.to_string());
        assert_eq!(after(ErrorKind::BrokenPipe), Ok(Reader::Gone));
        assert_eq!(after(ErrorKind::StorageFull), Err("standard output".to_owned()));
        assert_eq!(reader_after(Ok(())).ok(), Some(Reader::There));
    }

    #[test]
    fn a_table_aligns_numbers_to_the_right() {
        let listing = Listing { columns: &["name", "rows"], rows: vec![("orders", 330), ("x", 7)] };
        let text = listing.table(|(name, rows)| vec![(*name).to_owned(), rows.to_string()]);
        assert_eq!(text, "name    rows\n------  ----\norders   330\nx          7");
    }
}

//! `tailwater sql`: one statement, a file, standard input, or a prompt with history and completion.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use reqwest::Method;
use runtime::{config::Config, exit::Code};
use rustyline::{
    Completer, Editor, Helper, Highlighter, Hinter, Validator, completion::Pair, error::ReadlineError,
    history::FileHistory,
};
use serde::Deserialize;

use crate::{
    arguments::{Format, Global},
    client::{Client, Door, ErrorBody},
    commands::Failure,
    output::{self, Reader},
};

pub(crate) async fn run(
    global: &Global,
    config: &Config,
    command: Option<String>,
    file: Option<PathBuf>,
    format: Format,
) -> Result<(), Failure> {
    let client = Client::new(global.url.as_deref(), config, Door::Analysis);
    match (command, file) {
        (Some(sql), _) => ask(&client, &sql, format).await,
        (None, Some(file)) => ask(&client, &read(&file)?, format).await,
        (None, None) if std::io::stdin().is_terminal() => prompt(&client, format).await,
        (None, None) => ask(&client, &read(Path::new("-"))?, format).await,
    }
}

/// A statement from a file, or from standard input.
fn read(file: &Path) -> anyhow::Result<String> {
    if file == Path::new("-") {
        return std::io::read_to_string(std::io::stdin()).context("standard input");
    }
    std::fs::read_to_string(file).with_context(|| format!("file `{}`", file.display()))
}

/// The end of an answer that is kept to be looked at. Longer words of an error are not repeated.
const TAIL_BYTES: usize = 64 << 10;
/// What comes after the rows of a JSON document. Text in it cannot look like this, since its quotation marks have a
/// backslash before them; a value of a row can, so the last one is meant: after it are a number and text.
const AFTER_ROWS: &[u8] = br#"],"row_count":"#;

/// Asks one statement and prints the answer as it streams in. One that ends with an error is a failure in every format.
pub(crate) async fn ask(client: &Client, sql: &str, format: Format) -> Result<(), Failure> {
    let body = serde_json::json!({ "sql": sql, "format": format.as_str() });
    let answer = client.send(client.request(Method::POST, "/v1/sql").json(&body)).await?;
    pass_on(answer.bytes_stream(), format, output::raw).await
}

async fn pass_on(
    mut answer: impl Stream<Item = reqwest::Result<Bytes>> + Unpin,
    format: Format,
    mut write: impl FnMut(&[u8]) -> anyhow::Result<Reader>,
) -> Result<(), Failure> {
    let mut tail = Tail::default();
    while let Some(chunk) = answer.next().await {
        let chunk = chunk.context("the answer broke off; the server's log says why")?;
        tail.take(&chunk);
        if write(&chunk)? == Reader::Gone {
            return Ok(());
        }
    }
    if tail.0.last().is_some_and(|byte| *byte != b'\n') && write(b"\n")? == Reader::Gone {
        return Ok(());
    }
    // The other formats with an error in them break off.
    if format == Format::Json { tail.check() } else { Ok(()) }
}

/// The last bytes of an answer.
#[derive(Default)]
struct Tail(Vec<u8>);

/// The members of a document after its rows.
#[derive(Deserialize)]
struct AfterRows {
    error: Option<ErrorBody>,
}

impl Tail {
    fn take(&mut self, chunk: &[u8]) {
        self.0.extend_from_slice(&chunk[chunk.len().saturating_sub(TAIL_BYTES)..]);
        let surplus = self.0.len().saturating_sub(TAIL_BYTES);
        self.0.drain(..surplus);
    }

    /// Whether this is the end of a JSON document that is complete and says of no error.
    fn check(&self) -> Result<(), Failure> {
        match self.after_rows() {
            Some(AfterRows { error: None }) => Ok(()),
            Some(AfterRows { error: Some(error) }) => Err(anyhow!(error.text()).into()),
            None => Err(anyhow!("the answer is not complete: see its end").into()),
        }
    }

    fn after_rows(&self) -> Option<AfterRows> {
        let place = self.0.windows(AFTER_ROWS.len()).rposition(|bytes| bytes == AFTER_ROWS)?;
        let members = self.0[place..].strip_prefix(b"],")?;
        serde_json::from_slice(&[b"{".as_slice(), members].concat()).ok()
    }
}

/// The answer to one statement, whole, as CSV.
pub(crate) async fn answer_as_csv(client: &Client, sql: &str) -> Result<String, Failure> {
    let body = serde_json::json!({ "sql": sql, "format": "csv" });
    let answer = client.send(client.request(Method::POST, "/v1/sql").json(&body)).await?;
    Ok(answer.text().await.map_err(anyhow::Error::from)?)
}

/// Reads statements ending in `;` until end of input.
async fn prompt(client: &Client, format: Format) -> Result<(), Failure> {
    let words = Words::fetch(client).await?;
    let mut editor: Editor<Words, FileHistory> = Editor::new().context("prompt")?;
    editor.set_helper(Some(words));
    let history = history_file();
    if let Some(history) = &history {
        // A first run has no history yet.
        let _absent = editor.load_history(history);
    }
    output::note(format!("connected to {}; statements end in ;  \\q leaves", client.base()));
    let mut statement = String::new();
    loop {
        let mark = if statement.is_empty() { "tailwater> " } else { "        -> " };
        match tokio::task::block_in_place(|| editor.readline(mark)) {
            Ok(line) if statement.is_empty() && matches!(line.trim(), "\\q" | "exit" | "quit") => break,
            Ok(line) => {
                statement.push_str(&line);
                statement.push('\n');
                if line.trim_end().ends_with(';') {
                    let whole = std::mem::take(&mut statement);
                    let _unchanged = editor.add_history_entry(whole.trim());
                    if let Err(failure) = ask(client, whole.trim().trim_end_matches(';'), format).await {
                        output::error(&failure.error);
                    }
                }
            }
            Err(ReadlineError::Interrupted) => statement.clear(),
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(anyhow::Error::from(error).context("prompt").into()),
        }
    }
    if let Some(history) = &history
        && let Err(error) = editor.save_history(history)
    {
        output::note(format!("the history is not kept in {}: {error}", history.display()));
    }
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "a file of the user's, not of the service")]
fn history_file() -> Option<PathBuf> {
    Some(PathBuf::from(std::env::var_os("HOME")?).join(".tailwater_history"))
}

/// Completes keywords and the names of tables and columns.
#[derive(Helper, Completer, Hinter, Highlighter, Validator)]
struct Words {
    #[rustyline(Completer)]
    completer: WordCompleter,
}

struct WordCompleter(Vec<String>);

const KEYWORDS: &[&str] = &[
    "SELECT",
    "FROM",
    "WHERE",
    "GROUP BY",
    "ORDER BY",
    "LIMIT",
    "JOIN",
    "LEFT JOIN",
    "ON",
    "HAVING",
    "DISTINCT",
    "COUNT(*)",
    "SUM(",
    "AVG(",
    "MIN(",
    "MAX(",
    "CASE",
    "WHEN",
    "THEN",
    "ELSE",
    "END",
    "AND",
    "OR",
    "NOT",
    "NULL",
    "IS",
    "IN",
    "LIKE",
    "BETWEEN",
    "UNION ALL",
    "WITH",
    "AS",
    "DESC",
    "ASC",
    "EXPLAIN",
    "SHOW TABLES",
    "DESCRIBE",
];

impl Words {
    /// Names come from the server, which must be there; where it cannot tell them, the keywords still complete.
    async fn fetch(client: &Client) -> Result<Self, Failure> {
        let names = match names(client).await {
            Err(failure) if failure.code == Code::Unavailable => return Err(failure),
            told => told.unwrap_or_default(),
        };
        let words = KEYWORDS.iter().map(|&word| word.to_owned()).chain(names);
        Ok(Self { completer: WordCompleter(words.collect()) })
    }
}

async fn names(client: &Client) -> Result<Vec<String>, Failure> {
    #[derive(Deserialize)]
    struct Column {
        table_schema: String,
        table_name: String,
        column_name: String,
    }
    let sql = "SELECT table_schema, table_name, column_name FROM information_schema.columns";
    let body = serde_json::json!({ "sql": sql, "format": "ndjson" });
    let answer = client.send(client.short_request(Method::POST, "/v1/sql").json(&body)).await?;
    let text = answer.text().await.map_err(anyhow::Error::from)?;
    let mut names = Vec::new();
    for column in text.lines().filter_map(|line| serde_json::from_str::<Column>(line).ok()) {
        names.push(format!("{}.{}", column.table_schema, column.table_name));
        names.push(column.column_name);
    }
    names.sort();
    names.dedup();
    Ok(names)
}

impl rustyline::completion::Completer for WordCompleter {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _context: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = &line[..position];
        let start = typed.rfind(|letter: char| !(letter.is_alphanumeric() || "_.".contains(letter)));
        let start = start.map_or(0, |place| place + 1);
        let begun = typed[start..].to_lowercase();
        let matching = self.0.iter().filter(|word| !begun.is_empty() && word.to_lowercase().starts_with(&begun));
        let pairs = matching.map(|word| Pair { display: word.clone(), replacement: word.clone() });
        Ok((start, pairs.collect()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use analysis::{Encoder, ErrorKind, QueryError};
    use arrow::{
        array::{RecordBatch, StringArray},
        datatypes::{DataType, Field, Schema},
    };
    use futures::stream;
    use rustyline::completion::Completer as _;

    use super::*;

    const ENDS: &str = r#"]],"row_count":1,"error":{"error":"said in a row"}}"#;

    /// A document of one row, as the server makes it.
    fn document(text: &str, error: Option<QueryError>) -> Vec<u8> {
        let schema = Arc::new(Schema::new(vec![Field::new("error", DataType::Utf8, true)]));
        let rows = StringArray::from(vec![text]);
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(rows)]).unwrap();
        let mut encoder = Encoder::new(analysis::Format::Json, schema).unwrap();
        let mut document = encoder.start().unwrap().to_vec();
        document.extend_from_slice(&encoder.batch(&batch).unwrap());
        document.extend_from_slice(&match error {
            Some(error) => encoder.fail(&error).last,
            None => encoder.finish().unwrap(),
        });
        document
    }

    /// What comes of a document that arrives in pieces of this many bytes. It is printed in any case.
    async fn outcome(document: &[u8], piece: usize) -> Result<(), String> {
        let pieces = document.chunks(piece).map(|piece| Ok::<_, reqwest::Error>(Bytes::copy_from_slice(piece)));
        let mut printed = Vec::new();
        let write = |bytes: &[u8]| {
            printed.extend_from_slice(bytes);
            Ok(Reader::There)
        };
        let passed = pass_on(stream::iter(pieces), Format::Json, write).await;
        assert_eq!(printed, document);
        passed.map_err(|failure| failure.error.to_string())
    }

    #[tokio::test]
    async fn a_document_that_ends_with_an_error_is_a_failure_in_the_servers_words() {
        let error = QueryError::new(ErrorKind::TooLarge, r#"more than "1" rows"#).with_hint("add a LIMIT");
        for text in ["x", ENDS, &"x".repeat(2 * TAIL_BYTES)] {
            let document = document(text, Some(error.clone()));
            for piece in [1 + document.len() / 1000, document.len()] {
                assert_eq!(outcome(&document, piece).await.unwrap_err(), "more than \"1\" rows\nhint: add a LIMIT");
            }
        }
    }

    #[tokio::test]
    async fn a_whole_document_is_a_success_whatever_its_rows_say() {
        for text in ["x", ENDS, &"x".repeat(2 * TAIL_BYTES)] {
            let document = document(text, None);
            for piece in [1 + document.len() / 1000, document.len()] {
                outcome(&document, piece).await.unwrap();
            }
        }
        let value = r#"{"a":[1],"row_count":1,"error":{"error":"said in a value"}}"#;
        for (rows, count) in [(format!("[{value}]"), 1), (String::new(), 0)] {
            let document = format!("{{\"columns\":[],\"rows\":[{rows}],\"row_count\":{count}}}\n");
            outcome(document.as_bytes(), 5).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_document_without_its_end_is_a_failure() {
        let document = document("x", None);
        let cut = [&document[..document.len() - 20], b"\n"].concat();
        assert!(outcome(&cut, 5).await.unwrap_err().contains("not complete"));
        let endless = QueryError::new(ErrorKind::Invalid, "x".repeat(2 * TAIL_BYTES));
        assert!(outcome(&self::document("x", Some(endless)), 4096).await.unwrap_err().contains("not complete"));
    }

    #[tokio::test]
    async fn a_prompt_does_not_begin_where_nobody_answers() {
        let nobody = Client::new(Some("http://127.0.0.1:1"), &Config::default(), Door::Analysis);
        assert_eq!(Words::fetch(&nobody).await.err().map(|failure| failure.code), Some(Code::Unavailable));
    }

    #[test]
    fn names_complete_at_the_word_under_the_cursor() {
        let completer = WordCompleter(vec!["SELECT".into(), "shop.orders".into()]);
        let history = rustyline::history::DefaultHistory::new();
        let context = rustyline::Context::new(&history);
        let (start, found) = completer.complete("SELECT * FROM shop.o", 20, &context).unwrap();
        assert_eq!((start, found.len()), (14, 1));
        assert_eq!(found[0].replacement, "shop.orders");
    }
}

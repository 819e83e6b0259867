//! `tailwater sql`: one statement, a file, or a prompt with history and completion.

use std::path::PathBuf;

use anyhow::Context as _;
use futures::StreamExt as _;
use reqwest::Method;
use runtime::config::Config;
use rustyline::{
    Completer, Editor, Helper, Highlighter, Hinter, Validator, completion::Pair, error::ReadlineError,
    history::FileHistory,
};
use serde::Deserialize;

use crate::{
    arguments::{Format, Global},
    client::{Client, Door},
    commands::Failure,
    output,
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
        (None, Some(file)) => {
            let sql = std::fs::read_to_string(&file).with_context(|| format!("file `{}`", file.display()))?;
            ask(&client, &sql, format).await
        }
        (None, None) => prompt(&client, format).await,
    }
}

/// Asks one statement and prints the answer as it streams in.
pub(crate) async fn ask(client: &Client, sql: &str, format: Format) -> Result<(), Failure> {
    let body = serde_json::json!({ "sql": sql, "format": format.as_str() });
    let mut answer = client.send(client.request(Method::POST, "/v1/sql").json(&body)).await?.bytes_stream();
    let mut last = None;
    while let Some(chunk) = answer.next().await {
        let chunk = chunk.context("the answer broke off; the server's log says why")?;
        last = chunk.last().copied().or(last);
        if output::raw(&chunk).is_err() {
            return Ok(());
        }
    }
    if last.is_some_and(|byte| byte != b'\n') {
        output::line("");
    }
    Ok(())
}

/// The answer to one statement, whole, as CSV.
pub(crate) async fn answer_as_csv(client: &Client, sql: &str) -> Result<String, Failure> {
    let body = serde_json::json!({ "sql": sql, "format": "csv" });
    let answer = client.send(client.request(Method::POST, "/v1/sql").json(&body)).await?;
    Ok(answer.text().await.map_err(anyhow::Error::from)?)
}

/// Reads statements ending in `;` until end of input.
async fn prompt(client: &Client, format: Format) -> Result<(), Failure> {
    let words = Words::fetch(client).await;
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
    if let Some(history) = &history {
        editor.save_history(history).context("history")?;
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
    /// Names come from the server; without them the keywords still complete.
    async fn fetch(client: &Client) -> Self {
        let names = names(client).await.unwrap_or_default();
        let words = KEYWORDS.iter().map(|&word| word.to_owned()).chain(names);
        Self { completer: WordCompleter(words.collect()) }
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
    let answer = client.send(client.request(Method::POST, "/v1/sql").json(&body)).await?;
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
    use rustyline::completion::Completer as _;

    use super::*;

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

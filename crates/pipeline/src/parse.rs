//! The parser of pipeline files.
//!
//! Invariant: it reports every fault of every statement it can reach, never panics on any text, and what it returns
//! prints to canonical text that parses back to the same statement.
//! Deliberately absent: anything that needs other definitions; whether inputs and columns of views exist is decided
//! in `change`, against the catalog. Queries are sqlparser's; the statements around them are our own productions,
//! because `WATERMARK FOR` and `CREATE SOURCE` exist in no dialect of it.

mod column_type;
mod delay;
mod options;
mod query;

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::sql::sqlparser::tokenizer::{Span, Token, TokenWithSpan};

use crate::columns::check_lists;
use crate::inspect;
use crate::lex::{Cursor, Origin, SourceFile, describe, split_statements};
use crate::names::{fault_of_column, fault_of_name};
use crate::near::did_you_mean;
use crate::problem::{Problem, Problems};
use crate::spec::{
    Column, Format, SinkSpec, SourceOptions, SourceSpec, SourceText, Spec, Statement, UnknownColumns, ViewOptions,
    ViewSpec, Watermark,
};
use options::Taker;

const MAX_COLUMNS: usize = 2_000;

const SOURCE_OPTIONS: [&str; 9] =
    ["topic", "format", "unknown_columns", "header", "delimiter", "statistics", "bounds", "partition_by", "partitions"];
const VIEW_OPTIONS: [&str; 3] = ["statistics", "partition_by", "bounds"];
const SINK_OPTIONS: [&str; 2] = ["topic", "format"];

/// Parses all files of one pipeline.
///
/// Errors: every fault found in any of the files, with its place.
pub fn parse(files: &[SourceText]) -> Result<Vec<Statement>, Problems> {
    parse_files(files.iter().map(|file| SourceFile::new(&file.file, &file.text)))
}

/// Parses what the catalog holds, without checks that came after it was accepted.
///
/// Errors: every fault found, as if the text were the file.
pub(crate) fn parse_stored(file: &str, text: &str) -> Result<Vec<Statement>, Problems> {
    parse_files([SourceFile::stored(file, text)])
}

fn parse_files(files: impl IntoIterator<Item = SourceFile>) -> Result<Vec<Statement>, Problems> {
    let mut problems = Vec::new();
    let mut statements = Vec::new();
    let mut names = Names::default();
    for source in files {
        for tokens in split_statements(&source, &mut problems) {
            read_statements(&source, &tokens, &mut names, &mut statements, &mut problems);
        }
    }
    Problems::check(problems)?;
    Ok(statements)
}

/// Names defined so far, with where, to report the second definition of each.
#[derive(Default)]
struct Names(Vec<(String, String)>);

impl Names {
    fn define(&mut self, name: &str, source: &SourceFile, span: Span, problems: &mut Vec<Problem>) {
        if let Some((_, place)) = self.0.iter().find(|(known, _)| known == name) {
            let problem = source.problem(span, format!("`{name}` is defined twice"));
            problems.push(problem.with_help(format!("the other definition is at {place}")));
            return;
        }
        let place = format!("{}:{}:{}", source.file, span.start.line, span.start.column);
        self.0.push((name.to_owned(), place));
    }
}

/// Usually one statement; more when a semicolon was forgotten, which is then reported.
fn read_statements(
    source: &SourceFile,
    tokens: &[TokenWithSpan],
    names: &mut Names,
    statements: &mut Vec<Statement>,
    problems: &mut Vec<Problem>,
) {
    let mut cursor = Cursor::new(source, tokens);
    loop {
        match read_statement(&mut cursor, names, problems) {
            Ok(statement) => statements.extend(statement),
            Err(problem) => {
                problems.push(problem);
                return;
            }
        }
        if cursor.is_at_end() {
            return;
        }
        let message = format!("expected `;` before {}", describe(cursor.peek()));
        problems.push(cursor.problem(cursor.span(), message));
        if !cursor.peek_is_keyword("CREATE") {
            return;
        }
    }
}

/// Reads one statement. `None` means that its faults are already in `problems`.
fn read_statement(
    cursor: &mut Cursor<'_>,
    names: &mut Names,
    problems: &mut Vec<Problem>,
) -> Result<Option<Statement>, Problem> {
    expect_create(cursor)?;
    let kind_span = cursor.span();
    if cursor.take_keyword("SOURCE") {
        return read_source(cursor, names, problems);
    }
    if cursor.take_keyword("MATERIALIZED") {
        cursor.expect_keyword("VIEW")?;
        return read_view(cursor, names, problems);
    }
    if cursor.take_keyword("SINK") {
        return read_sink(cursor, names, problems);
    }
    if cursor.take_keyword("TABLE") {
        return read_table(cursor, kind_span, problems);
    }
    Err(refused_kind(cursor))
}

fn expect_create(cursor: &mut Cursor<'_>) -> Result<(), Problem> {
    if cursor.take_keyword("CREATE") {
        return Ok(());
    }
    let word = cursor.peek_word().map(|word| word.value.as_str()).unwrap_or_default();
    let help = match word {
        "drop" | "alter" => Some("a pipeline says what should be; remove or change the definition and apply again"),
        "select" | "with" => Some("write CREATE MATERIALIZED VIEW name AS before the query"),
        "insert" | "update" | "delete" => Some("rows come in through sources"),
        _ => None,
    };
    let problem = cursor.expected("`CREATE`", &["CREATE"]);
    Err(problem.with_optional_help(help.map(str::to_owned)))
}

fn refused_kind(cursor: &Cursor<'_>) -> Problem {
    let span = cursor.span();
    let word = cursor.peek_word().map(|word| word.value.as_str()).unwrap_or_default();
    match word {
        "view" => cursor
            .problem(span, "not supported yet: a view that is not kept as a table")
            .with_help("write CREATE MATERIALIZED VIEW"),
        "or" | "replace" => cursor
            .problem(span, "`OR REPLACE` is not needed: apply compares what is with what should be")
            .with_help("write CREATE and apply with --replace"),
        "stream" => cursor.expected("`SOURCE`", &[]).with_help("write CREATE SOURCE"),
        _ => cursor
            .expected("`SOURCE`, `MATERIALIZED VIEW` or `SINK`", &["SOURCE", "MATERIALIZED", "SINK", "TABLE", "VIEW"]),
    }
}

/// The name of a definition, and its place.
fn read_name(
    cursor: &mut Cursor<'_>,
    names: &mut Names,
    problems: &mut Vec<Problem>,
) -> Result<(String, Span), Problem> {
    let (name, span) = read_plain_name(cursor, problems)?;
    names.define(&name, cursor.source, span, problems);
    Ok((name, span))
}

fn read_plain_name(cursor: &mut Cursor<'_>, problems: &mut Vec<Problem>) -> Result<(String, Span), Problem> {
    let span = cursor.span();
    if cursor.peek_is_keyword("IF") && cursor.second_is_keyword("NOT") {
        let problem = cursor.problem(span, "`IF NOT EXISTS` is not needed: applying twice changes nothing");
        return Err(problem.with_help("leave it out"));
    }
    let Some(word) = cursor.peek_word() else {
        return Err(cursor.expected("a name", &[]));
    };
    cursor.next();
    if cursor.peek_is(&Token::Period) {
        let problem = cursor.problem(span, "a definition has no schema in its name");
        return Err(problem.with_help("the pipeline is the schema; write the name alone"));
    }
    if let Some(fault) = fault_of_name(&word.value) {
        problems.push(cursor.problem(span, format!("name `{}` {fault}", word.value)));
    }
    Ok((word.value.clone(), span))
}

// ---- sources ----

fn read_source(
    cursor: &mut Cursor<'_>,
    names: &mut Names,
    problems: &mut Vec<Problem>,
) -> Result<Option<Statement>, Problem> {
    let before = problems.len();
    let (name, name_span) = read_name(cursor, names, problems)?;
    let body = read_body(cursor, problems, BodyOf::Source)?;
    let given = options::read(cursor, problems)?;
    let mut taker = Taker::new(cursor.source, given, "a source", &SOURCE_OPTIONS, problems);
    let option_spans = taker.spans();
    let topic = taker.topic();
    let format = taker.format().unwrap_or(Format::Json);
    let options = take_source_options(&mut taker, format);
    let origin = Origin { source: cursor.source.clone(), name_span, from_span: name_span, option_spans, query: None };
    check_source(&origin, &body, &options, problems);
    if problems.len() > before {
        return Ok(None);
    }
    let spec = SourceSpec { name, columns: body.columns, watermark: body.watermark, topic, format, options };
    Ok(Some(statement(Spec::Source(spec), origin)))
}

fn take_source_options(taker: &mut Taker<'_>, format: Format) -> SourceOptions {
    if format != Format::Csv {
        taker.refuse_given("header", "is only for format 'csv'");
        taker.refuse_given("delimiter", "is only for format 'csv'");
    }
    SourceOptions {
        unknown_columns: taker.unknown_columns().unwrap_or(UnknownColumns::Ignore),
        csv_header: taker.boolean("header").unwrap_or(false),
        csv_delimiter: taker.delimiter().unwrap_or(b','),
        statistics: taker.columns("statistics"),
        bounds: taker.columns("bounds"),
        partition_by: taker.columns("partition_by"),
        partitions: taker.partitions(),
    }
}

fn check_source(origin: &Origin, body: &Body, options: &SourceOptions, problems: &mut Vec<Problem>) {
    if body.is_faulty {
        // Columns are missing, so that options would be blamed for naming them.
        return;
    }
    if body.columns.is_empty() {
        problems.push(origin.problem(origin.name_span, "a source needs at least one column"));
    }
    let columns: Vec<_> = body.columns.iter().map(|column| (column.name.as_str(), &column.data_type)).collect();
    let lists = check_lists(origin, &columns, &options.statistics, &options.bounds, &options.partition_by);
    problems.extend(lists);
}

/// Which statement a list of columns belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BodyOf {
    Source,
    Table,
}

/// What stands in the parentheses after the name.
#[derive(Default)]
struct Body {
    columns: Vec<Column>,
    watermark: Option<Watermark>,
    has_primary_key: bool,
    is_faulty: bool,
}

/// A watermark whose column is checked once all columns are known.
struct UncheckedWatermark {
    column: String,
    span: Span,
    watermark: Watermark,
}

fn read_body(cursor: &mut Cursor<'_>, problems: &mut Vec<Problem>, owner: BodyOf) -> Result<Body, Problem> {
    cursor.expect(&Token::LParen)?;
    let mut body = Body::default();
    let mut watermark = None;
    loop {
        if let Err(problem) = read_item(cursor, &mut body, &mut watermark, owner) {
            problems.push(problem);
            body.is_faulty = true;
            cursor.skip_list_item();
        }
        if !cursor.take(&Token::Comma) {
            break;
        }
    }
    cursor.expect(&Token::RParen)?;
    if let Some(unchecked) = watermark {
        if !body.is_faulty {
            problems.extend(check_watermark(cursor, &body.columns, &unchecked));
        }
        body.watermark = Some(unchecked.watermark);
    }
    Ok(body)
}

fn read_item(
    cursor: &mut Cursor<'_>,
    body: &mut Body,
    watermark: &mut Option<UncheckedWatermark>,
    owner: BodyOf,
) -> Result<(), Problem> {
    if cursor.peek_is_keyword("WATERMARK") && cursor.second_is_keyword("FOR") {
        let span = cursor.span();
        let read = read_watermark(cursor)?;
        if watermark.is_some() {
            return Err(cursor.problem(span, "a source has one watermark"));
        }
        *watermark = Some(read);
        return expect_item_end(cursor);
    }
    if cursor.peek_is_keyword("PRIMARY") && cursor.second_is_keyword("KEY") {
        let span = cursor.span();
        cursor.next();
        cursor.next();
        refuse_key_of_source(cursor, span, owner)?;
        read_key_columns(cursor)?;
        body.has_primary_key = true;
        return expect_item_end(cursor);
    }
    let column = read_column(cursor, body, owner)?;
    body.columns.push(column);
    expect_item_end(cursor)
}

fn refuse_key_of_source(cursor: &Cursor<'_>, span: Span, owner: BodyOf) -> Result<(), Problem> {
    if owner == BodyOf::Table {
        return Ok(());
    }
    let problem = cursor.problem(span, "a source has no primary key: every message is a row of its own");
    Err(problem.with_help("leave it out"))
}

fn read_key_columns(cursor: &mut Cursor<'_>) -> Result<(), Problem> {
    cursor.expect(&Token::LParen)?;
    loop {
        if cursor.peek_word().is_none() {
            return Err(cursor.expected("the name of a column", &[]));
        }
        cursor.next();
        if !cursor.take(&Token::Comma) {
            break;
        }
    }
    cursor.expect(&Token::RParen)
}

fn expect_item_end(cursor: &Cursor<'_>) -> Result<(), Problem> {
    if cursor.peek_is(&Token::Comma) || cursor.peek_is(&Token::RParen) {
        return Ok(());
    }
    Err(cursor.expected("`,` or `)`", &["NOT", "NULL"]))
}

fn read_column(cursor: &mut Cursor<'_>, body: &mut Body, owner: BodyOf) -> Result<Column, Problem> {
    let span = cursor.span();
    let Some(word) = cursor.peek_word() else {
        return Err(cursor.expected("a column", &[]));
    };
    cursor.next();
    let name = word.value.clone();
    if let Some(fault) = fault_of_column(&name) {
        return Err(cursor.problem(span, format!("column name `{name}` {fault}")));
    }
    if let Some(other) = body.columns.iter().find(|column| cursor.source.is_same_name(&column.name, &name)) {
        let message = match other.name == name {
            true => format!("column `{name}` is there twice"),
            false => format!("columns `{}` and `{name}` differ only in case, which tables cannot hold", other.name),
        };
        return Err(cursor.problem(span, message));
    }
    if body.columns.len() >= MAX_COLUMNS {
        return Err(cursor.problem(span, format!("more than {MAX_COLUMNS} columns")));
    }
    let data_type = column_type::read(cursor)?;
    let nullable = read_constraints(cursor, body, owner)?;
    Ok(Column { name, data_type, nullable })
}

/// `NOT NULL`, `NULL`, and `PRIMARY KEY` of a table.
fn read_constraints(cursor: &mut Cursor<'_>, body: &mut Body, owner: BodyOf) -> Result<bool, Problem> {
    let mut nullable = true;
    loop {
        let span = cursor.span();
        if cursor.take_keyword("NOT") {
            cursor.expect_keyword("NULL")?;
            nullable = false;
        } else if cursor.take_keyword("PRIMARY") {
            cursor.expect_keyword("KEY")?;
            refuse_key_of_source(cursor, span, owner)?;
            body.has_primary_key = true;
        } else if cursor.peek_is_keyword("DEFAULT") || cursor.peek_is_keyword("GENERATED") {
            let problem = cursor.problem(span, "not supported yet: computed and default values of columns");
            return Err(problem.with_help("compute the value in a materialized view"));
        } else if !cursor.take_keyword("NULL") {
            return Ok(nullable);
        }
    }
}

fn read_watermark(cursor: &mut Cursor<'_>) -> Result<UncheckedWatermark, Problem> {
    cursor.expect_keyword("WATERMARK")?;
    cursor.expect_keyword("FOR")?;
    let span = cursor.span();
    let Some(column) = cursor.peek_word() else {
        return Err(cursor.expected("the name of a column", &[]));
    };
    cursor.next();
    cursor.expect_keyword("AS")?;
    if cursor.peek_word().is_none_or(|word| word.value != column.value) {
        let what = format!("`{}` again", column.value);
        let help = format!("write WATERMARK FOR {0} AS {0} - INTERVAL '5 seconds'", column.value);
        return Err(cursor.expected(&what, &[]).with_help(help));
    }
    cursor.next();
    let delay = if cursor.take(&Token::Minus) { delay::read(cursor)? } else { std::time::Duration::ZERO };
    let watermark = Watermark { column: column.value.clone(), delay };
    Ok(UncheckedWatermark { column: column.value.clone(), span, watermark })
}

fn check_watermark(cursor: &Cursor<'_>, columns: &[Column], watermark: &UncheckedWatermark) -> Option<Problem> {
    let name = &watermark.column;
    match columns.iter().find(|column| column.name == *name) {
        None => {
            let problem = cursor.problem(watermark.span, format!("the watermark is for the unknown column `{name}`"));
            let known = columns.iter().map(|column| column.name.as_str());
            Some(problem.with_optional_help(did_you_mean(name, known)))
        }
        Some(column) if !matches!(column.data_type, DataType::Timestamp(_, _)) => {
            let found = column_type::print(&column.data_type);
            let message = format!("the watermark needs a TIMESTAMP column; `{name}` is {found}");
            Some(cursor.problem(watermark.span, message))
        }
        Some(_) => None,
    }
}

// ---- tables, sinks, views ----

/// Parsed in full, so that its faults show now and not on the day tables arrive.
fn read_table(
    cursor: &mut Cursor<'_>,
    kind_span: Span,
    problems: &mut Vec<Problem>,
) -> Result<Option<Statement>, Problem> {
    read_plain_name(cursor, problems)?;
    let body = read_body(cursor, problems, BodyOf::Table)?;
    let before = problems.len();
    let given = options::read(cursor, problems)?;
    Taker::new(cursor.source, given, "a table", &SOURCE_OPTIONS, problems);
    if !body.has_primary_key && !body.is_faulty && before == problems.len() {
        let problem = cursor.problem(kind_span, "a table needs a PRIMARY KEY");
        problems.push(problem.with_help("for rows that are only ever added write CREATE SOURCE"));
        return Ok(None);
    }
    let problem = cursor.problem(kind_span, "not supported yet: CREATE TABLE … PRIMARY KEY");
    problems.push(problem.with_help("CREATE SOURCE keeps every row, not the latest of each key"));
    Ok(None)
}

fn read_sink(
    cursor: &mut Cursor<'_>,
    names: &mut Names,
    problems: &mut Vec<Problem>,
) -> Result<Option<Statement>, Problem> {
    let before = problems.len();
    let (name, name_span) = read_name(cursor, names, problems)?;
    cursor.expect_keyword("FROM")?;
    let (from, from_span) = read_plain_name(cursor, problems)?;
    let given = options::read(cursor, problems)?;
    let mut taker = Taker::new(cursor.source, given, "a sink", &SINK_OPTIONS, problems);
    let option_spans = taker.spans();
    let topic = taker.topic();
    let format = taker.format().unwrap_or(Format::Json);
    let is_topic_missing = !taker.has("topic");
    if is_topic_missing {
        let problem = cursor.problem(name_span, format!("sink `{name}` has no topic"));
        problems.push(problem.with_help("write WITH (topic = '…', format = 'json')"));
    }
    if problems.len() > before {
        return Ok(None);
    }
    let origin = Origin { source: cursor.source.clone(), name_span, from_span, option_spans, query: None };
    let spec = SinkSpec { name, from, topic: topic.unwrap_or_default(), format };
    Ok(Some(statement(Spec::Sink(spec), origin)))
}

fn read_view(
    cursor: &mut Cursor<'_>,
    names: &mut Names,
    problems: &mut Vec<Problem>,
) -> Result<Option<Statement>, Problem> {
    let before = problems.len();
    let (name, name_span) = read_name(cursor, names, problems)?;
    if cursor.peek_is(&Token::LParen) {
        let problem = cursor.problem(cursor.span(), "not supported yet: a list of column names after the view's name");
        return Err(problem.with_help("name the columns in the query with AS"));
    }
    let given = options::read(cursor, problems)?;
    let mut taker = Taker::new(cursor.source, given, "a view", &VIEW_OPTIONS, problems);
    let option_spans = taker.spans();
    let options = ViewOptions {
        statistics: taker.columns("statistics"),
        partition_by: taker.columns("partition_by"),
        bounds: taker.columns("bounds"),
    };
    cursor.expect_keyword("AS")?;
    let query = Arc::new(query::read(cursor)?);
    problems.extend(inspect::refusals(cursor.source, &query));
    if problems.len() > before {
        return Ok(None);
    }
    let text = query::canonical(cursor.source, &query)?;
    let origin =
        Origin { source: cursor.source.clone(), name_span, from_span: name_span, option_spans, query: Some(query) };
    let spec = ViewSpec { name, query: text, options };
    Ok(Some(statement(Spec::View(spec), origin)))
}

// ---- canonical text ----

fn statement(spec: Spec, origin: Origin) -> Statement {
    let (name, sql) = match &spec {
        Spec::Source(source) => (source.name.clone(), print_source(source)),
        Spec::View(view) => (view.name.clone(), print_view(view)),
        Spec::Sink(sink) => (sink.name.clone(), print_sink(sink)),
    };
    Statement { name, spec, sql, origin }
}

fn print_source(source: &SourceSpec) -> String {
    let mut items: Vec<String> = source.columns.iter().map(print_column).collect();
    if let Some(watermark) = &source.watermark {
        let column = column_type::quote(&watermark.column);
        let delay = delay::print(watermark.delay);
        items.push(format!("WATERMARK FOR {column} AS {column} - INTERVAL '{delay}'"));
    }
    let options = print_options(source_options(source));
    format!("CREATE SOURCE {} (\n  {}\n) {options}", source.name, items.join(",\n  "))
}

fn print_column(column: &Column) -> String {
    let not_null = if column.nullable { "" } else { " NOT NULL" };
    format!("{} {}{not_null}", column_type::quote(&column.name), column_type::print(&column.data_type))
}

/// Options in a fixed order; those that say what is so anyway are left out.
fn source_options(source: &SourceSpec) -> Vec<(&'static str, String)> {
    let options = &source.options;
    let mut given = Vec::new();
    given.extend(source.topic.clone().map(|topic| ("topic", topic)));
    given.push(("format", source.format.to_string()));
    if options.unknown_columns == UnknownColumns::Reject {
        given.push(("unknown_columns", "reject".to_owned()));
    }
    if options.csv_header {
        given.push(("header", "true".to_owned()));
    }
    match options.csv_delimiter {
        b',' => {}
        b'\t' => given.push(("delimiter", "\\t".to_owned())),
        byte => given.push(("delimiter", char::from(byte).to_string())),
    }
    given.extend(print_list("statistics", &options.statistics));
    given.extend(print_list("bounds", &options.bounds));
    given.extend(print_list("partition_by", &options.partition_by));
    given.extend(options.partitions.map(|partitions| ("partitions", partitions.to_string())));
    given
}

fn print_list(key: &'static str, columns: &[String]) -> Option<(&'static str, String)> {
    (!columns.is_empty()).then(|| (key, columns.join(", ")))
}

fn print_options(options: Vec<(&'static str, String)>) -> String {
    let print_one = |(key, value): &(&str, String)| format!("{key} = '{}'", value.replace('\'', "''"));
    format!("WITH ({})", options.iter().map(print_one).collect::<Vec<_>>().join(", "))
}

fn print_view(view: &ViewSpec) -> String {
    let options = &view.options;
    let mut given = Vec::new();
    given.extend(print_list("statistics", &options.statistics));
    given.extend(print_list("partition_by", &options.partition_by));
    given.extend(print_list("bounds", &options.bounds));
    let options = if given.is_empty() { String::new() } else { format!(" {}", print_options(given)) };
    format!("CREATE MATERIALIZED VIEW {}{options} AS\n{}", view.name, view.query)
}

fn print_sink(sink: &SinkSpec) -> String {
    let options = print_options(vec![("topic", sink.topic.clone()), ("format", sink.format.to_string())]);
    format!("CREATE SINK {} FROM {} {options}", sink.name, sink.from)
}

#[cfg(test)]
mod tests;

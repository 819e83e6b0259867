//! The HTTP door to queries and tables.
//!
//! `POST /v1/sql` takes SQL as plain text or `{sql, params, format, max_rows, timeout_ms}` as JSON; the last three may
//! also stand in the query string, which wins. `GET /v1/tables` lists tables, `GET /v1/tables/{pipeline}/{name}`
//! describes one. Answers are streamed; `X-Snapshot` names the version of every table an answer was read from.
//!
//! The invariants: an error before the first row has a status and a JSON body `{error, hint?, line?, column?}`, one
//! after it ends the answer as `format` says; a client that goes away stops its query, and one that stops reading loses
//! it at the deadline. Deliberately absent: logins.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, Version, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use runtime::{
    catalog::{self, NotReplayed},
    tasks::{Fate, TaskGroup},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    AnalysisState,
    catalog::{Declared, qualified},
    error::{ErrorKind, QueryError},
    format::{Encoder, Format},
    metrics,
    nearest::nearest,
    query::{Answer, MAX_SQL_BYTES, QueryManager, QueryRequest},
    tail,
};

/// The version of each table an answer was read from: `shop.orders@12, shop.customers@none`.
pub const SNAPSHOT_HEADER: &str = "x-snapshot";
/// SQL, its parameters, and what JSON adds to them.
const MAX_BODY_BYTES: usize = 2 * MAX_SQL_BYTES;
/// How long a client may say nothing in the middle of a question.
const SILENT_FOR: Duration = Duration::from_secs(30);
/// Tables whose newest version is looked up at the same time for a listing.
const LOOK_UPS_AT_ONCE: usize = 8;
/// When to try again after being turned away.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// Routes under `/v1`.
pub fn router(state: AnalysisState) -> Router {
    Router::new()
        .route("/v1/sql", post(sql))
        .route("/v1/tables", get(list_tables))
        .route("/v1/tables/{pipeline}/{name}", get(describe_table))
        .route("/v1/tail/{pipeline}/{name}", get(tail::tail))
        .route_layer(middleware::from_fn_with_state(state.clone(), when_replayed))
        .with_state(state)
}

/// A process that has just started does not call unknown what it has not read of yet.
async fn when_replayed(
    State(state): State<AnalysisState>,
    request: Request,
    next: Next,
) -> Result<Response, QueryError> {
    catalog::when_replayed(&state.catalog).await.inspect_err(|_| metrics::query_rejected("catalog"))?;
    Ok(next.run(request).await)
}

impl From<NotReplayed> for QueryError {
    fn from(error: NotReplayed) -> Self {
        Self::new(ErrorKind::Unavailable, error.to_string()).with_hint("ask again; GET /readyz?verbose says more")
    }
}

impl IntoResponse for QueryError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.to_json())).into_response();
        if matches!(self.kind, ErrorKind::TooMany | ErrorKind::Unavailable) {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
        }
        response
    }
}

/// What may stand in the query string.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    format: Option<String>,
    max_rows: Option<u64>,
    timeout_ms: Option<u64>,
}

/// The JSON form of a question.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    sql: String,
    #[serde(default)]
    params: Vec<serde_json::Value>,
    format: Option<String>,
    max_rows: Option<u64>,
    timeout_ms: Option<u64>,
}

async fn sql(State(state): State<AnalysisState>, request: Request) -> Response {
    match answer(&state.queries, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn answer(queries: &QueryManager, request: Request) -> Result<Response, QueryError> {
    let (parts, body) = request.into_parts();
    let options: Options = options_of(&parts.uri, "it may hold `format`, `max_rows` and `timeout_ms`")?;
    let body = read(body).await?;
    let question = question_of(&parts.headers, &body)?;
    let format = match options.format.or(question.format) {
        Some(name) => name.parse()?,
        None => accepted(&parts.headers),
    };
    check_break_shows(format, parts.version)?;
    let request = QueryRequest {
        sql: question.sql,
        params: question.params,
        max_rows: options.max_rows.or(question.max_rows),
        timeout: options.timeout_ms.or(question.timeout_ms).map(Duration::from_millis),
    };
    let answer = queries.run(request).await?;
    let snapshot = snapshot_header(&answer.versions);
    let encoder = Encoder::new(format, Arc::clone(&answer.schema)).map_err(|error| unwritable(&error))?;
    let body = Body::from_stream(encoded(answer, encoder));
    let mut response = ([(header::CONTENT_TYPE, format.media_type())], body).into_response();
    if let Some(snapshot) = snapshot {
        response.headers_mut().insert(SNAPSHOT_HEADER, snapshot);
    }
    Ok(response)
}

/// The whole body of a question.
async fn read(body: Body) -> Result<Bytes, QueryError> {
    let mut chunks = body.into_data_stream();
    let mut read: Vec<u8> = Vec::new();
    while let Some(chunk) = timeout(SILENT_FOR, chunks.next()).await.map_err(|_| fell_silent())? {
        let chunk = chunk.map_err(|error| {
            QueryError::new(ErrorKind::Invalid, format!("the request ended early: {error}")).with_hint("send it again")
        })?;
        if read.len() + chunk.len() > MAX_BODY_BYTES {
            return Err(too_large());
        }
        read.extend_from_slice(&chunk);
    }
    Ok(read.into())
}

fn too_large() -> QueryError {
    QueryError::new(ErrorKind::TooLarge, format!("the request has more than {MAX_BODY_BYTES} bytes"))
        .with_hint("send the statement with less inline data")
}

fn fell_silent() -> QueryError {
    let message = format!("nothing more of the request came for {} s", SILENT_FOR.as_secs());
    QueryError::new(ErrorKind::Timeout, message).with_hint("send it again")
}

/// The options in a query string; unknown ones are refused.
pub(crate) fn options_of<T: DeserializeOwned>(uri: &Uri, hint: &str) -> Result<T, QueryError> {
    let options = Query::<T>::try_from_uri(uri);
    options.map(|Query(options)| options).map_err(|error| {
        QueryError::new(ErrorKind::Invalid, format!("the query string is wrong: {}", error.body_text())).with_hint(hint)
    })
}

fn question_of(headers: &HeaderMap, body: &Bytes) -> Result<Question, QueryError> {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("text/plain");
    if media_type.starts_with("application/json") {
        return serde_json::from_slice(body).map_err(|error| {
            QueryError::new(ErrorKind::Invalid, format!("the request is not as expected: {error}")).with_hint(
                r#"send {"sql": "SELECT …", "params": [], "format": "json", "max_rows": 100, "timeout_ms": 1000}"#,
            )
        });
    }
    let sql = std::str::from_utf8(body).map_err(|error| {
        QueryError::new(ErrorKind::Invalid, format!("the SQL is not UTF-8 after byte {}", error.valid_up_to()))
    })?;
    Ok(Question { sql: sql.to_owned(), params: Vec::new(), format: None, max_rows: None, timeout_ms: None })
}

fn accepted(headers: &HeaderMap) -> Format {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.map_or_else(Format::default, Format::from_accept)
}

/// An answer over HTTP/1.0 ends where its connection does, complete or not.
fn check_break_shows(format: Format, version: Version) -> Result<(), QueryError> {
    if version >= Version::HTTP_11 || !format.has_no_place_for_errors() {
        return Ok(());
    }
    let message = "over HTTP/1.0 an answer in this format cannot be told from one that was broken off";
    Err(QueryError::new(ErrorKind::Invalid, message)
        .with_hint("ask over HTTP/1.1 (in nginx: `proxy_http_version 1.1`), or for json or ndjson"))
}

fn snapshot_header(versions: &[(String, Option<u64>)]) -> Option<HeaderValue> {
    if versions.is_empty() {
        return None;
    }
    let named = versions.iter().map(|(table, version)| match version {
        Some(version) => format!("{table}@{version}"),
        None => format!("{table}@none"),
    });
    HeaderValue::from_str(&named.collect::<Vec<_>>().join(", ")).ok()
}

fn unwritable(error: &arrow::error::ArrowError) -> QueryError {
    QueryError::new(ErrorKind::Invalid, format!("the answer cannot be written in this format: {error}"))
        .with_hint("cast the column to VARCHAR, or ask for another format")
}

/// An answer half sent.
struct Sending {
    answer: Answer,
    /// Taken when the last bytes are made.
    encoder: Option<Encoder>,
    started: bool,
}

/// An answer on its way from the task that makes it. The task is another than the connection's, since nobody polls the
/// body of a client that does not read, and its query must end all the same.
struct Making {
    chunks: mpsc::Receiver<Chunk>,
    /// Dropped with the body, which ends the task.
    _task: TaskGroup,
}

impl Making {
    fn begin(answer: Answer, encoder: Encoder) -> Self {
        let (made, chunks) = mpsc::channel(1);
        let task = TaskGroup::new();
        let sending = Sending { answer, encoder: Some(encoder), started: false };
        task.spawn("answer", Fate::Detached, sending.run(made));
        Self { chunks, _task: task }
    }
}

/// The transfer was broken off on purpose; the client was told why where the format has a place for it.
#[derive(Debug, thiserror::Error)]
#[error("answer broken off: {0}")]
struct BrokenOff(QueryError);

/// The bytes of an answer. Dropping the stream stops the query; so does the query's deadline, polled or not.
fn encoded(answer: Answer, encoder: Encoder) -> impl futures::Stream<Item = Result<Bytes, BrokenOff>> + Send {
    let chunks = stream::unfold(Some(Making::begin(answer, encoder)), |making| async move {
        let mut making = making?;
        let chunk = making.chunks.recv().await.unwrap_or_else(Chunk::missing);
        let more = matches!(chunk, Chunk::Bytes(_)).then_some(making);
        Some((chunk, more))
    });
    chunks
        .flat_map(|chunk| match chunk {
            Chunk::Bytes(bytes) | Chunk::Last(bytes) => stream::iter(vec![Step::Send(bytes)]),
            Chunk::BreakOff(bytes, error) => stream::iter(vec![Step::Send(bytes), Step::Pause, Step::Fail(error)]),
        })
        .filter_map(|step| async move {
            match step {
                Step::Send(bytes) if bytes.is_empty() => None,
                Step::Send(bytes) => {
                    metrics::bytes_sent(bytes.len() as u64);
                    Some(Ok(bytes))
                }
                // Lets the connection flush what was sent before it is closed.
                Step::Pause => {
                    tokio::task::yield_now().await;
                    None
                }
                Step::Fail(error) => {
                    tracing::info!(%error, "answer broken off");
                    Some(Err(BrokenOff(error)))
                }
            }
        })
}

enum Chunk {
    Bytes(Bytes),
    /// After which the answer is complete, or says that it is not.
    Last(Bytes),
    BreakOff(Bytes, QueryError),
}

impl Chunk {
    /// What stands for the rest of an answer whose task is gone: only a panic takes it away before the last chunk.
    fn missing() -> Self {
        Self::BreakOff(Bytes::new(), QueryError::new(ErrorKind::Internal, "the answer could not be made to its end"))
    }
}

enum Step {
    Send(Bytes),
    Pause,
    Fail(QueryError),
}

impl Sending {
    /// Makes chunks as they are taken, until the last one, or until nobody is there to take them.
    async fn run(mut self, made: mpsc::Sender<Chunk>) -> anyhow::Result<()> {
        while let Some(encoder) = self.encoder.take() {
            // Room first, then the chunk: rows in hand when time is over would be lost, or held for as long as nobody
            // reads. The start has room, and is made whatever the time: an ending needs it.
            let room = made.reserve();
            let room = if self.started { self.answer.within_its_time(room).await } else { Ok(room.await) };
            match room {
                Ok(Ok(room)) => {
                    let chunk = self.next(encoder).await;
                    room.send(chunk);
                }
                Ok(Err(_nobody_there)) => break,
                Err(error) => {
                    // The query is over. What is left is small, and waits for as long as the connection.
                    let _nobody_there = made.send(ending(&encoder, error)).await;
                }
            }
        }
        Ok(())
    }

    async fn next(&mut self, mut encoder: Encoder) -> Chunk {
        let made = if std::mem::replace(&mut self.started, true) {
            match self.answer.next().await {
                Some(Ok(batch)) => encoder.batch(&batch),
                Some(Err(error)) => return ending(&encoder, error),
                None => return last(encoder),
            }
        } else {
            encoder.start()
        };
        match made {
            Ok(bytes) => {
                self.encoder = Some(encoder);
                Chunk::Bytes(bytes)
            }
            Err(error) => ending(&encoder, unwritable(&error)),
        }
    }
}

fn last(encoder: Encoder) -> Chunk {
    match encoder.finish() {
        Ok(bytes) => Chunk::Last(bytes),
        Err(error) => Chunk::BreakOff(Bytes::new(), unwritable(&error)),
    }
}

fn ending(encoder: &Encoder, error: QueryError) -> Chunk {
    let ending = encoder.fail(&error);
    if ending.broken { Chunk::BreakOff(ending.last, error) } else { Chunk::Last(ending.last) }
}

/// What is told of a table.
#[derive(Debug, Serialize)]
struct TableSummary {
    pipeline: String,
    name: String,
    /// Under the root of the store.
    folder: String,
    /// `null` for a table that was never written, or whose store does not answer.
    version: Option<u64>,
    /// `null` where the log does not say.
    rows: Option<u64>,
    files: usize,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    columns: Option<Vec<ColumnSummary>>,
    partition_by: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ColumnSummary {
    name: String,
    r#type: String,
    nullable: bool,
}

async fn list_tables(State(state): State<AnalysisState>) -> Json<serde_json::Value> {
    let tables = state.queries.tables();
    let declared: Vec<Declared> = tables.iter().cloned().collect();
    let queries = &state.queries;
    let summaries: Vec<TableSummary> = stream::iter(declared)
        .map(|table| async move { summary(queries, &table).await.unwrap_or_else(|error| unknown(&table, &error)) })
        .buffered(LOOK_UPS_AT_ONCE)
        .collect()
        .await;
    Json(serde_json::json!({ "tables": summaries }))
}

async fn describe_table(
    State(state): State<AnalysisState>,
    Path((pipeline, name)): Path<(String, String)>,
) -> Result<Json<TableSummary>, QueryError> {
    let table = find_table(&state, &pipeline, &name)?;
    let mut summary = summary(&state.queries, &table).await?;
    summary.columns = Some(columns_of(&table));
    Ok(Json(summary))
}

/// A table by the names in a path.
pub(crate) fn find_table(state: &AnalysisState, pipeline: &str, name: &str) -> Result<Declared, QueryError> {
    let tables = state.queries.tables();
    tables.get(pipeline, name).cloned().ok_or_else(|| {
        let wanted = format!("{pipeline}.{name}");
        let names: Vec<String> = tables.iter().map(|table| qualified(&table.stage)).collect();
        let error = QueryError::new(ErrorKind::NotFound, format!("table `{wanted}` is not there"));
        match nearest(&wanted, names.iter().map(String::as_str)) {
            Some(near) => error.with_hint(format!("did you mean `{near}`?")),
            None => error.with_hint("GET /v1/tables lists what there is"),
        }
    })
}

async fn summary(queries: &QueryManager, table: &Declared) -> Result<TableSummary, QueryError> {
    let pinned = queries.pin(table).await?;
    let mut summary = nothing_known(table);
    if let Some(files) = pinned {
        summary.version = Some(files.version());
        summary.rows = files.rows();
        summary.files = files.count();
        summary.bytes = files.bytes();
    }
    Ok(summary)
}

fn unknown(table: &Declared, error: &QueryError) -> TableSummary {
    TableSummary { error: Some(error.to_string()), ..nothing_known(table) }
}

fn nothing_known(table: &Declared) -> TableSummary {
    TableSummary {
        pipeline: table.stage.pipeline.clone(),
        name: table.stage.name.clone(),
        folder: table.stage.folder.clone(),
        version: None,
        rows: Some(0),
        files: 0,
        bytes: 0,
        error: None,
        columns: None,
        partition_by: table.stage.partition_by.clone(),
    }
}

fn columns_of(table: &Declared) -> Vec<ColumnSummary> {
    let column = |field: &arrow::datatypes::FieldRef| ColumnSummary {
        name: field.name().clone(),
        r#type: field.data_type().to_string(),
        nullable: field.is_nullable(),
    };
    table.stage.schema.fields().iter().map(column).collect()
}

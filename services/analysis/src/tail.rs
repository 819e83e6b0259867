//! A channel's rows as they arrive: `GET /v1/tail/{pipeline}/{name}?from=end|start|N&limit=N&positions=true`.
//!
//! One JSON object a line, all partitions, those at hand in arrival order. Within a partition the one rule of delivery
//! holds from the first message seen of each writer: repeats are dropped, and a gap ends the tail with an error line
//! and a broken transfer. A tail that begins in the middle of a channel cannot know what a writer wrote before; rows
//! such a writer repeats right then are shown again. Only so many clients may follow at a time. Deliberately absent: a
//! filter (use SQL), and remembering how far a client got: `positions=true` shows it, `from` takes it.

use std::sync::Arc;

use arrow::{
    array::{Int32Array, Int64Array, RecordBatch},
    datatypes::{DataType, Field, Schema},
};
use axum::{
    body::Body,
    extract::{Path, State},
    http::{Uri, header},
    response::{IntoResponse, Response},
};
use batch::{Limits, decode_batch, decode_envelope, rows_from, without_offsets};
use bytes::Bytes;
use delivery::{Ends, Origin, Verdict};
use futures::{Stream, StreamExt, stream};
use lake::{OFFSET_COLUMN, PARTITION_COLUMN};
use runtime::catalog::CatalogReceiver;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use topics::{Log, Message, Reader, TopicError, TopicName};

use crate::{
    AnalysisState,
    api::{find_table, options_of},
    error::{ErrorKind, QueryError},
    format::ndjson_rows,
    metrics,
};

/// Read from one partition before the others get their turn.
const READ_BYTES: usize = 1 << 20;
/// Tails at a time. Each reads every partition of its channel, and those that read the same one on Kafka need a client
/// each, with its threads and connections.
const MOST_TAILS: usize = 64;

/// What may stand in the query string.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TailOptions {
    /// `end` (the default), `start`, or an offset, the same for every partition.
    from: Option<String>,
    /// Rows after which the tail ends.
    limit: Option<u64>,
    /// Whether to show where each row came from.
    #[serde(default)]
    positions: bool,
}

/// Where a tail begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    End,
    Start,
    Offset(u64),
}

fn parse_from(text: Option<&str>) -> Result<Begin, QueryError> {
    match text {
        None | Some("end") => Ok(Begin::End),
        Some("start") => Ok(Begin::Start),
        Some(number) => number.parse().map(Begin::Offset).map_err(|_| {
            QueryError::new(ErrorKind::Invalid, format!("`from={number}` is no place in a channel"))
                .with_hint("`from` is `end`, `start` or an offset")
        }),
    }
}

/// The handler.
pub(crate) async fn tail(
    State(state): State<AnalysisState>,
    Path((pipeline, name)): Path<(String, String)>,
    uri: Uri,
) -> Result<Response, QueryError> {
    let options: TailOptions = options_of(&uri, "it may hold `from`, `limit` and `positions`")?;
    let from = parse_from(options.from.as_deref())?;
    let table = find_table(&state, &pipeline, &name)?;
    let topic = TopicName::try_from(table.stage.channel.clone())
        .map_err(|error| QueryError::new(ErrorKind::Internal, error.to_string()))?;
    let counted = state.tails.begin()?;
    let partitions = open(state.log.as_ref(), &topic, from).await?;
    let positions = options.positions;
    let rows = stream::select_all(partitions.into_iter().map(|partition| Box::pin(partition.rows(positions))));
    let lines = lines(rows, options.limit, counted).take_until(stopped(state.catalog));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

/// Waits until nobody follows the catalog any more, which is when the process stops.
async fn stopped(mut catalog: CatalogReceiver) {
    while catalog.changed().await.is_ok() {}
}

async fn open(log: &dyn Log, topic: &TopicName, from: Begin) -> Result<Vec<Partition>, QueryError> {
    let described = log.describe(topic).await.map_err(|error| explain(&error))?;
    let partitions = described.map(|description| description.partitions).ok_or_else(|| {
        QueryError::new(ErrorKind::Unavailable, format!("channel `{topic}` does not exist yet"))
            .with_hint("it is made when the stage that writes it starts: are ingestion and transformation running?")
    })?;
    let mut opened = Vec::new();
    for number in 0..partitions {
        let span = log.span(topic, number).await.map_err(|error| explain(&error))?;
        let offset = match from {
            Begin::End => span.end,
            Begin::Start => span.start,
            Begin::Offset(offset) => offset,
        };
        let reader = log.reader(topic, number, offset).await.map_err(|error| explain(&error))?;
        opened.push(Partition { number, topic: topic.clone(), reader, ends: Ends::default() });
    }
    Ok(opened)
}

fn explain(error: &TopicError) -> QueryError {
    let kind = match error {
        TopicError::OffsetGone { .. } | TopicError::OffsetAhead { .. } => ErrorKind::Invalid,
        _ => ErrorKind::Unavailable,
    };
    QueryError::new(kind, error.to_string())
}

/// One partition of a channel being tailed.
struct Partition {
    number: u32,
    topic: TopicName,
    reader: Box<dyn Reader>,
    ends: Ends,
}

impl Partition {
    /// Batches of rows, for ever or up to an error.
    fn rows(self, positions: bool) -> impl Stream<Item = Result<RecordBatch, QueryError>> + Send {
        let messages = stream::unfold(Some(self), move |partition| async move {
            let mut partition = partition?;
            match partition.reader.read(READ_BYTES).await {
                Ok(messages) => {
                    let batches = partition.batches(&messages, positions);
                    let failed = batches.last().is_some_and(Result::is_err);
                    Some((batches, (!failed).then_some(partition)))
                }
                Err(error) => Some((vec![Err(explain(&error))], None)),
            }
        });
        messages.flat_map(stream::iter)
    }

    /// The rows of messages, up to the first that cannot be read.
    fn batches(&mut self, messages: &[Message], positions: bool) -> Vec<Result<RecordBatch, QueryError>> {
        let mut batches = Vec::new();
        for message in messages {
            match self.batch(message, positions) {
                Ok(None) => {}
                Ok(Some(batch)) => batches.push(Ok(batch)),
                Err(text) => {
                    let message = format!("message {}/{}@{}: {text}", self.topic, self.number, message.offset);
                    batches.push(Err(QueryError::new(ErrorKind::Internal, message)));
                    break;
                }
            }
        }
        batches
    }

    fn batch(&mut self, message: &Message, positions: bool) -> Result<Option<RecordBatch>, String> {
        let envelope = decode_envelope(&message.headers).map_err(|error| error.to_string())?;
        let origin = envelope.origin;
        if !self.ends.iter().any(|(writer, _)| *writer == origin.writer) {
            self.ends.set(origin.writer.clone(), origin.from);
        }
        let verdict = self.ends.accept(&origin).map_err(|gap| gap.to_string())?;
        let Verdict::Take { from } = verdict else { return Ok(None) };
        if envelope.rows == 0 {
            return Ok(None);
        }
        let whole = decode_batch(&message.payload, &Limits::default()).map_err(|error| error.to_string())?;
        let kept = rows_from(&whole, &origin, from);
        if kept.num_rows() == 0 {
            return Ok(None);
        }
        let (rows, relative) = without_offsets(&kept).map_err(|error| error.to_string())?;
        if !positions {
            return Ok(Some(rows));
        }
        with_positions(&rows, self.number, &relative, &origin).map(Some).map_err(|error| error.to_string())
    }
}

/// Adds the columns `table$positions` has.
fn with_positions(
    rows: &RecordBatch,
    partition: u32,
    relative: &Int64Array,
    origin: &Origin,
) -> Result<RecordBatch, arrow::error::ArrowError> {
    let first = i64::try_from(origin.from.offset).unwrap_or(i64::MAX);
    let offsets: Int64Array = relative.iter().map(|offset| offset.map(|offset| first.saturating_add(offset))).collect();
    let number = i32::try_from(partition).unwrap_or(i32::MAX);
    let mut fields: Vec<_> = rows.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(PARTITION_COLUMN, DataType::Int32, false)));
    fields.push(Arc::new(Field::new(OFFSET_COLUMN, DataType::Int64, true)));
    let mut columns = rows.columns().to_vec();
    columns.push(Arc::new(Int32Array::from(vec![number; rows.num_rows()])));
    columns.push(Arc::new(offsets));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// The tails of a process.
#[derive(Clone, Debug)]
pub struct Tails {
    places: Arc<Semaphore>,
}

impl Default for Tails {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(MOST_TAILS)) }
    }
}

impl Tails {
    fn begin(&self) -> Result<Counted, QueryError> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            QueryError::new(ErrorKind::TooMany, format!("{MOST_TAILS} clients follow channels already"))
                .with_hint("try again when one has gone, or ask for what is in the table with SQL")
        })?;
        metrics::tail_started();
        Ok(Counted { _place: place })
    }
}

/// A running tail, counted, in its place.
struct Counted {
    _place: OwnedSemaphorePermit,
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::tail_ended();
    }
}

/// Rows as lines; at most `limit` of them. An error is the last line, then the transfer breaks.
fn lines(
    rows: impl Stream<Item = Result<RecordBatch, QueryError>> + Send,
    limit: Option<u64>,
    counted: Counted,
) -> impl Stream<Item = Result<Bytes, QueryError>> + Send {
    let left = limit.unwrap_or(u64::MAX);
    let state = (Box::pin(rows), left, None, counted);
    stream::unfold(state, |(mut rows, left, failed, counted)| async move {
        if let Some(error) = failed {
            // Lets the connection flush the error line before it is closed.
            tokio::task::yield_now().await;
            return Some((Err(error), (rows, 0, None, counted)));
        }
        if left == 0 {
            return None;
        }
        let line = |batch: RecordBatch| {
            let taken = batch.num_rows().min(usize::try_from(left).unwrap_or(usize::MAX));
            let bytes = ndjson_rows(&batch.slice(0, taken));
            let bytes = bytes.map_err(|error| QueryError::new(ErrorKind::Internal, error.to_string()));
            bytes.map(|bytes| (bytes, taken as u64))
        };
        match rows.next().await?.and_then(line) {
            Ok((bytes, taken)) => Some((Ok(bytes), (rows, left - taken, None, counted))),
            Err(error) => {
                let last = Bytes::from(format!("{}\n", error.to_json()));
                Some((Ok(last), (rows, 0, Some(error), counted)))
            }
        }
    })
}

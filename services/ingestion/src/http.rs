//! The HTTP door: events in, and the catalog.
//!
//! `POST /v1/ingest/{pipeline}/{source}` appends a body, as it came, to the source's topic; the answer is sent when
//! every part is durable. Rows are judged behind the topic, so a 200 says that the bytes are safe, not that they are
//! good: bad rows show up in the table `<source>_rejected`. An answer that is not 200 says whether something may be
//! stored all the same; a request with an `Idempotency-Key` can be sent again without doubling any of it.
//!
//! Deliberately absent: login, and judging what is a repeat: the task behind the topic does (`sieve`).

mod body;
mod parts;
mod refusal;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, State, rejection::JsonRejection},
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use delivery::CrashPoint;
use futures::{FutureExt as _, future::BoxFuture};
use pipeline::{Format, SourceStage};
use runtime::{
    catalog::{self, ApplyAnswer, ApplyError, ApplyRequest, CatalogReceiver, CatalogView},
    config::IngestionConfig,
    memory::Memory,
    telemetry::{self, names},
};
use serde::Serialize;
use tokio::sync::Mutex;
use topics::{Description, Headers, Log, NewMessage, TopicError, TopicName};
use tracing::{Instrument as _, Span};

use self::{
    body::{BodyLimits, Packing},
    parts::{Parts, memory_factor, split},
    refusal::{Refusal, unanswered, undone},
};
use crate::{
    decode::{CONTENT_TYPE, Encoding},
    keys::{HTTP_KEY, Key, KeyFault},
    metrics,
    worker::{MAX_TRACEPARENT_BYTES, TRACEPARENT},
};

/// How long a request waits for its rows to be durable: less than clients and proxies wait for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// How long a topic's number of partitions is believed.
const PARTITIONS_FRESH_FOR: Duration = Duration::from_secs(10);
const TRACE_HEADER: HeaderName = HeaderName::from_static(TRACEPARENT);
/// A catalog change is a few files of SQL.
const MAX_APPLY_BYTES: usize = 16 << 20;

/// Changes the catalog.
pub type Apply = Arc<dyn Fn(ApplyRequest) -> BoxFuture<'static, Result<ApplyAnswer, ApplyError>> + Send + Sync>;

/// What requests share.
pub struct Door {
    log: Arc<dyn Log>,
    catalog: CatalogReceiver,
    apply: Apply,
    limits: BodyLimits,
    memory: Memory,
    partitions: Mutex<BTreeMap<TopicName, (Instant, u32)>>,
    next_partition: AtomicU32,
}

impl Door {
    /// A door to the topics of `log`. Catalog changes go through [`runtime::catalog::apply`].
    pub fn new(log: Arc<dyn Log>, catalog: CatalogReceiver, config: &IngestionConfig, memory: Memory) -> Self {
        let catalog_log = Arc::clone(&log);
        let apply: Apply = Arc::new(move |request| {
            let log = Arc::clone(&catalog_log);
            async move { catalog::apply(log.as_ref(), &request).await }.boxed()
        });
        Self::with_apply(log, catalog, config, memory, apply)
    }

    /// A door with another way to change the catalog.
    pub fn with_apply(
        log: Arc<dyn Log>,
        catalog: CatalogReceiver,
        config: &IngestionConfig,
        memory: Memory,
        apply: Apply,
    ) -> Self {
        let limits = BodyLimits {
            max_body_bytes: config.max_body_bytes.as_usize(),
            max_decompressed_bytes: config.max_decompressed_bytes.as_usize(),
        };
        Self { log, catalog, apply, limits, memory, partitions: Mutex::default(), next_partition: AtomicU32::new(0) }
    }
}

/// The routes of ingestion, to serve alone or to merge into another router.
pub fn router(door: Arc<Door>) -> Router {
    Router::new()
        .route("/v1/ingest/{pipeline}/{source}", post(ingest))
        .route("/v1/sources", get(sources))
        .route("/v1/catalog", post(change_catalog).layer(DefaultBodyLimit::max(MAX_APPLY_BYTES)))
        .with_state(door)
}

#[derive(Serialize)]
struct Ingested {
    parts: Vec<PartPlace>,
    /// Of the body, unpacked.
    bytes: usize,
}

#[derive(Serialize)]
struct PartPlace {
    topic: String,
    partition: u32,
    offset: u64,
}

async fn ingest(
    State(door): State<Arc<Door>>,
    Path((pipeline, source)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let started = Instant::now();
    let span = telemetry::span_from(text_of(&headers, &TRACE_HEADER), send_span(&pipeline, &source));
    let outcome = door.ingest(&pipeline, &source, &headers, body).instrument(span).await;
    let status = outcome.as_ref().map_or_else(|refusal| refusal.status, |_| StatusCode::OK);
    metrics::count_request(status.as_u16(), outcome.as_ref().map_or(0, |ingested| ingested.bytes), started.elapsed());
    match outcome {
        Ok(ingested) => Json(ingested).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

fn send_span(pipeline: &str, source: &str) -> Span {
    tracing::info_span!(
        "send",
        otel.name = format!("send {pipeline}.{source}"),
        otel.kind = "producer",
        { names::MESSAGING_OPERATION_TYPE } = names::SEND,
        { names::MESSAGING_DESTINATION_NAME } = format!("{pipeline}.{source}"),
    )
}

/// What messages of this request carry: the request's own span, or where none is recorded what the client sent.
fn trace_of(headers: &HeaderMap) -> Option<Bytes> {
    let own = telemetry::current_traceparent().map(Bytes::from);
    let given = headers.get(TRACE_HEADER).filter(|trace| trace.len() <= MAX_TRACEPARENT_BYTES);
    own.or_else(|| given.map(|trace| Bytes::copy_from_slice(trace.as_bytes())))
}

impl Door {
    async fn ingest(&self, pipeline: &str, source: &str, headers: &HeaderMap, body: Body) -> Result<Ingested, Refusal> {
        let source = self.find(pipeline, source).await?;
        let encoding = encoding_of(headers, &source)?;
        let packing = packing_of(headers)?;
        let key = key_of(headers)?;
        let announced = text_of(headers, &header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
        let (body, mut share) = body::read(body, announced, packing, self.limits, &self.memory).await?;
        body::grow(&mut share, memory_factor(encoding) * body.len())?;
        let parts = runtime::tasks::compute(|| split(&body, encoding, source.spec.options.csv_delimiter))?;
        let keyed = key.is_some();
        let appended = tokio::time::timeout(ANSWER_WITHIN, self.append(&source, parts, headers, key)).await;
        drop(share);
        Ok(Ingested { parts: appended.unwrap_or_else(|_| Err(unanswered(keyed, ANSWER_WITHIN)))?, bytes: body.len() })
    }

    /// A process that has just started does not call unknown what it has not read of yet.
    async fn find(&self, pipeline: &str, name: &str) -> Result<SourceStage, Refusal> {
        let view = catalog::when_replayed(&self.catalog).await?;
        let found = view.graph.sources.iter().find(|source| source.pipeline == pipeline && source.name == name);
        found.cloned().ok_or_else(|| unknown(&view, pipeline, name))
    }

    /// Appends all parts, then waits for all of them.
    async fn append(
        &self,
        source: &SourceStage,
        parts: Parts,
        headers: &HeaderMap,
        key: Option<Key>,
    ) -> Result<Vec<PartPlace>, Refusal> {
        let topic = TopicName::try_from(source.topic.clone())
            .map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error, "rename the source"))?;
        let partitions = self.partitions_of(&topic).await?;
        let common = common_headers(parts.content_type, headers);
        let appender = self.log.appender();
        let messages = parts.into_messages();
        let mut receipts = Vec::with_capacity(messages.len());
        for (payload, stretch) in messages {
            let partition = self.partition(source, key.as_ref(), partitions);
            let mut message = NewMessage { payload, headers: common.clone(), ..NewMessage::default() };
            message.headers.extend(key.iter().flat_map(|key| key.headers(&stretch)));
            let others = !receipts.is_empty();
            let receipt = appender.append(&topic, partition, message).await;
            receipts.push((partition, receipt.map_err(|error| undone(error, others, key.is_some()))?));
        }
        let several = receipts.len() > 1;
        let mut places = Vec::with_capacity(receipts.len());
        for (partition, receipt) in receipts {
            let offset = receipt.await.map_err(|error| undone(error, several, key.is_some()))?;
            places.push(PartPlace { topic: source.topic.clone(), partition, offset });
        }
        CrashPoint::RequestDurable.pass();
        Ok(places)
    }

    /// A producer keeps its partition, whose task can tell its repeats; other parts take turns.
    ///
    /// Where the definition says how many partitions there are, a topic that grows beyond does not move producers.
    fn partition(&self, source: &SourceStage, key: Option<&Key>, partitions: u32) -> u32 {
        match key {
            Some(key) => key.partition(source.spec.options.partitions.unwrap_or(partitions).clamp(1, partitions)),
            None => self.next_partition.fetch_add(1, Ordering::Relaxed) % partitions,
        }
    }

    async fn partitions_of(&self, topic: &TopicName) -> Result<u32, Refusal> {
        if let Some((asked, partitions)) = self.partitions.lock().await.get(topic)
            && asked.elapsed() < PARTITIONS_FRESH_FOR
        {
            return Ok(*partitions);
        }
        let Some(description) = self.description_of(topic).await? else {
            let hint = "it is created soon after its source; if not, see log.create_missing_topics";
            return Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("topic `{topic}` does not exist yet"),
                hint,
            ));
        };
        let partitions = description.partitions.max(1);
        self.partitions.lock().await.insert(topic.clone(), (Instant::now(), partitions));
        Ok(partitions)
    }

    /// A source that was applied a moment ago has its topic a moment later: worth waiting for.
    async fn description_of(&self, topic: &TopicName) -> Result<Option<Description>, TopicError> {
        let deadline = Instant::now() + TOPIC_WITHIN;
        loop {
            let description = self.log.describe(topic).await?;
            if description.is_some() || Instant::now() >= deadline {
                return Ok(description);
            }
            tokio::time::sleep(TOPIC_POLL).await;
        }
    }
}

/// Says what there is that looks like what was asked for.
fn unknown(view: &CatalogView, pipeline: &str, name: &str) -> Refusal {
    let pipelines: Vec<&str> = view.catalog.pipelines().into_iter().collect();
    if !pipelines.contains(&pipeline) {
        return Refusal::not_found(format!("there is no pipeline `{pipeline}`"), did_you_mean(pipeline, pipelines));
    }
    let sources = view.graph.sources.iter().filter(|source| source.pipeline == pipeline);
    let hint = did_you_mean(name, sources.map(|source| source.name.as_str()).collect());
    Refusal::not_found(format!("pipeline `{pipeline}` has no source `{name}`"), hint)
}

/// How long a request waits for its source's topic to be created.
const TOPIC_WITHIN: Duration = Duration::from_secs(20);
/// How often it looks.
const TOPIC_POLL: Duration = Duration::from_millis(50);

/// At most this many names are listed where none is near.
const MAX_LISTED: usize = 10;

fn did_you_mean(wanted: &str, mut names: Vec<&str>) -> String {
    let near = names.iter().map(|name| (strsim::damerau_levenshtein(wanted, name), *name)).min();
    names.sort_unstable();
    match near {
        None => "there are none yet; apply a pipeline first".to_owned(),
        Some((slips, name)) if slips <= 1 + wanted.chars().count() / 3 => format!("did you mean `{name}`?"),
        Some(_) => {
            let more = if names.len() > MAX_LISTED { ", …" } else { "" };
            names.truncate(MAX_LISTED);
            format!("there is: {}{more}", names.join(", "))
        }
    }
}

fn common_headers(content_type: &'static str, headers: &HeaderMap) -> Headers {
    let mut common = vec![(CONTENT_TYPE.to_owned(), Bytes::from_static(content_type.as_bytes()))];
    common.extend(trace_of(headers).map(|trace| (TRACEPARENT.to_owned(), trace)));
    common
}

fn key_of(headers: &HeaderMap) -> Result<Option<Key>, Refusal> {
    let Some(value) = headers.get(HTTP_KEY) else { return Ok(None) };
    let text = value.to_str().map_err(|_| KeyFault::Shape { found: "(not text)".to_owned() });
    let hint = "send `Idempotency-Key: <producer>:<sequence>`, for example `till-7:42`, the sequence rising by one from \
                request to request of the producer";
    text.and_then(Key::parse).map(Some).map_err(|fault| Refusal::bad(format!("idempotency key: {fault}"), hint))
}

fn text_of<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A body without a content type is of the source's own format.
fn encoding_of(headers: &HeaderMap, source: &SourceStage) -> Result<Encoding, Refusal> {
    let csv_header = source.spec.options.csv_header;
    let Some(content_type) = headers.get(header::CONTENT_TYPE) else {
        return Ok(match source.spec.format {
            Format::Json => Encoding::Json { lines: false },
            Format::Csv => Encoding::Csv { header: csv_header },
            Format::Arrow => Encoding::Arrow,
        });
    };
    let known = content_type.to_str().ok().and_then(|text| Encoding::from_content_type(text, csv_header));
    known.ok_or_else(|| {
        let found = String::from_utf8_lossy(content_type.as_bytes()).into_owned();
        let hint = "send content-type: application/json, application/x-ndjson, text/csv; header=present, or \
                    application/vnd.apache.arrow.stream";
        Refusal::bad(format!("content type `{found}` is not one that can be read"), hint)
    })
}

fn packing_of(headers: &HeaderMap) -> Result<Packing, Refusal> {
    let Some(name) = headers.get(header::CONTENT_ENCODING) else { return Ok(Packing::Identity) };
    name.to_str().ok().and_then(Packing::from_name).ok_or_else(|| {
        let found = String::from_utf8_lossy(name.as_bytes()).into_owned();
        Refusal::bad(format!("content encoding `{found}` is not one that can be read"), "send gzip, zstd or none")
    })
}

#[derive(Serialize)]
struct SourceEntry {
    pipeline: String,
    name: String,
    incarnation: u64,
    topic: String,
    landing: bool,
    format: &'static str,
    columns: Vec<ColumnEntry>,
    ingest: String,
}

#[derive(Serialize)]
struct ColumnEntry {
    name: String,
    r#type: String,
    nullable: bool,
}

async fn sources(State(door): State<Arc<Door>>) -> Result<Json<Vec<SourceEntry>>, Refusal> {
    let view = catalog::when_replayed(&door.catalog).await?;
    Ok(Json(view.graph.sources.iter().map(entry).collect()))
}

fn entry(source: &SourceStage) -> SourceEntry {
    let column = |field: &Arc<arrow::datatypes::Field>| ColumnEntry {
        name: field.name().clone(),
        r#type: field.data_type().to_string(),
        nullable: field.is_nullable(),
    };
    SourceEntry {
        pipeline: source.pipeline.clone(),
        name: source.name.clone(),
        incarnation: source.incarnation,
        topic: source.topic.clone(),
        landing: source.landing,
        format: source.spec.format.name(),
        columns: source.schema.fields().iter().map(column).collect(),
        ingest: format!("/v1/ingest/{}/{}", source.pipeline, source.name),
    }
}

async fn change_catalog(
    State(door): State<Arc<Door>>,
    request: Result<Json<ApplyRequest>, JsonRejection>,
) -> Result<Json<ApplyAnswer>, Refusal> {
    let Json(request) = request.map_err(|fault| {
        let hint = "send {\"pipeline\": …, \"files\": [{\"file\": …, \"text\": …}], \"replace\": false, \"drop\": false, \
                    \"dry_run\": false} with content-type: application/json";
        Refusal::new(fault.status(), fault.body_text(), hint)
    })?;
    Ok(Json((door.apply)(request).await?))
}

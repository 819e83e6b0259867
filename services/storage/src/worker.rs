//! One task: some partitions of a channel into one table.
//!
//! The loop reads whichever partition has messages, adds their rows to files at once, and flushes by bytes, rows and
//! age. A flush (close, upload, commit) runs beside the reading, one at a time; when the next buffer is full before it
//! is done, reading waits. A commit that was fenced ends this life: the next begins at the table.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use batch::{Envelope, Limits, Port, decode_batch, decode_envelope, rows_from};
use delivery::{CrashPoint, Verdict};
use futures::{
    FutureExt as _, StreamExt as _, TryStreamExt as _,
    future::BoxFuture,
    stream::{self, FuturesUnordered},
};
use lake::{Commit, CommitOutcome, EncodedFile, FileWriter, Lake, Table, TableSpec, WriterOptions};
use pipeline::TableStage;
use runtime::{
    clock::{Clock as _, SystemClock},
    config::Config,
    edges::Edges,
    retry::TaskError,
    supervisor::{self, Settlements},
    tasks::{Stop, compute},
    telemetry,
};
use tokio::time::Instant;
use topics::{Message, Reader, TopicError, TopicName};
use tracing::Instrument as _;

use crate::{
    buffer::{FlushPolicy, Level, Share, SharedMemory, table_rows, table_schema},
    metrics,
    progress::Progress,
    upkeep::Upkeep,
};

/// How much is read from a partition at once.
const READ_BYTES: usize = 4 << 20;

/// Files of one flush that are sent at the same time: a table of many partitions has many small ones.
const UPLOADS_AT_ONCE: usize = 8;

/// Progress without rows is committed this often, or after `storage.quiet_age`.
const IDLE_COMMIT_EVERY: Duration = Duration::from_secs(60);

/// A table, and the channel partitions to be committed to it.
pub(crate) struct Assignment {
    pub(crate) table: TableStage,
    pub(crate) channel: TopicName,
    pub(crate) partitions: BTreeSet<u32>,
}

impl Assignment {
    pub(crate) fn key(&self) -> String {
        let partitions: Vec<String> = self.partitions.iter().map(u32::to_string).collect();
        format!("{}.{}.{}/{}", self.table.pipeline, self.table.name, self.table.incarnation, partitions.join(","))
    }

    fn table_name(&self) -> String {
        format!("{}.{}", self.table.pipeline, self.table.name)
    }
}

type Reading = BoxFuture<'static, (u32, Box<dyn Reader>, Result<Vec<Message>, TopicError>)>;

/// A running task.
pub(crate) struct Worker {
    assignment: Arc<Assignment>,
    lake: Lake,
    spec: TableSpec,
    schema: SchemaRef,
    options: WriterOptions,
    policy: FlushPolicy,
    settlements: Settlements,
    readings: FuturesUnordered<Reading>,
    /// What has been read and taken, committed or not.
    progress: Progress,
    /// What the table has, once the flush under way is done.
    flushed: Progress,
    files: Option<FileWriter>,
    level: Level,
    newest_event: Option<i64>,
    traceparent: Option<String>,
    /// At home when no flush is under way.
    table: Option<Table>,
    memory: SharedMemory,
    /// Of the buffer that is being filled.
    share: Share,
    upkeep: Upkeep,
}

/// A flush under way.
type Flush = BoxFuture<'static, Result<Table, TaskError>>;

enum Event {
    Stop,
    Messages(u32, Box<dyn Reader>, Result<Vec<Message>, TopicError>),
    Flushed(Box<Result<Table, TaskError>>),
    /// Time passed, or upkeep is done: look again at what is due.
    Due,
}

impl Worker {
    /// Opens the table and reads each partition on from the offset in the table.
    pub(crate) async fn start(
        config: &Config,
        edges: &Edges,
        settlements: Settlements,
        memory: SharedMemory,
        assignment: Arc<Assignment>,
    ) -> Result<Self, TaskError> {
        let schema = table_schema(&assignment.table.schema);
        let spec = table_spec(&assignment.table, &schema);
        let table = Table::open_or_create(&edges.lake, &spec).await?;
        let channel = assignment.channel.as_str();
        let progress = Progress::read(channel, &assignment.partitions, &table.progress().txns);
        let readings = FuturesUnordered::new();
        for &partition in &assignment.partitions {
            let from = progress.next_offset(partition);
            let reader = edges.log.reader(&assignment.channel, partition, from).await?;
            readings.push(read(partition, reader));
        }
        tracing::info!(task = assignment.key(), version = table.progress().version, "storage task started");
        Ok(Self {
            lake: edges.lake.clone(),
            spec,
            schema,
            options: WriterOptions { compression_level: config.storage.compression_level, ..WriterOptions::default() },
            policy: FlushPolicy {
                bytes: config.storage.flush_bytes.as_usize(),
                rows: config.storage.flush_rows,
                age: config.storage.flush_age.into(),
                idle_age: IDLE_COMMIT_EVERY,
                quiet_age: config.storage.quiet_age.into(),
            },
            settlements,
            readings,
            flushed: progress.clone(),
            progress,
            files: None,
            level: Level::default(),
            newest_event: None,
            traceparent: None,
            table: Some(table),
            share: memory.share(),
            memory,
            upkeep: Upkeep::default(),
            assignment,
        })
    }

    /// Works until asked to stop, then commits what it holds.
    pub(crate) async fn run(mut self, stop: &Stop, reached: &supervisor::Progress) -> Result<(), TaskError> {
        let mut flush: Option<Flush> = None;
        loop {
            if flush.is_none() && self.flush_is_due() {
                // What is being committed is not done with: a commit that never ends must not look like progress.
                self.report(&self.flushed, reached);
                flush = Some(self.begin_flush()?);
            }
            if flush.is_none() {
                self.report(&self.progress, reached);
            }
            match self.next_event(stop, flush.as_mut()).await {
                Event::Stop => break,
                Event::Messages(partition, reader, messages) => {
                    self.take(partition, messages?)?;
                    self.readings.push(read(partition, reader));
                }
                Event::Flushed(outcome) => {
                    flush = None;
                    self.end_flush((*outcome)?);
                }
                Event::Due => {}
            }
        }
        if let Some(flush) = flush {
            let table = flush.await?;
            self.end_flush(table);
        }
        let flush = self.begin_flush()?;
        let table = flush.await?;
        self.end_flush(table);
        Ok(())
    }

    fn report(&self, progress: &Progress, reached: &supervisor::Progress) {
        for &partition in &self.assignment.partitions {
            reached.reached(&self.assignment.channel, partition, progress.next_offset(partition));
        }
    }

    /// Finished work before new work; no new work while a full buffer waits for the flush under way.
    async fn next_event(&mut self, stop: &Stop, flush: Option<&mut Flush>) -> Event {
        let flushing = flush.is_some();
        let full = flushing && (self.policy.is_full(&self.level) || self.is_crowded());
        let due = if flushing { None } else { self.policy.due(&self.level) };
        let flushed = async {
            match flush {
                Some(flush) => flush.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.stopped() => Event::Stop,
            outcome = flushed => Event::Flushed(Box::new(outcome)),
            () = sleep_until(due) => Event::Due,
            () = self.upkeep.done() => Event::Due,
            Some((partition, reader, messages)) = self.readings.next(), if !full => {
                Event::Messages(partition, reader, messages)
            }
        }
    }

    fn flush_is_due(&self) -> bool {
        let aged = self.policy.due(&self.level).is_some_and(|due| due <= Instant::now());
        aged || self.is_crowded() || self.policy.is_full(&self.level)
    }

    /// All tables together hold too much, and this one holds something.
    fn is_crowded(&self) -> bool {
        self.level.bytes > 0 && self.memory.is_exhausted()
    }

    fn take(&mut self, partition: u32, messages: Vec<Message>) -> Result<(), TaskError> {
        for message in messages {
            compute(|| self.take_message(partition, &message))
                .map_err(|error| self.placed(partition, &message, error))?;
        }
        self.level.bytes = self.files.as_ref().map_or(0, FileWriter::buffered_bytes);
        self.share.set(self.level.bytes);
        self.level.rows = self.files.as_ref().map_or(0, FileWriter::rows);
        ::metrics::gauge!(metrics::BUFFERED_BYTES, "table" => self.assignment.table_name())
            .set(self.level.bytes as f64);
        Ok(())
    }

    fn take_message(&mut self, partition: u32, message: &Message) -> anyhow::Result<()> {
        let envelope = decode_envelope(&message.headers)?;
        let before = self.progress.totals(partition, &envelope.origin.writer);
        let verdict = self.progress.accept(partition, message.offset, &envelope.origin, envelope.totals)?;
        let taken = match verdict {
            Verdict::Take { from } => {
                Some(rows_from(&decode_batch(&message.payload, &Limits::default())?, &envelope.origin, from))
            }
            Verdict::Repeat => {
                ::metrics::counter!(metrics::REPEATS).increment(1);
                None
            }
            Verdict::Heartbeat => None,
        };
        let rows = taken.as_ref().map_or(0, RecordBatch::num_rows);
        if envelope.port == Port::Data {
            self.progress.audit(partition, &envelope.origin, before.emitted + rows as u64, envelope.totals)?;
        }
        if let Some(taken) = taken {
            self.buffer(&table_rows(&self.schema, &taken, partition, envelope.origin.from.offset)?, envelope)?;
        }
        self.level.note(rows, Instant::now());
        Ok(())
    }

    fn buffer(&mut self, rows: &RecordBatch, envelope: Envelope) -> anyhow::Result<()> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let files = match &mut self.files {
            Some(files) => files,
            none => none.insert(FileWriter::new(&self.lake, &self.spec, self.options)?),
        };
        files.write(rows)?;
        self.newest_event = self.newest_event.max(envelope.event_time.map(|(_, newest)| newest));
        if self.traceparent.is_none() {
            self.traceparent = envelope.traceparent;
        }
        Ok(())
    }

    /// A channel that cannot be read on: skipping would lose rows, so the task halts.
    fn placed(&self, partition: u32, message: &Message, error: anyhow::Error) -> TaskError {
        TaskError::stop(error.context(format!("message {}/{partition}@{}", self.assignment.channel, message.offset)))
    }

    /// Hands what is held to a flush; reading goes on into a new buffer.
    fn begin_flush(&mut self) -> Result<Flush, TaskError> {
        let table = self.table.take().ok_or_else(|| TaskError::stop(anyhow::anyhow!("two flushes at once")))?;
        let advances =
            self.progress.advances(self.assignment.channel.as_str(), &self.flushed).map_err(TaskError::stop)?;
        self.flushed = self.progress.clone();
        self.level = Level::default();
        let flush = FlushJob {
            table,
            share: std::mem::replace(&mut self.share, self.memory.share()),
            lake: self.lake.clone(),
            files: self.files.take(),
            advances,
            name: self.assignment.table_name(),
            newest_event: self.newest_event.take(),
        };
        let span = tracing::info_span!("commit", otel.name = format!("settle {}", self.assignment.channel));
        if let Some(traceparent) = self.traceparent.take() {
            telemetry::set_parent(&span, &traceparent);
        }
        Ok(flush.run().instrument(span).boxed())
    }

    fn end_flush(&mut self, mut table: Table) {
        self.upkeep.begin(&mut table);
        for &partition in &self.assignment.partitions {
            let offset = self.flushed.next_offset(partition);
            self.settlements.settle(&self.assignment.channel, partition, offset);
        }
        self.table = Some(table);
    }
}

/// One flush: close the files, upload them, commit.
struct FlushJob {
    table: Table,
    share: Share,
    lake: Lake,
    files: Option<FileWriter>,
    advances: Vec<lake::Advance>,
    name: String,
    newest_event: Option<i64>,
}

impl FlushJob {
    async fn run(mut self) -> Result<Table, TaskError> {
        if self.advances.is_empty() {
            return Ok(self.table);
        }
        // The bytes are held until they are committed, or given up.
        let _held = self.share;
        let started = std::time::Instant::now();
        let encoded = self.files.take().map_or_else(|| Ok(Vec::new()), |writer| compute(|| writer.close()))?;
        let upload = |file: EncodedFile| {
            let lake = self.lake.clone();
            async move { file.upload(&lake).await }
        };
        let files: Vec<_> = stream::iter(encoded).map(upload).buffered(UPLOADS_AT_ONCE).try_collect().await?;
        CrashPoint::FilesUploaded.pass();
        let rows: u64 = files.iter().map(|file| file.rows).sum();
        let commit = Commit { files, advances: self.advances, info: serde_json::Map::new() };
        let outcome = self.table.commit(commit).await?;
        ::metrics::histogram!(metrics::FLUSH_SECONDS).record(started.elapsed().as_secs_f64());
        match outcome {
            CommitOutcome::Committed { version, .. } => {
                tracing::debug!(table = self.name, version, rows, "committed");
                record_commit(&self.name, rows, self.newest_event);
                Ok(self.table)
            }
            CommitOutcome::Fenced { app_id, stored } => {
                ::metrics::counter!(metrics::COMMITS, "outcome" => "fenced").increment(1);
                Err(TaskError::retry(anyhow::anyhow!(
                    "another owner has moved `{app_id}` to {stored}; reading on from the table"
                )))
            }
        }
    }
}

fn record_commit(table: &str, rows: u64, newest_event: Option<i64>) {
    ::metrics::counter!(metrics::COMMITS, "outcome" => "committed").increment(1);
    ::metrics::counter!(metrics::ROWS_STORED, "table" => table.to_owned()).increment(rows);
    if let Some(newest) = newest_event {
        let age_ms = SystemClock.now_ms() - newest / 1000;
        ::metrics::gauge!(metrics::FRESHNESS_SECONDS, "table" => table.to_owned()).set(age_ms as f64 / 1000.0);
    }
}

fn read(partition: u32, mut reader: Box<dyn Reader>) -> Reading {
    async move {
        let messages = reader.read(READ_BYTES).await;
        (partition, reader, messages)
    }
    .boxed()
}

async fn sleep_until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// Statistics for the declared columns, the event time, and the columns that tell where a row came from.
fn table_spec(table: &TableStage, schema: &SchemaRef) -> TableSpec {
    let mut statistics = table.statistics.clone();
    let positions = [crate::buffer::PARTITION_COLUMN.to_owned(), batch::OFFSET_COLUMN.to_owned()];
    for column in table.event_time.iter().cloned().chain(positions) {
        if !statistics.contains(&column) {
            statistics.push(column);
        }
    }
    TableSpec {
        folder: table.folder.clone(),
        name: format!("{}.{}", table.pipeline, table.name),
        schema: Arc::clone(schema),
        partition_by: table.partition_by.clone(),
        statistics,
    }
}

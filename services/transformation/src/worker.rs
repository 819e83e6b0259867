//! One task: one branch of a view over one partition of its input.
//!
//! The loop reads what is at hand, runs the plan message by message (a message is a unit), writes the outcome as one
//! stretch, and now and then makes everything durable and puts a checkpoint. State lives in `self`; a failed life is
//! begun anew from the checkpoint (`runtime::input`).

use std::{
    sync::Arc,
    time::{Duration, Instant as Clock},
};

use arrow::{
    array::{BooleanArray, Int64Array, RecordBatch},
    buffer::BooleanBuffer,
    compute::{concat_batches, filter_record_batch},
    datatypes::SchemaRef,
};
use batch::{Limits, decode_batch, decode_envelope, rows_from, without_offsets};
use delivery::{Checkpoint, CrashPoint, Position, Totals, Verdict, Writer};
use engine::{EngineError, RowProgram};
use lake::Checkpoints;
use pipeline::{Branch, ViewStage};
use runtime::{
    channel_writer::{ChannelWriter, ChannelWriterOptions, PortTarget, Rows, Stretch},
    channels,
    config::Config,
    dead_letters::{DeadLetter, DeadLetters},
    edges::Edges,
    input::Input,
    memory::{Memory, RunShare},
    retry::TaskError,
    row_limits::RowLimits,
    supervisor::{Progress, Settlements},
    tasks::{Stop, compute},
    telemetry::{self, names},
};
use tokio::time::Instant;
use topics::{Message, Reader, TopicName};
use tracing::Span;

use crate::metrics;

/// The most that is read before it is written: it bounds the repeat after a crash, and how long others wait for memory.
const MOST_READ_BYTES: usize = 4 << 20;
/// A read takes about this many times its size while its rows are decoded, transformed and written.
const READ_FACTOR: usize = 16;

/// A branch of a view, and the input partition it is run over.
pub(crate) struct Assignment {
    pub(crate) view: ViewStage,
    pub(crate) branch: Branch,
    pub(crate) input: TopicName,
    pub(crate) partition: u32,
}

impl Assignment {
    /// Names the task, its checkpoints and its writer; the incarnation keeps a changed view apart from the former.
    fn stage(&self) -> String {
        format!("{}.{}.{}.{}", self.view.pipeline, self.view.name, self.view.incarnation, self.branch.index)
    }

    pub(crate) fn key(&self) -> String {
        format!("{}/{}", self.stage(), self.partition)
    }

    fn writer(&self) -> Writer {
        Writer::new(format!("{}.{}.{}/{}", self.view.pipeline, self.view.name, self.branch.index, self.partition))
    }
}

/// A running task.
pub(crate) struct Worker {
    assignment: Arc<Assignment>,
    program: RowProgram,
    limits: RowLimits,
    reader: Box<dyn Reader>,
    writer: ChannelWriter,
    checkpoints: Checkpoints,
    settlements: Settlements,
    state: Checkpoint,
    pending: Pending,
    /// Memory for what is read, until it is written.
    share: RunShare,
    read_bytes: usize,
    checkpoint_every: Duration,
    checkpointed_at: Instant,
}

/// What has been made since the last stretch was written.
#[derive(Default)]
struct Pending {
    batches: Vec<RecordBatch>,
    offsets: Vec<i64>,
    rejected: Vec<DeadLetter>,
    traceparent: Option<String>,
}

impl Worker {
    /// Goes on from the newest checkpoint, or from the beginning of the input.
    pub(crate) async fn start(
        config: &Config,
        edges: &Edges,
        settlements: Settlements,
        memory: &Memory,
        assignment: Arc<Assignment>,
    ) -> Result<Self, TaskError> {
        let program = RowProgram::compile(&assignment.branch, &assignment.view.schema).map_err(engine_error)?;
        let checkpoints = Checkpoints::new(&edges.lake, &assignment.stage());
        let (input, partition) = (&assignment.input, assignment.partition);
        let name = format!("view `{}.{}`", assignment.view.pipeline, assignment.view.name);
        let log = edges.log.as_ref();
        let input = Input { log, checkpoints: &checkpoints, topic: input, partition, reader: &name };
        let (state, reader) = input.open().await?;
        let outputs = Outputs::ensure(config, edges, &assignment).await?;
        let writer = outputs.writer(config, edges, &assignment, &state);
        let share = memory.run(READ_FACTOR);
        let limits = RowLimits::new(config.ingestion.max_message_bytes.as_usize(), &assignment.view.partition_by);
        tracing::info!(task = assignment.key(), position = %state.position, "transformation task started");
        Ok(Self {
            program,
            limits,
            reader,
            writer,
            checkpoints,
            settlements,
            state,
            pending: Pending::default(),
            read_bytes: MOST_READ_BYTES.min(share.most_payload_bytes()).max(1),
            share,
            checkpoint_every: config.transformation.checkpoint_every.into(),
            checkpointed_at: Instant::now(),
            assignment,
        })
    }

    /// Works until asked to stop, then writes what is made, makes it durable and puts a last checkpoint.
    pub(crate) async fn run(mut self, stop: &Stop, progress: &Progress) -> Result<(), TaskError> {
        let mut checkpointed = self.state.position;
        // The first checkpoint is put as soon as there is something to put: until then nothing tells which topic it is.
        let mut first = self.state.witness.is_none();
        loop {
            progress.reached(&self.assignment.input, self.assignment.partition, self.state.position.offset);
            let due = if first { self.checkpointed_at } else { self.checkpointed_at + self.checkpoint_every };
            tokio::select! {
                biased;
                () = stop.stopped() => break,
                messages = self.reader.read(self.read_bytes) => self.take(messages?).await?,
                () = tokio::time::sleep_until(due), if checkpointed < self.state.position => {}
            }
            if Instant::now() >= due && checkpointed < self.state.position {
                self.checkpoint().await?;
                checkpointed = self.state.position;
                first = false;
            }
        }
        if checkpointed < self.state.position {
            self.checkpoint().await?;
        }
        Ok(())
    }

    /// Takes one read, from memory for it to its outcome on the way to the log.
    async fn take(&mut self, messages: Vec<Message>) -> Result<(), TaskError> {
        self.share.start_anew(&messages).await;
        for message in &messages {
            compute(|| self.process(message))?;
        }
        self.state.witness = messages.last().map(Message::witness);
        if !self.pending.is_empty() || self.writer.heartbeat_due() {
            self.write_pending().await?;
        }
        self.share.release();
        Ok(())
    }

    /// One unit: judge it, cut it, run the plan over it.
    fn process(&mut self, message: &Message) -> Result<(), TaskError> {
        let envelope = decode_envelope(&message.headers).map_err(|error| self.unreadable(message, error))?;
        let verdict = self.state.accept(&envelope.origin).map_err(|gap| self.unreadable(message, gap))?;
        if let Some(watermark) = envelope.watermark {
            self.state.watermarks.insert(envelope.origin.writer.as_str().to_owned(), watermark);
        }
        match verdict {
            Verdict::Take { from } => {
                let whole = decode_batch(&message.payload, &Limits::default())
                    .map_err(|error| self.unreadable(message, error))?;
                let rows = rows_from(&whole, &envelope.origin, from);
                let trace = envelope.traceparent;
                let span = trace.as_deref().map_or_else(Span::none, |trace| self.process_span(trace, message));
                span.in_scope(|| self.transform(message, &rows))?;
                if self.pending.traceparent.is_none() {
                    self.pending.traceparent = telemetry::traceparent_of(&span).or(trace);
                }
            }
            Verdict::Repeat => ::metrics::counter!(metrics::REPEATS).increment(1),
            Verdict::Heartbeat => {}
        }
        self.state.position = Position::at(message.offset + 1);
        Ok(())
    }

    /// Of a message that a trace led to.
    fn process_span(&self, trace: &str, message: &Message) -> Span {
        let channel = self.assignment.input.as_str();
        let span = tracing::info_span!(
            "process",
            otel.name = format!("process {channel}"),
            otel.kind = "consumer",
            { names::MESSAGING_OPERATION_TYPE } = names::PROCESS,
            { names::MESSAGING_DESTINATION_NAME } = channel,
            { names::MESSAGING_DESTINATION_PARTITION_ID } = self.assignment.partition,
            { names::MESSAGING_KAFKA_OFFSET } = message.offset,
        );
        telemetry::span_from(Some(trace), span)
    }

    fn transform(&mut self, message: &Message, rows: &RecordBatch) -> Result<(), TaskError> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let started = Clock::now();
        let (input, _) = without_offsets(rows).map_err(TaskError::stop)?;
        let (good, bad) = self.sift(&input)?;
        let unit = i64::try_from(message.offset).map_err(TaskError::stop)?;
        let counts = Totals {
            read: input.num_rows() as u64,
            emitted: good.num_rows() as u64,
            rejected: bad.len() as u64,
            filtered: (input.num_rows() - bad.len() - good.num_rows()) as u64,
            late: 0,
        };
        for (row, reason) in bad {
            let letter = self.dead_letter(message, &input.slice(row, 1), row, reason);
            self.pending.rejected.push(letter);
        }
        if good.num_rows() > 0 {
            self.pending.offsets.extend(std::iter::repeat_n(unit, good.num_rows()));
            self.pending.batches.push(good);
        }
        self.state.totals += counts;
        record(&counts, started.elapsed());
        Ok(())
    }

    /// The rows of the view, without those that could not be stored, and which rows of the input are at fault and why.
    fn sift(&self, input: &RecordBatch) -> Result<(RecordBatch, Vec<(usize, String)>), TaskError> {
        let (good, bad) = self.run_program(input)?;
        let faults = self.limits.faults(&good);
        if faults.is_empty() {
            return Ok((good, bad));
        }
        // Which row of the input each came from is not kept where all is well: it costs more.
        let (good, mut bad, origins) = self.program.run_each(input.clone()).map_err(engine_error)?;
        bad.extend(faults.iter().map(|(row, fault)| (origins[*row], fault.to_string())));
        bad.sort_by_key(|(row, _)| *row);
        let stays = |row: usize| faults.binary_search_by_key(&row, |(row, _)| *row).is_err();
        let stays = BooleanArray::new(BooleanBuffer::collect_bool(good.num_rows(), stays), None);
        Ok((filter_record_batch(&good, &stays).map_err(TaskError::stop)?, bad))
    }

    /// The whole batch at once; only where a row is at fault are rows told apart, which costs more.
    fn run_program(&self, input: &RecordBatch) -> Result<(RecordBatch, Vec<(usize, String)>), TaskError> {
        match self.program.run(input.clone()) {
            Ok(good) => Ok((good, Vec::new())),
            Err(EngineError::Row { .. }) => {
                let (good, bad, _) = self.program.run_each(input.clone()).map_err(engine_error)?;
                Ok((good, bad))
            }
            Err(error) => Err(engine_error(error)),
        }
    }

    /// The row as JSON stands for its bytes: the input of a view has no others.
    fn dead_letter(&self, message: &Message, row: &RecordBatch, index: usize, reason: String) -> DeadLetter {
        DeadLetter {
            topic: self.assignment.input.as_str().to_owned(),
            partition: self.assignment.partition,
            offset: message.offset,
            line: u32::try_from(index + 1).ok(),
            column: None,
            reason,
            bytes: row_as_json(row).into(),
            produced_at_ms: message.timestamp_ms,
        }
    }

    async fn write_pending(&mut self) -> Result<(), TaskError> {
        let stretch = self.stretch()?;
        self.writer.write(&stretch).await
    }

    fn stretch(&mut self) -> Result<Stretch, TaskError> {
        let pending = std::mem::take(&mut self.pending);
        let schema: &SchemaRef = &self.assignment.view.schema;
        let batch = match pending.batches.as_slice() {
            [one] => one.clone(),
            many => concat_batches(schema, many).map_err(TaskError::stop)?,
        };
        let rejected = DeadLetters::rows(&pending.rejected).map_err(TaskError::stop)?;
        Ok(Stretch {
            to: self.state.position,
            data: Rows { batch, offsets: Int64Array::from(pending.offsets) },
            rejected,
            totals: self.state.totals,
            watermark: self.state.watermarks.values().min().copied(),
            traceparent: pending.traceparent,
        })
    }

    /// Makes everything before the position durable, then says so.
    async fn checkpoint(&mut self) -> Result<(), TaskError> {
        let stretch = self.stretch()?;
        self.writer.write(&stretch).await?;
        self.writer.write_rejected_heartbeat(&stretch).await?;
        self.writer.settle().await?;
        self.state.outputs = self.writer.ends().into();
        CrashPoint::OutputDurable.pass();
        self.checkpoints.put(self.assignment.partition, &self.state).await?;
        CrashPoint::CheckpointPut.pass();
        self.settlements.settle(&self.assignment.input, self.assignment.partition, self.state.position.offset);
        self.checkpointed_at = Instant::now();
        Ok(())
    }

    /// A channel that cannot be read on: skipping would lose rows, so the partition halts.
    fn unreadable(&self, message: &Message, error: impl std::error::Error + Send + Sync + 'static) -> TaskError {
        let place = format!("message {}/{}@{}", self.assignment.input, self.assignment.partition, message.offset);
        TaskError::stop(anyhow::Error::new(error).context(place))
    }
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.offsets.is_empty() && self.rejected.is_empty()
    }
}

fn engine_error(error: EngineError) -> TaskError {
    TaskError::new(error.class(), error)
}

fn record(counts: &Totals, elapsed: Duration) {
    ::metrics::counter!(metrics::ROWS_READ).increment(counts.read);
    ::metrics::counter!(metrics::ROWS_EMITTED).increment(counts.emitted);
    ::metrics::counter!(metrics::ROWS_REJECTED).increment(counts.rejected);
    ::metrics::counter!(metrics::ROWS_FILTERED).increment(counts.filtered);
    ::metrics::histogram!(metrics::BATCH_SECONDS).record(elapsed.as_secs_f64());
}

fn row_as_json(row: &RecordBatch) -> Vec<u8> {
    let mut writer = arrow::json::LineDelimitedWriter::new(Vec::new());
    match writer.write(row).and_then(|()| writer.finish()) {
        Ok(()) => writer.into_inner(),
        Err(error) => error.to_string().into_bytes(),
    }
}

/// The channels a task writes to.
struct Outputs {
    data: PortTarget,
    rejected: PortTarget,
}

impl Outputs {
    /// Creates the view's channels where they are missing, and grows them where the input has grown. A task writes to
    /// the partition that has its input's number, so more partitions move nobody.
    async fn ensure(config: &Config, edges: &Edges, assignment: &Assignment) -> Result<Self, TaskError> {
        let log = edges.log.as_ref();
        let partitions = channels::partitions(log, &assignment.input).await?;
        let target = async |channel: &str, schema: SchemaRef| {
            let topic = channels::topic(channel)?;
            channels::ensure(log, &config.log, &topic, partitions.max(assignment.partition + 1)).await?;
            Ok::<_, TaskError>(PortTarget { topic, partition: assignment.partition, schema })
        };
        Ok(Self {
            data: target(&assignment.view.channel, Arc::clone(&assignment.view.schema)).await?,
            rejected: target(&assignment.view.rejected, pipeline::rejected_schema()).await?,
        })
    }

    fn writer(self, config: &Config, edges: &Edges, assignment: &Assignment, state: &Checkpoint) -> ChannelWriter {
        let options = ChannelWriterOptions {
            writer: assignment.writer(),
            data: self.data,
            rejected: self.rejected,
            compression: edges.compression,
            max_message_bytes: config.ingestion.max_message_bytes.as_usize(),
            bounds: assignment.view.bounds.clone(),
            event_time: assignment.view.event_time.clone(),
        };
        ChannelWriter::new(edges.log.appender(), options, state)
    }
}

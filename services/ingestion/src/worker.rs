//! One task: a partition of a user topic → the same partition of a source's channel.
//!
//! The invariant of hop 1: same unit, same rows, same order, whatever life of the task decodes it. Rejected rows are
//! durable before the data message that covers their stretch is appended, a checkpoint is written only after everything
//! made from before its position is durable, and a task without one starts where it once began (`runtime::input`).
//!
//! Deliberately absent: ownership (two lives at once write the same rows) and retries (the supervisor's).

use std::{sync::Arc, time::Duration};

use batch::Compression;
use delivery::{Checkpoint, CrashPoint, Position, Witness, Writer};
use lake::{Checkpoints, Lake};
use pipeline::SourceStage;
use runtime::{
    channel_writer::{ChannelWriter, ChannelWriterOptions, PortTarget},
    channels,
    config::IngestionConfig,
    input::Input,
    memory::{Memory, RunShare},
    retry::TaskError,
    supervisor::{self, Settlements},
    tasks::{Stop, compute},
    telemetry::{self, names},
};
use tokio::time::{Instant, sleep_until};
use topics::{Log, Message, Reader, TopicError, TopicName};

use crate::{
    batcher::{BatchLimits, Batcher, Progress, Stretcher, is_fruitless, traceparent},
    decode::{Decoded, Decoder, Fault},
    metrics::{self, SourceMetrics},
    sieve::Sieve,
};

/// The header a request's trace context travels in, in HTTP as in messages.
pub(crate) const TRACEPARENT: &str = "traceparent";
/// Twice what the standard's own takes; a longer one is not passed on, since it counts in every message it leads to.
pub(crate) const MAX_TRACEPARENT_BYTES: usize = 128;

/// A run takes about this many times its payload while it is decoded and written.
const RUN_FACTOR: usize = 4;

/// Rows that are decoded together, where they stand in several messages.
const MOST_ROWS: usize = 64 << 10;

/// What those rows may take where each has a value in every column, as it has when it is decoded.
const MOST_ROWS_BYTES: usize = 64 << 20;

/// A checkpoint is due after this much input even before its time: it bounds what a crash makes us read again.
const CHECKPOINT_BYTES: usize = 256 << 20;

/// Everything a task needs, for each of its lives.
pub struct Worker {
    /// What is decoded.
    pub source: SourceStage,
    /// The topic it is read from.
    pub topic: TopicName,
    /// The partition of both topic and channel.
    pub partition: u32,
    /// Where topics are.
    pub log: Arc<dyn Log>,
    /// Where checkpoints are.
    pub lake: Lake,
    /// How channel payloads are compressed.
    pub compression: Compression,
    /// Sizes and times.
    pub config: IngestionConfig,
    /// Where positions are reported for lag tools.
    pub settlements: Settlements,
    /// Room for runs, from read to written, shared by all that the process does.
    pub memory: Memory,
}

impl Worker {
    /// The writer's name, the same in every life.
    pub fn writer(&self) -> Writer {
        Writer::new(format!("{}.{}/{}", self.source.pipeline, self.source.name, self.partition))
    }

    /// The name checkpoints are kept under; a changed definition begins anew.
    pub fn stage(&self) -> String {
        format!("{}.{}.{}", self.source.pipeline, self.source.name, self.source.incarnation)
    }

    /// One life that nobody watches: from the newest checkpoint until asked to stop.
    ///
    /// # Errors
    /// As [`live`](Self::live).
    pub async fn run(self: Arc<Self>, stop: Stop) -> Result<(), TaskError> {
        self.live(stop, supervisor::Progress::default()).await
    }

    /// One life: from the newest checkpoint until asked to stop.
    ///
    /// # Errors
    /// Class retry: start again, from the checkpoint. Class stop: see [`runtime::input::CannotResume`].
    pub async fn live(self: Arc<Self>, stop: Stop, reached: supervisor::Progress) -> Result<(), TaskError> {
        let mut life = self.begin().await?;
        loop {
            // What waits in the batcher is neither done nor stuck: its time comes.
            reached.reached(&self.topic, self.partition, life.stretcher.progress().position.offset);
            match life.next_event(&stop).await? {
                Event::Messages(messages) => life.take_in(messages).await?,
                Event::Time => {}
                Event::Stop => return life.end().await,
            }
            if life.batcher.is_due(Instant::now()) {
                life.process().await?;
            }
            if life.checkpoint_due() {
                life.checkpoint().await?;
            }
        }
    }

    async fn begin(self: &Arc<Self>) -> Result<Life, TaskError> {
        let checkpoints = Checkpoints::new(&self.lake, &self.stage());
        let (log, topic, partition) = (self.log.as_ref(), &self.topic, self.partition);
        let name = format!("source `{}.{}`", self.source.pipeline, self.source.name);
        let input = Input { log, checkpoints: &checkpoints, topic, partition, reader: &name };
        let (checkpoint, reader) = input.open().await?;
        for channel in [&self.source.channel, &self.source.rejected] {
            channels::follow(log, &channels::topic(channel)?, topic, partition).await?;
        }
        tracing::info!(topic = %self.topic, partition = self.partition, position = %checkpoint.position, "reading");
        let writer = ChannelWriter::new(self.log.appender(), self.writer_options()?, &checkpoint);
        let progress = Progress::from_checkpoint(&checkpoint);
        Ok(Life {
            reader,
            writer,
            checkpoints,
            decoder: Decoder::new(&self.source, self.config.max_message_bytes.as_usize()),
            batcher: Batcher::new(BatchLimits {
                rows: self.config.batch_rows,
                bytes: self.config.batch_bytes.as_usize(),
                linger: self.config.linger.get(),
            }),
            stretcher: Stretcher::new(&self.source, self.topic.clone(), self.partition, progress),
            metrics: SourceMetrics::new(&self.source.pipeline, &self.source.name),
            share: self.memory.run(RUN_FACTOR),
            kept: checkpoint.position,
            kept_at: Instant::now(),
            covered: checkpoint.position,
            bytes_since: 0,
            first: checkpoint.witness.is_none(),
            input: checkpoint.input,
            begins_late: checkpoint.begins_late,
            witness: checkpoint.witness,
            sieve: Sieve::new(checkpoint.seen),
            worker: Arc::clone(self),
        })
    }

    fn writer_options(&self) -> Result<ChannelWriterOptions, TaskError> {
        let target = |channel: &str, schema| -> Result<PortTarget, TaskError> {
            Ok(PortTarget { topic: channels::topic(channel)?, partition: self.partition, schema })
        };
        Ok(ChannelWriterOptions {
            writer: self.writer(),
            data: target(&self.source.channel, Arc::clone(&self.source.schema))?,
            rejected: target(&self.source.rejected, pipeline::rejected_schema())?,
            compression: self.compression,
            max_message_bytes: self.config.max_message_bytes.as_usize(),
            bounds: self.source.spec.options.bounds.clone(),
            event_time: self.source.spec.watermark.as_ref().map(|watermark| watermark.column.clone()),
        })
    }
}

/// Retention that overtakes a reader loses rows; waiting does not bring them back.
fn overtaken(error: TopicError) -> TaskError {
    match error {
        TopicError::OffsetGone { .. } | TopicError::OffsetAhead { .. } => TaskError::stop(error),
        other => TaskError::from(other),
    }
}

/// Cuts a run between messages where it has many rows: rows of a few bytes take a hundred times their size.
fn pieces(mut run: Vec<Message>, row_bytes: usize) -> Vec<Vec<Message>> {
    let most = MOST_ROWS.min(MOST_ROWS_BYTES / row_bytes);
    let mut pieces: Vec<_> = cuts(&run, most).into_iter().rev().map(|cut| run.split_off(cut)).collect();
    pieces.push(run);
    pieces.reverse();
    pieces
}

/// Where pieces of at most so many rows begin behind the first, in order; hardly ever anywhere.
fn cuts(run: &[Message], most_rows: usize) -> Vec<usize> {
    let (mut cuts, mut rows) = (Vec::new(), 0);
    for (index, message) in run.iter().enumerate() {
        let more = rows_of(&message.payload);
        if rows > 0 && rows + more > most_rows {
            cuts.push(index);
            rows = 0;
        }
        rows += more;
    }
    cuts
}

/// About how many rows a payload holds, rather too many: lines, whatever ends them, or objects that share a line.
fn rows_of(payload: &[u8]) -> usize {
    // Most messages are one flat object: the first end of something is their own.
    let first = memchr::memchr3(b'\n', b'\r', b'}', payload);
    if first.is_none_or(|first| payload[first + 1..].trim_ascii_start().is_empty()) {
        return 1;
    }
    let count = |end| memchr::memchr_iter(end, payload).count();
    count(b'\n').max(count(b'\r')).max(count(b'}')) + 1
}

/// What a task waits for.
enum Event {
    Messages(Vec<Message>),
    /// A run is old enough, or a checkpoint due.
    Time,
    Stop,
}

/// One life of a task.
struct Life {
    worker: Arc<Worker>,
    reader: Box<dyn Reader>,
    decoder: Decoder,
    batcher: Batcher,
    /// Memory for what the batcher holds.
    share: RunShare,
    sieve: Sieve,
    stretcher: Stretcher,
    writer: ChannelWriter,
    checkpoints: Checkpoints,
    metrics: SourceMetrics,
    /// Position and time of the newest checkpoint.
    kept: Position,
    kept_at: Instant,
    /// Up to where the data channel covers the input.
    covered: Position,
    /// Input since the newest checkpoint.
    bytes_since: usize,
    /// Nothing tells yet which topic this is: the first checkpoint is put as soon as there is something to put.
    first: bool,
    /// See [`Checkpoint`].
    input: String,
    begins_late: bool,
    witness: Option<Witness>,
}

impl Life {
    async fn next_event(&mut self, stop: &Stop) -> Result<Event, TaskError> {
        let wake = [self.batcher.deadline(), self.checkpoint_at()].into_iter().flatten().min();
        let room = self.batcher.room();
        tokio::select! {
            biased;
            () = stop.stopped() => Ok(Event::Stop),
            () = until(wake) => Ok(Event::Time),
            messages = self.reader.read(room) => Ok(Event::Messages(messages.map_err(overtaken)?)),
        }
    }

    /// Adds messages to the run at hand. Where there is no memory for them, the run is processed first: a task waits
    /// for memory only while it holds none.
    async fn take_in(&mut self, messages: Vec<Message>) -> Result<(), TaskError> {
        if !self.share.try_grow(&messages) {
            self.process().await?;
            self.share.start_anew(&messages).await;
        }
        self.batcher.push(messages, Instant::now());
        Ok(())
    }

    /// Decodes the run at hand and queues what it came to.
    async fn process(&mut self) -> Result<(), TaskError> {
        for piece in pieces(self.batcher.take(), self.decoder.row_bytes()) {
            self.process_piece(piece).await?;
        }
        self.share.release();
        Ok(())
    }

    async fn process_piece(&mut self, mut run: Vec<Message>) -> Result<(), TaskError> {
        let Some(last) = run.last() else { return Ok(()) };
        let run_end = Position::at(last.offset + 1);
        self.witness = Some(last.witness());
        let bytes = run.iter().map(|message| message.payload.len()).sum();
        self.metrics.count_read(run.len(), bytes);
        self.bytes_since += bytes;
        let trace = run.iter().find_map(traceparent);
        let span = trace.as_deref().map_or_else(tracing::Span::none, |trace| self.process_span(trace));
        let handed_on = telemetry::traceparent_of(&span).or(trace);
        let started = Instant::now();
        let decoded = span.in_scope(|| compute(|| self.decode(&mut run)));
        self.metrics.count_decoded(good_rows(&decoded), &faults(&decoded), started.elapsed());
        let stretches = self.stretcher.stretches(run_end, decoded, handed_on.as_deref()).map_err(TaskError::stop)?;
        for stretch in stretches {
            // What came to nothing is covered by the next message, or by a heartbeat.
            if !is_fruitless(&stretch) || self.writer.heartbeat_due() {
                self.writer.write(&stretch).await?;
                self.covered = stretch.to;
            }
        }
        Ok(())
    }

    /// Takes what is repeated out of the run, and decodes the rest.
    fn decode(&mut self, run: &mut Vec<Message>) -> Decoded {
        let sifted = self.sieve.sift(run);
        self.metrics.count_repeats(sifted.repeats);
        let mut decoded = self.decoder.decode(run);
        if !sifted.rejected.is_empty() {
            decoded.rejected.extend(sifted.rejected);
            decoded.rejected.sort_by_key(|row| (row.offset, row.row));
        }
        decoded
    }

    /// Of a run that a trace led to: the decoding of it, up to its message in the channel.
    fn process_span(&self, trace: &str) -> tracing::Span {
        let topic = self.worker.topic.as_str();
        let span = tracing::info_span!(
            "process",
            otel.name = format!("process {topic}"),
            otel.kind = "consumer",
            { names::MESSAGING_OPERATION_TYPE } = names::PROCESS,
            { names::MESSAGING_DESTINATION_NAME } = topic,
            { names::MESSAGING_DESTINATION_PARTITION_ID } = self.worker.partition,
        );
        telemetry::span_from(Some(trace), span)
    }

    fn checkpoint_at(&self) -> Option<Instant> {
        let every: Duration = self.worker.config.checkpoint_every.get();
        let every = if self.first { Duration::ZERO } else { every };
        (self.stretcher.progress().position > self.kept).then(|| self.kept_at + every)
    }

    fn checkpoint_due(&self) -> bool {
        self.bytes_since >= CHECKPOINT_BYTES || self.checkpoint_at().is_some_and(|due| due <= Instant::now())
    }

    /// Makes everything durable, then writes down how far it is.
    async fn checkpoint(&mut self) -> Result<(), TaskError> {
        let stretch = self.stretcher.fruitless();
        if self.covered < stretch.to {
            self.writer.write(&stretch).await?;
            self.covered = stretch.to;
        }
        self.writer.write_rejected_heartbeat(&stretch).await?;
        self.writer.settle().await?;
        let progress = self.stretcher.progress();
        let mut checkpoint = Checkpoint::at(progress.position);
        checkpoint.outputs = self.writer.ends().into_iter().collect();
        checkpoint.totals = progress.totals;
        checkpoint.max_event_time = progress.max_event_time;
        checkpoint.input = self.input.clone();
        checkpoint.begins_late = self.begins_late;
        checkpoint.witness = self.witness;
        checkpoint.seen = self.sieve.seen().clone();
        CrashPoint::OutputDurable.pass();
        let put = self.checkpoints.put(self.worker.partition, &checkpoint).await;
        CrashPoint::CheckpointPut.pass();
        metrics::count_checkpoint(put.is_ok());
        self.kept_at = Instant::now();
        self.first = false;
        match put {
            Ok(()) => {
                self.kept = checkpoint.position;
                self.bytes_since = 0;
                self.worker.settlements.settle(&self.worker.topic, self.worker.partition, checkpoint.position.offset);
            }
            // An older checkpoint costs time, not rows.
            Err(error) => {
                tracing::warn!(stage = self.worker.stage(), %error, "checkpoint not written; trying again later")
            }
        }
        Ok(())
    }

    /// Finishes what was begun.
    async fn end(mut self) -> Result<(), TaskError> {
        self.process().await?;
        if self.stretcher.progress().position > self.kept {
            self.checkpoint().await?;
        }
        Ok(())
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

fn good_rows(decoded: &Decoded) -> u64 {
    decoded.parts.iter().map(|part| part.offsets.len() as u64).sum()
}

fn faults(decoded: &Decoded) -> Vec<(Fault, u64)> {
    let mut faults: Vec<(Fault, u64)> = Vec::new();
    for row in &decoded.rejected {
        match faults.iter_mut().find(|(fault, _)| *fault == row.fault) {
            Some((_, rows)) => *rows += 1,
            None => faults.push((row.fault, 1)),
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_run_of_many_rows_is_cut_between_messages_and_keeps_their_order() {
        for (most, row_bytes) in [(MOST_ROWS, 8), (2048, 32 << 10)] {
            for row in ["{}\n", "{}", "1,2\r", "1,2\r\n"] {
                let message = |(offset, rows): (u64, usize)| {
                    let payload = Bytes::from(row.repeat(rows - 1));
                    Message { offset, timestamp_ms: 0, key: None, payload, headers: Vec::new() }
                };
                let sizes = [1, most - 1, 1, 3 * most, 1, 1];
                let run: Vec<_> = (0..).zip(sizes).map(message).collect();
                let offsets = |piece: &Vec<Message>| piece.iter().map(|message| message.offset).collect::<Vec<_>>();
                let cut: Vec<_> = pieces(run, row_bytes).iter().map(offsets).collect();
                assert_eq!(cut, [vec![0, 1], vec![2], vec![3], vec![4, 5]], "{row:?} of {row_bytes} bytes");
            }
        }
    }

    #[test]
    fn a_message_of_one_flat_object_is_one_row() {
        for one in ["{\"id\":1}", "{\"id\":1}\r\n", "1,2", "1,2\n", ""] {
            assert_eq!(rows_of(one.as_bytes()), 1, "{one:?}");
        }
        assert!(rows_of(b"{\"id\":1}{\"id\":2}") >= 2);
    }
}

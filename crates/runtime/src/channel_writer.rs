//! A task's output: stretches of its input, written to a data partition and a rejected partition.
//!
//! The invariants of hops 1 and 2: stretches touch, dead letters are durable *before* the data message that covers
//! their stretch is appended, and [`settle`](ChannelWriter::settle) returns only when everything written is durable.
//! Deliberately absent: what the rows are and when to write.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use arrow::{
    array::{Int64Array, RecordBatch},
    datatypes::SchemaRef,
};
use batch::{Compression, Envelope, Port, SplitError, encode_envelope, encode_to_fit, fingerprint, with_offsets};
use delivery::{Checkpoint, CrashPoint, Origin, Position, Safeguard, Totals, Writer};
use futures::FutureExt as _;
use tokio::time::Instant;
use topics::{Appender, NewMessage, Receipt, TopicName};

use crate::{dead_letters::letters_in, retry::TaskError};

/// A stretch without rows is written at least this often, so that readers see progress.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(10);

/// The names of the two ports in a checkpoint.
pub const DATA_PORT: &str = "data";
/// See [`DATA_PORT`].
pub const REJECTED_PORT: &str = "rejected";

/// Where one port's messages go.
#[derive(Clone, Debug)]
pub struct PortTarget {
    /// The channel.
    pub topic: TopicName,
    /// Its partition.
    pub partition: u32,
    /// The user's columns.
    pub schema: SchemaRef,
}

/// What a writer needs to know.
pub struct ChannelWriterOptions {
    /// Who writes.
    pub writer: Writer,
    /// Where good rows go.
    pub data: PortTarget,
    /// Where dead letters go.
    pub rejected: PortTarget,
    /// How payloads are compressed.
    pub compression: Compression,
    /// Largest payload.
    pub max_message_bytes: usize,
    /// Columns whose range travels in the envelope.
    pub bounds: Vec<String>,
    /// The column event times are in.
    pub event_time: Option<String>,
}

/// Rows of one port, each with the input offset it came from (absolute, never falling).
#[derive(Clone, Debug)]
pub struct Rows {
    /// The user's columns.
    pub batch: RecordBatch,
    /// One input offset a row.
    pub offsets: Int64Array,
}

/// What a task made from a stretch of its input that ends at `to`.
#[derive(Clone, Debug)]
pub struct Stretch {
    /// The position after it: always between units.
    pub to: Position,
    /// Good rows.
    pub data: Rows,
    /// Dead letters.
    pub rejected: Option<Rows>,
    /// The writer's totals at `to`.
    pub totals: Totals,
    /// The writer's watermark at `to`, microseconds UTC.
    pub watermark: Option<i64>,
    /// Trace context of a request that brought rows of this stretch.
    pub traceparent: Option<String>,
}

/// Writes stretches. Not for sharing: one task, one writer.
pub struct ChannelWriter {
    options: ChannelWriterOptions,
    appender: Arc<dyn Appender>,
    data: PortState,
    rejected: PortState,
    receipts: VecDeque<Receipt>,
    totals: Totals,
    written_at: Instant,
}

struct PortState {
    port: Port,
    fingerprint: u128,
    /// The `to` of the last message.
    end: Position,
}

/// Rows on their way, with what their envelope says.
struct Outgoing<'a> {
    rows: &'a Rows,
    stretch: &'a Stretch,
}

impl ChannelWriter {
    /// A writer that goes on from a checkpoint.
    pub fn new(appender: Arc<dyn Appender>, options: ChannelWriterOptions, from: &Checkpoint) -> Self {
        let state = |port, target: &PortTarget, name| PortState {
            port,
            fingerprint: fingerprint(&batch::wire_schema(&target.schema)),
            end: from.output(name),
        };
        Self {
            data: state(Port::Data, &options.data, DATA_PORT),
            rejected: state(Port::Rejected, &options.rejected, REJECTED_PORT),
            options,
            appender,
            receipts: VecDeque::new(),
            totals: from.totals,
            written_at: Instant::now(),
        }
    }

    /// Whether a stretch without rows is due.
    pub fn heartbeat_due(&self) -> bool {
        self.written_at.elapsed() >= HEARTBEAT_EVERY
    }

    /// The ends of both ports, for a checkpoint.
    pub fn ends(&self) -> [(String, Position); 2] {
        [(DATA_PORT.to_owned(), self.data.end), (REJECTED_PORT.to_owned(), self.rejected.end)]
    }

    /// Writes a stretch: dead letters first and durably, then the rows, or a message without rows.
    ///
    /// Waits for room in the appender, not for durability. Not cancel safe: after a cancelled call the task goes on
    /// from its last checkpoint.
    ///
    /// # Errors
    /// Class of the log's error; the task restarts from its checkpoint and readers cut off what is repeated. A row too
    /// large for a message is class stop: callers must have rejected it.
    pub async fn write(&mut self, stretch: &Stretch) -> Result<(), TaskError> {
        let late = Safeguard::RejectedFirst.is_off();
        if let Some(rejected) = stretch.rejected.as_ref().filter(|_| !late) {
            self.write_rejected(rejected, stretch).await?;
            CrashPoint::RejectedDurable.pass();
        }
        self.write_data(stretch).await?;
        CrashPoint::DataQueued.pass();
        if let Some(rejected) = stretch.rejected.as_ref().filter(|_| late) {
            self.write_rejected(rejected, stretch).await?;
        }
        self.totals = stretch.totals;
        self.written_at = Instant::now();
        self.check_receipts()
    }

    /// A message without rows on the rejected port too, so that its readers see how far it is.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn write_rejected_heartbeat(&mut self, stretch: &Stretch) -> Result<(), TaskError> {
        if self.rejected.end >= stretch.to {
            return Ok(());
        }
        let empty = Rows {
            batch: RecordBatch::new_empty(Arc::clone(&self.options.rejected.schema)),
            offsets: Int64Array::new_null(0),
        };
        self.append_without_rows(Port::Rejected, &Outgoing { rows: &empty, stretch }).await
    }

    /// Waits until everything written is durable.
    ///
    /// # Errors
    /// The first append that failed.
    pub async fn settle(&mut self) -> Result<(), TaskError> {
        if Safeguard::DurableCheckpoint.is_off() {
            return Ok(());
        }
        while let Some(receipt) = self.receipts.front_mut() {
            receipt.await.map_err(TaskError::from)?;
            self.receipts.pop_front();
        }
        Ok(())
    }

    async fn write_rejected(&mut self, rows: &Rows, stretch: &Stretch) -> Result<(), TaskError> {
        self.append_rows(Port::Rejected, &Outgoing { rows, stretch }).await?;
        self.settle().await
    }

    async fn write_data(&mut self, stretch: &Stretch) -> Result<(), TaskError> {
        let outgoing = Outgoing { rows: &stretch.data, stretch };
        if stretch.data.batch.num_rows() == 0 {
            self.append_without_rows(Port::Data, &outgoing).await
        } else {
            self.append_rows(Port::Data, &outgoing).await
        }
    }

    async fn append_without_rows(&mut self, port: Port, outgoing: &Outgoing<'_>) -> Result<(), TaskError> {
        let from = self.state(port).end;
        let relative = Int64Array::from_iter_values(std::iter::empty::<i64>());
        let wire = with_offsets(&outgoing.rows.batch, relative).map_err(TaskError::stop)?;
        let payload = batch::encode_stream(&wire, self.options.compression).map_err(TaskError::stop)?;
        let origin = self.origin(from, outgoing.stretch.to)?;
        self.append(port, &wire, payload, origin, outgoing.stretch.totals, outgoing.stretch).await
    }

    async fn append_rows(&mut self, port: Port, outgoing: &Outgoing<'_>) -> Result<(), TaskError> {
        let from = self.state(port).end;
        let base = i64::try_from(from.offset).map_err(TaskError::stop)?;
        let relative: Int64Array = outgoing.rows.offsets.unary(|offset| offset - base);
        let wire = with_offsets(&outgoing.rows.batch, relative).map_err(TaskError::stop)?;
        let (limit, compression) = (self.options.max_message_bytes, self.options.compression);
        let parts = crate::tasks::compute(|| encode_to_fit(&wire, limit, compression)).map_err(split_error)?;
        let (mut part_from, mut next_row) = (from, 0);
        let count = parts.len();
        for (index, part) in parts.into_iter().enumerate() {
            next_row += part.batch.num_rows();
            let last = index + 1 == count;
            let to = if last { outgoing.stretch.to } else { row_position(&outgoing.rows.offsets, next_row, from) };
            let totals = if last { outgoing.stretch.totals } else { self.totals_inside(port, outgoing.rows, next_row) };
            // Offsets are relative to their own message's beginning.
            let (wire, payload) = if part_from.offset == from.offset {
                (part.batch, part.payload)
            } else {
                self.rebase(&part.batch, part_from.offset - from.offset)?
            };
            let origin = self.origin(part_from, to)?;
            self.append(port, &wire, payload, origin, totals, outgoing.stretch).await?;
            part_from = to;
        }
        Ok(())
    }

    /// A later part of a split batch begins at a later offset; its relative offsets shrink by the difference.
    fn rebase(&self, part: &RecordBatch, by: u64) -> Result<(RecordBatch, bytes::Bytes), TaskError> {
        let by = i64::try_from(by).map_err(TaskError::stop)?;
        let (user, relative) = batch::without_offsets(part).map_err(TaskError::stop)?;
        let wire = with_offsets(&user, relative.unary(|offset| offset - by)).map_err(TaskError::stop)?;
        let payload = batch::encode_stream(&wire, self.options.compression).map_err(TaskError::stop)?;
        Ok((wire, payload))
    }

    /// Totals at a cut inside a stretch, behind so many of its rows: what a reader of the port that stops there has, and
    /// balanced. Of rows that the port does not hold, what held before the stretch.
    fn totals_inside(&self, port: Port, rows: &Rows, count: usize) -> Totals {
        let before = self.totals;
        match port {
            Port::Data => {
                let rows = count as u64;
                Totals { read: before.read + rows, emitted: before.emitted + rows, ..before }
            }
            Port::Rejected => {
                let letters = letters_in(&rows.batch.slice(0, count));
                Totals { read: before.read + letters, rejected: before.rejected + letters, ..before }
            }
        }
    }

    fn origin(&self, from: Position, to: Position) -> Result<Origin, TaskError> {
        Origin::new(self.options.writer.clone(), from, to).map_err(TaskError::stop)
    }

    async fn append(
        &mut self,
        port: Port,
        wire: &RecordBatch,
        payload: bytes::Bytes,
        origin: Origin,
        totals: Totals,
        stretch: &Stretch,
    ) -> Result<(), TaskError> {
        let target = match port {
            Port::Data => &self.options.data,
            Port::Rejected => &self.options.rejected,
        };
        let event_time = match (port, &self.options.event_time) {
            (Port::Data, Some(column)) => batch::event_time_range(wire, column),
            _ => None,
        };
        let to = origin.to;
        let envelope = Envelope {
            fingerprint: self.state(port).fingerprint,
            rows: u32::try_from(wire.num_rows()).map_err(TaskError::stop)?,
            event_time,
            watermark: stretch.watermark,
            origin,
            totals,
            port,
            traceparent: stretch.traceparent.clone(),
            bounds: if port == Port::Data { batch::bounds_of(wire, &self.options.bounds) } else { Vec::new() },
        };
        let message = NewMessage { payload, headers: encode_envelope(&envelope), ..NewMessage::default() };
        let receipt = self.appender.append(&target.topic, target.partition, message).await?;
        self.receipts.push_back(receipt);
        self.state_mut(port).end = to;
        Ok(())
    }

    /// Looks at appends that have ended already, so that a failure is seen before the next settle.
    fn check_receipts(&mut self) -> Result<(), TaskError> {
        while let Some(outcome) = self.receipts.front_mut().and_then(|receipt| receipt.now_or_never()) {
            self.receipts.pop_front();
            outcome?;
        }
        Ok(())
    }

    fn state(&self, port: Port) -> &PortState {
        match port {
            Port::Data => &self.data,
            Port::Rejected => &self.rejected,
        }
    }

    fn state_mut(&mut self, port: Port) -> &mut PortState {
        let state = match port {
            Port::Data => &mut self.data,
            Port::Rejected => &mut self.rejected,
        };
        debug_assert_eq!(state.port, port);
        state
    }
}

fn split_error(error: SplitError) -> TaskError {
    TaskError::stop(error)
}

/// The position of row `row` of a port's rows: its input offset, and its number among the rows of that unit.
fn row_position(offsets: &Int64Array, row: usize, from: Position) -> Position {
    let values = offsets.values();
    let offset = values[row];
    let first = values.partition_point(|&other| other < offset);
    let unit = u64::try_from(offset).unwrap_or(0);
    let before = if unit == from.offset { from.row } else { 0 };
    Position::inside(unit, before + u32::try_from(row - first).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;

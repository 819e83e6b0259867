//! When a run of messages ends, and which stretches of input its rows cover.
//!
//! Pure: time comes in as a parameter. The invariants: stretches touch and end between units; a rejected row is in the
//! stretch that covers its unit; totals and watermark are functions of the input's prefix, never of how it was batched.

use std::time::Duration;

use arrow::{
    array::Int64Array, compute::concat_batches, datatypes::SchemaRef, error::ArrowError, record_batch::RecordBatch,
};
use delivery::{Checkpoint, Position, Totals};
use pipeline::SourceStage;
use runtime::{
    channel_writer::{Rows, Stretch},
    dead_letters::DeadLetters,
};
use tokio::time::Instant;
use topics::{Message, TopicName};

use crate::{
    decode::{Decoded, Part, RejectedRow},
    reject::letters,
    worker::{MAX_TRACEPARENT_BYTES, TRACEPARENT},
};

/// When a run is large or old enough.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchLimits {
    /// Messages of one run at most; a message has at least one row.
    pub(crate) rows: usize,
    /// Payload bytes of one run, at about which it ends.
    pub(crate) bytes: usize,
    /// How long the first message of a run may wait for others.
    pub(crate) linger: Duration,
}

/// Collects messages into runs.
pub(crate) struct Batcher {
    limits: BatchLimits,
    waiting: Vec<Message>,
    bytes: usize,
    since: Option<Instant>,
}

impl Batcher {
    pub(crate) fn new(limits: BatchLimits) -> Self {
        Self { limits, waiting: Vec::new(), bytes: 0, since: None }
    }

    /// Adds messages in offset order.
    pub(crate) fn push(&mut self, messages: Vec<Message>, now: Instant) {
        if messages.is_empty() {
            return;
        }
        self.since.get_or_insert(now);
        self.bytes += messages.iter().map(|message| message.payload.len()).sum::<usize>();
        if self.waiting.is_empty() {
            self.waiting = messages;
        } else {
            self.waiting.extend(messages);
        }
    }

    /// Payload bytes that still fit the run: what to read at most. Never zero.
    pub(crate) fn room(&self) -> usize {
        self.limits.bytes.saturating_sub(self.bytes).max(1)
    }

    /// Whether the run is to be processed now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let full = self.waiting.len() >= self.limits.rows || self.bytes >= self.limits.bytes;
        full || self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// When the run ends for its age; `None` while nothing waits.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.since.map(|since| since + self.limits.linger)
    }

    /// The run, possibly empty; the next one begins.
    pub(crate) fn take(&mut self) -> Vec<Message> {
        self.since = None;
        self.bytes = 0;
        std::mem::take(&mut self.waiting)
    }
}

/// What a task has made of the input before `position`.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    /// The next input position.
    pub(crate) position: Position,
    /// Rows accounted for.
    pub(crate) totals: Totals,
    /// The newest event time, microseconds UTC.
    pub(crate) max_event_time: Option<i64>,
}

impl Progress {
    pub(crate) fn from_checkpoint(checkpoint: &Checkpoint) -> Self {
        Self { position: checkpoint.position, totals: checkpoint.totals, max_event_time: checkpoint.max_event_time }
    }
}

/// Turns decoded runs into stretches.
pub(crate) struct Stretcher {
    topic: TopicName,
    partition: u32,
    schema: SchemaRef,
    event_time: Option<String>,
    delay_micros: i64,
    progress: Progress,
}

impl Stretcher {
    pub(crate) fn new(source: &SourceStage, topic: TopicName, partition: u32, progress: Progress) -> Self {
        let watermark = source.spec.watermark.as_ref();
        let delay = watermark.map_or(Duration::ZERO, |watermark| watermark.delay);
        Self {
            topic,
            partition,
            schema: SchemaRef::clone(&source.schema),
            event_time: watermark.map(|watermark| watermark.column.clone()),
            delay_micros: i64::try_from(delay.as_micros()).unwrap_or(i64::MAX),
            progress,
        }
    }

    /// What has been made so far, stretches handed out included.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The stretches of a run, which touch, from the last one's end to the end of the run. `traceparent` is the trace
    /// that led to it.
    ///
    /// # Errors
    /// When arrays of one schema cannot be joined: a defect.
    pub(crate) fn stretches(
        &mut self,
        run_end: Position,
        decoded: Decoded,
        traceparent: Option<&str>,
    ) -> Result<Vec<Stretch>, ArrowError> {
        let mut groups = join_within_units(&self.schema, decoded.parts)?;
        if groups.is_empty() {
            groups.push(Part { batch: RecordBatch::new_empty(SchemaRef::clone(&self.schema)), offsets: Vec::new() });
        }
        let mut rejected = decoded.rejected.as_slice();
        let count = groups.len();
        let mut stretches = Vec::with_capacity(count);
        for (index, group) in groups.into_iter().enumerate() {
            let to = match group.offsets.last() {
                Some(&offset) if index + 1 < count => Position::at(offset.unsigned_abs() + 1),
                _ => run_end,
            };
            let (covered, later) = rejected.split_at(rejected.partition_point(|row| row.offset < to.offset));
            rejected = later;
            stretches.push(self.stretch(to, group, covered, traceparent)?);
        }
        Ok(stretches)
    }

    fn stretch(
        &mut self,
        to: Position,
        good: Part,
        rejected: &[RejectedRow],
        traceparent: Option<&str>,
    ) -> Result<Stretch, ArrowError> {
        let (emitted, rejected_rows) = (good.offsets.len() as u64, rejected.len() as u64);
        let newest = self.event_time.as_ref().and_then(|column| batch::event_time_range(&good.batch, column));
        self.progress.max_event_time = self.progress.max_event_time.max(newest.map(|(_, newest)| newest));
        let counted = Totals { read: emitted + rejected_rows, emitted, rejected: rejected_rows, ..Totals::default() };
        self.progress.totals += counted;
        self.progress.position = to;
        let rejected = DeadLetters::rows(&letters(&self.topic, self.partition, rejected))?;
        let data = Rows { batch: good.batch, offsets: Int64Array::from(good.offsets) };
        Ok(Stretch {
            to,
            data,
            rejected,
            totals: self.progress.totals,
            watermark: self.watermark(),
            traceparent: traceparent.map(str::to_owned),
        })
    }

    /// A stretch without rows up to where the task is.
    pub(crate) fn fruitless(&self) -> Stretch {
        Stretch {
            to: self.progress.position,
            data: Rows {
                batch: RecordBatch::new_empty(SchemaRef::clone(&self.schema)),
                offsets: Int64Array::from(Vec::<i64>::new()),
            },
            rejected: None,
            totals: self.progress.totals,
            watermark: self.watermark(),
            traceparent: None,
        }
    }

    /// The running maximum of event times, less the declared delay.
    fn watermark(&self) -> Option<i64> {
        self.progress.max_event_time.map(|newest| newest.saturating_sub(self.delay_micros))
    }
}

/// Whether a stretch says no more than that there was nothing.
pub(crate) fn is_fruitless(stretch: &Stretch) -> bool {
    stretch.data.batch.num_rows() == 0 && stretch.rejected.is_none()
}

/// The trace a message came with. One of any length would make messages that no log takes.
pub(crate) fn traceparent(message: &Message) -> Option<String> {
    let (_, value) = message.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(TRACEPARENT))?;
    let sound = value.len() <= MAX_TRACEPARENT_BYTES;
    std::str::from_utf8(value).ok().filter(|_| sound).map(str::to_owned)
}

/// Parts that end between units. Only a unit with very many rows is copied.
fn join_within_units(schema: &SchemaRef, parts: Vec<Part>) -> Result<Vec<Part>, ArrowError> {
    let mut groups: Vec<Vec<Part>> = Vec::with_capacity(parts.len());
    for part in parts {
        match groups.last_mut() {
            Some(group) if group.last().and_then(|last| last.offsets.last()) == part.offsets.first() => {
                group.push(part)
            }
            _ => groups.push(vec![part]),
        }
    }
    groups.into_iter().map(|group| join(schema, group)).collect()
}

fn join(schema: &SchemaRef, mut group: Vec<Part>) -> Result<Part, ArrowError> {
    match group.pop() {
        Some(only) if group.is_empty() => Ok(only),
        last => {
            group.extend(last);
            let batch = concat_batches(schema, group.iter().map(|part| &part.batch))?;
            Ok(Part { batch, offsets: group.into_iter().flat_map(|part| part.offsets).collect() })
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_trace_longer_than_any_is_not_passed_on() {
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let long = "x".repeat(2 << 20);
        let longest = &long[..MAX_TRACEPARENT_BYTES];
        for (value, expected) in [
            (trace.as_bytes(), Some(trace)),
            (longest.as_bytes(), Some(longest)),
            (&long.as_bytes()[..=MAX_TRACEPARENT_BYTES], None),
            (long.as_bytes(), None),
            (&b"\xff"[..], None),
        ] {
            let headers = vec![("Traceparent".to_owned(), Bytes::copy_from_slice(value))];
            let message = Message { offset: 0, timestamp_ms: 0, key: None, payload: Bytes::new(), headers };
            assert_eq!(traceparent(&message).as_deref(), expected, "{} bytes", value.len());
        }
    }
}

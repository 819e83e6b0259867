//! Opening a task's input: where its state says, and only if it is still the input that state was made from.
//!
//! The invariant: a task goes on from its newest checkpoint, else from where it once began, and begins at the first
//! message of its input only where it never ran. If what it has to read first is no longer in the log, or if another
//! topic stands under the name, it refuses to start, because downstream would be told of rows that never came.
//!
//! Which topic it is, is told by the last message that was taken: it must still stand where it stood. Where retention
//! or compaction has removed that very message, the log's own name for the topic decides, and a log without one
//! (Kafka names only its cluster) is believed.

use std::time::Duration;

use delivery::{Checkpoint, Position, Safeguard, Witness};
use lake::Checkpoints;
use topics::{Log, Reader, Span, TopicError, TopicName};

use crate::retry::TaskError;

/// A message that is in the log comes within milliseconds; without brokers the task waits anyway.
const WITNESS_WITHIN: Duration = Duration::from_secs(30);

/// A partition to be read, and for whom.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// Where topics are.
    pub log: &'a dyn Log,
    /// Where the task's checkpoints are.
    pub checkpoints: &'a Checkpoints,
    /// What is read.
    pub topic: &'a TopicName,
    /// Which partition of it.
    pub partition: u32,
    /// Who reads, with its kind: "source `shop.orders`".
    pub reader: &'a str,
}

/// A task's state and its input do not fit each other: rows would be lost or mixed up.
#[derive(Debug, thiserror::Error)]
pub enum CannotResume {
    /// Retention removed what would have to be read.
    #[error(
        "topic `{topic}`/{partition} now begins at offset {start}, {origin} is at {position}: retention overtook {reader} \
         and rows are gone; restore a checkpoint after {start}, or drop and recreate it to go on from there"
    )]
    Overtaken {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: u32,
        /// The first offset there is.
        start: u64,
        /// What the position comes from.
        origin: &'static str,
        /// Where the task would go on.
        position: Position,
        /// The task.
        reader: String,
    },
    /// The topic is shorter than what was read of it.
    #[error(
        "topic `{topic}`/{partition} ends at offset {end}, {origin} is at {position}: it was recreated or truncated; \
         drop and recreate {reader} to read it from its beginning"
    )]
    Ahead {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: u32,
        /// Its end.
        end: u64,
        /// What the position comes from.
        origin: &'static str,
        /// Where the task would go on.
        position: Position,
        /// The task.
        reader: String,
    },
    /// Another topic has the name.
    #[error(
        "topic `{topic}`/{partition} is not the one {reader} has read up to {position}: {evidence}, so it was deleted and \
         created again, or restored from elsewhere; drop and recreate {reader} to read it from its beginning"
    )]
    Replaced {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: u32,
        /// Where the task would go on.
        position: Position,
        /// What tells the one from the other.
        evidence: String,
        /// The task.
        reader: String,
    },
}

/// Where a position comes from, in words.
const NEWEST: &str = "the newest checkpoint";
const BEGINNING: &str = "no checkpoint can be read, and where it once began";

impl Input<'_> {
    /// The state to go on from, and a reader at its position.
    ///
    /// # Errors
    /// Class stop: see [`CannotResume`]. Class retry while the log or the store does not answer, or the topic is not
    /// there.
    pub async fn open(&self) -> Result<(Checkpoint, Box<dyn Reader>), TaskError> {
        let newest = self.checkpoints.newest(self.partition).await?;
        let missing = || TopicError::UnknownTopic { topic: self.topic.clone() };
        let incarnation = self.log.describe(self.topic).await?.ok_or_else(missing)?.incarnation;
        let span = self.log.span(self.topic, self.partition).await?;
        let (mut state, origin) = match newest {
            Some(checkpoint) => (checkpoint, NEWEST),
            None => {
                let first = first(span, &incarnation);
                (self.checkpoints.begin(self.partition, &first).await?, BEGINNING)
            }
        };
        self.check_span(state.position, span, origin).map_err(TaskError::stop)?;
        let reader = self.reader_at(&state, span, &incarnation).await?;
        state.input = incarnation;
        Ok((state, reader))
    }

    fn check_span(&self, position: Position, span: Span, origin: &'static str) -> Result<(), CannotResume> {
        let (topic, partition, reader) = (self.topic.clone(), self.partition, self.reader.to_owned());
        if position.offset < span.start {
            return Err(CannotResume::Overtaken { topic, partition, start: span.start, origin, position, reader });
        }
        if position.offset > span.end {
            return Err(CannotResume::Ahead { topic, partition, end: span.end, origin, position, reader });
        }
        Ok(())
    }

    async fn reader_at(&self, state: &Checkpoint, span: Span, incarnation: &str) -> Result<Box<dyn Reader>, TaskError> {
        if !Safeguard::Incarnation.is_off() {
            if let Some(witness) = state.witness.filter(|witness| witness.offset >= span.start) {
                match self.question(witness, state.position).await? {
                    Testimony::Same(Some(reader)) => return Ok(reader),
                    Testimony::Same(None) => return self.plain_reader(state.position).await,
                    Testimony::None => {}
                }
            }
            if !state.input.is_empty() && state.input != incarnation {
                let evidence = format!("its log calls it `{incarnation}` where it was `{}`", state.input);
                return Err(self.replaced(state.position, evidence));
            }
        }
        self.plain_reader(state.position).await
    }

    async fn plain_reader(&self, position: Position) -> Result<Box<dyn Reader>, TaskError> {
        self.log.reader(self.topic, self.partition, position.offset).await.map_err(TaskError::from)
    }

    /// Reads the message again that was read last.
    async fn question(&self, witness: Witness, position: Position) -> Result<Testimony, TaskError> {
        let mut reader = match self.log.reader(self.topic, self.partition, witness.offset).await {
            // Retention took it between two looks.
            Err(TopicError::OffsetGone { .. }) => return Ok(Testimony::None),
            reader => reader?,
        };
        let read = tokio::time::timeout(WITNESS_WITHIN, reader.read(1)).await;
        let batch = read.map_err(|_| {
            let place = format!("message {}/{}@{}", self.topic, self.partition, witness.offset);
            TaskError::retry(anyhow::anyhow!("{place} did not come within {} s", WITNESS_WITHIN.as_secs()))
        })?;
        let batch = match batch {
            Err(TopicError::OffsetGone { .. }) => return Ok(Testimony::None),
            batch => batch?,
        };
        match batch.as_slice() {
            [message, rest @ ..] if message.offset == witness.offset => {
                if message.witness() != witness {
                    let evidence = format!("another message stands at offset {}", witness.offset);
                    return Err(self.replaced(position, evidence));
                }
                let goes_on = rest.is_empty() && position.offset == witness.offset + 1;
                Ok(Testimony::Same(goes_on.then_some(reader)))
            }
            _ => Ok(Testimony::None),
        }
    }

    fn replaced(&self, position: Position, evidence: String) -> TaskError {
        TaskError::stop(CannotResume::Replaced {
            topic: self.topic.clone(),
            partition: self.partition,
            position,
            evidence,
            reader: self.reader.to_owned(),
        })
    }
}

/// What the message last read has to say.
enum Testimony {
    /// It is the same topic; with the reader where that stands at the position now.
    Same(Option<Box<dyn Reader>>),
    /// The message is gone.
    None,
}

/// The state of a task that never ran.
fn first(span: Span, incarnation: &str) -> Checkpoint {
    let mut first = Checkpoint::at(Position::at(span.start));
    first.begins_late = span.start > 0;
    first.input = incarnation.to_owned();
    first
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

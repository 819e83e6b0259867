//! Reading a partition of the embedded log.
//!
//! Invariant: only what is durable is read, in order and without holes. A reader sleeps until the
//! writer publishes a new end; it never polls.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use redb::ReadableDatabase;
use tokio::sync::watch;

use crate::arena::Arena;
use crate::metrics::Received;
use crate::position::check_position;
use crate::{Message, Reader, TopicError};

use super::record::{decode_message, message_key, offset_of};
use super::state::{MESSAGES, Shared, TopicState};
use super::{EmbeddedLog, storage_error};

/// What a message costs a reader beyond its bytes, so that many empty ones are bounded too.
const READ_OVERHEAD_BYTES: usize = 64;

pub(super) struct EmbeddedReader {
    log: EmbeddedLog,
    topic: Arc<TopicState>,
    partition: u32,
    next: u64,
    ends: watch::Receiver<u64>,
    received: Received,
}

impl EmbeddedReader {
    pub(super) fn new(log: EmbeddedLog, topic: Arc<TopicState>, partition: u32, next: u64) -> Self {
        Self {
            log,
            ends: topic.partition(partition).ends(),
            received: Received::of(&topic.name),
            topic,
            partition,
            next,
        }
    }

    /// Reads on a thread that may block: what is not in the cache comes from the disk.
    async fn fetch(&self, max_bytes: usize) -> Result<Vec<Message>, TopicError> {
        let shared = Arc::clone(&self.log.0.shared);
        let topic = Arc::clone(&self.topic);
        let (partition, from) = (self.partition, self.next);
        let work = move || {
            let stored = fetch(&shared, topic.id, partition, from, max_bytes)
                .map_err(|error| storage_error(&shared.path, "reading messages", error))?;
            decode(&shared, &topic, partition, stored)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(batch) => batch,
            Err(panic) => Err(storage_error(self.log.path(), "reading messages", panic)),
        }
    }
}

#[async_trait]
impl Reader for EmbeddedReader {
    async fn read(&mut self, max_bytes: usize) -> Result<Vec<Message>, TopicError> {
        let next = self.next;
        // The sender lives in `topic`, so this only ends when there is something to read.
        drop(self.ends.wait_for(|end| *end > next).await);
        let batch = self.fetch(max_bytes).await?;
        let span = self.topic.partition(self.partition).span();
        if batch.first().is_none_or(|first| first.offset != next) {
            check_position(&self.topic.name, self.partition, next, span)?;
            return Err(self.hole(batch.first()));
        }
        if let Some(last) = batch.last() {
            self.next = last.offset + 1;
        }
        self.received.count(&batch);
        Ok(batch)
    }
}

impl EmbeddedReader {
    fn hole(&self, found: Option<&Message>) -> TopicError {
        TopicError::Corrupt {
            path: self.log.path().to_owned(),
            place: format!("`{}`/{}@{}", self.topic.name, self.partition, self.next),
            fault: match found {
                Some(message) => format!("the next message there is {}", message.offset),
                None => "there is no message".to_owned(),
            },
        }
    }
}

/// Copies stored messages out of their pages, once.
fn fetch(
    shared: &Shared,
    topic: u32,
    partition: u32,
    from: u64,
    max_bytes: usize,
) -> Result<Vec<(u64, Bytes)>, redb::Error> {
    let transaction = shared.database.begin_read()?;
    let messages = transaction.open_table(MESSAGES)?;
    let low = message_key(topic, partition, from);
    let high = message_key(topic, partition, u64::MAX);
    let mut arena = Arena::new();
    let mut batch = Vec::new();
    let mut budget = max_bytes;
    for entry in messages.range::<&[u8; 16]>(&low..&high)? {
        let (key, stored) = entry?;
        let stored = stored.value();
        let cost = stored.len() + READ_OVERHEAD_BYTES;
        if !batch.is_empty() && cost > budget {
            break;
        }
        budget = budget.saturating_sub(cost);
        batch.push((offset_of(key.value()), arena.copy(&[stored])));
    }
    Ok(batch)
}

fn decode(
    shared: &Shared,
    topic: &TopicState,
    partition: u32,
    stored: Vec<(u64, Bytes)>,
) -> Result<Vec<Message>, TopicError> {
    let decode = |(offset, bytes)| {
        decode_message(offset, bytes).map_err(|fault| TopicError::Corrupt {
            path: shared.path.clone(),
            place: format!("`{}`/{partition}@{offset}", topic.name),
            fault: fault.to_owned(),
        })
    };
    stored.into_iter().map(decode).collect()
}

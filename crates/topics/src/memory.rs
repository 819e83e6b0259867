//! A log in memory, for tests and simulations.
//!
//! Invariant: it keeps the same promises as the durable ones, and what it does depends on the calls
//! alone: no threads, no clock (unless one is given), no randomness. Faults are decided by a hook
//! that sees every append in order.
//! Deliberately absent: durability and automatic retention; [`MemoryLog::trim`] is the retention.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::clock::{Clock, wall_clock};
use crate::groups::Groups;
use crate::limits::{ByteLimit, BytePermit, MESSAGE_OVERHEAD_BYTES};
use crate::outstanding::{Outstanding, Pending};
use crate::position::check_position;
use crate::{
    Appender, Creation, Description, Log, Membership, Message, NewMessage, Reader, Receipt, Span, TopicError,
    TopicName, TopicSettings,
};

/// What happens to an append.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// It succeeds.
    #[default]
    None,
    /// It fails and leaves nothing behind. The caller cannot tell this from [`Fault::FailAfter`].
    FailBefore,
    /// It is in the log, but the reply got lost.
    FailAfter,
    /// It is in the log twice, and the receipt names the first.
    Duplicate,
    /// It waits, and with it everything after it in its partition, until [`MemoryLog::release`].
    Delay,
}

/// An append as the fault hook sees it.
#[derive(Debug)]
pub struct Attempt<'a> {
    /// Counts the appends of this log from 0, in order.
    pub number: u64,
    /// Where it goes.
    pub topic: &'a TopicName,
    /// Where it goes.
    pub partition: u32,
    /// What goes there.
    pub message: &'a NewMessage,
}

type Hook = Arc<dyn Fn(&Attempt<'_>) -> Fault + Send + Sync>;

/// A log in memory. Clones share it.
#[derive(Clone)]
pub struct MemoryLog(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    groups: Groups,
    limit: ByteLimit,
    /// Taken in the order of the calls, so that permits cannot reorder messages.
    turn: tokio::sync::Mutex<()>,
    outstanding: Arc<Outstanding>,
    clock: Clock,
}

#[derive(Default)]
struct State {
    topics: BTreeMap<TopicName, Topic>,
    hook: Option<Hook>,
    attempts: u64,
    created: u64,
}

struct Topic {
    incarnation: u64,
    max_message_bytes: usize,
    partitions: Vec<Partition>,
}

struct Partition {
    start: u64,
    messages: VecDeque<Message>,
    held: VecDeque<Queued>,
    end: watch::Sender<u64>,
}

/// A message that was taken and waits to take effect.
struct Queued {
    message: NewMessage,
    fault: Fault,
    pending: Pending,
}

impl Partition {
    fn new() -> Self {
        Self { start: 0, messages: VecDeque::new(), held: VecDeque::new(), end: watch::Sender::new(0) }
    }

    fn span(&self) -> Span {
        Span { start: self.start, end: self.start + self.messages.len() as u64 }
    }

    fn push(&mut self, message: NewMessage, now_ms: i64) -> u64 {
        let offset = self.span().end;
        self.messages.push_back(Message {
            offset,
            timestamp_ms: message.timestamp_ms.unwrap_or(now_ms),
            key: message.key,
            payload: message.payload,
            headers: message.headers,
        });
        offset
    }

    fn read(&self, from: u64, max_bytes: usize) -> Vec<Message> {
        let skip = usize::try_from(from - self.start).unwrap_or(usize::MAX);
        let mut budget = max_bytes;
        let mut batch = Vec::new();
        for message in self.messages.iter().skip(skip) {
            let bytes = message.payload.len();
            if !batch.is_empty() && bytes > budget {
                break;
            }
            budget = budget.saturating_sub(bytes);
            batch.push(message.clone());
        }
        batch
    }
}

impl Default for MemoryLog {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryLog").finish_non_exhaustive()
    }
}

impl MemoryLog {
    /// An empty log that takes 64 MiB in flight and stamps messages with the wall clock.
    pub fn new() -> Self {
        Self::with(64 << 20, wall_clock())
    }

    /// An empty log that stamps messages with this clock (milliseconds since 1970).
    pub fn with_clock(clock: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self::with(64 << 20, Arc::new(clock))
    }

    /// An empty log that takes only so many bytes in flight.
    pub fn with_max_inflight_bytes(max_inflight_bytes: usize) -> Self {
        Self::with(max_inflight_bytes, wall_clock())
    }

    fn with(max_inflight_bytes: usize, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            groups: Groups::default(),
            limit: ByteLimit::new(max_inflight_bytes),
            turn: tokio::sync::Mutex::new(()),
            outstanding: Arc::new(Outstanding::new()),
            clock,
        }))
    }

    /// Decides the fate of every append from now on; replaces the last hook. It runs under the lock
    /// of the log and must not call it.
    pub fn set_faults(&self, hook: impl Fn(&Attempt<'_>) -> Fault + Send + Sync + 'static) {
        self.0.state.lock().hook = Some(Arc::new(hook));
    }

    /// From now on every append succeeds. What is delayed stays delayed.
    pub fn clear_faults(&self) {
        self.0.state.lock().hook = None;
    }

    /// Lets everything that was delayed take effect, in order. Yields how many messages that were.
    pub fn release(&self) -> usize {
        let mut guard = self.0.state.lock();
        let mut released = 0;
        for (name, topic) in &mut guard.topics {
            for (number, partition) in topic.partitions.iter_mut().enumerate() {
                let held = std::mem::take(&mut partition.held);
                released += held.len();
                for queued in held {
                    let fault = match queued.fault {
                        Fault::Delay => Fault::None,
                        other => other,
                    };
                    let queued = Queued { fault, ..queued };
                    self.0.take_effect(name, number as u32, partition, queued);
                }
            }
        }
        released
    }

    /// Removes all messages below an offset, as retention would.
    pub fn trim(&self, topic: &TopicName, partition: u32, before: u64) -> Result<(), TopicError> {
        self.0.with_partition(topic, partition, |partition| {
            while partition.start < before && partition.messages.pop_front().is_some() {
                partition.start += 1;
            }
        })
    }

    /// Deletes a topic with everything in it. Yields whether it was there.
    pub fn delete(&self, topic: &TopicName) -> bool {
        let gone = self.0.state.lock().topics.remove(topic);
        if gone.is_some() {
            self.0.groups.topic(topic, 0);
        }
        gone.is_some()
    }
}

impl State {
    fn topic(&mut self, name: &TopicName) -> Result<&mut Topic, TopicError> {
        self.topics.get_mut(name).ok_or_else(|| TopicError::UnknownTopic { topic: name.clone() })
    }

    fn partition(&mut self, name: &TopicName, partition: u32) -> Result<&mut Partition, TopicError> {
        let topic = self.topic(name)?;
        let partitions = topic.partitions.len() as u32;
        topic.partitions.get_mut(partition as usize).ok_or_else(|| TopicError::UnknownPartition {
            topic: name.clone(),
            partition,
            partitions,
        })
    }
}

impl Inner {
    fn with_partition<T>(
        &self,
        topic: &TopicName,
        partition: u32,
        act: impl FnOnce(&mut Partition) -> T,
    ) -> Result<T, TopicError> {
        let mut state = self.state.lock();
        state.partition(topic, partition).map(act)
    }

    fn check(&self, topic: &TopicName, partition: u32, message: &NewMessage) -> Result<(), TopicError> {
        let mut state = self.state.lock();
        state.partition(topic, partition)?;
        let limit = state.topic(topic)?.max_message_bytes;
        let bytes = message.content_bytes();
        if bytes > limit {
            return Err(TopicError::TooLarge { topic: topic.clone(), partition, bytes, limit });
        }
        Ok(())
    }

    /// Asks the hook, then lets the message take effect or holds it.
    fn queue(
        &self,
        topic: &TopicName,
        partition: u32,
        message: NewMessage,
        permit: BytePermit,
    ) -> Result<Receipt, TopicError> {
        let mut state = self.state.lock();
        let attempt = Attempt { number: state.attempts, topic, partition, message: &message };
        let fault = state.hook.as_ref().map_or(Fault::None, |hook| hook(&attempt));
        state.attempts += 1;
        let place = state.partition(topic, partition)?;
        let (pending, receipt) = Pending::begin(&self.outstanding, permit);
        let queued = Queued { message, fault, pending };
        if fault == Fault::Delay || !place.held.is_empty() {
            place.held.push_back(queued);
        } else {
            self.take_effect(topic, partition, place, queued);
        }
        Ok(receipt)
    }

    fn take_effect(&self, topic: &TopicName, number: u32, place: &mut Partition, queued: Queued) {
        let Queued { message, fault, pending } = queued;
        let now_ms = (self.clock)();
        let failed = || TopicError::AppendFailed { topic: topic.clone(), partition: number };
        let outcome = match fault {
            Fault::None | Fault::Delay => Ok(place.push(message, now_ms)),
            Fault::FailBefore => Err(failed()),
            Fault::FailAfter => {
                place.push(message, now_ms);
                Err(failed())
            }
            Fault::Duplicate => {
                let first = place.push(message.clone(), now_ms);
                place.push(message, now_ms);
                Ok(first)
            }
        };
        place.end.send_replace(place.span().end);
        pending.settle(outcome);
    }
}

#[async_trait]
impl Log for MemoryLog {
    async fn create(&self, topic: &TopicName, settings: &TopicSettings) -> Result<Creation, TopicError> {
        if settings.partitions == 0 {
            return Err(TopicError::Settings {
                topic: topic.clone(),
                reason: "expected at least 1 partition, found 0".to_owned(),
            });
        }
        let mut state = self.0.state.lock();
        if state.topics.contains_key(topic) {
            return Ok(Creation::Existed);
        }
        state.created += 1;
        let made = Topic {
            incarnation: state.created,
            max_message_bytes: settings.max_message_bytes,
            partitions: (0..settings.partitions).map(|_| Partition::new()).collect(),
        };
        state.topics.insert(topic.clone(), made);
        drop(state);
        self.0.groups.topic(topic, settings.partitions);
        Ok(Creation::Created)
    }

    async fn grow(&self, topic: &TopicName, partitions: u32) -> Result<u32, TopicError> {
        let mut state = self.0.state.lock();
        let found = &mut state.topic(topic)?.partitions;
        let grown = found.len() < partitions as usize;
        while found.len() < partitions as usize {
            found.push(Partition::new());
        }
        let count = found.len() as u32;
        drop(state);
        if grown {
            self.0.groups.topic(topic, count);
        }
        Ok(count)
    }

    async fn describe(&self, topic: &TopicName) -> Result<Option<Description>, TopicError> {
        let state = self.0.state.lock();
        Ok(state.topics.get(topic).map(|topic| Description {
            partitions: topic.partitions.len() as u32,
            incarnation: topic.incarnation.to_string(),
        }))
    }

    async fn span(&self, topic: &TopicName, partition: u32) -> Result<Span, TopicError> {
        self.0.with_partition(topic, partition, |p| p.span())
    }

    async fn reader(&self, topic: &TopicName, partition: u32, from: u64) -> Result<Box<dyn Reader>, TopicError> {
        let (span, end) = self.0.with_partition(topic, partition, |p| (p.span(), p.end.subscribe()))?;
        check_position(topic, partition, from, span)?;
        Ok(Box::new(MemoryReader { log: Arc::clone(&self.0), topic: topic.clone(), partition, next: from, end }))
    }

    fn appender(&self) -> Arc<dyn Appender> {
        Arc::new(MemoryAppender(Arc::clone(&self.0)))
    }

    async fn join(&self, group: &str, topics: Vec<TopicName>) -> Result<Box<dyn Membership>, TopicError> {
        Ok(Box::new(self.0.groups.join(group, topics)))
    }
}

struct MemoryAppender(Arc<Inner>);

#[async_trait]
impl Appender for MemoryAppender {
    async fn append(&self, topic: &TopicName, partition: u32, message: NewMessage) -> Result<Receipt, TopicError> {
        self.0.check(topic, partition, &message)?;
        let _turn = self.0.turn.lock().await;
        let bytes = message.content_bytes() + MESSAGE_OVERHEAD_BYTES;
        let permit = self.0.limit.take(bytes).await;
        self.0.queue(topic, partition, message, permit)
    }

    async fn flush(&self) -> Result<(), TopicError> {
        self.0.outstanding.drained().await
    }
}

struct MemoryReader {
    log: Arc<Inner>,
    topic: TopicName,
    partition: u32,
    next: u64,
    end: watch::Receiver<u64>,
}

#[async_trait]
impl Reader for MemoryReader {
    async fn read(&mut self, max_bytes: usize) -> Result<Vec<Message>, TopicError> {
        let next = self.next;
        let grown = self.end.wait_for(|end| *end > next).await.is_ok();
        if !grown {
            // The partition went with its topic, even where one of the same name was made since.
            return Err(TopicError::UnknownTopic { topic: self.topic.clone() });
        }
        let (span, batch) = self.log.with_partition(&self.topic, self.partition, |p| {
            let readable = next >= p.start;
            let batch = if readable { p.read(next, max_bytes) } else { Vec::new() };
            (p.span(), batch)
        })?;
        check_position(&self.topic, self.partition, next, span)?;
        if let Some(last) = batch.last() {
            self.next = last.offset + 1;
        }
        Ok(batch)
    }
}

#[cfg(test)]
mod tests;

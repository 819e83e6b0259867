//! A log in memory, for tests and simulations.
//!
//! Invariant: it keeps the same promises as the durable ones (a fault may be told to break one), and what it does
//! depends on the calls alone: no threads, no clock (unless one is given), no randomness. Faults are decided by a hook
//! that sees every append in order.
//! Deliberately absent: durability and automatic retention; [`MemoryLog::trim`] is the retention.

mod fault;
mod partition;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::broken::Broken;
use crate::clock::{Clock, wall_clock};
use crate::groups::Groups;
use crate::limits::{ByteLimit, BytePermit, MESSAGE_OVERHEAD_BYTES};
use crate::outstanding::{Outstanding, Pending};
use crate::position::check_position;
use crate::{
    Appender, Creation, Description, Log, Membership, Message, NewMessage, Reader, Receipt, Span, TopicError,
    TopicName, TopicSettings,
};

use fault::Hook;
pub use fault::{Attempt, Fault};
use partition::{Growth, Partition, Queued};

/// A log in memory. Clones share it, and its appender; [`MemoryLog::reconnected`] gives what another process has.
#[derive(Clone)]
pub struct MemoryLog {
    inner: Arc<Inner>,
    connection: Arc<Connection>,
}

struct Inner {
    state: Mutex<State>,
    groups: Groups,
    clock: Clock,
}

/// What belongs to one appender.
struct Connection {
    number: u64,
    limit: ByteLimit,
    /// Taken in the order of the calls, so that permits cannot reorder messages.
    turn: tokio::sync::Mutex<()>,
    outstanding: Arc<Outstanding>,
    broken: Broken,
}

#[derive(Default)]
struct State {
    topics: BTreeMap<TopicName, Topic>,
    hook: Option<Hook>,
    attempts: u64,
    created: u64,
    connections: u64,
}

struct Topic {
    incarnation: u64,
    max_message_bytes: usize,
    partitions: Vec<Partition>,
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
        let inner = Arc::new(Inner { state: Mutex::default(), groups: Groups::default(), clock });
        Self { connection: Connection::open(&inner, max_inflight_bytes), inner }
    }

    /// The same log as another process sees it: with an appender of its own, whose failures and delays are its own.
    pub fn reconnected(&self) -> Self {
        let connection = Connection::open(&self.inner, self.connection.limit.limit_bytes());
        Self { inner: Arc::clone(&self.inner), connection }
    }

    /// Decides the fate of every append from now on; replaces the last hook. It runs under the lock
    /// of the log and must not call it.
    pub fn set_faults(&self, hook: impl Fn(&Attempt<'_>) -> Fault + Send + Sync + 'static) {
        self.inner.state.lock().hook = Some(Arc::new(hook));
    }

    /// Breaks this connection for good.
    pub fn break_for_good(&self, reason: TopicError) {
        self.connection.broken.set(|| reason);
    }

    /// From now on every append succeeds. What is delayed stays delayed.
    pub fn clear_faults(&self) {
        self.inner.state.lock().hook = None;
    }

    /// Lets everything that was delayed take effect, in order. Yields how many messages that were.
    pub fn release(&self) -> usize {
        self.release_where(|_, _| true)
    }

    /// As [`release`](Self::release), for some partitions.
    pub fn release_where(&self, mut chosen: impl FnMut(&TopicName, u32) -> bool) -> usize {
        let mut guard = self.inner.state.lock();
        let now_ms = (self.inner.clock)();
        let mut released = 0;
        for (name, topic) in &mut guard.topics {
            for (number, partition) in (0..).zip(&mut topic.partitions) {
                if chosen(name, number) {
                    released += partition.release(now_ms, &failed(name, number));
                }
            }
        }
        released
    }

    /// Removes all messages below an offset, as retention would.
    pub fn trim(&self, topic: &TopicName, partition: u32, before: u64) -> Result<(), TopicError> {
        self.inner.with_partition(topic, partition, |partition| {
            while partition.start < before && partition.messages.pop_front().is_some() {
                partition.start += 1;
            }
        })
    }

    /// Everybody in a group loses the place for good: only joining anew helps.
    pub fn evict(&self, group: &str) {
        self.inner.groups.evict(group);
    }

    /// Deletes a topic with everything in it. Yields whether it was there.
    pub fn delete(&self, topic: &TopicName) -> bool {
        let gone = self.inner.state.lock().topics.remove(topic);
        if gone.is_some() {
            self.inner.groups.topic(topic, 0);
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
        connection: &Connection,
        (topic, partition): (&TopicName, u32),
        message: NewMessage,
        permit: BytePermit,
    ) -> Result<Receipt, TopicError> {
        let mut state = self.state.lock();
        let failed = failed(topic, partition);
        if state.partition(topic, partition)?.is_broken_for(connection.number) {
            return Err(failed);
        }
        let attempt = Attempt { number: state.attempts, topic, partition, message: &message };
        let fault = state.hook.as_ref().map_or(Fault::None, |hook| hook(&attempt));
        state.attempts += 1;
        let (pending, mut receipt) = Pending::begin(&connection.outstanding, permit);
        let queued = Queued { message, fault, pending, unseen: receipt.unseen() };
        state.partition(topic, partition)?.take(connection.number, queued, (self.clock)(), &failed);
        Ok(receipt)
    }
}

impl Connection {
    fn open(inner: &Inner, max_inflight_bytes: usize) -> Arc<Self> {
        let mut state = inner.state.lock();
        state.connections += 1;
        Arc::new(Self {
            number: state.connections,
            limit: ByteLimit::new(max_inflight_bytes),
            turn: tokio::sync::Mutex::new(()),
            outstanding: Arc::new(Outstanding::new()),
            broken: Broken::default(),
        })
    }
}

fn failed(topic: &TopicName, partition: u32) -> TopicError {
    TopicError::AppendFailed { topic: topic.clone(), partition }
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
        let mut state = self.inner.state.lock();
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
        self.inner.groups.topic(topic, settings.partitions);
        Ok(Creation::Created)
    }

    async fn grow(&self, topic: &TopicName, partitions: u32) -> Result<u32, TopicError> {
        let mut state = self.inner.state.lock();
        let found = &mut state.topic(topic)?.partitions;
        let grown = found.len() < partitions as usize;
        while found.len() < partitions as usize {
            found.push(Partition::new());
        }
        let count = found.len() as u32;
        drop(state);
        if grown {
            self.inner.groups.topic(topic, count);
        }
        Ok(count)
    }

    async fn describe(&self, topic: &TopicName) -> Result<Option<Description>, TopicError> {
        let state = self.inner.state.lock();
        Ok(state.topics.get(topic).map(|topic| Description {
            partitions: topic.partitions.len() as u32,
            incarnation: topic.incarnation.to_string(),
        }))
    }

    async fn span(&self, topic: &TopicName, partition: u32) -> Result<Span, TopicError> {
        self.inner.with_partition(topic, partition, |p| p.span())
    }

    async fn reader(&self, topic: &TopicName, partition: u32, from: u64) -> Result<Box<dyn Reader>, TopicError> {
        let (span, growth) = self.inner.with_partition(topic, partition, |p| (p.span(), Arc::clone(&p.growth)))?;
        check_position(topic, partition, from, span)?;
        Ok(Box::new(MemoryReader { log: Arc::clone(&self.inner), topic: topic.clone(), partition, next: from, growth }))
    }

    fn appender(&self) -> Arc<dyn Appender> {
        Arc::new(MemoryAppender(self.clone()))
    }

    async fn join(&self, group: &str, topics: Vec<TopicName>) -> Result<Box<dyn Membership>, TopicError> {
        Ok(Box::new(self.inner.groups.join(group, topics)))
    }

    async fn broken(&self) -> TopicError {
        self.connection.broken.wait().await
    }
}

struct MemoryAppender(MemoryLog);

#[async_trait]
impl Appender for MemoryAppender {
    async fn append(&self, topic: &TopicName, partition: u32, message: NewMessage) -> Result<Receipt, TopicError> {
        let MemoryLog { inner, connection } = &self.0;
        inner.check(topic, partition, &message)?;
        let _turn = connection.turn.lock().await;
        let bytes = message.content_bytes() + MESSAGE_OVERHEAD_BYTES;
        let permit = connection.limit.take(bytes).await;
        inner.queue(connection, (topic, partition), message, permit)
    }

    async fn flush(&self) -> Result<(), TopicError> {
        self.0.connection.outstanding.drained().await
    }
}

struct MemoryReader {
    log: Arc<Inner>,
    topic: TopicName,
    partition: u32,
    next: u64,
    growth: Arc<Growth>,
}

#[async_trait]
impl Reader for MemoryReader {
    async fn read(&mut self, max_bytes: usize) -> Result<Vec<Message>, TopicError> {
        let next = self.next;
        if !self.growth.beyond(next).await {
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

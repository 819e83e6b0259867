//! Reading from Kafka.
//!
//! Invariant: a reader gets the messages of its partition from exactly the offset it was opened at,
//! whatever groups say, and only what is committed. Memory is bounded per reader: librdkafka stops
//! fetching for a partition while its queue is full.
//!
//! One client serves many readers. It can hold each partition once, so a second reader of the same
//! partition goes to a second client; there are as many clients as readers of the busiest partition, and at most one
//! that waits for the next such reader: each has threads and connections. One more asks
//! where partitions begin and end, and never reads: brokers answer in turn, and a question on a connection that
//! fetches waits until the fetch has something, or has waited long enough.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::Notify;

use crate::arena::Arena;
use crate::metrics::Received;
use crate::position::check_position;
use crate::{Headers, Message, Reader, TopicError, TopicName};

use super::admin::{blocking, partitions, span};
use super::client::{Quiet, failed};
use super::config::KafkaConfig;

const POLL: Duration = Duration::from_millis(250);
/// What a message costs beyond its bytes, so that many empty ones are bounded too.
const READ_OVERHEAD_BYTES: usize = 64;

/// A client that reads any number of partitions, each at most once.
pub(super) struct Client {
    consumer: Arc<BaseConsumer<Quiet>>,
    taken: Mutex<BTreeSet<(TopicName, u32)>>,
    stop: Arc<AtomicBool>,
    polling: Mutex<Option<JoinHandle<()>>>,
}

impl Client {
    pub(super) fn start(config: &KafkaConfig) -> Result<Arc<Self>, TopicError> {
        let consumer: BaseConsumer<Quiet> = config
            .reader()
            .create_with_context(Quiet::new("reader"))
            .map_err(|error| failed("set up a consumer", error))?;
        let consumer = Arc::new(consumer);
        let stop = Arc::new(AtomicBool::new(false));
        let (polled, stopped) = (Arc::clone(&consumer), Arc::clone(&stop));
        let poll = move || {
            // Messages go to the queues of their partitions; here come events and global errors,
            // which the context reports.
            while !stopped.load(Ordering::Acquire) {
                drop(polled.poll(POLL));
            }
        };
        let polling =
            std::thread::Builder::new().name("topics-kafka-reader".to_owned()).spawn(poll).map_err(super::no_thread)?;
        Ok(Arc::new(Self { consumer, taken: Mutex::default(), stop, polling: Mutex::new(Some(polling)) }))
    }

    pub(super) fn consumer(&self) -> &Arc<BaseConsumer<Quiet>> {
        &self.consumer
    }

    fn take(&self, topic: &TopicName, partition: u32) -> bool {
        self.taken.lock().insert((topic.clone(), partition))
    }

    fn give_back(&self, topic: &TopicName, partition: u32) {
        self.taken.lock().remove(&(topic.clone(), partition));
    }

    fn is_idle(&self) -> bool {
        self.taken.lock().is_empty()
    }

    /// Has the client look at a topic now: what it is to read may be newer than what it knows. Blocks.
    fn learn(&self, topic: &TopicName, partition: u32) -> Result<(), TopicError> {
        match partitions(&self.consumer, topic)? {
            Some(known) if known > partition => Ok(()),
            // Another client knows it, from another broker perhaps: worth another try.
            _ => {
                let error = KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownPartition);
                Err(failed(format!("find `{topic}`/{partition} on every broker"), error))
            }
        }
    }

    fn assign(&self, topic: &TopicName, partition: u32, from: u64) -> Result<(), TopicError> {
        let doing = || format!("start reading `{topic}`/{partition} at {from}");
        let list = place(topic, partition, from).map_err(|error| failed(doing(), error))?;
        self.consumer.incremental_assign(&list).map_err(|error| failed(doing(), error))
    }

    fn unassign(&self, topic: &TopicName, partition: u32) {
        let list = place(topic, partition, 0);
        if let Err(error) = list.and_then(|list| self.consumer.incremental_unassign(&list)) {
            tracing::warn!(%topic, partition, %error, "Kafka did not let go of a partition");
        }
    }
}

fn place(topic: &TopicName, partition: u32, offset: u64) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    let offset = Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX));
    list.add_partition_offset(topic.as_str(), partition as i32, offset)?;
    Ok(list)
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(polling) = self.polling.lock().take()
            && polling.join().is_err()
        {
            tracing::error!("poller of a Kafka consumer panicked");
        }
    }
}

/// All clients that read for one log.
pub(super) struct Clients {
    config: KafkaConfig,
    asking: Arc<Client>,
    reading: Mutex<Vec<Arc<Client>>>,
}

impl Clients {
    /// None that reads yet; `asking` never will.
    pub(super) fn new(config: KafkaConfig, asking: Arc<Client>) -> Self {
        Self { config, asking, reading: Mutex::default() }
    }

    /// A client on which this partition is now reserved for the caller.
    fn take(&self, topic: &TopicName, partition: u32) -> Result<Arc<Client>, TopicError> {
        let mut reading = self.reading.lock();
        // librdkafka keeps the leader epochs of the topic before, and would ignore the leaders of the new one.
        let is_new = |client: &Client| client.consumer.context().recreations(topic.as_str()) == 0;
        if let Some(client) = reading.iter().find(|client| is_new(client) && client.take(topic, partition)) {
            return Ok(Arc::clone(client));
        }
        let client = Client::start(&self.config)?;
        client.take(topic, partition);
        reading.push(Arc::clone(&client));
        Ok(client)
    }

    /// Ends a client that nobody reads with any more, unless it is the only one. The caller's hold on it goes, too.
    fn let_go(&self, client: Arc<Client>) {
        let mut reading = self.reading.lock();
        // While the lock is held nobody gets a partition on it, and the list holds it.
        let spare = |other: &Arc<Client>| !Arc::ptr_eq(other, &client) && other.is_idle();
        let is_one_too_many = client.is_idle() && reading.iter().any(spare);
        let place = reading.iter().position(|other| Arc::ptr_eq(other, &client));
        let ended = match place {
            Some(place) => {
                drop(client);
                is_one_too_many.then(|| reading.remove(place))
            }
            // Ended when its last reader but this one let go. This may be the last hold on it.
            None => Some(client),
        };
        drop(reading);
        if let Some(ended) = ended {
            end(ended);
        }
    }

    /// Opens a reader after checking its position. Blocks.
    pub(super) fn open(
        self: &Arc<Self>,
        topic: &TopicName,
        partition: u32,
        from: u64,
    ) -> Result<KafkaReader, TopicError> {
        let found = span(&self.asking.consumer, topic, partition)?;
        check_position(topic, partition, from, found)?;
        let client = self.take(topic, partition)?;
        if let Err(error) = client.learn(topic, partition) {
            client.give_back(topic, partition);
            self.let_go(client);
            return Err(error);
        }
        let queue = client.consumer.split_partition_queue(topic.as_str(), partition as i32);
        let woken = Arc::new(Notify::new());
        let queue = queue.map(|mut queue| {
            let woken = Arc::clone(&woken);
            queue.set_nonempty_callback(move || woken.notify_one());
            queue
        });
        // From here on dropping the reader gives the partition back, also when assigning fails.
        let reader = KafkaReader {
            queue,
            topic: topic.clone(),
            partition,
            next: from,
            arena: Arena::new(),
            woken,
            failure: None,
            recreations: client.consumer.context().recreations(topic.as_str()),
            received: Received::of(topic),
            asking: Arc::clone(&self.asking),
            clients: Arc::downgrade(self),
            client,
        };
        reader.client.assign(topic, partition, from)?;
        Ok(reader)
    }
}

/// Drops a client on a thread of its own: whoever drops it last waits for its poller, and readers are dropped where
/// nothing may wait, with or without a runtime.
fn end(client: Arc<Client>) {
    let ending = std::thread::Builder::new().name("topics-kafka-ending".to_owned()).spawn(move || drop(client));
    if let Err(error) = ending {
        tracing::warn!(%error, "no thread to end a Kafka client on; it was waited for");
    }
}

/// Reads one partition.
pub(super) struct KafkaReader {
    /// Only absent while dropping.
    queue: Option<PartitionQueue<Quiet>>,
    topic: TopicName,
    partition: u32,
    next: u64,
    arena: Arena,
    woken: Arc<Notify>,
    /// What librdkafka reported and has not been answered yet.
    failure: Option<KafkaError>,
    /// As many as when this reader was opened, or what it reads is another topic.
    recreations: u64,
    received: Received,
    asking: Arc<Client>,
    clients: Weak<Clients>,
    client: Arc<Client>,
}

impl KafkaReader {
    /// Takes what has arrived, without waiting.
    fn drain(&mut self, max_bytes: usize) -> Vec<Message> {
        let mut batch = Vec::new();
        let mut budget = max_bytes;
        let Some(queue) = &self.queue else {
            return batch;
        };
        while batch.is_empty() || budget > 0 {
            match queue.poll(Duration::ZERO) {
                None => break,
                Some(Err(error)) => {
                    self.failure = Some(error);
                    break;
                }
                Some(Ok(found)) => {
                    let Some(message) = take(&mut self.arena, &found, self.next) else {
                        continue;
                    };
                    self.next = message.offset + 1;
                    budget = budget.saturating_sub(message.payload.len() + READ_OVERHEAD_BYTES);
                    batch.push(message);
                }
            }
        }
        batch
    }

    fn assign_anew(&self) -> Result<(), TopicError> {
        self.client.unassign(&self.topic, self.partition);
        self.client.assign(&self.topic, self.partition, self.next)
    }

    /// Finds out what a failure means: retention, a topic that is gone, or something that passes.
    async fn diagnose(&mut self, error: KafkaError) -> TopicError {
        let (topic, partition, next) = (self.topic.clone(), self.partition, self.next);
        let asking = Arc::clone(&self.asking);
        let client = Arc::clone(&self.client);
        let found = blocking(move || {
            let found = span(&asking.consumer, &topic, partition)?;
            check_position(&topic, partition, next, found)?;
            // Before it lets go: a reader that is asked again must still have its partition.
            client.learn(&topic, partition)
        })
        .await
        // The position is fine, so whatever it was has passed: start again from it. Not on the other thread, which goes
        // on where this call is dropped, and may come back when the next reader has the partition.
        .and_then(|()| self.assign_anew());
        let doing = || format!("read `{}`/{} at {}", self.topic, self.partition, next);
        self.failure = None;
        match found {
            Err(reason) if !is_passing(&error) => reason,
            _ => failed(doing(), error),
        }
    }
}

/// Errors whose cause is not to be looked for in the partition.
fn is_passing(error: &KafkaError) -> bool {
    !matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::UnknownTopicOrPartition
        )
    )
}

#[async_trait]
impl Reader for KafkaReader {
    async fn read(&mut self, max_bytes: usize) -> Result<Vec<Message>, TopicError> {
        loop {
            // Kept until it is answered: this call may be dropped while it asks.
            if let Some(error) = self.failure.clone() {
                return Err(self.diagnose(error).await);
            }
            let batch = self.drain(max_bytes);
            // librdkafka goes on at the same offset of the new topic; what it brings from there is not taken.
            if self.client.consumer.context().recreations(self.topic.as_str()) != self.recreations {
                return Err(TopicError::Recreated { topic: self.topic.clone() });
            }
            if !batch.is_empty() {
                self.received.count(&batch);
                return Ok(batch);
            }
            if self.failure.is_none() {
                self.woken.notified().await;
            }
        }
    }
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        self.client.unassign(&self.topic, self.partition);
        // Before the partition is given back: dropping the queue takes away the callback, which must
        // not be that of the next reader.
        drop(self.queue.take());
        self.client.give_back(&self.topic, self.partition);
        // Not dropped with this reader, which may be the last to hold it.
        let client = std::mem::replace(&mut self.client, Arc::clone(&self.asking));
        if let Some(clients) = self.clients.upgrade() {
            clients.let_go(client);
        }
    }
}

/// Copies a message out of librdkafka's memory: one copy for key and payload together.
fn take(arena: &mut Arena, found: &BorrowedMessage<'_>, next: u64) -> Option<Message> {
    let offset = u64::try_from(found.offset()).ok().filter(|offset| *offset >= next)?;
    let key = found.key();
    let mut payload = arena.copy(&[key.unwrap_or_default(), found.payload().unwrap_or_default()]);
    let key = key.map(|key| payload.split_to(key.len()));
    let timestamp_ms = found.timestamp().to_millis().unwrap_or(0);
    Some(Message { offset, timestamp_ms, key, payload, headers: take_headers(arena, found) })
}

fn take_headers(arena: &mut Arena, found: &BorrowedMessage<'_>) -> Headers {
    let Some(headers) = found.headers() else {
        return Headers::new();
    };
    let mut taken = Headers::with_capacity(headers.count());
    for index in 0..headers.count() {
        // rdkafka panics at a name that is not UTF-8, and anybody may write one into a user's topic.
        // Such a header is left out; the message is not.
        let header = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let header = headers.try_get(index)?;
            let value = header.value.map_or_else(Bytes::new, |value| arena.copy(&[value]));
            Some((header.key.to_owned(), value))
        }));
        if let Ok(Some(header)) = header {
            taken.push(header);
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_clients_nobody_reads_with_one_is_kept_for_the_next_reader() {
        // Nobody has to be there: a client connects when it has to.
        let config = KafkaConfig { brokers: "127.0.0.1:1".to_owned(), ..KafkaConfig::default() };
        let asking = Client::start(&config).expect("a client");
        let clients = Clients::new(config, asking);
        let topic = TopicName::new("busy").expect("a name");
        let take = |partition| clients.take(&topic, partition).expect("a client");
        let give_back = |client: Arc<Client>, partition| {
            client.give_back(&topic, partition);
            clients.let_go(client);
        };
        let count = || clients.reading.lock().len();
        let readers: Vec<_> = (0..4).map(|_| take(0)).collect();
        let other = take(1);
        assert_eq!(count(), 4);
        for client in readers {
            give_back(client, 0);
        }
        assert_eq!(count(), 2, "one has a reader still, one is kept");
        let next = (take(0), take(0));
        assert_eq!(count(), 2);
        give_back(other, 1);
        give_back(next.0, 0);
        give_back(next.1, 0);
        assert_eq!(count(), 1);
    }
}

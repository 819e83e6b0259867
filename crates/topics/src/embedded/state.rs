//! What the callers, the writer and the readers of one embedded log share.
//!
//! Invariant: the ends and starts published here are those of the last durable commit. Only the
//! writer thread changes them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, RwLock};
use redb::{Database, ReadableTable, TableDefinition};
use tokio::sync::{oneshot, watch};

use crate::broken::Broken;
use crate::groups::Groups;
use crate::limits::ByteLimit;
use crate::metrics::{Inflight, Sent};
use crate::outstanding::{Outstanding, Pending};
use crate::{Clock, Creation, NewMessage, Span, TopicError, TopicName, TopicSettings};

use super::lock::FolderLock;
use super::record::TopicRecord;
use super::{EmbeddedOptions, storage_error};

/// Key (topic, partition, offset) to the bytes of a message.
pub(super) const MESSAGES: TableDefinition<&[u8; 16], &[u8]> = TableDefinition::new("messages");
/// Name to number and settings.
pub(super) const TOPICS: TableDefinition<&str, &[u8]> = TableDefinition::new("topics");
/// (topic, partition) to (start, next offset, stored bytes).
pub(super) const PARTITIONS: TableDefinition<(u32, u32), (u64, u64, u64)> = TableDefinition::new("partitions");
/// Single numbers, see the names below.
pub(super) const NUMBERS: TableDefinition<&str, u64> = TableDefinition::new("numbers");
/// Milliseconds since 1970 when this log was made: tells it from another one in the same folder.
const MADE_AT: &str = "made_at";
/// The number the next topic gets.
pub(super) const NEXT_TOPIC: &str = "next_topic";

/// One embedded log that is open.
pub(super) struct Shared {
    pub(super) path: PathBuf,
    pub(super) options: EmbeddedOptions,
    pub(super) made_at: u64,
    pub(super) queue: Queue,
    pub(super) limit: ByteLimit,
    pub(super) inflight: Inflight,
    pub(super) outstanding: Arc<Outstanding>,
    pub(super) groups: Groups,
    pub(super) broken: Broken,
    topics: RwLock<BTreeMap<TopicName, Arc<TopicState>>>,
    // The order matters: the file is closed before the folder is unlocked.
    pub(super) database: Database,
    _lock: FolderLock,
}

/// A topic and where its partitions stand.
pub(super) struct TopicState {
    pub(super) id: u32,
    pub(super) name: TopicName,
    pub(super) settings: TopicSettings,
    pub(super) sent: Sent,
    partitions: Vec<Arc<PartitionState>>,
}

/// Where a partition stands.
#[derive(Debug)]
pub(super) struct PartitionState {
    start: AtomicU64,
    bytes: AtomicU64,
    end: watch::Sender<u64>,
}

/// The numbers of a partition as they are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) start: u64,
    pub(super) next: u64,
    pub(super) bytes: u64,
}

impl Place {
    pub(super) fn stored(self) -> (u64, u64, u64) {
        (self.start, self.next, self.bytes)
    }

    fn of((start, next, bytes): (u64, u64, u64)) -> Self {
        Self { start, next, bytes }
    }
}

impl PartitionState {
    fn new(place: Place) -> Self {
        Self {
            start: AtomicU64::new(place.start),
            bytes: AtomicU64::new(place.bytes),
            end: watch::Sender::new(place.next),
        }
    }

    pub(super) fn place(&self) -> Place {
        Place {
            start: self.start.load(Ordering::Acquire),
            next: *self.end.borrow(),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    pub(super) fn span(&self) -> Span {
        let place = self.place();
        Span { start: place.start, end: place.next }
    }

    pub(super) fn ends(&self) -> watch::Receiver<u64> {
        self.end.subscribe()
    }

    /// Shows what was just committed, and wakes the readers where there is something new.
    pub(super) fn publish(&self, place: Place) {
        self.start.store(place.start, Ordering::Release);
        self.bytes.store(place.bytes, Ordering::Relaxed);
        self.end.send_if_modified(|end| place.next != std::mem::replace(end, place.next));
    }
}

impl TopicState {
    pub(super) fn new(name: TopicName, record: TopicRecord, places: Vec<Place>) -> Self {
        Self {
            id: record.id,
            sent: Sent::of(&name),
            name,
            settings: record.settings,
            partitions: places.into_iter().map(PartitionState::new).map(Arc::new).collect(),
        }
    }

    /// The same topic with more partitions. Those that are there are shared with the former state, which readers and
    /// appends under way still hold.
    pub(super) fn grown(&self, record: TopicRecord) -> Self {
        let missing = (record.settings.partitions as usize).saturating_sub(self.partitions.len());
        let new = (0..missing).map(|_| Arc::new(PartitionState::new(Place::default())));
        Self {
            id: record.id,
            sent: Sent::of(&self.name),
            name: self.name.clone(),
            settings: record.settings,
            partitions: self.partitions.iter().cloned().chain(new).collect(),
        }
    }

    /// A partition that [`Shared::topic_with`] has checked.
    pub(super) fn partition(&self, partition: u32) -> &PartitionState {
        &self.partitions[partition as usize]
    }

    pub(super) fn partitions(&self) -> impl Iterator<Item = (u32, &PartitionState)> {
        (0..).zip(self.partitions.iter().map(Arc::as_ref))
    }
}

impl Shared {
    /// Reads what a file holds, and makes the tables of a new one.
    pub(super) fn load(
        path: &Path,
        database: Database,
        lock: FolderLock,
        options: EmbeddedOptions,
    ) -> Result<Self, TopicError> {
        let made_at =
            prepare(&database, &options.clock).map_err(|error| storage_error(path, "making its tables", error))?;
        let topics = load_topics(path, &database)?;
        let groups = Groups::default();
        for topic in topics.values() {
            groups.topic(&topic.name, topic.settings.partitions);
        }
        let limit = ByteLimit::new(options.max_inflight_bytes);
        Ok(Self {
            path: path.to_owned(),
            made_at,
            queue: Queue::default(),
            inflight: Inflight::of("embedded", limit.limit_bytes()),
            limit,
            outstanding: Arc::new(Outstanding::new()),
            groups,
            broken: Broken::default(),
            topics: RwLock::new(topics),
            options,
            database,
            _lock: lock,
        })
    }

    pub(super) fn topic(&self, name: &TopicName) -> Result<Arc<TopicState>, TopicError> {
        let topics = self.topics.read();
        topics.get(name).cloned().ok_or_else(|| TopicError::UnknownTopic { topic: name.clone() })
    }

    /// A topic that has this partition.
    pub(super) fn topic_with(&self, name: &TopicName, partition: u32) -> Result<Arc<TopicState>, TopicError> {
        let topic = self.topic(name)?;
        let partitions = topic.settings.partitions;
        if partition >= partitions {
            return Err(TopicError::UnknownPartition { topic: name.clone(), partition, partitions });
        }
        Ok(topic)
    }

    pub(super) fn topics(&self) -> Vec<Arc<TopicState>> {
        self.topics.read().values().cloned().collect()
    }

    /// Adds a topic, or puts a grown one in the place of the former.
    pub(super) fn set_topic(&self, topic: TopicState) {
        let (name, partitions) = (topic.name.clone(), topic.settings.partitions);
        self.topics.write().insert(name.clone(), Arc::new(topic));
        self.groups.topic(&name, partitions);
    }

    pub(super) fn now_ms(&self) -> i64 {
        (self.options.clock)()
    }
}

/// Makes the tables where they are missing, and yields when the log was made.
fn prepare(database: &Database, clock: &Clock) -> Result<u64, redb::Error> {
    let transaction = database.begin_write()?;
    let made_at = {
        transaction.open_table(MESSAGES)?;
        transaction.open_table(TOPICS)?;
        transaction.open_table(PARTITIONS)?;
        let mut numbers = transaction.open_table(NUMBERS)?;
        let known = numbers.get(MADE_AT)?.map(|number| number.value());
        match known {
            Some(made_at) => made_at,
            None => {
                let made_at = u64::try_from(clock()).unwrap_or(0);
                numbers.insert(MADE_AT, made_at)?;
                made_at
            }
        }
    };
    transaction.commit()?;
    Ok(made_at)
}

fn load_topics(path: &Path, database: &Database) -> Result<BTreeMap<TopicName, Arc<TopicState>>, TopicError> {
    let failed = |error| storage_error(path, "reading its topics", error);
    let stored = read_topics(database).map_err(failed)?;
    let mut topics = BTreeMap::new();
    for (name, record, places) in stored {
        let corrupt =
            |fault: String| TopicError::Corrupt { path: path.to_owned(), place: format!("topic `{name}`"), fault };
        let record = TopicRecord::decode(&record).map_err(|fault| corrupt(fault.to_owned()))?;
        let name = TopicName::new(&name).map_err(|error| corrupt(error.to_string()))?;
        let topic = TopicState::new(name.clone(), record, places);
        topics.insert(name, Arc::new(topic));
    }
    Ok(topics)
}

type StoredTopic = (String, Vec<u8>, Vec<Place>);

fn read_topics(database: &Database) -> Result<Vec<StoredTopic>, redb::Error> {
    let transaction = redb::ReadableDatabase::begin_read(database)?;
    let topics = transaction.open_table(TOPICS)?;
    let partitions = transaction.open_table(PARTITIONS)?;
    let mut stored = Vec::new();
    for entry in topics.iter()? {
        let (name, record) = entry?;
        let record = record.value().to_vec();
        // A record that cannot be read is refused by the caller; it has no partitions here.
        let (id, count) = TopicRecord::decode(&record).map_or((0, 0), |record| (record.id, record.settings.partitions));
        let mut places = Vec::new();
        for partition in 0..count {
            let place = partitions.get((id, partition))?;
            places.push(place.map_or(Place::default(), |place| Place::of(place.value())));
        }
        stored.push((name.value().to_owned(), record, places));
    }
    Ok(stored)
}

/// What the writer is asked to do.
pub(super) enum Op {
    Append(Append),
    Create { topic: TopicName, settings: TopicSettings, reply: oneshot::Sender<Result<Creation, TopicError>> },
    Grow { topic: TopicName, partitions: u32, reply: oneshot::Sender<Result<u32, TopicError>> },
    Trim { topic: Arc<TopicState>, partition: u32, before: u64, reply: oneshot::Sender<Result<(), TopicError>> },
}

/// A message on its way.
pub(super) struct Append {
    pub(super) topic: Arc<TopicState>,
    pub(super) partition: u32,
    pub(super) message: NewMessage,
    pub(super) pending: Pending,
}

/// What waits for the writer. Bounded by the byte permits its entries hold.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
    failure: OnceLock<TopicError>,
}

#[derive(Default)]
struct QueueState {
    waiting: Vec<Op>,
    closed: bool,
}

/// What the writer found.
pub(super) enum Work {
    Ops(Vec<Op>),
    /// The deadline passed first.
    Due,
    Closed,
}

impl Queue {
    pub(super) fn push(&self, op: Op) -> Result<(), TopicError> {
        let mut state = self.state.lock();
        if state.closed {
            let failure = self.failure.get();
            return Err(failure.cloned().unwrap_or(TopicError::Closed));
        }
        state.waiting.push(op);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Waits, without using the processor, for work, for the end, or for the deadline.
    pub(super) fn take(&self, deadline: Option<Instant>) -> Work {
        let mut state = self.state.lock();
        loop {
            if !state.waiting.is_empty() {
                return Work::Ops(std::mem::take(&mut state.waiting));
            }
            if state.closed {
                return Work::Closed;
            }
            match deadline {
                None => self.changed.wait(&mut state),
                Some(deadline) => {
                    if self.changed.wait_until(&mut state, deadline).timed_out() {
                        return Work::Due;
                    }
                }
            }
        }
    }

    /// No more work; what waits is still done.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_one();
    }

    /// No more work, for this reason; what waits is given back undone.
    pub(super) fn fail(&self, failure: Option<TopicError>) -> Vec<Op> {
        if let Some(failure) = failure {
            // The first failure is the cause of all others.
            drop(self.failure.set(failure));
        }
        let mut state = self.state.lock();
        state.closed = true;
        std::mem::take(&mut state.waiting)
    }
}

//! Partitioned logs behind small traits: Apache Kafka, an embedded durable log, and one in memory.
//!
//! Invariant: nothing is acknowledged before it is durable, and within one partition the order of
//! messages is the order of the calls that appended them.
//! What every implementation promises stands in the docs of the traits below and is checked by one
//! suite, `contract`, which all of them pass.
//!
//! Deliberately absent: transactions, consumer-group offsets that anybody believes, compaction and
//! deserialization. Exactly-once comes from positions (`delivery`), not from here.

mod arena;
mod broken;
mod clock;
#[cfg(any(test, feature = "contract"))]
#[doc(hidden)]
pub mod contract;
pub mod embedded;
mod error;
mod groups;
pub mod kafka;
mod limits;
pub mod memory;
mod metrics;
mod name;
mod outstanding;
mod position;
mod throttle;

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use delivery::Witness;
use tokio::sync::oneshot;

pub use clock::{Clock, wall_clock};
pub use error::TopicError;
pub use limits::{ByteLimit, BytePermit};
pub use metrics::describe as describe_metrics;
pub use name::{InvalidTopicName, TopicName};

/// Headers of a message, in order. Names may repeat.
pub type Headers = Vec<(String, Bytes)>;

/// A message as read from a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Place in the partition. Rises from message to message; holes are normal.
    pub offset: u64,
    /// Milliseconds since 1970 in UTC: what the producer said, else when the log took it.
    pub timestamp_ms: i64,
    /// `None` and an empty key are two different things.
    pub key: Option<Bytes>,
    /// Empty also for a Kafka record without a value (a tombstone).
    pub payload: Bytes,
    /// Empty when the message has none.
    pub headers: Headers,
}

impl Message {
    /// What tells this message from any other at the same offset.
    pub fn witness(&self) -> Witness {
        let headers = self.headers.iter().flat_map(|(name, value)| [Some(name.as_bytes()), Some(value.as_ref())]);
        let parts = [self.key.as_deref(), Some(self.payload.as_ref())].into_iter().chain(headers);
        Witness::of(self.offset, self.timestamp_ms, parts)
    }
}

/// A message to append.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewMessage {
    /// Kept as it is; never used to choose a partition.
    pub key: Option<Bytes>,
    /// The content.
    pub payload: Bytes,
    /// Names and values, in order.
    pub headers: Headers,
    /// Milliseconds since 1970 in UTC; the log's own clock where absent.
    pub timestamp_ms: Option<i64>,
}

impl NewMessage {
    /// A message with this payload and nothing else.
    pub fn of(payload: impl Into<Bytes>) -> Self {
        Self { payload: payload.into(), ..Self::default() }
    }

    /// Bytes of key, payload and headers: what size limits are compared with.
    pub fn content_bytes(&self) -> usize {
        let key = self.key.as_ref().map_or(0, Bytes::len);
        let headers = self.headers.iter().map(|(n, v)| n.len() + v.len());
        key + self.payload.len() + headers.sum::<usize>()
    }
}

/// Reads one partition from one position onwards.
///
/// * **Order**: offsets rise strictly within and across calls; a hole is normal, a repeat never happens.
/// * **Independence**: any number of readers may read the same partition, each at its own place.
/// * **After an error**: nothing was consumed. After one of class `Retry` the same reader may be
///   asked again; after any other, open a new one.
/// * Dropping a reader at any time loses nothing: the next one starts where it is told to.
#[async_trait]
pub trait Reader: Send {
    /// Waits for at least one message, then returns what is at hand, up to about `max_bytes` of
    /// content, and always at least one message.
    ///
    /// **Cancel safety**: a call that is dropped half way has consumed nothing.
    ///
    /// **Errors**: [`TopicError::OffsetGone`] when retention overtook this reader,
    /// [`TopicError::UnknownTopic`] when the topic was deleted, [`TopicError::Recreated`] where the log notices that
    /// one of the same name took its place: nothing of the new one was read then.
    async fn read(&mut self, max_bytes: usize) -> Result<Vec<Message>, TopicError>;
}

/// Appends to any topic of one log. Cheap to share.
///
/// * **Order**: messages of one partition stand in the order in which `append` was first polled.
/// * **Bounded**: `append` waits while the bytes that are not yet durable are at the limit. A message
///   larger than the whole limit waits until it is alone, and then goes.
/// * **After an error of a receipt** the message may or may not be in the log (only errors of class
///   `Reject` say that it is not). Those who write again must have readers that tell a repeat.
/// * **A failed append takes along everything behind it**: of what one appender puts into a partition, what is in the
///   log is a prefix. Whatever was queued behind the failed message, and whatever is appended after it, fails too and
///   leaves nothing behind, at least until everybody whose append failed has seen it (asked the receipt, or dropped
///   it). A log may go on then, or refuse until it is opened anew. So a writer whose messages follow from each other
///   keeps its receipts, stops at the first failure it sees, and goes on from what it knows to be durable; between
///   the failure and the moment it sees it, nothing it appends can leave a gap.
#[async_trait]
pub trait Appender: Send + Sync {
    /// Waits for room, then queues the message. The receipt resolves to its offset once it is durable.
    ///
    /// **Cancel safety**: a call dropped before it returned may have queued the message or not.
    ///
    /// **Errors**: unknown topic or partition, and [`TopicError::TooLarge`], before anything is queued.
    async fn append(&self, topic: &TopicName, partition: u32, message: NewMessage) -> Result<Receipt, TopicError>;

    /// Waits until everything queued before this call is durable. A failure of any message queued
    /// since the last flush comes back here, even where nobody looked at its receipt.
    ///
    /// **Cancel safety**: may be dropped and called again.
    async fn flush(&self) -> Result<(), TopicError>;
}

/// Resolves to the offset of an appended message once the message is durable.
///
/// Dropping it does not take the message back.
#[derive(Debug)]
#[must_use = "a message is only known to be durable once its receipt says so, or a flush after it"]
pub struct Receipt {
    settled: oneshot::Receiver<Result<u64, TopicError>>,
    /// Lives until this was asked and answered, or dropped: whoever appended knows by then, or does not want to.
    unseen: Option<Arc<()>>,
}

impl Receipt {
    /// A receipt, and the end that settles it. Dropping that end settles with [`TopicError::Closed`].
    pub fn pair() -> (oneshot::Sender<Result<u64, TopicError>>, Receipt) {
        let (sender, settled) = oneshot::channel();
        (sender, Receipt { settled, unseen: None })
    }

    /// Lives until the receipt has told its holder what became of the message.
    pub(crate) fn unseen(&mut self) -> Weak<()> {
        Arc::downgrade(self.unseen.get_or_insert_default())
    }
}

impl Future for Receipt {
    type Output = Result<u64, TopicError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let settled = ready!(Pin::new(&mut self.settled).poll(context));
        self.unseen = None;
        Poll::Ready(settled.unwrap_or(Err(TopicError::Closed)))
    }
}

/// How long messages are kept, per partition. `None` means for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// At least this many of the newest bytes stay.
    pub bytes: Option<u64>,
    /// A message stays at least this long after it was appended.
    pub age: Option<Duration>,
}

/// How a topic is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSettings {
    /// At least one.
    pub partitions: u32,
    /// What is kept.
    pub retention: Retention,
    /// Bytes of key, payload and headers a message may have.
    pub max_message_bytes: usize,
}

impl Default for TopicSettings {
    /// One partition, kept for ever, messages up to 1 MiB (what Kafka brokers take unless told otherwise).
    fn default() -> Self {
        Self { partitions: 1, retention: Retention::default(), max_message_bytes: 1 << 20 }
    }
}

/// What became of a wish to have a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creation {
    /// This call made it.
    Created,
    /// It was there already, with the settings it has.
    Existed,
}

/// What a log knows about a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Number of partitions, numbered from 0.
    pub partitions: u32,
    /// Differs after the topic was deleted and created again, where the log can tell.
    pub incarnation: String,
}

/// What can be read of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First offset that can be read; equal to `end` where there is none.
    pub start: u64,
    /// The offset the next message gets. On Kafka: the end of what is committed.
    pub end: u64,
}

/// A partitioned log: topics, their partitions, readers, one appender, and groups that share work.
///
/// Every method may be called again after an error of class `Retry`.
#[async_trait]
pub trait Log: Send + Sync {
    /// Makes sure a topic exists. Once this returns, the topic can be read and appended to.
    async fn create(&self, topic: &TopicName, settings: &TopicSettings) -> Result<Creation, TopicError>;

    /// Gives a topic more partitions where it has fewer than asked for; how many it has now. Messages, readers and
    /// offsets of the partitions that are there stay as they are, and groups share the new ones.
    ///
    /// **Errors**: [`TopicError::UnknownTopic`].
    async fn grow(&self, topic: &TopicName, partitions: u32) -> Result<u32, TopicError>;

    /// Describes a topic; `None` where it does not exist.
    async fn describe(&self, topic: &TopicName) -> Result<Option<Description>, TopicError>;

    /// What can be read of a partition at this moment.
    async fn span(&self, topic: &TopicName, partition: u32) -> Result<Span, TopicError>;

    /// Opens a reader at offset `from`.
    ///
    /// **Errors**: [`TopicError::OffsetGone`] below the start, [`TopicError::OffsetAhead`] above the
    /// end (was the topic created anew, or cut?). The end itself is fine: the reader waits there.
    async fn reader(&self, topic: &TopicName, partition: u32, from: u64) -> Result<Box<dyn Reader>, TopicError>;

    /// The appender of this log: always the same one, with one limit for all who share it.
    fn appender(&self) -> Arc<dyn Appender>;

    /// Joins a group, among whose members the partitions of the topics are divided.
    /// Topics that do not exist yet are taken up once they do.
    async fn join(&self, group: &str, topics: Vec<TopicName>) -> Result<Box<dyn Membership>, TopicError>;

    /// Waits until nothing can be appended any more before the log is opened anew, and why: the producer of Kafka has
    /// lost its place for good, or a disk failed. A process that has nothing else to live for ends then and is started
    /// again; what waited for its receipts has heard of it already.
    ///
    /// **Cancel safety**: may be dropped and called again.
    async fn broken(&self) -> TopicError;
}

/// A place in a group. Dropping it leaves the group.
///
/// Ownership is advice: for a short while two members may both believe they own a partition.
/// Whoever writes must be safe without it.
#[async_trait]
pub trait Membership: Send + Sync {
    /// Waits for the next change, then yields everything this member now owns. Changes that follow
    /// each other closely may arrive as one; the first call yields the first assignment.
    ///
    /// **Cancel safety**: a change is not lost when the call is dropped.
    async fn changed(&mut self) -> Result<BTreeSet<(TopicName, u32)>, TopicError>;

    /// Replaces the list of topics.
    async fn subscribe(&mut self, topics: Vec<TopicName>) -> Result<(), TopicError>;

    /// Publishes progress (topic, partition, next offset) for lag tools and autoscalers. Nothing
    /// reads it back, it may get lost, and outside Kafka it does nothing.
    async fn settle(&self, positions: Vec<(TopicName, u32, u64)>) -> Result<(), TopicError>;
}

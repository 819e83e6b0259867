//! The log as one process sees it: slow, failing, and with places to die at; and its place in a group, which it may
//! lose without knowing.
//!
//! Faults of appends are decided in the log itself (`Faults::append`), where they keep the law of failed appends.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use topics::{
    Appender, Creation, Description, Log, Membership, Message, NewMessage, Reader, Receipt, Span, TopicError,
    TopicName, TopicSettings, memory::MemoryLog,
};

use crate::process::Process;

/// How long a process may believe in a place it has lost, in milliseconds.
const LONGEST_ILLUSION_MS: u64 = 8_000;

/// See the module.
pub(crate) struct LogEdge {
    log: MemoryLog,
    process: Process,
    /// Joins groups nobody else is in: it believes to own everything.
    zombie: bool,
}

impl LogEdge {
    pub(crate) fn new(log: &MemoryLog, process: Process, zombie: bool) -> Self {
        Self { log: log.reconnected(), process, zombie }
    }

    async fn before(&self, doing: &'static str) -> Result<(), TopicError> {
        before(&self.process, doing).await
    }
}

fn unreachable() -> TopicError {
    let source = std::io::Error::other("the simulated broker does not answer");
    TopicError::Unreachable { brokers: "simulated".into(), waited: Duration::from_secs(1), source: Arc::new(source) }
}

async fn before(process: &Process, doing: &'static str) -> Result<(), TopicError> {
    process.place(&format!("before it {doing}")).await;
    process.faults().log_pause().await;
    if process.faults().log_fails() {
        process.note(&format!("fails where it {doing}"));
        return Err(unreachable());
    }
    Ok(())
}

#[async_trait]
impl Log for LogEdge {
    async fn create(&self, topic: &TopicName, settings: &TopicSettings) -> Result<Creation, TopicError> {
        self.before("creates a topic").await?;
        let created = self.log.create(topic, settings).await;
        self.process.place("after it created a topic").await;
        created
    }

    async fn grow(&self, topic: &TopicName, partitions: u32) -> Result<u32, TopicError> {
        self.before("grows a topic").await?;
        self.log.grow(topic, partitions).await
    }

    async fn describe(&self, topic: &TopicName) -> Result<Option<Description>, TopicError> {
        self.before("describes a topic").await?;
        self.log.describe(topic).await
    }

    async fn span(&self, topic: &TopicName, partition: u32) -> Result<Span, TopicError> {
        self.before("asks for a span").await?;
        self.log.span(topic, partition).await
    }

    async fn reader(&self, topic: &TopicName, partition: u32, from: u64) -> Result<Box<dyn Reader>, TopicError> {
        self.before("opens a reader").await?;
        let reader = self.log.reader(topic, partition, from).await?;
        Ok(Box::new(ReaderEdge { reader, process: self.process.clone() }))
    }

    fn appender(&self) -> Arc<dyn Appender> {
        Arc::new(AppenderEdge { appender: self.log.appender(), process: self.process.clone() })
    }

    async fn join(&self, group: &str, topics: Vec<TopicName>) -> Result<Box<dyn Membership>, TopicError> {
        self.before("joins a group").await?;
        let group = if self.zombie { format!("{group}.{}", self.process.name()) } else { group.to_owned() };
        let mut place = MembershipEdge {
            log: self.log.clone(),
            process: self.process.clone(),
            expiries: self.process.expiries(),
            group,
            topics,
            place: None,
            notices_at: Instant::now(),
        };
        place.take_place().await?;
        Ok(Box::new(place))
    }

    async fn broken(&self) -> TopicError {
        self.log.broken().await
    }
}

struct ReaderEdge {
    reader: Box<dyn Reader>,
    process: Process,
}

#[async_trait]
impl Reader for ReaderEdge {
    async fn read(&mut self, max_bytes: usize) -> Result<Vec<Message>, TopicError> {
        before(&self.process, "reads").await?;
        self.reader.read(max_bytes).await
    }
}

struct AppenderEdge {
    appender: Arc<dyn Appender>,
    process: Process,
}

#[async_trait]
impl Appender for AppenderEdge {
    async fn append(&self, topic: &TopicName, partition: u32, message: NewMessage) -> Result<Receipt, TopicError> {
        self.process.place("before it appends").await;
        self.process.faults().log_pause().await;
        let receipt = self.appender.append(topic, partition, message).await;
        self.process.place("after it appended").await;
        receipt
    }

    async fn flush(&self) -> Result<(), TopicError> {
        self.appender.flush().await
    }
}

/// A place in a group.
struct MembershipEdge {
    log: MemoryLog,
    process: Process,
    expiries: watch::Receiver<u64>,
    group: String,
    topics: Vec<TopicName>,
    /// None while the group has given the place away and the process does not know.
    place: Option<Box<dyn Membership>>,
    notices_at: Instant,
}

impl MembershipEdge {
    async fn take_place(&mut self) -> Result<(), TopicError> {
        self.place = Some(self.log.join(&self.group, self.topics.clone()).await?);
        Ok(())
    }
}

#[async_trait]
impl Membership for MembershipEdge {
    async fn changed(&mut self) -> Result<BTreeSet<(TopicName, u32)>, TopicError> {
        loop {
            let Some(place) = &mut self.place else {
                sleep_until(self.notices_at).await;
                self.take_place().await?;
                self.process.note("notices that its place was gone");
                return Ok(BTreeSet::new());
            };
            tokio::select! {
                biased;
                expired = self.expiries.changed() => {
                    expired.map_err(|_| TopicError::Closed)?;
                    self.place = None;
                    self.notices_at = Instant::now() + self.process.faults().milliseconds(LONGEST_ILLUSION_MS);
                    self.process.note("loses its place in the group and does not know");
                }
                owned = place.changed() => return owned,
            }
        }
    }

    async fn subscribe(&mut self, topics: Vec<TopicName>) -> Result<(), TopicError> {
        before(&self.process, "subscribes").await?;
        self.topics.clone_from(&topics);
        match &mut self.place {
            Some(place) => place.subscribe(topics).await,
            None => Ok(()),
        }
    }

    async fn settle(&self, _positions: Vec<(TopicName, u32, u64)>) -> Result<(), TopicError> {
        before(&self.process, "settles").await
    }
}

impl Drop for MembershipEdge {
    /// A process that dies does not say goodbye.
    fn drop(&mut self) {
        if let Some(place) = self.place.take()
            && self.process.is_dead()
        {
            self.process.bequeath(place);
        }
    }
}

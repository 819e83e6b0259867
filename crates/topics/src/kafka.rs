//! A log on Apache Kafka, and the only place that knows librdkafka.
//!
//! Invariant: positions come from the caller and never from group offsets; appends are idempotent,
//! acknowledged by all in-sync replicas, and never leave a gap. Every queue is bounded in bytes.
//!
//! Deliberately absent: Kafka transactions (exactly-once comes from positions), a name for a topic's
//! incarnation (librdkafka shows topic ids to nobody; an open reader hears that one has changed, and
//! who goes on later compares a message), and trimming by itself.

mod admin;
mod client;
mod config;
mod consumer;
mod membership;
mod producer;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use delivery::ErrorClass;
use rdkafka::consumer::Consumer;

use crate::{Appender, Creation, Description, Log, Membership, Reader, Span, TopicError, TopicName, TopicSettings};

pub use config::KafkaConfig;

use admin::Admin;
use client::Reason;
use consumer::{Client, Clients};
use membership::{Leaving, Member};
use producer::Producer;

/// How long a cluster may take to answer when a log is opened.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a closing log waits for its members to leave their groups.
const LEAVE: Duration = Duration::from_secs(5);

/// A log on a Kafka cluster. Clones share its clients.
#[derive(Clone)]
pub struct KafkaLog(Arc<Inner>);

struct Inner {
    config: KafkaConfig,
    cluster: String,
    producer: Arc<Producer>,
    admin: Arc<Admin>,
    clients: Arc<Clients>,
    leaving: Leaving,
}

impl fmt::Debug for KafkaLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KafkaLog").field(&self.0.config).finish()
    }
}

impl KafkaLog {
    /// Checks the properties, then waits up to 10 s for any broker.
    ///
    /// **Errors**: [`TopicError::Property`], and [`TopicError::Unreachable`], which may pass.
    pub async fn connect(config: KafkaConfig) -> Result<Self, TopicError> {
        config.check()?;
        let asking = Client::start(&config)?;
        let admin = Arc::new(Admin::new(&config, Arc::clone(asking.consumer()))?);
        let cluster = admin.cluster(CONNECT).await;
        let cluster = cluster.ok_or_else(|| unreachable(&config, &asking))?;
        let producer = Arc::new(Producer::new(&config, Arc::clone(&admin))?);
        Ok(Self(Arc::new(Inner {
            clients: Arc::new(Clients::new(config.clone(), asking)),
            config,
            cluster,
            producer,
            admin,
            leaving: Leaving::default(),
        })))
    }

    /// Removes all messages of a partition below an offset, whatever its retention says.
    pub async fn trim(&self, topic: &TopicName, partition: u32, before: u64) -> Result<(), TopicError> {
        self.0.admin.trim(topic, partition, before).await
    }
}

fn unreachable(config: &KafkaConfig, client: &Client) -> TopicError {
    let reason = client.consumer().context().last_error();
    TopicError::Unreachable {
        brokers: config.brokers.clone(),
        waited: CONNECT,
        source: Arc::new(Reason(reason.unwrap_or_else(|| "no answer".to_owned()))),
    }
}

fn no_thread(error: std::io::Error) -> TopicError {
    TopicError::Kafka { doing: "start a thread".to_owned(), class: ErrorClass::Stop, source: Arc::new(error) }
}

impl Drop for Inner {
    /// Waits until the members have left: others take over at once, not after a time-out.
    fn drop(&mut self) {
        let started = Instant::now();
        for thread in std::mem::take(&mut *self.leaving.lock()) {
            while !thread.is_finished() && started.elapsed() < LEAVE {
                std::thread::sleep(Duration::from_millis(5));
            }
            if thread.is_finished() && thread.join().is_err() {
                tracing::error!("a member of a Kafka group panicked");
            }
        }
    }
}

#[async_trait]
impl Log for KafkaLog {
    async fn create(&self, topic: &TopicName, settings: &TopicSettings) -> Result<Creation, TopicError> {
        self.0.admin.create(topic, settings).await
    }

    async fn grow(&self, topic: &TopicName, partitions: u32) -> Result<u32, TopicError> {
        self.0.admin.grow(topic, partitions).await
    }

    async fn describe(&self, topic: &TopicName) -> Result<Option<Description>, TopicError> {
        let partitions = self.0.admin.partitions(topic).await?;
        Ok(partitions.map(|partitions| Description { partitions, incarnation: self.0.cluster.clone() }))
    }

    async fn span(&self, topic: &TopicName, partition: u32) -> Result<Span, TopicError> {
        self.0.admin.span(topic, partition).await
    }

    async fn reader(&self, topic: &TopicName, partition: u32, from: u64) -> Result<Box<dyn Reader>, TopicError> {
        let (clients, topic) = (Arc::clone(&self.0.clients), topic.clone());
        let reader = admin::blocking(move || clients.open(&topic, partition, from)).await?;
        Ok(Box::new(reader))
    }

    fn appender(&self) -> Arc<dyn Appender> {
        Arc::clone(&self.0.producer) as Arc<dyn Appender>
    }

    async fn join(&self, group: &str, topics: Vec<TopicName>) -> Result<Box<dyn Membership>, TopicError> {
        let (inner, group) = (Arc::clone(&self.0), group.to_owned());
        let join = move || Member::join(&inner.config, &group, &topics, Arc::clone(&inner.leaving));
        Ok(Box::new(admin::blocking(join).await?))
    }

    async fn broken(&self) -> TopicError {
        self.0.producer.broken().await
    }
}

//! Appending to Kafka.
//!
//! Invariant: messages of a partition reach the broker in the order of the calls, each once, with no
//! gap: the producer is idempotent, waits for a dead broker for ever, and a message that can never be
//! written stops it. So everything that can be refused is refused before it is queued.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use delivery::ErrorClass;
use futures::FutureExt as _;
use futures::future::Either;
use parking_lot::{Mutex, RwLock};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
use tokio::sync::OwnedMutexGuard;

use crate::broken::Broken;
use crate::limits::{ByteLimit, BytePermit, MESSAGE_OVERHEAD_BYTES};
use crate::metrics::{Inflight, Sent};
use crate::outstanding::{Outstanding, Pending};
use crate::throttle::Throttle;
use crate::{Appender, Headers, NewMessage, Receipt, TopicError, TopicName};

use super::admin::{Admin, FRAMING_BYTES, REQUEST, Takes, blocking};
use super::client::{Quiet, failed};
use super::config::KafkaConfig;

/// A header costs its two lengths on top of its bytes.
const HEADER_BYTES: usize = 12;
const POLL: Duration = Duration::from_millis(200);
/// No acknowledgement for so long is worth a word.
const SILENCE: Duration = Duration::from_secs(5);
const WHEN_FULL: Duration = Duration::from_millis(5);

/// How old what is known of a topic must be before a message that does not fit it is worth another look.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// The part of all that may be queued that one partition may take: one that is out of reach must not stop the others.
const PARTITIONS_THAT_FILL: usize = 4;

/// The appender of a Kafka log.
pub(super) struct Producer {
    client: Arc<BaseProducer<Deliveries>>,
    admin: Arc<Admin>,
    known: RwLock<BTreeMap<TopicName, Arc<KnownTopic>>>,
    turn: tokio::sync::Mutex<()>,
    limit: ByteLimit,
    outstanding: Arc<Outstanding>,
    batch_bytes: usize,
    broken: Broken,
    stop: Arc<AtomicBool>,
    polling: Mutex<Option<JoinHandle<()>>>,
}

/// What has to be known about a topic before a message may be queued.
struct KnownTopic {
    takes: Takes,
    /// When that was last asked, with or without an answer.
    asked: Mutex<Instant>,
    lanes: Vec<Arc<Lane>>,
    sent: Sent,
}

/// The way to one partition.
struct Lane {
    /// Messages enter in the order of the calls.
    turn: Arc<tokio::sync::Mutex<()>>,
    limit: ByteLimit,
}

/// A message that librdkafka has, until it reports what became of it.
pub(super) struct Sending {
    topic: Arc<KnownTopic>,
    bytes: usize,
    pending: Pending,
    /// Of its partition.
    _room: BytePermit,
}

/// Takes what librdkafka reports.
pub(super) struct Deliveries {
    quiet: Quiet,
    started: Instant,
    /// Milliseconds since `started` of the last acknowledgement, or of the last time nothing waited.
    progress_ms: AtomicU64,
}

impl Deliveries {
    fn new() -> Self {
        Self { quiet: Quiet::new("producer"), started: Instant::now(), progress_ms: AtomicU64::new(0) }
    }

    fn progress(&self) {
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.progress_ms.store(now_ms, Ordering::Relaxed);
    }

    fn silent_for(&self) -> Duration {
        let last = Duration::from_millis(self.progress_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last)
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.quiet.take_log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.quiet.take_error(&error, reason);
    }

    fn stats_raw(&self, _statistics: &[u8]) {}
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Sending>;

    fn delivery(&self, report: &DeliveryResult<'_>, sending: Box<Sending>) {
        self.progress();
        let Sending { topic, bytes, pending, _room } = *sending;
        match report {
            Ok(message) => {
                topic.sent.durable(bytes);
                pending.settle(written(message));
            }
            Err((error, message)) => {
                topic.sent.failed();
                pending.settle(Err(lost(error, message)));
            }
        }
    }
}

fn written(message: &rdkafka::message::BorrowedMessage<'_>) -> Result<u64, TopicError> {
    // A broker that recognised a repeat may not say where the first one went.
    u64::try_from(message.offset()).map_err(|_| match TopicName::new(message.topic()) {
        Ok(topic) => TopicError::AppendFailed { topic, partition: message.partition() as u32 },
        Err(_) => TopicError::Closed,
    })
}

/// Waiting is no failure here, so what fails fails for good, and the producer with it. Not so where the topic is said
/// to be gone: it may come back, or a broker was behind.
fn lost(error: &KafkaError, message: &rdkafka::message::BorrowedMessage<'_>) -> TopicError {
    use RDKafkaErrorCode as Code;
    let doing = format!("append to `{}`/{}", message.topic(), message.partition());
    match error.rdkafka_error_code() {
        Some(Code::PurgeQueue | Code::PurgeInflight) => TopicError::Closed,
        Some(Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicOrPartition) => {
            failed(doing, error.clone())
        }
        _ => TopicError::Kafka { doing, class: ErrorClass::Stop, source: Arc::new(error.clone()) },
    }
}

impl Lane {
    fn new(limit_bytes: usize) -> Self {
        Self { turn: Arc::default(), limit: ByteLimit::new(limit_bytes / PARTITIONS_THAT_FILL) }
    }

    /// Takes a place in the line without waiting for its turn, which is what the future that comes back does.
    async fn stand_in_line(&self) -> impl Future<Output = OwnedMutexGuard<()>> + Send + use<> {
        let mut waiting = Arc::clone(&self.turn).lock_owned().boxed();
        // Asked once, it has its place.
        let asked = futures::poll!(&mut waiting);
        match asked {
            Poll::Ready(turn) => Either::Left(std::future::ready(turn)),
            Poll::Pending => Either::Right(waiting),
        }
    }
}

impl KnownTopic {
    fn lane(&self, partition: u32) -> Option<&Arc<Lane>> {
        self.lanes.get(partition as usize)
    }

    fn without(&self, topic: &TopicName, partition: u32) -> TopicError {
        TopicError::UnknownPartition { topic: topic.clone(), partition, partitions: self.lanes.len() as u32 }
    }

    /// Whether the caller is to ask again: it is worth it, and nobody else does.
    fn claim_another_look(&self) -> bool {
        let mut asked = self.asked.lock();
        let is_worth_it = asked.elapsed() > LOOK_AGAIN_AFTER;
        if is_worth_it {
            *asked = Instant::now();
        }
        is_worth_it
    }

    fn check(&self, topic: &TopicName, partition: u32, message: &NewMessage) -> Result<usize, TopicError> {
        if self.takes.only_keyed && message.key.is_none() {
            return Err(TopicError::KeyMissing { topic: topic.clone() });
        }
        check_size(topic, partition, message, self.takes.max_message_bytes)
    }
}

impl Producer {
    pub(super) fn new(config: &KafkaConfig, admin: Arc<Admin>) -> Result<Self, TopicError> {
        let client: BaseProducer<Deliveries> = config
            .producer()
            .create_with_context(Deliveries::new())
            .map_err(|error| failed("set up a producer", error))?;
        let client = Arc::new(client);
        let limit = ByteLimit::new(config.max_inflight_bytes);
        let stop = Arc::new(AtomicBool::new(false));
        let broken = Broken::default();
        let poller = Poller {
            client: Arc::clone(&client),
            limit: limit.clone(),
            inflight: Inflight::of("kafka", limit.limit_bytes()),
            stop: Arc::clone(&stop),
            broken: broken.clone(),
            report: Throttle::once_a_second(),
        };
        let polling = std::thread::Builder::new()
            .name("topics-kafka-producer".to_owned())
            .spawn(move || poller.run())
            .map_err(super::no_thread)?;
        Ok(Self {
            client,
            admin,
            known: RwLock::default(),
            turn: tokio::sync::Mutex::new(()),
            limit,
            outstanding: Arc::new(Outstanding::new()),
            batch_bytes: config.batch_bytes(),
            broken,
            stop,
            polling: Mutex::new(Some(polling)),
        })
    }

    async fn topic_with(&self, topic: &TopicName, partition: u32) -> Result<Arc<KnownTopic>, TopicError> {
        let known = self.known.read().get(topic).cloned();
        if let Some(known) = &known
            && known.lane(partition).is_some()
        {
            return Ok(Arc::clone(known));
        }
        if known.is_some() {
            self.refresh(topic).await?;
        }
        self.look_up(topic).await
    }

    /// A topic that has grown: librdkafka refuses its new partitions until it has looked, which it does every 5 minutes.
    async fn refresh(&self, topic: &TopicName) -> Result<(), TopicError> {
        let (client, name) = (Arc::clone(&self.client), topic.clone());
        blocking(move || match client.client().fetch_metadata(Some(name.as_str()), REQUEST) {
            Ok(_metadata) => Ok(()),
            Err(error) => Err(failed(format!("look at topic `{name}`"), error)),
        })
        .await
    }

    async fn look_up(&self, topic: &TopicName) -> Result<Arc<KnownTopic>, TopicError> {
        let partitions = self.admin.partitions(topic).await?;
        let partitions = partitions.ok_or_else(|| TopicError::UnknownTopic { topic: topic.clone() })?;
        let takes = self.admin.takes(topic).await?;
        if takes.max_message_bytes < self.batch_bytes {
            return Err(TopicError::Settings {
                topic: topic.clone(),
                reason: format!(
                    "its `max.message.bytes` is {}, less than a batch of {} bytes; raise it, or lower `batch.size` in the properties of the log",
                    takes.max_message_bytes, self.batch_bytes
                ),
            });
        }
        Ok(self.learn(topic, partitions, takes))
    }

    fn learn(&self, topic: &TopicName, partitions: u32, takes: Takes) -> Arc<KnownTopic> {
        let mut all = self.known.write();
        // Messages may be on their way: they keep their lanes.
        let mut lanes = all.get(topic).map_or_else(Vec::new, |known| known.lanes.clone());
        lanes.resize_with(lanes.len().max(partitions as usize), || Arc::new(Lane::new(self.limit.limit_bytes())));
        let known = Arc::new(KnownTopic { takes, asked: Mutex::new(Instant::now()), lanes, sent: Sent::of(topic) });
        all.insert(topic.clone(), Arc::clone(&known));
        known
    }

    /// What is known of the topic, and the size of a message that it takes.
    async fn fitting(
        &self,
        topic: &TopicName,
        partition: u32,
        message: &NewMessage,
    ) -> Result<(Arc<KnownTopic>, usize), TopicError> {
        let known = self.topic_with(topic, partition).await?;
        match known.check(topic, partition, message) {
            // Somebody may have changed the topic since, as the error says. Where that cannot be told now, it stands.
            Err(refusal) if known.claim_another_look() => {
                let Ok(known) = self.look_up(topic).await else { return Err(refusal) };
                let bytes = known.check(topic, partition, message)?;
                Ok((known, bytes))
            }
            checked => checked.map(|bytes| (known, bytes)),
        }
    }

    fn try_send(
        &self,
        topic: &TopicName,
        partition: u32,
        message: &NewMessage,
        sending: Box<Sending>,
    ) -> Result<(), (KafkaError, Box<Sending>)> {
        let mut record = BaseRecord::with_opaque_to(topic.as_str(), sending)
            .partition(partition as i32)
            .payload(message.payload.as_ref());
        record.key = message.key.as_deref();
        record.timestamp = message.timestamp_ms;
        record.headers = headers(&message.headers);
        self.client.send::<[u8], [u8]>(record).map_err(|(error, record)| (error, record.delivery_opaque))
    }

    fn refused(&self, topic: &TopicName, partition: u32, error: KafkaError) -> TopicError {
        let doing = format!("append to `{topic}`/{partition}");
        match self.client.client().fatal_error() {
            None => failed(doing, error),
            Some((_, reason)) => for_good(doing, reason),
        }
    }

    pub(super) async fn broken(&self) -> TopicError {
        self.broken.wait().await
    }
}

fn for_good(doing: impl Into<String>, reason: String) -> TopicError {
    TopicError::Kafka { doing: doing.into(), class: ErrorClass::Stop, source: Arc::new(super::client::Reason(reason)) }
}

fn headers(headers: &Headers) -> Option<OwnedHeaders> {
    if headers.is_empty() {
        return None;
    }
    let start = OwnedHeaders::new_with_capacity(headers.len());
    let add = |all: OwnedHeaders, (name, value): &(String, bytes::Bytes)| {
        all.insert(Header { key: name, value: Some(value.as_ref()) })
    };
    Some(headers.iter().fold(start, add))
}

fn check_size(topic: &TopicName, partition: u32, message: &NewMessage, limit: usize) -> Result<usize, TopicError> {
    let bytes = message.content_bytes();
    let framing = FRAMING_BYTES + message.headers.len() * HEADER_BYTES;
    if bytes + framing > limit {
        return Err(TopicError::TooLarge {
            topic: topic.clone(),
            partition,
            bytes,
            limit: limit.saturating_sub(framing),
        });
    }
    Ok(bytes)
}

#[async_trait]
impl Appender for Producer {
    async fn append(&self, topic: &TopicName, partition: u32, message: NewMessage) -> Result<Receipt, TopicError> {
        // In the order of the calls: the first one to a topic looks it up, and nobody overtakes it. Then each waits in
        // the line of its partition, for room that the partition may take, and only then for room that all share.
        let (known, bytes, lane, in_line) = {
            let _turn = self.turn.lock().await;
            let (known, bytes) = self.fitting(topic, partition, &message).await?;
            let lane = known.lane(partition).cloned().ok_or_else(|| known.without(topic, partition))?;
            let in_line = lane.stand_in_line().await;
            (known, bytes, lane, in_line)
        };
        let _turn = in_line.await;
        let room = lane.limit.take(bytes + MESSAGE_OVERHEAD_BYTES).await;
        let permit = self.limit.take(bytes + MESSAGE_OVERHEAD_BYTES).await;
        let (pending, receipt) = Pending::begin(&self.outstanding, permit);
        let mut sending = Box::new(Sending { topic: known, bytes, pending, _room: room });
        loop {
            match self.try_send(topic, partition, &message, sending) {
                Ok(()) => return Ok(receipt),
                Err((error, back)) if is_full(&error) => sending = back,
                Err((error, back)) => {
                    let error = self.refused(topic, partition, error);
                    back.pending.settle(Err(error.clone()));
                    return Err(error);
                }
            }
            tokio::time::sleep(WHEN_FULL).await;
        }
    }

    async fn flush(&self) -> Result<(), TopicError> {
        self.outstanding.drained().await
    }
}

fn is_full(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull)
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(polling) = self.polling.lock().take()
            && polling.join().is_err()
        {
            tracing::error!("poller of the Kafka producer panicked");
        }
        // The client goes with this struct; it reports what it still had as closed.
    }
}

/// Hands out delivery reports, and says so when none come.
struct Poller {
    client: Arc<BaseProducer<Deliveries>>,
    limit: ByteLimit,
    inflight: Inflight,
    stop: Arc<AtomicBool>,
    broken: Broken,
    report: Throttle,
}

impl Poller {
    fn run(self) {
        while !self.stop.load(Ordering::Acquire) {
            self.client.poll(POLL);
            self.inflight.set(self.limit.taken_bytes());
            if let Some((_, reason)) = self.client.client().fatal_error() {
                self.broken.set(|| for_good("append any more; start again to go on", reason));
            }
            self.watch();
        }
    }

    fn watch(&self) {
        let deliveries = self.client.context();
        let messages = self.client.in_flight_count();
        if messages == 0 {
            deliveries.progress();
            return;
        }
        let silence = deliveries.silent_for();
        if silence < SILENCE {
            return;
        }
        if let Some(_held_back) = self.report.pass() {
            let bytes = self.limit.taken_bytes();
            let seconds = silence.as_secs();
            let last_error = deliveries.quiet.last_error();
            tracing::warn!(messages, bytes, seconds, last_error, "Kafka does not acknowledge; appends wait");
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::super::KafkaLog;
    use super::*;
    use crate::Log as _;

    #[tokio::test]
    async fn a_partition_out_of_reach_leaves_room_for_the_others() -> anyhow::Result<()> {
        let cluster = MockCluster::new(2)?;
        cluster.create_topic("orders", 2, 1)?;
        cluster.partition_leader("orders", 0, Some(2))?;
        cluster.partition_leader("orders", 1, Some(1))?;
        let brokers = cluster.bootstrap_servers();
        let log = KafkaLog::connect(KafkaConfig { brokers, max_inflight_bytes: 1 << 20, ..KafkaConfig::default() });
        let (log, topic) = (log.await?, TopicName::new("orders")?);
        // The mock does not say what its topics take.
        log.0.producer.learn(&topic, 2, Takes::default());
        let appender = log.appender();
        assert_eq!(appender.append(&topic, 0, NewMessage::of("before")).await?.await?, 0);
        cluster.broker_down(2)?;
        let eighth = NewMessage::of(vec![0; (1 << 20) / 8 - MESSAGE_OVERHEAD_BYTES]);
        let twice_what_may_be_queued = (0..16).map(|_| appender.append(&topic, 0, eighth.clone()));
        let mut stuck = futures::future::join_all(twice_what_may_be_queued).boxed();
        assert!(futures::poll!(&mut stuck).is_pending());
        let receipt = tokio::time::timeout(REQUEST, appender.append(&topic, 1, NewMessage::of("elsewhere"))).await??;
        assert_eq!(tokio::time::timeout(REQUEST, receipt).await??, 0);
        Ok(())
    }

    #[tokio::test]
    async fn a_producer_that_has_lost_its_place_breaks_the_log() -> anyhow::Result<()> {
        let cluster = MockCluster::new(1)?;
        cluster.create_topic("orders", 1, 1)?;
        let config = KafkaConfig { brokers: cluster.bootstrap_servers(), ..KafkaConfig::default() };
        let log = KafkaLog::connect(config).await?;
        let topic = TopicName::new("orders")?;
        log.0.producer.learn(&topic, 1, Takes::default());
        let appender = log.appender();
        assert_eq!(appender.append(&topic, 0, NewMessage::of("before")).await?.await?, 0);
        let lost_place = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
        cluster.request_errors(RDKafkaApiKey::Produce, &[lost_place]);
        let lost = appender.append(&topic, 0, NewMessage::of("lost")).await?.await;
        assert_eq!(lost.map_err(|error| error.class()), Err(ErrorClass::Stop));
        let reason = log.broken().await;
        assert!(reason.to_string().contains("start again"), "{reason}");
        Ok(())
    }
}

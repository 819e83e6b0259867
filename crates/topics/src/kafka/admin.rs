//! Topics of a Kafka cluster: make them, describe them, ask how far they go.
//!
//! Invariant: every call that blocks inside librdkafka runs on a thread that may block, with a bound
//! on how long it may take.

use std::sync::Arc;
use std::time::{Duration, Instant};

use delivery::ErrorClass;
use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{IsError, KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use crate::{Creation, Span, TopicError, TopicName, TopicSettings};

use super::client::{Quiet, code_of, failed, needs_a_person};
use super::config::KafkaConfig;

/// How long one request may take.
pub(super) const REQUEST: Duration = Duration::from_secs(10);
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);
/// What the framing of a message takes in the log of a broker, headers apart, with room to spare.
pub(super) const FRAMING_BYTES: usize = 128;
/// Room for names and lengths of headers in the limit of the topics made here.
const HEADER_ROOM_BYTES: usize = 4096;
/// What brokers take unless told otherwise; topics are never made to take less.
pub(super) const BROKER_MESSAGE_BYTES: usize = 1_048_588;

/// Asks and changes what the cluster knows about topics.
pub(super) struct Admin {
    client: AdminClient<Quiet>,
    asking: Arc<BaseConsumer<Quiet>>,
}

impl Admin {
    /// `asking` answers questions about metadata and offsets; it reads only what is committed.
    pub(super) fn new(config: &KafkaConfig, asking: Arc<BaseConsumer<Quiet>>) -> Result<Self, TopicError> {
        let client = config
            .admin()
            .create_with_context(Quiet::new("admin"))
            .map_err(|error| failed("set up an administration client", error))?;
        Ok(Self { client, asking })
    }

    pub(super) async fn create(&self, topic: &TopicName, settings: &TopicSettings) -> Result<Creation, TopicError> {
        let refuse = |reason: String| TopicError::Settings { topic: topic.clone(), reason };
        let doing = || format!("create topic `{topic}`");
        let values = topic_values(settings);
        let partitions = i32::try_from(settings.partitions)
            .ok()
            .filter(|partitions| *partitions > 0)
            .ok_or_else(|| refuse(format!("expected at least 1 partition, found {}", settings.partitions)))?;
        // -1: as many replicas as the cluster is set to.
        let mut wish = NewTopic::new(topic.as_str(), partitions, TopicReplication::Fixed(-1));
        for (name, value) in &values {
            wish = wish.set(name, value);
        }
        let options = AdminOptions::new().request_timeout(Some(REQUEST)).operation_timeout(Some(REQUEST));
        let results = self.client.create_topics([&wish], &options).await;
        let results = results.map_err(|error| failed(doing(), error))?;
        match results.into_iter().next() {
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => {
                // Somebody else may have made it this very moment.
                self.wait_until_there(topic, 1).await?;
                Ok(Creation::Existed)
            }
            Some(Err((_, code))) if is_about_settings(code) => Err(refuse(code.to_string())),
            Some(Err((_, code))) => Err(failed(doing(), KafkaError::AdminOp(code))),
            Some(Ok(_)) | None => {
                self.wait_until_there(topic, settings.partitions).await?;
                Ok(Creation::Created)
            }
        }
    }

    /// Adds the partitions that are missing; how many there are now.
    pub(super) async fn grow(&self, topic: &TopicName, partitions: u32) -> Result<u32, TopicError> {
        let found = self.partitions(topic).await?.ok_or_else(|| TopicError::UnknownTopic { topic: topic.clone() })?;
        if found >= partitions {
            return Ok(found);
        }
        let doing = || format!("grow topic `{topic}` from {found} to {partitions} partitions");
        let options = AdminOptions::new().request_timeout(Some(REQUEST)).operation_timeout(Some(REQUEST));
        let wish = NewPartitions::new(topic.as_str(), partitions as usize);
        let results = self.client.create_partitions([&wish], &options).await;
        let results = results.map_err(|error| failed(doing(), error))?;
        match results.into_iter().next() {
            // Somebody else has grown it meanwhile.
            Some(Err((_, RDKafkaErrorCode::InvalidPartitions))) | Some(Ok(_)) | None => {
                self.wait_until_there(topic, partitions).await?;
                Ok(self.partitions(topic).await?.unwrap_or(partitions).max(partitions))
            }
            Some(Err((_, code))) => Err(failed(doing(), KafkaError::AdminOp(code))),
        }
    }

    /// A topic just made is not known to every broker at once, nor does every partition have a leader.
    async fn wait_until_there(&self, topic: &TopicName, partitions: u32) -> Result<(), TopicError> {
        let started = Instant::now();
        loop {
            let (asking, name) = (Arc::clone(&self.asking), topic.clone());
            let ready = blocking(move || all_serve(&asking, &name, partitions)).await;
            match ready {
                Err(error) if error.class() != ErrorClass::Retry || started.elapsed() >= REQUEST => return Err(error),
                Err(_) => tokio::time::sleep(BETWEEN_LOOKS).await,
                Ok(()) => return Ok(()),
            }
        }
    }

    /// How many partitions a topic has; `None` where it does not exist.
    pub(super) async fn partitions(&self, topic: &TopicName) -> Result<Option<u32>, TopicError> {
        let (asking, name) = (Arc::clone(&self.asking), topic.clone());
        blocking(move || partitions(&asking, &name)).await
    }

    /// What a topic takes. Where we may not ask, what topics take unless told otherwise.
    pub(super) async fn takes(&self, topic: &TopicName) -> Result<Takes, TopicError> {
        let options = AdminOptions::new().request_timeout(Some(REQUEST));
        let resource = ResourceSpecifier::Topic(topic.as_str());
        let described = self.client.describe_configs([&resource], &options).await;
        let described = match described.map(|resources| resources.into_iter().next()) {
            Ok(Some(Ok(resource))) => Ok(resource),
            Ok(Some(Err(code))) => Err(KafkaError::AdminOp(code)),
            Ok(None) => Err(KafkaError::AdminOp(RDKafkaErrorCode::InvalidConfig)),
            Err(error) => Err(error),
        };
        match described {
            Ok(resource) => Ok(Takes::read(&resource)),
            Err(error) if code_of(&error).is_some_and(may_not_ask) => {
                tracing::debug!(%topic, assumed = BROKER_MESSAGE_BYTES, %error, "may not ask what a topic takes");
                Ok(Takes::default())
            }
            Err(error) => Err(failed(format!("ask what topic `{topic}` takes"), error)),
        }
    }

    pub(super) async fn span(&self, topic: &TopicName, partition: u32) -> Result<Span, TopicError> {
        let (asking, name) = (Arc::clone(&self.asking), topic.clone());
        blocking(move || span(&asking, &name, partition)).await
    }

    pub(super) async fn trim(&self, topic: &TopicName, partition: u32, before: u64) -> Result<(), TopicError> {
        let doing = || format!("remove messages of `{topic}`/{partition}");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic.as_str(), partition as i32, Offset::Offset(before as i64))
            .map_err(|error| failed(doing(), error))?;
        let options = AdminOptions::new().request_timeout(Some(REQUEST));
        let deleted = self.client.delete_records(&list, &options).await;
        let deleted = deleted.map_err(|error| failed(doing(), error))?;
        let error = deleted.elements().iter().find_map(|place| place.error().err());
        error.map_or(Ok(()), |error| Err(failed(doing(), error)))
    }

    /// Waits until any broker answers, and yields the name of the cluster.
    pub(super) async fn cluster(&self, wait: Duration) -> Option<String> {
        let asking = Arc::clone(&self.asking);
        let ask = move || Ok(asking.client().fetch_cluster_id(wait));
        blocking(ask).await.ok().flatten()
    }
}

/// What a topic takes in one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Takes {
    pub(super) max_message_bytes: usize,
    /// It is compacted: a message without a key would be refused.
    pub(super) only_keyed: bool,
}

impl Default for Takes {
    fn default() -> Self {
        Self { max_message_bytes: BROKER_MESSAGE_BYTES, only_keyed: false }
    }
}

impl Takes {
    fn read(resource: &ConfigResource) -> Self {
        let value = |name: &str| resource.get(name).and_then(|entry| entry.value.as_deref());
        Self {
            max_message_bytes: value("max.message.bytes")
                .and_then(|bytes| bytes.parse().ok())
                .unwrap_or(BROKER_MESSAGE_BYTES),
            only_keyed: value("cleanup.policy").is_some_and(|policy| policy.contains("compact")),
        }
    }
}

fn may_not_ask(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    needs_a_person(code) || code == Code::UnsupportedFeature
}

fn is_about_settings(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::InvalidPartitions
            | Code::InvalidReplicationFactor
            | Code::InvalidConfig
            | Code::PolicyViolation
            | Code::InvalidTopic
    )
}

fn topic_values(settings: &TopicSettings) -> Vec<(&'static str, String)> {
    let for_ever = || "-1".to_owned();
    let bytes = settings.retention.bytes.map_or_else(for_ever, |bytes| bytes.to_string());
    let age = settings.retention.age.map_or_else(for_ever, |age| age.as_millis().to_string());
    let message = settings.max_message_bytes + FRAMING_BYTES + HEADER_ROOM_BYTES;
    vec![
        ("cleanup.policy", "delete".to_owned()),
        ("retention.bytes", bytes),
        ("retention.ms", age),
        ("max.message.bytes", message.max(BROKER_MESSAGE_BYTES).to_string()),
    ]
}

/// Runs a call that blocks where blocking is allowed.
pub(super) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, TopicError> + Send + 'static,
) -> Result<T, TopicError> {
    match tokio::task::spawn_blocking(call).await {
        Ok(outcome) => outcome,
        Err(panic) => Err(TopicError::Kafka {
            doing: "finish a call".to_owned(),
            class: ErrorClass::Stop,
            source: Arc::new(panic),
        }),
    }
}

/// Blocks.
pub(super) fn partitions(asking: &BaseConsumer<Quiet>, topic: &TopicName) -> Result<Option<u32>, TopicError> {
    let doing = || format!("describe topic `{topic}`");
    let metadata = asking.fetch_metadata(Some(topic.as_str()), REQUEST).map_err(|error| failed(doing(), error))?;
    let Some(found) = metadata.topics().iter().find(|t| t.name() == topic.as_str()) else {
        return Ok(None);
    };
    let code: Option<RDKafkaErrorCode> = found.error().filter(|e| e.is_error()).map(Into::into);
    match code {
        Some(RDKafkaErrorCode::UnknownTopicOrPartition) => Ok(None),
        Some(code) if needs_a_person(code) => Err(failed(doing(), KafkaError::MetadataFetch(code))),
        // A topic without a leader for now is there all the same, if its partitions are known.
        Some(code) if found.partitions().is_empty() => Err(failed(doing(), KafkaError::MetadataFetch(code))),
        _ => Ok(Some(found.partitions().len() as u32)),
    }
}

/// Blocks. Whether every partition of a new topic has a leader that answers.
fn all_serve(asking: &BaseConsumer<Quiet>, topic: &TopicName, count: u32) -> Result<(), TopicError> {
    // Not there yet, as opposed to not there: worth another look.
    let found = partitions(asking, topic)?.unwrap_or(0);
    if found < count {
        let error = KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition);
        return Err(failed(format!("finish making topic `{topic}`"), error));
    }
    (0..count).try_for_each(|partition| watermarks(asking, topic, partition).map(|_| ()))
}

/// Blocks. Checks that the partition exists first: asking for one that does not would wait in vain.
pub(super) fn span(asking: &BaseConsumer<Quiet>, topic: &TopicName, partition: u32) -> Result<Span, TopicError> {
    let count = partitions(asking, topic)?.ok_or_else(|| TopicError::UnknownTopic { topic: topic.clone() })?;
    if partition >= count {
        return Err(TopicError::UnknownPartition { topic: topic.clone(), partition, partitions: count });
    }
    watermarks(asking, topic, partition)
}

fn watermarks(asking: &BaseConsumer<Quiet>, topic: &TopicName, partition: u32) -> Result<Span, TopicError> {
    let (start, end) = asking
        .fetch_watermarks(topic.as_str(), partition as i32, REQUEST)
        .map_err(|error| failed(format!("ask for the span of `{topic}`/{partition}"), error))?;
    Ok(Span { start: u64::try_from(start).unwrap_or(0), end: u64::try_from(end).unwrap_or(0) })
}

//! How the clients of one Kafka log are set up.
//!
//! Invariant: what the promises of this crate rest on cannot be configured away, everything else
//! can. A property that librdkafka does not know is refused by name before any connection is made.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;

use crate::TopicError;
use crate::limits::MESSAGE_OVERHEAD_BYTES;

/// What every broker takes in one request unless its `socket.request.max.bytes` is lowered.
const LARGEST_REQUEST_BYTES: usize = 100_000_000;
/// Small enough for topics with a low `max.message.bytes`, large enough that batches amortise.
const BATCH_BYTES: usize = 256_000;

/// What the promises rest on: set here and nowhere else.
const RESERVED: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "auto.offset.reset",
    "bootstrap.servers",
    "client.id",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "isolation.level",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "message.timeout.ms",
    "metadata.broker.list",
    "request.required.acks",
    "retries",
    "message.send.max.retries",
    "transactional.id",
];

/// Only the members of a group have a use for these.
const OF_MEMBERS: &[&str] = &["group.", "heartbeat.", "max.poll.", "partition.assignment.", "session.timeout"];
const OF_PRODUCERS: &[&str] = &["batch.", "compression.", "linger.", "queue.buffering.", "sticky."];
const OF_CONSUMERS: &[&str] = &["check.crcs", "fetch.", "max.partition.fetch", "queued."];

/// Where Kafka is and how much memory its clients take.
#[derive(Clone)]
pub struct KafkaConfig {
    /// `host:port`, several separated by commas.
    pub brokers: String,
    /// librdkafka properties (TLS, SASL, tuning), passed on after they were checked.
    pub properties: BTreeMap<String, String>,
    /// What may be queued and not yet acknowledged by the brokers.
    pub max_inflight_bytes: usize,
    /// What is fetched ahead for one reader. A reader holds about this much at most.
    pub fetch_bytes_per_partition: usize,
    /// Shown in the logs and metrics of the brokers.
    pub client_id: String,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            brokers: "127.0.0.1:9092".to_owned(),
            properties: BTreeMap::new(),
            max_inflight_bytes: 32 << 20,
            fetch_bytes_per_partition: 2 << 20,
            client_id: "tailwater".to_owned(),
        }
    }
}

impl fmt::Debug for KafkaConfig {
    /// Values of properties may be secrets and are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("properties", &self.properties.keys().collect::<Vec<_>>())
            .field("max_inflight_bytes", &self.max_inflight_bytes)
            .field("fetch_bytes_per_partition", &self.fetch_bytes_per_partition)
            .field("client_id", &self.client_id)
            .finish()
    }
}

impl KafkaConfig {
    /// Refuses properties that are reserved or unknown, and values that librdkafka does not take.
    pub(crate) fn check(&self) -> Result<(), TopicError> {
        for (name, value) in &self.properties {
            let refuse = |reason: String| TopicError::Property { name: name.clone(), reason };
            if name == "bootstrap.servers" || name == "metadata.broker.list" {
                return Err(refuse("set `brokers` of the log instead".to_owned()));
            }
            if RESERVED.contains(&name.as_str()) {
                return Err(refuse("Tailwater sets it itself; remove it".to_owned()));
            }
            let mut alone = ClientConfig::new();
            alone.set(name, value);
            match alone.create_native_config() {
                Ok(_) => {}
                Err(KafkaError::ClientConfig(_, reason, ..)) => return Err(refuse(reason)),
                Err(error) => return Err(refuse(error.to_string())),
            }
        }
        Ok(())
    }

    /// Properties of the user apply last, except those that are for clients of another kind.
    fn build(&self, ours: &[(&str, String)], not_for: &[&[&str]]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set_log_level(RDKafkaLogLevel::Info);
        config.set("bootstrap.servers", &self.brokers);
        config.set("client.id", &self.client_id);
        // Long enough to spare a dead broker, short enough to be back soon after it.
        config.set("reconnect.backoff.max.ms", "1000");
        for (name, value) in ours {
            config.set(*name, value);
        }
        for (name, value) in &self.properties {
            let foreign = not_for.iter().flat_map(|kind| kind.iter());
            if !foreign.into_iter().any(|prefix| name.starts_with(prefix)) {
                config.set(name, value);
            }
        }
        config
    }

    pub(crate) fn admin(&self) -> ClientConfig {
        self.build(&[], &[OF_MEMBERS, OF_CONSUMERS, OF_PRODUCERS])
    }

    /// Never gives up on a message: an unreachable broker is waited for, since giving up would leave
    /// a hole behind later messages.
    pub(crate) fn producer(&self) -> ClientConfig {
        let queue_bytes = self.max_inflight_bytes.max(LARGEST_REQUEST_BYTES);
        let queue_messages = self.max_inflight_bytes / MESSAGE_OVERHEAD_BYTES + 1;
        let ours = [
            ("enable.idempotence", "true".to_owned()),
            ("acks", "all".to_owned()),
            ("enable.gapless.guarantee", "true".to_owned()),
            ("message.timeout.ms", "0".to_owned()),
            // Who deletes a topic may be about to make it anew, and nobody else is to do it.
            ("allow.auto.create.topics", "false".to_owned()),
            ("linger.ms", "5".to_owned()),
            // Payloads of channels are compressed already.
            ("compression.type", "none".to_owned()),
            ("batch.size", BATCH_BYTES.to_string()),
            ("message.max.bytes", LARGEST_REQUEST_BYTES.to_string()),
            ("queue.buffering.max.kbytes", (queue_bytes / 1024 + 1024).to_string()),
            ("queue.buffering.max.messages", queue_messages.to_string()),
        ];
        self.build(&ours, &[OF_MEMBERS, OF_CONSUMERS])
    }

    /// The most a batch of the producer may have, and so the least a topic must take.
    pub(crate) fn batch_bytes(&self) -> usize {
        let set = self.properties.get("batch.size");
        set.and_then(|set| set.parse().ok()).unwrap_or(BATCH_BYTES)
    }

    /// Reads where it is told, never where a group is said to be. The group only has a name because
    /// librdkafka wants one; nobody joins it and nothing is committed to it.
    pub(crate) fn reader(&self) -> ClientConfig {
        let half = (self.fetch_bytes_per_partition / 2).clamp(64 << 10, 512 << 20);
        let ours = [
            ("group.id", format!("{}.readers", self.client_id)),
            ("enable.auto.commit", "false".to_owned()),
            ("enable.auto.offset.store", "false".to_owned()),
            ("auto.offset.reset", "error".to_owned()),
            ("isolation.level", "read_committed".to_owned()),
            ("enable.partition.eof", "false".to_owned()),
            // One fetch may come on top of a queue that is all but full: half and half.
            ("queued.max.messages.kbytes", (half / 1024).to_string()),
            ("queued.min.messages", (half / 512).clamp(100, 100_000).to_string()),
            ("fetch.message.max.bytes", half.to_string()),
            ("fetch.max.bytes", (half * 4).clamp(1 << 20, 50 << 20).to_string()),
            // What a client takes for missing, or has no leader for, it looks at again this often instead of every five
            // minutes.
            ("topic.metadata.refresh.interval.ms", "10000".to_owned()),
            // A topic that was deleted is reported after this time instead of half a minute.
            ("topic.metadata.propagation.max.ms", "10000".to_owned()),
            // The default of a second starves a reader whose queue was full for a moment.
            ("fetch.queue.backoff.ms", "5".to_owned()),
            // A broker has one fetch at a time from a client. Where all busy partitions have their queues full for a
            // moment it asks for idle ones alone, and the busy ones wait until that is over: so that must not be long.
            ("fetch.wait.max.ms", "20".to_owned()),
            // What clients measure for the brokers to collect is measured at every single message that is taken.
            ("enable.metrics.push", "false".to_owned()),
        ];
        let mut config = self.build(&ours, &[OF_MEMBERS, OF_PRODUCERS]);
        // Only at this level does librdkafka say that a topic was deleted and created again.
        config.set_log_level(RDKafkaLogLevel::Debug);
        let wished = self.properties.get("debug");
        config.set("debug", wished.map_or_else(|| "topic".to_owned(), |wished| format!("topic,{wished}")));
        config
    }

    /// Takes part in a group, and fetches nothing.
    pub(crate) fn member(&self, group: &str) -> ClientConfig {
        let mut ours = vec![
            ("group.id", group.to_owned()),
            ("enable.auto.commit", "false".to_owned()),
            ("enable.auto.offset.store", "false".to_owned()),
            ("auto.offset.reset", "latest".to_owned()),
            ("topic.metadata.refresh.interval.ms", "5000".to_owned()),
            ("queued.max.messages.kbytes", "64".to_owned()),
            ("fetch.message.max.bytes", "1024".to_owned()),
        ];
        let protocol = self.properties.get("group.protocol");
        if protocol.is_none_or(|protocol| protocol == "classic") {
            let strategy = "cooperative-sticky".to_owned();
            ours.push(("partition.assignment.strategy", strategy));
            ours.push(("session.timeout.ms", "10000".to_owned()));
        }
        self.build(&ours, &[OF_PRODUCERS, OF_CONSUMERS])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &str, value: &str) -> KafkaConfig {
        KafkaConfig { properties: BTreeMap::from([(name.to_owned(), value.to_owned())]), ..KafkaConfig::default() }
    }

    #[test]
    fn faulty_properties_are_named() {
        for (name, value, reason) in [
            ("sasl.pasword", "secret", "No such configuration property"),
            ("linger.ms", "soon", "Invalid value"),
            ("acks", "1", "Tailwater sets it itself"),
            ("enable.idempotence", "false", "Tailwater sets it itself"),
            ("bootstrap.servers", "b:1", "set `brokers`"),
        ] {
            let error = with(name, value).check().expect_err("refused").to_string();
            assert!(error.contains(name) && error.contains(reason), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        assert!(with("security.protocol", "ssl").check().is_ok());
    }

    #[test]
    fn properties_reach_the_clients_they_are_for() {
        let config = with("session.timeout.ms", "6000");
        assert_eq!(config.member("g").get("session.timeout.ms"), Some("6000"));
        assert_eq!(config.reader().get("session.timeout.ms"), None);
        let config = with("compression.type", "lz4");
        assert_eq!(config.producer().get("compression.type"), Some("lz4"));
        assert_eq!(config.reader().get("compression.type"), None);
        let config = with("sasl.username", "me");
        for client in [config.admin(), config.producer(), config.reader(), config.member("g")] {
            assert_eq!(client.get("sasl.username"), Some("me"));
        }
    }

    #[test]
    fn the_new_group_protocol_gets_nothing_it_forbids() {
        let member = with("group.protocol", "consumer").member("g");
        assert_eq!(member.get("session.timeout.ms"), None);
        assert_eq!(member.get("partition.assignment.strategy"), None);
        assert_eq!(member.get("group.protocol"), Some("consumer"));
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!("{:?}", with("sasl.password", "hunter2"));
        assert!(shown.contains("sasl.password") && !shown.contains("hunter2"));
    }
}

//! The Kafka log against a real broker: the contract, and what only a broker can show.

mod kafka {
    mod faults;
    mod groups;
    mod law;
    mod memory;
    mod settings;
}

use std::collections::BTreeMap;
use std::sync::Arc;

use testkit::kafka::Kafka;
use topics::contract::{Subject, run_all};
use topics::kafka::{KafkaConfig, KafkaLog};

pub fn config(brokers: &str) -> KafkaConfig {
    KafkaConfig { brokers: brokers.to_owned(), client_id: "topics-tests".to_owned(), ..KafkaConfig::default() }
}

pub fn with(brokers: &str, properties: &[(&str, &str)]) -> KafkaConfig {
    let properties = properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    KafkaConfig { properties: properties.collect::<BTreeMap<_, _>>(), ..config(brokers) }
}

pub async fn connect(brokers: &str) -> KafkaLog {
    KafkaLog::connect(config(brokers)).await.expect("connected")
}

/// Starting a broker blocks, so it happens where that is allowed.
pub async fn broker() -> Option<Kafka> {
    let started = tokio::task::spawn_blocking(Kafka::start).await;
    started.expect("started").expect("a broker, or none at all")
}

/// The one broker that tests share which leave it alone.
pub async fn shared() -> Option<String> {
    let started = tokio::task::spawn_blocking(|| Kafka::shared().map(|kafka| kafka.map(Kafka::brokers)));
    started.await.expect("started").expect("a broker, or none at all")
}

fn subject(log: &KafkaLog) -> Subject {
    let cutter = log.clone();
    Subject::of(log.clone()).with_cut(move |topic, partition, before| {
        let log = cutter.clone();
        async move { log.trim(&topic, partition, before).await.expect("cut") }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kafka_log_keeps_the_contract() {
    let Some(brokers) = shared().await else {
        return;
    };
    let log = Arc::new(connect(&brokers).await);
    run_all(|| std::future::ready(subject(&log))).await;
}

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
use topics::{Log as _, NewMessage, TopicName, TopicSettings};

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

/// Brokers answer one connection in turn: what is asked behind a fetch waits as long as the fetch does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_does_not_wait_for_messages() {
    let Some(brokers) = shared().await else {
        return;
    };
    let longer_than_questions_wait = ("fetch.wait.max.ms", "15000");
    let log = KafkaLog::connect(with(&brokers, &[longer_than_questions_wait])).await.expect("connected");
    let topic = TopicName::new("questions-beside-fetches").expect("a name");
    log.create(&topic, &TopicSettings::default()).await.expect("created");
    let append = async |payload: &'static str| {
        let message = NewMessage { payload: payload.into(), ..NewMessage::default() };
        log.appender().append(&topic, 0, message).await.expect("queued").await.expect("durable")
    };
    append("first").await;
    let mut reader = log.reader(&topic, 0, 0).await.expect("opened");
    let read = reader.read(1 << 20).await.expect("read");
    assert_eq!(read.len(), 1);
    for asked in 0..3 {
        let span = log.span(&topic, 0).await.unwrap_or_else(|error| panic!("question {asked}: {error}"));
        assert_eq!(span.end, 1);
    }
    append("what the fetch waits for").await;
    assert_eq!(reader.read(1 << 20).await.expect("read").len(), 1);
}

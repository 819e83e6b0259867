//! The law of failed appends on a real broker: what librdkafka's gapless guarantee is worth.
//!
//! A broker that refuses a message for good is made by lowering the topic's `max.message.bytes` behind the appender's
//! back. The producer is dead from then on, and everything queued behind goes with it.

use std::time::Duration;

use delivery::ErrorClass;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use topics::contract::{self, Subject};
use topics::{Log, NewMessage, TopicName};

use crate::{connect, shared};

/// From when this returns, the broker refuses every message to the topic.
fn refuse_everything(brokers: &str, topic: &TopicName) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().expect("client");
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic.as_str())).set("max.message.bytes", "1");
    let changed = futures::executor::block_on(admin.alter_configs([&change], &AdminOptions::new()));
    changed.expect("answered")[0].as_ref().expect("changed");
    // The broker hears of it a moment after the controller; another partition of the topic tells when.
    while probe(brokers, topic) {}
}

/// Whether the broker still takes a message to partition 1.
fn probe(brokers: &str, topic: &TopicName) -> bool {
    let (told, fate) = std::sync::mpsc::sync_channel(1);
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    let producer: BaseProducer<Probe> = config.create_with_context(Probe(told)).expect("client");
    let record: BaseRecord<'_, (), str> = BaseRecord::to(topic.as_str()).partition(1).payload("probe");
    producer.send(record).expect("queued");
    producer.flush(Duration::from_secs(30)).expect("answered");
    fate.recv().expect("a word")
}

struct Probe(std::sync::mpsc::SyncSender<bool>);

impl rdkafka::ClientContext for Probe {}

impl ProducerContext for Probe {
    type DeliveryOpaque = ();

    fn delivery(&self, report: &DeliveryResult<'_>, (): ()) {
        self.0.send(report.is_ok()).expect("somebody waits");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_the_broker_refuses_takes_along_everything_behind_it() {
    let Some(brokers) = shared().await else {
        return;
    };
    let log = connect(&brokers).await;
    let subject = Subject::of(log.clone()).with_fail(move |topic, _| {
        let brokers = brokers.clone();
        let refusing = std::thread::spawn(move || refuse_everything(&brokers, &topic));
        refusing.join().expect("refusing");
        || ()
    });
    contract::a_failed_append_takes_along_everything_behind_it(&subject).await;
    // And elsewhere too: the producer is of no use any more, and says so.
    let elsewhere = TopicName::new("law.elsewhere").expect("valid");
    log.create(&elsewhere, &topics::TopicSettings::default()).await.expect("created");
    let refused = log.appender().append(&elsewhere, 0, NewMessage::of("x")).await.expect_err("a dead producer");
    assert_eq!(refused.class(), ErrorClass::Stop, "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_without_a_key_is_refused_before_a_compacted_topic_could_refuse_it() {
    let Some(brokers) = shared().await else {
        return;
    };
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &brokers).create().expect("client");
    let compacted = NewTopic::new("law.compacted", 1, TopicReplication::Fixed(1)).set("cleanup.policy", "compact");
    admin.create_topics([&compacted], &AdminOptions::new()).await.expect("answered")[0].as_ref().expect("created");
    let (log, topic) = (connect(&brokers).await, TopicName::new("law.compacted").expect("valid"));
    // Waits until it serves.
    log.create(&topic, &topics::TopicSettings::default()).await.expect("there");
    let refused = log.appender().append(&topic, 0, NewMessage::of("x")).await.expect_err("no key");
    assert_eq!(refused.class(), ErrorClass::Reject);
    assert!(refused.to_string().contains("key"), "{refused}");
    let keyed = NewMessage { key: Some("k".into()), ..NewMessage::of("x") };
    assert_eq!(log.appender().append(&topic, 0, keyed).await.expect("queued").await.expect("durable"), 0);
}

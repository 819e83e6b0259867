//! Groups across clients, and what becomes of group offsets.

use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use topics::kafka::KafkaLog;
use topics::{Log, Membership, TopicName, TopicSettings};

use crate::{connect, shared, with};

async fn topic(log: &KafkaLog, text: &str, partitions: u32) -> TopicName {
    let topic = TopicName::new(text).expect("valid");
    let settings = TopicSettings { partitions, ..TopicSettings::default() };
    log.create(&topic, &settings).await.expect("created");
    topic
}

async fn until(member: &mut Box<dyn Membership>, partitions: usize) -> BTreeSet<(TopicName, u32)> {
    loop {
        let owned = member.changed().await.expect("changed");
        if owned.len() == partitions {
            return owned;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settled_positions_are_visible_to_lag_tools_and_never_read_back() {
    let Some(brokers) = shared().await else {
        return;
    };
    let log = connect(&brokers).await;
    let topic = topic(&log, "settled", 1).await;
    for _ in 0..5 {
        let message = topics::NewMessage::of("x");
        let receipt = log.appender().append(&topic, 0, message).await.expect("queued");
        receipt.await.expect("durable");
    }
    let mut member = log.join("settlers", vec![topic.clone()]).await.expect("joined");
    until(&mut member, 1).await;
    member.settle(vec![(topic.clone(), 0, 3)]).await.expect("settled");
    let committed = tokio::task::spawn_blocking(move || committed(&brokers)).await.expect("asked");
    assert_eq!(committed, Offset::Offset(3));
    let mut reader = log.reader(&topic, 0, 0).await.expect("reader");
    assert_eq!(reader.read(1).await.expect("read")[0].offset, 0);
}

/// Asks as a lag tool would, until the commit has arrived.
fn committed(brokers: &str) -> Offset {
    let tool: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", brokers).set("group.id", "settlers").create().expect("client");
    for _ in 0..100 {
        let mut list = TopicPartitionList::new();
        list.add_partition("settled", 0);
        let found = tool.committed_offsets(list, Duration::from_secs(10)).expect("answered");
        let offset = found.elements()[0].offset();
        if offset != Offset::Invalid {
            return offset;
        }
    }
    Offset::Invalid
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_new_group_protocol_divides_work_between_two_clients() {
    let Some(brokers) = shared().await else {
        return;
    };
    let new = with(&brokers, &[("group.protocol", "consumer")]);
    let first = KafkaLog::connect(new.clone()).await.expect("connected");
    let second = KafkaLog::connect(new).await.expect("connected");
    let topic = topic(&first, "new-protocol", 4).await;
    let mut one = first.join("new", vec![topic.clone()]).await.expect("joined");
    until(&mut one, 4).await;
    let mut two = second.join("new", vec![topic.clone()]).await.expect("joined");
    let (of_one, of_two) = tokio::join!(until(&mut one, 2), until(&mut two, 2));
    assert!(of_one.is_disjoint(&of_two));
    drop(one);
    until(&mut two, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_log_has_left_its_groups() {
    let Some(brokers) = shared().await else {
        return;
    };
    let (first, second) = (connect(&brokers).await, connect(&brokers).await);
    let topic = topic(&first, "left", 2).await;
    let mut one = first.join("leavers", vec![topic.clone()]).await.expect("joined");
    until(&mut one, 2).await;
    let mut two = second.join("leavers", vec![topic.clone()]).await.expect("joined");
    tokio::join!(until(&mut one, 1), until(&mut two, 1));
    drop(one);
    tokio::task::spawn_blocking(move || drop(first)).await.expect("closed");
    // Far below the session time-out of 10 s, after which it would have been thrown out.
    let taken = tokio::time::timeout(Duration::from_secs(8), until(&mut two, 2)).await;
    assert!(taken.is_ok(), "the other member had to wait for a time-out");
}

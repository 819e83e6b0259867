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
    let owned = async {
        loop {
            let owned = member.changed().await.expect("changed");
            if owned.len() == partitions {
                return owned;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), owned).await.expect("the share within a minute")
}

/// Closing waits until the member has left, or has said that it will be back.
async fn close(log: KafkaLog, member: Box<dyn Membership>) {
    drop(member);
    tokio::task::spawn_blocking(move || drop(log)).await.expect("closed");
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
    // A topic that grows while they work is shared, too.
    first.grow(&topic, 6).await.expect("grown");
    let (of_one, of_two) = tokio::join!(until(&mut one, 3), until(&mut two, 3));
    assert!(of_one.is_disjoint(&of_two));
    let leaving = std::time::Instant::now();
    drop(one);
    until(&mut two, 6).await;
    // Far below the session time-out of 45 s.
    assert!(leaving.elapsed() < Duration::from_secs(20), "{:?}", leaving.elapsed());
}

/// The properties of a member with a name of its own, under either protocol.
fn named<'a>(protocol: &'a str, name: &'a str) -> Vec<(&'a str, &'a str)> {
    let mut properties = vec![("group.protocol", protocol), ("group.instance.id", name)];
    if protocol == "classic" {
        properties.push(("session.timeout.ms", "45000"));
    }
    properties
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_a_name_of_its_own_comes_back_to_its_partitions_and_disturbs_nobody() {
    let Some(brokers) = shared().await else {
        return;
    };
    for protocol in ["classic", "consumer"] {
        let connect = async |name| KafkaLog::connect(with(&brokers, &named(protocol, name))).await.expect("connected");
        let (first, second) = (connect("one").await, connect("two").await);
        let topic = topic(&first, &format!("static-{protocol}"), 4).await;
        let group = format!("static-{protocol}");
        let mut one = first.join(&group, vec![topic.clone()]).await.expect("joined");
        until(&mut one, 4).await;
        let mut two = second.join(&group, vec![topic.clone()]).await.expect("joined");
        let (of_one, of_two) = tokio::join!(until(&mut one, 2), until(&mut two, 2));
        assert!(of_one.is_disjoint(&of_two));
        close(first, one).await;
        let again = connect("one").await;
        let mut one = again.join(&group, vec![topic.clone()]).await.expect("joined");
        assert_eq!(until(&mut one, 2).await, of_one, "{protocol}");
        // Whatever changed for the other is not what it owns.
        while let Ok(changed) = tokio::time::timeout(Duration::from_secs(3), two.changed()).await {
            assert_eq!(changed.expect("changed"), of_two, "{protocol}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_name_serves_all_groups_of_a_process() {
    let Some(brokers) = shared().await else {
        return;
    };
    let log = KafkaLog::connect(with(&brokers, &named("classic", "everything"))).await.expect("connected");
    let topic = topic(&log, "static-groups", 2).await;
    let mut members = Vec::new();
    for group in ["static-ingestion", "static-transformation", "static-storage"] {
        members.push(log.join(group, vec![topic.clone()]).await.expect("joined"));
    }
    for member in &mut members {
        until(member, 2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_former_of_two_processes_with_one_name_hears_of_the_mistake() {
    let Some(brokers) = shared().await else {
        return;
    };
    let connect = async || KafkaLog::connect(with(&brokers, &named("classic", "same"))).await.expect("connected");
    let (first, second) = (connect().await, connect().await);
    let topic = topic(&first, "static-twice", 2).await;
    let mut one = first.join("static-twice", vec![topic.clone()]).await.expect("joined");
    until(&mut one, 2).await;
    let mut two = second.join("static-twice", vec![topic.clone()]).await.expect("joined");
    until(&mut two, 2).await;
    let heard = async {
        loop {
            if let Err(error) = one.changed().await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(60), heard).await.expect("a word within a minute");
    assert_eq!(error.class(), delivery::ErrorClass::Stop);
    assert!(error.to_string().contains("group.instance.id"), "{error}");
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

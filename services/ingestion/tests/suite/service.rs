//! The whole service: from a request to rows in a channel.

use std::sync::Arc;

use batch::Compression;
use delivery::Position;
use lake::Lake;
use runtime::{
    catalog,
    config::Config,
    edges::Edges,
    tasks::{Fate, TaskGroup},
};
use topics::{Log, TopicSettings, memory::MemoryLog};

use crate::world::{apply_request, topic};

const SQL: &str = "CREATE SOURCE events (id BIGINT NOT NULL) WITH (format = 'json', partitions = 2);
CREATE SOURCE clicks (id BIGINT NOT NULL) WITH (topic = 'user.clicks', format = 'json');";

#[tokio::test]
async fn a_new_source_gets_its_topics_and_its_tasks() {
    let log = Arc::new(MemoryLog::new());
    let user = TopicSettings { partitions: 3, ..TopicSettings::default() };
    log.create(&topic("user.clicks"), &user).await.unwrap();
    catalog::apply(log.as_ref(), &apply_request(SQL)).await.unwrap();
    let group = TaskGroup::new();
    let shared: Arc<dyn Log> = Arc::clone(&log) as Arc<dyn Log>;
    let edges = Edges::new(shared, Lake::memory(), Compression::None, &group);
    let mut config = Config::default();
    config.ingestion.linger = runtime::units::Duration::millis(0);
    group.spawn("ingestion", Fate::Critical, ingestion::run(config, edges, group.stop()));

    for (channel, partitions) in [("events", 2), ("clicks", 3)] {
        let channel = topic(&format!("tailwater.channel.shop.{channel}.1"));
        let rejected = topic(channel.as_str().replace("channel", "rejected").as_str());
        for name in [&channel, &rejected] {
            let description = loop {
                if let Some(description) = log.describe(name).await.unwrap() {
                    break description;
                }
                tokio::task::yield_now().await;
            };
            assert_eq!(description.partitions, partitions, "as many as the topic it is fed from");
        }
    }
    let message = topics::NewMessage::of("{\"id\":7}");
    log.appender().append(&topic("user.clicks"), 2, message).await.unwrap().await.unwrap();
    let mut reader = log.reader(&topic("tailwater.channel.shop.clicks.1"), 2, 0).await.unwrap();
    let first = reader.read(1 << 20).await.unwrap().remove(0);
    let envelope = batch::decode_envelope(&first.headers).unwrap();
    assert_eq!((envelope.rows, envelope.origin.to), (1, Position::at(1)));
    assert_eq!(envelope.origin.writer.as_str(), "shop.clicks/2");
    group.finish(std::time::Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn a_partition_the_topic_gains_is_read_into_a_partition_its_channel_gains() {
    let log = Arc::new(MemoryLog::new());
    let clicks = topic("user.clicks");
    log.create(&clicks, &TopicSettings::default()).await.unwrap();
    catalog::apply(log.as_ref(), &apply_request(SQL)).await.unwrap();
    let group = TaskGroup::new();
    let shared: Arc<dyn Log> = Arc::clone(&log) as Arc<dyn Log>;
    let edges = Edges::new(shared, Lake::memory(), Compression::None, &group);
    let mut config = Config::default();
    config.ingestion.linger = runtime::units::Duration::millis(0);
    group.spawn("ingestion", Fate::Critical, ingestion::run(config, edges, group.stop()));
    let send = async |partition| {
        let message = topics::NewMessage::of("{\"id\":7}");
        log.appender().append(&clicks, partition, message).await.unwrap().await.unwrap();
    };
    let channel = topic("tailwater.channel.shop.clicks.1");
    while log.describe(&channel).await.unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    send(0).await;
    log.reader(&channel, 0, 0).await.unwrap().read(1).await.unwrap();

    log.grow(&clicks, 3).await.unwrap();
    send(2).await;
    for channel in [&channel, &topic("tailwater.rejected.shop.clicks.1")] {
        while log.describe(channel).await.unwrap().unwrap().partitions < 3 {
            tokio::task::yield_now().await;
        }
    }
    let first = log.reader(&channel, 2, 0).await.unwrap().read(1).await.unwrap().remove(0);
    let envelope = batch::decode_envelope(&first.headers).unwrap();
    assert_eq!((envelope.rows, envelope.origin.writer.as_str()), (1, "shop.clicks/2"));
    group.finish(std::time::Duration::from_secs(10)).await.unwrap();
}

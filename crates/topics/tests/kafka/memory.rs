//! A long backlog is read in bounded memory, and every reader moves.

use topics::kafka::KafkaLog;
use topics::{Log, NewMessage, TopicName, TopicSettings};

use crate::{config, shared};

const MESSAGES: u64 = 600;
const MESSAGE_BYTES: usize = 512 << 10;

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    kilobytes.expect("resident size") << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_300_megabytes_per_partition_stays_outside() {
    let Some(brokers) = shared().await else {
        return;
    };
    let small = topics::kafka::KafkaConfig {
        fetch_bytes_per_partition: 4 << 20,
        max_inflight_bytes: 16 << 20,
        ..config(&brokers)
    };
    let log = KafkaLog::connect(small).await.expect("connected");
    let topic = TopicName::new("backlog").expect("valid");
    let settings = TopicSettings { partitions: 2, ..TopicSettings::default() };
    log.create(&topic, &settings).await.expect("created");
    let payload = bytes::Bytes::from(vec![7; MESSAGE_BYTES]);
    for number in 0..2 * MESSAGES {
        let message = NewMessage::of(payload.clone());
        drop(log.appender().append(&topic, (number % 2) as u32, message).await.expect("queued"));
    }
    log.appender().flush().await.expect("flushed");

    let before = resident_bytes();
    let mut slow = log.reader(&topic, 0, 0).await.expect("reader");
    let mut fast = log.reader(&topic, 1, 0).await.expect("reader");
    assert_eq!(slow.read(1).await.expect("read")[0].offset, 0);
    let mut next = 0;
    let mut peak = before;
    while next < MESSAGES {
        let batch = fast.read(1 << 20).await.expect("read");
        next = batch.last().expect("never empty").offset + 1;
        peak = peak.max(resident_bytes());
    }
    let grown = (peak.saturating_sub(before)) >> 20;
    // Two readers of 4 MiB, the reply under way, and what the allocator keeps.
    assert!(grown < 80, "grew by {grown} MiB");
    let mut next = 1;
    while next < MESSAGES {
        let batch = slow.read(1 << 20).await.expect("read");
        assert_eq!(batch[0].offset, next);
        next = batch.last().expect("never empty").offset + 1;
    }
}

//! Every metric of this crate, in one place.
//!
//! Names are `tailwater_topics_<noun>_<unit>`; labels come from small closed sets (topic, log).
//! Handles are made once per reader or topic, so that counting costs an atomic addition.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Unit};

use crate::{Message, TopicName};

const RECEIVED_MESSAGES: &str = "tailwater_topics_received_messages_total";
const RECEIVED_BYTES: &str = "tailwater_topics_received_bytes_total";
const SENT_MESSAGES: &str = "tailwater_topics_sent_messages_total";
const SENT_BYTES: &str = "tailwater_topics_sent_bytes_total";
const APPEND_FAILURES: &str = "tailwater_topics_append_failures_total";
const INFLIGHT_BYTES: &str = "tailwater_topics_inflight_bytes";
const INFLIGHT_LIMIT_BYTES: &str = "tailwater_topics_inflight_limit_bytes";
const COMMIT_SECONDS: &str = "tailwater_topics_commit_duration_seconds";
const COMMIT_MESSAGES: &str = "tailwater_topics_commit_messages";
const TRIMMED_MESSAGES: &str = "tailwater_topics_trimmed_messages_total";
const FULL_DISK_WAITS: &str = "tailwater_topics_full_disk_waits_total";
const REBALANCES: &str = "tailwater_topics_rebalances_total";

/// Tells the installed recorder units and meanings. Call it once, after the recorder is installed.
pub fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_counter!(RECEIVED_MESSAGES, Unit::Count, "messages read, by topic");
    describe_counter!(RECEIVED_BYTES, Unit::Bytes, "content of messages read, by topic");
    describe_counter!(SENT_MESSAGES, Unit::Count, "messages made durable, by topic");
    describe_counter!(SENT_BYTES, Unit::Bytes, "content of messages made durable, by topic");
    describe_counter!(APPEND_FAILURES, Unit::Count, "messages that failed after they were queued, by topic");
    describe_gauge!(INFLIGHT_BYTES, Unit::Bytes, "queued and not yet durable, by log");
    describe_gauge!(INFLIGHT_LIMIT_BYTES, Unit::Bytes, "limit of what may be queued, by log");
    describe_histogram!(COMMIT_SECONDS, Unit::Seconds, "one group commit of the embedded log");
    describe_histogram!(COMMIT_MESSAGES, Unit::Count, "messages in one group commit of the embedded log");
    describe_counter!(TRIMMED_MESSAGES, Unit::Count, "messages removed by retention, by topic");
    describe_counter!(FULL_DISK_WAITS, Unit::Count, "writes of the embedded log that found the disk full");
    describe_counter!(REBALANCES, Unit::Count, "changes of what this process owns in a group");
}

/// Counts what one reader receives.
#[derive(Debug)]
pub(crate) struct Received {
    messages: Counter,
    bytes: Counter,
}

impl Received {
    pub(crate) fn of(topic: &TopicName) -> Self {
        let topic = topic.to_string();
        Self {
            messages: metrics::counter!(RECEIVED_MESSAGES, "topic" => topic.clone()),
            bytes: metrics::counter!(RECEIVED_BYTES, "topic" => topic),
        }
    }

    /// Counts one batch.
    pub(crate) fn count(&self, batch: &[Message]) {
        let bytes = batch.iter().map(|m| m.payload.len() as u64).sum();
        self.messages.increment(batch.len() as u64);
        self.bytes.increment(bytes);
    }
}

/// Counts what becomes durable in one topic.
#[derive(Debug)]
pub(crate) struct Sent {
    messages: Counter,
    bytes: Counter,
    failures: Counter,
    trimmed: Counter,
}

impl Sent {
    pub(crate) fn of(topic: &TopicName) -> Self {
        let topic = topic.to_string();
        Self {
            messages: metrics::counter!(SENT_MESSAGES, "topic" => topic.clone()),
            bytes: metrics::counter!(SENT_BYTES, "topic" => topic.clone()),
            failures: metrics::counter!(APPEND_FAILURES, "topic" => topic.clone()),
            trimmed: metrics::counter!(TRIMMED_MESSAGES, "topic" => topic),
        }
    }

    pub(crate) fn durable(&self, bytes: usize) {
        self.messages.increment(1);
        self.bytes.increment(bytes as u64);
    }

    pub(crate) fn failed(&self) {
        self.failures.increment(1);
    }

    pub(crate) fn trimmed(&self, messages: u64) {
        self.trimmed.increment(messages);
    }
}

/// How full the queue of one log is.
#[derive(Debug)]
pub(crate) struct Inflight {
    bytes: Gauge,
}

impl Inflight {
    pub(crate) fn of(log: &'static str, limit_bytes: usize) -> Self {
        metrics::gauge!(INFLIGHT_LIMIT_BYTES, "log" => log).set(limit_bytes as f64);
        Self { bytes: metrics::gauge!(INFLIGHT_BYTES, "log" => log) }
    }

    pub(crate) fn set(&self, bytes: usize) {
        self.bytes.set(bytes as f64);
    }
}

/// Group commits of the embedded log.
#[derive(Debug)]
pub(crate) struct Commits {
    seconds: Histogram,
    messages: Histogram,
}

impl Commits {
    pub(crate) fn new() -> Self {
        Self { seconds: metrics::histogram!(COMMIT_SECONDS), messages: metrics::histogram!(COMMIT_MESSAGES) }
    }

    pub(crate) fn count(&self, messages: usize, took: Duration) {
        self.seconds.record(took.as_secs_f64());
        self.messages.record(messages as f64);
    }
}

pub(crate) fn full_disk_wait() {
    metrics::counter!(FULL_DISK_WAITS).increment(1);
}

pub(crate) fn rebalance() {
    metrics::counter!(REBALANCES).increment(1);
}

//! What can go wrong with a log.
//!
//! Invariant: every error names its object and tells, through [`TopicError::class`], whether to try
//! again, to give up this one message, or to stop. Errors are cheap to clone, because one failed
//! write answers many receipts.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use delivery::ErrorClass;

use crate::TopicName;

/// A cause that many errors may share.
pub(crate) type Cause = Arc<dyn Error + Send + Sync>;

/// What went wrong.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopicError {
    /// The topic is not there.
    #[error("topic `{topic}` does not exist; create it first")]
    UnknownTopic { topic: TopicName },

    /// The topic has fewer partitions.
    #[error("topic `{topic}` has no partition {partition}: it has {partitions}, numbered from 0")]
    UnknownPartition { topic: TopicName, partition: u32, partitions: u32 },

    /// Retention removed what is asked for.
    #[error(
        "offset {requested} of `{topic}`/{partition} is gone: the first one kept is {start}; lengthen the retention of the topic or start again from {start}"
    )]
    OffsetGone { topic: TopicName, partition: u32, requested: u64, start: u64 },

    /// The log is shorter than the position.
    #[error(
        "offset {requested} of `{topic}`/{partition} lies beyond its end {end}; was the topic created anew or cut?"
    )]
    OffsetAhead { topic: TopicName, partition: u32, requested: u64, end: u64 },

    /// Another topic of the same name has taken the place of the one that was read.
    #[error("topic `{topic}` was deleted and created again while it was read; look at the new one from its beginning")]
    Recreated { topic: TopicName },

    /// The message does not fit into the topic.
    #[error(
        "message of {bytes} bytes for `{topic}`/{partition} exceeds the {limit} bytes that topic takes; send smaller messages or raise the limit of the topic"
    )]
    TooLarge { topic: TopicName, partition: u32, bytes: usize, limit: usize },

    /// The topic is compacted by keys, and the message has none.
    #[error(
        "topic `{topic}` is compacted (`cleanup.policy`) and takes no message without a key; write to it with a Kafka producer that sets keys, or set its `cleanup.policy` to delete"
    )]
    KeyMissing { topic: TopicName },

    /// A wish that makes no sense for this topic.
    #[error("topic `{topic}` cannot be created: {reason}")]
    Settings { topic: TopicName, reason: String },

    /// The reply to an append got lost: the message may or may not be in the log.
    #[error("append to `{topic}`/{partition} failed; the message may or may not be in the log")]
    AppendFailed { topic: TopicName, partition: u32 },

    /// Another process has the embedded log open.
    #[error("log `{}` is in use by {}; stop it, or use its HTTP address", .path.display(), holder(*.pid))]
    InUse {
        path: PathBuf,
        /// 0 where the other process has not written its number yet.
        pid: u32,
    },

    /// The folder or the files of the embedded log cannot be used.
    #[error("log `{}` cannot be opened; {fix}", .path.display())]
    Open {
        path: PathBuf,
        fix: String,
        #[source]
        source: Cause,
    },

    /// The embedded log failed while running. What was acknowledged is safe; what was not is open.
    #[error("log `{}` failed while {doing}; start again to recover it", .path.display())]
    Storage {
        path: PathBuf,
        doing: &'static str,
        #[source]
        source: Cause,
    },

    /// A stored record that this version did not write.
    #[error("log `{}` holds a record that cannot be read at {place}: {fault}", .path.display())]
    Corrupt { path: PathBuf, place: String, fault: String },

    /// No broker answered.
    #[error(
        "Kafka at `{brokers}` did not answer within {} s; start it, or correct `brokers` and `properties` of the log", .waited.as_secs()
    )]
    Unreachable {
        brokers: String,
        waited: Duration,
        #[source]
        source: Cause,
    },

    /// A setting that librdkafka does not know or does not take.
    #[error("Kafka property `{name}` cannot be used: {reason}")]
    Property { name: String, reason: String },

    /// A Kafka request that failed.
    #[error("Kafka could not {doing}")]
    Kafka {
        doing: String,
        class: ErrorClass,
        #[source]
        source: Cause,
    },

    /// The log was closed while this call was under way.
    #[error("the log is closed")]
    Closed,
}

fn holder(pid: u32) -> String {
    match pid {
        0 => "another process".to_owned(),
        pid => format!("process {pid}"),
    }
}

impl TopicError {
    /// What to do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::AppendFailed { .. } | Self::Unreachable { .. } | Self::Recreated { .. } => ErrorClass::Retry,
            Self::TooLarge { .. } | Self::KeyMissing { .. } => ErrorClass::Reject,
            Self::Kafka { class, .. } => *class,
            Self::UnknownTopic { .. }
            | Self::UnknownPartition { .. }
            | Self::OffsetGone { .. }
            | Self::OffsetAhead { .. }
            | Self::Settings { .. }
            | Self::InUse { .. }
            | Self::Open { .. }
            | Self::Storage { .. }
            | Self::Corrupt { .. }
            | Self::Property { .. }
            | Self::Closed => ErrorClass::Stop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_opener_reads_who_is_in_the_way_and_what_to_do() {
        let error = TopicError::InUse { path: PathBuf::from(".tailwater/log"), pid: 4711 };
        assert_eq!(
            error.to_string(),
            "log `.tailwater/log` is in use by process 4711; stop it, or use its HTTP address"
        );
    }

    #[test]
    fn only_errors_that_left_nothing_behind_reject_a_message() {
        let topic = TopicName::new("a").expect("valid");
        let too_large = TopicError::TooLarge { topic: topic.clone(), partition: 0, bytes: 2, limit: 1 };
        let lost = TopicError::AppendFailed { topic, partition: 0 };
        assert_eq!(too_large.class(), ErrorClass::Reject);
        assert_eq!(lost.class(), ErrorClass::Retry);
        assert_eq!(TopicError::Closed.class(), ErrorClass::Stop);
    }
}

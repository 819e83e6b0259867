//! Creating, growing and describing channels: topics only Tailwater writes.
//!
//! The invariant: a writer's partition of a channel is the number of its own input partition, and nothing else. So a
//! channel may gain partitions at any time, and no writer ever moves to another one, where readers would not have what
//! it wrote before.

use topics::{Log, Retention, TopicError, TopicName, TopicSettings};

use crate::{config::LogConfig, retry::TaskError};

/// A channel's name as a topic name.
///
/// # Errors
/// Class stop: a definition whose name does not fit a topic's.
pub fn topic(channel: &str) -> Result<TopicName, TaskError> {
    TopicName::try_from(channel.to_owned()).map_err(TaskError::stop)
}

/// How many partitions a topic has.
///
/// # Errors
/// Class retry when it does not exist yet.
pub async fn partitions(log: &dyn Log, topic: &TopicName) -> Result<u32, TaskError> {
    match log.describe(topic).await? {
        Some(description) => Ok(description.partitions),
        None => Err(TaskError::retry(anyhow::anyhow!("topic `{topic}` does not exist yet"))),
    }
}

/// Creates a channel where it is missing and grows it where it has fewer partitions than asked for; how many it has.
///
/// # Errors
/// What the log says.
pub async fn ensure(log: &dyn Log, config: &LogConfig, topic: &TopicName, partitions: u32) -> Result<u32, TopicError> {
    if let Some(description) = log.describe(topic).await? {
        return reach(log, topic, description.partitions, partitions).await;
    }
    let retention = Retention {
        bytes: config.channel_retention_bytes.map(|size| size.as_usize() as u64),
        age: Some(config.channel_retention_age.into()),
    };
    log.create(topic, &TopicSettings { partitions, retention, ..TopicSettings::default() }).await?;
    tracing::info!(%topic, partitions, "channel created");
    // Somebody else may have created it first, for an input with fewer partitions.
    let found = log.describe(topic).await?.map_or(partitions, |description| description.partitions);
    reach(log, topic, found, partitions).await
}

/// Makes sure a channel that is there has a partition of this number; with it, all that `input` has.
///
/// # Errors
/// Class retry when either topic does not exist yet; what the log says.
pub async fn follow(log: &dyn Log, topic: &TopicName, input: &TopicName, partition: u32) -> Result<(), TaskError> {
    let found = partitions(log, topic).await?;
    if found <= partition {
        let wanted = partitions(log, input).await?.max(partition + 1);
        reach(log, topic, found, wanted).await?;
    }
    Ok(())
}

async fn reach(log: &dyn Log, topic: &TopicName, found: u32, wanted: u32) -> Result<u32, TopicError> {
    if found >= wanted {
        return Ok(found);
    }
    let partitions = log.grow(topic, wanted).await?;
    tracing::info!(%topic, from = found, partitions, "channel grew with its input");
    Ok(partitions)
}

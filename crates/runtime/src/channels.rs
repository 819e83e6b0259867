//! Creating and describing channels: topics only Tailwater writes.

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

/// Creates a channel where it is missing; how many partitions it has, which may be more or fewer than asked for where
/// it was there before.
///
/// # Errors
/// What the log says.
pub async fn ensure(log: &dyn Log, config: &LogConfig, topic: &TopicName, partitions: u32) -> Result<u32, TopicError> {
    if let Some(description) = log.describe(topic).await? {
        return Ok(description.partitions);
    }
    let retention = Retention {
        bytes: config.channel_retention_bytes.map(|size| size.as_usize() as u64),
        age: Some(config.channel_retention_age.into()),
    };
    log.create(topic, &TopicSettings { partitions, retention, ..TopicSettings::default() }).await?;
    tracing::info!(%topic, partitions, "channel created");
    Ok(log.describe(topic).await?.map_or(partitions, |description| description.partitions))
}

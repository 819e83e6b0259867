//! Ingestion as a stage: which topics it reads, which it creates, and one task per source and partition.

use std::{collections::BTreeSet, sync::Arc};

use futures::{FutureExt as _, future::BoxFuture};
use pipeline::{Graph, SourceStage};
use runtime::{
    channels,
    config::{Config, LogConfig},
    edges::Edges,
    memory::Memory,
    retry::TaskError,
    supervisor::{Settlements, Stage, TaskPlan},
};
use topics::{Log, TopicName};

use crate::worker::Worker;

/// Hop 1: user topics → channels.
pub struct IngestionStage {
    config: Config,
    edges: Edges,
    settlements: Settlements,
    memory: Memory,
}

impl IngestionStage {
    /// A stage over `edges` that reports positions through `settlements`.
    pub fn new(memory: Memory, config: Config, edges: Edges, settlements: Settlements) -> Self {
        Self { config, edges, settlements, memory }
    }

    fn worker(&self, source: &SourceStage, topic: &TopicName, partition: u32) -> Worker {
        Worker {
            source: source.clone(),
            topic: topic.clone(),
            partition,
            log: Arc::clone(&self.edges.log),
            lake: self.edges.lake.clone(),
            compression: self.edges.compression,
            config: self.config.ingestion.clone(),
            settlements: self.settlements.clone(),
            memory: self.memory.clone(),
        }
    }
}

impl Stage for IngestionStage {
    fn name(&self) -> &str {
        "ingestion"
    }

    fn topics(&self, graph: &Graph) -> BTreeSet<TopicName> {
        graph.sources.iter().filter_map(|source| TopicName::try_from(source.topic.clone()).ok()).collect()
    }

    fn tasks(&self, graph: &Arc<Graph>, assigned: &BTreeSet<(TopicName, u32)>) -> Vec<TaskPlan> {
        let mut plans = Vec::new();
        for (topic, partition) in assigned {
            for source in graph.sources.iter().filter(|source| source.topic == topic.as_str()) {
                let worker = Arc::new(self.worker(source, topic, *partition));
                plans.push(TaskPlan {
                    key: format!("{}/{partition}", worker.stage()),
                    start: Arc::new(move |stop, progress| Arc::clone(&worker).live(stop, progress).boxed()),
                });
            }
        }
        plans
    }

    fn ensure(&self, graph: Arc<Graph>) -> BoxFuture<'static, Result<(), TaskError>> {
        let (log, config) = (Arc::clone(&self.edges.log), self.config.log.clone());
        async move {
            let mut first_error = None;
            // One source whose topic is missing must not keep the others from running.
            for source in &graph.sources {
                if let Err(error) = ensure_source(log.as_ref(), &config, source).await {
                    first_error.get_or_insert(error);
                }
            }
            first_error.map_or(Ok(()), Err)
        }
        .boxed()
    }

    fn tend(&self, graph: Arc<Graph>) -> BoxFuture<'static, Result<(), TaskError>> {
        let log = Arc::clone(&self.edges.log);
        async move {
            for source in &graph.sources {
                if log.describe(&channels::topic(&source.topic)?).await?.is_none() {
                    return Err(TaskError::retry(anyhow::anyhow!(
                        "topic `{}` of source `{}.{}` is gone; drop the source, or create the topic and recreate the source",
                        source.topic,
                        source.pipeline,
                        source.name
                    )));
                }
            }
            Ok(())
        }
        .boxed()
    }
}

/// Creates what a source needs: its topic if that is ours to make, and channels of as many partitions.
async fn ensure_source(log: &dyn Log, config: &LogConfig, source: &SourceStage) -> Result<(), TaskError> {
    let topic = channels::topic(&source.topic)?;
    let wanted = source.spec.options.partitions.unwrap_or(config.default_partitions).max(1);
    let partitions = match log.describe(&topic).await? {
        Some(description) => description.partitions,
        None if source.landing || config.create_missing_topics => channels::ensure(log, config, &topic, wanted).await?,
        None => {
            return Err(TaskError::retry(anyhow::anyhow!(
                "topic `{topic}` of source `{}.{}` does not exist; create it, or set log.create_missing_topics = true",
                source.pipeline,
                source.name
            )));
        }
    };
    for channel in [&source.channel, &source.rejected] {
        channels::ensure(log, config, &channels::topic(channel)?, partitions).await?;
    }
    Ok(())
}

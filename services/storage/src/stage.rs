//! Which tasks the assigned partitions make: one for each table that reads any of them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use pipeline::{Graph, TableStage};
use runtime::{
    config::Config,
    edges::Edges,
    retry::TaskError,
    supervisor::{Progress, STALLED_AFTER, Settlements, Stage, TaskPlan},
    tasks::Stop,
};
use topics::TopicName;

use crate::{
    buffer::SharedMemory,
    worker::{Assignment, Worker},
};

/// The service's part in supervision.
pub struct StorageStage {
    config: Arc<Config>,
    edges: Edges,
    settlements: Settlements,
    memory: SharedMemory,
}

impl StorageStage {
    /// A stage over the given edges.
    pub fn new(config: Config, edges: Edges, settlements: Settlements) -> Self {
        let memory = SharedMemory::new(config.storage.memory.as_usize());
        Self { config: Arc::new(config), edges, settlements, memory }
    }

    fn plan(&self, table: &TableStage, channel: TopicName, partitions: BTreeSet<u32>) -> TaskPlan {
        let assignment = Arc::new(Assignment { table: table.clone(), channel, partitions });
        let key = assignment.key();
        let (config, edges, settlements) = (Arc::clone(&self.config), self.edges.clone(), self.settlements.clone());
        let memory = self.memory.clone();
        let start = move |stop: Stop, progress: Progress| {
            let (config, edges, settlements) = (Arc::clone(&config), edges.clone(), settlements.clone());
            let (assignment, memory) = (Arc::clone(&assignment), memory.clone());
            async move {
                let worker = Worker::start(&config, &edges, settlements, memory, assignment).await?;
                worker.run(&stop, &progress).await
            }
            .boxed()
        };
        TaskPlan { key, start: Arc::new(start) }
    }
}

impl Stage for StorageStage {
    fn name(&self) -> &str {
        "storage"
    }

    fn topics(&self, graph: &Graph) -> BTreeSet<TopicName> {
        graph.tables.iter().filter_map(|table| TopicName::try_from(table.channel.clone()).ok()).collect()
    }

    fn tasks(&self, graph: &Arc<Graph>, assigned: &BTreeSet<(TopicName, u32)>) -> Vec<TaskPlan> {
        let mut plans = Vec::new();
        for table in &graph.tables {
            let ours = assigned.iter().filter(|(topic, _)| topic.as_str() == table.channel);
            let partitions: BTreeSet<u32> = ours.map(|(_, partition)| *partition).collect();
            if let (false, Ok(channel)) = (partitions.is_empty(), TopicName::try_from(table.channel.clone())) {
                plans.push(self.plan(table, channel, partitions));
            }
        }
        plans
    }

    /// A flush is one step, and a slow store may take minutes over a large file: cut off, it would begin it anew.
    fn patience(&self) -> Duration {
        3 * STALLED_AFTER
    }

    /// Channels are made by their writers.
    fn ensure(&self, _graph: Arc<Graph>) -> BoxFuture<'static, Result<(), TaskError>> {
        async { Ok(()) }.boxed()
    }
}

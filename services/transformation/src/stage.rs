//! Which tasks the assigned partitions make: one for each branch of a view that reads them.

use std::{collections::BTreeSet, sync::Arc};

use futures::{FutureExt as _, future::BoxFuture};
use pipeline::Graph;
use runtime::{
    config::Config,
    edges::Edges,
    memory::Memory,
    retry::TaskError,
    supervisor::{Progress, Settlements, Stage, TaskPlan},
    tasks::Stop,
};
use topics::TopicName;

use crate::worker::{Assignment, Worker};

/// The service's part in supervision.
pub struct TransformationStage {
    config: Arc<Config>,
    edges: Edges,
    settlements: Settlements,
    memory: Memory,
}

impl TransformationStage {
    /// A stage over `edges` whose tasks share `memory`, and that reports positions through `settlements`.
    pub fn new(memory: Memory, config: Config, edges: Edges, settlements: Settlements) -> Self {
        Self { config: Arc::new(config), edges, settlements, memory }
    }

    fn plan(&self, assignment: Assignment) -> TaskPlan {
        let key = assignment.key();
        let (config, edges, settlements) = (Arc::clone(&self.config), self.edges.clone(), self.settlements.clone());
        let (assignment, memory) = (Arc::new(assignment), self.memory.clone());
        let start = move |stop: Stop, progress: Progress| {
            let (config, edges, settlements) = (Arc::clone(&config), edges.clone(), settlements.clone());
            let (assignment, memory) = (Arc::clone(&assignment), memory.clone());
            async move {
                let worker = Worker::start(&config, &edges, settlements, &memory, assignment).await?;
                worker.run(&stop, &progress).await
            }
            .boxed()
        };
        TaskPlan { key, start: Arc::new(start) }
    }
}

impl Stage for TransformationStage {
    fn name(&self) -> &str {
        "transformation"
    }

    fn topics(&self, graph: &Graph) -> BTreeSet<TopicName> {
        let channels = graph.views.iter().flat_map(|view| &view.branches).map(|branch| branch.input_channel.clone());
        channels.filter_map(|channel| TopicName::try_from(channel).ok()).collect()
    }

    fn tasks(&self, graph: &Arc<Graph>, assigned: &BTreeSet<(TopicName, u32)>) -> Vec<TaskPlan> {
        let mut plans = Vec::new();
        for view in &graph.views {
            for branch in &view.branches {
                let reads = |(topic, _): &&(TopicName, u32)| topic.as_str() == branch.input_channel;
                for (topic, partition) in assigned.iter().filter(reads) {
                    plans.push(self.plan(Assignment {
                        view: view.clone(),
                        branch: branch.clone(),
                        input: topic.clone(),
                        partition: *partition,
                    }));
                }
            }
        }
        plans
    }

    /// Inputs are made by their writers, outputs by the tasks, which know how many partitions their input has.
    fn ensure(&self, _graph: Arc<Graph>) -> BoxFuture<'static, Result<(), TaskError>> {
        async { Ok(()) }.boxed()
    }
}

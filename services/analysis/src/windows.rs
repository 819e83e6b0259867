//! Window functions over a whole input, with what they keep accounted for.
//!
//! DataFusion keeps every batch below a window function whose frame has no end (`count(*) OVER ()`), puts them together
//! into one and computes over that, without asking the memory pool for any of it.
//!
//! The invariant: a batch is kept only once it, and its share of the one that all become, is reserved; the
//! reservation lasts as long as the query, since the rows go on from there into its answer or the next operator, which
//! may hold them for as long. Deliberately absent: functions whose frame moves along. They let go of rows they have
//! passed.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use arrow::array::RecordBatch;
use datafusion::{
    common::{
        Result,
        config::ConfigOptions,
        tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion},
        utils::memory::RecordBatchMemoryCounter,
    },
    execution::{
        SendableRecordBatchStream, TaskContext,
        memory_pool::{MemoryConsumer, MemoryReservation},
    },
    physical_expr::PhysicalExpr,
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, replace_children_if_necessary,
        stream::RecordBatchStreamAdapter, windows::WindowAggExec,
    },
};
use futures::StreamExt;

/// What a function's result takes for a row, twice: partition by partition, then put together.
const RESULT_BYTES: usize = 2 * 8;

/// Reservations that last as long as their query.
#[derive(Debug, Default)]
pub(crate) struct Held {
    reservations: Mutex<Vec<Arc<MemoryReservation>>>,
}

impl Held {
    fn begin(&self, partition: usize, context: &TaskContext) -> Arc<MemoryReservation> {
        let consumer = MemoryConsumer::new(format!("WindowAggExec[{partition}]"));
        let reservation = Arc::new(consumer.register(context.memory_pool()));
        self.reservations.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&reservation));
        reservation
    }
}

/// Has the window functions of one query account for what they keep. See the module.
#[derive(Debug)]
pub(crate) struct AccountingForWindows {
    held: Arc<Held>,
}

impl AccountingForWindows {
    pub(crate) fn new(held: Arc<Held>) -> Self {
        Self { held }
    }

    fn replaced(&self, node: Arc<dyn ExecutionPlan>) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
        let Some(window) = node.downcast_ref::<WindowAggExec>() else { return Ok(Transformed::no(node)) };
        let input = ReserveExec {
            input: Arc::clone(window.input()),
            functions: window.window_expr().len(),
            held: Arc::clone(&self.held),
        };
        replace_children_if_necessary(node, vec![Arc::new(input)]).map(Transformed::yes)
    }
}

impl PhysicalOptimizerRule for AccountingForWindows {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| self.replaced(node)).data()
    }

    fn name(&self) -> &str {
        "AccountingForWindows"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The input of a window function, which reserves what goes through it.
#[derive(Debug)]
struct ReserveExec {
    input: Arc<dyn ExecutionPlan>,
    functions: usize,
    held: Arc<Held>,
}

impl DisplayAs for ReserveExec {
    fn fmt_as(&self, _: DisplayFormatType, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ReserveExec")
    }
}

impl ExecutionPlan for ReserveExec {
    fn name(&self) -> &str {
        "ReserveExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let (functions, held) = (self.functions, Arc::clone(&self.held));
        Ok(Arc::new(Self { input: Arc::clone(&children[0]), functions, held }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let mut kept = Kept {
            reservation: self.held.begin(partition, &context),
            functions: self.functions,
            counter: RecordBatchMemoryCounter::new(),
            batches: 0,
            rows: 0,
        };
        let batches = self.input.execute(partition, context)?;
        let reserved = batches.map(move |batch| -> Result<RecordBatch> {
            let batch = batch?;
            kept.add(&batch)?;
            Ok(batch)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), reserved)))
    }
}

/// What a window function keeps of one partition.
struct Kept {
    reservation: Arc<MemoryReservation>,
    functions: usize,
    counter: RecordBatchMemoryCounter,
    batches: usize,
    rows: usize,
}

impl Kept {
    fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        self.counter.count_batch(batch);
        self.batches += 1;
        self.rows += batch.num_rows();
        // A single batch is taken as it is, several are copied into one.
        let copies = self.batches.min(2);
        self.reservation.try_resize(copies * self.counter.memory_usage() + self.rows * self.functions * RESULT_BYTES)
    }
}

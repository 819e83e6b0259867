//! The leaf of a kept plan: a place that one batch is put into for one execution.
//!
//! Invariant: a slot yields its batch once per execution, whole, in order, with the columns the plan asked for; the
//! slot of the kept plan itself is empty and is never executed.
//! Deliberately absent: filters, statistics and partitions. There is one batch and it is in memory.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, SchedulingType};
use datafusion::physical_plan::memory::MemoryStream;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};

/// What the planner sees of the input of a branch.
#[derive(Debug)]
pub(crate) struct SlotTable {
    schema: SchemaRef,
}

impl SlotTable {
    pub(crate) fn new(schema: SchemaRef) -> SlotTable {
        SlotTable { schema }
    }
}

#[async_trait]
impl TableProvider for SlotTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(SlotExec::new(&self.schema, projection.cloned())?))
    }
}

/// The leaf itself.
#[derive(Clone)]
pub(crate) struct SlotExec {
    /// Columns to yield, by place in the input; `None` means all.
    projection: Option<Vec<usize>>,
    properties: Arc<PlanProperties>,
    batch: Option<RecordBatch>,
}

impl SlotExec {
    fn new(schema: &Schema, projection: Option<Vec<usize>>) -> Result<SlotExec> {
        let schema = match &projection {
            Some(columns) => schema.project(columns)?,
            None => schema.clone(),
        };
        // Cooperative, so that no node is put over the leaf that pauses now and then to let other tasks run: a
        // program runs to its end in one go.
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::new(schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        Ok(SlotExec { projection, properties: Arc::new(properties), batch: None })
    }

    /// A copy that holds `batch`. It shares its properties with this one, so the plan above keeps its own.
    pub(crate) fn filled(&self, batch: RecordBatch) -> SlotExec {
        SlotExec { batch: Some(batch), ..self.clone() }
    }
}

impl fmt::Debug for SlotExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotExec").field("projection", &self.projection).finish_non_exhaustive()
    }
}

impl DisplayAs for SlotExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlotExec: projection={:?}", self.projection)
    }
}

impl ExecutionPlan for SlotExec {
    fn name(&self) -> &str {
        "SlotExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batch = self.batch.clone().map(|batch| match &self.projection {
            Some(columns) => batch.project(columns),
            None => Ok(batch),
        });
        let batches = batch.transpose()?.into_iter().collect();
        Ok(Box::pin(MemoryStream::try_new(batches, self.schema(), None)?))
    }
}

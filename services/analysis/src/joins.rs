//! Joins that let go: of their thread every few batches, and of their work once nobody wants it.
//!
//! DataFusion has scans and exchanges give their thread back now and then, and relies on everything else to ask those
//! often. A join does not: one batch of its input may match for minutes, and all the while no timer, no other query
//! and nobody who gives up would be heard.
//!
//! The invariant: a join gives its thread back as often as a scan does, by the batches it puts out; and one with a
//! condition beyond equality, which may never put one out, asks at every step whether the query is still wanted, and
//! fails if not. Deliberately absent: that question in joins of equality alone. Only those that ask whether there is a
//! match (`EXISTS`, `IN`) keep long silence inside of one batch, and then for one batch.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, FieldRef, Schema},
};
use datafusion::{
    common::{
        DataFusionError, Result,
        config::ConfigOptions,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    physical_expr::PhysicalExpr,
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{
        ColumnarValue, ExecutionPlan,
        coop::CooperativeExec,
        joins::{
            CrossJoinExec, HashJoinExec, NestedLoopJoinExec, NestedLoopJoinExecBuilder, SortMergeJoinExec,
            utils::JoinFilter,
        },
        unnest::UnnestExec,
    },
};
use tokio::time::Instant;

/// Whether anybody still wants a query's rows.
#[derive(Debug)]
pub(crate) struct Wanted {
    until: Instant,
    given_up: AtomicBool,
}

impl Wanted {
    /// Wanted up to a point in time, unless it is given up before.
    pub(crate) fn until(deadline: Instant) -> Arc<Self> {
        Arc::new(Self { until: deadline, given_up: AtomicBool::new(false) })
    }

    /// Nobody wants it any more.
    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// The words reach nobody: whoever is there still knows that time is over, and says so.
    fn check(&self) -> Result<()> {
        if self.given_up.load(Ordering::Relaxed) || Instant::now() >= self.until {
            return Err(DataFusionError::Execution("nobody waits for this query any more".to_owned()));
        }
        Ok(())
    }
}

/// Makes the joins of one query let go. See the module.
#[derive(Debug)]
pub(crate) struct LettingGo {
    wanted: Arc<Wanted>,
}

impl LettingGo {
    pub(crate) fn new(wanted: Arc<Wanted>) -> Self {
        Self { wanted }
    }

    fn replaced(&self, node: Arc<dyn ExecutionPlan>) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
        if !makes_many_of_few(&node) {
            return Ok(Transformed::no(node));
        }
        let node = self.asking(node)?;
        Ok(Transformed::yes(Arc::new(CooperativeExec::new(node))))
    }

    /// The join with a condition that asks whether the query is wanted, where it has one.
    fn asking(&self, node: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        if let Some(join) = node.downcast_ref::<HashJoinExec>()
            && let Some(condition) = join.filter()
        {
            return join.builder().with_filter(Some(self.while_wanted(condition))).build_exec();
        }
        if let Some(join) = node.downcast_ref::<NestedLoopJoinExec>()
            && let Some(condition) = join.filter()
        {
            let condition = self.while_wanted(condition);
            let join = NestedLoopJoinExecBuilder::from(join).with_filter(Some(condition)).build()?;
            return Ok(Arc::new(join));
        }
        Ok(node)
    }

    fn while_wanted(&self, filter: &JoinFilter) -> JoinFilter {
        let condition = Arc::clone(filter.expression());
        let asking = WhileWanted { condition, wanted: Arc::clone(&self.wanted) };
        JoinFilter::new(Arc::new(asking), filter.column_indices().to_vec(), Arc::clone(filter.schema()))
    }
}

/// Whether one batch of input may become any number of them.
fn makes_many_of_few(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.is::<HashJoinExec>()
        || node.is::<NestedLoopJoinExec>()
        || node.is::<CrossJoinExec>()
        || node.is::<SortMergeJoinExec>()
        || node.is::<UnnestExec>()
}

impl PhysicalOptimizerRule for LettingGo {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| self.replaced(node)).data()
    }

    fn name(&self) -> &str {
        "LettingGo"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// A condition that fails once its query is not wanted any more. To everybody else it is the condition.
#[derive(Debug)]
struct WhileWanted {
    condition: Arc<dyn PhysicalExpr>,
    wanted: Arc<Wanted>,
}

impl PartialEq for WhileWanted {
    fn eq(&self, other: &Self) -> bool {
        self.condition.eq(&other.condition)
    }
}

impl Eq for WhileWanted {}

impl Hash for WhileWanted {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.condition.hash(state);
    }
}

impl fmt::Display for WhileWanted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.condition)
    }
}

impl PhysicalExpr for WhileWanted {
    fn data_type(&self, input_schema: &Schema) -> Result<DataType> {
        self.condition.data_type(input_schema)
    }

    fn nullable(&self, input_schema: &Schema) -> Result<bool> {
        self.condition.nullable(input_schema)
    }

    fn return_field(&self, input_schema: &Schema) -> Result<FieldRef> {
        self.condition.return_field(input_schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        self.wanted.check()?;
        self.condition.evaluate(batch)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.condition]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        Ok(Arc::new(Self { condition: children.swap_remove(0), wanted: Arc::clone(&self.wanted) }))
    }

    fn fmt_sql(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.condition.fmt_sql(formatter)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use datafusion::physical_expr::expressions::lit;

    use super::*;

    fn holds(wanted: &Arc<Wanted>) -> bool {
        let asking = WhileWanted { condition: lit(true), wanted: Arc::clone(wanted) };
        asking.evaluate(&RecordBatch::new_empty(Arc::new(Schema::empty()))).is_ok()
    }

    #[test]
    fn a_condition_fails_once_its_query_is_given_up_or_over_its_time() {
        let wanted = Wanted::until(Instant::now() + Duration::from_secs(3600));
        assert!(holds(&wanted));
        wanted.give_up();
        assert!(!holds(&wanted));
        assert!(!holds(&Wanted::until(Instant::now())));
    }
}

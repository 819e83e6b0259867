//! Arithmetic that fails instead of wrapping around.
//!
//! Invariant: after [`checked`] no `+`, `-` or `*` of the plan yields a wrong number because the right one did not
//! fit; the row is at fault instead.
//! Deliberately absent: division, which the library checks itself, and constants, which its optimizer has folded
//! before there is a plan to rewrite.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::BinaryExpr;
use datafusion::physical_expr::projection::ProjectionExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::{FilterExec, FilterExecBuilder};
use datafusion::physical_plan::projection::ProjectionExec;

/// The plan with checked arithmetic in its projections and filters, the only nodes of a row-wise plan that compute.
pub(crate) fn checked(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let plan = plan.transform_up(|node| {
        if let Some(projection) = node.downcast_ref::<ProjectionExec>() {
            return Ok(Transformed::yes(checked_projection(projection)?));
        }
        if let Some(filter) = node.downcast_ref::<FilterExec>() {
            return Ok(Transformed::yes(checked_filter(filter)?));
        }
        Ok(Transformed::no(node))
    })?;
    Ok(plan.data)
}

fn checked_projection(projection: &ProjectionExec) -> Result<Arc<dyn ExecutionPlan>> {
    let rewrite = |column: &ProjectionExpr| -> Result<ProjectionExpr> {
        Ok(ProjectionExpr { expr: checked_expression(&column.expr)?, alias: column.alias.clone() })
    };
    let columns = projection.expr().iter().map(rewrite).collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(ProjectionExec::try_new(columns, Arc::clone(projection.input()))?))
}

fn checked_filter(filter: &FilterExec) -> Result<Arc<dyn ExecutionPlan>> {
    let predicate = checked_expression(filter.predicate())?;
    Ok(Arc::new(FilterExecBuilder::from(filter).with_predicate(predicate).build()?))
}

fn checked_expression(expression: &Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
    let expression = Arc::clone(expression).transform_up(|node| match node.downcast_ref::<BinaryExpr>() {
        Some(binary) => {
            let checked = binary.clone().with_fail_on_overflow(true);
            Ok(Transformed::yes(Arc::new(checked) as Arc<dyn PhysicalExpr>))
        }
        None => Ok(Transformed::no(node)),
    })?;
    Ok(expression.data)
}

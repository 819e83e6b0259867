//! `RowProgram`: a branch of a view, planned once and run on batch after batch.
//!
//! Invariant: what becomes of a row depends on that row alone. A batch that runs gives what its rows would give one
//! by one; a batch that does not is cut in halves until the rows at fault are alone.
//! Deliberately absent: threads and waiting. A run is one synchronous execution: the leaf has its batch at hand and
//! the nodes above only compute, so no poll of the plan is ever pending, and needs no runtime. Should one be, the
//! run is an error, not a wait.
//!
//! The physical plan is kept and never executed itself. Each run walks it once, resets every node (an execution
//! leaves its metrics in the nodes, so running one instance for ever would leak) and fills the slot. That costs
//! microseconds; planning anew costs hundreds. It also makes runs independent, so a program can be shared.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use arrow::array::{Array, ArrayRef, AsArray, ListArray, RecordBatch, UInt32Array, UInt64Array};
use arrow::compute::{CastOptions, cast_with_options, concat_batches, take};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type};
use arrow::error::ArrowError;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DataFusionError, Result as PlanResult, internal_err};
use datafusion::datasource::provider_as_source;
use datafusion::execution::session_state::SessionState;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, TableScan};
use datafusion::physical_plan::ExecutionPlan;
use pipeline::Branch;

use crate::checked::checked;
use crate::error::EngineError;
use crate::slot::{SlotExec, SlotTable};

/// Column that counts the rows of the input; user columns never begin with `__`.
const ROW_COLUMN: &str = "__row";

/// Polls without progress before a plan counts as waiting. Zero are expected.
const MAX_IDLE_POLLS: usize = 1_000;

/// What `run_each` makes of a batch: the good output, the rows at fault with the reason (by their place in the
/// input, ascending), and for each row of the output the place of the input row that it came from.
pub type Sifted = (RecordBatch, Vec<(usize, String)>, Vec<usize>);

/// A branch of a view, ready to run.
#[derive(Debug)]
pub struct RowProgram {
    input: String,
    input_schema: SchemaRef,
    output: SchemaRef,
    context: Arc<TaskContext>,
    plain: Arc<dyn ExecutionPlan>,
    /// The same with a row number carried through, to tell which rows came out.
    numbered: Arc<dyn ExecutionPlan>,
}

impl RowProgram {
    /// Plans a branch, for output of exactly this schema.
    ///
    /// Errors: `Plan` and `Shape`; both mean that this program and the catalog do not fit together.
    pub fn compile(branch: &Branch, output: &SchemaRef) -> Result<RowProgram, EngineError> {
        check_shape(branch, output)?;
        let state = pipeline::session_state();
        let plan = |logical: PlanResult<LogicalPlan>| {
            let physical = logical.and_then(|logical| physical_plan(&state, &logical));
            physical.map_err(|source| EngineError::Plan {
                branch: branch.index,
                input: branch.input.clone(),
                source: Box::new(source),
            })
        };
        Ok(RowProgram {
            input: branch.input.clone(),
            input_schema: Arc::clone(&branch.input_schema),
            output: Arc::clone(output),
            context: state.task_ctx(),
            plain: plan(over_slot(&branch.plan, &branch.input_schema))?,
            numbered: plan(with_row_numbers(&branch.plan, &branch.input_schema))?,
        })
    }

    /// The schema that batches must have, less hidden columns.
    pub fn input_schema(&self) -> &SchemaRef {
        &self.input_schema
    }

    /// The schema of what comes out.
    pub fn output_schema(&self) -> &SchemaRef {
        &self.output
    }

    /// Runs a batch as a whole.
    ///
    /// Shapes: output rows in the order of the input rows they came from.
    /// Panics: never because of values; the library's own are caught and are faults of rows.
    /// Errors: `Row` if any row is at fault, and then nothing comes out: use [`RowProgram::run_each`]. Evaluation of
    /// a batch is more eager than of a row (`x <> 0 AND 10 / x > 1` divides by every `x` of a batch), so `Row` does
    /// not even mean that some row alone is at fault.
    pub fn run(&self, batch: RecordBatch) -> Result<RecordBatch, EngineError> {
        let batch = self.checked(batch)?;
        let out = self.execute(&self.plain, batch)?;
        self.conform(&out)
    }

    /// Runs a batch, leaving out rows at fault. Costs a little more than [`RowProgram::run`], which gives the same
    /// output where it gives any, so try that first.
    ///
    /// Shapes: see [`Sifted`]. Rows that are in neither list were filtered. The result does not depend on how rows
    /// are grouped into batches.
    /// Errors: never `Row`.
    pub fn run_each(&self, batch: RecordBatch) -> Result<Sifted, EngineError> {
        let batch = self.checked(batch)?;
        let mut sieve = Sieve::default();
        self.sift(&batch, 0, &mut sieve)?;
        let good = match sieve.good.as_slice() {
            [only] => only.clone(),
            several => self.concatenated(several)?,
        };
        Ok((good, sieve.bad, sieve.kept))
    }

    fn concatenated(&self, batches: &[RecordBatch]) -> Result<RecordBatch, EngineError> {
        concat_batches(&self.output, batches).map_err(|error| self.run_error(error.into()))
    }

    fn run_error(&self, source: DataFusionError) -> EngineError {
        EngineError::Run { input: self.input.clone(), source: Box::new(source) }
    }

    fn sift(&self, batch: &RecordBatch, first_row: usize, sieve: &mut Sieve) -> Result<(), EngineError> {
        let rows = batch.num_rows();
        match self.run_numbered(batch) {
            Ok((good, kept)) => {
                sieve.good.push(good);
                sieve.kept.extend(kept.values().iter().map(|row| first_row + *row as usize));
                Ok(())
            }
            Err(EngineError::Row { reason }) if rows == 1 => {
                sieve.bad.push((first_row, reason));
                Ok(())
            }
            Err(EngineError::Row { .. }) if rows > 1 => {
                let half = rows / 2;
                self.sift(&self.part(batch, 0, half)?, first_row, sieve)?;
                self.sift(&self.part(batch, half, rows - half)?, first_row + half, sieve)
            }
            Err(error) => Err(error),
        }
    }

    fn part(&self, batch: &RecordBatch, start: usize, rows: usize) -> Result<RecordBatch, EngineError> {
        self.with_own_items(batch.slice(start, rows))
    }

    fn with_own_items(&self, batch: RecordBatch) -> Result<RecordBatch, EngineError> {
        with_own_items(batch).map_err(|error| self.run_error(error.into()))
    }

    fn run_numbered(&self, batch: &RecordBatch) -> Result<(RecordBatch, UInt32Array), EngineError> {
        let numbered = number(batch).map_err(|error| self.run_error(error.into()))?;
        let mut out = self.execute(&self.numbered, numbered)?;
        let last = out.num_columns() - 1;
        let kept = out.remove_column(last);
        let kept = kept.as_primitive_opt::<UInt32Type>().cloned();
        let kept = kept.ok_or_else(|| self.run_error(DataFusionError::Internal("no row numbers".to_owned())))?;
        Ok((self.conform(&out)?, kept))
    }

    /// The batch with the declared schema, whose details (such as metadata) need not be those of the message.
    fn checked(&self, batch: RecordBatch) -> Result<RecordBatch, EngineError> {
        if batch.schema_ref() == &self.input_schema {
            return self.with_own_items(batch);
        }
        let fault = |reason: String| EngineError::Input { input: self.input.clone(), reason };
        let found = batch.schema();
        if let Some(reason) = difference(&self.input_schema, &found) {
            return Err(fault(reason));
        }
        let (_, columns, _) = batch.into_parts();
        let batch = RecordBatch::try_new(Arc::clone(&self.input_schema), columns);
        self.with_own_items(batch.map_err(|error| fault(error.to_string()))?)
    }

    fn execute(&self, plan: &Arc<dyn ExecutionPlan>, batch: RecordBatch) -> Result<RecordBatch, EngineError> {
        if batch.num_rows() == 0 {
            return Ok(RecordBatch::new_empty(plan.schema()));
        }
        // Nothing is computed before the stream is read, so no row is at fault if there is none.
        let ready = fresh(plan, batch).and_then(|ready| ready.execute(0, Arc::clone(&self.context)));
        let stream = ready.map_err(|error| self.run_error(error))?;
        let batches = self.guarded(|| collect(stream))?;
        let batches = batches.ok_or_else(|| EngineError::Waits { input: self.input.clone() })?;
        match <[RecordBatch; 1]>::try_from(batches) {
            Ok([only]) => Ok(only),
            // Too much for one batch is a fault of its rows: half of them may fit.
            Err(several) => self.guarded(|| Ok(concat_batches(&plan.schema(), &several)?)),
        }
    }

    /// Runs the library's code on values from outside: a panic there is a verdict on them, not the end of the task.
    fn guarded<T>(&self, compute: impl FnOnce() -> PlanResult<T>) -> Result<T, EngineError> {
        match catch_unwind(AssertUnwindSafe(compute)) {
            Ok(outcome) => outcome.map_err(|error| EngineError::of_run(&self.input, error)),
            Err(_) => Err(EngineError::of_panic()),
        }
    }

    /// Puts the columns under the declared schema, which is stricter than what the plan says about itself.
    fn conform(&self, batch: &RecordBatch) -> Result<RecordBatch, EngineError> {
        let fields = self.output.fields().iter();
        let columns: Result<Vec<ArrayRef>, EngineError> =
            fields.zip(batch.columns()).map(|(field, column)| self.conform_column(field, column)).collect();
        RecordBatch::try_new(Arc::clone(&self.output), columns?).map_err(|error| self.run_error(error.into()))
    }

    fn conform_column(&self, field: &Field, column: &ArrayRef) -> Result<ArrayRef, EngineError> {
        let column = match column.data_type() == field.data_type() {
            true => Arc::clone(column),
            false => self.guarded(|| Ok(cast_with_options(column, field.data_type(), &STRICT)?))?,
        };
        if !field.is_nullable() && column.null_count() > 0 {
            let reason = format!("column `{}` is NOT NULL, found a null", field.name());
            return Err(EngineError::Row { reason });
        }
        Ok(column)
    }
}

const STRICT: CastOptions<'static> =
    CastOptions { safe: false, format_options: arrow::util::display::FormatOptions::new() };

#[derive(Default)]
struct Sieve {
    good: Vec<RecordBatch>,
    bad: Vec<(usize, String)>,
    kept: Vec<usize>,
}

fn check_shape(branch: &Branch, output: &SchemaRef) -> Result<(), EngineError> {
    let found = branch.plan.schema().as_arrow();
    match difference(output, found) {
        None => Ok(()),
        Some(reason) => Err(EngineError::Shape { branch: branch.index, input: branch.input.clone(), reason }),
    }
}

/// How `found` differs from `expected` in the number, names or types of columns.
fn difference(expected: &Schema, found: &Schema) -> Option<String> {
    if expected.fields().len() != found.fields().len() {
        return Some(format!("expected {} columns, found {}", expected.fields().len(), found.fields().len()));
    }
    expected.fields().iter().zip(found.fields()).find_map(|(expected, found)| {
        let is_same = expected.name() == found.name() && expected.data_type().equals_datatype(found.data_type());
        (!is_same).then(|| {
            format!(
                "expected column `{}` of type {}, found `{}` of type {}",
                expected.name(),
                expected.data_type(),
                found.name(),
                found.data_type()
            )
        })
    })
}

// ---- planning ----

fn physical_plan(state: &SessionState, logical: &LogicalPlan) -> PlanResult<Arc<dyn ExecutionPlan>> {
    let optimized = state.optimize(logical)?;
    checked(drive(state.query_planner().create_physical_plan(&optimized, state))??)
}

/// Planning is a future only because tables may need to look something up; a slot does not.
fn drive<T>(future: impl Future<Output = T>) -> PlanResult<T> {
    let mut context = Context::from_waker(Waker::noop());
    let mut future = pin!(future);
    for _ in 0..MAX_IDLE_POLLS {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return Ok(value);
        }
    }
    internal_err!("planning waits for something")
}

/// The plan with its one scan reading a slot.
fn over_slot(plan: &LogicalPlan, input: &SchemaRef) -> PlanResult<LogicalPlan> {
    replace_scan(plan, &|scan| slot_scan(scan, Arc::clone(input)), &|plan| Ok(plan))
}

/// The plan with a last column that says which input row an output row came from.
fn with_row_numbers(plan: &LogicalPlan, input: &SchemaRef) -> PlanResult<LogicalPlan> {
    let mut fields: Vec<Arc<Field>> = input.fields().iter().cloned().collect();
    fields.push(Arc::new(row_field()));
    let numbered = Arc::new(Schema::new(fields));
    replace_scan(plan, &|scan| slot_scan(scan, Arc::clone(&numbered)), &carry_row_number)
}

fn row_field() -> Field {
    Field::new(ROW_COLUMN, DataType::UInt32, false)
}

/// Rebuilds a path of single-input nodes from the scan up; `adapt` sees each node after its input was replaced.
fn replace_scan(
    plan: &LogicalPlan,
    scan: &dyn Fn(&TableScan) -> PlanResult<LogicalPlan>,
    adapt: &dyn Fn(LogicalPlan) -> PlanResult<LogicalPlan>,
) -> PlanResult<LogicalPlan> {
    if let LogicalPlan::TableScan(found) = plan {
        return scan(found);
    }
    match plan.inputs().as_slice() {
        [input] => {
            let input = replace_scan(input, scan, adapt)?;
            adapt(plan.with_new_exprs(plan.expressions(), vec![input])?)
        }
        inputs => internal_err!("a branch has a node with {} inputs: {}", inputs.len(), plan.display()),
    }
}

fn slot_scan(scan: &TableScan, schema: SchemaRef) -> PlanResult<LogicalPlan> {
    let source = provider_as_source(Arc::new(SlotTable::new(schema)));
    LogicalPlanBuilder::scan(scan.table_name.clone(), source, None)?.build()
}

/// The row number is the last column of every node; only projections would lose it.
fn carry_row_number(plan: LogicalPlan) -> PlanResult<LogicalPlan> {
    let LogicalPlan::Projection(projection) = plan else { return Ok(plan) };
    let Some(row) = projection.input.schema().columns().pop() else {
        return internal_err!("the input of a projection has no columns");
    };
    let mut outputs = projection.expr;
    outputs.push(Expr::Column(row).alias(ROW_COLUMN));
    LogicalPlanBuilder::from(projection.input).project(outputs)?.build()
}

// ---- execution ----

/// The batch without items of lists that none of its rows shows. A slice keeps every item of the lists it was cut from,
/// and casts look at all of them: a row would fail for an item of its neighbour. Copies columns that have such items.
fn with_own_items(batch: RecordBatch) -> Result<RecordBatch, ArrowError> {
    if batch.columns().iter().all(|column| shows_all_items(column)) {
        return Ok(batch);
    }
    let rows = UInt64Array::from_iter_values(0..batch.num_rows() as u64);
    let (schema, columns, _) = batch.into_parts();
    let own = columns.into_iter().map(|column| match shows_all_items(&column) {
        true => Ok(column),
        false => take(&column, &rows, None),
    });
    RecordBatch::try_new(schema, own.collect::<Result<Vec<_>, _>>()?)
}

/// Lists and structs are all that columns of a channel nest.
fn shows_all_items(array: &dyn Array) -> bool {
    match array.data_type() {
        DataType::List(_) => is_tight(array.as_list()) && shows_all_items(array.as_list::<i32>().values()),
        DataType::Struct(_) => array.as_struct().columns().iter().all(|column| shows_all_items(column)),
        _ => true,
    }
}

/// Whether every item is in a list that is there: a null may stand over items too.
fn is_tight(lists: &ListArray) -> bool {
    let offsets = lists.value_offsets();
    let is_end = |end: &i32| usize::try_from(*end).is_ok_and(|end| end == lists.values().len());
    let is_empty = |row: usize| offsets[row] == offsets[row + 1];
    offsets.first() == Some(&0)
        && offsets.last().is_some_and(is_end)
        && (lists.null_count() == 0 || (0..lists.len()).all(|row| lists.is_valid(row) || is_empty(row)))
}

/// The batch with the numbers of its rows as the last column.
fn number(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let rows = u32::try_from(batch.num_rows())
        .map_err(|_| ArrowError::InvalidArgumentError("the batch has 2^32 rows or more".to_owned()))?;
    let numbers: ArrayRef = Arc::new(UInt32Array::from_iter_values(0..rows));
    let mut fields: Vec<Arc<Field>> = batch.schema_ref().fields().iter().cloned().collect();
    fields.push(Arc::new(row_field()));
    let mut columns = batch.columns().to_vec();
    columns.push(numbers);
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// A copy of the plan with nothing left of earlier runs and `batch` in its slot.
fn fresh(plan: &Arc<dyn ExecutionPlan>, batch: RecordBatch) -> PlanResult<Arc<dyn ExecutionPlan>> {
    let fresh = Arc::clone(plan).transform_up(|node| match node.downcast_ref::<SlotExec>() {
        Some(slot) => Ok(Transformed::yes(Arc::new(slot.filled(batch.clone())) as Arc<dyn ExecutionPlan>)),
        None => Ok(Transformed::yes(node.reset_state()?)),
    })?;
    Ok(fresh.data)
}

/// Everything the stream yields, or `None` if it waits.
fn collect(mut stream: SendableRecordBatchStream) -> PlanResult<Option<Vec<RecordBatch>>> {
    let mut context = Context::from_waker(Waker::noop());
    let mut batches = Vec::new();
    let mut idle_polls = 0;
    loop {
        match stream.as_mut().poll_next(&mut context) {
            Poll::Ready(Some(batch)) => {
                idle_polls = 0;
                batches.push(batch?);
            }
            Poll::Ready(None) => return Ok(Some(batches)),
            Poll::Pending if idle_polls >= MAX_IDLE_POLLS => return Ok(None),
            Poll::Pending => idle_polls += 1,
        }
    }
}

#[cfg(test)]
mod tests;

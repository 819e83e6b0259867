//! What may be asked: one statement that only reads, and the values for its parameters.
//!
//! The invariant: a statement is allowed because it is known to read, not because it is not known to write. The plan
//! is checked once more by DataFusion's own rules (`query`), since a query can hide a write (`SELECT … INTO`).

use datafusion::{
    common::{ParamValues, ScalarValue},
    logical_expr::LogicalPlan,
    sql::{parser::Statement, sqlparser::ast::Statement as SqlStatement},
};
use serde_json::Value;

use crate::error::{ErrorKind, QueryError};

/// Refuses what would change anything.
pub(crate) fn check_reads_only(statement: &Statement) -> Result<(), QueryError> {
    match statement {
        Statement::Statement(inner) => check_sql(inner),
        Statement::Explain(explain) => check_reads_only(&explain.statement),
        Statement::CreateExternalTable(_) => Err(refused("CREATE EXTERNAL TABLE")),
        Statement::CopyTo(_) => Err(refused("COPY")),
        Statement::Reset(_) => Err(refused("RESET")),
    }
}

fn check_sql(statement: &SqlStatement) -> Result<(), QueryError> {
    match statement {
        SqlStatement::Query(_)
        | SqlStatement::ExplainTable { .. }
        | SqlStatement::ShowTables { .. }
        | SqlStatement::ShowColumns { .. }
        | SqlStatement::ShowFunctions { .. }
        | SqlStatement::ShowVariable { .. } => Ok(()),
        SqlStatement::Explain { statement, .. } => check_sql(statement),
        other => {
            let text = other.to_string();
            Err(refused(text.split_whitespace().next().unwrap_or("this statement")))
        }
    }
}

/// The refusal of a statement that would change something.
pub(crate) fn refused(verb: &str) -> QueryError {
    let hint = match verb {
        "SET" | "RESET" => "limits are given with each request: `timeout_ms`, `max_rows`",
        "INSERT" | "COPY" | "UPDATE" | "DELETE" | "MERGE" | "TRUNCATE" => {
            "rows enter through a source: its topic, HTTP, or `tailwater ingest`"
        }
        _ => "definitions live in a pipeline's SQL files and change with `tailwater apply`",
    };
    QueryError::new(ErrorKind::ReadOnly, format!("`{verb}` is refused: queries only read")).with_hint(hint)
}

/// Puts the values of `$1`, `$2`, … into a plan.
///
/// # Errors
/// When values are missing or left over, or one is an array or an object.
pub(crate) fn bind(plan: LogicalPlan, values: &[Value]) -> Result<LogicalPlan, QueryError> {
    let invalid = |message: String| QueryError::new(ErrorKind::Invalid, message);
    let names = plan.get_parameter_names().map_err(|error| invalid(error.strip_backtrace()))?;
    let mut highest = 0;
    for name in &names {
        let number = name.strip_prefix('$').and_then(|digits| digits.parse::<usize>().ok());
        let number = number.ok_or_else(|| {
            invalid(format!("parameter `{name}` has a name")).with_hint("parameters are numbered: `$1`, `$2`, …")
        })?;
        highest = highest.max(number);
    }
    if highest != values.len() {
        let found = values.len();
        return Err(invalid(format!("the statement has {highest} parameters, `params` has {found} values")));
    }
    if values.is_empty() {
        return Ok(plan);
    }
    let scalars = values.iter().enumerate().map(scalar).collect::<Result<Vec<_>, _>>()?;
    plan.with_param_values(ParamValues::from(scalars)).map_err(|error| invalid(error.strip_backtrace()))
}

fn scalar((index, value): (usize, &Value)) -> Result<ScalarValue, QueryError> {
    Ok(match value {
        Value::Null => ScalarValue::Null,
        Value::Bool(value) => ScalarValue::Boolean(Some(*value)),
        Value::String(text) => ScalarValue::Utf8(Some(text.clone())),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => ScalarValue::Int64(Some(whole)),
            (None, Some(whole)) => ScalarValue::UInt64(Some(whole)),
            (None, None) => ScalarValue::Float64(number.as_f64()),
        },
        Value::Array(_) | Value::Object(_) => {
            let message = format!("parameter `${}` is an array or an object", index + 1);
            return Err(QueryError::new(ErrorKind::Invalid, message)
                .with_hint("a parameter is null, a boolean, a number or a string"));
        }
    })
}

//! Casts that lose something keep their meaning inside of comparisons.
//!
//! Invariant: `CAST(x AS t) = 5` holds for the rows whose column `CAST(x AS t)` is 5. The library's optimizer takes
//! casts out of comparisons with constants (`unwrap_cast`, in logical and in physical plans): `CAST(amount AS INT) = 5`
//! becomes `amount = 5.00`. That is right for casts that keep values apart, and what statistics of files are compared
//! by; for all others it keeps other rows. Those casts stand in a function that gives back its argument, which the
//! optimizer does not look through.
//! Deliberately absent: casts between days and times and to coarser times, which the library itself leaves alone; and
//! a name that SQL could call the function by.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
use datafusion::common::utils::take_function_args;
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};

/// Functions that become casts when the plan is optimized.
const CASTS: [&str; 4] = ["arrow_cast", "arrow_try_cast", "cast_to_type", "try_cast_to_type"];

static EXACT: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| {
    let signature = Signature::any(1, Volatility::Immutable);
    Arc::new(ScalarUDF::new_from_impl(Exact { signature }))
});

/// Puts casts that lose something into the function. To be run after types were coerced, since that makes casts too.
#[derive(Debug)]
pub(crate) struct ExactCasts;

impl FunctionRewrite for ExactCasts {
    fn name(&self) -> &str {
        "exact_casts"
    }

    fn rewrite(&self, expr: Expr, schema: &DFSchema, _: &ConfigOptions) -> Result<Transformed<Expr>> {
        if is_lossy(&expr, schema) {
            let call = ScalarFunction::new_udf(Arc::clone(&EXACT), vec![expr]);
            return Ok(Transformed::yes(Expr::ScalarFunction(call)));
        }
        Ok(only_once(expr))
    }
}

/// The cast of a plan that is analyzed again stands in the function already.
fn only_once(expr: Expr) -> Transformed<Expr> {
    match expr {
        Expr::ScalarFunction(mut outer) if is_exact(&outer) && outer.args.iter().all(is_exact_call) => {
            outer.args.pop().map_or_else(|| Transformed::no(Expr::ScalarFunction(outer)), Transformed::yes)
        }
        other => Transformed::no(other),
    }
}

fn is_exact_call(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarFunction(call) if is_exact(call))
}

fn is_exact(call: &ScalarFunction) -> bool {
    call.func.inner().is::<Exact>()
}

fn is_lossy(expr: &Expr, schema: &DFSchema) -> bool {
    let argument = match expr {
        Expr::Cast(cast) => Some(cast.expr.as_ref()),
        Expr::TryCast(cast) => Some(cast.expr.as_ref()),
        Expr::ScalarFunction(call) if CASTS.contains(&call.func.name()) => call.args.first(),
        _ => None,
    };
    // A constant is computed once and for all.
    let argument = argument.filter(|argument| !matches!(argument, Expr::Literal(_, _)));
    let types = argument.map(|argument| (argument.get_type(schema), expr.get_type(schema)));
    matches!(types, Some((Ok(from), Ok(to))) if loses(&from, &to))
}

/// Whether two values may become one, some value has no counterpart, or the number that stands for it is another.
fn loses(from: &DataType, to: &DataType) -> bool {
    if let (DataType::Timestamp(_, None), DataType::Timestamp(_, Some(zone))) = (from, to) {
        return !["UTC", "+00:00"].contains(&zone.as_ref());
    }
    if from.is_temporal() && to.is_temporal() {
        return false;
    }
    match (Numbers::of(from), Numbers::of(to)) {
        (Some(from), Some(to)) => !to.hold(from),
        // The optimizer leaves casts of anything else alone, or they keep values apart.
        _ => false,
    }
}

/// The numbers of a type.
#[derive(Clone, Copy)]
enum Numbers {
    Whole { bits: u32, signed: bool },
    Decimal { before_point: i32, after_point: i32 },
}

impl Numbers {
    fn of(data_type: &DataType) -> Option<Numbers> {
        let (bits, signed) = match data_type {
            DataType::Int8 => (7, true),
            DataType::Int16 => (15, true),
            DataType::Int32 | DataType::Date32 => (31, true),
            DataType::Int64 | DataType::Date64 | DataType::Timestamp(_, _) => (63, true),
            DataType::UInt8 => (8, false),
            DataType::UInt16 => (16, false),
            DataType::UInt32 => (32, false),
            DataType::UInt64 => (64, false),
            DataType::Decimal32(precision, scale)
            | DataType::Decimal64(precision, scale)
            | DataType::Decimal128(precision, scale) => {
                let after_point = i32::from(*scale);
                return Some(Numbers::Decimal { before_point: i32::from(*precision) - after_point, after_point });
            }
            _ => return None,
        };
        Some(Numbers::Whole { bits, signed })
    }

    /// Whether all numbers of the other type are among these.
    fn hold(self, other: Numbers) -> bool {
        match (self, other) {
            (Numbers::Whole { bits, signed }, Numbers::Whole { bits: wanted, signed: negative }) => {
                wanted <= bits && (signed || !negative)
            }
            (Numbers::Whole { bits, signed }, Numbers::Decimal { before_point, after_point }) => {
                signed && after_point <= 0 && before_point <= full_digits(bits)
            }
            (Numbers::Decimal { before_point, after_point }, Numbers::Whole { bits, .. }) => {
                after_point >= 0 && before_point > full_digits(bits)
            }
            (
                Numbers::Decimal { before_point, after_point },
                Numbers::Decimal { before_point: before, after_point: after },
            ) => before <= before_point && after <= after_point,
        }
    }
}

/// As many digits as all fit into so many bits; the largest number has one more.
fn full_digits(bits: u32) -> i32 {
    ((1_u128 << bits) - 1).ilog10() as i32
}

/// The function that gives back its argument.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Exact {
    signature: Signature,
}

impl ScalarUDFImpl for Exact {
    fn name(&self) -> &str {
        "tailwater_exact"
    }

    /// As a cast, it changes no name: names of groupings and columns are compared by it.
    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let [only] = take_function_args(self.name(), args)?;
        Ok(only.schema_name().to_string())
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let [only] = take_function_args(self.name(), types)?;
        Ok(only.clone())
    }

    /// With what is known of the argument beyond its type, such as that it is never null.
    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let [only] = take_function_args(self.name(), args.arg_fields)?;
        Ok(Arc::clone(only))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [only] = take_function_args(self.name(), args.args)?;
        Ok(only)
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::TimeUnit;

    use super::*;
    use crate::session_state;
    use crate::testing::{ORDERS, graph_of};

    #[test]
    fn only_casts_that_keep_every_number_apart_lose_nothing() {
        let decimal = DataType::Decimal128;
        let zoned = |zone: &str| DataType::Timestamp(TimeUnit::Nanosecond, Some(zone.into()));
        let local = DataType::Timestamp(TimeUnit::Microsecond, None);
        let table = [
            (DataType::Int32, DataType::Int64, false),
            (DataType::Int64, DataType::Int32, true),
            (DataType::UInt32, DataType::Int64, false),
            (DataType::UInt64, DataType::Int64, true),
            (DataType::Int8, DataType::UInt64, true),
            (DataType::Int64, decimal(20, 0), false),
            (DataType::Int32, decimal(12, 2), false),
            (DataType::Int32, decimal(11, 2), true),
            (decimal(12, 2), DataType::Int32, true),
            (decimal(9, 0), DataType::Int32, false),
            (decimal(10, 0), DataType::Int32, true),
            (decimal(12, 2), decimal(22, 2), false),
            (decimal(12, 2), decimal(12, 1), true),
            (decimal(12, 2), decimal(12, 4), true),
            (DataType::Int64, local.clone(), false),
            (local.clone(), DataType::Int32, true),
            (local.clone(), zoned("UTC"), false),
            (local.clone(), zoned("Europe/Berlin"), true),
            (zoned("Europe/Berlin"), local, false),
            (DataType::Utf8, DataType::Int32, false),
            (DataType::Float64, DataType::Int32, false),
        ];
        for (from, to, expected) in table {
            assert_eq!(loses(&from, &to), expected, "{from} to {to}");
        }
    }

    #[test]
    fn a_plan_that_is_analyzed_again_and_optimized_still_says_each_cast_once() {
        let graph = graph_of(&format!(
            "{ORDERS}CREATE MATERIALIZED VIEW v AS SELECT CAST(amount AS INT) AS whole FROM orders
             WHERE CAST(amount AS INT) = 100 AND arrow_cast(amount, 'Int16') < 200 AND order_id > 7"
        ));
        let once = &graph.views[0].branches[0].plan;
        let state = session_state();
        let again = state.analyzer().execute_and_check(once.clone(), state.config_options(), |_, _| {});
        let again = again.expect("is analyzed");
        let calls = |text: String| text.matches("tailwater_exact(").count();
        assert_eq!(again.schema(), once.schema());
        assert_eq!(calls(once.display_indent().to_string()), 3, "{}", once.display_indent());
        assert_eq!(calls(again.display_indent().to_string()), 3, "{}", again.display_indent());
        let optimized = state.optimize(once).expect("is optimized").display_indent().to_string();
        assert!(optimized.contains("tailwater_exact(CAST(orders.amount AS Int32)) = Int32(100)"), "{optimized}");
        assert!(optimized.contains("orders.order_id > Int64(7)"), "{optimized}");
    }
}

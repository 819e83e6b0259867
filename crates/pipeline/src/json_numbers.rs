//! Numbers out of JSON documents, digit by digit.
//!
//! Invariant: `CAST(payload->'x' AS DECIMAL(20, 2))` is the number that the document says, and fails where the document
//! says something else, like every cast. The library reads it by way of a double, whose digits are other ones from the
//! sixteenth on, and takes what is no number, or none that fits, for NULL. Here the cast is one of the text.
//! Deliberately absent: casts to floats, which hold no more than the library reads.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, AsArray, StringArray};
use arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::utils::take_function_args;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion_functions_json::udfs::json_as_text_udf;

/// Functions that become casts when the plan is optimized.
const CASTS: [&str; 2] = ["arrow_cast", "arrow_try_cast"];

/// How far a number may be moved about its point. No exact type holds one that is moved further.
const MAX_EXPONENT: u32 = 80;

static PLAIN_NUMBER: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| {
    let signature = Signature::any(1, Volatility::Immutable);
    Arc::new(ScalarUDF::new_from_impl(PlainNumber { signature }))
});

/// Makes casts of JSON to exact numbers read the text. To be run before the library's own rewrite.
#[derive(Debug)]
pub(crate) struct ExactJsonNumbers;

impl FunctionRewrite for ExactJsonNumbers {
    fn name(&self) -> &str {
        "exact_json_numbers"
    }

    fn rewrite(&self, expr: Expr, schema: &DFSchema, _: &ConfigOptions) -> Result<Transformed<Expr>> {
        if !target_of_json(&expr, schema).is_some_and(|target| target.is_numeric() && !target.is_floating()) {
            return Ok(Transformed::no(expr));
        }
        expr.map_children(|child| match is_json(&child) {
            true => Ok(Transformed::yes(as_number(child))),
            false => Ok(Transformed::no(child)),
        })
    }
}

/// The type that JSON is cast to, if that is what the expression does.
fn target_of_json(expr: &Expr, schema: &DFSchema) -> Option<DataType> {
    match expr {
        Expr::Cast(cast) if is_json(&cast.expr) => Some(cast.field.data_type().clone()),
        Expr::TryCast(cast) if is_json(&cast.expr) => Some(cast.field.data_type().clone()),
        Expr::ScalarFunction(call) if CASTS.contains(&call.func.name()) && call.args.first().is_some_and(is_json) => {
            expr.get_type(schema).ok()
        }
        _ => None,
    }
}

/// Whether this is a value of any type out of a document: `payload->'x'`, `json_get(payload, 'x')`.
fn is_json(expr: &Expr) -> bool {
    match expr {
        Expr::Alias(alias) => is_json(&alias.expr),
        Expr::ScalarFunction(call) => call.func.name() == "json_get",
        _ => false,
    }
}

fn as_number(expr: Expr) -> Expr {
    match expr {
        Expr::Alias(alias) => as_number(*alias.expr),
        Expr::ScalarFunction(call) => {
            let text = Expr::ScalarFunction(ScalarFunction::new_udf(json_as_text_udf(), call.args));
            Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(&PLAIN_NUMBER), vec![text]))
        }
        other => other,
    }
}

/// Writes numbers as casts of texts take them.
#[derive(Debug, PartialEq, Eq, Hash)]
struct PlainNumber {
    signature: Signature,
}

impl ScalarUDFImpl for PlainNumber {
    fn name(&self) -> &str {
        "tailwater_plain_number"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let [only] = take_function_args(self.name(), types)?;
        Ok(only.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [only] = take_function_args(self.name(), args.args)?;
        Ok(match only {
            ColumnarValue::Array(texts) => ColumnarValue::Array(plain_numbers(&texts)),
            ColumnarValue::Scalar(ScalarValue::Utf8(Some(text))) => {
                ColumnarValue::Scalar(ScalarValue::Utf8(Some(plain_number(&text).unwrap_or(text))))
            }
            other => other,
        })
    }
}

/// Texts of other layouts, which documents in dictionaries give, are left as they are.
fn plain_numbers(array: &ArrayRef) -> ArrayRef {
    let Some(texts) = array.as_string_opt::<i32>() else { return Arc::clone(array) };
    if texts.iter().flatten().all(is_plain) {
        return Arc::clone(array);
    }
    let plain = |text: &str| plain_number(text).unwrap_or_else(|| text.to_owned());
    Arc::new(texts.iter().map(|text| text.map(plain)).collect::<StringArray>())
}

/// Whether no cast stumbles over how the text is written.
fn is_plain(text: &str) -> bool {
    let ends_in_zero = text.contains('.') && text.ends_with('0');
    !ends_in_zero && !text.contains(['e', 'E'])
}

/// A number of JSON without exponent, and without zeros at its end that are behind the point. Nothing for what is no
/// number, or written like that already.
fn plain_number(text: &str) -> Option<String> {
    if is_plain(text) {
        return None;
    }
    let (sign, unsigned) = text.strip_prefix('-').map_or(("", text), |unsigned| ("-", unsigned));
    let (digits, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let exponent = exponent.parse::<i32>().ok().filter(|exponent| exponent.unsigned_abs() <= MAX_EXPONENT)?;
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let is_number = !whole.is_empty() && whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit());
    is_number.then(|| format!("{sign}{}", moved(whole, fraction, exponent)))
}

/// The digits with their point moved to the right, or to the left.
fn moved(whole: &str, fraction: &str, exponent: i32) -> String {
    let by = usize::try_from(exponent.unsigned_abs()).unwrap_or(usize::MAX);
    let (whole, fraction) = if exponent < 0 {
        let all = format!("{}{whole}", "0".repeat(by));
        let (whole, moved) = all.split_at(whole.len());
        (whole.to_owned(), format!("{moved}{fraction}"))
    } else {
        let all = format!("{fraction}{}", "0".repeat(by));
        let (moved, fraction) = all.split_at(by);
        (format!("{whole}{moved}"), fraction.to_owned())
    };
    let whole = Some(whole.trim_start_matches('0')).filter(|whole| !whole.is_empty()).unwrap_or("0");
    match fraction.trim_end_matches('0') {
        "" => whole.to_owned(),
        fraction => format!("{whole}.{fraction}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_plainly_and_all_else_as_it_is() {
        let large = format!("1{}", "0".repeat(80));
        let table = [
            ("1e2", "100"),
            ("-1.5E+3", "-1500"),
            ("1.25e1", "12.5"),
            ("125e-2", "1.25"),
            ("5e-3", "0.005"),
            ("-12.50", "-12.5"),
            ("7.00", "7"),
            ("0e5", "0"),
            ("1e80", large.as_str()),
        ];
        for (text, expected) in table {
            assert_eq!(plain_number(text).as_deref(), Some(expected), "{text}");
        }
        for text in ["12", "-12.5", "0.05", "100", "true", "1e", "e5", "1e81", "1.2.30", "[1.0]", "-", "", "1e2e3"] {
            assert_eq!(plain_number(text), None, "{text}");
        }
    }
}

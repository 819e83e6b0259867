//! Checks of options that name columns, the same for sources and views.
//!
//! Invariant: a statement that passes has lists of existing, different columns of types the option can work with.
//! Deliberately absent: what the lists are for; that is the store's and the envelope's business.

use arrow::datatypes::DataType;

use crate::lex::Origin;
use crate::near::did_you_mean_or_list;
use crate::problem::Problem;

/// A column as these checks see it.
pub(crate) type NamedType<'a> = (&'a str, &'a DataType);

/// Checks the three lists that sources and views share.
pub(crate) fn check_lists(
    origin: &Origin,
    columns: &[NamedType<'_>],
    statistics: &[String],
    bounds: &[String],
    partition_by: &[String],
) -> Vec<Problem> {
    let mut problems = Vec::new();
    check_list(origin, columns, "statistics", statistics, is_flat, &mut problems);
    check_list(origin, columns, "bounds", bounds, is_ordered, &mut problems);
    check_list(origin, columns, "partition_by", partition_by, is_partition_key, &mut problems);
    if !columns.is_empty() && partition_by.len() >= columns.len() && problems.is_empty() {
        let message = "`partition_by` names every column, and files would have none left";
        problems.push(origin.problem(origin.option_span("partition_by"), message));
    }
    problems
}

fn check_list(
    origin: &Origin,
    columns: &[NamedType<'_>],
    option: &str,
    names: &[String],
    is_fit: fn(&DataType) -> bool,
    problems: &mut Vec<Problem>,
) {
    let span = origin.option_span(option);
    for (index, name) in names.iter().enumerate() {
        if names[..index].contains(name) {
            problems.push(origin.problem(span, format!("`{option}` names column `{name}` twice")));
            continue;
        }
        match columns.iter().find(|(known, _)| known == name) {
            None => {
                let known: Vec<&str> = columns.iter().map(|(known, _)| *known).collect();
                let problem = origin.problem(span, format!("`{option}` names the unknown column `{name}`"));
                problems.push(problem.with_help(did_you_mean_or_list(name, &known)));
            }
            Some((_, data_type)) if !is_fit(data_type) => {
                let message = format!("`{option}` cannot work with column `{name}` of type {data_type}");
                problems.push(origin.problem(span, message));
            }
            Some(_) => {}
        }
    }
}

fn is_flat(data_type: &DataType) -> bool {
    !data_type.is_nested() && *data_type != DataType::Binary
}

fn is_ordered(data_type: &DataType) -> bool {
    is_flat(data_type) && *data_type != DataType::Boolean
}

/// Partition values become folder names, where floats have too many spellings.
fn is_partition_key(data_type: &DataType) -> bool {
    is_flat(data_type) && !data_type.is_floating()
}

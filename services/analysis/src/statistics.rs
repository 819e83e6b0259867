//! What a Delta log says about a file, in DataFusion's words: row counts, bounds and null counts per column.
//!
//! The invariant: a bound is never narrower than the file's values. Where the log's text cannot be trusted to the
//! last digit (truncated strings, milliseconds, floating point) a bound is marked inexact: good for skipping files,
//! never an answer by itself. Deliberately absent: reading Parquet footers, which the scan does later.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{ArrayRef, BooleanArray, UInt64Array},
    datatypes::{DataType, Field, Schema, TimeUnit},
};
use datafusion::{
    common::{Column, ColumnStatistics, ScalarValue, Statistics, pruning::PruningStatistics, stats::Precision},
    datasource::listing::PartitionedFile,
};
use serde_json::Value;

/// Other Delta writers cut timestamps to milliseconds, downwards, also in a maximum.
const MILLISECOND_MICROS: i64 = 999;

/// A bound of one column as the log gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Not larger than any value.
    Min,
    /// Not smaller than any value.
    Max,
}

/// Statistics of one column of one file.
pub(crate) fn column_statistics(
    field: &Field,
    min: Option<&Value>,
    max: Option<&Value>,
    nulls: Option<u64>,
) -> ColumnStatistics {
    ColumnStatistics {
        null_count: nulls.and_then(|nulls| usize::try_from(nulls).ok()).map_or(Precision::Absent, Precision::Exact),
        min_value: bound(field.data_type(), min, Side::Min),
        max_value: bound(field.data_type(), max, Side::Max),
        ..ColumnStatistics::new_unknown()
    }
}

fn bound(data_type: &DataType, value: Option<&Value>, side: Side) -> Precision<ScalarValue> {
    let Some(scalar) = value.and_then(|value| scalar_of(data_type, value, side)) else {
        return Precision::Absent;
    };
    if is_exact(data_type) { Precision::Exact(scalar) } else { Precision::Inexact(scalar) }
}

/// Whether the log's text gives a value of this type to the last digit.
fn is_exact(data_type: &DataType) -> bool {
    data_type.is_integer() || matches!(data_type, DataType::Boolean | DataType::Date32)
}

fn scalar_of(data_type: &DataType, value: &Value, side: Side) -> Option<ScalarValue> {
    match data_type {
        DataType::Boolean => value.as_bool().map(|value| ScalarValue::Boolean(Some(value))),
        DataType::Float32 | DataType::Float64 if value.is_number() => parse(data_type, value),
        DataType::Decimal128(..) | DataType::Utf8 | DataType::Utf8View => parse(data_type, value),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            parse(data_type, value).map(|scalar| widen_timestamp(scalar, side))
        }
        data_type if data_type.is_integer() || *data_type == DataType::Date32 => parse(data_type, value),
        _ => None,
    }
}

fn parse(data_type: &DataType, value: &Value) -> Option<ScalarValue> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    ScalarValue::try_from_string(text, data_type).ok().filter(|scalar| !scalar.is_null())
}

/// Adds what a cut to milliseconds may have taken off a maximum.
fn widen_timestamp(scalar: ScalarValue, side: Side) -> ScalarValue {
    match (side, scalar) {
        (Side::Max, ScalarValue::TimestampMicrosecond(Some(micros), zone)) if micros % 1000 == 0 => {
            ScalarValue::TimestampMicrosecond(Some(micros.saturating_add(MILLISECOND_MICROS)), zone)
        }
        (_, scalar) => scalar,
    }
}

/// A partition value as Delta stores it: text, and null where there is none.
///
/// To Delta the empty string is null as well, in every type. Our writer keeps it apart from null (see `partitions` in
/// `lake`), so in a column of text it is what it is: null would be another value than the row had, and none that a
/// column that is NOT NULL may have. Files of other writers, which only their names tell from ours, are read the same.
/// It is what these writers mean as far as we know: Spark writes null for both, Delta for Python writes null as null.
/// Where one of them compacts our files, null is all that is left.
pub(crate) fn partition_value(data_type: &DataType, text: Option<&str>) -> Option<ScalarValue> {
    let is_text = matches!(data_type, DataType::Utf8 | DataType::Utf8View);
    match text.filter(|text| is_text || !text.is_empty()) {
        None => ScalarValue::try_from(data_type).ok(),
        Some(text) => ScalarValue::try_from_string(text.to_owned(), data_type).ok(),
    }
}

/// Statistics of a column that has one value in the whole file.
pub(crate) fn partition_statistics(value: &ScalarValue, rows: Precision<usize>) -> ColumnStatistics {
    if value.is_null() {
        return ColumnStatistics { null_count: rows, ..ColumnStatistics::new_unknown() };
    }
    ColumnStatistics {
        null_count: Precision::Exact(0),
        min_value: Precision::Exact(value.clone()),
        max_value: Precision::Exact(value.clone()),
        distinct_count: Precision::Exact(1),
        ..ColumnStatistics::new_unknown()
    }
}

/// Files seen as containers that a predicate may rule out.
///
/// Unlike DataFusion's own adapter it uses inexact bounds too: in this crate they are bounds all the same.
pub(crate) struct FileBounds<'a> {
    files: Vec<&'a Statistics>,
    schema: &'a Schema,
}

impl<'a> FileBounds<'a> {
    /// Files without statistics count as unknown in every column. The schema is the one the statistics were made for.
    pub(crate) fn new(files: &'a [Arc<PartitionedFile>], unknown: &'a Statistics, schema: &'a Schema) -> Self {
        let files = files.iter().map(|file| file.statistics.as_deref().unwrap_or(unknown)).collect();
        Self { files, schema }
    }

    fn values(&self, column: &Column, pick: impl Fn(&ColumnStatistics) -> &Precision<ScalarValue>) -> Option<ArrayRef> {
        let (index, field) = self.schema.column_with_name(column.name())?;
        let null = ScalarValue::try_from(field.data_type()).ok()?;
        let known = |statistics: &&Statistics| {
            let value = statistics.column_statistics.get(index).and_then(|column| pick(column).get_value().cloned());
            value.unwrap_or_else(|| null.clone())
        };
        ScalarValue::iter_to_array(self.files.iter().map(known)).ok()
    }
}

impl PruningStatistics for FileBounds<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.values(column, |statistics| &statistics.min_value)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.values(column, |statistics| &statistics.max_value)
    }

    fn num_containers(&self) -> usize {
        self.files.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let (index, _) = self.schema.column_with_name(column.name())?;
        let count = |statistics: &&Statistics| exact(&statistics.column_statistics.get(index)?.null_count);
        Some(Arc::new(self.files.iter().map(count).collect::<UInt64Array>()))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(self.files.iter().map(|statistics| exact(&statistics.num_rows)).collect::<UInt64Array>()))
    }

    fn contained(&self, _column: &Column, _values: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

fn exact(count: &Precision<usize>) -> Option<u64> {
    match count {
        Precision::Exact(count) => u64::try_from(*count).ok(),
        Precision::Inexact(_) | Precision::Absent => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bounds_of(data_type: DataType, value: Value, side: Side) -> Precision<ScalarValue> {
        bound(&data_type, Some(&value), side)
    }

    #[test]
    fn whole_numbers_and_dates_are_exact() {
        let large = 9_007_199_254_740_993_i64;
        let expected = Precision::Exact(ScalarValue::Int64(Some(large)));
        assert_eq!(bounds_of(DataType::Int64, json!(large), Side::Max), expected);
        let day = Precision::Exact(ScalarValue::Date32(Some(1)));
        assert_eq!(bounds_of(DataType::Date32, json!("1970-01-02"), Side::Min), day);
    }

    #[test]
    fn text_and_floating_point_only_bound() {
        let text = Precision::Inexact(ScalarValue::Utf8View(Some("FR".into())));
        assert_eq!(bounds_of(DataType::Utf8View, json!("FR"), Side::Min), text);
        let float = Precision::Inexact(ScalarValue::Float64(Some(1.5)));
        assert_eq!(bounds_of(DataType::Float64, json!(1.5), Side::Max), float);
    }

    #[test]
    fn a_maximum_cut_to_milliseconds_is_widened() {
        let data_type = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let micros = |side| match bounds_of(data_type.clone(), json!("1970-01-01T00:00:00.005Z"), side) {
            Precision::Inexact(ScalarValue::TimestampMicrosecond(Some(micros), _)) => micros,
            other => panic!("{other:?}"),
        };
        assert_eq!(micros(Side::Min), 5000);
        assert_eq!(micros(Side::Max), 5999);
    }

    #[test]
    fn decimals_bound_to_the_last_digit_or_not_at_all() {
        let long = DataType::Decimal128(38, 2);
        let expected = Precision::Inexact(ScalarValue::Decimal128(Some(125), 38, 2));
        assert_eq!(bounds_of(long.clone(), json!("1.25"), Side::Min), expected);
        // As the lake has it where another writer may have rounded it.
        assert_eq!(bounds_of(long, Value::Null, Side::Min), Precision::Absent);
    }

    #[test]
    fn what_does_not_parse_is_unknown() {
        assert_eq!(bounds_of(DataType::Int64, json!("x"), Side::Min), Precision::Absent);
        assert_eq!(bounds_of(DataType::Int64, json!({"a": 1}), Side::Min), Precision::Absent);
        assert_eq!(bound(&DataType::Int64, None, Side::Min), Precision::Absent);
    }

    #[test]
    fn an_empty_partition_value_is_itself_only_where_it_is_text() {
        let empty = |data_type: DataType| partition_value(&data_type, Some("")).unwrap();
        assert_eq!(empty(DataType::Utf8), ScalarValue::Utf8(Some(String::new())));
        assert_eq!(empty(DataType::Utf8View), ScalarValue::Utf8View(Some(String::new())));
        assert!(empty(DataType::Date32).is_null() && empty(DataType::Boolean).is_null());
        let known = partition_statistics(&empty(DataType::Utf8View), Precision::Exact(9));
        assert_eq!(known.null_count, Precision::Exact(0));
        assert_eq!(known.min_value, Precision::Exact(ScalarValue::Utf8View(Some(String::new()))));
    }

    #[test]
    fn an_absent_partition_value_is_null() {
        assert_eq!(partition_value(&DataType::Utf8, None), Some(ScalarValue::Utf8(None)));
        assert_eq!(partition_value(&DataType::Int32, Some("")), Some(ScalarValue::Int32(None)));
        assert_eq!(partition_value(&DataType::Int32, Some("7")), Some(ScalarValue::Int32(Some(7))));
        assert_eq!(
            partition_statistics(&ScalarValue::Int32(None), Precision::Exact(9)).null_count,
            Precision::Exact(9)
        );
    }
}

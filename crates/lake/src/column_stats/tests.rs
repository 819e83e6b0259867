//! Bounds cover every value, in the text forms of the protocol.

use std::sync::Arc;

use arrow::{
    array::{
        Date32Array, Decimal128Array, Float32Array, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray,
    },
    datatypes::{Field, Schema},
};
use proptest::prelude::*;

use super::*;

fn stats(batches: Vec<ArrayRef>) -> Value {
    let field = Field::new("c", batches[0].data_type().clone(), true);
    let mut statistics = FileStatistics::new([(0, &field)].into_iter());
    let schema = Arc::new(Schema::new(vec![field]));
    for column in batches {
        statistics.take(&RecordBatch::try_new(Arc::clone(&schema), vec![column]).unwrap());
    }
    serde_json::from_str(&statistics.to_json()).unwrap()
}

fn bounds(column: ArrayRef) -> (Value, Value) {
    let stats = stats(vec![column]);
    (stats["minValues"]["c"].clone(), stats["maxValues"]["c"].clone())
}

#[test]
fn rows_and_nulls_are_counted_over_all_batches() {
    let column = |values: Vec<Option<i64>>| Arc::new(Int64Array::from(values)) as ArrayRef;
    let found = stats(vec![column(vec![Some(5), None]), column(vec![None, None]), column(vec![Some(-3)])]);
    assert_eq!(found, json!({"numRecords": 5, "minValues": {"c": -3}, "maxValues": {"c": 5}, "nullCount": {"c": 3}}));
}

#[test]
fn a_column_of_nulls_has_no_bounds() {
    let found = stats(vec![Arc::new(StringArray::from(vec![None::<&str>]))]);
    assert_eq!(found, json!({"numRecords": 1, "minValues": {}, "maxValues": {}, "nullCount": {"c": 1}}));
}

#[test]
fn dates_timestamps_and_decimals_have_delta_forms() {
    assert_eq!(bounds(Arc::new(Date32Array::from(vec![0, 1]))), (json!("1970-01-01"), json!("1970-01-02")));
    let utc = TimestampMicrosecondArray::from(vec![1, 1_000_000]).with_timezone("UTC");
    let expected = (json!("1970-01-01T00:00:00.000001Z"), json!("1970-01-01T00:00:01.000000Z"));
    assert_eq!(bounds(Arc::new(utc)), expected);
    let local = TimestampMicrosecondArray::from(vec![1]);
    assert_eq!(bounds(Arc::new(local)).0, json!("1970-01-01T00:00:00.000001"));
}

#[test]
fn decimals_are_numbers_with_every_digit() {
    let column =
        Decimal128Array::from(vec![-12_345_678_901_234_567_890_123, 5]).with_precision_and_scale(38, 3).unwrap();
    let field = Field::new("c", column.data_type().clone(), true);
    let mut statistics = FileStatistics::new([(0, &field)].into_iter());
    let schema = Arc::new(Schema::new(vec![field]));
    statistics.take(&RecordBatch::try_new(schema, vec![Arc::new(column)]).unwrap());
    let text = statistics.to_json();
    assert!(text.contains(r#""minValues":{"c":-12345678901234567890.123}"#), "{text}");
    assert!(text.contains(r#""maxValues":{"c":0.005}"#), "{text}");
}

#[test]
fn what_no_bound_can_cover_has_none() {
    for odd in [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(bounds(Arc::new(Float64Array::from(vec![1.0, odd, 2.0]))), (Value::Null, Value::Null), "{odd}");
    }
    let far = TimestampMicrosecondArray::from(vec![0, i64::MAX]).with_timezone("UTC");
    assert_eq!(bounds(Arc::new(far)), (Value::Null, Value::Null));
}

#[test]
fn a_value_without_a_bound_in_one_batch_leaves_none_for_the_file() {
    let column = |values: Vec<f64>| Arc::new(Float64Array::from(values)) as ArrayRef;
    let found = stats(vec![column(vec![1.0]), column(vec![f64::NAN]), column(vec![2.0])]);
    assert_eq!(found["minValues"], json!({}));
}

#[test]
fn zeros_of_either_sign_are_covered() {
    let found = stats(vec![Arc::new(Float64Array::from(vec![0.0]))]).to_string();
    assert!(found.contains(r#""minValues":{"c":-0.0}"#) && found.contains(r#""maxValues":{"c":0.0}"#), "{found}");
}

#[test]
fn single_precision_keeps_its_own_shortest_digits() {
    assert_eq!(bounds(Arc::new(Float32Array::from(vec![0.1]))).0.to_string(), "0.1");
}

#[test]
fn long_strings_are_cut_and_the_upper_bound_is_widened() {
    let long = "x".repeat(40);
    let (low, high) = bounds(Arc::new(StringArray::from(vec![long.as_str()])));
    assert_eq!(low, json!("x".repeat(32)));
    assert_eq!(high, json!(format!("{}\u{10FFFF}", "x".repeat(32))));
    let exact = "y".repeat(32);
    assert_eq!(bounds(Arc::new(StringArray::from(vec![exact.as_str()]))).1, json!(exact));
}

proptest! {
    #[test]
    fn string_bounds_cover_every_string(texts in prop::collection::vec("[a\u{10FFFE}-\u{10FFFF}]{0,40}", 1..8)) {
        let (low, high) = bounds(Arc::new(StringArray::from(texts.clone())));
        for text in &texts {
            prop_assert!(low.as_str().unwrap() <= text.as_str() && text.as_str() <= high.as_str().unwrap());
        }
    }
}

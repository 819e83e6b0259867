//! Bounds come back as values of the column's type, never narrower than they were written.

use arrow::{
    array::{AsArray, Float32Array},
    datatypes::{Decimal128Type, Float32Type, Int64Type, Schema, TimeUnit, TimestampMicrosecondType},
};

use super::*;

fn utc() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

fn parsed(column: &Field, text: &str) -> FileStats {
    parse_stats(text, &Arc::new(Schema::new(vec![column.clone()])), true).unwrap().1
}

#[test]
fn a_decimal_bound_keeps_every_digit() {
    let column = Field::new("c", DataType::Decimal128(38, 3), true);
    let digits = "-12345678901234567890.123";
    let stats = parsed(&column, &format!(r#"{{"numRecords":1,"minValues":{{"c":{digits}}}}}"#));
    assert_eq!(stats.min["c"], Value::from(digits));
    let bound = stats.min_of(&column).unwrap();
    assert_eq!(bound.as_primitive::<Decimal128Type>().value(0), -12_345_678_901_234_567_890_123);
}

#[test]
fn a_decimal_bound_another_writer_may_have_rounded_is_no_bound() {
    let text = r#"{"numRecords":1,"minValues":{"c":12345678901234567.8},"maxValues":{"c":12345678901234567.8}}"#;
    let has_bounds = |digits: u8, ours: bool| {
        let column = Field::new("c", DataType::Decimal128(digits, 1), true);
        let stats = parse_stats(text, &Arc::new(Schema::new(vec![column.clone()])), ours).unwrap().1;
        (stats.min_of(&column).is_some(), stats.max_of(&column).is_some())
    };
    assert_eq!(has_bounds(18, false), (false, false));
    assert_eq!(has_bounds(18, true), (true, true));
    let column = Field::new("c", DataType::Decimal128(15, 2), true);
    let schema = Arc::new(Schema::new(vec![column.clone()]));
    let short = parse_stats(r#"{"minValues":{"c":1.25}}"#, &schema, false).unwrap().1;
    assert_eq!(short.min_of(&column).unwrap().as_primitive::<Decimal128Type>().value(0), 125);
}

#[test]
fn bounds_are_values_of_the_columns_type() {
    let column = Field::new("c", DataType::Int64, true);
    let stats = parsed(&column, r#"{"numRecords":3,"minValues":{"c":-7},"maxValues":{"c":null},"nullCount":{"c":2}}"#);
    assert_eq!(stats.min_of(&column).unwrap().as_primitive::<Int64Type>().value(0), -7);
    assert!(stats.max_of(&column).is_none(), "a null bound is no bound");
    assert_eq!(stats.nulls_of(&column), Some(2));

    let column = Field::new("c", DataType::Float32, true);
    let stats = parsed(&column, r#"{"minValues":{"c":0.1}}"#);
    let expected = Float32Array::from(vec![0.1]);
    assert_eq!(stats.min_of(&column).unwrap().as_primitive::<Float32Type>(), &expected);
}

#[test]
fn an_upper_bound_cut_at_milliseconds_is_widened() {
    let column = Field::new("c", utc(), true);
    let micros = |text: &str| {
        let stats = parsed(&column, &format!(r#"{{"minValues":{{"c":"{text}"}},"maxValues":{{"c":"{text}"}}}}"#));
        let value = |bound: Option<ArrayRef>| bound.unwrap().as_primitive::<TimestampMicrosecondType>().value(0);
        (value(stats.min_of(&column)), value(stats.max_of(&column)))
    };
    assert_eq!(micros("1970-01-01T00:00:01.500Z"), (1_500_000, 1_500_999));
    assert_eq!(micros("1970-01-01T00:00:01.500001Z"), (1_500_001, 1_500_001));
    let stats = parsed(&column, r#"{"maxValues":{"c":"1970-01-01T00:00:01.500Z"}}"#);
    assert_eq!(stats.max_of(&column).unwrap().data_type(), &utc());
}

#[test]
fn statistics_that_say_nothing_are_no_error() {
    let column = Field::new("c", DataType::Int64, true);
    for text in [r#"{"numRecords":3}"#, r#"{"minValues":{"other":{"nested":1}}}"#, "{}"] {
        assert!(parsed(&column, text).min_of(&column).is_none(), "{text}");
    }
}

#[test]
fn paths_outside_the_folder_are_refused() {
    assert_eq!(physical_path("t", "c=a%252Fb/x%20y.parquet").unwrap(), "c=a%2Fb/x y.parquet");
    for foreign in ["s3://other/x.parquet", "/abs/x.parquet", "../x.parquet"] {
        assert!(physical_path("t", foreign).is_err(), "{foreign}");
    }
}

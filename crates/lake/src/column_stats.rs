//! Minimum, maximum and null count per column and file, as Delta's statistics JSON.
//!
//! The invariant: a bound is never narrower than the values of the file; where no such bound can be written down, it
//! is left out. Long strings are cut and widened, as the protocol allows. Deliberately absent: nested columns,
//! booleans and binary, for which other engines keep no bounds either.

use arrow::{
    array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, RecordBatch},
    compute::{max, max_string, min, min_string},
    datatypes::{
        DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
        TimestampMicrosecondType,
    },
};
use serde_json::{Map, Value, json, value::RawValue};

use crate::text;

/// How many characters of a string a bound keeps.
const LONGEST_BOUND: usize = 32;
const LAST_CHARACTER: char = char::MAX;

/// The statistics of one file, gathered batch by batch.
pub(crate) struct FileStatistics {
    rows: u64,
    columns: Vec<ColumnStatistics>,
}

struct ColumnStatistics {
    name: String,
    index: usize,
    data_type: DataType,
    nulls: u64,
    bounds: Bounds,
}

/// The extremes seen so far, in the one form that holds every value of the column's type.
enum Bounds {
    None,
    Integer(i64, i64),
    Decimal(i128, i128),
    Float(f64, f64),
    Text(String, String),
    /// A value was seen that no bound can cover.
    Unbounded,
}

impl FileStatistics {
    /// Statistics of the columns at the given places of a batch.
    pub(crate) fn new<'a>(columns: impl Iterator<Item = (usize, &'a arrow::datatypes::Field)>) -> Self {
        let columns = columns.map(|(index, field)| ColumnStatistics {
            name: field.name().clone(),
            index,
            data_type: field.data_type().clone(),
            nulls: 0,
            bounds: Bounds::None,
        });
        Self { rows: 0, columns: columns.collect() }
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    pub(crate) fn take(&mut self, batch: &RecordBatch) {
        self.rows += batch.num_rows() as u64;
        for column in &mut self.columns {
            let values = batch.column(column.index);
            column.nulls += values.null_count() as u64;
            let seen = bounds_of(values);
            column.bounds = std::mem::replace(&mut column.bounds, Bounds::None).join(seen);
        }
    }

    /// The statistics as they stand in `add.stats`.
    pub(crate) fn to_json(&self) -> String {
        let mut minimum = Vec::new();
        let mut maximum = Vec::new();
        let mut nulls = Map::new();
        for column in &self.columns {
            nulls.insert(column.name.clone(), json!(column.nulls));
            if let Some((low, high)) = column.bounds.written(&column.data_type) {
                minimum.push((column.name.as_str(), low));
                maximum.push((column.name.as_str(), high));
            }
        }
        format!(
            r#"{{"numRecords":{},"minValues":{},"maxValues":{},"nullCount":{}}}"#,
            self.rows,
            object(minimum),
            object(maximum),
            Value::Object(nulls)
        )
    }
}

/// A JSON object whose values keep every digit they are given.
fn object(pairs: Vec<(&str, Box<RawValue>)>) -> String {
    let pairs = pairs.into_iter().map(|(name, value)| format!("{}:{value}", Value::from(name)));
    format!("{{{}}}", pairs.collect::<Vec<_>>().join(","))
}

impl Bounds {
    fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, other) | (other, Self::None) => other,
            (Self::Integer(low, high), Self::Integer(l, h)) => Self::Integer(low.min(l), high.max(h)),
            (Self::Decimal(low, high), Self::Decimal(l, h)) => Self::Decimal(low.min(l), high.max(h)),
            (Self::Float(low, high), Self::Float(l, h)) => Self::Float(low.min(l), high.max(h)),
            (Self::Text(low, high), Self::Text(l, h)) => Self::Text(low.min(l), high.max(h)),
            _ => Self::Unbounded,
        }
    }

    /// Both bounds as JSON, or neither.
    fn written(&self, data_type: &DataType) -> Option<(Box<RawValue>, Box<RawValue>)> {
        let both = |low: Option<String>, high: Option<String>| Some((raw(low?)?, raw(high?)?));
        let quoted = |text: Option<String>| text.map(|text| Value::from(text).to_string());
        match (self, data_type) {
            (Self::Integer(low, high), DataType::Date32) => {
                let day = |value: i64| text::date(i32::try_from(value).ok()?);
                both(quoted(day(*low)), quoted(day(*high)))
            }
            (Self::Integer(low, high), DataType::Timestamp(_, Some(_))) => {
                both(quoted(text::timestamp(*low)), quoted(text::timestamp(*high)))
            }
            (Self::Integer(low, high), DataType::Timestamp(_, None)) => {
                both(quoted(text::local_timestamp(*low)), quoted(text::local_timestamp(*high)))
            }
            (Self::Integer(low, high), _) => both(Some(low.to_string()), Some(high.to_string())),
            (Self::Decimal(low, high), DataType::Decimal128(_, scale)) => {
                both(Some(text::decimal(*low, *scale)), Some(text::decimal(*high, *scale)))
            }
            (Self::Float(low, high), _) => {
                // Zeros of either sign are equal to a query but not to every reader's ordering.
                let low = if *low == 0.0 { -0.0 } else { *low };
                let high = if *high == 0.0 { 0.0 } else { *high };
                both(float_text(low, data_type), float_text(high, data_type))
            }
            (Self::Text(low, high), _) => both(quoted(Some(cut_low(low))), quoted(Some(cut_high(high)))),
            _ => None,
        }
    }
}

fn raw(json: String) -> Option<Box<RawValue>> {
    RawValue::from_string(json).ok()
}

fn float_text(value: f64, data_type: &DataType) -> Option<String> {
    if !value.is_finite() {
        return None;
    }
    // The shortest digits that parse back to the same value of the column's own type.
    let text = match data_type {
        DataType::Float32 => serde_json::to_string(&(value as f32)),
        _ => serde_json::to_string(&value),
    };
    text.ok()
}

fn bounds_of(values: &ArrayRef) -> Bounds {
    match values.data_type() {
        DataType::Int8 => integers::<Int8Type>(values),
        DataType::Int16 => integers::<Int16Type>(values),
        DataType::Int32 => integers::<Int32Type>(values),
        DataType::Int64 => integers::<Int64Type>(values),
        DataType::Date32 => integers::<Date32Type>(values),
        DataType::Timestamp(..) => integers::<TimestampMicrosecondType>(values),
        DataType::Float32 => floats::<Float32Type>(values),
        DataType::Float64 => floats::<Float64Type>(values),
        DataType::Decimal128(..) => {
            let values = values.as_primitive::<Decimal128Type>();
            min(values).zip(max(values)).map_or(Bounds::None, |(low, high)| Bounds::Decimal(low, high))
        }
        DataType::Utf8 => {
            let values = values.as_string::<i32>();
            let found = min_string(values).zip(max_string(values));
            found.map_or(Bounds::None, |(low, high)| Bounds::Text(low.to_owned(), high.to_owned()))
        }
        _ => Bounds::Unbounded,
    }
}

fn integers<T: ArrowPrimitiveType<Native: Into<i64>>>(values: &ArrayRef) -> Bounds {
    let values = values.as_primitive::<T>();
    min(values).zip(max(values)).map_or(Bounds::None, |(low, high)| Bounds::Integer(low.into(), high.into()))
}

fn floats<T: ArrowPrimitiveType<Native: Into<f64>>>(values: &ArrayRef) -> Bounds {
    let values = values.as_primitive::<T>();
    // The total order puts a NaN at one end or the other, so it cannot hide between the extremes.
    match min(values).zip(max(values)).map(|(low, high)| (low.into(), high.into())) {
        None => Bounds::None,
        Some((low, high)) if low.is_nan() || high.is_nan() => Bounds::Unbounded,
        Some((low, high)) => Bounds::Float(low, high),
    }
}

fn cut_low(text: &str) -> String {
    text.chars().take(LONGEST_BOUND).collect()
}

/// The text itself, or a short text that sorts at or after it.
fn cut_high(text: &str) -> String {
    let mut letters = text.chars();
    let mut bound: String = letters.by_ref().take(LONGEST_BOUND).collect();
    for letter in letters {
        bound.push(LAST_CHARACTER);
        if letter != LAST_CHARACTER {
            return bound;
        }
    }
    bound
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

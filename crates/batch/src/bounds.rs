//! Smallest and largest value of chosen columns, so that a reader of the tail can skip whole messages.
//!
//! Bounds may be missing, never wrong: a column of a type without an order here, or with a text too long to carry, has
//! none.

use arrow::{
    array::{ArrayRef, AsArray, RecordBatch},
    compute::{cast, max, max_string, min, min_string},
    datatypes::{DataType, Decimal128Type, Float64Type, Int64Type, TimeUnit, TimestampMicrosecondType},
};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A longer text has no bounds: headers stay small.
const MAX_TEXT_BYTES: usize = 64;

/// One value of a bound.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// Any integer; a date as days, a timestamp as microseconds UTC, since 1970.
    Integer(i64),
    /// Any float.
    Float(f64),
    /// The unscaled number of a decimal.
    Decimal(i128),
    /// A text of at most 64 bytes.
    Text(String),
}

/// The range of one column's values, nulls aside.
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnBounds {
    /// The column's name.
    pub column: String,
    /// Its smallest value.
    pub min: Scalar,
    /// Its largest value.
    pub max: Scalar,
}

/// The bounds of those `columns` that have any.
pub fn bounds_of(batch: &RecordBatch, columns: &[String]) -> Vec<ColumnBounds> {
    let bounds = |column: &String| {
        let (min, max) = range(batch.column_by_name(column)?)?;
        Some(ColumnBounds { column: column.clone(), min, max })
    };
    columns.iter().filter_map(bounds).collect()
}

/// Smallest and largest value of a timestamp column, in microseconds UTC; `None` when it has no value.
pub fn event_time_range(batch: &RecordBatch, column: &str) -> Option<(i64, i64)> {
    let times = batch.column_by_name(column)?;
    let times = match times.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, _) => times.clone(),
        _ => cast(times, &DataType::Timestamp(TimeUnit::Microsecond, None)).ok()?,
    };
    let times = times.as_primitive_opt::<TimestampMicrosecondType>()?;
    Some((min(times)?, max(times)?))
}

fn range(column: &ArrayRef) -> Option<(Scalar, Scalar)> {
    match column.data_type() {
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => integers(column),
        DataType::Date32 => integers(&cast(column, &DataType::Int32).ok()?),
        DataType::Timestamp(_, _) => integers(&cast(column, &DataType::Timestamp(TimeUnit::Microsecond, None)).ok()?),
        DataType::Float32 | DataType::Float64 => floats(column),
        DataType::Decimal128(_, _) => {
            let values = column.as_primitive::<Decimal128Type>();
            Some((Scalar::Decimal(min(values)?), Scalar::Decimal(max(values)?)))
        }
        DataType::Utf8 => {
            let values = column.as_string::<i32>();
            Some((text(min_string(values)?)?, text(max_string(values)?)?))
        }
        _ => None,
    }
}

fn integers(column: &ArrayRef) -> Option<(Scalar, Scalar)> {
    let values = cast(column, &DataType::Int64).ok()?;
    let values = values.as_primitive_opt::<Int64Type>()?;
    Some((Scalar::Integer(min(values)?), Scalar::Integer(max(values)?)))
}

/// A column with a NaN has no bounds: readers differ on where NaN sorts.
fn floats(column: &ArrayRef) -> Option<(Scalar, Scalar)> {
    let values = cast(column, &DataType::Float64).ok()?;
    let values = values.as_primitive_opt::<Float64Type>()?;
    if values.iter().flatten().any(f64::is_nan) {
        return None;
    }
    Some((Scalar::Float(min(values)?), Scalar::Float(max(values)?)))
}

fn text(value: &str) -> Option<Scalar> {
    (value.len() <= MAX_TEXT_BYTES).then(|| Scalar::Text(value.to_owned()))
}

/// `u16 name length, name, kind, min, max` for each column.
pub(crate) fn encode_bounds(bounds: &[ColumnBounds]) -> Bytes {
    let mut bytes = BytesMut::new();
    for bound in bounds {
        let Ok(length) = u16::try_from(bound.column.len()) else { continue };
        bytes.put_u16_le(length);
        bytes.put_slice(bound.column.as_bytes());
        encode_scalar(&bound.min, &mut bytes);
        encode_scalar(&bound.max, &mut bytes);
    }
    bytes.freeze()
}

fn encode_scalar(scalar: &Scalar, bytes: &mut BytesMut) {
    match scalar {
        Scalar::Integer(value) => {
            bytes.put_u8(0);
            bytes.put_i64_le(*value);
        }
        Scalar::Float(value) => {
            bytes.put_u8(1);
            bytes.put_f64_le(*value);
        }
        Scalar::Decimal(value) => {
            bytes.put_u8(2);
            bytes.put_i128_le(*value);
        }
        Scalar::Text(value) => {
            bytes.put_u8(3);
            bytes.put_u16_le(value.len().min(MAX_TEXT_BYTES) as u16);
            bytes.put_slice(value.as_bytes());
        }
    }
}

pub(crate) fn decode_bounds(mut bytes: &[u8]) -> Option<Vec<ColumnBounds>> {
    let mut bounds = Vec::new();
    while !bytes.is_empty() {
        let column = decode_text(&mut bytes)?;
        let min = decode_scalar(&mut bytes)?;
        let max = decode_scalar(&mut bytes)?;
        bounds.push(ColumnBounds { column, min, max });
    }
    Some(bounds)
}

fn decode_scalar(bytes: &mut &[u8]) -> Option<Scalar> {
    match bytes.try_get_u8().ok()? {
        0 => Some(Scalar::Integer(bytes.try_get_i64_le().ok()?)),
        1 => Some(Scalar::Float(bytes.try_get_f64_le().ok()?)),
        2 => Some(Scalar::Decimal(bytes.try_get_i128_le().ok()?)),
        3 => Some(Scalar::Text(decode_text(bytes)?)),
        _ => None,
    }
}

fn decode_text(bytes: &mut &[u8]) -> Option<String> {
    let length = usize::from(bytes.try_get_u16_le().ok()?);
    let (text, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(std::str::from_utf8(text).ok()?.to_owned())
}

//! Numbers with a fraction where a whole number is declared: rejected, since arrow-json would cut the fraction off.
//!
//! The invariant: no value changes silently. Bytes are looked over for numbers that may be at fault, which costs next to
//! nothing where there are few fractions; only rows with such a number are parsed again and judged by their columns.
//! Deliberately absent: numbers in quotes, which arrow-json reads as they stand.

use arrow::datatypes::{DataType, Field, SchemaRef};
use memchr::memchr2_iter;
use serde_json::Value;

use super::{Fault, Verdict};

/// Digits that a 64-bit float holds without loss, and the numbers of so many digits.
const EXACT_DIGITS: usize = 15;
const EXACT_BELOW: f64 = 1e15;

#[derive(Clone, Debug)]
pub(super) struct WholeNumbers {
    schema: SchemaRef,
    /// Names of columns and fields, at any depth, that hold whole numbers.
    names: Vec<String>,
    /// Whether some list holds them.
    in_lists: bool,
}

impl WholeNumbers {
    pub(super) fn new(schema: &SchemaRef) -> Self {
        let mut found = Self { schema: SchemaRef::clone(schema), names: Vec::new(), in_lists: false };
        schema.fields().iter().for_each(|field| found.add(field));
        found
    }

    fn add(&mut self, field: &Field) {
        match field.data_type() {
            DataType::Struct(fields) => fields.iter().for_each(|field| self.add(field)),
            DataType::List(item) => {
                self.in_lists |= is_whole(item.data_type());
                self.add(item);
            }
            whole if is_whole(whole) => self.names.push(field.name().clone()),
            _ => {}
        }
    }

    /// Whether some number in `bytes` may lose its fraction. Never says no of one that does.
    pub(super) fn are_in_doubt(&self, bytes: &[u8]) -> bool {
        if self.names.is_empty() && !self.in_lists {
            return false;
        }
        memchr2_iter(b'.', b'-', bytes).any(|place| {
            let may_lose = if bytes[place] == b'.' { is_fraction(bytes, place) } else { is_exponent(bytes, place) };
            may_lose && self.concerns(bytes, place)
        })
    }

    /// Whether the number around `place` stands where a whole one is declared.
    fn concerns(&self, bytes: &[u8], place: usize) -> bool {
        match without_number(&bytes[..place]).split_last() {
            Some((b'[' | b',', _)) => self.in_lists,
            Some((b':', before)) => self.is_named(before.trim_ascii_end()),
            _ => false,
        }
    }

    /// Whether `before` ends with a name, in quotes, of something that holds whole numbers.
    fn is_named(&self, before: &[u8]) -> bool {
        let Some(before) = before.strip_suffix(b"\"") else { return false };
        let start = before.iter().rposition(|&byte| byte == b'"').map_or(0, |quote| quote + 1);
        let name = &before[start..];
        // An escaped name, or a text that looks like one: parsing tells.
        name.contains(&b'\\')
            || before[..start].ends_with(b"\\\"")
            || self.names.iter().any(|known| known.as_bytes() == name)
    }

    /// What is wrong with a row that is in doubt; `None` if nothing is.
    pub(super) fn judge(&self, row: &[u8]) -> Option<Verdict> {
        match serde_json::from_slice::<Value>(row) {
            Ok(Value::Object(row)) => self.schema.fields().iter().find_map(|field| {
                let number = fraction_in(row.get(field.name())?, field.data_type())?;
                let name = field.name();
                let reason = format!("column `{name}`: {number} is not a whole number");
                Some(Verdict::of_column(Fault::Value, name, reason))
            }),
            Ok(_) => None,
            Err(error) => Some(Verdict::new(Fault::Syntax, error.to_string())),
        }
    }
}

fn is_whole(data_type: &DataType) -> bool {
    data_type.is_integer() || matches!(data_type, DataType::Timestamp(_, _) | DataType::Date32)
}

/// A number that does not fit its type for its fraction.
fn fraction_in(value: &Value, data_type: &DataType) -> Option<f64> {
    match (data_type, value) {
        (DataType::Struct(fields), Value::Object(row)) => {
            fields.iter().find_map(|field| fraction_in(row.get(field.name())?, field.data_type()))
        }
        (DataType::List(item), Value::Array(items)) => {
            items.iter().find_map(|value| fraction_in(value, item.data_type()))
        }
        (whole, Value::Number(number)) if is_whole(whole) && number.is_f64() => {
            number.as_f64().filter(|number| number.fract() != 0.0 || number.abs() >= EXACT_BELOW)
        }
        _ => None,
    }
}

/// Whether a number has more than zeros after its point, or an exponent, or too many digits to be held exactly.
fn is_fraction(bytes: &[u8], point: usize) -> bool {
    let digit = |byte: &&u8| byte.is_ascii_digit();
    let whole = bytes[..point].iter().rev().take_while(digit).count();
    if whole == 0 {
        return false;
    }
    let after = &bytes[point + 1..];
    let decimals = after.iter().take_while(digit).count();
    let exponent = matches!(after.get(decimals), Some(b'e' | b'E'));
    exponent || whole > EXACT_DIGITS || after[..decimals].iter().any(|&byte| byte != b'0')
}

fn is_exponent(bytes: &[u8], sign: usize) -> bool {
    matches!(bytes[..sign], [.., b'0'..=b'9' | b'.', b'e' | b'E'])
}

/// Without the number at the end, or its part, and the blanks before it.
fn without_number(bytes: &[u8]) -> &[u8] {
    let kept = bytes.iter().rposition(|byte| !b"0123456789.+-eE".contains(byte)).map_or(0, |last| last + 1);
    bytes[..kept].trim_ascii_end()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::Schema;

    use super::*;

    fn numbers() -> WholeNumbers {
        let item = |data_type| Arc::new(Field::new("item", data_type, true));
        let inner = Field::new("count", DataType::Int32, true);
        WholeNumbers::new(&Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("amount", DataType::Float64, true),
            Field::new("place", DataType::Struct(vec![inner].into()), true),
            Field::new("items", DataType::List(item(DataType::Int64)), true),
        ])))
    }

    #[test]
    fn only_a_fraction_where_a_whole_number_belongs_is_at_fault() {
        let numbers = numbers();
        for (row, doubted, fault) in [
            (r#"{"id":1,"amount":1.5}"#, false, false),
            (r#"{"id":1.5}"#, true, true),
            (r#"{"id" :  -12.25 ,"amount":1}"#, true, true),
            (r#"{"id":1.0}"#, false, false),
            (r#"{"id":1e3}"#, false, false),
            (r#"{"id":15e-1}"#, true, true),
            (r#"{"id":150E-1}"#, true, false),
            (r#"{"id":1.5e1}"#, true, false),
            (r#"{"id":12345678901234567.0}"#, true, true),
            (r#"{"place":{"count":0.5}}"#, true, true),
            (r#"{"items":[1,2.5]}"#, true, true),
            (r#"{"items":[1, 2 , 3.0]}"#, false, false),
            (r#"{"other":{"id":1.5}}"#, true, false),
            (r#"{"note":"\"id\": 1.5"}"#, true, false),
            (r#"{"note":"version 1.5, at 2026-01-01","id":2}"#, false, false),
            (r#"{"\u0069d":1.5}"#, true, true),
        ] {
            assert_eq!(numbers.are_in_doubt(row.as_bytes()), doubted, "{row}");
            assert_eq!(numbers.judge(row.as_bytes()).is_some(), fault, "{row}");
        }
    }

    #[test]
    fn whatever_the_bytes_are_looking_for_numbers_ends() {
        for bytes in [&b"."[..], b"-", b"1.", b".5", b"\":1.5", b":1.5", b"1.5", b"e-1", b"[1.5", b"\\\":1.5", b""] {
            numbers().are_in_doubt(bytes);
        }
    }
}

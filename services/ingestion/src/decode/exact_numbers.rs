//! Numbers that their column does not hold exactly: a fraction where a whole number is declared, more decimals than a
//! DECIMAL has, one beyond what a time or a float holds. They are rejected, since arrow-json would cut them off or take the
//! nearest. What is beyond a float is told here for the other formats, too: their parser is the same.
//!
//! The invariant: no value changes silently. Bytes are looked over for numbers that may be at fault, which costs next to
//! nothing where there are few fractions, and what came of them for the ends of what columns hold; only rows with such a
//! number are parsed again and judged by their columns. At fault may be, where fewer decimals are held: a number with
//! more of them; one with an exponent, which arrow-json takes for a float or, as a decimal, reads with counts that
//! overflow; one without any digit, which it takes for zero; very many digits; and digits that are escaped.
//! Deliberately absent: fractions of whole numbers in quotes, which arrow-json refuses by itself.

use std::collections::BTreeMap;

use arrow::{
    array::{Array, AsArray},
    compute::kernels::cast_utils::Parser,
    datatypes::{ArrowPrimitiveType, DataType, Field, Float32Type, Float64Type, SchemaRef, TimestampMicrosecondType},
    record_batch::RecordBatch,
};
use memchr::memchr_iter;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::{
    Fault, Verdict,
    decimals::{self, MOST_DIGITS},
};

/// Digits that a 64-bit float holds without loss.
const EXACT_DIGITS: usize = 15;
/// How far back the beginning of a number is looked for.
const LONGEST_NUMBER: usize = 256;
/// Of a number that only parsing tells the decimals of.
const UNKNOWN: usize = usize::MAX;
/// Bytes that are looked at together for points and exponents, and what this takes: one before each and one after.
const BLOCK: usize = 32;
const SPAN: usize = BLOCK + 2;
/// Twice as many digits in a row are found wherever they stand; arrow-json's count of them overflows from 218 on.
const STRIDE: usize = 64;

#[derive(Clone, Debug)]
pub(super) struct ExactNumbers {
    schema: SchemaRef,
    /// Columns and fields, at any depth, that do not hold every number, and how many decimals they hold.
    columns: Vec<(String, usize)>,
    /// The fewest decimals that items of some list hold.
    in_lists: Option<usize>,
    /// The fewest of all; `None` where every number is held.
    fewest: Option<usize>,
    /// Whether there are decimals: their digits may be escaped.
    may_be_escaped: bool,
}

/// A row by its fields, their values not parsed yet.
type Fields<'a> = BTreeMap<String, &'a RawValue>;

impl ExactNumbers {
    pub(super) fn new(schema: &SchemaRef) -> Self {
        let mut found = Self {
            schema: SchemaRef::clone(schema),
            columns: Vec::new(),
            in_lists: None,
            fewest: None,
            may_be_escaped: false,
        };
        schema.fields().iter().for_each(|field| found.add(field));
        found
    }

    fn add(&mut self, field: &Field) {
        let held = decimals_held(field.data_type());
        self.fewest = fewer(self.fewest, held);
        self.may_be_escaped |= matches!(field.data_type(), DataType::Decimal128(_, _));
        match field.data_type() {
            DataType::Struct(fields) => fields.iter().for_each(|field| self.add(field)),
            DataType::List(item) => {
                self.in_lists = fewer(self.in_lists, decimals_held(item.data_type()));
                self.add(item);
            }
            _ => self.columns.extend(held.map(|held| (field.name().clone(), held))),
        }
    }

    /// Whether some number in `bytes` may not be held. Never says no of one that is not.
    pub(super) fn are_in_doubt(&self, bytes: &[u8]) -> bool {
        let Some(fewest) = self.fewest else { return false };
        let concerns = |place: usize, decimals: usize| decimals > fewest && self.concerns(bytes, place, decimals);
        let escaped = || memchr_iter(b'\\', bytes).any(|place| concerns(place, by_escape(bytes, place)));
        any_mark(bytes, |place| concerns(place, decimals_at(bytes, place)))
            || self.may_be_escaped && escaped()
            || long_runs(bytes).any(|place| concerns(place, UNKNOWN))
    }

    /// Whether the number around `place` stands where fewer decimals are held.
    fn concerns(&self, bytes: &[u8], place: usize, decimals: usize) -> bool {
        let Some(before) = without_number(&bytes[..place]) else { return true };
        // Arrow-json reads decimals in quotes, too.
        let before = before.strip_suffix(b"\"").map_or(before, <[u8]>::trim_ascii_end);
        match before.split_last() {
            // Arrow-json takes lists without commas.
            Some((b'[' | b',' | b'0'..=b'9', _)) => self.in_lists.is_some_and(|held| decimals > held),
            Some((b':', before)) => self.is_named(before.trim_ascii_end(), decimals),
            _ => false,
        }
    }

    /// Whether `before` ends with a name, in quotes, of something that holds fewer decimals.
    fn is_named(&self, before: &[u8], decimals: usize) -> bool {
        let Some(before) = before.strip_suffix(b"\"") else { return false };
        let start = before.iter().rposition(|&byte| byte == b'"').map_or(0, |quote| quote + 1);
        let name = &before[start..];
        // An escaped name, or a text that looks like one: parsing tells.
        name.contains(&b'\\')
            || before[..start].ends_with(b"\\\"")
            || self.columns.iter().any(|(known, held)| known.as_bytes() == name && decimals > *held)
    }

    /// What is wrong with a row that is in doubt; `None` if nothing is.
    pub(super) fn judge(&self, row: &[u8]) -> Option<Verdict> {
        match serde_json::from_slice::<Fields<'_>>(row) {
            Ok(row) => self.schema.fields().iter().find_map(|field| {
                let fault = fault_of(row.get(field.name())?, field.data_type())?;
                let name = field.name();
                Some(Verdict::of_column(Fault::Value, name, format!("column `{name}`: {fault}")))
            }),
            // What is no object is refused elsewhere.
            Err(_) => {
                let error = serde_json::from_slice::<IgnoredAny>(row).err()?;
                Some(Verdict::new(Fault::Syntax, error.to_string()))
            }
        }
    }
}

/// Whether something, at any depth, is the first or the last that its type holds: arrow-json takes these for what is
/// beyond, where it does not refuse that.
pub(super) fn has_outermost(batch: &RecordBatch) -> bool {
    batch.columns().iter().any(|column| holds_outermost(column.as_ref()))
}

pub(super) fn holds_outermost(array: &dyn Array) -> bool {
    match array.data_type() {
        DataType::Struct(_) => array.as_struct().columns().iter().any(|column| holds_outermost(column.as_ref())),
        DataType::List(_) => holds_outermost(array.as_list::<i32>().values().as_ref()),
        DataType::Timestamp(_, _) => {
            holds_any::<TimestampMicrosecondType>(array, |time| (time == i64::MIN) | (time == i64::MAX))
        }
        DataType::Float32 => holds_any::<Float32Type>(array, f32::is_infinite),
        DataType::Float64 => holds_any::<Float64Type>(array, f64::is_infinite),
        _ => false,
    }
}

fn holds_any<T: ArrowPrimitiveType>(array: &dyn Array, is_wanted: impl Fn(T::Native) -> bool) -> bool {
    // All are looked at: without a way out it goes by many at once.
    let look = |found, value: &T::Native| found | is_wanted(*value);
    array.as_primitive_opt::<T>().is_some_and(|array| array.values().iter().fold(false, look))
}

/// The smaller of two numbers of decimals, where there are any.
fn fewer(one: Option<usize>, other: Option<usize>) -> Option<usize> {
    one.into_iter().chain(other).min()
}

fn is_whole(data_type: &DataType) -> bool {
    data_type.is_integer() || matches!(data_type, DataType::Timestamp(_, _) | DataType::Date32)
}

fn beyond(number: &str, is_beyond: bool) -> Option<String> {
    is_beyond.then(|| format!("{number} is beyond what the column holds"))
}

/// What is wrong with a text in a column of floats: a number that is read as infinite although it does not say so.
pub(super) fn float_fault(text: &str, data_type: &DataType) -> Option<String> {
    let is_infinite = match data_type {
        DataType::Float32 => Float32Type::parse(text).is_some_and(f32::is_infinite),
        DataType::Float64 => Float64Type::parse(text).is_some_and(f64::is_infinite),
        _ => false,
    };
    beyond(text, is_infinite && text.contains(|letter: char| letter.is_ascii_digit()))
}

/// A number of JSON as arrow-json takes it: it may stand in quotes, and be escaped there.
fn unquoted(text: &str) -> String {
    serde_json::from_str(text).unwrap_or_else(|_| text.to_owned())
}

/// How many decimals a type holds, where it does not hold them all.
fn decimals_held(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::Decimal128(_, scale) => Some(usize::try_from(*scale).unwrap_or(0)),
        whole => is_whole(whole).then_some(0),
    }
}

/// What is wrong with a number that its type does not hold.
fn fault_of(value: &RawValue, data_type: &DataType) -> Option<String> {
    let text = value.get();
    match data_type {
        DataType::Struct(fields) => {
            let row: Fields<'_> = serde_json::from_str(text).ok()?;
            fields.iter().find_map(|field| fault_of(row.get(field.name())?, field.data_type()))
        }
        DataType::List(item) => {
            let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            items.into_iter().find_map(|value| fault_of(value, item.data_type()))
        }
        DataType::Decimal128(precision, scale) => match text.as_bytes() {
            [b'"' | b'-' | b'0'..=b'9', ..] => decimal_fault(&unquoted(text), *precision, *scale),
            _ => None,
        },
        whole if is_whole(whole) && text.contains(['.', 'e', 'E']) => whole_fault(text),
        DataType::Timestamp(_, _) if text.starts_with(|first: char| first == '-' || first.is_ascii_digit()) => {
            beyond(text, text.parse::<i64>().is_err())
        }
        DataType::Float32 | DataType::Float64 => float_fault(&unquoted(text), data_type),
        _ => None,
    }
}

fn decimal_fault(number: &str, precision: u8, scale: i8) -> Option<String> {
    // Arrow-json's counts of digits overflow where there is an exponent.
    let digits = number.bytes().filter(u8::is_ascii_digit).count();
    let too_many = digits > MOST_DIGITS && number.contains(['e', 'E']);
    let fault = decimals::fault(number, precision, scale);
    fault.or_else(|| too_many.then(|| format!("{number} has more than {MOST_DIGITS} digits")))
}

/// Arrow-json reads a whole number with a point or an exponent as a float, which must be the very number.
fn whole_fault(text: &str) -> Option<String> {
    let read = text.parse::<f64>().ok()? as i128;
    match decimals::whole(text) {
        Some(whole) if i64::try_from(whole).is_err() => beyond(text, true),
        Some(whole) => (whole != read).then(|| format!("{text} has too many digits for a point or an exponent")),
        None => Some(format!("{text} is not a whole number")),
    }
}

/// Decimals of the number that a point or an exponent stands in.
fn decimals_at(bytes: &[u8], place: usize) -> usize {
    if bytes[place] == b'.' { decimals_after(bytes, place) } else { UNKNOWN }
}

/// Decimals of the number around a point, without zeros at the end.
fn decimals_after(bytes: &[u8], point: usize) -> usize {
    let digit = |byte: &&u8| byte.is_ascii_digit();
    let whole = bytes[..point].iter().rev().take_while(digit).count();
    if whole == 0 && !matches!(bytes[..point], [.., b'"' | b'+' | b'-']) {
        return 0;
    }
    let after = &bytes[point + 1..];
    let decimals = after.iter().take_while(digit).count();
    // Arrow-json takes a point without digits for zero.
    if whole > EXACT_DIGITS || whole + decimals == 0 {
        return UNKNOWN;
    }
    after[..decimals].iter().rposition(|&byte| byte != b'0').map_or(0, |last| last + 1)
}

/// Decimals of the number in quotes that goes on with an escaped character here.
fn by_escape(bytes: &[u8], escape: usize) -> usize {
    let before = without_number(&bytes[..escape]);
    // A quote that is escaped itself stands inside a text.
    let is_value = before.is_none_or(|before| before.ends_with(b"\"") && !before.ends_with(b"\\\""));
    if is_value { UNKNOWN } else { 0 }
}

/// Whether some point of a number, or the letter of an exponent, is wanted.
fn any_mark(bytes: &[u8], is_wanted: impl Fn(usize) -> bool) -> bool {
    let last = bytes.len().saturating_sub(SPAN);
    // The last block overlaps the one before it, so that none is short where the whole is not.
    (0..last).step_by(BLOCK).chain([last]).any(|at| match bytes[at..].first_chunk::<SPAN>() {
        Some(block) => holds_mark(block) && marks(block).any(|place| is_wanted(at + place)),
        None => marks(bytes).any(&is_wanted),
    })
}

fn holds_mark(block: &[u8; SPAN]) -> bool {
    // All are looked at: without a way out it goes by many at once.
    let marks = block.iter().zip(&block[1..]).zip(&block[2..]);
    marks.fold(0u8, |found, ((&before, &mark), &after)| found | u8::from(is_mark(before, mark, after))) != 0
}

/// The places of what looks like a number's point or exponent.
fn marks(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let marks = bytes.windows(3).enumerate().filter(|(_, window)| is_mark(window[0], window[1], window[2]));
    marks.map(|(before, _)| before + 1)
}

/// Whether a point, or a letter and what an exponent begins with, stands behind what a number may have before it, or
/// behind the quote it begins with.
fn is_mark(before: u8, mark: u8, after: u8) -> bool {
    // From the plus to the nine: signs, point and digits, and the comma and the slash, which do no harm.
    let is_numeric = |byte: u8| byte.wrapping_sub(b'+') <= b'9' - b'+';
    let may_be_mark = (mark == b'.') | ((mark | 0x20 == b'e') & is_numeric(after));
    may_be_mark & (is_numeric(before) | (before == b'"'))
}

/// Places near the beginnings of runs of very many digits.
fn long_runs(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let are_digits = move |from: usize| {
        let stride = bytes.get(from..from + STRIDE);
        stride.is_some_and(|stride| stride.iter().all(u8::is_ascii_digit))
    };
    let begins = move |&at: &usize| are_digits(at) && !at.checked_sub(STRIDE).is_some_and(are_digits);
    (0..bytes.len()).step_by(STRIDE).filter(begins)
}

/// Without the number at the end, or its part, and the blanks before it; `None` where it begins too far away.
fn without_number(bytes: &[u8]) -> Option<&[u8]> {
    let from = bytes.len().saturating_sub(LONGEST_NUMBER);
    match bytes[from..].iter().rposition(|byte| !b"0123456789.+-eE".contains(byte)) {
        Some(last) => Some(bytes[..=from + last].trim_ascii_end()),
        None if from == 0 => Some(&[]),
        None => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{Schema, TimeUnit};

    use super::*;

    fn numbers() -> ExactNumbers {
        let item = |data_type| Arc::new(Field::new("item", data_type, true));
        let inner = Field::new("count", DataType::Int32, true);
        ExactNumbers::new(&Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("amount", DataType::Float64, true),
            Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, None), true),
            Field::new("place", DataType::Struct(vec![inner].into()), true),
            Field::new("items", DataType::List(item(DataType::Int64)), true),
            Field::new("price", DataType::Decimal128(10, 2), true),
            Field::new(
                "sums",
                DataType::Struct(vec![Field::new("tax", DataType::Decimal128(10, 1), true)].into()),
                true,
            ),
        ])))
    }

    #[test]
    fn only_a_number_that_its_column_does_not_hold_is_at_fault() {
        let numbers = numbers();
        for (row, doubted, fault) in [
            (r#"{"id":1,"amount":1.5}"#, false, false),
            (r#"{"id":1.5}"#, true, true),
            (r#"{"id" :  -12.25 ,"amount":1}"#, true, true),
            (r#"{"id":1.0}"#, false, false),
            (r#"{"id":1e3}"#, true, false),
            (r#"{"id":1E+3}"#, true, false),
            (r#"{"id":1e16}"#, true, false),
            (r#"{"id":9007199254740992e0}"#, true, false),
            (r#"{"id":9007199254740993e0}"#, true, true),
            (r#"{"id":1e40}"#, true, true),
            (r#"{"id":1e-99999}"#, true, true),
            (r#"{"items":[1,9007199254740993e0]}"#, true, true),
            (r#"{"id":15e-1}"#, true, true),
            (r#"{"id":150E-1}"#, true, false),
            (r#"{"id":1.5e1}"#, true, false),
            (r#"{"id":12345678901234567.0}"#, true, true),
            (r#"{"id":1764000000000000.0}"#, true, false),
            (r#"{"id":1.00000000000000001}"#, true, true),
            (r#"{"items":[1 2.5]}"#, true, true),
            (r#"{"price":0E-10}"#, true, false),
            (r#"{"price":1.0000000000000000000000000000000000000000e0}"#, true, true),
            (r#"{"place":{"count":0.5}}"#, true, true),
            (r#"{"items":[1,2.5]}"#, true, true),
            (r#"{"items":[1, 2 , 3.0]}"#, false, false),
            (r#"{"other":{"id":1.5}}"#, true, false),
            (r#"{"note":"\"id\": 1.5"}"#, true, false),
            (r#"{"note":"version 1.5, at 2026-01-01","id":2}"#, false, false),
            (r#"{"\u0069d":1.5}"#, true, true),
            (r#"{"price":12.25}"#, false, false),
            (r#"{"price":12.250}"#, false, false),
            (r#"{"price":12.255}"#, true, true),
            (r#"{"price": "12.255"}"#, true, true),
            (r#"{"price":"12.25"}"#, false, false),
            (r#"{"price":".125"}"#, true, true),
            (r#"{"price":12255e-3}"#, true, true),
            (r#"{"price":1.2255e1}"#, true, true),
            (r#"{"price":1.225e1}"#, true, false),
            (r#"{"price":12345678.25}"#, false, false),
            (r#"{"price":123456789012345678.25}"#, true, true),
            (r#"{"price":1.5e2}"#, true, false),
            (r#"{"price":"1.5E+2"}"#, true, false),
            (r#"{"price":1e65536}"#, true, true),
            (r#"{"price":1.0e65536}"#, true, true),
            (r#"{"price":"1.0e65536"}"#, true, true),
            (r#"{"price":"e5"}"#, true, true),
            (r#"{"price":"-e5"}"#, true, true),
            (r#"{"price":"1e5-3"}"#, true, true),
            (r#"{"price":1e5-3}"#, true, true),
            (r#"{"price":"."}"#, true, true),
            (r#"{"price":"-."}"#, true, true),
            (r#"{"price":"+."}"#, true, true),
            (r#"{"price":-.}"#, true, true),
            (r#"{"price":"-.5"}"#, false, false),
            (r#"{"price":"12.25\u0035"}"#, true, true),
            (r#"{"price":"12.2\u0035"}"#, true, false),
            (r#"{"price":"\u0031"}"#, true, false),
            (r#"{"price":null,"id":1e3}"#, true, false),
            (r#"{"note":"e5","price":1}"#, false, false),
            (r#"{"note":"-.","price":1}"#, false, false),
            (r#"{"note":"12\u0035","price":1}"#, false, false),
            (r#"{"note":"\"x\" \n","price":1}"#, false, false),
            (r#"{"note":"{\"a\":\"1\",\"b\":\"x\\ny\"}","price":1}"#, false, false),
            (r#"{"note":"https://example.org/a1e2/3e5.html#7E+1","price":1.5}"#, false, false),
            (r#"{"note":"3e5a81e0-1e2f-4e55-8e10-7e9e1e2e3e4e","price":1.5}"#, false, false),
            (r#"{"sums":{"tax":0.25}}"#, true, true),
            (r#"{"sums":{"tax":0.5},"price":0.25}"#, false, false),
            (r#"{"note":"12.255","price":1}"#, false, false),
            (r#"{"price":"12.255 Euro"}"#, true, true),
            (r#"{"at":9223372036854775807}"#, false, false),
            (r#"{"at":9223372036854775808}"#, false, true),
            (r#"{"at":1e20}"#, true, true),
            (r#"{"at":"2026-11-26T12:00:00Z"}"#, false, false),
            (r#"{"at":null,"amount":null,"id":1.5e1}"#, true, false),
            (r#"{"amount":1e308}"#, false, false),
            (r#"{"amount":1e309}"#, false, true),
            (r#"{"amount":"-1e309"}"#, false, true),
            (r#"{"amount":" 1e309 "}"#, false, true),
            (r#"{"amount":"1e30\u0039"}"#, false, true),
            (r#"{"amount":"Infinity"}"#, false, false),
        ] {
            assert_eq!(numbers.are_in_doubt(row.as_bytes()), doubted, "{row}");
            assert_eq!(numbers.judge(row.as_bytes()).is_some(), fault, "{row}");
        }
    }

    #[test]
    fn an_exponent_or_a_long_run_of_digits_is_found_wherever_it_stands() {
        let (numbers, run) = (numbers(), "1".repeat(218));
        for before in 0..150 {
            for after in [0, 1, 31, 32, 33, 200] {
                let row = |price: &str| {
                    let (before, after) = ("x".repeat(before), "x".repeat(after));
                    format!(r#"{{"a":"{before}","price":{price},"b":"{after}"}}"#)
                };
                for doubted in ["1e65536", "\"e5\"", run.as_str()] {
                    assert!(numbers.are_in_doubt(row(doubted).as_bytes()), "{before}, {after}: {doubted}");
                    assert!(numbers.judge(row(doubted).as_bytes()).is_some(), "{before}, {after}: {doubted}");
                }
                for certain in ["1", "\"1.25\"", "null"] {
                    assert!(!numbers.are_in_doubt(row(certain).as_bytes()), "{before}, {after}: {certain}");
                }
                assert!(!numbers.are_in_doubt(row(&format!("1,\"note\":\"{run}\"")).as_bytes()), "{before}, {after}");
            }
        }
    }

    #[test]
    fn whatever_the_bytes_are_looking_for_numbers_ends() {
        for bytes in [&b"."[..], b"-", b"1.", b".5", b"\":1.5", b":1.5", b"1.5", b"e-1", b"[1.5", b"\\\":1.5", b""] {
            numbers().are_in_doubt(bytes);
        }
        for bytes in [&b"\\"[..], b"\"\\", b"1\\", b"1e1", b"e", b"1e", b"\"e5", &[b'1'; 1000], &[b'e'; 34]] {
            numbers().are_in_doubt(bytes);
        }
    }
}

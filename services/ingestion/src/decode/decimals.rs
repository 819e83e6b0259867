//! Decimals in texts, exactly as they stand.
//!
//! The invariant: a number with more decimals than its column holds is no value of it. The parsers of the libraries
//! would cut such a number off (JSON, CSV) or round it (Arrow).
//! Deliberately absent: numbers of JSON, which arrow-json parses by itself; see `exact_numbers`.

use arrow::{
    array::{Array, AsArray as _, Decimal128Array},
    compute::{cast, kernels::cast_utils::parse_decimal},
    datatypes::{DataType, Decimal128Type},
};

/// Whether the values are texts.
pub(super) fn are_texts(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => are_texts(values),
        DataType::RunEndEncoded(_, values) => are_texts(values.data_type()),
        _ => false,
    }
}

/// Texts as decimals; NULL where a text is none that the column holds. `None` for what is no array of texts.
pub(super) fn from_texts(texts: &dyn Array, precision: u8, scale: i8) -> Option<Decimal128Array> {
    let texts = cast(texts, &DataType::Utf8).ok()?;
    let texts = texts.as_string_opt::<i32>()?;
    let decimals = texts.iter().map(|text| text.and_then(|text| from_text(text, precision, scale)));
    decimals.collect::<Decimal128Array>().with_precision_and_scale(precision, scale).ok()
}

fn from_text(text: &str, precision: u8, scale: i8) -> Option<i128> {
    if has_more_places(text.as_bytes(), scale) {
        return None;
    }
    parse_decimal::<Decimal128Type>(text, precision, scale).ok()
}

/// Why a text is no decimal of the column, if it is none.
pub(super) fn fault(text: &str, precision: u8, scale: i8) -> Option<String> {
    match from_text(text, precision, scale) {
        Some(_) => None,
        None if has_more_places(text.as_bytes(), scale) => Some(more_places(text, scale)),
        None => Some(format!("cannot read `{text}` as {}", DataType::Decimal128(precision, scale))),
    }
}

/// What is said of a number with too many decimals.
pub(super) fn more_places(number: &str, scale: i8) -> String {
    format!("{number} has more than {scale} decimals")
}

/// Whether a number has more decimals than a column of this scale holds. No number has none.
pub(super) fn has_more_places(number: &[u8], scale: i8) -> bool {
    number.iter().all(|byte| b"0123456789.+-eE".contains(byte)) && places(number) > i64::from(scale.max(0))
}

/// Decimals of a number, without zeros at the end.
fn places(number: &[u8]) -> i64 {
    let end = number.iter().position(|byte| matches!(byte, b'e' | b'E'));
    let (mantissa, exponent) = number.split_at(end.unwrap_or(number.len()));
    let exponent = exponent.get(1..).and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<i32>().ok());
    let point = mantissa.iter().rposition(|byte| *byte == b'.');
    let decimals = point.map_or(0, |point| mantissa.len() - point - 1);
    let zeros = mantissa.iter().rev().filter(|byte| **byte != b'.').take_while(|byte| **byte == b'0').count();
    let length = |count| i64::try_from(count).unwrap_or(i64::MAX);
    length(decimals) - length(zeros) - i64::from(exponent.unwrap_or(0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, DictionaryArray, Int32Array, StringArray};

    use super::*;

    #[test]
    fn decimals_are_counted_without_zeros_at_the_end() {
        for (number, expected) in [
            ("12.345", 3),
            ("12.340", 2),
            ("-0.50", 1),
            ("12.", 0),
            (".125", 3),
            ("1500e-2", 0),
            ("1500e-3", 1),
            ("1.5e1", 0),
            ("1.25E+1", 1),
            ("12", 0),
            ("0.000", 0),
            ("", 0),
            ("e", 0),
        ] {
            assert_eq!(places(number.as_bytes()).max(0), expected, "{number}");
        }
    }

    #[test]
    fn a_text_is_read_exactly_or_not_at_all() {
        let read = |text| from_text(text, 6, 2);
        assert_eq!(
            (read("12.34"), read("12.3"), read("-12.340"), read("1.2e1")),
            (Some(1234), Some(1230), Some(-1234), Some(1200))
        );
        for text in ["12.345", "0.001", "12345.00", "x", "", "1.2.3", "1e-3"] {
            assert_eq!(read(text), None, "{text}");
            assert!(fault(text, 6, 2).is_some_and(|fault| fault.contains(text)), "{text}");
        }
        assert_eq!(fault("12.34", 6, 2), None);
        assert_eq!(fault("0.001", 6, 2).unwrap(), "0.001 has more than 2 decimals");
    }

    #[test]
    fn texts_of_every_kind_are_read() {
        let texts = StringArray::from(vec![Some("1.5"), None, Some("1.555")]);
        let keys = Int32Array::from(vec![Some(0), Some(1), Some(2)]);
        let dictionary: ArrayRef = Arc::new(DictionaryArray::new(keys, Arc::new(texts.clone())));
        for texts in [Arc::new(texts) as ArrayRef, dictionary] {
            assert!(are_texts(texts.data_type()));
            let decimals = from_texts(&texts, 5, 2).unwrap();
            assert_eq!(decimals.iter().collect::<Vec<_>>(), [Some(150), None, None]);
        }
    }
}

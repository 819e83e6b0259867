//! Decimals exactly as they stand: in texts, and in Arrow.
//!
//! The invariant: a number with more decimals or digits than its column holds is no value of it, and no text is a panic.
//! The parsers of the libraries cut such a number off (JSON, CSV) or round it (Arrow), and their counts of digits and
//! exponents overflow. Arrow takes the word of a sender for how many digits its decimals have; Parquet cuts the bits off.
//! Deliberately absent: which numbers of JSON need this, since arrow-json parses them by itself; see `exact_numbers`.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray as _, Decimal128Array},
    buffer::BooleanBuffer,
    compute::cast,
    datatypes::{DataType, Decimal128Type, DecimalType as _},
};

/// Digits that every value of a 128-bit decimal may have.
pub(super) const MOST_DIGITS: usize = 38;

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
    let number = Number::read(text.as_bytes())?;
    let zeros = u32::try_from(i64::from(scale) - number.places).ok()?;
    if number.digits == 0 {
        return Some(0);
    }
    // Precisions are at most 38, so what fits them fits the type.
    if number.digits + zeros as usize > usize::from(precision) {
        return None;
    }
    Some(number.value? * 10_i128.pow(zeros))
}

/// A text as a whole number; `None` where it is none, or one of more digits than a decimal may have.
pub(super) fn whole(text: &str) -> Option<i128> {
    from_text(text, MOST_DIGITS as u8, 0)
}

/// Why a text is no decimal of the column, if it is none.
pub(super) fn fault(text: &str, precision: u8, scale: i8) -> Option<String> {
    match from_text(text, precision, scale) {
        Some(_) => None,
        None if has_more_places(text, scale) => Some(format!("{text} has more than {scale} decimals")),
        None => Some(format!("cannot read `{text}` as {}", DataType::Decimal128(precision, scale))),
    }
}

/// Whether a text is a number with more decimals than a column of this scale holds.
fn has_more_places(text: &str, scale: i8) -> bool {
    Number::read(text.as_bytes()).is_some_and(|number| number.places > i64::from(scale))
}

/// Decimals as they were sent, but NULL where one has more digits than its own type says. Copies nothing if none has.
pub(super) fn within_precision(sent: &ArrayRef) -> ArrayRef {
    let Some(decimals) = sent.as_primitive_opt::<Decimal128Type>() else { return Arc::clone(sent) };
    let precision = decimals.precision();
    if decimals.values().iter().all(|value| Decimal128Type::is_valid_decimal_precision(*value, precision)) {
        return Arc::clone(sent);
    }
    Arc::new(decimals.null_if_overflow_precision(precision).with_data_type(sent.data_type().clone()))
}

/// Which rows hold, at any depth, a decimal with more digits than its type says; `None` if none does.
pub(super) fn rows_beyond_precision(array: &dyn Array) -> Option<BooleanBuffer> {
    match array.data_type() {
        DataType::Decimal128(precision, _) => {
            let decimals = array.as_primitive::<Decimal128Type>();
            let fits = |row| Decimal128Type::is_valid_decimal_precision(decimals.value(row), *precision);
            rows_of(array, |row| !fits(row))
        }
        DataType::Struct(_) => {
            let fields = array.as_struct().columns().iter();
            let found = fields.filter_map(|field| rows_beyond_precision(field.as_ref()));
            let found = found.reduce(|one, other| &one | &other)?;
            rows_of(array, |row| found.value(row))
        }
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let (items, offsets) = (rows_beyond_precision(list.values().as_ref())?, list.value_offsets());
            rows_of(array, |row| (offsets[row]..offsets[row + 1]).any(|item| items.value(item as usize)))
        }
        _ => None,
    }
}

/// The rows, among those that are not NULL, that are wanted; `None` if there are none.
fn rows_of(array: &dyn Array, is_wanted: impl Fn(usize) -> bool) -> Option<BooleanBuffer> {
    let rows = BooleanBuffer::collect_bool(array.len(), |row| array.is_valid(row) && is_wanted(row));
    (rows.count_set_bits() > 0).then_some(rows)
}

/// A number as it is written.
#[derive(Debug, PartialEq, Eq)]
struct Number {
    /// Its digits without zeros at the end and its sign; `None` where they are more than the type holds.
    value: Option<i128>,
    /// How many those digits are; none of zero.
    digits: usize,
    /// Decimals of the last of them; negative where zeros follow it before the point, 0 of zero.
    places: i64,
}

impl Number {
    /// `None` for what is no number, and for an exponent that no number of ours needs.
    fn read(text: &[u8]) -> Option<Self> {
        let (is_negative, text) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            text => (false, text),
        };
        let end = text.iter().position(|byte| matches!(byte, b'e' | b'E'));
        let (mantissa, exponent) = text.split_at(end.unwrap_or(text.len()));
        let exponent = match exponent {
            [] => 0,
            [_, digits @ ..] => std::str::from_utf8(digits).ok()?.parse::<i16>().ok()?,
        };
        let point = mantissa.iter().position(|byte| *byte == b'.');
        let (whole, decimals) = mantissa.split_at(point.unwrap_or(mantissa.len()));
        let decimals = decimals.get(1..).unwrap_or_default();
        if whole.is_empty() && decimals.is_empty() {
            return None;
        }
        let (mut value, mut digits, mut zeros) = (Some(0_i128), 0, 0);
        for byte in whole.iter().chain(decimals) {
            match byte {
                b'0' => zeros += usize::from(digits > 0),
                b'1'..=b'9' => {
                    digits += zeros + 1;
                    value = value.filter(|_| digits <= MOST_DIGITS);
                    value = value.map(|value| value * 10_i128.pow(zeros as u32 + 1) + i128::from(byte - b'0'));
                    zeros = 0;
                }
                _ => return None,
            }
        }
        let places = i64::try_from(decimals.len()).ok()? - i64::try_from(zeros).ok()? - i64::from(exponent);
        let value = value.map(|value| if is_negative { -value } else { value });
        Some(Self { value, digits, places: if digits == 0 { 0 } else { places } })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use arrow::{
        array::{DictionaryArray, Int32Array, ListArray, StringArray, StructArray},
        buffer::{NullBuffer, OffsetBuffer},
        datatypes::Field,
    };

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
            ("1200", -2),
            ("0.000", 0),
            ("0E-10", 0),
            ("-0e0", 0),
        ] {
            assert_eq!(Number::read(number.as_bytes()).map(|number| number.places), Some(expected), "{number}");
        }
        for text in ["", "e", "e1", ".", "-", "1e", "1.2.3", "1 ", " 1", "x", "1e99999", "0x10", "--1", "1e1.5"] {
            assert_eq!(Number::read(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_text_is_read_exactly_or_not_at_all() {
        let read = |text: &str| from_text(text, 6, 2);
        for (text, expected) in [
            ("12.34", 1234),
            ("12.3", 1230),
            ("-12.340", -1234),
            ("1.2e1", 1200),
            ("+1", 100),
            ("9999.99", 999_999),
            ("0E-10", 0),
            ("0.000", 0),
            ("00012", 1200),
        ] {
            assert_eq!(read(text), Some(expected), "{text}");
        }
        for text in ["12.345", "0.001", "12345.00", "10000", "x", "", "1.2.3", "1e-3", "1e65536", "1e-4294967296"] {
            assert_eq!(read(text), None, "{text}");
            assert!(fault(text, 6, 2).is_some_and(|fault| fault.contains(text)), "{text}");
        }
        assert_eq!(fault("12.34", 6, 2), None);
        assert_eq!(fault("0.001", 6, 2).unwrap(), "0.001 has more than 2 decimals");
        let widest = "9".repeat(38);
        assert_eq!(from_text(&widest, 38, 0), widest.parse().ok());
        assert_eq!(from_text(&format!("-{widest}"), 38, 0), format!("-{widest}").parse().ok());
        assert_eq!(from_text("100200.00300", 38, 4), Some(1_002_000_030));
    }

    #[test]
    fn a_whole_number_may_be_written_with_a_point_or_an_exponent() {
        for (text, expected) in [
            ("12", Some(12)),
            ("-12.0", Some(-12)),
            ("9007199254740993e0", Some(9_007_199_254_740_993)),
            ("1.5e3", Some(1_500)),
            ("150e-1", Some(15)),
            ("15e-1", None),
            ("1e38", None),
            ("1e-99999", None),
            ("x", None),
        ] {
            assert_eq!(whole(text), expected, "{text}");
        }
    }

    #[test]
    fn numbers_of_any_length_are_no_panic() {
        for (text, expected) in [
            (format!("1.{}e0", "0".repeat(130)), Some(100)),
            (format!("1{}", "0".repeat(255)), None),
            ("1".repeat(256), None),
            (format!("0.{}1", "0".repeat(70_000)), None),
        ] {
            assert_eq!(from_text(&text, 6, 2), expected);
        }
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

    fn sent(values: Vec<Option<i128>>, precision: u8) -> Decimal128Array {
        Decimal128Array::from(values).with_precision_and_scale(precision, 2).unwrap()
    }

    #[test]
    fn a_decimal_with_more_digits_than_its_type_is_no_value() {
        let good: ArrayRef = Arc::new(sent(vec![Some(99_999), None, Some(-99_999)], 5));
        assert_eq!(&within_precision(&good), &good);
        let bad: ArrayRef = Arc::new(sent(vec![Some(100_000), None, Some(-99_999), Some(i128::MIN)], 5));
        let expected: ArrayRef = Arc::new(sent(vec![None, None, Some(-99_999), None], 5));
        assert_eq!(&within_precision(&bad), &expected);
    }

    #[test]
    fn rows_with_decimals_beyond_their_precision_are_found_at_any_depth() {
        let rows = |array: &dyn Array| {
            rows_beyond_precision(array).map(|rows| rows.set_indices().collect::<Vec<_>>()).unwrap_or_default()
        };
        let items: ArrayRef = Arc::new(sent(vec![Some(1), Some(100_000), None, Some(100_000), Some(2)], 5));
        assert_eq!(rows(&items), [1, 3]);
        assert_eq!(rows(&items.slice(2, 3)), [1]);
        let item = Arc::new(Field::new("item", items.data_type().clone(), true));
        let offsets = OffsetBuffer::new(vec![0, 2, 2, 3, 4, 5].into());
        let nulls = NullBuffer::from(vec![true, true, true, false, true]);
        let list: ArrayRef = Arc::new(ListArray::new(item, offsets, Arc::clone(&items), Some(nulls)));
        assert_eq!(rows(&list), [0], "what is NULL holds nothing");
        let fields = vec![
            Field::new("list", list.data_type().clone(), true),
            Field::new("one", items.data_type().clone(), true),
        ];
        let both: ArrayRef = Arc::new(StructArray::new(fields.into(), vec![list, items], None));
        assert_eq!(rows(&both), [0, 1, 3]);
        assert_eq!(rows(&both.slice(2, 3)), [1]);
        assert_eq!(rows(&StringArray::from(vec!["1"])), [0usize; 0]);
    }
}

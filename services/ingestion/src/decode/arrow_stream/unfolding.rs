//! How many bytes a column takes once its encoding is gone.
//!
//! Keys, runs and views may point at one long value a million times, so that a few kilobytes become gigabytes when they
//! are cast. The invariant: what a column unfolds to is known before anything of it is built, at the cost of its keys,
//! runs or views. Deliberately absent: columns without such an encoding, whose bytes `batch` has counted, and encodings
//! inside lists and structs, which are not taken.

use std::ops::Range;

use arrow::{
    array::{Array, AsArray, DictionaryArray, RunArray},
    datatypes::{ArrowDictionaryKeyType, ArrowNativeType, DataType, Int16Type, Int32Type, Int64Type, RunEndIndexType},
    downcast_dictionary_array,
};

/// The bytes a column takes without its encoding; none for one that has no encoding.
pub(crate) fn unfolded_bytes(column: &dyn Array) -> usize {
    match column.data_type() {
        DataType::Dictionary(_, _) | DataType::RunEndEncoded(_, _) | DataType::Utf8View | DataType::BinaryView => {
            bytes_of(column, 0..column.len())
        }
        _ => 0,
    }
}

/// About how many bytes some rows take, were they sent plainly.
fn bytes_of(array: &dyn Array, rows: Range<usize>) -> usize {
    match array.data_type() {
        DataType::Dictionary(_, _) => downcast_dictionary_array! {
            array => bytes_of_keys(array, rows),
            _ => 0
        },
        DataType::RunEndEncoded(ends, _) => match ends.data_type() {
            DataType::Int16 => bytes_of_runs(array.as_run::<Int16Type>(), rows),
            DataType::Int32 => bytes_of_runs(array.as_run::<Int32Type>(), rows),
            _ => bytes_of_runs(array.as_run::<Int64Type>(), rows),
        },
        DataType::Utf8View => bytes_of_views(&array.as_string_view().views()[rows]),
        DataType::BinaryView => bytes_of_views(&array.as_binary_view().views()[rows]),
        DataType::Utf8 => bytes_between(array.as_string::<i32>().value_offsets(), rows),
        DataType::LargeUtf8 => bytes_between(array.as_string::<i64>().value_offsets(), rows),
        DataType::Binary => bytes_between(array.as_binary::<i32>().value_offsets(), rows),
        DataType::LargeBinary => bytes_between(array.as_binary::<i64>().value_offsets(), rows),
        DataType::FixedSizeBinary(width) => rows.len().saturating_mul(usize::try_from(*width).unwrap_or(0)),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let offsets = list.value_offsets();
            let items = offsets[rows.start].as_usize()..offsets[rows.end].as_usize();
            bytes_of(list.values().as_ref(), items).saturating_add(rows.len() * size_of::<i32>())
        }
        DataType::Struct(_) => {
            total(array.as_struct().columns().iter().map(|field| bytes_of(field.as_ref(), rows.clone())))
        }
        other => rows.len() * other.primitive_width().unwrap_or(0),
    }
}

fn bytes_of_keys<K: ArrowDictionaryKeyType>(array: &DictionaryArray<K>, rows: Range<usize>) -> usize {
    let values: &dyn Array = array.values().as_ref();
    total(rows.filter_map(|row| array.key(row)).map(|key| bytes_of(values, key..key + 1)))
}

fn bytes_of_runs<R: RunEndIndexType>(array: &RunArray<R>, rows: Range<usize>) -> usize {
    let ends = array.run_ends();
    let values: &dyn Array = array.values().as_ref();
    let (mut bytes, mut row) = (0_usize, rows.start);
    let mut run = array.get_physical_index(row);
    while row < rows.end {
        let end = ArrowNativeType::as_usize(ends.values()[run]) - ends.offset();
        let end = end.min(rows.end);
        bytes = bytes.saturating_add((end - row).saturating_mul(bytes_of(values, run..run + 1)));
        (row, run) = (end, run + 1);
    }
    bytes
}

/// The lowest 32 bits of a view are the length of its value.
fn bytes_of_views(views: &[u128]) -> usize {
    total(views.iter().map(|view| *view as u32 as usize + size_of::<i32>()))
}

fn bytes_between<O: ArrowNativeType>(offsets: &[O], rows: Range<usize>) -> usize {
    offsets[rows.end].as_usize() - offsets[rows.start].as_usize() + rows.len() * size_of::<O>()
}

fn total(bytes: impl Iterator<Item = usize>) -> usize {
    bytes.fold(0, usize::saturating_add)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{
            ArrayRef, BinaryViewArray, BooleanArray, Int8Array, Int32Array, Int64Array, ListArray, StringArray,
            StringViewBuilder,
        },
        datatypes::Int8Type,
    };

    use super::*;

    fn texts(values: &[Option<&str>]) -> ArrayRef {
        Arc::new(StringArray::from(values.to_vec()))
    }

    fn keyed(keys: Vec<Option<i8>>, values: ArrayRef) -> ArrayRef {
        Arc::new(DictionaryArray::<Int8Type>::new(Int8Array::from(keys), values))
    }

    fn runs(ends: Vec<i32>, values: &dyn Array) -> ArrayRef {
        Arc::new(RunArray::<Int32Type>::try_new(&Int32Array::from(ends), values).unwrap())
    }

    #[test]
    fn a_column_unfolds_to_its_values_as_often_as_they_are_pointed_at() {
        let values = texts(&[Some("four"), Some("a value of 21 bytes!!"), None]);
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        let lists = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None]), None, Some(vec![])]);
        let mut views = StringViewBuilder::new().with_deduplicate_strings();
        (0..3).for_each(|_| views.append_value("a value of 21 bytes!!"));
        views.append_null();
        let keys = keyed(vec![Some(1), Some(1), None, Some(0), Some(2)], Arc::clone(&values));
        let run = runs(vec![3, 4, 1_000], &values);
        for (column, expected) in [
            (Arc::clone(&values), 0),
            (Arc::clone(&numbers), 0),
            (Arc::clone(&keys), 21 + 21 + 4 + 4 * 4),
            (keys.slice(1, 3), 21 + 4 + 2 * 4),
            (Arc::clone(&run), 3 * 4 + 21 + 4 * 1_000),
            (run.slice(2, 2), 4 + 21 + 4 * 2),
            (run.slice(10, 0), 0),
            (runs(vec![100, 300], &keyed(vec![Some(1), None], Arc::clone(&values))), 100 * (21 + 4)),
            (keyed(vec![Some(0), Some(5)], runs(vec![3, 7], &values.slice(0, 2))), 4 + 21 + 2 * 4),
            (keyed(vec![Some(0), Some(0), Some(1)], numbers), 3 * 8),
            (keyed(vec![Some(0), Some(2), Some(0)], Arc::new(lists)), 2 * 2 * 8 + 3 * 4),
            (keyed(vec![Some(0); 5], Arc::new(BooleanArray::from(vec![true]))), 0),
            (keyed(vec![None; 5], texts(&[])), 0),
            (Arc::new(views.finish()) as ArrayRef, 3 * 21 + 4 * 4),
            (Arc::new(BinaryViewArray::from_iter_values([b"short"])) as ArrayRef, 5 + 4),
        ] {
            assert_eq!(unfolded_bytes(&column), expected, "{column:?}");
        }
    }

    #[test]
    fn a_long_value_in_very_many_rows_is_counted_without_building_any() {
        let long = "x".repeat(1 << 20);
        let column = runs(vec![i32::MAX], &StringArray::from(vec![long.as_str()]));
        assert!(unfolded_bytes(&column) > 1 << 50);
    }
}

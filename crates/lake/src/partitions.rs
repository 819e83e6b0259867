//! From rows to partitions: which rows share a folder, and what the folder is called.
//!
//! The invariant: a row's partition values are exactly its values in Delta's text form; they are what readers use.
//! Folder names are for people and tools that know Hive's layout; nothing is read back from them, so a long value may
//! be cut short. An empty string is kept apart from null for our own readers; Delta itself knows only null, so the log
//! lets a text column be null that a table is partitioned by.

use std::{collections::HashMap, fmt::Write};

use arrow::{
    array::{Array, AsArray, RecordBatch, StringArray, StringBuilder, UInt32Array},
    datatypes::{
        ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Int8Type, Int16Type, Int32Type, Int64Type,
        TimestampMicrosecondType,
    },
};

use crate::text;

/// Hive's name for the folder of nulls.
const NULL_FOLDER: &str = "__HIVE_DEFAULT_PARTITION__";
/// File systems allow 255 bytes per name; the column's name and `=` need room too.
const LONGEST_FOLDER_VALUE: usize = 120;

/// One value per partition column, in the order of `partition_by`.
pub(crate) type PartitionKey = Vec<Option<String>>;

/// Rows grouped by their partition, each group in row order; groups in order of their first row.
///
/// # Errors
/// The column whose value has no text form.
pub(crate) fn group(batch: &RecordBatch, columns: &[usize]) -> Result<Vec<(PartitionKey, UInt32Array)>, String> {
    let texts = columns.iter().map(|column| text_column(batch, *column)).collect::<Result<Vec<_>, _>>()?;
    let mut places: HashMap<Vec<Option<&str>>, usize> = HashMap::new();
    let mut groups: Vec<Vec<u32>> = Vec::new();
    let rows = u32::try_from(batch.num_rows()).map_err(|_| format!("it has {} rows", batch.num_rows()))?;
    for row in 0..rows {
        let key: Vec<Option<&str>> = texts.iter().map(|text| value_at(text, row as usize)).collect();
        let place = *places.entry(key).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[place].push(row);
    }
    let mut keyed: Vec<_> = places.into_iter().collect();
    keyed.sort_unstable_by_key(|(_, place)| *place);
    let owned = |key: Vec<Option<&str>>| key.into_iter().map(|value| value.map(str::to_owned)).collect();
    Ok(keyed.into_iter().zip(groups).map(|((key, _), rows)| (owned(key), UInt32Array::from(rows))).collect())
}

/// Rows, in order, whose value in a partition column no partition can be named after: dates and times outside the years
/// 0 to 9999. One of them keeps its batch from being written.
pub fn rows_without_partition(column: &dyn Array) -> Vec<usize> {
    match column.data_type() {
        DataType::Date32 => rows_where::<Date32Type>(column, |day| !text::DAYS.contains(&day)),
        DataType::Timestamp(_, _) => rows_where::<TimestampMicrosecondType>(column, |at| !text::MICROS.contains(&at)),
        _ => Vec::new(),
    }
}

fn rows_where<T: ArrowPrimitiveType>(column: &dyn Array, is_wanted: impl Fn(T::Native) -> bool) -> Vec<usize> {
    let Some(column) = column.as_primitive_opt::<T>() else { return Vec::new() };
    let wanted = column.iter().enumerate().filter(|(_, value)| value.is_some_and(&is_wanted));
    wanted.map(|(row, _)| row).collect()
}

/// `country=AT/day=2024-02-29`, with everything escaped that is not plain.
pub(crate) fn folder(columns: &[String], key: &[Option<String>]) -> String {
    let segments = columns.iter().zip(key).map(|(column, value)| {
        let value =
            value.as_deref().map_or_else(|| NULL_FOLDER.to_owned(), |value| escape(value, LONGEST_FOLDER_VALUE));
        format!("{}={value}", escape(column, LONGEST_FOLDER_VALUE))
    });
    segments.collect::<Vec<_>>().join("/")
}

fn escape(value: &str, longest: usize) -> String {
    let mut escaped = String::new();
    for letter in value.chars() {
        let before = escaped.len();
        let mut bytes = [0; 4];
        for byte in letter.encode_utf8(&mut bytes).bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => escaped.push(char::from(byte)),
                other => write!(escaped, "%{other:02X}").expect("writing to a string cannot fail"),
            }
        }
        if escaped.len() > longest {
            escaped.truncate(before);
            break;
        }
    }
    escaped
}

fn value_at(text: &StringArray, row: usize) -> Option<&str> {
    text.is_valid(row).then(|| text.value(row))
}

fn text_column(batch: &RecordBatch, index: usize) -> Result<StringArray, String> {
    let column = batch.column(index);
    let mut texts = StringBuilder::with_capacity(column.len(), column.len() * 8);
    for row in 0..column.len() {
        if column.is_null(row) {
            texts.append_null();
            continue;
        }
        let text = value_text(column, row).ok_or_else(|| {
            let name = batch.schema_ref().field(index).name().clone();
            format!("row {row} of partition column `{name}` has a value without a text form in Delta")
        })?;
        texts.append_value(text);
    }
    Ok(texts.finish())
}

fn value_text(column: &dyn Array, row: usize) -> Option<String> {
    Some(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).to_owned(),
        DataType::Boolean => column.as_boolean().value(row).to_string(),
        DataType::Int8 => column.as_primitive::<Int8Type>().value(row).to_string(),
        DataType::Int16 => column.as_primitive::<Int16Type>().value(row).to_string(),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(row).to_string(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::Date32 => text::date(column.as_primitive::<Date32Type>().value(row))?,
        DataType::Decimal128(_, scale) => text::decimal(column.as_primitive::<Decimal128Type>().value(row), *scale),
        DataType::Timestamp(_, zone) => {
            let micros = column.as_primitive::<TimestampMicrosecondType>().value(row);
            if zone.is_some() { text::timestamp(micros)? } else { text::local_partition_timestamp(micros)? }
        }
        _ => return None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{ArrayRef, Int32Array},
        datatypes::{Field, Schema},
    };

    use super::*;

    #[test]
    fn rows_are_grouped_in_order_of_first_sight_and_nulls_are_a_group() {
        let days: ArrayRef = Arc::new(StringArray::from(vec![Some("b"), None, Some("a"), Some("b"), Some("")]));
        let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1, 1, 1, 1, 1]));
        let schema = Schema::new(vec![Field::new("d", DataType::Utf8, true), Field::new("n", DataType::Int32, true)]);
        let batch = RecordBatch::try_new(Arc::new(schema), vec![days, numbers]).unwrap();
        let groups = group(&batch, &[0, 1]).unwrap();
        let found: Vec<_> = groups.iter().map(|(key, rows)| (key[0].as_deref(), rows.values().to_vec())).collect();
        assert_eq!(found, [(Some("b"), vec![0, 3]), (None, vec![1]), (Some("a"), vec![2]), (Some(""), vec![4])]);
    }

    #[test]
    fn odd_values_become_safe_folder_names() {
        let name = |value: Option<&str>| folder(&["c d".to_owned()], &[value.map(str::to_owned)]);
        assert_eq!(name(None), "c%20d=__HIVE_DEFAULT_PARTITION__");
        assert_eq!(name(Some("a/b c%ü")), "c%20d=a%2Fb%20c%25%C3%BC");
        assert_eq!(name(Some("..")), "c%20d=..");
        assert_eq!(name(Some(&"ü".repeat(500))).len(), "c%20d=".len() + LONGEST_FOLDER_VALUE);
    }
}

//! What a row must be to get into its table: small enough to travel in one message of a channel, and with a value that a
//! partition can be named after where the table's files are divided.
//!
//! Whoever makes rows rejects those that are not. Further on nobody could: one of them would halt its partition for good.
//! The verdict is on the row alone, uncompressed, so that it is the same on every kind of log and in every batch. Most
//! batches are cleared by a glance at their widest values; only a suspicious row is encoded to be sure.

use std::collections::BTreeMap;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    buffer::OffsetBuffer,
    datatypes::DataType,
};
use batch::{Compression, encode_stream};

/// What the hidden offset column and the framing of compressed buffers may add to a row encoded alone.
const MARGIN_BYTES: usize = 4 << 10;

/// The limits of one table.
#[derive(Clone, Debug)]
pub struct RowLimits {
    max_encoded_bytes: usize,
    partition_by: Vec<String>,
}

/// Why a row cannot get into its table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unstorable {
    /// Alone it is larger than a message.
    #[error("the row takes {encoded_bytes} bytes encoded, a message may hold {max_encoded_bytes}")]
    TooLarge {
        /// Its size.
        encoded_bytes: usize,
        /// The limit.
        max_encoded_bytes: usize,
    },
    /// No partition of the table can be named after it.
    #[error("column `{column}`: the table is partitioned by it, and the year is not one of 0 to 9999")]
    WithoutPartition {
        /// The column.
        column: String,
    },
}

impl RowLimits {
    /// Of a table divided by these columns, whose rows travel in messages of so many bytes at most.
    pub fn new(max_message_bytes: usize, partition_by: &[String]) -> Self {
        Self { max_encoded_bytes: max_message_bytes.saturating_sub(MARGIN_BYTES), partition_by: partition_by.to_vec() }
    }

    /// The rows of a batch that cannot be stored, in order, each once.
    pub fn faults(&self, batch: &RecordBatch) -> Vec<(usize, Unstorable)> {
        let mut faults = BTreeMap::new();
        for column in &self.partition_by {
            let values = batch.column_by_name(column);
            for row in values.map(|values| lake::rows_without_partition(values)).unwrap_or_default() {
                faults.entry(row).or_insert_with(|| Unstorable::WithoutPartition { column: column.clone() });
            }
        }
        if widest_row(batch) >= self.max_encoded_bytes / 2 {
            faults.extend((0..batch.num_rows()).filter_map(|row| Some((row, self.too_large(batch, row)?))));
        }
        faults.into_iter().collect()
    }

    fn too_large(&self, batch: &RecordBatch, row: usize) -> Option<Unstorable> {
        let bytes: usize = batch.columns().iter().map(|column| bytes_of(column, row, 1)).sum();
        let max_encoded_bytes = self.max_encoded_bytes;
        if bytes < max_encoded_bytes / 2 {
            return None;
        }
        let encoded = encode_stream(&batch.slice(row, 1), Compression::None);
        let encoded_bytes = encoded.map_or(usize::MAX, |encoded| encoded.len());
        (encoded_bytes > max_encoded_bytes).then_some(Unstorable::TooLarge { encoded_bytes, max_encoded_bytes })
    }
}

/// An upper bound of what any row takes: the widest value of each column, added up.
fn widest_row(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(widest_value).sum()
}

fn widest_value(column: &ArrayRef) -> usize {
    match column.data_type() {
        DataType::Utf8 => longest(column.as_string::<i32>().offsets()),
        DataType::Binary => longest(column.as_binary::<i32>().offsets()),
        DataType::List(_) | DataType::Struct(_) => {
            (0..column.len()).map(|row| bytes_of(column, row, 1)).max().unwrap_or(0)
        }
        _ => FIXED_BYTES,
    }
}

/// The widest fixed-width value, a decimal.
const FIXED_BYTES: usize = 16;

fn longest(offsets: &OffsetBuffer<i32>) -> usize {
    offsets.windows(2).map(|pair| pair[1] - pair[0]).max().map_or(0, |longest| longest as usize)
}

/// About how many bytes a stretch of a column takes.
fn bytes_of(column: &ArrayRef, start: usize, rows: usize) -> usize {
    let within = |offsets: &OffsetBuffer<i32>| {
        let (from, to) = (offsets[start] as usize, offsets[start + rows] as usize);
        (from, to - from)
    };
    match column.data_type() {
        DataType::Utf8 => within(column.as_string::<i32>().offsets()).1 + 4 * rows,
        DataType::Binary => within(column.as_binary::<i32>().offsets()).1 + 4 * rows,
        DataType::List(_) => {
            let list = column.as_list::<i32>();
            let (from, items) = within(list.offsets());
            bytes_of(list.values(), from, items) + 4 * rows
        }
        DataType::Struct(_) => column.as_struct().columns().iter().map(|child| bytes_of(child, start, rows)).sum(),
        _ => FIXED_BYTES * rows,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{Date32Array, StringArray},
        datatypes::{Field, Schema},
    };

    use super::*;

    fn rows(notes: Vec<String>, days: Vec<Option<i32>>) -> RecordBatch {
        let schema =
            Schema::new(vec![Field::new("note", DataType::Utf8, false), Field::new("day", DataType::Date32, true)]);
        let columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from(notes)), Arc::new(Date32Array::from(days))];
        RecordBatch::try_new(Arc::new(schema), columns).unwrap()
    }

    #[test]
    fn a_row_that_fits_no_message_and_one_without_a_partition_are_named_and_no_other() {
        let notes = vec!["short".to_owned(), "x".repeat(60_000), "x".repeat(100_000), String::new()];
        let batch = rows(notes, vec![Some(0), None, Some(1), Some(20_240_229)]);
        let limits = RowLimits::new(90_000, &["day".to_owned()]);
        let faults = limits.faults(&batch);
        let [(2, Unstorable::TooLarge { encoded_bytes, .. }), (3, Unstorable::WithoutPartition { column })] =
            &faults[..]
        else {
            panic!("{faults:?}");
        };
        assert!(*encoded_bytes > 100_000 && column == "day");
        assert_eq!(RowLimits::new(1 << 20, &[]).faults(&batch), [], "a column that divides no files takes any date");
    }
}

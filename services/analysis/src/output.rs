//! Batches as clients get them: plain strings and bytes instead of the views that are used inside a query, and not too
//! much of them at a time.
//!
//! Views are quick to compute with, and a slice of them encodes all their buffers; clients expect neither. A batch may
//! be of any size: an operator that needs all rows at once puts them out as one.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, GenericListArray, OffsetSizeTrait, RecordBatch, RecordBatchOptions},
    buffer::OffsetBuffer,
    compute::cast,
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
    error::ArrowError,
};

/// Most rows of a chunk.
pub(crate) const CHUNK_ROWS: usize = 8192;
/// About the bytes of a chunk; a row that has more is a chunk of its own.
const CHUNK_BYTES: usize = 1 << 20;

/// The schema of answers with this schema inside.
pub(crate) fn plain_schema(schema: &Schema) -> SchemaRef {
    Arc::new(Schema::new(schema.fields().iter().map(plain_field).collect::<Vec<_>>()))
}

fn plain_field(field: &FieldRef) -> FieldRef {
    Arc::new(Field::new(field.name(), plain_type(field.data_type()), field.is_nullable()))
}

fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::List(item) => DataType::List(plain_field(item)),
        DataType::LargeList(item) => DataType::LargeList(plain_field(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(plain_field).collect()),
        DataType::Dictionary(_, value) => plain_type(value),
        other => other.clone(),
    }
}

/// A batch in the shape of `schema`, which [`plain_schema`] made.
pub(crate) fn plain_batch(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let plain = |(column, field): (&ArrayRef, &FieldRef)| match column.data_type() == field.data_type() {
        true => Ok(Arc::clone(column)),
        false => cast(&own(column)?, field.data_type()),
    };
    let columns = batch.columns().iter().zip(schema.fields()).map(plain).collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
}

/// A column without the items of other rows: a cast of lists casts the items of every row they were sliced from.
fn own(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    match column.data_type() {
        DataType::List(_) => own_items(column.as_list::<i32>()),
        DataType::LargeList(_) => own_items(column.as_list::<i64>()),
        _ => Ok(Arc::clone(column)),
    }
}

fn own_items<O: OffsetSizeTrait>(lists: &GenericListArray<O>) -> Result<ArrayRef, ArrowError> {
    let (item, offsets, items, nulls) = lists.clone().into_parts();
    let (first, last) = (offsets[0].as_usize(), offsets[lists.len()].as_usize());
    let lengths = OffsetBuffer::from_lengths(offsets.lengths());
    Ok(Arc::new(GenericListArray::<O>::try_new(item, lengths, items.slice(first, last - first), nulls)?))
}

/// A plain batch in pieces of about as many bytes as a chunk may have.
pub(crate) fn chunks(batch: &RecordBatch) -> impl Iterator<Item = RecordBatch> {
    let rows = rows_of_a_chunk(batch);
    (0..batch.num_rows()).step_by(rows).map(move |start| batch.slice(start, rows.min(batch.num_rows() - start)))
}

fn rows_of_a_chunk(batch: &RecordBatch) -> usize {
    let bytes = |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or_default();
    let bytes: usize = batch.columns().iter().map(bytes).sum();
    (batch.num_rows().saturating_mul(CHUNK_BYTES) / bytes.max(1)).clamp(1, CHUNK_ROWS)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use arrow::array::{Int64Array, ListBuilder, StringArray, StringViewBuilder};

    use super::*;

    fn batch_of(column: ArrayRef) -> RecordBatch {
        let field = Field::new("column", column.data_type().clone(), true);
        RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![column]).unwrap()
    }

    #[test]
    fn a_slice_of_lists_becomes_plain_without_the_items_of_other_rows() {
        let mut lists = ListBuilder::new(StringViewBuilder::new());
        for number in 0..10 {
            lists.values().append_value(format!("a text that is longer than a view, {number}"));
            lists.append(true);
        }
        let batch = batch_of(Arc::new(lists.finish()));
        let plain = plain_batch(&batch.slice(7, 2), &plain_schema(&batch.schema())).unwrap();
        let lists = plain.column(0).as_list::<i32>();
        assert_eq!((lists.len(), lists.values().len()), (2, 2));
        assert!(lists.value(1).as_string::<i32>().value(0).ends_with(", 8"));
    }

    #[test]
    fn chunks_are_bounded_in_rows_and_bytes_and_lose_nothing() {
        let rows = |column: ArrayRef| chunks(&batch_of(column)).map(|chunk| chunk.num_rows()).collect::<Vec<_>>();
        assert_eq!(rows(Arc::new(Int64Array::from_iter_values(0..20_000))), [8192, 8192, 3616]);
        let wide = "x".repeat(CHUNK_BYTES / 4 - 8);
        assert_eq!(rows(Arc::new(StringArray::from(vec![wide.as_str(); 10]))), [4, 4, 2]);
        let wider = "x".repeat(CHUNK_BYTES * 2);
        assert_eq!(rows(Arc::new(StringArray::from(vec![wider.as_str(); 2]))), [1, 1]);
        assert!(rows(Arc::new(Int64Array::from_iter_values(0..0))).is_empty());
    }
}

//! The schema of a channel's batches: the user's columns and, last, the hidden offset column; and its fingerprint.
//!
//! The fingerprint covers names, types and nullability in order, and nothing else: metadata and dictionary identities
//! differ between equal schemas.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch},
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
};
use xxhash_rust::xxh3::xxh3_128;

/// The input offset a row came from, relative to `origin.from.offset`; the last column of every batch on the wire.
pub const OFFSET_COLUMN: &str = "__offset";

/// A 128-bit identity of a schema (XXH3 of its canonical text).
pub fn fingerprint(schema: &Schema) -> u128 {
    let mut text = String::new();
    for field in schema.fields() {
        describe(field, &mut text);
    }
    xxh3_128(text.as_bytes())
}

/// One field as `name:type[?](children)`, names quoted so that no two schemas share a text.
fn describe(field: &Field, text: &mut String) {
    use std::fmt::Write as _;
    let optional = if field.is_nullable() { "?" } else { "" };
    let written = match field.data_type() {
        DataType::List(_) => write!(text, "{:?}:list{optional}", field.name()),
        DataType::Struct(_) => write!(text, "{:?}:struct{optional}", field.name()),
        other => write!(text, "{:?}:{other}{optional}", field.name()),
    };
    written.expect("writing to a string cannot fail");
    text.push('(');
    match field.data_type() {
        DataType::List(item) => describe(item, text),
        DataType::Struct(fields) => fields.iter().for_each(|child| describe(child, text)),
        _ => {}
    }
    text.push(')');
}

/// The user's columns followed by [`OFFSET_COLUMN`].
pub fn wire_schema(user: &Schema) -> SchemaRef {
    let mut fields: Vec<_> = user.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(OFFSET_COLUMN, DataType::Int64, false)));
    Arc::new(Schema::new(fields))
}

/// The user's columns of a wire schema.
pub fn user_schema(wire: &Schema) -> SchemaRef {
    let fields: Vec<_> = wire.fields().iter().filter(|field| field.name() != OFFSET_COLUMN).cloned().collect();
    Arc::new(Schema::new(fields))
}

/// Adds the offset column. `relative` has one value a row.
///
/// # Errors
/// `ArrowError` when the lengths differ.
pub fn with_offsets(batch: &RecordBatch, relative: Int64Array) -> Result<RecordBatch, ArrowError> {
    let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
    columns.push(Arc::new(relative));
    RecordBatch::try_new(wire_schema(&batch.schema()), columns)
}

/// Takes the offset column off: the user's columns, and the relative offsets.
///
/// # Errors
/// `ArrowError` when the last column is not [`OFFSET_COLUMN`].
pub fn without_offsets(batch: &RecordBatch) -> Result<(RecordBatch, Int64Array), ArrowError> {
    let schema = batch.schema();
    let last = schema.fields().len().checked_sub(1).filter(|&last| schema.field(last).name() == OFFSET_COLUMN);
    let offsets = last.and_then(|last| batch.column(last).as_any().downcast_ref::<Int64Array>());
    let (Some(last), Some(offsets)) = (last, offsets) else {
        return Err(ArrowError::SchemaError(format!("the last column of a channel's batch is not `{OFFSET_COLUMN}`")));
    };
    let columns = batch.columns()[..last].to_vec();
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let user = RecordBatch::try_new_with_options(user_schema(&schema), columns, &options)?;
    Ok((user, offsets.clone()))
}

//! The single-file V1 checkpoint of a log, as actions.
//!
//! Reads only the columns this crate acts on. Tombstones in a checkpoint say nothing about active files and are not
//! read. Deliberately absent: writing one (the library does, see `upkeep`), parts, sidecars.

use std::{collections::BTreeMap, error::Error};

use arrow::{
    array::{Array, ArrayRef, AsArray, MapArray, RecordBatch, StructArray},
    compute::{cast, filter_record_batch, is_not_null},
    datatypes::{DataType, Int64Type},
};
use bytes::Bytes;
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};
use serde_json::Value;

use crate::{
    LakeError,
    commit_log::{Action, AddAction, Checkpoint, LogReader, TxnAction},
};

/// Which actions of a checkpoint are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// `txn`, `metaData` and `protocol`.
    Progress,
    /// Those, and every active file.
    Everything,
}

type Failure = Box<dyn Error + Send + Sync>;

/// Fetches and decodes a checkpoint on a blocking thread.
pub(crate) async fn read(
    reader: &LogReader,
    checkpoint: &Checkpoint,
    wanted: Wanted,
) -> Result<Vec<Action>, LakeError> {
    let (table, version) = (reader.folder().to_owned(), checkpoint.version);
    let missing = || LakeError::broken(&table, version, "the checkpoint is gone");
    let bytes = reader.get(&checkpoint.location).await?.ok_or_else(missing)?;
    let decoded = tokio::task::spawn_blocking(move || decode(bytes, wanted)).await;
    let decoded = decoded.map_err(|panic| LakeError::broken(&table, version, format!("checkpoint: {panic}")))?;
    decoded.map_err(|error| LakeError::broken(&table, version, format!("the checkpoint cannot be decoded: {error}")))
}

fn decode(bytes: Bytes, wanted: Wanted) -> Result<Vec<Action>, Failure> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
    let schema = builder.parquet_schema();
    let leaves = (0..schema.num_columns()).filter(|leaf| is_wanted(schema.column(*leaf).path().parts(), wanted));
    let mask = ProjectionMask::leaves(schema, leaves);
    let mut actions = Vec::new();
    for batch in builder.with_projection(mask).build()? {
        let batch = batch?;
        txns(&batch, &mut actions)?;
        definitions(&batch, &mut actions)?;
        if wanted == Wanted::Everything {
            adds(&batch, &mut actions)?;
        }
    }
    Ok(actions)
}

fn is_wanted(path: &[String], wanted: Wanted) -> bool {
    const FILE_FIELDS: [&str; 6] = ["path", "partitionValues", "size", "modificationTime", "stats", "deletionVector"];
    match path.first().map(String::as_str) {
        Some("txn" | "metaData" | "protocol") => true,
        Some("add") => {
            wanted == Wanted::Everything && path.get(1).is_some_and(|field| FILE_FIELDS.contains(&field.as_str()))
        }
        _ => false,
    }
}

fn txns(batch: &RecordBatch, actions: &mut Vec<Action>) -> Result<(), Failure> {
    let Some(column) = batch.column_by_name("txn") else { return Ok(()) };
    let column = column.as_struct_opt().ok_or("`txn` is not a struct")?;
    let ids = typed(column, "appId", &DataType::Utf8)?;
    let versions = typed(column, "version", &DataType::Int64)?;
    for row in (0..column.len()).filter(|row| column.is_valid(*row)) {
        // Left out, it would count as 0, and what is stored would be stored again.
        let (ids, versions) = ids.as_ref().zip(versions.as_ref()).ok_or("a `txn` has no `appId` or no `version`")?;
        let app_id = ids.as_string::<i32>().value(row).to_owned();
        let version = versions.as_primitive::<Int64Type>().value(row);
        actions.push(Action { txn: Some(TxnAction { app_id, version }), ..Action::default() });
    }
    Ok(())
}

// One row each: the way through JSON is short and keeps one definition of both actions.
fn definitions(batch: &RecordBatch, actions: &mut Vec<Action>) -> Result<(), Failure> {
    for name in ["metaData", "protocol"] {
        let Ok(index) = batch.schema().index_of(name) else { continue };
        let rows = filter_record_batch(&batch.project(&[index])?, &is_not_null(batch.column(index))?)?;
        if rows.num_rows() == 0 {
            continue;
        }
        let mut json = arrow::json::LineDelimitedWriter::new(Vec::new());
        json.write(&rows)?;
        json.finish()?;
        for action in serde_json::Deserializer::from_slice(&json.into_inner()).into_iter() {
            actions.push(action?);
        }
    }
    Ok(())
}

fn adds(batch: &RecordBatch, actions: &mut Vec<Action>) -> Result<(), Failure> {
    let Some(column) = batch.column_by_name("add") else { return Ok(()) };
    let column = column.as_struct_opt().ok_or("`add` is not a struct")?;
    let paths = typed(column, "path", &DataType::Utf8)?.ok_or("`add.path` is missing")?;
    let sizes = typed(column, "size", &DataType::Int64)?.ok_or("`add.size` is missing")?;
    let modified = typed(column, "modificationTime", &DataType::Int64)?;
    let stats = typed(column, "stats", &DataType::Utf8)?;
    let vectors = column.column_by_name("deletionVector");
    let partitions = column.column_by_name("partitionValues").and_then(|values| values.as_map_opt());
    for row in (0..column.len()).filter(|row| column.is_valid(*row)) {
        let stats = stats.as_ref().filter(|stats| stats.is_valid(row));
        actions.push(Action {
            add: Some(AddAction {
                path: paths.as_string::<i32>().value(row).to_owned(),
                partition_values: partitions.map(|map| map_row(map, row)).transpose()?.unwrap_or_default(),
                size: sizes.as_primitive::<Int64Type>().value(row),
                modification_time: modified.as_ref().map_or(0, |column| column.as_primitive::<Int64Type>().value(row)),
                stats: stats.map(|stats| stats.as_string::<i32>().value(row).to_owned()),
                deletion_vector: vectors.filter(|vectors| vectors.is_valid(row)).map(|_| Value::Bool(true)),
            }),
            ..Action::default()
        });
    }
    Ok(())
}

fn typed(column: &StructArray, name: &str, data_type: &DataType) -> Result<Option<ArrayRef>, Failure> {
    let Some(field) = column.column_by_name(name) else { return Ok(None) };
    Ok(Some(cast(field, data_type)?))
}

fn map_row(map: &MapArray, row: usize) -> Result<BTreeMap<String, Option<String>>, Failure> {
    if map.is_null(row) {
        return Ok(BTreeMap::new());
    }
    let entries = map.value(row);
    let keys = cast(entries.column(0), &DataType::Utf8)?;
    let values = cast(entries.column(1), &DataType::Utf8)?;
    let values = values.as_string::<i32>();
    let pairs = keys.as_string::<i32>().iter().zip(values.iter());
    Ok(pairs.filter_map(|(key, value)| Some((key?.to_owned(), value.map(str::to_owned)))).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{Int32Array, LargeStringArray},
        datatypes::Field,
    };
    use parquet::arrow::ArrowWriter;

    use super::*;

    fn checkpoint_with(txn: StructArray) -> Bytes {
        let batch = RecordBatch::try_from_iter([("txn", Arc::new(txn) as ArrayRef)]).unwrap();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes.into()
    }

    #[test]
    fn positions_are_read_whatever_types_another_program_wrote_them_with_and_never_left_out() {
        let column =
            |name: &str, values: ArrayRef| (Arc::new(Field::new(name, values.data_type().clone(), true)), values);
        let ids = column("appId", Arc::new(LargeStringArray::from(vec!["a", "b"])));
        let versions = column("version", Arc::new(Int32Array::from(vec![7, 8])));
        let read = decode(checkpoint_with(StructArray::from(vec![ids.clone(), versions])), Wanted::Progress).unwrap();
        let read: Vec<_> =
            read.into_iter().filter_map(|action| action.txn).map(|txn| (txn.app_id, txn.version)).collect();
        assert_eq!(read, [("a".to_owned(), 7), ("b".to_owned(), 8)]);
        assert!(decode(checkpoint_with(StructArray::from(vec![ids])), Wanted::Progress).is_err());
    }
}

//! Active files against what the log says of them: there, of that size, with that many rows, from that stretch.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Int64Type},
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use object_store::{Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, path::Path};
use parquet::{
    arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder},
    file::metadata::ParquetMetaDataReader,
};

use super::{ActiveFile, Audit, Show, Stretches, rows_of};
use crate::{Lake, LakeError, OFFSET_COLUMN, PARTITION_COLUMN, ambient::Ambient, retry};

/// Footers looked at at a time.
const FOOTERS_AT_ONCE: usize = 16;
/// Whole files held at a time.
const FILES_AT_ONCE: usize = 2;
/// What is fetched of a file's end to look for its footer: all of a small file.
const END_BYTES: u64 = 64 << 10;
/// `PAR1` and the length of the metadata before it.
const TAIL_BYTES: u64 = 8;

/// Which rows an audit shows, and to whom.
pub struct Rows<'a> {
    /// Columns to read; the hidden ones that say where a row came from are read besides.
    pub columns: &'a [&'a str],
    /// Called for each batch, in the order of files and rows.
    pub show: &'a mut Show<'a>,
}

impl std::fmt::Debug for Rows<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Rows").field("columns", &self.columns).finish_non_exhaustive()
    }
}

/// What is wrong with a file, or the store's failure.
enum Trouble {
    Fault(String),
    Store(LakeError),
}

/// Checks every active file.
pub(super) async fn check(
    lake: &Lake,
    folder: &str,
    active: &HashMap<String, ActiveFile>,
    stretches: &Stretches,
    rows: Option<Rows<'_>>,
    audit: &mut Audit,
) -> Result<(), LakeError> {
    let mut files: Vec<(Path, &ActiveFile)> = Vec::new();
    for (logged, file) in active {
        match location(folder, logged) {
            Some(path) => files.push((path, file)),
            None => audit.fault(file.version, format!("`{logged}` lies outside the table's folder")),
        }
    }
    files.sort_unstable_by_key(|(_, file)| file.order);
    let store = Stored { store: lake.store(), ambient: lake.ambient.clone() };
    match rows {
        None => {
            let footers = files.iter().map(|(path, file)| {
                let store = &store;
                async move { (*file, store.footer_rows(path, file).await) }
            });
            let mut footers = stream::iter(footers).buffered(FOOTERS_AT_ONCE);
            while let Some((file, found)) = footers.next().await {
                settle(file, found, audit)?;
            }
        }
        Some(mut rows) => {
            let fetches = files.iter().map(|(path, file)| {
                let store = &store;
                async move { (*file, store.end(path, file, 0).await) }
            });
            let mut fetches = stream::iter(fetches).buffered(FILES_AT_ONCE);
            while let Some((file, bytes)) = fetches.next().await {
                let found = bytes.and_then(|bytes| read(file, bytes, stretches, &mut rows, audit));
                settle(file, found, audit)?;
            }
        }
    }
    Ok(())
}

fn settle(file: &ActiveFile, found: Result<u64, Trouble>, audit: &mut Audit) -> Result<(), LakeError> {
    let path = &file.add.path;
    match found {
        Ok(found) => {
            audit.rows += found;
            let logged = rows_of(&file.add);
            if logged.is_some_and(|logged| logged != found) {
                let logged = logged.unwrap_or_default();
                audit.fault(file.version, format!("`{path}` has {found} rows, the log says {logged}"));
            }
        }
        Err(Trouble::Fault(what)) => audit.fault(file.version, format!("`{path}` {what}")),
        Err(Trouble::Store(error)) => return Err(error),
    }
    Ok(())
}

fn location(folder: &str, logged: &str) -> Option<Path> {
    if logged.starts_with('/') || logged.contains("://") {
        return None;
    }
    let inside = Path::from_url_path(logged).ok()?;
    Path::parse(format!("{}/{inside}", Lake::folder_path(folder))).ok()
}

struct Stored {
    store: Arc<dyn ObjectStore>,
    ambient: Ambient,
}

impl Stored {
    /// How many rows the footer of a file of the logged size says.
    async fn footer_rows(&self, path: &Path, file: &ActiveFile) -> Result<u64, Trouble> {
        let size = logged_size(file)?;
        let end = self.end(path, file, size.saturating_sub(END_BYTES)).await?;
        let tail = &end[end.len() - TAIL_BYTES as usize..];
        let length = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
        let start = (size - TAIL_BYTES).checked_sub(length).filter(|_| tail.ends_with(b"PAR1"));
        let start = start.ok_or_else(|| Trouble::Fault("has no Parquet footer".to_owned()))?;
        // A long footer of a large file is the rare case.
        let end = if size - start > end.len() as u64 { self.end(path, file, start).await? } else { end };
        let footer = end.slice(end.len() - (size - start) as usize..end.len() - TAIL_BYTES as usize);
        let metadata = ParquetMetaDataReader::decode_metadata(&footer);
        let metadata = metadata.map_err(|error| Trouble::Fault(format!("has a broken footer: {error}")))?;
        u64::try_from(metadata.file_metadata().num_rows())
            .map_err(|_| Trouble::Fault("has fewer than 0 rows".to_owned()))
    }

    /// A file of the logged size from there to its end, at least its last eight bytes: one request, where all is well.
    async fn end(&self, path: &Path, file: &ActiveFile, from: u64) -> Result<Bytes, Trouble> {
        let size = logged_size(file)?;
        if size < TAIL_BYTES {
            self.check_size(path, file).await?;
            return Err(Trouble::Fault("is too short for Parquet".to_owned()));
        }
        let fetched = retry::repeat(&self.ambient, || async {
            let options = GetOptions { range: Some(GetRange::Bounded(from..size)), ..GetOptions::default() };
            let found = self.store.get_opts(path, options).await?;
            Ok((found.meta.size, found.bytes().await?))
        });
        match fetched.await {
            Ok((found, bytes)) if found == size && bytes.len() as u64 == size - from => Ok(bytes),
            // A file of another size is told from a store that fails.
            Ok(_) => {
                self.check_size(path, file).await?;
                Err(Trouble::Fault("is shorter than it says".to_owned()))
            }
            Err(error) => {
                self.check_size(path, file).await?;
                Err(trouble(path, error))
            }
        }
    }

    async fn check_size(&self, path: &Path, file: &ActiveFile) -> Result<(), Trouble> {
        let found =
            retry::repeat(&self.ambient, || self.store.head(path)).await.map_err(|error| trouble(path, error))?;
        let logged = file.add.size;
        if i128::from(found.size) != i128::from(logged) {
            return Err(Trouble::Fault(format!("has {} bytes, the log says {logged}", found.size)));
        }
        Ok(())
    }
}

fn logged_size(file: &ActiveFile) -> Result<u64, Trouble> {
    u64::try_from(file.add.size).map_err(|_| Trouble::Fault("has fewer than 0 bytes by the log".to_owned()))
}

fn trouble(path: &Path, error: Error) -> Trouble {
    match error {
        Error::NotFound { .. } => Trouble::Fault("is missing from the store".to_owned()),
        error => Trouble::Store(LakeError::store("reading", path, error)),
    }
}

/// Reads a file's rows, shows them, and compares where they came from with what its commit covers.
fn read(
    file: &ActiveFile,
    bytes: Bytes,
    stretches: &Stretches,
    rows: &mut Rows<'_>,
    audit: &mut Audit,
) -> Result<u64, Trouble> {
    let broken = |error: &dyn std::fmt::Display| Trouble::Fault(format!("cannot be read: {error}"));
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|error| broken(&error))?;
    let said = builder.metadata().file_metadata().num_rows();
    let schema = builder.parquet_schema();
    let wanted = |name: &str| rows.columns.contains(&name) || name == OFFSET_COLUMN || name == PARTITION_COLUMN;
    let leaves = (0..schema.num_columns())
        .filter(|leaf| schema.column(*leaf).path().parts().first().is_some_and(|name| wanted(name)));
    let mask = ProjectionMask::leaves(schema, leaves.collect::<Vec<_>>());
    let batches = builder.with_projection(mask).build().map_err(|error| broken(&error))?;
    let (mut found, mut stray) = (0, 0);
    for batch in batches {
        let batch = batch.map_err(|error| broken(&error))?;
        found += batch.num_rows() as u64;
        stray += strays(file, &batch, stretches).map_err(|error| broken(&error))?;
        (rows.show)(&batch);
    }
    if stray > 0 {
        let what = format!("`{}` has {stray} rows from input that its commit does not cover", file.add.path);
        audit.fault(file.version, what);
    }
    if i128::from(said) != i128::from(found) {
        return Err(Trouble::Fault(format!("has {found} rows, its footer says {said}")));
    }
    Ok(found)
}

fn strays(file: &ActiveFile, batch: &RecordBatch, stretches: &Stretches) -> Result<u64, String> {
    let column = |name: &str| {
        let column = batch.column_by_name(name).ok_or_else(|| format!("it has no column `{name}`"))?;
        cast(column, &DataType::Int64).map_err(|error| error.to_string())
    };
    let (partitions, offsets) = (column(PARTITION_COLUMN)?, column(OFFSET_COLUMN)?);
    let (partitions, offsets) = (partitions.as_primitive::<Int64Type>(), offsets.as_primitive::<Int64Type>());
    let stray = |row: &usize| {
        let known = partitions.is_valid(*row) && offsets.is_valid(*row);
        known && stretches.covers(file.version, partitions.value(*row), offsets.value(*row)) == Some(false)
    };
    Ok((0..batch.num_rows()).filter(stray).count() as u64)
}

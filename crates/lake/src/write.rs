//! Rows to Parquet files in memory, and files to the store.
//!
//! The invariant: encoding is pure CPU and touches no store, so it runs on a blocking thread, and a failed upload
//! repeats the same bytes under the same name; nothing is encoded twice or lost with a buffer. Names are unguessable
//! and created only where absent.
//!
//! An own writer on `ArrowWriter` rather than the library's `DeltaWriter`: that one uploads while it encodes (on the
//! async threads), drops the whole window when a write fails, cannot retry one file, and derives its statistics from
//! footers that cut strings and have no room for exact decimals.
//!
//! Rows of a partition wait as they are until there are enough for an encoder of their own, which takes tens of
//! kilobytes for each column before its first row: what waits is held for thousands of partitions, an encoder is not.
//! Rows of a table without partitions are encoded at once.
//!
//! Layout: ZSTD level 1 (level 3 costs 1.6 times the time for 1 % of the bytes); row groups of up to a million rows;
//! page statistics and page index for every column that has an order, since they are free in size and time where
//! measured and let readers skip pages; none for binary, list and struct columns, whose bounds nobody uses; none for
//! floats, since Parquet leaves NaN out of bounds, and readers to whom NaN is above every number would skip it. Times
//! and offsets are delta-packed without a dictionary; random binary gets no dictionary either.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, RecordBatch, UInt32Array},
    compute::{concat_batches, take_record_batch},
    datatypes::{DataType, SchemaRef},
    error::ArrowError,
};
use bytes::Bytes;
use object_store::{Error, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, Encoding, ZstdLevel},
    errors::ParquetError,
    file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder},
    schema::types::ColumnPath,
};
use uuid::Uuid;

use crate::{
    DataFile, Lake, LakeError, OFFSET_COLUMN, TableSpec,
    ambient::Ambient,
    column_stats::FileStatistics,
    metrics,
    partitions::{self, PartitionKey},
    retry, schema,
};

const ROWS_PER_ROW_GROUP: usize = 1 << 20;
const ROWS_PER_PAGE: usize = 20_000;
/// Above this a file goes up in parts.
const LARGEST_SINGLE_PUT: usize = 16 << 20;
const PART_BYTES: usize = 8 << 20;
const PARTS_AT_ONCE: usize = 4;
/// So many bytes of a partition's rows make its encoder worth its memory.
const ENCODE_FROM: usize = 1 << 20;
/// So many batches of about the same size that wait are put together: a message may have one row for each partition.
const BATCHES_APART: usize = 8;
/// What an array takes besides its values, roughly.
const ARRAY_BYTES: usize = 300;

/// How files are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriterOptions {
    /// ZSTD level, 1 to 22.
    pub compression_level: i32,
    /// How many partitions are encoded at a time; beyond it the one with the most bytes is closed. Any number may wait
    /// with less than a megabyte each.
    pub max_open_partitions: usize,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self { compression_level: 1, max_open_partitions: 64 }
    }
}

/// Encodes rows of one table. All methods are CPU work for a blocking thread.
pub struct FileWriter {
    ambient: Ambient,
    spec: TableSpec,
    options: WriterOptions,
    properties: WriterProperties,
    file_schema: SchemaRef,
    /// Places of the partition columns and of all others in the table's schema.
    partition_columns: Vec<usize>,
    file_columns: Vec<usize>,
    open: BTreeMap<PartitionKey, OpenFile>,
    closed: Vec<EncodedFile>,
    rows: u64,
}

struct OpenFile {
    /// Rows that are not encoded yet, in order; none once there is a writer.
    waiting: Vec<RecordBatch>,
    waiting_bytes: usize,
    writer: Option<ArrowWriter<Vec<u8>>>,
    statistics: FileStatistics,
}

/// A whole Parquet file, not uploaded yet. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodedFile {
    /// Where it will lie, relative to the table's folder.
    pub path: String,
    /// The file.
    pub bytes: Bytes,
    /// How many rows it holds.
    pub rows: u64,
    folder: String,
    table: String,
    partition_values: BTreeMap<String, Option<String>>,
    stats: String,
}

impl std::fmt::Debug for FileWriter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("FileWriter");
        shown.field("table", &self.spec.name).field("rows", &self.rows).field("open", &self.open.len());
        shown.finish_non_exhaustive()
    }
}

impl FileWriter {
    /// A writer without rows.
    ///
    /// # Errors
    /// `Column` for a spec no table can have; `Parquet` for options Parquet does not know.
    pub fn new(lake: &Lake, spec: &TableSpec, options: WriterOptions) -> Result<Self, LakeError> {
        spec.validate()?;
        let is_partition = |index: &usize| spec.partition_by.contains(spec.schema.field(*index).name());
        let file_columns: Vec<usize> = (0..spec.schema.fields().len()).filter(|index| !is_partition(index)).collect();
        let choosing = |error: ArrowError| LakeError::parquet("choosing columns", &spec.name, error);
        let file_schema = Arc::new(spec.schema.project(&file_columns).map_err(choosing)?);
        let place = |column: &String| spec.schema.index_of(column).map_err(choosing);
        Ok(Self {
            ambient: lake.ambient.clone(),
            properties: properties(spec, &file_schema, options)?,
            partition_columns: spec.partition_by.iter().map(place).collect::<Result<_, _>>()?,
            spec: spec.clone(),
            options,
            file_schema,
            file_columns,
            open: BTreeMap::new(),
            closed: Vec::new(),
            rows: 0,
        })
    }

    /// Takes rows in.
    ///
    /// # Errors
    /// `Batch` when the columns are not the table's, or a partition value cannot be written down: nothing of the
    /// batch was taken. `Parquet`: the writer cannot be used any more.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), LakeError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let batch = self.fitted(batch)?;
        let refuse = |reason| LakeError::Batch { table: self.spec.name.clone(), reason };
        if self.partition_columns.is_empty() {
            self.write_to(Vec::new(), &batch)?;
        } else {
            let groups = partitions::group(&batch, &self.partition_columns).map_err(refuse)?;
            let single = groups.len() == 1;
            for (key, rows) in groups {
                let part = if single { batch.clone() } else { self.taken(&batch, &rows)? };
                self.write_to(key, &part)?;
            }
        }
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    /// Bytes held in memory: encoded files and rows not encoded yet.
    pub fn buffered_bytes(&self) -> usize {
        let closed: usize = self.closed.iter().map(|file| file.bytes.len()).sum();
        closed + self.open.values().map(OpenFile::bytes).sum::<usize>()
    }

    /// Rows taken in so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Finishes every file. No files when no rows were written.
    ///
    /// # Errors
    /// `Parquet`; the rows must be written anew from where they came.
    pub fn close(mut self) -> Result<Vec<EncodedFile>, LakeError> {
        while let Some((key, file)) = self.open.pop_first() {
            self.finish(&key, file)?;
        }
        Ok(self.closed)
    }

    /// The batch under the table's own schema, so that only equal columns ever meet.
    fn fitted(&self, batch: &RecordBatch) -> Result<RecordBatch, LakeError> {
        let refuse = |reason| LakeError::Batch { table: self.spec.name.clone(), reason };
        if let Some(difference) = type_difference(&self.spec.schema, &batch.schema()) {
            return Err(refuse(difference));
        }
        let columns = self.spec.schema.fields().iter().zip(batch.columns());
        let columns = columns.map(|(field, column)| {
            if field.data_type() == column.data_type() {
                return Ok(Arc::clone(column));
            }
            arrow::compute::cast(column, field.data_type())
        });
        let columns = columns.collect::<Result<Vec<_>, _>>().map_err(|error| refuse(error.to_string()))?;
        RecordBatch::try_new(Arc::clone(&self.spec.schema), columns).map_err(|error| refuse(error.to_string()))
    }

    fn taken(&self, batch: &RecordBatch, rows: &UInt32Array) -> Result<RecordBatch, LakeError> {
        take_record_batch(batch, rows).map_err(|error| LakeError::parquet("splitting a batch", &self.spec.name, error))
    }

    fn write_to(&mut self, key: PartitionKey, batch: &RecordBatch) -> Result<(), LakeError> {
        let projected = batch
            .project(&self.file_columns)
            .map_err(|error| LakeError::parquet("choosing columns", &self.spec.name, error))?;
        if !self.open.contains_key(&key) {
            let file = self.start();
            self.open.insert(key.clone(), file);
        }
        let file = self.open.get_mut(&key).expect("the file was opened above");
        file.statistics.take(batch);
        if let Some(writer) = &mut file.writer {
            return writer.write(&projected).map_err(|error| LakeError::parquet("encoding", &self.spec.name, error));
        }
        file.wait(projected).map_err(|error| LakeError::parquet("joining batches", &self.spec.name, error))?;
        let is_enough = self.partition_columns.is_empty() || file.waiting_bytes >= ENCODE_FROM;
        if is_enough { self.encode(key) } else { Ok(()) }
    }

    fn start(&self) -> OpenFile {
        let place = |name: &str| self.spec.schema.index_of(name).unwrap_or_default();
        let columns = self.spec.statistics_columns().map(|field| (place(field.name()), field));
        OpenFile { waiting: Vec::new(), waiting_bytes: 0, writer: None, statistics: FileStatistics::new(columns) }
    }

    /// Gives a file whose rows wait a writer.
    fn encode(&mut self, key: PartitionKey) -> Result<(), LakeError> {
        self.make_room()?;
        if let Some(mut file) = self.open.remove(&key) {
            file.writer = Some(self.writer_of(&mut file)?);
            self.open.insert(key, file);
        }
        Ok(())
    }

    /// The writer of a file, or a new one, with all of the file's rows in it.
    fn writer_of(&self, file: &mut OpenFile) -> Result<ArrowWriter<Vec<u8>>, LakeError> {
        let encoding = |error: ParquetError| LakeError::parquet("encoding", &self.spec.name, error);
        let new = || ArrowWriter::try_new(Vec::new(), Arc::clone(&self.file_schema), Some(self.properties.clone()));
        let mut writer = file.writer.take().map_or_else(new, Ok).map_err(encoding)?;
        file.waiting_bytes = 0;
        for batch in std::mem::take(&mut file.waiting) {
            writer.write(&batch).map_err(encoding)?;
        }
        Ok(writer)
    }

    fn make_room(&mut self) -> Result<(), LakeError> {
        while self.encoding().count() >= self.options.max_open_partitions.max(1) {
            let largest = self.encoding().max_by_key(|(_, file)| file.bytes()).map(|(key, _)| key.clone());
            let Some((key, file)) = largest.and_then(|key| self.open.remove_entry(&key)) else { break };
            self.finish(&key, file)?;
        }
        Ok(())
    }

    /// Files with a writer.
    fn encoding(&self) -> impl Iterator<Item = (&PartitionKey, &OpenFile)> {
        self.open.iter().filter(|(_, file)| file.writer.is_some())
    }

    fn finish(&mut self, key: &PartitionKey, mut file: OpenFile) -> Result<(), LakeError> {
        let bytes = self.writer_of(&mut file)?.into_inner();
        let bytes = bytes.map_err(|error| LakeError::parquet("finishing a file", &self.spec.name, error))?;
        let name = file_name(self.ambient.uuid());
        let folder = partitions::folder(&self.spec.partition_by, key);
        self.closed.push(EncodedFile {
            path: if folder.is_empty() { name } else { format!("{folder}/{name}") },
            bytes: bytes.into(),
            rows: file.statistics.rows(),
            folder: self.spec.folder.clone(),
            table: self.spec.name.clone(),
            partition_values: self.spec.partition_by.iter().cloned().zip(key.iter().cloned()).collect(),
            stats: file.statistics.to_json(),
        });
        Ok(())
    }
}

impl OpenFile {
    fn bytes(&self) -> usize {
        self.waiting_bytes + self.writer.as_ref().map_or(0, |writer| writer.inner().len() + writer.memory_size())
    }

    fn wait(&mut self, batch: RecordBatch) -> Result<(), ArrowError> {
        self.waiting_bytes += held_bytes(&batch);
        self.waiting.push(batch);
        while let Some(first) = self.carried() {
            let apart = self.waiting.split_off(first);
            let together = concat_batches(apart[0].schema_ref(), &apart)?;
            self.waiting_bytes += held_bytes(&together);
            self.waiting_bytes -= apart.iter().map(held_bytes).sum::<usize>();
            self.waiting.push(together);
        }
        Ok(())
    }

    /// The first of the newest batches, where they are to be put together. As a counter carries: so no row is copied
    /// more often than the number of rows has digits.
    fn carried(&self) -> Option<usize> {
        let first = self.waiting.len().checked_sub(BATCHES_APART)?;
        let newest = self.waiting.last()?.num_rows();
        (self.waiting[first].num_rows() < BATCHES_APART * newest).then_some(first)
    }
}

fn held_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(array_bytes).sum()
}

/// Of buffers that an array shares (with the message it was cut from), its own part.
fn array_bytes(array: &ArrayRef) -> usize {
    array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_array_memory_size()) + ARRAY_BYTES
}

const NAME_BEFORE: &str = "part-";
const NAME_AFTER: &str = ".zstd.parquet";

fn file_name(id: Uuid) -> String {
    format!("{NAME_BEFORE}{id}{NAME_AFTER}")
}

/// Whether a file of a table has a name as this module gives them. Other programs put a number between `part-` and
/// their id.
pub(crate) fn is_ours(path: &str) -> bool {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    let id = name.strip_prefix(NAME_BEFORE).and_then(|rest| rest.strip_suffix(NAME_AFTER));
    id.is_some_and(|id| Uuid::try_parse(id).is_ok())
}

/// As `schema::difference`, but a column that may be null in the table need not be nullable in the batch.
fn type_difference(table: &SchemaRef, batch: &SchemaRef) -> Option<String> {
    let (expected, found) = (table.fields().len(), batch.fields().len());
    if expected != found {
        return Some(format!("it has {found} columns, expected {expected}"));
    }
    let mut pairs = table.fields().iter().zip(batch.fields());
    let (field, other) = pairs.find(|(field, other)| {
        field.name() != other.name() || !schema::same_type(field.data_type(), other.data_type())
    })?;
    Some(format!(
        "it has column `{}` of type {} where `{}` of type {} was expected",
        other.name(),
        other.data_type(),
        field.name(),
        field.data_type()
    ))
}

fn properties(spec: &TableSpec, schema: &SchemaRef, options: WriterOptions) -> Result<WriterProperties, LakeError> {
    let level = ZstdLevel::try_new(options.compression_level)
        .map_err(|error| LakeError::parquet("setting the compression level", &spec.name, error))?;
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(ROWS_PER_ROW_GROUP))
        .set_data_page_row_count_limit(ROWS_PER_PAGE)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_created_by(crate::append::ENGINE.to_owned());
    for field in schema.fields() {
        let column = ColumnPath::from(field.name().as_str());
        match field.data_type() {
            DataType::List(_) | DataType::Struct(_) | DataType::Float32 | DataType::Float64 => continue,
            DataType::Binary => {
                properties = properties.set_column_dictionary_enabled(column, false);
                continue;
            }
            DataType::Timestamp(..) => properties = delta_packed(properties, &column),
            DataType::Int64 if field.name() == OFFSET_COLUMN => properties = delta_packed(properties, &column),
            _ => {}
        }
        properties = properties.set_column_statistics_enabled(column, EnabledStatistics::Page);
    }
    Ok(properties.build())
}

fn delta_packed(properties: WriterPropertiesBuilder, column: &ColumnPath) -> WriterPropertiesBuilder {
    properties
        .set_column_dictionary_enabled(column.clone(), false)
        .set_column_encoding(column.clone(), Encoding::DELTA_BINARY_PACKED)
}

impl EncodedFile {
    /// Puts the file into the store. May be called again after an error; it is the same file then. Cancel safe: a
    /// file that is not committed is nobody's and is cleaned up some day.
    ///
    /// # Errors
    /// `Store` by the store's class; `Overwrite` (stop) when the name is taken by something else.
    pub async fn upload(&self, lake: &Lake) -> Result<DataFile, LakeError> {
        let location = Path::parse(format!("{}/{}", Lake::folder_path(&self.folder), self.path))
            .map_err(|error| LakeError::store("writing", &self.path, error.into()))?;
        let store = lake.store();
        let mut attempt = 1;
        loop {
            let error = match self.put(store.as_ref(), &location).await {
                Ok(()) => break,
                Err(taken @ (Error::AlreadyExists { .. } | Error::Precondition { .. })) => {
                    // An earlier request of ours whose answer was lost, or another's file: only the bytes can tell.
                    match self.stored(lake, &location).await? {
                        Some(bytes) if bytes == self.bytes => break,
                        Some(_) => return Err(LakeError::Overwrite { path: location.to_string() }),
                        // S3's 409: an earlier request of ours was under way, and came to nothing.
                        None => taken,
                    }
                }
                Err(error) => error,
            };
            if attempt >= retry::REQUEST_ATTEMPTS || !may_pass(&error) {
                return Err(LakeError::store("writing", location, error));
            }
            retry::back_off(&lake.ambient, attempt).await;
            attempt += 1;
        }
        metrics::file_uploaded(&self.table, self.bytes.len() as u64, attempt - 1);
        Ok(DataFile {
            path: self.path.clone(),
            size: self.bytes.len() as u64,
            rows: self.rows,
            partition_values: self.partition_values.clone(),
            stats: self.stats.clone(),
            modified_ms: lake.now_ms(),
        })
    }

    async fn put(&self, store: &dyn ObjectStore, location: &Path) -> Result<(), Error> {
        if self.bytes.len() <= LARGEST_SINGLE_PUT {
            let payload = PutPayload::from_bytes(self.bytes.clone());
            return store.put_opts(location, payload, PutOptions::from(PutMode::Create)).await.map(drop);
        }
        // A multipart upload overwrites, so look first; the random name leaves nobody to race with.
        match store.head(location).await {
            Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
            Ok(_) => {
                return Err(Error::AlreadyExists { path: location.to_string(), source: "found before upload".into() });
            }
        }
        let mut upload = store.put_multipart(location).await?;
        match self.put_parts(upload.as_mut()).await {
            Ok(()) => Ok(()),
            Err(error) => {
                if let Err(abort) = upload.abort().await {
                    tracing::debug!(%location, error = %abort, "parts of a failed upload not removed");
                }
                Err(error)
            }
        }
    }

    async fn put_parts(&self, upload: &mut dyn MultipartUpload) -> Result<(), Error> {
        let parts: Vec<usize> = (0..self.bytes.len()).step_by(PART_BYTES).collect();
        for wave in parts.chunks(PARTS_AT_ONCE) {
            let part = |start: usize| self.bytes.slice(start..(start + PART_BYTES).min(self.bytes.len()));
            let sent: Vec<_> = wave.iter().map(|start| upload.put_part(part(*start).into())).collect();
            futures::future::try_join_all(sent).await?;
        }
        upload.complete().await.map(drop)
    }

    /// What lies under the file's name; `None` when there is nothing.
    async fn stored(&self, lake: &Lake, location: &Path) -> Result<Option<Bytes>, LakeError> {
        let store = lake.store();
        let read = retry::repeat(&lake.ambient, || async { store.get(location).await?.bytes().await }).await;
        match read {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(LakeError::store("reading", location, error)),
        }
    }
}

/// Whether a put may succeed when it is made again. "Taken" comes here only where nothing was found. "Not found" is
/// what a client is told that repeats the completion of an upload; a bucket that is gone is told all the same.
fn may_pass(error: &Error) -> bool {
    let is_answer = matches!(error, Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotFound { .. });
    is_answer || retry::is_weather(error)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

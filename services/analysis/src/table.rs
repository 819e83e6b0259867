//! A Delta table at one version, as DataFusion scans it: a plain `DataSourceExec` over the files that may matter.
//!
//! The invariant: a [`SnapshotParquetTable`] never looks at the store's present; every scan of it reads the files of
//! its pinned snapshot, so all references to a table in one query see the same rows. Files are left out when the
//! Delta log alone proves that no row of theirs can match. Deliberately absent: deletion vectors and column mapping,
//! which no writer of ours uses, and any writing.

use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{DFSchema, Result, Statistics, internal_datafusion_err, stats::Precision},
    datasource::{
        TableType,
        listing::PartitionedFile,
        physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource, parquet::CachedParquetFileReaderFactory},
        source::DataSourceExec,
        table_schema::TableSchema,
    },
    execution::object_store::ObjectStoreUrl,
    logical_expr::{Expr, TableProviderFilterPushDown, utils::conjunction},
    physical_expr::PhysicalExpr,
    physical_optimizer::pruning::PruningPredicateBuilder,
    physical_plan::{ExecutionPlan, empty::EmptyExec},
};
use lake::{OFFSET_COLUMN, PARTITION_COLUMN, Snapshot};
use object_store::path::Path;
use pipeline::TableStage;

use crate::{
    metrics,
    statistics::{FileBounds, column_statistics, partition_statistics, partition_value},
};

/// Where the table store is registered in a query's runtime; a name of our own, so that no SQL can reach another.
pub(crate) const STORE_URL: &str = "tailwater://store/";

/// Projections wider than this, beyond the filtered columns, are worth decoding only for rows that pass.
const LATE_COLUMNS: usize = 3;
/// What is fetched first of a file's end: footer and page index in one request instead of three.
const FOOTER_BYTES: usize = 64 << 10;
/// A batch decoded from a table has about as many bytes at most. It is outside of every budget while it is decoded, and
/// there is one for each core. No smaller: each batch of a narrow column holds on to a page of it, and a sort of many
/// small batches counts that page once for each.
const BATCH_BYTES: u64 = 64 << 20;
/// What a byte of a file may become, by and large: text that repeats packs well.
const DECODED_PER_STORED_BYTE: u64 = 8;
/// Where rows are narrow.
pub(crate) const MOST_BATCH_ROWS: usize = 8192;
/// Below it, most of the time is spent on batches rather than rows.
const FEWEST_BATCH_ROWS: usize = 16;

/// Which columns SQL sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// Those the user declared.
    Declared,
    /// Those, and where each row came from.
    WithPositions,
}

/// What a table looks like, whatever its version: declared columns, hidden columns, and how files hold them.
#[derive(Debug)]
pub struct Layout {
    declared: usize,
    /// Declared columns in order, then the hidden ones, which say where a row came from.
    columns: SchemaRef,
    /// The same columns as a scan sees them: those in files, then those in folder names.
    scanned: TableSchema,
    /// For each of `columns`, its place in `scanned`.
    places: Vec<usize>,
}

impl Layout {
    /// The layout of a stage's table.
    pub fn new(stage: &TableStage) -> Self {
        let mut fields: Vec<FieldRef> = stage.schema.fields().iter().map(as_view).collect();
        let declared = fields.len();
        fields.push(Arc::new(Field::new(PARTITION_COLUMN, DataType::Int32, true)));
        fields.push(Arc::new(Field::new(OFFSET_COLUMN, DataType::Int64, true)));
        let columns = Arc::new(Schema::new(fields));
        let in_folders = |field: &&FieldRef| stage.partition_by.contains(field.name());
        let in_files: Vec<FieldRef> = columns.fields().iter().filter(|field| !in_folders(field)).cloned().collect();
        let partitions: Vec<FieldRef> = stage
            .partition_by
            .iter()
            .filter_map(|name| columns.field_with_name(name).ok().cloned().map(Arc::new))
            .collect();
        let scanned =
            TableSchema::builder(Arc::new(Schema::new(in_files))).with_table_partition_cols(partitions).build();
        let place = |field: &FieldRef| scanned.table_schema().index_of(field.name()).unwrap_or_default();
        let places = columns.fields().iter().map(place).collect();
        Self { declared, columns, scanned, places }
    }

    /// The schema SQL sees. Strings are views inside a query; answers turn them back into plain strings.
    pub fn schema(&self, columns: Columns) -> SchemaRef {
        match columns {
            Columns::WithPositions => Arc::clone(&self.columns),
            Columns::Declared => {
                Arc::new(Schema::new(self.columns.fields().iter().take(self.declared).cloned().collect::<Vec<_>>()))
            }
        }
    }

    fn partition_fields(&self) -> &[FieldRef] {
        self.scanned.table_partition_cols()
    }
}

/// Strings and bytes as views: comparing and grouping them is up to twice as fast, and the reader makes them for free.
fn as_view(field: &FieldRef) -> FieldRef {
    let data_type = match field.data_type() {
        DataType::Utf8 => DataType::Utf8View,
        DataType::Binary => DataType::BinaryView,
        other => other.clone(),
    };
    Arc::new(Field::new(field.name(), data_type, field.is_nullable()))
}

/// A table's files at one version, with what the log says about each. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PinnedFiles {
    version: u64,
    files: Arc<[Arc<PartitionedFile>]>,
    rows: Option<u64>,
    bytes: u64,
}

impl PinnedFiles {
    /// Reads a snapshot. Files already known from `earlier` are not read again.
    ///
    /// # Errors
    /// When a partition value does not fit its column: the table was written by something else.
    pub fn new(layout: &Layout, snapshot: &Snapshot, earlier: Option<&Self>) -> Result<Self> {
        let known: HashMap<&Path, &Arc<PartitionedFile>> =
            earlier.iter().flat_map(|earlier| earlier.files.iter()).map(|file| (file.path(), file)).collect();
        let mut files = Vec::with_capacity(snapshot.files.len());
        for entry in snapshot.files.iter() {
            let location = snapshot.location(entry);
            files.push(match known.get(&location) {
                Some(file) => Arc::clone(file),
                None => Arc::new(partitioned_file(layout, entry, location)?),
            });
        }
        let bytes = snapshot.files.iter().map(|entry| entry.size).sum();
        Ok(Self { version: snapshot.version, files: files.into(), rows: snapshot.rows(), bytes })
    }

    /// The Delta version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Rows in all files, exactly, where the log says so.
    pub fn rows(&self) -> Option<u64> {
        self.rows
    }

    /// Encoded bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many files there are.
    pub fn count(&self) -> usize {
        self.files.len()
    }

    /// How many rows may be decoded at a time.
    pub(crate) fn rows_at_once(&self) -> usize {
        rows_at_once(self.rows, self.bytes)
    }
}

/// As many average rows as make a batch of bounded size; no fewer in a table that is none itself.
fn rows_at_once(rows: Option<u64>, bytes: u64) -> usize {
    let decoded = bytes.saturating_mul(DECODED_PER_STORED_BYTE);
    match rows {
        Some(rows) if rows > 0 && decoded > BATCH_BYTES => {
            let fit = rows.saturating_mul(BATCH_BYTES) / decoded;
            usize::try_from(fit).unwrap_or(MOST_BATCH_ROWS).clamp(FEWEST_BATCH_ROWS, MOST_BATCH_ROWS)
        }
        _ => MOST_BATCH_ROWS,
    }
}

fn partitioned_file(layout: &Layout, entry: &lake::FileEntry, location: Path) -> Result<PartitionedFile> {
    let rows = entry.rows.and_then(|rows| usize::try_from(rows).ok()).map_or(Precision::Absent, Precision::Exact);
    let mut values = Vec::new();
    let mut columns = Vec::new();
    for field in layout.scanned.file_schema().fields() {
        columns.push(column_statistics(
            field,
            entry.stats.min.get(field.name()),
            entry.stats.max.get(field.name()),
            entry.stats.nulls.get(field.name()).and_then(serde_json::Value::as_u64),
        ));
    }
    for field in layout.partition_fields() {
        let text = entry.partition_values.get(field.name()).and_then(|value| value.as_deref());
        let value = partition_value(field.data_type(), text).ok_or_else(|| {
            let (name, data_type) = (field.name(), field.data_type());
            internal_datafusion_err!("partition value of column `{name}` in file `{location}` is not a {data_type}")
        })?;
        columns.push(partition_statistics(&value, rows));
        values.push(value);
    }
    let statistics = Statistics { num_rows: rows, total_byte_size: Precision::Absent, column_statistics: columns };
    // Data files never change, so the footer cache needs no modification time to tell them apart.
    let mut file = PartitionedFile::new(String::new(), entry.size).with_partition_values(values);
    file.object_meta.location = location;
    file.statistics = Some(Arc::new(statistics));
    Ok(file)
}

/// A table at a pinned version. See the module.
#[derive(Debug)]
pub struct SnapshotParquetTable {
    layout: Arc<Layout>,
    schema: SchemaRef,
    /// `None` when nothing was ever committed: the table exists and is empty.
    files: Option<PinnedFiles>,
}

impl SnapshotParquetTable {
    /// A table of these files; without files it is empty.
    pub fn new(layout: Arc<Layout>, columns: Columns, files: Option<PinnedFiles>) -> Self {
        let schema = layout.schema(columns);
        Self { layout, schema, files }
    }

    fn files_that_may_match(&self, state: &dyn Session, filters: &[Expr]) -> Result<Vec<Arc<PartitionedFile>>> {
        let Some(pinned) = &self.files else { return Ok(Vec::new()) };
        let Some(predicate) = self.predicate(state, filters)? else { return Ok(pinned.files.to_vec()) };
        let schema = self.layout.scanned.table_schema();
        let Ok(pruning) = PruningPredicateBuilder::new().with_file_schema(Arc::clone(schema)).try_build(predicate)
        else {
            return Ok(pinned.files.to_vec());
        };
        let unknown = Statistics::new_unknown(schema);
        let may_match = pruning.prune(&FileBounds::new(&pinned.files, &unknown, schema))?;
        Ok(pinned.files.iter().zip(may_match).filter(|(_, keep)| *keep).map(|(file, _)| Arc::clone(file)).collect())
    }

    fn predicate(&self, state: &dyn Session, filters: &[Expr]) -> Result<Option<Arc<dyn PhysicalExpr>>> {
        let Some(all) = conjunction(filters.iter().cloned()) else { return Ok(None) };
        let schema = DFSchema::try_from(Arc::clone(self.layout.scanned.table_schema()))?;
        state.create_physical_expr(all, &schema).map(Some)
    }

    fn source(&self, state: &dyn Session, projection: &[usize], filters: &[Expr]) -> Result<ParquetSource> {
        let runtime = state.runtime_env();
        let url = ObjectStoreUrl::parse(STORE_URL)?;
        let store = runtime.object_store(&url)?;
        let footers = runtime.cache_manager.get_file_metadata_cache();
        let mut options = state.table_options().parquet.clone();
        options.global = state.config_options().execution.parquet.clone();
        Ok(ParquetSource::new(self.layout.scanned.clone())
            .with_table_parquet_options(options)
            .with_metadata_size_hint(FOOTER_BYTES)
            .with_parquet_file_reader_factory(Arc::new(CachedParquetFileReaderFactory::new(store, footers)))
            .with_pushdown_filters(self.filters_pay_inside_the_scan(projection, filters)))
    }

    /// Filtering while decoding saves the other columns of rows that fail, and costs a second pass over the filtered
    /// ones: worth it only when there are many others, one of them text.
    fn filters_pay_inside_the_scan(&self, projection: &[usize], filters: &[Expr]) -> bool {
        let filtered: Vec<String> =
            filters.iter().flat_map(Expr::column_refs).map(|column| column.name().to_owned()).collect();
        let others = || {
            projection.iter().map(|&index| self.schema.field(index)).filter(|field| !filtered.contains(field.name()))
        };
        !filtered.is_empty()
            && others().count() >= LATE_COLUMNS
            && others().any(|field| matches!(field.data_type(), DataType::Utf8View | DataType::BinaryView))
    }
}

#[async_trait]
impl TableProvider for SnapshotParquetTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let projection = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let mut files = self.files_that_may_match(state, filters)?;
        if filters.is_empty() {
            files.truncate(files_for(&files, limit));
        }
        metrics::files_planned(files.len(), self.files.as_ref().map_or(0, PinnedFiles::count));
        if files.is_empty() {
            return Ok(Arc::new(EmptyExec::new(Arc::new(self.schema.project(&projection)?))));
        }
        let statistics = Statistics::try_merge_iter(
            files.iter().filter_map(|file| file.statistics.as_deref()),
            self.layout.scanned.table_schema(),
        )?;
        let source = self.source(state, &projection, filters)?;
        let files = files.into_iter().map(|file| PartitionedFile::clone(&file)).collect();
        let places = projection.iter().map(|&index| self.layout.places[index]).collect();
        let scan = FileScanConfigBuilder::new(ObjectStoreUrl::parse(STORE_URL)?, Arc::new(source))
            .with_file_groups(FileGroup::new(files).split_files(state.config().target_partitions()))
            .with_statistics(statistics)
            .with_projection_indices(Some(places))?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(scan))
    }
}

/// How many of the files surely hold `limit` rows.
fn files_for(files: &[Arc<PartitionedFile>], limit: Option<usize>) -> usize {
    let Some(limit) = limit else { return files.len() };
    let mut rows = 0_usize;
    for (index, file) in files.iter().enumerate() {
        if rows >= limit {
            return index;
        }
        let known = file.statistics.as_ref().and_then(|statistics| statistics.num_rows.get_value().copied());
        rows = rows.saturating_add(known.unwrap_or(0));
    }
    files.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wider_rows_are_the_fewer_are_decoded_at_a_time() {
        assert_eq!(rows_at_once(Some(1_000_000), 100 << 20), 8192);
        assert_eq!(rows_at_once(Some(10_000), 40 << 20), 2000);
        assert_eq!(rows_at_once(Some(1000), 4 << 30), 16);
        assert_eq!(rows_at_once(Some(1), 5000), 8192, "a footer makes no wide row");
        assert_eq!(rows_at_once(None, 400 << 20), 8192);
    }
}

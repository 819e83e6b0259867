//! Opening a table for writing, and creating it where it is not there yet.
//!
//! The invariant: a `Table` writes only to a log whose columns, partitioning and protocol are those it was opened
//! with; it re-checks whenever a commit of someone else changed them. Creators may race: one wins, the others open
//! what it made. Deliberately absent: changing a table. A changed definition is a new incarnation in a new folder.

use std::{collections::BTreeSet, sync::Arc};

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use bytes::Bytes;
use deltalake_core::logstore::{CommitOrBytes, LogStoreRef};
use serde_json::json;

use crate::{
    Lake, LakeError, Progress,
    commit_log::LogReader,
    features, metrics,
    progress::Head,
    retry, schema,
    upkeep::{CheckpointJob, DEFAULT_CHECKPOINT_EVERY},
};

pub use batch::OFFSET_COLUMN;

/// The hidden column that holds the channel partition of a row.
pub const PARTITION_COLUMN: &str = "__partition";

/// How long a head may go unconfirmed before it is read anew from the newest checkpoint. Far below the retention of
/// the log: beyond that a missing next commit would mean "cleaned up", not "nothing new".
pub(crate) const HEAD_TRUSTED_FOR_MS: i64 = 60 * 60 * 1000;

const CREATE_ATTEMPTS: u32 = 8;

/// What a table is.
#[derive(Clone, Debug)]
pub struct TableSpec {
    /// Where it lies under the store, for example `shop/orders/1`.
    pub folder: String,
    /// Its name for people and metrics.
    pub name: String,
    /// Every column, the hidden ones included.
    pub schema: SchemaRef,
    /// Columns whose values become folders instead of file contents.
    pub partition_by: Vec<String>,
    /// Columns that get minimum, maximum and null count per file, besides the hidden ones.
    pub statistics: Vec<String>,
}

impl TableSpec {
    /// Whether a table can be made of this.
    ///
    /// # Errors
    /// `Column`, which names the column that Delta cannot store, partition by or find.
    pub fn validate(&self) -> Result<(), LakeError> {
        schema::to_delta_schema(&self.name, &self.schema)?;
        let mut seen = BTreeSet::new();
        for column in &self.partition_by {
            let field = self.field(column)?;
            if !can_partition_by(field.data_type()) {
                return Err(self.column(column, format!("a table cannot be partitioned by type {}", field.data_type())));
            }
            if !seen.insert(column) {
                return Err(self.column(column, "is named twice in `partition_by`"));
            }
        }
        if self.partition_by.len() >= self.schema.fields().len() {
            return Err(self.column(&self.partition_by.join(", "), "no column is left to store besides `partition_by`"));
        }
        self.statistics.iter().try_for_each(|column| self.field(column).map(drop))
    }

    /// The columns with statistics, in schema order: the declared and the hidden ones, where the type has an order.
    pub(crate) fn statistics_columns(&self) -> impl Iterator<Item = &Field> {
        let wanted = |name: &String| {
            (self.statistics.contains(name) || name == PARTITION_COLUMN || name == OFFSET_COLUMN)
                && !self.partition_by.contains(name)
        };
        let fields = self.schema.fields().iter();
        fields.map(AsRef::as_ref).filter(move |field| wanted(field.name()) && has_bounds(field.data_type()))
    }

    /// The columns as the log says they are. To Delta an empty text is null where the table is partitioned by it, and a
    /// table with a null in a column that has none cannot be opened by the library: it writes our checkpoints, and is
    /// what others read with. So such a column may be null in the log, whatever the rows that come are held to.
    fn declared(&self) -> Schema {
        let declared = |field: &FieldRef| {
            let is_text = *field.data_type() == DataType::Utf8;
            if is_text && self.partition_by.contains(field.name()) {
                return Arc::new(field.as_ref().clone().with_nullable(true));
            }
            Arc::clone(field)
        };
        Schema::new(self.schema.fields().iter().map(declared).collect::<Vec<_>>())
    }

    fn field(&self, column: &str) -> Result<&Field, LakeError> {
        self.schema.field_with_name(column).map_err(|_| self.column(column, "is not among the table's columns"))
    }

    fn column(&self, column: &str, reason: impl Into<String>) -> LakeError {
        LakeError::Column { table: self.name.clone(), column: column.to_owned(), reason: reason.into() }
    }
}

fn can_partition_by(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Boolean
            | DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::Decimal128(..)
            | DataType::Utf8
            | DataType::Date32
            | DataType::Timestamp(..)
    )
}

/// Types that other engines keep bounds for too.
fn has_bounds(data_type: &DataType) -> bool {
    can_partition_by(data_type) && *data_type != DataType::Boolean
        || matches!(data_type, DataType::Float32 | DataType::Float64)
}

/// A table open for writing. One handle commits one thing at a time; several handles, in any number of processes,
/// are safe together.
pub struct Table {
    pub(crate) lake: Lake,
    pub(crate) spec: Arc<TableSpec>,
    pub(crate) reader: LogReader,
    pub(crate) log: LogStoreRef,
    pub(crate) head: Head,
    /// When the head was last known to be the newest version.
    pub(crate) confirmed_ms: i64,
    /// Somebody changed the table's definition since it was last compared with the spec.
    pub(crate) definition_changed: bool,
    pub(crate) checkpoint_every: u64,
    pub(crate) checkpoint_due: Option<u64>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("Table");
        shown.field("folder", &self.spec.folder).field("version", &self.head.progress.version).finish_non_exhaustive()
    }
}

impl Table {
    /// Opens the table in `spec.folder`, creating it as version 0 where there is none.
    ///
    /// # Errors
    /// `Column` for a spec no table can have; `Mismatch` or `Unsupported` where another table lies there (stop);
    /// `Store` where the store does not answer (retry).
    pub async fn open_or_create(lake: &Lake, spec: &TableSpec) -> Result<Self, LakeError> {
        spec.validate()?;
        let reader = LogReader::new(lake, &spec.folder);
        let log = lake.log_store(&spec.folder);
        let head = match Head::load(&reader).await? {
            Some(head) => head,
            None => create(lake, spec, &reader, &log).await?,
        };
        check_definition(spec, &head)?;
        let backlog = head.commits_to_replay > 2 * DEFAULT_CHECKPOINT_EVERY;
        Ok(Self {
            lake: lake.clone(),
            spec: Arc::new(spec.clone()),
            reader,
            log,
            confirmed_ms: lake.now_ms(),
            definition_changed: false,
            checkpoint_every: DEFAULT_CHECKPOINT_EVERY,
            checkpoint_due: backlog.then_some(head.progress.version),
            head,
        })
    }

    /// Asks for a log checkpoint every `commits` versions instead of the default.
    pub fn with_checkpoint_every(mut self, commits: u64) -> Self {
        self.checkpoint_every = commits.max(1);
        self
    }

    /// What the table is.
    pub fn spec(&self) -> &TableSpec {
        &self.spec
    }

    /// The newest version this handle knows, and the positions in it.
    pub fn progress(&self) -> &Progress {
        &self.head.progress
    }

    /// Reads the commits others made since. One request when there is none. Cancel safe.
    ///
    /// # Errors
    /// `Mismatch` or `Unsupported` where somebody changed the table's definition; `Store`; `BrokenLog`.
    pub async fn refresh(&mut self) -> Result<(), LakeError> {
        self.catch_up(None).await?;
        self.ensure_definition()
    }

    /// The checkpoint of the log that is due since the last call, if any. Run it beside the hot path, for example in
    /// a task of its own; whether it succeeds matters only for how fast the table opens next time.
    pub fn checkpoint_due(&mut self) -> Option<CheckpointJob> {
        let version = self.checkpoint_due.take()?;
        Some(CheckpointJob::new(&self.lake, &self.spec, version))
    }

    /// Moves the head to the newest version. With a commit's `id`, says at which version that commit stands.
    pub(crate) async fn catch_up(&mut self, id: Option<&str>) -> Result<Option<u64>, LakeError> {
        let now_ms = self.lake.now_ms();
        if now_ms.saturating_sub(self.confirmed_ms) > HEAD_TRUSTED_FOR_MS {
            return self.reload(now_ms).await.map(|()| None);
        }
        let commits = self.reader.commits_after(self.head.progress.version).await?;
        metrics::commits_read(&self.spec.name, commits.len());
        let mut ours = None;
        for commit in commits {
            if id.is_some_and(|id| commit.is(id)) {
                ours = Some(commit.version);
            }
            self.definition_changed |= self.head.apply(commit);
        }
        self.confirmed_ms = now_ms;
        Ok(ours)
    }

    /// Reads the head anew, from the newest checkpoint on, when it has gone unconfirmed for too long.
    pub(crate) async fn distrust_old_head(&mut self) -> Result<(), LakeError> {
        let now_ms = self.lake.now_ms();
        if now_ms.saturating_sub(self.confirmed_ms) > HEAD_TRUSTED_FOR_MS { self.reload(now_ms).await } else { Ok(()) }
    }

    async fn reload(&mut self, now_ms: i64) -> Result<(), LakeError> {
        let head = Head::load(&self.reader).await?;
        self.head = head.ok_or_else(|| LakeError::Mismatch {
            table: self.spec.folder.clone(),
            difference: "is gone from the store".to_owned(),
        })?;
        self.definition_changed = true;
        self.confirmed_ms = now_ms;
        Ok(())
    }

    pub(crate) fn ensure_definition(&mut self) -> Result<(), LakeError> {
        if self.definition_changed {
            check_definition(&self.spec, &self.head)?;
            self.definition_changed = false;
        }
        Ok(())
    }
}

async fn create(lake: &Lake, spec: &TableSpec, reader: &LogReader, log: &LogStoreRef) -> Result<Head, LakeError> {
    let id = lake.ambient.uuid();
    let bytes = first_commit(lake, spec, &id.to_string())?;
    let mut attempt = 1;
    loop {
        let written = log.write_commit_entry(0, CommitOrBytes::LogBytes(bytes.clone()), id).await;
        // Whatever the answer was: the table that is there now is the table, whoever made it.
        let head = Head::load(reader).await;
        match (head, written) {
            (Ok(Some(head)), _) => return Ok(head),
            (Err(error), _) if attempt >= CREATE_ATTEMPTS => return Err(error),
            (Err(error @ LakeError::BrokenLog { .. }), _) => return Err(error),
            (Ok(None), Err(error)) if attempt >= CREATE_ATTEMPTS => {
                let table = spec.folder.clone();
                return Err(LakeError::Unsettled { table, version: 0, attempts: attempt, source: error.into() });
            }
            (Ok(None), Ok(())) => {
                return Err(LakeError::broken(
                    &spec.folder,
                    0,
                    "the store acknowledged the commit and does not have it",
                ));
            }
            (Ok(None) | Err(_), _) => retry::back_off(&lake.ambient, attempt).await,
        }
        attempt += 1;
    }
}

fn first_commit(lake: &Lake, spec: &TableSpec, id: &str) -> Result<Bytes, LakeError> {
    let now_ms = lake.now_ms();
    let schema = schema::to_delta_schema(&spec.name, &spec.declared())?;
    let mut configuration = json!({
        "delta.appendOnly": "true",
        // The library and others would list the whole log after each commit; upkeep does it when it is time.
        "delta.enableExpiredLogCleanup": "false",
        "delta.logRetentionDuration": "interval 2 days",
        "delta.deletedFileRetentionDuration": "interval 1 days",
        // Never by somebody else's commit; see `upkeep`.
        "delta.checkpointInterval": "1000000",
    });
    let statistics: Vec<String> = spec.statistics_columns().map(|field| quoted(field.name())).collect();
    if !statistics.is_empty() {
        configuration["delta.dataSkippingStatsColumns"] = json!(statistics.join(","));
    }
    let lines = [
        json!({ "commitInfo": {
            "timestamp": now_ms,
            "operation": "CREATE TABLE",
            "operationParameters": { "partitionBy": json!(spec.partition_by).to_string() },
            "isBlindAppend": true,
            "engineInfo": crate::append::ENGINE,
        }}),
        features::protocol_for(&spec.schema),
        json!({ "metaData": {
            "id": id,
            "name": spec.name,
            "format": { "provider": "parquet", "options": {} },
            "schemaString": schema,
            "partitionColumns": spec.partition_by,
            "createdTime": now_ms,
            "configuration": configuration,
        }}),
    ];
    Ok(lines.map(|line| line.to_string()).join("\n").into())
}

fn quoted(column: &str) -> String {
    let plain = column.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
    if plain { column.to_owned() } else { format!("`{}`", column.replace('`', "``")) }
}

fn check_definition(spec: &TableSpec, head: &Head) -> Result<(), LakeError> {
    features::check_writable(&spec.folder, &head.protocol, &head.metadata)?;
    let version = head.progress.version;
    let found = schema::from_delta_schema(&spec.folder, version, &head.metadata.schema_string)?;
    let partitions = &head.metadata.partition_columns;
    // Earlier builds put down the columns as the rows are held to them, and tables made by them stay as they are.
    let is_as_held = schema::difference(&spec.schema, &found).is_none();
    let difference = if is_as_held { None } else { schema::difference(&spec.declared(), &found) };
    let difference = difference.or_else(|| {
        (partitions != &spec.partition_by)
            .then(|| format!("is partitioned by {partitions:?}, expected {:?}", spec.partition_by))
    });
    match difference {
        None => Ok(()),
        Some(difference) => Err(LakeError::Mismatch { table: spec.folder.clone(), difference }),
    }
}

//! A table at one version, for readers: its files, their statistics, and the positions they reach.
//!
//! The invariant: files and positions are those of exactly `version`, from one replay, so a reader can go on from the
//! positions in the channel without missing or repeating a row. Snapshots never change; refreshing makes a new one.
//! Deliberately absent: reading rows (the query engine does), time travel, deletion vectors, column mapping.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, StringArray, TimestampMicrosecondArray},
    compute::{CastOptions, cast_with_options},
    datatypes::{DataType, Field, SchemaRef},
};
use object_store::path::Path;
use serde_json::{Map, Value, value::RawValue};

use crate::{
    Lake, LakeError,
    checkpoint_file::Wanted,
    commit_log::{Action, AddAction, LogCommit, LogReader, Metadata, Protocol},
    features, metrics, progress, schema,
    table::HEAD_TRUSTED_FOR_MS,
    write,
};

/// Decimals with more digits do not survive the floating point that other writers put their bounds through.
const EXACT_DIGITS: u8 = 15;

/// A table at one version. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The Delta version.
    pub version: u64,
    /// Every column, the hidden and the partition columns included.
    pub schema: SchemaRef,
    /// Columns whose values stand in [`FileEntry::partition_values`] and not in the files.
    pub partition_columns: Arc<[String]>,
    /// The active files, oldest first.
    pub files: Arc<Vec<Arc<FileEntry>>>,
    /// The positions stored with these files, see [`app_id`](crate::app_id).
    pub txns: Arc<BTreeMap<String, i64>>,
    /// When `version` was committed, in milliseconds since the epoch.
    pub committed_ms: i64,
    folder: Arc<str>,
    definition: Arc<(Protocol, Metadata)>,
    confirmed_ms: i64,
}

/// One active data file.
#[derive(Clone, Debug, PartialEq)]
pub struct FileEntry {
    /// Where it lies, relative to the table's folder.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// How many rows it holds, where the log says so.
    pub rows: Option<u64>,
    /// Bounds and null counts per column.
    pub stats: FileStats,
    /// One entry per partition column, in Delta's text form; `None` is null.
    pub partition_values: BTreeMap<String, Option<String>>,
    /// When it was written, in milliseconds since the epoch.
    pub modified_ms: i64,
}

/// Bounds and null counts of a file, by column name. Bounds may be wider than the values. Values are as the log has
/// them, but decimals are strings, since a JSON number would round them; what another writer may have rounded is null.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FileStats {
    /// Lower bounds.
    pub min: Map<String, Value>,
    /// Upper bounds.
    pub max: Map<String, Value>,
    /// How many rows are null.
    pub nulls: Map<String, Value>,
}

impl Snapshot {
    /// The newest version of the table in `folder`; `None` where there is no table.
    ///
    /// # Errors
    /// `Unsupported` for a table with features this crate does not read; `Store` (retry); `BrokenLog`.
    pub async fn load(lake: &Lake, folder: &str) -> Result<Option<Self>, LakeError> {
        let confirmed_ms = lake.now_ms();
        let reader = LogReader::new(lake, folder);
        let Some(replay) = progress::replay(&reader, Wanted::Everything).await? else { return Ok(None) };
        let mut state = State::default();
        for action in replay.base {
            state.take(action);
        }
        let committed_ms = replay.commits.last().and_then(LogCommit::committed_ms).unwrap_or(replay.modified_ms);
        for commit in replay.commits {
            commit.actions.into_iter().for_each(|action| state.take(action));
        }
        state.into_snapshot(folder, None, replay.version, committed_ms, confirmed_ms).map(Some)
    }

    /// This table at its newest version. Reads only the commits made since, in one or two requests each, one in all
    /// where there are none; after a long sleep it reads the table anew. Cancel safe.
    ///
    /// # Errors
    /// As [`load`](Self::load); also `Mismatch` when the table is gone.
    pub async fn refresh(&self, lake: &Lake) -> Result<Self, LakeError> {
        let now_ms = lake.now_ms();
        if now_ms.saturating_sub(self.confirmed_ms) > HEAD_TRUSTED_FOR_MS {
            return self.reload(lake).await;
        }
        let commits = match LogReader::new(lake, &self.folder).commits_after(self.version).await {
            Ok(commits) => commits,
            // Clean-up overtook us, or the log is broken: reading from the newest checkpoint tells which.
            Err(LakeError::BrokenLog { .. }) => return self.reload(lake).await,
            Err(error) => return Err(error),
        };
        metrics::commits_read(&self.folder, commits.len());
        let Some(newest) = commits.last() else { return Ok(Self { confirmed_ms: now_ms, ..self.clone() }) };
        let (version, committed_ms) = (newest.version, newest.committed_ms().unwrap_or(now_ms));
        let mut state = State { txns: (*self.txns).clone(), ..State::default() };
        for commit in commits {
            commit.actions.into_iter().for_each(|action| state.take(action));
        }
        state.into_snapshot(&self.folder, Some(self), version, committed_ms, now_ms)
    }

    async fn reload(&self, lake: &Lake) -> Result<Self, LakeError> {
        Self::load(lake, &self.folder).await?.ok_or_else(|| LakeError::Mismatch {
            table: self.folder.to_string(),
            difference: "is gone from the store".to_owned(),
        })
    }

    /// The table's folder under the store.
    pub fn folder(&self) -> &str {
        &self.folder
    }

    /// Where a file lies, as a path of [`Lake::store`].
    pub fn location(&self, file: &FileEntry) -> Path {
        Path::parse(format!("{}/{}", Lake::folder_path(&self.folder), file.path))
            .expect("the path of a file was checked when its action was read")
    }

    /// The rows of all files, where the log says so for each.
    pub fn rows(&self) -> Option<u64> {
        self.files.iter().map(|file| file.rows).sum()
    }

    /// The rows of files that another program wrote, where the log says so for each: what it appended, and what it
    /// rewrote of ours. Told by the names of files.
    pub fn rows_in_foreign_files(&self) -> Option<u64> {
        self.files.iter().filter(|file| !write::is_ours(&file.path)).map(|file| file.rows).sum()
    }
}

impl FileStats {
    /// The lower bound of a top-level column as an array of one value; `None` where there is no usable bound.
    pub fn min_of(&self, field: &Field) -> Option<ArrayRef> {
        bound(self.min.get(field.name())?, field.data_type(), 0)
    }

    /// The upper bound of a top-level column as an array of one value; `None` where there is no usable bound.
    pub fn max_of(&self, field: &Field) -> Option<ArrayRef> {
        // Some writers cut timestamps off at milliseconds, which lowers a maximum.
        bound(self.max.get(field.name())?, field.data_type(), 999)
    }

    /// How many rows are null in a top-level column.
    pub fn nulls_of(&self, field: &Field) -> Option<u64> {
        self.nulls.get(field.name())?.as_u64()
    }
}

fn bound(value: &Value, data_type: &DataType, cut_off_micros: i64) -> Option<ArrayRef> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let fraction = text.split_once('.').map_or(0, |(_, rest)| rest.bytes().take_while(u8::is_ascii_digit).count());
    let array: ArrayRef = Arc::new(StringArray::from(vec![text]));
    let cast = cast_with_options(&array, data_type, &CastOptions { safe: true, ..CastOptions::default() }).ok()?;
    if cast.is_null(0) {
        return None;
    }
    match cast.as_any().downcast_ref::<TimestampMicrosecondArray>() {
        Some(timestamps) if fraction <= 3 && cut_off_micros != 0 => {
            let widened: TimestampMicrosecondArray = timestamps.unary(|micros| micros.saturating_add(cut_off_micros));
            Some(Arc::new(widened.with_timezone_opt(zone(data_type))))
        }
        _ => Some(cast),
    }
}

fn zone(data_type: &DataType) -> Option<Arc<str>> {
    match data_type {
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    }
}

/// What a stretch of the log amounts to.
#[derive(Default)]
struct State {
    txns: BTreeMap<String, i64>,
    protocol: Option<Protocol>,
    metadata: Option<Metadata>,
    order: u64,
    /// The last word on each path, `None` for removed, with its place in the log.
    files: HashMap<String, (u64, Option<AddAction>)>,
}

impl State {
    fn take(&mut self, action: Action) {
        self.order += 1;
        if let Some(add) = action.add {
            self.files.insert(add.path.clone(), (self.order, Some(add)));
        }
        if let Some(remove) = action.remove {
            self.files.insert(remove.path, (self.order, None));
        }
        if let Some(txn) = action.txn {
            self.txns.insert(txn.app_id, txn.version);
        }
        self.protocol = action.protocol.or(self.protocol.take());
        self.metadata = action.meta_data.or(self.metadata.take());
    }

    fn into_snapshot(
        self,
        folder: &str,
        before: Option<&Snapshot>,
        version: u64,
        committed_ms: i64,
        confirmed_ms: i64,
    ) -> Result<Snapshot, LakeError> {
        let broken = |what| LakeError::broken(folder, version, format!("the log has no {what}"));
        let known = before.map(|snapshot| &snapshot.definition);
        let protocol = self.protocol.or_else(|| Some(known?.0.clone())).ok_or_else(|| broken("protocol"))?;
        let metadata = self.metadata.or_else(|| Some(known?.1.clone())).ok_or_else(|| broken("metadata"))?;
        features::check_readable(folder, &protocol, &metadata)?;
        let schema = schema::from_delta_schema(folder, version, &metadata.schema_string)?;

        let mut touched = HashSet::new();
        let mut added = Vec::new();
        for (path, (order, add)) in self.files {
            let path = physical_path(folder, &path)?;
            if let Some(add) = add {
                added.push((order, Arc::new(entry(folder, version, &schema, path.clone(), add)?)));
            }
            touched.insert(path);
        }
        added.sort_unstable_by_key(|(order, _)| *order);
        let earlier = before.into_iter().flat_map(|snapshot| snapshot.files.iter());
        let kept = earlier.filter(|file| !touched.contains(&file.path)).cloned();
        let files = kept.chain(added.into_iter().map(|(_, file)| file)).collect();

        Ok(Snapshot {
            version,
            schema,
            partition_columns: metadata.partition_columns.clone().into(),
            files: Arc::new(files),
            txns: Arc::new(self.txns),
            committed_ms,
            folder: folder.into(),
            definition: Arc::new((protocol, metadata)),
            confirmed_ms,
        })
    }
}

fn entry(folder: &str, version: u64, schema: &SchemaRef, path: String, add: AddAction) -> Result<FileEntry, LakeError> {
    if add.deletion_vector.is_some() {
        return Err(LakeError::Unsupported {
            table: folder.to_owned(),
            needs: "deletion vectors".to_owned(),
            verb: "read",
            fix: "rewrite the table without them, or read it with another engine".to_owned(),
        });
    }
    let stats = add.stats.as_deref().filter(|text| !text.is_empty());
    let ours = write::is_ours(&path);
    let parsed = stats.map(|text| parse_stats(text, schema, ours)).transpose();
    let (rows, stats) = parsed
        .map_err(|error| LakeError::broken(folder, version, format!("statistics of `{path}`: {error}")))?
        .unwrap_or_default();
    let size = u64::try_from(add.size)
        .map_err(|_| LakeError::broken(folder, version, format!("`{path}` has size {}", add.size)))?;
    Ok(FileEntry {
        path,
        size,
        rows,
        stats,
        partition_values: add.partition_values,
        modified_ms: add.modification_time,
    })
}

/// The statistics of a file, `ours` or another writer's.
fn parse_stats(text: &str, schema: &SchemaRef, ours: bool) -> Result<(Option<u64>, FileStats), serde_json::Error> {
    #[derive(Default, serde::Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Raw {
        num_records: Option<u64>,
        min_values: BTreeMap<String, Box<RawValue>>,
        max_values: BTreeMap<String, Box<RawValue>>,
        null_count: Map<String, Value>,
    }
    let raw: Raw = serde_json::from_str(text)?;
    let exact = |values: BTreeMap<String, Box<RawValue>>| -> Result<Map<String, Value>, serde_json::Error> {
        let digits_of = |name: &str| match schema.field_with_name(name).map(Field::data_type) {
            Ok(DataType::Decimal128(digits, _)) => Some(*digits),
            _ => None,
        };
        let pairs = values.into_iter().map(|(name, value)| {
            let value = match (value.get(), digits_of(&name)) {
                ("null", _) => Value::Null,
                (_, Some(digits)) if !ours && digits > EXACT_DIGITS => Value::Null,
                (text, Some(_)) => Value::String(text.trim_matches('"').to_owned()),
                (other, None) => serde_json::from_str(other)?,
            };
            Ok((name, value))
        });
        pairs.collect()
    };
    let stats = FileStats { min: exact(raw.min_values)?, max: exact(raw.max_values)?, nulls: raw.null_count };
    Ok((raw.num_records, stats))
}

/// The path a URL-encoded path of the log stands for.
fn physical_path(folder: &str, logged: &str) -> Result<String, LakeError> {
    let foreign = || LakeError::Unsupported {
        table: folder.to_owned(),
        needs: format!("the file `{logged}` outside its folder"),
        verb: "read",
        fix: "copy the table instead of cloning it".to_owned(),
    };
    if logged.starts_with('/') || logged.contains("://") {
        return Err(foreign());
    }
    Path::from_url_path(logged).map(|path| path.to_string()).map_err(|_| foreign())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

//! Small tables, and ways to look at them that do not go through the code under test.

use std::{collections::BTreeMap, sync::Arc};

use arrow::datatypes::{DataType, Field, Schema};
use deltalake_core::{
    DeltaTable,
    logstore::{LogStoreRef, StorageConfig, default_logstore},
};
use futures::TryStreamExt;
use lake::{Advance, Commit, DataFile, Lake, Table, TableSpec};
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, path::Path, prefix::PrefixStore};
use url::Url;

pub(crate) const FOLDER: &str = "shop/orders/1";

pub(crate) fn spec() -> TableSpec {
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("__partition", DataType::Int32, false),
        Field::new("__offset", DataType::Int64, false),
    ]);
    TableSpec {
        folder: FOLDER.to_owned(),
        name: "orders".to_owned(),
        schema: Arc::new(schema),
        partition_by: Vec::new(),
        statistics: vec!["id".to_owned()],
    }
}

pub(crate) fn lake_over(store: Arc<dyn ObjectStore>) -> Lake {
    Lake::with_store(store, Url::parse("memory:///").unwrap())
}

/// A file that only the log knows; its name says which stretch of which position it stands for.
pub(crate) fn file(app_id: &str, from: i64, to: i64, owner: &str) -> DataFile {
    let rows = u64::try_from(to - from).unwrap();
    DataFile {
        path: format!("{app_id}.{from}.{to}.{owner}.parquet"),
        size: 1,
        rows,
        partition_values: BTreeMap::new(),
        stats: format!(r#"{{"numRecords":{rows}}}"#),
        modified_ms: now_ms(),
    }
}

pub(crate) fn advance(app_id: &str, from: i64, to: i64) -> Advance {
    Advance { app_id: app_id.to_owned(), from, to }
}

pub(crate) fn commit(app_id: &str, from: i64, to: i64) -> Commit {
    let info = serde_json::Map::new();
    Commit { files: vec![file(app_id, from, to, "o")], advances: vec![advance(app_id, from, to)], info }
}

pub(crate) fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

pub(crate) async fn open(lake: &Lake) -> Table {
    Table::open_or_create(lake, &spec()).await.unwrap()
}

pub(crate) fn log_path(name: &str) -> Path {
    Path::parse(format!("{FOLDER}/_delta_log/{name}")).unwrap()
}

pub(crate) fn commit_path(version: u64) -> Path {
    log_path(&format!("{version:020}.json"))
}

/// The names of all objects of the log.
pub(crate) async fn log_names(lake: &Lake) -> Vec<String> {
    let listed: Vec<_> = lake.store().list(Some(&log_path(""))).try_collect().await.unwrap();
    listed.into_iter().map(|object| object.location.filename().unwrap().to_owned()).collect()
}

/// Commits lines of somebody else at the next version of the log; `None` when the version was taken.
pub(crate) async fn foreign_commit(store: &Arc<dyn ObjectStore>, version: u64, lines: &str) -> Option<u64> {
    let body = format!("{{\"commitInfo\":{{\"operation\":\"OPTIMIZE\"}}}}\n{lines}");
    let created = store.put_opts(&commit_path(version), body.into(), PutOptions::from(PutMode::Create)).await;
    created.ok().map(|_| version)
}

/// The newest version of the log, by asking for one after the other.
pub(crate) async fn newest_version(store: &Arc<dyn ObjectStore>) -> u64 {
    let mut version = 0;
    while store.head(&commit_path(version + 1)).await.is_ok() {
        version += 1;
    }
    version
}

/// The table through the library's eyes.
pub(crate) async fn library_table(lake: &Lake) -> (DeltaTable, LogStoreRef) {
    let prefixed = Arc::new(PrefixStore::new(lake.store(), FOLDER));
    let log = default_logstore(prefixed, lake.bucket(), &lake.table_url(FOLDER), &StorageConfig::default());
    let mut table = DeltaTable::new(Arc::clone(&log));
    table.load().await.unwrap();
    (table, log)
}

/// What the library says: version, files, rows.
pub(crate) async fn library_counts(lake: &Lake) -> (u64, usize, usize) {
    let (table, _) = library_table(lake).await;
    let state = table.snapshot().unwrap();
    let rows = state.log_data().iter().map(|file| file.num_records().unwrap()).sum();
    (state.version(), state.log_data().num_files(), rows)
}

//! Real rows all the way: encoded, uploaded, committed, read back, and read by the library.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Int64Type, Schema},
};
use bytes::Bytes;
use lake::{
    Advance, Commit, CommitOutcome, EncodedFile, FileWriter, Lake, LakeError, Snapshot, StoreConfig, Table, TableSpec,
    WriterOptions,
};
use object_store::{ObjectStoreExt, memory::InMemory};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::{
    faults::{Chances, Fault, FaultStore},
    support::*,
};

const CITIES: [Option<&str>; 6] = [Some("Linz"), Some("a/b c"), Some("Zürich%2F"), None, Some("../up"), Some("=:?#&")];

pub(crate) fn city_spec(partition_by: &[&str]) -> TableSpec {
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("city", DataType::Utf8, true),
        Field::new("__partition", DataType::Int32, false),
        Field::new("__offset", DataType::Int64, false),
    ]);
    TableSpec {
        schema: Arc::new(schema),
        partition_by: partition_by.iter().map(|name| (*name).to_owned()).collect(),
        statistics: vec!["id".to_owned(), "city".to_owned()],
        ..spec()
    }
}

/// Partitioned by a text that may be empty and not null.
pub(crate) fn required_city_spec() -> TableSpec {
    let spec = city_spec(&["city"]);
    let fields = spec.schema.fields().iter().map(|field| field.as_ref().clone());
    let fields = fields.map(|field| if field.name() == "city" { field.with_nullable(false) } else { field });
    TableSpec { schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())), ..spec }
}

fn batch(spec: &TableSpec, from: i64, to: i64) -> RecordBatch {
    let ids: Vec<i64> = (from..to).collect();
    let cities: StringArray = ids.iter().map(|id| CITIES[usize::try_from(*id).unwrap() % CITIES.len()]).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(ids.clone())),
        Arc::new(cities),
        Arc::new(Int32Array::from(vec![0; ids.len()])),
        Arc::new(Int64Array::from(ids)),
    ];
    RecordBatch::try_new(Arc::clone(&spec.schema), columns).unwrap()
}

pub(crate) async fn append(lake: &Lake, table: &mut Table, from: i64, to: i64) {
    let spec = table.spec().clone();
    let mut writer = FileWriter::new(lake, &spec, WriterOptions::default()).unwrap();
    writer.write(&batch(&spec, from, to)).unwrap();
    let mut files = Vec::new();
    for file in writer.close().unwrap() {
        files.push(file.upload(lake).await.unwrap());
    }
    let advances = vec![Advance { app_id: "a".to_owned(), from, to }];
    let outcome = table.commit(Commit { files, advances, ..Commit::default() }).await.unwrap();
    assert!(matches!(outcome, CommitOutcome::Committed { .. }), "{outcome:?}");
}

/// Every id of the table with its city, from the files themselves.
async fn contents(lake: &Lake, snapshot: &Snapshot) -> BTreeMap<i64, Option<String>> {
    let mut found = BTreeMap::new();
    for file in snapshot.files.iter() {
        let bytes = lake.store().get(&snapshot.location(file)).await.unwrap().bytes().await.unwrap();
        assert_eq!(bytes.len() as u64, file.size);
        let mut rows = 0;
        for batch in ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap() {
            let batch = batch.unwrap();
            rows += batch.num_rows() as u64;
            let cities = batch.column_by_name("city").map(|column| column.as_string::<i32>());
            for (row, id) in batch["id"].as_primitive::<Int64Type>().values().iter().enumerate() {
                let city = match cities {
                    Some(cities) => cities.is_valid(row).then(|| cities.value(row).to_owned()),
                    None => file.partition_values["city"].clone(),
                };
                assert!(found.insert(*id, city).is_none(), "row {id} is there twice");
            }
        }
        assert_eq!(Some(rows), file.rows);
    }
    found
}

pub(crate) async fn rows_survive(lake: &Lake, partition_by: &[&str]) {
    let spec = city_spec(partition_by);
    let mut table = Table::open_or_create(lake, &spec).await.unwrap();
    append(lake, &mut table, 0, 10).await;
    append(lake, &mut table, 10, 17).await;

    let snapshot = Snapshot::load(lake, FOLDER).await.unwrap().unwrap();
    assert_eq!(snapshot.schema, spec.schema);
    assert_eq!(&*snapshot.partition_columns, spec.partition_by.as_slice());
    let expected: BTreeMap<_, _> =
        (0..17).map(|id| (id, CITIES[usize::try_from(id).unwrap() % CITIES.len()].map(str::to_owned))).collect();
    assert_eq!(contents(lake, &snapshot).await, expected);
    let id = spec.schema.field_with_name("id").unwrap();
    let lowest = snapshot.files.iter().map(|file| file.stats.min_of(id).unwrap().as_primitive::<Int64Type>().value(0));
    assert_eq!(lowest.min(), Some(0));

    independent_reading(lake, &snapshot).await;
}

/// The library finds the same version, rows, files and values, and its paths lead to the files.
async fn independent_reading(lake: &Lake, snapshot: &Snapshot) {
    let (library, log) = library_table(lake).await;
    let state = library.snapshot().unwrap();
    assert_eq!(state.version(), snapshot.version);
    let rows: usize = state.log_data().iter().map(|file| file.num_records().unwrap()).sum();
    assert_eq!(Some(rows as u64), snapshot.rows());
    assert_eq!(state.transaction_version(log.as_ref(), "a").await.unwrap(), Some(17));
    let mut theirs: Vec<_> = Vec::new();
    for file in state.log_data().iter() {
        assert!(log.object_store(None).head(&file.object_store_path()).await.is_ok(), "{}", file.path());
        let values: BTreeMap<_, _> = file.partition_values_map().into_iter().collect();
        theirs.push((file.object_store_path().to_string(), values));
    }
    let mut ours: Vec<_> =
        snapshot.files.iter().map(|file| (file.path.clone(), file.partition_values.clone())).collect();
    theirs.sort();
    ours.sort();
    assert_eq!(theirs, ours);
}

#[tokio::test]
async fn rows_written_are_rows_read_and_the_library_agrees() {
    rows_survive(&Lake::memory(), &[]).await;
}

#[tokio::test]
async fn odd_partition_values_survive_in_memory() {
    rows_survive(&Lake::memory(), &["city"]).await;
}

#[tokio::test]
async fn odd_partition_values_survive_in_a_local_folder() {
    let folder = tempfile::tempdir().unwrap();
    let url = folder.path().to_str().unwrap().to_owned();
    let lake = Lake::open(&StoreConfig { url, ..StoreConfig::default() }).unwrap();
    rows_survive(&lake, &["city"]).await;
}

#[tokio::test]
async fn odd_partition_values_survive_under_a_prefix() {
    let root = url::Url::parse("memory:///some/deep%20prefix/").unwrap();
    rows_survive(&Lake::with_store(Arc::new(InMemory::new()), root), &["city"]).await;
}

#[tokio::test(start_paused = true)]
async fn uploads_get_through_a_failing_store_and_leave_one_object_each() {
    for seed in 0..20 {
        let chances = Chances { before: 20, after: 20, own_exists: 20, delay_ms: 5, ..Chances::default() };
        let store = FaultStore::over(Arc::new(InMemory::new()), seed, chances).on(".parquet");
        let lake = lake_over(Arc::new(store.clone())).with_seed(seed);
        let spec = city_spec(&["city"]);
        let mut writer = FileWriter::new(&lake, &spec, WriterOptions::default()).unwrap();
        writer.write(&batch(&spec, 0, 12)).unwrap();
        let encoded = writer.close().unwrap();
        for file in &encoded {
            let uploaded = file.upload(&lake).await.unwrap();
            let location = object_store::path::Path::parse(format!("{FOLDER}/{}", uploaded.path)).unwrap();
            let stored = store.inner().get(&location).await.unwrap().bytes().await.unwrap();
            assert_eq!(stored, file.bytes, "seed {seed}");
        }
        let objects: Vec<_> = futures::TryStreamExt::try_collect(store.inner().list(None)).await.unwrap();
        assert_eq!(objects.len(), encoded.len(), "seed {seed}");
    }
}

/// One file of twelve rows, on a store that meets the given faults.
fn one_file(faults: &[Fault]) -> (FaultStore, Lake, EncodedFile) {
    let store = FaultStore::scripted(faults).on(".parquet");
    let lake = lake_over(Arc::new(store.clone()));
    let spec = city_spec(&[]);
    let mut writer = FileWriter::new(&lake, &spec, WriterOptions::default()).unwrap();
    writer.write(&batch(&spec, 0, 12)).unwrap();
    let file = writer.close().unwrap().remove(0);
    (store, lake, file)
}

async fn stored(store: &FaultStore, file: &EncodedFile) -> Bytes {
    let location = object_store::path::Path::parse(format!("{FOLDER}/{}", file.path)).unwrap();
    store.inner().get(&location).await.unwrap().bytes().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_taken_by_nothing_is_tried_again() {
    let (store, lake, file) = one_file(&[Fault::FalseExists, Fault::FalseExists]);
    file.upload(&lake).await.unwrap();
    assert_eq!(stored(&store, &file).await, file.bytes);

    let (_, lake, file) = one_file(&[Fault::FalseExists; 20]);
    let error = file.upload(&lake).await.unwrap_err();
    assert!(matches!(error, LakeError::Store { .. }), "{error}");
    assert_eq!(error.class(), delivery::ErrorClass::Retry);
}

#[tokio::test(start_paused = true)]
async fn an_upload_in_parts_whose_completion_is_not_found_has_arrived() {
    let (store, lake, mut file) = one_file(&[Fault::After]);
    file.bytes = vec![7; 20 << 20].into();
    file.upload(&lake).await.unwrap();
    assert!(stored(&store, &file).await == file.bytes);
}

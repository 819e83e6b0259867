//! One commit at a time against one fault at a time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use delivery::ErrorClass;
use lake::{Commit, CommitOutcome, Lake, LakeError, Snapshot, Table};
use object_store::{ObjectStore, ObjectStoreExt, memory::InMemory};
use serde_json::{Value, json};

use crate::{
    faults::{Chances, Fault, FaultStore},
    files::{city_spec, required_city_spec},
    support::*,
};

async fn scripted() -> (FaultStore, Lake, Table) {
    let store = FaultStore::scripted(&[]);
    let lake = lake_over(Arc::new(store.clone()));
    let table = open(&lake).await;
    (store, lake, table)
}

async fn rows(lake: &Lake) -> u64 {
    Snapshot::load(lake, FOLDER).await.unwrap().unwrap().rows().unwrap()
}

#[tokio::test(start_paused = true)]
async fn whatever_the_store_answers_the_commit_lands_once() {
    for fault in [Fault::Before, Fault::After, Fault::FalseExists, Fault::OwnExists] {
        let (store, lake, mut table) = scripted().await;
        store.then(&[fault, Fault::Before]);
        let outcome = table.commit(commit("a", 0, 3)).await.unwrap();
        assert!(matches!(outcome, CommitOutcome::Committed { version: 1, .. }), "{fault:?}: {outcome:?}");
        assert_eq!((rows(&lake).await, newest_version(&store.inner()).await), (3, 1), "{fault:?}");
        assert_eq!(table.progress(), open(&lake).await.progress(), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_followed_by_foreign_commits_is_still_success() {
    let (store, lake, mut table) = scripted().await;
    store.then(&[Fault::After]);
    // The foreign commits arrive after ours landed and before we look.
    let inner = store.inner();
    let (outcome, ()) = tokio::join!(table.commit(commit("a", 0, 3)), async {
        while foreign_commit(&inner, 2, r#"{"txn":{"appId":"other","version":9}}"#).await.is_none() {}
    });
    assert!(matches!(outcome.unwrap(), CommitOutcome::Committed { version: 1, attempts: 1 }));
    assert_eq!(rows(&lake).await, 3);
}

#[tokio::test]
async fn a_commit_goes_on_after_foreign_commits_with_the_same_files() {
    let (store, lake, mut table) = scripted().await;
    for version in 1..=12 {
        foreign_commit(&store.inner(), version, &format!(r#"{{"txn":{{"appId":"other","version":{version}}}}}"#))
            .await
            .unwrap();
    }
    let outcome = table.commit(commit("a", 0, 3)).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Committed { version: 13, attempts: 2 });
    assert_eq!(table.progress().stored("other"), 12);
    let paths: Vec<_> =
        Snapshot::load(&lake, FOLDER).await.unwrap().unwrap().files.iter().map(|file| file.path.clone()).collect();
    assert_eq!(paths, ["a.0.3.o.parquet"]);
}

#[tokio::test]
async fn a_fenced_writer_changes_nothing() {
    let lake = Lake::memory();
    let mut owner = open(&lake).await;
    let mut zombie = open(&lake).await;
    owner.commit(commit("a", 0, 5)).await.unwrap();
    let before = log_names(&lake).await;
    // It has not seen the owner's commit yet.
    let outcome = zombie.commit(commit("a", 0, 3)).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Fenced { app_id: "a".to_owned(), stored: 5 });
    // Now it has.
    let outcome = zombie.commit(commit("a", 3, 5)).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Fenced { app_id: "a".to_owned(), stored: 5 });
    assert_eq!(log_names(&lake).await, before);
    assert_eq!(rows(&lake).await, 5);
    // From where it was told to go on, it is a writer like any other.
    let outcome = zombie.commit(commit("a", 5, 6)).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Committed { version: 2, attempts: 1 });
}

#[tokio::test]
async fn one_position_out_of_place_fences_the_whole_commit() {
    let lake = Lake::memory();
    let mut table = open(&lake).await;
    table.commit(commit("a", 0, 5)).await.unwrap();
    let mut both = commit("b", 0, 2);
    both.advances.push(advance("a", 4, 9));
    let outcome = table.commit(both).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Fenced { app_id: "a".to_owned(), stored: 5 });
    assert_eq!((table.progress().stored("b"), table.progress().version), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_dead_store_gives_a_retry_error_and_the_same_commit_works_later() {
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    open(&lake_over(Arc::clone(&inner))).await;
    let store = FaultStore::over(inner, 0, Chances::default());
    let lake = lake_over(Arc::new(store.clone()));
    let mut table = open(&lake).await;
    store.then(&[Fault::Before; 30]);
    let error = table.commit(commit("a", 0, 3)).await.unwrap_err();
    assert!(matches!(error, LakeError::Unsettled { attempts: 30, .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Retry);
    let outcome = table.commit(commit("a", 0, 3)).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Committed { version: 1, attempts: 1 });
}

#[tokio::test(start_paused = true)]
async fn an_unsettled_commit_that_landed_fences_its_own_repetition() {
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    open(&lake_over(Arc::clone(&inner))).await;
    let store = FaultStore::over(Arc::clone(&inner), 0, Chances { reads: 100, ..Chances::default() });
    // The table is opened before reads begin to fail: on the clean store, with the same log.
    let clean = lake_over(inner);
    let mut table = open(&clean).await;
    let mut doomed = reads_fail(&store).await;
    let error = doomed.commit(commit("a", 0, 3)).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Retry, "{error}");
    let outcome = table.commit(commit("a", 0, 3)).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Fenced { app_id: "a".to_owned(), stored: 3 });
    assert_eq!(rows(&clean).await, 3);
}

/// A table whose next put lands with its answer lost and whose every read fails from now on.
async fn reads_fail(store: &FaultStore) -> Table {
    let switch = Arc::new(AtomicBool::new(false));
    let switched = crate::faults::Switched::new(store.inner(), store.clone(), Arc::clone(&switch));
    let table = open(&lake_over(Arc::new(switched))).await;
    switch.store(true, Ordering::SeqCst);
    store.then(&[Fault::After]);
    table
}

#[tokio::test(start_paused = true)]
async fn a_commit_dropped_half_way_is_found_out_by_the_next() {
    let chances = Chances { before: 10, after: 30, delay_ms: 20, ..Chances::default() };
    let store = FaultStore::over(Arc::new(InMemory::new()), 1, chances);
    let lake = lake_over(Arc::new(store));
    let mut table = open(&lake).await;
    let (mut landed, mut lost) = (0, 0);
    for cut_after_ms in 0..60 {
        let from = table.progress().stored("a");
        let cut = tokio::time::timeout(Duration::from_millis(cut_after_ms), table.commit(commit("a", from, from + 1)));
        if cut.await.is_ok() {
            continue;
        }
        match table.commit(commit("a", from, from + 1)).await.unwrap() {
            CommitOutcome::Committed { .. } => lost += 1,
            CommitOutcome::Fenced { stored, .. } => {
                landed += 1;
                assert_eq!(stored, from + 1);
            }
        }
        let position = u64::try_from(table.progress().stored("a")).unwrap();
        assert_eq!(rows(&lake).await, position, "cut after {cut_after_ms} ms");
    }
    assert!(landed > 0 && lost > 0, "both ends were met: {landed} landed, {lost} did not");
}

#[tokio::test]
async fn a_changed_definition_stops_the_commit() {
    let lake = Lake::memory();
    let mut table = open(&lake).await;
    let first = lake.store().get(&commit_path(0)).await.unwrap().bytes().await.unwrap();
    let line = first.split(|byte| *byte == b'\n').next_back().unwrap();
    let mut metadata: Value = serde_json::from_slice(line).unwrap();

    // A change that leaves the columns alone is none of our business.
    metadata["metaData"]["description"] = json!("now with a description");
    foreign_commit(&lake.store(), 1, &metadata.to_string()).await.unwrap();
    assert!(matches!(table.commit(commit("a", 0, 1)).await.unwrap(), CommitOutcome::Committed { version: 2, .. }));

    let schema = metadata["metaData"]["schemaString"].as_str().unwrap().replace("\"id\"", "\"ident\"");
    metadata["metaData"]["schemaString"] = json!(schema);
    foreign_commit(&lake.store(), 3, &metadata.to_string()).await.unwrap();
    let error = table.commit(commit("a", 1, 2)).await.unwrap_err();
    assert!(error.to_string().contains("has column `ident` where `id` was expected"), "{error}");
    assert_eq!((error.class(), newest_version(&lake.store()).await), (ErrorClass::Stop, 3));
    // It does not pass on the second try either.
    assert!(table.commit(commit("a", 1, 2)).await.is_err());
}

#[tokio::test]
async fn a_new_protocol_feature_stops_the_commit() {
    let lake = Lake::memory();
    let mut table = open(&lake).await;
    let protocol = json!({"protocol": {"minReaderVersion": 3, "minWriterVersion": 7,
        "readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors", "appendOnly"]}});
    foreign_commit(&lake.store(), 1, &protocol.to_string()).await.unwrap();
    let error = table.commit(commit("a", 0, 1)).await.unwrap_err();
    assert!(error.to_string().contains("deletionVectors"), "{error}");
    let error = Snapshot::load(&lake, FOLDER).await.unwrap_err();
    assert!(matches!(error, LakeError::Unsupported { verb: "read", .. }), "{error}");
}

#[tokio::test]
async fn commits_that_break_the_rules_are_refused_before_anything_is_written() {
    let lake = Lake::memory();
    let mut table = open(&lake).await;
    let no_position = Commit { advances: Vec::new(), ..commit("a", 0, 1) };
    let backwards = Commit { advances: vec![advance("a", 3, 1)], ..Commit::default() };
    let twice = Commit { advances: vec![advance("a", 0, 1), advance("a", 0, 2)], ..Commit::default() };
    let mut partitioned = commit("a", 0, 1);
    partitioned.files[0].partition_values.insert("city".to_owned(), None);
    for bad in [no_position, backwards, twice, partitioned] {
        let error = table.commit(bad).await.unwrap_err();
        assert!(matches!(error, LakeError::InvalidCommit { .. }), "{error}");
    }
    assert_eq!(newest_version(&lake.store()).await, 0);
}

#[tokio::test]
async fn files_that_waited_for_hours_are_not_committed() {
    let lake = Lake::memory();
    let mut table = open(&lake).await;
    let mut stale = commit("a", 0, 3);
    stale.files[0].modified_ms -= 7 * 60 * 60 * 1000;
    let outcome = table.commit(stale).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Fenced { app_id: "a".to_owned(), stored: 0 });
    assert_eq!(newest_version(&lake.store()).await, 0);
}

#[tokio::test]
async fn after_a_long_sleep_the_head_is_read_anew_and_no_hole_is_written_to() {
    let now = Arc::new(AtomicI64::new(now_ms()));
    let clock = Arc::clone(&now);
    let lake = Lake::memory().with_clock(Arc::new(move || clock.load(Ordering::SeqCst)));
    let mut sleeper = open(&lake).await;
    let snapshot = Snapshot::load(&lake, FOLDER).await.unwrap().unwrap();
    let mut owner = open(&lake).await.with_checkpoint_every(2);
    for from in 0..4 {
        owner.commit(commit("a", from, from + 1)).await.unwrap();
    }
    assert!(owner.checkpoint_due().unwrap().run().await.written);
    for version in 0..=3 {
        lake.store().delete(&commit_path(version)).await.unwrap();
    }
    now.fetch_add(2 * 60 * 60 * 1000, Ordering::SeqCst);
    let mut mine = commit("a", 0, 1);
    mine.files[0].modified_ms = now.load(Ordering::SeqCst);
    let outcome = sleeper.commit(mine).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Fenced { app_id: "a".to_owned(), stored: 4 });
    assert_eq!(snapshot.refresh(&lake).await.unwrap().version, 4);
}

#[tokio::test]
async fn racing_creators_make_one_table() {
    for seed in 0..20 {
        let chances =
            Chances { before: 15, after: 15, false_exists: 10, own_exists: 10, delay_ms: 2, ..Chances::default() };
        let store = FaultStore::over(Arc::new(InMemory::new()), seed, chances);
        let lake = lake_over(Arc::new(store.clone()));
        let spec = spec();
        tokio::time::pause();
        let opened = futures::future::join_all((0..8).map(|_| Table::open_or_create(&lake, &spec))).await;
        tokio::time::resume();
        assert!(opened.iter().all(|table| table.as_ref().unwrap().progress().version == 0), "seed {seed}");
        let clean = lake_over(store.inner());
        assert_eq!(log_names(&clean).await, ["00000000000000000000.json"], "seed {seed}");
    }
}

#[tokio::test]
async fn another_table_in_the_folder_is_a_clear_error() {
    let lake = Lake::memory();
    open(&lake).await;
    let mut other = spec();
    let mut fields: Vec<_> = other.schema.fields().iter().map(|field| field.as_ref().clone()).collect();
    fields[0] = arrow::datatypes::Field::new("id", arrow::datatypes::DataType::Utf8, true);
    other.schema = Arc::new(arrow::datatypes::Schema::new(fields));
    let error = Table::open_or_create(&lake, &other).await.unwrap_err();
    assert!(error.to_string().contains("column `id` of type Int64, expected Utf8"), "{error}");

    let mut partitioned = spec();
    partitioned.partition_by = vec!["id".to_owned()];
    let error = Table::open_or_create(&lake, &partitioned).await.unwrap_err();
    assert!(error.to_string().contains("is partitioned by [], expected [\"id\"]"), "{error}");
}

#[tokio::test]
async fn a_table_whose_log_was_made_as_strict_as_its_rows_is_still_ours() {
    let lake = Lake::memory();
    let spec = required_city_spec();
    Table::open_or_create(&lake, &spec).await.unwrap();
    let first = lake.store().get(&commit_path(0)).await.unwrap().bytes().await.unwrap();
    let lines = first.split(|byte| *byte == b'\n');
    let mut lines: Vec<Value> = lines.map(|line| serde_json::from_slice(line).unwrap()).collect();
    let metadata = lines.iter_mut().find_map(|line| line.get_mut("metaData")).unwrap();
    let strict = lake::to_delta_schema("orders", &spec.schema).unwrap();
    assert_ne!(metadata["schemaString"], strict);
    metadata["schemaString"] = json!(strict);
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    lake.store().put(&commit_path(0), lines.join("\n").into()).await.unwrap();

    let mut table = Table::open_or_create(&lake, &spec).await.unwrap();
    let mut next = commit("a", 0, 1);
    next.files[0].partition_values.insert("city".to_owned(), Some("Linz".to_owned()));
    assert!(matches!(table.commit(next).await.unwrap(), CommitOutcome::Committed { version: 1, .. }));
    // It does not do for rows that may have no city.
    let error = Table::open_or_create(&lake, &city_spec(&["city"])).await.unwrap_err();
    assert!(error.to_string().contains("column `city` of type Utf8 not null, expected Utf8"), "{error}");
}

#[tokio::test]
async fn a_new_table_has_the_settings_that_keep_others_from_harming_it() {
    let lake = Lake::memory();
    open(&lake).await;
    let (table, _) = library_table(&lake).await;
    let state = table.snapshot().unwrap();
    let configuration = state.metadata().configuration();
    let expected = [
        ("delta.appendOnly", "true"),
        ("delta.enableExpiredLogCleanup", "false"),
        ("delta.logRetentionDuration", "interval 2 days"),
        ("delta.deletedFileRetentionDuration", "interval 1 days"),
        ("delta.checkpointInterval", "1000000"),
        ("delta.dataSkippingStatsColumns", "id,__partition,__offset"),
    ];
    for (key, value) in expected {
        assert_eq!(configuration.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert_eq!((state.protocol().min_reader_version(), state.protocol().min_writer_version()), (1, 2));
}

#[tokio::test]
async fn only_a_local_timestamp_raises_the_protocol() {
    use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
    let lake = Lake::memory();
    let mut local = spec();
    let mut fields: Vec<_> = local.schema.fields().iter().map(|field| field.as_ref().clone()).collect();
    fields.push(Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, None), true));
    local.schema = Arc::new(Schema::new(fields));
    let mut table = Table::open_or_create(&lake, &local).await.unwrap();
    table.commit(commit("a", 0, 1)).await.unwrap();
    let (library, _) = library_table(&lake).await;
    let protocol = library.snapshot().unwrap().protocol().clone();
    assert_eq!((protocol.min_reader_version(), protocol.min_writer_version()), (3, 7));
    assert_eq!(Snapshot::load(&lake, FOLDER).await.unwrap().unwrap().schema, local.schema);
}

//! A log opened from a checkpoint is the log replayed from its beginning.

use lake::{FileEntry, Lake, LakeError, Snapshot, StoreConfig, Table};
use object_store::ObjectStoreExt;

use crate::{files::required_city_spec, support::*};

fn same(left: &Snapshot, right: &Snapshot) {
    let sorted = |snapshot: &Snapshot| {
        let mut files: Vec<FileEntry> = snapshot.files.iter().map(|file| file.as_ref().clone()).collect();
        files.sort_by(|left, right| left.path.cmp(&right.path));
        files
    };
    assert_eq!(
        (left.version, &left.schema, &left.partition_columns),
        (right.version, &right.schema, &right.partition_columns)
    );
    assert_eq!(left.txns, right.txns);
    assert_eq!(sorted(left), sorted(right));
}

/// Commits, with a foreign commit that removes a file in between, and writes the checkpoints that fall due.
async fn history(lake: &Lake, commits: i64) -> (Table, usize) {
    let mut table = open(lake).await.with_checkpoint_every(10);
    let mut written = 0;
    for from in 0..commits {
        table.commit(commit("a", from, from + 1)).await.unwrap();
        if from == 4 {
            let lines = concat!(
                r#"{"remove":{"path":"a.2.3.o.parquet","dataChange":false,"deletionTimestamp":1}}"#,
                "\n",
                r#"{"txn":{"appId":"early","version":7}}"#
            );
            foreign_commit(&lake.store(), 6, lines).await.unwrap();
        }
        if let Some(job) = table.checkpoint_due() {
            written += usize::from(job.run().await.written);
        }
    }
    (table, written)
}

async fn checkpoint_equals_replay(lake: &Lake) {
    let (table, written) = history(lake, 25).await;
    assert_eq!(written, 2, "at versions 10 and 20");
    let hint = lake.store().get(&log_path("_last_checkpoint")).await.unwrap().bytes().await.unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&hint).unwrap()["version"], 20);

    let from_checkpoint = Snapshot::load(lake, FOLDER).await.unwrap().unwrap();
    // Without hint and checkpoints the whole log is replayed.
    let names =
        ["_last_checkpoint", "00000000000000000010.checkpoint.parquet", "00000000000000000020.checkpoint.parquet"];
    let mut saved = Vec::new();
    for name in names {
        saved.push((name, lake.store().get(&log_path(name)).await.unwrap().bytes().await.unwrap()));
        lake.store().delete(&log_path(name)).await.unwrap();
    }
    let replayed = Snapshot::load(lake, FOLDER).await.unwrap().unwrap();
    same(&from_checkpoint, &replayed);
    let progress = open(lake).await.progress().clone();
    assert_eq!((replayed.rows(), progress.stored("a"), progress.stored("early")), (Some(24), 25, 7));

    // And with the checkpoints alone: the commits before them are gone, as after clean-up.
    for (name, bytes) in saved {
        lake.store().put(&log_path(name), bytes.into()).await.unwrap();
    }
    for version in 0..=20 {
        lake.store().delete(&commit_path(version)).await.unwrap();
    }
    same(&Snapshot::load(lake, FOLDER).await.unwrap().unwrap(), &replayed);
    assert_eq!(open(lake).await.progress(), &progress);
    assert_eq!(table.progress(), &progress);
    assert_eq!(library_counts(lake).await, (26, 24, 24));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_gives_the_same_table_as_a_full_replay() {
    checkpoint_equals_replay(&Lake::memory()).await;
}

#[tokio::test]
async fn a_checkpoint_is_written_on_a_current_thread_runtime_too() {
    checkpoint_equals_replay(&Lake::memory()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_is_written_to_a_local_folder() {
    let folder = tempfile::tempdir().unwrap();
    let url = folder.path().join("with space").to_str().unwrap().to_owned();
    let lake = Lake::open(&StoreConfig { url, ..StoreConfig::default() }).unwrap();
    checkpoint_equals_replay(&lake).await;
}

async fn garble_checkpoint(lake: &Lake, version: u64) {
    lake.store().put(&log_path(&format!("{version:020}.checkpoint.parquet")), "PAR1 no more".into()).await.unwrap();
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_read_costs_a_longer_replay_and_nothing_else() {
    let lake = Lake::memory();
    let (table, _) = history(&lake, 25).await;
    let expected = Snapshot::load(&lake, FOLDER).await.unwrap().unwrap();
    for version in [20, 10] {
        garble_checkpoint(&lake, version).await;
        same(&Snapshot::load(&lake, FOLDER).await.unwrap().unwrap(), &expected);
        assert_eq!(open(&lake).await.progress(), table.progress());
    }
    // With a commit before both gone, nothing says any more what they said.
    lake.store().delete(&commit_path(5)).await.unwrap();
    let error = Snapshot::load(&lake, FOLDER).await.unwrap_err();
    assert!(matches!(&error, LakeError::BrokenLog { version: 20, .. }), "{error}");
}

#[tokio::test]
async fn what_only_an_unreadable_checkpoint_says_is_not_taken_for_unsaid() {
    let lake = Lake::memory();
    history(&lake, 25).await;
    garble_checkpoint(&lake, 20).await;
    for version in 20..=26 {
        lake.store().delete(&commit_path(version)).await.unwrap();
    }
    let error = Snapshot::load(&lake, FOLDER).await.unwrap_err();
    assert!(matches!(&error, LakeError::BrokenLog { version: 20, .. }), "{error}");
}

#[tokio::test]
async fn an_empty_text_that_a_table_is_partitioned_by_keeps_no_checkpoint_and_no_reader_away() {
    let lake = Lake::memory();
    let spec = required_city_spec();
    let mut table = Table::open_or_create(&lake, &spec).await.unwrap().with_checkpoint_every(2);
    for (from, city) in [(0, ""), (1, "Linz")] {
        let mut next = commit("a", from, from + 1);
        next.files[0].partition_values.insert("city".to_owned(), Some(city.to_owned()));
        table.commit(next).await.unwrap();
    }
    let replayed = Snapshot::load(&lake, FOLDER).await.unwrap().unwrap();
    assert!(table.checkpoint_due().unwrap().run().await.written);
    let from_checkpoint = Snapshot::load(&lake, FOLDER).await.unwrap().unwrap();
    same(&from_checkpoint, &replayed);
    let mut cities = from_checkpoint.files.iter().map(|file| file.partition_values["city"].as_deref());
    assert!(cities.any(|city| city == Some("")), "to us it is still no null");
    assert_eq!(library_counts(&lake).await, (2, 2, 2));
    assert_eq!(Table::open_or_create(&lake, &spec).await.unwrap().progress().version, 2);
}

#[tokio::test]
async fn one_committer_is_asked_for_each_checkpoint() {
    let lake = Lake::memory();
    let mut first = open(&lake).await.with_checkpoint_every(4);
    let mut second = open(&lake).await.with_checkpoint_every(4);
    let mut asked = Vec::new();
    for turn in 0..12 {
        let (table, app_id) = if turn % 3 == 0 { (&mut second, "b") } else { (&mut first, "a") };
        let from = table.progress().stored(app_id);
        table.commit(commit(app_id, from, from + 1)).await.unwrap();
        asked.extend(table.checkpoint_due().map(|job| job.version()));
    }
    assert_eq!(asked, [4, 8, 12]);
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_written_only_warns() {
    let lake = Lake::memory();
    let mut table = open(&lake).await.with_checkpoint_every(1);
    table.commit(commit("a", 0, 1)).await.unwrap();
    let job = table.checkpoint_due().unwrap();
    for version in 0..=1 {
        lake.store().delete(&commit_path(version)).await.unwrap();
    }
    assert!(!job.run().await.written);
}

#[tokio::test]
async fn refreshing_reads_only_what_is_new() {
    let lake = Lake::memory();
    let mut table = open(&lake).await;
    table.commit(commit("a", 0, 1)).await.unwrap();
    let first = Snapshot::load(&lake, FOLDER).await.unwrap().unwrap();
    // Whoever read these again would fail.
    for version in 0..=1 {
        lake.store().delete(&commit_path(version)).await.unwrap();
    }
    let unchanged = first.refresh(&lake).await.unwrap();
    assert_eq!((unchanged.version, unchanged.committed_ms), (1, first.committed_ms));
    for from in 1..15 {
        table.commit(commit("a", from, from + 1)).await.unwrap();
    }
    let later = unchanged.refresh(&lake).await.unwrap();
    assert_eq!((later.version, later.rows(), later.txns["a"]), (15, Some(15), 15));
    assert_eq!((first.rows(), first.txns["a"]), (Some(1), 1), "a snapshot never changes");

    let line = r#"{"remove":{"path":"a.0.1.o.parquet","dataChange":false}}"#;
    foreign_commit(&lake.store(), 16, line).await.unwrap();
    let compacted = later.refresh(&lake).await.unwrap();
    assert_eq!((compacted.version, compacted.rows(), compacted.txns["a"]), (16, Some(14), 15));
}

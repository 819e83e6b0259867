//! The audit finds every planted fault, and nothing where there is none.

use std::sync::Arc;

use arrow::array::{Int32Array, Int64Array, RecordBatch};
use delivery::{Position, Totals, Writer};
use lake::{
    Advance, Commit, CommitOutcome, FileWriter, Lake, Table, WriterOptions, app_id,
    audit::{Audit, Holds, Rows, audit},
};
use object_store::{ObjectStoreExt, path::Path};
use serde_json::{Value, json};

use crate::support::{FOLDER, commit_path, log_path, open, spec};

const CHANNEL: &str = "tailwater.channel.shop.orders.1";

/// A table of `commits` commits of ten rows each, from one partition, as the storage service writes them.
async fn table(commits: i64) -> Lake {
    let lake = Lake::memory();
    let mut table = open(&lake).await.with_checkpoint_every(3);
    for number in 0..commits {
        append(&lake, &mut table, number).await;
        if let Some(job) = table.checkpoint_due() {
            assert!(job.run().await.written, "a checkpoint is written");
        }
    }
    lake
}

async fn append(lake: &Lake, table: &mut Table, number: i64) {
    let offsets: Vec<i64> = (number * 10..number * 10 + 10).collect();
    let schema = Arc::clone(&spec().schema);
    let columns = vec![
        Arc::new(Int64Array::from(offsets.clone())) as _,
        Arc::new(Int32Array::from(vec![3; 10])) as _,
        Arc::new(Int64Array::from(offsets)) as _,
    ];
    let mut writer = FileWriter::new(lake, &spec(), WriterOptions::default()).unwrap();
    writer.write(&RecordBatch::try_new(schema, columns).unwrap()).unwrap();
    let mut files = Vec::new();
    for file in writer.close().unwrap() {
        files.push(file.upload(lake).await.unwrap());
    }
    let commit = Commit { files, advances: advances(number), info: serde_json::Map::new() };
    assert!(matches!(table.commit(commit).await.unwrap(), CommitOutcome::Committed { .. }));
}

fn advances(number: i64) -> Vec<Advance> {
    let writer = Writer::new("shop.orders/3");
    let at = |number: i64| {
        let rows = u64::try_from(number * 10).unwrap();
        let end = Position::at(rows).pack().unwrap();
        let totals = Totals { read: rows, emitted: rows, ..Totals::default() };
        let mut named: Vec<(String, i64)> =
            vec![(app_id::next_offset(CHANNEL, 3), number), (app_id::end(CHANNEL, 3, &writer), end)];
        let counted = app_id::named_totals(CHANNEL, 3, &writer, &totals);
        named.extend(counted.map(|(name, count)| (name, i64::try_from(count).unwrap())));
        named
    };
    let pairs = at(number).into_iter().zip(at(number + 1)).filter(|((_, from), (_, to))| from != to);
    pairs.map(|((app_id, from), (_, to))| Advance { app_id, from, to }).collect()
}

/// The audit with footers only, and the one that reads all rows: they must agree on everything but strays.
async fn audited(lake: &Lake) -> Audit {
    audit(lake, FOLDER, Holds::Emitted, None).await.unwrap().unwrap()
}

async fn with_rows(lake: &Lake) -> (Audit, Vec<i64>) {
    let mut seen = Vec::new();
    let mut show = |batch: &RecordBatch| {
        let ids = batch.column_by_name("id").unwrap().as_any().downcast_ref::<Int64Array>().unwrap();
        seen.extend(ids.values().iter().copied());
    };
    let rows = Rows { columns: &["id"], show: &mut show };
    let audit = audit(lake, FOLDER, Holds::Emitted, Some(rows)).await.unwrap().unwrap();
    (audit, seen)
}

/// The lines of a commit, changed.
async fn rewrite(lake: &Lake, version: u64, change: impl Fn(&mut Vec<Value>)) {
    let bytes = lake.store().get(&commit_path(version)).await.unwrap().bytes().await.unwrap();
    let text = std::str::from_utf8(&bytes).unwrap();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    change(&mut lines);
    let text: Vec<String> = lines.iter().map(Value::to_string).collect();
    lake.store().put(&commit_path(version), text.join("\n").into()).await.unwrap();
}

/// Every version's checkpoint, so that planted faults in commits are not also differences to a checkpoint.
async fn drop_checkpoints(lake: &Lake) {
    for version in [3, 6] {
        lake.store().delete(&log_path(&format!("{version:020}.checkpoint.parquet"))).await.unwrap();
    }
    lake.store().delete(&log_path("_last_checkpoint")).await.unwrap();
}

async fn first_file(lake: &Lake, version: u64) -> Path {
    let bytes = lake.store().get(&commit_path(version)).await.unwrap().bytes().await.unwrap();
    let text = std::str::from_utf8(&bytes).unwrap();
    let add = text.lines().find_map(|line| serde_json::from_str::<Value>(line).unwrap().get("add").cloned()).unwrap();
    Path::parse(format!("{FOLDER}/{}", add["path"].as_str().unwrap())).unwrap()
}

fn told(audit: &Audit) -> String {
    audit.told.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn a_table_as_storage_writes_it_is_clean_and_shows_its_rows_in_order() {
    let lake = table(8).await;
    let audit = audited(&lake).await;
    assert!(audit.is_clean(), "{}", told(&audit));
    assert_eq!((audit.version, audit.commits, audit.foreign, audit.files, audit.rows), (8, 9, 0, 8, 80));
    assert_eq!(audit.positions, 4, "next, end, read and emitted");
    let (whole, seen) = with_rows(&lake).await;
    assert_eq!(whole, audit);
    assert_eq!(seen, (0..80).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_log_whose_beginning_was_cleaned_up_is_audited_from_its_oldest_checkpoint() {
    let lake = table(8).await;
    for version in 0..=3 {
        lake.store().delete(&commit_path(version)).await.unwrap();
    }
    let audit = audited(&lake).await;
    assert!(audit.is_clean(), "{}", told(&audit));
    assert_eq!((audit.commits, audit.files, audit.rows), (5, 8, 80));
}

#[tokio::test]
async fn no_table_is_no_audit() {
    assert!(audit(&Lake::memory(), FOLDER, Holds::Emitted, None).await.unwrap().is_none());
}

#[tokio::test]
async fn a_hole_in_the_versions_is_found() {
    let lake = table(8).await;
    lake.store().delete(&commit_path(5)).await.unwrap();
    let audit = audited(&lake).await;
    assert!(told(&audit).contains("version 5: the commit is missing"), "{}", told(&audit));
}

#[tokio::test]
async fn a_torn_commit_is_found() {
    let lake = table(4).await;
    lake.store().put(&commit_path(2), r#"{"add":{"#.into()).await.unwrap();
    assert!(told(&audited(&lake).await).contains("version 2: the commit is not valid JSON"));
}

#[tokio::test]
async fn a_missing_file_is_found() {
    let lake = table(4).await;
    lake.store().delete(&first_file(&lake, 2).await).await.unwrap();
    let audit = audited(&lake).await;
    assert_eq!(audit.faults, 1);
    assert!(told(&audit).contains("version 2") && told(&audit).contains("is missing from the store"));
    assert_eq!(with_rows(&lake).await.0, audit);
}

#[tokio::test]
async fn a_file_of_another_size_is_found() {
    let lake = table(4).await;
    let path = first_file(&lake, 3).await;
    let bytes = lake.store().get(&path).await.unwrap().bytes().await.unwrap();
    lake.store().put(&path, bytes.slice(..bytes.len() - 1).into()).await.unwrap();
    let audit = audited(&lake).await;
    assert_eq!(audit.faults, 1);
    assert!(told(&audit).contains("bytes, the log says"), "{}", told(&audit));
}

#[tokio::test]
async fn a_file_that_is_damaged_at_its_size_is_found() {
    let lake = table(4).await;
    let path = first_file(&lake, 3).await;
    let mut bytes = lake.store().get(&path).await.unwrap().bytes().await.unwrap().to_vec();
    let end = bytes.len();
    bytes[end - 40..].fill(7);
    lake.store().put(&path, bytes.into()).await.unwrap();
    assert!(told(&audited(&lake).await).contains("footer"));
    assert!(!with_rows(&lake).await.0.is_clean());
}

#[tokio::test]
async fn another_number_of_rows_than_the_log_says_is_found() {
    let lake = table(8).await;
    drop_checkpoints(&lake).await;
    rewrite(&lake, 4, |lines| {
        let add = lines.iter_mut().find_map(|line| line.get_mut("add")).unwrap();
        add["stats"] = json!(r#"{"numRecords":11}"#);
    })
    .await;
    let text = told(&audited(&lake).await);
    assert!(text.contains("version 4: 11 rows are added, the positions say 10"), "{text}");
    assert!(text.contains("has 10 rows, the log says 11"), "{text}");
}

#[tokio::test]
async fn a_path_that_is_added_twice_is_found() {
    let lake = table(8).await;
    drop_checkpoints(&lake).await;
    let path = first_file(&lake, 2).await.filename().unwrap().to_owned();
    rewrite(&lake, 5, |lines| {
        let add = lines.iter_mut().find_map(|line| line.get_mut("add")).unwrap();
        add["path"] = json!(path);
    })
    .await;
    let text = told(&audited(&lake).await);
    assert!(
        text.contains("version 5") && text.contains("added again, it is part of the table since version 2"),
        "{text}"
    );
}

#[tokio::test]
async fn a_position_that_goes_back_is_found() {
    let lake = table(8).await;
    drop_checkpoints(&lake).await;
    rewrite(&lake, 6, |lines| {
        let mut txns = lines.iter_mut().filter_map(|line| line.get_mut("txn"));
        let next = txns.find(|txn| txn["appId"].as_str().unwrap().starts_with("tailwater/next")).unwrap();
        next["version"] = json!(2);
    })
    .await;
    let text = told(&audited(&lake).await);
    assert!(text.contains("version 6") && text.contains("goes back from 5 to 2"), "{text}");
}

#[tokio::test]
async fn rows_without_a_move_of_positions_are_found() {
    let lake = table(8).await;
    drop_checkpoints(&lake).await;
    rewrite(&lake, 4, |lines| lines.retain(|line| line.get("txn").is_none())).await;
    let text = told(&audited(&lake).await);
    assert!(text.contains("version 4: 10 rows are added and no position moves"), "{text}");
    assert!(text.contains("version 5: 10 rows are added, the positions say 20"), "{text}");
}

#[tokio::test]
async fn a_commit_that_landed_twice_is_found() {
    let lake = table(4).await;
    let twice = lake.store().get(&commit_path(4)).await.unwrap().bytes().await.unwrap();
    lake.store().put(&commit_path(5), twice.into()).await.unwrap();
    let audit = audited(&lake).await;
    let text = told(&audit);
    assert!(text.contains("version 5: the same commit stands at version 4 already"), "{text}");
    assert!(text.contains("added again"), "{text}");
}

#[tokio::test]
async fn a_checkpoint_that_differs_from_the_log_is_found() {
    let lake = table(8).await;
    rewrite(&lake, 2, |lines| lines.retain(|line| line.get("add").is_none())).await;
    let text = told(&audited(&lake).await);
    assert!(text.contains("version 3: the checkpoint lacks 0 files, has 1 too many and 0 twice"), "{text}");
}

#[tokio::test]
async fn rows_from_input_that_their_commit_does_not_cover_are_found() {
    let lake = table(8).await;
    drop_checkpoints(&lake).await;
    let other = first_file(&lake, 7).await.filename().unwrap().to_owned();
    let size = lake.store().head(&first_file(&lake, 7).await).await.unwrap().size;
    rewrite(&lake, 2, |lines| {
        let add = lines.iter_mut().find_map(|line| line.get_mut("add")).unwrap();
        add["path"] = json!(other);
        add["size"] = json!(size);
    })
    .await;
    rewrite(&lake, 7, |lines| lines.retain(|line| line.get("add").is_none())).await;
    let (audit, _) = with_rows(&lake).await;
    let text = told(&audit);
    assert!(text.contains("has 10 rows from input that its commit does not cover"), "{text}");
}

#[tokio::test]
async fn commits_of_other_programs_are_allowed() {
    let lake = table(2).await;
    let body = r#"{"commitInfo":{"operation":"WRITE"}}"#;
    lake.store().put(&commit_path(3), body.into()).await.unwrap();
    let audit = audited(&lake).await;
    assert!(audit.is_clean(), "{}", told(&audit));
    assert_eq!(audit.foreign, 1);
}

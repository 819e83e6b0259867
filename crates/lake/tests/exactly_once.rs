//! The property that matters: many committers, any faults, foreign commits in between; every row once.
//!
//! Each position stands for a channel partition of a fixed length. Two owners per position (one of them a zombie)
//! commit stretches of it in sizes of their own choosing. At the end the files of the table must tile each partition.

use std::{collections::BTreeMap, sync::Arc};

use lake::{Commit, CommitOutcome, Lake, Snapshot, Table};
use object_store::{ObjectStore, ObjectStoreExt, memory::InMemory};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::{
    faults::{Chances, FaultStore},
    support::*,
};

const PARTITIONS: u32 = 3;
const OWNERS: u32 = 2;
const LENGTH: i64 = 12;

fn seeds() -> Vec<u64> {
    match std::env::var("TAILWATER_SEED") {
        Ok(seed) => vec![seed.parse().expect("TAILWATER_SEED is a number")],
        Err(_) => (0..150).collect(),
    }
}

#[tokio::test(start_paused = true)]
async fn rows_are_in_the_table_exactly_once_whatever_fails() {
    let mut fenced = 0;
    for seed in seeds() {
        fenced += one_schedule(seed).await;
    }
    assert!(fenced > 0 || std::env::var("TAILWATER_SEED").is_ok(), "no schedule had two owners at odds");
}

async fn one_schedule(seed: u64) -> u64 {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut chance = |most: u32| dice.random_range(0..=most);
    let chances = Chances {
        before: chance(15),
        after: chance(15),
        false_exists: chance(10),
        own_exists: chance(10),
        reads: chance(15),
        delay_ms: 40,
    };
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let lake = lake_over(Arc::new(FaultStore::over(Arc::clone(&inner), seed, chances))).with_seed(seed);
    let mut tasks = JoinSet::new();
    for partition in 0..PARTITIONS {
        for owner in 0..OWNERS {
            let (lake, dice) = (lake.clone(), StdRng::seed_from_u64(seed ^ u64::from(partition * 10 + owner + 1)));
            tasks.spawn(own(lake, format!("p{partition}"), format!("{owner}"), dice));
        }
    }
    #[allow(clippy::disallowed_methods, reason = "awaited at the end of this test")]
    tasks.spawn(disturb(Arc::clone(&inner), StdRng::seed_from_u64(!seed)));
    let mut acknowledged = BTreeMap::new();
    let mut fenced = 0;
    while let Some(joined) = tasks.join_next().await {
        let report = joined.unwrap_or_else(|panic| panic!("seed {seed}: {panic}"));
        acknowledged.extend(report.committed);
        fenced += report.fenced;
    }
    check(seed, &lake_over(inner), acknowledged).await;
    fenced
}

#[derive(Default)]
struct Report {
    /// Version of each acknowledged file.
    committed: BTreeMap<String, u64>,
    fenced: u64,
}

/// One owner of one position: reads on from where the table is, commits, and does what the outcome says.
async fn own(lake: Lake, app_id: String, owner: String, mut dice: StdRng) -> Report {
    let mut report = Report::default();
    let mut table = loop {
        match Table::open_or_create(&lake, &spec()).await {
            Ok(table) => break table,
            Err(error) => assert_eq!(error.class(), delivery::ErrorClass::Retry, "{error}"),
        }
    };
    let mut position = table.progress().stored(&app_id);
    while position < LENGTH {
        let to = (position + dice.random_range(1..=4)).min(LENGTH);
        let files = vec![file(&app_id, position, to, &owner)];
        let path = files[0].path.clone();
        let wanted = Commit { files, advances: vec![advance(&app_id, position, to)], ..Commit::default() };
        // The same commit again and again, as the storage service does: never a new file for an open outcome.
        let outcome = loop {
            match table.commit(wanted.clone()).await {
                Ok(outcome) => break outcome,
                Err(error) => assert_eq!(error.class(), delivery::ErrorClass::Retry, "{error}"),
            }
        };
        position = match outcome {
            CommitOutcome::Committed { version, .. } => {
                report.committed.insert(path, version);
                to
            }
            CommitOutcome::Fenced { stored, .. } => {
                report.fenced += 1;
                stored
            }
        };
    }
    report
}

/// Commits of others: maintenance without rows, and another pipeline's position.
async fn disturb(store: Arc<dyn ObjectStore>, mut dice: StdRng) -> Report {
    let mut committed = 0;
    while committed < 6 {
        tokio::time::sleep(std::time::Duration::from_millis(dice.random_range(1..200))).await;
        if store.head(&commit_path(0)).await.is_err() {
            continue;
        }
        let next = newest_version(&store).await + 1;
        let line = format!(r#"{{"txn":{{"appId":"stranger","version":{committed}}}}}"#);
        if foreign_commit(&store, next, &line).await.is_some() {
            committed += 1;
        }
    }
    Report::default()
}

async fn check(seed: u64, lake: &Lake, acknowledged: BTreeMap<String, u64>) {
    // Loading fails where versions are not contiguous.
    let snapshot = Snapshot::load(lake, FOLDER).await.unwrap().unwrap();
    assert_eq!(snapshot.version, newest_version(&lake.store()).await, "seed {seed}");
    assert_eq!(snapshot.rows(), Some(u64::from(PARTITIONS) * LENGTH as u64), "seed {seed}");
    for partition in 0..PARTITIONS {
        let app_id = format!("p{partition}");
        assert_eq!(snapshot.txns[&app_id], LENGTH, "seed {seed}");
        let mut stretches: Vec<(i64, i64)> =
            snapshot.files.iter().filter_map(|file| stretch(&file.path, &app_id)).collect();
        stretches.sort_unstable();
        let end = stretches.iter().fold(0, |end, (from, to)| {
            assert_eq!(*from, end, "seed {seed}: {app_id} has {stretches:?}");
            *to
        });
        assert_eq!(end, LENGTH, "seed {seed}: {app_id} has {stretches:?}");
    }
    assert_eq!(snapshot.txns["stranger"], 5, "seed {seed}");
    for (path, version) in acknowledged {
        let body = lake.store().get(&commit_path(version)).await.unwrap().bytes().await.unwrap();
        let named = body
            .split(|byte| *byte == b'\n')
            .any(|line| serde_json::from_slice::<Value>(line).unwrap()["add"]["path"] == path);
        assert!(named, "seed {seed}: version {version} was acknowledged for {path} and does not name it");
    }
}

fn stretch(path: &str, app_id: &str) -> Option<(i64, i64)> {
    let mut parts = path.split('.');
    (parts.next()? == app_id).then_some(())?;
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

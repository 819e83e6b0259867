//! A real S3 server, and two readers by other people. Skipped loudly where they cannot be had.

use std::collections::BTreeMap;

use delivery::ErrorClass;
use lake::{CommitOutcome, Lake, LakeError, Snapshot, StoreConfig, Table};
use testkit::{VersityGateway, python};
use tokio::task::{JoinSet, block_in_place};

use crate::{
    files::{append, city_spec, rows_survive},
    support::*,
};

fn config(gateway: &VersityGateway, prefix: &str) -> StoreConfig {
    StoreConfig { url: format!("{}/{prefix}", gateway.url()), options: gateway.options() }
}

fn start() -> Option<VersityGateway> {
    block_in_place(VersityGateway::start).unwrap()
}

/// Both readers see the version, rows, sums and positions of the snapshot.
async fn readers_agree(lake: &Lake, options: BTreeMap<String, String>) {
    let snapshot = Snapshot::load(lake, FOLDER).await.unwrap().unwrap();
    let address = lake.table_url(FOLDER).to_string();
    let address = address.strip_prefix("file://").map_or(address.clone(), str::to_owned);
    let tables = BTreeMap::from([("orders".to_owned(), address)]);
    let Some(seen) = block_in_place(|| python::read_delta(&tables, &options)).unwrap() else { return };
    let facts = &seen["orders"];
    assert_eq!((facts.version, Some(facts.rows)), (snapshot.version, snapshot.rows()));
    assert_eq!(facts.sums["id"], (0..17).sum::<i64>().to_string());
    if !facts.txns.is_empty() {
        assert_eq!(&facts.txns, snapshot.txns.as_ref());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn independent_readers_see_what_we_wrote_to_a_local_folder() {
    let folder = tempfile::tempdir().unwrap();
    let url = folder.path().to_str().unwrap().to_owned();
    let lake = Lake::open(&StoreConfig { url, ..StoreConfig::default() }).unwrap();
    rows_survive(&lake, &["city"]).await;
    readers_agree(&lake, BTreeMap::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_s3_server_passes_the_probe_and_readers_see_what_we_wrote() {
    let Some(gateway) = start() else { return };
    for (prefix, partition_by) in [("plain", vec![]), ("by%20city", vec!["city"])] {
        let lake = Lake::open(&config(&gateway, prefix)).unwrap();
        lake.probe().await.unwrap();
        rows_survive(&lake, &partition_by).await;
        readers_agree(&lake, gateway.options()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_committers_on_a_real_s3_server_lose_and_double_nothing() {
    let Some(gateway) = start() else { return };
    let mut owners = JoinSet::new();
    for owner in 0..6_u32 {
        let lake = Lake::open(&config(&gateway, "race")).unwrap();
        owners.spawn(async move {
            // Three positions with two owners each.
            let app_id = format!("p{}", owner % 3);
            let mut table = open(&lake).await.with_checkpoint_every(7);
            let mut position = table.progress().stored(&app_id);
            while position < 10 {
                position = match table.commit(commit(&app_id, position, position + 1)).await.unwrap() {
                    CommitOutcome::Committed { .. } => position + 1,
                    CommitOutcome::Fenced { stored, .. } => stored,
                };
                if let Some(job) = table.checkpoint_due() {
                    assert!(job.run().await.written);
                }
            }
        });
    }
    while let Some(joined) = owners.join_next().await {
        joined.unwrap();
    }
    let lake = Lake::open(&config(&gateway, "race")).unwrap();
    let snapshot = Snapshot::load(&lake, FOLDER).await.unwrap().unwrap();
    assert_eq!((snapshot.version, snapshot.rows(), snapshot.files.len()), (30, Some(30), 30));
    assert!((0..3).all(|position| snapshot.txns[&format!("p{position}")] == 10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_survives_the_death_of_the_server_in_between() {
    let Some(mut gateway) = start() else { return };
    let lake = Lake::open(&config(&gateway, "death")).unwrap();
    let mut table = Table::open_or_create(&lake, &city_spec(&[])).await.unwrap();
    append(&lake, &mut table, 0, 10).await;
    block_in_place(|| gateway.kill()).unwrap();
    let pending = table.commit(commit("a", 10, 17));
    let (outcome, restarted) = tokio::join!(pending, async { block_in_place(|| gateway.restart()) });
    restarted.unwrap();
    assert!(matches!(outcome.unwrap(), CommitOutcome::Committed { version: 2, .. }));
    assert_eq!(Snapshot::load(&lake, FOLDER).await.unwrap().unwrap().rows(), Some(17));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_s3_server_explains_a_missing_bucket_and_wrong_keys() {
    let Some(gateway) = start() else { return };
    let good = config(&gateway, "");
    let no_bucket = StoreConfig { url: "s3://no-such-bucket/x".to_owned(), ..good.clone() };
    let mut wrong_secret = good.clone();
    wrong_secret.options.insert("aws_secret_access_key".to_owned(), "wrong".to_owned());
    let mut wrong_key = good;
    wrong_key.options.insert("aws_access_key_id".to_owned(), "nobody".to_owned());
    let cases = [
        (no_bucket, "bucket `no-such-bucket` does not exist; create it"),
        (wrong_secret, "check keys and policy"),
        // This server answers 404 to a key it does not know.
        (wrong_key, "does not know bucket `lake` or the access key; check both"),
    ];
    for (config, expected) in cases {
        let error = Lake::open(&config).unwrap().probe().await.unwrap_err();
        assert!(matches!(error, LakeError::StoreRefused { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.class(), ErrorClass::Stop);
    }
}

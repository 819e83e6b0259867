//! A request with a key may be sent again: its rows are stored once, from the door to the channel.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use arrow::{array::Int64Array, record_batch::RecordBatch};
use batch::Compression;
use bytes::Bytes;
use delivery::{Position, REQUEST_WINDOW};
use ingestion::{KEY_HEADER, RANGE_HEADER, worker::Worker};
use lake::{Checkpoints, Lake};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use runtime::units::Duration;
use serde_json::{Value, json};
use topics::{Log as _, TopicSettings, memory::Fault};

use crate::{
    http::{Site, answer},
    world::{World, tiny, topic},
};

const NUMBERS: &str = "CREATE SOURCE orders (id BIGINT NOT NULL, note VARCHAR) WITH (topic = 'shop.orders');";
const NDJSON: &str = "application/x-ndjson";

fn lines(ids: std::ops::Range<u64>) -> String {
    ids.map(|id| format!("{{\"id\":{id},\"note\":\"a note that takes some room\"}}\n")).collect()
}

async fn post(site: &Site, key: &str, body: &str) -> (u16, Value) {
    answer(site.orders(NDJSON, body.to_owned()).header("idempotency-key", key)).await
}

/// A task that soon covers what came to nothing.
fn worker(world: &World, lake: &Lake) -> Arc<Worker> {
    let mut config = world.config.clone();
    config.checkpoint_every = Duration::millis(10);
    world.worker_on(lake.clone(), config)
}

/// Runs a life to the end of the topic; the ids stored, in order.
async fn ids(world: &World, lake: &Lake) -> Vec<u64> {
    let end = world.input_end().await;
    world.live_until(worker(world, lake), end).await.unwrap();
    stored(world).await
}

async fn stored(world: &World) -> Vec<u64> {
    let taken = world.data().await;
    taken.rows.iter().map(|(_, row)| row.split('|').next().unwrap().parse().unwrap()).collect()
}

#[tokio::test]
async fn a_request_sent_twice_is_stored_once_and_counted_once() {
    let world = World::new(NUMBERS).await;
    let site = Site::over(Arc::clone(&world.log)).await;
    for _ in 0..2 {
        let (status, body) = post(&site, "till:0", &lines(0..3)).await;
        assert_eq!(status, 200, "{body}");
    }
    let (status, _) = post(&site, "till:1", &lines(3..4)).await;
    assert_eq!(status, 200);
    assert_eq!(ids(&world, &world.lake).await, [0, 1, 2, 3]);
    let totals = world.data().await.envelopes.last().unwrap().totals;
    assert_eq!((totals.read, totals.emitted), (4, 4), "a repeat is not read again");
    assert!(totals.balanced());
    site.close().await;
}

#[tokio::test]
async fn without_a_key_nothing_is_taken_for_a_repeat() {
    let world = World::new(NUMBERS).await;
    let site = Site::over(Arc::clone(&world.log)).await;
    for _ in 0..2 {
        let (status, _) = answer(site.orders(NDJSON, lines(0..1))).await;
        assert_eq!(status, 200);
    }
    assert_eq!(ids(&world, &world.lake).await, [0, 0]);
    site.close().await;
}

#[tokio::test]
async fn after_a_lost_reply_anywhere_in_a_request_the_second_try_adds_what_is_missing() {
    // Three parts.
    let body = lines(0..30_000);
    for fault in [Fault::FailBefore, Fault::FailAfter] {
        for failing in 0..3 {
            let world = World::new(NUMBERS).await;
            let site = Site::over(Arc::clone(&world.log)).await;
            let number = AtomicU64::new(0);
            world.log.set_faults(
                move |_| {
                    if number.fetch_add(1, Ordering::SeqCst) == failing { fault } else { Fault::None }
                },
            );
            let (status, answered) = post(&site, "till:7", &body).await;
            assert_eq!((status, &answered["retry"], &answered["stored"]), (503, &json!(true), &json!("unknown")));
            assert!(answered["hint"].as_str().unwrap().contains("same Idempotency-Key again"), "{answered}");
            world.log.clear_faults();
            let (status, answered) = post(&site, "till:7", &body).await;
            assert_eq!(status, 200, "{answered}");
            assert!(answered["parts"].as_array().unwrap().len() > 2, "{answered}");
            let mut found = ids(&world, &world.lake).await;
            found.sort_unstable();
            assert!(found == Vec::from_iter(0..30_000), "{fault:?} of part {failing}: {} rows", found.len());
            site.close().await;
        }
    }
}

#[tokio::test]
async fn a_repeat_is_known_after_a_restart_with_and_without_a_checkpoint() {
    let world = World::new(NUMBERS).await;
    let site = Site::over(Arc::clone(&world.log)).await;
    post(&site, "till:0", &lines(0..3)).await;
    assert_eq!(ids(&world, &world.lake).await, [0, 1, 2]);
    let checkpoints = Checkpoints::new(&world.lake, &world.worker().stage());
    assert!(!checkpoints.newest(0).await.unwrap().unwrap().seen.is_empty());

    post(&site, "till:0", &lines(0..3)).await;
    post(&site, "till:1", &lines(3..5)).await;
    assert_eq!(ids(&world, &world.lake).await, [0, 1, 2, 3, 4], "from the checkpoint");
    post(&site, "till:1", &lines(3..5)).await;
    assert_eq!(ids(&world, &Lake::memory()).await, [0, 1, 2, 3, 4], "from the beginning of the topic");
    let totals = world.data().await.envelopes.last().unwrap().totals;
    assert_eq!((totals.read, totals.emitted), (5, 5));
    site.close().await;
}

#[tokio::test]
async fn every_instance_sends_a_producer_to_the_same_partition() {
    let world = World::new(&NUMBERS.replace("');", "', partitions = 4);")).await;
    world.log.delete(&topic("shop.orders"));
    let grown = TopicSettings { partitions: 9, ..TopicSettings::default() };
    world.log.create(&topic("shop.orders"), &grown).await.unwrap();
    let sites = [Site::over(Arc::clone(&world.log)).await, Site::over(Arc::clone(&world.log)).await];
    let mut used = BTreeSet::new();
    for producer in 0..20 {
        let mut partitions = BTreeSet::new();
        for (sequence, site) in sites.iter().chain(&sites).enumerate() {
            let (status, body) = post(site, &format!("p{producer}:{sequence}"), &lines(0..10)).await;
            assert_eq!(status, 200, "{body}");
            partitions.insert(body["parts"][0]["partition"].as_u64().unwrap());
        }
        assert_eq!(partitions.len(), 1, "p{producer}");
        used.extend(partitions);
    }
    assert_eq!(used, BTreeSet::from([0, 1, 2, 3]), "of the partitions the definition names, however many there are");
    for site in sites {
        site.close().await;
    }
}

#[tokio::test]
async fn a_key_that_is_not_one_is_refused() {
    let world = World::new(NUMBERS).await;
    let site = Site::over(Arc::clone(&world.log)).await;
    for key in ["4711", "till:", "till:-1", ":1", "a b:1"] {
        let (status, body) = post(&site, key, &lines(0..1)).await;
        assert_eq!(status, 400, "{key}: {body}");
        assert!(body["hint"].as_str().unwrap().contains("<producer>:<sequence>"), "{body}");
        assert_eq!(body["stored"], "nothing");
    }
    assert_eq!(world.input_end().await, Position::START);
    site.close().await;
}

fn keyed(key: &str, range: Option<&str>) -> topics::Headers {
    let mut headers = vec![(KEY_HEADER.to_owned(), Bytes::copy_from_slice(key.as_bytes()))];
    headers.extend(range.map(|range| (RANGE_HEADER.to_owned(), Bytes::copy_from_slice(range.as_bytes()))));
    headers
}

#[tokio::test]
async fn what_cannot_be_told_from_a_repeat_is_kept_as_a_dead_letter() {
    let world = World::new(NUMBERS).await;
    let newest = format!("till:{REQUEST_WINDOW}");
    for (key, range) in [
        ("till:0", None),
        (newest.as_str(), None),
        ("till:0", None),
        ("no key", None),
        ("other:1", Some("bytes 5-1/9")),
        ("other:1", Some("bytes 0-500/500")),
    ] {
        world.send_with(lines(7..8).as_bytes(), keyed(key, range)).await;
    }
    assert_eq!(ids(&world, &world.lake).await, [7, 7]);
    let rejected = world.rejected().await.rows;
    assert_eq!(rejected.len(), 4);
    for ((offset, row), says) in rejected.iter().zip(["behind its window", "no key", "bytes 5-1/9", "says 500 bytes"]) {
        assert!(row.contains(says) && row.contains("\"id\":7"), "{offset}: {row}");
    }
    let totals = world.data().await.envelopes.last().unwrap().totals;
    assert_eq!((totals.read, totals.rejected), (6, 4), "each counts as the row it may be");
    assert!(totals.balanced());
}

#[tokio::test]
async fn a_user_program_may_send_keys_with_its_messages() {
    let world = World::new(NUMBERS).await;
    for (key, id) in [("till:0", 0), ("till:1", 1), ("till:0", 0), ("other:0", 2), ("till:1", 1)] {
        world.send_with(lines(id..id + 1).as_bytes(), keyed(key, None)).await;
    }
    world.send(&[lines(9..10)]).await;
    assert_eq!(ids(&world, &world.lake).await, [0, 1, 2, 9]);
}

#[tokio::test]
async fn a_second_try_cut_at_other_rows_gives_each_row_once_in_every_format() {
    let arrow = |ids: std::ops::Range<i64>| -> Bytes {
        let rows = RecordBatch::try_from_iter([("id", Arc::new(Int64Array::from_iter_values(ids)) as _)]).unwrap();
        batch::encode_stream(&rows, Compression::None).unwrap()
    };
    let csv = |ids: std::ops::Range<u64>| format!("id,note\n{}", ids.map(|id| format!("{id},x\n")).collect::<String>());
    let line = |ids: std::ops::Range<u64>| ids.map(|id| format!("{{\"id\":{id}}}\n")).collect::<String>();
    let world = World::new(NUMBERS).await;
    /// A payload, and the rows of the request it holds.
    type Part = (Bytes, std::ops::Range<u64>);
    let tries: [(&str, &str, u64, [Part; 2]); 3] = [
        (NDJSON, "bytes", 9, [(line(0..2).into(), 0..2), (line(1..4).into(), 1..4)]),
        ("text/csv; header=present", "bytes", 4, [(csv(4..6).into(), 0..2), (csv(5..8).into(), 1..4)]),
        ("application/vnd.apache.arrow.stream", "rows", 1, [(arrow(8..10), 0..2), (arrow(9..12), 1..4)]),
    ];
    for (index, (content_type, unit, width, parts)) in tries.into_iter().enumerate() {
        for (payload, rows) in parts {
            let range = format!("{unit} {}-{}/{}", width * rows.start, width * rows.end, width * 4);
            let mut headers = keyed(&format!("till:{index}"), Some(&range));
            headers.push(("content-type".into(), Bytes::from_static(content_type.as_bytes())));
            world.send_with(&payload, headers).await;
        }
    }
    assert_eq!(ids(&world, &world.lake).await, Vec::from_iter(0..12));
    assert_eq!(world.rejected().await.rows.len(), 0);
}

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("TAILWATER_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..6,
    }
}

#[tokio::test]
async fn any_tries_through_any_door_and_any_lives_store_each_row_once() {
    for seed in seeds() {
        let mut random = StdRng::seed_from_u64(seed);
        let mut world = World::new(NUMBERS).await;
        world.config = tiny(&world.config, 3, 100_000, 500_000);
        let sites = [Site::over(Arc::clone(&world.log)).await, Site::over(Arc::clone(&world.log)).await];
        // Each request is sent at least once, in any order; its last try is repeated until it is acknowledged.
        let mut tries: Vec<(u64, u64)> = (0..4).flat_map(|producer| (0..6).map(move |n| (producer, n))).collect();
        tries.extend((0..20).map(|_| (random.random_range(0..4), random.random_range(0..6))));
        tries.shuffle(&mut random);
        let faults = Mutex::new(StdRng::seed_from_u64(seed + 1));
        world.log.set_faults(move |attempt| match faults.lock().unwrap().random_range(0..10) {
            _ if attempt.topic.as_str() != "shop.orders" => Fault::None,
            0 => Fault::FailBefore,
            1 => Fault::FailAfter,
            2 => Fault::Duplicate,
            _ => Fault::None,
        });
        for (producer, number) in tries {
            let first = 1_000_000 * producer + 100_000 * number;
            let rows = if number == 3 { 15_000 } else { 1 + number };
            let body = lines(first..first + rows);
            while post(&sites[random.random_range(0..2)], &format!("p{producer}:{number}"), &body).await.0 != 200 {}
            if random.random_bool(0.2) {
                let mut found = life(&world, &mut random).await;
                let count = found.len();
                found.dedup();
                assert_eq!(found.len(), count, "seed {seed}");
            }
        }
        world.log.clear_faults();
        let mut found = ids(&world, &world.lake).await;
        found.sort_unstable();
        let mut expected = Vec::new();
        for (producer, number) in (0..4).flat_map(|producer| (0..6).map(move |number| (producer, number))) {
            let first = 1_000_000 * producer + 100_000 * number;
            expected.extend(first..first + if number == 3 { 15_000 } else { 1 + number });
        }
        assert!(found == expected, "seed {seed}: {} rows, {} expected", found.len(), expected.len());
        for site in sites {
            site.close().await;
        }
    }
}

/// A life that may begin without a checkpoint and end anywhere; the ids stored by then, sorted.
async fn life(world: &World, random: &mut StdRng) -> Vec<u64> {
    let lake = if random.random_bool(0.3) { Lake::memory() } else { world.lake.clone() };
    let until = Position::at(random.random_range(0..=world.input_end().await.offset));
    world.live_until(worker(world, &lake), until).await.unwrap();
    let mut found = stored(world).await;
    found.sort_unstable();
    found
}

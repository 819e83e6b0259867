//! One task: what it writes, in what order, and that its lives never contradict each other.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use delivery::{Checkpoint, ErrorClass, Position, Totals};
use lake::{Checkpoints, Lake};
use rand::{Rng, SeedableRng, rngs::StdRng};
use runtime::tasks::Stop;
use topics::{Log, memory::Fault};

use crate::world::{ORDERS, World, tiny, topic};

#[tokio::test]
async fn rows_and_rejected_rows_arrive_with_their_place_totals_and_watermark() {
    let world = World::new(ORDERS).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    world.send(&[r#"{"id":1,"at":"2026-01-01T00:00:10"}"#]).await;
    let headers = vec![("traceparent".to_owned(), Bytes::from(trace))];
    world.send_with(b"{\"id\":2,\"at\":\"2026-01-01T00:00:07\"}\nbad\n{\"id\":3}", headers).await;
    world.live_until(world.worker(), Position::at(2)).await.unwrap();

    let data = world.data().await;
    let rows: Vec<_> = data.rows.iter().map(|(offset, row)| (*offset, row.as_str())).collect();
    assert_eq!(rows, [(0, "1||2026-01-01T00:00:10Z"), (1, "2||2026-01-01T00:00:07Z"), (1, "3||")]);
    let last = data.envelopes.last().unwrap();
    assert_eq!(last.totals, Totals { read: 4, emitted: 3, rejected: 1, ..Totals::default() });
    let ten_seconds_in = 1_767_225_610_000_000;
    assert_eq!(last.watermark, Some(ten_seconds_in - 5_000_000));
    assert!(data.envelopes.iter().any(|envelope| envelope.traceparent.as_deref() == Some(trace)));
    assert!(data.envelopes.iter().any(|envelope| envelope.bounds.iter().any(|bounds| bounds.column == "id")));

    let rejected = world.rejected().await;
    assert_eq!(rejected.rows.len(), 1);
    let (offset, row) = &rejected.rows[0];
    assert_eq!(*offset, 1);
    assert!(row.starts_with("shop.orders|0|1|2|"), "topic, partition, offset and line: {row}");
    assert!(row.contains("|bad|0|1970-01-01T00:00:01Z"), "bytes, part and when it was produced: {row}");
}

#[tokio::test]
async fn a_life_goes_on_where_the_last_one_ended() {
    let world = World::new(ORDERS).await;
    world.send(&[r#"{"id":1,"at":"2026-01-01T00:00:10"}"#, r#"{"id":2}"#]).await;
    world.live_until(world.worker(), Position::at(2)).await.unwrap();
    let messages = world.data().await.envelopes.len();
    world.send(&[r#"{"id":3}"#]).await;
    world.live_until(world.worker(), Position::at(3)).await.unwrap();
    let data = world.data().await;
    assert_eq!(data.repeats, 0, "the checkpoint written at the end of a life is believed");
    assert_eq!(data.envelopes.len(), messages + 1);
    let last = data.envelopes.last().unwrap();
    assert_eq!((last.totals.read, last.watermark), (3, data.envelopes[0].watermark));
    assert!(last.watermark.is_some());
}

/// Small enough that batches are split and some rows are too large.
const MAX_MESSAGE_BYTES: u64 = 500_000;

/// Payloads of every sort, some with many rows.
fn payloads(random: &mut StdRng) -> Vec<String> {
    let row = |random: &mut StdRng| {
        let id: u32 = random.random_range(0..1000);
        match random.random_range(0..10) {
            0 => format!(r#"{{"id":"x{id}"}}"#),
            1 => format!(r#"{{"id":{id},"note":"unfinished"#),
            2 => format!(r#"{{"id":{id},"note":"{}"}}"#, "long ".repeat(120 * id as usize)),
            _ => format!(r#"{{"id":{id},"at":"2026-01-01T00:00:{:02}"}}"#, id % 60),
        }
    };
    let payload = |random: &mut StdRng| {
        let rows = if random.random_bool(0.2) { random.random_range(2..40) } else { 1 };
        let mut payload = row(random);
        for _ in 1..rows {
            // The user's topic takes 1 MiB.
            let next = row(random);
            if payload.len() + next.len() < 1_000_000 {
                payload += &format!("\n{next}");
            }
        }
        payload
    };
    (0..random.random_range(1..40)).map(|_| payload(random)).collect()
}

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("TAILWATER_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..25,
    }
}

/// What one undisturbed life makes of the payloads.
async fn undisturbed(payloads: &[String]) -> World {
    let mut world = World::new(ORDERS).await;
    world.config = tiny(&world.config, 8192, 4 << 20, MAX_MESSAGE_BYTES);
    world.send(payloads).await;
    let end = world.input_end().await;
    world.live_until(world.worker(), end).await.unwrap();
    world
}

#[tokio::test]
async fn any_batching_any_restart_and_any_checkpoint_give_the_same_rows() {
    for seed in seeds() {
        let mut random = StdRng::seed_from_u64(seed);
        let payloads = payloads(&mut random);
        let expected = undisturbed(&payloads).await;

        let mut world = World::new(ORDERS).await;
        world.config = tiny(&world.config, 8192, 4 << 20, MAX_MESSAGE_BYTES);
        world.send(&payloads).await;
        let end = world.input_end().await;
        let mut kept: Vec<Checkpoint> = Vec::new();
        for life in 0..random.random_range(1..6) {
            inject_faults(&world, seed * 100 + life);
            let batch_bytes = if random.random_bool(0.5) { 4 << 20 } else { random.random_range(1..3_000) };
            let config = tiny(&world.config, random.random_range(1..20), batch_bytes, MAX_MESSAGE_BYTES);
            let lake = lake_with(&world, kept.get(random.random_range(0..kept.len() + 1))).await;
            let until = Position::at(random.random_range(0..=end.offset));
            // A failed append ends a life; the next one begins at its checkpoint.
            let ended = world.live_until(world.worker_on(lake.clone(), config), until).await;
            assert!(
                ended.is_ok() || ended.as_ref().is_err_and(|error| error.class() == ErrorClass::Retry),
                "{ended:?}"
            );
            kept.extend(Checkpoints::new(&lake, &world.worker().stage()).newest(0).await.unwrap());
        }
        world.log.clear_faults();
        let lake = lake_with(&world, kept.get(random.random_range(0..kept.len() + 1))).await;
        world.live_until(world.worker_on(lake, world.config.clone()), end).await.unwrap();

        for (found, expected, port) in [
            (world.data().await, expected.data().await, "data"),
            (world.rejected().await, expected.rejected().await, "rejected"),
        ] {
            let differs = found.rows.iter().zip(&expected.rows).position(|(found, expected)| found != expected);
            assert_eq!(differs.map(|place| (&found.rows[place], &expected.rows[place])), None, "seed {seed}, {port}");
            assert_eq!(found.rows.len(), expected.rows.len(), "seed {seed}, {port}");
            assert_eq!(found.end(), expected.end(), "seed {seed}, {port}");
        }
        // Totals and watermark are functions of the input's prefix: every message that ends there says the same.
        let expected = expected.data().await.envelopes;
        let expected = expected.last().map(|envelope| (envelope.totals, envelope.watermark));
        for envelope in world.data().await.envelopes.iter().filter(|envelope| envelope.origin.to == end) {
            assert_eq!(Some((envelope.totals, envelope.watermark)), expected, "seed {seed}");
        }
    }
}

/// Lost replies, doubled messages and lost messages on the channels.
///
/// After a message that is not in the log none of the same life follows it: real logs are gapless in that sense.
fn inject_faults(world: &World, seed: u64) {
    let state = std::sync::Mutex::new((StdRng::seed_from_u64(seed), false));
    world.log.set_faults(move |attempt| {
        let (random, broken) = &mut *state.lock().unwrap();
        if !attempt.topic.as_str().starts_with("tailwater.") {
            return Fault::None;
        }
        let roll = random.random_range(0..15);
        *broken |= roll == 2;
        match roll {
            _ if *broken => Fault::FailBefore,
            0 => Fault::FailAfter,
            1 => Fault::Duplicate,
            _ => Fault::None,
        }
    });
}

/// A store that holds only this checkpoint: the newest one, an old one, or none.
async fn lake_with(world: &World, checkpoint: Option<&Checkpoint>) -> Lake {
    let lake = Lake::memory();
    if let Some(checkpoint) = checkpoint {
        Checkpoints::new(&lake, &world.worker().stage()).put(0, checkpoint).await.unwrap();
    }
    lake
}

#[tokio::test]
async fn two_lives_at_once_do_no_harm() {
    for seed in seeds() {
        let mut random = StdRng::seed_from_u64(1_000 + seed);
        let payloads = payloads(&mut random);
        let expected = undisturbed(&payloads).await;
        let mut world = World::new(ORDERS).await;
        world.config = tiny(&world.config, 8192, 4 << 20, MAX_MESSAGE_BYTES);
        world.send(&payloads).await;
        let end = world.input_end().await;
        let one = world.worker_on(Lake::memory(), tiny(&world.config, 2, 500, MAX_MESSAGE_BYTES));
        let other = world.worker_on(Lake::memory(), tiny(&world.config, 3, 700_000, MAX_MESSAGE_BYTES));
        let (one, other) = tokio::join!(world.live_until(one, end), world.live_until(other, end));
        one.unwrap();
        other.unwrap();
        assert_eq!(world.data().await.rows, expected.data().await.rows, "seed {seed}");
        assert_eq!(world.rejected().await.rows, expected.rejected().await.rows, "seed {seed}");
    }
}

#[tokio::test]
async fn rejected_rows_are_durable_before_the_data_that_covers_them_is_sent() {
    let world = World::new(ORDERS).await;
    let rejected_channel = topic(&world.source.rejected);
    let (delayed, attempted) = (AtomicBool::new(false), Arc::new(tokio::sync::Notify::new()));
    let notify = Arc::clone(&attempted);
    world.log.set_faults(move |attempt| {
        if *attempt.topic == rejected_channel && !delayed.swap(true, Ordering::SeqCst) {
            notify.notify_one();
            return Fault::Delay;
        }
        Fault::None
    });
    world.send(&["bad", r#"{"id":1}"#]).await;
    let stop = Stop::new();
    let life = world.worker().run(stop.clone());
    tokio::pin!(life);
    let channel = topic(&world.source.channel);
    let check = async {
        attempted.notified().await;
        // Everything that can go on goes on; the clock has no part in it.
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(world.log.span(&channel, 0).await.unwrap().end, 0, "the rejected row is not durable yet");
        assert_eq!(world.log.release(), 1);
        world.covered(Position::at(2)).await;
        stop.request();
    };
    let (ended, ()) = tokio::join!(life, check);
    ended.unwrap();
    assert_eq!(world.rejected().await.rows.len(), 1);
    assert_eq!(world.data().await.rows.len(), 1);
}

#[tokio::test]
async fn a_checkpoint_is_written_only_after_everything_before_it_is_durable() {
    let world = World::new(ORDERS).await;
    let channel = topic(&world.source.channel);
    let (delayed, attempted) = (AtomicBool::new(false), Arc::new(tokio::sync::Notify::new()));
    let notify = Arc::clone(&attempted);
    world.log.set_faults(move |attempt| {
        if *attempt.topic == channel && !delayed.swap(true, Ordering::SeqCst) {
            notify.notify_one();
            return Fault::Delay;
        }
        Fault::None
    });
    world.send(&[r#"{"id":1}"#]).await;
    let stop = Stop::new();
    let life = world.worker().run(stop.clone());
    tokio::pin!(life);
    let check = async {
        attempted.notified().await;
        stop.request();
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        let checkpoints = Checkpoints::new(&world.lake, &world.worker().stage());
        assert_eq!(checkpoints.newest(0).await.unwrap(), None, "the row is not durable yet");
        world.log.release();
    };
    let (ended, ()) = tokio::join!(life, check);
    ended.unwrap();
    let kept = Checkpoints::new(&world.lake, &world.worker().stage()).newest(0).await.unwrap().unwrap();
    assert_eq!((kept.position, kept.totals.emitted), (Position::at(1), 1));
}

#[tokio::test]
async fn a_message_of_very_many_rows_is_split_inside_and_whole_again_downstream() {
    let sql = "CREATE SOURCE orders (id BIGINT) WITH (topic = 'shop.orders', format = 'csv');";
    let mut world = World::new(sql).await;
    world.config = tiny(&world.config, 8192, 4 << 20, 500_000);
    let many: String = (0..120_000).map(|id| format!("{id}\n")).collect();
    world.send(&["7\n", many.as_str(), "bad\n8\n"]).await;
    world.live_until(world.worker(), Position::at(3)).await.unwrap();
    let data = world.data().await;
    assert!(data.envelopes.iter().any(|envelope| envelope.origin.to.row > 0), "some message ends inside the unit");
    let found: Vec<_> = data.rows.iter().map(|(offset, row)| (*offset, row.parse::<i64>().unwrap())).collect();
    let expected: Vec<_> = [(0, 7)].into_iter().chain((0..120_000).map(|id| (1, id))).chain([(2, 8)]).collect();
    assert!(found == expected, "{} rows", found.len());
    assert_eq!(world.rejected().await.rows.len(), 1);
}

#[tokio::test]
async fn units_without_rows_are_covered() {
    let sql =
        "CREATE SOURCE orders (id BIGINT, note VARCHAR) WITH (topic = 'shop.orders', format = 'csv', header = true);";
    let world = World::new(sql).await;
    world.send(&["id,note\n", "id\n\n", "id,note\n"]).await;
    // Nothing is written before a checkpoint, so the end of a life is what covers it.
    let stop = Stop::new();
    let life = world.worker().run(stop.clone());
    tokio::pin!(life);
    tokio::select! {
        ended = &mut life => panic!("ended by itself: {ended:?}"),
        () = async { for _ in 0..1_000 { tokio::task::yield_now().await; } } => stop.request(),
    }
    life.await.unwrap();
    let data = world.data().await;
    assert_eq!((data.rows.len(), data.end()), (0, Position::at(3)));
    assert_eq!(data.envelopes.len(), 1, "one message covers them all");
    assert_eq!(world.rejected().await.end(), Position::at(3), "the readers of rejected rows see progress too");
}

#[tokio::test(start_paused = true)]
async fn progress_without_rows_is_shown_every_checkpoint() {
    let world =
        World::new("CREATE SOURCE orders (id BIGINT) WITH (topic = 'shop.orders', format = 'csv', header = true);")
            .await;
    let stop = Stop::new();
    let life = world.worker().run(stop.clone());
    tokio::pin!(life);
    let user = async {
        for offset in 1..4 {
            world.send(&["id\n"]).await;
            world.covered(Position::at(offset)).await;
        }
        stop.request();
    };
    let (ended, ()) = tokio::join!(life, user);
    ended.unwrap();
}

#[tokio::test]
async fn a_checkpoint_that_does_not_fit_the_topic_stops_the_task() {
    let world = World::new(ORDERS).await;
    world.send(&[r#"{"id":1}"#, r#"{"id":2}"#, r#"{"id":3}"#]).await;
    for (position, says) in [(1, "begins at offset 2"), (9, "ends at offset 3")] {
        world.log.trim(&topic("shop.orders"), 0, 2).unwrap();
        let lake = lake_with(&world, Some(&Checkpoint::at(Position::at(position)))).await;
        let error = world.worker_on(lake, world.config.clone()).run(Stop::new()).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Stop);
        let text = error.to_string();
        assert!(text.contains(says) && text.contains(&format!("at {position}")), "{text}");
    }
}

#[tokio::test]
async fn without_a_checkpoint_a_trimmed_topic_is_read_from_its_beginning() {
    let world = World::new(ORDERS).await;
    world.send(&[r#"{"id":1}"#, r#"{"id":2}"#, r#"{"id":3}"#]).await;
    world.log.trim(&topic("shop.orders"), 0, 2).unwrap();
    world.live_until(world.worker(), Position::at(3)).await.unwrap();
    let data = world.data().await;
    assert_eq!(data.rows.len(), 1);
    assert_eq!(data.envelopes[0].origin.from, Position::START, "whatever was before is covered: it was never written");
}

#[tokio::test]
async fn a_lost_checkpoint_of_a_trimmed_topic_stops_the_task_instead_of_missing_rows() {
    let world = World::new(ORDERS).await;
    world.send(&[r#"{"id":1}"#]).await;
    world.live_until(world.worker(), Position::at(1)).await.unwrap();
    // While nobody reads, rows come and go, and so do the checkpoints.
    world.send(&[r#"{"id":2}"#, r#"{"id":3}"#]).await;
    world.log.trim(&topic("shop.orders"), 0, 2).unwrap();
    world.forget_checkpoints().await;
    let error = world.worker().run(Stop::new()).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Stop);
    let text = error.to_string();
    assert!(text.contains("begins at offset 2") && text.contains("once began is at 0"), "{text}");
    assert!(text.contains("drop and recreate"), "{text}");
    assert_eq!(world.data().await.end(), Position::at(1), "nothing claims to cover the rows that are gone");
}

#[tokio::test]
async fn a_lost_checkpoint_costs_time_and_no_rows_where_the_topic_is_whole() {
    let world = World::new(ORDERS).await;
    world.send(&[r#"{"id":1}"#, "bad", r#"{"id":2}"#]).await;
    world.log.trim(&topic("shop.orders"), 0, 1).unwrap();
    world.live_until(world.worker(), Position::at(3)).await.unwrap();
    world.forget_checkpoints().await;
    world.send(&[r#"{"id":3}"#]).await;
    world.live_until(world.worker(), Position::at(4)).await.unwrap();
    let data = world.data().await;
    let rows: Vec<_> = data.rows.iter().map(|(offset, row)| (*offset, row.as_str())).collect();
    assert_eq!(rows, [(2, "2||"), (3, "3||")]);
    let from_the_start = data.envelopes.iter().filter(|envelope| envelope.origin.from == Position::START).count();
    assert_eq!(from_the_start, 2, "it was all written again, and cut off by the reader");
    assert_eq!(data.envelopes.last().unwrap().totals, Totals { read: 3, emitted: 2, rejected: 1, ..Totals::default() });
}

#[tokio::test]
async fn a_topic_created_again_is_not_taken_for_the_old_one() {
    let world = World::new(ORDERS).await;
    world.send(&[r#"{"id":1}"#, r#"{"id":2}"#]).await;
    world.live_until(world.worker(), Position::at(2)).await.unwrap();
    let stop = Stop::new();
    let life = world.worker().run(stop.clone());
    tokio::pin!(life);
    // The task runs and waits at the end when the topic goes.
    assert!(futures::poll!(&mut life).is_pending());
    world.log.delete(&topic("shop.orders"));
    let error = life.await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Retry, "the topic may come back: {error}");
    world.log.create(&topic("shop.orders"), &topics::TopicSettings::default()).await.unwrap();
    world.send(&[r#"{"id":7}"#, r#"{"id":8}"#, r#"{"id":9}"#]).await;
    let error = world.worker().run(Stop::new()).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Stop);
    assert!(error.to_string().contains("another message stands at offset 1"), "{error}");
    assert_eq!(world.data().await.rows.len(), 2, "nothing of the new topic is mixed in");
}

#[tokio::test]
async fn the_first_checkpoint_is_put_as_soon_as_something_was_read() {
    let mut world = World::new(ORDERS).await;
    world.config.checkpoint_every = runtime::units::Duration::secs(3_600);
    world.send(&[r#"{"id":1}"#]).await;
    let stop = Stop::new();
    let life = world.worker().run(stop.clone());
    tokio::pin!(life);
    let check = async {
        let checkpoints = Checkpoints::new(&world.lake, &world.worker().stage());
        while checkpoints.newest(0).await.unwrap().is_none() {
            tokio::task::yield_now().await;
        }
        stop.request();
    };
    let (ended, ()) = tokio::join!(life, check);
    ended.unwrap();
}

#[tokio::test]
async fn rows_and_rejects_too_large_for_a_message_still_get_through() {
    let world = World::new(ORDERS).await;
    let large = format!(r#"{{"id":1,"note":"{}"}}"#, "x".repeat(950_000));
    let bad = format!(r#"{{"id":1,"note":"{}""#, "y".repeat(900_000));
    world.send(&[large.as_str(), bad.as_str(), r#"{"id":2}"#]).await;
    world.live_until(world.worker(), Position::at(3)).await.unwrap();
    assert_eq!(world.data().await.rows.len(), 1);
    let rejected = world.rejected().await;
    let text: String = rejected.rows.iter().filter(|(offset, _)| *offset == 0).map(|(_, row)| row.as_str()).collect();
    assert!(text.contains("a message may hold"), "the reason is given");
    assert!(text.matches('x').count() >= 950_000, "all of its bytes are kept");
    assert_eq!(world.data().await.envelopes.last().unwrap().totals.rejected, 2, "parts are not rows");
}

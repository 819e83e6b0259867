//! The transformation service on memory topics and a memory object store.
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use arrow::{
    array::{Array as _, ArrayRef, AsArray as _, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Int64Type, Schema, SchemaRef},
};
use batch::{Compression, Limits, decode_batch, decode_envelope, rows_from};
use delivery::{Checkpoint, Ends, Position, Totals, Verdict, Writer};
use futures::TryStreamExt as _;
use lake::Lake;
use runtime::{
    catalog::{self, ApplyFile, ApplyRequest},
    channel_writer::{ChannelWriter, ChannelWriterOptions, PortTarget, Rows, Stretch},
    config::{Config, Override},
    edges::Edges,
    memory::Memory,
    supervisor::{Settlements, StageContext, supervise},
    tasks::{Fate, TaskGroup},
};
use topics::{Log, Message, TopicName, TopicSettings, memory::MemoryLog};
use transformation::TransformationStage;

const SQL: &str = "
CREATE SOURCE words (id BIGINT NOT NULL, word VARCHAR) WITH (format = 'json');
CREATE MATERIALIZED VIEW numbers AS
  SELECT id, CAST(word AS BIGINT) AS number FROM words WHERE id % 2 = 0
  UNION ALL
  SELECT -id AS id, id * 10 AS number FROM words;
";
const INPUT: &str = "tailwater.channel.test.words.1";
const OUTPUT: &str = "tailwater.channel.test.numbers.1";
const REJECTED: &str = "tailwater.rejected.test.numbers.1";

struct World {
    log: Arc<MemoryLog>,
    lake: Lake,
}

impl World {
    async fn new() -> Self {
        Self::with(SQL).await
    }

    async fn with(sql: &str) -> Self {
        let world = Self { log: Arc::new(MemoryLog::new()), lake: Lake::memory() };
        world.log.create(&topic(INPUT), &TopicSettings { partitions: 2, ..TopicSettings::default() }).await.unwrap();
        let files = vec![ApplyFile { file: "words.sql".into(), text: sql.into() }];
        let request = ApplyRequest { pipeline: "test".into(), files, replace: false, drop: false, dry_run: false };
        catalog::apply(world.log.as_ref(), &request).await.unwrap();
        world
    }

    fn transformation(&self) -> TaskGroup {
        let group = TaskGroup::new();
        let run = transformation::run(config(), self.edges(&group), group.stop());
        group.spawn("transformation", Fate::Critical, run);
        group
    }

    fn edges(&self, group: &TaskGroup) -> Edges {
        let log: Arc<dyn Log> = Arc::clone(&self.log) as Arc<dyn Log>;
        Edges::new(log, self.lake.clone(), Compression::Lz4, group)
    }

    /// Writes words to an input partition; every tenth is not a number.
    async fn write_words(&self, partition: u32, from: u64, to: u64) {
        let words = (from..to).map(|id| if id % 10 == 0 { "ten".to_owned() } else { id.to_string() });
        self.write(partition, from, words.collect()).await;
    }

    /// Writes rows to an input partition, with ids from `from` on.
    async fn write(&self, partition: u32, from: u64, words: Vec<String>) {
        let to = from + words.len() as u64;
        let target = |channel: &str, schema: SchemaRef| PortTarget { topic: topic(channel), partition, schema };
        let options = ChannelWriterOptions {
            writer: Writer::new(format!("test.words/{partition}")),
            data: target(INPUT, schema()),
            rejected: target(INPUT, pipeline::rejected_schema()),
            compression: Compression::Lz4,
            max_message_bytes: 900_000,
            bounds: vec![],
            event_time: None,
        };
        let mut checkpoint = Checkpoint::at(Position::at(from));
        checkpoint.outputs.insert("data".into(), Position::at(from));
        let mut writer = ChannelWriter::new(self.log.appender(), options, &checkpoint);
        let numbers = || (from..to).map(|number| number as i64);
        let columns: Vec<ArrayRef> =
            vec![Arc::new(Int64Array::from_iter_values(numbers())), Arc::new(StringArray::from_iter_values(words))];
        let data = Rows {
            batch: RecordBatch::try_new(schema(), columns).unwrap(),
            offsets: Int64Array::from_iter_values(numbers()),
        };
        let totals = Totals { read: to, emitted: to, ..Totals::default() };
        let stretch =
            Stretch { to: Position::at(to), data, rejected: None, totals, watermark: Some(7), traceparent: None };
        writer.write(&stretch).await.unwrap();
        writer.settle().await.unwrap();
    }

    /// What a reader that follows the one rule takes from a channel, and the newest totals of each writer.
    async fn read(&self, channel: &str) -> (Vec<RecordBatch>, Vec<(Writer, Totals)>) {
        let (mut batches, mut totals) = (Vec::new(), std::collections::BTreeMap::new());
        let Some(description) = self.log.describe(&topic(channel)).await.unwrap() else { return (batches, vec![]) };
        for partition in 0..description.partitions {
            let end = self.log.span(&topic(channel), partition).await.unwrap().end;
            let mut ends = Ends::default();
            let mut next = 0;
            while next < end {
                let mut reader = self.log.reader(&topic(channel), partition, next).await.unwrap();
                for message in reader.read(1 << 20).await.unwrap() {
                    next = message.offset + 1;
                    let envelope = decode_envelope(&message.headers).unwrap();
                    if let Verdict::Take { from } = ends.accept(&envelope.origin).unwrap() {
                        let batch = decode_batch(&message.payload, &Limits::default()).unwrap();
                        batches.push(rows_from(&batch, &envelope.origin, from));
                        totals.insert(envelope.origin.writer, envelope.totals);
                    }
                }
            }
        }
        (batches, totals.into_iter().collect())
    }

    async fn numbers(&self) -> Vec<(i64, i64)> {
        let mut numbers = Vec::new();
        for batch in self.read(OUTPUT).await.0 {
            let (ids, values) =
                (batch.column(0).as_primitive::<Int64Type>(), batch.column(1).as_primitive::<Int64Type>());
            numbers.extend((0..batch.num_rows()).map(|row| (ids.value(row), values.value(row))));
        }
        numbers
    }

    async fn wait_for_numbers(&self, count: usize) {
        let waited = tokio::time::timeout(Duration::from_secs(20), async {
            while self.numbers().await.len() < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(waited.await.is_ok(), "{} of {count} rows came out", self.numbers().await.len());
    }

    async fn forget_checkpoints(&self) {
        let store = self.lake.store();
        let all: Vec<_> = store.list(None).try_collect().await.unwrap();
        let mut forgotten = 0;
        for object in all.iter().filter(|object| object.location.as_ref().contains("/checkpoints/")) {
            object_store::ObjectStoreExt::delete(&store, &object.location).await.unwrap();
            forgotten += 1;
        }
        assert!(forgotten > 0, "there were checkpoints to forget");
    }
}

fn topic(name: &str) -> TopicName {
    TopicName::try_from(name.to_owned()).unwrap()
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false), Field::new("word", DataType::Utf8, true)]))
}

fn config() -> Config {
    let overrides = vec![Override::new("--set", "transformation.checkpoint_every", "50ms")];
    Config::load(runtime::config::LoadOptions { overrides, ..Default::default() }).unwrap()
}

/// Both branches over ids `0..100` of two partitions that each hold half.
fn expected() -> Vec<(i64, i64)> {
    let parsed = (0..100).filter(|id| id % 2 == 0 && id % 10 != 0).map(|id| (id, id));
    let mut rows: Vec<(i64, i64)> = parsed.chain((0..100).map(|id| (-id, id * 10))).collect();
    rows.sort_unstable();
    rows
}

/// Letters that do not compress.
fn noise(length: usize) -> String {
    let mut state = 1_u64;
    let letters = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'a' + (state >> 60) as u8)
    });
    letters.take(length).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_becomes_too_large_for_a_message_is_rejected_and_its_neighbours_go_on() {
    let world = World::with(
        "CREATE SOURCE words (id BIGINT NOT NULL, word VARCHAR) WITH (format = 'json');
        CREATE MATERIALIZED VIEW numbers AS
          SELECT id, word || word AS twice FROM words UNION ALL SELECT CAST(word AS BIGINT) AS id, word AS twice FROM words;",
    )
    .await;
    world.write(0, 0, vec!["1".into(), noise(500_000), "3".into()]).await;
    let service = world.transformation();
    let is_through = async {
        while world.read(REJECTED).await.0.iter().map(RecordBatch::num_rows).sum::<usize>() < 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), is_through).await.expect("two letters of two parts each");
    service.finish(Duration::from_secs(10)).await.unwrap();
    let rows: usize = world.read(OUTPUT).await.0.iter().map(RecordBatch::num_rows).sum();
    assert_eq!(rows, 4);
    let letters = world.read(REJECTED).await.0;
    let reasons = letters.iter().flat_map(|batch| batch.column_by_name("reason").unwrap().as_string::<i32>().iter());
    let reasons: Vec<&str> = reasons.flatten().collect();
    assert!(reasons.iter().any(|reason| reason.contains("a message may hold 895904")), "{reasons:?}");
    assert!(
        reasons.iter().any(|reason| reason.starts_with("cannot cast string") && reason.ends_with('…')),
        "{reasons:?}"
    );
}

async fn write_all(world: &World) {
    for (from, to) in [(0, 20), (20, 50)] {
        world.write_words(0, from, to).await;
    }
    world.cover(1, 50).await;
    world.write_words(1, 50, 100).await;
}

impl World {
    /// A stretch without rows from the writer's start: input that yielded nothing.
    async fn cover(&self, partition: u32, to: u64) {
        let target = |channel: &str, schema: SchemaRef| PortTarget { topic: topic(channel), partition, schema };
        let options = ChannelWriterOptions {
            writer: Writer::new(format!("test.words/{partition}")),
            data: target(INPUT, schema()),
            rejected: target(INPUT, pipeline::rejected_schema()),
            compression: Compression::Lz4,
            max_message_bytes: 900_000,
            bounds: vec![],
            event_time: None,
        };
        let mut writer = ChannelWriter::new(self.log.appender(), options, &Checkpoint::start());
        let empty = Rows { batch: RecordBatch::new_empty(schema()), offsets: Int64Array::from(Vec::<i64>::new()) };
        let stretch = Stretch {
            to: Position::at(to),
            data: empty,
            rejected: None,
            totals: Totals::default(),
            watermark: None,
            traceparent: None,
        };
        writer.write(&stretch).await.unwrap();
        writer.settle().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_over_a_union_gives_each_row_once_and_keeps_the_rows_it_fails_on() {
    let world = World::new().await;
    write_all(&world).await;
    let service = world.transformation();
    world.wait_for_numbers(expected().len()).await;
    service.finish(Duration::from_secs(10)).await.unwrap();
    let mut numbers = world.numbers().await;
    numbers.sort_unstable();
    assert_eq!(numbers, expected());

    let (rejected, _) = world.read(REJECTED).await;
    let bytes: Vec<String> = rejected
        .iter()
        .flat_map(|batch| {
            let bytes = batch.column_by_name("bytes").unwrap().as_binary::<i32>().clone();
            (0..bytes.len()).map(move |row| String::from_utf8(bytes.value(row).to_vec()).unwrap()).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(bytes.len(), 10, "ids 0, 10, … 90 are no numbers: {bytes:?}");
    assert!(bytes.iter().any(|row| row.trim() == r#"{"id":10,"word":"ten"}"#), "{bytes:?}");

    let (_, totals) = world.read(OUTPUT).await;
    assert_eq!(totals.len(), 4, "two branches over two partitions");
    assert!(totals.iter().all(|(_, totals)| totals.balanced()), "{totals:?}");
    assert_eq!(totals.iter().map(|(_, totals)| totals.read).sum::<u64>(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_checkpoint_repeats_rows_that_readers_cut_off() {
    let world = World::new().await;
    write_all(&world).await;
    let first = world.transformation();
    world.wait_for_numbers(expected().len()).await;
    first.finish(Duration::from_secs(10)).await.unwrap();
    let before = world.log.span(&topic(OUTPUT), 0).await.unwrap().end;
    world.forget_checkpoints().await;
    let second = world.transformation();
    // It starts from the beginning, so the log grows by what is repeated.
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while world.log.span(&topic(OUTPUT), 0).await.unwrap().end == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "nothing was repeated, so nothing was tested");
    world.write_words(0, 50, 52).await;
    world.wait_for_numbers(expected().len() + 2).await;
    second.finish(Duration::from_secs(10)).await.unwrap();
    let mut numbers = world.numbers().await;
    numbers.sort_unstable();
    let mut expected = expected();
    expected.extend([(-50, 500), (-51, 510)]);
    expected.sort_unstable();
    assert_eq!(numbers, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_wait_while_the_process_has_no_memory_left_and_go_on_when_it_has() {
    let world = World::new().await;
    write_all(&world).await;
    let memory = Memory::new(1 << 20);
    let bodies = memory.body(usize::MAX).await;
    let mut run = memory.run(1);
    let payload = vec![0; 1 << 20].into();
    run.start_anew(&[Message { offset: 0, timestamp_ms: 0, key: None, payload, headers: vec![] }]).await;
    let group = TaskGroup::new();
    let edges = world.edges(&group);
    let (catalog, health, settlements) = (edges.catalog.clone(), edges.health.clone(), Settlements::default());
    let context = StageContext {
        log: Arc::clone(&edges.log),
        group: transformation::GROUP.into(),
        catalog,
        health: health.clone(),
        settlements: settlements.clone(),
    };
    let stage = TransformationStage::new(memory, config(), edges, settlements);
    group.spawn("transformation", Fate::Critical, supervise(Arc::new(stage), context, group.stop()));
    let report = || format!("{:?}", health.report());
    assert!(is_soon(|| report().matches("running").count() == 4).await, "{}", report());
    let without = tokio::time::timeout(Duration::from_millis(300), world.wait_for_numbers(1));
    assert!(without.await.is_err(), "a task went on without memory");
    run.release();
    drop(bodies);
    world.wait_for_numbers(expected().len()).await;
    group.finish(Duration::from_secs(10)).await.unwrap();
}

/// Whether it comes true within twenty seconds.
async fn is_soon(condition: impl Fn() -> bool) -> bool {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.is_ok()
}

/// Runs the service until so many rows have come out, then stops it.
async fn run_until(world: &World, rows: usize) {
    let service = world.transformation();
    world.wait_for_numbers(rows).await;
    service.finish(Duration::from_secs(10)).await.unwrap();
}

/// Runs the service until its health report says this.
async fn run_until_shown(world: &World, text: &str) -> String {
    let group = TaskGroup::new();
    let edges = world.edges(&group);
    let health = edges.health.clone();
    group.spawn("transformation", Fate::Critical, transformation::run(config(), edges, group.stop()));
    let report = || format!("{:?}", health.report());
    assert!(is_soon(|| report().contains(text)).await, "{}", report());
    let shown = report();
    group.finish(Duration::from_secs(10)).await.unwrap();
    shown
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_over_a_channel_that_was_trimmed_begins_with_what_is_left() {
    let world = World::new().await;
    for (from, to) in [(0, 20), (20, 30), (30, 40)] {
        world.write_words(0, from, to).await;
    }
    world.log.trim(&topic(INPUT), 0, 2).unwrap();
    // Ids 30 to 39: four even ones that are numbers, and all ten of the other branch.
    run_until(&world, 14).await;
    world.write_words(0, 40, 50).await;
    run_until(&world, 28).await;
    let numbers = world.numbers().await;
    assert_eq!(numbers.len(), 28);
    assert!(numbers.iter().all(|(id, _)| id.abs() >= 30), "{numbers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_lost_its_checkpoints_halts_where_its_channel_was_trimmed() {
    let world = World::new().await;
    world.write_words(0, 0, 10).await;
    run_until(&world, 14).await;
    world.write_words(0, 10, 20).await;
    world.write_words(0, 20, 30).await;
    world.log.trim(&topic(INPUT), 0, 2).unwrap();
    world.forget_checkpoints().await;
    let shown = run_until_shown(&world, "now begins at offset 2").await;
    assert!(shown.contains("once began is at 0") && shown.contains("view `test.numbers`"), "{shown}");
    assert_eq!(world.numbers().await.len(), 14, "nothing claims to cover what is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_created_again_is_not_read_on() {
    let world = World::new().await;
    world.write_words(0, 0, 10).await;
    run_until(&world, 14).await;
    world.log.delete(&topic(INPUT));
    world.log.create(&topic(INPUT), &TopicSettings { partitions: 2, ..TopicSettings::default() }).await.unwrap();
    world.write_words(0, 0, 5).await;
    world.write_words(0, 5, 20).await;
    let shown = run_until_shown(&world, "is not the one view `test.numbers` has read").await;
    assert!(shown.contains("another message stands at offset 0"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_the_input_gains_flow_through_and_no_writer_moves() {
    let world = World::new().await;
    write_all(&world).await;
    let service = world.transformation();
    world.wait_for_numbers(expected().len()).await;
    world.log.grow(&topic(INPUT), 5).await.unwrap();
    world.cover(4, 100).await;
    world.write_words(4, 100, 110).await;
    world.write_words(0, 50, 60).await;
    // Twice four even numbers, and twice ten of the other branch.
    world.wait_for_numbers(expected().len() + 28).await;
    service.finish(Duration::from_secs(10)).await.unwrap();
    assert_eq!(world.numbers().await.len(), expected().len() + 28, "and the one rule was kept in every partition");
    for channel in [OUTPUT, REJECTED] {
        for partition in 0..5 {
            let end = world.log.span(&topic(channel), partition).await.unwrap().end;
            let mut reader = world.log.reader(&topic(channel), partition, 0).await.unwrap();
            let mut next = 0;
            while next < end {
                for message in reader.read(1 << 20).await.unwrap() {
                    next = message.offset + 1;
                    let writer = decode_envelope(&message.headers).unwrap().origin.writer;
                    assert!(writer.as_str().ends_with(&format!("/{partition}")), "{writer} wrote to {partition}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_of_unequal_width_each_write_to_their_own_partitions() {
    let world = World::new().await;
    let sql = "CREATE SOURCE words (id BIGINT NOT NULL, word VARCHAR) WITH (format = 'json');
        CREATE SOURCE more (id BIGINT NOT NULL, word VARCHAR) WITH (format = 'json');
        CREATE MATERIALIZED VIEW united AS SELECT id FROM words UNION ALL SELECT id FROM more;";
    let more = "tailwater.channel.wide.more.2";
    for (channel, partitions) in [("tailwater.channel.wide.words.2", 1), (more, 4)] {
        let settings = TopicSettings { partitions, ..TopicSettings::default() };
        world.log.create(&topic(channel), &settings).await.unwrap();
    }
    let files = vec![ApplyFile { file: "wide.sql".into(), text: sql.into() }];
    let request = ApplyRequest { pipeline: "wide".into(), files, replace: false, drop: false, dry_run: false };
    catalog::apply(world.log.as_ref(), &request).await.unwrap();
    let service = world.transformation();
    let output = topic("tailwater.channel.wide.united.2");
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while world.log.describe(&output).await.unwrap().is_none_or(|found| found.partitions < 4) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "{:?}", world.log.describe(&output).await);
    service.finish(Duration::from_secs(10)).await.unwrap();
}

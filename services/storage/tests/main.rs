//! The storage service on memory topics and a memory object store: real service, real lake, faults at the edges.
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use batch::Compression;
use delivery::{Checkpoint, Position, Totals, Writer};
use lake::{Lake, Snapshot};
use runtime::{
    catalog::{self, ApplyFile, ApplyRequest},
    channel_writer::{ChannelWriter, ChannelWriterOptions, PortTarget, Rows, Stretch},
    config::{Config, Override},
    edges::Edges,
    tasks::{Fate, TaskGroup},
};
use topics::{Log, TopicName, TopicSettings, memory::MemoryLog};

const SQL: &str = "CREATE SOURCE numbers (id BIGINT NOT NULL) WITH (format = 'json');";
const CHANNEL: &str = "tailwater.channel.test.numbers.1";
const FOLDER: &str = "test/numbers/1";

/// A log, a lake and a catalog with one source; services come and go.
struct World {
    log: Arc<MemoryLog>,
    lake: Lake,
}

impl World {
    async fn new(partitions: u32) -> Self {
        let log = Arc::new(MemoryLog::new());
        let world = Self { log, lake: Lake::memory() };
        let settings = TopicSettings { partitions, ..TopicSettings::default() };
        world.log.create(&topic(CHANNEL), &settings).await.unwrap();
        world.log.create(&topic("tailwater.rejected.test.numbers.1"), &settings).await.unwrap();
        let files = vec![ApplyFile { file: "numbers.sql".into(), text: SQL.into() }];
        let request = ApplyRequest { pipeline: "test".into(), files, replace: false, drop: false, dry_run: false };
        catalog::apply(world.log.as_ref(), &request).await.unwrap();
        world
    }

    /// Starts a storage service of its own.
    fn storage(&self) -> TaskGroup {
        let group = TaskGroup::new();
        let log: Arc<dyn Log> = Arc::clone(&self.log) as Arc<dyn Log>;
        let edges = Edges::new(log, self.lake.clone(), Compression::None, &group);
        group.spawn("storage", Fate::Critical, storage::run(config(), edges, group.stop()));
        group
    }

    /// A writer of numbers: unit `n` yields the one row `n`.
    fn writer(&self, partition: u32, name: &str, from: u64) -> NumberWriter {
        let target = |channel: &str, schema: SchemaRef| PortTarget { topic: topic(channel), partition, schema };
        let options = ChannelWriterOptions {
            writer: Writer::new(name),
            data: target(CHANNEL, schema()),
            rejected: target("tailwater.rejected.test.numbers.1", pipeline::rejected_schema()),
            compression: Compression::None,
            max_message_bytes: 900_000,
            bounds: vec![],
            event_time: None,
        };
        let mut checkpoint = Checkpoint::at(Position::at(from));
        checkpoint.outputs.insert("data".into(), Position::at(from));
        checkpoint.totals = Totals { read: from, emitted: from, ..Totals::default() };
        NumberWriter { writer: ChannelWriter::new(self.log.appender(), options, &checkpoint), next: from, miscounts: 0 }
    }

    async fn snapshot(&self) -> Option<Snapshot> {
        Snapshot::load(&self.lake, FOLDER).await.unwrap()
    }

    async fn rows(&self) -> u64 {
        self.snapshot().await.and_then(|snapshot| snapshot.rows()).unwrap_or(0)
    }

    /// Waits until the table has so many rows. The table tells no one when it changes.
    async fn wait_for_rows(&self, rows: u64) {
        let waited = tokio::time::timeout(Duration::from_secs(20), async {
            while self.rows().await < rows {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(waited.await.is_ok(), "{} of {rows} rows are in the table", self.rows().await);
    }
}

struct NumberWriter {
    writer: ChannelWriter,
    next: u64,
    /// How many rows fewer it says it wrote than it did.
    miscounts: u64,
}

impl NumberWriter {
    /// Writes the rows up to `to` as one message, and waits until it is durable.
    async fn write_to(&mut self, to: u64) {
        let numbers = || (self.next..to).map(|number| number as i64);
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(numbers()));
        let data = Rows {
            batch: RecordBatch::try_new(schema(), vec![ids]).unwrap(),
            offsets: Int64Array::from_iter_values(numbers()),
        };
        let totals = Totals { read: to, emitted: to - self.miscounts, ..Totals::default() };
        let stretch =
            Stretch { to: Position::at(to), data, rejected: None, totals, watermark: None, traceparent: None };
        self.writer.write(&stretch).await.unwrap();
        self.writer.settle().await.unwrap();
        self.next = to;
    }
}

fn topic(name: &str) -> TopicName {
    TopicName::try_from(name.to_owned()).unwrap()
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]))
}

fn config() -> Config {
    let overrides = vec![Override::new("--set", "storage.flush_age", "20ms")];
    Config::load(runtime::config::LoadOptions { overrides, ..Default::default() }).unwrap()
}

async fn finish(group: TaskGroup) {
    group.finish(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn repeats_and_regrouped_messages_are_stored_once() {
    let world = World::new(1).await;
    let storage = world.storage();
    let mut first = world.writer(0, "w/0", 0);
    first.write_to(10).await;
    // The writer starts again from an old checkpoint and groups differently; a zombie repeats the beginning.
    let mut again = world.writer(0, "w/0", 4);
    again.write_to(7).await;
    again.write_to(25).await;
    first.write_to(12).await;
    world.wait_for_rows(25).await;
    finish(storage).await;
    assert_eq!(world.rows().await, 25);
    let txns = world.snapshot().await.unwrap().txns;
    let end = txns.iter().find(|(app_id, _)| app_id.contains("/end/")).unwrap().1;
    assert_eq!(Position::unpack(*end), Some(Position::at(25)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_from_the_table_and_several_partitions_share_a_commit_stream() {
    let world = World::new(3).await;
    let mut writers: Vec<_> = (0..3).map(|partition| world.writer(partition, &format!("w/{partition}"), 0)).collect();
    for round in 1..=4u64 {
        let storage = world.storage();
        for writer in &mut writers {
            writer.write_to(round * 50).await;
        }
        world.wait_for_rows(round * 150).await;
        finish(storage).await;
    }
    assert_eq!(world.rows().await, 600);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_owners_of_the_same_partition_store_each_row_once() {
    let world = World::new(1).await;
    let (first, second) = (world.storage(), world.storage());
    let mut writer = world.writer(0, "w/0", 0);
    for round in 1..=20u64 {
        writer.write_to(round * 10).await;
    }
    world.wait_for_rows(200).await;
    finish(first).await;
    finish(second).await;
    assert_eq!(world.rows().await, 200, "the compare-and-swap lets each row in once");
}

/// Runs storage until it says that it cannot go on, for this reason.
async fn halts(world: &World, reason: &str) {
    let group = TaskGroup::new();
    let log: Arc<dyn Log> = Arc::clone(&world.log) as Arc<dyn Log>;
    let edges = Edges::new(log, world.lake.clone(), Compression::None, &group);
    let health = edges.health.clone();
    group.spawn("storage", Fate::Critical, storage::run(config(), edges, group.stop()));
    let shown = || health.report().iter().any(|line| format!("{line:?}").contains(reason));
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !shown() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "{:?}", health.report());
    assert!(!health.is_ready());
    finish(group).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_halts_the_task_and_is_shown() {
    let world = World::new(1).await;
    world.writer(0, "w/0", 0).write_to(5).await;
    world.writer(0, "w/0", 8).write_to(9).await;
    halts(&world, "expected position 5, found 8").await;
    assert!(world.rows().await <= 5, "nothing beyond the gap is stored");
}

/// A view that starts again behind a message its broker has lost makes other rows of the same stretch.
#[tokio::test(flavor = "multi_thread")]
async fn other_rows_than_their_writer_counts_halt_the_task_and_are_shown() {
    let world = World::new(1).await;
    world.writer(0, "w/0", 0).write_to(5).await;
    let mut again = NumberWriter { miscounts: 1, ..world.writer(0, "w/0", 5) };
    again.write_to(9).await;
    halts(&world, "says it emitted 8 rows up to 9, the table has 9").await;
    assert!(world.rows().await <= 5, "nothing of it is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_log_gets_checkpoints_so_that_it_opens_fast() {
    let world = World::new(1).await;
    let storage = world.storage();
    let mut writer = world.writer(0, "w/0", 0);
    let checkpoint = object_store::path::Path::from(format!("{FOLDER}/_delta_log/_last_checkpoint"));
    let written = tokio::time::timeout(Duration::from_secs(60), async {
        for round in 1.. {
            writer.write_to(round).await;
            world.wait_for_rows(round).await;
            if object_store::ObjectStoreExt::head(&world.lake.store(), &checkpoint).await.is_ok() {
                return round;
            }
        }
        0
    });
    let rows = written.await.expect("a checkpoint is written after a hundred commits");
    finish(storage).await;
    assert_eq!(world.rows().await, rows, "the checkpoint and the commits after it give the same rows");
}

/// Runs the service until its health report says this.
async fn run_until_shown(world: &World, text: &str) {
    let group = TaskGroup::new();
    let log: Arc<dyn Log> = Arc::clone(&world.log) as Arc<dyn Log>;
    let edges = Edges::new(log, world.lake.clone(), Compression::None, &group);
    let health = edges.health.clone();
    group.spawn("storage", Fate::Critical, storage::run(config(), edges, group.stop()));
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !format!("{:?}", health.report()).contains(text) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "{:?}", health.report());
    finish(group).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_deleted_and_created_again_halts_the_table_however_long_it_is() {
    let world = World::new(1).await;
    let storage = world.storage();
    let mut writer = world.writer(0, "w/0", 0);
    for to in [10, 20, 30] {
        writer.write_to(to).await;
    }
    world.wait_for_rows(30).await;
    finish(storage).await;
    world.log.delete(&topic(CHANNEL));
    world.log.create(&topic(CHANNEL), &TopicSettings::default()).await.unwrap();
    // The writer goes on from its checkpoint, so what was in the channel and not in the table is gone.
    let mut writer = world.writer(0, "w/0", 40);
    writer.write_to(50).await;
    run_until_shown(&world, "lies beyond its end 1").await;
    for to in [60, 70, 80, 90] {
        writer.write_to(to).await;
    }
    run_until_shown(&world, "expected position 30, found 70").await;
    assert_eq!(world.rows().await, 30, "nothing beyond the gap is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_created_again_whose_writer_starts_early_enough_loses_and_doubles_nothing() {
    let world = World::new(1).await;
    let storage = world.storage();
    let mut writer = world.writer(0, "w/0", 0);
    writer.write_to(10).await;
    writer.write_to(20).await;
    world.wait_for_rows(20).await;
    finish(storage).await;
    world.log.delete(&topic(CHANNEL));
    world.log.create(&topic(CHANNEL), &TopicSettings::default()).await.unwrap();
    let mut writer = world.writer(0, "w/0", 5);
    for to in [8, 12, 15, 40] {
        writer.write_to(to).await;
    }
    let storage = world.storage();
    world.wait_for_rows(40).await;
    finish(storage).await;
    assert_eq!(world.rows().await, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_the_channel_gains_reaches_the_table() {
    let world = World::new(1).await;
    let storage = world.storage();
    let mut first = world.writer(0, "w/0", 0);
    first.write_to(10).await;
    world.wait_for_rows(10).await;
    world.log.grow(&topic(CHANNEL), 3).await.unwrap();
    world.writer(2, "w/2", 0).write_to(7).await;
    first.write_to(20).await;
    world.wait_for_rows(27).await;
    finish(storage).await;
    assert_eq!(world.rows().await, 27);
}

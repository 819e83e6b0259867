//! Looks at topics and tables from outside, past every proxy, and says how far each service is.
//!
//! The invariant: what it says is a fact of the log and the tables, never a service's word about itself. A service has
//! recovered once it has covered everything that was waiting for it when it came back.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use batch::decode_envelope;
use delivery::ErrorClass;
use lake::{Checkpoints, Snapshot, app_id};
use parking_lot::Mutex;
use pipeline::{Graph, TableStage};
use runtime::{
    config::{Config, LoadOptions},
    edges::Edges,
    tasks::TaskGroup,
};
use tokio::{runtime::Runtime, task::JoinSet};
use topics::{Log, Message, TopicName};

use crate::service::Service;

const READ_BYTES: usize = 4 << 20;
/// The observer asks over the network: there is no event to await.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A question to the broker is asked again this long: it may be on its way back, on processors that are all taken.
const ANSWER_LIMIT: Duration = Duration::from_secs(90);
/// Channels come and grow rarely.
const LOOK_FOR_CHANNELS_EVERY: Duration = Duration::from_secs(3);
/// Of a channel here.
const MOST_PARTITIONS: u32 = 16;

/// A partition of an input and the one who reads it on.
type Place = (String, u32, String);

/// How far inputs went at one moment, or how far they were covered.
pub(crate) type Marks = BTreeMap<Place, u64>;

/// What was read of all channels.
#[derive(Default)]
struct Channels {
    /// Channel, partition and writer, and up to where the messages there cover the writer's input.
    covered: BTreeMap<(String, u32, String), u64>,
    /// Of each channel and partition, how far it was read and where its last message with rows ends.
    ends: BTreeMap<(String, u32), ReadTo>,
}

#[derive(Clone, Copy, Default)]
struct ReadTo {
    next: u64,
    rows_end: u64,
}

/// An observer of one deployment.
pub(crate) struct Observer {
    edges: Edges,
    channels: Arc<Mutex<Channels>>,
    followers: Mutex<Followers>,
    snapshots: Mutex<BTreeMap<String, Snapshot>>,
    _group: TaskGroup,
    // Ends last.
    runtime: Runtime,
}

#[derive(Default)]
struct Followers {
    known: BTreeSet<(String, u32)>,
    running: JoinSet<()>,
    looked: Option<Instant>,
}

impl Observer {
    /// Connects as the config in `folder` says.
    pub(crate) fn connect(folder: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let file = folder.join("tailwater.toml");
        let options =
            LoadOptions { file: Some(file), folder: folder.to_owned(), env: Vec::new(), overrides: Vec::new() };
        let config = Config::load(options)?;
        let (edges, group) = runtime.block_on(async {
            let group = TaskGroup::new();
            Ok::<_, anyhow::Error>((
                Edges::open(&config, "observer", runtime::admin::Health::new(), &group).await?,
                group,
            ))
        })?;
        let (channels, followers, snapshots) = Default::default();
        Ok(Self { edges, channels, followers, snapshots, _group: group, runtime })
    }

    /// What the catalog says now.
    pub(crate) fn graph(&self) -> Arc<Graph> {
        Arc::clone(&self.edges.catalog.borrow().graph)
    }

    /// The lake, for tests that act on it.
    pub(crate) fn lake(&self) -> &lake::Lake {
        &self.edges.lake
    }

    /// Runs what needs to await.
    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// How far the inputs of a service go at this moment. A broker that is just back may need a few questions.
    pub(crate) fn ends(&self, service: Service) -> Result<Marks> {
        let started = Instant::now();
        loop {
            match self.ends_now(service) {
                Err(_) if started.elapsed() < ANSWER_LIMIT => std::thread::sleep(LOOK_EVERY),
                answer => return answer,
            }
        }
    }

    fn ends_now(&self, service: Service) -> Result<Marks> {
        let graph = self.graph();
        let mut marks = self.block_on(async {
            let mut marks = Marks::new();
            for (input, reader) in inputs(&graph, service) {
                for (partition, end) in self.spans(&input).await? {
                    marks.insert((input.clone(), partition, reader.clone()), end);
                }
            }
            Ok::<_, anyhow::Error>(marks)
        })?;
        if service == Service::Storage {
            for ((channel, partition, _), end) in &mut marks {
                *end = self.rows_end(&graph, channel, *partition, *end)?;
            }
        }
        Ok(marks)
    }

    /// Where the last message with rows before `end` ends: storage has `storage.quiet_age` for others.
    fn rows_end(&self, graph: &Graph, channel: &str, partition: u32, end: u64) -> Result<u64> {
        let started = Instant::now();
        loop {
            // The channel may have come since it was last looked for.
            self.follow(graph)?;
            let read = self.channels.lock().ends.get(&(channel.to_owned(), partition)).copied().unwrap_or_default();
            if read.next >= end {
                return Ok(read.rows_end.min(end));
            }
            ensure!(started.elapsed() < ANSWER_LIMIT, "`{channel}`/{partition} is read to {}, not to {end}", read.next);
            std::thread::sleep(LOOK_EVERY / 5);
        }
    }

    /// How far a service has covered its inputs.
    pub(crate) fn covered(&self, service: Service) -> Result<Marks> {
        let graph = self.graph();
        self.follow(&graph)?;
        match service {
            Service::Ingestion => Ok(self.covered_by_writers(graph.sources.iter().map(|source| {
                (source.topic.clone(), source.channel.clone(), format!("{}.{}", source.pipeline, source.name))
            }))),
            Service::Transformation => Ok(self.covered_by_writers(graph.views.iter().flat_map(|view| {
                view.branches.iter().map(|branch| {
                    let writer = format!("{}.{}.{}", view.pipeline, view.name, branch.index);
                    (branch.input_channel.clone(), view.channel.clone(), writer)
                })
            }))),
            Service::Storage => self.covered_by_tables(&graph),
            Service::Analysis => Ok(Marks::new()),
        }
    }

    /// How far the newest checkpoints of ingestion say that it is.
    pub(crate) fn checkpointed(&self) -> Result<Marks> {
        let graph = self.graph();
        let mut marks = Marks::new();
        for source in &graph.sources {
            let writer = format!("{}.{}", source.pipeline, source.name);
            let checkpoints = Checkpoints::new(self.lake(), &format!("{writer}.{}", source.incarnation));
            for partition in 0..MOST_PARTITIONS {
                if let Some(checkpoint) = self.block_on(checkpoints.newest(partition))? {
                    marks.insert((source.topic.clone(), partition, writer.clone()), checkpoint.position.offset);
                }
            }
        }
        Ok(marks)
    }

    /// Waits until a service has covered `marks`; how long that took since `started`.
    pub(crate) fn wait(&self, service: Service, marks: &Marks, started: Instant, limit: Duration) -> Result<Duration> {
        loop {
            let covered = self.covered(service);
            if covered.as_ref().is_ok_and(|covered| behind(marks, covered).is_empty()) {
                return Ok(started.elapsed());
            }
            if started.elapsed() > limit {
                bail!(
                    "{} is behind after {limit:?}: {:?}",
                    service.name(),
                    covered.map(|covered| behind(marks, &covered))
                );
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Rows that a table holds, by its log.
    pub(crate) fn rows(&self, pipeline: &str, name: &str) -> Result<u64> {
        let graph = self.graph();
        let table = find(&graph, pipeline, name)?;
        let snapshot = self.block_on(self.snapshot(table))?;
        Ok(snapshot.and_then(|snapshot| snapshot.rows()).unwrap_or(0))
    }

    /// The newest state of a table by its log; `None` before its first commit.
    pub(crate) async fn snapshot(&self, table: &TableStage) -> Result<Option<Snapshot>> {
        let known = self.snapshots.lock().get(&table.folder).cloned();
        let newest = match known {
            Some(known) => Some(known.refresh(&self.edges.lake).await?),
            None => Snapshot::load(&self.edges.lake, &table.folder).await?,
        };
        if let Some(newest) = &newest {
            self.snapshots.lock().insert(table.folder.clone(), newest.clone());
        }
        Ok(newest)
    }

    /// The next offset of each partition; nothing where the topic is away.
    async fn spans(&self, topic: &str) -> Result<Vec<(u32, u64)>> {
        let topic = TopicName::try_from(topic.to_owned())?;
        let Some(description) = self.edges.log.describe(&topic).await? else { return Ok(Vec::new()) };
        let mut spans = Vec::new();
        for partition in 0..description.partitions {
            spans.push((partition, self.edges.log.span(&topic, partition).await?.end));
        }
        Ok(spans)
    }

    fn covered_by_writers(&self, ways: impl Iterator<Item = (String, String, String)>) -> Marks {
        let channels = self.channels.lock();
        let mut marks = Marks::new();
        for (input, channel, writer) in ways {
            let prefix = format!("{writer}/");
            for ((at, partition, by), to) in &channels.covered {
                if *at == channel && by.starts_with(&prefix) {
                    marks.insert((input.clone(), *partition, writer.clone()), *to);
                }
            }
        }
        marks
    }

    fn covered_by_tables(&self, graph: &Graph) -> Result<Marks> {
        let mut marks = Marks::new();
        for (channel, folder) in inputs(graph, Service::Storage) {
            let table = graph.tables.iter().find(|table| table.folder == folder).context("a table of the catalog")?;
            let Some(snapshot) = self.block_on(self.snapshot(table))? else { continue };
            for partition in 0..MOST_PARTITIONS {
                if let Some(next) = snapshot.txns.get(&app_id::next_offset(&channel, partition)) {
                    marks.insert((channel.clone(), partition, folder.clone()), u64::try_from(*next)?);
                }
            }
        }
        Ok(marks)
    }

    /// Follows the channels that are not followed yet.
    fn follow(&self, graph: &Graph) -> Result<()> {
        let sources = graph.sources.iter().map(|source| &source.channel);
        let mut followers = self.followers.lock();
        if followers.looked.is_some_and(|looked| looked.elapsed() < LOOK_FOR_CHANNELS_EVERY) {
            return Ok(());
        }
        for channel in sources.chain(graph.views.iter().map(|view| &view.channel)) {
            for (partition, _) in self.block_on(self.spans(channel))? {
                if followers.known.insert((channel.clone(), partition)) {
                    let log = Arc::clone(&self.edges.log);
                    let work = follow(log, channel.clone(), partition, Arc::clone(&self.channels));
                    followers.running.spawn_on(work, self.runtime.handle());
                }
            }
        }
        followers.looked = Some(Instant::now());
        Ok(())
    }
}

/// The places of `marks` that are not reached, with how far they are and where they should be.
pub(crate) fn behind(marks: &Marks, covered: &Marks) -> BTreeMap<Place, (u64, u64)> {
    let far = |place: &Place| covered.get(place).copied().unwrap_or(0);
    marks
        .iter()
        .filter(|(place, end)| far(place) < **end)
        .map(|(place, end)| (place.clone(), (far(place), *end)))
        .collect()
}

/// The topics a service reads, each with who reads it on.
fn inputs(graph: &Graph, service: Service) -> Vec<(String, String)> {
    match service {
        Service::Ingestion => {
            graph.sources.iter().map(|s| (s.topic.clone(), format!("{}.{}", s.pipeline, s.name))).collect()
        }
        Service::Transformation => {
            let branches = graph.views.iter().flat_map(|view| view.branches.iter().map(move |branch| (view, branch)));
            branches
                .map(|(v, branch)| {
                    (branch.input_channel.clone(), format!("{}.{}.{}", v.pipeline, v.name, branch.index))
                })
                .collect()
        }
        // Tables of rejected rows may wait a minute for a commit without rows.
        Service::Storage => {
            let data = |table: &&TableStage| !table.name.ends_with("_rejected");
            graph.tables.iter().filter(data).map(|table| (table.channel.clone(), table.folder.clone())).collect()
        }
        Service::Analysis => Vec::new(),
    }
}

fn find<'a>(graph: &'a Graph, pipeline: &str, name: &str) -> Result<&'a TableStage> {
    let mut tables = graph.tables.iter();
    tables
        .find(|table| table.pipeline == pipeline && table.name == name)
        .with_context(|| format!("no table {pipeline}.{name}"))
}

impl Channels {
    fn note(&mut self, channel: &str, partition: u32, message: &Message) {
        let read = self.ends.entry((channel.to_owned(), partition)).or_default();
        read.next = message.offset + 1;
        let Ok(envelope) = decode_envelope(&message.headers) else { return };
        if envelope.rows > 0 {
            read.rows_end = read.next;
        }
        let writer = envelope.origin.writer.as_str().to_owned();
        let to = self.covered.entry((channel.to_owned(), partition, writer)).or_default();
        *to = envelope.origin.to.offset.max(*to);
    }
}

/// Notes what the messages of a channel partition cover, from its beginning and for ever.
async fn follow(log: Arc<dyn Log>, channel: String, partition: u32, channels: Arc<Mutex<Channels>>) {
    let Ok(topic) = TopicName::try_from(channel.clone()) else { return };
    let mut next = 0;
    loop {
        if let Ok(span) = log.span(&topic, partition).await
            && let Ok(mut reader) = log.reader(&topic, partition, next.max(span.start)).await
        {
            loop {
                match reader.read(READ_BYTES).await {
                    Ok(messages) => {
                        for message in messages {
                            next = message.offset + 1;
                            channels.lock().note(&channel, partition, &message);
                        }
                    }
                    Err(error) if error.class() == ErrorClass::Retry => tokio::time::sleep(LOOK_EVERY).await,
                    Err(_) => break,
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

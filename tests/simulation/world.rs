//! One run's world: a log, a store, a catalog, and the processes that come and go in it.

use std::{collections::BTreeMap, hash::Hasher as _, sync::Arc, time::Duration};

use analysis::AnalysisState;
use batch::{Compression, decode_envelope};
use futures::TryStreamExt as _;
use lake::Lake;
use object_store::{ObjectStore as _, ObjectStoreExt as _, memory::InMemory};
use parking_lot::Mutex;
use pipeline::Graph;
use runtime::{
    admin::{CheckState, Health},
    catalog::{self, ApplyFile, ApplyRequest},
    config::Config,
    edges::Edges,
    tasks::{Fate, TaskGroup},
    units::{self, ByteSize},
};
use testkit::Random;
use tokio::{task::JoinSet, time::Instant};
use topics::{Log, Message, TopicName, TopicSettings, memory::MemoryLog};

use crate::{
    check::Expected,
    faults::{Chances, Faults},
    input::{SQL, TOPIC, UserRow},
    log_edge::LogEdge,
    process::{Deaths, Process},
    store_edge::StoreEdge,
    trace::{Fingerprint, Trace},
};

/// 2026-01-01T00:00:00Z: when every run begins.
const BEGINNING_MS: i64 = 1_767_225_600_000;

/// How long a process may take to stop.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);

/// The header by which a message of a user is known again.
pub(crate) const ID: &str = "id";

/// A kind of process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Service {
    Ingestion,
    Transformation,
    Storage,
    Analysis,
}

impl Service {
    pub(crate) const ALL: [Self; 4] = [Self::Ingestion, Self::Transformation, Self::Storage, Self::Analysis];

    fn name(self) -> &'static str {
        match self {
            Self::Ingestion => "ingestion",
            Self::Transformation => "transformation",
            Self::Storage => "storage",
            Self::Analysis => "analysis",
        }
    }
}

/// A process that runs a service.
pub(crate) struct Instance {
    pub(crate) service: Service,
    pub(crate) process: Process,
    /// Whether it believes to own everything.
    pub(crate) zombie: bool,
    group: TaskGroup,
    health: Health,
    analysis: Option<AnalysisState>,
}

/// What is wrong with a run.
#[derive(Clone, Default)]
pub(crate) struct Problems(Arc<Mutex<Vec<String>>>);

impl Problems {
    pub(crate) fn add(&self, problem: impl Into<String>) {
        self.0.lock().push(problem.into());
    }

    pub(crate) fn list(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

/// See the module.
pub(crate) struct World {
    pub(crate) log: MemoryLog,
    pub(crate) store: Arc<InMemory>,
    pub(crate) config: Config,
    pub(crate) faults: Faults,
    pub(crate) trace: Trace,
    pub(crate) problems: Problems,
    pub(crate) graph: Graph,
    pub(crate) deaths: Arc<Deaths>,
    pub(crate) instances: BTreeMap<u64, Instance>,
    /// Processes that died and whose sessions have not run out.
    pub(crate) dying: BTreeMap<u64, Process>,
    /// By the id in a message's header: what its sender meant.
    pub(crate) sent: Arc<Mutex<BTreeMap<u64, Vec<UserRow>>>>,
    pub(crate) partitions: u32,
    /// What was in the users' topic when it was deleted.
    pub(crate) replaced: Option<Expected>,
    /// The state of whichever analysis process is there, for those who ask it.
    pub(crate) asked: Arc<Mutex<Option<AnalysisState>>>,
    leaving: JoinSet<()>,
    started: u64,
    began: Instant,
    seed: u64,
}

/// The wall clock of a run that began at `began`.
fn clock(began: Instant) -> impl Fn() -> i64 + Send + Sync + 'static {
    move || BEGINNING_MS + i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX)
}

fn settings(partitions: u32) -> TopicSettings {
    TopicSettings { partitions, ..TopicSettings::default() }
}

pub(crate) fn topic(name: &str) -> TopicName {
    TopicName::new(name).expect("names of topics here are valid")
}

/// Sizes and times that make a run lively; the oversized rows need the room of a real message.
fn config(random: &mut Random, oversized: bool) -> Config {
    let mut config = Config::default();
    let millis = |random: &mut Random, choices: &[u64]| units::Duration::millis(*random.pick(choices));
    let ingestion = &mut config.ingestion;
    ingestion.linger = millis(random, &[0, 5, 20, 200]);
    ingestion.batch_rows = *random.pick(&[1, 3, 20, 8192]);
    ingestion.batch_bytes = ByteSize::bytes(*random.pick(&[200, 4_000, 4 << 20]));
    ingestion.max_message_bytes = ByteSize::bytes(*random.pick(&[8_000, 10_000, 40_000]));
    if oversized {
        ingestion.max_message_bytes = ByteSize::kilobytes(500);
    }
    ingestion.checkpoint_every = millis(random, &[100, 1_000, 5_000, 10_000]);
    config.transformation.checkpoint_every = millis(random, &[100, 1_000, 5_000, 10_000]);
    config.storage.flush_age = millis(random, &[20, 500, 2_000]);
    config.storage.flush_rows = *random.pick(&[5, 50, 5_000_000]);
    config
}

impl World {
    pub(crate) async fn new(seed: u64, random: &mut Random, oversized: bool) -> anyhow::Result<Self> {
        let (trace, began) = (Trace::begin(), Instant::now());
        let faults = Faults::new(Chances::draw(random), random.fork(), trace.clone());
        let log = MemoryLog::with_clock(clock(began));
        let partitions = 1 + random.below(3) as u32;
        log.create(&topic(TOPIC), &settings(partitions)).await?;
        let files = vec![ApplyFile { file: "shop.sql".into(), text: SQL.into() }];
        let request = ApplyRequest { pipeline: "shop".into(), files, replace: false, drop: false, dry_run: false };
        catalog::apply(&log, &request).await?;
        let graph = pipeline::compile(&catalog::read_all(&log).await?)?;
        let dice = faults.clone();
        log.set_faults(move |attempt| dice.append(attempt));
        Ok(Self {
            log,
            store: Arc::new(InMemory::new()),
            config: config(random, oversized),
            faults,
            trace,
            problems: Problems::default(),
            graph,
            deaths: Arc::default(),
            instances: BTreeMap::new(),
            dying: BTreeMap::new(),
            sent: Arc::default(),
            partitions,
            replaced: None,
            asked: Arc::default(),
            leaving: JoinSet::new(),
            started: 0,
            began,
            seed,
        })
    }

    /// The users' topic is deleted with all that is in it, and another is made of the same name.
    pub(crate) async fn recreate_topic(&mut self) -> anyhow::Result<()> {
        self.replaced = Some(Expected::of(self).await?);
        self.log.delete(&topic(TOPIC));
        self.log.create(&topic(TOPIC), &settings(self.partitions)).await?;
        self.trace.note(format!("{TOPIC} is deleted and created again"));
        Ok(())
    }

    /// A process without a service: for those who look on.
    pub(crate) fn bystander(&self, name: &str) -> Process {
        Process::new(0, name.to_owned(), self.faults.clone(), self.trace.clone(), Arc::clone(&self.deaths))
    }

    /// A lake over the store as `process` sees it.
    pub(crate) fn lake_of(&self, process: &Process, number: u64) -> Lake {
        let root = Lake::memory().root_url().clone();
        let lake = Lake::with_store(Arc::new(StoreEdge::new(&self.store, process.clone())), root);
        lake.with_clock(Arc::new(clock(self.began))).with_seed(self.seed.wrapping_mul(1_000).wrapping_add(number))
    }

    /// A lake without faults.
    pub(crate) fn plain_lake(&self) -> Lake {
        let root = Lake::memory().root_url().clone();
        Lake::with_store(Arc::clone(&self.store) as Arc<dyn object_store::ObjectStore>, root)
    }

    pub(crate) fn start(&mut self, service: Service, zombie: bool) -> u64 {
        self.started += 1;
        let number = self.started;
        let name = format!("{}-{number}", service.name());
        self.trace.note(format!("{name} starts{}", if zombie { " as a zombie that owns everything" } else { "" }));
        let (faults, trace) = (self.faults.clone(), self.trace.clone());
        let process = Process::new(number, name, faults, trace, Arc::clone(&self.deaths));
        let group = TaskGroup::new();
        let log: Arc<dyn Log> = Arc::new(LogEdge::new(&self.log, process.clone(), zombie));
        let edges = Edges::new(log, self.lake_of(&process, number), Compression::None, &group);
        let health = edges.health.clone();
        let (config, stop) = (self.config.clone(), group.stop());
        let analysis = (service == Service::Analysis).then(|| AnalysisState::new(&config.analysis, &edges));
        match service {
            Service::Ingestion => group.spawn("ingestion", Fate::Critical, ingestion::run(config, edges, stop)),
            Service::Transformation => {
                group.spawn("transformation", Fate::Critical, transformation::run(config, edges, stop));
            }
            Service::Storage => group.spawn("storage", Fate::Critical, storage::run(config, edges, stop)),
            Service::Analysis => group.spawn("analysis", Fate::Critical, analysis::run(config, edges, stop)),
        }
        if analysis.is_some() {
            self.asked.lock().clone_from(&analysis);
        }
        self.instances.insert(number, Instance { service, process, zombie, group, health, analysis });
        number
    }

    /// A process is gone from one moment to the next; its session is not.
    pub(crate) fn bury(&mut self, number: u64) -> Option<(Service, bool, Process)> {
        let instance = self.instances.remove(&number)?;
        self.forget_analysis(&instance);
        let Instance { service, zombie, process, .. } = instance;
        Some((service, zombie, process))
    }

    /// Asks a process to stop; it does so in its own time.
    pub(crate) fn ask_to_stop(&mut self, number: u64) -> Option<Service> {
        let instance = self.instances.remove(&number)?;
        self.trace.note(format!("{} is asked to stop", instance.process.name()));
        self.forget_analysis(&instance);
        let (process, group) = (instance.process, instance.group);
        self.leaving.spawn(async move {
            match group.finish(DRAIN).await {
                Ok(()) => process.note("has stopped"),
                Err(failure) => process.note(&format!("has stopped: {failure}")),
            }
        });
        Some(instance.service)
    }

    /// Asks everybody to stop and waits; tells who could not.
    pub(crate) async fn stop_all(&mut self) {
        for (_, instance) in std::mem::take(&mut self.instances) {
            let name = instance.process.name().to_owned();
            self.forget_analysis(&instance);
            if let Err(failure) = instance.group.finish(DRAIN).await {
                self.problems.add(format!("{name} did not stop cleanly without faults: {failure}"));
            }
        }
        while self.leaving.join_next().await.is_some() {}
    }

    fn forget_analysis(&self, instance: &Instance) {
        if instance.analysis.is_some() {
            let another = self.instances.values().find_map(|other| other.analysis.clone());
            *self.asked.lock() = another;
        }
    }

    /// What the processes say they wait for.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        for instance in self.instances.values() {
            for line in instance.health.report() {
                if let CheckState::Waiting { reason } = line.state {
                    complaints.push(format!("{}: {}: {reason}", instance.process.name(), line.name));
                }
            }
        }
        complaints
    }

    /// A fingerprint of everything in the log and the store.
    pub(crate) async fn fingerprint(&self, messages: &[(String, Message)]) -> anyhow::Result<u64> {
        let mut print = Fingerprint::default();
        for (place, message) in messages {
            print.write(format!("{place} {:?}{}", message.headers, message.timestamp_ms).as_bytes());
            print.write(&message.payload);
        }
        let mut objects: Vec<_> = self.store.list(None).try_collect().await?;
        objects.sort_by(|one, other| one.location.cmp(&other.location));
        for object in objects {
            print.write(object.location.as_ref().as_bytes());
            print.write(&self.store.get(&object.location).await?.bytes().await?);
        }
        Ok(print.finish())
    }

    /// Everything in the log, and where it stands.
    pub(crate) async fn messages(&self) -> anyhow::Result<Vec<(String, Message)>> {
        let mut names = vec![topic(TOPIC)];
        names.extend(self.graph.tables.iter().map(|table| topic(&table.channel)));
        let mut messages = Vec::new();
        for name in names {
            let Some(description) = self.log.describe(&name).await? else { continue };
            for partition in 0..description.partitions {
                let span = self.log.span(&name, partition).await?;
                let mut next = span.start;
                let mut reader = self.log.reader(&name, partition, next).await?;
                while next < span.end {
                    for message in reader.read(usize::MAX).await? {
                        next = message.offset + 1;
                        messages.push((format!("{name}/{partition} {span:?}"), message));
                    }
                }
            }
        }
        Ok(messages)
    }
}

/// How many messages of channels end inside a message of their input, since all its rows would not have fitted.
pub(crate) fn cuts(messages: &[(String, Message)]) -> usize {
    let ends_inside =
        |message: &Message| decode_envelope(&message.headers).is_ok_and(|envelope| envelope.origin.to.row > 0);
    messages.iter().filter(|(_, message)| ends_inside(message)).count()
}

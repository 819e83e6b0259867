//! The field faults are tried on: Kafka behind doors, an S3 server behind a proxy, and instances of all services.
//!
//! Invariants: every process writes logs of its own into the field's folder and none outlives it; whatever a fault did
//! to peers and links is undone by [`Field::heal`].

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use parking_lot::{Mutex, MutexGuard};
use testkit::{
    chaos::HttpProxy,
    kafka::{Kafka, Setup},
    process::Program,
    s3::VersityGateway,
};

use crate::{
    instance::{Instance, START_LIMIT, Start},
    observer::Observer,
    service::Service,
};

/// The doors: one for each service, and one for producers.
pub(crate) const PRODUCERS: &str = "producers";

/// Partitions of the topic that rows are sent to.
pub(crate) const PARTITIONS: u32 = 4;

/// How long instances are watched doing nothing, and the processor time one may take meanwhile.
const WATCHED_IDLE_FOR: Duration = Duration::from_secs(3);
const MOST_WORK_IDLE: Duration = Duration::from_millis(600);

const CONFIG: &str = r#"
# Fewer requests than by default, here and below: two brokers, two stores and all services share two processors.
[log.properties]
"linger.ms" = "50"

[storage]
flush_age = "700ms"
# A judgement waits for it, and so does every recovery whose last message has no rows.
quiet_age = "3s"

[ingestion]
linger = "100ms"
checkpoint_every = "2s"

[transformation]
checkpoint_every = "2s"

# The checker reads whole tables, on machines that do much else.
[analysis]
timeout = "10m"

[telemetry]
logs = "json"
"#;

/// A broker (or three), a store, and the processes on them.
pub(crate) struct Field {
    // Dropped first: processes end before their peers.
    instances: BTreeMap<String, Mutex<Instance>>,
    extras: Mutex<Vec<Instance>>,
    always: Start,
    /// All ledgers, and how many rows of them have been judged.
    ledgers: Mutex<(Vec<PathBuf>, u64)>,
    pub(crate) observer: Observer,
    kafka: Mutex<Kafka>,
    pub(crate) s3: HttpProxy,
    store: Mutex<VersityGateway>,
    folder: Mutex<Option<tempfile::TempDir>>,
    path: PathBuf,
}

impl Field {
    /// Starts everything and waits until all of it is ready. `None` where a peer is missing.
    ///
    /// `always` is what every instance is started with.
    pub(crate) fn set_up(brokers: usize, seed: u64, always: &Start) -> Result<Option<Self>> {
        let doors = Service::ALL.map(Service::name).into_iter().chain([PRODUCERS]).map(str::to_owned).collect();
        let Some(kafka) = Kafka::set_up(&Setup { brokers, doors, seed, ..Setup::default() })? else { return Ok(None) };
        let Some(store) = VersityGateway::start()? else { return Ok(None) };
        let s3 = HttpProxy::start(store.address(), seed)?;
        let folder = tempfile::Builder::new().prefix("tailwater-faults-").tempdir()?;
        let path = folder.path().to_owned();
        fs::write(path.join("tailwater.toml"), config(&kafka.brokers(), &store))?;
        let observer = Observer::connect(&path)?;
        let mut instances = BTreeMap::new();
        for service in Service::ALL {
            for name in service.instances() {
                let instance = Instance::new(&name, &path, through(&kafka, &s3, &name, always.clone())?)?;
                instances.insert(name, Mutex::new(instance));
            }
        }
        let (kafka, store, folder) = (Mutex::new(kafka), Mutex::new(store), Mutex::new(Some(folder)));
        let (extras, always, ledgers) = (Mutex::default(), always.clone(), Mutex::default());
        let field = Self { instances, extras, always, ledgers, observer, kafka, s3, store, folder, path };
        field.start_missing(START_LIMIT)?;
        Ok(Some(field))
    }

    /// Starts the instances that do not run, and waits until all are ready.
    pub(crate) fn start_missing(&self, limit: Duration) -> Result<()> {
        for instance in self.instances.values() {
            let mut instance = instance.lock();
            if !instance.is_running() {
                instance.kill()?;
                instance.start(&Start::default())?;
            }
        }
        self.wait_until_ready(limit)
    }

    /// Waits until every instance says it is ready.
    pub(crate) fn wait_until_ready(&self, limit: Duration) -> Result<()> {
        self.instances.values().try_for_each(|instance| instance.lock().wait_until_ready(limit))
    }

    /// The instance of this name.
    pub(crate) fn instance(&self, name: &str) -> Result<MutexGuard<'_, Instance>> {
        Ok(self.instances.get(name).with_context(|| format!("there is no instance `{name}`"))?.lock())
    }

    /// One more instance, beside those there are: a twin of `of` where nothing tells them apart.
    pub(crate) fn start_extra(&self, name: &str) -> Result<()> {
        let always = through(&self.kafka.lock(), &self.s3, name, self.always.clone())?;
        let mut instance = Instance::new(name, &self.path, always)?;
        instance.start(&Start::default())?;
        self.extras.lock().push(instance);
        Ok(())
    }

    /// Ends the extra instances.
    pub(crate) fn kill_extras(&self) -> Result<()> {
        self.extras.lock().iter_mut().try_for_each(Instance::kill)
    }

    pub(crate) fn kafka(&self) -> MutexGuard<'_, Kafka> {
        self.kafka.lock()
    }

    pub(crate) fn store(&self) -> MutexGuard<'_, VersityGateway> {
        self.store.lock()
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// From now on every check looks at this ledger too.
    pub(crate) fn note_ledger(&self, ledger: PathBuf) {
        self.ledgers.lock().0.push(ledger);
    }

    pub(crate) fn ledgers(&self) -> Vec<PathBuf> {
        self.ledgers.lock().0.clone()
    }

    /// How many of `rows` rows of all ledgers were not there at the last check.
    pub(crate) fn newly_judged(&self, rows: u64) -> u64 {
        let judged = std::mem::replace(&mut self.ledgers.lock().1, rows);
        rows.saturating_sub(judged)
    }

    /// Undoes what faults did to links and to the store.
    pub(crate) fn heal(&self) -> Result<()> {
        self.s3.heal();
        self.kafka().doors().iter().for_each(testkit::kafka::Door::heal);
        self.kill_extras()
    }

    /// `--config …` and, where a service is named, its address.
    pub(crate) fn program(&self, door: Option<Service>) -> Result<Program> {
        let mut program = Program::named("tailwater")?.args(["--config", "tailwater.toml"]).in_folder(&self.path);
        if let Some(service) = door {
            let instance = self.instance(&format!("{}-1", service.name()))?;
            program = program.args(["--url", &instance.url()]);
        }
        Ok(program)
    }

    /// The most memory an instance of each service ever took, and what is wrong with how instances behave: memory
    /// beyond bounds, logs that say something too often.
    pub(crate) fn habits(&self) -> (BTreeMap<&'static str, u64>, Vec<String>) {
        let (mut peaks, mut faults) = (BTreeMap::new(), Vec::new());
        for instance in self.instances.values() {
            let mut instance = instance.lock();
            instance.note_usage();
            let peak: &mut u64 = peaks.entry(instance.service.name()).or_default();
            *peak = instance.peak_rss().max(*peak);
            if instance.peak_rss() > instance.service.memory() {
                faults.push(format!("`{}` took {} MiB of memory", instance.name, instance.peak_rss() >> 20));
            }
            for log in instance.logs() {
                for flood in crate::logs::floods(&log) {
                    faults.push(format!("`{}` logged {} lines in 10 s: {}", instance.name, flood.lines, flood.kind));
                }
            }
        }
        (peaks, faults)
    }

    /// Watches for a few seconds, in which nothing may be on its way: instances that work all the same.
    pub(crate) fn spinning(&self) -> Vec<String> {
        let work = || self.instances.values().map(|instance| instance.lock().work());
        let before: Vec<Option<Duration>> = work().collect();
        std::thread::sleep(WATCHED_IDLE_FOR);
        let worked = work().zip(before).map(|(now, before)| now?.checked_sub(before?));
        let spinning = self.instances.keys().zip(worked).filter_map(|(name, worked)| {
            let worked = worked.filter(|worked| *worked > MOST_WORK_IDLE)?;
            Some(format!("`{name}` worked {worked:?} of {WATCHED_IDLE_FOR:?} although nothing was to be done"))
        });
        spinning.collect()
    }

    /// Keeps the folder with all logs after the end; where it is.
    pub(crate) fn keep(&self) -> PathBuf {
        if let Some(folder) = self.folder.lock().take() {
            return folder.keep();
        }
        self.path.clone()
    }
}

fn config(brokers: &str, store: &VersityGateway) -> String {
    let mut config = format!("[log]\nkind = \"kafka\"\nbrokers = \"{brokers}\"\ndefault_partitions = {PARTITIONS}\n");
    config += CONFIG;
    config += &format!("\n[store]\nurl = \"{}\"\n\n[store.options]\n", store.url());
    for (key, value) in store.options() {
        config += &format!("{key} = \"{value}\"\n");
    }
    config
}

/// By its own door, through the proxy of the store, and with a place of its own in the group that outlives a restart.
fn through(kafka: &Kafka, s3: &HttpProxy, name: &str, start: Start) -> Result<Start> {
    let service = Service::of(name).with_context(|| format!("`{name}` is no instance of a service"))?;
    Ok(start
        .set(format!("log.brokers={}", kafka.door(service.name())?.brokers()))
        .set(format!("log.properties.group.instance.id={name}"))
        .set(format!("store.options.aws_endpoint={}", s3.endpoint())))
}

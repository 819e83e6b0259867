//! A real Apache Kafka from the artifacts on Maven Central: one broker in combined mode, or a cluster of them.
//!
//! Each [`Kafka`] has its own free ports, its own data folder and dies with the test. [`Kafka::kill`] keeps the data, so
//! that [`Kafka::restart`] shows what a broker remembers (the page cache survives a kill: power loss is not tested).
//! A [`Door`] is a way in through proxies that a test may slow, silence or cut.
//! Absent on purpose: a client. Tests reach the broker through the crate they test.

mod door;
mod node;
mod tools;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};
use tempfile::TempDir;

pub use door::Door;
use node::{DoorListener, Node};

use crate::chaos::TcpProxy;
use crate::peers::{self, Missing};
use crate::ports::free_port;
use crate::process::Usage;

/// The version of the broker that tests run against.
pub const VERSION: &str = "4.4.0";

const POM: &str = include_str!("kafka/pom.xml");

/// Two test processes may have picked the same free port.
const START_ATTEMPTS: usize = 3;

/// How the broker's virtual machine is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tuning {
    /// Starts fast and stays small: the first-stage compiler only, 512 MiB of heap.
    Tests,
    /// Runs fast: all compilers, 1 GiB of heap.
    Benches,
}

impl Tuning {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Tuning::Tests => &["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"],
            Tuning::Benches => &["-Xmx1g"],
        }
    }
}

/// What is to be started.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Brokers. From three on, topics have three replicas, two of which must have a message before it is acknowledged.
    pub brokers: usize,
    /// How their virtual machines are set up.
    pub tuning: Tuning,
    /// Names of the doors to make.
    pub doors: Vec<String>,
    /// What the doors draw their chances from.
    pub seed: u64,
}

impl Default for Setup {
    /// One broker, no door.
    fn default() -> Self {
        Setup { brokers: 1, tuning: Tuning::Tests, doors: Vec::new(), seed: 0 }
    }
}

/// A running (or stopped) cluster with its data. Mostly it is one broker.
pub struct Kafka {
    // Declared before the folder: the processes end before their files are removed.
    nodes: Vec<Node>,
    doors: Vec<Door>,
    folder: TempDir,
}

impl Kafka {
    /// Starts a broker of its own and waits until it serves. `None`, loudly, where Java or Maven is missing.
    pub fn start() -> Result<Option<Kafka>> {
        Kafka::set_up(&Setup::default())
    }

    /// As [`Kafka::start`], with the choice of start-up time or speed.
    pub fn start_tuned(tuning: Tuning) -> Result<Option<Kafka>> {
        Kafka::set_up(&Setup { tuning, ..Setup::default() })
    }

    /// Starts so many brokers as one cluster.
    pub fn cluster(brokers: usize) -> Result<Option<Kafka>> {
        Kafka::set_up(&Setup { brokers, ..Setup::default() })
    }

    /// Starts what `setup` says. `None`, loudly, where Java or Maven is missing.
    pub fn set_up(setup: &Setup) -> Result<Option<Kafka>> {
        let Some(jars) = peers::present("Apache Kafka", jars())? else {
            return Ok(None);
        };
        let mut last = anyhow!("no attempt was made");
        for _ in 0..START_ATTEMPTS {
            match Kafka::start_from(&jars, setup) {
                Ok(kafka) => return Ok(Some(kafka)),
                Err(error) if is_port_taken(&error) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// The one broker this test process shares, started at the first call. Never stop or kill this one.
    pub fn shared() -> Result<Option<&'static Kafka>> {
        static SHARED: OnceLock<Result<Option<Kafka>, String>> = OnceLock::new();
        match SHARED.get_or_init(|| Kafka::start().map_err(|error| format!("{error:#}"))) {
            Ok(kafka) => Ok(kafka.as_ref()),
            Err(error) => Err(anyhow!("the shared broker did not start: {error}")),
        }
    }

    /// What a client calls `bootstrap.servers`, past every door. The same before and after a restart.
    pub fn brokers(&self) -> String {
        let addresses: Vec<String> = self.nodes.iter().map(Node::address).collect();
        addresses.join(",")
    }

    /// The door of this name.
    pub fn door(&self, name: &str) -> Result<&Door> {
        self.doors.iter().find(|door| door.name == name).with_context(|| format!("there is no door `{name}`"))
    }

    /// All doors.
    pub fn doors(&self) -> &[Door] {
        &self.doors
    }

    /// Whether every broker process is alive.
    pub fn is_running(&mut self) -> bool {
        self.nodes.iter_mut().all(Node::is_running)
    }

    /// Stops all brokers in good order (SIGTERM) and waits for their end. The data stay.
    pub fn stop(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(Node::terminate)?;
        self.nodes.iter_mut().try_for_each(Node::end)
    }

    /// Kills all brokers at once (SIGKILL). The data stay as they are.
    pub fn kill(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(Node::kill)
    }

    /// Freezes all brokers (SIGSTOP): connections stay open and nothing answers, until [`Kafka::resume`].
    pub fn pause(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(|node| node.signal("STOP"))
    }

    /// Lets frozen brokers go on.
    pub fn resume(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(|node| node.signal("CONT"))
    }

    /// Starts all brokers again on the same ports and data, after a clean stop of those that still run.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.launch()
    }

    /// Kills one broker (from 0) at once. Its data stay.
    pub fn kill_broker(&mut self, broker: usize) -> Result<()> {
        self.node(broker)?.kill()
    }

    /// Stops one broker in good order. Its data stay.
    pub fn stop_broker(&mut self, broker: usize) -> Result<()> {
        let node = self.node(broker)?;
        node.terminate()?;
        node.end()
    }

    /// Starts a stopped or killed broker again and waits until it serves.
    pub fn start_broker(&mut self, broker: usize) -> Result<()> {
        let node = self.node(broker)?;
        node.launch()?;
        node.wait()
    }

    /// What the brokers have logged since their last start.
    pub fn log(&self) -> String {
        self.nodes.iter().map(Node::log).collect()
    }

    /// Memory and processor time the brokers have used since their last start.
    pub fn usage(&self) -> Result<Usage> {
        let usages: Vec<Usage> = self.nodes.iter().map(|node| Usage::of(node.pid()?)).collect::<Result<_>>()?;
        Ok(Usage {
            resident_bytes: usages.iter().map(|usage| usage.resident_bytes).sum(),
            peak_resident_bytes: usages.iter().map(|usage| usage.peak_resident_bytes).sum(),
            cpu: usages.iter().map(|usage| usage.cpu).sum(),
        })
    }

    fn node(&mut self, broker: usize) -> Result<&mut Node> {
        self.nodes.get_mut(broker).with_context(|| format!("there is no broker {broker}"))
    }

    fn start_from(jars: &Path, setup: &Setup) -> Result<Kafka> {
        let folder = tempfile::Builder::new().prefix("tailwater-kafka-").tempdir()?;
        let numbers = 1..=setup.brokers;
        let nodes: Vec<Node> =
            numbers.map(|id| Node::new(id, jars, setup.tuning, folder.path())).collect::<Result<_>>()?;
        let voters: Vec<String> = nodes.iter().map(Node::voter).collect();
        let mut doors: Vec<Door> =
            setup.doors.iter().map(|name| Door { name: name.clone(), proxies: Vec::new() }).collect();
        for (number, node) in nodes.iter().enumerate() {
            let mut listeners = Vec::new();
            for door in &mut doors {
                let port = free_port()?;
                let proxy = TcpProxy::start(SocketAddr::from(([127, 0, 0, 1], port)), setup.seed + number as u64)?;
                listeners.push(DoorListener { port, advertised: proxy.address() });
                door.proxies.push(proxy);
            }
            node.prepare(&voters, &listeners)?;
        }
        let mut kafka = Kafka { nodes, doors, folder };
        kafka.launch()?;
        Ok(kafka)
    }

    /// All at once: no broker of a cluster serves before most controllers are there.
    fn launch(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(Node::launch)?;
        self.nodes.iter_mut().try_for_each(Node::wait)
    }
}

fn is_port_taken(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("Address already in use")
}

fn jars() -> Result<PathBuf, Missing> {
    peers::need("java", "-version", "a Java runtime, 17 or later")?;
    peers::need("mvn", "-version", "Apache Maven")?;
    Ok(peers::jars(&format!("kafka-{VERSION}"), POM)?)
}

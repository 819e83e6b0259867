//! A real Apache Kafka: one broker in combined mode, from the artifacts on Maven Central.
//!
//! Each [`Kafka`] has its own free ports, its own data folder and dies with the test. [`Kafka::kill`] keeps the data, so
//! that [`Kafka::restart`] shows what a broker remembers (the page cache survives a kill: power loss is not tested).
//! Absent on purpose: a client. Tests reach the broker through the crate they test.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tempfile::TempDir;

use crate::child::GuardedChild;
use crate::peers::{self, Missing};
use crate::ports::free_port;

/// The version of the broker that tests run against.
pub const VERSION: &str = "4.4.0";

const POM: &str = include_str!("kafka/pom.xml");
const SERVER_PROPERTIES: &str = include_str!("kafka/server.properties");
const LOG4J_PROPERTIES: &str = include_str!("kafka/log4j2.properties");

/// One cluster has nothing to do with another, so they may all be called the same.
const CLUSTER_ID: &str = "dGFpbHdhdGVyLXRlc3RraQ";
const STARTED: &str = "Kafka Server started";
/// A start takes 4 to 8 s on an idle machine, up to 23 s after a kill with much data; builds share the machine.
const START_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(30);
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

/// A running (or stopped) broker with its data.
pub struct Kafka {
    tuning: Tuning,
    jars: PathBuf,
    broker_port: u16,
    starts: usize,
    // Declared before the folder: the process ends before its files are removed.
    broker: Option<GuardedChild>,
    folder: TempDir,
}

impl Kafka {
    /// Starts a broker of its own and waits until it serves. `None`, loudly, where Java or Maven is missing.
    pub fn start() -> Result<Option<Kafka>> {
        Kafka::start_tuned(Tuning::Tests)
    }

    /// As [`Kafka::start`], with the choice of start-up time or speed.
    pub fn start_tuned(tuning: Tuning) -> Result<Option<Kafka>> {
        let Some(jars) = peers::present("Apache Kafka", jars())? else {
            return Ok(None);
        };
        let mut last = anyhow!("no attempt was made");
        for _ in 0..START_ATTEMPTS {
            match Kafka::start_from(&jars, tuning) {
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

    /// What a client calls `bootstrap.servers`. The same before and after a restart.
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.broker_port)
    }

    /// Whether the broker process is alive.
    pub fn is_running(&mut self) -> bool {
        self.broker.as_mut().is_some_and(|broker| matches!(broker.exit(), Ok(None)))
    }

    /// Stops the broker in good order (SIGTERM) and waits for its end. The data stay.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut broker) = self.broker.take() else {
            return Ok(());
        };
        broker.signal("TERM")?;
        broker.wait(STOP_LIMIT).context("stop the broker")?;
        Ok(())
    }

    /// Kills the broker at once (SIGKILL). The data stay as they are.
    pub fn kill(&mut self) -> Result<()> {
        match self.broker.take() {
            Some(mut broker) => broker.kill(),
            None => Ok(()),
        }
    }

    /// Freezes the broker (SIGSTOP): connections stay open and nothing answers, until [`Kafka::resume`].
    pub fn pause(&mut self) -> Result<()> {
        self.signal("STOP")
    }

    /// Lets a frozen broker go on.
    pub fn resume(&mut self) -> Result<()> {
        self.signal("CONT")
    }

    /// Starts the broker again on the same ports and data, after a clean stop if it still runs.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.launch()
    }

    /// What the broker has logged since its last start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Memory and processor time the broker has used since its last start.
    pub fn usage(&self) -> Result<crate::process::Usage> {
        let broker = self.broker.as_ref().context("the broker is not running")?;
        crate::process::Usage::of(broker.pid())
    }

    fn start_from(jars: &Path, tuning: Tuning) -> Result<Kafka> {
        let folder = tempfile::Builder::new().prefix("tailwater-kafka-").tempdir()?;
        let broker_port = free_port()?;
        let mut kafka = Kafka { tuning, jars: jars.to_owned(), broker_port, starts: 0, broker: None, folder };
        kafka.configure()?;
        kafka.format()?;
        kafka.launch()?;
        Ok(kafka)
    }

    fn configure(&self) -> Result<()> {
        let properties = SERVER_PROPERTIES
            .replace("@BROKER@", &self.broker_port.to_string())
            .replace("@CONTROLLER@", &free_port()?.to_string())
            .replace("@DATA@", &self.folder.path().join("data").display().to_string());
        fs::write(self.properties(), properties)?;
        fs::write(self.folder.path().join("log4j2.properties"), LOG4J_PROPERTIES)?;
        Ok(())
    }

    fn format(&self) -> Result<()> {
        let mut command = self.java();
        command.args(["kafka.tools.StorageTool", "format", "--standalone", "-t", CLUSTER_ID, "-c"]);
        peers::run(command.arg(self.properties())).context("format the broker's storage")?;
        Ok(())
    }

    fn launch(&mut self) -> Result<()> {
        self.starts += 1;
        let mut command = self.java();
        command.arg("kafka.Kafka").arg(self.properties());
        let log = self.log_path();
        let mut broker = GuardedChild::start(&mut command, &log, Some(self.folder.path()))?;
        let address = self.brokers();
        broker.wait_until(&format!("Kafka at {address}"), START_LIMIT, || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains(STARTED)) && TcpStream::connect(&address).is_ok()
        })?;
        self.broker = Some(broker);
        Ok(())
    }

    fn signal(&mut self, name: &str) -> Result<()> {
        self.broker.as_mut().context("the broker is not running")?.signal(name)
    }

    fn java(&self) -> Command {
        let mut command = Command::new("java");
        let logging = self.folder.path().join("log4j2.properties");
        command
            .args(self.tuning.flags())
            .arg(format!("-Dlog4j2.configurationFile={}", logging.display()))
            .arg("-cp")
            .arg(format!("{}/*", self.jars.display()));
        command
    }

    fn properties(&self) -> PathBuf {
        self.folder.path().join("server.properties")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join(format!("broker-{}.log", self.starts))
    }
}

fn is_port_taken(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("Address already in use")
}

fn jars() -> Result<PathBuf, Missing> {
    peers::need("java", "-version", "a Java runtime, 17 or later")?;
    peers::need("mvn", "-version", "Apache Maven")?;
    let folder = peers::once(&format!("kafka-{VERSION}"), POM, |folder| {
        fs::write(folder.join("pom.xml"), POM)?;
        peers::run(
            Command::new("mvn")
                .args(["-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=jars"])
                .current_dir(folder),
        )?;
        Ok(())
    })?;
    Ok(folder.join("jars"))
}

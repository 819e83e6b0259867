//! One broker of a cluster: its files, its ports and its process.
//!
//! Invariant: ports and data stay the same from the first start to the last.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Tuning;
use crate::child::GuardedChild;
use crate::peers;
use crate::ports::free_port;

const SERVER_PROPERTIES: &str = include_str!("server.properties");
const LOG4J_PROPERTIES: &str = include_str!("log4j2.properties");

/// One cluster has nothing to do with another, so they may all be called the same.
const CLUSTER_ID: &str = "dGFpbHdhdGVyLXRlc3RraQ";
const STARTED: &str = "Kafka Server started";
/// A start takes 4 to 8 s on an idle machine, up to 23 s after a kill with much data; builds share the machine.
const START_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A listener of its own for one door.
pub(super) struct DoorListener {
    pub(super) port: u16,
    pub(super) advertised: SocketAddr,
}

pub(super) struct Node {
    id: usize,
    jars: PathBuf,
    tuning: Tuning,
    port: u16,
    controller_port: u16,
    folder: PathBuf,
    /// Removed by the watchdog of the process where nobody else can.
    scratch: PathBuf,
    starts: usize,
    process: Option<GuardedChild>,
}

impl Node {
    /// The node with this number (from 1), its files below `scratch`.
    pub(super) fn new(id: usize, jars: &Path, tuning: Tuning, scratch: &Path) -> Result<Node> {
        let folder = scratch.join(format!("node-{id}"));
        fs::create_dir_all(&folder)?;
        let (port, controller_port) = (free_port()?, free_port()?);
        let (jars, scratch) = (jars.to_owned(), scratch.to_owned());
        Ok(Node { id, jars, tuning, port, controller_port, folder, scratch, starts: 0, process: None })
    }

    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How the nodes name each other.
    pub(super) fn voter(&self) -> String {
        format!("{}@127.0.0.1:{}", self.id, self.controller_port)
    }

    /// Writes the configuration and formats the storage. `voters` names all nodes of the cluster.
    pub(super) fn prepare(&self, voters: &[String], doors: &[DoorListener]) -> Result<()> {
        fs::write(self.properties(), self.configuration(voters, doors))?;
        fs::write(self.folder.join("log4j2.properties"), LOG4J_PROPERTIES)?;
        let mut command = self.java();
        command.args(["kafka.tools.StorageTool", "format"]);
        if voters.len() == 1 {
            command.arg("--standalone");
        }
        command.args(["-t", CLUSTER_ID, "-c"]).arg(self.properties());
        peers::run(&mut command).context("format the broker's storage")?;
        Ok(())
    }

    fn configuration(&self, voters: &[String], doors: &[DoorListener]) -> String {
        let ours = format!("PLAINTEXT://{},CONTROLLER://127.0.0.1:{}", self.address(), self.controller_port);
        let (mut listeners, mut advertised) = (ours.clone(), ours);
        let mut protocols = "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT".to_owned();
        for (number, door) in doors.iter().enumerate() {
            listeners += &format!(",DOOR{number}://127.0.0.1:{}", door.port);
            advertised += &format!(",DOOR{number}://{}", door.advertised);
            protocols += &format!(",DOOR{number}:PLAINTEXT");
        }
        let quorum = match voters.len() {
            1 => format!("controller.quorum.bootstrap.servers=127.0.0.1:{}", self.controller_port),
            _ => format!("controller.quorum.voters={}", voters.join(",")),
        };
        let replicas = voters.len().min(3);
        SERVER_PROPERTIES
            .replace("@NODE@", &self.id.to_string())
            .replace("@LISTENERS@", &listeners)
            .replace("@ADVERTISED@", &advertised)
            .replace("@PROTOCOLS@", &protocols)
            .replace("@QUORUM@", &quorum)
            .replace("@REPLICAS@", &replicas.to_string())
            .replace("@IN_SYNC@", &replicas.div_ceil(2).to_string())
            .replace("@DATA@", &self.folder.join("data").display().to_string())
    }

    /// Starts the process; it serves once [`Node::wait`] returns.
    pub(super) fn launch(&mut self) -> Result<()> {
        self.starts += 1;
        let mut command = self.java();
        command.arg("kafka.Kafka").arg(self.properties());
        self.process = Some(GuardedChild::start(&mut command, &self.log_path(), Some(&self.scratch))?);
        Ok(())
    }

    pub(super) fn wait(&mut self) -> Result<()> {
        let (address, log) = (self.address(), self.log_path());
        let process = self.process.as_mut().context("the broker is not running")?;
        process.wait_until(&format!("Kafka at {address}"), START_LIMIT, || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains(STARTED)) && TcpStream::connect(&address).is_ok()
        })
    }

    pub(super) fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| matches!(process.exit(), Ok(None)))
    }

    /// Asks it to end; [`Node::end`] waits for that.
    pub(super) fn terminate(&mut self) -> Result<()> {
        self.process.as_mut().map_or(Ok(()), |process| process.signal("TERM"))
    }

    pub(super) fn end(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.wait(STOP_LIMIT).context("stop the broker")?;
        }
        Ok(())
    }

    pub(super) fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    pub(super) fn signal(&mut self, name: &str) -> Result<()> {
        self.process.as_mut().context("the broker is not running")?.signal(name)
    }

    pub(super) fn pid(&self) -> Result<u32> {
        Ok(self.process.as_ref().context("the broker is not running")?.pid())
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn java(&self) -> Command {
        let mut command = Command::new("java");
        let logging = self.folder.join("log4j2.properties");
        command
            .args(self.tuning.flags())
            .arg(format!("-Dlog4j2.configurationFile={}", logging.display()))
            .arg("-cp")
            .arg(format!("{}/*", self.jars.display()));
        command
    }

    fn properties(&self) -> PathBuf {
        self.folder.join("server.properties")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join(format!("broker-{}.log", self.starts))
    }
}

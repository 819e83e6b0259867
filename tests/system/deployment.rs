//! Four services as separate processes on real Kafka and a real S3 server, and what is asked of them.
//!
//! Invariant: every process writes to a log of its own in the deployment's folder, and none outlives it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use testkit::{
    http,
    kafka::Kafka,
    ports::free_port,
    process::{Process, Program},
    s3::VersityGateway,
};

/// Far longer than a start takes on a busy machine.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(60);

/// What `/readyz` says before the edges are open.
const STARTING: &str = "[-] process starting";

/// A broker, a store, and the processes on them.
pub(crate) struct Deployment {
    // Dropped first: processes end before their peers.
    processes: BTreeMap<String, Process>,
    ports: BTreeMap<String, u16>,
    pub(crate) kafka: Kafka,
    pub(crate) store: VersityGateway,
    pub(crate) folder: tempfile::TempDir,
}

impl Deployment {
    /// Starts the peers and writes the config; no process of ours yet. `None` where a peer is missing.
    pub(crate) fn prepare() -> Result<Option<Self>> {
        let (Some(kafka), Some(store)) = (Kafka::start()?, VersityGateway::start()?) else { return Ok(None) };
        let folder = tempfile::Builder::new().prefix("tailwater-system-").tempdir()?;
        let mut config =
            format!("[log]\nkind = \"kafka\"\nbrokers = \"{}\"\ndefault_partitions = 2\n\n", kafka.brokers());
        config += "[storage]\nflush_age = \"300ms\"\nquiet_age = \"3s\"\n\n[ingestion]\ncheckpoint_every = \"2s\"\n\n[transformation]\ncheckpoint_every = \"2s\"\n\n";
        config += &format!("[store]\nurl = \"{}\"\n\n[store.options]\n", store.url());
        for (key, value) in store.options() {
            config += &format!("{key} = \"{value}\"\n");
        }
        fs::write(folder.path().join("tailwater.toml"), config)?;
        Ok(Some(Self { processes: BTreeMap::new(), ports: BTreeMap::new(), kafka, store, folder }))
    }

    /// All four services; two instances of transformation and of storage.
    pub(crate) fn start_all(&mut self) -> Result<()> {
        for name in ["ingestion", "transformation-1", "transformation-2", "storage-1", "storage-2", "analysis"] {
            self.start(name)?;
        }
        Ok(())
    }

    /// Starts (or restarts) one process. `storage-2` is the second instance of `storage`.
    pub(crate) fn start(&mut self, name: &str) -> Result<()> {
        let service = name.split('-').next().unwrap_or(name);
        let port = match self.ports.get(name) {
            Some(port) => *port,
            None => free_port()?,
        };
        self.ports.insert(name.to_owned(), port);
        let lives = fs::read_dir(self.folder.path())?.count();
        let program = Program::named(service)?
            .args(["--config", "tailwater.toml", "--set"])
            .arg(format!("{service}.listen=127.0.0.1:{port}"))
            .in_folder(self.folder.path())
            .log_to(self.folder.path().join(format!("{name}.{lives}.log")));
        let mut process = program.start()?;
        wait_until_open(&mut process, port)?;
        self.processes.insert(name.to_owned(), process);
        Ok(())
    }

    /// Kills a process without a word, as a failing machine would.
    pub(crate) fn kill(&mut self, name: &str) -> Result<()> {
        let mut process = self.processes.remove(name).with_context(|| format!("`{name}` is not running"))?;
        process.kill()
    }

    /// Waits until every process says it is ready.
    pub(crate) fn wait_until_ready(&mut self) -> Result<()> {
        let ports = self.ports.clone();
        for (name, process) in &mut self.processes {
            process.wait_until_ready(&format!("http://127.0.0.1:{}/readyz?verbose", ports[name]), START_LIMIT)?;
        }
        Ok(())
    }

    /// `http://…` of a process.
    pub(crate) fn url(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}", self.ports[name])
    }

    /// Runs the command line against this deployment; its standard output.
    pub(crate) fn tailwater(&self, door: &str, arguments: &[&str]) -> Result<String> {
        let mut program = Program::named("tailwater")?.args(["--config", "tailwater.toml"]);
        if !door.is_empty() {
            program = program.args(["--url", &self.url(door)]);
        }
        let output = program.args(arguments).in_folder(self.folder.path()).run()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "`tailwater {}` ended with {}:\n{text}\n{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(text)
    }

    /// The ledger.
    pub(crate) fn status(&self) -> Result<Vec<Value>> {
        let text = self.tailwater("analysis", &["status", "-o", "json"])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Waits until `settled` says so of the ledger; the ledger then.
    pub(crate) fn wait_for_ledger(
        &mut self,
        limit: Duration,
        settled: impl Fn(&[Value]) -> bool,
    ) -> Result<Vec<Value>> {
        let started = Instant::now();
        loop {
            let ledger = self.status();
            if let Ok(ledger) = &ledger
                && settled(ledger)
            {
                return Ok(ledger.clone());
            }
            if started.elapsed() > limit {
                bail!("not settled after {limit:?}: {ledger:#?}\n{}", self.logs());
            }
            // The ledger is asked over a process boundary: there is no event to await.
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The end of every log, for a failing test.
    pub(crate) fn logs(&self) -> String {
        let tail = |path: &Path| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!("--- {}\n{}\n", path.display(), lines[lines.len().saturating_sub(40)..].join("\n"))
        };
        let mut paths: Vec<PathBuf> =
            fs::read_dir(self.folder.path()).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        paths.sort();
        paths.iter().map(|path| tail(path)).collect()
    }
}

/// Waits until a process has reached its broker and its store. It is live before that.
fn wait_until_open(process: &mut Process, port: u16) -> Result<()> {
    let started = Instant::now();
    while !http::get(&format!("http://127.0.0.1:{port}/readyz")).is_ok_and(|(_, body)| !body.contains(STARTING)) {
        if let Some(status) = process.exit()? {
            bail!("the process ended with {status}:\n{}", process.log());
        }
        ensure!(started.elapsed() < START_LIMIT, "not open after {START_LIMIT:?}:\n{}", process.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Whether every account balances and nothing is on its way.
pub(crate) fn settled(ledger: &[Value]) -> bool {
    !ledger.is_empty()
        && ledger.iter().all(|account| account["balanced"] == true && account["in_flight"] == 0 && account["lag"] == 0)
}

/// The account of one source or view.
pub(crate) fn account<'a>(ledger: &'a [Value], name: &str) -> &'a Value {
    ledger.iter().find(|account| account["name"] == name).unwrap_or(&Value::Null)
}

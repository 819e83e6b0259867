//! The processes of one run, each the `tailwater` built beside this program, in a folder of their own.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testkit::{
    kafka::{Kafka, Tuning},
    ports::free_port,
    process::{Process, Program},
};
use tokio::runtime::Runtime;
use topics::kafka::{KafkaConfig, KafkaLog};

use crate::limit::Limit;

const SERVICES: [&str; 4] = ["ingestion", "transformation", "storage", "analysis"];
const START_LIMIT: Duration = Duration::from_secs(60);

/// The processes of one run, in a folder of its own.
pub(crate) struct Stand {
    pub(crate) processes: Vec<(String, Process)>,
    kafka: Option<Kafka>,
    pub(crate) folder: tempfile::TempDir,
    ports: Vec<(String, u16)>,
}

impl Stand {
    pub(crate) fn new(embedded: bool, settings: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("tailwater-bench-").tempdir()?;
        let kafka = if embedded {
            None
        } else {
            Some(Kafka::start_tuned(Tuning::Benches)?.context("Kafka is needed for this bench")?)
        };
        let log = kafka.as_ref().map_or_else(
            || "kind = \"embedded\"".to_owned(),
            |kafka| format!("kind = \"kafka\"\nbrokers = \"{}\"", kafka.brokers()),
        );
        fs::write(folder.path().join("tailwater.toml"), format!("[log]\n{log}\n{settings}"))?;
        Ok(Self { processes: vec![], kafka, folder, ports: vec![] })
    }

    pub(crate) fn start(&mut self) -> Result<()> {
        if self.kafka.is_none() {
            return self.start_one("tailwater", "http", &["up"]);
        }
        SERVICES.iter().try_for_each(|service| self.start_one(service, service, &["serve", service]))
    }

    fn start_one(&mut self, name: &str, section: &str, arguments: &[&str]) -> Result<()> {
        let port = free_port()?;
        let mut process = Program::at(tailwater()?)
            .args(arguments.iter().copied())
            .args(["--config", "tailwater.toml", "--set"])
            .arg(format!("{section}.listen=127.0.0.1:{port}"))
            .in_folder(self.folder.path())
            .log_to(self.folder.path().join(format!("{name}.log")))
            .start()?;
        process.wait_until_ready(&format!("http://127.0.0.1:{port}/livez"), START_LIMIT)?;
        self.processes.push((name.to_owned(), process));
        self.ports.push((name.to_owned(), port));
        Ok(())
    }

    pub(crate) fn url(&self, service: &str) -> String {
        let wanted = if self.kafka.is_none() { "tailwater" } else { service };
        let port = self.ports.iter().find(|(name, _)| name == wanted).map_or(0, |(_, port)| *port);
        format!("http://127.0.0.1:{port}")
    }

    pub(crate) fn tailwater(&self, door: &str, arguments: &[&str]) -> Result<String> {
        let mut program = Program::at(tailwater()?);
        if !door.is_empty() {
            program = program.args(["--url", &self.url(door)]);
        }
        let output = program.args(arguments.iter().copied()).in_folder(self.folder.path()).run()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub(crate) fn apply(&self, sql: &str) -> Result<()> {
        let folder = self.folder.path().join("bench");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("bench.sql"), sql)?;
        let door = if self.kafka.is_none() { "ingestion" } else { "" };
        self.tailwater(door, &["apply", &folder.display().to_string()]).map(drop)
    }

    /// Waits until every table has its rows; the ledger then.
    pub(crate) fn settle(&self, rows: u64) -> Result<Vec<Value>> {
        let started = Instant::now();
        loop {
            let text = self.tailwater("analysis", &["status", "-o", "json"])?;
            let ledger: Vec<Value> = serde_json::from_str(&text)?;
            let done = |account: &Value| {
                account["balanced"] == true
                    && account["in_flight"] == 0
                    && account["lag"] == 0
                    && account["read"] == rows
            };
            if !ledger.is_empty() && ledger.iter().all(done) {
                return Ok(ledger);
            }
            ensure!(started.elapsed() < Duration::from_secs(900), "not settled: {ledger:#?}");
            // Each question costs analysis a look at every table, which is in the figure.
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    /// What it cost, beside what the libraries alone cost here and now.
    pub(crate) fn report(&self, rows: u64, wall: Duration, limit: Limit) -> Result<()> {
        let mut total = Duration::ZERO;
        println!("| process | CPU s | peak MB |\n|---|---|---|");
        for (name, process) in &self.processes {
            let usage = process.usage()?;
            total += usage.cpu;
            println!("| {name} | {:.1} | {} |", usage.cpu.as_secs_f64(), usage.peak_resident_bytes >> 20);
        }
        let (per_cpu, possible) = (rows as f64 / total.as_secs_f64() / 1e6, limit.whole_path());
        println!(
            "\n{rows} rows in {:.1} s: {:.0} rows/s, {per_cpu:.3} M rows per CPU-second, {:.0} % of {possible:.3} M",
            wall.as_secs_f64(),
            rows as f64 / wall.as_secs_f64(),
            per_cpu / possible * 100.0
        );
        println!(
            "the libraries alone, before and after: JSON {:.2}, LZ4 out {:.2}, in {:.2}, Parquet {:.2} M rows per CPU-second",
            limit.json, limit.ipc_out, limit.ipc_in, limit.parquet
        );
        Ok(())
    }

    /// A client of this stand's broker, set up as a user's producer would be.
    pub(crate) fn connect(&self, runtime: &Runtime) -> Result<KafkaLog> {
        let config = KafkaConfig {
            brokers: self.kafka.as_ref().context("Kafka")?.brokers(),
            properties: [("compression.type".to_owned(), "lz4".to_owned()), ("linger.ms".to_owned(), "5".to_owned())]
                .into(),
            max_inflight_bytes: 64 << 20,
            fetch_bytes_per_partition: 1 << 20,
            client_id: "bench".into(),
        };
        Ok(runtime.block_on(KafkaLog::connect(config))?)
    }
}

/// The program built beside this one.
fn tailwater() -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("tailwater");
    ensure!(path.exists(), "`{}` is not built; build it with the same profile first: -p tailwater", path.display());
    Ok(path)
}

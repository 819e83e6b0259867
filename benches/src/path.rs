//! The whole path: JSON in a topic → committed rows, through real processes.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::Value;
use testkit::{
    kafka::Kafka,
    ports::free_port,
    process::{Process, Program},
    rows::{Bids, TimeStyle},
};
use tokio::runtime::Runtime;
use topics::{
    Log as _, NewMessage, TopicName, TopicSettings,
    kafka::{KafkaConfig, KafkaLog},
};

use crate::stages::{PIPELINE, VIEW};

const SERVICES: [&str; 4] = ["ingestion", "transformation", "storage", "analysis"];
const START_LIMIT: Duration = Duration::from_secs(60);

/// What is sent, and through what.
#[derive(Debug, Args)]
pub(crate) struct PathArguments {
    /// Rows to send
    #[arg(long, default_value_t = 4_000_000)]
    rows: u64,
    /// JSON objects in one Kafka message
    #[arg(long, default_value_t = 1)]
    rows_per_message: usize,
    /// Partitions of the topic
    #[arg(long, default_value_t = 2)]
    partitions: u32,
    /// One process on the embedded log, fed over HTTP, instead of four on Kafka
    #[arg(long)]
    embedded: bool,
    /// With a view over the rows, stored as well
    #[arg(long)]
    view: bool,
}

/// How fast, for how long.
#[derive(Debug, Args)]
pub(crate) struct LatencyArguments {
    /// Rows a second
    #[arg(long, default_value_t = 50_000)]
    rate: u64,
    /// Seconds measured, after ten of warm-up
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

/// The processes of one run, in a folder of its own.
struct Stand {
    processes: Vec<(String, Process)>,
    kafka: Option<Kafka>,
    folder: tempfile::TempDir,
    ports: Vec<(String, u16)>,
}

impl Stand {
    fn new(embedded: bool, settings: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("tailwater-bench-").tempdir()?;
        let kafka = if embedded { None } else { Some(Kafka::start()?.context("Kafka is needed for this bench")?) };
        let log = kafka.as_ref().map_or_else(
            || "kind = \"embedded\"".to_owned(),
            |kafka| format!("kind = \"kafka\"\nbrokers = \"{}\"", kafka.brokers()),
        );
        fs::write(folder.path().join("tailwater.toml"), format!("[log]\n{log}\n{settings}"))?;
        Ok(Self { processes: vec![], kafka, folder, ports: vec![] })
    }

    fn start(&mut self) -> Result<()> {
        if self.kafka.is_none() {
            return self.start_one("tailwater", "http", &["up"]);
        }
        SERVICES.iter().try_for_each(|service| self.start_one(service, service, &[]))
    }

    fn start_one(&mut self, program: &str, section: &str, arguments: &[&str]) -> Result<()> {
        let port = free_port()?;
        let mut process = Program::at(built(program)?)
            .args(arguments.iter().copied())
            .args(["--config", "tailwater.toml", "--set"])
            .arg(format!("{section}.listen=127.0.0.1:{port}"))
            .in_folder(self.folder.path())
            .log_to(self.folder.path().join(format!("{program}.log")))
            .start()?;
        process.wait_until_ready(&format!("http://127.0.0.1:{port}/livez"), START_LIMIT)?;
        self.processes.push((program.to_owned(), process));
        self.ports.push((program.to_owned(), port));
        Ok(())
    }

    fn url(&self, program: &str) -> String {
        let program = if self.kafka.is_none() { "tailwater" } else { program };
        let port = self.ports.iter().find(|(name, _)| name == program).map_or(0, |(_, port)| *port);
        format!("http://127.0.0.1:{port}")
    }

    fn tailwater(&self, door: &str, arguments: &[&str]) -> Result<String> {
        let mut program = Program::at(built("tailwater")?);
        if !door.is_empty() {
            program = program.args(["--url", &self.url(door)]);
        }
        let output = program.args(arguments.iter().copied()).in_folder(self.folder.path()).run()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn apply(&self, sql: &str) -> Result<()> {
        let folder = self.folder.path().join("bench");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("bench.sql"), sql)?;
        let door = if self.kafka.is_none() { "ingestion" } else { "" };
        self.tailwater(door, &["apply", &folder.display().to_string()]).map(drop)
    }

    /// Waits until every table has its rows; the ledger then.
    fn settle(&self, rows: u64) -> Result<Vec<Value>> {
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
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn report(&self, rows: u64, wall: Duration) -> Result<()> {
        let mut total = Duration::ZERO;
        println!("| process | CPU s | peak MB |\n|---|---|---|");
        for (name, process) in &self.processes {
            let usage = process.usage()?;
            total += usage.cpu;
            println!("| {name} | {:.1} | {} |", usage.cpu.as_secs_f64(), usage.peak_resident_bytes >> 20);
        }
        println!(
            "\n{rows} rows in {:.1} s: {:.0} rows/s, {:.0} rows per CPU-second ({:.0} % of 0.8 M)",
            wall.as_secs_f64(),
            rows as f64 / wall.as_secs_f64(),
            rows as f64 / total.as_secs_f64(),
            rows as f64 / total.as_secs_f64() / 8000.0
        );
        Ok(())
    }
}

/// A program built beside this one.
fn built(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.exists(), "`{}` is not built; run `cargo build --release --workspace --bins` first", path.display());
    Ok(path)
}

pub(crate) fn run(runtime: &Runtime, arguments: &PathArguments) -> Result<()> {
    let mut stand = Stand::new(arguments.embedded, "")?;
    let sql = if arguments.view { format!("{PIPELINE}{VIEW}") } else { PIPELINE.to_owned() };
    if arguments.embedded {
        return run_embedded(&mut stand, &sql, arguments);
    }
    produce(runtime, &stand, arguments)?;
    stand.apply(&sql)?;
    let started = Instant::now();
    stand.start()?;
    stand.settle(arguments.rows)?;
    stand.report(arguments.rows, started.elapsed())
}

/// The processes are there first; the rows come over HTTP in bodies of 4 MB.
fn run_embedded(stand: &mut Stand, sql: &str, arguments: &PathArguments) -> Result<()> {
    stand.start()?;
    stand.apply(sql)?;
    let mut bids = Bids::with_time(1, TimeStyle::EpochMicros);
    let file = stand.folder.path().join("bids.ndjson");
    let mut text = Vec::new();
    for _ in 0..arguments.rows {
        bids.write_next(&mut text);
    }
    fs::write(&file, text)?;
    let started = Instant::now();
    stand.tailwater("ingestion", &["ingest", "bench.bids", &file.display().to_string()])?;
    stand.settle(arguments.rows)?;
    stand.report(arguments.rows, started.elapsed())
}

fn connect(runtime: &Runtime, stand: &Stand) -> Result<KafkaLog> {
    let config = KafkaConfig {
        brokers: stand.kafka.as_ref().context("Kafka")?.brokers(),
        properties: [("compression.type".to_owned(), "lz4".to_owned()), ("linger.ms".to_owned(), "5".to_owned())]
            .into(),
        max_inflight_bytes: 64 << 20,
        fetch_bytes_per_partition: 1 << 20,
        client_id: "bench".into(),
    };
    Ok(runtime.block_on(KafkaLog::connect(config))?)
}

/// Everything is in the topic before the clock starts.
fn produce(runtime: &Runtime, stand: &Stand, arguments: &PathArguments) -> Result<()> {
    let log = connect(runtime, stand)?;
    let topic = TopicName::try_from("bids".to_owned())?;
    let settings = TopicSettings { partitions: arguments.partitions, ..TopicSettings::default() };
    runtime.block_on(log.create(&topic, &settings))?;
    let appender = log.appender();
    let mut bids = Bids::with_time(1, TimeStyle::EpochMicros);
    let mut sent = 0;
    let mut message = 0u32;
    while sent < arguments.rows {
        let rows = (arguments.rows - sent).min(arguments.rows_per_message as u64);
        let payload = bids.lines(rows as usize);
        let partition = message % arguments.partitions;
        // The flush at the end says whether they are durable.
        let _queued = runtime.block_on(appender.append(&topic, partition, NewMessage::of(payload)))?;
        sent += rows;
        message += 1;
    }
    Ok(runtime.block_on(appender.flush())?)
}

/// Sends at a steady rate and asks for the newest row over and over: how old is what can be seen?
pub(crate) fn latency(runtime: &Runtime, arguments: &LatencyArguments) -> Result<()> {
    let mut stand = Stand::new(false, "[storage]\nflush_age = \"200ms\"\n")?;
    let log = connect(runtime, &stand)?;
    let topic = TopicName::try_from("bids".to_owned())?;
    runtime.block_on(log.create(&topic, &TopicSettings { partitions: 2, ..TopicSettings::default() }))?;
    stand.apply(PIPELINE)?;
    stand.start()?;
    let warm_up = Duration::from_secs(10);
    let until = Instant::now() + warm_up + Duration::from_secs(arguments.seconds);
    let begun = Instant::now();
    let (rate, appender) = (arguments.rate, log.appender());
    let producing = runtime.spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        let mut sent = 0u64;
        while Instant::now() < until {
            tick.tick().await;
            let due = begun.elapsed().as_micros() as u64 * rate / 1_000_000;
            while sent < due {
                // The bid's auction number is the time it was produced, so that its age can be read from the table.
                let now = micros();
                let line = format!(
                    "{{\"auction\":{now},\"bidder\":1,\"price\":2,\"channel\":\"c\",\"url\":\"https://www.nexmark.com/x/y/z\",\"date_time\":{now},\"extra\":\"{:0100}\"}}",
                    sent
                );
                let _queued = appender.append(&topic, (sent % 2) as u32, NewMessage::of(line)).await?;
                sent += 1;
            }
        }
        appender.flush().await?;
        anyhow::Ok(sent)
    });
    let ages = poll_ages(&stand, begun + warm_up, until)?;
    let sent = runtime.block_on(producing)??;
    print_ages(sent, ages);
    Ok(())
}

fn micros() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    since.as_micros() as i64
}

/// For each new newest row seen: how long ago it was produced. Polls every 20 ms, which is part of the figure.
fn poll_ages(stand: &Stand, from: Instant, until: Instant) -> Result<Vec<i64>> {
    let mut ages = Vec::new();
    let mut newest = 0i64;
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
        // Until the first commit there is no table to ask.
        let question = ["sql", "-o", "csv", "-c", "SELECT max(auction) FROM bench.bids"];
        let answer = stand.tailwater("analysis", &question).unwrap_or_default();
        let seen: i64 = answer.lines().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
        if seen > newest && Instant::now() > from {
            ages.push(micros() - seen);
        }
        newest = newest.max(seen);
    }
    Ok(ages)
}

fn print_ages(sent: u64, mut ages: Vec<i64>) {
    ages.sort_unstable();
    let at = |share: f64| ages.get(((ages.len() as f64 - 1.0) * share) as usize).copied().unwrap_or(0) / 1000;
    println!(
        "{sent} rows sent, {} snapshots seen: p50 {} ms, p99 {} ms, max {} ms",
        ages.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

/// `up` on the embedded log with nothing to do, for half a minute.
pub(crate) fn idle() -> Result<()> {
    let mut stand = Stand::new(true, "")?;
    stand.start()?;
    stand.apply(&format!("{PIPELINE}{VIEW}"))?;
    std::thread::sleep(Duration::from_secs(10));
    let before = stand.processes[0].1.usage()?;
    let started = Instant::now();
    std::thread::sleep(Duration::from_secs(30));
    let after = stand.processes[0].1.usage()?;
    let share = (after.cpu - before.cpu).as_secs_f64() / started.elapsed().as_secs_f64() * 100.0;
    println!("idle: {share:.2} % of a core, {} MB", after.resident_bytes >> 20);
    Ok(())
}

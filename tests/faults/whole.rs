//! Faults that need a field of their own, since they leave it broken or want another set-up.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use testkit::{
    peers,
    ports::free_port,
    process::{Process, Program},
    python,
};

use crate::{
    block,
    field::{Field, PARTITIONS},
    inject::RECOVERY_LIMIT,
    instance::{START_LIMIT, Start},
    judge::{Load, Over, PIPELINE, SOURCE, Strangers, Verdict},
    observer::Marks,
    options::Options,
    service::Service,
};

const FLOW_LIMIT: Duration = Duration::from_secs(90);
/// How long the product may take to say what is wrong.
const WORD_LIMIT: Duration = Duration::from_secs(90);

/// What is to be done once.
pub(crate) struct Task<'a> {
    pub(crate) options: &'a Options,
    pub(crate) seed: u64,
    /// A safeguard to switch off in every process.
    pub(crate) without: Option<&'a str>,
}

/// How it ended.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    pub(crate) recovery: Option<Duration>,
    pub(crate) problems: Vec<String>,
    pub(crate) skipped: Option<String>,
}

impl Outcome {
    fn skipped(reason: &str) -> Self {
        Self { skipped: Some(reason.to_owned()), ..Self::default() }
    }
}

/// A field under load, rows already in its tables.
fn field_under_load(task: &Task<'_>) -> Result<Option<(Field, Load)>> {
    let start = match task.without {
        Some(safeguard) => task.options.start().env("TAILWATER_WITHOUT", safeguard),
        None => task.options.start(),
    };
    let Some(field) = Field::set_up(1, task.seed, &start)? else { return Ok(None) };
    let mut load = Load::start(&field, "before", Over::Topic, task.options.rate, task.seed)?;
    load.wait_until_it_flows(&field, FLOW_LIMIT)?;
    Ok(Some((field, load)))
}

/// Tries `work` on a field; where it fails, the field's folder stays.
fn keeping<T>(field: &Field, work: impl FnOnce() -> Result<T>) -> Result<T> {
    work().map_err(|error| error.context(format!("the logs are in {}", field.keep().display())))
}

fn topic(field: &Field) -> Result<String> {
    let graph = field.observer.graph();
    let source = graph.sources.iter().find(|source| source.pipeline == PIPELINE && source.name == SOURCE);
    Ok(source.context("the source of the load")?.topic.clone())
}

/// The topic grows, and rows are sent to the new partitions too.
pub(crate) fn partitions_added(task: &Task<'_>) -> Result<Outcome> {
    let Some((field, load)) = field_under_load(task)? else { return Ok(Outcome::skipped("peers are missing")) };
    keeping(&field, || {
        field.kafka().grow_topic(&topic(&field)?, PARTITIONS + 2)?;
        let grown = Instant::now();
        let wide = Load::start_over(&field, "after", Over::Topic, task.options.rate, task.seed, PARTITIONS + 2)?;
        while !field
            .observer
            .ends(Service::Ingestion)?
            .iter()
            .any(|((_, partition, _), end)| *partition >= PARTITIONS && *end > 0)
        {
            ensure!(grown.elapsed() < FLOW_LIMIT, "no row was sent to a new partition");
            std::thread::sleep(Duration::from_millis(200));
        }
        let mut recovery = Duration::ZERO;
        for service in Service::HOPS {
            recovery = field.observer.wait(service, &field.observer.ends(service)?, grown, RECOVERY_LIMIT)?;
        }
        wide.stop()?;
        let verdict = block::settle(&field, load, Strangers::Wrong)?;
        Ok(Outcome { verdict, recovery: Some(recovery), ..Outcome::default() })
    })
}

/// The topic is deleted and created again under the same name while ingestion is down, and the new one is longer than
/// what was read of the old one: no position tells that it is another.
pub(crate) fn topic_recreated(task: &Task<'_>) -> Result<Outcome> {
    let Some((field, load)) = field_under_load(task)? else { return Ok(Outcome::skipped("peers are missing")) };
    keeping(&field, || {
        let mut verdict = block::settle(&field, load, Strangers::Wrong)?;
        let before = field.observer.rows(PIPELINE, SOURCE)?;
        let read = field.observer.ends(Service::Ingestion)?;
        for name in Service::Ingestion.instances() {
            field.instance(&name)?.kill()?;
        }
        let topic = topic(&field)?;
        field.kafka().delete_topic(&topic)?;
        field.kafka().create_topic(&topic, PARTITIONS)?;
        let load = Load::start(&field, "after", Over::Topic, task.options.rate, task.seed + 1)?;
        wait_until_longer(&field, &read)?;
        load.stop().ok();
        let started = Instant::now();
        for name in Service::Ingestion.instances() {
            field.instance(&name)?.start(&Start::default())?;
        }
        let word = wait_for_word(&field, &["recreate"], Some(before));
        let after = field.observer.rows(PIPELINE, SOURCE)?;
        let mut problems = Vec::new();
        let recovery = match word {
            Ok(word) => {
                println!("  it says: {word}");
                Some(started.elapsed())
            }
            Err(error) => {
                problems.push(format!("no clear error: {error:#}"));
                None
            }
        };
        if after != before {
            verdict.doubled += after.saturating_sub(before);
            verdict.lost += before.saturating_sub(after);
            problems.push(format!("the table had {before} rows and has {after} after its topic was recreated"));
        }
        Ok(Outcome { verdict, recovery, problems, skipped: None })
    })
}

/// Waits until every partition of the load's topic holds more than it did.
fn wait_until_longer(field: &Field, before: &Marks) -> Result<()> {
    let started = Instant::now();
    loop {
        // The topic may not be there yet.
        let ends = field.observer.ends(Service::Ingestion).unwrap_or_default();
        let is_longer = |(place, end): (&_, &u64)| ends.get(place).is_some_and(|now| now > end);
        if before.iter().all(is_longer) {
            return Ok(());
        }
        ensure!(started.elapsed() < FLOW_LIMIT, "the new topic did not grow beyond the old one: {ends:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Rows that ingestion has not read are deleted.
pub(crate) fn overtaken(task: &Task<'_>) -> Result<Outcome> {
    let Some((field, load)) = field_under_load(task)? else { return Ok(Outcome::skipped("peers are missing")) };
    keeping(&field, || {
        // Long enough for a checkpoint: without one there is nothing to be overtaken.
        std::thread::sleep(Duration::from_secs(4));
        for name in Service::Ingestion.instances() {
            field.instance(&name)?.kill()?;
        }
        std::thread::sleep(Duration::from_secs(3));
        load.stop()?;
        let ends = field.observer.ends(Service::Ingestion)?;
        let end =
            ends.iter().find(|((_, partition, _), _)| *partition == 0).map(|(_, end)| *end).context("partition 0")?;
        field.kafka().delete_records(&topic(&field)?, 0, end)?;
        let began = Instant::now();
        for name in Service::Ingestion.instances() {
            field.instance(&name)?.start(&Start::default())?;
        }
        let word = wait_for_word(&field, &["retention", &end.to_string(), "checkpoint"], None);
        let (recovery, problems) = match word {
            Ok(word) => {
                println!("  it says: {word}");
                (Some(began.elapsed()), Vec::new())
            }
            Err(error) => (None, vec![format!("no clear error: {error:#}")]),
        };
        Ok(Outcome { verdict: Verdict { ok: true, ..Verdict::default() }, recovery, problems, skipped: None })
    })
}

/// Waits until an instance of ingestion is not ready for a reason that has all of these words. Where the table may have
/// so many rows only, others end it as well.
fn wait_for_word(field: &Field, words: &[&str], rows: Option<u64>) -> Result<String> {
    let started = Instant::now();
    loop {
        let mut said = Vec::new();
        for name in Service::Ingestion.instances() {
            if let Ok((status, text)) = field.instance(&name)?.readiness() {
                let lines = text.lines().filter(|line| line.starts_with("[-]")).map(str::to_owned);
                said.extend(lines.filter(|_| status != 200));
            }
        }
        if let Some(line) = said.iter().find(|line| words.iter().all(|word| line.contains(word))) {
            return Ok(line.clone());
        }
        if let (Some(expected), Ok(found)) = (rows, field.observer.rows(PIPELINE, SOURCE)) {
            ensure!(found == expected, "it went on in silence: the table had {expected} rows and has {found}");
        }
        if started.elapsed() > WORD_LIMIT {
            bail!("expected words {words:?} in what ingestion says after {WORD_LIMIT:?}, found {said:?}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

const APPEND: &str = r#"
import datetime, json, sys, time
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
address, options, seconds = sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3])
def value(kind):
    if pa.types.is_integer(kind): return -7
    if pa.types.is_floating(kind): return -7.0
    if pa.types.is_timestamp(kind): return datetime.datetime(2026, 1, 1)
    return "foreign"
table = DeltaTable(address, storage_options=options)
schema = pa.schema(table.schema().to_arrow())
rows = pa.table({f.name: pa.array([value(f.type)], f.type) for f in schema}, schema=schema)
end, landed = time.time() + seconds, 0
while time.time() < end:
    try:
        write_deltalake(address, rows, mode="append", storage_options=options)
        landed += 1
    except Exception as error:
        print(type(error).__name__, file=sys.stderr)
    time.sleep(0.05)
print(landed)
"#;
const APPEND_FOR: Duration = Duration::from_secs(15);

/// Another program appends to the same table all the while.
pub(crate) fn foreign_writer(task: &Task<'_>) -> Result<Outcome> {
    let Some((field, load)) = field_under_load(task)? else { return Ok(Outcome::skipped("peers are missing")) };
    keeping(&field, || {
        let graph = field.observer.graph();
        let table = graph.tables.iter().find(|table| table.pipeline == PIPELINE && table.name == SOURCE);
        let address = format!("{}/{}", field.store().url(), table.context("the table of the load")?.folder);
        let options: serde_json::Map<String, Value> = field
            .store()
            .options()
            .into_iter()
            .map(|(key, value)| {
                let key = if key == "aws_endpoint" { "AWS_ENDPOINT_URL".to_owned() } else { key.to_uppercase() };
                (key, Value::from(value))
            })
            .collect();
        let options = Value::from(options).to_string();
        let printed = python::run(APPEND, &[&address, &options, &APPEND_FOR.as_secs().to_string()])?;
        let Some(printed) = printed else { return Ok(Outcome::skipped("Python is missing")) };
        let landed: u64 = printed.trim().parse().context("how many commits landed")?;
        println!("  {landed} foreign commits landed");
        ensure!(landed > 0, "no foreign commit landed, so nothing was tried");
        let verdict = block::settle(&field, load, Strangers::Expected)?;
        Ok(Outcome { verdict, ..Outcome::default() })
    })
}

const DISK: &str = "size=64m";

/// All services in one process, its log on a small disk that fills up and is freed again.
pub(crate) fn full_disk(task: &Task<'_>) -> Result<Outcome> {
    let folder = tempfile::Builder::new().prefix("tailwater-disk-").tempdir()?;
    let Some(disk) = Disk::mount(folder.path())? else {
        return Ok(Outcome::skipped("mounting a small disk needs the administrator's rights"));
    };
    let port = free_port()?;
    let config = format!(
        "[log]\nkind = \"embedded\"\npath = \"{}\"\ndefault_partitions = {PARTITIONS}\n\n[store]\nurl = \"tables\"\n\n\
         [http]\nlisten = \"127.0.0.1:{port}\"\n\n[storage]\nflush_age = \"300ms\"\n\n[telemetry]\nlogs = \"json\"\n",
        disk.path.join("log").display()
    );
    fs::write(folder.path().join("tailwater.toml"), config)?;
    let url = format!("http://127.0.0.1:{port}");
    let mut up = start_up(folder.path(), &url)?;
    let ledger = folder.path().join("disk.ledger");
    let rate = (task.options.rate / 2).max(1);
    let mut load = program(folder.path(), &url)?
        .args(["verify", "produce", "--over", "http", "--for", "6h", "--keys", "50", "--producer", "disk", "--ledger"])
        .arg(&ledger)
        .args(["--rate", &rate.to_string(), "--seed", &task.seed.to_string(), "--bad-rate", "0.01"])
        .args(["--partitions", &PARTITIONS.to_string()])
        .start()?;
    wait_for_more(folder.path(), &url, 0)?;
    disk.fill()?;
    std::thread::sleep(Duration::from_secs(6));
    let mut problems = Vec::new();
    if let Some(status) = up.exit()? {
        problems.push(format!("the process ended with {status} when the disk was full: {}", up.log()));
    }
    disk.free()?;
    let freed = Instant::now();
    if up.exit()?.is_some() {
        up = start_up(folder.path(), &url)?;
    }
    let before = stored(folder.path(), &url).unwrap_or(0);
    wait_for_more(folder.path(), &url, before).with_context(|| format!("after the disk was freed: {}", up.log()))?;
    let recovery = freed.elapsed();
    load.terminate()?;
    load.wait(Duration::from_secs(60))?;
    let output = program(folder.path(), &url)?
        .args(["verify", "check", "--within", "90s", "-o", "json", "--ledger"])
        .arg(&ledger)
        .run()?;
    let verdict = Verdict::parse(&output)?;
    up.terminate()?;
    up.wait(Duration::from_secs(30))?;
    Ok(Outcome { verdict, recovery: Some(recovery), problems, skipped: None })
}

fn program(folder: &Path, url: &str) -> Result<Program> {
    Ok(Program::named("tailwater")?.args(["--config", "tailwater.toml", "--url", url]).in_folder(folder))
}

fn start_up(folder: &Path, url: &str) -> Result<Process> {
    let program = Program::named("tailwater")?.args(["--config", "tailwater.toml", "up"]).in_folder(folder);
    let mut up = program.start()?;
    up.wait_until_ready(&format!("{url}/livez"), START_LIMIT)?;
    Ok(up)
}

fn stored(folder: &Path, url: &str) -> Result<u64> {
    let output = program(folder, url)?.args(["status", "-o", "json"]).run()?;
    let accounts: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    let name = format!("{PIPELINE}.{SOURCE}");
    let account = accounts.iter().find(|account| account["name"] == name.as_str());
    Ok(account.and_then(|account| account["stored"].as_u64()).unwrap_or(0))
}

fn wait_for_more(folder: &Path, url: &str, before: u64) -> Result<()> {
    let started = Instant::now();
    while stored(folder, url).unwrap_or(0) <= before {
        ensure!(started.elapsed() < FLOW_LIMIT, "no row came after {before} in {FLOW_LIMIT:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// A small disk of its own; gone with the value.
struct Disk {
    path: PathBuf,
}

impl Disk {
    /// `None` where this user may not mount.
    fn mount(folder: &Path) -> Result<Option<Disk>> {
        let path = folder.join("disk");
        fs::create_dir_all(&path)?;
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", DISK, "tmpfs"]).arg(&path).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Ok(Some(Disk { path }));
        }
        ensure!(!peers::required(), "a small disk is required (TAILWATER_REQUIRE_PEERS=1) and cannot be mounted");
        Ok(None)
    }

    fn fill(&self) -> Result<()> {
        use std::io::Write as _;
        let mut file = fs::File::create(self.path.join("filler"))?;
        let block = vec![0_u8; 64 << 10];
        while file.write_all(&block).is_ok() {}
        Ok(())
    }

    fn free(&self) -> Result<()> {
        fs::remove_file(self.path.join("filler")).context("free the disk")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.path).output().ok();
    }
}

//! Load, a watch and judgement, all by the product's own `tailwater verify`: it sends rows and keeps a ledger, asks
//! meanwhile, then compares.

use std::{
    process::Output,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testkit::{process::Process, python, repository};

use crate::{
    field::{Field, PARTITIONS, PRODUCERS},
    instance::TRY_AGAIN,
    observer::LOOK_EVERY,
    service::Service,
};

/// The name of the pipeline and the source that `verify` sends to.
pub(crate) const PIPELINE: &str = "verify";
pub(crate) const SOURCE: &str = "events";

/// Far longer than a block takes; the load is stopped before.
const LONGEST_LOAD: &str = "6h";
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How long the checker waits for what is still on its way.
pub(crate) const SETTLE_WITHIN: Duration = Duration::from_secs(90);

/// The checker ends with "try again" where something did not answer.
const CHECK_ATTEMPTS: usize = 3;

/// How rows are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Over {
    Topic,
    Http,
}

/// Rows being sent in the background.
pub(crate) struct Load {
    process: Process,
}

/// What `verify check` found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) ok: bool,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    /// Invariants that do not hold, with what the checker says of them.
    pub(crate) violations: Vec<String>,
    /// Rows that were judged.
    pub(crate) rows: u64,
}

impl Load {
    /// Starts sending into a ledger of its own.
    pub(crate) fn start(field: &Field, name: &str, over: Over, rate: u32, seed: u64) -> Result<Self> {
        Self::start_over(field, name, over, rate, seed, PARTITIONS)
    }

    /// As [`Load::start`], to so many partitions.
    pub(crate) fn start_over(
        field: &Field,
        name: &str,
        over: Over,
        rate: u32,
        seed: u64,
        partitions: u32,
    ) -> Result<Self> {
        let ledger = field.path().join(format!("{name}.ledger"));
        let door = if over == Over::Http { Some(Service::Ingestion) } else { None };
        let brokers = field.kafka().door(PRODUCERS)?.brokers();
        let over = if over == Over::Http { "http" } else { "topic" };
        let program = field
            .program(door)?
            .env("TAILWATER__LOG__BROKERS", brokers)
            .args(["verify", "produce", "--over", over, "--for", LONGEST_LOAD, "--keys", "200"])
            .args(["--bad-rate", "0.01", "--producer", name, "--ledger"])
            .arg(&ledger)
            .args(["--rate", &rate.to_string(), "--seed", &seed.to_string()])
            .args(["--partitions", &partitions.to_string()])
            .log_to(field.path().join(format!("produce-{name}.log")));
        field.note_ledger(ledger);
        Ok(Self { process: program.start()? })
    }

    /// Waits until rows of it are in the table.
    pub(crate) fn wait_until_it_flows(&mut self, field: &Field, limit: Duration) -> Result<()> {
        let started = Instant::now();
        let before = field.observer.rows(PIPELINE, SOURCE).unwrap_or(0);
        while field.observer.rows(PIPELINE, SOURCE).unwrap_or(0) <= before {
            ensure!(self.process.exit()?.is_none(), "the producer has ended:\n{}", self.process.log());
            ensure!(started.elapsed() < limit, "no row is in the table after {limit:?}:\n{}", self.process.log());
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Stops sending; the ledger then says what became of each row.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.process.terminate()?;
        let status = self.process.wait(STOP_LIMIT)?;
        ensure!(status.success(), "the producer ended with {status}:\n{}", self.process.log());
        Ok(())
    }
}

/// Somebody who asks all the while: rows and versions never go back, and no request shows in part.
pub(crate) struct Watcher {
    process: Process,
}

impl Watcher {
    pub(crate) fn start(field: &Field, name: &str) -> Result<Self> {
        let program = field.program(Some(Service::Analysis))?.args(["verify", "watch", "--every", "10s", "-o", "json"]);
        let process = program.log_to(field.path().join(format!("watch-{name}.log"))).start()?;
        Ok(Self { process })
    }

    /// What was seen that may not be.
    pub(crate) fn stop(mut self) -> Result<Vec<String>> {
        self.process.terminate()?;
        let status = self.process.wait(STOP_LIMIT)?;
        let log = self.process.log();
        let found = log.lines().find_map(|line| serde_json::from_str::<Value>(line).ok());
        let found = found.with_context(|| format!("`tailwater verify watch` ended with {status}:\n{log}"))?;
        ensure!((found["ok"] == true) == status.success(), "the watcher says {found} and ends with {status}");
        Ok(Verdict::read(&found).violations)
    }
}

/// Whether the tables may hold rows of somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strangers {
    Wrong,
    Expected,
}

/// Compares every ledger of the field with what the tables hold: a fault may double rows that were stored long before.
pub(crate) fn check(field: &Field, within: Duration, strangers: Strangers) -> Result<Verdict> {
    let mut program = field
        .program(Some(Service::Analysis))?
        .args(["verify", "check", "-o", "json", "--within"])
        .arg(format!("{}s", within.as_secs()));
    for ledger in field.ledgers() {
        program = program.arg("--ledger").arg(ledger);
    }
    if strangers == Strangers::Expected {
        program = program.arg("--other-runs");
    }
    if let Some(python) = python::interpreter()? {
        let reader = repository("pipelines/verify/readers/reader.py");
        program = program.args(["--reader-command", &format!("{} {} duckdb", python.display(), reader.display())]);
    }
    let mut output = program.run()?;
    for _ in 1..CHECK_ATTEMPTS {
        if output.status.code() != Some(TRY_AGAIN) {
            break;
        }
        output = program.run()?;
    }
    let mut verdict = Verdict::parse(&output)?;
    verdict.rows = field.newly_judged(verdict.rows);
    Ok(verdict)
}

impl Verdict {
    /// What the checker printed.
    pub(crate) fn parse(output: &Output) -> Result<Self> {
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        let found: Value = serde_json::from_str(&text)
            .with_context(|| format!("`tailwater verify check` ended with {}:\n{text}\n{errors}", output.status))?;
        let verdict = Self::read(&found);
        ensure!(verdict.ok == output.status.success(), "the checker says {found} and ends with {}", output.status);
        Ok(verdict)
    }

    fn read(found: &Value) -> Self {
        let count = |value: &Value, name: &str| value[name].as_u64().unwrap_or(0);
        let invariants = found["invariants"].as_array().cloned().unwrap_or_default();
        let broken = invariants.iter().filter(|invariant| count(invariant, "violations") > 0);
        let missing = found["missing"].as_str().map(|missing| format!("not everything has arrived: {missing}"));
        Self {
            ok: found["ok"] == true,
            lost: count(found, "lost"),
            doubled: count(found, "doubled"),
            violations: broken.map(Value::to_string).chain(missing).collect(),
            rows: count(found, "sent"),
        }
    }
}

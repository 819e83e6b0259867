//! Results: one JSON object a line, appended as they come, so that a campaign can be stopped and gone on with.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use testkit::repository;

/// What a block of runs of one fault came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    /// `campaign`, or `control` for a run with a safeguard switched off.
    pub(crate) kind: String,
    pub(crate) fault: String,
    pub(crate) runs: u32,
    pub(crate) rows: u64,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) recovery: Vec<Duration>,
    /// What else was wrong.
    pub(crate) problems: Vec<String>,
    /// Why nothing was run.
    pub(crate) skipped: Option<String>,
    pub(crate) peak_rss: BTreeMap<String, u64>,
    pub(crate) seed: u64,
    pub(crate) command: String,
}

impl Record {
    /// Whether nothing was wrong.
    pub(crate) fn passed(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.problems.is_empty()
    }

    fn to_json(&self) -> Value {
        let recovery: Vec<u64> = self.recovery.iter().map(|took| took.as_millis() as u64).collect();
        json!({
            "kind": self.kind, "fault": self.fault, "runs": self.runs, "rows": self.rows, "lost": self.lost,
            "doubled": self.doubled, "recovery_ms": recovery, "problems": self.problems, "skipped": self.skipped,
            "peak_rss_bytes": self.peak_rss, "seed": self.seed, "command": self.command,
            "date": printed("date", &["-u", "+%Y-%m-%dT%H:%MZ"]), "commit": commit(), "load": load(), "cores": cores(),
        })
    }

    pub(crate) fn from_json(value: &Value) -> Self {
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let count = |name: &str| value[name].as_u64().unwrap_or(0);
        let list = |name: &str| value[name].as_array().cloned().unwrap_or_default();
        let peaks = value["peak_rss_bytes"].as_object().cloned().unwrap_or_default();
        Self {
            kind: text("kind"),
            fault: text("fault"),
            runs: count("runs") as u32,
            rows: count("rows"),
            lost: count("lost"),
            doubled: count("doubled"),
            recovery: list("recovery_ms").iter().filter_map(Value::as_u64).map(Duration::from_millis).collect(),
            problems: list("problems").iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            skipped: value["skipped"].as_str().map(str::to_owned),
            peak_rss: peaks.into_iter().filter_map(|(name, bytes)| Some((name, bytes.as_u64()?))).collect(),
            seed: count("seed"),
            command: text("command"),
        }
    }
}

/// The file that results go to.
pub(crate) struct Results {
    path: PathBuf,
}

impl Results {
    pub(crate) fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    pub(crate) fn append(&self, record: &Record) -> Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path);
        let file = file.as_mut().map_err(|error| anyhow::anyhow!("open {}: {error}", self.path.display()))?;
        // In one piece: several fields are judged at the same time.
        file.write_all(format!("{}\n", record.to_json()).as_bytes()).context("write a result")
    }

    /// All results so far, with the day and the commit of each.
    pub(crate) fn read(&self) -> Result<Vec<(Record, Value)>> {
        let Ok(text) = fs::read_to_string(&self.path) else { return Ok(Vec::new()) };
        let lines = text.lines().filter(|line| !line.trim().is_empty()).map(|line| {
            let value: Value = serde_json::from_str(line).with_context(|| format!("read {}", self.path.display()))?;
            Ok((Record::from_json(&value), value))
        });
        lines.collect()
    }

    /// Runs of a fault that passed or failed, but were not skipped.
    pub(crate) fn done(&self, fault: &str) -> Result<u32> {
        let records = self.read()?;
        let of_fault = records.iter().filter(|(record, _)| record.kind == "campaign" && record.fault == fault);
        Ok(of_fault.map(|(record, _)| record.runs).sum())
    }
}

/// The load average of the last minute: recovery takes longer where others want the same cores.
fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, std::num::NonZero::get)
}

/// The commit the programs were built from, with a mark where files were changed since.
fn commit() -> String {
    let head = printed("git", &["rev-parse", "--short=10", "HEAD"]);
    let changed =
        printed("git", &["status", "--porcelain", "--untracked-files=no", "--", "crates", "services", "tests"]);
    if changed.is_empty() { head } else { format!("{head}+") }
}

fn printed(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(repository(".")).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

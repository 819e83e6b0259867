//! Independent readers of our tables: `deltalake` and DuckDB, in a Python environment of pinned packages.
//!
//! Two readers by other people have to see what we say we wrote. Neither shares code with our reader of the log.
//! Absent on purpose: any writing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::peers::{self, Missing};

const REQUIREMENTS: &str = include_str!("python/requirements.txt");
const SCRIPTS: [(&str, &str); 3] = [
    ("readers.py", include_str!("python/readers.py")),
    ("read_delta.py", include_str!("python/read_delta.py")),
    ("query_delta.py", include_str!("python/query_delta.py")),
];

/// What both readers saw in one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableFacts {
    /// The Delta version that was read.
    pub version: u64,
    /// The `txn` actions in force: application id to version. Empty where the reader cannot tell.
    pub txns: BTreeMap<String, i64>,
    /// Rows.
    pub rows: u64,
    /// The sum of each column of whole numbers or decimals, as exact text without trailing zeros.
    pub sums: BTreeMap<String, String>,
}

/// Runs a Python script (its text, or the name of one of ours) and returns what it printed.
/// `None`, loudly, where Python is missing.
pub fn run(script: &str, arguments: &[&str]) -> Result<Option<String>> {
    let Some(environment) = peers::present("Python with deltalake and duckdb", environment())? else {
        return Ok(None);
    };
    let scripts = tempfile::Builder::new().prefix("tailwater-python-").tempdir()?;
    for (name, text) in SCRIPTS {
        fs::write(scripts.path().join(name), text)?;
    }
    let path = script_path(scripts.path(), script)?;
    let printed = peers::run(Command::new(environment.join("bin/python")).arg(path).args(arguments))?;
    Ok(Some(printed))
}

/// The Python that has the readers, for programs of ours that start one themselves. `None`, loudly, where it is missing.
pub fn interpreter() -> Result<Option<PathBuf>> {
    let environment = peers::present("Python with deltalake and duckdb", environment())?;
    Ok(environment.map(|environment| environment.join("bin/python")))
}

/// Reads every table through both readers. A table that does not exist is left out.
///
/// **Errors**: also where the two readers do not see the same.
pub fn read_delta(
    tables: &BTreeMap<String, String>,
    options: &BTreeMap<String, String>,
) -> Result<Option<BTreeMap<String, TableFacts>>> {
    let request = json!({ "tables": tables, "options": options }).to_string();
    let Some(printed) = run("read_delta.py", &[&request])? else {
        return Ok(None);
    };
    let answer: BTreeMap<String, Value> = serde_json::from_str(&printed).context("read what read_delta.py printed")?;
    let found = answer.into_iter().filter(|(_, facts)| !facts.is_null());
    found.map(|(name, facts)| agreed(&name, &facts).map(|facts| (name, facts))).collect::<Result<_>>().map(Some)
}

/// Answers a SQL query over Delta tables with DuckDB, as CSV with a header. Table names may be `schema.table`.
pub fn query_delta(
    tables: &BTreeMap<String, String>,
    options: &BTreeMap<String, String>,
    sql: &str,
) -> Result<Option<String>> {
    let request = json!({ "tables": tables, "options": options, "sql": sql }).to_string();
    run("query_delta.py", &[&request])
}

fn agreed(name: &str, facts: &Value) -> Result<TableFacts> {
    if facts["deltalake"] != facts["duckdb"] {
        bail!("table `{name}`: deltalake sees {}, duckdb sees {}", facts["deltalake"], facts["duckdb"]);
    }
    Ok(TableFacts {
        version: facts["version"].as_u64().context("a version")?,
        txns: serde_json::from_value(facts["txns"].clone())?,
        rows: facts["duckdb"]["rows"].as_u64().context("a number of rows")?,
        sums: serde_json::from_value(facts["duckdb"]["sums"].clone())?,
    })
}

fn script_path(folder: &Path, script: &str) -> Result<PathBuf> {
    if SCRIPTS.iter().any(|(name, _)| *name == script) {
        return Ok(folder.join(script));
    }
    let path = folder.join("script.py");
    fs::write(&path, script)?;
    Ok(path)
}

/// The virtual environment. Where the machine has no usable Python, the reason says what to install.
fn environment() -> Result<PathBuf, Missing> {
    peers::need("python3", "--version", "Python 3.11 or later, with its venv module")?;
    let folder = peers::once("python", REQUIREMENTS, |folder| {
        fs::write(folder.join("requirements.txt"), REQUIREMENTS)?;
        peers::run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        peers::run(
            Command::new(folder.join("bin/python"))
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
                .arg(folder.join("requirements.txt")),
        )?;
        Ok(())
    })?;
    Ok(folder)
}

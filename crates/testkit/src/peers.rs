//! Where the programs that tests run against are kept, and what happens when one cannot be had.
//!
//! Each peer is resolved once into a folder of its own below `TAILWATER_PEERS` (else `~/.cache/tailwater/peers`), by
//! the ecosystem's own client: Maven, Go, pip. A file lock keeps test processes that start together from resolving twice.
//! Invariant: a folder without its mark is not used; the mark holds the recipe, so a changed recipe resolves anew.
//! Absent on purpose: any download of our own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

/// Why a peer cannot be had on this machine, with what to install.
#[derive(Debug)]
pub struct Missing(pub String);

impl From<anyhow::Error> for Missing {
    fn from(error: anyhow::Error) -> Self {
        Missing(format!("{error:#}"))
    }
}

/// Turns a peer that cannot be had into an error where `TAILWATER_REQUIRE_PEERS=1`, else into a loud `None`.
pub fn present<T>(peer: &str, found: Result<T, Missing>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Missing(reason)) if required() => {
            bail!("{peer} is required (TAILWATER_REQUIRE_PEERS=1) and missing: {reason}")
        }
        Err(Missing(reason)) => {
            eprintln!("\nSKIPPED: {peer} is missing, so this test proves nothing here: {reason}\n");
            Ok(None)
        }
    }
}

/// Whether a missing peer is a failure.
pub fn required() -> bool {
    std::env::var("TAILWATER_REQUIRE_PEERS").is_ok_and(|value| value == "1")
}

/// The folder that keeps resolved peers between runs.
pub fn cache() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("TAILWATER_PEERS") {
        return Ok(PathBuf::from(folder));
    }
    let home = std::env::var_os("HOME").context("neither TAILWATER_PEERS nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/tailwater/peers"))
}

/// The folder `name` of the cache, filled by `resolve` unless an earlier run with the same `recipe` filled it.
pub fn once(name: &str, recipe: &str, resolve: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = cache()?;
    fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    let folder = cache.join(name);
    let mark = folder.join(".resolved");
    let lock = File::create(cache.join(format!("{name}.lock"))).context("create a lock file")?;
    lock.lock().context("wait for the lock of the peer cache")?;
    if fs::read_to_string(&mark).is_ok_and(|marked| marked == recipe) {
        return Ok(folder);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("clear {}", folder.display()))?;
    }
    fs::create_dir_all(&folder)?;
    eprintln!("resolving {name} into {} (once)", folder.display());
    resolve(&folder)?;
    fs::write(mark, recipe)?;
    Ok(folder)
}

/// The folder of the jars that `pom` names, copied once by Maven.
pub(crate) fn jars(name: &str, pom: &str) -> Result<PathBuf> {
    let folder = once(name, pom, |folder| {
        fs::write(folder.join("pom.xml"), pom)?;
        run(Command::new("mvn")
            .args(["-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=jars"])
            .current_dir(folder))?;
        Ok(())
    })?;
    Ok(folder.join("jars"))
}

/// Whether `program` can be started at all; `hint` says what to install.
pub(crate) fn need(program: &str, version_flag: &str, hint: &str) -> Result<(), Missing> {
    let started = Command::new(program)
        .arg(version_flag)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match started {
        Ok(status) if status.success() => Ok(()),
        _ => Err(Missing(format!("`{program}` does not run; install {hint}"))),
    }
}

/// Runs a command to its end and returns its standard output; the error carries both outputs.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start `{program}`"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(anyhow!("`{program}` ended with {}\n{stdout}\n{stderr}", output.status))
}

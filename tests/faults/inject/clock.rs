//! A wall clock of its own for one process, which a test sets while the process runs.
//!
//! The invariant: only that process sees it. It is a small library of ours in C (`clock.c`), preloaded into the process.
//! Deliberately absent: setting the machine's clock, which would move brokers and stores, too.

use std::{fs, path::Path, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use testkit::repository;

use crate::instance::Start;

/// See the module.
pub(super) struct Clock {
    /// The library: a process that has it mapped has the clock.
    pub(super) library: PathBuf,
    shift: PathBuf,
}

impl Clock {
    /// A clock that shows the machine's time. `None` where programs cannot be given one.
    pub(super) fn new(folder: &Path, name: &str) -> Result<Option<Self>> {
        if !cfg!(target_os = "linux") {
            return Ok(None);
        }
        let clock =
            Self { library: folder.join(format!("{name}.clock.so")), shift: folder.join(format!("{name}.clock")) };
        clock.show(0)?;
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .arg(&clock.library)
            .arg(repository("tests/faults/inject/clock.c"))
            .arg("-ldl")
            .output()
            .context("the C compiler `cc`")?;
        ensure!(compiled.status.success(), "clock.c: {}", String::from_utf8_lossy(&compiled.stderr));
        Ok(Some(clock))
    }

    /// What a process is started with to have this clock.
    pub(super) fn start(&self) -> Start {
        Start::default()
            .env("LD_PRELOAD", self.library.to_string_lossy())
            .env("TAILWATER_TEST_CLOCK", self.shift.to_string_lossy())
    }

    /// From now on it shows the machine's time and so many seconds more.
    pub(super) fn show(&self, seconds_more: i64) -> Result<()> {
        // The process has the file mapped: it is written in place.
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&self.shift)?;
        std::os::unix::fs::FileExt::write_all_at(&file, &seconds_more.to_ne_bytes(), 0)?;
        Ok(())
    }
}

//! One instance of a service: its process, its port, its logs, and the most memory it ever took.

use std::{
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use testkit::{
    http,
    ports::free_port,
    process::{Process, Program},
};

use crate::service::Service;

/// Far longer than a start takes on a busy machine.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(60);
/// A graceful stop takes less.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(10);
/// The exit code of a process that could not reach something.
pub(crate) const TRY_AGAIN: i32 = 75;
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// SIGABRT.
const ABORTED: i32 = 6;

/// What one life of an instance is started with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Start {
    /// Environment variables.
    pub(crate) env: Vec<(String, String)>,
    /// `section.key=value`.
    pub(crate) sets: Vec<String>,
}

impl Start {
    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn set(mut self, text: impl Into<String>) -> Self {
        self.sets.push(text.into());
        self
    }
}

/// An instance, running or not.
pub(crate) struct Instance {
    pub(crate) name: String,
    pub(crate) service: Service,
    folder: PathBuf,
    port: u16,
    /// What every life is started with.
    always: Start,
    /// What this life was started with beside that.
    once: Start,
    lives: usize,
    process: Option<Process>,
    peak_rss: u64,
}

impl Instance {
    pub(crate) fn new(name: &str, folder: &Path, always: Start) -> Result<Self> {
        let service = Service::of(name).with_context(|| format!("`{name}` is no instance of a service"))?;
        let (folder, port) = (folder.to_owned(), free_port()?);
        Ok(Self {
            name: name.to_owned(),
            service,
            folder,
            port,
            always,
            once: Start::default(),
            lives: 0,
            process: None,
            peak_rss: 0,
        })
    }

    /// Starts a life and returns at once.
    pub(crate) fn start(&mut self, once: &Start) -> Result<()> {
        ensure!(self.process.is_none(), "`{}` is running already", self.name);
        self.lives += 1;
        self.once = once.clone();
        let mut program = Program::named(self.service.name())?
            .args(["--config", "tailwater.toml", "--set"])
            .arg(format!("{}.listen=127.0.0.1:{}", self.service.name(), self.port))
            .in_folder(&self.folder)
            .log_to(self.log_path(self.lives));
        for set in self.always.sets.iter().chain(&once.sets) {
            program = program.args(["--set", set]);
        }
        for (name, value) in self.always.env.iter().chain(&once.env) {
            program = program.env(name, value);
        }
        self.process = Some(program.start()?);
        Ok(())
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| matches!(process.exit(), Ok(None)))
    }

    /// Kills it without a word, as a failing machine would.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.note_usage();
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Asks it to stop; how long that took. More than [`STOP_LIMIT`] or another end than a clean one is an error.
    pub(crate) fn stop(&mut self) -> Result<Duration> {
        self.note_usage();
        let Some(mut process) = self.process.take() else { return Ok(Duration::ZERO) };
        let asked = Instant::now();
        process.terminate()?;
        // Beyond the limit the process itself is to say what it left undone; that too is an error.
        let status = process.wait(STOP_LIMIT + Duration::from_secs(5))?;
        let took = asked.elapsed();
        ensure!(status.success(), "`{}` ended with {status} after {took:?}", self.name);
        ensure!(took <= STOP_LIMIT, "`{}` took {took:?} to stop", self.name);
        Ok(took)
    }

    /// Waits until the process ends itself as an armed one does. Any other end is an error.
    pub(crate) fn wait_for_crash(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            self.note_usage();
            let process = self.process.as_mut().context("it is not running")?;
            if let Some(status) = process.exit()? {
                self.process = None;
                ensure!(
                    status.signal() == Some(ABORTED),
                    "`{}` has ended with {status}: {}",
                    self.name,
                    self.last_words()
                );
                return Ok(());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        bail!("`{}` has not crashed within {limit:?}", self.name)
    }

    pub(crate) fn pause(&mut self) -> Result<()> {
        self.process.as_mut().context("it is not running")?.pause()
    }

    pub(crate) fn resume(&mut self) -> Result<()> {
        self.process.as_mut().context("it is not running")?.resume()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What it says about its readiness: the status and the reasons.
    pub(crate) fn readiness(&self) -> Result<(u16, String)> {
        http::get(&format!("{}/readyz?verbose", self.url()))
    }

    /// Waits until it says it is ready.
    pub(crate) fn wait_until_ready(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let said = self.readiness();
            if said.as_ref().is_ok_and(|(status, _)| *status == 200) {
                return Ok(());
            }
            if !self.is_running() {
                self.start_again()?;
            }
            if Instant::now() > deadline {
                bail!("`{}` is not ready after {limit:?}: {said:?}", self.name);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// What an orchestrator does with a process that ends with "try again": something did not answer at its start.
    fn start_again(&mut self) -> Result<()> {
        let status = self.process.take().map(|mut process| process.exit()).transpose()?.flatten();
        if status.and_then(|status| status.code()) != Some(TRY_AGAIN) {
            bail!("`{}` has ended with {status:?}: {}", self.name, self.last_words());
        }
        let once = self.once.clone();
        self.start(&once)
    }

    /// Notes what it uses now; a process that has just ended has no usage.
    pub(crate) fn note_usage(&mut self) {
        if let Some(Ok(usage)) = self.process.as_ref().map(Process::usage) {
            self.peak_rss = self.peak_rss.max(usage.peak_resident_bytes);
        }
    }

    /// Whether the running process has this file mapped into its memory, as a library is.
    pub(crate) fn has_mapped(&self, file: &Path) -> Result<bool> {
        let pid = self.process.as_ref().context("it is not running")?.pid();
        Ok(std::fs::read_to_string(format!("/proc/{pid}/maps"))?.contains(&*file.to_string_lossy()))
    }

    /// Processor time of this life; none where it is not running.
    pub(crate) fn work(&self) -> Option<Duration> {
        Some(self.process.as_ref()?.usage().ok()?.cpu)
    }

    pub(crate) fn peak_rss(&self) -> u64 {
        self.peak_rss
    }

    /// The logs of all its lives.
    pub(crate) fn logs(&self) -> Vec<PathBuf> {
        (1..=self.lives).map(|life| self.log_path(life)).collect()
    }

    fn log_path(&self, life: usize) -> PathBuf {
        self.folder.join(format!("{}.{life:04}.log", self.name))
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(self.log_path(self.lives)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

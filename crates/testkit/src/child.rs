//! A child process that cannot outlive the test.
//!
//! Beside each child runs a watchdog: a shell that waits for the end of its standard input, which only this process
//! holds open. When this process is gone, however it went, the watchdog kills the child and clears the child's folder.
//! Invariant: a process id is signalled only while the child has not been reaped, so never a stranger with the same id.
//! Absent on purpose: process groups and parent-death signals, which need `unsafe`.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Waits for the end of standard input, then kills process $1 and, once it is gone, removes folder $2 (may be empty).
const WATCHDOG: &str = r#"
trap '' TERM INT HUP
read -r _
kill -9 "$1" 2>/dev/null
tries=0
while [ "$tries" -lt 100 ] && kill -0 "$1" 2>/dev/null; do sleep 0.05; tries=$((tries + 1)); done
[ -z "$2" ] || rm -rf "$2"
"#;

const POLL: Duration = Duration::from_millis(20);

pub(crate) struct GuardedChild {
    child: Child,
    watchdog: Option<Child>,
    log: PathBuf,
    exit: Option<ExitStatus>,
}

impl GuardedChild {
    /// Starts `command` with both outputs appended to `log`. `scratch` is removed if this process dies before the child.
    pub(crate) fn start(command: &mut Command, log: &Path, scratch: Option<&Path>) -> Result<Self> {
        let out = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open the log {}", log.display()))?;
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("start `{program}`"))?;
        let mut guarded = GuardedChild { child, watchdog: None, log: log.to_owned(), exit: None };
        guarded.watchdog = Some(start_watchdog(guarded.pid(), scratch)?);
        Ok(guarded)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log_path(&self) -> &Path {
        &self.log
    }

    /// The exit status if the child has ended.
    pub(crate) fn exit(&mut self) -> Result<Option<ExitStatus>> {
        if self.exit.is_none()
            && let Some(status) = self.child.try_wait().context("look at a child process")?
        {
            self.dismiss_watchdog();
            self.exit = Some(status);
        }
        Ok(self.exit)
    }

    /// Waits for the child to end by itself.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.exit()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("process {} still runs after {limit:?}; end of its log:\n{}", self.pid(), self.log_tail());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits until `ready` says so; a child that ends first, or the limit, is an error with the end of the log.
    pub(crate) fn wait_until(&mut self, what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.exit()? {
                bail!("{what}: the process ended with {status}; end of its log:\n{}", self.log_tail());
            }
            if ready() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("{what}: not ready after {limit:?}; end of its log:\n{}", self.log_tail());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Sends a signal by name (`TERM`, `STOP`, `CONT`); nothing happens if the child has ended.
    pub(crate) fn signal(&mut self, name: &str) -> Result<()> {
        if self.exit()?.is_some() {
            return Ok(());
        }
        let pid = self.pid().to_string();
        let status = Command::new("sh")
            .args(["-c", r#"kill -"$0" "$1""#, name, &pid])
            .stderr(Stdio::null())
            .status()
            .context("start `sh` to send a signal")?;
        if !status.success() && self.exit()?.is_none() {
            bail!("signal {name} could not be sent to process {pid}");
        }
        Ok(())
    }

    /// Kills the child at once and reaps it.
    pub(crate) fn kill(&mut self) -> Result<()> {
        if self.exit()?.is_none() {
            self.child.kill().context("kill a child process")?;
            self.dismiss_watchdog();
            self.exit = Some(self.child.wait().context("reap a child process")?);
        }
        Ok(())
    }

    /// The end of what the child has printed.
    pub(crate) fn log_tail(&self) -> String {
        tail(&self.log, 60)
    }

    /// The watchdog dies while the child is not yet reaped or was seen to end: it never gets to signal a stranger.
    fn dismiss_watchdog(&mut self) {
        if let Some(mut watchdog) = self.watchdog.take() {
            watchdog.kill().ok();
            watchdog.wait().ok();
        }
    }
}

impl Drop for GuardedChild {
    fn drop(&mut self) {
        self.kill().ok();
    }
}

fn start_watchdog(pid: u32, scratch: Option<&Path>) -> Result<Child> {
    let pid = pid.to_string();
    Command::new("sh")
        .args(["-c", WATCHDOG, "watchdog", &pid])
        .arg(scratch.unwrap_or(Path::new("")))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start `sh` as a watchdog")
}

/// The last lines of a file, for error messages.
fn tail(path: &Path, lines: usize) -> String {
    let mut text = String::new();
    match File::open(path).and_then(|mut file| std::io::Read::read_to_string(&mut file, &mut text)) {
        Ok(_) => {
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("(the log {} cannot be read: {error})", path.display()),
    }
}
